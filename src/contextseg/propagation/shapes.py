"""Slices filled from the labelled ones by their shape alone, without a network.

`interpolate_shapes` and `copy_nearest` are the baselines that propagation has to beat. `ShapePrior`
says the same as log-odds, to be added to those of a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.grids import label_type


def interpolate_shapes(
    references: Mapping[int, Any],
    slices: int,
    spacing: Sequence[float] = (1.0, 1.0),
    ends: bool = False,
) -> np.ndarray:
    """Shape-based interpolation between labelled slices, by signed distances.

    Between two references each class's signed distance to its outline, positive inside, is
    interpolated linearly, and the class with the largest distance stands where that is positive
    (Raya and Udupa, IEEE TMI 1990; Herman et al., 1992; for several classes ours). A class that
    only one of the two holds shrinks to nothing half way.

    Args:
        references: Slice number to label (H, W), integers. `IGNORE` counts as background for the
            slices between.
        slices: Number of slices of the volume.
        spacing: Size of a pixel along H and W, in any unit.
        ends: Whether slices outside the first and the last reference copy the nearest one. By
            default they are background.

    Returns:
        Labels (slices, H, W), int16 or, for larger values, int32. References come back as they are.

    Raises:
        ContextsegError: If there is no reference, if one lies outside the volume, and if two have
            different shapes.

    Example:
        >>> first, last = np.array([[1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 0, 0, 0, 0]])
        >>> interpolate_shapes({0: first, 2: last}, 3)[1].tolist()
        [[1, 1, 1, 0, 0, 0]]
    """
    labels = check_references(references, slices)
    if ends:
        out = copy_nearest(references, slices)
    else:
        first = next(iter(labels.values()))
        out = np.zeros((slices, *first.shape), first.dtype)
    classes = sorted({int(k) for label in labels.values() for k in np.unique(label) if k > 0})
    for a, b in pairwise(sorted(labels)):
        if b - a > 1:
            share = (np.arange(1, b - a) / (b - a)).astype(np.float32)[:, None, None]
            out[a + 1 : b] = _blend(labels[a], labels[b], share, classes, spacing)
    for i, label in labels.items():
        out[i] = label
    return out


def copy_nearest(references: Mapping[int, Any], slices: int) -> np.ndarray:
    """The label of the nearest reference for every slice; half way, that of the lower one.

    Args:
        references: Slice number to label (H, W), integers.
        slices: Number of slices of the volume.

    Returns:
        Labels (slices, H, W), int16 or, for larger values, int32.

    Raises:
        ContextsegError: As `interpolate_shapes`.

    Example:
        >>> copy_nearest({1: np.array([[5]]), 3: np.array([[7]])}, 5).ravel().tolist()
        [5, 5, 5, 7, 7]
    """
    labels = check_references(references, slices)
    known = sorted(labels)
    return np.stack([labels[min(known, key=lambda k: abs(k - i))] for i in range(slices)])


class ShapePrior:
    """The shapes of labelled slices as log-odds for the slices between, to add to a network's.

    [Ours.]

    Args:
        references: Slice number to label (H, W), integers; `IGNORE` where nobody has annotated.
        classes: The O label values.
        spacing: Size of a pixel along H and W, in any unit.
        slice_spacing: Distance from one slice to the next, in the same unit.
    """

    def __init__(
        self,
        references: Mapping[int, Any],
        classes: Sequence[int],
        spacing: Sequence[float],
        slice_spacing: float,
    ) -> None:
        self.labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
        self.classes = tuple(classes)
        self.spacing = tuple(spacing)
        self.slice_spacing = slice_spacing
        self._stretch: tuple[int, int] | None = None

    def log_odds(self, i: int) -> np.ndarray | None:
        """Log-odds of each class in one slice, by the shapes of the labelled slices beside it.

        They are the signed distance of `interpolate_shapes` over the distance by which it may be
        wrong: s d / 2r, with s the distance to the nearest labelled slice, d from one labelled
        slice to the other, and r the radius of a disc as large as the larger of the class's two
        outlines. So a shape is certain beside a labelled slice, and where labelled slices lie close
        together for its size.

        Args:
            i: Slice number.

        Returns:
            (O, H, W) float32: 0 where nobody has annotated, and for a class in neither of the two
            labelled slices. None where the slice does not lie between two labelled ones.

        Example:
            >>> label = np.array([[1, 1, 0, 0]])
            >>> shapes = ShapePrior({0: label, 2: label}, [1], (1.0, 1.0), 1.0)
            >>> shapes.log_odds(1).astype(float).round(1).tolist(), shapes.log_odds(3)
            ([[[1.2, 0.4, -0.4, -1.2]]], None)
        """
        above = min((k for k in self.labels if k > i), default=-1)
        below = max((k for k in self.labels if k < i), default=-1)
        if above < 0 or below < 0:
            return None
        if self._stretch != (below, above):
            self._known = self._distances(below, above)
            self._stretch = below, above
        share = np.float32((i - below) / (above - below))
        nearest = self.slice_spacing * min(i - below, above - i)
        uncertainty = nearest * self.slice_spacing * (above - below) / 2
        out = np.zeros((len(self.classes), *self.labels[below].shape), np.float32)
        for k, (one, other, radius) in self._known.items():
            out[k] = ((1 - share) * one + share * other) * np.float32(radius / uncertainty)
        return out

    def _distances(self, below: int, above: int) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
        """Place of a class -> its signed distances in both slices, and its radius."""
        first, last = self.labels[below], self.labels[above]
        annotated = (first != IGNORE) & (last != IGNORE)
        known: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
        for k, value in enumerate(self.classes):
            ends = _ends(first == value, last == value, self.spacing)
            if ends is not None:
                pixels = max(np.count_nonzero(first == value), np.count_nonzero(last == value))
                radius = (pixels * self.spacing[0] * self.spacing[1] / np.pi) ** 0.5
                known[k] = (ends[0] * annotated, ends[1] * annotated, float(radius))
        return known


def check_references(
    references: Mapping[int, Any], slices: int, shape: tuple[int, ...] | None = None
) -> dict[int, np.ndarray]:
    """The reference labels as arrays of one type, sorted by slice number.

    Args:
        references: Slice number to label (H, W), integers.
        slices: Number of slices of the volume.
        shape: (H, W) of the labels. None is the shape of the first.

    Returns:
        Slice number to label (H, W), int16 or, where one of them has larger values, int32.

    Raises:
        ContextsegError: If there is none, if one lies outside the volume, or has another shape.
    """
    labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
    largest = max((int(label.max()) for label in labels.values() if label.size), default=0)
    labels = {i: label.astype(label_type(largest, signed=True)) for i, label in labels.items()}
    if not labels:
        raise ContextsegError("reference slices", "there is none", "label at least one slice")
    shape = next(iter(labels.values())).shape if shape is None else shape
    for i, label in labels.items():
        if not 0 <= i < slices:
            raise ContextsegError(
                f"reference slice {i}",
                f"the volume has {slices} slices",
                f"choose 0 to {slices - 1}",
            )
        if label.shape != tuple(shape) or label.ndim != 2:
            remedy = "give a label for each pixel of the slice"
            raise ContextsegError(
                f"reference slice {i}",
                f"a label of {label.shape} pixels, not {tuple(shape)}",
                remedy,
            )
    return labels


def _blend(
    first: np.ndarray,
    last: np.ndarray,
    share: np.ndarray,
    classes: Sequence[int],
    spacing: Sequence[float],
) -> np.ndarray:
    """(n, H, W): the labels at `share` (n, 1, 1) of the way. One class in memory at a time."""
    best = np.zeros((len(share), *first.shape), np.float32)
    out = np.zeros(best.shape, first.dtype)
    for k in classes:
        ends = _ends(first == k, last == k, spacing)
        if ends is None:
            continue
        distance = (1 - share) * ends[0] + share * ends[1]
        inside = distance > best
        best[inside] = distance[inside]
        out[inside] = k
    return out


def _ends(
    first: np.ndarray, last: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """The signed distances of two masks (H, W); None where both are empty.

    That of an empty mask is such that the other shrinks to nothing half way.
    """
    one = _signed_distance(first, spacing)
    other = _signed_distance(last, spacing)
    if one is None and other is None:
        return None
    if one is None:
        assert other is not None
        one = np.full(first.shape, -other.max(), np.float32)
    if other is None:
        other = np.full(first.shape, -one.max(), np.float32)
    return one, other


def _signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray | None:
    """To the border between pixels inside and outside, positive inside; None of an empty mask."""
    import edt

    if not mask.any():
        return None
    if mask.all():
        diagonal = float(np.hypot(*(n * s for n, s in zip(mask.shape, spacing))))
        return np.full(mask.shape, diagonal, np.float32)
    half = min(spacing) / 2
    mask = np.ascontiguousarray(mask)
    inside = edt.edt(mask, anisotropy=tuple(spacing))
    outside = edt.edt(~mask, anisotropy=tuple(spacing))
    return np.where(mask, inside - half, half - outside)
