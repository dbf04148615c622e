"""What is asked of a comparison, label budgets, and the parts that cells stand on.

The whole is in test_compare.py.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contextseg.cli.options import named
from contextseg.data import phantom
from contextseg.data.layouts import folds, open_dataset
from contextseg.disk import lock_folder, read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.pipeline import train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.studies.compare import parse_grid
from contextseg.studies.compare.cell import (
    Task,
    log_test_evaluation,
    logged_evaluations,
    weights_digest,
)
from contextseg.studies.compare.grid import cells
from contextseg.studies.compare.pools import (
    failure,
    process_environment,
    run_in_processes,
    run_in_turn,
    run_on_cluster,
)
from contextseg.volume import read_labels, write
from grids import TINY, grid
from systems import needs_locks

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "phantoms", labelled=5, unlabelled=1
    )


# --- what is asked --------------------------------------------------------------------------------


def test_words_become_a_grid() -> None:
    made = parse_grid(
        "data",
        "out",
        ["a=supervised, supervised", "b=supervised:lr=0.1;c=supervised"],
        "0,7",
        "5,all",
        "all,1",
    )
    assert made.methods == ("a=supervised", "supervised", "b=supervised:lr=0.1", "c=supervised")
    assert (made.seeds, made.budgets, made.folds) == ((0, 7), (5, None), (-1, 1))
    assert Path(made.dataset).is_absolute()
    assert (parse_grid("d", "o", ["a"]).budgets, parse_grid("d", "o", ["a"]).folds) == ((None,), ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"methods": []}, "nothing to compare"),
        ({"seeds": "0,x"}, "x is no number"),
        ({"seeds": ","}, "nothing is no number"),
        ({"budgets": "-3"}, "write 0,1,2, or all"),
    ],
)
def test_words_that_cannot_be(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ContextsegError, match=message):
        parse_grid("d", "o", **{"methods": ["supervised"], **words})


def test_methods_by_name() -> None:
    """Words, and dicts of settings, give the cells that the same words of a command line give."""
    wide = {"method": "supervised", "patch_vox": (8, 8, 8), "net": "resenc"}
    off = {"method": "colab", "batch_dice": None, "prediction.mirror": False}
    by_name = {"plain": "supervised", "few": "supervised:lr=0.1", "wide": wide, "off": off}
    assert parse_grid("d", "o", by_name).methods == (
        "plain=supervised",
        "few=supervised:lr=0.1",
        "wide=supervised:patch_vox=8,8,8,net=resenc",
        "off=colab:batch_dice=none,prediction.mirror=false",
    )
    assert parse_grid("d", "o", {"a": {"method": "cps"}}).methods == ("a=cps",)
    assert parse_grid("d", "o", "supervised,cps").methods == ("supervised", "cps")
    with pytest.raises(ContextsegError, match="a name with one of the characters"):
        parse_grid("d", "o", {"a=b": "supervised"})
    with pytest.raises(ContextsegError, match="without the method that they are of"):
        parse_grid("d", "o", {"a": {"lr": 0.1}})


def test_names_and_values() -> None:
    assert named("--other", ["a=b=c", "d = e"]) == {"a": "b=c", "d": "e"}
    for words in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ContextsegError, match="write --other NAME=VALUE"):
            named("--other", words)


def test_cells_carry_their_settings(data: Path, tmp_path: Path) -> None:
    wide = "wide=supervised:patch_vox=8,8,8,net=resenc"
    made = cells(
        grid(data, tmp_path, methods=("supervised", wide), seeds=(0, 3, 0), folds=(1,)),
        open_dataset(data),
    )
    assert [cell.name for cell in made] == [
        "supervised-fold1-seed0",
        "wide-fold1-seed0",
        "supervised-fold1-seed3",
        "wide-fold1-seed3",
    ]
    last = made[-1].settings
    assert (last.seed, last.fold, last.method, last.arguments) == (
        3,
        1,
        "supervised",
        {"net": "resenc"},
    )
    assert last.planning["patch_vox"] == (8, 8, 8)
    assert last.training.steps == 4
    assert made[0].settings.planning["patch_vox"] == (16, 16, 16)
    [cell] = cells(grid(data, tmp_path, methods=("supervised:net=resenc",)), open_dataset(data))
    assert (cell.method, cell.folder) == (
        "supervised:net=resenc",
        tmp_path / "runs" / "supervised_net_resenc-seed0",
    )
    assert cell.settings.fold == -1  # there is a labelled test split


def test_methods_that_cannot_be(data: Path, tmp_path: Path) -> None:
    opened = open_dataset(data)
    with pytest.raises(ContextsegError, match="two methods have this name"):
        cells(grid(data, tmp_path, methods=("a b=supervised", "a/b=supervised")), opened)
    with pytest.raises(ContextsegError, match="did you mean supervised"):
        cells(grid(data, tmp_path, methods=("x=supervized",)), opened)
    with pytest.raises(ContextsegError, match="did you mean lr"):
        cells(grid(data, tmp_path, methods=("x=supervised:lrr=1",)), opened)


# --- label budgets --------------------------------------------------------------------------------


def test_budgets_are_nested_grouped_by_patient_and_saved(tmp_path: Path) -> None:
    """Eight labelled scans of six patients: a budget counts patients, and takes all their scans."""
    data = phantom.write_dataset(tmp_path / "data", labelled=8, unlabelled=1, test=1)
    owner = {
        f"phantom_{i:03d}": f"p{max(i - 2, 0)}" for i in range(9)
    }  # the first three are one patient's
    (data / "patients.json").write_text(json.dumps(owner), encoding="utf-8")
    opened = open_dataset(data)
    made = cells(grid(data, tmp_path / "out", budgets=(5, 1, 3, None), folds=(-1, 4)), opened)
    for fold in (-1, 4):
        kept = {
            c.budget: c.settings.labelled
            for c in made
            if c.settings.fold == fold and c.method == "plain"
        }
        assert kept["all"] is None
        assert set(kept["1"] or ()) < set(kept["3"] or ()) < set(kept["5"] or ())
        training = folds(opened, fold)[0]
        for n in ("1", "3", "5"):
            names = set(kept[n] or ())
            patients = {owner[name] for name in names}
            assert len(patients) == int(n)
            assert names == {
                case.name for case in training if case.label and case.patient in patients
            }
    saved = read_json(tmp_path / "out" / "budgets.json")
    assert saved["labelled"]["all"]["3"] == list(
        next(c.settings.labelled or () for c in made if c.budget == "3")
    )
    order = saved["patients"]
    assert sorted(order) == ["p0", "p1", "p2", "p3", "p4", "p5"]
    with pytest.raises(
        ContextsegError, match=r"a budget of 7 labelled patients; the training cases have 6"
    ):
        cells(grid(data, tmp_path / "out", budgets=(7,), folds=(-1,)), opened)
    more = cells(grid(data, tmp_path / "out", budgets=(4,), folds=(-1,)), opened)
    assert {owner[name] for name in more[0].settings.labelled or ()} == set(order[:4])
    assert set(read_json(tmp_path / "out" / "budgets.json")["labelled"]["all"]) == {
        "1",
        "3",
        "4",
        "5",
    }


def test_budgets_of_another_draw_are_refused(data: Path, tmp_path: Path) -> None:
    opened = open_dataset(data)
    first, other = (
        cells(grid(data, tmp_path / str(draw), budgets=(2,), draw=draw), opened)[
            0
        ].settings.labelled
        for draw in (0, 1)
    )
    assert first != other
    with pytest.raises(ContextsegError, match="drawn by another seed"):
        cells(grid(data, tmp_path / "0", budgets=(2,), draw=1), opened)


def test_hidden_labels_change_nothing(data: Path, tmp_path: Path) -> None:
    """Change the labels that are hidden: crops, intensities, plan and every weight stay as they
    are.
    """
    keep = ("phantom_001", "phantom_003")
    scans = shutil.copytree(data, tmp_path / "scans")
    table = read_json(scans / "dataset.json")
    table["channel_names"] = {"0": "CT"}  # whose plan takes its intensities from under the labels
    (scans / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    other = shutil.copytree(scans, tmp_path / "other")
    for i in (0, 2, 4):
        path = other / "labelsTr" / f"phantom_{i:03d}.nii.gz"
        label = read_labels(path)
        write(path, label.with_array(1 - label.array))
    settings = [word for word in TINY if not word.startswith("patch_vox")]
    weights, plans, whole = [], [], []
    for folder in (scans, other):
        run = Run(
            tmp_path / f"few-{folder.name}",
            replace(Settings(str(folder)).set(settings), labelled=keep),
        )
        assert [case.name for case in run.split[0] if case.label] == list(keep)
        assert len(run.split[0]) == 6
        weights.append(weights_digest(train_run(run)))
        plans.append(run.plan)
        assert {c.record.name for c in run.cached(run.split[0]) if c.label is not None} == set(keep)
        every = Run(tmp_path / f"all-{folder.name}", Settings(str(folder)).set(settings))
        every.check()
        every.make_plan()
        whole.append(every.plan)
    assert weights[0] == weights[1]
    assert plans[0] == plans[1]
    assert whole[0] != whole[1]  # those that are not hidden do matter


def test_hidden_labels_leave_folds_as_they_are(data: Path, tmp_path: Path) -> None:
    settings = Settings(str(data), fold=1).set(TINY)
    training, validation = Run(tmp_path / "a", settings).split
    few = replace(settings, labelled=(next(case.name for case in training if case.label),))
    again = Run(tmp_path / "b", few)
    again.make_plan()
    assert again.split[1] == validation
    assert [case.name for case in again.split[0]] == [case.name for case in training]
    assert Settings.from_json(few.to_json()).labelled == few.labelled
    assert Run.open(tmp_path / "b").settings.labelled == few.labelled
    with pytest.raises(ContextsegError, match="no labelled training cases"):
        _ = Run(tmp_path / "c", replace(settings, labelled=(validation[0].name,))).split
    with pytest.raises(ContextsegError, match=r"labelled was \['phantom"):
        Run(tmp_path / "b", settings)


# --- the lock -------------------------------------------------------------------------------------


def test_the_log_by_hand(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert logged_evaluations(log) == []
    log_test_evaluation(log, "a", "1", 5)
    log_test_evaluation(log, "a", "1", 5)
    log_test_evaluation(log, "b", "2", 5)
    assert [(row["run"], row["weights"], row["cases"]) for row in logged_evaluations(log)] == [
        ("a", "1", 5),
        ("b", "2", 5),
    ]
    with pytest.raises(
        ContextsegError, match="a was evaluated on the test split with other weights"
    ):
        log_test_evaluation(log, "a", "2", 5)
    log.write_text("{", encoding="utf-8")
    with pytest.raises(ContextsegError, match="not valid JSON"):
        log_test_evaluation(log, "c", "3", 5)


@needs_locks
def test_two_at_once_in_one_folder(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(ContextsegError, match="another process works in this folder"),
        lock_folder(tmp_path),
    ):
        pass
    with lock_folder(tmp_path):
        pass


# --- where cells run ------------------------------------------------------------------------------


def test_shares_of_cores_and_gpus() -> None:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    assert process_environment(0, 1, []) == {
        "OMP_NUM_THREADS": str(cores),
        "MKL_NUM_THREADS": str(cores),
    }
    assert process_environment(0, 100, [])["OMP_NUM_THREADS"] == "1"
    assert [
        process_environment(i, 4, ["2", "5"]).get("CUDA_VISIBLE_DEVICES") for i in range(4)
    ] == [
        "2",
        "5",
        "2",
        "5",
    ]
    assert "CUDA_VISIBLE_DEVICES" not in process_environment(1, 4, ["0"])


def test_what_is_refused_is_not_begun(tmp_path: Path) -> None:
    tasks = [
        Task("a", str(tmp_path / "a"), Settings("nowhere").to_json(), str(tmp_path / "log"), True)
    ]
    assert "the folder does not exist" in run_in_turn(tasks)["a"]
    assert "the folder does not exist" in run_in_processes(tasks, 1)["a"]
    assert vars(Task(**json.loads(json.dumps(vars(tasks[0]))))) == vars(tasks[0])


def test_why_a_process_ended(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert failure(tmp_path, 0) == ""
    assert "killed by signal 9" in failure(tmp_path, -9)
    assert failure(tmp_path, 3) == f"exit code 3 ({log})"
    error = ContextsegError("x", "it is broken: contextseg: ValueError: odd", "mend it")
    write_json(tmp_path / "failed.json", vars(error))
    assert failure(tmp_path, 1) == f"{error} ({log})"


def test_a_cluster_needs_submitit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ContextsegError, match=r"pip install 'contextseg\[cluster\]'"):
        run_on_cluster([], tmp_path, "slurm", 1, {}, lambda *_: None)
