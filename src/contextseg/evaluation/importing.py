"""Predictions of other tools, as rows of a comparison, measured against the same references.

`imported` takes a folder of label maps named as the cases (nnU-Net's predictions, or any tool's), a
folder with one folder of structures for each case (TotalSegmentator: `CASE/liver.nii.gz`), or
nnU-Net v2's `summary.json` alone, whose scores are then taken as they are, and marked so. All cases
must be there: a mean over other cases is no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.console import Progress
from contextseg.data.layouts import Dataset
from contextseg.data.listing import some, stem
from contextseg.data.masks import STRUCTURES, label_names, mask_files, painted, recoded
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import Pair, evaluate
from contextseg.evaluation.tables import AS_IT_WAS
from contextseg.inputs import reason_of
from contextseg.metrics import ABSENT, DSC, IOU, PRC, RVD, SEN, class_status
from contextseg.volume import read_labels, write

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Source:
    """The files of another tool, and how to read them.

    Attributes:
        kind: `LABELS` (a label map for each case), `STRUCTURES` (a folder of masks for each case),
            or "summary.json" (scores).
        path: The folder or file.
        cases: Case -> its files.
    """

    kind: str
    path: Path
    cases: Mapping[str, tuple[Path, ...]]


def find(path: str | Path) -> Source:
    """Find out what lies at a path.

    Args:
        path: A folder of label maps or of folders of masks, or a `summary.json`.

    Returns:
        Its files by case.

    Raises:
        ContextsegError: Nothing there can be imported.
    """
    path = Path(path)
    if not path.exists():
        raise ContextsegError(path, "there is no such file or folder", "check the path")
    if path.is_file():
        return Source(AS_IT_WAS, path, dict.fromkeys(_summary_cases(path), (path,)))
    kind, files = mask_files(path)
    if kind:
        return Source(kind, path, files)
    if (path / AS_IT_WAS).is_file():
        return find(path / AS_IT_WAS)
    raise ContextsegError(
        path,
        "no predictions here",
        "give a folder of label maps called as the cases, one with a folder of structures for "
        "each, or a summary.json",
    )


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
    """Measure another tool's predictions of the wanted cases.

    A `dataset.json` beside label maps (nnU-Net leaves one) says what their values mean, and classes
    are matched by name; else they mean what the data set's mean. Structures are matched by the
    words of their names in any order, so "left kidney" is `kidney_left.nii.gz`; where masks
    overlap, the class that comes later in the data set has the voxel.

    Args:
        source: The tool's files.
        wanted: The cases; their `prediction` is ignored.
        data: The data set, which names the classes.
        into: Folder for label maps in the data set's values, where the tool's own differ.
        tolerance_mm: Tolerance of the NSD in mm.
        workers: Number of cases at a time.
        progress: Called with (number done, number of cases) after each case.

    Returns:
        The columns of `evaluate.evaluate`, and `source`: "labels", "structures", or "summary.json"
        for scores that were not measured here, of which surface distances and volumes are missing.
        A class that the tool does not have gives no row; regions with such a class neither.

    Raises:
        ContextsegError: A case is missing, a label value is unknown, or no class is known.
    """
    missing = [pair.case for pair in wanted if pair.case not in source.cases]
    if missing:
        what = f"{len(missing)} of {len(wanted)} cases are not there: {some(missing)}"
        raise ContextsegError(
            source.path, what, "predict them too; a comparison needs the same cases of everything"
        )
    if source.kind == AS_IT_WAS:
        return _from_summary(source.path, wanted, data)
    if source.kind == STRUCTURES:
        predictions, known = _merged(source, wanted, data, Path(into))
    else:
        predictions, known = _translated(source, wanted, data, Path(into))
    regions = {
        n: [data.values[k] for k in union]
        for n, union in data.regions.items()
        if known.issuperset(union)
    }
    if not regions:
        names = ", ".join(data.regions)
        raise ContextsegError(
            source.path,
            f"none of the classes is known there ({names})",
            "name its classes as the data set's",
        )
    cases = [
        replace(pair, prediction=predictions[pair.case], annotated=_known(pair.annotated, regions))
        for pair in wanted
    ]
    table, problems = evaluate(
        cases,
        regions,
        ignore=data.ignore,
        tolerance_mm=tolerance_mm,
        workers=workers,
        progress=progress,
    )
    for case, why in problems.items():
        raise ContextsegError(
            source.path, f"case {case} could not be scored: {why}", "mend it, and compare again"
        )
    return table.assign(source=source.kind)


def _known(annotated: Iterable[str] | None, regions: Mapping[str, Any]) -> tuple[str, ...] | None:
    return None if annotated is None else tuple(name for name in annotated if name in regions)


# --- label maps -----------------------------------------------------------------------------------


def _translated(
    source: Source, wanted: Sequence[Pair], data: Dataset, into: Path
) -> tuple[dict[str, Path], frozenset[int]]:
    """Label maps in the data set's values by case, and the classes that the tool knows."""
    class_values = {value: value for value in data.values} | dict.fromkeys(data.others, 0)
    known = frozenset(range(len(data.classes)))
    if names := label_names(source.path):
        index = {_words(name): k for k, name in enumerate(data.classes)}
        matched = {value: index.get(_words(name)) for value, name in names.items()}
        known = frozenset(k for k in matched.values() if k is not None) | {0}
        class_values = {v: 0 if k is None else data.values[k] for v, k in matched.items()}

    predictions = {}
    for pair in wanted:
        path = source.cases[pair.case][0]
        label = read_labels(path)
        translated = recoded(label.array, class_values, path)
        if not np.array_equal(translated, label.array):
            path = into / f"{pair.case}.nii.gz"
            write(path, label.with_array(translated))
        predictions[pair.case] = path
    return predictions, known


def _merged(
    source: Source, wanted: Sequence[Pair], data: Dataset, into: Path
) -> tuple[dict[str, Path], frozenset[int]]:
    """Label maps merged from masks by case, and the classes of which there is a mask.

    A class is in all cases or in none.
    """
    files = {pair.case: _by_words(source.cases[pair.case]) for pair in wanted}
    index = {_words(name): k for k, name in enumerate(data.classes) if k}
    known = {k for key, k in index.items() if any(key in masks for masks in files.values())}
    references = {pair.case: pair.reference for pair in wanted}
    predictions = {}
    for case, masks in files.items():
        missing = [data.classes[k] for key, k in index.items() if k in known and key not in masks]
        if missing:
            raise ContextsegError(
                source.path / case,
                f"no mask of {some(missing)}, which other cases have",
                "predict it there too; where nothing was found, write an empty mask",
            )
        if known:
            by_value = {data.values[k]: masks[key] for key, k in index.items() if k in known}
            predictions[case] = into / f"{case}.nii.gz"
            write(predictions[case], painted(by_value, read_labels(references[case])))
    return predictions, frozenset(known | {0} if known else ())


def _by_words(masks: Iterable[Path]) -> dict[tuple[str, ...], Path]:
    """Masks by the words of their names, which are those of one structure each."""
    by_words: dict[tuple[str, ...], Path] = {}
    for path in masks:
        if other := by_words.get(_words(stem(path))):
            what = f"a mask of the same structure as {other.name}"
            raise ContextsegError(path, what, "keep one of the two")
        by_words[_words(stem(path))] = path
    return by_words


def _words(name: str) -> tuple[str, ...]:
    """A name's words and numbers in alphabetical order.

    >>> _words("Left Kidney") == _words("kidney_left")
    True
    """
    return tuple(sorted(re.findall(r"[^\W\d_]+|\d+", name.lower())))


# --- scores alone ---------------------------------------------------------------------------------


def _summary_cases(path: Path) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """The metrics of each case in nnU-Net v2's `summary.json`, by label."""
    content = read_json(path)
    try:
        cases = content["metric_per_case"]
        files = [case["prediction_file"] or case["reference_file"] for case in cases]
        names = [re.split(r"[\\/]", file)[-1] for file in files]
        return {stem(Path(name)): dict(case["metrics"]) for name, case in zip(names, cases)}
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ContextsegError(
            path,
            f"not nnU-Net v2's summary.json ({reason_of(error)})",
            "give its predictions instead",
        ) from error


def _from_summary(path: Path, wanted: Sequence[Pair], data: Dataset) -> DataFrame:
    """Rows with the scores of a `summary.json`; a region without a label gives none."""
    import pandas as pd

    cases = _summary_cases(path)
    rows = []
    for pair in wanted:
        for name, union in data.regions.items():
            values = tuple(data.values[k] for k in union)
            label = str(values[0] if len(values) == 1 else values)
            if label in cases[pair.case] and (pair.annotated is None or name in pair.annotated):
                head = {"case": pair.case, "class": name, "label": label}
                rows.append(head | _scores(cases[pair.case][label], path) | {"source": AS_IT_WAS})
    if not rows:
        raise ContextsegError(
            path,
            f"no scores for any of the labels of {data.name}",
            "compare its dataset.json with theirs",
        )
    return pd.DataFrame(rows)


def _scores(metrics: Mapping[str, float], path: Path) -> dict[str, Any]:
    """Our columns of one of its cases and labels; what divides by zero is as in `evaluate_case`."""
    try:
        tp, fp, fn, tn = (int(metrics[name]) for name in ("TP", "FP", "FN", "TN"))
        dice, iou = float(metrics["Dice"]), float(metrics["IoU"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ContextsegError(
            path, f"not nnU-Net v2's scores ({reason_of(error)})", "give its predictions instead"
        ) from error
    status = class_status(tp, fp, fn)
    precision = tp / (tp + fp) if tp + fp else 0.0
    return {
        "status": status,
        DSC: dice,
        IOU: iou,
        SEN: tp / (tp + fn) if tp + fn else nan,
        PRC: nan if status == ABSENT else precision,
        RVD: (fp - fn) / (tp + fn) if tp + fn else nan,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
    }
