"""The one training loop: ranks, precision, checkpoints, resume. It knows no method.

On a CPU a run that was interrupted, by anything, ends with the same weights, bit for bit, as one
that was not.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.console import Progress
from contextseg.disk import csv_text, replacing, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.ranks import Mean, mean_over_ranks, names_on_any_rank, on_any_rank, ranks
from contextseg.stopping import Stopped
from contextseg.validation import validate, validation_score

BatchAt = Callable[[int, int, int, torch.device], Batch]
"""(n, rank, world, device) to the items of batch `n` that belong to that rank."""
PRECISIONS = ("auto", "float32")
KEPT = ("last", "best")


@dataclass(frozen=True)
class Training:
    """Length, learning rate and bookkeeping of a training; nnU-Net's numbers by default.

    Attributes:
        steps: Steps of the whole training; the default is 1000 epochs of 250.
        lr: Learning rate of the first step. 0 is that of the method and its optimiser.
        clip: Largest norm of each optimiser's gradient.
        save_every: Steps between checkpoints.
        log_every: Steps between rows of the log, each the mean since the row before.
        check_every: Steps between validations on patches. 0 for none.
        check_batches: Batches of patches in each validation.
        keep: Which weights are deployed: the "last", or the "best" of all validations on patches
            (`validation_score`); the last ones then lie in `last.pt`.
        device: Name of a torch device. "auto" is the GPU where there is one, else the CPU.
        precision: "auto" is float16 on a GPU and float32 on a CPU; or "float32".
        tensorboard: Whether the log is also written for TensorBoard.

    Raises:
        ContextsegError: A number is not positive where it must be, or the precision is unknown.
    """

    steps: int = 250_000
    lr: float = 0.0
    clip: float = 12.0
    save_every: int = 250
    log_every: int = 50
    check_every: int = 2500
    check_batches: int = 8
    keep: str = "last"
    device: str = "auto"
    precision: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "clip", "save_every", "log_every", "check_batches"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                what = "not a positive number"
                raise ContextsegError(f"{name}={value}", what, f"give {name} above 0")
        if not 0 <= self.lr < math.inf:
            remedy = "give lr above 0; 0 is the default"
            raise ContextsegError(f"lr={self.lr}", "not a rate", remedy)
        if self.check_every < 0:
            where = f"check_every={self.check_every}"
            raise ContextsegError(where, "a negative number", "give 0, for never, or more")
        if self.keep not in KEPT:
            remedy = did_you_mean(self.keep, KEPT)
            raise ContextsegError(f"keep={self.keep}", "there are no such weights", remedy)
        if self.precision not in PRECISIONS:
            remedy = did_you_mean(self.precision, PRECISIONS)
            raise ContextsegError(f"precision={self.precision}", "no such precision", remedy)


class Trainable(Protocol):
    """What the loop needs of a method; every `methods.Method` offers it."""

    relabels: bool
    """Whether a step takes the loss again after its `lookahead`, with what that has moved."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch by name; the loop descends their sum.

        Args:
            batch: At least one item, on the training device.

        Returns:
            Scalars, each a mean over the batch's items, so that two ranks equal one process.
        """

    def predict(self, image: Tensor) -> Tensor:
        """What is deployed, and validated during training.

        Args:
            image: (B, C, *S) float32.

        Returns:
            Logits (B, K, *S).
        """

    def settle(self, steps: int, lr: float) -> float:
        """Choose what depends on the length of the training.

        Args:
            steps: Steps of the whole training.
            lr: Learning rate that was asked for; 0 for the default.

        Returns:
            Learning rate of the first step.
        """

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """Groups of parameters that are clipped and stepped together, each by its optimiser.

        Args:
            lr: Learning rate of the first step.

        Returns:
            The optimisers by name, in the same order on every rank.
        """

    def decay(self, done: float) -> float:
        """The factor on all learning rates.

        Args:
            done: Fraction of the training that is done, in [0, 1).
        """

    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]:
        """Gradients of parameters that no loss term trains (bilevel methods).

        Called once a step on every rank, also where the batch is empty: after the backward pass and
        before any parameter moves.

        Args:
            batch: This rank's items.
            lr: Learning rate of this step.
            step: Number of this step, from 0.
            mean: Averages tensors over the items of all ranks.

        Returns:
            A gradient for each parameter of each named group; {} for most methods.
        """

    def state_dict(self) -> dict[str, Any]:
        """The weights, as of a `torch.nn.Module`."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take the weights that `state_dict` gave.

        Args:
            state_dict: The weights.
        """

    def train(self, mode: bool = True) -> Any:
        """Switch dropout and the like on or off, as of a `torch.nn.Module`.

        Args:
            mode: Whether to train; False to evaluate.
        """

    def to(self, device: torch.device) -> Any:
        """Move the weights, as of a `torch.nn.Module`.

        Args:
            device: Where to.
        """


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name.

    Args:
        name: Name of a torch device. "auto" is this rank's GPU, or the CPU where there is none.

    Raises:
        ContextsegError: The device cannot be used here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ContextsegError(
            f"device={name}", "this device cannot be used here", "choose cpu, or auto"
        ) from error
    return torch.device(name)


# --- the loop -------------------------------------------------------------------------------------


def train(
    method: Trainable,
    batch_at: BatchAt,
    folder: Path,
    training: Training,
    *,
    batch_size: int,
    seed: int = 0,
    check_at: BatchAt | None = None,
    progress: Progress | None = None,
) -> None:
    """Train a method, from the checkpoint in `folder` if there is one.

    Leaves in `folder`: `checkpoint.pt` (everything to go on), `log.jsonl` and `log.csv`, and at the
    end `model.pt` (the method's weights). With `keep="best"` these are the best of all validations;
    `last.pt` has the last, and `best.pt` the best so far.

    Args:
        method: What to train. It is moved to the device.
        batch_at: Gives the batches to train on.
        folder: Existing folder of the training.
        training: Length, learning rate and bookkeeping.
        batch_size: Items of one batch, those of all ranks together.
        seed: Seed of torch's random numbers; each rank adds a number of its own.
        check_at: Gives the batches to validate on. None for no validation.
        progress: Called after each step with (steps done, steps in all, latest loss terms).

    Raises:
        Stopped: SIGTERM or Ctrl-C came; a checkpoint is written.
        ContextsegError: The loss is no longer finite, the checkpoint cannot be used, the disk is
            full, or the best weights are asked for without validation cases.
    """
    if training.keep == "best" and not (check_at and training.check_every):
        what = "no weights are the best without a validation"
        remedy = "keep a fold for it (--fold 0), and give check_every above 0"
        raise ContextsegError("keep=best", what, remedy)
    rank, world = ranks()
    device = pick_device(training.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed + 1_000_003 * rank)
    training = replace(training, lr=method.settle(training.steps, training.lr))
    method.to(device)
    method.train()
    state = TrainingState(method, training, device)
    state.load(folder / "checkpoint.pt", device)
    log = _Log(folder, state, training) if rank == 0 else None

    def items_of_this_rank(n: int) -> Batch:
        return batch_at(n, rank, world, device)

    def validation_batch(n: int) -> Batch:
        assert check_at is not None
        return check_at(n, 0, 1, device)

    with _stop_signals() as signals:
        for batch in _prefetched(items_of_this_rank, state.step, training.steps, device):
            decay = method.decay(state.step / training.steps)
            lr = training.lr * decay
            state.set_decay(decay)
            share = len(batch) * world / batch_size
            terms = training_step(state, batch, training, lr, share)
            state.step += 1
            last = state.step == training.steps

            if log:
                log.add(terms, lr, last)
            if log and check_at and _is_due(state.step, training.check_every, last):
                means = validate(method, validation_batch, training.check_batches)
                log.write("check", means)
                if training.keep == "best":
                    state.keep_best(means, folder / "best.pt")

            stop = on_any_rank(bool(signals), device)
            if rank == 0 and (stop or _is_due(state.step, training.save_every, last)):
                state.save(folder / "checkpoint.pt")
            if log and progress:
                progress(state.step, training.steps, log.latest)
            if stop and not last:
                raise Stopped(
                    f"stopped at step {state.step} of {training.steps}; "
                    "the same command goes on from there"
                )

    if log:
        log.close()
        best = training.keep == "best"
        _save(folder / ("last.pt" if best else "model.pt"), method.state_dict())
        if best:
            with replacing(folder / "model.pt") as temporary:
                shutil.copyfile(folder / "best.pt", temporary)


def _is_due(step: int, every: int, last: bool) -> bool:
    """Whether what happens every so many steps, 0 for never, and at the end happens now."""
    return every > 0 and (last or step % every == 0)


def training_step(
    state: TrainingState, batch: Batch, training: Training, lr: float, share: float
) -> dict[str, Tensor]:
    """Do one step of every optimiser that has a gradient on some rank.

    Args:
        state: Method, optimisers and scaler; all but its counters change.
        batch: This rank's items; may be empty.
        training: Gives the largest norm of a gradient.
        lr: Learning rate of this step, for methods that look ahead.
        share: This rank's number of items over an even share of the batch.

    Returns:
        The loss terms by name, detached; {} for an empty batch.
    """
    terms = _backward(state, batch, share)
    trained = _average_gradients(state, batch.image.device)
    moved = _step_ahead(state, batch, training, lr, share)
    if moved and state.method.relabels:
        state.scaler.update()  # each backward pass is unscaled once
        terms = _backward(state, batch, share)
        trained = _average_gradients(state, batch.image.device)
    for name in trained:
        nn.utils.clip_grad_norm_(state.parameters(name), training.clip)
        state.scaler.step(state.optimizers[name])
    state.scaler.update()
    return {name: term.detach() for name, term in terms.items()}


def _backward(state: TrainingState, batch: Batch, share: float) -> dict[str, Tensor]:
    """The loss terms of this rank's items, whose gradients then lie in the parameters."""
    for optimizer in state.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    if not len(batch):
        return {}
    with torch.autocast(batch.image.device.type, torch.float16, enabled=state.half):
        terms = state.method(batch)
    loss = torch.stack([term.float() for term in terms.values()]).sum()
    state.scaler.scale(loss * share).backward()
    return terms


def _average_gradients(state: TrainingState, device: torch.device) -> list[str]:
    """Replace all gradients by those of the whole batch, unscaled.

    Returns:
        The names of the optimisers that have a gradient on some rank.
    """
    names = list(state.optimizers)
    here = [name for name in names if any(p.grad is not None for p in state.parameters(name))]
    anywhere = names_on_any_rank(here, names, device)
    # In the order of the dict: that of a set differs between ranks, and would mix their networks.
    trained = [name for name in names if name in anywhere]
    for name in trained:
        for parameter in state.parameters(name):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        mean_over_ranks([p.grad for p in state.parameters(name) if p.grad is not None])
        state.scaler.unscale_(state.optimizers[name])
    return trained


def _step_ahead(
    state: TrainingState, batch: Batch, training: Training, lr: float, share: float
) -> bool:
    """Step the optimisers whose gradients a method's `lookahead` gives; whether one was due."""

    def mean(values: list[Tensor]) -> None:
        for value in values:
            value.mul_(share)
        mean_over_ranks(values)

    device = batch.image.device
    with torch.autocast(device.type, torch.float16, enabled=state.half, cache_enabled=False):
        gradients_of = state.method.lookahead(batch, lr, state.step, mean)
    for name, gradients in gradients_of.items():
        mean(gradients)
        if state.half and not all(bool(g.isfinite().all()) for g in gradients):
            continue  # as the scaler does: half precision overflowed, the next step will do
        parameters = state.parameters(name)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, training.clip)
        state.optimizers[name].step()
    return bool(gradients_of)


# --- state ----------------------------------------------------------------------------------------


class TrainingState:
    """All that a step changes, and what a checkpoint holds.

    Args:
        method: What is trained.
        training: Gives learning rate and precision.
        device: Where it is trained.
    """

    def __init__(self, method: Trainable, training: Training, device: torch.device) -> None:
        self.method = method
        self.half = device.type == "cuda" and training.precision != "float32"
        self.optimizers = method.optimizers(training.lr)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)
        self.step = 0
        self.seconds = 0.0
        self.best = -math.inf  # the highest `validation_score` so far
        # Sums of the loss terms over the `count` steps since the log's last row.
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self._first_lr = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }

    def parameters(self, name: str) -> list[Tensor]:
        """The parameters of one optimiser.

        Args:
            name: Name of the optimiser.
        """
        groups = self.optimizers[name].param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def set_decay(self, decay: float) -> None:
        """Set all learning rates to `decay` times their first ones.

        Args:
            decay: The factor.
        """
        for name, optimizer in self.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self._first_lr[name]):
                group["lr"] = lr * decay

    def keep_best(self, means: dict[str, float], path: Path) -> None:
        """Write the weights where they are better than at every validation before.

        Args:
            means: What `validate` gave.
            path: File to write.
        """
        score = validation_score(self.method, means)
        if score > self.best or self.best == -math.inf:
            self.best = score
            _save(path, self.method.state_dict())

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically.

        Args:
            path: File to write.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "sums": self.sums,
            "count": self.count,
            "method": self.method.state_dict(),
            "optimizers": optimizers,
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        _save(path, content)

    def load(self, path: Path, device: torch.device) -> None:
        """Go on from a checkpoint, torch's random numbers included; nothing where there is none.

        Args:
            path: File that `save` wrote.
            device: Where it is trained.

        Raises:
            ContextsegError: The checkpoint is damaged, or one of another method.
        """
        if not path.exists():
            return
        try:
            # On the CPU first: each part then goes where it belongs.
            content = torch.load(path, map_location="cpu", weights_only=True)
            self.method.load_state_dict(content["method"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(content["optimizers"][name])
        except (RuntimeError, KeyError, EOFError, ValueError) as error:
            what = f"this checkpoint cannot be used ({error})"
            raise ContextsegError(path, what, "delete the file to start again") from error

        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
        self.seconds = content["seconds"]
        self.best = content.get("best", -math.inf)
        self.count = content["count"]
        self.sums = {name: total.to(device) for name, total in content["sums"].items()}
        torch.set_rng_state(content["rng"])
        if device.type == "cuda" and len(content["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["rng_cuda"])


def _save(path: Path, content: Any) -> None:
    """torch.save, atomically; through memory, as torch's own writer hides why a disk is full."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


# --- log ------------------------------------------------------------------------------------------


class _Log:
    """`log.jsonl`, one row at a time, cut back to the checkpoint on resume; `log.csv` beside it."""

    def __init__(self, folder: Path, state: TrainingState, training: Training) -> None:
        self.folder = folder
        self.state = state
        self.training = training
        self.latest: dict[str, float] = {}

        path = folder / "log.jsonl"
        self.rows = [row for row in _complete_rows(path) if row["step"] <= state.step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.writer = _tensorboard(folder) if training.tensorboard else None

        self.started = time.monotonic()
        self.seconds_before = state.seconds

    def add(self, terms: dict[str, Tensor], lr: float, last: bool) -> None:
        """Count the loss terms of one step, and write a row where one is due."""
        state = self.state
        state.seconds = self.seconds_before + time.monotonic() - self.started
        state.count += 1
        # The sums stay on the device: reading a number would wait for the GPU.
        for name, term in terms.items():
            state.sums[name] = state.sums.get(name, 0) + term.double()
        if not _is_due(state.step, self.training.log_every, last):
            return

        means = {name: float(total) / state.count for name, total in state.sums.items()}
        state.sums = {}
        state.count = 0
        if not all(map(math.isfinite, means.values())):
            what = f"the loss is not finite at step {state.step} ({means})"
            remedy = "lower lr (--set lr=0.001), or check the data set"
            raise ContextsegError(self.folder, what, remedy)
        self.latest = means
        self.write("train", means, lr=lr)

    def write(self, part: str, values: dict[str, float], **more: float) -> None:
        """Write one row of the part "train" or "check"."""
        seconds = round(self.state.seconds, 3)
        row = {"step": self.state.step, "part": part, "seconds": seconds, **more, **values}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{part}/{name}", value, self.state.step)

    def close(self) -> None:
        """Write `log.csv`."""
        self.file.close()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_text(self.folder / "log.csv", csv_text(columns, self.rows))
        if self.writer:
            self.writer.close()


def _complete_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without one that was cut off while it was written."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        what, remedy = "TensorBoard is not installed", "pip install 'contextseg[track]'"
        raise ContextsegError("tensorboard=true", what, remedy) from error
    return SummaryWriter(str(folder / "tensorboard"))


# --- batches and signals --------------------------------------------------------------------------


def _prefetched(
    batch_at: Callable[[int], Batch], first: int, stop: int, device: torch.device, depth: int = 4
) -> Iterator[Batch]:
    """Batches `first` to `stop`, in order.

    For a GPU several threads draw the next ones meanwhile; for a CPU there is no core to spare.
    """
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
    """A list that is empty until SIGTERM or Ctrl-C; a second Ctrl-C interrupts as usual."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: Any) -> None:
        signals.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
