"""Progress and messages for the person at the terminal, on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Progress = Callable[..., object]
"""How far something is: called with (done, of), and where there are some with values by name.

`progress(3, 10)` or `progress(3, 10, {"seg": 0.42})`.
"""


class ProgressBar(Protocol):
    """Shows the progress of one stage after another.

    `with progress_bar("train") as progress: progress(done, of, {"seg": 0.4})`.
    """

    def __call__(self, title: str, done: bool = False) -> AbstractContextManager[Progress]:
        """Begin the stage `title`; `done` says that it was finished before."""


def say(text: str) -> None:
    """Print one line on stderr, so that it is not piped; only the first of several ranks prints."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def no_progress_bar(title: str, done: bool = False) -> Iterator[Progress]:
    """A `ProgressBar` that shows nothing.

    Args:
        title: Name of the stage.
        done: Whether the stage was finished before.

    Yields:
        A `Progress` that ignores its arguments.
    """
    yield lambda *_: None


@contextmanager
def progress_bar(title: str, done: bool = False) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line at the start, every ten seconds, and at the end.

    Only the first of several ranks shows anything.

    Args:
        title: Name of the stage.
        done: Whether the stage was finished before; then one line says so.

    Yields:
        A `Progress`.
    """
    if int(os.environ.get("RANK", 0)):
        yield lambda *_: None
        return
    if done:
        say(f"{title}: done before")
        yield lambda *_: None
        return
    started = time.monotonic()
    show = _bar if sys.stderr.isatty() else _lines
    with show(title) as progress:
        yield progress
    say(f"{title}: {time.monotonic() - started:.1f} s")


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich import progress as rich

    pace = _Pace()

    def update(done: int, of: int, values: dict[str, float] | None = None) -> None:
        left = pace.left(done, of)
        bar.update(task, completed=done, total=of, values=_values(values), left=left)

    columns = (
        rich.TextColumn("{task.description:14}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[left]}"),
        rich.TextColumn("{task.fields[values]}"),
    )
    with rich.Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=None, values="", left="")
        yield update


@contextmanager
def _lines(title: str) -> Iterator[Progress]:
    pace = _Pace()
    printed = -math.inf
    say(f"{title} ...")

    def update(done: int, of: int, values: dict[str, float] | None = None) -> None:
        nonlocal printed
        left = pace.left(done, of)
        now = time.monotonic()
        if (left or done >= of) and now - printed > 10:
            printed = now
            say("  ".join(filter(None, (f"{title} {done}/{of}", _values(values), left))))

    yield update


class _Pace:
    """What is left of a stage, from how fast it went since it began or went on."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first = -1

    def left(self, done: int, of: int) -> str:
        """The time left in words; "" before anything is done, and after all is."""
        now = time.monotonic()
        if self.first < 0:
            self.first = 0
            if done != 1:  # it begins now, or goes on: what was done before took no time
                self.started, self.first = now, done
        if done <= self.first or done >= of:
            return ""
        seconds = (now - self.started) / (done - self.first) * (of - done)
        return f"about {rough_time(seconds)} left"


def rough_time(seconds: float) -> str:
    """A duration that is an estimate, in words.

    Args:
        seconds: The duration.

    Returns:
        The text, in seconds, minutes, hours or days.

    Example:
        >>> rough_time(20), rough_time(184), rough_time(3500), rough_time(9000), rough_time(777600)
        ('20 s', '3.1 min', '58 min', '2.5 h', '9.0 days')
    """
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _values(values: dict[str, float] | None) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
