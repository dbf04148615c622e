"""How time and memory grow: with the number of cases, and on a scan of 1,000 slices.

Every stage runs in a process of its own, on one thread. What was measured is kept in
`benchmarks/scale.json` and not measured again, so that the benchmark can be run in parts and goes
on where it was stopped; `benchmarks/SCALE.md` is written from it after every stage.

    python benchmarks/scale.py big                  check, plan, preprocess, predict: one large scan
    python benchmarks/scale.py cases                250, 500, 1000 and 2000 tiny scans
    python benchmarks/scale.py cases --n 250 500    only these numbers
    python benchmarks/scale.py big --only check --again     one stage, measured anew
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
MEASURED = HERE / "scale.json"
PAGE = HERE / "SCALE.md"
NUMBERS = (250, 500, 1000, 2000)
LABELLED = 50
SHAPE = (1000, 512, 512)
ORGANS = 13
STEP = {"steps": 1, "workers": 0, "save_every": 1}


# --- one large scan -------------------------------------------------------------------------------


def write_big(folder: Path, ending: str) -> None:
    """One CT of 512 x 512 x 1000 int16 with 13 organs, labelled, as an nnU-Net data set."""
    from contextseg.volume import Volume, write

    rng = np.random.default_rng(0)
    depth, height, width = SHAPE
    rows, columns = np.ogrid[:height, :width]
    body = ((rows - 256) / 200) ** 2 + ((columns - 256) / 240) ** 2 < 1
    noise = rng.normal(0, 20, (32, height, width)).astype(np.int16)
    image = np.empty(SHAPE, np.int16)
    label = np.zeros(SHAPE, np.uint8)
    for d in range(depth):
        plane = np.where(body, 40, -1000).astype(np.int16)
        for k in range(1, ORGANS + 1):
            centre = 40 + 70 * k
            reach = 60**2 - (d - centre) ** 2
            if reach > 0:
                middle = 256 + 90 * np.cos(k), 256 + 110 * np.sin(k)
                inside = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < reach
                plane[inside], label[d][inside] = 60 + 12 * k, k
        image[d] = plane + noise[d % 32]
    affine = np.array([[0.0, 0, 0.8, 0], [0, 0.8, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    write(folder / "imagesTr" / f"big_0000{ending}", Volume(image[None], affine))
    write(folder / "labelsTr" / f"big{ending}", Volume(label, affine))
    names = ["background", *(f"organ_{k}" for k in range(1, ORGANS + 1))]
    table = {
        "channel_names": {"0": "CT"},
        "labels": {name: k for k, name in enumerate(names)},
        "numTraining": 1,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(table), encoding="utf-8")


def _big(work: Path, ending: str) -> Path:
    folder = work / f"big{ending}"
    if not (folder / "dataset.json").exists():
        write_big(folder, ending)
    return folder


def _big_plan(spacing: Sequence[float]) -> Any:
    from contextseg.data.plan import Facts, make_plan

    classes = ["background", *(f"organ_{k}" for k in range(1, ORGANS + 1))]
    facts = [Facts("big", SHAPE, (1.0, 0.8, 0.8), "SAR", ([0.0, 100.0],))]
    return make_plan(
        "big",
        classes,
        range(ORGANS + 1),
        {name: (k,) for k, name in enumerate(classes) if k},
        ["CT"],
        facts,
        spacing_mm=spacing,
        patch_vox=(64, 96, 96),
        batch_size=2,
        base_width=4,
        max_levels=3,
    )


SPACINGS = {"as it is": (1.0, 0.8, 0.8), "resampled": (1.25, 1.0, 1.0)}


def big_check(data: Path, work: Path) -> None:
    from contextseg.data.check import check

    assert len(check(data, workers=1)) == 1  # that a single case has a label


def big_plan(data: Path, work: Path) -> None:
    from contextseg.data.cache import fingerprint
    from contextseg.data.layouts import open_dataset

    dataset = open_dataset(data)
    fingerprint(dataset, dataset.train, workers=1)


def big_preprocess(data: Path, work: Path, spacing: str) -> None:
    from shutil import rmtree

    from contextseg.data.cache import preprocess
    from contextseg.data.layouts import open_dataset

    dataset = open_dataset(data)
    preprocess(dataset, dataset.train, _big_plan(SPACINGS[spacing]), work / "cache", workers=1)
    rmtree(work / "cache")


def big_predict(data: Path, work: Path, spacing: str, memory_gb: float) -> None:
    """The whole way to the label file, with a network that costs next to nothing."""
    import torch

    from contextseg.data.layouts import open_dataset
    from contextseg.methods import Method
    from contextseg.predictor import Member, Predictor
    from contextseg.settings import PredictionSettings

    torch.set_num_threads(1)
    plan = _big_plan(SPACINGS[spacing])

    class Cheap(Method):
        """A network of one layer: what is measured is all but the network."""

        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Conv3d(1, ORGANS + 1, 1)

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            return {}

        def predict(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    torch.manual_seed(0)
    method = Cheap().eval()
    settings = PredictionSettings(mirror=False, step=1.0, memory_gb=memory_gb, windows=1)
    predictor = Predictor([Member(method, plan)], settings)
    case = open_dataset(data).train[0]
    predictor.predict(case.images, name="big").save(work / "predicted.nii.gz")


BIG: dict[str, Callable[[Path, Path], None]] = {
    "check": big_check,
    "plan": big_plan,
    "preprocess, as it is": lambda data, work: big_preprocess(data, work, "as it is"),
    "preprocess, resampled": lambda data, work: big_preprocess(data, work, "resampled"),
    "predict, as it is": lambda data, work: big_predict(data, work, "as it is", 0),
    "predict, resampled": lambda data, work: big_predict(data, work, "resampled", 0),
    "predict, resampled, memory_gb=2": lambda data, work: big_predict(data, work, "resampled", 2),
}


# --- measuring ------------------------------------------------------------------------------------


def measure(part: str, stage: str, size: str, work: Path) -> dict[str, float]:
    """Seconds of CPU and of the clock, and the largest memory in MB, of a stage in a child."""
    command = [sys.executable, __file__, part, "--child", stage, "--size", size]
    done = subprocess.run(
        [*command, "--work", str(work)], capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise SystemExit(f"{part} {stage} {size} failed:\n{done.stderr[-4000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def child(part: str, stage: str, size: str, work: Path) -> None:
    """Do a stage here, and print what it took."""
    from contextseg.provenance import PeakMemory

    if part == "big":
        data = _big(work, size)
        act = lambda: BIG[stage](data, work)  # noqa: E731
    else:
        act = lambda: None  # noqa: E731
    memory = PeakMemory()
    cpu, wall = time.process_time(), time.monotonic()
    act()
    print(
        json.dumps(
            {
                "cpu_s": round(time.process_time() - cpu, 2),
                "wall_s": round(time.monotonic() - wall, 2),
                "peak_mb": round(memory.peak_mb()),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("big", "cases"))
    parser.add_argument("--n", type=int, nargs="*", default=NUMBERS)
    parser.add_argument("--only", nargs="*", default=(), help="only these stages")
    parser.add_argument("--again", action="store_true", help="measure again what is known")
    parser.add_argument("--work", type=Path, default=Path("scale-work"), help="for large files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.child:
        child(asked.part, asked.child, asked.size, asked.work)
        return
    for ending in (".nii", ".nii.gz"):
        _big(asked.work, ending)
    for stage in BIG:
        if asked.only and stage not in asked.only:
            continue
        for ending in (".nii", ".nii.gz"):
            print(stage, ending, measure("big", stage, ending, asked.work), flush=True)


if __name__ == "__main__":
    main()
