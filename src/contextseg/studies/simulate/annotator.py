"""A simulated annotator, who labels some slices of one structure and corrects one after another.

After each correction the rest of the scan is filled. The annotator knows the truth, so a labelled
slice is right. What is measured is how good the filled scan is after how many slices; which slice
comes next is a rule, some of which see the truth and one of which does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from math import nan
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import lattice_mm
from contextseg.metrics import evaluate_case
from contextseg.propagation import Filled, LabelledSlices, suggest_slice
from contextseg.volume import Volume

Ranges = Mapping[int, tuple[int, int]]
"""Class to the first and the last slice that may hold it."""
FillFunction = Callable[[LabelledSlices, Ranges], Filled]
"""From labelled slices, and where the structure may be, to a filled scan: `propagation.fill` of a
scan in one of its ways.
"""

CORRECTION_RULES = ("worst", "errors", "advice")
"""Which slice comes next: the one with the worst Dice or the one with most wrong pixels, which only
somebody who knows the truth can tell, or the one that `propagation.suggest_slice` names.
"""


@dataclass(frozen=True)
class Evaluation:
    """How good a scan is that was filled from some labelled slices.

    Attributes:
        dsc: Dice of the whole scan.
        nsd: Normalised surface Dice of the whole scan.
        dsc_rest: Dice over the slices that are not labelled. NaN where neither truth nor filling
            has any.
        next_slice: The slice that each of `CORRECTION_RULES` would label now. None where there is
            nothing to correct, or to label.
        seconds: Time that filling took.
    """

    dsc: float
    nsd: float
    dsc_rest: float
    next_slice: Mapping[str, int | None]
    seconds: float


Evaluate = Callable[[frozenset[int]], Evaluation]
"""From the numbers of the labelled slices to the evaluation of the scan filled from them."""


def annotate_structure(
    truth: Volume,
    axis: int,
    fill: FillFunction,
    *,
    starts: Sequence[str] = ("uniform",),
    first: int = 3,
    rules: Sequence[str] = ("worst", "advice"),
    rounds: int = 8,
    tolerance_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """Annotate one structure of one scan, once for each start and rule.

    A start that labels the first and the last slice of the structure ("uniform" with two slices or
    more) limits the filling to these. An annotator who finds nothing to correct labels no more: the
    remaining rows repeat the last.

    Args:
        truth: (D, H, W) integers: 1 the structure, 0 not, `IGNORE` where nobody knows, which is
            never scored.
        axis: 0, 1 or 2 of (D, H, W): what the slices are across.
        fill: Called once for each set of labelled slices.
        starts: Of `STARTS`, which slices are labelled first.
        first: How many these are; fewer, if the structure has fewer.
        rules: Of `CORRECTION_RULES`, which slice is labelled next.
        rounds: Slices that are corrected after the start, one in each round.
        tolerance_mm: Tolerance of the NSD.

    Returns:
        A row for each start, rule and round, round 0 being the start: start, rule, round, slices
        (labelled so far), slice (labelled in this round; NaN at the start and where there was
        nothing to label), dsc, nsd, dsc_rest, and seconds (of the filling).

    Raises:
        ContextsegError: For an unknown start or rule, numbers that are too small, and a truth
            without the structure.
    """
    check_rules(starts, rules, first, rounds)
    slices = np.moveaxis(truth.array, axis, 0)
    if not (slices == 1).any():
        raise ContextsegError(
            "truth", "the structure is not in this scan", "leave it out for this scan"
        )
    holding = np.flatnonzero((slices == 1).any((1, 2)))
    ends = int(holding[0]), int(holding[-1])
    evaluate = cache(partial(evaluate_slices, truth, axis, fill, tolerance_mm))
    bounded = cache(partial(evaluate_slices, truth, axis, fill, tolerance_mm, ranges={1: ends}))
    rows = []
    for start in starts:
        labelled = frozenset(STARTS[start](slices, first, evaluate))
        both_ends = start == "uniform" and first > 1
        for rule in rules:
            for row in _rounds(bounded if both_ends else evaluate, labelled, rule, rounds):
                rows.append({"start": start, "rule": rule, **row})
    return rows


def check_rules(starts: Sequence[str], rules: Sequence[str], first: int, rounds: int) -> None:
    """Check the arguments of `annotate_structure`.

    Args:
        starts: As there.
        rules: As there.
        first: As there.
        rounds: As there.

    Raises:
        ContextsegError: For an unknown start or rule, none at all, and numbers that are too small.
    """
    for option, names, known in (("--start", starts, STARTS), ("--rules", rules, CORRECTION_RULES)):
        for name in names:
            if name not in known:
                raise ContextsegError(
                    f"{option} {name}", "there is no such name", did_you_mean(name, known)
                )
        if not names:
            raise ContextsegError(option, "nothing is named", f"choose from {', '.join(known)}")
    if first < 1 or rounds < 0:
        raise ContextsegError(
            f"--slices {first} --rounds {rounds}", "too few", "start with one slice or more"
        )


def _rounds(
    evaluate: Evaluate, labelled: frozenset[int], rule: str, rounds: int
) -> list[dict[str, Any]]:
    """The rows of one start and rule."""
    rows: list[dict[str, Any]] = []
    chosen: int | None = None
    for i in range(rounds + 1):
        evaluation = evaluate(labelled)
        rows.append(
            {
                "round": i,
                "slices": len(labelled),
                "slice": nan if chosen is None else chosen,
                "dsc": evaluation.dsc,
                "nsd": evaluation.nsd,
                "dsc_rest": evaluation.dsc_rest,
                "seconds": evaluation.seconds,
            }
        )
        chosen = evaluation.next_slice[rule]
        labelled = labelled if chosen is None else labelled | {chosen}
    return rows


# --- which slices come first ----------------------------------------------------------------------


def start_uniform(truth: np.ndarray, count: int, evaluate: Evaluate | None = None) -> list[int]:
    """Evenly spread slices that hold the structure, the first and the last among them.

    Args:
        truth: (n, H, W), 1 the structure.
        count: How many. One is the middle slice; if there are no more, all are taken.
        evaluate: Not used.

    Returns:
        Slice numbers, sorted.

    Example:
        >>> truth = np.array([0, 1, 1, 1, 1, 1, 0])[:, None, None]
        >>> start_uniform(truth, 1), start_uniform(truth, 3), start_uniform(truth, 9)
        ([3], [1, 3, 5], [1, 2, 3, 4, 5])
    """
    holding = np.flatnonzero((truth == 1).any((1, 2)))
    if count == 1:
        return [int(holding[len(holding) // 2])]
    places = np.linspace(0, len(holding) - 1, min(count, len(holding))).round().astype(int)
    return holding[places].tolist()


def start_largest(truth: np.ndarray, count: int, evaluate: Evaluate | None = None) -> list[int]:
    """The largest slice in each of equally long runs of the slices that hold the structure.

    The largest slices of all would be neighbours. Of equally large ones the first is taken.

    Args:
        truth: (n, H, W), 1 the structure.
        count: How many runs, and slices; if there are no more, all are taken.
        evaluate: Not used.

    Returns:
        Slice numbers, sorted.

    Example:
        >>> truth = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]])[:, None]
        >>> start_largest(truth, 1), start_largest(truth, 2)
        ([2], [2, 4])
    """
    area = (truth == 1).sum((1, 2))
    runs = np.array_split(np.flatnonzero(area), min(count, int(np.count_nonzero(area))))
    return [int(run[area[run].argmax()]) for run in runs]


def start_suggested(truth: np.ndarray, count: int, evaluate: Evaluate) -> list[int]:
    """The largest slice, and after it those that `propagation.suggest_slice` names one by one.

    Args:
        truth: (n, H, W), 1 the structure.
        count: How many; fewer if nothing more is suggested.
        evaluate: Fills the scan from the slices so far.

    Returns:
        Slice numbers, sorted.
    """
    labelled = frozenset(start_largest(truth, 1))
    while len(labelled) < count:
        following = evaluate(labelled).next_slice["advice"]
        if following is None:
            break
        labelled |= {following}
    return sorted(labelled)


STARTS: dict[str, Callable[[np.ndarray, int, Evaluate], list[int]]] = {
    "uniform": start_uniform,
    "largest": start_largest,
    "suggest": start_suggested,
}
"""By name: from the truth (n, H, W) and how many, which slices are labelled first. The first two
see where the structure begins and ends, as somebody does who leafs through the scan.
"""


# --- one round ------------------------------------------------------------------------------------


def evaluate_slices(
    truth: Volume,
    axis: int,
    fill: FillFunction,
    tolerance_mm: float,
    labelled: frozenset[int],
    ranges: Ranges | None = None,
) -> Evaluation:
    """Label slices as the truth has them, fill the rest, score it, and find the next slice.

    Args:
        truth: (D, H, W), 1 the structure, `IGNORE` where nobody knows.
        axis: What the slices are across.
        fill: Fills the scan.
        tolerance_mm: Tolerance of the NSD.
        labelled: Numbers of the slices to label.
        ranges: Where the structure may be; None: anywhere.

    Returns:
        The evaluation of the filled scan.
    """
    slices = np.moveaxis(truth.array, axis, 0)
    given = LabelledSlices(axis, {i: slices[i].astype(np.int16) for i in sorted(labelled)})
    started = time.perf_counter()
    filled = fill(given, ranges or {})
    seconds = time.perf_counter() - started
    [scores] = evaluate_case(
        filled.label.array,
        truth.array,
        lattice_mm(truth),
        {"structure": [1]},
        tolerance_mm=tolerance_mm,
    )
    right, wrong = pixels_by_slice(slices, np.moveaxis(filled.label.array, axis, 0))
    others = [i for i in range(len(slices)) if i not in labelled]
    overlap = 2 * right[others].sum()
    size = (2 * right + wrong)[others].sum()
    next_slice = {
        "worst": worst_slice(right, wrong, labelled),
        "errors": max((i for i in others if wrong[i]), key=lambda i: wrong[i], default=None),
        "advice": _suggested(filled, given, slices),
    }
    dsc_rest = float(overlap / size) if size else nan
    return Evaluation(scores["dsc"], scores["nsd"], dsc_rest, next_slice, seconds)


def pixels_by_slice(truth: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong pixels of each slice, where the truth is known.

    A slice's Dice is 2 right / (2 right + wrong).

    Args:
        truth: (n, H, W), 1 the structure, `IGNORE` where nobody knows.
        label: (n, H, W), 1 the structure.

    Returns:
        Pixels of the structure that `label` has, (n,), and pixels where the two differ, (n,).

    Example:
        >>> pixels_by_slice(np.array([[[1, 1, 0, -1]]]), np.array([[[1, 0, 1, 1]]]))
        (array([1]), array([2]))
    """
    true, predicted, known = truth == 1, label == 1, truth != IGNORE
    return (true & predicted).sum((1, 2)), ((true != predicted) & known).sum((1, 2))


def worst_slice(right: np.ndarray, wrong: np.ndarray, labelled: frozenset[int]) -> int | None:
    """The slice with the lowest Dice among those with a wrong pixel.

    Args:
        right: (n,), from `pixels_by_slice`.
        wrong: (n,), from `pixels_by_slice`.
        labelled: Slices that do not count.

    Returns:
        A slice number; of slices with equal Dice that with most wrong pixels. None where no slice
        is wrong.

    Example:
        >>> worst_slice(np.array([3, 0, 0, 5]), np.array([2, 1, 4, 0]), frozenset())
        2
    """
    faulty = [i for i in np.flatnonzero(wrong).tolist() if i not in labelled]
    return min(
        faulty, key=lambda i: (right[i] / (2 * right[i] + wrong[i]), -wrong[i]), default=None
    )


def _suggested(filled: Filled, labelled: LabelledSlices, slices: np.ndarray) -> int | None:
    """The suggested slice, where a slice of which nobody knows anything cannot be labelled."""
    unknown = {i: label for i, label in enumerate(slices) if (label == IGNORE).all()}
    closed = LabelledSlices(labelled.axis, {**unknown, **labelled.slices})
    if len(closed.slices) == len(slices):
        return None
    return suggest_slice(replace(filled, labelled=closed))[0]
