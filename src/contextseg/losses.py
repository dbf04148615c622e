"""Losses of logits (B, K, *S) that ignore what is not annotated and allow soft targets.

Every loss is computed on each item alone, then averaged over the B items. An item with nothing
annotated adds 0 and still counts in B. So the loss of a batch is the mean of its items' losses
however unevenly they are annotated, and the gradients of several ranks, weighted by their share of
the items, add up to one process's with nothing communicated. An empty batch gives 0.

With `pooled` an item's Dice of a class is that of all items together, of all ranks: nnU-Net's
`batch_dice`. Most small patches hold no organ, and the Dice of such a patch alone weighs as much as
that of a patch with one.

The arguments that all of them share:

- `logits`: (B, K, *S).
- `target`: (B, *S) int64, class 0..K-1 or `IGNORE`; or soft, (B, K, *S) float, where each column
  sums to 1, or is all zero where nothing is annotated.
- `annotated`: (B, K) bool, or None for all True: False where class k is not annotated in this case.
  There the background and the unknown classes are one class, in the logits and in the target: "one
  of these".

All is computed in float32 (float64 stays), under autocast too, and can be differentiated twice, by
soft targets too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.ranks import sum_over_ranks

Loss = Callable[..., Tensor]
"""(logits, target, annotated) to a scalar."""

NEVER = -1e4
"""The logit of a class that is ruled out: exp of it is 0, 0 times it is 0, and float16 holds it."""


def one_hot(label: Tensor, classes: int) -> Tensor:
    """One-hot columns of a label.

    Args:
        label: (B, *S) integers, class or `IGNORE`.
        classes: K.

    Returns:
        (B, K, *S) float32: 1 at each voxel's class; a column of zeros where it is `IGNORE`.

    Example:
        >>> one_hot(torch.tensor([[0, 1, -1]]), 2).tolist()
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    """
    order = torch.arange(classes, device=label.device).view(-1, *[1] * (label.ndim - 1))
    return (label.unsqueeze(1) == order).float()


def merge_unknown(logits: Tensor, annotated: Tensor | None) -> Tensor:
    """The background and the unknown classes as one class.

    Channel 0 becomes the logsumexp over background and unknown classes, so that its probability is
    the sum of theirs and no other probability changes: the marginal loss of Shi et al. (Medical
    Image Analysis 2021). The losses below do this themselves.

    Args:
        logits: (B, K, *S).
        annotated: (B, K) bool, which classes are annotated; None for all.

    Returns:
        (B, K, *S) float32, with `NEVER` in the unknown classes' channels. With nothing unknown,
        `logits` itself.
    """
    if annotated is None or bool(annotated[:, 1:].all()):
        return logits
    known = annotated[:, 1:].view(len(annotated), -1, *[1] * (logits.ndim - 2))
    z = _full(logits)
    others = z[:, 1:].masked_fill(known, -torch.inf)
    merged = torch.cat([z[:, :1], others], 1).logsumexp(1, keepdim=True)
    return torch.cat([merged, z[:, 1:].masked_fill(~known, NEVER)], 1)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy: in each item, the mean over its annotated voxels.

    For one item with hard labels it is `torch.nn.functional.cross_entropy`.

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64, or soft, (B, K, *S).
        annotated: (B, K) bool; None for all.
        weight: (K,), weighs the classes, and the mean with them; None for equal weights.
        smoothing: Share of each target that is spread evenly over the known classes.

    Returns:
        A scalar, the mean over items.

    Example:
        Four equal classes have log 4.

        >>> round(cross_entropy(torch.zeros(1, 4, 3), torch.tensor([[0, 2, -1]])).item(), 6)
        1.386294
    """
    return _mean(_entropy(_items(logits, target, annotated), weight, smoothing))


def soft_dice(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    eps: float = 1e-5,
    pooled: bool = False,
) -> Tensor:
    """1 - (2 sum(p y) + eps) / (sum p + sum y + eps): in each item, the mean over its classes.

    Milletari et al., 3DV 2016, without the squares. The mean is over the annotated classes but
    class 0, and the sums run over the item's annotated voxels. A class in neither p nor y has loss
    0; one that is predicted where y has none has a loss near 1. An item where no class but the
    background is annotated adds 0.

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64, or soft, (B, K, *S).
        annotated: (B, K) bool; None for all.
        weight: (K,), weighs the classes in their mean; that of class 0 is not used. None for equal
            weights.
        eps: Added to numerator and denominator.
        pooled: Whether the sums of a class run over all items that annotate it, of all ranks.

    Returns:
        A scalar, the mean over items.

    Example:
        >>> z = torch.tensor([[[-9.0, 9.0], [9.0, -9.0]]])
        >>> round(soft_dice(z, torch.tensor([[1, 0]])).item(), 3)
        0.0
    """
    return _mean(_dice(_items(logits, target, annotated), weight, eps, pooled))


def dice_ce(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    smoothing: float = 0.0,
    eps: float = 1e-5,
    pooled: bool = False,
) -> Tensor:
    """`cross_entropy` + `soft_dice` at equal weight, nnU-Net's loss, from one log-softmax.

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64, or soft, (B, K, *S).
        annotated: (B, K) bool; None for all.
        weight: Of the cross-entropy: (K,), weighs the classes; None for equal weights.
        smoothing: Of the cross-entropy: share of each target that is spread over the known classes.
        eps: Of the Dice: added to numerator and denominator.
        pooled: Of the Dice: whether the sums run over all items, of all ranks.

    Returns:
        A scalar, the mean over items.
    """
    items = _items(logits, target, annotated)
    return _mean(_entropy(items, weight, smoothing) + _dice(items, None, eps, pooled))


def focal(
    logits: Tensor,
    target: Tensor,
    annotated: Tensor | None = None,
    weight: Sequence[float] | Tensor | None = None,
    gamma: float = 2.0,
) -> Tensor:
    """-alpha_k (1 - p_k)^gamma log p_k of each voxel's class k: in each item, the mean over voxels.

    Lin et al. (ICCV 2017) take a sigmoid for each class and divide by the number of positives; this
    is the softmax form, divided by all annotated voxels. With gamma 0 and no alpha it is the
    cross-entropy.

    Args:
        logits: (B, K, *S).
        target: (B, *S) int64, or soft, (B, K, *S).
        annotated: (B, K) bool; None for all.
        weight: alpha, (K,), weighs the classes; None for equal weights.
        gamma: Exponent, 0 or more.

    Returns:
        A scalar, the mean over items.
    """
    items = _items(logits, target, annotated)
    # 1 - p, kept from 0, where gamma below 1 has an infinite slope
    missed = (-torch.expm1(items.at)).clamp(min=1e-7)
    value = -(missed**gamma) * items.at
    if weight is not None:
        value = value * items.classwise(weight)
    return _mean((items.chosen(value) * items.labelled).sum(1) / items.labelled.sum(1).clamp(min=1))


LOSSES: dict[str, Loss] = {
    "dice_ce": dice_ce,
    "cross_entropy": cross_entropy,
    "soft_dice": soft_dice,
    "focal": focal,
}
"""Losses by name; each takes (logits, target, annotated), and `weight`, one number a class."""
POOLED = ("dice_ce", "soft_dice")
"""Those that can be `pooled`."""
SMOOTHED = ("dice_ce", "cross_entropy")
"""Those that take a label `smoothing`."""


# --- deep supervision -----------------------------------------------------------------------------


def deep_weights(n: int) -> list[float]:
    """1, 1/2, 1/4, ... for `n` outputs, full resolution first, divided by their sum; nnU-Net's.

    Args:
        n: Number of outputs.

    Returns:
        `n` weights.

    Example:
        >>> [round(7 * w, 9) for w in deep_weights(3)]
        [4.0, 2.0, 1.0]
    """
    return [2.0 ** (n - 1 - i) / (2**n - 1) for i in range(n)]


def deep(
    loss: Loss,
    outputs: Tensor | Sequence[Tensor],
    target: Tensor,
    annotated: Tensor | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum of a loss over a network's outputs, the target shrunk to the size of each.

    Args:
        loss: (logits, target, annotated) to a scalar.
        outputs: Logits, full resolution first; one tensor, or a list of one, is plain `loss`.
        target: (B, *S) int64, or soft, (B, K, *S).
        annotated: (B, K) bool; None for all.
        weights: One for each output; None for `deep_weights`.

    Returns:
        A scalar.
    """
    if isinstance(outputs, Tensor):
        outputs = [outputs]
    if annotated is not None and bool(annotated.all()):
        annotated = None  # asked once, not at each level: on a GPU the answer has to be waited for
    weights = deep_weights(len(outputs)) if weights is None else weights
    levels = zip(weights, outputs, strict=True)
    terms = [w * loss(z, shrunk(target, z.shape[2:]), annotated) for w, z in levels]
    return torch.stack(terms).sum()


def shrunk(target: Tensor, size: Sequence[int]) -> Tensor:
    """The target at a lower resolution: hard labels by the nearest voxel, soft ones by averaging.

    A soft average is over the annotated voxels alone; where there are none, the column stays zero.

    Args:
        target: (B, *S) int64, or soft, (B, K, *S).
        size: The lower resolution, one number for each axis of S.

    Returns:
        The target of that size; `target` itself where it has it.
    """
    if tuple(target.shape[-len(size) :]) == tuple(size):
        return target
    if not target.is_floating_point():
        for axis, new in enumerate(size, target.ndim - len(size)):
            centres = 2 * torch.arange(new, device=target.device) + 1
            nearest = centres * target.shape[axis] // (2 * new)
            target = target.index_select(axis, nearest)
        return target
    labelled = (target != 0).any(1, keepdim=True).to(target.dtype)
    shares = F.interpolate(labelled, tuple(size), mode="area")
    return F.interpolate(target, tuple(size), mode="area") / shares.clamp(min=1e-6)


# --- what they are made of ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Items:
    """A batch, flattened over space, its unknown classes merged.

    No one-hot volume is made for hard labels: the loss of a voxel needs only log p at its label,
    which is gathered.
    """

    logp: Tensor  # (B, K, N)
    y: Tensor  # (B, N) int, or soft (B, K, N)
    known: Tensor  # (B, K) bool
    labelled: Tensor  # (B, N) 1 where annotated, else 0
    at: Tensor  # log p at the label: (B, N), or, of soft targets, all of it: (B, K, N)

    @property
    def soft(self) -> bool:
        return self.y.ndim == 3

    def chosen(self, values: Tensor) -> Tensor:
        """(B, N): values shaped as `at`, weighed by the target."""
        return (values * self.y).sum(1) if self.soft else values

    def classwise(self, weight: Sequence[float] | Tensor) -> Tensor:
        """One number for each class, to multiply `at` with."""
        row = torch.as_tensor(weight, dtype=self.logp.dtype, device=self.logp.device)
        return row.view(1, -1, 1) if self.soft else row[self.y.clamp(min=0)]


def _items(logits: Tensor, target: Tensor, annotated: Tensor | None) -> _Items:
    soft = target.ndim == logits.ndim
    if target.shape != (logits.shape if soft else logits.shape[:1] + logits.shape[2:]):
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} are not of one batch"
        )
    logp = _full(merge_unknown(logits, annotated)).flatten(2).log_softmax(1)
    known = torch.ones(logp.shape[:2], dtype=torch.bool, device=logp.device)
    if annotated is not None:
        known[:, 1:] = annotated[:, 1:]
    if soft:
        y = target.flatten(2).to(logp.dtype)
        labelled = (y != 0).any(1)
        if annotated is not None:
            background = y[:, :1] + (y * ~known[..., None]).sum(1, keepdim=True)
            y = torch.cat([background, y[:, 1:] * known[:, 1:, None]], 1)
        return _Items(logp, y, known, labelled.to(logp.dtype), logp)
    y = target.flatten(1)
    if annotated is not None:
        y = y.masked_fill(~known.gather(1, y.clamp(min=0)), 0)
    at = logp.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)
    return _Items(logp, y, known, (y != IGNORE).to(logp.dtype), at)


def _entropy(items: _Items, weight: Sequence[float] | Tensor | None, smoothing: float) -> Tensor:
    """(B,): the cross-entropy of each item."""
    loss = -items.chosen(items.at)
    mass = items.labelled
    spread = items.known.to(loss.dtype) / items.known.sum(1, keepdim=True)
    if weight is not None:
        row = items.classwise(weight)
        loss = items.chosen(-items.at * row)
        mass = items.chosen(row.expand_as(items.at)) * items.labelled
        spread = spread * torch.as_tensor(weight, dtype=spread.dtype, device=spread.device)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * (items.logp * spread[..., None]).sum(1)
    return (loss * items.labelled).sum(1) / mass.sum(1).clamp(min=1e-12)


def _dice(
    items: _Items, weight: Sequence[float] | Tensor | None, eps: float, pooled: bool
) -> Tensor:
    """(B,): the Dice loss of each item."""
    p = items.logp[:, 1:].exp()
    if items.soft:
        y = items.y[:, 1:]
        both = (p * y).sum(2)
        true = y.sum(2)
    else:  # one class at a time: twice as fast as a one-hot volume, and the same on every run
        right = items.at.exp()
        masks = [items.y == k for k in range(1, items.logp.shape[1])]
        both = torch.stack([(right * mask).sum(1) for mask in masks], 1)
        true = torch.stack([mask.sum(1) for mask in masks], 1)
    predicted = (p * items.labelled[:, None]).sum(2)
    known = items.known[:, 1:]
    if pooled:
        sums = torch.stack([both, predicted, true.to(both.dtype)])
        both, predicted, true = sum_over_ranks((sums * known).sum(1, keepdim=True))
        known = known & (items.labelled.sum(1, keepdim=True) > 0)
    loss = 1 - (2 * both + eps) / (predicted + true + eps)
    if weight is None:
        return (loss * known).sum(1) / known.sum(1).clamp(min=1)
    shares = known * torch.as_tensor(weight, dtype=loss.dtype, device=loss.device)[1:]
    return (loss * shares).sum(1) / shares.sum(1).clamp(min=1e-12)


def _mean(losses: Tensor) -> Tensor:
    """(B,) to the mean over items, 0 of none."""
    return losses.sum() / max(len(losses), 1)


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
