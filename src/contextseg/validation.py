"""Validation on patches during a training, and what the best of several validations is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from contextseg.batch import Batch


class Validated(Protocol):
    """What a validation needs of a method."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch, by name."""

    def predict(self, image: Tensor) -> Tensor:
        """The logits (B, K, *S) that are deployed.

        Args:
            image: (B, C, *S) float32.
        """

    def train(self, mode: bool = True) -> Any:
        """Switch dropout and the like on or off.

        Args:
            mode: Whether to train; False to evaluate.
        """


def validate(method: Validated, batch_at: Callable[[int], Batch], batches: int) -> dict[str, float]:
    """Evaluate a method on fixed batches of patches.

    Args:
        method: The method; in training mode again afterwards.
        batch_at: n to batch n; empty ones are passed over.
        batches: Number of batches.

    Returns:
        The mean of each loss term, and "dice": over all annotated voxels of all batches, the mean
        of the classes that occur there. Where none occurs there is no "dice".
    """
    method.train(False)
    terms: dict[str, list[float]] = {}
    overlaps: Any = 0
    sizes: Any = 0
    with torch.no_grad():
        for n in range(batches):
            batch = batch_at(n)
            if not len(batch):
                continue
            for name, term in method(batch).items():
                terms.setdefault(name, []).append(float(term))
            z = method.predict(batch.image)
            predicted = z.argmax(1)
            annotated = batch.label >= 0
            masks = [(predicted == k, batch.label == k) for k in range(1, z.shape[1])]
            overlaps = overlaps + torch.stack([(p & y).sum() for p, y in masks])
            sizes = sizes + torch.stack([(p & annotated).sum() + y.sum() for p, y in masks])
    method.train()

    means = {name: sum(values) / len(values) for name, values in terms.items()}
    occurs = sizes > 0
    if occurs.any():
        means["dice"] = float((2 * overlaps[occurs] / sizes[occurs]).mean())
    return means


def validation_score(method: Validated, means: dict[str, float]) -> float:
    """What the best of several validations is the highest of.

    Args:
        method: The method; where its `chosen_by` is "loss", the score is minus the sum of its loss
            terms.
        means: What `validate` gave.

    Returns:
        The Dice; minus the loss where the method asks for it, or no class occurs. A loss that is
        not finite scores lowest.
    """
    if getattr(method, "chosen_by", "dice") == "dice" and "dice" in means:
        return means["dice"]
    loss = sum(value for name, value in means.items() if name != "dice")
    return -loss if math.isfinite(loss) else -math.inf
