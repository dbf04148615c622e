"""A baseline for propagation: a small 2-D network trained on one scan's labelled slices alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.grids import label_type
from contextseg.losses import dice_ce
from contextseg.nets import UNet
from contextseg.propagation import Filled, LabelledSlices, cut_to_ranges
from contextseg.volume import Volume

_LONGEST = (
    192  # pixels of a slice's longer side; a larger slice is trained on, and predicted, smaller
)
_BATCH = 4


def train_and_fill(
    scan: Volume,
    labelled: LabelledSlices,
    steps: int = 300,
    seed: int = 0,
    ranges: Mapping[int, tuple[int, int]] | None = None,
) -> Filled:
    """Train a 2-D U-Net on the labelled slices of a scan, and predict the others.

    The network has 8 to 64 channels. It is trained on whole slices, at most 192 pixels long, in
    batches of at most four, by Dice and cross-entropy, with AdamW and a rate that falls from 0.003
    to 0 as a cosine. Each slice is rotated by up to 15 degrees, scaled by 0.85 to 1.15, shifted by
    up to a tenth, and its values scaled by 0.8 to 1.2. The network sees no other scan, and not
    where a slice lies.

    Args:
        scan: (C, D, H, W).
        labelled: The labelled slices, on the scan's grid.
        steps: Steps of the training.
        seed: The same seed gives the same labels on the same CPU.
        ranges: Class to the first and the last slice that may hold it, as in `propagation.fill`.

    Returns:
        The filled scan. Its confidence is as in propagation: the Dice to be expected if the
        probabilities were right.
    """
    image, numbers = _slices(scan, labelled.axis), sorted(labelled.slices)
    held = {int(k) for y in labelled.slices.values() for k in np.unique(y) if k > 0}
    values = np.array(sorted({0} | held), label_type(max(held, default=0), signed=True))
    labels = np.stack([labelled.slices[i] for i in numbers])
    index = np.where(labels == IGNORE, IGNORE, np.searchsorted(values, labels))
    shape = labels.shape[1:]
    size = [max(1, round(n * min(1.0, _LONGEST / max(shape)))) for n in shape]
    small = F.interpolate(image, size, mode="bilinear")
    target = F.interpolate(torch.from_numpy(index)[:, None].float(), size, mode="nearest")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _trained(small[numbers], target, len(values), steps)

    predicted = np.empty((len(image), *shape), values.dtype)
    confidence = np.empty(len(image), np.float32)
    for i in range(len(image)):
        predicted[i], confidence[i] = _predicted(net, small[i : i + 1], shape, values)
    cut_to_ranges(predicted, ranges or {})
    for i in numbers:
        predicted[i] = np.where(labelled.slices[i] == IGNORE, predicted[i], labelled.slices[i])
        confidence[i] = 1
    whole = np.ascontiguousarray(np.moveaxis(predicted, 0, labelled.axis))
    return Filled(scan.with_array(whole), confidence, labelled)


def _slices(scan: Volume, axis: int) -> Tensor:
    """(n, C, H, W) float32, each channel clipped at percentiles 0.5 and 99.5, then z-scored."""
    array: Any = np.moveaxis(scan.array, 1 + axis, 0).astype(np.float32)
    low, high = np.percentile(array, (0.5, 99.5), axis=(0, 2, 3), keepdims=True)
    array = np.clip(array, low, high)
    mean, sd = array.mean((0, 2, 3), keepdims=True), array.std((0, 2, 3), keepdims=True)
    return torch.from_numpy(((array - mean) / np.maximum(sd, 1e-6)).astype(np.float32))


def _trained(image: Tensor, target: Tensor, classes: int, steps: int) -> UNet:
    net = UNet(
        image.shape[1], classes, [8, 16, 32, 64], [[1, 1], *[[2, 2]] * 3], [[3, 3]] * 4, deep=False
    ).train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randperm(len(image))[:_BATCH]
        x, y = _augmented(image[chosen], target[chosen])
        loss = dice_ce(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def _augmented(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Image (B, C, H, W) and label (B, 1, H, W), rotated, scaled and shifted.

    The label comes back as (B, H, W), `IGNORE` beyond the slice.
    """
    n, (height, width) = len(x), x.shape[2:]
    angle = math.radians(15) * (2 * torch.rand(n) - 1)
    scale = 0.85 + 0.3 * torch.rand(n)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = 0.2 * (2 * torch.rand(n, 2) - 1)
    aspect = height / width  # the grid's units are half a side
    rows = [
        torch.stack([cos, -sin * aspect, shift[:, 0]], 1),
        torch.stack([sin / aspect, cos, shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, height, width], align_corners=False)
    scaled = x * (0.8 + 0.4 * torch.rand(n, 1, 1, 1))
    image = F.grid_sample(scaled, grid, padding_mode="border", align_corners=False)
    # sampled as label - IGNORE, so that the zeros beyond the slice are IGNORE
    label = F.grid_sample(y - IGNORE, grid, mode="nearest", align_corners=False) + IGNORE
    return image, label[:, 0].round().long()


@torch.inference_mode()
def _predicted(
    net: UNet, x: Tensor, size: tuple[int, ...], values: np.ndarray
) -> tuple[np.ndarray, float]:
    """One slice's labels (H, W), and the Dice to be expected of them."""
    p = F.interpolate(net(x).softmax(1), size, mode="bilinear")[0]
    best, k = p.max(0)
    inside = k > 0
    if not inside.any():
        return values[k.numpy()], float(p[0].mean())
    sizes = float(inside.sum() + (1 - p[0]).sum())
    return values[k.numpy()], 2 * float((best * inside).sum()) / sizes
