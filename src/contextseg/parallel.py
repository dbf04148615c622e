"""Work over many cases, several at a time, in the order of the cases."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from contextseg.console import Progress, say
from contextseg.errors import ContextsegError
from contextseg.memory_errors import MEMORY_REMEDY, out_of_memory
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


def free_gb() -> float:
    """Memory that this process could take now, in gibibytes.

    What the system says is available, or what is left of a container's limit. Of a container, files
    that are kept in memory and can be dropped count as free.

    Returns:
        Gibibytes; infinity where nobody says it.
    """
    free = [math.inf]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    for limit, used, key in _CONTAINERS:
        with suppress(OSError, ValueError):
            most = int(Path(limit).read_text(encoding="utf-8"))
            taken = int(Path(used).read_text(encoding="utf-8"))
            text = Path(limit).with_name("memory.stat").read_text(encoding="utf-8")
            stat = dict(line.split() for line in text.splitlines())
            free.append(max(0, most - taken + int(stat.get(key, 0))))
    return min(free) / 2**30


_CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Where a container says its limit and its use, and the entry of files that can be dropped."""


def default_workers(most: int = 4, each_gb: float = 0.0, what: str = "") -> int:
    """Number of threads for work over cases: one for each core it may use, as memory allows.

    Args:
        most: The largest number.
        each_gb: Gibibytes that a case takes; 0 for next to nothing.
        what: The work, for the line that says that memory allows fewer; "" says nothing.

    Returns:
        One or more; four fifths of the memory that is free are shared out.

    Example:
        >>> default_workers(8, each_gb=1e9)
        1
    """
    workers = min(most, usable_cores())
    free = free_gb()
    if not each_gb or not math.isfinite(free):
        return workers
    fit = max(1, int(0.8 * free / each_gb))
    if fit < workers and what:
        say(
            f"{what}: {fit} case{'s' * (fit != 1)} at a time, not {workers}; the largest takes "
            f"about {each_gb:.2g} GB, and {free:.2g} GB are free"
        )
    return min(workers, fit)


def map_cases(
    work: Callable[[T], R],
    cases: Sequence[T],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[T, R | ContextsegError]]:
    """Do `work` on every case in threads; yield each case with its result, in order.

    A case whose work raises `ContextsegError`, or for which there is not enough memory, yields that
    error in place of a result, so that one damaged file does not stop the others. Any other
    exception is raised.

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
        name = getattr(case, "name", None) or getattr(case, "case", None) or "a case"
        try:
            with out_of_memory(str(name), MEMORY_REMEDY):
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
