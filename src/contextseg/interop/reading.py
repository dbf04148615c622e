"""One door to every file that says what its segments are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from contextseg.errors import ContextsegError
from contextseg.grids import Lattice
from contextseg.interop.dicomseg import (
    read_dicom_segmentation,
    read_dicom_segments,
    segmentation_file,
)
from contextseg.interop.layers import SegmentedVolume
from contextseg.interop.rtstruct import read_contours, read_structures, structure_set
from contextseg.interop.segments import Segment
from contextseg.interop.slicer import (
    is_segmentation,
    read_segmentation,
    read_segments,
    write_segmentation,
)
from contextseg.interop.totalsegmentator import is_named_nifti, read_named_nifti


def segmented(path: str | Path) -> SegmentedVolume | None:
    """The label map and segments of a file, if it is of a program that names segments.

    Args:
        path: A file of any kind, or a folder.

    Returns:
        Those of a `.seg.nrrd` file or DICOM segmentation; None for others.

    Raises:
        ContextsegError: It is one of these, and cannot be used.
    """
    if is_segmentation(path):
        return read_segmentation(path)
    dicom = segmentation_file(path)
    if dicom is not None:
        return read_dicom_segmentation(dicom)
    if structure_set(path) is not None:
        what = "contours (DICOM RT Structure Set), which have no grid without their scan"
        remedy = "write a label map: interop.rtstruct.read_contours(file, scan)"
        raise ContextsegError(path, what, remedy)
    return None


def segmented_on(source: Any, like: Lattice) -> SegmentedVolume | None:
    """Contours as a label map on the grid of their scan.

    Args:
        source: A file of any kind, a folder, or any other object.
        like: The scan.

    Returns:
        The label map of a DICOM structure set; None for others.

    Raises:
        ContextsegError: The contours do not lie on the scan's slices, or overlap.
    """
    contours = structure_set(source) if isinstance(source, str | Path) else None
    return None if contours is None else read_contours(contours, like)


def segments_of(path: str | Path) -> tuple[Segment, ...] | None:
    """The segments alone, with the values that `segmented` gives them.

    Args:
        path: A file of any kind, or a folder.

    Returns:
        As `segmented`; also those of a NIfTI file of TotalSegmentator (`--ml`).

    Raises:
        ContextsegError: As `segmented`.
    """
    if is_segmentation(path):
        return read_segments(path)
    dicom = segmentation_file(path)
    if dicom is not None:
        return read_dicom_segments(dicom)
    if is_named_nifti(path):
        return read_named_nifti(path)
    contours = structure_set(path)
    return None if contours is None else read_structures(contours)


def holds_segments(path: str | Path) -> bool:
    """Whether a file of this ending says itself what its segments are when we write it.

    Args:
        path: File to write.

    Returns:
        True for `.seg.nrrd`.
    """
    return str(path).lower().endswith(".seg.nrrd")


def write_classes(path: str | Path, volume: Any, segments: Iterable[Segment]) -> None:
    """Write a label map; to a `.seg.nrrd` file with names, colours and terminology.

    Args:
        path: File to write; its ending chooses the format.
        volume: A label map, as a `Volume`.
        segments: Its classes.

    Raises:
        ContextsegError: The format cannot hold the label map, or the disk cannot.
    """
    if holds_segments(path):
        write_segmentation(path, volume, segments)
    else:
        volume.save(path)
