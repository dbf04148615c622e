"""DICOM: geometry from every slice, enhanced files, and no slice lost in silence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from contextseg.dicom import read_series, series_in
from contextseg.errors import ContextsegError
from contextseg.volume import Volume, read, write

CT = "1.2.840.10008.5.1.4.1.1.2"
PET = "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
AXIAL = (1.0, 0, 0, 0, 1, 0)


def numbers(shape: Sequence[int] = (6, 24, 20), low: int = -900) -> np.ndarray:
    return np.random.default_rng(0).integers(low, 900, shape).astype(np.int16)


def dataset(pixels: np.ndarray, kind: str = CT, series: str = "1.2.3.4", **tags: Any) -> Dataset:
    """An image of pixels (rows, columns) or (frames, rows, columns); tags by keyword."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = kind
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.SOPClassUID = kind
    image.Modality = "CT"
    image.StudyInstanceUID = "1.2.3"
    image.SeriesInstanceUID = series
    image.SeriesNumber = series.split(".")[-1]
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape[-2:]
    image.BitsAllocated = image.BitsStored = pixels.dtype.itemsize * 8
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        setattr(image, keyword, value)
    return image


def store(path: Path, image: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, image, enforce_file_format=True)
    return path


def slices(
    array: np.ndarray,
    step: Sequence[float] | np.ndarray = (0, 0, 2.5),
    orientation: Sequence[float] = AXIAL,
    **tags: Any,
) -> list[Dataset]:
    """A CT, slice by slice."""
    place = {"ImageOrientationPatient": list(orientation), "PixelSpacing": [0.8, 0.7]}
    images = []
    for k, pixels in enumerate(array):
        position = [float(x) for x in np.array([-10.0, 20, -30]) + k * np.array(step)]
        more = {**place, "ImagePositionPatient": position, "InstanceNumber": k + 1, **tags}
        images.append(dataset(pixels, **more))
    return images


def write_slices(folder: Path, images: Sequence[Dataset]) -> Path:
    """Files whose names run against the order of the slices."""
    for k, image in enumerate(images):
        store(folder / f"{len(images) - k:02d}.dcm", image)
    return folder


def by_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine = np.eye(4)
    affine[:3] = np.c_[axes[:, ::-1], image.GetOrigin()]
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1, 1, 1]) @ affine


def scan_of(path: Path) -> Volume:
    return Volume(*read_series(path))


def refusal(path: Path, series: str = "") -> str:
    with pytest.raises(ContextsegError) as caught:
        read_series(path, series)
    return str(caught.value)


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation",
    [
        AXIAL,
        (1, 0, 0, 0, 0, -1),
        (0, 1, 0, 0, 0, -1),
        (0.96, 0, -0.28, 0, 1, 0),
        (-1, 0, 0, 0, -1, 0),
    ],
)
def test_a_regular_series_is_where_itk_puts_it(
    tmp_path: Path, orientation: Sequence[float]
) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    array = numbers()
    folder = write_slices(tmp_path / "scan", slices(array, 2.5 * normal, orientation))
    ours, affine = read_series(folder)
    theirs, expected = by_itk(folder)
    assert np.array_equal(ours[0], theirs)
    assert np.array_equal(ours[0], array)
    assert ours.dtype == np.int16
    np.testing.assert_allclose(affine, expected, atol=1e-6)


def test_slices_that_run_downwards_are_turned_as_by_itk(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "scan", slices(numbers(), (0, 0, -2.5)))
    ours, affine = read_series(folder)
    theirs, expected = by_itk(folder)
    assert np.array_equal(ours[0], theirs)
    np.testing.assert_allclose(affine, expected, atol=1e-6)


def test_a_tilted_gantry_is_a_sheared_affine(tmp_path: Path) -> None:
    t = np.radians(20)
    images = slices(numbers(), (0, 0, 5), (1, 0, 0, 0, np.cos(t), -np.sin(t)))
    scan = scan_of(write_slices(tmp_path / "tilt", images))
    for k in range(6):
        # Left and back count as negative.
        np.testing.assert_allclose(scan.affine @ [k, 0, 0, 1], [10, -20, -30 + 5 * k, 1])
    row = scan.affine[:3, 1]
    np.testing.assert_allclose(row, 0.8 * np.array([0, -np.cos(t), -np.sin(t)]), atol=1e-9)
    assert abs(row @ scan.affine[:3, 0]) > 1


def test_positions_rounded_to_tenths_are_regular(tmp_path: Path) -> None:
    images = slices(numbers((30, 6, 5)), (0, 0, 0.75))
    for image in images:
        z = round(float(image.ImagePositionPatient[2]), 1)
        image.ImagePositionPatient = [-10, 20, z]
    _, affine = read_series(write_slices(tmp_path, images))
    assert affine[2, 0] == pytest.approx(0.75, abs=0.005)


def test_a_slice_that_disagrees_is_named(tmp_path: Path) -> None:
    def changed(name: str, k: int, **tags: Any) -> str:
        images = slices(numbers())
        for keyword, value in tags.items():
            setattr(images[k], keyword, value)
        return refusal(write_slices(tmp_path / name, images))

    shift = changed("shift", 3, ImagePositionPatient=[-8, 20, -22.5])
    assert "ImagePositionPatient (0020,0032)" in shift
    assert "03.dcm" in shift
    assert "shift by 2" in shift
    end = changed("end", 5, ImagePositionPatient=[-10, 20, -10])
    assert "slices 5 and 6 lie 10 mm apart, the others 2.5 mm (02.dcm and 01.dcm)" in end
    spacing = changed("spacing", 2, PixelSpacing=[0.8, 0.75])
    assert "04.dcm with PixelSpacing (0028,0030) 0.8\\0.75, the others 0.8\\0.7" in spacing
    turned = changed("turned", 0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert "06.dcm with ImageOrientationPatient (0020,0037)" in turned
    assert "not two perpendicular" in changed("bent", 1, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])
    assert "PixelSpacing (0028,0030) is 0 and 0.7" in changed("none", 1, PixelSpacing=[0, 0.7])


def test_a_small_change_over_the_whole_series_is_found(tmp_path: Path) -> None:
    """Steps grow by 2 % from slice to slice: no step looks odd beside its neighbours."""
    images = slices(numbers((12, 6, 5)))
    heights = np.cumsum(2.5 * 1.02 ** np.arange(12))
    for image, z in zip(images, heights):
        image.ImagePositionPatient = [0, 0, float(f"{z:.4f}")]
    assert "mm apart" in refusal(write_slices(tmp_path, images))


@pytest.mark.parametrize(
    ("keyword", "number"),
    [
        ("ImagePositionPatient", "(0020,0032)"),
        ("ImageOrientationPatient", "(0020,0037)"),
        ("PixelSpacing", "(0028,0030)"),
    ],
)
@pytest.mark.parametrize("which", [[2], range(6)])
def test_missing_geometry_is_named(
    tmp_path: Path, keyword: str, number: str, which: Sequence[int]
) -> None:
    images = slices(numbers())
    for k in which:
        del images[k][keyword]
    message = refusal(write_slices(tmp_path, images))
    assert f"without {keyword} {number}, {len(which)} of 6 slices" in message
    assert ("04.dcm" if len(which) == 1 else "01.dcm") in message


def test_numbers_that_are_none_are_quoted(tmp_path: Path) -> None:
    images = slices(numbers())
    path = store(tmp_path / "1.dcm", images[0])
    path.write_bytes(path.read_bytes().replace(b"0.8\\0.7 ", b"0,8\\0,7 "))
    message = refusal(path)
    assert "PixelSpacing (0028,0030)" in message
    assert "0,8" in message


def test_one_slice_keeps_its_thickness(tmp_path: Path) -> None:
    one = slices(numbers()[:1])
    assert "SliceThickness (0018,0050)" in refusal(store(tmp_path / "none.dcm", one[0]))
    one[0].SpacingBetweenSlices = 4
    assert scan_of(store(tmp_path / "between.dcm", one[0])).spacing_mm == pytest.approx(
        (4, 0.8, 0.7)
    )
    one[0].SliceThickness = 3
    folder = store(tmp_path / "scan" / "thick.dcm", one[0]).parent
    assert scan_of(folder).spacing_mm == pytest.approx((3, 0.8, 0.7))


def test_a_radiograph_has_pixels_but_no_place(tmp_path: Path) -> None:
    kind = "1.2.840.10008.5.1.4.1.1.1.1"
    image = dataset(numbers((6, 5), 0), kind, Modality="DX", ImagerPixelSpacing=[0.2, 0.3])
    assert scan_of(store(tmp_path / "a.dcm", image)).spacing_mm == pytest.approx((1, 0.2, 0.3))
    del image["ImagerPixelSpacing"]
    assert "PixelSpacing" in refusal(store(tmp_path / "b.dcm", image))


# --- what lies in a folder ------------------------------------------------------------------------


def test_a_series_is_chosen_by_number_or_uid(tmp_path: Path) -> None:
    array = numbers()
    write_slices(tmp_path / "a", slices(array))
    write_slices(tmp_path / "b", slices(array[:4] + 1, series="1.2.3.7", SeriesDescription="lung"))
    message = refusal(tmp_path)
    assert "2 DICOM series in this folder" in message
    assert "4, 6 slices, 1.2.3.4; 7 'lung', 4 slices, 1.2.3.7" in message
    for choice in ("7", "1.2.3.7"):
        assert np.array_equal(read_series(tmp_path, choice)[0][0], array[:4] + 1)
    assert "no series '8' in this folder" in refusal(tmp_path, "8")
    assert "no series '8'" in refusal(tmp_path / "a", "8")
    write_slices(tmp_path / "c", slices(array, series="1.2.9.7"))
    assert "2 series have the number '7'" in refusal(tmp_path, "7")


def test_a_series_is_chosen_on_the_command_line(tmp_path: Path) -> None:
    from contextseg import cli, read, read_labels, write

    write_slices(tmp_path / "scan" / "a", slices(numbers()))
    write_slices(tmp_path / "scan" / "b", slices(numbers()[:4] + 1, series="1.2.3.7"))
    scan = read(tmp_path / "scan", series="7")
    drawn = np.zeros(scan.shape, np.uint8)
    drawn[[0, 3], 1:, 1:] = 1
    write(tmp_path / "drawn.nii.gz", scan.with_array(drawn))
    words = ["propagate", str(tmp_path / "scan"), "--labels", str(tmp_path / "drawn.nii.gz")]
    words += ["-o", str(tmp_path / "filled.nii.gz"), "--way", "interpolation"]
    with pytest.raises(ContextsegError, match=r"2 DICOM series.*--series"):
        cli.app(words, standalone_mode=False)
    cli.app([*words, "--series", "7"], standalone_mode=False)
    assert read_labels(tmp_path / "filled.nii.gz").array[:, 1:, 1:].all()


def test_another_size_is_named_and_the_rest_can_be_chosen(tmp_path: Path) -> None:
    array = numbers()
    write_slices(tmp_path, slices(array))
    scout = slices(numbers((1, 30, 30)))[0]
    store(tmp_path / "scout.dcm", scout)
    message = refusal(tmp_path)
    assert "scout.dcm of 30 x 30 pixels, the others have 24 x 20" in message
    assert "4/1 (6 slices, size 24 x 20); 4/2 (1 slice, size 30 x 30)" in message
    assert np.array_equal(read_series(tmp_path, "4/1")[0][0], array)
    assert np.array_equal(read_series(tmp_path, "/1")[0][0], array)
    assert "series 4 has no part '3'" in refusal(tmp_path, "4/3")


def test_time_points_are_refused_or_chosen(tmp_path: Path) -> None:
    array = numbers()
    for time in range(3):
        images = slices(array + time, TemporalPositionIdentifier=time + 1)
        write_slices(tmp_path / "times" / str(time), images)
        write_slices(tmp_path / "unnamed" / str(time), slices(array + time))
    message = refusal(tmp_path / "times")
    assert "6 positions, each with 3 slices" in message
    assert "4/3 (6 slices, TemporalPositionIdentifier 3)" in message
    assert np.array_equal(read_series(tmp_path / "times", "4/2")[0][0], array + 1)
    assert "give each its own folder" in refusal(tmp_path / "unnamed")


@pytest.mark.parametrize("tag", ["AcquisitionTime", "ContentTime", "AcquisitionDateTime"])
def test_times_on_the_clock_tell_time_points_apart(tmp_path: Path, tag: str) -> None:
    array = numbers()
    day = "20240101" if tag == "AcquisitionDateTime" else ""
    for time in range(2):
        images = slices(array + time, **{tag: f"{day}10000{time}"})
        write_slices(tmp_path / str(time), images)
    assert f"4/2 (6 slices, {tag} {day}100001)" in refusal(tmp_path)
    assert np.array_equal(read_series(tmp_path, "4/2")[0][0], array + 1)


def test_echoes_and_phases_of_one_series_are_told_apart(tmp_path: Path) -> None:
    array = numbers()
    kinds = [("M", 12.5), ("P", 12.5), ("M", 2.5), ("P", 2.5)]
    for k, (kind, echo) in enumerate(kinds):
        tags = {"ImageType": ["ORIGINAL", "PRIMARY", kind], "EchoTime": echo}
        write_slices(tmp_path / str(k), slices(array + k, **tags))
    message = refusal(tmp_path)
    assert "4/2 (6 slices, ImageType ORIGINAL\\PRIMARY\\M, EchoTime 12.5)" in message
    assert np.array_equal(read_series(tmp_path, "4/2")[0][0], array)
    assert np.array_equal(read_series(tmp_path, "4/3")[0][0], array + 3)


def test_one_place_at_several_times(tmp_path: Path) -> None:
    array = numbers()
    images = [slices(array[k : k + 1], TriggerTime=30 * k, SliceThickness=5)[0] for k in range(6)]
    write_slices(tmp_path, images)
    assert "1 position, each with 6 slices" in refusal(tmp_path)
    assert np.array_equal(read_series(tmp_path, "/3")[0][0], array[2:3])


def test_copies_are_named(tmp_path: Path) -> None:
    folder = write_slices(tmp_path, slices(numbers()))
    (folder / "02 (1).dcm").write_bytes((folder / "02.dcm").read_bytes())
    message = refusal(folder)
    assert "copies of one image" in message
    assert "02 (1).dcm" in message


@pytest.mark.parametrize("name", ["01.dcm", "06.dcm"])
@pytest.mark.parametrize("keep", [0, 100, 132, 168, 190, 200, 500, 700, 1000, -20])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_damaged_end_slice_is_never_dropped(
    tmp_path: Path, name: str, keep: int, syntax: str
) -> None:
    images = slices(numbers())
    if syntax == RLELossless:
        for image in images:
            image.compress(RLELossless)
    path = write_slices(tmp_path, images) / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ContextsegError) as caught:
        read_series(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1&4.1.1.2", "1.3.12.2.1107.5.9.1"])
def test_a_slice_whose_class_and_size_are_damaged_is_named(tmp_path: Path, kind: str) -> None:
    images = slices(numbers())
    path = write_slices(tmp_path, images) / "01.dcm"
    damaged = dataset(numbers()[0], kind, series=images[0].SeriesInstanceUID)
    del damaged.Rows
    store(path, damaged)
    assert "01.dcm" in refusal(tmp_path)


def test_other_objects_and_files_do_not_count(tmp_path: Path) -> None:
    array = numbers()
    write_slices(tmp_path / "images", slices(array))
    (tmp_path / "README").write_text("about", encoding="utf-8")
    (tmp_path / "notes.TXT").write_text("about", encoding="utf-8")
    (tmp_path / ".DS_Store").write_bytes(b"\0" * 99)
    objects = {
        "DICOMDIR": "1.2.840.10008.1.3.10",
        "report.dcm": "1.2.840.10008.5.1.4.1.1.88.22",
        "contours.dcm": "1.2.840.10008.5.1.4.1.1.481.3",
        "segmentation.dcm": "1.2.840.10008.5.1.4.1.1.66.4",
        "private": "1.3.12.2.1107.5.9.1",
    }
    for name, kind in objects.items():
        image = dataset(array[0], kind, series=f"1.2.3.{len(name) + 10}")
        for keyword in ("Rows", "Columns", "PixelData", "BitsStored"):
            del image[keyword]
        store(tmp_path / name, image)
    assert np.array_equal(read_series(tmp_path)[0][0], array)
    found, others = series_in(tmp_path)
    assert len(found) == 1
    assert sorted(path.name for path in others) == sorted(objects)
    assert "a DICOM RT Structure Set, no scan" in refusal(tmp_path / "contours.dcm")
    (tmp_path / "images" / "07").write_bytes(b"something else")
    assert "07: not a DICOM file, or a damaged one (14 bytes" in refusal(tmp_path)


def test_colours_screenshots_and_mosaics_are_refused(tmp_path: Path) -> None:
    kind = "1.2.840.10008.5.1.4.1.1.7"
    colour = dataset(np.zeros((6, 5, 3), np.uint8), kind, SamplesPerPixel=3, PlanarConfiguration=0)
    colour.Rows, colour.Columns, colour.PhotometricInterpretation = 6, 5, "RGB"
    assert "a colour image" in refusal(store(tmp_path / "rgb.dcm", colour))
    grey = dataset(np.zeros((6, 5), np.uint8), kind)
    assert "a secondary capture" in refusal(store(tmp_path / "grey.dcm", grey))
    mosaic = slices(numbers()[:1], ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])[0]
    assert "a mosaic" in refusal(store(tmp_path / "mosaic.dcm", mosaic))


# --- enhanced files -------------------------------------------------------------------------------


def group(**sequences: dict[str, Any]) -> Dataset:
    """A functional group: sequences of one item."""
    item = Dataset()
    for name, tags in sequences.items():
        inner = Dataset()
        for keyword, value in tags.items():
            setattr(inner, keyword, value)
        setattr(item, name, Items([inner]))
    return item


def enhanced(
    array: np.ndarray, places: Sequence[Sequence[float]], own: Sequence[dict[str, Any]] = ()
) -> Dataset:
    """One file of all frames; `own` are further functional groups of each frame."""
    image = dataset(array, ENHANCED_MR, NumberOfFrames=len(array), Modality="MR")
    shared = group(
        PixelMeasuresSequence={"PixelSpacing": [0.8, 0.7], "SliceThickness": 5},
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
    )
    image.SharedFunctionalGroupsSequence = Items([shared])
    image.PerFrameFunctionalGroupsSequence = Items(
        [
            group(PlanePositionSequence={"ImagePositionPatient": list(place)}, **more)
            for place, more in zip(places, own or [{}] * len(places))
        ]
    )
    return image


PLACES = [(-10.0, 20.0, -30.0 + 5 * k) for k in range(6)]


def test_frames_of_an_enhanced_file_are_put_in_order(tmp_path: Path) -> None:
    array, order = numbers(), [3, 0, 4, 1, 5, 2]
    image = enhanced(array[order], [PLACES[k] for k in order])
    scan = scan_of(store(tmp_path / "a.dcm", image))
    assert np.array_equal(scan.array[0], array)
    assert scan.spacing_mm == pytest.approx((5, 0.8, 0.7))
    np.testing.assert_allclose(scan.affine @ [5, 0, 0, 1], [10, -20, -5, 1])
    image.compress(RLELossless)
    assert np.array_equal(scan_of(store(tmp_path / "b.dcm", image)).array[0], array)


def test_an_enhanced_file_with_a_gap_or_several_stacks(tmp_path: Path) -> None:
    array = numbers()
    gap = enhanced(array[:5], [PLACES[k] for k in (0, 1, 2, 4, 5)])
    message = refusal(store(tmp_path / "gap.dcm", gap))
    assert "lie 10 mm apart, the others 5 mm (gap.dcm, frame 3 and gap.dcm, frame 4)" in message
    times = enhanced(np.concatenate([array, array + 1]), PLACES * 2)
    assert "6 positions, each with 2 slices" in refusal(store(tmp_path / "times.dcm", times))

    own = [{"FrameContentSequence": {"TemporalPositionIndex": 1 + k // 6}} for k in range(12)]
    path = store(
        tmp_path / "known.dcm", enhanced(np.concatenate([array, array + 1]), PLACES * 2, own)
    )
    assert "4/2 (6 slices, TemporalPositionIndex 2)" in refusal(path)
    assert np.array_equal(read_series(path, "/2")[0][0], array + 1)

    planes = [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]
    own = [{"PlaneOrientationSequence": {"ImageOrientationPatient": list(p)}} for p in planes]
    three = enhanced(array[:3], [(0, 0, 0), (0, 0, 5), (2, 0, 5)], own)
    path = store(tmp_path / "planes.dcm", three)
    assert "ImageOrientationPatient (0020,0037)" in refusal(path)
    chosen, affine = read_series(path, "4/2")
    assert np.array_equal(chosen[0], array[1:2])
    np.testing.assert_allclose(affine[:3, 0], [0, -5, 0])


def test_frames_without_places_are_refused(tmp_path: Path) -> None:
    image = enhanced(numbers(), PLACES)
    image.PerFrameFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence[:4]
    assert "6 frames, and 4 items" in refusal(store(tmp_path / "a.dcm", image))
    plain = dataset(numbers(), NumberOfFrames=6, ImagePositionPatient=list(PLACES[0]))
    assert "6 frames, and 0 items" in refusal(store(tmp_path / "b.dcm", plain))


def test_a_parametric_map_holds_floating_point_numbers(tmp_path: Path) -> None:
    array = numbers().astype(np.float32) / 7
    image = enhanced(numbers(), PLACES)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del image[keyword]
    image.SOPClassUID, image.BitsAllocated = "1.2.840.10008.5.1.4.1.1.30", 32
    image.FloatPixelData = array.tobytes()
    assert np.array_equal(read_series(store(tmp_path / "a.dcm", image))[0][0], array)


def test_an_enhanced_frame_has_its_own_scale(tmp_path: Path) -> None:
    array = numbers(low=0)
    own = [
        {"PixelValueTransformationSequence": {"RescaleSlope": 0.5 * (k + 1), "RescaleIntercept": k}}
        for k in range(6)
    ]
    scan = scan_of(store(tmp_path / "a.dcm", enhanced(array, PLACES, own)))
    assert scan.array.dtype == np.float32
    for k in range(6):
        np.testing.assert_allclose(scan.array[0, k], array[k] * 0.5 * (k + 1) + k)


# --- numbers --------------------------------------------------------------------------------------


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path) -> None:
    array = numbers(low=0)
    images = slices(array, kind=PET, Modality="PT")
    for k, image in enumerate(images):
        image.RescaleSlope, image.RescaleIntercept = 0.25 * (k + 1), 0
    ours, _ = read_series(write_slices(tmp_path, images))
    assert ours.dtype == np.float32
    expected = array * 0.25 * np.arange(1, 7)[:, None, None]
    np.testing.assert_allclose(ours[0], expected, rtol=1e-6)


def test_whole_numbers_stay_integers(tmp_path: Path) -> None:
    array = numbers(low=0).astype(np.uint16)
    images = slices(array, RescaleSlope=1, RescaleIntercept=-1024, BitsStored=12, HighBit=11)
    ours, _ = read_series(write_slices(tmp_path / "ct", images))
    assert ours.dtype == np.int16
    assert np.array_equal(ours[0], array.astype(int) - 1024)
    assert np.array_equal(ours[0], by_itk(tmp_path / "ct")[0])
    large = slices(array + 60000, RescaleSlope=2, RescaleIntercept=0)
    ours, _ = read_series(write_slices(tmp_path / "large", large))
    assert np.array_equal(ours[0], (array + 60000).astype(int) * 2)


def test_unused_bits_hold_no_numbers(tmp_path: Path) -> None:
    """Overlays in the upper bits of old files; signed numbers of 12 bits without their sign."""
    array = numbers()
    twelve = (array & 0x0FFF).astype(np.uint16) | 0x4000
    tags = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    ours, _ = read_series(write_slices(tmp_path / "signed", slices(twelve, **tags)))
    assert np.array_equal(ours[0], array)
    tags["PixelRepresentation"] = 0
    ours, _ = read_series(write_slices(tmp_path / "unsigned", slices(twelve, **tags)))
    assert np.array_equal(ours[0], array & 0x0FFF)


def test_monochrome1_keeps_its_numbers(tmp_path: Path) -> None:
    """As dcm2niix does; ITK turns them around."""
    images = slices(numbers(), PhotometricInterpretation="MONOCHROME1")
    ours, _ = read_series(write_slices(tmp_path, images))
    assert np.array_equal(ours[0], numbers())


# --- encodings ------------------------------------------------------------------------------------


def test_files_without_the_mark_and_implicit_ones(tmp_path: Path) -> None:
    array = numbers()
    for k, image in enumerate(slices(array)):
        image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        path = store(tmp_path / "marked" / f"IM{k}", image)
        bare = tmp_path / "bare" / f"IM{k}"
        bare.parent.mkdir(exist_ok=True)
        length = int.from_bytes(path.read_bytes()[140:144], "little")
        bare.write_bytes(path.read_bytes()[144 + length :])
    for name in ("marked", "bare"):
        assert np.array_equal(read_series(tmp_path / name)[0][0], array)


@pytest.mark.parametrize(
    ("name", "bits", "lossless"),
    [
        ("JPEGBaselineProcess1", 8, False),
        ("JPEGExtendedProcess2_4", 12, False),
        ("JPEGLosslessProcess14", 16, True),
        ("JPEGLosslessProcess14_1", 16, True),
        ("JPEGLSLossless", 16, True),
        ("JPEGLSNearLossless", 16, False),
        ("JPEG2000Lossless", 16, True),
        ("JPEG2000", 16, False),
        ("RLELossless", 16, True),
        ("DeflatedExplicitVRLittleEndian", 16, True),
        ("ExplicitVRBigEndian", 16, True),
    ],
)
def test_compressed_pixels(tmp_path: Path, name: str, bits: int, lossless: bool) -> None:
    gdcm = pytest.importorskip("gdcm")
    ramp = np.add.outer(np.arange(24) * 4, np.arange(20) * 3)
    array = np.stack([ramp + k for k in range(4)]).astype(np.uint8 if bits == 8 else np.uint16)
    tags = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": 1, "RescaleIntercept": -10}
    write_slices(tmp_path / "plain", slices(array, **tags))
    (tmp_path / "packed").mkdir()
    for path in (tmp_path / "plain").iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(tmp_path / "packed" / path.name))
        assert writer.Write()
    ours, affine = read_series(tmp_path / "packed")
    np.testing.assert_allclose(ours[0], array.astype(int) - 10, atol=0 if lossless else 4)
    np.testing.assert_allclose(affine, read_series(tmp_path / "plain")[1])


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    image = slices(numbers()[:1], SliceThickness=2)[0]
    image.PixelData = pydicom.encaps.encapsulate([image.PixelData])
    image.file_meta.TransferSyntaxUID = MPEG2MPML
    image["PixelData"].is_undefined_length = True
    message = refusal(store(tmp_path / "a.dcm", image))
    assert "a.dcm: its pixels are compressed as MPEG2" in message
    assert "gdcmconv" in message


def test_the_package_reads_dicom_by_this_module(tmp_path: Path) -> None:
    array = numbers()
    write_slices(tmp_path / "a", slices(array))
    write_slices(tmp_path / "b", slices(array + 1, series="1.2.3.7"))
    for image in (read(tmp_path, series="7"), read(tmp_path / "b")):
        assert np.array_equal(image.array[0], array + 1)
    path = store(tmp_path / "one" / "slice", slices(array[:1], SliceThickness=2)[0])
    assert read(path).spacing_mm == pytest.approx((2, 0.8, 0.7))


def test_a_label_that_is_written_on_a_tilted_scan_lies_on_it(tmp_path: Path) -> None:
    t = np.radians(15)
    images = slices(numbers(), (0, 0, 5), (1, 0, 0, 0, np.cos(t), -np.sin(t)))
    scan = scan_of(write_slices(tmp_path / "tilt", images))
    label = Volume((scan.array[0] > 0).astype(np.uint8), scan.affine)
    write(tmp_path / "label.nii.gz", label)
    assert read(tmp_path / "label.nii.gz").apart_mm(scan) < 0.01
