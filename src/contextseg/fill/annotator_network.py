"""A baseline for propagation: a small 2-D network that learns one scan's labelled slices, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.fill.filling import Filled
from contextseg.fill.slices import Partial, cut
from contextseg.losses import dice_ce
from contextseg.nets import UNet
from contextseg.volume import Volume

_LONGEST = 192  # pixels of a slice's longer side; a larger slice is learned, and predicted, smaller
_BATCH = 4


def from_slices(
    scan: Volume,
    given: Partial,
    steps: int = 300,
    seed: int = 0,
    ranges: Mapping[int, tuple[int, int]] | None = None,
) -> Filled:
    """Teach a U-Net (8 to 64 channels, 2-D) the labelled slices of this one scan, and predict the others.

    Whole slices, at most 192 pixels long, in batches of at most four; AdamW, its rate 0.003 falling to 0 as a cosine;
    Dice and cross-entropy; each slice turned up to 15 degrees, scaled by 0.85 to 1.15, shifted by up to a tenth and
    its values stretched by 0.8 to 1.2. It sees no other scan and not where a slice lies; `ranges` as those of
    `filling.fill`. The same seed gives the same labels on the same CPU. `Filled.confidence` is as in propagation: the
    Dice to be expected if its probabilities were right.
    """
    image, planes = _slices(scan, given.axis), sorted(given.slices)
    values = np.array(sorted({0} | {int(k) for y in given.slices.values() for k in np.unique(y) if k > 0}), np.int16)
    labels = np.stack([given.slices[i] for i in planes])
    index = np.where(labels == IGNORE, IGNORE, np.searchsorted(values, labels))
    size = [max(1, round(n * min(1.0, _LONGEST / max(labels.shape[1:])))) for n in labels.shape[1:]]
    small = F.interpolate(image, size, mode="bilinear")
    target = F.interpolate(torch.from_numpy(index)[:, None].float(), size, mode="nearest")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _taught(small[planes], target, len(values), steps)
    found, confidence = np.empty((len(image), *labels.shape[1:]), np.int16), np.empty(len(image), np.float32)
    for i in range(len(image)):
        found[i], confidence[i] = _predicted(net, small[i : i + 1], labels.shape[1:], values)
    cut(found, ranges or {})
    for i in planes:
        found[i] = np.where(given.slices[i] == IGNORE, found[i], given.slices[i])
        confidence[i] = 1
    whole = np.ascontiguousarray(np.moveaxis(found, 0, given.axis))
    return Filled(scan.with_array(whole), given.axis, confidence)


def _slices(scan: Volume, axis: int) -> Tensor:
    """(n, C, H, W) float32: each channel clipped at its 0.5 and 99.5 percentiles, then mean 0 and deviation 1."""
    array: Any = np.moveaxis(scan.array, 1 + axis, 0).astype(np.float32)
    low, high = np.percentile(array, (0.5, 99.5), axis=(0, 2, 3), keepdims=True)
    array = np.clip(array, low, high)
    mean, sd = array.mean((0, 2, 3), keepdims=True), array.std((0, 2, 3), keepdims=True)
    return torch.from_numpy(((array - mean) / np.maximum(sd, 1e-6)).astype(np.float32))


def _taught(image: Tensor, target: Tensor, classes: int, steps: int) -> UNet:
    net = UNet(image.shape[1], classes, [8, 16, 32, 64], [[1, 1], *[[2, 2]] * 3], [[3, 3]] * 4, deep=False).train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randperm(len(image))[:_BATCH]
        x, y = _moved(image[chosen], target[chosen])
        loss = dice_ce(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def _moved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Image (B, C, H, W) and label (B, 1, H, W), turned, scaled and shifted; the label (B, H, W), `IGNORE` beyond."""
    n, (height, width) = len(x), x.shape[2:]
    angle, scale = math.radians(15) * (2 * torch.rand(n) - 1), 0.85 + 0.3 * torch.rand(n)
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), 0.2 * (2 * torch.rand(n, 2) - 1)
    aspect = height / width  # the grid's units are half a side
    rows = [torch.stack([cos, -sin * aspect, shift[:, 0]], 1), torch.stack([sin / aspect, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, height, width], align_corners=False)
    stretched = x * (0.8 + 0.4 * torch.rand(n, 1, 1, 1))
    image = F.grid_sample(stretched, grid, padding_mode="border", align_corners=False)
    label = F.grid_sample(y - IGNORE, grid, mode="nearest", align_corners=False) + IGNORE  # zeros beyond are IGNORE
    return image, label[:, 0].round().long()


@torch.inference_mode()
def _predicted(net: UNet, x: Tensor, size: tuple[int, ...], values: np.ndarray) -> tuple[np.ndarray, float]:
    """One slice's labels (H, W), and the Dice that they promise."""
    p = F.interpolate(net(x).softmax(1), size, mode="bilinear")[0]
    best, k = p.max(0)
    inside = k > 0
    size_of_both = float(inside.sum() + (1 - p[0]).sum())
    sure = 2 * float((best * inside).sum()) / size_of_both if inside.any() else float(p[0].mean())
    return values[k.numpy()], sure
