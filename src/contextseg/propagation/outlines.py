"""One class between its labelled slices: its parts matched, moved, blended, and kept in size.

`Outlines` holds the masks of one class in the slices where it is labelled, and gives its signed
distance in each slice between them. `contextseg.propagation.shapes` puts the classes together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

PlaneBox = tuple[slice, slice]
EXPECTED_DICE = (-0.638, -0.627, -0.11, 1.732, 1.162, -0.586)
"""Coefficients of `Outlines.expected_dice`, by `benchmarks/filling.py --fit`."""
_WAYS_OF_THE_SHIFT = (1.0, 0.75, 0.5, 0.25, 0.0)


@dataclass(frozen=True)
class Distance:
    """The signed distance of a class in one slice, positive inside, in a box of the plane.

    Attributes:
        box: Rows and columns of the plane. Outside, the class is not.
        values: (h, w) float32. -inf where no part of the class is near.
    """

    box: PlaneBox
    values: np.ndarray


class Outlines:
    """The masks of one class, and its signed distances between them.

    Between two labelled slices the signed distances of both masks are blended linearly (Raya and
    Udupa, IEEE TMI 1990). Ours, and left out with `aligned=False`:

    - *Matched and moved.* Parts (8-connected) that overlap belong together; of the others the
      nearest. Where one part follows one, both are moved towards each other before they are
      blended, along the line between their centroids, by the part of it at which they overlap most.
    - *On a curve.* Of a class that is one part in each of three slices or more, the centroids lie
      on a natural cubic spline.
    - *Kept in size.* With three slices or more, the distance is raised or lowered so that the
      area is that of a monotone cubic (Fritsch and Carlson, 1980) through those of the slices.

    A part that only one of two slices holds shrinks to nothing half way.

    Args:
        masks: Slice number to mask (H, W) bool; all False where the class is known to be absent.
        spacing: Size of a pixel along H and W, in any unit.
        aligned: Whether the three rules above apply.
        margin: Pixels of the box of a distance around the outlines; a shape between two outlines
            can reach into it.
    """

    def __init__(
        self,
        masks: Mapping[int, np.ndarray],
        spacing: Sequence[float],
        aligned: bool = True,
        margin: int = 2,
    ) -> None:
        self.masks = dict(sorted(masks.items()))
        self.spacing = (float(spacing[0]), float(spacing[1]))
        self.aligned = aligned
        self.margin = margin
        self.slices = list(self.masks)
        self._stretch: tuple[tuple[int, int], Callable[[int], Distance] | None] | None = None

    def distance(self, i: int) -> Distance | None:
        """The distance of the class in a slice between two labelled ones.

        Args:
            i: Slice number.

        Returns:
            None where the slice is labelled, where it lies beyond the labelled slices, and where
            neither of the two that it lies between holds the class.
        """
        place = bisect_left(self.slices, i)
        if not 0 < place < len(self.slices) or self.slices[place] == i:
            return None
        a, b = self.slices[place - 1], self.slices[place]
        if self._stretch is None or self._stretch[0] != (a, b):
            self._stretch = (a, b), self._blend(a, b)
        blend = self._stretch[1]
        if blend is None:
            return None
        distance = blend(i)
        if self._curves(a, b):
            _resize(distance.values, float(self._area_curve(a)(i)))
        return distance

    def expected_dice(self, i: int, slice_spacing: float) -> float:
        """The Dice to be expected of the class in a slice between two labelled ones.

        A logistic regression on half of the cases of `benchmarks/filling.py`, checked on the other
        half (docs/propagation.md): by the distance to the nearest labelled slice and from one to
        the other, as shares of the radius; by how much the two outlines overlap after they are
        moved; by whether curves through three slices or more are known; and by how far the
        centroid moves.

        Args:
            i: Slice number.
            slice_spacing: Distance from one slice to the next, in the unit of `spacing`.

        Returns:
            0 to 1; 0 where the class vanishes, and where only one of the two slices holds it. NaN
            where `distance` is None.
        """
        distance = self.distance(i)
        if distance is None:
            return float("nan")
        features = self.features(i, slice_spacing)
        if features is None or not (distance.values > 0).any():
            return 0.0
        return float(1 / (1 + np.exp(-np.dot(EXPECTED_DICE, features))))

    def features(self, i: int, slice_spacing: float) -> tuple[float, ...] | None:
        """What `expected_dice` is made of, in the order of `EXPECTED_DICE`.

        Args:
            i: A slice between two labelled ones.
            slice_spacing: As there.

        Returns:
            One number for each coefficient. None where only one of the two slices holds the class,
            and so nothing can be said.
        """
        place = bisect_left(self.slices, i)
        a, b = self.slices[place - 1], self.slices[place]
        if not (self.areas[a] and self.areas[b]):
            return None
        overlap, drift = self._alike(a, b)
        pixels = max(self.areas[a], self.areas[b])
        radius = (pixels * self.spacing[0] * self.spacing[1] / np.pi) ** 0.5
        length = slice_spacing * (b - a)
        return (
            1.0,
            float(np.log(slice_spacing * min(i - a, b - i) / radius)),
            float(np.log(length / radius)),
            overlap,
            float(self._curves(a, b)),
            drift / length,
        )

    def _alike(self, a: int, b: int) -> tuple[float, float]:
        """Dice of two slices' masks after they are moved, and the distance of their centroids."""
        key = a, "alike"
        if key not in self._fitted:
            first, last = self.masks[a], self.masks[b]
            box = bounding_box(first | last, 0)
            first, last = first[box], last[box]
            way = (_centroid(last) - _centroid(first)) * self.spacing
            common = _overlap(first, last, _shift(first, last))
            dice = 2 * common / (self.areas[a] + self.areas[b])
            self._fitted[key] = dice, float(np.hypot(*way))
        return self._fitted[key]

    def at(self, i: int) -> Distance:
        """The distance of the class in one of its labelled slices."""
        box = bounding_box(self.masks[i], self.margin)
        distance = signed_distance(self.masks[i][box], self.spacing)
        assert distance is not None
        return Distance(box, distance)

    @cached_property
    def areas(self) -> dict[int, int]:
        """Pixels of the class in each of its slices."""
        return {i: int(np.count_nonzero(mask)) for i, mask in self.masks.items()}

    # --- curves through more than two slices ------------------------------------------------------

    @cached_property
    def _runs(self) -> dict[int, list[int]]:
        """Slice -> the slices around it that hold the class, without one between that does not."""
        runs: dict[int, list[int]] = {}
        run: list[int] = []
        for i in self.slices:
            run = [*run, i] if self.areas[i] else []
            for j in run:
                runs[j] = run
        return runs

    def _curves(self, a: int, b: int) -> bool:
        run = self._runs.get(a, [])
        return self.aligned and len(run) > 2 and b in run

    @cached_property
    def _fitted(self) -> dict[tuple[int, str], Any]:
        return {}

    def _area_curve(self, a: int) -> Callable[[int], Any]:
        """Area by slice, through the run that holds slice `a`."""
        from scipy.interpolate import PchipInterpolator

        run = self._runs[a]
        key = run[0], "area"
        if key not in self._fitted:
            self._fitted[key] = PchipInterpolator(run, [self.areas[i] for i in run])
        return self._fitted[key]

    def _bend(self, a: int, b: int) -> Callable[[int], tuple[float, float]]:
        """How far the class lies from the straight line between its centroids, in pixels."""
        from scipy.interpolate import CubicSpline

        run = self._runs.get(a, [])
        if not self._curves(a, b) or any(self._parts(i) != 1 for i in run):
            return lambda i: (0.0, 0.0)
        key = run[0], "path"
        if key not in self._fitted:
            centroids = np.array([_centroid(self.masks[i]) for i in run])
            self._fitted[key] = CubicSpline(run, centroids, bc_type="natural")
        path = self._fitted[key]
        first, last = path(a), path(b)

        def bend(i: int) -> tuple[float, float]:
            y, x = path(i) - first - (last - first) * ((i - a) / (b - a))
            return float(y), float(x)

        return bend

    def _parts(self, i: int) -> int:
        key = i, "parts"
        if key not in self._fitted:
            mask = self.masks[i]
            self._fitted[key] = _connected(mask[bounding_box(mask, 0)])[1]
        return self._fitted[key]

    # --- one stretch ------------------------------------------------------------------------------

    def _blend(self, a: int, b: int) -> Callable[[int], Distance] | None:
        """The distance in slice i, before it is resized; None where neither holds the class."""
        first, last = self.masks[a], self.masks[b]
        if not (self.areas[a] or self.areas[b]):
            return None
        if not (self.areas[a] and self.areas[b]):
            return self._vanishing(first if self.areas[a] else last, a, b, bool(self.areas[a]))
        bend = self._bend(a, b)
        bends = np.abs([bend(i) for i in range(a + 1, b)]).max() if b - a > 1 else 0
        margin = self.margin + int(np.ceil(bends))
        box = bounding_box(first | last, margin)
        pairs = [
            _Pair(one, other, self.spacing, self.aligned, bends, margin)
            for one, other in _matched(first[box], last[box], self.spacing, self.aligned)
        ]
        shape = tuple(s.stop - s.start for s in box)

        def blend(i: int) -> Distance:
            values = np.full(shape, -np.inf, np.float32)
            for pair in pairs:
                part = values[pair.box]
                np.maximum(part, pair.blended((i - a) / (b - a), bend(i)), out=part)
            return Distance(box, values)

        return blend

    def _vanishing(
        self, mask: np.ndarray, a: int, b: int, from_first: bool
    ) -> Callable[[int], Distance]:
        """A mask that the other slice lacks, shrinking to nothing half way."""
        box = bounding_box(mask, self.margin)
        distance = signed_distance(mask[box], self.spacing)
        assert distance is not None
        deepest = distance.max()

        def blend(i: int) -> Distance:
            share = (i - a) / (b - a) if from_first else (b - i) / (b - a)
            return Distance(box, distance * np.float32(1 - share) - deepest * np.float32(share))

        return blend


class _Pair:
    """Parts of a class in two slices that follow one another; arrays are of the class's box."""

    def __init__(
        self,
        first: np.ndarray,
        last: np.ndarray,
        spacing: tuple[float, float],
        aligned: bool,
        bends: float,
        margin: int,
    ) -> None:
        self.box = bounding_box(first | last, margin)
        one, other = first[self.box], last[self.box]
        self.shift = np.zeros(2)
        if aligned and one.any() and other.any() and self._one_follows_one(one, other):
            self.shift = _shift(one, other)
        reach = int(np.ceil(np.abs(self.shift).max() + bends)) + 1
        self.first, self.last = (
            _Movable(distance, reach) for distance in _ends(one, other, spacing)
        )

    @staticmethod
    def _one_follows_one(one: np.ndarray, other: np.ndarray) -> bool:
        return _connected(one)[1] == 1 and _connected(other)[1] == 1

    def blended(self, share: float, bend: tuple[float, float]) -> np.ndarray:
        """The distance at `share` of the way, moved by `bend`."""
        one = self.first.moved(share * self.shift + bend)
        other = self.last.moved((share - 1) * self.shift + bend)
        blended = one * np.float32(1 - share)
        blended += other * np.float32(share)
        return blended


class _Movable:
    """A field that continues beyond its edges as at the edge, to be moved by parts of a pixel."""

    def __init__(self, field: np.ndarray, reach: int) -> None:
        self.shape, self.reach = field.shape, reach
        self.padded = np.pad(field, reach, mode="edge")

    def moved(self, shift: np.ndarray) -> np.ndarray:
        field = self.padded
        for axis in (0, 1):
            whole = int(np.floor(shift[axis]))
            part = np.float32(shift[axis] - whole)
            start = self.reach - whole
            near = _cut(field, axis, start, self.shape[axis])
            if part > 1e-6:
                far = _cut(field, axis, start - 1, self.shape[axis])
                near = near * (1 - part) + far * part
            field = near
        return field


def _cut(field: np.ndarray, axis: int, start: int, length: int) -> np.ndarray:
    cut = slice(start, start + length)
    return field[cut] if axis == 0 else field[:, cut]


def _resize(values: np.ndarray, area: float) -> None:
    """Raise or lower a distance so that `area` pixels, as near as can be, are above 0."""
    target = min(max(1, round(area)), int(np.isfinite(values).sum()))
    if target == np.count_nonzero(values > 0):
        return
    flat = values.ravel()
    level = np.partition(flat, flat.size - target)[flat.size - target]
    with_ties, without = np.count_nonzero(flat >= level), np.count_nonzero(flat > level)
    if without and target - without < with_ties - target:
        higher = flat[flat > level].min()
    else:
        higher, level = level, flat[flat < level].max(initial=-np.inf)
    if not np.isfinite(level):
        level = higher - 1
    values -= (level + higher) / 2


def _shift(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """From one mask to another, along the line of centroids: where they overlap most."""
    way = _centroid(other) - _centroid(one)
    return way * max(_WAYS_OF_THE_SHIFT, key=lambda part: _overlap(one, other, part * way))


def _overlap(one: np.ndarray, other: np.ndarray, shift: np.ndarray) -> int:
    """Pixels that a mask has in common with another after it is moved by whole pixels."""
    y, x = (round(float(d)) for d in shift)
    h, w = one.shape
    moved = one[max(0, -y) : h - max(0, y), max(0, -x) : w - max(0, x)]
    there = other[max(0, y) : h - max(0, -y), max(0, x) : w - max(0, -x)]
    return int(np.count_nonzero(moved & there))


def _matched(
    first: np.ndarray, last: np.ndarray, spacing: tuple[float, float], aligned: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The parts of two masks that follow one another; one of a pair may be empty."""
    ones, n = _connected(first)
    others, m = _connected(last)
    if not aligned or (n == 1 and m == 1):
        return [(first, last)]
    groups = _Groups(n + m)
    both = first & last
    for i, j in {(int(i), int(j)) for i, j in zip(ones[both], others[both])}:
        groups.join(i - 1, n + j - 1)
    alone = [i for i in range(n) if groups.size(i) == 1]
    others_alone = [j for j in range(m) if groups.size(n + j) == 1]
    if alone and others_alone:
        from_places = _centroids(ones, alone) * spacing
        to_places = _centroids(others, others_alone) * spacing
        apart = np.linalg.norm(from_places[:, None] - to_places[None], axis=2)
        for _ in range(min(apart.shape)):
            i, j = np.unravel_index(apart.argmin(), apart.shape)
            groups.join(alone[i], n + others_alone[j])
            apart[i], apart[:, j] = np.inf, np.inf
    pairs = []
    for members in groups.all():
        one = np.isin(ones, [k + 1 for k in members if k < n])
        other = np.isin(others, [k - n + 1 for k in members if k >= n])
        pairs.append((one, other))
    return pairs


class _Groups:
    """Which of n things belong together."""

    def __init__(self, n: int) -> None:
        self.of = {i: [i] for i in range(n)}

    def join(self, i: int, j: int) -> None:
        one, other = self.of[i], self.of[j]
        if one is not other:
            one.extend(other)
            for k in other:
                self.of[k] = one

    def size(self, i: int) -> int:
        return len(self.of[i])

    def all(self) -> list[list[int]]:
        return list({id(group): group for group in self.of.values()}.values())


# --- masks ----------------------------------------------------------------------------------------


def bounding_box(mask: np.ndarray, margin: int) -> PlaneBox:
    """Rows and columns around a mask that is not empty.

    Args:
        mask: (H, W) bool.
        margin: Pixels added on each side, as far as the plane goes.

    Returns:
        Two slices.
    """
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (
        slice(max(0, int(rows[0]) - margin), min(h, int(rows[-1]) + 1 + margin)),
        slice(max(0, int(columns[0]) - margin), min(w, int(columns[-1]) + 1 + margin)),
    )


def _connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Parts of a mask, numbered from 1, and how many there are."""
    import cc3d

    parts, n = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=8, return_N=True)
    return parts, int(n)


def _centroid(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.count_nonzero(mask, 1), np.count_nonzero(mask, 0)
    total = rows.sum()
    y, x = np.arange(len(rows)) @ rows / total, np.arange(len(columns)) @ columns / total
    return np.array([y, x])


def _centroids(parts: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """(n, 2): centroids of the parts with these indices, from 0."""
    return np.array([_centroid(parts == i + 1) for i in indices])


def _ends(
    first: np.ndarray, last: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The signed distances of two masks, one of which may be empty.

    That of an empty mask is such that the other shrinks to nothing half way.
    """
    one = signed_distance(first, spacing)
    other = signed_distance(last, spacing)
    if one is None:
        assert other is not None
        one = np.full(first.shape, -other.max(), np.float32)
    if other is None:
        other = np.full(first.shape, -one.max(), np.float32)
    return one, other


def signed_distance(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray | None:
    """Distance of each pixel to the border between pixels inside and outside, positive inside.

    Args:
        mask: (H, W) bool.
        spacing: Size of a pixel along H and W.

    Returns:
        (H, W) float32 in the unit of `spacing`; None of an empty mask.
    """
    import edt

    if not mask.any():
        return None
    if mask.all():
        diagonal = float(np.hypot(*(n * s for n, s in zip(mask.shape, spacing))))
        return np.full(mask.shape, diagonal, np.float32)
    half = min(spacing) / 2
    mask = np.ascontiguousarray(mask)
    inside = edt.edt(mask, anisotropy=tuple(spacing))
    outside = edt.edt(~mask, anisotropy=tuple(spacing))
    return np.where(mask, inside - half, half - outside)
