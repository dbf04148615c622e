"""The two stages: a reference run predicts slices of a scan, and the best of them fill the scan."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import laws
from contextseg import api
from contextseg.batch import Batch
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.data.layouts import Case
from contextseg.data.plan import PLACE, Channel, Plan
from contextseg.errors import ContextsegError
from contextseg.interop.itksnap import read_descriptions
from contextseg.methods import CMU, Method, Supervised
from contextseg.methods.stcn import STCNMethod
from contextseg.pipeline import open_propagation_model, train_run
from contextseg.predictor import Member, Predictor
from contextseg.propagation import (
    SELECTION_RULES,
    PropagationModel,
    PropagationResult,
    Session,
    open_completion,
    select_slices,
)
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.twostage.reference import SliceReference
from contextseg.twostage.stages import (
    SELECTIONS,
    ClassOutcome,
    TwoStageResult,
    TwoStageSettings,
    as_published,
    segment_cases,
    segment_folder,
    segment_two_stage,
    write_class_outcomes,
)
from contextseg.volume import Volume, read, read_labels, write

torch.set_num_threads(1)
STILL = PredictionSettings(mirror=False)
SIXTH = TwoStageSettings(every=6)
SLICES = 25  # of which every sixth are 0, 6, 12, 18, 24, from either end
DISCS: dict[int, tuple[int, int]] = {
    1: (4, 20),
    2: (8, 10),
}  # class: first slice, and the one after its last


class Levels(Method):
    """Knows a class by its brightness, exactly; remembers how many slices it was shown."""

    def __init__(self, plan: Plan, head: bool = False) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([10.0, 20, 30]))
        self.shown = 0
        if head:
            torch.manual_seed(0)
            self.head = CMU(plan)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        raise AssertionError("it is not trained")

    def predict(self, image: Tensor) -> Tensor:
        self.shown += len(image)
        return -((image[:, :1] - self.levels.view(1, 3, *[1] * (image.ndim - 2))) ** 2)


def plan(
    dims: int, orientation: str = "SAR", mm: tuple[float, float, float] = (3.0, 1.0, 2.0)
) -> Plan:
    base = laws.plan(dims)
    patch = (32, 32) if dims == 2 else (16, 32, 32)
    channels = (Channel("MR", "none"),)
    return replace(base, channels=channels, orientation=orientation, spacing_mm=mm, patch_vox=patch)


def reference(dims: int = 2, head: bool = False) -> Member:
    return Member(Levels(plan(dims), head).eval(), plan(dims))


def follower(
    orientation: str = "SAR", mm: tuple[float, float, float] = (3.0, 2.0, 2.0)
) -> PropagationModel:
    torch.manual_seed(0)
    own = replace(plan(2, orientation, mm), channels=(Channel("MR", "zscore"),))
    return PropagationModel(STCNMethod(own).eval().net, own)


def guided() -> Member:
    own = plan(2)
    return Member(STCNMethod(own).eval(), own)


def scan(discs: dict[int, tuple[int, int]] = DISCS) -> tuple[Volume, np.ndarray]:
    """Voxels of 3 x 1 x 2 mm, from foot to head: air 0, the body 10, class 1 20, class 2 30; and
    the truth.

    Each class is largest in the slice in its middle.
    """
    label = np.zeros((SLICES, 24, 20), np.uint8)
    for k, (first, after) in discs.items():
        label[first:after, 4 : 8 + 2 * k, 4 + 6 * (k - 1) : 9 + 6 * (k - 1)] = k
        label[(first + after) // 2, 8 + 2 * k, 4 + 6 * (k - 1)] = k  # largest in the middle
    array = np.zeros(label.shape, np.float32)
    array[1:, 2:22, 2:18] = 10  # the first slice holds air alone
    array[label > 0] = 10 + 10.0 * label[label > 0]
    affine = np.array([[0.0, 0, 2, -10], [0, 1, 0, 5], [3, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(array[None], affine), label


# --- the first stage ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), (PLACE,)], ids=["image", "and its place"])
def test_a_slice_alone_is_what_it_is_in_the_whole_scan(more: tuple[Channel, ...]) -> None:
    """With other pixels, at the scan's own distance of slices: a slice alone is as in the scan."""
    own = replace(plan(2, mm=(3.0, 1.5, 1.5)), channels=(Channel("MR", "zscore"), *more))
    torch.manual_seed(0)
    member = Member(Supervised(own).eval(), own)
    image, _ = scan()
    noisy = image.with_array(
        image.array + np.random.default_rng(0).normal(0, 2, image.array.shape).astype(np.float32)
    )
    for turned in (noisy, noisy.oriented("LIP")):
        first_stage = SliceReference(turned, member, PredictionSettings())
        whole = Predictor([member]).predict(turned).label.array
        whole = np.moveaxis(whole, first_stage.axis, 0)
        prediction = first_stage.predict([3, 17, 24, 9])
        assert len(np.unique(whole)) > 1
        assert (prediction.label == whole[[3, 17, 24, 9]]).mean() > 0.999


def test_a_2d_run_is_shown_the_sampled_slices_alone() -> None:
    image, truth = scan({1: (4, 20), 2: (5, 20)})
    member = reference()
    method = member.method
    assert isinstance(method, Levels)
    segment_two_stage(image, member, stages=SIXTH, settings=STILL)
    assert method.shown == 4  # 6, 12, 18, 24; slice 0 is air
    prediction = SliceReference(image, member, STILL).predict([0, 6])
    assert np.array_equal(prediction.label, truth[[0, 6]])
    assert (prediction.confidence[0] == 255).all()
    assert prediction.presence is None
    method.shown = 0
    segment_two_stage(scan({1: (4, 20)})[0], member, stages=SIXTH, settings=STILL)
    assert method.shown == 8  # class 2 is missing, so 3, 9, 15, 21 are predicted too


@pytest.mark.parametrize("dims", [2, 3])
def test_all_slices_give_back_the_reference_run(dims: int) -> None:
    image, truth = scan()
    result = segment_two_stage(
        image,
        reference(dims),
        stages=TwoStageSettings(every=1, select="all"),
        settings=STILL,
    )
    assert np.array_equal(result.label.array, truth)
    assert {name: outcome.vox for name, outcome in result.outcomes.items()} == {
        "bright": (truth == 1).sum(),
        "dark": (truth == 2).sum(),
    }


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("model", [None, follower()], ids=["interpolated", "propagated"])
def test_a_scan_may_lie_in_any_way(dims: int, model: PropagationModel | None) -> None:
    image, truth = scan()
    straight = segment_two_stage(image, reference(dims), model, SIXTH, STILL)
    turned = segment_two_stage(image.oriented("LIP"), reference(dims), model, SIXTH, STILL)
    assert turned.label.shape == image.oriented("LIP").shape
    assert (turned.label.oriented("SAR").array == straight.label.array).mean() > 0.99
    slices = straight.outcomes["bright"].slices
    assert turned.outcomes["bright"].slices == tuple(SLICES - 1 - i for i in reversed(slices))
    for i in slices:
        assert np.array_equal(straight.label.array[i], truth[i])


def test_the_paper_s_slices() -> None:
    """Of 6, 12 and 18, in which class 1 is, it is largest in 12; class 2 is in 18 alone."""
    image, truth = scan({1: (4, 20), 2: (16, 21)})
    result = segment_two_stage(image, reference(), follower(), SIXTH, STILL)
    assert result.outcomes["bright"].slices == (
        12,
        18,
    )  # its own, and that of class 2, in which it is as well
    assert result.outcomes["dark"].slices == (18,)
    assert {outcome.source for outcome in result.outcomes.values()} == {"sampled"}
    assert result.outcomes["dark"].sampled_vox == (truth[18] == 2).sum()
    assert np.isnan(result.outcomes["dark"].presence)


def test_an_organ_of_six_slices_is_found_in_fourteen() -> None:
    image = scan({1: (5, 11)})[0]
    part = Volume(image.array[:, :14], image.affine)
    stages = TwoStageSettings(select="largest", recover=False)
    found = segment_two_stage(part, reference(), stages=stages, settings=STILL)
    assert found.outcomes["bright"].source == "sampled"
    assert found.outcomes["bright"].slices == (9,)


def test_what_the_walk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def propagate(self: Session, *args: object, **options: object) -> PropagationResult:
        told.update(options)
        return walk(self, *args, **options)  # type: ignore[arg-type]

    walk = Session.propagate
    monkeypatch.setattr(Session, "propagate", propagate)
    stages = TwoStageSettings(stop_below=0.2, top_k=0, memory_every=3, merge="sum")
    segment_two_stage(scan()[0], reference(), follower(), stages, STILL)
    assert (told["stop_below"], told["top_k"], told["every"]) == (0.2, None, 3)
    assert told["weighted"] is False
    segment_two_stage(scan()[0], reference(), follower(), as_published(), STILL)
    assert (told["stop_below"], told["top_k"], told["every"]) == (0, 20, 5)
    assert told["ranges"] == {}


def test_the_paper_s_own_settings() -> None:
    """One slice of each class, no end, no second look, both walks alike; at most 64 slices."""
    stages = as_published()
    assert (stages.every, stages.most, stages.select, stages.slices) == (5, 64, "largest", 1)
    assert not (stages.recover)
    assert not (stages.bounded)
    assert not (stages.stop_below)
    assert (stages.top_k, stages.memory_every, stages.merge) == (20, 5, "sum")
    with pytest.raises(ContextsegError, match="--model"):
        as_published(model=False)
    with pytest.raises(ContextsegError, match=r"--slices 3.*settles it"):
        as_published(TwoStageSettings(slices=3))


@pytest.mark.parametrize("way", ["propagation", "combined"])
def test_the_network_that_comes_with_the_package_fills(way: str) -> None:
    image, truth = scan()
    stages = TwoStageSettings(every=6, way=way)
    result = segment_two_stage(image, reference(), open_completion(), stages, STILL)
    for i in (6, 12, 18):
        assert np.array_equal(result.label.array[i], truth[i])
    dice = {
        k: 2 * ((result.label.array == k) & (truth == k)).sum()
        / ((result.label.array == k).sum() + (truth == k).sum())
        for k in (1, 2)
    }  # fmt: skip
    assert min(dice.values()) > 0.5, dice


@pytest.mark.parametrize("rule", [*SELECTION_RULES])
def test_by_every_rule_every_class_has_a_slice(rule: str) -> None:
    rng = np.random.default_rng(0)
    for each in (1, 2, 3, 9):
        label = (
            rng.integers(0, 4, (7, 3, 3))
            * (rng.random((7, 3, 3)) < 0.3)
            * rng.integers(0, 2, (7, 1, 1))
        )
        chosen = select_slices(rule, label, rng.random(label.shape), each=each)
        assert set(np.unique(label[chosen])) | {0} == set(np.unique(label)) | {0}
        assert set(chosen) <= set(range(7))
    assert select_slices(rule, np.zeros((3, 2, 2), int), np.ones((3, 2, 2)), each=2) == []


def test_several_slices_of_a_class_are_spread_over_it() -> None:
    label = np.zeros((12, 1, 8), int)
    for i, area in enumerate([0, 1, 2, 3, 5, 8, 7, 6, 4, 3, 2, 0]):  # runs of 4, 3 and 3
        label[i, 0, :area] = 1
    assert select_slices("largest", label) == [5]
    assert select_slices("largest", label, each=3) == [4, 5, 8]
    assert select_slices("largest", label, each=10) == list(range(1, 11))
    with pytest.raises(ContextsegError, match="one reference slice or more"):
        select_slices("largest", label, each=0)


# --- what is missed -------------------------------------------------------------------------------


def outcomes(dims: int, there: tuple[int, int], recover: bool = True) -> TwoStageResult:
    return segment_two_stage(
        scan({1: (4, 20), 2: there})[0],
        reference(dims),
        stages=TwoStageSettings(every=6, recover=recover),
        settings=STILL,
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_a_class_between_the_slices_is_found_in_further_ones(dims: int) -> None:
    lost = outcomes(dims, (8, 10), recover=False).outcomes["dark"]
    assert (lost.slices, lost.source, lost.vox, lost.flag) == ((), "", 0, "not found")
    result = outcomes(dims, (8, 10))
    outcome = result.outcomes["dark"]
    assert (outcome.slices, outcome.source, outcome.flag) == ((9,), "between", "")
    truth = scan({1: (4, 20), 2: (8, 10)})[1]
    assert np.array_equal(result.label.array[9], truth[9])
    assert result.outcomes["bright"].source == "sampled"


@pytest.mark.parametrize("bounded", [True, False])
def test_a_class_is_not_filled_beyond_the_slices_predicted_without_it(bounded: bool) -> None:
    """Predicted are 0, 6, 12, 18, 24, and, since a class is missing, 3, 9, 15, 21."""
    for discs, ends in (
        ({1: (4, 20)}, {1: (4, 20)}),
        ({2: (8, 10)}, {2: (7, 11)}),
        ({1: (7, 8)}, {}),
    ):
        stages = TwoStageSettings(6, way="nearest", select="largest", bounded=bounded)
        filled = segment_two_stage(scan(discs)[0], reference(), None, stages, STILL).label.array
        for k, (first, last) in ends.items():
            there = np.flatnonzero((filled == k).any((1, 2)))
            assert (there[0], there[-1]) == ((first, last) if bounded else (0, SLICES - 1))
        assert bool(filled.any()) == bool(ends)


def test_what_no_slice_shows_is_flagged() -> None:
    assert outcomes(2, (8, 9)).outcomes["dark"].flag == "not found"  # neither 6, 12 nor 9
    assert outcomes(3, (8, 9)).outcomes["dark"].source == "between"  # a 3-D run predicts all
    empty = segment_two_stage(scan({})[0], reference(), follower(), settings=STILL)
    assert not empty.label.array.any()
    assert {outcome.flag for outcome in empty.outcomes.values()} == {"not found"}


def test_agreement_is_that_with_the_slices_that_were_not_chosen() -> None:
    """Of 6, 12 and 18, which hold the class, only 12 is a reference, so the others stay empty."""
    outcome = segment_two_stage(
        scan()[0],
        reference(),
        stages=TwoStageSettings(6, select="largest", recover=False),
        settings=STILL,
    ).outcomes["bright"]
    assert (outcome.slices, outcome.agreement) == ((12,), 0)
    assert np.isnan(
        segment_two_stage(scan()[0], reference(), stages=SIXTH, settings=STILL)
        .outcomes["bright"]
        .agreement
    )  # all were chosen


# --- presence -------------------------------------------------------------------------------------


def test_the_slice_in_which_a_presence_head_is_most_sure() -> None:
    image, truth = scan()
    noise = np.random.default_rng(0).normal(0, 1, image.array.shape).astype(np.float32)
    image = image.with_array(image.array + noise * (image.array > 0))
    member = reference(head=True)
    sampled = [0, 6, 12, 18, 24]
    presence = SliceReference(image, member, STILL).predict(sampled).presence
    assert presence is not None
    assert presence[0].tolist() == [0, 0]  # not evaluated
    expected = max((6, 12, 18), key=lambda i: presence[sampled.index(i), 0])
    result = segment_two_stage(
        image,
        member,
        stages=TwoStageSettings(6, select="presence", recover=False),
        settings=STILL,
    )
    assert result.outcomes["bright"].slices == (expected,)
    assert result.outcomes["bright"].presence == pytest.approx(presence[:, 0].max())
    assert result.outcomes["dark"].flag == "not found"
    assert isinstance(member.method, Levels)
    member.method.head.net.seen = (0.0, 0.0)
    result = segment_two_stage(
        image, member, stages=TwoStageSettings(6, recover=False), settings=STILL
    )
    assert (result.outcomes["bright"].flag, result.outcomes["dark"].flag) == ("", "missed")
    assert not (truth[sampled] == 2).any()
    whole = segment_two_stage(
        image, reference(3, head=True), stages=TwoStageSettings(6, recover=False), settings=STILL
    )
    assert 0 < whole.outcomes["bright"].presence < 1


# --- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "stages", "message"),
    [
        ((guided(), None), TwoStageSettings(), "needs labelled slices"),
        (
            (reference(), follower("ASR")),
            TwoStageSettings(),
            "coronal slices, and the reference run predicts axial",
        ),
        ((reference(3), None), TwoStageSettings(select="presence"), "presence head"),
        ((reference(), None), TwoStageSettings(select="presence"), "--method cmu"),
        ((reference(), None), TwoStageSettings(top_k=7), r"--top-k 7.*--model"),
        ((reference(), follower()), TwoStageSettings(merge="sum", way="nearest"), "--merge sum"),
    ],
)
def test_runs_that_do_not_go_together(
    runs: tuple[Member, PropagationModel | None], stages: TwoStageSettings, message: str
) -> None:
    with pytest.raises(ContextsegError, match=message):
        segment_two_stage(scan()[0], *runs, stages=stages)


def test_other_kinds_of_scans() -> None:
    model = follower()
    ct = replace(model.plan, channels=(Channel("CT", "none"),))
    with pytest.raises(ContextsegError, match="same kind of scan"):
        segment_two_stage(scan()[0], reference(), replace(model, plan=ct))
    result = segment_two_stage(
        scan()[0], reference(3), follower("ASR"), settings=STILL
    )  # a 3-D run's slices may lie in any way
    assert result.outcomes["bright"].slices[0] < 24
    with pytest.raises(ContextsegError, match="less than one"):
        TwoStageSettings(every=0)
    with pytest.raises(ContextsegError, match="largest"):
        TwoStageSettings(select="larges")
    for wrong in ({"most": 1}, {"top_k": -1}, {"stop_below": 2}, {"merge": "some"}):
        with pytest.raises(ContextsegError):
            TwoStageSettings(**wrong)  # type: ignore[arg-type]
    assert set(SELECTION_RULES) < set(SELECTIONS)


def test_label_values_and_the_largest_component() -> None:
    image, truth = scan({1: (4, 10), 2: (5, 7)})
    every = TwoStageSettings(every=1)
    member = reference()
    run = replace(member, plan=replace(member.plan, values=(0, 7, 300)))
    result = segment_two_stage(image, run, stages=every, settings=STILL)
    assert np.array_equal(result.label.array, np.array([0, 7, 300])[truth])
    assert result.change is None
    result = segment_two_stage(
        image, run, stages=every, settings=replace(STILL, largest_component=True)
    )
    assert np.array_equal(result.label.array, np.where(truth == 1, 7, 0))  # the two do not touch
    assert result.change is not None
    assert result.change.removed_vox == (truth == 2).sum()
    assert result.outcomes["dark"].flag == "not found"


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a 2-D run on it, and one that propagates at other pixels; both have learnt next
    to nothing.
    """
    folder = tmp_path_factory.mktemp("stages")
    data = phantom.write_dataset(folder / "data", labelled=1, test=2, shape=(12, 16, 16), classes=3)
    words = ["dims=2", "steps=1", "base_width=4", "batch_size=2"]
    train_run(
        Run(folder / "flat", Settings(str(data), planning={"patch_vox": (16, 16)}).set(words))
    )
    words = ["dims=2", "steps=1", "batch_size=2", "spacing_mm=2,1.5,1.5", "patch_vox=16,16"]
    train_run(Run(folder / "stcn", Settings(str(data), "stcn").set(words)))
    return folder


def table(folder: Path, name: str = "two-stage.csv") -> list[dict[str, str]]:
    with open(folder / name, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_segments_a_folder_and_goes_on(trained: Path, tmp_path: Path) -> None:
    words = [
        "two-stage",
        str(trained / "flat"),
        "-i",
        str(trained / "data"),
        "-o",
        str(tmp_path / "out"),
    ]
    words += ["--model", str(trained / "stcn"), "--every", "3", "--set", "prediction.mirror=false"]
    words += ["--profile", "--profile-formula", "official"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = table(tmp_path / "out")
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"phantom_{i:03d}", name) for i in (1, 2) for name in ("bright", "dark")
    ]
    result = tmp_path / "out" / "phantom_001.nii.gz"
    label = read_labels(result)
    assert label.same_grid(read_labels(trained / "data" / "labelsTs" / "phantom_001.nii.gz"))
    assert [int(row["vox"]) for row in rows[:2]] == [int((label.array == k).sum()) for k in (1, 2)]
    before = result.stat().st_mtime_ns
    (tmp_path / "out" / "phantom_002.nii.gz").unlink()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert result.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "phantom_002.nii.gz").exists()
    costs = table(tmp_path / "out", "efficiency.csv")
    assert {(row["case"], row["formula"]) for row in costs} == {
        (f"phantom_{i:03d}", "official") for i in (1, 2)
    }
    assert sorted(table(tmp_path / "out"), key=str) == sorted(rows, key=str)
    with pytest.raises(ContextsegError, match="every was 3 and is now 4"):
        CliRunner().invoke(app, [*words, "--every", "4"], catch_exceptions=False)


@pytest.mark.parametrize("way", ["", "interpolation"])
def test_without_a_model_the_packaged_network_fills(
    trained: Path, tmp_path: Path, way: str
) -> None:
    scans = trained / "data"
    api.two_stage(trained / "flat", scans, tmp_path, every=8, way=way, verbose=False)
    record = (tmp_path / "predicted_by.json").read_text(encoding="utf-8")
    assert ("CompletionNet" in record) == (way == "")


def test_one_scan_that_cannot_be_read_does_not_stop_the_others(
    trained: Path, tmp_path: Path
) -> None:
    good = tmp_path / "in" / "good.nii.gz"
    write(good, read(trained / "data" / "imagesTs" / "phantom_001_0000.nii.gz"))
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"nothing")
    words = [
        "two-stage",
        str(trained / "flat"),
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    with pytest.raises(ContextsegError, match="1 of 2 cases could not be segmented"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert (tmp_path / "out" / "good.nii.gz").exists()
    with pytest.raises(ContextsegError, match="cannot predict"):
        CliRunner().invoke(
            app, [*words[:1], str(trained / "stcn"), *words[2:-1], "other"], catch_exceptions=False
        )
    assert not (tmp_path / "other").exists()


def test_one_reference_run_and_a_model_that_propagates(trained: Path, tmp_path: Path) -> None:
    """A run that does not propagate is refused where it is opened."""
    with pytest.raises(ContextsegError, match="which needs no labelled slices"):
        open_propagation_model(trained / "flat")
    assert open_propagation_model(trained / "stcn").axes == (0,)
    ensemble = Predictor([reference(), reference()])
    with pytest.raises(ContextsegError, match="give one run"):
        segment_folder(ensemble, trained / "data", tmp_path)


def test_the_table_keeps_other_cases(tmp_path: Path) -> None:
    outcome = ClassOutcome((3, 17), "between", 5, 0, float("nan"), 0.5, "missed")
    write_class_outcomes(tmp_path, "b", {"liver": outcome})
    write_class_outcomes(
        tmp_path, "a", {"liver": replace(outcome, slices=(), presence=float("nan"))}
    )
    write_class_outcomes(tmp_path, "b", {"liver": outcome})
    lines = (tmp_path / "two-stage.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "case,class,slices,source,sampled_vox,vox,agreement,presence,flag"
    assert lines[1:] == ["b,liver,3 17,between,5,0,,0.5000,missed", "a,liver,,between,5,0,,,missed"]
    (tmp_path / "two-stage.csv").write_text("case,other\n", encoding="utf-8")
    with pytest.raises(ContextsegError, match="columns"):
        write_class_outcomes(tmp_path, "a", {})


def test_a_label_description_lies_beside_the_label_maps(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.nii.gz", scan()[0])
    member = reference()
    coloured = replace(member, plan=replace(member.plan, colours={"bright": (1.0, 0.0, 0.2)}))
    case = Case("a", (tmp_path / "in" / "a.nii.gz",))
    out = tmp_path / "out"
    assert not segment_cases([case], coloured, None, TwoStageSettings(), STILL, out)
    described = read_descriptions(out / "label_descriptions.txt")
    assert [segment.name for segment in described] == list(member.plan.classes[1:])
    assert described[0].colour == (1.0, 0.0, 0.2)
