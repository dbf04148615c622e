"""Which file of a download is which case, and what is missing.

Nothing but a `dataset.json` is opened here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from contextseg.data.tables import read_table
from contextseg.errors import ContextsegError, plural
from contextseg.studies.reproduce.table import Reproduction

Key = tuple[str, str]
"""A case and its scan, as the file names write them."""


@dataclass(frozen=True)
class DownloadedCase:
    """One scan of a download with its label files.

    Attributes:
        name: Name of the case in the prepared data set: "lits_007", or "atlas_031768_t01" with the
            scan's own part.
        patient: The name without that part.
        number: Number of the case. None where it is not a number.
        image: File of the scan.
        labels: Files of the label.
    """

    name: str
    patient: str
    number: int | None
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Download:
    """What a download holds.

    Attributes:
        cases: The whole cases.
        problems: What is missing or wrong, a sentence each.
        unused: Why cases that are there are not used, by name.
    """

    cases: tuple[DownloadedCase, ...]
    problems: tuple[str, ...]
    unused: dict[str, str]


def find_cases(reproduction: Reproduction, folder: str | Path) -> Download:
    """The cases of a download, and everything that is missing from it, at once.

    Args:
        reproduction: The data set.
        folder: Folder of the download.

    Returns:
        The whole cases, and all problems.

    Raises:
        ContextsegError: The folder does not exist, or holds no file of the layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "the folder does not exist"
        verb = f"contextseg reproduce {reproduction.name}"
        remedy = f"give the folder of the download; `{verb}` describes it"
        raise ContextsegError(folder, what, remedy)
    files = list(_files(folder))
    images = _by_case(reproduction.images, files, folder)
    labels = _by_case(reproduction.labels, files, folder)
    if not images and not labels:
        what = f"there is no file that belongs to {reproduction.title}"
        raise ContextsegError(folder, what, "it should hold\n" + reproduction.layout)
    cases = []
    problems = []
    for name, key in sorted((_case_name(reproduction, key), key) for key in images | labels):
        number = int(key[0]) if key[0].isdecimal() else None
        if reproduction.numbers and number not in reproduction.numbers:
            continue  # KiTS19's script fetches the scans of its hidden test split, too
        problem = _problem(images.get(key, []), labels.get(key, []), several=reproduction.masks)
        if problem:
            problems.append(f"{name}: {problem}")
        else:
            patient = _case_name(reproduction, (key[0], ""))
            case = DownloadedCase(name, patient, number, images[key][0], tuple(labels[key]))
            cases.append(case)
    first, unused = _first_scans(cases)
    known = {case for case, _ in images | labels}
    return Download(tuple(first), (*_absent(reproduction, known, files), *problems), unused)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, also through links to folders.

    Hidden files are left out: archives from a Mac are full of them.
    """
    visited = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in visited:
            folders[:] = []
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(path, name)
            if not name.startswith(".") and file.exists():  # a link may lead nowhere
                yield file


def _by_case(patterns: Sequence[str], files: Iterable[Path], folder: Path) -> dict[Key, list[Path]]:
    """The files of each case, by the first pattern that fits."""
    by_case: dict[Key, list[Path]] = {}
    for path in files:
        key = _match(patterns, path.relative_to(folder).as_posix())
        if key:
            by_case.setdefault(key, []).append(path)
    return by_case


def _match(patterns: Sequence[str], path: str) -> Key | None:
    """The case and scan that the first pattern that fits reads in a path."""
    for pattern in patterns:
        match = re.search(rf"(?:^|/){pattern}$", path)
        if match:
            return match["case"], match.groupdict().get("scan") or ""
    return None


def _case_name(reproduction: Reproduction, key: Key) -> str:
    return "_".join([reproduction.name, key[0].zfill(3), *filter(None, key[1:])])


def _problem(images: Sequence[Path], labels: Sequence[Path], several: bool) -> str:
    """What is wrong with the files of one case; "" if nothing."""
    if not images:
        return f"its scan is missing (there is {labels[0]})"
    if not labels:
        return f"its label is missing (there is {images[0]})"
    for title, paths in (("scan", images), ("label", [] if several else labels)):
        if len(paths) > 1:
            return f"there is more than one {title} ({paths[0]} and {paths[1]})"
    return ""


def _first_scans(
    cases: Sequence[DownloadedCase],
) -> tuple[list[DownloadedCase], dict[str, str]]:
    """One scan of each patient, the first by name; and why the others are left out, by name."""
    first: dict[str, DownloadedCase] = {}
    unused = {}
    for case in cases:
        kept = first.setdefault(case.patient, case)
        if kept is not case:
            unused[case.name] = f"a later scan of the patient of {kept.name}"
    return list(first.values()), unused


def _absent(reproduction: Reproduction, known: set[str], files: Sequence[Path]) -> list[str]:
    """Which cases of the whole download there is no file of.

    Only how many, where their numbers are not known.
    """
    listed = set(reproduction.numbers) or _listed(reproduction, files)
    absent = listed - {int(case) for case in known if case.isdecimal()}
    if absent:
        numbers = f"{len(absent)} of {len(listed)} cases is there: number {number_ranges(absent)}"
        return [f"neither scan nor label of {numbers}"]
    if len(known) < reproduction.count:
        return [f"{plural(len(known), 'case')} there, of {reproduction.count}"]
    return []


def _listed(reproduction: Reproduction, files: Sequence[Path]) -> set[int]:
    """The numbers of the cases that a Decathlon table lists as labelled; none without a table."""
    for path in files:
        if path.name == "dataset.json":
            entries = read_table(path).get("training") or ()
            keys = [
                _match(reproduction.images, str(entry.get("image", "")))
                for entry in entries
                if isinstance(entry, dict)
            ]
            return {int(key[0]) for key in keys if key and key[0].isdecimal()}
    return set()


def number_ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them.

    Args:
        numbers: Whole numbers in any order.

    Returns:
        Text in which numbers that follow one another are a range.

    Example:
        >>> number_ranges([7, 1, 2, 3])
        '1-3, 7'
    """
    runs = [
        [n for _, n in run]
        for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
