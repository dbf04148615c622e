"""Slices filled from the labelled ones by their shape alone, without a network.

`interpolate_shapes` and `copy_nearest` are the baselines that propagation has to beat. `ShapePrior`
says the same as log-odds, to be added to those of a network. How one class goes from slice to slice
is in `contextseg.propagation.outlines`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.grids import label_type
from contextseg.propagation.outlines import Outlines, bounding_box

Silent = Mapping[int, Collection[int]]
"""Slice number -> classes of which that labelled slice says nothing."""
NOTHING_SILENT: Silent = {}

_KNOWN_SHARE = 1 / 3  # of the box around a class, below which a slice is no reference for others
_PRIOR_MARGIN = 32  # pixels around a class within which its log-odds are those of the distance


def interpolate_shapes(
    references: Mapping[int, Any],
    slices: int,
    spacing: Sequence[float] = (1.0, 1.0),
    ends: bool = False,
    silent: Silent = NOTHING_SILENT,
    aligned: bool = True,
) -> np.ndarray:
    """Shape-based interpolation between labelled slices, by signed distances.

    Between two references each class's signed distance to its outline, positive inside, is
    interpolated linearly, and the class with the largest distance stands where that is positive
    (Raya and Udupa, IEEE TMI 1990; Herman et al., 1992; for several classes ours). A class that
    only one of the two holds shrinks to nothing half way.

    Ours: the parts of a class are matched and moved towards each other before, and keep their size
    (`contextseg.propagation.outlines.Outlines`); and what is in the foreground of both references
    stays in the foreground between them.

    Args:
        references: Slice number to label (H, W), integers. Where it is `IGNORE`, the reference is
            filled from the others, and counts for the slices beside it as filled.
        slices: Number of slices of the volume.
        spacing: Size of a pixel along H and W, in any unit.
        ends: Whether slices outside the first and the last reference of a class copy the nearest
            one. By default they are background.
        silent: Slice number to the classes of which that reference says nothing: they are
            interpolated through it, where it is 0. Of all others a reference without the class says
            that it is not there.
        aligned: Whether what is ours applies. If not, this is the method of Raya and Udupa.

    Returns:
        Labels (slices, H, W), int16 or, for larger values, int32. What is labelled in the
        references comes back as it is.

    Raises:
        ContextsegError: If there is no reference, if one lies outside the volume, and if two have
            different shapes.

    Example:
        >>> first, last = np.array([[1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 0, 0, 0, 0]])
        >>> interpolate_shapes({0: first, 2: last}, 3)[1].tolist()
        [[1, 1, 1, 0, 0, 0]]
    """
    options = Between(tuple(spacing), 1.0, silent, aligned)
    return fill_between(references, slices, options, ends)[0]


@dataclass(frozen=True)
class Between:
    """How `fill_between` fills.

    Attributes:
        spacing: Size of a pixel along H and W.
        slice_spacing: Distance from one slice to the next, in the same unit.
        silent: As in `interpolate_shapes`.
        aligned: As there.
    """

    spacing: tuple[float, ...]
    slice_spacing: float
    silent: Silent = field(default_factory=dict)
    aligned: bool = True


def fill_between(
    references: Mapping[int, Any], slices: int, between: Between, ends: bool = False
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """`interpolate_shapes`, with the Dice to be expected of each class.

    Args:
        references: Slice number to label (H, W), integers.
        slices: Number of slices of the volume, n.
        between: How.
        ends: As in `interpolate_shapes`.

    Returns:
        Labels (n, H, W), and class -> (n,) float32 in [0, 1], the expected Dice of the class in
        each slice between two of its labelled ones; NaN elsewhere.

    Raises:
        ContextsegError: As `interpolate_shapes`.
    """
    labels = check_references(references, slices)
    first = next(iter(labels.values()))
    predict = _interpolated(between.spacing, between.aligned)
    known = {k: _completed(*_masks(labels, k, between.silent), predict) for k in classes_of(labels)}
    out = np.zeros((slices, *first.shape), first.dtype)
    best = np.zeros(out.shape, np.float32)
    dice = {k: np.full(slices, np.nan, np.float32) for k in known}
    if between.aligned:
        for a, b, pixels in _foreground_of_both(known):
            best[a + 1 : b, pixels] = -np.inf
    for k, masks in known.items():
        if not masks:
            continue
        outlines = Outlines(masks, between.spacing, between.aligned)
        for i in range(outlines.slices[0], outlines.slices[-1] + 1):
            distance = outlines.distance(i)
            if distance is not None:
                dice[k][i] = outlines.expected_dice(i, between.slice_spacing)
            elif i in masks and masks[i].any() and (labels[i] == IGNORE).any():
                distance = outlines.at(i)
                dice[k][i] = 1
            if distance is not None:
                before = best[i][distance.box]
                inside = distance.values > before
                np.copyto(before, distance.values, where=inside)
                np.copyto(out[i][distance.box], k, where=inside, casting="unsafe")
        if ends:
            _copy_ends(out, masks, k)
    return restore(out, labels, between.silent), dice


def log_odds_per_distance(outlines: Outlines, i: int, slice_spacing: float) -> float:
    """What turns the distance of a class in slice `i` into log-odds; see `ShapePrior.log_odds`."""
    below = max(j for j in outlines.slices if j < i)
    above = min(j for j in outlines.slices if j > i)
    pixels = max(outlines.areas[below], outlines.areas[above])
    radius = (pixels * outlines.spacing[0] * outlines.spacing[1] / np.pi) ** 0.5
    nearest = slice_spacing * min(i - below, above - i)
    return float(2 * radius / (nearest * slice_spacing * (above - below)))


def copy_nearest(
    references: Mapping[int, Any], slices: int, silent: Silent = NOTHING_SILENT
) -> np.ndarray:
    """The label of the nearest reference for every slice; half way, that of the lower one.

    Args:
        references: Slice number to label (H, W), integers. Where it is `IGNORE`, the nearest other
            reference stands.
        slices: Number of slices of the volume.
        silent: Slice number to the classes of which that reference says nothing. Where two classes
            meet, the one whose reference is nearer stands.

    Returns:
        Labels (slices, H, W), int16 or, for larger values, int32.

    Raises:
        ContextsegError: As `interpolate_shapes`.

    Example:
        >>> copy_nearest({1: np.array([[5]]), 3: np.array([[7]])}, 5).ravel().tolist()
        [5, 5, 5, 7, 7]
    """
    labels = check_references(references, slices)
    known = {k: _completed(*_masks(labels, k, silent), _nearest) for k in classes_of(labels)}
    first = next(iter(labels.values()))
    out = np.zeros((slices, *first.shape), first.dtype)
    for i in range(slices):
        sources = {k: nearest_slice(masks, i) for k, masks in known.items()}
        for k in sorted(sources, key=lambda k: -abs(sources[k] - i)):
            out[i][known[k][sources[k]]] = k
    return restore(out, labels, silent)


class ShapePrior:
    """The shapes of labelled slices as log-odds for the slices between, to add to a network's.

    [Ours.]

    Args:
        references: Slice number to label (H, W), integers; `IGNORE` where nobody has annotated.
        classes: The O label values.
        spacing: Size of a pixel along H and W, in any unit.
        slice_spacing: Distance from one slice to the next, in the same unit.
        silent: As in `interpolate_shapes`.
    """

    def __init__(
        self,
        references: Mapping[int, Any],
        classes: Sequence[int],
        spacing: Sequence[float],
        slice_spacing: float,
        silent: Silent = NOTHING_SILENT,
    ) -> None:
        labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
        self.shape = next(iter(labels.values())).shape
        self.classes = tuple(classes)
        self.spacing = tuple(spacing)
        self.slice_spacing = slice_spacing
        predict = _interpolated(spacing, True)
        self._outlines = [
            Outlines(_completed(*_masks(labels, k, silent), predict), spacing, margin=_PRIOR_MARGIN)
            for k in self.classes
        ]

    def distance(self, value: int, i: int) -> np.ndarray | None:
        """Signed distance of one class in one slice, as `interpolate_shapes` predicts it.

        Args:
            value: One of the classes.
            i: Slice number.

        Returns:
            (H, W) float32, positive inside, in the unit of the spacing; None where the slice does
            not lie between two that are labelled for the class, or is one.
        """
        distance = self._outlines[self.classes.index(value)].distance(i)
        if distance is None:
            return None
        out = np.full(self.shape, distance.values.min(), np.float32)
        out[distance.box] = distance.values
        return out

    def expected_dice(self, value: int, i: int) -> float:
        """The Dice to be expected of one class in one slice by its shapes alone.

        Args:
            value: One of the classes.
            i: Slice number.

        Returns:
            0 to 1, as `Outlines.expected_dice`; NaN where `distance` is None.
        """
        outlines = self._outlines[self.classes.index(value)]
        return outlines.expected_dice(i, self.slice_spacing)

    def log_odds(self, i: int) -> np.ndarray | None:
        """Log-odds of each class in one slice, by the shapes of the labelled slices beside it.

        They are the signed distance of `interpolate_shapes` over the distance by which it may be
        wrong: s d / 2r, with s the distance to the nearest slice that is labelled for the class, d
        from one such slice to the other, and r the radius of a disc as large as the larger of the
        class's two outlines. So a shape is certain beside a labelled slice, and where labelled
        slices lie close together for its size.

        Args:
            i: Slice number.

        Returns:
            (O, H, W) float32: 0 for a class in neither of its two labelled slices. None where the
            slice does not lie between two labelled ones of any class, or is one.

        Example:
            >>> label = np.array([[1, 1, 0, 0]])
            >>> shapes = ShapePrior({0: label, 2: label}, [1], (1.0, 1.0), 1.0)
            >>> shapes.log_odds(1).astype(float).round(1).tolist(), shapes.log_odds(3)
            ([[[1.2, 0.4, -0.4, -1.2]]], None)
        """
        out = np.zeros((len(self.classes), *self.shape), np.float32)
        between = False
        for k, value in enumerate(self.classes):
            own = self.class_log_odds(value, i)
            if own is not None:
                between = True
                out[k] = own
        return out if between else None

    def class_log_odds(self, value: int, i: int) -> np.ndarray | None:
        """`log_odds` of one class.

        Args:
            value: One of the classes.
            i: Slice number.

        Returns:
            (H, W) float32; None where `distance` is None.
        """
        distance = self.distance(value, i)
        if distance is None:
            return None
        outlines = self._outlines[self.classes.index(value)]
        distance *= np.float32(log_odds_per_distance(outlines, i, self.slice_spacing))
        return distance


def check_references(
    references: Mapping[int, Any], slices: int, shape: tuple[int, ...] | None = None
) -> dict[int, np.ndarray]:
    """The reference labels as arrays of one type, sorted by slice number.

    Args:
        references: Slice number to label (H, W), integers.
        slices: Number of slices of the volume.
        shape: (H, W) of the labels. None is the shape of the first.

    Returns:
        Slice number to label (H, W), int16 or, where one of them has larger values, int32.

    Raises:
        ContextsegError: If there is none, if one lies outside the volume, or has another shape.
    """
    labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
    largest = max((int(label.max()) for label in labels.values() if label.size), default=0)
    labels = {i: label.astype(label_type(largest, signed=True)) for i, label in labels.items()}
    if not labels:
        raise ContextsegError("reference slices", "there is none", "label at least one slice")
    shape = next(iter(labels.values())).shape if shape is None else shape
    for i, label in labels.items():
        if not 0 <= i < slices:
            raise ContextsegError(
                f"reference slice {i}",
                f"the volume has {slices} slices",
                f"choose 0 to {slices - 1}",
            )
        if label.shape != tuple(shape) or label.ndim != 2:
            remedy = "give a label for each pixel of the slice"
            raise ContextsegError(
                f"reference slice {i}",
                f"a label of {label.shape} pixels, not {tuple(shape)}",
                remedy,
            )
    return labels


def classes_of(labels: Mapping[int, np.ndarray]) -> list[int]:
    """The classes that labels hold, sorted; background and `IGNORE` are none.

    Args:
        labels: Slice number to label (H, W), integers.

    Returns:
        Label values. [] without any.

    Example:
        >>> classes_of({3: np.array([[0, 7]]), 1: np.array([[2, -1]])})
        [2, 7]
    """
    found: set[int] = set()
    for label in labels.values():
        drawn = label[label > 0]
        while drawn.size:  # a few classes, and many pixels: faster than to sort them
            found.add(int(drawn[0]))
            drawn = drawn[drawn != drawn[0]]
    return sorted(found)


def nearest_slice(slices: Iterable[int], i: int) -> int:
    """The slice nearest to slice `i`; of two, the lower one."""
    return min(slices, key=lambda k: (abs(k - i), k))


# --- what is known of a class ---------------------------------------------------------------------

_Masks = dict[int, np.ndarray]
_Predict = Callable[[_Masks, int], "np.ndarray | None"]


def _masks(
    labels: Mapping[int, np.ndarray], value: int, silent: Silent
) -> tuple[_Masks, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Slices in which all of a class is known: its mask. The others: (what is known, its mask)."""
    full: _Masks = {}
    partial: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i, label in labels.items():
        if value in silent.get(i, ()):
            continue
        mask = label == value
        known = label != IGNORE
        if known.all():
            full[i] = mask
        elif known.any():
            partial[i] = known, mask
    return full, partial


def _completed(
    full: _Masks, partial: Mapping[int, tuple[np.ndarray, np.ndarray]], predict: _Predict
) -> _Masks:
    """The masks of the slices that a class is filled from.

    Where a slice is not known, it is what the full ones say of it, unless little of it is known
    around the class: then it says nothing of the slices beside it.
    """
    masks = dict(full)
    for i, (known, mask) in partial.items():
        predicted = predict(full, i)
        if predicted is None:
            if mask.any():
                masks[i] = mask
        elif (predicted | mask).any():
            box = bounding_box(predicted | mask, 0)
            if known[box].mean() >= _KNOWN_SHARE:
                masks[i] = np.where(known, mask, predicted)
    return dict(sorted(masks.items()))


def _interpolated(spacing: Sequence[float], aligned: bool) -> _Predict:
    def predict(full: _Masks, i: int) -> np.ndarray | None:
        if not any(mask.any() for mask in full.values()):
            return None
        if not min(full) < i < max(full):
            return full[nearest_slice(full, i)]
        distance = Outlines(full, spacing, aligned).distance(i)
        mask = np.zeros(next(iter(full.values())).shape, bool)
        if distance is not None:
            mask[distance.box] = distance.values > 0
        return mask

    return predict


def _nearest(full: _Masks, i: int) -> np.ndarray | None:
    return full[nearest_slice(full, i)] if full else None


def common_foreground(
    references: Mapping[int, Any], silent: Silent = NOTHING_SILENT
) -> Iterator[tuple[int, int, np.ndarray]]:
    """What lies in the foreground of two labelled slices, and so between them too.

    Args:
        references: Slice number to label (H, W), integers; slices that are labelled in part say
            nothing.
        silent: As in `interpolate_shapes`.

    Yields:
        (a, b, pixels (H, W) bool) for slices next to each other among those of the same classes.
    """
    labels = {int(i): np.asarray(label) for i, label in sorted(references.items())}
    yield from _foreground_of_both({k: _masks(labels, k, silent)[0] for k in classes_of(labels)})


def _foreground_of_both(known: Mapping[int, _Masks]) -> Iterator[tuple[int, int, np.ndarray]]:
    """(a, b, pixels (H, W)) for slices next to each other among those of the same classes."""
    groups: dict[tuple[int, ...], list[_Masks]] = {}
    for masks in known.values():
        groups.setdefault(tuple(masks), []).append(masks)
    for slices, members in groups.items():
        foreground = {i: np.logical_or.reduce([masks[i] for masks in members]) for i in slices}
        for a, b in pairwise(slices):
            if b - a > 1:
                yield a, b, foreground[a] & foreground[b]


def _copy_ends(out: np.ndarray, masks: _Masks, value: int) -> None:
    """Copy a class into the slices beyond its first and its last one, where nothing else is."""
    for beyond, i in ((out[: min(masks)], min(masks)), (out[max(masks) + 1 :], max(masks))):
        beyond[(beyond == 0) & masks[i]] = value


def restore(
    out: np.ndarray, labels: Mapping[int, np.ndarray], silent: Silent = NOTHING_SILENT
) -> np.ndarray:
    """Write what is labelled over what was filled.

    Args:
        out: Labels (n, H, W), changed in place.
        labels: Slice number to label (H, W).
        silent: Slice number to classes of which the slice says nothing: these stay where it is 0.

    Returns:
        `out`.

    Example:
        >>> restore(np.array([[[4, 5, 4]]]), {0: np.array([[0, 0, 2]])}, {0: {5}}).tolist()
        [[[0, 5, 2]]]
    """
    for i, label in labels.items():
        known = label != IGNORE
        if silent.get(i):
            known &= (label > 0) | ~np.isin(out[i], list(silent[i]))
        np.copyto(out[i], label, where=known, casting="unsafe")
    return out
