"""CMU-Net: segmentation with a second question, is the organ in this slice? Its training regimes.

Moseley, Wang, Imran: Context-aware multitasking for medical image segmentation. No public code. The
regimes differ in training alone: the plain U-Net (`cmu` with `presence_weight=0`), the encoder
trained on the question first (`cmu_pretrain`), and both at once (`cmu`). So do two that the paper
names as future work: the encoder frozen after the pretraining, and pretraining, then both at once.
docs/cmu-net.md says how to run the paper's table, and what we decided.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import cos, inf, pi
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.data.sampling import SliceSampler
from contextseg.errors import ContextsegError
from contextseg.losses import POOLED, deep
from contextseg.methods.base import (
    BatchSource,
    Method,
    RecipeRun,
    build_net,
    loss_of,
    optimizer,
)
from contextseg.methods.presence import gate as choose_gate
from contextseg.methods.presence import presence_loss, with_head
from contextseg.nets import Presence


def warm_restarts(done: float, cycles: int) -> float:
    """The factor on the learning rate: half a cosine, `cycles` times over (SGDR).

    Loshchilov and Hutter, ICLR 2017, without growing cycles. It falls from 1 to nearly 0, then
    jumps to 1 again, and changes at each step, where the paper's may change once an epoch.

    Args:
        done: Fraction of the training that is done, in [0, 1).
        cycles: Number of cycles in the whole training.

    Returns:
        A factor in [0, 1].

    Example:
        >>> [round(warm_restarts(done, 2), 3) for done in (0, 0.25, 0.499, 0.5)]
        [1.0, 0.5, 0.0, 1.0]
    """
    return (1 + cos(pi * ((done * cycles) % 1))) / 2


SMOOTH = 1e-5
"""The Dice's number that is not the paper's: the default of all our losses."""


class _OfSlices(Method):
    """A method that may draw every slice once an epoch, as the paper does."""

    every_slice = False

    def sampler(
        self, cases: Sequence[Cached], plan: Plan, seed: int, augmentation: Augmentation, steps: int
    ) -> BatchSource | None:
        """With `every_slice` a `SliceSampler`.

        Args:
            cases: The training cases.
            plan: The plan.
            seed: Seed of the order and of the augmentation.
            augmentation: How slices are augmented.
            steps: Steps of the training.

        Returns:
            The source of batches; None for patches, as without this method.
        """
        return SliceSampler(cases, plan, seed, augmentation) if self.every_slice else None

    def check_sampler(self, cases: Sequence[Cached], plan: Plan) -> BatchSource | None:
        """Every slice of the validation cases, once, as it is."""
        return SliceSampler(cases, plan, 0, Augmentation(strength=0), in_order=True)


class CMU(_OfSlices):
    """Segmentation, and the presence of each class, from one encoder: CMU-Net.

    The loss is (1 - presence_weight) x the segmentation's + presence_weight x `presence_loss`.

    Args:
        plan: The plan.
        net: Network, a name of `NETS`; the paper's is cmunet.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        loss: Loss of the segmentation, a name of `LOSSES`, with deep supervision where the network
            has it. The paper's is soft_dice.
        smooth: Added to numerator and denominator of the loss's Dice; 1 is that of the paper's
            reference 4. An item without a class has a slope of smooth / (sum p + smooth)^2 in it:
            with 1e-5, our losses' default, it trains next to nothing.
        presence_weight: Share of the loss for the presence term; the paper's 0.5. With 0 there is
            no head.
        gamma: Exponent of the focal loss (`presence_loss`).
        alpha: Weight in the focal loss of a class that is there; 1 - alpha where it is not.
        cycles: Warm restarts of the learning rate; the paper has 100 epochs and a restart every 10.
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        class_weights: A weight in the segmentation's loss for each class, background first; ()
            for equal weights.
        every_slice: Whether every slice of the training cases is drawn once an epoch, whole, as in
            the paper; else patches, every second one through the ROI.
        frozen: Names of the network's parameters that are not trained.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        loss: str = "dice_ce",
        presence_weight: float = 0.5,
        gamma: float = 2.0,
        alpha: float = 0.8,
        cycles: int = 10,
        weights: str = "",
        class_weights: tuple[float, ...] = (),
        smooth: float = SMOOTH,
        every_slice: bool = False,
        frozen: Collection[str] = (),
    ) -> None:
        super().__init__()
        _check(presence_weight, gamma, alpha, cycles, smooth)
        self.net = with_head(net, plan, gamma, alpha) if presence_weight else build_net(net, plan)
        self.loss = loss_of(plan, loss, class_weights, **_smoothed(loss, smooth))
        self.every_slice = every_slice
        network = self.net.net if isinstance(self.net, Presence) else self.net
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.optimizer = optimizer
        self.cycles = cycles
        self.weight = presence_weight
        self.start_weights = {"net": weights}

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group without what is frozen: weight decay would shrink it."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return {"net": optimizer(self.optimizer, trained, lr)}

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
            "presence": self.weight
            * presence_loss(present, batch.tags, self.net.gamma, self.net.alpha),
        }

    def predict(self, image: Tensor) -> Tensor:
        """The network's logits, after the gate where there is one."""
        return self.net(image)


class Classifier(_OfSlices):
    """The encoder and the presence head, trained on the presence of each class: first stage.

    Args:
        plan: The plan.
        net: Network, a name of `NETS`.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        gamma: Exponent of the focal loss (`presence_loss`).
        alpha: Weight in the focal loss of a class that is there; 1 - alpha where it is not.
        cycles: Warm restarts of the learning rate.
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        every_slice: As of `CMU`.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    chosen_by = "loss"

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        gamma: float = 2.0,
        alpha: float = 0.5,
        cycles: int = 10,
        weights: str = "",
        every_slice: bool = False,
    ) -> None:
        super().__init__()
        _check(0, gamma, alpha, cycles)
        self.every_slice = every_slice
        self.net = with_head(net, plan, gamma, alpha)
        self.optimizer = optimizer
        self.cycles = cycles
        self.start_weights = {"net": weights}

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group without the decoder: it has no gradient, and weight decay would shrink it."""
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
        """The logits of a decoder that is not trained yet."""
        return self.net(image)


def cmu(
    run: RecipeRun,
    net: str = "unet",
    optimizer: str = "auto",
    loss: str = "dice_ce",
    presence_weight: float = 0.5,
    gamma: float = 2.0,
    alpha: float = 0.8,
    cycles: int = 10,
    gate: bool = True,
    weights: str = "",
    class_weights: tuple[float, ...] = (),
    smooth: float = SMOOTH,
    every_slice: bool = False,
) -> Method:
    """CMU-Net: segmentation and presence of each class trained together, then a gate if it helps.

    Moseley, Wang, Imran: Context-aware multitasking for medical image segmentation. The defaults
    are ours: the gate (the paper drops the head after the training), the loss with cross-entropy,
    and patches of which half go through the ROI. `contextseg reproduce cmunet` has the paper's.

    Args:
        run: The run.
        net: Network, a name of `NETS`; the paper's is cmunet, 2-D.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`); the paper names none.
        loss: Loss of the segmentation, a name of `LOSSES`; the paper's is soft_dice (see `CMU`).
        presence_weight: Share of the loss for the presence term, the segmentation has the rest. 0
            is the paper's plain U-Net.
        gamma: Exponent of the focal loss (`presence_loss`); 2 is Lin et al.'s, the paper has none.
        alpha: Weight in the focal loss of a class that is there.
        cycles: Warm restarts of the learning rate over the training.
        gate: Whether to choose thresholds on the validation cases below which a class is shut out
            of a patch or slice (see `methods.presence.gate`); a class has none where that does not
            help, and without validation cases there is no gate.
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        class_weights: A weight in the segmentation's loss for each class, background first; ()
            for equal weights.
        smooth: Added to numerator and denominator of the loss's Dice (see `CMU`); the paper's 1.
        every_slice: Whether every slice is drawn once an epoch, whole (see `CMU`), as in the paper.

    Returns:
        The trained method, with its gate.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """
    method = run.train(
        CMU(
            run.plan,
            net,
            optimizer,
            loss,
            presence_weight,
            gamma,
            alpha,
            cycles,
            weights,
            class_weights,
            smooth,
            every_slice,
        )
    )
    return choose_gate(run, method) if gate else method


def cmu_pretrain(
    run: RecipeRun,
    net: str = "unet",
    optimizer: str = "auto",
    loss: str = "dice_ce",
    gamma: float = 2.0,
    alpha: float = 0.5,
    cycles: int = 10,
    weights: str = "",
    class_weights: tuple[float, ...] = (),
    smooth: float = SMOOTH,
    every_slice: bool = False,
    freeze: bool = False,
    presence_weight: float = 0.0,
    joint_alpha: float = 0.8,
) -> Method:
    """The encoder trained on the presence of each class, then the whole network on segmentation.

    CMU-Net's pretraining regime (Moseley, Wang, Imran). Each of the two stages lasts `steps`; the
    head is dropped after the first. The paper's future work is `freeze`, and `presence_weight=0.5`.

    Args:
        run: The run.
        net: Network, a name of `NETS`; the paper's is cmunet, 2-D.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`); the paper names none.
        loss: Loss of the segmentation, a name of `LOSSES`; the paper's is soft_dice.
        gamma: Exponent of the focal loss (`presence_loss`); 2 is Lin et al.'s, the paper has none.
        alpha: Weight in the focal loss of the first stage of a class that is there.
        cycles: Warm restarts of the learning rate over each training.
        weights: File of weights that the first stage starts from; "" for new weights. See
            `nets.weights`.
        class_weights: A weight in the segmentation's loss for each class, background first; ()
            for equal weights.
        smooth: Added to numerator and denominator of the loss's Dice (see `CMU`); the paper's 1.
        every_slice: Whether every slice is drawn once an epoch, whole (see `CMU`), as in the paper.
        freeze: Whether the encoder stays as it was pretrained; the paper trains all of the network.
        presence_weight: Share of the presence term in the second stage's loss, which then keeps the
            head; the paper's 0 drops it.
        joint_alpha: `alpha` in that term.

    Returns:
        The trained method of the second stage.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """
    first = Classifier(run.plan, net, optimizer, gamma, alpha, cycles, weights, every_slice)
    run.train(first)
    pretrained = first.net
    frozen: tuple[str, ...] = ()
    if freeze:
        encoder = {id(parameter) for parameter in pretrained.encoder()}
        named = pretrained.net.named_parameters()
        frozen = tuple(name for name, p in named if id(p) in encoder)
    second = CMU(
        run.plan,
        net,
        optimizer,
        loss,
        presence_weight,
        gamma,
        joint_alpha,
        cycles,
        class_weights=class_weights,
        smooth=smooth,
        every_slice=every_slice,
        frozen=frozen,
    )
    given = pretrained if isinstance(second.net, Presence) else pretrained.net
    second.net.load_state_dict(given.state_dict())
    return run.train(second)


def _smoothed(loss: str, smooth: float) -> dict[str, Any]:
    """The argument of a loss with a Dice that `smooth` is.

    Raises `ContextsegError` where the loss has none, and somebody set it.
    """
    if loss in POOLED:
        return {"eps": smooth}
    if smooth != SMOOTH:
        what = f"loss={loss} has no Dice"
        raise ContextsegError(f"smooth={smooth}", what, f"leave it out, or {' or '.join(POOLED)}")
    return {}


def _check(
    presence_weight: float, gamma: float, alpha: float, cycles: int, smooth: float = SMOOTH
) -> None:
    """Raise `ContextsegError` for the first of them that is out of its range."""
    allowed = {
        f"presence_weight={presence_weight}": (
            0 <= presence_weight < 1,
            "give a share of the loss, below 1",
        ),
        f"gamma={gamma}": (gamma >= 0, "give 0 or more"),
        f"alpha={alpha}": (0 < alpha < 1, "give a weight between 0 and 1"),
        f"cycles={cycles}": (cycles >= 1, "give 1 or more"),
        f"smooth={smooth}": (0 < smooth < inf, "give a number above 0; the paper's is 1"),
    }
    for name, (good, remedy) in allowed.items():
        if not good:
            raise ContextsegError(name, "out of range", remedy)
