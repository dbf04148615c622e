"""The networks: plain modules that take an image (B, C, *S) and give logits (B, K, *S), any size, 2-D and 3-D.

A new one is a class with the first five arguments of `UNet`, and one line here; the tests then run over it.
"""

from __future__ import annotations

from torch import nn

from contextseg.nets.unet import ResidualUNet, UNet

NETS: dict[str, type[nn.Module]] = {"unet": UNet, "resenc": ResidualUNet}

__all__ = ["NETS", "ResidualUNet", "UNet"]
