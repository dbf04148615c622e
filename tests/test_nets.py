"""The laws that every network keeps, and what makes two of them nnU-Net's."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from contextseg.errors import ContextsegError
from contextseg.nets import NETS, ResidualUNet, UNet
from contextseg.nets.unet import BLOCKS

torch.set_num_threads(1)
CONVS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAWFUL = [name for name in NETS if f"{name}-small" not in NETS and not name.endswith("-batchnorm")]
"""A large network is held to the laws by its small one, one with batch norm by that without."""
SIZES = [(8, 8), (7, 9), (1, 1), (2, 3), (1, 13), (4, 8, 8), (5, 6, 7), (1, 1, 1), (2, 4, 4)]
every_net = pytest.mark.parametrize(
    ("name", "dims"), [(name, dims) for name in LAWFUL for dims in NETS[name].dims]
)
u_shaped = pytest.mark.parametrize("name", ["unet", "resenc"])
both_dims = pytest.mark.parametrize("dims", [2, 3])


def of_every_net(sizes):
    """Each network with each of the sizes whose axes it can see."""
    pairs = [(name, size) for name in LAWFUL for size in sizes if len(size) in NETS[name].dims]
    return pytest.mark.parametrize(("name", "size"), pairs)


def tiny(name, dims=3, inputs=2, classes=3, **kwargs):
    """Three levels, the last of which leaves the first axis alone, as for thick slices."""
    torch.manual_seed(0)
    strides = [[1] * dims, [2] * dims, [1] + [2] * (dims - 1)]
    kernels = [[1] + [3] * (dims - 1), [3] * dims, [3] * dims]
    return NETS[name](inputs, classes, [4, 6, 8], strides, kernels, **kwargs)


def image(*size, inputs=2, items=2, dtype=torch.float32):
    return torch.randn(
        items, inputs, *size, generator=torch.Generator().manual_seed(1), dtype=dtype
    )


def count(net):
    return sum(p.numel() for p in net.parameters())


# --- laws -----------------------------------------------------------------------------------------


@of_every_net(SIZES)
def test_any_size_comes_back(name, size):
    net = tiny(name, len(size))
    for x in (image(*size), torch.zeros(1, 2, *size)):
        outputs = net.train()(x)
        assert [z.shape for z in outputs] == [(len(x), 3, *size)]
        outputs[0].square().mean().backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        with torch.no_grad():
            z = net.eval()(x)
        assert z.shape == (len(x), 3, *size)
        assert z.isfinite().all()


@u_shaped
@both_dims
def test_padding_repeats_the_far_edges(name, dims):
    net = tiny(name, dims).eval()
    size = (3, 9, 6)[:dims]
    x = image(*size)
    # total strides 2, 4, 4
    by_hand = np.pad(x.numpy(), [(0, 0), (0, 0), (0, 1), (0, 3), (0, 2)][: dims + 2], mode="edge")
    expected = net(torch.from_numpy(by_hand))[(..., *(slice(n) for n in size))]
    assert torch.equal(net(x), expected)


@u_shaped
def test_a_lowest_level_of_one_voxel_is_doubled_where_that_is_cheapest(name):
    net = tiny(name).eval()
    x = image(2, 4, 4)  # the total stride
    expected = net(
        torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (0, 2), (0, 0), (0, 0)], mode="edge"))
    )[:, :, :2]
    assert torch.equal(net(x), expected)


@every_net
def test_training_gives_a_list_and_evaluation_its_first(name, dims):
    net = tiny(name, dims)
    x = image(*(4, 8, 8)[:dims])
    outputs = net.train()(x)
    assert isinstance(outputs, list)
    assert torch.equal(outputs[0], net.eval()(x))


@u_shaped
@both_dims
def test_without_deep_supervision_training_gives_a_tensor(name, dims):
    x = image(*(4, 8, 8)[:dims])
    plain = tiny(name, dims, deep=False)
    assert torch.equal(plain.train()(x), plain.eval()(x))
    assert len(plain.heads) == 1


@u_shaped
def test_deep_outputs_leave_out_the_lowest_level_and_cover_the_image(name):
    def build(levels):
        return NETS[name](
            1, 2, [4] * levels, [[1, 1]] + [[2, 2]] * (levels - 1), [[3, 3]] * levels
        ).train()

    x = image(21, 16, inputs=1)
    shapes = [[tuple(z.shape[2:]) for z in build(levels)(x)] for levels in (1, 2, 3, 4, 5)]
    full, half, quarter = (21, 16), (11, 8), (6, 4)
    assert shapes == [[full], [full], [full], [full, half], [full, half, quarter]]


@every_net
def test_every_parameter_moves(name, dims):
    torch.manual_seed(0)
    strides = [[1] * dims] + [[2] * dims] * 3
    net = NETS[name](2, 3, [4] * 4, strides, [[3] * dims] * 4).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    x = image(*[16] * dims)
    for _ in range(3):  # a residual branch that starts at zero moves from the second step on
        optimizer.zero_grad()
        outputs = net(x)
        assert len(outputs) == (2 if name in ("unet", "resenc") else 1)
        sum((z * torch.linspace(-3, 3, z.shape[-1])).square().mean() for z in outputs).backward()
        optimizer.step()
    for key, p in net.named_parameters():
        assert (p - before[key]).abs().max() > 1e-6, key


@u_shaped
@both_dims
def test_only_heads_have_a_bias(name, dims):
    net = tiny(name, dims)
    assert {m for m in net.modules() if isinstance(m, CONVS) and m.bias is not None} == set(
        net.heads
    )
    net = tiny(name, dims, head_bias=False)
    assert not [m for m in net.modules() if isinstance(m, CONVS) and m.bias is not None]


@every_net
def test_items_do_not_see_each_other(name, dims):
    net = tiny(name, dims).eval()
    x = image(*(4, 8, 8)[:dims], items=3)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-5)


@every_net
def test_state_survives_save_and_load(name, dims, tmp_path):
    net, other = tiny(name, dims).eval(), tiny(name, dims).eval()
    for p in net.parameters():
        nn.init.normal_(p)
    x = image(*(4, 8, 8)[:dims])
    assert not torch.equal(net(x), other(x))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(net(x), other(x))


@of_every_net([(4, 6), (4, 4, 4), (3, 5, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_forward_mode_runs_through(name, training, size):
    net = tiny(name, len(size)).double().train(training)
    for p in net.parameters():  # away from the residual branches' zeros
        nn.init.normal_(p, std=0.3)
    x = image(*size, dtype=torch.float64)
    theta = {key: p.detach() for key, p in net.named_parameters()}
    v = {key: torch.randn_like(p) for key, p in theta.items()}

    def f(theta):
        outputs = torch.func.functional_call(net, theta, (x,))
        return outputs[0] if training else outputs

    z, dot = torch.func.jvp(f, (theta,), (v,))
    h = 1e-6
    ahead, behind = (f({key: p + s * v[key] for key, p in theta.items()}) for s in (h, -h))
    torch.testing.assert_close(z, f(theta), rtol=1e-9, atol=1e-9)  # attention rounds otherwise here
    # A voxel at a kink of the leaky ReLU may differ, so compare the whole.
    assert (dot - (ahead - behind) / (2 * h)).norm() < 1e-4 * dot.norm()


@u_shaped
@pytest.mark.parametrize(
    ("widths", "strides", "kernels", "what"),
    [
        ([4, 8], [[1, 1]], [[3, 3]] * 2, "2 widths, 1 strides and 2 kernels"),
        ([], [], [], "0 widths"),
        ([4, 8], [[1, 1], [2, 2, 2]], [[3, 3]] * 2, "strides"),
        ([4], [[1]], [[3]], "strides"),
        ([4, 8], [[1, 1], [2, 2]], [[3, 3], [3]], "kernels"),
        ([4, 8], [[2, 1], [2, 2]], [[3, 3]] * 2, "first stride"),
        ([4, 8], [[1, 1], [2, 2]], [[3, 3], [2, 3]], "even kernel"),
    ],
)
def test_lists_that_do_not_fit_are_named(name, widths, strides, kernels, what):
    with pytest.raises(ContextsegError, match=what):
        NETS[name](1, 2, widths, strides, kernels)


# --- nnU-Net's ------------------------------------------------------------------------------------


def test_one_level_is_convolution_norm_leaky_relu_and_head():
    net = UNet(1, 2, [1], [[1, 1, 1]], [[3, 3, 1]], convs=1).eval()
    conv, norm, _ = net.stages[0][0]
    with torch.no_grad():
        norm.weight.fill_(1.5)
        norm.bias.fill_(-0.2)
        net.heads[0].bias.copy_(torch.tensor([0.3, -0.1]))
    x = image(4, 5, 6, inputs=1, items=1)
    filtered = ndimage.correlate(
        x[0, 0].numpy(), conv.weight[0, 0].detach().numpy(), mode="constant"
    )
    normed = 1.5 * (filtered - filtered.mean()) / np.sqrt(filtered.var() + 1e-5) - 0.2
    active = np.where(normed > 0, normed, 0.01 * normed)
    for k in range(2):
        expected = active * net.heads[0].weight[k].item() + (0.3, -0.1)[k]
        np.testing.assert_allclose(net(x)[0, k].detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "published"), [(2, 15_046_830), (3, 15_047_280), (5, 15_048_180)]
)
def test_the_parameters_of_colabs_backbone(classes, published):
    # nnU-Net v1 as CoLab uses it: 30 base features, cap 320, five levels, heads without bias.
    widths = [30, 60, 120, 240, 320]
    with torch.device("meta"):
        net = UNet(1, classes, widths, [[1] * 3] + [[2] * 3] * 4, [[3] * 3] * 5, head_bias=False)
    biases = 2 * sum(widths) + 2 * sum(
        widths[:-1]
    )  # theirs: two convolutions a level, before a norm
    lowest_head = 240 * classes  # theirs, at weight 0
    assert count(net) + biases + lowest_head == published


def test_the_parameters_of_the_residual_encoder():
    # dynamic-network-architectures 0.4.4, ResidualEncoderUNet as nnU-Net v2 builds it for ResEnc-L:
    # 102,349,770.
    widths = [32, 64, 128, 256, 320, 320]
    with torch.device("meta"):
        net = ResidualUNet(1, 2, widths, [[1] * 3] + [[2] * 3] * 5, [[3] * 3] * 6)
    encoder = widths[0] + 2 * sum(
        n * w for n, w in zip(BLOCKS, widths)
    )  # biases: the stem's, two in each block
    decoder = 2 * sum(
        widths[:-1]
    )  # the transposed convolution's and the one convolution's at each level
    lowest_head = 320 * 2 + 2
    assert count(net) + encoder + decoder + lowest_head == 102_349_770


def test_residual_blocks_start_as_their_skip():
    net = tiny("resenc").train()
    block = net.stages[1][0]
    x = image(4, 8, 8, inputs=4)
    _, conv, _ = block.skip
    mean = x.view(2, 4, 2, 2, 4, 2, 4, 2).mean((3, 5, 7))  # over each 2x2x2 cell
    projected = torch.einsum("ok,bkdhw->bodhw", conv.weight[..., 0, 0, 0], mean)
    centred = projected - projected.mean((2, 3, 4), keepdim=True)
    expected = centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()
    expected = torch.where(expected > 0, expected, 0.01 * expected)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert len(block.skip) == 3
    assert len(net.stages[1][1].skip) == 0  # same width, no stride: the input itself


def test_blocks_follow_the_presets_and_can_be_given():
    widths, strides, kernels = [2] * 8, [[1, 1]] + [[2, 2]] * 7, [[3, 3]] * 8
    stages = ResidualUNet(1, 2, widths, strides, kernels).stages
    assert [len(stage) for stage in stages] == [2, 3, 4, 6, 6, 6, 6, 6]  # the first counts its stem
    stages = ResidualUNet(1, 2, widths[:2], strides[:2], kernels[:2], blocks=[2, 1]).stages
    assert [len(stage) for stage in stages] == [3, 1]
    with pytest.raises(ContextsegError, match="blocks for 1 levels"):
        ResidualUNet(1, 2, widths[:2], strides[:2], kernels[:2], blocks=[2])


@u_shaped
def test_initial_weights_are_hes(name):
    torch.manual_seed(0)
    net = NETS[name](1, 2, [32, 64], [[1, 1], [2, 2]], [[3, 3]] * 2)
    checked = 0
    for module in net.modules():
        if isinstance(module, CONVS) and module.weight.numel() > 4000:
            w = module.weight.detach()
            fan = w.shape[1] * math.prod(w.shape[2:])
            assert w.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / fan), rel=0.05)
            assert w.mean().abs() < 4 * w.std() / math.sqrt(w.numel())
            checked += 1
    assert checked >= 5
    assert all((head.bias == 0).all() for head in net.heads)
