"""Every method, by the name the command line knows it by. A new one is a file and a line here.

A value is a `Method` class, made as `cls(plan, **arguments)` and trained once, or a recipe, a function
`recipe(run, **arguments) -> Method` of several stages.
"""

from __future__ import annotations

from contextseg.methods.base import Method
from contextseg.methods.supervised import Supervised

METHODS = {"supervised": Supervised}

__all__ = ["METHODS", "Method", "Supervised"]
