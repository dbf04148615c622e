"""A finished run on its validation cases beside some training cases: numbers, arrays for pictures, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from contextseg.data.layouts import Case
from contextseg.diagnose.advice import advise
from contextseg.diagnose.arrays import Seen, histograms, intensities, sample, sections
from contextseg.diagnose.contexts import context_classes, learnt, taught
from contextseg.diagnose.measure import BIN, EDGES_MM, FAR, NEAR, ROI, TISSUES, Measured, distance_mm, measure, overlap
from contextseg.disk import Problem, read_json, replacing, write_json
from contextseg.methods import Method
from contextseg.predict import sliding_window
from contextseg.report.diagnosis import write_diagnosis
from contextseg.report.planes import NEAR_MM
from contextseg.run import Run, Watch, quiet
from contextseg.scan import windows

NAME = "diagnosis"
TRAINING_CASES = 8
"""How many training cases are measured, unless told otherwise: evenly spaced in the order of their names."""

Splits = Mapping[str, Mapping[str, Measured]]
"""Split ("training", "validation") -> case -> what was measured."""


class Diagnosis(NamedTuple):
    """`facts`, the content of `diagnosis.json`, and the page."""

    facts: dict[str, Any]
    page: Path


def diagnose(folder: str | Path, training_cases: int = TRAINING_CASES, watch: Watch = quiet) -> Diagnosis:
    """Measure a finished run; write `diagnosis.json`, `.npz` and `.html` into its folder.

    The network is applied to preprocessed cases as the run predicts (windows, mirrors), without augmentation, and what
    it calls ROI is counted on their grid, before any post-processing. Cases in which some class was not looked for are
    left out: nobody knows their background. No test case is opened.

    Raises `Problem` for a run that is not finished, and for one without validation cases.
    """
    if training_cases < 1:
        raise Problem(f"--training-cases {training_cases}", "nothing to compare with", "give 1 or more")
    run = Run.open(folder)
    training, validation = (_measurable(run, part) for part in run.split)
    if not validation:
        what = "none of this run's validation cases has a label for every class"
        what = what if run.split[1] else f"this run kept no validation cases (fold {run.settings.fold})"
        remedy = "train again with --fold 0 and another --output; test cases must not choose the method"
        raise Problem(folder, what, remedy)
    method = run.finished()
    with watch("diagnose") as tell:
        cases = {"training": _evenly(training, training_cases), "validation": validation}
        measured, samples, shown = _look(run, method, cases, tell)
    arrays = histograms(measured)
    facts = _facts(run, method, measured) | {"training_cases": len(training)}
    image, label = run.image(shown.case), np.array(shown.case.label)
    facts["picture"], drawn = sections(run, shown, image, label)
    if shown.taught is not None:
        arrays |= intensities(samples) | learnt(method)
        weights = arrays["intensity/counts"].sum(1)
        facts["context_shares"] = (weights / max(weights.sum(), 1e-12)).tolist()
    page = run.folder / f"{NAME}.html"
    write_json(page.with_suffix(".json"), facts)
    with replacing(page.with_suffix(".npz")) as temporary:
        np.savez_compressed(temporary, **(arrays | drawn))  # type: ignore[arg-type]
    write_diagnosis(page, facts, arrays | drawn, read_json(run.folder / "run.json"))
    return Diagnosis(facts, page)


# --- which cases, and what the network says of them -------------------------------------------------------------------


def _measurable(run: Run, cases: Sequence[Case]) -> list[Case]:
    """The labelled cases in which every class was looked for."""
    wanted = set(run.plan.classes[1:])
    return [c for c in cases if c.label and (c.annotated is None or wanted <= set(c.annotated))]


def _evenly(cases: Sequence[Case], n: int) -> list[Case]:
    """At most `n` of them, evenly spaced in the order of their names."""
    order = sorted(cases, key=lambda case: case.name)
    places = np.linspace(0, max(len(order) - 1, 0), min(n, len(order))).round()
    return [order[int(i)] for i in places]


def _look(
    run: Run, method: Method, cases: Mapping[str, Sequence[Case]], tell: Callable[[int, int], object]
) -> tuple[Splits, list[tuple[np.ndarray, np.ndarray]], Seen]:
    """Measure all; `arrays.sample` of each validation case; and the one of them to show: a case with a ROI, and of
    those the one with the most false positives.
    """
    measured: dict[str, dict[str, Measured]] = {split: {} for split in cases}
    samples, best, shown, done = [], (False, -1), None, 0
    for split, part in cases.items():
        for case in run.cached(part):
            image, label = run.image(case), np.array(case.label)
            distance = distance_mm(label, run.plan.spacing_mm)
            found, called = measure(_logits(run, method, image), label, distance, case.record.name)
            measured[split][case.record.name] = found
            if split == "validation":
                seen = Seen(case, called, taught(run, method, case, image))
                samples.append(sample(seen, image, label))
                rank = (found.tissues[ROI].n > 0, sum(found.false))
                best, shown = (rank, seen) if rank > best else (best, shown)
            done += 1
            tell(done, sum(map(len, cases.values())))
    assert shown is not None
    return measured, samples, shown


def _logits(run: Run, method: Method, image: np.ndarray) -> Iterator[tuple[int, int, Tensor]]:
    """Slabs of the logits that the run predicts with."""
    keywords = windows(method, run.plan, run.settings.prediction)
    return sliding_window(method.predict, image, run.plan.patch_vox, **keywords)


# --- numbers ----------------------------------------------------------------------------------------------------------


def _facts(run: Run, method: Method, measured: Splits) -> dict[str, Any]:
    """What was asked, the numbers of each split, and the advice."""
    found = {split: _numbers(cases, run.plan.spacing_mm) for split, cases in measured.items()}
    seen = found["validation"]
    advice = advise(
        seen["sen"]["mean"],
        seen["prc"]["mean"],
        seen["tissues"][NEAR]["called"],
        seen["tissues"][FAR]["called"],
        training={name: found["training"][name]["mean"] for name in ("dsc", "prc")},
        cases=len(seen["cases"]),
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
        "advice": asdict(advice),
        **found,
    }


def _numbers(cases: Mapping[str, Measured], spacing_mm: Sequence[float]) -> dict[str, Any]:
    """The numbers of a split: each case's, means over cases, and those of the voxels of all cases together.

    `called`: voxels that are called ROI. Distances end at `edges_mm`, the last bin nowhere. None where there is no
    number.
    """
    rows: list[dict[str, Any]] = []
    for name, one in cases.items():
        roi, called = one.tissues[ROI], {tissue: one.tissues[tissue].called for tissue in TISSUES}
        counts = {"tp": roi.called, "fn": roi.n - roi.called, "fp_near": called[NEAR], "fp_far": called[FAR]}
        rows.append({"case": name, **overlap(one), **counts})
    whole, voxel_ml = Measured.together(cases.values()), float(np.prod(spacing_mm)) / 1000
    tissues = {**whole.tissues, "background": whole.tissues[NEAR] + whole.tissues[FAR]}
    predicted = sum(whole.tissues[tissue].called for tissue in TISSUES)
    false = {name: whole.tissues[name].called for name in (NEAR, FAR)}
    return {
        "cases": rows,
        **{measure: _mean([row[measure] for row in rows]) for measure in ("dsc", "sen", "prc")},
        "tissues": {k: {"n": v.n, "called": v.called, "mean": v.mean, "sd": v.sd} for k, v in tissues.items()},
        "voxel_ml": voxel_ml,
        "fp_ml": {name: count * voxel_ml for name, count in false.items()},
        "fp_share": {name: count / predicted if predicted else None for name, count in false.items()},
        "fp_ml_by_distance": [count * voxel_ml for count in whole.false],
    }


def _mean(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Mean, sample s.d. and number of those that are there."""
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if known else None
    return {"mean": mean, "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None, "n": len(known)}
