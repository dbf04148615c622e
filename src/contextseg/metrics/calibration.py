"""Whether a prediction is right as often as it says: reliability bins, and the expected calibration error.

Of 100 voxels with a confidence of 0.8, 80 should be right. Definition, and which voxels count: docs/measuring.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from contextseg.disk import Problem

BINS = 15
"""Of one width, as many as in Guo et al. (ICML 2017): each holds 17 of the 255 steps of a confidence."""


_CHUNK = 1 << 20


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> list[dict[str, Any]]:
    """Count predictions by how sure they were: one row for each of `bins` bins of the same width.

    `confidence` uint8, 0 to 255 for probabilities of 0 to 1, and `correct` bool have one shape, whatever it is. A row
    holds bin (from 1), low, high, n, and of the predictions with low < confidence <= high (0 is in the first bin) the
    mean confidence and the accuracy, the share that is correct; both NaN in an empty bin.

    Raises `Problem` for arrays that do not fit together.

    >>> rows = reliability(np.array([153, 153, 204, 255], np.uint8), np.array([True, False, True, True]))
    >>> [(row["bin"], row["n"], row["confidence"], row["accuracy"]) for row in rows if row["n"]]
    [(9, 2, 0.6, 0.5), (12, 1, 0.8, 1.0), (15, 1, 1.0, 1.0)]
    """
    if confidence.dtype != np.uint8 or confidence.shape != correct.shape:
        what = f"{confidence.dtype} {confidence.shape} for predictions of shape {correct.shape}"
        raise Problem("confidence", what, "give one number from 0 to 255, uint8, for each prediction")
    values, counts, hits = np.arange(256), *_counts(confidence.ravel(), correct.ravel())
    place = np.maximum((values * bins + 254) // 255 - 1, 0)  # in whole numbers, since the edges are met exactly
    n, right, sure = (np.bincount(place, what, bins) for what in (counts, hits, counts * values))
    return [
        {"bin": i + 1, "low": i / bins, "high": (i + 1) / bins, **_means(int(n[i]), float(sure[i]) / 255, right[i])}
        for i in range(bins)
    ]


def _counts(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(2, 256) int64: how many predictions there are of each confidence, and how many of them are correct."""
    counts = np.zeros((2, 256), np.int64)
    for i in range(0, len(confidence), _CHUNK):  # bincount makes eight bytes of each
        part, right = confidence[i : i + _CHUNK], correct[i : i + _CHUNK].astype(bool)
        counts += [np.bincount(part, minlength=256), np.bincount(part[right], minlength=256)]
    return counts


def _means(n: int, confidence: float, correct: float) -> dict[str, float]:
    """From sums to means."""
    return {"n": n, "confidence": confidence / n if n else nan, "accuracy": float(correct) / n if n else nan}


def pooled(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The bins of several cases as those of all their voxels together: rows as of `reliability`, in the bins' order."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(int(row["bin"]), []).append(row)
    made = []
    for i, group in sorted(groups.items()):
        full = [row for row in group if row["n"]]
        sums = [sum(row["n"] * row[name] for row in full) for name in ("confidence", "accuracy")]
        low, high = group[0]["low"], group[0]["high"]
        made.append({"bin": i, "low": low, "high": high, **_means(int(sum(row["n"] for row in full)), *sums)})
    return made


def calibration_error(n: Sequence[float], confidence: Sequence[float], accuracy: Sequence[float]) -> float:
    """Expected calibration error (ECE), from columns of `reliability`: the mean of |accuracy - confidence| over bins.

    Each bin counts by its n, empty ones not at all; NaN where all are empty. 0 is calibrated; the largest value is 1.
    Naeini et al., AAAI 2015; Guo et al., ICML 2017. It depends on the bins: compare like with like.

    >>> round(calibration_error([2, 1, 1], [0.6, 0.8, 1.0], [0.5, 1.0, 1.0]), 3)
    0.1
    """
    count = np.asarray(n, float)
    full = count > 0
    apart = np.abs(np.asarray(accuracy, float) - np.asarray(confidence, float))[full]
    return float((count[full] * apart).sum() / count.sum()) if full.any() else nan


def within(mask: np.ndarray, spacing_mm: Sequence[float], reach_mm: float) -> np.ndarray:
    """The voxels of a bool grid whose centre is at most `reach_mm` from that of a set one: bool, of the same shape.

    Nothing is near an empty mask.
    """
    from edt import edt

    near = np.zeros(mask.shape, bool)
    box = []
    for axis, (length, mm) in enumerate(zip(mask.shape, spacing_mm)):
        hit = np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis})))
        if not len(hit):
            return near
        more = int(reach_mm / mm) + 1
        box.append(slice(max(int(hit[0]) - more, 0), min(int(hit[-1]) + more + 1, length)))
    part = np.ascontiguousarray(~mask[tuple(box)])
    near[tuple(box)] = edt(part, anisotropy=tuple(map(float, spacing_mm)), black_border=False) <= reach_mm * (1 + 1e-6)
    return near
