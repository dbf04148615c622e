"""Where cells run: one after the other in this process, several at a time in processes of their own, or on a cluster.

Each gives the failures, by cell; one that fails does not stop the others. All of them are resumed by the same call.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from contextseg.compare.cell import Work
from contextseg.disk import Problem
from contextseg.run import Watch, quiet
from contextseg.train import Stopped

LOG = "log.txt"
Tell = Callable[..., None]


def in_turn(works: Sequence[Work], watch: Watch = quiet) -> dict[str, str]:
    """One cell after the other, here."""
    failed = {}
    for work in works:
        try:
            work(watch)
        except Problem as problem:
            failed[work.name] = str(problem)
    return failed


def in_processes(works: Sequence[Work], jobs: int, tell: Tell = lambda *_: None) -> dict[str, str]:
    """`jobs` cells at a time, which share the processor's cores, and one GPU each where there are several.

    What a cell says is in its folder's `log.txt`. Ctrl-C or SIGTERM ends them all, each with a checkpoint.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    running: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()
    gpus = _gpus()

    def one(work: Work) -> str:
        slot = slots.get()
        Path(work.folder).mkdir(parents=True, exist_ok=True)
        with open(Path(work.folder) / LOG, "a", encoding="utf-8") as log:
            if stopped.is_set():
                return "not begun"
            process = subprocess.Popen(
                [sys.executable, "-m", "contextseg.compare"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                encoding="utf-8",
                env={**os.environ, **surroundings(slot, jobs, gpus)},
            )
            running.add(process)
            process.communicate(json.dumps(vars(work)))
            running.discard(process)
        slots.put(slot)
        return _why(Path(work.folder) / LOG, process.returncode)

    failed = {}
    with _terminable(), ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, work): work.name for work in works}
        try:
            for i, future in enumerate(as_completed(waiting)):
                if why := future.result():
                    failed[waiting[future]] = why
                tell(i + 1, len(works), {})
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


def on_cluster(
    works: Sequence[Work], folder: str | Path, cluster: str, jobs: int, options: Mapping[str, Any], tell: Tell
) -> dict[str, str]:
    """A job for each cell, by `submitit`; waits for all. `cluster` is "slurm", or "local" to try it here.

    `options` are those of submitit's executor (slurm_partition, gpus_per_node, timeout_min, ...); with `jobs` > 1 SLURM
    runs at most so many at a time. A job whose time is up goes back into the queue and goes on.

    Raises `Problem` if submitit is not installed, or refuses an option.
    """
    try:
        import submitit
    except ImportError as error:
        where = f"--cluster {cluster}"
        raise Problem(where, "submitit is not installed", "pip install 'contextseg[cluster]'") from error
    at_most = {"slurm_array_parallelism": jobs} if cluster == "slurm" and jobs > 1 else {}
    options = {name: int(v) if isinstance(v, str) and v.isdecimal() else v for name, v in options.items()}
    try:
        executor = submitit.AutoExecutor(folder=str(Path(folder) / "jobs"), cluster=cluster)
        executor.update_parameters(**{"name": "contextseg", "timeout_min": 24 * 60, **at_most, **options})
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        raise Problem(f"--cluster {cluster}", str(error).strip(), "see submitit's documentation") from error
    with executor.batch():
        sent = [executor.submit(work) for work in works]
    failed = {}
    for i, (work, job) in enumerate(zip(works, sent)):
        gone = job.exception()  # waits
        if gone is not None:
            errors = re.findall(r"^[A-Za-z_][\w.]*: .*", str(gone), re.MULTILINE)  # of the trace, the last line
            why = errors[-1].removeprefix("contextseg.disk.Problem: ") if errors else str(gone).splitlines()[0]
            failed[work.name] = f"{why} ({job.paths.stderr})"
        tell(i + 1, len(works), {})
    return failed


def surroundings(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variables of one of several processes: its share of the cores, and its GPU.

    >>> surroundings(3, 4, ["0", "1"])["CUDA_VISIBLE_DEVICES"]
    '1'
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // jobs))
    one = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {}
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **one}


def _gpus() -> list[str]:
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def _why(log: Path, code: int) -> str:
    """Why a process ended so: the last thing it said; "" where it ended well."""
    if code == 0:
        return ""
    if code < 0:
        return f"it was killed by signal {-code}; was there enough memory? ({log})"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].removeprefix('contextseg: ') if lines else f'exit code {code}'} ({log})"


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Stopped` inside the block, so that what was started here is not left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Stopped("stopped; the same command goes on from there")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
