"""Labelled slices of one structure, and their scan, as the channels that the network reads.

Shapes: B stacks, D slices of H x W pixels, K labelled slices. Distances are in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = (
    "image",
    "likelihood",
    "interpolated",
    "aligned",
    "labelled",
    "slices",
    "distance",
    "beyond",
    "others",
)
"""Channels by name: normalised intensity; log-likelihood ratio of the intensity in the labelled
slices; signed distance of the interpolated outlines, plain and aligned; 1 and -1 in labelled
slices; log of the distance to the nearest labelled slice, in slices and in pixels; whether that
lies on one side only; signed distance of other structures.
"""

REACH = 16.0
"""Signed distances are limited to so many pixels."""

_BINS = 24
_FAR = 1e6


def plane_distances(masks: Tensor) -> Tensor:
    """Exact distance to the outline, positive inside, within `REACH`.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, H, W) float32. An empty mask gives -REACH everywhere, a full one REACH.

    Example:
        >>> plane_distances(torch.tensor([[[True, True, False, False]]])).tolist()
        [[[1.5, 0.5, -0.5, -1.5]]]
    """
    inside = _squared(masks).sqrt() - 0.5  # to the nearest pixel of the mask
    outside = _squared(~masks).sqrt() - 0.5
    return torch.where(masks, outside, -inside).clamp(-REACH, REACH)


def _squared(masks: Tensor) -> Tensor:
    """Squared distance of each pixel to the nearest one of the mask, one axis after the other."""
    h, w = masks.shape[1:]
    along_h = torch.arange(h, device=masks.device, dtype=torch.float32)
    along_w = torch.arange(w, device=masks.device, dtype=torch.float32)
    apart_h = (along_h[:, None] - along_h).square()
    apart_w = (along_w[:, None] - along_w).square()
    cost = torch.where(masks, 0.0, _FAR)
    rows = (cost[:, :, :, None] + apart_w).amin(2)
    return (rows[:, :, None, :] + apart_h[:, :, None]).amin(1)


class Neighbours:
    """For every slice, the labelled slices below and above it.

    Args:
        index: Numbers of the labelled slices, (B, K), in any order; -1 for none.
        slices: D.

    Attributes:
        below: (B, D) place in K of the labelled slice at or below; the one above where there is
            none.
        above: (B, D) likewise.
        share: (B, D) float32, way from the one below (0) to the one above (1).
        nearest: (B, D) float32, slices to the nearest labelled one.
        beyond: (B, D) bool, whether there is one on one side only.
        labelled: (B, D) bool.
    """

    def __init__(self, index: Tensor, slices: int) -> None:
        at = torch.arange(slices, device=index.device)[None, :, None]
        one = index[:, None]
        lower = torch.where((one >= 0) & (one <= at), one, -1)
        upper = torch.where(one >= at, one, slices * 8)
        a, self.below = lower.max(2)
        b, self.above = upper.min(2)
        has_a, has_b = a >= 0, b < slices * 8
        self.below = torch.where(has_a, self.below, self.above)
        self.above = torch.where(has_b, self.above, self.below)
        place = at[:, :, 0]
        apart = (b - a).clamp(min=1)
        between = has_a & has_b
        self.share = torch.where(between, (place - a) / apart, 0.0)
        to_a = torch.where(has_a, place - a, slices)
        to_b = torch.where(has_b, b - place, slices)
        self.nearest = torch.minimum(to_a, to_b).float()
        self.beyond = ~between
        self.labelled = self.nearest == 0


def interpolate(distance: Tensor, masks: Tensor, near: Neighbours, aligned: bool = True) -> Tensor:
    """Signed distances of every slice, from those of the labelled slices beside it.

    Args:
        distance: (B, K, H, W), of `plane_distances`.
        masks: (B, K, H, W) bool.
        near: The labelled slices beside each slice.
        aligned: Whether outlines are first moved so that their centres meet on the straight line
            between them.

    Returns:
        (B, D, H, W). Beyond the outermost labelled slices, those of the nearest one.
    """
    lower, upper = _at(distance, near.below), _at(distance, near.above)
    empty = ~masks.flatten(2).any(2)
    top = distance.amax((2, 3))
    empty_a, empty_b = empty.gather(1, near.below), empty.gather(1, near.above)
    # beside an empty slice, a shape shrinks to nothing half way
    only_b, only_a = empty_a & ~empty_b, empty_b & ~empty_a
    lower = torch.where(only_b[..., None, None], -top.gather(1, near.above)[..., None, None], lower)
    upper = torch.where(only_a[..., None, None], -top.gather(1, near.below)[..., None, None], upper)
    share = near.share[..., None, None]
    if aligned:
        move = _centres(masks)
        move = move.gather(1, near.above[..., None].expand(-1, -1, 2)) - move.gather(
            1, near.below[..., None].expand(-1, -1, 2)
        )
        move = torch.where((empty_a | empty_b)[..., None], 0.0, move)
        lower = _moved(lower, -near.share[..., None] * move)
        upper = _moved(upper, (1 - near.share[..., None]) * move)
    return (1 - share) * lower + share * upper


def _at(values: Tensor, place: Tensor) -> Tensor:
    """(B, K, H, W) at places (B, D): (B, D, H, W)."""
    return values.gather(1, place[..., None, None].expand(-1, -1, *values.shape[2:]))


def _centres(masks: Tensor) -> Tensor:
    """Centroids (B, K, 2) of masks, (y, x) in pixels."""
    h, w = masks.shape[2:]
    size = masks.sum((2, 3)).clamp(min=1)
    y = (masks.sum(3) * torch.arange(h, device=masks.device)).sum(2) / size
    x = (masks.sum(2) * torch.arange(w, device=masks.device)).sum(2) / size
    return torch.stack([y, x], 2)


def _moved(planes: Tensor, offset: Tensor) -> Tensor:
    """Planes (B, D, H, W) read at an offset (B, D, 2) of pixels (y, x)."""
    b, d, h, w = planes.shape
    y = torch.arange(h, device=planes.device) + offset[..., :1]
    x = torch.arange(w, device=planes.device) + offset[..., 1:]
    y, x = (2 * y / (h - 1) - 1).flatten(0, 1), (2 * x / (w - 1) - 1).flatten(0, 1)
    grid = torch.stack([x[:, None, :].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)], 3)
    moved = F.grid_sample(
        planes.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=True
    )
    return moved[:, 0].unflatten(0, (b, d))


def likelihood(image: Tensor, masks: Tensor, distance: Tensor, index: Tensor) -> Tensor:
    """How much likelier an intensity is inside the structure than near it.

    Args:
        image: (B, D, H, W), normalised.
        masks: (B, K, H, W) bool.
        distance: (B, K, H, W), of `plane_distances`.
        index: (B, K), as for `Neighbours`.

    Returns:
        (B, D, H, W): the logarithm of the ratio of both histograms, within -3 and 3.
    """
    smooth = F.avg_pool3d(image[:, None], (1, 3, 3), 1, (0, 1, 1))[:, 0]
    bins = ((smooth + 3) * (_BINS / 6)).long().clamp(0, _BINS - 1)
    drawn = _at(bins, index.clamp(min=0)).flatten(1)
    known = (index >= 0)[..., None, None]
    ratio = []
    for part in (masks & known, ~masks & (distance > -12) & known):
        weight = part.flatten(1).float()
        histogram = torch.zeros(len(image), _BINS, device=image.device)
        histogram.scatter_add_(1, drawn, weight)
        spread = F.pad(histogram[:, None], (2, 2), "replicate").unfold(2, 5, 1)[:, 0]
        kernel = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1], device=image.device)
        histogram = (spread * kernel).sum(2)
        share = histogram / histogram.sum(1, keepdim=True).clamp(min=1)
        ratio.append((share + 0.01).log())
    table = (ratio[0] - ratio[1]).clamp(-3, 3)
    return table.gather(1, bins.flatten(1)).view_as(image)


def features(
    image: Tensor,
    masks: Tensor,
    index: Tensor,
    thickness: Tensor,
    others: Tensor | None = None,
    shapes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the network reads.

    Args:
        image: (B, D, H, W) float32, normalised by `normalised`.
        masks: The structure in the labelled slices, (B, K, H, W) bool.
        index: Numbers of these slices, (B, K); -1 for none.
        thickness: Distance from one slice to the next in pixels, (B,).
        others: Other structures in these slices, (B, K, H, W) bool. None: not known.
        shapes: Signed distances of better interpolated outlines in pixels, (B, D, H, W), NaN where
            there are none; they take the place of the aligned ones.

    Returns:
        Features (B, len(CHANNELS), D, H, W), and the log-odds of the interpolated shapes (B, D, H,
        W), both float32.
    """
    d = image.shape[1]
    masks = masks & (index >= 0)[..., None, None]
    near = Neighbours(index, d)
    distance = plane_distances(masks.flatten(0, 1)).unflatten(0, masks.shape[:2])
    plain = interpolate(distance, masks, near, aligned=False)
    aligned = interpolate(distance, masks, near)
    if shapes is not None:
        aligned = torch.where(shapes.isnan(), aligned, shapes.clamp(-REACH, REACH))
    drawn = _at(masks.float() * 2 - 1, near.below) * near.labelled[..., None, None]
    pixels = near.nearest * thickness[:, None]
    if others is None:
        other = torch.full_like(image, -1.0)
    else:
        others = others & (index >= 0)[..., None, None]
        apart = plane_distances(others.flatten(0, 1)).unflatten(0, masks.shape[:2])
        other = interpolate(apart, others, near) / 8
    whole = (slice(None), slice(None), None, None)
    planes = [
        image,
        likelihood(image, masks, distance, index),
        plain / 8,
        aligned / 8,
        drawn,
        near.nearest.log1p()[whole].expand_as(image) / 2,
        pixels.log1p()[whole].expand_as(image) / 2,
        near.beyond.float()[whole].expand_as(image),
        other.clamp(-1, 1),
    ]
    prior = (2 * aligned / (1 + 0.3 * pixels[whole])).clamp(-6, 6)
    return torch.stack(planes, 1), prior


def normalised(image: Tensor, inside: Tensor) -> Tensor:
    """Zero mean and unit deviation inside the scan, 0 outside; within -4 and 4.

    Args:
        image: (B, D, H, W).
        inside: (B, D, H, W) bool, whether the scan reaches there.

    Returns:
        (B, D, H, W) float32.
    """
    image = image.float()
    count = inside.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = (image * inside).sum((1, 2, 3), keepdim=True) / count
    centred = (image - mean) * inside
    spread = (centred.square().sum((1, 2, 3), keepdim=True) / count).sqrt()
    return (centred / spread.clamp(min=1e-6)).clamp(-4, 4)
