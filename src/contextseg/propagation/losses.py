"""The losses that propagation is trained with: hard voxels' cross-entropy, and Lovász.

They keep the conventions of `contextseg.losses`: means over items, no influence of voxels that are
`IGNORE`, unknown classes merged into the background. Targets are hard labels only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.losses import merge_unknown


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, annotated: Tensor | None = None, keep: float = 0.15
) -> Tensor:
    """Cross-entropy of the hardest voxels: in each item, the mean over a share of its voxels.

    Online hard example mining (Wu, Shen, van den Hengel, arXiv 1605.06885, who keep a fixed number
    of pixels of each image; the share is from Cheng et al., NeurIPS 2021).

    Args:
        logits: (B, K, *S).
        target: (B, *S) integers, `IGNORE` where nobody has annotated.
        annotated: (B, K) bool, the classes that were annotated in each item. None: all.
        keep: Share of an item's annotated voxels that count, rounded up. 1 is the cross-entropy.

    Returns:
        A scalar: the mean over items. An item without an annotated voxel counts as 0.

    Raises:
        ValueError: For a share outside (0, 1], and for shapes that do not match.

    Example:
        An undecided voxel, and one nearly certain: log 2.

        >>> z = torch.tensor([[[0.0, 9.0], [0.0, 0.0]]])
        >>> round(ohem_cross_entropy(z, torch.tensor([[0, 0]]), keep=0.5).item(), 6)
        0.693147
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the voxels, more than 0 and at most 1; got {keep}")
    logits, target = _merged(logits, target, annotated)
    voxel = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").flatten(1)
    known = (target != IGNORE).flatten(1)
    hardest = voxel.masked_fill(~known, -1).sort(1, descending=True).values
    number = (known.sum(1, keepdim=True) * keep).ceil()
    taken = torch.arange(hardest.shape[1], device=hardest.device) < number
    return _mean((hardest * taken).sum(1) / number.squeeze(1).clamp(min=1))


def ohem_share(
    done: float, start: float = 2 / 15, stop: float = 7 / 15, keep: float = 0.15
) -> float:
    """The share for `ohem_cross_entropy` at a point of the training: 1, then falling to `keep`.

    Args:
        done: Fraction of the training that is done.
        start: Fraction at which the share begins to fall. The defaults of `start` and `stop` are
            steps 20,000 and 70,000 of STCN's 150,000.
        stop: Fraction at which it reaches `keep`.
        keep: The share at the end.

    Returns:
        The share, in [`keep`, 1]; linear between `start` and `stop`.

    Example:
        >>> [round(ohem_share(done), 3) for done in (0, 0.1, 0.3, 0.5, 1)]
        [1.0, 1.0, 0.575, 0.15, 0.15]
    """
    fallen = min(max((done - start) / (stop - start), 0), 1)
    return 1 - (1 - keep) * fallen


def lovasz_softmax(logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Lovász loss: 1 - the Jaccard index, made convex.

    For each class, the Lovász extension of the Jaccard loss at the errors |y - p| of the item's
    annotated voxels (Berman, Triki, Blaschko, CVPR 2018, in its per-image form over present
    classes). Where p is 0 or 1 it is exactly 1 - |A and B| / |A or B|. Binary masks are two
    classes.

    Args:
        logits: (B, K, *S).
        target: (B, *S) integers, `IGNORE` where nobody has annotated.
        annotated: (B, K) bool, the classes that were annotated in each item. None: all.

    Returns:
        A scalar: the mean over items of the mean over the classes in the item's target, background
        included. An item without an annotated voxel counts as 0.

    Raises:
        ValueError: For shapes that do not match.

    Example:
        The logits decide for 0, 1, 1. The second is wrong, so both classes have 1/2.

        >>> z = torch.tensor([[[9.0, -9.0, -9.0], [-9.0, 9.0, 9.0]]])
        >>> round(lovasz_softmax(20 * z, torch.tensor([[0, 0, 1]])).item(), 6)
        0.5
    """
    logits, target = _merged(logits, target, annotated)
    p, y = logits.softmax(1).flatten(2), target.flatten(1)
    known = y != IGNORE
    losses, present = [], []
    for k in range(p.shape[1]):
        foreground = y == k
        error = torch.where(foreground, 1 - p[:, k], p[:, k]).masked_fill(~known, 0)
        ordered, order = error.masked_fill(~known, -1).sort(1, descending=True)
        slopes = _slopes(foreground.gather(1, order), known.gather(1, order)).to(p.dtype)
        losses.append((ordered.clamp(min=0) * slopes).sum(1))
        present.append(foreground.any(1))
    counted = torch.stack(present, 1).to(p.dtype)
    return _mean((torch.stack(losses, 1) * counted).sum(1) / counted.sum(1).clamp(min=1))


def _slopes(foreground: Tensor, known: Tensor) -> Tensor:
    """By how much the Jaccard loss grows as each voxel becomes wrong after those before it.

    (B, N) each, the most wrong voxel first. Summed in float64: the differences of neighbouring
    values near 1 would be lost in float32.
    """
    foreground, known = foreground.double(), known.double()
    missed, added = foreground.cumsum(1), (known - foreground).cumsum(1)
    jaccard = (missed + added) / (foreground.sum(1, keepdim=True) + added).clamp(min=1)
    return torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))


def _merged(logits: Tensor, target: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with the unknown classes merged into the background; logits in float32 or float64."""
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} are not of one batch"
        )
    logits = merge_unknown(logits, annotated)
    if annotated is not None:
        known = annotated.clone()
        known[:, 0] = True
        flat = target.flatten(1)
        target = flat.masked_fill(~known.gather(1, flat.clamp(min=0)), 0).view_as(target)
    return logits if logits.dtype == torch.float64 else logits.float(), target


def _mean(losses: Tensor) -> Tensor:
    """(B,) -> the mean over items, 0 of none."""
    return losses.sum() / max(len(losses), 1)
