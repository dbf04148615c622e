"""What other tools predicted, as rows of a comparison: measured by the same engine against the same references.

`imported` takes a folder of label maps named as the cases (nnU-Net's predictions, or any tool's), a folder with one
folder of structures for each case (TotalSegmentator: `CASE/liver.nii.gz`), or nnU-Net v2's `summary.json` alone, whose
scores are then taken as they are, and marked so. All cases must be there: a mean over other cases is no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.data.layouts import Dataset
from contextseg.data.listing import some, stem
from contextseg.data.masks import STRUCTURES, label_names, mask_files, painted, recoded
from contextseg.disk import Problem, read_json
from contextseg.experiments.evaluate import Pair, Progress, evaluate
from contextseg.experiments.tables import AS_IT_WAS
from contextseg.metrics import ABSENT, BOTH, DSC, IOU, MISSED, PRC, RVD, SEN, SPURIOUS
from contextseg.volume import read_labels, write

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Source:
    """What there is of another tool's work: the files of each case it has, and how to read them.

    kind   `LABELS` (one label map each), `STRUCTURES` (a folder of masks each), or "summary.json" (scores).
    """

    kind: str
    path: Path
    cases: Mapping[str, tuple[Path, ...]]


def find(path: str | Path) -> Source:
    """What lies at `path`. Raises `Problem` where it is nothing that can be imported."""
    path = Path(path)
    if not path.exists():
        raise Problem(path, "there is no such file or folder", "check the path")
    if path.is_file():
        return Source(AS_IT_WAS, path, dict.fromkeys(_summary_cases(path), (path,)))
    kind, files = mask_files(path)
    if kind:
        return Source(kind, path, files)
    if (path / AS_IT_WAS).is_file():
        return find(path / AS_IT_WAS)
    remedy = (
        "give a folder of label maps called as the cases, one with a folder of structures for each, or a summary.json"
    )
    raise Problem(path, "no predictions here", remedy)


def imported(
    source: Source,
    wanted: Sequence[Pair],
    data: Dataset,
    into: str | Path,
    *,
    tolerance_mm: float = 2.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> DataFrame:
    """The table of another tool's work on the `wanted` cases (their `prediction` is not looked at).

    Columns as `evaluate`'s, and `source`: "labels", "structures", or "summary.json" for scores that were not measured
    here, of which surface distances and volumes are missing. A `dataset.json` beside label maps (nnU-Net leaves one)
    says what their values mean, and classes are matched by name; else they mean what the data set's mean. Structures
    are matched by the words of their names in any order, so "left kidney" is `kidney_left.nii.gz`; where masks overlap,
    the class that comes later in the data set has the voxel. Label maps that had to be made are written into `into`.
    A class that the tool does not have gives no row; regions with such a class neither.

    Raises `Problem` for missing cases, unknown label values, and where no class is known.
    """
    missing = [pair.case for pair in wanted if pair.case not in source.cases]
    if missing:
        what = f"{len(missing)} of {len(wanted)} cases are not there: {some(missing)}"
        raise Problem(source.path, what, "predict them too; a comparison needs the same cases of everything")
    if source.kind == AS_IT_WAS:
        return _from_summary(source.path, wanted, data)
    if source.kind == STRUCTURES:
        made, known = _merged(source, wanted, data, Path(into))
    else:
        made, known = _translated(source, wanted, data, Path(into))
    regions = {n: [data.values[k] for k in union] for n, union in data.regions.items() if known.issuperset(union)}
    if not regions:
        names = ", ".join(data.regions)
        raise Problem(
            source.path, f"none of the classes is known there ({names})", "name its classes as the data set's"
        )
    found = [replace(pair, prediction=made[pair.case], annotated=_both(pair.annotated, regions)) for pair in wanted]
    table, problems = evaluate(
        found, regions, ignore=data.ignore, tolerance_mm=tolerance_mm, workers=workers, progress=progress
    )
    for case, why in problems.items():
        raise Problem(source.path, f"case {case} could not be scored: {why}", "mend it, and compare again")
    return table.assign(source=source.kind)


def _both(annotated: Iterable[str] | None, regions: Mapping[str, Any]) -> tuple[str, ...] | None:
    return None if annotated is None else tuple(name for name in annotated if name in regions)


# --- label maps -------------------------------------------------------------------------------------------------------


def _translated(
    source: Source, wanted: Sequence[Pair], data: Dataset, into: Path
) -> tuple[dict[str, Path], frozenset[int]]:
    """(label maps in the data set's values, by case; the classes that the tool knows)."""
    theirs, known = {value: value for value in data.values}, frozenset(range(len(data.classes)))
    theirs |= dict.fromkeys(data.others, 0)
    if names := label_names(source.path):
        index = {_words(name): k for k, name in enumerate(data.classes)}
        matched = {value: index.get(_words(name)) for value, name in names.items()}
        known = frozenset(k for k in matched.values() if k is not None) | {0}
        theirs = {value: 0 if k is None else data.values[k] for value, k in matched.items()}
    made = {}
    for pair in wanted:
        made[pair.case] = source.cases[pair.case][0]
        label = read_labels(made[pair.case])
        ours = recoded(label.array, theirs, made[pair.case])
        if not np.array_equal(ours, label.array):
            made[pair.case] = into / f"{pair.case}.nii.gz"
            write(made[pair.case], label.with_array(ours))
    return made, known


def _merged(
    source: Source, wanted: Sequence[Pair], data: Dataset, into: Path
) -> tuple[dict[str, Path], frozenset[int]]:
    """(label maps made of masks, by case; the classes of which there is a mask). A class is in all cases or in none."""
    files = {pair.case: {_words(stem(p)): p for p in source.cases[pair.case]} for pair in wanted}
    index = {_words(name): k for k, name in enumerate(data.classes) if k}
    known = {k for key, k in index.items() if any(key in masks for masks in files.values())}
    made = {}
    for case, masks in files.items():
        lacking = [data.classes[k] for key, k in index.items() if k in known and key not in masks]
        if lacking:
            what = f"no mask of {some(lacking)}, which other cases have"
            raise Problem(
                source.path / case, what, "predict it there too; where nothing was found, write an empty mask"
            )
        if known:
            made[case] = into / f"{case}.nii.gz"
            write(made[case], painted({data.values[k]: masks[key] for key, k in index.items() if k in known}))
    return made, frozenset(known | {0} if known else ())


def _words(name: str) -> tuple[str, ...]:
    """A name's words and numbers in alphabetical order.

    >>> _words("Left Kidney") == _words("kidney_left")
    True
    """
    return tuple(sorted(re.findall(r"[^\W\d_]+|\d+", name.lower())))


# --- scores alone -----------------------------------------------------------------------------------------------------


def _summary_cases(path: Path) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """The metrics of each case in nnU-Net v2's `summary.json`, by label."""
    content = read_json(path)
    try:
        cases = content["metric_per_case"]
        names = [re.split(r"[\\/]", case["prediction_file"])[-1] for case in cases]
        return {stem(Path(name)): dict(case["metrics"]) for name, case in zip(names, cases)}
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(path, f"not nnU-Net v2's summary.json ({error!r})", "give its predictions instead") from error


def _from_summary(path: Path, wanted: Sequence[Pair], data: Dataset) -> DataFrame:
    """Rows with the scores of a `summary.json`; a region of which no case has a label gives none."""
    import pandas as pd

    cases, rows = _summary_cases(path), []
    for pair in wanted:
        for name, union in data.regions.items():
            values = tuple(data.values[k] for k in union)
            label = str(values[0] if len(values) == 1 else values)
            if label in cases[pair.case] and (pair.annotated is None or name in pair.annotated):
                head = {"case": pair.case, "class": name, "label": label}
                rows.append(head | _scores(cases[pair.case][label], path) | {"source": AS_IT_WAS})
    if not rows:
        raise Problem(path, f"no scores for any of the labels of {data.name}", "compare its dataset.json with theirs")
    return pd.DataFrame(rows)


def _scores(metrics: Mapping[str, float], path: Path) -> dict[str, Any]:
    """Our columns of one of its cases and labels; what divides by zero is as in `evaluate_case`."""
    try:
        tp, fp, fn, tn = (int(metrics[name]) for name in ("TP", "FP", "FN", "TN"))
        dice, iou = float(metrics["Dice"]), float(metrics["IoU"])
    except (KeyError, TypeError, ValueError) as error:
        raise Problem(path, f"not nnU-Net v2's scores ({error!r})", "give its predictions instead") from error
    status = (BOTH if tp + fn else SPURIOUS) if tp + fp else (MISSED if tp + fn else ABSENT)
    return {
        "status": status,
        DSC: dice,
        IOU: iou,
        SEN: tp / (tp + fn) if tp + fn else nan,
        PRC: nan if status == ABSENT else tp / (tp + fp) if tp + fp else 0.0,
        RVD: (fp - fn) / (tp + fn) if tp + fn else nan,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
    }
