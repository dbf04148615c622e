"""The one training loop: ranks, precision, checkpoints, resume. It knows no method.

On a CPU a run that was interrupted, by anything, ends with the same weights, bit for bit, as one
that was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.console import Progress, say
from contextseg.disk import write_tensors
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.inputs import damage_named, read_tensors
from contextseg.memory_errors import raise_memory_error
from contextseg.ranks import Mean, highest_of_ranks, mean_over_ranks, names_on_any_rank, ranks
from contextseg.stopping import FINISH, STOP, Stopped, StopRequest, training_signals
from contextseg.training_log import TrainingLog
from contextseg.validation import validate, validation_score

BatchAt = Callable[[int, int, int, torch.device], Batch]
"""(n, rank, world, device) to the items of batch `n` that belong to that rank."""
PRECISIONS = ("auto", "float32")
KEPT = ("last", "best")

DEFAULT_STEPS = 250_000
"""Steps of a training that nobody gave a length, on a GPU: nnU-Net's 1000 epochs of 250."""

FINISH_FILE = "finish"
"""A file of this name in the folder of a training asks it to end with the step it is at."""

SECONDS_FOR_SECOND_INTERRUPT = 4.0
"""How long a training that was stopped by Ctrl-C waits for another one, on a terminal."""


@dataclass(frozen=True)
class Training:
    """Length, learning rate and bookkeeping of a training; nnU-Net's numbers by default.

    Attributes:
        steps: Steps of the whole training. 0 leaves the length to the run: `time_s`, or without
            it `DEFAULT_STEPS` on a GPU, and on a CPU what `length.CPU_SECONDS` allow.
        time_s: Seconds that the whole run may take, preprocessing and prediction included; the
            number of steps is then chosen for this machine. 0 for no such budget.
        lr: Learning rate of the first step. 0 is that of the method and its optimiser.
        clip: Largest norm of each optimiser's gradient.
        save_every: Steps between checkpoints.
        log_every: Steps between rows of the log, each the mean since the row before.
        check_every: Steps between validations on patches. 0 for none.
        check_batches: Batches of patches in each validation.
        keep: Which weights are deployed: the "last", or the "best" of all validations on patches
            (`validation_score`); the last ones then lie in `last.pt`.
        early_stopping: Validations on patches that may follow the best one; then the training ends,
            and the best weights are deployed as by keep="best". 0 never ends a training early.
        device: Name of a torch device. "auto" is the GPU where there is one, else the CPU.
        precision: "auto" is float16 on a GPU and float32 on a CPU; or "float32".
        tensorboard: Whether the log is also written for TensorBoard.

    Raises:
        ContextsegError: A number is not positive where it must be, or the precision is unknown.
    """

    steps: int = 0
    time_s: float = 0.0
    lr: float = 0.0
    clip: float = 12.0
    save_every: int = 250
    log_every: int = 50
    check_every: int = 2500
    check_batches: int = 8
    keep: str = "last"
    early_stopping: int = 0
    device: str = "auto"
    precision: str = "auto"
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("clip", "save_every", "log_every", "check_batches"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ContextsegError(
                    f"{name}={value}", "not a positive number", f"give {name} above 0"
                )
        for name in ("steps", "time_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                what = "not a positive number"
                remedy = f"give {name} above 0, or leave it out"
                raise ContextsegError(f"{name}={value}", what, remedy)
        if self.steps and self.time_s:
            what = "a number of steps and a time are two lengths"
            where = f"steps={self.steps}, time_s={self.time_s:g}"
            raise ContextsegError(where, what, "give one of the two")
        if not 0 <= self.lr < math.inf:
            raise ContextsegError(
                f"lr={self.lr}", "not a rate", "give lr above 0; 0 is the default"
            )
        if self.early_stopping < 0:
            what = "no number of validations to wait for a better one"
            where = f"early_stopping={self.early_stopping}"
            raise ContextsegError(where, what, "give 0, for never, or more")
        if self.check_every < 0:
            where = f"check_every={self.check_every}"
            raise ContextsegError(where, "a negative number", "give 0, for never, or more")
        if self.keep not in KEPT:
            remedy = did_you_mean(self.keep, KEPT)
            raise ContextsegError(f"keep={self.keep}", "there are no such weights", remedy)
        if self.precision not in PRECISIONS:
            remedy = did_you_mean(self.precision, PRECISIONS)
            raise ContextsegError(f"precision={self.precision}", "no such precision", remedy)

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best validation are deployed."""
        return self.keep == "best" or self.early_stopping > 0

    def require_validation(self, validated: bool) -> None:
        """Refuse to keep the best weights of a training that is never validated.

        Args:
            validated: Whether there are validation cases.

        Raises:
            ContextsegError: The best weights are asked for, and nothing could tell which they are.
        """
        if self.keeps_best and not (validated and self.check_every):
            where = f"early_stopping={n}" if (n := self.early_stopping) else "keep=best"
            what = "no weights are the best without a validation"
            raise ContextsegError(where, what, "keep a fold (--fold 0) and a check_every above 0")


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
        remedy = "close other programs that use it, or choose device=cpu"
        raise_memory_error(f"device={name}", error, remedy)
        raise ContextsegError(
            f"device={name}", "this device cannot be used here", "choose cpu, or auto"
        ) from error
    return torch.device(name)


# --- the loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How a training ended.

    Attributes:
        step: Number of steps that were done.
        why: "" for all of them; "finish" where somebody asked for it, or "early stopping".
    """

    step: int
    why: str = ""


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
    until: int = 0,
    since: int = 0,
) -> Ending:
    """Train a method, from the checkpoint in `folder` if there is one.

    Leaves in `folder`: `checkpoint.pt` (everything to go on), `log.jsonl` and `log.csv`, and at the
    end `model.pt` (the method's weights). With `keep="best"` these are the best of all validations;
    `last.pt` has the last, and `best.pt` the best so far. A second Ctrl-C, or a file `FINISH_FILE`
    in the folder, ends it as if its last step were done.

    Args:
        method: What to train. It is moved to the device.
        batch_at: Gives the batches to train on.
        folder: Existing folder of the training.
        training: Length, learning rate and bookkeeping.
        batch_size: Items of one batch, those of all ranks together.
        seed: Seed of torch's random numbers; each rank adds a number of its own.
        check_at: Gives the batches to validate on. None for no validation.
        progress: Called before the first and after each step with (steps done, steps in all,
            latest loss terms).
        until: Step at which it ends, with the learning rates of the whole length. 0 for the last.
        since: Step from which early stopping counts: that with which the training was extended.

    Returns:
        The last step, and whether it was ended before its length.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; a checkpoint is written.
        ContextsegError: The loss is no longer finite, the checkpoint cannot be used, the disk is
            full, or the best weights are asked for without validation cases.
    """
    training.require_validation(check_at is not None)
    rank, world = ranks()
    device = pick_device(training.device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed + 1_000_003 * rank)
    training = replace(training, steps=training.steps or DEFAULT_STEPS, time_s=0)
    training = replace(training, lr=method.settle(training.steps, training.lr))
    method.to(device)
    method.train()
    state = TrainingState(method, training, device)
    state.load(folder / "checkpoint.pt", device)
    (folder / FINISH_FILE).unlink(missing_ok=True)  # asked of a process that ended before it
    log = (
        TrainingLog(folder, state, training.log_every, training.tensorboard) if rank == 0 else None
    )
    why = ""

    def items_of_this_rank(n: int) -> Batch:
        return batch_at(n, rank, world, device)

    def validation_batch(n: int) -> Batch:
        assert check_at is not None
        return check_at(n, 0, 1, device)

    if log and progress:
        progress(state.step, training.steps, {})
    with training_signals() as request, log or nullcontext():
        stop = until or training.steps
        for batch in prefetched(items_of_this_rank, state.step, stop, device):
            decay = method.decay(state.step / training.steps)
            lr = training.lr * decay
            state.set_decay(decay)
            share = len(batch) * world / batch_size
            terms = training_step(state, batch, training, lr, share)
            state.step += 1
            last = state.step == training.steps
            asked = 0 if last else highest_of_ranks(_asked(request, folder), device)

            if log:
                log.add(terms, lr, last or asked == FINISH)
            better = early = False
            if check_at and _is_due(state.step, training.check_every, last):
                if log:
                    means = validate(method, validation_batch, training.check_batches)
                    log.write("check", means)
                    if training.keeps_best:
                        better = state.keep_best(means, folder / "best.pt")
                early = bool(highest_of_ranks(int(state.is_stale(training, since)), device))
            if rank == 0 and (asked or better or _is_due(state.step, training.save_every, last)):
                state.save(folder / "checkpoint.pt")
            if log and progress:
                progress(state.step, training.steps, log.latest)
            if asked:
                _stop(request, asked, f"step {state.step} of {training.steps}")
                why = "finish"
                break
            if early and not last:
                why = "early stopping"
                break

    if log:
        log.close()
        _save_model(method, folder, training.keeps_best and state.best_step > 0)
        (folder / FINISH_FILE).unlink(missing_ok=True)
    return _ended(state.step, why, highest_of_ranks(request.level, device))


def _ended(step: int, why: str, asked: int) -> Ending:
    """The end of a training, unless it was asked to stop in its last step, or while it was saved.

    Then nothing that would follow is begun.
    """
    if asked == STOP and why != "finish":
        raise Stopped(f"stopped after step {step}, the last; the same command goes on from there")
    return Ending(step, why)


def _save_model(method: Trainable, folder: Path, best: bool) -> None:
    """Write `model.pt`: the last weights, or those of the best validation where there was one."""
    weights = method.state_dict()
    if best:
        write_tensors(folder / "last.pt", weights)
        weights = read_tensors(folder / "best.pt", "delete this training's folder to start again")
    write_tensors(folder / "model.pt", weights)


def _asked(request: StopRequest, folder: Path) -> int:
    """What was asked of this rank, by a signal or by a file."""
    return FINISH if (folder / FINISH_FILE).exists() else request.level


def _stop(request: StopRequest, asked: int, place: str) -> None:
    """Raise `Stopped`, unless the training is to end with what it has."""
    if asked == STOP and ranks()[1] == 1:
        if request.by_hand:
            seconds = f"{SECONDS_FOR_SECOND_INTERRUPT:g} s"
            say(f"stopped at {place}. Ctrl-C again within {seconds}: use the model as it is")
        request.wait(SECONDS_FOR_SECOND_INTERRUPT)
        asked = request.level
    if asked != FINISH:
        raise Stopped(
            f"stopped at {place}; the same command goes on from there, and `contextseg finish` "
            "uses the model as it is"
        )


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
        self.best = -math.inf
        self.best_step = 0
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

    def is_stale(self, training: Training, since: int = 0) -> bool:
        """Whether so many validations followed the best one that the training is to end.

        Args:
            training: Says how many, and how often there is one.
            since: Step from which they are counted.
        """
        if not training.early_stopping or not self.best_step:
            return False
        steps = self.step - max(self.best_step, since)
        return steps >= training.early_stopping * training.check_every

    def set_decay(self, decay: float) -> None:
        """Set all learning rates to `decay` times their first ones.

        Args:
            decay: The factor.
        """
        for name, optimizer in self.optimizers.items():
            for group, lr in zip(optimizer.param_groups, self._first_lr[name]):
                group["lr"] = lr * decay

    def keep_best(self, means: dict[str, float], path: Path) -> bool:
        """Write the weights where they are better than at every validation before.

        Args:
            means: What `validate` gave.
            path: File to write.

        Returns:
            Whether they are.
        """
        score = validation_score(self.method, means)
        better = score > self.best or self.best == -math.inf
        if better:
            self.best, self.best_step = score, self.step
            write_tensors(path, self.method.state_dict())
        return better

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
            "best_step": self.best_step,
            "sums": self.sums,
            "count": self.count,
            "method": self.method.state_dict(),
            "optimizers": optimizers,
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write_tensors(path, content)

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
        content = load_checkpoint(path, self.method, self.optimizers)
        remedy = "delete the file to start again"
        with damage_named(path, remedy, "this checkpoint cannot be used"):
            self.scaler.load_state_dict(content["scaler"])
            self.step = int(content["step"])
            self.seconds = float(content["seconds"])
            self.best = float(content.get("best", -math.inf))
            self.best_step = int(content.get("best_step", 0))
            self.count = int(content["count"])
            self.sums = {name: total.to(device) for name, total in content["sums"].items()}
            torch.set_rng_state(content["rng"])
        if device.type == "cuda" and len(content["rng_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["rng_cuda"])


def load_checkpoint(
    path: Path, method: Trainable, optimizers: Mapping[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Load what a checkpoint has of a method and its optimisers.

    Args:
        path: File that `TrainingState.save` wrote.
        method: What it is a checkpoint of; its weights change.
        optimizers: Its optimisers by name; None where it is not trained on.

    Returns:
        The content of the file.

    Raises:
        ContextsegError: The checkpoint is damaged, or one of another method.
    """
    remedy = "delete the file to start again"
    with damage_named(path, remedy, "this checkpoint cannot be used"):
        # On the CPU first: each part then goes where it belongs.
        content: dict[str, Any] = read_tensors(path, remedy)
        method.load_state_dict(content["method"])
        for name, optimizer in (optimizers or {}).items():
            optimizer.load_state_dict(content["optimizers"][name])
    return content


# --- batches --------------------------------------------------------------------------------------


def prefetched(
    batch_at: Callable[[int], Batch], first: int, stop: int, device: torch.device, depth: int = 4
) -> Iterator[Batch]:
    """Batches `first` to `stop`, in order.

    For a GPU several threads draw the next ones meanwhile; for a CPU there is no core to spare.

    Args:
        batch_at: n to batch n.
        first: Number of the first batch.
        stop: Number after that of the last.
        device: Where they are needed.
        depth: Number of threads for a GPU.

    Yields:
        The batches; nothing where `stop` is not above `first`.
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
