"""Which slices of a label map somebody has labelled, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem
from contextseg.volume import Volume

AXES = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}
"""The plane of the slices -> the letters of the axis that they follow one another along."""


@dataclass(frozen=True)
class Partial:
    """Labelled slices of a scan.

    axis    0, 1 or 2 of (D, H, W): what the slices are across.
    slices  slice number -> (H, W) int16: values of the label map, `IGNORE` where nobody has said.
    """

    axis: int
    slices: dict[int, np.ndarray]


def ranges(partial: Partial) -> dict[int, tuple[int, int]]:
    """Each class to the first and the last labelled slice that holds it; none where nothing is labelled.

    >>> ranges(Partial(0, {2: np.array([[0, 1]]), 5: np.array([[1, 3]]), 9: np.array([[0, 0]])}))
    {1: (2, 5), 3: (5, 5)}
    """
    found: dict[int, tuple[int, int]] = {}
    for i, label in sorted(partial.slices.items()):
        for value in np.unique(label[label > 0]).tolist():
            found[value] = found.get(value, (i, i))[0], i
    return dict(sorted(found.items()))


def cut(labels: np.ndarray, ranges: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """Slices (n, H, W) without what lies of a class outside its first and last slice; changed in place.

    >>> cut(np.array([[[1, 2]], [[1, 2]], [[1, 0]]]), {1: (1, 1)})[:, 0].tolist()
    [[0, 2], [1, 2], [0, 0]]
    """
    for value, (first, last) in ranges.items():
        for beyond in (labels[: max(0, first)], labels[last + 1 :]):
            beyond[beyond == value] = 0
    return labels


def labelled_slices(label: Volume, unlabelled: int | None = None, plane: str = "auto") -> Partial:
    """The labelled slices of a label map (D, H, W) whose other slices are not labelled yet.

    unlabelled  the value of voxels that nobody has labelled. None: a slice without any label is unlabelled, and 0 in
                one with labels is background, as drawing programs leave it.
    plane       "axial", "coronal" or "sagittal"; "auto" is the plane with the fewest labelled slices, since a structure
                drawn on some axial slices crosses many coronal ones. Equal ones: axial.

    Raises `Problem` for another plane, for a map without a label, and, with "auto", for one that is labelled in every
    slice whichever way one looks.
    """
    array = np.asarray(label.array)
    known = array != (0 if unlabelled is None else unlabelled)
    if plane != "auto" and plane not in AXES:
        raise Problem(f"--plane {plane}", "there is no such plane", f"choose auto, {', '.join(AXES)}")
    if not (known & (array > 0)).any():
        raise Problem("labels", "no slice is labelled", "label a structure in one slice or more")
    places = {name: _axis(label, letters) for name, letters in AXES.items()}
    found = {name: np.flatnonzero(known.any(tuple({0, 1, 2} - {axis}))) for name, axis in places.items()}
    if plane == "auto":
        plane = min(found, key=lambda name: len(found[name]))
        if len(found[plane]) == array.shape[places[plane]]:
            remedy = "give --unlabelled, the value of the voxels that nobody has labelled, or --plane"
            raise Problem("labels", "every slice has labels, in each plane", remedy)
    axis = places[plane]
    slices = {}
    for i in found[plane].tolist():
        drawn = array.take(i, axis).astype(np.int16)
        slices[i] = drawn if unlabelled is None else np.where(known.take(i, axis), drawn, IGNORE).astype(np.int16)
    return Partial(axis, slices)


def _axis(volume: Volume, letters: str) -> int:
    return next(i for i, letter in enumerate(volume.orientation) if letter in letters)
