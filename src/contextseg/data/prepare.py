"""Preprocessing of one scan, as arrays, and the record that undoes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.plan import Channel, Plan
from contextseg.errors import ContextsegError, plural
from contextseg.grids import times
from contextseg.parallel import machine_gb
from contextseg.resampling import resample, resample_labels, resample_slab
from contextseg.slabs import extent_of, is_one_slab, low_and_high, masked_mean_sd, slabs
from contextseg.volume import Volume, axis_moves

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(start, stop) along D, H and W."""


@dataclass(frozen=True)
class Record:
    """How a scan was preprocessed: all that `undo` needs.

    Attributes:
        name: Name of the case.
        orientation: Orientation of the input.
        affine: Affine of the input.
        grid: Number of voxels of the input.
        target: The plan's orientation.
        box: (start, stop) of the body along each axis of the oriented grid.
        mean: Mean of each channel inside the body.
        sd: Standard deviation of each channel inside the body.
        low: Smallest value of each channel inside the box, where the int16 range starts.
        high: Largest value of each channel inside the box, where the int16 range ends.
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
        """Shape of the body's box, in the plan's orientation, before resampling."""
        (a, b), (c, d), (e, f) = self.box
        return b - a, d - c, f - e

    @property
    def own_mm(self) -> tuple[float, float, float]:
        """Spacing before resampling, in the plan's orientation."""
        order, _ = axis_moves(self.orientation, self.target)
        lengths = np.linalg.norm(np.array(self.affine)[:3, :3], axis=0)
        d, h, w = (float(lengths[i]) for i in order)
        return d, h, w


_OTHER_UNIT = 100  # voxels that are so many times larger or smaller than the plan's
TOO_LARGE = (
    "correct the voxel size in its header if it is wrong; else crop the scan, plan a coarser "
    "spacing_mm, or raise memory_gb (0 is what the machine has)"
)
"""Remedy for a scan that does not fit into memory."""

_AIR_HU = -500  # between air and the lungs' walls; lungs are filled as holes
_BLOCKS = 128  # blocks along each axis that a body mask is made of
_PART = 0.02  # of the largest part; a second leg is more, ghosts and screws in the air are less


def body_mask(scan: Volume, ct: bool) -> np.ndarray:
    """The patient in an image, without air, table and noise.

    In CT, this is what is denser than -500 HU and not as thin as a table top (which may touch the
    patient). In MR, it is what is brighter than a tenth of the 98th percentile (as BET begins;
    Smith, HBM 2002) or, where a quarter of the image was set to one value (a stripped brain), what
    differs from that value. All large parts are kept, and the holes in their axial slices filled.
    Some air does no harm; what is cut off is never segmented.

    The mask is found on about 128 blocks along each axis, which averages noise and takes a fifth of
    the time.

    Args:
        scan: The image (C, D, H, W). The first channel decides.
        ct: Whether it is in Hounsfield units.

    Returns:
        (D, H, W) bool; all True where nothing stands out.
    """
    import cc3d
    from scipy import ndimage

    first = scan.array[0]
    low, high = low_and_high(first)
    if low == high:
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
    filled = [ndimage.binary_fill_holes(plane) for plane in np.moveaxis(body, axial, 0)]
    body = np.stack(filled, axial)
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
    same = sum(int(np.count_nonzero(first[part] == constant[0])) for part in slabs(first.shape))
    if same / first.size > 0.25:
        other = [
            _block_means((image[:, part] != constant).any(0), size)
            for part in slabs(first.shape, size[0])
        ]
        return np.concatenate(other) > 0
    means = _block_means(first, size)
    darkest = min(0.0, float(means.min()))  # air; in a crop without air the darkest tissue is none
    return means > darkest + 0.1 * (np.percentile(means, 98) - darkest)


def _block_means(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    if not is_one_slab(x.shape) and len(x) > size[0]:
        return np.concatenate([_block_means(x[part], size) for part in slabs(x.shape, size[0])])
    out: Any = np.asarray(x, np.float32)
    for axis, n in enumerate(size):
        if n > 1:
            starts = np.arange(0, out.shape[axis], n)
            counts = np.diff([*starts, out.shape[axis]]).astype(np.float32)
            along = [-1 if i == axis else 1 for i in range(3)]
            out = np.add.reduceat(out, starts, axis) / counts.reshape(along)
    return out


def _eroded(mask: np.ndarray, axial: int) -> np.ndarray:
    """The mask without its outermost blocks in each axial slice, except where the image ends."""
    from scipy import ndimage

    cross = ndimage.generate_binary_structure(3, 1)
    cross = cross & (np.arange(3).reshape([-1 if i == axial else 1 for i in range(3)]) == 1)
    return ndimage.binary_erosion(mask, cross, border_value=1)


@dataclass(frozen=True)
class Prepared:
    """A scan on the plan's grid, of which a slab at a time is made.

    Attributes:
        source: (C, d, h, w), the scan inside the body's box, a view in its own number type.
        shape: (C, *S) on the plan's grid.
        orders: Orders of the splines along D, H, W.
        low: Smallest value of each channel, which the splines must not undershoot.
        high: Largest value of each channel.
    """

    source: np.ndarray
    shape: tuple[int, ...]
    orders: tuple[int, int, int]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Some slices along D.

        Args:
            start: The first slice.
            stop: The one after the last.

        Returns:
            (C, stop - start, H, W) float32, in the scan's own units.
        """
        if self.source.shape == self.shape:
            return np.ascontiguousarray(self.source[:, start:stop], dtype=np.float32)
        whole = stop - start == self.shape[1]
        if whole:
            image = resample(self.source, self.shape[1:], self.orders)
        else:
            image = resample_slab(self.source, self.shape[1:], self.orders, start, stop)
        for channel, a, b in zip(image, self.low, self.high):
            np.clip(channel, a, b, out=channel)  # where the spline overshoots
        return image

    def whole(self) -> np.ndarray:
        """The whole image, (C, *S) float32."""
        if is_one_slab(self.shape[1:]):
            return self.slab(0, self.shape[1])
        image = np.empty(self.shape, np.float32)
        for part in slabs(self.shape[1:]):
            image[:, part] = self.slab(part.start, part.stop)
        return image


def prepare(
    scan: Volume,
    plan: Plan,
    name: str = "",
    label: np.ndarray | None = None,
    memory_gb: float = 0.0,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Record]:
    """Orient a scan, crop it to the body, and resample it. It is not normalised yet.

    By a `Plan.native` it is only oriented.

    Args:
        scan: The image (C, D, H, W).
        plan: Orientation, spacing and channels.
        name: Name of the case, for the record and messages.
        label: Class indices (D, H, W) on the scan's grid; its box is never cropped away.
        memory_gb: Memory in gibibytes that the resampled scan may take; 0 for this machine's.

    Returns:
        The image (C, *S) float32 in its own units; the label (*S), or None; the body (*S) bool; the
        record.

    Raises:
        ContextsegError: The number of channels is not the plan's, an intensity is not finite, or
            the voxels are improbably large or small beside the plan's.
    """
    if isinstance(plan, NNUNetPlan):
        from contextseg.data.nnunet_prepare import prepare_like_nnunet

        return prepare_like_nnunet(scan, plan, name, label, memory_gb)
    prepared, record, body = _cropped(scan, plan, name, label, memory_gb)
    inside, shape = body_slices(record), prepared.shape[1:]
    if label is not None:
        turned = scan.with_array(label).oriented(plan.orientation).array
        label = resample_labels(np.ascontiguousarray(turned[inside]), shape)
    return prepared.whole(), label, resample_mask(body[inside], shape), record


def prepare_in_slabs(
    scan: Volume,
    plan: Plan,
    name: str = "",
    label: np.ndarray | None = None,
    memory_gb: float = 0.0,
) -> tuple[Prepared, np.ndarray | None, np.ndarray, Record]:
    """What `prepare` does, with an image that is made when it is read, a slab at a time.

    Args:
        scan: As for `prepare`; it must not change while the image is used.
        plan: As for `prepare`; not one of nnU-Net's.
        name: As for `prepare`.
        label: As for `prepare`.
        memory_gb: As for `prepare`.

    Returns:
        As `prepare`; the image as `Prepared`, and the body (d, h, w) bool before resampling.

    Raises:
        ContextsegError: As `prepare`.
    """
    prepared, record, body = _cropped(scan, plan, name, label, memory_gb)
    inside = body_slices(record)
    if label is not None:
        turned = scan.with_array(label).oriented(plan.orientation).array
        label = resample_labels(np.ascontiguousarray(turned[inside]), prepared.shape[1:])
    return prepared, label, body[inside], record


def _cropped(
    scan: Volume, plan: Plan, name: str, label: np.ndarray | None, memory_gb: float
) -> tuple[Prepared, Record, np.ndarray]:
    """A scan inside its body's box, its record, and the body (D, H, W) on the turned grid."""
    turned = scan.oriented(plan.orientation)
    check_channels(turned.array, plan.scanned, [name])
    if label is not None:
        label = scan.with_array(label).oriented(plan.orientation).array
    body, box = body_box(turned, plan.ct, label)
    if plan.native:
        d, h, w = body.shape
        box = ((0, d), (0, h), (0, w))

    inside = tuple(slice(a, b) for a, b in box)
    source = turned.array[(slice(None), *inside)]
    statistics = [masked_mean_sd(channel, body[inside]) for channel in source]
    ends = [tuple(float(np.float32(x)) for x in low_and_high(channel)) for channel in source]
    low, high = tuple(a for a, _ in ends), tuple(b for _, b in ends)
    record = Record(
        name=name,
        orientation=scan.orientation,
        affine=tuple(tuple(row) for row in scan.affine.tolist()),
        grid=scan.shape,
        target=plan.orientation,
        box=box,
        mean=tuple(mean for mean, _ in statistics),
        sd=tuple(_safe(sd, b - a) for (_, sd), (a, b) in zip(statistics, ends)),
        low=low,
        high=high,
    )
    spacing = turned.spacing_mm
    sizes = zip(record.shape, spacing, plan.target_mm(spacing))
    shape = tuple(max(1, round(n * s / t)) for n, s, t in sizes)
    refuse_too_large(name, turned, plan.spacing_mm, shape, memory_gb)
    return Prepared(source, (len(source), *shape), plan.orders, low, high), record, body


def body_slices(record: Record) -> tuple[slice, ...]:
    """The box of the body, as an index of the oriented grid."""
    return tuple(slice(a, b) for a, b in record.box)


def resample_mask(mask: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A mask on another grid: where it is more than half, resampled linearly.

    Args:
        mask: (D, H, W) bool.
        shape: The new (D, H, W).

    Returns:
        `shape` bool.
    """
    if is_one_slab(shape):
        return resample(mask, shape, 1) > 0.5
    if tuple(mask.shape) == tuple(shape):
        return mask
    out = np.empty(tuple(shape), bool)
    for part in slabs(shape):
        out[part] = resample_slab(mask, shape, 1, part.start, part.stop) > 0.5
    return out


def other_unit(shape: ArrayLike, spacing_mm: ArrayLike, usual: ArrayLike) -> bool:
    """Whether voxels are so unlike others that they must be measured in another unit.

    Args:
        shape: Number of voxels (D, H, W); an axis of one says nothing.
        spacing_mm: Their size along each axis.
        usual: The size that is expected.

    Returns:
        True where they are 100 times as large or small, in the geometric mean of the axes.

    Example:
        >>> other_unit((9, 9, 9), (0.003, 0.001, 0.001), (5, 0.7, 0.7))
        True
    """
    several = np.array(shape) > 1
    if not several.any():
        return False
    ratios = np.array(spacing_mm, float)[several] / np.array(usual, float)[several]
    return bool(abs(np.log(ratios).mean()) >= math.log(_OTHER_UNIT))


def refuse_too_large(
    name: str,
    scan: Volume,
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    memory_gb: float = 0.0,
) -> None:
    """Refuse a scan that becomes larger than the memory, as by a header in another unit.

    Args:
        name: Name of the case.
        scan: The scan (C, D, H, W).
        spacing_mm: The spacing that it is resampled to.
        shape: The number of voxels that it then has.
        memory_gb: Memory in gibibytes that it may take; 0 for this machine's.

    Raises:
        ContextsegError: The resampled image takes more, or the voxels are improbably large or small
            beside `spacing_mm`.
    """
    need = resampled_gb(len(scan.array), shape)
    limit = memory_gb or machine_gb()
    sizes = f"{times(scan.spacing_mm, ' mm')}, the training's {times(spacing_mm, ' mm')}"
    what = f"its voxels are {sizes}: resampled it would have {times(shape)} voxels"
    if other_unit(scan.shape, scan.spacing_mm, spacing_mm):
        remedy = "see whether its header counts in millimetres, and correct its voxel size or unit"
        raise ContextsegError(name or "scan", what, remedy)
    if need > limit:
        what = f"{what}, {need:.2g} GB of memory, and {limit:.2g} GB are allowed"
        raise ContextsegError(name or "scan", what, TOO_LARGE)


def too_large(shape: ArrayLike, spacing_mm: ArrayLike, usual: ArrayLike) -> str:
    """Whether a scan resampled to the usual spacing is larger than this machine's memory.

    Args:
        shape: Number of voxels (D, H, W).
        spacing_mm: Their size along each axis.
        usual: The spacing that it is resampled to.

    Returns:
        What is wrong, in words; "" where nothing is.
    """
    factors = np.array(spacing_mm, float) / np.array(usual, float)
    need = resampled_gb(1, np.maximum(1, np.rint(np.array(shape) * factors)).tolist())
    if need <= machine_gb():
        return ""
    sizes = f"voxels of {times(np.array(spacing_mm), ' mm')}, most have"
    sizes = f"{sizes} {times(np.array(usual), ' mm')}"
    return f"{sizes}: resampled to that, it takes {need:.3g} GB of memory"


def resampled_gb(channels: int, shape: Sequence[int]) -> float:
    """Memory of a resampled image, (C, *S) float32 twice, in gibibytes.

    Example:
        >>> resampled_gb(1, (512, 512, 512))
        1.0
    """
    return 2 * 4 * channels * math.prod(shape) / 2**30


def safe_sd(values: np.ndarray, span: float) -> float:
    """The standard deviation; where nothing varies, a number that is safe to divide by.

    Args:
        values: Intensities of one channel.
        span: Largest less smallest intensity.

    Returns:
        The standard deviation, or `span`, or 1 where that is 0 too.
    """
    return _safe(float(values.std()), span)


def _safe(sd: float, span: float) -> float:
    return sd if sd > 1e-6 * span else span or 1.0


def check_channels(image: np.ndarray, names: Sequence[str], files: Sequence[str | Path]) -> None:
    """Check that an image has the right number of channels, and finite intensities.

    Args:
        image: (C, D, H, W).
        names: Names of the channels that it should have.
        files: The file of each channel, or one that holds them all, for the message.

    Raises:
        ContextsegError: The number of channels is another, or there is NaN or infinity.
    """
    if len(image) != len(names):
        what = f"{plural(len(image), 'channel')}; this data set has {len(names)}"
        remedy = f"give the channels {', '.join(names)}, in this order"
        raise ContextsegError(files[0], what, remedy)
    for i, channel in enumerate(image):
        if what := unusable(channel):
            where = files[i] if len(files) == len(image) else files[0]
            raise ContextsegError(where, what, "replace them, or leave the case out")


def unusable(channel: np.ndarray) -> str:
    """What is wrong with the intensities of a channel.

    Args:
        channel: (D, H, W).

    Returns:
        How many are NaN or infinite, or too large for float32; "" where none is.

    Example:
        >>> unusable(np.array([[[0.0, np.nan]]]))
        '1 intensity is NaN or infinite, or too large for float32'
    """
    if channel.dtype.kind in "iub":
        return ""
    largest = np.finfo(np.float32).max
    good = (np.count_nonzero(np.abs(channel[p]) <= largest) for p in slabs(channel.shape))
    bad = channel.size - sum(map(int, good))
    subject = "intensities are" if bad > 1 else "intensity is"
    return f"{bad} {subject} NaN or infinite, or too large for float32" if bad else ""


def body_box(turned: Volume, ct: bool, label: np.ndarray | None) -> tuple[np.ndarray, Box]:
    """The body in an image, and the box that holds it and all that is labelled.

    Args:
        turned: The image (C, D, H, W).
        ct: Whether it is in Hounsfield units.
        label: Class indices (D, H, W), or None.

    Returns:
        The body (D, H, W) bool, and (start, stop) along each axis.
    """
    body = body_mask(turned, ct)
    box = []
    for axis in range(3):
        start, stop = mask_extent(body, axis)
        labelled = None if label is None else extent_of(label, axis)
        if labelled is not None:
            start, stop = min(start, labelled[0]), max(stop, labelled[1])
        box.append((start, stop))
    return body, (box[0], box[1], box[2])


def mask_extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """Where the True voxels of a mask lie along one axis.

    Args:
        mask: (D, H, W) bool, not empty.
        axis: 0, 1 or 2.

    Returns:
        (start, stop).
    """
    hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return int(hit[0]), int(hit[-1]) + 1


def slice_places(slices: int) -> np.ndarray:
    """Position of each slice along D.

    Pham et al. (FLARE 2022) take index / number, which depends on the thickness of the slices.

    Args:
        slices: Number of slices.

    Returns:
        (slices,) float32: where the middle of each lies, 0 where the first slice starts and 1 where
        the last one ends.

    Example:
        >>> slice_places(4).tolist()
        [0.125, 0.375, 0.625, 0.875]
    """
    return ((np.arange(slices) + 0.5) / max(slices, 1)).astype(np.float32)


def normalise(
    image: np.ndarray, channels: Sequence[Channel], record: Record, places: np.ndarray | None = None
) -> np.ndarray:
    """Normalise a scan's channels for a network.

    Args:
        image: The scan's channels (C, *S), in its units.
        channels: The channels of the network.
        record: Statistics of the case.
        places: Position of each slice (D,), as in `slice_places`. None: these are all slices.

    Returns:
        (len(channels), *S) float32.
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
    """Normalise stored integers of a scan's channels for a network, in one pass.

    Args:
        stored: The scan's channels (C, *S), where `stored * step + zero` is in its units.
        steps: The step of each channel.
        zeros: The zero of each channel.
        channels: The channels of the network.
        record: Statistics of the case.
        places: Position of each slice (D,), as in `slice_places`. None: these are all slices.

    Returns:
        (len(channels), *S) float32.
    """
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
    """The number subtracted from the scan's channel `i`, and the one that divides it."""
    if channel.kind == "ct":
        return channel.mean, channel.sd
    if channel.kind == "window":
        return channel.low, channel.high - channel.low
    if channel.kind == "zscore":
        return record.mean[i], record.sd[i]
    if channel.kind == "rescale":
        low, high = channel.low, channel.high
        if high <= low:
            low, high = record.low[i], record.high[i]
        return low, (high - low) or 1.0
    return 0.0, 1.0


def placed(label: np.ndarray, record: Record, shape: Sequence[int]) -> np.ndarray:
    """A label map on a scan's own grid, on the grid that the scan was preprocessed to.

    Args:
        label: (D, H, W) on the scan's own grid.
        record: How the scan was preprocessed.
        shape: Number of voxels of the preprocessed scan.

    Returns:
        (*shape), treated as the scan's own label was.
    """
    order, flips = axis_moves(record.orientation, record.target)
    turned = np.flip(label.transpose(order), tuple(axis for axis, flip in enumerate(flips) if flip))
    inside = turned[tuple(slice(a, b) for a, b in record.box)]
    return resample_labels(np.ascontiguousarray(inside), tuple(shape))


def undo(label: np.ndarray, record: Record, outside: int = 0) -> Volume:
    """A label map on the cropped grid, back on the exact grid of the input.

    Args:
        label: On the cropped grid before resampling, (*record.shape).
        record: How the scan was preprocessed.
        outside: The value of voxels outside the body's box.

    Returns:
        The label map, with the input's affine.
    """
    # By letters, not by affines, which are ambiguous at 45 degrees.
    order, flips = axis_moves(record.orientation, record.target)
    full = np.full(record.grid, outside, label.dtype)
    turned = np.flip(full.transpose(order), tuple(a for a, flip in enumerate(flips) if flip))
    turned[body_slices(record)] = label
    return Volume(full, np.array(record.affine))
