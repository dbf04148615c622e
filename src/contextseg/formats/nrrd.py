"""The text header of NRRD and MetaImage files, for what ITK leaves out: units, space, voxel files.

ITK reads an NRRD space whose name begins with right or left, anterior or posterior; it ignores
units. Both are obeyed here, and written back to NRRD files on the same grid.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from contextseg.errors import ContextsegError
from contextseg.formats.header import Header, as_matrix
from contextseg.formats.parts import voxel_files
from contextseg.inputs import refuse_impossible

_MM = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer"), 1e-3),
    **dict.fromkeys(("micrometers", "micrometre", "micrometres"), 1e-3),
    **dict.fromkeys(("nm", "nanometer", "nanometers", "nanometre", "nanometres"), 1e-6),
}
_NO_UNIT = ("", "???", "none", "nan")
_FROM_LPS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0, 1.0)),
}
_HEAD_BYTES = 1 << 20
_LONGEST_NAME = 250
_LONGEST = 400  # letters of a field that ITK reads into memory of a fixed size
_MOST_DIMS = 7
_NUMBERS = re.compile(r"[-+0-9.eE,() \t]*|.*\b(nan|none)\b[-+0-9.eE,() \ta-z]*", re.IGNORECASE)
_NRRD_NUMBERS = {"dimension", "space dimension", "sizes", "space origin", "axis mins"}
_NRRD_FIELDS = {
    *(*_NRRD_NUMBERS, "spacings", "space directions", "space", "type", "encoding", "endian"),
    *("kinds", "centerings", "line skip", "byte skip", "units", "space units"),
}
_META_NUMBERS = {
    *("ndims", "dimsize", "elementspacing", "elementsize", "offset", "origin", "position"),
    *("transformmatrix", "rotation", "orientation", "centerofrotation", "headersize"),
    *("elementnumberofchannels", "compresseddatasize"),
}


def fields(path: Path) -> dict[str, str]:
    """The fields of a text header, its key/value pairs left out.

    Args:
        path: An NRRD or MetaImage file, with its voxels or without.

    Returns:
        Values by field, in lower case.
    """
    text = _head(path)
    separator = b":" if text.startswith(b"NRRD") else b"="
    result = {}
    for line in text.splitlines():
        name, found, value = line.partition(separator)
        if found and not value.startswith(b"=") and not line.startswith(b"#"):
            key = name.decode("utf-8", "replace").strip().lower()
            result[key] = value.decode("utf-8", "replace").strip()
    return result


def _head(path: Path) -> bytes:
    """The text of a header, without the voxels that may follow it."""
    with open(path, "rb") as file:
        text = file.read(_HEAD_BYTES)
    if text.startswith(b"NRRD"):
        return re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]
    last = re.search(rb"^ElementDataFile.*$", text, re.MULTILINE)
    return text[: last.end()] if last else text


def _names(path: Path) -> list[bytes]:
    """What stands before the separator in each line of a header, the whole line without one."""
    head = _head(path)
    mark = b":" if head.startswith(b"NRRD") else b"="
    lines = [line for line in head.splitlines() if not line.startswith(b"#")]
    return [line.partition(mark)[0] for line in lines]


def refuse_missing_voxels(path: Path, entries: dict[str, str]) -> None:
    """Refuse a header whose file of voxels is not there, before ITK prints that to the screen.

    Args:
        path: The header.
        entries: Its `fields`.

    Raises:
        ContextsegError: The file that it names is missing.
    """
    keys = ("elementdatafile", "data file", "datafile")
    name = next((entries[key] for key in keys if entries.get(key)), "")
    several = "%" in name or name.upper().startswith("LIST")
    if not name or several or name.upper() == "LOCAL":
        return
    voxels = path.parent / name
    if voxels.is_file():
        return
    same = [p.name for p in path.parent.iterdir() if p.name.lower() == Path(name).name.lower()]
    remedy = "copy it beside the header, or correct the header"
    if same:
        remedy = f"{same[0]} lies beside it: correct the name in the header"
    raise ContextsegError(path, f"the file of its voxels, {name}, is missing", remedy)


def refuse_short_voxels(path: Path, entries: dict[str, str]) -> None:
    """Raise EOFError for a MetaImage whose uncompressed voxels are too few.

    Args:
        path: The header.
        entries: Its `fields`.
    """
    sizes = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
    kind = entries.get("elementtype", "").upper().removeprefix("MET_")
    kind = kind if kind in sizes else kind.removeprefix("U")
    name = entries.get("elementdatafile", "")
    packed = entries.get("compresseddata", "false").lower() == "true"
    alone = name and name.upper() not in ("LOCAL", "LIST") and "%" not in name
    if packed or not alone or kind not in sizes or "dimsize" not in entries:
        return
    channels = int(entries.get("elementnumberofchannels", "1"))
    need = channels * sizes[kind] * int(np.prod([int(n) for n in entries["dimsize"].split()]))
    size = (path.parent / name).stat().st_size
    if size < need:
        raise EOFError(f"{name} holds {size} bytes of {need}")


def refuse_unsound_header(path: Path, kind: str, entries: dict[str, str]) -> None:
    """Refuse a header that ITK would take at its word: it writes past its memory by some of them.

    Args:
        path: The header, of a file with its voxels or without.
        kind: "NRRD" or "MetaImage".
        entries: Its `fields`.

    Raises:
        ContextsegError: A field is missing, is no number, is far too long, or the voxels that they
            ask for are more than the file can hold.
    """
    remedy = "export the file again, or correct the header"
    longest = max(map(len, _names(path)), default=0)
    if longest > _LONGEST_NAME:
        raise ContextsegError(path, f"its header has a name of {longest} letters", remedy)
    names = _NRRD_NUMBERS if kind == "NRRD" else _META_NUMBERS
    for name, value in entries.items():
        long = len(value) > _LONGEST and (kind == "MetaImage" or name in _NRRD_FIELDS)
        if long or len(name) > _LONGEST:
            what = f"its header's {name[:40]!r} has {max(len(value), len(name))} letters"
            raise ContextsegError(path, what, remedy)
        if name in names and not _NUMBERS.fullmatch(value):
            what = f"its header says {name} = {value[:60]!r}, which are no numbers"
            raise ContextsegError(path, what, remedy)

    dims_name, sizes_name = ("dimension", "sizes") if kind == "NRRD" else ("ndims", "dimsize")
    dims, sizes = entries.get(dims_name, ""), entries.get(sizes_name, "").split()
    whole = dims.isdecimal() and all(re.fullmatch(r"\d{1,10}", size) for size in sizes)
    if not whole or not 1 <= int(dims) <= _MOST_DIMS or len(sizes) != int(dims):
        what = (
            f"its header says {dims_name} = {dims[:20]!r}, {sizes_name} = {' '.join(sizes)[:60]!r}"
        )
        raise ContextsegError(path, f"{what}, it looks truncated or damaged", remedy)
    if any(int(size) == 0 for size in sizes):
        what = f"a shape of {' x '.join(sizes)}, without a voxel"
        raise ContextsegError(path, what, "export it")
    _refuse_counts(path, entries, int(dims), remedy)
    channels = entries.get("elementnumberofchannels", "1")
    if not re.fullmatch(r"\d{1,4}", channels) or int(channels) == 0:
        raise ContextsegError(path, f"ElementNumberOfChannels = {channels[:20]!r}", remedy)
    held = path.stat().st_size + sum(p.stat().st_size for p in voxel_files(path))
    need = math.prod(map(int, sizes)) * int(channels) * _voxel_bytes(entries)
    packed = entries.get("encoding", "raw").lower() != "raw"  # text may be shorter than its numbers
    packed |= entries.get("compresseddata", "").lower().startswith(("t", "1"))
    packed |= entries.get("binarydata", "true").lower().startswith(("f", "0"))
    refuse_impossible(path, need, packed, held)


def _refuse_counts(path: Path, entries: dict[str, str], dims: int, remedy: str) -> None:
    """Refuse fields that hold another number of values than the dimensions ask for."""
    per_axis = {"elementspacing": dims, "elementsize": dims, "offset": dims, "origin": dims}
    per_axis |= {"position": dims, "centerofrotation": dims, "spacings": dims}
    per_axis |= {"transformmatrix": dims**2, "rotation": dims**2, "orientation": dims**2}
    for name, count in per_axis.items():
        if name in entries and len(entries[name].split()) != count:
            what = f"its header says {name} = {entries[name][:60]!r}, not {count} numbers"
            raise ContextsegError(path, what, remedy)


def _voxel_bytes(entries: dict[str, str]) -> int:
    """Bytes of one number by its type's name; 1 for a name that ITK is to refuse."""
    name = entries.get("elementtype", entries.get("type", "")).lower().removeprefix("met_")
    for sign, size in (("64", 8), ("longlong", 8), ("double", 8), ("32", 4), ("float", 4)):
        if sign in name.replace(" ", "").replace("_", ""):
            return size
    for sign, size in (("16", 2), ("short", 2), ("8", 1), ("char", 1), ("int", 4), ("long", 4)):
        if sign in name:
            return size
    return 1


def in_mm(affine: np.ndarray, entries: dict[str, str]) -> tuple[np.ndarray, Header]:
    """The affine of an NRRD file in millimetres, and its header.

    Args:
        affine: (4, 4) from (d, h, w, 1), as ITK reads it, RAS+.
        entries: The `fields` of the file.

    Returns:
        The affine (4, 4) in mm, and what is to be kept.
    """
    key = "space units" if "space units" in entries else "units"
    named = re.findall(r'"([^"]*)"', entries.get(key, ""))
    units = tuple(unit.strip() for unit in named)
    if key == "units":  # one for each axis of the file, which without directions are x, y and z
        units = units if "space directions" not in entries else ()
        units = units[-3:] if len(units) >= 3 else ()
    doubts = []
    factors = [1.0, 1.0, 1.0]
    for axis, unit in enumerate(units[:3]):
        if unit.lower() in _MM:
            factors[axis] = _MM[unit.lower()]
        elif unit.lower() not in _NO_UNIT:
            what = f"its header says {key} = {unit!r}, which is no unit of length known here"
            doubts.append((f"{what}; read as mm", "write mm, um or m into the header"))
    affine = np.diag([*factors, 1.0]) @ affine
    space = entries.get("space", "")
    header = Header(
        "NRRD",
        as_matrix(affine),
        nrrd_space="" if "time" in space else space,
        nrrd_units=units if any(factor != 1 for factor in factors) else (),
        doubts=tuple(doubts),
    )
    return affine, header


def keep_space(path: Path, header: Header) -> None:
    """Write the space and the units of a scan into an NRRD file that ITK wrote in mm, LPS.

    Args:
        path: The file, changed in place.
        header: The scan's.
    """
    if not header.nrrd_space and not header.nrrd_units:
        return
    content = path.read_bytes()
    head, gap, voxels = content.partition(b"\n\n")
    signs = np.array(_FROM_LPS.get(header.nrrd_space.lower(), (1.0, 1.0, 1.0)))
    factors = [_MM.get(unit.lower(), 1.0) for unit in header.nrrd_units] or [1.0] * 3

    def in_space(match: re.Match[str]) -> str:
        vector = np.array([float(x) for x in match[1].split(",")])
        return f"({','.join(repr(float(x) + 0.0) for x in vector * signs / factors)})"

    lines = []
    for line in head.decode("utf-8").split("\n"):
        name = line.partition(":")[0]
        if name == "space" and header.nrrd_space:
            lines.append(f"space: {header.nrrd_space}")
        elif name in ("space directions", "space origin"):
            lines.append(re.sub(r"\(([^)]*)\)", in_space, line))
        else:
            lines.append(line)
    if header.nrrd_units:
        quoted = " ".join(f'"{unit}"' for unit in header.nrrd_units)
        place = next(i for i, line in enumerate(lines) if line.startswith("space:"))
        lines.insert(place + 1, f"space units: {quoted}")
    path.write_bytes("\n".join(lines).encode("utf-8") + gap + voxels)
