"""The simulated annotator: what it labels, what it scores, and how a study goes on."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from contextseg.batch import IGNORE
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.errors import ContextsegError
from contextseg.pipeline import train_run
from contextseg.propagation import Filled, LabelledSlices, fill, suggest_slice
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.studies.simulate import study as annotator_study
from contextseg.studies.simulate.annotator import (
    Evaluation,
    Ranges,
    annotate_structure,
    evaluate_slices,
    start_largest,
    start_suggested,
    start_uniform,
)
from contextseg.studies.simulate.network import train_and_fill
from contextseg.studies.simulate.plot import curves_chart
from contextseg.studies.simulate.study import Study, study_cases
from contextseg.studies.simulate.summary import CURVE_COLUMNS, means, slices_needed, summary
from contextseg.volume import Volume, write

torch.set_num_threads(1)
SPACING = np.diag([2.0, 1, 1, 1])


def cone(axis: int = 0) -> Volume:
    """Slices 2 to 7 of ten hold squares of side 2 to 7: areas 4, 9, 16, 25, 36, 49."""
    array = np.zeros((10, 9, 9), np.int16)
    for i in range(2, 8):
        array[i, 1 : 1 + i, 1 : 1 + i] = 1
    return Volume(np.ascontiguousarray(np.moveaxis(array, 0, axis)), SPACING)


def nothing(given: LabelledSlices, ranges: Ranges | None = None, n: int = 10) -> Filled:
    """A way that fills nothing: what is not labelled is background."""
    shape = next(iter(given.slices.values())).shape
    slices = np.stack(
        [np.maximum(given.slices.get(i, np.zeros(shape, np.int16)), 0) for i in range(n)]
    )
    label = Volume(np.moveaxis(slices, 0, given.axis), SPACING)
    return Filled(label, np.full(n, np.nan, np.float32), given)


# --- which slices ---------------------------------------------------------------------------------


def test_starts_lie_in_the_structure() -> None:
    truth = cone().array
    assert start_uniform(truth, 1) == [5]
    assert start_uniform(truth, 3) == [
        2,
        4,
        7,
    ]  # of places 0, 2.5 and 5 of the six; halves are rounded to even
    assert start_largest(truth, 1) == [7]
    assert start_largest(truth, 2) == [4, 7]  # the largest of 2 to 4, and of 5 to 7
    assert start_uniform(truth, 20) == start_largest(truth, 20) == [2, 3, 4, 5, 6, 7]
    gap = truth.copy()
    gap[4] = IGNORE  # nobody can label a slice that nobody knows
    assert 4 not in start_uniform(gap, 3) + start_largest(gap, 3)


def test_the_suggested_start_is_the_largest_slice_and_then_our_advice() -> None:
    truth = cone()
    asked = []

    def evaluate(labelled: frozenset[int]) -> Evaluation:
        asked.append(labelled)
        return evaluate_slices(truth, 0, nothing, 2.0, labelled)

    given = LabelledSlices(0, {7: truth.array[7]})
    second = suggest_slice(nothing(given))[0]
    assert start_suggested(truth.array, 2, evaluate) == sorted({7, second})
    assert asked == [{7}]
    assert start_suggested(truth.array, 99, evaluate) == list(range(10))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_worst_slice_is_the_one_that_an_oracle_finds(axis: int) -> None:
    truth = cone(axis)
    slices = np.moveaxis(truth.array, axis, 0)
    rows = annotate_structure(
        truth, axis, lambda p, _: fill(truth, p, way="nearest"), first=1, rules=["worst"], rounds=4
    )
    labelled = {5}
    for before, row in pairwise(rows):
        filled = fill(
            truth, LabelledSlices(axis, {i: slices[i] for i in sorted(labelled)}), way="nearest"
        ).label.array
        label_slices = np.moveaxis(filled, axis, 0)
        dice = {}
        for i in set(range(10)) - labelled:
            size = int(slices[i].sum() + label_slices[i].sum())
            if (slices[i] != label_slices[i]).any():
                dice[i] = 2 * int((slices[i] & label_slices[i]).sum()) / size
        assert dice[row["slice"]] == min(dice.values())
        both = 2 * int((truth.array & filled).sum())
        assert before["dsc"] == pytest.approx(both / int(truth.array.sum() + filled.sum()))
        labelled.add(row["slice"])
        assert row["slices"] == len(labelled)


def test_both_labelled_ends_limit_the_filling() -> None:
    ranges_of: dict[frozenset[int], set[str]] = {}

    def way(given: LabelledSlices, ranges: Ranges) -> Filled:
        ranges_of.setdefault(frozenset(given.slices), set()).add(str(dict(ranges)))
        return nothing(given)

    annotate_structure(cone(), 0, way, starts=["uniform", "largest"], first=2, rounds=0)
    assert ranges_of == {frozenset({2, 7}): {"{1: (2, 7)}"}, frozenset({4, 7}): {"{}"}}
    ranges_of.clear()
    annotate_structure(cone(), 0, way, starts=["uniform"], first=1, rounds=0)
    assert ranges_of == {frozenset({5}): {"{}"}}


# --- what is scored -------------------------------------------------------------------------------


def test_labelled_slices_count_in_the_whole_and_not_in_the_rest() -> None:
    rows = annotate_structure(cone(), 0, nothing, first=1, rules=["worst"], rounds=9)
    # slice 5 (25 of 139 pixels), then the rest of equal Dice 0, most pixels first: 49, 36, 16, 9, 4
    right = np.cumsum([25, 49, 36, 16, 9, 4])
    assert [row["dsc"] for row in rows[:6]] == pytest.approx(2 * right / (right + 139))
    assert [row["slice"] for row in rows[1:6]] == [7, 6, 4, 3, 2]
    assert [row["dsc_rest"] for row in rows[:5]] == [0] * 5
    assert math.isnan(rows[5]["dsc_rest"])
    assert [(row["dsc"], row["nsd"], row["slices"]) for row in rows[5:]] == [
        (1, 1, 6)
    ] * 5  # nothing left to correct


def test_somebody_who_finds_nothing_wrong_stops_and_advice_does_not() -> None:
    truth = cone()

    def right(given: LabelledSlices, ranges: Ranges) -> Filled:
        return Filled(truth, np.linspace(0.1, 1, 10).astype(np.float32), given)

    rows = pd.DataFrame(annotate_structure(truth, 0, right, first=2, rounds=9))
    worst, ours = rows[rows["rule"] == "worst"], rows[rows["rule"] == "advice"]
    assert worst["slices"].tolist() == [2] * 10
    assert ours["slices"].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10]
    assert ours["slice"].tolist()[1:4] == [
        4,
        5,
        3,
    ]  # the middle of 3 to 6, of 5 and 6; then 3 is less certain than 6
    assert (rows["dsc"] == 1).all()


def test_the_most_wrong_slice_need_not_be_the_worst() -> None:
    def way(given: LabelledSlices, ranges: Ranges) -> Filled:
        label = cone().array.copy()
        label[2] = 0  # 4 pixels missed, Dice 0
        label[7, 1:3, 1:8] = 0  # 14 of 49 missed, Dice 0.83
        return Filled(Volume(label, SPACING), np.full(10, np.nan, np.float32), given)

    evaluation = evaluate_slices(cone(), 0, way, 2.0, frozenset({5}))
    assert (evaluation.next_slice["worst"], evaluation.next_slice["errors"]) == (2, 7)
    assert evaluate_slices(cone(), 0, way, 2.0, frozenset({2, 5, 7})).next_slice["errors"] is None


def test_each_set_of_slices_is_filled_once() -> None:
    filled = []

    def way(given: LabelledSlices, ranges: Ranges) -> Filled:
        filled.append(tuple(given.slices))
        return nothing(given)

    annotate_structure(cone(), 0, way, starts=["uniform", "largest"], first=2, rounds=2)
    assert len(filled) == len(set(filled))


def test_what_nobody_knows_is_neither_scored_nor_labelled() -> None:
    truth = cone()
    array = truth.array.copy()
    array[[0, 3, 9]] = IGNORE
    array[6, 1:4] = IGNORE  # 18 of its 36 pixels
    unknown = truth.with_array(array)
    rows = pd.DataFrame(
        annotate_structure(unknown, 0, nothing, starts=["largest"], first=1, rounds=7)
    )
    assert rows["dsc"][0] == pytest.approx(2 * 49 / (49 + 4 + 16 + 25 + 18 + 49))
    assert not set(rows["slice"].dropna()) & {0, 3, 9}
    assert rows[rows["rule"] == "advice"]["slices"].max() == 7


def test_what_cannot_be_simulated_is_refused() -> None:
    truth = cone()
    with pytest.raises(ContextsegError, match="did you mean uniform"):
        annotate_structure(truth, 0, nothing, starts=["unifrom"])
    with pytest.raises(ContextsegError, match="choose from advice, errors, worst"):
        annotate_structure(truth, 0, nothing, rules=["oracle"])
    with pytest.raises(ContextsegError, match="too few"):
        annotate_structure(truth, 0, nothing, first=0)
    with pytest.raises(ContextsegError, match="nothing is named"):
        annotate_structure(truth, 0, nothing, starts=[])
    with pytest.raises(ContextsegError, match="not in this scan"):
        annotate_structure(truth.with_array(truth.array * 0), 0, nothing)


# --- the 2-D network ------------------------------------------------------------------------------


def test_a_network_learns_one_scan_from_its_labelled_slices() -> None:
    d, h, w = np.mgrid[:7, :20, :24] - np.array([3, 9, 12])[:, None, None, None]
    label = (4 * d**2 + h**2 + w**2 < 7**2).astype(np.int16)  # a ball of 7 slices
    image = np.random.default_rng(0).normal(100 * label, 20)
    scan, axis = Volume(np.moveaxis(image, 0, 1)[None], np.eye(4)), 1
    there = np.flatnonzero(label.any((1, 2)))
    drawn = {int(i): label[i].copy() for i in there[[0, len(there) // 2, -1]]}
    drawn[int(there[0])][:2] = IGNORE
    before = torch.get_rng_state()
    filled = train_and_fill(scan, LabelledSlices(axis, drawn), steps=25)
    assert torch.equal(torch.get_rng_state(), before)
    label_slices = np.moveaxis(filled.label.array, axis, 0)
    others = [i for i in there if i not in drawn]
    assert (
        2
        * (label_slices & label)[others].sum()
        / (label_slices[others].sum() + label[others].sum())
        > 0.8
    )
    for i, y in drawn.items():
        assert np.array_equal(label_slices[i][y >= 0], y[y >= 0])
    assert filled.confidence.shape == (7,)
    assert (filled.confidence[list(drawn)] == 1).all()
    assert ((filled.confidence >= 0) & (filled.confidence <= 1)).all()
    again = [
        train_and_fill(scan, LabelledSlices(axis, drawn), steps=3, seed=s).label.array
        for s in (1, 1)
    ]
    assert np.array_equal(*again)


def test_a_large_slice_is_learned_smaller_and_comes_back_in_its_size() -> None:
    scan = Volume(
        np.random.default_rng(0).normal(size=(2, 3, 210, 20)).astype(np.float32), np.eye(4)
    )
    drawn = np.zeros((210, 20), np.int16)
    drawn[50:100] = 5
    filled = train_and_fill(scan, LabelledSlices(0, {1: drawn}), steps=2)
    assert filled.label.shape == (3, 210, 20)
    assert np.array_equal(filled.label.array[1], drawn)
    assert set(np.unique(filled.label.array)) <= {0, 5}


# --- a study --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(
        tmp_path_factory.mktemp("annotator") / "data",
        labelled=2,
        test=2,
        shape=(14, 24, 24),
        classes=3,
    )


@pytest.fixture(scope="module")
def trained(data: Path) -> Run:
    words = ["steps=2", "patch_vox=16,24,24", "batch_size=1", "spacing_mm=2,1,1"]
    run = Run(data.parent / "run", Settings(str(data), "stcn", roi=("bright",)).set(words))
    train_run(run)
    return run


def test_the_command_makes_a_table_a_summary_and_curves(
    data: Path, trained: Run, tmp_path: Path
) -> None:
    words = [
        "simulate",
        str(data),
        "-o",
        str(tmp_path),
        "--model",
        str(trained.folder),
        "--cases",
        "1",
    ]
    words += ["--slices", "2", "--rounds", "0"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    table = pd.read_csv(tmp_path / "annotator.csv")
    assert len(table) == 2 * 4 * 2  # classes, ways, rules
    assert dict(zip(table["class"], table["trained"])) == {"bright": "yes", "dark": "no"}
    assert not table.drop(columns=["slice", "dsc_rest"]).isna().any(axis=None)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert text in done.output
    for name in ("curves-uniform-trained.svg", "curves-uniform-left-out.svg"):
        assert name in text
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("<?xml")


def test_a_finished_case_is_not_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(str(data), ways=("nearest",), rounds=1)
    first, failed = annotator_study.simulate_cases(study, tmp_path, at_most=1)
    assert failed == {}
    assert first["case"].nunique() == 1
    counted = []
    real = annotator_study.annotate_structure
    monkeypatch.setattr(
        annotator_study, "annotate_structure", lambda *a, **k: counted.append(a) or real(*a, **k)
    )
    calls: list[tuple[int, int]] = []
    both, _ = annotator_study.simulate_cases(
        study, tmp_path, progress=lambda done, of, _: calls.append((done, of))
    )
    assert len(counted) == 2  # the second case's two classes
    assert calls[-1] == (4, 4)
    pd.testing.assert_frame_equal(both[both["case"] == first["case"][0]], first)
    with pytest.raises(ContextsegError, match="first was 3 and is now 4"):
        annotator_study.simulate_cases(
            Study(str(data), ways=("nearest",), rounds=1, first=4), tmp_path
        )
    asked = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert asked["study"]["ways"] == ["nearest"]


def test_a_broken_case_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = phantom.write_dataset(tmp_path / "data", labelled=1, test=3)
    broken, empty, _ = sorted((folder / "labelsTs").iterdir())
    broken.write_bytes(b"no scan")
    write(
        empty,
        Volume(
            np.zeros((20, 24, 24), np.uint8),
            np.array([[0.0, 0, 1, -10], [0, 1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]]),
        ),
    )
    words = [
        "simulate",
        str(folder),
        "-o",
        str(tmp_path / "out"),
        "--rounds",
        "0",
        "--ways",
        "interpolation",
    ]
    with pytest.raises(ContextsegError, match=broken.name):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert pd.read_csv(tmp_path / "out" / "annotator.csv")["case"].nunique() == 1
    assert (
        len(list((tmp_path / "out" / "cases").iterdir())) == 2
    )  # the scan without the structure is done, too


def test_which_cases_are_annotated(data: Path, trained: Run, tmp_path: Path) -> None:
    whole = open_dataset(data)
    assert study_cases(whole, trained) == whole.test
    without = open_dataset(phantom.write_dataset(tmp_path / "data", labelled=2, test=0))
    assert study_cases(without, None) == without.train
    with pytest.raises(ContextsegError, match="that the model was not trained on"):
        study_cases(without, trained)  # trained on all cases: none was kept for validation
    with pytest.raises(ContextsegError, match="needs a network"):
        Study(str(data), ways=("propagation",))
    with pytest.raises(ContextsegError, match="no class of this name"):
        annotator_study.simulate_cases(Study(str(data), classes=("brigt",)), tmp_path / "out")
    assert Study("").filled_by == ("interpolation", "nearest")


def rows(case: str, dice: list[float], way: str = "nearest") -> list[dict[str, object]]:
    line = {
        "case": case,
        "class": "k",
        "trained": "no model",
        "way": way,
        "start": "uniform",
        "rule": "worst",
    }
    return [
        line | {"round": i, "slices": 3 + i, "dsc": d, "nsd": d / 2, "dsc_rest": math.nan}
        for i, d in enumerate(dice)
    ]


def test_means_and_needed_slices() -> None:
    table = pd.DataFrame(rows("a", [0.5, 0.9]) + rows("b", [0.7, 0.8]) + rows("c", [0.9, 1.0]))
    [start, end] = means(table, "dsc").to_dict("records")
    assert [start[name] for name in ("mean", "sd", "low", "high", "n")] == pytest.approx(
        [0.7, 0.2, 0.6, 0.8, 3]
    )
    assert end["mean"] == pytest.approx(0.9)
    [line] = slices_needed(table, 0.9).to_dict("records")
    assert (line["slices"], line["reached"], line["n"]) == (4, 2, 3)  # 4, never, 3
    assert slices_needed(table, 0.95)["slices"].tolist() == [math.inf]
    text = summary(table, Study("", rounds=1))
    assert "| nearest, worst | 0.700 ± 0.200 | 0.900 ± 0.100 | 4 (2 of 3) |" in text
    assert set(CURVE_COLUMNS) <= set(table)


def test_the_same_table_gives_the_same_curves() -> None:
    table = pd.DataFrame(rows("a", [0.5, 0.9]) + rows("b", [0.7, 0.8], "network"))
    assert curves_chart(table, 3, "title") == curves_chart(table, 3, "title")
