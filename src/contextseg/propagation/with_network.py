"""Filling with a network: slices on the pixels of its training, and back on the scan's grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from contextseg.data.plan import Plan
from contextseg.data.prepare import normalise, prepare
from contextseg.grids import label_type
from contextseg.propagation.labelled import LabelledSlices
from contextseg.propagation.session import PropagationResult, Session
from contextseg.propagation.shapes import ShapePrior, Silent, classes_of
from contextseg.resampling import resample
from contextseg.volume import Volume, axis_moves

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


def fill_with_network(
    scan: Volume,
    labelled: LabelledSlices,
    model: PropagationModel,
    combined: bool,
    ranges: Mapping[int, tuple[int, int]],
    options: Mapping[str, Any],
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Fill a scan by a network, alone or with the shapes of its labelled slices.

    Classes that are labelled in the same slices are followed together, the others on their own.

    Args:
        scan: (C, D, H, W).
        labelled: The labelled slices, on the scan's grid.
        model: The network.
        combined: Whether the shapes count too.
        ranges: Class to the first and the last slice that may hold it.
        options: Of `Session.propagate`: stop_below and progress.

    Returns:
        Labels (n, H, W) of the scan's slices, and class -> (n,) its confidence in each slice, NaN
        where it is not.
    """
    plan = model.plan
    turned = scan.oriented(plan.orientation)
    grids = _Grids(scan, turned, plan.orientation, labelled.axis)
    number = grids.turned_number
    image = _normalised(scan, turned, plan)
    shape = grids.resampled_shape(turned, plan.target_mm(turned.spacing_mm))
    if tuple(shape) != tuple(grids.shape):
        image = resample(image, shape, plan.orders)

    drawn = {number(i): grids.turned_plane(label) for i, label in labelled.slices.items()}
    silent = {number(i): classes for i, classes in labelled.silent.items()}
    nearest = np.ix_(*grids.nearest_pixels([shape[a] for a in grids.plane_axes]))
    references = {i: label[nearest] for i, label in drawn.items()}
    turned_ranges = {
        value: (min(map(number, ends)), max(map(number, ends))) for value, ends in ranges.items()
    }
    network: Any = model.net
    session = Session(network, image, grids.across, device=next(model.net.parameters()).device)
    groups = _groups(drawn, silent)
    results: list[PropagationResult] = []
    for g, (slices, members) in enumerate(groups.items()):
        chosen = {i: references[i] for i in slices}
        part = {**options, "progress": _part(options.get("progress"), g, len(groups))}
        results.append(
            session.propagate(chosen, members, ranges=turned_ranges, probabilities=True, **part)
        )
    classes, probabilities = _together(results, grids.across)
    shapes = None
    if combined:
        shapes = ShapePrior(drawn, classes, grids.plane_mm, grids.slice_mm, silent)
    labels = _decide(probabilities, grids.plane_shape, classes, turned_ranges, shapes)
    confidence = {
        value: grids.scan_order(result.class_confidence[:, k])
        for result in results
        for k, value in enumerate(result.classes)
    }
    return grids.scan_slices(labels), confidence


def _groups(drawn: Mapping[int, np.ndarray], silent: Silent) -> dict[tuple[int, ...], list[int]]:
    """Slices that say something of a class -> all classes of which just these do."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for value in classes_of(drawn):
        slices = tuple(i for i in sorted(drawn) if value not in silent.get(i, ()))
        groups.setdefault(slices, []).append(value)
    return groups


def _part(progress: Any, part: int, parts: int) -> Any:
    """A progress that counts one of several equal parts."""
    if progress is None or parts == 1:
        return progress
    return lambda done, of: progress(part * of + done, parts * of)


def _together(results: list[PropagationResult], across: int) -> tuple[tuple[int, ...], np.ndarray]:
    """All classes, and their probabilities (1 + O, n, h, w), the slices first.

    Those of several results are multiplied: a class is there if its own result says so, and no
    other has one of its classes there.
    """
    maps = []
    for result in results:
        assert result.probabilities is not None
        maps.append(np.moveaxis(result.probabilities, 1 + across, 1))
    if len(maps) == 1:
        return results[0].classes, maps[0]
    classes = sorted(k for result in results for k in result.classes)
    whole = np.empty((1 + len(classes), *maps[0].shape[1:]), np.float16)
    for i in range(whole.shape[1]):
        ratios = np.ones((1 + len(classes), *whole.shape[2:]), np.float32)
        for result, p in zip(results, maps):
            background = np.maximum(p[0, i].astype(np.float32), _LEAST)
            for k, value in enumerate(result.classes, 1):
                ratios[1 + classes.index(value)] = p[k, i] / background
        whole[:, i] = ratios / ratios.sum(0)
    return tuple(classes), whole


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
