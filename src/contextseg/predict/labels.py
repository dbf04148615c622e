"""From finished slabs of logits to classes on the output grid, with a confidence for each voxel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contextseg.predict.store import STEPS, ProbabilityStore
from contextseg.predict.windows import Image, Network, sliding_window

_CHUNK = 1 << 18  # voxels whose logits are interpolated at once
_OPEN = -1  # no class yet: the corners of the cell disagree


def _corners(n: int, new: int) -> tuple[Tensor, Tensor]:
    """The two neighbours of each of `new` samples along an axis of `n`, and their weights.

    Both axes cover the same extent; beyond the outermost centres the outermost sample holds.

    Returns:
        Indices (2, new) and weights (2, new).
    """
    at = ((torch.arange(new, dtype=torch.float64) + 0.5) * (n / new) - 0.5).clamp(0, n - 1)
    low = at.floor()
    share = (at - low).float()
    high = torch.where(share > 0, low + 1, low)
    return torch.stack([low, high]).long().clamp(max=n - 1), torch.stack([1 - share, share])


class _Layers:
    """Two neighbouring slices of logits, and the planes of the output that lie between them.

    Slice i lives in slot i % 2: its logits as rows of K numbers, one row for each voxel; its class
    map; and, where it is asked for, the probability of that class.

    Args:
        first: Logits (K, h, w) of a slice, for shapes and types.
        shape: (H, W) of the output.
        with_confidence: Whether `plane` gives confidences.
    """

    def __init__(self, first: Tensor, shape: Sequence[int], with_confidence: bool) -> None:
        self.size = first.shape[1:]
        self.shape = shape
        self.device = first.device
        self.rows = first.new_empty(2, first[0].numel(), len(first))
        self.best = first.new_empty(2, *self.size, dtype=torch.int16)
        self.probability = first.new_empty(2, *self.size) if with_confidence else None
        axes = [_corners(n, new) for n, new in zip(self.size, shape)]
        self.index = [index.to(self.device) for index, _ in axes]
        self.weight = [weight.to(self.device) for _, weight in axes]
        # The last answer of `_agreed`, and the two slices that it is about.
        self.agreed = self.best[0]
        self.agreed_slices: tuple[int, int] | None = None

    def put(self, i: int, logits: Tensor) -> None:
        """Take in slice `i`, logits (K, h, w)."""
        self.rows[i % 2].copy_(logits.flatten(1).T)
        self.best[i % 2] = _winner(self.rows[i % 2]).view(self.size)
        if self.probability is not None:
            self.probability[i % 2] = _largest_probability(logits, 0)

    def plane(self, low: int, high: int, share: float) -> tuple[np.ndarray, np.ndarray | None]:
        """The output plane (H, W) that lies `share` of the way from slice `low` to slice `high`.

        Returns:
            Classes int16, and confidence uint8 or None.
        """
        if self.agreed_slices != (low, high):
            self.agreed_slices = (low, high)
            self.agreed = self._agreed(low, high)
        h, w = self.index
        plane = self.agreed.index_select(1, w[0]).index_select(0, h[0])
        confidence = None
        if self.probability is not None:
            confidence = self._between(self.probability[low % 2], self.probability[high % 2], share)

        classes = plane.view(-1)
        for voxels in (classes == _OPEN).nonzero()[:, 0].split(_CHUNK):
            logits = self._interpolated(voxels, low, high, share)
            classes[voxels] = _winner(logits)
            if confidence is not None:
                confidence.view(-1)[voxels] = _largest_probability(logits, 1)

        if confidence is None:
            return plane.cpu().numpy(), None
        return plane.cpu().numpy(), confidence.mul_(255).round_().byte().cpu().numpy()

    def probabilities(self, low: int, high: int, share: float) -> np.ndarray:
        """The probabilities of all classes on that plane, (K, H, W) uint16 up to `STEPS`.

        The softmax of the very logits by which `plane` decides, so that the largest is the label's.
        """
        height, width = self.shape
        classes = self.rows.shape[2]
        out = np.empty((classes, height * width), np.uint16)
        voxels = torch.arange(height * width, device=self.device)
        for part in voxels.split(max(1, 16 * _CHUNK // classes)):
            p = self._interpolated(part, low, high, share).softmax(1)
            numbers = p.mul_(STEPS).round_().to(torch.int32).T.cpu().numpy()
            out[:, part[0].item() : part[-1].item() + 1] = numbers
        return out.reshape(classes, height, width)

    def _between(self, low: Tensor, high: Tensor, share: float) -> Tensor:
        """(H, W): what two slices (h, w) hold, interpolated linearly."""
        out = torch.lerp(low, high, share)
        for axis in (0, 1):
            if self.size[axis] != self.shape[axis]:
                (before, after), part = self.index[axis], self.weight[axis][1]
                part = part if axis else part[:, None]
                out = torch.lerp(
                    out.index_select(axis, before), out.index_select(axis, after), part
                )
        return out

    def _agreed(self, low: int, high: int) -> Tensor:
        """(h, w): the class that wins at all eight corners of a voxel's cell, or `_OPEN`.

        The cell reaches from a voxel to the next one along each axis.
        """
        best = self.best[low % 2]
        same = best == self.best[high % 2]
        for axis, n in enumerate(self.size):
            if n != self.shape[axis]:
                after = (torch.arange(n, device=self.device) + 1).clamp(max=n - 1)
                same = same & same.index_select(axis, after)
                same = same & (best == best.index_select(axis, after))
        return torch.where(same, best, _OPEN)

    def _interpolated(self, voxels: Tensor, low: int, high: int, share: float) -> Tensor:
        """(N, K): the logits of some voxels of the plane, from the eight corners of the cell."""
        row = voxels // self.shape[1]
        column = voxels % self.shape[1]
        start = torch.tensor([low % 2, high % 2], device=self.device) * self.rows.shape[1]
        h = self.index[0][:, row] * self.size[1]
        w = self.index[1][:, column]
        index = start[:, None, None, None] + h[:, None] + w  # (2, 2, 2, N)

        weight_d = torch.tensor([1 - share, share], device=self.device)[:, None, None, None]
        weight = weight_d * self.weight[0][:, None, row] * self.weight[1][:, column]
        return F.embedding_bag(  # a weighted sum of rows
            index.reshape(8, -1).T.contiguous(),
            self.rows.flatten(0, 1),
            per_sample_weights=weight.reshape(8, -1).T.contiguous(),
            mode="sum",
        )


def _winner(rows: Tensor) -> Tensor:
    """The first maximum of each row, as argmax gives it, but faster."""
    return rows.max(1).indices.to(torch.int16)


def _largest_probability(logits: Tensor, axis: int) -> Tensor:
    """The largest of the softmax probabilities along an axis."""
    return (logits - logits.amax(axis, keepdim=True)).exp_().sum(axis).reciprocal_()


def _smallest_type(values: np.ndarray) -> type:
    for kind in (np.uint8, np.int16, np.uint16):
        limits = np.iinfo(kind)
        if limits.min <= values.min() and values.max() <= limits.max:
            return kind
    return np.int32


def labels_from_slabs(
    slabs: Iterable[tuple[int, int, Tensor]],
    size: Sequence[int],
    shape: Sequence[int],
    *,
    to_class: np.ndarray | Sequence[int] | None = None,
    confidence: np.ndarray | None = None,
    probabilities: ProbabilityStore | None = None,
) -> np.ndarray:
    """The argmax of linearly interpolated logits.

    Linear interpolation is a convex combination of the eight corners of a cell. So where one class
    wins at all eight, it wins everywhere between them, and only the voxels of the other cells, a
    few percent of a usual segmentation, have their K logits interpolated. The answer is that of
    interpolating everything (but for ties within rounding), while at most two slices of logits are
    held beside the slab. Of equal classes the first wins.

    The confidence of the other cells is the softmax of those interpolated logits; that of a cell
    that agrees, its corners' probabilities of the class, interpolated. Interpolating the largest
    probability everywhere would give a border between two confident sides a high confidence.

    Args:
        slabs: `(start, stop, logits (K, stop - start, h, w))` that follow one another along D, as
            from `sliding_window`; finite numbers.
        size: (d, h, w): the grid of the logits.
        shape: (D, H, W): the output grid, finer or coarser, over the same extent (voxel edges
            coincide, as in `resampling.resample` with order 1 or torch's `align_corners=False`).
        to_class: The value to write for each channel. None writes the channel's index.
        confidence: (D, H, W) uint8, filled with the largest probability, 0 to 255 for 0 to 1. None
            for no confidence.
        probabilities: Takes the softmax of every voxel's logits, plane by plane. None for none.

    Returns:
        (D, H, W) uint8, or int16, uint16 or int32 where the values need it.

    Raises:
        ValueError: The slabs have gaps, do not fit `size`, or stop early; or `to_class` or
            `confidence` do not fit.

    Example:
        >>> ramp = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
        >>> labels_from_slabs([(0, 1, torch.cat([0 * ramp + 1, ramp]))], (1, 1, 2), (1, 1, 6))
        array([[[0, 0, 0, 1, 1, 1]]], dtype=uint8)
    """
    if confidence is not None and (
        confidence.shape != tuple(shape) or confidence.dtype != np.uint8
    ):
        raise ValueError(
            f"confidence is {confidence.dtype} {confidence.shape}, not uint8 {tuple(shape)}"
        )
    corners, weight = _corners(size[0], shape[0])
    low, high = corners.tolist()
    share = weight[1].tolist()
    needed = {*low, *high}
    layers: Any = None
    out: Any = None
    values: Any = None
    written = 0
    read = 0
    for start, stop, logits in slabs:
        if start != read or tuple(logits.shape[1:]) != (stop - start, *size[1:]):
            raise ValueError(
                f"slices {start} to {stop} of shape {tuple(logits.shape)} "
                f"after {read} of {tuple(size)}"
            )
        logits = logits.float().to(logits.device if logits.is_cuda else "cpu")
        if layers is None:
            layers = _Layers(logits[:, 0], shape[1:], confidence is not None)
            values = _values(to_class, len(logits))
            out = np.empty(tuple(shape), values.dtype)

        for i in range(start, stop):
            if i in needed:
                layers.put(i, logits[:, i - start])
            while written < shape[0] and high[written] == i:
                plane, plane_confidence = layers.plane(low[written], i, share[written])
                out[written] = plane if to_class is None else values[plane]
                if confidence is not None:
                    confidence[written] = plane_confidence
                if probabilities is not None:
                    args = low[written], i, share[written]
                    probabilities.add(layers.probabilities(*args))
                written += 1
        read = stop
        del logits  # before the next slab is made
    if read != size[0]:
        raise ValueError(f"the slabs end at slice {read} of {size[0]}")
    return out


def _values(to_class: np.ndarray | Sequence[int] | None, channels: int) -> np.ndarray:
    """The value to write for each channel, in the smallest type that holds them all."""
    values = np.arange(channels) if to_class is None else np.asarray(to_class)
    if len(values) != channels:
        raise ValueError(f"to_class has {len(values)} values for {channels} channels")
    return values.astype(_smallest_type(values))


def segment(
    predict: Network | Sequence[Network],
    image: Image,
    shape: Sequence[int],
    patch_vox: Sequence[int],
    *,
    to_class: np.ndarray | Sequence[int] | None = None,
    confidence: np.ndarray | None = None,
    slices: tuple[int, np.ndarray] | None = None,
    probabilities: ProbabilityStore | None = None,
    **window: Any,
) -> np.ndarray:
    """Segment an image onto a grid, in one stream from sliding window to label.

    Args:
        predict: A network, or several: the mean of their logits.
        image: (C, d, h, w).
        shape: (D, H, W): the output grid, as in `labels_from_slabs`.
        patch_vox: Size of the sliding window, as in `sliding_window`.
        to_class: The value to write for each channel, as in `labels_from_slabs`.
        confidence: (D, H, W) uint8, filled as by `labels_from_slabs`.
        slices: An axis along which logits are not interpolated, and the index that each slice of
            the output is taken from. None to interpolate along all axes.
        probabilities: Filled as by `labels_from_slabs`.
        **window: Other arguments of `sliding_window`, `device` among them.

    Returns:
        (D, H, W) integers.

    Example:
        >>> image = np.array([[-1.0, -1, 1, 1]]).reshape(1, 1, 1, 4)
        >>> segment(lambda x: torch.cat([-x, x], 1), image, (1, 1, 8), (1, 4), device="cpu").ravel()
        array([0, 0, 0, 0, 1, 1, 1, 1], dtype=uint8)
    """
    slabs = sliding_window(predict, image, patch_vox, **window)
    size = list(image.shape[1:])
    if slices is not None:
        axis, index = slices
        slabs = _taken(slabs, axis, index)
        size[axis] = len(index)
    return labels_from_slabs(
        slabs,
        size,
        shape,
        to_class=to_class,
        confidence=confidence,
        probabilities=probabilities,
    )


def _taken(
    slabs: Iterable[tuple[int, int, Tensor]], axis: int, index: np.ndarray
) -> Iterator[tuple[int, int, Tensor]]:
    """Slabs of the slices `index` along an axis of (D, H, W), in its order, which never falls."""
    for start, stop, logits in slabs:
        if axis > 0:
            order = torch.from_numpy(index).to(logits.device)
            yield start, stop, logits.index_select(axis + 1, order)
            continue
        for i in range(start, stop):
            a, b = np.searchsorted(index, [i, i + 1]).tolist()
            if a < b:
                yield a, b, logits[:, i - start : i - start + 1].expand(-1, b - a, -1, -1)
