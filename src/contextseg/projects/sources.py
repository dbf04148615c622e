"""What a project is about: the scans, the classes, and which cases are locked for measuring."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.layouts import Case, Dataset, is_dataset, open_dataset, scans_in
from contextseg.data.listing import some
from contextseg.data.tables import read_label_table, read_table
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.formats import ending
from contextseg.formats.parts import files_of
from contextseg.volume import read, write


@dataclass(frozen=True)
class Sources:
    """The scans of a project, and the labels that came with some of them.

    Attributes:
        cases: Every scan by the name of its case.
        channels: Names of the channels; () where nothing names them.
        labels: The table of labels as nnU-Net writes it, without "ignore"; {} where nothing says.
        test: Names of the cases of a test split.
    """

    cases: Mapping[str, Case]
    channels: tuple[str, ...]
    labels: Mapping[str, Any]
    test: tuple[str, ...] = ()

    @staticmethod
    def open(scans: str | Path) -> Sources:
        """The scans of a folder or of a data set.

        Args:
            scans: A folder of scans, or a data set in any of the known layouts.

        Raises:
            ContextsegError: There is no scan, or the data set has a problem.
        """
        folder = Path(scans)
        if not is_dataset(folder):
            cases, _ = scans_in(folder)
            return Sources({case.name: case for case in cases}, (), {})
        data = open_dataset(folder)
        every = {case.name: case for case in (*data.train, *data.test)}
        return Sources(every, data.channels, _label_table(data), tuple(c.name for c in data.test))


def _label_table(data: Dataset) -> dict[str, Any]:
    """The label table of a data set: its own, with regions, or one of its classes."""
    tables = [read_table(data.folder / name) for name in ("dataset.json", "cases.json")]
    own = next((table["labels"] for table in tables if table.get("labels")), None)
    if isinstance(own, Mapping) and read_label_table(own, data.folder)[0] == data.classes:
        return {name: value for name, value in own.items() if name != "ignore"}
    return dict(zip(data.classes, data.values))


@dataclass(frozen=True)
class LabelTable:
    """The classes of a project, and the values of its label files.

    Attributes:
        labels: The table as nnU-Net writes it, with "ignore".
        classes: Names of the classes, background first.
        values: The value of each.
        ignore: The value of voxels that nobody labelled.
    """

    labels: Mapping[str, Any]
    classes: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int

    @staticmethod
    def of(labels: Mapping[str, Any], where: str | Path) -> LabelTable:
        """Read a table of labels; "ignore" is added where it is missing.

        Args:
            labels: The table.
            where: Its file, for messages.

        Raises:
            ContextsegError: The table is wrong, or has no class.

        Example:
            >>> LabelTable.of({"background": 0, "liver": 1}, "project.json").labels
            {'background': 0, 'liver': 1, 'ignore': 2}
        """
        classes, values, ignore, _ = read_label_table(labels, where)
        if len(classes) < 2:
            what = "nothing says which classes there are"
            raise ContextsegError(where, what, "name them: --classes tumour,liver")
        if ignore is None:
            ignore = max(values) + 1
        whole = {name: value for name, value in labels.items() if name != "ignore"}
        return LabelTable({**whole, "ignore": ignore}, classes, values, ignore)


def named_labels(classes: Sequence[str]) -> dict[str, int]:
    """A table of labels for classes: 1, 2, 3 in their order.

    Args:
        classes: Names without the background.

    Raises:
        ContextsegError: A name is empty, taken, or there twice.
    """
    for name in classes:
        if not name or name.lower() in ("background", "ignore") or list(classes).count(name) > 1:
            what = "no name for a class, or one that is there twice"
            raise ContextsegError(f"--classes {name}", what, "give each class a name of its own")
    return {"background": 0} | {name: value for value, name in enumerate(classes, start=1)}


def locked_cases(sources: Sources, test: int | Sequence[str], seed: int) -> tuple[str, ...]:
    """The cases that are locked for measuring.

    Args:
        sources: The scans.
        test: Names of cases; or how many are to be drawn, by whole patients. Those of a test split
            are locked in any case.
        seed: Seed of the draw.

    Returns:
        Names of cases.

    Raises:
        ContextsegError: There is no such case, or none would be left to learn from.
    """
    free = [name for name in sources.cases if name not in sources.test]
    chosen: list[str] = []
    if isinstance(test, int):
        patients = sorted({sources.cases[name].patient for name in free})
        np.random.RandomState(seed).shuffle(patients)
        while len(chosen) < test and patients:
            patient = patients.pop()
            chosen += [name for name in free if sources.cases[name].patient == patient]
    else:
        for name in test:
            if name not in sources.cases:
                remedy = did_you_mean(name, sources.cases)
                raise ContextsegError(f"--test {name}", "there is no such case", remedy)
        chosen = list(test)
    locked = dict.fromkeys((*sources.test, *chosen))
    closed = {sources.cases[name].patient for name in locked}
    if all(case.patient in closed for case in sources.cases.values()):
        what = f"no case is left to learn from besides {some(locked)}"
        raise ContextsegError("--test", what, "lock fewer cases, or add scans of other patients")
    return tuple(name for name in sources.cases if name in locked)


def place_scan(case: Case, folder: Path, link: bool = False) -> None:
    """Copy a scan into a folder of scans, under the name of its case.

    Args:
        case: The case.
        folder: The folder, which exists.
        link: Link it in place of copying it. A header with its voxels elsewhere is written anew.

    Raises:
        ContextsegError: The scan cannot be read, or the disk cannot be written to.
    """
    for i, source in enumerate(case.images):
        numbered = f"{case.name}_{i:04d}" if len(case.images) > 1 else case.name
        if not source.is_dir() and len(files_of(source)) > 1:
            write(folder / f"{numbered}.nii.gz", read(source))
        else:
            copy_scan(source, folder / f"{numbered}{ending(source)}", link)


def copy_scan(source: Path, target: Path, link: bool) -> None:
    """Copy a file or a DICOM folder, or link it.

    Args:
        source: What to copy.
        target: Where to.
        link: Link it in place of copying it, where links can be made.
    """
    if link:
        with suppress(OSError, NotImplementedError):  # Windows without the right to, FAT
            os.symlink(source.resolve(), target)
            return
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
