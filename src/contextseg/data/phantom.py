"""Synthetic patients with known labels: for tests, for documentation, to try an idea in seconds.

A body in air holds organs (class 1, a bright ball; class 2, where asked for, a dark one) and
look-alikes: rods as bright as class 1 that are background.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contextseg.disk import write_json
from contextseg.volume import Volume, write


def patient(
    seed: int, shape: tuple[int, ...] = (24, 24, 24), classes: int = 2, look_alikes: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make one synthetic patient.

    Two balls may touch, but neither holds the other's centre.

    Args:
        seed: The same seed gives the same patient.
        shape: Number of voxels along each axis, two or three of them.
        classes: Number of classes with the background, 2 or 3.
        look_alikes: Number of rods as bright as class 1 that are background.

    Returns:
        The image (*S) float32, about 0 in air and 1 in the body, and its true label (*S) int16.

    Example:
        >>> image, label = patient(0, (16, 16))
        >>> image.shape, sorted(set(label.ravel().tolist()))
        ((16, 16), [0, 1])
    """
    rng = np.random.default_rng(seed)
    axes = [np.arange(n) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    size = np.array(shape, np.float32)
    body = (((grid - (size - 1) / 2) / (0.47 * size)) ** 2).sum(-1) < 1
    image = body.astype(np.float32)
    label = np.zeros(shape, np.int16)
    balls: list[tuple[np.ndarray, float]] = []
    for k in range(1, classes):
        while True:
            centre = size * rng.uniform(0.35, 0.65, len(shape))
            radius = size.min() * rng.uniform(0.13, 0.2)
            if all(np.linalg.norm(centre - c) > max(radius, r) for c, r in balls):
                break
        balls.append((centre, radius))
        ball = ((grid - centre) ** 2).sum(-1) < radius**2
        image[ball] = 2.5 if k == 1 else -0.5
        label[ball] = k
    for _ in range(look_alikes):
        centre = size * rng.uniform(0.2, 0.8, len(shape))
        across = np.delete(grid - centre, rng.integers(len(shape)), -1)
        rod = ((across**2).sum(-1) < (size.min() * 0.07) ** 2) & body & (label == 0)
        image[rod] = 2.5
    return image + rng.normal(0, 0.3, shape).astype(np.float32), label


def write_dataset(
    folder: str | Path,
    labelled: int = 4,
    unlabelled: int = 0,
    test: int = 2,
    shape: tuple[int, int, int] = (20, 24, 24),
    classes: int = 2,
    look_alikes: int = 0,
) -> Path:
    """Write synthetic patients as an nnU-Net v2 raw data set.

    Voxels measure 2 x 1 x 1 mm, and the channel is called "MR".

    Args:
        folder: Where to write it.
        labelled: Number of labelled training cases.
        unlabelled: Number of unlabelled training cases.
        test: Number of test cases, with labels.
        shape: Number of voxels of each along D, H, W.
        classes: As in `patient`.
        look_alikes: As in `patient`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    affine = np.array([[0.0, 0, 1, -10], [0, 1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    for i in range(labelled + unlabelled + test):
        part = "Tr" if i < labelled + unlabelled else "Ts"
        image, label = patient(i, shape, classes, look_alikes)
        volume = Volume(image[None] * 100, affine)
        write(folder / f"images{part}" / f"phantom_{i:03d}_0000.nii.gz", volume)
        if not labelled <= i < labelled + unlabelled:
            write(folder / f"labels{part}" / f"phantom_{i:03d}.nii.gz", volume.with_array(label))
    names = ["background", "bright", "dark"][:classes]
    table = {
        "name": "phantom",
        "channel_names": {"0": "MR"},
        "labels": {name: k for k, name in enumerate(names)},
        "numTraining": labelled + unlabelled,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", table)
    return folder


def write_flare22(
    folder: str | Path,
    labelled: int = 2,
    unlabelled: int = 2,
    validation: int = 1,
    test: int = 1,
    shape: tuple[int, int, int] = (12, 24, 24),
) -> Path:
    """Write synthetic patients as the FLARE22 challenge lays out its scans.

    They are in Hounsfield units: the bright ball is called a liver (1), the dark one an aorta (5);
    the other organs are in none. The unlabelled scans are in two folders.

    Args:
        folder: Where to write them.
        labelled: Number of labelled scans.
        unlabelled: Number of unlabelled scans.
        validation: Number of validation scans, with labels.
        test: Number of test scans, with labels.
        shape: Number of voxels of each along D, H, W.

    Returns:
        The folder.
    """
    folder = Path(folder)
    half = (unlabelled + 1) // 2
    parts = [("FLARE22_LabeledCase50", "FLARE22_Tr_", labelled, True)]
    parts += [("FLARE22_UnlabeledCase1-1000", "Case_A", half, False)]
    parts += [("FLARE22_UnlabeledCase1001-2000", "Case_B", unlabelled - half, False)]
    parts += [("Validation", "FLARETs_", validation, True), ("Test", "FLARE22_Ts_", test, True)]
    affine = np.array([[0.0, 0, 1, -10], [0, 1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    seed = 0
    for name, lead, count, drawn in parts:
        images = folder / name / "images" if drawn else folder / name
        for i in range(1, count + 1):
            image, label = patient(seed, shape, 3)
            seed += 1
            in_hu = np.where((image > 0.5) | (label > 0), (image - 1) * 100, -1000)
            volume = Volume(in_hu[None].astype(np.float32), affine)
            write(images / f"{lead}{i:04d}_0000.nii.gz", volume)
            if drawn:
                organs = np.array([0, 1, 5], np.uint8)[label]
                labels = folder / name / "labels" / f"{lead}{i:04d}.nii.gz"
                write(labels, volume.with_array(organs))
    return folder
