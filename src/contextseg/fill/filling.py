"""From labelled slices to a labelled scan, on the scan's own grid; and which slice to label next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.data.plan import Plan
from contextseg.data.prepare import normalise, prepare
from contextseg.disk import Problem, did_you_mean
from contextseg.fill.slices import Partial, cut
from contextseg.methods import Method
from contextseg.propagation.interpolate import Shapes, between, nearest
from contextseg.propagation.propagate import Session
from contextseg.volume import Volume, axis_moves, resample

WAYS = ("combined", "propagation", "interpolation", "nearest")
"""What fills the slices between: a taught network and the shapes of the labelled slices together [ours], the network
alone, the shapes alone (their signed distances), or the nearest labelled slice."""
TAUGHT = ("combined", "propagation")
"""The ways that need a network."""

STOP_BELOW = 0.7
"""The Dice to be expected of a class in a slice, below which a network is not followed beyond the labelled ones. Of 0.3
to 0.8 the highest that was nowhere worse than never, on scans of three trainings (docs/propagation.md)."""

_LEAST = 1e-4
"""A probability below this counts as this, so that a network which is sure can still be wrong."""


@dataclass(frozen=True)
class Filled:
    """A scan's labels on its own grid, with `confidence` (n,) in [0, 1] of each slice along `axis`; NaN: unknown."""

    label: Volume
    axis: int
    confidence: np.ndarray


def fill(
    scan: Volume,
    partial: Partial,
    model: tuple[Method, Plan] | None = None,
    way: str = "",
    ranges: Mapping[int, tuple[int, int]] | None = None,
    stop_below: float = STOP_BELOW,
    progress: Callable[[int, int], object] | None = None,
) -> Filled:
    """Fill the slices that nobody has labelled. What is labelled stays as it is, voxel by voxel.

    model   a finished run of method "stcn" and its plan.   way  one of `WAYS`; "" is "combined" with a model, and
            "interpolation" without.
    ranges  class to the first and the last slice that may hold it, such as `slices.ranges`; one that is not named may
            be anywhere.
    stop_below  beyond the outermost labelled slices a network's class ends where its expected Dice is less; 0 is never.

    With a model, each slice is resampled to the pixels that it was taught on and its probabilities back, linearly;
    slices stay as they are. "combined" adds to their log-odds those of the shapes (`interpolate.Shapes`) between the
    first and the last labelled slice. Interpolation leaves what lies beyond these empty.

    Raises `Problem` for another way, for one that needs a model without one, and where scan and labels do not fit.
    """
    way = way or ("combined" if model else "interpolation")
    if way not in WAYS:
        raise Problem(f"--way {way}", "there is no such way", did_you_mean(way, WAYS))
    if way in TAUGHT and model is None:
        raise Problem(
            f"--way {way}", "it needs a network", "give --model RUN, made by `contextseg train --method stcn`"
        )
    n = scan.shape[partial.axis]
    if way in TAUGHT and model:
        how = {"stop_below": stop_below, "progress": progress}
        labels, confidence = _propagated(scan, partial, model, way == "combined", ranges or {}, how)
    else:
        spacing = [s for axis, s in enumerate(scan.spacing_mm) if axis != partial.axis]
        drawn = {i: np.maximum(label, 0) for i, label in partial.slices.items()}
        labels = between(drawn, n, spacing) if way == "interpolation" else nearest(drawn, n)
        labels = cut(labels, ranges or {})
        confidence = np.full(n, np.nan, np.float32)
        confidence[list(drawn)] = 1
    for i, label in partial.slices.items():
        labels[i] = np.where(label == IGNORE, labels[i], label)
    whole = np.ascontiguousarray(np.moveaxis(labels, 0, partial.axis))
    smallest = np.uint8 if whole.max() < 256 else np.int16
    return Filled(scan.with_array(whole.astype(smallest)), partial.axis, confidence)


def _propagated(
    scan: Volume,
    partial: Partial,
    model: tuple[Method, Plan],
    combined: bool,
    ranges: Mapping[int, tuple[int, int]],
    how: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """(labels (n, H, W) int16 with the slices first, confidence (n,))."""
    method, plan = model
    network: Any = method.net
    turned = scan.oriented(plan.orientation)
    _, _, _, record = prepare(scan, replace(plan, spacing_mm=turned.spacing_mm))  # for the record: not resampled
    order, flips = axis_moves(scan.orientation, plan.orientation)
    across = order.index(partial.axis)
    image = normalise(np.ascontiguousarray(turned.array, dtype=np.float32), plan.channels, record)
    old = image.shape[1:]
    new = [
        n if a == across else max(1, round(n * s / t))
        for a, (n, s, t) in enumerate(zip(old, turned.spacing_mm, plan.spacing_mm))
    ]
    rest = [a for a in range(3) if a != across]

    def place(i: int) -> int:
        """Of a slice of the scan, in the turned volume."""
        return old[across] - 1 - i if flips[across] else i

    def plane(label: np.ndarray) -> np.ndarray:
        """A labelled slice as it lies in the turned volume."""
        kept = [axis for axis in range(3) if axis != partial.axis]  # the label's axes, of the scan's
        label = label.transpose([kept.index(order[a]) for a in rest])
        return np.flip(label, tuple(n for n, a in enumerate(rest) if flips[a]))

    drawn = {place(i): plane(label) for i, label in partial.slices.items()}
    index = np.ix_(*[(2 * np.arange(new[a]) + 1) * old[a] // (2 * new[a]) for a in rest])
    if tuple(new) != tuple(old):
        image = resample(image, new, plan.orders)
    may = {value: (min(map(place, ends)), max(map(place, ends))) for value, ends in ranges.items()}
    found = Session(network, image, across, device=next(method.parameters()).device).propagate(
        {i: label[index] for i, label in drawn.items()}, ranges=may, probabilities=True, **how
    )
    assert found.probabilities is not None
    spacing = [turned.spacing_mm[a] for a in rest]
    shapes = Shapes(drawn, found.classes, spacing, turned.spacing_mm[across]) if combined else None
    probabilities = np.moveaxis(found.probabilities, 1 + across, 1)
    labels = _at(probabilities, [old[a] for a in rest], found.classes, may, shapes)
    whole: Any = np.moveaxis(labels, 0, across)  # as the turned volume lies; now back to the scan's grid
    whole = np.flip(whole, tuple(a for a, flip in enumerate(flips) if flip)).transpose(np.argsort(order))
    confidence = found.confidence[::-1].copy() if flips[across] else found.confidence
    return np.ascontiguousarray(np.moveaxis(whole, partial.axis, 0)), confidence


def _at(
    probabilities: np.ndarray,
    size: list[int],
    classes: tuple[int, ...],
    ranges: Mapping[int, tuple[int, int]],
    shapes: Shapes | None,
) -> np.ndarray:
    """(1 + O, n, h, w) -> the classes (n, *size) int16 of the linearly interpolated probabilities, slice by slice."""
    values = np.array([0, *classes], np.int16)
    out = np.empty((probabilities.shape[1], *size), np.int16)
    for i in range(len(out)):
        plane = torch.from_numpy(probabilities[:, i].astype(np.float32))[None]
        plane = plane if list(plane.shape[2:]) == size else F.interpolate(plane, size, mode="bilinear")
        likely = plane[0].numpy()
        shape = shapes.log_odds(i) if shapes else None
        if shape is not None:
            likely = np.log(np.maximum(likely, _LEAST))
            likely[1:] += shape
            for k, value in enumerate(classes, 1):
                first, last = ranges.get(value, (i, i))
                likely[k] = likely[k] if first <= i <= last else -np.inf
        out[i] = values[likely.argmax(0)]
    return out


def advice(filled: Filled, partial: Partial) -> tuple[int, str]:
    """The next slice worth labelling, and why: the middle of the longest stretch without a label.

    A stretch lies between two labelled slices, or reaches from the outermost one as far as something was filled, and
    then counts twice, since nothing is known at its other end. Of equal ones the least certain; those in which nothing
    is do not count. Where there is none: the slice after the last, or before the first. [Ours: the least certain slice
    of all, by a network's own word, taught less in our trials (docs/propagation.md).]

    Raises `Problem` where every slice is labelled.
    """
    n, known = len(filled.confidence), sorted(partial.slices)
    if len(known) == n:
        raise Problem("labels", "every slice is labelled", "there is nothing to suggest")
    there: Any = np.moveaxis(filled.label.array, filled.axis, 0).any((1, 2))
    stretches = [(b - a, a, b) for a, b in pairwise(known) if b - a > 1 and there[a : b + 1].any()]
    first, last = known[0], known[-1]
    reached = np.flatnonzero(there)
    if len(reached) and reached[-1] > last:
        stretches.append((2 * (int(reached[-1]) - last), last, int(reached[-1]) + 1))
    if len(reached) and reached[0] < first:
        stretches.append((2 * (first - int(reached[0])), int(reached[0]) - 1, first))
    if stretches:
        sure = np.nan_to_num(filled.confidence)
        _, a, b = max(stretches, key=lambda s: (s[0], -float(sure[s[1] + 1 : s[2]].mean())))
        place = (a + b) // 2
        expected = (
            "" if np.isnan(filled.confidence[place]) else f"; a Dice of {filled.confidence[place]:.2f} is expected"
        )
        return place, f"the longest stretch without a label is from {a + 1} to {b - 1}{expected}"
    beyond = last + 1 if last + 1 < n else first - 1
    return beyond, "all slices between the labelled ones are labelled; the structure may go on beyond them"
