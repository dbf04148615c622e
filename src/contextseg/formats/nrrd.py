"""The text header of NRRD and MetaImage files, for what ITK leaves out: units, space, voxel files.

ITK reads an NRRD space whose name begins with right or left, anterior or posterior; it ignores
units. Both are obeyed here, and written back to NRRD files on the same grid.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from contextseg.errors import ContextsegError
from contextseg.formats.header import Header, as_matrix

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


def fields(path: Path) -> dict[str, str]:
    """The fields of a text header, its key/value pairs left out.

    Args:
        path: An NRRD or MetaImage file, with its voxels or without.

    Returns:
        Values by field, in lower case.
    """
    with open(path, "rb") as file:
        text = file.read(_HEAD_BYTES)
    if text.startswith(b"NRRD"):
        separator = b":"
        text = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]
    else:
        separator = b"="
        last = re.search(rb"^ElementDataFile.*$", text, re.MULTILINE)
        text = text[: last.end()] if last else text
    result = {}
    for line in text.splitlines():
        name, found, value = line.partition(separator)
        if found and not value.startswith(b"=") and not line.startswith(b"#"):
            key = name.decode("utf-8", "replace").strip().lower()
            result[key] = value.decode("utf-8", "replace").strip()
    return result


def refuse_missing_voxels(path: Path, told: dict[str, str]) -> None:
    """Refuse a header whose file of voxels is not there, before ITK prints that to the screen.

    Args:
        path: The header.
        told: Its `fields`.

    Raises:
        ContextsegError: The file that it names is missing.
    """
    name = told.get("elementdatafile") or told.get("data file") or told.get("datafile") or ""
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


def refuse_short_voxels(path: Path, told: dict[str, str]) -> None:
    """Raise EOFError for a MetaImage whose uncompressed voxels are too few.

    Args:
        path: The header.
        told: Its `fields`.
    """
    sizes = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
    kind = told.get("elementtype", "").upper().removeprefix("MET_")
    kind = kind if kind in sizes else kind.removeprefix("U")
    name = told.get("elementdatafile", "")
    packed = told.get("compresseddata", "false").lower() == "true"
    alone = name and name.upper() not in ("LOCAL", "LIST") and "%" not in name
    if packed or not alone or kind not in sizes or "dimsize" not in told:
        return
    channels = int(told.get("elementnumberofchannels", "1"))
    need = channels * sizes[kind] * int(np.prod([int(n) for n in told["dimsize"].split()]))
    size = (path.parent / name).stat().st_size
    if size < need:
        raise EOFError(f"{name} holds {size} bytes of {need}")


def in_mm(affine: np.ndarray, told: dict[str, str]) -> tuple[np.ndarray, Header]:
    """The affine of an NRRD file in millimetres, and its header.

    Args:
        affine: (4, 4) from (d, h, w, 1), as ITK reads it, RAS+.
        told: The `fields` of the file.

    Returns:
        The affine (4, 4) in mm, and what is to be kept.
    """
    key = "space units" if "space units" in told else "units"
    named = re.findall(r'"([^"]*)"', told.get(key, ""))
    units = tuple(unit.strip() for unit in named)
    if key == "units":  # one for each axis of the file, which without directions are x, y and z
        units = units if "space directions" not in told else ()
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
    space = told.get("space", "")
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
