"""All files that one scan or label map consists of: header and voxels, or a folder of slices."""

from __future__ import annotations

import re
from pathlib import Path

from contextseg.formats.content import ending, sibling

_TEXT_HEADERS = (".mhd", ".nhdr")
_PAIRED = (".hdr", ".img")
_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
_HEAD_BYTES = 1 << 16


def files_of(path: Path) -> list[Path]:
    """The files whose bytes decide what a scan is, so that a change of any of them is a change.

    Args:
        path: A file that exists, a header with its voxels elsewhere, or a folder of slices.

    Returns:
        The files, the given one first. Of a folder all files below it, in order.

    Example:
        >>> [path.name for path in files_of(Path("no-such-scan.nii.gz"))]
        ['no-such-scan.nii.gz']
    """
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    if not path.exists():
        return [path]
    found = [path]
    if ending(path) in _TEXT_HEADERS:
        found += voxel_files(path)
    elif ending(path) in _PAIRED:
        others = (sibling(path, end) for end in (".hdr", ".img", ".img.gz", ".mat"))
        found += [other for other in others if other is not None]
    elif ending(path) in _PICTURES:
        found += [beside for beside in spacing_files(path) if beside.is_file()]
    return list(dict.fromkeys(found))


def voxel_files(header: Path) -> list[Path]:
    """The files of voxels that a header of text names, a file for each slice too.

    Args:
        header: A MetaImage (.mhd) or NRRD header (.nhdr).

    Returns:
        Those that exist.
    """
    if not header.is_file():
        return []
    with open(header, "rb") as file:
        text = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    found = []
    for line in text.split("\n"):
        name = line.replace("=", ":").rpartition(":")[2].strip()
        pattern = re.fullmatch(r"(.*?)%0?\d*d(.*?)(\s+\d+)*", name)
        if pattern:  # "slice%03d.raw 1 40 1"
            around = re.escape(pattern[1]), re.escape(pattern[2])
            numbered = re.compile(rf"{around[0]}\d+{around[1]}")
            found += [p for p in sorted(header.parent.iterdir()) if numbered.fullmatch(p.name)]
        elif (
            name
            and len(name.encode()) < 256
            and "\0" not in name
            and (header.parent / name).is_file()
        ):
            found.append(header.parent / name)
    return found


def spacing_files(picture: Path) -> tuple[Path, Path]:
    """Where nnU-Net writes the spacing of a picture: `NAME.json`, and `CASE.json` of `CASE_0000`.

    Args:
        picture: The picture.

    Returns:
        The two places, whether there is a file or not.
    """
    name = picture.name[: -len(picture.suffix)]
    case = re.sub(r"_[0-9]{4}$", "", name)
    return picture.with_name(f"{name}.json"), picture.with_name(f"{case}.json")
