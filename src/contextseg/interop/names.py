"""Names of classes from what lies in label files and beside them, where no table names them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from contextseg.errors import ContextsegError
from contextseg.interop.itksnap import is_description, read_descriptions
from contextseg.interop.reading import segments_of
from contextseg.interop.segments import Segment

_AUTOMATIC = re.compile(r"(Segment_|Label |label_)\d+")


def described(path: str | Path) -> tuple[Segment, ...] | None:
    """What a file says about the values of label maps.

    Args:
        path: A file of any kind.

    Returns:
        The segments of a `.seg.nrrd` file, a DICOM segmentation or ITK-SNAP's label description;
        None for others.

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
    (`labels.txt`, `*.label`) beside them or in the folder above. A value without a name is called
    "label_V". Names that 3D Slicer and ITK-SNAP give by themselves ("Segment_1", "Label 1") yield
    to others.

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


def _descriptions_beside(label_files: list[Path]) -> list[Path]:
    """ITK-SNAP's label descriptions in the folders of label files, and above `labels` and so on."""
    folders = dict.fromkeys(path.parent for path in label_files)
    above = [folder.parent for folder in folders if folder.name.lower().startswith("labels")]
    found: dict[Path, None] = {}
    for folder in (*folders, *above):
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        texts = (p for p in inside if p.name.lower() == "labels.txt" or p.suffix == ".label")
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
        automatic = _AUTOMATIC.fullmatch(name) is not None
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
