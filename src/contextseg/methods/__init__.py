"""Every method, by the name the command line knows it by; a new one is a file and a line here.

A value of `METHODS` is a `Method` class, constructed as `cls(plan, **arguments)` and trained once,
or a recipe, a function `recipe(run, **arguments) -> Method` of several stages.
"""

from __future__ import annotations

from collections.abc import Callable

from contextseg.methods.base import Method, RecipeRun
from contextseg.methods.cmu import CMU, cmu, cmu_pretrain
from contextseg.methods.colab import CoLab
from contextseg.methods.context import Contexts, Dilated
from contextseg.methods.cps import CPS
from contextseg.methods.pseudo import pseudo
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
]
