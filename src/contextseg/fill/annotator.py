"""A simulated person who labels some slices of one structure, has the rest filled, and corrects slice after slice.

The person knows the truth, so that a slice that was looked at is right. What is measured is how good the filled scan is
after how many slices; which slice comes next is a rule, of which one sees the truth and one does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import nan
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem, did_you_mean
from contextseg.fill.filling import Filled, advice
from contextseg.fill.slices import Partial
from contextseg.metrics import evaluate_case
from contextseg.volume import Volume

Ranges = Mapping[int, tuple[int, int]]
Fill = Callable[[Partial, Ranges], Filled]
"""From labelled slices, and where the structure may be, to a filled scan: `filling.fill` of a scan, a way chosen."""

RULES = ("worst", "errors", "advice")
"""Which slice comes next: the one with the worst Dice or the one with most wrong pixels, which only somebody who knows
the truth can say, or the one that `filling.advice` names."""


@dataclass(frozen=True)
class Look:
    """What came of some labelled slices.

    dsc, nsd  of the whole scan.   rest  Dice over the slices not labelled; NaN where neither truth nor filling has any.
    next      the slice that each of `RULES` would label now; None where there is nothing to correct, or to label.
    seconds   that the filling took.
    """

    dsc: float
    nsd: float
    rest: float
    next: Mapping[str, int | None]
    seconds: float


Looking = Callable[[frozenset[int]], Look]
"""From the numbers of the labelled slices to what comes of them."""


def annotate(
    truth: Volume,
    axis: int,
    fill: Fill,
    *,
    starts: Sequence[str] = ("uniform",),
    first: int = 3,
    rules: Sequence[str] = ("worst", "advice"),
    rounds: int = 8,
    tolerance_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """One structure of one scan, once for each start and rule: a row for each round, round 0 being the start.

    truth   (D, H, W) integers: 1 the structure, 0 not, `IGNORE` where nobody knows, which is never scored.
    axis    0, 1 or 2 of (D, H, W): what the slices are across.   fill  called once for each set of labelled slices.
    starts  of `STARTS`, each with `first` slices (fewer, if the structure has fewer).   rules  of `RULES`.
    rounds  slices that are corrected after the start, one in each.   tolerance_mm  of the NSD.

    A start that labels the first and the last slice of the structure ("uniform", two or more) says so: nothing is
    filled beyond them.

    A row holds start, rule, round, slices (labelled so far), slice (labelled in this round; NaN at the start and where
    there was nothing to label), dsc, nsd, dsc_rest, seconds (of the filling). A person who finds nothing to correct
    labels no more: the remaining rows repeat the last.

    Raises `Problem` for an unknown start or rule, numbers that are too small, and a truth without the structure.
    """
    check(starts, rules, first, rounds)
    slices = np.moveaxis(truth.array, axis, 0)
    if not (slices == 1).any():
        raise Problem("truth", "the structure is not in this scan", "leave it out for this scan")
    there = np.flatnonzero((slices == 1).any((1, 2)))
    ends = int(there[0]), int(there[-1])
    look = cache(partial(looked, truth, axis, fill, tolerance_mm))
    bounded = cache(partial(looked, truth, axis, fill, tolerance_mm, ranges={1: ends}))
    rows = []
    for start in starts:
        begun = STARTS[start](slices, first, look)
        look_at = bounded if start == "uniform" and first > 1 else look
        for rule in rules:
            rows += [{"start": start, "rule": rule, **row} for row in _rounds(look_at, frozenset(begun), rule, rounds)]
    return rows


def check(starts: Sequence[str], rules: Sequence[str], first: int, rounds: int) -> None:
    """Raise `Problem` for what `annotate` cannot do."""
    for option, names, known in (("--start", starts, STARTS), ("--rules", rules, RULES)):
        for name in names:
            if name not in known:
                raise Problem(f"{option} {name}", "there is no such name", did_you_mean(name, known))
        if not names:
            raise Problem(option, "nothing is named", f"choose from {', '.join(known)}")
    if first < 1 or rounds < 0:
        raise Problem(f"--slices {first} --rounds {rounds}", "too few", "start with one slice or more")


def _rounds(look: Looking, labelled: frozenset[int], rule: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one start and rule."""
    rows: list[dict[str, Any]] = []
    chosen: int | None = None
    for i in range(rounds + 1):
        found = look(labelled)
        rows.append(
            {
                "round": i,
                "slices": len(labelled),
                "slice": nan if chosen is None else chosen,
                "dsc": found.dsc,
                "nsd": found.nsd,
                "dsc_rest": found.rest,
                "seconds": found.seconds,
            }
        )
        chosen = found.next[rule]
        labelled = labelled if chosen is None else labelled | {chosen}
    return rows


# --- which slices to begin with ---------------------------------------------------------------------------------------


def uniform(truth: np.ndarray, count: int, look: Looking | None = None) -> list[int]:
    """`count` evenly spread ones of the slices (n, H, W) that hold the structure, the first and the last among them.

    One is the middle one; all where there are no more.

    >>> truth = np.array([0, 1, 1, 1, 1, 1, 0])[:, None, None]
    >>> uniform(truth, 1), uniform(truth, 3), uniform(truth, 9)
    ([3], [1, 3, 5], [1, 2, 3, 4, 5])
    """
    there = np.flatnonzero((truth == 1).any((1, 2)))
    if count == 1:
        return [int(there[len(there) // 2])]
    return there[np.linspace(0, len(there) - 1, min(count, len(there))).round().astype(int)].tolist()


def largest(truth: np.ndarray, count: int, look: Looking | None = None) -> list[int]:
    """The slices that hold the structure, in `count` equal runs, and of each run the slice where it is largest.

    The `count` largest slices of all would be neighbours. With one it is the largest of all; of equals the first.

    >>> truth = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]])[:, None]
    >>> largest(truth, 1), largest(truth, 2)
    ([2], [2, 4])
    """
    area = (truth == 1).sum((1, 2))
    runs = np.array_split(np.flatnonzero(area), min(count, int(np.count_nonzero(area))))
    return [int(run[area[run].argmax()]) for run in runs]


def suggested(truth: np.ndarray, count: int, look: Looking) -> list[int]:
    """The largest slice, where a person would begin, and after it what `filling.advice` says, filling in between."""
    labelled = frozenset(largest(truth, 1))
    while len(labelled) < count:
        following = look(labelled).next["advice"]
        if following is None:
            break
        labelled |= {following}
    return sorted(labelled)


STARTS: dict[str, Callable[[np.ndarray, int, Looking], list[int]]] = {
    "uniform": uniform,
    "largest": largest,
    "suggest": suggested,
}
"""By name: from the truth (n, H, W) and how many, which slices are labelled first. The first two see where the
structure begins and ends, as somebody does who leafs through the scan."""


# --- one look ---------------------------------------------------------------------------------------------------------


def looked(
    truth: Volume, axis: int, fill: Fill, tolerance_mm: float, labelled: frozenset[int], ranges: Ranges | None = None
) -> Look:
    """Label these slices as the truth has them, fill the rest, score it, and find the next slice by each rule."""
    slices = np.moveaxis(truth.array, axis, 0)
    given = Partial(axis, {i: slices[i].astype(np.int16) for i in sorted(labelled)})
    started = time.perf_counter()
    filled = fill(given, ranges or {})
    seconds = time.perf_counter() - started
    [whole] = evaluate_case(
        filled.label.array, truth.array, truth.spacing_mm, {"structure": [1]}, tolerance_mm=tolerance_mm
    )
    right, wrong = by_slice(slices, np.moveaxis(filled.label.array, axis, 0))
    open_slices = [i for i in range(len(slices)) if i not in labelled]
    both, size = 2 * right[open_slices].sum(), (2 * right + wrong)[open_slices].sum()
    following = {
        "worst": worst(right, wrong, labelled),
        "errors": max((i for i in open_slices if wrong[i]), key=lambda i: wrong[i], default=None),
        "advice": _advised(filled, given, slices),
    }
    return Look(whole["dsc"], whole["nsd"], float(both / size) if size else nan, following, seconds)


def by_slice(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each slice of (n, H, W): pixels of the structure that were found, and wrong pixels, where the truth is known.

    A slice's Dice is 2 right / (2 right + wrong).

    >>> by_slice(np.array([[[1, 1, 0, -1]]]), np.array([[[1, 0, 1, 1]]]))
    (array([1]), array([2]))
    """
    true, mine, known = truth == 1, found == 1, truth != IGNORE
    return (true & mine).sum((1, 2)), ((true != mine) & known).sum((1, 2))


def worst(right: np.ndarray, wrong: np.ndarray, labelled: frozenset[int]) -> int | None:
    """The slice with the lowest Dice among those with a wrong pixel; of equals that with most wrong pixels.

    None where no slice is wrong. `right` and `wrong` (n,) are those of `by_slice`.

    >>> worst(np.array([3, 0, 0, 5]), np.array([2, 1, 4, 0]), frozenset())
    2
    """
    faulty = [i for i in np.flatnonzero(wrong).tolist() if i not in labelled]
    return min(faulty, key=lambda i: (right[i] / (2 * right[i] + wrong[i]), -wrong[i]), default=None)


def _advised(filled: Filled, given: Partial, slices: np.ndarray) -> int | None:
    """What `filling.advice` says; a slice of which nobody knows anything cannot be labelled."""
    unknown = {i: label for i, label in enumerate(slices) if (label == IGNORE).all()}
    there = Partial(given.axis, {**unknown, **given.slices})
    return advice(filled, there)[0] if len(there.slices) < len(slices) else None
