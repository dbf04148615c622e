"""Labelled slices: which slices of a label map somebody has labelled, and along which axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.grids import label_type
from contextseg.propagation.shapes import classes_of
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
        silent: Slice number to the classes of which the slice says nothing, neither that they are
            there nor that they are not. Slices that are left out are complete.
        crossing: Plane to numbers of the slices that were labelled in another orientation. In
            `slices` they are lines, in slices that are labelled in part.
    """

    axis: int
    slices: dict[int, np.ndarray]
    silent: dict[int, frozenset[int]] = field(default_factory=dict)
    crossing: dict[str, list[int]] = field(default_factory=dict)

    @property
    def classes(self) -> list[int]:
        """The classes that the slices hold, sorted."""
        return classes_of(self.slices)

    def complete(self, i: int) -> bool:
        """Whether slice `i` is labelled, everywhere and for every class."""
        label = self.slices.get(i)
        return label is not None and not self.silent.get(i) and not bool((label == IGNORE).any())

    def known_for(self, value: int) -> list[int]:
        """The slices that say something of a class, sorted.

        Args:
            value: The class.

        Returns:
            Slice numbers.

        Example:
            >>> slices = {2: np.array([[1]]), 5: np.array([[2]])}
            >>> LabelledSlices(0, slices, {5: frozenset({1})}).known_for(1)
            [2]
        """
        return [i for i in sorted(self.slices) if value not in self.silent.get(i, ())]


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
        for value in classes_of({i: label}):
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
    label: Volume,
    unlabelled: int | None = None,
    plane: str = "auto",
    complete: bool = False,
) -> LabelledSlices:
    """Find the labelled slices of a label map whose other slices are not labelled yet.

    Each class is labelled where it is labelled: a slice that holds only class 2 says nothing about
    class 1.

    Args:
        label: Label map (D, H, W).
        unlabelled: Value of voxels that nobody has labelled. None: a slice without any label is
            unlabelled, and 0 in a slice with labels is background for the classes that the slice
            holds, as drawing programs leave it. With a value, 0 is background for all classes.
        plane: "axial", "coronal" or "sagittal". "auto" is the plane with the fewest labelled
            slices, since a structure drawn on some axial slices crosses many coronal ones; of equal
            ones axial. Where slices are labelled in several planes, it is the one with the most of
            them, and the others are labels of a part of its slices.
        complete: Whether 0 in a slice with labels is background for all classes.

    Returns:
        The labelled slices.

    Raises:
        ContextsegError: For another plane, for a map without a label, and, with "auto", for a map
            that is labelled in every slice of every plane.
    """
    array = np.asarray(label.array)
    known = array != (0 if unlabelled is None else unlabelled)
    _check(array, known, plane)
    axes = {name: axis_of(label, name) for name in AXES}
    numbers = {
        name: np.flatnonzero(known.any(tuple({0, 1, 2} - {axis}))).tolist()
        for name, axis in axes.items()
    }
    crossing: dict[str, list[int]] = {}
    if plane == "auto":
        plane = min(numbers, key=lambda name: len(numbers[name]))
        crossing = _several_planes(known, axes, len(numbers[plane]))
        if crossing:
            plane = max(crossing, key=lambda name: len(crossing[name]))
            numbers[plane] = crossing.pop(plane)
        elif len(numbers[plane]) == array.shape[axes[plane]]:
            remedy = (
                "give --unlabelled, the value of the voxels that nobody has labelled, or --plane; "
                "of a filled map that you have corrected, give --previous"
            )
            raise ContextsegError("labels", "every slice has labels, in each plane", remedy)
    axis = axes[plane]
    kind = label_type(int(array.max()), signed=True)
    slices: dict[int, np.ndarray] = {}
    for i in numbers[plane]:
        drawn = array.take(i, axis).astype(kind)
        if unlabelled is not None:
            drawn = np.where(known.take(i, axis), drawn, IGNORE).astype(kind)
        slices[i] = drawn
    slices |= _lines(array, known, axis, {axes[name]: at for name, at in crossing.items()}, slices)
    labelled = LabelledSlices(axis, dict(sorted(slices.items())), {}, crossing)
    return labelled if complete or unlabelled is not None else _each_where_it_is(labelled)


def axis_of(volume: Volume, plane: str) -> int:
    """The axis that the slices of a plane follow one another along.

    Args:
        volume: The scan.
        plane: Of `AXES`.

    Returns:
        0, 1 or 2 of (D, H, W).

    Example:
        >>> axis_of(Volume(np.zeros((4, 5, 6)), np.eye(4)), "sagittal")
        0
    """
    return next(i for i, letter in enumerate(volume.orientation) if letter in AXES[plane])


def plane_of(volume: Volume, axis: int) -> str:
    """The plane of the slices along an axis, the opposite of `axis_of`.

    Args:
        volume: The scan.
        axis: 0, 1 or 2 of (D, H, W).

    Returns:
        A name in `AXES`.
    """
    return next(name for name, letters in AXES.items() if volume.orientation[axis] in letters)


def _check(array: np.ndarray, known: np.ndarray, plane: str) -> None:
    if plane != "auto" and plane not in AXES:
        raise ContextsegError(
            f"--plane {plane}", "there is no such plane", f"choose auto, {', '.join(AXES)}"
        )
    if array.size == 0 or array.max() <= 0 or not (known & (array > 0)).any():
        raise ContextsegError(
            "labels", "no slice is labelled", "label a structure in one slice or more"
        )
    if array.min() < 0 and (known & (array < 0)).any():
        value = int(array[known & (array < 0)].min())
        remedy = f"write 0 for background, or give --unlabelled {value} if nobody labelled it"
        raise ContextsegError("labels", f"a value below 0, {value}, which no class has", remedy)


def _each_where_it_is(labelled: LabelledSlices) -> LabelledSlices:
    """The same slices, each silent of the classes that it does not hold."""
    every = frozenset(labelled.classes)
    silent = {i: every - set(classes_of({i: label})) for i, label in labelled.slices.items()}
    return LabelledSlices(
        labelled.axis,
        labelled.slices,
        {i: classes for i, classes in silent.items() if classes},
        labelled.crossing,
    )


# --- several planes -------------------------------------------------------------------------------

_SEVERAL = 6
"""Slices in the best plane, from which on labels in several planes are looked for."""


def _several_planes(
    known: np.ndarray, axes: Mapping[str, int], fewest: int
) -> dict[str, list[int]]:
    """Plane -> slices, if few slices of several planes hold all labels; else {}.

    The slice, of any plane, that holds most of the labels not yet accounted for is taken, again and
    again. This counts if it takes two thirds of the slices of the best single plane, at most, and
    no two of one plane are neighbours, as they are in a map that is filled.
    """
    if fewest < _SEVERAL:
        return {}
    voxels = np.stack(np.nonzero(known))
    chosen: dict[str, list[int]] = {}
    for _ in range(2 * fewest // 3):
        counts = {name: np.bincount(voxels[axis]) for name, axis in axes.items()}
        name = max(counts, key=lambda name: int(counts[name].max()))
        at = int(counts[name].argmax())
        chosen.setdefault(name, []).append(at)
        voxels = voxels[:, voxels[axes[name]] != at]
        if not voxels.size:
            apart = all(min(np.diff(sorted(at)), default=2) > 1 for at in chosen.values())
            several = apart and len(chosen) > 1
            return {n: sorted(at) for n, at in chosen.items()} if several else {}
    return {}


def _lines(
    array: np.ndarray,
    known: np.ndarray,
    axis: int,
    crossing: Mapping[int, list[int]],
    slices: Mapping[int, np.ndarray],
) -> dict[int, np.ndarray]:
    """What slices of other planes say, as slices along `axis` that are labelled in part."""
    if not crossing:
        return {}
    lines = np.zeros(array.shape, bool)
    for other, numbers in crossing.items():
        index = tuple(numbers if a == other else slice(None) for a in range(3))
        lines[index] = True
    kind = next(iter(slices.values())).dtype
    partly = {}
    for i in range(array.shape[axis]):
        if i not in slices and known.take(i, axis).any():
            line = lines.take(i, axis)
            partly[i] = np.where(line, array.take(i, axis).astype(kind), IGNORE).astype(kind)
    return partly
