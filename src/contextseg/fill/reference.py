"""The reference module's look at a scan: what a finished run says of some of its slices.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816), whose reference module is 2-D and sees every fifth slice, which is
what makes it cheap. Here a 3-D run may take its place; it has to see the whole scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from contextseg.data.plan import Plan
from contextseg.data.prepare import normalise, prepare, slice_places, undo
from contextseg.methods import Method
from contextseg.methods.presence import Flags, head_of, largest_presence
from contextseg.predict import segment
from contextseg.scan import predict_with_confidence, windows
from contextseg.settings import Prediction
from contextseg.volume import Volume, axis_moves, resample


@dataclass(frozen=True)
class Seen:
    """What was seen in n slices of a scan, each (H, W) on the scan's own grid.

    label     (n, H, W): the index of a class, 0 outside the body.   sure  (n, H, W) uint8: how sure it is of that, 0
              to 255 for 0 to 1.
    presence  (n, K - 1): for each class but the background, the probability that it is in the slice; None without a
              presence head that looks at slices.
    """

    label: np.ndarray
    sure: np.ndarray
    presence: np.ndarray | None = None


class SliceReference:
    """A 2-D run that looks at the slices it is asked for, and at no others.

    scan (C, D, H, W). `axis` is the scan's axis that its slices are across: the plan's first. `present` (K - 1,) holds
    the largest probability so far that a class is in a slice, None without a presence head.

    A slice is resampled to the plan's pixels and its logits back; across slices nothing is. So what is seen in a slice
    does not depend on which others are looked at. Intensities are normalised as in training, by the whole scan's body.
    """

    def __init__(self, scan: Volume, method: Method, plan: Plan, how: Prediction, name: str = "") -> None:
        self.scan, self.method, self.plan, self.how = scan, method, plan, how
        order, flips = axis_moves(scan.orientation, plan.orientation)
        self.axis, self.flipped = order[0], flips[0]
        own = scan.oriented(plan.orientation).spacing_mm
        self.raw, _, _, self.record = prepare(scan, replace(plan, spacing_mm=own), name)  # cropped, not resampled
        sizes = zip(self.record.shape, own, plan.spacing_mm)
        self.size = [max(1, round(n * s / t)) for n, s, t in sizes][1:]
        self.present: np.ndarray | None = None

    def at(self, slices: Sequence[int]) -> Seen:
        """What is seen in those slices; those outside the body are not looked at."""
        n, start = self.scan.shape[self.axis], self.record.box[0][0]
        places = np.array([n - 1 - i if self.flipped else i for i in slices], int) - start
        looked = np.flatnonzero((places >= 0) & (places < self.record.shape[0]))
        label, sure = np.zeros(self.record.shape, np.int16), np.full(self.record.shape, 255, np.uint8)
        head, presence = head_of(self.method), None
        if head:
            presence = np.zeros((len(slices), len(self.plan.classes) - 1))
        if len(looked):
            image = self._image(places[looked])
            label[places[looked]], sure[places[looked]] = self._segmented(image)
            if head and presence is not None:
                presence[looked] = [largest_presence(head, image[:, i : i + 1], self.plan) for i in range(len(looked))]
                self.present = presence.max(0) if self.present is None else np.maximum(self.present, presence.max(0))
        return Seen(self._of_scan(label, slices, 0), self._of_scan(sure, slices, 255), presence)

    def between(self, slices: Sequence[int]) -> list[int]:
        """Where a second look may find what these slices miss: half way between them."""
        return [(a + b) // 2 for a, b in pairwise(slices) if b - a > 1]

    def _image(self, places: np.ndarray) -> np.ndarray:
        """(C, n, h, w): slices of the body as the network was taught to see them."""
        image = resample(self.raw[:, places], [len(places), *self.size], self.plan.orders)
        low, high = (np.reshape(end, (-1, 1, 1, 1)) for end in (self.record.low, self.record.high))
        clipped = np.clip(image, low, high, dtype=np.float32)
        return normalise(clipped, self.plan.channels, self.record, slice_places(self.record.shape[0])[places])

    def _segmented(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C, n, h, w) -> class (n, H, W), and how sure (n, H, W), on the body's own pixels."""
        shape = image.shape[1], *self.record.shape[1:]
        sure = np.empty(shape, np.uint8)
        keywords = windows(self.method, self.plan, self.how)
        label = segment(self.method.predict, image, shape, self.plan.patch_vox, **keywords, confidence=sure)
        return label, sure

    def _of_scan(self, body: np.ndarray, slices: Sequence[int], outside: int) -> np.ndarray:
        return np.moveaxis(undo(body, self.record, outside).array, self.axis, 0)[list(slices)]


class VolumeReference:
    """A 3-D run, which predicts the scan once, whichever slices along `axis` are asked for; otherwise `SliceReference`.

    `present` is that of the whole scan.
    """

    def __init__(self, scan: Volume, method: Method, plan: Plan, how: Prediction, axis: int, name: str = "") -> None:
        self.scan, self.method, self.plan, self.how, self.axis, self.name = scan, method, plan, how, axis, name

    def at(self, slices: Sequence[int]) -> Seen:
        """What is seen in those slices of the prediction."""
        label, sure, _ = self._predicted
        return Seen(*(np.moveaxis(array, self.axis, 0)[list(slices)] for array in (label, sure)))

    def between(self, slices: Sequence[int]) -> list[int]:
        """Where a second look may find what these slices miss: all others, since they cost nothing."""
        return sorted(set(range(self.scan.shape[self.axis])) - set(slices))

    @property
    def present(self) -> np.ndarray | None:
        """(K - 1,): the largest probability that a class is in a patch; None without a presence head."""
        return self._predicted[2]

    @cached_property
    def _predicted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        indices = replace(self.plan, values=tuple(range(len(self.plan.classes))))
        how, flags = replace(self.how, confidence=True, largest_component=False), list[Flags]()
        label, sure = predict_with_confidence(self.scan, [(self.method, indices)], how, self.name, presence=flags)
        assert sure is not None
        present: Any = [np.array([row["presence"] for row in rows.values()]) for rows in flags]
        return label.array, sure.array, present[0] if present else None
