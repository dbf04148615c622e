"""A 3-D U-Net that completes a structure from its labelled slices; any structure, any contrast.

What it reads is made by `contextseg.propagation.network.features`. It adds to the log-odds of
interpolated shapes, with which it starts; so a network that has learned nothing interpolates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64, 96, 128)


class CompletionNet(nn.Module):
    """Log-odds of one structure in every slice of a stack, from its labelled slices.

    Pixels are halved in plane at each stage, slices from the second on. The first stage has few
    channels and thin kernels: it draws outlines, and what is inside is decided below.

    Args:
        inputs: Channels of the features.
        widths: Channels of the stages, finest first.

    Example:
        >>> net = CompletionNet(2, (4, 4, 8))
        >>> net(torch.zeros(1, 2, 5, 8, 8), torch.zeros(1, 5, 8, 8)).shape
        torch.Size([1, 5, 8, 8])
    """

    def __init__(self, inputs: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.inputs, self.widths = inputs, tuple(widths)
        first = widths[0]
        self.stem = nn.Sequential(_Block(inputs, first, (1, 3, 3)), _Block(first, first, (3, 1, 1)))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for stage, (above, width) in enumerate(pairwise(widths)):
            stride = (1, 2, 2) if stage == 0 else (2, 2, 2)
            self.down.append(
                nn.Sequential(_Block(above, width, (3, 3, 3), stride), _Block(width, width))
            )
        for stage, (above, width) in reversed(list(enumerate(pairwise(widths)))):
            if stage == 0:
                last = [_Block(above + width, above, (1, 3, 3)), _Block(above, above, (3, 1, 1))]
            else:
                last = [_Block(above + width, above), _Block(above, above)]
            self.up.append(nn.Sequential(*last))
        self.head = nn.Conv3d(first, 1, 1)
        self.prior_weight = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, prior: Tensor) -> Tensor:
        """Log-odds of the structure.

        Args:
            features: (B, C, D, H, W); any size.
            prior: Log-odds of the interpolated shapes, (B, D, H, W).

        Returns:
            (B, D, H, W) float32.
        """
        size = features.shape[2:]
        fold = 2 ** len(self.down)
        folds = (fold // 2, fold, fold)
        pad = [-n % f for n, f in zip(size, folds)]
        x = features
        if any(pad):
            x = F.pad(x, (0, pad[2], 0, pad[1], 0, pad[0]), "replicate")
        kept = [self.stem(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        x = kept.pop()
        for up in self.up:
            skip = kept.pop()
            x = F.interpolate(x, skip.shape[2:], mode="nearest")
            x = up(torch.cat([x, skip], 1))
        z = self.head(x)[:, 0, : size[0], : size[1], : size[2]]
        return z.float() + self.prior_weight * prior


class _Block(nn.Module):
    """A convolution, instance norm and LeakyReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.is_cuda:  # the same as below, and keeps the channels last
            variance, mean = torch.var_mean(x.float(), (2, 3, 4), correction=0, keepdim=True)
            scale = self.scale[:, None, None, None] * (variance + 1e-5).rsqrt()
            shift = self.shift[:, None, None, None] - mean * scale
            x = torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))
        else:
            x = F.group_norm(x, x.shape[1], self.scale, self.shift)
        return F.leaky_relu(x, 0.01)
