"""The Python face: what the command line does, each verb as one function.

Those that study methods (compare, curve, simulate and others) are in `contextseg.studies.api`.
Every function takes paths as text or `Path`, and settings by the names that `--set` knows
(docs/cli.md). Heavy imports wait until a function is called.
"""

from __future__ import annotations

from contextseg.api.data import check, evaluate, plan, report
from contextseg.api.drawing import annotate, project, propagate, two_stage
from contextseg.api.training import demo, export, finish, load, run, train

__all__ = [
    "annotate",
    "check",
    "demo",
    "evaluate",
    "export",
    "finish",
    "load",
    "plan",
    "project",
    "propagate",
    "report",
    "run",
    "train",
    "two_stage",
]
