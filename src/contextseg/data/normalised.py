"""A prepared scan as networks see it, of which only the slices that are read are made."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np

from contextseg.data.cache import Cached
from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import (
    Prepared,
    Record,
    normalise,
    prepare,
    prepare_in_slabs,
    slice_places,
)
from contextseg.slabs import is_one_slab
from contextseg.volume import Volume

_AT_ONCE = 16  # slices that are resampled together


class NormalisedScan:
    """A normalised image (C, D, H, W) that is indexed by slices and made a slab at a time.

    The slices that were read last are kept, so that windows which overlap along D, in its order,
    make each slice once.

    Args:
        prepared: The scan on the plan's grid.
        ways: The channels of each normalisation, one after the other.
        record: Statistics of the case.

    Example:
        >>> source = np.arange(6, dtype=np.int16).reshape(1, 6, 1, 1)
        >>> prepared = Prepared(source, source.shape, (3, 3, 3), (0.0,), (5.0,))
        >>> scan = NormalisedScan(prepared, [[Channel("MR", "none")]], None)
        >>> scan[:, 2:4, :, :].ravel().tolist(), scan.shape
        ([2.0, 3.0], (1, 6, 1, 1))
    """

    ndim = 4

    def __init__(
        self, prepared: Prepared, ways: Sequence[Sequence[Channel]], record: Record | None
    ) -> None:
        self.prepared, self.ways, self.record = prepared, ways, record
        self.shape = (sum(map(len, ways)), *prepared.shape[1:])
        self._start = 0
        self._kept = np.empty((self.shape[0], 0, *self.shape[2:]), np.float32)
        self._lock = Lock()

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> np.ndarray:
        channels, d, h, w = index
        start, stop, _ = d.indices(self.shape[1])
        with self._lock:
            kept, first = self._kept, self._start
            if not first <= start <= first + kept.shape[1]:
                kept, first = kept[:, :0], start
            if stop > first + kept.shape[1]:
                overlap = kept[:, start - first :]
                kept = np.empty((kept.shape[0], stop - start, *kept.shape[2:]), np.float32)
                kept[:, : overlap.shape[1]] = overlap
                for i in range(start + overlap.shape[1], stop, _AT_ONCE):
                    j = min(i + _AT_ONCE, stop)
                    kept[:, i - start : j - start] = self._made(i, j)
                first = start
                self._kept, self._start = kept, first
        return kept[channels, start - first : stop - first, h, w]

    def _made(self, start: int, stop: int) -> np.ndarray:
        raw = self.prepared.slab(start, stop)
        places = slice_places(self.shape[1])[start:stop]
        parts = [
            normalise(raw, way, self.record, places)  # type: ignore[arg-type]
            for way in self.ways
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def prepared_scan(
    scan: Volume, plan: Plan, name: str = "", memory_gb: float = 0.0
) -> tuple[np.ndarray | Prepared, Record]:
    """A scan on the plan's grid: as it is read, or for nnU-Net's plans at once.

    Args:
        scan: As for `prepare`.
        plan: As for `prepare`.
        name: As for `prepare`.
        memory_gb: As for `prepare`.

    Returns:
        The image in its own units, and its record.

    Raises:
        ContextsegError: As `prepare`.
    """
    if isinstance(plan, NNUNetPlan):
        raw, _, _, record = prepare(scan, plan, name, memory_gb=memory_gb)
        return raw, record
    lazy, _, _, record = prepare_in_slabs(scan, plan, name, memory_gb=memory_gb)
    return lazy, record


def whole_image(raw: np.ndarray | Prepared) -> np.ndarray:
    """All of a prepared scan, (C, *S) float32."""
    return raw.whole() if isinstance(raw, Prepared) else raw


def normalised_scan(
    raw: np.ndarray | Prepared, ways: Sequence[Sequence[Channel]], record: Record
) -> np.ndarray | NormalisedScan:
    """A prepared scan, normalised: at once where it is small, else as it is read.

    Args:
        raw: The scan on the plan's grid.
        ways: The channels of each normalisation, one after the other.
        record: Statistics of the case.

    Returns:
        (C, *S) float32, or what can be indexed as that.
    """
    if isinstance(raw, Prepared) and not is_one_slab(raw.shape[1:]):
        return NormalisedScan(raw, ways, record)
    array = whole_image(raw)
    return np.concatenate([normalise(array, way, record) for way in ways])


class CachedImage:
    """The normalised image of a preprocessed case, read from the disk as it is indexed.

    Args:
        case: The case.
        channels: The channels of the network.
    """

    ndim = 4

    def __init__(self, case: Cached, channels: Sequence[Channel]) -> None:
        self.case, self.channels = case, channels
        self.shape = (len(channels), *case.image.shape[1:])

    def __getitem__(self, index: tuple[slice, slice, slice, slice]) -> np.ndarray:
        _, *box = index
        whole = (slice(*s.indices(n)) for s, n in zip(box, self.shape[1:]))
        return self.case.patch(tuple(whole), self.channels)
