"""Connected parts of a segmentation, of which the largest alone may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from contextseg.disk import note_case
from contextseg.grids import lattice_mm, voxel_mm3
from contextseg.volume import Volume

COMPONENTS_TABLE = "postprocessing.csv"
"""The table, in a folder of predictions, of what was removed from each."""


@dataclass(frozen=True)
class Change:
    """What `largest_component` removed from a case.

    Attributes:
        components: Number of connected parts before.
        removed_components: Number of parts removed.
        removed_vox: Number of voxels removed.
        removed_mm3: Their volume.
    """

    components: int = 0
    removed_components: int = 0
    removed_vox: int = 0
    removed_mm3: float = 0.0


def largest_component(
    label: np.ndarray,
    spacing_mm: Sequence[Any] = (1.0, 1.0, 1.0),
    connectivity: Literal[6, 18, 26] = 26,
) -> tuple[np.ndarray, Change]:
    """Keep the largest connected part of all classes of a label map together.

    Classes that touch are one part, so that a tumour goes with its organ. The largest part is the
    one of most voxels, the first in the order of the array where several are.

    A baseline of Li et al., IEEE TMI 2023 (arXiv 2212.08423), against false positives far from the
    ROI. Here what is removed is reported too: a second lesion is a part like any other.

    Args:
        label: Label values (D, H, W); 0 is background.
        spacing_mm: Spacing along D, H, W; on a sheared grid the step along each, a row.
        connectivity: Number of neighbours of a voxel: 6, 18 or 26.

    Returns:
        A new array of the same type, with 0 outside the largest part, and what was removed. An
        empty map stays empty.

    Example:
        >>> label = np.array([[[1, 2, 0, 0, 2]]])
        >>> kept, change = largest_component(label, (5.0, 1.0, 1.0))
        >>> kept.tolist()
        [[[1, 2, 0, 0, 0]]]
        >>> change
        Change(components=2, removed_components=1, removed_vox=1, removed_mm3=5.0)
    """
    import cc3d

    parts = cc3d.connected_components(np.ascontiguousarray(label > 0), connectivity=connectivity)
    sizes = cc3d.statistics(parts)["voxel_counts"].astype(np.int64)
    sizes[0] = 0
    total = len(sizes) - 1
    if total < 2:
        return label.copy(), Change(total)

    most = int(sizes.max())
    largest = np.flatnonzero(sizes == most)
    number = largest[0]
    if len(largest) > 1:
        number = parts.flat[np.isin(parts, largest).argmax()]
    removed = int(sizes.sum()) - most
    change = Change(total, total - 1, removed, removed * voxel_mm3(spacing_mm))
    return np.where(parts == number, label, 0).astype(label.dtype), change


def keep_largest(prediction: Volume) -> tuple[Volume, Change]:
    """The `largest_component` of a predicted label map, on its grid.

    Args:
        prediction: Label values (D, H, W).

    Returns:
        The label map without the other parts, and what was removed.
    """
    array, change = largest_component(prediction.array, lattice_mm(prediction))
    return prediction.with_array(array), change


def keep_largest_of(prediction: Volume, values: Sequence[int]) -> tuple[Volume, Change]:
    """A predicted label map in which some classes keep their largest connected part each.

    Args:
        prediction: Label values (D, H, W).
        values: The values of those classes; [] for none.

    Returns:
        The label map without the classes' other parts, and what was removed of all of them.
    """
    array = prediction.array
    change = Change()
    for value in values:
        own = np.where(array == value, array, 0)
        kept, removed = largest_component(own, lattice_mm(prediction))
        array = np.where((own != 0) & (kept == 0), 0, array).astype(array.dtype)
        change = added(change, removed)
    return prediction.with_array(array), change


def added(change: Change, more: Change) -> Change:
    """What two steps removed together.

    Args:
        change: What the first removed.
        more: What the second removed.

    Returns:
        The sum of each field.
    """
    both = zip(fields(Change), asdict(change).values(), asdict(more).values())
    return Change(**{field.name: a + b for field, a, b in both})


def write_change(folder: str | Path, case: str, change: Change) -> None:
    """Note in a folder's `postprocessing.csv` what was removed from a case.

    The columns are the case, and the fields of `Change`. The case's former row is replaced.

    Args:
        folder: Folder of the predictions.
        case: Name of the case.
        change: What was removed from it.

    Raises:
        ContextsegError: A file of that name is another table, or cannot be written.
    """
    columns = ["case", *(field.name for field in fields(Change))]
    note_case(Path(folder) / COMPONENTS_TABLE, columns, case, [asdict(change)])
