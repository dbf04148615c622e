"""CMU-Net: its network counted by hand, its schedule and losses, its three regimes from one
command.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import laws
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.losses import deep, soft_dice
from contextseg.methods import CMU, METHODS
from contextseg.methods.base import build_net
from contextseg.methods.cmu import Classifier, warm_restarts
from contextseg.methods.presence import (
    head_of,
    presence_loss,
    with_head,
)
from contextseg.nets import NETS, CMUNet, Presence, cmunet
from contextseg.pipeline import train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read, read_labels

torch.set_num_threads(1)
PAPERS = ([16, 32, 64, 128, 256], [[1, 1]] + [[2, 2]] * 4, [[3, 3]] * 5)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- the network ----------------------------------------------------------------------------------


def test_the_two_readings_of_five_blocks_counted_by_hand() -> None:
    """The paper has no count: these are ours, without the presence head of 257."""
    widths, k = PAPERS[0], 2
    encoder = 9 * sum(a * b + b * b for a, b in zip([1, *widths], widths))
    skip, low = widths[:-1], widths[1:]
    up = 9 * sum((a + b) * a + a * a for a, b in zip(skip, low))  # joined as it is
    norms = 2 * (2 * sum(widths) + 2 * sum(skip))
    head = 16 * k + k
    between = encoder + up + norms + head
    inside = between + 9 * (2 * 256 * 256 + 256 * 256) + 2 * 2 * 256  # a fifth block up
    project = sum(a * b + 2 * b for a, b in zip([1, *widths], widths))
    want = {
        "cmunet": between,
        "cmunet-five-poolings": inside,
        "cmunet-residual": between + project,
    }
    assert want == {
        "cmunet": 1_963_826,
        "cmunet-five-poolings": 3_734_322,
        "cmunet-residual": 2_008_354,
    }
    for name, number in want.items():
        net = NETS[name](1, k, *PAPERS)
        assert count(net) == number
        assert f"{number:,} parameters" in " ".join(cmunet.__doc__.split())
        head_of_net = Presence(net, 1, k, 2)
        pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]
        assert len(pools) == (5 if name == "cmunet-five-poolings" else 4)
        assert head_of_net.eval().both(torch.zeros(1, 1, 64, 64))[0].shape == (1, k, 64, 64)
        assert isinstance(net.stages[-1], nn.MaxPool2d) == (len(pools) == 5)
        assert count(head_of_net) - number == 257


def test_two_levels_written_out() -> None:
    torch.manual_seed(0)
    net = CMUNet(2, 3, [4, 6], [[1, 1], [2, 2]], [[3, 3]] * 2).eval()
    for p in net.parameters():
        nn.init.normal_(p)
    weights = iter(net.parameters())
    x = torch.randn(2, 2, 8, 6)

    def two(x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.conv2d(x, next(weights), padding=1)
            mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
            scale, shift = (next(weights).view(-1, 1, 1) for _ in range(2))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
            x = torch.maximum(x, 0.2 * x)
        return x

    top = two(x)
    low = two(top.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)))
    z = two(torch.cat([F.interpolate(low, scale_factor=2, mode="bilinear"), top], 1))
    z = torch.einsum("oc,bchw->bohw", next(weights)[..., 0, 0], z) + next(weights).view(-1, 1, 1)
    torch.testing.assert_close(net(x), z, rtol=1e-4, atol=1e-4)


def test_the_activation_comes_after_the_norm_or_the_head_would_be_blind() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True)
    maps = torch.randn(5, 8, 6, 6).exp()
    blind = norm(F.leaky_relu(maps, 0.2)).mean((2, 3))
    torch.testing.assert_close(blind, norm.bias.expand(5, -1), rtol=0, atol=1e-6)
    logits = with_head("cmunet", laws.plan(2)).both(laws.batch(0, dims=2).image)[1]
    assert logits.std(0).min() > 1e-3


def test_the_network_is_for_slices() -> None:
    with pytest.raises(ContextsegError, match="net=cmunet: this network is 2-D"):
        build_net("cmunet", laws.plan(3))


# --- losses and schedule --------------------------------------------------------------------------


def test_warm_restarts_are_torchs_at_each_epoch() -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(sgd, T_0=10)
    for epoch in range(100):
        assert warm_restarts(epoch / 100, 10) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        sgd.step()
        theirs.step()


def test_the_joint_loss_shares_out_its_weight() -> None:
    torch.manual_seed(0)
    method, b = CMU(laws.plan(2), loss="soft_dice", presence_weight=0.3), laws.batch(0, dims=2)
    terms, dice = method(b), partial(soft_dice, pooled=True)
    outputs, present = head_of(method).both(b.image)
    assert torch.equal(terms["seg"], 0.7 * deep(dice, outputs, b.label, b.annotated))
    assert torch.equal(terms["presence"], 0.3 * presence_loss(present, b.tags, 2.0, 0.8))
    torch.manual_seed(0)
    plain = CMU(laws.plan(2), loss="soft_dice", presence_weight=0)
    assert list(plain(b)) == ["seg"]
    assert torch.equal(plain(b)["seg"], deep(dice, outputs, b.label, b.annotated))
    assert method.decay(0.05) == warm_restarts(0.05, 10)


def test_only_a_smooth_dice_of_each_slice_has_a_slope_where_the_organ_is_not() -> None:
    """Of 1 - e / (sum p + e): e / (sum p + e)^2, here with sum p = 50."""
    plan = replace(laws.plan(2, classes=2), batch_dice=False)
    slopes = {}
    for smooth in (1.0, 1e-5):
        z = torch.zeros(1, 2, 10, 10, dtype=torch.float64, requires_grad=True)
        loss = CMU(plan, loss="soft_dice", presence_weight=0, smooth=smooth).loss
        loss(z, torch.zeros(1, 10, 10, dtype=torch.long)).backward()
        # dp/dz of a softmax at a half is a quarter
        slopes[smooth] = float(z.grad[0, 1, 0, 0]) * 4
    assert slopes[1.0] == pytest.approx(1 / 51**2)
    assert slopes[1e-5] == pytest.approx(4e-9, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"smooth": 0.0},
        {"smooth": 2.0, "loss": "focal"},
        {"loss": "dize"},
        {"presence_weight": 1.0},
        {"alpha": 1.0},
        {"gamma": -1.0},
        {"cycles": 0},
    ],
)
def test_arguments_that_make_no_sense_are_named(wrong: dict[str, Any]) -> None:
    name, value = next(iter(wrong.items()))
    with pytest.raises(ContextsegError, match=f"{name}={value}"):
        CMU(laws.plan(2), **wrong)


# --- the three regimes ----------------------------------------------------------------------------


def test_pretraining_hands_over_the_encoder_and_leaves_the_decoder(tmp_path: Path) -> None:
    trained: list[Any] = []

    def train(method: Any, **_: Any) -> Any:
        before = {name: p.clone() for name, p in method.named_parameters()}
        if isinstance(method, Classifier):
            laws.train_briefly(method, tmp_path, 2, 2, lr=0.1)
        trained.append((method, before))
        return method

    torch.manual_seed(0)
    last: Any = METHODS["cmu-pretrain"](
        SimpleNamespace(plan=laws.plan(2), train=train), net="cmunet"
    )
    (first, before), (second, _) = trained
    assert last is second
    assert head_of(second) is None
    encoder = {id(p) for p in [*first.net.encoder(), *first.net.linear.parameters()]}
    for name, p in first.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in encoder), name
    theirs = first.net.net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in second.net.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "moves"),
    [({}, {"encoder", "decoder"}), ({"freeze": True}, {"decoder"})],
    ids=["pretrained", "frozen"],
)
def test_a_frozen_encoder_stays_and_the_rest_moves(
    asked: dict[str, Any], moves: set[str], tmp_path: Path
) -> None:
    def train(method: Any, **_: Any) -> Any:
        return method

    torch.manual_seed(0)
    run: Any = SimpleNamespace(plan=laws.plan(2), train=train)
    method: Any = METHODS["cmu-pretrain"](run, net="cmunet", **asked)
    before = {name: p.clone() for name, p in method.net.named_parameters()}
    laws.train_briefly(method, tmp_path, 2, 2, lr=0.1)
    moved = {name for name, p in method.net.named_parameters() if not torch.equal(p, before[name])}
    parts = {"encoder" if name.startswith("stages") else "decoder" for name in moved}
    assert parts == moves
    assert len(moved) == sum(n.startswith("stages") <= ("encoder" in moves) for n in before)


def test_pretraining_then_joint_keeps_the_head() -> None:
    trained: list[Any] = []
    run: Any = SimpleNamespace(plan=laws.plan(2), train=lambda m, **_: trained.append(m) or m)
    last: Any = METHODS["cmu-pretrain"](run, net="cmunet", presence_weight=0.5, joint_alpha=0.7)
    first = trained[0]
    assert isinstance(last.net, Presence)
    assert (first.net.alpha, last.net.alpha, last.weight) == (0.5, 0.7, 0.5)
    theirs = first.net.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in last.net.state_dict().items())


ASKED = [
    "dims=2",
    "patch_vox=16,16",
    "base_width=4",
    "batch_size=4",
    "steps=3",
    "check_every=0",
    "net=cmunet",
]


def settings(data: Path, method: str) -> Settings:
    return Settings(str(data), method, fold=0).set(ASKED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled phantoms of two organs, and one to test on."""
    return phantom.write_dataset(
        tmp_path_factory.mktemp("cmu") / "data", labelled=5, test=1, shape=(10, 20, 20), classes=3
    )


def test_slices_of_3d_cases_go_in_and_volumes_come_out_on_the_command_line(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = [f"--set={assignment}" for assignment in [*ASKED, "prediction.mirror=false"]]
    done = CliRunner().invoke(
        app, ["run", str(data), "-o", str(out), "--method=cmu", "--fold=0", *asked]
    )
    assert done.exit_code == 0, done.output
    run = Run.open(out)
    assert run.plan.patch_vox == (16, 16)
    (scan,) = run.dataset.test
    image, label = read(*scan.images), read_labels(next(out.glob("predict/phantom*.nii.gz")))
    assert label.array.shape == image.array.shape[1:]
    assert np.allclose(label.affine, image.affine)
    assert next(out.glob("evaluate/metrics.csv")).read_text(encoding="utf-8").count("\n") == 3
    log = json.loads((out / "train-1" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"seg", "presence"} <= set(log)
    gates = read_json(out / "gate-1" / "gate.json")
    assert {name: (row["cases"], row["threshold"]) for name, row in gates.items()} == {
        "bright": (1, 0),
        "dark": (1, 0),
    }
    with open(next(out.glob("predict/presence.csv")), encoding="utf-8") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["bright", "dark"]
    for k, (name, row) in enumerate(rows.items(), 1):
        assert row["case"] == scan.name
        assert int(row["predicted_vox"]) == (label.array == k).sum()
        assert 0 < float(row["presence"]) < 1
        missed = row["predicted_vox"] == "0" and float(row["presence"]) > gates[name]["seen"]
        assert row["flag"] == ("missed" if missed else "")
    gates["dark"]["threshold"] = 0.4
    write_json(out / "gate-1" / "gate.json", gates)
    head = head_of(run.finished())
    assert head.gate == (0.0, 0.4)
    assert head.seen == tuple(row["seen"] for row in gates.values())


def test_pretraining_is_two_stages(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings(data, "cmu-pretrain"))
    train_run(run)
    logs = [
        json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        for path in sorted(run.folder.glob("train-*/log.jsonl"))
    ]
    assert [{"seg", "presence"} & set(log) for log in logs] == [{"presence"}, {"seg"}]


def test_the_best_validation_epoch_of_whole_slices_is_deployed(data: Path, tmp_path: Path) -> None:
    asked = settings(data, "cmu-pretrain").set(
        ["every_slice=true", "keep=best", "check_every=1", "check_batches=9", "lr=0.3"]
    )
    run = Run(tmp_path / "run", asked)
    method = train_run(run)
    first, second = sorted(run.folder.glob("train-*"))
    slices = sum(case.label.shape[0] for case in run.cached(run.split[1]))
    sampler = method.check_sampler(run.cached(run.split[1]), run.plan)
    assert len(sampler) == slices
    weights = torch.load(second / "model.pt", weights_only=True)
    best = torch.load(second / "best.pt", weights_only=True)
    assert all(torch.equal(weights[name], best[name]) for name in weights)
    assert all(torch.equal(weights[name], value) for name, value in method.state_dict().items())

    def rows(folder: Path) -> list[dict[str, float]]:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [row for row in map(json.loads, lines) if row["part"] == "check"]

    assert [row["step"] for row in rows(second)] == [1, 2, 3]
    state = torch.load(second / "checkpoint.pt", weights_only=True)
    assert state["best"] == pytest.approx(max(row["dice"] for row in rows(second)))
    # the decoder is not trained in the first stage: its loss chooses, not the Dice
    state = torch.load(first / "checkpoint.pt", weights_only=True)
    assert state["best"] == pytest.approx(max(-row["presence"] for row in rows(first)))
