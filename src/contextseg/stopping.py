"""Stopping when asked to: SIGTERM and Ctrl-C become one error, and nothing is left half-done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(Exception):
    """The work was asked to stop (SIGTERM, Ctrl-C) and did; what was finished is kept.

    The same command goes on from there.
    """


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise `Stopped` inside the block; a second one ends the process at once.

    So temporary files are deleted, locks given back and processes that were started ended, as after
    any error. A training has a way of its own, which saves a checkpoint first. Outside the main
    thread, where signals do not arrive, nothing changes.

    Raises:
        Stopped: A signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        raise Stopped(f"stopped by {name}; what is finished is kept, the same command goes on")

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
