"""The presence head on any network: what it learns, by formula, and its gate and flags by doing
what they promise.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laws
from contextseg.batch import IGNORE
from contextseg.data import phantom
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.losses import deep
from contextseg.methods import CMU, presence
from contextseg.methods.base import build_net, loss_of
from contextseg.methods.cmu import Classifier
from contextseg.methods.presence import (
    choose_gate,
    flags,
    gate,
    head_of,
    largest_presence,
    presence_flags,
    presence_loss,
    tiles,
    with_head,
    write_flags,
)
from contextseg.nets import NETS, Presence
from contextseg.nets.presence import gated, posterior
from contextseg.runs import Run
from contextseg.settings import Settings

torch.set_num_threads(1)
SMALL = [name for name in NETS if f"{name}-small" not in NETS and not name.endswith("-batchnorm")]
both_dims = pytest.mark.parametrize("dims", [2, 3])


# --- the head on any network ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name in SMALL for dims in NETS[name].dims]
)
def test_any_network_carries_the_head_and_does_not_notice(name: str, dims: int) -> None:
    plan, x = laws.plan(dims), laws.batch(0, dims=dims).image
    torch.manual_seed(3)
    bare = build_net(name, plan)
    torch.manual_seed(3)
    head = with_head(name, plan)
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), head.net.parameters(), strict=True)
    )
    assert head.training
    assert all(torch.equal(a, b) for a, b in zip(bare(x), head(x), strict=True))
    outputs, present = head.both(x)
    assert torch.equal(outputs[0], bare(x)[0])
    assert present.shape == (4, 2)
    with torch.no_grad():
        assert torch.equal(head.eval()(x), bare.eval()(x))
    present.square().sum().backward()
    reached = {id(p) for p in head.net.parameters() if p.grad is not None}
    assert reached == {id(p) for p in head.encoder()}
    assert 0 < len(reached) < len(list(head.net.parameters()))


def test_a_network_without_a_known_encoder_is_named() -> None:
    with pytest.raises(ContextsegError, match="Conv2d: a presence head does not find its encoder"):
        Presence(nn.Conv2d(1, 2, 1), 1, 2, 2)


def test_two_threads_hear_their_own_image() -> None:
    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages, self.barrier = nn.ModuleList([nn.Identity()]), Barrier(1)

        def forward(self, x: Tensor) -> Tensor:
            self.barrier.wait(20)
            x = self.stages[-1](x)
            self.barrier.wait(20)
            return x

    net = Slow()
    head = Presence(net, 1, 2, 2).eval()
    net.barrier = Barrier(2)
    logits: dict[int, Tensor] = {}
    threads = [
        Thread(
            target=lambda n=n: logits.update({n: head.both(torch.full((1, 1, 2, 2), float(n)))[1]})
        )
        for n in (1, 5)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for n in (1, 5):
        assert torch.equal(logits[n], head.linear(torch.full((1, 1), float(n))))


def test_a_shut_gate_lets_no_voxel_through_and_an_open_one_all() -> None:
    torch.manual_seed(0)
    z, p = torch.randn(3, 4, 5, 5), torch.tensor([[0.2, 0.5, 0.9]] * 3)
    shut = gated(z, p, (0.5, 0.5, 0.95))
    assert torch.equal(shut[:, [0, 2]], z[:, [0, 2]])  # 0.5 is not below 0.5
    assert set(shut.argmax(1).unique().tolist()) == {0, 2}
    torch.testing.assert_close((shut - shut[:, :1])[:, [1, 3]], -(z - z[:, :1])[:, [1, 3]].abs())
    assert torch.equal(gated(z, p, (0.0, 0.0, 0.0)), z)


def test_the_gate_is_for_evaluation_and_no_part_of_the_weights() -> None:
    head, x = with_head("unet", laws.plan(2)), laws.batch(0, dims=2).image
    head.gate = (1.0, 0.0)
    assert (head(x)[0].argmax(1) == 1).any()
    with torch.no_grad():
        assert not (head.eval()(x).argmax(1) == 1).any()
        assert (head(x).argmax(1) == 2).any()
        assert (head.both(x)[0].argmax(1) == 1).any()
    assert not [name for name in head.state_dict() if "gate" in name]


# --- losses and schedule --------------------------------------------------------------------------


def test_presence_loss_is_the_focal_loss_of_each_class() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 2, dtype=torch.float64)
    tags = torch.tensor([[1, 1, 0], [1, IGNORE, 0], [0, IGNORE, IGNORE]])
    p = z.sigmoid()

    def one(i: int, k: int, alpha: float = 0.8) -> Tensor:
        if tags[i, k + 1]:
            return -alpha * (1 - p[i, k]) ** 2 * p[i, k].log()
        return -(1 - alpha) * p[i, k] ** 2 * (1 - p[i, k]).log()

    expected = (
        (one(0, 0) + one(0, 1)) / 2 + one(1, 1) + 0
    ) / 3  # the last item has nothing that is known
    assert float(presence_loss(z, tags, alpha=0.8)) == pytest.approx(float(expected), rel=1e-12)
    plain = F.binary_cross_entropy_with_logits(z[:1], tags[:1, 1:].double())
    assert float(presence_loss(z[:1], tags[:1], gamma=0)) == pytest.approx(
        float(plain) / 2, rel=1e-12
    )
    assert presence_loss(z[:0], tags[:0]) == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_presence_loss_of_any_logit_is_finite_and_so_is_its_slope(gamma: float) -> None:
    z = torch.tensor([[-1e4, -40.0, 0.0, 40.0, 1e4]]).repeat(2, 1).requires_grad_()
    tags = torch.tensor([[1] * 6, [0] * 6])
    loss = presence_loss(z, tags, gamma)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    half = presence_loss(torch.zeros(2, 5, dtype=torch.float16), tags)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.8), (2.0, 0.5), (0.5, 0.5), (0.0, 0.3)])
def test_the_posterior_undoes_what_the_loss_does_to_probabilities(
    gamma: float, alpha: float
) -> None:
    z = torch.linspace(-6, 6, 601, dtype=torch.float64)
    yes, no = (
        [float(presence_loss(v.view(1, 1), torch.tensor([[1, tag]]), gamma, alpha)) for v in z]
        for tag in (1, 0)
    )
    for p in (0.05, 0.3, 0.5, 0.9):
        best = z[
            (p * np.array(yes) + (1 - p) * np.array(no)).argmin()
        ]  # what training on that share of "yes" finds
        assert float(posterior(best, gamma, alpha)) == pytest.approx(p, abs=0.006)
    assert (posterior(z, gamma, alpha).diff() > 0).all()
    assert torch.allclose(posterior(z, 0.0, 0.5), z.sigmoid(), atol=1e-5)
    extreme = posterior(torch.tensor([-1e4, 1e4]), gamma, alpha)
    assert extreme.tolist() == pytest.approx([0, 1], abs=1e-3)


# --- any method can carry it ----------------------------------------------------------------------


@both_dims
def test_supervised_is_what_it_was_without_the_head(dims: int) -> None:
    b = laws.batch(0, dims=dims)
    torch.manual_seed(5)
    net = build_net("unet", laws.plan(dims))
    plain, headed = (laws.make("supervised", dims, seed=5, presence_weight=w) for w in (0.0, 0.3))
    assert list(plain(b)) == ["seg"]
    for method in (plain, headed):
        assert torch.equal(
            method(b)["seg"], deep(loss_of(laws.plan(dims)), net(b.image), b.label, b.annotated)
        )
    assert list(plain.state_dict()) == [f"net.{name}" for name in net.state_dict()]
    present = head_of(headed).both(b.image)[1]
    assert torch.equal(headed(b)["presence"], 0.3 * presence_loss(present, b.tags))


@both_dims
def test_supervised_with_the_head_keeps_the_laws(dims: int, tmp_path: Path) -> None:
    method = laws.make("supervised", dims, presence_weight=1.0)
    b = laws.batch(0, dims=dims)
    nothing = b.only(torch.ones(4, dtype=torch.bool))
    nothing.label[:] = IGNORE
    assert sum(float(term.detach()) for term in method(nothing).values()) == 0
    before = {name: value.clone() for name, value in method.state_dict().items()}
    laws.train_briefly(method, tmp_path, 2, dims)
    assert [
        name for name, value in method.state_dict().items() if torch.equal(value, before[name])
    ] == []


def test_the_head_learns_whether_a_class_is_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = Classifier(laws.plan(2), "cmunet", optimizer="adamw", cycles=1)

    def slices(n: int) -> Any:
        b = laws.batch(n, dims=2)
        gone = (b.label == 1) & torch.tensor([True, True, False, False]).view(-1, 1, 1)
        b.image[gone.unsqueeze(1)] = 0.5
        b.label[gone] = 0
        b.label[b.label == IGNORE] = 0
        return b

    optimizer = method.optimizers(0.01)["encoder"]
    for n in range(40):
        optimizer.zero_grad()
        method(slices(n))["presence"].backward()
        optimizer.step()
    right = []
    for n in range(100, 110):
        b = slices(n)
        right.append(
            ((method.eval().net.both(b.image)[1][:, 0] > 0) == (b.tags[:, 1] == 1)).float().mean()
        )
    assert torch.stack(right).mean() > 0.9


# --- the gate, chosen -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 16, 16), (4, 17, 40), (1, 5, 31), (7, 3, 3)])
@pytest.mark.parametrize("patch", [(16, 16), (8, 12), (2, 5, 9), (16, 16, 16)])
def test_tiles_cover_the_grid_from_inside(size: tuple[int, ...], patch: tuple[int, ...]) -> None:
    seen, boxes = np.zeros(size, int), list(tiles(size, patch))
    whole = (*[1] * (3 - len(patch)), *patch)
    for box in boxes:
        assert seen[box].shape == tuple(min(n, p) for n, p in zip(size, whole))
        seen[box] += 1
    assert seen.min() == 1
    assert len(boxes) == np.prod([-(-n // p) for n, p in zip(size, whole)])


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two validation cases, preprocessed; class 2 is not annotated in the second."""
    data = phantom.write_dataset(
        tmp_path_factory.mktemp("presence") / "data", 4, test=0, shape=(10, 20, 20), classes=3
    )
    asked = Settings(str(data), "cmu").set(
        ["dims=2", "patch_vox=16,16", "base_width=4", "batch_size=4"]
    )
    run = Run(data.with_name("run"), asked)
    run.check()
    run.make_plan()
    run.preprocess()
    cases = run.dataset.train
    run._cases = (cases[2:], cases[:2])
    run.__dict__.pop("snapshot", None)
    known = {cases[0].name: (True, True, True), cases[1].name: (True, True, False)}
    whole = run.cached
    run.cached = lambda asked: [replace(c, annotated=known[c.record.name]) for c in whole(asked)]  # type: ignore[method-assign]
    return run


def slice_by_slice(
    run: Run, predict: Callable[[Tensor], Tensor]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each validation case the classes that `predict` gives its tiles, laid side by side, and
    the tiles' labels.
    """
    out = {}
    for case in run.cached(run.split[1]):
        z, y = [], []
        for box in tiles(case.label.shape, run.plan.patch_vox):
            x = torch.from_numpy(case.patch(box, run.plan.channels)[:, 0])[None]
            z.append(predict(x)[0].argmax(0).numpy())
            y.append(np.array(case.label[box][0]))
        out[case.record.name] = np.array(z), np.array(y)
    return out


@torch.no_grad()
def test_the_dice_of_a_gate_is_that_of_predicting_behind_it(
    validated: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "SHARES", (0, 0.3, 0.6))
    torch.manual_seed(1)
    method = CMU(validated.plan, "cmunet").eval()
    head = head_of(method)
    spread = torch.stack([head.both(patch)[1] for patch in some_slices(validated)])
    head.linear.bias -= spread.mean((0, 1))  # so that the head is in two minds
    head.linear.weight *= 5 / spread.std((0, 1)).view(-1, 1)
    assert gate(validated, method) is method
    content = read_json(validated.folder / "gate-1" / "gate.json")
    assert [content[name]["cases"] for name in ("bright", "dark")] == [2, 1]
    assert content["dark"]["threshold"] == 0  # of one case nothing can be said
    assert head.gate == (content["bright"]["threshold"], 0.0)
    different = 0
    for k, name in enumerate(("bright", "dark")):
        for threshold, claimed in [(0.0, content[name]["dice"]), *content[name]["tried"]]:
            head.gate = tuple(threshold if i == k else 0.0 for i in range(2))
            scores = []
            for p, y in list(slice_by_slice(validated, method.predict).values())[
                : content[name]["cases"]
            ]:
                both = ((p == k + 1) & (y == k + 1)).sum()
                scores.append(2 * both / ((p == k + 1).sum() + (y == k + 1).sum()))
            assert claimed == pytest.approx(np.mean(scores), abs=1e-6)
            different += claimed != content[name]["dice"]
    assert different > 1


def some_slices(run: Run) -> list[Tensor]:
    case = run.cached(run.split[1])[0]
    boxes = list(tiles(case.label.shape, run.plan.patch_vox))[::5]
    return [torch.from_numpy(case.patch(box, run.plan.channels)[:, 0])[None] for box in boxes]


def test_no_validation_case_no_stage_and_no_gate(validated: Run) -> None:
    method = CMU(validated.plan, "cmunet")
    run = SimpleNamespace(plan=validated.plan, split=(validated.split[0], ()))
    assert gate(run, method) is method
    assert head_of(method).gate == (0.0, 0.0)
    plain = CMU(validated.plan, "cmunet", presence_weight=0)
    assert gate(validated, plain) is plain


def patches(*rows: tuple[float, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A case's patches: (probability, rightly predicted, predicted, of the class)."""
    table = np.array(rows)
    return table[:, 0], table[:, 1:].astype(int)


def test_a_gate_is_chosen_where_its_gain_is_more_than_its_error() -> None:
    right, wrong = (0.6, 10, 10, 10), (0.3, 0, 10, 0)
    content = choose_gate(*zip(patches(right, wrong), patches(right, wrong), patches(right)))
    assert content["dice"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert content["tried"] == [
        [pytest.approx(0.45), 1.0]
    ]  # gains 1/3, 1/3, 0: 0.222, standard error 0.111
    assert (content["threshold"], content["seen"], content["cases"]) == (
        content["tried"][0][0],
        0.3,
        3,
    )
    assert (
        choose_gate(*zip(patches(right, wrong), patches(right), patches(right)))["threshold"] == 0
    )  # 0.111, error 0.111
    assert choose_gate(*zip(patches(right, wrong)))["threshold"] == 0  # one case has no error
    assert choose_gate(*zip(patches(right), patches(right)))["threshold"] == 0  # no gain
    assert (
        choose_gate(*zip(patches(right), patches(right)))["seen"] == 1
    )  # no patch without the class
    unsure = (0.2, 10, 10, 10)  # to shut out the wrong patch costs a right one
    content = choose_gate(*zip(*[patches(right, wrong, unsure)] * 2))
    assert content["tried"] == [[0.1, pytest.approx(0.8)]]
    assert content["threshold"] == 0
    many = [(0.5 + i / 100, 10, 10, 10) for i in range(40)]
    content = choose_gate(*zip(*[patches(*many, (0.502, 0, 1000, 0))] * 2))
    assert [t for t, _ in content["tried"]] == pytest.approx(
        [0.25, 0.506]
    )  # none of 40 below, and one
    assert content["tried"][-1][1] == pytest.approx(2 * 390 / (390 + 400))
    assert content["threshold"] == content["tried"][-1][0]
    nothing = choose_gate(*zip(*[patches((0.4, 0, 5, 0))] * 2))  # a class that no case has
    assert nothing == {"threshold": 0.0, "seen": 0.4, "cases": 2, "dice": 0.0, "tried": []}
    assert choose_gate([], [])["cases"] == 0


# --- flags ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_largest_presence_is_over_all_slices_whatever_the_gate(validated: Run) -> None:
    torch.manual_seed(2)
    method = CMU(validated.plan, "cmunet").eval()
    head_of(method).gate = (1.0, 1.0)
    case = validated.cached(validated.split[1])[0]
    image = validated.image(case)
    largest = torch.zeros(2)
    assert image.shape[1:] == (
        10,
        20,
        20,
    )  # in patches of 16 x 16: four to a slice, none beyond the edge
    head = head_of(method)
    for d, h, w in np.ndindex(10, 2, 2):
        patch = image[None, :, d, 4 * h : 4 * h + 16, 4 * w : 4 * w + 16]
        largest = largest.maximum(head.probability(head.both(torch.from_numpy(patch))[1])[0])
    assert largest_presence(head, image, validated.plan) == pytest.approx(
        largest.tolist(), rel=1e-5
    )


def test_a_class_that_is_seen_and_not_segmented_is_flagged(tmp_path: Path) -> None:
    plan = laws.plan(classes=3)
    label = np.array([[[0, 2, 2]]])
    rows = flags(plan, [0.5, 0.9], [0.4, 0.4], label)
    assert rows == {
        "bright": {"presence": 0.5, "predicted_vox": 0, "flag": "missed"},
        "dark": {"presence": 0.9, "predicted_vox": 2, "flag": ""},
    }
    assert flags(plan, [0.4, 0.9], [0.4, 0.4], label)["bright"]["flag"] == ""
    write_flags(tmp_path, "a", rows)
    write_flags(tmp_path, "b", rows)
    write_flags(tmp_path, "a", flags(plan, [0.1, 0.9], [0.4, 0.4], label))
    with open(tmp_path / "presence.csv", encoding="utf-8") as file:
        read_back = [tuple(row.values()) for row in csv.DictReader(file)]
    assert read_back == [
        ("a", "bright", "0.1", "0", ""),
        ("a", "dark", "0.9", "2", ""),
        ("b", "bright", "0.5", "0", "missed"),
        ("b", "dark", "0.9", "2", ""),
    ]
    (tmp_path / "presence.csv").write_text("another,table\n", encoding="utf-8")
    with pytest.raises(ContextsegError, match=r"presence\.csv: its columns are not"):
        write_flags(tmp_path, "a", rows)


def test_several_heads_flag_by_their_mean_and_other_methods_do_not_count() -> None:
    plan = laws.plan(3)
    one, two = (laws.make("supervised", 3, seed, presence_weight=0.1).eval() for seed in (0, 1))
    head_of(one).seen, head_of(two).seen = (0.0, 1.0), (0.2, 1.0)
    image, label = phantom.patient(0, (20, 17, 16))[0][None], np.zeros((1, 1, 1), int)
    each = [largest_presence(head_of(method), image, plan) for method in (one, two)]
    assert all(0 < p < 1 for row in each for p in row)
    plain = laws.make("supervised", 3)
    rows = presence_flags([(method, image, plan) for method in (one, plain, two)], label)
    mean = np.mean(each, 0)
    assert [row["presence"] for row in rows.values()] == pytest.approx(mean, abs=1e-4)
    assert [row["flag"] for row in rows.values()] == ["missed" if mean[0] > 0.1 else "", ""]
    assert presence_flags([(plain, image, plan)], label) is None
