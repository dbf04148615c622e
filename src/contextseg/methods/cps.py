"""Cross pseudo supervision (CPS): two networks learn from labels and from each other's output.

Chen, Yuan, Zeng, Wang: Semi-supervised semantic segmentation with cross pseudo supervision, CVPR
2021; two different networks and the Dice loss between them: Pham, Nguyen-Ho, Tran, LNCS 13816. What
we decided: docs/semi-supervised.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import IGNORE, Batch
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.losses import NEVER, SMOOTHED, deep
from contextseg.methods.base import Method, build_net, loss_of, optimizer

UNSUPERVISED = {"dice": "soft_dice", "ce": "cross_entropy"}
"""Losses between the networks by name: Pham et al.'s Dice, and Chen et al.'s cross-entropy."""

BOXES, AREA = 3, (0.25, 0.5)
"""Number of boxes that CutMix exchanges.

`AREA` is the range of their joint size, before they overlap, as a share of the patch.
"""


# --- schedules ------------------------------------------------------------------------------------


def ramp(done: float) -> float:
    """The weight of what is not labelled, over the training: exp(-5 (1 - done)^2).

    Laine and Aila (ICLR 2017) ramp up over the first epochs; here it is over the whole training,
    whose length a run knows.

    Args:
        done: Fraction of the training that is done, in [0, 1].

    Returns:
        A weight in (0, 1].

    Example:
        >>> [round(ramp(done), 6) for done in (0, 0.25, 0.5, 0.75, 1)]
        [0.006738, 0.060055, 0.286505, 0.731616, 1.0]
    """
    return exp(-5 * (1 - done) ** 2)


def halved(done: float) -> float:
    """The factor on the learning rate: 1, a half from 80 % of the training, a quarter from 90 %.

    Args:
        done: Fraction of the training that is done, in [0, 1).

    Returns:
        1, 0.5 or 0.25.

    Example:
        >>> [halved(step / 50_000) for step in (0, 39_999, 40_000, 44_999, 45_000)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return 0.5 ** ((done >= 0.8) + (done >= 0.9))


# --- what is left to learn ------------------------------------------------------------------------


def left_open(label: Tensor, annotated: Tensor) -> Tensor:
    """Where a label does not name the class: `IGNORE`, or "background or a class not annotated".

    Args:
        label: (B, *S) int64, class or `IGNORE`.
        annotated: (B, K) bool, which classes are annotated.

    Returns:
        (B, *S) bool.

    Example:
        >>> label = torch.tensor([[-1, 0, 1], [-1, 0, 1]])
        >>> left_open(label, torch.tensor([[True, True, True], [True, True, False]])).tolist()
        [[True, False, False], [True, True, False]]
    """
    partly = ~annotated.all(1).view(-1, *[1] * (label.ndim - 1))
    return (label == IGNORE) | (partly & (label == 0))


def admissible(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """The logits with `NEVER` for the classes that the label rules out.

    A voxel labelled 0 in a partly annotated case is the background or a class that is not
    annotated. The softmax of the result is the probability of these, given that it is one of them.
    Where the label is `IGNORE`, all classes stay.

    Args:
        logits: (B, K, *S).
        label: (B, *S) int64, class or `IGNORE`.
        annotated: (B, K) bool, which classes are annotated.

    Returns:
        (B, K, *S). With everything annotated, `logits` itself.
    """
    if bool(annotated.all()):
        return logits
    known = annotated & ~annotated.all(1, keepdim=True)
    known[:, 0] = False
    space = [1] * (label.ndim - 1)
    return logits.masked_fill(known.view(*known.shape, *space) & (label == 0).unsqueeze(1), NEVER)


def answer(logits: Tensor, label: Tensor, annotated: Tensor, certain: float = 0.0) -> Tensor:
    """The pseudo label that a network gives the other: its likeliest class where the label is open.

    Args:
        logits: (B, K, *S), `admissible` ones.
        label: (B, *S) int64, class or `IGNORE`.
        annotated: (B, K) bool, which classes are annotated.
        certain: Probability below which a voxel has no pseudo label (as FixMatch: Sohn et al.,
            NeurIPS 2020); 0 for none.

    Returns:
        (B, *S) int64; `IGNORE` where the label names the class, and below `certain`.

    Example:
        Three classes, four voxels, and class 2 is not annotated.

        >>> z = torch.tensor([[[0.0, 1, 1, 1], [3, 3, 3, 3], [2, 2, 0, 2]]])
        >>> label, annotated = torch.tensor([[-1, 0, 0, 1]]), torch.tensor([[True, True, False]])
        >>> answer(admissible(z, label, annotated), label, annotated).tolist()
        [[1, 2, 0, -1]]
    """
    kept = left_open(label, annotated)
    if certain > 0:
        kept &= logits.float().softmax(1).amax(1) >= certain
    return torch.where(kept, logits.argmax(1), IGNORE)


# --- CutMix ---------------------------------------------------------------------------------------


def boxes(
    items: int, size: Sequence[int], number: int = BOXES, area: tuple[float, float] = AREA
) -> Tensor:
    """Random boxes in each item, without what an even number of them share (the masks of CutMix).

    Each box has a `number`-th of a share of the volume that is drawn from `area`, any shape, and
    lies anywhere inside. The masks are those of French et al. (BMVC 2020), which Chen et al. mix
    by, in any number of dimensions. They are drawn from torch's global generator.

    Args:
        items: Number of items B.
        size: Size of the space S, in voxels.
        number: Boxes in each item.
        area: Range of the boxes' joint size, before they overlap, as a share of the volume.

    Returns:
        (B, *S) bool, on the CPU. No items give an empty tensor.
    """
    out = torch.zeros(items, *size, dtype=torch.bool)
    for item in out:
        for _ in range(number):
            share = float(torch.empty(()).uniform_(*area))
            # The logarithm of the share is cut at random among the axes.
            cuts = [0.0, *torch.rand(len(size) - 1).sort().values.tolist(), 1.0]
            parts = [share ** (b - a) * number ** (-1 / len(size)) for a, b in pairwise(cuts)]
            sides = [max(1, round(n * part)) for n, part in zip(size, parts)]
            starts = [int(torch.randint(n - side + 1, ())) for n, side in zip(size, sides)]
            item[tuple(slice(start, start + side) for start, side in zip(starts, sides))] ^= True
    return out


# --- the method -----------------------------------------------------------------------------------


class CPS(Method):
    """Two networks, each trained on the labels and on the other's output where there is none (CPS).

    Chen et al., CVPR 2021, with the Dice loss between the networks as Pham et al. (LNCS 13816),
    whose two networks are `net=transunet` and `second=deeplab` at a rate of 0.0001; by default ours
    are two of the same kind at 0.001. Unlike in the papers, what is not labelled may also be a
    slice or a class of a labelled case, and the weight between the networks grows with the
    fraction of the training (`ramp`). The mean of both networks' probabilities is deployed.

    Args:
        plan: The plan.
        net: The first network, a name of `NETS`.
        second: The second network; "" for the first one again, with other weights.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`; in a training that is no short one
            it is AdamW at 0.001), for each network on its own.
        unlabelled_items: Items of each batch that come from cases without a label; -1 for half of
            the batch. Use 0 where there are no such cases; what is `IGNORE` inside labelled cases,
            and classes that are not annotated, are then what the networks give each other.
        weight: Weight of the term between the networks at the end of the training; `ramp` leads
            there.
        smoothing: Label smoothing of the cross-entropy on labels, where `loss` has one.
        unsupervised: Loss between the networks: "dice" or "ce".
        certain: Probability below which an output is not trained on; 0, as in both papers, for all.
        cutmix: Whether unlabelled patches are mixed in pairs: each network labels the patches, and
            is trained on the mixtures (`boxes`).
        weights: File of weights that the first network starts from; "" for new weights. See
            `nets.weights`.
        second_weights: The same for the second network.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first; () for equal weights.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    long_optimizer = "adamw"

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        second: str = "",
        optimizer: str = "auto",
        unlabelled_items: int = -1,
        weight: float = 1.0,
        smoothing: float = 0.1,
        unsupervised: str = "dice",
        certain: float = 0.0,
        cutmix: bool = False,
        weights: str = "",
        second_weights: str = "",
        loss: str = "dice_ce",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if unsupervised not in UNSUPERVISED:
            what = "there is no such loss between the networks"
            raise ContextsegError(
                f"unsupervised={unsupervised}", what, did_you_mean(unsupervised, UNSUPERVISED)
            )
        if weight < 0 or not 0 <= smoothing < 1 or not 0 <= certain < 1 or unlabelled_items < -1:
            what = f"{weight=}, {smoothing=}, {certain=}, {unlabelled_items=}"
            remedy = (
                "give a weight from 0, a smoothing and a certainty from 0 to below 1, "
                "and items from 0, or -1"
            )
            raise ContextsegError("method cps", what, remedy)
        first = build_net(net, plan)
        other = build_net(second, plan, setting="second") if second else build_net(net, plan)
        self.nets = nn.ModuleList([first, other])
        self.unlabelled = plan.batch_size // 2 if unlabelled_items < 0 else unlabelled_items
        self.start_weights = {"nets.0": weights, "nets.1": second_weights}
        self.optimizer = optimizer
        self.weight = weight
        self.certain = certain
        self.cutmix = cutmix
        smoothed: dict[str, Any] = {"smoothing": smoothing} if loss in SMOOTHED else {}
        self.supervised = loss_of(plan, loss, class_weights, **smoothed)
        self.unsupervised = loss_of(plan, UNSUPERVISED[unsupervised])
        self.done = 0.0

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group for each network."""
        return {
            name: optimizer(self.optimizer, net.parameters(), lr)
            for name, net in zip(("first", "second"), self.nets)
        }

    def decay(self, done: float) -> float:
        """The factor of `halved`; notes `done` for the `ramp`.

        The loop asks before each step, so that a resumed training knows it too.
        """
        self.done = done
        return halved(done)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Two terms, "seg" and "cps", each the sum over the two networks.

        So each network is trained as if it were alone.
        """
        mixed = self._mixed(batch) if self.cutmix and self.training else None
        image = batch.image if mixed is None else mixed.image
        outputs = [net(image) for net in self.nets]
        seg = [deep(self.supervised, z, batch.label, batch.annotated) for z in outputs]

        logits = [self._open(z, batch) for z in outputs]
        targets = [answer(z.detach(), batch.label, batch.annotated, self.certain) for z in logits]
        if mixed is not None:
            targets = [
                torch.where(mixed.items, of_mixture, own)
                for of_mixture, own in zip(mixed.answers, targets)
            ]
        cross = [self.unsupervised(z, other) for z, other in zip(logits, reversed(targets))]
        return {
            "seg": torch.stack(seg).sum(),
            "cps": self.weight * ramp(self.done) * torch.stack(cross).sum(),
        }

    def predict(self, image: Tensor) -> Tensor:
        """The logarithm of the mean of both networks' probabilities."""
        one, two = (net(image).float().log_softmax(1) for net in self.nets)
        return torch.logaddexp(one, two) - log(2)

    def _open(self, outputs: Tensor | list[Tensor], batch: Batch) -> Tensor:
        """The `admissible` logits at full resolution."""
        return admissible(
            outputs if isinstance(outputs, Tensor) else outputs[0], batch.label, batch.annotated
        )

    def _mixed(self, batch: Batch) -> _Mixed | None:
        """The unlabelled items mixed, each with the next; None for fewer than two on this rank."""
        unlabelled = (batch.label == IGNORE).flatten(1).all(1)
        part = batch.only(unlabelled)
        if len(part) < 2:
            return None
        with torch.no_grad():
            logits = [self._open(net(part.image), part) for net in self.nets]
            pseudo = [answer(z, part.label, part.annotated, self.certain) for z in logits]
        inside = boxes(len(part), part.label.shape[1:]).to(part.image.device)

        image = batch.image.clone()
        image[unlabelled] = torch.where(inside.unsqueeze(1), part.image.roll(1, 0), part.image)
        answers = [batch.label.clone() for _ in pseudo]
        for whole, own in zip(answers, pseudo):
            whole[unlabelled] = torch.where(inside, own.roll(1, 0), own)
        return _Mixed(image, answers, unlabelled.view(-1, *[1] * (batch.label.ndim - 1)))


@dataclass(frozen=True)
class _Mixed:
    """A batch after CutMix.

    Attributes:
        image: (B, C, *S).
        answers: The pseudo label of each network, (B, *S) int64.
        items: (B, 1, ...) bool, which items are mixed.
    """

    image: Tensor
    answers: list[Tensor]
    items: Tensor
