"""How good each method is with how many labels: the curve, and where it reaches a goal."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


def learning_curve(means: DataFrame, everything: int, metric: str = "dsc", klass: str | None = None) -> DataFrame:
    """One line for each method and label budget: method, labels, mean, low, high; by method, fewest labels first.

    means       `statistics.describe` by method and budget, "all" being a budget of `everything` labelled patients.
    klass       None for all classes together, or the only one there is.

    A budget without a value is left out. Raises KeyError for a table without budgets.
    """
    from contextseg.experiments.statistics import OVERALL

    there = list(dict.fromkeys(means["class"]))
    klass = klass or (OVERALL if OVERALL in there else there[0])
    lines = means[(means["class"] == klass) & (means["metric"] == metric) & means["mean"].notna()].copy()
    lines["labels"] = [everything if budget == "all" else int(budget) for budget in lines["budget"].astype(str)]
    lines["method"] = lines["method"].astype(str)
    return lines.sort_values(["method", "labels"])[["method", "labels", "mean", "low", "high"]].reset_index(drop=True)


def labels_needed(curve: DataFrame, goal: float, higher: bool = True) -> dict[str, float]:
    """For each method how many labelled patients reach `goal`, by straight lines between the budgets that were run.

    The first crossing counts. A method that reaches it with its smallest budget needs at most that: the budget itself.
    NaN where none does.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"method": "a", "labels": [2, 10], "mean": [0.5, 0.7]})
    >>> labels_needed(rows, 0.6), labels_needed(rows, 0.5), labels_needed(rows, 0.9)
    ({'a': 6.0}, {'a': 2.0}, {'a': nan})
    """
    sign = 1 if higher else -1
    found = {}
    for method, part in curve.groupby("method", sort=False):
        needed, before, at = nan, -inf, 0.0
        for labels, mean in zip(part["labels"], sign * part["mean"]):
            if mean >= sign * goal:
                share = 1.0 if before == -inf else (sign * goal - before) / (mean - before)
                needed = float(at + share * (labels - at))
                break
            before, at = float(mean), float(labels)
        found[str(method)] = needed
    return found


def needed_text(curve: DataFrame, goals: list[float], metric: str = "DSC") -> str:
    """ "Labelled patients needed" as a Markdown table: a row for each method, a column for each goal."""
    head = f"| Labelled patients needed for | {' | '.join(f'{metric} {goal:g}' for goal in goals)} |"
    lines = [head, "|---|" + "--:|" * len(goals)]
    needed = [labels_needed(curve, goal) for goal in goals]
    for method in dict.fromkeys(curve["method"]):
        cells = ["not reached" if n[method] != n[method] else f"{n[method]:.1f}" for n in needed]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
