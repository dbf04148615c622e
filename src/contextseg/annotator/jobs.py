"""Work that takes long: one job after another in a thread of its own, with progress and an end."""

from __future__ import annotations

import itertools
import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from contextseg.errors import ContextsegError
from contextseg.memory_errors import MEMORY_REMEDY, out_of_memory

Publish = Callable[[dict[str, Any]], None]
"""Called with an event, JSON content, from any thread."""

_KEPT = 50


class Cancelled(Exception):
    """Somebody cancelled the job; raised where it reports its progress."""


@dataclass
class Job:
    """One job.

    Attributes:
        number: Its number.
        kind: What it does: "refine" or "train".
        case: The number of its case; None where it is about all.
        state: "waiting", "running", "done", "failed" or "cancelled".
        note: The reason of a failure, or what was made.
    """

    number: int
    kind: str
    case: int | None
    state: str = "waiting"
    note: str = ""
    done: int = 0
    of: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    publish: Publish = lambda event: None

    def progress(self, done: int, of: int, *rest: Any) -> None:
        """Say how far the job is.

        Args:
            done: What is done.
            of: What there is to do.
            *rest: Values of training, which are not shown.

        Raises:
            Cancelled: Somebody cancelled the job.
        """
        self.done, self.of = int(done), int(of)
        if self.cancelled.is_set():
            raise Cancelled
        self.publish(self.facts())

    def facts(self) -> dict[str, Any]:
        """What the page shows of it, JSON content."""
        names = ("number", "kind", "case", "state", "note", "done", "of")
        return {"type": "job", **{name: getattr(self, name) for name in names}}


class Jobs:
    """A queue of jobs and the thread that does them.

    Args:
        publish: Hears of every change of a job.
    """

    def __init__(self, publish: Publish) -> None:
        self.publish = publish
        self._numbers = itertools.count(1)
        self._queue: queue.SimpleQueue[tuple[Job, Callable[[Job], str]] | None] = (
            queue.SimpleQueue()
        )
        self._jobs: dict[int, Job] = {}
        self._thread = threading.Thread(target=self._work, name="annotate-jobs", daemon=True)
        self._thread.start()

    def start(self, kind: str, case: int | None, work: Callable[[Job], str]) -> Job:
        """Queue a job; one of the same kind and case that waits or runs is returned instead.

        Args:
            kind: What it does.
            case: The case that it is about.
            work: Called with the job; returns what was made, in words.

        Returns:
            The job.
        """
        for job in self._jobs.values():
            if (job.kind, job.case) == (kind, case) and job.state in ("waiting", "running"):
                return job
        job = Job(next(self._numbers), kind, case, publish=self.publish)
        self._jobs[job.number] = job
        for number in list(self._jobs)[:-_KEPT]:
            if self._jobs[number].state not in ("waiting", "running"):
                del self._jobs[number]
        self.publish(job.facts())
        self._queue.put((job, work))
        return job

    def cancel(self, number: int) -> Job:
        """Cancel a job; one that is over stays as it is.

        Raises:
            ContextsegError: There is no such job.
        """
        job = self._jobs.get(number)
        if job is None:
            raise ContextsegError(f"job {number}", "there is no such job", "see the list of jobs")
        job.cancelled.set()
        return job

    def facts(self) -> list[dict[str, Any]]:
        """What the page shows of the jobs that wait or run."""
        jobs = list(self._jobs.values())
        return [job.facts() for job in jobs if job.state in ("waiting", "running")]

    def close(self) -> None:
        """Cancel what runs, and end the thread."""
        for job in list(self._jobs.values()):
            job.cancelled.set()
        self._queue.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            job, work = item
            try:
                if job.cancelled.is_set():
                    raise Cancelled
                job.state = "running"
                self.publish(job.facts())
                with out_of_memory(job.kind, MEMORY_REMEDY):
                    job.note = work(job)
                job.state = "done"
            except Cancelled:
                job.state = "cancelled"
            except ContextsegError as error:
                job.state, job.note = "failed", str(error)
            except Exception as error:  # the thread goes on with the next job
                traceback.print_exc()
                job.state, job.note = "failed", f"{type(error).__name__}: {error}"
            self.publish(job.facts())
