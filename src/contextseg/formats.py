"""The files that scans come in: an array (C, D, H, W) and its affine, in and out.

NIfTI is read by nibabel (with isal, which unpacks twice as fast as zlib), everything else by
SimpleITK, DICOM series too. `volume` is what the other modules use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import read_json, replacing
from contextseg.errors import ContextsegError

NIFTI = (".nii.gz", ".nii")
WRITABLE = (*NIFTI, ".mha", ".nrrd", ".tif", ".tiff", ".png")
# The headers of pictures speak of print, not of patients.
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")
_NO_SIZE = "the affine in its header is degenerate: voxels have no size or no direction"
_ONE_NUMBER = "save one number for each voxel, a file for each channel"


def ending(path: str | Path) -> str:
    """The ending of a scan file, with both parts of `.nii.gz`.

    Args:
        path: A file or a folder.

    Returns:
        The ending with its dot; "" for a folder (a DICOM series).

    Example:
        >>> ending("a.b/scan_0000.nii.gz"), ending("scan.mha")
        ('.nii.gz', '.mha')
    """
    name = Path(path).name
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


# --- reading --------------------------------------------------------------------------------------


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one file or DICOM folder.

    Args:
        path: A file of any format that nibabel (NIfTI) or SimpleITK (all others) reads, or a
            folder that holds one DICOM series.

    Returns:
        The array (C, D, H, W), and the affine (4, 4) from (d, h, w, 1) to mm, RAS+. The array
        keeps the file's number type where the file has no scaling.

    Raises:
        ContextsegError: The file is missing, truncated, damaged, without a geometry, or of no
            known format.
    """
    if not path.exists():
        raise ContextsegError(
            path, "the file does not exist", "check the path, and that the data set is complete"
        )
    with _damage_is_named(path):
        if ending(path) in NIFTI:
            return _read_nifti(path)
        return _read_itk(path)


def from_nibabel(image: Any, where: str | Path = "nibabel image") -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of a nibabel image, as `load` gives them for its file.

    Args:
        image: A nibabel image of two or three dimensions, and one more for channels.
        where: Name of the image in error messages.

    Returns:
        The array (C, D, H, W), and the affine (4, 4) from (d, h, w, 1) to mm, RAS+.

    Raises:
        ContextsegError: The image holds colours or complex numbers, has other dimensions or a
            degenerate affine, or its file is damaged.
    """
    with _damage_is_named(where):
        array = _nibabel_array(image, where)
        affine = _nibabel_affine(image, array.shape[1], where)
    return array, affine[:, [2, 1, 0, 3]]


def from_itk(image: Any, where: str | Path = "SimpleITK image") -> tuple[np.ndarray, np.ndarray]:
    """Array and affine of a SimpleITK image, as `load` gives them for its file.

    Args:
        image: A SimpleITK image of two or three dimensions. Its components are channels, and so is
            a fourth dimension.
        where: Name of the image in error messages.

    Returns:
        The array (C, D, H, W), and the affine (4, 4) from (d, h, w, 1) to mm, RAS+.

    Raises:
        ContextsegError: The image holds complex numbers or run-length labels, or has other
            dimensions.
    """
    array = _itk_array(image, where)
    affine = _itk_affine(image)
    if not _upright(affine):
        raise ContextsegError(where, _NO_SIZE, "write the spacing into the header")
    return array, affine[:, [2, 1, 0, 3]]


@contextmanager
def _damage_is_named(where: str | Path) -> Iterator[None]:
    """Turn what the readers raise for a damaged file into a `ContextsegError` about `where`."""
    try:
        yield
    except PermissionError as error:
        raise ContextsegError(
            where, "no permission to read it", "change the file's permissions"
        ) from error
    except Exception as error:
        # nibabel and the unpackers raise classes of their own.
        of_a_reader = type(error).__module__.split(".")[0] in ("nibabel", "zlib", "isal")
        usual = isinstance(error, EOFError | OSError | ValueError | RuntimeError)
        if not of_a_reader and not usual:
            raise
        what = f"cannot be read, it looks truncated or damaged ({_reason(error)})"
        raise ContextsegError(where, what, "copy or export the file again") from error


def _reason(error: Exception) -> str:
    """What an exception says, without ITK's places in its source."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    noise = ("Exception thrown", "Reason:")
    sentences = [line for line in lines if line and not line.startswith(noise)]
    return " ".join(sentences[:2])[:200] or type(error).__name__


def _upright(affine: np.ndarray) -> bool:
    """Whether the three axes have lengths, and directions that differ."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


# --- nibabel --------------------------------------------------------------------------------------


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel
    from isal import igzip

    image: Any
    if ending(path) == ".nii.gz":
        with igzip.open(path, "rb") as file:
            content = file.read()
        header_sizes = (int.from_bytes(content[:4], order) for order in ("little", "big"))
        image_class = nibabel.Nifti2Image if 540 in header_sizes else nibabel.Nifti1Image
        image = image_class.from_bytes(content)
        size = len(content)
    else:
        image = nibabel.load(path, mmap=False)
        size = path.stat().st_size

    voxels = math.prod(int(n) for n in image.shape)
    need = int(image.header["vox_offset"]) + voxels * image.get_data_dtype().itemsize
    if size < need:
        raise EOFError(f"{size} bytes of {need}")
    return from_nibabel(image, path)


def _nibabel_array(image: Any, where: str | Path) -> np.ndarray:
    """(C, D, H, W) in native byte order."""
    raw = image.dataobj
    kind = image.get_data_dtype().kind if not isinstance(raw, np.ndarray) else raw.dtype.kind
    if kind not in "biuf":
        raise ContextsegError(where, "colours or complex numbers", _ONE_NUMBER)
    array = _unscaled(raw)
    if array.ndim == 5 and array.shape[3] == 1:  # a vector image
        array = array[..., 0, :]
    if not 2 <= array.ndim <= 4:
        raise ContextsegError(
            where, f"{array.ndim} dimensions", "save two or three, and one more for channels"
        )
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    array = array.transpose(3, 2, 1, 0)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unscaled(raw: Any) -> Any:
    """The numbers of a nibabel data object; scaled ones in float32, half the size of nibabel's."""
    from nibabel.arrayproxy import ArrayProxy

    if type(raw) is not ArrayProxy or (raw.slope, raw.inter) == (1, 0):
        return np.asarray(raw)
    return raw.get_unscaled() * np.float32(raw.slope) + np.float32(raw.inter)


def _nibabel_affine(image: Any, slices: int, where: str | Path) -> np.ndarray:
    """The first of an image's affines that can be inverted, in the order (w, h, d).

    A single slice may lack its thickness.
    """
    candidates: list[Callable[[], Any]] = [lambda: image.affine]
    for name in ("get_best_affine", "get_qform"):
        if hasattr(image.header, name):
            candidates.append(getattr(image.header, name))

    for affine_of in candidates:
        affine = affine_of()
        if affine is None:
            continue
        affine = np.array(affine, float)
        if slices == 1 and not affine[:3, 2].any():
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1
        if np.isfinite(affine).all() and _upright(affine):
            return affine
    raise ContextsegError(where, _NO_SIZE, "write the spacing into the header")


# --- SimpleITK ------------------------------------------------------------------------------------


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.is_dir():
        return from_itk(_read_series(path), path)
    image = sitk.ReadImage(str(path))
    if ending(path).lower() not in _PICTURES:
        return from_itk(image, path)

    _refuse_truncated(path)
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([*_picture_spacing(path), 1.0])
    if not _upright(affine):
        raise ContextsegError(path, _NO_SIZE, "write the spacing into the header")
    return _itk_array(image, path), affine[:, [2, 1, 0, 3]]


def _read_series(folder: Path) -> Any:
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        what = f"{len(series)} DICOM series in this folder"
        raise ContextsegError(folder, what, "give each scan a folder with one series")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    image = sitk.ReadImage(files)
    _refuse_uneven(folder, files, image)
    return image


def _itk_array(image: Any, where: str | Path) -> np.ndarray:
    """(C, D, H, W)."""
    import SimpleITK as sitk

    kind = image.GetPixelIDTypeAsString()
    if kind.startswith("label"):
        raise ContextsegError(where, f"run-length labels ({kind})", "cast it to sitkUInt8")
    if "complex" in kind:
        raise ContextsegError(where, "complex numbers", _ONE_NUMBER)

    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None]

    dims = image.GetDimension()
    if dims == 2:
        return array[:, None]
    if dims == 3:
        return array
    if dims == 4 and len(array) == 1:  # the fourth axis is the slowest: channels or time
        return array[0]
    raise ContextsegError(
        where, f"{dims} dimensions", "save two or three, and one more for channels"
    )


def _itk_affine(image: Any) -> np.ndarray:
    """(4, 4) from (w, h, d, 1) to mm, RAS+."""
    dims = image.GetDimension()
    used = min(dims, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:used, :used]
    affine[:used, :used] = direction * np.array(image.GetSpacing())[:used]
    affine[:used, 3] = image.GetOrigin()[:used]
    # ITK counts millimetres to the left and to the back.
    return np.diag([-1.0, -1, 1, 1]) @ affine


def _refuse_uneven(folder: Path, files: tuple[str, ...], image: Any) -> None:
    """Refuse a DICOM series with a gap or a double, whose slices would be read as if even."""
    import SimpleITK as sitk

    if not image.HasMetaDataKey("ITK_non_uniform_sampling_deviation"):
        return
    places = []
    for file in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(file)
        reader.ReadImageInformation()
        places.append(np.dot(reader.GetOrigin(), image.GetDirection()[2::3]))
    steps = np.abs(np.diff(places))
    usual = float(np.median(steps))
    worst = int(np.abs(steps - usual).argmax())
    if abs(steps[worst] - usual) > 0.1 * usual:
        what = (
            f"slices {worst + 1} and {worst + 2} lie {steps[worst]:.4g} mm apart, "
            f"the others {usual:.4g} mm"
        )
        raise ContextsegError(
            folder, what, "look for missing or double slices, and export the series again"
        )


def _refuse_truncated(path: Path) -> None:
    """Raise OSError for a truncated picture, which ITK fills up with whatever lies in memory."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            for i in range(getattr(picture, "n_frames", 1)):
                picture.seek(i)
                picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass  # a kind or a size that Pillow does not know: ITK has read it


def _picture_spacing(path: Path) -> list[float]:
    """Spacing (w, h, d) from the JSON file beside a picture, as nnU-Net writes it; else 1 mm.

    That file is `CASE.json`, {"spacing": [z, y, x]}. Dots per inch are no millimetres.
    """
    name = path.name[: -len(path.suffix)]
    case = re.sub(r"_[0-9]{4}$", "", name)
    for beside in (path.with_name(f"{name}.json"), path.with_name(f"{case}.json")):
        content = read_json(beside) if beside.is_file() else None
        if isinstance(content, dict) and len(content.get("spacing", ())) == 3:
            return [float(s) for s in content["spacing"][::-1]]
    return [1.0, 1.0, 1.0]


# --- writing --------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write an array and its affine, atomically.

    Args:
        path: File to write; its ending, one of `WRITABLE`, chooses the format.
        array: (D, H, W) or (C, D, H, W). bool is written as uint8, float16 as float32.
        affine: (4, 4) from (d, h, w, 1) to mm, RAS+.

    Raises:
        ContextsegError: The format cannot hold the array, or the disk cannot.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if ending(path) in NIFTI:
        _write_nifti(path, array, affine)
    else:
        _write_itk(path, array, affine)


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel
    from isal import igzip

    if array.ndim == 4 and len(array) > 1:
        data = np.moveaxis(array.T, -1, 3)
    else:
        data = array.reshape(array.shape[-3:]).T
    affine = affine[:, [2, 1, 0, 3]]
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
    kind = ending(path)
    if kind not in WRITABLE or (kind == ".png" and array.shape[-3] > 1):
        raise ContextsegError(
            path,
            f"an array of shape {array.shape} is not written as {kind!r}",
            "choose .nii.gz or .mha",
        )

    last = np.moveaxis(array, 0, -1) if several else array.reshape(array.shape[-3:])
    image = sitk.GetImageFromArray(last, isVector=several)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    if kind == ".png":
        image = image[:, :, 0]

    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            written = _read_itk(temporary)[0]
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ContextsegError(path, *_not_written(kind, array, reason)) from error
        # On a full disk most of ITK's writers leave half a file and say nothing.
        if not np.array_equal(written.ravel(), array.ravel(), equal_nan=True):
            reason = "it does not read back as it was"
            raise ContextsegError(path, *_not_written(kind, array, reason))


def _not_written(kind: str, array: np.ndarray, reason: str) -> tuple[str, str]:
    remedy = (
        f"see that the disk has space, and that {kind} files can hold {array.dtype} numbers; "
        ".nii.gz can"
    )
    return f"cannot be written ({reason[:200]})", remedy
