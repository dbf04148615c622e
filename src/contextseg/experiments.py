"""From predictions to the table: one row for each run, case and class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem, replacing, write_json
from contextseg.metrics import evaluate_case, nnunet_summary
from contextseg.volume import read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

Progress = Callable[[int, int], None]


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
    tolerance_mm: float = 2.0,
    convention: str = "default",
    workers: int = 2,
    progress: Progress | None = None,
) -> tuple[DataFrame, dict[str, str]]:
    """Measure every pair: (table, problems by case). `regions` are unions of the files' values; `ignore` never counts.

    The table has the columns of `metrics.evaluate_case`, and case, prediction_file and reference_file. A case that
    cannot be read or does not fit is in `problems`, not in the table. No case gives an empty table.
    """
    import pandas as pd

    def one(pair: Pair) -> list[dict[str, Any]] | Problem:
        try:
            made, truth = read_labels(pair.prediction), read_labels(pair.reference)
            if not made.same_grid(truth):
                raise Problem(
                    pair.prediction, "its grid differs from the reference's", "predict on the image's own grid"
                )
            reference = truth.array if ignore is None else np.where(truth.array == ignore, IGNORE, truth.array)
            rows = evaluate_case(
                made.array,
                reference,
                truth.spacing_mm,
                regions,
                tolerance_mm=tolerance_mm,
                convention=convention,
                annotated=pair.annotated,
            )
        except Problem as problem:
            return problem
        files = {"prediction_file": str(pair.prediction), "reference_file": str(pair.reference)}
        return [{"case": pair.case, **row, **files} for row in rows]

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
    return pd.DataFrame(rows), problems


def save_table(table: DataFrame, folder: str | Path) -> None:
    """Write `metrics.csv` and nnU-Net's `summary.json` into a folder."""
    with replacing(Path(folder) / "metrics.csv") as temporary:
        table.to_csv(temporary, index=False)
    write_json(Path(folder) / "summary.json", nnunet_summary(table))
