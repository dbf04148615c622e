"""Where cells run: one after the other, several at a time in processes, or on a cluster.

Each way returns the failures by cell; one that fails does not stop the others. The same call
resumes what was stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.disk import writing
from contextseg.errors import ContextsegError
from contextseg.stopping import stop_signals
from contextseg.studies.compare.cell import Task, failure_of
from contextseg.threads import usable_cores

PROCESS_LOG = "log.txt"
"""The output of a cell in a process of its own, in the folder of the cell."""


def run_in_turn(
    tasks: Sequence[Task], progress_bar: ProgressBar = no_progress_bar
) -> dict[str, str]:
    """Run one cell after the other in this process.

    Args:
        tasks: The cells.
        progress_bar: Shows the progress of each stage.

    Returns:
        Why cells failed, by name.
    """
    failed = {}
    for task in tasks:
        try:
            task(progress_bar)
        except ContextsegError as error:
            failed[task.name] = str(error)
    return failed


def run_in_processes(
    tasks: Sequence[Task], jobs: int, progress: Progress = lambda *_: None
) -> dict[str, str]:
    """Run several cells at a time, each in a process of its own.

    The processes share the cores, and take one GPU each where there are several. The output of a
    cell is in `log.txt` in its folder. Ctrl-C or SIGTERM ends them all, each with a checkpoint.

    Args:
        tasks: The cells.
        jobs: Number of cells at a time.
        progress: Called with (done, of) after each cell.

    Returns:
        Why cells failed, by name.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    running: set[subprocess.Popen[str]] = set()
    stopped = threading.Event()
    gpus = _gpus()

    def run_one(task: Task) -> str:
        slot = slots.get()
        log_path = Path(task.folder) / PROCESS_LOG
        with writing(log_path):
            log_path.parent.mkdir(parents=True, exist_ok=True)
            log = open(log_path, "a", encoding="utf-8")  # noqa: SIM115
        with log:
            if stopped.is_set():
                return "not begun"
            process = subprocess.Popen(
                [sys.executable, "-m", "contextseg.studies.compare"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                encoding="utf-8",
                env={**os.environ, **process_environment(slot, jobs, gpus)},
            )
            running.add(process)
            process.communicate(json.dumps(vars(task)))
            running.discard(process)
        slots.put(slot)
        return failure(task.folder, process.returncode)

    failed = {}
    with stop_signals(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_one, task): task.name for task in tasks}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                if why := future.result():
                    failed[futures[future]] = why
                progress(done, len(tasks), {})
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
    return failed


def run_on_cluster(
    tasks: Sequence[Task],
    folder: str | Path,
    cluster: str,
    jobs: int,
    options: Mapping[str, Any],
    progress: Progress,
) -> dict[str, str]:
    """Submit a job for each cell by `submitit`, and wait for all.

    A job whose time is up goes back into the queue and is resumed.

    Args:
        tasks: The cells.
        folder: Folder of the comparison; submitit's files go into `jobs/`.
        cluster: "slurm", or "local" to try it on this machine.
        jobs: With "slurm", at most so many jobs at a time; 1 sets no limit.
        options: Parameters of submitit's executor: slurm_partition, gpus_per_node, timeout_min ...
        progress: Called with (done, of) after each cell.

    Returns:
        Why cells failed, by name.

    Raises:
        ContextsegError: submitit is not installed, or refuses an option.
    """
    where = f"--cluster {cluster}"
    try:
        import submitit
    except ImportError as error:
        remedy = "pip install 'contextseg[cluster]'"
        raise ContextsegError(where, "submitit is not installed", remedy) from error
    parameters: dict[str, Any] = {"name": "contextseg", "timeout_min": 24 * 60}
    if cluster == "slurm" and jobs > 1:
        parameters["slurm_array_parallelism"] = jobs
    for name, value in options.items():
        is_number = isinstance(value, str) and value.isdecimal()
        parameters[name] = int(value) if is_number else value
    try:
        executor = submitit.AutoExecutor(folder=str(Path(folder) / "jobs"), cluster=cluster)
        executor.update_parameters(**parameters)
    except (ValueError, TypeError, NameError, RuntimeError) as error:
        remedy = "see submitit's documentation"
        raise ContextsegError(where, str(error).strip(), remedy) from error
    with executor.batch():
        submitted = [executor.submit(task) for task in tasks]
    failed = {}
    for done, (task, job) in enumerate(zip(tasks, submitted), 1):
        exception = job.exception()  # waits
        if exception is not None:
            reason = failure_of(task.folder) or "the job ended without a result"
            failed[task.name] = f"{reason} ({job.paths.stderr})"
        progress(done, len(tasks), {})
    return failed


def process_environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variables of one of several processes: its share of the cores, and its GPU.

    Args:
        slot: Number of the process, from 0.
        jobs: Number of processes at a time.
        gpus: The GPUs, as CUDA_VISIBLE_DEVICES names them. With one or none it is left as it is.

    Returns:
        The variables by name.

    Example:
        >>> process_environment(3, 4, ["0", "1"])["CUDA_VISIBLE_DEVICES"]
        '1'
    """
    threads = str(max(1, usable_cores() // jobs))
    variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if len(gpus) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return variables


def _gpus() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def failure(folder: str | Path, code: int) -> str:
    """Why the process of a cell failed.

    Args:
        folder: Folder of the run.
        code: Exit code of the process; negative for a signal.

    Returns:
        The error that it left in the folder, or how it ended, and where its output is; "" where it
        ended well.
    """
    log = Path(folder) / PROCESS_LOG
    if code == 0:
        return ""
    if code < 0:
        return f"it was killed by signal {-code}; was there enough memory? ({log})"
    return f"{failure_of(folder) or f'exit code {code}'} ({log})"
