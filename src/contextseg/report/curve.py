"""The curve of label efficiency: a measure against the number of labelled patients, a line for each method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from contextseg.report.charts import STYLES, TERMS, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def curve_chart(curve: DataFrame, heading: str) -> bytes:
    """SVG of `experiments.learning_curve`: means on a logarithmic axis of labels, with their intervals as bands."""
    return chart(partial(_curves, curve, heading), 3.0)


def _curves(curve: DataFrame, heading: str, axes: Axes) -> None:
    for i, (method, part) in enumerate(curve.groupby("method", sort=False)):
        look: Any = {"color": TERMS[i % len(TERMS)], "linestyle": STYLES[i % len(STYLES)]}
        axes.plot(part["labels"], part["mean"], marker="o", markersize=4, label=str(method), **look)
        axes.fill_between(part["labels"], part["low"], part["high"], color=look["color"], alpha=0.15, linewidth=0)
    labels = sorted(set(curve["labels"]))
    axes.set_xscale("log")
    axes.set_xticks(labels, [str(n) for n in labels])
    axes.minorticks_off()
    axes.set(xlabel="labelled patients", title=heading)
    axes.legend(loc="lower right")
