"""Cross pseudo supervision: two networks learn from the labels, and from each other where nobody has said.

Chen, Yuan, Zeng, Wang: Semi-supervised semantic segmentation with cross pseudo supervision, CVPR 2021; two different
networks and the Dice loss between them: Pham, Nguyen-Ho, Tran, LNCS 13816. What we decided: docs/semi-supervised.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import IGNORE, Batch
from contextseg.data.plan import Plan
from contextseg.disk import Problem, did_you_mean
from contextseg.losses import NEVER, deep
from contextseg.methods.base import Method, build_net, loss_of, optimizer

UNSUPERVISED = {"dice": "soft_dice", "ce": "cross_entropy"}
"""What a network may learn the other's answer with; the first is Pham et al.'s, the second Chen et al.'s."""

BOXES, AREA = 3, (0.25, 0.5)
"""How many boxes CutMix exchanges, and the range of their joint size (before they overlap), a share of the patch."""


# --- schedules --------------------------------------------------------------------------------------------------------


def ramp(done: float) -> float:
    """exp(-5 (1 - done)^2) after the fraction `done` of the training: how far what is not labelled counts.

    Laine and Aila (ICLR 2017) ramp up over the first epochs; here over the whole training, whose length a run knows.

    >>> [round(ramp(done), 6) for done in (0, 0.25, 0.5, 0.75, 1)]
    [0.006738, 0.060055, 0.286505, 0.731616, 1.0]
    """
    return exp(-5 * (1 - done) ** 2)


def halved(done: float) -> float:
    """The factor on the learning rate: 1, a half from 80 % of the training on, a quarter from 90 % on.

    >>> [halved(step / 50_000) for step in (0, 39_999, 40_000, 44_999, 45_000)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return 0.5 ** ((done >= 0.8) + (done >= 0.9))


# --- what is left to learn --------------------------------------------------------------------------------------------


def left_open(label: Tensor, annotated: Tensor) -> Tensor:
    """(B, *S) bool: where the label does not name the class: `IGNORE`, or "background or an unknown class".

    label (B, *S); annotated (B, K) bool.

    >>> label = torch.tensor([[-1, 0, 1], [-1, 0, 1]])
    >>> left_open(label, torch.tensor([[True, True, True], [True, True, False]])).tolist()
    [[True, False, False], [True, True, False]]
    """
    partly = ~annotated.all(1).view(-1, *[1] * (label.ndim - 1))
    return (label == IGNORE) | (partly & (label == 0))


def admissible(logits: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """The logits (B, K, *S) with `NEVER` for the classes that a voxel labelled 0 cannot be: those looked for.

    What they say is then which of the background and the unknown classes a voxel is, given that it is one of these:
    what the label leaves open. Where it is `IGNORE` all classes stay. With nothing unknown, `logits` itself.
    """
    if bool(annotated.all()):
        return logits
    known = annotated & ~annotated.all(1, keepdim=True)
    known[:, 0] = False
    space = [1] * (label.ndim - 1)
    return logits.masked_fill(known.view(*known.shape, *space) & (label == 0).unsqueeze(1), NEVER)


def answer(logits: Tensor, label: Tensor, annotated: Tensor, certain: float = 0.0) -> Tensor:
    """(B, *S) int64: the likeliest class of `admissible` logits where the label leaves it open, `IGNORE` elsewhere.

    It is `IGNORE` too where its probability is below `certain` (as FixMatch: Sohn et al., NeurIPS 2020).

    >>> z = torch.tensor([[[0.0, 1, 1, 1], [3, 3, 3, 3], [2, 2, 0, 2]]])  # K = 3, four voxels, class 2 is unknown
    >>> label, annotated = torch.tensor([[-1, 0, 0, 1]]), torch.tensor([[True, True, False]])
    >>> answer(admissible(z, label, annotated), label, annotated).tolist()
    [[1, 2, 0, -1]]
    """
    asked = left_open(label, annotated)
    if certain > 0:
        asked &= logits.float().softmax(1).amax(1) >= certain
    return torch.where(asked, logits.argmax(1), IGNORE)


# --- CutMix -----------------------------------------------------------------------------------------------------------


def boxes(items: int, size: Sequence[int], number: int = BOXES, area: tuple[float, float] = AREA) -> Tensor:
    """(items, *size) bool: `number` random boxes in each item, without what an even number of them share.

    Each has a `number`-th of a share of the volume that is drawn from `area`, any shape, and lies anywhere inside.
    French et al. (BMVC 2020), whose masks Chen et al. mix by, in any number of dimensions. From torch's global
    generator. No items give an empty tensor.
    """
    out = torch.zeros(items, *size, dtype=torch.bool)
    for item in out:
        for _ in range(number):
            share = float(torch.empty(()).uniform_(*area))
            cuts = [0.0, *torch.rand(len(size) - 1).sort().values.tolist(), 1.0]  # of its logarithm, among the axes
            parts = [share ** (b - a) * number ** (-1 / len(size)) for a, b in pairwise(cuts)]
            sides = [max(1, round(n * part)) for n, part in zip(size, parts)]
            starts = [int(torch.randint(n - side + 1, ())) for n, side in zip(size, sides)]
            item[tuple(slice(start, start + side) for start, side in zip(starts, sides))] ^= True
    return out


# --- the method -------------------------------------------------------------------------------------------------------


class CPS(Method):
    """Two networks that learn from the labels, and each from the other's answer where nobody has said (CPS).

    net, second      the two networks; "" is the first one again, with other weights.
    optimizer        of each, on its own.
    unlabelled_items items of each batch that come from cases without a label; -1 is half of the batch. 0 where there
                     are none: then what is `IGNORE` inside labelled cases, and classes that were not looked for.
    weight           of what they learn from each other, at the end; `ramp` leads there.
    smoothing        of the labels, in the cross-entropy.
    unsupervised     what they learn each other's answers with: "dice" or "ce".
    certain          answers less probable than this are not learnt; 0: all are, as in both papers.
    cutmix           the answers are given to unlabelled patches, and learnt on mixtures of two (`boxes`).

    Raises `Problem` for unknown names, and for numbers that make no sense.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        second: str = "",
        optimizer: str = "adamw",
        unlabelled_items: int = -1,
        weight: float = 1.0,
        smoothing: float = 0.1,
        unsupervised: str = "dice",
        certain: float = 0.0,
        cutmix: bool = False,
    ) -> None:
        super().__init__()
        if unsupervised not in UNSUPERVISED:
            what = "there is no such loss between the networks"
            raise Problem(f"unsupervised={unsupervised}", what, did_you_mean(unsupervised, UNSUPERVISED))
        if weight < 0 or not 0 <= smoothing < 1 or not 0 <= certain < 1 or unlabelled_items < -1:
            what = f"weight={weight}, smoothing={smoothing}, certain={certain}, unlabelled_items={unlabelled_items}"
            remedy = "give a weight from 0, a smoothing and a certainty from 0 to below 1, and items from 0, or -1"
            raise Problem("method cps", what, remedy)
        self.nets = nn.ModuleList([build_net(net, plan), build_net(second or net, plan)])
        self.unlabelled = plan.batch_size // 2 if unlabelled_items < 0 else unlabelled_items
        self.optimizer, self.weight, self.certain, self.cutmix = optimizer, weight, certain, cutmix
        self.supervised = loss_of(plan, smoothing=smoothing)
        self.unsupervised = loss_of(plan, UNSUPERVISED[unsupervised])
        self.done = 0.0

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group for each network."""
        names = ("first", "second")
        return {name: optimizer(self.optimizer, net.parameters(), lr) for name, net in zip(names, self.nets)}

    def decay(self, done: float) -> float:
        """A half from 80 % of the training on, a quarter from 90 % on; `done` is noted for the `ramp`.

        The loop asks before each step, so a resumed training knows it too.
        """
        self.done = done
        return halved(done)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Two terms, "seg" and "cps", each the sum over the two networks: each learns as if it were alone."""
        mixed = self._mixed(batch) if self.cutmix and self.training else None
        every = [net(batch.image if mixed is None else mixed.image) for net in self.nets]
        seg = [deep(self.supervised, outputs, batch.label, batch.annotated) for outputs in every]
        logits = [self._open(outputs, batch) for outputs in every]
        answers = [answer(z.detach(), batch.label, batch.annotated, self.certain) for z in logits]
        if mixed is not None:
            answers = [torch.where(mixed.items, given, own) for given, own in zip(mixed.answers, answers)]
        learnt = [self.unsupervised(z, other) for z, other in zip(logits, reversed(answers))]
        return {"seg": torch.stack(seg).sum(), "cps": self.weight * ramp(self.done) * torch.stack(learnt).sum()}

    def predict(self, image: Tensor) -> Tensor:
        """The logarithm of the mean of both networks' probabilities."""
        one, two = (net(image).float().log_softmax(1) for net in self.nets)
        return torch.logaddexp(one, two) - log(2)

    def _open(self, outputs: Tensor | list[Tensor], batch: Batch) -> Tensor:
        """The `admissible` logits at full resolution."""
        return admissible(outputs if isinstance(outputs, Tensor) else outputs[0], batch.label, batch.annotated)

    def _mixed(self, batch: Batch) -> _Mixed | None:
        """The unlabelled items mixed, each with the next one; None where there are not two on this rank."""
        free = (batch.label == IGNORE).flatten(1).all(1)
        part = batch.only(free)
        if len(part) < 2:
            return None
        with torch.no_grad():
            free_logits = [self._open(net(part.image), part) for net in self.nets]
            given = [answer(z, part.label, part.annotated, self.certain) for z in free_logits]
        inside = boxes(len(part), part.label.shape[1:]).to(part.image.device)
        image, answers = batch.image.clone(), [batch.label.clone() for _ in given]
        image[free] = torch.where(inside.unsqueeze(1), part.image.roll(1, 0), part.image)
        for whole, told in zip(answers, given):
            whole[free] = torch.where(inside, told.roll(1, 0), told)
        return _Mixed(image, answers, free.view(-1, *[1] * (batch.label.ndim - 1)))


@dataclass(frozen=True)
class _Mixed:
    """A batch after CutMix: image (B, C, *S), each network's answers (B, *S), which items (B, 1, ...) are mixed."""

    image: Tensor
    answers: list[Tensor]
    items: Tensor
