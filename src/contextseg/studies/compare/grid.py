"""What is compared: methods x label budgets x folds x seeds, as cells, each a run of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from contextseg.arguments import Methods, setting_text
from contextseg.data.layouts import Case, Dataset, folds
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.pipeline import resolve_fold
from contextseg.settings import AUTO_FOLD, Settings, names

EVERYTHING = "all"
BUDGETS = "budgets.json"


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        dataset: Folder of the data set.
        folder: Folder of the comparison.
        methods: "method", "name=method", or "name=method:setting=value,setting=value"; the name is
            that of the row.
        seeds: Seeds of the runs.
        budgets: How many labelled patients each run may learn from, None for all. The others
            become unlabelled.
        folds: Folds to train and validate on, -1 for all cases; () leaves it to the data set, see
            `pipeline.resolve_fold`.
        settings: `name=value` for every run, before a method's own.
        draw: Seed by which the patients of the budgets are drawn.
        roi: The classes to segment, as `Settings.roi`.
        note: A sentence that every table and the page have; "" for none.
        time_s: Seconds of all runs together, one after the other, of which each gets an equal
            share; 0 leaves the length of each to its settings.
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
    note: str = ""
    time_s: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        name: Name of the run, and of its folder.
        folder: Folder of the run.
        method: Name of its row.
        budget: Number of labelled patients as text, or "all".
        settings: Settings of the run.
    """

    name: str
    folder: Path
    method: str
    budget: str
    settings: Settings

    @property
    def validated(self) -> bool:
        """Whether the run keeps a fold for validation."""
        return self.settings.fold != -1


# --- from words to a grid -------------------------------------------------------------------------


class Budgets(TypedDict):
    """What the file of budgets says."""

    draw: int
    patients: list[str]
    labelled: dict[str, dict[str, list[str]]]


def parse_grid(
    dataset: str | Path,
    folder: str | Path,
    methods: Methods,
    seeds: str = "0,1,2",
    budgets: str = "",
    folds: str = "",
    settings: Sequence[str] = (),
    roi: Sequence[str] = (),
    time_s: float = 0.0,
) -> Grid:
    """The grid that the words of a command line ask for.

    Args:
        dataset: Folder of the data set.
        folder: Folder of the comparison.
        methods: What to compare. As words: one by one, or several in one word, separated by ";"
            (by "," too if none has settings). By name: {"wide": "supervised:base_width=64"}, or
            {"wide": {"method": "supervised", "base_width": 64}}.
        seeds: Numbers with commas between.
        budgets: Numbers of labelled patients with commas between, or "all". "" is "all".
        folds: Numbers with commas between, or "all" for all cases. "" leaves it to the data set.
        settings: `name=value` for every run.
        roi: Classes to segment; () for all.
        time_s: Seconds of all runs together, one after the other; 0 for no such budget.

    Returns:
        The grid.

    Raises:
        ContextsegError: No method, a word that is no number, or a list without one.

    Example:
        >>> words = ["plain=supervised;wide=supervised:base_width=8,lr=0.1"]
        >>> grid = parse_grid("data", "out", words, budgets="5,all")
        >>> grid.methods, grid.budgets
        (('plain=supervised', 'wide=supervised:base_width=8,lr=0.1'), (5, None))
        >>> parse_grid("data", "out", {"wide": {"method": "supervised", "lr": 0.1}}).methods
        ('wide=supervised:lr=0.1',)
    """
    entries = _method_words(methods)
    if not entries:
        remedy = "name methods, as in --methods supervised"
        raise ContextsegError("--methods", "nothing to compare", remedy)
    return Grid(
        dataset=str(Path(dataset).absolute()),
        folder=Path(folder),
        methods=tuple(entries),
        seeds=_parse_numbers("--seeds", seeds, {}),
        budgets=_parse_numbers("--budgets", budgets, {EVERYTHING: None}) if budgets else (None,),
        folds=_parse_numbers("--folds", folds, {EVERYTHING: -1}) if folds else (),
        settings=tuple(settings),
        roi=tuple(roi),
        time_s=time_s,
    )


def _method_words(methods: Methods) -> list[str]:
    """Methods as words, "name=method:setting=value,setting=value" each."""
    if isinstance(methods, Mapping):
        return [_method_word(name, value) for name, value in methods.items()]
    words = []
    for text in [methods] if isinstance(methods, str) else methods:
        words += re.split(";" if ":" in text else "[;,]", text)
    return [word.strip() for word in words if word.strip()]


def _method_word(name: str, value: str | Mapping[str, Any]) -> str:
    if set(name) & set("=:;,"):
        what = "a name with one of the characters = : ; ,"
        raise ContextsegError(f"methods {name!r}", what, "give the method another name")
    if isinstance(value, str):
        return f"{name}={value}"
    settings = dict(value)
    method = settings.pop("method", None)
    if not method:
        what = "settings without the method that they are of"
        raise ContextsegError(f"methods {name!r}", what, 'give {"method": "supervised", ...}')
    assignments = ",".join(f"{key}={setting_text(part)}" for key, part in settings.items())
    return f"{name}={method}:{assignments}" if assignments else f"{name}={method}"


def _parse_method(word: str) -> tuple[str, str, list[str]]:
    """(name, method, assignments) of a method's word; a value may have commas."""
    head, _, rest = word.partition(":")
    name, equals, method = head.partition("=")
    assignments: list[str] = []
    for part in rest.split(",") if rest else ():
        if "=" in part or not assignments:
            assignments.append(part)
        else:
            assignments[-1] += f",{part}"
    if equals:
        return name.strip(), method.strip(), assignments
    return word, head.strip(), assignments


def method_names(grid: Grid) -> list[str]:
    """The names of the methods' rows, in order.

    Args:
        grid: What is compared.

    Returns:
        The names.
    """
    return [_parse_method(word)[0] for word in grid.methods]


def method_settings(word: str, dataset: str, settings: Sequence[str] = ()) -> Settings:
    """The settings that a method's word asks for.

    Args:
        word: "name=method:setting=value,...", as in `Grid.methods`.
        dataset: Folder of the data set.
        settings: `name=value` before the word's own.

    Returns:
        Settings of seed 0.

    Raises:
        ContextsegError: An unknown method or setting.
    """
    _, method, assignments = _parse_method(word)
    return Settings(dataset, method).set([*settings, *assignments])


def _parse_numbers(option: str, text: str, words: Mapping[str, Any]) -> tuple[Any, ...]:
    """Numbers with commas between; some may be words that stand for a value."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if part not in words and not part.isdecimal()]
    if wrong or not parts:
        what = f"{wrong[0] if wrong else 'nothing'} is no number"
        also = f", or {' or '.join(words)}" if words else ""
        raise ContextsegError(f"{option} {text}", what, f"write 0,1,2{also}")
    return tuple(words[part] if part in words else int(part) for part in parts)


# --- from a grid to cells -------------------------------------------------------------------------


def cells(grid: Grid, data: Dataset, keep_budgets: bool = True) -> list[Cell]:
    """Every run of the grid, seed by seed, so that a grid that is interrupted has complete seeds.

    Args:
        grid: What is compared.
        data: Its data set, opened.
        keep_budgets: Save which patients the budgets are. They are drawn once for a comparison.

    Returns:
        The cells.

    Raises:
        ContextsegError: An unknown method or setting, two methods with one name, or a budget that
            there are not enough labels for.
    """
    methods = [_parse_method(word) for word in grid.methods]
    titles = [_file_name(name) for name, _, _ in methods]
    for name in titles:
        if titles.count(name) > 1:
            what = "two methods have this name"
            remedy = "write one=method and other=method"
            raise ContextsegError(f"--methods {name}", what, remedy)
    fold_numbers = grid.folds or (
        resolve_fold(Settings(grid.dataset, fold=AUTO_FOLD, roi=grid.roi)).fold,
    )
    labelled = _budget_labels(grid, data, fold_numbers, keep_budgets)
    grid_cells = []
    for seed in dict.fromkeys(grid.seeds):
        for fold in dict.fromkeys(fold_numbers):
            for budget in dict.fromkeys(grid.budgets):
                for name, method, assignments in methods:
                    title = _cell_name(name, budget, fold, seed)
                    settings = Settings(grid.dataset, method, fold, seed, roi=grid.roi)
                    settings = settings.set([*grid.settings, *assignments])
                    if budget:
                        settings = replace(settings, labelled=labelled[fold, budget])
                    settings = _without_unlabelled(settings, data)
                    folder = grid.folder / "runs" / title
                    grid_cells.append(
                        Cell(title, folder, name, str(budget or EVERYTHING), settings)
                    )
    return [_with_time(cell, grid.time_s / len(grid_cells)) for cell in grid_cells]


def _with_time(cell: Cell, time_s: float) -> Cell:
    """A cell with its share of the time; one that is begun keeps the time that it was begun with.

    So a comparison may be given more methods or seeds later.
    """
    path = cell.folder / "run.json"
    if time_s and path.exists():
        time_s = Settings.from_json(read_json(path)["settings"]).training.time_s or time_s
    if not time_s:
        return cell
    settings = cell.settings.set([f"training.time_s={round(time_s, 1)}"])
    return replace(cell, settings=settings)


def _without_unlabelled(settings: Settings, data: Dataset) -> Settings:
    """Settings without unlabelled items in a batch, where no training case is unlabelled.

    So the budget "all" of a data set with all labels is a cell like any other: the same method,
    which has nothing but labelled scans. What somebody set is kept.
    """
    name = "unlabelled_items"
    if name in settings.arguments or f"arguments.{name}" not in names(settings.method):
        return settings
    keep = settings.labelled
    training = folds(data, settings.fold)[0]
    if any(case.label is None or (keep is not None and case.name not in keep) for case in training):
        return settings
    return replace(settings, arguments={**settings.arguments, name: 0})


def _cell_name(method: str, budget: int | None, fold: int, seed: int) -> str:
    parts = [_file_name(method)]
    if budget:
        parts.append(f"labels{budget}")
    if fold != -1:
        parts.append(f"fold{fold}")
    return "-".join([*parts, f"seed{seed}"])


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


# --- label budgets --------------------------------------------------------------------------------


def _budget_labels(
    grid: Grid, data: Dataset, fold_numbers: Sequence[int], keep: bool
) -> dict[tuple[int, int | None], tuple[str, ...]]:
    """The cases that keep their labels, by fold and budget.

    The patients of a budget are the first of one order that is drawn for all of them.
    """
    budgets = [n for n in grid.budgets if n is not None]
    if not budgets:
        return {}
    path = grid.folder / BUDGETS
    patients = sorted({case.patient for case in data.train if case.label})
    random = np.random.default_rng(grid.draw)
    order = [patients[i] for i in random.permutation(len(patients))]
    content: dict[str, Any] = {"draw": grid.draw, "patients": order, "labelled": {}}
    if path.exists():
        content = read_json(path, Budgets, "choose another --output folder")
    if content["draw"] != grid.draw or sorted(content["patients"]) != patients:
        what = "these budgets were drawn by another seed, or when other patients had labels"
        raise ContextsegError(path, what, "choose another --output folder")
    labelled: dict[tuple[int, int | None], tuple[str, ...]] = {}
    for fold in fold_numbers:
        training = folds(data, fold)[0]
        by_budget = content["labelled"].setdefault(EVERYTHING if fold == -1 else f"fold {fold}", {})
        for n in budgets:
            labelled[fold, n] = _first_labelled(training, content["patients"], n, data, fold)
            by_budget[str(n)] = list(labelled[fold, n])
    if keep:
        write_json(path, content)
    return labelled


def _first_labelled(
    training: Sequence[Case], order: Sequence[str], n: int, data: Dataset, fold: int
) -> tuple[str, ...]:
    """Names of the labelled training cases of the first n patients that have some."""
    labelled = [case for case in training if case.label]
    with_labels = {case.patient for case in labelled}
    patients = [patient for patient in order if patient in with_labels]
    if not 0 < n <= len(patients):
        where = "" if fold == -1 else f" of fold {fold}"
        what = f"a budget of {n} labelled patients; the training cases{where} have {len(patients)}"
        remedy = f"choose budgets from 1 to {len(patients)}, or all"
        raise ContextsegError(data.folder, what, remedy)
    return tuple(case.name for case in labelled if case.patient in patients[:n])
