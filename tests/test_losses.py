"""The laws that every loss keeps, a slow reference for each, and deep supervision."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from contextseg import losses
from contextseg.batch import IGNORE
from contextseg.losses import LOSSES, deep, deep_weights, merge_unknown, one_hot, shrunk

torch.set_num_threads(1)
SIZES = [(5, 4), (3, 4, 2)]
every_loss = pytest.mark.parametrize("name", LOSSES)
every_size = pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])


def draw(size, items=3, classes=4, seed=0, dtype=torch.float64):
    """Logits, labels with a third of the voxels unannotated, and flags: some classes unknown."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(items, classes, *size, generator=g, dtype=dtype)
    label = torch.randint(0, classes, (items, *size), generator=g)
    label[torch.rand(label.shape, generator=g) < 0.33] = IGNORE
    annotated = torch.rand(items, classes, generator=g) < 0.6
    annotated[:, 0] = True
    annotated[0] = torch.tensor(
        [True, True, False, True][:classes]
    )  # at least one known and one unknown
    return logits, label, annotated


def grad(f, logits):
    logits = logits.detach().clone().requires_grad_()
    loss = f(logits)
    loss.backward()
    return loss.detach(), logits.grad


# --- a slow reference: voxel by voxel, in probabilities -------------------------------------------


def probabilities(logits, known):
    """(K, N): the softmax, the unknown classes' share given to the background."""
    e = np.exp(logits - logits.max(0))
    p = e / e.sum(0)
    p[0] += p[~known].sum(0)
    p[~known] = 0
    return p


def slow(name, logits, label, annotated):
    total = 0.0
    for z, y, known in zip(logits.flatten(2).numpy(), label.flatten(1).numpy(), annotated.numpy()):
        p = probabilities(z, known)
        voxels = [(p[:, v], y[v] if known[y[v]] else 0) for v in range(len(y)) if y[v] != IGNORE]
        ce = np.mean([-math.log(q[k]) for q, k in voxels]) if voxels else 0.0
        focal = np.mean([-((1 - q[k]) ** 2) * math.log(q[k]) for q, k in voxels]) if voxels else 0.0
        dice = []
        for k in range(1, len(known)):
            if known[k]:
                both = sum(q[k] for q, own in voxels if own == k)
                size = sum(q[k] for q, _ in voxels) + sum(own == k for _, own in voxels)
                dice.append(1 - (2 * both + 1e-5) / (size + 1e-5))
        d = np.mean(dice) if dice else 0.0
        total += {"cross_entropy": ce, "focal": focal, "soft_dice": d, "dice_ce": ce + d}[name]
    return total / len(logits)


@every_loss
@every_size
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_reference(name, size, seed):
    logits, label, annotated = draw(size, seed=seed)
    assert LOSSES[name](logits, label, annotated).item() == pytest.approx(
        slow(name, logits, label, annotated), 1e-12
    )
    everything = torch.ones_like(annotated)
    expected = slow(name, logits, label, everything)
    assert LOSSES[name](logits, label).item() == pytest.approx(expected, 1e-12)
    assert LOSSES[name](logits.float(), label).item() == pytest.approx(expected, 1e-5)


# --- laws -----------------------------------------------------------------------------------------


@every_loss
@every_size
@pytest.mark.parametrize("soft", [False, True])
def test_what_lies_under_ignore_changes_nothing(name, size, soft):
    logits, label, annotated = draw(size)
    other = torch.where((label == IGNORE).unsqueeze(1), 50 * torch.randn_like(logits), logits)
    target = one_hot(label, 4).double() if soft else label
    loss, g = grad(lambda z: LOSSES[name](z, target, annotated), logits)
    loss2, g2 = grad(lambda z: LOSSES[name](z, target, annotated), other)
    assert torch.equal(loss, loss2)
    assert torch.equal(g, g2)
    hidden = (label == IGNORE).unsqueeze(1).expand_as(g)
    assert (g[hidden] == 0).all()
    assert (g[~hidden] != 0).any()


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_nothing_annotated_is_exactly_zero_with_zero_gradient(name, soft):
    logits, label, annotated = draw((3, 4, 2))
    label = torch.full_like(label, IGNORE)
    target = one_hot(label, 4) if soft else label
    for flags in (None, annotated):
        loss, g = grad(lambda z, flags=flags: LOSSES[name](z, target, flags), logits)
        assert loss == 0
        assert (g == 0).all()


@every_loss
def test_an_empty_batch_is_zero(name):
    loss, g = grad(
        lambda z: LOSSES[name](z, torch.zeros(0, 5, 4, dtype=torch.int64)), torch.zeros(0, 3, 5, 4)
    )
    assert loss == 0
    assert g.shape == (0, 3, 5, 4)


@every_loss
@every_size
def test_a_batch_is_the_mean_of_its_items_however_uneven(name, size):
    logits, label, annotated = draw(size, items=5)
    label[1] = IGNORE
    label[3].view(-1)[1:] = IGNORE  # one voxel, or none
    whole, g = grad(lambda z: LOSSES[name](z, label, annotated), logits)
    for parts in ([slice(i, i + 1) for i in range(5)], [slice(0, None, 2), slice(1, None, 2)]):
        each = [
            grad(lambda z, s=s: LOSSES[name](z, label[s], annotated[s]), logits[s]) for s in parts
        ]
        share = [len(label[s]) / 5 for s in parts]
        assert sum(n * loss for n, (loss, _) in zip(share, each)).item() == pytest.approx(
            whole.item(), 1e-12
        )
        for s, n, (_, part) in zip(parts, share, each):
            torch.testing.assert_close(n * part, g[s], rtol=1e-12, atol=1e-15)


@every_loss
def test_an_unannotated_item_adds_zero_and_counts(name):
    logits, label, _ = draw((3, 4, 2), items=2)
    label[1] = IGNORE
    assert LOSSES[name](logits, label).item() == pytest.approx(
        LOSSES[name](logits[:1], label[:1]).item() / 2, 1e-12
    )


@every_loss
@every_size
def test_perfect_logits_cost_nothing_and_wrong_ones_much(name, size):
    _, label, _ = draw(size)
    confident = 40 * one_hot(label, 4)
    assert 0 <= LOSSES[name](confident, label).item() < 1e-6
    assert LOSSES[name](-confident, label).item() > 0.5


@every_loss
@every_size
def test_a_soft_one_hot_target_is_the_hard_label(name, size):
    logits, label, annotated = draw(size)
    for flags in (None, annotated):
        hard, g = grad(lambda z, flags=flags: LOSSES[name](z, label, flags), logits)
        soft, g2 = grad(lambda z, flags=flags: LOSSES[name](z, one_hot(label, 4), flags), logits)
        assert soft.item() == pytest.approx(hard.item(), 1e-12)
        torch.testing.assert_close(g, g2, rtol=1e-10, atol=1e-15)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_half_precision_logits_stay_finite(name, dtype):
    logits, label, annotated = draw((3, 4, 2))
    logits = (80 * logits.sign()).to(dtype)
    for flags in (None, annotated):
        loss, g = grad(lambda z, flags=flags: LOSSES[name](z, label, flags), logits)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert g.dtype == dtype
        assert g.isfinite().all()
        exact = LOSSES[name](logits.double(), label, flags).item()
        assert loss.item() == pytest.approx(exact, 1e-5)


@every_loss
def test_autocast_changes_nothing(name):
    logits, label, annotated = draw((3, 4, 2), dtype=torch.float32)
    plain = LOSSES[name](logits, label, annotated)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](logits, label, annotated), plain)


@every_loss
@every_size
def test_mass_may_move_between_background_and_an_unknown_class(name, size):
    logits, label, annotated = draw(size)
    rest = logits.exp() * ~annotated[:, :, *[None] * len(size)]
    rest[:, 0] = logits[:, 0].exp()
    share = torch.rand_like(rest) * (rest > 0)
    moved = torch.where(
        rest > 0, (rest.sum(1, keepdim=True) * share / share.sum(1, keepdim=True)).log(), logits
    )
    assert not torch.allclose(moved, logits)
    assert torch.equal(moved[2, 1:][annotated[2, 1:]], logits[2, 1:][annotated[2, 1:]])
    expected = LOSSES[name](logits, label, annotated).item()
    assert LOSSES[name](moved, label, annotated).item() == pytest.approx(expected, 1e-10)


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_a_label_of_an_unknown_class_says_background_or_unknown(name, soft):
    logits, label, _ = draw((5, 4), items=1)
    annotated = torch.tensor([[True, True, False, True]])
    zeroed = torch.where(label == 2, 0, label)
    assert (zeroed != label).any()
    target, same = (one_hot(label, 4), one_hot(zeroed, 4)) if soft else (label, zeroed)
    assert torch.equal(
        LOSSES[name](logits, target, annotated), LOSSES[name](logits, same, annotated)
    )


@every_loss
def test_all_annotated_is_as_if_unsaid_bit_for_bit(name):
    logits, label, annotated = draw((3, 4, 2))
    loss, g = grad(lambda z: LOSSES[name](z, label), logits)
    loss2, g2 = grad(lambda z: LOSSES[name](z, label, torch.ones_like(annotated)), logits)
    assert torch.equal(loss, loss2)
    assert torch.equal(g, g2)


@every_loss
@pytest.mark.parametrize("partly", [False, True])
def test_gradients_against_finite_differences(name, partly):
    logits, label, annotated = draw((2, 3), items=2, classes=3)
    logits.requires_grad_()
    flags = annotated if partly else None
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, label, flags), [logits])
    # And by a soft target, twice; its unannotated columns stay zero.
    labelled = (label != IGNORE).unsqueeze(1)
    soft = (torch.rand(2, 3, 2, 3, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, y: LOSSES[name](z, y * labelled, flags), [logits, soft]
    )
    assert torch.autograd.gradgradcheck(
        lambda z, y: LOSSES[name](z, y * labelled, flags), [logits, soft]
    )


@every_loss
def test_a_target_of_another_size_is_refused(name):
    with pytest.raises(ValueError, match="not of one batch"):
        LOSSES[name](torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, dtype=torch.int64))


# --- single losses --------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0, 0.1]])
def test_cross_entropy_of_one_item_is_torchs(smoothing, weight):
    logits, label, _ = draw((3, 4, 2), items=1)
    tensor = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    expected = F.cross_entropy(
        logits, label, tensor, ignore_index=IGNORE, label_smoothing=smoothing
    )
    for target in (label, one_hot(label, 4)):
        ours = losses.cross_entropy(logits, target, weight=weight, smoothing=smoothing)
        assert ours.item() == pytest.approx(expected.item(), 1e-12)


def test_smoothing_goes_to_known_classes_alone():
    z = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64).view(1, 4, 1, 1)
    annotated = torch.tensor([[True, True, False, True]])
    p = z.flatten().softmax(0)
    a, b, c = -(p[0] + p[2]).log(), -p[1].log(), -p[3].log()
    expected = 0.7 * b + 0.3 * (a + b + c) / 3
    ours = losses.cross_entropy(z, torch.ones(1, 1, 1, dtype=torch.int64), annotated, smoothing=0.3)
    assert ours.item() == pytest.approx(expected.item(), 1e-12)


def test_dice_by_hand():
    # p of class 1: 0.75, 0.25, 0.5 and a fourth voxel that nobody has annotated; y: 1, 0, 1.
    p = torch.tensor([0.75, 0.25, 0.5, 0.9], dtype=torch.float64)
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 2, 2)
    label = torch.tensor([[[1, 0], [1, IGNORE]]])
    assert losses.soft_dice(logits, label, eps=0).item() == pytest.approx(
        1 - 2 * 1.25 / (1.5 + 2), 1e-12
    )
    # A soft target of 0.5 everywhere annotated.
    soft = one_hot(label, 2).double().sum(1, keepdim=True).expand(1, 2, 2, 2) / 2
    assert losses.soft_dice(logits, soft, eps=0).item() == pytest.approx(
        1 - 2 * 0.75 / (1.5 + 1.5), 1e-12
    )


def test_dice_of_an_absent_class():
    never = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    empty = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert losses.soft_dice(never, empty).item() == 0
    assert losses.soft_dice(-never, empty).item() == pytest.approx(1, abs=1e-5)


def test_dice_skips_unknown_classes():
    logits, label, _ = draw((3, 4, 2), items=1)
    single = [
        losses.soft_dice(logits, label, torch.tensor([[True, *(i == k for i in (1, 2, 3))]]))
        for k in (1, 2, 3)
    ]
    assert losses.soft_dice(logits, label).item() == pytest.approx(sum(single).item() / 3, 1e-12)
    assert losses.soft_dice(logits, label, torch.tensor([[True, False, False, False]])).item() == 0


@pytest.mark.parametrize("soft", [False, True])
@every_size
def test_pooled_dice_has_the_sums_of_all_items(size, soft):
    logits, label, annotated = draw(size, items=4)
    label[3] = IGNORE  # this item knows nothing: it is in no sum, and counts among the four
    target = one_hot(label, 4).double() if soft else label
    dice = {}
    for k in (1, 2, 3):
        both = total = 0.0
        for i in range(4):
            p = torch.from_numpy(probabilities(logits[i].flatten(1).numpy(), annotated[i].numpy()))[
                k
            ]
            y, labelled = label[i].flatten() == k, label[i].flatten() != IGNORE
            if annotated[i, k]:
                both += float(p[y].sum())
                total += float(p[labelled].sum() + y.sum())
        dice[k] = 1 - (2 * both + 1e-5) / (total + 1e-5)
    each = [[dice[k] for k in dice if annotated[i, k]] for i in range(3)]
    expected = sum(sum(d) / len(d) for d in each if d) / 4
    assert losses.soft_dice(logits, target, annotated, pooled=True).item() == pytest.approx(
        expected, 1e-9
    )
    ce = losses.cross_entropy(logits, target, annotated).item()
    assert losses.dice_ce(logits, target, annotated, pooled=True).item() == pytest.approx(
        expected + ce, 1e-9
    )


@pytest.mark.parametrize("name", losses.POOLED)
def test_pooling_changes_nothing_for_one_item_and_keeps_the_laws(name):
    loss = partial(LOSSES[name], pooled=True)
    logits, label, annotated = draw((3, 4, 2), items=1)
    assert loss(logits, label, annotated).item() == pytest.approx(
        LOSSES[name](logits, label, annotated).item(), 1e-12
    )
    assert loss(logits[:0], label[:0]) == 0
    silent, g = grad(lambda z: loss(z, torch.full_like(label, IGNORE), annotated), logits)
    assert silent == 0
    assert (g == 0).all()
    logits, label, annotated = draw((3, 4, 2), items=3)
    other = torch.where((label == IGNORE).unsqueeze(1), 50 * torch.randn_like(logits), logits)
    assert torch.equal(loss(logits, label, annotated), loss(other, label, annotated))


def test_a_patch_without_the_organ_weighs_what_its_voxels_do_when_pooled():
    """Three voxels falsely found: alone they are all that there is of the class, pooled a twentieth
    of it.
    """
    label = torch.zeros(2, 10, 10, dtype=torch.int64)
    label[0, :6] = 1
    confident = torch.where(label == 1, 20.0, -20.0)
    confident[1, 0, :3] = 20.0
    logits = torch.stack([-confident, confident], 1)
    assert losses.soft_dice(logits, label).item() == pytest.approx(0.5, abs=1e-3)
    assert losses.soft_dice(logits, label, pooled=True).item() == pytest.approx(
        1 - 120 / 123, abs=1e-3
    )


def test_focal_by_hand():
    p = torch.tensor(
        [0.9, 0.2], dtype=torch.float64
    )  # of class 1, at a voxel of class 1 and one of class 0
    logits = torch.stack([(1 - p).log(), p.log()]).view(1, 2, 1, 2)
    label = torch.tensor([[[1, 0]]])
    expected = (-0.8 * 0.1**3 * math.log(0.9) - 0.2 * 0.2**3 * math.log(0.8)) / 2
    alpha = torch.tensor([0.2, 0.8], dtype=torch.float64)
    assert losses.focal(logits, label, weight=alpha, gamma=3.0).item() == pytest.approx(
        expected, 1e-10
    )


def test_focal_without_gamma_is_cross_entropy():
    logits, label, annotated = draw((3, 4, 2))
    expected = losses.cross_entropy(logits, label, annotated).item()
    assert losses.focal(logits, label, annotated, gamma=0.0).item() == pytest.approx(
        expected, 1e-12
    )


def test_focal_with_gamma_below_one_has_a_finite_slope_at_certainty():
    _, g = grad(
        lambda z: losses.focal(z, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=0.5),
        torch.zeros(1, 2, 1, 1),
    )
    assert g.flatten()[0] < 0
    confident = torch.tensor([90.0, -90.0]).view(1, 2, 1, 1)
    _, g = grad(
        lambda z: losses.focal(z, torch.zeros(1, 1, 1, dtype=torch.int64), gamma=0.5), confident
    )
    assert g.isfinite().all()


def test_dice_ce_is_the_sum_of_both():
    logits, label, annotated = draw((3, 4, 2))
    w, s = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64), 0.2
    both = losses.cross_entropy(logits, label, annotated, w, s) + losses.soft_dice(
        logits, label, annotated, eps=1e-3
    )
    assert losses.dice_ce(logits, label, annotated, w, s, 1e-3).item() == pytest.approx(
        both.item(), 1e-12
    )


# --- class weights --------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("soft", [False, True])
def test_equal_weights_change_nothing_and_others_do(name, soft):
    logits, label, annotated = draw((3, 4, 2))
    target = one_hot(label, 4).double() if soft else label
    plain = LOSSES[name](logits, target, annotated)
    equal = LOSSES[name](logits, target, annotated, weight=[1.0] * 4)
    other = LOSSES[name](logits, target, annotated, weight=[1.0, 1.0, 1.0, 5.0])
    assert equal.item() == pytest.approx(plain.item(), 1e-12)
    assert other.item() != pytest.approx(plain.item(), 1e-3)


@every_loss
def test_a_weight_draws_the_gradient_to_its_class(name):
    """One voxel of each class, undecided: the heavier class is pulled up more."""
    logits = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    label = torch.tensor([[[0, 1, 2]]])
    _, g = grad(lambda z: LOSSES[name](z, label, weight=[1.0, 1.0, 3.0]), logits)
    assert g[0, 2, 0, 2] < g[0, 1, 0, 1] < 0


def test_the_weighted_mean_of_soft_dice_by_hand():
    logits, label, _ = draw((3, 4, 2), classes=3)
    one = [
        losses.soft_dice(logits, label, weight=[0.0, *w]).item() for w in ((1.0, 0.0), (0.0, 1.0))
    ]
    both = losses.soft_dice(logits, label, weight=[7.0, 1.0, 3.0]).item()
    assert both == pytest.approx((one[0] + 3 * one[1]) / 4, 1e-12)
    assert losses.soft_dice(logits, label).item() == pytest.approx(sum(one) / 2, 1e-12)


# --- one_hot, merge_unknown -----------------------------------------------------------------------


@every_size
def test_one_hot_is_torchs_with_zeros_where_ignored(size):
    _, label, _ = draw(size)
    expected = F.one_hot(label.clamp(min=0), 4).movedim(-1, 1) * (label != IGNORE).unsqueeze(1)
    assert torch.equal(one_hot(label, 4), expected.float())


def test_merging_nothing_returns_the_logits_themselves():
    logits, _, annotated = draw((5, 4))
    assert merge_unknown(logits, None) is logits
    assert merge_unknown(logits, torch.ones_like(annotated)) is logits


def test_merging_touches_only_the_items_that_need_it():
    logits, _, _ = draw((5, 4), items=2)
    annotated = torch.tensor([[True, True, True, True], [True, False, True, False]])
    merged = merge_unknown(logits, annotated)
    assert torch.equal(merged[0], logits[0])
    assert torch.equal(merged[1, 2], logits[1, 2])
    assert (merged[1, [1, 3]] == losses.NEVER).all()
    torch.testing.assert_close(merged[1, 0], logits[1, [0, 1, 3]].exp().sum(0).log())


def test_merging_by_hand():
    # Probabilities 1/6, 2/6, 3/6 with class 2 unknown: "background or class 2" has 4/6. The
    # gradient of -log of it is p_k - p_k / (4/6) for its two members and p_k for the other: 1/6 -
    # 1/4, 2/6, 3/6 - 3/4.
    z = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).log().view(1, 3, 1, 1)
    annotated = torch.tensor([[True, True, False]])
    loss, g = grad(
        lambda z: losses.cross_entropy(z, torch.zeros(1, 1, 1, dtype=torch.int64), annotated), z
    )
    assert loss.item() == pytest.approx(-math.log(4 / 6), 1e-12)
    np.testing.assert_allclose(g.flatten(), [-1 / 12, 1 / 3, -1 / 4], rtol=1e-12)


def test_the_merged_logits_survive_half_precision():
    logits, _, _ = draw((5, 4), items=1)
    merged = merge_unknown(logits.half(), torch.tensor([[True, True, False, True]]))
    assert merged.dtype == torch.float32
    assert merged.half().isfinite().all()
    assert (merged.half().softmax(1)[:, 2] == 0).all()


# --- deep supervision -----------------------------------------------------------------------------


def test_deep_weights_by_hand():
    assert deep_weights(1) == [1]
    np.testing.assert_allclose(deep_weights(4), [8 / 15, 4 / 15, 2 / 15, 1 / 15], rtol=1e-15)


@pytest.mark.parametrize(
    ("size", "new"), [((8, 6), (4, 3)), ((9, 5), (5, 3)), ((7, 13, 4), (2, 4, 4)), ((5,), (1,))]
)
def test_hard_labels_shrink_as_torchs_nearest_exact(size, new):
    label = torch.arange(2 * math.prod(size)).view(2, *size)
    expected = F.interpolate(label[:, None].double(), new, mode="nearest-exact")[:, 0]
    assert torch.equal(shrunk(label, new).double(), expected)


def test_a_target_of_the_right_size_is_left_alone():
    _, label, _ = draw((5, 4))
    soft = one_hot(label, 4)
    assert shrunk(label, (5, 4)) is label
    assert shrunk(soft, (5, 4)) is soft


def test_soft_targets_shrink_over_annotated_voxels():
    # Class 1 has 0.2, 0.4 | 1, unannotated | twice unannotated.
    one = torch.tensor([0.2, 0.4, 1.0, 0.0, 0.0, 0.0])
    labelled = torch.tensor([1.0, 1, 1, 0, 0, 0])
    target = torch.stack([labelled - one, one])[None, :, None]
    small = shrunk(target, (1, 3))
    np.testing.assert_allclose(small[0, :, 0], [[0.7, 0, 0], [0.3, 1, 0]], atol=1e-7)


@every_loss
@every_size
def test_deep_is_the_weighted_sum_over_levels(name, size):
    logits, label, annotated = draw(size)
    small = tuple(-(-n // 2) for n in size)
    other = torch.randn(3, 4, *small, dtype=torch.float64)
    f = LOSSES[name]
    expected = (2 * f(logits, label, annotated) + f(other, shrunk(label, small), annotated)) / 3
    assert deep(f, [logits, other], label, annotated).item() == pytest.approx(
        expected.item(), 1e-12
    )
    assert torch.equal(deep(f, logits, label, annotated), f(logits, label, annotated))
    assert torch.equal(deep(f, [logits], label, annotated), f(logits, label, annotated))
    zero = deep(f, [logits, other], label, annotated, weights=[0.0, 3.0])
    assert zero.item() == pytest.approx(3 * f(other, shrunk(label, small), annotated).item(), 1e-12)


def test_deep_ignores_what_is_not_annotated():
    outputs = [
        torch.randn(2, 3, 8, 8, requires_grad=True),
        torch.randn(2, 3, 4, 4, requires_grad=True),
    ]
    for target in (torch.full((2, 8, 8), IGNORE), torch.zeros(2, 3, 8, 8)):
        loss = deep(losses.dice_ce, outputs, target)
        assert loss == 0
        for g in torch.autograd.grad(loss, outputs):
            assert (g == 0).all()
