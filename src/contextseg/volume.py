"""Scans in and out: an array, and where each of its voxels lies in the patient.

Axes are (D, H, W) with D slowest. `affine` maps a voxel index (d, h, w, 1) to millimetres in the
patient, RAS+ (x to the right, y to the front, z to the head). An orientation is three letters:
where each axis points as its index grows. "SAR", the usual one here: slices from foot to head,
rows from back to front, columns from left to right. All millimetres live in this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import readable
from contextseg.errors import ContextsegError, plural
from contextseg.formats import Header, ending, from_itk, from_nibabel, load, save
from contextseg.grids import TOLERANCE_VOX, apart_mm, label_type, onto, same_grid
from contextseg.interop.reading import segmented, segmented_on
from contextseg.picture import axial_png
from contextseg.slabs import slabs

__all__ = [
    "AXIAL",
    "Header",
    "Volume",
    "as_labels",
    "as_volume",
    "axis_moves",
    "ending",
    "read",
    "read_labels",
    "write",
]

AXIAL = "SAR"
_OPPOSITE = dict(zip("RASLPI", "LPIRAS"))


@dataclass(frozen=True)
class Volume:
    """A scan or a label map, and where its voxels lie in the patient.

    See also `read` and `as_volume`, which make one from a file or an image in memory.

    Attributes:
        array: An image (C, D, H, W) or a label map (D, H, W). A 2-D image is one slice: D = 1.
        affine: (4, 4) from a voxel index (d, h, w, 1) to mm, RAS+.
        header: What the file that it came from says of this grid beyond the affine, written back
            when the volume is saved; None for an array, or where there is nothing to keep.

    Example:
        >>> volume = Volume(np.zeros((4, 5, 6), np.int16), np.diag([3.0, 1.0, 2.0, 1.0]))
        >>> volume
        Volume 4 x 5 x 6 int16, 3 x 1 x 2 mm, RAS
        >>> volume.spacing_mm
        (3.0, 1.0, 2.0)
    """

    array: np.ndarray
    affine: np.ndarray
    header: Header | None = None

    @property
    def doubts(self) -> tuple[tuple[str, str], ...]:
        """What the file leaves open, such as two affines that disagree: (what, remedy) pairs."""
        return () if self.header is None else self.header.doubts

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
        """Where D, H and W point: "SAR" and the like; oblique axes take the closest direction."""
        from nibabel.orientations import aff2axcodes  # three different axes, even at 45 degrees

        return "".join(letter or "?" for letter in aff2axcodes(self.affine))

    def oriented(self, orientation: str) -> Volume:
        """The same scan with its axes permuted and flipped; no voxel changes.

        Args:
            orientation: Where the new axes point, such as "SAR".

        Returns:
            A volume whose array is a view of this one's.

        Raises:
            ValueError: `orientation` does not name three different axes.
        """
        order, flips = axis_moves(self.orientation, orientation)
        lead = self.array.ndim - 3
        array = np.transpose(self.array, [*range(lead), *(lead + i for i in order)])
        index = np.zeros((4, 4))  # from a new index to the one now
        index[3, 3] = 1
        for axis, (source, flip) in enumerate(zip(order, flips)):
            index[source, axis] = -1 if flip else 1
            if flip:
                array = np.flip(array, lead + axis)
                index[source, 3] = array.shape[lead + axis] - 1
        return self._moved(array, index)

    def cropped(self, box: Sequence[slice]) -> Volume:
        """The part inside a box, at the same place in the patient.

        Args:
            box: Three slices along D, H and W, with start and stop, step 1.

        Returns:
            A volume whose array is a view of this one's.
        """
        index = np.eye(4)
        index[:3, 3] = [s.start for s in box]
        d, h, w = box
        return self._moved(self.array[..., d, h, w], index)

    def _moved(self, array: np.ndarray, index: np.ndarray) -> Volume:
        """Another part of this lattice; `index` (4, 4) leads from its indices to those of this."""
        header = None if self.header is None else self.header.moved(index)
        return Volume(array, self.affine @ index, header)

    def same_grid(self, other: Volume, tolerance_vox: float = TOLERANCE_VOX) -> bool:
        """Whether both have the same shape, and every voxel lies at the same place.

        Args:
            other: The volume to compare with, whose voxels are the unit.
            tolerance_vox: How far apart two voxels of the same index may lie along each axis.
        """
        return same_grid(self, other, tolerance_vox)

    def apart_mm(self, other: Volume) -> float:
        """Largest distance between voxels of the same index in both grids, found at a corner.

        Args:
            other: The volume to compare with, of the same shape.
        """
        return apart_mm(self, other)

    def with_array(self, array: np.ndarray) -> Volume:
        """Another array on the same grid, with the same header.

        Args:
            array: (D, H, W) or (C, D, H, W).
        """
        return replace(self, array=array)

    def save(self, path: str | Path) -> Path:
        """Write the volume to a file, as `write` does.

        Args:
            path: File to write; its ending chooses the format.

        Returns:
            `path`.

        Raises:
            ContextsegError: The format cannot hold the array, or the disk cannot.
        """
        write(path, self)
        return Path(path)

    def __repr__(self) -> str:
        channels = f"{plural(len(self.array), 'channel')} of " if self.array.ndim == 4 else ""
        if channels and len(self.array) == 1:
            channels = ""
        shape = " x ".join(map(str, self.array.shape[-3:]))
        spacing = " x ".join(f"{mm:.2f}".rstrip("0").rstrip(".") for mm in self.spacing_mm)
        return f"Volume {channels}{shape} {self.array.dtype}, {spacing} mm, {self.orientation}"

    def _repr_html_(self) -> str:
        """The middle axial slice and the text of `repr`, for notebooks."""
        from base64 import b64encode
        from html import escape

        caption = escape(repr(self))
        if self.array.ndim not in (3, 4) or 0 in self.array.shape:
            return caption
        labels = self.array.ndim == 3 and self.array.dtype.kind in "biu"
        known = "?" not in self.orientation
        turned = self.oriented("SPL") if known else self
        array = turned.array if self.array.ndim == 3 else turned.array[0]
        png = axial_png(array, turned.spacing_mm, labels)
        source = f"data:image/png;base64,{b64encode(png).decode()}"
        return (
            f'<figure style="margin:0"><img src="{source}" alt="axial slice">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


def axis_moves(source: str, target: str) -> tuple[list[int], list[bool]]:
    """How axes that point along `source` come to point along `target`.

    Args:
        source: Orientation of the axes now, such as "SAR".
        target: Orientation wanted.

    Returns:
        The order in which to take the axes, and which of them to flip then.

    Raises:
        ValueError: `target` is not three letters for three different axes.

    Example:
        >>> axis_moves("SAR", "LPS")
        ([2, 1, 0], [True, True, False])
    """
    letters = [letter if letter in source else _OPPOSITE.get(letter, "?") for letter in target]
    if sorted(letters) != sorted(source) or len(target) != 3:
        raise ValueError(
            f"{target!r} is not an orientation; three of R/L, A/P and S/I, such as 'SAR'"
        )
    order = [source.index(letter) for letter in letters]
    flips = [letter not in source for letter in target]
    return order, flips


# --- files ----------------------------------------------------------------------------------------


def read(*paths: str | Path, series: str = "") -> Volume:
    """Read an image from one file or several.

    Args:
        *paths: One file or DICOM folder for each channel, or one file that holds all channels.
        series: Which series of a DICOM folder, by its SeriesInstanceUID or SeriesNumber; "/2" after
            it is the second stack or time point of the series. "" for the only one.

    Returns:
        An image (C, D, H, W). The array keeps the file's number type where there is no scaling.

    Raises:
        ContextsegError: A file is missing, truncated or of no known format, or the channels lie on
            different grids.
    """
    return _channels([(path, _load(Path(path), series=series)) for path in paths])


@readable
def read_labels(path: str | Path, small: bool = False) -> Volume:
    """Read a label map.

    Args:
        path: A file or DICOM folder.
        small: Keep numbers of one byte as the file has them.

    Returns:
        A label map (D, H, W), int16 or, for larger values, int32.

    Raises:
        ContextsegError: The file cannot be read, has several channels that differ, or holds values
            that are not whole numbers.
    """
    return _whole_numbers(_load(Path(path), labels=True), path, small)


def write(path: str | Path, volume: Volume) -> None:
    """Write a label map (D, H, W) or an image (C, D, H, W), atomically.

    NIfTI is written by nibabel, the rest by SimpleITK. Whole numbers of a label map are written in
    the smallest type that holds them; other number types are kept (bool becomes uint8, float16
    float32). The header of the volume is written too: qform and sform with their codes and the
    units to NIfTI, the space to NRRD. TIFF and pictures keep the array alone: their affine is lost.

    Args:
        path: File to write; its ending chooses the format.
        volume: What to write.

    Raises:
        ContextsegError: The format cannot hold the array, or the disk is full or cannot be written
            to.
    """
    array = np.asarray(volume.array)
    if array.ndim == 3 and array.dtype.kind in "iu" and array.size:
        low, high = int(array.min()), int(array.max())
        smallest = label_type(high, signed=low < 0)
        fits = low >= np.iinfo(smallest).min and smallest.itemsize <= array.dtype.itemsize
        array = array.astype(smallest, copy=False) if fits else array
    save(Path(path), array, volume.affine, volume.header)


def _load(path: Path, labels: bool = False, series: str = "") -> Volume:
    found = segmented(path) if labels else None
    if found is not None:
        return Volume(found.array[None], found.affine, found.header)
    return Volume(*load(path, labels, series))


def _channels(images: Sequence[tuple[str | Path, Volume]]) -> Volume:
    """One image of all channels of (name, image) pairs that lie on one grid."""
    first_name, first = images[0]
    for name, image in images[1:]:
        if not image.same_grid(first):
            raise ContextsegError(
                name,
                f"its grid differs from that of {first_name}",
                "resample the channels onto one grid",
            )
    if len(images) == 1:
        return first
    return first.with_array(np.concatenate([image.array for _, image in images]))


def _whole_numbers(volume: Volume, where: str | Path, small: bool = False) -> Volume:
    """A label map (D, H, W), int16 or int32, of an image whose channels are the same."""
    channels = volume.array
    if len(channels) != 1 and not (channels == channels[:1]).all():  # grey pictures saved as RGB
        raise ContextsegError(
            where,
            f"a label map with {len(channels)} channels",
            "store one integer label for each voxel",
        )

    array = channels[0]
    if array.dtype.kind == "f":
        off = [part[_is_off(part)] for part in map(array.__getitem__, slabs(array.shape))]
        values = np.concatenate(off) if off else array.reshape(-1)[:0]
        if len(values):
            examples = ", ".join(f"{value:.3g}" for value in np.unique(values)[:3])
            voxels = plural(len(values), "voxel")
            raise ContextsegError(
                where,
                f"{voxels} whose label is not a whole number, such as {examples}",
                "save the labels as integers; resample them without interpolation",
            )
        array = np.rint(array)

    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < -(2**31) or high >= 2**31:
        raise ContextsegError(
            where,
            f"label values from {low} to {high}",
            "use whole numbers from 0 to 2147483647, one for each class",
        )
    if small and array.dtype.itemsize == 1 and array.dtype.kind in "iu":
        return volume.with_array(array)
    fits = low >= -(2**15) and high < 2**15
    return volume.with_array(array.astype(np.int16 if fits else np.int32, copy=False))


def _is_off(array: np.ndarray) -> np.ndarray:
    """Where numbers are not whole: a scaled file holds 1.00002 for 1. Nor are NaN and infinity."""
    with np.errstate(invalid="ignore"):
        off: np.ndarray = ~(np.abs(array - np.rint(array)) <= 0.01)
    return off


# --- anything that is an image --------------------------------------------------------------------


def as_volume(
    source: Any, spacing_mm: Sequence[float] | None = None, orientation: str = AXIAL
) -> Volume:
    """An image from whatever holds one.

    A SimpleITK or nibabel image gives exactly what reading its file gives. Neither library is
    imported for anything else.

    Args:
        source: A path, a `Volume`, a SimpleITK image, a nibabel image, an array (D, H, W) or
            (C, D, H, W), or a list of these, one for each channel. An array (D, H, W) is one
            channel, also inside a `Volume`.
        spacing_mm: Voxel size along D, H and W in millimetres; for arrays, and only there.
        orientation: Where the axes of an array point. The default is `AXIAL`; an axial scan from
            `SimpleITK.GetArrayFromImage` is often "SPL".

    Returns:
        An image (C, D, H, W). Its array shares memory with the source where it can.

    Raises:
        ContextsegError: The source is no image, cannot be read, has another number of dimensions,
            an axis of length 0, or voxels that are not real numbers; or `spacing_mm` is not three
            numbers above 0, is missing for an array, or is given for something else.

    Example:
        >>> as_volume(np.zeros((20, 64, 48), np.int16), spacing_mm=(5, 0.8, 0.8))
        Volume 20 x 64 x 48 int16, 5 x 0.8 x 0.8 mm, SAR
    """
    if isinstance(source, list | tuple):
        if not source:
            raise ContextsegError("scan", "an empty list", "give a scan, or one for each channel")
        if any(isinstance(channel, list | tuple) for channel in source):
            raise ContextsegError("scan", "a list of lists", "give a numpy array")
        volumes = [as_volume(channel, spacing_mm, orientation) for channel in source]
        return _channels([(_name(s, i), v) for i, (s, v) in enumerate(zip(source, volumes), 1)])

    array = _array_of(source)
    if array is not None:
        return _image(Volume(array, _affine(spacing_mm, orientation)), "array")
    if spacing_mm is not None:
        raise ContextsegError(
            f"spacing_mm={spacing_mm}", "the scan has a spacing of its own", "leave it out"
        )
    return _image(_volume_of(source), _name(source))


def as_labels(source: Any, like: Volume | None = None, outside: int = 0) -> Volume:
    """A label map from whatever holds one.

    Args:
        source: A path, a `Volume`, a SimpleITK image, a nibabel image, or an array (D, H, W).
        like: The scan that the labels belong to. An array takes its grid, and needs it; anything
            else is turned and placed onto it, see `grids.onto`. None takes the grid of the source.
        outside: Value of the voxels of `like` that the source does not cover.

    Returns:
        A label map (D, H, W), int16 or, for larger values, int32.

    Raises:
        ContextsegError: The source is no label map, cannot be read, holds values that are not whole
            numbers, or does not lie on the lattice of `like`.
    """
    name = _name(source)
    array = _array_of(source)
    contours = None if like is None else segmented_on(source, like)
    if contours is not None:
        found = Volume(contours.array[None], contours.affine, contours.header)
        labels = _whole_numbers(found, name)
    elif array is None:
        labels = _whole_numbers(_image(_volume_of(source, labels=True), name), name)
    elif like is None:
        raise ContextsegError(
            name, "an array does not say where its voxels lie", "give the scan too"
        )
    else:
        labels = _whole_numbers(_image(Volume(array, like.affine), name), name)

    if like is None:
        return labels
    if array is not None and labels.shape != like.shape:
        sizes = [" x ".join(map(str, volume.shape)) for volume in (labels, like)]
        what = f"its grid differs from the scan's ({sizes[0]} and {sizes[1]} voxels)"
        raise ContextsegError(name, what, "give an array of the scan's shape")
    return onto(labels, like, name, "scan", outside)


def _name(source: Any, channel: int | None = None) -> str:
    """What an error message calls a source."""
    if isinstance(source, str | Path):
        return str(source)
    if channel is not None:
        return f"channel {channel}"
    if _is_of(source, "nibabel") or _is_of(source, "SimpleITK"):
        return f"{type(source).__module__.split('.')[0]} image"
    return type(source).__name__


def _is_of(source: Any, package: str) -> bool:
    """Whether the class of `source`, or one that it derives from, is of that package."""
    return any(kind.__module__.split(".")[0] == package for kind in type(source).__mro__)


def _array_of(source: Any) -> np.ndarray | None:
    """A numpy array, or what turns itself into one; None for everything else."""
    if isinstance(source, np.ndarray):
        return source
    of_a_library = _is_of(source, "nibabel") or _is_of(source, "SimpleITK")
    if hasattr(source, "__array__") and not of_a_library:
        return np.asarray(source)
    return None


def _volume_of(source: Any, labels: bool = False) -> Volume:
    """The volume of anything but an array."""
    if isinstance(source, Volume):
        return source
    if isinstance(source, str | Path):
        return _load(Path(source), labels)
    if _is_of(source, "SimpleITK") and hasattr(source, "GetPixelIDTypeAsString"):
        return Volume(*from_itk(source))
    if _is_of(source, "nibabel") and hasattr(source, "dataobj"):
        return Volume(*from_nibabel(source, source.get_filename() or "nibabel image"))
    raise ContextsegError(
        type(source).__name__,
        "not an image",
        "give a file, a Volume, a SimpleITK or nibabel image, or a numpy array with spacing_mm",
    )


def _image(volume: Volume, where: str) -> Volume:
    """The volume as an image (C, D, H, W), after checks of its array and its affine."""
    array = np.asarray(volume.array)
    if array.dtype.kind not in "biuf":
        raise ContextsegError(where, f"voxels of type {array.dtype}", "give real numbers")
    if array.ndim not in (3, 4):
        raise ContextsegError(
            where,
            f"a {array.ndim}-D array",
            "give (D, H, W) or (C, D, H, W); one slice is (1, H, W)",
        )
    if 0 in array.shape:
        raise ContextsegError(
            where, f"an array of shape {array.shape}, without a voxel", "give at least one slice"
        )
    affine = np.asarray(volume.affine)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine):
        raise ContextsegError(
            where, "its affine is not an invertible 4 x 4 matrix", "give one from voxels to mm"
        )
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native is volume.array and native.ndim == 4:
        return volume
    return volume.with_array(native if native.ndim == 4 else native[None])


def _affine(spacing_mm: Sequence[float] | None, orientation: str) -> np.ndarray:
    """(4, 4) of an array whose first voxel lies at the origin."""
    if spacing_mm is None:
        raise ContextsegError(
            "array", "it does not say how large its voxels are", "give spacing_mm=(D, H, W)"
        )
    where, remedy = f"spacing_mm={spacing_mm}", "give the voxel size along D, H and W in mm"
    try:
        spacing = np.array(spacing_mm, float)
    except (TypeError, ValueError):
        raise ContextsegError(where, "spacing_mm is not three numbers", remedy) from None
    if spacing.shape != (3,):
        numbers = plural(spacing.size, "number")
        raise ContextsegError(where, f"spacing_mm has {numbers}, not 3", remedy)
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ContextsegError(where, "spacing_mm is not above 0", remedy)

    try:
        order, flips = axis_moves("RAS", orientation)
    except ValueError as error:
        raise ContextsegError(f"orientation={orientation}", str(error), "leave it out") from None
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * np.where(flips, -spacing, spacing)
    return affine
