"""The cores that this process may use, and how OpenMP's threads wait for one another on them.

A thread of OpenMP's that waits for the others spins on its core: the next piece of work then begins
at once. Where another process wants that core, all threads wait for the one that is held up, and a
training step takes many times as long. A short spin, and then sleep, loses nothing on idle cores
and little on busy ones (`benchmarks/threads.py`). OpenMP reads its environment when torch is
imported, so it is set before.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

SPIN_COUNT = 3000
"""How often a waiting thread looks before it sleeps, chosen by `benchmarks/threads.py`."""

_OWN = ("OMP_", "GOMP_", "KMP_")
"""Beginnings of the variables by which a person, or torchrun, has said how threads are to work."""


def usable_cores() -> int:
    """The cores that this process may really use: what affinity and the container's quota allow.

    Returns:
        At least 1. A quota of 2.5 cores counts as 3.
    """
    cores = _cores_of_affinity()
    return max(1, math.ceil(min(cores, core_quota())))


def core_quota(root: Path = Path("/")) -> float:
    """The cores that a control group allows, version 2 or 1: the least of all groups around.

    Args:
        root: Where the file system begins.

    Returns:
        Cores, such as 2.5; infinity where nothing limits them.
    """
    quotas = [math.inf]
    for folder in _group_folders(root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").exists():
                limit, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                limit = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
            if limit.strip() != "max" and int(limit) > 0:
                quotas.append(int(limit) / int(period))
    return min(quotas)


def _group_folders(root: Path) -> list[Path]:
    """The folders of this process's control groups, each with those around it."""
    mount = root / "sys/fs/cgroup"
    folders = [mount, mount / "cpu", mount / "cpu,cpuacct"]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            number, kinds, path = line.split(":", 2)
            if number != "0" and "cpu" not in kinds.split(","):
                continue
            inner = Path(path.lstrip("/"))
            for above in [inner, *inner.parents]:
                folders += [mount / above] if number == "0" else [mount / kinds / above]
    return folders


def settle_threads() -> dict[str, str]:
    """Set how OpenMP's threads wait, and how many there are where a quota allows fewer than cores.

    Nothing is set where torch is imported already, or where the environment says anything of its
    own (`OMP_...`, `GOMP_...`, `KMP_...`). Processes that are started from here inherit it.

    Returns:
        The variables that were set; {} for none.
    """
    if "torch" in sys.modules or any(name.startswith(_OWN) for name in os.environ):
        return {}
    variables = {"GOMP_SPINCOUNT": str(SPIN_COUNT)}
    if usable_cores() < _cores_of_affinity():
        variables["OMP_NUM_THREADS"] = str(usable_cores())
    os.environ.update(variables)
    return variables


def _cores_of_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count() -> int:
    """The threads of one operation of torch's; before torch is imported, `usable_cores`."""
    torch = sys.modules.get("torch")
    return usable_cores() if torch is None else int(torch.get_num_threads())
