"""Dice against CPU time: our training, and nnU-Net v2's own trainer, on the same cases.

Equal on both sides: the network (nnU-Net's starts with the weights of ours), the patch, the batch,
the preprocessed scans, one thread, and how the trained network is applied. nnU-Net's trainer has
its own loader, augmentation, loss, optimiser and polynomial schedule, which ends with the budget.
It measures a step, and takes the steps that fit into the budget; ours takes as many steps, and the
CPU time of both is in the table (nnU-Net's with its 25 steps of measuring). Cases that are reported
were never used to choose a default; `choose` is how the defaults were chosen, on other cases.

    python benchmarks/accuracy.py compare DATA   Dice at each budget; DATA holds the data sets
    python benchmarks/accuracy.py choose DATA    trials of optimiser, rate and augmentation

A cell is one training of one side: it becomes a row of `accuracy.csv` when it is done, and is not
measured again. What was stopped loses the cell that it was in; the same command goes on. Cells are
chosen by `--minutes`, `--seeds` and `--data-sets`, `--dry-run` lists what is left, and for how
long. The page is `ACCURACY.md`. In the background, one thread, with nnU-Net v2 installed
(`benchmarks/requirements.txt`):

    OMP_NUM_THREADS=1 nohup nice python benchmarks/accuracy.py compare DATA \\
        --minutes 5 30 120 --seeds 0 1 2 > accuracy.log &
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from contextseg.data.augment import Augmentation
from contextseg.data.layouts import Case, Dataset, open_dataset
from contextseg.data.sampling import Sampler
from contextseg.disk import csv_text, write_text
from contextseg.evaluation import evaluate
from contextseg.evaluation.statistics import holm, signed_rank
from contextseg.methods import Method, Supervised
from contextseg.pipeline import references
from contextseg.predictor import Member, Predictor
from contextseg.provenance import machine
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.training import Training, train
from training import nnunet_trainer, same_network

ROWS = Path(__file__).with_name("accuracy.csv")
PAGE = Path(__file__).with_name("ACCURACY.md")
COLUMNS = ("part", "data", "side", "seed", "minutes", "steps", "cpu_s", "dsc", "hd95_mm", "cases")
"""Of `accuracy.csv`; `cases` holds CASE:DICE of each scored case, its mean over the classes."""
OURS, PEER = "contextseg", "nnU-Net v2 nnUNetTrainer"
MINUTES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
TRIAL_STEPS = (400, 1600, 8000)
SETS = ("hippocampus", "sarcoma")


@dataclass(frozen=True)
class Trial:
    """A way to train shortly: optimiser, rate of the first step, strength of the augmentation."""

    optimizer: str
    lr: float
    strength: float

    def __str__(self) -> str:
        return f"{self.optimizer} {self.lr:g}, augmentation {self.strength:g}"


TRIALS = (
    Trial("sgd", 1e-2, 1.0),
    Trial("sgd", 1e-2, 0.25),
    Trial("adamw", 2e-3, 1.0),
    Trial("adamw", 5e-3, 1.0),
    Trial("adamw", 5e-3, 0.5),
    Trial("adamw", 3e-3, 0.25),
    Trial("adamw", 5e-3, 0.25),
    Trial("adamw", 5e-3, 0.0),
)

LONG_TRIALS = TRIALS[0], TRIALS[3], TRIALS[6]
"""Those that are tried at the largest number of steps."""


# --- data -----------------------------------------------------------------------------------------


def cases_of(name: str, folder: Path, part: str) -> tuple[Dataset, list[Case], list[Case], Any]:
    """The data set, the cases to train on, those to score, and what the plan is asked.

    For "choose" both are of the training cases; the cases of "compare" that are scored are in no
    trial.
    """
    if name == "hippocampus":
        data = open_dataset(folder / "Task04_Hippocampus")
        numbers = {case.name: int(case.name.split("_")[1]) for case in data.train}
        last = 30 if part == "choose" else 40
        until = 40 if part == "choose" else 1000
        training = [case for case in data.train if numbers[case.name] <= last]
        scored = [case for case in data.train if last < numbers[case.name] <= until]
        planning: dict[str, Any] = {"patch_vox": (24, 32, 24)}
    else:
        data = open_dataset(folder / "sarcoma")
        split = json.loads((folder / "sarcoma" / "split.json").read_text(encoding="utf-8"))
        known = {case.name: case for case in (*data.train, *data.test)}
        names = split["train"], split["test"]
        if part == "choose":
            names = split["train"][:18], split["train"][18:]
        training, scored = ([known[case] for case in side] for side in names)
        planning = {"spacing_mm": (5.0, 5.0, 5.0), "patch_vox": (24, 24, 24)}
    return data, training, scored, {**planning, "batch_size": 2, "base_width": 8}


def prepared(name: str, folder: Path, part: str, work: Path) -> tuple[Run, list[Case]]:
    """A run whose cases are preprocessed, and the cases to score."""
    data, training, scored, planning = cases_of(name, folder, part)
    settings = Settings(str(data.folder), planning=planning)
    run = Run(work / f"{part}-{name}", settings, cases=(tuple(training), ()))
    run.make_plan()
    run.preprocess()
    return run, scored


# --- the two sides --------------------------------------------------------------------------------


def train_ours(run: Run, steps: int, seed: int, folder: Path, trial: Trial | None) -> Method:
    """Our training, with its defaults, or those of a trial."""
    torch.manual_seed(seed)
    if trial:
        method = Supervised(run.plan, optimizer=trial.optimizer)
        augmentation = Augmentation(strength=trial.strength)
        training = Training(steps=steps, lr=trial.lr, check_every=0, save_every=10**9, device="cpu")
    else:
        method = Supervised(run.plan)
        method.visits_per_step = run.plan.batch_size / len(run.split[0])
        method.settle(steps, 0)
        augmentation = Augmentation(strength=method.strength)
        training = Training(steps=steps, check_every=0, save_every=10**9, device="cpu")
        training = replace(training, lr=method.settle(steps, 0))
    sampler = Sampler(run.cached(run.split[0]), run.plan, seed, augmentation)
    train(method, sampler.batch, folder, training, batch_size=run.plan.batch_size, seed=seed)
    return method.eval()


class Peer(Method):
    """nnU-Net's network, as our prediction applies a method."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.net = network

    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        raise NotImplementedError("it is trained by nnU-Net's trainer")

    def predict(self, image: torch.Tensor) -> torch.Tensor:
        outputs = self.net(image)
        return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def train_peer(run: Run, minutes: float, seed: int, folder: Path) -> tuple[Method, int]:
    """nnU-Net's trainer for that CPU time, from our start weights; the method and its steps."""
    with redirect_stdout(sys.stderr):
        cases = run.cached(run.split[0])
        trainer = nnunet_trainer(run.plan, cases, folder, torch.device("cpu"))
        loader, unused = trainer.get_dataloaders()
    torch.manual_seed(seed)
    same_network(Supervised(run.plan).net, trainer)
    weights = {name: w.clone() for name, w in trainer.network.state_dict().items()}
    trainer.network.train()
    for _ in range(5):
        trainer.train_step(next(loader))
    started = time.process_time()
    for _ in range(20):
        trainer.train_step(next(loader))
    steps = max(1, round(60 * minutes / ((time.process_time() - started) / 20)))
    trainer.network.load_state_dict(weights)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    for step in range(steps):
        rate = trainer.initial_lr * (1 - step / steps) ** 0.9
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        trainer.train_step(next(loader))
    for each in (loader, unused):
        if hasattr(each, "_finish"):
            each._finish()
    return Peer(trainer.network).eval(), steps


# --- what is measured -----------------------------------------------------------------------------


def score(run: Run, method: Method, cases: Sequence[Case], folder: Path) -> tuple[str, str, str]:
    """Mean Dice and HD95 of all cases and classes, and each case's Dice; a missed class has 0."""
    settings = PredictionSettings(mirror=False, confidence=False)
    failed = Predictor([Member(method, run.plan)], settings).predict_cases(cases, folder)
    assert not failed, failed
    pairs = references(run.dataset, cases, folder)
    table, failed = evaluate(pairs, run.plan.region_values(), workers=1)
    assert not failed, failed
    each = table.groupby("case", sort=False)["dsc"].mean()
    named = " ".join(f"{case}:{value:.4f}" for case, value in each.items())
    return f"{table['dsc'].mean():.4f}", f"{table['hd95_mm'].mean():.2f}", named


class Cell(NamedTuple):
    """One training to measure: the first five columns of its row, as text, and what they mean."""

    key: tuple[str, ...]
    data: str
    side: Any
    seed: int
    amount: float


def cells(
    part: str,
    minutes: Sequence[float] = MINUTES,
    seeds: Sequence[int] = (0, 1, 2),
    data_sets: Sequence[str] = SETS,
    steps: Sequence[int] = TRIAL_STEPS,
) -> list[Cell]:
    """Every cell, short budgets first; nnU-Net's before ours, which takes as many steps."""

    def sides(amount: float) -> tuple[Any, ...]:
        if part == "compare":
            return PEER, OURS
        return LONG_TRIALS if amount == TRIAL_STEPS[-1] else TRIALS

    return [
        Cell((part, name, str(side), str(seed), str(amount)), name, side, seed, amount)
        for amount in (map(float, minutes) if part == "compare" else steps)
        for seed in seeds
        for name in data_sets
        for side in sides(amount)
    ]


def left(every: Sequence[Cell]) -> list[Cell]:
    """The cells that have no row."""
    known = {tuple(row[name] for name in COLUMNS[:5]) for row in read_rows()}
    return [cell for cell in every if cell.key not in known]


def measure(part: str, folder: Path, every: Sequence[Cell]) -> None:
    """Measure the cells that have no row; each row is written as it comes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)

        @cache
        def data(name: str) -> tuple[Run, list[Case]]:
            return prepared(name, folder, part, work)

        for number, cell in zip(count(), left(every)):
            run, scored = data(cell.data)
            place = work / f"cell{number}"
            place.mkdir()
            row = one(part, run, scored, cell.side, cell.seed, cell.amount, place)
            write_row(dict(zip(COLUMNS, (*cell.key, *row))))


def listing(every: Sequence[Cell]) -> str:
    """The cells that are left, and the CPU time of their trainings where the budget says it."""
    todo = left(every)
    lines = [f"{' '.join(cell.key)}" for cell in todo]
    lines.append(f"{len(todo)} of {len(every)} cells left")
    budgets = [60 * cell.amount for cell in todo if cell.key[0] == "compare"]
    if budgets:
        lines[-1] += f", about {sum(budgets) / 3600:.1f} h of training on one core"
    return "\n".join(lines)


def peer_steps(run: Run, seed: int, amount: float) -> int:
    """The steps that nnU-Net's trainer took in the same cell."""
    cell = run.folder.name.split("-")[1], PEER, str(seed), str(amount)
    names = ("data", "side", "seed", "minutes")
    rows = [row for row in read_rows() if tuple(row[name] for name in names) == cell]
    return int(rows[-1]["steps"])


def one(
    part: str, run: Run, scored: Sequence[Case], side: Any, seed: int, amount: float, place: Path
) -> tuple[Any, ...]:
    """Steps, CPU seconds of training, and what `score` says of one training."""
    if side == PEER:
        started = time.process_time()
        method, steps = train_peer(run, amount, seed, place / "peer")
    else:
        trial = None if side == OURS else side
        steps = int(amount)
        if trial is None:
            steps = peer_steps(run, seed, amount)
        (place / "run").mkdir()
        started = time.process_time()
        method = train_ours(run, steps, seed, place / "run", trial)
    seconds = time.process_time() - started
    return steps, f"{seconds:.1f}", *score(run, method, scored, place / "predictions")


# --- rows and page --------------------------------------------------------------------------------


def read_rows() -> list[dict[str, str]]:
    """All rows measured so far; one that was cut off while it was written is none."""
    if not ROWS.exists():
        return []
    with open(ROWS, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def write_row(row: dict[str, Any]) -> None:
    """Add a row, and write the page anew; both files are replaced whole."""
    rows = [*read_rows(), {name: str(row[name]) for name in COLUMNS}]
    write_text(ROWS, csv_text(list(COLUMNS), rows))
    write_text(PAGE, page(rows))
    print(*row.values(), flush=True)


def page(rows: Sequence[dict[str, str]]) -> str:
    """The page: a table of each part, means over seeds with each seed's value."""
    lines = [
        "# Dice against CPU time",
        "",
        "Written by `benchmarks/accuracy.py` from `accuracy.csv`; not edited by hand.",
        "",
        f"- Machine: {machine()}, one thread, CPU time",
        f"- Peer: {PEER} 2.8.1, its own loader, augmentation, loss and optimiser",
        "- Network: U-Net of 8 channels, 2 patches a step; hippocampus at 1 mm, sarcoma at 5 mm",
        "",
    ]
    titles = {"compare": "Equal steps, cases held out of every choice", "choose": "The choice"}
    for part, title in titles.items():
        mine = [row for row in rows if row["part"] == part]
        if mine:
            lines += [f"## {title}", "", *table(mine, part), ""]
        if mine and part == "compare" and (differences := list(against(mine))):
            lines += [
                "### Ours minus nnU-Net's",
                "",
                "Dice case by case, each the mean over the seeds that both sides have; Wilcoxon's "
                "signed-rank test over the cases, after Holm's correction for this table. The goal "
                "is the second row of a budget: not less in half the time.",
                "",
                "| data | nnU-Net, min | ours, min | seeds | cases | difference | p, Holm |",
                "|---|--:|--:|--:|--:|--:|--:|",
                *differences,
                "",
            ]
    return "\n".join(lines)


def against(rows: Sequence[dict[str, str]]) -> Iterator[str]:
    """Lines of the paired tests: ours in the same time as nnU-Net's, and in half of it."""
    dice: dict[tuple[str, str, float], dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["cases"]:
            key = row["data"], row["side"], float(row["minutes"])
            named = (word.rsplit(":", 1) for word in row["cases"].split(" "))
            dice.setdefault(key, {})[row["seed"]] = {name: float(value) for name, value in named}
    found = []
    for data, side, minutes in sorted(dice):
        for ours in (minutes, minutes / 2) if side == PEER else ():
            theirs, mine = dice[data, PEER, minutes], dice.get((data, OURS, ours), {})
            if seeds := sorted(theirs.keys() & mine.keys()):
                gains = [
                    mean(mine[seed][case] - theirs[seed][case] for seed in seeds)
                    for case in theirs[seeds[0]]
                ]
                found.append((data, minutes, ours, len(seeds), gains))
    tests = [signed_rank(gains)[0] for *_, gains in found]
    for (data, minutes, ours, seeds, gains), p in zip(found, holm(tests)):
        yield (
            f"| {data} | {minutes:g} | {ours:g} | {seeds} | {len(gains)} | {mean(gains):+.3f} "
            f"| {p:.4f} |"
        )


def table(rows: Sequence[dict[str, str]], part: str) -> Iterator[str]:
    """The lines of one table."""
    amount = "budget, min" if part == "compare" else "steps"
    yield f"| data | {amount} | training | Dice, mean | Dice of each seed | steps | CPU s |"
    yield "|---|--:|---|--:|---|--:|--:|"
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["minutes"], row["side"]), []).append(row)
    for (data, minutes, side), members in sorted(groups.items(), key=_order):
        values = [float(row["dsc"]) for row in members]
        each = ", ".join(f"{value:.3f}" for value in values)
        steps = round(mean(int(row["steps"]) for row in members))
        cpu = round(mean(float(row["cpu_s"]) for row in members))
        yield f"| {data} | {minutes} | {side} | {mean(values):.3f} | {each} | {steps} | {cpu} |"


def _order(group: Any) -> tuple[Any, ...]:
    (data, minutes, side), _ = group
    return data, float(minutes), side


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument(
        "part",
        choices=("compare", "choose"),
        help="compare: ours and nnU-Net on held-out cases; choose: trials of our settings",
    )
    parser.add_argument("data", type=Path, help="folder of Task04_Hippocampus and sarcoma")
    parser.add_argument(
        "--minutes",
        type=float,
        nargs="+",
        default=MINUTES,
        help="budgets of compare, in minutes of one core's time; default: %(default)s",
    )
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        choices=TRIAL_STEPS,
        default=TRIAL_STEPS,
        help="lengths of choose; default: %(default)s",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: %(default)s"
    )
    parser.add_argument(
        "--data-sets", nargs="+", choices=SETS, default=SETS, help="default: %(default)s"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the cells that are left, and measure none"
    )
    asked = parser.parse_args(words)
    every = cells(asked.part, asked.minutes, asked.seeds, asked.data_sets, asked.steps)
    if asked.dry_run:
        print(listing(every))
    else:
        measure(asked.part, asked.data, every)


if __name__ == "__main__":
    main()
