"""DICOM structure sets (RTSTRUCT): contours, which become a label map on the grid of their scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom import is_dicom, series_in
from contextseg.dicom.files import read_header
from contextseg.dicom.tags import tag_number, text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.formats import Header
from contextseg.formats.header import as_matrix
from contextseg.grids import TOLERANCE_VOX, Lattice
from contextseg.inputs import names_damage
from contextseg.interop.layers import Overlap, SegmentedVolume, merge
from contextseg.interop.segments import Segment

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_KIND = "RT Structure Set"
_EXPORT = "export it again from the program that drew it, on this scan"


@dataclass(frozen=True)
class _Structure:
    """A segment and its contours, each (n, 3) in mm, RAS+."""

    segment: Segment
    contours: tuple[np.ndarray, ...]
    no_area: int  # points and open lines


def structure_set(path: str | Path) -> Path | None:
    """The structure set that a path stands for, by content.

    Args:
        path: A file of any kind, or a folder that may hold one structure set and no scan.

    Returns:
        The file; None for everything else.
    """
    path = Path(path)
    if path.is_dir():
        entries = [entry for entry in path.iterdir() if entry.name[0] != "."]
        if not any(entry.is_file() and is_dicom(entry) for entry in entries):
            return None
        scans, others = series_in(path)
        found = [file for file, kind in others.items() if kind == _KIND]
        return found[0] if len(found) == 1 and not scans else None
    if not path.is_file() or not is_dicom(path):
        return None
    header = read_header(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return path if text(header, "SOPClassUID") == _SOP_CLASS else None


@names_damage(_EXPORT, "a structure set that cannot be read")
def read_contours(
    path: str | Path, like: Lattice, rois: Sequence[str] = (), overlap: Overlap = "refuse"
) -> SegmentedVolume:
    """The structures of a structure set as a label map on the grid of a scan.

    A voxel is labelled where its centre lies inside an odd number of a structure's contours on its
    slice, so that a contour inside another is a hole. Slices without a contour are background;
    nothing is interpolated between slices.

    Args:
        path: The file.
        like: The scan that was drawn on.
        rois: Names of the structures to read. () for all.
        overlap: What a voxel of several structures belongs to: the "first" or the "last" of them.
            "refuse" raises an error that names them. "layers" gives each a layer (C, D, H, W).

    Returns:
        The label map and its segments. The value of a structure is its ROINumber.

    Raises:
        ContextsegError: The file is damaged, there is no such structure, contours do not lie on the
            slices of the scan, or structures overlap.
    """
    path = Path(path)
    structures = _structures(path, read_header(path))
    names = [structure.segment.name for structure in structures]
    for name in rois:
        if name not in names:
            raise ContextsegError(path, f"no structure is called {name}", did_you_mean(name, names))
    structures = [s for s in structures if not rois or s.segment.name in rois]
    segments = tuple(structure.segment for structure in structures)
    axis = _slice_axis(structures, like)
    masks = ((s.segment, _mask(path, s, like, axis)) for s in structures)
    if overlap == "layers":
        array = np.array([mask * np.int32(s.value) for s, mask in masks])
        array = array.reshape(-1, *like.shape)
        segments = tuple(replace(segment, layer=i) for i, segment in enumerate(segments))
    else:
        reader = "interop.rtstruct.read_contours"
        array = merge(masks, segments, like.shape, overlap, path, reader)
    header = Header("RTSTRUCT", as_matrix(like.affine), doubts=_doubts(structures))
    return SegmentedVolume(array, np.asarray(like.affine), segments, header)


@names_damage(_EXPORT, "a structure set that cannot be read")
def read_structures(path: str | Path) -> tuple[Segment, ...]:
    """The structures of a structure set, with the values that `read_contours` gives them.

    Args:
        path: The file.

    Returns:
        The segments, in the order of the file.

    Raises:
        ContextsegError: The file is damaged.
    """
    return tuple(s.segment for s in _structures(Path(path), read_header(Path(path))))


def _doubts(structures: Sequence[_Structure]) -> tuple[tuple[str, str], ...]:
    left = [s.segment.name for s in structures if s.no_area]
    if not left:
        return ()
    return ((f"points and open lines are left out, of {', '.join(left)}", "close the contours"),)


# --- file -----------------------------------------------------------------------------------------


def _structures(path: Path, ds: Any) -> list[_Structure]:
    """All structures of a file, in its order."""
    named = {text(item, "ROINumber"): item for item in ds.get("StructureSetROISequence") or []}
    drawn = {text(item, "ReferencedROINumber"): item for item in ds.get("ROIContourSequence") or []}
    structures = []
    for key, item in named.items():
        if not key.isdigit() or int(key) > 2**31 - 1:
            raise ContextsegError(path, f"ROINumber (3006,0022) is {key!r}, no number", _EXPORT)
        name = text(item, "ROIName") or f"ROI {key}"
        contours, no_area = _contours(path, name, drawn.get(key))
        colour = None
        if key in drawn and len(drawn[key].get("ROIDisplayColor") or ()) == 3:
            red, green, blue = (int(part) / 255 for part in drawn[key].ROIDisplayColor)
            colour = (red, green, blue)
        structures.append(_Structure(Segment(name, int(key), colour), contours, no_area))
    if not structures:
        raise ContextsegError(path, "a structure set without structures", _EXPORT)
    if all(structure.segment.value for structure in structures):
        return structures
    return [  # some programs count from 0, which is the background
        replace(s, segment=replace(s.segment, value=s.segment.value + 1)) for s in structures
    ]


def _contours(path: Path, name: str, item: Any) -> tuple[tuple[np.ndarray, ...], int]:
    """The closed contours of a structure, and the number of others."""
    closed = []
    no_area = 0
    for contour in (item.get("ContourSequence") or []) if item is not None else []:
        count = int(tag_number([contour], "NumberOfContourPoints", 0, path))
        data = contour.get("ContourData") or []
        if len(data) != 3 * count or not count:
            what = f"a contour of {name} says {count} points and holds {len(data)} numbers"
            raise ContextsegError(path, what, _EXPORT)
        if "CLOSED" not in text(contour, "ContourGeometricType").upper() or count < 3:
            no_area += 1
            continue
        closed.append(np.array(data, float).reshape(-1, 3) * (-1, -1, 1))
    return tuple(closed), no_area


# --- voxels ---------------------------------------------------------------------------------------


def _to_index(points: np.ndarray, like: Lattice) -> np.ndarray:
    """(n, 3) voxel indices (d, h, w) of points in mm, RAS+."""
    affine = np.asarray(like.affine, float)
    return np.linalg.solve(affine[:3, :3], (points - affine[:3, 3]).T).T


def _slice_axis(structures: Sequence[_Structure], like: Lattice) -> int:
    """The axis of the scan that contours are flat along."""
    contours = (contour for s in structures for contour in s.contours)
    extents = [np.ptp(_to_index(contour, like), axis=0) for contour in contours]
    return int(np.median(extents, axis=0).argmin()) if extents else 0


def _mask(path: Path, structure: _Structure, like: Lattice, axis: int) -> np.ndarray:
    """The voxels (D, H, W) of a structure."""
    mask = np.zeros(like.shape, bool)
    planes = np.moveaxis(mask, axis, 0)
    for contour in structure.contours:
        index = _to_index(contour, like)
        along, inside = index[:, axis], np.delete(index, axis, axis=1)
        k = int(np.rint(along.mean()))
        name = structure.segment.name
        if np.abs(along - k).max() > TOLERANCE_VOX:
            low, high = along.min() + 1, along.max() + 1
            what = f"a contour of {name} lies between slices, at {low:.4g} to {high:.4g}"
            raise ContextsegError(path, what, "give the scan that it was drawn on")
        size = np.array(planes.shape[1:])
        if not 0 <= k < len(planes) or (inside < -1).any() or (inside > size).any():
            what = f"a contour of {name} reaches beyond the scan, on slice {k + 1}"
            raise ContextsegError(path, what, "give the scan that it was drawn on")
        _toggle(planes[k], inside)
    return mask


def _toggle(plane: np.ndarray, polygon: np.ndarray) -> None:
    """Flip the pixels of a plane (H, W) whose centre lies in a polygon (n, 2), even-odd rule."""
    for row, left, right in _spans(plane.shape[0], polygon):
        first = max(int(np.ceil(left)), 0)
        last = int(np.ceil(right))  # a centre on the right edge lies outside
        if last > first:
            plane[row, first:last] ^= True


def _spans(rows: int, polygon: np.ndarray) -> Iterator[tuple[int, float, float]]:
    """(row, left, right): where the line through the centres of a row lies inside a polygon."""
    y, x = polygon.T
    after_y, after_x = np.roll(y, -1), np.roll(x, -1)
    top = max(int(np.ceil(y.min())), 0)
    for row in range(top, min(int(np.floor(y.max())) + 1, rows)):
        crossed = (y <= row) != (after_y <= row)
        part = (row - y[crossed]) / (after_y[crossed] - y[crossed])
        ends = np.sort(x[crossed] + part * (after_x[crossed] - x[crossed]))
        for left, right in zip(ends[::2].tolist(), ends[1::2].tolist()):
            yield row, left, right
