"""Named conventions: hand arithmetic, and the numbers of MONAI, surface-distance and MedPy where
they are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from math import isnan
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import parse_tolerances
from contextseg.evaluation.folders import evaluate_folders, notices
from contextseg.metrics import CONVENTION_METRICS, evaluate_case
from contextseg.volume import Volume, read_labels, write
from test_metrics import blobs, row

Scores = tuple[str, dict[str, float]]


def test_flare22_drops_the_last_slice_and_the_corrected_one_does_not():
    ref, pred = np.zeros((8, 6, 6), int), np.zeros((8, 6, 6), int)
    ref[2:5, 1:4, 1:4] = 1
    pred[0:4, 1:4, 1:4] = 1  # slices 2, 3 right; 0, 1 below the reference; 4 missing
    scores = {
        convention: evaluate_case(pred, ref, (1, 1, 1), {name: [1]}, convention=convention)[0][
            "dsc"
        ]
        for convention in ("flare22", "flare22-2024", "flare22-corrected")
        for name in ("Inferior_Vena_Cava",)
    }
    corrected = pytest.approx(2 * 2 / (2 + 3))
    assert scores == {"flare22": 1.0, "flare22-2024": 1.0, "flare22-corrected": corrected}
    liver = evaluate_case(pred, ref, (1, 1, 1), {"liver": [1]}, convention="flare22")[0]
    assert liver["dsc"] == pytest.approx(2 * 2 / (4 + 3))


def test_flare22_scores_of_empty_and_bad_masks():
    none = np.zeros((5, 5, 5))
    some = none.copy()
    some[2, 2, :2] = 1
    both_empty = row(none, none, (1.0, 1.0, 1.0), convention="flare22")
    assert (both_empty["dsc"], both_empty["nsd"], both_empty["status"]) == (1, 1, "absent")
    assert row(some, none, (1.0, 1.0, 1.0), convention="flare22")["nsd"] == 0
    beside = np.roll(some, 1, axis=0)  # DSC 0, though every element is within 2 mm
    nsd = {
        name: row(beside, some, (1.0, 1.0, 1.0), convention=name)["nsd"]
        for name in ("flare22", "flare22-2024", "flare22-corrected")
    }
    assert nsd == {"flare22": 1, "flare22-2024": 0, "flare22-corrected": 1}


def test_the_thirteen_tolerances_by_any_usual_name():
    spelt = (
        "Liver", "RK", "spleen", "pancreas", "Aorta", "Postcava", "adrenal_gland_right",
        "Left Adrenal Gland(LAG)", "gall-bladder", "Oesophagus", "stomach", "duodenum",
        "kidney_left",
    )  # fmt: skip
    given = parse_tolerances("flare22", spelt)
    assert isinstance(given, dict)
    assert [given[name] for name in spelt] == [5, 3, 3, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    with pytest.raises(ContextsegError, match="no tolerance for spine"):
        parse_tolerances("flare22", ["liver", "spine"])


def write_aorta(folder: Path) -> None:
    """Folders `p` and `r`: the aorta of slices 2 to 4, predicted in 0 to 3, without names."""
    ref, pred = np.zeros((8, 6, 6), np.uint8), np.zeros((8, 6, 6), np.uint8)
    ref[2:5, 1:4, 1:4] = pred[0:4, 1:4, 1:4] = 5
    for name, label in (("p", pred), ("r", ref)):
        write(folder / name / "a.nii.gz", Volume(label, np.eye(4)[[2, 1, 0, 3]]))


def test_flare22_is_complete_or_refused(tmp_path: Path) -> None:
    write_aorta(tmp_path)
    pair = tmp_path / "p", tmp_path / "r"
    for convention in ("flare22", "flare22-2024", "flare22-corrected"):
        with pytest.raises(ContextsegError, match=r"label_5.*--labels"):
            evaluate_folders(*pair, convention=convention)
    labels = tmp_path / "dataset.json"
    labels.write_text('{"labels": {"background": 0, "Aorta": 5}}')
    scored = evaluate_folders(*pair, labels=labels, convention="flare22", tolerance_mm="flare22")
    assert (scored["dsc"][0], scored["tolerance_mm"][0]) == (1, 2)


def test_a_comparison_of_conventions_names_those_that_cannot_be_had(tmp_path: Path) -> None:
    write_aorta(tmp_path)
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", all_conventions=True)
    left_out = ["flare22", "flare22-2024", "flare22-corrected"]
    assert not set(left_out) & set(table.columns)
    assert any(all(name in line for name in left_out) for line in notices(table))


def test_cmu_net_is_the_mean_over_slices_and_colab_needs_a_reference():
    pred, ref = blobs(8)
    pred[3], ref[4], pred[5], ref[5] = False, False, False, False
    slices = [row(pred[d], ref[d], (0.7, 1.1), convention="monai") for d in range(len(ref))]
    only = row(pred, ref, (2.5, 0.7, 1.1), convention="cmu-net")
    for key in CONVENTION_METRICS:
        assert only[key] == pytest.approx(np.nanmean([one[key] for one in slices]))
    assert {"missed", "spurious", "absent"} <= {one["status"] for one in slices}
    spurious = row(np.ones((3, 3)), np.zeros((3, 3)), (1.0, 1.0), convention="colab")
    assert spurious["status"] == "spurious"
    assert isnan(spurious["dsc"])


@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_peers(seed, peer_scores):
    dims = 2 + seed % 2
    spacing = tuple(np.random.default_rng(seed).uniform(0.5, 3, dims).tolist())
    pred, ref = blobs(seed, (17, 23, 15)[-dims:]) if seed else _real_masks()
    spacing = spacing if seed else (3.27, 1.95, 1.95)
    convention, expected = peer_scores(pred, ref, spacing, 1.37)
    only = row(pred, ref, spacing, tolerance_mm=1.37, convention=convention)
    assert {key: only[key] for key in expected} == pytest.approx(expected, abs=1e-3)


def _real_masks() -> tuple[np.ndarray, np.ndarray]:
    """A tumour, and its outline moved, grown and cut into bands."""
    folder = files("contextseg") / "demo_data" / "labelsTr"
    ref = read_labels(str(min(folder.iterdir(), key=str))).array == 1
    bands = (np.arange(ref.shape[1]) % 9 > 0)[:, None]
    return ndimage.binary_dilation(np.roll(ref, (1, 2), (0, 2)), iterations=2) & bands, ref


@pytest.fixture(params=["monai", "surface_distance", "medpy"])
def peer_scores(request: pytest.FixtureRequest) -> Callable[..., Scores]:
    pytest.importorskip(request.param)
    return {"monai": _monai, "surface_distance": _surface_distance, "medpy": _medpy}[request.param]


def _monai(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> Scores:
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    p, r = (torch.from_numpy(mask.copy())[None, None] for mask in (pred, ref))
    options = {"include_background": True, "spacing": spacing}
    scores = {
        "hd95_mm": compute_hausdorff_distance(p, r, percentile=95, **options),
        "hd_mm": compute_hausdorff_distance(p, r, **options),
        "assd_mm": compute_average_surface_distance(p, r, symmetric=True, **options),
        "nsd": compute_surface_dice(p, r, [tolerance], **options),
    }
    return "monai", {key: float(value) for key, value in scores.items()}


def _surface_distance(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> Scores:
    import surface_distance as peer

    found = peer.compute_surface_distances(ref, pred, spacing)
    return "deepmind", {
        "hd95_mm": peer.compute_robust_hausdorff(found, 95),
        "hd_mm": peer.compute_robust_hausdorff(found, 100),
        "nsd": peer.compute_surface_dice_at_tolerance(found, tolerance),
        "dsc": peer.compute_dice_coefficient(ref, pred),
    }


def _medpy(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], _: float) -> Scores:
    from medpy.metric import binary

    surface = {"hd95_mm": binary.hd95, "hd_mm": binary.hd, "assd_mm": binary.assd}
    overlap = {
        "dsc": binary.dc,
        "iou": binary.jc,
        "sen": binary.recall,
        "prc": binary.precision,
        "rvd": binary.ravd,
    }
    scores = {key: measure(pred, ref, spacing) for key, measure in surface.items()}
    return "medpy", scores | {key: measure(pred, ref) for key, measure in overlap.items()}
