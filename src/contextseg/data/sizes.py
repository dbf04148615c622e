"""How much memory the largest case of a data set takes, without reading a scan."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from contextseg.data.listing import Case
from contextseg.formats.parts import files_of
from contextseg.parallel import default_workers

CHECK, PLAN, PREPROCESS = 1.5, 3.0, 3.5
"""Memory of a stage for each case at a time, as a multiple of the voxels of scan and label.

`benchmarks/SCALE.md` has what was measured.
"""

_MORE_GB = 0.25  # slabs of float32, whatever the scan
_LOOKED_AT = 8
_PACKED = 4  # how far a file of another format may be packed
_MOST_PACKED = 1100  # deflate makes at most 1032 bytes of one


def workers_for(cases: Sequence[Case], stage: float, what: str, most: int = 4) -> int:
    """How many cases fit into the memory that is free, at most one for each core.

    Args:
        cases: The cases.
        stage: One of `CHECK`, `PLAN` and `PREPROCESS`.
        what: Name of the stage, for the line that says that memory allows fewer.
        most: Largest number.

    Returns:
        One or more.
    """
    paths = [path for case in cases for path in case.images]
    scan = largest_file_gb(paths)
    labels = [case.label for case in cases if case.label]
    both = max((len(case.images) for case in cases), default=1) * scan + largest_file_gb(labels)
    return default_workers(most, stage * both + min(_MORE_GB, 8 * both), what)


def largest_file_gb(paths: Iterable[Path]) -> float:
    """The memory of the largest of some scans, in their own number type, in gibibytes.

    The size of a NIfTI file is read in its header, of the eight largest files; that of other files
    is guessed from their length.

    Args:
        paths: Files, or folders of DICOM series.

    Returns:
        Gibibytes; 0 for no file.
    """
    sizes = sorted(((_length(path), path) for path in paths), reverse=True)
    return (
        max((voxel_bytes(path, length) for length, path in sizes[:_LOOKED_AT]), default=0) / 2**30
    )


def _length(path: Path) -> int:
    try:
        if not path.is_dir():
            return path.stat().st_size
        return sum(file.stat().st_size for file in files_of(path))
    except OSError:
        return 0


def voxel_bytes(path: Path, length: int) -> int:
    """About the bytes of a scan's voxels, once it is read.

    Args:
        path: The file or folder.
        length: Bytes on the disk.

    Returns:
        Bytes, by the header of a NIfTI file; what is no NIfTI file may be packed to a quarter.
    """
    if not path.is_file():  # a folder; or a pipe, which would be waited for
        return length * _PACKED
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        packed = head.startswith(b"\x1f\x8b")
        if packed:
            head = zlib.decompressobj(31).decompress(head, 600)
        size = _nifti_bytes(head)
    except (OSError, zlib.error, struct.error):
        return length * _PACKED
    if size is None:
        return length * _PACKED
    most = _MOST_PACKED if packed else 2
    return min(size, most * length)  # of a header in another byte order, or a broken one


def _nifti_bytes(head: bytes) -> int | None:
    """The bytes of the voxels that a NIfTI header tells of; None for no such header."""
    for order in "<>":
        if struct.unpack_from(f"{order}i", head)[0] == 348:
            dim = struct.unpack_from(f"{order}8h", head, 40)
            bits = struct.unpack_from(f"{order}h", head, 72)[0]
            scaled = struct.unpack_from(f"{order}f", head, 112)[0] not in (0, 1)
        elif struct.unpack_from(f"{order}i", head)[0] == 540:
            dim = struct.unpack_from(f"{order}8q", head, 16)
            bits = struct.unpack_from(f"{order}h", head, 14)[0]
            scaled = struct.unpack_from(f"{order}d", head, 176)[0] not in (0, 1)
        else:
            continue
        voxels = math.prod(max(1, n) for n in dim[1 : 1 + max(0, min(7, dim[0]))])
        return voxels * max(bits // 8, 4 if scaled else 1)
    return None
