"""Files packed by gzip, unpacked no further than their headers ask for."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

from contextseg.errors import ContextsegError
from contextseg.inputs import refuse_impossible

_CHUNK_BYTES = 1 << 18
_PIECE_BYTES = 1 << 24  # of what a chunk unpacks to, at a time
_SLACK_BYTES = 1 << 26
HEAD_BYTES = 540
"""Bytes of the largest header here."""


def file_bytes(path: Path) -> bytearray:
    """What a file holds.

    Args:
        path: The file.
    """
    content = bytearray(path.stat().st_size)
    with open(path, "rb") as file:
        size = file.readinto(content)
    return content[:size] if size < len(content) else content


def is_packed(path: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name.

    Args:
        path: The file.
    """
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def analyze_need(head: bytearray) -> float:
    """Bytes that the voxels of an Analyze header take, in the larger of both byte orders.

    Args:
        head: The header.
    """
    sizes = []
    for order in "<>":
        dims = struct.unpack(f"{order}8h", bytes(head[40:56]))
        sizes.append(math.prod(max(1, n) for n in dims[1 : max(1, min(dims[0], 7)) + 1]) * 16)
    return max(sizes) + HEAD_BYTES


def mgh_need(path: Path, content: bytes | bytearray) -> float:
    """Bytes that an MGH file must have by its header.

    Args:
        path: The file.
        content: Its first bytes.
    """
    if len(content) < 284:
        return 284
    _, *dims, kind = struct.unpack(">6i", bytes(content[:24]))
    return 284 + math.prod(max(1, n) for n in dims) * {0: 1, 4: 2}.get(kind, 4)


def unpacked(path: Path, need: Callable[[Path, bytearray], float]) -> bytearray:
    """What a gzip file holds; bytes after its last stream are left, as gzip itself does.

    Args:
        path: The file.
        need: Called with the file and its first unpacked bytes: how many the header asks for. Of
            what follows them twice as much is allowed, so that a small file does not unpack to
            very much.

    Returns:
        The bytes.

    Raises:
        ContextsegError: It unpacks to more, or its header asks for more than it can hold.
        EOFError: The stream ends early.
    """
    from isal import isal_zlib

    content = bytearray()
    most = 0.0
    with open(path, "rb") as file:
        stream = isal_zlib.decompressobj(wbits=31)
        started = False
        chunk = file.read(_CHUNK_BYTES)
        while chunk:
            content += stream.decompress(chunk, _PIECE_BYTES)
            started = True
            if not most and len(content) >= HEAD_BYTES:
                most = _most_bytes(path, need(path, content))
            if most and len(content) > most:
                what = f"it unpacks to more than {len(content) >> 20} MiB, twice what its header"
                raise ContextsegError(path, f"{what} asks for", "export the file again")
            if not stream.eof:
                chunk = stream.unconsumed_tail or file.read(_CHUNK_BYTES)
                continue
            chunk = stream.unused_data
            if len(chunk) < 2:
                chunk += file.read(_CHUNK_BYTES)
            started = False
            if not chunk.startswith(b"\x1f\x8b"):
                break
            stream = isal_zlib.decompressobj(wbits=31)
    if started:
        content += stream.flush()
        if not stream.eof:
            raise EOFError(f"its gzip stream ends early, after {len(content)} bytes")
    return content


def _most_bytes(path: Path, asked: float) -> float:
    """How much a packed file may hold whose header asks for so many bytes."""
    refuse_impossible(path, asked, packed=True)
    return 2 * asked + _SLACK_BYTES
