"""CT windows: the ranges of Hounsfield units that a radiologist views, as channels of a network.

Pham et al. (FLARE 2022, LNCS 13816) give their networks each slice through three of them. Their
8-bit images keep 256 steps of a window; here the numbers stay floats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contextseg.errors import ContextsegError, did_you_mean

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "abdomen": (-150.0, 250.0),  # width 400, level 50
    "chest": (-1350.0, 225.0),  # Pham et al.: the lung window's low end, the mediastinum's high end
    "bone": (-500.0, 1300.0),  # width 1800, level 400
    "spine": (-500.0, 1300.0),  # Pham et al.'s name for it
    "lung": (-1350.0, 150.0),  # width 1500, level -600
    "mediastinum": (-125.0, 225.0),  # width 350, level 50
    "liver": (-45.0, 105.0),  # width 150, level 30
    "brain": (0.0, 80.0),  # width 80, level 40
    "soft_tissue": (-160.0, 240.0),  # width 400, level 40, as viewers have it (OHIF)
}
"""(low, high) of each window in HU.

The three of Pham et al.; where no other source is named, Radiopaedia's ("Windowing (CT)").
"""


def ct_window(name: str) -> tuple[float, float]:
    """The range of a window.

    Args:
        name: One of `CT_WINDOWS`; capitals do not matter, nor spaces and hyphens for underscores.

    Returns:
        (low, high) in HU.

    Raises:
        ContextsegError: There is no such window.

    Example:
        >>> ct_window("Soft tissue")
        (-160.0, 240.0)
    """
    known = CT_WINDOWS.get(name.strip().lower().replace(" ", "_").replace("-", "_"))
    if known is None:
        remedy = did_you_mean(name, CT_WINDOWS)
        raise ContextsegError(f"window {name!r}", "there is no such window", remedy)
    return known


def apply_ct_windows(image_hu: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A CT image through each of several windows.

    Args:
        image_hu: The image (*S) in HU.
        names: Names of the windows. None of them gives (0, *S).

    Returns:
        (len(names), *S) float32 in [0, 1]: 0 at a window's low end and below, 1 at its high end and
        above.

    Raises:
        ContextsegError: There is no such window.

    Example:
        >>> apply_ct_windows(np.array([-1000, 0, 50, 100, 1000]), ["abdomen"])
        array([[0.   , 0.375, 0.5  , 0.625, 1.   ]], dtype=float32)
    """
    out = np.empty((len(names), *image_hu.shape), np.float32)
    for channel, name in zip(out, names):
        low, high = ct_window(name)
        np.clip((image_hu - np.float32(low)) / np.float32(high - low), 0, 1, out=channel)
    return out
