"""The shape of a network: levels for a patch, the memory that training takes, and the largest patch that fits.

nnU-Net's rules (Isensee et al., Nature Methods 2021), but that memory is counted in gibibytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def topology(
    patch: Sequence[int] | np.ndarray, spacing_mm: Sequence[float] | np.ndarray, max_levels: int = 7, smallest: int = 4
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """(strides, kernels) of each level: halve each axis while `smallest` voxels remain, finest spacings first.

    An axis waits, and its kernel is 1, while its voxels are twice as long as the finest that can be halved; a kernel
    that has become 3 stays 3. nnU-Net's rule.

    >>> topology((32, 32, 32), (4, 4, 4))[0]
    ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    size, spacing = np.array(patch), np.array(spacing_mm, float)
    step, kernel = np.ones(len(size), int), np.ones(len(size), int)
    strides, kernels = [], []
    while True:
        size, spacing = size // step, spacing * step
        kernel[spacing < 2 * spacing.min()] = 3
        strides.append(tuple(step.tolist()))
        kernels.append(tuple(kernel.tolist()))
        large = size >= 2 * smallest
        if len(strides) == max_levels or not large.any():
            return tuple(strides), tuple(kernels)
        step = np.where(large & (spacing < 2 * spacing[large].min()), 2, 1)


def training_gb(
    patch: Sequence[int],
    batch: int,
    classes: int,
    widths: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
) -> float:
    """Gibibytes that one float32 training step of a plain U-Net takes, near enough to plan by.

    A block (convolution, norm, activation) keeps three maps for its gradient: two blocks on the way down and two on the
    way up with their joined input make 14 maps a level, the lowest has 6. The backward pass works on eight maps of the
    top level at once, the loss on eight numbers for each class and voxel; weights are there four times (value,
    gradient, momentum, workspace). Within a quarter of the peaks that we measured on a CPU.
    """
    size, maps, weights, before = np.array(patch, float), 0.0, 0.0, 1
    for level, (width, stride, kernel) in enumerate(zip(widths, strides, kernels)):
        lowest = level == len(widths) - 1
        size = np.ceil(size / stride)
        maps += size.prod() * width * (6 if lowest else 14)
        weights += np.prod(kernel) * (before + (1 if lowest else 4) * width) * width + np.prod(stride) * before * width
        before = width
    top = float(np.prod(patch)) * 8 * (widths[0] + classes)
    return float(4 * (batch * (maps + top) + 4 * weights) / 2**30)


def largest_patch(
    median_shape: np.ndarray, spacing_mm: np.ndarray, fits: Callable[[tuple[int, ...]], bool], smallest: int = 16
) -> tuple[int, ...] | None:
    """The largest patch that `fits`, with equal extents in mm, but none beyond the median case.

    Grown from small to large; each side is a multiple of the network's stride along it, which is why it may be half a
    stride beyond. None if not even the smallest fits.
    """
    best = None
    for extent in np.geomspace(smallest * spacing_mm.min(), 2 * (median_shape * spacing_mm).max(), 200):
        side = np.minimum(np.rint(extent / spacing_mm), median_shape).astype(int).clip(1)
        stride = np.prod(topology(side, spacing_mm)[0], axis=0)
        patch = tuple(((side + stride // 2) // stride * stride).tolist())
        if best is None or np.prod(patch) > np.prod(best):
            if not fits(patch):
                break
            best = patch
    return best
