"""The network that comes with the package: what it reads, that it fills, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.nets.completion import CompletionNet
from contextseg.propagation import LabelledSlices, fill, open_completion, pretrained, ranges
from contextseg.propagation.expected import (
    BETWEEN_LABELLED,
    BEYOND_LABELLED,
    between_features,
    beyond_features,
    corrected_dice,
)
from contextseg.propagation.network.completing import DEPTH, Readings, windows
from contextseg.propagation.network.features import (
    CHANNELS,
    REACH,
    Neighbours,
    features,
    interpolate,
    plane_distances,
)
from contextseg.propagation.network.prepare import Example, examples, pack
from contextseg.propagation.network.store import Store
from contextseg.propagation.network.training import (
    CompletionTraining,
    Recipe,
    TrainingSettings,
    save_weights,
)
from contextseg.propagation.pretrained import AREA_SHARE, WEIGHTS, keep_area
from contextseg.volume import Volume


def ball(shape: tuple[int, int, int] = (24, 40, 40), radius: float = 9) -> np.ndarray:
    at = np.indices(shape)
    centre = np.array([n / 2 for n in shape])[:, None, None, None]
    return np.asarray(np.square(at - centre).sum(0) < radius**2)


def test_distances_are_those_of_scipy() -> None:
    mask = np.random.default_rng(0).random((3, 12, 15)) < 0.3
    inside = np.stack([ndimage.distance_transform_edt(m) for m in mask])
    outside = np.stack([ndimage.distance_transform_edt(~m) for m in mask])
    expected = np.where(mask, inside - 0.5, 0.5 - outside).clip(-REACH, REACH)
    assert np.allclose(plane_distances(torch.from_numpy(mask)).numpy(), expected, atol=1e-5)


def test_aligned_outlines_move_on_a_straight_line() -> None:
    masks = torch.zeros(1, 2, 24, 24, dtype=torch.bool)
    masks[0, 0, 4:9, 4:9] = True
    masks[0, 1, 12:17, 12:17] = True
    near = Neighbours(torch.tensor([[0, 8]]), 9)
    distance = plane_distances(masks[0])[None]
    middle = interpolate(distance, masks, near)[0, 4] > 0
    assert middle.nonzero().amin(0).tolist() == [8, 8]
    assert middle.nonzero().amax(0).tolist() == [12, 12]
    assert not (interpolate(distance, masks, near, aligned=False)[0, 4] > 0).any()


def test_a_network_that_has_learned_nothing_interpolates() -> None:
    mask = torch.from_numpy(ball())
    index = torch.tensor([[6, 12, 17, -1]])
    image = torch.randn(1, *mask.shape)
    x, prior = features(image, mask[index.clamp(min=0)], index, torch.ones(1))
    assert x.shape == (1, len(CHANNELS), *mask.shape)
    assert torch.isfinite(x).all()
    logits = CompletionNet(len(CHANNELS), (4, 8, 8))(x, prior)
    assert torch.equal(logits > 0, x[:, CHANNELS.index("aligned")] > 0)


@pytest.mark.parametrize("bounded", [True, False])
def test_windows_decide_each_slice_once(bounded: bool) -> None:
    for known in ([5], [3, 40], [0, 30, 60, 99], [10, 20]):
        found = windows(known, 100, bounded)
        decided = [i for _, part in found for i in part]
        assert decided == list(range(decided[0], decided[-1] + 1))
        assert set(range(known[0], known[-1])) <= set(decided)
        for read, part in found:
            assert set(part) <= set(read)
            assert len(read) <= max(DEPTH + 2, len(part) + 10)


def test_the_packaged_network_is_small_and_has_a_card() -> None:
    assert WEIGHTS.stat().st_size <= 8e6
    assert WEIGHTS.with_name("README.md").exists()
    assert open_completion().facts["steps"] > 1000


def test_one_slice_is_enough_for_a_ball() -> None:
    mask = ball()
    image = np.where(mask, 200.0, 100.0) + np.random.default_rng(0).normal(0, 5, mask.shape)
    scan = Volume(image[None].astype(np.float32), np.diag([1.0, 1, 1, 1]))
    drawn = LabelledSlices(0, {12: mask[12].astype(np.int16)})
    found = np.asarray(
        fill(scan, drawn, open_completion(), "propagation", stop_below=0).label.array
    )
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.85
    assert np.array_equal(found[12] == 1, mask[12])


def test_between_known_ends_nothing_lies_beyond() -> None:
    mask = ball()
    scan = Volume(mask[None].astype(np.float32), np.diag([1.0, 1, 1, 1]))
    drawn = LabelledSlices(0, {i: mask[i].astype(np.int16) for i in (8, 12, 15)})
    filled = fill(scan, drawn, open_completion(), ranges=ranges(drawn))
    present = np.flatnonzero(np.asarray(filled.label.array).any((1, 2)))
    assert (present[0], present[-1]) == (8, 15)


def test_a_range_that_holds_the_whole_scan_ends_nothing() -> None:
    """A class that may lie anywhere is filled as one of which nothing is said."""
    mask = ball()
    scan = Volume(mask[None].astype(np.float32), np.diag([1.0, 1, 1, 1]))
    drawn = LabelledSlices(0, {12: mask[12].astype(np.int16)})
    free = fill(scan, drawn, open_completion()).label.array
    wide = fill(scan, drawn, open_completion(), ranges={1: (0, 10**9)}).label.array
    assert np.array_equal(free, wide)
    assert np.asarray(free)[11].any()


def touching(seed: int | None) -> tuple[Volume, LabelledSlices]:
    """Two classes that fill the same square in both labelled slices; their border moves."""
    first, last = np.zeros((2, 64, 64), np.int16)
    first[20:32, 20:44], first[32:44, 20:44] = 1, 2
    last[20:40, 20:44], last[40:44, 20:44] = 1, 2
    image = np.zeros((1, 21, 64, 64), np.float32)
    if seed is not None:
        image += np.random.default_rng(seed).normal(0, 50, image.shape)
    return Volume(image, np.eye(4)), LabelledSlices(0, {5: first, 15: last})


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_the_foreground_of_both_slices_stays_foreground(seed: int | None) -> None:
    scan, drawn = touching(seed)
    filled = np.asarray(fill(scan, drawn, open_completion()).label.array)
    assert (filled[5:16, 20:44, 20:44] > 0).all()


def test_a_scan_without_contrast_is_filled_by_shapes() -> None:
    scan, drawn = touching(None)
    by_network, by_shapes = fill(scan, drawn, open_completion()), fill(scan, drawn)
    assert np.array_equal(by_network.label.array, by_shapes.label.array)
    assert "alike" in by_network.notes[-1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_scan_with_numbers_that_are_none_is_filled_by_shapes(value: float) -> None:
    scan, drawn = touching(0)
    image = np.asarray(scan.array, np.float64).copy()
    image[0, 3, 4, 5] = value
    scan = scan.with_array(image)
    by_network, by_shapes = fill(scan, drawn, open_completion()), fill(scan, drawn)
    assert np.array_equal(by_network.label.array, by_shapes.label.array)
    assert by_network.label.array.any()
    assert "1 intensity is NaN or infinite" in by_network.notes[-1]


def test_a_correction_reads_only_what_it_changes() -> None:
    mask = ball((60, 40, 40), 9) | np.roll(ball((60, 40, 40), 9), 8, 0)
    noise = np.random.default_rng(0).normal(0, 20, mask.shape)
    scan = Volume((100.0 * mask + noise)[None].astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    first = {i: mask[i].astype(np.int16) for i in (26, 34)}
    model = open_completion()
    fill(scan, LabelledSlices(0, first), model)
    read = model.readings.read
    assert read > 0
    again = fill(scan, LabelledSlices(0, first), model).label.array
    assert model.readings.read == read
    assert np.array_equal(
        again, fill(scan, LabelledSlices(0, first), open_completion()).label.array
    )
    corrected = {**first, 34: np.roll(first[34], 2, 0)}
    got = fill(scan, LabelledSlices(0, corrected), model).label.array
    assert np.array_equal(
        got, fill(scan, LabelledSlices(0, corrected), open_completion()).label.array
    )
    assert not np.array_equal(got, again)


def test_a_correction_of_one_structure_reads_the_other_no_more() -> None:
    one = ball((60, 40, 40), 6)
    label = np.roll(one, -15, 0).astype(np.int16) + 2 * np.roll(one, 15, 0).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 0.1, label.shape)
    scan = Volume((label + noise)[None].astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    drawn = {i: label[i] for i in (15, 45)}
    model, fresh = open_completion(), open_completion()
    silent = {15: frozenset({2}), 45: frozenset({1})}
    fill(scan, LabelledSlices(0, drawn, silent), model)
    before = model.readings.read
    corrected = LabelledSlices(0, {**drawn, 45: np.roll(label[45], 1, 0)}, silent)
    got = fill(scan, corrected, model).label.array
    assert np.array_equal(got, fill(scan, corrected, fresh).label.array)
    assert 0 < model.readings.read - before < fresh.readings.read


def test_nothing_is_read_where_all_is_labelled() -> None:
    mask = ball((60, 40, 40), 3)
    scan = Volume(mask[None].astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    present = np.flatnonzero(mask.any((1, 2))).tolist()
    drawn = LabelledSlices(0, {i: mask[i].astype(np.int16) for i in present})
    model = open_completion()
    filled = fill(scan, drawn, model, ranges=ranges(drawn))
    assert model.readings.read == 0
    assert np.array_equal(np.asarray(filled.label.array) == 1, mask)
    fill(scan, drawn, model)
    assert model.readings.read > 0


@pytest.mark.parametrize("opinion", [-5.0, 5.0])
def test_from_three_slices_on_the_shapes_say_how_large(
    opinion: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the network thinks of a slice, its area stays near that of the shapes."""

    def mistaken(net: object, image: np.ndarray, *others: object) -> np.ndarray:
        return np.random.default_rng(0).normal(opinion, 1, image.shape).astype(np.float32)

    monkeypatch.setattr(pretrained, "complete_stack", mistaken)
    mask = ball((60, 40, 40), 12)
    scan = Volume(mask[None].astype(np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    drawn = LabelledSlices(0, {i: mask[i].astype(np.int16) for i in (20, 30, 40)})
    found = np.asarray(fill(scan, drawn, open_completion(), ranges=ranges(drawn)).label.array)
    shapes = np.asarray(fill(scan, drawn).label.array)
    for i in {*range(21, 40)} - {30}:
        ratio = (found[i] > 0).sum() / (shapes[i] > 0).sum()
        assert 0.95 / AREA_SHARE < ratio < 1.05 * AREA_SHARE


@pytest.mark.parametrize("area", [0, 1, 5, 17, 31])
@pytest.mark.parametrize("opinion", [-15.0, -1.0, 0.0, 1.0, 15.0])
def test_an_area_is_kept_by_the_likeliest_pixels(opinion: float, area: int) -> None:
    before = np.random.default_rng(0).normal(opinion, 5, (5, 7)).astype(np.float32)
    after = before.copy()
    keep_area(after, area)
    found = after > 0
    assert round(area / AREA_SHARE) <= found.sum() <= round(area * AREA_SHARE)
    assert before[found].min(initial=np.inf) > before[~found].max(initial=-np.inf)


def test_readings_forget_the_oldest() -> None:
    readings = Readings(most=1)
    net = CompletionNet(2, (4, 4, 8)).eval()
    one, other = torch.zeros(1, 2, 4, 8, 8), torch.ones(1, 2, 4, 8, 8)
    prior = torch.zeros(1, 4, 8, 8)
    for features_read in (one, one, other, one):
        assert torch.equal(readings.of(net, features_read, prior), net(features_read, prior)[0])
    assert (readings.read, readings.found) == (3, 1)


def test_a_promise_is_corrected_and_stays_in_bounds() -> None:
    log_odds = np.full((8, 8), -5.0)
    assert beyond_features(log_odds) is None
    log_odds[2:6, 2:6] = 0.5
    unsure = corrected_dice(beyond_features(log_odds), BEYOND_LABELLED)
    log_odds[2:6, 2:6] = 8
    sure = corrected_dice(beyond_features(log_odds), BEYOND_LABELLED)
    assert 0 < unsure < sure < 1
    apart = np.roll(log_odds, 3, 0)
    alike = corrected_dice(between_features(log_odds, log_odds), BETWEEN_LABELLED)
    assert corrected_dice(between_features(log_odds, apart), BETWEEN_LABELLED) < alike < 1


def test_a_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    with pytest.raises(ContextsegError, match="completion"):
        open_completion(tmp_path / "other.npz")


def test_weights_survive_a_file(tmp_path: Path) -> None:
    net = CompletionNet(3, (4, 8))
    save_weights(net, tmp_path / "network.npz", {"steps": 1})
    again = open_completion(tmp_path / "network.npz").net
    for one, other in zip(net.state_dict().values(), again.state_dict().values()):
        assert torch.equal(one.half().float(), other)


def test_what_a_training_reads_is_one_error_where_it_is_damaged(tmp_path: Path) -> None:
    """The file of volumes, the checkpoint, the tables of the data."""
    path, cpu = tmp_path / "data.npz", torch.device("cpu")
    label = ball((8, 12, 12), 4).astype(np.uint8)
    pack(iter([Example("a", "torso", None, label, [1], (1.0, 1.0, 1.0))]), path)
    assert [row["name"] for row in Store(path, cpu).rows] == ["a"]
    with pytest.raises(ContextsegError, match=r"data\.npz: it holds no volumes that are kept"):
        Store(path, cpu, validation=True)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ContextsegError, match=r"data\.npz: no training file"):
        Store(path, cpu)
    rows = np.frombuffer(b'[{"name": "a", "validation": 3}]', np.uint8)
    np.savez(path, table=rows)
    with pytest.raises(ContextsegError, match=r"data\.npz: 0\.\w+ is missing"):
        Store(path, cpu)
    (tmp_path / "headneck").mkdir()
    write_json(tmp_path / "headneck" / "cases.json", {"labels": {"parotid": "1"}, "cases": {}})
    with pytest.raises(ContextsegError, match=r"cases\.json: labels\.parotid is '1'"):
        list(examples(tmp_path))


def test_training_runs_and_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes = []
    for n in range(3):
        label = ball((16, 24, 24), 6).astype(np.uint8)
        image = (label * 20 + rng.integers(0, 30, label.shape)).astype(np.uint8)
        volumes.append(Example(f"c{n}", "sarcoma", image, label, [1], (2.0, 1.0, 1.0), n == 2))
    volumes.append(Example("head", "headmaps", None, label, [1], (1.0, 1.0, 1.0)))
    pack(iter(volumes), tmp_path / "data.npz")
    settings = TrainingSettings(seconds=0.5, batch=4, widths=(4, 8), validation=1)
    recipe = Recipe(slices=8, side=16)

    def training() -> CompletionTraining:
        device = torch.device("cpu")
        return CompletionTraining(tmp_path / "data.npz", tmp_path / "run", settings, recipe, device)

    first = training()
    first.run()
    again = training()
    assert again.step == first.step > 0
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContextsegError, match=r"checkpoint\.pt: .*delete the file to start again"):
        training()
    checkpoint.write_bytes(whole)
    for one, other in zip(first.net.parameters(), again.net.parameters()):
        assert torch.equal(one, other)
    one, other = first.drawing.batch(7), again.drawing.batch(7)
    assert torch.equal(one.features, other.features)
    assert open_completion(tmp_path / "run" / "network.npz").facts["steps"] == first.step
