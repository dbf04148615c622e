"""From pairs of label files to the table of metrics: one row for each case and class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.console import Progress
from contextseg.disk import replacing, write_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.metrics import CONVENTION_METRICS, CONVENTIONS, evaluate_case, nnunet_summary
from contextseg.parallel import map_cases
from contextseg.volume import read_labels

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
    """

    case: str
    prediction: Path
    reference: Path
    image: tuple[Path, ...] = ()
    annotated: tuple[str, ...] | None = None


def pairs(predictions: str | Path, references: str | Path) -> list[Pair]:
    """The label files of two folders that have the same name, endings aside.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps. One without a prediction is left out.

    Returns:
        One pair for each name in both, in the order of the references' names.

    Raises:
        ContextsegError: A folder does not exist, or no name is in both.
    """
    predicted = _label_files(predictions)
    reference = _label_files(references)
    names = [name for name in reference if name in predicted]
    if not names:
        raise ContextsegError(
            predictions,
            f"no file has the name of one in {references}",
            "name predictions as their references",
        )
    return [Pair(name, predicted[name], reference[name]) for name in names]


def _label_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder that may be label maps, by name without ending."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ContextsegError(folder, "there is no such folder", "check the path")
    files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))
    return {
        path.name.split(".nii")[0].removesuffix(path.suffix): path
        for path in files
        if path.suffix not in (".json", ".csv")
    }


def regions_in_references(cases: Sequence[Pair]) -> dict[str, tuple[int, ...]]:
    """Every label value in the references as a class: for folders without a table of labels.

    Args:
        cases: The files.

    Returns:
        "label_V" -> (V,) for each value V but 0, in ascending order.
    """
    values: set[int] = set()
    for case in cases:
        values |= {int(v) for v in np.unique(read_labels(case.reference).array)}
    return {f"label_{v}": (v,) for v in sorted(values - {0, IGNORE})}


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
        `metrics.evaluate_case`, prediction_file and reference_file. A case that cannot be read or
        does not fit is in the problems, not in the table. No case gives an empty table.

    Raises:
        ContextsegError: The convention is unknown.
    """
    import pandas as pd

    if convention not in CONVENTIONS:
        raise ContextsegError(
            f"convention={convention}", "no such convention", did_you_mean(convention, CONVENTIONS)
        )

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
        files = {"prediction_file": str(pair.prediction), "reference_file": str(pair.reference)}
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
        policy for empty masks, and spread, the largest of them minus the smallest. No case gives an
        empty table.
    """
    import pandas as pd

    def rows_of(pair: Pair) -> list[Row]:
        prediction, reference, spacing_mm = read_pair(pair, ignore)
        rows = []
        for convention in CONVENTIONS:
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
    wide = wide.reindex(columns=list(CONVENTIONS))
    wide["spread"] = wide.max(axis=1) - wide.min(axis=1)
    return wide.rename_axis(columns=None).reset_index(), problems


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
        text: "2" for all classes, "liver=5,aorta=2", or "2,liver=5" for the others.
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
    """
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


def read_pair(pair: Pair, ignore: int | None) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Read the label maps of a pair.

    Args:
        pair: The files.
        ignore: Label value of the reference's voxels that do not count. None: there is none.

    Returns:
        The prediction (D, H, W), the reference of the same shape with `IGNORE` where it is
        `ignore`, and the spacing in mm.

    Raises:
        ContextsegError: A file cannot be read, or they are not on one grid.
    """
    prediction = read_labels(pair.prediction)
    reference = read_labels(pair.reference)
    if not prediction.same_grid(reference):
        raise ContextsegError(
            pair.prediction,
            "its grid differs from the reference's",
            "predict on the image's own grid",
        )
    label = reference.array
    if ignore is not None:
        label = np.where(label == ignore, IGNORE, label)
    return prediction.array, label, reference.spacing_mm


def save_table(table: DataFrame, folder: str | Path) -> None:
    """Write `metrics.csv` and nnU-Net's `summary.json`.

    Args:
        table: The table of `evaluate`.
        folder: Where to write them.
    """
    with replacing(Path(folder) / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(Path(folder) / "summary.json", nnunet_summary(table))
