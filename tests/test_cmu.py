"""CMU-Net: its network counted by hand, its schedule and losses, its three regimes from one
command.
"""

from __future__ import annotations

import csv
import json
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
from contextseg.nets import CMUNet, Presence
from contextseg.pipeline import train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read, read_labels

torch.set_num_threads(1)
PAPERS = ([16, 32, 64, 128, 256], [[1, 1]] + [[2, 2]] * 4, [[3, 3]] * 5)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- the network ----------------------------------------------------------------------------------


def test_the_network_has_the_papers_parameters_counted_by_hand() -> None:
    widths, k = PAPERS[0], 2
    encoder = 9 * sum(a * b + b * b for a, b in zip([1, *widths], widths))
    assert encoder == 1_177_488
    skip, low = widths[:-1], widths[1:]
    as_it_is = 9 * sum(
        (a + b) * a + a * a for a, b in zip(skip, low)
    )  # the skip meets all channels from below
    halved = 9 * sum((a + a) * a + a * a for a in skip)  # after a convolution that halves them
    norms = 2 * (2 * sum(widths) + 2 * sum(skip))
    heads = (16 * k + k) + (256 * (k - 1) + (k - 1))  # 1x1 convolution, linear layer
    ours = encoder + as_it_is + norms + heads
    assert ours == 1_964_083
    with torch.device("meta"):
        net = CMUNet(1, k, *PAPERS)
    assert count(net) + 257 == ours
    narrow = CMUNet(1, k, [4, 6], [[1, 1], [2, 2]], [[3, 3]] * 2)
    assert count(Presence(narrow, 1, k, 2)) - count(narrow) == 6 + 1

    def millions(up: int) -> float:
        return round((encoder + halved + up + norms + heads) / 1e6, 2)

    assert round(ours / 1e6, 2) == 1.96  # as published; no other way up is
    assert millions(4 * sum(a * b for a, b in zip(skip, low))) == 1.94  # transposed convolution 2x2
    assert (
        millions(9 * sum(a * b for a, b in zip(skip, low))) == 2.16
    )  # interpolation, convolution 3x3
    assert (
        millions(1 * sum(a * b for a, b in zip(skip, low))) == 1.81
    )  # interpolation, convolution 1x1


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


@pytest.mark.parametrize(
    "wrong",
    [{"loss": "dize"}, {"presence_weight": 1.0}, {"alpha": 1.0}, {"gamma": -1.0}, {"cycles": 0}],
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
