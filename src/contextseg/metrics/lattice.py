"""Places, lengths and surface areas on the lattice of a grid, also where its axes are sheared.

A spacing is one number for each axis, in mm, or, on a sheared grid, the step along each axis, a row
of millimetres (see `contextseg.grids.lattice_mm`). A slice of a sheared grid has two rows of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from contextseg.grids import Spacing


def as_spacing(spacing_mm: Sequence[Any] | np.ndarray) -> Spacing:
    """A spacing of plain numbers, which can be compared and hashed.

    Args:
        spacing_mm: One number or one row for each axis.

    Returns:
        The same, in tuples of float.
    """
    if is_sheared(spacing_mm):
        return tuple(tuple(float(mm) for mm in row) for row in spacing_mm)
    return tuple(float(mm) for mm in spacing_mm)


def is_sheared(spacing_mm: Any) -> bool:
    """Whether a spacing gives the step along each axis.

    Args:
        spacing_mm: One number or one row for each axis.

    Returns:
        True for rows.
    """
    return np.ndim(spacing_mm) == 2


def places_mm(index: np.ndarray, spacing_mm: Any) -> np.ndarray:
    """Where voxels lie.

    Args:
        index: (N, axes).
        spacing_mm: One number or one row for each axis.

    Returns:
        (N, axes) float64; (N, 3) on a sheared grid.
    """
    spacing = np.asarray(spacing_mm, float)
    return index @ spacing if is_sheared(spacing) else index * spacing


def diagonal_mm(shape: Sequence[int], spacing_mm: Any) -> float:
    """Length of a grid's longest diagonal.

    Args:
        shape: Number of voxels along each axis.
        spacing_mm: One number or one row for each axis.

    Returns:
        The length in mm.
    """
    if not is_sheared(spacing_mm):
        return float(np.linalg.norm(np.array(shape) * spacing_mm))
    signs = np.array(list(product((-1, 1), repeat=len(shape))))
    return float(np.linalg.norm(places_mm(signs * np.array(shape), spacing_mm), axis=1).max())


def layers_mm(spacing_mm: Any) -> np.ndarray:
    """Distance from one layer of voxels to the next, across each axis.

    Args:
        spacing_mm: One number or one row for each axis.

    Returns:
        (axes,) in mm: the spacing where axes are at right angles, less on a sheared grid.
    """
    spacing = np.asarray(spacing_mm, float)
    if not is_sheared(spacing):
        return spacing
    heights: np.ndarray = 1 / np.linalg.norm(np.linalg.pinv(spacing), axis=0)
    return heights


@lru_cache(maxsize=64)
def sheared_areas(steps_mm: tuple[tuple[float, ...], ...]) -> np.ndarray:
    """`surface.element_areas` on a sheared grid: the same patches, in the true lattice.

    Args:
        steps_mm: The step along each axis, 3 or 2 rows of 3 in mm.

    Returns:
        (256,) areas in mm2; in 2-D (16,) lengths in mm.
    """
    from contextseg.metrics.surface import cut_off_parts

    steps = np.asarray(steps_mm, float)
    if len(steps) == 2:  # a contour is a wall of unit height
        normal = np.cross(*steps)
        upright = normal / np.linalg.norm(normal)
        tall = sheared_areas(tuple(tuple(row) for row in np.vstack([upright, steps]).tolist()))
        return np.array([tall[pattern | pattern << 4] for pattern in range(16)])
    # (3, 3): the area of the cell's face across each axis, as a vector
    faces = np.stack([np.cross(steps[(i + 1) % 3], steps[(i + 2) % 3]) for i in range(3)])
    areas = np.zeros(256)
    for pattern in range(1, 255):
        for corners in cut_off_parts(pattern):
            for weight, facet in _facets(corners):
                areas[pattern] += weight * np.linalg.norm(facet @ faces)
    areas = (areas + areas[::-1]) / 2  # of 4 corners, neither side is the fewer
    areas.flags.writeable = False
    return areas


def _facets(corners: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """The flat pieces of the patch that cuts off 1 to 4 connected corners (N, 3) of a cell.

    Each is a weight and an area vector in voxels, whose parts are -1, 0 or 1.
    """
    outwards = 1 - 2 * corners
    wall = outwards.mean(0) * (np.abs(outwards.mean(0)) == 1)
    steps = np.abs(corners[:, None] - corners[None]).sum(2) == 1
    busiest = int(steps.sum(1).argmax())
    if len(corners) == 1:  # a triangle
        return [(1 / 8, outwards[0])]
    if len(corners) == 2:  # a slanted wall along an edge
        return [(1 / 2, wall)]
    if len(corners) == 3:  # an L: half a wall and three triangles
        return [(1 / 2, wall), (3 / 8, outwards[busiest])]
    if wall.any():  # a flat wall
        return [(1.0, wall)]
    if steps[busiest].sum() == 3:  # a corner and its three neighbours: a hexagon
        return [(6 / 8, outwards[busiest])]
    # A chain along each axis once. Its ring of six can be cut in two ways; this is their mean.
    ends = np.flatnonzero(steps.sum(1) == 1)
    second, third = (int(np.flatnonzero(steps[end])[0]) for end in ends)
    first_step = corners[second] - corners[ends[0]]
    middle = corners[third] - corners[second]
    last_step = corners[ends[1]] - corners[third]
    one_way = [middle + last_step, middle - first_step]
    other_way = [middle + first_step, middle - last_step]
    slants = [(1 / 8, vector) for vector in (*one_way, *other_way)]
    walls = [first_step + middle - last_step, first_step - middle - last_step]
    return [*slants, *((1 / 4, vector) for vector in walls)]
