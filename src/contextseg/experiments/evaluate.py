"""From predictions to the table: one row for each run, case and class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem, did_you_mean, replacing, write_json
from contextseg.metrics import ASSD, CONVENTIONS, DSC, HD, HD95, IOU, NSD, PRC, SEN, evaluate_case, nnunet_summary
from contextseg.volume import read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

Progress = Callable[[int, int], None]
SURFACE_AND_OVERLAP = (DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD)
"""What a convention can change."""


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, as files; `annotated` names the classes looked for in the reference, None all."""

    case: str
    prediction: Path
    reference: Path
    image: tuple[Path, ...] = ()
    annotated: tuple[str, ...] | None = None


def pairs(predictions: str | Path, references: str | Path) -> list[Pair]:
    """The label files of two folders that have the same name, endings aside.

    Raises `Problem` if a folder is not there, or no name is in both. A reference without a prediction is left out.
    """
    found = []
    for folder in (Path(predictions), Path(references)):
        if not folder.is_dir():
            raise Problem(folder, "there is no such folder", "check the path")
        files = (p for p in sorted(folder.iterdir()) if p.is_file() and not p.name.startswith("."))
        found.append(
            {p.name.split(".nii")[0].removesuffix(p.suffix): p for p in files if p.suffix not in (".json", ".csv")}
        )
    made, truth = found
    both = [name for name in truth if name in made]
    if not both:
        raise Problem(
            predictions, f"no file has the name of one in {references}", "name predictions as their references"
        )
    return [Pair(name, made[name], truth[name]) for name in both]


def regions_of(cases: Sequence[Pair]) -> dict[str, tuple[int, ...]]:
    """Every value but 0 in the references, as a class named "label_V": for folders without a label table."""
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
    """Measure every pair: (table, problems by case). `regions` are unions of the files' values; `ignore` never counts.

    `tolerance_mm` of the NSD is one number, or one for each class. False positives count as near within `near_mm` of
    the reference, far beyond it; None does not tell them apart.

    The table has the columns of `metrics.evaluate_case`, and case, prediction_file and reference_file. A case that
    cannot be read or does not fit is in `problems`, not in the table. No case gives an empty table. Raises `Problem`
    for an unknown convention.
    """
    import pandas as pd

    if convention not in CONVENTIONS:
        raise Problem(f"convention={convention}", "no such convention", did_you_mean(convention, CONVENTIONS))

    def one(pair: Pair) -> list[dict[str, Any]]:
        made, reference, spacing_mm = read_pair(pair, ignore)
        rows = evaluate_case(
            made,
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

    rows, problems = each_case(one, cases, workers, progress)
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
    """The same masks by every named convention, to tell how much of a difference between papers is convention.

    Returns (table, problems by case), the table with a line for each class and measure, and the columns class, metric,
    one for each name in `metrics.CONVENTIONS` (the mean over cases, each by that convention's own policy for empty
    masks), and spread, the largest of them minus the smallest. No case gives an empty table.
    """
    import pandas as pd

    def one(pair: Pair) -> list[dict[str, Any]]:
        made, reference, spacing_mm = read_pair(pair, ignore)
        rows = []
        for name in CONVENTIONS:
            found = evaluate_case(
                made,
                reference,
                spacing_mm,
                regions,
                tolerance_mm=tolerance_mm,
                convention=name,
                annotated=pair.annotated,
            )
            rows += [{"convention": name, **row} for row in found]
        return rows

    rows, problems = each_case(one, cases, workers, progress)
    if not rows:
        return pd.DataFrame(), problems
    long = pd.DataFrame(rows).melt(["convention", "class"], list(SURFACE_AND_OVERLAP), "metric", "value")
    long["class"] = pd.Categorical(long["class"], list(dict.fromkeys(long["class"])))
    long["metric"] = pd.Categorical(long["metric"], SURFACE_AND_OVERLAP)
    wide = long.pivot_table("value", ["class", "metric"], "convention", observed=True, dropna=False)
    wide = wide.reindex(columns=list(CONVENTIONS))
    wide["spread"] = wide.max(axis=1) - wide.min(axis=1)
    return wide.rename_axis(columns=None).reset_index(), problems


def tolerances(text: str, classes: Collection[str]) -> float | dict[str, float]:
    """Tolerances in mm as somebody writes them: "2" for all classes, "liver=5,aorta=2", or "2,liver=5" for the others.

    >>> tolerances("2", ["liver", "aorta"]), tolerances("2,liver=5", ["liver", "aorta"])
    (2.0, {'liver': 5.0, 'aorta': 2.0})

    Raises `Problem` for an unknown class, one that is left without a number, and for what is no distance.
    """
    where, named, others = f"tolerance {text}", {}, []
    for part in text.split(","):
        name, equals, number = part.rpartition("=")
        name = name.strip()
        try:
            mm = float(number)
        except ValueError:
            mm = nan
        if not 0 <= mm < inf:
            raise Problem(where, f"no distance: {part.strip()!r}", "give mm, as in 2, or liver=5,aorta=2")
        if not equals:
            others.append(mm)
        elif name not in classes:
            raise Problem(where, f"there is no class {name}", did_you_mean(name, classes))
        elif name in named:
            raise Problem(where, f"{name} twice", "name each class once")
        else:
            named[name] = mm
    if len(others) > 1:
        raise Problem(where, "two numbers without a class", "give one, for all classes that are not named")
    left = [name for name in classes if name not in named]
    if left and not others:
        raise Problem(where, f"no tolerance for {', '.join(left)}", "name them too, or put one number for all others")
    return {name: named.get(name, *others) for name in classes} if named else others[0]


def read_pair(pair: Pair, ignore: int | None) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """The files of a pair: prediction (D, H, W), reference with `IGNORE` for `ignore`, and spacing in mm.

    Raises `Problem` where one cannot be read, or they are not on one grid.
    """
    made, truth = read_labels(pair.prediction), read_labels(pair.reference)
    if not made.same_grid(truth):
        raise Problem(pair.prediction, "its grid differs from the reference's", "predict on the image's own grid")
    reference = truth.array if ignore is None else np.where(truth.array == ignore, IGNORE, truth.array)
    return made.array, reference, truth.spacing_mm


def each_case(
    work: Callable[[Pair], list[dict[str, Any]]], cases: Sequence[Pair], workers: int, progress: Progress | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """`work` on each case, `workers` at a time: (the rows of all in order, problems by case)."""

    def one(pair: Pair) -> list[dict[str, Any]] | Problem:
        try:
            return work(pair)
        except Problem as problem:
            return problem

    rows: list[dict[str, Any]] = []
    problems = {}
    with ThreadPoolExecutor(workers) as pool:
        for i, (pair, result) in enumerate(zip(cases, pool.map(one, cases))):
            if isinstance(result, Problem):
                problems[pair.case] = str(result)
            else:
                rows += result
            if progress:
                progress(i + 1, len(cases))
    return rows, problems


def save_table(table: DataFrame, folder: str | Path) -> None:
    """Write `metrics.csv` and nnU-Net's `summary.json` into a folder."""
    with replacing(Path(folder) / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(Path(folder) / "summary.json", nnunet_summary(table))
