"""One lattice for the slices of a series, or the reason why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from contextseg.dicom.frames import MARKS, Frame
from contextseg.dicom.tags import tag_name
from contextseg.errors import ContextsegError, plural
from contextseg.grids import TOLERANCE_VOX

_EXPORT_AGAIN = "look for missing or double slices, and export the series again"


def lattice(frames: Sequence[Frame], where: Path) -> tuple[list[Frame], np.ndarray]:
    """Put the slices in order, and fit one affine to all of them.

    The step from slice to slice is the vector between their positions, so that slices of a tilted
    gantry give a sheared affine; like ITK's, it is the mean step from the first to the last slice.
    Each slice must lie within `TOLERANCE_VOX` of an even line.

    Args:
        frames: Slices in any order.
        where: The folder or file, for messages.

    Returns:
        The slices along the normal of their planes (as ITK orders them), and the affine (4, 4) from
        (d, h, w, 1) to mm, RAS+.

    Raises:
        ContextsegError: A slice has no place, slices disagree in size, spacing or orientation, or
            are missing, double or shifted.
    """
    _refuse_missing(frames, where)
    odd = _disagreeing(frames)
    if odd:
        raise ContextsegError(where, odd, "take it out of the folder, or export the series again")

    first = frames[0]
    row, column = _vector(first.orientation)
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(_vector(frame.position) @ normal))
    positions = np.array([frame.position for frame in ordered])
    if len(ordered) == 1:
        step = normal * _thickness(first, where)
    else:
        _refuse_doubles(ordered, normal, where)
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)

    between_rows, between_columns = _vector(first.spacing_mm)
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = row * between_columns
    affine[:3, 3] = positions[0]
    _refuse_uneven(ordered, positions, affine, normal, where)
    return ordered, np.diag([-1.0, -1, 1, 1]) @ affine


def parts(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """The stacks, time points, echoes and so on that lie in one series.

    A tag divides slices where all its groups cover every position.

    Args:
        frames: All slices of the series.

    Returns:
        (what is special of it, slices) of each part; one part of all slices where no tag divides
        them.
    """
    divided: list[tuple[list[str], list[Frame]]] = [([], list(frames))]
    shapes: dict[str, Callable[[Frame], str]] = {
        "size": lambda frame: f"{frame.rows} x {frame.columns}",
        "spacing": lambda frame: _rounded(frame.spacing_mm, 3),
        "orientation": lambda frame: _rounded(frame.orientation, 2),
    }
    for name, key in shapes.items():
        divided = _divided(divided, name, key, complete=False)
    for keyword in MARKS:

        def mark(frame: Frame, keyword: str = keyword) -> str:
            return frame.marks.get(keyword, "")

        divided = _divided(divided, keyword, mark, complete=keyword != "StackID")
    divided = _divided(divided, "file", lambda frame: frame.file, complete=True)
    return [(", ".join(names) or "all", members) for names, members in divided]


def _divided(
    divided: list[tuple[list[str], list[Frame]]],
    name: str,
    key: Callable[[Frame], str],
    complete: bool,
) -> list[tuple[list[str], list[Frame]]]:
    """Each part divided by a key, where it is needed and the key does so.

    `complete`: only into groups that each cover all positions of the part, and are more than one
    slice where positions are.
    """
    result = []
    for names, members in divided:
        groups: dict[str, list[Frame]] = {}
        for frame in members:
            groups.setdefault(key(frame), []).append(frame)
        places = _places(members)
        whole = all(_places(group) == places for group in groups.values())
        needed = not complete or len(places) < len(members)
        if len(groups) > 1 and needed and (whole or not complete):
            named = sorted(groups.items(), key=lambda item: _by_number(item[0]))
            result += [([*names, f"{name} {value}"], group) for value, group in named]
        else:
            result.append((names, members))
    return result


def _by_number(value: str) -> tuple[float, str]:
    """Numbers in order, then text as it was, so that echo 10 comes after echo 2."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), ""


def _places(frames: Sequence[Frame]) -> set[str]:
    """The positions, to a hundredth of a millimetre."""
    return {_rounded(frame.position, 2) for frame in frames}


def _rounded(values: np.ndarray | None, digits: int) -> str:
    if values is None:
        return "missing"
    return "\\".join(f"{value:g}" for value in np.round(values, digits).ravel() + 0.0)


def _vector(values: np.ndarray | None) -> np.ndarray:
    """Values that `_refuse_missing` has seen."""
    assert values is not None
    return values


def _thickness(frame: Frame, where: Path) -> float:
    if frame.thickness_mm:
        return frame.thickness_mm
    what = (
        f"one slice without its thickness, neither {tag_name('SliceThickness')} nor "
        f"{tag_name('SpacingBetweenSlices')}"
    )
    raise ContextsegError(where, what, "add the tag, or give the whole series")


def _refuse_missing(frames: Sequence[Frame], where: Path) -> None:
    """Refuse slices without a place."""
    for keyword, attribute in {
        "ImagePositionPatient": "position",
        "ImageOrientationPatient": "orientation",
        "PixelSpacing": "spacing_mm",
    }.items():
        missing = [frame.name for frame in frames if getattr(frame, attribute) is None]
        if missing:
            what = f"{_some(missing)} without {tag_name(keyword)}, {_of(missing, frames)}"
            remedy = "export the series with its geometry, or as NIfTI"
            raise ContextsegError(where, what, remedy)


def _disagreeing(frames: Sequence[Frame]) -> str:
    """Which slices have another size, pixel spacing or orientation than most; "" for none."""
    sizes = Counter((frame.rows, frame.columns) for frame in frames)
    usual = sizes.most_common(1)[0][0]
    other = [frame for frame in frames if (frame.rows, frame.columns) != usual]
    if other:
        size = f"{other[0].rows} x {other[0].columns}"
        return (
            f"{_some([frame.name for frame in other])} of {size} pixels, the others have "
            f"{usual[0]} x {usual[1]}"
        )

    extent = np.array([usual[1], usual[0]]) - 1  # along a row, along a column
    middle = frames[len(frames) // 2]
    for keyword, attribute in {
        "PixelSpacing": "spacing_mm",
        "ImageOrientationPatient": "orientation",
    }.items():
        common = Counter(_rounded(getattr(frame, attribute), 3) for frame in frames)
        value = common.most_common(1)[0][0]
        reference = next(f for f in frames if _rounded(getattr(f, attribute), 3) == value)
        other = []
        for frame in frames:
            change = np.abs(getattr(frame, attribute) - getattr(reference, attribute))
            if attribute == "spacing_mm":
                off = change / _vector(reference.spacing_mm) * extent[::-1]
            else:
                lengths = extent * _vector(middle.spacing_mm)[::-1]
                off = change * lengths[:, None] / _vector(middle.spacing_mm).min()
            if off.max() > TOLERANCE_VOX:
                other.append(frame)
        if other:
            mine = _rounded(getattr(other[0], attribute), 4)
            usually = _rounded(getattr(reference, attribute), 4)
            names = [frame.name for frame in other]
            return f"{_some(names)} with {tag_name(keyword)} {mine}, the others {usually}"
    return ""


def _refuse_doubles(ordered: Sequence[Frame], normal: np.ndarray, where: Path) -> None:
    """Refuse several slices at one place."""
    heights = np.array([_vector(frame.position) @ normal for frame in ordered])
    steps = np.diff(heights)
    doubled = steps < 1e-3
    if not doubled.any():
        return
    once = int((~doubled).sum()) + 1
    counts = set(Counter(np.cumsum(np.r_[0, ~doubled]).tolist()).values())
    k = int(doubled.argmax())
    one, other = ordered[k], ordered[k + 1]
    if one.uid and one.uid == other.uid and one.path != other.path:
        what = f"{one.name} and {other.name} are copies of one image ({tag_name('SOPInstanceUID')})"
        raise ContextsegError(where, what, "take one of the two out of the folder")
    if len(counts) == 1 and (once > 1 or len(ordered) > 2):
        times = counts.pop()
        what = f"{plural(once, 'position')}, each with {times} slices"
        what += f" that lie 0 mm apart, such as {one.name} and {other.name}"
        remedy = "it holds several time points, echoes or the like: give each its own folder"
        if one.frames > 1:
            remedy = f"{remedy}, after an export with a file for each slice"
        raise ContextsegError(where, what, remedy)
    usual = steps[~doubled]
    others = f", the others {np.median(usual):.4g} mm" if len(usual) else ""
    what = f"slices {k + 1} and {k + 2} lie 0 mm apart{others} ({one.name} and {other.name})"
    raise ContextsegError(where, what, _EXPORT_AGAIN)


def _refuse_uneven(
    ordered: Sequence[Frame],
    positions: np.ndarray,
    affine: np.ndarray,
    normal: np.ndarray,
    where: Path,
) -> None:
    """Refuse slices that lie off the lattice: a gap, or a shift within their plane."""
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ContextsegError(where, "its slices lie in one plane", _EXPORT_AGAIN)
    expected = affine[:3, 3] + np.arange(len(ordered))[:, None] * affine[:3, 0]
    off_vox = np.linalg.solve(affine[:3, :3], (positions - expected).T).T
    # Rounded positions: also the two ends may be off, so that an even line is fitted to all.
    line = np.c_[np.ones(len(ordered)), np.arange(len(ordered))]
    off_vox = off_vox - line @ np.linalg.lstsq(line, off_vox, rcond=None)[0]
    if np.abs(off_vox).max() <= TOLERANCE_VOX + 1e-6:
        return
    steps = np.diff(positions, axis=0)
    usual = np.median(steps, axis=0)
    apart = steps @ normal
    gap = int(np.abs(apart - usual @ normal).argmax())
    if abs(apart[gap] - usual @ normal) > TOLERANCE_VOX / 2 * abs(usual @ normal):
        what = (
            f"slices {gap + 1} and {gap + 2} lie {apart[gap]:.4g} mm apart, the others "
            f"{usual @ normal:.4g} mm ({ordered[gap].name} and {ordered[gap + 1].name})"
        )
        raise ContextsegError(where, what, _EXPORT_AGAIN)
    aside = np.linalg.norm(steps - usual, axis=1)
    k = int(aside.argmax())
    what = (
        f"between {ordered[k].name} and {ordered[k + 1].name} the slices shift by "
        f"{aside[k]:.4g} mm more than between the others ({tag_name('ImagePositionPatient')})"
    )
    raise ContextsegError(where, what, "export the series again, or resample it to a regular grid")


def _some(names: Sequence[str]) -> str:
    """The first three names."""
    listed = ", ".join(names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"


def _of(some: Sequence[str], frames: Sequence[Frame]) -> str:
    return f"{len(some)} of {plural(len(frames), 'slice')}"
