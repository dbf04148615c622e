"""Comparisons on small phantoms: the table, the locked test split, resuming, processes, results of
other tools, the forecast.

Runs in this process do not draw their pages, which take most of their time and have tests of their
own; those in other processes do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from contextseg.data import phantom
from contextseg.data.check import check
from contextseg.data.components import largest_component
from contextseg.data.layouts import folds, open_dataset
from contextseg.disk import lock_folder, read_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.folders import evaluate_folders
from contextseg.pipeline import run_pipeline
from contextseg.provenance import provenance
from contextseg.runs import Run
from contextseg.studies.compare import Comparison, compare, forecast
from contextseg.studies.compare.cell import logged_evaluations, weights_digest
from contextseg.studies.compare.comparison import _leaks
from contextseg.studies.compare.pools import run_on_cluster
from contextseg.volume import read_labels
from grids import METHODS, TINY, grid
from systems import LINKS

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _runs_without_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("contextseg.pipeline.report", lambda *_: None)
        yield


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the comparison is not drawn: this test does not read it."""
    monkeypatch.setattr("contextseg.reports.write_comparison", lambda *_, **__: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "phantoms", labelled=5, unlabelled=1
    )


@pytest.fixture(scope="module")
def tested(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods, two seeds, trained on all, tested."""
    return compare(grid(data, tmp_path_factory.mktemp("tested"), seeds=(0, 1)))


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One method on two folds with two budgets, the test split still locked."""
    folder = tmp_path_factory.mktemp("chosen")
    return compare(
        grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)), test=False
    )


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- the whole ------------------------------------------------------------------------------------


def test_the_table_and_its_means(tested: Comparison, data: Path) -> None:
    table = pd.read_csv(tested.table)
    assert len(table) == 2 * 2 * 2  # methods, seeds, test cases
    assert set(table["split"]) == {"test"}
    assert (table["patient"] == table["case"]).all()
    for run, rows in table.groupby("run"):
        own = pd.read_csv(tested.folder / "runs" / str(run) / "evaluate" / "metrics.csv")
        pd.testing.assert_series_equal(rows["dsc"].reset_index(drop=True), own["dsc"])
    means = pd.read_csv(tested.folder / "test.csv").set_index(["method", "class", "metric"])
    plain = table[table["method"] == "plain"]
    assert means.loc[("plain", "bright", "dsc"), "mean"] == pytest.approx(plain["dsc"].mean())
    seeds = plain.groupby("seed")["nsd"].mean()
    assert means.loc[("plain", "bright", "nsd"), "sd"] == pytest.approx(seeds.std())
    pairs = pd.read_csv(tested.folder / "test-pairs.csv")
    assert pairs[["a", "b", "n"]].drop_duplicates().values.tolist() == [["plain", "residual", 2]]
    assert (pairs["p"] >= 0.5).all()  # of two patients
    page = tested.pages["test"].read_text(encoding="utf-8")
    assert "phantom, test split: mean over 2 cases, then over 2 seeds (0, 1)" in page
    assert "Test split scored once for each of 4 runs (4 in this comparison so far" in page
    assert "**" not in page
    assert r"\toprule" in (tested.folder / "test.tex").read_text(encoding="utf-8")
    assert read_json(tested.folder / "comparison.json")["asked"]["methods"] == list(METHODS)


def test_runs_are_ordinary_runs_that_share_a_cache(tested: Comparison, data: Path) -> None:
    run = Run.open(tested.folder / "runs" / "plain-seed0")
    names = [stage["name"] for stage in run.stages()]
    assert names == [
        "check",
        "plan",
        "preprocess",
        "train-1",
        "predict",
        "evaluate",
        "report",
    ]
    if LINKS:  # without, each run has a cache of its own
        cached = [path for path in (tested.folder / "cache").iterdir() if path.is_dir()]
        assert len(cached) == 6  # and not 6 for each of the runs
        assert (run.folder / "cache").resolve() == (tested.folder / "cache").resolve()
    alone_again = Run(tested.folder.parent / "alone", run.settings)
    run_pipeline(alone_again)
    ours, theirs = (weights_digest(r.finished()) for r in (run, alone_again))
    assert ours == theirs
    assert logged_evaluations(tested.folder / "test_evaluations.jsonl")[0]["weights"] == ours


def test_what_is_done_is_not_done_again(tested: Comparison, data: Path) -> None:
    before = (
        files(tested.folder / "runs")
        | files(tested.folder / "cache")
        | files(tested.folder / "check")
    )
    log = (tested.folder / "test_evaluations.jsonl").read_text(encoding="utf-8")
    table = tested.table.read_text(encoding="utf-8")
    titles: list[str] = []

    @contextmanager
    def progress_bar(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
        titles.append(title)
        yield lambda *_: None

    compare(grid(data, tested.folder, seeds=(0, 1)), progress_bar=progress_bar)
    assert {path: before[path] for path in before} == {
        path: at for path, at in files(tested.folder).items() if path in before
    }
    assert (tested.folder / "test_evaluations.jsonl").read_text(encoding="utf-8") == log
    assert tested.table.read_text(encoding="utf-8") == table
    assert titles == []


@pytest.mark.usefixtures("_no_page")
def test_a_folder_of_version_0_1_0_is_finished_and_scored_as_it_is(
    tested: Comparison, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tested.folder, tmp_path / "old", symlinks=True)
    kinds = ("check", "plan", "preprocess", "train-1", "predict", "evaluate", "report")
    for run in (folder / "runs").iterdir():
        for place, kind in enumerate(kinds, 1):
            stage = run / f"{place:02d}-{kind.removesuffix('-1')}"
            (run / kind).rename(stage)
            costs = read_json(stage / "done.json")
            costs.pop("position", None)
            (stage / "done.json").write_text(json.dumps(costs), encoding="utf-8")
    before = files(folder / "runs")
    old = grid(data, folder, seeds=(0, 1))
    assert str(forecast(old)).splitlines()[-1] == "4 runs: 4 done"
    done = compare(old)
    assert files(folder / "runs") == before
    pd.testing.assert_frame_equal(
        done.cases.drop(columns="prediction_file"), tested.cases.drop(columns="prediction_file")
    )
    assert all(Path(path).exists() for path in done.cases["prediction_file"])
    # One that was stopped while it trained goes on in its old folders.
    for name in ("04-train/model.pt", "04-train/done.json", "06-evaluate/done.json"):
        (folder / "runs" / "plain-seed0" / name).unlink()
    assert str(forecast(old)).splitlines()[0].split()[:2] == ["plain-seed0", "begun"]
    assert compare(old).table.read_bytes() == done.table.read_bytes()
    assert not list((folder / "runs" / "plain-seed0").glob("train-*"))


def test_the_results_are_tables_in_python(tested: Comparison, chosen: Comparison) -> None:
    assert repr(tested) == f"Comparison({str(tested.folder)!r}, test)"
    assert repr(chosen) == f"Comparison({str(chosen.folder)!r}, validation)"
    assert tested.cases["split"].tolist() == ["test"] * 8
    means = tested.means.set_index(["split", "method", "class", "metric"])["mean"]
    plain = tested.cases.loc[tested.cases["method"] == "plain", "dsc"].mean()
    assert means["test", "plain", "bright", "dsc"] == pytest.approx(plain)
    assert tested.pairs["metric"].tolist() == ["dsc", "nsd", "hd95_mm"]
    assert set(chosen.means["budget"]) == {"2", "all"}
    assert len(chosen.pairs) == 0
    assert set(chosen.curves) == {"validation"}
    assert tested.curves == {}
    text = str(tested)
    assert tested.pages["test"].read_text(encoding="utf-8") in text
    assert text.endswith(f"report      {tested.report}")
    assert "<td>residual</td>" in tested._repr_html_()


def test_a_finished_comparison_called_again_is_the_same_to_the_byte(
    tested: Comparison, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record too, which has a date: as long as nothing is to be done, and nothing else is
    asked.
    """
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    compare(grid(data, folder, seeds=(0, 1)))  # its folder is another one

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    monkeypatch.setattr(
        "contextseg.studies.compare.comparison.provenance",
        lambda: {**provenance(), "date": "later"},
    )
    compare(grid(data, folder, seeds=(0, 1)))
    assert content() == before
    monkeypatch.setattr("contextseg.reports.write_comparison", lambda *_, **__: None)
    compare(grid(data, folder, seeds=(0,)))
    record = read_json(folder / "comparison.json")
    assert record["asked"]["seeds"] == [0]
    assert record["provenance"]["date"] == "later"
    other = {**provenance(), "date": "upgraded", "python": "4.0"}
    monkeypatch.setattr("contextseg.studies.compare.comparison.provenance", lambda: other)
    compare(grid(data, folder, seeds=(0,)))
    assert read_json(folder / "comparison.json")["provenance"]["python"] == "4.0"


def test_worst_cases_are_shown_wherever_the_folder_lies(
    tested: Comparison, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tested.folder, tmp_path / "moved", symlinks=True)
    done = compare(grid(data, folder, seeds=(0, 1)))
    files = pd.read_csv(done.table)["prediction_file"]
    assert all(Path(path).is_relative_to(folder) and Path(path).exists() for path in files)
    page = done.report.read_text(encoding="utf-8")
    assert page.count('class="planes side"') == 2 * 2  # methods, cases
    assert page.count("<svg viewBox") == 2 * 2 * 3
    assert "No picture" not in page
    assert "plain-seed" in page  # which of the two runs is seen


def test_budgets_and_folds_on_validation_leave_the_test_split_alone(
    chosen: Comparison, data: Path
) -> None:
    assert set(chosen.pages) == {"validation"}
    assert not (chosen.folder / "test_evaluations.jsonl").exists()
    table = pd.read_csv(chosen.table, dtype={"budget": str})
    assert set(table["split"]) == {"validation"}
    opened = open_dataset(data)
    held = {fold: {case.name for case in folds(opened, fold)[1]} for fold in (0, 1)}
    for (_, fold), rows in table.groupby(["budget", "fold"]):
        assert set(rows["case"]) == held[int(str(fold))]
    assert set(table["budget"]) == {"2", "all"}
    page = chosen.pages["validation"].read_text(encoding="utf-8")
    assert "| plain | 2 |" in page
    assert "| plain | all |" in page
    assert (
        "mean over 2 cases, then over 1 seed (0)" in page
    )  # the folds together are one repetition
    assert "budgets.json" in page
    kept = read_json(chosen.folder / "budgets.json")["labelled"]["fold 0"]["2"]
    few = Run.open(chosen.folder / "runs" / "plain-labels2-fold0-seed0")
    assert [case.name for case in few.split[0] if case.label] == sorted(kept)
    assert (few.folder / "train-1" / "model.pt").exists()


@pytest.mark.usefixtures("_no_page")
def test_the_test_split_is_opened_at_the_end(
    chosen: Comparison, data: Path, tmp_path: Path
) -> None:
    """The same grid with the test: nothing is trained again, each run is scored once on the test
    cases.
    """
    folder = shutil.copytree(chosen.folder, tmp_path / "chosen", symlinks=True)
    weights = {p: p.stat().st_mtime_ns for p in folder.rglob("model.pt")}
    done = compare(grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("model.pt")} == weights
    assert set(done.pages) == {"validation", "test"}
    table = pd.read_csv(done.table)
    assert (table["split"] == "test").sum() == 2 * 2 * 2
    assert "then over 1 seed (0) of each of 2 folds" in done.pages["test"].read_text(
        encoding="utf-8"
    )
    log = logged_evaluations(folder / "test_evaluations.jsonl")
    assert len({row["run"] for row in log}) == len(log) == 4
    assert all(row["cases"] == 2 for row in log)


@pytest.mark.usefixtures("_no_page")
def test_processes_give_what_one_process_gives(
    chosen: Comparison, data: Path, tmp_path: Path
) -> None:
    """And one that fails there does not stop the other."""
    both = grid(
        data, tmp_path, methods=("bad=supervised:lr=1e30", METHODS[0]), folds=(0,), budgets=(2,)
    )
    with pytest.raises(
        ContextsegError, match=r"1 of 2 runs failed; bad.*: .*the loss is not finite.*log\.txt"
    ):
        compare(both, jobs=2, test=False)
    assert (tmp_path / "runs" / "plain-labels2-fold0-seed0" / "report.html").exists()
    done = compare(replace(both, methods=METHODS[:1]), test=False)
    ours, theirs = (
        c.cases[(c.cases["budget"] == "2") & (c.cases["fold"] == "0")].drop(
            columns="prediction_file"
        )
        for c in (done, chosen)
    )
    assert len(ours) == 1
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))


@pytest.mark.usefixtures("_no_page")
def test_stopped_in_the_middle_it_goes_on(tested: Comparison, data: Path, tmp_path: Path) -> None:
    """Ctrl-C in the third step of the second run: the first is kept, the second goes on, all ends
    the same.
    """

    @contextmanager
    def progress_bar(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
        def progress(i: int, of: int, values: Any = None) -> None:
            if "residual" in title and "train" in title and i == 3:
                raise KeyboardInterrupt

        yield progress

    with pytest.raises(KeyboardInterrupt):
        compare(grid(data, tmp_path), progress_bar=progress_bar)
    first = files(tmp_path / "runs" / "plain-seed0")
    assert str(forecast(grid(data, tmp_path))).splitlines()[0].split() == ["plain-seed0", "done"]
    assert str(forecast(grid(data, tmp_path))).splitlines()[1].split()[:2] == [
        "residual-seed0",
        "begun",
    ]
    done = compare(grid(data, tmp_path))
    assert files(tmp_path / "runs" / "plain-seed0") == first
    columns = ["run", "case", "class", "dsc", "hd95_mm", "nsd"]
    whole = pd.read_csv(tested.table)
    pd.testing.assert_frame_equal(
        pd.read_csv(done.table)[columns],
        whole.loc[whole["seed"] == 0, columns].reset_index(drop=True),
    )


def test_one_that_fails_does_not_stop_the_others(data: Path, tmp_path: Path) -> None:
    bad = grid(data, tmp_path, methods=("bad=supervised:lr=1e30", "good=supervised"))
    with pytest.raises(
        ContextsegError, match=r"1 of 2 runs failed; bad-seed0: .*the loss is not finite"
    ):
        compare(bad)
    assert (tmp_path / "runs" / "good-seed0" / "report" / "done.json").exists()
    assert not (tmp_path / "table.csv").exists()
    log = logged_evaluations(tmp_path / "test_evaluations.jsonl")
    assert [row["run"] for row in log] == ["good-seed0"]


# --- the lock, and leaks --------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_page")
def test_other_weights_are_not_tested_under_the_same_name(
    tested: Comparison, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    with pytest.raises(ContextsegError, match=r"training\.lr was 0\.0 and is now 0\.02"):
        compare(grid(data, folder, settings=(*TINY, "lr=0.02")))
    shutil.rmtree(folder / "runs" / "plain-seed0")
    with pytest.raises(
        ContextsegError, match="plain-seed0 was evaluated on the test split with other weights"
    ):
        compare(grid(data, folder, settings=(*TINY, "lr=0.02"), methods=METHODS[:1]))
    assert not list((folder / "runs" / "plain-seed0").glob("predict"))
    shutil.rmtree(
        folder / "runs" / "plain-seed0"
    )  # the same weights, made again: nothing new is seen
    compare(grid(data, folder, methods=METHODS[:1]))
    assert len(logged_evaluations(folder / "test_evaluations.jsonl")) == 4


def test_the_same_scan_or_patient_on_both_sides_stops_everything(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=1)
    shutil.copy(
        data / "imagesTr" / "phantom_001_0000.nii.gz", data / "imagesTs" / "phantom_005_0000.nii.gz"
    )
    with pytest.raises(ContextsegError, match="the same voxels as phantom_001 in training"):
        compare(grid(data, tmp_path / "out"))
    assert not (tmp_path / "out" / "runs").exists()
    data = phantom.write_dataset(tmp_path / "other", labelled=5, test=1)
    (data / "patients.json").write_text(
        json.dumps({"phantom_001": "p", "phantom_005": "p"}), encoding="utf-8"
    )
    with pytest.raises(ContextsegError, match="patient p is in train"):
        compare(grid(data, tmp_path / "out2"))


def test_twins_are_a_leak_where_a_fold_parts_them(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=6, test=1)
    first, second = (min(case.name for case in side) for side in folds(open_dataset(data), 0))
    for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        shutil.copy(data / part.format(first), data / part.format(second))
    with pytest.raises(ContextsegError, match="the same voxels as"):
        compare(grid(data, tmp_path / "out", folds=(0,)))
    assert not (tmp_path / "out" / "runs").exists()
    findings = check(data)
    opened = open_dataset(data)
    assert [len(_leaks(findings, opened, numbers)) for numbers in ({0}, {-1}, {0, -1})] == [1, 0, 1]
    parted = [fold for fold in range(5) if first in {case.name for case in folds(opened, fold)[1]}]
    assert [bool(_leaks(findings, opened, {fold})) for fold in range(5)] == [
        fold in (0, *parted) for fold in range(5)
    ]
    (data / "patients.json").write_text(
        json.dumps({first: "p", second: "p"}), encoding="utf-8"
    )  # which keeps them together
    assert _leaks(findings, open_dataset(data), set(range(5))) == []


def test_a_leak_is_found_among_any_number_of_twins(tmp_path: Path) -> None:
    """Eight copies of a scan in the training part, of which fold 0 validates on the last few."""
    data = phantom.write_dataset(tmp_path / "data", labelled=8, test=0)
    names = [f"phantom_{i:03d}" for i in range(8)]
    for name in names[1:]:
        for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
            shutil.copy(data / part.format(names[0]), data / part.format(name))
    splits = [{"train": names[5:7], "val": names[7:]}, {"train": names[:1], "val": []}]
    (data / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")

    findings = check(data)
    assert [(f.kind, f.cases) for f in findings if f.kind == "twin"] == [("twin", tuple(names))]
    opened = open_dataset(data)
    assert [f.cases for f in _leaks(findings, opened, {0})] == [tuple(names)]
    assert _leaks(findings, opened, {1}) == []
    # The words of a finding decide nothing.
    reworded = [replace(finding, what="twins") for finding in findings]
    assert len(_leaks(reworded, opened, {0, 1})) == 1
    with pytest.raises(ContextsegError, match="the same voxels as phantom_000"):
        compare(grid(data, tmp_path / "out", folds=(0,)))


def test_findings_of_an_older_version_are_made_again(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0)
    for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        shutil.copy(data / part.format("phantom_000"), data / part.format("phantom_001"))
    splits = [{"train": ["phantom_000"], "val": ["phantom_001"]}]
    (data / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    twins = grid(data, tmp_path / "out", folds=(0,))
    path = tmp_path / "out" / "check" / "findings.json"
    with pytest.raises(ContextsegError, match="the same voxels as"):
        compare(twins)
    now = read_json(path)
    before = [{k: v for k, v in f.items() if k not in ("kind", "cases")} for f in now]
    path.write_text(json.dumps(before), encoding="utf-8")
    with pytest.raises(ContextsegError, match="the same voxels as"):
        compare(twins)
    assert read_json(path) == now


@pytest.mark.usefixtures("_no_page")
def test_the_data_are_checked_once_until_they_change(data: Path, tmp_path: Path) -> None:
    own = shutil.copytree(data, tmp_path / "data")
    small = grid(own, tmp_path / "out", methods=METHODS[:1])
    compare(small)
    done = tmp_path / "out" / "check" / "done.json"
    before = done.stat().st_mtime_ns
    compare(small)
    assert done.stat().st_mtime_ns == before
    scan = own / "imagesTr" / "phantom_001_0000.nii.gz"
    scan.write_bytes(scan.read_bytes()[:3000])
    with pytest.raises(ContextsegError, match=r"phantom_001_0000\.nii\.gz"):
        compare(small)


def test_nothing_to_score_on(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0)
    with pytest.raises(ContextsegError, match="nothing to score plain-seed0 on"):
        compare(grid(data, tmp_path / "out"))


# --- others' work ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_page")
def test_others_join_as_rows(tested: Comparison, data: Path, tmp_path: Path) -> None:
    """Our own predictions under another name have our own numbers; another prediction under that
    name is refused.
    """
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    theirs = shutil.copytree(folder / "runs" / "plain-seed0" / "predict", tmp_path / "theirs")
    summary = folder / "runs" / "residual-seed1" / "evaluate" / "summary.json"
    done = compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs, "paper": summary})
    table = pd.read_csv(done.table).set_index(["run", "case"])
    columns = ["class", "dsc", "hd95_mm", "nsd", "tp"]
    pd.testing.assert_frame_equal(table.loc["nnU-Net", columns], table.loc["plain-seed0", columns])
    assert table.loc["paper", "dsc"].tolist() == table.loc["residual-seed1", "dsc"].tolist()
    assert table.loc["paper", "hd95_mm"].isna().all()
    page = done.pages["test"].read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| paper†"))
    assert [cell.strip() for cell in row.split("|")][4] == "–"
    assert "† as its own summary.json says" in page
    assert "| nnU-Net |" in page
    runs = [line["run"] for line in logged_evaluations(folder / "test_evaluations.jsonl")]
    assert runs[4:] == ["nnU-Net"]
    before = files(folder / "imported")
    compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs})
    assert files(folder / "imported") == before
    shutil.copytree(folder / "runs" / "residual-seed0" / "predict", theirs, dirs_exist_ok=True)
    with pytest.raises(
        ContextsegError, match="nnU-Net was evaluated on the test split with other weights"
    ):
        compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs})
    with pytest.raises(ContextsegError, match="none of the cases of this comparison"):
        compare(grid(data, folder, seeds=(0, 1)), others={"x": data / "labelsTr"})


@pytest.mark.usefixtures("_no_page")
def test_others_on_validation_with_a_budget(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chosen.folder, tmp_path / "again", symlinks=True)
    theirs = tmp_path / "theirs"
    for run in folder.glob("runs/plain-labels2-*"):
        shutil.copytree(run / "predict", theirs, dirs_exist_ok=True)
    done = compare(
        grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)),
        test=False,
        others={"same@2": theirs},
    )
    pairs = pd.read_csv(folder / "validation-pairs.csv", dtype={"budget": str})
    assert set(zip(pairs["budget"], pairs["a"], pairs["b"])) == {("2", "plain", "same")}
    assert (pairs["difference"] == 0).all()
    assert (pairs["p"] == 1).all()
    assert "| same | 2 |" in done.pages["validation"].read_text(encoding="utf-8")


# --- where cells run ------------------------------------------------------------------------------


def test_sigterm_leaves_no_process_behind(data: Path, tmp_path: Path) -> None:
    """A grid in two processes is stopped: its runs write checkpoints, end, and free their locks."""
    code = (
        "from contextseg.studies.compare import compare, parse_grid\n"
        "from contextseg.stopping import Stopped\n"
        "import sys\n"
        "words = sys.argv[3:]\n"
        "grid = parse_grid(*sys.argv[1:3], ['a=supervised,b=supervised'], '0', settings=words)\n"
        "try: compare(grid, jobs=2)\n"
        "except Stopped as stopped: sys.exit(str(stopped))"
    )
    settings = [*TINY, "steps=100000", "save_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(tmp_path), *settings],
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    checkpoints = [
        tmp_path / "runs" / f"{name}-seed0" / "train-1" / "checkpoint.pt" for name in "ab"
    ]
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in checkpoints) and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail("no checkpoints after two minutes")
        time.sleep(0.05)
    process.terminate()
    _, message = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped" in message
    for path in checkpoints:
        with lock_folder(path.parents[1]):  # no process has it
            assert "stopped at step" in (path.parents[1] / "log.txt").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_no_page")
def test_submitit_on_this_machine(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    bad = grid(
        data,
        tmp_path,
        methods=("plain=supervised", "bad=supervised:lr=1e30"),
        folds=(0,),
        budgets=(2,),
    )
    with pytest.raises(ContextsegError, match=r"1 of 2 runs failed; bad.*the loss is not finite"):
        compare(bad, cluster="local", test=False)
    done = compare(replace(bad, methods=bad.methods[:1]), cluster="local", test=False)
    both = [pd.read_csv(c.table, dtype={"budget": str}) for c in (done, chosen)]
    ours, theirs = (t[(t["budget"] == "2") & (t["fold"] == 0)]["dsc"].tolist() for t in both)
    assert ours == theirs
    with pytest.raises(ContextsegError, match="--cluster local"):
        run_on_cluster([], tmp_path, "local", 1, {"no_such_option": 1}, lambda *_: None)


# --- beforehand -----------------------------------------------------------------------------------


def test_a_forecast_writes_nothing_and_counts_steps(data: Path, tmp_path: Path) -> None:
    long = grid(
        data, tmp_path / "out", seeds=(0, 1, 2), budgets=(2, None), settings=(*TINY, "steps=100000")
    )
    foreseen = forecast(long)
    assert not (tmp_path / "out").exists()
    assert len(foreseen.cells) == 12
    assert {state for _, state, _ in foreseen.cells} == {"to do"}
    per_run = {name.split("-")[0]: seconds for name, _, seconds in foreseen.cells}
    assert foreseen.seconds == pytest.approx(6 * sum(per_run.values()))
    twice = forecast(replace(long, methods=METHODS[:1], seeds=(0,), budgets=(None,)))
    assert 0 < twice.seconds < foreseen.seconds
    text = str(foreseen)
    assert "12 runs: 12 to do" in text
    assert "an estimate from 3 steps of each method" in text


def test_a_forecast_of_what_is_done(tested: Comparison, data: Path) -> None:
    foreseen = forecast(grid(data, tested.folder, seeds=(0, 1)))
    assert foreseen.seconds == 0
    assert str(foreseen).splitlines()[-1] == "4 runs: 4 done"


def test_an_unknown_metric_is_refused_before_anything_runs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="fp_nearby: no such metric"):
        compare(grid(data, tmp_path / "out"), metrics=("dsc", "fp_nearby"))
    assert not (tmp_path / "out").exists()


# --- rows without training ------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_page")
def test_other_definitions_and_post_processing_train_nothing(
    tested: Comparison, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tested.folder, folder, symlinks=True)
    before = files(folder / "runs")
    asked = grid(data, folder, seeds=(0, 1))
    first = METHODS[0].partition("=")[0]
    result = compare(asked, convention="colab", largest_component=(first,))
    assert files(folder / "runs") == before
    assert result.folder == folder / "by-colab"
    assert (folder / "table.csv").read_bytes() == tested.table.read_bytes()
    assert "Metrics by the convention colab" in result.pages["test"].read_text(encoding="utf-8")
    table, default = result.cases, tested.cases
    assert set(table["convention"]) == {"colab"}
    own = table[table["method"] != f"{first}-largest"]
    assert list(own["case"]) == list(default["case"])
    run, case = own["run"].iloc[0], own["case"].iloc[0]
    expected = evaluate_folders(
        Path(own["prediction_file"].iloc[0]).parent,
        data / "labelsTs",
        convention="colab",
    )
    pick = own[(own["run"] == run) & (own["case"] == case)].iloc[0]
    row = expected[expected["case"] == case].iloc[0]
    for metric in ("dsc", "nsd", "hd95_mm", "fp_near_ml"):
        assert pick[metric] == pytest.approx(row[metric], nan_ok=True)
    kept = table[table["method"] == f"{first}-largest"]
    assert len(kept) == len(own) / 2
    for part in kept.itertuples():
        label = read_labels(part.prediction_file).array
        source = own[(own["run"] == str(part.run).removesuffix("-largest"))]
        whole = read_labels(source[source["case"] == part.case]["prediction_file"].iloc[0]).array
        assert (label == largest_component(whole)[0]).all()
    scored = files(folder / "scored")
    compare(asked, convention="colab", largest_component=(first,))
    assert files(folder / "scored") == scored


def test_what_cannot_be_scored_again_is_refused(data: Path, tmp_path: Path) -> None:
    asked = grid(data, tmp_path / "out")
    with pytest.raises(ContextsegError, match="no such convention"):
        compare(asked, convention="colap")
    with pytest.raises(ContextsegError, match="no method of this comparison"):
        compare(asked, largest_component=("nobody",))
    with pytest.raises(ContextsegError, match="not scored again"):
        compare(asked, convention="colab", others={"tool": tmp_path})
    assert not (tmp_path / "out").exists()
