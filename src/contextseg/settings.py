"""The settings of a run: every constructor argument by name.

`--set name=value` reaches each of them, and `run.json` holds them all.
"""

from __future__ import annotations

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from contextseg.data.augment import Augmentation
from contextseg.data.plan import make_plan
from contextseg.disk import changes, read_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.inputs import damage_named, misfit
from contextseg.methods import METHODS
from contextseg.training import Training

ANYWHERE = frozenset(f"training.{name}" for name in ("device", "tensorboard", "save_every")) | {
    "dataset",
    "prediction.memory_gb",
    "prediction.windows",
}
"""Settings that change no result, and may differ from those that a run was begun with."""

_RUN_REMEDY = "mend the file in a text editor, or train again with another --output"
AUTO_FOLD = -2
"""The fold is chosen by the data set: all cases where there is a labelled test split, else fold 0.

`pipeline.resolve_fold` replaces it.
"""


@dataclass(frozen=True)
class PredictionSettings:
    """How trained networks are applied to a scan.

    Attributes:
        step: Distance of the sliding windows, as a share of the patch.
        mirror: Whether logits are averaged over mirrored inputs too.
        windows: Sliding windows that go through a network at once. 0 takes what fills a processor:
            the smaller the patch, the more.
        largest_component: Whether only the largest connected part of all classes together is kept.
        confidence: Whether the probability of each voxel's label is written beside the label map;
            calibration is measured with it.
        memory_gb: Memory in gibibytes that a scan may take: of the windows that go through a
            network at once, and of all its arrays. A scan that needs more is refused before they
            are made. 0 is what this machine has.
        largest_of: Classes of which only the largest connected part each is kept.
        largest_by_validation: Whether, where `largest_of` names none, it is done for the classes
            for which it was better on the validation cases of the run (`largest_components.csv`).

    Raises:
        ContextsegError: The step is outside (0, 1], or a number is negative.
    """

    step: float = 0.5
    mirror: bool = True
    windows: int = 0
    largest_component: bool = False
    confidence: bool = True
    memory_gb: float = 0.0
    largest_of: tuple[str, ...] = ()
    largest_by_validation: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ContextsegError(
                f"prediction.step={self.step}", "no share of a patch", "give more than 0, at most 1"
            )
        if self.windows < 0:
            raise ContextsegError(
                f"windows={self.windows}", "a negative number", "give 0, for what fits, or more"
            )
        if not 0 <= self.memory_gb < math.inf:
            what = "no amount of memory"
            remedy = "give 0, for what this machine has, or more"
            raise ContextsegError(f"memory_gb={self.memory_gb}", what, remedy)


ALIASES = {
    "learning_rate": "lr",
    "batch": "batch_size",
    "iterations": "steps",
    "max_steps": "steps",
    "network": "net",
    "architecture": "net",
    "optimiser": "optimizer",
}
"""What people type, and the setting that it is another word for."""

EPOCH = 250
"""Steps of an epoch of nnU-Net, which has no epochs in a number of cases."""

_MEANT = {
    "batch_size": ("windows",),
    "overlap": ("step",),
    "step_size": ("step",),
    "tta": ("prediction.mirror",),
    "test_time_augmentation": ("prediction.mirror",),
    "patch_size": ("patch_vox",),
    "spacing": ("spacing_mm",),
    "voxel_size": ("spacing_mm",),
    "vram": ("memory_gb",),
    "gpu_memory": ("memory_gb",),
}
"""Settings that mean what others' names say, though they are spelt otherwise."""

_SHARED = ("memory_gb",)
"""Names of several parts that are set together: what bounds the plan bounds the prediction."""

_PARTS = {
    "training": Training,
    "augmentation": Augmentation,
    "prediction": PredictionSettings,
}


@dataclass(frozen=True)
class Settings:
    """The settings of one run; JSON in `run.json`.

    A folder that holds a run with other settings is refused.

    Attributes:
        dataset: Folder of the data set.
        method: Name of the method, a key of `methods.METHODS`.
        fold: Which fifth of the labelled training cases is kept for validation; -1 for none, and
            `AUTO_FOLD` where the data set is to decide.
        seed: Seed of all random numbers.
        training: Length, learning rate and bookkeeping.
        augmentation: Strength of each random change of the training patches.
        prediction: How the trained networks are applied.
        planning: Arguments of `data.plan.make_plan` other than the defaults.
        arguments: Arguments of the method other than the defaults.
        labelled: Names of the training cases that keep their labels. The others count as
            unlabelled, in planning too. None keeps all.
        roi: Names of the classes (or regions) to segment; the others become background. () for
            all; see `data.roi.restricted`.

    Raises:
        ContextsegError: The seed is negative.
    """

    dataset: str
    method: str = "supervised"
    fold: int = -1
    seed: int = 0
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    planning: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    labelled: tuple[str, ...] | None = None
    roi: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ContextsegError(f"seed={self.seed}", "a seed is not negative", "give 0 or more")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain numbers, strings, lists and dicts."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def read(path: str | Path) -> Settings:
        """The settings of a run.

        Args:
            path: Its `run.json`.

        Returns:
            The settings.

        Raises:
            ContextsegError: The file is missing or damaged, or a value is of another type.
        """
        content = read_json(path, dict[str, Any], _RUN_REMEDY).get("settings")
        if what := misfit(content, Settings, "settings") or _misfits_method(content):
            raise ContextsegError(path, what, _RUN_REMEDY)
        with damage_named(path, _RUN_REMEDY, "not the settings of a run"):
            try:
                return Settings.from_json(content)
            except ContextsegError as error:
                raise ContextsegError(path, f"{error.where}: {error.what}", error.remedy) from error

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Settings:
        """The settings that `to_json` gave.

        Args:
            content: The content of `run.json`, of an older version too: a name that no longer
                exists is left out, and a new one takes its default.
        """
        values = {f.name: content[f.name] for f in fields(Settings) if f.name in content}
        for part, kind in _PARTS.items():
            if part in values:
                values[part] = _build(kind, values[part])
        labelled = values.get("labelled")
        values["labelled"] = None if labelled is None else tuple(labelled)
        values["roi"] = tuple(values.get("roi", ()))
        return Settings(**values)

    def of_length(self, before: Settings) -> Settings:
        """These settings with the length of others, where they name none.

        Args:
            before: The others, such as those that a run was begun with.

        Returns:
            New settings; those of a run that was given the time that they name, too.

        Example:
            >>> before = Settings("data", training=Training(steps=9))
            >>> Settings("data").of_length(before).training.steps
            9
        """
        asked, was = self.training, before.training
        if asked.steps or asked.time_s not in (0, was.time_s):
            return self
        return self.with_length(was)

    def with_length(self, training: Training) -> Settings:
        """These settings with the steps, or the time, of a training.

        Args:
            training: Gives `steps` and `time_s`.
        """
        training = replace(self.training, steps=training.steps, time_s=training.time_s)
        return replace(self, training=training)

    def differences(self, other: Settings) -> str:
        """What differs between these settings and others, but for where they run (`ANYWHERE`).

        Args:
            other: The other settings.

        Returns:
            A phrase for each of the first five names that differ; "" where nothing does.

        Example:
            >>> Settings("a", seed=1).differences(Settings("b", seed=2))
            'seed was 1 and is now 2'
        """
        return changes(_flat(self.to_json()), _flat(other.to_json()), ANYWHERE)

    def set(
        self,
        assignments: Iterable[str],
        used: Collection[str] = (),
        unused: Collection[str] = (),
        by: str = "this",
    ) -> Settings:
        """These settings after assignments.

        Args:
            assignments: `name=value` each, or `part.name=value` where two parts share a name.
            used: Parts whose settings are used, such as "prediction"; () for all.
            unused: Names of their settings that are not used.
            by: Who uses them, for messages.

        Returns:
            New settings.

        Raises:
            ContextsegError: A name is unknown or not used (with the nearest that are), or a value
                has the wrong type.

        Example:
            >>> Settings("data").set(["steps=100", "planning.spacing_mm=4,4,4"]).planning
            {'spacing_mm': (4, 4, 4)}
        """
        changed = self
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise ContextsegError(f"--set {assignment}", "no '='", "write --set name=value")
            known = _Names(self.method, used or tuple(_hints(self.method)), unused, by)
            for part, key in known.find(name.strip(), text.strip()):
                value = setting_value(text.strip(), _hints(self.method)[part][key], name)
                old = getattr(changed, part)
                new = {**old, key: value} if isinstance(old, dict) else replace(old, **{key: value})
                changed = replace(changed, **{part: new})  # type: ignore[arg-type]
        return changed


def _flat(settings: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{lead}{name}.") if isinstance(value, dict) else {lead + name: value}
    return flat


def names(method: str) -> list[str]:
    """Every name that `--set` knows for a method, as `part.name`.

    Args:
        method: Name of the method.

    Raises:
        ContextsegError: There is no such method.
    """
    return [f"{part}.{key}" for part, hints in _hints(method).items() for key in hints]


def defaults(method: str) -> dict[str, Any]:
    """The default of every name that `--set` knows for a method.

    Args:
        method: Name of the method.

    Returns:
        The defaults by `part.name`, in the order of `names`.

    Raises:
        ContextsegError: There is no such method.
    """
    settings = Settings("", method)
    signatures = {
        "planning": inspect.signature(make_plan),
        "arguments": inspect.signature(METHODS[method]),
    }
    values = {}
    for name in names(method):
        part, key = name.split(".")
        if part in signatures:
            values[name] = signatures[part].parameters[key].default
        else:
            values[name] = getattr(getattr(settings, part), key)
    return values


def _hints(method: str) -> dict[str, dict[str, Any]]:
    """The type of every setting, by part and name."""
    if method not in METHODS:
        raise ContextsegError(
            f"method={method}", "there is no such method", did_you_mean(method, METHODS)
        )
    hints: dict[str, dict[str, Any]] = {part: get_type_hints(kind) for part, kind in _PARTS.items()}

    planning = get_type_hints(make_plan)
    parameters = inspect.signature(make_plan).parameters.values()
    hints["planning"] = {p.name: planning[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}

    arguments = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    hints["arguments"] = {p.name: p.annotation for p in arguments}
    return hints


@dataclass(frozen=True)
class _Names:
    """The names of `--set` for a method, of which some parts are used.

    Attributes:
        method: Name of the method.
        used: Parts whose settings are used.
        unused: Names of their settings that are not used.
        by: Who uses them.
    """

    method: str
    used: Collection[str]
    unused: Collection[str]
    by: str

    def find(self, name: str, text: str) -> list[tuple[str, str]]:
        """The parts and keys that a name of `--set` means; several for `_SHARED`."""
        if name == "epochs":
            self._refuse_epochs(text)
        known = _hints(self.method)
        part, dot, key = ALIASES.get(name, name).rpartition(".")
        key = ALIASES.get(key, key)
        homes = [home for home, hints in known.items() if key in hints and part in ("", home)]
        here = [home for home in homes if home in self.used and key not in self.unused]
        if len(here) > 1 and "arguments" in here:
            here = ["arguments"]  # what the method calls so; the other has the name of its part
        if len(here) == 1 or (here and key in _SHARED):
            return [(home, key) for home in here]
        if here:
            where = " or ".join(f"{home}.{name}" for home in here)
            raise ContextsegError(f"--set {name}", "several parts have this name", f"write {where}")
        remedy = self._nearest(key)
        if homes or (not dot and key in _OF_A_RUN):
            what = f"{self.by} does not use this setting"
            raise ContextsegError(f"--set {name}", what, f"leave it out; {remedy}")
        if others := [m for m in METHODS if not dot and key in _hints(m)["arguments"]]:
            what = f"method {self.method} does not use this setting; {', '.join(others)} would"
            raise ContextsegError(f"--set {name}", what, f"leave it out; {remedy}")
        raise ContextsegError(f"--set {name}", "there is no such setting", remedy)

    def _nearest(self, name: str) -> str:
        """The settings that are nearest to a name, of those that are used."""
        known = _hints(self.method)
        count = Counter(key for hints in known.values() for key in hints)
        several = {key for key, n in count.items() if n > 1 and key not in _SHARED}
        every = {
            f"{home}.{key}" if key in several else key
            for home in self.used
            for key in known[home]
            if key not in self.unused
        }
        meant = [other for other in _MEANT.get(name, ()) if other in every]
        return f"did you mean {meant[0]}?" if meant else did_you_mean(name, every)

    def _refuse_epochs(self, text: str) -> None:
        """An epoch is a number of cases, of steps or of slices: nobody can know which is meant."""
        what = "a training has a number of steps, and no epochs"
        remedy = f"give steps; an epoch of nnU-Net is {EPOCH} steps"
        if "training" not in self.used:
            what, remedy = f"{self.by} does not use this setting", "leave it out"
        elif text.isdecimal():
            remedy = f"write --set steps={EPOCH * int(text)}, if {EPOCH} steps are meant (nnU-Net)"
        raise ContextsegError("--set epochs", what, remedy)


_OF_A_RUN = frozenset(f.name for f in fields(Settings)) - {"planning", "arguments", *_PARTS}
"""What a run has beside its parts: its method, fold, seed and the like."""


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def setting_value(text: str, hint: Any, name: str) -> Any:
    """The value that a text means for an argument.

    Args:
        text: What somebody wrote.
        hint: The argument's annotation, a type or its text.
        name: Name of the argument, for the message.

    Returns:
        The value.

    Raises:
        ContextsegError: The text is no value of this type.

    Example:
        >>> setting_value("4,4,2", "tuple[float, ...]", "spacing_mm")
        (4, 4, 2)
    """
    kind = hint.__name__ if isinstance(hint, type) else str(hint)
    boolean = kind.startswith("bool")
    remedy = "give true or false" if boolean else "see docs/cli.md for every name and its type"
    wrong = ContextsegError(f"--set {name}={text}", f"not a value of type {kind}", remedy)
    if "None" in kind and text.lower() in ("none", "null"):
        return None
    if kind == "str":
        return text
    if kind == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        if boolean:
            return _BOOLEANS[text.lower()]
        if "tuple" in kind or "Sequence" in kind:
            parts = [part.strip().lower() for part in text.strip("()[] ").split(",")]
            return tuple(json.loads(part) for part in parts if part)
        value = json.loads(text)
    except (KeyError, ValueError):
        if "str" in kind:
            return text
        raise wrong from None
    if kind.startswith("int"):
        if isinstance(value, bool) or not float(value).is_integer():
            raise wrong
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong
    return float(value)


def _misfits_method(content: Mapping[str, Any]) -> str:
    """What of the arguments of planning and of the method is not of its type; "" where all is."""
    method = content.get("method", "supervised")
    if method not in METHODS:
        return f"settings.method is {method[:40]!r}; {did_you_mean(method[:40], METHODS)}"
    for part, function in (("planning", make_plan), ("arguments", METHODS[method])):
        hints = argument_hints(function)
        for name, value in content.get(part, {}).items():
            if name not in hints:
                return f"settings.{part}.{name[:40]} does not exist"
            if what := misfit(value, hints[name], f"settings.{part}.{name}"):
                return what
    return ""


def argument_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of the arguments of a function or class by name; Any where they are unknown.

    Args:
        function: The function or class.

    Returns:
        Type hints by name, without "return".
    """
    names = inspect.signature(function).parameters
    try:
        target: Any = function.__init__ if inspect.isclass(function) else function
        hints = get_type_hints(target)
    except (NameError, TypeError):  # a type that is imported for checkers only
        hints = {}
    return {name: hints.get(name, Any) for name in names}


def _build(kind: Any, content: Mapping[str, Any]) -> Any:
    """A dataclass of those values that it has fields for; JSON's lists become tuples."""
    known = {f.name for f in fields(kind)}
    values = {name: value for name, value in content.items() if name in known}
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})
