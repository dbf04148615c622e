"""FLARE22's study at the challenge's numbers of cases, on tiny scans: does any stage grow faster?

Two studies of synthetic scans, one with a quarter of the unlabelled scans, run to the end. Each
stage's seconds of both are printed, and the power of the number of cases with which they grow: 1 is
linear, 2 quadratic. Seconds are of the clock, so other work on the machine is in them.

    python benchmarks/flare22_scale.py FOLDER [--unlabelled 2000] [--part 0.25]

A study that was stopped goes on. The table is `flare22_scale.csv`, the page `FLARE22_SCALE.md`.
"""

from __future__ import annotations

import argparse
import math
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from contextseg.data.phantom import write_flare22
from contextseg.disk import read_json
from contextseg.provenance import machine
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
TABLE = Path(__file__).with_suffix(".csv")
PAGE = Path(__file__).with_name("FLARE22_SCALE.md")
LEAST_S = 2.0
"""Shorter stages say nothing of growth."""


def study(folder: Path, unlabelled: int) -> dict[str, float]:
    """Seconds of each stage by name; what the study has not done yet is done first."""
    data = folder / f"data-{unlabelled}"
    if not data.exists():
        write_flare22(data, 50, unlabelled, 50, 200, shape=(8, 16, 16))
    out = folder / f"out-{unlabelled}"
    reproduce_flare22(data, out, run=True, scale=0.0001, partial=True, settings=SETTINGS)
    seconds = {}
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
    table.to_csv(TABLE, index=False)
    PAGE.write_text(page(table, few, given.unlabelled), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


def page(table: pd.DataFrame, few: int, many: int) -> str:
    """The table as Markdown, and the largest power of the stages that took long enough."""
    long = table[table["all_s"] > LEAST_S]
    steepest = long.loc[long["power"].idxmax()]
    lines = [
        "# FLARE22's study at the challenge's numbers of cases",
        "",
        "Written by `flare22_scale.py`; not edited by hand. "
        f"{machine()}, {datetime.now(UTC):%Y-%m-%d}. Scans of 8 x 16 x 16 voxels: 50 labelled, "
        f"{few:,} and {many:,} unlabelled, 50 to validate, 200 to test; small networks. Seconds of "
        "the clock on a machine that others used too. `power`: seconds grow with this power of the "
        "labelled and unlabelled scans; 1 is linear, 2 quadratic. Predictions are of the same "
        "scans in both.",
        "",
        f"The largest power of a stage of more than {LEAST_S:g} s: **{steepest['power']:.2f}** "
        f"({steepest['stage']}).",
        "",
        f"| stage | {few:,}, s | {many:,}, s | power |",
        "|---|--:|--:|--:|",
    ]
    for row in table.itertuples():
        power = "" if math.isnan(row.power) else f"{row.power:.2f}"
        lines.append(f"| {row.stage} | {row.few_s:.1f} | {row.all_s:.1f} | {power} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
