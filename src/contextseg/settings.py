"""Everything a run is told, as constructor arguments with names; `--set name=value` reaches every one of them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from contextseg.data.augment import Augmentation
from contextseg.data.plan import make_plan
from contextseg.disk import Problem, did_you_mean
from contextseg.methods import METHODS
from contextseg.train import Training

UNDECIDED = -2
"""A fold that the data set decides: all cases where it has a labelled test split, else fold 0."""


@dataclass(frozen=True)
class Prediction:
    """How finished networks are applied.

    step     of the sliding window, as a share of the patch.   mirror: average over mirrored inputs too.
    windows  how many go through a network at once; 0 is what fills a processor: more of small ones.
    largest_component  keep the largest connected part of all classes together, and nothing else.
    confidence  write how sure each voxel is beside the label map: what calibration is measured with.

    Raises `Problem` for a step outside (0, 1] and a negative number of windows.
    """

    step: float = 0.5
    mirror: bool = True
    windows: int = 0
    largest_component: bool = False
    confidence: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise Problem(f"prediction.step={self.step}", "no share of a patch", "give more than 0, at most 1")
        if self.windows < 0:
            raise Problem(f"windows={self.windows}", "a negative number", "give 0, for what fits, or more")


@dataclass(frozen=True)
class Settings:
    """What was asked of a run. JSON in `run.json`; the same folder with other settings is refused.

    fold       which fifth of the labelled training cases is kept for validation; -1 for none.
    planning   arguments of `data.plan.make_plan` other than the defaults.   arguments: those of the method.
    labelled   the training cases that keep their labels; the others count as unlabelled, in planning too. None: all do.
    roi        the classes (or regions) to segment; the others are background. () for all; see `data.roi.restricted`.
    """

    dataset: str
    method: str = "supervised"
    fold: int = -1
    seed: int = 0
    training: Training = field(default_factory=Training)
    augmentation: Augmentation = field(default_factory=Augmentation)
    prediction: Prediction = field(default_factory=Prediction)
    planning: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    labelled: tuple[str, ...] | None = None
    roi: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise Problem(f"seed={self.seed}", "a seed is not negative", "give 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Settings:
        """The settings that `to_json` gave."""
        parts = {"training": Training, "augmentation": Augmentation, "prediction": Prediction}
        made = {name: _build(parts[name], value) if name in parts else value for name, value in content.items()}
        made["labelled"] = None if made.get("labelled") is None else tuple(made["labelled"])
        made["roi"] = tuple(made.get("roi", ()))
        return Settings(**made)

    def set(self, assignments: Iterable[str]) -> Settings:
        """These settings after `name=value` assignments; `part.name=value` where two parts share a name.

        >>> Settings("data").set(["steps=100", "planning.spacing_mm=4,4,4"]).planning
        {'spacing_mm': (4, 4, 4)}

        Raises `Problem` for an unknown name (with the nearest known ones) and for a value of the wrong type.
        """
        changed = self
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise Problem(f"--set {assignment}", "no '='", "write --set name=value")
            part, key = _find(name.strip(), self.method)
            value = _parse(text.strip(), _names(self.method)[part][key], name)
            old = getattr(changed, part)
            new = {**old, key: value} if isinstance(old, dict) else replace(old, **{key: value})
            changed = replace(changed, **{part: new})  # type: ignore[arg-type]
        return changed


def names(method: str) -> list[str]:
    """Every name that `--set` knows for this method, as `part.name`."""
    return [f"{part}.{key}" for part, keys in _names(method).items() for key in keys]


def defaults(method: str) -> dict[str, Any]:
    """The default of every name, as `part.name`."""
    settings = Settings("", method)
    signatures = {"planning": inspect.signature(make_plan), "arguments": inspect.signature(METHODS[method])}
    values = {}
    for name in names(method):
        part, key = name.split(".")
        known = (
            signatures[part].parameters[key].default if part in signatures else getattr(getattr(settings, part), key)
        )
        values[name] = known
    return values


def _names(method: str) -> dict[str, dict[str, Any]]:
    if method not in METHODS:
        raise Problem(f"method={method}", "there is no such method", did_you_mean(method, METHODS))
    made: dict[str, dict[str, Any]] = {
        part: get_type_hints(kind)
        for part, kind in (("training", Training), ("augmentation", Augmentation), ("prediction", Prediction))
    }
    hints = get_type_hints(make_plan)
    keyword = [p.name for p in inspect.signature(make_plan).parameters.values() if p.kind is p.KEYWORD_ONLY]
    made["planning"] = {name: hints[name] for name in keyword}
    arguments = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    made["arguments"] = {p.name: p.annotation for p in arguments}
    return made


def _find(name: str, method: str) -> tuple[str, str]:
    known = _names(method)
    part, dot, key = name.partition(".")
    if dot and key in known.get(part, {}):
        return part, key
    homes = [part for part, keys in known.items() if name in keys]
    if len(homes) == 1:
        return homes[0], name
    if homes:
        where = " or ".join(f"{home}.{name}" for home in homes)
        raise Problem(f"--set {name}", "several parts have this name", f"write {where}")
    every = {key for keys in known.values() for key in keys} | set(names(method))
    raise Problem(f"--set {name}", "there is no such setting", did_you_mean(name, every))


def _parse(text: str, hint: Any, name: str) -> Any:
    """The value that `text` means for an argument annotated `hint`."""
    kind = str(hint) if not isinstance(hint, type) else hint.__name__
    remedy = "give true or false" if kind.startswith("bool") else "see docs/cli.md for every name and its type"
    wrong = Problem(f"--set {name}={text}", f"not a value of type {kind}", remedy)
    if "None" in kind and text.lower() in ("none", "null"):
        return None
    if kind == "str":
        return text
    try:
        if kind.startswith("bool"):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if "tuple" in kind or "Sequence" in kind:
            inner = text.strip("()[] ")
            return tuple(json.loads(part.strip().lower()) for part in inner.split(",") if part.strip())
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


def _build(kind: Any, content: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in known})
