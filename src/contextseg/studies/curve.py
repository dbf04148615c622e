"""Label efficiency: each method against the number of labelled patients that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from contextseg.cells import read_table_file
from contextseg.console import ProgressBar, no_progress_bar
from contextseg.evaluation.learning_curve import needed_text
from contextseg.metrics import DSC
from contextseg.studies.compare.comparison import compare
from contextseg.studies.compare.grid import Grid
from contextseg.studies.compare.written import Comparison

if TYPE_CHECKING:
    from pandas import DataFrame

GOALS = (0.7, 0.8, 0.9)
"""Dice scores to reach, unless others are asked for."""


@dataclass(frozen=True, repr=False)
class Curve:
    """A comparison over label budgets. `str` of it is what `contextseg curve` prints.

    Attributes:
        comparison: The comparison.
        tables: The curves by split: columns method, labels, mean, low, high and metric. {} where
            all runs have the same budget.
        needed: By split, a Markdown table of how many labelled patients reach each goal.
    """

    comparison: Comparison
    tables: Mapping[str, DataFrame]
    needed: Mapping[str, str]

    def __repr__(self) -> str:
        splits = " and ".join(self.tables) or "one budget"
        return f"Curve({str(self.comparison.folder)!r}, {splits})"

    def __str__(self) -> str:
        """The comparison, then the labelled patients needed on each split."""
        parts = [str(self.comparison)]
        for split, text in self.needed.items():
            parts.append(f"\n{split}\n\n{text}\n\n{self.comparison.curves[split]}")
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        parts = []
        for split, table in self.tables.items():
            rows = table.to_html(index=False, float_format="{:.3f}".format)
            parts.append(f"<p>{split}</p>{rows}")
        return "".join(parts)


def curve(
    grid: Grid,
    goals: Sequence[float] = GOALS,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    options: Mapping[str, Any] | None = None,
    test: bool = True,
    progress_bar: ProgressBar = no_progress_bar,
) -> Curve:
    """Compare methods over label budgets, and find how many labelled patients reach each goal.

    Args:
        grid: What is compared, with several budgets. The scans that a budget leaves out count as
            unlabelled.
        goals: Dice scores to reach.
        jobs: Number of cells at a time.
        cluster: As for `compare`.
        options: As for `compare`.
        test: Score the test split. False keeps it locked, for choosing.
        progress_bar: Shows the progress of each stage.

    Returns:
        The comparison, with a curve for each split.

    Raises:
        ContextsegError: As `compare`.
    """

    comparison = compare(
        grid, jobs=jobs, cluster=cluster, options=options, test=test, progress_bar=progress_bar
    )
    tables = {
        split: read_table_file(path, ("method",)) for split, path in comparison.curves.items()
    }
    needed = {
        split: needed_text(table[table["metric"] == DSC], list(goals))
        for split, table in tables.items()
    }
    return Curve(comparison, tables, needed)
