"""Scans in and out: an array, and where each of its voxels lies in the patient. All millimetres live here.

Axes are (D, H, W) with D slowest. `affine` maps a voxel index (d, h, w, 1) to millimetres in the patient, RAS+ (x to
the right, y to the front, z to the head). An orientation is three letters: where each axis points as its index grows.
"SAR", the usual one here: slices from foot to head, rows from back to front, columns from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import Problem
from contextseg.formats import ending, load, save

__all__ = ["AXIAL", "Volume", "axis_moves", "ending", "read", "read_labels", "resample", "resample_labels", "write"]

AXIAL = "SAR"
_OPPOSITE = dict(zip("RASLPI", "LPIRAS"))


@dataclass(frozen=True)
class Volume:
    """An image (C, D, H, W) or a label map (D, H, W), and its affine (4, 4) from (d, h, w, 1) to mm, RAS+.

    A 2-D image is one slice: D = 1.

    >>> Volume(np.zeros((4, 5, 6)), np.diag([3.0, 1, 2, 1])).spacing_mm
    (3.0, 1.0, 2.0)
    """

    array: np.ndarray
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """The grid: (D, H, W), without channels."""
        d, h, w = self.array.shape[-3:]
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along D, H and W."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def orientation(self) -> str:
        """Where D, H and W point, nearest anatomical direction: "SAR" and the like; oblique axes take the closest."""
        from nibabel.orientations import aff2axcodes  # one direction for each axis, even at 45 degrees

        return "".join(aff2axcodes(self.affine))

    def oriented(self, orientation: str) -> Volume:
        """The same scan with its axes permuted and flipped to point along `orientation`; no voxel changes.

        Raises ValueError if `orientation` does not name three different axes.
        """
        order, flips = axis_moves(self.orientation, orientation)
        lead = self.array.ndim - 3
        array = np.transpose(self.array, [*range(lead), *(lead + i for i in order)])
        affine = self.affine[:, [*order, 3]].copy()
        for axis, flip in enumerate(flips):
            if flip:
                array = np.flip(array, lead + axis)
                affine[:3, 3] += affine[:3, axis] * (array.shape[lead + axis] - 1)
                affine[:3, axis] *= -1
        return Volume(array, affine)

    def cropped(self, box: Sequence[slice]) -> Volume:
        """The part inside `box` (three slices with start and stop, step 1), at the same place in the patient."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
        d, h, w = box
        return Volume(self.array[..., d, h, w], affine)

    def same_grid(self, other: Volume, tolerance_mm: float = 0.1) -> bool:
        """Whether both have the same shape and every voxel lies at the same place to within `tolerance_mm`."""
        return self.shape == other.shape and self.apart_mm(other) <= tolerance_mm

    def apart_mm(self, other: Volume) -> float:
        """How far apart a voxel of this grid and the one with the same index in `other` can lie: at a corner."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1.0])).reshape(4, -1)
        return float(np.linalg.norm((self.affine - other.affine) @ corners, axis=0).max())

    def with_array(self, array: np.ndarray) -> Volume:
        """Another array on the same grid."""
        return replace(self, array=array)


def axis_moves(source: str, target: str) -> tuple[list[int], list[bool]]:
    """How axes that point along `source` come to point along `target`: their order, then which to flip.

    >>> axis_moves("SAR", "LPS")
    ([2, 1, 0], [True, True, False])
    """
    letters = [letter if letter in source else _OPPOSITE.get(letter, "?") for letter in target]
    if sorted(letters) != sorted(source) or len(target) != 3:
        raise ValueError(f"{target!r} is not an orientation; three of R/L, A/P and S/I, such as 'SAR'")
    return [source.index(letter) for letter in letters], [letter not in source for letter in target]


# --- reading --------------------------------------------------------------------------------------------------------


def read(*paths: str | Path) -> Volume:
    """An image (C, D, H, W): one file or DICOM folder for each channel, or one file that holds them all.

    The array keeps the file's number type where there is no scaling. Raises `Problem` for a file that is missing,
    truncated or of no known format, and for channels on different grids.
    """
    volumes = [_load(Path(path)) for path in paths]
    for path, volume in zip(paths[1:], volumes[1:]):
        if not volume.same_grid(volumes[0]):
            raise Problem(path, f"its grid differs from that of {paths[0]}", "resample the channels onto one grid")
    if len(volumes) == 1:
        return volumes[0]
    return volumes[0].with_array(np.concatenate([v.array for v in volumes]))


def read_labels(path: str | Path) -> Volume:
    """A label map (D, H, W) of integers, as int16 or, for larger values, int32.

    Raises `Problem` for a file that cannot be read, has several channels, or holds values that are not whole numbers.
    """
    volume = _load(Path(path))
    if len(volume.array) != 1 and not (volume.array == volume.array[:1]).all():  # grey pictures saved as RGB are fine
        raise Problem(path, f"a label map with {len(volume.array)} channels", "store one integer label for each voxel")
    array = volume.array[0]
    if array.dtype.kind == "f":
        whole = np.rint(array)
        with np.errstate(invalid="ignore"):
            off = ~(np.abs(array - whole) <= 0.01)  # a scaled file holds 1.00002 for 1; NaN and infinity are off too
        if off.any():
            examples = ", ".join(f"{value:.3g}" for value in np.unique(array[off])[:3])
            what = (
                f"{off.sum()} voxel{'s' if off.sum() > 1 else ''} whose label is not a whole number, such as {examples}"
            )
            raise Problem(path, what, "save the labels as integers; resample them without interpolation")
        array = whole
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < -(2**31) or high >= 2**31:
        raise Problem(path, f"label values from {low} to {high}", "use small whole numbers, one for each class")
    fits = low >= -(2**15) and high < 2**15
    return volume.with_array(array.astype(np.int16 if fits else np.int32, copy=False))


def _load(path: Path) -> Volume:
    return Volume(*load(path))


def write(path: str | Path, volume: Volume) -> None:
    """Write a label map (D, H, W) or an image (C, D, H, W), atomically; NIfTI by nibabel, the rest by SimpleITK.

    The number type is kept (bool becomes uint8, float16 float32). TIFF and pictures keep the array alone: their affine
    is lost. Raises `Problem` for an ending that cannot hold the array, and if the disk is full or cannot be written to.
    """
    save(Path(path), volume.array, volume.affine)


# --- resampling -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _interpolation(n: int, new: int, order: int) -> np.ndarray:
    """(new, n): one row of weights for each new sample; scipy's spline, read off by zooming unit impulses."""
    from scipy import ndimage

    if n == new:
        return np.eye(n, dtype=np.float32)
    weights = ndimage.zoom(np.eye(n), (new / n, 1), order=order, mode="nearest", grid_mode=True)
    return weights.astype(np.float32)


def resample(array: np.ndarray, shape: Sequence[int], order: int | Sequence[int] = 3) -> np.ndarray:
    """Resample (..., D, H, W) to the grid `shape` over the same extent, float32.

    `order` is the spline's, one number or one for each axis: 0 nearest, 1 linear, 3 cubic. A spline on a regular grid
    is separable, so this is three matrix products, equal to `scipy.ndimage.zoom(mode="nearest", grid_mode=True)` to
    rounding at a tenth of its time (`benchmarks/`). Unlike nnU-Net's, the result is not clipped to the input's range.
    """
    orders = [order] * 3 if isinstance(order, int) else list(order)
    out: Any = np.ascontiguousarray(array, dtype=np.float32)
    lead = out.shape[:-3]
    axes = sorted(range(3), key=lambda i: shape[i] / out.shape[i - 3])  # shrinking axes first: less work after
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


def resample_labels(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample a label map (D, H, W) to `shape`: each value's mask is resampled linearly and the largest wins.

    Each value is handled inside its own box, so that a hundred small organs cost little more than one. The type is
    kept.
    """
    if tuple(label.shape) == tuple(shape):
        return label
    scale = np.array(label.shape) / np.array(shape)
    values, counts = np.unique(label, return_counts=True)
    order = np.argsort(-counts)
    out = np.full(tuple(shape), values[order[0]], label.dtype)
    best = np.full(tuple(shape), np.nan, np.float32)
    common = label == values[order[0]]
    for value in values[order[1:]]:
        where = label == value
        box = []
        for axis in range(3):
            hit = np.flatnonzero(where.any(axis=tuple({0, 1, 2} - {axis})))
            low = int(np.floor((hit[0] - 0.5) / scale[axis] - 1))
            high = int(np.ceil((hit[-1] + 1.5) / scale[axis] + 1))
            box.append(slice(max(low, 0), min(high, shape[axis])))
        inside = tuple(box)
        best[inside] = np.where(np.isnan(best[inside]), _linear_part(common, shape, inside), best[inside])
        share = _linear_part(where, shape, inside)
        take = share >= best[inside]  # a tie goes to the rarer value: the other way organs shrink
        out[inside][take] = value
        best[inside][take] = share[take]
    return out


def _linear_part(mask: np.ndarray, shape: Sequence[int], box: tuple[slice, ...]) -> np.ndarray:
    """The part `box` of a mask resampled linearly to `shape`, float32."""
    rows = [_interpolation(n, new, 1)[s] for n, new, s in zip(mask.shape, shape, box)]
    used = [np.flatnonzero(r.any(0)) for r in rows]
    spans = [slice(int(u[0]), int(u[-1]) + 1) for u in used]
    out: Any = mask[tuple(spans)].astype(np.float32)
    d, h, w = (np.ascontiguousarray(r[:, s]) for r, s in zip(rows, spans))
    out = h @ (out @ w.T)
    return (d @ out.reshape(len(out), -1)).reshape(len(d), *out.shape[1:])
