"""Scans in and out of every format, turned every way, and resampled: held to nibabel, SimpleITK, scipy, brute force."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from contextseg import volume
from contextseg.volume import Volume, axis_moves, resample, resample_labels

DEMO = Path(volume.__file__).parent / "demo_data"
ORIENTATIONS = ["".join(o) for axes in itertools.permutations(("RL", "AP", "SI")) for o in itertools.product(*axes)]


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


def counting(shape: tuple[int, ...] = (4, 5, 6), affine: np.ndarray | None = None, dtype: type = np.int16) -> Volume:
    """Every voxel has a value of its own."""
    return Volume(np.arange(np.prod(shape)).reshape(shape).astype(dtype), oblique() if affine is None else affine)


def places_mm(v: Volume) -> np.ndarray:
    """Where each value of a `counting` volume lies, by plain matrix product: (N, 3), row = value."""
    index = np.indices(v.shape).reshape(3, -1)
    mm = (v.affine @ np.vstack([index, np.ones(index.shape[1])]))[:3].T
    return mm[np.argsort(v.array.ravel())]


# --- geometry -------------------------------------------------------------------------------------------------------


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
    assert scan.same_grid(Volume(scan.array, wider), tolerance_mm=0.21)
    assert not scan.same_grid(Volume(np.zeros((3, 4, 12)), np.eye(4)))


# --- resampling -----------------------------------------------------------------------------------------------------


def zoomed(array: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    factors = [new / n for new, n in zip(shape, array.shape)]
    return ndimage.zoom(array.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("shape", [(13, 7, 9), (5, 20, 11), (10, 12, 1), (1, 12, 14), (3, 3, 3)])
def test_resampling_equals_scipy(order: int, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(1).normal(0, 1000, (10, 12, 14)).astype(np.float32)
    np.testing.assert_allclose(resample(array, shape, order), zoomed(array, shape, order), atol=0.01)


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
