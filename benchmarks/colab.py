"""What CoLab costs, against plain training of the same network: time of a step, and peak memory.

The network, patch and batch are the paper's (U-Net 30 to 320, 80^3, batch 2; Li et al., IEEE TMI
2023). Time is that of an ordinary step and of one that looks ahead, weighed by how often each
comes, on the same batch, in turn with the plain step. Memory is taken in a process for each way,
above that of the imports (on a GPU: of its allocator).

    python benchmarks/colab.py [--quick]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from contextseg.batch import Batch
from contextseg.data.plan import Channel, Plan
from contextseg.methods import METHODS, Method
from contextseg.provenance import PeakMemory
from contextseg.training import Training, TrainingState, training_step

PLAIN = "plain training of the same network"
WHOLE: dict[str, Any] = {"generator_lr": 3e-4, "lookahead_items": 1, "lookahead_parts": 1}
FULL_SIZE = WHOLE | {"generator": "full"}
PAPER = FULL_SIZE | {"generator_every": 1, "labels_from": "updated"}
AUTHORS = FULL_SIZE | {"generator_every": 5, "meta": "finite"}
LAST = WHOLE | {"lookahead_layers": "last", "generator_every": 4, "generator_lr": 3e-3}
WAYS: dict[str, dict[str, Any]] = {
    "t = 2, default": {},
    "t = 4, default": {"context_classes": 4},
    "t = 6, default": {"context_classes": 6},
    "t = 2, f's last level, whole batch and patch, every 4th step": LAST,
    "t = 2, the paper's: generator of full size, every step, whole batch and patch": PAPER,
    "t = 2, generator of full size, every 5th step, whole batch and patch": FULL_SIZE
    | {"generator_every": 5},
    "t = 2, the authors' code: the same by finite differences": AUTHORS,
}


@dataclass(frozen=True)
class Size:
    """Patch side, batch, widths, and how often each step is timed, and done before that."""

    side: int
    batch: int
    widths: tuple[int, ...]
    rounds: int
    warm: int


FULL = Size(80, 2, (30, 60, 120, 240, 320), 2, 0)  # half a minute a step
QUICK = Size(32, 2, (8, 16, 32), 3, 1)
FULL_GPU = Size(80, 2, (30, 60, 120, 240, 320), 20, 5)


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, CoLab's, plain training's, "plain ..."): seconds a step, and MB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = QUICK if quick else FULL_GPU if device.type == "cuda" else FULL
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    widths = "-".join(map(str, size.widths))
    processor = "float16, GPU" if device.type == "cuda" else "one thread"
    given = f"U-Net {widths}, {size.batch} x {size.side}^3, {processor}"
    for title, arguments in WAYS.items():
        yield f"CoLab training step, {title}", given, *seconds(size, device, arguments), PLAIN
    plain = megabytes("supervised", {}, quick)
    for title, arguments in WAYS.items():
        yield (
            f"CoLab peak memory, {title}, MB",
            given,
            megabytes("colab", arguments, quick),
            plain,
            PLAIN,
        )


def seconds(size: Size, device: torch.device, arguments: dict[str, Any]) -> tuple[float, float]:
    """(CoLab's mean step, a plain step): medians of each kind of step, taken in turn."""
    plain = stepper(size, device, "supervised", {})
    colab = stepper(size, device, "colab", arguments)
    every = METHODS["colab"](plan(size), **arguments).every
    kinds: tuple[Callable[[], None], ...] = (lambda: plain(0), lambda: colab(1), lambda: colab(0))
    taken: tuple[list[float], ...] = ([], [], [])
    for r in range(-size.warm, size.rounds):
        for work, times in zip(kinds, taken):
            start = now(device)
            work()
            if r >= 0:
                times.append(now(device) - start)
    alone, ordinary, ahead = map(median, taken)
    return ((every - 1) * ordinary + ahead) / every, alone


def stepper(
    size: Size, device: torch.device, name: str, arguments: dict[str, Any]
) -> Callable[[int], None]:
    """A function that does one step of the loop as its n-th, always on the same batch."""
    torch.manual_seed(0)
    method: Method = METHODS[name](plan(size), **arguments).to(device)
    training = Training(lr=0.01)
    state = TrainingState(method, training, device)
    batch = phantom_batch(size).to(device)

    def step(n: int) -> None:
        state.step = n
        training_step(state, batch, training, training.lr, 1.0)

    return step


def megabytes(name: str, arguments: dict[str, Any], quick: bool) -> float:
    """Peak MB of two steps, of which the first looks ahead, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--memory",
        name,
        json.dumps(arguments),
        *(["--quick"] if quick else []),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def peak(name: str, arguments: dict[str, Any], quick: bool) -> float:
    """Of this process: MB above what it holds before the first step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    memory = PeakMemory()
    before = memory.peak_mb()
    step = stepper(QUICK if quick else FULL, device, name, arguments)
    for n in range(2):
        step(n)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return memory.peak_mb() - before


def plan(size: Size) -> Plan:
    """The paper's network as a plan."""
    levels = len(size.widths)
    return Plan(
        dataset="bench",
        classes=("background", "tumour"),
        values=(0, 1),
        regions={"tumour": (1,)},
        channels=(Channel("MR", "zscore"),),
        orientation="SAR",
        spacing_mm=(2.0, 2.0, 2.0),
        patch_vox=(size.side,) * 3,
        batch_size=size.batch,
        mirror=(True, True, True),
        swaps=(),
        widths=size.widths,
        strides=((1, 1, 1), *((2, 2, 2),) * (levels - 1)),
        kernels=((3, 3, 3),) * levels,
    )


def phantom_batch(size: Size) -> Batch:
    """Random patches, each with a ball of ROI, and the distance to it."""
    from contextseg.methods.context import roi_distance

    random = torch.Generator().manual_seed(0)
    shape = (size.side,) * 3
    axes = torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape], indexing="ij")
    ball = sum(a**2 for a in axes) < (size.side // 8) ** 2
    label = torch.stack([ball.long()] * size.batch)
    image = torch.randn(size.batch, 1, *shape, generator=random) + label[:, None]
    maps = torch.from_numpy(roi_distance(label[0].numpy(), (1.0, 1.0, 1.0))).float()
    known = torch.ones(size.batch, 2, dtype=torch.bool)
    return Batch(
        image, label, known, torch.arange(size.batch), maps[None].repeat(size.batch, 1, 1, 1, 1)
    )


def now(device: torch.device) -> float:
    """CPU time of this process, or wall time when the GPU has done all it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    if "--memory" in sys.argv:
        at = sys.argv.index("--memory")
        print(peak(sys.argv[at + 1], json.loads(sys.argv[at + 2]), "--quick" in sys.argv))
    else:
        for claim, given, ours, theirs, peer in rows("--quick" in sys.argv):
            print(
                f"{claim} | {given} | {ours:.3g} | {theirs:.3g} | {ours / theirs:.3f}x of {peer}",
                flush=True,
            )
