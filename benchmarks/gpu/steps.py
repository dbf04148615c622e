"""The first numbers on a GPU, step by step, each in a process of its own with its own time limit.

What came out is in one JSON file, written anew after every row, so that a cut at any moment loses
only the step that runs. A second call goes on where the first stopped: steps that are done are not
done again. `run.sh` starts this; `wheels.sh` collects beforehand what a bare machine lacks.

    python benchmarks/gpu/steps.py OUTPUT               all steps
    python benchmarks/gpu/steps.py OUTPUT laws colab    only these
    python benchmarks/gpu/steps.py OUTPUT --dry         tiny, on a CPU
    python benchmarks/gpu/steps.py OUTPUT --write       its numbers, as a section of RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

LIMITS_S = {
    "laws": 75,
    "colab": 75,
    "training-3d-compiled": 140,
    "training-3d": 80,
    "propagation": 60,
    "prediction": 70,
    "training-2d": 90,
    "training-2d-compiled": 140,
    "precision": 60,
}
"""Steps in the order of how much they are wanted, and seconds that each may take, on an H100."""
RESULTS = "results.json"
DRY_LIMIT_S = 300


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measure on a GPU what can only be measured there."
    )
    parser.add_argument("output", type=Path, help="folder for results.json, logs and profiles")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(LIMITS_S))
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU, to see it works")
    parser.add_argument("--seconds", type=float, help="start no step that could end after these")
    parser.add_argument("--write", action="store_true", help="write its section of RESULTS.md")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_intermixed_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.child:
        return child(asked.steps[0], asked.dry, asked.output)
    if asked.write:
        write_section(asked.output)
        return 0
    if unknown := set(asked.steps) - set(LIMITS_S):
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS_S)}")
    return run_all(asked.steps or list(LIMITS_S), asked.dry, asked.output, asked.seconds)


def run_all(names: Sequence[str], dry: bool, out: Path, seconds: float | None) -> int:
    """Run the steps that are not done; 0 if all are done afterwards."""
    start = time.monotonic()
    content = load(out)
    content.setdefault("facts", facts())
    for name in names:
        if content["steps"].get(name, {}).get("status") == "done":
            print(f"{name}: done before", flush=True)
            continue
        limit = DRY_LIMIT_S if dry else LIMITS_S[name]
        left = None if seconds is None else seconds - (time.monotonic() - start)
        if left is not None and left < limit / 3:
            print(f"{name}: left for the next call ({left:.0f} s left)", flush=True)
            continue
        content["steps"][name] = run(name, dry, out, min(limit, left or limit))
        save(out, content)
    statuses = {name: content["steps"].get(name, {}).get("status", "not run") for name in names}
    print(json.dumps(statuses), flush=True)
    return 0 if set(statuses.values()) == {"done"} else 1


def run(name: str, dry: bool, out: Path, limit: float) -> dict[str, Any]:
    """Run one step; what it gave as far as it got, and how it ended."""
    rows, log = out / f".{name}.jsonl", out / "log.txt"
    rows.unlink(missing_ok=True)
    command = [sys.executable, __file__, str(out), name, "--child", *(["--dry"] if dry else [])]
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        print(f"\n=== {name}", file=file, flush=True)
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "done" if process.wait(timeout=limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = f"cut after {limit:.0f} s"
        finally:
            end_group(process)
    taken = time.monotonic() - start
    found = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    rows.unlink(missing_ok=True)
    print(f"{name}: {status}, {len(found)} rows, {taken:.0f} s", flush=True)
    if status != "done":
        print("".join(log.read_text(encoding="utf-8", errors="replace")[-1500:]), flush=True)
    return {"status": status, "seconds": round(taken, 1), "rows": [json.loads(r) for r in found]}


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a step and all processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def child(name: str, dry: bool, out: Path) -> int:
    """Write each row of a step as it comes."""
    import measure

    with open(out / f".{name}.jsonl", "w", encoding="utf-8", buffering=1) as file:
        try:
            for row in measure.STEPS[name](dry, out):
                print(*row, sep=" | ", flush=True)
                file.write(json.dumps(row) + "\n")
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def facts() -> dict[str, str]:
    """Date, machine, versions, and the GPU."""
    import torch

    import run as benchmarks

    known = benchmarks.facts()
    if torch.cuda.is_available():
        known["GPU"] = torch.cuda.get_device_name()
    return known


def load(out: Path) -> dict[str, Any]:
    """What earlier calls found."""
    path = out / RESULTS
    if not path.exists():
        return {"steps": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def save(out: Path, content: dict[str, Any]) -> None:
    """Write the results; whatever happens, there is a whole file."""
    new = out / f".{RESULTS}"
    new.write_text(json.dumps(content, indent=1), encoding="utf-8")
    new.replace(out / RESULTS)


def write_section(out: Path) -> None:
    """The section of RESULTS.md: the rows, the notes, and what was not measured."""
    import run as benchmarks

    content = load(out)
    rows = [row for step in content["steps"].values() for row in step["rows"]]
    compared = [tuple(row) for row in rows if row[2] and row[3]]
    failures = {
        name: content["steps"].get(name, {}).get("status", "not run")
        for name in LIMITS_S
        if content["steps"].get(name, {}).get("status") != "done"
    }
    part = benchmarks.body(compared, failures, content["facts"])
    notes = [f"- {claim}: {text}" for claim, text, ours, theirs, _ in rows if not ours]
    part = f"{part}\n### Notes\n\n" + "\n".join(notes) + "\n"
    page = benchmarks.RESULTS.read_text(encoding="utf-8")
    page = benchmarks.with_section(page, "CUDA", part)
    benchmarks.RESULTS.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
