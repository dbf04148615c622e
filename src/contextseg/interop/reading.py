"""One door to every file that says what its segments are."""

from __future__ import annotations

from collections.abc import Mapping
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
        As `segmented`.

    Raises:
        ContextsegError: As `segmented`.
    """
    if is_segmentation(path):
        return read_segments(path)
    dicom = segmentation_file(path)
    if dicom is not None:
        return read_dicom_segments(dicom)
    contours = structure_set(path)
    return None if contours is None else read_structures(contours)


def write_classes(path: str | Path, volume: Any, classes: Mapping[str, int]) -> None:
    """Write a label map; to a `.seg.nrrd` file with the names of its classes.

    Args:
        path: File to write; its ending chooses the format.
        volume: A label map, as a `Volume`.
        classes: Value of each class by name.

    Raises:
        ContextsegError: The format cannot hold the label map, or the disk cannot.
    """
    if str(path).lower().endswith(".seg.nrrd"):
        write_segmentation(path, volume, [Segment(name, value) for name, value in classes.items()])
    else:
        volume.save(path)


def keep_segments(source: Any, path: str | Path, volume: Lattice) -> None:
    """Write a result that was made from a segmentation with the segments of that one.

    Args:
        source: What the result was made from; of a file that names segments they are kept.
        path: The file of the result. Nothing is done for other endings than `.seg.nrrd`.
        volume: The result, a label map (D, H, W).

    Raises:
        ContextsegError: As `slicer.write_segmentation`.
    """
    if not str(path).lower().endswith(".seg.nrrd"):
        return
    kept = segments_of(source) if isinstance(source, str | Path) else None
    write_segmentation(path, volume, kept or ())
