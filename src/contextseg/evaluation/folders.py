"""Two folders of label maps, from any tool, to one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.console import ProgressBar, no_progress_bar
from contextseg.data.layouts import open_dataset
from contextseg.data.roi import restricted
from contextseg.errors import ContextsegError
from contextseg.evaluation.calibration import calibration, save_calibration
from contextseg.evaluation.evaluate import (
    Pair,
    compare_conventions,
    evaluate,
    pairs,
    parse_tolerances,
    regions_in_references,
    save_table,
)

if TYPE_CHECKING:
    from pandas import DataFrame


def evaluate_folders(
    predictions: str | Path,
    references: str | Path,
    output: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    roi: Sequence[str] = (),
    tolerance_mm: float | str | Mapping[str, float] = 2.0,
    convention: str = "default",
    all_conventions: bool = False,
    strict: bool = True,
    progress_bar: ProgressBar = no_progress_bar,
) -> DataFrame:
    """Score the label maps of one folder against those of the same names in another.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps.
        output: Folder for `metrics.csv`, `summary.json` and, where there are confidence maps,
            `calibration.csv`. None writes nothing.
        labels: A `dataset.json` with the names of the classes, or its folder. None: every value of
            the references is a class.
        roi: Classes to score; for a `dataset.json`. () for all.
        tolerance_mm: Tolerance of the NSD in mm: a number, one for each class, or both as text.
        convention: Whose definitions.
        all_conventions: Score by every convention; nothing is written.
        strict: Raise an error where cases could not be scored, after all others are. False: the
            reasons are in `table.attrs["failed"]`, by case.
        progress_bar: Shows the progress.

    Returns:
        A row for each case and class; with `all_conventions` a row for each class and metric.

    Raises:
        ContextsegError: No file has a counterpart, or cases could not be scored; the message names
            them, and what could be scored is written.
    """
    cases = pairs(predictions, references)
    regions, ignore = _classes(cases, labels, roi)
    tolerance = _tolerance(tolerance_mm, regions)
    if all_conventions:
        with progress_bar("evaluate") as progress:
            table, failed = compare_conventions(
                cases, regions, ignore=ignore, tolerance_mm=tolerance, progress=progress
            )
    else:
        with progress_bar("evaluate") as progress:
            table, failed = evaluate(
                cases,
                regions,
                ignore=ignore,
                tolerance_mm=tolerance,
                convention=convention,
                progress=progress,
            )
        if output is not None and len(table):
            save_table(table, output)
            calibrated, more = calibration(cases, regions, ignore=ignore)
            save_calibration(calibrated, output)
            failed = failed | more
    if failed and strict:
        reasons = "".join(f"\n  {why}" for why in failed.values())
        what = f"{len(failed)} of {len(cases)} cases could not be scored:{reasons}\n"
        raise ContextsegError(predictions, what, "mend or remove them; all others are scored")
    table.attrs["failed"] = failed
    return table


def _classes(
    cases: Sequence[Pair], labels: str | Path | None, roi: Sequence[str]
) -> tuple[Mapping[str, Sequence[int]], int | None]:
    """The label values of each class, and the value that is not scored."""
    if labels is None:
        return regions_in_references(cases), None
    path = Path(labels)
    data = restricted(open_dataset(path.parent if path.is_file() else path), roi)
    return data.region_values(), data.ignore


def _tolerance(
    tolerance_mm: float | str | Mapping[str, float], regions: Mapping[str, Sequence[int]]
) -> float | Mapping[str, float]:
    if isinstance(tolerance_mm, Mapping):
        return tolerance_mm
    return parse_tolerances(str(tolerance_mm), regions)
