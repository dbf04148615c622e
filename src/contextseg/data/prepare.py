"""Preprocessing of one scan, as arrays, and the record that undoes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.plan import Channel, Plan
from contextseg.disk import Problem
from contextseg.volume import Volume, axis_moves, resample, resample_labels

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(start, stop) along D, H and W."""


@dataclass(frozen=True)
class Record:
    """How a scan was preprocessed; all that `undo` needs.

    orientation, affine, grid  the input's own.        box  ((start, stop), ...) of the body on the oriented grid.
    shape    of the cropped box before resampling.     mean, sd  of each channel inside the body.
    low, high  each channel's extremes inside the box (what int16 spans).
    """

    name: str
    orientation: str
    affine: tuple[tuple[float, ...], ...]
    grid: tuple[int, int, int]
    target: str
    box: Box
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the body's box, in the plan's orientation, before resampling."""
        (a, b), (c, d), (e, f) = self.box
        return b - a, d - c, f - e


_AIR_HU = -500  # between air and the lungs' walls; lungs are filled as holes
_BLOCKS = 128  # along each axis, of which a body mask is made
_PART = 0.02  # of the largest part; a second leg is more, ghosts and screws in the air are less


def body_mask(scan: Volume, ct: bool) -> np.ndarray:
    """The patient in an image (C, D, H, W), without air, table and noise: (D, H, W) bool; all if nothing stands out.

    CT: what is denser than -500 HU and not as thin as a table top (which may touch the patient). MR: what is brighter
    than a tenth of the 98th percentile (as BET begins; Smith, HBM 2002) or, where a quarter of the image was set to one
    value (a stripped brain), what differs from it. The first channel decides. Then all large parts, with the holes in
    their axial slices filled. Some air does no harm; what is cut off is never segmented.

    Worked out on about 128 blocks along each axis, which averages noise and takes a fifth of the time.
    """
    import cc3d
    from scipy import ndimage

    first = scan.array[0]
    if first.min() == first.max():
        return np.ones(first.shape, bool)
    size = tuple(max(1, n // _BLOCKS) for n in first.shape)
    mask = _stands_out(np.asarray(scan.array), ct, size)
    axial = next(i for i, letter in enumerate(scan.orientation) if letter in "SI")
    core = _eroded(mask, axial) if ct else mask
    core = core if core.any() else mask
    if not core.any():
        return np.ones(first.shape, bool)
    parts = cc3d.connected_components(mask, connectivity=6)
    sizes = np.bincount(parts.ravel(), weights=core.ravel())
    large = (sizes >= _PART * sizes.max()) & (sizes > 0)
    body = (ndimage.binary_dilation(core, iterations=4, mask=mask) if ct else mask) & large[parts]
    body = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, axial, 0)], axial)
    for axis, n in enumerate(size):
        body = body.repeat(n, axis) if n > 1 else body
    d, h, w = first.shape
    return body[:d, :h, :w]


def _stands_out(image: np.ndarray, ct: bool, size: tuple[int, ...]) -> np.ndarray:
    """Which blocks of `size` voxels are brighter than air, or differ from a constant background."""
    first = image[0]
    if ct:
        return _block_means(first, size) > _AIR_HU
    corners = image[:, [0, 0, 0, 0, -1, -1, -1, -1], [0, 0, -1, -1] * 2, [0, -1] * 4]
    constant = np.sort(corners, axis=1)[:, 4].reshape(-1, 1, 1, 1)  # what most corners are
    if (first == constant[0]).mean() > 0.25:
        return _block_means((image != constant).any(0), size) > 0
    means = _block_means(first, size)
    darkest = min(0.0, float(means.min()))  # air; in a crop without air the darkest tissue is none
    return means > darkest + 0.1 * (np.percentile(means, 98) - darkest)


def _block_means(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    out: Any = np.asarray(x, np.float32)
    for axis, n in enumerate(size):
        if n > 1:
            starts = np.arange(0, out.shape[axis], n)
            counts = np.diff([*starts, out.shape[axis]]).astype(np.float32)
            out = np.add.reduceat(out, starts, axis) / counts.reshape([-1 if i == axis else 1 for i in range(3)])
    return out


def _eroded(mask: np.ndarray, axial: int) -> np.ndarray:
    """Without the outermost block of each axial slice, but for where the image ends."""
    from scipy import ndimage

    cross = ndimage.generate_binary_structure(3, 1)
    cross = cross & (np.arange(3).reshape([-1 if i == axial else 1 for i in range(3)]) == 1)
    return ndimage.binary_erosion(mask, cross, border_value=1)


def prepare(
    scan: Volume, plan: Plan, name: str = "", label: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Record]:
    """Orient, crop to the body, resample: image (C, *S) float32 in own units, label (*S) or None, body (*S), record.

    `label` holds class indices on the scan's grid; its box is never cropped away. The image is not normalised yet.
    Raises `Problem` if the number of channels differs from the plan's, or an intensity is not finite.
    """
    turned = scan.oriented(plan.orientation)
    image = np.ascontiguousarray(turned.array, dtype=np.float32)
    check_channels(image, plan.scanned, [name])
    if label is not None:
        label = scan.with_array(label).oriented(plan.orientation).array
    body, box = body_box(turned.with_array(image), plan.ct, label)
    inside = tuple(slice(a, b) for a, b in box)
    image, body = image[(slice(None), *inside)], body[inside]
    values = [channel[body].astype(np.float64) for channel in image]
    low, high = ([float(x) for x in end(axis=(1, 2, 3))] for end in (image.min, image.max))
    record = Record(
        name=name,
        orientation=scan.orientation,
        affine=tuple(tuple(row) for row in scan.affine.tolist()),
        grid=scan.shape,
        target=plan.orientation,
        box=box,
        mean=tuple(float(v.mean()) for v in values),
        sd=tuple(_spread(v, b - a) for v, a, b in zip(values, low, high)),
        low=tuple(low),
        high=tuple(high),
    )
    spacing = turned.spacing_mm
    shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(body.shape, spacing, plan.spacing_mm))
    if shape != body.shape:
        image = resample(image, shape, plan.orders)
        for channel, a, b in zip(image, low, high):
            np.clip(channel, a, b, out=channel)  # where the spline overshoots
    body = resample(body, shape, 1) > 0.5
    if label is not None:
        label = resample_labels(np.ascontiguousarray(label[inside]), shape)
    return image, label, body, record


def _spread(values: np.ndarray, span: float) -> float:
    """The standard deviation; where nothing varies, a number that is safe to divide by."""
    sd = float(values.std())
    return sd if sd > 1e-6 * span else span or 1.0


def check_channels(image: np.ndarray, names: Sequence[str], files: Sequence[str | Path]) -> None:
    """Raise `Problem` if an image (C, D, H, W) has other channels than `names`, or NaN or infinity in one.

    `files` are named in it: one for each channel, or one that holds them all.
    """
    if len(image) != len(names):
        what = f"{len(image)} channel{'s' if len(image) != 1 else ''}; this data set has {len(names)}"
        raise Problem(files[0], what, f"give the channels {', '.join(names)}, in this order")
    for i, channel in enumerate(image):
        bad = 0 if channel.dtype.kind in "iub" else channel.size - int(np.isfinite(channel).sum())
        if bad:
            where = files[i] if len(files) == len(image) else files[0]
            what = f"{bad} intensit{'ies are' if bad > 1 else 'y is'} NaN or infinite"
            raise Problem(where, what, "replace them, or leave the case out")


def body_box(turned: Volume, ct: bool, label: np.ndarray | None) -> tuple[np.ndarray, Box]:
    """The body (D, H, W) bool of an image, and the box that holds it and all that is labelled."""
    body = body_mask(turned, ct)
    keep = body if label is None else body | (label > 0)
    return body, (_extent(keep, 0), _extent(keep, 1), _extent(keep, 2))


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """(start, stop) of the True voxels of a mask along one axis. The mask must not be empty."""
    hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return int(hit[0]), int(hit[-1]) + 1


def slice_places(slices: int) -> np.ndarray:
    """(slices,) float32: where the middle of each lies along D, 0 where the first starts and 1 where the last ends.

    Pham et al. (FLARE 2022) take index / number, which depends on how thick a grid's slices are.

    >>> slice_places(4).tolist()
    [0.125, 0.375, 0.625, 0.875]
    """
    return ((np.arange(slices) + 0.5) / max(slices, 1)).astype(np.float32)


def normalise(
    image: np.ndarray, channels: Sequence[Channel], record: Record, places: np.ndarray | None = None
) -> np.ndarray:
    """A scan's channels (C, *S), in its units, to what a network sees: (len(channels), *S) float32.

    `places` (D,) is where its slices lie; None: they are all that the scan has.
    """
    return rescaled(image, [1.0] * len(image), [0.0] * len(image), channels, record, places)


def rescaled(
    stored: np.ndarray,
    steps: Sequence[float],
    zeros: Sequence[float],
    channels: Sequence[Channel],
    record: Record,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """`normalise` of `stored * step + zero` for each of the scan's channels (C, *S), in one pass."""
    out = np.empty((len(channels), *stored.shape[1:]), np.float32)
    for i, channel in enumerate(channels):
        if channel.kind == "place":
            out[i] = (slice_places(stored.shape[1]) if places is None else places)[:, None, None]
            continue
        k = channel.made_from(i)
        mean, sd = _mean_sd(channel, record, k)
        np.add(stored[k], np.float32((zeros[k] - mean) / steps[k]), out=out[i], dtype=np.float32)
        out[i] *= np.float32(steps[k] / sd)
        if channel.kind in ("ct", "window"):
            np.clip(out[i], (channel.low - mean) / sd, (channel.high - mean) / sd, out=out[i])
    return out


def _mean_sd(channel: Channel, record: Record, i: int) -> tuple[float, float]:
    """What is subtracted from the scan's channel `i`, and what it is then divided by."""
    if channel.kind == "ct":
        return channel.mean, channel.sd
    if channel.kind == "window":
        return channel.low, channel.high - channel.low
    if channel.kind == "zscore":
        return record.mean[i], record.sd[i]
    if channel.kind == "rescale":
        low, high = (channel.low, channel.high) if channel.high > channel.low else (record.low[i], record.high[i])
        return low, (high - low) or 1.0
    return 0.0, 1.0


def placed(label: np.ndarray, record: Record, shape: Sequence[int]) -> np.ndarray:
    """A label map on a scan's own grid, on the grid `shape` that the scan was preprocessed to: the way of its label."""
    order, flips = axis_moves(record.orientation, record.target)
    turned = np.flip(label.transpose(order), tuple(axis for axis, flip in enumerate(flips) if flip))
    inside = turned[tuple(slice(a, b) for a, b in record.box)]
    return resample_labels(np.ascontiguousarray(inside), tuple(shape))


def undo(label: np.ndarray, record: Record, outside: int = 0) -> Volume:
    """A label map on the cropped grid before resampling (`record.shape`), back on the exact input grid.

    Voxels outside the body's box get `outside`.
    """
    order, flips = axis_moves(record.orientation, record.target)  # letters, not affines: at 45 degrees those waver
    full = np.full([record.grid[i] for i in order], outside, label.dtype)
    full[tuple(slice(a, b) for a, b in record.box)] = label
    full = np.flip(full, tuple(axis for axis, flip in enumerate(flips) if flip))
    return Volume(np.ascontiguousarray(full.transpose(np.argsort(order))), np.array(record.affine))
