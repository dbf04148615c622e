"""From a few labelled slices to a labelled volume: the walk over slices, along any axis, for any classes.

The reference slices cut the volume into stretches. Between two references a stretch is walked from both, and the
probabilities of both walks are averaged, each weighed by how near its reference is; outside the first and the last it
is walked from the one beside it. Every walk remembers all references, and, of the slices that it has filled itself,
every fifth and, unless told otherwise, the last. So walks do not depend on one another, and a volume turned round gives
the same labels turned round.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816). Different here: memory holds probabilities (theirs holds sums of two,
up to 2); the walks are weighed (theirs count the same); every slice is filled wherever the references lie; a slice is
encoded once for both walks.
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
from contextseg.disk import Problem
from contextseg.nets.stcn import Encoded
from contextseg.propagation.interpolate import checked
from contextseg.propagation.memory import MemoryBank, aggregate, said_at


class Network(Protocol):
    """What a network must do to propagate; `contextseg.nets.stcn.STCN` does.

    stride  pixels to a position of key and value; an image of H pixels has ceil(H / stride) positions.
    """

    stride: int

    def encode(self, image: Tensor) -> Encoded: ...  # noqa: D102
    def memorise(self, image: Tensor, encoded: Encoded, masks: Tensor) -> Tensor: ...  # noqa: D102
    def decode(self, encoded: Encoded, read: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Result:
    """A volume, filled.

    labels         (D, H, W) int16: 0, or one of `classes`. What the references said stands there as it was.
    confidence     (n,) float32, one number in [0, 1] for each slice along the axis: 1 where a reference says all; else
                   the Dice to be expected of its labels if the probabilities were right, and where two walks came by
                   the mean of that and their agreement. The lowest is the slice to correct next.
    agreement      (n,) float32: the Dice of the two walks with each other, all classes together; NaN where only one
                   came by, or none.
    probabilities  (1 + O, D, H, W) float16, background first, then `classes`; None unless asked for.
    """

    labels: np.ndarray
    confidence: np.ndarray
    agreement: np.ndarray
    classes: tuple[int, ...]
    probabilities: np.ndarray | None


def propagate(
    network: Network,
    volume: Tensor | np.ndarray,
    references: Mapping[int, Any],
    classes: Sequence[int] | None = None,
    axis: int = 0,
    **options: Any,
) -> Result:
    """Fill a volume from its labelled slices, once. For several rounds on one volume keep a `Session`, whose
    `propagate` says what the arguments are.
    """
    return Session(network, volume, axis).propagate(references, classes, **options)


class Session:
    """One volume and its encoded slices, for as many rounds of references as a person needs.

    network  in evaluation mode. volume (C, D, H, W), normalised as in training, on any device or in a file.
    axis     0, 1 or 2: slices are taken across D, H or W.
    device   where the network is and the memory will be; None is the volume's own.
    batch    slices encoded at once. keep: slices whose encoding is kept, on the device; with room for all, a second
             round encodes none.

    Mixed precision on CUDA only.
    """

    def __init__(
        self,
        network: Network,
        volume: Tensor | np.ndarray,
        axis: int = 0,
        *,
        device: torch.device | str | None = None,
        batch: int = 8,
        keep: int = 64,
    ) -> None:
        if volume.ndim != 4 or not 0 <= axis <= 2:
            what = f"a volume of {tuple(volume.shape)} and axis {axis}"
            raise Problem("propagation", what, "give a volume (C, D, H, W) and axis 0, 1 or 2")
        own = volume.device if isinstance(volume, Tensor) else "cpu"
        self.network, self.axis, self.device = network, axis, torch.device(own if device is None else device)
        self.slices: Any = (
            volume.movedim(axis + 1, 1) if isinstance(volume, Tensor) else np.moveaxis(volume, axis + 1, 1)
        )
        self.batch, self.keep = batch, keep
        self._encoded: OrderedDict[int, tuple[Tensor, Encoded]] = OrderedDict()

    def __len__(self) -> int:
        """Slices along the axis."""
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
        progress: Callable[[int, int], object] | None = None,
    ) -> Result:
        """Fill the volume from its reference slices.

        references     slice number to label (H, W), integers: the plane's two axes in the volume's order. `IGNORE`
                       where nobody has said: it is filled, and the memory is told nothing there. A slice of nothing
                       else is no reference.
        classes        what to follow; None is every class in the references. Others count as background.
        top_k          how many memorised positions each position reads; None is all.
        every, most    of the memory: every `every`th filled slice stays, `most` slices at most. With more references
                       than it has room for, each stretch has the nearest.
        previous       whether each slice also reads the one before it, as Pham et al. Without, as STCN's authors: the
                       values of four slices in five are never needed, which is the faster, and other labels.
        weighted       whether of two walks the nearer one counts more, linearly; else both count the same.
        ranges         class to the first and the last slice that may hold it; one that is not named may be anywhere.
                       Slices that may hold nothing are not looked at, and are sure.
        stop_below     outside the outermost references a class ends before the first slice in which the Dice to be
                       expected of it, by the probabilities, is below this; 0 is never [ours].
        probabilities  whether to keep them for the whole volume.
        progress       called with (slices walked, in all).

        Raises `Problem` for no reference or no class, for a reference that does not fit, and for a `stop_below` that is
        no Dice.
        """
        if not 0 <= stop_below <= 1:
            raise Problem(f"stop_below={stop_below:g}", "it is a Dice", "give 0 (never stop) to 1")
        labels = checked(references, len(self), tuple(self.slices.shape[2:]))
        labels = {i: label for i, label in labels.items() if (label != IGNORE).any()}
        found = sorted({int(k) for label in labels.values() for k in np.unique(label) if k > 0})
        names = tuple(found if classes is None else (int(k) for k in classes))
        if not labels or not names:
            raise Problem("reference slices", "they hold no class", "label a structure in at least one of them")
        if most < 3:
            raise Problem(f"most={most}", "the memory is too small", "give 3 slices or more")
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            memory = (most, every, top_k)
            ends = [(ranges or {}).get(k, (0, len(self) - 1)) for k in names]
            made = _Round(self, labels, names, memory, previous, weighted, ends, probabilities, progress)
            return made.result(stop_below)

    def image(self, slices: Sequence[int]) -> Tensor:
        """(B, C, H, W) float32 on the device: these slices."""
        part = self.slices[:, list(slices)]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, np.float32))
        return part.to(self.device, torch.float32).transpose(0, 1)

    def encoded(self, slices: Sequence[int]) -> Iterator[tuple[int, Tensor, Encoded]]:
        """Each slice, its image and its encoding, in that order, encoded in batches ahead where it is not kept."""
        for place, i in enumerate(slices):
            if i not in self._encoded:
                ahead = [j for j in slices[place : place + self.batch] if j not in self._encoded]
                images = self.image(ahead)
                many = self.network.encode(images)
                for n, j in enumerate(ahead):
                    self._encoded[j] = images[n : n + 1], many[n : n + 1]
            self._encoded.move_to_end(i)
            yield i, *self._encoded[i]
            while len(self._encoded) > max(self.keep, self.batch):
                self._encoded.popitem(last=False)


class _Round:
    """One round: the references in the memory, the stretches walked, the result written slice by slice.

    The result is on the device until the end, so that a GPU never waits to be read.
    """

    def __init__(
        self,
        session: Session,
        labels: dict[int, np.ndarray],
        classes: tuple[int, ...],
        memory: tuple[int, int, int | None],
        previous: bool,
        weighted: bool,
        ends: Sequence[tuple[int, int]],
        probabilities: bool,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self.session, self.labels, self.classes = session, labels, classes
        self.weighted, self.progress = weighted, progress
        n, *plane = session.slices.shape[1:]
        self.known = sorted(labels)
        self.ends = ends
        may = range(max(0, min(first for first, _ in ends)), min(n, max(last for _, last in ends) + 1))
        self.stretches = [
            (a, b, inside) for a, b in _stretches(self.known, n) if (inside := _overlap(range(a + 1, b), may))
        ]
        longest = max((len(inside) for _, _, inside in self.stretches), default=0)
        most, every, top_k = memory
        self.references = min(len(labels), most - 2)
        self.memory = (min(most, self.references + longest // every + 1), every if previous else 1, top_k)
        self.every = 1 if previous else every
        self.remembered: tuple[int, ...] = ()
        self.done, self.total = 0, sum(len(inside) * ((a >= 0) + (b < n)) for a, b, inside in self.stretches)
        on: Any = {"device": session.device}
        self.out = torch.zeros(n, *plane, dtype=torch.int16, **on)
        self.confidence, self.agreement = torch.ones(n, **on), torch.full((n,), torch.nan, **on)
        shape = (n, 1 + len(classes), *plane)
        self.probabilities = np.zeros(shape, np.float16) if probabilities else None
        if self.probabilities is not None:
            self.probabilities[:, 0] = 1
        self.names = torch.tensor([0, *classes], dtype=torch.int16, **on)
        self.sure = torch.zeros(n, len(classes), **on)  # of each class, where it is filled: the Dice to be expected

    def result(self, stop_below: float) -> Result:
        axis = self.session.axis
        for a, b, inside in self.stretches:
            self.stretch(a, b, inside)
        for i, label in self.labels.items():
            if (label == IGNORE).any():
                self.unsaid(i)
        out, confidence, agreement = (x.cpu().numpy() for x in (self.out, self.confidence, self.agreement))
        if stop_below > 0:
            self.stop(out, stop_below)
        for i, label in self.labels.items():
            self.said(i, label, out[i])
        p = None if self.probabilities is None else np.moveaxis(self.probabilities.swapaxes(0, 1), 1, axis + 1)
        return Result(np.moveaxis(out, 0, axis), confidence, agreement, self.classes, p)

    def stretch(self, a: int, b: int, inside: range) -> None:
        """Fill slices between a and b, which are references or just outside the volume."""
        n = len(self.session)
        bank = self.bank(a, b)
        if a >= 0 and b < n:
            up = {i: p.half() for i, p in self.walk(bank, inside)}
            for i, p in self.walk(bank, inside[::-1]):
                one, other = up.pop(i).float(), p.half().float()
                share = (i - a) / (b - a) if self.weighted else 0.5
                self.write(i, (1 - share) * one + share * other)
                self.agreement[i] = _dice(one.argmax(0), other.argmax(0))
                self.confidence[i] = (self.confidence[i] + self.agreement[i]) / 2
        else:
            for i, p in self.walk(bank, inside if a >= 0 else inside[::-1]):
                self.write(i, p)

    def walk(self, bank: MemoryBank, slices: range) -> Iterator[tuple[int, Tensor]]:
        """Each slice and its probabilities (1 + O, H, W), each read from the references and the slices before it."""
        bank.restart()
        for step, (i, image, encoded) in enumerate(self.session.encoded(slices), 1):
            p = self.bounded(i, self.read(bank, encoded))
            yield i, p
            self.done += 1
            if self.progress:
                self.progress(self.done, self.total)
            if i != slices[-1] and step % self.every == 0:
                value = self.session.network.memorise(image, encoded, p[None, 1:])
                bank.add(encoded.key[0], value[0])

    def read(self, bank: MemoryBank, encoded: Encoded) -> Tensor:
        logits = self.session.network.decode(encoded, bank.read(encoded.key[0])[None])
        return aggregate(logits)[0].softmax(0)

    def bounded(self, i: int, p: Tensor) -> Tensor:
        """Nothing of a class where slice `i` may not hold it: what it had is the background's."""
        never = [k for k, (first, last) in enumerate(self.ends, 1) if not first <= i <= last]
        if never:
            p[0] += p[never].sum(0)
            p[never] = 0
        return p

    def bank(self, a: int, b: int) -> MemoryBank:
        """A memory of the references nearest to a stretch; made again only where these are others."""
        middle = (a + b) / 2
        nearest = tuple(sorted(sorted(self.known, key=lambda i: abs(i - middle))[: self.references]))
        if nearest != self.remembered:
            self._bank, self.remembered = MemoryBank(*self.memory), nearest
            for i, image, encoded in self.session.encoded(nearest):
                label = torch.from_numpy(self.labels[i]).to(self.session.device)
                masks = torch.stack([label == k for k in self.classes]).float()
                said = label[None] != IGNORE
                heard = None if bool(said.all()) else said_at(said, self.session.network.stride)[0]
                value = self.session.network.memorise(image, encoded, masks[None])
                self._bank.refer(encoded.key[0], value[0], heard)
        return self._bank

    def stop(self, out: np.ndarray, below: float) -> None:
        """End each class, outside the outermost references, before the first slice in which it is less sure."""
        unsure = (self.sure < below).cpu().numpy()
        for outwards in (range(self.known[-1] + 1, len(out)), range(self.known[0] - 1, -1, -1)):
            for k, value in enumerate(self.classes):
                ends = next((n for n, i in enumerate(outwards) if unsure[i, k]), len(outwards))
                beyond = list(outwards[ends:])
                out[beyond] = np.where(out[beyond] == value, 0, out[beyond])
                if self.probabilities is not None:
                    self.probabilities[beyond, 0] += self.probabilities[beyond, 1 + k]
                    self.probabilities[beyond, 1 + k] = 0

    def write(self, i: int, p: Tensor) -> None:
        best, k = p.max(0)
        mine = k == torch.arange(1, len(p), device=k.device)[:, None, None]
        right, both = (p[1:] * mine).sum((1, 2)), mine.sum((1, 2)) + p[1:].sum((1, 2))
        self.sure[i] = 2 * right / both.clamp(min=1e-6)
        inside = k > 0
        overlap, sizes = (best * inside).sum(), inside.sum() + (1 - p[0]).sum()
        self.out[i] = self.names[k]
        self.confidence[i] = torch.where(inside.any(), 2 * overlap / sizes, p[0].mean())
        if self.probabilities is not None:
            self.probabilities[i] = p.cpu().numpy()

    def unsaid(self, i: int) -> None:
        """Write what a reference reads from the references, itself among them: it stands where nothing was said."""
        bank = self.bank(i - 1, i + 1)
        bank.restart()
        [(_, _, encoded)] = self.session.encoded([i])
        self.write(i, self.bounded(i, self.read(bank, encoded)))

    def said(self, i: int, label: np.ndarray, out: np.ndarray) -> None:
        """Write what was said of a reference into `out`, its plane."""
        said = label != IGNORE
        asked = np.where(np.isin(label, self.classes), label, 0)
        out[said] = asked[said]
        if self.probabilities is not None:
            exact = (asked == np.array([0, *self.classes])[:, None, None]).astype(np.float16)
            self.probabilities[i] = np.where(said, exact, self.probabilities[i])


def _stretches(known: Sequence[int], n: int) -> list[tuple[int, int]]:
    """The slices strictly between each pair are to be filled; -1 and n lie just outside the volume.

    >>> _stretches([0, 3, 4], 7)
    [(0, 3), (4, 7)]
    """
    ends = [-1, *known, n]
    return [(a, b) for a, b in pairwise(ends) if b - a > 1]


def _overlap(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _dice(one: Tensor, other: Tensor) -> Tensor:
    """Of two label maps, foreground classes together; 1 where both are empty. A number, on their device."""
    size = (one > 0).sum() + (other > 0).sum()
    return torch.where(size > 0, 2 * ((one == other) & (one > 0)).sum() / size, 1.0)
