"""Metrics: hand arithmetic, brute force, laws, and the numbers of MONAI, surface-distance and MedPy
where installed.
"""

from __future__ import annotations

import json
import tracemalloc
from itertools import pairwise
from math import hypot, inf, isnan, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from contextseg import metrics
from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.metrics import (
    CONVENTIONS,
    case,
    evaluate_case,
    lesion_table,
    nnunet_summary,
    summarise,
)
from contextseg.metrics.calibration import within
from contextseg.metrics.lattice import sheared_areas
from contextseg.metrics.surface import distances_mm, element_areas

X = {"x": [1]}
SURFACE = (metrics.HD95, metrics.HD, metrics.ASSD, metrics.NSD)
OVERLAP = (metrics.DSC, metrics.IOU, metrics.SEN, metrics.PRC)


def row(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: tuple[float, ...], **options: Any
) -> dict[str, Any]:
    """The one row of class x, label 1."""
    (only,) = evaluate_case(pred.astype(np.int16), ref.astype(np.int16), spacing_mm, X, **options)
    return only


def blobs(
    seed: int, shape: tuple[int, ...] = (14, 17, 19), shift: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Two uneven masks that overlap, several parts each, some at the border."""
    a, b = (
        ndimage.gaussian_filter(np.random.default_rng([seed, i]).standard_normal(shape), 2)
        for i in range(2)
    )
    return a + shift * b > 0.5 * a.std(), a > 0.5 * a.std()


def close(a: dict[str, Any], b: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return all(
        a[key] == pytest.approx(b[key], abs=1e-5) for key in keys
    )  # a distance map is float32


# --- the catalogue --------------------------------------------------------------------------------


def square(at: int) -> np.ndarray:
    """A mask (10, 10, 10) with a cube of 3 voxels."""
    mask = np.zeros((10, 10, 10), bool)
    mask[2:5, 2:5, at : at + 3] = True
    return mask


NOTHING = np.zeros((10, 10, 10), bool)
DIAGONAL = sqrt(3) * 10


def share_of_larger(pred: np.ndarray, ref: np.ndarray, spacing_mm: tuple[float, ...]) -> float:
    """A toy metric: voxels in common over those of the larger mask."""
    return float((pred & ref).sum() / max(pred.sum(), ref.sum()))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_law_the_catalogue_says_what_evaluate_case_does(name: str) -> None:
    """A right prediction has the best value; a missed, spurious or absent class what it says."""
    metric = metrics.METRICS[name]
    given = {"near_mm": 2.0}
    assert row(square(2), square(2), (1, 1, 1), **given)[name] == metric.best
    absent = row(NOTHING, NOTHING, (1, 1, 1), **given)[name]
    assert absent == 0 if name == metrics.VOLUME_DIFF else isnan(absent)
    missed = row(NOTHING, square(2), (1, 1, 1), **given)[name]
    spurious = row(square(2), NOTHING, (1, 1, 1), **given)[name]
    assert not isnan(missed)
    assert isnan(spurious) == metric.needs_reference
    if not isnan(metric.worst):
        worst = DIAGONAL if metric.worst == inf else metric.worst
        assert missed == pytest.approx(worst)
        assert metric.needs_reference or spurious == pytest.approx(worst)


def test_the_catalogue_is_keyed_by_the_columns_of_a_row() -> None:
    columns = row(square(2), square(3), (1, 1, 1), near_mm=2.0)
    for catalogue in (metrics.METRICS, metrics.QUANTITIES):
        assert [column.name for column in catalogue.values()] == list(catalogue)
        assert set(catalogue) <= set(columns)
    assert set(metrics.DEFAULT_METRICS) <= set(metrics.METRICS)
    assert metrics.METRICS["hd95_mm"].title == "HD95, mm"
    assert metrics.METRICS["dsc"].title == "Dice"


def test_a_metric_with_a_function_is_in_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 of 27 voxels in common; the worst value of a failure, NaN of an absence; in the means."""
    toy = metrics.Metric("toy", "Toy", function=share_of_larger)
    monkeypatch.setitem(metrics.METRICS, "toy", toy)
    assert row(square(2), square(3), (1, 1, 1))["toy"] == 2 / 3
    assert row(square(2), NOTHING, (1, 1, 1))["toy"] == 0
    assert row(NOTHING, square(2), (1, 1, 1))["toy"] == 0
    assert isnan(row(NOTHING, NOTHING, (1, 1, 1))["toy"])
    table = pd.DataFrame(
        [row(square(2), square(3), (1, 1, 1)), row(NOTHING, square(2), (1, 1, 1))]
    ).assign(case=["a", "b"])
    means = summarise(table).set_index(["class", "metric"])
    assert means.loc[("x", "toy"), "mean"] == pytest.approx(1 / 3)


def test_a_metric_says_what_a_failure_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The diagonal; its own value of empty masks; nothing without a reference."""
    values = {
        "far": metrics.Metric("far", "Far", direction="lower", worst=inf, function=lambda *_: 1.0),
        "own": metrics.Metric("own", "Own", worst=nan, function=lambda p, r, mm: p.sum() - r.sum()),
        "sen2": metrics.Metric("sen2", "Sen", needs_reference=True, function=lambda *_: 1.0),
    }
    for name, metric in values.items():
        monkeypatch.setitem(metrics.METRICS, name, metric)
    missed = row(NOTHING, square(2), (1, 1, 1))
    spurious = row(square(2), NOTHING, (1, 1, 1))
    assert missed["far"] == spurious["far"] == pytest.approx(DIAGONAL)
    assert (missed["own"], spurious["own"]) == (-27, 27)
    assert missed["sen2"] == 0
    assert isnan(spurious["sen2"])


def test_a_metric_with_a_function_sees_the_box_without_ignored_voxels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    toy = metrics.Metric("toy", "Toy", function=lambda p, r, mm: seen.append((p, r, mm)) or 1.0)
    monkeypatch.setitem(metrics.METRICS, "toy", toy)
    ref = square(2).astype(np.int16)
    ref[:3] = IGNORE
    evaluate_case(square(2).astype(np.int16), ref, (3.0, 2.0, 1.0), X)
    ((pred_mask, ref_mask, spacing_mm),) = seen
    assert spacing_mm == (3.0, 2.0, 1.0)
    assert pred_mask.shape == ref_mask.shape
    assert pred_mask.sum() == ref_mask.sum() == 18


# --- elements and surfaces, by hand ---------------------------------------------------------------


def test_areas_of_surface_elements_by_geometry():
    a, b, c = 3.0, 2.0, 0.5  # spacing along d, h, w; bit w + 2h + 4d
    areas = element_areas((a, b, c))
    whole = sqrt((b * c) ** 2 + (a * c) ** 2 + (a * b) ** 2)
    assert areas[0] == areas[255] == 0
    assert areas[0b00000001] == pytest.approx(
        whole / 8
    )  # triangle on half edges: half of |(a/2, b/2) x (b/2, c/2)|
    assert areas[0b00000011] == pytest.approx(
        c * hypot(a, b) / 2
    )  # along w: c long, across the midpoints of d and h
    assert areas[0b00001111] == pytest.approx(b * c)  # a wall across d
    assert areas[0b10000001] == pytest.approx(whole / 4)  # two opposite corners, apart
    hexagon = [
        (0, b, c / 2),
        (0, b / 2, c),
        (a / 2, 0, c),
        (a, 0, c / 2),
        (a, b / 2, 0),
        (a / 2, b, 0),
    ]
    fan = [
        np.cross(np.subtract(p, hexagon[0]), np.subtract(q, hexagon[0]))
        for p, q in pairwise(hexagon)
    ]
    assert areas[0b00010111] == pytest.approx(
        np.linalg.norm(fan, axis=1).sum() / 2
    )  # a corner and its three neighbours
    assert element_areas((a, b))[0b0001] == pytest.approx(hypot(a, b) / 2)
    assert element_areas((a, b))[0b0011] == pytest.approx(b)
    assert element_areas((a, b))[0b1001] == pytest.approx(hypot(a, b))


def test_element_areas_do_not_depend_on_direction_or_side():
    areas, mirrored = element_areas((3.0, 2.0, 0.5)), element_areas((0.5, 2.0, 3.0))
    for pattern in range(256):
        corners = np.array([pattern >> b & 1 for b in range(8)]).reshape(2, 2, 2)
        flipped, turned = (
            int((c.ravel() << np.arange(8)).sum()) for c in (corners[::-1, :, ::-1], corners.T)
        )
        assert areas[pattern] == pytest.approx(areas[255 - pattern])
        assert areas[pattern] == pytest.approx(areas[flipped])
        assert areas[pattern] == pytest.approx(mirrored[turned])


def test_two_boxes_at_the_border():
    """[0:50] and [0:51] of 100^3 at 2 x 1 x 1 mm: NSD at 1 mm 0.836, HD95 2.0, DSC 0.990."""
    ref, pred = np.zeros((100, 100, 100), np.uint8), np.zeros((100, 100, 100), np.uint8)
    ref[:50], pred[:51] = 1, 1

    def area(
        n: int,
    ) -> (
        float
    ):  # walls, slanted edges and corners of a box of n x 100 x 100 voxels, border included
        walls = 2 * 99 * 99 * 1 + 4 * (n - 1) * 99 * 2
        edges = 8 * 99 * sqrt(1 + 4) / 2 + 4 * (n - 1) * sqrt(4 + 4) / 2
        return walls + edges + 8 * sqrt(1 + 4 + 4) / 8

    # The end wall of the reference, without the two rows within 1 mm of the other's side.
    far_ref = 97 * 97
    far_pred = (
        99 * 99 + 4 * 99 * sqrt(5) / 2 + 4 * 3 / 8
    )  # the whole end of the prediction, 2 mm ahead
    only = row(pred, ref, (2.0, 1.0, 1.0), tolerance_mm=1.0)
    assert only["nsd"] == pytest.approx(1 - (far_ref + far_pred) / (area(50) + area(51)))
    assert only["nsd"] == pytest.approx(0.836, abs=5e-4)
    assert only["hd95_mm"] == only["hd_mm"] == 2.0
    assert only["dsc"] == pytest.approx(2 * 50 / 101)
    assert only["sen"] == 1
    assert only["prc"] == pytest.approx(50 / 51)
    assert (only["tp"], only["fp"], only["fn"], only["tn"]) == (500_000, 10_000, 0, 490_000)
    assert only["volume_diff_ml"] == pytest.approx(10_000 * 2 / 1000)
    assert only["rvd"] == pytest.approx(0.02)


def test_one_pixel_and_another():
    """A pixel has four equal elements, at its corners; another, three to the right: distances 2,
    3 and 2, 3.
    """
    ref, pred = np.zeros((5, 9)), np.zeros((5, 9))
    ref[2, 2] = pred[2, 5] = 1
    only = row(pred, ref, (1.0, 1.0), tolerance_mm=2.0)
    assert [only[key] for key in SURFACE] == [3, 3, 2.5, 0.5]
    assert [only[key] for key in OVERLAP] == [0, 0, 0, 0]
    assert only["status"] == metrics.BOTH
    voxels = row(
        pred, ref, (1.0, 1.0), tolerance_mm=2.0, convention="monai"
    )  # one point each, 3 mm apart
    assert [voxels[key] for key in SURFACE] == [3, 3, 3, 0]


def test_percentiles_of_voxel_conventions():
    """Reference: pixel 0 of a row; prediction: pixels 0 and 4. Distances 0 one way; 0 and 4 the
    other.
    """
    ref, pred = np.zeros((3, 7)), np.zeros((3, 7))
    ref[1, 1] = pred[1, 1] = pred[1, 5] = 1
    assert row(pred, ref, (1.0, 1.0), convention="monai")["hd95_mm"] == pytest.approx(
        0.95 * 4
    )  # of (0, 4)
    assert row(pred, ref, (1.0, 1.0), convention="medpy")["hd95_mm"] == pytest.approx(
        0.9 * 4
    )  # of (0, 0, 4)
    assert row(pred, ref, (1.0, 1.0))["hd95_mm"] == 4  # 5 of 12 elements are beyond 2 mm


@pytest.mark.parametrize("shape", [(14, 17, 19), (31, 27)])
def test_surface_measures_by_brute_force(shape):
    spacing = (2.5, 0.7, 1.1)[-len(shape) :]
    pred, ref = blobs(0, shape)

    def elements(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points, weights = [], []
        for at in np.ndindex(*(n + 1 for n in mask.shape)):
            cell = np.pad(mask, 1)[tuple(slice(i, i + 2) for i in at)].ravel()
            if cell.any() and not cell.all():
                points.append(np.multiply(at, spacing))
                weights.append(element_areas(spacing)[int((cell << np.arange(cell.size)).sum())])
        return np.array(points), np.array(weights)

    (at_pred, w_pred), (at_ref, w_ref) = elements(pred), elements(ref)
    table = cdist(at_pred, at_ref)
    distance, weight = np.r_[table.min(1), table.min(0)], np.r_[w_pred, w_ref]
    for tolerance in (
        0.7,
        1.4,
        2.5,
    ):  # 1.4 = 2 x 0.7 in decimal: a distance equal to the tolerance is within it
        only = row(pred, ref, spacing, tolerance_mm=tolerance)
        assert only["nsd"] == pytest.approx(
            weight[distance <= tolerance + 1e-5].sum() / weight.sum()
        )
    assert only["hd_mm"] == pytest.approx(distance.max())
    assert only["assd_mm"] == pytest.approx((distance * weight).sum() / weight.sum())
    beyond = [
        w[d > only["hd95_mm"] + 1e-6].sum() / w.sum()
        for d, w in ((table.min(1), w_pred), (table.min(0), w_ref))
    ]
    before = [
        w[d >= only["hd95_mm"] - 1e-6].sum() / w.sum()
        for d, w in ((table.min(1), w_pred), (table.min(0), w_ref))
    ]
    assert max(beyond) <= 0.05 < max(before)


@pytest.mark.parametrize("share", [0.001, 0.3])  # few points take the tree, many the map
def test_distances_by_either_way(share):
    rng = np.random.default_rng(1)
    source, target = rng.random((25, 30, 35)) < share, rng.random((25, 30, 35)) < 0.02
    spacing = np.array((2.5, 0.7, 1.1))
    expected = cdist(np.argwhere(source) * spacing, np.argwhere(target) * spacing).min(1)
    assert distances_mm(source, target, spacing, 99.0) == pytest.approx(expected, abs=1e-5)
    assert (distances_mm(source, target & False, spacing, 99.0) == 99).all()


# --- sheared grids, and images of one slice -------------------------------------------------------

SHEARED = ((2.5, 0.9, 0.2), (0.0, 0.7, 0.0), (0.0, 0.3, 1.1))
"""The step along each axis, as a tilted gantry gives it."""


def turn(seed: int) -> np.ndarray:
    """A rotation."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]


@pytest.mark.parametrize("spacing", [(2.5, 0.7, 1.1), (0.7, 1.1)])
def test_steps_at_right_angles_measure_as_the_spacing_does(spacing):
    pred, ref = blobs(3, (14, 17, 19)[-len(spacing) :])
    steps = np.diag(spacing) if len(spacing) == 3 else np.array([[0.7, 0, 0], [0, 1.1, 0]])
    options = {"lesions": True, "near_mm": 3.0}
    for convention in sorted(CONVENTIONS):
        expected = row(pred, ref, spacing, convention=convention, **options)
        sheared = row(pred, ref, steps @ turn(0), convention=convention, **options)
        for name, value in expected.items():
            same = value == sheared[name] if isinstance(value, str) else None
            assert same or sheared[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def test_areas_on_a_sheared_grid_by_geometry():
    areas = sheared_areas(SHEARED)
    d, h, w = (np.array(step) for step in SHEARED)
    assert areas[0b00001111] == pytest.approx(np.linalg.norm(np.cross(h, w)))  # a wall across d
    assert areas[0b01010101] == pytest.approx(np.linalg.norm(np.cross(d, h)))  # and one across w
    # a corner: the triangle of its three edges' midpoints, on either side of the shear
    for pattern, (a, b, c) in ((0b00000001, (d, h, w)), (0b00000100, (d, -h, w))):
        triangle = np.cross(b / 2 - a / 2, c / 2 - a / 2) / 2
        assert areas[pattern] == pytest.approx(np.linalg.norm(triangle))
    assert areas[0b00000001] != pytest.approx(areas[0b00000100])
    assert areas == pytest.approx(areas[::-1])  # inside and outside
    turned = np.array(SHEARED) @ turn(1)
    assert sheared_areas(tuple(map(tuple, turned.tolist()))) == pytest.approx(areas)
    pixels = sheared_areas(SHEARED[1:])
    assert pixels[0b0011] == pytest.approx(np.linalg.norm(w))
    assert pixels[0b0001] == pytest.approx(np.linalg.norm(h / 2 - w / 2))


def test_surface_measures_of_a_sheared_grid_by_brute_force():
    pred, ref = blobs(0)
    only = row(pred, ref, SHEARED, convention="monai", near_mm=2.0)

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        return np.argwhere(padded & ~ndimage.binary_erosion(padded)) @ np.array(SHEARED)

    table = cdist(surface(pred), surface(ref))
    distance = np.r_[table.min(1), table.min(0)]
    assert only["hd_mm"] == pytest.approx(distance.max())
    assert only["assd_mm"] == pytest.approx(distance.mean())
    assert only["nsd"] == pytest.approx((distance <= 2 + 1e-6).mean())
    voxel_ml = abs(np.linalg.det(SHEARED)) / 1000
    assert only["ref_ml"] == pytest.approx(ref.sum() * voxel_ml)
    false = cdist(np.argwhere(pred & ~ref) @ SHEARED, np.argwhere(ref) @ SHEARED).min(1)
    assert only["fp_near"] == (false <= 2).sum()
    near = within(ref, SHEARED, 2.0)
    everywhere = cdist(np.argwhere(np.ones_like(ref)) @ SHEARED, np.argwhere(ref) @ SHEARED).min(1)
    assert np.array_equal(near.ravel(), everywhere <= 2)
    missed = row(pred & False, ref, SHEARED)
    corners = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]]) * ref.shape @ SHEARED
    assert missed["hd_mm"] == pytest.approx(np.linalg.norm(corners, axis=1).max())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [0.1, 10.0])
def test_an_image_of_one_slice_has_the_distances_of_its_contours(axis, thickness):
    pred, ref = blobs(1, (31, 27))
    expected = row(pred, ref, (0.7, 1.1), near_mm=3.0, lesions=True)
    spacing = (*(0.7, 1.1)[:axis], thickness, *(0.7, 1.1)[axis:])
    flat = (np.expand_dims(mask, axis) for mask in (pred, ref))
    only = row(*flat, spacing, near_mm=3.0, lesions=True)
    volumes = {name for name in expected if name.endswith("_ml")}
    for name in expected.keys() - volumes:
        assert only[name] == expected[name], name
    for name in volumes:
        assert only[name] == pytest.approx(expected[name] * thickness)
    missed = row(np.expand_dims(pred & False, axis), np.expand_dims(ref, axis), spacing)
    assert missed["hd_mm"] == pytest.approx(np.hypot(31 * 0.7, 27 * 1.1))


def test_a_mask_of_one_slice_in_a_volume_is_still_a_volume():
    mask = np.zeros((3, 8, 8), bool)
    mask[1, 2:6, 2:6] = True
    shifted = np.roll(mask, 1, axis=0)
    assert row(mask, shifted, (4.0, 1.0, 1.0))["hd_mm"] == 4


# --- what must hold for any masks -----------------------------------------------------------------


@pytest.mark.parametrize("convention", sorted(CONVENTIONS.keys() - {"cmu-net"}))
def test_axes_order_and_border_do_not_matter(convention):
    pred, ref = blobs(2)
    pred[0], ref[0] = True, True
    one = row(pred, ref, (2.5, 0.7, 1.1), convention=convention)
    for turn in ((1, 2, 0), (2, 1, 0)):
        spacing = tuple(np.take((2.5, 0.7, 1.1), turn))
        assert close(
            row(pred.transpose(turn), ref.transpose(turn), spacing, convention=convention),
            one,
            SURFACE,
        )
    padded = row(np.pad(pred, 3), np.pad(ref, 3), (2.5, 0.7, 1.1), convention=convention)
    assert close(padded, one, SURFACE + OVERLAP)
    perfect = row(ref, ref, (2.5, 0.7, 1.1), convention=convention, tolerance_mm=0.0)
    assert [perfect[key] for key in SURFACE + OVERLAP] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_any_labels_types_and_regions():
    pred, ref = np.random.default_rng(3).integers(0, 4, (2, 6, 7, 8))
    classes = {"one": [1], "region": [1, 3], "background": [0]}
    rows = evaluate_case(
        pred.astype(np.uint8), ref.astype(np.uint8), (1, 1, 1), classes, lesions=True, near_mm=1.5
    )
    for k, labels in enumerate(classes.values()):
        p, r = np.isin(pred, labels), np.isin(ref, labels)
        assert [rows[k][key] for key in ("tp", "fp", "fn", "tn")] == [
            int(x.sum()) for x in (p & r, p & ~r, ~p & r, ~p & ~r)
        ]
        alone = row(p, r, (1.0, 1.0, 1.0), lesions=True, near_mm=1.5)
        assert {k: v for k, v in alone.items() if k not in ("class", "label")}.items() <= rows[
            k
        ].items()
    assert [one["label"] for one in rows] == ["1", "(1, 3)", "0"]
    for dtype in (np.int16, np.uint16, np.int64, np.uint64):
        assert (
            evaluate_case(
                pred.astype(dtype), ref.astype(dtype), (1, 1, 1), classes, lesions=True, near_mm=1.5
            )
            == rows
        )
    huge = {"one": [10**10 + 1], "region": [10**10 + 1, 10**10 + 3], "background": [10**10]}
    moved = evaluate_case(pred + 10**10, ref + 10**10, (1, 1, 1), huge, lesions=True, near_mm=1.5)
    assert [one | {"label": ""} for one in moved] == [one | {"label": ""} for one in rows]
    assert evaluate_case(pred, ref, (1, 1, 1), {}) == []


def test_counting_in_slabs_is_counting_at_once(monkeypatch):
    pred, ref = np.random.default_rng(4).integers(-1, 4, (2, 9, 7, 8))
    classes = {"one": [1], "region": [2, 3]}
    whole = evaluate_case(pred, ref, (1, 2, 3), classes)
    monkeypatch.setattr(case, "_SLAB_VOX", 100)
    assert evaluate_case(pred, ref, (1, 2, 3), classes) == whole
    assert (
        evaluate_case(np.asfortranarray(pred), np.asfortranarray(ref), (1, 2, 3), classes) == whole
    )


def test_memory_is_bounded_by_the_box(monkeypatch):
    monkeypatch.setattr(case, "_SLAB_VOX", 1 << 14)
    pred, ref = np.zeros((2, 128, 128, 128), np.int16)
    ref[40:60, 50:60, 60:70], pred[41:60, 50:60, 60:71] = 1, 1
    row(pred[:70, :70, :70], ref[:70, :70, :70], (1.0, 1.0, 1.0))  # imports and tables
    tracemalloc.start()
    evaluate_case(pred, ref, (1.0, 1.0, 1.0), X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 128**3 / 4  # bytes: not even a bit map of the volume


# --- what nobody has said -------------------------------------------------------------------------


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_what_lies_under_ignore_changes_nothing(convention):
    pred, ref = (mask.astype(np.int64) for mask in blobs(5))
    hidden = ndimage.gaussian_filter(np.random.default_rng(5).standard_normal(ref.shape), 3) > 0.05
    assert hidden[ref == 1].any()
    ref[hidden] = IGNORE
    options: dict[str, Any] = {"convention": convention, "lesions": True, "near_mm": 2.0}
    before = evaluate_case(pred, ref, (2.5, 0.7, 1.1), X, **options)
    other = np.where(hidden, np.random.default_rng(6).integers(0, 3, ref.shape), pred)
    assert evaluate_case(other, ref, (2.5, 0.7, 1.1), X, **options) == before
    assert sum(before[0][key] for key in ("tp", "fp", "fn", "tn")) == (~hidden).sum()
    perfect = np.where(hidden, 1 - pred, ref)
    (best,) = evaluate_case(perfect, ref, (2.5, 0.7, 1.1), X, convention=convention)
    assert [best[key] for key in SURFACE + OVERLAP] == [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("convention", ["default", "monai", "medpy"])
def test_one_annotated_slice_is_measured_as_a_2d_image(convention):
    """Neither side of the slice makes a surface; its contour does."""
    pred, ref = blobs(7)
    slices = np.full(ref.shape, IGNORE)
    slices[6] = ref[6]
    only = evaluate_case(pred.astype(int), slices, (2.5, 0.7, 1.1), X, convention=convention)[0]
    flat = row(pred[6], ref[6], (0.7, 1.1), convention=convention)
    assert close(only, flat, SURFACE + OVERLAP)


def test_surfaces_that_are_hidden():
    ref, pred = np.full((7, 7), IGNORE), np.ones((7, 7), int)
    ref[2:5, 2:5] = 1  # known inside only: no known surface anywhere
    assert [evaluate_case(pred, ref, (1, 1), X)[0][key] for key in SURFACE] == [0, 0, 0, 1]
    pred[3, 3] = 0  # a hole makes one in the prediction alone
    assert [evaluate_case(pred, ref, (1, 1), X)[0][key] for key in SURFACE] == [sqrt(98)] * 3 + [0]


def test_unannotated_classes_give_no_row():
    labels = np.array([[0, 1], [2, 2]])
    classes = {"a": [1], "b": [2]}
    assert [
        one["class"] for one in evaluate_case(labels, labels, (1, 1), classes, annotated=["b"])
    ] == ["b"]
    assert evaluate_case(labels, labels, (1, 1), classes, annotated=[]) == []


# --- empty masks ----------------------------------------------------------------------------------


def test_the_policy_for_empty_masks():
    some, none = np.zeros((4, 6, 8)), np.zeros((4, 6, 8))
    some[1:3, 2:4, 2:4] = 1
    diagonal = sqrt(8**2 + 6**2 + 24**2)  # 4 x 2, 6 x 1, 8 x 3 mm = 26
    missed = row(none, some, (2.0, 1.0, 3.0))
    assert missed["status"] == metrics.MISSED
    assert [missed[key] for key in OVERLAP] == [0, 0, 0, 0]
    assert [missed[key] for key in SURFACE] == [diagonal, diagonal, diagonal, 0]
    assert (missed["rvd"], missed["ref_ml"], missed["volume_diff_ml"]) == pytest.approx(
        (-1, 0.048, -0.048)
    )
    spurious = row(some, none, (2.0, 1.0, 3.0))
    assert spurious["status"] == metrics.SPURIOUS
    assert [spurious[key] for key in ("dsc", "iou", "prc", *SURFACE)] == [
        0,
        0,
        0,
        diagonal,
        diagonal,
        diagonal,
        0,
    ]
    assert isnan(spurious["sen"])
    assert isnan(spurious["rvd"])
    absent = row(none, none, (2.0, 1.0, 3.0))
    assert absent["status"] == metrics.ABSENT
    assert all(isnan(absent[key]) for key in (*OVERLAP, *SURFACE, "rvd"))
    assert absent["volume_diff_ml"] == 0


# --- lesions --------------------------------------------------------------------------------------


def test_lesions_and_false_positives_by_distance():
    ref, pred = np.zeros((9, 9, 9)), np.zeros((9, 9, 9))
    ref[0, 0, 0] = ref[1, 1, 1] = 1  # one lesion: they touch at a corner
    ref[5, 5, 5] = 1  # another
    pred[1, 1, 1:4] = 1  # hits the first; its two false voxels lie 1 and 2 steps of 3 mm away
    pred[8, 8, 8] = 1  # hits nothing, 3 diagonal steps from the second
    only = row(pred, ref, (1.0, 2.0, 3.0), lesions=True, near_mm=3.0)
    assert (only["n_ref_lesions"], only["n_detected"], only["n_fp_lesions"]) == (2, 1, 1)
    assert (only["fp_near"], only["fp_far"]) == (1, 2)
    assert (only["fp_near_ml"], only["fp_far_ml"]) == pytest.approx((0.006, 0.012))
    table = lesion_table(pred > 0, ref > 0, (1.0, 2.0, 3.0))
    assert [(one["of"], one["hit"]) for one in table] == [
        ("ref", True),
        ("ref", False),
        ("pred", True),
        ("pred", False),
    ]
    assert [one["volume_ml"] for one in table] == pytest.approx([0.012, 0.006, 0.018, 0.006])
    assert [one["overlap_ml"] for one in table] == pytest.approx([0.006, 0, 0.006, 0])
    spurious = row(pred, ref * 0, (1.0, 2.0, 3.0), lesions=True, near_mm=3.0)
    assert (spurious["n_ref_lesions"], spurious["n_fp_lesions"], spurious["fp_far"]) == (0, 2, 4)
    absent = row(ref * 0, ref * 0, (1.0, 2.0, 3.0), lesions=True, near_mm=3.0)
    assert (
        absent["n_ref_lesions"],
        absent["n_detected"],
        absent["n_fp_lesions"],
        absent["fp_far"],
    ) == (0, 0, 0, 0)
    assert isnan(absent["fp_far_ml"])
    assert spurious["fp_far_ml"] == pytest.approx(0.024)


# --- tables ---------------------------------------------------------------------------------------


def _table() -> pd.DataFrame:
    rows = [
        ("a", "liver", "both", 0.9, 4.0),
        ("a", "spleen", "missed", 0.0, 100.0),
        ("b", "liver", "both", 0.7, 8.0),
        ("b", "spleen", "absent", nan, nan),
    ]
    return pd.DataFrame(rows, columns=["case", "class", "status", "dsc", "hd95_mm"])


def test_summarise():
    out = summarise(_table()).set_index(["class", "metric"])
    assert list(out.columns) == ["mean", "sd", "median", "n", "n_missed", "n_spurious", "n_absent"]
    assert out.loc[("liver", "dsc")].tolist() == pytest.approx([0.8, sqrt(0.02), 0.8, 2, 0, 0, 0])
    assert out.loc[("spleen", "hd95_mm")].tolist() == pytest.approx(
        [100, nan, 100, 1, 1, 0, 1], nan_ok=True
    )
    assert out.loc[("overall", "dsc")].tolist() == pytest.approx(
        [(0.45 + 0.7) / 2, 0.25 / sqrt(2), 0.575, 2, 1, 0, 1]
    )
    both = pd.concat([_table().assign(method=name) for name in ("plain", "colab")])
    grouped = summarise(both, by=["method"])
    assert grouped["method"].unique().tolist() == ["plain", "colab"]
    expected = summarise(_table())
    for _, group in grouped.groupby("method"):
        pd.testing.assert_frame_equal(group.drop(columns="method").reset_index(drop=True), expected)


def test_nnunet_summary_has_nnunets_shape():
    ref = np.array([[0, 1, 1, 2]])
    cases = {"a": np.array([[0, 1, 0, 2]]), "b": np.array([[0, 1, 1, 1]])}
    rows = [
        one
        | {
            "case": name,
            "reference_file": f"ref/{name}.nii.gz",
            "prediction_file": f"pred/{name}.nii.gz",
        }
        for name, pred in cases.items()
        for one in evaluate_case(pred, ref, (1, 1), {"organ": [1, 2], "tumour": [2], "none": [3]})
    ]
    summary = nnunet_summary(pd.DataFrame(rows))
    assert list(summary) == ["foreground_mean", "mean", "metric_per_case"]
    first, second = summary["metric_per_case"]
    assert first["metrics"]["(1, 2)"] == {
        "Dice": 2 * 2 / (2 + 3),
        "FN": 1,
        "FP": 0,
        "IoU": 2 / 3,
        "TN": 1,
        "TP": 2,
        "n_pred": 2,
        "n_ref": 3,
    }
    assert (first["reference_file"], first["prediction_file"]) == ("ref/a.nii.gz", "pred/a.nii.gz")
    assert isnan(first["metrics"]["3"]["Dice"])
    assert second["metrics"]["2"]["Dice"] == 0
    assert summary["mean"]["2"]["Dice"] == 0.5
    assert summary["mean"]["2"]["FN"] == 0.5
    assert summary["foreground_mean"]["Dice"] == pytest.approx(((0.8 + 1) / 2 + 0.5) / 2)
    assert json.loads(json.dumps(summary)).keys() == summary.keys()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"convention": "deepmnd"}, "did you mean deepmind"),
        ({"annotated": ["y"]}, "not a class"),
        ({"tolerance_mm": {"y": 1.0}}, "no tolerance"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing"),
        ({"spacing_mm": (1.0, 1.0, 1.0)}, "2 axes"),
        ({"pred": np.zeros((2, 3), int)}, r"\(2, 3\)"),
        ({"ref": np.zeros((2, 2))}, "float64"),
        ({"classes": {"x": []}}, "label values"),
        ({"classes": {"x": [1, IGNORE]}}, "not -1"),
    ],
)
def test_bad_input_is_named(change, message):
    empty = np.zeros((2, 2), int)
    arguments: dict[str, Any] = {
        "pred": empty,
        "ref": empty,
        "spacing_mm": (1.0, 1.0),
        "classes": X,
    }
    with pytest.raises(ContextsegError, match=message):
        evaluate_case(**(arguments | change))
