"""Filling with the network that comes with the package, which no scan of yours has trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.grids import label_type
from contextseg.inputs import damage_named, parsed_json
from contextseg.nets.completion import CompletionNet
from contextseg.propagation.expected import (
    BETWEEN_LABELLED,
    BEYOND_LABELLED,
    between_features,
    beyond_features,
    corrected_dice,
)
from contextseg.propagation.labelled import LabelledSlices
from contextseg.propagation.network.completing import FAR_LOG_ODDS, Readings, complete_stack
from contextseg.propagation.shapes import ShapePrior, common_foreground
from contextseg.volume import Volume

WEIGHTS = Path(__file__).parents[1] / "models" / "completion.npz"
"""The file of its weights; its model card lies beside it."""

ENOUGH_SLICES = 3
"""Labelled slices that hold a structure, from which on its shapes say how large it is between them:
the network says better where it is, and takes small ones for two or three times as large (decision
0025).
"""

AREA_SHARE = 1.1
"""By how much the area of a filled slice may differ from that of the shapes, as a factor."""


@dataclass(frozen=True)
class CompletionModel:
    """A network that completes any structure from its labelled slices, in any kind of scan.

    Attributes:
        net: In evaluation mode, on the device that fills.
        facts: How it was made.
        readings: What it has read of the scans that it filled last.
    """

    net: CompletionNet
    facts: dict[str, Any] = field(default_factory=dict, repr=False)
    readings: Readings = field(default_factory=Readings, repr=False, compare=False)


class NetworkFacts(TypedDict):
    """What the file says of its network."""

    inputs: int
    widths: list[int]


def open_completion(path: str | Path = "", device: str | torch.device = "cpu") -> CompletionModel:
    """The packaged network, or one that `contextseg.propagation.network.training` has made.

    Args:
        path: File of weights, `network.npz` of a training. "" is the packaged one.
        device: Where it is to be.

    Returns:
        The network and how it was made.

    Raises:
        ContextsegError: There is no such file, or it holds no such network.
    """
    path = Path(path) if path else WEIGHTS
    remedy = "give the network.npz of contextseg.propagation.network.training"
    with damage_named(path, remedy, "no weights of a completion network"):
        with np.load(path) as archive:
            facts: Any = parsed_json(bytes(archive["facts"]), path, NetworkFacts, remedy)
            weights = {k: archive[k] for k in archive.files if k != "facts"}
        net = CompletionNet(facts["inputs"], facts["widths"])
        net.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()})
    return CompletionModel(net.eval().to(device), facts)


def fill_by_completion(
    scan: Volume,
    labelled: LabelledSlices,
    model: CompletionModel,
    combined: bool = True,
    ranges: Mapping[int, tuple[int, int]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Fill a scan, one class after the other; where two meet, the likelier one stands.

    What is in the foreground of two labelled slices stays in the foreground between them.

    Of several channels, the one is read in which the structure differs most from what is around it.

    Args:
        scan: (C, D, H, W).
        labelled: The labelled slices, on the scan's grid.
        model: The network.
        combined: Whether the log-odds of the shapes (`ShapePrior`) are added, on the scan's grid.
            From `ENOUGH_SLICES` on they also say how large the structure is between the labelled
            slices, within `AREA_SHARE`.
        ranges: Class to the first and the last slice that may hold it.
        progress: Called with (classes done, classes in all).

    Returns:
        Labels (n, H, W) of the scan's slices, and class -> (n,) float32, the expected Dice of the
        class in each slice, NaN where it is not.
    """
    axis, ranges, classes = labelled.axis, ranges or {}, labelled.classes
    channels = np.moveaxis(np.asarray(scan.array), 1 + axis, 1)
    spacing_mm = [scan.spacing_mm[axis], *(scan.spacing_mm[a] for a in range(3) if a != axis)]
    shape = channels.shape[1:]
    best = np.full(shape, -np.inf, np.float32)
    labels = np.zeros(shape, label_type(max(classes, default=0), signed=True))
    prior = None
    if combined:
        prior = ShapePrior(labelled.slices, classes, spacing_mm[1:], spacing_mm[0], labelled.silent)
    filling = _Filling(model, channels, labelled, prior, spacing_mm, ranges)
    dice: dict[int, np.ndarray] = {}
    for done, value in enumerate(classes, 1):
        logits, dice[value] = filling.log_odds(value)
        better = logits > best
        best[better], labels[better] = logits[better], value
        if progress:
            progress(done, len(classes))
    foreground = best > 0
    for a, b, pixels in common_foreground(labelled.slices, labelled.silent):
        foreground[a + 1 : b] |= pixels
    labels[~foreground] = 0
    return labels, dice


@dataclass(frozen=True)
class _Filling:
    """One scan, slices first, and what is known of it."""

    model: CompletionModel
    channels: np.ndarray
    labelled: LabelledSlices
    prior: ShapePrior | None
    spacing_mm: Sequence[float]
    ranges: Mapping[int, tuple[int, int]]

    def log_odds(self, value: int) -> tuple[np.ndarray, np.ndarray]:
        """Of one class: log-odds (n, H, W), and the expected Dice of each slice (n,)."""
        masks = _masks_of(self.labelled, value)
        others = _others(self.labelled, value, masks)
        image = self.channels[_telling_channel(self.channels, masks)]
        distances = self.distances(value)
        held = [i for i, mask in masks.items() if mask.any()]
        enough = self.prior is not None and len(held) >= ENOUGH_SLICES
        drawn = {i for i in masks if not (self.labelled.slices[i] == IGNORE).any()}
        logits = complete_stack(
            self.model.net,
            image,
            masks,
            self.spacing_mm,
            others,
            distances,
            self.ends(value, held),
            self.model.readings,
            drawn,
        )
        if value in self.ranges:
            first, last = self.ranges[value]
            logits[: max(0, first)] = FAR_LOG_ODDS
            logits[last + 1 :] = FAR_LOG_ODDS
        dice = np.full(len(logits), np.nan, np.float32)
        for i, plane in enumerate(logits):
            if i in distances:
                dice[i] = self.with_shapes(value, i, plane, enough)
            elif i not in drawn:
                dice[i] = corrected_dice(beyond_features(plane), BEYOND_LABELLED)
        return logits, dice

    def with_shapes(self, value: int, i: int, plane: np.ndarray, enough: bool) -> float:
        """Add the shapes' log-odds to a plane, and keep to their area.

        Args:
            value: The class.
            i: Slice number, between two labelled ones.
            plane: The network's log-odds, (H, W), changed in place.
            enough: Whether the shapes say how large the class is.

        Returns:
            The expected Dice of the class in the slice.
        """
        assert self.prior is not None
        shapes = self.prior.class_log_odds(value, i)
        assert shapes is not None
        plane += shapes
        if enough:
            keep_area(plane, int((shapes > 0).sum()))
        return corrected_dice(between_features(plane, shapes), BETWEEN_LABELLED)

    def distances(self, value: int) -> dict[int, np.ndarray]:
        """The shapes' signed distances in the slices between labelled ones."""
        if self.prior is None:
            return {}
        planes = ((i, self.prior.distance(value, i)) for i in range(self.channels.shape[1]))
        return {i: plane for i, plane in planes if plane is not None}

    def ends(self, value: int, held: Sequence[int]) -> bool:
        """Whether the class is known to end in the outermost slices that hold it."""
        if value not in self.ranges or not held:
            return False
        first, last = self.ranges[value]
        return min(held) <= first <= last <= max(held)


def keep_area(log_odds: np.ndarray, area: int, share: float = AREA_SHARE) -> None:
    """Shift log-odds so that about as many pixels as expected are positive.

    Args:
        log_odds: (H, W), shifted in place if need be: the likeliest pixels stay.
        area: Pixels that are expected; 0 leaves none.
        share: How much more or fewer of them may be, as a factor.

    Example:
        >>> log_odds = np.array([[3.0, 2, 1, -1]])
        >>> keep_area(log_odds, 2, share=1)
        >>> log_odds > 0
        array([[ True,  True, False, False]])
    """
    now, pixels = int((log_odds > 0).sum()), log_odds.size
    wanted = min(max(now, round(area / share)), round(area * share), pixels)
    if wanted == now:
        return
    if wanted == 0:
        log_odds -= log_odds.max()
        return
    last = pixels - wanted  # the last pixel that stays, from the least likely one
    first = max(0, last - 1)
    ranked = np.partition(log_odds, (first, last), axis=None)
    log_odds -= (ranked[first] + ranked[last]) / 2


def _masks_of(labelled: LabelledSlices, value: int) -> dict[int, np.ndarray]:
    """The slices that say something of a class.

    Slices that are labelled in part count only where no whole one holds the class.
    """
    known = {i: labelled.slices[i] for i in labelled.known_for(value)}
    whole = {i: label for i, label in known.items() if not (label == IGNORE).any()}
    if any((label == value).any() for label in whole.values()):
        known = whole
    return {i: label == value for i, label in known.items()}


def _others(
    labelled: LabelledSlices, value: int, masks: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray] | None:
    """The other classes in the same slices; None where there is none."""
    others = {}
    for i, mask in masks.items():
        label = labelled.slices.get(i)
        others[i] = np.zeros_like(mask) if label is None else (label > 0) & (label != value)
    return others if any(mask.any() for mask in others.values()) else None


def _telling_channel(channels: np.ndarray, masks: Mapping[int, np.ndarray]) -> int:
    """The channel in which the structure differs most from the rest of its slices."""
    if len(channels) == 1:
        return 0
    apart = []
    for image in channels:
        inside = np.concatenate([image[i][mask] for i, mask in masks.items()])
        outside = np.concatenate([image[i][~mask] for i, mask in masks.items() if mask.any()])
        spread = float(np.std(inside) + np.std(outside)) or 1.0
        apart.append(abs(float(np.mean(inside)) - float(np.mean(outside))) / spread)
    return int(np.argmax(apart))
