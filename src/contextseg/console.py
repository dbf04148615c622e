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

    def update(done: int, of: int, values: dict[str, float] | None = None) -> None:
        bar.update(task, completed=done, total=of, values=_values(values))

    columns = (
        rich.TextColumn("{task.description:14}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[values]}"),
    )
    with rich.Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=None, values="")
        yield update


@contextmanager
def _lines(title: str) -> Iterator[Progress]:
    started = time.monotonic()
    printed = -math.inf
    first = 0
    say(f"{title} ...")

    def update(done: int, of: int, values: dict[str, float] | None = None) -> None:
        nonlocal printed, started, first
        now = time.monotonic()
        if printed == -math.inf and done > 1:  # it goes on: what was done before took no time now
            started, first = now, done
        if now - printed > 10:
            printed = now
            left = ""
            if done > first:
                seconds = (now - started) / (done - first) * (of - done)
                left = f"about {math.ceil(seconds / 60)} min left"
            say("  ".join(filter(None, (f"{title} {done}/{of}", _values(values), left))))

    yield update


def _values(values: dict[str, float] | None) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
