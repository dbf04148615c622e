"""DICOM segmentations (SEG): binary, fractional and label map, read by highdicom.

highdicom comes with the extra `dicom`: `pip install contextseg[dicom]`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom import is_dicom, series_in
from contextseg.dicom.files import read_header
from contextseg.dicom.tags import tag_name, tag_number, text
from contextseg.errors import ContextsegError
from contextseg.formats import Header
from contextseg.formats.header import as_matrix
from contextseg.grids import label_type
from contextseg.interop.layers import Overlap, SegmentedVolume, merge
from contextseg.interop.segments import Colour, Segment
from contextseg.memory_errors import raise_memory_error

_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
}
_READER = "read_dicom_segmentation"
_FAR = 1.9  # slices that lie so many thicknesses apart have others between them


def segmentation_file(path: str | Path) -> Path | None:
    """The DICOM segmentation that a path stands for, by content.

    Args:
        path: A file of any kind, or a folder that may hold one DICOM segmentation and no scan.

    Returns:
        The file; None for everything else.

    Raises:
        ContextsegError: A folder holds several segmentations and no scan.
    """
    path = Path(path)
    if path.is_dir():
        return _only_segmentation(path)
    if not path.is_file() or not is_dicom(path):
        return None
    header = read_header(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    return path if text(header, "SOPClassUID") in _SOP_CLASSES else None


def read_dicom_segmentation(
    path: str | Path, overlap: Overlap = "refuse", threshold: float = 0.5
) -> SegmentedVolume:
    """Read a DICOM segmentation as a label map on its own grid.

    The value of a segment is its number. The grid has a slice for each position from the first to
    the last slice of the file: slices that the file leaves out are background.

    Args:
        path: The file.
        overlap: What a voxel of several segments belongs to: the "first" or the "last" of them.
            "refuse" raises an error that names them. "layers" gives each segment a layer (C, D, H,
            W) of its own.
        threshold: The fraction from which on a voxel of a fractional segmentation is labelled.

    Returns:
        The label map and its segments.

    Raises:
        ContextsegError: highdicom is missing, the file is damaged, its slices form no regular grid,
            or segments overlap.
    """
    path = Path(path)
    with _named(path):
        seg = _opened(path)
        segments = tuple(_segment(seg, n) for n in seg.segment_numbers if n > 0)
        _refuse_left_out_slices(path, seg)
        fractional = seg.segmentation_type.value == "FRACTIONAL"
        array = None
        if not fractional and overlap != "layers":
            array = _combined(seg)
        geometry = seg.get_volume_geometry(allow_missing_positions=True)
        if geometry is None:
            raise ContextsegError(
                path,
                "its slices form no regular grid",
                "resample it onto the grid of its scan, in 3D Slicer for instance",
            )
        masks = ((s, _mask(seg, s.value, threshold)) for s in segments)
        if overlap == "layers":
            kind = label_type(max((s.value for s in segments), default=0))
            array = np.stack([mask * kind.type(segment.value) for segment, mask in masks])
            segments = tuple(replace(s, layer=i) for i, s in enumerate(segments))
        elif array is None:
            shape = tuple(geometry.spatial_shape)
            array = merge(masks, segments, shape, overlap, path, f"interop.dicomseg.{_READER}")
    affine = np.diag([-1.0, -1, 1, 1]) @ np.asarray(geometry.affine, float)
    doubts: tuple[tuple[str, str], ...] = ()
    if fractional:
        what = f"a fractional segmentation; voxels of {threshold:g} and more are labelled"
        doubts = ((what, "look whether that is meant"),)
    header = Header("DICOM SEG", as_matrix(affine), doubts=doubts)
    return SegmentedVolume(array, affine, segments, header)


def read_dicom_segments(path: str | Path) -> tuple[Segment, ...]:
    """The segments of a DICOM segmentation.

    Args:
        path: The file.

    Returns:
        The segments, in the order of their numbers, with colour and terminology.

    Raises:
        ContextsegError: As `read_dicom_segmentation`.
    """
    path = Path(path)
    with _named(path):
        seg = _opened(path)
        return tuple(_segment(seg, n) for n in seg.segment_numbers if n > 0)


# --- file -----------------------------------------------------------------------------------------


def _only_segmentation(folder: Path) -> Path | None:
    entries = [path for path in folder.iterdir() if path.name[0] != "."]
    if not any(path.is_file() and is_dicom(path) for path in entries):
        return None
    scans, others = series_in(folder)
    found = [path for path, kind in others.items() if kind in _SOP_CLASSES.values()]
    if scans or not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        what = f"{len(found)} DICOM segmentations in this folder: {names}"
        raise ContextsegError(folder, what, "give each its own folder, or name one of the files")
    return found[0]


def _opened(path: Path) -> Any:
    try:
        import highdicom
    except ImportError as error:
        what = "a DICOM segmentation, which is read by highdicom"
        raise ContextsegError(path, what, "pip install 'contextseg[dicom]'") from error
    return highdicom.seg.Segmentation.from_dataset(read_header(path), copy=False)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what highdicom raises for a file into a `ContextsegError` about it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ContextsegError:
        raise
    except Exception as error:  # pydicom and highdicom raise many classes for damaged files
        raise_memory_error(path, error)
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"a DICOM segmentation that cannot be read ({reason})"
        remedy = "export it again, or convert it with dcmqi or 3D Slicer"
        raise ContextsegError(path, what, remedy) from error


def _refuse_left_out_slices(path: Path, seg: Any) -> None:
    """Refuse a file whose slices lie far apart, where nothing says how far those of the scan do."""
    shared = seg.get("SharedFunctionalGroupsSequence") or []
    measures = [item for part in shared for item in part.get("PixelMeasuresSequence", [])]
    if not measures or tag_number(measures, "SpacingBetweenSlices", 0, path):
        return
    thickness = tag_number(measures, "SliceThickness", 0, path)
    geometry = seg.get_volume_geometry(allow_missing_positions=True)
    if geometry is None or not thickness or geometry.spatial_shape[0] < 2:
        return
    apart = float(geometry.spacing[0])
    if apart > _FAR * thickness:
        what = (
            f"its slices lie {apart:.4g} mm apart and are {thickness:.4g} mm thick, and without "
            f"{tag_name('SpacingBetweenSlices')} nobody knows whether empty ones were left out"
        )
        raise ContextsegError(path, what, "export it again with all slices, or with this tag")


# --- voxels ---------------------------------------------------------------------------------------


def _combined(seg: Any) -> np.ndarray | None:
    """The label map of segments that do not overlap; None where they do."""
    try:
        volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
    except RuntimeError as error:
        if "overlap" in str(error).lower():
            return None
        raise
    return np.ascontiguousarray(volume.array)


def _mask(seg: Any, value: int, threshold: float) -> np.ndarray:
    """The voxels (D, H, W) of one segment."""
    volume = seg.get_volume(segment_numbers=[value], allow_missing_positions=True)
    mask: np.ndarray = volume.array[..., 0] >= threshold
    return mask


# --- segments -------------------------------------------------------------------------------------


def _segment(seg: Any, value: int) -> Segment:
    described = seg.get_segment_description(value)
    entry = "~".join(
        [
            "Segmentation category and type - DICOM master list",
            _code(described, "SegmentedPropertyCategoryCodeSequence"),
            _code(described, "SegmentedPropertyTypeCodeSequence"),
            "^^",
            "Anatomic codes - DICOM master list",
            _code(described, "AnatomicRegionSequence"),
            "^^",
        ]
    )
    name = text(described, "SegmentLabel") or f"Segment_{value}"
    return Segment(name, value, _colour(described), tags={"TerminologyEntry": entry})


def _code(described: Any, keyword: str) -> str:
    """A coded concept as 3D Slicer writes it."""
    items = described.get(keyword) or []
    if not items:
        return "^^"
    return "^".join(
        text(items[0], name) for name in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    )


def _colour(described: Any) -> Colour | None:
    """The recommended colour."""
    from highdicom.color import CIELabColor

    value = described.get("RecommendedDisplayCIELabValue")
    if value is None or len(value) != 3:
        return None
    red, green, blue = CIELabColor.from_dicom_value(tuple(int(part) for part in value)).to_rgb()
    return red / 255, green / 255, blue / 255
