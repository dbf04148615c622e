"""Of which classes the largest connected part alone should be kept, chosen on validation cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.console import Progress
from contextseg.data.components import largest_component
from contextseg.disk import csv_text, read_rows, write_text
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import Pair, read_pair
from contextseg.parallel import map_cases

LARGEST_TABLE = "largest_components.csv"
"""The table of the choice, in the folder of the scores that it was made with."""

LARGEST_COLUMNS = ("class", "cases", "dice", "dice_largest", "better", "worse", "chosen")

FEWEST_CASES = 5
"""Validation cases of a class below which nothing is chosen for it."""


def compare_largest(
    pairs: Sequence[Pair],
    classes: Mapping[str, int],
    ignore: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """What keeping the largest connected part of each class does to its Dice, class by class.

    A class is chosen where, over at least `FEWEST_CASES` cases, its mean Dice rises and more cases
    become better than worse. A case with the class in neither map does not count.

    Args:
        pairs: Predictions and references of cases that no network of the prediction was trained on.
        classes: Value of each class in label maps, by name.
        ignore: Label value of voxels that do not count. None: there is none.
        workers: Number of cases at a time.
        progress: Called with (number done, number of cases) after each case.

    Returns:
        A row with `LARGEST_COLUMNS` for each class, "chosen" a bool; the Dice of no case is NaN.

    Raises:
        ContextsegError: A case cannot be read.
    """
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in classes}

    def of_case(pair: Pair) -> dict[str, tuple[float, float]]:
        prediction, reference, _ = read_pair(pair, ignore)
        known = [n for n in classes if pair.annotated is None or n in pair.annotated]
        counted = np.ones(reference.shape, bool) if ignore is None else reference != ignore
        return {name: _both(prediction, reference, classes[name], counted) for name in known}

    for _, result in map_cases(of_case, pairs, workers, progress):
        if isinstance(result, ContextsegError):
            raise result
        for name, both in result.items():
            if not isnan(both[0]):
                scores[name].append(both)
    return [_row(name, both) for name, both in scores.items()]


def _both(
    prediction: np.ndarray, reference: np.ndarray, value: int, counted: np.ndarray
) -> tuple[float, float]:
    """The Dice of a class as it is predicted, and of its largest part."""
    own = (prediction == value).astype(np.uint8)
    truth = (reference == value) & counted
    kept, change = largest_component(own)
    before = _dice((own > 0) & counted, truth)
    return before, _dice((kept > 0) & counted, truth) if change.removed_components else before


def _dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """The Dice of two masks; NaN where both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else nan


def _row(name: str, both: Sequence[tuple[float, float]]) -> dict[str, Any]:
    better = sum(after > before for before, after in both)
    worse = sum(after < before for before, after in both)
    before, after = (sum(dice) / len(both) for dice in zip(*both)) if both else (nan, nan)
    chosen = len(both) >= FEWEST_CASES and after > before and better > worse
    numbers = (len(both), before, after, better, worse, chosen)
    return dict(zip(LARGEST_COLUMNS, (name, *numbers)))


def save_largest(rows: Iterable[Mapping[str, Any]], folder: str | Path) -> tuple[str, ...]:
    """Write the choice as `largest_components.csv`.

    Args:
        rows: What `compare_largest` returned.
        folder: Where the table goes.

    Returns:
        The classes that were chosen.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    rows = [{**row, "chosen": "yes" if row["chosen"] else "no"} for row in rows]
    write_text(Path(folder) / LARGEST_TABLE, csv_text(LARGEST_COLUMNS, rows))
    return tuple(row["class"] for row in rows if row["chosen"] == "yes")


def chosen_largest(folder: str | Path) -> tuple[str, ...]:
    """The classes that a table of `save_largest` chose.

    Args:
        folder: Where the table lies.

    Returns:
        Their names; () where there is no such table.
    """
    rows = read_rows(Path(folder) / LARGEST_TABLE, LARGEST_COLUMNS)
    return tuple(row["class"] for row in rows if row["chosen"] == "yes")
