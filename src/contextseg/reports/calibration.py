"""The calibration of a run: whether it is right as often as its confidence says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from contextseg.metrics import calibration_error, pooled
from contextseg.reports.charts import BLUE, INK, ORANGE, PALE, chart
from contextseg.reports.markup import charts_html, row_name, sentence, table_html
from contextseg.reports.numbers import Spread, mean_sd, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bins = Sequence[Mapping[str, Any]]
EXPLANATION = (
    "Confidence: the probability that the prediction gives to its own class of a voxel. Accuracy: "
    "the share of voxels whose class is right. Difference: the first minus the second; above 0 the "
    "prediction is more confident than right. ECE, the expected calibration error: the mean "
    "distance of the two over bins of confidence, each bin counted by its voxels; 0 is calibrated. "
    "It is that of all cases together; below it, the mean ± standard deviation of each case’s own. "
    "Most voxels of a scan are background that nobody would mistake: those near a structure of the "
    "reference or the prediction tell more. In the diagrams a bar ends at the accuracy of its bin, "
    "and what is hatched lies between that and the mean confidence. Below: the share of the voxels "
    "in each bin, on a logarithmic scale."
)


def calibration_html(table: pd.DataFrame | None) -> str:
    """The section of a page on calibration.

    Args:
        table: The table of `evaluation.calibration`. None: there is none.

    Returns:
        A row and a reliability diagram for each choice of voxels; a sentence for None and for an
        empty table.
    """
    if table is None or table.empty:
        return sentence("No case has both a confidence map and a reference for all classes.")
    body = ""
    charts = {}
    for voxels, rows in table.groupby("voxels", sort=False):
        bins = pooled(_records(rows))
        name = f"{str(voxels).capitalize()}{' voxels' * (voxels == 'all')}"
        errors = np.array([_error(_records(part)) for _, part in rows.groupby("case")])
        body += f"<tr>{row_name(name)}{_cells(bins, errors[np.isfinite(errors)])}</tr>"
        if any(row["n"] for row in bins):
            title = f"{name}: ECE {number(_error(bins), 3)}"
            charts[f"Reliability diagram, {voxels}"] = reliability_chart(bins, title)
    heads = ["ECE", "Confidence", "Accuracy", "Difference", "Voxels"]
    return table_html([""], heads, body) + charts_html(charts) + sentence(EXPLANATION)


def _records(rows: pd.DataFrame) -> list[Any]:
    return rows.to_dict("records")


def _error(bins: Bins) -> float:
    columns = ([row[name] for row in bins] for name in ("n", "confidence", "accuracy"))
    return calibration_error(*columns)


def _cells(bins: Bins, errors: np.ndarray) -> str:
    """The cells of a row: the ECE of all voxels and of each case, the means, the voxels."""
    full = [row for row in bins if row["n"]]
    n = sum(row["n"] for row in full)
    if not n:
        return "<td>–</td>" * 4 + "<td>0</td>"
    confidence, accuracy = (
        sum(row["n"] * row[name] for row in full) / n for name in ("confidence", "accuracy")
    )
    sd = float(errors.std(ddof=1)) if len(errors) > 1 else float("nan")
    spread = Spread(float(errors.mean()), sd, float(np.median(errors)), len(errors))
    cells = [
        f"{number(_error(bins), 3)}<small>{mean_sd(spread, 3)}</small>",
        number(confidence, 3),
        number(accuracy, 3),
    ]
    cells += [f"{confidence - accuracy:+.3f}".replace("-", "−"), f"{n:,}".replace(",", "\u2009")]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def reliability_chart(bins: Bins, title: str) -> bytes:
    """Draw a reliability diagram: accuracy over confidence, and the share of voxels in each bin.

    Args:
        bins: Rows of `metrics.reliability`.
        title: Title of the chart.

    Returns:
        The chart as SVG.
    """
    return chart(partial(_draw, bins, title), 3.6, (3, 1))


def _draw(bins: Bins, title: str, upper: Axes, lower: Axes) -> None:
    full = [row for row in bins if row["n"]]
    low, high, n, confidence, accuracy = (
        np.array([row[name] for row in full], float)
        for name in ("low", "high", "n", "confidence", "accuracy")
    )
    middle = (low + high) / 2
    width = high - low
    upper.bar(
        middle,
        accuracy,
        0.9 * width,
        color=BLUE,
        alpha=0.75,
        linewidth=0,
        zorder=2,
        label="accuracy",
    )
    gap: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": ORANGE,
        "linewidth": 0.9,
        "hatch": "/////",
        "zorder": 3,
    }
    upper.bar(
        middle,
        confidence - accuracy,
        0.9 * width,
        accuracy,
        label="difference to confidence",
        **gap,
    )
    upper.plot(
        [0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.0, zorder=4, label="calibrated"
    )
    upper.set(title=title, xlim=(0, 1), ylim=(0, 1.005), ylabel="accuracy")
    upper.tick_params(labelbottom=False)
    upper.legend(loc="upper left", handlelength=1.8)
    share = n / n.sum()
    lower.bar(middle, share, 0.9 * width, color=PALE, edgecolor=INK, linewidth=0.8, zorder=2)
    lower.set(
        xlim=(0, 1),
        yscale="log",
        ylim=(min(1e-4, share.min() / 2), 2),
        xlabel="confidence",
        ylabel="voxels",
    )
    lower.set_yticks([1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
    lower.minorticks_off()
