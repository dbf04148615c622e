"""What the tests of comparisons share: a grid of two methods that are trained in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contextseg.studies.compare import Grid

TINY = (
    "steps=4",
    "save_every=2",
    "log_every=1",
    "patch_vox=16,16,16",
    "batch_size=2",
    "base_width=4",
    "device=cpu",
    "prediction.mirror=false",
    "confidence=false",
)
METHODS = ("plain=supervised", "residual=supervised:net=resenc")


def grid(data: Path, folder: Path, **changes: Any) -> Grid:
    return Grid(
        str(data), folder, **{"methods": METHODS, "seeds": (0,), "settings": TINY, **changes}
    )
