"""The learning curve: a metric against the number of labelled patients, a line for each method."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from contextseg.reports.charts import STYLES, TERMS, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


def curve_chart(curve: DataFrame, heading: str) -> bytes:
    """Draw a learning curve on a logarithmic axis of labels, with intervals as bands.

    Args:
        curve: The table of `evaluation.learning_curve.learning_curve`.
        heading: Title of the chart.

    Returns:
        The chart as SVG.
    """
    return chart(partial(_curves, curve, heading), 3.0)


def _curves(curve: DataFrame, heading: str, axes: Axes) -> None:
    for i, (method, part) in enumerate(curve.groupby("method", sort=False)):
        style: Any = {"color": TERMS[i % len(TERMS)], "linestyle": STYLES[i % len(STYLES)]}
        axes.plot(
            part["labels"], part["mean"], marker="o", markersize=4, label=str(method), **style
        )
        axes.fill_between(
            part["labels"], part["low"], part["high"], color=style["color"], alpha=0.15, linewidth=0
        )
    labels = sorted(set(curve["labels"]))
    axes.set_xscale("log")
    axes.set_xticks(labels, [str(n) for n in labels])
    axes.minorticks_off()
    axes.set(xlabel="labelled patients", title=heading)
    axes.legend(loc="lower right")
