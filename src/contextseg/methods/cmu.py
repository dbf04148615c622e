"""CMU-Net: segmentation with a question beside it, is the organ in this slice? Its three training regimes.

Moseley, Wang, Imran: Context-aware multitasking for medical image segmentation. No public code. The regimes differ in
training alone: the plain U-Net (`cmu` with `presence_weight=0`), the encoder trained on the question first
(`cmu_pretrain`), and both at once (`cmu`). docs/cmu-net.md says how to run the paper's table, and what we decided.
"""

from __future__ import annotations

from math import cos, pi
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.disk import Problem
from contextseg.losses import deep
from contextseg.methods.base import Method, build_net, loss_of, optimizer
from contextseg.methods.presence import gate as gate_of
from contextseg.methods.presence import presence_loss, with_head
from contextseg.nets import Presence


def warm_restarts(done: float, cycles: int) -> float:
    """The factor on the learning rate after the fraction `done` of the training: half a cosine, `cycles` times over.

    From 1 to nearly 0, then at once to 1 again (SGDR without growing cycles; Loshchilov and Hutter, ICLR 2017). A step
    at a time, where the paper's may fall once an epoch.

    >>> [round(warm_restarts(done, 2), 3) for done in (0, 0.25, 0.499, 0.5)]
    [1.0, 0.5, 0.0, 1.0]
    """
    return (1 + cos(pi * ((done * cycles) % 1))) / 2


class CMU(Method):
    """Segmentation, and the presence of each class, from one encoder: CMU-Net.

    The loss is (1 - presence_weight) x the segmentation's + presence_weight x `presence_loss`.

    net              any of the registry; the paper's is cmunet.
    loss             of the segmentation, with deep supervision where the network has it. The paper's is soft_dice; but
                     of an item in which a class is not, that teaches next to nothing (see docs/cmu-net.md).
    presence_weight  the paper's 0.5; with 0 there is no head.   gamma, alpha: of `presence_loss`.
    cycles           warm restarts of the learning rate; the paper has 100 epochs and a restart every 10.

    Raises `Problem` for an unknown loss, and for numbers that make no sense.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "sgd",
        loss: str = "dice_ce",
        presence_weight: float = 0.5,
        gamma: float = 2.0,
        alpha: float = 0.8,
        cycles: int = 10,
    ) -> None:
        super().__init__()
        _check(presence_weight, gamma, alpha, cycles)
        self.net = with_head(net, plan, gamma, alpha) if presence_weight else build_net(net, plan)
        self.optimizer, self.loss, self.cycles = optimizer, loss_of(plan, loss), cycles
        self.weight = presence_weight

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def decay(self, done: float) -> float:
        """Cosine annealing with warm restarts."""
        return warm_restarts(done, self.cycles)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Two terms, "seg" and "presence"; without a head the first alone."""
        if not isinstance(self.net, Presence):
            return {"seg": deep(self.loss, self.net(batch.image), batch.label, batch.annotated)}
        outputs, present = self.net.both(batch.image)
        return {
            "seg": (1 - self.weight) * deep(self.loss, outputs, batch.label, batch.annotated),
            "presence": self.weight * presence_loss(present, batch.tags, self.net.gamma, self.net.alpha),
        }

    def predict(self, image: Tensor) -> Tensor:
        """The network's logits, behind the gate where there is one."""
        return self.net(image)


class Classifier(Method):
    """The encoder and the presence head alone, trained on the presence of each class: the first stage of pretraining.

    Arguments as `CMU`'s.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "sgd",
        gamma: float = 2.0,
        alpha: float = 0.5,
        cycles: int = 10,
    ) -> None:
        super().__init__()
        _check(0, gamma, alpha, cycles)
        self.net = with_head(net, plan, gamma, alpha)
        self.optimizer, self.cycles = optimizer, cycles

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group, without the decoder, which no gradient reaches and weight decay would wear away."""
        parameters = [*self.net.encoder(), *self.net.linear.parameters()]
        return {"encoder": optimizer(self.optimizer, parameters, lr)}

    def decay(self, done: float) -> float:
        """Cosine annealing with warm restarts."""
        return warm_restarts(done, self.cycles)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "presence"."""
        present = self.net.both(batch.image)[1]
        return {"presence": presence_loss(present, batch.tags, self.net.gamma, self.net.alpha)}

    def predict(self, image: Tensor) -> Tensor:
        """The logits of a decoder that has learnt nothing yet."""
        return self.net(image)


def cmu(
    run: Any,
    net: str = "unet",
    optimizer: str = "sgd",
    loss: str = "dice_ce",
    presence_weight: float = 0.5,
    gamma: float = 2.0,
    alpha: float = 0.8,
    cycles: int = 10,
    gate: bool = True,
) -> Method:
    """CMU-Net: segmentation and the presence of each class trained together, then a gate where it helps.

    net              any network; the paper's is cmunet, 2-D.   optimizer: sgd or adamw.
    loss             of the segmentation; the paper's is soft_dice (see `CMU`).
    presence_weight  the presence term's share of the loss, the segmentation has the rest. 0: the paper's plain U-Net.
    gamma, alpha     of the focal loss: the weight is alpha where a class is there, 1 - alpha where it is not.
    cycles           warm restarts of the learning rate over the training.
    gate             choose thresholds on the validation cases below which a class is shut out of a patch or slice (see
                     `methods.presence.gate`); none where that does not help, and none without validation cases.
    """
    made = run.train(CMU(run.plan, net, optimizer, loss, presence_weight, gamma, alpha, cycles))
    return gate_of(run, made) if gate else made


def cmu_pretrain(
    run: Any,
    net: str = "unet",
    optimizer: str = "sgd",
    loss: str = "dice_ce",
    gamma: float = 2.0,
    alpha: float = 0.5,
    cycles: int = 10,
) -> Method:
    """The encoder trained on the presence of each class, then the whole network on segmentation; the head is dropped.

    Arguments as those of `cmu`. Each of the two stages lasts `steps`.
    """
    first: Any = run.train(Classifier(run.plan, net, optimizer, gamma, alpha, cycles))
    second = CMU(run.plan, net, optimizer, loss, 0.0, cycles=cycles)
    second.net.load_state_dict(first.net.net.state_dict())
    return run.train(second)


def _check(presence_weight: float, gamma: float, alpha: float, cycles: int) -> None:
    """Raise `Problem` for the first of them that makes no sense."""
    allowed = {
        f"presence_weight={presence_weight}": (0 <= presence_weight < 1, "give a share of the loss, below 1"),
        f"gamma={gamma}": (gamma >= 0, "give 0 or more"),
        f"alpha={alpha}": (0 < alpha < 1, "give a weight between 0 and 1"),
        f"cycles={cycles}": (cycles >= 1, "give 1 or more"),
    }
    for name, (good, remedy) in allowed.items():
        if not good:
            raise Problem(name, "out of range", remedy)
