"""The main job on a small phantom data set: stages, faults, resume, ensembles. And through the
command line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from contextseg import api
from contextseg.data import phantom
from contextseg.data.augment import Augmentation
from contextseg.data.layouts import open_dataset
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.methods import Supervised
from contextseg.pipeline import (
    open_predictor,
    references,
    report_again,
    resolve_fold,
    run_pipeline,
    train_run,
)
from contextseg.predictor import Member, Predictor
from contextseg.runs import Run
from contextseg.settings import AUTO_FOLD, Settings
from contextseg.training import Training
from contextseg.volume import read, read_labels, write
from systems import needs_kill

torch.set_num_threads(1)
TINY = [
    "steps=6",
    "save_every=2",
    "log_every=2",
    "patch_vox=16,16,16",
    "batch_size=2",
    "base_width=4",
    "device=cpu",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "Dataset001_phantom", labelled=5, unlabelled=1
    )


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "plain"
    run_pipeline(Run(folder, Settings(str(data)).set(TINY)))
    return folder


def command(*words: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "contextseg", *map(str, words)]
    return subprocess.run(
        line, capture_output=True, encoding="utf-8", env=environment, timeout=300, **kwargs
    )  # type: ignore[call-overload,no-any-return]


def sets(assignments: list[str]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def model(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(next(folder.glob("train-*/model.pt")), weights_only=True)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the job --------------------------------------------------------------------------------------


def test_the_job_leaves_what_it_promises(data: Path, finished: Path) -> None:
    names = [stage["name"] for stage in Run.open(finished).stages()]
    want = [
        "check",
        "plan",
        "preprocess",
        "train-1",
        "predict",
        "evaluate",
        "report",
    ]
    assert names == want
    table = pd.read_csv(finished / "evaluate" / "metrics.csv")
    assert sorted(table["case"]) == ["phantom_006", "phantom_007"]
    assert {"dsc", "sen", "prc", "hd95_mm", "nsd"} <= set(table.columns)
    summary = read_json(finished / "evaluate" / "summary.json")
    assert summary["mean"]["1"]["Dice"] == pytest.approx(table["dsc"].mean())
    for case in ("phantom_006", "phantom_007"):
        scan = read(data / "imagesTs" / f"{case}_0000.nii.gz")
        made = read_labels(finished / "predict" / f"{case}.nii.gz")
        assert made.same_grid(scan)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "phantom_006" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    rows = [
        json.loads(line)
        for line in (finished / "train-1" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["step"] for row in rows] == [2, 4, 6]
    costs = {stage["name"]: stage for stage in Run.open(finished).stages()}
    assert costs["train-1"]["peak_mb"] > 50
    assert read_json(finished / "run.json")["provenance"]["versions"]["torch"] == torch.__version__


def test_a_second_run_does_nothing_again(data: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    run_pipeline(Run(finished, Settings(str(data)).set(TINY)))
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_other_settings_are_refused_by_name(data: Path, finished: Path) -> None:
    with pytest.raises(ContextsegError, match=r"training\.steps was 6 and is now 8"):
        Run(finished, Settings(str(data)).set([*TINY, "steps=8"]))


def test_loading_is_running_the_finished_recipe(data: Path, finished: Path) -> None:
    predictor = open_predictor([finished])
    [member] = predictor.members
    assert same(member.method.state_dict(), model(finished))
    assert member.plan == Run.open(finished).plan
    assert not member.method.training
    scan = read(data / "imagesTs" / "phantom_006_0000.nii.gz")
    there = read_labels(finished / "predict" / "phantom_006.nii.gz")
    assert np.array_equal(predictor.predict(scan).label.array, there.array)


def test_an_unfinished_run_cannot_be_loaded(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Settings(str(data)).set(TINY))
    run.check()
    run.make_plan()
    with pytest.raises(ContextsegError, match="not finished"):
        open_predictor([tmp_path / "run"])
    with pytest.raises(ContextsegError, match="no run in this folder"):
        open_predictor([tmp_path])


def test_a_fold_that_is_not_there_claims_no_folder(data: Path, tmp_path: Path) -> None:
    done = command("run", data, "-o", tmp_path / "run", "--fold", 9, *sets(TINY))
    assert done.returncode == 1
    assert "there is no fold 9" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_convention_is_one_message(data: Path) -> None:
    done = command("evaluate", data / "labelsTs", data / "labelsTs", "--convention", "moni")
    assert done.returncode == 1
    assert done.stderr.count("did you mean monai") == 1


def test_an_edited_plan_is_obeyed(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(str(data)).set(TINY))
    run.check()
    run.make_plan()
    content = read_json(tmp_path / "plan.json")
    content["mirror"] = [True, True, False]
    (tmp_path / "plan.json").write_text(json.dumps(content), encoding="utf-8")
    run = Run(tmp_path, Settings(str(data)).set(TINY))
    run_pipeline(run)
    assert run.plan.mirror == (True, True, False)


def test_without_a_test_split_the_first_fold_is_validated(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=0)
    settings = resolve_fold(Settings(str(data), fold=AUTO_FOLD).set([*TINY, "check_every=3"]))
    assert settings.fold == 0
    outcome = run_pipeline(Run(tmp_path / "run", settings))
    assert outcome.table is not None
    assert len(pd.read_csv(outcome.table)) == 1
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/train-1/log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    looks = [row for row in rows if row["part"] == "check"]
    assert [row["step"] for row in looks] == [3, 6]
    assert all(0 <= row["dice"] <= 1 for row in looks)


def test_an_ensemble_is_the_mean_of_its_logits(data: Path, finished: Path, tmp_path: Path) -> None:
    run_pipeline(Run(tmp_path / "other", Settings(str(data), seed=1).set(TINY)))
    ensemble = open_predictor([finished, tmp_path / "other"])
    scan = read(data / "imagesTs" / "phantom_006_0000.nii.gz")

    def predicted(*members: Member) -> np.ndarray:
        return Predictor(members, ensemble.settings).predict(scan).label.array

    one, two = (predicted(member) for member in ensemble.members)
    both = predicted(*ensemble.members)
    twice = predicted(ensemble.members[0], ensemble.members[0])
    assert np.array_equal(twice, one)
    agree = one == two
    assert np.array_equal(both[agree], one[agree])
    assert not np.array_equal(one, two)


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_survives_corrupt_scans(data: Path, finished: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    good = data / "imagesTs" / "phantom_006_0000.nii.gz"
    shutil.copy(good, scans / "good_0000.nii.gz")
    (scans / "half_0000.nii.gz").write_bytes(good.read_bytes()[:2000])
    zeros = read(good)
    write(scans / "zeros_0000.nii.gz", zeros.with_array(np.zeros_like(zeros.array)))
    holes = zeros.array.copy()
    holes[0, 0, 0, 0] = np.nan
    write(scans / "nan_0000.nii.gz", zeros.with_array(holes))
    done = command("predict", finished, "--input", scans, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "half_0000.nii.gz" in done.stderr
    assert "nan" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 of 4 cases could not be segmented" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").glob("*.*")) == [
        "good.nii.gz",
        "label_descriptions.txt",
        "predicted_by.json",
        "zeros.nii.gz",
    ]
    assert sorted(p.name for p in (tmp_path / "out/confidence").iterdir()) == [
        "good.nii.gz",
        "zeros.nii.gz",
    ]


def test_label_values_with_gaps_and_unknown_classes_come_back(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=3, test=1, classes=3)
    for path in sorted(data.glob("labels*/*.nii.gz")):
        label = read_labels(path)
        write(path, label.with_array(np.array([0, 7, 200], np.int16)[label.array]))
    table = read_json(data / "dataset.json")
    table["labels"] = {"background": 0, "bright": 7, "dark": 200}
    (data / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    (data / "labelsTr" / "phantom_001.json").write_text(
        json.dumps({"annotated": ["bright"]}), encoding="utf-8"
    )
    first = read_labels(data / "labelsTr" / "phantom_001.nii.gz")
    write(
        data / "labelsTr" / "phantom_001.nii.gz",
        first.with_array(np.where(first.array == 200, 0, first.array)),
    )
    run = Run(
        tmp_path / "run", Settings(str(data)).set([*TINY, "steps=100", "lr=0.1", "base_width=8"])
    )
    outcome = run_pipeline(run)
    values = set(np.unique(read_labels(next(outcome.predictions.glob("*.nii.gz"))).array).tolist())
    assert values <= {0, 7, 200}
    assert values & {7, 200}
    annotated = {c.record.name: c.annotated for c in run.cached(run.split[0])}
    assert annotated["phantom_001"] == (True, True, False)
    assert annotated["phantom_000"] == (True, True, True)


def test_a_region_is_scored_where_all_its_classes_were_looked_for(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=1, test=2, classes=3)
    table = read_json(data / "dataset.json")
    table["labels"] = {"background": 0, "both": [1, 2], "dark": 2}
    table["regions_class_order"] = [1, 2]
    (data / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    (data / "labelsTs" / "phantom_001.json").write_text(
        json.dumps({"annotated": ["dark"]}), encoding="utf-8"
    )
    opened = open_dataset(data)
    found = {pair.case: pair.annotated for pair in references(opened, opened.test, tmp_path)}
    assert found == {"phantom_001": ("dark",), "phantom_002": None}


def test_nnunet_regions_and_ignore_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions are scored as unions; ignored voxels neither teach nor count."""
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1, classes=3)
    table = read_json(data / "dataset.json")
    table["labels"] = {"background": 0, "both": [1, 2], "dark": 2, "ignore": 3}
    table["regions_class_order"] = [1, 2]
    (data / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    for path in sorted(data.glob("labels*/*.nii.gz")):
        label = read_labels(path)
        label.array[:, :, 12:] = 3
        write(path, label)
    run = Run(tmp_path / "run", Settings(str(data)).set(TINY))
    outcome = run_pipeline(run)
    assert outcome.table is not None
    rows = pd.read_csv(outcome.table).set_index("class")
    truth = read_labels(data / "labelsTs" / "phantom_002.nii.gz").array
    made = read_labels(outcome.predictions / "phantom_002.nii.gz").array
    for name, union in (("both", (1, 2)), ("dark", (2,))):
        p, y = np.isin(made, union) & (truth != 3), np.isin(truth, union)
        assert rows.loc[name, ["tp", "fp", "fn"]].tolist() == [
            (p & y).sum(),
            (p & ~y).sum(),
            (~p & y).sum(),
        ]
    assert set(np.unique(made)) <= {0, 1, 2}
    [case, *_] = run.cached(run.split[0])
    assert case.label is not None
    assert (np.asarray(case.label) == -1).any()
    sure = pd.read_csv(outcome.table.with_name("calibration.csv"))
    assert sure.loc[sure["voxels"] == "all", "n"].sum() == (truth != 3).sum()
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "contextseg.reports.write_report", lambda path, **given: drawn.update(given)
    )
    report_again(run.folder)
    assert drawn["regions"] == {
        "both": [1, 2],
        "dark": [2],
        "ignore": [3],
    }  # what is no error in a picture
    assert drawn["calibration"].equals(sure)


def test_one_case_and_an_empty_label(tmp_path: Path) -> None:
    """A single case trains; a test case that is all background counts as correctly absent or as
    spurious.
    """
    data = phantom.write_dataset(tmp_path / "data", labelled=1, test=1)
    label = read_labels(data / "labelsTs" / "phantom_001.nii.gz")
    write(data / "labelsTs" / "phantom_001.nii.gz", label.with_array(np.zeros_like(label.array)))
    outcome = run_pipeline(Run(tmp_path / "run", Settings(str(data)).set(TINY)))
    assert outcome.table is not None
    assert set(pd.read_csv(outcome.table)["status"]) <= {"absent", "spurious"}
    assert outcome.report is not None
    assert outcome.report.exists()


def test_a_class_that_no_training_case_has(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1)
    table = read_json(data / "dataset.json")
    table["labels"]["ghost"] = 2
    (data / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    outcome = run_pipeline(Run(tmp_path / "run", Settings(str(data)).set(TINY)))
    assert outcome.table is not None
    rows = pd.read_csv(outcome.table).set_index("class")
    assert rows.loc["ghost", "status"] in ("absent", "spurious")
    findings = read_json(tmp_path / "run" / "check" / "findings.json")
    assert any("ghost" in f["what"] + f["where"] for f in findings)


def test_a_broken_data_set_stops_with_one_message(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1)
    path = data / "imagesTr" / "phantom_001_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:3000])
    done = command("run", data, "-o", tmp_path / "run", *sets(TINY))
    assert done.returncode == 1
    assert "phantom_001_0000.nii.gz" in done.stderr
    assert "Remedy" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_cannot_be_written_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = command("run", data, "-o", tmp_path / "file" / "run", *sets(TINY))
    assert done.returncode == 1
    assert "choose another output folder" in done.stderr
    assert "Traceback" not in done.stderr


# --- killed, stopped, resumed ---------------------------------------------------------------------


def test_killed_at_any_moment_it_ends_with_the_same_numbers(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    """kill -9 after 2, 3, 4, ... seconds, again and again, until it comes through."""
    folder = tmp_path / "run"
    line = [
        sys.executable,
        "-m",
        "contextseg",
        "run",
        str(data),
        "-o",
        str(folder),
        "--fold",
        "all",
        *sets(TINY),
    ]
    kills = 0
    for wait in (0.5, 2.0, 2.7, 3.4, 4.1, 4.8):
        process = subprocess.Popen(
            line,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        time.sleep(wait)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert (
        subprocess.run(
            line, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
        == 0
    )
    assert kills
    assert same(model(folder), model(finished))
    columns = ["case", "class", "dsc", "hd95_mm", "nsd"]
    ours, theirs = (
        pd.read_csv(f / "evaluate" / "metrics.csv")[columns] for f in (folder, finished)
    )
    pd.testing.assert_frame_equal(ours, theirs)


@needs_kill
def test_torchrun_two_ranks(data: Path, finished: Path, tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "contextseg",
    ]
    words = ["run", str(data), "-o", str(tmp_path / "run"), "--fold", "all", *sets(TINY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, *words], capture_output=True, encoding="utf-8", env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two, one = model(tmp_path / "run"), model(finished)
    assert max(float((two[n] - one[n]).abs().max()) for n in one) < 1e-2  # AdamW


def test_a_pooled_dice_needs_an_item_for_each_rank(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, Settings(str(data)).set([*TINY, "batch_dice=true"]))
    run.check()
    run.make_plan()
    run.preprocess()
    monkeypatch.setattr("contextseg.runs.ranks", lambda: (0, 3))
    with pytest.raises(ContextsegError, match=r"2 items for 3 processes.*raise it to 3"):
        run.train(Supervised(run.plan))


# --- recipes --------------------------------------------------------------------------------------


def test_a_recipe_of_several_stages_resumes_and_never_overwrites_an_annotator(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextseg import methods
    from contextseg.batch import IGNORE
    from contextseg.methods import Method

    def twice(run: Run, threshold: float = 0.5) -> Method:
        teacher = run.train(Supervised(run.plan))

        def confident(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            p, k = teacher.predict(image).softmax(1).max(1)
            return torch.where(p > threshold, k, IGNORE)

        return run.train(Supervised(run.plan), labels=run.relabel(confident))

    monkeypatch.setitem(methods.METHODS, "twice", twice)
    settings = replace(
        Settings(str(data), method="twice").set(TINY),
        training=Training(steps=2),
        augmentation=Augmentation(strength=0),
    )
    run = Run(tmp_path, settings)
    first = run_pipeline(run).folder
    names = [stage["name"] for stage in run.stages()]
    assert names[3:6] == ["train-1", "relabel-1", "train-2"]
    for case in run.cached(run.split[0]):
        made = np.load(first / "relabel-1" / f"{case.record.name}.npy")
        if case.label is not None:
            assert np.array_equal(made, case.label)
        else:
            assert (made != IGNORE).any()
    [member] = open_predictor([tmp_path]).members
    again = torch.load(tmp_path / "train-2" / "model.pt", weights_only=True)
    assert same(member.method.state_dict(), again)


def test_draws_choose_the_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextseg import methods
    from contextseg.batch import Batch
    from contextseg.methods import Method

    seen: list[list[torch.Tensor]] = []

    class Watching(Supervised):
        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            seen[-1].append(batch.image)
            return super().forward(batch)

    def thrice(run: Run) -> Method:
        for draws in (0, 1, 0):
            seen.append([])
            method = run.train(Watching(run.plan), draws=draws)
        return method

    monkeypatch.setitem(methods.METHODS, "thrice", thrice)
    run = Run(
        tmp_path,
        replace(Settings(str(data), method="thrice").set(TINY), training=Training(steps=2)),
    )
    run.check()
    run.make_plan()
    run.preprocess()
    seen.clear()  # of the rehearsal
    run.fit()
    first, other, again = (torch.cat(batches) for batches in seen)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_predictions_that_are_there_are_kept(data: Path, finished: Path, tmp_path: Path) -> None:
    predictor = open_predictor([finished])
    cases = list(Run.open(finished).dataset.test)
    (tmp_path / "phantom_006.nii.gz").write_text("mine", encoding="utf-8")
    assert predictor.predict_cases(cases, tmp_path) == {}
    assert (tmp_path / "phantom_006.nii.gz").read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "phantom_007.nii.gz").exists()


def test_the_report_is_drawn_again(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "report.html").unlink()
    assert report_again(copy) == copy / "report.html"
    assert (copy / "report.html").exists()
    shutil.rmtree(copy / "evaluate")
    with pytest.raises(ContextsegError, match="nothing was evaluated"):
        report_again(copy)


# --- names of stages ------------------------------------------------------------------------------


def test_training_twice_trains_once(data: Path, finished: Path) -> None:
    run = Run.open(finished)
    before = model(finished)
    train_run(run)
    train_run(run)
    assert [path.name for path in run.stage_folders("train")] == ["train-1"]
    assert same(model(finished), before)


def test_the_pipeline_goes_on_after_the_model_was_loaded(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(str(data)).set(TINY))
    train_run(run)
    run.finished()
    outcome = run_pipeline(run)
    assert outcome.table == tmp_path / "evaluate" / "metrics.csv"
    assert run_pipeline(run) == outcome


def old_folder(run: Path, copy: Path) -> Path:
    """A run as version 0.1.0 left it: its stages numbered by the calls before them."""
    shutil.copytree(run, copy)
    names = [stage["name"] for stage in Run.open(run).stages()]
    for position, name in enumerate(names, 1):
        (copy / name).rename(copy / f"{position:02d}-{name.removesuffix('-1')}")
    for path in copy.glob("[0-9][0-9]-*/done.json"):
        content = read_json(path)
        del content["position"]
        path.write_text(json.dumps(content), encoding="utf-8")
    return copy


def test_runs_of_version_0_1_0_open_and_nothing_is_done_again(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    old = old_folder(finished, tmp_path / "old")
    before = {p: p.stat().st_mtime_ns for p in old.rglob("*") if p.is_file()}
    outcome = run_pipeline(Run.open(old))
    assert outcome.table == old / "06-evaluate" / "metrics.csv"
    assert {p: p.stat().st_mtime_ns for p in old.rglob("*") if p.is_file()} == before
    stages = Run.open(old).stages()
    assert [stage["name"] for stage in stages][:4] == [
        "01-check",
        "02-plan",
        "03-preprocess",
        "04-train",
    ]
    scan = read(data / "imagesTs" / "phantom_006_0000.nii.gz")
    now = open_predictor([finished]).predict(scan).label.array
    assert np.array_equal(open_predictor([old]).predict(scan).label.array, now)
    assert report_again(old).exists()


def test_a_run_takes_cases_of_its_own(data: Path, tmp_path: Path) -> None:
    cases = open_dataset(data).train[:2]
    run = Run(tmp_path, Settings(str(data)).set([*TINY, "steps=1"]), cases=(cases, ()))
    train_run(run)
    assert sorted(read_json(tmp_path / "preprocess" / "cases.json")) == [c.name for c in cases]


# --- start weights --------------------------------------------------------------------------------


def test_weights_are_loaded_once_and_reported(data: Path, finished: Path, tmp_path: Path) -> None:
    """A finished run starts another; when the file is gone, what was trained still opens."""
    weights = tmp_path / "start.pt"
    shutil.copyfile(finished / "train-1" / "model.pt", weights)
    settings = Settings(str(data)).set([*TINY, "lr=1e-9", f"weights={weights}"])
    run = Run(tmp_path / "run", settings)
    run_pipeline(run)
    report = read_json(tmp_path / "run" / "train-1" / "weights.json")
    assert report["net"]["file"] == str(weights)
    assert report["net"]["share"] == 1
    before, after = model(finished), model(tmp_path / "run")
    assert all(torch.allclose(after[name], before[name], atol=1e-5) for name in before)
    weights.unlink()
    assert same(run.finished().state_dict(), after)


def test_weights_that_are_not_there_are_missed_at_once(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(str(data)).set([*TINY, "weights=gone.pt"]))
    with pytest.raises(ContextsegError, match=r"weights=gone\.pt: there is no such file"):
        run_pipeline(run)
    assert run.stages() == []


@pytest.mark.parametrize("verb", ["train", "run"])
def test_a_run_never_goes_among_its_scans(data: Path, verb: str) -> None:
    before = sorted(data.rglob("*"))
    for folder in (data, data / "imagesTr", data / "labelsTr" / "run"):
        for given in ({}, {"folds": "0,1"} if verb == "run" else {}):
            with pytest.raises(
                ContextsegError, match="the output folder is the folder of the data"
            ):
                getattr(api, verb)(data, folder, verbose=False, **given)
    assert sorted(data.rglob("*")) == before


@pytest.mark.parametrize("verb", ["train", "run"])
def test_a_method_that_there_is_not_has_the_nearest(data: Path, tmp_path: Path, verb: str) -> None:
    with pytest.raises(ContextsegError, match=r"no such method. Remedy: did you mean supervised"):
        getattr(api, verb)(data, tmp_path / "run", method="superviced", verbose=False)
    assert not (tmp_path / "run").exists()
