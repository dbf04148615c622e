"""What a killed process leaves half-written: how it is named, and who may delete it.

A file or folder NAME is written as `.1a2b3c4d-NAME` beside it (`temporary_beside`), then renamed.
Whoever writes shares the lock of the folder meanwhile; whoever gets this lock alone knows that what
was half-written there has no writer any more (`sweeping_leftovers_of`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

LEFTOVER = re.compile(r"\.[0-9a-f]{8}-.+")
"""The name of what is half-written."""

OLD = "-old"
"""The end of the name of a folder that is being replaced."""

_MARK = len(".1a2b3c4d-")
_LONGEST_NAME = 255  # bytes, on all usual disks
_PATIENCE_S = 0.2  # for another process to sweep, which is a matter of milliseconds


def temporary_beside(path: Path) -> Path:
    """A hidden name beside a file or folder, with the same ending, under which it is written.

    Args:
        path: What is written.

    Returns:
        A name that nothing has; what a killed process leaves under it is a leftover.
    """
    mark = f".{uuid4().hex[:8]}-"
    name = path.name
    while len(os.fsencode(mark + name)) > _LONGEST_NAME:  # without its ending it is shortened
        name = name[1:]
    return path.with_name(mark + name)


def delete_leftover(path: Path) -> None:
    """Delete a file, a link or a folder, as far as that can be done.

    Args:
        path: What to delete; it need not be there.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def sweeping_leftovers_of(path: Path) -> Iterator[None]:
    """Around the writing of a file or folder: delete what killed processes left of that very one.

    Nothing is deleted while something is being written in its folder, by this process or another:
    whose a leftover is cannot be seen, and a leftover can wait. It is tried before the block and
    after it.

    Args:
        path: What the block writes, beside a hidden name; its folder is there.
    """
    listing = _LISTINGS.setdefault(os.path.abspath(path.parent), _Listing())
    listing.look_for(path)
    listing.sweep(path.parent)
    with _folder_lock(path.parent, shared=True, wait=listing.patient) as held:
        # Somebody may hold the lock for ever, as in `flock FOLDER contextseg ...`: then nobody can
        # sweep, and it is not waited for again.
        listing.patient = held
        yield
    listing.sweep(path.parent)


@contextmanager
def _folder_lock(folder: Path, shared: bool, wait: bool = False) -> Iterator[bool]:
    """The operating system's lock of a folder itself, which needs no file and dies with its holder.

    Those that write share it for as long as something lies there half-written; whoever sweeps has
    it alone.

    Yields:
        Whether the lock is held. Never where there are no such locks.
    """
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        yield _taken(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait)
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # also for forks that have the handle
        os.close(handle)


def _taken(handle: int, kind: int, wait: bool) -> bool:
    """Whether a lock was taken; if `wait`, another process is given the time to sweep."""
    import fcntl

    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait or time.monotonic() > end:
                return False
            time.sleep(0.005)
        except OSError:  # a disk without locks
            return False
        else:
            return True


class _Listing:
    """The leftovers in a folder to which this process writes.

    A folder is listed again only after as many writes as it had entries, so that writing n files
    into one takes time in the order of n.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.writes = 0
        self.leftovers: list[str] = []
        self.pending: dict[Path, None] = {}  # of what this process writes
        self.patient = True  # until waiting for the folder's lock was in vain

    def look_for(self, path: Path) -> None:
        """Note what lies half-written of a file or folder, before it is written."""
        self.writes += 1
        if self.writes > self.entries:
            names: list[str] = []
            with suppress(OSError):
                names = os.listdir(path.parent)
            self.writes, self.entries = 0, len(names)
            self.leftovers = [name for name in names if LEFTOVER.fullmatch(name)]
        if self.leftovers:
            name = temporary_beside(path).name[_MARK:]
            same = [n for n in self.leftovers if n[_MARK:] in (name, name + OLD)]
            self.pending |= {path.with_name(n): None for n in same}

    def sweep(self, folder: Path) -> None:
        """Delete what was noted, if nothing is being written in the folder.

        It was noted before the lock was taken, so that what is begun later is not among it.
        """
        if not self.pending:
            return
        noted = list(self.pending)
        with _folder_lock(folder, shared=False) as alone:
            if not alone:
                return
            for leftover in noted:
                delete_leftover(leftover)
                self.pending.pop(leftover, None)
            self.entries = 0  # it is listed before the next write, since it was changed


_LISTINGS: dict[str, _Listing] = {}
"""The folders to which this process has written, by their path."""
