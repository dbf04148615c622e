"""The propagation network, its losses and the clips it learns from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import laws
from contextseg import losses
from contextseg.batch import IGNORE, Batch
from contextseg.data import cache, phantom
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached, load_record
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import prepare
from contextseg.errors import ContextsegError
from contextseg.nets.resnet import RESNET18, RESNET50, ResNet
from contextseg.nets.stcn import STCN, STCNS, stcn_small
from contextseg.propagation.clips import ClipSampler, extra_reference, follow, walk
from contextseg.propagation.losses import lovasz_softmax, ohem_cross_entropy, ohem_share
from contextseg.propagation.session import propagate_volume
from contextseg.volume import Volume


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


# --- the networks ---------------------------------------------------------------------------------


def count(make) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make().parameters())


def test_parameters_are_the_papers() -> None:
    assert count(lambda: STCNS["stcn"](3)) == 54_416_065  # Pham et al., table 3
    assert count(lambda: STCNS["stock"](3)) == 54_434_180
    assert count(lambda: STCNS["small"](3)) < 1_000_000
    assert (
        count(lambda: ResNet(3)) == 25_557_032 - 2048 * 1000 - 1000
    )  # torchvision's, less the classifier
    assert count(lambda: ResNet(3, RESNET18, bottleneck=False)) == 11_689_512 - 512 * 1000 - 1000
    for norm in ("group", "batch"):
        assert count(lambda norm=norm: STCN(norm=norm)) == 54_416_065
    assert (
        count(lambda: STCNS["stcn"](1)) == 54_416_065 - 2 * 2 * 64 * 49
    )  # two channels fewer, in both trunks


def test_published_weights_fit_by_name() -> None:
    with torch.device("meta"):
        names = set(ResNet(3, RESNET50, norm="batch").state_dict())
    assert (
        len(names) == 53 + 5 * 53
    )  # as many convolutions as norms, these with two moments and a counter
    for name in (
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.0.weight",
        "layer4.2.bn3.bias",
    ):
        assert name in names
    with torch.device("meta"):
        names = set(ResNet(3, RESNET18, bottleneck=False, norm="batch").state_dict())
    assert "layer2.0.downsample.1.running_mean" in names
    assert "layer1.0.downsample.0.weight" not in names


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("size", [(32, 48), (33, 17), (5, 70)])
def test_any_size_is_padded_by_its_edge(stride: int, size: tuple[int, int]) -> None:
    net = STCN(2, (1, 1, 1), 8, False, (1, 1, 1), 16, 16, 8, stride).eval()
    image, masks = torch.randn(2, 2, *size), torch.rand(2, 3, *size)
    h, w = (-(-n // stride) for n in size)
    encoded = net.encode(image)
    value = net.memorise(image, encoded, masks)
    logits = net.decode(encoded, value)
    assert encoded.key.shape == (2, 16, h, w)
    assert value.shape == (2, 3, 16, h, w)
    assert logits.shape == (2, 3, *size)
    extra = (0, w * stride - size[1], 0, h * stride - size[0])
    large, large_masks = F.pad(image, extra, "replicate"), F.pad(masks, extra, "replicate")
    whole = net.encode(large)
    torch.testing.assert_close(whole.key, encoded.key)
    whole_value = net.memorise(large, whole, large_masks)
    torch.testing.assert_close(whole_value, value)
    torch.testing.assert_close(net.decode(whole, whole_value)[..., : size[0], : size[1]], logits)


def test_slices_and_objects_do_not_touch_one_another() -> None:
    net = stcn_small(1).eval()
    image, masks = torch.randn(3, 1, 24, 24), torch.rand(3, 2, 24, 24) / 2
    encoded = net.encode(image)
    value = net.memorise(image, encoded, masks)
    logits = net.decode(encoded, value)
    one = net.encode(image[1:2])
    torch.testing.assert_close(one.key, encoded.key[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        net.memorise(image[1:2], one, masks[1:2]), value[1:2], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        net.decode(encoded, value[:, 1:]), logits[:, 1:], rtol=1e-4, atol=1e-4
    )
    turned = net.memorise(image, encoded, masks.flip(1))
    torch.testing.assert_close(turned, value.flip(1), rtol=1e-4, atol=1e-4)
    alone = net.memorise(image, encoded, masks[:, :1])
    assert (
        alone - value[:, :1]
    ).abs().max() > 1e-3  # what is beside an object is part of its value


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_parameter_learns(attention: bool, bottleneck: bool) -> None:
    net = STCN(1, (1, 1, 1), 8, bottleneck, (1, 1, 1), 16, 64, 8, 4, attention=attention)
    label = torch.zeros(2, 3, 16, 16, dtype=torch.int64)
    label[:, :, 2:9, 2:9], label[:, :, 5:14, 10:15] = 1, 2
    batch = Batch(
        torch.randn(2, 1, 3, 16, 16), label, torch.ones(2, 3, dtype=torch.bool), torch.arange(2)
    )
    logits, target = follow(net, batch, references=1)
    (ohem_cross_entropy(logits, target) + lovasz_softmax(logits, target)).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: STCN(stride=2), "4, 8 or 16"),
        (lambda: STCN(blocks=(1, 1)), "three"),
        (lambda: ResNet(1, norm="grup"), "group"),
        (lambda: ResNet(1, stride=3), "1, 2 or 4"),
    ],
)
def test_networks_that_cannot_be(make, message: str) -> None:
    with pytest.raises(ContextsegError, match=message):
        make()


# --- the losses -----------------------------------------------------------------------------------


def drawn(items: int = 3, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(items, classes, 5, 4, generator=g, dtype=torch.float64)
    label = torch.randint(0, classes, (items, 5, 4), generator=g)
    label[torch.rand(label.shape, generator=g) < 0.33] = IGNORE
    annotated = torch.rand(items, classes, generator=g) < 0.6
    annotated[:, 0] = True
    annotated[0] = torch.tensor([True, True, False, True][:classes])
    return logits, label, annotated


def slow_ohem(logits: Tensor, label: Tensor, keep: float) -> float:
    total = 0.0
    for z, y in zip(logits.flatten(2), label.flatten(1)):
        ce = sorted(
            (float(-z[:, v].log_softmax(0)[y[v]]) for v in range(len(y)) if y[v] != IGNORE),
            reverse=True,
        )
        hardest = ce[: math.ceil(keep * len(ce))]
        total += sum(hardest) / max(1, len(hardest))
    return total / len(logits)


def slow_lovasz(logits: Tensor, label: Tensor) -> float:
    """The Lovasz extension as the integral over t of the Jaccard loss of what is wrong by more than
    t.
    """
    total = 0.0
    for z, y in zip(logits.flatten(2), label.flatten(1)):
        p, y = z.softmax(0)[:, y != IGNORE], y[y != IGNORE]
        values = []
        for k in y.unique():
            mine = y == k
            error = torch.where(mine, 1 - p[k], p[k])
            value, before = 0.0, 0.0
            for t in error.sort().values:
                wrong = error > before
                value += float(t - before) * float(wrong.sum() / (mine | wrong).sum())
                before = float(t)
            values.append(value)
        total += sum(values) / max(1, len(values))
    return total / len(logits)


both = pytest.mark.parametrize("loss", [ohem_cross_entropy, lovasz_softmax])


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_slow_ones(seed: int) -> None:
    logits, label, annotated = drawn(seed=seed)
    for keep in (0.01, 0.15, 0.5, 1):
        assert ohem_cross_entropy(logits, label, keep=keep).item() == pytest.approx(
            slow_ohem(logits, label, keep)
        )
    assert ohem_cross_entropy(logits, label, annotated, keep=1).item() == pytest.approx(
        losses.cross_entropy(logits, label, annotated).item()
    )
    assert lovasz_softmax(logits, label).item() == pytest.approx(slow_lovasz(logits, label))
    assert lovasz_softmax(logits.float(), label).item() == pytest.approx(
        slow_lovasz(logits, label), rel=1e-5
    )


def test_lovasz_of_a_decision_is_one_minus_jaccard() -> None:
    _, label, _ = drawn(1, 3)
    guess = torch.randint(0, 3, label.shape)
    known = label != IGNORE
    expected = []
    for k in range(3):
        a, b = (guess == k) & known, (label == k) & known
        expected.append(1 - ((a & b).sum() / (a | b).sum()).item())
    logits = 200.0 * losses.one_hot(guess, 3)
    assert lovasz_softmax(logits, label).item() == pytest.approx(np.mean(expected), rel=1e-6)


@both
def test_losses_hear_what_was_said_and_no_more(loss) -> None:
    logits, label, annotated = drawn()
    other = torch.where((label == IGNORE)[:, None], 50 * torch.randn_like(logits), logits)
    results = []
    for z in (logits, other):
        z = z.clone().requires_grad_()
        value = loss(z, label, annotated)
        value.backward()
        results.append((value.detach(), z.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[0][1][(label == IGNORE)[:, None].expand_as(logits)] == 0).all()
    merged = losses.merge_unknown(logits, annotated)
    known = torch.where(annotated.gather(1, label.flatten(1).clamp(min=0)).view_as(label), label, 0)
    assert loss(logits, label, annotated).item() == pytest.approx(
        loss(merged, torch.where(label == IGNORE, IGNORE, known)).item()
    )


@both
def test_losses_are_means_over_items(loss) -> None:
    logits, label, annotated = drawn(5)
    label[1] = IGNORE
    each = [
        loss(logits[i : i + 1], label[i : i + 1], annotated[i : i + 1]).item() for i in range(5)
    ]
    assert each[1] == 0
    assert loss(logits, label, annotated).item() == pytest.approx(np.mean(each))
    assert loss(logits[:0], label[:0]).item() == 0
    nothing = torch.full_like(label, IGNORE)
    z = logits.clone().requires_grad_()
    loss(z, nothing).backward()
    assert z.grad is not None
    assert (z.grad == 0).all()
    with pytest.raises(ValueError, match="one batch"):
        loss(logits, label[:2])


def test_the_share_of_hard_voxels_falls() -> None:
    assert [ohem_share(d) for d in (0, 2 / 15, 1)] == pytest.approx([1, 1, 0.15])
    assert ohem_share(0.3) == pytest.approx((1 + 0.15) / 2)
    assert ohem_share(0.5, start=0, stop=1, keep=0.2) == pytest.approx(0.6)
    for keep in (0, 1.5):
        with pytest.raises(ValueError, match="share"):
            ohem_cross_entropy(
                torch.zeros(1, 2, 1), torch.zeros(1, 1, dtype=torch.int64), keep=keep
            )


# --- clips ----------------------------------------------------------------------------------------

STILL = Augmentation(strength=0)
GRID = (16, 12, 14)
OFFSET = 100_000


def plan(**changes: object) -> Plan:
    base = laws.plan(2, batch_size=4)
    return replace(base, patch_vox=(8, 10), channels=(Channel("x", "none"),), **changes)


def cached(
    folder: Path, label: np.ndarray | None, name: str, annotated: tuple[bool, ...] = (True,) * 3
) -> Cached:
    """A case whose every voxel tells where it is: `OFFSET` and its index."""
    image = OFFSET + np.arange(np.prod(GRID), dtype=np.float32).reshape(1, *GRID)
    sar = np.eye(4)[[2, 1, 0, 3]]
    cache._save(folder / name, *prepare(Volume(image, sar), plan(), name, label))
    return Cached(
        folder / name, load_record(folder / name / "record.json"), annotated, label is not None
    )


def organs() -> np.ndarray:
    """Class 1 in slices 3 to 9, class 2 in 8 to 12; slice 5 and all from 13 are not annotated."""
    label = np.zeros(GRID, np.int16)
    label[3:10, 3:7, 3:7] = 1
    label[8:13, 6:9, 8:12] = 2
    label[5] = label[13:] = IGNORE
    return label


def places(batch: Batch) -> np.ndarray:
    """(3, B, T, H, W): where in its case each voxel was."""
    places = np.rint(batch.image[:, 0].double().numpy() - OFFSET).astype(int)
    return np.stack(np.unravel_index(places, GRID))


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_a_clip_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    cases = [cached(tmp_path, organs(), "a")]
    sampler = ClipSampler(cases, plan(), 10)
    for n in (0, 7):
        whole = sampler.batch(n)
        assert same(whole, ClipSampler(cases, plan(), 10).batch(n))
        for rank in range(3):
            assert same(sampler.batch(n, rank, 3), whole.shard(rank, 3))
    assert not same(sampler.batch(0), sampler.batch(1))
    assert not same(sampler.batch(0), ClipSampler(cases, plan(), 10, seed=1).batch(0))
    empty = sampler.batch(0, 5, 6)
    assert empty.image.shape == (0, 1, 4, 8, 10)
    assert empty.label.shape == (0, 4, 8, 10)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_voxels_are_those_they_say_and_objects_follow_the_label(tmp_path: Path, axis: int) -> None:
    label = organs()
    sampler = ClipSampler(
        [cached(tmp_path, label, "a")], plan(), 10, augmentation=STILL, axes=(axis,)
    )
    objects = set()
    for n in range(12):
        batch = sampler.batch(n)
        at = places(batch)
        assert (
            at[axis].reshape(4, 4, -1) == at[axis].reshape(4, 4, -1)[..., :1]
        ).all()  # a frame is one slice
        for item in range(4):
            truth, mine = label[tuple(at[:, item])], batch.label[item].numpy()
            assert ((mine == IGNORE) == (truth == IGNORE)).all()
            numbers = {k: set(np.unique(truth[mine == k])) for k in (1, 2)}
            assert len(numbers[1]) == 1
            assert len(numbers[2]) <= 1
            assert set(np.unique(truth[mine == 0])) <= {0, 1, 2} - numbers[1] - numbers[2]
            assert (mine[1] == 1).any()  # the walk starts where the first object is
            objects.add(tuple(sorted(numbers[1] | numbers[2])))
    assert objects == {(1,), (2,), (1, 2)}


def test_only_annotated_slices_and_classes_are_trained_on(tmp_path: Path) -> None:
    label = organs()
    unannotated = np.where(label == 2, 0, label)
    one = (True, True, False)
    cases = [
        cached(tmp_path, label, "b", one),
        cached(tmp_path, unannotated, "c"),
        cached(tmp_path, None, "d"),
    ]
    sampler = ClipSampler(cases, plan(), 10, augmentation=STILL, references=3)
    for n in range(12):
        batch = sampler.batch(n)
        at = places(batch)
        assert set(batch.case.tolist()) <= {0, 1}
        assert not set(np.unique(at[0])) & {5, 13, 14, 15}
        assert (batch.label <= 1).all()  # class 2 is not annotated, or is not there: no object
        first = at[0][:, 2, 0, 0]
        assert set(first.tolist()) <= set(range(3, 10))
    with pytest.raises(ContextsegError, match="label a structure"):
        ClipSampler([cached(tmp_path, organs(), "e", (True, False, False)), cases[2]], plan(), 10)


def test_frames_move_together_and_augmented_voxels_keep_their_label(tmp_path: Path) -> None:
    chances = {f.name: 0.0 for f in fields(Augmentation) if f.name.startswith("p_")}
    sampler = ClipSampler(
        [cached(tmp_path, organs(), "a")], plan(), 10, augmentation=Augmentation(**chances)
    )
    mirrored = 0
    for n in range(6):
        batch = sampler.batch(n)
        at = places(batch)
        assert (at[1:] == at[1:, :, :1]).all()
        assert (organs()[tuple(at)] == IGNORE).tolist() == (batch.label == IGNORE).tolist()
        mirrored += int((at[2, :, 0, 0, 0] > at[2, :, 0, 0, -1]).sum())
    assert 0 < mirrored < 24
    noisy = ClipSampler(
        sampler.cases,
        plan(),
        10,
        augmentation=replace(STILL, strength=1.0, **(chances | {"p_noise": 1})),
    )
    noise = noisy.batch(0).image[:, 0] - noisy.batch(0).image[:, 0].round()
    assert not torch.equal(noise[0, 0], noise[0, 1])


def test_the_curriculum(tmp_path: Path) -> None:
    sampler = ClipSampler(
        [cached(tmp_path, organs(), "a")], plan(), 50, augmentation=STILL, references=1
    )
    assert [sampler.jump(n) for n in (0, 9, 10, 20, 30, 39, 40, 49, 50, 999)] == [
        3,
        3,
        4,
        5,
        7,
        7,
        3,
        3,
        3,
        3,
    ]
    farthest = 0
    for n in range(30, 40):
        first, *later = places(sampler.batch(n))[0][:, :, 0, 0].T
        for frame, before in zip(later, [first, *later]):
            assert (abs(frame - before) <= 7).all()
            farthest = max(farthest, abs(frame - before).max())
    assert farthest > 3


def test_a_walk_goes_one_way_over_annotated_slices() -> None:
    slices = np.array([0, 1, 2, 4, 5, 20, 21])
    seen = set()
    for seed in range(200):
        walked = walk(slices, 4, 2, 4, np.random.default_rng(seed))
        assert walked[0] == 4
        assert set(walked) <= set(slices.tolist())
        steps = np.diff(walked)
        assert (steps >= 0).all() or (steps <= 0).all()
        seen.add(tuple(walked))
    assert (4, 5, 20, 21) in seen  # nothing within two slices: the nearest
    assert (4, 2, 0, 0) in seen  # at the end, the last again
    assert (4, 2, 1, 0) in seen
    assert walk(slices, 21, 3, 2, np.random.default_rng(0)) == [21, 20]
    assert walk(np.array([6]), 6, 3, 3, np.random.default_rng(0)) == [6, 6, 6]


def test_one_more_reference_lies_beyond_the_walk_or_anywhere() -> None:
    slices = np.arange(50)
    rng = np.random.default_rng(0)
    picked = [extra_reference(slices, [20, 22, 25], 4, rng) for _ in range(1000)]
    near = sum(26 <= i <= 29 for i in picked) / 1000
    assert near == pytest.approx(0.5 + 0.5 * 4 / 50, abs=0.08)
    assert min(picked) < 5
    assert max(picked) > 45
    down = [extra_reference(slices, [20, 17], 4, rng) for _ in range(1000)]
    assert sum(13 <= i <= 16 for i in down) / 1000 == pytest.approx(0.54, abs=0.08)


@pytest.mark.parametrize(
    "wrong", [{"frames": 1}, {"objects": 0}, {"steps": 0}, {"references": 0}, {"seed": -1}]
)
def test_clips_that_cannot_be(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ContextsegError, match="clips"):
        ClipSampler([cached(tmp_path, organs(), "a")], plan(), **{"steps": 1, **wrong})  # type: ignore[arg-type]


# --- following ------------------------------------------------------------------------------------


def phantoms(n: int, items: int = 4, classes: int = 3) -> Batch:
    """Clips of three slices through phantoms, two of them given: one beyond the walk, and its
    first.
    """
    images, labels = [], []
    for i in range(items):
        image, label = phantom.patient(1000 * n + i, (10, 24, 24), classes, look_alikes=1)
        middle = int(np.flatnonzero((label == 1).any((1, 2))).mean())
        frames = [middle + 2, middle, middle + 1]
        images.append(image[None, frames])
        labels.append(label[frames])
    image, label = torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(labels)).long()
    return Batch(
        image - 0.5, label, torch.ones(items, classes, dtype=torch.bool), torch.arange(items)
    )


def test_learning_and_using_are_the_same_walk() -> None:
    net = stcn_small(1).eval()
    batch = phantoms(0, items=2)
    with torch.no_grad():
        logits, label = follow(net, batch, references=1)
    assert logits.shape == (2, 3, 2, 24, 24)
    assert torch.equal(label, batch.label[:, 1:])
    for i in range(2):
        references = {0: batch.label[i, 0]}
        filled = propagate_volume(
            net, batch.image[i], references, [1, 2], top_k=None, every=1, probabilities=True
        )
        assert filled.probabilities is not None
        np.testing.assert_allclose(filled.probabilities[:, 1:], logits[i].softmax(0), atol=2e-3)


def test_what_a_reference_leaves_unsaid_is_not_remembered() -> None:
    """A reference without annotation is as good as none."""
    net = stcn_small(1).eval()
    batch = phantoms(1, items=2)
    silent = replace(batch, label=batch.label.clone())
    silent.label[:, 0] = IGNORE
    without = replace(batch, image=batch.image[:, :, 1:], label=batch.label[:, 1:])
    with torch.no_grad():
        torch.testing.assert_close(
            follow(net, silent)[0], follow(net, without, references=1)[0], rtol=1e-4, atol=1e-4
        )
        nothing = replace(batch, label=torch.full_like(batch.label, IGNORE))
        assert follow(net, nothing)[0].isfinite().all()


def test_it_learns_to_follow() -> None:
    net = STCN(1, (1, 1, 1), 8, False, (1, 1, 1), 16, 32, 16, 4, key_bias=False, value_bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for n in range(60):
        logits, label = follow(net, phantoms(n, classes=2))
        loss = ohem_cross_entropy(logits, label, keep=ohem_share(n / 60)) + lovasz_softmax(
            logits, label
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        logits, label = follow(net.eval(), phantoms(999, items=8, classes=2))
    guess, truth = logits.argmax(1) == 1, label == 1
    assert 2 * (guess & truth).sum() / (guess.sum() + truth.sum()) > 0.7
