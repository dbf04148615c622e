"""Grids: when two are the same, and how a label map comes onto the grid of its scan.

A lattice is the set of places where the voxels of a file lie, if it went on without end. Two files
may hold the same lattice with their axes in another order or direction, or hold different boxes of
it. A label map is brought from one to the other without a change of any value. Tolerances are parts
of a voxel, see docs/decisions/0023-grids-and-tolerances.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from contextseg.errors import ContextsegError

TOLERANCE_VOX = 0.1
"""How far apart two voxels of the same place may lie along each axis, in voxels of that axis."""

Spacing = tuple[float, ...] | tuple[tuple[float, ...], ...]
"""Millimetres between neighbours along each axis; on a sheared grid the step along each, a row of
millimetres."""


class Lattice(Protocol):
    """What `contextseg.volume.Volume` says about where its voxels lie."""

    @property
    def array(self) -> np.ndarray: ...  # noqa: D102
    @property
    def affine(self) -> np.ndarray: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def orientation(self) -> str: ...  # noqa: D102
    def with_array(self, array: np.ndarray) -> Any: ...  # noqa: D102


_V = TypeVar("_V", bound=Lattice)


def same_grid(volume: Lattice, like: Lattice, tolerance_vox: float = TOLERANCE_VOX) -> bool:
    """Whether two volumes have the same shape, and voxels of the same index lie at the same place.

    Args:
        volume: One volume.
        like: The other, whose voxels are the unit.
        tolerance_vox: How far apart two voxels of the same index may lie along each axis.

    Returns:
        True where the grids are the same.
    """
    if volume.shape != like.shape:
        return False
    if np.array_equal(volume.affine, like.affine):
        return True
    to_index = _to_index(volume, like)
    if to_index is None:
        return False
    corners = _corners(volume.shape)
    return bool(np.abs(to_index @ corners - corners[:3]).max() <= tolerance_vox)


def apart_mm(volume: Lattice, like: Lattice) -> float:
    """The largest distance between voxels of the same index in two grids, found at a corner.

    Args:
        volume: One volume.
        like: The other, of the same shape.

    Returns:
        The distance in mm.
    """
    apart = (volume.affine - like.affine) @ _corners(volume.shape)
    return float(np.linalg.norm(apart, axis=0).max())


@dataclass(frozen=True)
class Placement:
    """Where the voxels of one grid lie in another of the same lattice.

    Attributes:
        order: For each axis of the other grid, the axis of this one that runs along it.
        flips: For each axis of the other grid, whether that axis runs against it.
        start: Index in the other grid where the box of this one starts.
        shape: Size of that box.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]

    def inside(self, shape: Iterable[int]) -> bool:
        """Whether the box lies inside a grid of that shape."""
        sides = zip(self.start, self.shape, shape)
        return all(start >= 0 and start + length <= n for start, length, n in sides)

    def starts_in_corner(self, shape: Iterable[int]) -> bool:
        """Whether the box has its first voxel in a corner, and other lengths along several axes.

        This is how an array looks that was resized or cropped and saved with the old header.
        """
        gaps = [
            n - length - start if flip else start
            for flip, start, length, n in zip(self.flips, self.start, self.shape, shape)
        ]
        return not any(gaps) and sum(length != n for length, n in zip(self.shape, shape)) > 1


def placement(volume: Lattice, like: Lattice) -> Placement | None:
    """Where the voxels of a volume lie in the grid of another, if both have the same lattice.

    Args:
        volume: The volume to place.
        like: The other volume, with a grid of any shape.

    Returns:
        The placement, which may reach beyond the grid of `like`. None where the lattices differ by
        more than `TOLERANCE_VOX` at a voxel of `volume`.
    """
    to_index = _to_index(volume, like)
    if to_index is None:
        return None
    corners = _corners(volume.shape)
    places = to_index @ corners
    for order in permutations(range(3)):
        turn = np.zeros((3, 4))
        for axis, source in enumerate(order):
            turn[axis, source] = -1 if to_index[axis, source] < 0 else 1
        turn[:, 3] = np.rint(to_index[:, 3])
        if np.abs(places - turn @ corners).max() <= TOLERANCE_VOX:
            flips = tuple(bool(turn[axis, source] < 0) for axis, source in enumerate(order))
            start = (turn @ corners).min(axis=1).astype(int)
            shape = tuple(volume.shape[source] for source in order)
            return Placement(order, flips, tuple(start.tolist()), shape)
    return None


def fits(volume: Lattice, like: Lattice) -> bool:
    """Whether `onto` brings a volume onto the grid of another.

    Args:
        volume: The volume.
        like: The other.

    Returns:
        True where it does not raise.
    """
    return same_grid(volume, like) or _usable(volume, like) is not None


def onto(
    volume: _V,
    like: Lattice,
    where: str | Path = "label map",
    name: str = "image",
    outside: int = 0,
) -> _V:
    """A label map on the grid of its scan, where both have the same lattice.

    Axes are permuted and flipped; a label map of a part of the scan is placed in it, with one value
    outside. No value changes, and nothing is resampled.

    Args:
        volume: The label map.
        like: The scan, or another volume with the grid that is wanted.
        where: The label map's file, for the message.
        name: What `like` is, for the message.
        outside: Value of the voxels that a label map of a part of the scan does not cover.

    Returns:
        The label map on the grid of `like`: `volume` itself where it lies on it already.

    Raises:
        ContextsegError: The lattices differ, the label map reaches beyond the scan, or it looks as
            if it was resized without its header; the message says how they differ.
    """
    if same_grid(volume, like):
        return volume
    place = _usable(volume, like)
    if place is None:
        what = f"its grid differs from the {name}'s: {difference(volume, like, name)}"
        remedy = f"export it again on the {name}'s grid, or resample it onto it, nearest neighbour"
        raise ContextsegError(where, what, remedy)
    lead = volume.array.ndim - 3
    turned = np.transpose(volume.array, [*range(lead), *(lead + i for i in place.order)])
    turned = np.flip(turned, tuple(lead + axis for axis, flip in enumerate(place.flips) if flip))
    if place.shape == like.shape:
        whole = np.ascontiguousarray(turned)
    else:
        kind = np.result_type(volume.array.dtype, np.min_scalar_type(outside))
        whole = np.full((*volume.array.shape[:lead], *like.shape), outside, kind)
        d, h, w = (slice(a, a + n) for a, n in zip(place.start, place.shape))
        whole[..., d, h, w] = turned
    placed: _V = like.with_array(whole)
    return placed


def padded_to_both(volume: _V, other: Lattice) -> tuple[np.ndarray, np.ndarray] | None:
    """Two label maps of parts of one lattice in the smallest box that holds both, 0 outside.

    Two segmentations that were each cropped to what they hold can be compared in it.

    Args:
        volume: One label map (D, H, W), whose axes the box has.
        other: The other, with its axes in any order or direction.

    Returns:
        Both arrays, of one shape. None where the lattices differ, or where one looks as if it was
        resized without its header.
    """
    place = placement(other, volume)
    if place is None or place.starts_in_corner(volume.shape):
        return None
    turned = np.transpose(other.array, place.order)
    turned = np.flip(turned, tuple(axis for axis, flip in enumerate(place.flips) if flip))
    low = np.minimum(place.start, 0)
    high = np.maximum(np.add(place.start, place.shape), volume.shape)
    size = (high - low).tolist()
    both = []
    for array, start in ((volume.array, -low), (turned, place.start - low)):
        whole = np.zeros(size, array.dtype)
        whole[tuple(slice(a, a + n) for a, n in zip(start.tolist(), array.shape))] = array
        both.append(whole)
    return both[0], both[1]


def difference(volume: Lattice, like: Lattice, name: str = "image") -> str:
    """How the grid of a volume differs from another.

    Args:
        volume: A label map or another channel.
        like: The image that it should lie on.
        name: What `like` is called.

    Returns:
        The difference in words, with sizes in the file's order x, y, z; "" for the same grid.
    """
    if same_grid(volume, like):
        return ""
    sizes = f"{times(volume.shape)} voxels, the {name} has {times(like.shape)}"
    axes = f"axes along {volume.orientation[::-1]}, the {name}'s along {like.orientation[::-1]}"
    place = placement(volume, like)
    if place is None and volume.shape != like.shape:
        return "; ".join([sizes, *_other_spacing(volume, like, name)])
    if place is None or (volume.shape == like.shape and not place.inside(like.shape)):
        parts = _other_spacing(volume, like, name)
        if volume.orientation != like.orientation:
            parts.append(axes)
        apart = f"its voxels lie up to {apart_mm(volume, like):.3g} mm from the {name}'s"
        return "; ".join([*(parts or [_moved(volume, like)]), apart])
    if not place.inside(like.shape):
        return f"{sizes}; it reaches beyond the {name}"
    if place.starts_in_corner(like.shape):
        return f"{sizes}, both from the same corner on: resized without its header?"
    return axes if place.shape == like.shape else f"{sizes}: a part of them"


def lattice_mm(volume: Lattice) -> Spacing:
    """The spacing of a grid, or its steps where the axes are not at right angles.

    A gantry that is tilted gives such a grid: each slice lies beside the one below. Axes are at
    right angles if over its whole length no axis drifts more than `TOLERANCE_VOX` along another.

    Args:
        volume: A volume.

    Returns:
        (D, H, W) in mm: `spacing_mm`, or three rows of three, the step along each axis.
    """
    steps = np.asarray(volume.affine, float)[:3, :3].T
    lengths = np.linalg.norm(steps, axis=1)
    drift = np.abs(steps @ steps.T) / lengths**2 * (np.array(volume.shape) - 1)[:, None]
    several = np.array(volume.shape) > 1
    np.fill_diagonal(drift, 0)
    if drift[:, several].max(initial=0) <= TOLERANCE_VOX:
        return volume.spacing_mm
    return tuple(tuple(row) for row in steps.tolist())


def voxel_mm3(spacing_mm: Any) -> float:
    """Volume of a voxel; of a slice the area of a pixel.

    Args:
        spacing_mm: One number or one row for each axis.

    Returns:
        mm3, or mm2.
    """
    if np.ndim(spacing_mm) != 2:
        return float(np.prod(spacing_mm))
    steps = np.asarray(spacing_mm, float)
    if len(steps) == steps.shape[1]:
        return abs(float(np.linalg.det(steps)))
    return float(np.sqrt(max(np.linalg.det(steps @ steps.T), 0.0)))


def label_type(largest: int, signed: bool = False) -> np.dtype:
    """The smallest type that holds label values from 0 to `largest`.

    Args:
        largest: The largest value.
        signed: Whether it also holds negative values, such as `IGNORE`.

    Returns:
        uint8, int16, uint16 or int32; of signed ones int16 or int32.

    Example:
        >>> [label_type(n).name for n in (255, 300, 40_000, 65_536)]
        ['uint8', 'int16', 'uint16', 'int32']
    """
    kinds: Any = (np.int16, np.int32) if signed else (np.uint8, np.int16, np.uint16, np.int32)
    return np.dtype(next((kind for kind in kinds if largest <= np.iinfo(kind).max), np.int64))


def times(sizes: Iterable[float], unit: str = "") -> str:
    """Sizes in words, in the order of the file.

    Args:
        sizes: Numbers along D, H and W.
        unit: Unit of each, such as " mm"; "" for whole numbers.

    Returns:
        "75 x 70 x 60", or "0.8 x 0.8 x 5 mm".
    """
    numbers = (f"{size:.4g}" if unit else f"{size:d}" for size in reversed(tuple(sizes)))
    return " x ".join(numbers) + unit


def _usable(volume: Lattice, like: Lattice) -> Placement | None:
    """The placement of a volume that lies inside the grid of another, by what its header says."""
    place = placement(volume, like)
    if place is None or not place.inside(like.shape) or place.starts_in_corner(like.shape):
        return None
    return place


def _to_index(volume: Lattice, like: Lattice) -> np.ndarray | None:
    """(3, 4) from a voxel index of `volume` to one of `like`; None for a broken affine."""
    try:
        to_index = np.linalg.solve(np.asarray(like.affine, float), volume.affine)[:3]
    except np.linalg.LinAlgError:
        return None
    return to_index if np.isfinite(to_index).all() else None


def _corners(shape: Iterable[int]) -> np.ndarray:
    """(4, 8): the indices of a grid's corners."""
    return np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in shape))], float).T


def _other_spacing(volume: Lattice, like: Lattice, name: str) -> list[str]:
    if np.allclose(volume.spacing_mm, like.spacing_mm, rtol=1e-3, atol=0):
        return []
    theirs = times(like.spacing_mm, " mm")
    return [f"spacing {times(volume.spacing_mm, ' mm')}, the {name}'s {theirs}"]


def _moved(volume: Lattice, like: Lattice) -> str:
    """Whether a grid of the same spacing and orientation is shifted or turned."""
    middle = [*((n - 1) / 2 for n in volume.shape), 1]
    shift = float(np.linalg.norm((volume.affine - like.affine) @ middle))
    far = shift > TOLERANCE_VOX * min(like.spacing_mm)
    return f"shifted by {shift:.3g} mm" if far else "turned"
