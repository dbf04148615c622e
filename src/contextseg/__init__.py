"""Segment organs and lesions in 3-D medical images from few labels.

    import contextseg as cs

    cs.train("Dataset001_Liver", "runs/plain", steps=20000)
    result = cs.load("runs/plain").predict("scan.nii.gz")
    result.save("out.nii.gz")
    table = cs.evaluate("predictions", "labelsTs")

Importing this package is fast: what a name needs is imported when it is first used. Everything the
command line does is one call of a name below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

__all__ = [
    "ContextsegError",
    "Predictor",
    "Segmentation",
    "Volume",
    "__version__",
    "annotate",
    "check",
    "compare",
    "curve",
    "demo",
    "diagnose",
    "evaluate",
    "export",
    "finish",
    "forecast",
    "load",
    "open_dataset",
    "plan",
    "project",
    "propagate",
    "read",
    "read_labels",
    "report",
    "reproduce",
    "run",
    "simulate",
    "train",
    "two_stage",
    "write",
]

_HOMES = {
    "ContextsegError": "errors",
    "Predictor": "predictor",
    "Segmentation": "predictor",
    "Volume": "volume",
    "compare": "studies.api",
    "curve": "studies.api",
    "diagnose": "studies.api",
    "forecast": "studies.api",
    "open_dataset": "data.layouts",
    "read": "volume",
    "read_labels": "volume",
    "reproduce": "studies.api",
    "simulate": "studies.api",
    "write": "volume",
}
"""Modules of the public names that are not in `contextseg.api`."""

if TYPE_CHECKING:
    from contextseg.api import (
        annotate,
        check,
        demo,
        evaluate,
        export,
        finish,
        load,
        plan,
        project,
        propagate,
        report,
        run,
        train,
        two_stage,
    )
    from contextseg.data.layouts import open_dataset
    from contextseg.errors import ContextsegError
    from contextseg.predictor import Predictor, Segmentation
    from contextseg.studies.api import compare, curve, diagnose, forecast, reproduce, simulate
    from contextseg.volume import Volume, read, read_labels, write


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
