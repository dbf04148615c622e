"""What a comparison will do and for how long, before it does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from contextseg.compare.comparison import due_splits, finished
from contextseg.compare.grid import Cell, Grid, cells
from contextseg.data.cache import fingerprint
from contextseg.data.layouts import Dataset, open_dataset
from contextseg.data.plan import Facts
from contextseg.data.roi import restricted
from contextseg.report.numbers import duration, plural
from contextseg.run import Run, Watch, planned, quiet

DONE, BEGUN, TO_DO = "done", "begun", "to do"
TIMED_STEPS, TIMED_CASES = 3, 2


@dataclass(frozen=True)
class Forecast:
    """What is left of each cell: (its name, its state, seconds of training left); the seconds are an estimate."""

    cells: tuple[tuple[str, str, float], ...]

    @property
    def seconds(self) -> float:
        """Of training, all cells one after the other."""
        return sum(seconds for _, _, seconds in self.cells)

    def __str__(self) -> str:
        """A line for each cell, and the total."""
        width = max(len(name) for name, _, _ in self.cells)
        lines = [
            f"{name:{width}}  {state:5}  {'' if state == DONE else duration(seconds)}".rstrip()
            for name, state, seconds in self.cells
        ]
        count = {s: sum(state == s for _, state, _ in self.cells) for s in (DONE, BEGUN, TO_DO)}
        states = ", ".join(f"{n} {state}" for state, n in count.items() if n)
        lines += [f"{plural(len(self.cells), 'run')}: {states}"]
        if self.seconds:
            told = f"about {duration(self.seconds)} of training on this machine, one run after the other: an estimate"
            lines += [f"{told} from {TIMED_STEPS} steps of each method; preprocessing and prediction come on top"]
        return "\n".join(lines)


def forecast(grid: Grid, *, test: bool = True, watch: Watch = quiet) -> Forecast:
    """What `compare` would do: nothing is written into the grid's folder.

    Reads the scans once, as planning does, and takes a few steps of each method in a temporary folder, of which the
    first, which is slower, does not count. Raises `Problem` as `compare` does, but for what `contextseg check` finds.
    """
    data = restricted(open_dataset(grid.dataset), grid.roi)
    made = cells(grid, data, keep_budgets=False)
    due = due_splits(made, data, test)
    facts: list[Facts] = []
    costs: dict[str, dict[str, float]] = {}
    out = []
    for cell in made:
        if finished(cell, due[cell.name]):
            out.append((cell.name, DONE, 0.0))
            continue
        if not facts:
            with watch("plan") as tell:
                facts = fingerprint(data, data.train, progress=tell)
        if cell.method not in costs:
            with watch(f"{cell.method}: {TIMED_STEPS} steps") as tell:
                costs[cell.method] = step_seconds(cell, data, facts, tell)
        steps, logged = cell.settings.training.steps, _logged(cell.folder)
        left = {stage: max(steps - logged.get(stage, 0), 0) for stage in costs[cell.method]}
        seconds = sum(costs[cell.method][stage] * n for stage, n in left.items())
        out.append((cell.name, BEGUN if logged else TO_DO, seconds))
    return Forecast(tuple(out))


def step_seconds(
    cell: Cell, data: Dataset, facts: Sequence[Facts], tell: Callable[..., None] = lambda *_: None
) -> dict[str, float]:
    """Seconds of one step in each training stage of a cell's method, measured on a few of its cases."""
    training = replace(
        cell.settings.training, steps=1 + TIMED_STEPS, log_every=1, check_every=0, save_every=10**9, tensorboard=False
    )
    with TemporaryDirectory() as folder:
        run = Run(folder, replace(cell.settings, training=training))
        taught = run.split[0]
        few = [case for case in taught if case.label][:TIMED_CASES]
        few += [case for case in taught if not case.label][:TIMED_CASES]
        run.dataset, run.split = replace(data, train=tuple(few), test=()), (tuple(few), ())
        run.use_plan(planned(data, facts, cell.settings.planning))
        run.count = 2  # check and plan are done
        run.preprocess()
        run.fit()
        logs = {path.parent.name: _rows(path) for path in sorted(Path(folder).glob("*-train/log.jsonl"))}
    return {stage: (rows[-1]["seconds"] - rows[0]["seconds"]) / TIMED_STEPS for stage, rows in logs.items()}


def _logged(folder: Path) -> Mapping[str, int]:
    """The last step in the log of each training stage."""
    logs = {path.parent.name: _rows(path) for path in folder.glob("*-train/log.jsonl")}
    return {stage: rows[-1]["step"] for stage, rows in logs.items() if rows}


def _rows(log: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [row for row in rows if row["part"] == "train"]
