"""Masks from any folder, on the grid of a scan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from contextseg.data.listing import Case
from contextseg.data.masks import check_masks, label_names, mask_files, read_masks, structures
from contextseg.errors import ContextsegError
from contextseg.volume import Volume, write

SHAPE = (6, 8, 10)
AFFINE = np.array([[0.0, 0, 1, -10], [0, 1.5, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])


def scan(affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32), affine)


def box(*slices: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[slices] = 1
    return mask


LIVER, TUMOUR, SPLEEN = (
    box(slice(0, 4), slice(0, 4)),
    box(slice(3, 5), slice(2, 4)),
    box(slice(5, 6)),
)


def put_structures(folder: Path, case: str, inside: str = "", **masks: np.ndarray) -> None:
    for name, mask in masks.items():
        write(folder / case / inside / f"{name}.nii.gz", Volume(mask, AFFINE))


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "segmentations"])
def test_a_folder_of_masks_for_each_case(tmp_path: Path, inside: str) -> None:
    put_structures(tmp_path, "a", inside, liver=LIVER, spleen=SPLEEN)
    put_structures(tmp_path, "b", inside, liver=LIVER, adrenal=TUMOUR)
    names = structures(tmp_path, ["b", "a"])
    assert names == structures(tmp_path, ["a", "b"]) == ("adrenal", "liver", "spleen")
    masks, present = read_masks(tmp_path, "a", scan(), names)
    assert (present, masks.dtype, masks.shape) == (names, np.int16, SHAPE)
    np.testing.assert_array_equal(masks, 2 * LIVER + 3 * SPLEEN)  # these do not overlap
    masks, present = read_masks(tmp_path, "a", scan())
    assert present == ("liver", "spleen")
    np.testing.assert_array_equal(masks, 1 * LIVER + 2 * SPLEEN)
    masks, _ = read_masks(tmp_path, "b", scan(), ["spleen"])
    assert not masks.any()


def test_where_masks_overlap_the_later_name_has_it(tmp_path: Path) -> None:
    put_structures(tmp_path, "a", liver=LIVER, tumour=255 * TUMOUR)
    assert (LIVER & TUMOUR).any()
    masks, _ = read_masks(tmp_path, "a", scan(), ["liver", "tumour"])
    np.testing.assert_array_equal(masks, np.where(TUMOUR, 2, LIVER))
    masks, _ = read_masks(tmp_path, "a", scan(), ["tumour", "liver"])
    np.testing.assert_array_equal(masks, np.where(LIVER, 2, TUMOUR))


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("dataset.json", {"labels": {"background": 0, "spleen": 2, "liver": 7}}),
        ("labels.json", {"labels": {"2": "spleen", "7": "liver"}}),
        ("labels.json", {"spleen": 2, "liver": 7}),
        ("labels.json", {"0": "background", "2": "spleen", "7": "liver"}),
    ],
)
def test_label_maps_with_a_table(tmp_path: Path, file: str, table: object) -> None:
    write(tmp_path / "a.nii.gz", Volume(7 * LIVER + 2 * SPLEEN, AFFINE))
    (tmp_path / file).write_text(json.dumps(table), encoding="utf-8")
    assert label_names(tmp_path) == {0: "background", 2: "spleen", 7: "liver"}
    names = structures(tmp_path, ["a"])
    assert names == ("spleen", "liver")  # by value
    masks, present = read_masks(tmp_path, "a", scan(), names)
    assert present == names
    np.testing.assert_array_equal(masks, 2 * LIVER + SPLEEN)
    masks, present = read_masks(tmp_path, "a", scan(), ["liver"])
    np.testing.assert_array_equal(masks, LIVER)
    np.testing.assert_array_equal(read_masks(tmp_path, "a", scan())[0], 2 * LIVER + SPLEEN)


def test_label_maps_without_a_table(tmp_path: Path) -> None:
    """The values name themselves; the number of each is the same in every case."""
    write(tmp_path / "a.nii.gz", Volume(7 * LIVER, AFFINE))
    write(tmp_path / "b.mha", Volume(300 * SPLEEN.astype(np.int16), AFFINE))
    names = structures(tmp_path, ["b", "a"])
    assert names == ("label_7", "label_300")
    np.testing.assert_array_equal(read_masks(tmp_path, "a", scan(), names)[0], LIVER)
    np.testing.assert_array_equal(read_masks(tmp_path, "b", scan(), names)[0], 2 * SPLEEN)
    assert read_masks(tmp_path, "b", scan())[1] == ("label_300",)


def test_what_else_lies_there(tmp_path: Path) -> None:
    """A preview beside masks is none; pictures alone are label maps of a 2-D data set."""
    put_structures(tmp_path, "a", liver=LIVER)
    write(tmp_path / "a" / "preview.png", Volume(np.ones((1, 5, 5), np.uint8), np.eye(4)))
    (tmp_path / "a" / "statistics.json").write_text("{}", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("by hand", encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    assert mask_files(tmp_path) == ("structures", {"a": (tmp_path / "a" / "liver.nii.gz",)})
    assert structures(tmp_path, ["a"]) == ("liver",)
    assert structures(tmp_path, []) == ()
    write(tmp_path / "flat" / "b.png", Volume(np.eye(5, dtype=np.uint8)[None], np.eye(4)))
    assert structures(tmp_path / "flat", ["b"]) == ("label_1",)
    assert mask_files(tmp_path / ".hidden") == ("", {})


# --- grids ----------------------------------------------------------------------------------------


def itk(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """For the comparison: the same image in ITK's terms (x, y, z; left and back)."""
    image = sitk.GetImageFromArray(array)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def turned(affine: np.ndarray, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0.13], [s, c, 0, 0.21], [0, 0, 1, 0.37], [0, 0, 0, 1]]) @ affine


@pytest.mark.parametrize("degrees", [0.0, 12.0])
@pytest.mark.parametrize("spacing", [(2.9, 1.1, 0.8), (0.7, 2.3, 3.1)])
def test_another_grid_as_itk_does_it(
    tmp_path: Path, degrees: float, spacing: tuple[float, ...]
) -> None:
    """Masks with a part outside the scan, flipped and turned, of finer and coarser voxels; all
    voxels but those on an edge, where ITK takes half a voxel more or less.
    """
    affine = turned(
        np.array(
            [[0, 0, -spacing[2], 1], [0, spacing[1], 0, 2], [spacing[0], 0, 0, -1.0], [0, 0, 0, 1]]
        ),
        degrees,
    )
    label = np.random.default_rng(1).integers(0, 4, (9, 7, 11)).astype(np.uint8)
    write(tmp_path / "a.nii.gz", Volume(label, affine))
    masks, _ = read_masks(tmp_path, "a", scan(), ["label_1", "label_2", "label_3"])
    expected = sitk.Resample(
        itk(label, affine), itk(scan().array[0], AFFINE), sitk.Transform(), sitk.sitkNearestNeighbor
    )
    differ = masks != sitk.GetArrayFromImage(expected)
    index = np.indices(SHAPE).reshape(3, -1)
    place = np.linalg.solve(affine, AFFINE @ np.vstack([index, np.ones(index.shape[1])]))[
        :3
    ].reshape(3, *SHAPE)
    edge = (np.abs(place + 0.5 - np.rint(place + 0.5)) < 5e-3).any(0)
    assert edge.mean() < 0.1
    assert (masks > 0).mean() > 0.1
    assert not (differ & ~edge).any()


def test_turning_the_axes_loses_nothing(tmp_path: Path) -> None:
    """A mask in another orientation, and one of a part of the scan, are moved to their places voxel
    by voxel.
    """
    label = Volume(np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8), AFFINE)
    write(tmp_path / "a.nii.gz", label.oriented("LPI"))
    np.testing.assert_array_equal(read_masks(tmp_path, "a", scan())[0], label.array)
    part = (slice(2, 5), slice(0, 3), slice(4, 10))
    write(tmp_path / "b.nii.gz", label.cropped(part))
    expected = np.zeros(SHAPE, np.int16)
    expected[part] = label.array[part]
    np.testing.assert_array_equal(read_masks(tmp_path, "b", scan())[0], expected)


def test_an_edge_half_way_is_straight(tmp_path: Path) -> None:
    """Voxels of 0.6 mm on a scan of 0.3 mm: every second centre lies half-way, but for the header's
    float32.
    """
    affine = np.diag([0.6, 0.6, 0.6, 1])
    affine[:3, 3] = -103.1
    label = np.zeros((4, 300, 4), np.uint8)
    label[:, ::2] = 1
    write(tmp_path / "a.nii.gz", Volume(label, affine))
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1])
    masks, _ = read_masks(tmp_path, "a", Volume(np.zeros((1, 8, 599, 8), np.int8), fine))
    rows = np.minimum((np.arange(599) + 1) // 2, 299)  # centres at 0, 0.5, 1, ...: 0, 1, 1, 2, 2
    np.testing.assert_array_equal(masks[2, :, 2], label[1, rows, 1])


# --- what can be wrong ----------------------------------------------------------------------------


def test_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    names = ["ok", "gone", "cut", "bare", "two", "grids", "far"]
    for name in names:
        write(images / f"{name}.nii.gz", scan())
        if name not in ("gone", "bare", "cut", "far"):
            put_structures(masks, name, liver=LIVER)
    (masks / "bare").mkdir()
    (masks / "cut").mkdir()
    whole = (masks / "ok" / "liver.nii.gz").read_bytes()
    (masks / "cut" / "liver.nii.gz").write_bytes(whole[: len(whole) // 2])
    wider = AFFINE @ np.diag([1, 1, 1.5, 1])
    write(masks / "grids" / "spleen.nii.gz", Volume(SPLEEN[1:], wider))
    away = AFFINE.copy()
    away[0, 3] += 500
    write(masks / "far" / "liver.nii.gz", Volume(LIVER, away))
    write(masks / "two.nii.gz", Volume(LIVER, AFFINE))
    write(masks / "two.mha", Volume(LIVER, AFFINE))
    cases = [Case(name, (images / f"{name}.nii.gz",)) for name in names]
    seen: list[tuple[int, int]] = []
    problems = check_masks(masks, cases, progress=lambda done, of: seen.append((done, of)))
    whats = [
        "no masks of this case",
        "truncated or damaged",
        "no masks in this folder",
        "the same name as two.mha",
        "its grid differs from the case's first mask's",
        "no place in common",
    ]
    assert len(problems) == len(whats)
    for problem, what, name in zip(problems, whats, names[1:]):
        assert what in problem.what
        assert name in problem.where
    assert seen == [(i, 7) for i in range(1, 8)]
    assert check_masks(masks, cases[:1]) == []
    with pytest.raises(ContextsegError, match="no masks of this case"):
        structures(masks, ["ok", "gone"])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.nii.gz", scan())
    cases = [Case("a", (tmp_path / "images" / "a.nii.gz",))] * 3
    (tmp_path / "empty").mkdir()
    assert [p.what for p in check_masks(tmp_path / "empty", cases)] == ["no masks here"]
    assert [p.what for p in check_masks(tmp_path / "none", cases)] == ["there is no such folder"]
    assert check_masks(tmp_path / "empty", []) == []


def test_values_that_mean_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", Volume(7 * LIVER, AFFINE))
    (tmp_path / "labels.json").write_text('{"liver": 1}', encoding="utf-8")
    with pytest.raises(ContextsegError, match=r"a\.nii\.gz.*label table does not have: 7"):
        read_masks(tmp_path, "a", scan())
    (tmp_path / "labels.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ContextsegError, match="not a JSON object"):
        read_masks(tmp_path, "a", scan())
    assert "not a JSON object" in check_masks(tmp_path, [Case("a", (Path(),))] * 2)[0].what


def test_a_scan_is_no_mask(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", Volume(np.arange(480, dtype=np.int16).reshape(SHAPE), AFFINE))
    write(tmp_path / "b.nii.gz", Volume(-1000 * LIVER.astype(np.int16), AFFINE))
    for case in ("a", "b"):
        with pytest.raises(ContextsegError, match="a scan instead of a label map"):
            read_masks(tmp_path, case, scan())
