"""From pairs of label files to the table of metrics: one row for each case and class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.cells import frame_text, read_table_file, refuse_words
from contextseg.console import Progress
from contextseg.disk import write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import Spacing, fits, lattice_mm, onto, padded_to_both
from contextseg.interop.names import named_values
from contextseg.metrics import (
    CONVENTION_METRICS,
    CONVENTIONS,
    evaluate_case,
    flare22_tolerances,
    nnunet_summary,
    require_names,
)
from contextseg.parallel import map_cases
from contextseg.volume import Volume, read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """The files of one case.

    Attributes:
        case: Name of the case.
        prediction: Predicted label map.
        reference: Reference label map.
        image: The image, one file for each channel; only pictures need it.
        annotated: The classes annotated in the reference. None: all.
        predicted: Whether there is a prediction. Without one nothing was predicted: every class of
            the reference is missed.
    """

    case: str
    prediction: Path
    reference: Path
    image: tuple[Path, ...] = ()
    annotated: tuple[str, ...] | None = None
    predicted: bool = True


def values_in_files(cases: Sequence[Pair], most: int = 1000) -> set[int]:
    """Every label value in references and predictions but 0 and `IGNORE`.

    Args:
        cases: The files. One that cannot be read gives no value; to score it says why.
        most: Number of values above which a file is taken for a scan.

    Returns:
        The values.

    Raises:
        ContextsegError: A file has more than `most` values.
    """

    def values_of(path: Path) -> set[int]:
        return {int(value) for value in np.unique(read_labels(path).array)}

    values: set[int] = set()
    files = [case.reference for case in cases]
    files += [case.prediction for case in cases if case.predicted]
    for path, held in map_cases(values_of, files):
        if isinstance(held, ContextsegError):
            continue
        if len(held) > most:
            what = f"{len(held)} label values; a scan instead of a label map?"
            raise ContextsegError(path, what, "take it away, or give label maps")
        values |= held
    return values - {0, IGNORE}


def regions_in_files(cases: Sequence[Pair]) -> dict[str, tuple[int, ...]]:
    """Every label value in the files as a class: for folders without a table of labels.

    A value that only predictions hold is a class too: it is spurious wherever it is. Names come
    from segments in the files and label descriptions beside them, where there are some.

    Args:
        cases: The files.

    Returns:
        Name, or "label_V", -> (V,) for each value V but 0, in ascending order.

    Raises:
        ContextsegError: As `values_in_files`, or two files give a value different names.
    """
    files = [case.reference for case in cases]
    files += [case.prediction for case in cases if case.predicted]
    named = named_values(values_in_files(cases), files)
    return {name: (value,) for name, value in named.items()}


def evaluate(
    cases: Sequence[Pair],
    regions: Mapping[str, Sequence[int]],
    *,
    ignore: int | None = None,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    convention: str = "default",
    near_mm: float | None = 10.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> tuple[DataFrame, dict[str, str]]:
    """Compute the metrics of every case.

    Args:
        cases: The files.
        regions: Name of each class -> the label values of the files whose union it is.
        ignore: Label value of voxels that do not count. None: there is none.
        tolerance_mm: Tolerance of the NSD in mm, one number or one for each class.
        convention: A name in `metrics.CONVENTIONS`.
        near_mm: Distance from the reference up to which a false positive is near. None: false
            positives are not told apart.
        workers: Number of cases at a time.
        progress: Called with (number done, number of cases) after each case.

    Returns:
        The table and the problems by case. The table has case, the columns of
        `metrics.evaluate_case`, prediction_file (empty where there is none) and reference_file. An
        image of one slice has the distances of its plane. A case that cannot be read or does not
        fit is in the problems, not in the table. No case gives an empty table.

    Raises:
        ContextsegError: The convention is unknown, or has a rule for organs that the classes are
            not named after.
    """
    import pandas as pd

    if convention not in CONVENTIONS:
        raise ContextsegError(
            f"convention={convention}", "no such convention", did_you_mean(convention, CONVENTIONS)
        )
    require_names(convention, regions)

    def rows_of(pair: Pair) -> list[Row]:
        prediction, reference, spacing_mm = read_pair(pair, ignore)
        rows = evaluate_case(
            prediction,
            reference,
            spacing_mm,
            regions,
            tolerance_mm=tolerance_mm,
            convention=convention,
            annotated=pair.annotated,
            near_mm=near_mm,
        )
        files = {
            "prediction_file": str(pair.prediction) if pair.predicted else "",
            "reference_file": str(pair.reference),
        }
        return [{"case": pair.case, **row, **files} for row in rows]

    rows, problems = gather_rows(map_cases(rows_of, cases, workers, progress))
    return pd.DataFrame(rows), problems


def compare_conventions(
    cases: Sequence[Pair],
    regions: Mapping[str, Sequence[int]],
    *,
    ignore: int | None = None,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> tuple[DataFrame, dict[str, str]]:
    """The same masks by every named convention: how much of a difference is convention.

    Args:
        cases: The files.
        regions: Name of each class -> the label values of the files whose union it is.
        ignore: Label value of voxels that do not count. None: there is none.
        tolerance_mm: Tolerance of the NSD in mm, one number or one for each class.
        workers: Number of cases at a time.
        progress: Called with (number done, number of cases) after each case.

    Returns:
        The table and the problems by case. The table has a line for each class and metric: class,
        metric, for each name in `metrics.CONVENTIONS` the mean over cases by that convention's own
        policy for empty masks, and spread, the largest of them minus the smallest. A convention
        with a rule for organs is left out where the classes have not their names; its name is in
        `attrs["left_out"]`. No case gives an empty table.
    """
    import pandas as pd

    names = [name for name in CONVENTIONS if _is_complete(name, regions)]

    def rows_of(pair: Pair) -> list[Row]:
        prediction, reference, spacing_mm = read_pair(pair, ignore)
        rows = []
        for convention in names:
            rows += [
                {"convention": convention, **row}
                for row in evaluate_case(
                    prediction,
                    reference,
                    spacing_mm,
                    regions,
                    tolerance_mm=tolerance_mm,
                    convention=convention,
                    annotated=pair.annotated,
                )
            ]
        return rows

    rows, problems = gather_rows(map_cases(rows_of, cases, workers, progress))
    if not rows:
        return pd.DataFrame(), problems

    long = pd.DataFrame(rows).melt(
        ["convention", "class"], list(CONVENTION_METRICS), "metric", "value"
    )
    long["class"] = pd.Categorical(long["class"], list(dict.fromkeys(long["class"])))
    long["metric"] = pd.Categorical(long["metric"], CONVENTION_METRICS)
    wide = long.pivot_table("value", ["class", "metric"], "convention", observed=True, dropna=False)
    wide = wide.reindex(columns=names)
    wide["spread"] = wide.max(axis=1) - wide.min(axis=1)
    table = wide.rename_axis(columns=None).reset_index()
    table.attrs["left_out"] = [name for name in CONVENTIONS if name not in names]
    return table, problems


def _is_complete(convention: str, classes: Collection[str]) -> bool:
    try:
        require_names(convention, classes)
    except ContextsegError:
        return False
    return True


def gather_rows(
    results: Iterable[tuple[Pair, list[Row] | ContextsegError]],
) -> tuple[list[Row], dict[str, str]]:
    """Separate the rows of the cases that could be measured from the errors of the others.

    Args:
        results: Each case with its rows or its error, as `parallel.map_cases` yields them.

    Returns:
        The rows of all cases in their order, and the error messages by case.
    """
    rows: list[Row] = []
    problems = {}
    for pair, result in results:
        if isinstance(result, ContextsegError):
            problems[pair.case] = str(result)
        else:
            rows += result
    return rows, problems


def parse_tolerances(text: str, classes: Collection[str]) -> float | dict[str, float]:
    """Parse tolerances in mm as they are written on the command line.

    Args:
        text: "2" for all classes, "liver=5,aorta=2", or "2,liver=5" for the others. "flare22" is
            the challenge's for each of its 13 organs.
        classes: Names of the classes.

    Returns:
        One number, or one for each class.

    Raises:
        ContextsegError: A class is unknown or left without a number, or a number is no distance.

    Example:
        >>> parse_tolerances("2", ["liver", "aorta"])
        2.0
        >>> parse_tolerances("2,liver=5", ["liver", "aorta"])
        {'liver': 5.0, 'aorta': 2.0}
        >>> parse_tolerances("flare22", ["liver", "aorta"])
        {'liver': 5, 'aorta': 2}
    """
    if text.strip().lower() == "flare22":
        return flare22_tolerances(classes)
    where = f"tolerance {text}"
    by_class: dict[str, float] = {}
    others: list[float] = []
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        name = name.strip()
        try:
            mm = float(number)
        except ValueError:
            mm = nan
        if not 0 <= mm < inf:
            raise ContextsegError(
                where, f"no distance: {part.strip()!r}", "give mm, as in 2, or liver=5,aorta=2"
            )
        if not equals:
            others.append(mm)
        elif name not in classes:
            raise ContextsegError(where, f"there is no class {name}", did_you_mean(name, classes))
        elif name in by_class:
            raise ContextsegError(where, f"{name} twice", "name each class once")
        else:
            by_class[name] = mm

    if len(others) > 1:
        raise ContextsegError(
            where, "two numbers without a class", "give one, for all classes that are not named"
        )
    missing = [name for name in classes if name not in by_class]
    if missing and not others:
        raise ContextsegError(
            where,
            f"no tolerance for {', '.join(missing)}",
            "name them too, or put one number for all others",
        )
    if not by_class:
        return others[0]
    return {name: by_class.get(name, *others) for name in classes}


def read_pair(pair: Pair, ignore: int | None) -> tuple[np.ndarray, np.ndarray, Spacing]:
    """Read the label maps of a pair.

    Args:
        pair: The files.
        ignore: Label value of the reference's voxels that do not count. None: there is none.

    Returns:
        The prediction (D, H, W), the reference of the same shape with `IGNORE` where it is
        `ignore`, and the spacing in mm as `grids.lattice_mm` gives it. The prediction is turned and
        placed onto the reference's grid; a reference of a part of the prediction's grid is placed
        in that, and two that only overlap in a box around both, with background outside.

    Raises:
        ContextsegError: A file cannot be read, or they do not lie on one lattice.
    """
    reference = _not_negative(read_labels(pair.reference), pair.reference)
    if pair.predicted:
        prediction = _not_negative(read_labels(pair.prediction), pair.prediction)
    else:
        prediction = reference.with_array(np.zeros_like(reference.array))
    spacing = lattice_mm(reference)
    boxes = None
    if not fits(reference, prediction) and not fits(prediction, reference):
        boxes = padded_to_both(reference, prediction)
    if boxes is not None:
        reference, prediction = (reference.with_array(array) for array in boxes)
    elif fits(reference, prediction) and not fits(prediction, reference):
        reference = onto(reference, prediction, pair.reference, "prediction")
    else:
        prediction = onto(prediction, reference, pair.prediction, "reference")
    label = reference.array
    if ignore is not None:
        label = np.where(label == ignore, IGNORE, label)
    return prediction.array, label, spacing if boxes is not None else lattice_mm(reference)


def _not_negative(label: Volume, path: Path) -> Volume:
    """The label map, unless it has values below 0, which no class has."""
    if label.array.size and label.array.min() < 0:
        what = f"its label values begin at {label.array.min()}"
        remedy = "write 0 for background; name the value of unknown voxels as ignore in --labels"
        raise ContextsegError(path, what, remedy)
    return label


def save_table(table: DataFrame, folder: str | Path) -> None:
    """Write nnU-Net's `summary.json`, then `metrics.csv`: where it is, both are.

    Args:
        table: The table of `evaluate`.
        folder: Where to write them.
    """
    write_json(Path(folder) / "summary.json", nnunet_summary(table))
    write_text(Path(folder) / "metrics.csv", frame_text(table))


_TEXT = (
    *("case", "class", "label", "status", "patient", "method", "source"),
    *("prediction_file", "reference_file"),
)
_SCORES_REMEDY = "evaluate again, which writes it anew"


def read_scores(path: str | Path) -> DataFrame:
    """Read a `metrics.csv`.

    Args:
        path: The file that `save_table` wrote.

    Returns:
        The table of `evaluate`.

    Raises:
        ContextsegError: The file is missing or damaged, lacks a column, or holds a word for a
            number.
    """
    table = read_table_file(path, _TEXT, ("case", "class", "status"), _SCORES_REMEDY)
    refuse_words(table, [str(name) for name in table if name not in _TEXT], path, _SCORES_REMEDY)
    for name in ("case", "class", "status"):
        if table[name].isna().any():
            raise ContextsegError(path, f"a row without a {name}", _SCORES_REMEDY)
    return table
