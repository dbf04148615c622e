"""How much memory a prediction takes, and one message where there is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from contextseg.slabs import is_one_slab

GIB = 2**30

REMEDY = (
    "lower --set windows=1 or --set memory_gb, predict on --device cpu, close other programs, or "
    "train with a smaller patch_vox or coarser spacing_mm"
)
"""What to lower."""


def scan_gb(
    scan_vox: int,
    channels: int,
    classes: int,
    shape: Sequence[int],
    patch: Sequence[int],
    scan_bytes: int = 4,
    logit_bytes: int = 4,
) -> float:
    """About the memory of predicting a scan, without the networks, in gibibytes.

    The scan as it was read, the image before and after normalisation (of a large scan a slab of
    it), a slab of logits and what leaves it, label and confidence maps. `benchmarks/SCALE.md` has
    what was measured.

    Args:
        scan_vox: Voxels of the scan.
        channels: Channels of the scan.
        classes: Number of classes.
        shape: (D, H, W) of the resampled image.
        patch: Size of the sliding window, two or three numbers.
        scan_bytes: Bytes of a voxel as it was read.
        logit_bytes: Bytes of a logit in the slab.

    Returns:
        Gibibytes.
    """
    depth = _slab_depth(shape, patch)
    made = prod(shape) if is_one_slab(shape) else 2 * depth * prod(shape[1:])
    image = 2 * channels * made * 4
    slab = slab_gb(classes, shape, patch, logit_bytes)
    maps = 3 * scan_vox
    return slab + (channels * scan_vox * scan_bytes + image + maps) / GIB + _LEAVING_GB


def slab_gb(
    classes: int, shape: Sequence[int], patch: Sequence[int], logit_bytes: int = 4
) -> float:
    """Memory of the logits that are not finished yet, in gibibytes.

    Args:
        classes: Number of classes.
        shape: (D, H, W) of the resampled image.
        patch: Size of the sliding window, two or three numbers.
        logit_bytes: Bytes of a logit.

    Returns:
        Gibibytes.

    Example:
        >>> slab_gb(8, (256, 256, 256), (64, 64, 64))
        0.125
    """
    return classes * _slab_depth(shape, patch) * prod(shape[1:]) * logit_bytes / GIB


def _slab_depth(shape: Sequence[int], patch: Sequence[int]) -> int:
    return 1 if len(patch) == 2 else min(patch[0], shape[0])


def slab_home(
    slab: float, others: float, device: torch.device, memory_gb: float = 0.0
) -> tuple[torch.device, torch.dtype]:
    """Where the logits of windows are summed, and in which number type.

    On the device, in float32, where it has room. Else a GPU's are summed in the computer's memory,
    and where that has none, in float16, as nnU-Net sums all of them: half the memory, and errors of
    a thousandth of a logit.

    Args:
        slab: Gibibytes of the logits in float32.
        others: Gibibytes of what else a prediction needs in the computer's memory.
        device: Where the network runs.
        memory_gb: Gibibytes that a prediction may take; 0 for all of the computer's memory, in
            float32, and what is free of a GPU's.

    Returns:
        Device and number type.
    """
    if device.type == "cuda":
        free = memory_gb or torch.cuda.mem_get_info(device)[0] / GIB
        if slab <= free / 2:  # the windows take the rest
            return device, torch.float32
    fits = not memory_gb or slab + others <= memory_gb
    return torch.device("cpu"), torch.float32 if fits else torch.float16


def windows_at_once(patch: Sequence[int], memory_gb: float, each_gb: float) -> int:
    """How many sliding windows may go through a network at once.

    Args:
        patch: Size of the window.
        memory_gb: Memory that may be taken; 0 for as many as fill a processor.
        each_gb: Memory that one window takes (`activations.window_bytes`), in gibibytes.

    Returns:
        One or more.
    """
    fill = max(1, 2**18 // prod(patch))
    if not memory_gb:
        return fill
    return max(1, min(fill, int(memory_gb / each_gb)))


_LEAVING_GB = 0.125
"""Finished logits on their way to labels."""
