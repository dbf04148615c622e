"""The scans and label maps that the packaged network is trained on, as one file.

    python -m contextseg.propagation.network.prepare /path/to/data training.npz

`data` holds the folders `headneck`, `sarcoma`, `torso` and `headmaps` of docs/propagation-network.
The file holds for each volume an image of 64 grey values, a label map, supervoxels, its spacing,
and a table of the structures that may be an object. Two organs of the head and neck (`LEFT_OUT`)
and the hippocampi never are, on any scan, nor is bone on the drawn heads, which holds the mandible.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from scipy import ndimage

from contextseg.disk import replacing
from contextseg.errors import ContextsegError, plural
from contextseg.inputs import MEND, damage_named, read_json
from contextseg.volume import read, read_labels

LEFT_OUT = ("mandible", "oesophagus", "esophagus")
"""Organs that are never an object: they are the test of what the network does with new organs."""

MARGINS = ("target_56", "target_63")
"""Planning targets that are margins around others, and no structures."""

HIPPOCAMPUS = (17, 53)
BONE = (515, 516)
"""FreeSurfer's numbers of structures of the drawn heads that are never an object."""

VALIDATION_HEADNECK = 10
VALIDATION_SARCOMA = 4
"""The last so many of the training cases of each set are not trained on."""

GREYS = 64
MARGIN = 8
SUPERVOXEL = 7
"""Side of a supervoxel in voxels, about."""


class HeadNeckCase(TypedDict):
    """A case of `cases.json`: which classes were drawn, and its split."""

    annotated: list[str]
    split: str


class HeadNeckTable(TypedDict):
    """`cases.json` of the head and neck."""

    labels: dict[str, int]
    cases: dict[str, HeadNeckCase]


class SarcomaSplit(TypedDict):
    """`split.json` of the sarcomas."""

    train: list[str]


class TorsoClass(TypedDict):
    """A class of `labels_v2.json`."""

    name: str
    voxels: int


@dataclass
class Example:
    """One volume of the training.

    Attributes:
        name: Its case.
        source: "headneck", "sarcoma", "torso" or "headmaps".
        image: (D, H, W) uint8 of 0 to 63; None where there is none.
        label: (D, H, W) uint8.
        objects: Label values that may be an object.
        spacing_mm: Of D, H and W.
        validation: Whether it is never trained on.
    """

    name: str
    source: str
    image: np.ndarray | None
    label: np.ndarray
    objects: list[int]
    spacing_mm: tuple[float, ...]
    validation: bool = False
    supervoxels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint16))


def supervoxels(image: np.ndarray, side: int = SUPERVOXEL, rounds: int = 3) -> np.ndarray:
    """Regions of like intensity, by local k-means (SLIC: Achanta et al., IEEE TPAMI 2012).

    Args:
        image: (D, H, W).
        side: Voxels from one seed to the next.
        rounds: How often seeds move.

    Returns:
        (D, H, W) uint16, 0 and up.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    cells = [max(1, round(n / side)) for n in image.shape]
    axes = [(np.arange(c) + 0.5) * n / c for c, n in zip(cells, image.shape)]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    grey = ndimage.map_coordinates(smooth, np.moveaxis(centres, -1, 0), order=1)
    position = [
        np.arange(n, dtype=np.float32).reshape([-1 if a == i else 1 for a in range(3)])
        for i, n in enumerate(image.shape)
    ]
    home = [
        np.minimum(np.arange(n) * c // n, c - 1).reshape([-1 if a == i else 1 for a in range(3)])
        for i, (n, c) in enumerate(zip(image.shape, cells))
    ]
    weight = np.float32((8.0 / side) ** 2)
    count = int(np.prod(cells))
    seeds = [*np.moveaxis(centres.reshape(-1, 3), -1, 0), grey.ravel().astype(np.float32)]
    best = np.zeros(image.shape, np.int32)
    for _ in range(rounds):
        nearest = np.full(image.shape, np.inf, np.float32)
        for offset in np.ndindex(3, 3, 3):
            at = [np.clip(h + o - 1, 0, c - 1) for h, o, c in zip(home, offset, cells)]
            index = ((at[0] * cells[1] + at[1]) * cells[2] + at[2]).astype(np.int32)
            apart = np.square(smooth - seeds[3][index])
            for place, seed in zip(position, seeds):
                apart += weight * np.square(place - seed[index])
            closer = apart < nearest
            nearest = np.where(closer, apart, nearest)
            best = np.where(closer, index, best)
        flat = best.ravel()
        voxels = np.maximum(np.bincount(flat, minlength=count), 1)
        values = [*(np.broadcast_to(place, image.shape) for place in position), smooth]
        seeds = [(np.bincount(flat, v.ravel(), count) / voxels).astype(np.float32) for v in values]
    return np.unique(best, return_inverse=True)[1].reshape(image.shape).astype(np.uint16)


def examples(data: Path) -> Iterator[Example]:
    """The volumes of the training, without supervoxels.

    Args:
        data: The folder of the four data sets.

    Yields:
        One volume after the other.

    Raises:
        ContextsegError: A table or a volume is missing or damaged.
    """
    yield from _headneck(data / "headneck")
    yield from _sarcoma(data / "sarcoma")
    yield _torso(data / "torso")
    yield from _headmaps(data / "headmaps")


def _values(path: Path, names: Iterable[str]) -> list[int]:
    """The names of a JSON object that are values of a label map, as numbers."""
    with damage_named(path, MEND, "its names are no values of a label map"):
        return [int(name) for name in names]


def _scan(path: Path) -> np.ndarray:
    """The only channel of a scan, (D, H, W)."""
    array = np.asarray(read(path).array)
    if len(array) != 1:
        what = f"it has {plural(len(array), 'channel')}"
        raise ContextsegError(path, what, "give a scan of one channel")
    return array[0]


def _label(path: Path, shape: tuple[int, ...] = ()) -> tuple[np.ndarray, tuple[float, ...]]:
    """A label map (D, H, W) uint8, on a scan's grid if its shape is given, and its spacing."""
    label = read_labels(path)
    array = np.asarray(label.array)
    if not 0 <= array.min() <= array.max() <= 255:
        what = f"its values are {array.min()} to {array.max()}"
        raise ContextsegError(path, what, "give a label map of values from 0 to 255")
    if shape and array.shape != shape:
        what = f"its shape is {array.shape}, that of its scan {shape}"
        raise ContextsegError(path, what, "give the label map of this scan")
    return array.astype(np.uint8), label.spacing_mm


def _box(mask: np.ndarray, path: Path) -> tuple[slice, ...]:
    if not mask.any():
        raise ContextsegError(path, "nothing is labelled in it", "leave this case out")
    found = np.argwhere(mask)
    low, high = found.min(0) - MARGIN, found.max(0) + MARGIN + 1
    return tuple(slice(max(0, int(a)), int(b)) for a, b in zip(low, high))


def _ct(hu: np.ndarray) -> np.ndarray:
    scaled = np.clip((hu.astype(np.float32) + 300) / 800, 0, 1) * (GREYS - 1)
    return np.round(scaled).astype(np.uint8)


def _mr(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0.5, 99.5])
    scaled = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * (GREYS - 1)
    return np.round(scaled).astype(np.uint8)


def _headneck(folder: Path) -> Iterator[Example]:
    table: HeadNeckTable = read_json(folder / "cases.json", HeadNeckTable)
    values = {
        k: v for k, v in table["labels"].items() if k not in (*LEFT_OUT, *MARGINS, "background")
    }
    names = sorted(name for name, case in table["cases"].items() if case["split"] == "train")
    for place, name in enumerate(names):
        hu = _scan(folder / "images" / f"{name}.nii.gz")
        path = folder / "labels" / f"{name}.nii.gz"
        label, spacing = _label(path, hu.shape)
        box = _box(label > 0, path)
        annotated = table["cases"][name]["annotated"]
        yield Example(
            name,
            "headneck",
            _ct(hu[box]),
            label[box],
            [values[k] for k in annotated if k in values],
            spacing,
            place >= len(names) - VALIDATION_HEADNECK,
        )


def _sarcoma(folder: Path) -> Iterator[Example]:
    names = read_json(folder / "split.json", SarcomaSplit)["train"]
    for place, name in enumerate(names):
        image = _scan(folder / "imagesTr" / f"{name}_0000.nii.gz")
        label, spacing = _label(folder / "labelsTr" / f"{name}.nii.gz", image.shape)
        validation = place >= len(names) - VALIDATION_SARCOMA
        yield Example(name, "sarcoma", _mr(image), label, [1], spacing, validation)


def _torso(folder: Path) -> Example:
    hu = _scan(folder / "torso_ct.nii.gz")
    label, spacing = _label(folder / "torso_seg_v2fast_117classes.nii.gz", hu.shape)
    path = folder / "labels_v2.json"
    table: dict[str, TorsoClass] = read_json(path, dict[str, TorsoClass])
    objects = [
        value
        for value, row in zip(_values(path, table), table.values())
        if value and row["voxels"] >= 150 and row["name"] not in LEFT_OUT
    ]
    # what no class names, by its HU, so that a drawn image has tissues everywhere
    rest = np.digitize(ndimage.gaussian_filter(hu.astype(np.float32), 0.6), [-500, -120, -20, 90])
    label = np.where(label == 0, 200 + rest, label).astype(np.uint8)
    return Example("torso", "torso", _ct(hu), label, objects, spacing)


def _headmaps(folder: Path) -> Iterator[Example]:
    table_path = folder / "labels.json"
    table: dict[str, dict[str, int]] = read_json(table_path, dict[str, dict[str, int]])
    source_values = next(iter(table.values()), {})
    barred = (*HIPPOCAMPUS, *BONE)
    numbered = zip(_values(table_path, source_values), source_values.values())
    objects = [value for value, source in numbered if value and source not in barred]
    for path in sorted(folder.glob("head_*.nii.gz")):
        label, spacing = _label(path)
        present = np.bincount(label.ravel(), minlength=256)
        yield Example(
            path.name.split(".")[0],
            "headmaps",
            None,
            label,
            [k for k in objects if k < len(present) and present[k] >= 100],
            spacing,
        )


def pack(volumes: Iterator[Example], path: Path) -> None:
    """Write the volumes as one file.

    Args:
        volumes: From `examples`.
        path: The file, ending in ".npz".

    Raises:
        ContextsegError: A volume cannot be read, or the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    rows = []
    for n, one in enumerate(volumes):
        arrays[f"label_{n}"] = one.label
        if one.image is not None:
            arrays[f"image_{n}"] = one.image
            arrays[f"supervoxels_{n}"] = supervoxels(one.image)
        rows.append(
            {
                "name": one.name,
                "source": one.source,
                "objects": one.objects,
                "spacing_mm": one.spacing_mm,
                "validation": one.validation,
            }
        )
        print(one.name, one.label.shape, flush=True)
    arrays["table"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array))


def prepare_by_arguments() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the four data sets")
    parser.add_argument("output", type=Path, help="file to write, ending in .npz")
    options = parser.parse_args()
    pack(examples(options.data), options.output)


if __name__ == "__main__":
    prepare_by_arguments()
