"""What the data told us: facts about each scan (a fingerprint) become a `Plan`; both are JSON that a person may edit.

The rules are nnU-Net's in shape (Isensee et al., Nature Methods 2021): median spacing, the largest patch that memory
allows, as many levels as the patch can be halved. Differences: intensities come from the training cases alone, the
budget is a number of gibibytes on any machine, and what mirrors to what is part of the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import Problem, read_json, write_json
from contextseg.volume import AXIAL


@dataclass(frozen=True)
class Facts:
    """One scan, in the orientation "SAR": what planning needs to know of it.

    shape and spacing_mm are those of the body's box; `roi` holds, for each channel, a sample of the intensities of
    labelled foreground voxels (empty without a label); `orientation` is the one on disk.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    roi: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    kind "ct": clip to [low, high], subtract mean, divide by sd, numbers of the training set; "zscore": by mean and sd of
    each case inside its body; "none": as it is; "rescale": to 0..1 between the case's extremes.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Everything that preprocessing, sampling and the network must agree on. Frozen; JSON on disk.

    classes      K names, background first; `values` are theirs in label files; `regions` names what is evaluated, as
                 unions of class indices.
    orientation  the axes D, H, W of all arrays; D is the slice axis of 2-D networks.
    patch_vox    two numbers (H, W) for 2-D networks, three for 3-D.
    mirror       which of D, H, W may be mirrored; `swaps` are the classes that change places left to right.
    widths, strides, kernels  the network's levels, full resolution first.
    """

    dataset: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    regions: Mapping[str, tuple[int, ...]]
    channels: tuple[Channel, ...]
    orientation: str
    spacing_mm: tuple[float, float, float]
    patch_vox: tuple[int, ...]
    batch_size: int
    mirror: tuple[bool, bool, bool]
    swaps: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def dims(self) -> int:
        """2 or 3: what the network sees."""
        return len(self.patch_vox)

    @property
    def lateral_axis(self) -> int:
        """The index into (D, H, W) of the left-right axis."""
        return next(i for i, letter in enumerate(self.orientation) if letter in "RL")

    @property
    def orders(self) -> tuple[int, int, int]:
        """The splines' orders along D, H, W: cubic, but linear across slices more than three times as thick."""
        return _three(1 if s > 3 * min(self.spacing_mm) else 3 for s in self.spacing_mm)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan. Raises `Problem` where the file is missing, is no JSON, or lacks a field."""
        content = read_json(path)
        try:
            content["channels"] = tuple(Channel(**channel) for channel in content["channels"])
            content["regions"] = {name: tuple(union) for name, union in content["regions"].items()}
            return Plan(**{name: _frozen(value) for name, value in content.items()})
        except (TypeError, KeyError, AttributeError) as error:
            raise Problem(path, f"not a plan ({error})", "make it again with `contextseg plan`") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# --- rules ----------------------------------------------------------------------------------------------------------


def make_plan(
    dataset: str,
    classes: Sequence[str],
    values: Sequence[int],
    regions: Mapping[str, tuple[int, ...]],
    channels: Sequence[str],
    facts: Sequence[Facts],
    *,
    dims: int = 3,
    memory_gb: float = 8.0,
    spacing_mm: Sequence[float] | None = None,
    patch_vox: Sequence[int] | None = None,
    batch_size: int | None = None,
    base_width: int = 32,
    max_width: int | None = None,
    max_levels: int = 7,
) -> Plan:
    """The plan for a data set, from the facts of its *training* cases.

    `memory_gb` is what one training step may take (activations, gradients, weights; float16 on a GPU takes about half).
    Whatever is given (`spacing_mm` in the order D, H, W; `patch_vox`; `batch_size`) is kept and the rest follows from it.
    Raises `Problem` if there is no case, or the budget is too small for the smallest patch.
    """
    if not facts:
        raise Problem(dataset, "there is no case to plan with", "put scans into the training folder")
    if dims not in (2, 3):
        raise Problem(dataset, f"dims = {dims}", "choose 2 or 3")
    orientation = _slices_first(facts) if dims == 2 else AXIAL
    order = [AXIAL.index(letter) for letter in orientation]
    spacings = np.array([[f.spacing_mm[i] for i in order] for f in facts])
    shapes = np.array([[f.shape[i] for i in order] for f in facts])
    spacing = np.array(spacing_mm, float) if spacing_mm is not None else target_spacing(spacings, shapes)
    median_shape = np.median(np.rint(shapes * spacings / spacing), axis=0).astype(int).clip(1)
    use = slice(3 - dims, 3)
    max_width = max_width or (320 if dims == 3 else 512)

    def level_plan(patch: Sequence[int]) -> dict[str, tuple]:
        strides, kernels = topology(patch, spacing[use], max_levels)
        widths = tuple(min(base_width * 2**i, max_width) for i in range(len(strides)))
        return {"widths": widths, "strides": strides, "kernels": kernels}

    def cost_gb(patch: Sequence[int], batch: int) -> float:
        return training_gb(patch, batch, len(classes), **level_plan(patch))

    batch = batch_size or 2
    if patch_vox is None:
        patch = largest_patch(median_shape[use], spacing[use], lambda p: cost_gb(p, batch) <= memory_gb)
        if patch is None:
            raise Problem(dataset, f"no patch fits into {memory_gb} GB", "raise memory_gb, or lower base_width")
    else:
        patch = tuple(int(n) for n in patch_vox)
        if len(patch) != dims:
            raise Problem(dataset, f"patch_vox = {patch} for a {dims}-D network", f"give {dims} numbers")
    if batch_size is None:  # nnU-Net's cap: a batch holds at most 5 % of the data set's voxels
        cap = max(2, int(0.05 * len(facts) * np.prod(median_shape) / np.prod(patch)))
        while batch < min(cap, 64) and cost_gb(patch, batch + 1) <= memory_gb:
            batch += 1
    swaps, mirrors = lateral(classes)
    kinds = tuple(_channel(name, [f.roi[i] for f in facts if f.roi]) for i, name in enumerate(channels))
    return Plan(
        dataset=dataset,
        classes=tuple(classes),
        values=tuple(values),
        regions=dict(regions),
        channels=kinds,
        orientation=orientation,
        spacing_mm=_three(float(s) for s in spacing),
        patch_vox=patch,
        batch_size=batch,
        mirror=_three(mirrors or letter not in "RL" for letter in orientation),
        swaps=swaps,
        **level_plan(patch),
    )


def _three(values: Iterable[Any]) -> tuple[Any, Any, Any]:
    d, h, w = values
    return d, h, w


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """nnU-Net's rule, (N, 3) and (N, 3) to (3,): the median, but the 10th percentile along an axis of thick slices."""
    target = np.median(spacings, axis=0)
    coarse = int(np.argmax(target))
    others = [i for i in range(3) if i != coarse]
    thick = target[coarse] > 3 * target[others].max()
    few = np.median(shapes, axis=0)[coarse] * 3 < np.median(shapes, axis=0)[others].min()
    if thick and few:
        target[coarse] = max(np.percentile(spacings[:, coarse], 10), target[others].max())
    return target


def _slices_first(facts: Sequence[Facts]) -> str:
    """The orientation whose D is the axis of thickest slices, where one is clearly thicker; else axial."""
    spacing = np.median([f.spacing_mm for f in facts], axis=0)
    coarse = int(np.argmax(spacing))
    if spacing[coarse] <= 1.5 * np.median(spacing):
        return AXIAL
    return AXIAL[coarse] + AXIAL.replace(AXIAL[coarse], "")


def topology(
    patch: Sequence[int], spacing_mm: Sequence[float], max_levels: int = 7, smallest: int = 4
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """(strides, kernels) of each level: halve an axis while `smallest` voxels remain and its spacing is not the coarse one.

    An axis is skipped, and its kernel is 1, while its voxels are more than twice as long as the finest.

    >>> topology((32, 32, 32), (4, 4, 4))[0]
    ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    size, spacing = np.array(patch), np.array(spacing_mm, float)
    strides: list[tuple[int, ...]] = [(1,) * len(size)]
    kernels: list[tuple[int, ...]] = [_kernel(spacing)]
    while len(strides) < max_levels:
        wanted = (spacing / spacing[size >= 2 * smallest].min() < 2) if (size >= 2 * smallest).any() else size < 0
        halved = np.where(wanted & (size >= 2 * smallest), 2, 1)
        if (halved == 1).all():
            break
        size, spacing = size // halved, spacing * halved
        strides.append(tuple(int(s) for s in halved))
        kernels.append(_kernel(spacing))
    return tuple(strides), tuple(kernels)


def _kernel(spacing: np.ndarray) -> tuple[int, ...]:
    return tuple(3 if s <= 2 * spacing.min() else 1 for s in spacing)


def training_gb(
    patch: Sequence[int],
    batch: int,
    classes: int,
    widths: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]],
) -> float:
    """Gibibytes that one float32 training step of a plain U-Net takes, near enough to plan by.

    Each conv block keeps its input for the weights' gradient, the normalised map and the activation; gradients of the two
    largest maps live at once; weights are held four times (value, gradient, momentum, workspace).
    """
    size, maps, weights = np.array(patch, float), 0.0, 0.0
    before = 1
    for width, stride, kernel in zip(widths, strides, kernels):
        size = np.ceil(size / stride)
        maps += size.prod() * width * (3 * 4 + 1)  # four convs a level, there and back, and the skip
        weights += np.prod(kernel) * (before * width + 4 * width * width)
        before = width
    top = float(np.prod(patch))
    return float(4 * (batch * (maps + top * (2 * widths[0] + 4 * classes)) + 4 * weights) / 2**30)


def largest_patch(
    median_shape: np.ndarray, spacing_mm: np.ndarray, fits: Any, smallest: int = 16
) -> tuple[int, ...] | None:
    """The largest patch, at most the median case, that `fits`: equal extents in mm where the case allows.

    Grown from small to large; each side is a multiple of what its halvings need. None if not even the smallest fits.
    """
    best = None
    for extent in np.geomspace(smallest * spacing_mm.min(), 2 * (median_shape * spacing_mm).max(), 200):
        side = np.minimum(np.rint(extent / spacing_mm), median_shape).astype(int).clip(1)
        patch = tuple(_rounded(side, spacing_mm, median_shape))
        if patch != best and (best is None or np.prod(patch) > np.prod(best)):
            if not fits(patch):
                break
            best = patch
    return best


def _rounded(side: np.ndarray, spacing_mm: np.ndarray, median_shape: np.ndarray) -> list[int]:
    """Each side rounded to a multiple of the network's total stride along it."""
    strides, _ = topology(tuple(side), spacing_mm)
    total = np.prod(np.array(strides), axis=0)
    down = np.maximum(side // total, 1) * total
    up = -(-side // total) * total
    return [int(u if u <= s + t // 4 else d) for u, d, s, t in zip(up, down, side, total)]


# --- left and right, intensities ------------------------------------------------------------------------------------

_SIDES = {"left": "right", "right": "left", "l": "r", "r": "l", "lt": "rt", "rt": "lt"}
_NOT_PAIRED = re.compile(r"atri|ventric|heart|lobe", re.IGNORECASE)


def lateral(classes: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], bool]:
    """Which class indices change places in a left-right mirror, and whether such a mirror may be used at all.

    It may not where a class has a side but no partner, or where the two sides are not mirror images (heart, lung lobes).

    >>> lateral(["background", "right_parotid", "left_parotid", "mandible"])
    (((1, 2),), True)
    >>> lateral(["background", "left_kidney"])
    ((), False)
    """
    words = [re.split(r"[\s_\-./]+", name.lower()) for name in classes]
    pairs: set[tuple[int, int]] = set()
    allowed = True
    for i, parts in enumerate(words):
        sided = [j for j, word in enumerate(parts) if word in _SIDES and len(parts) > 1]
        if not sided:
            continue
        partner = [_SIDES[word] if j in sided else word for j, word in enumerate(parts)]
        if partner in words and not _NOT_PAIRED.search(classes[i]):
            a, b = sorted((i, words.index(partner)))
            pairs.add((a, b))
        else:
            allowed = False
    return tuple(sorted(pairs)), allowed


def _channel(name: str, samples: Sequence[Sequence[float]]) -> Channel:
    """nnU-Net's rule: the channel's name says how it is normalised; CT by the ROI voxels of the training cases."""
    lower = name.strip().lower()
    if lower in ("nonorm", "none"):
        return Channel(name, "none")
    if lower in ("rescale_to_0_1", "rgb_to_0_1"):
        return Channel(name, "rescale")
    values = np.concatenate([np.asarray(s, float) for s in samples]) if samples else np.zeros(0)
    if lower != "ct" or not len(values):
        return Channel(name, "zscore")
    low, high = np.percentile(values, (0.5, 99.5))
    inside = np.clip(values, low, high)
    return Channel(name, "ct", float(low), float(high), float(inside.mean()), float(max(inside.std(), 1e-8)))
