"""10 scans to train, 2 to validate and 5 to test, out of any labelled data set, as links.

Nobody published which 17 scans of LiTS the paper took. A data set that says itself which cases
train, validate (`splits_final.json`) and test (labels of the test split) is taken as it is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.disk import read_json, replacing, write_json
from contextseg.errors import ContextsegError, plural
from contextseg.volume import ending, read_labels, write

SCANS = (10, 2, 5)
"""The paper's scans to train, to validate, and to test."""
DRAW_SEED = 0
"""The seed of the draw."""
LIVER = "liver"
INSIDE = {"cancer", "tumour", "tumor", "lesion", "liver tumour", "liver tumor"}
"""Names of what is part of the liver in LiTS."""


@dataclass(frozen=True)
class TableScans:
    """A data set that is ready.

    Attributes:
        folder: Its folder.
        train: Names of the training cases.
        validation: Names of the validation cases.
        test: Names of the test cases.
        origin: How they were chosen, in words.
    """

    folder: Path
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    origin: str

    @property
    def counts(self) -> tuple[int, int, int]:
        """Scans to train, to validate, and to test."""
        return len(self.train), len(self.validation), len(self.test)


def arrange_seventeen(dataset: str | Path, folder: str | Path) -> TableScans:
    """A data set with one fold and a labelled test split.

    Args:
        dataset: Any labelled data set.
        folder: Where the data set of 17 scans goes, unless the data set says itself which are
            which.

    Returns:
        The data set. Of 17 drawn scans each is of another patient; a tumour in a liver is liver.

    Raises:
        ContextsegError: There are fewer than 17 patients with labels, their files are of several
            kinds, or the folder was arranged from others.
    """
    data = open_dataset(dataset)
    tested = [case for case in data.test if case.label]
    if data.splits and tested:
        training, validating = folds(data, 0)
        return TableScans(
            Path(dataset).absolute(),
            _names([case for case in training if case.label]),
            _names([case for case in validating if case.label]),
            _names(tested),
            "as the data set says: fold 0, and its test split",
        )
    train, validation, test = draw_cases(data)
    arranged = TableScans(
        Path(folder).absolute(),
        _names(train),
        _names(validation),
        _names(test),
        f"drawn with seed {DRAW_SEED}, one scan of each patient",
    )
    _keep(arranged, data)
    _lay_out(arranged.folder, data, [*train, *validation], test)
    fold = {"train": list(arranged.train), "val": list(arranged.validation)}
    write_json(arranged.folder / "splits_final.json", [fold])
    return arranged


def _names(cases: Sequence[Case]) -> tuple[str, ...]:
    return tuple(case.name for case in cases)


def draw_cases(data: Dataset) -> tuple[list[Case], list[Case], list[Case]]:
    """The cases to train, to validate and to test, one of each patient.

    Args:
        data: The data set. Where its test split has labels, the test cases are of that.

    Returns:
        `SCANS` cases.

    Raises:
        ContextsegError: There are too few patients with labels.
    """
    many, some, tested = SCANS
    first = _one_of_each(data.train)
    held_out = _one_of_each(data.test)
    known = {case.patient for case in held_out}
    first = [case for case in first if case.patient not in known]
    if len(held_out) >= tested:
        test = _drawn(held_out)[:tested]
        rest = _drawn(first)
    else:
        pool = _drawn(first)
        test, rest = pool[:tested], pool[tested:]
    if len(test) < tested or len(rest) < many + some:
        count = plural(len(rest), "patient")
        what = f"{count} with labels to train and validate on, {len(test)} to test on"
        remedy = (
            f"give a data set of {sum(SCANS)} labelled patients, or one with splits_final.json "
            "and a labelled test split"
        )
        raise ContextsegError(data.folder, what, remedy)
    return rest[:many], rest[many : many + some], test


def _one_of_each(cases: Sequence[Case]) -> list[Case]:
    """The first labelled case of each patient, in the order of their names."""
    by_patient: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: case.name):
        if case.label:
            by_patient.setdefault(case.patient, case)
    return list(by_patient.values())


def _drawn(cases: Sequence[Case]) -> list[Case]:
    order = list(range(len(cases)))
    np.random.RandomState(DRAW_SEED).shuffle(order)  # a stream that numpy has frozen
    return [cases[i] for i in order]


def _keep(arranged: TableScans, data: Dataset) -> None:
    """Write `split.json`.

    Raises `ContextsegError` where the folder holds another split: runs may have learnt from it.
    """
    path = arranged.folder / "split.json"
    split = {part: list(getattr(arranged, part)) for part in ("train", "validation", "test")}
    if path.exists():
        before = read_json(path)
        if {part: before.get(part) for part in split} != split:
            what = "this folder was arranged from other cases"
            raise ContextsegError(arranged.folder, what, "choose another --output folder")
    write_json(path, {"how": arranged.origin, "from": str(data.folder), **split})


def _lay_out(folder: Path, data: Dataset, train: Sequence[Case], test: Sequence[Case]) -> None:
    """nnU-Net's layout; `dataset.json` comes last."""
    files = [path for case in (*train, *test) for path in (*case.images, case.label) if path]
    endings = sorted({ending(path) for path in files})
    if len(endings) > 1 or any(path.is_dir() for path in files):
        what = f"its files are of several kinds ({', '.join(endings)})"
        raise ContextsegError(data.folder, what, "convert all to .nii.gz")
    whole = LIVER in data.classes and set(data.classes[1:]) - {LIVER} <= INSIDE
    whole = whole and len(data.classes) > 2
    labels = dict(zip(data.classes, data.values))
    if whole:
        labels = {data.classes[0]: 0, LIVER: 1}
    if data.ignore is not None:
        labels["ignore"] = data.ignore
    for part, cases in (("Tr", train), ("Ts", test)):
        for case in cases:
            for i, image in enumerate(case.images):
                place = folder / f"images{part}" / f"{case.name}_{i:04}{endings[0]}"
                _link(Path(image).absolute(), place)
            assert case.label
            place = folder / f"labels{part}" / f"{case.name}{endings[0]}"
            if not whole:
                _link(Path(case.label).absolute(), place)
            elif not place.exists():
                label = read_labels(case.label)
                inside = np.isin(label.array, data.values[1:]).astype(np.uint8)
                if data.ignore is not None:
                    inside = np.where(label.array == data.ignore, data.ignore, inside)
                write(place, label.with_array(inside))
    table = {
        "name": f"{data.name}17",
        "channel_names": {str(i): name for i, name in enumerate(data.channels)},
        "labels": labels,
        "numTraining": len(train),
        "file_ending": endings[0],
    }
    write_json(folder / "dataset.json", table)


def _link(target: Path, place: Path) -> None:
    """A link at `place`; where links cannot be made, a copy. What is there already stays."""
    if place.exists():
        return
    with replacing(place) as temporary:
        try:
            os.symlink(target, temporary)
        except (OSError, NotImplementedError):  # Windows without the right to, FAT
            shutil.copyfile(target, temporary)
