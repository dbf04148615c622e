"""Curves and box plots: small matplotlib figures as SVG, each legible alone at a phone's width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from contextseg.metrics import DEFAULT_METRICS, METRICS, MISSED, SPURIOUS, Metric
from contextseg.reports.numbers import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE = "#0072B2"  # blue and orange of Okabe and Ito
ORANGE = "#D55E00"
INK = "#333333"
PALE = "#d5d9dd"
TERMS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", "-.", ":")  # so that lines are told apart without colour too
MINUS = " − "  # between the two names of a pair
FEW = 5  # a box drawn from fewer points says less than the points
NOT_TERMS = ("step", "part", "seconds", "lr", "dice")
_STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "contextseg",  # the same chart gives the same bytes
}

Charts = dict[str, bytes]  # what it shows -> SVG


def chart(draw: Callable[..., None], height_in: float = 2.5, rows: Sequence[float] = (1,)) -> bytes:
    """Draw one figure of 3.6 inches width.

    Args:
        draw: Called with an `Axes` for each of `rows`.
        height_in: Height of the figure in inches.
        rows: Relative heights of the axes, from top to bottom.

    Returns:
        The figure as SVG.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(3.6, height_in), layout="constrained")
        draw(*figure.subplots(len(rows), height_ratios=rows, squeeze=False).flat)
        plain_text(figure)
        file = BytesIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    return file.getvalue()


def plain_text(figure: Any) -> None:
    """Let a figure show names as they are; between two dollars matplotlib would see a formula.

    Args:
        figure: The figure, before it is saved.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "$" in text.get_text() and "\\$" not in text.get_text():
            text.set_parse_math(False)


# --- box plots ------------------------------------------------------------------------------------


def spread_charts(tidied: pd.DataFrame, metrics: Sequence[str] = DEFAULT_METRICS) -> Charts:
    """Box plots of the cases of a run, by class.

    Args:
        tidied: A table of `numbers.tidy`.
        metrics: Names of metrics.

    Returns:
        For each metric with a number, a chart with one box and all points of every class. A missed
        or spurious one is a cross.
    """
    charts = {}
    for name in metrics:
        known = tidied[np.isfinite(tidied[name])]
        if known.empty:
            continue
        parts = {label: known[known["class"] == label] for label in dict.fromkeys(known["class"])}
        values = {label: part[name].to_numpy() for label, part in parts.items()}
        failed = {
            label: part["status"].isin((MISSED, SPURIOUS)).to_numpy()
            for label, part in parts.items()
        }
        heading = METRICS[name].title
        chart = box_chart(values, failed, heading, METRICS[name])
        charts[f"{heading} of each case, by class"] = chart
    return charts


def _boxes(
    axes: Axes,
    values: Mapping[str, np.ndarray],
    failed: Mapping[str, np.ndarray],
    heading: str,
    metric: Metric,
) -> None:
    """Horizontal boxes, the first on top: quartiles, whiskers to the last point within 1.5 lengths.

    With fewer than five points, the points and their median alone.
    """
    at = np.arange(len(values))[::-1]
    every = np.concatenate(list(values.values()))
    crowded = len(every) > 1500  # points as one bitmap: a thousand shapes would fill the page
    for y, (name, points) in zip(at, values.items()):
        low, middle, high = np.percentile(points, (25, 50, 75))
        if len(points) >= FEW:
            near = points[
                (points >= low - 1.5 * (high - low)) & (points <= high + 1.5 * (high - low))
            ]
            axes.hlines(y, near.min(), near.max(), color=INK, linewidth=1.0, zorder=1)
            axes.barh(
                y, high - low, 0.55, low, facecolor=PALE, edgecolor=INK, linewidth=1.0, zorder=2
            )
        axes.vlines(middle, y - 0.27, y + 0.27, color=ORANGE, linewidth=2.5, zorder=4)
        # Spread out, the same way every time.
        shift = y + 0.16 * np.sin(2.4 * np.arange(len(points)))
        size = 18 if len(points) < 20 else 9
        cross = failed[name]
        axes.scatter(
            points[~cross],
            shift[~cross],
            size,
            BLUE,
            alpha=0.6,
            linewidths=0,
            zorder=3,
            rasterized=crowded,
        )
        axes.scatter(points[cross], shift[cross], 20, INK, marker="x", linewidths=1.2, zorder=5)
    axes.set_yticks(at, [_short(name) for name in values])
    axes.set(title=_plain(heading), ylim=(-0.6, len(values) - 0.4))
    axes.grid(False, axis="y")
    _limit_boxes(axes, every, metric)


def _limit_boxes(axes: Axes, every: np.ndarray, metric: Metric) -> None:
    """Limits and scale of the axis of values: 1 is in sight for an overlap, 0 for the others."""
    low = float(every.min())
    high = float(every.max())
    if metric.direction == "higher" and metric.best == 1 and low >= 0 and high <= 1:
        lowest = 0.78
        if low < 0.8:
            lowest = 0.47
        if low < 0.5:
            lowest = -0.03
        axes.set_xlim(lowest, 1.02)
    elif low < 0:
        edge = 1.05 * max(-low, high)
        axes.set_xlim(-edge, edge)
    elif high > 10 * max(float(np.median(every)), 1.0):  # a missed organ's distance: the diagonal
        axes.set_xscale("symlog", linthresh=1.0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(-0.1, 1.3 * high)
    else:
        axes.set_xlim(-0.03 * max(high, 1.0), 1.05 * max(high, 1.0))


def box_chart(
    values: Mapping[str, np.ndarray],
    failed: Mapping[str, np.ndarray],
    heading: str,
    metric: Metric,
) -> bytes:
    """Box plots beneath each other.

    Args:
        values: What is compared -> one value for each case, (N,).
        failed: The same names -> whether each case failed, bool, (N,); those are crosses.
        heading: Title of the chart.
        metric: The metric, which decides the axis.

    Returns:
        The chart as SVG.
    """
    draw = partial(_boxes, values=values, failed=failed, heading=heading, metric=metric)
    return chart(draw, 0.9 + 0.32 * len(values))


def paired_chart(
    differences: Mapping[str, np.ndarray],
    means: Mapping[str, tuple[float, float, float]],
    heading: str,
    metric: Metric,
) -> bytes:
    """The differences of each pair, patient by patient, with their mean and its interval.

    Zero, no difference, is a dashed line.

    Args:
        differences: Pair ("a − b") -> the first minus the second, one for each patient, (N,).
        means: Pair -> mean, low, high; an interval that is NaN is not drawn.
        heading: Title of the chart.
        metric: The metric, which says on which side the first is better.

    Returns:
        The chart as SVG.
    """
    draw = partial(_paired, differences, means, heading, metric)
    return chart(draw, 1.2 + 0.5 * len(differences))


def better_side(metric: Metric) -> str:
    """On which side of zero a difference says that the first is better.

    Args:
        metric: The metric.

    Returns:
        The label of the axis of differences.
    """
    return "first is better →" if metric.direction == "higher" else "← first is better"


def _paired(
    differences: Mapping[str, np.ndarray],
    means: Mapping[str, tuple[float, float, float]],
    heading: str,
    metric: Metric,
    axes: Axes,
) -> None:
    at = np.arange(len(differences))[::-1]
    farthest = 0.0
    for y, (name, points) in zip(at, differences.items()):
        mean, low, high = means[name]
        if math.isfinite(low):
            axes.barh(
                y, high - low, 0.5, low, facecolor=PALE, edgecolor=INK, linewidth=1.0, zorder=2
            )
        axes.vlines(mean, y - 0.3, y + 0.3, color=ORANGE, linewidth=2.5, zorder=4)
        shift = y + 0.16 * np.sin(2.4 * np.arange(len(points)))
        size = 18 if len(points) < 20 else 9
        axes.scatter(points, shift, size, BLUE, alpha=0.6, linewidths=0, zorder=3)
        distances = [float(v) for v in np.abs([*points, low, high])]
        farthest = max([farthest, *(v for v in distances if math.isfinite(v))])
    axes.axvline(0, color=INK, linestyle="--", linewidth=1.0, zorder=1.5)
    axes.set_yticks(at, ["\n− ".join(map(_short, name.split(MINUS))) for name in differences])
    axes.locator_params(axis="x", nbins=5)
    edge = 1.08 * farthest or 1.0
    sizes = " (absolute value)" if metric.direction is None else ""
    axes.set(title=_plain(heading + sizes), ylim=(-0.6, len(at) - 0.4), xlim=(-edge, edge))
    axes.set_xlabel(better_side(metric))
    axes.grid(False, axis="y")


def _short(name: str) -> str:
    """At most 22 characters, with both ends: a label budget stands at the end."""
    return _plain(name if len(name) <= 22 else f"{name[:13]}…{name[-8:]}")


def _plain(text: str) -> str:
    """Text that is not read as a formula."""
    return text.replace("$", r"\$")


# --- training -------------------------------------------------------------------------------------


_MOST = 1e100  # beyond it matplotlib cannot compute the ticks of an axis


def training_charts(rows: Sequence[Mapping[str, Any]]) -> Charts:
    """Curves of one training over its steps: loss, loss terms (of several), Dice, learning rate.

    Args:
        rows: Rows of its log.

    Returns:
        The charts of what was logged.
    """
    terms = list(
        dict.fromkeys(
            name for row in rows for name in row if name not in NOT_TERMS and _is_number(row[name])
        )
    )
    loss = {part: _series(rows, part, terms) for part in ("train", "check")}
    dice = {part: _series(rows, part, ["dice"]) for part in ("train", "check")}
    charts = {}
    if any(len(x) for x, _ in loss.values()):
        title = "Loss" if len(terms) == 1 else "Loss, sum of its terms"
        charts["Loss"] = chart(partial(_curves, title=title, series=loss))
    each = {name: _series(rows, "train", [name]) for name in terms}
    if sum(bool(len(x)) for x, _ in each.values()) > 1:
        charts["Loss terms, training"] = chart(
            partial(_curves, title="Loss terms, training", series=each)
        )
    if any(len(x) for x, _ in dice.values()):
        charts["Dice on patches"] = chart(partial(_curves, title="Dice on patches", series=dice))
    rate = _series(rows, "train", ["lr"])
    if len(rate[0]):
        charts["Learning rate"] = chart(partial(_curves, title="Learning rate", series={"": rate}))
    return charts


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _series(
    rows: Sequence[Mapping[str, Any]], part: str, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the sum of the named values at each; rows that no axis can hold are left out."""
    points = []
    for row in rows:
        there = [finite(row[name]) for name in names if name in row]
        point = (finite(row.get("step")), sum(there))
        if row.get("part") == part and there and all(abs(n) < _MOST for n in point):
            points.append(point)
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y


def _curves(axes: Axes, title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Lines over steps; a long one is pale, with its running mean on top."""
    drawn = {name: points for name, points in series.items() if len(points[0])}
    fixed = {"train": 0, "check": 1}
    for i, (name, (x, y)) in enumerate(drawn.items()):
        color = TERMS[fixed.get(name, i) % len(TERMS)]
        style = STYLES[fixed.get(name, i) % len(STYLES)]
        marker = "o" if len(x) <= 30 else None
        if len(x) > 100 and name:
            axes.plot(x, y, color=color, linewidth=0.7, alpha=0.3)
            y = _running_mean(y, len(y) // 40)
        axes.plot(x, y, color=color, linestyle=style, marker=marker, markersize=3, label=name)
    axes.set(title=title, xlabel="step")
    if max(float(y.max()) for _, y in drawn.values()) < 0.005 or "rate" in title:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    if "Dice" in title:
        axes.set_ylim(-0.02, 1.02)
    if any(drawn):
        axes.legend(handlelength=2.6)


def _running_mean(y: np.ndarray, half: int) -> np.ndarray:
    """The mean of each point and `half` neighbours on either side (fewer at the ends)."""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)
