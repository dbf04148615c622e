"""What needs no network: slices filled from the labelled ones by their shape alone. Propagation has to beat these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

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
        one, other = _signed_distance(first == k, spacing), _signed_distance(last == k, spacing)
        if one is None and other is None:
            continue
        one = np.full(first.shape, -other.max(), np.float32) if one is None else one  # type: ignore[union-attr]
        other = np.full(first.shape, -one.max(), np.float32) if other is None else other
        distance = (1 - share) * one + share * other
        inside = distance > best
        best[inside], out[inside] = distance[inside], k
    return out


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
