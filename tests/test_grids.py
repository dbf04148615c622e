"""Grids: what counts as the same one, label maps turned and placed onto it, and label values."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

import laws
from contextseg.data.cache import preprocess
from contextseg.data.check import check
from contextseg.data.components import keep_largest
from contextseg.data.layouts import open_dataset, to_classes, to_values
from contextseg.data.masks import read_masks
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import Pair, evaluate
from contextseg.grids import (
    TOLERANCE_VOX,
    difference,
    fits,
    label_type,
    lattice_mm,
    onto,
    same_grid,
)
from contextseg.metrics import evaluate_case
from contextseg.predict import labels_from_slabs
from contextseg.propagation import LabelledSlices, Session, fill, labelled_slices
from contextseg.studies.simulate.network import train_and_fill
from contextseg.volume import Volume, as_labels, read_labels, write

OBLIQUE = np.array([[0.4, 0.3, 2.0, -31], [0.1, -1.2, 0.3, 12], [2.5, 0.2, -0.5, 40], [0, 0, 0, 1]])
SAR = np.array([[0, 0, 1.0, -90], [0, 1, 0, -80], [3, 0, 0, 700], [0, 0, 0, 1]])


def labels(shape: tuple[int, ...] = (5, 7, 9), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.int16)


def turned(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same voxels at the same places, with the axes stored in another order and direction."""
    array = volume.array.transpose(order)
    affine = volume.affine[:, [*order, 3]].copy()
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(np.ascontiguousarray(array), affine)


# --- the same grid --------------------------------------------------------------------------------


@pytest.mark.parametrize("mm", [1e-3, 0.01, 1, 1000])  # micro-CT, and scans in metres
@pytest.mark.parametrize(("vox", "same"), [(0, True), (0.09, True), (0.11, False), (8, False)])
def test_the_tolerance_is_a_part_of_a_voxel(mm: float, vox: float, same: bool) -> None:
    image = Volume(np.zeros((4, 5, 6)), np.diag([3.0 * mm, mm, 2 * mm, 1]))
    for axis in range(3):
        affine = image.affine.copy()
        affine[axis, 3] += vox * affine[axis, axis]
        other = Volume(image.array, affine)
        assert image.same_grid(other) is same_grid(other, image) is same
        assert bool(difference(other, image)) is not same


def test_a_header_s_rounding_is_none_of_it() -> None:
    like = Volume(
        np.broadcast_to(np.zeros(1), (512, 512, 512)), OBLIQUE * [[0.3], [0.3], [0.3], [1]]
    )
    rounded = Volume(like.array, like.affine.astype(np.float32).astype(float))
    assert same_grid(rounded, like, 1e-3)
    text = Volume(like.array, np.round(like.affine, 5))
    assert same_grid(text, like)
    grown = Volume(like.array, like.affine @ np.diag([1, 1, 1 + 1.1 * TOLERANCE_VOX / 511, 1]))
    assert not same_grid(grown, like)


def test_a_broken_affine_is_another_grid() -> None:
    like = Volume(labels(), SAR)
    flat = Volume(labels(), np.diag([0.0, 1, 1, 1]))
    assert not fits(flat, like)
    assert not fits(like, flat)
    assert same_grid(flat, flat)


# --- turned and placed ----------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [SAR, OBLIQUE], ids=["straight", "oblique and sheared"])
def test_every_way_to_store_a_lattice_comes_back_exactly(affine: np.ndarray) -> None:
    whole = Volume(labels(), affine)
    for order in permutations(range(3)):
        for flips in product((False, True), repeat=3):
            placed = onto(turned(whole, order, flips), whole)
            assert np.array_equal(placed.array, whole.array)
            assert np.array_equal(placed.affine, whole.affine)
    assert onto(whole, Volume(np.zeros((2, 5, 7, 9)), affine)) is whole


def test_a_part_of_the_lattice_is_placed_in_it() -> None:
    whole = Volume(labels(), OBLIQUE)
    box = (slice(1, 4), slice(2, 7), slice(0, 3))
    expected = np.zeros_like(whole.array)
    expected[box] = whole.array[box]
    part = whole.cropped(box)
    assert np.array_equal(onto(part, whole).array, expected)
    assert np.array_equal(onto(turned(part, (2, 0, 1), (True, False, True)), whole).array, expected)
    one = whole.cropped((slice(4, 5), slice(0, 7), slice(0, 9)))  # a slice, of any thickness
    one.affine[:3, 0] *= 5
    assert np.array_equal(onto(one, whole).array[4], whole.array[4])
    first = whole.cropped((slice(0, 3), slice(0, 7), slice(0, 9)))
    assert np.array_equal(onto(first, whole).array[:3], whole.array[:3])


def test_what_cannot_be_placed_says_how_it_differs() -> None:
    whole = Volume(labels(), SAR)
    outside = whole.affine.copy()
    outside[:3, 3] -= outside[:3, 0]
    for volume, what in (
        (
            Volume(labels((4, 7, 9)), outside),
            "9 x 7 x 4 voxels, the image has 9 x 7 x 5; it reaches",
        ),
        (Volume(labels(), outside), "shifted by 3 mm"),
        (Volume(labels((2, 3, 4)), SAR), "4 x 3 x 2 voxels.*resized without its header?"),
        (Volume(labels((2, 3, 4)), np.diag([1.1, 1, 1, 1])), "spacing 1 x 1 x 1.1 mm"),
        (Volume(labels(), SAR @ np.diag([1, 1, 1.2, 1])), "spacing 1.2 x 1 x 3 mm"),
    ):
        with pytest.raises(ContextsegError, match=what) as caught:
            onto(volume, whole, "a.nii.gz")
        assert caught.value.where == "a.nii.gz"
        assert "header" not in caught.value.remedy
        assert not fits(volume, whole)


def test_an_array_has_no_place_but_the_scan_s() -> None:
    scan = Volume(labels()[None], SAR)
    with pytest.raises(ContextsegError, match="grid differs"):
        as_labels(labels()[1:], like=scan)
    drawn = turned(Volume(labels(), SAR), (2, 1, 0), (True, False, True))
    assert np.array_equal(as_labels(drawn, like=scan).array, labels())


# --- everywhere -----------------------------------------------------------------------------------


def put_dataset(folder: Path, change: str = "", values: tuple[int, ...] = (1, 2, 3)) -> Path:
    """Two cases with their labels, stored as `change` says."""
    table = {"background": 0} | {f"c{value}": value for value in values}
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "MRI"}, "labels": table, "file_ending": ".nii.gz"},
    )
    to = np.array([0, *values], label_type(max(values), signed=True))
    for seed, name in enumerate(("a", "b")):
        scan = np.random.default_rng(seed).normal(9, 2, (8, 10, 12)).astype(np.float32)
        write(folder / "imagesTr" / f"{name}_0000.nii.gz", Volume(scan[None], SAR))
        indices = labels((8, 10, 12), seed)
        indices[[0, -1]] = 0
        label = Volume(to[indices], SAR)
        if change == "turned":
            label = turned(label, (2, 0, 1), (True, True, False))
        elif change == "cropped":
            label = label.cropped((slice(1, 7), slice(0, 10), slice(0, 12)))
        write(folder / "labelsTr" / f"{name}.nii.gz", label)
    return folder


def cached_labels(folder: Path, out: Path) -> list[np.ndarray]:
    data = open_dataset(folder)
    plan = replace(laws.plan(classes=2), spacing_mm=(3.0, 1.0, 1.0))
    return [case.label for case in preprocess(data, data.train, plan, out)]  # type: ignore[misc]


@pytest.mark.parametrize("change", ["turned", "cropped"])
def test_labels_of_a_data_set_are_turned_and_placed(tmp_path: Path, change: str) -> None:
    plain = put_dataset(tmp_path / "plain")
    other = put_dataset(tmp_path / "other", change)
    findings = check(other)
    assert [f.kind for f in findings] == (["cropped"] * 2 if change == "cropped" else [])
    assert all(f.level == "warning" and "12 x 10 x 6 voxels" in f.what for f in findings)
    expected = cached_labels(plain, tmp_path / "cache-plain")
    for mine, theirs in zip(cached_labels(other, tmp_path / "cache-other"), expected):
        assert np.array_equal(mine, theirs)


def test_a_prediction_is_turned_and_a_part_is_placed(tmp_path: Path) -> None:
    whole = Volume(labels(), OBLIQUE)
    part = whole.cropped((slice(1, 4), slice(1, 7), slice(2, 9)))
    write(tmp_path / "r.nii.gz", whole)
    write(tmp_path / "turned.nii.gz", turned(whole, (1, 2, 0), (True, False, True)))
    write(tmp_path / "part.nii.gz", part)
    write(tmp_path / "inside.nii.gz", onto(part, whole))
    regions = {"x": (1,), "y": (2, 3)}

    def dsc(prediction: str, reference: str) -> list[float]:
        pair = Pair("a", tmp_path / f"{prediction}.nii.gz", tmp_path / f"{reference}.nii.gz")
        table, problems = evaluate([pair], regions)
        assert not problems
        return list(table["dsc"])

    assert dsc("turned", "r") == [1, 1]
    assert dsc("part", "r") == dsc("inside", "r") < [1, 1]
    assert dsc("r", "part") == dsc("r", "inside")


def test_masks_that_cover_different_parts_of_the_scan(tmp_path: Path) -> None:
    scan = Volume(np.zeros((1, 5, 7, 9), np.float32), SAR)
    whole = Volume((labels() == 1).astype(np.uint8), SAR)
    other = Volume((labels() == 2).astype(np.uint8), SAR)
    cut = (slice(2, 5), slice(1, 6), slice(1, 9))
    write(tmp_path / "a" / "liver.nii.gz", turned(whole, (2, 1, 0), (False, True, False)))
    write(tmp_path / "a" / "spleen.nii.gz", other.cropped(cut))
    masks, names = read_masks(tmp_path, "a", scan)
    assert names == ("liver", "spleen")
    assert np.array_equal(masks, whole.array + 2 * onto(other.cropped(cut), whole).array)


def test_axes_at_right_angles_have_a_spacing_and_others_steps() -> None:
    turned_about = np.eye(4)
    turned_about[1:3, 1:3] = [[0.8, -0.6], [0.6, 0.8]]
    for affine in (SAR, turned_about @ SAR, (turned_about @ SAR).astype(np.float32)):
        volume = Volume(np.zeros((60, 256, 256), bool), affine)
        assert lattice_mm(volume) == volume.spacing_mm
    tilted = SAR.copy()
    tilted[1, 0] = 0.5
    assert lattice_mm(Volume(np.zeros((60, 9, 9), bool), tilted)) == (
        (0, 0.5, 3),
        (0, 1, 0),
        (1, 0, 0),
    )
    assert len(np.shape(lattice_mm(Volume(np.zeros((1, 9, 9), bool), tilted)))) == 1


def test_files_on_a_sheared_grid_are_measured_on_it(tmp_path: Path) -> None:
    tilted = SAR.copy()
    tilted[1, 0] = 0.9
    pred, ref = (
        Volume((labels((8, 10, 12), seed) == 1).astype(np.uint8), tilted) for seed in (0, 1)
    )
    write(tmp_path / "p.nii.gz", turned(pred, (1, 0, 2), (False, True, False)))
    write(tmp_path / "r.nii.gz", ref)
    pair = Pair("a", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    table, problems = evaluate([pair], {"x": (1,)})
    assert not problems
    steps = tilted[:3, :3].T
    [expected] = evaluate_case(pred.array, ref.array, steps, {"x": [1]})
    for name in ("hd95_mm", "assd_mm", "nsd", "ref_ml"):
        assert table[name][0] == pytest.approx(expected[name], rel=1e-4)
    box = Volume(ref.array, SAR)
    _, change = keep_largest(ref)
    assert change.removed_mm3 == pytest.approx(change.removed_vox * 3)
    assert change.removed_mm3 == pytest.approx(keep_largest(box)[1].removed_mm3)


# --- label values ---------------------------------------------------------------------------------

LARGE = (40_000, 65_536, 2**31 - 1)
KINDS = {40_000: "uint16", 65_536: "int32", 2**31 - 1: "int32"}


def test_large_values_from_a_data_set_to_a_prediction(tmp_path: Path) -> None:
    assert check(put_dataset(tmp_path / "data", values=LARGE)) == []
    data = open_dataset(tmp_path / "data")
    assert data.values == (0, *LARGE)
    for label in cached_labels(tmp_path / "data", tmp_path / "cache"):
        assert np.unique(label).tolist() == [0, 1, 2, 3]
    file = tmp_path / "data" / "labelsTr" / "a.nii.gz"
    on_disk = read_labels(file).array
    assert np.array_equal(to_values(data, to_classes(data, on_disk, file)), on_disk)

    import torch

    logits = torch.eye(4)[:, None, None]
    predicted = labels_from_slabs([(0, 1, logits)], (1, 1, 4), (1, 1, 4), to_class=data.values)
    assert predicted.ravel().tolist() == [0, *LARGE]
    pair = Pair("a", file, file)
    table, _ = evaluate([pair], {str(value): (value,) for value in LARGE})
    assert list(table["label"]) == [str(value) for value in LARGE]
    assert list(table["dsc"]) == [1, 1, 1]


@pytest.mark.parametrize("value", LARGE)
def test_large_values_are_filled_and_written(tmp_path: Path, value: int) -> None:
    scan = Volume(np.random.default_rng(0).normal(size=(1, 9, 8, 8)).astype(np.float32), SAR)
    drawn = np.zeros((9, 8, 8), np.int64)
    drawn[[2, 6], 2:6, 2:6] = value
    drawn[2, 2, 2] = 1
    labelled = labelled_slices(as_labels(Volume(drawn, SAR), scan))
    for way in ("interpolation", "nearest"):
        filled = fill(scan, labelled, way=way)
        filled.save(tmp_path / "out.nii.gz")
        written = read_labels(tmp_path / "out.nii.gz").array
        assert filled.label.array.dtype == KINDS[value]
        assert np.unique(written).tolist() == [0, 1, value]
        assert (written[4] == value).sum() >= 15
    trained = train_and_fill(scan, labelled, steps=1)
    assert (trained.label.array[6] == drawn[6]).all()


def test_large_values_walk_with_a_network() -> None:
    import torch

    from contextseg.nets.stcn import STCN

    torch.manual_seed(0)
    network = STCN(1, blocks=(1, 1, 1), width=4).eval()
    image = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    results = []
    for values in ((1, 2), (40_000, 2**31 - 1)):
        slice_label = np.zeros((16, 16), np.int64)
        slice_label[:8], slice_label[8:, :8] = values
        results.append(Session(network, image).propagate({0: slice_label}).labels)
    small, large = results
    assert np.array_equal(large, np.array([0, 40_000, 2**31 - 1])[small])


def test_large_values_of_label_maps_as_masks(tmp_path: Path) -> None:
    scan = Volume(np.zeros((1, 5, 7, 9), np.float32), SAR)
    to = np.array([0, *LARGE], np.int32)
    write(tmp_path / "a.nii.gz", Volume(to[labels()], SAR))
    masks, names = read_masks(tmp_path, "a", scan)
    assert names == tuple(f"label_{value}" for value in LARGE)
    assert np.array_equal(masks, labels())


def test_unlabelled_and_large_values_in_one_map() -> None:
    drawn = np.full((3, 4, 4), 2**31 - 1)
    drawn[1] = 7
    drawn[1, 0] = 2**31 - 1
    labelled = labelled_slices(Volume(drawn, SAR), unlabelled=2**31 - 1, plane="axial")
    assert isinstance(labelled, LabelledSlices)
    assert np.unique(labelled.slices[1]).tolist() == [-1, 7]


def test_outside_of_a_part_may_have_another_value() -> None:
    scan = Volume(np.zeros((4, 5, 6), np.int16), np.eye(4))
    part = Volume(np.ones((2, 5, 6), np.uint8), np.eye(4))
    placed = onto(part, scan, outside=40000)
    assert placed.array[:2].min() == 1
    assert placed.array[2:].min() == 40000
