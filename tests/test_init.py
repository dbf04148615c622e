"""`--init`: any run, exported model or file to start from, for other classes and channels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import contextseg as cs
from contextseg import cli
from contextseg.data import phantom
from contextseg.data.plan import Channel, Plan
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods import CPS, METHODS, CoLab, Method, Supervised
from contextseg.nets import NETS

torch.set_num_threads(1)
TINY = {"steps": 1, "patch_vox": (16, 16, 16), "batch_size": 2, "base_width": 4, "max_levels": 2}
TINY |= {"device": "cpu", "lr": 1e-9}


def plan_of(classes: tuple[str, ...], channels: tuple[str, ...]) -> Plan:
    return replace(
        BASE,
        classes=classes,
        values=tuple(range(len(classes))),
        regions={name: (k,) for k, name in enumerate(classes) if k},
        channels=tuple(Channel(name, "zscore") for name in channels),
        swaps=(),
    )


BASE = Plan(
    dataset="d",
    classes=("background", "liver"),
    values=(0, 1),
    regions={"liver": (1,)},
    channels=(Channel("T1", "zscore"),),
    orientation="SAR",
    spacing_mm=(1.0, 1.0, 1.0),
    patch_vox=(8, 8, 8),
    batch_size=2,
    mirror=(True, True, True),
    swaps=(),
    widths=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
)


def as_run(method: Method, plan: Plan, folder: Path) -> Path:
    """What a finished run of a method leaves of its weights."""
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.3)
    (folder / "train-1").mkdir(parents=True)
    torch.save(method.state_dict(), folder / "train-1" / "model.pt")
    write_json(folder / "train-1" / "done.json", {})
    write_json(folder / "run.json", {})
    plan.save(folder / "plan.json")
    return folder


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """The rows of the head, though their number is the same and their order is not."""
    old, new = (
        plan_of(classes, ("T1",))
        for classes in (
            ("background", "liver", "spleen"),
            ("background", "tumour", "liver"),
        )
    )
    before = Supervised(old)
    run = as_run(before, old, tmp_path / "run")
    after = Supervised(new, weights=str(run))
    tumour = after.net.heads[0].weight[1].clone()
    after.initialise()
    theirs, ours = before.net.heads[0], after.net.heads[0]
    assert torch.equal(ours.weight[0], theirs.weight[0])
    assert torch.equal(ours.weight[2], theirs.weight[1])
    assert torch.equal(ours.bias[2], theirs.bias[1])
    assert torch.equal(ours.weight[1], tumour)
    assert after.weights_report is not None
    report = after.weights_report["net"]
    assert "heads.0.weight: classes background, liver; new: tumour" in report["adapted"]
    assert report["share"] == 1
    assert report["missing"] == ()


def test_more_classes_without_names_are_missing(tmp_path: Path) -> None:
    """Of a bare file nobody knows what its rows are; nothing is guessed."""
    old = plan_of(("background", "liver"), ("T1",))
    run = as_run(Supervised(old), old, tmp_path / "run")
    new = plan_of(("background", "liver", "tumour"), ("T1",))
    after = Supervised(new, weights=str(run / "train-1" / "model.pt"))
    after.initialise()
    assert after.weights_report is not None
    assert after.weights_report["net"]["missing"] == ("heads.0.weight", "heads.0.bias")


def test_a_new_channel_begins_without_a_say(tmp_path: Path) -> None:
    """With channels in another order and one more, the logits are those of the old network."""
    old = plan_of(("background", "liver"), ("T1", "FLAIR"))
    new = plan_of(("background", "liver"), ("FLAIR", "T2", "T1"))
    before = Supervised(old).eval()
    run = as_run(before, old, tmp_path / "run")
    after = Supervised(new, weights=str(run)).eval()
    after.initialise()
    x = torch.randn(1, 3, 8, 8, 8)
    assert torch.allclose(after.predict(x), before.predict(x[:, [2, 0]]), atol=1e-5)
    other = plan_of(("background", "liver"), ("CT",))
    stranger = Supervised(other, weights=str(run)).eval()
    stranger.initialise()
    grey = x[:, :1]  # as if both old channels were this one
    both = before.predict(grey.expand(-1, 2, -1, -1, -1))
    assert torch.allclose(stranger.predict(grey), both, atol=1e-5)
    assert stranger.weights_report is not None
    assert "the mean of 2 channels" in stranger.weights_report["net"]["adapted"][0]


def test_the_networks_of_cps_do_not_begin_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(("background", "liver"), ("T1",))
    single = as_run(Supervised(plan), plan, tmp_path / "single")
    method = CPS(plan, weights=str(single), second_weights=str(single))
    new = method.nets[1].state_dict()["heads.0.weight"].clone()
    method.initialise()
    assert torch.equal(method.nets[1].state_dict()["heads.0.weight"], new)
    assert "nets.1: new weights" in capsys.readouterr().err

    double = as_run(CPS(plan), plan, tmp_path / "double")
    method = CPS(plan, weights=str(double), second_weights=str(double))
    method.initialise()
    theirs = torch.load(double / "train-1" / "model.pt", weights_only=True)
    assert all(torch.equal(x, theirs[name]) for name, x in method.state_dict().items())


def test_what_belongs_to_the_method_comes_along(tmp_path: Path) -> None:
    """CoLab's generator and a presence head, for the same classes; no voxel of a patient."""
    plan = plan_of(("background", "liver"), ("T1",))
    before = CoLab(plan)
    before.watched.fill_(7)
    run = as_run(before, plan, tmp_path / "colab")
    method = CoLab(plan, weights=str(run))
    method.initialise()
    state = before.state_dict()
    loaded = {n: x for n, x in method.state_dict().items() if n not in CoLab.private_state}
    assert any(name.startswith("generator.") for name in loaded)
    assert all(torch.equal(x, state[name]) for name, x in loaded.items())
    assert not method.watched.any()
    assert method.weights_report is not None
    others = method.weights_report["others"]["loaded"]
    assert not set(others) & set(method.weights_report["net"]["skipped"])

    before_head = Supervised(plan, presence_weight=0.1)
    head = as_run(before_head, plan, tmp_path / "head")
    after = Supervised(plan, presence_weight=0.1, weights=str(head))
    after.initialise()
    assert torch.equal(after.net.linear.weight, before_head.net.linear.weight)
    other = plan_of(("background", "spleen"), ("T1",))
    stranger = Supervised(other, presence_weight=0.1, weights=str(head))
    stranger.initialise()
    assert not torch.equal(stranger.net.linear.weight, before_head.net.linear.weight)


@pytest.mark.parametrize("net", NETS)
def test_every_network_has_a_head_that_is_known(net: str, tmp_path: Path) -> None:
    """Whatever depends on the number of classes is matched by name."""
    plan = plan_of(("background", "liver"), ("T1",))
    flat = {"patch_vox": (8, 8), "strides": ((1, 1), (2, 2)), "kernels": ((3, 3),) * 2}
    try:
        Supervised(plan, net)
    except ContextsegError:
        plan = replace(plan, **flat)  # type: ignore[arg-type]
    plan = replace(plan, widths=(16, 16, 16, 16), strides=_levels(plan), kernels=_kernels(plan))
    more = replace(plan, classes=("background", "liver", "tumour"), values=(0, 1, 2))
    run = as_run(Supervised(plan, net), plan, tmp_path / "run")
    method = Supervised(more, net, weights=str(run))
    method.initialise()
    assert method.weights_report is not None
    assert method.weights_report["net"]["missing"] == ()
    assert len(method.weights_report["net"]["adapted"]) >= 2


def _levels(plan: Plan) -> tuple[tuple[int, ...], ...]:
    return ((1,) * plan.dims, *[(2,) * plan.dims] * 3)


def _kernels(plan: Plan) -> tuple[tuple[int, ...], ...]:
    return ((3,) * plan.dims,) * 4


# --- from the command line ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    return phantom.write_dataset(folder, labelled=2, unlabelled=1, test=0, classes=3)


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "first"
    cs.train(data, folder, verbose=False, roi=["bright"], **TINY)
    return folder


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("stcn", "pseudo")])
def test_every_method_starts_from_a_run_of_fewer_classes(
    data: Path, first: Path, tmp_path: Path, method: str
) -> None:
    run = cs.train(data, tmp_path / "run", method=method, init=first, verbose=False, **TINY)
    report = read_json(run.folder / "train-1" / "weights.json")
    part = next(iter(report.values()))
    assert part["file"] == str(first)
    assert part["share"] > 0.9
    assert any("new: dark" in line for line in part["adapted"])


def test_a_run_an_archive_and_a_file_are_the_same(data: Path, first: Path, tmp_path: Path) -> None:
    archive = cs.export(first, tmp_path / "model.zip")
    states = []
    for i, init in enumerate((first, archive, first / "train-1" / "model.pt")):
        words = ["train", data, "-o", tmp_path / str(i), "--init", init, "--roi", "bright"]
        for name, value in TINY.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += ["--set", f"{name}={text}"]
        cli.app([str(word) for word in words], standalone_mode=False)
        states.append(torch.load(tmp_path / f"{i}/train-1/model.pt", weights_only=True))
        shared = torch.load(first / "train-1" / "model.pt", weights_only=True)
        assert all(torch.allclose(x, shared[n], atol=1e-5) for n, x in states[-1].items())
    assert all(torch.equal(x, states[1][n]) for n, x in states[0].items())


def test_what_cannot_be_started_from_is_named(data: Path, first: Path, tmp_path: Path) -> None:
    def train(init: Path, **more: object) -> None:
        cs.train(data, tmp_path / "run", init=init, verbose=False, **{**TINY, **more})

    with pytest.raises(ContextsegError, match="no such file of weights"):
        train(tmp_path / "gone")
    with pytest.raises(ContextsegError, match="weights are set as well"):
        train(first, weights="a.pt")
    shutil.rmtree(tmp_path / "run")
    copy = tmp_path / "unfinished"
    shutil.copytree(first, copy)
    (copy / "train-1" / "done.json").unlink()
    with pytest.raises(ContextsegError, match="no training of this run is finished"):
        train(copy)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ContextsegError, match="this architecture"):
        train(first, net="resenc")
