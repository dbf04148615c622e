"""Lesions one by one: which are detected, which are false positives, and how far off these lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from contextseg.grids import voxel_mm3
from contextseg.metrics.surface import distances_mm


def lesion_table(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[Any]
) -> list[dict[str, Any]]:
    """One row for each lesion of the reference, then of the prediction.

    A lesion is a set of voxels connected by faces, edges or corners (26 neighbours, 8 in 2-D).

    Args:
        pred: Predicted mask, bool, (D, H, W) or (H, W).
        ref: Reference mask, bool, the same shape.
        spacing_mm: Distance between voxel centres along each axis, in mm; or the steps, a row each.

    Returns:
        Rows with `of` ("ref" or "pred"), volume_ml, overlap_ml with the other mask, and `hit`:
        whether they share at least one voxel. A lesion of the reference that is hit is detected;
        one of the prediction that is not is a false positive. Empty masks give no rows.

    Example:
        >>> ref = np.array([[1, 0, 0, 0, 1]], bool); pred = np.array([[1, 0, 1, 0, 0]], bool)
        >>> [(row["of"], row["hit"]) for row in lesion_table(pred, ref, (1.0, 1.0))]
        [('ref', True), ('ref', False), ('pred', True), ('pred', False)]
    """
    voxel_ml = voxel_mm3(spacing_mm) / 1000
    return [
        {
            "of": of,
            "volume_ml": int(size) * voxel_ml,
            "overlap_ml": int(shared) * voxel_ml,
            "hit": bool(shared),
        }
        for of, mask, other in (("ref", ref, pred), ("pred", pred, ref))
        for size, shared in zip(*_lesions(mask, other))
    ]


def lesion_counts(pred: np.ndarray, ref: np.ndarray) -> dict[str, int]:
    """Counts of lesions, as `lesion_table` defines them.

    Args:
        pred: Predicted mask, bool, (D, H, W) or (H, W).
        ref: Reference mask, bool, the same shape.

    Returns:
        n_ref_lesions, n_detected (of these) and n_fp_lesions (in the prediction alone).
    """
    _, overlap_of_ref = _lesions(ref, pred)
    _, overlap_of_pred = _lesions(pred, ref)
    return {
        "n_ref_lesions": len(overlap_of_ref),
        "n_detected": int(np.count_nonzero(overlap_of_ref)),
        "n_fp_lesions": int(np.count_nonzero(overlap_of_pred == 0)),
    }


def _lesions(mask: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of each connected part of `mask`, and how many of them `other` has, (N,) each."""
    if not mask.any():
        return np.zeros(0, int), np.zeros(0, int)
    from cc3d import connected_components

    parts, n = connected_components(mask, connectivity=26 if mask.ndim == 3 else 8, return_N=True)
    sizes = np.bincount(parts[mask], minlength=n + 1)[1:]
    overlaps = np.bincount(parts[mask & other], minlength=n + 1)[1:]
    return sizes, overlaps


def false_positives(
    pred: np.ndarray, ref: np.ndarray, spacing_mm: Sequence[Any], near_mm: float
) -> dict[str, int]:
    """Count the false-positive voxels near the reference, and the others.

    Args:
        pred: Predicted mask, bool, (D, H, W) or (H, W).
        ref: Reference mask, bool, the same shape.
        spacing_mm: Distance between voxel centres along each axis, in mm; or the steps, a row each.
        near_mm: Distance from a reference voxel's centre up to which a voxel is near.

    Returns:
        fp_near and fp_far, in voxels. All are far where the reference is empty.
    """
    distance = distances_mm(pred & ~ref, ref, spacing_mm, np.inf)
    near = int(np.count_nonzero(distance <= near_mm * (1 + 1e-6)))
    return {"fp_near": near, "fp_far": len(distance) - near}
