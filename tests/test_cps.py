"""Cross pseudo supervision: by hand on fixed logits, then through the loop and a whole run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import laws
from contextseg.batch import IGNORE, Batch
from contextseg.data import phantom
from contextseg.errors import ContextsegError
from contextseg.losses import NEVER, cross_entropy, merge_unknown
from contextseg.methods.cps import AREA, CPS, admissible, answer, boxes, halved, left_open, ramp
from contextseg.methods.supervised import Supervised
from contextseg.pipeline import run_pipeline
from contextseg.runs import Run
from contextseg.settings import Settings

torch.set_num_threads(1)


class Fixed(nn.Module):
    """A network that says the same whatever it sees."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.z


def fixed(one: Tensor, two: Tensor, **arguments: object) -> CPS:
    method = CPS(laws.plan(2), net="unet", smoothing=0.0, **arguments)  # type: ignore[arg-type]
    method.nets = nn.ModuleList([Fixed(one), Fixed(two)])
    method.decay(1.0)  # a ramp of 1
    return method


def batch_of(label: Tensor, annotated: Tensor | None = None) -> Batch:
    annotated = torch.ones(len(label), 3, dtype=torch.bool) if annotated is None else annotated
    return Batch(
        torch.zeros(len(label), 1, *label.shape[1:]), label, annotated, torch.arange(len(label))
    )


# --- schedules ------------------------------------------------------------------------------------


def test_the_weight_follows_the_fraction_of_the_training() -> None:
    by_hand = {
        0.0: 0.006738,
        0.25: 0.060055,
        0.5: 0.286505,
        0.75: 0.731616,
        1.0: 1.0,
    }  # shared/methods.md
    torch.manual_seed(0)
    z, label = torch.randn(2, 1, 3, 4, 4), torch.full((1, 4, 4), IGNORE)
    full = float(fixed(z[0], z[1], weight=1.0)(batch_of(label))["cps"].detach())
    half = fixed(z[0], z[1], weight=0.5)
    for done, share in by_hand.items():
        assert ramp(done) == pytest.approx(share, abs=5e-7)
        half.decay(done)
        assert float(half(batch_of(label))["cps"].detach()) == pytest.approx(
            0.5 * ramp(done) * full, rel=1e-5
        )


def test_the_rate_is_halved_twice() -> None:
    factors = [halved(step / 50_000) for step in range(50_000)]
    assert [factors.count(f) for f in (1.0, 0.5, 0.25)] == [40_000, 5_000, 5_000]
    assert factors == sorted(factors, reverse=True)


# --- what each learns -----------------------------------------------------------------------------


def test_each_learns_the_others_answer_by_hand() -> None:
    """Four voxels in a row, one labelled; cross-entropy and Dice written out."""
    torch.manual_seed(0)
    one, two = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    label = torch.tensor([[IGNORE, IGNORE, IGNORE, 1]])
    p = [z.softmax(1)[0, :, :3] for z in (one, two)]
    best = [z.argmax(1)[0, :3] for z in (one, two)]
    entropy = [-p[i][best[1 - i], range(3)].log().mean() for i in (0, 1)]
    value = fixed(one, two, unsupervised="ce")(batch_of(label))["cps"]
    assert float(value.detach()) == pytest.approx(float(sum(entropy)), rel=1e-5)
    dice = 0.0
    for i in (0, 1):
        for k in (1, 2):
            y = best[1 - i] == k
            dice += (1 - (2 * p[i][k][y].sum() + 1e-5) / (p[i][k].sum() + y.sum() + 1e-5)) / 2
    assert float(fixed(one, two)(batch_of(label))["cps"].detach()) == pytest.approx(
        float(dice), rel=1e-5
    )


def test_what_the_other_is_unsure_of_is_not_learnt() -> None:
    """Probabilities of 0.9 and 0.6 in network one, 0.8 in network two: each learns where the other
    is sure.
    """
    one = torch.tensor([[[0.1, 0.4, 0.9], [0.9, 0.6, 0.1]]]).log()
    two = torch.tensor([[[0.8, 0.8, 0.8], [0.2, 0.2, 0.2]]]).log()
    label = torch.full((1, 3), IGNORE)
    for certain, of_one, of_two in (
        (0.0, [0, 0, 0], [1, 1, 0]),
        (0.7, [0, 0, 0], [1, IGNORE, 0]),
        (0.85, [IGNORE] * 3, [1, IGNORE, 0]),
        (0.95, [IGNORE] * 3, [IGNORE] * 3),
    ):
        method = fixed(one, two, unsupervised="ce", certain=certain)
        expected = cross_entropy(one, torch.tensor([of_one])) + cross_entropy(
            two, torch.tensor([of_two])
        )
        assert float(method(batch_of(label))["cps"].detach()) == pytest.approx(
            float(expected), rel=1e-5
        )


@pytest.mark.parametrize("unsupervised", ["dice", "ce"])
def test_what_is_known_is_left_to_its_label(unsupervised: str) -> None:
    """Class 2 is not annotated in item 0: its voxels labelled 0 are background or class 2, and
    nothing else.
    """
    torch.manual_seed(1)
    z = torch.randn(2, 3, 3, 5)
    label = torch.tensor([[0, 0, 1, IGNORE, 0], [0, 1, 2, 0, 0], [IGNORE] * 5])
    annotated = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    z[:, 0, :, 4] = torch.tensor(
        [-1.0, 9.0, 1.0]
    )  # both are sure of class 1, which the label says it is not
    method = fixed(z[0], z[1], unsupervised=unsupervised)
    method(batch_of(label, annotated))["cps"].backward()
    for net in method.nets:
        gradient = net.z.grad
        assert gradient[1].abs().max() == 0  # all labelled: nothing to learn
        assert gradient[0, :, 2].abs().max() == 0
        assert gradient[0, 1, [0, 1, 4]].abs().max() == 0  # class 1 is annotated
        assert gradient[0, [0, 2], :][:, [0, 1, 4]].abs().min() > 0
        assert gradient[0, :, 3].abs().min() > 0
        assert gradient[2].abs().min() > 0
    before = method(batch_of(label, annotated))["cps"]
    with torch.no_grad():
        method.nets[1].z[0, 1, [0, 1, 4]] += 5.0
        method.nets[1].z[1] += torch.randn(3, 5)
    assert torch.equal(method(batch_of(label, annotated))["cps"], before)


def test_both_terms_together_are_the_whole_likelihood() -> None:
    """log p(merged) + log p(k, given that it is one of the merged) = log p(k): nothing is trained
    on twice.
    """
    torch.manual_seed(2)
    z, label, annotated = (
        torch.randn(1, 4, 6),
        torch.zeros(1, 6).long(),
        torch.tensor([[True, False, True, False]]),
    )
    merged = merge_unknown(z, annotated).log_softmax(1)[:, 0]
    given = admissible(z, label, annotated).log_softmax(1)
    assert torch.allclose(
        merged.unsqueeze(1) + given[:, [0, 1, 3]], z.log_softmax(1)[:, [0, 1, 3]], atol=1e-6
    )
    assert (given[:, 2] < NEVER / 2).all()


def test_the_term_is_a_mean_over_items() -> None:
    torch.manual_seed(3)
    z = torch.randn(2, 2, 3, 5)
    label = torch.tensor([[IGNORE] * 5, [0, 1, 2, 0, 0]])
    both = fixed(z[0], z[1])(batch_of(label))["cps"]
    first = fixed(z[0, :1], z[1, :1])(batch_of(label[:1]))["cps"]
    assert float(both.detach()) == pytest.approx(
        float(first.detach()) / 2, rel=1e-6
    )  # the second counts 0
    empty = fixed(z[0, :0], z[1, :0])(batch_of(label[:0]))
    assert [float(term.detach()) for term in empty.values()] == [0, 0]


def test_with_labels_alone_each_network_is_plain_training() -> None:
    b = laws.batch(0, dims=2)
    label = b.label.clone()
    label[label == IGNORE] = 0
    b = replace(b, label=label, annotated=torch.ones_like(b.annotated))
    torch.manual_seed(0)
    method, plain = CPS(laws.plan(2), smoothing=0.0), Supervised(laws.plan(2))
    plain.net.load_state_dict(method.nets[1].state_dict())
    losses = method(b)
    assert float(losses["cps"].detach()) == 0
    torch.stack(list(losses.values())).sum().backward()
    plain(b)["seg"].backward()
    for one, other in zip(method.nets[1].parameters(), plain.net.parameters()):
        assert torch.equal(one.grad, other.grad)
    seg = []
    for smoothing in (0.1, 0.2):
        smooth = CPS(laws.plan(2), smoothing=smoothing)
        smooth.load_state_dict(method.state_dict())
        seg.append(float(smooth(b)["seg"].detach()) - float(losses["seg"].detach()))
    assert seg[0] != 0
    assert seg[1] == pytest.approx(2 * seg[0], rel=1e-3)  # it is linear in the smoothing


def test_the_networks_differ_and_step_apart() -> None:
    method = CPS(laws.plan(2))
    pairs = list(zip(*(net.state_dict().values() for net in method.nets)))
    assert any(not torch.equal(a, b) for a, b in pairs)
    groups = method.optimizers(0.1)
    assert [len(o.param_groups[0]["params"]) for o in groups.values()] == [
        len(list(n.parameters())) for n in method.nets
    ]
    mixed = CPS(laws.plan(2), net="unet", second="resenc")
    assert [type(net).__name__ for net in mixed.nets] == ["UNet", "ResidualUNet"]


def test_predict_is_the_mean_of_both() -> None:
    torch.manual_seed(4)
    z = torch.randn(2, 1, 3, 4, 4)
    p = fixed(z[0], z[1]).predict(torch.zeros(1, 1, 4, 4)).exp()
    assert torch.allclose(p, (z[0].softmax(1) + z[1].softmax(1)) / 2, atol=1e-6)


# --- CutMix ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 60), (20, 30, 40)])
def test_boxes_are_of_the_asked_size_and_anywhere(size: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    one = boxes(300, size, number=1)
    again = boxes(300, size, number=1)
    torch.manual_seed(5)
    assert torch.equal(boxes(300, size, number=1), one)
    assert not torch.equal(again, one)
    share = one.flatten(1).float().mean(1)
    assert float(share.mean()) == pytest.approx(sum(AREA) / 2, abs=0.02)
    assert AREA[0] - 0.06 < share.min() < share.max() < AREA[1] + 0.06  # sides are whole voxels
    for item in one[:20]:
        inside = item.nonzero()
        low, high = inside.min(0).values, inside.max(0).values
        assert int(item.sum()) == int((high - low + 1).prod())  # one box
    for axis in range(1, 1 + len(size)):
        assert one.movedim(axis, 0).flatten(1).any(1).all()  # they reach both ends
    several = boxes(300, size).flatten(1).float().mean(1)
    assert 0.15 < float(several.mean()) < sum(AREA) / 2  # what two share is left out


class Pointwise(nn.Module):
    """A network that sees one voxel at a time: its answer moves with the voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Tanh(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_cutmix_moves_the_answers_with_the_image() -> None:
    torch.manual_seed(6)
    method = CPS(laws.plan(2), cutmix=True)
    method.nets = nn.ModuleList([Pointwise(), Pointwise()])
    b = laws.batch(0, dims=2, labelled=1)
    mixed = method._mixed(b)
    assert mixed is not None
    assert torch.equal(mixed.image[0], b.image[0])
    moved = (mixed.image != b.image)[1:].float().mean()
    assert 0.1 < float(moved) < 0.5
    assert torch.equal(mixed.image[1:].sum(0) != 0, b.image[1:].sum(0) != 0)
    with torch.no_grad():
        for net, given in zip(method.nets, mixed.answers):
            assert torch.equal(given[1:], net(mixed.image[1:]).argmax(1))
        method.certain = 0.39
        mixture = method._mixed(b)
        assert mixture is not None
        for net, given in zip(method.nets, mixture.answers):
            p, best = net(mixture.image[1:]).softmax(1).max(1)
            assert torch.equal(given[1:], torch.where(p >= 0.39, best, IGNORE))
            assert 0.05 < float((p >= 0.39).float().mean()) < 0.95
        method.certain = 0.0
    torch.manual_seed(7)
    terms = method(b)
    torch.manual_seed(7)
    again = method._mixed(b)
    assert again is not None
    method.cutmix = False
    plain = method(replace(b, image=again.image))
    assert torch.allclose(terms["cps"], plain["cps"], atol=1e-6)
    assert method._mixed(laws.batch(0, dims=2, labelled=3)) is None  # one alone has no partner


def test_cutmix_is_resumed_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> CPS:
        torch.manual_seed(0)
        return CPS(laws.plan(2), cutmix=True)

    whole = laws.train_briefly(make(), tmp_path / "whole", 4, 2, labelled=2).state_dict()
    real = laws.batch

    def interrupting(n: int, *args: int, **kwargs: int) -> Batch:
        if n == 3:
            raise KeyboardInterrupt
        return real(n, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        laws.train_briefly(make(), tmp_path / "part", 4, 2, labelled=2, save_every=2)
    monkeypatch.setattr(laws, "batch", real)
    part = laws.train_briefly(make(), tmp_path / "part", 4, 2, labelled=2).state_dict()
    assert all(torch.equal(whole[name], part[name]) for name in whole)


# --- a run ----------------------------------------------------------------------------------------


def test_a_whole_run_on_few_labels(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, unlabelled=2, test=1)
    small = ["steps=2", "patch_vox=16,16,16", "base_width=4", "batch_size=2", "device=cpu"]
    seen: list[list[bool]] = []
    original = CPS.forward

    def looking(self: CPS, batch: Batch) -> dict[str, Tensor]:
        seen.append((batch.label == IGNORE).flatten(1).all(1).tolist())
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CPS, "forward", looking)
        outcome = run_pipeline(
            Run(
                tmp_path / "run",
                Settings(str(data), "cps").set([*small, "prediction.mirror=false"]),
            )
        )
    assert outcome.table is not None
    assert seen == [[False, True]] * 2  # half of the batch
    full = phantom.write_dataset(tmp_path / "full", labelled=2, test=0)
    with pytest.raises(ContextsegError, match="all have labels"):
        run_pipeline(Run(tmp_path / "second", Settings(str(full), "cps").set(small)))


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ContextsegError, match="dice"):
        CPS(laws.plan(2), unsupervised="dise")
    with pytest.raises(ContextsegError, match="weight=-1"):
        CPS(laws.plan(2), weight=-1)
    with pytest.raises(ContextsegError, match="certain=1"):
        CPS(laws.plan(2), certain=1)
    with pytest.raises(ContextsegError, match="no such network"):
        CPS(laws.plan(2), second="nonet")


def test_nothing_is_left_open_in_a_fully_labelled_item() -> None:
    label, annotated = torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool)
    assert not left_open(label, annotated).any()
    assert answer(torch.randn(1, 3, 3), label, annotated).tolist() == [[IGNORE] * 3]
