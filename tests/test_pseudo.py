"""Pseudo labels: the vote by hand; the recipe with models that need no training; a whole run."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from contextseg.batch import IGNORE, Batch
from contextseg.data import phantom
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS, Method
from contextseg.methods.consensus import (
    HUMAN,
    NOBODY,
    Known,
    agreement,
    learnt,
    majority,
    over_classes,
)
from contextseg.methods.cps import CPS
from contextseg.methods.pseudo import QC, pseudo
from contextseg.metrics import evaluate_case
from contextseg.pipeline import train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read, read_labels, write

torch.set_num_threads(1)
SMALL = [
    "steps=2",
    "patch_vox=16,16,16",
    "base_width=4",
    "batch_size=2",
    "device=cpu",
    "prediction.mirror=false",
]
BRIGHT, DARK = 1, 2


# --- the vote -------------------------------------------------------------------------------------


def test_the_majority_wins_and_probability_breaks_ties() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.normal(size=(4, 5, 2000)) * 2)
    votes, consensus = majority(z)
    p = z.softmax(1).mean(0).numpy()
    ties = 0
    for v in range(2000):
        count = np.bincount(z[:, :, v].argmax(1), minlength=5)
        most = np.flatnonzero(count == count.max())
        ties += len(most) > 1
        assert consensus[v] == most[p[most, v].argmax()]
    assert ties > 200
    assert torch.equal(votes.long(), z.argmax(1))


def test_agreement_is_the_mean_dice_of_each_class() -> None:
    rng = np.random.default_rng(1)
    votes, consensus = rng.integers(0, 3, (3, 6, 7, 8)), rng.integers(0, 3, (6, 7, 8))
    by_class = {"one": [1], "two": [2], "three": [3]}
    rows = [evaluate_case(f, consensus, (1.0,) * 3, by_class) for f in votes]
    expected = [np.mean([row[k]["dsc"] for row in rows]) for k in range(2)]
    assert agreement(votes.reshape(3, -1), consensus.ravel(), 4)[:2] == pytest.approx(expected)
    assert np.isnan(
        agreement(votes.reshape(3, -1), consensus.ravel(), 4)[2]
    )  # no model sees class 3
    same = np.repeat(consensus.reshape(1, -1), 4, 0)
    assert agreement(same, consensus.ravel(), 3).tolist() == [1.0, 1.0]


def test_a_class_that_no_model_sees_makes_no_case_certain() -> None:
    nothing = np.zeros((3, 9), int)
    assert np.isnan(over_classes(agreement(nothing, nothing[0], 4)))
    assert np.isnan(over_classes(agreement(nothing[:, :0], nothing[0, :0], 4)))
    ball = np.array([[1] * 9, [1] * 9, [1] * 8 + [2]])
    dice = agreement(ball, np.ones(9, int), 4)
    assert dice[0] == pytest.approx((1 + 1 + 16 / 17) / 3)
    assert dice[1] == pytest.approx(2 / 3)  # two agree that it is not there, one sees it
    assert over_classes(dice) == pytest.approx(
        (dice[0] + 2 / 3) / 2
    )  # class 3 counts neither as 1 nor as 0
    one_says_so = agreement(ball, np.array([1] * 8 + [2]), 4)
    assert one_says_so[1] == pytest.approx(1 / 3)


def human(label: list[int], annotated: Sequence[bool]) -> Known:
    return Known.from_annotation(np.array(label, np.int16), annotated)


@pytest.mark.parametrize(("threshold", "joins"), [(0.9, True), (0.9001, False)])
def test_a_case_joins_as_a_whole_or_not_at_all(threshold: float, joins: bool) -> None:
    before = human([IGNORE] * 4, [True, False, False, False])
    votes = np.array([[0, 1, 2, 2], [0, 1, 2, 1]])
    after = learnt(before, votes, votes[0], np.array([0.8, 1.0, np.nan]), threshold, "cases", 3)
    assert after.label.tolist() == ([0, 1, 2, 2] if joins else [IGNORE] * 4)
    assert after.provenance.tolist() == [HUMAN + 3 if joins else NOBODY] * 4
    assert after.annotated.tolist() == [
        True,
        joins,
        joins,
        False,
    ]  # nobody saw class 3: it stays unknown
    assert after.certainty.tolist() == [255, 255, 255, 128]
    assert after.left.tolist() == (
        [True] + [not joins] * 3
    )  # class 3 may still hide in the background
    unseen = learnt(before, votes * 0, votes[0] * 0, np.full(3, np.nan), threshold, "cases", 3)
    assert unseen.label.tolist() == [IGNORE] * 4


def test_certain_classes_and_voxels_are_kept() -> None:
    """Class 1 is certain, class 2 is not; the models differ on voxel 3."""
    before = human([IGNORE] * 5, [True, False, False])
    votes = np.array([[0, 1, 2, 1, 0], [0, 1, 2, 0, 0]])
    after = learnt(before, votes, votes[0], np.array([0.95, 0.5]), 0.9, "voxels", 1)
    assert after.label.tolist() == [0, 1, IGNORE, IGNORE, 0]
    assert after.annotated.tolist() == [True, True, False]  # 0 is "background or class 2"
    assert after.provenance.tolist() == [2, 2, 0, 0, 2]
    assert after.left.tolist() == [True, False, True, True, True]
    nothing = learnt(before, votes, votes[0], np.array([0.85, 0.5]), 0.9, "voxels", 1)
    assert nothing.label.tolist() == [IGNORE] * 5


def test_what_a_person_said_is_kept() -> None:
    """Class 2 is not annotated: at the voxels labelled 0, and only there and at the last, something
    is left.
    """
    before = human([0, 0, 1, 0, IGNORE], [True, True, False])
    assert before.left.tolist() == [True, True, False, True, True]
    votes = np.array([[0, 2, 1, 2, 1], [0, 2, 1, 0, 1]])
    after = learnt(before, votes, votes[0], np.array([1.0, 0.95]), 0.9, "voxels", 1)
    assert after.label.tolist() == [
        0,
        2,
        1,
        IGNORE,
        1,
    ]  # 0 would now deny class 2, on which they differ
    assert after.provenance.tolist() == [2, 2, HUMAN, NOBODY, 2]
    assert after.certainty[2] == 255
    later = learnt(after, votes[:1], votes[0], np.array([np.nan, 1.0]), 0.9, "voxels", 2)
    assert later.label.tolist() == [0, 2, 1, 2, 1]
    assert later.provenance.tolist() == [2, 2, HUMAN, 3, 2]


# --- the recipe, with models that need no training ------------------------------------------------


class Above(Method):
    """Finds what is brighter than `bright` and darker than `dark` in a normalised image."""

    def __init__(self, bright: float, dark: float = -9.0, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.bright, self.dark = (
            nn.Parameter(torch.tensor(bright)),
            nn.Parameter(torch.tensor(dark)),
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"seg": 0 * self.bright}

    def predict(self, image: Tensor) -> Tensor:
        assert not self.training
        z = [torch.zeros_like(image), 9 * (image - self.bright), 9 * (self.dark - image)]
        return torch.cat(z[: self.classes], 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled cases, of which one says nothing of the dark ball, and two without a label.

    It is very dark.
    """
    folder = phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "d", labelled=2, unlabelled=2, test=1, classes=3
    )
    for i in range(4):
        image = folder / "imagesTr" / f"phantom_{i:03d}_0000.nii.gz"
        volume = read(image)
        write(image, volume.with_array(volume.array - 300 * (truth(i) == DARK)))
    path = folder / "labelsTr" / "phantom_001.nii.gz"
    volume = read_labels(path)
    write(path, volume.with_array(np.where(volume.array == DARK, 0, volume.array)))
    write_json(folder / "labelsTr" / "annotated.json", {"phantom_001": ["bright"]})
    return folder


class Recorder:
    """Stands for `Run.train`: hands out the models it was given, and notes what each was to learn
    from.
    """

    def __init__(self, models: Sequence[Method]) -> None:
        self.models, self.calls = list(models), []

    def __call__(
        self,
        method: Method,
        labels: Mapping[str, Path] = {},
        annotated: Mapping[str, Any] = {},
        **_: Any,
    ) -> Method:
        self.calls.append(
            (method.unlabelled, {n: np.load(p) for n, p in labels.items()}, dict(annotated))
        )
        return self.models[len(self.calls) - 1].eval()


def prepared(
    data: Path, folder: Path, models: Sequence[Method], *words: str, fold: int = -1
) -> tuple[Run, Recorder]:
    run = Run(folder, Settings(str(data), "pseudo", fold=fold).set([*SMALL, *words]))
    trained = Recorder(models)
    run.train = trained  # type: ignore[method-assign, assignment]
    return run, trained


def truth(i: int) -> np.ndarray:
    return phantom.patient(i, (20, 24, 24), classes=3)[1]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_certain_cases_join_and_unknown_classes_are_filled(data: Path, tmp_path: Path) -> None:
    models = [Above(2.0, -3.0), Above(2.05, -3.1), Above(2.0, -3.0)]
    run, trained = prepared(data, tmp_path, models, "threshold=0.8")
    assert train_run(run) is models[2]
    first, second, last = trained.calls
    assert first[0] == second[0] == 1  # half of a batch of two
    assert first[1] == {}
    unlabelled, labels, annotated = last
    assert unlabelled == 0  # there is none left
    assert sorted(labels) == ["phantom_001", "phantom_002", "phantom_003"]
    assert all(row == [True, True, True] for row in annotated.values())
    cached = {case.record.name: case for case in run.cached(run.split[0])}
    for i, name in enumerate(sorted(cached)):
        if name not in labels:
            continue
        box = tuple(slice(a, b) for a, b in cached[name].record.box)
        assert dice(labels[name] == BRIGHT, truth(i)[box] == BRIGHT) > 0.8
    own = np.array(cached["phantom_001"].label)
    filled = labels["phantom_001"]
    assert np.array_equal(filled[own > 0], own[own > 0])
    assert set(np.unique(filled[own == 0])) == {0, DARK}  # bright is annotated, and is not there
    stage = next(tmp_path.glob("pseudo-*"))
    by = np.load(stage / "provenance" / "phantom_001.npy")
    assert by.dtype == np.uint8
    assert np.array_equal(by, np.where(own > 0, HUMAN, HUMAN + 1))
    assert set(np.unique(np.load(stage / "certainty" / "phantom_002.npy"))) == {128, 255}
    shown = read_labels(stage / "scans" / "phantom_002.nii.gz")
    scan = read(data / "imagesTr" / "phantom_002_0000.nii.gz")
    assert shown.same_grid(scan)
    assert dice(shown.array == BRIGHT, truth(2) == BRIGHT) > 0.8


def test_the_list_puts_the_worst_first(data: Path, tmp_path: Path) -> None:
    models = [Above(2.0), Above(2.8), Above(2.0)]  # the dark ball is seen by none
    run, trained = prepared(data, tmp_path, models, "threshold=0.95")
    assert train_run(run) is models[0]  # nothing was certain: nothing is retrained
    assert len(trained.calls) == 2
    table = pd.read_csv(tmp_path / QC)
    assert list(table) == ["case", "round", "class", "certainty", "kept", "voxels", "mm3"]
    order = table.certainty.fillna(-1).tolist()
    assert order == sorted(order)
    unseen = table[table.certainty.isna()]
    assert set(unseen["class"]) == {
        "dark",
        "all",
    }  # of phantom_001 nothing but the dark ball was open
    assert (table.kept == 0).all()
    assert set(table[table.case == "phantom_001"]["class"]) == {"dark", "all"}
    row = table[(table.case == "phantom_002") & (table["class"] == "bright")].iloc[0]
    stage = next(tmp_path.glob("pseudo-*"))
    voxels = int((read_labels(stage / "scans" / "phantom_002.nii.gz").array == BRIGHT).sum())
    assert (row.voxels, row.mm3) == (voxels, 2.0 * voxels)
    case = run.cached([c for c in run.split[0] if c.name == "phantom_002"])[0]
    image = run.image(case)[0]
    middle = (
        image > 2.4
    )  # of a tie the likelier: where sigmoid(9 (x - 2)) + sigmoid(9 (x - 2.8)) is above 1
    expected = np.mean([dice(image > at, middle) for at in (2.0, 2.8)])
    assert row.certainty == pytest.approx(expected, abs=1e-4)


def test_voxels_are_kept_where_cases_are_not(data: Path, tmp_path: Path) -> None:
    models = [Above(2.0, -3.0), Above(2.05, -6.5), Above(2.0)]
    run, trained = prepared(data, tmp_path, models, "threshold=0.9", "keep=voxels")
    train_run(run)
    unlabelled, labels, annotated = trained.calls[2]
    assert sorted(labels) == [
        "phantom_002",
        "phantom_003",
    ]  # of phantom_001 the dark class alone is open
    assert annotated["phantom_002"] == [True, True, False]
    assert set(np.unique(labels["phantom_002"])) == {IGNORE, 0, BRIGHT}
    assert unlabelled == 0
    stage = next(tmp_path.glob("pseudo-*"))
    certain = np.load(stage / "certainty" / "phantom_002.npy") == 255
    assert not (labels["phantom_002"][~certain] >= 0).any()


def test_rounds_go_on_until_nothing_is_new(data: Path, tmp_path: Path) -> None:
    """Round 1 keeps phantom_001 alone; in round 2 the models have learnt enough for the others;
    then all is known.
    """
    models = [Above(at, -3.0) for at in (2.0, 3.4, 2.0, 2.05, 2.0)]
    run, trained = prepared(data, tmp_path, models, "threshold=0.9", "rounds=5")
    assert train_run(run) is models[4]
    assert [sorted(labels) for _, labels, _ in trained.calls[2:]] == [["phantom_001"]] * 2 + [
        ["phantom_001", "phantom_002", "phantom_003"]
    ]
    assert [unlabelled for unlabelled, *_ in trained.calls] == [1, 1, 1, 1, 0]
    table = pd.read_csv(tmp_path / QC)
    assert table.groupby("case")["round"].unique().map(list).to_dict() == {
        "phantom_001": [1],
        "phantom_002": [2],
        "phantom_003": [2],
    }
    by = [
        set(np.unique(np.load(p)))
        for p in sorted(tmp_path.glob("pseudo-*/provenance/phantom_00[13].npy"))
    ]
    assert by == [{HUMAN, HUMAN + 1}, {NOBODY}, {HUMAN + 2}]


def test_a_killed_vote_goes_on_and_a_finished_run_is_only_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [Above(2.0, -3.0), Above(2.05, -3.1), Above(2.0, -3.0)]
    run, _ = prepared(data, tmp_path, models, "threshold=0.8")
    seen: list[str] = []
    original = Run.logits

    def killed(self: Run, case: Any, method: Method) -> Any:
        seen.append(case.record.name)
        if case.record.name == "phantom_003" and seen.count("phantom_003") == 1:
            raise KeyboardInterrupt
        return original(self, case, method)

    monkeypatch.setattr(Run, "logits", killed)
    with pytest.raises(KeyboardInterrupt):
        train_run(run)
    again, trained = prepared(data, tmp_path, models, "threshold=0.8")
    assert train_run(again) is models[2]
    assert seen == ["phantom_001"] * 2 + ["phantom_002"] * 2 + ["phantom_003"] * 3
    assert len(trained.calls) == 3
    written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    away = data.with_name("away")
    shutil.move(data, away)  # a finished run needs its data no more
    try:
        opened, trained = prepared(data, tmp_path, models, "threshold=0.8")
        assert opened.finished() is models[2]
    finally:
        shutil.move(away, data)
    assert len(seen) == 7
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == written


@pytest.mark.parametrize(("student", "deployed"), [(2.2, 2), (9.0, 0)])
def test_without_a_gain_on_validation_cases_nothing_is_replaced(
    tmp_path: Path, student: float, deployed: int
) -> None:
    folder = phantom.write_dataset(tmp_path / "d", labelled=5, unlabelled=1, test=0)
    models = [Above(at, classes=2) for at in (3.4, 3.45, student)]
    run, _ = prepared(folder, tmp_path / "run", models, "threshold=0.5", fold=0)
    assert train_run(run) is models[deployed]
    scores = [
        read_json(path)["dice"] for path in sorted((tmp_path / "run").glob("validate-*/dice.json"))
    ]
    validated = run.cached(run.split[1])
    for score, at in zip(scores, (3.4, student)):
        by_hand = [dice(run.image(case)[0] > at, np.array(case.label) == 1) for case in validated]
        assert score == pytest.approx(np.mean(by_hand), abs=1e-6)


# --- a whole run ----------------------------------------------------------------------------------


def test_a_whole_run_in_slices(data: Path, tmp_path: Path) -> None:
    """Networks of two steps see something of everything somewhere, so with this threshold something
    is learnt.
    """
    flat = ["dims=2", "patch_vox=16,16", "threshold=0.0001", "keep=voxels", "cutmix=true"]
    run = Run(tmp_path, Settings(str(data), "pseudo").set([*SMALL, *flat]))
    train_run(run)
    stages = [stage["name"] for stage in run.stages()]
    assert stages[3:] == ["survey-1", "train-1", "train-2", "pseudo-1", "train-3"]
    assert (pd.read_csv(tmp_path / QC).kept > 0).any()
    weights = [
        torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("train-*/model.pt"))
    ]
    assert any(
        not torch.equal(weights[0][n], weights[1][n]) for n in weights[0]
    )  # they began elsewhere
    again = Run.open(tmp_path).finished()
    assert all(torch.equal(again.state_dict()[n], weights[-1][n]) for n in weights[-1])


def test_every_setting_of_cps_can_be_given() -> None:
    known = inspect.signature(pseudo).parameters
    for name, setting in inspect.signature(CPS).parameters.items():
        assert name == "plan" or known[name].default == setting.default, name


def test_what_cannot_be_is_named(data: Path, tmp_path: Path) -> None:
    wrong = {
        "models=1": "agrees with itself",
        "threshold=1.5": "give a share",
        "rounds=0": "1 or more",
        "keep=case": "cases",
        "base=cpss": "cps",
        "base=context": "one training",
    }
    for i, (word, message) in enumerate(wrong.items()):
        run, _ = prepared(data, tmp_path / str(i), [], word)
        run.use_plan(_any_plan())
        with pytest.raises(ContextsegError, match=message):
            METHODS["pseudo"](run, **run.settings.arguments)
    run, _ = prepared(data, tmp_path / "s", [], "base=supervised", "weight=0.5")
    run.use_plan(_any_plan())
    with pytest.raises(ContextsegError, match="supervised has no such setting"):
        METHODS["pseudo"](run, **run.settings.arguments)
    full = phantom.write_dataset(tmp_path / "full", labelled=2, test=0)
    run, _ = prepared(full, tmp_path / "f", [])
    with pytest.raises(ContextsegError, match="all is labelled"):
        train_run(run)


def _any_plan() -> Any:
    import laws

    return laws.plan()
