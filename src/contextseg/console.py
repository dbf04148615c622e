"""Words to the person at the terminal, on stderr: what is being done, and how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """One line, to the person and not into a pipe; of several ranks the first one speaks."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def watch(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; elsewhere a line when a stage starts, every ten seconds, and when it ends.

    Yields `tell(i, of, values)`. Of several ranks the first one speaks. A stage that was `done` before is one line.
    """
    if int(os.environ.get("RANK", 0)):
        yield lambda *_: None
        return
    if done:
        say(f"{title}: done before")
        yield lambda *_: None
        return
    started = said = time.monotonic()
    if not sys.stderr.isatty():
        say(f"{title} ...")

        def line(i: int, of: int, values: dict[str, float] | None = None) -> None:
            nonlocal said
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(f"{title} {i}/{of} {_values(values)}")

        yield line
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("{task.description:14}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[values]}"), transient=True) as bar:
            task = bar.add_task(title, total=None, values="")
            yield lambda i, of, values=None: bar.update(task, completed=i, total=of, values=_values(values))
    say(f"{title}: {time.monotonic() - started:.1f} s")


def _values(values: dict[str, float] | None) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
