"""Volume and intensities of each class of a segmented scan, without a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import note_case
from contextseg.grids import lattice_mm, voxel_mm3
from contextseg.predictor.segmentation import Segmentation
from contextseg.volume import Volume

STATISTICS = "statistics.csv"
"""The table in a folder of predictions."""

STATISTICS_COLUMNS = (
    "case",
    "class",
    "channel",
    "voxels",
    "volume_ml",
    "mean",
    "sd",
    "min",
    "p05",
    "median",
    "p95",
    "max",
)
_INTENSITIES = STATISTICS_COLUMNS[5:]


def class_statistics(
    segmentation: Segmentation, scan: Volume, channels: Sequence[str]
) -> list[dict[str, Any]]:
    """Volume and intensities of each class.

    Args:
        segmentation: The segmented scan.
        scan: The scan itself, (C, D, H, W), in its own units.
        channels: Names of its channels.

    Returns:
        A row for each class and channel: the columns of `statistics.csv` but the case. A class that
        was not found has a volume of 0 and no intensities.
    """
    label = segmentation.label
    voxel_ml = voxel_mm3(lattice_mm(label)) / 1000
    rows: list[dict[str, Any]] = []
    for name, value in segmentation.classes.items():
        inside = label.array == value
        voxels = int(inside.sum())
        for title, channel in zip(channels, scan.array):
            row = {"class": name, "channel": title, "voxels": voxels}
            row["volume_ml"] = round(voxels * voxel_ml, 6)
            if voxels:
                row |= dict(zip(_INTENSITIES, _summary(channel[inside])))
            rows.append(row)
    return rows


def _summary(values: np.ndarray) -> list[float]:
    values = values.astype(np.float64)
    low, middle, high = np.percentile(values, (5, 50, 95))
    numbers = (values.mean(), values.std(), values.min(), low, middle, high, values.max())
    return [float(f"{number:.7g}") for number in numbers]


def write_statistics(
    folder: str | Path, segmentation: Segmentation, scan: Volume, channels: Sequence[str]
) -> None:
    """Note the statistics of a case in a folder's `statistics.csv`, in place of former ones.

    Args:
        folder: Folder of the predictions.
        segmentation: The segmented scan, with its name.
        scan: The scan.
        channels: Names of its channels.

    Raises:
        ContextsegError: A file of that name is another table, or cannot be written.
    """
    rows = class_statistics(segmentation, scan, channels)
    note_case(Path(folder) / STATISTICS, STATISTICS_COLUMNS, segmentation.name, rows)
