"""A scan filled from labelled slices: as files, in any orientation, with and without a network."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import contextseg as cs
import laws
from contextseg.batch import IGNORE
from contextseg.cli import app
from contextseg.data import phantom
from contextseg.errors import ContextsegError
from contextseg.methods.stcn import STCNMethod
from contextseg.pipeline import open_propagation_model, run_pipeline, train_run
from contextseg.propagation import (
    NETWORK_WAYS,
    Filled,
    LabelledSlices,
    ShapePrior,
    fill,
    interpolate_shapes,
    labelled_slices,
    ranges,
    suggest_slice,
)
from contextseg.propagation.with_network import _decide
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import Volume, read_labels, write

torch.set_num_threads(1)


def ball(shape: tuple[int, int, int] = (16, 20, 20)) -> tuple[Volume, Volume]:
    """A scan of 2 x 1 x 1 mm with a bright ball of 7 mm radius around its middle, and its label."""
    mm = np.array([2.0, 1, 1])
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * mm
    inside = ((grid - (np.array(shape) - 1) / 2 * mm) ** 2).sum(-1) < 7**2
    affine = np.array([[0.0, 0, 1, -10], [0, 1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    noise = np.random.default_rng(0).normal(0, 0.1, shape)
    return Volume((1 + 2 * inside + noise)[None].astype(np.float32), affine), Volume(
        inside.astype(np.uint8), affine
    )


def some(label: Volume, kept: list[int], axis: int = 0) -> Volume:
    array = np.zeros_like(label.array)
    index = tuple(kept if a == axis else slice(None) for a in range(3))
    array[index] = label.array[index]
    return label.with_array(array)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trained")
    data = phantom.write_dataset(folder / "data", labelled=3, test=1, classes=3)
    words = ["steps=40", "lr=0.002", "patch_vox=16,24,24", "batch_size=2", "spacing_mm=2,1,1"]
    run = Run(folder / "run", Settings(str(data), "stcn").set(words))
    train_run(run)
    return run


# --- which slices ---------------------------------------------------------------------------------


def test_labelled_slices_are_found_along_the_axis_they_were_drawn_on() -> None:
    _, label = ball()
    assert label.orientation == "SAR"
    for axis, kept in ((0, [5, 8, 10]), (1, [9]), (2, [8, 11])):
        labelled = labelled_slices(some(label, kept, axis))
        assert (labelled.axis, sorted(labelled.slices)) == (axis, kept)
        assert np.array_equal(labelled.slices[kept[0]], label.array.take(kept[0], axis))
    assert labelled_slices(some(label, [5], 0), plane="axial").axis == 0


def test_a_value_may_mean_unlabelled() -> None:
    _, label = ball()
    array = np.full(label.shape, 255, np.uint8)
    array[6] = label.array[6]
    array[12] = 0  # annotated, and empty: known to be background
    array[12, :2] = 255
    labelled = labelled_slices(label.with_array(array), unlabelled=255)
    assert sorted(labelled.slices) == [6, 12]
    assert (labelled.slices[12][:2] == IGNORE).all()
    assert not labelled.slices[12][2:].any()


def test_what_cannot_be_filled_is_refused() -> None:
    scan, label = ball()
    with pytest.raises(ContextsegError, match="no slice is labelled"):
        labelled_slices(label.with_array(np.zeros(label.shape, np.uint8)))
    with pytest.raises(ContextsegError, match="--unlabelled"):
        labelled_slices(label.with_array(np.ones(label.shape, np.uint8)))
    with pytest.raises(ContextsegError, match="choose auto"):
        labelled_slices(label, plane="oblique")
    below = np.where(label.array > 0, 1, -2).astype(np.int16)
    with pytest.raises(ContextsegError, match=r"below 0, -2.*--unlabelled -2"):
        labelled_slices(label.with_array(below))
    labelled = labelled_slices(some(label, [5, 10]))
    with pytest.raises(ContextsegError, match="needs a network"):
        fill(scan, labelled, way="propagation")
    with pytest.raises(ContextsegError, match="there is no such way"):
        fill(scan, labelled, way="magic")


# --- without a network ----------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shapes_are_interpolated_between_labelled_slices(axis: int) -> None:
    scan, label = ball()
    there = np.flatnonzero(label.array.any(tuple({0, 1, 2} - {axis})))
    kept = [int(there[0]), int(there[len(there) // 2]), int(there[-1])]
    labelled = labelled_slices(
        some(label, kept, axis), plane=("axial", "coronal", "sagittal")[axis]
    )
    filled = fill(scan, labelled)
    copied = fill(scan, labelled, way="nearest").label.array > 0
    assert dice(filled.label.array > 0, label.array > 0) > 0.75
    assert not np.array_equal(copied, filled.label.array > 0)
    for i in kept:
        assert np.array_equal(filled.label.array.take(i, axis), label.array.take(i, axis))
    first, middle, last = kept
    place, why = suggest_slice(filled)
    assert place == (
        (first + middle) // 2 if middle - first >= last - middle else (middle + last) // 2
    )
    assert "longest stretch" in why
    alone = labelled_slices(
        some(label, [middle], axis), plane=("axial", "coronal", "sagittal")[axis]
    )
    assert fill(scan, alone).suggestion[0] == middle + 1


def test_nothing_lies_outside_the_range_of_its_class() -> None:
    two = np.zeros((12, 3, 4), np.int16)
    two[2:8, 0], two[5:10, 2] = 1, 3
    labelled = LabelledSlices(0, {i: two[i] for i in (2, 5, 7, 9)})
    assert ranges(labelled) == {1: (2, 7), 3: (5, 9)}
    scan = Volume(np.zeros((1, 12, 3, 4), np.float32), np.eye(4))
    everywhere = fill(scan, labelled, way="nearest").label.array
    assert everywhere[0].any()
    assert np.array_equal(
        fill(scan, labelled, way="nearest", ranges=ranges(labelled)).label.array, two
    )


def test_advice_is_the_middle_of_the_longest_stretch_that_holds_something() -> None:
    def suggested(filled: list[int], labelled: list[int], confident: dict[int, float] = {}) -> int:  # noqa: B006  read alone
        array = np.zeros((20, 1, 1), np.uint8)
        array[filled] = 1
        confidence = np.full(20, np.nan, np.float32)
        confidence[list(confident)] = list(confident.values())
        given = LabelledSlices(0, {i: array[i].astype(np.int16) for i in labelled})
        return suggest_slice(Filled(Volume(array, np.eye(4)), confidence, given))[0]

    inside = list(range(4, 13))
    assert (
        suggested(inside, [4, 8, 12], {6: 0.9, 10: 0.8}) == 10
    )  # equally long: the less certain one
    assert suggested(inside, [4, 9, 12], {6: 0.9, 10: 0.1}) == 6
    assert (
        suggested(inside, [4, 9, 12, 19]) == 15
    )  # nothing is known of what lies beyond 12 but that it ends before 19
    assert suggested([4], [0, 1, 4, 5, 19]) == 2
    assert suggested([4, 5], [0, 1, 4, 5, 10, 19]) == 7  # between 10 and 19 nothing is
    assert (
        suggested(inside, [6, 8]) == 10
    )  # 9 to 12 reach as far as 8 slices between two labelled ones
    assert suggested(inside, [9, 11]) == 6
    assert suggested(inside, inside) == 13
    assert suggested(inside, list(range(4, 20))) == 3


# --- each class where it is labelled, corrections, words -----------------------------------------


def cylinders() -> tuple[Volume, np.ndarray, Volume]:
    """A scan, two cylinders, and their labels: class 1 on slices 2, 10, 18, class 2 on 5, 15."""
    truth = np.zeros((21, 24, 24), np.uint8)
    truth[2:19, 4:10, 4:10], truth[5:16, 14:20, 14:20] = 1, 2
    drawn = np.zeros_like(truth)
    for k, slices in ((1, (2, 10, 18)), (2, (5, 15))):
        for i in slices:
            drawn[i][truth[i] == k] = k
    affine = np.diag([2.5, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    return Volume(np.zeros((1, *truth.shape), np.int16), affine), truth, Volume(drawn, affine)


def test_each_class_is_filled_between_its_own_slices() -> None:
    scan, truth, drawn = cylinders()
    labelled = labelled_slices(drawn)
    assert labelled.silent == {i: {2} for i in (2, 10, 18)} | {i: {1} for i in (5, 15)}
    filled = fill(scan, labelled)
    np.testing.assert_array_equal(filled.label.array, truth)
    assert filled.notes == ()
    known = filled.class_confidence[1]
    assert known[10] == 1 > known[5] > 0
    assert filled.confidence[10] == filled.class_confidence[2][10] < 1
    strict = fill(scan, labelled_slices(drawn, complete=True))
    assert not (strict.label.array[5] == 1).any()
    assert any(
        "class 1 is in slices 2 and 10, and not in labelled slice 5" in n for n in strict.notes
    )


def test_a_network_follows_each_class_from_its_own_slices(trained: Run) -> None:
    scan, truth, drawn = cylinders()
    scan = scan.with_array(truth[None].astype(np.float32))
    model = open_propagation_model(trained.folder)
    both = fill(scan, labelled_slices(drawn), model)
    for k, other in ((1, 2), (2, 1)):
        alone = drawn.with_array(np.where(drawn.array == k, k, 0).astype(np.uint8))
        mask = fill(scan, labelled_slices(alone), model).label.array == k
        there = both.label.array == k
        assert (mask != there).sum() <= 0.05 * max(1, mask.sum()) + (
            both.label.array == other
        ).sum()
        for i in np.flatnonzero(alone.array.any((1, 2))):
            np.testing.assert_array_equal(there[i], alone.array[i] == k)


def test_a_corrected_map_is_filled_again(tmp_path: Path) -> None:
    scan, truth, drawn = cylinders()
    write(tmp_path / "scan.nii.gz", scan)
    write(tmp_path / "drawn.nii.gz", drawn)
    first = cs.propagate(
        tmp_path / "scan.nii.gz",
        tmp_path / "drawn.nii.gz",
        tmp_path / "o.nii.gz",
        way="interpolation",
    )
    array = first.label.array.copy()
    array[7, 4:10, 4:13] = 1  # wider
    array[12] = 0  # not there
    write(tmp_path / "corrected.nii.gz", first.label.with_array(array))
    again = cs.propagate(
        tmp_path / "scan.nii.gz",
        tmp_path / "corrected.nii.gz",
        tmp_path / "o2.nii.gz",
        way="interpolation",
    )
    assert sorted(again.labelled.slices) == [2, 5, 7, 10, 12, 15, 18]
    assert again.labelled.silent == first.labelled.silent
    for i in (7, 12):
        np.testing.assert_array_equal(again.label.array[i], array[i])
    assert (again.label.array[6] == 1).sum() > 36  # the correction reaches its neighbours
    assert (again.label.array[8] == 1).sum() > 36
    assert not (again.label.array[13] == 1).any()
    assert "slices that changed: 7, 12" in again.notes[0]
    with open(tmp_path / "o2-slices.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["labelled"] for row in rows].count("yes") == 7
    assert rows[5]["classes"] == "2"
    # in place, twice; the drawn labels themselves are never taken for a corrected map
    write(tmp_path / "o2.nii.gz", again.label)
    third = cs.propagate(
        scan, tmp_path / "o2.nii.gz", previous=tmp_path / "o2.nii.gz", way="interpolation"
    )
    np.testing.assert_array_equal(third.label.array, again.label.array)
    plain = cs.propagate(scan, tmp_path / "drawn.nii.gz", way="interpolation")
    np.testing.assert_array_equal(plain.label.array, truth)
    with pytest.raises(ContextsegError, match=r"drawn-slices\.csv is missing"):
        cs.propagate(scan, tmp_path / "o2.nii.gz", previous=tmp_path / "drawn.nii.gz")


def test_what_was_labelled_in_part_is_known_in_the_next_round(tmp_path: Path) -> None:
    scan, truth, _ = cylinders()
    array = np.full(truth.shape, 255, np.uint8)
    array[[2, 18]] = np.where(truth[[2, 18]] == 1, 1, 0)
    array[10, :, :7] = np.where(truth[10, :, :7] == 1, 1, 0)
    write(tmp_path / "drawn.nii.gz", Volume(array, scan.affine))
    out = tmp_path / "o.nii.gz"
    first = cs.propagate(scan, tmp_path / "drawn.nii.gz", out, unlabelled=255, way="interpolation")
    np.testing.assert_array_equal(first.label.array, truth == 1)
    assert 0 < first.confidence[10] <= 1
    with open(tmp_path / "o-slices.csv", encoding="utf-8") as file:
        assert (
            next(row for row in csv.DictReader(file) if row["slice"] == "10")["labelled"]
            == "partly"
        )
    corrected = first.label.array.copy()
    corrected[6, 4:10, 10] = 1
    write(out, first.label.with_array(corrected))
    again = cs.propagate(scan, out, way="interpolation")
    assert sorted(again.labelled.slices) == [2, 6, 10, 18]
    assert (again.labelled.slices[10][:, 7:] == IGNORE).all()
    (tmp_path / "o-drawn.nii.gz").unlink()
    with pytest.raises(ContextsegError, match="labelled in part"):
        cs.propagate(scan, out)


def test_labels_of_two_orientations_are_kept_and_named() -> None:
    scan, label = ball()
    array = some(label, [5, 8, 10]).array
    array[:, 10] = label.array[:, 10]
    array[8, 10, 10] = 0  # in the one and the other
    labelled = labelled_slices(label.with_array(array))
    assert labelled.axis == 0
    assert labelled.crossing == {"coronal": [10]}
    filled = fill(scan, labelled)
    np.testing.assert_array_equal(filled.label.array[:, 10], array[:, 10])
    np.testing.assert_array_equal(filled.label.array[8], array[8])
    assert dice(filled.label.array > 0, label.array > 0) > 0.85
    assert any("coronal slice 10" in note for note in filled.notes)
    assert filled.suggestion[0] not in (5, 8, 10)


def test_what_is_not_filled_is_said(trained: Run) -> None:
    scan, label = ball()
    [note] = fill(scan, labelled_slices(some(label, [8]))).notes
    assert "nothing was filled of class 1, which slice 8 alone holds" in note
    assert "--way nearest" in note
    assert "--model" in note
    assert fill(scan, labelled_slices(some(label, [8])), way="nearest").notes == ()
    model = open_propagation_model(trained.folder)
    filled = fill(scan, labelled_slices(some(label, [5, 10])), model, "propagation")
    if not filled.label.array[6:10].any():
        assert "was not found in slices 6 to 9, though 5 and 10 hold it" in filled.notes[0]
        assert (filled.confidence[6:10] == 0).all()
        assert "a Dice of 0.00 is expected" in filled.suggestion[1]
    else:
        assert (filled.confidence[6:10] < 1).all()


def test_a_slice_is_named_as_other_programs_count_it() -> None:
    scan, _, drawn = cylinders()
    filled = fill(scan, labelled_slices(drawn))
    assert filled.describe_slice(3) == "axial slice 3 (ITK-SNAP: 4 of 21; 3D Slicer: S 7.5 mm)"


# --- with one -------------------------------------------------------------------------------------


def test_a_network_fills_a_scan_that_lies_in_any_way(trained: Run) -> None:
    scan, label = ball()
    model = open_propagation_model(trained.folder)
    kept = [5, 7, 8, 10]
    straight = fill(scan, labelled_slices(some(label, kept)), model)
    assert straight.confidence.shape == (16,)
    assert (straight.confidence[kept] == 1).all()
    turned, drawn = scan.oriented("LIP"), some(label, kept).oriented("LIP")
    other = fill(turned, labelled_slices(drawn), model)
    assert other.axis == 1
    assert other.label.shape == turned.shape
    back = other.label.oriented(label.orientation).array
    assert (
        back == straight.label.array
    ).mean() > 0.999  # ties of the pixels' nearest neighbours, at most
    assert np.allclose(other.confidence[::-1], straight.confidence, atol=1e-3, equal_nan=True)
    for i in kept:
        assert np.array_equal(straight.label.array[i], label.array[i])


@pytest.mark.parametrize("way", NETWORK_WAYS)
@pytest.mark.parametrize("turn", ["SAR", "ILP"])
def test_a_network_leaves_what_lies_outside_the_range(
    trained: Run, way: str, turn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, label = (volume.oriented(turn) for volume in ball())
    model = open_propagation_model(trained.folder)
    network: Any = model.net
    decode = network.decode
    monkeypatch.setattr(network, "decode", lambda *given: decode(*given) + 5)  # sees it everywhere
    labelled = labelled_slices(some(label, [6, 8, 9]), plane="axial")
    free = fill(scan, labelled, model, way).label.array
    bound = fill(scan, labelled, model, way, ranges(labelled)).label.array
    assert free.any((1, 2)).all()
    assert not bound[:6].any()
    assert not bound[10:].any()
    assert np.array_equal(bound[6:10], free[6:10])


@pytest.mark.parametrize("certain", [False, True])
def test_shapes_decide_where_a_network_is_undecided_and_a_certain_network_far_from_them(
    certain: bool,
) -> None:
    rng = np.random.default_rng(1)
    labels = {i: (rng.random((9, 11)) < 0.4) * rng.integers(1, 3, (9, 11)) for i in (1, 5, 8)}
    shapes = ShapePrior(labels, (1, 2), (1.0, 1.5), 3.0)
    p = np.full((3, 10, 9, 11), 1 / 3, np.float16)
    if certain:
        p[:], p[2] = 0, 1
    labels_of_both = _decide(p, [9, 11], (1, 2), {1: (2, 8)}, shapes)
    alone = _decide(p, [9, 11], (1, 2), {1: (2, 8)}, None)
    assert np.array_equal(
        labels_of_both[[0, 1, 9]], alone[[0, 1, 9]]
    )  # nothing is known beyond the first and the last
    if not certain:
        by_shape = interpolate_shapes(labels, 10, (1.0, 1.5))
        for a, b in ((1, 5), (5, 8)):  # what both hold stays; else shapes alone are the same
            free = ~((labels[a] > 0) & (labels[b] > 0))
            same = labels_of_both[a + 1 : b, free] == by_shape[a + 1 : b, free]
            assert same.mean() > 0.95
    far = ShapePrior(labels, (1, 2), (1.0, 1.5), 300.0)
    assert (
        np.array_equal(
            _decide(p, [9, 11], (1, 2), {}, far)[[3, 6]],
            _decide(p, [9, 11], (1, 2), {}, None)[[3, 6]],
        )
        or not certain
    )


def test_other_pixels_than_it_was_trained_on(trained: Run) -> None:
    scan, label = ball((16, 20, 20))
    fine = Volume(scan.array.repeat(2, 2).repeat(2, 3), scan.affine @ np.diag([1, 0.5, 0.5, 1]))
    truth = label.array.repeat(2, 1).repeat(2, 2)
    drawn = some(Volume(truth, fine.affine), [5, 8, 11])
    filled = fill(fine, labelled_slices(drawn), open_propagation_model(trained.folder))
    assert filled.label.shape == truth.shape
    assert np.array_equal(filled.label.array[8], truth[8])


def test_the_command_fills_a_file_and_names_the_next_slice(trained: Run, tmp_path: Path) -> None:
    scan, label = ball()
    write(tmp_path / "scan.nii.gz", scan)
    write(tmp_path / "drawn.nii.gz", some(label, [5, 10]))
    words = [
        "propagate",
        str(tmp_path / "scan.nii.gz"),
        "--labels",
        str(tmp_path / "drawn.nii.gz"),
        "--suggest",
    ]
    for extra in ([], ["--model", str(trained.folder)]):
        out = tmp_path / f"filled{len(extra)}.nii.gz"
        done = CliRunner().invoke(app, [*words, "-o", str(out), *extra])
        assert done.exit_code == 0, done.output
        assert "label axial slice" in done.output
        assert "of 16; 3D Slicer: S " in done.output
        assert read_labels(out).same_grid(scan)
        rows = (
            (tmp_path / f"filled{len(extra)}-slices.csv").read_text(encoding="utf-8").splitlines()
        )
        assert len(rows) == 17
        assert rows[6].startswith("5,yes")
    shifted = label.affine.copy()
    shifted[:3, 3] += 0.5
    write(tmp_path / "other.nii.gz", Volume(label.array, shifted))
    words[3] = str(tmp_path / "other.nii.gz")
    with pytest.raises(ContextsegError, match="grid differs"):
        CliRunner().invoke(app, [*words, "-o", str(tmp_path / "x.nii.gz")], catch_exceptions=False)


# --- laws of the method ---------------------------------------------------------------------------


def test_training_is_of_clips_and_resumes(trained: Run, tmp_path: Path) -> None:
    assert isinstance(Run.open(trained.folder).finished(), STCNMethod)
    with open(trained.stage_folder("train-1") / "log.csv", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert {"ohem", "lovasz"} <= set(row)
    method = laws.make("stcn")
    assert [method.decay(done) for done in (0, 0.8, 0.9)] == [1, 0.5, 0.25]


def test_it_is_no_method_to_predict_with(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="contextseg propagate"):
        run_pipeline(trained)
    with pytest.raises(ContextsegError, match="contextseg propagate"):
        laws.make("stcn").predict(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ContextsegError, match="size=stcn-large"):
        laws.make("stcn", size="stcn-large")
