"""Filling: from labelled slices to a labelled scan on its own grid; the slice to label next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.data.listing import stem
from contextseg.data.plan import Plan
from contextseg.data.prepare import normalise, prepare
from contextseg.disk import csv_text, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import label_type
from contextseg.propagation.labelled import LabelledSlices, cut_to_ranges
from contextseg.propagation.session import PropagationResult, Session
from contextseg.propagation.shapes import ShapePrior, copy_nearest, interpolate_shapes
from contextseg.resampling import resample
from contextseg.volume import Volume, axis_moves, write

WAYS = ("combined", "propagation", "interpolation", "nearest")
"""Ways to fill the slices between: a trained network and the shapes of the labelled slices together
[ours], the network alone, the shapes alone (their signed distances), or the nearest labelled slice.
"""
NETWORK_WAYS = ("combined", "propagation")
"""The ways that need a network."""

STOP_BELOW = 0.7
"""Expected Dice of a class in a slice, below which a network is not followed beyond the labelled
slices. Of 0.3 to 0.8 the highest that was nowhere worse than never stopping, on scans of three
trainings (docs/propagation.md).
"""

_LEAST = 1e-4
"""Smaller probabilities count as this, so that a network which is certain can still be wrong."""


@dataclass(frozen=True)
class PropagationModel:
    """A trained network that follows masks from slice to slice.

    Attributes:
        net: A `PropagationNetwork`, in evaluation mode, on the device that propagates.
        plan: The plan it was trained with: orientation, spacing and normalisation.
        axes: Axes of the plan's grid across which it was trained to follow slices.
    """

    net: nn.Module
    plan: Plan
    axes: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Filled:
    """A filled scan.

    Attributes:
        label: Label map (D, H, W) on the scan's own grid.
        confidence: (n,) in [0, 1], one number for each slice along `axis`: the Dice to be expected.
            NaN where it is unknown.
        labelled: The slices that it was filled from.
    """

    label: Volume
    confidence: np.ndarray
    labelled: LabelledSlices

    @property
    def axis(self) -> int:
        """What the slices are across: 0, 1 or 2 of (D, H, W)."""
        return self.labelled.axis

    @property
    def suggestion(self) -> tuple[int, str]:
        """The next slice worth labelling, and the reason; see `suggest_slice`."""
        return suggest_slice(self)

    def save(self, path: str | Path) -> Path:
        """Write the label map, and a table of its slices beside it.

        Args:
            path: Label file, such as "filled.nii.gz".

        Returns:
            `path`.

        Raises:
            ContextsegError: The ending is unknown, or the disk cannot be written to.
        """
        path = Path(path)
        rows = []
        for i, confidence in enumerate(self.confidence.tolist()):
            rows.append(
                {
                    "slice": i,
                    "labelled": "yes" if i in self.labelled.slices else "no",
                    "confidence": "" if confidence != confidence else f"{confidence:.4f}",
                }
            )
        write_text(self.slices_file(path), csv_text(["slice", "labelled", "confidence"], rows))
        write(path, self.label)
        return path

    @staticmethod
    def slices_file(path: str | Path) -> Path:
        """Where `save` writes the table of slices.

        Args:
            path: The label file.

        Returns:
            A CSV file beside it.

        Example:
            >>> Filled.slices_file("1.3.6.02.nii.gz").name
            '1.3.6.02-slices.csv'
        """
        path = Path(path)
        return path.with_name(stem(path) + "-slices.csv")

    def __repr__(self) -> str:
        labelled = f"{len(self.labelled.slices)} of {len(self.confidence)} slices labelled"
        return f"Filled({' x '.join(map(str, self.label.shape))}; {labelled})"

    def _repr_html_(self) -> str:
        """The label map's picture, and the next slice worth labelling."""
        from html import escape

        caption = escape(repr(self))
        if len(self.labelled.slices) < len(self.confidence):
            place, why = self.suggestion
            caption += f"<br>label slice {place} next: {escape(why)}"
        return f"<div>{self.label._repr_html_()}{caption}</div>"


def fill(
    scan: Volume,
    labelled: LabelledSlices,
    model: PropagationModel | None = None,
    way: str = "",
    ranges: Mapping[int, tuple[int, int]] | None = None,
    stop_below: float = STOP_BELOW,
    progress: Callable[..., object] | None = None,
) -> Filled:
    """Fill the slices that nobody has labelled. Labelled voxels stay as they are.

    With a model, each slice is resampled to the pixels of its training and its probabilities back,
    linearly; across slices nothing is resampled. "combined" adds to their log-odds those of the
    shapes (`ShapePrior`), between the first and the last labelled slice. Interpolation leaves the
    slices beyond these empty.

    Args:
        scan: (C, D, H, W).
        labelled: The labelled slices, on the scan's grid.
        model: A trained network; `contextseg.pipeline.open_propagation_model` opens that of a run.
        way: One of `WAYS`. "" is "combined" with a model, and "interpolation" without.
        ranges: Class to the first and the last slice that may hold it, such as `ranges(labelled)`.
            A class without a range may be anywhere.
        stop_below: Beyond the outermost labelled slices a network's class ends where its expected
            Dice is less. 0 never stops.
        progress: Called with (slices walked, slices to walk in all).

    Returns:
        The filled scan.

    Raises:
        ContextsegError: For an unknown way, for a way that needs a model without one, and where
            scan and labels do not fit.
    """
    way = way or ("combined" if model else "interpolation")
    if way not in WAYS:
        raise ContextsegError(f"--way {way}", "there is no such way", did_you_mean(way, WAYS))
    if way in NETWORK_WAYS and model is None:
        raise ContextsegError(
            f"--way {way}",
            "it needs a network",
            "give --model RUN, made by `contextseg train --method stcn`",
        )
    ranges = ranges or {}
    if model and way in NETWORK_WAYS:
        options = {"stop_below": stop_below, "progress": progress}
        labels, confidence = _propagated(scan, labelled, model, way == "combined", ranges, options)
    else:
        labels, confidence = _by_shape(scan, labelled, way, ranges)
    for i, label in labelled.slices.items():
        labels[i] = np.where(label == IGNORE, labels[i], label)
    whole = np.ascontiguousarray(np.moveaxis(labels, 0, labelled.axis))
    smallest = label_type(int(whole.max()))
    return Filled(scan.with_array(whole.astype(smallest)), confidence, labelled)


def suggest_slice(filled: Filled) -> tuple[int, str]:
    """The next slice worth labelling: the middle of the longest stretch without a label.

    A stretch lies between two labelled slices, or reaches from the outermost one as far as
    something was filled, and then counts twice, since nothing is known at its other end. Of equally
    long stretches the least certain one is taken; those that hold nothing do not count. Where there
    is none, it is the slice after the last labelled one, or before the first. [Ours: the least
    certain slice of all, by the network's own confidence, helped less in our trials
    (docs/propagation.md).]

    Args:
        filled: The filled scan.

    Returns:
        (slice number, the reason in words).

    Raises:
        ContextsegError: If every slice is labelled.
    """
    n, known = len(filled.confidence), sorted(filled.labelled.slices)
    if len(known) == n:
        raise ContextsegError("labels", "every slice is labelled", "there is nothing to suggest")
    stretches = _open_stretches(filled, known)
    first, last = known[0], known[-1]
    if not stretches:
        beyond = last + 1 if last + 1 < n else first - 1
        why = "all slices between the labelled ones are labelled; "
        return beyond, why + "the structure may go on beyond them"
    confidence = np.nan_to_num(filled.confidence)
    _, a, b = max(stretches, key=lambda s: (s[0], -float(confidence[s[1] + 1 : s[2]].mean())))
    place = (a + b) // 2
    why = f"the longest stretch without a label is from {a + 1} to {b - 1}"
    if not np.isnan(filled.confidence[place]):
        why += f"; a Dice of {filled.confidence[place]:.2f} is expected"
    return place, why


def _open_stretches(filled: Filled, known: list[int]) -> list[tuple[int, int, int]]:
    """(length that counts, the slice before, the slice after) of each stretch to label."""
    present: Any = np.moveaxis(filled.label.array, filled.axis, 0).any((1, 2))
    stretches = [
        (b - a, a, b) for a, b in pairwise(known) if b - a > 1 and present[a : b + 1].any()
    ]
    first, last = known[0], known[-1]
    reached = np.flatnonzero(present)
    if len(reached) and reached[-1] > last:
        stretches.append((2 * (int(reached[-1]) - last), last, int(reached[-1]) + 1))
    if len(reached) and reached[0] < first:
        stretches.append((2 * (first - int(reached[0])), int(reached[0]) - 1, first))
    return stretches


# --- without a network ----------------------------------------------------------------------------


def _by_shape(
    scan: Volume, labelled: LabelledSlices, way: str, ranges: Mapping[int, tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """(labels (n, H, W) with the slices first, confidence (n,))."""
    n = scan.shape[labelled.axis]
    references = {i: np.maximum(label, 0) for i, label in labelled.slices.items()}
    if way == "interpolation":
        spacing = [mm for axis, mm in enumerate(scan.spacing_mm) if axis != labelled.axis]
        labels = interpolate_shapes(references, n, spacing)
    else:
        labels = copy_nearest(references, n)
    confidence = np.full(n, np.nan, np.float32)
    confidence[list(references)] = 1
    return cut_to_ranges(labels, ranges), confidence


# --- with one -------------------------------------------------------------------------------------


class _Grids:
    """Slices of a scan, and where they lie in the scan turned to a plan's orientation."""

    def __init__(self, scan: Volume, turned: Volume, orientation: str, axis: int) -> None:
        self.axis = axis
        self.order, self.flips = axis_moves(scan.orientation, orientation)
        self.across = self.order.index(axis)  # what the slices are across, after turning
        self.shape = turned.array.shape[1:]
        self.plane_axes = [a for a in range(3) if a != self.across]
        self.plane_shape = [self.shape[a] for a in self.plane_axes]
        self.plane_mm = [turned.spacing_mm[a] for a in self.plane_axes]
        self.slice_mm = turned.spacing_mm[self.across]

    def turned_number(self, i: int) -> int:
        """Number of the scan's slice `i` in the turned scan."""
        return self.shape[self.across] - 1 - i if self.flips[self.across] else i

    def turned_plane(self, label: np.ndarray) -> np.ndarray:
        """A slice of the scan as it lies in the turned scan."""
        own_axes = [a for a in range(3) if a != self.axis]
        label = label.transpose([own_axes.index(self.order[a]) for a in self.plane_axes])
        return np.flip(label, tuple(n for n, a in enumerate(self.plane_axes) if self.flips[a]))

    def resampled_shape(self, turned: Volume, spacing_mm: tuple[float, ...]) -> list[int]:
        """Shape of the turned scan at another spacing; across the slices it stays."""
        shape = []
        for a, (n, own, mm) in enumerate(zip(self.shape, turned.spacing_mm, spacing_mm)):
            shape.append(n if a == self.across else max(1, round(n * own / mm)))
        return shape

    def nearest_pixels(self, shape: list[int]) -> list[np.ndarray]:
        """Along both axes of a plane resampled to `shape`, the nearest pixel before resampling."""
        own = self.plane_shape
        return [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(own, shape)]

    def scan_slices(self, labels: np.ndarray) -> np.ndarray:
        """(n, h, w) of the turned scan to (n, H, W) of the scan."""
        whole: Any = np.moveaxis(labels, 0, self.across)
        whole = np.flip(whole, tuple(a for a, flip in enumerate(self.flips) if flip))
        whole = whole.transpose(np.argsort(self.order))
        return np.ascontiguousarray(np.moveaxis(whole, self.axis, 0))

    def scan_order(self, values: np.ndarray) -> np.ndarray:
        """One value for each slice (n,), from the turned scan's order to the scan's."""
        return values[::-1].copy() if self.flips[self.across] else values


def _propagated(
    scan: Volume,
    labelled: LabelledSlices,
    model: PropagationModel,
    combined: bool,
    ranges: Mapping[int, tuple[int, int]],
    options: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """(labels (n, H, W) with the slices first, confidence (n,))."""
    plan = model.plan
    turned = scan.oriented(plan.orientation)
    grids = _Grids(scan, turned, plan.orientation, labelled.axis)
    number = grids.turned_number
    image = _normalised(scan, turned, plan)
    shape = grids.resampled_shape(turned, plan.spacing_mm)
    if tuple(shape) != tuple(grids.shape):
        image = resample(image, shape, plan.orders)

    drawn = {number(i): grids.turned_plane(label) for i, label in labelled.slices.items()}
    nearest = np.ix_(*grids.nearest_pixels([shape[a] for a in grids.plane_axes]))
    references = {i: label[nearest] for i, label in drawn.items()}
    turned_ranges = {
        value: (min(map(number, ends)), max(map(number, ends))) for value, ends in ranges.items()
    }
    network: Any = model.net
    session = Session(network, image, grids.across, device=next(model.net.parameters()).device)
    result: PropagationResult = session.propagate(
        references, ranges=turned_ranges, probabilities=True, **options
    )
    assert result.probabilities is not None

    shapes = None
    if combined:
        shapes = ShapePrior(drawn, result.classes, grids.plane_mm, grids.slice_mm)
    probabilities = np.moveaxis(result.probabilities, 1 + grids.across, 1)
    labels = _decide(probabilities, grids.plane_shape, result.classes, turned_ranges, shapes)
    return grids.scan_slices(labels), grids.scan_order(result.confidence)


def _normalised(scan: Volume, turned: Volume, plan: Plan) -> np.ndarray:
    """(C, D, H, W) of the turned scan, normalised as in training, by the whole scan's body."""
    _, _, _, record = prepare(scan, replace(plan, spacing_mm=turned.spacing_mm))
    return normalise(np.ascontiguousarray(turned.array, dtype=np.float32), plan.channels, record)


def _decide(
    probabilities: np.ndarray,
    size: list[int],
    classes: tuple[int, ...],
    ranges: Mapping[int, tuple[int, int]],
    shapes: ShapePrior | None,
) -> np.ndarray:
    """The most likely classes (n, *size) of probabilities (1 + O, n, h, w), slice by slice.

    Probabilities are interpolated linearly; with `shapes` their log-odds are added to.
    """
    values = np.array([0, *classes], label_type(max(classes), signed=True))
    out = np.empty((probabilities.shape[1], *size), values.dtype)
    for i in range(len(out)):
        plane = torch.from_numpy(probabilities[:, i].astype(np.float32))[None]
        if list(plane.shape[2:]) != size:
            plane = F.interpolate(plane, size, mode="bilinear")
        likely = plane[0].numpy()
        log_odds = shapes.log_odds(i) if shapes else None
        if log_odds is not None:
            likely = np.log(np.maximum(likely, _LEAST))
            likely[1:] += log_odds
            for k, value in enumerate(classes, 1):
                first, last = ranges.get(value, (i, i))
                if not first <= i <= last:
                    likely[k] = -np.inf
        out[i] = values[likely.argmax(0)]
    return out
