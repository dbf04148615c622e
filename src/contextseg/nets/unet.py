"""nnU-Net's two networks, 2-D and 3-D: the plain U-Net and the one with a residual encoder.

Isensee et al., Nature Methods 2021; the residual encoder: Isensee et al., MICCAI 2024. Where we
differ from nnU-Net v2 (PlainConvUNet, ResidualEncoderUNet of dynamic-network-architectures):

- A convolution before an instance norm has no bias: the norm subtracts it again, and it would never
  move. nnU-Net has conv_bias=True. The transposed convolutions have none either, as in nnU-Net v1:
  past the next norm such a bias shows only at the image's edge.
- Every head has a loss. nnU-Net builds one for the lowest decoder level too, at weight 0.
- Images have any size. nnU-Net asks for a multiple of the total stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.errors import ContextsegError

Axes = Sequence[int]
"""One number for each axis of S."""

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks at each level of nnU-Net's ResEnc presets; deeper levels repeat the last."""

_CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOL: dict[int, type[nn.Module]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _conv_norm(inputs: int, outputs: int, kernel: Axes, stride: Axes) -> list[nn.Module]:
    dims = len(kernel)
    conv = _CONV[dims](
        inputs, outputs, tuple(kernel), tuple(stride), tuple(k // 2 for k in kernel), bias=False
    )
    return [conv, _NORM[dims](outputs, eps=1e-5, affine=True)]


def _act() -> nn.Module:
    # In place would save a third of the activations, at 11 % more time on a CPU (the norm's output
    # is a view, whose gradient autograd must then copy).
    return nn.LeakyReLU(0.01)


def _block(inputs: int, outputs: int, kernel: Axes, stride: Axes) -> nn.Sequential:
    return nn.Sequential(*_conv_norm(inputs, outputs, kernel, stride), _act())


def _blocks(number: int, inputs: int, outputs: int, kernel: Axes, stride: Axes) -> nn.Sequential:
    """`number` blocks, of which the first changes the width and takes the stride."""
    rest = [_block(outputs, outputs, kernel, [1] * len(kernel)) for _ in range(number - 1)]
    return nn.Sequential(_block(inputs, outputs, kernel, stride), *rest)


class _Residual(nn.Module):
    """ResNet-D's basic block (He et al., CVPR 2019): the skip is pooled, then projected."""

    def __init__(self, inputs: int, outputs: int, kernel: Axes, stride: Axes) -> None:
        super().__init__()
        ones = [1] * len(kernel)
        self.body = nn.Sequential(
            _block(inputs, outputs, kernel, stride), *_conv_norm(outputs, outputs, kernel, ones)
        )
        pool = [_POOL[len(kernel)](tuple(stride))] if prod(stride) > 1 else []
        self.skip = nn.Sequential(
            *pool, *(_conv_norm(inputs, outputs, ones, ones) if inputs != outputs else [])
        )
        self.act = _act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))


class _UShape(nn.Module):
    """What both networks share: padding, the decoder and its heads.

    `stages` is the encoder, one module a level.
    """

    dims = (2, 3)

    def __init__(
        self,
        stages: list[nn.Module],
        classes: int,
        widths: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        convs: int,
        deep: bool,
        head_bias: bool,
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        lower = list(range(len(widths) - 1))[::-1]
        self.deep = deep
        self.reach = [
            [prod(s[axis] for s in strides[: i + 1]) for axis in range(dims)]
            for i in range(len(strides))
        ]
        self.stages = nn.ModuleList(stages)
        self.ups = nn.ModuleList(
            _UP[dims](
                widths[i + 1], widths[i], tuple(strides[i + 1]), tuple(strides[i + 1]), bias=False
            )
            for i in lower
        )
        self.merges = nn.ModuleList(
            _blocks(convs, 2 * widths[i], widths[i], kernels[i], [1] * dims) for i in lower
        )
        heads = max(1, len(widths) - 2) if deep else 1
        self.heads = nn.ModuleList(
            _CONV[dims](widths[i], classes, 1, bias=head_bias) for i in range(heads)
        )
        self.apply(_he)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) to logits (B, K, *S).

        In training with `deep` a list, level i of size ceil(S / its stride).
        """
        return self.with_last_input(x)[0]

    def with_last_input(self, x: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """The logits, and what the decoder's last level makes the finest of them from.

        Args:
            x: (B, C, *S).

        Returns:
            As `forward`; and (B, C', *S'), S' being S padded for the network: what `last_level`
            takes.
        """
        size = x.shape[2:]
        x = padded(x, self.reach[-1])
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        levels = [skips.pop()]
        last = levels[0]
        for up, merge in zip(self.ups, self.merges):
            last = torch.cat([up(levels[-1]), skips.pop()], 1)
            levels.append(merge(last))
        several = self.training and self.deep
        outputs = []
        for head, level, reach in zip(
            self.heads if several else self.heads[:1], levels[::-1], self.reach
        ):
            outputs.append(head(level)[(..., *(slice(-(-n // r)) for n, r in zip(size, reach)))])
        return outputs if several else outputs[0], last

    def last_level(self, size: Axes) -> LastLevel:
        """The decoder's last level and its head, with the network's own parameters.

        Args:
            size: S of the image.

        Returns:
            A module from what `with_last_input` gives to logits (B, K, *S). Of a network of one
            level it is the head.
        """
        return LastLevel([*self.merges[-1:], self.heads[0]], size)


class LastLevel(nn.Sequential):
    """The end of a network, whose logits are cropped to the size of the image.

    Args:
        layers: The layers, in order.
        size: S of the image.
    """

    def __init__(self, layers: Sequence[nn.Module], size: Axes) -> None:
        super().__init__(*layers)
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', *S') to logits (B, K, *S)."""
        return super().forward(x)[(..., *(slice(n) for n in self.size))]


class UNet(_UShape):
    """nnU-Net's plain U-Net, 2-D or 3-D (as many axes as `strides[0]` has numbers).

    Isensee et al., Nature Methods 2021; see the module for the differences. An image whose size is
    no multiple of the total stride is padded at the far ends by repeating its edge, and the logits
    are cropped. (Zeros would be a sharp border of mean tissue, not air, in a normalised image.) An
    instance norm needs two voxels to compare, so the padding leaves at least two at the lowest
    level.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Channels at each level, highest resolution first.
        strides: For each level, the stride of its first convolution; 1 on each axis for the first
            level.
        kernels: For each level, the size of its convolutions, odd.
        convs: Convolutions at each level, in the encoder and in the decoder.
        deep: Deep supervision: in training, a list of logits, full resolution first, one for each
            decoder level but the lowest (a single level keeps its head). In evaluation, and without
            `deep`, one tensor.
        head_bias: Whether the 1x1 heads have a bias: nnU-Net v2's do, v1's did not.

    Raises:
        ContextsegError: The lists do not fit together.

    Example:
        >>> levels = dict(widths=[4, 8], strides=[[1, 1], [2, 2]], kernels=[[3, 3]] * 2)
        >>> net = UNet(1, 3, **levels)
        >>> net.eval()(torch.zeros(2, 1, 13, 9)).shape
        torch.Size([2, 3, 13, 9])
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        convs: int = 2,
        deep: bool = True,
        head_bias: bool = True,
    ) -> None:
        _check(widths, strides, kernels)
        stages: list[nn.Module] = [
            _blocks(convs, *level)
            for level in zip([inputs, *widths], widths, kernels, strides, strict=False)
        ]
        super().__init__(stages, classes, widths, strides, kernels, convs, deep, head_bias)


class ResidualUNet(_UShape):
    """nnU-Net's U-Net with a residual encoder (ResEnc): a stem, residual blocks, a light decoder.

    Isensee et al., MICCAI 2024. As in nnU-Net, the last norm of each residual branch starts at
    zero, so that each block begins as its skip; the branch's convolutions therefore have no
    gradient in the very first step. Images have any size, as with `UNet`.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Channels at each level, highest resolution first.
        strides: For each level, the stride of its first block; 1 on each axis for the first level.
        kernels: For each level, the size of its convolutions, odd.
        blocks: Residual blocks at each level; None for `BLOCKS`, nnU-Net's presets.
        convs: Convolutions at each level of the decoder.
        deep: Deep supervision, as in `UNet`.
        head_bias: Whether the 1x1 heads have a bias.

    Raises:
        ContextsegError: The lists do not fit together.

    Example:
        >>> levels = dict(widths=[4, 8], strides=[[1, 1, 1], [2, 2, 2]], kernels=[[3, 3, 3]] * 2)
        >>> net = ResidualUNet(1, 2, **levels)
        >>> [z.shape for z in net(torch.zeros(1, 1, 5, 6, 7))]
        [torch.Size([1, 2, 5, 6, 7])]
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
        blocks: Sequence[int] | None = None,
        convs: int = 1,
        deep: bool = True,
        head_bias: bool = True,
    ) -> None:
        _check(widths, strides, kernels)
        numbers = blocks or [BLOCKS[min(i, len(BLOCKS) - 1)] for i in range(len(widths))]
        if len(numbers) != len(widths):
            raise ContextsegError(
                "network",
                f"blocks for {len(numbers)} levels, widths for {len(widths)}",
                "give one for each",
            )
        ones = [1] * len(strides[0])
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            before = widths[max(i - 1, 0)]
            first = [_block(inputs, width, kernels[0], ones)] if i == 0 else []
            rest = [_Residual(width, width, kernels[i], ones) for _ in range(numbers[i] - 1)]
            stages.append(
                nn.Sequential(*first, _Residual(before, width, kernels[i], strides[i]), *rest)
            )
        super().__init__(stages, classes, widths, strides, kernels, convs, deep, head_bias)
        for module in self.modules():
            if isinstance(module, _Residual):
                nn.init.zeros_(module.body[-1].weight)  # type: ignore[arg-type]


def _check(widths: Sequence[int], strides: Sequence[Axes], kernels: Sequence[Axes]) -> None:
    """Raise `ContextsegError` where the lists do not describe one network."""
    if not len(widths) == len(strides) == len(kernels) > 0:
        counts = f"{len(widths)} widths, {len(strides)} strides and {len(kernels)} kernels"
        raise ContextsegError("network", counts, "give one of each for every level")
    dims = len(strides[0])
    if dims not in _CONV or any(len(axes) != dims for axes in (*strides, *kernels)):
        raise ContextsegError(
            "network",
            f"strides {list(strides)} and kernels {list(kernels)}",
            "two or three numbers a level",
        )
    if prod(strides[0]) != 1:
        raise ContextsegError(
            "network",
            f"a first stride of {list(strides[0])}",
            "start at full resolution, with 1 on each axis",
        )
    if any(k % 2 == 0 for kernel in kernels for k in kernel):
        raise ContextsegError(
            "network", f"an even kernel in {list(kernels)}", "use odd sizes, such as 1 and 3"
        )


def _he(module: nn.Module) -> None:
    """He's normal initialisation for a leaky ReLU of slope 0.01, biases zero; nnU-Net's."""
    if isinstance(module, (*_CONV.values(), *_UP.values())):
        nn.init.kaiming_normal_(module.weight, a=0.01)  # type: ignore[arg-type]
        if module.bias is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def two_dimensional(name: str, strides: Sequence[Axes]) -> None:
    """Check that a plan is for slices.

    Args:
        name: Name of the network, which sees nothing else.
        strides: The plan's.

    Raises:
        ContextsegError: The plan is 3-D.
    """
    if any(len(axes) != 2 for axes in strides):
        raise ContextsegError(
            f"net={name}",
            "this network is 2-D, and the plan is 3-D",
            "plan for slices: --set dims=2",
        )


def padded(x: Tensor, total: Axes) -> Tensor:
    """An image whose far ends are repeated up to a multiple of a network's total stride.

    The lowest level then has at least two voxels; where it would have one, the axis of the smallest
    stride is doubled.

    Args:
        x: (B, C, *S).
        total: Stride of the network's lowest level, along each axis.

    Returns:
        The padded image; `x` itself where nothing is missing.

    Example:
        >>> padded(torch.arange(3.0).view(1, 1, 1, 3), (1, 2)).ravel()
        tensor([0., 1., 2., 2.])
    """
    size = [-(-n // t) * t for n, t in zip(x.shape[2:], total)]
    if size == list(total):
        cheapest = total.index(min(total))
        size[cheapest] *= 2
    extra = [new - n for new, n in zip(size, x.shape[2:])]
    return F.pad(x, [n for e in reversed(extra) for n in (0, e)], "replicate") if any(extra) else x
