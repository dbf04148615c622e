"""What a comparison will do and for how long, before it does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contextseg.console import ProgressBar, no_progress_bar
from contextseg.data.cache import fingerprint
from contextseg.data.layouts import Case, Dataset, open_dataset
from contextseg.data.plan import Facts, planned
from contextseg.data.roi import restricted
from contextseg.errors import plural
from contextseg.inputs import read_json_lines
from contextseg.length import asked_seconds, seconds_spent
from contextseg.reports.numbers import duration
from contextseg.runs import Run
from contextseg.studies.compare.cell import begun_run
from contextseg.studies.compare.comparison import due_splits, finished
from contextseg.studies.compare.grid import Cell, Grid, cells
from contextseg.training import DEFAULT_STEPS, pick_device
from contextseg.training_log import LogRow

DONE = "done"
BEGUN = "begun"
TO_DO = "to do"
TIMED_STEPS = 3
TIMED_CASES = 2


@dataclass(frozen=True)
class Forecast:
    """What is left of each cell. `str` of it has a line for each cell, and the total.

    Attributes:
        cells: (name, state, seconds of training left) of each cell; the seconds are an estimate.
    """

    cells: tuple[tuple[str, str, float], ...]

    @property
    def seconds(self) -> float:
        """Seconds of training left, all cells one after the other."""
        return sum(seconds for _, _, seconds in self.cells)

    def __str__(self) -> str:
        """A line for each cell, and the total."""
        width = max(len(name) for name, _, _ in self.cells)
        lines = []
        for name, state, seconds in self.cells:
            time = "" if state == DONE else duration(seconds)
            lines.append(f"{name:{width}}  {state:5}  {time}".rstrip())
        states = [state for _, state, _ in self.cells]
        counts = [f"{states.count(s)} {s}" for s in (DONE, BEGUN, TO_DO) if s in states]
        lines.append(f"{plural(len(self.cells), 'run')}: {', '.join(counts)}")
        if self.seconds:
            lines += [
                f"about {duration(self.seconds)} of training on this machine, one run after the "
                f"other: an estimate from {TIMED_STEPS} steps of each method; preprocessing and "
                "prediction come on top"
            ]
        return "\n".join(lines)


def forecast(
    grid: Grid, *, test: bool = True, progress_bar: ProgressBar = no_progress_bar
) -> Forecast:
    """What `compare` would do; nothing is written into the grid's folder.

    The scans are read once, as planning does. A few steps of each method are taken in a temporary
    folder; the first of them, which is slower, does not count.

    Args:
        grid: What would be compared.
        test: Whether the test split would be scored.
        progress_bar: Shows the progress of each stage.

    Returns:
        The state of each cell, and the seconds of training that are left.

    Raises:
        ContextsegError: As `compare`, but not for what `contextseg check` finds.
    """
    data = restricted(open_dataset(grid.dataset), grid.roi)
    grid_cells = cells(grid, data, keep_budgets=False)
    due = due_splits(grid_cells, data, test)
    facts: list[Facts] = []
    costs: dict[str, list[float]] = {}
    forecasts = []
    for cell in grid_cells:
        if finished(cell, due[cell.name]):
            forecasts.append((cell.name, DONE, 0.0))
            continue
        if not facts:
            with progress_bar("plan") as progress:
                facts = fingerprint(data, data.train, progress=progress)
        if cell.method not in costs:
            with progress_bar(f"{cell.method}: {TIMED_STEPS} steps"):
                costs[cell.method] = step_seconds(cell, data, facts)
        run = begun_run(cell)
        steps_done = _steps_done(run)
        training = cell.settings.training
        time_s = asked_seconds(training, pick_device(training.device))
        seconds = max(time_s - (seconds_spent(run) if run else 0.0), 0.0)
        for stage, cost in enumerate(costs[cell.method] if not time_s else ()):
            done = steps_done[stage] if stage < len(steps_done) else 0
            seconds += cost * max((training.steps or DEFAULT_STEPS) - done, 0)
        forecasts.append((cell.name, BEGUN if any(steps_done) else TO_DO, seconds))
    return Forecast(tuple(forecasts))


def step_seconds(cell: Cell, data: Dataset, facts: Sequence[Facts]) -> list[float]:
    """Seconds of one step in each training stage of a cell's method, measured on a few cases.

    Args:
        cell: The cell.
        data: Its data set.
        facts: Facts of the training cases.

    Returns:
        Seconds of a step by training stage, in the order of the recipe.
    """
    training = replace(
        cell.settings.training,
        time_s=0,
        steps=1 + TIMED_STEPS,
        log_every=1,
        check_every=0,
        save_every=10**9,
        tensorboard=False,
    )
    settings = replace(cell.settings, training=training)
    with TemporaryDirectory() as folder:
        few = _few(Run(folder, settings).split[0])
        run = Run(folder, settings, cases=(few, ()))
        run.use_plan(planned(data, facts, settings.planning))
        run.preprocess()
        run.fit()
        logs = [_training_rows(stage / "log.jsonl") for stage in run.stage_folders("train")]
    return [(rows[-1]["seconds"] - rows[0]["seconds"]) / TIMED_STEPS for rows in logs]


def _few(training: Sequence[Case]) -> tuple[Case, ...]:
    """Some labelled cases, and as many unlabelled ones."""
    labelled = [case for case in training if case.label]
    unlabelled = [case for case in training if not case.label]
    return (*labelled[:TIMED_CASES], *unlabelled[:TIMED_CASES])


def _steps_done(run: Run | None) -> list[int]:
    """The last step in the log of each training stage, in the order of the recipe."""
    if run is None:
        return []
    logs = [_training_rows(stage / "log.jsonl") for stage in run.stage_folders("train")]
    return [rows[-1]["step"] if rows else 0 for rows in logs]


def _training_rows(log: Path) -> list[dict[str, Any]]:
    """The rows of training in a log; a last line that is still being written is left out."""
    return [row for row in read_json_lines(log, LogRow) if row["part"] == "train"]
