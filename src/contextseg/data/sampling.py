"""Batches of augmented patches: batch n is a function of (seed, n), item i of it of (seed, n, i).

A resumed run therefore sees the batches that it would have seen, ranks draw their own items without
communication, and a loader has no state. A patch is read from the memory-mapped cache at the size
that its rotation and scale need.
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
from contextseg.errors import ContextsegError


@dataclass(frozen=True)
class Sampler:
    """Draws batches from preprocessed cases.

    Of the items with a label every second one is centred on a voxel of its case's ROI, each class
    as often as another however small it is; the others lie anywhere in the body. At least half of
    the items with a label come from cases that a person labelled, however many others a relabel
    stage adds. A patch that is larger than its case has 0 in the image and in the maps, and
    `IGNORE` in the label, around it.

    Attributes:
        cases: The preprocessed cases.
        plan: Patch, batch and classes.
        seed: Seed of all batches, 0 or more.
        augmentation: What may happen to a patch; mirrors that the plan forbids are left out.
        labels: Labels in place of those of some cases: name to .npy, made by a relabel stage.
        unlabelled: Number of items of each batch, the last ones, from cases without a label.
        maps: Maps of the voxels of some cases, which move with the image: name to .npy, (N, *S).
        annotated: For some cases, whether each class was annotated, context classes too, in place
            of the case's own statement.

    Raises:
        ContextsegError: There is no labelled case; unlabelled ones are asked for and there are
            none, or the batch has no room for both; or the seed is negative.
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
            raise ContextsegError(f"seed={self.seed}", "a seed is not negative", "give 0 or more")
        if not self._labelled:
            remedy = "label at least one case, or check the label file names"
            raise ContextsegError("training cases", "none has a label", remedy)
        if self.unlabelled and not self._unlabelled:
            remedy = "use another method, or --set unlabelled_items=0"
            raise ContextsegError("training cases", "all have labels", remedy)
        if self.unlabelled >= self.plan.batch_size:
            part = f"{self.unlabelled} of the {self.plan.batch_size} items of a batch"
            what = f"{part} are unlabelled, none is labelled"
            raise ContextsegError("batch_size", what, f"raise it to {2 * self.unlabelled}")

    def batch(
        self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
    ) -> Batch:
        """The items of a batch that belong to one of several processes, augmented.

        Args:
            n: Number of the batch.
            rank: Number of this process.
            world: Number of processes.
            device: Where the tensors go.

        Returns:
            The batch. It is empty where the batch has fewer items than there are processes.
        """
        plan = self.plan
        items = [self._item(n, i) for i in self._numbers(n)[rank::world]]
        on_gpu = torch.device(device).type == "cuda"

        def tensor(array: np.ndarray) -> torch.Tensor:
            x = torch.from_numpy(array)
            return x.pin_memory().to(device, non_blocking=True) if on_gpu else x

        known = [self._known(item.case) for item in items]
        annotated = torch.tensor(known, dtype=torch.bool).reshape(len(items), self._width)
        if items:
            draws = [item.draw for item in items]
            images = [tensor(item.image) for item in items]
            labels = [tensor(item.label) for item in items]
            lateral = plan.lateral_axis - 3 + plan.dims
            image, label = apply(draws, images, labels, plan.patch_vox, plan.swaps, lateral)
            annotated = swap_annotated(draws, annotated, plan.swaps, lateral)
        else:
            channels = len(plan.channels) + self._map_count
            image = torch.zeros(0, channels, *plan.patch_vox, device=device)
            label = torch.zeros(0, *plan.patch_vox, dtype=torch.int64, device=device)

        image, maps = image.split([len(plan.channels), self._map_count], 1)
        case = torch.tensor([item.case for item in items], dtype=torch.int64)
        complete = torch.tensor([item.complete for item in items], dtype=torch.bool, device=device)
        return Batch(
            image,
            label,
            annotated.to(device),
            case.to(device),
            maps if self.maps else None,
            complete,
        )

    def _numbers(self, n: int) -> range:
        """The numbers of the items of batch n."""
        return range(self.plan.batch_size)

    @cached_property
    def _allowed(self) -> Augmentation:
        """The augmentation, with the mirrors that the plan forbids taken out."""
        d, h, w = (a and b for a, b in zip(self.augmentation.mirror, self.plan.mirror))
        return replace(self.augmentation, mirror=(d, h, w))

    @cached_property
    def _labelled(self) -> list[int]:
        """Indices of the cases with a label, their own or a replaced one."""
        cases = enumerate(self.cases)
        return [i for i, case in cases if case.labelled or case.record.name in self.labels]

    @cached_property
    def _width(self) -> int:
        """Number of columns of `Batch.annotated`: the plan's classes, then context classes."""
        return max([len(self.plan.classes), *map(len, self.annotated.values())])

    def _known(self, index: int) -> list[bool]:
        """Whether each class was annotated in a case."""
        case = self.cases[index]
        known = list(self.annotated.get(case.record.name, case.annotated))
        return known + [False] * (self._width - len(known))

    @cached_property
    def _map_count(self) -> int:
        """The N of `maps`."""
        return next((len(load_array(path, _remedy(path))) for path in self.maps.values()), 0)

    @cached_property
    def _unlabelled(self) -> list[int]:
        return sorted(set(range(len(self.cases))) - set(self._labelled))

    @cached_property
    def _with_roi(self) -> list[int]:
        """Indices of the labelled cases that hold a class; all of them if none does.

        Cases with a replaced label are among them: its classes are not known before it is read.
        """
        holding = [
            i
            for i in self._labelled
            if self.cases[i].record.name in self.labels or self.cases[i].classes
        ]
        return holding or self._labelled

    def _item(self, n: int, i: int) -> _Item:
        plan = self.plan
        labelled = plan.batch_size - self.unlabelled
        position = n * labelled + i  # among all items with a label, of all batches
        on_roi = i < labelled and position % 2 == 1
        rng = np.random.default_rng((self.seed, n, i))
        index = self._choose_case(rng, i < labelled, on_roi, position % 4 < 2)
        change = draw(
            self._allowed, rng, plan.patch_vox, plan.intensities, plan.spacing_mm[-plan.dims :]
        )
        return self._cut(index, change, self._centre(index, rng, on_roi))

    def _cut(self, index: int, change: Draw, centre: np.ndarray) -> _Item:
        """The patch of a case around a voxel, at the size that its change needs."""
        plan = self.plan
        one_slice = (1,) * (3 - plan.dims)
        size = one_slice + source_vox(change, plan.patch_vox)
        patch = one_slice + plan.patch_vox
        grid = self.cases[index].image.shape[1:]
        start = [_start(*numbers) for numbers in zip(centre, patch, size, grid)]
        box = tuple(slice(max(a, 0), min(a + s, g)) for a, s, g in zip(start, size, grid))
        before = [inside.start - a for inside, a in zip(box, start)]

        image = self._image_and_maps(index, box)
        whole_label = self._label(index)
        if whole_label is None:
            label = np.full(image.shape[1:], IGNORE, np.int16)
        else:
            label = np.array(whole_label[box])
        complete = bool((label != IGNORE).all())
        image = _padded(image, before, size, 0)
        label = _padded(label, before, size, IGNORE)
        if one_slice:
            image, label = image[:, 0], label[0]
        return _Item(index, change, image, label, complete)

    def _choose_case(
        self, rng: np.random.Generator, labelled: bool, on_roi: bool, by_person: bool
    ) -> int:
        """The index of a random case; `by_person` prefers one that a person labelled."""
        if on_roi:
            pool = self._with_roi
        else:
            pool = self._labelled if labelled else self._unlabelled
        if labelled and by_person:
            pool = [i for i in pool if self.cases[i].labelled] or pool
        return pool[rng.integers(len(pool))]

    def _label(self, index: int) -> np.ndarray | None:
        case = self.cases[index]
        path = self.labels.get(case.record.name)
        if path is None:
            return case.label
        label = load_array(path, _remedy(path))
        grid = case.image.shape[1:]
        if label.shape != grid:
            what = f"a label of {label.shape} voxels for an image of {grid}"
            raise ContextsegError(path, what, _remedy(path))
        return label

    def _image_and_maps(self, index: int, box: tuple[slice, ...]) -> np.ndarray:
        """The image and the maps of a case, (C + N, *box) float32; 0 where a case has no maps."""
        image = self.cases[index].patch(box, self.plan.channels)
        if not self.maps:
            return image
        path = self.maps.get(self.cases[index].record.name)
        maps = np.zeros((self._map_count, *image.shape[1:]), np.float32)
        if path is not None:
            maps[:] = load_array(path, _remedy(path))[(slice(None), *box)]
        return np.concatenate([image, maps])

    def _centre(self, index: int, rng: np.random.Generator, on_roi: bool) -> np.ndarray:
        """A voxel of a random class of that case, or of its body."""
        case = self.cases[index]
        replaced = case.record.name in self.labels
        classes: Sequence[int] = ()
        if on_roi:
            classes = list(self._replaced_places(index)) if replaced else case.classes
        if not classes:
            voxels = case.voxels("body")
        else:
            k = classes[int(rng.integers(len(classes)))]
            voxels = self._replaced_places(index)[k] if replaced else case.voxels(k)
        return voxels[rng.integers(len(voxels))]

    def _replaced_places(self, index: int) -> dict[int, np.ndarray]:
        """Voxels of each of the plan's classes in a replaced label, searched once, when needed."""
        if index not in self._places:
            places = places_of(None, self._label(index), self.cases[index].record.name)
            classes = range(1, len(self.plan.classes))  # beyond them are context classes
            self._places[index] = {int(k): v for k, v in places.items() if int(k) in classes}
        return self._places[index]

    @cached_property
    def _places(self) -> dict[int, dict[int, np.ndarray]]:
        return {}


@dataclass(frozen=True)
class SliceSampler(Sampler):
    """Draws every slice of the labelled cases once an epoch, in another order in each.

    A slice is whole where the patch is as large; of a larger one a part is drawn, anywhere in it. A
    batch may hold the last slices of one epoch and the first of the next. With `in_order` the
    slices come once, in the order of the cases, and the batches after them are empty: that is
    validation.

    Attributes:
        in_order: Whether each slice comes once, in order.

    Raises:
        ContextsegError: As `Sampler`, or the plan is 3-D.
    """

    in_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plan.dims != 2:
            what = "a network that is not 2-D sees no single slices"
            raise ContextsegError("every_slice=true", what, "plan for slices: --set dims=2")

    def __len__(self) -> int:
        """The number of slices of the labelled cases."""
        return len(self._slices)

    @cached_property
    def _slices(self) -> np.ndarray:
        """(N, 2): index of the case, and number of the slice."""
        depth = [(i, self.cases[i].image.shape[1]) for i in self._labelled]
        return np.array([(i, z) for i, n in depth for z in range(n)]).reshape(-1, 2)

    def _numbers(self, n: int) -> range:
        size = self.plan.batch_size
        left = max(len(self) - n * size, 0) if self.in_order else size
        return range(min(size, left))

    def _item(self, n: int, i: int) -> _Item:
        plan = self.plan
        epoch, place = divmod(n * plan.batch_size + i, len(self))
        if not self.in_order:
            place = np.random.default_rng((self.seed, epoch)).permutation(len(self))[place]
        index, z = (int(number) for number in self._slices[place])
        rng = np.random.default_rng((self.seed, n, i))
        change = draw(
            self._allowed, rng, plan.patch_vox, plan.intensities, plan.spacing_mm[-plan.dims :]
        )
        grid = self.cases[index].image.shape[2:]
        starts = [rng.integers(max(a - b, 0) + 1) for a, b in zip(grid, plan.patch_vox)]
        centre = [start + size // 2 for start, size in zip(starts, plan.patch_vox)]
        return self._cut(index, change, np.array([z, *centre]))


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
    """Where the box to read starts along one axis.

    The patch is centred, but kept inside the grid; the box around it may stick out. A patch larger
    than the grid has it in its middle, as when predicting.
    """
    if grid >= patch:
        inside = min(max(int(centre) - patch // 2, 0), grid - patch)
    else:
        inside = -((patch - grid) // 2)
    return inside - (size - patch) // 2
