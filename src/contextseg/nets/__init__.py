"""The networks: plain modules that take an image (B, C, *S) and give logits (B, K, *S), any size.

A new one is a class with the first five arguments of `UNet` and with `dims`, how many axes S may have, and one line
here; the tests then run over it. In training they give a list of logits, full resolution first.
"""

from __future__ import annotations

from torch import nn

from contextseg.nets.cmunet import CMUNet
from contextseg.nets.deeplab import DeepLab, SmallDeepLab
from contextseg.nets.presence import Presence
from contextseg.nets.transunet import SmallTransUNet, TransUNet
from contextseg.nets.unet import ResidualUNet, UNet

NETS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "resenc": ResidualUNet,
    "transunet": TransUNet,
    "transunet-small": SmallTransUNet,
    "deeplab": DeepLab,
    "deeplab-small": SmallDeepLab,
    "cmunet": CMUNet,
}

__all__ = [
    "NETS",
    "CMUNet",
    "DeepLab",
    "Presence",
    "ResidualUNet",
    "SmallDeepLab",
    "SmallTransUNet",
    "TransUNet",
    "UNet",
]
