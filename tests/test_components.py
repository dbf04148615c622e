"""The largest connected part: which it is, what is removed, and what is reported of it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from contextseg.data import phantom
from contextseg.data.components import (
    COMPONENTS_TABLE,
    Change,
    keep_largest,
    largest_component,
    write_change,
)
from contextseg.data.layouts import open_dataset
from contextseg.errors import ContextsegError
from contextseg.pipeline import train_run
from contextseg.predictor import Member, Predictor
from contextseg.runs import Run
from contextseg.settings import PredictionSettings, Settings
from contextseg.volume import Volume, read, read_labels

torch.set_num_threads(1)


def test_classes_that_touch_are_one_part() -> None:
    """A tumour of 3 and its organ of 4 voxels outweigh an organ of 5."""
    label = np.zeros((1, 3, 8), np.uint8)
    label[0, 0, :4], label[0, 0, 4:7] = 1, 2
    label[0, 2, :5] = 1
    found, change = largest_component(label, (3.0, 0.5, 2.0))
    expected = label.copy()
    expected[0, 2] = 0
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == label.dtype
    assert change == Change(components=2, removed_components=1, removed_vox=5, removed_mm3=15.0)


@pytest.mark.parametrize(("connectivity", "kept"), [(26, 2), (18, 1), (6, 1)])
def test_neighbours_across_a_corner(connectivity: int, kept: int) -> None:
    label = np.zeros((2, 2, 2), np.int16)
    label[0, 0, 0] = label[1, 1, 1] = 1
    found, change = largest_component(label, connectivity=connectivity)  # type: ignore[arg-type]
    assert found.sum() == kept
    assert change.removed_components == 2 - kept


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0)])
def test_of_equal_parts_the_first_stays(order: str, axes: tuple[int, ...]) -> None:
    """The first by its first voxel in (D, H, W), however the array lies in memory."""
    label = np.zeros((3, 4, 9), np.int16)
    label[0, 3, 8] = 1  # smaller, and before them
    label[1, 0, 6:8] = 5
    label[1, 2, 0:2] = 7
    label = np.asarray(label, order=order).transpose(axes)  # type: ignore[call-overload]
    first = 5 if axes == (0, 1, 2) else 7
    found, change = largest_component(label)
    np.testing.assert_array_equal(found, np.where(label == first, label, 0))
    assert change == Change(3, 2, 3, 3.0)


def test_nothing_to_remove() -> None:
    empty = np.zeros((2, 3, 4), np.int16)
    for label, change in (
        (empty, Change()),
        (empty + 3, Change(1)),
        (np.pad(empty + 3, 1), Change(1)),
    ):
        kept, reported = largest_component(label)
        np.testing.assert_array_equal(kept, label)
        assert reported == change
        assert kept is not label


def test_as_scipy_does_it() -> None:
    label = (np.random.default_rng(0).random((12, 14, 16)) < 0.06).astype(np.int16)
    parts, n = ndimage.label(label, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    assert n > 10
    assert (sizes == sizes.max()).sum() == 1
    found, change = largest_component(label)
    np.testing.assert_array_equal(found, parts == 1 + sizes.argmax())
    assert (change.components, change.removed_vox) == (n, sizes.sum() - sizes.max())


def test_millimetres_are_the_volumes() -> None:
    affine = np.array([[0.0, 0, -2, 1], [0, 3, 0, 2], [5, 0, 0, 3], [0, 0, 0, 1]])
    prediction = Volume(np.array([[[1, 1, 0, 2]]], np.uint8), affine)
    kept, change = keep_largest(prediction)
    assert kept.array.tolist() == [[[1, 1, 0, 0]]]
    assert kept.affine is affine
    assert change == Change(2, 1, 1, 30.0)


# --- the table ------------------------------------------------------------------------------------


def test_a_case_is_noted_once(tmp_path: Path) -> None:
    write_change(tmp_path, "a,b", Change(2, 1, 5, 7.5))
    write_change(tmp_path, "c", Change())
    write_change(tmp_path, "a,b", Change(3, 2, 6, 9.0))
    with open(tmp_path / COMPONENTS_TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["case", "components", "removed_components", "removed_vox", "removed_mm3"],
        ["a,b", "3", "2", "6", "9.0"],
        ["c", "0", "0", "0", "0.0"],
    ]
    (tmp_path / COMPONENTS_TABLE).write_text("something,else\n1,2\n", encoding="utf-8")
    with pytest.raises(ContextsegError, match="its columns are not case, components"):
        write_change(tmp_path, "c", Change())


# --- in prediction --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Member]:
    """A method that has hardly learnt anything, and so finds many parts."""
    folder = tmp_path_factory.mktemp("run")
    data = phantom.write_dataset(folder / "data", labelled=2, test=3)
    settings = Settings(str(data)).set(
        ["steps=8", "patch_vox=16,16,16", "base_width=4", "batch_size=2", "device=cpu"]
    )
    run = Run(folder / "run", settings)
    return run, Member(train_run(run), run.plan)


def test_prediction_keeps_the_largest_part(trained: tuple[Run, Member], tmp_path: Path) -> None:
    run, member = trained
    settings = PredictionSettings(mirror=False)
    every_part = Predictor([member], settings)
    largest = Predictor([member], replace(settings, largest_component=True))
    cases = open_dataset(run.settings.dataset).test
    assert every_part.predict_cases(cases, tmp_path / "all") == {}
    assert largest.predict_cases(cases[:2], tmp_path / "one") == {}
    assert not (tmp_path / "all" / COMPONENTS_TABLE).exists()
    (tmp_path / "one" / f"{cases[0].name}.nii.gz").unlink()
    assert largest.predict_cases(cases, tmp_path / "one") == {}  # as after a kill
    with open(tmp_path / "one" / COMPONENTS_TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [case.name for case in cases]
    removed = 0
    for case, row in zip(cases, rows):
        whole, kept = (
            read_labels(tmp_path / name / f"{case.name}.nii.gz") for name in ("all", "one")
        )
        expected, change = largest_component(whole.array, whole.spacing_mm)
        np.testing.assert_array_equal(kept.array, expected)
        assert row == {
            "case": case.name,
            **{name: str(value) for name, value in vars(change).items()},
        }
        assert change.removed_mm3 == 2 * change.removed_vox  # voxels of 2 x 1 x 1 mm
        removed += change.removed_vox
        scan = read(*case.images)
        segmentation = largest.predict(scan)
        np.testing.assert_array_equal(segmentation.label.array, expected)
        assert segmentation.removed == change
    assert removed > 0
