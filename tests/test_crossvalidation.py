"""Several folds on one cache, the best ensemble, and largest parts chosen by validation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import contextseg as cs
from contextseg import cli
from contextseg.data import phantom
from contextseg.disk import read_json, visible_files
from contextseg.evaluation import Pair
from contextseg.evaluation.largest import (
    FEWEST_CASES,
    chosen_largest,
    compare_largest,
    save_largest,
)
from contextseg.models import open_archive, open_runs
from contextseg.models.network import network_description
from contextseg.runs import Run
from contextseg.volume import Volume, write
from systems import LINKS

TINY = {
    "steps": 6,
    "base_width": 4,
    "max_levels": 2,
    "batch_size": 2,
    "patch_vox": (16, 16, 16),
    "device": "cpu",
    "lr": 0.02,
    "prediction.mirror": False,
}
FLAT = TINY | {"dims": 2, "patch_vox": (16, 16)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("folds") / "data", labelled=6, test=1)


@pytest.fixture(scope="module")
def solid(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a 3-D training."""
    folder = tmp_path_factory.mktemp("folds") / "solid"
    cs.run(data, folder, folds=[0, 1], verbose=False, **TINY)
    return folder


@pytest.fixture(scope="module")
def flat(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folds of a 2-D training."""
    folder = tmp_path_factory.mktemp("folds") / "flat"
    with pytest.MonkeyPatch.context() as without_pages:
        draw_nothing(without_pages)
        cs.run(data, folder, folds="0,1", verbose=False, **FLAT)
    return folder


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without pages and pictures, which take most of their time."""
    monkeypatch.setattr("contextseg.pipeline.report", lambda *_: None)
    monkeypatch.setattr("contextseg.crossvalidation._draw", lambda *_: None)


# --- several folds --------------------------------------------------------------------------------


def test_folds_are_runs_on_one_cache_and_are_pooled(data: Path, solid: Path) -> None:
    assert not (solid / "fold0" / "cache").is_symlink()
    if LINKS:
        assert (solid / "fold1" / "cache").resolve() == (solid / "fold0" / "cache").resolve()
    pooled = pd.read_csv(solid / "cross-validation" / "metrics.csv", dtype={"case": str})
    own = [
        pd.read_csv(solid / name / "evaluate" / "metrics.csv", dtype={"case": str})
        for name in ("fold0", "fold1")
    ]
    assert list(pooled["case"]) == [*own[0]["case"], *own[1]["case"]]
    assert list(pooled["fold"]) == [0] * len(own[0]) + [1] * len(own[1])
    assert pooled["dsc"].mean() == pytest.approx(pd.concat(own)["dsc"].mean())
    for number, table in enumerate(own):
        run = Run.open(solid / f"fold{number}")
        assert set(table["case"]) == {case.name for case in run.split[1]}
    page = (solid / "report.html").read_text(encoding="utf-8")
    assert all(case in page for case in pooled["case"])
    test = pd.read_csv(solid / "evaluate" / "metrics.csv")
    assert list(test["case"]) == [case.name for case in cs.open_dataset(data).test]


def test_a_second_call_does_nothing_and_more_folds_are_added(
    data: Path,
    solid: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw_nothing(monkeypatch)
    folder = tmp_path / "copy"
    shutil.copytree(solid, folder, symlinks=True)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    outcome = cs.run(data, folder, folds=[0, 1], verbose=False, **TINY)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    assert outcome.table == folder / "cross-validation" / "metrics.csv"
    assert outcome.predictions == folder / "predict"

    cs.run(data, folder, folds=[2], verbose=False, **TINY)
    assert "done again" in capsys.readouterr().err
    pooled = pd.read_csv(outcome.table)
    assert sorted(set(pooled["fold"])) == [0, 1, 2]
    assert len(read_json(folder / "ensemble.json")["runs"]) == 3
    assert len(cs.load(folder).members) == 3


def test_the_folder_predicts_as_the_ensemble_of_its_folds(
    data: Path, solid: Path, tmp_path: Path
) -> None:
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    together = cs.load(solid).predict(scan).label.array
    assert np.array_equal(
        cs.load(solid / "fold0", solid / "fold1").predict(scan).label.array, together
    )
    own = next((solid / "predict").glob("*.nii.gz"))
    assert np.array_equal(cs.read_labels(own).array, together)
    archive = cs.export(solid, tmp_path / "model.zip")
    assert len(open_archive(archive, "cpu").members) == 2
    assert np.array_equal(cs.load(archive).predict(scan).label.array, together)
    moved = tmp_path / "elsewhere"
    shutil.copytree(solid, moved, symlinks=True)
    assert [run.folder for run in open_runs([moved])] == [moved / "fold0", moved / "fold1"]


def test_folders_of_several_and_of_single_runs_are_not_mixed(
    data: Path, solid: Path, tmp_path: Path
) -> None:
    with pytest.raises(cs.ContextsegError, match=r"several runs .*give the same --folds"):
        cs.run(data, solid, fold=0, verbose=False, **TINY)
    with pytest.raises(cs.ContextsegError, match=r"give the folder of one run, such as .*fold0"):
        Run.open(solid)
    with pytest.raises(cs.ContextsegError, match="give one of the two"):
        cs.run(data, tmp_path, fold=0, folds=[0, 1], verbose=False)
    for wrong in ("7", "0,1,5", "a", "all"):
        with pytest.raises(cs.ContextsegError):
            cs.run(data, tmp_path / "none", folds=wrong, verbose=False, **TINY)
    assert not (tmp_path / "none").exists()
    (tmp_path / "single").mkdir()
    shutil.copy(solid / "fold0" / "run.json", tmp_path / "single")
    with pytest.raises(cs.ContextsegError, match="holds a single run"):
        cs.run(data, tmp_path / "single", folds=[0, 1], verbose=False, **TINY)
    broken = tmp_path / "broken"
    shutil.copytree(solid, broken, symlinks=True)
    shutil.rmtree(broken / "fold1")
    with pytest.raises(cs.ContextsegError, match="fold1 is not there"):
        cs.load(broken)


@pytest.mark.slow
def test_two_processes_do_folds_of_one_folder(data: Path, tmp_path: Path) -> None:
    """At the same time, from nothing: no fold is done twice, and the last one pools all."""
    words = ["run", data, "-o", tmp_path / "out"]
    for name, value in (TINY | {"patch_vox": "16,16,16"}).items():
        words += ["--set", f"{name}={str(value).lower()}"]
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "contextseg", *map(str, words), "--folds", folds],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for folds in ("0", "1,2")
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    pooled = pd.read_csv(tmp_path / "out" / "cross-validation" / "metrics.csv")
    assert sorted(set(pooled["fold"])) == [0, 1, 2]
    assert len(cs.load(tmp_path / "out").members) == 3
    assert not [p for p in (tmp_path / "out").rglob(".*") if not p.is_symlink()]


# --- the best ensemble ----------------------------------------------------------------------------


def test_the_best_combination_is_chosen_and_predicts(
    data: Path, solid: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = cs.ensemble([solid, flat], tmp_path / "best", verbose=False)
    table = best.table.set_index("candidate")
    assert list(table.index) == ["solid", "flat", "solid + flat"]
    assert best.chosen == table["dice"].idxmax()
    assert list(table.index[table["chosen"] == "yes"]) == [best.chosen]
    for folder in (solid, flat):  # as the folds themselves were scored
        own = read_json(folder / "cross-validation" / "summary.json")["foreground_mean"]["Dice"]
        assert table.loc[folder.name, "dice"] == pytest.approx(own)
    names = best.chosen.split(" + ")
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    predictor = cs.load(tmp_path / "best")
    assert len(predictor.members) == 2 * len(names)
    label = predictor.predict(scan).label.array
    folders = [{"solid": solid, "flat": flat}[name] for name in names]
    assert np.array_equal(cs.load(*folders).predict(scan).label.array, label)

    monkeypatch.setattr("contextseg.crossvalidation.open_predictor", None)  # nothing is left to do
    again = cs.ensemble([solid, flat], tmp_path / "best", verbose=False)
    assert again.chosen == best.chosen


def test_no_member_of_a_candidate_has_seen_the_case(
    solid: Path, flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextseg import crossvalidation

    opened: list[list[Path]] = []
    segmented: list[list[str]] = []
    open_predictor, predict_cases = crossvalidation.open_predictor, cs.Predictor.predict_cases

    def opening(folders: list[Path], device: str = "") -> cs.Predictor:
        opened.append(list(folders))
        return open_predictor(folders, device)

    def segmenting(self: cs.Predictor, cases: list, *rest: object) -> dict[str, str]:
        segmented.append([case.name for case in cases])
        return predict_cases(self, cases, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(crossvalidation, "open_predictor", opening)
    monkeypatch.setattr(cs.Predictor, "predict_cases", segmenting)
    cs.ensemble([solid, flat], tmp_path / "best", verbose=False)
    assert len(opened) == len(segmented) == 6  # three candidates, two folds
    for folders, names in zip(opened, segmented):
        assert names
        for folder in folders:
            assert not set(names) & {case.name for case in Run.open(folder).split[0]}


def test_models_that_cannot_be_compared(
    data: Path, solid: Path, flat: Path, tmp_path: Path
) -> None:
    with pytest.raises(cs.ContextsegError, match="nothing to choose from"):
        cs.ensemble([solid], tmp_path / "best")
    with pytest.raises(cs.ContextsegError, match="other cases"):
        cs.ensemble([solid, flat / "fold0"], tmp_path / "best")
    everything = cs.train(data, tmp_path / "all", fold="all", verbose=False, **TINY).folder
    with pytest.raises(cs.ContextsegError, match=r"validated on none.*--folds 0,1,2,3,4"):
        cs.ensemble([solid, everything], tmp_path / "best")
    assert not (tmp_path / "best").exists()


def test_the_command(
    solid: Path, flat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["ensemble", solid / "fold0", flat / "fold0", "-o", tmp_path / "best"]
    cli.app([str(word) for word in words], standalone_mode=False)
    captured = capsys.readouterr()
    assert "solid-fold0 + flat-fold0" in captured.out
    assert f"contextseg predict {tmp_path / 'best'}" in captured.err


# --- the largest part -----------------------------------------------------------------------------


def pairs(folder: Path, parts: list[tuple[int, int]], truth: int = 8) -> list[Pair]:
    """Cases of a class in a bar of 24 voxels: one part of `a` voxels on the truth, and one of `b`
    beside it.
    """
    made = []
    for i, (a, b) in enumerate(parts):
        reference, predicted = np.zeros((2, 1, 1, 24), np.uint8)
        reference[..., :truth] = 1
        predicted[..., :a] = 1
        predicted[..., 12 : 12 + b] = 1
        paths = [folder / kind / f"{i}.nii.gz" for kind in ("predicted", "reference")]
        for path, array in zip(paths, (predicted, reference)):
            write(path, Volume(array, np.eye(4)))
        made.append(Pair(str(i), *paths))
    return made


def test_the_largest_part_is_chosen_where_validation_says_so(tmp_path: Path) -> None:
    cases = [(8, 2)] * 4 + [(6, 0)]
    [row] = compare_largest(pairs(tmp_path, cases), {"a": 1})
    assert row["dice"] == pytest.approx((4 * 16 / 18 + 12 / 14) / 5)
    assert row["dice_largest"] == pytest.approx((4 * 1 + 12 / 14) / 5)
    assert (row["cases"], row["better"], row["worse"], row["chosen"]) == (5, 4, 0, True)
    assert save_largest([row], tmp_path) == ("a",) == chosen_largest(tmp_path)
    assert chosen_largest(tmp_path / "nowhere") == ()


@pytest.mark.parametrize(
    ("cases", "why"),
    [
        ([(8, 2)] * (FEWEST_CASES - 1), "too few cases"),
        ([(8, 0)] * 6, "nothing changes"),
        ([(3, 9)] * 6, "the larger part is the wrong one"),
        ([(8, 8)] + [(7, 0)] * 2 + [(2, 3)] * 3, "one case gains more than three lose"),
    ],
)
def test_the_largest_part_is_not_chosen(
    cases: list[tuple[int, int]], why: str, tmp_path: Path
) -> None:
    [row] = compare_largest(pairs(tmp_path, cases), {"a": 1})
    assert not row["chosen"], why
    assert save_largest([row], tmp_path) == ()


def test_a_class_that_nobody_annotated_counts_in_no_case(tmp_path: Path) -> None:
    unknown = [Pair(p.case, p.prediction, p.reference, (), ()) for p in pairs(tmp_path, [(8, 2)])]
    [row] = compare_largest(unknown, {"a": 1})
    assert (row["cases"], row["chosen"]) == (0, False)
    assert compare_largest([], {}) == []


def choose(folder: Path) -> None:
    """As if the validation of a cross-validation had chosen the class."""
    content = read_json(folder / "ensemble.json")
    text = json.dumps(content | {"largest_of": ["bright"]})
    (folder / "ensemble.json").write_text(text, encoding="utf-8")


def test_what_was_chosen_is_applied_travels_and_can_be_left_out(
    data: Path, solid: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(solid, folder, symlinks=True)
    choose(folder)
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    plain = cs.load(solid).predict(scan)
    by_hand = cs.load(solid, largest_of="bright").predict(scan)
    assert by_hand.removed is not None
    archive = cs.export(folder, tmp_path / "model.zip")
    for model in (folder, archive):
        predictor = cs.load(model)
        assert predictor.largest_of == ("bright",)
        label = predictor.predict(scan)
        assert np.array_equal(label.label.array, by_hand.label.array)
        assert predictor.made_by() == cs.load(solid, largest_of="bright").made_by()
        off = cs.load(model, largest_by_validation=False)
        assert off.largest_of == ()
        assert np.array_equal(off.predict(scan).label.array, plain.label.array)
        assert off.made_by() == cs.load(solid).made_by()
    described = network_description(cs.load(folder, device="cpu"), predictor.plan.channels)
    assert described["largest_of"] == [predictor.classes["bright"]]
    # With a model whose validation did not choose it, it is not done.
    assert cs.load(folder, solid / "fold0").largest_of == ()


def test_a_run_chooses_on_its_validation_cases_and_never_on_test_cases(
    data: Path, solid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    assert (solid / "fold0" / "evaluate" / "largest_components.csv").exists()
    assert (solid / "cross-validation" / "largest_components.csv").exists()
    assert not (solid / "evaluate" / "largest_components.csv").exists()
    cs.run(data, tmp_path / "tested", fold=0, verbose=False, **TINY)
    assert not visible_files(tmp_path / "tested", "*/largest_components.csv")
    rows = "class,cases,dice,dice_largest,better,worse,chosen\nbright,9,0.5,0.6,5,0,yes\n"
    folder = tmp_path / "copy"
    shutil.copytree(solid / "fold0", folder)
    (folder / "evaluate" / "largest_components.csv").write_text(rows, encoding="utf-8")
    assert cs.load(folder).largest_of == ("bright",)
    assert Run.open(folder).predictor().largest_of == ("bright",)
