"""Propagation taught as a method: a network that fills a scan from a few of its own labelled slices.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816); what it does once taught is in `contextseg.fill`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.disk import Problem, did_you_mean
from contextseg.methods.base import Method, optimizer
from contextseg.nets.stcn import stcn, stcn_small, stcn_stock
from contextseg.propagation.clips import ClipSampler, follow
from contextseg.propagation.losses import lovasz_softmax, ohem_cross_entropy, ohem_share

PRESETS: dict[str, Callable[[int], nn.Module]] = {"stcn": stcn, "stcn-stock": stcn_stock, "stcn-small": stcn_small}
"""Sizes of the network: the paper's, Cheng et al.'s own, and one for small images and CPUs."""


class Propagation(Method):
    """STCN (Cheng, Tai, Tang, NeurIPS 2021) taught on clips of slices in which any class is the object to follow.

    size        "stcn" (54 million parameters), "stcn-stock", or "stcn-small".
    objects, references, frames   of a clip, see `propagation.clips.ClipSampler`.   axes: slices are across these.
    optimizer   the paper's AdamW; its rate is 1e-4 (`--set lr=0.0001`), halved at 80 % and 90 % of the training.

    Loss: cross-entropy of the hardest voxels (OHEM) and Lovasz, on annotated voxels.
    """

    guided = True

    def __init__(
        self,
        plan: Plan,
        size: str = "stcn-small",
        optimizer: str = "adamw",
        objects: int = 2,
        references: int = 2,
        frames: int = 3,
        axes: tuple[int, ...] = (0,),
    ) -> None:
        super().__init__()
        if size not in PRESETS:
            raise Problem(f"size={size}", "there is no such network", did_you_mean(size, PRESETS))
        if plan.intensities < len(plan.channels):
            raise Problem("slice_position", "stcn follows a mask from slice to slice, wherever", "leave it out")
        self.net: Any = PRESETS[size](len(plan.channels))
        self.optimizer, self.references, self.done = optimizer, references, 0.0
        self.clips = {"objects": objects, "references": references, "frames": frames, "axes": tuple(axes)}

    def sampler(
        self, cases: Sequence[Cached], plan: Plan, seed: int, augmentation: Augmentation, steps: int
    ) -> ClipSampler:
        """Clips, of the last two numbers of the plan's patch."""
        more: dict[str, Any] = self.clips
        return ClipSampler(cases, plan, steps, seed, augmentation=augmentation, **more)

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def decay(self, done: float) -> float:
        """1, a half from 80 % and a quarter from 90 % of the training; notes how far it is, for the share of OHEM."""
        self.done = done
        return 0.5 ** ((done >= 0.8) + (done >= 0.9))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Of a clip (B, C, T, H, W): "ohem" and "lovasz"."""
        logits, label = follow(self.net, batch, self.references)
        return {
            "ohem": ohem_cross_entropy(logits, label, keep=ohem_share(self.done)),
            "lovasz": lovasz_softmax(logits, label),
        }

    def predict(self, image: Tensor) -> Tensor:
        """Not offered: raises `Problem`. `contextseg.fill` fills a scan."""
        what = "it fills a scan from labelled slices, and cannot predict one without"
        raise Problem("method stcn", what, "use `contextseg propagate IMAGE --labels PARTIAL --model RUN`")
