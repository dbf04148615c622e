"""How much memory a prediction takes, and one message where there is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

GIB = 2**30

REMEDY = (
    "lower --set windows=1 or --set memory_gb, predict on --device cpu, close other programs, or "
    "train with a smaller patch_vox or coarser spacing_mm"
)
"""What to lower."""


def scan_gb(
    scan_vox: int, channels: int, classes: int, shape: Sequence[int], patch: Sequence[int]
) -> float:
    """About the memory of predicting a scan, without the networks, in gibibytes.

    The scan twice (as it was read, and as float32), the resampled image twice (before and after
    normalisation), a slab of logits twice, and label and confidence maps.

    Args:
        scan_vox: Voxels of the scan.
        channels: Channels of the scan.
        classes: Number of classes.
        shape: (D, H, W) of the resampled image.
        patch: Size of the sliding window, two or three numbers.

    Returns:
        Gibibytes.
    """
    depth = 1 if len(patch) == 2 else min(patch[0], shape[0])
    slab = classes * depth * prod(shape[1:]) * 4
    image = channels * prod(shape) * 4
    return (2 * channels * scan_vox * 4 + 2 * image + 2 * slab + 4 * scan_vox) / GIB


def windows_at_once(patch: Sequence[int], width: int, memory_gb: float) -> int:
    """How many sliding windows may go through a network at once.

    Args:
        patch: Size of the window.
        width: Channels of the network's first level, where most of its memory is.
        memory_gb: Memory that may be taken; 0 for as many as fill a processor.

    Returns:
        One or more.
    """
    fill = max(1, 2**18 // prod(patch))
    if not memory_gb:
        return fill
    each = prod(patch) * width * 4 * _LAYERS / GIB
    return max(1, min(fill, int(memory_gb / each)))


_LAYERS = 6
"""Layers of the first level that are in memory at once: inputs and outputs of two, and the skip."""
