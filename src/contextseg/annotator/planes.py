"""The three planes of a scan as a screen shows them, and back.

The annotator holds every map along "SPL": slices from foot to head, rows from front to back,
columns from the patient's right to the left. That is a view of the file's array, so writing back is
exact. In each plane a slice is what a radiologist sees: the patient's right on the left of the
screen, in sagittal slices the front on the left, the head on top.
"""

from __future__ import annotations

import numpy as np

from contextseg.errors import ContextsegError

FRAME = "SPL"
"""How the arrays of the annotator lie."""

SCREEN_PLANES = ("axial", "coronal", "sagittal")
"""The planes, each at the place of the axis of `FRAME` that its slices follow one another along."""


def plane_axis(plane: str) -> int:
    """The axis that the slices of a plane follow one another along.

    Args:
        plane: One of `SCREEN_PLANES`.

    Returns:
        0, 1 or 2.

    Raises:
        ContextsegError: There is no such plane.
    """
    if plane not in SCREEN_PLANES:
        raise ContextsegError(f"plane {plane}", "there is no such plane", "choose an axial one")
    return SCREEN_PLANES.index(plane)


def screen_slice(array: np.ndarray, plane: str, k: int) -> np.ndarray:
    """One slice as the screen shows it.

    Args:
        array: (D, H, W) along `FRAME`.
        plane: One of `SCREEN_PLANES`.
        k: Number of the slice.

    Returns:
        A view (rows, columns) of the array, so that what is written to it is written there.

    Example:
        >>> array = np.arange(8).reshape(2, 2, 2)
        >>> screen_slice(array, "coronal", 0).tolist()  # the upper row is nearer to the head
        [[4, 5], [0, 1]]
    """
    axis = plane_axis(plane)
    view = np.moveaxis(array, axis, 0)[k]
    return view if axis == 0 else view[::-1]


def slice_shape(shape: tuple[int, ...], plane: str) -> tuple[int, int]:
    """Rows and columns of the slices of a plane.

    Args:
        shape: (D, H, W) along `FRAME`.
        plane: One of `SCREEN_PLANES`.

    Returns:
        (rows, columns).

    Example:
        >>> slice_shape((4, 5, 6), "sagittal")
        (4, 5)
    """
    rows, columns = (n for axis, n in enumerate(shape) if axis != plane_axis(plane))
    return rows, columns
