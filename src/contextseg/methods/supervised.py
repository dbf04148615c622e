"""Plain training: the baseline that every other method must beat."""

from __future__ import annotations

from torch import Tensor

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.losses import deep
from contextseg.methods.base import Method, build_net, loss_of
from contextseg.methods.presence import presence_loss, with_head
from contextseg.nets import Presence


class Supervised(Method):
    """Dice and cross-entropy on annotated voxels, with deep supervision (nnU-Net).

    Isensee et al., Nature Methods 2021. Unlike in nnU-Net, a voxel labelled `IGNORE` never counts,
    and in a partly annotated case "background" means "background or a class that is not annotated".

    Args:
        plan: The plan.
        net: Network, a name of `NETS`.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        presence_weight: Weight of a second term, which trains a head on which classes are in a
            patch at all (`presence_loss`); 0 for no head.
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first; () for equal weights.

    Raises:
        ContextsegError: A name is unknown, the network cannot have this plan, or the weights do
            not go with its classes.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        presence_weight: float = 0.0,
        weights: str = "",
        loss: str = "dice_ce",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self.net = with_head(net, plan) if presence_weight else build_net(net, plan)
        self.loss = loss_of(plan, loss, class_weights)
        self.optimizer = optimizer
        self.presence_weight = presence_weight
        self.start_weights = {"net": weights}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"; with `presence_weight` also "presence"."""
        if not isinstance(self.net, Presence):
            return {"seg": deep(self.loss, self.net(batch.image), batch.label, batch.annotated)}
        outputs, present = self.net.both(batch.image)
        return {
            "seg": deep(self.loss, outputs, batch.label, batch.annotated),
            "presence": self.presence_weight * presence_loss(present, batch.tags),
        }

    def predict(self, image: Tensor) -> Tensor:
        """The network's logits."""
        return self.net(image)
