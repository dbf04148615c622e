"""Large arrays a slab at a time, so that nothing as large as a whole scan is made on the way.

A slab is a few slices along an array's first axis. What is done slab by slab here gives the same
numbers as if it were done at once. Arrays of one slab are done at once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np

SLAB_VOX = 1 << 24
"""Voxels of a slab: 64 MB as float32."""


def slabs(shape: Sequence[int], multiple: int = 1) -> Iterator[slice]:
    """The slabs of an array.

    Args:
        shape: Its shape, of which the first axis is cut.
        multiple: Every slab but the last has a multiple of so many slices.

    Yields:
        Slices along the first axis, in order; of an array of at most `SLAB_VOX` voxels a single
        one. Nothing for an axis of length 0.

    Example:
        >>> list(slabs((3, 4096, 4096)))
        [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    length = shape[0]
    fit = max(1, SLAB_VOX // max(1, prod(shape[1:])))
    step = max(multiple, fit // multiple * multiple)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def is_one_slab(shape: Sequence[int]) -> bool:
    """Whether an array of that shape is done at once."""
    return prod(shape) <= SLAB_VOX


def value_counts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a label map and how many voxels have each, in a tenth of the time of sorting.

    Most voxels have the value of their neighbour, so that only runs of one value are counted.

    Args:
        array: Whole numbers, any shape.

    Returns:
        As `numpy.unique(array, return_counts=True)`.

    Example:
        >>> [x.tolist() for x in value_counts(np.array([[0, 0, 2], [2, 1, 1]]))]
        [[0, 1, 2], [2, 2, 2]]
    """
    values = [array.reshape(-1)[:0]] if not array.size else []
    counts = [np.zeros(0, np.int64)] if not array.size else []
    for part in slabs(array.shape) if array.size else ():
        flat = np.ascontiguousarray(array[part]).reshape(-1)
        starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        runs, index = np.unique(flat[np.concatenate([[0], starts])], return_inverse=True)
        lengths = np.diff(starts, prepend=0, append=flat.size)
        values.append(runs)
        counts.append(np.bincount(index, lengths, len(runs)).astype(np.int64))
    known, index = np.unique(np.concatenate(values), return_inverse=True)
    total = np.bincount(index, np.concatenate(counts), len(known))
    return known, total.astype(np.int64)


def unique_values(array: np.ndarray) -> np.ndarray:
    """The values of a label map, as `numpy.unique` gives them, in a tenth of its time.

    Args:
        array: Whole numbers, any shape.

    Returns:
        (N,) of the same type, ascending; (0,) for an empty array.
    """
    return value_counts(array)[0]


def low_and_high(array: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest value of an array, without a copy of it.

    Args:
        array: Numbers, any shape, not empty.

    Returns:
        (smallest, largest).
    """
    return array.min().item(), array.max().item()


def masked_mean_sd(array: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the voxels of a mask, as float32 numbers summed in float64.

    Args:
        array: (D, H, W) of any number type.
        mask: (D, H, W) bool; not empty.

    Returns:
        (mean, standard deviation).
    """
    if is_one_slab(array.shape):
        values = array[mask].astype(np.float32, copy=False).astype(np.float64)
        return float(values.mean()), float(values.std())
    parts = list(slabs(array.shape))

    def values_of(part: slice) -> np.ndarray:
        inside: np.ndarray = array[part][mask[part]]
        return inside.astype(np.float32, copy=False).astype(np.float64)

    count = sum(int(np.count_nonzero(mask[part])) for part in parts)
    mean = sum(float(values_of(part).sum()) for part in parts) / count
    squares = 0.0
    for part in parts:
        values = values_of(part)
        values -= mean
        squares += float(np.square(values, out=values).sum())
    return mean, float(np.sqrt(squares / count))


def sample_of(mask: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Voxels of a mask: all of them, or a random choice of some.

    Args:
        mask: (D, H, W) bool.
        most: Largest number of voxels.
        rng: Draws where there are more.

    Returns:
        Flat indices (N,) int64, in the order of the draw, else ascending: those of
        `rng.choice(np.flatnonzero(mask), most, replace=False)`.
    """
    parts = list(slabs(mask.shape))
    counts = [int(np.count_nonzero(mask[part])) for part in parts]
    total = sum(counts)
    ranks = rng.choice(total, most, replace=False) if total > most else np.arange(total)
    out = np.empty(len(ranks), np.int64)
    before = 0
    plane = prod(mask.shape[1:])
    for part, count in zip(parts, counts):
        mine = (ranks >= before) & (ranks < before + count)
        if mine.any():
            flat = np.flatnonzero(mask[part])
            out[mine] = flat[ranks[mine] - before] + part.start * plane
        before += count
    return out


def extent_of(array: np.ndarray, axis: int) -> tuple[int, int] | None:
    """Where the voxels above 0 of an array lie along one axis.

    Args:
        array: (D, H, W), whole numbers or bool.
        axis: 0, 1 or 2.

    Returns:
        (start, stop); None where nothing is above 0.
    """
    others = tuple({0, 1, 2} - {axis})
    hit = np.zeros(array.shape[axis], bool)
    for part in slabs(array.shape):
        here = (array[part] > 0).any(others)
        if axis == 0:
            hit[part] = here
        else:
            hit |= here
    where = np.flatnonzero(hit)
    return (int(where[0]), int(where[-1]) + 1) if len(where) else None


def voxel_digest(array: np.ndarray) -> str:
    """A name of the voxels of a channel, the same in every number type that holds them.

    Args:
        array: (D, H, W) of any number type.

    Returns:
        32 hexadecimal digits.
    """
    hashed = hashlib.blake2b(digest_size=16, key=str(array.shape).encode())
    for part in slabs(array.shape):
        values = np.ascontiguousarray(array[part], dtype=np.float32) + np.float32(0)  # not -0
        hashed.update(values.data)
    return hashed.hexdigest()


def save_slabs(
    path: str | Path, shape: Sequence[int], kind: type, parts: Iterable[tuple[slice, np.ndarray]]
) -> None:
    """Write a .npy file, as `numpy.save` does, from slabs along the last but two axis.

    Args:
        path: The file.
        shape: Shape of the whole, (D, H, W) or (C, D, H, W).
        kind: Number type.
        parts: Where along D each slab lies, and the slab, (n, H, W) or (C, n, H, W).
    """
    lead = prod(shape[:-3])
    plane = prod(shape[-2:]) * np.dtype(kind).itemsize
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
        "fortran_order": False,
        "shape": tuple(shape),
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for part, array in parts:
            for i, channel in enumerate(array.reshape(lead, *array.shape[-3:])):
                file.seek(start + (i * shape[-3] + part.start) * plane)
                file.write(np.ascontiguousarray(channel, kind).data)
        file.flush()
        os.fsync(file.fileno())  # else a power cut can leave a file of zeros at its full length
