"""Preprocessing of one scan: it can be undone to the voxel, and no patient is ever cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import laws
from contextseg.data import prepare as room
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import body_mask, normalise, prepare, undo
from contextseg.errors import ContextsegError
from contextseg.predict import labels_from_slabs
from contextseg.volume import Volume, read, read_labels

DEMO = Path(room.__file__).parents[1] / "demo_data"
SAR = np.array(
    [[0.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
)  # D to the head, H to the front, W right
CT = Channel("CT", "ct", low=-100.0, high=300.0, mean=50.0, sd=80.0)


def at(spacing: tuple[float, float, float], *channels: Channel, **changes: object) -> Plan:
    """A 3-D plan at that spacing."""
    return replace(
        laws.plan(), spacing_mm=spacing, channels=channels or laws.plan().channels, **changes
    )


def sar(spacing: tuple[float, float, float]) -> np.ndarray:
    return SAR @ np.diag([*spacing, 1.0])


def ball(
    shape: tuple[int, ...],
    centre: tuple[float, ...],
    radius: float,
    mm: tuple[float, ...] = (1, 1, 1),
) -> np.ndarray:
    """Voxels nearer than `radius` mm to the centre, which is in voxels."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return (((grid - np.array(centre)) * np.array(mm)) ** 2).sum(-1) < radius**2


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A lopsided patient (1, 14, 17, 20) in air, and labels of three classes without symmetry."""
    image = np.zeros((14, 17, 20), np.float32)
    image[2:12, 3:15, 4:18] = 50 + np.random.default_rng(0).random((10, 12, 14))
    label = np.zeros((14, 17, 20), np.int16)
    label[3:6, 4:8, 5:9], label[8, 12, 15], label[10, 4, 6:9] = 1, 2, 3
    return image[None], label


# --- there and back -------------------------------------------------------------------------------


def test_all_48_orientations_become_one_and_go_back_to_the_voxel() -> None:
    image, label = scene()
    spacing = np.array([2.5, 1.5, 1.0])
    plan = at((2.5, 1.5, 1.0))
    reference = prepare(Volume(image, sar((2.5, 1.5, 1.0))), plan, "same", label)
    assert reference[0].shape == (1, 10, 12, 14)  # the body's box
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        flips = tuple(axis for axis, sign in enumerate(signs) if sign < 0)
        stored = np.flip(image.transpose(0, *(1 + i for i in order)), [1 + axis for axis in flips])
        stored_label = np.flip(label.transpose(order), flips)
        # By hand: stored axis a is the scene's axis order[a], from the other end if flipped.
        affine = np.eye(4)
        for axis, (i, sign) in enumerate(zip(order, signs)):
            affine[:3, axis] = SAR[:3, i] * spacing[i] * sign
            affine[:3, 3] += SAR[:3, i] * spacing[i] * (0 if sign > 0 else label.shape[i] - 1)
        found = prepare(Volume(stored, affine), plan, "same", stored_label)
        for mine, theirs in zip(found[:3], reference[:3]):
            np.testing.assert_array_equal(mine, theirs)
        back = undo(found[1], found[3])
        np.testing.assert_array_equal(back.array, stored_label)
        np.testing.assert_array_equal(back.affine, affine)
        assert back.array.dtype == np.int16
        assert back.array.flags.c_contiguous


@pytest.mark.parametrize(
    "degrees", [(10, 0, 0), (0, 45, 0), (45, 45, 0), (30, -40, 75), (0, 0, 45), (135, 0, 45)]
)
def test_oblique_scans_go_back_to_the_voxel(degrees: tuple[int, int, int]) -> None:
    turn = np.eye(3)
    for plane, angle in zip(((1, 2), (0, 2), (0, 1)), np.deg2rad(degrees)):
        one = np.eye(3)
        one[np.ix_(plane, plane)] = [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
        turn = turn @ one
    affine = np.eye(4)
    affine[:3, :3] = turn @ SAR[:3, :3] * [3.0, 0.8, 1.1]
    affine[:3, 3] = -30, 12, 7
    image, label = scene()
    scan = Volume(image, affine)
    for orientation in ("SAR", "RSA", "LIP"):
        plan = at(scan.oriented(orientation).spacing_mm, orientation=orientation)
        _, classes, _, record = prepare(scan, plan, "", label)
        back = undo(classes, record)
        np.testing.assert_array_equal(back.array, label)
        np.testing.assert_array_equal(back.affine, affine)


@pytest.mark.parametrize(
    "spacing", [(3.0, 1.0, 1.0), (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (5.0, 0.7, 0.7)]
)
@pytest.mark.parametrize("target", [(2.0, 2.0, 2.0), (3.0, 1.5, 1.5), (1.0, 1.0, 1.0)])
def test_a_ball_survives_another_spacing(
    spacing: tuple[float, ...], target: tuple[float, ...]
) -> None:
    shape = tuple(round(48 / s) for s in spacing)
    centre = tuple(22 / s for s in spacing)
    label = ball(shape, centre, 13, spacing).astype(np.int16)
    body = ball(shape, tuple((n - 1) / 2 for n in shape), 23, spacing)
    scan = Volume(body[None] * np.float32(80), sar(spacing))
    image, small, _, record = prepare(scan, at(target), "", label)
    assert (
        image.shape[1:]
        == small.shape
        == tuple(round(n * s / t) for n, s, t in zip(record.shape, spacing, target))
    )
    logits = torch.from_numpy(np.stack([small == 0, small == 1])).float()
    back = undo(labels_from_slabs([(0, len(small), logits)], small.shape, record.shape), record)
    assert back.array.shape == label.shape
    assert (
        2 * ((back.array == 1) & (label == 1)).sum() / ((back.array == 1).sum() + label.sum()) > 0.9
    )


def test_what_lies_outside_the_box_gets_what_was_asked_for() -> None:
    image, _ = scene()
    _, _, _, record = prepare(Volume(image, sar((1, 1, 1))), at((1, 1, 1)))
    assert record.box == ((2, 12), (3, 15), (4, 18))
    back = undo(np.full(record.shape, 3, np.uint8), record, outside=7).array
    assert (back[2:12, 3:15, 4:18] == 3).all()
    assert (back == 7).sum() == 14 * 17 * 20 - 10 * 12 * 14


def test_a_label_outside_the_body_is_never_cropped_away() -> None:
    image, label = scene()
    label[13, 0, 0] = 2
    _, classes, body, record = prepare(Volume(image, sar((1, 1, 1))), at((1, 1, 1)), "", label)
    assert record.box == ((2, 14), (0, 15), (0, 18))
    assert classes[-1, 0, 0] == 2
    assert not body[-1].any()  # it is in the box, and still no body
    np.testing.assert_array_equal(undo(classes, record).array, label)


def test_one_slice(tmp_path: Path) -> None:
    image = np.zeros((1, 1, 40, 50), np.float32)
    image[0, 0, 5:35, 10:45] = 100
    label = ball((1, 40, 50), (0, 20, 25), 6).astype(np.int16)
    scan = Volume(image, sar((5, 1, 1)))
    found, classes, body, record = prepare(scan, at((5, 1, 1)), "", label)
    assert found.shape == (1, 1, 30, 35)
    assert body.all()
    np.testing.assert_array_equal(undo(classes, record).array, label)
    assert prepare(scan, at((1, 2, 2)))[0].shape == (1, 5, 15, 18)  # 35 / 2 rounds to even


def test_the_callers_arrays_stay_as_they_were() -> None:
    image, label = scene()
    before = image.copy(), label.copy()
    for target in ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)):
        prepare(Volume(image, sar((1, 1, 1))), at(target), "", label)
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(label, before[1])


def test_a_spline_adds_no_intensity_that_the_scan_has_not() -> None:
    image = np.zeros((1, 20, 20, 20), np.float32)
    image[0, 5:15, 5:15, 5:15] = 1000
    scan = Volume(image, sar((1, 1, 1)))
    label = np.ones((20, 20, 20), np.int16)  # keeps the whole image in the box
    found = prepare(scan, at((0.7, 0.7, 0.7)), "", label)[0]
    assert ndimage.zoom(image[0], 29 / 20, order=3, mode="nearest", grid_mode=True).min() < -50
    assert (found.min(), found.max()) == (0, 1000)


@pytest.mark.parametrize(
    ("spacing", "orders"), [((2.0, 1.0, 1.0), (3, 3, 3)), ((5.0, 1.0, 1.0), (1, 3, 3))]
)
def test_resampling_is_scipys_spline_linear_across_thick_slices(
    spacing: tuple[float, float, float], orders: tuple[int, int, int]
) -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((12, 20, 24)), 1.5)
    found = prepare(
        Volume(image[None], sar(spacing)), at(spacing), "", np.ones(image.shape, np.int16)
    )[0]
    np.testing.assert_array_equal(found[0], image.astype(np.float32))  # the same spacing: as it was
    target = (spacing[0] * 2 / 3, 1.25, 0.8)
    plan = at(target)
    found = prepare(Volume(image[None], sar(spacing)), plan, "", np.ones(image.shape, np.int16))[0]
    expected = image
    for axis, (order, n) in enumerate(zip(plan.orders, (18, 16, 30))):
        zoom = [1.0, 1.0, 1.0]
        zoom[axis] = n / image.shape[axis]
        expected = ndimage.zoom(expected, zoom, order=order, mode="nearest", grid_mode=True)
    assert plan.orders == orders
    np.testing.assert_allclose(found[0], expected.clip(image.min(), image.max()), atol=2e-5)


# --- bad scans ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1000.1, -3.5])
@pytest.mark.parametrize(
    "channel", [Channel("MR", "zscore"), CT, Channel("x", "rescale"), Channel("x", "none")]
)
def test_a_constant_image_is_all_body_and_stays_finite(value: float, channel: Channel) -> None:
    scan = Volume(np.full((1, 7, 8, 9), value, np.float32), sar((1, 1, 1)))
    plan = at((1.3, 0.9, 0.9), channel)
    image, _, body, record = prepare(scan, plan)
    assert record.box == ((0, 7), (0, 8), (0, 9))
    assert body.all()
    x = normalise(image, plan.channels, record)
    assert np.ptp(x) == 0
    if channel.kind in ("zscore", "rescale"):
        assert not x.any()


def test_a_body_without_contrast_gives_small_numbers() -> None:
    image = np.zeros((1, 9, 12, 12), np.float32)
    image[0, :, 3:9, 3:9] = 5
    plan = at((1, 1, 1))
    label = np.ones((9, 12, 12), np.int16)
    image, _, body, record = prepare(Volume(image, sar((1, 1, 1))), plan, "", label)
    assert not body.all()
    assert sorted(np.unique(normalise(image, plan.channels, record)).tolist()) == [
        -1,
        0,
    ]  # spread: 5, the whole range


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_no_number_is_a_problem_that_names_the_scan(bad: float) -> None:
    image = np.zeros((1, 4, 4, 4))
    image[0, 1, 2, 3] = bad
    with (
        pytest.raises(ContextsegError, match=r"^patient_7: 1 intensity is NaN or infinite"),
        np.errstate(over="ignore"),
    ):
        prepare(Volume(image, sar((1, 1, 1))), at((1, 1, 1)), "patient_7")


def test_channels_that_are_missing_or_broken_are_named() -> None:
    image, _ = scene()
    plan = at((1, 1, 1), Channel("T1", "zscore"), Channel("T2", "zscore"))
    with pytest.raises(
        ContextsegError, match=r"p: 1 channel; this data set has 2.*T1, T2, in this order"
    ):
        prepare(Volume(image, sar((1, 1, 1))), plan, "p")
    both = np.concatenate([image, image])
    both[1, 0, 0, :2] = np.nan
    with pytest.raises(ContextsegError, match=r"t2\.nii: 2 intensities are NaN"):
        room.check_channels(both, ["T1", "T2"], ["t1.nii", "t2.nii"])
    with pytest.raises(ContextsegError, match=r"both\.nii: 2 intensities are NaN"):
        room.check_channels(both, ["T1", "T2"], ["both.nii"])


# --- intensities ----------------------------------------------------------------------------------


def test_zscore_is_mean_0_and_deviation_1_inside_the_body_whatever_lies_outside() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1, (2, 20, 24, 24)).astype(np.float32)
    inside = ball((20, 24, 24), (10, 12, 12), 8)
    image[:, inside] = rng.normal([[300], [900]], [[40], [100]], (2, inside.sum()))
    plan = at((1, 1, 1), Channel("T1", "zscore"), Channel("T2", "zscore"))
    scan = Volume(image, sar((1, 1, 1)))
    raw, _, body, record = prepare(scan, plan, "", np.ones((20, 24, 24), np.int16))
    np.testing.assert_array_equal(body, inside)
    x = normalise(raw, plan.channels, record)
    assert x.dtype == np.float32
    for channel in x:
        assert channel[body].mean() == pytest.approx(0, abs=1e-4)
        assert channel[body].std() == pytest.approx(1, abs=1e-4)
        assert channel[~body].mean() < -5


def test_ct_rescale_and_none_by_hand() -> None:
    image = np.stack([np.linspace(-1000, 1400, 24, dtype=np.float32).reshape(2, 3, 4)] * 4)
    kinds = (CT, Channel("a", "rescale"), Channel("b", "rescale", 0.0, 255.0), Channel("c", "none"))
    record = prepare(
        Volume(image, sar((1, 1, 1))), at((1, 1, 1), *kinds), "", np.ones((2, 3, 4), np.int16)
    )[3]
    x = normalise(image, kinds, record)
    np.testing.assert_allclose(x[0], (np.clip(image[0], -100, 300) - 50) / 80, atol=1e-6)
    np.testing.assert_allclose(x[1], (image[1] + 1000) / 2400, atol=1e-6)
    np.testing.assert_allclose(x[2], image[2] / 255, atol=1e-6)
    np.testing.assert_array_equal(x[3], image[3])


# --- the body -------------------------------------------------------------------------------------


def trunk(shape: tuple[int, int, int] = (24, 80, 96)) -> tuple[np.ndarray, np.ndarray]:
    """A CT (D, H, W) of an elliptic cylinder with two lungs, from the first slice to the last; and
    the cylinder.
    """
    _, h, w = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    body = ((h - 36) / 26) ** 2 + ((w - 48) / 40) ** 2 < 1
    image = np.where(body, 30.0, -1000.0)
    for centre in (30, 66):
        image[((h - 36) / 14) ** 2 + ((w - centre) / 11) ** 2 < 1] = -850
    return image + np.random.default_rng(0).normal(0, 15, shape), body


@pytest.mark.parametrize("gap", [0, 4])
def test_ct_body_holds_the_lungs_and_leaves_the_table(gap: int) -> None:
    image, body = trunk()
    low = (
        int(np.flatnonzero(body.any((0, 2)))[-1]) + 1 + gap
    )  # a table top of two voxels, below the back or touching it
    image[:, low : low + 2, 4:92] = 200
    image[:, 76:, 40:44] = 500  # and a rail of it
    mask = body_mask(Volume(image[None], sar((3, 3, 3))), ct=True)
    assert not (body & ~mask).any()
    added = mask & ~body
    assert added[:, low + 2 :].sum() == 0
    if gap:
        assert not added.any()
    else:
        assert added.sum() < 0.02 * body.sum()  # a little of what touches


def test_the_body_is_the_same_in_every_orientation() -> None:
    image, _ = trunk()
    image[:, 68:70, 4:92] = 200
    scan = Volume(image[None], sar((3, 2, 2)))
    mask = scan.with_array(body_mask(scan, ct=True))
    for orientation in ("RSA", "PIL", "ALS"):
        turned = body_mask(scan.oriented(orientation), ct=True)
        np.testing.assert_array_equal(turned, mask.oriented(orientation).array)


def test_two_legs_are_one_patient_and_a_coin_is_none() -> None:
    legs = np.zeros((30, 60, 60), bool)
    legs[ball((1, 60, 60), (0, 30, 15), 11).repeat(30, 0)] = True
    legs[ball((1, 60, 60), (0, 30, 45), 7).repeat(30, 0)] = True
    coin = np.zeros_like(legs)
    coin[10:13, 3:7, 28:32] = True
    for ct, air, tissue in ((True, -1000, 40), (False, 3, 200)):
        image = np.where(legs | coin, tissue, air) + np.random.default_rng(0).normal(
            0, 2, legs.shape
        )
        np.testing.assert_array_equal(body_mask(Volume(image[None], sar((2, 2, 2))), ct), legs)


def test_an_arm_at_the_edge_of_the_image_is_no_table() -> None:
    body = ball((1, 60, 60), (0, 30, 30), 18).repeat(20, 0)
    body[:, 15:50, :2] = True  # two voxels of an arm that the image cuts off
    image = np.where(body, 40, -1000)
    np.testing.assert_array_equal(body_mask(Volume(image[None], sar((3, 3, 3))), ct=True), body)


def test_mr_noise_is_no_body_and_dark_muscle_in_bright_fat_is() -> None:
    rng = np.random.default_rng(0)
    fat, muscle = (
        ball((20, 48, 48), (10, 24, 24), 22, (0, 1, 1)),
        ball((20, 48, 48), (10, 24, 24), 17, (0, 1, 1)),
    )
    clean = np.where(muscle, 250.0, np.where(fat, 1000.0, 0.0))
    noisy = np.abs(
        clean + rng.normal(0, 25, clean.shape) + 1j * rng.normal(0, 25, clean.shape)
    )  # Rician
    mask = body_mask(Volume(noisy[None], sar((3, 2, 2))), ct=False)
    np.testing.assert_array_equal(mask, fat)
    crop = noisy[:, 8:30, 14:40]  # muscle and fat alone, no air: nothing may be cut
    assert body_mask(Volume(crop[None], sar((3, 2, 2))), ct=False).mean() > 0.99


@pytest.mark.parametrize("shift", [0.0, 1.7])
def test_a_stripped_brain_is_all_that_differs_from_the_constant_around_it(shift: float) -> None:
    brain = ball((24, 40, 40), (12, 20, 20), 14)
    channels = np.random.default_rng(0).normal(
        shift, 1.0, (2, 24, 40, 40)
    )  # once z-scored: the background is no minimum
    channels[:, ~brain] = 0
    channels[0, 12, 20, 6:9] = 0  # a vessel without signal in one channel
    np.testing.assert_array_equal(body_mask(Volume(channels, sar((1, 1, 1))), ct=False), brain)


def test_large_images_are_masked_in_blocks() -> None:
    disc = ball((1, 530, 523), (0, 260, 270), 200)
    image = np.where(disc, 40, -1000).astype(np.int16)
    mask = body_mask(Volume(image[None], sar((5, 0.8, 0.8))), ct=True)
    assert mask.shape == disc.shape
    grown = ndimage.binary_dilation(disc[0], iterations=4)
    shrunk = ndimage.binary_erosion(disc[0], iterations=4)
    assert not (mask[0] & ~grown).any()
    assert not (shrunk & ~mask[0]).any()


def test_no_tumour_of_the_embedded_scans_is_cut() -> None:
    for part in ("Tr", "Ts"):
        for path in sorted((DEMO / f"labels{part}").iterdir()):
            name = path.name.removesuffix(".nii.gz")
            scan = read(DEMO / f"images{part}" / f"{name}_0000.nii.gz")
            tumour = read_labels(path).array > 0
            mask = body_mask(scan, ct=False)
            assert (tumour & ~mask).sum() <= 0.001 * tumour.sum(), name
            assert mask.mean() < 0.96, name


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_header_in_another_unit_is_told_before_it_fills_the_memory(factor: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(0, 100, (1, 12, 14, 16)).astype(np.float32)
    scan = Volume(image, np.diag([2.0 * factor, factor, factor, 1.0]))
    with pytest.raises(ContextsegError, match="counts in millimetres") as caught:
        prepare(scan, at((2.0, 1.0, 1.0)), "c0")
    assert caught.value.where == "c0"
    assert "the training's 1 x 1 x 2 mm" in caught.value.what
