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

from contextseg.data.topology import largest_patch, topology, training_gb
from contextseg.data.windows import window
from contextseg.disk import Problem, read_json, write_json
from contextseg.volume import AXIAL, axis_moves


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
    roi: tuple[Sequence[float] | np.ndarray, ...]


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    kind "ct": clip to [low, high], subtract mean, divide by sd, numbers of the training set; "window": clip to
    [low, high], in HU, and that to 0..1; "zscore": by mean and sd of each case inside its body; "none": as it is;
    "rescale": [low, high] to 0..1, or where these are equal the case's own extremes; "place": no intensity, but where
    along D a slice lies, 0 to 1, which says how far up the body it is (`prepare.slice_places`).

    source  which of the scan's channels it is made from; -1 for the one at its own place. So one CT feeds several.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0
    source: int = -1

    def made_from(self, place: int) -> int:
        """The index of the scan's channel that this one, at that place of a plan, is made from."""
        return place if self.source < 0 else self.source


PLACE = Channel("slice position", "place", source=0)
"""The channel that `slice_position` adds."""


@dataclass(frozen=True)
class Plan:
    """Everything that preprocessing, sampling and the network must agree on. Frozen; JSON on disk.

    classes      K names, background first; `values` are theirs in label files; `regions` names what is evaluated, as
                 unions of class indices.
    orientation  the axes D, H, W of all arrays; D is the slice axis of 2-D networks.
    patch_vox    two numbers (H, W) for 2-D networks, three for 3-D.
    mirror       which of D, H, W may be mirrored; `swaps` are the classes that change places left to right.
    widths, strides, kernels  the network's levels, full resolution first.
    batch_dice   whether the Dice loss pools the items of a batch; nnU-Net's word, and its rule: for 2-D networks.
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
    batch_dice: bool = False

    @property
    def dims(self) -> int:
        """2 or 3: what the network sees."""
        return len(self.patch_vox)

    @property
    def scanned(self) -> tuple[str, ...]:
        """The names of a scan's channels: fewer than `channels`, where one feeds several."""
        names = {c.made_from(i): c.name for i, c in enumerate(self.channels[: self.intensities])}
        return tuple(names[i] for i in sorted(names))

    @property
    def intensities(self) -> int:
        """How many of the channels, the first ones, hold intensities; after them may come the slice's place."""
        return len([channel for channel in self.channels if channel.kind != "place"])

    @property
    def ct(self) -> bool:
        """Whether the scans are in Hounsfield units; the first channel says so."""
        return is_ct(self.channels[0].name)

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
        """Read a plan. Raises `Problem` where the file is missing, is no JSON, lacks a field, or contradicts itself."""
        content = read_json(path)
        try:
            content["channels"] = tuple(Channel(**channel) for channel in content["channels"])
            content["regions"] = {name: tuple(union) for name, union in content["regions"].items()}
            plan = Plan(**{name: _frozen(value) for name, value in content.items()})
            wrong = _contradiction(plan)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise Problem(path, f"not a plan ({what})", "make it again with `contextseg plan`") from error
        if wrong:
            raise Problem(path, wrong, "correct it in the file, or make it again with `contextseg plan`")
        return plan


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def _contradiction(plan: Plan) -> str:
    """What cannot be in a plan that somebody edited; "" if nothing."""
    axis_moves(AXIAL, plan.orientation)
    levels, classes = (plan.widths, plan.strides, plan.kernels), range(len(plan.classes))
    named = {k for group in (*plan.regions.values(), *plan.swaps) for k in group}
    sources = {channel.made_from(i) for i, channel in enumerate(plan.channels)}
    facts = {
        "spacing_mm has three positive numbers": len(plan.spacing_mm) == 3 and min(plan.spacing_mm) > 0,
        "patch_vox has two or three positive whole numbers": plan.dims in (2, 3) and _counts(plan.patch_vox),
        "batch_size is a positive whole number": _counts([plan.batch_size]),
        "mirror has three entries": len(plan.mirror) == 3,
        "each class has one value": len(plan.classes) == len(plan.values) > 0,
        "regions and swaps name classes by their index": named <= set(classes),
        "there is a channel": len(plan.channels) > 0,
        "the channels are made from a scan's first, second, and so on": sources == set(range(len(sources))),
        "a slice's place is the last channel, after one of the scan": all(
            c.kind != "place" for c in (*plan.channels[:1], *plan.channels[:-1])
        ),
        "a window's low end is below its high end": all(c.low < c.high for c in plan.channels if c.kind == "window"),
        "widths, strides and kernels have as many levels": len({len(part) for part in levels}) == 1
        and _counts(plan.widths),
        "strides and kernels have as many axes as patch_vox": all(
            len(axes) == plan.dims and _counts(axes) for axes in (*plan.strides, *plan.kernels)
        ),
    }
    return next((f"not so: {fact}" for fact, holds in facts.items() if not holds), "")


def _counts(numbers: Iterable[Any]) -> bool:
    return all(isinstance(n, int) and n > 0 for n in numbers)


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
    ct_windows: str | Sequence[str] = (),
    batch_dice: bool | None = None,
    slice_position: bool = False,
) -> Plan:
    """The plan for a data set, from the facts of its *training* cases.

    `memory_gb` is what one training step may take (activations, gradients, weights; float16 on a GPU takes about half).
    What is given (`spacing_mm` in the order D, H, W; `patch_vox`; `batch_size`) is kept; the rest follows from it.
    `ct_windows` names windows (of `data.windows`; as text with commas between) through which the network sees a CT, one
    channel each, in place of the training set's intensities. `batch_dice` None: in 2-D.
    `slice_position` gives the network one channel more, which says how far along D each slice lies.
    Raises `Problem` if there is no case, an argument makes no sense, or the budget is too small for the smallest patch.
    """
    given = {"spacing_mm": spacing_mm, "patch_vox": patch_vox, "batch_size": batch_size, "memory_gb": memory_gb}
    _check_given(dataset, dims, {**given, "base_width": base_width, "max_levels": max_levels}, facts)
    orientation, spacing, median_shape = _common_grid(facts, dims, spacing_mm)
    use = slice(3 - dims, 3)
    widest = max_width or (320 if dims == 3 else 512)

    def levels(patch: Sequence[int]) -> dict[str, tuple]:
        strides, kernels = topology(patch, spacing[use], max_levels)
        widths = tuple(min(base_width * 2**i, widest) for i in range(len(strides)))
        return {"widths": widths, "strides": strides, "kernels": kernels}

    def fits(patch: Sequence[int], batch: int) -> bool:
        return training_gb(patch, batch, len(classes), **levels(patch)) <= memory_gb

    batch = batch_size or 2
    patch: Any = tuple(int(n) for n in patch_vox) if patch_vox else None
    patch = patch or largest_patch(median_shape[use], spacing[use], lambda p: fits(p, batch))
    if patch is None:
        raise Problem(dataset, f"no patch fits into {memory_gb} GB", "raise memory_gb, or lower base_width")
    if batch_size is None:  # nnU-Net's cap: a batch holds at most 5 % of the data set's voxels
        cap = int(0.05 * len(facts) * np.prod(median_shape) / np.prod(patch))
        while batch < min(cap, 64) and fits(patch, batch + 1):
            batch += 1
    swaps, mirrors = lateral(classes)
    return Plan(
        dataset=dataset,
        classes=tuple(classes),
        values=tuple(values),
        regions=dict(regions),
        channels=_channels(dataset, channels, facts, ct_windows) + (PLACE,) * slice_position,
        orientation=orientation,
        spacing_mm=_three(float(s) for s in spacing),
        patch_vox=patch,
        batch_size=batch,
        mirror=_three(mirrors or letter not in "RL" for letter in orientation),
        swaps=swaps,
        batch_dice=dims == 2 if batch_dice is None else batch_dice,
        **levels(patch),
    )


def _check_given(dataset: str, dims: int, given: Mapping[str, Any], facts: Sequence[Facts]) -> None:
    """Raise `Problem` for an argument of `make_plan` that makes no sense, and where there is no case."""
    if dims not in (2, 3):
        raise Problem(dataset, f"dims = {dims}", "choose 2 or 3")
    for name, value in given.items():
        count = {"spacing_mm": 3, "patch_vox": dims}.get(name, 1)
        numbers = [value] if count == 1 else value
        if value is not None and (len(numbers) != count or min(numbers) <= 0):
            remedy = f"give {count} positive numbers for a {dims}-D network" if count > 1 else "give a positive number"
            raise Problem(dataset, f"{name} = {value}", remedy)
    if not facts:
        raise Problem(dataset, "there is no case to plan with", "put scans into the training folder")


def _common_grid(
    facts: Sequence[Facts], dims: int, spacing_mm: Sequence[float] | None
) -> tuple[str, np.ndarray, np.ndarray]:
    """The orientation of all arrays, their spacing, and the median case's shape there."""
    orientation = _slices_first(facts) if dims == 2 else AXIAL
    order = [AXIAL.index(letter) for letter in orientation]
    spacings = np.array([[f.spacing_mm[i] for i in order] for f in facts])
    shapes = np.array([[f.shape[i] for i in order] for f in facts])
    spacing = np.array(spacing_mm, float) if spacing_mm is not None else target_spacing(spacings, shapes)
    median_shape = np.median(np.rint(shapes * spacings / spacing), axis=0).astype(int).clip(1)
    return orientation, spacing, median_shape


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


# --- left and right, intensities ------------------------------------------------------------------------------------

_SIDES = [("left", "right"), ("l", "r"), ("lt", "rt"), ("lh", "rh")]
_OPPOSITE = dict(_SIDES) | {b: a for a, b in _SIDES}
_NOT_PAIRED = re.compile(r"atri|ventric|heart|lobe", re.IGNORECASE)


def lateral(classes: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], bool]:
    """Which class indices change places in a left-right mirror, and whether such a mirror may be used at all.

    It may not where a class has a side but no partner, or where the sides are not mirror images (heart, lung lobes).
    A name is taken apart at spaces, signs and capitals: "kidney_left", "Left-Kidney", "KidneyL" have a side, "bright"
    has none, and neither has a lone "L".

    >>> lateral(["background", "right_parotid", "left_parotid", "mandible"])
    (((1, 2),), True)
    >>> lateral(["background", "left_kidney"])
    ((), False)
    """
    words = [_words(name) for name in classes]
    pairs: set[tuple[int, int]] = set()
    allowed = True
    for i, parts in enumerate(words):
        partners = [[*parts[:j], _OPPOSITE[w], *parts[j + 1 :]] for j, w in enumerate(parts) if w in _OPPOSITE]
        known = [words.index(partner) for partner in partners if partner in words]
        if known and not _NOT_PAIRED.search(classes[i]):
            pairs.add((min(i, known[0]), max(i, known[0])))
        elif partners and parts not in (["l"], ["r"]):
            allowed = False
    return tuple(sorted(pairs)), allowed


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def is_ct(channel: str) -> bool:
    """Whether a channel of that name holds Hounsfield units; nnU-Net's word for them is "CT"."""
    return channel.strip().lower() == "ct"


def _channels(
    dataset: str, names: Sequence[str], facts: Sequence[Facts], ct_windows: str | Sequence[str]
) -> tuple[Channel, ...]:
    """How each of the scan's channels is normalised; with windows, the channels that a CT is seen through."""
    if not ct_windows:
        return tuple(_channel(name, [f.roi[i] for f in facts if f.roi]) for i, name in enumerate(names))
    if len(names) != 1 or not is_ct(names[0]):
        what = f"windows are for scans of one channel, CT; these have {', '.join(names)}"
        raise Problem(dataset, what, "leave ct_windows out, or name the channel CT where it holds Hounsfield units")
    chosen = ct_windows.split(",") if isinstance(ct_windows, str) else ct_windows
    return tuple(Channel(names[0], "window", *window(name), source=0) for name in chosen)


def _channel(name: str, samples: Sequence[Sequence[float] | np.ndarray]) -> Channel:
    """nnU-Net's rule: the channel's name says how it is normalised; CT by the ROI voxels of the training cases."""
    lower = name.strip().lower()
    if lower in ("nonorm", "none"):
        return Channel(name, "none")
    if lower == "rescale_to_0_1":
        return Channel(name, "rescale")
    if lower == "rgb_to_0_1":
        return Channel(name, "rescale", 0.0, 255.0)
    values = np.concatenate([np.asarray(s, float) for s in samples]) if samples else np.zeros(0)
    if not is_ct(name) or not len(values):
        return Channel(name, "zscore")
    low, high = np.percentile(values, (0.5, 99.5))
    inside = np.clip(values, low, high)
    sd = float(inside.std())
    return Channel(name, "ct", float(low), float(high), float(inside.mean()), sd if sd > 1e-6 else 1.0)
