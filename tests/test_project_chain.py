"""The chain without a person: budgets, arms, and that nothing scored is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import contextseg as cs
from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.projects import LabelProject
from contextseg.studies.simulate import ARMS, ChainStudy, chain_means, chain_tests
from contextseg.volume import read_labels, write

TINY = {
    "patch_vox": (16, 16, 16),
    "batch_size": 2,
    "base_width": 4,
    "device": "cpu",
    "prediction.mirror": False,
    "step": 1,
}
CHAIN = {"chain": True, "steps": 2, "seeds": (0,), "verbose": False, **TINY}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("chain") / "data", labelled=5, test=2)


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "study"
    arms = ("all", "whole-cases", "chain", "chain-unlabelled")
    cs.simulate(data, folder, arms=arms, budgets=(0.3, 0.6), slices=2, **CHAIN)
    return folder


def holding(data: Path) -> int:
    labels = (data / "labelsTr").glob("*.nii.gz")
    return sum(int(read_labels(path).array.any((1, 2)).sum()) for path in labels)


def test_no_arm_spends_more_than_its_budget(study: Path, data: Path) -> None:
    table = pd.read_csv(study / "chain.csv")
    every = holding(data)
    assert json.loads((study / "study.json").read_text(encoding="utf-8"))["slices"] == every
    assert (table["slices"] <= table["budget"] * every + 1e-9).all()
    full = table[table["arm"] == "all"]
    assert set(full["slices"]) == {every}
    assert set(full["drawn_cases"]) == {5}
    assert (table["minutes"] == table["slices"]).all()
    assert set(table["case"]) == {"phantom_005", "phantom_006"}
    for name, part in table.groupby("arm"):
        assert len(part) == 2 * (1 if name == "all" else 2)


def test_what_was_labelled_is_right_and_what_was_not_is_not_known(study: Path, data: Path) -> None:
    draws = json.loads((study / "cells/chain-0/draws-2.json").read_text(encoding="utf-8"))
    before = json.loads((study / "cells/chain-0/draws-1.json").read_text(encoding="utf-8"))
    assert set(before) < set(draws)
    for name, slices in draws.items():
        truth = read_labels(data / "labelsTr" / f"{name}.nii.gz").array
        drawn = read_labels(study / f"cells/chain-0/work/drawn/{name}.nii.gz").array
        assert np.array_equal(drawn[slices], truth[slices])
        assert not np.delete(drawn, slices, 0).any()


def test_no_locked_case_is_in_any_round_of_any_arm(study: Path) -> None:
    folders = sorted(study.glob("cells/*/work/rounds/*/data"))
    assert len(folders) == 7
    for folder in folders:
        learned = open_dataset(folder)
        names = {case.name for case in (*learned.train, *learned.test)}
        assert names
        assert not names & {"phantom_005", "phantom_006"}
        unlabelled = [case for case in learned.train if not case.label]
        arm = ARMS[folder.parents[3].name.rsplit("-", 1)[0]]
        assert arm.unlabelled or not unlabelled
    scans = open_dataset(study / "scans")
    assert all(case.label is None for case in (*scans.train, *scans.test))


def test_the_worst_by_expected_dice_come_next(study: Path) -> None:
    pool = pd.read_csv(study / "cells/chain-0/pool.csv", dtype={"case": str})
    before = json.loads((study / "cells/chain-0/draws-1.json").read_text(encoding="utf-8"))
    after = json.loads((study / "cells/chain-0/draws-2.json").read_text(encoding="utf-8"))
    new = [name for name in after if name not in before]
    worst = pool.sort_values(["expected_dice", "case"])["case"].tolist()
    assert new == worst[: len(new)]
    assert not set(pool["case"]) & set(before)


def test_a_study_goes_on_where_it_was_stopped(
    study: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (study / "chain.csv").read_text(encoding="utf-8")
    (study / "chain.csv").unlink()
    monkeypatch.setattr("contextseg.projects.LabelProject.train", None)  # nothing is trained again
    arms = ("all", "whole-cases", "chain", "chain-unlabelled")
    cs.simulate(data, study, arms=arms, budgets=(0.3, 0.6), slices=2, **CHAIN)
    assert (study / "chain.csv").read_text(encoding="utf-8") == text
    page = (study / "summary.md").read_text(encoding="utf-8")
    assert "Goal: within 0.02 of full supervision" in page
    assert "chain.svg" in page
    with pytest.raises(cs.ContextsegError, match="another study"):
        cs.simulate(data, study, arms=arms, budgets=(0.3, 0.6), slices=3, **CHAIN)


def test_a_cell_that_was_stopped_in_its_second_round_gives_the_same(
    study: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped when the slices of the second round are drawn, and before it is trained."""
    train, calls = LabelProject.train, []

    def stopping(project: LabelProject, **words: object) -> object:
        calls.append(words)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(project, **words)  # type: ignore[arg-type]

    wish = {**CHAIN, "arms": ("chain",), "budgets": (0.3, 0.6), "slices": 2}
    with monkeypatch.context() as patched:
        patched.setattr(LabelProject, "train", stopping)
        with pytest.raises(KeyboardInterrupt):
            cs.simulate(data, tmp_path, **wish)
    cs.simulate(data, tmp_path, **wish)
    for name in ("rows.csv", "pool.csv", "draws-2.json"):
        whole = (study / "cells/chain-0" / name).read_text(encoding="utf-8")
        assert (tmp_path / "cells/chain-0" / name).read_text(encoding="utf-8") == whole


def test_a_budget_beyond_all_cases_goes_into_more_slices(data: Path, tmp_path: Path) -> None:
    cs.simulate(data, tmp_path, arms=["chain-random"], budgets="0.9", slices=2, **CHAIN)
    draws = json.loads((tmp_path / "cells/chain-random-0/draws-1.json").read_text(encoding="utf-8"))
    assert len(draws) == 5
    assert sum(map(len, draws.values())) == int(0.9 * holding(data))
    assert all(len(slices) == len(set(slices)) > 2 for slices in draws.values())


def test_means_and_tests_are_those_of_the_patients() -> None:
    rows = []
    gains = {"p0": 0.1, "p1": 0.2, "p2": 0.3}
    for seed in (0, 1):
        for case, gain in gains.items():
            row = {"seed": seed, "case": case, "patient": case, "class": "x", "status": "both"}
            row |= {"nsd": 0.5, "slices": 4, "share": 0.1, "drawn_cases": 2, "budget": 0.1}
            rows.append({**row, "arm": "chain", "dsc": 0.5 + gain + seed / 10})
            rows.append({**row, "arm": "chain-random", "dsc": 0.5 + seed / 10})
    table = pd.DataFrame(rows)
    means = chain_means(table).set_index("arm")
    assert means.loc["chain", "dsc"] == pytest.approx(0.75)
    assert means.loc["chain", "sd"] == pytest.approx(0.1 / np.sqrt(2))
    [test] = chain_tests(table).to_dict("records")
    assert test["other"] == "chain-random"
    assert test["difference"] == pytest.approx(0.2)
    assert test["p"] == test["p_holm"] == 0.25  # three patients, all better
    assert test["n"] == 3


def test_wrong_studies_are_told(data: Path, tmp_path: Path) -> None:
    for wrong, match in (
        ({"arms": "chains"}, "did you mean chain"),
        ({"budgets": "0.2,0.1"}, "not shares"),
        ({"budgets": "0.001", "arms": "chain"}, "too small for one case"),
        ({"ways": "nearest"}, "no use with --chain"),
        ({"stesp": 3}, "did you mean"),
    ):
        with pytest.raises(cs.ContextsegError, match=match):
            cs.simulate(data, tmp_path / "out", **{**CHAIN, **wrong})
    with pytest.raises(cs.ContextsegError, match="with --chain alone"):
        cs.simulate(data, tmp_path / "out", arms="chain", verbose=False)
    partial = phantom.write_dataset(tmp_path / "data", labelled=2, test=1)
    table = json.loads((partial / "dataset.json").read_text(encoding="utf-8"))
    table["labels"]["ignore"] = 2
    (partial / "dataset.json").write_text(json.dumps(table))
    path = next((partial / "labelsTr").glob("*.nii.gz"))
    label = read_labels(path)
    label.array[0] = 2
    write(path, label)
    with pytest.raises(cs.ContextsegError, match="the truth"):
        cs.simulate(partial, tmp_path / "other", **CHAIN)
    assert ChainStudy(str(data)).chosen == tuple(ARMS)
