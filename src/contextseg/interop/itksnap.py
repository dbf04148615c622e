"""ITK-SNAP's label descriptions: a text file of names and colours beside a label map."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from contextseg.disk import write_text
from contextseg.errors import ContextsegError
from contextseg.inputs import refuse_no_file
from contextseg.interop.segments import Segment, default_colour

DESCRIPTIONS = "label_descriptions.txt"
"""File beside predicted label maps: names and colours of their classes."""

_LINE = re.compile(r'(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\S+)\s+([01])\s+([01])\s+"(.*)"')
_TITLE = re.compile(r"itk-?snap label description file", re.IGNORECASE)
_COLUMNS = 'IDX R G B A VIS MSH "LABEL"'
_HEAD = """\
################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
# Fields:
#    IDX:   Zero-based index
#    -R-:   Red color component (0..255)
#    -G-:   Green color component (0..255)
#    -B-:   Blue color component (0..255)
#    -A-:   Label transparency (0.00 .. 1.00)
#    VIS:   Label visibility (0 or 1)
#    IDX:   Label mesh visibility (0 or 1)
#  LABEL:   Label description
################################################
    0     0    0    0        0  0  0    "Clear Label"
"""


def is_description(path: str | Path) -> bool:
    """Whether a file is a label description of ITK-SNAP, by its content.

    Args:
        path: A file of any kind, or a folder.

    Returns:
        True where it has the usual title, or its first line without "#" has the usual columns.
    """
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            text = file.read(1 << 16).decode("utf-8-sig", "replace")
    except OSError:
        return False
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    comments = [line for line in lines if line.startswith("#")]
    if any(_TITLE.search(line) for line in comments):
        return True
    first = next((line for line in lines if not line.startswith("#")), "")
    return _LINE.fullmatch(first) is not None


def read_descriptions(path: str | Path) -> tuple[Segment, ...]:
    """Read a label description file.

    Args:
        path: The file, often called `labels.txt` or `NAME.label`.

    Returns:
        A segment for each line, in the order of the file, without that of the background (0).

    Raises:
        ContextsegError: The file cannot be read, a line has other columns or a number out of range,
            or an index is there twice.
    """
    refuse_no_file(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContextsegError(path, "not a text in UTF-8", "save it in UTF-8") from error
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise ContextsegError(path, what, "check the path") from error
    segments: dict[int, Segment] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        segment = _segment(path, number, line)
        if segment.value in segments:
            what = f"line {number}: a second label {segment.value}"
            raise ContextsegError(path, what, "keep one of the two")
        segments[segment.value] = segment
    segments.pop(0, None)
    return tuple(segments.values())


def write_descriptions(path: str | Path, segments: Iterable[Segment]) -> Path:
    """Write a label description file that ITK-SNAP opens, atomically.

    Args:
        path: The file to write.
        segments: Names, values and colours, of any source.

    Returns:
        `path`.

    Raises:
        ContextsegError: Two segments have one value, a value is below 1, a name has several lines,
            or the disk cannot be written to.
    """
    write_text(Path(path), description_text(path, segments))
    return Path(path)


def description_text(path: str | Path, segments: Iterable[Segment]) -> str:
    """The content of a label description file.

    Args:
        path: The file, for messages.
        segments: Names, values and colours, of any source.

    Returns:
        The text, in the columns of ITK-SNAP.

    Raises:
        ContextsegError: Two segments have one value, a value is below 1, or a name has several
            lines.
    """
    lines = []
    taken: dict[int, str] = {}
    for segment in segments:
        if segment.value < 1 or segment.value in taken:
            who = [taken[segment.value]] if segment.value in taken else []
            what = f"the value {segment.value} of {' and '.join([*who, segment.name])}"
            raise ContextsegError(path, what, "give each segment a value of its own, from 1 up")
        if len(segment.name.splitlines()) > 1:
            raise ContextsegError(path, f"a name of several lines: {segment.name!r}", "shorten it")
        taken[segment.value] = segment.name
        parts = segment.colour or default_colour(segment.value)
        red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in parts)
        lines.append(
            f"{segment.value:5d} {red:5d}{green:5d}{blue:5d} {segment.opacity:8.6g}"
            f'{int(segment.visible):3d}{int(segment.in_mesh):3d}    "{segment.name}"\n'
        )
    return _HEAD + "".join(lines)


def _segment(path: str | Path, number: int, line: str) -> Segment:
    match = _LINE.fullmatch(line)
    if not match:
        what = f"line {number} is no label: {line[:60]!r}"
        raise ContextsegError(path, what, f"a line has the columns {_COLUMNS}")
    value, red, green, blue = (int(part) for part in match.groups()[:4])
    try:
        opacity = float(match[5])
    except ValueError:
        opacity = -1.0
    if max(red, green, blue) > 255 or not 0 <= opacity <= 1:
        what = f"line {number}: the colour {' '.join(match.groups()[1:5])}"
        raise ContextsegError(path, what, "give R, G and B from 0 to 255, and A from 0 to 1")
    return Segment(
        match[8].strip() or f"label_{value}",
        value,
        (red / 255, green / 255, blue / 255),
        opacity=opacity,
        visible=match[6] == "1",
        in_mesh=match[7] == "1",
    )
