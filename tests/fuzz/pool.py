"""Many inputs, in child processes with a limit of memory and of time; a crash ends a child only.

A child reads numbers of inputs from stdin and answers a line of JSON for each. Time is its own CPU
time, so that a busy machine fails nothing; a child that sleeps for long hangs.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .outcome import CRASH, ERROR, OTHER, RIGHT, TIMEOUT, Outcome, reader_of, tried

CPU_SECONDS = 30
ASLEEP_SECONDS = 15
MEMORY_BYTES = 2 << 30
"""What a child may take beyond what it has after its imports."""


def serve(corpus: Path, work: Path, seed: int) -> None:
    """A child: an input for each line of stdin."""
    import torch

    import contextseg.predictor  # noqa: F401

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(work / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]
    size = int(pages) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES,) * 2)
    for line in sys.stdin:
        outcome = tried(corpus, work, seed, int(line))
        answers.write(json.dumps(outcome.to_json()) + "\n")
        answers.flush()


class _Child:
    """A child process, and the input that it works on."""

    def __init__(self, corpus: Path, work: Path, seed: int) -> None:
        self.arguments = (corpus, work, seed)
        self.process: Any = None

    def tried(self, index: int) -> dict[str, Any]:
        """The outcome of an input; a crash and a timeout are outcomes."""
        if self.process is None:
            self._start()
        self.process.stdin.write(f"{index}\n".encode())
        self.process.stdin.flush()
        began, slept = self._cpu()[0], time.monotonic()
        last = began
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not selector.select(1.0):
                now, runs = self._cpu()
                if now > last or runs:
                    last, slept = now, time.monotonic()
                if now - began > CPU_SECONDS or time.monotonic() - slept > ASLEEP_SECONDS:
                    return self._ended(index, TIMEOUT)
        line = self.process.stdout.readline()
        return json.loads(line) if line else self._ended(index, CRASH)

    def _start(self) -> None:
        corpus, work, seed = self.arguments
        work.mkdir(parents=True, exist_ok=True)
        tests = Path(__file__).parents[1]
        source = tests.parent / "src"
        path = os.pathsep.join(map(str, (source, tests)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fuzz", "--serve", str(corpus), str(work), "--seed", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        )

    def _cpu(self) -> tuple[float, bool]:
        """Seconds of CPU that the child has used, and whether it waits for a core."""
        try:
            facts = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
            fields = facts.rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            return seconds, fields[0] == "R"
        except (OSError, IndexError):
            return 0.0, False

    def _ended(self, index: int, outcome: str) -> dict[str, Any]:
        if outcome == TIMEOUT:
            self.process.kill()
        code = self.process.wait()
        self.close()
        lines = (self.arguments[1] / "stderr").read_text("utf-8", "replace").splitlines()
        last = lines[-1] if lines else ""
        what = f"exit code {code} {last}" if outcome == CRASH else "does not end"
        return Outcome(index, reader_of(index), "", "", {}, outcome, "", what).to_json()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None


def outcomes(
    corpus: Path, work: Path, seed: int, indices: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """The outcome of each input, one after the other."""
    child = _Child(corpus, work, seed)
    try:
        for index in indices:
            yield child.tried(index)
    finally:
        child.close()


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of outcomes by reader, and every place that another exception came from."""
    kinds = (RIGHT, ERROR, OTHER, CRASH, TIMEOUT)
    readers = {
        name: {kind: counts[kind] for kind in kinds}
        for name in dict.fromkeys(r["reader"] for r in results)
        if (counts := Counter(r["outcome"] for r in results if r["reader"] == name))
    }
    total = {kind: sum(r["outcome"] == kind for r in results) for kind in kinds}
    places = Counter(
        f"{r['where']}: {r['what'].partition(':')[0]}" for r in results if r["outcome"] == OTHER
    )
    calls = Counter(outcome for r in results for outcome in r["calls"].values())
    return {
        "inputs": len(results),
        "calls": dict(calls),
        "total": total,
        "readers": dict(sorted(readers.items())),
        "places": dict(places.most_common()),
    }


def table(facts: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    kinds = list(facts["total"])
    lines = ["| Reader | " + " | ".join(kinds) + " |", "|---|" + "--:|" * len(kinds)]
    rows = {**facts["readers"], f"**all {facts['inputs']} inputs**": facts["total"]}
    for name, counts in rows.items():
        lines.append(f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |")
    return "\n".join(lines)
