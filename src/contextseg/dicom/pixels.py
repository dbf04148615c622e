"""The numbers of the slices: decoded, and scaled with each slice's own slope and intercept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.dicom.files import read_header
from contextseg.dicom.frames import Frame
from contextseg.errors import ContextsegError
from contextseg.memory_errors import raise_memory_error

_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)
_DAMAGED = "copy or export this file again"


def stack(frames: Sequence[Frame]) -> np.ndarray:
    """Read the pixels of slices of one size.

    Args:
        frames: The slices, in order.

    Returns:
        (D, H, W). The files' number type where all slopes are 1 and all intercepts 0; the smallest
        sufficient integers where both are whole numbers; else float32.

    Raises:
        ContextsegError: A file is truncated, or its compression cannot be read here.
    """
    array = np.empty((len(frames), frames[0].rows, frames[0].columns), _number_type(frames))
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for place, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append((frame.index, place))
    for path, members in by_file.items():
        members.sort()
        slices = _decoded(path, [index for index, _ in members])
        for (_, place), stored in zip(members, slices, strict=True):
            frame = frames[place]
            if stored.shape != array.shape[1:]:
                sizes = [" x ".join(map(str, shape)) for shape in (stored.shape, array.shape[1:])]
                what = f"its pixels are {sizes[0]}, its tags say {sizes[1]}"
                raise ContextsegError(path, what, _DAMAGED)
            array = _put(array, place, _scaled(stored, frame, array.dtype))
    return array


def _number_type(frames: Sequence[Frame]) -> np.dtype:
    """The type that holds the scaled numbers of all slices, whatever they are."""
    if any(frame.real for frame in frames):
        return np.dtype(np.float64 if any(frame.allocated > 32 for frame in frames) else np.float32)
    scales = np.array([(frame.slope, frame.intercept) for frame in frames])
    if not (scales == np.rint(scales)).all():
        return np.dtype(np.float32)
    unscaled = bool((scales == (1, 0)).all())
    ends = []
    for frame in frames:
        bits = frame.allocated if unscaled else frame.stored
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if frame.signed else (0, 2**bits - 1)
        ends += [int(frame.slope) * end + int(frame.intercept) for end in (low, high)]
    return _smallest(min(ends), max(ends))


def _smallest(low: int, high: int) -> np.dtype:
    """The first integer type that holds numbers from `low` to `high`; float64 where none does."""
    for integer in _INTEGERS:
        if np.iinfo(integer).min <= low and high <= np.iinfo(integer).max:
            return np.dtype(integer)
    return np.dtype(np.float64)


def _scaled(stored: np.ndarray, frame: Frame, kind: np.dtype) -> np.ndarray:
    """Stored numbers times slope, plus intercept, computed in 64 bits."""
    if (frame.slope, frame.intercept) == (1, 0):
        return stored
    if kind.kind in "iu":
        return stored.astype(np.int64) * int(frame.slope) + int(frame.intercept)
    return stored.astype(np.float64) * frame.slope + frame.intercept


def _put(array: np.ndarray, place: int, values: np.ndarray) -> np.ndarray:
    """The array with a slice in its place; of a larger type where BitsStored was too small."""
    if array.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        held = np.iinfo(array.dtype)
        if low < held.min or high > held.max:
            array = array.astype(_smallest(min(low, int(held.min)), max(high, int(held.max))))
    array[place] = values
    return array


def _decoded(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Stored numbers (H, W) of some frames of a file, in the file's order."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEGExtended12Bit,
        RLELossless,
    )

    dataset = read_header(path)
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # a file without DICOM's mark
        implicit = dataset.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if not any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ContextsegError(path, "it ends before its pixels, it is truncated", _DAMAGED)

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _unreadable_compression(path, syntax) from error
    if not decoder.is_available:
        raise _unreadable_compression(path, syntax)
    if syntax.is_encapsulated and not _ends_whole(path):
        raise ContextsegError(path, "its compressed pixels are truncated", _DAMAGED)
    unused = not syntax.is_encapsulated or syntax == RLELossless
    try:
        if syntax == JPEGExtended12Bit and dataset.get("BitsStored", 8) > 8:
            yield from _by_gdcm(path, dataset)[list(indices)]
            return
        for pixels, _ in decoder.iter_array(dataset, indices=list(indices), raw=True):
            yield _used_bits(pixels, dataset) if unused else pixels
    except ContextsegError:
        raise
    except Exception as error:  # the codecs raise many classes for damaged pixels
        raise_memory_error(path, error)
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        what = f"its pixels cannot be read, the file looks truncated or damaged ({reason})"
        raise ContextsegError(path, what, _DAMAGED) from error


def _by_gdcm(path: Path, dataset: Any) -> np.ndarray:
    """All frames (N, H, W) of a JPEG of 12 bits, which pydicom's plugins leave out."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("GDCM cannot decode it")
    # GDCM gives bytes as text.
    content = reader.GetImage().GetBuffer().encode("utf-8", "surrogateescape")
    kind = np.int16 if dataset.get("PixelRepresentation") == 1 else np.uint16
    return np.frombuffer(content, kind).reshape(-1, dataset.Rows, dataset.Columns)


def _ends_whole(path: Path) -> bool:
    """Whether compressed pixels have their end mark, which some writers pad."""
    mark = b"\xfe\xff\xdd\xe0"
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 65536))
        return mark in file.read()


def _used_bits(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """Numbers without the overlays that old files keep in unused bits, and with their sign."""
    if pixels.dtype.kind not in "iu":
        return pixels
    allocated = pixels.dtype.itemsize * 8
    stored = int(dataset.get("BitsStored") or allocated)
    highest = int(dataset.get("HighBit", stored - 1))
    if stored >= allocated or not stored - 1 <= highest < allocated:
        return pixels
    return (pixels << (allocated - 1 - highest)) >> (allocated - stored)


def _unreadable_compression(path: Path, syntax: Any) -> ContextsegError:
    what = f"its pixels are compressed as {syntax.name} (TransferSyntaxUID (0002,0010)), not read"
    remedy = "decompress it, for example with `gdcmconv --raw` or `dcmdjpeg`"
    return ContextsegError(path, what, remedy)
