"""Augmenting a batch, against batchgeneratorsv2 as nnU-Net v2's trainer sets it up (3-D)."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from contextseg.data.augment import Augmentation, apply, draw, source_vox

PATCH = (80, 80, 80)
READ = (128, 128, 128)  # what nnU-Net reads for this patch: 80 (cos 30 + sin 30) / 0.85
BATCH = 2


def rows(quick: bool) -> list[tuple[str, str, float, float, str]]:
    """(claim, input, our seconds, the peer's, the peer) for each batch; [] without the peer."""
    try:
        transform = nnunet_transform()
    except ImportError:
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours_s, peer_s = compared(transform, rounds=3 if quick else 9, batches=4 if quick else 16)
    finally:
        torch.set_num_threads(threads)
    claim = "augment a batch (nnU-Net v2's default effects), from the case in memory to the batch"
    return [
        (
            claim,
            f"{BATCH} x {' x '.join(map(str, PATCH))}, one thread",
            ours_s,
            peer_s,
            "batchgeneratorsv2",
        )
    ]


def compared(transform: Callable[..., Any], rounds: int, batches: int) -> tuple[float, float]:
    """CPU seconds for each batch, ours and the peer's: medians over interleaved rounds."""
    image = torch.from_numpy(
        np.random.default_rng(0).standard_normal((1, 200, 200, 200), dtype=np.float32)
    )
    label = torch.zeros((200, 200, 200), dtype=torch.int16)
    label[70:120, 80:130, 60:110], label[100:140, 90:150, 100:130] = 1, 2
    for n in range(-4, 0):  # the peer tries out its ways to blur in its first batches
        ours(image, label, -n)
        peers(transform, image, label)
    seconds: tuple[list[float], list[float]] = [], []
    for r in range(rounds):
        np.random.seed(r)  # noqa: NPY002  the peer draws from the global generators
        torch.manual_seed(r)
        for which, taken in enumerate(seconds):
            start = time.process_time()
            for n in range(r * batches, (r + 1) * batches):
                peers(transform, image, label) if which else ours(image, label, n)
            taken.append((time.process_time() - start) / batches)
    return median(seconds[0]), median(seconds[1])


def ours(image: torch.Tensor, label: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = [
        draw(Augmentation(), np.random.default_rng((n, i)), PATCH, channels=1) for i in range(BATCH)
    ]
    boxes = [middle(label.shape, source_vox(d, PATCH)) for d in draws]
    return apply(
        draws, [image[(slice(None), *box)] for box in boxes], [label[box] for box in boxes], PATCH
    )


def peers(
    transform: Callable[..., Any], image: torch.Tensor, label: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    box = (slice(None), *middle(label.shape, READ))
    items = [
        transform(image=image[box].clone(), segmentation=label[None][box].clone())
        for _ in range(BATCH)
    ]
    return torch.stack([item["image"] for item in items]), torch.stack(
        [item["segmentation"] for item in items]
    )


def middle(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(shape, size))


def nnunet_transform() -> Callable[..., Any]:
    """nnU-Net v2's default transforms for an isotropic 3-D patch, without deep supervision."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    turn = (-np.pi / 6, np.pi / 6)
    apart = {"synchronize_channels": False, "p_per_channel": 1}
    half = {"synchronize_channels": False, "p_per_channel": 0.5}
    quarter, gamma = (
        BGContrast((0.75, 1.25)),
        {"gamma": BGContrast((0.7, 1.5)), "p_retain_stats": 1, **apart},
    )
    spatial = SpatialTransform(
        PATCH, 0, False, p_rotation=0.2, rotation=turn, p_scaling=0.2, scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1, bg_style_seg_sampling=False,
    )  # fmt: skip
    sometimes = [
        (
            0.1,
            GaussianNoiseTransform(
                noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True
            ),
        ),
        (
            0.2,
            GaussianBlurTransform(
                blur_sigma=(0.5, 1.0), synchronize_axes=False, benchmark=True, **half
            ),
        ),
        (0.15, MultiplicativeBrightnessTransform(multiplier_range=quarter, **apart)),
        (0.15, ContrastTransform(contrast_range=quarter, preserve_range=True, **apart)),
        (
            0.25,
            SimulateLowResolutionTransform(
                scale=(0.5, 1), synchronize_axes=True, ignore_axes=None, **half
            ),
        ),
        (0.1, GammaTransform(p_invert_image=1, **gamma)),
        (0.3, GammaTransform(p_invert_image=0, **gamma)),
    ]
    return ComposeTransforms(
        [
            spatial,
            *[RandomTransform(effect, apply_probability=p) for p, effect in sometimes],
            MirrorTransform((0, 1, 2)),
        ]
    )


if __name__ == "__main__":
    for claim, given, ours_s, peer_s, peer in rows(quick=False):
        print(
            f"{claim}; {given}: {ours_s * 1e3:.1f} ms, {peer} {peer_s * 1e3:.1f} ms, "
            f"ratio {peer_s / ours_s:.2f}"
        )
