"""Which case to look at next, and the annotator that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contextseg.console import say
from contextseg.disk import replacing
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.evaluation.calibration import confidence_file
from contextseg.metrics.calibration import expected_case_dice
from contextseg.projects.drawings import ANNOTATIONS, annotator
from contextseg.projects.sources import place_scan
from contextseg.stopping import Stopped
from contextseg.volume import read_labels, write

if TYPE_CHECKING:
    from contextseg.projects.table import ProjectCase
    from contextseg.projects.work import LabelProject


def expected_of_files(prediction: Path, values: Sequence[int]) -> float:
    """The expected Dice of a predicted label map with its confidence map beside it.

    Args:
        prediction: File of the label map.
        values: The label values of the classes, without the background.

    Returns:
        As `expected_case_dice`.

    Raises:
        ContextsegError: A file is missing or damaged.
    """
    label = read_labels(prediction).array
    return expected_case_dice(label, read_labels(confidence_file(prediction)).array, values)


# --- orders ---------------------------------------------------------------------------------------


def _lowest_expected(project: LabelProject, rows: Sequence[ProjectCase], seed: int) -> list[str]:
    def key(row: ProjectCase) -> tuple[float, str]:
        return (-1.0 if math.isnan(row.expected_dice) else row.expected_dice), row.case

    return [row.case for row in sorted(rows, key=key)]


def _at_random(project: LabelProject, rows: Sequence[ProjectCase], seed: int) -> list[str]:
    names = sorted(row.case for row in rows)
    np.random.RandomState(seed).shuffle(names)
    return names


def _largest(project: LabelProject, rows: Sequence[ProjectCase], seed: int) -> list[str]:
    def voxels(row: ProjectCase) -> int:
        return int((read_labels(project.prediction_file(row.case)).array > 0).sum())

    return [row.case for row in sorted(rows, key=lambda row: (-voxels(row), row.case))]


ORDERS: dict[str, Callable[..., list[str]]] = {
    "expected": _lowest_expected,
    "random": _at_random,
    "size": _largest,
}
"""Orders of a worklist by name: the lowest expected Dice first, at random, or the most predicted
voxels first.
"""


def order_cases(project: LabelProject, order: str = "expected", seed: int = 0) -> list[str]:
    """The cases that wait for a person, in the order to look at them.

    Args:
        project: The project.
        order: One of `ORDERS`.
        seed: Seed of "random".

    Returns:
        Names of cases that are predicted and not reviewed; locked ones are no part of it.

    Raises:
        ContextsegError: There is no such order.
    """
    if order not in ORDERS:
        remedy = did_you_mean(order, ORDERS)
        raise ContextsegError(f"--order {order}", "there is no such order", remedy)
    rows = project.table.cases().values()
    waiting = [row for row in rows if row.state == "predicted" and row.use == "train"]
    return ORDERS[order](project, waiting, seed)


def cases_to_review(
    project: LabelProject, cases: Sequence[str], count: int, order: str, seed: int
) -> list[str]:
    """The cases to show: those asked for, the first of the worklist, or unlabelled ones.

    Args:
        project: The project.
        cases: Names of cases. () for the worklist.
        count: How many at most, of the worklist.
        order: One of `ORDERS`.
        seed: Seed of "random".

    Returns:
        Names of cases.

    Raises:
        ContextsegError: A case is unknown, `count` is less than 1, or there is nothing to look at.
    """
    rows = project.refresh()
    for name in cases:
        project.table.case(name)
    if cases:
        return list(cases)
    if count < 1:
        raise ContextsegError(f"--count {count}", "no case to look at", "give 1 or more")
    waiting = order_cases(project, order, seed)
    waiting = waiting or [
        row.case for row in rows.values() if row.state in ("unlabelled", "drawn", "filled")
    ]
    if not waiting:
        what = "no case waits for a person"
        raise ContextsegError(project.folder, what, "train and predict a round, or export")
    return waiting[:count]


def open_annotator(
    project: LabelProject, cases: Sequence[str], *, host: str, port: int, browser: bool
) -> None:
    """Open the annotator on cases of a project, and wait until it is closed.

    The label map to start from is the prediction of a case, or else its fill. What is drawn lies
    in the folder "annotations" of the project.

    Args:
        project: The project.
        cases: Names of cases.
        host: Address that the annotator listens on.
        port: Its port. 0 takes a free one.
        browser: Open a browser.

    Raises:
        ContextsegError: The annotator is not installed.
    """
    launch = annotator("launch")
    work = project.folder / ANNOTATIONS
    with replacing(project.folder / "review") as temporary:
        (temporary / "images").mkdir(parents=True)
        for name in cases:
            place_scan(project.case(name), temporary / "images", link=True)
            start = start_label(project, name)
            if start is not None:
                write(temporary / "labels" / f"{name}.nii.gz", read_labels(start))
    rows = {name: project.table.case(name) for name in cases}
    expected = {n: row.expected_dice for n, row in rows.items() if row.predicted}
    labels = project.folder / "review" / "labels"
    server = launch.start_annotating(
        project.folder / "review" / "images",
        work,
        classes=[f"{n}={v}" for n, v in zip(project.labels.classes[1:], project.labels.values[1:])],
        labels=labels if labels.is_dir() else None,
        host=host,
        port=port,
    )
    server.session.project.scores.update(expected)
    say(f"the annotator: {server.url}")
    say("Ctrl-C ends it, and the project takes up what was drawn")
    if browser:
        launch.open_browser(server.url)
    with suppress(KeyboardInterrupt, Stopped):
        server.serve()


def start_label(project: LabelProject, name: str) -> Path | None:
    """The label map that a review of a case starts from: its prediction, or else its fill.

    Args:
        project: The project.
        name: Name of the case.

    Returns:
        The file; None where there is neither.
    """
    row = project.table.case(name)
    if row.predicted and project.prediction_file(name).exists():
        return project.prediction_file(name)
    if row.filled and project.fill_file(name).exists():
        return project.fill_file(name)
    return None
