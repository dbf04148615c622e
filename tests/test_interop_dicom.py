"""DICOM segmentations: what highdicom writes is read on its own grid, with names and colours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import contextseg as cs
from contextseg.data.layouts import open_dataset
from contextseg.errors import ContextsegError
from contextseg.evaluation.folders import evaluate_folders
from contextseg.interop.dicomseg import (
    read_dicom_segmentation,
    read_dicom_segments,
    segmentation_file,
)
from contextseg.interop.dicomseg_writing import write_dicom_segmentation
from contextseg.interop.segments import Segment
from contextseg.interop.slicer import read_segments
from contextseg.volume import Volume, as_labels, read, read_labels

hd = pytest.importorskip("highdicom")
SHAPE = (6, 12, 10)
SPACING = (3.0, 0.5, 0.5)


def series(folder: Path, shape: tuple[int, int, int] = SHAPE) -> list[Any]:
    """CT slices from feet to head: rows to the back, columns to the left."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uids = {name: generate_uid() for name in ("Study", "Series", "FrameOfReference")}
    slices = []
    for k in range(shape[0]):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = uids["Study"], uids["Series"]
        ds.FrameOfReferenceUID = uids["FrameOfReference"]
        ds.PatientID, ds.PatientName = "p", "A^B"
        ds.PatientBirthDate = ds.PatientSex = ds.StudyID = ds.AccessionNumber = ""
        ds.StudyDate = ds.StudyTime = ds.ReferringPhysicianName = ds.PositionReferenceIndicator = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, k + 1
        ds.Rows, ds.Columns = shape[1:]
        ds.ImagePositionPatient = [-5, 7, 100 + SPACING[0] * k]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = list(SPACING[1:]), SPACING[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation = 15, 1
        ds.PixelData = np.zeros(shape[1:], np.int16).tobytes()
        ds.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        slices.append(ds)
    return slices


def segmentation(
    path: Path, slices: list[Any], array: np.ndarray, kind: str = "BINARY", **more: Any
) -> Path:
    """A segmentation of two segments, liver (red) and lesion."""
    from pydicom.sr.codedict import codes

    def described(number: int, label: str, colour: Any) -> Any:
        return hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
            display_color=colour,
        )

    red = hd.color.CIELabColor.from_rgb(255, 0, 0)
    seg = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=array,
        segmentation_type=kind,
        segment_descriptions=[described(1, "liver", red), described(2, "lesion", None)],
        series_instance_uid=hd.UID(),
        series_number=2,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(path)
    return path


def organs() -> np.ndarray:
    """(6, 12, 10): the liver in slices 1 to 4, a lesion beside it in slices 3 and 4."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:5, 2:6, 2:7] = 1
    array[3:5, 7:9, 3:5] = 2
    return array


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_each_kind_lies_on_the_scan(tmp_path: Path, kind: str) -> None:
    array = organs()
    layers = np.stack([array == 1, array == 2], -1).astype(float)
    more = {"fractional_type": "PROBABILITY"} if kind == "FRACTIONAL" else {}
    pixels = layers if kind == "FRACTIONAL" else array
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), pixels, kind, **more)
    scan = read(tmp_path / "ct")
    own = read_labels(path)
    assert own.spacing_mm == SPACING
    assert np.bincount(own.array.ravel())[1:].tolist() == [80, 8]
    on_scan = as_labels(path, scan)
    assert on_scan.same_grid(scan)
    assert (on_scan.oriented("SPL").array == array).all()


def test_names_colours_and_terminology(tmp_path: Path) -> None:
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), organs())
    liver, lesion = read_dicom_segments(path)
    assert (liver.name, liver.value, lesion.name, lesion.value) == ("liver", 1, "lesion", 2)
    assert liver.colour == pytest.approx((1, 0, 0), abs=0.02)
    assert lesion.colour is None
    assert "~SCT^10200004^Liver~" in liver.terminology


def test_slices_between_are_background(tmp_path: Path) -> None:
    array = organs()
    array[2:4] = 0
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), array)
    assert read_labels(path).spacing_mm == SPACING
    assert (as_labels(path, read(tmp_path / "ct")).oriented("SPL").array == array).all()


def test_slices_of_unknown_distance_are_refused(tmp_path: Path) -> None:
    array = organs()
    array[[0, 2, 4, 5]] = 0  # slices 1 and 3 are left: 6 mm apart, 3 mm thick
    array[3, 3:5, 3:5] = 2
    seg_path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), array)
    import pydicom

    ds = pydicom.dcmread(seg_path)
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices
    ds.save_as(seg_path)
    with pytest.raises(ContextsegError, match="6 mm apart and are 3 mm thick"):
        read_labels(seg_path)


def test_fractions_are_cut_at_the_threshold(tmp_path: Path) -> None:
    array = organs()
    layers = np.stack([(array == 1) * 0.4, (array == 2) * 0.8], -1)
    slices = series(tmp_path / "ct")
    path = segmentation(
        tmp_path / "s.dcm", slices, layers, "FRACTIONAL", fractional_type="OCCUPANCY"
    )
    assert np.unique(read_labels(path).array).tolist() == [0, 2]
    assert np.unique(read_dicom_segmentation(path, threshold=0.3).array).tolist() == [0, 1, 2]
    assert "fractional segmentation" in read_labels(path).doubts[0][0]


def test_overlaps_are_named_and_a_choice_is_offered(tmp_path: Path) -> None:
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[1:4, 2:6, 2:6, 0] = 1
    layers[3:5, 5:8, 2:6, 1] = 1
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), layers)
    with pytest.raises(ContextsegError, match="overlap: liver and lesion in 4 voxels"):
        read_labels(path)
    counts = {
        way: np.bincount(read_dicom_segmentation(path, overlap=way).array.ravel())[1:].tolist()  # type: ignore[arg-type]
        for way in ("first", "last")
    }
    assert counts == {"first": [48, 20], "last": [44, 24]}
    apart = read_dicom_segmentation(path, overlap="layers")
    assert apart.array.shape[0] == 2
    assert [s.layer for s in apart.segments] == [0, 1]


def test_evaluate_and_data_sets_read_them(tmp_path: Path) -> None:
    slices = series(tmp_path / "data" / "images" / "a")
    seg = segmentation(tmp_path / "data" / "labels" / "a" / "s.dcm", slices, organs())
    data = open_dataset(tmp_path / "data")
    assert data.classes == ("background", "liver", "lesion")
    for side in "pr":
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.dcm").write_bytes(seg.read_bytes())
    table = evaluate_folders(tmp_path / "p", tmp_path / "r")
    assert table["class"].tolist() == ["liver", "lesion"]
    assert table["dsc"].tolist() == [1, 1]
    assert table["ref_ml"].tolist() == pytest.approx([80 * 0.75e-3, 8 * 0.75e-3])


def test_propagate_keeps_the_segments(tmp_path: Path) -> None:
    array = organs()
    array[2:4] = 0
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), array)
    cs.propagate(tmp_path / "ct", path, tmp_path / "o.seg.nrrd", verbose=False)
    liver = read_segments(tmp_path / "o.seg.nrrd")[0]
    assert liver.name == "liver"
    assert "~SCT^10200004^Liver~" in liver.terminology


def test_folders(tmp_path: Path) -> None:
    slices = series(tmp_path / "ct")
    one = segmentation(tmp_path / "one" / "s.dcm", slices, organs())
    assert segmentation_file(tmp_path / "one") == one
    assert segmentation_file(tmp_path / "ct") is None
    (tmp_path / "one" / "t.dcm").write_bytes(one.read_bytes())
    with pytest.raises(ContextsegError, match=r"2 DICOM segmentations in this folder: s\.dcm"):
        read_labels(tmp_path / "one")


def test_damaged_files_and_a_missing_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = segmentation(tmp_path / "s.dcm", series(tmp_path / "ct"), organs())
    short = tmp_path / "short.dcm"
    short.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ContextsegError, match=r"short\.dcm"):
        read_labels(short)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ContextsegError, match=r"pip install 'contextseg\[dicom\]'"):
        read_labels(path)


@pytest.mark.parametrize("orientation", ["SPL", "RAS"])
def test_what_is_written_lies_on_the_scan(tmp_path: Path, orientation: str) -> None:
    series(tmp_path / "ct")
    scan = read(tmp_path / "ct")
    volume = Volume(organs() * 20, scan.oriented("SPL").affine).oriented(orientation)
    entry = "list~SCT^91772007^Organ~SCT^10200004^Liver~^^~regions~^^~^^"
    liver = Segment("liver", 20, (1.0, 0.0, 0.0), tags={"TerminologyEntry": entry})
    path = tmp_path / "out" / "s.dcm"
    written = write_dicom_segmentation(path, volume, tmp_path / "ct", [liver])
    assert [(s.name, s.value) for s in written] == [("liver", 1), ("label_40", 2)]
    assert (as_labels(path, scan).oriented("SPL").array == organs()).all()
    first, other = read_dicom_segments(path)
    assert (first.name, other.name) == ("liver", "label_40")
    assert first.colour == pytest.approx((1, 0, 0), abs=0.02)
    assert "~SCT^91772007^Organ~SCT^10200004^Liver~" in first.terminology
    assert "~SCT^85756007^Tissue~SCT^85756007^Tissue~" in other.terminology


def test_what_is_not_written(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    scan = read(tmp_path / "ct")
    path = tmp_path / "s.dcm"
    with pytest.raises(ContextsegError, match="no label map"):
        write_dicom_segmentation(path, Volume(np.zeros(SHAPE, int), scan.affine), tmp_path / "ct")
    with pytest.raises(ContextsegError, match="does not lie on the voxels"):
        write_dicom_segmentation(path, Volume(organs(), np.eye(4)), tmp_path / "ct")
    assert not path.exists()
