"""One cell of the grid: a run, trained, validated, and shown the test split once.

What is chosen is chosen by validation. The test split is locked: before a run's test cases are scored, the digest of
its weights goes into `test_evaluations.jsonl`, and the same run with other weights is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from contextseg.data.layouts import Case
from contextseg.disk import Problem, writing
from contextseg.job import main_job, predict_cases, references, score, teach
from contextseg.methods import Method
from contextseg.run import Run, Watch, quiet
from contextseg.settings import Settings

if TYPE_CHECKING:
    from contextseg.compare.grid import Cell

TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True)
class Work:
    """A cell to be finished, in this process or another: it pickles, and `vars` of it is JSON.

    log    the file that counts evaluations of the test split.   test: whether this run's is due.
    """

    name: str
    folder: str
    settings: dict[str, Any]
    log: str
    test: bool

    def __call__(self, watch: Watch = quiet) -> None:
        """Finish the cell; what is done already is not done again. Raises `Problem`, or `train.Stopped`."""
        with alone(self.folder):
            _finish(self, watch)

    def checkpoint(self, *_: Any) -> Any:
        """What `submitit` puts back into the queue when the job's time is up: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _finish(work: Work, watch: Watch) -> None:
    def news(title: str, done: bool = False) -> AbstractContextManager[Callable[..., None]]:
        return quiet(title) if done else watch(f"{work.name} {title}")

    folder, settings = Path(work.folder), Settings.from_json(work.settings)
    run = Run(folder, settings, news)
    method = teach(run)
    if run.split[1]:
        validated = Run(folder, settings, news)
        validated.dataset = replace(run.dataset, test=())
        main_job(validated)
    tested = [case for case in run.dataset.test if case.label]
    if not work.test or not tested:
        return
    unlock(work.log, work.name, weights_digest(method), len(tested))
    if run.split[1]:
        with news(TEST) as tell:
            _test(run, method, tested, folder / TEST, tell)
    else:
        main_job(Run(folder, settings, news))


def _test(run: Run, method: Method, cases: Sequence[Case], folder: Path, tell: Callable[..., None]) -> None:
    """The test cases of a run that was validated, predicted and scored beside its stages."""
    data, members = run.dataset, [(method, run.plan)]
    failed = predict_cases(cases, members, run.settings.prediction, folder / "predictions", data.ending, tell)
    for name, why in failed.items():
        raise Problem(name, f"{len(failed)} of {len(cases)} test cases could not be predicted: {why}", "mend them")
    by_value = {name: [run.plan.values[k] for k in union] for name, union in run.plan.regions.items()}
    score(references(data, cases, folder / "predictions"), by_value, data.ignore, folder)


def tables(cell: Cell, validated: bool, tested: bool) -> dict[str, Path]:
    """Where the scores of each split are, of those that are there."""
    measured = next((p.parent / "metrics.csv" for p in sorted(cell.folder.glob("*-evaluate/done.json"))), None)
    found = {}
    if measured and (validated or tested):
        found[VALIDATION if validated else TEST] = measured
    if validated and tested and (cell.folder / TEST / "metrics.csv").exists():
        found[TEST] = cell.folder / TEST / "metrics.csv"
    return found


# --- the lock ---------------------------------------------------------------------------------------------------------


def unlock(log: str | Path, name: str, weights: str, cases: int) -> None:
    """Note that `name`, with these weights, is about to be scored on the test split; nothing if that was noted before.

    Raises `Problem` if it was scored with other weights.
    """
    for row in evaluations(log):
        if row["run"] == name:
            if row["weights"] == weights:
                return
            what = f"{name} was evaluated on the test split with other weights, on {row['time']}"
            raise Problem(log, what, "choose by validation (folds), then give what changed a name of its own")
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "run": name, "weights": weights, "cases": cases}
    with writing(log):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, (json.dumps(row) + "\n").encode())  # in one piece: several processes may append
            os.fsync(file)
        finally:
            os.close(file)


def evaluations(log: str | Path) -> list[dict[str, Any]]:
    """Every evaluation of the test split so far: time, run, weights, cases. Raises `Problem` for a damaged log."""
    path = Path(log)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except ValueError as error:
        raise Problem(
            path, f"line not in JSON ({error})", "mend it: it says what the test split was used for"
        ) from error


def weights_digest(method: Method) -> str:
    """16 hexadecimal digits that name the values of all weights, on whatever device they are."""
    hashed = hashlib.blake2b(digest_size=8)
    for name, value in sorted(method.state_dict().items()):
        hashed.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        hashed.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Nobody else works in this folder inside the block. Raises `Problem` if somebody does.

    The lock is the operating system's, so nothing is left behind by a process that was killed. Where there are no such
    locks (Windows, some network disks) nothing is checked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = open(Path(folder) / ".lock", "a", encoding="utf-8")  # noqa: SIM115
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(folder, "another process works in this folder", "wait for it to end, or stop it") from None
        except OSError:
            pass
        yield
