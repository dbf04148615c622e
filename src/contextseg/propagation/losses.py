"""The losses that propagation is trained with, as `contextseg.losses` are: means over items, deaf to `IGNORE`.

Arguments and guarantees are those of `contextseg.losses`, with hard targets only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.losses import merge_unknown


def ohem_cross_entropy(logits: Tensor, target: Tensor, annotated: Tensor | None = None, keep: float = 0.15) -> Tensor:
    """Cross-entropy of the hardest voxels: in each item, the mean over that share of its annotated voxels.

    Online hard example mining (Wu, Shen, van den Hengel, arXiv 1605.06885, who bootstrap a fixed number of pixels of
    each image; the share is Cheng et al.'s, NeurIPS 2021). `keep` 1 is the cross-entropy; at least one voxel counts.
    Raises ValueError for a share outside (0, 1].

    >>> z = torch.tensor([[[0.0, 9.0], [0.0, 0.0]]])  # an undecided voxel, and one nearly sure
    >>> round(ohem_cross_entropy(z, torch.tensor([[0, 0]]), keep=0.5).item(), 6)  # log 2
    0.693147
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is a share of the voxels, more than 0 and at most 1; got {keep}")
    logits, target = _merged(logits, target, annotated)
    voxel = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none").flatten(1)
    said = (target != IGNORE).flatten(1)
    hard = voxel.masked_fill(~said, -1).sort(1, descending=True).values
    number = (said.sum(1, keepdim=True) * keep).ceil()
    taken = torch.arange(hard.shape[1], device=hard.device) < number
    return _mean((hard * taken).sum(1) / number.squeeze(1).clamp(min=1))


def ohem_share(done: float, start: float = 2 / 15, stop: float = 7 / 15, keep: float = 0.15) -> float:
    """The share for `ohem_cross_entropy` after the fraction `done` of the training: 1, then falling evenly to `keep`.

    It falls from `start` to `stop`; the defaults are STCN's 20,000 and 70,000 of 150,000 steps.

    >>> [round(ohem_share(done), 3) for done in (0, 0.1, 0.3, 0.5, 1)]
    [1.0, 1.0, 0.575, 0.15, 0.15]
    """
    fallen = min(max((done - start) / (stop - start), 0), 1)
    return 1 - (1 - keep) * fallen


def lovasz_softmax(logits: Tensor, target: Tensor, annotated: Tensor | None = None) -> Tensor:
    """1 - the Jaccard index, made convex: in each item, the mean over the classes it holds, background included.

    For each class, the Lovasz extension of the Jaccard loss at the errors |y - p| of the item's annotated voxels
    (Berman, Triki, Blaschko, CVPR 2018, in its per-image form over present classes). Where p is 0 or 1 it is exactly
    1 - |A and B| / |A or B|. With two classes it serves binary masks.

    >>> z = torch.tensor([[[9.0, -9.0, -9.0], [-9.0, 9.0, 9.0]]])  # says 0, 1, 1; the second is wrong: 1/2 and 1/2
    >>> round(lovasz_softmax(20 * z, torch.tensor([[0, 0, 1]])).item(), 6)
    0.5
    """
    logits, target = _merged(logits, target, annotated)
    p, y = logits.softmax(1).flatten(2), target.flatten(1)
    said = y != IGNORE
    losses, present = [], []
    for k in range(p.shape[1]):
        mine = y == k
        error = torch.where(mine, 1 - p[:, k], p[:, k]).masked_fill(~said, 0)
        ordered, order = error.masked_fill(~said, -1).sort(1, descending=True)
        slopes = _slopes(mine.gather(1, order), said.gather(1, order)).to(p.dtype)
        losses.append((ordered.clamp(min=0) * slopes).sum(1))
        present.append(mine.any(1))
    there = torch.stack(present, 1).to(p.dtype)
    return _mean((torch.stack(losses, 1) * there).sum(1) / there.sum(1).clamp(min=1))


def _slopes(mine: Tensor, said: Tensor) -> Tensor:
    """(B, N), most wrong first: by how much the Jaccard loss grows as each voxel becomes wrong after those before it.

    Summed in float64: the differences of neighbouring values near 1 would be lost in float32.
    """
    mine, said = mine.double(), said.double()
    missed, added = mine.cumsum(1), (said - mine).cumsum(1)
    jaccard = (missed + added) / (mine.sum(1, keepdim=True) + added).clamp(min=1)
    return torch.diff(jaccard, dim=1, prepend=torch.zeros_like(jaccard[:, :1]))


def _merged(logits: Tensor, target: Tensor, annotated: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with the unknown classes merged into the background; logits in float32 or float64."""
    if target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} are not of one batch")
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
