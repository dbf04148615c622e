"""What files say of themselves: geometry, units, kind, and that it is kept in what is written.

Held to nibabel, SimpleITK and Pillow, which place and unpack the same files.
"""

import gzip
import itertools
import logging
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from contextseg.data.check import check
from contextseg.data.findings import Finding
from contextseg.errors import ContextsegError
from contextseg.resampling import resample_labels
from contextseg.volume import Volume, as_labels, as_volume, read, read_labels, write
from systems import needs_case
from test_volume import oblique

ARRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)  # d, h, w
SFORM = np.diag([2.0, 2, 3, 1])
SFORM[:3, 3] = [-29, -25, -13]
ELSEWHERE = SFORM.copy()
ELSEWHERE[:3, 3] += [30, -10, 5]
SHEARED = SFORM.copy()
SHEARED[1, 2] = 1


def nifti(
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    codes: tuple[int, int] = (1, 1),
    unit: str = "mm",
    kind: Any = nibabel.Nifti1Image,
) -> Any:
    """A NIfTI image of `ARRAY` with the two affines that are given, their codes and a unit."""
    image = kind(ARRAY.T, None)
    image.header.set_zooms((2, 2, 3))
    if qform is not None:
        image.header.set_qform(qform, codes[1])
    if sform is not None:
        image.header.set_sform(sform, codes[0])
    image.header.set_xyzt_units(unit, "sec")
    return image


HEADERS = {
    "two affines": (SFORM, ELSEWHERE, (2, 1)),
    "two affines alike": (SFORM, SFORM, (4, 3)),
    "no code": (None, None, (0, 0)),
    "affines without codes": (SFORM, ELSEWHERE, (0, 0)),
    "sform alone": (SFORM, None, (1, 0)),
    "qform alone": (None, ELSEWHERE, (0, 2)),
    "flipped": (SFORM @ np.diag([-1, 1, -1, 1]), ELSEWHERE @ np.diag([-1, 1, -1, 1]), (1, 2)),
    "oblique": (oblique()[:, [2, 1, 0, 3]], oblique()[:, [2, 1, 0, 3]], (1, 0)),
}


def by_itk(path: Path) -> dict[int, np.ndarray]:
    """Where SimpleITK places each value of a file whose voxels all differ."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    return {
        int(array[d, h, w]): np.array(image.TransformIndexToPhysicalPoint((w, h, d)))
        for d, h, w in itertools.product(*map(range, array.shape))
    }


def far_mm(one: Path, other: Path) -> float:
    """The largest distance between the places of a value in two files, as SimpleITK sees them."""
    first, second = by_itk(one), by_itk(other)
    return max(float(np.linalg.norm(first[value] - second[value])) for value in second)


# --- NIfTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("unit", ["mm", "unknown", "meter", "micron"])
@pytest.mark.parametrize("name", HEADERS)
def test_what_is_written_on_a_scan_has_its_header(
    tmp_path: Path, name: str, unit: str, kind: Any
) -> None:
    sform, qform, codes = HEADERS[name]
    image = nifti(sform, qform, codes, unit, kind)
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = read(tmp_path / "scan.nii.gz")
    write(tmp_path / "out.nii", scan.with_array(scan.array[0]))

    before, after = nibabel.load(tmp_path / "scan.nii.gz"), nibabel.load(tmp_path / "out.nii")
    for form in ("get_sform", "get_qform"):
        (one, code), (other, same) = (getattr(f, form)(coded=True) for f in (before, after))
        assert code == same
        if code:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(before.affine, after.affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(before.header["pixdim"][:4], after.header["pixdim"][:4], rtol=1e-6)
    assert before.header.get_xyzt_units() == after.header.get_xyzt_units()
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), ARRAY.T)
    if kind is nibabel.Nifti1Image:
        assert far_mm(tmp_path / "scan.nii.gz", tmp_path / "out.nii") < 1e-4 * scan.spacing_mm[0]
    assert read(tmp_path / "out.nii").same_grid(scan, 1e-4)


@pytest.mark.parametrize("target", ["SAR", "RAS", "LPI", "ASL", "IPL"])
@pytest.mark.parametrize("name", ["two affines", "flipped", "oblique", "qform alone"])
def test_turned_and_cropped_volumes_keep_both_affines(
    tmp_path: Path, name: str, target: str
) -> None:
    nibabel.save(nifti(*HEADERS[name], "meter"), tmp_path / "scan.nii")
    scan = read(tmp_path / "scan.nii")
    part = scan.oriented(target).cropped((slice(1, 3), slice(0, 4), slice(2, 4)))
    write(tmp_path / "part.nii", part.with_array(part.array[0]))
    assert far_mm(tmp_path / "scan.nii", tmp_path / "part.nii") < 0.01  # float32 of 101 m
    assert part.shape == (2, 4, 2)
    assert read(tmp_path / "part.nii").same_grid(part, 1e-4)


def test_a_header_that_no_longer_fits_is_not_written(tmp_path: Path) -> None:
    nibabel.save(nifti(*HEADERS["no code"]), tmp_path / "scan.nii")
    scan = read(tmp_path / "scan.nii")
    assert scan.header is not None
    turned = scan.oriented("LPS")  # voxel sizes alone cannot say where it lies now
    assert turned.header is None
    write(tmp_path / "turned.nii", turned)
    assert read(tmp_path / "turned.nii").same_grid(turned, 1e-4)
    assert scan.oriented(scan.orientation).header == scan.header

    moved = Volume(scan.array, scan.affine + np.eye(4, k=3), scan.header)
    write(tmp_path / "moved.nii", moved)
    assert read(tmp_path / "moved.nii").same_grid(moved, 1e-4)
    assert int(nibabel.load(tmp_path / "moved.nii").header["sform_code"]) == 1


@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000), ("micron", 0.001), ("mm", 1)])
@pytest.mark.parametrize("forms", [(1, 0), (0, 1), (0, 0)])
def test_units_are_obeyed(tmp_path: Path, unit: str, mm: float, forms: tuple[int, int]) -> None:
    affine = np.diag([2 / mm, 2 / mm, 3 / mm, 1])
    image = nifti(affine, affine, forms, unit)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert read(tmp_path / "a.nii.gz").spacing_mm == pytest.approx((3, 2, 2))
    assert as_volume(image).spacing_mm == pytest.approx((3, 2, 2))
    assert (
        as_volume(nibabel.load(tmp_path / "a.nii.gz")).header == read(tmp_path / "a.nii.gz").header
    )


def test_what_a_nifti_header_leaves_open_is_said(tmp_path: Path) -> None:
    doubts = {}
    for name, forms in HEADERS.items():
        nibabel.save(nifti(*forms), tmp_path / "a.nii")
        doubts[name] = " ".join(what for what, _ in read(tmp_path / "a.nii").doubts)
    assert "lie up to 15 voxels apart; the sform is used" in doubts["two affines"]
    assert "neither sform nor qform has a code" in doubts["no code"]
    assert "neither" in doubts["affines without codes"]
    assert not any(doubts[name] for name in ("two affines alike", "sform alone", "qform alone"))
    slightly = SFORM.copy()
    slightly[0, 3] += 0.15  # less than a tenth of a voxel
    nibabel.save(nifti(SFORM, slightly), tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").doubts == ()


def test_sheared_axes_are_written_as_the_sform_alone(tmp_path: Path) -> None:
    volume = Volume(ARRAY, SHEARED[:, [2, 1, 0, 3]])
    write(tmp_path / "a.nii", volume)
    header = nibabel.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    assert read(tmp_path / "a.nii").same_grid(volume, 1e-5)


def test_very_long_axes_are_written_as_nifti_2(tmp_path: Path) -> None:
    array = np.zeros((1, 1, 40_000), np.uint8)
    array[0, 0, -1] = 7
    write(tmp_path / "a.nii.gz", Volume(array, np.eye(4)))
    assert isinstance(nibabel.load(tmp_path / "a.nii.gz"), nibabel.Nifti2Image)
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").array, array)


@pytest.mark.parametrize("value", [0, 352, 368, 100, -16, 352.5, 1e30, np.nan])
def test_where_the_voxels_begin(tmp_path: Path, value: float) -> None:
    plain = nibabel.Nifti1Image(ARRAY.T, np.eye(4)).to_bytes()
    extra = 16 if value == 368 else 0
    content = bytearray(plain[:352] + bytes(extra) + plain[352:])
    content[108:112] = np.array(value, "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    for name in ("a.nii", "a.nii.gz"):
        if value in (0, 352, 368):
            assert np.array_equal(read(tmp_path / name).array[0], ARRAY)
        else:
            with pytest.raises(ContextsegError, match=r"vox_offset|bytes of"):
                read(tmp_path / name)


def test_a_header_with_extensions_is_read_unless_its_offset_is_lost(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ARRAY.T, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"drawn by hand"))
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(read(tmp_path / "a.nii").array[0], ARRAY)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = bytes(4)
    (tmp_path / "b.nii").write_bytes(content)
    with pytest.raises(ContextsegError, match="vox_offset = 0, and its header has extensions"):
        read(tmp_path / "b.nii")


@pytest.mark.parametrize("shape", [(6, 5, 4, 1), (6, 5, 4, 1, 1), (6, 5, 4, 1, 1, 1, 1)])
def test_trailing_axes_of_one_are_nothing(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nibabel.save(nibabel.Nifti1Image(ARRAY.T.reshape(shape), np.eye(4)), tmp_path / "a.nii.gz")
    assert np.array_equal(read(tmp_path / "a.nii.gz").array, ARRAY[None])
    if len(shape) <= 5:
        image = sitk.GetImageFromArray(ARRAY.reshape(shape[::-1]), isVector=False)
        sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
        assert np.array_equal(read(tmp_path / "a.nrrd").array, ARRAY[None])
    times = np.stack([ARRAY.T, ARRAY.T + 1], -1)[..., None]
    nibabel.save(nibabel.Nifti1Image(times, np.eye(4)), tmp_path / "b.nii")
    assert np.array_equal(read(tmp_path / "b.nii").array, np.stack([ARRAY, ARRAY + 1]))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (slice(70, 72), np.int16(77), "datatype = 77"),
        (slice(70, 72), np.int16(32), "complex numbers"),
        (slice(70, 72), np.int16(128), "colours"),
        (slice(40, 42), np.int16(0), "dim = "),
        (slice(40, 42), np.int16(9), "dim = |no NIfTI"),
        (slice(42, 44), np.int16(-4), "dim = "),
        (slice(42, 44), np.int16(0), "without a voxel"),
    ],
)
def test_a_nifti_header_that_cannot_be_is_named_by_its_field(
    tmp_path: Path, place: slice, value: Any, message: str
) -> None:
    content = bytearray(nibabel.Nifti1Image(ARRAY.T, np.eye(4)).to_bytes()) + bytes(4000)
    content[place] = value.tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(ContextsegError, match=message) as caught:
        read(tmp_path / "a.nii")
    assert caught.value.where == str(tmp_path / "a.nii")
    assert "truncated" not in caught.value.what


def test_whole_scaled_labels_beyond_float32_are_exact(tmp_path: Path) -> None:
    content = bytearray(nibabel.Nifti1Image(ARRAY.T, np.eye(4)).to_bytes())
    content[112:120] = np.array([1_000_003, 1], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    assert np.array_equal(read_labels(tmp_path / "a.nii").array, ARRAY.astype(int) * 1_000_003 + 1)


# --- NRRD and MetaImage ---------------------------------------------------------------------------


def put_nrrd(path: Path, space: str, units: str = "", scale: float = 1.0) -> Path:
    """An NRRD of `ARRAY` with a voxel size of (2, 2, 3) x `scale` in its units."""
    x, z = 2 * scale, 3 * scale
    head = (
        "NRRD0005\ntype: int16\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nendian: little\n"
        f"space: {space}\nspace directions: ({x},0,0) (0,{x},0) (0,0,{z})\n"
        f"space origin: ({10 * scale},{-20 * scale},{30 * scale})\n{units}\n"
    )
    path.write_bytes(head.encode() + ARRAY.tobytes())
    return path


@pytest.mark.parametrize("units", [("mm", 1), ("um", 1000), ("m", 0.001), ("\u00b5m", 1000)])
@pytest.mark.parametrize(
    "space",
    [*("left-posterior-superior", "right-anterior-superior", "left-anterior-superior"), "LPS"],
)
def test_an_nrrd_keeps_its_space_and_units(
    tmp_path: Path, space: str, units: tuple[str, float]
) -> None:
    unit, scale = units
    line = " ".join([f'"{unit}"'] * 3)
    path = put_nrrd(tmp_path / "a.nrrd", space, f"space units: {line}\n", scale)
    scan = read(path)
    assert scan.spacing_mm == pytest.approx((3, 2, 2))
    write(tmp_path / "out.nrrd", scan.with_array(scan.array[0]))
    text = (tmp_path / "out.nrrd").read_bytes().partition(b"\n\n")[0].decode()
    assert f"space: {space}\n" in text
    assert (f"space units: {line}" in text) == (scale != 1)
    assert far_mm(path, tmp_path / "out.nrrd") < 1e-6 * scale
    assert read(tmp_path / "out.nrrd").same_grid(scan, 1e-6)
    part = scan.oriented("IPL").cropped((slice(1, 3), slice(0, 5), slice(1, 2)))
    write(tmp_path / "part.nrrd", part)
    assert far_mm(path, tmp_path / "part.nrrd") < 1e-6 * scale
    write(tmp_path / "out.nii.gz", scan)
    assert read(tmp_path / "out.nii.gz").same_grid(scan, 1e-4)


def test_an_nrrd_with_spacings_and_units_or_an_unknown_unit(tmp_path: Path) -> None:
    head = (
        "NRRD0004\ntype: int16\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nendian: little\n"
        'spacings: 2000 2000 3000\nunits: "um" "um" "um"\n\n'
    )
    (tmp_path / "a.nrrd").write_bytes(head.encode() + ARRAY.tobytes())
    scan = read(tmp_path / "a.nrrd")
    assert scan.spacing_mm == pytest.approx((3, 2, 2))
    assert scan.doubts == ()
    write(tmp_path / "out.nrrd", scan)
    assert far_mm(tmp_path / "a.nrrd", tmp_path / "out.nrrd") < 1e-6
    odd = read(put_nrrd(tmp_path / "b.nrrd", "LPS", 'space units: "inch" "inch" "inch"\n'))
    assert odd.spacing_mm == pytest.approx((3, 2, 2))
    assert "space units = 'inch'" in odd.doubts[0][0]


@needs_case
def test_headers_whose_voxels_lie_beside_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, voxels in (("a.mhd", "a.raw"), ("b.nhdr", "b.raw")):
        sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / name))
        assert np.array_equal(read(tmp_path / name).array[0], ARRAY)
        shutil.copy(tmp_path / name, tmp_path / name.upper())
        assert np.array_equal(read(tmp_path / name.upper()).array[0], ARRAY)
        content = (tmp_path / voxels).read_bytes()
        (tmp_path / voxels).write_bytes(content[:-9])
        with pytest.raises(ContextsegError, match="truncated or damaged"):
            read(tmp_path / name)
        (tmp_path / voxels).rename(tmp_path / voxels.upper())
        with pytest.raises(ContextsegError, match=f"{voxels}, is missing.*{voxels.upper()} lies"):
            read(tmp_path / name)
        (tmp_path / voxels.upper()).unlink()
        with pytest.raises(ContextsegError, match=f"its voxels, {voxels}, is missing.*copy it"):
            read(tmp_path / name)
    (tmp_path / "c.raw").write_bytes(bytes(100))
    with pytest.raises(ContextsegError, match="not an image of a known format"):
        read(tmp_path / "c.raw")
    shutil.copy(tmp_path / "a.mhd", tmp_path / "c.mhd")
    with pytest.raises(ContextsegError, match=r"give its header, c\.mhd"):
        read(tmp_path / "c.raw")
    assert capfd.readouterr() == ("", "")


# --- what a file is -------------------------------------------------------------------------------


def put_all(folder: Path) -> dict[str, Path]:
    """`ARRAY` in every format that holds volumes, one slice of it in every picture."""
    paths = {}
    for end in (".nii", ".nii.gz", ".mha", ".nrrd", ".tif"):
        paths[end] = folder / f"a{end}"
        write(paths[end], Volume(ARRAY[None], np.eye(4)))
    for end in (".mgz", ".mgh"):
        paths[end] = folder / f"a{end}"
        nibabel.save(nibabel.MGHImage(ARRAY.T, np.eye(4)), paths[end])
    for end in (".png", ".bmp"):
        paths[end] = folder / f"a{end}"
        Image.fromarray(ARRAY[0].astype(np.uint8)).save(paths[end])
    return paths


@pytest.mark.parametrize("name", ["a.nii", "A.NII.GZ", "a.Nii.Gz", "a.mha", "a.PNG", "a.dat", "a"])
def test_the_content_chooses_the_reader(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    for end, path in put_all(tmp_path).items():
        other = tmp_path / "other" / name
        shutil.copy(path, other)
        expected = ARRAY[:1] if end in (".png", ".bmp") else ARRAY
        assert np.array_equal(read(other).array[0], expected), end
        if end not in (".png", ".bmp", ".tif"):
            assert read(other).same_grid(read(path), 1e-6)


@pytest.mark.parametrize("name", ["two affines", "no code", "flipped"])
def test_letter_case_does_not_matter(tmp_path: Path, name: str) -> None:
    nibabel.save(nifti(*HEADERS[name], "meter"), tmp_path / "a.nii.gz")
    lower = read(tmp_path / "a.nii.gz")
    for upper in ("B.NII.GZ", "c.Nii.gZ"):
        shutil.copy(tmp_path / "a.nii.gz", tmp_path / upper)
        other = read(tmp_path / upper)
        assert np.array_equal(other.array, lower.array)
        assert other.header == lower.header
        assert other.same_grid(lower, 0)
    for upper in ("OUT.NII.GZ", "OUT.NRRD", "OUT.MHA", "OUT.TIF"):
        write(tmp_path / upper, lower)
        assert np.array_equal(read(tmp_path / upper).array, lower.array)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_gzip_streams(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30_000, (40, 60, 70)).astype(np.int16)
    write(tmp_path / "a.nii", Volume(noise[None], np.eye(4)))
    plain = (tmp_path / "a.nii").read_bytes()
    pieces = [plain[i : i + 65_280] for i in range(0, len(plain), 65_280)]  # as bgzip does
    members = b"".join(gzip.compress(piece, 1) for piece in pieces)
    whole = gzip.compress(plain)
    for content in (whole, members, members + gzip.compress(b"")):
        for after in (b"", bytes(600), b"signed", b"\n", b"\x1f"):
            (tmp_path / "a.nii.gz").write_bytes(content + after)
            assert np.array_equal(read(tmp_path / "a.nii.gz").array[0], noise)
    for content in (whole[:-1], whole[:-8], members[:-4], members[: len(members) // 2]):
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(ContextsegError, match="truncated or damaged"):
            read(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(ContextsegError, match=r"packed by gzip twice\. Remedy: unpack it once"):
        read(tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / "a.nrrd"))
    packed = gzip.compress((tmp_path / "a.nrrd").read_bytes())
    (tmp_path / "a.nrrd.gz").write_bytes(packed)
    with pytest.raises(ContextsegError, match="NRRD packed by gzip"):
        read(tmp_path / "a.nrrd.gz")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii.gz", b"hello", r"no NIfTI file, though its name ends in \.nii\.gz"),
        ("a.nii", b"hello", r"no NIfTI file, though .*begins with b'hello'"),
        ("a.nii", b"hello" * 500, "no NIfTI file"),
        ("a.nii.gz", gzip.compress(b"hello" * 500, mtime=0), "no NIfTI file"),
        ("a.NRRD", b"hello", r"no NRRD file, though its name ends in \.nrrd"),
        ("a.mha", b"hello", "no MetaImage file"),
        ("a.png", b"hello", "no PNG file"),
        ("a.jpg", b"hello", "no JPEG file"),
        ("a.mgz", b"hello" * 500, "no MGH file"),
        ("a.hdr", b"ENVI\nsamples = 4", "no Analyze file"),
        ("a.xyz", b"hello", "not an image of a known format"),
        ("notes", b"hello", "not an image of a known format"),
        ("a.nii.gz", b"", "the file is empty"),
        ("a.mha", b"", "the file is empty"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.nii.gz", b"<!DOCTYPE html><html>login", "a web page, not an image"),
        ("a.nii.gz", b"PK\x03\x04rest", "a zip archive. Remedy: unpack it"),
        ("a.gif", b"GIF89a", "a GIF picture, which is not read"),
        ("a.nii", b"\x5c\x01\x00\x00" + bytes(400), "no NIfTI file"),
    ],
)
def test_what_is_no_image_has_its_own_words(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContextsegError) as caught:
        read(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert re.search(message, str(caught.value))
    assert "looks truncated" not in caught.value.what


def test_the_libraries_are_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Their warnings name no file."""
    content = bytearray(nibabel.Nifti1Image(ARRAY.T, np.eye(4)).to_bytes())
    content[76:80] = bytes(4)  # pixdim[0], which nibabel mends with a warning
    content[254:256] = np.int16(99).tobytes()  # a code that does not exist
    (tmp_path / "a.nii").write_bytes(content)
    image = nibabel.AnalyzeImage(ARRAY.T, None)
    image.header["pixdim"][1:4] = [-1, 1, 1]
    nibabel.save(image, tmp_path / "b.hdr")
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / "c.tif"))
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        caplog.clear()
        capfd.readouterr()
        for name in ("a.nii", "b.hdr", "c.tif"):
            assert np.array_equal(read(tmp_path / name).array[0], ARRAY)
        (tmp_path / "c.tif").write_bytes((tmp_path / "c.tif").read_bytes()[:200])
        with pytest.raises(ContextsegError):
            read(tmp_path / "c.tif")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("nibabel")]


# --- other formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage])
def test_pairs_of_header_and_voxels(tmp_path: Path, kind: Any) -> None:
    image = kind(ARRAY.T, SFORM)
    nibabel.save(image, tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        scan = read(tmp_path / name)
        assert np.array_equal(scan.array[0], ARRAY)
        np.testing.assert_allclose(
            scan.affine[:, [2, 1, 0, 3]], nibabel.load(tmp_path / "a.img").affine, rtol=1e-6
        )
    write(tmp_path / "out.nii.gz", scan.with_array(ARRAY))
    assert far_mm(tmp_path / "a.hdr", tmp_path / "out.nii.gz") < 1e-4
    assert read(tmp_path / "out.nii.gz").same_grid(scan, 1e-4)
    said = " ".join(what for what, _ in scan.doubts)
    assert ("does not say which side" in said) == (kind is nibabel.AnalyzeImage)

    for end in (".hdr", ".img"):
        (tmp_path / f"a{end}").rename(tmp_path / f"B{end.upper()}")
    assert np.array_equal(read(tmp_path / "B.HDR").array[0], ARRAY)
    (tmp_path / "B.IMG").write_bytes((tmp_path / "B.IMG").read_bytes()[:-1])
    with pytest.raises(ContextsegError, match="truncated or damaged"):
        read(tmp_path / "B.HDR")
    (tmp_path / "B.IMG").unlink()
    with pytest.raises(ContextsegError, match=r"the file of its voxels, B\.img, is missing"):
        read(tmp_path / "B.HDR")


@pytest.mark.parametrize("end", [".mgz", ".mgh"])
def test_freesurfer(tmp_path: Path, end: str) -> None:
    affine = oblique()[:, [2, 1, 0, 3]]
    nibabel.save(nibabel.MGHImage(ARRAY.T, affine), tmp_path / f"a{end}")
    scan = read(tmp_path / f"a{end}")
    assert np.array_equal(scan.array[0], ARRAY)
    assert scan.array.dtype == np.int16
    np.testing.assert_allclose(scan.affine[:, [2, 1, 0, 3]], affine, atol=1e-4)
    content = (tmp_path / f"a{end}").read_bytes()
    (tmp_path / f"a{end}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ContextsegError, match="truncated or damaged"):
        read(tmp_path / f"a{end}")


def test_jpeg_is_read_with_a_doubt(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40), 90, np.uint8)).save(tmp_path / "a.jpg")
    scan = read(tmp_path / "a.jpg")
    assert scan.shape == (1, 30, 40)
    assert np.abs(scan.array.astype(int) - 90).max() < 3
    assert "compression changes intensities" in scan.doubts[0][0]


@pytest.mark.parametrize("end", [".png", ".tif", ".bmp"])
def test_the_numbers_of_a_palette_are_labels(tmp_path: Path, end: str) -> None:
    numbers = np.array([[0, 1, 2], [3, 3, 0]], np.uint8)
    picture = Image.fromarray(numbers, "P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 200])
    picture.save(tmp_path / f"a{end}")
    assert np.array_equal(read_labels(tmp_path / f"a{end}").array[0], numbers)
    assert np.array_equal(as_labels(tmp_path / f"a{end}").array[0], numbers)
    colours = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[:, None]
    assert np.array_equal(read(tmp_path / f"a{end}").array, colours)


def test_a_grey_palette_is_grey_values(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    picture.putpalette([7, 7, 7, 3, 3, 3, 0, 0, 0])
    picture.save(tmp_path / "a.png")
    for reader in (read, read_labels):
        assert np.asarray(reader(tmp_path / "a.png").array).reshape(2, 2).tolist() == [
            [7, 3],
            [0, 7],
        ]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("alpha", [255, 128, 0])
def test_a_constant_alpha_is_no_channel(tmp_path: Path, mode: str, alpha: int) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    channels = [grey] * (len(mode) - 1)
    full = np.stack([*channels, np.full_like(grey, alpha)], -1)
    Image.fromarray(full, mode).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png").array, np.stack(channels)[:, None])
    assert np.array_equal(read_labels(tmp_path / "a.png").array[0], grey)
    full[0, 0, -1] = 77
    Image.fromarray(full, mode).save(tmp_path / "b.png")
    assert len(read(tmp_path / "b.png").array) == len(mode)


# --- what check says ------------------------------------------------------------------------------


def findings(folder: Path) -> list[Finding]:
    """What `check` finds in images and labels of plain folders, a warning of few labels aside."""
    return [f for f in check(folder) if f.kind not in ("one-label", "constant")]


def put_pair(folder: Path, image: np.ndarray, forms: Any = (SFORM, SFORM)) -> None:
    for part, array in (("images", image), ("labels", (image > 20).astype(np.uint8))):
        (folder / part).mkdir(parents=True)
        file = nifti(*forms)
        file = nibabel.Nifti1Image(array, None, file.header)
        file.header.set_data_dtype(array.dtype)
        nibabel.save(file, folder / part / "a.nii.gz")


def test_check_warns_once_of_two_affines(tmp_path: Path) -> None:
    put_pair(tmp_path, ARRAY.T.astype(np.float32), (SFORM, ELSEWHERE))
    only = [f for f in findings(tmp_path) if f.kind == "header"]
    assert [(f.level, Path(f.where).parent.name) for f in only] == [("warning", "images")]
    assert "15 voxels apart" in only[0].what


@pytest.mark.parametrize("value", [-1.7976931348623157e308, 1e39, 3e38, np.inf, np.nan])
def test_check_names_intensities_that_float32_cannot_hold(tmp_path: Path, value: float) -> None:
    image = ARRAY.T.astype(np.float64)
    image[0, 0, 0] = value
    put_pair(tmp_path, np.nan_to_num(image, posinf=value, nan=0))
    nibabel.save(nibabel.Nifti1Image(image, SFORM), tmp_path / "images" / "a.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [f for f in findings(tmp_path) if f.kind == "not-finite"]
    assert len(found) == 1
    assert found[0].where.endswith("a.nii.gz")
    assert found[0].what.startswith("1 of 120 voxels")


def test_check_warns_of_jpeg(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        Image.fromarray(ARRAY[0].astype(np.uint8) // 20).save(tmp_path / part / "a.png")
    Image.fromarray(ARRAY[0].astype(np.uint8)).save(tmp_path / "images" / "a.jpg")
    (tmp_path / "images" / "a.png").unlink()
    assert any(f.kind == "header" and "a JPEG" in f.what for f in findings(tmp_path))


# --- label values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("largest", "kind"),
    [
        (1, "uint8"),
        (255, "uint8"),
        (256, "int16"),
        (32_767, "int16"),
        (40_000, "uint16"),
        (65_535, "uint16"),
        (65_536, "int32"),
        (614_454_277, "int32"),
        (2**31 - 1, "int32"),
    ],
)
def test_every_label_survives_in_the_smallest_type(
    tmp_path: Path, end: str, largest: int, kind: str
) -> None:
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1, 2:, 1:4] = largest
    for given in (labels, labels.astype(np.uint32), labels.astype(np.int32)):
        write(tmp_path / f"a{end}", Volume(given, np.eye(4)))
        assert read(tmp_path / f"a{end}").array.dtype == kind
        assert np.array_equal(read_labels(tmp_path / f"a{end}").array, labels)
    label = read_labels(tmp_path / f"a{end}").array
    assert set(np.unique(resample_labels(label, (5, 9, 11)))) == {0, largest}
    assert np.array_equal(as_labels(labels, like=Volume(label, np.eye(4))).array, labels)


def test_negative_labels_and_pictures_of_labels(tmp_path: Path) -> None:
    labels = np.array([[[-1, 0], [3, 255]]], np.int32)
    write(tmp_path / "a.nii.gz", Volume(labels, np.eye(4)))
    assert read(tmp_path / "a.nii.gz").array.dtype == np.int16
    assert np.array_equal(read_labels(tmp_path / "a.nii.gz").array, labels)
    write(tmp_path / "a.png", Volume(np.abs(labels), np.eye(4)))  # which holds no int32
    assert np.array_equal(read_labels(tmp_path / "a.png").array, np.abs(labels))
    write(tmp_path / "b.png", Volume(np.abs(labels) * 200, np.eye(4)))
    assert np.array_equal(read_labels(tmp_path / "b.png").array, np.abs(labels) * 200)
