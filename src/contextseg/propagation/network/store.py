"""The volumes of a training file, where the network is, and the structures in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from scipy import ndimage

from contextseg.errors import ContextsegError
from contextseg.inputs import damage_named, parsed_json

_REMEDY = "make it again with contextseg.propagation.network.prepare"


class VolumeRow(TypedDict):
    """What the table of a training file says of a volume."""

    name: str
    source: str
    objects: list[int]
    spacing_mm: tuple[float, float, float]
    validation: bool


@dataclass(frozen=True)
class Structure:
    """Something that can be completed: values of a volume's label map, and its box in voxels."""

    value: int
    low: np.ndarray
    high: np.ndarray
    points: np.ndarray


class Pool:
    """The structures of one volume, with their boxes as arrays.

    Args:
        members: The structures.
        greys: Mean grey value of each.
    """

    def __init__(self, members: list[Structure], greys: np.ndarray | None = None) -> None:
        self.members = members
        self.values = np.array([one.value for one in members], np.int64)
        self.low = np.array([one.low for one in members]).reshape(-1, 3)
        self.high = np.array([one.high for one in members]).reshape(-1, 3)
        self.centre = (self.low + self.high) / 2
        self.greys = np.zeros(len(members)) if greys is None else greys

    def __len__(self) -> int:
        """How many."""
        return len(self.members)


class Store:
    """All volumes of a training file, in one flat array each for images, labels, supervoxels.

    Args:
        path: File of `prepare`.
        device: Where the arrays are.
        validation: Whether to hold the volumes that are never trained on instead of the others.

    Raises:
        ContextsegError: The file is missing, damaged, or holds no such volume.
    """

    def __init__(self, path: Path, device: torch.device, validation: bool = False) -> None:
        self.rows: list[dict[str, Any]] = []
        images, labels, regions = [], [], []
        offset = 0
        random = np.random.default_rng(0)
        self.structures: list[Pool] = []
        self.regions: list[Pool] = []
        for volume_row, label, found in _volumes(path, validation):
            drawn = not found
            image, region = found or (np.zeros_like(label), np.zeros(label.shape, np.uint16))
            row: dict[str, Any] = dict(volume_row)
            row.update(offset=offset, shape=label.shape, drawn=drawn)
            self.rows.append(row)
            self.structures.append(Pool(structures_in(label, row["objects"], random)))
            members = [] if drawn else structures_in(region, None, random)
            greys = ndimage.mean(image, region, [one.value for one in members])
            self.regions.append(Pool(members, np.asarray(greys)))
            images.append(image.ravel())
            labels.append(label.ravel())
            regions.append(region.astype(np.int16).ravel())
            offset += label.size
        if not images:
            kept = "that are kept for validation" if validation else "to train on"
            raise ContextsegError(path, f"it holds no volumes {kept}", _REMEDY)
        self.image = torch.from_numpy(np.concatenate(images)).to(device)
        self.label = torch.from_numpy(np.concatenate(labels)).to(device)
        self.region = torch.from_numpy(np.concatenate(regions)).to(device)
        self.device = device
        self.by_source: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            if len(self.structures[place]):
                self.by_source.setdefault(row["source"], []).append(place)


def _volumes(
    path: Path, validation: bool
) -> Iterator[tuple[VolumeRow, np.ndarray, tuple[np.ndarray, np.ndarray] | None]]:
    """The volumes of one kind: the row, the label map, and image and supervoxels if it has any."""
    with damage_named(path, _REMEDY, "no training file that can be read"):
        archive = np.load(path)
        rows: list[VolumeRow] = parsed_json(bytes(archive["table"]), path, list[VolumeRow], _REMEDY)
    for n, row in enumerate(rows):
        if row["validation"] != validation:
            continue
        with damage_named(path, _REMEDY, "no training file that can be read"):
            names = ["label", "image", "supervoxels"] if f"image_{n}" in archive else ["label"]
            arrays = [np.asarray(archive[f"{name}_{n}"]) for name in names]
            for name, array in zip(names, arrays):
                kind = np.uint16 if name == "supervoxels" else np.uint8
                if array.dtype != kind or array.ndim != 3 or array.shape != arrays[0].shape:
                    found = f"{array.dtype} of shape {array.shape}"
                    raise ContextsegError(path, f"its {name}_{n} is {found}", _REMEDY)
        yield row, arrays[0], (arrays[1], arrays[2]) if len(arrays) == 3 else None


def structures_in(
    label: np.ndarray, values: list[int] | None, random: np.random.Generator
) -> list[Structure]:
    """The structures of a label map that are there, with some of their voxels.

    Args:
        label: (D, H, W) integers.
        values: Which values. None: all.
        random: Draws the voxels.

    Returns:
        One for each value that some voxel has.
    """
    boxes = ndimage.find_objects(label.astype(np.int32) + 1)
    out = []
    for value in range(len(boxes)) if values is None else values:
        box = boxes[value] if value < len(boxes) else None
        if box is None:
            continue
        low = np.array([s.start for s in box], float)
        high = np.array([s.stop for s in box], float)
        inside = np.flatnonzero(label[box] == value)
        picked = inside[random.integers(0, len(inside), 24)]
        points = np.stack(np.unravel_index(picked, label[box].shape), 1) + low
        out.append(Structure(value, low, high, points))
    return out
