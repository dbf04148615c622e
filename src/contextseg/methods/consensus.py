"""What several models agree on: their majority, its certainty, and what a case may be trained on.

Functions of arrays, for any loop. Pham, Nguyen-Ho, Tran: Semi-supervised organ segmentation with
mask propagation refinement and uncertainty estimation for data generation, LNCS 13816, whose
certainty is that of a case; that of a class and of a voxel is ours.
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
"""What joins the training set: certain cases as a whole, or certain classes and voxels of each."""
NOBODY, HUMAN = 0, 1
"""Where a voxel's label comes from; the consensus of round r is HUMAN + r."""


@dataclass(frozen=True)
class Known:
    """What is known of a case, and where it comes from.

    Attributes:
        label: (*S) int16, class or `IGNORE`.
        annotated: (K,) bool, which classes the label tells from the background.
        provenance: (*S) uint8: NOBODY, HUMAN, or HUMAN + round.
        certainty: (*S) uint8, 0 to 255: the share of the models that agree, 255 where a human
            annotated, 0 before any vote.
    """

    label: np.ndarray
    annotated: np.ndarray
    provenance: np.ndarray
    certainty: np.ndarray

    @staticmethod
    def from_annotation(label: np.ndarray, annotated: Sequence[bool]) -> Known:
        """What people annotated in a case.

        Args:
            label: (*S) int16, class or `IGNORE`.
            annotated: K of them, which classes are annotated.
        """
        provenance = np.where(label == IGNORE, NOBODY, HUMAN).astype(np.uint8)
        certainty = provenance * np.uint8(255)
        return Known(label, np.array(annotated, bool), provenance, certainty)

    @property
    def left(self) -> np.ndarray:
        """(*S) bool: where the class is not known yet."""
        label = torch.from_numpy(np.array(self.label))[None]
        annotated = torch.from_numpy(self.annotated)[None]
        return left_open(label, annotated)[0].numpy()


def majority(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class that each model predicts, and the one that most of them predict.

    Of classes with as many votes it is the one with the largest mean probability.

    Args:
        logits: (M, K, *S), of M models.

    Returns:
        Votes (M, *S) and consensus (*S), int16.

    Example:
        Two models, two classes, one voxel.

        >>> z = torch.tensor([[2.0, 0.0], [0.0, 3.0]])[..., None]
        >>> [x.tolist() for x in majority(z)]
        [[[0], [1]], [1]]
    """
    p = logits.float().softmax(1)
    votes = p.argmax(1)
    score = p.mean(0)  # never as much as a vote
    for vote in votes:
        score.scatter_add_(0, vote[None], torch.ones_like(score[:1]))
    return votes.short(), score.argmax(0).short()


def agreement(votes: np.ndarray, consensus: np.ndarray, classes: int) -> np.ndarray:
    """The mean Dice of the models against the consensus, for each class but the background.

    A model without a class that the consensus lacks too has 1, where another model predicts it.
    Identical models have 1.

    Args:
        votes: (M, N) integers, the class that each model predicts at each voxel.
        consensus: (N,) integers.
        classes: K.

    Returns:
        (K - 1,) float64. A class that no model predicts has NaN: whether it is not there or all
        models miss it cannot be told.

    Example:
        >>> agreement(np.array([[0, 1, 1], [0, 0, 1]]), np.array([0, 1, 1]), 3).round(3).tolist()
        [0.833, nan]
    """
    if not len(votes):
        return np.full(classes - 1, np.nan)
    pairs = [
        np.bincount(row.astype(np.int64) * classes + consensus, minlength=classes**2)
        for row in votes
    ]
    # Of each model: voxels by its class and the consensus's.
    counts = np.stack(pairs).reshape(-1, classes, classes)
    sizes = (counts.sum(1) + counts.sum(2))[:, 1:]
    both = counts.diagonal(axis1=1, axis2=2)[:, 1:]
    dice = np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), 1.0)
    return np.where(sizes.any(0), dice.mean(0), np.nan)


def over_classes(dice: np.ndarray) -> float:
    """The certainty of a case: the mean over the classes that some model predicts.

    Args:
        dice: (K - 1,), `agreement`.

    Returns:
        The mean; NaN where there are no such classes.

    Example:
        >>> over_classes(np.array([0.5, np.nan, 1.0])), over_classes(np.array([np.nan]))
        (0.75, nan)
    """
    seen = dice[~np.isnan(dice)]
    return float(seen.mean()) if len(seen) else float("nan")


def learnt(
    known: Known,
    votes: np.ndarray,
    consensus: np.ndarray,
    dice: np.ndarray,
    threshold: float,
    keep: str,
    number: int,
) -> Known:
    """What is known of a case after a vote: what was known, and the certain part of the consensus.

    With "cases", all that was left is taken, if the mean over the classes reaches the threshold.
    With "voxels", voxels are taken on which that share of the models agree and whose class is
    certain (or the background), if any class is; what else was left there is `IGNORE`. What equals
    a threshold reaches it.

    The classes that were taken count as annotated from then on: all that were predicted, or the
    certain ones. A class that no model predicts stays unknown, so that its absence is not trained
    on.

    Args:
        known: What was known.
        votes: (M, *S) integers that contradict nothing known.
        consensus: (*S) integers that contradict nothing known.
        dice: (K - 1,), `agreement` where something was left.
        threshold: Certainty, in (0, 1].
        keep: "cases" or "voxels".
        number: Number of the round, from 1.

    Returns:
        What is known now.
    """
    left = known.left
    models = len(votes)
    agree = (votes == consensus).sum(0)
    certainty = np.where(left, np.rint(agree * (255 / models)).astype(np.uint8), known.certainty)
    if keep == "cases":
        certain = ~np.isnan(dice) & (over_classes(dice) >= threshold)
        take = left & certain.any()
    else:
        certain = dice >= threshold  # not so for NaN
        agreed = agree >= threshold * models - 1e-6
        take = left & certain.any() & np.array([True, *certain])[consensus] & agreed
    if not take.any():
        return replace(known, certainty=certainty)
    before = np.where(left, IGNORE, known.label)
    label = np.where(take, consensus, before).astype(np.int16)
    by = np.where(left, NOBODY, known.provenance)
    provenance = np.where(take, HUMAN + number, by).astype(np.uint8)
    return Known(label, known.annotated | np.array([True, *certain]), provenance, certainty)
