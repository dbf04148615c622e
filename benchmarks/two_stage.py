"""Two stages without a trained STCN: what fills best from slices that a network drew?

For each finished 2-D run, its validation cases in two stages, filled by the shapes of the reference
slices, or by the network that comes with the package, alone or with the shapes. With `--torso DATA`
also from perfect slices: the label map of the torso CT (labelled by TotalSegmentator), of which
every fifth axial slice is given, and of the 13 organs of FLARE22 those that it has.

    python benchmarks/two_stage.py RUN [RUN ...] [--torso DATA] [--every 5] [-o two_stage.csv]

A row of the table is a case, a class and a way to fill; cases that the table has are not measured
again. What is printed are means over classes,
then cases, then runs of a data set, and each way's difference to interpolation over cases, with
the p of a Wilcoxon test.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from contextseg.metrics import evaluate_case, flare22_organ
from contextseg.pipeline import open_predictor
from contextseg.propagation import (
    NETWORK_WAYS,
    LabelledSlices,
    fill,
    open_completion,
    ranges,
    select_slices,
    uniform_slices,
)
from contextseg.runs import Run
from contextseg.twostage import TwoStageSettings, segment_two_stage
from contextseg.volume import read, read_labels

ROWS = (
    ("interpolation", "all", 1),
    ("propagation", "all", 1),
    ("combined", "all", 1),
    ("propagation", "largest", 3),
)
"""Way, selection, reference slices of each class."""
BASE = "interpolation, all, 1"
METRICS = ["dsc", "nsd", "hd95_mm"]


def of_run(
    folder: Path, every: int, known: Collection[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """The validation cases of a run, by every row, and with every slice predicted."""
    run = Run.open(folder)
    predictor = open_predictor([folder])
    [member] = predictor.members
    settings = replace(predictor.settings, mirror=False)
    completion = open_completion()
    classes = {name: [value] for name, value in zip(member.plan.classes, member.plan.values)}
    del classes[member.plan.classes[0]]
    for case in run.split[1]:
        if (folder.name, case.name) in known:
            continue
        assert case.label is not None
        scan, truth = read(*case.images), read_labels(case.label)
        # the pooled seed of a set is told by its folder, NAME-SEED
        about = {"set": folder.name.rpartition("-")[0], "run": folder.name, "case": case.name}
        every_slice = TwoStageSettings(every=1, select="all", way="interpolation")
        for way, select, slices, stages in (
            ("every slice", "", 0, every_slice),
            *((*row, TwoStageSettings(every, 0, row[1], row[2], way=row[0])) for row in ROWS),
        ):
            network = completion if way in NETWORK_WAYS else None
            start = time.process_time()
            result = segment_two_stage(scan, member, network, stages, settings, case.name)
            seconds = time.process_time() - start
            name = f"{way}, {select}, {slices}" if slices else way
            rows = evaluate_case(result.label.array, truth.array, scan.spacing_mm, classes)
            yield from ({**about, "way": name, "seconds": seconds, **row} for row in rows)


def of_torso(data: Path, every: int) -> Iterator[dict[str, Any]]:
    """The torso CT from perfect slices."""
    scan = read(data / "torso_ct.nii.gz").oriented("SAR")
    whole = read_labels(data / "torso_seg_v1_104classes.nii.gz").oriented("SAR").array
    names = json.loads((data / "labels_v1.json").read_text(encoding="utf-8"))
    organs = {facts["name"]: int(k) for k, facts in names.items() if flare22_organ(facts["name"])}
    truth = np.zeros(whole.shape, np.uint8)
    classes = {}
    for k, (name, value) in enumerate(organs.items(), 1):
        if (whole == value).any():
            truth[whole == value] = k
            classes[name] = [k]
    numbers = uniform_slices(len(truth), every)
    sampled = {i: truth[i] for i in numbers}
    completion = open_completion()
    for way, select, slices in ROWS:
        chosen = select_slices(select, truth[numbers], None, numbers, slices)
        ends = {}
        for k, (first, last) in ranges(LabelledSlices(0, dict(sampled))).items():
            before = max((i for i in numbers if i < first), default=-1)
            after = min((i for i in numbers if i > last), default=len(truth))
            ends[k] = before + 1, after - 1
        network = completion if way in NETWORK_WAYS else None
        labelled = LabelledSlices(0, {i: sampled[i] for i in chosen})
        start = time.process_time()
        label = fill(scan, labelled, network, way, ends).label.array
        about = {"set": "torso, perfect slices", "run": "torso", "case": "torso"}
        about |= {"way": f"{way}, {select}, {slices}", "seconds": time.process_time() - start}
        rows = evaluate_case(label, truth, scan.spacing_mm, classes)
        yield from ({**about, **row} for row in rows)


def summary(table: pd.DataFrame) -> str:
    """Means by set and way, and the differences to interpolation, as Markdown."""
    lines = ["| set | filled by | DSC | NSD | HD95, mm | s | DSC against interpolation |"]
    lines.append("|---|---|--:|--:|--:|--:|---|")
    for name, part in table.groupby("set", sort=False):
        # the torso is one case: its organs are compared
        unit = ["run", "case", "class"] if part["case"].nunique() == 1 else ["run", "case"]
        cases = part.groupby(["way", *unit], sort=False)[[*METRICS, "seconds"]].mean()
        base = cases.loc[BASE]["dsc"]
        for way in part["way"].drop_duplicates():
            mean = cases.loc[way].mean()
            apart = (cases.loc[way]["dsc"] - base).dropna()
            p = wilcoxon(apart).pvalue if way != BASE and apart.any() else float("nan")
            more = "" if way == BASE else f"{apart.mean():+.3f} (p = {p:.3f}, n = {len(apart)})"
            numbers = f"{mean['dsc']:.3f} | {mean['nsd']:.3f} | {mean['hd95_mm']:.1f}"
            lines.append(f"| {name} | {way} | {numbers} | {mean['seconds']:.1f} | {more} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the table, print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--torso", type=Path)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = parser.parse_args()
    kept = ["set", "run", "case", "class", "way", *METRICS, "seconds"]
    table = pd.DataFrame(columns=kept)
    if given.output.exists():
        table = pd.read_csv(given.output, dtype={"case": str})
    known = set(zip(table["run"], table["case"]))
    parts = [of_run(folder, given.every, known) for folder in given.runs]
    if given.torso and ("torso", "torso") not in known:
        parts.append(of_torso(given.torso, given.every))
    for rows in parts:
        for _, case in groupby(rows, lambda row: row["case"]):
            more = pd.DataFrame(case)[kept].round(4)
            table = more if table.empty else pd.concat([table, more])
            table.to_csv(given.output, index=False)
    print(summary(table))


if __name__ == "__main__":
    main()
