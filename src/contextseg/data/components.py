"""Connected parts of a segmentation, of which the largest alone may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from contextseg.disk import note_case
from contextseg.volume import Volume

TABLE = "postprocessing.csv"
"""The table in a folder of predictions that says what of each was removed."""


@dataclass(frozen=True)
class Change:
    """What `largest_component` did to a case: the connected parts that it had, and what of them is gone."""

    components: int = 0
    removed_components: int = 0
    removed_vox: int = 0
    removed_mm3: float = 0.0


def largest_component(
    label: np.ndarray, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), connectivity: Literal[6, 18, 26] = 26
) -> tuple[np.ndarray, Change]:
    """The largest connected part of all classes of a label map (D, H, W) together, 0 elsewhere; and what that changed.

    Classes that touch are one part, so that a tumour goes with its organ. Values are kept; the largest is the one of
    most voxels, the first in the order of the array where several are. `connectivity` is 6, 18 or 26 neighbours. An
    empty map stays empty. The array is a new one, of the same type.

    A baseline of Li et al., IEEE TMI 2023 (arXiv 2212.08423), against false positives far from the ROI. Here what was
    removed is told, too: a second lesion is a part like any other.

    >>> label = np.array([[[1, 2, 0, 0, 2]]])
    >>> largest_component(label, (5.0, 1.0, 1.0))
    (array([[[1, 2, 0, 0, 0]]]), Change(components=2, removed_components=1, removed_vox=1, removed_mm3=5.0))
    """
    import cc3d

    parts = cc3d.connected_components(np.ascontiguousarray(label > 0), connectivity=connectivity)
    sizes = cc3d.statistics(parts)["voxel_counts"].astype(np.int64)
    sizes[0] = 0
    total, most = len(sizes) - 1, int(sizes.max())
    if total < 2:
        return label.copy(), Change(total)
    largest = np.flatnonzero(sizes == most)
    kept = parts == (largest[0] if len(largest) == 1 else parts.flat[np.isin(parts, largest).argmax()])
    removed = int(sizes.sum()) - most
    removed_mm3 = removed * float(np.prod(spacing_mm))
    return np.where(kept, label, 0).astype(label.dtype), Change(total, total - 1, removed, removed_mm3)


def keep_largest(prediction: Volume, changes: list[Change] | None = None) -> Volume:
    """The `largest_component` of a predicted label map, on its grid; the change is appended to `changes`."""
    array, change = largest_component(prediction.array, prediction.spacing_mm)
    if changes is not None:
        changes.append(change)
    return prediction.with_array(array)


def write_change(folder: str | Path, case: str, change: Change) -> None:
    """Note in a folder's `postprocessing.csv` what was removed from a case; what was noted of it before is replaced.

    Columns: case, and those of `Change`. Raises `Problem` if a file of that name is another table, or cannot be
    written.
    """
    columns = ["case", *(field.name for field in fields(Change))]
    note_case(Path(folder) / TABLE, columns, case, [asdict(change)])
