"""From finished slabs of logits to classes on the output grid, and how sure each voxel is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contextseg.predict.windows import Network, sliding_window

_CHUNK = 1 << 18  # voxels whose logits are interpolated at once
_OPEN = -1  # no class yet: the corners of the cell disagree


def _corners(n: int, new: int) -> tuple[Tensor, Tensor]:
    """For each of `new` samples along an axis of `n`: its two neighbours (2, new), and their weights (2, new).

    Both axes cover the same extent; beyond the outermost centres the outermost sample holds.
    """
    at = ((torch.arange(new, dtype=torch.float64) + 0.5) * (n / new) - 0.5).clamp(0, n - 1)
    low = at.floor()
    share = (at - low).float()
    high = torch.where(share > 0, low + 1, low)
    return torch.stack([low, high]).long().clamp(max=n - 1), torch.stack([1 - share, share])


class _Layers:
    """Two neighbouring slices of logits, and the planes of the output that lie between them.

    Slice i lives in slot i % 2: its logits as rows of K numbers, one row for each voxel, its class map, and where it is
    asked for `sure`, the probability of that class.
    """

    def __init__(self, first: Tensor, shape: Sequence[int], confidence: bool) -> None:
        self.size, self.shape, self.device = first.shape[1:], shape, first.device
        self.rows = first.new_empty(2, first[0].numel(), len(first))
        self.best = first.new_empty(2, *self.size, dtype=torch.int16)
        self.sure = first.new_empty(2, *self.size) if confidence else None
        axes = [_corners(n, new) for n, new in zip(self.size, shape)]
        self.index, self.weight = zip(*[(index.to(self.device), weight.to(self.device)) for index, weight in axes])
        self.cells: tuple[tuple[int, int] | None, Tensor] = None, self.best  # of which slices, `_agreed`

    def put(self, i: int, logits: Tensor) -> None:
        """Take in slice `i`, logits (K, h, w)."""
        self.rows[i % 2].copy_(logits.flatten(1).T)
        self.best[i % 2] = _winner(self.rows[i % 2]).view(self.size)
        if self.sure is not None:
            self.sure[i % 2] = _largest(logits, 0)

    def plane(self, low: int, high: int, share: float) -> tuple[np.ndarray, np.ndarray | None]:
        """Between the slices `low` and `high`, `share` of the way, (H, W): classes int16, and confidence uint8."""
        if self.cells[0] != (low, high):
            self.cells = (low, high), self._agreed(low, high)
        h, w = self.index
        plane = self.cells[1].index_select(1, w[0]).index_select(0, h[0])
        flat = plane.view(-1)
        sure = None if self.sure is None else self._between(self.sure[low % 2], self.sure[high % 2], share)
        for voxels in (flat == _OPEN).nonzero()[:, 0].split(_CHUNK):
            logits = self._interpolated(voxels, low, high, share)
            flat[voxels] = _winner(logits)
            if sure is not None:
                sure.view(-1)[voxels] = _largest(logits, 1)
        return plane.cpu().numpy(), None if sure is None else sure.mul_(255).round_().byte().cpu().numpy()

    def _between(self, low: Tensor, high: Tensor, share: float) -> Tensor:
        """(H, W): what two slices (h, w) hold, interpolated linearly."""
        out = torch.lerp(low, high, share)
        for axis in (0, 1):
            if self.size[axis] != self.shape[axis]:
                (before, after), part = self.index[axis], self.weight[axis][1]
                part = part if axis else part[:, None]
                out = torch.lerp(out.index_select(axis, before), out.index_select(axis, after), part)
        return out

    def _agreed(self, low: int, high: int) -> Tensor:
        """(h, w): the class that wins at all corners of the cell from a voxel to the next ones, or `_OPEN`."""
        best = self.best[low % 2]
        same = best == self.best[high % 2]
        for axis, n in enumerate(self.size):
            if n != self.shape[axis]:
                after = (torch.arange(n, device=self.device) + 1).clamp(max=n - 1)
                same = same & same.index_select(axis, after) & (best == best.index_select(axis, after))
        return torch.where(same, best, _OPEN)

    def _interpolated(self, voxels: Tensor, low: int, high: int, share: float) -> Tensor:
        """(N, K): the logits of some voxels of the plane, from the eight corners of the cell."""
        row, column = voxels // self.shape[1], voxels % self.shape[1]
        start = torch.tensor([low % 2, high % 2], device=self.device) * self.rows.shape[1]
        h, w = self.index[0][:, row] * self.size[1], self.index[1][:, column]
        index = start[:, None, None, None] + h[:, None] + w  # (2, 2, 2, N)
        part = torch.tensor([1 - share, share], device=self.device)
        weight = part[:, None, None, None] * self.weight[0][:, None, row] * self.weight[1][:, column]
        rows, (index, weight) = self.rows.flatten(0, 1), (x.reshape(8, -1).T.contiguous() for x in (index, weight))
        return F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")  # a weighted sum of rows


def _winner(rows: Tensor) -> Tensor:
    return rows.max(1).indices.to(torch.int16)  # the first maximum, as argmax gives it, but faster


def _largest(logits: Tensor, axis: int) -> Tensor:
    """The largest of the probabilities along an axis."""
    return (logits - logits.amax(axis, keepdim=True)).exp_().sum(axis).reciprocal_()


def _smallest_type(values: np.ndarray) -> type:
    fits = (t for t in (np.uint8, np.int16) if np.iinfo(t).min <= values.min() and values.max() <= np.iinfo(t).max)
    return next(fits, np.int32)


def labels_from_slabs(
    slabs: Iterable[tuple[int, int, Tensor]],
    size: Sequence[int],
    shape: Sequence[int],
    *,
    to_class: np.ndarray | Sequence[int] | None = None,
    confidence: np.ndarray | None = None,
) -> np.ndarray:
    """The argmax of the linearly interpolated logits on the grid `shape`: (D, H, W) uint8, or wider if values need it.

    slabs       `(start, stop, logits (K, stop - start, h, w))` that follow one another along D, as from
                `sliding_window`; finite numbers.
    size        (d, h, w): the grid of the logits.
    shape       (D, H, W): the output grid, finer or coarser, over the same extent (voxel edges coincide, as in
                `volume.resample` with order 1 or torch's `align_corners=False`).
    to_class    the value to write for each channel; None writes the channel's index.
    confidence  (D, H, W) uint8, where given: filled with the largest probability, 0 to 255 for 0 to 1.

    Linear interpolation is a convex combination of the eight corners of a cell. So where one class wins at all eight,
    it wins everywhere between them, and only the voxels of the other cells, a few percent of a usual segmentation, have
    their K logits interpolated. The answer is that of interpolating everything (but for ties within rounding), while at
    most two slices of logits are held beside the slab. Of equal classes the first wins.

    The confidence of the other cells is the softmax of those interpolated logits; that of a cell that agrees, its
    corners' probabilities of the class, interpolated. Interpolating the largest probability everywhere would be sure of
    the border between two sure sides.

    Raises ValueError if the slabs have gaps, do not fit `size`, or stop early, and for a confidence that does not fit.

    >>> ramp = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    >>> labels_from_slabs([(0, 1, torch.cat([0 * ramp + 1, ramp]))], (1, 1, 2), (1, 1, 6))
    array([[[0, 0, 0, 1, 1, 1]]], dtype=uint8)
    """
    if confidence is not None and (confidence.shape != tuple(shape) or confidence.dtype != np.uint8):
        raise ValueError(f"confidence is {confidence.dtype} {confidence.shape}, not uint8 {tuple(shape)}")
    corners, weight = _corners(size[0], shape[0])
    low, high = corners.tolist()
    needed, share = {*low, *high}, weight[1].tolist()
    layers: Any = None
    out: Any = None
    written = seen = 0
    for start, stop, logits in slabs:
        if start != seen or tuple(logits.shape[1:]) != (stop - start, *size[1:]):
            raise ValueError(f"slices {start} to {stop} of shape {tuple(logits.shape)} after {seen} of {tuple(size)}")
        logits = logits.float().to(logits.device if logits.is_cuda else "cpu")
        if layers is None:
            layers = _Layers(logits[:, 0], shape[1:], confidence is not None)
            values = np.arange(len(logits)) if to_class is None else np.asarray(to_class)
            if len(values) != len(logits):
                raise ValueError(f"to_class has {len(values)} values for {len(logits)} channels")
            values = values.astype(_smallest_type(values))
            out = np.empty(tuple(shape), values.dtype)
        for i in range(start, stop):
            if i in needed:
                layers.put(i, logits[:, i - start])
            while written < shape[0] and high[written] == i:
                plane, sure = layers.plane(low[written], i, share[written])
                out[written] = plane if to_class is None else values[plane]
                if confidence is not None:
                    confidence[written] = sure
                written += 1
        seen = stop
        del logits  # before the next slab is made
    if seen != size[0]:
        raise ValueError(f"the slabs end at slice {seen} of {size[0]}")
    return out


def segment(
    predict: Network | Sequence[Network],
    image: np.ndarray | Tensor,
    shape: Sequence[int],
    patch_vox: Sequence[int],
    *,
    to_class: np.ndarray | Sequence[int] | None = None,
    confidence: np.ndarray | None = None,
    **window: Any,
) -> np.ndarray:
    """Segment an image (C, d, h, w) onto the grid `shape`, in one stream from window to label: (D, H, W) integers.

    `window` are the keywords of `sliding_window` (`device` among them); `shape`, `to_class` and `confidence` are those
    of `labels_from_slabs`.

    >>> image = np.array([[-1.0, -1, 1, 1]]).reshape(1, 1, 1, 4)
    >>> segment(lambda x: torch.cat([-x, x], 1), image, (1, 1, 8), (1, 4), device="cpu").ravel()
    array([0, 0, 0, 0, 1, 1, 1, 1], dtype=uint8)
    """
    slabs = sliding_window(predict, image, patch_vox, **window)
    return labels_from_slabs(slabs, image.shape[1:], shape, to_class=to_class, confidence=confidence)
