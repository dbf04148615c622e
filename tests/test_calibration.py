"""Confidence of a prediction: the map beside it, what it is compared with, and its charts."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.special import softmax

from contextseg import predict
from contextseg.data import phantom
from contextseg.errors import ContextsegError
from contextseg.evaluation import Pair
from contextseg.evaluation.calibration import calibration, confidence_file, save_calibration
from contextseg.metrics import calibration_error, pooled, reliability
from contextseg.metrics.calibration import within
from contextseg.pipeline import run_pipeline
from contextseg.predict import labels_from_slabs
from contextseg.predictor import Member, Predictor
from contextseg.reports.calibration import calibration_html
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.volume import Volume, read, read_labels, write

torch.set_num_threads(1)
segment = partial(predict.segment, device="cpu")
STEP = 0.5 / 255 + 1e-6  # a probability is kept to half of this on either side


def noise(*shape, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labelled(z, shape, **options):
    """The label map and the confidence, in [0, 1], of logits (K, d, h, w) on the grid `shape`."""
    sure = np.zeros(shape, np.uint8)
    label = labels_from_slabs(
        [(0, z.shape[1], torch.as_tensor(z))], z.shape[1:], shape, confidence=sure, **options
    )
    return label, sure / 255


def zoomed(x, shape):
    factors = [new / n for n, new in zip(x.shape, shape)]
    return ndimage.zoom(x.astype(float), factors, order=1, mode="nearest", grid_mode=True)


# --- the map --------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_on_the_grid_of_the_network_it_is_the_largest_probability(classes):
    z = noise(classes, 4, 5, 6)
    label, sure = labelled(z, (4, 5, 6))
    p = softmax(z.astype(float), 0)
    np.testing.assert_allclose(sure, p.max(0), atol=STEP)
    np.testing.assert_allclose(
        sure, np.take_along_axis(p, label[None].astype(int), 0)[0], atol=STEP
    )


def test_two_equal_classes_share():
    _, sure = labelled(np.zeros((2, 1, 1, 1), np.float32), (1, 1, 1))
    assert sure.item() == 128 / 255  # a half lies between 127 and 128, and goes to the even one


def test_huge_logits_are_certain():
    z = np.array([1e4, -1e4], np.float32).reshape(2, 1, 1, 1)
    assert labelled(z, (2, 1, 1))[1].tolist() == [[[1.0]], [[1.0]]]


SHAPES = [
    ((4, 5, 6), (9, 11, 13)),
    ((6, 7, 8), (6, 14, 16)),
    ((6, 7, 8), (3, 4, 17)),
    ((1, 5, 6), (1, 12, 11)),
]


@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_between_voxels_of_one_class_it_is_its_interpolated_probability(size, shape):
    """Class 1 wins everywhere, more or less surely."""
    z = np.concatenate([np.zeros((1, *size), np.float32), 0.1 + np.abs(noise(1, *size))])
    label, sure = labelled(z, shape)
    assert (label == 1).all()
    np.testing.assert_allclose(sure, zoomed(softmax(z.astype(float), 0)[1], shape), atol=STEP)


@pytest.mark.parametrize(("size", "shape"), SHAPES)
def test_between_classes_it_is_the_probability_of_the_interpolated_logits(size, shape):
    """Where the corners of a cell disagree: a toss-up at the border itself, however sure either
    side is.
    """
    for seed in range(3):
        z = noise(3, *size, seed=seed)
        label, sure = labelled(z, shape)
        logits = np.stack([zoomed(channel, shape) for channel in z])
        winner = z.argmax(0)
        spread = np.stack([zoomed((winner == k).astype(float), shape) for k in range(3)])
        open_ = spread.max(0) < 1 - 1e-9
        assert open_.mean() > 0.3
        np.testing.assert_allclose(sure[open_], softmax(logits, 0).max(0)[open_], atol=STEP)
        assert ((label == logits.argmax(0)) | ~open_).mean() > 0.999


def test_at_a_border_between_two_sure_sides_nobody_knows():
    """Logits of 8 on either side: linear in between, so that the middle of three voxels has
    equal ones.
    """
    z = np.array([[8.0, -8.0], [-8.0, 8.0]], np.float32).reshape(2, 1, 1, 2)
    _, sure = labelled(z, (1, 1, 6))  # centres at -0.33, 0, 0.33, 0.67, 1, 1.33 of the way
    third = 1 / (1 + np.exp(-16 / 3))
    assert sure.ravel() == pytest.approx([1, 1, third, third, 1, 1], abs=STEP)
    _, sure = labelled(z, (1, 1, 3))
    assert sure.ravel() == pytest.approx([1, 0.5, 1], abs=STEP)


def test_it_changes_no_label():
    z = noise(4, 5, 6, 7)
    for shape, table in product([(5, 6, 7), (11, 9, 15), (3, 3, 3)], [None, [0, 7, 300, 2]]):
        plain = labels_from_slabs([(0, 5, torch.as_tensor(z))], (5, 6, 7), shape, to_class=table)
        assert np.array_equal(labelled(z, shape, to_class=table)[0], plain)


def test_how_the_slabs_are_cut_changes_nothing():
    z = torch.as_tensor(noise(3, 8, 6, 7))
    whole, parts = np.zeros((2, 19, 9, 9), np.uint8)
    labels_from_slabs([(0, 8, z)], (8, 6, 7), (19, 9, 9), confidence=whole)
    slabs = [(i, i + 2, z[:, i : i + 2]) for i in range(0, 8, 2)]
    labels_from_slabs(slabs, (8, 6, 7), (19, 9, 9), confidence=parts)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 2), np.float32)])
def test_an_array_that_does_not_fit_is_refused(bad):
    with pytest.raises(ValueError, match="confidence"):
        labels_from_slabs([(0, 2, torch.zeros(2, 2, 2, 2))], (2, 2, 2), (2, 2, 2), confidence=bad)


def test_of_an_ensemble_it_is_that_of_the_mean_logits():
    """Softmax of the mean, not the mean of the softmaxes: logits (4, 0) and (0, 2) give (2, 1),
    0.731.
    """
    networks = [lambda x: torch.cat([x + 4, x], 1), lambda x: torch.cat([x, x + 2], 1)]
    sure = np.zeros((1, 1, 1), np.uint8)
    label = segment(networks, np.zeros((1, 1, 1, 1)), (1, 1, 1), (1, 1, 1), confidence=sure)
    assert label.item() == 0
    assert sure.item() / 255 == pytest.approx(1 / (1 + np.exp(-1)), abs=STEP)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_is_as_sure_as_the_cpu():
    z = torch.as_tensor(noise(3, 9, 10, 11))
    maps = np.zeros((2, 13, 19, 22), np.uint8)
    for sure, device in zip(maps, ("cpu", "cuda")):
        labels_from_slabs([(0, 9, z.to(device))], (9, 10, 11), (13, 19, 22), confidence=sure)
    assert np.abs(np.diff(maps.astype(int), axis=0)).max() <= 1


# --- bins and the error ---------------------------------------------------------------------------


def column(rows, name):
    return np.array([row[name] for row in rows], float)


def ece(rows):
    return calibration_error(*(column(rows, name) for name in ("n", "confidence", "accuracy")))


def as_uint8(p):
    return np.rint(255 * np.asarray(p)).astype(np.uint8)


def test_four_voxels_by_hand():
    """0.6 right and wrong, 0.8 right, 1 right: 2/4 x |0.5 - 0.6| + 1/4 x |1 - 0.8| + 1/4 x 0 =
    0.1.
    """
    rows = reliability(as_uint8([0.6, 0.6, 0.8, 1.0]), np.array([True, False, True, True]))
    assert len(rows) == 15
    full = [row for row in rows if row["n"]]
    assert [(row["bin"], row["n"]) for row in full] == [(9, 2), (12, 1), (15, 1)]
    assert [row["confidence"] for row in full] == pytest.approx([0.6, 0.8, 1.0])
    assert [row["accuracy"] for row in full] == [0.5, 1.0, 1.0]
    assert ece(rows) == pytest.approx(0.1)
    assert all(
        np.isnan(row["confidence"]) and np.isnan(row["accuracy"]) for row in rows if not row["n"]
    )


def test_bins_are_open_below_and_closed_above():
    """15 bins of 17 of the 255 steps: 17 is the last of the first bin, 18 the first of the
    second.
    """
    rows = reliability(np.array([0, 1, 17, 18, 254, 255], np.uint8), np.ones(6, bool))
    assert column(rows, "n")[[0, 1, 14]].tolist() == [3, 1, 2]
    assert rows[0]["low"] == 0
    assert rows[-1]["high"] == 1
    assert column(rows, "low")[1:].tolist() == column(rows, "high")[:-1].tolist()


@pytest.mark.parametrize("bins", [1, 7, 15, 100, 255])
def test_every_voxel_is_in_the_bin_that_holds_it(bins):
    values = np.arange(256, dtype=np.uint8)
    for value in values:
        (row,) = (row for row in reliability(values[[value]], np.ones(1, bool), bins) if row["n"])
        assert row["low"] - 1e-12 <= value / 255 <= row["high"] + 1e-12
        assert row["confidence"] == pytest.approx(value / 255)
    assert column(reliability(values, values > 100, bins), "n").sum() == 256


def drawn(p, seed=0):
    """Whether each prediction is right, drawn from the probability that it is."""
    return np.random.default_rng(seed).random(p.shape) < p


def test_what_is_right_as_often_as_it_says_is_calibrated():
    p = np.random.default_rng(1).uniform(0.3, 1, 200_000)
    assert (
        ece(reliability(as_uint8(p), drawn(p))) < 0.005
    )  # 20,000 in a bin: an s.d. of 0.0035 at most
    sharp = p**0.25  # says more than it knows; in the mean by 4/5 (1 - 0.3^1.25) / 0.7 - 0.65
    assert ece(reliability(as_uint8(sharp), drawn(p))) == pytest.approx(
        0.8 * (1 - 0.3**1.25) / 0.7 - 0.65, abs=0.005
    )


def test_a_guess_that_is_sure_is_as_wrong_as_it_is_wrong():
    rows = reliability(np.full(1000, 255, np.uint8), np.arange(1000) < 700)
    assert ece(rows) == pytest.approx(0.3)


def test_bins_of_parts_add_up_to_those_of_the_whole():
    p = np.random.default_rng(2).uniform(0, 1, 5000)
    right = drawn(p)
    whole = pooled(reliability(as_uint8(p), right))
    parts = pooled(
        [*reliability(as_uint8(p[:700]), right[:700]), *reliability(as_uint8(p[700:]), right[700:])]
    )
    assert len(parts) == 15
    for name in ("n", "confidence", "accuracy"):
        np.testing.assert_allclose(column(parts, name), column(whole, name))


def test_of_nothing_there_is_no_error():
    rows = reliability(np.zeros(0, np.uint8), np.zeros(0, bool))
    assert column(rows, "n").sum() == 0
    assert np.isnan(ece(rows))


def test_arrays_that_do_not_fit_are_refused():
    for sure, right in (
        (np.zeros(3, np.uint8), np.ones(2, bool)),
        (np.zeros(2, np.float32), np.ones(2, bool)),
    ):
        with pytest.raises(ContextsegError, match="confidence"):
            reliability(sure, right)


@pytest.mark.parametrize("shape", [(9, 14, 15), (14, 15)])
def test_near_is_within_reach_of_a_voxel(shape):
    spacing = (3.0, 1.0, 0.7)[-len(shape) :]
    mask = np.random.default_rng(3).random(shape) < 0.003
    mask[(0,) * len(shape)] = True
    points = np.argwhere(mask) * spacing
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing
    apart = np.linalg.norm(grid[..., None, :] - points, axis=-1).min(-1)
    for reach in (0.0, 1.0, 3.0, 5.5):
        assert np.array_equal(within(mask, spacing, reach), apart <= reach + 1e-6)
    assert not within(np.zeros(shape, bool), spacing, 5).any()


# --- from files to the table ----------------------------------------------------------------------

MM = np.diag([5.0, 1, 1, 1])


def pair(folder, name, made, reference, sure=None, **more):
    """A prediction, its reference and how sure it is, as files."""
    for part, array in (("made", made), ("made/confidence", sure), ("truth", reference)):
        if array is not None:
            write(folder / part / f"{name}.nii.gz", Volume(np.asarray(array), MM))
    return Pair(
        name, folder / "made" / f"{name}.nii.gz", folder / "truth" / f"{name}.nii.gz", **more
    )


def line(*values):
    return np.array(values, np.uint8).reshape(1, 1, -1)


def full_bins(table, voxels):
    part = table[(table["voxels"] == voxels) & (table["n"] > 0)]
    return part[["case", "bin", "n", "confidence", "accuracy"]].values.tolist()


def test_the_table_by_hand(tmp_path):
    """Of a line of 30 voxels the organ is the first two; the prediction has one of them, and
    calls it 2 elsewhere.
    """
    reference, made, sure = (
        line(*[1] * 2, *[0] * 28),
        line(1, 2, *[0] * 28),
        line(204, 153, *[153] * 2, *[255] * 26),
    )
    table, problems = calibration(
        [pair(tmp_path, "x", made, reference, sure)], {"a": [1], "b": [2]}
    )
    assert problems == {}
    assert full_bins(table, "all") == [
        ["x", 9, 3, 0.6, 2 / 3],
        ["x", 12, 1, 0.8, 1.0],
        ["x", 15, 26, 1.0, 1.0],
    ]
    assert full_bins(table, "within 10 mm") == [
        *full_bins(table, "all")[:2],
        ["x", 15, 8, 1.0, 1.0],
    ]  # voxels 4 to 11
    assert len(table) == 30
    save_calibration(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "calibration.csv"), table)


def test_what_nobody_has_said_does_not_count(tmp_path):
    """A wrong class on an unannotated voxel is neither wrong, nor is anything near it."""
    reference, made, sure = line(9, *[0] * 29), line(1, *[0] * 29), line(*[255] * 30)
    found = pair(tmp_path, "x", made, reference, sure)
    table, _ = calibration([found], {"a": [1]}, ignore=9)
    assert full_bins(table, "all") == [["x", 15, 29, 1.0, 1.0]]
    assert full_bins(table, "within 10 mm") == []
    table, _ = calibration(
        [found], {"a": [1]}
    )  # 9 is a value that nobody asks for: background, and the 1 is wrong
    assert full_bins(table, "all") == [["x", 15, 30, 1.0, 29 / 30]]


def test_cases_that_say_nothing_give_no_rows(tmp_path):
    everything = line(1, 0), line(1, 0), line(255, 255)
    silent = pair(tmp_path, "silent", *everything[:2])
    partly = pair(tmp_path, "partly", *everything, annotated=("a",))
    wholly = pair(tmp_path, "wholly", *everything, annotated=("b", "a"))
    table, problems = calibration([silent, partly, wholly], {"a": [1], "b": [2]})
    assert set(table["case"]) == {"wholly"}
    assert problems == {}
    table, _ = calibration([silent], {"a": [1]})
    assert table.empty
    save_calibration(table, tmp_path)
    assert not (tmp_path / "calibration.csv").exists()


@pytest.mark.parametrize("sure", [line(255), line(255, 255).astype(np.int16) + 1])
def test_a_map_that_does_not_fit_is_a_problem_of_its_case(tmp_path, sure):
    good = pair(tmp_path, "good", line(1, 0), line(1, 0), line(255, 255))
    table, problems = calibration(
        [pair(tmp_path, "bad", line(1, 0), line(1, 0), sure), good], {"a": [1]}
    )
    assert set(table["case"]) == {"good"}
    assert "write 0 to 255" in problems["bad"]


# --- in a run -------------------------------------------------------------------------------------

TINY = [
    "steps=6",
    "prediction.mirror=false",
    "log_every=2",
    "patch_vox=16,16,16",
    "batch_size=2",
    "base_width=4",
    "device=cpu",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on phantoms, planned at another spacing than theirs, so that all is interpolated."""
    data = phantom.write_dataset(tmp_path_factory.mktemp("data") / "phantoms", labelled=3, test=2)
    run = Run(
        tmp_path_factory.mktemp("run"), Settings(str(data)).set([*TINY, "spacing_mm=1.6,1.3,1.2"])
    )
    run_pipeline(run)
    return run


def test_a_run_keeps_how_sure_it_was_and_counts(finished):
    table = pd.read_csv(finished.stage_folder("evaluate") / "calibration.csv")
    for case in finished.dataset.test:
        made = finished.stage_folder("predict") / f"{case.name}.nii.gz"
        sure, label, truth = (read_labels(p) for p in (confidence_file(made), made, case.label))
        assert sure.same_grid(label)
        bins = table[(table["case"] == case.name) & (table["voxels"] == "all")]
        assert bins["n"].sum() == label.array.size
        assert (bins["n"] * bins["accuracy"]).sum() == pytest.approx(
            (label.array == truth.array).sum()
        )
        assert (bins["n"] * bins["confidence"]).sum() == pytest.approx(sure.array.sum() / 255)
    assert sorted(p.name for p in finished.stage_folder("predict").glob("*.nii.gz")) == [
        f"{case.name}.nii.gz" for case in finished.dataset.test
    ]


def test_confidence_lies_where_the_labels_lie(finished):
    """A network that says the class of the top half of the body surely, that of the rest less
    so; all else is air.
    """
    plan = replace(finished.plan, mirror=(False,) * 3)

    class Half(torch.nn.Module):
        guided = False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def predict(self, x):
            return torch.cat([0 * x, torch.where(x > 0, 3.0, 1.0)], 1)

    scan = read(*finished.dataset.test[0].images)
    body = np.zeros_like(scan.array)
    body[:, 4:16, 6:18, 5:15] = 50
    body[:, 10:16, 6:18, 5:15] = 100
    segmentation = Predictor([Member(Half(), plan)]).predict(scan.with_array(body))
    confidence = segmentation.confidence
    inside = body[0] > 0
    assert (segmentation.label.array == inside).all()
    assert (confidence.array[~inside] == 255).all()
    expected = {value: 1 / (1 + np.exp(-z)) for value, z in ((50, 1), (100, 3))}
    for value, rows in (
        (50, slice(4, 9)),
        (100, slice(11, 16)),
    ):  # away from the border between them
        assert np.allclose(confidence.array[rows, 6:18, 5:15] / 255, expected[value], atol=STEP)
        assert (body[0, rows, 6:18, 5:15] == value).all()
    assert confidence.same_grid(scan)
    assert scan.header is not None
    assert confidence.header == segmentation.label.header == scan.header


def test_what_is_taken_away_is_background_with_the_rest_of_its_certainty(finished):
    """Two bright cubes, called 1 by a network with a logit of 2: the smaller one is no longer,
    and 1 - 0.881 sure.
    """
    scan = read(*finished.dataset.test[0].images)
    image = np.zeros_like(scan.array)
    image[:, 2:18, 4:20, 4:20] = 10  # a body, so that nothing is cut off between the cubes
    image[:, 4:10, 6:12, 6:12] = image[:, 12:16, 14:18, 14:18] = 100

    class Bright(torch.nn.Module):
        guided = False

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def predict(self, x):
            return torch.cat([0 * x, torch.where(x > 0.5, 2.0, -4.0)], 1)

    plan = replace(finished.plan, mirror=(False,) * 3, spacing_mm=scan.spacing_mm)
    members = [Member(Bright(), plan)]
    whole = Predictor(members).predict(scan.with_array(image))
    largest = PredictionSettings(largest_component=True)
    kept = Predictor(members, largest).predict(scan.with_array(image))
    before, after = whole.confidence, kept.confidence
    small = np.zeros(scan.shape, bool)
    small[12:16, 14:18, 14:18] = True
    assert whole.label.array[small].all()
    assert not kept.label.array[small].any()
    assert np.allclose(before.array[small] / 255, 1 / (1 + np.exp(-2)), atol=STEP)
    assert (after.array[small] == 255 - before.array[small]).all()
    assert (after.array[~small] == before.array[~small]).all()


def test_it_can_be_left_out(finished, tmp_path):
    scan = read(*finished.dataset.test[0].images)
    members = [Member(finished.finished(), finished.plan)]
    settings = finished.settings.prediction
    with_confidence = Predictor(members, settings).predict(scan)
    assert with_confidence.confidence is not None
    predictor = Predictor(members, replace(settings, confidence=False))
    without = predictor.predict(scan)
    assert without.confidence is None
    assert np.array_equal(with_confidence.label.array, without.label.array)
    predictor.predict_cases(finished.dataset.test, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "label_descriptions.txt",
        *(f"{case.name}.nii.gz" for case in finished.dataset.test),
    ]


def test_killed_between_the_two_files_both_are_made(finished, tmp_path, monkeypatch):
    """The label map comes last, so that what is there is whole."""
    order = []
    monkeypatch.setattr(
        "contextseg.predictor.segmentation.write", lambda path, volume: order.append(path)
    )
    monkeypatch.setattr(
        "contextseg.predictor.segmentation.write_classes",
        lambda path, volume, classes: order.append(path),
    )
    predictor = Predictor(
        [Member(finished.finished(), finished.plan)], finished.settings.prediction
    )
    predictor.predict_cases(finished.dataset.test[:1], tmp_path)
    name = f"{finished.dataset.test[0].name}.nii.gz"
    assert order == [tmp_path / "confidence" / name, tmp_path / name]


# --- in the report --------------------------------------------------------------------------------


def bins_of(case, sure, right, voxels="all"):
    return [
        {"case": case, "voxels": voxels, **row}
        for row in reliability(as_uint8(sure), np.array(right, bool))
    ]


def cells(html):
    lines = re.findall(r"<tr>.*?</tr>", html, re.S)
    return [
        [
            re.sub(r"<[^>]+>", " ", cell).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S)
        ]
        for line in lines
    ]


def test_the_section_says_what_the_bins_say():
    """Case a as above; case b is sure and wrong once in two: |0.5 - 1|. Together, 0.6: 2, 0.8:
    1, 1: 1 + 2 voxels.
    """
    near = bins_of("a", [0.6, 0.6, 0.8, 1.0], [1, 0, 1, 1], "within 10 mm") + bins_of(
        "b", [1.0, 1.0], [1, 0], "within 10 mm"
    )
    table = pd.DataFrame(near + bins_of("a", [1.0] * 1000, [1] * 1000) + bins_of("b", [], []))
    html = calibration_html(table)
    head, first, second = cells(html)
    assert head[1:] == ["ECE", "Confidence", "Accuracy", "Difference", "Voxels"]
    together = (2 * 0.1 + 1 * 0.2 + 3 * (1 / 3)) / 6
    each = np.array([0.1, 0.5])
    confidence, accuracy = (0.6 + 0.6 + 0.8 + 3) / 6, 4 / 6
    numbers = [f"{confidence:.3f}", f"{accuracy:.3f}", f"{confidence - accuracy:+.3f}"]
    assert first[0] == "Within 10 mm"
    assert first[1].split() == [f"{together:.3f}", "0.300", "±", f"{each.std(ddof=1):.3f}"]
    assert first[2:] == [*numbers, "6"]
    assert second == ["All voxels", "0.000 0.000", "1.000", "1.000", "+0.000", "1\u2009000"]
    assert html.count("data:image/svg+xml") == 2
    assert 'alt="Reliability diagram, within 10 mm"' in html


def test_a_prediction_that_says_too_little_has_a_minus():
    (_, line) = cells(calibration_html(pd.DataFrame(bins_of("a", [0.6, 0.6], [1, 1]))))
    assert line[1:] == ["0.400 0.400", "0.600", "1.000", "−0.400", "2"]


def test_without_maps_the_section_is_a_sentence():
    for table in (None, pd.DataFrame()):
        assert re.fullmatch(r'<p class="soft">No case has .*</p>', calibration_html(table))
    nothing = calibration_html(pd.DataFrame(bins_of("a", [], [])))
    assert "<img" not in nothing
    assert cells(nothing)[1] == ["All voxels", *"––––", "0"]


def test_the_same_bins_give_the_same_bytes():
    table = pd.DataFrame(bins_of("a", np.linspace(0.3, 1, 50), np.arange(50) % 3 > 0))
    assert calibration_html(table) == calibration_html(table)


def test_the_report_of_a_run_has_its_diagrams(finished):
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    section = page[
        page.index('<section id="calibration">') : page.index('<section id="time-and-memory">')
    ]
    assert [line[0] for line in cells(section)[1:]] == ["Within 10 mm", "All voxels"]
    assert section.count('alt="Reliability diagram') == 2
