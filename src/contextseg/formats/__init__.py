"""The files that scans come in: an array (C, D, H, W), its affine and its header, in and out.

The reader is chosen by what a file begins with, not by its name. NIfTI, Analyze and MGH are read
with nibabel's headers, DICOM by `dicom`, everything else by SimpleITK. `volume` is what the other
modules use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom import read_series
from contextseg.errors import ContextsegError
from contextseg.formats import itk, nifti
from contextseg.formats.content import ending, not_an_image, recognise, sibling
from contextseg.formats.header import Header
from contextseg.formats.itk import from_itk
from contextseg.formats.nifti import Read
from contextseg.inputs import damage_named, refuse_no_file

__all__ = ["NIFTI", "WRITABLE", "Header", "ending", "from_itk", "from_nibabel", "load", "save"]

NIFTI = (".nii.gz", ".nii")
_UNSUPPORTED = ("not supported", "unsupported", "unknown")
WRITABLE = (*NIFTI, *itk.ITK_WRITABLE)


# --- reading --------------------------------------------------------------------------------------


def load(path: Path, labels: bool = False, series: str = "") -> Read:
    """Read one file or DICOM folder.

    Args:
        path: A file of any format that nibabel or SimpleITK reads, a header or the voxels of a
            pair, or a folder that holds one DICOM series.
        labels: Whether it is a label map: then the numbers of a picture's palette are the labels.
        series: Which DICOM series of a folder, see `dicom.read_series`; "" for the only one.

    Returns:
        The array (C, D, H, W), the affine (4, 4) from (d, h, w, 1) to mm, RAS+, and the header,
        None where there is nothing to keep. The array keeps the file's number type where the file
        has no scaling.

    Raises:
        ContextsegError: The file is missing, truncated, damaged, without a geometry, or of no
            known format.
    """
    refuse_no_file(path, folders=True)
    if not path.exists():
        raise ContextsegError(
            path, "the file does not exist", "check the path, and that the data set is complete"
        )
    with _damage_is_named(path):
        if path.is_dir():
            return (*read_series(path, series), None)
        return _load_file(path, labels, series)


def _load_file(path: Path, labels: bool, series: str) -> Read:
    if ending(path) == ".img" and (header := sibling(path, ".hdr")) is not None:
        path = header
    kind, packed = recognise(path)
    if kind == "NIfTI":
        return nifti.read_nifti(path, packed)
    if kind in ("NIfTI pair", "Analyze"):
        return nifti.read_header_pair(path, kind)
    if kind == "MGH":
        return nifti.read_mgh(path, packed)
    if kind and packed:
        what = f"{kind} packed by gzip, which is not read"
        raise ContextsegError(path, what, "unpack it, for instance with `gunzip`")
    if kind == "DICOM" or (not kind and itk.holds_dicom(path)):
        return (*read_series(path, series), None)
    if not kind and ending(path) in (*NIFTI, ".hdr"):  # ITK would take its ending for its content
        raise not_an_image(path)
    return itk.read_itk(path, kind, labels)


def from_nibabel(image: Any, where: str | Path = "nibabel image") -> Read:
    """Array, affine and header of a nibabel image, as `load` gives them for its file.

    Args:
        image: A nibabel image of two or three dimensions, and one more for channels.
        where: Name of the image in error messages.

    Returns:
        As `load`.

    Raises:
        ContextsegError: The image holds colours or complex numbers, has other dimensions or a
            degenerate affine, or its file is damaged.
    """
    with _damage_is_named(where):
        return nifti.from_image(image, where)


@contextmanager
def _damage_is_named(where: str | Path) -> Iterator[None]:
    """Turn whatever the readers raise for a file into a `ContextsegError` about `where`."""
    with damage_named(where, what="cannot be read, it looks truncated or damaged"):
        try:
            yield
        except RuntimeError as error:  # ITK's
            reason = _reason(error)
            if not any(sign in reason.lower() for sign in _UNSUPPORTED):
                raise RuntimeError(reason) from error
            what = f"of a kind that is not supported ({reason})"
            raise ContextsegError(where, what, "save it as .nii.gz or .nrrd") from error


def _reason(error: Exception) -> str:
    """What an exception says, without ITK's places in its source."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    noise = ("Exception thrown", "Reason:")
    sentences = [line for line in lines if line and not line.startswith(noise)]
    return " ".join(sentences[:2])[:200] or type(error).__name__


# --- writing --------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, affine: np.ndarray, header: Header | None = None) -> None:
    """Write an array and its affine, atomically.

    Args:
        path: File to write; its ending, one of `WRITABLE`, chooses the format.
        array: (D, H, W) or (C, D, H, W). bool is written as uint8, float16 as float32.
        affine: (4, 4) from (d, h, w, 1) to mm, RAS+.
        header: The header of the scan on whose grid the array lies. What it says of the grid is
            written too, unless it belongs to another affine.

    Raises:
        ContextsegError: The format cannot hold the array, or the disk cannot.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if header is not None and not header.belongs_to(affine):
        header = None
    if ending(path) in NIFTI:
        nifti.write_nifti(path, array, affine, header)
    else:
        itk.write_itk(path, array, affine, header)
