"""The calibration of a run: how far it is right as often as it says, as a table and as reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from contextseg.metrics import calibration_error, pooled
from contextseg.report.charts import BLUE, INK, ORANGE, PALE, chart
from contextseg.report.markup import charts_html, row_name, sentence, table_html
from contextseg.report.numbers import Spread, mean_sd, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bins = Sequence[Mapping[str, Any]]
EXPLAINED = (
    "Confidence: the probability that the prediction gives to its own class of a voxel. Accuracy: the share of voxels "
    "whose class is right. Difference: the first minus the second; above 0 the prediction is surer than right. ECE, "
    "the expected calibration error: the mean distance of the two over bins of confidence, each bin counted by its "
    "voxels; 0 is calibrated. It is that of all cases together; below it, the mean ± standard deviation of each case’s "
    "own. Most voxels of a scan are background that nobody would mistake: those near a structure of the reference or "
    "the prediction tell more. In the diagrams a bar ends at the accuracy of its bin, and what is hatched lies between "
    "that and the mean confidence. Below: the share of the voxels in each bin, on a logarithmic scale."
)


def calibration_html(table: pd.DataFrame | None) -> str:
    """A line and a reliability diagram for each choice of voxels in a table of `experiments.calibration`.

    A sentence for None and for an empty table.
    """
    if table is None or table.empty:
        return sentence("No case has both a map of how sure the prediction was and a reference for all classes.")
    body, charts = "", {}
    for voxels, rows in table.groupby("voxels", sort=False):
        bins, name = pooled(_records(rows)), f"{str(voxels).capitalize()}{' voxels' * (voxels == 'all')}"
        each = np.array([_error(_records(part)) for _, part in rows.groupby("case")])
        body += f"<tr>{row_name(name)}{_cells(bins, each[np.isfinite(each)])}</tr>"
        if any(row["n"] for row in bins):
            charts[f"Reliability diagram, {voxels}"] = reliability_chart(bins, f"{name}: ECE {number(_error(bins), 3)}")
    made = table_html([""], ["ECE", "Confidence", "Accuracy", "Difference", "Voxels"], body)
    return made + charts_html(charts) + sentence(EXPLAINED)


def _records(rows: pd.DataFrame) -> list[Any]:
    return rows.to_dict("records")


def _error(bins: Bins) -> float:
    return calibration_error(*([row[name] for row in bins] for name in ("n", "confidence", "accuracy")))


def _cells(bins: Bins, each: np.ndarray) -> str:
    """The ECE of all and of each case, the mean confidence and accuracy, the difference, and how many voxels."""
    full = [row for row in bins if row["n"]]
    n = sum(row["n"] for row in full)
    if not n:
        return "<td>–</td>" * 4 + "<td>0</td>"
    confidence, accuracy = (sum(row["n"] * row[name] for row in full) / n for name in ("confidence", "accuracy"))
    sd = float(each.std(ddof=1)) if len(each) > 1 else float("nan")
    cases = mean_sd(Spread(float(each.mean()), sd, float(np.median(each)), len(each)), 3)
    cells = [f"{number(_error(bins), 3)}<small>{cases}</small>", number(confidence, 3), number(accuracy, 3)]
    cells += [f"{confidence - accuracy:+.3f}".replace("-", "−"), f"{n:,}".replace(",", "\u2009")]
    return "".join(f"<td>{cell}</td>" for cell in cells)


def reliability_chart(bins: Bins, title: str) -> bytes:
    """Accuracy over confidence in bins (rows of `metrics.reliability`), and the share of voxels in each, as SVG."""
    return chart(partial(_draw, bins, title), 3.6, (3, 1))


def _draw(bins: Bins, title: str, upper: Axes, lower: Axes) -> None:
    full = [row for row in bins if row["n"]]
    middle, width = np.array([(r["low"] + r["high"]) / 2 for r in full]), np.array([r["high"] - r["low"] for r in full])
    n, sure, right = (np.array([row[name] for row in full], float) for name in ("n", "confidence", "accuracy"))
    upper.bar(middle, right, 0.9 * width, color=BLUE, alpha=0.75, linewidth=0, zorder=2, label="accuracy")
    gap: dict[str, Any] = {"facecolor": "none", "edgecolor": ORANGE, "linewidth": 0.9, "hatch": "/////", "zorder": 3}
    upper.bar(middle, sure - right, 0.9 * width, right, label="difference to confidence", **gap)
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.0, zorder=4, label="calibrated")
    upper.set(title=title, xlim=(0, 1), ylim=(0, 1.005), ylabel="accuracy")
    upper.tick_params(labelbottom=False)
    upper.legend(loc="upper left", handlelength=1.8)
    share = n / n.sum()
    lower.bar(middle, share, 0.9 * width, color=PALE, edgecolor=INK, linewidth=0.8, zorder=2)
    lower.set(xlim=(0, 1), yscale="log", ylim=(min(1e-4, share.min() / 2), 2), xlabel="confidence", ylabel="voxels")
    lower.set_yticks([1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
    lower.minorticks_off()
