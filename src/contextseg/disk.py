"""Files that survive a crash, and errors that name the file and the remedy.

One way to write a file (`replacing`), one writer of CSV (`csv_text`), one way to name content
(`digest`).
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from contextseg.errors import ContextsegError

_FULL_REMEDY = "free some space, or choose another output folder; what was finished is kept"
_LOCKED_REMEDY = "choose an output folder that can be written to"
_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", _FULL_REMEDY),
    errno.EDQUOT: ("the disk quota is used up", _FULL_REMEDY),
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
        if error.errno not in _DISK_ERRORS:
            raise
        raise ContextsegError(path, *_DISK_ERRORS[error.errno]) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file or a folder that takes the place of an older one when the block ends well.

    A reader sees the old content or the new, never half of it. After an error or a kill the old
    content stands. A folder replaces a folder, which for an instant is at neither name.

    Args:
        path: What to write. Missing parent folders are made.

    Yields:
        A temporary name beside `path`, with the same ending, to write to.

    Raises:
        ContextsegError: The disk is full or cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex[:8]}-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir():
                old = temporary.with_name(f"{temporary.name}-old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
                return
            if temporary.is_file():
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


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


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Args:
        path: File to read, in UTF-8.

    Raises:
        ContextsegError: The file is missing, may not be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ContextsegError(path, "the file does not exist", "check the path") from None
    except PermissionError:
        raise ContextsegError(
            path, "no permission to read it", "change the file's permissions"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ContextsegError(
            path, f"not valid JSON ({error})", "mend the file in a text editor"
        ) from error


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV table.

    Args:
        path: File to read, in UTF-8.
        columns: Names of the columns that it must have, in order.

    Returns:
        A dict of text by column for each row; no rows where there is no such file.

    Raises:
        ContextsegError: The file has other columns.
    """
    if not Path(path).exists():
        return []
    table = csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8")))
    if list(table.fieldnames or ()) != list(columns):
        raise ContextsegError(
            path,
            f"its columns are not {', '.join(columns)}",
            "move it away, or choose another folder",
        )
    return list(table)


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
    table.writerows(rows)
    return text.getvalue()


def note_case(
    path: str | Path, columns: Sequence[str], case: str, rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write the rows of one case into a CSV table, in place of those that it had.

    Args:
        path: File of the table; it need not exist.
        columns: Names of the columns, in order; the first is "case".
        case: Name of the case.
        rows: Its rows, without the column "case". No rows remove the case.

    Raises:
        ContextsegError: The table has other columns, or cannot be written.
    """
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(path, columns):
        cases.setdefault(row["case"], []).append(row)
    cases[case] = [{"case": case, **row} for row in rows]
    write_text(path, csv_text(columns, (row for rows in cases.values() for row in rows)))


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
