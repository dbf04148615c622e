"""Comparisons on small phantoms: the table, the locked test split, resuming, processes, others' work, the forecast."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from contextseg.compare import Comparison, compare, forecast
from contextseg.compare.cell import alone, evaluations, weights_digest
from contextseg.compare.comparison import _leaks
from contextseg.compare.pools import on_cluster
from contextseg.data import phantom
from contextseg.data.check import check
from contextseg.data.layouts import folds, open_dataset
from contextseg.disk import Problem, read_json
from contextseg.job import main_job, open_ensemble
from contextseg.provenance import provenance
from contextseg.run import Run
from grids import METHODS, TINY, grid

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("data") / "phantoms", labelled=5, unlabelled=1)


@pytest.fixture(scope="module")
def tested(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two methods, two seeds, trained on all, tested."""
    return compare(grid(data, tmp_path_factory.mktemp("tested"), seeds=(0, 1)))


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One method on two folds with two budgets, in two processes, the test split still locked."""
    folder = tmp_path_factory.mktemp("chosen")
    return compare(grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)), jobs=2, test=False)


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_table_and_its_means(tested: Comparison, data: Path) -> None:
    table = pd.read_csv(tested.table)
    assert len(table) == 2 * 2 * 2  # methods, seeds, test cases
    assert set(table["split"]) == {"test"}
    assert (table["patient"] == table["case"]).all()
    for run, rows in table.groupby("run"):
        own = pd.read_csv(tested.folder / "runs" / str(run) / "06-evaluate" / "metrics.csv")
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
    assert names == ["01-check", "02-plan", "03-preprocess", "04-train", "05-predict", "06-evaluate", "07-report"]
    cached = [path for path in (tested.folder / "cache").iterdir() if path.is_dir()]
    assert len(cached) == 6  # and not 6 for each of the runs
    assert (run.folder / "cache").resolve() == (tested.folder / "cache").resolve()
    alone_again = Run(tested.folder.parent / "alone", run.settings)
    main_job(alone_again)
    ours, theirs = (weights_digest(open_ensemble([r.folder])[0][0][0]) for r in (run, alone_again))
    assert ours == theirs
    assert evaluations(tested.folder / "test_evaluations.jsonl")[0]["weights"] == ours


def test_what_is_done_is_not_done_again(tested: Comparison, data: Path) -> None:
    before = files(tested.folder / "runs") | files(tested.folder / "cache") | files(tested.folder / "check")
    log = (tested.folder / "test_evaluations.jsonl").read_text(encoding="utf-8")
    table = tested.table.read_text(encoding="utf-8")
    said: list[str] = []

    @contextmanager
    def watch(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
        said.append(title)
        yield lambda *_: None

    compare(grid(data, tested.folder, seeds=(0, 1)), watch=watch)
    assert {path: before[path] for path in before} == {
        path: at for path, at in files(tested.folder).items() if path in before
    }
    assert (tested.folder / "test_evaluations.jsonl").read_text(encoding="utf-8") == log
    assert tested.table.read_text(encoding="utf-8") == table
    assert said == []


def test_a_finished_comparison_called_again_is_the_same_to_the_byte(
    tested: Comparison, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record too, which has a date: as long as nothing is to be done, and nothing else is asked."""
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    compare(grid(data, folder, seeds=(0, 1)))  # its folder is another one

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = content()
    monkeypatch.setattr("contextseg.compare.comparison.provenance", lambda: {**provenance(), "date": "later"})
    compare(grid(data, folder, seeds=(0, 1)))
    assert content() == before
    compare(grid(data, folder, seeds=(0,)))
    record = read_json(folder / "comparison.json")
    assert record["asked"]["seeds"] == [0]
    assert record["provenance"]["date"] == "later"
    other = {**provenance(), "date": "upgraded", "python": "4.0"}
    monkeypatch.setattr("contextseg.compare.comparison.provenance", lambda: other)
    compare(grid(data, folder, seeds=(0,)))
    assert read_json(folder / "comparison.json")["provenance"]["python"] == "4.0"


def test_worst_cases_are_shown_wherever_the_folder_lies(tested: Comparison, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tested.folder, tmp_path / "moved", symlinks=True)
    made = compare(grid(data, folder, seeds=(0, 1)))
    files = pd.read_csv(made.table)["prediction_file"]
    assert all(Path(path).is_relative_to(folder) and Path(path).exists() for path in files)
    page = made.report.read_text(encoding="utf-8")
    assert page.count('class="planes side"') == 2 * 2  # methods, cases
    assert page.count("<svg viewBox") == 2 * 2 * 3
    assert "No picture" not in page
    assert "plain-seed" in page  # which of the two runs is seen


def test_budgets_and_folds_on_validation_leave_the_test_split_alone(chosen: Comparison, data: Path) -> None:
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
    assert "mean over 2 cases, then over 1 seed (0)" in page  # the folds together are one repetition
    assert "budgets.json" in page
    kept = read_json(chosen.folder / "budgets.json")["labelled"]["fold 0"]["2"]
    few = Run.open(chosen.folder / "runs" / "plain-labels2-fold0-seed0")
    assert [case.name for case in few.split[0] if case.label] == sorted(kept)
    assert (
        "04-train" in (few.folder / "log.txt").read_text(encoding="utf-8")
        or (few.folder / "04-train" / "model.pt").exists()
    )


def test_the_test_split_is_opened_at_the_end(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    """The same grid with the test: nothing is trained again, each run is scored once on the test cases."""
    folder = shutil.copytree(chosen.folder, tmp_path / "chosen", symlinks=True)
    weights = {p: p.stat().st_mtime_ns for p in folder.rglob("model.pt")}
    made = compare(grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("model.pt")} == weights
    assert set(made.pages) == {"validation", "test"}
    table = pd.read_csv(made.table)
    assert (table["split"] == "test").sum() == 2 * 2 * 2
    assert "then over 1 seed (0) of each of 2 folds" in made.pages["test"].read_text(encoding="utf-8")
    log = evaluations(folder / "test_evaluations.jsonl")
    assert len({row["run"] for row in log}) == len(log) == 4
    assert all(row["cases"] == 2 for row in log)


def test_processes_give_what_one_process_gives(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    made = compare(grid(data, tmp_path, methods=METHODS[:1], folds=(0,), budgets=(2,)), test=False)
    both = [pd.read_csv(c.table, dtype={"budget": str}) for c in (made, chosen)]
    ours, theirs = (t[(t["budget"] == "2") & (t["fold"] == 0)].drop(columns="prediction_file") for t in both)
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))


def test_stopped_in_the_middle_it_goes_on(tested: Comparison, data: Path, tmp_path: Path) -> None:
    """Ctrl-C in the third step of the second run: the first is kept, the second goes on, all ends the same."""

    @contextmanager
    def watch(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
        def tell(i: int, of: int, values: Any = None) -> None:
            if "residual" in title and "train" in title and i == 3:
                raise KeyboardInterrupt

        yield tell

    with pytest.raises(KeyboardInterrupt):
        compare(grid(data, tmp_path), watch=watch)
    first = files(tmp_path / "runs" / "plain-seed0")
    assert str(forecast(grid(data, tmp_path))).splitlines()[0].split() == ["plain-seed0", "done"]
    assert str(forecast(grid(data, tmp_path))).splitlines()[1].split()[:2] == ["residual-seed0", "begun"]
    made = compare(grid(data, tmp_path))
    assert files(tmp_path / "runs" / "plain-seed0") == first
    columns = ["run", "case", "class", "dsc", "hd95_mm", "nsd"]
    whole = pd.read_csv(tested.table)
    pd.testing.assert_frame_equal(
        pd.read_csv(made.table)[columns], whole.loc[whole["seed"] == 0, columns].reset_index(drop=True)
    )


def test_one_that_fails_does_not_stop_the_others(data: Path, tmp_path: Path) -> None:
    bad = grid(data, tmp_path / "turn", methods=("bad=supervised:lr=1e30", "good=supervised"))
    with pytest.raises(Problem, match=r"1 of 2 runs failed; bad-seed0: .*the loss is not finite"):
        compare(bad)
    assert (tmp_path / "turn" / "runs" / "good-seed0" / "report.html").exists()
    assert not (tmp_path / "turn" / "table.csv").exists()
    assert [row["run"] for row in evaluations(tmp_path / "turn" / "test_evaluations.jsonl")] == ["good-seed0"]
    with pytest.raises(Problem, match=r"1 of 1 runs failed; bad-seed0: .*the loss is not finite.*log\.txt"):
        compare(bad, jobs=2)


# --- the lock, and leaks ----------------------------------------------------------------------------------------------


def test_other_weights_are_not_tested_under_the_same_name(tested: Comparison, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    with pytest.raises(Problem, match=r"training\.lr was 0\.01 and is now 0\.02"):
        compare(grid(data, folder, settings=(*TINY, "lr=0.02")))
    shutil.rmtree(folder / "runs" / "plain-seed0")
    with pytest.raises(Problem, match="plain-seed0 was evaluated on the test split with other weights"):
        compare(grid(data, folder, settings=(*TINY, "lr=0.02"), methods=METHODS[:1]))
    assert not list((folder / "runs" / "plain-seed0").glob("*-predict"))
    shutil.rmtree(folder / "runs" / "plain-seed0")  # the same weights, made again: nothing new is seen
    compare(grid(data, folder, methods=METHODS[:1]))
    assert len(evaluations(folder / "test_evaluations.jsonl")) == 4


def test_the_same_scan_or_patient_on_both_sides_stops_everything(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=1)
    shutil.copy(data / "imagesTr" / "phantom_001_0000.nii.gz", data / "imagesTs" / "phantom_005_0000.nii.gz")
    with pytest.raises(Problem, match="the same voxels as phantom_001 in training"):
        compare(grid(data, tmp_path / "out"))
    assert not (tmp_path / "out" / "runs").exists()
    data = phantom.write_dataset(tmp_path / "other", labelled=5, test=1)
    (data / "patients.json").write_text(json.dumps({"phantom_001": "p", "phantom_005": "p"}), encoding="utf-8")
    with pytest.raises(Problem, match="patient p is in train"):
        compare(grid(data, tmp_path / "out2"))


def test_twins_are_a_leak_where_a_fold_parts_them(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=6, test=1)
    first, second = (min(case.name for case in side) for side in folds(open_dataset(data), 0))
    for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        shutil.copy(data / part.format(first), data / part.format(second))
    with pytest.raises(Problem, match="the same voxels as"):
        compare(grid(data, tmp_path / "out", folds=(0,)))
    assert not (tmp_path / "out" / "runs").exists()
    found, opened = check(data), open_dataset(data)
    assert [len(_leaks(found, opened, numbers)) for numbers in ({0}, {-1}, {0, -1})] == [1, 0, 1]
    parted = [fold for fold in range(5) if first in {case.name for case in folds(opened, fold)[1]}]
    assert [bool(_leaks(found, opened, {fold})) for fold in range(5)] == [fold in (0, *parted) for fold in range(5)]
    (data / "patients.json").write_text(
        json.dumps({first: "p", second: "p"}), encoding="utf-8"
    )  # which keeps them together
    assert _leaks(found, open_dataset(data), set(range(5))) == []


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
    with pytest.raises(Problem, match=r"phantom_001_0000\.nii\.gz"):
        compare(small)


def test_nothing_to_score_on(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0)
    with pytest.raises(Problem, match="nothing to score plain-seed0 on"):
        compare(grid(data, tmp_path / "out"))


# --- others' work -----------------------------------------------------------------------------------------------------


def test_others_join_as_rows(tested: Comparison, data: Path, tmp_path: Path) -> None:
    """Our own predictions under another name have our own numbers; another prediction under that name is refused."""
    folder = shutil.copytree(tested.folder, tmp_path / "again", symlinks=True)
    theirs = shutil.copytree(folder / "runs" / "plain-seed0" / "05-predict", tmp_path / "theirs")
    summary = folder / "runs" / "residual-seed1" / "06-evaluate" / "summary.json"
    made = compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs, "paper": summary})
    table = pd.read_csv(made.table).set_index(["run", "case"])
    columns = ["class", "dsc", "hd95_mm", "nsd", "tp"]
    pd.testing.assert_frame_equal(table.loc["nnU-Net", columns], table.loc["plain-seed0", columns])
    assert table.loc["paper", "dsc"].tolist() == table.loc["residual-seed1", "dsc"].tolist()
    assert table.loc["paper", "hd95_mm"].isna().all()
    page = made.pages["test"].read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| paper†"))
    assert [cell.strip() for cell in row.split("|")][4] == "–"
    assert "† as its own summary.json says" in page
    assert "| nnU-Net |" in page
    runs = [line["run"] for line in evaluations(folder / "test_evaluations.jsonl")]
    assert runs[4:] == ["nnU-Net"]
    before = files(folder / "imported")
    compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs})
    assert files(folder / "imported") == before
    shutil.copytree(folder / "runs" / "residual-seed0" / "05-predict", theirs, dirs_exist_ok=True)
    with pytest.raises(Problem, match="nnU-Net was evaluated on the test split with other weights"):
        compare(grid(data, folder, seeds=(0, 1)), others={"nnU-Net": theirs})
    with pytest.raises(Problem, match="none of the cases of this comparison"):
        compare(grid(data, folder, seeds=(0, 1)), others={"x": data / "labelsTr"})


def test_others_on_validation_with_a_budget(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chosen.folder, tmp_path / "again", symlinks=True)
    theirs = tmp_path / "theirs"
    for run in folder.glob("runs/plain-labels2-*"):
        shutil.copytree(run / "05-predict", theirs, dirs_exist_ok=True)
    made = compare(
        grid(data, folder, methods=METHODS[:1], folds=(0, 1), budgets=(2, None)), test=False, others={"same@2": theirs}
    )
    pairs = pd.read_csv(folder / "validation-pairs.csv", dtype={"budget": str})
    assert set(zip(pairs["budget"], pairs["a"], pairs["b"])) == {("2", "plain", "same")}
    assert (pairs["difference"] == 0).all()
    assert (pairs["p"] == 1).all()
    assert "| same | 2 |" in made.pages["validation"].read_text(encoding="utf-8")


# --- where cells run --------------------------------------------------------------------------------------------------


def test_sigterm_leaves_no_process_behind(data: Path, tmp_path: Path) -> None:
    """A grid in two processes, asked to stop: its runs write checkpoints, end, and leave their locks."""
    code = (
        "from contextseg.compare import compare, asked; from contextseg.train import Stopped; import sys\n"
        "try: compare(asked(*sys.argv[1:3], ['a=supervised,b=supervised'], '0', settings=sys.argv[3:]), jobs=2)\n"
        "except Stopped as stopped: sys.exit(str(stopped))"
    )
    settings = [*TINY, "steps=100000", "save_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(tmp_path), *settings], stderr=subprocess.PIPE, encoding="utf-8"
    )
    checkpoints = [tmp_path / "runs" / f"{name}-seed0" / "04-train" / "checkpoint.pt" for name in "ab"]
    while not all(path.exists() for path in checkpoints) and process.poll() is None:
        torch.randn(1000, 1000).sum()
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "stopped" in said
    for path in checkpoints:
        with alone(path.parents[1]):  # nobody has it
            assert "stopped at step" in (path.parents[1] / "log.txt").read_text(encoding="utf-8")


def test_submitit_on_this_machine(chosen: Comparison, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    bad = grid(data, tmp_path, methods=("plain=supervised", "bad=supervised:lr=1e30"), folds=(0,), budgets=(2,))
    with pytest.raises(Problem, match=r"1 of 2 runs failed; bad.*the loss is not finite"):
        compare(bad, cluster="local", test=False)
    made = compare(replace(bad, methods=bad.methods[:1]), cluster="local", test=False)
    both = [pd.read_csv(c.table, dtype={"budget": str}) for c in (made, chosen)]
    ours, theirs = (t[(t["budget"] == "2") & (t["fold"] == 0)]["dsc"].tolist() for t in both)
    assert ours == theirs
    with pytest.raises(Problem, match="--cluster local"):
        on_cluster([], tmp_path, "local", 1, {"no_such_option": 1}, lambda *_: None)


# --- beforehand -------------------------------------------------------------------------------------------------------


def test_a_forecast_writes_nothing_and_counts_steps(data: Path, tmp_path: Path) -> None:
    long = grid(data, tmp_path / "out", seeds=(0, 1, 2), budgets=(2, None), settings=(*TINY, "steps=100000"))
    found = forecast(long)
    assert not (tmp_path / "out").exists()
    assert len(found.cells) == 12
    assert {state for _, state, _ in found.cells} == {"to do"}
    per_run = {name.split("-")[0]: seconds for name, _, seconds in found.cells}
    assert found.seconds == pytest.approx(6 * sum(per_run.values()))
    twice = forecast(replace(long, methods=METHODS[:1], seeds=(0,), budgets=(None,)))
    assert 0 < twice.seconds < found.seconds
    text = str(found)
    assert "12 runs: 12 to do" in text
    assert "an estimate from 3 steps of each method" in text


def test_a_forecast_of_what_is_done(tested: Comparison, data: Path) -> None:
    found = forecast(grid(data, tested.folder, seeds=(0, 1)))
    assert found.seconds == 0
    assert str(found).splitlines()[-1] == "4 runs: 4 done"


def test_an_unknown_metric_is_said_before_anything_runs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="fp_nearby: no such metric"):
        compare(grid(data, tmp_path / "out"), metrics=("dsc", "fp_nearby"))
    assert not (tmp_path / "out").exists()
