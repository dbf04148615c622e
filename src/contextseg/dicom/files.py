"""Which files of a folder are DICOM images, and which series they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextseg.dicom.tags import quiet, tag_name, text
from contextseg.errors import ContextsegError, plural
from contextseg.inputs import names_damage, refuse_no_file
from contextseg.memory_errors import raise_memory_error

# Files that lie beside DICOM files and are none; only a file without DICOM's mark is judged by it.
_OTHER_FORMATS = re.compile(
    r"(readme|license|licence|lockfile|version|changelog|autorun|checksums|md5sums)(\..*)?|.*\.("
    r"txt|json|xml|csv|tsv|html?|pdf|md|log|ini|inf|db|exe|dll|jar|js|css|ico|"
    r"png|jpe?g|gif|bmp|svg|"
    r"zip|gz|nii|nrrd|nhdr|mha|mhd|raw|mgz|bval|bvec|bat|sh|py|ya?ml|rtf|docx?|xlsx?|sha1|sha256|"
    r"md5|lnk|url|sqlite)",
    re.IGNORECASE,
)
_OTHER_SCANS = re.compile(r".*\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|mgz)", re.IGNORECASE)
_UNKNOWN = "object of class"
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_DIRECTORY = "1.2.840.10008.1.3.10"
_COPY_AGAIN = "copy or export this file again, or take it out of the folder"
_HEADER = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "NumberOfFrames",
    "Rows",
)


@dataclass(frozen=True)
class Series:
    """One DICOM series of a folder.

    Attributes:
        uid: SeriesInstanceUID; "" where the files have none.
        number: SeriesNumber as text; "" where the files have none.
        description: SeriesDescription.
        files: Its files, by name.
        slices: Number of its slices; an enhanced file has many.
    """

    uid: str
    number: str
    description: str
    files: tuple[Path, ...]
    slices: int

    def __str__(self) -> str:
        name = f" {self.description!r}" if self.description else ""
        slices = plural(self.slices, "slice")
        return f"{self.number or '(no number)'}{name}, {slices}, {self.uid or '(no UID)'}"


def is_dicom(path: str | Path) -> bool:
    """Whether a file bears DICOM's mark, the letters DICM at byte 128.

    Args:
        path: A file.

    Returns:
        False for files of other formats, and for very old DICOM files without the mark.
    """
    refuse_no_file(path)
    with Path(path).open("rb") as file:
        return file.read(132)[128:] == b"DICM"


@names_damage(_COPY_AGAIN, "cannot be read as DICOM")
@quiet
def series_in(path: str | Path) -> tuple[list[Series], dict[Path, str]]:
    """The image series of a folder and its sub-folders, or of one file.

    Objects that are no images (DICOMDIR, reports, contours, presentation states), segmentations
    and doses are recognised by their SOP class. Files of other formats beside them (text, tables,
    pictures, hidden files) do not count.

    Args:
        path: The folder or file.

    Returns:
        The series by number, and the kind of each DICOM file that is no scan.

    Raises:
        ContextsegError: A file is damaged or of no known kind, so that a slice could be missing.
    """
    path = Path(path)
    images: dict[str, list[tuple[Path, Any]]] = {}
    others: dict[Path, str] = {}
    strangers: dict[Path, str] = {}  # objects of a class that nobody knows, by their series
    for file in _files(path):
        header = _header(file)
        if header is None:
            continue
        kind = _kind_of_no_scan(header)
        if kind:
            others[file] = kind
            if kind.startswith(_UNKNOWN):
                strangers[file] = text(header, "SeriesInstanceUID")
        elif "Rows" not in header:
            what = f"no {tag_name('Rows')}: the file is truncated or no image"
            raise ContextsegError(file, what, _COPY_AGAIN)
        else:
            images.setdefault(text(header, "SeriesInstanceUID"), []).append((file, header))
    for file, uid in strangers.items():
        if uid in images:
            what = f"an {others[file]} in the series of the slices beside it: a damaged slice?"
            raise ContextsegError(file, what, _COPY_AGAIN)
    found = [_series(uid, members) for uid, members in images.items()]
    return sorted(found, key=lambda series: (_as_number(series.number), series.uid)), others


def read_header(path: Path, **options: Any) -> Any:
    """Read a DICOM file, with or without the mark at its start.

    Args:
        path: The file.
        **options: Options of `pydicom.dcmread`.

    Returns:
        The pydicom dataset.

    Raises:
        ContextsegError: The file is damaged, or there is no permission to read it.
    """
    import pydicom

    try:
        return pydicom.dcmread(path, force=True, **options)
    except PermissionError as error:
        remedy = "change the file's permissions"
        raise ContextsegError(path, "no permission to read it", remedy) from error
    except Exception as error:  # pydicom raises many classes for damaged files
        raise_memory_error(path, error)
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"cannot be read as DICOM, it looks truncated or damaged ({reason})"
        raise ContextsegError(path, what, _COPY_AGAIN) from error


def choose_series(series: Sequence[Series], wanted: str, where: Path) -> Series:
    """The series that somebody asked for.

    Args:
        series: The series that are there.
        wanted: SeriesInstanceUID or SeriesNumber; "" for the only one.
        where: The folder, for the message.

    Returns:
        One of `series`.

    Raises:
        ContextsegError: Several or none fit.
    """
    fitting = [one for one in series if not wanted or wanted in (one.uid, one.number)]
    if len(fitting) == 1:
        return fitting[0]
    if not series:
        raise _no_series(where)
    listed = "; ".join(map(str, series[:20]))
    if len(series) > 20:
        listed += f"; and {len(series) - 20} more"
    if not wanted:
        what = f"{len(series)} DICOM series in this folder"
    elif fitting:
        what = f"{len(fitting)} series have the number {wanted!r}"
    else:
        what = f"no series {wanted!r} in this folder"
    remedy = (
        "choose one by its number or UID, `--series NUMBER` of predict and propagate, or give "
        "each its own folder "
        f"(number, description, slices, UID: {listed})"
    )
    raise ContextsegError(where, what, remedy)


def _no_series(where: Path) -> ContextsegError:
    """Why a folder without DICOM slices is no scan, also where scans of other formats lie in it."""
    what, remedy = "0 DICOM series in this folder", "give the folder that holds the slices"
    scans = [path for path in _files(where) if _OTHER_SCANS.fullmatch(path.name)]
    if scans:
        what += f", and {plural(len(scans), 'file')} of other formats"
        remedy = f"give one of them, such as {scans[0]}"
    return ContextsegError(where, what, remedy)


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or all files below a folder that are not hidden."""
    if not path.is_dir():
        yield path
        return
    for entry in sorted(path.iterdir()):
        if not entry.name.startswith("."):
            yield from _files(entry)


def _header(path: Path) -> Any:
    """The tags of `_HEADER`; None for a file of another format that may lie beside DICOM files."""
    try:
        marked = is_dicom(path)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise ContextsegError(path, what, "check the file and its permissions") from error
    if not marked and _OTHER_FORMATS.fullmatch(path.name):
        return None

    header = read_header(path, stop_before_pixels=True, specific_tags=list(_HEADER))
    if marked or ("SOPClassUID" in header and "Rows" in header):
        return header
    size = path.stat().st_size
    what = f"not a DICOM file, or a damaged one ({size} bytes, without the mark DICM)"
    raise ContextsegError(path, what, _COPY_AGAIN)


def _kind_of_no_scan(header: Any) -> str:
    """The kind of an object that holds no scan; "" for an image."""
    from pydicom.uid import UID

    if text(header.file_meta, "MediaStorageSOPClassUID") == _DIRECTORY:
        return "DICOMDIR"
    # Without both it may be an image that is truncated within the UID of its class.
    if "SOPClassUID" not in header or "SeriesInstanceUID" not in header:
        return ""
    sop_class = text(header, "SOPClassUID")
    name = str(UID(sop_class).name)
    if name == sop_class:  # unknown, of a manufacturer; what is no UID is a damaged image
        unknown = "Rows" not in header and _UID.fullmatch(sop_class)
        return f"{_UNKNOWN} {sop_class}" if unknown else ""
    kind = name.removesuffix(" Storage")
    if kind in ("Segmentation", "Label Map Segmentation", "RT Dose"):
        return kind
    of_images = ("Image" in name and "Non-Image" not in name) or "Parametric Map" in name
    return "" if of_images or not name.endswith("Storage") else kind


def _series(uid: str, members: Sequence[tuple[Path, Any]]) -> Series:
    """The series of files with one UID."""
    first = members[0][1]
    counts = [text(header, "NumberOfFrames") for _, header in members]
    return Series(
        uid=uid,
        number=text(first, "SeriesNumber"),
        description=text(first, "SeriesDescription"),
        files=tuple(path for path, _ in members),
        slices=sum(int(count) if count.isdigit() else 1 for count in counts),
    )


def _as_number(value: str) -> float:
    return float(value) if value.lstrip("-").isdigit() else float("inf")
