"""The networks: plain modules that take an image (B, C, *S), of any size, to logits (B, K, *S).

A new one is a class with the first five arguments of `UNet` and with `dims`, how many axes S may
have, and one line here; the tests then run over it. In training a network gives a list of logits,
full resolution first.
"""

from __future__ import annotations

from torch import nn

from contextseg.nets.cmunet import CMUNet, FivePoolings, ResidualCMUNet
from contextseg.nets.deeplab import BatchNormDeepLab, DeepLab, SmallDeepLab
from contextseg.nets.presence import Presence
from contextseg.nets.transunet import SmallTransUNet, TransUNet
from contextseg.nets.unet import ResidualUNet, UNet

NETS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "resenc": ResidualUNet,
    "transunet": TransUNet,
    "transunet-small": SmallTransUNet,
    "deeplab": DeepLab,
    "deeplab-batchnorm": BatchNormDeepLab,
    "deeplab-small": SmallDeepLab,
    "cmunet": CMUNet,
    "cmunet-five-poolings": FivePoolings,
    "cmunet-residual": ResidualCMUNet,
}
"""Networks by the name that `--set net=` knows."""

__all__ = [
    "NETS",
    "BatchNormDeepLab",
    "CMUNet",
    "DeepLab",
    "FivePoolings",
    "Presence",
    "ResidualCMUNet",
    "ResidualUNet",
    "SmallDeepLab",
    "SmallTransUNet",
    "TransUNet",
    "UNet",
]
