"""Choices of CoLab by short trainings: the order of its two steps, and which look-ahead.

Dice, sensitivity and precision of unseen cases, and the CPU time of the training beside that of
plain training, for each seed. Sarcomas at 5 mm: 18 training cases to learn from and the other 8 to
score, so that no test case chooses anything; and phantoms with look-alikes. One thread.

    python benchmarks/colab_choices.py DATA    DATA holds the set sarcoma

Rows that `colab_choices.csv` has are not measured again. The page is `COLAB_CHOICES.md`.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from contextseg.data import phantom
from contextseg.data.augment import Augmentation
from contextseg.data.layouts import Case, open_dataset
from contextseg.evaluation import evaluate
from contextseg.methods import METHODS
from contextseg.pipeline import references
from contextseg.predictor import Member, Predictor
from contextseg.provenance import machine
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.training import Training

ROWS = Path(__file__).with_name("colab_choices.csv")
PAGE = Path(__file__).with_name("COLAB_CHOICES.md")
METRICS = ("dsc", "sen", "prc", "hd95_mm", "fp_near_ml", "fp_far_ml")
COLUMNS = ("data", "seed", "way", *METRICS, "seconds")
DATA = ("sarcoma", "phantom")
SEEDS = (0, 1, 2)
STEPS = {"sarcoma": 250, "phantom": 300}
LR = {"sarcoma": 1e-3, "phantom": 2e-3}

PLAIN = "none"
PIECES = {"lookahead_items": 2, "lookahead_parts": 2, "generator_every": 2}
ALL = {"lookahead_items": 1, "lookahead_parts": 1}
LAST = {**ALL, "lookahead_layers": "last"}
UPDATED = {"labels_from": "updated"}
WAYS: dict[str, dict[str, Any]] = {
    "an eighth of half of the items, every 2nd step": PIECES,
    "the same, labels of the updated g": PIECES | UPDATED,
    "the last level, every 4th step": LAST | {"generator_every": 4},
    "the same, labels of the updated g (4)": LAST | {"generator_every": 4} | UPDATED,
    "all of f, every step": ALL | {"generator_every": 1},
    "the same, labels of the updated g (1)": ALL | {"generator_every": 1} | UPDATED,
}


def prepared(name: str, data: Path, work: Path) -> tuple[Run, list[Case]]:
    """A run whose cases are preprocessed, and the cases to score."""
    if name == "phantom":
        folder = work / "phantom-data"
        phantom.write_dataset(folder, labelled=8, test=16, shape=(32, 40, 40), look_alikes=4)
        planning = {"patch_vox": (24, 32, 32), "batch_size": 2, "base_width": 8, "max_levels": 3}
        scored = list(open_dataset(folder).test)
        cases = None
    else:
        folder = data / name
        planning = {"spacing_mm": (5.0,) * 3, "patch_vox": (24,) * 3, "batch_size": 2}
        planning |= {"base_width": 8, "max_levels": 4}
        known = {case.name: case for case in open_dataset(folder).train}
        split = json.loads((folder / "split.json").read_text(encoding="utf-8"))["train"]
        scored = [known[case] for case in split[18:]]
        cases = tuple(known[case] for case in split[:18]), ()
    settings = Settings(str(folder), planning=planning)
    run = Run(work / name, settings, cases=cases)
    run.make_plan()
    run.preprocess()
    return run, scored


def one(
    run: Run, scored: Sequence[Case], way: str, seed: int, folder: Path
) -> tuple[dict[str, float], float]:
    """Mean metrics of the scored cases, and CPU seconds of the training."""
    name = run.folder.name
    training = Training(steps=STEPS[name], lr=LR[name], check_every=0, save_every=10**9)
    settings = Settings(run.settings.dataset, seed=seed, training=training)
    settings = settings.set([f"augmentation.strength={Augmentation().strength}"])
    here = Run(folder, settings, cases=run._cases)
    here.use_plan(run.plan)
    here.make_plan()
    here.preprocess()
    torch.manual_seed(seed)
    arguments = {"context_classes": 2, **WAYS[way]} if way != PLAIN else {}
    method: Any = METHODS["colab" if arguments else "supervised"]
    method = method(run.plan, optimizer="adamw", **arguments)
    started = time.process_time()
    method = here.train(method)
    seconds = time.process_time() - started
    prediction = PredictionSettings(mirror=False, confidence=False)
    predictor = Predictor([Member(method, run.plan)], prediction)
    failed = predictor.predict_cases(scored, folder / "predictions")
    assert not failed, failed
    pairs = references(run.dataset, scored, folder / "predictions")
    table, failed = evaluate(pairs, run.plan.region_values(), workers=1)
    assert not failed, failed
    return {metric: float(table[metric].mean()) for metric in METRICS}, seconds


# --- rows and page --------------------------------------------------------------------------------


def read_rows() -> list[dict[str, str]]:
    """All rows measured so far."""
    if not ROWS.exists():
        return []
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Write all rows."""
    with ROWS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def page(rows: Sequence[dict[str, str]]) -> str:
    """The page, of the rows."""
    lines = ["# Choices of CoLab, by short trainings", "", _folded_doc(), ""]
    for data in DATA:
        of_data = whole_seeds([row for row in rows if row["data"] == data])
        if not of_data:
            continue
        plain = {row["seed"]: row for row in of_data if row["way"] == PLAIN}
        seeds = sorted({row["seed"] for row in of_data})
        lines += [f"## {data}, {STEPS[data]} steps, seeds {', '.join(seeds)}", ""]
        lines += ["| way | Dice | sensitivity | precision | HD95, mm | FP near, ml | FP far, ml |"]
        lines[-1] += " time |"
        lines += ["|---|" + "--:|" * 7]
        for way in (PLAIN, *WAYS):
            found = [row for row in of_data if row["way"] == way]
            if not found:
                continue
            cells = [_spread([float(row[m]) for row in found], m) for m in METRICS]
            times = [float(r["seconds"]) / float(plain[r["seed"]]["seconds"]) for r in found]
            lines.append(f"| {way} | {' | '.join(cells)} | {mean(times):.2f} |")
        lines.append("")
    lines.append(f"Machine: {machine()}.")
    return "\n".join(lines) + "\n"


def whole_seeds(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of those seeds that every way has."""
    ways = {PLAIN, *WAYS}
    seeds = {row["seed"] for row in rows}
    done = {s for s in seeds if {row["way"] for row in rows if row["seed"] == s} >= ways}
    return [row for row in rows if row["seed"] in done]


def _folded_doc() -> str:
    return (
        "Written by `colab_choices.py`. Mean of the scored cases, then of the seeds ± s.d. over "
        "seeds. t = 2, the small g, its rate 0.003.\nTime: CPU time of the training, in plain "
        "training's; these networks are so small that the number of operations counts, not their "
        "size."
    )


def _spread(values: Sequence[float], metric: str) -> str:
    digits = 3 if metric in ("dsc", "sen", "prc") else 2
    sd = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """Measure what `colab_choices.csv` lacks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of the set sarcoma")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        sets = {name: prepared(name, data, work) for name in DATA}
        cells = product(DATA, SEEDS, (PLAIN, *WAYS))
        for number, (name, seed, way) in enumerate(cells):
            key = {"data": name, "seed": str(seed), "way": way}
            rows = read_rows()
            if any(all(row[k] == v for k, v in key.items()) for row in rows):
                continue
            scores, seconds = one(*sets[name], way, seed, work / f"cell{number}")
            texts = {metric: f"{value:.4f}" for metric, value in scores.items()}
            write_rows([*rows, {**key, **texts, "seconds": f"{seconds:.2f}"}])
            PAGE.write_text(page(read_rows()), encoding="utf-8")
            print(*key.values(), texts["dsc"], f"{seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
