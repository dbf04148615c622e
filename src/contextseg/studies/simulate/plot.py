"""The curves of a simulated annotator: Dice and NSD against labelled slices, and against rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from contextseg.reports.charts import TERMS, chart
from contextseg.studies.simulate.study import ALL_WAYS
from contextseg.studies.simulate.summary import means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

MEASURES = {"dsc": "Dice", "nsd": "NSD"}
COLOURS = dict(zip(ALL_WAYS, TERMS))
"""The colour of each way, everywhere."""
STYLES: dict[str, Any] = {
    "worst": {"linestyle": "-", "marker": "o"},
    "advice": {"linestyle": "--", "marker": "s"},
    "errors": {"linestyle": ":", "marker": "v"},
}
"""How each rule's line is drawn."""


def curves_chart(table: DataFrame, first: int, title: str) -> bytes:
    """Draw Dice and NSD against labelled slices, and against rounds.

    Lines are means over structures, bands their quartiles.

    Args:
        table: Rows of one start, as `annotator.csv`.
        first: Slices labelled at the start.
        title: Above the chart.

    Returns:
        An SVG file; the same for the same table.
    """
    from matplotlib.ticker import MaxNLocator

    def both(*axes: Axes) -> None:
        for one, metric in zip(axes, MEASURES):
            draw_curves(one, means(table, metric), first)
            one.set_ylabel(MEASURES[metric])
        axes[0].set_title(title)
        rounds: Any = axes[0].secondary_xaxis("top", functions=(_plus(-first), _plus(first)))
        rounds.set_xlabel("rounds")
        axes[1].set_xlabel("labelled slices")
        rounds.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return chart(both, 6.0, (1, 1))


def _plus(n: int) -> Callable[[Any], Any]:
    return lambda x: x + n


def draw_curves(axes: Axes, lines: DataFrame, first: int) -> None:
    """Draw a line for each way and rule, with its band.

    Args:
        axes: Where to draw.
        lines: From `summary.means`.
        first: Slices labelled at the start.
    """
    from matplotlib.ticker import MaxNLocator

    for (way, rule), curve in lines.groupby(["way", "rule"], sort=False):
        x = curve["round"] + first
        colour = COLOURS[str(way)]
        axes.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.1, linewidth=0)
        axes.plot(
            x,
            curve["mean"],
            color=colour,
            markersize=3.5,
            label=f"{way}, {rule}",
            **STYLES[str(rule)],
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
