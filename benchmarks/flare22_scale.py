"""FLARE22's study at the challenge's numbers of cases, on tiny scans: does any stage grow faster?

Two studies of synthetic scans, one with a quarter of the unlabelled scans, run to the end. Each
stage's seconds of both are printed, and the power of the number of cases with which they grow: 1 is
linear, 2 quadratic. Seconds are processor time where the stage notes it, else of the clock.

    python benchmarks/flare22_scale.py FOLDER [--unlabelled 2000] [--part 0.25] [-o FILE.csv]

A study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import pandas as pd

from contextseg.data.phantom import write_flare22
from contextseg.disk import read_json
from contextseg.studies.flare22 import reproduce_flare22

SETTINGS = (
    "net=deeplab-small",
    "second=deeplab-small",
    "size=stcn-small",
    "batch_size=2",
    "patch_vox=16,16",
    "threshold=0.01",
)
"""Small networks; every voted case joins, so that the last training reads all pseudo labels."""
LEAST_S = 2.0
"""Shorter stages say nothing of growth."""


def study(folder: Path, unlabelled: int) -> dict[str, float]:
    """Seconds of each stage of a finished study by name, and of the whole call that finished it."""
    data = folder / f"data-{unlabelled}"
    if not data.exists():
        write_flare22(data, 50, unlabelled, 50, 200, shape=(8, 16, 16))
    out = folder / f"out-{unlabelled}"
    start = time.process_time()
    reproduce_flare22(data, out, run=True, scale=0.0001, partial=True, settings=SETTINGS)
    seconds = {"all of this call, processor": time.process_time() - start}
    for path in sorted((out / "runs").glob("*/*/done.json")):
        seconds[f"{path.parent.parent.name}: {path.parent.name}"] = read_json(path)["seconds"]
    for path in sorted((out / "predicted").glob("*/*/efficiency.csv")):
        name = f"{path.parent.parent.name}: predict {path.parent.name}"
        seconds[name] = float(pd.read_csv(path)["seconds"].sum())
    return seconds


def main() -> None:
    """Run both studies, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unlabelled", type=int, default=2000)
    parser.add_argument("--part", type=float, default=0.25)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    few = round(given.unlabelled * given.part)
    small, large = study(given.folder, few), study(given.folder, given.unlabelled)
    ratio = math.log((50 + given.unlabelled) / (50 + few))
    rows = []
    for name, seconds in large.items():
        before = small.get(name, float("nan"))
        power = math.log(seconds / before) / ratio if before and before > 0 < seconds else math.nan
        rows.append({"stage": name, "few_s": before, "all_s": seconds, "power": power})
    table = pd.DataFrame(rows).round(3)
    table.to_csv(given.output, index=False)
    print(table.to_string(index=False))
    steep = table[(table["power"] > 1.3) & (table["all_s"] > LEAST_S)]
    print("steeper than linear:", ", ".join(steep["stage"]) or "none")


if __name__ == "__main__":
    main()
