"""The U-Net of CMU-Net (Moseley, Wang, Imran), 2-D, in its two readings, and a residual one.

Context-aware multitasking for medical image segmentation. Five blocks of 16 to 256 channels, each
two times (convolution 3x3, instance norm, LeakyReLU 0.2), max pooling down; up by interpolation,
joined with the skip, two more blocks; a 1x1 head. The paper gives no number of parameters, and its
"5 blocks of two (conv, LeakyReLU, norm), and max pooling" can be read in two ways:

- `CMUNet`: pooling between the blocks, four times; 1,963,826 parameters. The presence head reads
  the fifth block.
- `FivePoolings`: pooling at the end of each block, five times, and five blocks up, of which the
  first has 256 channels too; 3,734,322 parameters. The presence head reads what the fifth pooling
  gives.
- `ResidualCMUNet`: `CMUNet` with a residual encoder, which the paper names as future work;
  2,008,354 parameters.

The numbers are ours, of one channel and two classes, without the presence head
(tests/test_cmu.py counts them by hand). What the paper leaves open, or we change:

- The interpolation is bilinear, and holds the image's edges, not the outermost centres
  (`align_corners=False`). What is interpolated meets the skip as it is.
- The order is convolution, norm, activation. The paper names the activation before the norm; but
  the mean over space of a map that was just normalised is the norm's shift, whatever the image, and
  its classification head would see nothing.
- Norms have a scale and a shift, and no convolution before one has a bias, which the norm would
  take away again.
- Images have any size: the far ends are padded by repeating the edge, and the logits are cropped.
- Levels, widths and strides are the plan's; `--set dims=2 --set patch_vox=256,256 --set
  base_width=16 --set max_levels=5` makes them the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.nets.unet import Axes, padded, two_dimensional

SLOPE = 0.2
"""Slope of the LeakyReLU below 0."""


class CMUNet(nn.Module):
    """The U-Net of CMU-Net, 2-D: max pooling between its blocks, bilinear interpolation.

    Moseley, Wang, Imran: Context-aware multitasking for medical image segmentation; 1.96 million
    parameters at the paper's size, by our count: the paper gives none. The order of norm and
    activation is ours. The classification head is `nets.Presence`, which any network can carry. In
    training it gives a list of one tensor of logits (B, K, H, W), in evaluation the tensor.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Channels at each level, highest resolution first.
        strides: For each level, the window of the pooling before it; 1 on each axis for the first
            level.
        kernels: For each level, the size of its convolutions, odd.

    Raises:
        ContextsegError: The strides have three axes.

    Example:
        >>> net = CMUNet(1, 2, widths=[4, 8], strides=[[1, 1], [2, 2]], kernels=[[3, 3]] * 2)
        >>> net.eval()(torch.zeros(2, 1, 13, 9)).shape
        torch.Size([2, 2, 13, 9])
    """

    dims = (2,)
    name = "cmunet"
    """Its name in `NETS`, for messages."""
    five_poolings = False
    """Whether the last block ends with a pooling, too."""
    residual = False
    """Whether the blocks of the encoder are residual."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int],
        strides: Sequence[Axes],
        kernels: Sequence[Axes],
    ) -> None:
        two_dimensional(self.name, strides)
        super().__init__()
        self.reach = [prod(axes) for axes in zip(*strides)]
        levels = zip([inputs, *widths], widths, kernels, strides, strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(_pool(stride), *self._block(a, b, k)) for a, b, k, stride in levels
        )
        up = [(a + b, a, k) for a, b, k in zip(widths, widths[1:], kernels)]
        if self.five_poolings:
            self.reach = [2 * n for n in self.reach]
            self.stages.append(nn.MaxPool2d(2))
            up.append((2 * widths[-1], widths[-1], kernels[-1]))
        self.merges = nn.ModuleList(nn.Sequential(*_two(*level)) for level in up[::-1])
        self.head = nn.Conv2d(widths[0], classes, 1)
        self.apply(_he)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W) to logits (B, K, H, W); in training a list of one."""
        h, w = x.shape[2:]
        x = padded(x, self.reach)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for merge in self.merges:
            skip = skips.pop()
            x = merge(torch.cat([F.interpolate(x, skip.shape[2:], mode="bilinear"), skip], 1))
        z = self.head(x)[:, :, :h, :w]
        return [z] if self.training else z

    def _block(self, inputs: int, outputs: int, kernel: Axes) -> list[nn.Module]:
        """A block of the encoder."""
        if self.residual:
            return [_Residual(inputs, outputs, kernel)]
        return _two(inputs, outputs, kernel)


class FivePoolings(CMUNet):
    """`CMUNet` read the other way: each of its five blocks ends with a pooling; five blocks up.

    3.73 million parameters at the paper's size, by our count. The presence head reads what the last
    pooling gives.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Channels of each block, highest resolution first.
        strides: For each block, the window of the pooling before it; 1 on each axis for the first.
            After the last one the window is 2 x 2.
        kernels: For each block, the size of its convolutions, odd.

    Raises:
        ContextsegError: The strides have three axes.
    """

    name = "cmunet-five-poolings"
    five_poolings = True


class ResidualCMUNet(CMUNet):
    """`CMUNet` with residual blocks in the encoder, the paper's future work as we read it.

    Each block of the encoder is ResNet's basic block (He et al., CVPR 2016): two convolutions with
    norms, and a 1x1 convolution and norm where the width changes, added before the activation. 2.01
    million parameters at the paper's size.

    Args:
        inputs: Channels C of the image.
        classes: K, background included.
        widths: Channels at each level, highest resolution first.
        strides: For each level, the window of the pooling before it; 1 on each axis for the first
            level.
        kernels: For each level, the size of its convolutions, odd.

    Raises:
        ContextsegError: The strides have three axes.
    """

    name = "cmunet-residual"
    residual = True


class _Residual(nn.Module):
    """ResNet's basic block; the pooling lies before it."""

    def __init__(self, inputs: int, outputs: int, kernel: Axes) -> None:
        super().__init__()
        self.body = nn.Sequential(*_two(inputs, outputs, kernel)[:-1])
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            norm = nn.InstanceNorm2d(outputs, affine=True)
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), norm)
        self.act = nn.LeakyReLU(SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))


def _pool(stride: Axes) -> nn.Module:
    return nn.MaxPool2d(tuple(stride)) if prod(stride) > 1 else nn.Identity()


def _two(inputs: int, outputs: int, kernel: Axes) -> list[nn.Module]:
    """Two blocks, of which the first changes the width."""
    layers: list[nn.Module] = []
    h, w = kernel
    for before in (inputs, outputs):
        conv = nn.Conv2d(before, outputs, (h, w), padding=(h // 2, w // 2), bias=False)
        layers += [conv, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(SLOPE)]
    return layers


def _he(module: nn.Module) -> None:
    """He's normal initialisation for that slope; the head's bias is zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
