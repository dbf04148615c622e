"""How long a training is: given, measured to fit a time, extended later, or ended early.

The folder of each training holds `length.json`, written before its first step: the number of steps,
what was measured to choose it, and, where it was ended early or extended, at which step. A training
that goes on keeps its length, on whatever machine, so that it is the same bit for bit.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from contextseg.console import rough_time
from contextseg.data.cache import Cached
from contextseg.data.layouts import Case
from contextseg.data.plan import Plan
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.inputs import from_json
from contextseg.methods import Method, workload_of
from contextseg.methods.base import BatchSource
from contextseg.predict import positions
from contextseg.ranks import highest_of_ranks, ranks
from contextseg.run_folder import RunFolder
from contextseg.settings import PredictionSettings, Settings
from contextseg.training import (
    DEFAULT_STEPS,
    BatchAt,
    Training,
    TrainingState,
    load_checkpoint,
    pick_device,
    prefetched,
    training_step,
)
from contextseg.training_log import log_rows

CPU_SECONDS = 2 * 3600.0
"""The time of a run for which nobody asked a length, where there is no GPU."""

LENGTH_FILE = "length.json"

_MARGIN = 0.05
"""Share of the time that is kept back, for what cannot be measured before it is done."""

CASE_S = 1.0
REPORT_S = 10.0
"""Seconds to evaluate a case, and to draw the report; rough, and small beside the training."""

TIMED_SHARE = 0.03
TIMED_MOST_S = 20.0
WARM_UP = {"cpu": 1, "cuda": 10}
"""Time is measured for this share of what is left, at most so long, after some steps."""

clock: Callable[[], float] = time.monotonic
"""The clock of all that is measured here; tests set another."""


# --- the record -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length:
    """The length of one training, in `length.json`.

    Attributes:
        steps: Steps of the schedule: the learning rate is that of `step / steps`.
        first: Steps by which optimiser and augmentation were chosen (`Method.settle`): those of the
            schedule that the training began with.
        until: Step with which it was ended early; 0 for never.
        why: Why: "finish" or "early stopping".
        measured: What was measured to choose the steps; {} where they were given.
        before: (steps, step that was reached) of each schedule before it was extended.
    """

    steps: int
    first: int
    until: int = 0
    why: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    before: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def load(folder: Path) -> Length | None:
        """The length of the training in a folder; None where none is written, as in old runs."""
        path = folder / LENGTH_FILE
        if not path.exists():
            return None
        remedy = "move it away; the training is then of the length given"
        content = read_json(path, Length, remedy)
        before = tuple((int(a), int(b)) for a, b in content.get("before", ()))
        length = from_json(Length, content, before=before)
        if min(length.steps, length.first) < 1 or not 0 <= length.until <= length.steps:
            what = f"no length: steps {length.steps}, first {length.first}, until {length.until}"
            raise ContextsegError(path, what, remedy)
        return length

    def save(self, folder: Path) -> None:
        """Write it into the folder of the training."""
        write_json(folder / LENGTH_FILE, asdict(self))

    @property
    def last(self) -> int:
        """The step with which the training ends."""
        return self.until or self.steps

    def ended(self, until: int, why: str) -> Length:
        """The same training, ended with a step.

        Args:
            until: The step.
            why: Why; "" where it is its last step anyhow.
        """
        return replace(self, until=until if why else 0, why=why)

    def extended(self, steps: int) -> Length:
        """The same training with a longer schedule.

        Args:
            steps: Steps of the new schedule, more than were done.
        """
        if steps == self.steps and self.why != "early stopping":
            return replace(self, until=0, why="")
        before = (*self.before, (self.steps, self.last))
        return replace(self, steps=steps, until=0, why="", before=before)

    def __str__(self) -> str:
        """How it ended, in words; "" where there is nothing to tell."""
        parts = []
        for steps, reached in self.before:
            parts.append(f"was extended at step {reached} of {steps}")
        if self.until:
            by = "by early stopping" if self.why == "early stopping" else "on request"
            parts.append(f"was stopped early {by}, at step {self.until} of {self.steps}")
        return ", and ".join(parts)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCost:
    """What one step and one prediction cost on this machine.

    Attributes:
        step_s: Seconds of a training step.
        window_s: Seconds to predict one patch, without mirrored ones.
        steps: Number of steps that were timed.
    """

    step_s: float
    window_s: float
    steps: int


def step_cost(
    method: Method, batch_at: BatchAt, training: Training, batch_size: int, seconds: float
) -> StepCost:
    """Time the steps of a training on a copy of its method, which leaves no trace.

    Args:
        method: What will be trained; neither it nor torch's random numbers change.
        batch_at: Gives the batches to train on.
        training: Gives device and precision.
        batch_size: Items of one batch, those of all ranks together.
        seconds: About how long to measure; at least two steps after the first ones.

    Returns:
        What was measured.
    """
    rank, world = ranks()
    device = pick_device(training.device)
    random = torch.get_rng_state()
    random_gpu = torch.cuda.get_rng_state_all() if device.type == "cuda" else []
    trial = copy.deepcopy(method)
    training = replace(
        training, steps=DEFAULT_STEPS, time_s=0, lr=trial.settle(DEFAULT_STEPS, training.lr)
    )
    trial.to(device).train()
    state = TrainingState(trial, training, device)

    def items_of_this_rank(n: int) -> Any:
        return batch_at(n, rank, world, device)

    warm_up = WARM_UP.get(device.type, 1)
    begun = started = clock()
    timed = 0
    for n, batch in enumerate(prefetched(items_of_this_rank, 0, DEFAULT_STEPS, device)):
        state.set_decay(1e-3)  # the weights of a copy need not go anywhere
        share = len(batch) * world / batch_size
        training_step(state, batch, training, 1e-3 * training.lr, share)
        state.step += 1
        _wait_for(device)
        now = clock()
        if n + 1 <= warm_up:
            started = now
            continue
        timed = n + 1 - warm_up
        enough = now - begun >= seconds and timed >= 2
        if highest_of_ranks(int(enough), device):
            break
    step_s = (now - started) / timed
    window_s = _prediction_seconds(trial, batch.image) / max(len(batch), 1)
    torch.set_rng_state(random)
    if random_gpu:
        torch.cuda.set_rng_state_all(random_gpu)
    return StepCost(step_s, window_s, timed)


@torch.no_grad()
def _prediction_seconds(method: Method, image: torch.Tensor) -> float:
    """Seconds to predict a batch once; 0 for a method that predicts nothing by itself."""
    if method.guided or not len(image):
        return 0.0
    method.eval()
    started = clock()
    method.predict(image)
    _wait_for(image.device)
    return clock() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- choosing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkLeft:
    """What a run has still to do when a training begins.

    Attributes:
        trainings: Trainings, this one included.
        windows: Patches to predict after them, each mirrored one counted.
        cases: Cases to evaluate at the end.
        checks: Patches to predict for validation in each step, on average.
    """

    trainings: int = 1
    windows: int = 0
    cases: int = 0
    checks: float = 0.0

    def after_s(self, cost: StepCost) -> float:
        """Seconds for what is not training."""
        report = REPORT_S if self.cases else 0.0
        return self.windows * cost.window_s + self.cases * CASE_S + report


def asked_seconds(training: Training, device: torch.device) -> float:
    """The time that a run is given.

    Args:
        training: What was asked for.
        device: Where it is trained.

    Returns:
        Seconds; 0 where the number of steps decides.

    Example:
        >>> asked_seconds(Training(time_s=60), torch.device("cpu"))
        60
        >>> asked_seconds(Training(), torch.device("cpu")) == CPU_SECONDS
        True
    """
    if training.steps:
        return 0.0
    return training.time_s or (0.0 if device.type == "cuda" else CPU_SECONDS)


def fit(time_s: float, spent_s: float, work: WorkLeft, cost: StepCost) -> Length:
    """The longest training with which a run ends in its time.

    Where several trainings are left, each gets an equal share of the time, and the next one is
    measured when it begins: so it makes good what this one took too much.

    Args:
        time_s: Seconds for the whole run.
        spent_s: Seconds that it took so far.
        work: What is left to do.
        cost: What a step and a prediction cost.

    Returns:
        The length, with what was measured.

    Raises:
        ContextsegError: There is no time for a single step.
    """
    after = work.after_s(cost)
    left = time_s * (1 - _MARGIN) - spent_s - after
    step_s = cost.step_s + work.checks * cost.window_s
    steps = int(left / work.trainings / step_s)
    if steps < 1:
        least = (spent_s + after + work.trainings * 100 * step_s) / (1 - _MARGIN)
        what = (
            f"no time is left to train: {rough_time(spent_s)} are spent, about {rough_time(after)} "
            f"go to predicting and evaluating, and a step takes {_seconds(step_s)}"
        )
        minutes = ceil(least / 60)
        remedy = f"give more, such as --time {minutes}m for 100 steps"
        raise ContextsegError(f"--time {time_s:.0f}s", what, remedy)
    facts = {
        "time_s": time_s,
        "spent_s": spent_s,
        "after_s": after,
        "step_s": step_s,
        "timed_steps": cost.steps,
        "trainings": work.trainings,
    }
    return Length(steps, steps, measured={name: round(x, 4) for name, x in facts.items()})


def longer_steps(reached: int, time_s: float, spent_s: float, after_s: float, step_s: float) -> int:
    """Steps in all with which a run that is extended ends in its time.

    Args:
        reached: Steps that are done.
        time_s: Seconds for the whole run, those that it took included.
        spent_s: Seconds that it took so far.
        after_s: Seconds for what follows the training.
        step_s: Seconds of a step.

    Returns:
        The steps.

    Raises:
        ContextsegError: There is no time for a single step.
    """
    more = int((time_s * (1 - _MARGIN) - spent_s - after_s) / step_s)
    if more < 1:
        what = f"the run took {rough_time(spent_s)} already"
        if after_s:
            what += f", and about {rough_time(after_s)} are needed to predict and evaluate again"
        minutes = ceil((spent_s + after_s + 100 * step_s) / (1 - _MARGIN) / 60)
        remedy = f"the time is that of the whole run: give more, such as --time {minutes}m"
        raise ContextsegError(f"--time {time_s:.0f}s", what, remedy)
    return reached + more


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def chosen_line(title: str, length: Length) -> str:
    """What a run says of a length that it chose.

    Args:
        title: Name of the training.
        length: The length, with what was measured.
    """
    facts = length.measured
    parts = [f"{title}: {length.steps} steps of {_seconds(facts['step_s'])}"]
    parts.append(f"about {rough_time(length.steps * facts['step_s'])}")
    if facts["trainings"] > 1:
        parts.append(f"then up to {facts['trainings'] - 1:.0f} more trainings")
    if facts["after_s"]:
        parts.append(f"then about {rough_time(facts['after_s'])} to predict and evaluate")
    return f"{', '.join(parts)}: {rough_time(facts['time_s'])} in all"


# --- of a run -------------------------------------------------------------------------------------


class TimedRun(Protocol):
    """What is asked of a run to choose the length of a training; `runs.Run` has it."""

    @property
    def settings(self) -> Settings:
        """What was asked for."""

    @property
    def plan(self) -> Plan:
        """The plan."""

    @property
    def split(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training cases, validation cases)."""

    @property
    def cases_after(self) -> int:
        """Number of cases to predict and evaluate after all trainings."""

    @property
    def work_time(self) -> WorkTime:
        """The seconds that it took."""

    def cached(self, cases: Sequence[Case]) -> list[Cached]:
        """Preprocessed cases."""


def choose_length(
    run: TimedRun,
    method: Method,
    number: int,
    sources: Callable[[int], tuple[BatchSource, Any]],
    device: torch.device,
) -> Length:
    """The length of a training that begins.

    Args:
        run: Its run.
        method: What is trained; it does not change.
        number: Number of the training in the run, from 1.
        sources: Steps to what draws the training batches, and the validation batches or None.
        device: Where it is trained.

    Returns:
        The steps that were asked for, or those that fit the time.

    Raises:
        ContextsegError: No step fits.
    """
    training = run.settings.training
    time_s = asked_seconds(training, device)
    if not time_s:
        steps = training.steps or DEFAULT_STEPS
        return Length(steps, steps)
    left = time_s - run.work_time.seconds()
    source, checked = sources(DEFAULT_STEPS)
    seconds = min(max(TIMED_SHARE * left, 0.0), TIMED_MOST_S)
    cost = step_cost(method, source.batch, training, run.plan.batch_size, seconds)
    work = work_left(run, number, checked is not None)
    return fit(time_s, run.work_time.seconds(), work, cost)


def work_left(run: TimedRun, number: int, validated: bool) -> WorkLeft:
    """What a run has to do from the training on that begins.

    Args:
        run: The run.
        number: Number of the training, from 1.
        validated: Whether patches are validated during training.
    """
    settings, plan = run.settings, run.plan
    whole = workload_of(settings.method, settings.arguments)
    trainings = max(whole.trainings + 1 - number, 1)
    swept = [case for case in run.split[0] if not case.label]
    swept += [case for case in run.split[1] if case.label]
    sweeps = whole.sweeps * trainings / whole.trainings
    cases = run.cached(run.split[0])
    shapes = [case.image.shape[1:] for case in cases]
    each = np.mean([windows_of(shape, plan, settings.prediction) for shape in shapes])
    windows = round(float(each) * (run.cases_after + sweeps * len(swept)))
    checks = settings.training.check_batches * plan.batch_size * validated
    every = settings.training.check_every
    return WorkLeft(trainings, windows, run.cases_after, checks / every if every else 0.0)


def windows_of(shape: Sequence[int], plan: Plan, settings: PredictionSettings) -> int:
    """Number of patches that are predicted for a case, each mirrored one counted.

    Args:
        shape: Size of the case on the plan's grid, (D, H, W).
        plan: The plan.
        settings: Step and mirroring.
    """
    flat = 3 - plan.dims
    number = 2 ** sum(settings.mirror and plan.mirror[axis] for axis in range(flat, 3))
    number *= shape[0] if flat else 1
    for size, patch in zip(shape[flat:], plan.patch_vox):
        number *= len(positions(size, patch, settings.step))
    return number


def kept_length(folder: Path, choose: Callable[[], Length]) -> Length:
    """The length of a training, the same on every rank and whenever it goes on.

    Args:
        folder: Folder of the training.
        choose: Chooses it; called on every rank, once in the life of a training.

    Returns:
        The length that is written in the folder.
    """
    length = Length.load(folder)
    if length is None:
        length = choose()
        together = ranks()[1] > 1
        if together:
            dist.barrier()  # every rank has seen that there was none
        if ranks()[0] == 0:
            length.save(folder)
        if together:
            dist.barrier()
            length = Length.load(folder) or length
    return length


def seconds_spent(run: RunFolder) -> float:
    """Seconds of work in a run's folder: of finished stages, and of trainings that are begun.

    Args:
        run: The run.
    """
    seconds = {stage["name"]: float(stage["seconds"]) for stage in run.stages()}
    for folder in run.stage_folders("train"):
        for row in log_rows(folder / "log.jsonl")[-1:]:
            seconds[folder.name] = max(row.get("seconds", 0.0), seconds.get(folder.name, 0.0))
    return sum(seconds.values())


def load_stopped(method: Method, folder: Path) -> str:
    """Give a method the weights of a training that was stopped.

    Args:
        method: The method.
        folder: Folder of the training, with a checkpoint.

    Returns:
        A sentence that says so.

    Raises:
        ContextsegError: The checkpoint is damaged, or one of another method.
    """
    content = load_checkpoint(folder / "checkpoint.pt", method)
    length = Length.load(folder)
    place = f"step {content['step']}" + (f" of {length.steps}" if length else "")
    return (
        f"{folder.name} of {folder.parent} is not finished: its model of {place} is used; "
        "`contextseg finish` ends the training there"
    )


# --- keeping time ---------------------------------------------------------------------------------


class WorkTime:
    """The seconds of work that a run took, of all processes one after the other.

    Args:
        before_s: Seconds that were spent before.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._before = before_s
        self._began = clock()

    def add(self, seconds: float) -> None:
        """Count more seconds than those since it was made.

        Args:
            seconds: How many.
        """
        self._before += seconds

    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + clock() - self._began


class Punctuality:
    """Says when a training is so much slower than measured that the run will end too late.

    Args:
        length: The training's length, with what was measured.
        work_time: The run's.
    """

    def __init__(self, length: Length, work_time: WorkTime) -> None:
        self.length = length
        self.work_time = work_time
        self.first: tuple[int, float] | None = None
        self.said = length.measured.get("time_s", 0.0) * (1 + _MARGIN)

    def late(self, step: int) -> str:
        """A sentence where the expected end is later than was said before; else "".

        Args:
            step: Steps that are done.
        """
        facts = self.length.measured
        now = self.work_time.seconds()
        if self.first is None:
            self.first = (step, now)
        first, started = self.first
        if facts.get("trainings") != 1 or step - first < 10 or now - started < TIMED_MOST_S:
            return ""
        each = (now - started) / (step - first)
        end = now + each * (self.length.steps - step) + facts["after_s"]
        if end <= self.said:
            return ""
        self.said = 1.25 * end
        return (
            f"a step takes {_seconds(each)}, not {_seconds(facts['step_s'])} as when it was "
            f"measured: the run will take about {rough_time(end)} in all. The number of steps "
            "stays; to end now and use the model as it is: contextseg finish"
        )
