"""A scan completed by the packaged network: its stack is cut out, read, and laid back.

One structure at a time. The stack is a box around the labelled slices' outlines, twice as wide,
at a resolution that shows the structure at about 32 to 48 pixels. Where the structure reaches the
box's side, the box grows and the network reads again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.nets.completion import CompletionNet
from contextseg.propagation.network.features import features, normalised

STACK_SIDE, FINE_STACK_SIDE = 64, 96
"""Pixels of the stack's side; the larger one where the smaller would be coarser than the scan."""

ZOOM = 2.0
"""Side of the box over the structure's extent."""

GROWTH = 1.6
GROWTHS = 4
"""By how much a box grows that is too small, and how often at most."""

BEYOND = 24
"""Slices beyond the outermost labelled ones in which a structure is looked for."""

DEPTH, RIM = 48, 4
"""Slices that are read at once, as in the training; and how many on both sides at least."""

FAR_LOG_ODDS = -20.0
"""Log-odds outside the box."""

BODY_WINDOW = (-300.0, 500.0)


@dataclass(frozen=True)
class StackBox:
    """A stack in a scan: slices `first` to `last`, and the pixels of its plane."""

    first: int
    last: int
    low: tuple[int, int]
    size: tuple[int, int]
    side: int

    @property
    def slices(self) -> int:
        """How many."""
        return self.last - self.first


class Readings:
    """What a network made of the stacks that it read last, so that none is read twice.

    After a correction only the stacks that it changes are read. Stacks are told apart by a digest
    of all that the network reads; so what is kept is what would be read again, to the last bit.

    Args:
        most: Stacks that are kept, of 0.2 to 0.9 MB each; the oldest is forgotten first. 0 keeps
            none.

    Attributes:
        found: How often one was found.
        read: How often one was read.
    """

    def __init__(self, most: int = 64) -> None:
        self.most, self.found, self.read = most, 0, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, net: CompletionNet, features: Tensor, prior: Tensor) -> Tensor:
        """The network's log-odds, read now or before.

        Args:
            net: The network; always the same.
            features: (1, C, D, H, W).
            prior: (1, D, H, W).

        Returns:
            (D, H, W) float32, which is not to be changed.
        """
        key = hashlib.blake2b(digest_size=16)
        for tensor in (features, prior):
            key.update(str(tuple(tensor.shape)).encode())
            key.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
        with self._lock:
            logits = self._kept.get(key.digest())
            if logits is not None:
                self._kept.move_to_end(key.digest())
                self.found += 1
                return logits
        with torch.autocast(features.device.type, torch.bfloat16, enabled=features.is_cuda):
            logits = net(features, prior)[0]
        with self._lock:
            self.read += 1
            self._kept[key.digest()] = logits
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return logits


@torch.inference_mode()
def complete_stack(
    net: CompletionNet,
    image: np.ndarray,
    masks: Mapping[int, np.ndarray],
    spacing_mm: Sequence[float],
    others: Mapping[int, np.ndarray] | None = None,
    shapes: Mapping[int, np.ndarray] | None = None,
    bounded: bool = False,
    readings: Readings | None = None,
    unneeded: Collection[int] = (),
) -> np.ndarray:
    """Log-odds of one structure in every slice of a scan.

    Args:
        net: In evaluation mode.
        image: The scan, (n, H, W), slices first.
        masks: Slice number to the structure's mask there, (H, W) bool; empty where it is known to
            be absent. One of them holds it.
        spacing_mm: Between slices, and of a pixel along H and W.
        others: Other structures in the same slices, likewise.
        shapes: Slice number to the signed distance in mm that interpolation predicts, (H, W). Where
            there is none, the network's own interpolation is read.
        bounded: Whether the structure ends in the outermost of these slices.
        readings: What the same network has read before.
        unneeded: Slices of which nothing is asked, such as whole labelled ones; stretches of them
            alone are not read.

    Returns:
        (n, H, W) float32; `FAR_LOG_ODDS` where the network has not looked.
    """
    reader = _Reader(
        net, image, intensity_window(image, masks), spacing_mm, readings or Readings(0)
    )
    out = np.full(image.shape, FAR_LOG_ODDS, np.float32)
    for window, decided in windows(masks, len(image), bounded):
        inside = {i: mask for i, mask in masks.items() if i in window}
        if not any(mask.any() for mask in inside.values()):
            continue
        if all(i in unneeded for i in decided):
            continue
        beside = {i: mask for i, mask in (others or {}).items() if i in inside}
        reader.decide((inside, beside, shapes or {}), window, decided, out)
    return out


def windows(known: Iterable[int], slices: int, bounded: bool = False) -> list[tuple[range, range]]:
    """The slices that the network reads at once, and of which it decides some.

    As in its training these are `DEPTH`. Stretches between two labelled slices are decided together
    as long as they fit; one that is longer has a window of its own.

    Args:
        known: The labelled slices.
        slices: Slices of the scan.
        bounded: Whether the structure ends in the outermost ones.

    Returns:
        (slices that are read, slices that are decided) of each window.

    Example:
        >>> windows([10, 20, 25], 100, bounded=True)
        [(range(0, 43), range(10, 26))]
        >>> [decided for _, decided in windows([10, 70], 100)]
        [range(0, 10), range(10, 70), range(70, 95)]
    """
    numbers = sorted(known)
    beyond = 0 if bounded else BEYOND
    low, high = max(0, numbers[0] - beyond), min(slices, numbers[-1] + beyond + 1)
    out: list[tuple[range, range]] = []
    stops = [*(i for i in numbers if low < i < high - 1), high]
    first = low
    for stop, after in zip(stops, [*stops[1:], None]):
        fits_with_the_next = after is not None and after - first + 2 * RIM <= DEPTH
        if stop == first or fits_with_the_next:
            continue
        pad = max(RIM, (DEPTH - (stop - first)) // 2)
        read = range(max(0, first - pad), min(slices, stop + pad + 1))
        out.append((read, range(first, stop)))
        first = stop
    return out


_Known = tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray], Mapping[int, np.ndarray]]
"""Masks of the structure, of others, and distances, by slice number."""


@dataclass(frozen=True)
class _Reader:
    """A network and the scan that it reads, box by box."""

    net: CompletionNet
    image: np.ndarray
    intensities: tuple[float, float]
    spacing_mm: Sequence[float]
    readings: Readings

    def decide(self, known: _Known, window: range, decided: range, out: np.ndarray) -> None:
        """Write the log-odds of the decided slices, in a box that grows to hold the structure.

        Args:
            known: What is known of the slices that are read.
            window: The slices that are read.
            decided: Those of them that are written.
            out: (n, H, W) float32 of the whole scan.
        """
        zoom = ZOOM
        for attempt in range(1 + GROWTHS):
            box = box_around(known[0], self.image.shape, self.spacing_mm, window, zoom)
            logits = self.read(known, box)
            if attempt == GROWTHS or not _touches(logits, box, self.image.shape):
                break
            zoom *= GROWTH
        kept = slice(decided.start - box.first, decided.stop - box.first)
        _lay_back(out[decided.start : decided.stop], logits[kept], box)

    def read(self, known: _Known, box: StackBox) -> Tensor:
        """Log-odds (slices, side, side) of the box, from masks, others and shapes."""
        masks, others, shapes = known
        device = next(self.net.parameters()).device
        whole = _cut(np.ones((1, *self.image.shape[1:]), np.float32), box)
        inside = _resized(whole, box.side, device) > 0.5
        cut = _cut(self.image[box.first : box.last], box, self.intensities)
        planes = _resized(cut, box.side, device)
        stack = normalised(planes[None], inside[None].expand(1, len(planes), -1, -1))
        numbers = sorted(masks)
        own = _planes(masks, numbers, box, device)
        beside = _planes(others, numbers, box, device) if others else None
        index = torch.tensor([[i - box.first for i in numbers]], device=device)
        pixel = box.size[0] * self.spacing_mm[1] / box.side
        thickness = torch.tensor([self.spacing_mm[0] / pixel], device=device)
        drawn = _shapes(shapes, box, pixel, device)
        x, prior = features(stack, own, index, thickness, beside, drawn)
        return self.readings.of(self.net, x, prior)


def intensity_window(image: np.ndarray, masks: Mapping[int, np.ndarray]) -> tuple[float, float]:
    """Between which intensities the network reads: of a CT the body's, else all but the extremes.

    The window is widened where the structure's own intensities lie outside.

    Args:
        image: (n, H, W).
        masks: The labelled slices.

    Returns:
        The lowest and the highest intensity.
    """
    thin = image[:: max(1, len(image) // 16)].astype(np.float32)
    if thin.min() < -500:
        low, high = BODY_WINDOW
    else:
        low, high = (float(v) for v in np.percentile(thin, [0.5, 99.5]))
    own = np.concatenate([image[i][mask] for i, mask in masks.items()]).astype(np.float32)
    if len(own):
        first, last = np.percentile(own, [5, 95])
        low, high = min(low, float(first)), max(high, float(last))
    return low, high


def box_around(
    masks: Mapping[int, np.ndarray],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    window: range,
    zoom: float = ZOOM,
) -> StackBox:
    """The box that the network looks at.

    Args:
        masks: The labelled slices; one of them holds the structure.
        shape: Of the scan, slices first.
        spacing_mm: Likewise.
        window: The slices.
        zoom: Side of the box over the structure's extent.

    Returns:
        The box; it may reach beyond the scan in plane.
    """
    union = np.any(list(masks.values()), 0)
    ends = [np.flatnonzero(union.any(1 - a))[[0, -1]] for a in (0, 1)]
    plane_mm = float(np.mean(spacing_mm[1:]))
    extent = max((b + 1 - a) * mm for (a, b), mm in zip(ends, spacing_mm[1:]))
    side_mm = max(extent * zoom, 12 * plane_mm, 0.4 * plane_mm * STACK_SIDE)
    side = STACK_SIDE if side_mm / STACK_SIDE <= 1.1 * plane_mm else FINE_STACK_SIDE
    size = [max(4, round(side_mm / mm)) for mm in spacing_mm[1:]]
    low = [round((a + b + 1) / 2 - s / 2) for (a, b), s in zip(ends, size)]
    return StackBox(window.start, window.stop, (low[0], low[1]), (size[0], size[1]), side)


def _cut(
    planes: np.ndarray, box: StackBox, intensities: tuple[float, float] | None = None
) -> np.ndarray:
    """(m, H, W) to the box's pixels (m, *box.size) within the intensities, 0 beyond the scan."""
    out = np.zeros((len(planes), *box.size), np.float32)
    here, there = _overlap(planes.shape[1:], box)
    inside = out[:, there[0], there[1]]
    inside[...] = planes[:, here[0], here[1]]
    if intensities:
        inside.clip(*intensities, out=inside)
    return out


def _overlap(
    plane: Sequence[int], box: StackBox
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the scan's plane in the box, in the scan's pixels and in the box's."""
    here, there = [], []
    for n, low, size in zip(plane, box.low, box.size):
        a, b = max(0, low), min(n, low + size)
        here.append(slice(a, b))
        there.append(slice(a - low, b - low))
    return (here[0], here[1]), (there[0], there[1])


def _resized(planes: np.ndarray, side: int, device: torch.device) -> Tensor:
    x = torch.from_numpy(planes).to(device)[None]
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


def _planes(
    masks: Mapping[int, np.ndarray], numbers: Sequence[int], box: StackBox, device: torch.device
) -> Tensor:
    planes = np.stack([masks[i] for i in numbers]).astype(np.float32)
    return (_resized(_cut(planes, box), box.side, device) > 0.5)[None]


def _shapes(
    shapes: Mapping[int, np.ndarray], box: StackBox, pixel: float, device: torch.device
) -> Tensor | None:
    """Signed distances (1, slices, side, side) in the box's pixels, NaN where there are none."""
    if not shapes:
        return None
    out = torch.full((1, box.slices, box.side, box.side), torch.nan, device=device)
    for i, distance in shapes.items():
        if box.first <= i < box.last:
            plane = np.full((1, *box.size), distance.min(), np.float32)
            here, there = _overlap(distance.shape, box)
            plane[:, there[0], there[1]] = distance[None, here[0], here[1]]
            out[0, i - box.first] = _resized(plane, box.side, device)[0] / pixel
    return out


def _touches(logits: Tensor, box: StackBox, shape: Sequence[int]) -> bool:
    """Whether the structure reaches a side of the box that is inside the scan."""
    found = (logits > 0).any(0)
    rims = (found[:2].any(), found[-2:].any(), found[:, :2].any(), found[:, -2:].any())
    open_sides = (
        box.low[0] > 0,
        box.low[0] + box.size[0] < shape[1],
        box.low[1] > 0,
        box.low[1] + box.size[1] < shape[2],
    )
    return any(bool(rim) and open_ for rim, open_ in zip(rims, open_sides))


def _lay_back(out: np.ndarray, logits: Tensor, box: StackBox) -> None:
    """Write the box's log-odds into the scan's plane (slices, H, W)."""
    own = F.interpolate(logits[None].float(), box.size, mode="bilinear", align_corners=False)
    here, there = _overlap(out.shape[1:], box)
    values = own[0].cpu().numpy()
    out[:, here[0], here[1]] = values[:, there[0], there[1]]
