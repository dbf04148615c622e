"""DeepLabV3+ on EfficientNet-B3 (Chen et al., ECCV 2018), 2-D.

The reference module's second network (Pham et al., LNCS 13816). Its shape is that of
segmentation_models.pytorch, whose parameter count is the published one: output stride 16, 256
channels, atrous rates 12, 24, 36, separable convolutions, 48 channels of the stride-4 map, a 1x1
head. Where we differ, beside what `nets.efficientnet` says of norms and of the encoder:

- Bilinear interpolation holds the image's edges, not the outermost centres (`align_corners=False`):
  what a voxel gets does not depend on how large the image is.
- Images have any size: the far ends are padded by repeating the edge, and the logits are cropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.nets.efficientnet import B3, EfficientNet, Stage, norm2d
from contextseg.nets.unet import Axes, padded, two_dimensional


class _DeepLab(nn.Module):
    """What both sizes share."""

    dims = (2,)

    def __init__(
        self,
        inputs: int,
        classes: int,
        stem: int,
        stages: Sequence[Stage],
        output_stride: int,
        width: int,
        rates: Sequence[int],
        fine: int,
        norm: str,
        drop_path: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.reach = [output_stride] * 2
        self.encoder = EfficientNet(inputs, stem, stages, output_stride, drop_path, norm)
        self.pyramid = _Pyramid(self.encoder.widths[-1], width, rates, norm, dropout)
        self.context = _separable(width, width, norm)
        self.fine = _conv(self.encoder.widths[1], fine, norm)
        self.merge = _separable(width + fine, width, norm)
        self.head = nn.Conv2d(width, classes, 1)
        for part in (self.pyramid, self.context, self.fine, self.merge):
            part.apply(_he)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W) to logits (B, K, H, W); in training a list of one."""
        h, w = x.shape[2:]
        x = padded(x, self.reach)
        maps = self.encoder(x)
        fine = maps[1]
        coarse = _resized(self.context(self.pyramid(maps[-1])), fine.shape[2:])
        z = self.head(self.merge(torch.cat([coarse, self.fine(fine)], 1)))
        z = _resized(z, x.shape[2:])[:, :, :h, :w]
        return [z] if self.training else z


class DeepLab(_DeepLab):
    """DeepLabV3+ with an EfficientNet-B3 encoder, 2-D; 11 million parameters.

    Chen et al., ECCV 2018; Tan and Le, ICML 2019. Unlike the published network it has group norm,
    so that items do not see each other; `BatchNormDeepLab` has batch norm. In training it gives a
    list of one tensor of logits (B, K, H, W), in evaluation the tensor.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Of the plan; ignored.
        strides: Of the plan; only their number of axes matters.
        kernels: Of the plan; ignored.
        norm: "group" or "batch" (see `nets.efficientnet`).
        drop_path: Probability that an item skips a block, in training (see `EfficientNet`).
        dropout: Dropout of the pyramid's output, in training.

    Raises:
        ContextsegError: The strides have three axes, or the norm is unknown.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int] = (),
        strides: Sequence[Axes] = (),
        kernels: Sequence[Axes] = (),
        norm: str = "group",
        drop_path: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        two_dimensional("deeplab", strides)
        super().__init__(
            inputs, classes, 40, B3, 16, 256, (12, 24, 36), 48, norm, drop_path, dropout
        )


class BatchNormDeepLab(DeepLab):
    """`DeepLab` with batch norm, for published weights of its encoder or all of it.

    Weights of timm, torchvision and segmentation_models.pytorch go with batch norm; give their file
    with `--set weights=PATH`. Items of a batch then see each other, so that training on two ranks
    is not training on one.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Of the plan; ignored.
        strides: Of the plan; only their number of axes matters.
        kernels: Of the plan; ignored.
        drop_path: Probability that an item skips a block, in training (see `EfficientNet`).
        dropout: Dropout of the pyramid's output, in training.

    Raises:
        ContextsegError: The strides have three axes.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int] = (),
        strides: Sequence[Axes] = (),
        kernels: Sequence[Axes] = (),
        drop_path: float = 0.2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(inputs, classes, widths, strides, kernels, "batch", drop_path, dropout)


SMALL: tuple[Stage, ...] = ((3, 1, 1, 16, 1), (3, 2, 4, 24, 1), (5, 2, 4, 32, 2), (3, 2, 4, 48, 1))
"""The encoder of `SmallDeepLab`."""


class SmallDeepLab(_DeepLab):
    """DeepLabV3+ for small images and CPUs: output stride 8, 64 channels, atrous rates 2, 4, 6.

    It has 0.1 million parameters, and gives what `DeepLab` gives.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Of the plan; ignored.
        strides: Of the plan; only their number of axes matters.
        kernels: Of the plan; ignored.
        norm: "group" or "batch" (see `nets.efficientnet`).
        drop_path: Probability that an item skips a block, in training (see `EfficientNet`).
        dropout: Dropout of the pyramid's output, in training.

    Raises:
        ContextsegError: The strides have three axes, or the norm is unknown.

    Example:
        >>> SmallDeepLab(1, 3).eval()(torch.zeros(2, 1, 13, 9)).shape
        torch.Size([2, 3, 13, 9])
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int] = (),
        strides: Sequence[Axes] = (),
        kernels: Sequence[Axes] = (),
        norm: str = "group",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        two_dimensional("deeplab-small", strides)
        super().__init__(inputs, classes, 16, SMALL, 8, 64, (2, 4, 6), 16, norm, drop_path, dropout)


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: branches of 1x1, of each rate and of the whole map."""

    def __init__(
        self, inputs: int, width: int, rates: Sequence[int], norm: str, dropout: float
    ) -> None:
        super().__init__()
        dilated = [_separable(inputs, width, norm, rate) for rate in rates]
        self.branches = nn.ModuleList([_conv(inputs, width, norm), *dilated])
        self.pooled = _conv(inputs, width, norm)
        self.join = _conv((len(rates) + 2) * width, width, norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self.branches]
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.dropout(self.join(torch.cat([*parts, pooled], 1)))


def _conv(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False), norm2d(norm, outputs), nn.ReLU()
    )


def _separable(inputs: int, outputs: int, norm: str, rate: int = 1) -> nn.Sequential:
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False)
    return nn.Sequential(depthwise, *_conv(inputs, outputs, norm))


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear")


def _he(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
