"""The surface of masks, distances between surfaces, and the conventions of other tools.

The surface of a mask is made of elements. Between every 2 x 2 x 2 (2 x 2 in 2-D) neighbouring voxel
centres lies one cell. Where its corners are partly inside, marching cubes cuts a patch through it,
and that patch, with its area in mm2 (length in mm), is an element. The older way counts voxels that
share a face with the background, each the same whatever its shape.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import nan
from typing import Any

import numpy as np

from contextseg.grids import Spacing
from contextseg.metrics.flare22 import TUBES, require_flare22_organs
from contextseg.metrics.lattice import as_spacing, is_sheared, places_mm, sheared_areas

HD95, HD, ASSD, NSD = "hd95_mm", "hd_mm", "assd_mm", "nsd"


@dataclass(frozen=True)
class Convention:
    """How one tool, challenge or paper measures; every field is a difference that changes numbers.

    Attributes:
        elements: True: surface elements weighted by area; the 95th percentile is the distance
            within which at least 95 % of the area lies. False: surface voxels, unweighted;
            percentiles interpolate between voxels.
        pooled_hd95: True: one percentile over the distances of both surfaces. False: the larger of
            the two percentiles.
        absent_score: DSC and NSD of a class that is in neither mask.
        reference_only: True: a case without the class in the reference has no scores, even with
            false positives.
        nsd_needs_dsc: Below this DSC, NSD is 0.
        on_reference: Organs, as `flare22_organ` names them, that are scored only on the slices
            (axis 0) that the reference reaches.
        last_slice: False: the last one of those slices is left out as well.
        by_slice: True: scores are means over the slices (axis 0) where either mask has the class.
    """

    elements: bool = True
    pooled_hd95: bool = False
    absent_score: float = nan
    reference_only: bool = False
    nsd_needs_dsc: float = 0.0
    on_reference: frozenset[str] = frozenset()
    last_slice: bool = True
    by_slice: bool = False


CONVENTIONS: dict[str, Convention] = {
    "default": Convention(),
    "deepmind": Convention(),
    "monai": Convention(elements=False),
    "medpy": Convention(elements=False, pooled_hd95=True),
    "flare22": Convention(absent_score=1.0, on_reference=TUBES, last_slice=False),
    "flare22-2024": Convention(
        absent_score=1.0, nsd_needs_dsc=0.2, on_reference=TUBES, last_slice=False
    ),
    "flare22-corrected": Convention(on_reference=TUBES),
    "colab": Convention(elements=False, reference_only=True),
    "cmu-net": Convention(elements=False, by_slice=True),
}
"""Named conventions; docs/measuring.md says where each comes from and how we read it."""


def require_names(convention: str, classes: Collection[str]) -> None:
    """Refuse a convention that treats some organs differently, where classes are not named so.

    Args:
        convention: A name in `CONVENTIONS`.
        classes: Names of the classes.

    Raises:
        ContextsegError: A rule for organs would be dropped, since their names are missing.
    """
    if CONVENTIONS[convention].on_reference:
        require_flare22_organs(classes, f"convention={convention}", "it has no rule for")


# --- the area of a surface element ----------------------------------------------------------------


@lru_cache(maxsize=64)
def element_areas(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """The area of the surface element in a cell, for each pattern of its corners.

    Bit w + 2h + 4d of a pattern says that corner (d, h, w) is inside. Corners connected along edges
    share a patch, through the midpoints of the edges that leave them; of inside and outside, the
    side with fewer corners is the one that is cut off. These are the areas of the marching-cubes
    table in DeepMind's surface-distance (Nikolov et al., 2018), derived here from their geometry.

    Args:
        spacing_mm: Distance between voxel centres along each axis, in mm.

    Returns:
        (256,) areas in mm2; in 2-D (16,) lengths in mm.

    Example:
        >>> float(element_areas((1.0, 1.0, 1.0))[0b00001111])  # a flat wall
        1.0
    """
    if len(spacing_mm) == 2:  # a contour is a wall of unit height
        tall = element_areas((1.0, *spacing_mm))
        return np.array([tall[pattern | pattern << 4] for pattern in range(16)])
    areas = np.zeros(256)
    for pattern in range(1, 255):
        areas[pattern] = sum(
            _patch_area(corners, np.array(spacing_mm)) for corners in cut_off_parts(pattern)
        )
    areas.flags.writeable = False
    return areas


def cut_off_parts(pattern: int) -> list[np.ndarray]:
    """The corners of a cell that are cut off, in connected parts.

    Args:
        pattern: Which corners are inside, as in `element_areas`.

    Returns:
        The parts of the inside or the outside, whichever has fewer corners, each (N, 3) of 0 and 1.
    """
    corners = np.array([[b >> 2 & 1, b >> 1 & 1, b & 1] for b in range(8)])
    inside = {b for b in range(8) if pattern >> b & 1}
    fewer = inside if len(inside) <= 4 else set(range(8)) - inside
    return [corners[part] for part in _parts(fewer)]


def _parts(corners: set[int]) -> list[list[int]]:
    """The corners of a cube, grouped by their connections along its edges (one bit apart)."""
    left, parts = set(corners), []
    while left:
        part = [left.pop()]
        for b in part:
            near = {b ^ 1, b ^ 2, b ^ 4} & left
            left -= near
            part += near
        parts.append(part)
    return parts


def _patch_area(corners: np.ndarray, spacing_mm: np.ndarray) -> float:
    """The area of the patch that cuts off 1 to 4 connected corners (N, 3) of a cell."""
    face = spacing_mm.prod() / spacing_mm  # of the cell, across each axis
    spans = np.ptp(corners, axis=0) > 0
    whole = float(np.linalg.norm(face))
    if len(corners) == 1:  # a triangle
        return whole / 8
    if len(corners) == 2:  # a slanted wall along an edge
        return float(np.linalg.norm(face[~spans])) / 2
    if len(corners) == 3:  # an L: half a wall and three triangles
        return float(face[~spans][0]) / 2 + 3 / 8 * whole
    if not spans.all():  # a flat wall
        return float(face[~spans][0])
    steps = np.abs(corners[:, None] - corners[None]).sum(2) == 1
    if steps.sum(1).max() == 3:  # a corner and its three neighbours: a hexagon
        return 6 / 8 * whole
    ends = (
        steps.sum(1) == 1
    )  # a chain along each axis once; its middle step joins the two that are not ends
    middle = np.ptp(corners[~ends], axis=0) > 0
    slants = [np.hypot(face[middle][0], other) for other in face[~middle]]
    return float(whole / 2 + sum(slants) / 4)


# --- surfaces and distances -----------------------------------------------------------------------


def surface_scores(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[Any],
    tolerance_mm: float,
    far_mm: float,
    convention: Convention = CONVENTIONS["default"],
    known: np.ndarray | None = None,
) -> dict[str, float]:
    """HD95, HD and ASSD in mm, and NSD, of two non-empty masks.

    What lies outside the array is background, so a mask that touches the border has a surface
    there. Voxels that are not annotated do not count: both masks are extended by one voxel beyond
    the annotated part, so that its edge makes no surface, and only elements that touch an annotated
    voxel are kept. If that leaves one mask without a surface, its distances are `far_mm` and NSD is
    0; if both, 0 and 1.

    Args:
        pred: Predicted mask, bool, (D, H, W) or (H, W).
        ref: Reference mask, bool, the same shape.
        spacing_mm: Distance between voxel centres along each axis, in mm; or the steps, a row each.
        tolerance_mm: Tolerance of the NSD. A distance equal to it is within it, whatever the
            rounding.
        far_mm: Distance to a mask without a surface.
        convention: How to measure.
        known: The annotated voxels, bool, the same shape. None: all.

    Returns:
        hd95_mm, hd_mm, assd_mm and nsd.
    """
    if known is not None:
        pred, ref = _extended(pred, ref, known)
    spacing = as_spacing(spacing_mm)
    on_pred, weight_pred = _surface(pred, known, spacing, convention.elements)
    on_ref, weight_ref = _surface(ref, known, spacing, convention.elements)
    from_pred = distances_mm(on_pred, on_ref, spacing, far_mm)
    from_ref = distances_mm(on_ref, on_pred, spacing, far_mm)
    both = np.concatenate([from_pred, from_ref])
    weight = np.concatenate([weight_pred, weight_ref])
    total = weight.sum()
    if total == 0:
        return {HD95: 0.0, HD: 0.0, ASSD: 0.0, NSD: 1.0}
    percentile = _area_percentile if convention.elements else _percentile
    sides = (
        [(both, weight)]
        if convention.pooled_hd95
        else [(from_pred, weight_pred), (from_ref, weight_ref)]
    )
    within = both <= tolerance_mm * (1 + 1e-6) + 1e-6
    return {
        HD95: max(percentile(d, w) for d, w in sides if len(d)),
        HD: float(both.max()),
        ASSD: float(both @ weight / total),
        NSD: float(weight[within].sum() / total),
    }


def _surface(
    mask: np.ndarray, known: np.ndarray | None, spacing_mm: Spacing, elements: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where the surface is, and the weight of each voxel or element of it.

    The bool grid is one voxel larger all round; half a voxel for elements.
    """
    mask = np.pad(mask, 1)
    known = None if known is None else np.pad(known, 1)
    if not elements:
        on = mask & ~_eroded(mask)
        on &= True if known is None else known
        return on, np.ones(np.count_nonzero(on))
    pattern = _patterns(mask)
    full = 2 ** (2**mask.ndim) - 1
    on = pattern - np.uint8(1) < full - 1  # neither 0, which wraps to 255, nor full
    if known is not None:
        on &= _patterns(known) > 0
    areas: Any = sheared_areas if is_sheared(spacing_mm) else element_areas
    return on, areas(spacing_mm)[pattern[on]]


def _patterns(mask: np.ndarray) -> np.ndarray:
    """Which corners of each cell are inside, uint8, one cell fewer than voxels along each axis."""
    pattern: Any = mask.view(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        low, high = _halves(mask.ndim, axis)
        pattern = pattern[low] | pattern[high] << (1 << step)
    return pattern


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask, clear at its border, whose face neighbours are all inside."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        low, high = _halves(mask.ndim, axis)
        inner[high] &= mask[low]
        inner[low] &= mask[high]
    return inner


def _halves(ndim: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All but the last, and all but the first, along `axis`."""
    lead = (slice(None),) * axis
    return (*lead, slice(None, -1)), (*lead, slice(1, None))


def _extended(
    pred: np.ndarray, ref: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both masks, each unknown voxel beside a known one (corners too) taking that one's value."""
    pred = pred & known
    ref = ref & known
    reached = known.copy()
    for axis in range(known.ndim):
        low, high = _halves(known.ndim, axis)
        source = reached.copy()
        for to, off in ((high, low), (low, high)):
            new = source[off] & ~reached[to]
            for mask in (pred, ref):
                mask[to][new] = mask[off][new]
            reached[to] |= new
    return pred, ref


def distances_mm(
    source: np.ndarray, target: np.ndarray, spacing_mm: Sequence[Any], far_mm: float
) -> np.ndarray:
    """Distance from each set voxel of `source` to the nearest set voxel of `target`.

    A search tree over the few points is several times faster than a distance map of the whole box,
    and exact; the map is used only where the points fill a good part of the box (noise), and never
    on a sheared grid.

    Args:
        source: Bool grid.
        target: Bool grid of the same shape.
        spacing_mm: Distance between voxel centres along each axis, in mm; or the steps, a row each.
        far_mm: The distance where `target` is empty.

    Returns:
        (N,) float64, in mm, for the N set voxels of `source` in C order.
    """
    at = np.flatnonzero(source)
    goals = np.flatnonzero(target)
    if not len(goals):
        return np.full(len(at), float(far_mm))
    out = np.zeros(len(at))
    apart = ~target.ravel()[at]
    at = at[apart]
    if is_sheared(spacing_mm) or len(at) < max(5000, source.size / 30):
        from scipy.spatial import cKDTree

        tree = cKDTree(
            _points(goals, source.shape, spacing_mm), balanced_tree=False, compact_nodes=False
        )
        out[apart] = tree.query(_points(at, source.shape, spacing_mm))[0]
    else:
        from edt import edt

        out[apart] = edt(~target, anisotropy=tuple(spacing_mm), black_border=False).ravel()[at]
    return out


def _points(at: np.ndarray, shape: tuple[int, ...], spacing_mm: Any) -> np.ndarray:
    """Flat indices as positions in mm, (N, ndim) float64."""
    return places_mm(np.stack(np.unravel_index(at, shape), axis=1), spacing_mm)


def _area_percentile(distance: np.ndarray, area: np.ndarray) -> float:
    """The smallest distance within which at least 95 % of the area lies."""
    order = np.argsort(distance)
    summed = np.cumsum(area[order])
    return float(distance[order[min(np.searchsorted(summed, 0.95 * summed[-1]), len(order) - 1)]])


def _percentile(distance: np.ndarray, _: np.ndarray) -> float:
    """The 95th percentile, interpolated linearly."""
    return float(np.percentile(distance, 95))
