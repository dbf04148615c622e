"""The learning curve: how good each method is with how many labels, and where it reaches a goal."""

from __future__ import annotations

from math import inf, isnan, nan
from typing import TYPE_CHECKING

from contextseg.metrics import DSC, METRICS, OVERALL

if TYPE_CHECKING:
    from pandas import DataFrame


def learning_curve(
    means: DataFrame, everything: int, metric: str = DSC, class_name: str | None = None
) -> DataFrame:
    """The curve of every method over its label budgets.

    Args:
        means: The table of `statistics.describe` by method and budget.
        everything: Number of labelled patients, which the budget "all" stands for.
        metric: Name of the metric.
        class_name: Name of the class. None: all classes together, or the only one there is.

    Returns:
        One line for each method and budget with a value: method, labels, mean, low, high; by
        method, fewest labels first.

    Raises:
        KeyError: The table has no budgets.
    """
    classes = list(dict.fromkeys(means["class"]))
    class_name = class_name or (OVERALL if OVERALL in classes else classes[0])
    selected = (means["class"] == class_name) & (means["metric"] == metric)
    lines = means[selected & means["mean"].notna()].copy()
    lines["labels"] = [
        everything if budget == "all" else int(budget) for budget in lines["budget"].astype(str)
    ]
    lines["method"] = lines["method"].astype(str)
    lines = lines.sort_values(["method", "labels"])
    return lines[["method", "labels", "mean", "low", "high"]].reset_index(drop=True)


def labels_needed(curve: DataFrame, goal: float, higher: bool = True) -> dict[str, float]:
    """How many labelled patients each method needs, by straight lines between its budgets.

    The first crossing counts. A method that reaches the goal with its smallest budget needs at most
    that: the budget itself.

    Args:
        curve: The table of `learning_curve`.
        goal: Mean to reach.
        higher: Whether a higher mean is better.

    Returns:
        Method -> number of labelled patients; NaN where no budget reaches the goal.

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"method": "a", "labels": [2, 10], "mean": [0.5, 0.7]})
        >>> labels_needed(rows, 0.6), labels_needed(rows, 0.5), labels_needed(rows, 0.9)
        ({'a': 6.0}, {'a': 2.0}, {'a': nan})
    """
    sign = 1 if higher else -1
    needed = {}
    for method, part in curve.groupby("method", sort=False):
        needed[str(method)] = nan
        mean_before = -inf
        labels_before = 0.0
        for labels, mean in zip(part["labels"], sign * part["mean"]):
            if mean >= sign * goal:
                share = 1.0
                if mean_before > -inf:
                    share = (sign * goal - mean_before) / (mean - mean_before)
                needed[str(method)] = float(labels_before + share * (labels - labels_before))
                break
            mean_before = float(mean)
            labels_before = float(labels)
    return needed


def needed_text(curve: DataFrame, goals: list[float], metric: str = DSC) -> str:
    """The labelled patients needed, as a Markdown table.

    Args:
        curve: The table of `learning_curve`.
        goals: Means to reach, a column each.
        metric: Name of the metric, which says which way is better.

    Returns:
        The table, with a row for each method.
    """
    heading = METRICS[metric].title
    higher = METRICS[metric].direction == "higher"
    head = f"| Labelled patients needed for | {' | '.join(f'{heading} {g:g}' for g in goals)} |"
    lines = [head, "|---|" + "--:|" * len(goals)]
    needed = [labels_needed(curve, goal, higher) for goal in goals]
    for method in dict.fromkeys(curve["method"]):
        cells = ["not reached" if isnan(n[method]) else f"{n[method]:.1f}" for n in needed]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
