"""DICOM structure sets: contours become a label map on the grid of their scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

import contextseg as cs
from contextseg.errors import ContextsegError
from contextseg.interop.rtstruct import read_contours, structure_set
from contextseg.interop.slicer import read_segments
from contextseg.volume import Volume, as_labels, read_labels, write

SHAPE = (5, 20, 24)
# Slices to the head 3 mm apart, rows to the back, columns to the left.
AFFINE = np.array([[0, 0, -0.5, 10], [0, -0.5, 0, 20], [3.0, 0, 0, -7], [0, 0, 0, 1]])


def scan() -> Volume:
    return Volume(np.zeros((1, *SHAPE), np.int16), AFFINE)


def box(k: float, top: float, bottom: float, left: float, right: float) -> np.ndarray:
    """The corners (n, 3) of a rectangle on slice k, as voxel indices."""
    corners = [(top, left), (top, right), (bottom, right), (bottom, left)]
    return np.array([(k, *corner) for corner in corners], float)


def structures(path: Path, *rois: tuple[int, str, list[np.ndarray]], kind: str = "") -> Path:
    """A structure set: ROINumber, name and contours in voxel indices."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    named: list[Any] = []
    drawn: list[Any] = []
    for value, name, contours in rois:
        roi, contour = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = value, name
        contour.ReferencedROINumber, contour.ROIDisplayColor = value, [255, 0, 51]
        contour.ContourSequence = []
        for index in contours:
            item = Dataset()
            mm = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
            item.ContourData = (mm * (-1, -1, 1)).round(4).ravel().tolist()
            item.NumberOfContourPoints = len(index)
            item.ContourGeometricType = kind or ("CLOSED_PLANAR" if len(index) > 2 else "POINT")
            contour.ContourSequence.append(item)
        named.append(roi)
        drawn.append(contour)
    ds.StructureSetROISequence, ds.ROIContourSequence = named, drawn
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_rectangles_holes_and_names(tmp_path: Path) -> None:
    liver = [box(1, 3.5, 9.5, 4.5, 12.5), box(1, 5.5, 7.5, 6.5, 8.5), box(3, 3.5, 9.5, 4.5, 12.5)]
    path = structures(tmp_path / "rt.dcm", (7, "liver", liver), (2, "empty", []))
    found = read_contours(path, scan())
    expected = np.zeros(SHAPE, int)
    expected[1, 4:10, 5:13] = expected[3, 4:10, 5:13] = 7
    expected[1, 6:8, 7:9] = 0
    assert (found.array == expected).all()
    assert [(s.name, s.value, s.colour) for s in found.segments] == [
        ("liver", 7, (1, 0, 0.2)),
        ("empty", 2, (1, 0, 0.2)),
    ]
    assert (as_labels(path, scan()).array == expected).all()


def test_any_polygon_as_matplotlib_fills_it(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    star = generator.uniform((0.2, 0.2), (18.8, 22.8), (13, 2))
    path = structures(tmp_path / "rt.dcm", (1, "star", [np.c_[np.full(13, 2.0), star]]))
    centres = np.stack(np.mgrid[: SHAPE[1], : SHAPE[2]], -1).reshape(-1, 2)
    expected = Polygon(star).contains_points(centres).reshape(SHAPE[1:])
    assert expected.any()
    assert (read_contours(path, scan()).array[2] == expected).all()


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "PIR"])
def test_the_scan_may_have_any_axes(tmp_path: Path, orientation: str) -> None:
    path = structures(tmp_path / "rt.dcm", (1, "liver", [box(1, 3.4, 9.4, 4.4, 12.4)]))
    turned = scan().oriented(orientation)
    found = read_contours(path, turned)
    label = Volume(found.array, found.affine).oriented(scan().orientation)
    assert (label.array == read_contours(path, scan()).array).all()


def test_a_structure_number_0_is_no_background(tmp_path: Path) -> None:
    path = structures(tmp_path / "rt.dcm", (0, "a", [box(1, 2, 5, 2, 5)]), (1, "b", []))
    assert [(s.name, s.value) for s in read_contours(path, scan()).segments] == [
        ("a", 1),
        ("b", 2),
    ]


def test_overlaps_and_a_choice(tmp_path: Path) -> None:
    body, liver = [box(1, 1.5, 15.5, 1.5, 15.5)], [box(1, 3.5, 5.5, 3.5, 5.5)]
    path = structures(tmp_path / "rt.dcm", (1, "body", body), (2, "liver", liver))
    with pytest.raises(ContextsegError, match="overlap: body and liver in 4 voxels"):
        as_labels(path, scan())
    assert read_contours(path, scan(), overlap="last").array.max() == 2
    assert read_contours(path, scan(), overlap="first").array.max() == 1
    assert read_contours(path, scan(), overlap="layers").array.shape == (2, *SHAPE)
    only = read_contours(path, scan(), rois=["liver"])
    assert (only.array > 0).sum() == 4
    assert [s.name for s in only.segments] == ["liver"]
    with pytest.raises(ContextsegError, match="did you mean liver"):
        read_contours(path, scan(), rois=["Liver"])


@pytest.mark.parametrize(
    ("contour", "what"),
    [
        (box(1.5, 2, 5, 2, 5), "liver lies between slices, at 2.5 to 2.5"),
        (box(9, 2, 5, 2, 5), "liver reaches beyond the scan, on slice 10"),
        (box(1, 2, 5, 2, 40), "liver reaches beyond the scan, on slice 2"),
    ],
)
def test_contours_of_another_scan(tmp_path: Path, contour: np.ndarray, what: str) -> None:
    path = structures(tmp_path / "rt.dcm", (1, "liver", [contour]))
    with pytest.raises(ContextsegError, match=what):
        read_contours(path, scan())


def test_points_have_no_area(tmp_path: Path) -> None:
    point = np.array([[1.0, 2, 2]])
    path = structures(tmp_path / "rt.dcm", (1, "liver", [box(1, 2, 5, 2, 5)]), (2, "iso", [point]))
    found = read_contours(path, scan())
    assert found.header is not None
    assert found.header.doubts[0][0] == "points and open lines are left out, of iso"


def test_without_a_scan(tmp_path: Path) -> None:
    path = structures(tmp_path / "rt" / "rt.dcm", (1, "liver", [box(1, 2, 5, 2, 5)]))
    assert structure_set(tmp_path / "rt") == path
    for source in (path, path.parent):
        with pytest.raises(ContextsegError, match="no grid without their scan"):
            read_labels(source)


def test_propagate_from_contours(tmp_path: Path) -> None:
    contours = [box(1, 3.5, 9.5, 4.5, 12.5), box(3, 3.5, 9.5, 4.5, 12.5)]
    path = structures(tmp_path / "rt.dcm", (3, "liver", contours))
    write(tmp_path / "scan.nii.gz", scan())
    filled = cs.propagate(
        tmp_path / "scan.nii.gz", path, tmp_path / "o.seg.nrrd", verbose=False, between=True
    )
    assert (filled.label.array[1:4] == 3).sum() == 3 * 6 * 8
    assert [(s.name, s.value) for s in read_segments(tmp_path / "o.seg.nrrd")] == [("liver", 3)]
