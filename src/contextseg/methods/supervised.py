"""Plain training: the baseline that every other method must beat."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.losses import deep, dice_ce
from contextseg.methods.base import Method, build_net, optimizer


class Supervised(Method):
    """Dice and cross-entropy on annotated voxels, with deep supervision (nnU-Net; Isensee et al., 2021).

    Unlike nnU-Net, a voxel labelled `IGNORE` never counts, and in a partly annotated case "background" means
    "background or one of the classes that were not looked for".
    """

    def __init__(self, plan: Plan, net: str = "unet", optimizer: str = "sgd") -> None:
        super().__init__()
        self.net = build_net(net, plan)
        self.optimizer = optimizer

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        return {"seg": deep(dice_ce, self.net(batch.image), batch.label, batch.annotated)}

    def predict(self, image: Tensor) -> Tensor:
        """The network's logits."""
        return self.net(image)
