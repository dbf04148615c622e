"""Augmentation: what is drawn is what happens, and no voxel gets an invented label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.data.augment import (
    Augmentation,
    Draw,
    _sampled,
    apply,
    draw,
    source_vox,
    swap_annotated,
)
from contextseg.errors import ContextsegError

CUBE = (12, 12, 12)
CHANCES = {field.name: 0.0 for field in fields(Augmentation) if field.name.startswith("p_")}
QUIET = Augmentation(**CHANCES, mirror=(False, False, False))
ALWAYS = Augmentation(**dict.fromkeys(CHANCES, 1.0))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def idle(channels: int = 1, dims: int = 3, **changes: Any) -> Draw:
    """A draw in which only `changes` happen."""
    return replace(draw(QUIET, rng(), (12,) * dims, channels), **changes)


def scan(
    shape: Sequence[int], channels: int = 1, seed: int = 0, classes: int = 4
) -> tuple[Tensor, Tensor]:
    """Noise, and a random label of -1 .. classes - 1."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn((channels, *shape), generator=g), torch.randint(
        IGNORE, classes, tuple(shape), generator=g
    )


def one(
    d: Draw, image: Tensor, label: Tensor | None = None, patch: Sequence[int] = (), **more: Any
) -> Any:
    """`apply` to a single item: its image (C, *patch) and label (*patch)."""
    label = torch.zeros(image.shape[1:], dtype=torch.int64) if label is None else label
    x, y = apply([d], [image], [label], patch or image.shape[1:], **more)
    return x[0], y[0]


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [CUBE, (4, 14, 15), (16, 13)])
def test_strength_zero_is_the_identity_bit_for_bit(patch):
    nothing = replace(ALWAYS, strength=0.0)
    draws = [draw(nothing, rng(seed), patch, 2) for seed in range(50)]
    assert {source_vox(d, patch) for d in draws} == {patch}
    image, label = scan(patch, 2)
    x, y = apply(draws, [image] * 50, [label.to(torch.int16)] * 50, patch)
    assert torch.equal(x, image.expand_as(x))
    assert torch.equal(y, label.expand_as(y))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("patch", [(9, 10, 8), (4, 14, 15), (16, 13)])
def test_a_draw_decides_everything_and_the_callers_tensors_stay(patch):
    draws = [draw(ALWAYS, rng(seed), patch, 2) for seed in range(6)]
    scans = [scan(source_vox(d, patch), 2, seed) for seed, d in enumerate(draws)]
    images, labels = [s[0] for s in scans], [s[1] for s in scans]
    kept = [x.clone() for x in (*images, *labels)]
    first, again = apply(draws, images, labels, patch), apply(draws, images, labels, patch)
    assert first[0].shape == (6, 2, *patch)
    assert first[1].shape == (6, *patch)
    assert first[0].isfinite().all()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert all(torch.equal(a, b) for a, b in zip(kept, (*images, *labels)))


def test_the_seed_decides_the_draw():
    assert draw(ALWAYS, rng(1), CUBE, 2) == draw(ALWAYS, rng(1), CUBE, 2)
    assert draw(ALWAYS, rng(1), CUBE, 2) != draw(ALWAYS, rng(2), CUBE, 2)


def test_changing_one_setting_leaves_the_other_effects_as_they_were():
    usual = Augmentation()
    for name, value, part in [
        ("p_noise", 1.0, "noise_sd"),
        ("noise_sd", (0.5, 0.9), "noise_sd"),
        ("p_rotation", 1.0, "matrix"),
        ("gamma", (0.2, 0.9), "gamma"),
        ("low_resolution", (0.1, 0.2), "low_resolution"),
        ("p_blur_channel", 1.0, "blur_vox"),
    ]:
        for seed in range(30):
            before, after = (
                draw(s, rng(seed), CUBE, 2) for s in (usual, replace(usual, **{name: value}))
            )
            touched = {
                f.name for f in fields(Draw) if getattr(before, f.name) != getattr(after, f.name)
            }
            assert touched <= {part, "gamma_inverted" if name == "gamma" else part}


def test_every_setting_matters():
    def outcomes(settings: Augmentation) -> list[Draw]:
        return [
            draw(settings, rng(s), patch, 2) for patch in (CUBE, (9, 9), (9, 20)) for s in range(60)
        ]

    usual = Augmentation()
    for field in fields(Augmentation):
        value = getattr(usual, field.name)
        if field.name == "mirror":
            others: list[Any] = [tuple(i != axis for i in range(3)) for axis in range(3)]
        else:
            others = (
                [(value[0] * 0.9 + 0.01, value[1])] if isinstance(value, tuple) else [value / 2]
            )
            others += [(value[0], value[1] * 0.9)] if isinstance(value, tuple) else []
        for other in others:
            assert outcomes(replace(usual, **{field.name: other})) != outcomes(usual), field.name


def test_effects_happen_as_often_as_the_settings_say():
    n = 3000
    draws = [draw(Augmentation(), rng(seed), CUBE, 1) for seed in range(n)]
    dets = np.array([1.0 if d.matrix is None else np.linalg.det(np.array(d.matrix)) for d in draws])
    turned = [d.matrix is not None and np.count_nonzero(d.matrix) > 3 for d in draws]
    expected = {
        "rotation": (turned, 0.2),
        "scale": (np.abs(dets - 1) > 1e-9, 0.2),
        "noise": ([d.noise_sd > 0 for d in draws], 0.1),
        "blur": ([d.blur_vox[0][0] > 0 for d in draws], 0.2 * 0.5),
        "brightness": ([d.brightness[0] != 1 for d in draws], 0.15),
        "contrast": ([d.contrast[0] != 1 for d in draws], 0.15),
        "low resolution": ([d.low_resolution[0] != 1 for d in draws], 0.25 * 0.5),
        "inverted gamma": ([d.gamma_inverted[0] != 1 for d in draws], 0.1),
        "gamma": ([d.gamma[0] != 1 for d in draws], 0.3),
        "gamma above 1": ([d.gamma[0] > 1 for d in draws], 0.15),
        **{f"mirror {axis}": ([d.mirror[axis] for d in draws], 0.5) for axis in range(3)},
    }
    for name, (seen, p) in expected.items():
        assert abs(np.mean(seen) - p) < 4 * np.sqrt(p * (1 - p) / n), (
            name
        )  # four standard deviations of a binomial


def test_what_is_drawn_lies_in_its_range_and_reaches_its_ends():
    draws = [draw(replace(ALWAYS, p_rotation=0.0), rng(seed), CUBE, 1) for seed in range(600)]
    seen = {
        (0.7, 1.4): [d.matrix[0][0] for d in draws if d.matrix],
        (0.0, 0.1): [d.noise_sd for d in draws],
        (0.5, 1.0): [sigma for d in draws for sigma in d.blur_vox[0]],
        (0.75, 1.25): [d.contrast[0] for d in draws],
        (0.7, 1.5): [d.gamma[0] for d in draws],
    }
    for (low, high), values in seen.items():
        reach = high - low
        assert low <= min(values) < low + 0.02 * reach
        assert high - 0.02 * reach < max(values) <= high


def test_channels_and_axes_are_drawn_apart():
    d = draw(ALWAYS, rng(), CUBE, 2)
    assert len({sigma for channel in d.blur_vox for sigma in channel}) == 6
    for part in (d.brightness, d.contrast, d.low_resolution, d.gamma_inverted, d.gamma):
        assert len(set(part)) == 2


def test_strength_widens_and_narrows():
    def spread(strength: float) -> float:
        return max(
            abs(np.log(draw(replace(ALWAYS, strength=strength), rng(s), CUBE, 1).gamma[0]))
            for s in range(300)
        )

    assert spread(2.0) == pytest.approx(2 * spread(1.0), rel=0.02)
    assert spread(0.5) == pytest.approx(0.5 * np.log(1.5), rel=0.2)
    gentle = replace(ALWAYS, p_scale=0.0, rotation_2d_deg=40.0)
    for seed in range(20):
        usual, strong = (
            draw(replace(gentle, strength=s), rng(seed), (12, 12), 1) for s in (1.0, 2.0)
        )
        assert strong.noise_sd == 2 * usual.noise_sd > 0
        assert np.array_equal(strong.blur_vox, 2 * np.array(usual.blur_vox))
        angle, twice = (np.arctan2(d.matrix[1][0], d.matrix[0][0]) for d in (usual, strong))
        assert twice == pytest.approx(2 * angle)
    weak = [draw(Augmentation(strength=0.5), rng(seed), CUBE, 1) for seed in range(2000)]
    assert abs(np.mean([d.gamma[0] != 1 for d in weak]) - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 2000)
    assert abs(np.mean([d.mirror[0] for d in weak]) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


# --- mirrors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", list(product([False, True], repeat=3)))
def test_mirrored_twice_is_the_identity_and_once_is_a_flip(mirror):
    image, label = scan((4, 5, 6), 2)
    d = idle(2, mirror=mirror)
    x, y = one(d, image, label)
    axes = [axis for axis in range(3) if mirror[axis]]
    np.testing.assert_array_equal(y.numpy(), np.flip(label.numpy(), axes))
    np.testing.assert_array_equal(x.numpy(), np.flip(image.numpy(), [a + 1 for a in axes]))
    assert all(torch.equal(a, b) for a, b in zip(one(d, x, y), (image, label)))


def test_an_axis_that_may_not_be_mirrored_never_is():
    for patch, allowed in [(CUBE, {1}), ((12, 12), {0})]:
        draws = [
            draw(Augmentation(mirror=(False, True, False)), rng(seed), patch, 1)
            for seed in range(50)
        ]
        assert {
            axis for d in draws for axis, mirrored in enumerate(d.mirror) if mirrored
        } == allowed


def test_a_lateral_mirror_exchanges_the_pair_and_nothing_else():
    image, label = scan((3, 4, 5), classes=5)
    exchanged = np.array([0, 2, 1, 3, 4, IGNORE])[
        label.numpy()
    ]  # the last entry answers to index -1
    _, y = one(idle(mirror=(True, False, True)), image, label, swaps=[(1, 2)], lateral_axis=2)
    np.testing.assert_array_equal(y.numpy(), np.flip(exchanged, (0, 2)))
    _, y = one(idle(mirror=(True, True, False)), image, label, swaps=[(1, 2)], lateral_axis=2)
    np.testing.assert_array_equal(y.numpy(), np.flip(label.numpy(), (0, 1)))


def test_with_pairs_but_no_known_left_and_right_nothing_is_mirrored():
    image, label = scan((3, 4, 5))
    everywhere = idle(mirror=(True, True, True))
    x, y = one(everywhere, image, label, swaps=[(1, 2)], lateral_axis=None)
    assert torch.equal(x, image)
    assert torch.equal(y, label)
    _, y = one(everywhere, image, label)  # without pairs, a mirror needs to know nothing
    assert torch.equal(y, label.flip(0, 1, 2))
    in_plane = idle(
        dims=2, mirror=(True, True)
    )  # sagittal slices: no axis of the patch goes from left to right
    _, y = one(in_plane, image[:, 0], label[0], swaps=[(1, 2)], lateral_axis=-1)
    assert torch.equal(y, label[0].flip(0, 1))


def test_what_was_annotated_follows_the_exchange():
    annotated = torch.tensor([[True, True, False, True], [True, True, False, True]])
    draws = [idle(mirror=(False, False, True)), idle(mirror=(True, True, False))]
    swapped = swap_annotated(draws, annotated, [(1, 2)], lateral_axis=2)
    assert swapped.tolist() == [[True, False, True, True], [True, True, False, True]]
    assert annotated[0].tolist() == [True, True, False, True]
    assert torch.equal(swap_annotated(draws, annotated, [(1, 2)], lateral_axis=None), annotated)


# --- rotation and scale ---------------------------------------------------------------------------

# np.rot90 in the plane (i, j): out[i, j] = in[j, n - 1 - i], so the source offsets are (j, -i)
TURNS = {
    (1, 2): ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0)),
    (0, 2): ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    (0, 1): ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
}


@pytest.mark.parametrize("plane", TURNS)
def test_a_quarter_turn_is_rot90(plane):
    image, label = scan((7, 7, 7), 2)
    x, y = one(idle(2, matrix=TURNS[plane]), image, label)
    np.testing.assert_array_equal(y.numpy(), np.rot90(label.numpy(), axes=plane))
    wanted = np.rot90(image.numpy(), axes=[a + 1 for a in plane])
    np.testing.assert_allclose(x.numpy(), wanted, atol=1e-5)


def test_two_quarter_turns_leave_no_axis_alone():
    image, label = scan((6, 6, 6))
    matrix = np.array(TURNS[(0, 1)]) @ np.array(
        TURNS[(1, 2)]
    )  # out(u) = in(A B u): first A's turn, then B's
    assert not np.diag(matrix).any()
    x, y = one(idle(matrix=tuple(map(tuple, matrix.tolist()))), image, label)
    wanted = np.rot90(np.rot90(label.numpy(), axes=(0, 1)), axes=(1, 2))
    np.testing.assert_array_equal(y.numpy(), wanted)
    wanted = np.rot90(np.rot90(image[0].numpy(), axes=(0, 1)), axes=(1, 2))
    np.testing.assert_allclose(x[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("patch", [(8, 9, 10), (3, 12, 11), (12, 3, 11), (11, 12, 3), (9, 12)])
def test_sampling_equals_scipys(patch):
    d = draw(
        replace(QUIET, p_rotation=1.0, p_scale=1.0),
        rng(3),
        patch,
        1,
        spacing_mm=(2.0, 1.0, 1.5)[: len(patch)],
    )
    image, label = scan(source_vox(d, patch))
    x, y = one(d, image, label, patch)
    matrix = np.array(d.matrix)
    offset = (np.array(label.shape) - 1) / 2 - matrix @ (np.array(patch) - 1) / 2
    wanted = ndimage.affine_transform(
        image[0].numpy(), matrix, offset, patch, order=1, mode="nearest"
    )
    np.testing.assert_allclose(x[0].numpy(), wanted, atol=1e-4)
    wanted = ndimage.affine_transform(label.numpy(), matrix, offset, patch, order=0, mode="nearest")
    assert np.mean(y.numpy() != wanted) < 0.01  # but for a tie that rounds the other way


@pytest.mark.parametrize("patch", [(9, 9, 9), (4, 15, 14), (14, 13), (9, 30)])
def test_the_source_box_misses_no_corner_and_wastes_nothing(patch):
    settings = replace(ALWAYS, rotation_deg=90.0, p_rotation=0.7, p_scale=0.7)
    spacing = (2.5, 1.0, 1.2)[-len(patch) :]
    corners = np.array(list(product(*[(-(n - 1) / 2, (n - 1) / 2) for n in patch])))
    for seed in range(200):
        d = replace(draw(settings, rng(seed), patch, 1, spacing), mirror=(False,) * len(patch))
        box = source_vox(d, patch)
        reach = np.abs(
            corners @ (np.eye(len(patch)) if d.matrix is None else np.array(d.matrix)).T
        ).max(0)
        slack = (np.array(box) - 1) / 2 - reach
        assert (slack > -1e-5).all()
        assert (slack < 0.5 + 1e-5).all()  # one voxel less would be too few
        moved = idle(dims=len(patch), matrix=d.matrix)
        x, y = one(moved, torch.ones(1, *box), torch.ones(box, dtype=torch.int64), patch)
        assert x.min() > 0.999
        assert (y == 1).all()


def test_outside_the_source_is_unknown():
    # 2.5 source voxels for each of the patch's, but a box of 4 is given: offsets of 1.25 lie
    # inside, 3.75 outside
    zoom = ((2.5, 0.0), (0.0, 2.5))
    d = idle(dims=2, matrix=zoom)
    assert source_vox(d, (4, 4)) == (9, 9)  # 2 * 3.75 + 1 = 8.5
    x, y = _sampled(zoom, torch.ones(1, 4, 4), torch.full((4, 4), 2), (4, 4))
    wanted = np.full((4, 4), IGNORE)
    wanted[1:3, 1:3] = 2
    np.testing.assert_array_equal(y.numpy(), wanted)
    np.testing.assert_array_equal(x[0].numpy() > 0, wanted > 0)


def test_a_rotation_in_millimetres_keeps_a_sphere_a_sphere():
    patch, mm = (12, 24, 24), np.array([2.0, 1.0, 1.0])

    def radius_mm(shape: Sequence[int]) -> np.ndarray:
        offsets = np.meshgrid(
            *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, mm)], indexing="ij"
        )
        return np.sqrt(sum(o**2 for o in offsets))

    def error_mm(spacing_mm: Sequence[float] | None) -> float:
        worst = 0.0
        for seed in range(5):
            d = draw(replace(QUIET, p_rotation=1.0), rng(seed), patch, 1, spacing_mm)
            image = torch.tensor(radius_mm(source_vox(d, patch)), dtype=torch.float32)[None]
            x, _ = one(d, image, patch=patch)
            outer = radius_mm(patch) > 3  # near its tip a cone is not linear between voxels
            worst = max(worst, float(np.abs(x[0].numpy() - radius_mm(patch))[outer].max()))
        return worst

    assert (
        error_mm(mm.tolist()) < 0.35
    )  # what linear interpolation leaves: h^2 / 8r = 0.17 along 2 mm, less along 1
    assert error_mm(None) > 2


@pytest.mark.parametrize(("patch", "thin"), [((5, 16, 20), 0), ((20, 6, 18), 1), ((16, 16, 4), 2)])
def test_a_flat_patch_is_turned_in_its_plane_only(patch, thin):
    for seed in range(20):
        d = draw(ALWAYS, rng(seed), patch, 1, (1.0, 2.0, 3.0))
        matrix = np.array(d.matrix)
        np.testing.assert_array_equal(matrix[thin], np.eye(3)[thin])
        np.testing.assert_array_equal(matrix[:, thin], np.eye(3)[thin])
        assert np.count_nonzero(matrix) == 5
        assert source_vox(d, patch)[thin] == patch[thin]


def test_angles_stay_within_their_settings():
    def angles(patch: Sequence[int]) -> np.ndarray:
        turned = replace(QUIET, p_rotation=1.0, rotation_deg=20.0)
        matrices = [np.array(draw(turned, rng(seed), patch, 1).matrix) for seed in range(400)]
        return np.rad2deg([np.arctan2(-m[-2, -1], m[-1, -1]) for m in matrices])

    assert 175 < np.abs(angles((12, 12))).max() <= 180
    assert 14 < np.abs(angles((12, 20))).max() <= 15
    assert 175 < np.abs(angles((3, 12, 20))).max() <= 180
    # in A(a) B(b) C(c), turns about D, H and W, the last column is (-sin b, -sin a cos b, cos a cos
    # b): the angle is a
    assert 19 < np.abs(angles(CUBE)).max() <= 20 + 1e-9


def test_labels_are_never_invented():
    settings = replace(ALWAYS, p_rotation=0.8, p_scale=0.8)
    for seed in range(40):
        patch = [CUBE, (3, 12, 11), (13, 12)][seed % 3]
        d = draw(settings, rng(seed), patch, 1)
        image, label = scan(source_vox(d, patch), seed=seed)
        label[label == 2] = 7
        _, y = one(d, image, label, patch)
        assert set(y.unique().tolist()) <= {IGNORE, 0, 1, 3, 7}
        half = torch.where(label > 0, 7, IGNORE)
        _, y = one(d, image, half, patch)
        assert set(y.unique().tolist()) == {IGNORE, 7}


# --- values ---------------------------------------------------------------------------------------


def test_noise_is_one_field_of_the_drawn_deviation_for_all_channels():
    image, _ = scan((20, 20, 20), 2)
    x, _ = one(idle(2, noise_sd=0.3, noise_seed=5), image)
    noise = x - image
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    torch.testing.assert_close(noise[0], noise[1], atol=1e-6, rtol=0)
    other, _ = one(idle(2, noise_sd=0.3, noise_seed=6), image)
    assert not torch.equal(other, x)


def test_blur_equals_scipys():
    image, _ = scan((9, 1, 8), 2)
    sigmas = (0.9, 0.7, 0.5)
    x, _ = one(idle(2, blur_vox=((0.0,) * 3, sigmas)), image)
    assert torch.equal(x[0], image[0])
    radius = [int(np.ceil(3 * sigma)) for sigma in sigmas]
    wanted = ndimage.gaussian_filter(image[1].numpy(), sigmas, mode="mirror", radius=radius)
    np.testing.assert_allclose(x[1].numpy(), wanted, atol=1e-6)


def test_brightness_and_contrast():
    image, _ = scan(CUBE, 2)
    x, _ = one(idle(2, brightness=(1.25, 1.0), contrast=(1.0, 0.8)), image)
    torch.testing.assert_close(x[0], image[0] * 1.25)
    mean = image[1].mean()
    torch.testing.assert_close(x[1], mean + (image[1] - mean) * 0.8)
    x, _ = one(idle(2, contrast=(1.25, 1.0)), image)
    assert (x[0].min(), x[0].max()) == (image[0].min(), image[0].max())
    inside = (x[0] > image[0].min()) & (x[0] < image[0].max())
    mean = image[0].mean()
    torch.testing.assert_close(x[0][inside], (mean + (image[0] - mean) * 1.25)[inside])


def test_low_resolution_takes_the_nearest_voxels_and_joins_them_by_lines():
    image = torch.tensor([[3.0, 1, 4, 1, 5, 9, 2, 6]]).expand(
        1, 8, 8
    )  # along W only; constant along H
    x, _ = one(idle(dims=2, low_resolution=(0.5,)), image)
    kept = image[0, 0, 1::2].numpy()  # of two voxels, whose centre lies between them, the upper
    at = (np.arange(8) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(
        x[0].numpy(), np.broadcast_to(np.interp(at, np.arange(4), kept), (8, 8)), atol=1e-6
    )


def test_a_flat_patch_keeps_its_slices_at_low_resolution():
    image = torch.arange(4.0)[:, None, None].expand(4, 16, 16)[None]  # a patch 4 voxels thick
    x, _ = one(idle(low_resolution=(0.5,)), image)
    torch.testing.assert_close(x, image)


@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
@pytest.mark.parametrize("value", [0.7, 1.5])
def test_gamma_keeps_order_mean_and_deviation(name, value):
    image, _ = scan(CUBE, 2)
    x, _ = one(idle(2, **{name: (value, 1.0)}), image)
    assert torch.equal(x[1], image[1])
    assert x[0].mean().item() == pytest.approx(image[0].mean().item(), abs=1e-5)
    assert x[0].std().item() == pytest.approx(image[0].std().item(), abs=1e-5)
    in_order = x[0].flatten()[image[0].flatten().argsort()]
    assert (in_order.diff() >= -1e-6).all()
    skew = ((x[0] - x[0].mean()) ** 3).mean() - ((image[0] - image[0].mean()) ** 3).mean()
    assert (skew > 0) == (
        (value > 1) == (name == "gamma")
    )  # x ** 1.5 stretches the bright end; inverted, the dark


@pytest.mark.parametrize("value", [0.0, -2.5, 3e3])
def test_a_constant_image_stays_constant(value):
    blurs = replace(ALWAYS, p_rotation=0.0, p_scale=0.0, p_noise=0.0, p_brightness=0.0)
    image = torch.full((1, 8, 9, 10), value)
    for seed in range(20):
        x, _ = one(draw(blurs, rng(seed), image.shape[1:], 1), image)
        torch.testing.assert_close(x, image, rtol=1e-5, atol=1e-5)


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("strength", -1.0),
        ("strength", float("nan")),
        ("p_gamma", 1.5),
        ("gamma", (0.0, 1.0)),
        ("gamma", (1.5, 0.7)),
        ("gamma", 1.2),
        ("scale", (0.7, 1.0, 1.4)),
        ("noise_sd", (-0.1, 0.1)),
        ("p_noise", (0.1, 0.2)),
        ("mirror", (True, True)),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value):
    with pytest.raises(ContextsegError, match=f"augmentation setting {name}: .* Remedy: give "):
        Augmentation(**{name: value})


def test_a_box_of_the_wrong_size_or_none_is_refused():
    image, label = scan(CUBE)
    with pytest.raises(ValueError, match=r"1 channels and a box of \(10, 12, 12\)"):
        one(idle(), image, label, (10, 12, 12))
    with pytest.raises(ValueError, match="2 channels"):
        one(idle(2), image, label)
    with pytest.raises(ValueError, match="one or more"):
        apply([], [], [], CUBE)
