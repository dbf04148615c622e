"""Masks of structures from any folder, on a scan's grid: drawn by people, or another tool's.

A folder holds one of

- `CASE.nii.gz`: a label map for each case. A `dataset.json` beside it ({"labels": {name: value}})
  or a `labels.json` (the same, or the names alone) names its values; without one, the value V is
  "label_V";
- `CASE/STRUCT.nii.gz`: a mask for each structure, above 0 inside;
- `CASE/segmentations/STRUCT.nii.gz`: the same, as TotalSegmentator may leave it.

Names are those of the data set's cases, without a channel's number. Any format of scans will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from contextseg.console import Progress
from contextseg.data.listing import ENDINGS, PICTURES, Case, some, stem
from contextseg.data.tables import read_label_table, read_table
from contextseg.errors import ContextsegError
from contextseg.grids import fits, label_type, onto
from contextseg.interop.names import named_values
from contextseg.parallel import map_cases
from contextseg.volume import Volume, read, read_labels

LABELS, STRUCTURES = "labels", "structures"
"""The two layouts: one label map for each case, or a folder of masks for each."""


def read_masks(
    folder: str | Path,
    case: str,
    scan: Volume,
    names: Sequence[str] | None = None,
    maps: Mapping[str, Sequence[Path]] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The structures of a case as one label map on the grid of its scan.

    Where masks overlap, the later name has the voxel. Masks on the scan's lattice are turned
    and placed; others are resampled, nearest neighbour. Nothing lies beyond their field of view.

    Args:
        folder: The folder of masks.
        case: Name of the case.
        scan: Its scan, for the grid.
        names: The structures that are wanted, as `structures` gives them for all cases; one that
            this case lacks has no voxel. None takes those that the case has, in the order of
            `structures`.
        maps: What `label_maps` gives of the folder, for many cases. None lists it.

    Returns:
        (D, H, W) int16 (int32 for more than 32767 structures), i + 1 in the structure `names[i]`
        and 0 elsewhere; and the names.

    Raises:
        ContextsegError: The case has no masks, one cannot be read, masks of one case lie on
            different lattices, a value has no name in the table, or masks and scan do not overlap
            in space.
    """
    folder = Path(folder)
    layout, files = _files(folder, case, maps)
    if layout == LABELS:
        label = read_labels(files[0])
        meaning = label_names(folder) or _numbered_names(label.array, files[0])
        if names is None:
            names = [name for value, name in meaning.items() if value]
        number = {name: i for i, name in enumerate(names, 1)}
        to = {value: number.get(name, 0) if value else 0 for value, name in meaning.items()}
        masks = label.with_array(recoded(label.array, to, files[0]))
    else:
        paths = {stem(path): path for path in files}
        names = list(paths) if names is None else names
        wanted = {i: paths[name] for i, name in enumerate(names, 1) if name in paths}
        if not wanted:
            return np.zeros(scan.shape, np.int16), tuple(names)
        masks = painted(wanted, scan)
    array, overlap = _onto(masks, scan)
    if not overlap:
        what = f"the masks of {case} and its scan have no place in common"
        remedy = "see whether both headers say where the patient lay, or redo them on this scan"
        raise ContextsegError(files[0], what, remedy)
    return array, tuple(names)


def structures(folder: str | Path, cases: Iterable[str]) -> tuple[str, ...]:
    """The structures that some cases have together, each once.

    Label maps without a table are read for it. A structure of the table, or one with empty masks,
    counts too.

    Args:
        folder: The folder of masks.
        cases: Names of the cases.

    Returns:
        The names, by value of label maps, alphabetical of single masks; () for no case.

    Raises:
        ContextsegError: As in `read_masks`.
    """
    folder = Path(folder)
    table = label_names(folder)
    values: dict[int, str] = {}
    stems: set[str] = set()
    maps = label_maps(folder)
    for case in cases:
        layout, files = _files(folder, case, maps)
        if layout == LABELS:
            values |= table or _numbered_names(read_labels(files[0]).array, files[0])
        else:
            stems |= {stem(path) for path in files}
    by_value = [values[value] for value in sorted(values) if value]
    return tuple(dict.fromkeys([*by_value, *sorted(stems)]))


def check_masks(
    folder: str | Path,
    cases: Sequence[Case],
    names: Sequence[str] | None = None,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[ContextsegError]:
    """Find what keeps `read_masks` from working. Every scan and its masks are read.

    Args:
        folder: The folder of masks.
        cases: The cases to check; [] gives [].
        names: The structures that are wanted; None for all.
        workers: Number of cases read at a time.
        progress: Called with (done, of) after each case.

    Returns:
        One problem for each case that has one, in order; a single one for a folder without masks.
    """

    def read_case(case: Case) -> None:
        read_masks(folder, case.name, read(*case.images), names, maps)

    try:
        if cases and not _holds_masks(Path(folder)):
            remedy = "give label maps called as the cases, or a folder of masks for each"
            raise ContextsegError(folder, "no masks here", remedy)
        label_names(folder)
        maps = label_maps(folder)
    except ContextsegError as error:
        return [error]
    results = [result for _, result in map_cases(read_case, cases, workers, progress)]
    return [result for result in results if isinstance(result, ContextsegError)]


# --- files, and the meaning of their values -------------------------------------------------------


def mask_files(folder: str | Path) -> tuple[str, dict[str, tuple[Path, ...]]]:
    """The layout of a folder of masks, and the files of each case.

    Args:
        folder: The folder of masks.

    Returns:
        `LABELS` or `STRUCTURES`, and the files by case. Label maps go first, where there are both.
        ("", {}) for a folder without masks.

    Raises:
        ContextsegError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ContextsegError(folder, "there is no such folder", "check the path")
    maps: dict[str, tuple[Path, ...]] = {}
    for path in _scans(folder):
        if stem(path) in maps:
            what = f"the same name as {maps[stem(path)][0].name}"
            raise ContextsegError(path, what, "keep one of the two")
        maps[stem(path)] = (path,)
    if maps:
        return LABELS, maps
    inside = {stem(path): _parts(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    inside = {case: masks for case, masks in inside.items() if masks and not case.startswith(".")}
    return (STRUCTURES, inside) if inside else ("", {})


def label_names(folder: str | Path) -> dict[int, str]:
    """The names of the values of a folder's label maps, background too, by its tables.

    Args:
        folder: The folder of masks.

    Returns:
        The name of each value; {} without a table.

    Raises:
        ContextsegError: A table is damaged or ambiguous.
    """
    for path in (Path(folder) / "dataset.json", Path(folder) / "labels.json"):
        table = read_table(path)
        if labels := table.get("labels", table if path.name == "labels.json" else None):
            classes, values, _, _ = read_label_table(labels, path)
            return dict(zip(values, classes))
    return {}


def recoded(label: np.ndarray, to: Mapping[int, int], where: str | Path) -> np.ndarray:
    """A label map with each value replaced.

    Args:
        label: Label values, any integer type, any shape.
        to: The new value of each value.
        where: The file, for the message.

    Returns:
        The new values, of the same shape, in the smallest unsigned type that holds all of `to`.

    Raises:
        ContextsegError: `to` lacks values; the message names them.
    """
    values = np.unique(label)
    unknown = [int(value) for value in values if int(value) not in to]
    if unknown:
        what = f"label values that the label table does not have: {some(map(str, unknown), 8)}"
        remedy = 'put a dataset.json beside it with {"labels": {name: value}} of these label maps'
        raise ContextsegError(where, what, remedy)
    smallest = np.min_scalar_type(max(to.values(), default=0))
    codes = np.array([to[int(value)] for value in values], smallest)
    return codes[np.searchsorted(values, label)]


def painted(masks: Mapping[int, Path], scan: Volume | None = None) -> Volume:
    """Masks as one label map.

    Masks whose axes are stored in another order or direction are turned, and masks of a part of the
    lattice are placed in it.

    Args:
        masks: The file of each number. Where several masks are above 0, the later one has it.
        scan: Their scan. Masks on its lattice come onto its grid, so that each may cover another
            part of it. None, or masks on another lattice: the grid of the first mask.

    Returns:
        The numbers (D, H, W) where masks are above 0, and 0 elsewhere.

    Raises:
        ContextsegError: A mask cannot be read, or does not lie on the grid of the first.
        ValueError: There are no masks.
    """
    whole: Volume | None = None
    for number, path in masks.items():
        mask = read_labels(path)
        if whole is None:
            like = scan if scan is not None and fits(mask, scan) else mask
            whole = like.with_array(np.zeros(like.shape, label_type(max(masks))))
        mask = onto(mask, whole, path, "case's first mask")
        whole.array[mask.array > 0] = number
    if whole is None:
        raise ValueError("no masks")
    return whole


def _holds_masks(folder: Path) -> bool:
    """Whether there is anything in a folder that `mask_files` lists, also of the same name."""
    if not folder.is_dir():
        raise ContextsegError(folder, "there is no such folder", "check the path")
    return bool(_scans(folder)) or any(_parts(path) for path in folder.iterdir() if path.is_dir())


def label_maps(folder: str | Path) -> dict[str, tuple[Path, ...]]:
    """The label maps that lie in a folder of masks itself, by the name of their case.

    Args:
        folder: The folder of masks.

    Returns:
        The files of each name, of which there should be one; {} for single masks.
    """
    maps: dict[str, tuple[Path, ...]] = {}
    for path in _scans(Path(folder)):
        maps[stem(path)] = (*maps.get(stem(path), ()), path)
    return maps


def _files(
    folder: Path, case: str, listed: Mapping[str, Sequence[Path]] | None = None
) -> tuple[str, tuple[Path, ...]]:
    """A case's layout and files. Raises `ContextsegError` if there are none, or two label maps."""
    if not folder.is_dir():
        raise ContextsegError(folder, "there is no such folder", "check the path")
    maps = tuple((label_maps(folder) if listed is None else listed).get(case, ()))
    if len(maps) > 1:
        raise ContextsegError(maps[1], f"the same name as {maps[0].name}", "keep one of the two")
    if maps:
        return LABELS, maps
    parts = _parts(folder / case)
    if not parts:
        what = "there are no masks of this case"
        if (folder / case).is_dir():
            what = "no masks in this folder"
        remedy = f"put them there, or write a label map {case}.nii.gz into {folder}"
        raise ContextsegError(folder / case, what, remedy)
    return STRUCTURES, parts


def _parts(folder: Path) -> tuple[Path, ...]:
    """The masks of one case."""
    inside = folder / "segmentations"
    return tuple(_scans(inside if inside.is_dir() else folder))


def _scans(folder: Path) -> list[Path]:
    """The files of a folder that may be label maps.

    Pictures, which are previews as a rule, are taken only where there is nothing else.
    """
    if not folder.is_dir():
        return []
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    files = [p for p in files if p.name.lower().endswith(ENDINGS)]
    return [p for p in files if not p.name.lower().endswith(PICTURES)] or files


def _numbered_names(label: np.ndarray, where: Path, most: int = 255) -> dict[int, str]:
    """Names of the values of a label map without a table."""
    values = [int(value) for value in np.unique(label)]
    if min(values, default=0) < 0 or len(values) > most:
        extent = f"from {min(values)} to {max(values)}"
        what = f"{len(values)} label values {extent}; a scan instead of a label map?"
        raise ContextsegError(where, what, "use whole numbers from 0 up, one for each structure")
    names = {value: name for name, value in named_values(values, [where]).items()}
    return {value: names.get(value, f"label_{value}") for value in values}


# --- grids ----------------------------------------------------------------------------------------


def _onto(label: Volume, scan: Volume) -> tuple[np.ndarray, bool]:
    """A label map on the grid of a scan, (D, H, W), and whether the two grids overlap.

    The nearest voxel is taken. Half-way between two voxels the one with the higher index is, less a
    thousandth of a voxel: otherwise the rounding of a header's float32 would decide from one voxel
    to the next.
    """
    kind = label_type(int(label.array.max()), signed=True)
    if label.same_grid(scan):
        return label.array.astype(kind), True
    out = np.zeros(scan.shape, kind)
    to_label = np.linalg.solve(label.affine, scan.affine)
    to_label[:3, 3] += 0.5 + 1e-3
    depth, height, width = scan.shape
    rows = np.arange(height)
    columns = np.arange(width)
    overlap = False
    for d in range(depth):
        inside = np.True_
        indices = []
        for axis, n in enumerate(label.shape):
            along_d, along_h, along_w, start = to_label[axis]
            index = (start + along_d * d + along_h * rows)[:, None] + along_w * columns
            inside = inside & (index >= 0) & (index < n)
            indices.append(index)
        if inside.any():
            overlap = True
            nearest = tuple(index[inside].astype(np.intp) for index in indices)
            out[d][inside] = label.array[nearest]
    return out, overlap
