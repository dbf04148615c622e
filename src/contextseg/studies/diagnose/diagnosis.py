"""A finished run on some cases beside some training cases: numbers, pictures, a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.cache import Cached
from contextseg.disk import read_json, replacing, write_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.methods import Method
from contextseg.methods.context import folded
from contextseg.predict import sliding_window
from contextseg.predictor import sliding_window_arguments
from contextseg.reports.diagnosis import diagnosis_text, write_diagnosis
from contextseg.reports.planes import NEAR_MM
from contextseg.runs import Run
from contextseg.studies.diagnose.advice import advise
from contextseg.studies.diagnose.arrays import (
    MeasuredCase,
    histograms,
    intensities,
    sample,
    sections,
)
from contextseg.studies.diagnose.choosing import (
    TRAINING,
    VALIDATION,
    cached_cases,
    chosen_cases,
    evenly,
    measurable,
)
from contextseg.studies.diagnose.contexts import context_classes, context_history, context_maps
from contextseg.studies.diagnose.measure import (
    BIN,
    EDGES_MM,
    FAR,
    NEAR,
    ROI,
    TISSUES,
    Measured,
    distance_mm,
    measure,
    overlap,
)

NAME = "diagnosis"
TRAINING_CASES = 8
"""Number of training cases that are measured unless another is asked for."""

LOGIT_AXES = (DEPLOYED, PAPER) = ("deployed", "paper")
"""Of which logits the figures are."""

Splits = Mapping[str, Mapping[str, Measured]]
"""Split ("training", and perhaps "validation", "test" or "chosen") -> case -> what was measured."""


class Diagnosis(NamedTuple):
    """The facts of a run, and the page that shows them. `str` of it is the facts as text.

    Attributes:
        facts: The content of `diagnosis.json`.
        page: The page.
    """

    facts: dict[str, Any]
    page: Path

    def __repr__(self) -> str:
        if self.facts["advice"] is None:
            return f"Diagnosis({str(self.page)!r}, no advice)"
        t = self.facts["advice"]["context_classes"]
        return f"Diagnosis({str(self.page)!r}, advice: {t} context class{'es' * (t > 1)})"

    def __str__(self) -> str:
        return f"{diagnosis_text(self.facts)}\n\npage  {self.page}"


def diagnose(
    folder: str | Path,
    training_cases: int = TRAINING_CASES,
    progress_bar: ProgressBar = no_progress_bar,
    *,
    cases: str = "",
    axes: str = DEPLOYED,
) -> Diagnosis:
    """Measure a finished run; write `diagnosis.json`, `.npz` and `.html` into its folder.

    The network is applied to preprocessed cases as the run predicts (sliding windows, mirrors),
    without augmentation, and what it calls ROI is counted on their grid, before any
    post-processing. Cases in which some class was not annotated are left out: their background is
    unknown. No test case is opened unless it is asked for, and none is a reason for advice. Where
    `cases` or `axes` are given, the files are called after them, as in `diagnosis-test.html`.

    Args:
        folder: Folder of the run.
        training_cases: Number of training cases to compare with, evenly spaced in the order of
            their names.
        progress_bar: Shows the progress.
        cases: What is shown beside training cases: "validation", "test", or names of labelled cases
            with commas between; or "train" for training cases alone. "" is "validation", and
            "train" for a run that kept no validation cases.
        axes: "deployed" for the logits that predict; "paper" for the largest logit of a ROI class
            against the largest of all other channels, the context classes too (Li et al., Fig. 3),
            by which then is called ROI what wins over all of them.

    Returns:
        The facts and the page.

    Raises:
        ContextsegError: The run is not finished, there is no case that can be measured, or none of
            a name.
    """
    if training_cases < 1:
        where = f"--training-cases {training_cases}"
        raise ContextsegError(where, "nothing to compare with", "give 1 or more")
    if axes not in LOGIT_AXES:
        raise ContextsegError(
            f"--axes {axes}", "there are no such axes", did_you_mean(axes, LOGIT_AXES)
        )
    run = Run.open(folder)
    training = measurable(run, run.split[0])
    split, chosen = chosen_cases(run, cases)
    method = run.finished()
    with progress_bar("diagnose") as progress:
        parts = {TRAINING: run.cached(evenly(training, training_cases))}
        if split != TRAINING:
            parts[split] = cached_cases(run, chosen)
        measured, samples, shown = _measure_cases(run, method, parts, axes, progress)
    arrays = histograms(measured)
    facts = _facts(run, method, measured) | {"training_cases": len(training), "axes": axes}
    image = run.image(shown.case)
    label = np.array(shown.case.label)
    facts["picture"], pictures = sections(run, shown, image, label)
    if shown.contexts is not None:
        arrays |= intensities(samples) | context_history(method)
        weights = arrays["intensity/counts"].sum(1)
        facts["context_shares"] = (weights / max(weights.sum(), 1e-12)).tolist()
    arrays |= pictures
    words = [NAME, split if cases else "", axes if axes != DEPLOYED else ""]
    page = run.folder / f"{'-'.join(filter(None, words))}.html"
    write_json(page.with_suffix(".json"), facts)
    with replacing(page.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
    write_diagnosis(page, facts, arrays, read_json(run.folder / "run.json"))
    return Diagnosis(facts, page)


# --- what the network says of the cases -----------------------------------------------------------


def _measure_cases(
    run: Run,
    method: Method,
    parts: Mapping[str, Sequence[Cached]],
    axes: str,
    progress: Progress,
) -> tuple[Splits, list[tuple[np.ndarray, np.ndarray]], MeasuredCase]:
    """What is measured of all cases; `arrays.sample` of each of the last split; the one to show.

    Shown is a case of the last split with a ROI, and of those the one with the most false
    positives.
    """
    splits: dict[str, dict[str, Measured]] = {split: {} for split in parts}
    samples = []
    shown = None
    best = (False, -1)
    done = 0
    for split, part in parts.items():
        for case in part:
            image = run.image(case)
            label = np.array(case.label)
            distance = distance_mm(label, run.plan.spacing_mm)
            logits = _logits(run, method, image, axes)
            measured, called = measure(logits, label, distance, case.record.name)
            splits[split][case.record.name] = measured
            if split == list(parts)[-1]:
                this = MeasuredCase(case, called, context_maps(run, method, case, image))
                samples.append(sample(this, image, label))
                rank = (measured.tissues[ROI].n > 0, sum(measured.false))
                if rank > best:
                    best = rank
                    shown = this
            done += 1
            progress(done, sum(map(len, parts.values())))
    assert shown is not None
    return splits, samples, shown


def _logits(
    run: Run, method: Method, image: np.ndarray, axes: str
) -> Iterator[tuple[int, int, Tensor]]:
    """Slabs of the logits that the run predicts with, or of the paper's."""
    keywords = sliding_window_arguments(method, run.plan, run.settings.prediction)
    if axes == DEPLOYED or context_classes(method) == 1:
        return sliding_window(method.predict, image, run.plan.patch_vox, **keywords)
    channels = sliding_window(method.context_logits, image, run.plan.patch_vox, **keywords)
    classes = len(run.plan.classes)
    return ((a, b, folded(z[None], classes, "max")[0]) for a, b, z in channels)


# --- numbers --------------------------------------------------------------------------------------


def _facts(run: Run, method: Method, measured: Splits) -> dict[str, Any]:
    """The settings, the numbers of each split, and what validation cases advise."""
    numbers = {split: _numbers(cases, run.plan.spacing_mm) for split, cases in measured.items()}
    advice = None
    if VALIDATION in numbers:
        validation = numbers[VALIDATION]
        advice = advise(
            validation["sen"]["mean"],
            validation["prc"]["mean"],
            validation["tissues"][NEAR]["called"],
            validation["tissues"][FAR]["called"],
            training={name: numbers[TRAINING][name]["mean"] for name in ("dsc", "prc")},
            cases=len(validation["cases"]),
            context_classes=context_classes(method),
        )
    return {
        "dataset": run.plan.dataset,
        "method": run.settings.method,
        "arguments": run.settings.arguments,
        "fold": run.settings.fold,
        "context_classes": context_classes(method),
        "near_mm": NEAR_MM,
        "edges_mm": EDGES_MM,
        "bin": BIN,
        "advice": None if advice is None else asdict(advice),
        "splits": list(numbers),
        **numbers,
    }


def _numbers(cases: Mapping[str, Measured], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """The numbers of a split: of each case, means over cases, and of all their voxels together.

    `called`: voxels that are called ROI. Distances end at `edges_mm`, the last bin nowhere. None
    where there is no number.
    """
    rows: list[dict[str, Any]] = []
    for name, measured in cases.items():
        roi = measured.tissues[ROI]
        counts = {
            "tp": roi.called,
            "fn": roi.n - roi.called,
            "fp_near": measured.tissues[NEAR].called,
            "fp_far": measured.tissues[FAR].called,
        }
        rows.append({"case": name, **overlap(measured), **counts})
    whole = Measured.together(cases.values())
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    tissues = {**whole.tissues, "background": whole.tissues[NEAR] + whole.tissues[FAR]}
    predicted = sum(whole.tissues[tissue].called for tissue in TISSUES)
    false = {name: whole.tissues[name].called for name in (NEAR, FAR)}
    return {
        "cases": rows,
        **{metric: _mean([row[metric] for row in rows]) for metric in ("dsc", "sen", "prc")},
        "tissues": {
            name: {"n": part.n, "called": part.called, "mean": part.mean, "sd": part.sd}
            for name, part in tissues.items()
        },
        "voxel_ml": voxel_ml,
        "fp_ml": {name: count * voxel_ml for name, count in false.items()},
        "fp_share": {
            name: count / predicted if predicted else None for name, count in false.items()
        },
        "fp_ml_by_distance": [count * voxel_ml for count in whole.false],
    }


def _mean(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean, sample s.d. and number of the values that are there."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }
