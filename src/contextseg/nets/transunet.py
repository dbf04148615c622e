"""TransUNet (Chen et al., 2021), 2-D: a ResNet, a vision transformer on its last map, a decoder.

arXiv 2102.04306. The large one is R50-ViT-B/16: the hybrid of Dosovitskiy et al. (ICLR 2021), whose
ResNet has three stages, weight standardisation (Qiao et al., 2019) and group norm. Where we differ
from the authors' code:

- Keys have no bias. It adds the same number to all scores of a query, which the softmax takes away
  again: it would never move.
- The norm of a projected skip has 32 groups, as in the network whose pretrained weights are loaded;
  the authors' port gives each channel its own.
- The decoder has group norm, 8 channels a group, so that items do not see each other and two ranks
  equal one process; `norm="batch"` is the authors'. The number of parameters is the same.
- Max pooling keeps the last row and column, which the authors' skips fill with zeros.
- Position embeddings start random, as in the vision transformer; the authors' start at zero.
- Bilinear interpolation holds the image's edges, not the outermost centres (`align_corners=False`).
- Images have any size: the far ends are padded by repeating the edge, the logits are cropped, and
  the position embeddings are interpolated to the map's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from contextseg.nets.efficientnet import norm2d
from contextseg.nets.unet import Axes, padded, two_dimensional


class _Hybrid(nn.Module):
    """What both sizes share.

    Args:
        inputs: Channels C of the image, without the slice's position.
        classes: K, background included.
        width: Channels of the first convolution; the stages give 4, 8 and 16 times as many.
        units: Residual units of each of the three stages.
        hidden: Numbers of a token.
        mlp: Inner width of the transformer's perceptrons.
        heads: Heads of the attention.
        layers: Layers of the transformer.
        bridge: Channels between the transformer and the decoder.
        decoder: Channels of the decoder's four levels.
        size: Side, in voxels, of the images that the position embeddings are made for.
        position: Whether the head also sees where the slice lies in its volume.
        norm: Norm of the decoder, "group" or "batch".
        dropout: Dropout of tokens and within the transformer's perceptrons, in training.
    """

    dims = (2,)

    def __init__(
        self,
        inputs: int,
        classes: int,
        width: int,
        units: Sequence[int],
        hidden: int,
        mlp: int,
        heads: int,
        layers: int,
        bridge: int,
        decoder: Sequence[int],
        size: int,
        position: bool,
        norm: str,
        dropout: float,
    ) -> None:
        super().__init__()
        self.position = position
        self.root = nn.Sequential(_StdConv(inputs, width, 7, 2), _norm(width), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        widths = [width, 4 * width, 8 * width, 16 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[_Unit(a if n == 0 else b, b, 2 if n == 0 and i > 0 else 1) for n in range(number)]
            )
            for i, (number, a, b) in enumerate(zip(units, widths, widths[1:]))
        )
        self.embed = nn.Conv2d(widths[-1], hidden, 1)
        self.places = nn.Parameter(torch.empty(1, hidden, -(-size // 16), -(-size // 16)))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(hidden, mlp, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, 1e-6)
        self.bridge = _block(hidden, bridge, norm)
        skips = [*widths[2::-1], 0]
        self.ups = nn.ModuleList(
            nn.Sequential(_block(a + skip, b, norm), _block(b, b, norm))
            for a, skip, b in zip([bridge, *decoder], skips, decoder, strict=False)
        )
        self.head = nn.Conv2d(decoder[-1] + position, classes, 3, padding=1)
        self.apply(_initial)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W) to logits (B, K, H, W); in training a list of one.

        With `position` there is one channel more, the last: where each slice lies in its volume, 0
        to 1. Its largest value counts for the whole slice, so that nothing is lost where a rotated
        patch has 0 in its corners.
        """
        h, w = x.shape[2:]
        place = x[:, -1:].amax((2, 3), keepdim=True) if self.position else None
        x = x[:, :-1] if self.position else x
        x = padded(x, [16, 16])
        skips = [self.root(x)]
        x = self.pool(skips[0])
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        x = self.bridge(self._attended(skips.pop()))
        for up in self.ups:
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = up(torch.cat([x, skips.pop()], 1) if skips else x)
        if place is not None:
            x = torch.cat([x, place.to(x).expand(-1, 1, *x.shape[2:])], 1)
        z = self.head(x)[:, :, :h, :w]
        return [z] if self.training else z

    def _attended(self, x: Tensor) -> Tensor:
        """The transformer on a map (B, C, h, w), whose every place is a token."""
        x = self.embed(x) + resized_places(self.places, x.shape[2:])
        tokens = self.dropout(x.flatten(2).transpose(1, 2))
        for layer in self.layers:
            tokens = layer(tokens)
        # Contiguous, since group norm has no forward-mode derivative for the layout that
        # convolutions would go on with.
        return self.norm(tokens).transpose(1, 2).contiguous().view_as(x)


class TransUNet(_Hybrid):
    """TransUNet with R50-ViT-B/16, 2-D; 105 million parameters.

    Chen et al., arXiv 2102.04306. Unlike the authors' it has group norm in the decoder too, and
    takes images of any size; see the module for all differences. Published weights that `--set
    weights=PATH` loads: the vision transformer's `R50+ViT-B_16.npz`, and timm's
    `vit_base_r50_s16_*`. In training it gives a list of one tensor of logits (B, K, H, W), in
    evaluation the tensor.

    Args:
        inputs: Channels C of the image, without the slice's position.
        classes: K, background included.
        widths: Of the plan; ignored.
        strides: Of the plan; only their number of axes matters.
        kernels: Of the plan; ignored.
        size: Side, in voxels, of the images that the position embeddings are made for.
        position: Whether the head also sees where the slice lies in its volume, the last channel of
            the image; the reference module of Pham et al. (FLARE22) does.
        norm: Norm of the decoder: "group", or "batch", with which items see each other.
        dropout: Dropout of tokens and within the transformer's perceptrons, in training.

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
        size: int = 512,
        position: bool = False,
        norm: str = "group",
        dropout: float = 0.1,
    ) -> None:
        two_dimensional("transunet", strides)
        resnet = (64, (3, 4, 9))
        transformer = (768, 3072, 12, 12)
        decoder = (512, (256, 128, 64, 16))
        super().__init__(
            inputs, classes, *resnet, *transformer, *decoder, size, position, norm, dropout
        )


class SmallTransUNet(_Hybrid):
    """TransUNet for small images and CPUs: one unit a stage, two layers of 64 numbers a token.

    Args:
        inputs: Channels C of the image, without the slice's position.
        classes: K, background included.
        widths: Of the plan; ignored.
        strides: Of the plan; only their number of axes matters.
        kernels: Of the plan; ignored.
        size: Side, in voxels, of the images that the position embeddings are made for.
        position: Whether the head also sees where the slice lies in its volume, the last channel of
            the image.
        norm: Norm of the decoder: "group", or "batch", with which items see each other.
        dropout: Dropout of tokens and within the transformer's perceptrons, in training.

    Raises:
        ContextsegError: The strides have three axes, or the norm is unknown.

    Example:
        >>> SmallTransUNet(1, 3).eval()(torch.zeros(2, 1, 40, 25)).shape
        torch.Size([2, 3, 40, 25])
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        widths: Sequence[int] = (),
        strides: Sequence[Axes] = (),
        kernels: Sequence[Axes] = (),
        size: int = 128,
        position: bool = False,
        norm: str = "group",
        dropout: float = 0.0,
    ) -> None:
        two_dimensional("transunet-small", strides)
        resnet = (8, (1, 1, 1))
        transformer = (64, 128, 4, 2)
        decoder = (64, (48, 32, 16, 16))
        super().__init__(
            inputs, classes, *resnet, *transformer, *decoder, size, position, norm, dropout
        )


# --- the ResNet -----------------------------------------------------------------------------------


class _StdConv(nn.Conv2d):
    """A convolution whose filters each have mean 0 and variance 1 (weight standardisation)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) * (variance + 1e-5).rsqrt(), None)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 2), channels, 1e-6)


class _Unit(nn.Module):
    """A residual bottleneck; the skip is projected where the width or the resolution changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = _StdConv(inputs, inner, 1)
        self.norm1 = _norm(inner)
        self.conv2 = _StdConv(inner, inner, 3, stride)
        self.norm2 = _norm(inner)
        self.conv3 = _StdConv(inner, outputs, 1)
        self.norm3 = _norm(outputs)
        changes = stride > 1 or inputs != outputs
        self.skip = (
            nn.Sequential(_StdConv(inputs, outputs, 1, stride), _norm(outputs))
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.skip(x) + self.norm3(self.conv3(y)))


# --- the transformer ------------------------------------------------------------------------------


class _Layer(nn.Module):
    """Self-attention, then a perceptron, each on normed tokens (B, N, hidden) and added to them."""

    def __init__(self, hidden: int, mlp: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, 1e-6)
        self.norm2 = nn.LayerNorm(hidden, 1e-6)
        self.query, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(3))
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.fc1 = nn.Linear(hidden, mlp)
        self.fc2 = nn.Linear(mlp, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            part(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        x = x + self.out(_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.dropout(F.gelu(self.fc1(self.norm2(x))))
        return x + self.dropout(self.fc2(y))


def resized_places(places: Tensor, size: Sequence[int]) -> Tensor:
    """Position embeddings for a map of another size, bilinearly; as they are for their own.

    On a smaller map each still has a share (antialiasing).

    Args:
        places: (1, C, h, w).
        size: The other size, two numbers.

    Returns:
        (1, C, *size).
    """
    if tuple(places.shape[2:]) == tuple(size):
        return places
    return F.interpolate(places, list(size), mode="bilinear", antialias=True)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v, written out where forward-mode derivatives are asked for.

    torch's own has no forward-mode derivative, nor a second backward, which nothing here asks for.
    """
    if unpack_dual(q).tangent is None:
        return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


# --- the decoder ----------------------------------------------------------------------------------


def _block(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, norm2d(norm, outputs), nn.ReLU())


def _initial(module: nn.Module) -> None:
    """He's for convolutions, Xavier's for the transformer; residual branches start at zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _Unit):  # after its parts
        nn.init.zeros_(module.norm3.weight)
