"""The network that comes with the package against interpolation of shapes, on held-out scans.

    python benchmarks/pretrained.py DATA [--cases test] [--jobs 2] [--output docs/pretrained]

DATA holds the folders of docs/pretrained.md. Every structure is filled from 1, 2, 3, 5 and 7 of its
slices by shapes (`interpolation`), by the network, and by both (`combined`). With "ends" the slices
are evenly spaced from the structure's first to its last, and nothing is filled beyond them; with
"inner" they lie in the middles of equal parts, and where the structure ends is not known. One slice
is the largest. Tables of Dice, and paired tests over cases, go to OUTPUT.csv and OUTPUT.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.propagation import LabelledSlices, fill, open_completion
from contextseg.propagation.pretrained import CompletionModel
from contextseg.volume import Volume, read, read_labels

SETTINGS = (
    (1, "largest"),
    (2, "inner"),
    (2, "ends"),
    (3, "inner"),
    (3, "ends"),
    (5, "ends"),
    (7, "ends"),
)
WAYS = ("interpolation", "propagation", "combined")
NEVER_TRAINED = ("mandible", "oesophagus")
ORGANS = (
    "brainstem",
    "spinal_cord",
    "right_parotid",
    "left_parotid",
    "oesophagus",
    "larynx",
    "mandible",
)


@dataclass(frozen=True)
class Example:
    """A scan, a structure in it, and the group that it is reported in."""

    case: str
    group: str
    scan: Volume
    mask: np.ndarray


def examples(data: Path, cases: str, most: int = 1000) -> Iterator[Example]:
    """The structures of the test cases, or of the cases that choices are made on."""
    split = json.loads((data / "sarcoma" / "split.json").read_text(encoding="utf-8"))
    for name in split["test"] if cases == "test" else split["train"][-4:]:
        scan = read(data / "sarcoma" / "imagesTr" / f"{name}_0000.nii.gz")
        label = read_labels(data / "sarcoma" / "labelsTr" / f"{name}.nii.gz").array
        yield Example(name, "sarcoma", scan, np.asarray(label) == 1)
    folder = data / "headneck"
    table = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    kind = "test" if cases == "test" else "train"
    names = sorted(n for n, row in table["cases"].items() if row["split"] == kind)
    for name in (names if cases == "test" else names[-10:])[:most]:
        scan = read(folder / "images" / f"{name}.nii.gz")
        label = np.asarray(read_labels(folder / "labels" / f"{name}.nii.gz").array)
        for organ in ORGANS:
            if organ in table["cases"][name]["annotated"]:
                yield Example(name, organ, scan, label == table["labels"][organ])
    if cases == "test":
        folder = data / "Task04_Hippocampus" / "imagesTr"
        for path in sorted(folder.glob("hippocampus_*.nii.gz"))[:most]:
            scan = read(path)
            label = read_labels(path.parents[1] / "labelsTr" / path.name).array
            for value, part in ((1, "anterior hippocampus"), (2, "posterior hippocampus")):
                yield Example(path.name.split(".")[0], part, scan, np.asarray(label) == value)


def labelled(mask: np.ndarray, count: int, where: str) -> LabelledSlices:
    """Axial slices of a structure."""
    present = np.flatnonzero(mask.any((1, 2)))
    if where == "largest":
        chosen = [int(mask.sum((1, 2)).argmax())]
    else:
        share = np.linspace(0, 1, count) if where == "ends" else (np.arange(count) + 0.5) / count
        chosen = sorted({int(present[round(s * (len(present) - 1))]) for s in share})
    return LabelledSlices(0, {i: mask[i].astype(np.int16) for i in chosen})


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / max(1, one.sum() + other.sum()))


def in_turn(given: list[Example]) -> list[Example]:
    """The groups in turn, so that a run that is stopped has some of each."""
    seen: dict[str, int] = {}
    places = []
    for example in given:
        places.append(seen.setdefault(example.group, 0))
        seen[example.group] += 1
    return [given[i] for i in np.argsort(places, kind="stable")]


def rows(
    data: Path, cases: str, weights: str, most: int = 1000, jobs: int = 1
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one structure after the other."""
    given = in_turn([e for e in examples(data, cases, most) if e.mask.any()])
    with multiprocessing.get_context("spawn").Pool(jobs, _started, (weights,)) as pool:
        yield from pool.imap(rows_of, given)


_MODELS: list[CompletionModel] = []


def _started(weights: str) -> None:
    torch.set_num_threads(1)
    _MODELS[:] = [open_completion(weights)]


def rows_of(example: Example) -> list[dict[str, Any]]:
    """One structure, from all of `SETTINGS`."""
    model, out = _MODELS[0], []
    present = np.flatnonzero(example.mask.any((1, 2)))
    for count, where in SETTINGS:
        slices = labelled(example.mask, count, where)
        ends = {1: (int(present[0]), int(present[-1]))} if where == "ends" else None
        row = {"case": example.case, "group": example.group, "slices": count, "where": where}
        for way in WAYS:
            start = time.process_time()
            chosen = None if way == "interpolation" else model
            filled = fill(example.scan, slices, chosen, way, ends, 0)
            row[f"{way}_s"] = round(time.process_time() - start, 3)
            row[way] = round(dice(np.asarray(filled.label.array) == 1, example.mask), 4)
        out.append(row)
    return out


def summary(table: list[dict[str, Any]]) -> dict[str, Any]:
    """Means of each group, and a paired test of the default against interpolation over cases."""
    from scipy.stats import wilcoxon

    groups = sorted({row["group"] for row in table})
    out: dict[str, Any] = {}
    for count, where in SETTINGS:
        chosen = [r for r in table if (r["slices"], r["where"]) == (count, where)]
        part: dict[str, Any] = {}
        for group in [*groups, "all", "never trained"]:
            mine = [
                r
                for r in chosen
                if group in (r["group"], "all")
                or (group == "never trained" and never_trained(r["group"]))
            ]
            if not mine:
                continue
            part[group] = {way: round(float(np.mean([r[way] for r in mine])), 4) for way in WAYS}
            part[group]["n"] = len(mine)
            for way in WAYS[1:]:
                apart = np.array([r[way] - r["interpolation"] for r in mine])
                p = float(wilcoxon(apart).pvalue) if np.any(apart) else 1.0
                part[group][f"{way}_p"] = float(f"{p:.2g}")
        out[f"{count} {where}"] = part
    return out


def never_trained(group: str) -> bool:
    return group in NEVER_TRAINED or "hippocampus" in group


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", choices=("test", "validation"), default="test")
    parser.add_argument(
        "--most", type=int, default=1000, help="cases of head and neck, and hippocampi"
    )
    parser.add_argument("--weights", default="", help="network.npz; default: the packaged one")
    parser.add_argument("--output", type=Path, default=Path("docs/pretrained"))
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    options = parser.parse_args()
    table: list[dict[str, Any]] = []
    for found in rows(options.data, options.cases, options.weights, options.most, options.jobs):
        table += found
        write(table, options)
        print(found[0]["case"], found[0]["group"], flush=True)


def write(table: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """What is known so far: every row, the summary, and a page with the table."""
    with options.output.with_suffix(".csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    facts = open_completion(options.weights).facts
    seconds = {way: float(np.median([row[f"{way}_s"] for row in table])) for way in WAYS}
    means = summary(table)
    result = {"cases": options.cases, "made": facts, "median_s": seconds, "dice": means}
    text = json.dumps(result, indent=1)
    options.output.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    lines = [
        "# The network that comes with the package, measured",
        "",
        "Mean Dice on held-out scans, written by `benchmarks/pretrained.py`, which explains the",
        "slices. `combined` is the default of `contextseg propagate`. p is of a paired Wilcoxon",
        "test of `combined` against `interpolation` over the cases; n is their number. Mandible,",
        "oesophagus and hippocampus are structures that the network was never trained on.",
        "",
        "| slices | structure | interpolation | network | combined | p | n |",
        "|---|---|---|---|---|---|---|",
    ]
    for setting, part in means.items():
        for group, values in part.items():
            dices = " | ".join(f"{values[way]:.3f}" for way in WAYS)
            p = values["combined_p"]
            lines.append(f"| {setting} | {group} | {dices} | {p:.2g} | {values['n']} |")
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
