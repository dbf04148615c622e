"""STCN trained as a method: a network that fills a scan from a few of its own labelled slices.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816). `contextseg.propagation` fills scans with the
trained network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from contextseg.batch import Batch
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.losses import LOSSES
from contextseg.methods.base import Method, loss_of
from contextseg.methods.cps import halved
from contextseg.nets.stcn import stcn, stcn_small, stcn_stock
from contextseg.propagation.clips import ClipSampler, follow
from contextseg.propagation.losses import lovasz_softmax, ohem_cross_entropy, ohem_share

PRESETS: dict[str, Callable[[int], nn.Module]] = {
    "stcn": stcn,
    "stcn-stock": stcn_stock,
    "stcn-small": stcn_small,
}
"""Sizes of the network: the paper's, Cheng et al.'s own, and one for small images and CPUs."""

OWN_LOSS = "ohem_lovasz"
"""The name of the paper's loss, which is no loss of the registry: it changes over the training."""


class STCNMethod(Method):
    """STCN, trained on clips of slices in which an object of any class is followed.

    Cheng, Tai, Tang: Rethinking space-time networks with improved memory coverage for efficient
    video object segmentation, NeurIPS 2021; on slices of a scan: Pham et al., LNCS 13816. The loss
    is the cross-entropy of the hardest voxels (OHEM) and the Lovasz loss, on annotated voxels. The
    learning rate is the paper's, 0.0001; it is halved at 80 % and at 90 % of the training. The
    paper's network is `size=stcn`; the small one, the default, is ours.

    Args:
        plan: The plan.
        size: "stcn" (54 million parameters), "stcn-stock" or "stcn-small".
        optimizer: "sgd" or "adamw", which is the paper's.
        objects: Most objects in a clip.
        references: Slices of a clip whose labels are given, see `propagation.clips.ClipSampler`.
        frames: Slices of a clip.
        axes: Axes of the scan (0 for D, 1 for H, 2 for W) that slices are taken across.
        weights: File of weights to start from, such as another run's `model.pt`; "" for new
            weights. See `nets.weights`.
        loss: "ohem_lovasz", or a name of `LOSSES`. Its classes are the objects of a clip, so that
            there are no weights of the data set's classes.

    Raises:
        ContextsegError: A name is unknown, or the plan has a channel for the slice's position.
    """

    guided = True
    learning_rates = {"sgd": 1e-2, "adamw": 1e-4}  # noqa: RUF012  the paper's

    def __init__(
        self,
        plan: Plan,
        size: str = "stcn-small",
        optimizer: str = "adamw",
        objects: int = 2,
        references: int = 2,
        frames: int = 3,
        axes: tuple[int, ...] = (0,),
        weights: str = "",
        loss: str = OWN_LOSS,
    ) -> None:
        super().__init__()
        if size not in PRESETS:
            raise ContextsegError(
                f"size={size}", "there is no such network", did_you_mean(size, PRESETS)
            )
        if plan.intensities < len(plan.channels):
            raise ContextsegError(
                "slice_position",
                "stcn follows a mask from slice to slice, wherever these are",
                "leave it out",
            )
        if loss not in (OWN_LOSS, *LOSSES):
            raise ContextsegError(
                f"loss={loss}", "there is no such loss", did_you_mean(loss, [OWN_LOSS, *LOSSES])
            )
        self.loss = None if loss == OWN_LOSS else loss_of(plan, loss)
        self.net: Any = PRESETS[size](len(plan.channels))
        self.start_weights = {"net": weights}
        self.optimizer = optimizer
        self.references = references
        self.done = 0.0
        self.clips: dict[str, Any] = {
            "objects": objects,
            "references": references,
            "frames": frames,
            "axes": tuple(axes),
        }

    def sampler(
        self, cases: Sequence[Cached], plan: Plan, seed: int, augmentation: Augmentation, steps: int
    ) -> ClipSampler:
        """Clips, of the last two numbers of the plan's patch."""
        return ClipSampler(cases, plan, steps, seed, augmentation=augmentation, **self.clips)

    def decay(self, done: float) -> float:
        """The factor of `halved`; notes `done` for the share of OHEM."""
        self.done = done
        return halved(done)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Of clips (B, C, T, H, W): two terms, "ohem" and "lovasz"; of another loss one, "seg"."""
        logits, label = follow(self.net, batch, self.references)
        if self.loss is not None:
            return {"seg": self.loss(logits, label)}
        return {
            "ohem": ohem_cross_entropy(logits, label, keep=ohem_share(self.done)),
            "lovasz": lovasz_softmax(logits, label),
        }

    def predict(self, image: Tensor) -> Tensor:
        """Not offered; `contextseg.propagation` fills a scan.

        Raises:
            ContextsegError: Always.
        """
        what = "it fills a scan from labelled slices, and cannot predict one without"
        raise ContextsegError(
            "method stcn", what, "use `contextseg propagate IMAGE --labels PARTIAL --model RUN`"
        )
