"""The session: one volume, and the walk of a network over its slices from the labelled ones.

The reference slices, whose labels are given, cut the volume into stretches. A stretch between two
references is walked from both ends, and the probabilities of the two walks are averaged, each
weighted by how near its reference is. A stretch outside the first and the last reference is walked
from the one beside it. Every walk remembers all references; of the slices that it has filled itself
it remembers every fifth and, by default, the last. Walks therefore do not depend on one another,
and a reversed volume gives the same labels, reversed.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816). What we do differently: the memory holds
probabilities (theirs holds sums of two, up to 2); the walks are weighted (theirs count the same);
every slice is filled wherever the references lie; a slice is encoded once for both walks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError
from contextseg.nets.stcn import Encoded
from contextseg.propagation.memory import MemoryBank, aggregate, annotated_positions
from contextseg.propagation.shapes import check_references


class PropagationNetwork(Protocol):
    """What a network must do to propagate masks; `contextseg.nets.stcn.STCN` does it.

    Attributes:
        stride: Pixels to a position of key and value. An image of H pixels has ceil(H / stride)
            positions.
    """

    stride: int

    def encode(self, image: Tensor) -> Encoded: ...  # noqa: D102
    def memorise(self, image: Tensor, encoded: Encoded, masks: Tensor) -> Tensor: ...  # noqa: D102
    def decode(self, encoded: Encoded, read: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class PropagationResult:
    """A filled volume; n is its number of slices along the session's axis.

    Attributes:
        labels: (D, H, W) int16, or int32 for larger values; 0 or one of `classes`. The labels of
            the references stand as given.
        class_confidence: (n, O) float32 in [0, 1], for each slice and class. 1 where a reference is
            fully annotated and holds the class; else the Dice to be expected of the class if the
            probabilities were right. Where two walks met, the mean of that and of their agreement.
            0 where nothing of a class was filled between two references that hold it. NaN where
            there is no such class, and nothing speaks for it.
        agreement: (n,) float32, Dice of the two walks with each other, all classes together. NaN
            where at most one walk came by.
        classes: Label values, in the order of `probabilities` after the background.
        probabilities: (1 + O, D, H, W) float16, the background first. None unless asked for.
    """

    labels: np.ndarray
    class_confidence: np.ndarray
    agreement: np.ndarray
    classes: tuple[int, ...]
    probabilities: np.ndarray | None

    @property
    def confidence(self) -> np.ndarray:
        """(n,): the lowest of the classes of each slice; NaN where there is none."""
        return lowest(self.class_confidence)


def lowest(class_confidence: np.ndarray) -> np.ndarray:
    """The lowest confidence of each slice.

    Args:
        class_confidence: (n, O), NaN where a class is not.

    Returns:
        (n,), NaN where no class is.

    Example:
        >>> lowest(np.array([[0.5, np.nan], [np.nan, np.nan]])).tolist()
        [0.5, nan]
    """
    filled = np.where(np.isnan(class_confidence), np.inf, class_confidence)
    least = filled.min(1, initial=np.inf)
    return np.where(np.isinf(least), np.nan, least).astype(np.float32)


def propagate_volume(
    network: PropagationNetwork,
    volume: Tensor | np.ndarray,
    references: Mapping[int, Any],
    classes: Sequence[int] | None = None,
    axis: int = 0,
    **options: Any,
) -> PropagationResult:
    """Fill a volume from its reference slices, once.

    For several rounds on one volume keep a `Session`, which encodes each slice only once.

    Args:
        network: In evaluation mode.
        volume: (C, D, H, W), normalised as in training.
        references: Slice number to label, as in `Session.propagate`.
        classes: What to follow; None is every class in the references.
        axis: 0, 1 or 2: slices are taken across D, H or W.
        **options: The other arguments of `Session.propagate`.

    Returns:
        The filled volume.

    Raises:
        ContextsegError: As `Session.propagate`.
    """
    return Session(network, volume, axis).propagate(references, classes, **options)


class Session:
    """One volume and its encoded slices, for as many rounds of references as a person needs.

    Encoding is the expensive part and does not depend on the labels. With room for all encoded
    slices (`keep`), a second round encodes none. Mixed precision is used on CUDA only.

    Args:
        network: In evaluation mode.
        volume: (C, D, H, W), normalised as in training; on any device, or mapped from a file.
        axis: 0, 1 or 2: slices are taken across D, H or W.
        device: Where the network is and the memory will be. None is the volume's own device.
        batch: Slices encoded at once.
        keep: Slices whose encoding is kept, on the device.

    Raises:
        ContextsegError: For a volume of another shape, and for another axis.
    """

    def __init__(
        self,
        network: PropagationNetwork,
        volume: Tensor | np.ndarray,
        axis: int = 0,
        *,
        device: torch.device | str | None = None,
        batch: int = 8,
        keep: int = 64,
    ) -> None:
        if volume.ndim != 4 or not 0 <= axis <= 2:
            what = f"a volume of {tuple(volume.shape)} and axis {axis}"
            raise ContextsegError(
                "propagation", what, "give a volume (C, D, H, W) and axis 0, 1 or 2"
            )
        own_device = volume.device if isinstance(volume, Tensor) else "cpu"
        self.network = network
        self.axis = axis
        self.device = torch.device(own_device if device is None else device)
        self.slices: Any
        if isinstance(volume, Tensor):
            self.slices = volume.movedim(axis + 1, 1)
        else:
            self.slices = np.moveaxis(volume, axis + 1, 1)
        self.batch = batch
        self.keep = keep
        self._encoded: OrderedDict[int, tuple[Tensor, Encoded]] = OrderedDict()

    def __len__(self) -> int:
        """Number of slices along the axis."""
        return int(self.slices.shape[1])

    @torch.inference_mode()
    def propagate(
        self,
        references: Mapping[int, Any],
        classes: Sequence[int] | None = None,
        *,
        top_k: int | None = 20,
        every: int = 5,
        most: int = 32,
        previous: bool = True,
        weighted: bool = True,
        ranges: Mapping[int, tuple[int, int]] | None = None,
        stop_below: float = 0.0,
        probabilities: bool = False,
        progress: Callable[..., object] | None = None,
    ) -> PropagationResult:
        """Fill the volume from its reference slices.

        Args:
            references: Slice number to label (H, W), integers; the plane's two axes in the volume's
                order. Voxels that are `IGNORE` are filled and are not read from the memory. A slice
                of nothing but `IGNORE` is no reference.
            classes: Label values to follow. Others count as background. None: all in `references`.
            top_k: How many memorised positions each position reads; None is all.
            every: Of the filled slices, every so many stay in the memory.
            most: Slices in the memory at most, 3 or more. With more references than fit, each
                stretch has the nearest.
            previous: Whether each slice also reads the one before it, as in Pham et al. Without, as
                STCN's authors do, the values of four slices in five are never needed; this is
                faster and gives other labels.
            weighted: Whether the nearer of two walks counts more, linearly; else both count the
                same.
            ranges: Class to the first and the last slice that may hold it. A class without a range
                may be anywhere. Slices that may hold nothing are not evaluated.
            stop_below: Outside the outermost references a class ends before the first slice whose
                expected Dice, by the probabilities, is below this. 0 never stops [ours].
            probabilities: Whether to keep those of the whole volume.
            progress: Called with (slices walked, slices to walk in all).

        Returns:
            The filled volume.

        Raises:
            ContextsegError: If there is no reference or no class, if a reference does not fit the
                volume, and for a memory that is too small or a `stop_below` outside [0, 1].
        """
        if not 0 <= stop_below <= 1:
            raise ContextsegError(
                f"stop_below={stop_below:g}", "it is a Dice", "give 0 (never stop) to 1"
            )
        labels = check_references(references, len(self), tuple(self.slices.shape[2:]))
        labels = {i: label for i, label in labels.items() if (label != IGNORE).any()}
        if classes is None:
            classes = sorted(
                {int(k) for label in labels.values() for k in np.unique(label) if k > 0}
            )
        values = tuple(int(k) for k in classes)
        if not labels or not values:
            raise ContextsegError(
                "reference slices",
                "they hold no class",
                "label a structure in at least one of them",
            )
        if most < 3:
            raise ContextsegError(
                f"most={most}", "the memory is too small", "give 3 slices or more"
            )
        options = _Options(top_k, every, most, previous, weighted, stop_below, probabilities)
        class_ranges = [(ranges or {}).get(k, (0, len(self) - 1)) for k in values]
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return _Round(self, labels, values, class_ranges, options, progress).result()

    def image(self, slices: Sequence[int]) -> Tensor:
        """Images of some slices.

        Args:
            slices: Slice numbers; B of them.

        Returns:
            (B, C, H, W) float32, on the device.
        """
        part = self.slices[:, list(slices)]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, np.float32))
        return part.to(self.device, torch.float32).transpose(0, 1)

    def encoded(self, slices: Sequence[int]) -> Iterator[tuple[int, Tensor, Encoded]]:
        """Encode slices in batches ahead, where their encoding is not kept.

        Args:
            slices: Slice numbers.

        Yields:
            (slice number, its image (1, C, H, W), its encoding), in the order of `slices`.
        """
        for place, i in enumerate(slices):
            if i not in self._encoded:
                ahead = [j for j in slices[place : place + self.batch] if j not in self._encoded]
                images = self.image(ahead)
                encoded = self.network.encode(images)
                for n, j in enumerate(ahead):
                    self._encoded[j] = images[n : n + 1], encoded[n : n + 1]
            self._encoded.move_to_end(i)
            yield i, *self._encoded[i]
            while len(self._encoded) > max(self.keep, self.batch):
                self._encoded.popitem(last=False)


@dataclass(frozen=True)
class _Options:
    """Those of `Session.propagate`."""

    top_k: int | None
    every: int
    most: int
    previous: bool
    weighted: bool
    stop_below: float
    probabilities: bool


class _Round:
    """One call of `Session.propagate`: stretches are walked, the result is written slice by slice.

    The result is on the device until the end, so that a GPU never waits to be read.
    """

    def __init__(
        self,
        session: Session,
        labels: dict[int, np.ndarray],
        classes: tuple[int, ...],
        class_ranges: Sequence[tuple[int, int]],
        options: _Options,
        progress: Callable[..., object] | None,
    ) -> None:
        self.session, self.labels, self.classes = session, labels, classes
        self.options, self.progress = options, progress
        self.class_ranges = class_ranges
        self.known = sorted(labels)
        self._plan_stretches()
        self._plan_memory()
        self._allocate()

    def _plan_stretches(self) -> None:
        n = len(self.session)
        first = min(first for first, _ in self.class_ranges)
        last = max(last for _, last in self.class_ranges)
        allowed = range(max(0, first), min(n, last + 1))
        self.stretches = [
            (a, b, inside)
            for a, b in _stretches(self.known, n)
            if (inside := _overlap(range(a + 1, b), allowed))
        ]
        self.done = 0
        self.total = sum(len(inside) * ((a >= 0) + (b < n)) for a, b, inside in self.stretches)

    def _plan_memory(self) -> None:
        options = self.options
        longest = max((len(inside) for _, _, inside in self.stretches), default=0)
        self.references = min(len(self.labels), options.most - 2)
        self.most = min(options.most, self.references + longest // options.every + 1)
        self.memorise_every = 1 if options.previous else options.every
        self.keep_every = options.every if options.previous else 1
        self.remembered: tuple[int, ...] = ()

    def _allocate(self) -> None:
        n, *plane = self.session.slices.shape[1:]
        on: Any = {"device": self.session.device}
        kind = torch.int16 if max(self.classes) < 2**15 else torch.int32
        self.out = torch.zeros(n, *plane, dtype=kind, **on)
        self.agreement = torch.full((n,), torch.nan, **on)
        self.class_agreement = torch.full((n, len(self.classes)), torch.nan, **on)
        self.values = torch.tensor([0, *self.classes], dtype=kind, **on)
        self.expected_dice = torch.zeros(n, len(self.classes), **on)  # where a class is filled
        self.probabilities: np.ndarray | None = None
        if self.options.probabilities:
            self.probabilities = np.zeros((n, 1 + len(self.classes), *plane), np.float16)
            self.probabilities[:, 0] = 1

    def result(self) -> PropagationResult:
        axis = self.session.axis
        for a, b, inside in self.stretches:
            self.fill_stretch(a, b, inside)
        for i, label in self.labels.items():
            if (label == IGNORE).any():
                self.fill_reference(i)

        out, agreement = self.out.cpu().numpy(), self.agreement.cpu().numpy()
        if self.options.stop_below > 0:
            self.stop(out)
        for i, label in self.labels.items():
            self.restore_reference(i, label, out[i])

        probabilities = self.probabilities
        if probabilities is not None:
            probabilities = np.moveaxis(probabilities.swapaxes(0, 1), 1, axis + 1)
        confidence = self.class_confidence(out)
        labels = np.moveaxis(out, 0, axis)
        return PropagationResult(labels, confidence, agreement, self.classes, probabilities)

    def class_confidence(self, out: np.ndarray) -> np.ndarray:
        """(n, O), as in `PropagationResult`."""
        dice = self.expected_dice.cpu().numpy()
        agreement = self.class_agreement.cpu().numpy()
        confidence = np.where(np.isnan(agreement), dice, (dice + agreement) / 2)
        for k, value in enumerate(self.classes):
            holding = [i for i in self.known if (self.labels[i] == value).any()]
            filled = (out == value).any((1, 2))
            expected = np.zeros(len(out), bool)
            for a, b in pairwise(self.known):
                expected[a + 1 : b] = a in holding and b in holding
            confidence[~filled, k] = np.where(expected, 0, np.nan)[~filled]
            for i in self.known:
                if not (self.labels[i] == IGNORE).any():
                    confidence[i, k] = 1 if i in holding else np.nan
        return confidence.astype(np.float32)

    def fill_stretch(self, a: int, b: int, inside: range) -> None:
        """Fill slices between a and b, which are references or just outside the volume."""
        n = len(self.session)
        bank = self.bank(a, b)
        if a < 0 or b >= n:
            for i, p in self.walk(bank, inside if a >= 0 else inside[::-1]):
                self.write(i, p)
            return

        upwards = {i: p.half() for i, p in self.walk(bank, inside)}
        for i, p in self.walk(bank, inside[::-1]):
            one, other = upwards.pop(i).float(), p.half().float()
            share = (i - a) / (b - a) if self.options.weighted else 0.5
            self.write(i, (1 - share) * one + share * other)
            self.agreement[i], self.class_agreement[i] = _agreement(
                one.argmax(0), other.argmax(0), len(self.classes)
            )

    def walk(self, bank: MemoryBank, slices: range) -> Iterator[tuple[int, Tensor]]:
        """Each slice and its probabilities (1 + O, H, W).

        A slice is read from the references and the slices walked before it.
        """
        bank.restart()
        for step, (i, image, encoded) in enumerate(self.session.encoded(slices), 1):
            p = self.limit(i, self.read(bank, encoded))
            yield i, p
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)
            if i != slices[-1] and step % self.memorise_every == 0:
                value = self.session.network.memorise(image, encoded, p[None, 1:])
                bank.add(encoded.key[0], value[0])

    def read(self, bank: MemoryBank, encoded: Encoded) -> Tensor:
        logits = self.session.network.decode(encoded, bank.read(encoded.key[0])[None])
        return aggregate(logits)[0].softmax(0)

    def limit(self, i: int, p: Tensor) -> Tensor:
        """Give the probability of classes that slice `i` may not hold to the background."""
        outside = [
            k for k, (first, last) in enumerate(self.class_ranges, 1) if not first <= i <= last
        ]
        if outside:
            p[0] += p[outside].sum(0)
            p[outside] = 0
        return p

    def bank(self, a: int, b: int) -> MemoryBank:
        """The memory of the references nearest to a stretch; built only where these change."""
        middle = (a + b) / 2
        nearest = sorted(self.known, key=lambda i: abs(i - middle))[: self.references]
        chosen = tuple(sorted(nearest))
        if chosen != self.remembered:
            self._bank = MemoryBank(self.most, self.keep_every, self.options.top_k)
            self.remembered = chosen
            for i, image, encoded in self.session.encoded(chosen):
                label = torch.from_numpy(self.labels[i]).to(self.session.device)
                masks = torch.stack([label == k for k in self.classes]).float()
                pixels = label[None] != IGNORE
                annotated = None
                if not bool(pixels.all()):
                    annotated = annotated_positions(pixels, self.session.network.stride)[0]
                value = self.session.network.memorise(image, encoded, masks[None])
                self._bank.add_reference(encoded.key[0], value[0], annotated)
        return self._bank

    def stop(self, out: np.ndarray) -> None:
        """End each class, outside the outermost references, where its expected Dice is too low."""
        uncertain = (self.expected_dice < self.options.stop_below).cpu().numpy()
        for outwards in (range(self.known[-1] + 1, len(out)), range(self.known[0] - 1, -1, -1)):
            for k, value in enumerate(self.classes):
                end = next((n for n, i in enumerate(outwards) if uncertain[i, k]), len(outwards))
                beyond = list(outwards[end:])
                out[beyond] = np.where(out[beyond] == value, 0, out[beyond])
                if self.probabilities is not None:
                    self.probabilities[beyond, 0] += self.probabilities[beyond, 1 + k]
                    self.probabilities[beyond, 1 + k] = 0

    def write(self, i: int, p: Tensor) -> None:
        """Write slice `i` from its probabilities (1 + O, H, W), with the Dice to be expected."""
        k = p.argmax(0)
        masks = k == torch.arange(1, len(p), device=k.device)[:, None, None]
        overlaps = (p[1:] * masks).sum((1, 2))
        class_sizes = masks.sum((1, 2)) + p[1:].sum((1, 2))
        self.expected_dice[i] = 2 * overlaps / class_sizes.clamp(min=1e-6)

        self.out[i] = self.values[k]
        if self.probabilities is not None:
            self.probabilities[i] = p.cpu().numpy()

    def fill_reference(self, i: int) -> None:
        """Write what reference `i` reads from all references, itself among them.

        It stays where nobody has annotated.
        """
        bank = self.bank(i - 1, i + 1)
        bank.restart()
        [(_, _, encoded)] = self.session.encoded([i])
        self.write(i, self.limit(i, self.read(bank, encoded)))

    def restore_reference(self, i: int, label: np.ndarray, out: np.ndarray) -> None:
        """Write the annotated voxels of reference `i` into `out`, its plane."""
        annotated = label != IGNORE
        followed = np.where(np.isin(label, self.classes), label, 0)
        out[annotated] = followed[annotated]
        if self.probabilities is not None:
            values = np.array([0, *self.classes])[:, None, None]
            exact = (followed == values).astype(np.float16)
            self.probabilities[i] = np.where(annotated, exact, self.probabilities[i])


def _stretches(known: Sequence[int], n: int) -> list[tuple[int, int]]:
    """Pairs of slices that have slices to fill between them; -1 and n are outside the volume.

    >>> _stretches([0, 3, 4], 7)
    [(0, 3), (4, 7)]
    """
    ends = [-1, *known, n]
    return [(a, b) for a, b in pairwise(ends) if b - a > 1]


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _agreement(one: Tensor, other: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Dice of two label maps, all classes together and of each; 1 where both are empty."""
    same = (one == other) & (one > 0)
    size = (one > 0).sum() + (other > 0).sum()
    whole = torch.where(size > 0, 2 * same.sum() / size, 1.0)
    values = torch.arange(1, classes + 1, device=one.device)[:, None, None]
    first, second = one == values, other == values
    sizes = first.sum((1, 2)) + second.sum((1, 2))
    common = (first & second).sum((1, 2))
    return whole, torch.where(sizes > 0, 2 * common / sizes, 1.0)
