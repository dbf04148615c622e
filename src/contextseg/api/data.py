"""The face for data sets, plans, tables and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.arguments import StrPath, assignments, progress_of
from contextseg.console import say
from contextseg.disk import readable

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.data.findings import Finding
    from contextseg.data.plan import Plan


@readable
def check(dataset: StrPath, *, roi: Sequence[str] = (), verbose: bool = True) -> list[Finding]:
    """Report every problem of a data set at once, each with its file and remedy.

    Args:
        dataset: Folder: nnU-Net v2 raw, Medical Decathlon, or `images/` and `labels/`.
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.

    Returns:
        The findings, what concerns the whole data set first; [] where nothing is wrong.

    Example:
        >>> check("no-such-folder", verbose=False)[0].what
        'the folder does not exist'
    """
    from contextseg.data.check import check as find_problems

    with progress_of(verbose)("check") as progress:
        return find_problems(dataset, progress=progress, roi=roi)


@readable
def plan(
    dataset: StrPath,
    output: StrPath | None = None,
    *,
    roi: Sequence[str] = (),
    verbose: bool = True,
    **settings: Any,
) -> Plan:
    """Look at the data and make the plan: spacing, patch, network, normalisation.

    Args:
        dataset: Folder of the data set.
        output: Where to write the plan as JSON, to be edited and given to `train` or `run`.
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.
        **settings: Settings of planning by name, such as `spacing_mm=(2, 1, 1)`.

    Returns:
        The plan.

    Raises:
        ContextsegError: The data set cannot be read, or a setting does not exist.
    """
    from contextseg.data.cache import fingerprint
    from contextseg.data.layouts import open_dataset
    from contextseg.data.plan import planned
    from contextseg.data.roi import restricted
    from contextseg.data.sizes import PLAN, workers_for
    from contextseg.data.vanishing import vanished_at, vanished_sentences
    from contextseg.settings import Settings

    asked = assignments(settings)
    planning = Settings(str(dataset)).set(asked, used=["planning"], by="`plan`").planning
    data = restricted(open_dataset(dataset), roi)
    with progress_of(verbose)("plan") as progress:
        workers = workers_for(data.train, PLAN, "plan")
        facts = fingerprint(data, data.train, workers=workers, progress=progress)
    made = planned(data, facts, planning)
    if verbose:
        lost = vanished_at(data, data.train, made.orientation, made.spacing_mm)
        for what, remedy in vanished_sentences(lost, made.spacing_mm):
            say(f"warning: {what}; {remedy}")
    if output is not None:
        made.save(Path(output))
    return made


@readable
def evaluate(
    predictions: StrPath,
    references: StrPath,
    output: StrPath | None = None,
    *,
    labels: StrPath | None = None,
    roi: Sequence[str] = (),
    tolerance_mm: float | str | Mapping[str, float] = 2.0,
    convention: str = "default",
    compare_conventions: bool = False,
    only_predicted: bool = False,
    strict: bool = True,
    verbose: bool = True,
) -> pd.DataFrame:
    """Compare two folders of label maps, from any tool: Dice, NSD, HD95 and more.

    A reference without a prediction counts as missed, as an organ that was not found. A class that
    only predictions hold is spurious there.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps with the same names.
        output: Folder for `metrics.csv`, nnU-Net's `summary.json`, `evaluation.json` (what was
            left out) and `calibration.csv`.
        labels: A `dataset.json` with the names of the classes. None: every value is a class.
        roi: Classes to score. () for all.
        tolerance_mm: Tolerance of the NSD in mm, one number or one for each class; "flare22" for
            the challenge's 13.
        convention: Whose definitions; docs/measuring.md lists them.
        compare_conventions: Score by all conventions, and give that table.
        only_predicted: Leave out the references without a prediction.
        strict: Raise an error where cases could not be scored, after all others are. False: the
            reasons are in `table.attrs["failed"]`, by case.
        verbose: Show the progress on stderr.

    Returns:
        A row for each case and class; with `compare_conventions` a row for each class and metric.
        Its `attrs` hold failed (reasons by case), without_prediction and without_reference (names
        of label maps without a counterpart), only_predicted, unused_files, and
        values_not_scored (label values that `labels` lacks).

    Raises:
        ContextsegError: No file has a counterpart, no file holds a class, or cases could not be
            scored; the message names them, and what could be scored is written.
    """
    from contextseg.evaluation.folders import evaluate_folders

    return evaluate_folders(
        predictions,
        references,
        output,
        labels=labels,
        roi=roi,
        tolerance_mm=tolerance_mm,
        convention=convention,
        all_conventions=compare_conventions,
        only_predicted=only_predicted,
        strict=strict,
        progress_bar=progress_of(verbose),
    )


@readable
def report(run: StrPath) -> Path:
    """Draw the report of a finished run again, from its table, logs and predictions.

    Args:
        run: Folder of a finished `run` or `demo`.

    Returns:
        The page.

    Raises:
        ContextsegError: Nothing was evaluated in this run.
    """
    from contextseg.pipeline import report_again

    return report_again(run)
