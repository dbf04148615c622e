"""Filling with the network that comes with the package, which no scan of yours has trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.grids import label_type
from contextseg.nets.completion import CompletionNet
from contextseg.propagation.labelled import LabelledSlices
from contextseg.propagation.network.completing import FAR_LOG_ODDS, complete_stack
from contextseg.propagation.shapes import ShapePrior, common_foreground
from contextseg.volume import Volume

WEIGHTS = Path(__file__).parents[1] / "models" / "completion.npz"
"""The file of its weights; its model card lies beside it."""

ENOUGH_SLICES = 3
"""Labelled slices that hold a structure, from which on its shapes alone decide between them: with
as many the network was worse on small ones (decision 0025).
"""


@dataclass(frozen=True)
class CompletionModel:
    """A network that completes any structure from its labelled slices, in any kind of scan.

    Attributes:
        net: In evaluation mode, on the device that fills.
        facts: How it was made.
    """

    net: CompletionNet
    facts: dict[str, Any] = field(default_factory=dict, repr=False)


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
    try:
        with np.load(path) as archive:
            facts: dict[str, Any] = json.loads(bytes(archive["facts"]))
            weights = {k: archive[k] for k in archive.files if k != "facts"}
        net = CompletionNet(facts["inputs"], facts["widths"])
        net.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        what = f"no weights of a completion network ({error})"
        remedy = "give the network.npz of contextseg.propagation.network.training"
        raise ContextsegError(path, what, remedy) from None
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
            From `ENOUGH_SLICES` on they stand alone between the labelled slices, and the network
            decides what lies beyond.
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
    dice: dict[int, np.ndarray] = {}
    for done, value in enumerate(classes, 1):
        masks = _masks_of(labelled, value)
        others = _others(labelled, value, masks)
        image = channels[_telling_channel(channels, masks)]
        planes = ((i, prior.distance(value, i)) for i in range(shape[0])) if prior else ()
        distances = {i: plane for i, plane in planes if plane is not None}
        first, last = ranges.get(value, (0, shape[0] - 1))
        held = [i for i, mask in masks.items() if mask.any()]
        ended = value in ranges and bool(held) and min(held) <= first <= last <= max(held)
        logits = complete_stack(model.net, image, masks, spacing_mm, others, distances, ended)
        if value in ranges:
            logits[: max(0, first)] = FAR_LOG_ODDS
            logits[last + 1 :] = FAR_LOG_ODDS
        enough = sum(bool(mask.any()) for mask in masks.values()) >= ENOUGH_SLICES
        dice[value] = np.full(shape[0], np.nan, np.float32)
        for i, plane in enumerate(logits):
            if prior and i in distances:
                shapes = prior.log_odds(i)
                assert shapes is not None
                plane *= 0 if enough else 1
                plane += shapes[done - 1]
            dice[value][i] = _expected_dice(plane)
        better = logits > best
        best[better], labels[better] = logits[better], value
        if progress:
            progress(done, len(classes))
    foreground = best > 0
    for a, b, pixels in common_foreground(labelled.slices, labelled.silent):
        foreground[a + 1 : b] |= pixels
    labels[~foreground] = 0
    return labels, dice


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


def _expected_dice(log_odds: np.ndarray) -> float:
    """The Dice to be expected of the positive pixels if the log-odds were right; NaN of none."""
    inside = log_odds > 0
    if not inside.any():
        return float("nan")
    p = 1 / (1 + np.exp(-np.clip(log_odds, -30, 30)))
    return float(2 * p[inside].sum() / (inside.sum() + p.sum()))
