"""Commands in a child process, in which something happens at a chosen write.

A command runs in a fork of the test process, so that nothing is imported again. An audit hook sees
each file that is opened to be written, each folder that is made and each renaming inside a folder;
at the chosen one the process is killed, gets a signal, or finds that the disk is full, read-only or
locked.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch

from contextseg.disk import digest
from contextseg.volume import read

LEFTOVER = re.compile(r"\.[0-9a-f]{8}-.+")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = ("open", "os.rename", "os.mkdir")
_ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "denied": errno.EACCES}
_SIGNALS = {
    "kill": getattr(signal, "SIGKILL", signal.SIGTERM),
    "term": signal.SIGTERM,
    "ctrl-c": signal.SIGINT,
}


class _Switch:
    """What happens at which write; only ever on in a child."""

    def __init__(self) -> None:
        self.inside = ""
        self.at = 0
        self.act = ""
        self.count = 0
        self.log: int | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.inside or event not in _EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        path = os.path.abspath(os.fspath(args[0]))
        flags = args[2] if event == "open" else _WRITING
        if not path.startswith(self.inside) or not flags & _WRITING:
            return
        self.count += 1
        if self.log is not None:
            os.write(self.log, f"{event} {path}\n".encode())
        if self.count == self.at and self.act in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[self.act])
        elif self.count >= self.at and self.act in _ERRORS:  # and so is every write from then on
            code = _ERRORS[self.act]
            raise OSError(code, os.strerror(code), path)


_SWITCH = _Switch()
_INSTALLED: list[bool] = []


@dataclass(frozen=True)
class Attempt:
    """How a command ended: its exit code (negative for a signal), its stderr, its writes."""

    code: int
    text: str
    writes: tuple[str, ...]


def attempt(
    words: Sequence[object],
    inside: Path,
    at: int = 0,
    act: str = "",
    before: Callable[[], object] = lambda: None,
) -> Attempt:
    """Run the command line in a child, and let something happen at a write.

    Args:
        words: The words after `contextseg`.
        inside: Folder whose writes count.
        at: Which write, from 1; 0 for none.
        act: "kill", "term", "ctrl-c", "full", "read-only" or "denied". The last three hold from
            that write on.
        before: Called in the child first.
    """
    if not _INSTALLED:
        sys.addaudithook(_SWITCH)
        _INSTALLED.append(True)
    inside.parent.mkdir(parents=True, exist_ok=True)
    out, log = inside.parent / "stderr.txt", inside.parent / "writes.txt"
    child = os.fork()
    if child == 0:
        _child([str(word) for word in words], str(inside), at, act, before, out, log)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    writes = tuple(log.read_text(encoding="utf-8").splitlines())
    return Attempt(code, out.read_text(encoding="utf-8"), writes)


def _child(
    words: list[str],
    inside: str,
    at: int,
    act: str,
    before: Callable[[], object],
    out: Path,
    log: Path,
) -> None:
    code = 99
    try:
        stream = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
        torch.set_num_threads(1)
        before()
        from contextseg.cli import main

        sys.argv = ["contextseg", *words]
        _SWITCH.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _SWITCH.at, _SWITCH.act, _SWITCH.inside = at, act, os.path.abspath(inside)
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        _SWITCH.inside = ""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def leftovers(folder: Path) -> list[str]:
    """What is half-written in a folder, and locks; [] for none."""
    names = (path.name for path in folder.rglob(".*"))
    return sorted(n for n in names if LEFTOVER.fullmatch(n) or n in (".lock", ".turn"))


def without_times(table: str) -> list[list[str]]:
    """The rows of a CSV table without its columns of seconds, which are others each time."""
    rows = list(csv.reader(io.StringIO(table)))
    timed = [n for n, column in enumerate(rows[0]) if "seconds" in column] if rows else []
    return [[cell for n, cell in enumerate(row) if n not in timed] for row in rows]


def results(folder: Path) -> Mapping[str, object]:
    """What a folder holds that must not depend on what happened on the way, by name."""
    content: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        name = re.sub("-[0-9a-f]{16}/", "/", name)  # of the cache: files have other times
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if name.endswith(".nii.gz") and not path.is_symlink():
            volume = read(path)
            pixels = np.ascontiguousarray(volume.array).tobytes()
            content[name] = digest(crc32(pixels), np.round(volume.affine, 4).tolist())
        elif name.endswith((".csv", ".md")) and not name.endswith("log.csv"):  # it has seconds
            text = path.read_text(encoding="utf-8").replace(str(folder), "")
            content[name] = without_times(text) if name.endswith(".csv") else text
        elif name.endswith("model.pt"):
            weights = torch.load(path, map_location="cpu", weights_only=True)
            content[name] = {n: v.flatten().tolist() for n, v in weights.items()}
        elif path.is_file():
            content[name] = "there"
    return content
