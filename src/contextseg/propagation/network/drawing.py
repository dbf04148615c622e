"""Training examples of the packaged network, made where the network is.

A batch has two halves. One shows real scans, with intensities changed by a random curve; the other
images drawn from label maps, each structure with intensities of its own (SynthSeg: Billot et al.,
Medical Image Analysis 2023). What is completed is a labelled structure, several of them, a group of
supervoxels (Ouyang et al., ECCV 2020), or a random shape. All stacks of a batch are cut, rotated,
stretched and bent by one gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.propagation.network.features import features, normalised
from contextseg.propagation.network.prepare import GREYS
from contextseg.propagation.network.store import Pool, Store

MOST = 7
"""Labelled slices of an example at most; two empty ones beyond the ends may be added."""

_SLOTS = MOST + 2
_TABLE = 6000  # values of a label map or of supervoxels at most


@dataclass(frozen=True)
class Recipe:
    """How examples are drawn; each ingredient can be left out, to measure what it gives.

    Attributes:
        drawn: Share of a batch with drawn images.
        regions: Share of the real scans with a group of supervoxels.
        shapes: Share of all examples with a random shape.
        unions: Share of the labelled structures that are united with others.
        others: Share of the examples in which other structures are known.
        slices: D of a stack.
        side: H and W.
    """

    drawn: float = 0.4
    regions: float = 0.25
    shapes: float = 0.12
    unions: float = 0.15
    others: float = 0.4
    slices: int = 48
    side: int = 64


REAL_SOURCES = {"headneck": 0.45, "sarcoma": 0.42, "torso": 0.13}
DRAWN_SOURCES = {"headmaps": 0.75, "torso": 0.25}


@dataclass
class _Item:
    """What is drawn on the CPU for one example."""

    volume: int
    centre: np.ndarray
    matrix: np.ndarray
    thickness: float
    table: np.ndarray
    others: np.ndarray
    by_region: bool
    shape: bool


@dataclass(frozen=True)
class Stacks:
    """A batch.

    Attributes:
        features: (B, C, D, H, W).
        prior: (B, D, H, W).
        target: (B, D, H, W) bool.
        weight: (B, D, H, W) float32: 1 where the network is to decide, 0 in labelled slices and
            beyond the scan.
        count: (B,) labelled slices that hold the structure.
    """

    features: Tensor
    prior: Tensor
    target: Tensor
    weight: Tensor
    count: Tensor


class StackDrawing:
    """Draws batches; batch n is a function of the seed and n.

    Args:
        store: The volumes.
        recipe: The ingredients.
        batch: Examples in a batch.
        seed: Seed of all draws.
        plain: Whether nothing is bent, turned or drawn: for validation.
    """

    def __init__(
        self, store: Store, recipe: Recipe, batch: int, seed: int = 0, plain: bool = False
    ) -> None:
        self.store, self.recipe, self.size, self.seed = store, recipe, batch, seed
        self.plain = plain
        self.real = 0 if plain else round(batch * recipe.drawn)
        self.random = torch.Generator(store.device)

    # --- on the CPU: which volume, which structure, where -----------------------------------------

    def _item(self, rng: np.random.Generator, drawn: bool) -> _Item:
        store, recipe = self.store, self.recipe
        sources = DRAWN_SOURCES if drawn else REAL_SOURCES
        names = [name for name in sources if name in store.by_source]
        weights = np.array([sources[name] for name in names])
        source = names[rng.choice(len(names), p=weights / weights.sum())]
        volume = int(rng.choice(store.by_source[source]))
        row = store.rows[volume]
        spacing = np.array(row["spacing_mm"])
        by_region = not drawn and not self.plain and rng.random() < recipe.regions
        pool = store.regions[volume] if by_region else store.structures[volume]
        one = int(rng.integers(len(pool)))
        apart = np.abs((pool.centre - pool.centre[one]) * spacing).max(1)
        if by_region:
            chosen = self._grown(rng, pool, one)
        elif not self.plain and rng.random() < recipe.unions:
            chosen = np.argsort(apart)[: int(rng.integers(2, 4))]
        else:
            chosen = np.array([one])
        table, others = np.zeros(_TABLE, bool), np.zeros(_TABLE, bool)
        table[pool.values[chosen]] = True
        if not by_region and rng.random() < recipe.others:
            apart[chosen] = np.inf
            near = np.argsort(apart)[: int(rng.integers(1, 4))]
            others[pool.values[near[np.isfinite(apart[near])]]] = True
        box = pool.low[chosen].min(0), pool.high[chosen].max(0)
        axis = 0 if rng.random() < (0.9 if self.plain else 0.6) else int(rng.integers(1, 3))
        points = pool.members[one].points
        point = points[rng.integers(len(points))].astype(float)
        return self._placed(rng, volume, axis, box, point, (table, others, by_region))

    def _grown(self, rng: np.random.Generator, pool: Pool, one: int) -> np.ndarray:
        """Places of the supervoxels near one and of a like intensity."""
        reach, limit = rng.uniform(5, 22), rng.uniform(2, 10)
        squeeze = np.exp(rng.normal(0, 0.35, 3))
        apart = np.square((pool.centre - pool.centre[one]) * squeeze).sum(1)
        return np.flatnonzero((apart < reach**2) & (np.abs(pool.greys - pool.greys[one]) < limit))

    def _placed(
        self,
        rng: np.random.Generator,
        volume: int,
        axis: int,
        box: tuple[np.ndarray, np.ndarray],
        point: np.ndarray,
        values: tuple[np.ndarray, np.ndarray, bool],
    ) -> _Item:
        """Where the stack lies, and how it is turned and stretched."""
        recipe, plain = self.recipe, self.plain
        spacing = np.array(self.store.rows[volume]["spacing_mm"])
        axes = [axis, *(a for a in range(3) if a != axis)]
        low, high = box
        extent = ((high - low) * spacing)[axes]
        zoom = 2.0 if plain else float(np.exp(rng.uniform(np.log(1.25), np.log(4.0))))
        plane_mm = spacing[axes[1:]].mean()
        # at use the box is that of the labelled slices, which may be smaller than the structure
        small = 1.0 if plain or rng.random() < 0.5 else float(rng.uniform(0.3, 1.0))
        pixel = max(extent[1:].max() * zoom * small, 12 * plane_mm) / recipe.side
        pixel = float(np.clip(pixel, 0.4 * plane_mm, 3.5 * plane_mm))
        stride = 1.0
        if not plain:
            fine = self.store.rows[volume]["source"] == "headmaps"
            stride = float(rng.choice([1, 2, 3, 4] if fine else [1, 1, 1, 2]))
            stride *= rng.uniform(0.8, 1.25)
        step = np.array([spacing[axis] * stride, pixel, pixel])
        matrix = np.zeros((3, 3))
        for row_, a in enumerate(axes):
            matrix[a, row_] = 1 / spacing[a]
        if not plain:
            step[1:] *= np.exp(rng.normal(0, 0.08, 2))
            matrix = matrix @ _rotation(rng) @ np.diag(rng.choice([-1.0, 1.0], 3))
        matrix = matrix @ np.diag(step)
        middle = (low + high) / 2
        long = extent[0] > 0.8 * recipe.slices * step[0]
        centre = middle.copy()
        centre[axis] = point[axis] if long else middle[axis]
        if not plain:
            jitter = rng.uniform(-0.5, 0.5, 3) * np.array([0.4 * recipe.slices, 16, 16]) * step
            centre[axes] += jitter / spacing[axes]
        if extent[1:].max() > recipe.side * pixel:
            centre[axes[1:]] = point[axes[1:]]
        table, others, by_region = values
        shape = not plain and rng.random() < recipe.shapes
        return _Item(
            volume, centre, matrix, float(step[0] / pixel), table, others, by_region, bool(shape)
        )

    # --- on the device: the stacks ----------------------------------------------------------------

    def batch(self, n: int) -> Stacks:
        """The examples of one batch.

        Args:
            n: Its number.

        Returns:
            The stacks.
        """
        rng = np.random.default_rng((self.seed, n))
        self.random.manual_seed(int(rng.integers(2**62)))
        items = [self._item(rng, i < self.real) for i in range(self.size)]
        coords = self._coordinates(items)
        flat, inside = self._places(items, coords)
        label, region = self.store.label[flat].long(), self.store.region[flat].long()
        by_region = self._tensor([item.by_region for item in items])[:, None, None, None]
        values = torch.where(by_region, region, label)
        target = self._looked_up([item.table for item in items], values) & inside
        others = self._looked_up([item.others for item in items], values) & inside & ~target
        image = self._images(rng, items, coords, flat, label)
        image, target, others = self._with_shapes(items, image, target, others)
        image = normalised(self._degraded(image, inside), inside)
        index, count = self._labelled(rng, target)
        masks = _planes(target, index)
        thickness = self._tensor([item.thickness for item in items]).float()
        x, prior = features(image, masks, index, thickness, _planes(others, index))
        weight = inside.float()
        at = torch.arange(target.shape[1], device=target.device)
        unlabelled = ~(index[:, :, None] == at).any(1)
        weight = weight * unlabelled[:, :, None, None] * (count > 0)[:, None, None, None]
        return Stacks(x, prior, target, weight, count)

    def _tensor(self, values: Any) -> Tensor:
        array = torch.from_numpy(np.asarray(values))
        if self.store.device.type == "cuda":
            return array.pin_memory().to(self.store.device, non_blocking=True)
        return array

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, device=self.store.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random, device=self.store.device)

    def _smooth(self, channels: int, grid: tuple[int, int, int]) -> Tensor:
        """Smooth noise (B, channels, D, H, W), about -2 to 2."""
        size = (self.recipe.slices, self.recipe.side, self.recipe.side)
        coarse = self._normal(self.size, channels, *grid)
        return F.interpolate(coarse, size, mode="trilinear", align_corners=True)

    def _grid(self) -> list[Tensor]:
        d, side = self.recipe.slices, self.recipe.side
        sizes = (d, side, side)
        device = self.store.device
        axes = [torch.arange(n, device=device) - (n - 1) / 2 for n in sizes]
        return list(torch.meshgrid(*axes, indexing="ij"))

    def _coordinates(self, items: list[_Item]) -> Tensor:
        """Voxel coordinates (B, D, H, W, 3) of every pixel."""
        grid = torch.stack(self._grid(), -1).expand(self.size, -1, -1, -1, -1)
        if not self.plain:
            strength = self._uniform(self.size, 1, 1, 1, 1).square() * 4
            bend = self._smooth(3, (5, 5, 5)).movedim(1, -1) * strength
            grid = grid + bend * bend.new_tensor([0.4, 1.0, 1.0])
        matrix = self._tensor(np.stack([item.matrix for item in items])).float()
        centre = self._tensor(np.stack([item.centre for item in items])).float()
        moved = grid.flatten(1, 3) @ matrix.mT + centre[:, None]
        return moved.view(grid.shape)

    def _places(self, items: list[_Item], coords: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the nearest voxels in the flat arrays, and which are inside the scan."""
        rows = [self.store.rows[item.volume] for item in items]
        shape = self._tensor([row["shape"] for row in rows])[:, None, None, None]
        nearest = coords.round().long()
        inside = ((nearest >= 0) & (nearest < shape)).all(-1)
        return self._flat(rows, nearest, shape), inside

    def _flat(self, rows: list[dict[str, Any]], voxel: Tensor, shape: Tensor) -> Tensor:
        offset = self._tensor([row["offset"] for row in rows])[:, None, None, None]
        voxel = torch.minimum(voxel.clamp(min=0), shape - 1)
        z, y, x = voxel.unbind(-1)
        return offset + (z * shape[..., 1] + y) * shape[..., 2] + x

    def _looked_up(self, tables: list[np.ndarray], values: Tensor) -> Tensor:
        table = self._tensor(np.stack(tables))
        return table.gather(1, values.flatten(1)).view(values.shape)

    def _images(
        self,
        rng: np.random.Generator,
        items: list[_Item],
        coords: Tensor,
        flat: Tensor,
        label: Tensor,
    ) -> Tensor:
        """Images (B, D, H, W), of about 0 to 1: drawn ones first, then real ones."""
        drawn, real = self.real, self.size - self.real
        parts = []
        if drawn:
            mean = self._tensor(np.stack([_means(rng) for _ in range(drawn)])).float()
            deviation = self._tensor(rng.uniform(0, 0.1, (drawn, 256))).float()
            index = label[:drawn].flatten(1)
            value = mean.gather(1, index).view(label[:drawn].shape)
            spread = deviation.gather(1, index).view(value.shape)
            parts.append(value + spread * self._normal(*value.shape))
        if real:
            parts.append(self._real(rng, items[drawn:], coords[drawn:]))
        return torch.cat(parts)

    def _real(self, rng: np.random.Generator, items: list[_Item], coords: Tensor) -> Tensor:
        rows = [self.store.rows[item.volume] for item in items]
        shape = self._tensor([row["shape"] for row in rows])[:, None, None, None]
        low = coords.floor()
        part = coords - low
        low = low.long()
        grey = torch.zeros(coords.shape[:-1], device=coords.device)
        for corner in np.ndindex(2, 2, 2):
            weight = torch.ones_like(grey)
            for a, c in enumerate(corner):
                weight = weight * (part[..., a] if c else 1 - part[..., a])
            step = torch.tensor(corner, device=coords.device)
            grey += weight * self.store.image[self._flat(rows, low + step, shape)]
        if self.plain:
            return grey / GREYS
        grey = grey + self._uniform(*grey.shape) - 0.5
        grey = grey.clamp(0, GREYS - 1.001)
        curve = self._tensor(np.stack([_curve(rng) for _ in items])).float()
        floor = grey.long().flatten(1)
        share = grey.flatten(1) - floor
        value = curve.gather(1, floor) * (1 - share) + curve.gather(1, floor + 1) * share
        return value.view(grey.shape)

    def _with_shapes(
        self, items: list[_Item], image: Tensor, target: Tensor, others: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Some examples with a random shape, which is a little brighter or darker."""
        if self.plain:
            return image, target, others
        z, y, x = (axis[None] for axis in self._grid())
        one = (self.size, 1, 1, 1)
        side, slices = self.recipe.side, self.recipe.slices
        radius = [side * (0.06 + 0.28 * self._uniform(*one).square()) for _ in range(2)]
        reach = slices * (0.1 + 0.9 * self._uniform(*one).square())
        drift = [self._normal(*one) * 0.25 * z + self._normal(*one) * 0.006 * z**2 for _ in "yx"]
        z = z + self._normal(*one) * 0.15 * slices
        angle = self._uniform(*one) * np.pi
        y, x = y - drift[0], x - drift[1]
        y, x = angle.cos() * y + angle.sin() * x, angle.cos() * x - angle.sin() * y
        far = ((y / radius[0]).square() + (x / radius[1]).square() + (z / reach).square()).sqrt()
        far = far + 0.3 * self._uniform(*one) * self._smooth(1, (7, 8, 8))[:, 0]
        blob = far < 1
        contrast = self._normal(*one) * 0.3
        contrast = contrast + 0.08 * contrast.sign()
        chosen = self._tensor([item.shape for item in items])[:, None, None, None]
        image = torch.where(chosen & blob, image + contrast, image)
        return image, torch.where(chosen, blob, target), others & ~(chosen & blob)

    def _degraded(self, image: Tensor, inside: Tensor) -> Tensor:
        """Blur, bias field and noise."""
        if self.plain:
            return image
        one = (self.size, 1, 1, 1)
        for kernel, pad in (((1, 3, 3), (0, 1, 1)), ((1, 3, 3), (0, 1, 1)), ((3, 1, 1), (1, 0, 0))):
            blurred = F.avg_pool3d(image[:, None], kernel, 1, pad, count_include_pad=False)[:, 0]
            image = torch.lerp(image, blurred, (1.6 * self._uniform(*one) - 0.6).clamp(0, 1))
        image = image * (0.25 * self._uniform(*one) * self._smooth(1, (3, 4, 4))[:, 0]).exp()
        return image + 0.12 * self._uniform(*one).square() * self._normal(*image.shape)

    def _labelled(self, rng: np.random.Generator, target: Tensor) -> tuple[Tensor, Tensor]:
        """Which slices are labelled (B, K), -1 for none; and how many hold the structure (B,)."""
        b, d = target.shape[:2]
        area = target.sum((2, 3))
        present = area >= 6
        rank = present.cumsum(1)
        number = rank[:, -1:]
        wanted = rng.choice([1, 2, 3, 4, 5, 7], b, p=[0.28, 0.2, 0.22, 0.1, 0.12, 0.08])
        spread = self._tensor(rng.random(b) < 0.7)[:, None]
        ends = self._tensor(rng.random(b) < 0.6)[:, None]
        count = self._tensor(wanted)[:, None]
        slot = torch.arange(MOST, device=target.device)[None]
        even = torch.where(ends, slot / (count - 1).clamp(min=1), (slot + 0.5) / count)
        even = (even * (number - 1)).round()
        anywhere = (self._uniform(b, MOST) * number).floor()
        place = torch.where(spread, even, anywhere).long()
        index = (rank[:, None, :] < place[:, :, None] + 1).sum(2)
        largest = area.argmax(1, keepdim=True)
        index = torch.where(spread & (count == 1), largest, index)
        valid = (slot < count) & (number > 0) & (index < d)
        index = torch.where(valid, index, -1)
        # an empty slice just beyond an end, labelled as empty
        first = (rank < 1).sum(1)
        last = (rank < number).sum(1)
        beyond = self._tensor(rng.choice([1, 1, 2, 4], (b, 2)))
        empty = torch.stack([first - beyond[:, 0], last + beyond[:, 1]], 1)
        known = self._tensor(rng.random((b, 2)) < 0.35) & (number > 0)
        empty = torch.where(known & (empty >= 0) & (empty < d), empty, -1)
        return torch.cat([index, empty], 1), valid.sum(1)


def _planes(mask: Tensor, index: Tensor) -> Tensor:
    """Labelled slices (B, K, H, W) of masks (B, D, H, W)."""
    at = index.clamp(min=0)[..., None, None].expand(-1, -1, *mask.shape[2:])
    return mask.gather(1, at)


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """A turn in the plane of the slices, and a slight tilt of it."""
    turn = rng.normal(0, 0.35) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    tilt, roll = rng.normal(0, 0.1, 2)
    out = np.eye(3)
    for (a, b), angle in (((1, 2), turn), ((0, 1), tilt), ((0, 2), roll)):
        one = np.eye(3)
        one[[a, b], [a, b]] = np.cos(angle)
        one[a, b], one[b, a] = -np.sin(angle), np.sin(angle)
        out = out @ one
    return out


def _means(rng: np.random.Generator) -> np.ndarray:
    """A mean intensity for each structure; sometimes few different ones."""
    means = rng.uniform(0, 1, 256)
    if rng.random() < 0.3:
        few = int(rng.integers(3, 8))
        means = rng.uniform(0, 1, few)[rng.integers(0, few, 256)]
    if rng.random() < 0.5:
        means[0] = 0
    return means


def _curve(rng: np.random.Generator) -> np.ndarray:
    """A random curve over the grey values, mostly monotone."""
    knots = int(rng.integers(3, 8))
    x = np.sort(np.concatenate([[0, 1], rng.uniform(0, 1, knots - 2)]))
    if rng.random() < 0.65:
        y = np.cumsum(rng.gamma(2, 1, knots))
        y = (y - y[0]) / (y[-1] - y[0])
        y = y * rng.uniform(0.7, 1) + (1 - rng.uniform(0.7, 1)) * x
    else:
        y = rng.uniform(0, 1, knots)
    if rng.random() < 0.25:
        y = 1 - y
    return np.interp(np.linspace(0, 1, GREYS), x, y)
