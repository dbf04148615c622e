"""What a simulated annotator comes to: means over structures, slices needed for a goal, a page of Markdown."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np

from contextseg.fill.annotator_study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

LINE = ["start", "taught", "way", "rule"]
"""The columns of the table that tell one curve from another."""


def means(table: DataFrame, metric: str) -> DataFrame:
    """One line for each curve (`LINE`) and round: mean, sd, low, high (quartiles), n; over structures.

    A structure is one class of one case. sd is the sample's, NaN for one structure.
    """
    groups = table.groupby([*LINE, "round"], sort=False)[metric]
    out = groups.agg(mean="mean", sd="std", n="count")
    out["low"], out["high"] = groups.quantile(0.25), groups.quantile(0.75)
    return out.reset_index()


def needed(table: DataFrame, goal: float) -> DataFrame:
    """For each curve: how many slices are labelled when Dice first reaches `goal`: the median over structures (inf
    where half of them do not get there), and how many of the n get there.

    >>> import pandas as pd
    >>> one = dict.fromkeys(LINE, "x") | {"case": "a", "class": "k"}
    >>> table = pd.DataFrame([one | {"slices": s, "dsc": d} for s, d in ((3, 0.7), (4, 0.92), (5, 0.89))])
    >>> [line] = needed(table, 0.9).to_dict("records")
    >>> line["slices"], line["reached"], line["n"]
    (4.0, 1, 1)
    """
    there = table["slices"].where(table["dsc"] >= goal, inf).astype(float)
    first = there.groupby([table[name] for name in [*LINE, "case", "class"]], sort=False).min()
    groups = first.groupby(level=LINE, sort=False)
    out = groups.median().to_frame("slices")
    out["reached"], out["n"] = groups.agg(lambda s: int(np.isfinite(s).sum())), groups.size()
    return out.reset_index()


def summary(table: DataFrame, study: Study, goal: float = 0.9) -> str:
    """Markdown: a table for each start, for classes that were taught and those that were not."""
    parts = [
        "# Simulated annotator",
        f"Each class by itself, {study.plane} slices; {study.first} at the start, then one a round. Mean ± standard "
        "deviation over structures (a class of a case). Rule `worst` corrects the slice with the worst Dice and "
        "`errors` the one with most wrong pixels, which takes the truth to know; `advice` is what `contextseg "
        f"propagate --suggest` says, which does not see it. NSD at {study.tolerance_mm:g} mm. Labelled slices are "
        "right, and count, but in the last table.",
    ]
    for (start, taught), part in table.groupby(["start", "taught"], sort=False):
        cases, classes = part["case"].nunique(), ", ".join(part["class"].unique())
        parts.append(f"## {heading(str(start), str(taught))}\n\n{cases} cases; {classes}.")
        parts.append(f"![Dice and NSD against labelled slices](curves-{slug(str(start), str(taught))}.svg)")
        for metric, title in (("dsc", "Dice"), ("nsd", "NSD"), ("dsc_rest", "Dice of the slices not labelled")):
            parts.append(_markdown(part, metric, title, study, goal if metric == "dsc" else None))
    return "\n\n".join(parts) + "\n"


def _markdown(part: DataFrame, metric: str, title: str, study: Study, goal: float | None) -> str:
    """The means of one measure: a line for each way and rule, a column for the first rounds and some later ones."""
    shown = [i for i in range(study.rounds + 1) if i in (0, 1, 2, 3, study.rounds) or i & (i - 1) == 0]
    reaching = "" if goal is None else f" slices for Dice {goal:g} |"
    head = f"| {title}: labelled slices | {' | '.join(str(study.first + i) for i in shown)} |{reaching}"
    lines = [head, "|---|" + "--:|" * (len(shown) + bool(reaching))]
    table, need = means(part, metric), needed(part, goal or 1)
    for (way, rule), curve in table.groupby(["way", "rule"], sort=False):
        cells = curve.set_index("round")
        words = [f"{cells['mean'][i]:.3f} ± {cells['sd'][i]:.3f}" for i in shown]
        line = f"| {way}, {rule} | {' | '.join(words)} |"
        if goal is not None:
            row = need[(need["way"] == way) & (need["rule"] == rule)].iloc[0]
            median = f"{row['slices']:g}" if np.isfinite(row["slices"]) else "not reached"
            line += f" {median} ({row['reached']} of {row['n']}) |"
        lines.append(line)
    return "\n".join(lines)


def heading(start: str, taught: str) -> str:
    """What a group of curves is, in words."""
    what = {"yes": ", classes the model was taught", "no": ", classes left out of the model's training"}
    return f"start: {start}{what.get(taught, '')}"


def slug(start: str, taught: str) -> str:
    """The same in the name of a file."""
    return start + {"yes": "-taught", "no": "-left-out"}.get(taught, "")
