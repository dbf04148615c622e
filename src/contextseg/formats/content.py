"""Which format a file has by what it begins with, whatever its name says."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

from contextseg.errors import ContextsegError

READABLE = ".nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr, .hdr + .img, .mgz, DICOM, .png, .tif or .bmp"
_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 4096  # enough for the header of every format known here
_MAGIC = (
    (b"NRRD", "NRRD"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"# vtk DataFile", "VTK"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"CDF\x01", "MINC"),
)
_NO_SCAN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a rar archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"),
    (b"GIF8", "a GIF picture, which is not read", "save it as .png"),
    (b"%PDF", "a PDF document, not an image", "export the image itself"),
    (b"\x93NUMPY", "a numpy array, which has no geometry", "load it and give spacing_mm"),
)
_EXPECTED = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".hdr": "Analyze",
    ".mgh": "MGH",
    ".mgz": "MGH",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".png": "PNG",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".dcm": "DICOM",
}
_MGH_TYPES = (0, 1, 3, 4, 10)


class Content(NamedTuple):
    """What a file is: the name of its format ("" for an unknown one), and whether it is packed."""

    format: str
    packed: bool


def ending(path: str | Path) -> str:
    """The ending of a scan file in lower case, with both parts of `.nii.gz`.

    Args:
        path: A file or a folder.

    Returns:
        The ending with its dot; "" for a folder (a DICOM series).

    Example:
        >>> ending("a.b/scan_0000.nii.gz"), ending("SCAN.MHA")
        ('.nii.gz', '.mha')
    """
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def recognise(path: Path) -> Content:
    """The format of a file by its first bytes, unpacked where they are packed by gzip.

    Args:
        path: A file that exists.

    Returns:
        What it is; the format "" where the bytes say nothing.

    Raises:
        ContextsegError: The file is empty or cannot be read, or is known to be no scan: an archive,
            a web page, a Git LFS pointer.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except PermissionError as error:
        raise ContextsegError(
            path, "no permission to read it", "change the file's permissions"
        ) from error
    if not head:
        raise ContextsegError(
            path, "the file is empty, truncated or damaged on its way", "copy or export it again"
        )

    packed = head.startswith(_GZIP)
    if packed:
        head = _unpacked(path, head)
    _refuse_known_others(path, head)
    return Content(_format_of(head, ending(path)), packed)


def _unpacked(path: Path, head: bytes) -> bytes:
    """The beginning of what a gzip file holds."""
    try:
        inside = zlib.decompressobj(31).decompress(head, _HEAD_BYTES)
    except zlib.error as error:
        raise ContextsegError(
            path,
            f"a gzip file that cannot be unpacked, it looks truncated or damaged ({error})",
            "copy or export the file again",
        ) from error
    if inside.startswith(_GZIP):
        raise ContextsegError(path, "packed by gzip twice", "unpack it once")
    return inside


def _refuse_known_others(path: Path, head: bytes) -> None:
    for magic, what, remedy in _NO_SCAN:
        if head.startswith(magic):
            raise ContextsegError(path, what, remedy)
    if head[257:262] == b"ustar":
        raise ContextsegError(path, "a tar archive", "unpack it")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise ContextsegError(
            path, "a web page, not an image", "download the file again; you may have to log in"
        )


def _format_of(head: bytes, end: str) -> str:
    if head[128:132] == b"DICM":  # first: such a file may begin as a TIFF
        return "DICOM"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "BMP"
    if b"ObjectType" in head[:512] or b"NDims" in head[:512]:
        return "MetaImage"
    size = {int.from_bytes(head[:4], order) for order in ("little", "big")}
    if size & {348, 540}:
        return _nifti_kind(head, end)
    if int.from_bytes(head[:4], "big") == 1:
        kind = int.from_bytes(head[20:24], "big")
        if end in (".mgh", ".mgz") or (len(head) >= 284 and kind in _MGH_TYPES):
            return "MGH"
    return ""


def _nifti_kind(head: bytes, end: str) -> str:
    """NIfTI in one file, its pair, or Analyze, of a head that begins with a header's size."""
    first, second = head[344:348], head[4:8]
    if first.startswith(b"ni1") or second.startswith(b"ni2"):
        return "NIfTI pair"
    if first.startswith(b"n+1") or second.startswith(b"n+2") or len(head) < 348:
        return "NIfTI"
    return "Analyze" if end in (".hdr", ".img") else ""


def not_an_image(path: Path) -> ContextsegError:
    """The error for a file whose content no reader knows.

    Args:
        path: The file.

    Returns:
        The error, with the bytes that the file begins with.
    """
    with open(path, "rb") as file:
        begins = file.read(12)
    expected = _EXPECTED.get(ending(path))
    name = f"no {expected} file, though its name ends in {ending(path)}"
    what = name if expected else "not an image of a known format"
    remedy = f"give a file of a known format: {READABLE}"
    header = _header_beside(path)
    if header is not None:
        remedy = f"give its header, {header.name}"
    return ContextsegError(path, f"{what} (it begins with {begins!r})", remedy)


def _header_beside(path: Path) -> Path | None:
    """The header of a file that holds voxels alone, such as `a.mhd` of `a.raw`."""
    if ending(path) not in (".raw", ".zraw", ".img"):
        return None
    for end in (".mhd", ".nhdr", ".hdr"):
        if (beside := sibling(path, end)) is not None:
            return beside
    return None


def sibling(path: Path, end: str) -> Path | None:
    """The file of the same name with another ending, in any letter case; None without one.

    Args:
        path: A file.
        end: The ending of the other, in lower case.

    Returns:
        The other file, if it is there.
    """
    name = path.name[: len(path.name) - len(ending(path))] + end
    exact = path.with_name(name)
    if exact.is_file():
        return exact
    same = (p for p in path.parent.iterdir() if p.name.lower() == name.lower() and p.is_file())
    return next(same, None)
