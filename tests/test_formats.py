"""Scans in and out of every format, held to nibabel and SimpleITK.

Files with every kind of damage; a full disk.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from contextseg import volume
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.formats.parts import files_of
from contextseg.volume import Volume, read, read_labels, write
from test_volume import ORIENTATIONS, counting, oblique

DEMO = Path(volume.__file__).parent / "demo_data"


# --- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (3, 4, 5, 6), (2, 1, 5, 6)])
def test_written_is_read(tmp_path: Path, end: str, shape: tuple[int, ...]) -> None:
    scan = counting(shape)
    write(tmp_path / f"scan{end}", scan)
    back = read(tmp_path / f"scan{end}")
    smallest = np.uint8 if len(shape) == 3 else scan.array.dtype  # a label map, or an image
    assert back.array.dtype == smallest
    assert np.array_equal(back.array.reshape(shape), scan.array)
    assert back.array.ndim == 4
    assert back.same_grid(scan, tolerance_vox=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == [f"scan{end}"]


@pytest.mark.parametrize("target", ORIENTATIONS)
def test_a_file_in_any_orientation_lies_where_nibabel_and_itk_say(
    tmp_path: Path, target: str
) -> None:
    scan = counting(affine=np.diag([3.0, 2, 1, 1])[:, [2, 1, 0, 3]]).oriented(target)
    write(tmp_path / "a.nii.gz", scan)
    by_nibabel = nibabel.load(tmp_path / "a.nii.gz")
    by_itk = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    back = read_labels(tmp_path / "a.nii.gz")
    for d, h, w in [(0, 0, 0), *[tuple(n - 1 for n in scan.shape)], (1, 2, 0)]:
        value, place = back.array[d, h, w], (back.affine @ [d, h, w, 1])[:3]
        assert np.asarray(by_nibabel.dataobj)[w, h, d] == value == by_itk[w, h, d]
        np.testing.assert_allclose(by_nibabel.affine @ [w, h, d, 1], [*place, 1], atol=1e-4)
        np.testing.assert_allclose(
            by_itk.TransformIndexToPhysicalPoint((w, h, d)) * np.array([-1, -1, 1]),
            place,
            atol=1e-4,
        )
        assert int(scan.array[d, h, w]) == value


@pytest.mark.parametrize(
    "kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("end", [".nii.gz", ".nrrd"])
def test_number_types_are_kept(tmp_path: Path, kind: str, end: str) -> None:
    scan = counting((1, 4, 5, 6), dtype=np.dtype(kind).type)
    write(tmp_path / f"a{end}", scan)
    back = read(tmp_path / f"a{end}").array
    assert back.dtype == kind
    assert np.array_equal(back, scan.array)


@pytest.mark.parametrize(("kind", "becomes"), [(np.bool_, np.uint8), (np.float16, np.float32)])
@pytest.mark.parametrize("end", [".nii.gz", ".mha"])
def test_number_types_that_no_format_has(
    tmp_path: Path, kind: type, becomes: type, end: str
) -> None:
    scan = counting((2, 2, 2)).array.astype(kind)
    write(tmp_path / f"a{end}", Volume(scan, np.eye(4)))
    back = read(tmp_path / f"a{end}").array[0]
    assert back.dtype == becomes
    assert np.array_equal(back, scan)


def test_a_sheared_affine_survives_nifti(tmp_path: Path) -> None:
    affine = oblique()
    affine[0, 1] += 0.4  # a tilted gantry
    write(tmp_path / "a.nii.gz", counting(affine=affine))
    assert read(tmp_path / "a.nii.gz").same_grid(counting(affine=affine), 1e-3)


def test_scaled_nifti_is_unscaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    content = bytearray(image.to_bytes())
    content[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # nibabel resets them on writing
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    expected = np.arange(24).reshape(4, 3, 2).T * 0.5 - 1024
    for name in ("a.nii", "a.nii.gz"):
        array = read(tmp_path / name).array[0]
        assert array.dtype == np.float32
        assert np.array_equal(array, expected)


def test_channels_of_one_file_and_of_several(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(5, 4, 3, 2)  # x, y, z, channel
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "both.nii.gz")
    nibabel.save(nibabel.Nifti1Image(array[..., None, :], np.eye(4)), tmp_path / "vector.nii.gz")
    for c in range(2):
        nibabel.save(nibabel.Nifti1Image(array[..., c], np.eye(4)), tmp_path / f"{c}.nii.gz")
    expected = array.transpose(3, 2, 1, 0)
    assert np.array_equal(read(tmp_path / "both.nii.gz").array, expected)
    assert np.array_equal(read(tmp_path / "vector.nii.gz").array, expected)
    assert np.array_equal(read(tmp_path / "0.nii.gz", tmp_path / "1.nii.gz").array, expected)
    time = sitk.JoinSeries([sitk.GetImageFromArray(c) for c in expected])
    sitk.WriteImage(time, str(tmp_path / "time.nrrd"))
    assert np.array_equal(read(tmp_path / "time.nrrd").array, expected)
    nibabel.save(
        nibabel.Nifti1Image(array[..., 0], np.diag([1, 1, 2, 1])), tmp_path / "other.nii.gz"
    )
    with pytest.raises(ContextsegError, match="its grid differs"):
        read(tmp_path / "0.nii.gz", tmp_path / "other.nii.gz")


def test_a_flat_nifti_is_one_slice(tmp_path: Path) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.arange(6, dtype=np.uint8).reshape(3, 2), np.diag([2, 3, 1, 1])),
        tmp_path / "a.nii",
    )
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[312:328] = bytes(16)  # no third row in the sform: no thickness
    content[288:292] = content[304:308] = bytes(4)
    (tmp_path / "b.nii").write_bytes(content)
    for name in ("a.nii", "b.nii"):
        scan = read(tmp_path / name)
        assert scan.array.tolist() == [[[[0, 2, 4], [1, 3, 5]]]]
        assert scan.spacing_mm == (1, 3, 2)


def test_nifti_2(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(
            nibabel.Nifti2Image(counting().array.T, np.diag([1, 2, 3, 1])), tmp_path / name
        )
        assert np.array_equal(read(tmp_path / name).array[0], counting().array)
        assert read(tmp_path / name).spacing_mm == (3, 2, 1)


def test_big_endian_comes_out_native(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(counting().array.T, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert (gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4]) == (348).to_bytes(4, "big")
    assert read(tmp_path / "a.nii.gz").array.dtype == np.dtype("=i2")
    assert np.array_equal(read(tmp_path / "a.nii.gz").array[0], counting().array)


def test_an_empty_sform_gives_way_to_the_qform_and_no_geometry_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(counting().array.T, np.diag([1, 2, 3, 1]))
    image.set_qform(np.diag([1, 2, 3, 1]), 1)
    content = bytearray(image.to_bytes())
    content[280:328] = bytes(48)
    (tmp_path / "a.nii").write_bytes(content)
    assert read(tmp_path / "a.nii").spacing_mm == (3, 2, 1)
    content[268:280] = np.full(3, np.nan, "<f4").tobytes()  # the qform's origin
    (tmp_path / "b.nii").write_bytes(content)
    with pytest.raises(ContextsegError, match="degenerate"):
        read(tmp_path / "b.nii")
    content = bytearray(image.to_bytes())
    content[256:268] = np.full(3, 0.9, "<f4").tobytes()  # no rotation at all; the sform is sound
    (tmp_path / "c.nii").write_bytes(content)
    assert read(tmp_path / "c.nii").spacing_mm == (3, 2, 1)
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "d.nii.gz")
    with pytest.raises(ContextsegError, match="colours"):
        read(tmp_path / "d.nii.gz")


def test_pictures(tmp_path: Path) -> None:
    grey = (counting((1, 5, 6)).array * 8).astype(np.uint8)
    write(tmp_path / "a.png", Volume(grey, np.diag([1, 0.3, 0.3, 1])))
    assert np.array_equal(read(tmp_path / "a.png").array[0], grey)
    assert read(tmp_path / "a.png").spacing_mm == (
        1,
        1,
        1,
    )  # a picture's dots per inch are no millimetres
    colour = np.stack([grey[0], grey[0] + 1, grey[0] + 2], -1)
    for end in (".png", ".bmp", ".tif"):
        sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / f"c{end}"))
        assert np.array_equal(read(tmp_path / f"c{end}").array, colour.transpose(2, 0, 1)[:, None])
    sitk.WriteImage(
        sitk.GetImageFromArray(np.stack([grey[0]] * 3, -1), isVector=True),
        str(tmp_path / "same.png"),
    )
    assert np.array_equal(read_labels(tmp_path / "same.png").array, grey)
    with pytest.raises(ContextsegError, match="3 channels"):
        read_labels(tmp_path / "c.png")


def test_tiff_takes_its_spacing_from_the_file_beside_it(tmp_path: Path) -> None:
    scan = counting(dtype=np.uint16)
    for name in ("a_0000.tif", "b_0000.tif"):
        write(tmp_path / name, scan)
    write_json(tmp_path / "a.json", {"spacing": [3, 2, 0.5]})
    assert np.array_equal(read(tmp_path / "a_0000.tif").array[0], scan.array)
    assert read(tmp_path / "a_0000.tif").spacing_mm == (3, 2, 0.5)
    assert read(tmp_path / "b_0000.tif").spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.png", "a.xyz", "a"])
def test_what_cannot_be_written_whole_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContextsegError, match=r"choose \.nii\.gz"):
        write(tmp_path / name, counting())  # two files, one slice only, or nothing known
    assert not list(tmp_path.iterdir())
    with pytest.raises(ContextsegError, match="cannot be written"):
        write(
            tmp_path / "flat.png", Volume(np.full((1, 3, 3), -5, np.int16), np.eye(4))
        )  # a number type png lacks


def test_what_reads_back_differently_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image = sitk.WriteImage
    monkeypatch.setattr(
        sitk, "WriteImage", lambda image, *rest, **more: write_image(image * 0, *rest, **more)
    )
    with pytest.raises(ContextsegError, match="does not read back as it was"):
        write(tmp_path / "a.mha", counting())
    assert not list(tmp_path.iterdir())


# --- DICOM ----------------------------------------------------------------------------------------


def write_series(folder: Path, slices: list[int], series: str = "1.2.3.4") -> np.ndarray:
    """Slices of one CT at 2.5 mm, in files whose names run backwards.

    Returns the whole array (8, 6, 5).
    """
    folder.mkdir(exist_ok=True)
    array = np.random.default_rng(0).integers(-1000, 1000, (8, 6, 5)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    stack = sitk.GetImageFromArray(array)
    stack.SetSpacing((0.7, 0.8, 2.5))
    for n, k in enumerate(slices):
        image = stack[:, :, k]
        for tag, value in {
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{n + 1}",
            "0008|0060": "CT",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0020|0013": str(n + 1),
            "0020|0032": f"-10\\20\\{-30 + 2.5 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}-{100 - n}.dcm"))
        writer.Execute(image)
    return array


def test_a_dicom_series(tmp_path: Path) -> None:
    array = write_series(tmp_path / "scan", list(range(8)))
    scan = read(tmp_path / "scan")
    assert np.array_equal(scan.array[0], array)
    assert scan.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert scan.orientation == "SPL"  # rows run to the back, columns to the left
    np.testing.assert_allclose(
        scan.affine @ [0, 0, 0, 1], [10, -20, -30, 1]
    )  # left and back are negative here
    np.testing.assert_allclose(scan.affine @ [7, 0, 0, 1], [10, -20, -12.5, 1])


def test_a_dicom_series_with_a_gap_a_double_or_company(tmp_path: Path) -> None:
    write_series(tmp_path / "gap", [0, 1, 2, 5, 6, 7])
    with pytest.raises(
        ContextsegError, match=r"slices 3 and 4 lie 7\.5 mm apart, the others 2\.5 mm"
    ):
        read(tmp_path / "gap")
    write_series(tmp_path / "double", [0, 1, 2, 2, 3, 4])
    with pytest.raises(ContextsegError, match="lie 0 mm apart"):
        read(tmp_path / "double")
    write_series(tmp_path / "two", [0, 1, 2])
    write_series(tmp_path / "two", [0, 1, 2], series="1.2.3.5")
    with pytest.raises(ContextsegError, match="2 DICOM series"):
        read(tmp_path / "two")
    (tmp_path / "none").mkdir()
    with pytest.raises(ContextsegError, match="0 DICOM series"):
        read(tmp_path / "none")
    for name in ("a.nii.gz", "b.mha", "notes.txt"):
        (tmp_path / "none" / name).touch()
    with pytest.raises(ContextsegError, match=r"2 files of other formats.*such as .*a\.nii\.gz"):
        read(tmp_path / "none")


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.95])
def test_a_truncated_file_names_itself(tmp_path: Path, end: str, keep: float) -> None:
    path = tmp_path / f"scan{end}"
    noise = np.random.default_rng(0).integers(0, 30000, (9, 20, 20)).astype(np.int16)
    write(path, Volume(noise, np.eye(4)))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ContextsegError, match="truncated or damaged") as caught:
        read(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("end", [".tif", ".bmp", ".png"])
@pytest.mark.parametrize("keep", [0.2, 0.95])
def test_a_truncated_picture_names_itself(tmp_path: Path, end: str, keep: float) -> None:
    path = tmp_path / f"a{end}"
    noise = np.random.default_rng(0).integers(0, 250, (40, 50)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path))
    assert np.array_equal(read_labels(path).array[0], noise)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ContextsegError, match="truncated or damaged"):
        read(path)


def test_other_damage_names_the_file(tmp_path: Path) -> None:
    content = (DEMO / "imagesTr" / "sarcoma_003_0000.nii.gz").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    huge = bytearray(gzip.decompress(content))
    huge[42:48] = b"\xff\x7f" * 3  # 32767 voxels along each axis
    for name, damaged in {
        "flipped.nii.gz": bytes(flipped),
        "header.nii.gz": gzip.compress(gzip.decompress(content)[:300]),
        "huge.nii.gz": gzip.compress(bytes(huge)),
        "no gzip.nii.gz": b"\x1f\x8bhello",
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ContextsegError, match="truncated or damaged") as caught:
            read(tmp_path / name)
        assert caught.value.where == str(tmp_path / name)
    with pytest.raises(ContextsegError, match="does not exist"):
        read(tmp_path / "nowhere.nii.gz")


# --- labels ---------------------------------------------------------------------------------------


def test_label_types(tmp_path: Path) -> None:
    for values, kind in (
        ([0, 2, 7], np.int16),
        ([0, 32767], np.int16),
        ([0, 32768], np.int32),
        ([-1, 3], np.int16),
    ):
        array = np.resize(np.array(values, np.float64), (2, 2, 2))
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
        label = read_labels(tmp_path / "a.nii.gz").array
        assert label.dtype == kind
        assert np.array_equal(label, array.T)
    write(tmp_path / "b.nii.gz", Volume(np.full((2, 2, 2), 2**32 - 1, np.uint32), np.eye(4)))
    with pytest.raises(ContextsegError, match="use whole numbers from 0 to 2147483647"):
        read_labels(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("kind", [np.int16, np.uint8])
def test_labels_that_were_scaled_into_integers(tmp_path: Path, kind: type) -> None:
    array = np.resize(np.array([0.0, 1, 2]), (3, 4, 5))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    nibabel.save(
        nibabel.Nifti1Image(array, np.eye(4), header), tmp_path / "a.nii.gz"
    )  # nibabel spreads 0..2 over kind
    assert nibabel.load(tmp_path / "a.nii.gz").dataobj.slope not in (None, 1)
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").array, array.T)


@pytest.mark.parametrize("bad", [0.5, 1.2, np.nan, np.inf])
def test_labels_that_are_not_whole(tmp_path: Path, bad: float) -> None:
    array = np.ones((2, 3, 4), np.float32)
    array[1, 1, 1] = bad
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(ContextsegError, match="1 voxel whose label is not a whole number"):
        read_labels(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("told", [0.5, [0.5, 0.5], ["a", None, 1], [1, 0, 1], None])
def test_a_spacing_beside_a_picture_that_is_none_is_told(tmp_path: Path, told: object) -> None:
    write(tmp_path / "a.png", counting((1, 5, 6)))
    write_json(tmp_path / "a.json", {"spacing": told})
    with pytest.raises(ContextsegError, match="three numbers above 0") as caught:
        read(tmp_path / "a.png")
    assert caught.value.where == str(tmp_path / "a.json")
    write_json(tmp_path / "a.json", ["spacing"])  # the file of another tool
    assert read(tmp_path / "a.png").spacing_mm == (1, 1, 1)


def test_all_files_of_a_scan_are_known(tmp_path: Path) -> None:
    scan = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for name in ("a.mhd", "a.nhdr"):
        sitk.WriteImage(scan, str(tmp_path / name))
        assert len(files_of(tmp_path / name)) == 2
    nibabel.save(nibabel.Nifti1Pair(np.zeros((3, 4, 5)), np.eye(4)), tmp_path / "b.img")
    (tmp_path / "c_0000.png").touch()
    (tmp_path / "c.json").touch()
    (tmp_path / "d.mhd").write_text("NDims = 3\nElementDataFile = s%02d.raw 1 2 1\n")
    (tmp_path / "s01.raw").touch()
    (tmp_path / "s02.raw").touch()
    (tmp_path / "dicom" / "inside").mkdir(parents=True)
    (tmp_path / "dicom" / "inside" / "1.dcm").touch()
    for name, files in {
        "b.hdr": ["b.hdr", "b.img"],
        "c_0000.png": ["c_0000.png", "c.json"],
        "d.mhd": ["d.mhd", "s01.raw", "s02.raw"],
        "dicom": ["1.dcm"],
        "none.nii": ["none.nii"],
    }.items():
        assert [path.name for path in files_of(tmp_path / name)] == files
