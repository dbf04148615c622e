"""Label maps as DICOM segmentations that refer to the slices of their scan, by highdicom."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom import read_series, series_in
from contextseg.dicom.files import choose_series, read_header
from contextseg.dicom.tags import text
from contextseg.disk import replacing
from contextseg.errors import ContextsegError
from contextseg.grids import Lattice, label_type, placement
from contextseg.interop.segments import Segment, complete, default_colour
from contextseg.memory_errors import raise_memory_error

_TISSUE = "SCT^85756007^Tissue"  # 3D Slicer's too, where nothing says what a segment is


def write_dicom_segmentation(
    path: str | Path,
    volume: Lattice,
    scan: str | Path,
    segments: Iterable[Segment] = (),
    series: str = "",
) -> tuple[Segment, ...]:
    """Write a label map as a binary DICOM segmentation, atomically.

    DICOM numbers segments 1, 2, 3 ..., so that values with gaps change; names, colours and coded
    types do not. A segment without a terminology entry is coded as tissue, and all are marked as
    made by an algorithm. Slices without any segment are left out of the file, as is usual.

    Args:
        path: File to write, `NAME.dcm`.
        volume: A label map (D, H, W), on the lattice of the scan.
        scan: Folder of the DICOM series that was segmented; patient, study and slices come from it.
        segments: Its segments. A value without one is called "label_V".
        series: Which series of the folder, as for `contextseg.read`. "" for the only one.

    Returns:
        The segments with the values that they have in the file.

    Raises:
        ContextsegError: highdicom is missing, nothing is labelled, the series lacks what a
            segmentation needs, or the disk cannot be written to.
    """
    path = Path(path)
    try:
        import highdicom as hd
    except ImportError as error:
        what = "DICOM segmentations are written by highdicom"
        raise ContextsegError(path, what, "pip install 'contextseg[dicom]'") from error
    label = np.asarray(volume.array)
    held = [int(value) for value in np.unique(label) if value > 0]
    if label.ndim != 3 or label.dtype.kind not in "biu" or not held:
        what = "no label map (D, H, W) with a labelled voxel"
        raise ContextsegError(path, what, "give a label map of whole numbers")
    ordered = complete(segments, held)
    numbered = tuple(replace(segment, value=n, layer=0) for n, segment in enumerate(ordered, 1))
    numbers = np.zeros(label.shape, label_type(len(ordered)))
    for before, after in zip(ordered, numbered):
        numbers[label == before.value] = after.value

    _refuse_elsewhere(path, volume, Path(scan), series)
    sources = _sources(Path(scan), series)
    affine = np.diag([-1.0, -1, 1, 1]) @ np.asarray(volume.affine, float)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            placed = hd.Volume(
                numbers,
                affine,
                coordinate_system="PATIENT",
                frame_of_reference_uid=text(sources[0], "FrameOfReferenceUID"),
            )
            content = _segmentation(hd, sources, placed, numbered)
    except Exception as error:  # highdicom raises many classes for a series that lacks something
        raise_memory_error(path, error)
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"no DICOM segmentation can refer to this series ({reason})"
        raise ContextsegError(scan, what, "write .seg.nrrd or .nii.gz") from error
    with replacing(path) as temporary:
        content.save_as(temporary, enforce_file_format=True)
    return numbered


@dataclass(frozen=True)
class _Lattice:
    """Where the voxels of a scan lie."""

    affine: np.ndarray
    shape: tuple[int, ...]


def _refuse_elsewhere(path: Path, volume: Lattice, scan: Path, series: str) -> None:
    """Refuse a label map whose voxels are not those of the scan."""
    array, affine = read_series(scan, series)[:2]
    lattice: Any = _Lattice(affine, array.shape[-3:])
    place = placement(volume, lattice)
    if place is None or not place.inside(lattice.shape):
        what = f"the label map does not lie on the voxels of {scan}"
        raise ContextsegError(path, what, "give the scan that was segmented")


def _sources(scan: Path, series: str) -> list[Any]:
    """The headers of the slices of a series."""
    found, _ = series_in(scan)
    one = choose_series(found, series.partition("/")[0], scan)
    return [read_header(file, stop_before_pixels=True) for file in one.files]


def _segmentation(hd: Any, sources: Sequence[Any], placed: Any, segments: Sequence[Segment]) -> Any:
    from contextseg import __version__

    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=placed,
        segmentation_type="BINARY",
        segment_descriptions=[_description(hd, segment) for segment in segments],
        series_instance_uid=hd.UID(),
        series_number=int(text(sources[0], "SeriesNumber") or 0) + 1000,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="contextseg",
        manufacturer_model_name="contextseg",
        software_versions=__version__,
        device_serial_number="0",
        series_description="Segmentation",
        omit_empty_frames=True,
    )


def _description(hd: Any, segment: Segment) -> Any:
    from contextseg import __version__

    parts = (segment.terminology.split("~") + [""] * 6)[:6]
    red, green, blue = (round(255 * p) for p in segment.colour or default_colour(segment.value))
    region = _code(hd, parts[5])
    return hd.seg.SegmentDescription(
        segment_number=segment.value,
        segment_label=segment.name[:64],
        segmented_property_category=_code(hd, parts[1]) or _code(hd, _TISSUE),
        segmented_property_type=_code(hd, parts[2]) or _code(hd, _TISSUE),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="contextseg",
            version=__version__,
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        anatomic_regions=[region] if region else None,
        display_color=hd.color.CIELabColor.from_rgb(red, green, blue),
    )


def _code(hd: Any, written: str) -> Any:
    """A coded concept of 3D Slicer's text; None where it is empty."""
    scheme, value, meaning = (written.split("^") + [""] * 3)[:3]
    return hd.sr.CodedConcept(value, scheme, meaning) if scheme and value and meaning else None
