"""Files that survive a crash, and errors that name the file and the remedy.

One way to write a file (`replacing`), one way to list what was written (`visible_files`), one lock
for a folder (`lock_folder`), one writer of CSV (`csv_text`), one way to name content (`digest`).

A process that is killed while it writes leaves a hidden file or folder `.1a2b3c4d-NAME`. Such a
leftover is never taken for a result. The next process that locks the folder deletes it, and so does
the next one that writes NAME beside it (`replacing`), unless some process is writing there.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

from contextseg.cells import plain_cell, safe_cell
from contextseg.errors import ContextsegError
from contextseg.inputs import READ_REMEDY, damage_named, refuse_no_file
from contextseg.inputs import read_json as read_json
from contextseg.leftovers import (
    LEFTOVER,
    OLD,
    delete_leftover,
    sweeping_leftovers_of,
    temporary_beside,
)

P = ParamSpec("P")
R = TypeVar("R")

_FULL_REMEDY = "free some space, or choose another output folder; what was finished is kept"
_LOCKED_REMEDY = "choose an output folder that can be written to"
_LOCK = ".lock"
_OTHER_LOCKS = (_LOCK, ".annotate.lock")  # that of the annotator's folder
_TURN = ".turn"
_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", _FULL_REMEDY),
    errno.EDQUOT: ("the disk quota is used up", _FULL_REMEDY),
    errno.ENAMETOOLONG: ("its name is too long for this disk", "give the file a shorter name"),
    errno.EROFS: ("the disk is read-only", _LOCKED_REMEDY),
    errno.EACCES: ("no permission to write here", _LOCKED_REMEDY),
    errno.EPERM: ("no permission to write here", _LOCKED_REMEDY),
    errno.ENOTDIR: ("a file stands where a folder is needed", "choose another output folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another output folder"),
    errno.EISDIR: ("a folder stands where a file is needed", "choose another output folder"),
    errno.EFBIG: (
        "the file would be larger than this disk allows",
        "choose another disk, or raise the limit",
    ),
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn the operating system's write errors inside the block into a `ContextsegError`.

    Args:
        path: What the error is about.

    Raises:
        ContextsegError: The disk is full, read-only or locked, or something stands in the way.
    """
    try:
        yield
    except OSError as error:
        number = _number_of(error)
        if number not in _DISK_ERRORS:
            raise
        raise ContextsegError(path, *_DISK_ERRORS[number]) from error


def _number_of(error: OSError) -> int:
    """The system's number of a write error, also of one that has it in its text alone; else 0."""
    if error.errno is None and " requested and " in str(error):  # NumPy's, of a full disk
        return errno.ENOSPC
    if isinstance(error, shutil.Error):  # of a copied folder
        match = re.search(r"\[Errno (\d+)\]", str(error))
        return int(match[1]) if match else 0
    return error.errno or 0


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn "no permission" and "name too long" inside the block into a `ContextsegError`.

    Args:
        path: The file or folder that the block reads.

    Raises:
        ContextsegError: It may not be read, or a folder above it may not be entered.
    """
    try:
        yield
    except PermissionError as error:
        where = error.filename or path
        what = "no permission to read this file or folder"
        raise ContextsegError(where, what, READ_REMEDY) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        what = "no file or folder can have so long a name"
        raise ContextsegError(error.filename or path, what, "check the path") from error


def readable(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose first argument is a path, with `reading` around it.

    Args:
        function: The function; what it reads lies in the path.

    Returns:
        The function, which raises `ContextsegError` where it may not read.
    """

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else function.__name__
        with reading(str(first) if isinstance(first, str | Path) else function.__name__):
            return function(*args, **kwargs)

    return inner


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder that takes the place of an older one when the block ends well.

    A reader sees the old content or the new, never half of it. After an error or a kill the old
    content stands. A folder replaces a folder, which for an instant is at neither name.

    What a killed process left of this very file or folder is deleted first.

    Args:
        path: What to write. Missing parent folders are made.

    Yields:
        A temporary name beside `path`, with the same ending, to write to.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with sweeping_leftovers_of(path):
            try:
                yield temporary
                _put_into_place(temporary, path)
            finally:
                if temporary.is_dir() and not temporary.is_symlink():
                    shutil.rmtree(temporary, ignore_errors=True)
                else:
                    temporary.unlink(missing_ok=True)


def _put_into_place(temporary: Path, path: Path) -> None:
    """Rename what was written to the name it is for; both lie in one folder."""
    if temporary.is_dir() and path.is_dir():
        old = temporary.with_name(temporary.name + OLD)
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
        return
    if temporary.is_file():
        with open(temporary, "r+b") as file:  # Windows flushes no handle that only reads
            os.fsync(file.fileno())
    os.replace(temporary, path)


def visible_files(folder: str | Path, pattern: str) -> list[Path]:
    """What lies in a folder under a pattern, without hidden files and leftovers.

    `Path.glob` gives those too: "*.npy" also fits ".1a2b3c4d-case.npy", which a killed process
    left half-written.

    Args:
        folder: The folder; it may be missing.
        pattern: A pattern of `Path.glob`, such as "*.npy" or "*/done.json".

    Returns:
        The paths, sorted; [] for none.

    Raises:
        ContextsegError: The folder may not be entered.
    """
    folder = Path(folder)
    with reading(folder):
        paths = sorted(folder.glob(pattern))
    return [p for p in paths if not any(part[0] == "." for part in p.relative_to(folder).parts)]


def sweep_leftovers(folder: str | Path) -> int:
    """Delete what killed processes left half-written in a folder, at any depth.

    Links are not followed. Nothing is deleted while a process holds the lock of a folder in it.

    Args:
        folder: A folder in which no other process writes; it may be missing.

    Returns:
        The number of leftovers deleted.
    """
    leftovers: list[Path] = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent)
        if here != Path(folder) and any(
            name in files and _held(here / name) for name in _OTHER_LOCKS
        ):
            return 0
        leftovers += [here / name for name in [*folders, *files] if LEFTOVER.fullmatch(name)]
        folders[:] = [name for name in folders if not LEFTOVER.fullmatch(name)]
    for path in leftovers:
        delete_leftover(path)
    return len(leftovers)


# --- locks ----------------------------------------------------------------------------------------


@contextmanager
def lock_folder(folder: str | Path, shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder inside the block, and sweep what killed ones left.

    The lock is the operating system's, so that it ends with its process, however that ends. The
    hidden file `.lock` names who holds it. Where there are no such locks (Windows, some network
    disks), or nothing may be written, nothing is checked and nothing is swept.

    Args:
        folder: The folder; made if it is not there.
        shared: Let others in that share, too, such as the parts of a prediction.
        wait: Wait until no other process works in the folder.

    Raises:
        ContextsegError: Another process works in the folder; the message names it.
    """
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / _LOCK

    def turn() -> AbstractContextManager[None]:
        """Those that share come and go one by one: each has the lock alone for a moment."""
        return turn_in(folder) if shared else nullcontext()

    with turn():
        file = _locked(path, wait)
        if file is None and shared:
            file = _locked(path, wait=False, shared=True)
        if file is None:
            what = f"another process works in this folder{_holder(path)}"
            raise ContextsegError(folder, what, "wait for it to end, or stop it")
        try:
            if file.exclusive:
                sweep_leftovers(folder)
                file.name_holder(shared)
        except BaseException:
            file.release()
            raise
    try:
        yield
    finally:
        with turn():
            file.release()


@contextmanager
def turn_in(folder: str | Path) -> Iterator[None]:
    """Wait for a turn in a folder, for a change that several processes make one after the other.

    Such as a row in a table that they share. Where there are no locks, nothing is waited for.

    Args:
        folder: The folder; it must be there.
    """
    file = _locked(Path(folder) / _TURN, wait=True)
    assert file is not None
    try:
        yield
    finally:
        file.release()


class _LockFile:
    """A lock that is held, or its stand-in where there are no locks (`file` is None)."""

    def __init__(self, path: Path, file: IO[str] | None, exclusive: bool = False) -> None:
        self.path = path
        self.file = file
        self.exclusive = exclusive

    def name_holder(self, shared: bool) -> None:
        """Write down who holds it; then let others share it, if it is to be shared."""
        if self.file is None:
            return
        import fcntl

        words = sys.argv[1 : 3 if sys.argv[1:2] == ["project"] else 2]  # its verb
        command = " ".join([Path(sys.argv[0]).name, *words])
        holder = {
            "process": os.getpid(),
            "machine": platform.node(),
            "command": command,
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):
            self.file.truncate(0)
            self.file.write(json.dumps(holder))
            self.file.flush()
        if shared:
            fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.exclusive = False

    def release(self) -> None:
        """Let others in. The last one deletes the file."""
        if self.file is None:
            return
        import fcntl

        with self.file, suppress(OSError):
            if not self.exclusive:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while others share
            self.path.unlink()


def _locked(path: Path, wait: bool, shared: bool = False) -> _LockFile | None:
    """Lock a file, made if it is not there; None where another process holds it."""
    try:
        import fcntl
    except ImportError:
        return _LockFile(path, None)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        except OSError:  # what is written here later says why it cannot be
            return _LockFile(path, None)
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a disk without locks
            file.close()
            return _LockFile(path, None)
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return _LockFile(path, file, not shared)
        file.close()  # who held it before has deleted it


def _held(path: Path) -> bool:
    """Whether a process holds a lock; True where nobody can know."""
    try:
        import fcntl

        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails beside those that share
    except (ImportError, OSError):
        return True
    return False


def _holder(path: Path) -> str:
    """Who holds a lock, for a message; "" where its file does not say it."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"{holder['command']}, process {holder['process']} on {holder['machine']}"
        return f" ({who}, since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


# --- texts and tables -----------------------------------------------------------------------------


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, atomically.

    Args:
        path: File to write.
        text: Its content.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON, atomically.

    Args:
        path: File to write.
        content: What JSON can hold.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_tensors(path: str | Path, content: Any) -> None:
    """Write what `torch.save` can hold, atomically; `read_tensors` reads it.

    It goes through memory, since torch's own writer hides why a disk is full.

    Args:
        path: File to write.
        content: Tensors, numbers and texts in lists and dicts.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_rows(path: str | Path, columns: Sequence[str], cut: bool = False) -> list[dict[str, str]]:
    """The rows of a CSV table.

    Args:
        path: File to read, in UTF-8.
        columns: Names of the columns that it must have, in order.
        cut: Leave out a last line that a killed process left half-written.

    Returns:
        A dict of text by column for each row; no rows where there is no such file.

    Raises:
        ContextsegError: The file has other columns.
    """
    if not Path(path).exists():
        return []
    remedy = "move it away, or choose another folder"
    with damage_named(path, remedy, "not a table that can be read"):
        text = Path(path).read_bytes().decode("utf-8")
        last = text.rpartition("\n")[2]
        if cut and last and len(next(csv.reader([last]))) < len(columns):
            text = text[: -len(last)]
        table = csv.DictReader(io.StringIO(text), strict=True)
        if list(table.fieldnames or ()) != list(columns):
            raise ContextsegError(path, f"its columns are not {', '.join(columns)}", remedy)
        rows = []
        for row in table:
            if None in row or None in row.values():
                what = f"line {table.line_num} has not {len(columns)} columns"
                raise ContextsegError(path, what, remedy)
            rows.append({name: plain_cell(cell) for name, cell in row.items()})
    return rows


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of a CSV table with a header.

    Args:
        columns: Names of the columns, in order.
        rows: The rows, each a mapping from column to value; a missing value is empty.

    Returns:
        The table, its lines ending in a line feed. No rows give the header alone.

    Raises:
        ValueError: A row has a column that is not in `columns`.

    Example:
        >>> csv_text(["case", "dsc"], [{"case": "a", "dsc": 0.5}])
        'case,dsc\\na,0.5\\n'
    """
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({name: safe_cell(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def note_case(
    path: str | Path, columns: Sequence[str], case: str, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write the rows of one case into a CSV table, in place of those that it had.

    Several processes may do so at once; each waits for its turn.

    Args:
        path: File of the table; it need not exist.
        columns: Names of the columns, in order; the first is "case".
        case: Name of the case.
        rows: Its rows, without the column "case". No rows remove the case.

    Raises:
        ContextsegError: The table has other columns, or cannot be written.
    """
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    new: list[Mapping[str, Any]] = [{"case": case, **row} for row in rows]
    with turn_in(Path(path).parent):
        known = _TABLES.setdefault(os.path.abspath(path), _KnownTable())
        if case not in known.cases_of(Path(path), columns) and Path(path).exists():
            lines = csv_text(columns, new).partition("\n")[2]
            known.append(Path(path), columns, lines, case if new else "")
            return
        cases: dict[str, list[Mapping[str, Any]]] = {}
        for row in read_rows(path, columns, cut=True):
            cases.setdefault(row["case"], []).append(row)
        if csv_text(columns, cases.get(case, ())) == csv_text(columns, new) and cases:
            return
        cases[case] = new
        write_text(path, csv_text(columns, (row for rows in cases.values() for row in rows)))


class _KnownTable:
    """The cases of a table by its state on the disk, so that a row is added without reading it.

    A process that is killed while it adds may leave a part of a line, which is cut off before more
    is added. The case was not done then, and is added again.
    """

    def __init__(self) -> None:
        self.state: tuple[int, int, int] | None = None
        self.cases: set[str] = set()

    def cases_of(self, path: Path, columns: Sequence[str]) -> set[str]:
        """The cases that have rows, read again only where the file is not as it was left."""
        state = file_state(path)
        if state is None or state != self.state:
            self.cases = {row["case"] for row in read_rows(path, columns, cut=True)}
            self.state = state
        return self.cases

    def append(self, path: Path, columns: Sequence[str], text: str, case: str) -> None:
        """Add lines at the end of the file.

        Args:
            path: The table; it is there.
            columns: Its columns, by which a line that was cut off is known.
            text: The lines.
            case: The case whose rows they are; "" for several.

        Raises:
            ContextsegError: The disk is full or cannot be written to; then nothing is added.
        """
        with writing(path), open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end and file.seek(end - 1) >= 0 and file.read(1) != b"\n":
                file.seek(0)
                before = file.read()
                last = before.rpartition(b"\n")[2].decode("utf-8", "replace")
                if len(next(csv.reader([last]))) < len(columns):
                    end -= len(before) - before.rfind(b"\n") - 1
                else:
                    text = f"\n{text}"
            try:
                file.seek(end)
                file.truncate()
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self.cases |= {case} - {""}
        self.state = file_state(path)


_TABLES: dict[str, _KnownTable] = {}
"""The tables that this process has added rows to, by their path."""


def file_state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does: its number, size and time.

    Args:
        path: The file.

    Returns:
        The three; None without a file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def cases_in_table(path: str | Path, columns: Sequence[str]) -> set[str]:
    """The cases that have rows in a table which `note_case` writes.

    Args:
        path: File of the table; it need not exist.
        columns: Names of the columns, in order; the first is "case".

    Returns:
        Their names. The file is read again only where it changed.

    Raises:
        ContextsegError: The table has other columns.
    """
    known = _TABLES.setdefault(os.path.abspath(path), _KnownTable())
    return set(known.cases_of(Path(path), columns))


def digest(*parts: Any) -> str:
    """A name of some content.

    Args:
        *parts: A `Path` counts by the bytes of its file, anything else by its JSON.

    Returns:
        16 hexadecimal digits, the same for the same content.
    """
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Path):
            refuse_no_file(part)
            with open(part, "rb") as file:
                while chunk := file.read(1 << 20):
                    hashed.update(chunk)
        else:
            hashed.update(json.dumps(part, sort_keys=True).encode())
        hashed.update(b"\0")
    return hashed.hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()) -> str:
    """What differs between two sets of settings, for a message.

    Args:
        before: Settings by name.
        now: Settings by name.
        but: Names that may differ.

    Returns:
        A phrase for each of the first five names that differ; "" where nothing does.

    Example:
        >>> changes({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}, but={"c"})
        'b was 2 and is now 4, d was not set and is now 5'
    """
    every = dict.fromkeys([*before, *now])
    names = [n for n in every if before.get(n) != now.get(n) and n not in but]
    phrases = [
        f"{n} was {before.get(n, 'not set')} and is now {now.get(n, 'not set')}" for n in names[:5]
    ]
    return ", ".join(phrases)
