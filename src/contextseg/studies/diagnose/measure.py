"""How far the logits of one case lie from the decision boundary, and on which side.

All ROI classes are one here, as for M of CoLab. The margin of a voxel is its largest ROI logit
minus the background's, context classes folded in (Li et al., IEEE TMI 2023, Fig. 3: z_1 against
the largest z_i, i > 1). Above 0 the voxel is called ROI, as argmax does, whose ties go to the
background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import sqrt

import numpy as np
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.reports.planes import NEAR_MM

ROI, NEAR, FAR = TISSUES = ("roi", "near", "far")
"""The ROI; background within `NEAR_MM` of it; background beyond, all of it without a ROI."""

BIN = 0.1
"""Width of the bins of logits and margins."""

EDGES_MM = (2.0, 5.0, NEAR_MM, 20.0, 40.0, 80.0)
"""The upper ends of the bins of distances from the ROI; what is farther is in a last one."""

_SPAN = 1 << 24  # bins of one logit that fit beside the other's in one whole number


@dataclass(frozen=True)
class Margins:
    """The logits of the voxels of one tissue.

    Attributes:
        n: Number of voxels.
        total: Sum of their margins.
        squares: Sum of the squares of their margins.
        pairs: Voxels by (floor(z_background / BIN), floor(z_roi / BIN)).
        margins: Voxels by ceil(margin / BIN) - 1: those below 0 are called background, the others
            ROI.
    """

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    margins: Counter[int] = field(default_factory=Counter)

    @staticmethod
    def of(background: np.ndarray, roi: np.ndarray) -> Margins:
        """Count voxels by their two logits.

        Args:
            background: Logit of the background, (N,).
            roi: Largest logit of a ROI class, (N,).

        Returns:
            The counts; of no voxels the empty ones.
        """
        margin = roi.astype(np.float64) - background
        i, j = (np.floor(z / BIN).astype(np.int64) for z in (background, roi))
        codes, counts = np.unique(i * _SPAN + j + _SPAN // 2, return_counts=True)
        at = zip((codes // _SPAN).tolist(), (codes % _SPAN - _SPAN // 2).tolist())
        bins, sizes = np.unique(np.ceil(margin / BIN).astype(np.int64) - 1, return_counts=True)
        return Margins(
            n=len(margin),
            total=float(margin.sum()),
            squares=float((margin**2).sum()),
            pairs=Counter(dict(zip(at, counts.tolist()))),
            margins=Counter(dict(zip(bins.tolist(), sizes.tolist()))),
        )

    def __add__(self, other: Margins) -> Margins:
        return Margins(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def called(self) -> int:
        """Number of voxels that are called ROI."""
        return sum(count for place, count in self.margins.items() if place >= 0)

    @property
    def mean(self) -> float | None:
        """The mean margin; None of no voxels."""
        return self.total / self.n if self.n else None

    @property
    def sd(self) -> float | None:
        """The standard deviation of the margins, over n; None of no voxels."""
        if not self.n:
            return None
        return sqrt(max(self.squares / self.n - (self.total / self.n) ** 2, 0.0))


@dataclass(frozen=True)
class Measured:
    """What was measured of one case, or of several together.

    Attributes:
        tissues: The margins of each of `TISSUES`.
        false: False positives by distance, a count for each bin of `EDGES_MM` and beyond.
    """

    tissues: Mapping[str, Margins]
    false: tuple[int, ...] = (0,) * (len(EDGES_MM) + 1)

    @staticmethod
    def together(several: Iterable[Measured]) -> Measured:
        """The sum of several cases.

        Args:
            several: The cases; of none there are no voxels.

        Returns:
            Their voxels together.
        """
        tissues = {name: Margins() for name in TISSUES}
        false = np.zeros(len(EDGES_MM) + 1, int)
        for one in several:
            tissues = {name: tissues[name] + one.tissues[name] for name in TISSUES}
            false += one.false
        return Measured(tissues, tuple(false.tolist()))


def overlap(measured: Measured) -> dict[str, float | None]:
    """Dice, sensitivity and precision of a case, by the definitions of `metrics.evaluate_case`.

    Args:
        measured: What was measured of the case.

    Returns:
        "dsc", "sen" and "prc"; None where `evaluate_case` has NaN. A missed ROI has 0 for all
        three. Without a ROI "sen" is None, and without a prediction too, all are.
    """
    tissues = measured.tissues
    tp = tissues[ROI].called
    fp = tissues[NEAR].called + tissues[FAR].called
    reference = tissues[ROI].n
    if not reference + fp:
        return {"dsc": None, "sen": None, "prc": None}
    return {
        "dsc": 2 * tp / (reference + tp + fp),
        "sen": tp / reference if reference else None,
        "prc": tp / (tp + fp) if tp + fp else 0.0,
    }


def distance_mm(label: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance from the centre of each voxel to that of the nearest ROI voxel.

    Unlike `methods.context.roi_distance` it is not rounded to float16.

    Args:
        label: Classes and `IGNORE`, which is no ROI, (*S).
        spacing_mm: Voxel size.

    Returns:
        (*S) float32 in mm, 0 inside; infinite without a ROI.
    """
    import edt

    if not (label > 0).any():
        return np.full(label.shape, np.inf, np.float32)
    return edt.edt(np.ascontiguousarray(label <= 0), anisotropy=tuple(spacing_mm))


def measure(
    slabs: Iterable[tuple[int, int, Tensor]],
    label: np.ndarray,
    distance: np.ndarray,
    where: str = "the network",
) -> tuple[Measured, np.ndarray]:
    """Measure one case.

    Args:
        slabs: (start, stop, logits (K, stop - start, H, W)), background first, as from
            `predict.sliding_window`.
        label: Classes and `IGNORE`, whose voxels do not count, (D, H, W).
        distance: `distance_mm` of the label, (D, H, W).
        where: Name of the case for messages.

    Returns:
        What was measured, and where the case is called ROI, (D, H, W) bool.

    Raises:
        ContextsegError: Logits are not finite.
    """
    tissues = dict.fromkeys(TISSUES, Margins())
    called = np.zeros(label.shape, bool)
    close = distance <= NEAR_MM * (1 + 1e-6)
    for start, stop, z in slabs:
        part = slice(start, stop)
        background = z[0].float().cpu().numpy()
        roi = z[1:].amax(0).float().cpu().numpy()
        if not (np.isfinite(background).all() and np.isfinite(roi).all()):
            what = "its logits are not finite: the training diverged"
            raise ContextsegError(where, what, "lower lr and train again")
        outside = label[part] == 0
        masks = {ROI: label[part] > 0, NEAR: outside & close[part], FAR: outside & ~close[part]}
        for name, mask in masks.items():
            tissues[name] += Margins.of(background[mask], roi[mask])
        called[part] = roi > background
    false_mm = distance[called & (label == 0)] * (1 - 1e-6)
    false = np.bincount(np.searchsorted(EDGES_MM, false_mm), minlength=len(EDGES_MM) + 1)
    return Measured(tissues, tuple(false.tolist())), called & (label != IGNORE)
