"""Every method, by the name the command line knows it by; a new one is a file and a line here.

A value of `METHODS` is a `Method` class, constructed as `cls(plan, **arguments)` and trained once,
or a recipe, a function `recipe(run, **arguments) -> Method` of several stages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from contextseg.methods.base import Method, RecipeRun, Workload
from contextseg.methods.cmu import CMU, cmu, cmu_pretrain
from contextseg.methods.colab import CoLab
from contextseg.methods.context import Contexts, Dilated
from contextseg.methods.cps import CPS
from contextseg.methods.pseudo import pseudo, pseudo_workload
from contextseg.methods.split import context
from contextseg.methods.stcn import STCNMethod
from contextseg.methods.supervised import Supervised

METHODS: dict[str, Callable[..., Method]] = {
    "supervised": Supervised,
    "context": context,
    "colab": CoLab,
    "cmu": cmu,
    "cmu-pretrain": cmu_pretrain,
    "cps": CPS,
    "pseudo": pseudo,
    "stcn": STCNMethod,
}
"""Methods and recipes by name."""

WORKLOADS: dict[str, Callable[..., Workload]] = {
    "cmu": lambda **_: Workload(sweeps=1),
    "cmu-pretrain": lambda **_: Workload(trainings=2, segments_from=2),
    "pseudo": pseudo_workload,
}
"""What a recipe's arguments say of its work, by name; one training, where it is not here."""


def workload_of(name: str, arguments: Mapping[str, Any]) -> Workload:
    """What a method does at most.

    Args:
        name: A name of `METHODS`.
        arguments: Its arguments other than the defaults.

    Returns:
        Its number of trainings, and of predictions on the way.

    Example:
        >>> workload_of("supervised", {}).trainings, workload_of("pseudo", {"rounds": 3}).trainings
        (1, 7)
    """
    if name not in WORKLOADS:
        return Workload()
    known = inspect.signature(METHODS[name]).parameters.values()
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    return WORKLOADS[name](**{**defaults, **arguments})


__all__ = [
    "CMU",
    "CPS",
    "METHODS",
    "CoLab",
    "Contexts",
    "Dilated",
    "Method",
    "RecipeRun",
    "STCNMethod",
    "Supervised",
    "Workload",
    "workload_of",
]
