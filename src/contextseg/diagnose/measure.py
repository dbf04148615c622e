"""How far the logits of one case lie from the decision boundary, and on which side: of the ROI, and of the background.

All ROI classes are one here, as for M of CoLab. The margin of a voxel is its largest ROI logit minus the background's,
context classes folded in (Li et al., IEEE TMI 2023, Fig. 3: z_1 against the largest z_i, i > 1). Above 0 the voxel is
called ROI, as argmax does, whose ties go to the background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import sqrt

import numpy as np
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.disk import Problem
from contextseg.report.planes import NEAR_MM

ROI, NEAR, FAR = TISSUES = ("roi", "near", "far")
"""The ROI; background within `NEAR_MM` of it; background beyond, which is all of it where a case has no ROI."""

BIN = 0.1
"""Width of the bins of logits and margins."""

EDGES_MM = (2.0, 5.0, NEAR_MM, 20.0, 40.0, 80.0)
"""The upper ends of the bins of distances from the ROI; what is farther is in a last one."""


_SPAN = 1 << 24  # bins of one logit that fit beside the other's in one whole number


@dataclass(frozen=True)
class Margins:
    """What the voxels of one tissue were given: their number, their margins' sums, and two histograms.

    pairs    voxels by (floor(z_background / BIN), floor(z_roi / BIN)).
    margins  voxels by ceil(margin / BIN) - 1: those below 0 are called background, the others ROI.
    """

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    margins: Counter[int] = field(default_factory=Counter)

    @staticmethod
    def of(background: np.ndarray, roi: np.ndarray) -> Margins:
        """From two logits for each voxel, (N,) each; none give none."""
        margin = roi.astype(np.float64) - background
        i, j = (np.floor(z / BIN).astype(np.int64) for z in (background, roi))
        codes, counts = np.unique(i * _SPAN + j + _SPAN // 2, return_counts=True)
        at = zip((codes // _SPAN).tolist(), (codes % _SPAN - _SPAN // 2).tolist())
        bins, sizes = np.unique(np.ceil(margin / BIN).astype(np.int64) - 1, return_counts=True)
        pairs, margins = Counter(dict(zip(at, counts.tolist()))), Counter(dict(zip(bins.tolist(), sizes.tolist())))
        return Margins(len(margin), float(margin.sum()), float((margin**2).sum()), pairs, margins)

    def __add__(self, other: Margins) -> Margins:
        return Margins(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def called(self) -> int:
        """Voxels that are called ROI."""
        return sum(count for place, count in self.margins.items() if place >= 0)

    @property
    def mean(self) -> float | None:
        """The mean margin; None of no voxels."""
        return self.total / self.n if self.n else None

    @property
    def sd(self) -> float | None:
        """The margins' standard deviation, over n; None of no voxels."""
        return sqrt(max(self.squares / self.n - (self.total / self.n) ** 2, 0.0)) if self.n else None


@dataclass(frozen=True)
class Measured:
    """One case, or several together: the margins of each tissue, and false positives by distance, a count for each bin
    of `EDGES_MM` and beyond.
    """

    tissues: Mapping[str, Margins]
    false: tuple[int, ...] = (0,) * (len(EDGES_MM) + 1)

    @staticmethod
    def together(several: Iterable[Measured]) -> Measured:
        """All of them; of none, no voxels."""
        tissues, false = {name: Margins() for name in TISSUES}, np.zeros(len(EDGES_MM) + 1, int)
        for one in several:
            tissues = {name: tissues[name] + one.tissues[name] for name in TISSUES}
            false += one.false
        return Measured(tissues, tuple(false.tolist()))


def overlap(measured: Measured) -> dict[str, float | None]:
    """dsc, sen and prc of a case, by the definitions of `metrics.evaluate_case`; None where it has NaN.

    A missed ROI has 0 for all three. Without a ROI sen is None, and without a prediction too, all are.
    """
    tp, false = measured.tissues[ROI].called, measured.tissues[NEAR].called + measured.tissues[FAR].called
    reference = measured.tissues[ROI].n
    if not reference + false:
        return {"dsc": None, "sen": None, "prc": None}
    return {
        "dsc": 2 * tp / (reference + tp + false),
        "sen": tp / reference if reference else None,
        "prc": tp / (tp + false) if tp + false else 0.0,
    }


def distance_mm(label: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """How far each voxel's centre is from the nearest ROI voxel's: (*S) float32, 0 inside, infinite without a ROI.

    label (*S): classes and `IGNORE`, which is no ROI. Unlike `methods.context.roi_distance` not rounded to float16.
    """
    import edt

    if not (label > 0).any():
        return np.full(label.shape, np.inf, np.float32)
    return edt.edt(np.ascontiguousarray(label <= 0), anisotropy=tuple(spacing_mm))


def measure(
    slabs: Iterable[tuple[int, int, Tensor]], label: np.ndarray, distance: np.ndarray, where: str = "the network"
) -> tuple[Measured, np.ndarray]:
    """Measure one case; also where it is called ROI, (D, H, W) bool.

    slabs     (start, stop, logits (K, stop - start, H, W)), background first, as from `predict.sliding_window`.
    label     (D, H, W): classes and `IGNORE`, whose voxels do not count.   distance  (D, H, W): `distance_mm` of it.

    Raises `Problem` that names `where` for logits that are not finite.
    """
    found, called = dict.fromkeys(TISSUES, Margins()), np.zeros(label.shape, bool)
    close = distance <= NEAR_MM * (1 + 1e-6)
    for start, stop, z in slabs:
        part = slice(start, stop)
        background, roi = z[0].float().cpu().numpy(), z[1:].amax(0).float().cpu().numpy()
        if not (np.isfinite(background).all() and np.isfinite(roi).all()):
            raise Problem(where, "its logits are not finite: the training diverged", "lower lr and train again")
        outside = label[part] == 0
        masks = {ROI: label[part] > 0, NEAR: outside & close[part], FAR: outside & ~close[part]}
        found = {name: found[name] + Margins.of(background[mask], roi[mask]) for name, mask in masks.items()}
        called[part] = roi > background
    apart = distance[called & (label == 0)] * (1 - 1e-6)
    false = np.bincount(np.searchsorted(EDGES_MM, apart), minlength=len(EDGES_MM) + 1)
    return Measured(found, tuple(false.tolist())), called & (label != IGNORE)
