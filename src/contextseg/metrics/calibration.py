"""Whether a prediction is right as often as its confidence says.

Of 100 voxels with a confidence of 0.8, 80 should be right. docs/measuring.md has the definition,
and which voxels count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from contextseg.errors import ContextsegError
from contextseg.metrics.lattice import is_sheared, layers_mm
from contextseg.metrics.surface import distances_mm

BINS = 15
"""Number of bins, as in Guo et al. (ICML 2017): each holds 17 of the 255 steps of a confidence."""


_CHUNK = 1 << 20


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> list[dict[str, Any]]:
    """Count predictions by confidence, in bins of the same width.

    Args:
        confidence: Confidence of each prediction, uint8, 0 to 255 for 0 to 1, of any shape.
        correct: Whether each is right, bool, the same shape.
        bins: Number of bins.

    Returns:
        A row for each bin: bin (from 1), low, high, n, and of the n predictions with
        low < confidence <= high (0 is in the first bin) the mean confidence and the accuracy, the
        share that is correct. Both are NaN in an empty bin.

    Raises:
        ContextsegError: The arrays do not fit together.

    Example:
        >>> confidence = np.array([153, 153, 204, 255], np.uint8)
        >>> rows = reliability(confidence, np.array([True, False, True, True]))
        >>> [(row["bin"], row["n"], row["confidence"], row["accuracy"]) for row in rows if row["n"]]
        [(9, 2, 0.6, 0.5), (12, 1, 0.8, 1.0), (15, 1, 1.0, 1.0)]
    """
    if confidence.dtype != np.uint8 or confidence.shape != correct.shape:
        what = f"{confidence.dtype} {confidence.shape} for predictions of shape {correct.shape}"
        raise ContextsegError(
            "confidence", what, "give one number from 0 to 255, uint8, for each prediction"
        )
    counts, hits = _counts(confidence.ravel(), correct.ravel())
    values = np.arange(256)
    place = np.maximum((values * bins + 254) // 255 - 1, 0)  # whole numbers meet the edges exactly

    n = np.bincount(place, counts, bins)
    sum_correct = np.bincount(place, hits, bins)
    sum_confidence = np.bincount(place, counts * values, bins)
    return [
        {
            "bin": i + 1,
            "low": i / bins,
            "high": (i + 1) / bins,
            **_means(int(n[i]), float(sum_confidence[i]) / 255, sum_correct[i]),
        }
        for i in range(bins)
    ]


def _counts(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Number of predictions of each confidence, and of the correct ones, (2, 256) int64."""
    counts = np.zeros((2, 256), np.int64)
    for i in range(0, len(confidence), _CHUNK):  # bincount makes eight bytes of each
        part = confidence[i : i + _CHUNK]
        right = correct[i : i + _CHUNK].astype(bool)
        counts += [np.bincount(part, minlength=256), np.bincount(part[right], minlength=256)]
    return counts


def _means(n: int, confidence: float, correct: float) -> dict[str, float]:
    """From sums to means."""
    return {
        "n": n,
        "confidence": confidence / n if n else nan,
        "accuracy": float(correct) / n if n else nan,
    }


def pooled(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bins of several cases as those of all their voxels together.

    Args:
        rows: Rows of `reliability`, of any number of cases.

    Returns:
        One row for each bin, in the bins' order.
    """
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(int(row["bin"]), []).append(row)
    bins = []
    for i, group in sorted(groups.items()):
        full = [row for row in group if row["n"]]
        sums = [sum(row["n"] * row[name] for row in full) for name in ("confidence", "accuracy")]
        edges = {"low": group[0]["low"], "high": group[0]["high"]}
        bins.append({"bin": i, **edges, **_means(int(sum(row["n"] for row in full)), *sums)})
    return bins


def calibration_error(
    n: Sequence[float], confidence: Sequence[float], accuracy: Sequence[float]
) -> float:
    """Expected calibration error (ECE; Naeini et al., AAAI 2015; Guo et al., ICML 2017).

    The mean of |accuracy - confidence| over bins, each counted by its n. It depends on the bins:
    compare like with like.

    Args:
        n: Number of predictions in each bin.
        confidence: Mean confidence in each bin; ignored where n is 0.
        accuracy: Accuracy in each bin; ignored where n is 0.

    Returns:
        From 0, calibrated, to 1. NaN where all bins are empty.

    Example:
        >>> round(calibration_error([2, 1, 1], [0.6, 0.8, 1.0], [0.5, 1.0, 1.0]), 3)
        0.1
    """
    count = np.asarray(n, float)
    full = count > 0
    apart = np.abs(np.asarray(accuracy, float) - np.asarray(confidence, float))[full]
    return float((count[full] * apart).sum() / count.sum()) if full.any() else nan


def within(mask: np.ndarray, spacing_mm: Sequence[Any], reach_mm: float) -> np.ndarray:
    """The voxels whose centre is near that of a set voxel.

    Args:
        mask: Bool grid of any number of axes.
        spacing_mm: Distance between voxel centres along each axis, in mm; or the steps, a row each.
        reach_mm: Largest distance that counts as near.

    Returns:
        Bool, the shape of `mask`. Nothing is near an empty mask.
    """
    from edt import edt

    near = np.zeros(mask.shape, bool)
    box = []
    for axis, (length, mm) in enumerate(zip(mask.shape, layers_mm(spacing_mm).tolist())):
        set_at = np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis})))
        if not len(set_at):
            return near
        more = int(reach_mm / mm) + 1
        start = max(int(set_at[0]) - more, 0)
        box.append(slice(start, min(int(set_at[-1]) + more + 1, length)))

    if is_sheared(spacing_mm):
        part = mask[tuple(box)]
        apart_mm = distances_mm(np.ones_like(part), part, spacing_mm, np.inf)
        near[tuple(box)] = apart_mm.reshape(part.shape) <= reach_mm * (1 + 1e-6)
        return near
    part = np.ascontiguousarray(~mask[tuple(box)])
    distance_mm = edt(part, anisotropy=tuple(map(float, spacing_mm)), black_border=False)
    near[tuple(box)] = distance_mm <= reach_mm * (1 + 1e-6)
    return near


def expected_case_dice(label: np.ndarray, confidence: np.ndarray, values: Sequence[int]) -> float:
    """The Dice to be expected of a prediction, if its probabilities are right: a mean over classes.

    A class that covers n voxels with the probabilities p has the expected overlap sum(p). What it
    misses is the probability that background voxels are not background, shared among the classes by
    their size. The expected Dice is 2 sum(p) / (n + sum(p) + missed). A class that is not predicted
    at all counts 0: whether it is there or not, somebody should look. [Ours; how it ranks
    cases that nobody has drawn is in docs/chain.md.]

    Args:
        label: (D, H, W) predicted label values.
        confidence: (D, H, W) uint8, the probability of each voxel's label from 0 to 255.
        values: The label values of the classes, without the background.

    Returns:
        A number in [0, 1]; 0 for no class.

    Example:
        >>> label = np.array([[[1, 1, 0, 0]]])
        >>> expected_case_dice(label, np.full(label.shape, 255, np.uint8), [1])
        1.0
        >>> round(expected_case_dice(label, np.full(label.shape, 204, np.uint8), [1]), 2)
        0.8
    """
    p = confidence.astype(np.float64) / 255
    sizes = [int((label == value).sum()) for value in values]
    missed = float((1 - p[label == 0]).sum())
    dice = []
    for value, size in zip(values, sizes):
        overlap = float(p[label == value].sum())
        missing = missed * size / max(1, sum(sizes))
        dice.append(2 * overlap / (size + overlap + missing) if size else 0.0)
    return float(np.mean(dice)) if dice else 0.0
