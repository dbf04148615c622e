"""Short clips of slices to train propagation on, and a network's walk through one of them.

A clip is a few slices of one case, in order, at distances that grow over the training (the
curriculum of Cheng et al., NeurIPS 2021). Any class may be the object: what is trained is
following, not a class. Clip n is a function of (seed, n), as are the patches of
`contextseg.data.sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from contextseg.batch import IGNORE, Batch
from contextseg.data.augment import Augmentation, Draw, apply, draw, source_vox
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError
from contextseg.propagation.memory import (
    affinity,
    aggregate,
    annotated_positions,
    readout,
    top_k_softmax,
)
from contextseg.propagation.session import PropagationNetwork

JUMPS = (3, 4, 5, 7, 3)
"""Distance of the farthest next slice in each fifth of the training (Pham et al., FLARE22): ever
harder, and in the end as at use.
"""


@dataclass(frozen=True)
class ClipSampler:
    """Draws clips from preprocessed cases, whatever the plan's dimensions.

    Only slices that are annotated at least in part are drawn, and only annotated classes are
    objects. Mirroring needs no permission of the plan: no class is left or right here.

    Attributes:
        cases: Preprocessed cases. Those without a labelled, annotated class are not drawn from.
        plan: The plan of the cases; its batch size is the number of clips in a batch.
        steps: Steps of the whole training, which `jumps` divides into equal parts.
        seed: Seed of all draws.
        patch_vox: Pixels of a slice (H, W). None is the last two numbers of the plan's patch.
        frames: Slices in a walk, of which the first is labelled.
        references: Slices whose label is given: the walk's first slice, and before it others, half
            of them beyond the walk's end and half anywhere, with the object or without. 1 as
            published; ours 2, since a network that has never remembered a slice without the object
            takes such a slice for the object's end everywhere.
        objects: Objects followed at once, at most. The first is any class of the walk's first
            slice, the others any class beside it in a reference. 1 as Pham et al.
        jumps: Distance of the farthest next slice in each part of the training.
        axes: Slices are taken across one of these (0, 1, 2 of D, H, W), drawn for each clip.
        augmentation: Drawn once for a clip (noise for each slice): its slices move together.

    Raises:
        ContextsegError: If no case has a labelled object, and for numbers that are not positive.
    """

    cases: Sequence[Cached]
    plan: Plan
    steps: int
    seed: int = 0
    patch_vox: tuple[int, int] | None = None
    frames: int = 3
    references: int = 2
    objects: int = 2
    jumps: tuple[int, ...] = JUMPS
    axes: tuple[int, ...] = (0,)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if (
            self.frames < 2
            or min(self.steps, self.references, self.objects, *self.jumps) < 1
            or self.seed < 0
        ):
            numbers = ("steps", "frames", "references", "objects", "jumps", "seed")
            what = ", ".join(f"{name}={getattr(self, name)}" for name in numbers)
            raise ContextsegError(
                "clips",
                what,
                "give two frames or more, one or more of the others, and a seed from 0",
            )
        if not self._usable:
            raise ContextsegError(
                "training cases",
                "none has a labelled class",
                "label a structure in at least one case",
            )

    def jump(self, n: int) -> int:
        """Distance of the farthest next slice.

        Args:
            n: Step of the training. Beyond the last step it is as in the last.

        Returns:
            The distance in slices.
        """
        return self.jumps[min(n * len(self.jumps) // self.steps, len(self.jumps) - 1)]

    def batch(
        self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu"
    ) -> Batch:
        """The clips of one batch that belong to one rank.

        Args:
            n: Number of the batch.
            rank: Number of the process.
            world: Number of processes.
            device: Where the tensors are.

        Returns:
            A batch with image (B, C, T, H, W), label (B, T, H, W) of 0, the objects 1 and up, or
            `IGNORE`, and annotated (B, 1 + objects), all True: what is not an object is known not
            to be one. B may be 0.
        """
        items = [self._item(n, i) for i in range(rank, self.plan.batch_size, world)]
        shape = (len(items), self.references - 1 + self.frames)
        annotated = torch.ones(len(items), 1 + self.objects, dtype=torch.bool, device=device)
        case = torch.tensor([item.case for item in items], dtype=torch.int64, device=device)
        if not items:
            image = torch.zeros(0, len(self.plan.channels), *shape[1:], *self._patch, device=device)
            return Batch(
                image,
                torch.zeros(*shape, *self._patch, dtype=torch.int64, device=device),
                annotated,
                case,
            )

        draws = [one for item in items for one in item.draws]
        images = [torch.from_numpy(x).to(device) for item in items for x in item.image]
        labels = [torch.from_numpy(y).to(device) for item in items for y in item.label]
        image, label = apply(draws, images, labels, self._patch)
        return Batch(
            image.unflatten(0, shape).transpose(1, 2), label.unflatten(0, shape), annotated, case
        )

    @property
    def _patch(self) -> tuple[int, int]:
        h, w = self.patch_vox or self.plan.patch_vox[-2:]
        return h, w

    @cached_property
    def _usable(self) -> dict[int, list[int]]:
        """The classes of each case that can be objects, where there is one."""
        allowed = {
            i: [k for k in c.classes if c.annotated[k]]
            for i, c in enumerate(self.cases)
            if c.labelled
        }
        return {i: classes for i, classes in allowed.items() if classes}

    @cached_property
    def _annotated(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def _slices(self, index: int, axis: int) -> np.ndarray:
        """The slices of a case across `axis` that are annotated at least in part; found once."""
        if (index, axis) not in self._annotated:
            across = tuple(a for a in range(3) if a != axis)
            self._annotated[index, axis] = np.flatnonzero(
                (self._label(index) != IGNORE).any(across)
            )
        return self._annotated[index, axis]

    def _label(self, index: int) -> np.ndarray:
        label = self.cases[index].label
        assert label is not None
        return label

    def _item(self, n: int, i: int) -> _Item:
        rng = np.random.default_rng((self.seed, n, i))
        index = list(self._usable)[rng.integers(len(self._usable))]
        case = self.cases[index]
        axis = self.axes[rng.integers(len(self.axes))]
        k = self._usable[index][rng.integers(len(self._usable[index]))]

        voxels = case.voxels(k)
        first = int(rng.choice(np.unique(voxels[:, axis])))
        in_first = voxels[voxels[:, axis] == first]
        centre = np.delete(in_first[rng.integers(len(in_first))], axis)

        annotated = self._slices(index, axis)
        jump = self.jump(n)
        walked = walk(annotated, first, jump, self.frames, rng)
        extra = [extra_reference(annotated, walked, jump, rng) for _ in range(self.references - 1)]
        chosen = [*extra, *walked]

        spacing = [mm for a, mm in enumerate(self.plan.spacing_mm) if a != axis]
        change = draw(self.augmentation, rng, self._patch, len(self.plan.channels), spacing)
        size = source_vox(change, self._patch)
        grid = [m for a, m in enumerate(self._label(index).shape) if a != axis]
        box, before = _window(centre, self._patch, size, grid)
        planes = [(*box[:axis], slice(t, t + 1), *box[axis:]) for t in chosen]
        labels = [self._label(index)[plane].squeeze(axis) for plane in planes]
        objects = self._objects(index, k, labels[: self.references], rng)
        images = [case.patch(plane, self.plan.channels).squeeze(axis + 1) for plane in planes]
        noise = [
            replace(change, noise_seed=(change.noise_seed + t) % 2**63) for t in range(len(chosen))
        ]
        return _Item(
            index,
            noise,
            [_padded(x, before, size, 0) for x in images],
            [_padded(_renumbered(y, objects), before, size, IGNORE) for y in labels],
        )

    def _objects(
        self, index: int, k: int, references: list[np.ndarray], rng: np.random.Generator
    ) -> list[int]:
        """Class `k`, and others that the references hold."""
        present = {c for label in references for c in np.unique(label).tolist()}
        beside = sorted(c for c in present if c != k and c in self._usable[index])
        return [k, *rng.permutation(beside)[: self.objects - 1].tolist()]


def walk(
    slices: np.ndarray, first: int, jump: int, frames: int, rng: np.random.Generator
) -> list[int]:
    """Draw slices from a first one on, in one direction.

    Args:
        slices: Slice numbers to draw from, sorted.
        first: Number of the first slice.
        jump: Distance of the next slice, at most. Where there is none so near, the nearest one in
            that direction is taken; at the end, the last one again.
        frames: How many slices.
        rng: Draws the direction, unless nothing lies in one of them, and the slices.

    Returns:
        `frames` slice numbers, `first` among them.

    Example:
        >>> walk(np.array([0, 10, 11]), 10, 3, 4, np.random.default_rng(0))[-1] in (0, 11)
        True
    """
    up = slices[slices > first]
    down = slices[slices < first][::-1]
    if len(up) and len(down):
        ahead_of_first = (up, down)[rng.integers(2)]
    else:
        ahead_of_first = up if len(up) else down
    chosen = [first]
    while len(chosen) < frames:
        ahead = ahead_of_first[abs(ahead_of_first - first) > abs(chosen[-1] - first)]
        near = ahead[abs(ahead - chosen[-1]) <= jump]
        if len(near):
            chosen.append(int(rng.choice(near)))
        else:
            chosen.append(int(ahead[0]) if len(ahead) else chosen[-1])
    return chosen


def extra_reference(
    slices: np.ndarray, walked: Sequence[int], jump: int, rng: np.random.Generator
) -> int:
    """Draw one more reference for a walk: half the time shortly beyond its end, else any slice.

    Args:
        slices: Slice numbers to draw from, sorted.
        walked: The slices of the walk.
        jump: Distance from the walk's end, at most.
        rng: Draws which of the two, and the slice.

    Returns:
        A slice number.

    Example:
        >>> extra_reference(np.array([4, 5, 6]), [4, 5], 3, np.random.default_rng(1)) in (4, 5, 6)
        True
    """
    ahead = slices > walked[-1] if walked[-1] > walked[0] else slices < walked[-1]
    near = slices[ahead & (abs(slices - walked[-1]) <= jump)]
    return int(rng.choice(near if len(near) and rng.random() < 0.5 else slices))


def follow(network: PropagationNetwork, batch: Batch, references: int = 2) -> tuple[Tensor, Tensor]:
    """A network's logits of the slices of a clip after its references.

    The labels of the references are given. Each later slice reads those before it as they were
    predicted, so that gradients flow through the memory. Voxels of a reference that nobody has
    annotated are not read.

    Args:
        network: The network to train.
        batch: Clips of T slices, from `ClipSampler`.
        references: How many of the first slices are references, R.

    Returns:
        Logits (B, 1 + O, T - R, H, W), and the labels (B, T - R, H, W) of the same slices.
    """
    frames, objects = batch.image.shape[2], batch.annotated.shape[1] - 1
    images = batch.image.transpose(1, 2)
    encoded = network.encode(images.flatten(0, 1))
    keys: list[Tensor] = []
    values: list[Tensor] = []
    annotated: list[Tensor] = []
    logits: list[Tensor] = []
    for t in range(frames):
        current, label = encoded[slice(t, None, frames)], batch.label[:, t]
        if t < references:
            masks = torch.stack([label == k for k in range(1, objects + 1)], 1).float()
            annotated.append(annotated_positions(label != IGNORE, network.stride).flatten(1))
        else:
            readable = torch.cat(annotated, 1)
            # where nothing is annotated anywhere, all is read: a softmax of nothing is NaN
            readable = readable | ~readable.any(1, keepdim=True)
            similarity = affinity(torch.cat(keys, 2), current.key.flatten(2), readable)
            read = readout(top_k_softmax(similarity), torch.cat(values, 3))
            read = read.unflatten(3, current.key.shape[2:])
            logits.append(aggregate(network.decode(current, read)))
            masks = logits[-1].softmax(1)[:, 1:]
            annotated.append(torch.ones_like(annotated[-1]))
        if t < frames - 1:
            keys.append(current.key.flatten(2))
            values.append(network.memorise(images[:, t], current, masks).flatten(3))
    return torch.stack(logits, 2), batch.label[:, references:]


@dataclass(frozen=True)
class _Item:
    case: int
    draws: list[Draw]
    image: list[np.ndarray]
    label: list[np.ndarray]


def _renumbered(label: np.ndarray, objects: Sequence[int]) -> np.ndarray:
    """Objects to 1, 2, ...; other classes to 0; `IGNORE` stays."""
    out = np.where(label == IGNORE, IGNORE, 0).astype(np.int64)
    for new, k in enumerate(objects, 1):
        out[label == k] = new
    return out


def _window(
    centre: np.ndarray, patch: Sequence[int], size: Sequence[int], grid: Sequence[int]
) -> tuple[list[slice], list[int]]:
    """The box of `size` around a patch at `centre` inside the grid, and how much is cut off before.

    A patch stays inside the grid; a larger patch has the grid in its middle.
    """
    box, before = [], []
    for c, p, s, g in zip(centre, patch, size, grid):
        patch_start = min(max(int(c) - p // 2, 0), g - p) if g >= p else -((p - g) // 2)
        start = patch_start - (s - p) // 2
        box.append(slice(max(start, 0), min(start + s, g)))
        before.append(max(-start, 0))
    return box, before


def _padded(part: np.ndarray, before: Sequence[int], size: Sequence[int], fill: int) -> np.ndarray:
    """`part` (..., H, W) in an array of `size`, with `fill` around it."""
    out = np.full((*part.shape[:-2], *size), fill, part.dtype)
    h, w = (slice(a, a + n) for a, n in zip(before, part.shape[-2:]))
    out[..., h, w] = part
    return out
