"""Sliding windows give back what went in.

The label map is that of interpolating everything, at a part of the cost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import contextseg
from contextseg import predict
from contextseg.predict import gaussian, labels_from_slabs, positions
from contextseg.volume import read

torch.set_num_threads(1)
sliding_window = partial(predict.sliding_window, device="cpu")
segment = partial(predict.segment, device="cpu")


def identity(x):
    return x


def whole(slabs):
    """All slabs side by side (K, D, H, W), after a check that they follow one another."""
    slabs = list(slabs)
    assert [start for start, _, _ in slabs] == [0, *(stop for _, stop, _ in slabs)][:-1]
    assert all(z.shape[1] == stop - start > 0 for start, stop, z in slabs)
    return torch.cat([z for _, _, z in slabs], 1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- positions and weights ------------------------------------------------------------------------


def test_positions_of_nnunet():
    assert positions(110, 32) == [0, 16, 31, 47, 62, 78]
    assert positions(110, 64) == [0, 23, 46]  # the example in nnU-Net's own comment
    assert positions(64, 32, step=1) == [0, 32]
    assert positions(5, 5) == positions(3, 5) == [0]


@pytest.mark.parametrize("step", [0.25, 0.5, 0.9, 1.0])
def test_positions_cover_everything_with_no_gap_wider_than_the_step(step):
    for size, patch in product(range(1, 40), (1, 2, 5, 8)):
        starts = positions(size, patch, step)
        assert starts[0] == 0
        assert starts[-1] == max(size - patch, 0)
        assert (np.diff(starts) <= np.ceil(patch * step)).all()


@pytest.mark.parametrize("step", [0, -1, 1.5])
def test_a_step_that_leaves_gaps_is_refused(step):
    with pytest.raises(ValueError, match="step"):
        positions(100, 10, step)


@pytest.mark.parametrize("patch", [(16,), (8, 12), (10, 7, 16)])
def test_gaussian_is_a_filtered_impulse(patch):
    impulse = np.zeros(patch)
    impulse[tuple(n // 2 for n in patch)] = 1
    expected = ndimage.gaussian_filter(impulse, [n / 8 for n in patch], mode="constant")
    weight = gaussian(patch)
    assert weight.dtype == torch.float32
    np.testing.assert_allclose(weight, expected / expected.max(), rtol=1e-5)


def test_gaussian_is_nowhere_zero():
    weight = gaussian((64, 64), (1, 1))  # exp(-32^2) underflows
    assert weight.max() == 1
    assert weight.min() > 0
    assert weight[0, 0] == weight[weight > 0].min()


# --- windows --------------------------------------------------------------------------------------

GRIDS = [
    ((13, 11, 9), (4, 6, 5)),
    ((7, 8, 9), (7, 8, 9)),
    ((3, 20, 2), (8, 8, 8)),
    ((1, 1, 1), (4, 4, 4)),
    ((6, 13, 10), (1, 4, 4)),
    ((5, 11, 9), (4, 6)),
    ((6, 3, 17), (8, 8)),
    ((1, 9, 9), (4, 4)),
]


@pytest.mark.parametrize(("size", "patch"), GRIDS)
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_an_identity_network_gives_the_image_back(size, patch, batch_size, step):
    image = noise(2, *size)
    axes = (1, 2) if len(patch) == 2 else (0, 1, 2)
    for mirrors in ((), axes):
        slabs = sliding_window(
            identity, image, patch, step=step, mirror_axes=mirrors, batch_size=batch_size
        )
        np.testing.assert_allclose(whole(slabs), image, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch", [(4, 6, 5), (6, 5)])
def test_windows_count_by_their_gaussian(patch):
    """A network that answers differently at each place of its window, against sums over whole
    arrays.
    """
    image = noise(1, 9, 13, 8)
    pattern = torch.from_numpy(noise(*patch, seed=1))
    weight = gaussian(patch)
    size = image.shape[1:][-len(patch) :]
    total, weights = np.zeros(image.shape[1:]), np.zeros(image.shape[1:])
    for starts in product(*(positions(n, p) for n, p in zip(size, patch))):
        box = (..., *(slice(s, s + p) for s, p in zip(starts, patch)))
        total[box] += (weight * pattern).numpy() * image[0][box]
        weights[box] += weight.numpy()
    out = whole(sliding_window(lambda x: x * pattern, image, patch, batch_size=3))
    np.testing.assert_allclose(out[0], total / weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("dtype", [np.int16, np.float64, np.uint8])
def test_any_array_is_taken(flipped, dtype):
    image = (np.abs(noise(1, 5, 6, 7)) * 50).astype(dtype)
    image = image[:, ::-1, :, ::-1] if flipped else image
    image.flags.writeable = False
    expected = image.astype(np.float32)
    np.testing.assert_allclose(
        whole(sliding_window(identity, image, (4, 4, 4))), expected, rtol=1e-5
    )
    tensor = torch.from_numpy(image.copy())
    np.testing.assert_allclose(
        whole(sliding_window(identity, tensor, (4, 4, 4))), expected, rtol=1e-5
    )


def test_a_small_image_lies_in_the_middle_of_zeros():
    seen = []
    slabs = sliding_window(lambda x: seen.append(x) or x, np.ones((1, 2, 3, 4)), (4, 4, 4))
    assert whole(slabs).shape == (1, 2, 3, 4)
    expected = torch.zeros(1, 1, 4, 4, 4)
    expected[:, :, 1:3, 0:3, :] = 1
    assert len(seen) == 1
    assert torch.equal(seen[0], expected)


def test_a_slab_comes_as_soon_as_no_later_window_touches_it():
    """10 slices and a patch of 4 give windows at 0, 2, 4, 6 along D, and 3 along W.

    A row of 3 finishes what the next row leaves.
    """
    calls = []
    slabs = sliding_window(lambda x: calls.append(1) or x, noise(1, 10, 4, 8), (4, 4, 4))
    assert [(start, stop, len(calls)) for start, stop, _ in slabs] == [
        (0, 2, 3),
        (2, 4, 6),
        (4, 6, 9),
        (6, 10, 12),
    ]


def test_a_slab_stays_as_it_was_yielded():
    image = noise(1, 30, 4, 4)
    slabs = sliding_window(identity, image, (4, 4, 4), step=0.25)
    first = next(slabs)[2]
    before = first.clone()
    assert len(list(slabs)) > 5
    assert torch.equal(first, before)


def test_windows_share_a_call_across_rows_and_slices():
    """7 slices, 3 windows in each."""
    sizes, calls = [], []
    options = {"batch_size": 8, "progress": lambda *numbers: calls.append(numbers)}
    list(sliding_window(lambda x: sizes.append(len(x)) or x, noise(1, 7, 8, 4), (4, 4), **options))
    assert sizes == [8, 8, 5]
    assert calls == [(8, 21), (16, 21), (21, 21)]


def test_an_ensemble_and_its_mirrors_are_a_mean():
    """Each network adds to the left end of what it sees.

    A mirror moves half of that to the right end.
    """
    ramp = torch.tensor([4.0, 0, 0, 0])
    image = np.zeros((1, 1, 1, 4))
    networks = [lambda x: x + ramp, lambda x: x + 10 * ramp]
    out = whole(sliding_window(networks, image, (1, 1, 4), mirror_axes=(2,)))
    assert out.flatten().tolist() == [11, 0, 0, 11]  # (4 + 40) / 2 networks / 2 mirrors
    out = whole(sliding_window(networks, image, (1, 1, 4)))
    assert out.flatten().tolist() == [22, 0, 0, 0]


def test_a_lateral_mirror_exchanges_left_and_right():
    """The network calls the left half 1 and the right half 2.

    Only with the exchange do the mirrors agree.
    """
    half = (torch.arange(6) < 3).float()

    def network(x):
        return torch.cat([x, x * half, x * (1 - half)], 1)

    image = noise(1, 2, 4, 6)
    plain = whole(sliding_window(network, image, (2, 4, 6)))
    options = {"mirror_axes": (1, 2), "swaps": [(1, 2)]}
    mirrored = whole(sliding_window(network, image, (2, 4, 6), lateral_axis=2, **options))
    torch.testing.assert_close(mirrored, plain)
    for wrong in (None, 1):
        assert not torch.allclose(
            whole(sliding_window(network, image, (2, 4, 6), lateral_axis=wrong, **options)), plain
        )


def test_no_gradient_is_kept():
    weight = torch.ones(1, requires_grad=True)
    assert not whole(sliding_window(lambda x: x * weight, noise(1, 2, 4, 4), (4, 4))).requires_grad


@pytest.mark.parametrize(
    ("image", "patch", "options"),
    [
        ((4, 4, 4), (4, 4, 4), {}),
        ((1, 4, 4, 4), (4,), {}),
        ((1, 0, 4, 4), (4, 4), {}),
        ((1, 4, 4, 4), (4, 4), {"mirror_axes": (0,)}),
        ((1, 4, 4, 4), (4, 4, 4), {"mirror_axes": (3,)}),
        ((1, 9, 9, 9), (4, 4, 4), {"step": 2}),
    ],
)
def test_what_does_not_fit_is_refused_at_once(image, patch, options):
    with pytest.raises(ValueError):
        sliding_window(identity, np.zeros(image), patch, **options)


def test_a_network_that_changes_sizes_is_refused():
    with pytest.raises(ValueError, match="sizes must stay"):
        list(sliding_window(lambda x: x[..., 1:], np.zeros((1, 4, 4, 4)), (4, 4)))


# --- label maps -----------------------------------------------------------------------------------


def cut(z, *stops):
    """Logits (K, D, H, W) as slabs that end at `stops`."""
    bounds = [0, *stops, z.shape[1]]
    return [(a, b, torch.as_tensor(z[:, a:b])) for a, b in pairwise(bounds)]


def zoomed(z, shape):
    """Every class at full resolution, by scipy, in double precision."""
    factors = [new / n for n, new in zip(z.shape[1:], shape)]
    return np.stack(
        [ndimage.zoom(c.astype(float), factors, order=1, mode="nearest", grid_mode=True) for c in z]
    )


def assert_wins(label, logits):
    """Each voxel has the largest logit, up to rounding; almost everywhere it is the very argmax."""
    taken = np.take_along_axis(logits, label[None].astype(int), 0)[0]
    assert (logits.max(0) - taken).max() < 1e-5
    assert np.mean(label != logits.argmax(0)) < 1e-3


SHAPES = [
    ((6, 7, 8), (6, 7, 8)),
    ((6, 7, 8), (9, 13, 17)),
    ((6, 7, 8), (6, 14, 16)),
    ((6, 7, 8), (23, 7, 8)),
    ((9, 12, 10), (4, 5, 3)),
    ((9, 5, 10), (3, 13, 10)),
    ((1, 5, 6), (1, 12, 11)),
    ((1, 5, 6), (4, 5, 6)),
    ((5, 1, 6), (8, 3, 9)),
    ((5, 6, 7), (1, 1, 1)),
]


@pytest.mark.parametrize(("size", "shape"), SHAPES)
@pytest.mark.parametrize("smooth", [0, 2])
def test_the_labels_are_those_of_interpolating_every_class(size, shape, smooth):
    for k, seed in product((1, 2, 5), range(3)):
        z = noise(k, *size, seed=seed)
        z = ndimage.gaussian_filter(z, (0, smooth, smooth, smooth)) if smooth else z
        label = labels_from_slabs(cut(z), size, shape)
        assert label.dtype == np.uint8
        assert_wins(label, zoomed(z, shape))


def test_a_class_that_wins_at_no_corner_can_win_between_them():
    """Half way between (1, 0, 0.6) and (0, 1, 0.6) lies (0.5, 0.5, 0.6)."""
    z = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.6]])
    for size, shape in (((2, 1, 1), (5, 1, 1)), ((1, 2, 1), (1, 5, 1)), ((1, 1, 2), (1, 1, 5))):
        # centres at -0.3, 0.1, 0.5, 0.9, 1.3 of the way
        label = labels_from_slabs(cut(z.reshape(3, *size)), size, shape)
        assert label.ravel().tolist() == [0, 0, 2, 1, 1]


@pytest.mark.parametrize("shape", [(4, 5, 6), (9, 11, 13), (2, 3, 4)])
def test_of_equal_classes_the_first_wins(shape):
    z = np.zeros((4, 4, 5, 6), np.float32)
    assert (labels_from_slabs(cut(z), (4, 5, 6), shape) == 0).all()
    z[2:] = 1
    assert (labels_from_slabs(cut(z), (4, 5, 6), shape) == 2).all()
    z = np.random.default_rng(0).integers(0, 3, (4, 4, 5, 6)).astype(np.float32)
    logits = zoomed(z, shape)
    label = labels_from_slabs(cut(z), (4, 5, 6), shape)
    assert (logits.max(0) - np.take_along_axis(logits, label[None].astype(int), 0)[0]).max() < 1e-5


@pytest.mark.parametrize("shape", [(8, 6, 7), (19, 9, 9), (5, 6, 7)])
def test_how_the_slabs_are_cut_changes_nothing(shape):
    z = noise(3, 8, 6, 7)
    expected = labels_from_slabs(cut(z), (8, 6, 7), shape)
    for stops in ((1,), (3, 4), (2, 4, 6), range(1, 8)):
        assert np.array_equal(labels_from_slabs(cut(z, *stops), (8, 6, 7), shape), expected)


def test_many_voxels_are_taken_in_parts(monkeypatch):
    z = noise(3, 3, 9, 9)
    expected = labels_from_slabs(cut(z), (3, 9, 9), (5, 20, 20))
    monkeypatch.setattr("contextseg.predict.labels._CHUNK", 7)
    assert np.array_equal(labels_from_slabs(cut(z), (3, 9, 9), (5, 20, 20)), expected)


def test_channels_are_written_as_the_values_asked_for():
    z = noise(4, 3, 4, 5)
    plain = labels_from_slabs(cut(z), (3, 4, 5), (5, 6, 7))
    for table, dtype in (
        ([0, 1, 1, 0], np.uint8),
        ([0, 7, 300, 2], np.int16),
        ([0, -1, 2, 40000], np.int32),
    ):
        label = labels_from_slabs(cut(z), (3, 4, 5), (5, 6, 7), to_class=table)
        assert label.dtype == dtype
        assert np.array_equal(label, np.array(table)[plain])
    with pytest.raises(ValueError, match="to_class has 3 values for 4 channels"):
        labels_from_slabs(cut(z), (3, 4, 5), (5, 6, 7), to_class=[0, 1, 2])


def test_more_than_256_classes_have_room():
    z = noise(300, 2, 3, 3)
    label = labels_from_slabs(cut(z), (2, 3, 3), (2, 3, 3))
    assert label.dtype == np.int16
    assert np.array_equal(label, z.argmax(0))


def test_half_precision_is_interpolated_in_single():
    z = noise(3, 3, 4, 5).astype(np.float16)
    assert_wins(labels_from_slabs(cut(z), (3, 4, 5), (6, 8, 10)), zoomed(z, (6, 8, 10)))


def test_slabs_that_do_not_fit_are_refused():
    z = noise(2, 6, 4, 4)
    first, second, third = cut(z, 2, 4)
    for slabs in ([first, third], [second], [first, second], [], [(0, 3, first[2]), third]):
        with pytest.raises(ValueError, match="slice"):
            labels_from_slabs(slabs, (6, 4, 4), (6, 4, 4))
    with pytest.raises(ValueError, match="slices 0 to 2"):
        labels_from_slabs([first, second, third], (6, 4, 5), (6, 4, 4))


MEMORY = """
import numpy as np, torch
from pathlib import Path
from contextseg.predict import segment
torch.set_num_threads(1)
def peak_mb():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024
centres = torch.arange(64.).view(1, 64, 1, 1, 1) / 2 - 16
image = np.broadcast_to(np.linspace(-15, 15, 32, dtype=np.float32), (1, 64, 32, 32))
segment(lambda x: -(x - centres) ** 2, image[:, :8], (8, 32, 32), (8, 32, 32), device="cpu")
before = peak_mb()
label = segment(lambda x: -(x - centres) ** 2, image, (64, 512, 512), (8, 32, 32), device="cpu")
print(peak_mb() - before, len(np.unique(label)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_bounded():
    """64 classes on 64 x 512 x 512 voxels are 4.3 GB, on the network's grid 17 MB.

    The label map has 17 MB.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], stdout=subprocess.PIPE, env=environment, check=True
    )
    megabytes, classes = (float(x) for x in done.stdout.split())
    assert classes > 50
    assert megabytes < 300


# --- together -------------------------------------------------------------------------------------


def test_segment_is_both_in_one_stream():
    """A threshold at 0: the label is whether the linearly interpolated image is positive."""
    image = ndimage.gaussian_filter(noise(9, 10, 11), 1.5)[None]
    label = segment(
        lambda x: torch.cat([0 * x, x, x - 1], 1),
        image,
        (13, 19, 22),
        (4, 4, 4),
        to_class=[0, 5, 5],
    )
    expected = zoomed(image, (13, 19, 22))[0]
    clear = np.abs(expected) > 1e-5
    assert clear.mean() > 0.99
    assert np.array_equal(label[clear], np.where(expected > 0, 5, 0)[clear])


def test_segment_on_real_data_on_its_own_grid():
    """An exact threshold of an embedded scan through windows, mirrors and slabs is the threshold of
    the scan.
    """
    folder = Path(contextseg.__file__).parent / "demo_data" / "imagesTs"
    image = read(sorted(folder.glob("*.nii.gz"))[0]).array[:, 20:33, :40, :37].astype(np.float32)
    level = float(np.median(image)) + 0.5
    label = segment(
        lambda x: torch.cat([level - x, x - level], 1),
        image,
        image.shape[1:],
        (16, 16),
        mirror_axes=(1, 2),
    )
    assert 0.3 < label.mean() < 0.7
    assert np.array_equal(label, image[0] > level)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_labels_of_the_cpu():
    image = noise(3, 9, 10, 11)
    cpu, cuda = (
        segment(identity, image, (13, 19, 22), (4, 4, 4), device=device)
        for device in ("cpu", "cuda")
    )
    assert np.mean(cpu != cuda) < 1e-3
