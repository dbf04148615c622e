"""What several models agree on: their majority, how sure it is, and what of it a case may learn from.

Functions of arrays, for anyone's loop. Pham, Nguyen-Ho, Tran: Semi-supervised organ segmentation with mask propagation
refinement and uncertainty estimation for data generation, LNCS 13816, whose certainty is that of a case; that of a
class and of a voxel is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.methods.cps import left_open

KEEPS = ("cases", "voxels")
"""What joins the training set: certain cases as a whole, or the certain classes and voxels of each."""
NOBODY, HUMAN = 0, 1
"""Who said what a voxel is; the consensus of round r is HUMAN + r."""


@dataclass(frozen=True)
class Known:
    """What is known of a case, and who said it.

    label       (*S) int16, class or `IGNORE`.   annotated (K,) bool, which classes it tells from the background.
    provenance  (*S) uint8: NOBODY, HUMAN, HUMAN + round.
    certainty   (*S) uint8, 0 to 255: the share of the models that agree, 255 where a human said it, 0 before any voted.
    """

    label: np.ndarray
    annotated: np.ndarray
    provenance: np.ndarray
    certainty: np.ndarray

    @staticmethod
    def said(label: np.ndarray, annotated: Sequence[bool]) -> Known:
        """What people said of a case."""
        by = np.where(label == IGNORE, NOBODY, HUMAN).astype(np.uint8)
        return Known(label, np.array(annotated, bool), by, by * np.uint8(255))

    @property
    def left(self) -> np.ndarray:
        """(*S) bool: where the class is not known yet."""
        label, annotated = torch.from_numpy(np.array(self.label))[None], torch.from_numpy(self.annotated)[None]
        return left_open(label, annotated)[0].numpy()


def majority(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class that each model finds (M, *S), and the one that most of them find (*S), int16; logits (M, K, *S).

    Of classes with as many votes the one with the largest mean probability.

    >>> z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])[..., None]  # two models, two classes, one voxel
    >>> [x.tolist() for x in majority(z)]
    [[[0], [1]], [1]]
    """
    p = logits.float().softmax(1)
    found = p.argmax(1)
    score = p.mean(0)  # never as much as a vote
    for votes in found:
        score.scatter_add_(0, votes[None], torch.ones_like(score[:1]))
    return found.short(), score.argmax(0).short()


def agreement(found: np.ndarray, consensus: np.ndarray, classes: int) -> np.ndarray:
    """For each class but the background the mean Dice of the models against the consensus: (K - 1,) float64.

    found (M, N) and consensus (N,), integers. A model without a class that the consensus lacks too has 1, where another
    model sees it; a class that nobody sees has NaN, for a class that all models miss looks the same. Identical models
    have 1.

    >>> agreement(np.array([[0, 1, 1], [0, 0, 1]]), np.array([0, 1, 1]), 3).round(3).tolist()
    [0.833, nan]
    """
    if not len(found):
        return np.full(classes - 1, np.nan)
    pairs = [np.bincount(row.astype(np.int64) * classes + consensus, minlength=classes**2) for row in found]
    counts = np.stack(pairs).reshape(-1, classes, classes)  # of each model: voxels by its class and the consensus's
    sizes = (counts.sum(1) + counts.sum(2))[:, 1:]
    both = counts.diagonal(axis1=1, axis2=2)[:, 1:]
    dice = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)
    return np.where(sizes.any(0), dice.mean(0), np.nan)


def over_classes(dice: np.ndarray) -> float:
    """The mean over the classes that somebody sees: the certainty of a case; NaN where there are none.

    >>> over_classes(np.array([0.5, np.nan, 1.0])), over_classes(np.array([np.nan]))
    (0.75, nan)
    """
    seen = dice[~np.isnan(dice)]
    return float(seen.mean()) if len(seen) else float("nan")


def learnt(
    known: Known, found: np.ndarray, consensus: np.ndarray, dice: np.ndarray, threshold: float, keep: str, number: int
) -> Known:
    """What is known of a case after the vote of round `number`: `known`, and what of the consensus is certain.

    found (M, *S), consensus (*S), integers that contradict nothing known; dice (K - 1,), `agreement` where something
    was left. A threshold is reached by what equals it.

    keep "cases": all that was left, if the mean over the classes reaches the threshold. "voxels": the voxels on which
    that share of the models agree and whose class is certain (or the background), if any class is. What else was left
    there is `IGNORE`.

    The classes that were learnt count as annotated from then on: all that were seen, or the certain ones. A class that
    nobody saw stays unknown, so that its absence is not taught.
    """
    left, models = known.left, len(found)
    agree = (found == consensus).sum(0)
    certainty = np.where(left, np.rint(agree * (255 / models)).astype(np.uint8), known.certainty)
    if keep == "cases":
        sure = ~np.isnan(dice) & (over_classes(dice) >= threshold)
        take = left & sure.any()
    else:
        sure = dice >= threshold  # not so for NaN
        take = left & sure.any() & np.array([True, *sure])[consensus] & (agree >= threshold * models - 1e-6)
    if not take.any():
        return replace(known, certainty=certainty)
    label = np.where(take, consensus, np.where(left, IGNORE, known.label)).astype(np.int16)
    provenance = np.where(take, HUMAN + number, np.where(left, NOBODY, known.provenance)).astype(np.uint8)
    return Known(label, known.annotated | np.array([True, *sure]), provenance, certainty)
