"""What a method must define, what a recipe may ask of its run, and the parts that methods share."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from contextseg.batch import Batch
from contextseg.console import Progress, say
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached
from contextseg.data.layouts import Case, Dataset
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.losses import LOSSES, POOLED, Loss
from contextseg.nets import NETS, Presence
from contextseg.nets.sources import read_start_weights
from contextseg.nets.weights import OUR_LEADS, Loaded, Names, copy_weights
from contextseg.ranks import Mean
from contextseg.volume import Volume

OPTIMIZERS = {
    "sgd": lambda parameters, lr: SGD(
        parameters, lr, momentum=0.99, nesterov=True, weight_decay=3e-5
    ),
    "adamw": lambda parameters, lr: AdamW(parameters, lr, weight_decay=1e-2),
}
"""Optimisers by name: (parameters, lr) to the optimiser. "sgd" is nnU-Net's."""

SHORT_STEPS = 16_000
"""Below so many steps a training without an optimiser and a rate of its own is a short one."""
SHORT_LR = 5e-3
"""Learning rate of AdamW in a short training."""
SHORT_STRENGTH = 0.25
"""The least that a short training multiplies the strength of the augmentation by."""
WHOLE_STRENGTH_VISITS = 600
"""How often a short training that has the whole augmentation sees each labelled case, on average.

One that sees it less often has its share of the augmentation: few labels need more of it than many.
"""

Maps = Callable[[np.ndarray, tuple[float, ...]], np.ndarray]
"""(label (*S) with classes and `IGNORE`, spacing_mm) to (N, *S) float16."""


class BatchSource(Protocol):
    """Draws the batches of a training; `data.sampling.Sampler` is the usual one."""

    def batch(
        self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
    ) -> Batch:
        """The items of a batch that belong to a rank; may be empty.

        Args:
            n: Number of the batch.
            rank: Which process, from 0.
            world: Number of processes.
            device: Where the tensors go.

        Returns:
            The items, (B, C, *S).
        """


# --- the method -----------------------------------------------------------------------------------


class Method(nn.Module, abc.ABC):
    """Networks, and how one batch trains them.

    The loop (`contextseg.training`) owns the optimisers' steps, ranks, precision and checkpoints;
    it needs of a method what its protocol `Trainable` lists. The first argument of a constructor is
    the plan; the others have defaults, so that the command line can set each by name.
    """

    unlabelled = 0
    """How many items of each batch come from cases without a label."""

    context_classes = 1
    """Into how many classes the background is split, t; 1 where it is not."""

    guided = False
    """Whether a scan is segmented from labels of its own; then `predict` is not offered."""

    relabels: bool = False
    """Whether a step takes the loss again after its look-ahead, with what that has moved."""

    maps: Maps | None = None
    """What computes `Batch.maps` from the label of a whole case, once a case; None for no maps."""

    optimizer = "sgd"
    """Name of the optimiser, one of `OPTIMIZERS`."""

    long_optimizer = "sgd"
    """What "auto" is in a training that is no short one, see `settle`."""

    learning_rates: Mapping[str, float] = {"sgd": 1e-2, "adamw": 1e-3}
    """The learning rate of each optimiser where none is asked for."""

    chosen_by = "dice"
    """What the best of several validations is chosen by: "dice", or "loss", the sum of the loss
    terms; see `training.validation_score`."""

    short = False
    """Whether `settle` chose the settings of a short training."""

    visits_per_step = 0.1
    """How often a step sees a labelled case: labelled items of a batch, by the number of such
    cases. A run sets it, before `settle`."""

    strength = 1.0
    """What the strength of the augmentation is multiplied by, as `settle` chose it."""

    start_weights: Mapping[str, str] = {}
    """Files of weights to start from, by the network's attribute, such as {"net": PATH}.

    `initialise` loads them; a run's folder or an exported model may stand for its file, and an
    empty path is no file.
    """

    private_state: tuple[str, ...] = ()
    """Names of tensors of the state that hold voxels of training scans, and that no prediction
    needs: they are left out where a model is exported."""

    made_with: Mapping[str, Any] = {}
    """The arguments that it was constructed with, but the plan, by name; noted by itself."""

    io_names: Names = Names()
    """Names of the plan's classes and channels; noted by itself."""

    weights_report: dict[str, dict[str, Any]] | None = None
    """What `initialise` loaded, skipped and missed, by network, ready for JSON; None if nothing."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__init__" in cls.__dict__:
            setattr(cls, "__init__", _noting(cls.__dict__["__init__"]))  # noqa: B010

    @abc.abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss terms of a batch, by name; the loop descends their sum.

        Args:
            batch: Images, labels and which classes are annotated.

        Returns:
            Each term is a scalar, the mean over the batch's items, where an item without annotation
            counts 0. So two ranks equal one process.
        """

    @abc.abstractmethod
    def predict(self, image: Tensor) -> Tensor:
        """The logits that are deployed; called in evaluation mode.

        Args:
            image: (B, C, *S) float32, normalised.

        Returns:
            (B, K, *S) logits.
        """

    def context_logits(self, image: Tensor) -> Tensor:
        """The logits of all channels, the context classes after the classes.

        Args:
            image: (B, C, *S) float32, normalised.

        Returns:
            (B, K+t-1, *S) logits; those of `predict` where the background is not split.
        """
        return self.predict(image)

    def initialise(self) -> None:
        """Prepare the weights that a training starts from.

        A run calls this once, before the first step of a training that has no checkpoint; never for
        a finished or resumed model, whose weights are loaded anyway. Here it loads the files of
        `start_weights`, prints what was loaded, and notes it in `weights_report`.

        Raises:
            ContextsegError: A file is missing, damaged, or of another network.
        """
        report: dict[str, dict[str, Any]] = {}
        for name, path in self.start_weights.items():
            if not path:
                continue
            others = self._start_others(path)
            loaded = self._start_part(name, path)
            if loaded is not None:
                skipped = tuple(n for n in loaded.skipped if n not in others)
                loaded = replace(loaded, skipped=skipped)
                say(f"{name}: weights of {path}: {loaded}")
                report[name] = {"file": str(path), **asdict(loaded)}
            if others and "others" not in report:
                say(f"besides, of {path}: {len(others)} tensors such as {others[0]}")
                report["others"] = {"file": str(path), "loaded": others}
        self.weights_report = report or None

    def _start_part(self, name: str, path: str) -> Loaded | None:
        """Load the start weights of one network; None where it keeps its new ones."""
        start = read_start_weights(path)
        part = self.get_submodule(name)
        own = [
            lead
            for lead in (f"{name}.net.", f"{name}.")
            if any(tensor.startswith(lead) for tensor in start.tensors)
        ]
        names = list(self.start_weights)
        before = [
            other for other in names[: names.index(name)] if self.start_weights[other] == path
        ]
        if before and not own:  # networks that teach each other must not begin as one
            say(f"{name}: new weights; {path} has one network, which {before[0]} begins with")
            return None
        network = part.net if isinstance(part, Presence) else part
        return copy_weights(network, start, path, names=self.io_names, leads=(*own, *OUR_LEADS))

    def _start_others(self, path: str) -> list[str]:
        """Load what a file has under the same names outside the networks; the names.

        That is a presence head, or what splits the background, for the same classes.
        """
        start = read_start_weights(path)
        if start.classes and self.io_names.classes != start.classes:
            return []
        parts = {name: self.get_submodule(name) for name in self.start_weights}
        networks = tuple(
            f"{name}.net." if isinstance(part, Presence) else f"{name}."
            for name, part in parts.items()
        )
        state = self.state_dict()
        loaded = []
        for name, x in start.tensors.items():
            if name.startswith(networks) or name in self.private_state or name not in state:
                continue
            if state[name].shape == x.shape:
                state[name].copy_(x)
                loaded.append(name)
        return loaded

    def settle(self, steps: int, lr: float) -> float:
        """Choose the optimiser where it is "auto", and the learning rate where it is 0.

        "auto" is `long_optimizer`, nnU-Net's SGD unless a method says otherwise. Only a training
        of fewer than `SHORT_STEPS` steps for which nobody gave a rate is a short one: AdamW at
        `SHORT_LR`, and an augmentation that grows with how often each labelled case is seen, from
        `SHORT_STRENGTH` to the whole of it at `WHOLE_STRENGTH_VISITS`.

        Args:
            steps: Steps of the whole training.
            lr: Learning rate that was asked for; 0 for the default.

        Returns:
            Learning rate of the first step.
        """
        if self.optimizer == "auto":
            self.short = not lr and steps < SHORT_STEPS
            self.optimizer = "adamw" if self.short else self.long_optimizer
            share = steps * self.visits_per_step / WHOLE_STRENGTH_VISITS
            share = max(SHORT_STRENGTH, min(share, 1.0))
            self.strength = share if self.short else 1.0
        return lr or (SHORT_LR if self.short else self.learning_rates.get(self.optimizer, 1e-2))

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """The groups of parameters that are clipped and stepped together, and their optimisers.

        Args:
            lr: Learning rate of the first step.

        Returns:
            Optimisers by the name of their group. By default one group, "net", of all parameters.
        """
        return {"net": optimizer(self.optimizer, self.parameters(), lr)}

    def decay(self, done: float) -> float:
        """The factor on the learning rates; by default nnU-Net's polynomial.

        Args:
            done: Fraction of the training that is done, in [0, 1).

        Returns:
            What each optimiser's first learning rate is multiplied by.
        """
        return (1 - done) ** 0.9

    def sampler(
        self, cases: Sequence[Cached], plan: Plan, seed: int, augmentation: Augmentation, steps: int
    ) -> BatchSource | None:
        """What draws the batches of the training.

        Args:
            cases: The training cases, preprocessed.
            plan: The plan of the run.
            seed: Seed of everything that is drawn.
            augmentation: Settings of the augmentation.
            steps: Number of batches of the whole training.

        Returns:
            The source of batches; None, the default, for labelled patches (`data.sampling`).
        """
        return None

    def check_sampler(self, cases: Sequence[Cached], plan: Plan) -> BatchSource | None:
        """What draws the batches of the validation, of a method that has a sampler of its own.

        Args:
            cases: The validation cases, preprocessed.
            plan: The plan of the run.

        Returns:
            The source of batches; None, the default, for no validation.
        """
        return None

    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]:
        """Gradients for groups of parameters that no loss term trains (bilevel methods).

        Called once a step on every rank, also where the batch is empty, after the backward pass and
        before any parameter moves: each holds in `.grad` the gradient of the whole batch, all
        ranks', unclipped.

        Args:
            batch: This rank's items.
            lr: Learning rate of this step.
            step: Number of the step, from 0.
            mean: Replaces means over this rank's items by the means over all items, in place.

        Returns:
            Gradients by group of `optimizers`, one for each parameter; the loop averages them over
            the ranks. {}, the default, for methods without a look-ahead.
        """
        return {}


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that notes its arguments in `made_with`; of nested ones the outermost does."""

    @wraps(init)
    def noting(self: Any, *args: Any, **keywords: Any) -> None:
        if "made_with" not in self.__dict__:
            bound = inspect.signature(init).bind(self, *args, **keywords).arguments
            plan = bound.get("plan")
            given = list(bound.items())[1:]
            self.__dict__["made_with"] = {name: x for name, x in given if name != "plan"}
            if isinstance(plan, Plan):
                channels = tuple(channel.name for channel in plan.channels)
                self.__dict__["io_names"] = Names(plan.classes, channels)
        init(self, *args, **keywords)

    return noting


# --- what a recipe may ask of its run -------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """What a recipe does at most, for choosing the length of its trainings.

    Attributes:
        trainings: Number of trainings.
        segments_from: Number of the first training whose model segments; those before prepare it.
        sweeps: How often all validation cases and cases without a label are predicted on the way.
    """

    trainings: int = 1
    segments_from: int = 1
    sweeps: int = 0


class RecipeSettings(Protocol):
    """The settings of a run that recipes read; `contextseg.settings.Settings` has them."""

    @property
    def dataset(self) -> str:
        """Folder of the data set."""

    @property
    def seed(self) -> int:
        """Seed of the run."""


class ScanLabel(Protocol):
    """A segmented scan; `contextseg.predictor.Segmentation` is one."""

    @property
    def label(self) -> Volume:
        """The label map on the scan's own grid, in the label files' values."""


class ScanPredictor(Protocol):
    """Segments scans; `contextseg.predictor.Predictor` is one."""

    @property
    def classes(self) -> dict[str, int]:
        """Value of each class in its label maps, by name, without the background."""

    def predict(self, scan: Any, *, name: str = "") -> ScanLabel:
        """Segment a scan: its files, or a `Volume`; `name` is for messages."""


class RecipeRun(Protocol):
    """What a recipe may ask of the run that it is called with; `contextseg.runs.Run` has it.

    A recipe is a function `recipe(run, **arguments) -> Method` that trains in several stages. Each
    stage is done once: a run that is opened again passes over the finished ones. Outside its stages
    a recipe must not open the data set, so that a finished run loads without it.
    """

    @property
    def folder(self) -> Path:
        """The run's folder."""

    @property
    def settings(self) -> RecipeSettings:
        """What was asked of the run."""

    @property
    def dataset(self) -> Dataset:
        """The data set, opened: it need not be there when a finished recipe runs again."""

    @property
    def plan(self) -> Plan:
        """The plan."""

    @property
    def ended_early(self) -> bool:
        """Whether the latest training was ended on request: what is trained is to be used now.

        A recipe then gives back the best that it has, without another training if it can.
        """

    @property
    def split(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training cases, validation cases), of the day on which the run began."""

    @property
    def all_classes(self) -> tuple[str, ...]:
        """Names of the data set's classes, those outside the ROI too, background first."""

    def outlined(self, case: Case) -> tuple[str, ...] | None:
        """The classes that were annotated in a case, those outside the ROI too; None for all."""

    def stage(self, name: str, work: Callable[[Path, Progress], None]) -> Path:
        """Do `work(folder, progress)` unless it is done; the stage's folder."""

    def train(
        self,
        method: Method,
        labels: Mapping[str, Path] | None = None,
        annotated: Mapping[str, Sequence[bool]] | None = None,
        draws: int = 0,
    ) -> Method:
        """The stage "train": the trained method, in evaluation mode.

        Args:
            method: The method to train.
            labels: Files of labels in place of the cases' own, by case.
            annotated: Which classes those labels annotate, by case, where that differs from the
                data set.
            draws: Which sequence of batches is drawn.

        Returns:
            `method`, trained.
        """

    def arrays(
        self, name: str, cases: Sequence[Case], make: Callable[[Cached], np.ndarray]
    ) -> dict[str, Path]:
        """The stage `name`: an array for each case, on the cache's grid.

        Args:
            name: Name of the stage.
            cases: Which cases. An empty sequence gives {}.
            make: Makes the array of a preprocessed case.

        Returns:
            Files .npy, by case.
        """

    def cached(self, cases: Sequence[Case]) -> list[Cached]:
        """Those cases, preprocessed."""

    def image(self, case: Cached) -> np.ndarray:
        """The whole normalised image of a case, (C, *S) float32."""

    def logits(self, case: Cached, method: Method) -> Iterator[tuple[int, int, Tensor]]:
        """Logits of a case on the cache's grid: slabs (start, stop, (K, stop - start, H, W))."""

    def predictor(self) -> ScanPredictor:
        """What segments scans with the method that the finished run ended with."""

    @staticmethod
    def open(folder: str | Path) -> RecipeRun:
        """The run in another folder."""

    @staticmethod
    def is_model(folder: str | Path) -> bool:
        """Whether a folder holds a run, or a model that nnU-Net trained."""

    @staticmethod
    def open_model(folder: str | Path) -> ScanPredictor:
        """What segments scans with the run, or the model of nnU-Net, in a folder."""


# --- what methods share ---------------------------------------------------------------------------


@contextmanager
def without_weights() -> Iterator[None]:
    """Construct networks inside the block without drawing weights.

    It is on torch's device "meta", which has shapes and no numbers, and torch's generator stays as
    it was. An operation that "meta" does not have ends the block: the training will say what is
    wrong, if anything is.
    """
    with suppress(RuntimeError), torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def tried(make: Callable[[], Method], steps: int = 1000, lr: float = 0.0) -> None:
    """Construct a method and throw it away, so that what it refuses is said now.

    A recipe that trains a method after stages of its own tries it before them.

    Args:
        make: Constructs the method.
        steps: Length of the training for which its optimisers are chosen.
        lr: Its learning rate; 0 for the method's own.

    Raises:
        ContextsegError: What the method, its network or its optimiser raises.

    Example:
        >>> from contextseg.methods import Supervised
        >>> from contextseg.data.plan import Facts, make_plan
        >>> facts = [Facts("a", (32, 32, 32), (1, 1, 1), "SAR", ())]
        >>> plan = make_plan("d", ["background", "organ"], [0, 1], {}, ["MR"], facts, base_width=8)
        >>> tried(lambda: Supervised(plan, net="unett"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        contextseg.errors.ContextsegError: net=unett: there is no such network. Remedy: did you...
    """
    with without_weights():
        method = make()
        method.optimizers(method.settle(steps, lr))


def build_net(name: str, plan: Plan, classes: int | None = None, setting: str = "net") -> nn.Module:
    """The network `name` of the registry, at the plan's size.

    Where the plan gives it the slice's position, a network that has a place for it takes it there
    (TransUNet, as published); any other takes it as one more channel.

    Args:
        name: One of `NETS`.
        plan: Gives channels, classes and levels.
        classes: Number of outputs; None for the plan's classes.
        setting: What the name is called where it was given, for messages.

    Returns:
        The network, with new weights drawn from torch's global generator.

    Raises:
        ContextsegError: The name is unknown, or the network cannot have this plan.
    """
    if name not in NETS:
        remedy = did_you_mean(name, NETS)
        raise ContextsegError(f"{setting}={name}", "there is no such network", remedy)
    inputs = len(plan.channels)
    position = {}
    if plan.intensities < inputs and "position" in inspect.signature(NETS[name]).parameters:
        inputs = plan.intensities
        position = {"position": True}
    return NETS[name](
        inputs=inputs,
        classes=classes or len(plan.classes),
        widths=plan.widths,
        strides=plan.strides,
        kernels=plan.kernels,
        **position,
    )


def loss_of(
    plan: Plan,
    name: str = "dice_ce",
    class_weights: Sequence[float] = (),
    outputs: int | None = None,
    **settings: Any,
) -> Loss:
    """The loss `name` of the registry, its Dice pooled over the batch where the plan says so.

    Args:
        plan: Gives the classes, and says whether the Dice is pooled (`batch_dice`).
        name: One of `LOSSES`.
        class_weights: A weight for each of the plan's classes, background first; () for equal
            weights. Each loss says what it weighs.
        outputs: Channels of the logits, where they are more than the classes: those beyond are
            parts of the background, and have its weight.
        **settings: Other arguments of the loss.

    Returns:
        A function (logits, target, annotated) to a scalar.

    Raises:
        ContextsegError: The name is unknown, or the weights do not go with the classes.
    """
    if name not in LOSSES:
        raise ContextsegError(f"loss={name}", "there is no such loss", did_you_mean(name, LOSSES))
    pooled = {"pooled": True} if plan.batch_dice and name in POOLED else {}
    weight: dict[str, Any] = {}
    if len(class_weights):
        _check_weights(class_weights, plan.classes)
        beyond = (outputs or len(plan.classes)) - len(plan.classes)
        weight = {"weight": (*class_weights, *[class_weights[0]] * beyond)}
    return partial(LOSSES[name], **settings, **pooled, **weight)


def _check_weights(weights: Sequence[float], classes: Sequence[str]) -> None:
    """Raise `ContextsegError` unless each class has a weight, and one of an organ counts."""
    where = f"class_weights={','.join(f'{w:g}' for w in weights)}"
    if len(weights) != len(classes):
        what = f"{plural(len(weights), 'weight')} for {plural(len(classes), 'class', 'classes')}"
        raise ContextsegError(where, what, f"give one for each of {', '.join(classes)}, in order")
    if not all(isfinite(w) and w >= 0 for w in weights) or not any(weights[1:]):
        what = "weights are numbers from 0, and one beside the background's is above 0"
        raise ContextsegError(where, what, "give such numbers")


def optimizer(name: str, parameters: object, lr: float) -> Optimizer:
    """An optimiser by name.

    Args:
        name: One of `OPTIMIZERS`, or "auto", which is "sgd" before a method settled it.
        parameters: The parameters, as torch's optimisers take them.
        lr: Learning rate.

    Returns:
        The optimiser.

    Raises:
        ContextsegError: The name is unknown.
    """
    if name == "auto":
        name = "sgd"
    if name not in OPTIMIZERS:
        raise ContextsegError(
            f"optimizer={name}", "there is no such optimiser", did_you_mean(name, OPTIMIZERS)
        )
    return OPTIMIZERS[name](parameters, lr)
