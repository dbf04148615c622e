"""Scans turned every way, resampled, and taken from whatever holds one.

Held to nibabel, SimpleITK, scipy and brute force.
"""

import base64
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.spatialimages import SpatialImage
from PIL import Image
from scipy import ndimage

from contextseg import volume
from contextseg.errors import ContextsegError
from contextseg.resampling import resample, resample_labels
from contextseg.volume import Volume, as_labels, as_volume, axis_moves, read, read_labels, write

DEMO = Path(volume.__file__).parent / "demo_data"
ORIENTATIONS = [
    "".join(o)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for o in itertools.product(*axes)
]


def oblique(degrees: float = 20.0) -> np.ndarray:
    """Anisotropic, turned about two axes, away from the origin."""
    a = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    sar = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0.0]])
    affine = np.eye(4)
    affine[:3, :3] = about_x @ about_z @ sar * [3.0, 1.5, 0.75]
    affine[:3, 3] = [-30, 12.5, 101]
    return affine


def counting(
    shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray | None = None, dtype: type = np.int16
) -> Volume:
    """Every voxel has a value of its own."""
    return Volume(
        np.arange(np.prod(shape)).reshape(shape).astype(dtype),
        oblique() if affine is None else affine,
    )


def places_mm(v: Volume) -> np.ndarray:
    """Where each value of a `counting` volume lies, by plain matrix product.

    (N, 3): the row is the value.
    """
    index = np.indices(v.shape).reshape(3, -1)
    mm = (v.affine @ np.vstack([index, np.ones(index.shape[1])]))[:3].T
    return mm[np.argsort(v.array.ravel())]


# --- geometry -------------------------------------------------------------------------------------


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("target", ORIENTATIONS)
def test_turning_moves_no_voxel_and_turns_back(target: str) -> None:
    scan = counting()
    turned = scan.oriented(target)
    assert turned.orientation == target
    assert turned.shape == tuple(scan.shape[i] for i in axis_moves(scan.orientation, target)[0])
    np.testing.assert_allclose(places_mm(turned), places_mm(scan), atol=1e-9)
    back = turned.oriented(scan.orientation)
    assert np.array_equal(back.array, scan.array)
    np.testing.assert_allclose(back.affine, scan.affine, atol=1e-9)


def test_turning_agrees_with_nibabel_and_keeps_channels() -> None:
    scan = counting((2, 4, 5, 6))
    turned = scan.oriented("SAR")  # nibabel's closest canonical, RAS in its order x, y, z
    file = nibabel.Nifti1Image(scan.array.transpose(3, 2, 1, 0), scan.affine[:, [2, 1, 0, 3]])
    canonical = nibabel.as_closest_canonical(file)
    assert np.array_equal(turned.array.transpose(3, 2, 1, 0), np.asarray(canonical.dataobj))
    np.testing.assert_allclose(turned.affine[:, [2, 1, 0, 3]], canonical.affine)


@pytest.mark.parametrize("wrong", ["SAS", "RAX", "SA", "SARS", ""])
def test_turning_to_nowhere_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="not an orientation"):
        counting().oriented(wrong)


def test_spacing_and_nearest_orientation_of_an_oblique_scan() -> None:
    scan = counting()
    assert scan.spacing_mm == pytest.approx((3.0, 1.5, 0.75))
    assert scan.orientation == "SAR"
    assert counting(affine=oblique(100)).orientation != "SAR"


def test_a_crop_stays_where_it_was() -> None:
    scan = counting()
    part = scan.cropped((slice(1, 3), slice(2, 5), slice(3, 4)))
    assert part.shape == (2, 3, 1)
    index = (1, 0, 0)
    there = scan.affine @ [2, 2, 3, 1]
    assert part.array[index] == scan.array[2, 2, 3]
    np.testing.assert_allclose(part.affine @ [*index, 1], there)


def test_how_far_apart_two_grids_lie() -> None:
    scan = Volume(np.zeros((3, 4, 11)), np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = [3, 4, 0]
    assert scan.apart_mm(Volume(scan.array, shifted)) == pytest.approx(5)
    wider = np.diag([1, 1, 1.02, 1])  # 0.02 mm a voxel, ten steps: the corner is off by 0.2 mm
    assert scan.apart_mm(Volume(scan.array, wider)) == pytest.approx(0.2)
    assert not scan.same_grid(Volume(scan.array, wider))
    assert scan.same_grid(Volume(scan.array, wider), tolerance_vox=0.21)
    assert not scan.same_grid(Volume(np.zeros((3, 4, 12)), np.eye(4)))


# --- resampling -----------------------------------------------------------------------------------


def zoomed(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = [new / n for new, n in zip(shape, array.shape)]
    return ndimage.zoom(
        array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True
    )


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(13, 7, 9), (5, 20, 11), (10, 12, 1), (1, 12, 14), (3, 3, 3)])
def test_resampling_equals_scipy(order: int, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(1).normal(0, 1000, (10, 12, 14)).astype(np.float32)
    np.testing.assert_allclose(
        resample(array, shape, order), zoomed(array, shape, order), atol=0.01
    )


def test_resampling_one_slice_and_a_mix_of_orders() -> None:
    rng = np.random.default_rng(2)
    flat = rng.normal(size=(1, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(resample(flat, (4, 6, 7), 3), np.repeat(flat, 4, 0), atol=1e-6)
    array = rng.normal(size=(6, 8, 9)).astype(np.float32)
    mixed = zoomed(zoomed(array, (9, 8, 9), 1), (9, 5, 12), 3)
    np.testing.assert_allclose(resample(array, (9, 5, 12), (1, 3, 3)), mixed, atol=1e-5)


def test_resampling_keeps_leading_axes_types_and_constants() -> None:
    array = np.random.default_rng(3).normal(size=(2, 3, 4, 5, 6))
    out = resample(array, (5, 4, 9), 1)
    assert out.shape == (2, 3, 5, 4, 9)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[1, 2], resample(array[1, 2], (5, 4, 9), 1), atol=1e-6)
    assert np.array_equal(resample(array, array.shape[-3:]), array.astype(np.float32))
    np.testing.assert_allclose(resample(np.full((4, 5, 6), 7.0), (9, 3, 8), 3), 7, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 21, 16), (25, 6, 33), (18, 14, 3), (4, 4, 4)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_resampling_labels_equals_brute_force(shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.choice([-1, 0, 0, 0, 2, 7, 300], (6, 5, 4))
    label = ndimage.zoom(coarse, 3, order=0).astype(np.int16)
    label[rng.random(label.shape) < 0.05] = 9  # single voxels too
    values = np.unique(label)
    shares = np.stack([zoomed(label == value, shape, 1) for value in values])
    out = resample_labels(label, shape)
    assert out.dtype == np.int16
    assert out.shape == shape
    won = np.take_along_axis(shares, np.searchsorted(values, out)[None], 0)[0]
    np.testing.assert_allclose(won, shares.max(0), atol=1e-6)  # where two tie, either may win
    clear = np.sort(shares, 0)[-1] - np.sort(shares, 0)[-2] > 1e-5
    assert clear.any()
    assert np.array_equal(out[clear], values[shares.argmax(0)][clear])


def test_resampling_labels_of_one_value_and_onto_the_same_grid() -> None:
    assert (resample_labels(np.full((3, 4, 5), 6, np.uint8), (5, 2, 7)) == 6).all()
    label = counting().array
    assert resample_labels(label, label.shape) is label


# --- anything that is an image --------------------------------------------------------------------

AFFINES = {
    "plain": np.diag([3.0, 1.5, 0.75, 1]),
    "oblique": oblique(),
    "very oblique": oblique(100),
    "flipped": oblique() @ np.diag([-1.0, 1, -1, 1]),
    "mirrored": oblique(35) @ np.diag([1.0, 1, -1, 1]),
}


def nibabel_image(array: np.ndarray, affine: np.ndarray) -> Any:
    """A nibabel image, axes x, y, z and the channel last, of an array (C, D, H, W) or (D, H, W)."""
    axes = (3, 2, 1, 0) if array.ndim == 4 else (2, 1, 0)
    return nibabel.Nifti1Image(array.transpose(axes), affine[:, [2, 1, 0, 3]])


def itk_image(array: np.ndarray, affine: np.ndarray) -> Any:
    """A SimpleITK image, a vector image where there are channels; its axes are L, P, S."""
    vector = array.ndim == 4
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if vector else array, isVector=vector)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def assert_same(one: Volume, other: Volume) -> None:
    assert one.array.dtype == other.array.dtype
    assert np.array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, rtol=1e-6, atol=1e-6)
    assert one.orientation == other.orientation


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 6), (2, 4, 5, 6), (3, 1, 5, 6)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_an_image_in_memory_is_what_reading_its_file_gives(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], dtype: type
) -> None:
    array = counting(shape, dtype=dtype).array
    by_nibabel = nibabel_image(array, affine)
    nibabel.save(by_nibabel, tmp_path / "a.nii.gz")
    assert_same(as_volume(by_nibabel), read(tmp_path / "a.nii.gz"))
    assert_same(as_volume(nibabel.load(tmp_path / "a.nii.gz")), read(tmp_path / "a.nii.gz"))

    by_itk = itk_image(array, affine)
    for end in (".mha", ".nrrd"):
        sitk.WriteImage(by_itk, str(tmp_path / f"a{end}"))
        assert_same(as_volume(by_itk), read(tmp_path / f"a{end}"))
        assert_same(
            as_volume(sitk.ReadImage(str(tmp_path / f"a{end}"))), read(tmp_path / f"a{end}")
        )

    # Both libraries, one counting to the right and front and one to the left and back, agree.
    assert_same(as_volume(by_itk), as_volume(by_nibabel))
    expected = array if array.ndim == 4 else array[None]
    assert_same(as_volume(by_itk), Volume(expected, affine))


@pytest.mark.parametrize("target", ORIENTATIONS)
def test_an_image_in_memory_in_any_orientation(target: str) -> None:
    scan = counting((2, 4, 5, 6)).oriented(target)
    assert_same(as_volume(nibabel_image(scan.array, scan.affine)), scan)
    assert_same(as_volume(itk_image(scan.array, scan.affine)), scan)


def test_a_nibabel_image_with_scaling_vector_bytes_or_no_affine(tmp_path: Path) -> None:
    array = counting((2, 4, 5, 6)).array.transpose(3, 2, 1, 0)
    vector = nibabel.Nifti1Image(array[..., None, :], np.eye(4))
    nibabel.save(vector, tmp_path / "vector.nii")
    assert_same(as_volume(vector), read(tmp_path / "vector.nii"))

    content = bytearray(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())
    content[112:120] = np.array([0.1, -1024], "<f4").tobytes()
    (tmp_path / "scaled.nii").write_bytes(content)
    scaled = as_volume(nibabel.load(tmp_path / "scaled.nii"))
    assert scaled.array.dtype == np.float32
    assert_same(scaled, read(tmp_path / "scaled.nii"))

    big_endian = nibabel.Nifti1Image(array.astype(">i2"), np.eye(4))
    assert as_volume(big_endian).array.dtype == np.dtype("=i2")
    assert_same(as_volume(big_endian), as_volume(nibabel.Nifti1Image(array, np.eye(4))))

    homeless = nibabel.Nifti1Image(array, None)
    nibabel.save(homeless, tmp_path / "homeless.nii")
    assert_same(as_volume(homeless), read(tmp_path / "homeless.nii"))
    assert_same(as_volume(nibabel.Nifti2Image(array, oblique())), as_volume(vector_of(array)))
    assert_same(as_volume(nibabel.MGHImage(array, oblique())), as_volume(vector_of(array)))


def vector_of(array: np.ndarray) -> Any:
    return nibabel.Nifti1Image(array, oblique())


def test_a_flat_or_four_dimensional_itk_image(tmp_path: Path) -> None:
    array = counting((3, 2, 5, 6)).array
    series = sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in array])
    sitk.WriteImage(series, str(tmp_path / "series.nrrd"))
    assert_same(as_volume(series), read(tmp_path / "series.nrrd"))
    assert np.array_equal(as_volume(series).array, array)
    flat = sitk.GetImageFromArray(array[0, 0])
    flat.SetSpacing((0.5, 2.0))
    assert as_volume(flat).spacing_mm == (1, 2, 0.5)
    assert np.array_equal(as_volume(flat).array, array[:1, :1])


def test_a_path_a_volume_and_several_channels(tmp_path: Path) -> None:
    scans = [counting(), counting(dtype=np.float32)]
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.mha"]
    for path, scan in zip(paths, scans):
        assert scan.save(path) == path
        assert_same(as_volume(path), read(path))
        assert_same(as_volume(str(path)), read(path))
        assert_same(as_volume(scan), Volume(scan.array[None], scan.affine))
    assert_same(as_volume(paths), read(*paths))
    images = [nibabel_image(scans[0].array, oblique()), itk_image(scans[1].array, oblique())]
    assert_same(as_volume(images), as_volume(scans))
    assert as_volume(scans).array.shape == (2, 4, 5, 6)
    image = counting((2, 4, 5, 6))
    assert as_volume(image) is image
    moved = Volume(scans[1].array, oblique(30))
    with pytest.raises(ContextsegError, match="channel 2: its grid differs from that of channel 1"):
        as_volume([scans[0], moved])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_array_lies_as_its_orientation_says(orientation: str) -> None:
    array = counting().array
    scan = as_volume(array, (3, 1.5, 0.75), orientation)
    assert scan.orientation == orientation
    assert scan.spacing_mm == (3, 1.5, 0.75)
    assert np.array_equal(scan.array, array[None])
    assert np.linalg.det(scan.affine) != 0


def test_an_array_is_axial_unless_said_otherwise_and_may_have_channels() -> None:
    array = counting((2, 4, 5, 6)).array
    scan = as_volume(array, (3, 2, 1))
    assert scan.orientation == "SAR"
    assert scan.array is array
    assert np.shares_memory(as_volume(array[0], [3, 2, 1]).array, array)
    both = as_volume([array[0], array[1]], (3, 2, 1))
    assert np.array_equal(both.array, array)


ARRAY = np.zeros((4, 5, 6))


@pytest.mark.parametrize(
    ("source", "spacing_mm", "message"),
    [
        (ARRAY[0], (1, 1, 1), "a 2-D array"),
        (ARRAY[None, None], (1, 1, 1), "a 5-D array"),
        (np.float32(3), (1, 1, 1), "a 0-D array"),
        (ARRAY[:0], (1, 1, 1), r"shape \(0, 5, 6\), without a voxel"),
        (ARRAY.astype(complex), (1, 1, 1), "voxels of type complex128"),
        (ARRAY.astype(object), (1, 1, 1), "voxels of type object"),
        (ARRAY.astype(str), (1, 1, 1), "voxels of type <U"),
        (ARRAY, None, r"give spacing_mm=\(D, H, W\)"),
        (ARRAY, (1, 1), "spacing_mm has 2 numbers, not 3"),
        (ARRAY, 1.0, "spacing_mm has 1 number, not 3"),
        (ARRAY, (1, 1, 0), "spacing_mm is not above 0"),
        (ARRAY, (1, -1, 1), "spacing_mm is not above 0"),
        (ARRAY, (1, np.nan, 1), "spacing_mm is not above 0"),
        (ARRAY, "1,1,one", "spacing_mm is not three numbers"),
        (Volume(ARRAY, np.eye(4)), (1, 1, 1), "a spacing of its own. Remedy: leave it out"),
        (Volume(ARRAY[0], np.eye(4)), None, "Volume: a 2-D array"),
        (Volume(ARRAY, np.eye(3)), None, "not an invertible 4 x 4 matrix"),
        (Volume(ARRAY, np.zeros((4, 4))), None, "not an invertible 4 x 4 matrix"),
        (Volume(ARRAY, np.full((4, 4), np.nan)), None, "not an invertible 4 x 4 matrix"),
        (None, None, "NoneType: not an image"),
        (3, None, "int: not an image"),
        ({"image": ARRAY}, None, "dict: not an image"),
        ([], None, "an empty list"),
        (ARRAY.tolist(), (1, 1, 1), "a list of lists. Remedy: give a numpy array"),
        (nibabel.Nifti1Header(), None, "not an image"),
        (sitk.ImageFileReader(), None, "not an image"),
        ("nowhere.nii.gz", None, "nowhere.nii.gz: the file does not exist"),
        (nibabel.Nifti1Image(np.zeros((2, 3, 4, 1, 2, 2)), np.eye(4)), None, "6 dimensions"),
        (nibabel.Nifti1Image(np.zeros((2, 3, 4), complex), np.eye(4)), None, "complex numbers"),
        (SpatialImage(np.zeros((2, 3, 4)), np.diag([1.0, 0, 1, 1])), None, "degenerate"),
        (sitk.Image([2, 3, 4], sitk.sitkComplexFloat32), None, "image: its voxels are complex"),
        (sitk.Image([2, 3, 4], sitk.sitkLabelUInt8), None, "run-length labels"),
        (sitk.Image([2, 3, 4, 2], sitk.sitkVectorUInt8, 2), None, "4 dimensions"),
    ],
)
def test_what_is_no_image_says_so(source: Any, spacing_mm: Any, message: str) -> None:
    with pytest.raises(ContextsegError, match=message):
        as_volume(source, spacing_mm)


def test_an_orientation_that_is_none() -> None:
    with pytest.raises(ContextsegError, match="orientation=SAS"):
        as_volume(ARRAY, (1, 1, 1), "SAS")


def test_a_damaged_file_behind_a_nibabel_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 30000, (9, 20, 20)).astype(np.int16)
    write(tmp_path / "a.nii.gz", Volume(noise, np.eye(4)))
    image = nibabel.load(tmp_path / "a.nii.gz")
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ContextsegError, match=r"a\.nii\.gz: cannot be read, it looks truncated"):
        as_volume(image)


def test_no_library_is_imported_for_an_array() -> None:
    code = (
        "import sys, numpy as np; from contextseg.volume import as_labels, as_volume; "
        "scan = as_volume(np.zeros((2, 3, 4)), (1, 1, 1)); "
        "as_labels(np.zeros((2, 3, 4), int), scan); "
        "print({'SimpleITK', 'nibabel', 'PIL', 'torch'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert printed.decode().strip() == "set()"


def test_labels_from_anything(tmp_path: Path) -> None:
    label = counting()
    write(tmp_path / "a.nii.gz", label)
    expected = read_labels(tmp_path / "a.nii.gz")
    sources = [
        tmp_path / "a.nii.gz",
        str(tmp_path / "a.nii.gz"),
        label,
        label.with_array(label.array[None].astype(np.float64)),
        nibabel_image(label.array, label.affine),
        itk_image(label.array, label.affine),
    ]
    for source in sources:
        assert_same(as_labels(source), expected)
        assert_same(as_labels(source, like=as_volume(label)), expected)
    for array in (label.array, label.array.astype(np.uint64), label.array[None]):
        assert_same(as_labels(array, like=as_volume(label)), expected)
    assert as_labels(label.array > 3, like=label).array.dtype == np.int16
    assert as_labels(label.array.astype(np.int64) + 2**17, like=label).array.dtype == np.int32


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ARRAY + 0.5, "120 voxels whose label is not a whole number, such as 0.5"),
        (np.stack([ARRAY, ARRAY + 1]), "a label map with 2 channels"),
        (ARRAY[1:], r"its grid differs from the scan's \(3 x 5 x 6 and 4 x 5 x 6 voxels\)"),
        (Volume(ARRAY, oblique(21)), "its grid differs from the scan's"),
        (ARRAY[0], "a 2-D array"),
        (ARRAY + 2.0**40, "use whole numbers from 0"),
    ],
)
def test_labels_that_do_not_fit(source: Any, message: str) -> None:
    with pytest.raises(ContextsegError, match=message):
        as_labels(source, like=counting())
    with pytest.raises(ContextsegError, match="does not say where its voxels lie"):
        as_labels(ARRAY)


# --- how a volume looks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "text"),
    [
        ((75, 70, 60), np.int16, "Volume 75 x 70 x 60 int16, 3.27 x 1.95 x 1.95 mm, SAR"),
        ((1, 75, 70, 60), np.int16, "Volume 75 x 70 x 60 int16, 3.27 x 1.95 x 1.95 mm, SAR"),
        ((2, 4, 5, 6), np.float32, "Volume 2 channels of 4 x 5 x 6 float32, 3.27 x 1.95 x 1.95 mm"),
    ],
)
def test_a_volume_is_printed_in_one_line(shape: tuple[int, ...], dtype: type, text: str) -> None:
    scan = as_volume(np.zeros((1, 1, 1)), (3.2651, 1.953, 1.953))
    assert repr(scan.with_array(np.zeros(shape, dtype))).startswith(text)


def picture(scan: Volume) -> np.ndarray:
    """The pixels of the picture that a notebook shows."""
    html = scan._repr_html_()
    assert repr(scan) in html
    content = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert content
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content[1]))))


@pytest.mark.parametrize("orientation", ["SAR", "SPL", "RAS", "PIR"])
def test_a_picture_is_the_middle_axial_slice_as_radiologists_see_it(orientation: str) -> None:
    scan = as_volume(np.zeros((5, 40, 20)), (7, 1, 1))
    scan.array[0, 2] = np.random.default_rng(0).normal(0, 1, (40, 20))
    scan.array[0, 2, -5:] = 50  # the front
    scan.array[0, 2, :, -4:] = 100  # the patient's right
    pixels = picture(scan.oriented(orientation))
    assert pixels.shape == (256, 128)  # 40 x 20 mm
    assert pixels[128, :20].min() == 255
    assert pixels[:20, 64].min() > 100
    assert pixels[128, 40:].max() < 60
    assert pixels[200:, 64].max() < 60


def test_a_picture_is_in_millimetres_and_survives_odd_numbers() -> None:
    flat = as_volume(np.zeros((3, 10, 10), np.float32), (1, 1, 4))
    assert picture(flat).shape == (64, 256)
    assert picture(flat).max() == 0
    flat.array[...] = np.nan
    assert picture(flat).shape == (64, 256)
    outlier = as_volume(np.random.default_rng(0).normal(0, 1, (1, 64, 64)), (1, 1, 1))
    outlier.array[0, 0, 5, 5] = 1e6
    assert picture(outlier).mean() > 100  # a percentile, not the maximum
    empty = flat.with_array(np.zeros((0, 10, 10)))
    assert empty._repr_html_() == repr(empty)


def test_a_label_map_is_shown_in_colours_where_it_is_labelled() -> None:
    label = as_labels(np.zeros((9, 8, 8), np.int16), like=as_volume(np.zeros((9, 8, 8)), (1, 1, 1)))
    assert picture(label).shape == (256, 256, 3)
    assert picture(label).max() == 0
    label.array[7, :4] = 1  # the back half of a slice near the head
    label.array[7, 4:, :4] = -1  # not labelled: front left
    label.array[7, 4:, 4:] = 2
    pixels = picture(label)
    assert len({tuple(pixels[200, 64]), tuple(pixels[64, 64]), tuple(pixels[64, 200])}) == 3
    assert tuple(pixels[64, 200]) == (70, 70, 70)
