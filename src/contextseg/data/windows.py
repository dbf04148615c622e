"""CT windows: ranges of Hounsfield units that a radiologist looks through, as a network's channels.

Pham et al. (FLARE 2022, LNCS 13816) show their networks each slice through three of them. Their 8-bit images keep 256
steps of a window; here the numbers stay floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contextseg.disk import Problem, did_you_mean

WINDOWS: dict[str, tuple[float, float]] = {
    "abdomen": (-150.0, 250.0),  # width 400, level 50
    "chest": (-1350.0, 225.0),  # Pham et al.: from the lung window's lower end to the mediastinum's upper end
    "bone": (-500.0, 1300.0),  # width 1800, level 400
    "spine": (-500.0, 1300.0),  # Pham et al.'s name for it
    "lung": (-1350.0, 150.0),  # width 1500, level -600
    "mediastinum": (-125.0, 225.0),  # width 350, level 50
    "liver": (-45.0, 105.0),  # width 150, level 30
    "brain": (0.0, 80.0),  # width 80, level 40
    "soft_tissue": (-160.0, 240.0),  # width 400, level 40, as viewers have it (OHIF)
}
"""(low, high) in HU; Pham et al.'s three and, with no other source named, Radiopaedia's ("Windowing (CT)")."""


def window(name: str) -> tuple[float, float]:
    """The range of that name, in HU. Raises `Problem` for an unknown name.

    >>> window("Soft tissue")
    (-160.0, 240.0)
    """
    known = WINDOWS.get(name.strip().lower().replace(" ", "_").replace("-", "_"))
    if known is None:
        raise Problem(f"window {name!r}", "there is no such window", did_you_mean(name, WINDOWS))
    return known


def windowed(image_hu: np.ndarray, windows: Sequence[str]) -> np.ndarray:
    """A CT image (*S) in HU through each of some windows: (len(windows), *S) float32 in [0, 1].

    0 is at the window's low end and below, 1 at its high end and above. No window gives (0, *S).

    Raises `Problem` for an unknown name.

    >>> windowed(np.array([-1000, 0, 50, 100, 1000]), ["abdomen"])
    array([[0.   , 0.375, 0.5  , 0.625, 1.   ]], dtype=float32)
    """
    out = np.empty((len(windows), *image_hu.shape), np.float32)
    for channel, name in zip(out, windows):
        low, high = window(name)
        np.clip((image_hu - np.float32(low)) / np.float32(high - low), 0, 1, out=channel)
    return out
