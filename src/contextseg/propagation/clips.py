"""Short clips of slices to learn propagation from, and how a network follows an object through one.

A clip is a few slices of one case, in order, at growing distances over the training (the curriculum of Cheng et al.,
NeurIPS 2021). Any class may be the object: what is taught is following, not a class. Clip n is a function of (seed, n),
as are the patches of `contextseg.data.sampling`.
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
from contextseg.disk import Problem
from contextseg.propagation.memory import affinity, aggregate, readout, said_at, top_k_softmax
from contextseg.propagation.propagate import Network

JUMPS = (3, 4, 5, 7, 3)
"""The farthest next slice, in each fifth of the training (Pham et al., FLARE22): harder, then as at use."""


@dataclass(frozen=True)
class ClipSampler:
    """Draws clips from preprocessed cases, whatever the plan's dimensions.

    steps         of the whole training, which `jumps` divides into equal parts.
    patch_vox     pixels of a slice; None is the last two numbers of the plan's patch.
    frames        slices in a walk, of which the first is labelled.
    references    slices whose label is given: that one, and before it others, half of them beyond the walk's end and
                  half anywhere, with the object or without. 1 as published; ours 2, since a network that has never
                  remembered a slice without the object takes such a slice for the object's end everywhere.
    objects       followed at once, at most; the first is any class of the walk's first slice, another one any class
                  beside it in a reference. With 1 there is never another (as Pham et al.).
    axes          slices are taken across one of these (0, 1, 2 of D, H, W), drawn anew for each clip.
    augmentation  drawn once for a clip (noise for each slice): its slices move together.

    Only slices that somebody has annotated, at least in part, are drawn; only classes that were looked for are objects.
    A mirror needs no plan's permission here: no class is left or right.

    Raises `Problem` if no case has a labelled object, and for numbers that are not positive.
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
        if self.frames < 2 or min(self.steps, self.references, self.objects, *self.jumps) < 1 or self.seed < 0:
            numbers = ("steps", "frames", "references", "objects", "jumps", "seed")
            what = ", ".join(f"{name}={getattr(self, name)}" for name in numbers)
            raise Problem("clips", what, "give two frames or more, one or more of the others, and a seed from 0")
        if not self._usable:
            raise Problem("training cases", "none has a labelled class", "label a structure in at least one case")

    def jump(self, n: int) -> int:
        """The farthest next slice at step `n`; beyond the last step, that of the last."""
        return self.jumps[min(n * len(self.jumps) // self.steps, len(self.jumps) - 1)]

    def batch(self, n: int, rank: int = 0, world: int = 1, device: torch.device | str = "cpu") -> Batch:
        """The clips of batch `n` that belong to `rank` of `world`. May be empty.

        image (B, C, T, H, W); label (B, T, H, W): 0, the objects 1 and up, or `IGNORE`; annotated (B, 1 + objects), all
        True: what is not an object is known not to be one.
        """
        items = [self._item(n, i) for i in range(rank, self.plan.batch_size, world)]
        shape = (len(items), self.references - 1 + self.frames)
        annotated = torch.ones(len(items), 1 + self.objects, dtype=torch.bool, device=device)
        case = torch.tensor([item.case for item in items], dtype=torch.int64, device=device)
        if not items:
            image = torch.zeros(0, len(self.plan.channels), *shape[1:], *self._patch, device=device)
            return Batch(image, torch.zeros(*shape, *self._patch, dtype=torch.int64, device=device), annotated, case)
        draws = [one for item in items for one in item.draws]
        images = [torch.from_numpy(x).to(device) for item in items for x in item.image]
        labels = [torch.from_numpy(y).to(device) for item in items for y in item.label]
        image, label = apply(draws, images, labels, self._patch)
        return Batch(image.unflatten(0, shape).transpose(1, 2), label.unflatten(0, shape), annotated, case)

    @property
    def _patch(self) -> tuple[int, int]:
        h, w = self.patch_vox or self.plan.patch_vox[-2:]
        return h, w

    @cached_property
    def _usable(self) -> dict[int, list[int]]:
        """The classes of each case that can be objects, where there is one."""
        allowed = {i: [k for k in c.classes if c.annotated[k]] for i, c in enumerate(self.cases) if c.labelled}
        return {i: classes for i, classes in allowed.items() if classes}

    @cached_property
    def _annotated(self) -> dict[tuple[int, int], np.ndarray]:
        return {}

    def _slices(self, index: int, axis: int) -> np.ndarray:
        """The slices of a case across `axis` in which somebody has said something; looked for once."""
        if (index, axis) not in self._annotated:
            across = tuple(a for a in range(3) if a != axis)
            self._annotated[index, axis] = np.flatnonzero((self._label(index) != IGNORE).any(across))
        return self._annotated[index, axis]

    def _label(self, index: int) -> np.ndarray:
        label = self.cases[index].label
        assert label is not None
        return label

    def _item(self, n: int, i: int) -> _Item:
        rng = np.random.default_rng((self.seed, n, i))
        index = list(self._usable)[rng.integers(len(self._usable))]
        case, axis = self.cases[index], self.axes[rng.integers(len(self.axes))]
        k = self._usable[index][rng.integers(len(self._usable[index]))]
        places = case.voxels(k)
        first = int(rng.choice(np.unique(places[:, axis])))
        here = places[places[:, axis] == first]
        centre = np.delete(here[rng.integers(len(here))], axis)
        annotated, jump = self._slices(index, axis), self.jump(n)
        chosen = walk(annotated, first, jump, self.frames, rng)
        chosen = [beyond(annotated, chosen, jump, rng) for _ in range(self.references - 1)] + chosen
        spacing = [mm for a, mm in enumerate(self.plan.spacing_mm) if a != axis]
        change = draw(self.augmentation, rng, self._patch, len(self.plan.channels), spacing)
        size = source_vox(change, self._patch)
        grid = [m for a, m in enumerate(self._label(index).shape) if a != axis]
        box, before = _window(centre, self._patch, size, grid)
        planes = [(*box[:axis], slice(t, t + 1), *box[axis:]) for t in chosen]
        labels = [self._label(index)[plane].squeeze(axis) for plane in planes]
        objects = self._objects(index, k, labels[: self.references], rng)
        images = [case.patch(plane, self.plan.channels).squeeze(axis + 1) for plane in planes]
        noise = [replace(change, noise_seed=(change.noise_seed + t) % 2**63) for t in range(len(chosen))]
        return _Item(
            index,
            noise,
            [_padded(x, before, size, 0) for x in images],
            [_padded(_renumbered(y, objects), before, size, IGNORE) for y in labels],
        )

    def _objects(self, index: int, k: int, given: list[np.ndarray], rng: np.random.Generator) -> list[int]:
        """Class `k`, and others that the references hold."""
        there = {c for label in given for c in np.unique(label).tolist()}
        beside = sorted(c for c in there if c != k and c in self._usable[index])
        return [k, *rng.permutation(beside)[: self.objects - 1].tolist()]


def walk(slices: np.ndarray, first: int, jump: int, frames: int, rng: np.random.Generator) -> list[int]:
    """`frames` slice numbers out of the sorted `slices`, from `first` in one direction, each at most `jump` on.

    Where there is none so near, the nearest that way; at the end, the last again. The direction is drawn, unless there
    is nothing one way.

    >>> walk(np.array([0, 10, 11]), 10, 3, 4, np.random.default_rng(0))[-1] in (0, 11)
    True
    """
    up, down = slices[slices > first], slices[slices < first][::-1]
    way = (up, down)[rng.integers(2)] if len(up) and len(down) else up if len(up) else down
    chosen = [first]
    while len(chosen) < frames:
        ahead = way[abs(way - first) > abs(chosen[-1] - first)]
        near = ahead[abs(ahead - chosen[-1]) <= jump]
        chosen.append(int(rng.choice(near)) if len(near) else int(ahead[0]) if len(ahead) else chosen[-1])
    return chosen


def beyond(slices: np.ndarray, walked: Sequence[int], jump: int, rng: np.random.Generator) -> int:
    """One more reference for a walk: half the time at most `jump` beyond its end, else any of the sorted `slices`.

    >>> beyond(np.array([4, 5, 6]), [4, 5], 3, np.random.default_rng(1)) in (4, 5, 6)
    True
    """
    ahead = slices > walked[-1] if walked[-1] > walked[0] else slices < walked[-1]
    near = slices[ahead & (abs(slices - walked[-1]) <= jump)]
    return int(rng.choice(near if len(near) and rng.random() < 0.5 else slices))


def follow(network: Network, batch: Batch, references: int = 2) -> tuple[Tensor, Tensor]:
    """The network's logits (B, 1 + O, T - R, H, W) of a clip's slices after its R references, and their labels.

    The references' labels are given; each later slice reads those before it, as they were predicted, so that gradients
    flow through the memory. What is unsaid in a reference is not remembered. The labels are (B, T - R, H, W).
    """
    frames, objects = batch.image.shape[2], batch.annotated.shape[1] - 1
    images = batch.image.transpose(1, 2)
    encoded = network.encode(images.flatten(0, 1))
    keys: list[Tensor] = []
    values: list[Tensor] = []
    heard: list[Tensor] = []
    logits: list[Tensor] = []
    for t in range(frames):
        now, label = encoded[slice(t, None, frames)], batch.label[:, t]
        if t < references:
            masks = torch.stack([label == k for k in range(1, objects + 1)], 1).float()
            heard.append(said_at(label != IGNORE, network.stride).flatten(1))
        else:
            said = torch.cat(heard, 1)
            said = said | ~said.any(1, keepdim=True)  # with nothing said anywhere, anything: no NaN
            weights = top_k_softmax(affinity(torch.cat(keys, 2), now.key.flatten(2), said))
            read = readout(weights, torch.cat(values, 3)).unflatten(3, now.key.shape[2:])
            logits.append(aggregate(network.decode(now, read)))
            masks = logits[-1].softmax(1)[:, 1:]
            heard.append(torch.ones_like(heard[-1]))
        if t < frames - 1:
            keys.append(now.key.flatten(2))
            values.append(network.memorise(images[:, t], now, masks).flatten(3))
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
    """The box of `size` around a patch at `centre`, as far as it lies inside, and how far it sticks out before.

    A patch stays inside the grid, or has the grid in its middle where it is larger.
    """
    box, before = [], []
    for c, p, s, g in zip(centre, patch, size, grid):
        start = (min(max(int(c) - p // 2, 0), g - p) if g >= p else -((p - g) // 2)) - (s - p) // 2
        box.append(slice(max(start, 0), min(start + s, g)))
        before.append(max(-start, 0))
    return box, before


def _padded(part: np.ndarray, before: Sequence[int], size: Sequence[int], fill: int) -> np.ndarray:
    """`part` (..., H, W) in an array of `size`, with `fill` around it."""
    out = np.full((*part.shape[:-2], *size), fill, part.dtype)
    h, w = (slice(a, a + n) for a, n in zip(before, part.shape[-2:]))
    out[..., h, w] = part
    return out
