"""How near a cheap look-ahead of CoLab comes to the whole one, over short trainings.

The generator g descends a meta-gradient (Li et al., IEEE TMI 2023, Eq. 12 to 15), of the whole
batch in the paper. A cheaper estimate of it is compared with the exact gradient of the same step:
the cosine between the two, and the ratio of their lengths. Trainings are those of docs/results.md:
a phantom with look-alikes, and sarcomas at 4 mm. The network follows the default look-ahead; what
is measured changes nothing in it.

What a step costs is counted, not timed, so that no other work on the machine is in it: floating
point operations of convolutions and matrix products, and operations that are dispatched, which is
what a GPU waits for; forward, look-ahead, backward and optimisers together.

    python benchmarks/lookahead.py DATA    DATA holds the set sarcoma; rows go to lookahead.csv
    python benchmarks/lookahead.py --cost  counts, into lookahead_cost.csv

Rows that the tables have are not measured again. The page is `LOOKAHEAD.md`.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from colab import Size, stepper
from contextseg.batch import Batch
from contextseg.data import phantom
from contextseg.losses import shrunk
from contextseg.methods import CoLab
from contextseg.methods.colab import meta_gradient, piece
from contextseg.methods.context import distances
from contextseg.provenance import machine
from contextseg.ranks import Mean
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.training import Training

ROWS = Path(__file__).with_name("lookahead.csv")
COSTS = Path(__file__).with_name("lookahead_cost.csv")
PAGE = Path(__file__).with_name("LOOKAHEAD.md")
DATA = ("phantom", "sarcoma")
SEEDS = (0, 1, 2)
CONTEXTS = (2, 4)
STEPS = 150
AT = (0, 20, 50, 100, 148)
MOMENTUM = 0.9

Estimate = Callable[["Measured", Batch, float], list[Tensor]]
"""(method, batch, rate) to a gradient for each parameter of g."""


# --- estimates ------------------------------------------------------------------------------------


def of(method: Measured, batch: Batch, lr: float, trained: Sequence[str] = ()) -> list[Tensor]:
    """The meta-gradient of a batch; with `trained`, f looks ahead with those of its parts alone."""
    net = method.net
    last = f"merges.{len(net.merges) - 1}"
    parts = tuple(part.replace("merges.LAST", last) + "." for part in trained) or ("",)
    kept = {name: p.grad for name, p in net.named_parameters()}

    def those(v: list[Tensor]) -> None:
        for name, part in zip(kept, v):
            if not name.startswith(parts):
                part.zero_()

    for name, p in net.named_parameters():
        p.grad = p.grad if name.startswith(parts) else None
    near = method.near(distances(batch))
    gradient = meta_gradient(net, method.generator, batch, near, lr, those)
    for name, p in net.named_parameters():
        p.grad = kept[name]
    return gradient


def whole(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
    return of(method, batch, lr)


def pieces(n: int, parts: int = 2) -> Estimate:
    """The mean of `n` pieces, each of an item in turn; 0 for all pieces of all items."""

    def estimate(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
        count = parts ** (batch.image.ndim - 2)
        turns = range(method.turn, method.turn + n) if n else range(count * len(batch))
        found = []
        for turn in turns:
            items = torch.arange(len(batch)) == turn % len(batch)
            found.append(of(method, piece(batch.only(items), turn // len(batch), parts), lr))
        return [torch.stack(one).mean(0) for one in zip(*found)]

    return estimate


def centre(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
    """The middle of the patch, an eighth of it, of one item."""
    one = batch.only(torch.arange(len(batch)) == method.turn % len(batch))
    return of(
        method, _cut(one, [slice(n // 4, n // 4 + n // 2) for n in batch.label.shape[1:]]), lr
    )


def _cut(batch: Batch, inside: Sequence[slice]) -> Batch:
    here: Any = (..., *inside)
    maps = None if batch.maps is None else batch.maps[here]
    return replace(batch, image=batch.image[here], label=batch.label[here], maps=maps)


def one_item(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
    return of(method, batch.only(torch.arange(len(batch)) == method.turn % len(batch)), lr)


def coarse(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
    """The whole batch at half the resolution."""
    size = [-(-n // 2) for n in batch.label.shape[1:]]
    maps = None if batch.maps is None else F.interpolate(batch.maps, size)
    image = F.interpolate(batch.image, size, mode="area")
    small = replace(batch, image=image, label=shrunk(batch.label, size), maps=maps)
    return of(method, small, lr)


def with_parts(*trained: str) -> Estimate:
    """The whole batch, where f looks ahead with some of its parts alone."""
    return lambda method, batch, lr: of(method, batch, lr, trained)


def one_item_last(method: Measured, batch: Batch, lr: float) -> list[Tensor]:
    one = batch.only(torch.arange(len(batch)) == method.turn % len(batch))
    return of(method, one, lr, ("heads.0", "merges.LAST"))


ESTIMATES: dict[str, Estimate] = {
    "one piece of one item (the default)": pieces(1),
    "two pieces": pieces(2),
    "four pieces": pieces(4),
    "all pieces of all items": pieces(0),
    "the middle of one item": centre,
    "one item, whole patch": one_item,
    "whole batch at half the resolution": coarse,
    "whole batch, f's head alone": with_parts("heads.0"),
    "whole batch, f's last convolution": with_parts("heads.0", "merges.LAST.1"),
    "whole batch, f's last level": with_parts("heads.0", "merges.LAST"),
    "one item, f's last level": one_item_last,
    "whole batch, f's decoder": with_parts("heads", "merges", "ups"),
}
MEAN = f"one piece of one item, mean over steps (momentum {MOMENTUM})"


class Measured(CoLab):
    """CoLab that compares estimates of its meta-gradient at the steps of `AT`."""

    turn = 0

    def lookahead(
        self, batch: Batch, lr: float, step: int, over_all: Mean
    ) -> dict[str, list[Tensor]]:
        """As usual; what was measured is noted beforehand."""
        given = super().lookahead(batch, lr, step, over_all)
        self.turn = step // self.every
        if given:
            now = [g.clone() for g in given["generator"]]
            before = getattr(self, "running", None) or [torch.zeros_like(g) for g in now]
            self.running = [MOMENTUM * a + (1 - MOMENTUM) * b for a, b in zip(before, now)]
        if step in AT:
            self.noted.extend(self._rows(batch, lr, step))
        return given

    def _rows(self, batch: Batch, lr: float, step: int) -> Iterator[dict[str, Any]]:
        exact = _flat(whole(self, batch, lr))
        for name, estimate in ESTIMATES.items():
            yield _row(name, _flat(estimate(self, batch, lr)), exact, step)
        yield _row(MEAN, _flat(self.running), exact, step)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).double()


def _row(name: str, g: Tensor, exact: Tensor, step: int) -> dict[str, Any]:
    cosine = float(F.cosine_similarity(g, exact, 0))
    ratio = float(g.norm() / exact.norm())
    return {"step": step, "estimate": name, "cosine": f"{cosine:.4f}", "norm": f"{ratio:.4f}"}


# --- trainings ------------------------------------------------------------------------------------


def prepared(name: str, data: Path | None, work: Path) -> Run:
    """A run of a data set whose cases are preprocessed."""
    if name == "phantom":
        folder = work / "phantom-data"
        if not folder.exists():
            phantom.write_dataset(folder, labelled=8, test=2, shape=(32, 40, 40), look_alikes=4)
        planning = {"patch_vox": (24, 32, 32), "batch_size": 2, "base_width": 8, "max_levels": 3}
    else:
        folder = data / name
        planning = {"spacing_mm": (4.0,) * 3, "patch_vox": (32,) * 3, "batch_size": 2}
        planning |= {"base_width": 12, "max_levels": 4}
    run = Run(work / name, Settings(str(folder), "colab", -1, planning=planning))
    run.make_plan()
    run.preprocess()
    return run


def measured(run: Run, work: Path, t: int, seed: int) -> list[dict[str, Any]]:
    """One training, with the rows that it notes."""
    settings = replace(run.settings, seed=seed, training=Training(steps=STEPS, lr=1e-3))
    here = Run(work / f"{run.folder.name}-{t}-{seed}", settings)
    here.use_plan(run.plan)
    here.make_plan()
    here.preprocess()
    torch.manual_seed(seed)
    method = Measured(run.plan, optimizer="adamw", context_classes=t)
    method.noted = []
    here.train(method)
    facts = {"data": run.folder.name, "t": t, "seed": seed}
    return [{**facts, **row} for row in method.noted]


# --- what a step costs ----------------------------------------------------------------------------


COUNTED = Size(32, 2, (30, 60, 120, 240), 1, 0)
"""The paper's widths but for the lowest level, whose patch of 80 would take minutes."""
ALL: dict[str, Any] = {"lookahead_items": 1, "lookahead_parts": 1}
WAYS: dict[str, dict[str, Any]] = {
    "an eighth of the patch of half of the items (the default)": {},
    "the default, labels of the updated g": {"labels_from": "updated"},
    "f's last level, whole batch": ALL | {"lookahead_layers": "last"},
    "f's last level, half of the items": {
        "lookahead_parts": 1,
        "lookahead_items": 2,
        "lookahead_layers": "last",
    },
    "f's last level, whole batch, labels of the updated g": ALL
    | {"lookahead_layers": "last", "labels_from": "updated"},
    "all of f, whole batch": ALL,
    "all of f, whole batch, g of f's size": ALL | {"generator": "full"},
    "all of f, whole batch, g of f's size, labels of the updated g (the paper's)": ALL
    | {"generator": "full", "labels_from": "updated"},
}


class Dispatched(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation as it is, counted."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(name: str, arguments: dict[str, Any], n: int) -> tuple[int, int]:
    """Floating point operations, and dispatched operations, of step `n`."""
    step = stepper(COUNTED, torch.device("cpu"), name, arguments)
    flops, dispatched = FlopCounterMode(display=False), Dispatched()
    with flops:
        step(n)
    with dispatched:
        step(n)
    return flops.get_total_flops(), dispatched.count


def cost_rows() -> list[dict[str, Any]]:
    """Cost of a step that looks ahead and of one that does not, in plain training's."""
    plain = counted("supervised", {}, 0)
    rows = []
    for way, arguments in WAYS.items():
        ahead = counted("colab", arguments, 16)  # a step whose contexts are not kept for pictures
        other = counted("colab", arguments | {"generator_every": 1000}, 17)
        rows.append(
            {
                "way": way,
                "flops_ahead": f"{ahead[0] / plain[0]:.3f}",
                "flops_other": f"{other[0] / plain[0]:.3f}",
                "dispatched_ahead": ahead[1],
                "dispatched_plain": plain[1],
            }
        )
    return rows


# --- rows and page --------------------------------------------------------------------------------


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table; [] where there is none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def page() -> str:
    """The page, of both tables."""
    lines = ["# Cheap look-aheads of CoLab", ""]
    lines += [
        "Written by `lookahead.py`. Cosine to the exact meta-gradient of the whole batch: mean and "
        f"smallest of {len(AT)} steps\n(step {', '.join(map(str, AT))}) of trainings of {STEPS} "
        "steps, and the median ratio of the lengths. AdamW 0.001, small g at 0.003.",
        "",
    ]
    rows = read_table(ROWS)
    for t, data in product(CONTEXTS, DATA):
        found = [row for row in rows if (row["data"], row["t"]) == (data, str(t))]
        if not found:
            continue
        seeds = sorted({row["seed"] for row in found})
        lines += [f"## {data}, t = {t}, seeds {', '.join(seeds)}", ""]
        lines += ["| estimate | cosine | smallest | after step 20 | length |", "|---|" + "--:|" * 4]
        for name in dict.fromkeys(row["estimate"] for row in found):
            of_name = [row for row in found if row["estimate"] == name]
            cosines = [float(row["cosine"]) for row in of_name]
            late = [float(row["cosine"]) for row in of_name if int(row["step"]) > 20]
            ratio = median(float(row["norm"]) for row in of_name)
            cells = [f"{mean(cosines):.2f}", f"{min(cosines):.2f}", f"{mean(late):.2f}"]
            lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")
        lines.append("")
    costs = read_table(COSTS)
    if costs:
        widths = "-".join(map(str, COUNTED.widths))
        lines += [
            f"## Cost of a step that looks ahead (U-Net {widths}, {COUNTED.batch} x "
            f"{COUNTED.side}^3, t = 2)",
            "",
            "In plain training's: floating point operations of a step that looks ahead, those of a "
            "step that does not, and the\nmean of all steps where every 2nd, 4th and 8th looks "
            "ahead; and how many operations are dispatched.",
            "",
            "| look-ahead | every step | no step | 2nd | 4th | 8th | operations |",
            "|---|" + "--:|" * 6,
        ]
        for row in costs:
            ahead, other = float(row["flops_ahead"]), float(row["flops_other"])
            means = [other + (ahead - other) / every for every in (2, 4, 8)]
            cells = [f"{value:.2f}" for value in (ahead, other, *means)]
            lines.append(f"| {row['way']} | {' | '.join(cells)} | {row['dispatched_ahead']} |")
        lines += ["", f"A plain step dispatches {costs[0]['dispatched_plain']} operations.", ""]
    lines.append(f"Machine: {machine()}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what the tables lack, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the set sarcoma")
    parser.add_argument("--cost", action="store_true", help="count operations")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.cost:
        write_table(COSTS, cost_rows())
    if asked.data:
        measure(asked.data)
    PAGE.write_text(page(), encoding="utf-8")


def measure(data: Path) -> None:
    """The trainings that `lookahead.csv` lacks."""
    rows = read_table(ROWS)
    done = {(row["data"], int(row["t"]), int(row["seed"])) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        for t, seed, name in product(CONTEXTS, SEEDS, DATA):
            if (name, t, seed) not in done:
                run = prepared(name, data, Path(folder))
                rows += measured(run, Path(folder), t, seed)
                write_table(ROWS, rows)
                print(f"{name}, t = {t}, seed {seed}", flush=True)


if __name__ == "__main__":
    main()
