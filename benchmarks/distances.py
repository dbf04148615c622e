"""Distances, components and surface measures against the field's libraries, on the same masks.

`rows(quick)` returns (claim, input, ours_s, peer_s, peer): seconds of CPU time on one thread,
medians of interleaved runs. A peer that is not installed is named on stderr and left out. Both
sides' results are compared before they are timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

from contextseg.metrics import HD95, NSD, evaluate_case

Row = tuple[str, str, float, float, str]
SPACING_MM, TOLERANCE_MM, N_ORGANS = (2.5, 0.8, 0.8), 2.0, 13


def rows(quick: bool) -> list[Row]:
    repeats = 1 if quick else 5
    small = organs((100, 256, 256))
    large = small if quick else organs((200, 512, 512))
    out = [distance_map(small[1], repeats), components(small[1], repeats)]
    for peer, (pred, ref), times in (
        ("monai", large, repeats),
        ("surface_distance", large, repeats),
        ("medpy", small, 1),
    ):
        try:
            measure = PEERS[peer]()
        except ImportError as error:
            print(f"distances: {peer} is left out ({error})", file=sys.stderr)
            continue
        out.append(surface_measures(peer, measure, pred, ref, times))
    return out


def organs(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a reference of 13 ellipsoids of an abdomen's sizes.

    The prediction's surfaces are uneven.
    """
    from contextseg.resampling import resample

    rng = np.random.default_rng(seed)
    ref, pred = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    rough = resample(rng.standard_normal([max(2, n // 8) for n in shape]), shape, order=1)
    for label, radius in enumerate(np.geomspace(0.2, 0.03, N_ORGANS), 1):
        centre = rng.uniform(0.25, 0.75, 3) * shape
        half = np.maximum(2, radius * np.array(shape) * rng.uniform(0.7, 1.3, 3))
        low, high = (
            np.maximum(0, centre - 1.3 * half).astype(int),
            np.minimum(shape, centre + 1.3 * half).astype(int),
        )
        box = tuple(slice(a, b) for a, b in zip(low, high))
        r = np.sqrt(sum(((x - c) / h) ** 2 for x, c, h in zip(np.ogrid[box], centre, half)))
        ref[box][r < 1] = label
        pred[box][r + 0.06 * rough[box] < 1] = label
    return pred, ref


def distance_map(ref: np.ndarray, repeats: int) -> Row:
    from edt import edt
    from scipy.ndimage import distance_transform_edt

    mask = ref > 0

    def ours() -> np.ndarray:
        return edt(mask, anisotropy=SPACING_MM)

    def peer() -> np.ndarray:
        return distance_transform_edt(mask, sampling=SPACING_MM)

    assert np.allclose(ours(), peer(), atol=1e-3)
    return "Euclidean distance map (edt)", _size(ref), *interleaved(ours, peer, repeats), "scipy"


def components(ref: np.ndarray, repeats: int) -> Row:
    from cc3d import connected_components
    from scipy.ndimage import generate_binary_structure, label

    corners = generate_binary_structure(3, 3)

    def ours() -> int:
        return connected_components(ref, connectivity=26, return_N=True)[1]

    def peer() -> int:  # knows one foreground only, so one pass for each organ
        return sum(label(ref == k, corners)[1] for k in range(1, N_ORGANS + 1))

    assert ours() == peer()
    return (
        f"components of {N_ORGANS} organs (cc3d)",
        _size(ref),
        *interleaved(ours, peer, repeats),
        "scipy",
    )


def surface_measures(
    peer: str,
    measure: Callable[[np.ndarray, np.ndarray], list[dict[str, float]]],
    pred: Any,
    ref: Any,
    repeats: int,
) -> Row:
    convention = {"surface_distance": "deepmind"}.get(peer, peer)
    classes = {f"organ {k}": [k] for k in range(1, N_ORGANS + 1)}

    def ours() -> list[dict[str, Any]]:
        return evaluate_case(
            pred, ref, SPACING_MM, classes, tolerance_mm=TOLERANCE_MM, convention=convention
        )

    def theirs() -> list[dict[str, float]]:
        return measure(pred, ref)

    mine, other = ours(), theirs()
    for row, expected in zip(mine, other):
        assert all(abs(row[key] - expected[key]) < 1e-3 for key in expected), (peer, row, expected)
    what = " + ".join("HD95" if key == HD95 else "NSD" for key in other[0])
    return f"{what} of {N_ORGANS} organs", _size(ref), *interleaved(ours, theirs, repeats), peer


def monai() -> Callable[[np.ndarray, np.ndarray], list[dict[str, float]]]:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    def measure(pred: np.ndarray, ref: np.ndarray) -> list[dict[str, float]]:
        out = []
        for k in range(
            1, N_ORGANS + 1
        ):  # class by class: one-hot, all at once, needs 14 times the memory
            p, r = (torch.from_numpy(array == k)[None, None] for array in (pred, ref))
            hd95 = compute_hausdorff_distance(
                p, r, include_background=True, percentile=95, spacing=SPACING_MM
            )
            nsd = compute_surface_dice(
                p, r, [TOLERANCE_MM], include_background=True, spacing=SPACING_MM
            )
            out.append({HD95: float(hd95), NSD: float(nsd)})
        return out

    return measure


def surface_distance() -> Callable[[np.ndarray, np.ndarray], list[dict[str, float]]]:
    library = import_module("surface_distance")

    def measure(pred: np.ndarray, ref: np.ndarray) -> list[dict[str, float]]:
        out = []
        for k in range(1, N_ORGANS + 1):
            distances = library.compute_surface_distances(ref == k, pred == k, SPACING_MM)
            hd95 = library.compute_robust_hausdorff(distances, 95)
            out.append(
                {
                    HD95: hd95,
                    NSD: library.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
                }
            )
        return out

    return measure


def medpy() -> Callable[[np.ndarray, np.ndarray], list[dict[str, float]]]:
    binary = import_module("medpy.metric.binary")

    def measure(pred: np.ndarray, ref: np.ndarray) -> list[dict[str, float]]:  # it has no NSD
        return [
            {HD95: binary.hd95(pred == k, ref == k, SPACING_MM)} for k in range(1, N_ORGANS + 1)
        ]

    return measure


PEERS = {"monai": monai, "surface_distance": surface_distance, "medpy": medpy}


def interleaved(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int
) -> tuple[float, float]:
    """Median CPU seconds of each, taken in turn so that a busy machine slows both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, taken in zip((ours, peer), seconds):
            start = time.process_time()
            run()
            taken.append(time.process_time() - start)
    return median(seconds[0]), median(seconds[1])


def _size(array: np.ndarray) -> str:
    return " x ".join(str(n) for n in reversed(array.shape))


if __name__ == "__main__":
    for claim, what, ours_s, peer_s, name in rows(quick="--quick" in sys.argv):
        print(
            f"{claim:45} {what:16} {ours_s:8.3f} s {peer_s:8.3f} s {peer_s / ours_s:7.1f} x  {name}"
        )
