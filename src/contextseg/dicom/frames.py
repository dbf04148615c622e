"""The slices of a series: what each file, or each frame of an enhanced file, says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom.files import read_header
from contextseg.dicom.tags import numbers, tag_name, tag_number, text
from contextseg.errors import ContextsegError, plural
from contextseg.inputs import refuse_impossible

# Tags that tell parts of one series apart, and the functional group of each in an enhanced file.
MARKS = {
    "StackID": "FrameContentSequence",
    "ImageType": "",
    "FrameType": "MRImageFrameTypeSequence",
    "ComplexImageComponent": "MRImageFrameTypeSequence",
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "EchoNumbers": "",
    "DiffusionBValue": "MRDiffusionSequence",
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "TriggerTime": "",
    "FrameReferenceTime": "",
    "AcquisitionNumber": "",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameReferenceDateTime": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
    "AcquisitionDateTime": "",
    "AcquisitionTime": "",
    "ContentTime": "",
    "ConvolutionKernel": "",
}
# Projections and photographs: planes that have no place in the patient.
_PLANES = ("CR", "DX", "MG", "XA", "RF", "US", "IO", "PX", "OP")
_UPRIGHT = np.array([[1.0, 0, 0], [0, 1, 0]])


@dataclass(frozen=True)
class Frame:
    """One slice: where it lies in the patient (LPS, mm), and what its numbers mean.

    Attributes:
        path: Its file.
        file: What messages call the file: its path below the folder that is read.
        index: Its place in the file, from 0.
        frames: Number of frames in the file.
        uid: SOPInstanceUID of the file.
        rows: Number of rows.
        columns: Number of columns.
        position: (3,) centre of the first voxel; None where the file has none.
        orientation: (2, 3) unit vectors along a row and along a column; None as above.
        spacing_mm: (2,) between rows and between columns; None as above.
        thickness_mm: Of the slice; None as above.
        slope: What stored numbers are multiplied with.
        intercept: What is added then.
        allocated: Bits of a stored number in memory.
        stored: Bits that it uses.
        signed: Whether stored numbers may be negative.
        real: Whether stored numbers are floating-point numbers.
        marks: Values of `MARKS`, as far as there are some.
    """

    path: Path
    file: str
    index: int
    frames: int
    uid: str
    rows: int
    columns: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing_mm: np.ndarray | None
    thickness_mm: float | None
    slope: float
    intercept: float
    allocated: int
    stored: int
    signed: bool
    real: bool
    marks: dict[str, str]

    @property
    def name(self) -> str:
        """File name, and in a file of several frames the frame's number."""
        return frame_name(self.file, self.index, self.frames)


def frame_name(file: str | Path, index: int, frames: int) -> str:
    """What messages call a frame.

    Args:
        file: Name or path of its file.
        index: Its place in the file, from 0.
        frames: Number of frames in the file.

    Returns:
        The file, with the frame's number from 1 where the file has several.
    """
    return f"{file}, frame {index + 1}" if frames > 1 else str(file)


def frames_of(path: Path, file: str) -> list[Frame]:
    """The slices of one file.

    Args:
        path: A DICOM image, of one frame or enhanced.
        file: What messages call it.

    Returns:
        Its slices in the order of the file.

    Raises:
        ContextsegError: The file is damaged, holds colours or frames without geometry, or a tag
            holds no numbers.
    """
    dataset = read_header(path, stop_before_pixels=True)
    _refuse_no_scan(dataset, path)
    count = int(tag_number([dataset], "NumberOfFrames", 1, path))
    _refuse_impossible(dataset, count, path)
    shared = _item(dataset, "SharedFunctionalGroupsSequence", 0)
    per_frame = _sequence(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != count and (count > 1 or per_frame):
        what = (
            f"{plural(count, 'frame')}, and {len(per_frame)} items of "
            f"{tag_name('PerFrameFunctionalGroupsSequence')}: where the frames lie is not said"
        )
        remedy = "export it as an enhanced file, as one file for each slice, or as NIfTI"
        raise ContextsegError(path, what, remedy)
    groups = per_frame or [None] * count
    frames = [_frame(path, index, count, dataset, shared, groups[index]) for index in range(count)]
    return [replace(frame, file=file) for frame in frames]


def _frame(path: Path, index: int, count: int, dataset: Any, shared: Any, own: Any) -> Frame:
    """One slice, from its own functional groups, those of all frames, and the file's tags."""
    where = frame_name(path, index, count)

    def levels(sequence: str) -> list[Any]:
        groups = [_item(group, sequence, 0) for group in (own, shared) if group is not None]
        return [*(group for group in groups if group is not None), dataset]

    position = numbers(levels("PlanePositionSequence"), "ImagePositionPatient", 3, where)
    cosines = numbers(levels("PlaneOrientationSequence"), "ImageOrientationPatient", 6, where)
    orientation = None if cosines is None else _unit_vectors(cosines, where)
    measures = levels("PixelMeasuresSequence")
    spacing = numbers(measures, "PixelSpacing", 2, where)
    thickness = tag_number(measures, "SliceThickness", 0, where)
    if thickness <= 0:
        thickness = tag_number(measures, "SpacingBetweenSlices", 0, where)

    if text(dataset, "Modality") in _PLANES and position is None and cosines is None and count == 1:
        position, orientation = np.zeros(3), _UPRIGHT
        thickness = thickness if thickness > 0 else 1.0
        if spacing is None:
            spacing = numbers([dataset], "ImagerPixelSpacing", 2, where)
    if spacing is not None and spacing.min() <= 0:
        what = f"{tag_name('PixelSpacing')} is {spacing[0]:g} and {spacing[1]:g} mm"
        raise ContextsegError(where, what, "correct the tag, or export the series again")

    scaling = levels("PixelValueTransformationSequence")
    allocated = int(tag_number([dataset], "BitsAllocated", 16, where))
    return Frame(
        path=path,
        file=path.name,
        index=index,
        frames=count,
        uid=text(dataset, "SOPInstanceUID"),
        rows=int(tag_number([dataset], "Rows", 0, where)),
        columns=int(tag_number([dataset], "Columns", 0, where)),
        position=position,
        orientation=orientation,
        spacing_mm=spacing,
        thickness_mm=thickness if thickness > 0 else None,
        slope=tag_number(scaling, "RescaleSlope", 1, where),
        intercept=tag_number(scaling, "RescaleIntercept", 0, where),
        allocated=allocated,
        stored=int(tag_number([dataset], "BitsStored", allocated, where)),
        signed=tag_number([dataset], "PixelRepresentation", 0, where) == 1,
        real="BitsStored" not in dataset and allocated >= 32,
        marks=_marks(levels),
    )


def _marks(levels: Any) -> dict[str, str]:
    """The values of `MARKS`."""
    marks = {}
    for keyword, sequence in MARKS.items():
        values = (text(level, keyword) for level in levels(sequence or "FrameContentSequence"))
        value = next((value for value in values if value), "")
        if value:
            marks[keyword] = value
    return marks


def _refuse_impossible(dataset: Any, count: int, path: Path) -> None:
    """Refuse tags that ask for more pixels than the file can hold, before they are made."""
    sizes = [int(tag_number([dataset], name, 0, path)) for name in ("Rows", "Columns")]
    bits = int(tag_number([dataset], "BitsAllocated", 16, path))
    if count < 1 or min(sizes) < 1 or bits not in (1, 8, 16, 32, 64):
        what = f"{count} frames of {sizes[0]} x {sizes[1]} pixels of {bits} bits"
        raise ContextsegError(path, what, "correct the tags, or export the series again")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    packed = bool(syntax and (syntax.is_encapsulated or syntax.is_deflated))
    refuse_impossible(path, count * sizes[0] * sizes[1] * bits / 8, packed)


def _refuse_no_scan(dataset: Any, path: Path) -> None:
    """Refuse what is no slice of measurements: colours, screenshots, mosaics, tables of values."""
    meaning = text(dataset, "PhotometricInterpretation")
    if text(dataset, "SamplesPerPixel") not in ("", "1") or meaning.startswith(("RGB", "PALETTE")):
        what = f"a colour image ({tag_name('PhotometricInterpretation')} is {meaning})"
        remedy = "take it out of the folder: a screenshot or a report is no scan"
        raise ContextsegError(path, what, remedy)
    if "Secondary Capture" in _class_name(dataset) and "ImagePositionPatient" not in dataset:
        grouped = "PerFrameFunctionalGroupsSequence" in dataset
        if not grouped:
            what = f"a secondary capture (a screenshot) without {tag_name('ImagePositionPatient')}"
            raise ContextsegError(path, what, "give the series that it was made from")
    if "MOSAIC" in text(dataset, "ImageType"):
        what = f"a mosaic: all slices in one picture ({tag_name('ImageType')})"
        raise ContextsegError(path, what, "convert the series with dcm2niix, and use the NIfTI")
    if "ModalityLUTSequence" in dataset:
        what = f"its values are in a table, {tag_name('ModalityLUTSequence')}"
        raise ContextsegError(path, what, "export it with RescaleSlope and RescaleIntercept")


def _class_name(dataset: Any) -> str:
    from pydicom.uid import UID

    return str(UID(text(dataset, "SOPClassUID")).name)


def _unit_vectors(cosines: np.ndarray, where: str) -> np.ndarray:
    """(2, 3): directions along a row and along a column, checked and of length 1."""
    vectors = cosines.reshape(2, 3)
    lengths = np.linalg.norm(vectors, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(vectors[0] @ vectors[1]) > 0.01:
        values = "\\".join(f"{value:.4g}" for value in cosines)
        what = (
            f"{tag_name('ImageOrientationPatient')} is {values}, not two perpendicular directions"
        )
        raise ContextsegError(where, what, "correct the tag, or export the series again")
    return vectors / lengths[:, None]


def _sequence(dataset: Any, keyword: str) -> list[Any]:
    return list(dataset.get(keyword) or []) if keyword in dataset else []


def _item(dataset: Any, keyword: str, index: int) -> Any:
    """One item of a sequence; None where there is none."""
    items = _sequence(dataset, keyword)
    return items[index] if index < len(items) else None
