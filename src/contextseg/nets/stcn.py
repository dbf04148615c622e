"""STCN, the space-time correspondence network, for slices of a scan.

Cheng, Tai, Tang: NeurIPS 2021.

One encoder makes a key of a slice, from the image alone; another a value, from the image and a
mask. A new slice reads the values of memorised slices where their keys resemble its own, and a
decoder makes a mask of what was read. No class is built in: an object is what the mask says.

This file is the network's three verbs; memory and the walk over slices are in
`contextseg.propagation`. Where we differ: any number of channels; any image size; group norm (see
`resnet`); a finer total stride for small images; what depends on no object is convolved once a
slice, not once an object, which changes only the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.errors import ContextsegError
from contextseg.nets.resnet import ResNet


@dataclass(frozen=True)
class Encoded:
    """What is known of B slices without a mask; `encoded[1:3]` is that of slices 1 and 2.

    Attributes:
        key: (B, Ck, h, w), which is compared with the keys in the memory.
        skips: More features (B, ...), which only the network that made them reads.
        size: (H, W) of the image, before padding.
    """

    key: Tensor
    skips: tuple[Tensor, ...]
    size: tuple[int, int]

    def __getitem__(self, part: slice) -> Encoded:
        return Encoded(self.key[part], tuple(skip[part] for skip in self.skips), self.size)


class STCN(nn.Module):
    """The propagation network of Pham et al. (LNCS 13816): STCN for several objects.

    Cheng, Tai, Tang, NeurIPS 2021; unlike theirs, the paper's has no attention in the fusion, and
    its trunks have biases. An image whose size is no multiple of the stride is padded at the far
    ends by repeating its edge.

    Args:
        inputs: Channels C of the image.
        blocks: Blocks at each of the three stages of the key encoder's trunk; by default those of
            ResNet-50.
        width: Channels of the trunks' first stage.
        bottleneck: Whether the key encoder's trunk has bottleneck blocks.
        value_blocks: Basic blocks at each of the three stages of the value encoder; by default
            those of ResNet-18.
        key_dim: Channels of a key.
        value_dim: Channels of a value.
        up_dim: Channels of the decoder above the values.
        stride: Pixels to a position of key and value: 16 as published, 8 or 4 for small images.
        attention: Whether image and mask are fused with channel and spatial attention (CBAM, Woo et
            al., ECCV 2018).
        key_bias: Whether the convolutions of the key encoder's trunk have biases.
        value_bias: Whether those of the value encoder's trunk have.
        norm: Norm of the trunks, "group" or "batch"; "batch" for weights trained elsewhere.

    Raises:
        ContextsegError: The stride or the number of stages is another one, or the norm is unknown.

    Example:
        >>> net = stcn_small(1)
        >>> image, masks = torch.zeros(2, 1, 21, 30), torch.zeros(2, 3, 21, 30)
        >>> encoded = net.encode(image)
        >>> value = net.memorise(image, encoded, masks)
        >>> encoded.key.shape, value.shape, net.decode(encoded, value).shape
        (torch.Size([2, 32, 3, 4]), torch.Size([2, 3, 64, 3, 4]), torch.Size([2, 3, 21, 30]))
    """

    def __init__(
        self,
        inputs: int = 3,
        blocks: Sequence[int] = (3, 4, 6),
        width: int = 64,
        bottleneck: bool = True,
        value_blocks: Sequence[int] = (2, 2, 2),
        key_dim: int = 64,
        value_dim: int = 512,
        up_dim: int = 256,
        stride: int = 16,
        attention: bool = False,
        key_bias: bool = True,
        value_bias: bool = True,
        norm: str = "group",
    ) -> None:
        super().__init__()
        if stride not in (4, 8, 16):
            raise ContextsegError(
                f"stride={stride}", "the network cannot have this stride", "choose 4, 8 or 16"
            )
        if len(blocks) != 3 or len(value_blocks) != 3:
            what = f"blocks for {len(blocks)} and {len(value_blocks)} stages"
            raise ContextsegError("network", what, "give three for each trunk")
        self.stride = stride
        self.trunk = ResNet(inputs, blocks, width, bottleneck, stride // 4, norm, key_bias)
        f4, f8, f16 = self.trunk.channels
        self.to_key = nn.Conv2d(f16, key_dim, 3, padding=1)
        self.to_thin = nn.Conv2d(f16, value_dim, 3, padding=1)
        self.skip8 = nn.Conv2d(f8, value_dim, 3, padding=1)
        self.skip4 = nn.Conv2d(f4, up_dim, 3, padding=1)
        self.value_trunk = ResNet(
            inputs + 2, value_blocks, width, False, stride // 4, norm, value_bias
        )
        self.fuse = _Fusion(self.value_trunk.channels[-1] + f16, value_dim, attention)
        self.compress = _Residual(2 * value_dim, value_dim)
        self.up8 = _Residual(value_dim, up_dim)
        self.up4 = _Residual(up_dim, up_dim)
        self.head = nn.Conv2d(up_dim, 1, 3, padding=1)
        nn.init.orthogonal_(self.to_key.weight)
        nn.init.zeros_(self.to_key.bias)  # type: ignore[arg-type]
        # Bilinear enlarging is up to ten times faster so.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, image: Tensor) -> Encoded:
        """Keys of slices, and what decoding and memorising them needs; dear, so do it once.

        Args:
            image: (B, C, H, W).

        Returns:
            What is known of the slices.
        """
        f4, f8, f16 = self.trunk(self._padded(image))
        skips = (self.to_thin(f16), f16, self.skip8(f8), self.skip4(f4))
        return Encoded(self.to_key(f16), skips, (image.shape[2], image.shape[3]))

    def memorise(self, image: Tensor, encoded: Encoded, masks: Tensor) -> Tensor:
        """Values of slices and the masks of O objects, each encoded with the sum of the others.

        Args:
            image: (B, C, H, W).
            encoded: What `encode` gave for the image.
            masks: (B, O, H, W), probabilities.

        Returns:
            (B, O, Cv, h, w).
        """
        b, objects = masks.shape[:2]
        others = (masks.sum(1, keepdim=True) - masks).clamp(0, 1)
        pair = torch.stack([masks, others], 2).to(image.dtype)
        stacked = torch.cat([image[:, None].expand(-1, objects, -1, -1, -1), pair], 2).flatten(0, 1)
        features = self.value_trunk(self._padded(stacked))[-1]
        return self.fuse(features, encoded.skips[1]).unflatten(0, (b, objects))

    def decode(self, encoded: Encoded, read: Tensor) -> Tensor:
        """Logits of what was read from the memory: each object against all else.

        Args:
            encoded: What `encode` gave for the slices.
            read: (B, O, Cv, h, w).

        Returns:
            (B, O, H, W) logits.
        """
        thin, _, skip8, skip4 = encoded.skips
        b, objects = read.shape[:2]
        x = self.compress(read.flatten(0, 1), thin)
        x = self.up8(_joined(x, skip8))
        x = self.up4(_joined(x, skip4))
        z = F.interpolate(self.head(F.relu(x)), scale_factor=self.stride // 4, mode="bilinear")
        h, w = encoded.size
        return z[:, 0, :h, :w].unflatten(0, (b, objects))

    def _padded(self, x: Tensor) -> Tensor:
        h, w = (-n % self.stride for n in x.shape[2:])
        return F.pad(x, (0, w, 0, h), "replicate") if h or w else x


def stcn(inputs: int = 3) -> STCN:
    """Pham et al.'s propagation network (FLARE22); 54,416,065 parameters with three inputs."""
    return STCN(inputs)


def stcn_stock(inputs: int = 3) -> STCN:
    """STCN as published, but for the norm; 54,434,180 parameters with three inputs."""
    return STCN(inputs, attention=True, key_bias=False)


def stcn_small(inputs: int = 3) -> STCN:
    """STCN for images of about a hundred pixels and for CPUs.

    It has stride 8, and ResNet-18 of a quarter of the width for keys too.
    """
    return STCN(
        inputs,
        (2, 2, 2),
        16,
        False,
        key_dim=32,
        value_dim=64,
        up_dim=32,
        stride=8,
        key_bias=False,
        value_bias=False,
    )


STCNS: dict[str, Callable[[int], STCN]] = {"stcn": stcn, "stock": stcn_stock, "small": stcn_small}
"""Sizes by name; each takes the number of channels."""


def _added(x: Tensor, shared: Tensor) -> Tensor:
    """(B * O, ...) and (B, ...), which is added for each object."""
    return (x.unflatten(0, (len(shared), -1)) + shared[:, None]).flatten(0, 1)


def _joined(x: Tensor, skip: Tensor) -> Tensor:
    """(B * O, ...) enlarged to the finer (B, ...), which is added for each object."""
    return _added(F.interpolate(x, skip.shape[2:], mode="bilinear"), skip)


def _beside(conv: nn.Module, x: Tensor, shared: Tensor) -> Tensor:
    """A convolution of x (B * O, ...) and, after its channels, of `shared` (B, ...), done once."""
    assert isinstance(conv, nn.Conv2d)
    own, other = conv.weight.split([x.shape[1], shared.shape[1]], 1)
    return _added(F.conv2d(x, own, conv.bias, padding=1), F.conv2d(shared, other, padding=1))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, each after a ReLU, beside a third where the width changes; no norm.

    `shared` (B, ...) are more channels of x (B * O, ...), after its own, which O objects of a slice
    have in common.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 3, padding=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        if shared is not None and (len(x) == len(shared) or isinstance(self.skip, nn.Identity)):
            x = torch.cat([x, shared.repeat_interleave(len(x) // len(shared), 0)], 1)
            shared = None
        if shared is None:
            return self.skip(x) + self.conv2(F.relu(self.conv1(F.relu(x))))
        inner = _beside(self.conv1, F.relu(x), F.relu(shared))
        return _beside(self.skip, x, shared) + self.conv2(F.relu(inner))


class _Fusion(nn.Module):
    """The features of an image and of a mask on it, fused to one value."""

    def __init__(self, inputs: int, outputs: int, attention: bool) -> None:
        super().__init__()
        self.first = _Residual(inputs, outputs)
        self.attention = _Attention(outputs) if attention else None
        self.second = _Residual(outputs, outputs)

    def forward(self, x: Tensor, shared: Tensor) -> Tensor:
        x = self.first(x, shared)
        return self.second(x if self.attention is None else x + self.attention(x))


class _Attention(nn.Module):
    """CBAM: each channel, then each position, weighed by its mean and its maximum."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        self.space = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        channel = (self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))).sigmoid()
        x = x * channel[..., None, None]
        space = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * self.space(space).sigmoid()
