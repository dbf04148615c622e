"""DeepLabV3+ and EfficientNet: published counts by hand, a block, norms. Laws: test_nets. Weights:
test_weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import laws
from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.nets import DeepLab, SmallDeepLab
from contextseg.nets.efficientnet import B3, EfficientNet, _Block, _dropped, norm2d

torch.set_num_threads(1)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def seeded(**kwargs: object) -> SmallDeepLab:
    torch.manual_seed(0)
    return SmallDeepLab(2, 3, **kwargs).eval()  # type: ignore[arg-type]


def picture(*size: int, items: int = 2) -> Tensor:
    return torch.randn(items, 2, *size, generator=torch.Generator().manual_seed(1))


# --- the published network ------------------------------------------------------------------------


def encoder_by_hand() -> int:
    """EfficientNet-B3 from B0's table: depths times 1.4 rounded up, widths times 1.2 to a multiple
    of 8.

    That is the nearest, or the next where the nearest would be less than 90 %.
    """
    total, before = 3 * 40 * 9 + 2 * 40, 40
    base = [
        (1, 16, 1, 3),
        (2, 24, 6, 3),
        (2, 40, 6, 5),
        (3, 80, 6, 3),
        (3, 112, 6, 5),
        (4, 192, 6, 5),
        (1, 320, 6, 3),
    ]
    for depth, width, expansion, kernel in base:
        near = round(width * 1.2 / 8) * 8
        width, depth = near + 8 * (near < 0.9 * width * 1.2), -(-depth * 14 // 10)
        for _ in range(depth):
            inner, squeezed = before * expansion, before // 4
            total += (before * inner + 2 * inner) * (expansion > 1)
            total += inner * kernel * kernel + 2 * inner
            total += inner * squeezed + squeezed + squeezed * inner + inner
            total += inner * width + 2 * width
            before = width
    return total


HEAD = 384 * 1536 + 2 * 1536
"""EfficientNet's last convolution and its norm.

segmentation-models-pytorch builds it and never uses it; we do not.
"""


def test_the_published_encoder() -> None:
    classifier = 1536 * 1000 + 1000
    with torch.device("meta"):
        assert count(EfficientNet(3, 40, B3)) == encoder_by_hand()
    assert encoder_by_hand() + HEAD + classifier == 12_233_232  # torchvision's table of models


def test_the_published_parameters() -> None:
    with torch.device("meta"):
        net, batch = DeepLab(3, 14), DeepLab(3, 14, norm="batch")
    pyramid = (
        384 * 256 + 512 + 3 * (384 * 9 + 384 * 256 + 512) + 384 * 256 + 512 + 5 * 256 * 256 + 512
    )
    decoder = (
        (256 * 9 + 256 * 256 + 512)
        + (32 * 48 + 2 * 48)
        + (304 * 9 + 304 * 256 + 512)
        + 256 * 14
        + 14
    )
    assert count(net) == count(batch) == encoder_by_hand() + pyramid + decoder
    assert count(net) + HEAD == 11_683_526


def test_the_large_one_s_maps_and_sizes() -> None:
    with torch.device("meta"):
        net = DeepLab(4, 5).eval()
        maps = net.encoder(torch.zeros(1, 4, 64, 96))
        assert [tuple(x.shape[1:]) for x in maps] == [
            (24, 32, 48),
            (32, 16, 24),
            (48, 8, 12),
            (384, 4, 6),
        ]
        assert net(torch.zeros(1, 4, 77, 130)).shape == (1, 5, 77, 130)
    depthwise = [
        m for m in net.encoder.stages.modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    strides = [m.stride[0] for m in depthwise]
    assert [i for i, stride in enumerate(strides) if stride == 2] == [
        2,
        5,
        8,
    ]  # of blocks 2 + 3 + 3 + 5 + 5 + 6 + 2
    assert [m.dilation[0] for m in depthwise] == [1] * 18 + [2] * 8
    rates = [branch[0].dilation[0] for branch in list(net.pyramid.branches)[1:]]
    assert rates == [12, 24, 36]


def test_padding_repeats_the_far_edges() -> None:
    net = seeded()
    x = picture(20, 33)
    assert torch.equal(net(x), net(F.pad(x, (0, 7, 0, 4), "replicate"))[:, :, :20, :33])


# --- its parts ------------------------------------------------------------------------------------


def test_a_block_by_hand() -> None:
    torch.manual_seed(0)
    block = _Block(8, 8, 3, 1, 2, 2, 0.0, "group").eval()
    x = torch.randn(2, 8, 9, 7)
    w = {name: p.detach() for name, p in block.named_parameters()}

    def norm(y: Tensor, name: str) -> Tensor:
        grouped = y.view(2, -1, 8, *y.shape[2:])  # eight channels a group
        centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
        y = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-3).sqrt()).view_as(y)
        return y * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)

    def silu(y: Tensor) -> Tensor:
        return y / (1 + torch.exp(-y))

    y = silu(norm(torch.einsum("bihw,oi->bohw", x, w["expand.0.weight"][..., 0, 0]), "expand.1"))
    y = silu(
        norm(F.conv2d(y, w["depthwise.0.weight"], padding=2, dilation=2, groups=16), "depthwise.1")
    )
    gate = silu(y.mean((2, 3)) @ w["squeeze.weight"][..., 0, 0].T + w["squeeze.bias"])
    gate = torch.sigmoid(gate @ w["excite.weight"][..., 0, 0].T + w["excite.bias"])
    y = torch.einsum("bihw,oi->bohw", y * gate[..., None, None], w["project.0.weight"][..., 0, 0])
    torch.testing.assert_close(block(x).detach(), x + norm(y, "project.1"), rtol=1e-4, atol=1e-5)


def test_an_item_is_dropped_whole_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.ones(20_000, 2, 1, 1)
    y = _dropped(x, 0.2)
    assert sorted(y.unique().tolist()) == [0, 1.25]
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(
        1, abs=4 * 0.5 / 20_000**0.5
    )  # sd of one item: sqrt(0.2 / 0.8) = 0.5
    assert _dropped(x, 0.0) is x


def test_dropping_is_for_training_alone_grows_and_comes_from_the_global_generator() -> None:
    net = seeded(drop_path=0.5, dropout=0.5)
    x = picture(16, 16)
    assert torch.equal(net(x), net(x))
    net.train()
    torch.manual_seed(3)
    first, second = net(x)[0], net(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(net(x)[0], first)
    with torch.device("meta"):
        rates = [
            m.drop
            for m in EfficientNet(3, 40, B3, drop_path=0.26).modules()
            if isinstance(m, _Block)
        ]
    assert rates == pytest.approx([i / 100 for i in range(26)])


def test_norms() -> None:
    assert [norm2d("group", n).num_groups for n in (8, 24, 136, 20, 5)] == [1, 3, 17, 1, 1]
    with pytest.raises(ContextsegError, match=r"norm=bach: .*batch"):
        norm2d("bach", 8)
    norm = norm2d("batch", 3)
    nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    x, one = torch.randn(4, 3, 2, 2), torch.randn(1, 3, 1, 1)
    before = norm.running_mean.clone()  # type: ignore[operator, union-attr]
    torch.testing.assert_close(
        norm(one), (one - before.view(1, 3, 1, 1)) / (1 + 1e-5) ** 0.5
    )  # nothing to compare with
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 20)])
def test_one_item_of_any_size_trains_with_batch_norm_too(size: tuple[int, int]) -> None:
    net = seeded(norm="batch").train()
    z = net(picture(*size, items=1))[0]
    assert z.shape == (1, 3, *size)
    z.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_gradient_of_two_items_is_the_mean_of_each_with_group_norm_alone(norm: str) -> None:
    net = seeded(norm=norm).double().train()
    x, w = picture(24, 16).double(), torch.randn(3, 24, 16, dtype=torch.float64)

    def gradient(items: Tensor) -> Tensor:
        loss = (net(items)[0] * w).square().flatten(1).mean(1).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    both, apart = gradient(x), (gradient(x[:1]) + gradient(x[1:])) / 2
    assert ((both - apart).norm() < 1e-9 * both.norm()) == (norm == "group")


def test_a_plan_for_volumes_is_refused() -> None:
    for kind in (DeepLab, SmallDeepLab):
        with (
            torch.device("meta"),
            pytest.raises(ContextsegError, match=r"net=deeplab.*the plan is 3-D.*--set dims=2"),
        ):
            kind(1, 2, [4, 8], [[1, 1, 1], [2, 2, 2]], [[3, 3, 3]] * 2)


def test_the_small_one_learns(tmp_path: Path) -> None:
    method = laws.make("supervised", 2, net="deeplab-small", optimizer="adamw")
    laws.train_briefly(method, tmp_path, 50, 2, labelled=3, lr=3e-3).eval()
    b = laws.batch(10_000, dims=2)
    with torch.no_grad():
        prediction = method.predict(b.image).argmax(1)
    p, y = (prediction == 1) & (b.label != IGNORE), b.label == 1
    assert 2 * (p & y).sum() / (p.sum() + y.sum()) > 0.7
