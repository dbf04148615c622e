"""Plain training: the baseline that every other method must beat."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.losses import deep
from contextseg.methods.base import Method, build_net, loss_of, optimizer
from contextseg.methods.presence import presence_loss, with_head
from contextseg.nets import Presence


class Supervised(Method):
    """Dice and cross-entropy on annotated voxels, with deep supervision (nnU-Net; Isensee et al., 2021).

    Unlike nnU-Net, a voxel labelled `IGNORE` never counts, and in a partly annotated case "background" means
    "background or one of the classes that were not looked for".

    presence_weight  above 0: the network also learns which classes are in a patch at all (`presence_loss`), with this
                     weight beside the other term.
    """

    def __init__(self, plan: Plan, net: str = "unet", optimizer: str = "sgd", presence_weight: float = 0.0) -> None:
        super().__init__()
        self.net = with_head(net, plan) if presence_weight else build_net(net, plan)
        self.optimizer, self.loss, self.presence_weight = optimizer, loss_of(plan), presence_weight

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"; with `presence_weight` another, "presence"."""
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
