"""TransUNet: its published counts by hand, attention against numpy.

Laws: test_nets. Weights: test_weights.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laws
from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.nets import DeepLab, SmallTransUNet, TransUNet
from contextseg.nets.transunet import _Layer, _StdConv, resized_places

torch.set_num_threads(1)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def seeded(**kwargs: object) -> SmallTransUNet:
    """A small one none of whose parameters is zero."""
    torch.manual_seed(0)
    net = SmallTransUNet(2, 3, **kwargs).eval()  # type: ignore[arg-type]
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def picture(*size: int, items: int = 2) -> Tensor:
    return torch.randn(items, 2, *size, generator=torch.Generator().manual_seed(1))


# --- the published network ------------------------------------------------------------------------


def by_hand(classes: int, tokens: int, position: bool) -> int:
    """R50-ViT-B/16 with the decoder of Chen et al., summed; keys with their bias, as published."""

    def unit(inputs: int, inner: int, projected: bool) -> int:
        outputs = 4 * inner
        convs = inputs * inner + 9 * inner * inner + inner * outputs + projected * inputs * outputs
        return convs + 2 * (
            inner + inner + outputs + projected * outputs
        )  # norms: a weight and a bias

    total = 3 * 64 * 7 * 7 + 2 * 64
    before = 64
    for units, inner in ((3, 64), (4, 128), (9, 256)):
        total += unit(before, inner, True) + (units - 1) * unit(4 * inner, inner, False)
        before = 4 * inner
    total += 1024 * 768 + 768 + tokens * 768
    layer = 4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 2 * 2 * 768
    total += 12 * layer + 2 * 768
    total += 768 * 512 * 9 + 2 * 512
    for (inputs, outputs), skip in zip(pairwise((512, 256, 128, 64, 16)), (512, 256, 64, 0)):
        total += (inputs + skip) * outputs * 9 + 2 * outputs + outputs * outputs * 9 + 2 * outputs
    return total + (16 + position) * classes * 9 + classes


@pytest.mark.parametrize(
    ("size", "classes", "position", "published"),
    [(512, 14, True, 105_913_836), (512, 14, False, 105_913_710), (224, 9, False, 105_277_081)],
)
def test_the_published_parameters(size: int, classes: int, position: bool, published: int) -> None:
    with torch.device("meta"):
        net = TransUNet(3, classes, size=size, position=position)
        batch = TransUNet(3, classes, size=size, position=position, norm="batch")
    key_biases = 12 * 768  # which we do not build: they never move
    assert count(net) + key_biases == by_hand(classes, (size // 16) ** 2, position) == published
    assert count(batch) == count(net)


def test_the_two_networks_of_the_reference_module() -> None:
    with torch.device("meta"):
        both = count(TransUNet(3, 14, position=True)) + count(DeepLab(3, 14))
    key_biases, unused_head = (
        12 * 768,
        384 * 1536 + 2 * 1536,
    )  # test_deeplab says what the latter is
    assert both + key_biases + unused_head == 117_597_362


def test_the_large_one_takes_any_size_channels_and_classes() -> None:
    with torch.device("meta"):
        net = TransUNet(4, 5).eval()
        assert net(torch.zeros(2, 4, 512, 512)).shape == (2, 5, 512, 512)
        assert net(torch.zeros(1, 4, 77, 130)).shape == (1, 5, 77, 130)
        assert net._attended(torch.zeros(1, 1024, 3, 5)).shape == (1, 768, 3, 5)


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    net = SmallTransUNet(2, 3)
    assert net.places.std().item() == pytest.approx(0.02, rel=0.1)
    units = [unit for stage in net.stages for unit in stage]
    assert all(not unit.norm3.weight.any() for unit in units)  # so each begins as its skip
    with torch.device("meta"):
        large = TransUNet(3, 9)
    norms = [m for m in large.stages.modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32}
    assert len(norms) == 3 * (3 + 4 + 9) + 3


def test_padding_repeats_the_far_edges() -> None:
    net = seeded()
    x = picture(20, 33)
    assert torch.equal(net(x), net(F.pad(x, (0, 15, 0, 12), "replicate"))[:, :, :20, :33])
    x = picture(16, 16)  # one token: a second, so that there is something to attend to
    assert torch.equal(net(x), net(F.pad(x, (0, 0, 0, 16), "replicate"))[:, :, :16])


# --- its parts ------------------------------------------------------------------------------------


def test_a_filter_counts_by_its_shape_alone() -> None:
    torch.manual_seed(0)
    conv, x = _StdConv(3, 4, 3), torch.randn(2, 3, 6, 7)
    w = conv.weight.detach().clone()
    flat = w.flatten(1).numpy()
    expected = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, torch.from_numpy(expected).view_as(w), padding=1)
    )
    with torch.no_grad():
        conv.weight.copy_(100 * w + 7)
    torch.testing.assert_close(
        conv(x), F.conv2d(x, torch.from_numpy(expected).view_as(w), padding=1), rtol=0.01, atol=0.1
    )


def test_a_layer_is_attention_and_perceptron_and_key_biases_change_nothing() -> None:
    torch.manual_seed(0)
    layer = _Layer(6, 10, 2, 0.0).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    w = {name: p.detach().numpy() for name, p in layer.named_parameters()}

    def normed(t: np.ndarray) -> np.ndarray:
        return (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-6)

    y = normed(x.numpy())
    q = (y @ w["query.weight"].T + w["query.bias"]).reshape(2, 5, 2, 3)
    k = (y @ w["key.weight"].T + 5.0).reshape(2, 5, 2, 3)  # a bias that the network has not
    v = (y @ w["value.weight"].T + w["value.bias"]).reshape(2, 5, 2, 3)
    scores = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(3))
    mixed = np.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdims=True), v).reshape(2, 5, 6)
    x1 = x.numpy() + mixed @ w["out.weight"].T + w["out.bias"]
    inner = torch.from_numpy(normed(x1) @ w["fc1.weight"].T + w["fc1.bias"])
    gelu = (inner * 0.5 * (1 + torch.erf(inner / 2**0.5))).numpy()
    np.testing.assert_allclose(
        layer(x).detach(), x1 + gelu @ w["fc2.weight"].T + w["fc2.bias"], atol=1e-12
    )


def test_without_position_embeddings_places_are_all_alike() -> None:
    net = seeded()
    x = torch.randn(1, net.embed.in_channels, 3, 4)
    assert not torch.allclose(net._attended(x.flip(3)), net._attended(x).flip(3), atol=1e-3)
    nn.init.zeros_(net.places)
    torch.testing.assert_close(
        net._attended(x.flip(3)), net._attended(x).flip(3), rtol=1e-4, atol=1e-4
    )


def test_position_embeddings_of_another_size_are_interpolated() -> None:
    own = torch.randn(1, 2, 4, 6)
    assert resized_places(own, (4, 6)) is own
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert resized_places(ramp, (8, 16))[0, 0, 3].tolist() == [0, *np.arange(0.25, 7, 0.5), 7]
    half = resized_places(ramp, (8, 4))[0, 0, 0]
    assert half[1:3].tolist() == pytest.approx([2.5, 4.5])  # the middles of the cells
    places = nn.Parameter(torch.randn(1, 2, 8, 8))
    resized_places(places, (2, 3)).sum().backward()
    assert (places.grad != 0).all()  # type: ignore[union-attr]


def test_the_slices_place_is_one_more_channel_of_the_head() -> None:
    net = seeded(position=True)
    x = picture(32, 48)

    def at(*places: float) -> Tensor:
        place = torch.tensor(places).view(-1, 1, 1, 1).expand(-1, 1, 32, 48).clone()
        place[:, :, :5, :5] = 0  # the corner of a turned patch
        return net(torch.cat([x, place], 1))

    here, there = at(0.25, 0.25), at(0.25, 0.75)
    assert torch.equal(here[0], there[0])
    kernel = net.head.weight.detach()[:, -1]
    difference = (there - here)[1]
    torch.testing.assert_close(
        difference[:, 1:-1, 1:-1],
        0.5 * kernel.sum((1, 2)).view(3, 1, 1).expand(3, 30, 46),
        atol=1e-4,
        rtol=0,
    )
    torch.testing.assert_close(
        difference[:, 0, 0], 0.5 * kernel[:, 1:, 1:].sum((1, 2)), atol=1e-4, rtol=0
    )


def test_dropout_is_for_training_alone_and_from_the_global_generator() -> None:
    net = seeded(dropout=0.5)
    x = picture(32, 32)
    assert torch.equal(net(x), net(x))
    net.train()
    torch.manual_seed(3)
    first, second = net(x)[0], net(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(net(x)[0], first)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_gradient_of_two_items_is_the_mean_of_each_with_group_norm_alone(norm: str) -> None:
    net = seeded(norm=norm).double().train()
    x, w = picture(32, 32).double(), torch.randn(3, 32, 32, dtype=torch.float64)

    def gradient(items: Tensor) -> Tensor:
        loss = (net(items)[0] * w).square().flatten(1).mean(1).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    both, apart = gradient(x), (gradient(x[:1]) + gradient(x[1:])) / 2
    assert ((both - apart).norm() < 1e-9 * both.norm()) == (norm == "group")


def test_a_plan_for_volumes_is_refused() -> None:
    for kind in (TransUNet, SmallTransUNet):
        with (
            torch.device("meta"),
            pytest.raises(ContextsegError, match=r"net=transunet.*the plan is 3-D.*--set dims=2"),
        ):
            kind(1, 2, [4, 8], [[1, 1, 1], [2, 2, 2]], [[3, 3, 3]] * 2)
        with torch.device("meta"):
            kind(1, 2, [4, 8], [[1, 1], [2, 2]], [[3, 3]] * 2)


def test_the_small_one_learns(tmp_path: Path) -> None:
    method = laws.make("supervised", 2, net="transunet-small", optimizer="adamw")
    laws.train_briefly(method, tmp_path, 60, 2, labelled=3, lr=3e-3).eval()
    b = laws.batch(10_000, dims=2)
    with torch.no_grad():
        prediction = method.predict(b.image).argmax(1)
    p, y = (prediction == 1) & (b.label != IGNORE), b.label == 1
    assert 2 * (p & y).sum() / (p.sum() + y.sum()) > 0.7
