"""Batch n is a function of (seed, n), and item i of it of (seed, n, i).

So a resumed run sees the batches it would have seen, ranks draw their own items without speaking to each other, and a
loader has no state. A patch is read from the memory-mapped cache at the size that its rotation and scale need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from contextseg.batch import IGNORE, Batch
from contextseg.data.augment import Augmentation, Draw, apply, draw, source_vox, swap_annotated
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.disk import Problem


@dataclass(frozen=True)
class Sampler:
    """Draws batches from preprocessed cases.

    Half of the patches, every second item, are centred on a voxel of a random class of a labelled case; the others lie
    anywhere in the body. `labels` replaces the labels of some cases (name to .npy, made by a relabel stage); `unlabelled`
    is how many items of each batch, the last ones, come from cases without a label.

    Raises `Problem` if there is no labelled case, or none without a label where some were asked for.
    """

    cases: Sequence[Cached]
    plan: Plan
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    labels: Mapping[str, Path] = field(default_factory=dict)
    unlabelled: int = 0

    def __post_init__(self) -> None:
        if not self._pool(True):
            raise Problem(
                "training cases", "none has a label", "label at least one case, or check the label file names"
            )
        if self.unlabelled and not self._pool(False):
            raise Problem("training cases", "all have labels", "use a method that needs no unlabelled cases")

    def batch(self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> Batch:
        """The items of batch `n` that belong to `rank` of `world`, augmented, on `device`. May be empty."""
        plan = self.plan
        items = [self._item(n, i) for i in range(rank, plan.batch_size, world)]
        on_gpu = torch.device(device).type == "cuda"

        def tensor(array: np.ndarray) -> torch.Tensor:
            x = torch.from_numpy(array)
            return x.pin_memory().to(device, non_blocking=True) if on_gpu else x

        annotated = torch.tensor([self.cases[item.case].annotated for item in items], dtype=torch.bool)
        annotated = annotated.reshape(len(items), len(plan.classes))
        if not items:
            image = torch.zeros(0, len(plan.channels), *plan.patch_vox, device=device)
            label = torch.zeros(0, *plan.patch_vox, dtype=torch.int64, device=device)
        else:
            draws, lateral = [item.draw for item in items], plan.lateral_axis - 3 + plan.dims
            images, labels = [tensor(item.image) for item in items], [tensor(item.label) for item in items]
            image, label = apply(draws, images, labels, plan.patch_vox, plan.swaps, lateral)
            annotated = swap_annotated(draws, annotated, plan.swaps, lateral)
        case = torch.tensor([item.case for item in items], dtype=torch.int64)
        return Batch(image, label, annotated.to(device), case.to(device))

    @cached_property
    def _allowed(self) -> Augmentation:
        """The augmentation, with the mirrors that the plan forbids taken out."""
        d, h, w = (a and b for a, b in zip(self.augmentation.mirror, self.plan.mirror))
        return replace(self.augmentation, mirror=(d, h, w))

    def _pool(self, labelled: bool) -> list[int]:
        """The indices of the cases that have a label, or that have none."""
        return [
            i for i, case in enumerate(self.cases) if (case.labelled or case.record.name in self.labels) == labelled
        ]

    def _item(self, n: int, i: int) -> _Item:
        plan = self.plan
        rng = np.random.default_rng((self.seed, n, i))
        pool = self._pool(i < plan.batch_size - self.unlabelled)
        index = pool[rng.integers(len(pool))]
        case = self.cases[index]
        change = draw(self._allowed, rng, plan.patch_vox, len(plan.channels), plan.spacing_mm[-plan.dims :])
        centre = self._centre(case, rng, on_roi=(n * plan.batch_size + i) % 2 == 1)
        size = source_vox(change, plan.patch_vox)
        patch = plan.patch_vox
        if plan.dims == 2:
            size, patch = (1, *size), (1, *patch)
        grid = case.image.shape[1:]
        start = [_start(c, p, s, g) for c, p, s, g in zip(centre, patch, size, grid)]
        box = tuple(slice(max(a, 0), min(a + s, g)) for a, s, g in zip(start, size, grid))
        pad = [(max(-a, 0), max(a + s - g, 0)) for a, s, g in zip(start, size, grid)]
        image = np.pad(case.patch(box, plan.channels), [(0, 0), *pad])
        labels = self._labels(case)
        here = np.full(image.shape[1:], IGNORE, np.int16) if labels is None else labels[box]
        label = np.pad(here, pad, constant_values=IGNORE) if labels is not None else here
        if plan.dims == 2:
            image, label = image[:, 0], label[0]
        return _Item(index, change, np.ascontiguousarray(image), np.ascontiguousarray(label))

    def _labels(self, case: Cached) -> np.ndarray | None:
        replaced = self.labels.get(case.record.name)
        return case.label if replaced is None else np.load(replaced, mmap_mode="r")

    def _centre(self, case: Cached, rng: np.random.Generator, on_roi: bool) -> np.ndarray:
        classes = sorted(key for key in case.voxels if key != "body")
        key = classes[rng.integers(len(classes))] if on_roi and classes else "body"
        places = case.voxels[key]
        return places[rng.integers(len(places))]


@dataclass(frozen=True)
class _Item:
    case: int
    draw: Draw
    image: np.ndarray
    label: np.ndarray


def _start(centre: int, patch: int, size: int, grid: int) -> int:
    """Where the source box starts: the patch is centred, but kept inside the grid; the box around it may stick out."""
    start = min(max(int(centre) - patch // 2, 0), max(grid - patch, 0)) if grid >= patch else (grid - patch) // 2
    return start - (size - patch) // 2
