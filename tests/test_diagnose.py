"""Diagnosing: counts and moments of known logits, the advice, and whole runs on phantoms."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from typer.testing import CliRunner

import laws
from contextseg.batch import IGNORE
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS, Method
from contextseg.methods.colab import CoLab
from contextseg.methods.context import nearness
from contextseg.metrics import evaluate_case
from contextseg.pipeline import train_run
from contextseg.predict import sliding_window
from contextseg.predictor import sliding_window_arguments
from contextseg.reports.contexts import CONTEXTS, TINT, _edges, panels
from contextseg.reports.diagnosis import diagnosis_text
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.studies.diagnose.advice import Advice, advise
from contextseg.studies.diagnose.arrays import (
    MeasuredCase,
    _centre,
    intensities,
    sample,
    sections,
)
from contextseg.studies.diagnose.choosing import evenly, measurable
from contextseg.studies.diagnose.contexts import (
    ContextMaps,
    context_classes,
    context_history,
    context_maps,
)
from contextseg.studies.diagnose.diagnosis import TRAINING_CASES, diagnose
from contextseg.studies.diagnose.measure import (
    BIN,
    FAR,
    NEAR,
    ROI,
    Margins,
    Measured,
    distance_mm,
    measure,
    overlap,
)
from contextseg.volume import Volume

torch.set_num_threads(1)


# --- known logits ---------------------------------------------------------------------------------


def test_known_logits_give_exact_counts() -> None:
    """Eight voxels of 4 mm in a row, the first of them ROI: the next two are near, at 4 and 8 mm,
    and five are far.
    """
    label = np.array([[[1, 0, 0, 0, 0, 0, IGNORE, 0]]])
    roi = torch.tensor([2.05, 3.05, -1.05, 1.05, -1.05, -1.05, 9.0, 0.45])
    background = torch.tensor([0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.0, 0.45])
    z = torch.stack([background, roi - 1, roi]).view(
        3, 1, 1, 8
    )  # of two ROI classes the larger one counts
    distance = distance_mm(label, (1.0, 1.0, 4.0))
    assert distance.ravel().tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    measured, called = measure([(0, 1, z)], label, distance)
    assert called.ravel().tolist() == [
        True,
        True,
        False,
        True,
        False,
        False,
        False,
        False,
    ]  # a tie is background
    assert {name: (part.n, part.called) for name, part in measured.tissues.items()} == {
        ROI: (1, 1),
        NEAR: (2, 1),
        FAR: (4, 1),
    }
    assert measured.tissues[ROI].mean == pytest.approx(2.0)
    near = measured.tissues[NEAR]  # margins 3.0 and -1.1
    assert (near.mean, near.sd) == (pytest.approx(0.95), pytest.approx(2.05))
    assert measured.tissues[FAR].mean == pytest.approx((1.0 - 1.1 - 1.1 + 0.0) / 4)
    assert measured.tissues[FAR].pairs == {(0, 10): 1, (0, -11): 2, (4, 4): 1}
    assert measured.false == (0, 1, 0, 1, 0, 0, 0)  # at 4 mm, in 2 to 5; at 12 mm, in 10 to 20


def test_slabs_add_up() -> None:
    random = np.random.default_rng(0)
    label = np.where(random.random((6, 12, 10)) < 0.01, 1, random.integers(-1, 1, (6, 12, 10)))
    z = torch.from_numpy(random.normal(0, 3, (2, 6, 12, 10)).astype(np.float32))
    distance = distance_mm(label, (6.0, 4.0, 2.0))
    whole, called = measure([(0, 6, z)], label, distance)
    parts, again = measure([(0, 1, z[:, :1]), (1, 4, z[:, 1:4]), (4, 6, z[:, 4:])], label, distance)
    assert (called == again).all()
    assert parts.false == whole.false
    for name, part in whole.tissues.items():
        margin = (z[1] - z[0]).numpy()[_tissue(label, distance, name)].astype(float)
        assert (part.n, part.called) == (margin.size, (margin > 0).sum())
        assert (part.mean, part.sd) == (pytest.approx(margin.mean()), pytest.approx(margin.std()))
        assert sum(part.pairs.values()) == sum(part.margins.values()) == part.n
        assert (parts.tissues[name].pairs, parts.tissues[name].margins) == (
            part.pairs,
            part.margins,
        )
        assert parts.tissues[name].total == pytest.approx(part.total)


def _tissue(label: np.ndarray, distance: np.ndarray, name: str) -> Any:
    return {
        ROI: label > 0,
        NEAR: (label == 0) & (distance <= 10),
        FAR: (label == 0) & (distance > 10),
    }[name]


def test_bins_part_at_the_boundary() -> None:
    """A margin of 0 is called background, the smallest one above it ROI; bins are (k BIN, (k + 1)
    BIN].
    """
    margin = np.array([0.0, 1e-7, BIN / 2, -1e-7, 1.5 * BIN], np.float32)
    margins = Margins.of(np.zeros(5, np.float32), margin)
    assert margins.margins == {-1: 2, 0: 2, 1: 1}
    assert margins.called == 3
    nothing = Margins.of(np.zeros(0), np.zeros(0))
    assert (nothing.n, nothing.called, nothing.mean, nothing.sd) == (0, 0, None, None)
    large = Margins.of(np.array([-5000.05]), np.array([7000.05]))
    assert large.pairs == {(-50001, 70000): 1}


@pytest.mark.parametrize(
    ("reference", "prediction"), [(0.2, 0.3), (0.0, 0.1), (0.1, 0.0), (0.0, 0.0), (0.001, 0.6)]
)
def test_overlap_is_that_of_the_metrics(reference: float, prediction: float) -> None:
    random = np.random.default_rng(1)
    label = (random.random((8, 9, 10)) < reference).astype(np.int16)
    label[0] = IGNORE
    pred = random.random((8, 9, 10)) < prediction
    z = torch.from_numpy(np.stack([~pred, pred]).astype(np.float32))
    spacing = (6.0, 2.0, 3.0)
    measured, _ = measure([(0, 8, z)], label, distance_mm(label, spacing))
    (row,) = evaluate_case(pred.astype(int), label, spacing, {"roi": [1]}, near_mm=10.0)
    for name, value in overlap(measured).items():
        assert value == pytest.approx(row[name]) if value is not None else np.isnan(row[name])
    assert measured.tissues[NEAR].called == row["fp_near"] == sum(measured.false[:3])
    assert measured.tissues[FAR].called == row["fp_far"] == sum(measured.false[3:])
    both = Measured.together([measured, measured])
    assert both.tissues[ROI].n == 2 * measured.tissues[ROI].n
    assert both.false == tuple(2 * n for n in measured.false)
    assert Measured.together([]).tissues[ROI].mean is None


def test_diverged_logits_are_a_problem() -> None:
    z = torch.zeros(2, 1, 1, 2)
    z[1, 0, 0, 1] = torch.nan
    with pytest.raises(ContextsegError, match="case_7: its logits are not finite"):
        measure([(0, 1, z)], np.zeros((1, 1, 2), int), np.ones((1, 1, 2)), "case_7")


# --- advice ---------------------------------------------------------------------------------------


def test_advice_follows_where_the_false_positives_are() -> None:
    assert advise(0.80, 0.85, 900, 100) == Advice(
        1, "Few false positives: precision, 0.850, is above sensitivity, 0.800."
    )
    far = advise(0.80, 0.60, 100, 900)
    assert (far.context_classes, far.notes) == (2, ())
    assert "90 % of their volume lies far" in far.reason
    near = advise(0.80, 0.60, 900, 100)
    assert near.context_classes == 4
    assert "90 % of their volume lies next to" in near.reason
    assert advise(0.8, 0.6, 50, 50).context_classes == 4
    assert advise(1.0, 1.0, 0, 0).reason == "There are no false positives."
    assert advise(None, 0.0, 0, 10).context_classes == 2  # only cases without a ROI
    assert (
        advise(0.80, 0.85, 900, 100, context_classes=4).context_classes == 4
    )  # it may be why they are few


def test_advice_names_what_speaks_against_it() -> None:
    def notes(**more: Any) -> str:
        return " ".join(advise(0.8, 0.6, 100, 900, **more).notes)

    assert notes() == notes(training={"dsc": 0.95, "prc": 0.94}, cases=5) == ""
    assert "4 validation cases are few" in notes(cases=4)
    assert "1 validation case is few" in notes(cases=1)
    assert "trained with 2 context classes" in notes(context_classes=2)
    assert "Mean Dice on training cases is 0.500" in notes(training={"dsc": 0.5, "prc": 0.9})
    assert "Precision on training cases is 0.620, hardly higher" in notes(
        training={"dsc": 0.9, "prc": 0.62}
    )


def test_advice_agrees_with_the_papers_tables() -> None:
    """SEN, PRC and DSC without context, and the best DSC of CoLab: context is advised where it
    gained 3 points.
    """
    tables = {
        "liver tumour": (58.8, 58.9, 54.4, 62.5),
        "kidney tumour": (83.2, 71.9, 74.9, 78.5),
        "colon tumour": (53.9, 45.3, 45.6, 48.9),
        "schwannoma": (91.2, 80.5, 84.3, 89.0),
        "stroke lesion": (68.2, 58.6, 58.5, 62.8),
        "pancreas": (82.9, 85.1, 82.9, 83.3),
        "pancreas tumour": (49.2, 59.3, 48.9, 51.1),
    }
    for name, (sen, prc, without, best) in tables.items():
        assert (advise(sen / 100, prc / 100, 1, 1).context_classes > 1) == (best - without > 3), (
            name
        )


# --- a whole run ----------------------------------------------------------------------------------


class Known(Method):
    """Calls ROI what is brighter than 1: logits (0.05, 1.08) there and (0.05, -1.08) elsewhere."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"seg": self.weight.square().sum()}

    def predict(self, image: Tensor) -> Tensor:
        bright = torch.where(image[:, :1] > 1, 1.08, -1.08)
        return torch.cat([torch.full_like(bright, 0.05), bright], 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("data"), labelled=5, test=1)


def finished(folder: Path, data: Path, method: str, *more: str, fold: int = 0) -> Run:
    small = [
        "steps=1",
        "patch_vox=16,16,16",
        "base_width=4",
        "batch_size=2",
        "prediction.mirror=false",
        *more,
    ]
    run = Run(folder, Settings(str(data), method, fold).set(small))
    train_run(run)
    return Run.open(folder)


def test_a_known_network_is_measured_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "known", Known)
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=1, look_alikes=3)
    run = finished(tmp_path / "run", data, "known")
    diagnosis = diagnose(tmp_path / "run", 3)
    facts, written = diagnosis.facts, read_json(tmp_path / "run" / "diagnosis.json")
    assert written["validation"] == facts["validation"]
    assert [len(facts[split]["cases"]) for split in ("training", "validation")] == [3, 1]

    (case,) = run.cached(run.split[1])
    image, label = run.image(case)[0], np.array(case.label)
    mm = run.plan.spacing_mm
    distance = distance_transform_edt(label == 0, sampling=mm)
    bright = image > 1
    with np.load(tmp_path / "run" / "diagnosis.npz") as arrays:
        for name in (ROI, NEAR, FAR):
            n, called = (
                int((mask & _tissue(label, distance, name)).sum())
                for mask in (bright | True, bright)
            )
            tissue = facts["validation"]["tissues"][name]
            assert (tissue["n"], tissue["called"]) == (n, called)
            assert tissue["mean"] == pytest.approx(
                (1.03 * called - 1.13 * (n - called)) / n, abs=1e-5
            )
            expected = sorted(
                [0, j, count] for j, count in ((-11, n - called), (10, called)) if count
            )
            assert arrays[f"validation/{name}/pairs"].tolist() == expected
    (row,) = facts["validation"]["cases"]
    false = {name: int((bright & _tissue(label, distance, name)).sum()) for name in (NEAR, FAR)}
    assert min(false.values()) > 0  # the look-alikes
    assert (row["fp_near"], row["fp_far"]) == (false[NEAR], false[FAR])
    assert facts["validation"]["fp_ml"][FAR] == pytest.approx(false[FAR] * np.prod(mm) / 1000)
    assert facts["validation"]["fp_share"][FAR] == pytest.approx(false[FAR] / bright.sum())
    assert facts["advice"]["context_classes"] == (2 if false[FAR] > false[NEAR] else 4)

    assert str(diagnosis) == f"{diagnosis_text(facts)}\n\npage  {diagnosis.page}"
    advice = facts["advice"]["context_classes"]
    assert repr(diagnosis).endswith(f"diagnosis.html', advice: {advice} context classes)")
    page = diagnosis.page.read_text(encoding="utf-8")
    assert f"{facts['advice']['reason']}" in diagnosis_text(facts)
    assert facts["advice"]["reason"] in page
    assert "Likeliest context" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for part in ("imagesTs", "labelsTs"):  # test cases are not opened
        for file in (data / part).iterdir():
            file.write_bytes(b"not a scan")
    assert diagnose(tmp_path / "run", 3).page.read_text(encoding="utf-8") == page


def test_what_cannot_be_diagnosed_is_refused(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "known", Known)
    finished(tmp_path / "all", data, "known", fold=-1)
    with pytest.raises(ContextsegError, match=r"no validation cases \(fold -1\).*--fold 0"):
        diagnose(tmp_path / "all", cases="validation")
    with pytest.raises(ContextsegError, match="there is no such case"):
        diagnose(tmp_path / "all", cases="nobody")
    with pytest.raises(ContextsegError, match="there are no such axes"):
        diagnose(tmp_path / "all", axes="papers")
    with pytest.raises(ContextsegError, match="nothing to compare with"):
        diagnose(tmp_path / "all", 0)
    with pytest.raises(ContextsegError, match="there is no run"):
        diagnose(tmp_path / "nowhere")
    Run(tmp_path / "begun", Settings(str(data), "known", 0)).use_plan(laws.plan(classes=2))
    with pytest.raises(ContextsegError, match="not finished"):
        diagnose(tmp_path / "begun")


def test_cases_are_drawn_evenly_and_known_wholly(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(str(data), fold=0))
    run.use_plan(laws.plan(classes=2))
    cases = sorted(run.split[0], key=lambda case: case.name)
    assert evenly(cases[::-1], 2) == [cases[0], cases[-1]]
    assert evenly(cases, TRAINING_CASES) == cases
    assert evenly([], 3) == []
    partly = [
        replace(cases[0], annotated=()),
        replace(cases[1], label=None),
        replace(cases[2], annotated=("bright",)),
    ]
    assert measurable(run, partly) == partly[2:]


def test_contexts_are_shown(tmp_path: Path, data: Path) -> None:
    finished(tmp_path / "run", data, "colab", "context_classes=3")
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path / "run"), "--training-cases", "1"])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "run" / "diagnosis.html") in result.output
    facts, page = (
        read_json(tmp_path / "run" / "diagnosis.json"),
        (tmp_path / "run" / "diagnosis.html").read_text(encoding="utf-8"),
    )
    assert facts["context_classes"] == 3
    assert sum(facts["context_shares"]) == pytest.approx(1)
    for heading in ("M", "Likeliest context", "Context 1", "Context 2", "Context 3"):
        assert f"<figcaption>{heading}</figcaption>" in page
    assert "Intensity by context class" in page
    assert 'alt="Contexts at step 0"' in page
    assert 'alt="Contexts at step 10"' not in page
    with np.load(tmp_path / "run" / "diagnosis.npz") as arrays:
        for plane in ("axial", "coronal", "sagittal"):
            q = arrays[f"{plane}/q"]
            assert len(q) == 3
            assert np.abs(q.sum(0, dtype=int) - 255).max() <= 2  # each rounded to a whole number


@pytest.mark.parametrize("cases", ["", "train", "test", "names"])
def test_a_run_on_all_cases_shows_its_figures(tmp_path: Path, data: Path, cases: str) -> None:
    """Without advice, of training cases, and of others that it never preprocessed."""
    finished(tmp_path / "run", data, "colab", "context_classes=3", fold=-1)
    run = Run.open(tmp_path / "run")
    tested = [case.name for case in run.dataset.test]
    asked = f"{run.split[0][0].name}, {tested[0]}" if cases == "names" else cases
    diagnosis = diagnose(tmp_path / "run", 2, cases=asked, axes="paper" if cases else "deployed")
    other = {"test": "test", "names": "chosen"}.get(cases, "training")
    facts = diagnosis.facts
    assert facts["advice"] is None
    assert facts["splits"] == list(dict.fromkeys(["training", other]))
    measured = [row["case"] for row in facts[other]["cases"]]
    expected = {"test": tested, "names": asked.split(", ")}
    assert measured == expected.get(cases, measured)
    words = {"": "", "train": "-training-paper", "test": "-test-paper", "names": "-chosen-paper"}
    assert diagnosis.page.name == f"diagnosis{words[cases]}.html"
    assert "No advice" in str(diagnosis)
    page = diagnosis.page.read_text(encoding="utf-8")
    for heading in ("M", "Likeliest context", "Context predicted by the network"):
        assert f"<figcaption>{heading}</figcaption>" in page
    assert ("The axes are the paper" in page) == bool(cases)
    assert "Intensity by context class" in page
    with np.load(diagnosis.page.with_suffix(".npz")) as arrays:
        predicted = arrays["axial/predicted"].astype(int)
    assert len(predicted) == 3
    assert np.abs(predicted.sum(0) - 255).max() <= 2


def test_the_paper_s_axes_are_the_largest_other_logit(tmp_path: Path, data: Path) -> None:
    """Counts of one case by hand, from the logits of all channels."""
    finished(tmp_path / "run", data, "colab", "context_classes=3", fold=-1)
    run = Run.open(tmp_path / "run")
    method, name = run.finished(), run.split[0][0].name
    (case,) = run.cached([run.split[0][0]])
    image = run.image(case)
    keywords = sliding_window_arguments(method, run.plan, run.settings.prediction)
    slabs = sliding_window(method.context_logits, image, run.plan.patch_vox, **keywords)
    z = torch.cat([part for _, _, part in slabs], 1).numpy()
    classes = len(run.plan.classes)
    others = np.concatenate([z[:1], z[classes:]]).max(0)
    called = z[1:classes].max(0) > others
    label = np.array(case.label)
    row = diagnose(tmp_path / "run", 1, cases=name, axes="paper").facts["chosen"]["cases"][0]
    assert row["fp_near"] + row["fp_far"] == int((called & (label == 0)).sum())
    assert (row["tp"], row["fn"]) == (
        int((called & (label > 0)).sum()),
        int((~called & (label > 0)).sum()),
    )


# --- contexts -------------------------------------------------------------------------------------


def test_contexts_of_colab_are_those_of_its_training() -> None:
    run = laws.prepared("colab", 3)
    method = laws.make("colab", context_classes=3, margin=2.0, tau=1.0).eval()
    assert isinstance(method, CoLab)
    case = run.cached([c for c in run.split[0] if c.label])[0]
    image = run.image(case)[:, :16, :16, :16]
    whole = run.image(case)
    maps = context_maps(run, method, case, whole)
    assert maps
    assert maps.q.shape == (3, *whole.shape[1:])
    assert np.abs(maps.q.sum(0) - 1).max() < 1e-5
    assert maps.q[:, 0, 0, 0] == pytest.approx(
        method.contexts_of(torch.from_numpy(image)[None])[0, :, 0, 0, 0], abs=1e-5
    )  # a corner lies in the first window alone
    vox = torch.from_numpy(distance_transform_edt(np.array(case.label) <= 0)).float()
    assert (
        np.abs(maps.near - nearness(vox, 2.0, 1.0).numpy()).max() < 2e-2
    )  # distances are kept as float16
    assert context_classes(method) == 3
    assert context_classes(laws.make("colab", context_classes=1)) == 1


def test_contexts_are_kept_as_they_are_learnt() -> None:
    method = laws.make("colab", context_classes=3, generator_every=1000)
    assert isinstance(method, CoLab)
    assert context_history(method) == {}
    first = laws.batch(0).image[:1].half().float()
    for step in range(3):
        with torch.no_grad():
            for parameter in method.generator.parameters():  # type: ignore[union-attr]
                parameter.add_(0.1 * step)
        batch = laws.batch(step)
        method.forward(batch)["seg"].backward()
        method.lookahead(batch, 1e-3, step, lambda values: None)
        if step < 2:
            q = method.contexts_of(first)[0]
            assert (method.snapshots[step].float() - q[:, q.shape[1] // 2]).abs().max() < 1e-3
    history = context_history(method)
    assert history["learnt/steps"].tolist() == [0, 1]
    assert np.abs(history["learnt/q"].sum(1, dtype=int) - 255).max() <= 2
    assert not np.array_equal(*history["learnt/q"])
    assert history["learnt/grey"].shape == history["learnt/q"].shape[2:]


def test_contexts_that_were_split_beforehand() -> None:
    run = laws.prepared("context", 3)
    method = METHODS["context"](run, context="kmeans", context_classes=2).eval()
    case = run.cached([c for c in run.split[0] if c.label])[0]
    maps = context_maps(run, method, case, run.image(case))
    assert maps
    assert maps.near is None
    kept = np.load(next(run.folder.glob(f"context-1/{case.record.name}.npy")))
    assert (maps.q[1] == (kept == len(run.plan.classes))).all()
    assert (maps.q.sum(0) == 1).all()
    dilated = METHODS["context"](run, context="dilated", margin=2.0, tau=1.0).eval()
    near = context_maps(run, dilated, case, run.image(case))
    assert near
    vox = torch.from_numpy(distance_transform_edt(np.array(case.label) <= 0)).float()
    assert np.abs(near.q[1] - nearness(vox, 2.0, 1.0).numpy()).max() < 2e-2
    assert np.abs(near.q[0] + near.q[1] - 1).max() < 1e-6
    plain = METHODS["context"](run, context="none")
    assert context_maps(run, plain, case, run.image(case)) is None


def test_intensities_count_the_weights() -> None:
    x = np.linspace(0, 1, 201, dtype=np.float32)
    arrays = intensities(
        [
            (x[:100], np.ones((2, 100)) * [[0.25], [0.75]]),
            (x[100:], np.ones((2, 101)) * [[0.5], [0]]),
        ]
    )
    edges, (first, second) = arrays["intensity/edges"], arrays["intensity/counts"]
    assert (edges[0], edges[-1]) == (pytest.approx(0.005), pytest.approx(0.995))
    # the percentiles leave out the two smallest and the two largest but those on the edge: 99 and
    # 100 are left
    assert (first.sum(), second.sum()) == (
        pytest.approx(0.25 * 99 + 0.5 * 100),
        pytest.approx(0.75 * 99),
    )


def test_samples_are_background_of_the_body_weighted_by_m() -> None:
    label, image = np.array([[[0, 1, 0, IGNORE]]]), np.array([[[[10.0, 20, 30, 40]]]])
    places = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])  # of the body
    q, near = (
        np.array([[0.2, 0.5, 0.6, 0.5], [0.8, 0.5, 0.4, 0.5]]).reshape(2, 1, 1, 4),
        np.array([[[1.0, 1, 0.5, 0]]]),
    )
    case: Any = SimpleNamespace(voxels=lambda which: {"body": places}[which])
    for m, expected in ((near, [[0.2, 0.3], [0.8, 0.2]]), (None, [[0.2, 0.6], [0.8, 0.4]])):
        x, weights = sample(MeasuredCase(case, label > 0, ContextMaps(q, m)), image, label)
        assert x.tolist() == [10, 30]
        assert weights == pytest.approx(np.array(expected))
    assert sample(MeasuredCase(case, label > 0, None), image, label)[1].shape == (0, 2)


# --- pictures -------------------------------------------------------------------------------------


def stored(orientation: str) -> tuple[Any, MeasuredCase, np.ndarray, np.ndarray]:
    """A patient whose ROI is a corner at the right, front and head, as an axis order stores it; a
    false positive.
    """
    affine = np.diag([3.0, 2.0, 1.0, 1.0])[[2, 1, 0, 3]]
    label, image, wrong = np.zeros((6, 8, 10), int), np.zeros((6, 8, 10)), np.zeros((6, 8, 10), int)
    label[5, 7, 9] = 1
    image[5, 7, 9] = 1
    wrong[5, 7, 5] = wrong[5, 0, 9] = 1  # at 4 mm and at 14 mm
    turned = [Volume(array, affine).oriented(orientation) for array in (label, image, wrong)]
    label, image, wrong = (volume.array for volume in turned)
    run = SimpleNamespace(
        plan=SimpleNamespace(orientation=orientation, spacing_mm=turned[0].spacing_mm)
    )
    called = (wrong + label) > 0
    q = np.stack([1.0 - image, image]).astype(np.float32)
    case: Any = SimpleNamespace(record=SimpleNamespace(name="x"))
    return (
        run,
        MeasuredCase(case, called, ContextMaps(q, np.ones(label.shape, np.float32))),
        image[None],
        label,
    )


@pytest.mark.parametrize("orientation", ["SAR", "LPI", "ARS"])
def test_sections_are_upright_whatever_the_order_of_axes(orientation: str) -> None:
    facts, arrays = sections(*stored(orientation))
    assert facts == {
        "case": "x",
        "pixel_mm": {"axial": (2, 1), "coronal": (3, 1), "sagittal": (3, 2)},
    }
    axial = np.zeros((8, 10), int)  # from front to back, from the patient's right to the left
    axial[0, 0] = 1
    assert (arrays["axial/label"] == axial).all()
    assert (arrays["axial/q"][1] == 255 * axial).all()
    assert (arrays["axial/near"] == 255).all()
    assert np.argwhere(arrays["axial/false"] == 1).tolist() == [[0, 4]]
    assert np.argwhere(arrays["axial/false"] == 2).tolist() == [[7, 0]]
    assert np.argwhere(arrays["axial/called"]).tolist() == [[0, 0], [0, 4], [7, 0]]
    assert np.argwhere(arrays["coronal/called"]).tolist() == [[0, 0], [0, 4]]  # from head to feet
    assert np.argwhere(arrays["sagittal/called"]).tolist() == [[0, 0], [0, 7]]  # from front to back


def test_planes_go_through_the_worst_slice_of_the_roi() -> None:
    roi, false = np.zeros((4, 5, 5), bool), np.zeros((4, 5, 5), bool)
    false[0, :4] = True  # the most false positives, but no ROI
    assert _centre(roi, roi) == (2, 2, 2)
    assert _centre(roi, false) == (0, 1, 2)  # the middle of rows 0 to 3 is 1.5: the first of two
    roi[1, 1:4, 1:4] = roi[2, 3, 4] = roi[3, :2, 0] = True
    false[2, 0, 0] = True
    assert _centre(roi, false) == (2, 3, 4)
    false[2] = False
    assert _centre(roi, false) == (1, 2, 2)  # of equals the largest


def test_contours_lie_in_millimetres() -> None:
    """A mask of 1 x 1 voxels of 2 x 1 mm (y, x) in a slice of 16 x 10 mm, which is in the middle of
    16 x 16 mm.
    """
    facts, arrays = sections(*stored("SAR"))
    (axial, *_) = panels({"picture": facts}, arrays)["M"]
    assert 'viewBox="0 0 16.00 16.00"' in axial
    assert 'x="3.00" y="0.00" width="10.00" height="16.00"' in axial
    (path,) = re.findall(r'<path class="reference" d="M([^Z]*)Z"', axial)
    points = np.array([[float(v) for v in point.split(",")] for point in path.split("L")])
    assert (points.min(0).tolist(), points.max(0).tolist()) == ([3, 0], [4, 2])


def test_panels_colour_the_background_and_draw_the_errors() -> None:
    facts, arrays = sections(*stored("SAR"))
    layers = panels({"picture": facts}, arrays)
    assert list(layers) == ["Prediction", "M", "Likeliest context", "Context 2"]
    assert [len(planes) for planes in layers.values()] == [3, 3, 3, 3]
    kinds = {
        name: set(re.findall(r'<path class="(\w+)"', planes[0])) - {"ruler"}
        for name, planes in layers.items()
    }
    assert kinds["Prediction"] == {"reference", "prediction", "false", "far"}
    assert kinds["M"] == kinds["Likeliest context"] == kinds["Context 2"] == {"reference"}
    run, measured, image, label = stored("SAR")
    for contexts, headings in (
        (None, ["Prediction"]),
        (
            ContextMaps(np.ones((7, *label.shape), np.float32), None),
            ["Prediction", "Likeliest context"],
        ),  # too many
    ):
        facts, arrays = sections(run, measured._replace(contexts=contexts), image, label)
        assert list(panels({"picture": facts}, arrays)) == headings


def test_tints_leave_the_roi_grey() -> None:
    from contextseg.reports.contexts import _layers

    part = {
        "grey": np.full((1, 3), 100, np.uint8),
        "label": np.array([[1, 0, 0]], np.uint8),
        "q": np.array([[[255, 200, 10]], [[0, 55, 245]]], np.uint8),
    }
    layer = _layers(part)["Likeliest context"]
    assert layer[0, 0].tolist() == [100, 100, 100]
    for column, colour in ((1, CONTEXTS[0]), (2, CONTEXTS[1])):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(layer[0, column] - [(1 - TINT) * 100 + TINT * c for c in rgb]).max() <= 0.5


def test_a_chart_has_few_bins_that_part_at_zero() -> None:
    assert _edges(np.array([-3, 2])).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    edges = _edges(np.array([-1000, 777]))
    assert 0 in edges
    assert edges[0] <= -1000
    assert edges[-1] > 777
    assert len(edges) <= 82
    assert _edges(np.zeros(0, int)).tolist() == [-1, 0, 1]
