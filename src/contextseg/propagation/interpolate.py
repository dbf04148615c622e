"""What needs no network: slices filled from the labelled ones by their shape alone. Propagation has to beat these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem


def between(
    references: Mapping[int, Any], slices: int, spacing: Sequence[float] = (1.0, 1.0), ends: bool = False
) -> np.ndarray:
    """Shape-based interpolation: labels (slices, H, W) int16 from labelled ones (H, W), by signed distances.

    Between two references each class's signed distance to its outline (in units of `spacing`, positive inside) is
    interpolated linearly; the class whose distance is largest stands where it is positive (Raya and Udupa, IEEE TMI
    1990; Herman et al., 1992; for several classes ours). A class that only one of the two holds shrinks to nothing half
    way. Outside the first and the last reference is background, or with `ends` the nearest reference. References come
    back as they are; `IGNORE` in them is background for their neighbours.

    Raises `Problem` for no reference, one out of range, or two shapes.

    >>> first, last = np.array([[1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 0, 0, 0, 0]])
    >>> between({0: first, 2: last}, 3)[1].tolist()
    [[1, 1, 1, 0, 0, 0]]
    """
    labels = checked(references, slices)
    out = nearest(references, slices) if ends else np.zeros((slices, *next(iter(labels.values())).shape), np.int16)
    classes = sorted({int(k) for label in labels.values() for k in np.unique(label) if k > 0})
    known = sorted(labels)
    for a, b in pairwise(known):
        if b - a > 1:
            share = (np.arange(1, b - a) / (b - a)).astype(np.float32)[:, None, None]
            out[a + 1 : b] = _blend(labels[a], labels[b], share, classes, spacing)
    for i, label in labels.items():
        out[i] = label
    return out


class Shapes:
    """What the shapes of labelled slices say of the slices between, as log-odds to add to those of a network [ours].

    references  slice number -> label (H, W), as `between`'s. classes: O of their values.
    spacing     of a slice's pixels, and `apart` from one slice to the next, in one unit.
    """

    def __init__(
        self, references: Mapping[int, Any], classes: Sequence[int], spacing: Sequence[float], apart: float
    ) -> None:
        self.labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
        self.classes, self.spacing, self.apart = tuple(classes), tuple(spacing), apart
        self._stretch: tuple[int, int] | None = None

    def log_odds(self, i: int) -> np.ndarray | None:
        """(O, H, W) float32 for slice `i`; None where it does not lie between two labelled slices.

        The signed distance that `between` interpolates, in units of how far it may be wrong: s d / 2r, with s the
        distance to the nearest labelled slice, d from one labelled slice to the other and r the radius of a disc as
        large as the larger of the class's two outlines. So a shape is sure beside a labelled slice, and where labelled
        slices lie close for its size. 0 where nobody has said, and for a class in neither of the two.

        >>> shapes = Shapes({0: np.array([[1, 1, 0, 0]]), 2: np.array([[1, 1, 0, 0]])}, [1], (1.0, 1.0), 1.0)
        >>> shapes.log_odds(1).astype(float).round(1).tolist(), shapes.log_odds(3)
        ([[[1.2, 0.4, -0.4, -1.2]]], None)
        """
        above = min((k for k in self.labels if k > i), default=-1)
        below = max((k for k in self.labels if k < i), default=-1)
        if above < 0 or below < 0:
            return None
        if self._stretch != (below, above):
            self._known, self._stretch = self._measured(below, above), (below, above)
        share = np.float32((i - below) / (above - below))
        loose = self.apart * min(i - below, above - i) * self.apart * (above - below) / 2
        out = np.zeros((len(self.classes), *self.labels[below].shape), np.float32)
        for k, (one, other, radius) in self._known.items():
            out[k] = ((1 - share) * one + share * other) * np.float32(radius / loose)
        return out

    def _measured(self, below: int, above: int) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
        """Place of a class -> its signed distances in both slices, and its radius."""
        first, last = self.labels[below], self.labels[above]
        said = (first != IGNORE) & (last != IGNORE)
        known: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
        for k, value in enumerate(self.classes):
            ends = _ends(first == value, last == value, self.spacing)
            if ends is not None:
                pixels = max(np.count_nonzero(first == value), np.count_nonzero(last == value))
                radius = (pixels * self.spacing[0] * self.spacing[1] / np.pi) ** 0.5
                known[k] = (ends[0] * said, ends[1] * said, float(radius))
        return known


def nearest(references: Mapping[int, Any], slices: int) -> np.ndarray:
    """Each slice's label is that of the nearest reference, half way the lower one; (slices, H, W) int16.

    Raises `Problem` as `between`.

    >>> nearest({1: np.array([[5]]), 3: np.array([[7]])}, 5).ravel().tolist()
    [5, 5, 5, 7, 7]
    """
    labels = checked(references, slices)
    known = sorted(labels)
    return np.stack([labels[min(known, key=lambda k: abs(k - i))] for i in range(slices)])


def checked(references: Mapping[int, Any], slices: int, shape: tuple[int, ...] | None = None) -> dict[int, np.ndarray]:
    """The reference labels as int16 arrays (H, W), sorted by slice.

    Raises `Problem` where there is none, one lies outside the volume, or its shape is not `shape` (by default the
    first one's).
    """
    labels = {int(i): np.asarray(label).astype(np.int16) for i, label in sorted(references.items())}
    if not labels:
        raise Problem("reference slices", "there is none", "label at least one slice")
    shape = next(iter(labels.values())).shape if shape is None else shape
    for i, label in labels.items():
        if not 0 <= i < slices:
            raise Problem(f"reference slice {i}", f"the volume has {slices} slices", f"choose 0 to {slices - 1}")
        if label.shape != tuple(shape) or label.ndim != 2:
            remedy = "give a label for each pixel of the slice"
            raise Problem(f"reference slice {i}", f"a label of {label.shape} pixels, not {tuple(shape)}", remedy)
    return labels


def _blend(
    first: np.ndarray, last: np.ndarray, share: np.ndarray, classes: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """(n, H, W): the labels at `share` (n, 1, 1) of the way. One class in memory at a time."""
    best = np.zeros((len(share), *first.shape), np.float32)
    out = np.zeros(best.shape, np.int16)
    for k in classes:
        ends = _ends(first == k, last == k, spacing)
        if ends is None:
            continue
        distance = (1 - share) * ends[0] + share * ends[1]
        inside = distance > best
        best[inside], out[inside] = distance[inside], k
    return out


def _ends(first: np.ndarray, last: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray] | None:
    """The signed distances of two masks (H, W); of an empty one so that the other shrinks to nothing half way."""
    one, other = _signed_distance(first, spacing), _signed_distance(last, spacing)
    if one is None and other is None:
        return None
    one = np.full(first.shape, -other.max(), np.float32) if one is None else one  # type: ignore[union-attr]
    return one, np.full(first.shape, -one.max(), np.float32) if other is None else other


def _signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray | None:
    """To the border between pixels inside and outside, positive inside; None of an empty mask."""
    import edt

    if not mask.any():
        return None
    if mask.all():
        return np.full(mask.shape, float(np.hypot(*(n * s for n, s in zip(mask.shape, spacing)))), np.float32)
    half, mask = min(spacing) / 2, np.ascontiguousarray(mask)
    inside, outside = edt.edt(mask, anisotropy=tuple(spacing)), edt.edt(~mask, anisotropy=tuple(spacing))
    return np.where(mask, inside - half, half - outside)
