"""Runs remember the cases of the day of training: models travel without the data, and what changed
in a data set since is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.data.snapshot import FileDigests, Snapshot
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.pipeline import (
    resolve_fold,
    run_pipeline,
)
from contextseg.runs import Run
from contextseg.settings import AUTO_FOLD, Settings
from contextseg.volume import read, read_labels, write

torch.set_num_threads(1)
TINY = ["steps=1", "patch_vox=16,16,16", "batch_size=2", "base_width=4", "max_levels=2"]
TINY += ["device=cpu", "prediction.mirror=false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    return phantom.write_dataset(folder, labelled=6, unlabelled=1, test=2, classes=3)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fold 0, without a test split's sake scored on it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    run_pipeline(Run(folder, Settings(str(data), fold=0).set(TINY)))
    return folder


@pytest.fixture
def copies(data: Path, finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The data set and the run, free to be changed; times of modification are kept."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "data", tmp_path / "run"


def again(data: Path, run: Path) -> Run:
    opened = Run(run, Settings(str(data), fold=0).set(TINY))
    run_pipeline(opened)
    return opened


def reference_voxels(run: Path) -> pd.Series[int]:
    table = pd.read_csv(run / "evaluate" / "metrics.csv").set_index(["case", "class"])
    return table["tp"] + table["fn"]


def times(folder: Path, but: tuple[str, ...] = ()) -> dict[str, int]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in but)
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files}


# --- what is written down -------------------------------------------------------------------------


def test_the_cases_of_the_day_are_written_down(data: Path, finished: Path) -> None:
    content = read_json(finished / "split.json")
    cases = {row["name"]: row for row in content["training"]}
    row = cases["phantom_006"]
    assert row["images"] == ["imagesTr/phantom_006_0000.nii.gz"]
    assert row["label"] is None
    assert row["digests"]["label"] == ""
    labelled = next(row for row in content["validation"])
    assert labelled["label"] == f"labelsTr/{labelled['name']}.nii.gz"
    assert len(labelled["digests"]["images"]) == len(labelled["digests"]["label"]) == 16
    assert content["classes"] == ["background", "bright", "dark"]
    run = Run.open(finished)
    loaded = Snapshot.load(finished / "split.json", data)
    assert run.split == (loaded.training, loaded.validation)
    assert len(run.split[0]) + len(run.split[1]) == 7


def test_digests_follow_content_and_are_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"one")
    digests = FileDigests(tmp_path / "files.json", tmp_path)
    first = digests.of([path])
    digests.save()
    assert digests.of([None]) == digests.of([tmp_path / "gone.nii.gz"]) == ""

    os.utime(path, ns=(1, 1))  # another time, the same content
    assert FileDigests(tmp_path / "files.json", tmp_path).of([path]) == first
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    known = FileDigests(tmp_path / "files.json", tmp_path)
    assert known.of([path]) != first

    # Size and time as they were known: the content is not read.
    state = path.stat()
    table = {"scan.nii.gz": [state.st_size, state.st_mtime_ns, "as it was"]}
    (tmp_path / "files.json").write_text(json.dumps(table), encoding="utf-8")
    unread, read_anew = (
        FileDigests(tmp_path / name, tmp_path).of([path]) for name in ("files.json", "none.json")
    )
    assert unread != read_anew == known.of([path])


def test_a_damaged_split_is_one_message(copies: tuple[Path, Path]) -> None:
    data, run = copies
    (run / "split.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ContextsegError, match="does not list the cases of a run"):
        Run(run, Settings(str(data), fold=0).set(TINY)).split  # noqa: B018


# --- a data set that changed ----------------------------------------------------------------------


def test_a_run_without_a_split_still_opens(copies: tuple[Path, Path]) -> None:
    """As versions before this one left it: its folds are drawn from the data set."""
    data, run = copies
    was = Run.open(run).split
    for name in ("split.json", "files.json"):
        (run / name).unlink()
    before = times(run)
    opened = again(data, run)
    assert opened.changes() == []
    assert [c.name for c in opened.split[1]] == [c.name for c in was[1]]
    assert {name: t for name, t in times(run).items() if name != "files.json"} == before


def test_nothing_is_done_again_where_nothing_changed(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = copies
    again(data, run)
    before = times(run)
    again(data, run)
    assert times(run) == before
    for path in data.rglob("*.nii.gz"):
        os.utime(path, ns=(10**18, 10**18))  # copied without its times; the content is the same
    again(data, run)
    assert times(run, ("files.json",)) == {n: t for n, t in before.items() if n != "files.json"}
    assert "changed" not in capsys.readouterr().err


def test_a_removed_case_does_not_draw_the_folds_again(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = copies
    training, validation = Run.open(run).split
    gone = training[0].name
    (data / f"imagesTr/{gone}_0000.nii.gz").unlink()
    (data / f"labelsTr/{gone}.nii.gz").unlink()
    opened = again(data, run)
    assert [case.name for case in opened.split[1]] == [case.name for case in validation]
    assert f"gone: {gone}" in capsys.readouterr().err
    # Four labelled patients are too few for folds; the run keeps its own.
    settings = Settings(str(data), fold=AUTO_FOLD).set(TINY)
    assert resolve_fold(settings, run).fold == 0
    with pytest.raises(ContextsegError, match="no fold"):
        resolve_fold(Settings(str(data), fold=9))


def test_what_changed_is_named(copies: tuple[Path, Path]) -> None:
    data, run = copies
    cases = [case for case in open_dataset(data).train if case.label]
    image, label = read(*cases[0].images), read_labels(cases[1].label or "")
    write(cases[0].images[0], image.with_array(image.array + 1))
    write(cases[1].label or "", label.with_array(np.minimum(label.array, 1)))
    shutil.copy(cases[2].images[0], data / "imagesTr" / "extra_0000.nii.gz")
    shutil.copy(cases[2].label or "", data / "labelsTr" / "phantom_006.nii.gz")
    statement = json.dumps({"annotated": ["bright"]})
    (data / "labelsTr" / f"{cases[3].name}.json").write_text(statement, encoding="utf-8")
    names = [case.name for case in open_dataset(data).train if case.label]
    splits = [{"train": names[1:], "val": names[:1]}]
    (data / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    opened = Run(run, Settings(str(data), fold=0).set(TINY))
    assert opened.changes() == [
        f"with another image: {cases[0].name}",
        f"with another label: {cases[1].name}",
        "labelled since: phantom_006",
        f"annotated otherwise: {cases[3].name}",
        "new: extra",
        "splits_final.json is another",
    ]


def test_labels_that_a_run_hides_are_no_news(data: Path, tmp_path: Path) -> None:
    names = tuple(case.name for case in open_dataset(data).train if case.label)
    run = Run(tmp_path, Settings(str(data), labelled=names[:2]).set(TINY))
    run.check()
    run.make_plan()
    assert [case.name for case in run.split[0] if case.label] == list(names[:2])
    again = Run.open(tmp_path)
    assert again.changes() == []
    assert [case.name for case in again.split[0] if case.label] == list(names[:2])


def test_a_changed_test_label_is_scored_again(
    copies: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = copies
    predictions = times(run / "predict")
    before = reference_voxels(run)
    path = sorted((data / "labelsTs").glob("*.nii.gz"))[0]
    label = read_labels(path)
    write(path, label.with_array(np.zeros_like(label.array)))
    again(data, run)
    after = reference_voxels(run)
    name = path.name.removesuffix(".nii.gz")
    assert (before[name] > 0).all()
    assert (after[name] == 0).all()
    assert before.drop(name).equals(after.drop(name))
    assert times(run / "predict") == predictions
    said = capsys.readouterr().err
    assert f"evaluate is done again: {name} changed" in said
    assert f"report is done again: {name} changed" in said
    assert [stage["name"] for stage in Run.open(run).stages()][-3:] == [
        "predict",
        "evaluate",
        "report",
    ]


def test_a_changed_or_new_test_scan_is_predicted_again(copies: tuple[Path, Path]) -> None:
    data, run = copies
    first, second = sorted((data / "imagesTs").glob("*.nii.gz"))
    kept = (run / "predict" / second.name.replace("_0000", "")).stat().st_mtime_ns
    image = read(first)
    write(first, image.with_array(image.array[:, ::-1].copy()))
    shutil.copy(first, data / "imagesTs" / "extra_0000.nii.gz")
    was = read_labels(run / "predict" / first.name.replace("_0000", "")).array
    again(data, run)
    now = read_labels(run / "predict" / first.name.replace("_0000", "")).array
    assert not np.array_equal(was, now)
    assert (run / "predict" / "extra.nii.gz").exists()
    assert (run / "predict" / second.name.replace("_0000", "")).stat().st_mtime_ns == kept
    name = first.name.removesuffix("_0000.nii.gz")
    first.unlink()
    (data / "labelsTs" / f"{name}.nii.gz").unlink()
    again(data, run)
    assert name not in set(pd.read_csv(run / "evaluate" / "metrics.csv")["case"])


def test_a_removed_validation_case_is_left_out(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=10, test=0)
    settings = Settings(str(data), fold=0).set(TINY)
    run = Run(tmp_path / "run", settings)
    run_pipeline(run)
    gone, kept = (case.name for case in run.split[1])
    (data / f"imagesTr/{gone}_0000.nii.gz").unlink()
    (data / f"labelsTr/{gone}.nii.gz").unlink()
    outcome = run_pipeline(Run(tmp_path / "run", settings))
    assert list(outcome.metrics["case"]) == [kept]
