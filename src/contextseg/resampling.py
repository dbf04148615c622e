"""Images and label maps on a finer or coarser grid, over the same extent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from contextseg.slabs import is_one_slab, slabs, value_counts

_NEGLIGIBLE = 1e-9
"""Weights of a spline below this change no float32 number."""


@lru_cache(maxsize=16)
def _interpolation(n: int, new: int, order: int) -> np.ndarray:
    """(new, n): one row of weights for each new sample: scipy's spline of unit impulses."""
    from scipy import ndimage

    if n == new:
        return np.eye(n, dtype=np.float32)
    weights = ndimage.zoom(np.eye(n), (new / n, 1), order=order, mode="nearest", grid_mode=True)
    return weights.astype(np.float32)


def resample(array: np.ndarray, shape: Sequence[int], order: int | Sequence[int] = 3) -> np.ndarray:
    """Resample an array to another grid over the same extent.

    A spline on a regular grid is separable, so this is three matrix products, equal to
    `scipy.ndimage.zoom(mode="nearest", grid_mode=True)` to rounding at a tenth of its time
    (`benchmarks/`). Unlike nnU-Net's, the result is not clipped to the input's range.

    Args:
        array: (..., D, H, W) of any number type.
        shape: The new (D, H, W).
        order: Order of the spline, one number or one for each axis: 0 nearest, 1 linear, 3 cubic.

    Returns:
        (..., *shape) float32.
    """
    orders = [order] * 3 if isinstance(order, int) else list(order)
    out: Any = np.ascontiguousarray(array, dtype=np.float32)
    lead = out.shape[:-3]
    # Axes that shrink come first: less work for the others.
    axes = sorted(range(3), key=lambda i: shape[i] / out.shape[i - 3])
    out = out.reshape(-1, *out.shape[-3:])
    for axis in axes:
        n, new = out.shape[axis + 1], shape[axis]
        if n == new:
            continue
        weights = _interpolation(n, new, orders[axis])
        if axis == 2:
            out = out @ weights.T
        elif axis == 1:
            out = weights @ out
        else:
            out = (weights @ out.reshape(len(out), n, -1)).reshape(len(out), new, *out.shape[2:])
    return out.reshape(*lead, *out.shape[1:])


def resample_slab(
    array: np.ndarray, shape: Sequence[int], order: int | Sequence[int], start: int, stop: int
) -> np.ndarray:
    """Some slices along D of what `resample` gives, equal to it to rounding.

    A spline reaches over the whole axis, but its weights fall to a quarter from voxel to voxel, so
    that about twenty slices on both sides decide.

    Args:
        array: (..., D, H, W) of any number type; only the slices that matter are read.
        shape: The new (D, H, W) of the whole.
        order: As for `resample`.
        start: The first slice.
        stop: The one after the last.

    Returns:
        (..., stop - start, H, W) float32.
    """
    orders = [order] * 3 if isinstance(order, int) else list(order)
    new = (stop - start, *shape[1:])
    if array.shape[-3] == shape[0]:
        return resample(array[..., start:stop, :, :], new, orders)
    weights = _interpolation(array.shape[-3], shape[0], orders[0])[start:stop]
    used = np.flatnonzero((np.abs(weights) > _NEGLIGIBLE).any(0))
    first, last = int(used[0]), int(used[-1]) + 1
    part = np.ascontiguousarray(array[..., first:last, :, :], dtype=np.float32)
    lead, plane = part.shape[:-3], part.shape[-2:]
    out = weights[:, first:last] @ part.reshape(-1, last - first, plane[0] * plane[1])
    return resample(out.reshape(*lead, stop - start, *plane), new, orders)


def resample_labels(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample a label map: each value's mask is resampled linearly, and the largest wins.

    Each value is handled inside its own box, so that a hundred small organs cost little more than
    one. A tie goes to the rarer value; the other way organs would shrink.

    Args:
        label: (D, H, W) integers.
        shape: The new (D, H, W).

    Returns:
        `shape`, of the same number type. `label` itself where the shape is the same.
    """
    if tuple(label.shape) == tuple(shape):
        return label
    values, counts = value_counts(label)
    values = values[np.argsort(-counts)]
    if is_one_slab(label.shape) and is_one_slab(shape):
        return _resampled_labels(label, shape, values)
    out = np.empty(tuple(shape), label.dtype)
    for part in slabs(shape):
        out[part] = _label_slab(label, shape, values, part)
    return out


def _label_slab(
    label: np.ndarray, shape: Sequence[int], values: np.ndarray, part: slice
) -> np.ndarray:
    """Some slices along D of `resample_labels`: linear weights reach to the next slice alone."""
    planes = (part.stop - part.start, *shape[1:])
    if len(label) == shape[0]:
        return _resampled_labels(label[part], planes, values)
    weights = _interpolation(len(label), shape[0], 1)[part]
    used = np.flatnonzero(weights.any(0))
    near = slice(int(used[0]), int(used[-1]) + 1)
    return _resampled_labels(label[near], planes, values, weights[:, near])


def _resampled_labels(
    label: np.ndarray,
    shape: Sequence[int],
    values: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """`resample_labels` at once, for values with the commonest first.

    `weights` are those along D where `label` is a part of the slices.
    """
    scale = np.array(label.shape) / np.array(shape)
    rows = [_interpolation(n, new, 1) for n, new in zip(label.shape, shape)]
    if weights is not None:
        rows[0] = weights
    out = np.full(tuple(shape), values[0], label.dtype)
    best = np.full(tuple(shape), np.nan, np.float32)
    common = label == values[0]
    for value in values[1:]:
        mask = label == value
        if not mask.any():  # in this slab
            continue
        inside = _box_of(mask, scale, shape)
        if weights is not None:
            inside = (slice(0, shape[0]), *inside[1:])
        best[inside] = np.where(
            np.isnan(best[inside]), _linear_part(common, rows, inside), best[inside]
        )
        share = _linear_part(mask, rows, inside)
        wins = share >= best[inside]
        out[inside][wins] = value
        best[inside][wins] = share[wins]
    return out


def _box_of(mask: np.ndarray, scale: np.ndarray, shape: Sequence[int]) -> tuple[slice, ...]:
    """The box on the grid `shape` outside which a mask, resampled linearly, is 0."""
    box = []
    for axis in range(3):
        occupied = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low = int(np.floor((occupied[0] - 0.5) / scale[axis] - 1))
        high = int(np.ceil((occupied[-1] + 1.5) / scale[axis] + 1))
        box.append(slice(max(low, 0), min(high, shape[axis])))
    return tuple(box)


def _linear_part(
    mask: np.ndarray, weights: Sequence[np.ndarray], box: Iterable[slice]
) -> np.ndarray:
    """The part `box` of a mask resampled linearly, float32; `weights` are those of each axis."""
    rows = [matrix[s] for matrix, s in zip(weights, box)]
    used = [np.flatnonzero(r.any(0)) for r in rows]
    spans = [slice(int(u[0]), int(u[-1]) + 1) for u in used]
    out: Any = mask[tuple(spans)].astype(np.float32)
    d, h, w = (np.ascontiguousarray(r[:, s]) for r, s in zip(rows, spans))
    out = h @ (out @ w.T)
    return (d @ out.reshape(len(out), -1)).reshape(len(d), *out.shape[1:])
