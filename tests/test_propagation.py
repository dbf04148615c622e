"""Memory against the plain formulas, and the laws of filling a volume from a few slices."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.data import phantom
from contextseg.errors import ContextsegError
from contextseg.nets.stcn import STCN, Encoded
from contextseg.propagation import session as session_module
from contextseg.propagation.memory import (
    MemoryBank,
    affinity,
    aggregate,
    annotated_positions,
    readout,
    top_k_softmax,
)
from contextseg.propagation.session import Session, propagate_volume
from contextseg.propagation.shapes import ShapePrior


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


# --- memory ---------------------------------------------------------------------------------------


def test_affinity_is_the_distance_but_for_a_constant_of_the_query() -> None:
    mk, qk = torch.randn(2, 64, 7, dtype=torch.float64), torch.randn(2, 64, 5, dtype=torch.float64)
    likeness = affinity(mk, qk)
    distance = (mk[..., None] - qk[:, :, None]).square().sum(1)
    torch.testing.assert_close(likeness - qk.square().sum(1)[:, None] / 8, -distance / 8)
    torch.testing.assert_close(
        likeness[1, 3, 2], (2 * mk[1, :, 3] @ qk[1, :, 2] - mk[1, :, 3] @ mk[1, :, 3]) / 8
    )


def test_affinity_and_softmax_survive_half_precision() -> None:
    mk, qk = 300 * torch.randn(1, 64, 9), 300 * torch.randn(1, 64, 4)
    with torch.autocast("cpu", torch.bfloat16):
        likeness = affinity(mk.half(), qk.half())
    assert likeness.dtype == torch.float32
    assert likeness.abs().max() > torch.finfo(torch.float16).max
    weights = top_k_softmax(likeness, 3)
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 4))


@pytest.mark.parametrize("k", [1, 3, 10, 11, None])
def test_top_k_softmax(k: int | None) -> None:
    likeness = 5 * torch.randn(2, 10, 4, dtype=torch.float64)
    weights = top_k_softmax(likeness, k)
    for b in range(2):
        for m in range(4):
            column = likeness[b, :, m]
            kept = column >= column.sort(descending=True).values[min(k or 10, 10) - 1]
            e = torch.where(kept, column.exp(), 0)
            torch.testing.assert_close(weights[b, :, m], e / e.sum())
    torch.testing.assert_close(weights, top_k_softmax(likeness + 1e4, k))
    assert top_k_softmax(1e30 * likeness, k).isfinite().all()


def test_readout_is_a_weighted_mean() -> None:
    weights, values = torch.rand(2, 6, 3), torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(
        readout(weights, values), torch.einsum("bnm,bocn->bocm", weights, values)
    )


def test_aggregate_is_soft_aggregation() -> None:
    z = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    p = z.sigmoid()
    every = torch.cat([(1 - p).prod(1, keepdim=True), p], 1)
    odds = every / (1 - every)
    torch.testing.assert_close(aggregate(z), odds.log())
    torch.testing.assert_close(aggregate(z).softmax(1), odds / odds.sum(1, keepdim=True))
    one = aggregate(z[:, :1])
    torch.testing.assert_close(one[:, 0], -one[:, 1])  # a single object against its complement


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_aggregate_has_no_infinite_value_or_slope(dtype: torch.dtype) -> None:
    z = torch.tensor([[-6e4, 6e4, 0.0, 20.0, -20.0], [6e4, 6e4, 0.0, 20.0, -20.0]], dtype=dtype)[
        None
    ].requires_grad_()
    out = aggregate(z)
    out.softmax(1).square().sum().backward()
    assert out.isfinite().all()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 5, 20, 10_000, None])
@pytest.mark.parametrize("chunk", [1 << 26, 100])
def test_the_bank_reads_as_the_formulas_say(
    top_k: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contextseg.propagation.memory._CHUNK", chunk)
    bank = MemoryBank(most=8, every=2, top_k=top_k)
    keys, values = torch.randn(5, 16, 3, 4), torch.randn(5, 2, 6, 3, 4)
    annotated = torch.rand(3, 4) < 0.5
    bank.add_reference(keys[0], values[0])
    bank.add_reference(keys[1], values[1], annotated)
    for i in (2, 3, 4):
        bank.add(keys[i], values[i])
    held = [0, 1, 3, 4]  # two references; the second of those added, and the last
    assert len(bank) == 4
    query = torch.randn(16, 3, 4)
    everywhere = torch.ones_like(annotated)
    readable = torch.stack([everywhere, annotated, everywhere, everywhere]).flatten()
    likeness = affinity(
        keys[held].movedim(1, 0).flatten(1)[None], query.flatten(1)[None], readable[None]
    )
    expected = readout(
        top_k_softmax(likeness, top_k), values[held].permute(1, 2, 0, 3, 4).flatten(2)[None]
    )
    torch.testing.assert_close(bank.read(query), expected[0].unflatten(2, (3, 4)))


def remembered(bank: MemoryBank) -> set[int]:
    """Slice i has the value 2^i at equal keys, so the mean that is read names the slices held."""
    mean = bank.read(torch.zeros(1, 1, 1)).item()
    total = round(mean * len(bank))
    return {i for i in range(40) if total >> i & 1}


def test_what_the_bank_holds() -> None:
    bank = MemoryBank(most=30, every=5, top_k=None)
    one = lambda i: (torch.zeros(1, 1, 1), torch.full((1, 1, 1, 1), 2.0**i, dtype=torch.float64))  # noqa: E731
    bank.add_reference(*one(0))
    bank.add_reference(*one(1))
    for step in range(1, 21):
        bank.add(*one(1 + step))
        every_fifth = {1 + s for s in range(5, step + 1, 5)}
        assert remembered(bank) == {0, 1} | every_fifth | {1 + step}
        assert len(bank) == len(remembered(bank))
    bank.restart()
    assert remembered(bank) == {0, 1}


def test_the_bank_is_bounded_and_forgets_the_oldest() -> None:
    bank = MemoryBank(most=4, every=2, top_k=None)
    one = lambda i: (torch.zeros(1, 1, 1), torch.full((1, 1, 1, 1), 2.0**i, dtype=torch.float64))  # noqa: E731
    bank.add_reference(*one(0))
    storage = bank._values.data_ptr()
    for i in range(1, 30):
        bank.add(*one(i))
        assert len(bank) <= 4
        assert {0, i} <= remembered(bank)
    assert remembered(bank) == {0, 26, 28, 29}
    assert bank._values.data_ptr() == storage
    small = MemoryBank(most=2, every=1, top_k=None)
    small.add_reference(*one(0))
    for i in range(1, 4):
        small.add(*one(i))
    assert remembered(small) == {0, 3}


def test_a_bank_that_cannot_be() -> None:
    key, value = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, 1)
    bank = MemoryBank(most=2)
    with pytest.raises(ValueError, match="starts with a reference"):
        bank.add(key, value)
    bank.add_reference(key, value)
    with pytest.raises(ValueError, match="no room"):
        bank.add_reference(key, value)
    for wrong in ({"most": 1}, {"every": 0}, {"top_k": 0}):
        with pytest.raises(ValueError, match="room for two slices"):
            MemoryBank(**wrong)


def test_positions_of_which_half_is_annotated() -> None:
    annotated = torch.zeros(3, 5, 6, dtype=torch.bool)
    annotated[0, :4, :2] = True  # two positions fully
    annotated[0, 4, 4] = True  # one pixel of the two that the last position has
    annotated[1, 0, 0] = True  # nowhere a half: the best stands
    expected = torch.zeros(3, 3, 3, dtype=torch.bool)
    expected[0, :2, 0] = expected[0, 2, 2] = expected[1, 0, 0] = True
    assert torch.equal(annotated_positions(annotated, 2), expected)


# --- networks whose every step is known -----------------------------------------------------------


class ByPlace:
    """Each pixel remembers what was at its place, or, with `by_colour`, at its intensity."""

    stride = 1

    def __init__(self, by_colour: bool = False) -> None:
        self.by_colour = by_colour
        self.encoded_batches: list[int] = []

    def encode(self, image: Tensor) -> Encoded:
        b, _, h, w = image.shape
        self.encoded_batches.append(b)
        place = 30 * torch.eye(h * w).view(1, h * w, h, w).expand(b, -1, -1, -1)
        return Encoded(100 * image if self.by_colour else place, (), (h, w))

    def memorise(self, image: Tensor, encoded: Encoded, masks: Tensor) -> Tensor:
        assert masks.min() >= 0
        assert masks.sum(1).max() <= 1 + 1e-6
        return masks[:, :, None]

    def decode(self, encoded: Encoded, read: Tensor) -> Tensor:
        return torch.logit(read[:, :, 0].clamp(1e-6, 1 - 1e-6))


class Scripted(ByPlace):
    """The probability of one object is, at the n-th call, `script[n]` everywhere.

    Aggregation doubles a lone object's log-odds.
    """

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.script = iter(script)

    def decode(self, encoded: Encoded, read: Tensor) -> Tensor:
        return torch.logit(torch.full(read[:, :, 0].shape, next(self.script))) / 2


def tiny() -> STCN:
    torch.manual_seed(3)
    widths = {"key_dim": 16, "value_dim": 16, "up_dim": 8, "stride": 4}
    return STCN(1, (1, 1, 1), 8, False, (1, 1, 1), **widths).eval()  # type: ignore[arg-type]


def blocks(n: int, size: tuple[int, int] = (6, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Two moving blocks of classes 3 and 7 and their own intensities: image (1, n, H, W), label."""
    label = np.zeros((n, *size), np.int16)
    for i in range(n):
        label[i, i % 3 : i % 3 + 2, 1:4] = 3
        label[i, 2:5, 5 + i % 2 : 7 + i % 2] = 7
    return label[None].astype(np.float32), label


def along(axis: int, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.moveaxis(image, 1, axis + 1), np.moveaxis(label, 0, axis)


PLACES = [[0], [8], [4], [0, 8], [0, 1], [2, 6], [0, 4, 8], list(range(9)), [7, 1]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_every_slice_is_written(places: list[int], axis: int) -> None:
    image, label = blocks(9)
    volume, truth = along(axis, image, label)
    references = {i: label[i] for i in places}
    result = propagate_volume(
        ByPlace(by_colour=True), volume, references, axis=axis, top_k=None, probabilities=True
    )
    np.testing.assert_array_equal(result.labels, truth)
    assert result.classes == (3, 7)
    assert result.probabilities is not None
    assert result.probabilities.shape == (3, *truth.shape)
    np.testing.assert_allclose(result.probabilities.sum(0, dtype=np.float32), 1, atol=2e-3)
    np.testing.assert_array_equal(np.array([0, 3, 7])[result.probabilities.argmax(0)], truth)
    assert (result.confidence > 0.99).all()
    between = [min(places) < i < max(places) and i not in places for i in range(9)]
    np.testing.assert_array_equal(np.isfinite(result.agreement), between)
    assert (result.agreement[between] == 1).all()


def test_a_repeated_slice_gives_its_mask() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (7, 5))
    volume = np.repeat(rng.normal(size=(2, 1, 7, 5)).astype(np.float32), 12, 1)
    for places in ([0], [5], [11], [3, 8]):
        result = propagate_volume(ByPlace(), volume, dict.fromkeys(places, mask))
        assert (result.labels == mask).all()


@pytest.mark.parametrize("places", [[0], [6], [2], [1, 5], [0, 3, 6]], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_laws_of_an_untrained_network(places: list[int], axis: int) -> None:
    """References come back; a volume turned round gives the same, turned round."""
    image, label = (
        np.stack(x) for x in zip(*(phantom.patient(i, (19, 14), classes=3) for i in range(7)))
    )
    net, references = tiny(), {i: label[i] for i in places}
    volume, _ = along(axis, image[None], label)
    result = propagate_volume(net, volume, references, [1, 2], axis, every=2, probabilities=True)
    assert result.labels.shape == volume.shape[1:]
    for i in places:
        np.testing.assert_array_equal(result.labels.take(i, axis), label[i])
        assert result.confidence[i] == 1
    turned = {6 - i: x for i, x in references.items()}
    back = propagate_volume(
        net, np.flip(volume, axis + 1), turned, [1, 2], axis, every=2, probabilities=True
    )
    assert result.probabilities is not None
    assert back.probabilities is not None
    mirrored = np.flip(back.probabilities, axis + 1)
    np.testing.assert_allclose(mirrored, result.probabilities, atol=2e-3)
    np.testing.assert_allclose(back.confidence[::-1], result.confidence, atol=0.05)
    assert result.probabilities.std(axis=(1, 2, 3)).min() > 0  # not all the same


def test_walks_are_averaged_by_nearness_and_their_disagreement_is_seen() -> None:
    """One object, slices 0 and 4 given; the first walk goes 1, 2, 3, the second 3, 2, 1."""
    full = np.ones((2, 3), int)
    up, down = [0.9, 0.9, 0.9], [0.9, 0.2, 0.2]
    run = lambda **options: propagate_volume(  # noqa: E731
        Scripted(up + down),
        np.zeros((1, 5, 2, 3), np.float32),
        {0: full, 4: full},
        probabilities=True,
        **options,
    )
    for options, expected in (({}, [0.725, 0.55, 0.9]), ({"weighted": False}, [0.55, 0.55, 0.9])):
        result = run(**options)
        np.testing.assert_allclose(result.probabilities[1, 1:4, 0, 0], expected, atol=1e-3)
        assert (result.labels == 1).all()
        assert np.isnan(result.agreement).tolist() == [True, False, False, False, True]
        assert result.agreement[1:4].tolist() == [0, 0, 1]
        p = np.array(expected)
        dice = 2 * p / (1 + p)  # of a label that is all object, each pixel right with p
        np.testing.assert_allclose(
            result.confidence[1:4], (dice + np.array([0, 0, 1])) / 2, atol=1e-3
        )


def test_confidence_of_one_walk_and_of_an_empty_slice() -> None:
    result = propagate_volume(
        Scripted([0.8, 0.1]), np.zeros((1, 3, 2, 2), np.float32), {0: np.ones((2, 2), int)}
    )
    assert [int(x.max()) for x in result.labels] == [1, 1, 0]
    np.testing.assert_allclose(result.confidence, [1, 1.6 / 1.8, np.nan], atol=1e-3)


def test_a_class_that_is_lost_between_two_references_has_no_confidence() -> None:
    full = np.ones((2, 2), int)
    result = propagate_volume(
        Scripted([0.1, 0.1, 0.1]), np.zeros((1, 4, 2, 2), np.float32), {0: full, 2: full}
    )
    assert result.class_confidence.shape == (4, 1)
    np.testing.assert_array_equal(result.confidence[:3], [1, 0, 1])


def test_memory_holds_every_reference_and_never_more_than_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    banks: list[MemoryBank] = []

    class Counted(MemoryBank):
        def __init__(self, *arguments: int) -> None:
            super().__init__(*arguments)
            banks.append(self)
            self.longest = 0

        def read(self, query: Tensor) -> Tensor:
            self.longest = max(self.longest, len(self))
            return super().read(query)

    monkeypatch.setattr(session_module, "MemoryBank", Counted)
    image, label = blocks(23)
    fill = lambda places, **options: propagate_volume(  # noqa: E731
        ByPlace(True), image, {i: label[i] for i in places}, top_k=None, **options
    )
    assert (fill([0, 11, 22]).labels == label).all()
    assert [bank.longest for bank in banks] == [
        3 + 2
    ]  # one bank; its references, the 5th slice, the one before
    banks.clear()
    assert (fill(range(0, 23, 2), most=5).labels == label).all()
    assert {bank.most for bank in banks} == {4}  # three references and the slice before suffice
    banks.clear()
    assert (fill([0], most=4).labels == label).all()
    assert [bank.longest for bank in banks] == [4]


def test_a_slice_is_encoded_once() -> None:
    image, label = blocks(20)
    net = ByPlace(True)
    session = Session(net, image, batch=4)
    calls: list[tuple[int, int]] = []
    first = session.propagate({2: label[2], 15: label[15]}, progress=lambda *x: calls.append(x))
    assert sum(net.encoded_batches) == 20
    assert max(net.encoded_batches) == 4
    assert calls == [(i + 1, 30) for i in range(30)]  # twelve slices twice, two and four once
    assert (session.propagate({7: label[7]}).labels == label).all()
    assert sum(net.encoded_batches) == 20
    frugal = ByPlace(True)
    again = Session(frugal, image, batch=4, keep=4).propagate({2: label[2], 15: label[15]})
    np.testing.assert_array_equal(again.labels, first.labels)
    assert 20 < sum(frugal.encoded_batches) <= 40


def test_one_slice_at_a_time_equals_many() -> None:
    image, label = (np.stack(x) for x in zip(*(phantom.patient(i, (16, 16)) for i in range(6))))
    one, many = (
        Session(tiny(), image[None], batch=n)
        .propagate({1: label[1]}, probabilities=True)
        .probabilities
        for n in (1, 6)
    )
    assert one is not None
    assert many is not None
    np.testing.assert_allclose(one, many, atol=2e-3)


def test_tensors_and_files(tmp_path) -> None:
    image, label = blocks(5)
    np.save(tmp_path / "image.npy", image.astype(np.float64))
    on_disk = np.load(tmp_path / "image.npy", mmap_mode="r")
    for volume in (torch.from_numpy(image), on_disk):
        result = propagate_volume(ByPlace(True), volume, {0: torch.from_numpy(label[0])})
        np.testing.assert_array_equal(result.labels, label)


def test_classes_that_were_not_asked_for_are_background() -> None:
    image, label = blocks(4)
    result = propagate_volume(ByPlace(True), image, {0: label[0]}, classes=[7])
    np.testing.assert_array_equal(result.labels, np.where(label == 7, 7, 0))
    absent = propagate_volume(ByPlace(True), image, {0: label[0]}, classes=[3, 9])
    np.testing.assert_array_equal(absent.labels, np.where(label == 3, 3, 0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_class_stays_in_its_range(axis: int) -> None:
    """One class alone is as without ranges, slices without any are not encoded.

    Of two classes each keeps to its own range.
    """
    net, rng = tiny(), np.random.default_rng(0)
    image, label = (
        rng.normal(size=(1, 9, 20, 24)).astype(np.float32),
        rng.integers(0, 3, (9, 20, 24)),
    )
    volume, label = along(axis, image, label)
    one = {i: (label.take(i, axis) == 1) * 1 for i in (3, 5)}
    encoded: list[int] = []
    session = Session(net, volume, axis, keep=1, batch=1)
    whole = session.propagate(one, probabilities=True)
    session.image = lambda slices, image=session.image: encoded.extend(slices) or image(slices)  # type: ignore[method-assign]
    part = session.propagate(one, ranges={1: (2, 6)}, probabilities=True)
    assert set(encoded) == {2, 3, 4, 5, 6}
    inside, outside = [2, 3, 4, 5, 6], [0, 1, 7, 8]
    np.testing.assert_array_equal(part.labels.take(inside, axis), whole.labels.take(inside, axis))
    assert not part.labels.take(outside, axis).any()
    assert np.isnan(part.confidence[outside]).all()
    two = propagate_volume(
        net,
        volume,
        {i: label.take(i, axis) for i in (3, 5)},
        None,
        axis,
        ranges={1: (3, 4)},
        probabilities=True,
    )
    assert two.probabilities is not None
    np.testing.assert_allclose(two.probabilities.sum(0), 1, atol=2e-3)
    of_one = np.moveaxis(two.probabilities[1], axis, 0)
    assert not of_one[[0, 1, 2, 6, 7, 8]].any()
    assert of_one[4].all()


def test_a_class_ends_before_the_slice_in_which_it_is_unsure() -> None:
    """One slice in the middle; upwards 0.9, 0.7, 0.95, downwards 0.6, 0.9.

    The Dice to be expected is 2 p / (1 + p).
    """
    full, image = np.ones((2, 3), int), np.zeros((1, 6, 2, 3), np.float32)
    run = lambda below: propagate_volume(  # noqa: E731  walks: up from 3 to 5, then down from 1 to 0
        Scripted([0.9, 0.7, 0.95, 0.6, 0.9]), image, {2: full}, stop_below=below, probabilities=True
    )
    walked = [int(x.any()) for x in run(0).labels]
    assert walked == [1] * 6
    places = run(0).probabilities[1, :, 0, 0].round(2).tolist()
    for below in (0.8, 0.83, 0.99):
        result = run(below)
        expected = [1] * 6
        for outwards in ((3, 4, 5), (1, 0)):
            ended = False
            for i in outwards:
                ended = ended or 2 * places[i] / (1 + places[i]) < below
                expected[i] = int(not ended)
        assert [int(x.any()) for x in result.labels] == expected
        np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=2e-3)
        assert (result.probabilities[1].any((1, 2)) == np.array(expected, bool)).all()
    assert sum(expected) == 1
    between = propagate_volume(
        Scripted([0.6] * 7), image, {0: full, 4: full}, stop_below=0.99
    ).labels
    assert [int(x.any()) for x in between] == [
        1,
        1,
        1,
        1,
        1,
        0,
    ]  # between labelled slices it goes on
    for below in (-0.1, 1.5, float("nan")):
        with pytest.raises(ContextsegError, match=r"it is a Dice\. Remedy: give 0"):
            run(below)


def test_shapes_are_surer_near_a_labelled_slice_and_between_near_ones() -> None:
    disc = (np.hypot(*np.mgrid[-8:9, -8:9]) < 6).astype(int)

    def odds(last: int, i: int, scale: float = 1.0) -> np.ndarray:
        log_odds = ShapePrior({0: disc, last: disc}, [1], (scale, scale), scale).log_odds(i)
        assert log_odds is not None
        return log_odds

    near, middle, far = odds(10, 1), odds(10, 5), odds(20, 5)
    np.testing.assert_allclose(near, 5 * middle, rtol=1e-5)
    np.testing.assert_allclose(middle, 2 * far, rtol=1e-5)
    np.testing.assert_allclose(odds(10, 5, 3.7), middle, rtol=1e-4)  # in any unit
    assert ((middle[0] > 0) == (disc > 0)).all()
    partly = disc.copy()
    partly[:9] = IGNORE
    known_in_part = ShapePrior({0: partly, 4: disc}, [1], (1, 1), 1).log_odds(2)
    np.testing.assert_array_equal(known_in_part, odds(4, 2))  # the rest is as in the other slice
    assert (
        not ShapePrior({0: disc, 4: disc}, [1, 2], (1, 1), 1).log_odds(2)[1].any()
    )  # nothing is known of a class in neither


def test_what_is_not_annotated_in_a_reference_is_filled() -> None:
    image, label = blocks(5)
    partly = label[1].copy()
    partly[:, 4:] = IGNORE  # class 7 is there, and some background
    result = propagate_volume(ByPlace(True), image, {1: partly, 4: label[4]}, probabilities=True)
    np.testing.assert_array_equal(result.labels, label)
    assert result.probabilities is not None
    assert (result.probabilities[2, 1][label[1] == 7] > 0.99).all()
    ignored = propagate_volume(
        ByPlace(True), image, {1: label[1], 3: np.full_like(label[3], IGNORE)}
    )
    np.testing.assert_array_equal(ignored.labels, label)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"references": {}}, "at least one slice"),
        ({"references": {0: np.full((6, 8), IGNORE)}, "classes": [1]}, "at least one"),
        ({"references": {0: np.zeros((6, 8), int)}}, "label a structure"),
        ({"references": {5: np.ones((6, 8), int)}}, "0 to 4"),
        ({"references": {0: np.ones((8, 6), int)}}, "each pixel"),
        ({"most": 2}, "3 slices"),
        ({"axis": 3}, "axis 0, 1 or 2"),
        ({"volume": np.zeros((5, 6, 8), np.float32)}, "(C, D, H, W)"),
    ],
)
def test_what_cannot_be_propagated(arguments, message) -> None:
    image, label = blocks(5)
    given = {"network": ByPlace(), "volume": image, "references": {0: label[0]}} | arguments
    with pytest.raises(ContextsegError) as problem:
        propagate_volume(**given)
    assert message in str(problem.value)
