"""Preprocessing of one scan, as arrays, and the record that undoes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contextseg.data.plan import Channel, Plan
from contextseg.disk import Problem
from contextseg.volume import Volume, resample, resample_labels


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
    box: tuple[tuple[int, int], ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the body's box, in the plan's orientation, before resampling."""
        (a, b), (c, d), (e, f) = self.box
        return b - a, d - c, f - e


def body_mask(image: np.ndarray, ct: bool) -> np.ndarray:
    """(C, D, H, W) to (D, H, W) bool: the patient, without air, table and noise; all of it if nothing stands out.

    CT: what is denser than -500 HU. MR: above half of Otsu's threshold, or, where the background was set to one value (a
    stripped brain), all that differs from it. Then the largest connected part with its holes filled, slice by slice.
    """
    import cc3d
    from scipy import ndimage

    first = image[0]
    darkest = first.min()
    if not np.isfinite(darkest) or darkest == first.max():
        return np.ones(first.shape, bool)
    if ct:
        mask = first > -500
    elif (first == darkest).mean() > 0.25:
        mask = (image != image.min(axis=(1, 2, 3), keepdims=True)).any(0)
    else:
        mask = first > darkest + 0.5 * (_otsu(first) - darkest)
    if not mask.any():
        return np.ones(first.shape, bool)
    parts = cc3d.connected_components(mask, connectivity=6)
    mask = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def _otsu(image: np.ndarray) -> float:
    """The threshold that parts the histogram with the largest variance between the halves (Otsu 1979)."""
    counts, edges = np.histogram(image, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (total[-1] * below / below[-1] - total) ** 2 / (below * (below[-1] - below))
    return float(centres[np.nanargmax(np.where(np.isfinite(between), between, -1))])


def prepare(
    scan: Volume, plan: Plan, name: str = "", label: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Record]:
    """Orient, crop to the body, resample: (image (C, *S) float32 in its own units, label (*S) or None, body (*S), record).

    `label` holds class indices on the scan's grid; its box is never cropped away. The image is not normalised yet.
    Raises `Problem` if the number of channels differs from the plan's, or an intensity is not finite.
    """
    if len(scan.array) != len(plan.channels):
        what = f"{len(scan.array)} channels; this data set has {len(plan.channels)}"
        raise Problem(name, what, f"give the channels {', '.join(c.name for c in plan.channels)}, in this order")
    turned = scan.oriented(plan.orientation)
    image = np.ascontiguousarray(turned.array, dtype=np.float32)
    if not np.isfinite(image).all():
        raise Problem(
            name,
            f"{(~np.isfinite(image)).sum()} intensities are NaN or infinite",
            "replace them, or leave the case out",
        )
    body = body_mask(image, plan.channels[0].kind == "ct")
    keep = body
    if label is not None:
        label = scan.with_array(label).oriented(plan.orientation).array
        keep = body | (label > 0)
    box = tuple(extent(keep, axis) for axis in range(3))
    inside = tuple(slice(a, b) for a, b in box)
    image, body = image[(slice(None), *inside)], body[inside]
    values = [channel[body] for channel in image]
    record = Record(
        name=name,
        orientation=scan.orientation,
        affine=tuple(tuple(row) for row in scan.affine.tolist()),
        grid=scan.shape,
        target=plan.orientation,
        box=box,
        mean=tuple(float(v.mean(dtype=np.float64)) for v in values),
        sd=tuple(float(max(v.std(dtype=np.float64), 1e-8)) for v in values),
        low=tuple(float(c.min()) for c in image),
        high=tuple(float(c.max()) for c in image),
    )
    spacing = turned.spacing_mm
    shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(body.shape, spacing, plan.spacing_mm))
    image = resample(image, shape, plan.orders)
    body = resample(body, shape, 1) > 0.5
    if label is not None:
        label = resample_labels(np.ascontiguousarray(label[inside]), shape)
    return image, label, body, record


def extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """(start, stop) of the True voxels of a mask along one axis. The mask must not be empty."""
    hit = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
    return int(hit[0]), int(hit[-1]) + 1


def normalise(image: np.ndarray, channels: Sequence[Channel], record: Record) -> np.ndarray:
    """(C, *S) float32 in the scan's units to what a network sees; the rules are the plan's."""
    out = np.empty(image.shape, np.float32)
    for i, channel in enumerate(channels):
        if channel.kind == "ct":
            np.clip(image[i], channel.low, channel.high, out=out[i])
            mean, sd = channel.mean, channel.sd
        elif channel.kind == "zscore":
            mean, sd = record.mean[i], record.sd[i]
            out[i] = image[i]
        elif channel.kind == "rescale":
            mean, sd = record.low[i], max(record.high[i] - record.low[i], 1e-8)
            out[i] = image[i]
        else:
            mean, sd = 0.0, 1.0
            out[i] = image[i]
        out[i] -= np.float32(mean)
        out[i] *= np.float32(1 / sd)
    return out


def undo(label: np.ndarray, record: Record, outside: int = 0) -> Volume:
    """A label map on the cropped grid before resampling (`record.shape`), back on the exact input grid.

    Voxels outside the body's box get `outside`.
    """
    affine = np.array(record.affine)
    source = Volume(np.broadcast_to(np.int8(0), record.grid), affine)
    turned = source.oriented(record.target)
    full = np.full(turned.shape, outside, label.dtype)
    full[tuple(slice(a, b) for a, b in record.box)] = label
    back = turned.with_array(full).oriented(record.orientation)
    return Volume(np.ascontiguousarray(back.array), affine)
