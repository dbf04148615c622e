"""How OpenMP's threads wait, on idle cores and with one core busy elsewhere: a training step.

A thread that waits for the others spins on its core. Where another process wants that core, the
threads wait for one another, and a step takes many times as long. Each setting of the environment
has a process of its own, which trains the demo's network; the steps of all are taken in turn, in
wall time. For the busy half a process that only counts runs beside them. On a shared machine others
disturb the idle half: what they used is read from /proc/stat, a round in which it was more than
a fifth of a core is taken again, and where that does not help the row says what they used.

    python benchmarks/threads.py [--quick]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any

DEFAULT = "OpenMP's defaults"
SPINS = (300, 1000, 3000, 10_000, 30_000)
ENVIRONMENTS: dict[str, dict[str, str]] = {
    DEFAULT: {"OMP_DISPLAY_ENV": "FALSE"},  # so that contextseg sets nothing
    **{f"GOMP_SPINCOUNT={n}": {"GOMP_SPINCOUNT": str(n)} for n in SPINS},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_")
ROUNDS, STEPS = {False: 10, True: 5}, 2
"""Rounds on idle cores and with a busy one; steps in a round."""
OTHERS = 0.2  # cores that others may use in a round of the idle half
AGAIN = 2  # times so many rounds at most


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, seconds with a setting, seconds with OpenMP's defaults, "OpenMP's defaults").

    None with one core, where no thread waits for another.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not cores or cores < 2:
        print("threads: left out (one core)", file=sys.stderr)
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        children = {name: stack.enter_context(_child(name, folder, quick)) for name in ENVIRONMENTS}
        for busy in (False, True):
            with _counting() if busy else ExitStack():
                seconds, others = _measured(
                    children, 2 if quick else ROUNDS[busy], 1 if quick else STEPS, busy
                )
            where = "one core busy elsewhere"
            if not busy:
                quiet = others <= OTHERS
                where = "idle cores" if quiet else f"others use {others:.1f} cores"
            for name, values in seconds.items():
                given = f"{name}; {_given(quick)}, {cores} cores, wall time"
                if name != DEFAULT:
                    yield (
                        f"training step, {where}, s",
                        given,
                        median(values),
                        median(seconds[DEFAULT]),
                        DEFAULT,
                    )


def _given(quick: bool) -> str:
    return "U-Net 8-64, 2 x 32^3" if quick else "U-Net 16-128, 4 x 32^3"


def _measured(
    children: dict[str, Any], rounds: int, steps: int, busy: bool
) -> tuple[dict[str, list[float]], float]:
    """Seconds a step of each child, in turn, and the cores that others used (median)."""
    taken: list[tuple[float, dict[str, float]]] = []
    for _ in range(rounds if busy else AGAIN * rounds):
        start, idle = time.monotonic(), _idle_seconds()
        took = {name: _steps(child, steps) for name, child in children.items()}
        wall = time.monotonic() - start
        own = sum(used for _, used in took.values())
        cores = os.cpu_count() or 1
        others = max(0.0, cores - (_idle_seconds() - idle + own) / wall)
        taken.append((others, {name: seconds for name, (seconds, _) in took.items()}))
        if sum(used <= OTHERS for used, _ in taken) >= rounds:
            break
    quiet = taken if busy else sorted(taken, key=lambda one: one[0])[:rounds]
    seconds = {name: [values[name] for _, values in quiet] for name in children}
    return seconds, median(used for used, _ in quiet)


def _idle_seconds() -> float:
    """Seconds that all cores together have idled; 0 where nobody says it."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[4:6])) / os.sysconf("SC_CLK_TCK")


def _steps(child: subprocess.Popen[str], steps: int) -> tuple[float, float]:
    """(seconds a step, CPU seconds of all)."""
    assert child.stdin
    assert child.stdout
    child.stdin.write(f"{steps}\n")
    child.stdin.flush()
    seconds, used = json.loads(child.stdout.readline())
    return seconds, used


@contextmanager
def _child(name: str, folder: str, quick: bool) -> Iterator[subprocess.Popen[str]]:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(PREFIXES)}
    words = [sys.executable, __file__, "--child", folder, *(["--quick"] if quick else [])]
    child = subprocess.Popen(
        words,
        env={**environment, **ENVIRONMENTS[name]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()


@contextmanager
def _counting() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


# --- the processes --------------------------------------------------------------------------------


def _serve(folder: Path, quick: bool, words: IO[str]) -> None:
    """Train so many steps as each line says, and answer what they took."""
    from contextseg.data.sampling import Sampler
    from contextseg.methods import Supervised
    from contextseg.training import Training, TrainingState, pick_device, training_step
    from training import Size, embedded

    width, items = (8, 2) if quick else (16, 4)
    size = Size((32,) * 3, items, width, (4.0,) * 3, 1, 1, 1, 1)
    plan, cases = embedded(folder, size)
    device = pick_device("cpu")
    batch = Sampler(cases, plan).batch(0, device=device)
    method = Supervised(plan).to(device)
    method.train()
    training = Training(lr=0.01)
    state = TrainingState(method, training, device)
    for _ in range(2):
        training_step(state, batch, training, training.lr, 1.0)
    print("ready", flush=True)
    for line in words:
        start, used = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            training_step(state, batch, training, training.lr, 1.0)
        took = (time.perf_counter() - start) / int(line)
        print(json.dumps([took, time.process_time() - used]), flush=True)


if __name__ == "__main__":
    small = "--quick" in sys.argv
    if "--child" in sys.argv:
        _serve(Path(sys.argv[sys.argv.index("--child") + 1]), small, sys.stdin)
    else:
        for row in rows(small):
            print(row)
