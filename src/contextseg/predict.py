"""From a network to a label map, with bounded memory: windows -> finished slabs of logits -> classes on a grid.

Arrays in, arrays out; no files here. The logits are held for one window's depth of the image, never for all of it, and
at the resolution of the network, never at that of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]
"""(B, C, *S) float32 -> logits (B, K, *S); put into evaluation mode by whoever hands it over."""

_CHUNK = 1 << 18  # voxels whose logits are interpolated at once
_OPEN = -1  # no class yet: the corners of the cell disagree


# --- windows ----------------------------------------------------------------------------------------------------------


def positions(size: int, patch: int, step: float = 0.5) -> list[int]:
    """Where windows of `patch` voxels start so that they cover `size` voxels evenly, at most `step` patches apart.

    The first starts at 0 and the last ends at `size`. `size <= patch` gives [0]. nnU-Net's rule (Isensee et al., 2021).
    Raises ValueError for a step outside (0, 1].

    >>> positions(110, 32)
    [0, 16, 31, 47, 62, 78]
    """
    if not 0 < step <= 1:
        raise ValueError(f"step is a part of the patch, more than 0 and at most 1; got {step}")
    if size <= patch:
        return [0]
    gaps = int(np.ceil((size - patch) / (patch * step)))
    return [round((size - patch) * i / gaps) for i in range(gaps + 1)]


def gaussian(patch_vox: Sequence[int], sigma_vox: Sequence[float] | None = None) -> Tensor:
    """How much each voxel of a window counts: a Gaussian around voxel `patch // 2`, float32 (*patch_vox), largest 1.

    `sigma_vox` is an eighth of the patch unless given. No weight is 0: where the Gaussian underflows, its smallest
    positive value stands. As in nnU-Net, whose filtered impulse is the same function.

    >>> [round(w, 4) for w in gaussian((4,)).tolist()]
    [0.0003, 0.1353, 1.0, 0.1353]
    """
    weight = torch.ones(())
    for n, sigma in zip(patch_vox, sigma_vox or [n / 8 for n in patch_vox]):
        distance = (torch.arange(n, dtype=torch.float64) - n // 2) / sigma
        weight = weight[..., None] * torch.exp(-(distance**2) / 2)
    weight = weight.float()
    return weight.clamp(min=float(weight[weight > 0].min()))


class _Span(NamedTuple):
    """One window along one axis: the voxels [start, stop) that it covers, `before` zeros ahead of them, and its share.

    `share` (stop - start,): its Gaussian over the sum of all windows' Gaussians. Windows form a grid and a Gaussian is
    a product, so the shares of three axes multiply to the window's weight, and no sum of weights need be kept.
    """

    start: int
    stop: int
    before: int
    share: Tensor


_Window = tuple[_Span, _Span, _Span]


def _spans(size: int, patch: int, step: float) -> list[_Span]:
    if size <= patch:
        return [_Span(0, size, (patch - size) // 2, torch.ones(size))]
    bell, total = gaussian((patch,)).double(), torch.zeros(size, dtype=torch.float64)
    starts = positions(size, patch, step)
    for start in starts:
        total[start : start + patch] += bell
    return [_Span(s, s + patch, 0, (bell / total[s : s + patch]).float()) for s in starts]


def _batches(size: Sequence[int], patch: Sequence[int], step: float, batch_size: int) -> list[list[_Window]]:
    """All windows in the order of D, `batch_size` at a time; a patch of one slice is put on every slice."""
    first = [_Span(i, i + 1, 0, torch.ones(1)) for i in range(size[0])]
    depth = first if patch[0] == 1 else _spans(size[0], patch[0], step)
    windows = list(product(depth, _spans(size[1], patch[1], step), _spans(size[2], patch[2], step)))
    return [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]


def _cut(image: np.ndarray | Tensor, window: _Window, patch: Sequence[int]) -> Tensor:
    """(C, *patch) float32: the image inside a window, zeros around it where the image is smaller."""
    d, h, w = (slice(s.start, s.stop) for s in window)
    part = image[:, d, h, w]
    if isinstance(part, np.ndarray):  # copied: it may be flipped, read-only or of any number type
        part = torch.from_numpy(np.array(part, np.float32, order="C"))
    zeros = [(s.before, p - (s.stop - s.start) - s.before) for s, p in zip(window, patch)]
    return F.pad(part.float(), [n for pair in reversed(zeros) for n in pair])


def sliding_window(
    predict: Network | Sequence[Network],
    image: np.ndarray | Tensor,
    patch_vox: Sequence[int],
    *,
    device: torch.device | str,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
    swaps: Sequence[tuple[int, int]] = (),
    lateral_axis: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Predict an image (C, D, H, W) window by window; yield `(start, stop, logits)` for slices along D, in order.

    The logits (K, stop - start, H, W), float32 on `device`, are the Gaussian-weighted mean of the windows. Slices are
    yielded as soon as no later window touches them, so that memory is that of K * patch D * H * W numbers, whatever D.

    predict       a network, or several: their mean. Mixed precision on CUDA only.
    patch_vox     (D, H, W), or (H, W) for a 2-D network, which sees one slice at a time.
    step          distance of the windows, in patches.
    mirror_axes   axes of (D, H, W): the mean over every combination of mirrors, 2^n predictions.
    lateral_axis  the axis from left to right; where it is mirrored, the channels of each pair in `swaps` change places.
    batch_size    windows per call of a network, across rows and slices.
    progress      called with (windows done, windows in all) after each batch.

    An image smaller than the patch is padded with zeros on both sides and the logits are cropped. Raises ValueError
    for axes or sizes that do not fit the image, and for a network that changes the size of its input.

    >>> image = np.arange(24.0).reshape(1, 2, 3, 4)
    >>> slabs = sliding_window(lambda x: x, image, (2, 2), device="cpu")
    >>> [(start, stop, logits.flatten()[0].item()) for start, stop, logits in slabs]
    [(0, 1, 0.0), (1, 2, 12.0)]
    """
    flat = len(patch_vox) == 2
    if image.ndim != 4 or len(patch_vox) not in (2, 3) or 0 in image.shape:
        raise ValueError(f"an image (C, D, H, W) and a patch of 2 or 3 sizes; got {tuple(image.shape)}, {patch_vox}")
    if not set(mirror_axes) <= set(range(flat, 3)):
        raise ValueError(f"mirror_axes are among {tuple(range(flat, 3))} here; got {tuple(mirror_axes)}")
    networks = [predict] if callable(predict) else list(predict)
    mirrors = [axes for n in range(4) for axes in combinations(sorted(set(mirror_axes)), n)]

    def infer(x: Tensor) -> Tensor:  # (B, C, D, H, W) -> (B, K, D, H, W)
        z = _logits(networks, x[:, :, 0] if flat else x, mirrors, swaps, lateral_axis)
        return z[:, :, None] if flat else z

    patch = (1, *patch_vox) if flat else tuple(patch_vox)
    return _slabs(infer, image, patch, _batches(image.shape[1:], patch, step, batch_size), device, progress)


def _slabs(
    infer: Network,
    image: np.ndarray | Tensor,
    patch: Sequence[int],
    batches: Sequence[Sequence[_Window]],
    device: torch.device | str,
    progress: Callable[[int, int], object] | None,
) -> Iterator[tuple[int, int, Tensor]]:
    depth = max(batch[-1][0].stop - batch[0][0].start for batch in batches)
    total: Any = None  # (K, depth, H, W): the slices from `base` on
    base = done = 0
    windows = sum(map(len, batches))
    for batch in batches:
        if (finished := batch[0][0].start - base) > 0:
            yield base, base + finished, total[:, :finished].clone()
            _advance(total, finished)
            base += finished
        z = infer(torch.stack([_cut(image, window, patch) for window in batch]).to(device))
        if total is None:
            total = torch.zeros(z.shape[1], depth, *image.shape[2:], device=z.device)
        for window, logits in zip(batch, z):
            _add(total, base, window, logits)
        done += len(batch)
        if progress is not None:
            progress(done, windows)
    yield base, image.shape[1], total[:, : image.shape[1] - base]


def _advance(total: Tensor, n: int) -> None:
    """Drop the first `n` slices in place; blocks of `n` never overlap."""
    depth = total.shape[1]
    for i in range(n, depth, n):
        width = min(n, depth - i)
        total[:, i - n : i - n + width] = total[:, i : i + width]
    total[:, depth - n :] = 0


def _add(total: Tensor, base: int, window: _Window, logits: Tensor) -> None:
    """Add one window's share, without what it predicted for the zeros around the image."""
    inside = logits[(slice(None), *(slice(s.before, s.before + s.stop - s.start) for s in window))]
    d, h, w = (s.share.to(total.device) for s in window)
    place = (slice(window[0].start - base, window[0].stop - base), *(slice(s.start, s.stop) for s in window[1:]))
    total[(slice(None), *place)].addcmul_(inside, d[:, None, None] * h[:, None] * w)


@torch.no_grad()
def _logits(
    networks: Sequence[Network],
    x: Tensor,
    mirrors: Sequence[tuple[int, ...]],
    swaps: Sequence[tuple[int, int]],
    lateral_axis: int | None,
) -> Tensor:
    """(B, K, *S) float32: the mean over networks and mirrors, each turned back to how the image lies."""
    total: Any = None
    for axes in mirrors:
        dims = [axis + x.ndim - 3 for axis in axes]
        for network in networks:
            with torch.autocast(x.device.type, enabled=x.is_cuda):
                z = network(x.flip(dims) if dims else x)
            if z.shape[2:] != x.shape[2:]:
                raise ValueError(f"the network turned {tuple(x.shape)} into {tuple(z.shape)}: sizes must stay")
            z = z.float().flip(dims) if dims else z.float()
            if lateral_axis in axes:
                z = z[:, _exchanged(z.shape[1], swaps)]
            total = z if total is None else total + z
    return total / (len(mirrors) * len(networks))


def _exchanged(channels: int, swaps: Sequence[tuple[int, int]]) -> list[int]:
    order = list(range(channels))
    for a, b in swaps:
        order[a], order[b] = b, a
    return order


# --- from logits to classes on the output grid ------------------------------------------------------------------------


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

    Slice i lives in slot i % 2: its logits as rows of K numbers, one row for each voxel, and its class map.
    """

    def __init__(self, first: Tensor, shape: Sequence[int]) -> None:
        self.size, self.shape, self.device = first.shape[1:], shape, first.device
        self.rows = first.new_empty(2, first[0].numel(), len(first))
        self.best = first.new_empty(2, *self.size, dtype=torch.int16)
        axes = [_corners(n, new) for n, new in zip(self.size, shape)]
        self.index, self.weight = zip(*[(index.to(self.device), weight.to(self.device)) for index, weight in axes])
        self.cells: tuple[tuple[int, int] | None, Tensor] = None, self.best  # of which slices, `_agreed`

    def put(self, i: int, logits: Tensor) -> None:
        """Take in slice `i`, logits (K, h, w)."""
        self.rows[i % 2].copy_(logits.flatten(1).T)
        self.best[i % 2] = _winner(self.rows[i % 2]).view(self.size)

    def plane(self, low: int, high: int, share: float) -> np.ndarray:
        """(H, W) int16: the classes between the slices `low` and `high`, `share` of the way."""
        if self.cells[0] != (low, high):
            self.cells = (low, high), self._agreed(low, high)
        h, w = self.index
        plane = self.cells[1].index_select(1, w[0]).index_select(0, h[0])
        flat = plane.view(-1)
        for voxels in (flat == _OPEN).nonzero()[:, 0].split(_CHUNK):
            flat[voxels] = self._interpolated(voxels, low, high, share)
        return plane.cpu().numpy()

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
        """The classes of some voxels of the plane: all K logits, from the eight corners of the cell."""
        row, column = voxels // self.shape[1], voxels % self.shape[1]
        start = torch.tensor([low % 2, high % 2], device=self.device) * self.rows.shape[1]
        h, w = self.index[0][:, row] * self.size[1], self.index[1][:, column]
        index = start[:, None, None, None] + h[:, None] + w  # (2, 2, 2, N)
        part = torch.tensor([1 - share, share], device=self.device)
        weight = part[:, None, None, None] * self.weight[0][:, None, row] * self.weight[1][:, column]
        rows, (index, weight) = self.rows.flatten(0, 1), (x.reshape(8, -1).T.contiguous() for x in (index, weight))
        logits = F.embedding_bag(index, rows, per_sample_weights=weight, mode="sum")  # a weighted sum of rows
        return _winner(logits)


def _winner(rows: Tensor) -> Tensor:
    return rows.max(1).indices.to(torch.int16)  # the first maximum, as argmax gives it, but faster


def _smallest_type(values: np.ndarray) -> type:
    fits = (t for t in (np.uint8, np.int16) if np.iinfo(t).min <= values.min() and values.max() <= np.iinfo(t).max)
    return next(fits, np.int32)


def labels_from_slabs(
    slabs: Iterable[tuple[int, int, Tensor]],
    size: Sequence[int],
    shape: Sequence[int],
    *,
    to_class: np.ndarray | Sequence[int] | None = None,
) -> np.ndarray:
    """The argmax of the linearly interpolated logits on the grid `shape`: (D, H, W) uint8, or wider if values need it.

    slabs     `(start, stop, logits (K, stop - start, h, w))` that follow one another along D, as from `sliding_window`;
              finite numbers.
    size      (d, h, w): the grid of the logits.
    shape     (D, H, W): the output grid, finer or coarser, over the same extent (voxel edges coincide, as in
              `volume.resample` with order 1 or torch's `align_corners=False`).
    to_class  the value to write for each channel; None writes the channel's index.

    Linear interpolation is a convex combination of the eight corners of a cell. So where one class wins at all eight,
    it wins everywhere between them, and only the voxels of the other cells, a few percent of a usual segmentation, have
    their K logits interpolated. The answer is that of interpolating everything (but for ties within rounding), while at
    most two slices of logits are held beside the slab. Of equal classes the first wins.

    Raises ValueError if the slabs have gaps, do not fit `size`, or stop early.

    >>> ramp = torch.tensor([0.0, 3.0]).view(1, 1, 1, 2)
    >>> labels_from_slabs([(0, 1, torch.cat([0 * ramp + 1, ramp]))], (1, 1, 2), (1, 1, 6))
    array([[[0, 0, 0, 1, 1, 1]]], dtype=uint8)
    """
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
            layers = _Layers(logits[:, 0], shape[1:])
            values = np.arange(len(logits)) if to_class is None else np.asarray(to_class)
            if len(values) != len(logits):
                raise ValueError(f"to_class has {len(values)} values for {len(logits)} channels")
            values = values.astype(_smallest_type(values))
            out = np.empty(tuple(shape), values.dtype)
        for i in range(start, stop):
            if i in needed:
                layers.put(i, logits[:, i - start])
            while written < shape[0] and high[written] == i:
                plane = layers.plane(low[written], i, share[written])
                out[written] = plane if to_class is None else values[plane]
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
    **window: Any,
) -> np.ndarray:
    """Segment an image (C, d, h, w) onto the grid `shape`, in one stream from window to label: (D, H, W) integers.

    `window` are the keywords of `sliding_window` (`device` among them); `to_class` and `shape` are those of
    `labels_from_slabs`.

    >>> image = np.array([[-1.0, -1, 1, 1]]).reshape(1, 1, 1, 4)
    >>> segment(lambda x: torch.cat([-x, x], 1), image, (1, 1, 8), (1, 4), device="cpu").ravel()
    array([0, 0, 0, 0, 1, 1, 1, 1], dtype=uint8)
    """
    slabs = sliding_window(predict, image, patch_vox, **window)
    return labels_from_slabs(slabs, image.shape[1:], shape, to_class=to_class)
