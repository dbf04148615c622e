"""Facts about each scan (a fingerprint) become a `Plan`; both are JSON that a person may edit.

The rules are nnU-Net's in shape (Isensee et al., Nature Methods 2021): median spacing, the largest
patch that memory allows, as many levels as the patch can be halved. Differences: intensities come
from the training cases alone, the budget is a number of gibibytes on any machine, and what mirrors
to what is part of the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.ct_windows import ct_window
from contextseg.data.layouts import Dataset
from contextseg.data.topology import largest_patch, topology, training_gb
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.inputs import misfit, reason_of
from contextseg.volume import AXIAL, axis_moves


@dataclass(frozen=True)
class Facts:
    """What planning needs to know of one scan, in the orientation "SAR".

    Attributes:
        name: Name of the case.
        shape: Number of voxels of the body's box along D, H, W.
        spacing_mm: Spacing along D, H, W.
        orientation: The orientation on disk.
        roi: For each channel, a sample of the intensities of labelled foreground voxels; () without
            a label.
        grid: Number of voxels of the whole scan along D, H, W; () where it is as `shape`.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    roi: tuple[Sequence[float] | np.ndarray, ...]
    grid: tuple[int, ...] = ()


@dataclass(frozen=True)
class Channel:
    """How one channel is normalised.

    The kinds are

    - "ct": clip to [low, high], subtract the mean, divide by sd, all of the training set;
    - "window": clip to [low, high] in HU, then map that to 0..1;
    - "zscore": subtract the mean and divide by the sd of each case inside its body;
    - "none": as it is;
    - "rescale": map [low, high] to 0..1, or the case's own extremes where these are equal;
    - "place": no intensity, but the position of a slice along D, 0 to 1, which tells how far up the
      body it lies (`prepare.slice_places`).

    Attributes:
        name: Name of the channel.
        kind: One of the kinds above.
        low: Lower end of the range.
        high: Upper end of the range.
        mean: Subtracted by "ct".
        sd: Divisor of "ct".
        source: Index of the scan's channel that it is made from, so that one CT can feed several
            channels. -1 for the one at its own place.
    """

    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    sd: float = 1.0
    source: int = -1

    def made_from(self, place: int) -> int:
        """The index of the scan's channel that this one is made from.

        Args:
            place: Index of this channel in its plan.
        """
        return place if self.source < 0 else self.source


PLACE = Channel("slice position", "place", source=0)
"""The channel that `slice_position` adds."""


@dataclass(frozen=True)
class Plan:
    """Everything that preprocessing, sampling and the network must agree on. Frozen; JSON on disk.

    Attributes:
        dataset: Name of the data set.
        classes: Names of the K classes, background first.
        values: The value of each class in label files.
        regions: What is evaluated: the indices of the classes that each name unites.
        channels: How the network's channels are normalised.
        orientation: Axes D, H, W of all arrays; D is the slice axis of 2-D networks.
        spacing_mm: Spacing of all arrays along D, H, W.
        patch_vox: Size of a patch: two numbers (H, W) for 2-D networks, three for 3-D.
        batch_size: Number of items in a batch.
        mirror: Whether each of D, H, W may be mirrored.
        swaps: Pairs of classes that change places in a left-right mirror.
        widths: Number of channels of each level of the network, full resolution first.
        strides: Strides of each level.
        kernels: Kernels of each level.
        batch_dice: Whether the Dice loss pools the items of a batch. nnU-Net's word, and its rule:
            for 2-D networks.
        colours: Colour of a class by name, red, green and blue from 0 to 1; for files and reports.
            A class need not have one. Plans that differ in nothing else are equal.
        terminology: 3D Slicer's terminology entry of a class by name; as `colours`.
        native: Whether scans are only turned, neither cropped nor resampled, so that a 2-D network
            sees each slice as it is. `spacing_mm` is the usual one then, and no scan's.
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
    colours: Mapping[str, tuple[float, float, float]] = field(default_factory=dict, compare=False)
    terminology: Mapping[str, str] = field(default_factory=dict, compare=False)
    native: bool = False

    def region_values(self) -> dict[str, list[int]]:
        """The label values of each region in label files, in the order of `regions`."""
        return {name: [self.values[k] for k in union] for name, union in self.regions.items()}

    @property
    def dims(self) -> int:
        """The dimensions of the network, 2 or 3."""
        return len(self.patch_vox)

    @property
    def scanned(self) -> tuple[str, ...]:
        """Names of a scan's channels: fewer than `channels` where one feeds several."""
        names = {c.made_from(i): c.name for i, c in enumerate(self.channels[: self.intensities])}
        return tuple(names[i] for i in sorted(names))

    @property
    def intensities(self) -> int:
        """Number of channels with intensities; the slice's place may follow them."""
        return len([channel for channel in self.channels if channel.kind != "place"])

    @property
    def ct(self) -> bool:
        """Whether the scans are in Hounsfield units; the first channel says so."""
        return is_ct(self.channels[0].name)

    def orientation_for(self, orientation: str) -> str:
        """Where the axes D, H, W of a scan point once it is prepared; the same for all scans.

        Args:
            orientation: Where the scan's own axes point.
        """
        return self.orientation

    @property
    def lateral_axis(self) -> int:
        """The index into (D, H, W) of the left-right axis."""
        return next(i for i, letter in enumerate(self.orientation) if letter in "RL")

    def target_mm(self, own_mm: tuple[float, float, float]) -> tuple[float, float, float]:
        """The spacing to which a scan is resampled.

        Args:
            own_mm: The scan's own along D, H, W, turned to `orientation`.

        Returns:
            `spacing_mm`; the scan's own where the plan is `native`.
        """
        return own_mm if self.native else self.spacing_mm

    @property
    def orders(self) -> tuple[int, int, int]:
        """Orders of the splines along D, H, W: cubic, but linear across slices 3 times as thick."""
        return _three(1 if s > 3 * min(self.spacing_mm) else 3 for s in self.spacing_mm)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically.

        Args:
            path: The file.
        """
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan.

        Args:
            path: The file.

        Returns:
            The plan.

        Raises:
            ContextsegError: The file is missing, is no JSON, lacks a field, or contradicts itself.
        """
        return Plan.from_json(read_json(path), path)

    @staticmethod
    def from_json(content: dict[str, Any], where: str | Path = "plan") -> Plan:
        """The plan that a JSON file holds.

        Args:
            content: What `save` wrote.
            where: The file, for the message.

        Returns:
            The plan.

        Raises:
            ContextsegError: A field is missing, or the plan contradicts itself.
        """
        remedy = "make it again with `contextseg plan`"
        read = content
        try:
            content = dict(content)
            content["channels"] = tuple(Channel(**channel) for channel in content["channels"])
            content["regions"] = {name: tuple(union) for name, union in content["regions"].items()}
            content["colours"] = {k: tuple(c) for k, c in content.get("colours", {}).items()}
            plan = Plan(**{name: _frozen(value) for name, value in content.items()})
            if what := misfit(read, Plan):
                raise TypeError(what)
            wrong = _contradiction(plan)
        except Exception as error:
            what = f"not a plan ({reason_of(error)})"
            raise ContextsegError(where, what, remedy) from error
        if wrong:
            remedy = "correct it in the file, or make it again with `contextseg plan`"
            raise ContextsegError(where, wrong, remedy)
        return plan


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


_WIDEST = 1 << 14
_LARGEST_KERNEL = 99


def _contradiction(plan: Plan) -> str:
    """What cannot be in a plan that a person edited; "" if nothing."""
    axis_moves(AXIAL, plan.orientation)
    levels = (plan.widths, plan.strides, plan.kernels)
    axes = (*plan.strides, *plan.kernels)
    indices = {k for group in (*plan.regions.values(), *plan.swaps) for k in group}
    sources = {channel.made_from(i) for i, channel in enumerate(plan.channels)}
    not_last = (*plan.channels[:1], *plan.channels[:-1])
    windows = [channel for channel in plan.channels if channel.kind == "window"]
    facts = (
        (
            "spacing_mm has three positive numbers",
            len(plan.spacing_mm) == 3 and min(plan.spacing_mm) > 0,
        ),
        (
            "patch_vox has two or three positive whole numbers",
            plan.dims in (2, 3) and _counts(plan.patch_vox),
        ),
        ("batch_size is a positive whole number", _counts([plan.batch_size])),
        ("mirror has three entries", len(plan.mirror) == 3),
        ("each class has one value", len(plan.classes) == len(plan.values) > 0),
        (
            "values are whole numbers of 32 bits, each once",
            len({*plan.values}) == len(plan.values) and all(abs(v) < 2**31 for v in plan.values),
        ),
        (
            "regions and swaps name classes by their index",
            indices <= set(range(len(plan.classes))),
        ),
        (
            "a colour has three numbers from 0 to 1",
            all(len(c) == 3 and 0 <= min(c) <= max(c) <= 1 for c in plan.colours.values()),
        ),
        ("there is a channel", len(plan.channels) > 0),
        ("native is for 2-D networks", not plan.native or plan.dims == 2),
        (
            "the channels are made from a scan's first, second, and so on",
            sources == set(range(len(sources))),
        ),
        (
            "a slice's place is the last channel, after one of the scan",
            all(channel.kind != "place" for channel in not_last),
        ),
        (
            "a window's low end is below its high end",
            all(channel.low < channel.high for channel in windows),
        ),
        (
            "widths, strides and kernels have as many levels",
            len({len(part) for part in levels}) == 1 and _counts(plan.widths),
        ),
        (f"a width is at most {_WIDEST}", max(plan.widths) <= _WIDEST),
        (
            f"strides and kernels are at most {_LARGEST_KERNEL}",
            all(max(numbers) <= _LARGEST_KERNEL for numbers in axes),
        ),
        (
            "strides and kernels have as many axes as patch_vox",
            all(len(numbers) == plan.dims and _counts(numbers) for numbers in axes),
        ),
    )
    return next((f"not so: {fact}" for fact, holds in facts if not holds), "")


def _counts(numbers: Iterable[Any]) -> bool:
    return all(isinstance(n, int) and n > 0 for n in numbers)


def planned(dataset: Dataset, facts: Sequence[Facts], arguments: Mapping[str, Any]) -> Plan:
    """The plan for a data set.

    Args:
        dataset: The data set.
        facts: Facts of its training cases, see `data.cache.fingerprint`.
        arguments: Arguments of `make_plan`, by name.

    Returns:
        The plan, with the colours of the classes where labels have some.
    """
    data = dataset
    plan = make_plan(
        data.name, data.classes, data.values, data.regions, data.channels, facts, **arguments
    )
    return replace(plan, colours=data.colours, terminology=data.terminology)


# --- rules ----------------------------------------------------------------------------------------


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
    native: bool = False,
) -> Plan:
    """The plan for a data set, from the facts of its training cases.

    What is given (`spacing_mm`, `patch_vox`, `batch_size`) is kept; the rest follows from it.

    Args:
        dataset: Name of the data set.
        classes: Names of its classes, background first.
        values: The value of each class in label files.
        regions: The indices of the classes that each evaluated region unites.
        channels: Names of a scan's channels, which say how they are normalised.
        facts: Facts of the training cases.
        dims: Dimensions of the network, 2 or 3.
        memory_gb: Memory of one training step (activations, gradients, weights), in gibibytes of
            float32; float16 on a GPU takes about half.
        spacing_mm: Spacing along D, H, W. None takes nnU-Net's rule.
        patch_vox: Size of a patch. None takes the largest one that fits into memory.
        batch_size: Number of items in a batch. None takes as many as fit, but at most a twentieth
            of the data set's voxels.
        base_width: Number of channels of the first level.
        max_width: Largest number of channels. None takes nnU-Net's: 320 in 3-D, 512 in 2-D.
        max_levels: Largest number of levels.
        ct_windows: Names of `data.ct_windows`, as text with commas between or one by one. The
            network sees a CT through them, one channel each, in place of the training set's
            intensities.
        batch_dice: Whether the Dice loss pools the items of a batch. None does so in 2-D.
        slice_position: Whether the network gets one more channel, the position of each slice along
            D.
        native: Whether a 2-D network sees the slices as they are, only turned: no crop to the body,
            no resampling (as Pham et al., FLARE22). A patch is then the largest slice of the
            training cases, unless `patch_vox` is given.

    Returns:
        The plan.

    Raises:
        ContextsegError: There is no case, an argument makes no sense, or the budget is too small
            for the smallest patch.
    """
    given = {
        "spacing_mm": spacing_mm,
        "patch_vox": patch_vox,
        "batch_size": batch_size,
        "memory_gb": memory_gb,
        "base_width": base_width,
        "max_levels": max_levels,
    }
    _check_given(dataset, dims, given, facts)
    _check_native(dataset, dims, native, spacing_mm)
    orientation, spacing, median_shape = _common_grid(facts, dims, spacing_mm)
    use = slice(3 - dims, 3)
    widest = max_width or (320 if dims == 3 else 512)

    def levels(patch: Sequence[int]) -> dict[str, Any]:
        strides, kernels = topology(patch, spacing[use], max_levels)
        widths = tuple(min(base_width * 2**i, widest) for i in range(len(strides)))
        return {"widths": widths, "strides": strides, "kernels": kernels}

    def fits(patch: Sequence[int], batch: int) -> bool:
        return training_gb(patch, batch, len(classes), **levels(patch)) <= memory_gb

    batch = batch_size or 2
    patch: Any = tuple(int(n) for n in patch_vox) if patch_vox else None
    if native and patch is None:
        order = [AXIAL.index(letter) for letter in orientation]
        grids = np.array([[(f.grid or f.shape)[i] for i in order] for f in facts])
        patch = tuple(int(n) for n in grids.max(0)[1:])
    patch = patch or largest_patch(median_shape[use], spacing[use], lambda p: fits(p, batch))
    if patch is None:
        what = f"no patch fits into {memory_gb} GB"
        raise ContextsegError(dataset, what, "raise memory_gb, or lower base_width")
    if batch_size is None:  # nnU-Net's cap: a batch holds at most 5 % of the data set's voxels
        cap = int(0.05 * len(facts) * np.prod(median_shape) / np.prod(patch))
        while batch < min(cap, 64) and fits(patch, batch + 1):
            batch += 1

    swaps, lateral_mirror = lateral(classes)
    places = (PLACE,) if slice_position else ()
    return Plan(
        dataset=dataset,
        classes=tuple(classes),
        values=tuple(values),
        regions=dict(regions),
        channels=_channels(dataset, channels, facts, ct_windows) + places,
        orientation=orientation,
        spacing_mm=_three(float(s) for s in spacing),
        patch_vox=patch,
        batch_size=batch,
        mirror=_three(lateral_mirror or letter not in "RL" for letter in orientation),
        swaps=swaps,
        batch_dice=dims == 2 if batch_dice is None else batch_dice,
        native=native,
        **levels(patch),
    )


def _check_native(
    dataset: str, dims: int, native: bool, spacing_mm: Sequence[float] | None
) -> None:
    """Raise `ContextsegError` for native slices of a 3-D network, and with a spacing."""
    if native and dims != 2:
        what = "native slices are for 2-D networks: a 3-D network needs voxels of one size"
        raise ContextsegError(dataset, what, "add dims=2, or leave native out")
    if native and spacing_mm is not None:
        what = "native slices keep each scan's own spacing, and spacing_mm was given"
        raise ContextsegError(dataset, what, "leave one of the two out")


def _check_given(dataset: str, dims: int, given: Mapping[str, Any], facts: Sequence[Facts]) -> None:
    """Raise `ContextsegError` for an argument that makes no sense, and where there is no case."""
    if dims not in (2, 3):
        raise ContextsegError(dataset, f"dims = {dims}", "choose 2 or 3")
    for name, value in given.items():
        count = {"spacing_mm": 3, "patch_vox": dims}.get(name, 1)
        numbers = [value] if count == 1 else value
        if value is not None and (len(numbers) != count or min(numbers) <= 0):
            remedy = "give a positive number"
            if count > 1:
                remedy = f"give {count} positive numbers for a {dims}-D network"
            raise ContextsegError(dataset, f"{name} = {value}", remedy)
    if not facts:
        what = "there is no case to plan with"
        raise ContextsegError(dataset, what, "put scans into the training folder")


def _common_grid(
    facts: Sequence[Facts], dims: int, spacing_mm: Sequence[float] | None
) -> tuple[str, np.ndarray, np.ndarray]:
    """The orientation of all arrays, their spacing, and the median case's shape there."""
    orientation = _slices_first(facts) if dims == 2 else AXIAL
    order = [AXIAL.index(letter) for letter in orientation]
    spacings = np.array([[f.spacing_mm[i] for i in order] for f in facts])
    shapes = np.array([[f.shape[i] for i in order] for f in facts])
    if spacing_mm is None:
        spacing = target_spacing(spacings, shapes)
    else:
        spacing = np.array(spacing_mm, float)
    median_shape = np.median(np.rint(shapes * spacings / spacing), axis=0).astype(int).clip(1)
    return orientation, spacing, median_shape


def _three(values: Iterable[Any]) -> tuple[Any, Any, Any]:
    d, h, w = values
    return d, h, w


def target_spacing(spacings: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """The spacing of all arrays: the median, but finer along an axis of thick slices.

    nnU-Net's rule: along such an axis, the 10th percentile.

    Args:
        spacings: Spacing of each of N cases in mm, (N, 3).
        shapes: Number of voxels of each case, (N, 3).

    Returns:
        The spacing in mm, (3,).
    """
    target = np.median(spacings, axis=0)
    coarse = int(np.argmax(target))
    others = [i for i in range(3) if i != coarse]
    thick = target[coarse] > 3 * target[others].max()
    few = np.median(shapes, axis=0)[coarse] * 3 < np.median(shapes, axis=0)[others].min()
    if thick and few:
        target[coarse] = max(np.percentile(spacings[:, coarse], 10), target[others].max())
    return target


def _slices_first(facts: Sequence[Facts]) -> str:
    """The orientation whose D is the axis of clearly thicker slices; axial where there is none."""
    spacing = np.median([f.spacing_mm for f in facts], axis=0)
    coarse = int(np.argmax(spacing))
    if spacing[coarse] <= 1.5 * np.median(spacing):
        return AXIAL
    return AXIAL[coarse] + AXIAL.replace(AXIAL[coarse], "")


# --- left and right, intensities ------------------------------------------------------------------

_SIDES = [("left", "right"), ("l", "r"), ("lt", "rt"), ("lh", "rh")]
_OPPOSITE = dict(_SIDES) | {b: a for a, b in _SIDES}
_NOT_PAIRED = re.compile(r"atri|ventric|heart|lobe", re.IGNORECASE)


def lateral(classes: Sequence[str]) -> tuple[tuple[tuple[int, int], ...], bool]:
    """The classes that change places in a left-right mirror, and whether such a mirror is allowed.

    It is not where a class has a side but no partner, or where the sides are not mirror images
    (heart, lung lobes). A name is taken apart at spaces, signs and capitals: "kidney_left",
    "Left-Kidney" and "KidneyL" have a side, "bright" has none, and neither has a lone "L".

    Args:
        classes: Names of the classes, background first.

    Returns:
        Pairs of class indices, and whether left and right may be mirrored.

    Example:
        >>> lateral(["background", "right_parotid", "left_parotid", "mandible"])
        (((1, 2),), True)
        >>> lateral(["background", "left_kidney"])
        ((), False)
    """
    words = [_words(name) for name in classes]
    pairs: set[tuple[int, int]] = set()
    allowed = True
    for i, parts in enumerate(words):
        partners = [
            [*parts[:j], _OPPOSITE[w], *parts[j + 1 :]]
            for j, w in enumerate(parts)
            if w in _OPPOSITE
        ]
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
    """Whether a channel holds Hounsfield units; nnU-Net's name for such a channel is "CT".

    Args:
        channel: Name of the channel.
    """
    return channel.strip().lower() == "ct"


def _channels(
    dataset: str, names: Sequence[str], facts: Sequence[Facts], ct_windows: str | Sequence[str]
) -> tuple[Channel, ...]:
    """How each of the scan's channels is normalised; with CT windows, one channel for each."""
    if not ct_windows:
        samples = [[f.roi[i] for f in facts if f.roi] for i in range(len(names))]
        return tuple(_channel(name, sample) for name, sample in zip(names, samples))
    if len(names) != 1 or not is_ct(names[0]):
        what = f"windows are for scans of one channel, CT; these have {', '.join(names)}"
        remedy = "leave ct_windows out, or name the channel CT where it holds Hounsfield units"
        raise ContextsegError(dataset, what, remedy)
    chosen = ct_windows.split(",") if isinstance(ct_windows, str) else ct_windows
    return tuple(Channel(names[0], "window", *ct_window(name), source=0) for name in chosen)


def _channel(name: str, samples: Sequence[Sequence[float] | np.ndarray]) -> Channel:
    """How a channel is normalised, by its name; CT by the ROI voxels of the training cases.

    nnU-Net's rule.
    """
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
    mean = float(inside.mean())
    sd = float(inside.std())
    return Channel(name, "ct", float(low), float(high), mean, sd if sd > 1e-6 else 1.0)
