"""Two folders of label maps, from any tool, to one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.console import ProgressBar, no_progress_bar
from contextseg.data.layouts import Dataset, open_dataset
from contextseg.data.listing import some
from contextseg.data.roi import restricted
from contextseg.data.tables import read_label_table, read_table
from contextseg.data.unused import name_unused
from contextseg.disk import write_json
from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.evaluation.calibration import calibration, save_calibration
from contextseg.evaluation.evaluate import (
    Pair,
    compare_conventions,
    evaluate,
    parse_tolerances,
    regions_in_files,
    save_table,
    values_in_files,
)
from contextseg.evaluation.matching import Matched, match_folders, other_letter_case
from contextseg.interop.names import label_table

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
    only_predicted: bool = False,
    strict: bool = True,
    progress_bar: ProgressBar = no_progress_bar,
) -> DataFrame:
    """Score the label maps of one folder against those of the same names in another.

    A reference without a prediction counts as missed: its classes have the worst scores, as those
    of an organ that was not found. A class that only predictions hold is spurious there.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps.
        output: Folder for `metrics.csv`, `summary.json`, `evaluation.json` (what `attrs` of the
            result says) and, where there are confidence maps, `calibration.csv`. None writes
            nothing.
        labels: A `dataset.json` with the names of the classes, or its folder; it needs no images
            beside it. None: every value of the references and the predictions is a class.
        roi: Classes to score. () for all.
        tolerance_mm: Tolerance of the NSD in mm: a number, one for each class, or both as text.
        convention: Whose definitions.
        all_conventions: Score by every convention; nothing is written.
        only_predicted: Leave out the references without a prediction.
        strict: Raise an error where cases could not be scored, after all others are. False: the
            reasons are in `table.attrs["failed"]`, by case.
        progress_bar: Shows the progress.

    Returns:
        A row for each case and class; with `all_conventions` a row for each class and metric. Its
        `attrs` hold failed (reasons by case), without_prediction and without_reference (names),
        only_predicted, unused_files, and values_not_scored (those that the label table lacks).

    Raises:
        ContextsegError: No file has a counterpart, no file holds a class, or cases could not be
            scored; the message names them, and what could be scored is written.
    """
    matched = match_folders(predictions, references)
    cases = [pair for pair in matched.pairs if pair.predicted or not only_predicted]
    regions, ignore, unknown = _classes(cases, labels, roi)
    tolerance = _tolerance(tolerance_mm, regions)
    scoring: dict[str, Any] = {"ignore": ignore, "tolerance_mm": tolerance}
    with progress_bar("evaluate") as progress:
        if all_conventions:
            table, failed = compare_conventions(cases, regions, **scoring, progress=progress)
        else:
            table, failed = evaluate(
                cases, regions, **scoring, convention=convention, progress=progress
            )
    if table.empty and not failed:
        what = "no class in any label map of either folder"
        remedy = "see whether they are label maps, or name the classes with --labels"
        raise ContextsegError(references, what, remedy)
    left = _left(matched, only_predicted) | {"values_not_scored": unknown}
    if output is not None and not table.empty and not all_conventions:
        save_table(table, output)
        write_json(Path(output) / "evaluation.json", left)
        predicted = [pair for pair in cases if pair.predicted]
        calibrated, more = calibration(predicted, regions, ignore=ignore)
        save_calibration(calibrated, output)
        failed = failed | more
    if failed and strict:
        reasons = "".join(f"\n  {why}" for why in failed.values())
        what = f"{len(failed)} of {len(cases)} cases could not be scored:{reasons}\n"
        raise ContextsegError(predictions, what, "mend or remove them; all others are scored")
    table.attrs |= {"failed": failed, **left}
    return table


def notices(table: DataFrame) -> list[str]:
    """Sentences about what a comparison of two folders left out or counted as missed.

    Args:
        table: The table of `evaluate_folders`.

    Returns:
        One for each matter, with names; [] where every file had its counterpart.
    """
    lines = []
    missing = table.attrs["without_prediction"]
    others = table.attrs["without_reference"]
    if missing:
        lines.append(f"{plural(len(missing), 'reference')} without a prediction")
        lines[-1] += " left out" if table.attrs["only_predicted"] else " counted as missed"
        if not table.attrs["only_predicted"]:
            lines[-1] += " (--only-predicted leaves them out)"
        lines[-1] += f": {some(missing)}"
        spelt = {name: other for name in missing if (other := other_letter_case(name, others))}
        if spelt:
            pairs = some(f"{name} and {other}" for name, other in spelt.items())
            lines.append(f"names that differ in letter case alone do not match: {pairs}")
    if others:
        count = plural(len(others), "prediction")
        lines.append(f"{count} without a reference left out: {some(others)}")
    if left_out := table.attrs.get("left_out"):
        lines.append(
            f"left out, since the classes are not named as the organs of FLARE22 (--labels): "
            f"{some(left_out)}"
        )
    if values := table.attrs["values_not_scored"]:
        lines.append(f"label values that the label table lacks are not scored: {some(values)}")
    if line := name_unused(Path(path) for path in table.attrs["unused_files"]):
        lines.append(line)
    return lines


def _left(matched: Matched, only_predicted: bool) -> dict[str, Any]:
    """What has no counterpart, as JSON content."""
    return {
        "only_predicted": only_predicted,
        "without_prediction": list(matched.without_prediction),
        "without_reference": list(matched.without_reference),
        "unused_files": [str(path) for path in matched.unused],
    }


def _classes(
    cases: Sequence[Pair], labels: str | Path | None, roi: Sequence[str]
) -> tuple[Mapping[str, Sequence[int]], int | None, list[str]]:
    """The label values of each class, the one that is ignored, and those that no table knows."""
    if labels is not None:
        data = restricted(_labels_of(Path(labels)), roi)
        unknown = values_in_files(cases) - {*data.values, *data.others, data.ignore}
        return data.region_values(), data.ignore, [str(value) for value in sorted(unknown)]
    regions = regions_in_files(cases)
    for name in roi:
        if name not in regions:
            what = "no label map holds this class"
            raise ContextsegError(f"roi={name}", what, did_you_mean(name, regions))
    return {name: union for name, union in regions.items() if not roi or name in roi}, None, []


def _labels_of(path: Path) -> Dataset:
    """A data set of the label table of a file or folder, with its cases where it needs them."""
    if not path.exists():
        what = "there is no such file or folder"
        raise ContextsegError(path, what, "give a dataset.json, or its folder")
    file = path / "dataset.json" if path.is_dir() else path
    described = label_table(file)  # by 3D Slicer or ITK-SNAP
    table = read_table(file) if described is None else {"labels": described}
    labels = table.get("labels")
    if labels is None and file.name == "labels.json":
        labels = table
    if labels is None and path.is_dir():
        return open_dataset(path)
    if labels is None:
        remedy = 'write {"labels": {"background": 0, "liver": 1}} into it'
        raise ContextsegError(file, "it has no labels", remedy)
    classes, values, ignore, regions = read_label_table(labels, file)
    folder = file.parent
    return Dataset(
        str(file), folder, (), classes, values, ignore, regions, ".nii.gz", (), (), splits=()
    )


def _tolerance(
    tolerance_mm: float | str | Mapping[str, float], regions: Mapping[str, Sequence[int]]
) -> float | Mapping[str, float]:
    if isinstance(tolerance_mm, Mapping):
        return tolerance_mm
    return parse_tolerances(str(tolerance_mm), regions)
