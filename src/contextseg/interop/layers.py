"""From segments that may overlap to one label map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from contextseg.errors import ContextsegError, plural
from contextseg.formats import Header
from contextseg.grids import label_type
from contextseg.interop.segments import Segment

Overlap = Literal["refuse", "first", "last", "layers"]
"""What a voxel of several segments belongs to; "layers" keeps the segments apart."""


@dataclass(frozen=True)
class SegmentedVolume:
    """The label map of a segmentation, and its segments.

    Attributes:
        array: Label map (D, H, W); with its layers as they are (C, D, H, W).
        affine: (4, 4) from a voxel index (d, h, w, 1) to mm, RAS+. A cropped segmentation keeps its
            own box; `grids.onto` places it in the scan.
        segments: The segments, in the order of the file.
        header: What the file says of its grid beyond the affine.
    """

    array: np.ndarray
    affine: np.ndarray
    segments: tuple[Segment, ...]
    header: Header | None = None


def merge(
    masks: Iterable[tuple[Segment, np.ndarray]],
    segments: Iterable[Segment],
    shape: tuple[int, ...],
    overlap: Overlap,
    path: Path,
    reader: str,
) -> np.ndarray:
    """One label map of the masks of segments, one of which is in memory at a time.

    Args:
        masks: Each segment, with its value in the label map, and its voxels (D, H, W).
        segments: All segments.
        shape: (D, H, W).
        overlap: "refuse", "first" or "last".
        path: The file, for the message.
        reader: The function that offers a choice, for the message.

    Returns:
        The label map (D, H, W), in the smallest type that holds the values.

    Raises:
        ContextsegError: Segments overlap, and overlaps are refused; the message names them.
    """
    names = {segment.value: segment.name for segment in segments}
    label = np.zeros(shape, label_type(max(names, default=0)))
    shared = []
    for segment, mask in masks:
        others, voxels = np.unique(label[mask & (label > 0)], return_counts=True)
        for other, n in zip(others.tolist(), voxels.tolist()):
            pair = f"{names[other]} and {segment.name}"
            shared.append(f"{pair} in {plural(n, 'voxel')}")
        label[mask & (label == 0) if overlap == "first" else mask] = segment.value
    if shared and overlap == "refuse":
        more = f" and {len(shared) - 5} more pairs" if len(shared) > 5 else ""
        remedy = (
            "take the voxels from one of the two, in 3D Slicer's Segment Editor with Logical "
            f"operators, Subtract; or choose: {reader}(file, overlap='first' or 'last')"
        )
        raise ContextsegError(path, f"segments overlap: {', '.join(shared[:5])}{more}", remedy)
    return label
