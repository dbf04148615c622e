"""Which file of a download is which case, and what is missing. Nothing but a `dataset.json` is opened here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from contextseg.data.tables import read_table
from contextseg.disk import Problem
from contextseg.recipes.table import Recipe


@dataclass(frozen=True)
class Found:
    """One scan of a download with its label files.

    name     what the prepared data set calls it: "lits_007", or "atlas_031768_t01" with the scan's own part.
    patient  the name without that part.   number: the case's, where it is one.
    """

    name: str
    patient: str
    number: int | None
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Search:
    """What was found: whole cases, what is wrong (a sentence for each), and cases that are there but not used."""

    cases: tuple[Found, ...]
    wrong: tuple[str, ...]
    unused: dict[str, str]


def search(recipe: Recipe, folder: str | Path) -> Search:
    """The cases of a download, and everything that is missing from it, at once.

    Raises `Problem` for a folder that is not there, and for one that holds no file of the recipe's layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "the folder does not exist"
        raise Problem(folder, what, f"give the folder of the download; `contextseg recipe {recipe.name}` describes it")
    files = list(_files(folder))
    images, labels = _by_case(recipe.images, files, folder), _by_case(recipe.labels, files, folder)
    if not images and not labels:
        what = f"there is no file that belongs to {recipe.title}"
        raise Problem(folder, what, "it should hold\n" + recipe.layout)
    cases, wrong = [], []
    for name, key in sorted((_named(recipe, key), key) for key in images | labels):
        number = int(key[0]) if key[0].isdecimal() else None
        if recipe.numbers and number not in recipe.numbers:
            continue  # KiTS19's script fetches the scans of its hidden test split, too
        what = _doubled(images.get(key, []), labels.get(key, []), several=recipe.masks)
        if what:
            wrong.append(f"{name}: {what}")
        else:
            patient = _named(recipe, (key[0], ""))
            cases.append(Found(name, patient, number, images[key][0], tuple(labels[key])))
    first, unused = _first_scans(cases)
    known = {case for case, _ in images | labels}
    return Search(tuple(first), (*_absent(recipe, known, files), *wrong), unused)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, also through links to folders, but no hidden ones (archives from a Mac are full of them)."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            there = (Path(path, name) for name in sorted(names) if not name.startswith("."))
            yield from (file for file in there if file.exists())  # a link may lead nowhere
        seen.add(real)


Key = tuple[str, str]
"""A case and its scan, as the file names write them."""


def _by_case(patterns: Sequence[str], files: Iterable[Path], folder: Path) -> dict[Key, list[Path]]:
    """The files that a pattern, the first that does, says to belong to a case."""
    found: dict[Key, list[Path]] = {}
    for path in files:
        match = _match(patterns, path.relative_to(folder).as_posix())
        if match:
            found.setdefault(match, []).append(path)
    return found


def _match(patterns: Sequence[str], path: str) -> Key | None:
    """What the first pattern that fits makes of a path."""
    for pattern in patterns:
        match = re.search(rf"(?:^|/){pattern}$", path)
        if match:
            return match["case"], match.groupdict().get("scan") or ""
    return None


def _named(recipe: Recipe, key: Key) -> str:
    return "_".join([recipe.name, key[0].zfill(3), *filter(None, key[1:])])


def _doubled(images: Sequence[Path], labels: Sequence[Path], several: bool) -> str:
    """What is wrong with the files of one case; "" if nothing."""
    if not images:
        return f"its scan is missing (there is {labels[0]})"
    if not labels:
        return f"its label is missing (there is {images[0]})"
    for title, paths in (("scan", images), ("label", [] if several else labels)):
        if len(paths) > 1:
            return f"there is more than one {title} ({paths[0]} and {paths[1]})"
    return ""


def _first_scans(cases: Sequence[Found]) -> tuple[list[Found], dict[str, str]]:
    """One scan of each patient, the first by name, and what was left out for it."""
    first: dict[str, Found] = {}
    unused = {}
    for case in cases:
        kept = first.setdefault(case.patient, case)
        if kept is not case:
            unused[case.name] = f"a later scan of the patient of {kept.name}"
    return list(first.values()), unused


def _absent(recipe: Recipe, known: set[str], files: Sequence[Path]) -> list[str]:
    """Which cases of the whole download there is no file of; only how many, where nobody knows their numbers."""
    listed = set(recipe.numbers) or _listed(recipe, files)
    gone = listed - {int(case) for case in known if case.isdecimal()}
    if gone:
        return [f"neither scan nor label of {len(gone)} of {len(listed)} cases is there: number {ranges(gone)}"]
    if len(known) < recipe.count:
        return [f"{len(known)} cases are there, of {recipe.count}"]
    return []


def _listed(recipe: Recipe, files: Sequence[Path]) -> set[int]:
    """The numbers of the cases that a Decathlon table lists as labelled; none without such a table."""
    for path in files:
        if path.name == "dataset.json":
            entries = read_table(path).get("training") or ()
            keys = [_match(recipe.images, str(entry.get("image", ""))) for entry in entries if isinstance(entry, dict)]
            return {int(key[0]) for key in keys if key and key[0].isdecimal()}
    return set()


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them.

    >>> ranges([7, 1, 2, 3])
    '1-3, 7'
    """
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
