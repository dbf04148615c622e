"""One input: which file is damaged and how, and how each reader of it ends."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .mutate import damage_file
from .readers import READERS, Reader, one_error

RIGHT, ERROR, OTHER, CRASH, TIMEOUT = "right", "one error", "other exception", "crash", "timeout"
_ORDER = [name for name, reader in READERS.items() for _ in range(reader.weight)]


@dataclass
class Outcome:
    """How one input ended: the worst of its calls, and where another exception came from."""

    index: int
    reader: str
    file: str
    damage: str
    calls: dict[str, str]
    outcome: str = RIGHT
    where: str = ""
    what: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reader_of(index: int) -> str:
    """The reader of an input; each has its share in any run of inputs that is long enough."""
    return _ORDER[index * 37 % len(_ORDER)]


def victims(reader: Reader, folder: Path) -> list[Path]:
    found = {path for pattern in reader.victims for path in folder.glob(pattern) if path.is_file()}
    return sorted(p for p in found if p.name not in (".lock",) and p.stat().st_size < 1 << 24)


def tried(corpus: Path, work: Path, seed: int, index: int, keep: bool = False) -> Outcome:
    """Copy a kind of the corpus, damage one file of it, and call its readers."""
    name = reader_of(index)
    reader = READERS[name]
    rng = random.Random(f"{seed}/{index}")
    folder = work / f"input-{index}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(corpus / reader.kind, folder, symlinks=True)
    path = rng.choice(victims(reader, folder))
    relative = path.relative_to(folder).as_posix()
    names = set(os.listdir(path.parent))
    damage = damage_file(path, rng)
    if not os.path.lexists(path):  # renamed, or gone
        path = next((p for p in path.parent.iterdir() if p.name not in names), path)
    result = Outcome(index, name, relative, damage, {})
    for call in reader.calls:
        outcome, error = _called(call, folder, path)
        result.calls[call.__name__] = outcome
        if outcome == OTHER and result.outcome != OTHER:
            assert error is not None
            result.outcome, result.where = OTHER, _place(error)
            result.what = f"{type(error).__name__}: {str(error)[:300]}"
        elif outcome == ERROR and result.outcome == RIGHT:
            result.outcome, result.what = ERROR, str(error)[:300]
    if not keep:
        _removed(folder)
    return result


def _called(call: Any, folder: Path, path: Path) -> tuple[str, BaseException | None]:
    from contextseg.errors import ContextsegError

    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            call(folder, path)
    except ContextsegError as error:
        try:
            one_error(error)
        except AssertionError as poor:
            return OTHER, poor
        return ERROR, error
    except Exception as error:
        return OTHER, error
    return RIGHT, None


def _place(error: BaseException) -> str:
    """The last line of the package that an exception went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/src/contextseg/" in f.filename] or frames
    last = own[-1]
    return f"{last.filename.rpartition('/contextseg/')[2]}:{last.lineno} {last.name}"


def _removed(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(parent, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
