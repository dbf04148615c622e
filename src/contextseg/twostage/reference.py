"""The first stage: what a finished run, the reference run, predicts of some slices of a scan.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816), whose reference module is 2-D and predicts every
fifth slice, which is what makes it cheap. Here a 3-D run may take its place; it has to predict the
whole scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from contextseg.data.prepare import normalise, prepare, slice_places, undo
from contextseg.methods.presence import head_of, largest_presence
from contextseg.predict import segment
from contextseg.predictor import Member, Predictor, Segmentation, sliding_window_arguments
from contextseg.resampling import resample
from contextseg.settings import PredictionSettings
from contextseg.volume import Volume, axis_moves


@dataclass(frozen=True)
class SlicePrediction:
    """What a reference run predicts of n slices of a scan, each (H, W) on the scan's own grid.

    Attributes:
        label: (n, H, W), the index of a class; 0 outside the body.
        confidence: (n, H, W) uint8, the probability of that class, 0 to 255 for 0 to 1.
        presence: (n, K - 1), for each class but the background the probability that it is in the
            slice. None without a presence head that sees slices.
    """

    label: np.ndarray
    confidence: np.ndarray
    presence: np.ndarray | None = None


class SliceReference:
    """A 2-D reference run, which predicts the slices it is asked for and no others.

    A slice is resampled to the plan's pixels and its logits back; across slices nothing is
    resampled. So the prediction of a slice does not depend on which others are predicted.
    Intensities are normalised as in training, by the whole scan's body.

    Args:
        scan: (C, D, H, W).
        member: A trained 2-D method and its plan.
        settings: How it predicts.
        name: Of the case, for messages.

    Attributes:
        axis: The scan's axis that its slices are across: the plan's first.
        presence: (K - 1,), the largest probability so far that a class is in a slice. None without
            a presence head, and before the first prediction.
    """

    def __init__(
        self, scan: Volume, member: Member, settings: PredictionSettings, name: str = ""
    ) -> None:
        self.scan, self.member, self.settings = scan, member, settings
        plan = member.plan
        orientation = plan.orientation_for(scan.orientation)
        order, flips = axis_moves(scan.orientation, orientation)
        self.axis = order[0]
        self.presence: np.ndarray | None = None
        self._flipped = flips[0]
        own_mm = scan.oriented(orientation).spacing_mm
        # cropped to the body, at the scan's own spacing: not resampled
        self._raw, _, _, self._record = prepare(scan, replace(plan, spacing_mm=own_mm), name)
        sizes = zip(self._record.shape, own_mm, plan.target_mm(own_mm))
        self._size = [max(1, round(n * own / mm)) for n, own, mm in sizes][1:]

    def predict(self, slices: Sequence[int]) -> SlicePrediction:
        """Predict some slices.

        Args:
            slices: Slice numbers along the scan's `axis`. Slices outside the body are not
                evaluated: they are background, and certain.

        Returns:
            The prediction of these slices, in their order.
        """
        plan, shape = self.member.plan, self._record.shape
        n, start = self.scan.shape[self.axis], self._record.box[0][0]
        places = np.array([n - 1 - i if self._flipped else i for i in slices], int) - start
        inside = np.flatnonzero((places >= 0) & (places < shape[0]))
        label = np.zeros(shape, np.int16)
        confidence = np.full(shape, 255, np.uint8)
        head = head_of(self.member.method)
        presence = np.zeros((len(slices), len(plan.classes) - 1)) if head else None
        if len(inside):
            image = self._image(places[inside])
            label[places[inside]], confidence[places[inside]] = self._segmented(image)
            if head and presence is not None:
                presence[inside] = [
                    largest_presence(head, image[:, i : i + 1], plan) for i in range(len(inside))
                ]
                largest = presence.max(0)
                before = self.presence
                self.presence = largest if before is None else np.maximum(before, largest)
        return SlicePrediction(
            self._of_scan(label, slices, 0), self._of_scan(confidence, slices, 255), presence
        )

    def further_slices(self, slices: Sequence[int]) -> list[int]:
        """Where a second prediction may find what these slices miss: half way between them.

        Args:
            slices: Slice numbers, sorted.

        Returns:
            Slice numbers; none between neighbours.
        """
        return [(a + b) // 2 for a, b in pairwise(slices) if b - a > 1]

    def _image(self, places: np.ndarray) -> np.ndarray:
        """(C, n, h, w): slices of the body as the network was trained to see them."""
        plan, record = self.member.plan, self._record
        image = resample(self._raw[:, places], [len(places), *self._size], plan.orders)
        low, high = (np.reshape(end, (-1, 1, 1, 1)) for end in (record.low, record.high))
        clipped = np.clip(image, low, high, dtype=np.float32)
        return normalise(clipped, plan.channels, record, slice_places(record.shape[0])[places])

    def _segmented(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C, n, h, w) -> class (n, H, W) and confidence (n, H, W), on the body's own pixels."""
        method, plan = self.member.method, self.member.plan
        shape = image.shape[1], *self._record.shape[1:]
        confidence = np.empty(shape, np.uint8)
        label = segment(
            method.predict,
            image,
            shape,
            plan.patch_vox,
            **sliding_window_arguments(method, plan, self.settings),
            confidence=confidence,
        )
        return label, confidence

    def _of_scan(self, body: np.ndarray, slices: Sequence[int], outside: int) -> np.ndarray:
        whole = undo(body, self._record, outside).array
        return np.moveaxis(whole, self.axis, 0)[list(slices)]


class VolumeReference:
    """A 3-D reference run, which predicts the scan once, whichever slices are asked for.

    Args:
        scan: (C, D, H, W).
        member: A trained 3-D method and its plan.
        settings: How it predicts.
        axis: The scan's axis that slices are across.
        name: Of the case, for messages.
    """

    def __init__(
        self,
        scan: Volume,
        member: Member,
        settings: PredictionSettings,
        axis: int,
        name: str = "",
    ) -> None:
        self.scan, self.member, self.settings = scan, member, settings
        self.axis, self.name = axis, name

    def predict(self, slices: Sequence[int]) -> SlicePrediction:
        """Slices of the scan's prediction.

        Args:
            slices: Slice numbers along the scan's `axis`.

        Returns:
            The prediction of these slices, in their order.
        """
        whole, chosen = self._segmentation, list(slices)
        assert whole.confidence is not None
        return SlicePrediction(
            np.moveaxis(whole.label.array, self.axis, 0)[chosen],
            np.moveaxis(whole.confidence.array, self.axis, 0)[chosen],
        )

    def further_slices(self, slices: Sequence[int]) -> list[int]:
        """Where a second prediction may find what these slices miss: all others, at no cost.

        Args:
            slices: Slice numbers.

        Returns:
            All other slice numbers.
        """
        return sorted(set(range(self.scan.shape[self.axis])) - set(slices))

    @property
    def presence(self) -> np.ndarray | None:
        """(K - 1,), the largest probability that a class is in a patch; None without a head."""
        flags = self._segmentation.presence
        return None if flags is None else np.array([row["presence"] for row in flags.values()])

    @cached_property
    def _segmentation(self) -> Segmentation:
        """The whole scan, in class indices."""
        plan = self.member.plan
        indices = replace(plan, values=tuple(range(len(plan.classes))))
        settings = replace(self.settings, confidence=True, largest_component=False)
        predictor = Predictor([Member(self.member.method, indices)], settings)
        return predictor.predict(self.scan, name=self.name)
