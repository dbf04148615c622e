"""Names and colours of classes from what lies in label files and beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.errors import ContextsegError
from contextseg.formats import ending
from contextseg.grids import Lattice
from contextseg.interop.itksnap import (
    DESCRIPTIONS,
    description_text,
    is_description,
    read_descriptions,
    write_descriptions,
)
from contextseg.interop.reading import holds_segments, segments_of
from contextseg.interop.segments import Segment
from contextseg.interop.slicer import write_segmentation

_TEXTS = ("labels.txt", DESCRIPTIONS)
_AUTOMATIC = re.compile(r"(Segment_|Label |label_)\d+")


def described(path: str | Path) -> tuple[Segment, ...] | None:
    """What a file says about the values of label maps.

    Args:
        path: A file of any kind.

    Returns:
        The segments of a `.seg.nrrd` file, a DICOM segmentation, TotalSegmentator's label map
        (`--ml`) or ITK-SNAP's label description; None for others.

    Raises:
        ContextsegError: It is one of these, and damaged.
    """
    if is_description(path):
        return read_descriptions(path)
    return segments_of(path)


def label_table(path: str | Path) -> dict[str, int] | None:
    """The label table that a file describes, for `evaluate --labels FILE`.

    Args:
        path: A file of any kind.

    Returns:
        Name to value, from a `.seg.nrrd` file, a DICOM segmentation or ITK-SNAP's label
        description; None for others.

    Raises:
        ContextsegError: It is one of these, and damaged, or two of its values have one name.
    """
    segments = described(path)
    if segments is None:
        return None
    names = _Names()
    for segment in segments:
        names.note(segment, Path(path))
    return {segment.name: segment.value for segment in segments}


def named_values(values: Iterable[int], label_files: Iterable[str | Path]) -> dict[str, int]:
    """The name of each value that label files hold.

    A name comes from the segments of the files themselves, or from ITK-SNAP's label description
    (`labels.txt`, `label_descriptions.txt`, `*.label`) beside them or in the folder above. A value
    without a name is called "label_V". Names that 3D Slicer and ITK-SNAP give by themselves
    ("Segment_1", "Label 1") yield to others.

    Args:
        values: The values; 0 and negative ones are left out.
        label_files: The label files of one data set, or of two folders to compare.

    Returns:
        Name to value, in the order of the values.

    Raises:
        ContextsegError: A name has two values, or a value two names: the message names both files.

    Example:
        >>> named_values([2, 0, 1], [])
        {'label_1': 1, 'label_2': 2}
    """
    values = sorted({int(value) for value in values if value > 0})
    files = [Path(path) for path in label_files]
    names = _Names()
    for file in _descriptions_beside(files):
        for segment in read_descriptions(file):
            if segment.value in values:
                names.note(segment, file)
    for file in files:
        try:
            segments = segments_of(file) or ()
        except ContextsegError:
            continue  # it names no value; who reads its voxels says why
        for segment in segments:
            if segment.value in values:
                names.note(segment, file)
    return {names.of(value): value for value in values}


def segments_by_value(label_files: Iterable[str | Path]) -> dict[int, Segment]:
    """What label files, and label descriptions beside them, say of each value.

    Where several speak of a value, the first counts, but names that 3D Slicer and ITK-SNAP give by
    themselves yield to others. Descriptions come before the files that they lie beside.

    Args:
        label_files: Files of any kind. One that is damaged says nothing here.

    Returns:
        Value to segment, with the colour and terminology that its file has.
    """
    found: dict[int, Segment] = {}
    for segment in _said_of(Path(path) for path in label_files):
        before = found.get(segment.value)
        if before is None or (_automatic(before) and not _automatic(segment)):
            found[segment.value] = segment
    return found


def _said_of(files: Iterable[Path]) -> Iterator[Segment]:
    files = list(files)
    for file in (*_descriptions_beside(files), *files):
        try:
            yield from described(file) or ()
        except ContextsegError:
            continue  # who reads its names or voxels says why


def _automatic(segment: Segment) -> bool:
    """Whether a program gave the name by itself."""
    return _AUTOMATIC.fullmatch(segment.name) is not None


# --- writing --------------------------------------------------------------------------------------


def known_segments(source: Any) -> tuple[Segment, ...]:
    """The segments of a label map that somebody gives.

    Args:
        source: A file, with or without an ITK-SNAP label description beside it, or any other
            object, of which nothing is known.

    Returns:
        All segments of a file that names them; otherwise those of the descriptions. `NAME.label`
        comes before `labels.txt`, and that before those of other label maps.

    Raises:
        ContextsegError: The file or the description is damaged.
    """
    if not isinstance(source, str | Path):
        return ()
    kept = segments_of(source)
    if kept is not None:
        return kept
    own = _description_of(Path(source))

    def rank(file: Path) -> int:
        return 0 if file == own else 1 if file.name.lower() in _TEXTS else 2

    found: dict[int, Segment] = {}
    for file in sorted(_descriptions_beside([Path(source)]), key=rank):
        for segment in read_descriptions(file):
            found.setdefault(segment.value, segment)
    return tuple(found.values())


def _description_of(path: Path) -> Path:
    """The label description of one label map alone, `NAME.label` beside it."""
    return path.with_name(path.name[: len(path.name) - len(ending(path))] + ".label")


def describe_result(path: str | Path, volume: Lattice, segments: Sequence[Segment]) -> None:
    """Say what the values of a label map are: in a `.seg.nrrd` file itself, else beside it.

    Args:
        path: The label map, which is written. Beside `NAME.nii.gz` and the like comes ITK-SNAP's
            label description `NAME.label`, if one of its values has a name.
        volume: What it holds, a label map (D, H, W).
        segments: All segments that are known.

    Raises:
        ContextsegError: The disk cannot be written to.
    """
    path = Path(path)
    if holds_segments(path):
        write_segmentation(path, volume, segments)
        return
    values = set(np.unique(volume.array).tolist())
    held = [segment for segment in segments if segment.value in values]
    if not all(map(_automatic, held)):
        write_descriptions(_description_of(path), _in_one_line(held))


def describe_folder(path: str | Path, segments: Sequence[Segment]) -> None:
    """Write `label_descriptions.txt` beside a predicted label map, for all of its folder.

    Nothing is written for a `.seg.nrrd` file, nor where no class has a name of its own.

    Args:
        path: The label map.
        segments: Its classes.

    Raises:
        ContextsegError: The disk cannot be written to.
    """
    file = Path(path).parent / DESCRIPTIONS
    if holds_segments(path) or all(map(_automatic, segments)):
        return
    segments = _in_one_line(segments)
    if not file.is_file() or file.read_bytes() != description_text(file, segments).encode():
        write_descriptions(file, segments)


def _in_one_line(segments: Iterable[Segment]) -> list[Segment]:
    """The segments with names that a line of a text file can hold."""
    return [replace(segment, name=" ".join(segment.name.splitlines())) for segment in segments]


def _descriptions_beside(label_files: list[Path]) -> list[Path]:
    """ITK-SNAP's label descriptions in the folders of label files, and above `labels` and so on."""
    folders = dict.fromkeys(path.parent for path in label_files)
    above = [folder.parent for folder in folders if folder.name.lower().startswith("labels")]
    found: dict[Path, None] = {}
    for folder in (*folders, *above):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        texts = (p for p in inside if p.name.lower() in _TEXTS or p.suffix == ".label")
        found |= dict.fromkeys(path for path in texts if path.is_file() and is_description(path))
    return list(found)


class _Names:
    """Names of values from several files, none of which may contradict another."""

    def __init__(self) -> None:
        self._by_value: dict[int, tuple[str, Path]] = {}
        self._by_name: dict[str, tuple[int, Path]] = {}

    def of(self, value: int) -> str:
        """The name of a value."""
        return self._by_value[value][0] if value in self._by_value else f"label_{value}"

    def note(self, segment: Segment, file: Path) -> None:
        """Note what a file calls a value; letter case makes no other name.

        Raises:
            ContextsegError: Another file, or the same, says otherwise.
        """
        value, name = segment.value, segment.name
        automatic = _automatic(segment)
        before, other = self._by_value.get(value, (name, file))
        if before.casefold() != name.casefold():
            if automatic:
                return
            if not _AUTOMATIC.fullmatch(before):
                what = f"label value {value} is {name} here, and {before} in {other}"
                raise ContextsegError(file, what, _REMEDY)
            del self._by_name[before.casefold()]
        was, other = self._by_name.get(name.casefold(), (value, file))
        if was != value and automatic:
            return
        if was != value:
            what = f"{name} has the label value {value} here, and {was} in {other}"
            raise ContextsegError(file, what, _REMEDY)
        self._by_value.setdefault(value, (name, file))
        if before.casefold() != name.casefold():
            self._by_value[value] = name, file
        self._by_name.setdefault(name.casefold(), (value, file))


_REMEDY = (
    "give each class one name and one value in all files; 3D Slicer exports label maps with the "
    "values of a colour table"
)
