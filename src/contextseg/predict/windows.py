"""A network over a scan larger than its patch: sliding windows in, slabs of logits out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], Tensor]
"""(B, C, *S) float32 to logits (B, K, *S). The caller has put it into evaluation mode."""


_YIELDED = 1 << 22  # logits that leave at once: 16 MB


class Image(Protocol):
    """An image (C, D, H, W) of which parts are read: an array, or what makes slices as asked."""

    @property
    def ndim(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102
    def __getitem__(self, index: Any, /) -> Any: ...


def positions(size: int, patch: int, step: float = 0.5) -> list[int]:
    """Where sliding windows start along an axis (nnU-Net's rule; Isensee et al., 2021).

    Args:
        size: Voxels along the axis.
        patch: Voxels of the window.
        step: Largest distance of two windows, as a share of the patch.

    Returns:
        Starts that cover the axis evenly: the first is 0 and the last window ends at `size`.
        `size <= patch` gives [0].

    Raises:
        ValueError: `step` is outside (0, 1].

    Example:
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
    """The weight of each voxel of a sliding window: a Gaussian around voxel `patch // 2`.

    It is the same function as nnU-Net's filtered impulse. No weight is 0: where the Gaussian
    underflows, its smallest positive value stands.

    Args:
        patch_vox: Size of the window.
        sigma_vox: Standard deviation along each axis. None is an eighth of the patch.

    Returns:
        `patch_vox` float32; the largest weight is 1.

    Example:
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
    """One window along one axis.

    Windows form a grid and a Gaussian is a product. So the shares of three axes multiply to the
    window's weight, and no sum of weights need be kept.

    Attributes:
        start: First voxel that it covers.
        stop: Voxel after the last one.
        before: Zeros of padding ahead of the first voxel.
        share: (stop - start,): its Gaussian over the sum of all windows' Gaussians.
    """

    start: int
    stop: int
    before: int
    share: Tensor


_Window = tuple[_Span, _Span, _Span]


def _spans(size: int, patch: int, step: float) -> list[_Span]:
    """The windows along one axis."""
    if size <= patch:
        return [_Span(0, size, (patch - size) // 2, torch.ones(size))]
    bell = gaussian((patch,)).double()
    total = torch.zeros(size, dtype=torch.float64)
    starts = positions(size, patch, step)
    for start in starts:
        total[start : start + patch] += bell
    return [_Span(s, s + patch, 0, (bell / total[s : s + patch]).float()) for s in starts]


def _batches(
    size: Sequence[int], patch: Sequence[int], step: float, batch_size: int
) -> list[list[_Window]]:
    """All windows in the order of D, `batch_size` at a time.

    A patch of one slice is put on every slice.
    """
    if patch[0] == 1:
        depth = [_Span(i, i + 1, 0, torch.ones(1)) for i in range(size[0])]
    else:
        depth = _spans(size[0], patch[0], step)
    windows = list(product(depth, _spans(size[1], patch[1], step), _spans(size[2], patch[2], step)))
    return [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]


def _cut(image: Image, window: _Window, patch: Sequence[int]) -> Tensor:
    """(C, *patch) float32: the image inside a window, zeros around it where it is smaller."""
    d, h, w = (slice(s.start, s.stop) for s in window)
    part = image[:, d, h, w]
    if isinstance(part, np.ndarray):  # copied: it may be flipped, read-only or of any number type
        part = torch.from_numpy(np.array(part, np.float32, order="C"))
    zeros = [(s.before, p - (s.stop - s.start) - s.before) for s, p in zip(window, patch)]
    return F.pad(part.float(), [n for pair in reversed(zeros) for n in pair])


def sliding_window(
    predict: Network | Sequence[Network],
    image: Image,
    patch_vox: Sequence[int],
    *,
    device: torch.device | str,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
    swaps: Sequence[tuple[int, int]] = (),
    lateral_axis: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int], object] | None = None,
    slab_device: torch.device | str | None = None,
    slab_type: torch.dtype = torch.float32,
) -> Iterator[tuple[int, int, Tensor]]:
    """Predict an image patch by patch, and yield the logits slab by slab.

    The logits are the Gaussian-weighted mean of the windows. Slices are yielded as soon as no later
    window touches them, so that memory is that of K * patch D * H * W numbers, whatever D, and a
    few at a time. An image smaller than the patch is padded with zeros on both sides, and the
    logits are cropped.

    Args:
        predict: A network, or several: the mean of their logits. Mixed precision on CUDA only.
        image: (C, D, H, W): an array, a tensor, or what gives arrays when it is indexed.
        patch_vox: (D, H, W), or (H, W) for a 2-D network, which sees one slice at a time.
        device: Where the network runs.
        step: Distance of the windows, as a share of the patch.
        mirror_axes: Axes of (D, H, W): the mean over every combination of mirrors, 2^n predictions.
        swaps: Pairs of channels of which one is left and one right.
        lateral_axis: The axis from left to right. Where it is mirrored, the channels of each pair
            in `swaps` change places.
        batch_size: Windows per call of a network, across rows and slices.
        progress: Called with (windows done, windows in all) after each batch.
        slab_device: Where logits are summed that are not yielded yet. None for `device`.
        slab_type: Number type in which they are summed, such as float16 for half the memory.

    Yields:
        `(start, stop, logits)` for slices along D, in order; the logits (K, stop - start, H, W)
        float32 on `device`.

    Raises:
        ValueError: The axes or sizes do not fit the image, or a network changes the size of its
            input.

    Example:
        >>> image = np.arange(24.0).reshape(1, 2, 3, 4)
        >>> slabs = sliding_window(lambda x: x, image, (2, 2), device="cpu")
        >>> [(start, stop, logits.flatten()[0].item()) for start, stop, logits in slabs]
        [(0, 1, 0.0), (1, 2, 12.0)]
    """
    flat = len(patch_vox) == 2
    if image.ndim != 4 or len(patch_vox) not in (2, 3) or 0 in image.shape:
        raise ValueError(
            "give an image (C, D, H, W) and a patch of 2 or 3 sizes; "
            f"got {tuple(image.shape)}, {patch_vox}"
        )
    if not set(mirror_axes) <= set(range(flat, 3)):
        raise ValueError(
            f"mirror_axes are among {tuple(range(flat, 3))} here; got {tuple(mirror_axes)}"
        )
    networks = [predict] if callable(predict) else list(predict)
    mirrors = [axes for n in range(4) for axes in combinations(sorted(set(mirror_axes)), n)]

    def infer(x: Tensor) -> Tensor:  # (B, C, D, H, W) -> (B, K, D, H, W)
        z = _logits(networks, x[:, :, 0] if flat else x, mirrors, swaps, lateral_axis)
        return z[:, :, None] if flat else z

    patch = (1, *patch_vox) if flat else tuple(patch_vox)
    batches = _batches(image.shape[1:], patch, step, batch_size)
    home = (slab_device, slab_type)
    return _slabs(infer, image, patch, batches, device, progress, home)


def _slabs(
    infer: Network,
    image: Image,
    patch: Sequence[int],
    batches: Sequence[Sequence[_Window]],
    device: torch.device | str,
    progress: Callable[[int, int], object] | None,
    home: tuple[torch.device | str | None, torch.dtype],
) -> Iterator[tuple[int, int, Tensor]]:
    """What `sliding_window` yields, of windows in the order of D."""
    depth = max(batch[-1][0].stop - batch[0][0].start for batch in batches)
    total: Any = None  # (K, depth, H, W): the slices from `base` on
    base = 0
    done = 0
    windows = sum(map(len, batches))
    for batch in batches:
        finished = batch[0][0].start - base
        if finished > 0:
            yield from _pieces(total, base, finished, device, copy=True)
            _advance(total, finished)
            base += finished
        z = infer(torch.stack([_cut(image, window, patch) for window in batch]).to(device))
        if total is None:
            size = z.shape[1], depth, *image.shape[2:]
            total = torch.zeros(size, device=home[0] or z.device, dtype=home[1])
        for window, logits in zip(batch, z):
            _add(total, base, window, logits)
        done += len(batch)
        if progress is not None:
            progress(done, windows)
    yield from _pieces(total, base, image.shape[1] - base, device, copy=False)


def _pieces(
    total: Tensor, base: int, finished: int, device: torch.device | str, copy: bool
) -> Iterator[tuple[int, int, Tensor]]:
    """The first `finished` slices, which begin at slice `base`, as float32 and a few at a time."""
    step = max(1, _YIELDED // total[:, 0].numel())
    for start in range(0, finished, step):
        stop = min(start + step, finished)
        piece = total[:, start:stop]
        yield base + start, base + stop, piece.to(device, torch.float32, copy=copy)


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
    place = (
        slice(window[0].start - base, window[0].stop - base),
        *(slice(s.start, s.stop) for s in window[1:]),
    )
    weight = d[:, None, None] * h[:, None] * w
    if total.dtype == torch.float32:
        total[(slice(None), *place)].addcmul_(inside.to(total.device), weight)
    else:  # a weight alone may be too small for the type
        total[(slice(None), *place)] += (inside.to(total.device) * weight).to(total.dtype)


@torch.no_grad()
def _logits(
    networks: Sequence[Network],
    x: Tensor,
    mirrors: Sequence[tuple[int, ...]],
    swaps: Sequence[tuple[int, int]],
    lateral_axis: int | None,
) -> Tensor:
    """(B, K, *S) float32: the mean over networks and mirrors, each mirrored back."""
    total: Any = None
    for axes in mirrors:
        dims = [axis + x.ndim - 3 for axis in axes]
        for network in networks:
            with torch.autocast(x.device.type, enabled=x.is_cuda):
                z = network(x.flip(dims) if dims else x)
            if z.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"the network turned {tuple(x.shape)} into {tuple(z.shape)}: sizes must stay"
                )
            z = z.float()
            if dims:
                z = z.flip(dims)
            if lateral_axis in axes:
                z = z[:, _exchanged(z.shape[1], swaps)]
            total = z if total is None else total + z
    passes = len(mirrors) * len(networks)
    return total if passes == 1 else total / passes


def _exchanged(channels: int, swaps: Sequence[tuple[int, int]]) -> list[int]:
    """The order of channels in which each pair has changed places."""
    order = list(range(channels))
    for a, b in swaps:
        order[a], order[b] = b, a
    return order
