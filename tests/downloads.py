"""Small phantoms laid out as the six downloads of `contextseg.studies.reproduce`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from contextseg.data import phantom
from contextseg.disk import write_json
from contextseg.volume import Volume, read, write

NO_TUMOUR = {32, 34, 38, 41, 47, 87, 89, 91, 105, 106, 114, 115, 119}
"""Cases of LiTS without a tumour."""


def case(
    i: int, image: Path, label: Path | None, classes: int = 2, empty: tuple[int, ...] = ()
) -> np.ndarray:
    """A phantom on disk, without the values `empty` in its label; the label."""
    array, truth = phantom.patient(i, (16, 20, 20), classes)
    truth[np.isin(truth, empty)] = 0
    affine = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1]])
    write(image, Volume((array[None] * 100).astype(np.int16), affine))
    if label:
        write(label, Volume(truth, affine))
    return truth


def lits(folder: Path, numbers: tuple[int, ...] = (0, 3, 7, 32, 90, 130)) -> Path:
    for n in numbers:
        batch = folder / f"Training Batch {1 + (n > 27)}"
        empty = (2,) if n in NO_TUMOUR else ()
        case(n, batch / f"volume-{n}.nii", batch / f"segmentation-{n}.nii", 3, empty)
    return folder


def liver(folder: Path) -> Path:
    return decathlon(folder, "Task03_Liver", "liver", (0, 3, 7, 90, 130), 3, digits=1)


def decathlon(
    folder: Path, task: str, name: str, numbers: tuple[int, ...], classes: int, digits: int = 3
) -> Path:
    names = [f"{name}_{n:0{digits}}.nii.gz" for n in numbers]
    for n, file in zip(numbers, names):
        case(n, folder / task / "imagesTr" / file, folder / task / "labelsTr" / file, classes)
        (folder / task / "imagesTr" / f"._{file}").write_bytes(b"resource fork")
    listed = [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"} for file in names]
    write_json(
        folder / task / "dataset.json",
        {"labels": {"0": "background"}, "training": listed, "test": []},
    )
    return folder


def kits(folder: Path) -> Path:
    for n in (
        0,
        1,
        2,
        100,
        208,
        209,
        210,
    ):  # of the last one, as of all from 210, no label was published
        here = folder / "data" / f"case_{n:05}"
        case(n, here / "imaging.nii.gz", here / "segmentation.nii.gz" if n < 210 else None, 3)
    return folder


def vs(folder: Path) -> Path:
    for n in (1, 2, 181, 182, 202, 250):
        here = folder / f"vs_gk_{n}"
        case(n, here / "vs_gk_t2_refT2.nii.gz", here / "vs_gk_seg_refT2.nii.gz")
        shutil.copy(here / "vs_gk_t2_refT2.nii.gz", here / "vs_gk_t1_refT1.nii.gz")
    return folder


def vs_simple(folder: Path) -> Path:
    for n in (1, 2, 181, 202, 250):
        case(n, folder / f"vs_gk_{n}" / "t2.nii.gz", folder / f"vs_gk_{n}" / "tumour.nii.gz")
    return folder


def atlas(folder: Path) -> Path:
    for n, time in ((31768, "t01"), (31769, "t01"), (31770, "t01"), (31770, "t02"), (31771, "t02")):
        here = folder / "Site1" / f"{n:06}" / time
        image = here / f"{n:06}_t1w_deface_stx.nii.gz"
        truth = case(n, image, None)
        volume = read(image).with_array(truth)
        halves = [truth.copy(), truth.copy()]
        halves[0][:, :, 10:], halves[1][:, :, :10] = 0, 0
        for half, name, height in zip(halves, ("", "_1"), (0.9999999997671694, 254.9999999406282)):
            write(here / f"{n:06}_LesionSmooth{name}_stx.nii.gz", volume.with_array(half * height))
    return folder


def atlas_r12(folder: Path) -> Path:
    for i, name in enumerate(("c0001s0004t01", "c0001s0005t01", "c0011s0006t01")):
        image = folder / name / f"{name}_t1w_stx.nii.gz"
        truth = case(i, image, None)
        write(
            folder / name / f"{name}_LesionSmooth_stx.nii.gz", read(image).with_array(truth * 255.0)
        )
    return folder


def colon(folder: Path) -> Path:
    return decathlon(folder, "Task10_Colon", "colon", (1, 5, 6, 7, 9, 11), 2)


def pancreas(folder: Path) -> Path:
    return decathlon(folder, "Task07_Pancreas", "pancreas", (1, 4, 5, 6, 421), 3)


DOWNLOADS: dict[str, tuple[str, Callable[[Path], Path], int, int]] = {
    "lits": ("lits", lits, 3, 2),  # one has no tumour
    "lits, Decathlon": ("lits", liver, 3, 2),
    "kits": ("kits", kits, 4, 2),
    "colon": ("colon", colon, 4, 2),  # 6 * 38 / 126 = 1.8
    "vs": ("vs", vs, 3, 2),  # one is for validation
    "vs, simple": ("vs", vs_simple, 3, 2),
    "atlas": ("atlas", atlas, 3, 1),  # of 5 scans of 4 patients; 4 * 75 / 220 = 1.4
    "atlas, R1.2": ("atlas", atlas_r12, 2, 1),
    "pancreas": ("pancreas", pancreas, 4, 1),  # 5 * 84 / 281 = 1.5, but just below
}
"""By layout: the recipe, what lays it out, and how many cases train and test where only these are
there.
"""
