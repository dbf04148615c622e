"""The drawing of one scan: what a person drew, and what was filled in between.

Two maps on the scan's own voxels. `drawn` holds the class that a person gave a voxel, or
`NOBODY_SAID`; `filled` the class that a program gave it. The first touch of a slice takes what is
filled there as drawn: the person has looked at it. So a slice is drawn as a whole or not at all,
and every drawn slice is a reference from which others are filled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.annotator.planes import FRAME, SCREEN_PLANES, plane_axis, screen_slice, slice_shape
from contextseg.annotator.store import DrawingStore, SavedSlice
from contextseg.errors import ContextsegError, plural
from contextseg.propagation import (
    CompletionModel,
    Filled,
    LabelledSlices,
    PropagationModel,
    fill,
    suggest_slice,
)
from contextseg.volume import Volume, axis_moves

NOBODY_SAID = 255
"""Value of a voxel in `drawn` that nobody has drawn."""

LARGEST_CLASS = 254
"""The classes are numbered 1, 2, 3 ... up to this one."""

BY_NOBODY, BY_SHAPES, BY_NETWORK, BY_FILE = range(4)
"""Who filled a slice: nobody, the shapes of the drawn slices, a network, a file to start from."""

_MARGIN = 2


class StaleSlice(ContextsegError):
    """Somebody else has changed a slice since it was read.

    Attributes:
        revision: The slice's revision now.
    """

    def __init__(self, plane: str, k: int, revision: int) -> None:
        where = f"{plane} slice {k}"
        what = "it was changed in another tab or program"
        super().__init__(where, what, "keep yours, or take the other")
        self.revision = revision


@dataclass(frozen=True)
class FilledSlices:
    """Slices that were filled anew.

    Attributes:
        plane: The plane along which the scan is filled.
        first: The first slice that may have changed.
        last: The last one.
    """

    plane: str
    first: int
    last: int


@dataclass
class Drawing:
    """One scan with its two maps; all methods may be called from several threads.

    Args:
        scan: (C, D, H, W), on its own grid.
        store: Where slices are saved.
        start: A label map to start from, classes on the scan's grid. None starts with nothing.

    Attributes:
        turned: The scan along `planes.FRAME`, a view.
        drawn: (D, H, W) uint8 along `FRAME`, `NOBODY_SAID` where nobody has drawn. A view of an
            array on the scan's own grid, as `filled`.
        filled: (D, H, W) uint8 along `FRAME`, what programs say.
    """

    scan: Volume
    store: DrawingStore
    start: np.ndarray | None = None
    turned: Volume = field(init=False)
    drawn: np.ndarray = field(init=False)
    filled: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.turned = self.scan.oriented(FRAME)
        self.lock = threading.RLock()
        self.shape = self.turned.shape
        self._order, self._flips = axis_moves(self.scan.orientation, FRAME)
        self._own_drawn = np.full(self.scan.shape, NOBODY_SAID, np.uint8)
        self._own_filled = np.zeros(self.scan.shape, np.uint8)
        self.drawn = Volume(self._own_drawn, self.scan.affine).oriented(FRAME).array
        self.filled = Volume(self._own_filled, self.scan.affine).oriented(FRAME).array
        self.revision = 0
        self.generation = 0
        self._revisions: dict[tuple[str, int], int] = {}
        self._last_of_plane = dict.fromkeys(SCREEN_PLANES, 0)
        self._whole: set[tuple[str, int]] = set()
        for saved in self.store.load():
            self._apply(saved)
        self.plane = self._main_plane()
        self._reset_fill()
        if self.start is not None:
            turned = self.scan.with_array(self.start).oriented(FRAME).array
            self.filled[...] = turned
            self.filled_by[:] = BY_FILE
            self._present = self._presence(0, len(self.filled_by) - 1)

    # --- slices -------------------------------------------------------------------------------

    def label(self, plane: str, k: int) -> tuple[np.ndarray, np.ndarray, int]:
        """What is drawn and filled in a slice.

        Args:
            plane: One of `planes.SCREEN_PLANES`.
            k: Number of the slice.

        Returns:
            Copies of both, (rows, columns) uint8 as the screen shows them, and the revision.

        Raises:
            ContextsegError: There is no such slice.
        """
        self.check_slice(plane, k)
        with self.lock:
            drawn = np.ascontiguousarray(screen_slice(self.drawn, plane, k))
            filled = np.ascontiguousarray(screen_slice(self.filled, plane, k))
            return drawn, filled, self.slice_revision(plane, k)

    def slice_revision(self, plane: str, k: int) -> int:
        """The revision of the last change of a slice, also by slices that cross it."""
        crossing = max(self._last_of_plane[other] for other in SCREEN_PLANES if other != plane)
        return max(self._revisions.get((plane, k), 0), crossing)

    def put(
        self,
        plane: str,
        k: int,
        label: np.ndarray,
        revision: int | None = None,
        classes: int = LARGEST_CLASS,
        **details: Any,
    ) -> int:
        """Save a slice.

        Args:
            plane: One of `planes.SCREEN_PLANES`.
            k: Number of the slice.
            label: (rows, columns) uint8 as the screen shows it; `NOBODY_SAID` where nobody drew.
            revision: The revision that was changed; None overwrites any.
            classes: The largest class that there is.
            **details: What else the log says of it: tool, seconds, origin.

        Returns:
            The slice's new revision.

        Raises:
            StaleSlice: The slice has another revision now.
            ContextsegError: There is no such slice, the label does not fit it, or it cannot be
                saved; then nothing is changed.
        """
        self.check_slice(plane, k)
        rows, columns = slice_shape(self.shape, plane)
        if label.shape != (rows, columns) or label.dtype != np.uint8:
            what = f"a label of {label.shape}, not of {rows} x {columns} bytes"
            raise ContextsegError(f"{plane} slice {k}", what, "send one byte for each pixel")
        unknown = (label > classes) & (label != NOBODY_SAID)
        if unknown.any():
            what = f"the value {int(label[unknown][0])}, which no class has"
            raise ContextsegError(f"{plane} slice {k}", what, f"use 0 to {classes}, or 255")
        with self.lock:
            now = self.slice_revision(plane, k)
            if revision is not None and revision != now:
                raise StaleSlice(plane, k, now)
            saved = SavedSlice(plane, k, self.revision + 1, label.copy())
            drawn = bool((label != NOBODY_SAID).any())
            self.store.save(saved, drawn)
            line = {"time": round(time.time(), 3), "plane": plane, "slice": k}
            self.store.note({**line, **details, "revision": saved.revision, "drawn": drawn})
            self._apply(saved)
            if plane == self.plane:
                self._present[k : k + 1] = self._presence(k, k)
            return saved.revision

    def _apply(self, saved: SavedSlice) -> None:
        if saved.k >= self.shape[plane_axis(saved.plane)] or saved.label.shape != slice_shape(
            self.shape, saved.plane
        ):
            what = f"{saved.plane} slice {saved.k} of another scan"
            remedy = "choose another --output folder, or give the scan that was drawn on"
            raise ContextsegError(self.store.folder, what, remedy)
        screen_slice(self.drawn, saved.plane, saved.k)[...] = saved.label
        self._note_whole(saved.plane, saved.k)
        self.revision = max(self.revision, saved.revision)
        self._revisions[saved.plane, saved.k] = saved.revision
        self._last_of_plane[saved.plane] = saved.revision

    def changed_after(self, revision: int) -> list[tuple[str, int]]:
        """(plane, number) of the slices that were put after a revision."""
        with self.lock:
            return [place for place, own in self._revisions.items() if own > revision]

    def check_slice(self, plane: str, k: int) -> None:
        """Refuse a slice that does not exist.

        Raises:
            ContextsegError: There is no such slice.
        """
        n = self.shape[plane_axis(plane)]
        if not 0 <= k < n:
            what = f"the plane has {plural(n, 'slice')}"
            raise ContextsegError(f"{plane} slice {k}", what, f"choose 0 to {n - 1}")

    def touched(self, plane: str) -> list[int]:
        """The slices of a plane that are drawn as a whole, in order."""
        with self.lock:
            return sorted(k for p, k in self._whole if p == plane)

    def _note_whole(self, plane: str, k: int) -> None:
        """Keep count of the slices that are drawn as a whole, after one was put."""
        if (screen_slice(self.drawn, plane, k) != NOBODY_SAID).all():
            self._whole.add((plane, k))
            return
        self._whole = {
            (p, i) for p, i in self._whole if (screen_slice(self.drawn, p, i) != NOBODY_SAID).all()
        }

    @property
    def whole(self) -> np.ndarray:
        """(D, H, W) uint8 along `FRAME`: what is drawn, and else what is filled."""
        with self.lock:
            return np.where(self.drawn != NOBODY_SAID, self.drawn, self.filled)

    # --- filling ------------------------------------------------------------------------------

    def fill(
        self,
        model: PropagationModel | CompletionModel | None = None,
        way: str = "",
        progress: Callable[..., object] | None = None,
    ) -> FilledSlices | None:
        """Fill all slices from the drawn ones.

        Shapes fill between these; what a file says beyond them stays.

        Args:
            model: A network; None fills by the shapes of the drawn slices.
            way: As for `propagation.fill`.
            progress: Called with (slices walked, slices to walk in all).

        Returns:
            What changed; None where nothing is drawn that could be filled from.

        Raises:
            ContextsegError: As `propagation.fill`.
        """
        with self.lock:
            self._choose_plane()
            plane = self.plane
            numbers = self.touched(plane)
            labelled = self._labelled(numbers)
            if labelled is None:
                return self._clear()
        if model is None and not way:
            return self._fill_by_shapes(plane, numbers, labelled)
        ranges = self._ranges(labelled) if model else None
        filled = fill(self.scan, labelled, model, way, ranges, progress=progress)
        with self.lock:
            self._settle(plane)
            target, source = self._frames(self._own_filled), self._frames(filled.label.array)
            target[:] = source
            self.filled_by[:] = BY_NETWORK if model else BY_SHAPES
            self.confidence = filled.confidence[[self._number(i) for i in range(len(target))]]
            return self._changed(0, len(target) - 1)

    def _fill_by_shapes(
        self, plane: str, numbers: list[int], labelled: LabelledSlices
    ) -> FilledSlices:
        """Fill between the drawn slices in the box around them; what a file says beyond stays."""
        piece = self._filled_between(labelled)
        between = slice(numbers[0], numbers[-1] + 1)
        with self.lock:
            self._settle(plane)
            target = self._frames(self._own_filled)
            others = self.filled_by != BY_FILE
            others[between] = True
            target[others] = 0
            self.filled_by[others] = BY_SHAPES
            self.confidence[others] = np.nan
            if piece is not None:
                target[(between, *piece[0])] = piece[1]
            self.confidence[numbers] = 1
            return self._changed(0, len(target) - 1)

    def _changed(self, first: int, last: int) -> FilledSlices:
        """Note that slices were filled anew."""
        self._present[first : last + 1] = self._presence(first, last)
        self.generation += 1
        return FilledSlices(self.plane, first, last)

    def fill_around(self, plane: str, k: int) -> FilledSlices | None:
        """Fill again by shapes after a slice was changed.

        A structure is carried along a curve through all its drawn slices, so that one more decides
        all that shapes fill, if far away by little. What a network filled stays, but for the slices
        up to the next drawn ones.

        Args:
            plane: The plane of the slice.
            k: Its number.

        Returns:
            What changed; None where nothing did.
        """
        with self.lock:
            moved = self._choose_plane()
            known = self.touched(self.plane)
            if plane != self.plane and not moved and known:
                return None
            first = max((i for i in known if i < k), default=k)
            last = min((i for i in known if i > k), default=k)
            stays = self.filled_by == BY_NETWORK
            stays[first : last + 1] = False
            stays &= plane == self.plane and not moved and bool(known)
            before = self._frames(self._own_filled)[stays].copy(), self.confidence[stays].copy()
        change = self.fill()
        if not stays.any():
            return change
        with self.lock:
            self._frames(self._own_filled)[stays], self.confidence[stays] = before
            self.filled_by[stays] = BY_NETWORK
            return self._changed(0, len(stays) - 1)

    def _filled_between(
        self, labelled: LabelledSlices
    ) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """(box, labels in it) of the slices from the first drawn one to the last, as `_frames`.

        None where all are empty.
        """
        box = _box(np.logical_or.reduce([label > 0 for label in labelled.slices.values()]))
        if box is None or len(labelled.slices) < 2:
            return None
        axis = labelled.axis
        first, last = min(labelled.slices), max(labelled.slices)
        around = list(box)
        around.insert(axis, slice(first, last + 1))
        cropped = {i - first: label[box] for i, label in labelled.slices.items()}
        filled = fill(self.scan.cropped(around), LabelledSlices(axis, cropped))
        return box, self._frames(filled.label.array)

    def restore_fill(self, label: np.ndarray, by: int, confidence: np.ndarray | None) -> None:
        """Take a fill that was saved before.

        Args:
            label: (D, H, W) classes along `FRAME`.
            by: Who made it.
            confidence: (n,) of each slice, or None.
        """
        with self.lock:
            self.filled[...] = label
            self.filled_by[:] = by
            if confidence is not None and len(confidence) == len(self.confidence):
                self.confidence[:] = confidence
            self._present = self._presence(0, len(self.filled_by) - 1)
            self.generation += 1

    def _choose_plane(self) -> bool:
        """Fill along the plane in which most slices are drawn; whether that is another now."""
        plane = self._main_plane()
        moved = plane != self.plane
        if moved:
            self.plane = plane
            self._reset_fill()
        return moved

    def _labelled(self, numbers: Sequence[int]) -> LabelledSlices | None:
        """Drawn slices along the plane, on the scan's own grid; None where they hold no class."""
        frames = self._frames(self._own_drawn)
        slices = {self._number(k): frames[k].astype(np.int16) for k in numbers}
        if not any(label.any() for label in slices.values()):
            return None
        return LabelledSlices(self._order[plane_axis(self.plane)], dict(sorted(slices.items())))

    def _number(self, k: int) -> int:
        """Number on the scan's own grid of a slice of the plane that is filled along."""
        axis = plane_axis(self.plane)
        return self.shape[axis] - 1 - k if self._flips[axis] else k

    def _frames(self, own: np.ndarray) -> np.ndarray:
        """(n, h, w): a map on the scan's own grid as slices of the plane that is filled along."""
        axis = plane_axis(self.plane)
        view: Any = np.moveaxis(own, self._order[axis], 0)
        return view[::-1] if self._flips[axis] else view

    @staticmethod
    def _ranges(labelled: LabelledSlices) -> dict[int, tuple[int, int]]:
        """Where each class may lie: not beyond a drawn slice without it, outside those with it."""
        known = sorted(labelled.slices)
        held = {i: set(np.unique(labelled.slices[i]).tolist()) - {0} for i in known}
        ranges = {}
        for value in set().union(*held.values()):
            with_it = [i for i in known if value in held[i]]
            below = max((i + 1 for i in known if i < with_it[0]), default=0)
            above = min((i - 1 for i in known if i > with_it[-1]), default=10**9)
            ranges[value] = below, above
        return ranges

    def _main_plane(self) -> str:
        counts = {plane: len(self.touched(plane)) for plane in SCREEN_PLANES}
        return max(SCREEN_PLANES, key=lambda plane: counts[plane])

    def _reset_fill(self) -> None:
        n = self.shape[plane_axis(self.plane)]
        self.filled_by = np.zeros(n, np.uint8)
        self.confidence = np.full(n, np.nan, np.float32)
        self._present = np.zeros(n, bool)

    def _clear(self) -> FilledSlices | None:
        """Nothing is drawn any more: what shapes had filled goes."""
        by_shapes = np.flatnonzero(self.filled_by == BY_SHAPES)
        if not len(by_shapes):
            return None
        self._frames(self._own_filled)[by_shapes] = 0
        self.filled_by[by_shapes] = BY_NOBODY
        self.confidence[:] = np.nan
        return self._changed(int(by_shapes[0]), int(by_shapes[-1]))

    def _settle(self, plane: str) -> None:
        """Keep the per-slice facts those of `plane`."""
        if len(self.filled_by) != self.shape[plane_axis(plane)]:
            self.plane = plane
            self._reset_fill()

    def _presence(self, first: int, last: int) -> np.ndarray:
        """Which slices hold a class."""
        filled, drawn = self._frames(self._own_filled), self._frames(self._own_drawn)
        present = np.array([filled[i].any() for i in range(first, last + 1)], bool)
        for k in self.touched(self.plane):
            if first <= k <= last:
                present[k - first] |= bool(drawn[k].any())
        return present

    # --- what to do next ----------------------------------------------------------------------

    def suggestion(self) -> tuple[int, str] | None:
        """The slice to draw next, by `propagation.suggest_slice`; None before the first one."""
        with self.lock:
            known = self.touched(self.plane)
            n = self.shape[plane_axis(self.plane)]
            if not known or len(known) == n:
                return None
            reduced = Volume(self._present.astype(np.uint8)[:, None, None], np.eye(4))
            slices = {k: np.zeros((1, 1), np.int16) for k in known}
            return suggest_slice(Filled(reduced, self.confidence, LabelledSlices(0, slices)))

    def strip(self) -> dict[str, Any]:
        """What a strip of slices shows, JSON content."""
        with self.lock:
            suggested = self.suggestion()
            return {
                "plane": self.plane,
                "drawn": {plane: self.touched(plane) for plane in SCREEN_PLANES},
                "filled": np.flatnonzero(self._present).tolist(),
                "by": self.filled_by.tolist(),
                "confidence": [None if c != c else round(c, 4) for c in self.confidence.tolist()],
                "suggested": None if suggested is None else suggested[0],
                "why": "" if suggested is None else suggested[1],
                "generation": self.generation,
                "revision": self.revision,
            }

    # --- on the scan's grid -------------------------------------------------------------------

    def on_scan(self, array: np.ndarray) -> Volume:
        """A map along `FRAME` as a label map on the scan's own grid.

        Args:
            array: (D, H, W).

        Returns:
            The label map, its array contiguous.
        """
        volume = Volume(array, self.turned.affine).oriented(self.scan.orientation)
        return self.scan.with_array(np.ascontiguousarray(volume.array))


def _box(held: np.ndarray) -> tuple[slice, slice] | None:
    """The box around a mask with a margin; None of an empty one."""
    box = []
    for axis in (0, 1):
        places = np.flatnonzero(held.any(1 - axis))
        if not len(places):
            return None
        first = max(0, int(places[0]) - _MARGIN)
        box.append(slice(first, min(held.shape[axis], int(places[-1]) + 1 + _MARGIN)))
    return box[0], box[1]


def case_store(work: Path, name: str) -> DrawingStore:
    """Where the drawing of a case lies.

    Args:
        work: The annotator's folder.
        name: Name of the case.

    Returns:
        Its store.
    """
    return DrawingStore(work / "drawn" / name)
