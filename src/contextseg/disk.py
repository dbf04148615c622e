"""What is written survives a crash; what cannot be read says which file, and what to do.

One error class for bad input (`Problem`), one way to write a file (`replacing`), one way to name content (`digest`).
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


class Problem(Exception):
    """Something about the input that a person must mend: where it is, what is wrong, and the remedy.

    Every error that a user can cause is one of these; the command line prints it as one message and exits with 1.

    >>> print(Problem("scan.nii.gz", "the file is truncated", "copy it again"))
    scan.nii.gz: the file is truncated. Remedy: copy it again
    """

    def __init__(self, where: str | Path, what: str, remedy: str) -> None:
        super().__init__(where, what, remedy)
        self.where, self.what, self.remedy = str(where), what, remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. Remedy: {self.remedy}"


_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another output folder; what was finished is kept"),
    errno.EDQUOT: (
        "the disk quota is used up",
        "free some space, or choose another output folder; what was finished is kept",
    ),
    errno.EROFS: ("the disk is read-only", "choose an output folder that can be written to"),
    errno.EACCES: ("no permission to write here", "choose an output folder that can be written to"),
    errno.EPERM: ("no permission to write here", "choose an output folder that can be written to"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "choose another output folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another output folder"),
    errno.EISDIR: ("a folder stands where a file is needed", "choose another output folder"),
    errno.EFBIG: ("the file would be larger than this disk allows", "choose another disk, or raise the limit"),
}


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn the operating system's write errors inside the block into a `Problem` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise Problem(path, *_DISK_ERRORS[error.errno]) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write to a temporary name beside `path`, which takes the place of `path` when the block ends well.

    A reader sees the old content or the new, never half of it; after an error or a kill the old content stands. The
    temporary name keeps the file's ending. A folder written there replaces a folder, which for an instant is at neither
    name. Missing parents are made.

    Raises `Problem` if the disk is full or cannot be written to.
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
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises `Problem` where it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Problem(path, "the file does not exist", "check the path") from None
    except PermissionError:
        raise Problem(path, "no permission to read it", "change the file's permissions") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Problem(path, f"not valid JSON ({error})", "mend the file in a text editor") from error


def read_rows(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV table, each a dict of its columns; none where there is no such file.

    Raises `Problem` where its columns are others.
    """
    if not Path(path).exists():
        return []
    table = csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8")))
    if list(table.fieldnames or ()) != list(columns):
        raise Problem(path, f"its columns are not {', '.join(columns)}", "move it away, or choose another folder")
    return list(table)


def note_case(path: str | Path, columns: Sequence[str], case: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of one case into a CSV table, whose first column is "case", in place of those that it had.

    Raises `Problem` as `read_rows`, and where it cannot be written.
    """
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_rows(path, columns):
        cases.setdefault(row["case"], []).append(row)
    cases[case] = [{"case": case, **row} for row in rows]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(row for found in cases.values() for row in found)
    write_text(path, text.getvalue())


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that name the content of `parts`: a `Path` by its bytes, anything else by its JSON."""
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
    """What differs between two sets of settings, five at most, for a message; "" where nothing does. `but`: may differ.

    >>> changes({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 4, "d": 5}, but={"c"})
    'b was 2 and is now 4, d was not set and is now 5'
    """
    names = [n for n in dict.fromkeys([*before, *now]) if before.get(n) != now.get(n) and n not in but]
    return ", ".join(f"{n} was {before.get(n, 'not set')} and is now {now.get(n, 'not set')}" for n in names[:5])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known ones, or all of them."""
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}"
