"""Scans in and out: an array, and where each of its voxels lies in the patient. All millimetres live here.

Axes are (D, H, W) with D slowest. `affine` maps a voxel index (d, h, w, 1) to millimetres in the patient, RAS+ (x to the
right, y to the front, z to the head). An orientation is three letters: where each axis points as its index grows. "SAR",
the usual one here: slices from foot to head, rows from back to front, columns from left to right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import Problem, replacing

AXIAL = "SAR"
NIFTI = (".nii.gz", ".nii")
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
        return Volume(self.array[(..., *box)], affine)

    def same_grid(self, other: Volume, tolerance_mm: float = 0.1) -> bool:
        """Whether both have the same shape and every voxel lies at the same place to within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1.0])).reshape(4, -1)
        return bool(np.abs((self.affine - other.affine) @ corners).max() <= tolerance_mm)

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


# --- reading ------------------------------------------------------------------------------------------------------------


def ending(path: str | Path) -> str:
    """A scan file's ending, with both parts of `.nii.gz`; "" for a folder (a DICOM series).

    >>> ending("a.b/scan_0000.nii.gz"), ending("scan.mha")
    ('.nii.gz', '.mha')
    """
    name = Path(path).name
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def read(*paths: str | Path) -> Volume:
    """An image (C, D, H, W): one file or DICOM folder for each channel, or one file that holds them all.

    The array keeps the file's number type where there is no scaling. Raises `Problem` for a file that is missing,
    truncated or of no known format, and for channels on different grids.
    """
    volumes = [_read_one(Path(path)) for path in paths]
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
    volume = _read_one(Path(path))
    if len(volume.array) != 1:
        raise Problem(path, f"a label map with {len(volume.array)} channels", "store one integer label for each voxel")
    array = volume.array[0]
    if array.dtype.kind == "f":
        whole = np.nan_to_num(np.rint(array), nan=0.5)
        if not np.array_equal(whole, array):
            raise Problem(
                path, "label values that are not whole numbers", "save the labels as integers, without interpolation"
            )
        array = whole
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    fits = -(2**15) <= low and high < 2**15
    return volume.with_array(array.astype(np.int16 if fits else np.int32, copy=False))


def _read_one(path: Path) -> Volume:
    if not path.exists():
        raise Problem(path, "the file does not exist", "check the path, and that the data set is complete")
    try:
        return _read_nifti(path) if ending(path) in NIFTI else _read_itk(path)
    except (EOFError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
        raise Problem(
            path, f"cannot be read, it looks truncated or damaged ({reason})", "copy or export the file again"
        ) from error
    except Exception as error:  # nibabel and zlib raise classes of their own
        if type(error).__module__.split(".")[0] not in ("nibabel", "zlib", "isal"):
            raise
        raise Problem(path, f"cannot be read, it looks damaged ({error})", "copy or export the file again") from error


def _read_nifti(path: Path) -> Volume:
    import nibabel
    from isal import igzip

    if ending(path) == ".nii.gz":
        with igzip.open(path, "rb") as file:
            image = nibabel.Nifti1Image.from_bytes(file.read())
    else:
        image = nibabel.load(path)
    slope, inter = image.dataobj.slope, image.dataobj.inter
    plain = (slope, inter) == (1, 0)
    array = (
        np.asanyarray(image.dataobj) if plain else image.dataobj.get_unscaled() * np.float32(slope) + np.float32(inter)
    )
    if array.ndim == 5 and array.shape[3] == 1:  # a vector image
        array = array[..., 0, :]
    if not 2 <= array.ndim <= 4:
        raise ValueError(f"{array.ndim} dimensions")
    if array.dtype.fields is not None:
        raise ValueError("a colour image")
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    array = array.transpose(3, 2, 1, 0)
    return Volume(
        array.astype(array.dtype.newbyteorder("="), copy=False), np.asarray(image.affine, float)[:, [2, 1, 0, 3]]
    )


def _read_itk(path: Path) -> Volume:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise Problem(path, f"{len(series)} DICOM series in this folder", "give each scan a folder with one series")
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0]))
    else:
        image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None]
    dims = image.GetDimension()
    if dims == 2:
        array = array[:, None]
    elif dims == 4 and array.shape[0] == 1:  # the fourth axis is the slowest: channels or time
        array = array[0]
    elif dims != 3:
        raise ValueError(f"{dims} dimensions")
    use = min(dims, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:use, :use]
    affine[:use, :use] = direction * np.array(image.GetSpacing())[:use]
    affine[:use, 3] = image.GetOrigin()[:use]
    affine = np.diag([-1.0, -1, 1, 1]) @ affine  # ITK counts millimetres to the left and to the back
    return Volume(array, affine[:, [2, 1, 0, 3]])


def write(path: str | Path, volume: Volume) -> None:
    """Write a label map (D, H, W) or an image (C, D, H, W), atomically; NIfTI by nibabel, any other ending by SimpleITK.

    The number type is kept (bool becomes uint8). Raises `Problem` if the disk is full or cannot be written to.
    """
    array = volume.array.astype(np.uint8) if volume.array.dtype == bool else volume.array
    if ending(path) not in NIFTI:
        return _write_itk(Path(path), array, volume.affine)
    import nibabel
    from isal import igzip

    data = np.moveaxis(array.T, -1, 3) if array.ndim == 4 and len(array) > 1 else array.reshape(volume.shape).T
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(data, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    content = image.to_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(igzip.compress(content, 1) if ending(path) == ".nii.gz" else content)


def _write_itk(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import SimpleITK as sitk

    several = array.ndim == 4 and len(array) > 1
    image = sitk.GetImageFromArray(
        np.moveaxis(array, 0, -1) if several else array.reshape(array.shape[-3:]), isVector=several
    )
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


# --- resampling ---------------------------------------------------------------------------------------------------------


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

    `order` is the spline's, one number or one for each axis: 0 nearest, 1 linear, 3 cubic. A spline on a regular grid is
    separable, so this is three matrix products, equal to `scipy.ndimage.zoom(mode="nearest", grid_mode=True)` to rounding
    at a tenth of its time (`benchmarks/`). Unlike nnU-Net's, the result is not clipped to the input's range.
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

    Each value is handled inside its own box, so that a hundred small organs cost little more than one. The type is kept.
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
        take = share > best[inside]
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
