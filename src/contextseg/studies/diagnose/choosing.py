"""Which cases a diagnosis measures, also those that the run never preprocessed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contextseg.data.cache import Cached, preprocess
from contextseg.data.layouts import Case
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.parallel import default_workers
from contextseg.runs import Run

TRAINING, VALIDATION, TESTED, CHOSEN = "training", "validation", "test", "chosen"
CASES = ("train", "validation", "test")
"""Sets of cases that can be asked for by name."""


def chosen_cases(run: Run, cases: str) -> tuple[str, list[Case]]:
    """The cases that somebody asks for.

    Args:
        run: The run.
        cases: One of `CASES`, or names of cases with commas between. "" for validation cases, or
            those of the training where the run kept none.

    Returns:
        "training", "validation", "test" or "chosen", and the cases that can be measured; of the
        training all.

    Raises:
        ContextsegError: None of them can be measured, or there is none of a name.
    """
    training, validation = run.split
    if not cases:
        cases = "validation" if validation else "train"
    if cases in CASES:
        split = {"train": TRAINING, "validation": VALIDATION, "test": TESTED}[cases]
        tested = run.dataset.test if split == TESTED else ()
        found = list({TRAINING: training, VALIDATION: validation, TESTED: tested}[split])
    else:
        split, found = CHOSEN, _named(run, cases)
    usable = measurable(run, found)
    if usable:
        return split, usable
    what = f"none of this run's {split} cases has a label for every class"
    remedy = f"give --cases, one of {', '.join(CASES)}, or names of labelled cases"
    if split == VALIDATION and not validation:
        what = f"this run kept no validation cases (fold {run.settings.fold})"
        remedy = (
            "train again with --fold 0 and another --output (test cases must not choose the "
            "method), or give --cases train"
        )
    raise ContextsegError(run.folder, what, remedy)


def _named(run: Run, names: str) -> list[Case]:
    """The cases of these names, of the training, the validation or the test split."""
    known = {case.name: case for case in run.dataset.test}
    known |= {case.name: case for part in run.split for case in part}
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in known:
            remedy = did_you_mean(name, [*CASES, *known])
            raise ContextsegError(f"--cases {name}", "there is no such case", remedy)
        found.append(known[name])
    return found


def cached_cases(run: Run, cases: Sequence[Case]) -> list[Cached]:
    """Cases as the run sees them; those that it did not preprocess are preprocessed now.

    Args:
        run: The run, finished.
        cases: Its training, validation or test cases.

    Returns:
        The cases, in that order.
    """
    own = {case.name for part in run.split for case in part}
    others = [case for case in cases if case.name not in own]
    cache = run.folder / "cache"
    made = preprocess(run.dataset, others, run.plan, cache, workers=default_workers())
    by_name = {case.record.name: case for case in made}
    by_name |= {c.record.name: c for c in run.cached([c for c in cases if c.name in own])}
    return [by_name[case.name] for case in cases]


def measurable(run: Run, cases: Sequence[Case]) -> list[Case]:
    """The labelled cases in which every class was annotated.

    Args:
        run: The run, whose plan has the classes.
        cases: The cases.

    Returns:
        Those of them.
    """
    classes = set(run.plan.classes[1:])
    return [c for c in cases if c.label and (c.annotated is None or classes <= set(c.annotated))]


def evenly(cases: Sequence[Case], n: int) -> list[Case]:
    """At most `n` of them, evenly spaced in the order of their names.

    Args:
        cases: The cases.
        n: How many.

    Returns:
        Those cases.
    """
    order = sorted(cases, key=lambda case: case.name)
    places = np.linspace(0, max(len(order) - 1, 0), min(n, len(order))).round()
    return [order[int(i)] for i in places]
