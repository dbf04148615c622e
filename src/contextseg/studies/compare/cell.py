"""One cell of the grid: a run that is trained, validated, and scored on the test split once.

What is chosen is chosen by validation. The test split is locked: before a run's test cases are
scored, the digest of its weights goes into `test_evaluations.jsonl`, and the same run with other
weights is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.layouts import Case
from contextseg.disk import lock_folder, read_json, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.inputs import read_json_lines
from contextseg.methods import Method
from contextseg.pipeline import references, run_pipeline, score, train_run
from contextseg.predict.record import weights_digest
from contextseg.predictor import Member, Predictor
from contextseg.runs import Run
from contextseg.settings import Settings

if TYPE_CHECKING:
    from contextseg.studies.compare.grid import Cell

TEST = "test"
VALIDATION = "validation"


FAILED = "failed.json"
"""The file in the folder of a run that has the error it ended with: where, what, remedy."""


@dataclass(frozen=True)
class Task:
    """A cell to finish, in this process or another: it pickles, and `vars` of it is JSON.

    Attributes:
        name: Name of the cell.
        folder: Folder of the run.
        settings: Settings of the run, as `Settings.to_json` gives them.
        log: The file that lists evaluations of the test split.
        test: Whether this run is scored on the test split.
    """

    name: str
    folder: str
    settings: dict[str, Any]
    log: str
    test: bool

    def __call__(self, progress_bar: ProgressBar = no_progress_bar) -> None:
        """Finish the cell; what is done already is not done again.

        Args:
            progress_bar: Shows the progress of each stage.

        Raises:
            ContextsegError: A stage cannot be done, or another process works on this cell.
            Stopped: The run was asked to stop.
        """
        with lock_folder(self.folder):
            failed = Path(self.folder) / FAILED
            failed.unlink(missing_ok=True)
            try:
                _finish(self, progress_bar)
            except ContextsegError as error:
                write_json(failed, vars(error))
                raise

    def checkpoint(self, *_: Any) -> Any:
        """The same task again, which `submitit` queues when the time of the job is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _Failure(TypedDict):
    """Why a cell failed."""

    where: str
    what: str
    remedy: str


def failure_of(folder: str | Path) -> str:
    """Why a cell failed the last time, in whatever process.

    Args:
        folder: Folder of the run.

    Returns:
        The message of its error; "" where it left none: it ended well, or was killed.
    """
    path = Path(folder) / FAILED
    if not path.exists():
        return ""
    why = read_json(path, _Failure)
    return str(ContextsegError(why["where"], why["what"], why["remedy"]))


def _finish(task: Task, progress_bar: ProgressBar) -> None:
    def cell_bar(title: str, done: bool = False) -> AbstractContextManager[Progress]:
        return no_progress_bar(title) if done else progress_bar(f"{task.name} {title}")

    run = Run(task.folder, Settings.from_json(task.settings), cell_bar)

    def predicted() -> list[Case]:
        return [*run.split[1], *(case for case in run.dataset.test if task.test and case.label)]

    method = train_run(run, predicted)
    validated = bool(run.split[1])
    if validated:
        run_pipeline(run, test=False)
    tested = [case for case in run.dataset.test if case.label]
    if not task.test or not tested:
        return
    log_test_evaluation(task.log, task.name, weights_digest(method), len(tested))
    if not validated:
        run_pipeline(run)
        return
    with cell_bar(TEST) as progress:
        _test(run, method, tested, progress)


def _test(run: Run, method: Method, cases: Sequence[Case], progress: Progress) -> None:
    """Predict and score the test cases of a run that was validated, in the folder `TEST`."""
    folder = run.folder / TEST
    predictions = folder / "predictions"
    predictor = Predictor([Member(method, run.plan)], run.settings.prediction)
    failed = predictor.predict_cases(cases, predictions, run.dataset.ending, progress)
    for name, why in failed.items():
        what = f"{len(failed)} of {len(cases)} test cases could not be predicted: {why}"
        raise ContextsegError(name, what, "mend them")
    pairs = references(run.dataset, cases, predictions)
    score(pairs, run.plan.region_values(), run.dataset.ignore, folder)


@dataclass(frozen=True)
class Scores:
    """Where the scores of a cell on one split lie.

    Attributes:
        table: A row for each case and class.
        predictions: Folder of the label maps that were scored.
    """

    table: Path
    predictions: Path


def cell_scores(cell: Cell) -> dict[str, Scores]:
    """Where the scores of a cell lie.

    Args:
        cell: The cell; its run may be unfinished, or not begun.

    Returns:
        `Scores` by split, of those that are there.
    """
    run = begun_run(cell)
    if run is None or not run.done("evaluate"):
        return {}
    own = Scores(run.stage_folder("evaluate") / "metrics.csv", run.stage_folder("predict"))
    if not cell.validated:
        return {TEST: own}
    scores = {VALIDATION: own}
    tested = Scores(cell.folder / TEST / "metrics.csv", cell.folder / TEST / "predictions")
    if tested.table.exists():
        scores[TEST] = tested
    return scores


def begun_run(cell: Cell) -> Run | None:
    """The run of a cell as it lies on disk; None where it is not begun."""
    return Run.open(cell.folder) if (cell.folder / "run.json").exists() else None


# --- the lock -------------------------------------------------------------------------------------


def log_test_evaluation(log: str | Path, name: str, weights: str, cases: int) -> None:
    """Log that a run is about to be scored on the test split; a second time changes nothing.

    Args:
        log: The log, a JSON object in each line; made if it is not there.
        name: Name of the run.
        weights: Digest of its weights, or of its predictions.
        cases: Number of test cases.

    Raises:
        ContextsegError: The run was scored with other weights before, or the log is damaged.
    """
    for row in logged_evaluations(log):
        if row["run"] == name:
            if row["weights"] == weights:
                return
            what = f"{name} was evaluated on the test split with other weights, on {row['time']}"
            remedy = "choose by validation (folds), then give what changed a name of its own"
            raise ContextsegError(log, what, remedy)
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": name,
        "weights": weights,
        "cases": cases,
    }
    line = (json.dumps(row) + "\n").encode()
    with writing(log):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)  # in one piece: several processes may append
            os.fsync(file)
        finally:
            os.close(file)


def logged_evaluations(log: str | Path) -> list[dict[str, Any]]:
    """Every evaluation of the test split so far.

    Args:
        log: The log of `log_test_evaluation`; it may be missing.

    Returns:
        A dict for each: time, run, weights, cases.

    Raises:
        ContextsegError: The log is damaged.
    """
    return read_json_lines(log, whole=True)
