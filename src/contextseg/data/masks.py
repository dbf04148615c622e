"""Masks of structures from any folder, on a scan's grid: what people drew, or what another tool predicted.

CASE.nii.gz                        a label map for each case. What its values mean says a dataset.json beside it
                                   ({"labels": {name: value}}) or a labels.json (the same, or the names alone); without
                                   one, the value V is "label_V"
CASE/STRUCT.nii.gz                 a mask for each structure, above 0 inside
CASE/segmentations/STRUCT.nii.gz   the same, as TotalSegmentator may leave it

Names are those of the data set's cases, without a channel's number; any format that scans come in will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from contextseg.data.listing import ENDINGS, Case, some, stem
from contextseg.data.tables import read_label_table, read_table
from contextseg.disk import Problem
from contextseg.volume import Volume, read, read_labels

LABELS, STRUCTURES = "labels", "structures"
"""The two layouts: one label map for each case, or a folder of masks for each."""

_PICTURES = (".png", ".bmp", ".tif", ".tiff")


def read_masks(
    folder: str | Path, case: str, scan: Volume, names: Sequence[str] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What lies where in a case: (D, H, W) int16 on the grid of `scan`, 0 nowhere and i + 1 in `names[i]`; the names.

    `names` are the structures that are wanted, as `structures` gives them for all cases; one that this case lacks has
    no voxel. None: those that the case has, in the order of `structures`. Where masks overlap, the later name has it.
    Masks on another grid are resampled, nearest neighbour; beyond their field of view is nothing.

    Raises `Problem` where the case has no masks, one cannot be read, masks of one case lie on different grids, a value
    has no name in the table, and where masks and scan have no place in common.
    """
    folder = Path(folder)
    kind, files = _files(folder, case)
    if kind == LABELS:
        label = read_labels(files[0])
        meaning = label_names(folder) or _found(label.array, files[0])
        names = [name for value, name in meaning.items() if value] if names is None else names
        number = {name: i for i, name in enumerate(names, 1)}
        to = {value: number.get(name, 0) if value else 0 for value, name in meaning.items()}
        masks = label.with_array(recoded(label.array, to, files[0]))
    else:
        there = {stem(path): path for path in files}
        names = list(there) if names is None else names
        wanted = {i: there[name] for i, name in enumerate(names, 1) if name in there}
        if not wanted:
            return np.zeros(scan.shape, np.int16), tuple(names)
        masks = painted(wanted)
    array, met = _onto(masks, scan)
    if not met:
        what = f"the masks of {case} and its scan have no place in common"
        raise Problem(files[0], what, "see whether both headers say where the patient lay, or redo them on this scan")
    return array, tuple(names)


def structures(folder: str | Path, cases: Iterable[str]) -> tuple[str, ...]:
    """The structures of these cases together, each once: by value, or in alphabetical order; () for no case.

    Label maps without a table are read for it. A structure of the table, or one with empty masks, counts too. Raises
    `Problem` as `read_masks` does.
    """
    folder = Path(folder)
    table = label_names(folder)
    values: dict[int, str] = {}
    stems: set[str] = set()
    for case in cases:
        kind, files = _files(folder, case)
        if kind == LABELS:
            values |= table or _found(read_labels(files[0]).array, files[0])
        else:
            stems |= {stem(path) for path in files}
    return tuple(dict.fromkeys([*(values[value] for value in sorted(values) if value), *sorted(stems)]))


def check_masks(
    folder: str | Path,
    cases: Sequence[Case],
    names: Sequence[str] | None = None,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """What keeps `read_masks` from working, one for each case, in order; one alone for a folder without any masks.

    Reads every scan and its masks, `workers` at a time. No case gives [].
    """

    def one(case: Case) -> Problem | None:
        try:
            read_masks(folder, case.name, read(*case.images), names)
        except Problem as problem:
            return problem
        return None

    try:
        if cases and not mask_files(folder)[1]:
            raise Problem(folder, "no masks here", "give label maps called as the cases, or a folder of masks for each")
        label_names(folder)
    except Problem as problem:
        return [problem]
    found: list[Problem] = []
    with ThreadPoolExecutor(workers) as pool:
        for i, wrong in enumerate(pool.map(one, cases)):
            found += [wrong] if wrong else []
            if progress:
                progress(i + 1, len(cases))
    return found


# --- files, and what their values mean --------------------------------------------------------------------------------


def mask_files(folder: str | Path) -> tuple[str, dict[str, tuple[Path, ...]]]:
    """(which of the two layouts, the files of each case) of a folder; label maps go first. ("", {}) if it has neither.

    Raises `Problem` if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Problem(folder, "there is no such folder", "check the path")
    maps: dict[str, tuple[Path, ...]] = {stem(path): (path,) for path in _scans(folder)}
    if maps:
        return LABELS, maps
    inside = {path.name: _parts(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    inside = {case: masks for case, masks in inside.items() if masks and not case.startswith(".")}
    return (STRUCTURES, inside) if inside else ("", {})


def label_names(folder: str | Path) -> dict[int, str]:
    """What the values of a folder's label maps mean, background too, by its tables; {} without one.

    Raises `Problem` for a table that is damaged or ambiguous.
    """
    for path in (Path(folder) / "dataset.json", Path(folder) / "labels.json"):
        table = read_table(path)
        if labels := table.get("labels", table if path.name == "labels.json" else None):
            classes, values, _, _ = read_label_table(labels, path)
            return dict(zip(values, classes))
    return {}


def recoded(label: np.ndarray, to: Mapping[int, int], where: str | Path) -> np.ndarray:
    """A label map with each value replaced by `to[value]`, in the smallest unsigned type that holds all of those.

    Raises `Problem` that names the values which `to` does not have; `where` is the file.
    """
    values = np.unique(label)
    strange = [int(value) for value in values if int(value) not in to]
    if strange:
        what = f"label values that the label table does not have: {some(map(str, strange), 8)}"
        raise Problem(where, what, 'put a dataset.json beside it with {"labels": {name: value}} of these label maps')
    codes = np.array([to[int(value)] for value in values], np.min_scalar_type(max(to.values(), default=0)))
    return codes[np.searchsorted(values, label)]


def painted(masks: Mapping[int, Path]) -> Volume:
    """Masks as one label map: each one's number where it is above 0, the later one's where several are.

    Raises `Problem` where one cannot be read, or lies on another grid than the first; ValueError for no masks.
    """
    whole: Volume | None = None
    for number, path in masks.items():
        mask = read_labels(path)
        if whole is None:
            whole = mask.with_array(np.zeros(mask.shape, np.min_scalar_type(max(masks))))
        if not mask.same_grid(whole):
            raise Problem(path, "its grid differs from the other masks'", "resample it onto their grid")
        whole.array[mask.array > 0] = number
    if whole is None:
        raise ValueError("no masks")
    return whole


def _files(folder: Path, case: str) -> tuple[str, tuple[Path, ...]]:
    """A case's layout and files. Raises `Problem` if there are none, or two label maps."""
    if not folder.is_dir():
        raise Problem(folder, "there is no such folder", "check the path")
    maps = tuple(path for path in _scans(folder) if stem(path) == case)
    if len(maps) > 1:
        raise Problem(maps[1], f"the same name as {maps[0].name}", "keep one of the two")
    if maps:
        return LABELS, maps
    parts = _parts(folder / case)
    if not parts:
        what = "no masks in this folder" if (folder / case).is_dir() else "there are no masks of this case"
        raise Problem(folder / case, what, f"put them there, or write a label map {case}.nii.gz into {folder}")
    return STRUCTURES, parts


def _parts(folder: Path) -> tuple[Path, ...]:
    """The masks of one case."""
    inside = folder / "segmentations"
    return tuple(_scans(inside if inside.is_dir() else folder))


def _scans(folder: Path) -> list[Path]:
    """The files of a folder that may be label maps; pictures (a preview, as a rule) where there is nothing else."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")) if folder.is_dir() else []
    files = [p for p in files if p.name.lower().endswith(ENDINGS)]
    return [p for p in files if not p.name.lower().endswith(_PICTURES)] or files


def _found(label: np.ndarray, where: Path, most: int = 255) -> dict[int, str]:
    """Names for values that nobody named."""
    values = [int(value) for value in np.unique(label)]
    if min(values, default=0) < 0 or len(values) > most:
        what = f"{len(values)} label values from {min(values)} to {max(values)}; a scan instead of a label map?"
        raise Problem(where, what, "use whole numbers from 0 up, one for each structure")
    return {value: f"label_{value}" for value in values}


# --- grids ------------------------------------------------------------------------------------------------------------


def _onto(label: Volume, scan: Volume) -> tuple[np.ndarray, bool]:
    """A label map on the grid of a scan, (D, H, W) int16, nearest neighbour; whether the two grids meet.

    Half-way between two voxels the one with the higher index has it, but for a thousandth of a voxel: else the noise of
    a header's float32 would decide from one voxel to the next.
    """
    if label.same_grid(scan):
        return label.array.astype(np.int16), True
    out = np.zeros(scan.shape, np.int16)
    to_label = np.linalg.solve(label.affine, scan.affine)
    to_label[:3, 3] += 0.5 + 1e-3
    depth, height, width = scan.shape
    met = False
    for d in range(depth):
        inside, places = np.True_, []
        for axis, n in enumerate(label.shape):
            along_d, along_h, along_w, start = to_label[axis]
            place = (start + along_d * d + along_h * np.arange(height))[:, None] + along_w * np.arange(width)
            inside = inside & (place >= 0) & (place < n)
            places.append(place)
        if inside.any():
            met = True
            out[d][inside] = label.array[tuple(place[inside].astype(np.intp) for place in places)]
    return out, met
