"""The catalogue of metrics: what each column of `metrics.csv` is called, and which way is better.

Evaluation, statistics, comparison and report read `METRICS`; none of them names a metric's heading,
digits or direction again. A new metric is a function of two masks in a file of its own and one line
in `METRICS`:

    def contrast(pred, ref, spacing_mm):
        return float((pred & ref).sum() / max(pred.sum(), ref.sum()))

    Metric("contrast", "Contrast", function=contrast),

It then has a column in `metrics.csv` and on the page of a run, and `compare --metrics contrast`
shows and tests it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal

import numpy as np

from contextseg.metrics.surface import ASSD, HD, HD95, NSD

DSC = "dsc"
IOU = "iou"
SEN = "sen"
PRC = "prc"
VOLUME_DIFF = "volume_diff_ml"
RVD = "rvd"
FP_NEAR = "fp_near_ml"
FP_FAR = "fp_far_ml"

MetricFunction = Callable[[np.ndarray, np.ndarray, Any], float]
"""(prediction, reference, spacing_mm) -> value, of two bool masks of one shape. The spacing is one
number for each axis; on a sheared grid the step along each, a row of three."""


@dataclass(frozen=True)
class Column:
    """A numeric column of `metrics.csv`, and how it is written.

    Attributes:
        name: Name of the column.
        heading: Its heading in tables and charts, without the unit.
        digits: Digits after the decimal point.
        unit: Unit, such as "mm"; empty for a number without one.
    """

    name: str
    heading: str
    digits: int = 3
    unit: str = ""

    @property
    def title(self) -> str:
        """The heading with its unit: "HD95, mm"."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


@dataclass(frozen=True)
class Metric(Column):
    """A metric: a column that is averaged over cases and compared between methods.

    The defaults are those of an overlap: from 0 to 1, higher is better.

    Attributes:
        name: Name of the column, and of the metric in `compare --metrics`.
        heading: Its heading in tables and charts, without the unit.
        digits: Digits after the decimal point.
        unit: Unit, such as "mm"; empty for a number without one.
        direction: "higher" or "lower", whichever is better. None for a signed number that is best
            near 0: its mean keeps the sign, a comparison takes its absolute value.
        best: The best value. A class that is rightly left out gets it in a comparison with a method
            that predicts the class.
        worst: The value of a missed or spurious class; `inf` stands for the length of the image's
            diagonal in mm. NaN: no fixed value, the metric is computed with one mask empty.
        needs_reference: Whether the metric does not exist where the reference is empty. It is NaN
            for a spurious class then.
        on_page: Whether the page of a run has a column for it. A comparison has those asked for.
        function: Computes the metric from (prediction, reference, spacing_mm), two bool masks cut
            to the box of the class. Outside the box both are False. Voxels that are not annotated
            are False in both. None for the metrics that `evaluate_case` computes itself.
    """

    direction: Literal["higher", "lower"] | None = "higher"
    best: float = 1.0
    worst: float = 0.0
    needs_reference: bool = False
    on_page: bool = True
    function: MetricFunction | None = None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(DSC, "Dice"),
        Metric(NSD, "NSD"),
        Metric(HD95, "HD95", 1, "mm", "lower", best=0.0, worst=inf),
        Metric(ASSD, "ASSD", 2, "mm", "lower", best=0.0, worst=inf),
        Metric(SEN, "Sensitivity", needs_reference=True),
        Metric(PRC, "Precision"),
        Metric(IOU, "IoU", on_page=False),
        Metric(HD, "HD", 1, "mm", "lower", best=0.0, worst=inf, on_page=False),
        Metric(VOLUME_DIFF, "Volume diff.", 2, "ml", None, best=0.0, worst=nan, on_page=False),
        Metric(
            RVD,
            "Rel. volume diff.",
            direction=None,
            best=0.0,
            worst=nan,
            needs_reference=True,
            on_page=False,
        ),
        Metric(FP_NEAR, "FP near", 1, "ml", "lower", best=0.0, worst=nan, on_page=False),
        Metric(FP_FAR, "FP far", 1, "ml", "lower", best=0.0, worst=nan, on_page=False),
    )
}
"""Every metric by its name, in the order in which tables show them."""

QUANTITIES: dict[str, Column] = {
    column.name: column
    for column in (
        Column("ref_ml", "Ref.", 1, "ml"),
        Column("pred_ml", "Pred.", 1, "ml"),
        Column("fp_near", "FP near", 0),
        Column("fp_far", "FP far", 0),
    )
}
"""Columns that describe one case: shown beside its metrics, never averaged or compared."""

DEFAULT_METRICS = (DSC, NSD, HD95)
"""The metrics of a summary and of a comparison, unless others are asked for."""
