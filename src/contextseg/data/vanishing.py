"""Parts of labels that no voxel is left of when a label map is resampled to a coarser spacing.

A label map is resampled by its own rule (`resampling.resample_labels`): nothing is added to keep a
small lesion, since a voxel of the coarser grid that is mostly background would then teach the
lesion. What vanishes is counted and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.cache import Cached
from contextseg.data.layouts import Case, Dataset, some, to_classes
from contextseg.data.plan import target_spacing
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.grids import times
from contextseg.inputs import from_json
from contextseg.parallel import map_cases
from contextseg.resampling import resample_labels
from contextseg.volume import AXIAL, axis_moves, read_labels

VANISHED_FILE = "vanished.json"
"""File of what is lost, in the folder of the stage "preprocess"."""

_COARSER = 1.01  # the spacing of a plan that is no more than that coarser loses nothing


@dataclass(frozen=True)
class Vanished:
    """What is lost of a class in a case.

    Attributes:
        case: Name of the case.
        parts: Number of connected parts of the class in the label.
        lost: Number of those of which no voxel is left.
    """

    case: str
    parts: int
    lost: int


def lost_parts(label: np.ndarray, resampled: np.ndarray) -> dict[int, tuple[int, int]]:
    """Connected parts of a label map of which no voxel of their class is left after resampling.

    A part is left where a voxel of it lies in a voxel of its class of the other grid. Voxels that
    touch at a face, an edge or a corner are one part.

    Args:
        label: Class indices (D, H, W); 0 is background, and less is unknown.
        resampled: The same over the same extent on another grid.

    Returns:
        (parts, lost parts) of each class that loses some, by its index; {} where nothing is lost.

    Example:
        >>> label = np.zeros((1, 8, 8), int)
        >>> label[0, 2, 2], label[0, 4:, 4:] = 1, 1
        >>> lost_parts(label, label[:, ::4, ::4])
        {1: (2, 1)}
    """
    import cc3d

    box = _box(label)
    if box is None:
        return {}
    own = label[box]
    parts = cc3d.connected_components(
        np.ascontiguousarray(np.maximum(own, 0).astype(np.uint16)), connectivity=26
    )
    near = [
        ((np.arange(part.start, part.stop) + 0.5) * new / n).astype(int)
        for part, n, new in zip(box, label.shape, resampled.shape)
    ]
    left = np.unique(parts[(resampled[np.ix_(*near)] == own) & (parts > 0)])
    numbers, first = np.unique(parts, return_index=True)
    classes = own.ravel()[first]
    lost: dict[int, tuple[int, int]] = {}
    for k in np.unique(classes[numbers > 0]):
        of_class = numbers[(classes == k) & (numbers > 0)]
        gone = int((~np.isin(of_class, left)).sum())
        if gone:
            lost[int(k)] = (len(of_class), gone)
    return lost


def _box(label: np.ndarray) -> tuple[slice, ...] | None:
    """The box of what is labelled; None where nothing is."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero((label > 0).any(axis=tuple({0, 1, 2} - {axis})))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def vanished_in_cache(
    dataset: Dataset, cases: Sequence[Case], cached: Sequence[Cached], spacing_mm: Sequence[float]
) -> dict[str, list[Vanished]]:
    """What the labels of preprocessed cases lost.

    Args:
        dataset: The data set.
        cases: Cases of it.
        cached: The same cases, preprocessed.
        spacing_mm: Spacing of the preprocessed cases.

    Returns:
        Of each class that loses something, the cases in which it does, by name; {} for none. Of a
        label that covers a part of its scan nothing is known.

    Raises:
        ContextsegError: A label cannot be read.
    """
    by_name = {c.record.name: c for c in cached}

    def lost(case: Case) -> dict[int, tuple[int, int]]:
        record, kept = by_name[case.name].record, by_name[case.name].label
        turned = read_labels(str(case.label)).oriented(record.target)
        order, _ = axis_moves(record.orientation, record.target)
        of_a_part = turned.shape != tuple(record.grid[i] for i in order)
        if kept is None or of_a_part or not is_coarser(spacing_mm, turned.spacing_mm):
            return {}
        label = to_classes(dataset, turned.array, str(case.label))
        return lost_parts(label[tuple(slice(a, b) for a, b in record.box)], np.asarray(kept))

    return _by_class(dataset, (c for c in cases if c.label), lost)


def vanished_at(
    dataset: Dataset, cases: Sequence[Case], orientation: str, spacing_mm: Sequence[float]
) -> dict[str, list[Vanished]]:
    """What the labels of cases would lose at a spacing, before anything is preprocessed.

    The grid is laid over the whole label here, and over the body in preprocessing: a part of about
    the size of a voxel may be lost on one and not on the other.

    Args:
        dataset: The data set.
        cases: Cases of it; those without a label lose nothing.
        orientation: Orientation that the spacing is meant in, such as `volume.AXIAL`.
        spacing_mm: The spacing along D, H, W.

    Returns:
        Of each class that loses something, the cases in which it does, by name; {} for none. A
        label that cannot be read counts as one that loses nothing.
    """

    def lost(case: Case) -> dict[int, tuple[int, int]]:
        turned = read_labels(str(case.label)).oriented(orientation)
        if not is_coarser(spacing_mm, turned.spacing_mm):
            return {}
        label = to_classes(dataset, turned.array, str(case.label))
        sizes = zip(label.shape, turned.spacing_mm, spacing_mm)
        shape = tuple(max(1, round(n * s / t)) for n, s, t in sizes)
        return lost_parts(label, resample_labels(np.ascontiguousarray(label), shape))

    return _by_class(dataset, (c for c in cases if c.label), lost, strict=False)


def usual_spacing(grids: Iterable[tuple[str, Sequence[int], Sequence[float]]]) -> tuple[float, ...]:
    """The spacing that is planned by default for scans, along D, H, W of axial slices.

    Args:
        grids: Orientation, shape and spacing of each scan; one or more.

    Returns:
        The spacing in mm.
    """
    facts = []
    for letters, shape, spacing in grids:
        order, _ = axis_moves(letters, AXIAL)
        shape_of, spacing_of = ([part[i] for i in order] for part in (shape, spacing))
        facts.append((shape_of, spacing_of))
    shapes, spacings = (np.array(part, float) for part in zip(*facts))
    return tuple(float(s) for s in target_spacing(spacings, shapes))


def is_coarser(planned_mm: Sequence[float], own_mm: Sequence[float]) -> bool:
    """Whether a planned spacing is coarser than a scan's own along an axis.

    Args:
        planned_mm: The planned spacing.
        own_mm: The scan's, along the same axes.
    """
    return any(planned > _COARSER * own for own, planned in zip(own_mm, planned_mm))


def _by_class(
    dataset: Dataset, cases: Iterable[Case], lost: Any, strict: bool = True
) -> dict[str, list[Vanished]]:
    found: dict[str, list[Vanished]] = {}
    for case, result in map_cases(lost, list(cases)):
        if isinstance(result, ContextsegError):
            if strict:
                raise result
            continue
        for k, (parts, gone) in result.items():
            found.setdefault(dataset.classes[k], []).append(Vanished(case.name, parts, gone))
    return found


def save_vanished(found: Mapping[str, Sequence[Vanished]], folder: str | Path) -> None:
    """Write what is lost as `vanished.json`.

    Args:
        found: What is lost of each class.
        folder: Where the file goes.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    content = {name: [asdict(row) for row in rows] for name, rows in found.items()}
    write_json(Path(folder) / VANISHED_FILE, content)


def read_vanished(folder: str | Path) -> dict[str, list[Vanished]]:
    """What `save_vanished` wrote.

    Args:
        folder: Where the file lies.

    Returns:
        What is lost of each class; {} where there is no such file.
    """
    path = Path(folder) / VANISHED_FILE
    again = "delete this stage's folder; the same command does it again"
    content = read_json(path, dict[str, list[Vanished]], again) if path.exists() else {}
    return {name: [from_json(Vanished, row) for row in rows] for name, rows in content.items()}


def vanished_sentences(
    found: Mapping[str, Sequence[Vanished]], spacing_mm: Sequence[float]
) -> Iterator[tuple[str, str]]:
    """What is lost, in words.

    Args:
        found: What is lost of each class.
        spacing_mm: At which spacing.

    Yields:
        What is wrong and the remedy, for each class.
    """
    for name, rows in found.items():
        lost, parts = sum(row.lost for row in rows), sum(row.parts for row in rows)
        where = some(f"{row.case} ({row.lost} of {row.parts})" for row in rows)
        size = times(spacing_mm, " mm")
        what = f"{lost} of {parts} connected parts of {name} vanish at {size}: {where}"
        whole = [row.case for row in rows if row.lost == row.parts]
        if whole:
            what += f"; nothing of it is left in {some(whole)}"
        finer = ",".join(f"{mm / 2:g}" for mm in spacing_mm)
        yield what, f"plan a finer spacing, such as --set spacing_mm={finer}"
