"""How well `contextseg run --time` keeps to its time: a row for each run, in time_budget.csv.

    python benchmarks/time_budget.py DATA --times 3m,6m --seeds 0 --set base_width=8

Wall time is that of the whole command, the start of Python included. The load of the machine is
noted: a machine that others use as well changes its speed between the measurement and the end.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contextseg.arguments import seconds_of
from contextseg.disk import read_json
from contextseg.provenance import machine

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = (
    *("data", "method", "seed", "time_s", "wall_s", "share", "steps", "step_s_measured", "step_s"),
    *("after_s_expected", "after_s", "load", "threads", "machine"),
)


def measured(data: Path, method: str, seed: int, text: str, words: list[str]) -> dict[str, object]:
    """Run once, and compare what was expected with what came."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        line = [sys.executable, "-m", "contextseg", "run", str(data), "-o", str(run)]
        line += ["--method", method, "--seed", str(seed), "--time", text]
        line += [part for word in words for part in ("--set", word)]
        started = time.monotonic()
        subprocess.run(line, check=True)
        wall = time.monotonic() - started
        trainings = sorted(run.glob("train-*"), key=lambda path: int(path.name[6:]))
        length = read_json(trainings[-1] / "length.json")
        rows = (trainings[-1] / "log.csv").read_text(encoding="utf-8").splitlines()
        seconds = float(rows[-1].split(",")[2])
        after = ("predict", "evaluate", "report")
        spent = sum(read_json(run / stage / "done.json")["seconds"] for stage in after)
    facts = length["measured"]
    return {
        "data": data.name,
        "method": method,
        "seed": seed,
        "time_s": seconds_of(text),
        "wall_s": round(wall, 1),
        "share": round(wall / seconds_of(text), 3),
        "steps": length["steps"],
        "step_s_measured": facts["step_s"],
        "step_s": round(seconds / length["steps"], 4),
        "after_s_expected": round(facts["after_s"], 1),
        "after_s": round(spent, 1),
        "load": round(os.getloadavg()[1], 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "machine": machine(),
    }


def main() -> None:
    """Measure each time and seed, and add the rows to the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--times", default="3m")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--method", default="supervised")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    for text in arguments.times.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            row = measured(arguments.data, arguments.method, seed, text, arguments.set)
            new = not TABLE.exists()
            with open(TABLE, "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)


if __name__ == "__main__":
    main()
