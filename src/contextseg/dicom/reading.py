"""From a folder or file, and perhaps a choice, to one array."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from contextseg.dicom.files import choose_series, series_in
from contextseg.dicom.frames import Frame, frames_of
from contextseg.dicom.grid import lattice, parts
from contextseg.dicom.pixels import stack
from contextseg.dicom.tags import quiet
from contextseg.errors import ContextsegError
from contextseg.inputs import names_damage


@names_damage("copy or export the series again", "cannot be read as DICOM")
@quiet
def read_series(path: str | Path, series: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Read one DICOM series.

    Args:
        path: A folder with slices, also in sub-folders, or one file: a slice or an enhanced file.
        series: Which series of the folder: its SeriesInstanceUID or SeriesNumber. Where one series
            holds several stacks or time points, "/2" after it is the second of them ("/2" alone
            where there is one series). "" for the only one.

    Returns:
        The array (1, D, H, W), and the affine (4, 4) from (d, h, w, 1) to mm, RAS+. The array keeps
        the files' number type where there is no scaling, stays integer where slopes and intercepts
        are whole numbers, and is float32 otherwise.

    Raises:
        ContextsegError: There is no series, or there are several to choose from; a file is damaged
            or is no scan; or the slices do not form a regular grid.

    Example:
        >>> array, affine = read_series("scans/patient1", series="4")  # doctest: +SKIP
    """
    path = Path(path)
    found, others = series_in(path)
    if not found and others:
        raise _no_scan(path, others)
    wanted, _, part = str(series).partition("/")
    one = choose_series(found, wanted, path)
    frames: list[Frame] = []
    for file in one.files:
        frames += frames_of(file, str(file.relative_to(path)) if path.is_dir() else file.name)
    if part:
        frames = _part(frames, part, f"series {one.number or one.uid}", path)
    try:
        ordered, affine = lattice(frames, path)
    except ContextsegError as error:
        divided = parts(frames)
        if part or len(divided) == 1:
            raise
        listed = _listed(divided, one.number or one.uid)
        remedy = f"choose a part with `--series` of predict and propagate: {listed}"
        what = f"its slices are no single stack: {error.what}"
        raise ContextsegError(error.where, what, remedy) from error
    return stack(ordered)[None], affine


def _no_scan(path: Path, others: dict[Path, str]) -> ContextsegError:
    """Why a folder or file of other DICOM objects is no scan."""
    if path in others:
        return ContextsegError(path, f"a DICOM {others[path]}, no scan", "give the scan's slices")
    kinds = Counter(others.values())
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    what = f"0 DICOM series in this folder, and {listed}"
    return ContextsegError(path, what, "give the folder that holds the slices")


def _part(frames: list[Frame], part: str, name: str, where: Path) -> list[Frame]:
    """The slices of one part of a series."""
    divided = parts(frames)
    if part.isdigit() and 1 <= int(part) <= len(divided):
        return divided[int(part) - 1][1]
    what = f"{name} has no part {part!r}, it has {len(divided)}"
    raise ContextsegError(where, what, "choose one of them, from 1")


def _listed(divided: list[tuple[str, list[Frame]]], number: str) -> str:
    listed = [
        f"{number}/{i} ({len(frames)} slice{'' if len(frames) == 1 else 's'}, {what})"
        for i, (what, frames) in enumerate(divided, 1)
    ]
    more = f"; and {len(listed) - 12} more" if len(listed) > 12 else ""
    return "; ".join(listed[:12]) + more
