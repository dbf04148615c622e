"""A scan as nnU-Net v2 prepares it, for networks that it trained; an array and what undoes it.

The steps are those of nnU-Net 2.8's `DefaultPreprocessor`: axes in its order, cropped to the
voxels that are not zero, CT clipped, resampled by cubic splines, or slice by slice where slices are
thick. Numbers are normalised after the resampling, by `prepare.normalise`; both are linear, so that
the order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.prepare import Record, check_channels, mask_extent, refuse_too_large, safe_sd
from contextseg.resampling import resample, resample_labels
from contextseg.volume import Volume, axis_moves

_THICK = 3  # nnU-Net's ANISO_THRESHOLD


def prepare_like_nnunet(
    scan: Volume,
    plan: NNUNetPlan,
    name: str = "",
    label: np.ndarray | None = None,
    memory_gb: float = 0.0,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Record]:
    """What `prepare` does, by nnU-Net's rules.

    Args:
        scan: The image (C, D, H, W).
        plan: nnU-Net's plan.
        name: Name of the case, for the record and messages.
        label: Class indices (D, H, W) on the scan's grid; its box is never cropped away.
        memory_gb: Memory in gibibytes that the resampled scan may take; 0 for this machine's.

    Returns:
        The image (C, *S) float32, not normalised; the label (*S), or None; where the scan is not
        zero (*S) bool; the record.

    Raises:
        ContextsegError: As `prepare`.
    """
    target = plan.orientation_for(scan.orientation)
    turned = scan.oriented(target)
    with np.errstate(over="ignore"):  # what is too large for float32 is named below
        image = np.ascontiguousarray(turned.array, dtype=np.float32)
    check_channels(image, plan.scanned, [name])
    if label is not None:
        label = scan.with_array(label).oriented(target).array
    there = (image != 0).any(0)
    keep = there if label is None else there | (label > 0)
    box = (
        (mask_extent(keep, 0), mask_extent(keep, 1), mask_extent(keep, 2))
        if keep.any()
        else _whole(image)
    )
    inside = tuple(slice(a, b) for a, b in box)
    there = _without_holes(there[inside])
    image = np.ascontiguousarray(image[(slice(None), *inside)])
    channels = [
        x[there] if masked and there.any() else x
        for x, masked in zip(image, plan.masked, strict=True)
    ]
    record = Record(
        name=name,
        orientation=scan.orientation,
        affine=tuple(tuple(row) for row in scan.affine.tolist()),
        grid=scan.shape,
        target=target,
        box=box,
        mean=tuple(float(x.mean(dtype=np.float64)) for x in channels),
        sd=tuple(safe_sd(x.astype(np.float64), float(np.ptp(x))) for x in channels),
        low=tuple(float(x.min()) for x in image),
        high=tuple(float(x.max()) for x in image),
    )

    own, wanted = turned.spacing_mm, wanted_mm(plan, turned.spacing_mm)
    steps = zip(own, wanted, image.shape[1:])
    shape = tuple(max(1, round(mm / new * n)) for mm, new, n in steps)
    refuse_too_large(name, turned, plan.spacing_mm, shape, memory_gb)
    for i, (channel, masked) in enumerate(zip(plan.channels, plan.masked)):
        if channel.kind == "ct":
            np.clip(image[i], channel.low, channel.high, out=image[i])
        elif channel.kind == "zscore" and masked:
            image[i][~there] = record.mean[i]  # which is zero, normalised
    axis = thick_axis(own, wanted, plan.separate)
    image = np.stack([_resampled(x, shape, axis, plan.data_orders) for x in image])
    there = resample(there, shape, 1) > 0.5
    if label is not None:
        label = resample_labels(np.ascontiguousarray(label[inside]), shape)
    return image, label, there, record


def thick_axis(
    own: Sequence[float], wanted: Sequence[float], separate: bool | None = None
) -> int | None:
    """The axis across thick slices, which are then resampled one by one.

    Args:
        own: Spacing along each axis now.
        wanted: Spacing that is wanted.
        separate: nnU-Net's `force_separate_z`.

    Returns:
        The axis; None where all are resampled together.

    Example:
        >>> thick_axis((5, 1, 1), (1, 1, 1)), thick_axis((2, 1, 1), (4, 1, 1))
        (0, 0)
        >>> thick_axis((2, 1, 1), (1, 1, 1)), thick_axis((4, 4, 1), (1, 1, 1))
        (None, None)
    """
    chosen: Sequence[float] = ()
    if separate is None:
        thick = (mm for mm in (own, wanted) if max(mm) / min(mm) > _THICK)
        chosen = next(thick, ())
    elif separate:
        chosen = own
    axes = [axis for axis, mm in enumerate(chosen) if mm == max(chosen)]
    return axes[0] if len(axes) == 1 else None


def nearest_slices(n: int, new: int) -> np.ndarray:
    """Which slice each of `new` slices over the same extent is taken from, by nnU-Net's rounding.

    Args:
        n: Slices now.
        new: Slices wanted.

    Returns:
        (new,) indices, which do not fall.
    """
    from scipy import ndimage

    at = (n / new) * (np.arange(new) + 0.5) - 0.5
    index = ndimage.map_coordinates(np.arange(n, dtype=float), [at], order=0, mode="nearest")
    return index.astype(np.intp)


def logit_slices(
    plan: NNUNetPlan, record: Record, size: Sequence[int]
) -> tuple[int, np.ndarray] | None:
    """How logits come back to the scan's own slices where these are thick.

    Args:
        plan: nnU-Net's plan.
        record: How the scan was prepared.
        size: Number of voxels of the prepared scan.

    Returns:
        The axis across thick slices, and the slice that each of the scan's slices is taken from.
        None where logits are interpolated along all axes.
    """
    order, _ = axis_moves(record.orientation, record.target)
    mm = np.linalg.norm(np.array(record.affine)[:3, :3], axis=0)
    own = [float(mm[axis]) for axis in order]
    axis = thick_axis(wanted_mm(plan, own), own, plan.separate)
    if axis is None or size[axis] == record.shape[axis]:
        return None
    return axis, nearest_slices(size[axis], record.shape[axis])


def wanted_mm(plan: NNUNetPlan, own: Sequence[float]) -> tuple[float, ...]:
    """The spacing that a scan is resampled to; a 2-D network takes slices as they are.

    Args:
        plan: nnU-Net's plan.
        own: The scan's own spacing along the network's axes.

    Returns:
        Millimetres along each of these axes.
    """
    return plan.spacing_mm if plan.dims == 3 else (own[0], *plan.spacing_mm[1:])


def _whole(image: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    d, h, w = image.shape[1:]
    return (0, d), (0, h), (0, w)


def _without_holes(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return mask if mask.all() else ndimage.binary_fill_holes(mask)


def _resampled(
    x: np.ndarray, shape: Sequence[int], axis: int | None, orders: tuple[int, int]
) -> np.ndarray:
    """(D, H, W) on another grid, never beyond the range of what is resampled at once."""
    if x.shape == tuple(shape):
        return x
    if axis is None:
        return np.clip(resample(x, shape, orders[0]), x.min(), x.max())
    slices = np.moveaxis(x, axis, 0)
    within = [n for i, n in enumerate(shape) if i != axis]
    flat = resample(slices, [len(slices), *within], orders[0])
    low, high = slices.min(axis=(1, 2), keepdims=True), slices.max(axis=(1, 2), keepdims=True)
    flat = np.clip(flat, low, high)
    return np.moveaxis(flat[nearest_slices(len(slices), shape[axis])], 0, axis)
