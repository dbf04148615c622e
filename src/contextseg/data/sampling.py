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
from contextseg.data.cache import Cached, load_array, places_of
from contextseg.data.plan import Plan
from contextseg.disk import Problem


@dataclass(frozen=True)
class Sampler:
    """Draws batches from preprocessed cases.

    Of the items with a label every second one is centred on a voxel of its case's ROI, each class as often as another
    however small it is; the others lie anywhere in the body. `labels` replaces the labels of some cases (name to .npy,
    made by a relabel stage); at least half of the items with a label come from cases that a person labelled, however
    many others such a stage adds. `maps` gives some cases maps of their voxels (name to .npy, (N, *S)), which move with
    the image; `annotated` says of some which classes are known, context classes too, in place of their own statement;
    `unlabelled` is how many items of each batch, the last ones, come from cases without a label. A patch that is
    larger than its case has 0 in the image and in the maps and `IGNORE` in the label around it.

    Raises `Problem` if there is no labelled case, or no unlabelled one, or no room for both, where they are asked for;
    and for a negative seed.
    """

    cases: Sequence[Cached]
    plan: Plan
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    labels: Mapping[str, Path] = field(default_factory=dict)
    unlabelled: int = 0
    maps: Mapping[str, Path] = field(default_factory=dict)
    annotated: Mapping[str, Sequence[bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise Problem(f"seed={self.seed}", "a seed is not negative", "give 0 or more")
        if not self._labelled:
            remedy = "label at least one case, or check the label file names"
            raise Problem("training cases", "none has a label", remedy)
        if self.unlabelled and not self._unlabelled:
            raise Problem("training cases", "all have labels", "use another method, or --set unlabelled_items=0")
        if self.unlabelled >= self.plan.batch_size:
            what = f"{self.unlabelled} of the {self.plan.batch_size} items of a batch are unlabelled, none is labelled"
            raise Problem("batch_size", what, f"raise it to {2 * self.unlabelled}")

    def batch(self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> Batch:
        """The items of batch `n` that belong to `rank` of `world`, augmented, on `device`. May be empty."""
        plan = self.plan
        items = [self._item(n, i) for i in range(rank, plan.batch_size, world)]
        on_gpu = torch.device(device).type == "cuda"

        def tensor(array: np.ndarray) -> torch.Tensor:
            x = torch.from_numpy(array)
            return x.pin_memory().to(device, non_blocking=True) if on_gpu else x

        known = [self._known(item.case) for item in items]
        annotated = torch.tensor(known, dtype=torch.bool).reshape(len(items), self._width)
        if not items:
            image = torch.zeros(0, len(plan.channels) + self._maps, *plan.patch_vox, device=device)
            label = torch.zeros(0, *plan.patch_vox, dtype=torch.int64, device=device)
        else:
            draws, lateral = [item.draw for item in items], plan.lateral_axis - 3 + plan.dims
            images, labels = [tensor(item.image) for item in items], [tensor(item.label) for item in items]
            image, label = apply(draws, images, labels, plan.patch_vox, plan.swaps, lateral)
            annotated = swap_annotated(draws, annotated, plan.swaps, lateral)
        case = torch.tensor([item.case for item in items], dtype=torch.int64)
        image, maps = image.split([len(plan.channels), self._maps], 1)
        complete = torch.tensor([item.complete for item in items], dtype=torch.bool, device=device)
        return Batch(image, label, annotated.to(device), case.to(device), maps if self.maps else None, complete)

    @cached_property
    def _allowed(self) -> Augmentation:
        """The augmentation, with the mirrors that the plan forbids taken out."""
        d, h, w = (a and b for a, b in zip(self.augmentation.mirror, self.plan.mirror))
        return replace(self.augmentation, mirror=(d, h, w))

    @cached_property
    def _labelled(self) -> list[int]:
        return [i for i, case in enumerate(self.cases) if case.labelled or case.record.name in self.labels]

    @cached_property
    def _width(self) -> int:
        """The columns of `Batch.annotated`: the plan's classes, and the context classes that `annotated` speaks of."""
        return max([len(self.plan.classes), *map(len, self.annotated.values())])

    def _known(self, index: int) -> list[bool]:
        case = self.cases[index]
        known = list(self.annotated.get(case.record.name, case.annotated))
        return known + [False] * (self._width - len(known))

    @cached_property
    def _maps(self) -> int:
        """N of `maps`."""
        return next((len(load_array(path, _remedy(path))) for path in self.maps.values()), 0)

    @cached_property
    def _unlabelled(self) -> list[int]:
        return sorted(set(range(len(self.cases))) - set(self._labelled))

    @cached_property
    def _with_roi(self) -> list[int]:
        """The labelled cases that hold a class; what a replaced label holds is not known before it is read."""
        cases = self.cases
        return [i for i in self._labelled if cases[i].record.name in self.labels or cases[i].classes] or self._labelled

    def _item(self, n: int, i: int) -> _Item:
        plan, taught = self.plan, self.plan.batch_size - self.unlabelled
        on_roi = i < taught and (n * taught + i) % 2 == 1
        rng = np.random.default_rng((self.seed, n, i))
        pool = self._with_roi if on_roi else self._labelled if i < taught else self._unlabelled
        if i < taught and (n * taught + i) % 4 < 2:
            pool = [c for c in pool if self.cases[c].labelled] or pool
        index = pool[rng.integers(len(pool))]
        case, label = self.cases[index], self._label(index)
        change = draw(self._allowed, rng, plan.patch_vox, plan.intensities, plan.spacing_mm[-plan.dims :])
        centre = self._centre(index, rng, on_roi)
        slice_of = (1,) * (3 - plan.dims)
        size, patch = slice_of + source_vox(change, plan.patch_vox), slice_of + plan.patch_vox
        grid = case.image.shape[1:]
        start = [_start(*place) for place in zip(centre, patch, size, grid)]
        box = tuple(slice(max(a, 0), min(a + s, g)) for a, s, g in zip(start, size, grid))
        before = [s.start - a for s, a in zip(box, start)]
        image = self._told(index, box)
        inside = np.full(image.shape[1:], IGNORE, np.int16) if label is None else np.array(label[box])
        complete = bool((inside != IGNORE).all())
        image, here = _padded(image, before, size, 0), _padded(inside, before, size, IGNORE)
        if slice_of:
            image, here = image[:, 0], here[0]
        return _Item(index, change, image, here, complete)

    def _label(self, index: int) -> np.ndarray | None:
        case = self.cases[index]
        path = self.labels.get(case.record.name)
        if path is None:
            return case.label
        label, grid = load_array(path, _remedy(path)), case.image.shape[1:]
        if label.shape != grid:
            raise Problem(path, f"a label of {label.shape} voxels for an image of {grid}", _remedy(path))
        return label

    def _told(self, index: int, box: tuple[slice, ...]) -> np.ndarray:
        """The image and the maps of a case inside `box`, (C + N, *box) float32; 0 where a case has no maps."""
        image = self.cases[index].patch(box, self.plan.channels)
        if not self.maps:
            return image
        path = self.maps.get(self.cases[index].record.name)
        maps = np.zeros((self._maps, *image.shape[1:]), np.float32)
        if path is not None:
            maps[:] = load_array(path, _remedy(path))[(slice(None), *box)]
        return np.concatenate([image, maps])

    def _centre(self, index: int, rng: np.random.Generator, on_roi: bool) -> np.ndarray:
        """A voxel of a random class of that case, or of its body."""
        case = self.cases[index]
        replaced = self._replaced_roi(index) if on_roi and case.record.name in self.labels else None
        classes = [] if not on_roi else case.classes if replaced is None else list(replaced)
        if not classes:
            places = case.voxels("body")
        else:
            k = classes[int(rng.integers(len(classes)))]
            places = case.voxels(k) if replaced is None else replaced[k]
        return places[rng.integers(len(places))]

    def _replaced_roi(self, index: int) -> dict[int, np.ndarray]:
        """Places of each of the plan's classes in a replaced label, which is searched once, when first needed."""
        if index not in self._found:
            places = places_of(None, self._label(index), self.cases[index].record.name)
            ours = range(1, len(self.plan.classes))  # beyond them are context classes
            self._found[index] = {int(k): found for k, found in places.items() if int(k) in ours}
        return self._found[index]

    @cached_property
    def _found(self) -> dict[int, dict[int, np.ndarray]]:
        return {}


def _remedy(path: Path) -> str:
    return f"delete the folder {path.parent}; its stage is then done again"


def _padded(part: np.ndarray, before: Sequence[int], size: Sequence[int], fill: int) -> np.ndarray:
    """`part` (..., D, H, W) in an array of `size`, with `fill` around it."""
    if part.shape[-3:] == tuple(size):
        return part
    out = np.full((*part.shape[:-3], *size), fill, part.dtype)
    d, h, w = (slice(a, a + n) for a, n in zip(before, part.shape[-3:]))
    out[..., d, h, w] = part
    return out


@dataclass(frozen=True)
class _Item:
    case: int
    draw: Draw
    image: np.ndarray
    label: np.ndarray
    complete: bool


def _start(centre: int, patch: int, size: int, grid: int) -> int:
    """Where the box to read starts along one axis: around a patch that is centred, but kept inside the grid.

    The box may stick out. A patch larger than the grid has it in its middle, as when predicting.
    """
    inside = min(max(int(centre) - patch // 2, 0), grid - patch) if grid >= patch else -((patch - grid) // 2)
    return inside - (size - patch) // 2
