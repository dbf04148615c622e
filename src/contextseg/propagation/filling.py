"""Filling: from labelled slices to a labelled scan on its own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.prepare import unusable
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import label_type
from contextseg.propagation.labelled import LabelledSlices, cut_to_ranges
from contextseg.propagation.pretrained import CompletionModel, fill_by_completion
from contextseg.propagation.previous import write_slices
from contextseg.propagation.session import lowest
from contextseg.propagation.shapes import Between, copy_nearest, fill_between, restore
from contextseg.propagation.suggestion import describe_slice, find_gaps, suggest_slice
from contextseg.propagation.with_network import PropagationModel, fill_with_network
from contextseg.volume import Volume, write

WAYS = ("combined", "propagation", "interpolation", "nearest")
"""Ways to fill the slices between: a trained network and the shapes of the labelled slices together
[ours], the network alone, the shapes alone (their signed distances), or the nearest labelled slice.
"""
NETWORK_WAYS = ("combined", "propagation")
"""The ways that need a network."""

MERGES = ("nearer", "sum")
"""Where the walks of a network from two labelled slices meet: the nearer counts more, linearly, or
both count the same, as in Pham et al.
"""

STOP_BELOW = 0.7
"""Expected Dice of a class in a slice, below which a network is not followed beyond the labelled
slices. Of 0.3 to 0.8 the highest that was nowhere worse than never stopping, on scans of three
trainings (docs/propagation.md).
"""


@dataclass(frozen=True)
class Filled:
    """A filled scan.

    Attributes:
        label: Label map (D, H, W) on the scan's own grid.
        confidence: (n,) in [0, 1], one number for each slice along `axis`: the Dice to be expected
            of its classes, the lowest of them. NaN where it is unknown.
        labelled: The slices that it was filled from.
        class_confidence: Class to (n,), its own confidence in each slice; NaN where it is not, or
            where it is unknown.
        notes: What was not filled, or may not be what was meant, with what to do.
    """

    label: Volume
    confidence: np.ndarray
    labelled: LabelledSlices
    class_confidence: dict[int, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def axis(self) -> int:
        """What the slices are across: 0, 1 or 2 of (D, H, W)."""
        return self.labelled.axis

    @property
    def suggestion(self) -> tuple[int, str]:
        """The next slice worth labelling, and the reason; see `suggest_slice`."""
        return suggest_slice(self)

    def describe_slice(self, i: int) -> str:
        """A slice as this program, ITK-SNAP and 3D Slicer name it, with its place in mm.

        Args:
            i: Slice number, from 0.

        Returns:
            Such as "axial slice 3 (ITK-SNAP: 4 of 9; 3D Slicer: S 7.5 mm)".
        """
        return describe_slice(self.label, self.axis, i)

    def save(self, path: str | Path) -> Path:
        """Write the label map, and a table of its slices beside it.

        The table, CASE-slices.csv, says which slices were labelled, so that a corrected copy of the
        map can be filled again. Where slices were labelled in part, CASE-drawn.nii.gz has what was.

        Args:
            path: Label file, such as "filled.nii.gz".

        Returns:
            `path`.

        Raises:
            ContextsegError: The ending is unknown, or the disk cannot be written to.
        """
        path = Path(path)
        write_slices(path, self.label, self.labelled, self.confidence, self.class_confidence)
        write(path, self.label)
        return path

    def __repr__(self) -> str:
        labelled = f"{len(self.labelled.slices)} of {len(self.confidence)} slices labelled"
        return f"Filled({' x '.join(map(str, self.label.shape))}; {labelled})"

    def _repr_html_(self) -> str:
        """The label map's picture, the next slice worth labelling, and the notes."""
        from html import escape

        caption = escape(repr(self))
        if len(self.labelled.slices) < len(self.confidence):
            place, why = self.suggestion
            caption += f"<br>label {escape(self.describe_slice(place))} next: {escape(why)}"
        caption += "".join(f"<br>{escape(note)}" for note in self.notes)
        return f"<div>{self.label._repr_html_()}{caption}</div>"


def fill(
    scan: Volume,
    labelled: LabelledSlices,
    model: PropagationModel | CompletionModel | None = None,
    way: str = "",
    ranges: Mapping[int, tuple[int, int]] | None = None,
    stop_below: float = STOP_BELOW,
    progress: Callable[..., object] | None = None,
    walk: Mapping[str, Any] = MappingProxyType({}),
) -> Filled:
    """Fill the slices that nobody has labelled. Labelled voxels stay as they are.

    With a model, each slice is resampled to the pixels of its training and its probabilities back,
    linearly; across slices nothing is resampled. "combined" adds to their log-odds those of the
    shapes (`ShapePrior`), between the first and the last labelled slice. Interpolation leaves the
    slices beyond these empty.

    Args:
        scan: (C, D, H, W).
        labelled: The labelled slices, on the scan's grid.
        model: A trained network: `open_completion()` opens the one that comes with the package,
            `contextseg.pipeline.open_propagation_model` that of a run.
        way: One of `WAYS`. "" is "combined" with a model, and "interpolation" without.
        ranges: Class to the first and the last slice that may hold it, such as `ranges(labelled)`.
            A class without a range may be anywhere.
        stop_below: Beyond the outermost labelled slices a network's class ends where its expected
            Dice is less. 0 never stops.
        progress: Called with (slices walked, slices to walk in all).
        walk: Other arguments of `Session.propagate`, for the network of a run.

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
    network = way in NETWORK_WAYS
    unread = ""
    if isinstance(model, CompletionModel) and network and (unread := _unreadable(scan.array)):
        way, network = "interpolation", False
    if isinstance(model, CompletionModel) and network:
        labels, dice = fill_by_completion(
            scan, labelled, model, way == "combined", ranges, progress
        )
    elif isinstance(model, PropagationModel) and network:
        options = {"stop_below": stop_below, "progress": progress, **walk}
        labels, dice = fill_with_network(scan, labelled, model, way == "combined", ranges, options)
    else:
        labels, dice = _by_shape(scan, labelled, way)
        labels = cut_to_ranges(labels, ranges)
    labels = restore(labels, labelled.slices, labelled.silent)
    dice = _confidence(labels, labelled, dice)
    notes = tuple(find_gaps(labels, labelled, network))
    if unread:
        notes += (f"{unread}: the shapes of the labelled slices fill it",)
    smallest = label_type(max(labelled.classes, default=0))
    whole = np.ascontiguousarray(np.moveaxis(labels, 0, labelled.axis), dtype=smallest)
    confidence = lowest(np.stack([*dice.values()], 1)) if dice else np.full(len(labels), np.nan)
    confidence[[i for i in labelled.slices if labelled.complete(i)]] = 1
    return Filled(scan.with_array(whole), confidence, labelled, dice, notes)


def _unreadable(image: np.ndarray) -> str:
    """Why a network sees nothing in a scan (C, D, H, W); "" where it does."""
    found = [what for channel in image if (what := unusable(channel))]
    if found:
        return f"of the scan, {found[0]}"
    return "" if np.ptp(image) else "all voxels of the scan are alike"


def _by_shape(
    scan: Volume, labelled: LabelledSlices, way: str
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(labels (n, H, W) with the slices first, class -> (n,) its expected Dice)."""
    n = scan.shape[labelled.axis]
    if way == "interpolation":
        plane_mm = tuple(mm for axis, mm in enumerate(scan.spacing_mm) if axis != labelled.axis)
        between = Between(plane_mm, scan.spacing_mm[labelled.axis], labelled.silent)
        return fill_between(labelled.slices, n, between)
    labels = copy_nearest(labelled.slices, n, labelled.silent)
    return labels, {k: np.full(n, np.nan, np.float32) for k in labelled.classes}


def _confidence(
    labels: np.ndarray, labelled: LabelledSlices, dice: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """The expected Dice of each class: 1 where it is labelled, 0 where it is missing in between."""
    out = {}
    for k, expected in sorted(dice.items()):
        expected = np.array(expected, np.float32)
        present = (labels == k).any((1, 2))
        lost = ~present & ~np.isnan(expected)
        known = labelled.known_for(k)
        holding = [i for i in known if (labelled.slices[i] == k).any()]
        for i in np.flatnonzero(lost).tolist():
            before = max((j for j in known if j < i), default=-1)
            after = min((j for j in known if j > i), default=-1)
            expected[i] = 0 if before in holding and after in holding else np.nan
        for i in known:
            if not (labelled.slices[i] == IGNORE).any():
                expected[i] = 1 if i in holding else np.nan
        out[k] = expected
    return out
