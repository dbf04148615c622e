"""A whole study, and the files that it leaves: its table, a summary, and the curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.cells import frame_text
from contextseg.console import ProgressBar, no_progress_bar
from contextseg.disk import replacing, write_text
from contextseg.errors import ContextsegError
from contextseg.studies.simulate.plot import curves_chart
from contextseg.studies.simulate.study import Study, simulate_cases
from contextseg.studies.simulate.summary import heading, slug, summary

if TYPE_CHECKING:
    from pandas import DataFrame


def run_study(
    study: Study,
    folder: Path,
    at_most: int | None = None,
    goal: float = 0.9,
    progress_bar: ProgressBar = no_progress_bar,
) -> DataFrame:
    """Do the study and write its results; finished cases are kept and not done again.

    Args:
        study: What to simulate.
        folder: Where the study is kept.
        at_most: Number of cases, in their order; None: all of `study_cases`.
        goal: A Dice; the summary has the number of slices that reach it.
        progress_bar: Shows the progress.

    Returns:
        The table, see `simulate_cases`.

    Raises:
        ContextsegError: As `simulate_cases`; if cases failed (the others are done and written);
            and if no case holds any of the classes.
    """
    with progress_bar("simulate") as progress:
        table, failed = simulate_cases(study, folder, at_most, progress)
    if len(table):
        write_results(table, study, folder, goal)
    if failed:
        reasons = "".join(f"\n  {why}" for why in failed.values())
        what = f"{len(failed)} of the cases could not be annotated:{reasons}\n"
        raise ContextsegError(", ".join(failed), what, "mend or remove them; all others are done")
    if not len(table):
        what = "no case holds any of the classes"
        raise ContextsegError(study.dataset, what, "choose other classes, or more cases")
    return table


def write_results(table: DataFrame, study: Study, folder: Path, goal: float = 0.9) -> str:
    """Write `annotator.csv`, `summary.md` and `curves-*.svg` into a folder.

    Args:
        table: All rows, from `simulate_cases`; at least one.
        study: What was simulated.
        folder: Where the files go.
        goal: A Dice; the summary has the number of slices that reach it.

    Returns:
        The summary, in Markdown.

    Raises:
        ContextsegError: If the disk cannot be written to.
    """
    text = summary(table, study, goal)
    write_text(folder / "annotator.csv", frame_text(table))
    write_text(folder / "summary.md", text)
    for (start, trained), part in table.groupby(["start", "trained"], sort=False):
        title, name = heading(str(start), str(trained)), slug(str(start), str(trained))
        with replacing(folder / f"curves-{name}.svg") as temporary:
            temporary.write_bytes(curves_chart(part, study.first, title))
    return text
