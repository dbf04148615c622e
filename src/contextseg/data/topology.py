"""The shape of a network: its levels, the memory that training takes, the largest patch that fits.

The rules are nnU-Net's (Isensee et al., Nature Methods 2021), but memory is counted in gibibytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def topology(
    patch: Sequence[int] | np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    max_levels: int = 7,
    smallest: int = 4,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """The strides and kernels of a network's levels (nnU-Net's rule).

    Each level halves the axes along which `smallest` voxels remain. An axis waits, and its kernel
    is 1, while its voxels are twice as long as the finest that can be halved. A kernel that has
    become 3 stays 3.

    Args:
        patch: Number of voxels along each axis.
        spacing_mm: Spacing along each axis.
        max_levels: Largest number of levels.
        smallest: Fewest voxels along an axis after halving.

    Returns:
        (strides, kernels), each with one entry for each level, full resolution first.

    Example:
        >>> topology((32, 32, 32), (4, 4, 4))[0]
        ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    size = np.array(patch)
    spacing = np.array(spacing_mm, float)
    step = np.ones(len(size), int)
    kernel = np.ones(len(size), int)
    strides = []
    kernels = []
    while True:
        size = size // step
        spacing = spacing * step
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
    """Estimate the memory of one float32 training step of a plain U-Net.

    A block (convolution, norm, activation) keeps three maps for its gradient. Two blocks on the way
    down, and two on the way up with their joined input, make 14 maps a level; the lowest has 6. The
    backward pass works on eight maps of the top level at once, and the loss on eight numbers for
    each class and voxel. Weights exist four times (value, gradient, momentum, workspace). The
    estimate is within a quarter of the peaks that we measured on a CPU.

    Args:
        patch: Number of voxels along each axis.
        batch: Number of items in a batch.
        classes: Number of classes with the background.
        widths: Number of channels of each level.
        strides: Strides of each level.
        kernels: Kernels of each level.

    Returns:
        Gibibytes.
    """
    size = np.array(patch, float)
    maps = 0.0
    weights = 0.0
    before = 1
    for level, (width, stride, kernel) in enumerate(zip(widths, strides, kernels)):
        lowest = level == len(widths) - 1
        size = np.ceil(size / stride)
        maps += size.prod() * width * (6 if lowest else 14)
        convolutions = np.prod(kernel) * (before + (1 if lowest else 4) * width) * width
        weights += convolutions + np.prod(stride) * before * width
        before = width
    top = float(np.prod(patch)) * 8 * (widths[0] + classes)
    return float(4 * (batch * (maps + top) + 4 * weights) / 2**30)


def largest_patch(
    median_shape: np.ndarray,
    spacing_mm: np.ndarray,
    fits: Callable[[tuple[int, ...]], bool],
    smallest: int = 16,
) -> tuple[int, ...] | None:
    """The largest patch that fits, with equal extents in mm, none beyond the median case.

    Patches are tried from small to large. Each side is a multiple of the network's stride along it,
    so that it may exceed the median case by half a stride.

    Args:
        median_shape: Number of voxels of the median case along each axis.
        spacing_mm: Spacing along each axis.
        fits: Whether a patch fits into memory.
        smallest: Side of the first patch that is tried, in voxels of the finest axis.

    Returns:
        Number of voxels along each axis; None if not even the smallest patch fits.
    """
    best = None
    largest_mm = 2 * (median_shape * spacing_mm).max()
    for extent in np.geomspace(smallest * spacing_mm.min(), largest_mm, 200):
        side = np.minimum(np.rint(extent / spacing_mm), median_shape).astype(int).clip(1)
        stride = np.prod(topology(side, spacing_mm)[0], axis=0)
        patch = tuple(((side + stride // 2) // stride * stride).tolist())
        if best is None or np.prod(patch) > np.prod(best):
            if not fits(patch):
                break
            best = patch
    return best
