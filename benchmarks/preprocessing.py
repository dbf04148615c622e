"""Preprocessing a CT from .nii.gz files to the arrays that training reads, against nnU-Net v2.

Both read, crop, resample (cubic the image, linear the labels), list voxels to centre patches on,
and save. Ours crops to the body, nnU-Net to what is not zero, which in a CT is everything: part of
the time and memory is saved there. Between slices more than three times as thick as voxels are
wide, as here, nnU-Net takes the nearest; ours interpolates. Each run is a process of its own with
one thread, so that its peak memory is its own.

    python benchmarks/preprocessing.py [--quick]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from contextseg.data.cache import Cached, load_record, preprocess
from contextseg.data.layouts import open_dataset
from contextseg.data.plan import Channel, Plan
from contextseg.disk import write_json
from contextseg.provenance import PeakMemory
from contextseg.resampling import resample
from contextseg.volume import Volume, write
from training import nnunet_dataset, nnunet_plans

FULL, QUICK, WARM = (100, 512, 512), (40, 160, 160), (16, 24, 24)
SPACING_MM, TARGET_MM = (2.5, 0.8, 0.8), (2.0, 1.0, 1.0)
ORGANS = 13
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS")


def rows(quick: bool) -> list[tuple[str, str, float, float, str]]:
    """(claim, input, ours, nnU-Net's, peer): seconds, then MB; [] without nnunetv2.

    MB are those above that of the imports.
    """
    if find_spec("nnunetv2") is None:
        print("preprocessing: left out (nnunetv2 is not installed)", file=sys.stderr)
        return []
    shape = QUICK if quick else FULL
    taken: dict[str, list[tuple[float, float]]] = {"ours": [], "nnunet": []}
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder) / "warm", WARM)
        write_case(Path(folder) / "case", shape)
        for r in range(1 if quick else 3):
            for name, runs in taken.items():
                seconds, megabytes = _child(name, folder, r)
                runs.append((seconds, megabytes))
        _compare(Path(folder))
    ours_s, ours_mb = (median(values) for values in zip(*taken["ours"]))
    peer_s, peer_mb = (median(values) for values in zip(*taken["nnunet"]))
    size = " x ".join(str(n) for n in reversed(shape))
    given = f"CT {size}, {ORGANS} organs, 0.8 x 0.8 x 2.5 to 1.0 x 1.0 x 2.0 mm, one thread"
    claim, peer = "preprocess a case, .nii.gz to arrays on disk", "nnU-Net v2 DefaultPreprocessor"
    return [
        (claim, given, ours_s, peer_s, peer),
        (f"{claim}, peak MB", given, ours_mb, peer_mb, peer),
    ]


def write_case(folder: Path, shape: tuple[int, int, int]) -> None:
    """One abdomen in Hounsfield units, as an nnU-Net data set.

    Air, an elliptic body, organs, smooth noise.
    """
    rng = np.random.default_rng(0)
    d, h, w = shape
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    image, label = np.full(shape, -1000, np.float32), np.zeros(shape, np.int16)
    image[:, (y / 0.65) ** 2 + (x / 0.9) ** 2 < 1] = 20
    for k in range(1, ORGANS + 1):
        centre, radius = (
            rng.uniform(0.35, 0.65, 3) * shape,
            np.maximum(1.5, rng.uniform(0.04, 0.15, 3) * shape),
        )
        ball = sum(((g - c) / r) ** 2 for g, c, r in zip(np.ogrid[:d, :h, :w], centre, radius)) < 1
        image[ball], label[ball] = rng.uniform(-50, 200), k
    image += resample(rng.normal(0, 30, [n // 2 for n in shape]).astype(np.float32), shape, 1)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (
        SPACING_MM[0],
        -SPACING_MM[1],
        -SPACING_MM[2],
        1,
    )  # as scanners store it
    volume = Volume(np.rint(image).astype(np.int16)[None], affine)
    write(folder / "imagesTr" / "case_0000.nii.gz", volume)
    write(folder / "labelsTr" / "case.nii.gz", volume.with_array(label))
    write_json(folder / "dataset.json", nnunet_dataset(_plan()))


def _plan() -> Plan:
    """The plan of a training set: the target spacing and the organs' intensities."""
    names = ("background", *(f"organ {k}" for k in range(1, ORGANS + 1)))
    return Plan(
        dataset="bench",
        classes=names,
        values=tuple(range(ORGANS + 1)),
        regions={name: (k,) for k, name in enumerate(names) if k},
        channels=(Channel("CT", "ct", -150.0, 250.0, 60.0, 70.0),),
        orientation="SAR",
        spacing_mm=TARGET_MM,
        patch_vox=(96, 128, 128),
        batch_size=2,
        mirror=(True, True, True),
        swaps=(),
        widths=(32,),
        strides=((1, 1, 1),),
        kernels=((3, 3, 3),),
    )


def _compare(folder: Path) -> None:
    """Raise `AssertionError` unless both end with the same organs.

    Their voxels agree to 5 %, their mean to 0.05 sd.
    """
    (ours_n, ours_mean), (peer_n, peer_mean) = (
        np.load(folder / f"{name}.npy") for name in ("ours", "nnunet")
    )
    if abs(ours_n / peer_n - 1) > 0.05 or abs(ours_mean - peer_mean) > 0.05:
        what = f"{ours_n:.0f} and {peer_n:.0f} voxels, means {ours_mean:.3f} and {peer_mean:.3f}"
        raise AssertionError(f"the organs differ: {what}")


# --- the processes --------------------------------------------------------------------------------


def _child(name: str, folder: str, r: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--task", json.dumps([name, folder, r])]
    environment = os.environ | dict.fromkeys(THREADS, "1")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def _task(name: str, folder: str, r: int) -> None:
    import torch

    torch.set_num_threads(1)
    work, made = _WORK[name]()
    work(Path(folder) / "warm", Path(folder) / f"{name}-warm-{r}")  # loads what is imported late
    memory = PeakMemory()
    before, start = memory.peak_mb(), time.process_time()
    out = Path(folder) / f"{name}-{r}"
    work(Path(folder) / "case", out)
    print(json.dumps([time.process_time() - start, memory.peak_mb() - before]))
    image, label = made(out)
    np.save(Path(folder) / f"{name}.npy", [(label > 0).sum(), image[label > 0].mean()])


Work = Callable[[Path, Path], Any]
Made = Callable[[Path], tuple[np.ndarray, np.ndarray]]


def _ours() -> tuple[Work, Made]:
    plan = _plan()

    def work(case: Path, out: Path) -> None:
        dataset = open_dataset(case)
        preprocess(dataset, dataset.train, plan, out, workers=1)

    def made(out: Path) -> tuple[np.ndarray, np.ndarray]:
        folder = next(out.iterdir())
        case = Cached(
            folder, load_record(folder / "record.json"), (True,) * len(plan.classes), True
        )
        return case.patch(tuple(slice(0, n) for n in case.image.shape[1:]), plan.channels)[
            0
        ], np.array(case.label)

    return work, made


def _nnunet() -> tuple[Work, Made]:
    import blosc2
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, table = PlansManager(nnunet_plans(_plan())), nnunet_dataset(_plan())
    configuration = plans.get_configuration("3d_fullres")

    def work(case: Path, out: Path) -> None:
        out.mkdir()
        image, label = (
            str(case / "imagesTr" / "case_0000.nii.gz"),
            str(case / "labelsTr" / "case.nii.gz"),
        )
        preprocessor = DefaultPreprocessor(verbose=False)
        preprocessor.run_case_save(str(out / "case"), [image], label, plans, configuration, table)

    def made(out: Path) -> tuple[np.ndarray, np.ndarray]:
        image, label = (
            blosc2.open(str(out / name), mode="r")[0] for name in ("case.b2nd", "case_seg.b2nd")
        )
        return image, label

    return work, made


_WORK: dict[str, Callable[[], tuple[Work, Made]]] = {"ours": _ours, "nnunet": _nnunet}


if __name__ == "__main__":
    if "--task" in sys.argv:
        _task(*json.loads(sys.argv[-1]))
    else:
        for row in rows(quick="--quick" in sys.argv):
            print(
                f"{row[0]}: {row[2]:.3g} against {row[3]:.3g} ({row[3] / row[2]:.1f}x)  "
                f"{row[4]}; {row[1]}"
            )
