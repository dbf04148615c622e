"""CoLab: the oracles on M, labels and losses, and the meta-gradient held to double backward."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.func import functional_call
from torch.nn import functional as F

import laws
from contextseg.batch import IGNORE, Batch
from contextseg.errors import ContextsegError
from contextseg.losses import dice_ce, one_hot
from contextseg.methods.colab import (
    CoLab,
    Generator,
    called,
    context_loss,
    meta_gradient,
    piece,
    roi_loss,
    stepped,
)
from contextseg.methods.context import (
    FAR,
    context_label,
    distances,
    folded,
    known_classes,
    nearness,
    roi_distance,
)
from contextseg.nets import UNet
from contextseg.training import Training, train

torch.set_num_threads(1)


# --- M and the labels -----------------------------------------------------------------------------


def test_distance_is_to_the_roi_of_any_class_in_voxels_or_mm() -> None:
    label = np.array([[2, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 1]])
    distance = roi_distance(label, (9.0, 3.0, 1.0))  # the last two are the axes of a 2-D label
    for d, h, w in [(0, 0, 0), (0, 2, 2), (0, 0, 1), (0, 1, 1)]:
        nearest = min(np.hypot(h, w), np.hypot(h - 2, w - 3))
        assert distance[d, h, w] == pytest.approx(nearest, abs=1e-2)
    assert roi_distance(label, (9.0, 3.0, 1.0), "mm")[0, 1, 0] == 3
    assert (roi_distance(np.array([0, IGNORE, 0]), (1.0,)) == FAR).all()
    with pytest.raises(ContextsegError, match="distance_unit=cm"):
        roi_distance(label, (1.0, 1.0), "cm")


def test_nearness_is_one_up_to_the_margin_and_nothing_without_roi() -> None:
    d = torch.tensor([0.0, 29.9, 30, 40, FAR])
    assert nearness(d).tolist() == pytest.approx([1, 1, 1, np.exp(-0.5), 0])
    assert nearness(d, absent=1)[-1] == 1
    assert nearness(d, margin=0, tau=10)[1] == pytest.approx(np.exp(-2.99))


def soft(seed: int, classes: int, contexts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(-1, classes, (2, 5, 6), generator=random)
    q = torch.randn(2, contexts, 5, 6, generator=random, dtype=torch.float64).softmax(1)
    return label, q, torch.rand(2, 1, 5, 6, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("contexts", [1, 2, 4, 6])
def test_extended_label_sums_to_one_and_leaves_the_roi_alone(contexts: int) -> None:
    label, q, near = soft(0, 3, contexts)
    y = context_label(label, q, near, 3)
    assert y.shape == (2, 3 + contexts - 1, 5, 6)
    assert torch.allclose(y.sum(1), (label != IGNORE).double())
    assert torch.equal(y[:, 1:3], one_hot(label, 3)[:, 1:].double())
    background = (label == 0).unsqueeze(1)
    b = torch.zeros(contexts, dtype=torch.float64)
    b[0] = 1
    expected = near * q + (1 - near) * b.view(1, -1, 1, 1)  # Eq. 9
    background_part = torch.cat([y[:, :1], y[:, 3:]], 1)
    assert torch.allclose(background_part, expected * background)
    if contexts == 1:
        assert torch.allclose(y, one_hot(label, 3).double())


def test_where_nothing_is_near_the_label_is_plain_background() -> None:
    label, q, near = soft(1, 2, 4)
    y = context_label(label, q, torch.zeros_like(near), 2)
    assert torch.equal(y[:, :2], one_hot(label, 2).double())
    assert not y[:, 2:].any()


def test_roi_loss_is_one_against_all() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 4, 4))
    p = z.softmax(1)
    expected = sum(F.binary_cross_entropy(p[:, k], (label == k).double()) for k in (1, 2))
    assert roi_loss(z, label, torch.ones(2, 3, dtype=torch.bool)).item() == pytest.approx(
        float(expected), rel=1e-12
    )
    label[0, :2] = IGNORE
    changed = z.clone()
    changed[0, :, :2] += 5
    annotated = torch.tensor([[True, True, False], [True, True, True]])
    assert roi_loss(z, label, annotated) == roi_loss(changed, label, annotated)
    only = F.binary_cross_entropy(p[0, 1, 2:], (label[0, 2:] == 1).double())
    rest = sum(F.binary_cross_entropy(p[1, k], (label[1] == k).double()) for k in (1, 2))
    assert roi_loss(z, label, annotated).item() == pytest.approx(float(only + rest) / 2, rel=1e-12)
    assert roi_loss(z[:0], label[:0], annotated[:0]) == 0


def test_lower_levels_average_q_and_take_the_smallest_m() -> None:
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[0, 0, 0] = label[0, 1, 1] = 1
    q = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1) * torch.ones(1, 1, 4, 4)
    q[:, :, 2:] = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1)
    near = torch.ones(1, 1, 4, 4)
    near[0, 0, 3, 3] = 0.5
    z = torch.randn(1, 3, 2, 2)
    # the nearest voxel of the first 2 x 2 block is (1, 1), of the others background
    y = torch.zeros(1, 3, 2, 2)
    y[0, :, 0, 0] = torch.tensor([0.0, 1, 0])
    y[0, :, 0, 1] = torch.tensor([0.2, 0, 0.8])
    y[0, :, 1, 0] = torch.tensor([0.6, 0, 0.4])
    y[0, :, 1, 1] = torch.tensor([0.8, 0, 0.2])  # M = 0.5: half of it is plain background
    known = torch.ones(1, 2, dtype=torch.bool)
    assert float(context_loss(z, q, label, near, known)) == pytest.approx(
        float(dice_ce(z, y)), rel=1e-6
    )


def test_context_classes_become_background() -> None:
    z = torch.tensor([[1.0, 2.0, 3.0, 0.0]]).view(1, 4, 1)  # background, ROI, two contexts
    assert folded(z, 2, "max").flatten().tolist() == [3, 2]
    assert folded(z, 2)[0, 0, 0] == pytest.approx(np.log(np.exp(1) + np.exp(3) + 1), rel=1e-6)
    p = folded(z, 2).softmax(1)
    assert p[0, 1, 0] == pytest.approx(float(z.softmax(1)[0, 1, 0]))
    assert folded(z, 4) is z
    random = torch.randn(2, 6, 7, 5)
    every = random.argmax(1)
    assert torch.equal(folded(random, 3, "max").argmax(1), torch.where(every >= 3, 0, every))


def test_contexts_that_are_not_told_apart_do_not_enlarge_the_roi() -> None:
    z = (
        torch.tensor([0.3, 0.4, 0.3]).log().view(1, 3, 1)
    )  # one background of 0.6, in two contexts, beside a ROI of 0.4
    assert folded(z, 2).argmax(1).item() == 0
    assert folded(z, 2, "max").argmax(1).item() == 1


def test_unknown_organs_make_contexts_unknown() -> None:
    annotated = torch.tensor([[True, True, True], [True, False, True]])
    assert known_classes(annotated, 3).tolist() == [[True] * 5, [True, False, True, False, False]]


# --- the meta-gradient ----------------------------------------------------------------------------


def setting(
    classes: int, contexts: int, dims: int = 2
) -> tuple[UNet, Generator, Batch, torch.Tensor]:
    """f and g in float64, f with its gradient; a batch with unannotated voxels and a partly
    annotated item.
    """
    torch.manual_seed(classes + 10 * contexts)
    strides = [(1,) * dims, (2,) * dims, (2,) * dims]
    net = UNet(1, classes + contexts - 1, [4, 6, 8], strides, [(3,) * dims] * 3).double()
    generator = Generator(laws.plan(dims), contexts).double()
    b = laws.batch(0, dims=dims)
    cut = tuple(slice(0, 12) for _ in range(dims))
    label = b.label[(slice(0, 2), *cut)].clamp(max=classes - 1)
    batch = Batch(
        b.image[(slice(0, 2), slice(None), *cut)].double(),
        label,
        b.annotated[:2, :classes],
        b.case[:2],
    )
    return net, generator, batch, torch.rand(2, 1, *label.shape[1:], dtype=torch.float64)


def by_double_backward(
    net: UNet, generator: Generator, batch: Batch, near: torch.Tensor, lr: float
) -> list[torch.Tensor]:
    """d L_ROI(theta - lr grad L_seg(theta, omega)) / d omega, by autograd through the step."""
    theta = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    q = generator(batch.image).softmax(1)
    seg = context_loss(
        functional_call(net, theta, (batch.image,)), q, batch.label, near, batch.annotated
    )
    slopes = torch.autograd.grad(seg, list(theta.values()), create_graph=True)
    star = {name: p - lr * g for (name, p), g in zip(theta.items(), slopes)}
    judged = roi_loss(functional_call(net, star, (batch.image,))[0], batch.label, batch.annotated)
    return list(torch.autograd.grad(judged, list(generator.parameters())))


def with_gradient(net: UNet, generator: Generator, batch: Batch, near: torch.Tensor) -> None:
    with torch.no_grad():
        q = generator(batch.image).softmax(1)
    context_loss(net(batch.image), q, batch.label, near, batch.annotated).backward()


def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("contexts", [2, 4, 6])
@pytest.mark.parametrize("classes", [2, 3])
def test_exact_meta_gradient_equals_double_backward(classes: int, contexts: int, dims: int) -> None:
    net, generator, batch, near = setting(classes, contexts, dims)
    with_gradient(net, generator, batch, near)
    lr = 0.05
    gradient = flat(meta_gradient(net, generator, batch, near, lr)) * lr
    true = flat(by_double_backward(net, generator, batch, near, lr))
    assert float((gradient - true).abs().max() / true.abs().max()) < 1e-10
    assert true.abs().max() > 0


def test_the_finite_difference_is_only_near() -> None:
    net, generator, batch, near = setting(2, 2)
    with_gradient(net, generator, batch, near)
    true = flat(meta_gradient(net, generator, batch, near, 0.05))
    gradient = flat(meta_gradient(net, generator, batch, near, 0.05, product="finite"))
    assert 1e-6 < float((gradient - true).norm() / true.norm()) < 0.5


def test_gradients_that_must_be_zero() -> None:
    net, generator, batch, near = setting(2, 2)
    with_gradient(net, generator, batch, near)
    nowhere = meta_gradient(net, generator, batch, torch.zeros_like(near), 0.05)
    assert all(not g.any() for g in nowhere)  # M = 0: g has no say
    nothing = batch.only(torch.zeros(2, dtype=torch.bool))
    assert all(not g.any() for g in meta_gradient(net, generator, nothing, near[:0], 0.05))
    unlabelled = Batch(
        batch.image, torch.full_like(batch.label, IGNORE), batch.annotated, batch.case
    )
    assert all(not g.any() for g in meta_gradient(net, generator, unlabelled, near, 0.05))
    roi = Batch(batch.image, torch.ones_like(batch.label), batch.annotated, batch.case)
    assert all(
        not g.any() for g in meta_gradient(net, generator, roi, near, 0.05)
    )  # no background to split


def test_a_step_is_plain() -> None:
    net, generator, batch, near = setting(2, 2)
    with_gradient(net, generator, batch, near)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    star = stepped(net, 0.3)
    torch.optim.SGD(net.parameters(), 0.3).step()
    assert all(torch.allclose(star[name], p, atol=1e-15) for name, p in net.named_parameters())
    assert any(not torch.equal(star[name], before[name]) for name in star)


def test_half_precision_gives_nearly_the_same_direction() -> None:
    net, generator, batch, near = setting(2, 2)
    net, generator, near = net.float(), generator.float(), near.float()
    batch = Batch(batch.image.float(), batch.label, batch.annotated, batch.case)
    with_gradient(net, generator, batch, near)
    exact = flat(meta_gradient(net, generator, batch, near, 0.05))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        half = flat(meta_gradient(net, generator, batch, near, 0.05))
    assert F.cosine_similarity(exact, half, 0) > 0.9  # bfloat16 has 8 bits


# --- the method -----------------------------------------------------------------------------------


def test_one_context_class_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    plain = laws.train_briefly(laws.make("supervised"), tmp_path / "plain", 4)
    one = laws.train_briefly(laws.make("colab", context_classes=1), tmp_path / "one", 4)
    weights = one.state_dict()
    assert list(weights) == list(plain.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())


def test_the_generator_moves_only_when_it_looks_ahead(tmp_path: Path) -> None:
    method = laws.make("colab", generator_every=3)
    seen: list[torch.Tensor] = []

    def at(n: int, rank: int, world: int, device: object) -> Batch:
        seen.append(flat([p.detach().clone() for p in method.generator.parameters()]))
        return laws.batch(n, rank, world)

    train(method, at, tmp_path, Training(steps=6, lr=0.01, log_every=10), batch_size=4)
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True, False, False, True, False]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("items", [1, 2])
def test_the_last_level_alone_is_stepped_ahead(dims: int, items: int) -> None:
    """As by double backward, where theta* moves the last level and nothing else."""
    method = laws.make("colab", dims, lookahead_layers="last", lookahead_parts=1)
    method.turns, method.every = items, 1
    method, batch = method.double(), laws.batch(0, dims=dims)
    method.generator.double()
    batch = replace(batch, image=batch.image.double())
    method(batch)["seg"].backward()
    lr, step = 0.05, 1
    found = flat(method.lookahead(batch, lr, step, lambda values: None)["generator"])
    mine = torch.arange(4) % items == step % items
    part = batch.only(mine)
    near = method.near(distances(part)).double()
    net, last = method.net, {id(p) for p in method.net.last_level((1,)).parameters()}
    theta = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    given = {name: p.grad for name, p in net.named_parameters()}
    outputs = functional_call(net, theta, (part.image,))
    q = method.generator(part.image).softmax(1)
    seg = context_loss(outputs, q, part.label, near, part.annotated, method.lookahead_loss)
    slopes = torch.autograd.grad(seg, list(theta.values()), create_graph=True)
    ends = [name for name, p in net.named_parameters() if id(p) in last]
    star = {
        name: (p.detach() - lr * given[name]) if name in ends else p.detach()
        for name, p in theta.items()
    }
    star = {name: p.requires_grad_() for name, p in star.items()}
    judged = roi_loss(functional_call(net, star, (part.image,))[0], part.label, part.annotated)
    v = torch.autograd.grad(judged, [star[name] for name in ends])
    picked = dict(zip(theta, slopes))
    value = sum((picked[name] * one).sum() for name, one in zip(ends, v))
    share = len(part) / len(batch)
    # the look-ahead's v and gradient are shares of the whole batch's means
    true = -flat(list(torch.autograd.grad(value, list(method.generator.parameters())))) * share**2
    assert float((found - true).abs().max() / true.abs().max()) < 1e-9
    assert 0 < len(ends) < len(theta)


def test_the_last_level_is_refused_where_it_is_not_known() -> None:
    with pytest.raises(ContextsegError, match="give lookahead_parts=1"):
        CoLab(laws.plan(), lookahead_layers="last", lookahead_parts=2)
    with pytest.raises(ContextsegError, match="does not say which"):
        CoLab(laws.plan(2), net="deeplab-small", lookahead_layers="last", lookahead_parts=1)


def plain_steps(method: CoLab) -> CoLab:
    """Both optimisers as plain steps, so that what they did can be written down."""
    net, generator = list(method.net.parameters()), list(method.generator.parameters())
    method.optimizers = lambda lr: {  # type: ignore[method-assign]
        "net": torch.optim.SGD(net, 0.1),
        "generator": torch.optim.SGD(generator, 0.1),
    }
    return method


@pytest.mark.parametrize("labels_from", ["updated", "current"])
def test_one_step_is_that_of_algorithm_1(labels_from: str, tmp_path: Path) -> None:
    """Lines 5 to 11: g descends L_ROI(theta*), then f descends L_seg on g's labels."""
    options = {"lookahead_items": 1, "lookahead_parts": 1, "labels_from": labels_from}
    method = plain_steps(laws.make("colab", **options))
    method.every, batch = 1, laws.batch(0)
    near = method.near(distances(batch))
    net, generator = copy.deepcopy(method.net), copy.deepcopy(method.generator)
    before = generator(batch.image).softmax(1).detach()
    meta = by_double_backward(net, generator, batch, near, 0.01)
    with torch.no_grad():
        for p, gradient in zip(generator.parameters(), meta):
            p -= 0.1 * gradient / 0.01  # the factor alpha is left to g's rate
    q = generator(batch.image).softmax(1).detach() if labels_from == "updated" else before
    loss = context_loss(net(batch.image), q, batch.label, near, batch.annotated)
    slopes = torch.autograd.grad(loss, list(net.parameters()))
    laws.train_briefly(method, tmp_path, 1, clip=1e9)
    moved = flat([-0.1 * slope for slope in slopes])
    pairs = zip(method.net.parameters(), net.parameters())
    found = flat([(after - start).detach() for after, start in pairs])
    assert float((found - moved).norm() / moved.norm()) < 1e-4
    if labels_from == "updated":  # the two orders differ by more than that
        other = context_loss(net(batch.image), before, batch.label, near, batch.annotated)
        old = flat([-0.1 * x for x in torch.autograd.grad(other, list(net.parameters()))])
        assert float((found - old).norm() / moved.norm()) > 1e-3


def test_updated_labels_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(seed: int) -> CoLab:
        return laws.make("colab", seed=seed, labels_from="updated")  # type: ignore[return-value]

    whole = laws.train_briefly(made(0), tmp_path / "whole", 5).state_dict()
    real, seen = laws.batch, []

    def interrupting(n: int, *args: int, **kwargs: int) -> object:
        seen.append(n)
        if n == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt
        return real(n, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        laws.train_briefly(made(0), tmp_path / "part", 5, save_every=2)
    resumed = laws.train_briefly(made(99), tmp_path / "part", 5, save_every=2).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def one_rank_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    method = plain_steps(laws.make("colab", labels_from="updated"))  # type: ignore[arg-type]
    laws.train_briefly(method, folder, 1, clip=1e9)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # once in some thousand times a thread of torch aborts a process that ends


def test_updated_labels_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    start = {n: v.clone() for n, v in laws.make("colab").state_dict().items()}
    mp.spawn(one_rank_of_two, (tmp_path,), nprocs=2)
    two = torch.load(tmp_path / "model.pt", weights_only=True)
    method = plain_steps(laws.make("colab", labels_from="updated"))  # type: ignore[arg-type]
    one = laws.train_briefly(method, tmp_path / "one", 1, clip=1e9).state_dict()
    names = [name for name in one if name.startswith(("net.", "generator."))]
    moved = max(float((one[n] - start[n]).abs().max()) for n in names)
    assert max(float((one[n] - two[n]).abs().max()) for n in names) < 1e-4 * moved


@pytest.mark.parametrize("generator", ["small", "full"])
def test_a_generator_has_probabilities_of_the_image_size(generator: str) -> None:
    for dims in (2, 3):
        method = CoLab(laws.plan(dims), context_classes=4, generator=generator)
        q = method.contexts_of(torch.randn(2, 1, *(13, 9, 17)[:dims]))
        assert q.shape == (2, 4, *(13, 9, 17)[:dims])
        assert torch.allclose(q.sum(1), torch.ones(()), atol=1e-6)


def test_a_small_generator_is_small() -> None:
    full, small = (
        sum(p.numel() for p in Generator(laws.plan(), 2, size).parameters())
        for size in ("full", "small")
    )
    assert small < full / 3


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"context_classes": 0}, "context_classes=0"),
        ({"generator": "smal"}, "generator=smal"),
        ({"meta": "exakt"}, "meta=exakt"),
        ({"lookahead_layers": "lats"}, "lookahead_layers=lats"),
        ({"labels_from": "updatet"}, "labels_from=updatet"),
        ({"background": "mean"}, "background=mean"),
        ({"generator_every": 0}, "generator_every=0"),
        ({"lookahead_parts": 0}, "lookahead_parts=0"),
        ({"generator_lr": -1.0}, "generator_lr=-1"),
        ({"tau": 0.0}, "tau=0"),
        ({"margin": -1.0}, "margin=-1"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ContextsegError, match=named):
        CoLab(laws.plan(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(32, 20, 33), (17, 40)])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_pieces_cover_a_patch_and_hold_what_lies_there(shape: tuple[int, ...], parts: int) -> None:
    space = torch.arange(float(np.prod(shape))).view(1, 1, *shape)
    annotated, case, maps = (
        torch.ones(1, 2, dtype=torch.bool),
        torch.zeros(1),
        space.repeat(1, 2, *[1] * len(shape)),
    )
    whole = Batch(space, space[:, 0].long(), annotated, case, maps)
    count = int(np.prod([parts if max(-(-n // parts), 16) < n else 1 for n in shape]))
    seen = torch.zeros(space.numel(), dtype=torch.int64)
    for n in range(count):
        part = piece(whole, n, parts)
        assert torch.equal(part.image[:, 0].long(), part.label)
        assert torch.equal(part.maps[:, 1], part.image[:, 0])
        assert all(
            max(-(-size // parts), min(size, 16)) == s
            for size, s in zip(shape, part.label.shape[1:])
        )
        seen[part.label.flatten()] += 1
    assert (seen > 0).all()
    assert torch.equal(
        piece(whole, count, parts).label, piece(whole, 0, parts).label
    )  # and again from the beginning
    assert parts > 1 or torch.equal(piece(whole, 5, 1).image, whole.image)


def test_a_network_with_a_module_under_two_names_keeps_its_weights():
    """As nnU-Net's: torch's functional_call would leave the given weights in it."""

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 1)
            self.again = torch.nn.Sequential(self.conv)

        def forward(self, x):
            return self.again(x)

    net = Twice()
    before = dict(net.named_parameters())
    given = {name: torch.ones_like(p) for name, p in before.items()}
    out = called(net, given, torch.ones(1, 1, 2, 2))
    assert torch.equal(out, torch.full((1, 2, 2, 2), 2.0))
    assert all(p is before[name] for name, p in net.named_parameters())
    assert net.again[0].weight is net.conv.weight
