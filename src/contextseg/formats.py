"""The files that scans come in: an array (C, D, H, W) and its affine, in and out. `volume` is what the others use.

NIfTI by nibabel (with isal, which unpacks twice as fast as zlib); everything else, DICOM series too, by SimpleITK.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import Problem, read_json, replacing

NIFTI = (".nii.gz", ".nii")
WRITABLE = (*NIFTI, ".mha", ".nrrd", ".tif", ".tiff", ".png")
_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff")  # whose headers speak of print, not of patients
_NO_SIZE = "the affine in its header is degenerate: voxels have no size or no direction"


def ending(path: str | Path) -> str:
    """A scan file's ending, with both parts of `.nii.gz`; "" for a folder (a DICOM series).

    >>> ending("a.b/scan_0000.nii.gz"), ending("scan.mha")
    ('.nii.gz', '.mha')
    """
    name = Path(path).name
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(array (C, D, H, W), affine (4, 4) from (d, h, w, 1) to mm, RAS+) of one file or DICOM folder.

    Raises `Problem` for what is missing, truncated, damaged, without a geometry, or of no known format.
    """
    if not path.exists():
        raise Problem(path, "the file does not exist", "check the path, and that the data set is complete")
    try:
        return _read_nifti(path) if ending(path) in NIFTI else _read_itk(path)
    except PermissionError as error:
        raise Problem(path, "no permission to read it", "change the file's permissions") from error
    except Exception as error:
        theirs = type(error).__module__.split(".")[0] in ("nibabel", "zlib", "isal")  # they raise classes of their own
        if not theirs and not isinstance(error, EOFError | OSError | ValueError | RuntimeError):
            raise
        lines = [line.strip(" -") for line in str(error).splitlines()]
        told = [line for line in lines if line and not line.startswith(("Exception thrown", "Reason:"))]
        reason = " ".join(told[:2])[:200] or type(error).__name__
        what = f"cannot be read, it looks truncated or damaged ({reason})"
        raise Problem(path, what, "copy or export the file again") from error


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel
    from isal import igzip

    image: Any
    if ending(path) == ".nii.gz":
        with igzip.open(path, "rb") as file:
            content = file.read()
        second = 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))  # the header's size
        image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_bytes(content)
        size = len(content)
    else:
        image = nibabel.load(path, mmap=False)
        size = path.stat().st_size
    need = int(image.header["vox_offset"]) + math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    if size < need:
        raise EOFError(f"{size} bytes of {need}")
    if image.get_data_dtype().kind not in "biuf":
        raise Problem(path, "colours or complex numbers", "save one number for each voxel, a file for each channel")
    raw = image.dataobj
    if (raw.slope, raw.inter) == (1, 0):
        array: Any = np.asarray(raw)
    else:
        array = raw.get_unscaled() * np.float32(raw.slope) + np.float32(raw.inter)
    if array.ndim == 5 and array.shape[3] == 1:  # a vector image
        array = array[..., 0, :]
    if not 2 <= array.ndim <= 4:
        raise Problem(path, f"{array.ndim} dimensions", "save two or three, and one more for channels")
    array = array.reshape(array.shape + (1,) * (4 - array.ndim))
    array = array.transpose(3, 2, 1, 0)
    affine = _nifti_affine(path, image, array.shape[1])
    return array.astype(array.dtype.newbyteorder("="), copy=False), affine[:, [2, 1, 0, 3]]


def _nifti_affine(path: Path, image: Any, slices: int) -> np.ndarray:
    """The first of a header's two affines that can be inverted; a single slice may lack its thickness."""
    for affine_of in (lambda: image.affine, image.header.get_qform):
        affine = np.array(affine_of(), float)
        if slices == 1 and not affine[:3, 2].any():
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1
        if np.isfinite(affine).all() and _upright(affine):
            return affine
    raise Problem(path, _NO_SIZE, "write the spacing into the header")


def _upright(affine: np.ndarray) -> bool:
    """Whether the three axes have lengths, and directions that differ."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.min() > 1e-6 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if path.is_dir():
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
        if len(series) != 1:
            raise Problem(path, f"{len(series)} DICOM series in this folder", "give each scan a folder with one series")
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
        image = sitk.ReadImage(files)
        _even(path, files, image)
    else:
        image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    if ending(path).lower() in _PICTURES:
        _see_that_it_is_whole(path)
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
    if ending(path).lower() in _PICTURES:
        affine = np.diag([*_tiff_spacing(path), 1.0])
    affine = np.diag([-1.0, -1, 1, 1]) @ affine  # ITK counts millimetres to the left and to the back
    if not _upright(affine):
        raise Problem(path, _NO_SIZE, "write the spacing into the header")
    return array, affine[:, [2, 1, 0, 3]]


def _even(path: Path, files: tuple[str, ...], image: Any) -> None:
    """Refuse a DICOM series with a gap or a double: its slices would be read as if they lay at even steps."""
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
        what = f"slices {worst + 1} and {worst + 2} lie {steps[worst]:.4g} mm apart, the others {usual:.4g} mm"
        raise Problem(path, what, "look for missing or double slices, and export the series again")


def _see_that_it_is_whole(path: Path) -> None:
    """Raise OSError for a truncated picture: ITK fills up what is missing with whatever lies in memory."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            for i in range(getattr(picture, "n_frames", 1)):
                picture.seek(i)
                picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass  # a kind or a size that Pillow does not know: ITK's word stands


def _tiff_spacing(path: Path) -> list[float]:
    """What nnU-Net's `CASE.json` beside a TIFF says ({"spacing": [z, y, x]}), as x, y, z; else 1 mm, not the dpi."""
    name = path.name[: -len(path.suffix)]
    for beside in (path.with_name(f"{name}.json"), path.with_name(f"{re.sub(r'_[0-9]{4}$', '', name)}.json")):
        content = read_json(beside) if beside.is_file() else None
        if isinstance(content, dict) and len(content.get("spacing", ())) == 3:
            return [float(s) for s in content["spacing"][::-1]]
    return [1.0, 1.0, 1.0]


# --- writing ----------------------------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write (D, H, W) or (C, D, H, W), atomically. Raises `Problem` where the format or the disk cannot hold it."""
    if array.dtype in (np.bool_, np.float16):
        array = array.astype(np.uint8 if array.dtype == np.bool_ else np.float32)
    if ending(path) in NIFTI:
        _write_nifti(path, array, affine)
    else:
        _write_itk(path, array, affine)


def _write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel
    from isal import igzip

    data = np.moveaxis(array.T, -1, 3) if array.ndim == 4 and len(array) > 1 else array.reshape(array.shape[-3:]).T
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
        raise Problem(path, f"an array of shape {array.shape} is not written as {kind!r}", "choose .nii.gz or .mha")
    last = np.moveaxis(array, 0, -1) if several else array.reshape(array.shape[-3:])
    image = sitk.GetImageFromArray(last, isVector=several)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image[:, :, 0] if kind == ".png" else image, str(temporary), useCompression=True)
            whole = np.array_equal(_read_itk(temporary)[0].ravel(), array.ravel(), equal_nan=True)
        except RuntimeError as error:
            raise Problem(path, *_not_written(kind, array, str(error).strip().splitlines()[-1])) from error
        if not whole:  # on a full disk most of ITK's writers leave half a file and say nothing
            raise Problem(path, *_not_written(kind, array, "it does not read back as it was"))


def _not_written(kind: str, array: np.ndarray, reason: str) -> tuple[str, str]:
    remedy = f"see that the disk has space, and that {kind} files can hold {array.dtype} numbers; .nii.gz can"
    return f"cannot be written ({reason[:200]})", remedy
