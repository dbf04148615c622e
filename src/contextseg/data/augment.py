"""Augmentation: drawn, then applied.

`draw` decides with a numpy generator what happens to one item and returns numbers only, so that
batch n is a function of (seed, n). `source_vox` gives the size of the box that must be read for it.
`apply` does it, in torch, on the tensors' device.

The defaults are nnU-Net v2's (Isensee et al., Nature Methods 2021): the same effects, order,
probabilities and ranges. Different here: rotations are in millimetres; a rotated patch has no empty
corners, since the box to read is computed; labels take the nearest voxel, so that no class is
blended and `IGNORE` stays where it was; a mirror between left and right can exchange pairs of
classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError

Range = tuple[float, float]

# A patch this many times wider than its thinnest axis is rotated and scaled in its plane only.
_FLAT = 3
_OBLONG = 1.5  # a 2-D patch of a larger aspect is rotated a little only


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a patch: probabilities (`p_`, for each item), and ranges to draw from.

    Raises `ContextsegError` for a negative number, a probability over 1, or an empty range.

    Attributes:
        strength: 0 leaves every patch as it is, bit for bit; 1 is nnU-Net v2. It multiplies
            probabilities, angles, noise and blur, and is the exponent of the ranges of factors.
        p_rotation: Probability of a rotation.
        rotation_deg: 3-D: the largest angle about each axis.
        rotation_2d_deg: The largest angle in 2-D, and of 3-D patches over 3 times wider than thick,
            which are rotated in their plane only.
        rotation_oblong_deg: The largest angle of 2-D patches whose aspect is over 1.5.
        p_scale: Probability of a scaling.
        scale: Millimetres shown for each millimetre of the patch; above 1, things look smaller.
        p_noise: Probability of Gaussian noise.
        noise_sd: Its standard deviation, one field for all channels. Images are normalised to unit
            variance.
        p_blur: Probability of a Gaussian blur.
        p_blur_channel: Probability that a channel is blurred, given a blur.
        blur_vox: Its sigma, drawn for each channel and axis.
        p_brightness: Probability of another brightness.
        brightness: Factor on the values.
        p_contrast: Probability of another contrast.
        contrast: Factor on the distance from the mean; values are clipped to the old range.
        p_low_resolution: Probability of a lower resolution.
        p_low_resolution_channel: Probability that a channel has it, given one.
        low_resolution: Factor on the number of voxels along each axis.
        p_gamma_inverted: Probability of a gamma transform of the negative.
        p_gamma: Probability of a gamma transform.
        gamma: Its exponent; mean and standard deviation are kept.
        mirror: Axes D, H, W, each mirrored half the time; a 2-D patch uses the last two.
    """

    strength: float = 1.0
    p_rotation: float = 0.2
    rotation_deg: float = 30.0
    rotation_2d_deg: float = 180.0
    rotation_oblong_deg: float = 15.0
    p_scale: float = 0.2
    scale: Range = (0.7, 1.4)
    p_noise: float = 0.1
    noise_sd: Range = (0.0, 0.1)
    p_blur: float = 0.2
    p_blur_channel: float = 0.5
    blur_vox: Range = (0.5, 1.0)
    p_brightness: float = 0.15
    brightness: Range = (0.75, 1.25)
    p_contrast: float = 0.15
    contrast: Range = (0.75, 1.25)
    p_low_resolution: float = 0.25
    p_low_resolution_channel: float = 0.5
    low_resolution: Range = (0.5, 1.0)
    p_gamma_inverted: float = 0.1
    p_gamma: float = 0.3
    gamma: Range = (0.7, 1.5)
    mirror: tuple[bool, bool, bool] = (True, True, True)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            fits, wanted = _fits(field.name, value, isinstance(field.default, tuple))
            if not fits:
                where = f"augmentation setting {field.name}"
                raise ContextsegError(where, f"{value!r} cannot be used", f"give {wanted}")


def _fits(name: str, value: Any, several: bool) -> tuple[bool, str]:
    """Whether a setting can have this value, and what it may be."""
    if several != isinstance(value, tuple | list):
        return False, "several numbers" if several else "one number"
    if name == "mirror":
        return len(value) == 3, "true or false for each of D, H and W"
    if several:
        lowest = 0 if name in ("noise_sd", "blur_vox") else 1e-6
        fits = len(value) == 2 and lowest <= value[0] <= value[1] < math.inf
        return fits, f"two numbers from {lowest} up, the smaller first"
    most = 1 if name.startswith("p_") else 360
    return 0 <= value <= most, f"a number from 0 to {most}"


@dataclass(frozen=True)
class Draw:
    """What happens to one item, in numbers.

    Sequences have one entry for each channel. 0 (`noise_sd`, `blur_vox`) and 1 (the factors) stand
    for nothing.

    Attributes:
        matrix: Maps a voxel's offset from the patch's centre to its offset from the source's
            centre, both in voxels; None where nothing is rotated or scaled.
        mirror: Whether each axis of the patch is mirrored.
        noise_sd: Standard deviation of the noise.
        noise_seed: Seed of the noise.
        blur_vox: Sigma along each axis.
        brightness: Factor on the values.
        contrast: Factor on the distance from the mean.
        low_resolution: Factor on the number of voxels along each axis.
        gamma_inverted: Exponent on the negative.
        gamma: Exponent.
    """

    matrix: tuple[tuple[float, ...], ...] | None
    mirror: tuple[bool, ...]
    noise_sd: float
    noise_seed: int
    blur_vox: tuple[tuple[float, ...], ...]
    brightness: tuple[float, ...]
    contrast: tuple[float, ...]
    low_resolution: tuple[float, ...]
    gamma_inverted: tuple[float, ...]
    gamma: tuple[float, ...]


# --- draw -----------------------------------------------------------------------------------------


def draw(
    settings: Augmentation,
    rng: np.random.Generator,
    patch_vox: Sequence[int],
    channels: int,
    spacing_mm: Sequence[float] | None = None,
) -> Draw:
    """Decide what happens to one item.

    The same amount is taken from `rng` whatever the settings, so that changing one of them changes
    nothing else.

    Args:
        settings: What may happen.
        rng: Source of randomness.
        patch_vox: Size of the patch, (D, H, W) or (H, W).
        channels: Number of channels.
        spacing_mm: Spacing of the patch's voxels. None takes them for cubes, as nnU-Net does.

    Returns:
        What happens.

    Example:
        >>> d = draw(Augmentation(strength=0), np.random.default_rng(0), (8, 8, 8), channels=1)
        >>> d.matrix, d.mirror, d.noise_sd, d.gamma
        (None, (False, False, False), 0.0, (1.0,))
    """
    s = settings.strength
    dims = len(patch_vox)
    matrix = _matrix(settings, rng, patch_vox, spacing_mm or [1.0] * dims)
    mirror = rng.random(dims) < 0.5 * min(s, 1)
    allowed = settings.mirror[3 - dims :]
    noisy = rng.random() < settings.p_noise * s
    noise_sd = s * rng.uniform(*settings.noise_sd)
    noise_seed = int(rng.integers(2**63))
    some_blur = rng.random() < settings.p_blur * s
    blurred = some_blur & (rng.random((channels, 1)) < settings.p_blur_channel)
    blur_vox = np.where(blurred, s * rng.uniform(*settings.blur_vox, (channels, dims)), 0.0)

    def factors(p: float, reach: Range, p_channel: float = 1.0) -> tuple[float, ...]:
        return _factors(rng, channels, p * s, reach, s, p_channel)

    # The order of the fields is that of the random numbers.
    return Draw(
        matrix=matrix,
        mirror=tuple(bool(m and may) for m, may in zip(mirror, allowed)),
        noise_sd=noise_sd if noisy else 0.0,
        noise_seed=noise_seed,
        blur_vox=tuple(tuple(row) for row in blur_vox.tolist()),
        brightness=factors(settings.p_brightness, settings.brightness),
        contrast=factors(settings.p_contrast, settings.contrast),
        low_resolution=factors(
            settings.p_low_resolution, settings.low_resolution, settings.p_low_resolution_channel
        ),
        gamma_inverted=factors(settings.p_gamma_inverted, settings.gamma),
        gamma=factors(settings.p_gamma, settings.gamma),
    )


def _factors(
    rng: np.random.Generator,
    channels: int,
    p: float,
    reach: Range,
    strength: float,
    p_channel: float = 1.0,
) -> tuple[float, ...]:
    """One factor for each channel, 1 where nothing happens.

    A range around 1 is drawn below and above equally often.
    """
    low, high = (end**strength for end in reach)
    happens = (rng.random() < p) & (rng.random(channels) < p_channel)
    below, share = rng.random(channels) < 0.5, rng.random(channels)
    if low < 1 < high:
        value = np.where(below, low + (1 - low) * share, 1 + (high - 1) * share)
    else:
        value = low + (high - low) * share
    return tuple(np.where(happens, value, 1.0).tolist())


def _flat_axis(patch_vox: Sequence[int]) -> int | None:
    """The thin axis of a flat 3-D patch, where nnU-Net says "dummy 2-D"; else None."""
    flat = len(patch_vox) == 3 and max(patch_vox) > _FLAT * min(patch_vox)
    return int(np.argmin(patch_vox)) if flat else None


def _matrix(
    settings: Augmentation,
    rng: np.random.Generator,
    patch_vox: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[tuple[float, ...], ...] | None:
    """The matrix of a `Draw`."""
    dims = len(patch_vox)
    flat = _flat_axis(patch_vox)
    strength = settings.strength
    rotated, scaled = rng.random(2) < np.array([settings.p_rotation, settings.p_scale]) * strength
    share = 2 * rng.random(3) - 1
    low, high = (end**strength for end in settings.scale)
    scale = low + (high - low) * rng.random()
    if not (rotated or scaled):
        return None
    most = settings.rotation_2d_deg
    if dims == 3 and flat is None:
        most = settings.rotation_deg
    elif dims == 2 and max(patch_vox) > _OBLONG * min(patch_vox):
        most = settings.rotation_oblong_deg
    angles = np.deg2rad(min(most * strength, 180)) * share
    planes = [(1, 2), (0, 2), (0, 1)] if dims == 3 else [(0, 1)]
    matrix: Any = np.eye(dims)
    for axis, (plane, angle) in enumerate(zip(planes, angles)):
        if rotated and flat in (None, axis):
            matrix = matrix @ _rotation(dims, plane, angle)
    mm = np.array(spacing_mm, dtype=float)
    matrix = matrix * mm / mm[:, None]
    if scaled:
        matrix[[axis for axis in range(dims) if axis != flat]] *= scale
    return tuple(tuple(row) for row in matrix.tolist())


def _rotation(dims: int, plane: tuple[int, int], angle: float) -> np.ndarray:
    rotation = np.eye(dims)
    rotation[np.ix_(plane, plane)] = [
        [math.cos(angle), -math.sin(angle)],
        [math.sin(angle), math.cos(angle)],
    ]
    return rotation


def source_vox(d: Draw, patch_vox: Sequence[int]) -> tuple[int, ...]:
    """The size of the box to read, around the patch's centre, so that no voxel is missing.

    Args:
        d: What happens to the item.
        patch_vox: Size of the patch.

    Returns:
        The smallest size whose outermost voxel centres enclose the patch's; `patch_vox` where
        nothing is rotated or scaled.
    """
    if d.matrix is None:
        return tuple(patch_vox)
    half = np.abs(d.matrix) @ (np.array(patch_vox) - 1) / 2
    return tuple(math.ceil(2 * h + 1 - 1e-6) for h in half)


# --- apply ----------------------------------------------------------------------------------------


def apply(
    draws: Sequence[Draw],
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    patch_vox: Sequence[int],
    swaps: Sequence[tuple[int, int]] = (),
    lateral_axis: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what was drawn to each item.

    Repeats are equal bit for bit on a CPU; on a GPU the noise is another.

    Args:
        draws: What happens to each of B items.
        images: Each image (C, *source), of `source_vox` voxels. Channels after those that were
            drawn for are maps of the voxels: they move with the image, and their values stay.
        labels: Each label (*source).
        patch_vox: Size of the patch.
        swaps: Pairs of classes that are each other's mirror image (left and right kidney). A mirror
            along `lateral_axis` exchanges them in the label; `swap_annotated` does so in
            `Batch.annotated`.
        lateral_axis: The patch's axis from left to right: the last in "SAR", -1 where there is none
            (2-D sagittal slices). Where there are pairs and it is None, nothing is mirrored.

    Returns:
        New tensors on the same device, (B, C, *patch) float32 and (B, *patch) int64. Outside the
        source lies 0 in the image and `IGNORE` in the label.

    Raises:
        ValueError: There is no item, or an item's shape is not the one that its draw needs.
    """
    if not len(draws) == len(images) == len(labels) > 0:
        what = f"{len(draws)} draws for {len(images)} images and {len(labels)} labels"
        raise ValueError(f"{what}; give one or more of each")
    device = images[0].device
    x = torch.empty((len(images), len(images[0]), *patch_vox), dtype=torch.float32, device=device)
    y = torch.empty((len(labels), *patch_vox), dtype=torch.int64, device=device)
    for d, image, label, x_item, y_item in zip(draws, images, labels, x, y):
        _check_item(d, image, label, source_vox(d, patch_vox))
        if d.matrix is not None:
            image, label = _sampled(d.matrix, image, label, patch_vox)
        axes = _mirrored(d, swaps, lateral_axis)
        x_item.copy_(image.flip([axis + 1 for axis in axes]))
        y_item.copy_(label.flip(axes))
        if lateral_axis in axes:
            _swap(y_item, swaps)
        _change_values(d, x_item[: len(d.gamma)])
    return x, y


def _check_item(d: Draw, image: Tensor, label: Tensor, source: tuple[int, ...]) -> None:
    """Raise ValueError for an item whose shape is not the one that its draw needs."""
    shapes = (tuple(image.shape[1:]), tuple(label.shape))
    if shapes != (source, source) or len(image) < len(d.gamma):
        what = f"image {tuple(image.shape)} and label {tuple(label.shape)}"
        needed = f"{len(d.gamma)} channels and a box of {source} voxels"
        raise ValueError(f"{what}, but the draw is for {needed}")


def swap_annotated(
    draws: Sequence[Draw],
    annotated: Tensor,
    swaps: Sequence[tuple[int, int]],
    lateral_axis: int | None,
) -> Tensor:
    """Exchange pairs of classes in `annotated` where `apply` exchanges left and right.

    A case in which only the right kidney was annotated is, mirrored, one in which only the left one
    was.

    Args:
        draws: What happens to each of B items.
        annotated: Whether each class was annotated, (B, K) bool.
        swaps: As in `apply`.
        lateral_axis: As in `apply`.

    Returns:
        A new tensor, (B, K) bool.
    """
    annotated = annotated.clone()
    for d, row in zip(draws, annotated):
        if lateral_axis in _mirrored(d, swaps, lateral_axis):
            for a, b in swaps:
                row[[a, b]] = row[[b, a]]
    return annotated


def _mirrored(d: Draw, swaps: Sequence[tuple[int, int]], lateral_axis: int | None) -> list[int]:
    """The patch's axes to mirror: none where the one that exchanges left and right is unknown."""
    if swaps and lateral_axis is None:
        return []
    return [axis for axis, mirrored in enumerate(d.mirror) if mirrored]


def _swap(label: Tensor, swaps: Sequence[tuple[int, int]]) -> None:
    for a, b in swaps:
        is_a, is_b = label == a, label == b
        label.masked_fill_(is_a, b).masked_fill_(is_b, a)


def _sampled(
    matrix: Sequence[Sequence[float]], image: Tensor, label: Tensor, patch_vox: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The patch (C, *patch), linear, and its label (*patch), nearest, sampled through `matrix`."""
    offsets = np.array(matrix)
    alone = [
        offsets[a, a] == 1 and np.count_nonzero(offsets[a]) + np.count_nonzero(offsets[:, a]) == 2
        for a in range(len(offsets))
    ]
    shifted = label.to(torch.float32) - IGNORE  # outside, where grid_sample gives 0, is IGNORE
    if len(offsets) == 3 and any(alone):
        # In plane: the slices are channels of a 2-D image, which is several times faster.
        axis = alone.index(True)
        rest = [a for a in range(3) if a != axis]
        slices = image.movedim(axis + 1, 1)
        plane = [patch_vox[a] for a in rest]
        grid = _grid(offsets[np.ix_(rest, rest)], slices.shape[2:], plane, image.device)
        flat = _sample(slices.flatten(0, 1), grid, "bilinear")
        out = flat.unflatten(0, slices.shape[:2]).movedim(1, axis + 1)
        out_label = _sample(shifted.movedim(axis, 0), grid, "nearest").movedim(0, axis)
    else:
        grid = _grid(offsets, label.shape, patch_vox, image.device)
        out = _sample(image, grid, "bilinear")
        out_label = _sample(shifted[None], grid, "nearest")[0]
    return out, out_label.to(torch.int64) + IGNORE


def _sample(x: Tensor, grid: Tensor, mode: str) -> Tensor:
    return F.grid_sample(x[None].to(torch.float32), grid[None], mode=mode, align_corners=False)[0]


def _grid(
    matrix: np.ndarray, source: Sequence[int], patch_vox: Sequence[int], device: torch.device
) -> Tensor:
    """(*patch, dims): where `grid_sample` samples, the last axis first.

    One sum, which takes a quarter of `affine_grid`'s time.
    """
    dims = len(patch_vox)
    grid = torch.zeros(dims, device=device)
    for axis, n in enumerate(patch_vox):
        steps = [2 * matrix[i, axis] / source[i] for i in reversed(range(dims))]
        step = torch.tensor(steps, dtype=torch.float32)
        offset = torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2
        grid = grid + (offset[:, None] * step.to(device)).view(n, *[1] * (dims - 1 - axis), dims)
    return grid


def _change_values(d: Draw, x: Tensor) -> None:
    """Change the values of x (C, *S) in place, by all effects in nnU-Net's order."""
    if d.noise_sd:
        noise = torch.Generator(x.device).manual_seed(d.noise_seed)
        x.add_(torch.randn(x.shape[1:], generator=noise, device=x.device), alpha=d.noise_sd)
    for c, channel in enumerate(x):
        for axis, sigma in enumerate(d.blur_vox[c]):
            if sigma:
                channel.copy_(_blurred(channel, axis, sigma))
        if d.brightness[c] != 1:
            channel.mul_(d.brightness[c])
        if d.contrast[c] != 1:
            low, high = torch.aminmax(channel)
            channel.copy_(channel.lerp(channel.mean(), 1 - d.contrast[c]).clamp_(low, high))
        if d.low_resolution[c] != 1:
            channel.copy_(_coarse(channel, d.low_resolution[c]))
        if d.gamma_inverted[c] != 1:
            channel.copy_(-_gamma(-channel, d.gamma_inverted[c]))
        if d.gamma[c] != 1:
            channel.copy_(_gamma(channel, d.gamma[c]))


def _blurred(x: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian along one axis, cut off at 3 sigma, edges reflected.

    Shifted copies are added, which takes a fifth of conv3d's time.
    """
    n, radius = x.shape[axis], math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    index = torch.arange(-radius, n + radius, device=x.device).remainder_(max(2 * n - 2, 1))
    wide = x.index_select(axis, torch.minimum(index, 2 * n - 2 - index) if n > 1 else index)
    out = x * (weights[0] / total)
    for i, weight in enumerate(weights[1:], 1):
        for start in (radius - i, radius + i):
            out.add_(wide.narrow(axis, start, n), alpha=weight / total)
    return out


def _coarse(x: Tensor, factor: float) -> Tensor:
    """Fewer voxels by `factor`, nearest, and back, linear; a flat patch keeps its slices."""
    flat = _flat_axis(x.shape)
    size = [n if axis == flat else max(round(n * factor), 1) for axis, n in enumerate(x.shape)]
    small = F.interpolate(x[None, None], size, mode="nearest-exact")
    linear = "trilinear" if x.ndim == 3 else "bilinear"
    return F.interpolate(small, list(x.shape), mode=linear)[0, 0]


def _gamma(x: Tensor, gamma: float) -> Tensor:
    """x ** gamma on the range of x, then given its old mean and standard deviation."""
    low, high = torch.aminmax(x)
    y = ((x - low) / (high - low).clamp_min(1e-7)).pow_(gamma)
    ratio = x.std(correction=0) / y.std(correction=0).clamp_min(1e-7)
    return (y - y.mean()).mul_(ratio).add_(x.mean())
