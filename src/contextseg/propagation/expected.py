"""The Dice to be expected of what the packaged network fills.

A network's probabilities promise more than comes true. So the Dice that they promise is corrected
by a logistic regression, made by `benchmarks/confidence.py` on cases that the network was not
trained on, and checked on others (docs/pretrained-confidence.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BETWEEN_LABELLED = (0.269, 0.445, 0.215)
"""Coefficients of `between_features`."""

BEYOND_LABELLED = (-0.826, 1.149)
"""Coefficients of `beyond_features`."""

_LEAST = 0.01  # promises and agreements count as no less, and as no more than 1 less this


def between_features(log_odds: np.ndarray, shapes: np.ndarray) -> tuple[float, ...] | None:
    """What is known of a structure in a slice between two labelled ones.

    Args:
        log_odds: What decides, (H, W).
        shapes: The log-odds of the shapes alone, (H, W).

    Returns:
        1, the logits of the promised Dice, and of the Dice between the two outlines; None where
        the structure is not.
    """
    promised = promised_dice(log_odds)
    if np.isnan(promised):
        return None
    one, other = log_odds > 0, shapes > 0
    agreement = 2 * float((one & other).sum()) / float(one.sum() + other.sum())
    return 1.0, _logit(promised), _logit(agreement)


def beyond_features(log_odds: np.ndarray) -> tuple[float, ...] | None:
    """What is known of a structure in a slice beyond the labelled ones.

    Args:
        log_odds: The network's, (H, W).

    Returns:
        1, and the logit of the promised Dice; None where the structure is not.
    """
    promised = promised_dice(log_odds)
    return None if np.isnan(promised) else (1.0, _logit(promised))


def corrected_dice(features: Sequence[float] | None, coefficients: Sequence[float]) -> float:
    """The Dice to be expected, in [0, 1]; NaN without features.

    Example:
        >>> corrected_dice((1.0, 0.0), (0.0, 1.0)), corrected_dice(None, BEYOND_LABELLED)
        (0.5, nan)
    """
    if features is None:
        return float("nan")
    return float(1 / (1 + np.exp(-np.dot(coefficients, features))))


def promised_dice(log_odds: np.ndarray) -> float:
    """The Dice of the positive pixels if the log-odds were right; NaN where none is positive.

    Args:
        log_odds: (H, W).
    """
    inside = log_odds > 0
    if not inside.any():
        return float("nan")
    p = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
    return float(2 * p[inside].sum() / (inside.sum() + p.sum()))


def _logit(share: float) -> float:
    share = min(max(share, _LEAST), 1 - _LEAST)
    return float(np.log(share / (1 - share)))
