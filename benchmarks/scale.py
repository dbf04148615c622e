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


def big_predict(data: Path, work: Path, spacing: str, memory_gb: float = 0.0) -> None:
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
    settings = PredictionSettings(mirror=False, step=1.0, windows=1, memory_gb=memory_gb)
    predictor = Predictor([Member(method, plan)], settings)
    case = open_dataset(data).train[0]
    predictor.predict(case.images, name="big").save(work / "predicted.nii.gz")


BIG: dict[str, Callable[[Path, Path], None]] = {
    "check": big_check,
    "plan": big_plan,
    "preprocess, as it is": lambda data, work: big_preprocess(data, work, "as it is"),
    "preprocess, resampled": lambda data, work: big_preprocess(data, work, "resampled"),
    "predict, as it is": lambda data, work: big_predict(data, work, "as it is"),
    "predict, resampled": lambda data, work: big_predict(data, work, "resampled"),
    "predict, as it is, memory_gb=2": lambda data, work: big_predict(data, work, "as it is", 2),
    "predict, resampled, memory_gb=2": lambda data, work: big_predict(data, work, "resampled", 2),
}


# --- many tiny scans ------------------------------------------------------------------------------

PLANNING = ("spacing_mm=2,1,1", "patch_vox=8,8,8", "batch_size=4", "base_width=4", "max_levels=2")
TRAINING = ("steps=1", "unlabelled_items=2")


def _data(work: Path) -> Path:
    return work / "data"


def _run(work: Path) -> Any:
    from contextseg.runs import Run
    from contextseg.settings import Settings

    settings = Settings(str(_data(work)), "cps", -1).set([*PLANNING, *TRAINING])
    return Run(work / "run", settings)


def cases_check(work: Path) -> None:
    from contextseg.data.check import check

    check(_data(work), workers=1)


def cases_open_unmatched(work: Path) -> None:
    """A data set of which no label has the name of an image."""
    from contextseg.data.layouts import survey

    folder = work / "unmatched"
    for place, name in (("imagesTr", "scan_{:04d}_0000"), ("labelsTr", "Scan-of_{:04d}")):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for i in range(int(work.name)):
            (folder / place / f"{name.format(i)}.nii.gz").write_bytes(b"x")
    table = (_data(work) / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(table, encoding="utf-8")
    assert len(survey(folder)[1]) >= int(work.name)


def cases_predict(work: Path) -> None:
    import contextseg as cs

    predictor = cs.load(work / "run", mirror=False, largest_component=True)
    predictor.predict_folder(_data(work) / "imagesTr", work / "predicted", statistics=True)


def cases_two_stage(work: Path) -> None:
    import contextseg as cs

    images, out = _data(work) / "imagesTr", work / "two-stage"
    cs.two_stage(work / "run", images, out, every=4, mirror=False, verbose=False)


def cases_evaluate(work: Path) -> None:
    import contextseg as cs

    folders = work / "predicted", work / "two-stage", work / "evaluated"
    labels = _data(work) / "dataset.json"
    cs.evaluate(*folders, labels=labels, verbose=False)


def cases_compare(work: Path) -> None:
    """The tables of a comparison of two methods, and their page."""
    import pandas as pd

    from contextseg.evaluation.tables import results, save_results

    table = pd.read_csv(work / "evaluated" / "metrics.csv", dtype={"case": str})
    table = pd.concat([table.assign(method=name, seed=0) for name in ("a", "b")])
    save_results(results(table, data="phantom", split="all", resamples=200), work / "tables", "t")


def cases_report(work: Path) -> None:
    import pandas as pd

    from contextseg.reports import write_report

    folders = {"image": _data(work) / "imagesTr", "reference": work / "two-stage"}
    table = pd.read_csv(work / "evaluated" / "metrics.csv", dtype={"case": str})
    cases = [
        {
            "case": name,
            "image": [str(folders["image"] / f"{name}_0000.nii.gz")],
            "reference": str(folders["reference"] / f"{name}.nii.gz"),
            "prediction": str(work / "predicted" / f"{name}.nii.gz"),
        }
        for name in dict.fromkeys(table["case"])
    ]
    page = work / "report.html"
    regions = {"bright": [1]}
    facts: dict[str, Any] = {"logs": {}, "stages": [], "provenance": {}, "regions": regions}
    write_report(page, title="phantom", table=table, cases=cases, **facts)


def cases_project(work: Path) -> None:
    """A project is begun, every case is noted as predicted, and the worklist is put in order."""
    import contextseg as cs

    opened = cs.project(work / "project", _data(work), verbose=False)
    with opened.table.together():
        for i, name in enumerate(opened.table.cases()):
            opened.table.note(name, predicted=1, accepted="", expected_dice=i % 97 / 97)
    opened.refresh()
    opened.worklist()


CASES: dict[str, Callable[[Path], object]] = {
    "open, labels match no image": cases_open_unmatched,
    "check": cases_check,
    "plan": lambda work: _run(work).make_plan(),
    "preprocess": lambda work: _run(work).preprocess(),
    "first training step": lambda work: _run(work).fit(),
    "predict": cases_predict,
    "two-stage": cases_two_stage,
    "evaluate": cases_evaluate,
    "compare": cases_compare,
    "report": cases_report,
    "project and worklist": cases_project,
}


# --- measuring ------------------------------------------------------------------------------------


def measure(part: str, stage: str, size: str, work: Path) -> dict[str, Any]:
    """Seconds of CPU and of the clock, and the largest memory in MB, of a stage in a child."""
    command = [sys.executable, __file__, part, "--child", stage, "--size", size]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--work", str(work)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{part} {stage} {size} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def child(part: str, stage: str, size: str, work: Path) -> None:
    """Do a stage here, and print what it took."""
    from contextseg.provenance import PeakMemory

    data = work / f"big{size}" if part == "big" else work / size
    memory = PeakMemory()
    cpu, wall = time.process_time(), time.monotonic()
    if part == "big":
        BIG[stage](data, work)
    else:
        CASES[stage](data)
    result = {
        "cpu_s": round(time.process_time() - cpu, 2),
        "wall_s": round(time.monotonic() - wall, 2),
        "peak_mb": round(memory.peak_mb()),
    }
    print(json.dumps(result))


def arrange(part: str, size: str, work: Path) -> None:
    """Write the data of a size, unless it is there; in a child, whose memory goes with it."""
    if part == "big":
        _big(work, size)
    elif not (work / size / "data" / "dataset.json").exists():
        from contextseg.data.phantom import write_dataset

        n = int(size)
        write_dataset(work / size / "data", LABELLED, n, test=0, shape=(8, 12, 12))


def page(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The page of what was measured: `measured[part][stage][size]`."""
    from contextseg.provenance import machine

    lines = [
        "# How time and memory grow",
        "",
        "Written by `benchmarks/scale.py` from `benchmarks/scale.json`; not edited by hand. Every",
        "stage ran in a process of its own, with one case at a time and one thread, on a machine",
        f"that others used too ({machine()}, Python {platform.python_version()}). Memory is the",
        "largest resident memory of the process, libraries included (torch alone: 220 MB).",
        "Newest measurement: "
        + max(row["date"] for s in measured.values() for r in s.values() for row in r.values())
        + ".",
    ]
    if big := measured.get("big"):
        voxels = " x ".join(map(str, reversed(SHAPE)))
        lines += [
            "",
            f"## One CT of {voxels} voxels, int16 (0.5 GB), with a label of {ORGANS} organs",
            "",
            "`resampled` is from 1 x 0.8 x 0.8 mm to 1.25 x 1 x 1 mm. The network of `predict` is",
            f"one layer with {ORGANS + 1} outputs in patches of 64 x 96 x 96: all but the network",
            "is measured, from the file to the label map in a file.",
            "",
            "| stage | file | CPU, s | peak, MB |",
            "|---|---|--:|--:|",
        ]
        for stage, sizes in big.items():
            for size, row in sizes.items():
                lines.append(f"| {stage} | {size} | {row['cpu_s']:.1f} | {row['peak_mb']} |")
    if cases := measured.get("cases"):
        numbers = sorted({int(n) for sizes in cases.values() for n in sizes})
        heads = " | ".join(f"{n:,}" for n in numbers)
        lines += [
            "",
            f"## {LABELLED} labelled and many unlabelled tiny scans (8 x 12 x 12 voxels)",
            "",
            "Seconds of CPU, and MB, by the number of unlabelled scans. `growth` is the CPU of the",
            "most scans over that of the fewest, over the same ratio of all scans: at most about",
            "1 is linear.",
            "",
            f"| stage | {heads} | growth | {heads} |",
            "|---|" + "--:|" * (2 * len(numbers) + 1),
        ]
        for stage, sizes in cases.items():
            there = [sizes.get(str(n)) for n in numbers]
            seconds = " | ".join(f"{row['cpu_s']:.1f} s" if row else "" for row in there)
            memory = " | ".join(f"{row['peak_mb']} MB" if row else "" for row in there)
            growth = ""
            if there[0] and there[-1] and len(there) > 1:
                ratio = (numbers[-1] + LABELLED) / (numbers[0] + LABELLED)
                growth = f"{there[-1]['cpu_s'] / max(there[0]['cpu_s'], 0.01) / ratio:.2f}"
            lines.append(f"| {stage} | {seconds} | {growth} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("big", "cases", "page"))
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
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    stages: Mapping[str, Any] = {"big": BIG, "cases": CASES, "page": {}}[asked.part]
    sizes = (".nii", ".nii.gz") if asked.part == "big" else tuple(map(str, asked.n))
    for size in sizes if stages else ():
        for stage in stages:
            known = measured.setdefault(asked.part, {}).setdefault(stage, {})
            if (asked.only and stage not in asked.only) or (size in known and not asked.again):
                continue
            arrange(asked.part, size, asked.work)
            known[size] = measure(asked.part, stage, size, asked.work)
            print(asked.part, stage, size, known[size], flush=True)
            MEASURED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(measured), encoding="utf-8")
    if measured:
        PAGE.write_text(page(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
