"""What SimpleITK reads and writes: NRRD, MetaImage, pictures and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import replacing
from contextseg.errors import ContextsegError
from contextseg.formats import nrrd, pictures
from contextseg.formats.content import ending, not_an_image
from contextseg.formats.header import Header, as_matrix, upright
from contextseg.formats.nifti import NO_SIZE, ONE_NUMBER, Read
from contextseg.memory_errors import raise_memory_error

ITK_WRITABLE = (".mha", ".nrrd", ".tif", ".tiff", ".png")
_IMAGE_IO = {
    "NRRD": "NrrdImageIO",
    "MetaImage": "MetaImageIO",
    "PNG": "PNGImageIO",
    "TIFF": "TIFFImageIO",
    "BMP": "BMPImageIO",
    "JPEG": "JPEGImageIO",
    "VTK": "VTKImageIO",
}
_WRITER = {".mha": "MetaImage", ".nrrd": "NRRD", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


# --- reading --------------------------------------------------------------------------------------


def read_itk(path: Path, kind: str, labels: bool = False) -> Read:
    """Read a file by SimpleITK.

    Args:
        path: The file.
        kind: Its format, as `content.recognise` names it; "" lets ITK find out.
        labels: Whether it is a label map: then the numbers of a palette's colours are the labels.

    Returns:
        The array (C, D, H, W), the affine (4, 4) from (d, h, w, 1) to mm, RAS+, and the header.

    Raises:
        ContextsegError: No reader knows the file, or it holds no scan.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if kind in pictures.FORMATS:
        return _read_picture(path, kind, labels)
    fields = nrrd.fields(path) if kind in ("NRRD", "MetaImage") else {}
    if kind in ("NRRD", "MetaImage"):
        nrrd.refuse_unsound_header(path, kind, fields)
    nrrd.refuse_missing_voxels(path, fields)
    if kind == "MetaImage":
        nrrd.refuse_short_voxels(path, fields)
    array, affine, _ = from_itk(_image(path, kind), path)
    if kind == "NRRD":
        affine, header = nrrd.in_mm(affine, fields)
        return array, affine, header
    return array, affine, Header(kind or "ITK", as_matrix(affine))


def from_itk(image: Any, where: str | Path = "SimpleITK image") -> Read:
    """Array and affine of a SimpleITK image, as reading its file gives them.

    Args:
        image: A SimpleITK image of two or three dimensions. Its components are channels, and so is
            a fourth dimension; more dimensions may follow with one sample each.
        where: Name of the image in error messages.

    Returns:
        The array (C, D, H, W), the affine (4, 4) from (d, h, w, 1) to mm, RAS+, and None for the
        header, which SimpleITK does not keep.

    Raises:
        ContextsegError: The image holds complex numbers or run-length labels, or has other
            dimensions.
    """
    array = _array(image, where)
    affine = _affine(image)
    if not upright(affine):
        raise ContextsegError(where, NO_SIZE, "write the spacing into the header")
    return array, affine[:, [2, 1, 0, 3]], None


def holds_dicom(path: Path) -> bool:
    """Whether GDCM knows a file that begins with nothing known, such as DICOM without its mark.

    Args:
        path: The file.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return str(sitk.ImageFileReader.GetImageIOFromFileName(str(path))) == "GDCMImageIO"


def _image(path: Path, kind: str) -> Any:
    """A SimpleITK image, by the reader of a format whatever the file's name."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if kind in _IMAGE_IO:
        reader.SetImageIO(_IMAGE_IO[kind])
    elif not sitk.ImageFileReader.GetImageIOFromFileName(str(path)):
        raise not_an_image(path)
    return reader.Execute()


def _read_picture(path: Path, kind: str, labels: bool) -> Read:
    mode = pictures.mode(path)
    pictures.refuse_impossible_size(path)
    if mode in ("P", "PA"):
        array = pictures.read_palette(path, labels)
    elif mode == "LA":
        array = pictures.read_grey_with_alpha(path)
    else:
        image = _image(path, kind)
        pictures.refuse_truncated(path)
        array = pictures.without_constant_alpha(_array(image, path), path)
    affine = (_LPS_TO_RAS @ np.diag([*pictures.spacing(path), 1.0]))[:, [2, 1, 0, 3]]
    if not upright(affine):
        raise ContextsegError(path, NO_SIZE, "write the spacing into the header")
    doubts = (pictures.LOSSY,) if kind == "JPEG" else ()
    return array, affine, Header(kind, as_matrix(affine), doubts=doubts)


def _array(image: Any, where: str | Path) -> np.ndarray:
    """(C, D, H, W)."""
    import SimpleITK as sitk

    kind = image.GetPixelIDTypeAsString()
    if kind.startswith("label"):
        raise ContextsegError(where, f"run-length labels ({kind})", "cast it to sitkUInt8")
    if "complex" in kind:
        raise ContextsegError(where, "its voxels are complex numbers", ONE_NUMBER)

    array = sitk.GetArrayFromImage(image)
    several = image.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, -1, 0) if several else array[None]
    while array.ndim > 4 and array.shape[1] == 1:  # the slowest axes, with one sample each
        array = array[:, 0]
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        return array
    if array.ndim == 5 and not several:  # the fourth axis is channels or time
        return array[0]
    dims = image.GetDimension()
    raise ContextsegError(
        where, f"{dims} dimensions", "save two or three, and one more for channels"
    )


def _affine(image: Any) -> np.ndarray:
    """(4, 4) from (w, h, d, 1) to mm, RAS+."""
    dims = image.GetDimension()
    used = min(dims, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:used, :used]
    affine[:used, :used] = direction * np.array(image.GetSpacing())[:used]
    affine[:used, 3] = image.GetOrigin()[:used]
    # ITK counts millimetres to the left and to the back.
    return _LPS_TO_RAS @ affine


# --- writing --------------------------------------------------------------------------------------


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, header: Header | None) -> None:
    """Write a file by SimpleITK, and read it back.

    Args:
        path: The file; its ending, one of `ITK_WRITABLE`, chooses the format.
        array: (D, H, W) or (C, D, H, W).
        affine: (4, 4) from (d, h, w, 1) to mm, RAS+.
        header: The header of the scan that the array belongs to; its space and units are written to
            NRRD files.

    Raises:
        ContextsegError: The format cannot hold the array, or it does not read back as it was.
    """
    import SimpleITK as sitk

    several = array.ndim == 4 and len(array) > 1
    kind = ending(path)
    if kind not in ITK_WRITABLE:
        raise ContextsegError(
            path, f"files that end in {kind!r} are not written", "choose .nii.gz, .mha or .nrrd"
        )
    if kind == ".png" and array.shape[-3] > 1:
        raise ContextsegError(
            path,
            f"a .png holds one slice, this are {array.shape[-3]}",
            "choose .nii.gz, .mha or .nrrd",
        )

    last = np.moveaxis(array, 0, -1) if several else array.reshape(array.shape[-3:])
    image = sitk.GetImageFromArray(last, isVector=several)
    lps = _LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    if kind == ".png":
        image = image[:, :, 0]

    with replacing(path) as temporary:
        scratch = temporary.with_suffix(kind)  # ITK knows some endings in lower case only
        try:
            sitk.WriteImage(image, str(scratch), useCompression=True)
            if kind == ".nrrd" and header is not None:
                nrrd.keep_space(scratch, header)
            written = _array(_image(scratch, _WRITER[kind]), path)
            # On a full disk most of ITK's writers leave half a file and say nothing.
            if not np.array_equal(written.ravel(), array.ravel(), equal_nan=True):
                reason = "it does not read back as it was"
                raise ContextsegError(path, *_not_written(kind, array, reason))
            scratch.replace(temporary)
        except RuntimeError as error:
            raise_memory_error(path, error)
            reason = str(error).strip().splitlines()[-1]
            raise ContextsegError(path, *_not_written(kind, array, reason)) from error
        finally:
            if scratch != temporary:
                scratch.unlink(missing_ok=True)


def _not_written(kind: str, array: np.ndarray, reason: str) -> tuple[str, str]:
    remedy = (
        f"see that the disk has space, and that {kind} files can hold {array.dtype} numbers; "
        ".nii.gz can"
    )
    return f"cannot be written ({reason[:200]})", remedy
