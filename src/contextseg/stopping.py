"""Stopping when asked to: SIGTERM and Ctrl-C become one error, and nothing is left half-done."""

from __future__ import annotations

import signal
import sys
import threading
import time
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


GO_ON, STOP, FINISH = range(3)
"""What a training is asked to do; see `StopRequest`."""


class StopRequest:
    """What was asked of a training since `training_signals` began: to stop, or to finish.

    Attributes:
        level: `GO_ON`; `STOP` after SIGTERM or one Ctrl-C; `FINISH` after a second Ctrl-C.
        by_hand: Whether it was Ctrl-C on a terminal, so that a second one may follow.
    """

    def __init__(self) -> None:
        self.level = GO_ON
        self.by_hand = False
        self._interrupts = 0

    def __call__(self, number: int, frame: Any) -> None:
        """Take a signal; after a second Ctrl-C another one interrupts as usual."""
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self.level = FINISH
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.by_hand = sys.stdin is not None and sys.stdin.isatty()
        self.level = max(self.level, STOP)

    def wait(self, seconds: float) -> None:
        """Give a person some seconds for the second Ctrl-C; nothing happens without a terminal."""
        end = time.monotonic() + seconds
        while self.by_hand and self.level == STOP and time.monotonic() < end:
            time.sleep(0.05)


@contextmanager
def training_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C are noted inside the block, for a training to see between two steps.

    Outside the main thread, where signals do not arrive, nothing changes.

    Yields:
        What was asked for.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, request)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
