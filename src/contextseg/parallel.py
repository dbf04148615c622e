"""Work over many cases, several at a time, in the order of the cases."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from contextseg.console import Progress
from contextseg.errors import ContextsegError
from contextseg.threads import usable_cores

T = TypeVar("T")
R = TypeVar("R")


def machine_gb() -> float:
    """Memory that this process may have, in gibibytes: the machine's, or what a container allows.

    Returns:
        Gibibytes; infinity where nobody says it.
    """
    limits = [math.inf]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits) / 2**30


def default_workers(most: int = 4) -> int:
    """Number of threads for work over cases: one for each core it may use, at most `most`."""
    return min(most, usable_cores())


def map_cases(
    work: Callable[[T], R],
    cases: Sequence[T],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[T, R | ContextsegError]]:
    """Do `work` on every case in threads; yield each case with its result, in order.

    A case whose work raises `ContextsegError` yields that error in place of a result, so that one
    damaged file does not stop the others. Any other exception is raised.

    Args:
        work: Called once for each case, in one of several threads.
        cases: What to work on. An empty sequence yields nothing.
        workers: Number of threads. None takes `default_workers()`.
        progress: Called with (number done, number of cases) after each case.

    Yields:
        (case, result or error), in the order of `cases`.

    Example:
        >>> [result for _, result in map_cases(len, ["a", "bc"])]
        [1, 2]
    """

    def attempt(case: T) -> R | ContextsegError:
        try:
            return work(case)
        except ContextsegError as error:
            return error

    with ThreadPoolExecutor(workers or default_workers()) as pool:
        try:
            for done, (case, result) in enumerate(zip(cases, pool.map(attempt, cases)), 1):
                if progress:
                    progress(done, len(cases))
                yield case, result
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all the other cases were done first
            raise
