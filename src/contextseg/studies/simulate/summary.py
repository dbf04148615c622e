"""Results of simulated annotators: means over structures, slices for a goal, a Markdown page."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np

from contextseg.errors import plural
from contextseg.studies.simulate.study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

CURVE_COLUMNS = ["start", "trained", "way", "rule"]
"""The columns of the table that tell one curve from another."""


def means(table: DataFrame, metric: str) -> DataFrame:
    """Mean of a metric over structures, for each curve and round.

    A structure is one class of one case.

    Args:
        table: Rows as in `annotator.csv`.
        metric: Name of a column.

    Returns:
        A row for each curve and round: `CURVE_COLUMNS`, round, mean, sd (the sample's; NaN for one
        structure), low and high (the quartiles), and n.
    """
    groups = table.groupby([*CURVE_COLUMNS, "round"], sort=False)[metric]
    out = groups.agg(mean="mean", sd="std", n="count")
    out["low"], out["high"] = groups.quantile(0.25), groups.quantile(0.75)
    return out.reset_index()


def slices_needed(table: DataFrame, goal: float) -> DataFrame:
    """Number of labelled slices at which Dice first reaches a goal, for each curve.

    Args:
        table: Rows as in `annotator.csv`.
        goal: The Dice to reach.

    Returns:
        A row for each curve: `CURVE_COLUMNS`, slices (the median over structures, inf where half of
        them do not get there), reached (how many get there), and n.

    Example:
        >>> import pandas as pd
        >>> one = dict.fromkeys(CURVE_COLUMNS, "x") | {"case": "a", "class": "k"}
        >>> points = ((3, 0.7), (4, 0.92), (5, 0.89))
        >>> table = pd.DataFrame([one | {"slices": n, "dsc": dice} for n, dice in points])
        >>> [line] = slices_needed(table, 0.9).to_dict("records")
        >>> line["slices"], line["reached"], line["n"]
        (4.0, 1, 1)
    """
    reached = table["slices"].where(table["dsc"] >= goal, inf).astype(float)
    first = reached.groupby(
        [table[name] for name in [*CURVE_COLUMNS, "case", "class"]], sort=False
    ).min()
    groups = first.groupby(level=CURVE_COLUMNS, sort=False)
    out = groups.median().to_frame("slices")
    out["reached"] = groups.agg(lambda s: int(np.isfinite(s).sum()))
    out["n"] = groups.size()
    return out.reset_index()


def summary(table: DataFrame, study: Study, goal: float = 0.9) -> str:
    """A Markdown page: tables for each start, for classes in the model's training and others.

    Args:
        table: Rows as in `annotator.csv`.
        study: What was simulated.
        goal: The Dice for `slices_needed`.

    Returns:
        The page.
    """
    parts = [
        "# Simulated annotator",
        f"Each class by itself, {study.plane} slices; {study.first} at the start, then one a "
        "round. Mean ± standard deviation over structures (a class of a case). Rule `worst` "
        "corrects the slice with the worst Dice and `errors` the one with most wrong pixels, "
        "which takes the truth to know; `advice` is what `contextseg propagate --suggest` names, "
        f"which does not see it. NSD at {study.tolerance_mm:g} mm. Labelled slices are right, and "
        "count, but in the last table.",
    ]
    for (start, trained), part in table.groupby(["start", "trained"], sort=False):
        cases, classes = part["case"].nunique(), ", ".join(part["class"].unique())
        parts.append(
            f"## {heading(str(start), str(trained))}\n\n{plural(cases, 'case')}; {classes}."
        )
        parts.append(
            f"![Dice and NSD against labelled slices](curves-{slug(str(start), str(trained))}.svg)"
        )
        for metric, title in (
            ("dsc", "Dice"),
            ("nsd", "NSD"),
            ("dsc_rest", "Dice of the slices not labelled"),
        ):
            parts.append(_markdown(part, metric, title, study, goal if metric == "dsc" else None))
    return "\n\n".join(parts) + "\n"


def _markdown(part: DataFrame, metric: str, title: str, study: Study, goal: float | None) -> str:
    """The means of one metric: a line for each way and rule, a column for some of the rounds."""
    shown = [
        i for i in range(study.rounds + 1) if i in (0, 1, 2, 3, study.rounds) or i & (i - 1) == 0
    ]
    reaching = "" if goal is None else f" slices for Dice {goal:g} |"
    counts = " | ".join(str(study.first + i) for i in shown)
    head = f"| {title}: labelled slices | {counts} |{reaching}"
    lines = [head, "|---|" + "--:|" * (len(shown) + bool(reaching))]
    table = means(part, metric)
    need = slices_needed(part, goal or 1)
    for (way, rule), curve in table.groupby(["way", "rule"], sort=False):
        cells = curve.set_index("round")
        texts = [f"{cells['mean'][i]:.3f} ± {cells['sd'][i]:.3f}" for i in shown]
        line = f"| {way}, {rule} | {' | '.join(texts)} |"
        if goal is not None:
            row = need[(need["way"] == way) & (need["rule"] == rule)].iloc[0]
            median = f"{row['slices']:g}" if np.isfinite(row["slices"]) else "not reached"
            line += f" {median} ({row['reached']} of {row['n']}) |"
        lines.append(line)
    return "\n".join(lines)


def heading(start: str, trained: str) -> str:
    """Title of a group of curves.

    Args:
        start: How the first slices were chosen.
        trained: "yes", "no" or "no model": whether the model was trained on these classes.

    Returns:
        A title in words.
    """
    what = {
        "yes": ", classes the model was trained on",
        "no": ", classes left out of the model's training",
    }
    return f"start: {start}{what.get(trained, '')}"


def slug(start: str, trained: str) -> str:
    """Name of a group of curves, for files.

    Args:
        start: How the first slices were chosen.
        trained: "yes", "no" or "no model": whether the model was trained on these classes.

    Returns:
        A name without blanks.
    """
    return start + {"yes": "-trained", "no": "-left-out"}.get(trained, "")
