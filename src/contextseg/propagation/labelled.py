"""Labelled slices: which slices of a label map somebody has labelled, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.grids import label_type
from contextseg.volume import Volume

AXES = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}
"""The plane of the slices -> the letters of the axis that they follow one another along."""


@dataclass(frozen=True)
class LabelledSlices:
    """Labelled slices of a scan.

    Attributes:
        axis: 0, 1 or 2 of (D, H, W): what the slices are across.
        slices: Slice number to label (H, W), int16 or int32, in the values of the label map;
            `IGNORE` where nobody has annotated.
    """

    axis: int
    slices: dict[int, np.ndarray]


def ranges(labelled: LabelledSlices) -> dict[int, tuple[int, int]]:
    """The first and the last labelled slice that holds each class.

    Args:
        labelled: The labelled slices. None at all give no ranges.

    Returns:
        Class to (first, last), sorted by class.

    Example:
        >>> slices = {2: np.array([[0, 1]]), 5: np.array([[1, 3]]), 9: np.array([[0, 0]])}
        >>> ranges(LabelledSlices(0, slices))
        {1: (2, 5), 3: (5, 5)}
    """
    ends: dict[int, tuple[int, int]] = {}
    for i, label in sorted(labelled.slices.items()):
        for value in np.unique(label[label > 0]).tolist():
            first, _ = ends.get(value, (i, i))
            ends[value] = first, i
    return dict(sorted(ends.items()))


def cut_to_ranges(labels: np.ndarray, ranges: Mapping[int, tuple[int, int]]) -> np.ndarray:
    """Remove each class outside its first and last slice.

    Args:
        labels: (n, H, W), changed in place.
        ranges: Class to (first, last) slice. A class without a range is left as it is.

    Returns:
        `labels`.

    Example:
        >>> labels = np.array([[[1, 2]], [[1, 2]], [[1, 0]]])
        >>> cut_to_ranges(labels, {1: (1, 1)})[:, 0].tolist()
        [[0, 2], [1, 2], [0, 0]]
    """
    for value, (first, last) in ranges.items():
        for beyond in (labels[: max(0, first)], labels[last + 1 :]):
            beyond[beyond == value] = 0
    return labels


def labelled_slices(
    label: Volume, unlabelled: int | None = None, plane: str = "auto"
) -> LabelledSlices:
    """Find the labelled slices of a label map whose other slices are not labelled yet.

    Args:
        label: Label map (D, H, W).
        unlabelled: Value of voxels that nobody has labelled. None: a slice without any label is
            unlabelled, and 0 in a slice with labels is background, as drawing programs leave it.
        plane: "axial", "coronal" or "sagittal". "auto" is the plane with the fewest labelled
            slices, since a structure drawn on some axial slices crosses many coronal ones; of equal
            ones axial.

    Returns:
        The labelled slices.

    Raises:
        ContextsegError: For another plane, for a map without a label, and, with "auto", for a map
            that is labelled in every slice of every plane.
    """
    array = np.asarray(label.array)
    known = array != (0 if unlabelled is None else unlabelled)
    if plane != "auto" and plane not in AXES:
        raise ContextsegError(
            f"--plane {plane}", "there is no such plane", f"choose auto, {', '.join(AXES)}"
        )
    if not (known & (array > 0)).any():
        raise ContextsegError(
            "labels", "no slice is labelled", "label a structure in one slice or more"
        )
    negative = known & (array < 0)
    if negative.any():
        value = int(array[negative].min())
        remedy = f"write 0 for background, or give --unlabelled {value} if nobody labelled it"
        raise ContextsegError("labels", f"a value below 0, {value}, which no class has", remedy)
    axes = {name: _axis(label, letters) for name, letters in AXES.items()}
    numbers = {
        name: np.flatnonzero(known.any(tuple({0, 1, 2} - {axis}))) for name, axis in axes.items()
    }
    if plane == "auto":
        plane = min(numbers, key=lambda name: len(numbers[name]))
        if len(numbers[plane]) == array.shape[axes[plane]]:
            remedy = (
                "give --unlabelled, the value of the voxels that nobody has labelled, or --plane"
            )
            raise ContextsegError("labels", "every slice has labels, in each plane", remedy)
    axis = axes[plane]
    kind = label_type(int(array.max()), signed=True)
    slices = {}
    for i in numbers[plane].tolist():
        drawn = array.take(i, axis).astype(kind)
        if unlabelled is not None:
            drawn = np.where(known.take(i, axis), drawn, IGNORE).astype(kind)
        slices[i] = drawn
    return LabelledSlices(axis, slices)


def _axis(volume: Volume, letters: str) -> int:
    return next(i for i, letter in enumerate(volume.orientation) if letter in letters)
