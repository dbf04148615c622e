"""What to compare: methods x label budgets x folds x seeds, as cells, each a run in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.layouts import Case, Dataset, folds
from contextseg.disk import Problem, read_json, write_json
from contextseg.job import settled
from contextseg.settings import UNDECIDED, Settings

ALL = "all"
BUDGETS = "budgets.json"


@dataclass(frozen=True)
class Grid:
    """What is to be compared.

    methods    "method", "name=method", or "name=method:setting=value,setting=value"; the name is the row's.
    budgets    how many labelled patients each run may learn from, None for all; the others become unlabelled.
    folds      folds to train and validate on, -1 for all cases; () as the data set decides (see `job.settled`).
    settings   `name=value` for every run, before a method's own.   draw: the seed by which budgets are drawn.
    roi        the classes to segment, as `Settings.roi`.
    """

    dataset: str
    folder: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[int | None, ...] = (None,)
    folds: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    draw: int = 0
    roi: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the grid. `budget` is a number as text, or "all"; `name` is that of its folder."""

    name: str
    folder: Path
    method: str
    budget: str
    settings: Settings


def asked(
    dataset: str | Path,
    folder: str | Path,
    methods: Sequence[str],
    seeds: str = "0,1,2",
    budgets: str = "",
    folds: str = "",
    settings: Sequence[str] = (),
    roi: Sequence[str] = (),
) -> Grid:
    """The grid that the words of a command line ask for.

    `methods` may be given one by one, or several in one word, separated by ";" (by "," too if none has settings). Lists
    of numbers are "5,10,all". Raises `Problem` for what is no number and for an empty list.

    >>> grid = asked("data", "out", ["plain=supervised;wide=supervised:base_width=8,lr=0.1"], budgets="5,all")
    >>> grid.methods, grid.budgets
    (('plain=supervised', 'wide=supervised:base_width=8,lr=0.1'), (5, None))
    """
    entries = [entry for word in methods for entry in re.split("[;,]" if ":" not in word else ";", word)]
    entries = [entry.strip() for entry in entries if entry.strip()]
    if not entries:
        raise Problem("--methods", "nothing to compare", "name methods, as in --methods supervised")
    everything = {ALL: None}
    return Grid(
        dataset=str(Path(dataset).absolute()),
        folder=Path(folder),
        methods=tuple(entries),
        seeds=_numbers("--seeds", seeds, {}),
        budgets=_numbers("--budgets", budgets, everything) if budgets else (None,),
        folds=_numbers("--folds", folds, {ALL: -1}) if folds else (),
        settings=tuple(settings),
        roi=tuple(roi),
    )


def named(option: str, words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE words of a command line. Raises `Problem` for one without a name, and for a name given twice.

    >>> named("--other", ["nnU-Net=predictions/a=b"])
    {'nnU-Net': 'predictions/a=b'}
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not name or not value or name in found:
            raise Problem(f"{option} {word}", "not a name and its value, once", f"write {option} NAME=VALUE")
        found[name] = value
    return found


def cells(grid: Grid, data: Dataset, keep_budgets: bool = True) -> list[Cell]:
    """Every run of the grid, seed by seed, so that a grid that is interrupted has complete seeds.

    Budgets are drawn once for a comparison's folder and saved there (`keep_budgets`). Raises `Problem` for an unknown
    method or setting, two methods with one name, and a budget that there are not enough labels for.
    """
    entries = [_entry(text) for text in grid.methods]
    names = [_file_name(name) for name, _, _ in entries]
    for name in names:
        if names.count(name) > 1:
            raise Problem(f"--methods {name}", "two methods have this name", "write one=method and other=method")
    numbers = grid.folds or (settled(Settings(grid.dataset, fold=UNDECIDED, roi=grid.roi)).fold,)
    kept = _budgets(grid, data, numbers, keep_budgets)
    made = []
    for seed in dict.fromkeys(grid.seeds):
        for fold in dict.fromkeys(numbers):
            for budget in dict.fromkeys(grid.budgets):
                for name, method, settings in entries:
                    labels = f"-labels{budget}" if budget else ""
                    title = f"{_file_name(name)}{labels}{'' if fold == -1 else f'-fold{fold}'}-seed{seed}"
                    chosen = Settings(grid.dataset, method, fold, seed, roi=grid.roi).set([*grid.settings, *settings])
                    chosen = replace(chosen, labelled=kept[fold, budget] if budget else None)
                    made.append(Cell(title, grid.folder / "runs" / title, name, str(budget or ALL), chosen))
    return made


def _entry(text: str) -> tuple[str, str, list[str]]:
    """(name, method, assignments) of "name=method:setting=value,setting=value"; a value may have commas."""
    head, _, rest = text.partition(":")
    name, equals, method = head.partition("=")
    assignments: list[str] = []
    for part in rest.split(",") if rest else ():
        if "=" in part or not assignments:
            assignments.append(part)
        else:
            assignments[-1] += f",{part}"
    return (name.strip(), method.strip(), assignments) if equals else (text, head.strip(), assignments)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _numbers(option: str, text: str, words: dict[str, Any]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if part not in words and not part.isdecimal()]
    if wrong or not parts:
        also = f", or {' or '.join(words)}" if words else ""
        raise Problem(f"{option} {text}", f"{wrong[0] if wrong else 'nothing'} is no number", f"write 0,1,2{also}")
    return tuple(words[part] if part in words else int(part) for part in parts)


# --- label budgets ----------------------------------------------------------------------------------------------------


def _budgets(
    grid: Grid, data: Dataset, numbers: Sequence[int], keep: bool
) -> dict[tuple[int, int | None], tuple[str, ...]]:
    """The cases that keep their labels, for each fold and budget: the first patients of one order drawn for all."""
    wanted = [n for n in grid.budgets if n is not None]
    if not wanted:
        return {}
    path = grid.folder / BUDGETS
    patients = sorted({case.patient for case in data.train if case.label})
    order = [patients[i] for i in np.random.default_rng(grid.draw).permutation(len(patients))]
    known: dict[str, Any] = read_json(path) if path.exists() else {"draw": grid.draw, "patients": order, "labelled": {}}
    if known["draw"] != grid.draw or sorted(known["patients"]) != patients:
        what = "these budgets were drawn by another seed, or when other patients had labels"
        raise Problem(path, what, "choose another --output folder")
    drawn: dict[tuple[int, int | None], tuple[str, ...]] = {}
    for fold in numbers:
        training = folds(data, fold)[0]
        for n in wanted:
            drawn[fold, n] = _first(training, known["patients"], n, data, fold)
            title = ALL if fold == -1 else f"fold {fold}"
            known["labelled"].setdefault(title, {})[str(n)] = list(drawn[fold, n])
    if keep:
        write_json(path, known)
    return drawn


def _first(training: Sequence[Case], order: Sequence[str], n: int, data: Dataset, fold: int) -> tuple[str, ...]:
    """The labelled training cases of the first n patients that have some."""
    labelled = [case for case in training if case.label]
    there = {case.patient for case in labelled}
    patients = [patient for patient in order if patient in there]
    if not 0 < n <= len(patients):
        where = "" if fold == -1 else f" of fold {fold}"
        what = f"a budget of {n} labelled patients; the training cases{where} have {len(patients)}"
        raise Problem(data.folder, what, f"choose budgets from 1 to {len(patients)}, or all")
    return tuple(case.name for case in labelled if case.patient in patients[:n])
