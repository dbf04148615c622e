"""The one loop: ranks, precision, checkpoints, resume. It knows a method's interface and no method.

On a CPU a run that was interrupted, by anything, ends with the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.disk import Problem, did_you_mean, replacing, write_text
from contextseg.ranks import mean_over_ranks, names_on_any_rank, on_any_rank, ranks

BatchAt = Callable[[int, int, int, torch.device], Batch]
"""(n, rank, world, device) to the items of batch n that belong to that rank."""
Progress = Callable[[int, int, dict[str, float]], None]
Mean = Callable[[list[Tensor]], None]
PRECISIONS = ("auto", "float32")


@dataclass(frozen=True)
class Training:
    """How long and how; nnU-Net's numbers (1000 epochs of 250 steps).

    clip         the largest norm of each optimiser's gradient.
    save_every   steps between checkpoints. log_every: between rows of the log, each the mean since the row before.
    check_every  steps between looks at `check_batches` batches of validation patches; 0 for none.
    device       "auto" is the GPU where there is one. precision: "auto" is float16 on a GPU, float32 on a CPU.

    Raises `Problem` for a number that is not positive where it must be, and for another precision.
    """

    steps: int = 250_000
    lr: float = 1e-2
    clip: float = 12.0
    save_every: int = 250
    log_every: int = 50
    check_every: int = 2500
    check_batches: int = 8
    device: str = "auto"
    precision: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "clip", "save_every", "log_every", "check_batches"):
            if not 0 < getattr(self, name) < math.inf:
                raise Problem(f"{name}={getattr(self, name)}", "not a positive number", f"give {name} above 0")
        if self.check_every < 0:
            raise Problem(f"check_every={self.check_every}", "a negative number", "give 0, for never, or more")
        if self.precision not in PRECISIONS:
            raise Problem(f"precision={self.precision}", "no such precision", did_you_mean(self.precision, PRECISIONS))


class Teachable(Protocol):
    """What the loop needs of a method (an abstract `methods.Method` offers it)."""

    # fmt: off
    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...  # noqa: D102
    def predict(self, image: Tensor) -> Tensor: ...  # noqa: D102
    def optimizers(self, lr: float) -> dict[str, Optimizer]: ...  # noqa: D102
    def decay(self, done: float) -> float: ...  # noqa: D102
    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...  # noqa: D102
    def train(self, mode: bool = True) -> Any: ...  # noqa: D102
    def to(self, device: torch.device) -> Any: ...  # noqa: D102
    # fmt: on


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and did, after writing a checkpoint. The same command goes on."""


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is this rank's GPU, or the CPU. Raises `Problem` if it cannot be used here."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Problem(f"device={name}", "this device cannot be used here", "choose cpu, or auto") from error
    return torch.device(name)


def train(
    method: Teachable,
    batch_at: BatchAt,
    folder: Path,
    training: Training,
    *,
    batch_size: int,
    seed: int = 0,
    check_at: BatchAt | None = None,
    progress: Progress | None = None,
) -> None:
    """Teach `method` on `batch_at`, from the checkpoint in `folder` if there is one.

    Leaves in `folder`: `checkpoint.pt` (everything to go on), `log.jsonl` and `log.csv`, at the end `model.pt` (the
    method's weights). `batch_size` counts the items of all ranks.

    Raises `Stopped` on SIGTERM or Ctrl-C, after a checkpoint; `Problem` if the loss is no longer finite.
    """
    rank, world = ranks()
    device = pick_device(training.device)
    half = device.type == "cuda" and training.precision != "float32"
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed + 1_000_003 * rank)
    method.to(device)
    method.train()
    state = _State(method, method.optimizers(training.lr), torch.amp.GradScaler(device.type, enabled=half))
    first_lr = {name: [group["lr"] for group in o.param_groups] for name, o in state.optimizers.items()}
    state.load(folder / "checkpoint.pt", device)
    log = _Log(folder, state, training) if rank == 0 else None
    with _stop_signals() as asked:
        for batch in _ahead(lambda n: batch_at(n, rank, world, device), state.step, training.steps, device):
            decay = method.decay(state.step / training.steps)
            for name, optimizer in state.optimizers.items():
                for group, lr in zip(optimizer.param_groups, first_lr[name]):
                    group["lr"] = lr * decay
            terms = _step(state, batch, training, training.lr * decay, half, len(batch) * world / batch_size)
            state.step += 1
            last = state.step == training.steps
            if log:
                log.add(terms, training.lr * decay, last)
            if log and check_at and training.check_every and (last or state.step % training.check_every == 0):
                log.write("check", look(method, lambda n: check_at(n, 0, 1, device), training.check_batches))
            stop = on_any_rank(bool(asked), device)
            if rank == 0 and (stop or last or state.step % training.save_every == 0):
                state.save(folder / "checkpoint.pt")
            if log and progress:
                progress(state.step, training.steps, log.shown)
            if stop and not last:
                raise Stopped(f"stopped at step {state.step} of {training.steps}; the same command goes on from there")
    if log:
        log.close()
        _save(folder / "model.pt", method.state_dict())


def _step(state: _State, batch: Batch, training: Training, lr: float, half: bool, share: float) -> dict[str, Tensor]:
    """One step of every optimiser that has a gradient; the loss terms.

    `share` is this rank's items over an even share of the batch.
    """
    device = batch.image.device
    terms: dict[str, Tensor] = {}
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    if len(batch):
        with torch.autocast(device.type, torch.float16, enabled=half):
            terms = state.method(batch)
        state.scaler.scale(torch.stack([term.float() for term in terms.values()]).sum() * share).backward()
    groups = {name: [p for g in o.param_groups for p in g["params"]] for name, o in state.optimizers.items()}
    taught = names_on_any_rank([n for n, ps in groups.items() if any(p.grad is not None for p in ps)], groups, device)
    for name in [name for name in groups if name in taught]:  # in the dict's order: a set's would mix ranks' networks
        for parameter in groups[name]:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        mean_over_ranks([p.grad for p in groups[name] if p.grad is not None])
        state.scaler.unscale_(state.optimizers[name])

    def mean(values: list[Tensor]) -> None:
        for value in values:
            value.mul_(share)
        mean_over_ranks(values)

    with torch.autocast(device.type, torch.float16, enabled=half, cache_enabled=False):
        given = state.method.lookahead(batch, lr, state.step, mean)
    for name, gradients in given.items():
        mean(gradients)
        if half and not all(bool(g.isfinite().all()) for g in gradients):
            continue  # as the scaler does: half precision overflowed, the next step will do
        for parameter, gradient in zip(groups[name], gradients):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(groups[name], training.clip)
        state.optimizers[name].step()
    for name in [name for name in groups if name in taught]:
        nn.utils.clip_grad_norm_(groups[name], training.clip)
        state.scaler.step(state.optimizers[name])
    state.scaler.update()
    return {name: term.detach() for name, term in terms.items()}


def look(method: Teachable, batch_at: Callable[[int], Batch], batches: int) -> dict[str, float]:
    """The mean loss terms on fixed batches, and "dice": over all their annotated voxels, mean of the classes there."""
    method.train(False)
    terms: dict[str, list[float]] = {}
    hits: Any = 0
    sizes: Any = 0
    with torch.no_grad():
        for n in range(batches):
            batch = batch_at(n)
            for name, term in method(batch).items():
                terms.setdefault(name, []).append(float(term))
            z = method.predict(batch.image)
            found, known = z.argmax(1), batch.label >= 0
            for_each = [(found == k, batch.label == k) for k in range(1, z.shape[1])]
            hits = hits + torch.stack([(p & y).sum() for p, y in for_each])
            sizes = sizes + torch.stack([(p & known).sum() + y.sum() for p, y in for_each])
    method.train()
    row = {name: sum(values) / len(values) for name, values in terms.items()}
    there = sizes > 0
    return row | ({"dice": float((2 * hits[there] / sizes[there]).mean())} if there.any() else {})


# --- state and log ----------------------------------------------------------------------------------------------------


@dataclass
class _State:
    """All that a step changes; `sums` are those of the loss terms over the `count` steps since the log's last row."""

    method: Teachable
    optimizers: dict[str, Optimizer]
    scaler: Any
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def save(self, path: Path) -> None:
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "count": self.count,
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        _save(path, content)

    def load(self, path: Path, device: torch.device) -> None:
        if not path.exists():
            return
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)  # each part goes where it belongs
            self.method.load_state_dict(content["method"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(content["optimizers"][name])
        except (RuntimeError, KeyError, EOFError, ValueError) as error:
            raise Problem(
                path, f"this checkpoint cannot be used ({error})", "delete the file to start again"
            ) from error
        self.scaler.load_state_dict(content["scaler"])
        self.step, self.seconds, self.count = content["step"], content["seconds"], content["count"]
        self.sums = {name: total.to(device) for name, total in content["sums"].items()}
        torch.set_rng_state(content["rng"])
        if device.type == "cuda" and len(content["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["rng_cuda"])


def _save(path: Path, content: Any) -> None:
    """torch.save, atomically. Through memory: on a full disk torch's own writer hides the reason."""
    made = io.BytesIO()
    torch.save(content, made)
    with replacing(path) as temporary:
        temporary.write_bytes(made.getbuffer())


class _Log:
    """`log.jsonl`, one row at a time, cut back to the checkpoint on resume; `log.csv` beside it."""

    def __init__(self, folder: Path, state: _State, training: Training) -> None:
        self.folder, self.state, self.training = folder, state, training
        path = folder / "log.jsonl"
        rows = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
            if path.exists()
            else []
        )
        rows = [row for row in rows if row["step"] <= state.step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.rows, self.file = rows, open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.started, self.before = time.monotonic(), state.seconds
        self.writer = _tensorboard(folder) if training.tensorboard else None
        self.shown: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor], lr: float, last: bool) -> None:
        state = self.state
        state.seconds = self.before + time.monotonic() - self.started
        state.count += 1
        for name, term in terms.items():  # kept on the device: reading a number would wait for the GPU
            state.sums[name] = state.sums.get(name, 0) + term.double()
        if last or state.step % self.training.log_every == 0:
            means = {name: float(total) / state.count for name, total in state.sums.items()}
            state.sums, state.count = {}, 0
            if not all(map(math.isfinite, means.values())):
                what = f"the loss is not finite at step {state.step} ({means})"
                raise Problem(self.folder, what, "lower lr (--set lr=0.001), or check the data set")
            self.shown = means
            self.write("train", means, lr=lr)

    def write(self, part: str, values: dict[str, float], **more: float) -> None:
        row = {"step": self.state.step, "part": part, "seconds": round(self.state.seconds, 3), **more, **values}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{part}/{name}", value, self.state.step)

    def close(self) -> None:
        self.file.close()
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        write_text(self.folder / "log.csv", text.getvalue())
        if self.writer:
            self.writer.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise Problem("tensorboard=true", "TensorBoard is not installed", "pip install 'contextseg[track]'") from error
    return SummaryWriter(str(folder / "tensorboard"))


# --- batches ahead, signals -------------------------------------------------------------------------------------------


def _ahead(
    batch_at: Callable[[int], Batch], first: int, stop: int, device: torch.device, depth: int = 4
) -> Iterator[Batch]:
    """Batches in order; for a GPU several threads draw the next ones meanwhile, for a CPU there is no core to spare."""
    if device.type == "cpu":
        for n in range(first, stop):
            yield batch_at(n)
        return
    with ThreadPoolExecutor(depth) as pool:
        waiting = [pool.submit(batch_at, n) for n in range(first, min(first + depth, stop))]
        for n in range(first, stop):
            batch = waiting.pop(0).result()
            if n + depth < stop:
                waiting.append(pool.submit(batch_at, n + depth))
            yield batch


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C; a second Ctrl-C is the usual one."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
