"""Correct and call again: which slices of a filled map were drawn, and which changed since.

Beside a filled label map lies a table, CASE-slices.csv: for each slice whether it was labelled, for
which classes, and a checksum of what was filled. From it and the map, corrected in any program, the
labelled slices of the next round follow: those of before, and those that changed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.listing import stem
from contextseg.disk import csv_text, read_rows, write_text
from contextseg.errors import ContextsegError
from contextseg.propagation.labelled import AXES, LabelledSlices, axis_of, plane_of
from contextseg.propagation.shapes import classes_of
from contextseg.volume import Volume, read_labels, write

SLICES_COLUMNS = (
    "slice",
    "labelled",
    "confidence",
    "class_confidence",
    "plane",
    "classes",
    "checksum",
)
"""Of the table. `classes`: of which a labelled slice says something."""
_LOOKED_AT = 50


def slices_file(path: str | Path) -> Path:
    """Where the table of the slices of a filled map is.

    Args:
        path: The label file.

    Returns:
        A CSV file beside it.

    Example:
        >>> slices_file("1.3.6.02.nii.gz").name
        '1.3.6.02-slices.csv'
    """
    path = Path(path)
    return path.with_name(stem(path) + "-slices.csv")


def drawn_file(path: str | Path) -> Path:
    """Where the voxels are that were labelled, if some slice was labelled in part.

    Args:
        path: The filled label file.

    Returns:
        A label map beside it, -1 where nobody has labelled.

    Example:
        >>> drawn_file("filled.nii.gz").name
        'filled-drawn.nii.gz'
    """
    path = Path(path)
    return path.with_name(stem(path) + "-drawn.nii.gz")


def write_slices(
    path: str | Path,
    label: Volume,
    labelled: LabelledSlices,
    confidence: np.ndarray,
    class_confidence: dict[int, np.ndarray],
) -> None:
    """Write the table of a filled map, and its drawn voxels where a slice is known in part.

    Args:
        path: The label file that they belong to.
        label: The filled label map.
        labelled: The slices that it was filled from.
        confidence: (n,), of each slice.
        class_confidence: Class to (n,).

    Raises:
        ContextsegError: The disk cannot be written to.
    """
    sums = checksums(label, labelled.axis)
    classes = labelled.classes
    rows = []
    for i, checksum in enumerate(sums):
        known = [k for k in classes if k not in labelled.silent.get(i, ())]
        there = i in labelled.slices
        row = {
            "slice": i,
            "labelled": _how(labelled.slices.get(i)),
            "confidence": _number(confidence[i]),
            "class_confidence": " ".join(
                f"{k}={_number(of[i])}" for k, of in class_confidence.items() if of[i] == of[i]
            ),
            "plane": plane_of(label, labelled.axis),
            "classes": " ".join(map(str, known)) if there else "",
            "checksum": checksum,
        }
        rows.append(row)
    if any(row["labelled"] == "partly" for row in rows):
        write(drawn_file(path), label.with_array(_drawn(label, labelled)))
    else:
        drawn_file(path).unlink(missing_ok=True)
    write_text(slices_file(path), csv_text(SLICES_COLUMNS, rows))


def checksums(label: Volume, axis: int) -> list[str]:
    """A checksum of the labels of each slice; "" of one without.

    Args:
        label: Label map (D, H, W).
        axis: What the slices are across.

    Returns:
        Eight hexadecimal digits for each slice, whatever the number type.
    """
    sums = []
    for plane in np.moveaxis(label.array, axis, 0):
        data = np.ascontiguousarray(plane, dtype="<i4")
        sums.append(f"{zlib.crc32(data.tobytes()):08x}" if data.any() else "")
    return sums


@dataclass(frozen=True)
class Previous:
    """A filled map of before.

    Attributes:
        path: Its table.
        rows: The rows of the table, one for each slice.
        axis: What its slices are across, in the scan.
    """

    path: Path
    rows: Sequence[dict[str, str]]
    axis: int

    def changed(self, label: Volume) -> list[int]:
        """Slices of a label map that are not as they were filled.

        Args:
            label: Label map on the same grid.

        Returns:
            Slice numbers.
        """
        sums = checksums(label, self.axis)
        return [i for i, row in enumerate(self.rows) if row["checksum"] != sums[i]]

    def labelled(self, label: Volume) -> LabelledSlices:
        """The labelled slices of a corrected map: those drawn before, and those that changed.

        Args:
            label: The corrected label map, on the same grid. All of a changed slice counts as
                labelled, for every class.

        Returns:
            The labelled slices.

        Raises:
            ContextsegError: If neither is there, or the drawn voxels of a slice that is labelled in
                part are missing.
        """
        changed = set(self.changed(label))
        planes = np.moveaxis(label.array, self.axis, 0)
        kind = np.int32 if label.array.max(initial=0) >= 2**15 else np.int16
        partly: Any = None
        slices: dict[int, np.ndarray] = {}
        silent: dict[int, frozenset[int]] = {}
        for i, row in enumerate(self.rows):
            plane = planes[i].astype(kind)
            if i in changed:
                slices[i] = plane
            elif row["labelled"] == "partly":
                partly = self._drawn(label) if partly is None else partly
                slices[i] = partly[i].astype(kind)
                silent[i] = _numbers(row)
            elif row["labelled"] == "yes":
                slices[i] = np.where(np.isin(plane, list(_numbers(row))), plane, 0).astype(kind)
                silent[i] = _numbers(row)
        every = frozenset(classes_of(slices))
        if not every:
            raise ContextsegError(
                "labels", "no slice is labelled", "label a structure in one slice or more"
            )
        silent = {i: every - known for i, known in silent.items() if every - known}
        return LabelledSlices(self.axis, slices, silent)

    def _drawn(self, like: Volume) -> np.ndarray:
        path = self.path.with_name(self.path.name.removesuffix("-slices.csv") + "-drawn.nii.gz")
        if not path.exists():
            raise ContextsegError(
                path,
                f"{self.path.name} needs it: slices were labelled in part",
                "give the labels as drawn, or --previous none",
            )
        drawn = read_labels(path)
        if drawn.shape != like.shape:
            raise ContextsegError(path, "its grid differs from the scan's", "give --previous none")
        return np.moveaxis(drawn.array, self.axis, 0)


def open_previous(path: str | Path, label: Volume) -> Previous:
    """The table of a filled map that the caller names.

    Args:
        path: The filled label map, or its table.
        label: The label map to be filled, on the scan's grid.

    Returns:
        The filled map of before.

    Raises:
        ContextsegError: There is no such table, or it is of another scan.
    """
    path = Path(path)
    table = path if path.name.endswith("-slices.csv") else slices_file(path)
    if not table.exists():
        remedy = f"a filled map has {table.name} beside it; without it give the labels as drawn"
        raise ContextsegError(f"--previous {path}", f"{table} is missing", remedy)
    previous = _read(table, label)
    if previous is None:
        raise ContextsegError(
            table,
            "it is no table of a map on this grid",
            "give the map that was filled for this scan, or --previous none",
        )
    return previous


def find_previous(labels: str | Path, output: str | Path | None, label: Volume) -> Previous | None:
    """The filled map that a label map is a corrected copy of, if there is one.

    Tables beside the label file and the output are looked at, their own first. The labels are a
    corrected copy if at least half of the slices that were filled, and not drawn, are as filled.

    Args:
        labels: The label file.
        output: Where the result will be written.
        label: The label map, on the scan's grid.

    Returns:
        None where the labels are as drawn.
    """
    paths = [Path(path) for path in (labels, output) if path is not None]
    tables = [slices_file(path) for path in paths]
    for folder in dict.fromkeys(path.parent for path in paths):
        beside = sorted(folder.glob("*-slices.csv"), key=_age)[:_LOOKED_AT]
        tables += [path for path in beside if path not in tables]
    for table in tables:
        previous = _read(table, label) if table.exists() else None
        if previous is None:
            continue
        sums = checksums(label, previous.axis)
        filled = [
            row["checksum"] == now
            for row, now in zip(previous.rows, sums)
            if row["labelled"] == "no" and row["checksum"]
        ]
        if filled and 2 * sum(filled) >= len(filled):
            return previous
    return None


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _read(path: Path, label: Volume) -> Previous | None:
    """A table, if it can be one of a map on this grid."""
    try:
        rows = read_rows(path, SLICES_COLUMNS)
    except ContextsegError:
        return None
    if not rows or rows[0]["plane"] not in AXES:
        return None
    axis = axis_of(label, rows[0]["plane"])
    return Previous(path, rows, axis) if len(rows) == label.shape[axis] else None


def _numbers(row: dict[str, str]) -> frozenset[int]:
    return frozenset(int(k) for k in row["classes"].split())


def _how(label: np.ndarray | None) -> str:
    if label is None:
        return "no"
    return "partly" if (label == IGNORE).any() else "yes"


def _number(confidence: float) -> str:
    return "" if np.isnan(confidence) else f"{confidence:.4f}"


def _drawn(label: Volume, labelled: LabelledSlices) -> np.ndarray:
    kind = np.int32 if label.array.max(initial=0) >= 2**15 else np.int16
    drawn = np.full(label.shape, IGNORE, kind)
    planes = np.moveaxis(drawn, labelled.axis, 0)
    for i, plane in labelled.slices.items():
        planes[i] = plane
    return drawn
