"""Residual networks as feature extractors: ResNet-18 and ResNet-50 without the classifier.

He et al., CVPR 2016. The stride of a bottleneck is in its 3 x 3 convolution, as in all of today's
weights (the paper's is in the first 1 x 1). Where we differ: the normalisation is chosen. Group
norm (Wu and He, ECCV 2018) has batch norm's parameters, one for one, but treats an image the same
whatever else is in the batch: so a slice encoded alone equals a slice encoded among others, and two
ranks equal one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd

from torch import Tensor, nn

from contextseg.errors import ContextsegError, did_you_mean

RESNET18 = (2, 2, 2, 2)
"""Basic blocks at each stage of ResNet-18."""

RESNET50 = (3, 4, 6, 3)
"""Bottleneck blocks at each stage of ResNet-50."""


def _group_norm(channels: int) -> nn.Module:
    """At most 32 groups, of eight channels or more.

    A group of one channel would undo its convolution's bias.
    """
    return nn.GroupNorm(gcd(channels, min(32, max(1, channels // 8))), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group_norm}
"""Normalisations by name, each with a scale and a shift for each channel."""


class ResNet(nn.Module):
    """An image (B, C, H, W) to one feature map for each stage, finest first; strides double.

    Modules are named as torchvision's are: with norm "batch", no bias and three inputs its state
    dict fits.

    Args:
        inputs: Channels C of the image.
        blocks: Blocks at each stage; `RESNET18`, `RESNET50`, or the beginning of one.
        width: Channels of the first stage's 3 x 3 convolutions; they double from stage to stage.
        bottleneck: Whether blocks are convolutions of 1 x 1, 3 x 3, 1 x 1 (ResNet-50) instead of
            two of 3 x 3 (ResNet-18).
        stride: Stride of the first stage: 4 as published; 2 leaves out the max pooling; 1 also the
            first convolution's stride, for images of a hundred pixels.
        norm: One of `NORMS`.
        bias: Whether the convolutions have biases; published networks have none.

    Attributes:
        channels: Channels of each map: the widths, or four times as many after bottlenecks.

    Raises:
        ContextsegError: The norm is unknown, or the stride another one.

    Example:
        >>> import torch
        >>> net = ResNet(1, (1, 1, 1), width=8)
        >>> [tuple(x.shape) for x in net(torch.zeros(1, 1, 32, 48))]
        [(1, 32, 8, 12), (1, 64, 4, 6), (1, 128, 2, 3)]
    """

    def __init__(
        self,
        inputs: int,
        blocks: Sequence[int] = RESNET50,
        width: int = 64,
        bottleneck: bool = True,
        stride: int = 4,
        norm: str = "group",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ContextsegError(
                f"norm={norm}", "there is no such normalisation", did_you_mean(norm, NORMS)
            )
        if stride not in (1, 2, 4):
            raise ContextsegError(
                f"stride={stride}", "a first stage cannot have this stride", "choose 1, 2 or 4"
            )
        self.conv1 = nn.Conv2d(inputs, width, 7, min(stride, 2), 3, bias=bias)
        self.bn1 = NORMS[norm](width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stride == 4 else nn.Identity()
        block: type[nn.Module] = _Bottleneck if bottleneck else _Basic
        self.channels = [width * 2**i * (4 if bottleneck else 1) for i in range(len(blocks))]
        before = width
        for i, number in enumerate(blocks):
            arguments = (width * 2**i, norm, bias)
            first = block(before, self.channels[i], *arguments, 1 if i == 0 else 2)
            rest = [
                block(self.channels[i], self.channels[i], *arguments, 1) for _ in range(number - 1)
            ]
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            before = self.channels[i]
        self.apply(_he)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps of an image.

        Args:
            x: (B, C, H, W).

        Returns:
            A list of (B, channels[i], H_i, W_i), where H_i = ceil(H / (stride * 2^i)).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for i in range(len(self.channels)):
            x = self.get_submodule(f"layer{i + 1}")(x)
            features.append(x)
        return features


def _shortcut(inputs: int, outputs: int, norm: str, bias: bool, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=bias), NORMS[norm](outputs))


class _Basic(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, width: int, norm: str, bias: bool, stride: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=bias)
        self.bn1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, outputs, 3, 1, 1, bias=bias)
        self.bn2 = NORMS[norm](outputs)
        self.downsample = _shortcut(inputs, outputs, norm, bias, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class _Bottleneck(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, width: int, norm: str, bias: bool, stride: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=bias)
        self.bn1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=bias)
        self.bn2 = NORMS[norm](width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=bias)
        self.bn3 = NORMS[norm](outputs)
        self.downsample = _shortcut(inputs, outputs, norm, bias, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _he(module: nn.Module) -> None:
    """He's normal initialisation by the number of outputs; biases are zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
