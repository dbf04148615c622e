"""EfficientNet (Tan and Le, ICML 2019): the encoder of our DeepLabV3+, without the classifier.

Where we differ from the published network, and from how DeepLabV3+ is usually built on it:

- Group norm, with 8 channels a group, which all of its widths are multiples of, in place of batch
  norm. The number of parameters is the same. An item then does not see the others, so that a batch
  of one trains and two ranks equal one process; `norm="batch"` builds the published network, whose
  pretrained weights need it.
- The last 1x1 convolution (to 1536 channels in B3), which only the classifier reads, is not built.
- Convolutions are padded alike on both sides. (TensorFlow's pad an even size at its far end alone.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.errors import ContextsegError, did_you_mean

Stage = tuple[int, int, int, int, int]
"""(kernel, stride, expansion, channels, blocks); the first block has the stride and new width.
"""

B3: tuple[Stage, ...] = (
    (3, 1, 1, 24, 2),
    (3, 2, 6, 32, 3),
    (5, 2, 6, 48, 3),
    (3, 2, 6, 96, 5),
    (5, 1, 6, 136, 5),
    (5, 2, 6, 232, 6),
    (3, 1, 6, 384, 2),
)
"""EfficientNet-B3: B0's depths times 1.4, rounded up, and its widths times 1.2.

Widths are rounded to multiples of 8, not below 90 %.
"""

NORMS = ("group", "batch")
"""Kinds of `norm2d`."""


def norm2d(kind: str, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> nn.Module:
    """A norm of (B, C, H, W) with a weight and a bias for each channel.

    Args:
        kind: "group": over groups of 8 channels of one item (all channels, where they are no
            multiple of 8). "batch": over the batch and, in evaluation, by running statistics. One
            item of one place has nothing to compare; there batch norm uses the running statistics
            in training, too.
        channels: Number of channels.
        eps: Added to the variance.
        momentum: Momentum of the running statistics.

    Returns:
        The norm.

    Raises:
        ContextsegError: The kind is unknown.

    Example:
        >>> norm2d("group", 24).num_groups
        3
    """
    if kind not in NORMS:
        raise ContextsegError(f"norm={kind}", "there is no such norm", did_you_mean(kind, NORMS))
    if kind == "batch":
        return _BatchNorm(channels, eps, momentum)
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels, eps)


class _BatchNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


class EfficientNet(nn.Module):
    """An image to a map for each stride 2, 4, ..., `output_stride`: the last one of each.

    The image's size must be a multiple of `output_stride`.

    Args:
        inputs: Channels C of the image.
        stem: Channels of the first convolution, which has stride 2.
        stages: What follows, such as `B3`.
        output_stride: From there on strides become dilations (Chen et al., 2017).
        drop_path: Probability that an item skips a block in training; that of block i of n is i / n
            of it, from 0 for the first (Huang et al., ECCV 2016).
        norm: "group" or "batch".

    Attributes:
        widths: Channels of the maps.

    Example:
        >>> import torch
        >>> stages = [(3, 1, 1, 8, 1), (3, 2, 4, 16, 1), (5, 2, 4, 24, 1)]
        >>> net = EfficientNet(3, 16, stages, output_stride=4)
        >>> [tuple(x.shape) for x in net(torch.zeros(1, 3, 16, 24))]
        [(1, 8, 8, 12), (1, 24, 4, 6)]
    """

    def __init__(
        self,
        inputs: int,
        stem: int,
        stages: Sequence[Stage],
        output_stride: int = 16,
        drop_path: float = 0.2,
        norm: str = "group",
    ) -> None:
        super().__init__()
        strides, dilations = _dilated([stage[1] for stage in stages], output_stride)
        self.kept = [i for i in range(len(stages)) if strides[i + 1 : i + 2] != [1]]
        self.widths = [stages[i][3] for i in self.kept]
        self.stem = _conv(inputs, stem, 3, norm, stride=2)
        self.stages = nn.ModuleList()
        total = sum(stage[-1] for stage in stages)
        done = 0
        before = stem
        for (kernel, _, expansion, width, blocks), stride, dilation in zip(
            stages, strides, dilations
        ):
            blocks_of_stage = []
            for step in [stride] + [1] * (blocks - 1):
                drop = drop_path * done / total
                block = _Block(before, width, kernel, step, expansion, dilation, drop, norm)
                blocks_of_stage.append(block)
                before = width
                done += 1
            self.stages.append(nn.Sequential(*blocks_of_stage))
        self.apply(_he_fan_out)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the maps, highest resolution first."""
        x = self.stem(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.kept:
                maps.append(x)
        return maps


def _dilated(strides: Sequence[int], output_stride: int) -> tuple[list[int], list[int]]:
    """The strides after a stem of stride 2, none beyond `output_stride`, and the dilations."""
    kept = []
    dilations = []
    reach = 2
    dilation = 1
    for stride in strides:
        if reach * stride > output_stride:
            dilation *= stride
            stride = 1
        reach *= stride
        kept.append(stride)
        dilations.append(dilation)
    return kept, dilations


def _conv(
    inputs: int,
    outputs: int,
    kernel: int,
    norm: str,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    act: bool = True,
) -> nn.Sequential:
    pad = kernel // 2 * dilation
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, groups, bias=False)
    return nn.Sequential(conv, norm2d(norm, outputs, 1e-3, 0.01), *([nn.SiLU()] if act else []))


class _Block(nn.Module):
    """An inverted bottleneck with squeeze and excitation (MBConv)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        dilation: int,
        drop: float,
        norm: str,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        squeezed = max(1, inputs // 4)
        self.drop = drop
        self.skips = stride == 1 and inputs == outputs
        self.expand = _conv(inputs, inner, 1, norm) if expansion > 1 else nn.Identity()
        self.depthwise = _conv(inner, inner, kernel, norm, stride, dilation, groups=inner)
        self.squeeze = nn.Conv2d(inner, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, inner, 1)
        self.project = _conv(inner, outputs, 1, norm, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * self.excite(F.silu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        y = self.project(y)
        return x + _dropped(y, self.drop if self.training else 0.0) if self.skips else y


def _dropped(x: Tensor, rate: float) -> Tensor:
    """`x` (B, ...), each item zero by that probability, the others scaled up to keep the mean."""
    if not rate:
        return x
    return x * (x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - rate) / (1 - rate))


def _he_fan_out(module: nn.Module) -> None:
    """EfficientNet's initialisation: normal, of variance 2 / (kernel area x outputs of a group).

    Biases are zero.
    """
    if isinstance(module, nn.Conv2d):
        fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0, (2 / fan) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
