"""What is read from the disk, checked at the border: one error, which names the file and the place.

One way to read JSON (`read_json`), whose values have the types that a shape asks for (`misfit`),
one to read lines of JSON (`read_json_lines`), one to read tensors (`read_tensors`), and one to name
whatever a reader raises for a damaged file (`damage_named`). `cells` has the one for tables.
"""

from __future__ import annotations

import errno
import json
import re
import stat
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from contextseg.errors import ContextsegError
from contextseg.memory_errors import is_memory_error
from contextseg.stopping import Stopped

READ_REMEDY = "change its permissions, or those of the folders above it, or choose another"
"""What to do about a file or folder that may not be read."""

MEND = "mend the file in a text editor"
COPY_AGAIN = "copy or export the file again"
_LARGEST = 2**63 - 1
_MOST_PACKED = 1100  # deflate makes at most 1032 bytes of one
_SLACK = 1 << 20
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_NO_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_LINES = re.compile(r"\s*\n\s*")


# --- whatever a reader raises ---------------------------------------------------------------------


def refuse_no_file(path: str | Path, folders: bool = False) -> None:
    """Refuse what is there and is no file, such as a named pipe, whose reader would wait for ever.

    Args:
        path: A path; nothing need be there.
        folders: Whether it may be a folder.

    Raises:
        ContextsegError: It is a pipe, a socket, a device or a folder, or a link to itself.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ContextsegError(path, *_of_system(error)) from error
    kind = _NO_FILES.get(stat.S_IFMT(mode))
    if kind and not (folders and stat.S_ISDIR(mode)):
        raise ContextsegError(path, f"{kind}, not a file", "give the file itself")


@contextmanager
def damage_named(
    path: Any, remedy: str = COPY_AGAIN, what: str = "it looks truncated or damaged"
) -> Iterator[None]:
    """Turn whatever the block raises for the content of a file into one error.

    Readers of damaged files raise many classes, and none of them names the file. What is refused
    already keeps its own message.

    Args:
        path: The file that the block reads. It is refused first where it is no file.
        remedy: What to do.
        what: What is wrong, to which the reader's own words are added.

    Raises:
        ContextsegError: The block raised something.
    """
    if isinstance(path, str | Path):
        refuse_no_file(path, folders=True)
    try:
        yield
    except (ContextsegError, Stopped):
        raise
    except Exception as error:
        raise damage(path, error, remedy, what) from error


def names_damage(
    remedy: str = COPY_AGAIN, what: str = "it looks truncated or damaged"
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that puts `damage_named` around a function whose first argument is a path.

    Args:
        remedy: What to do.
        what: What is wrong, to which the reader's own words are added.

    Returns:
        The decorator.
    """

    def around(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def inner(*args: P.args, **kwargs: P.kwargs) -> R:
            with damage_named(args[0], remedy, what):
                return function(*args, **kwargs)

        return inner

    return around


def refuse_impossible(path: str | Path, need: float, packed: bool, files: float = 0) -> None:
    """Refuse a header that asks for more voxels than its file can hold, before anything is made.

    Args:
        path: The file.
        need: Bytes that the header asks for.
        packed: Whether the file is compressed: then it may hold a thousand times its size.
        files: Bytes on the disk; 0 for those of `path`.

    Raises:
        ContextsegError: It asks for more.
    """
    size = files or Path(path).stat().st_size
    if need <= (size * _MOST_PACKED + _SLACK if packed else size):
        return
    what = f"its header asks for {need:,.0f} bytes of voxels, and the file has {size:,}"
    raise ContextsegError(path, f"{what}: it looks truncated or damaged", COPY_AGAIN)


def damage(path: Any, error: Exception, remedy: str, what: str) -> ContextsegError:
    """The error for what a reader raised.

    Args:
        path: The file.
        error: What was raised.
        remedy: What to do about a damaged file.
        what: What is wrong with a damaged file.

    Returns:
        The error: about a missing file, about permissions, about memory, or about damage.
    """
    if is_memory_error(error):
        remedy = "see whether its header is right; else use a machine with more memory"
        return ContextsegError(path, "what it asks for does not fit into memory", remedy)
    # torch's reader finds an invalid argument in a file that was cut off.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        named = error.filename if isinstance(error.filename, str) else path
        return ContextsegError(named or path, *_of_system(error))
    return ContextsegError(path, f"{what} ({reason_of(error)})", remedy)


def _of_system(error: OSError) -> tuple[str, str]:
    """What an error of the operating system means, and the remedy."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist", "check the path"
    if isinstance(error, PermissionError):
        return "no permission to read it", READ_REMEDY
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file", "give the file itself"
    return f"cannot be read ({error.strerror or error})", "check the file and the disk"


def reason_of(error: Exception) -> str:
    """The words of an exception in one short line; its class where it has none.

    Args:
        error: What was raised.

    Returns:
        At most 200 letters.

    Example:
        >>> reason_of(ValueError("line one\\nline two")), reason_of(EOFError())
        ('line one line two', 'EOFError')
    """
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r:.100} is missing"
    words = _LINES.sub(" ", str(error)).strip()
    words = "".join(letter if letter.isprintable() else "?" for letter in words[:200])
    return words or type(error).__name__


# --- JSON -----------------------------------------------------------------------------------------


def read_json(path: str | Path, shape: Any = Any, remedy: str = MEND) -> Any:
    """The content of a JSON file.

    Args:
        path: File to read, in UTF-8.
        shape: What it holds, as a type hint; see `misfit`.
        remedy: What to do about content of another shape.

    Raises:
        ContextsegError: The file is missing, may not be read, is not JSON, or holds something else.
    """
    refuse_no_file(path)
    with damage_named(path, MEND, "not valid JSON"):
        text = Path(path).read_bytes()
    return parsed_json(text, path, shape, remedy)


def parsed_json(text: str | bytes, where: Any, shape: Any = Any, remedy: str = MEND) -> Any:
    """The content of JSON text.

    Args:
        text: The text, as bytes in UTF-8.
        where: The file that it is from, for messages.
        shape: What it holds, as a type hint; see `misfit`.
        remedy: What to do about content of another shape.

    Raises:
        ContextsegError: It is not JSON, or holds something else.

    Example:
        >>> parsed_json('{"fold": 1}', "run.json", dict[str, int])
        {'fold': 1}
    """
    with damage_named(None if isinstance(where, Path) else where, MEND, "not valid JSON"):
        try:
            content = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        except RecursionError:
            raise ContextsegError(where, "not valid JSON (nested too deeply)", MEND) from None
        except ValueError as error:
            reason = "a number with too many digits" if "digits" in str(error) else reason_of(error)
            raise ContextsegError(where, f"not valid JSON ({reason})", MEND) from error
    if what := misfit(content, shape):
        raise ContextsegError(where, what, remedy)
    return content


def read_json_lines(
    path: str | Path, shape: Any = dict[str, Any], whole: bool = False
) -> list[Any]:
    """The lines of a log in JSON.

    Args:
        path: File to read, in UTF-8; it may be missing.
        shape: What each line holds.
        whole: Whether a last line that was cut off is an error too.

    Returns:
        The content of each line; a last line that was cut off while it was written is left out. []
        for no file.

    Raises:
        ContextsegError: Another line is not JSON, or holds something else.
    """
    if not Path(path).exists():
        return []
    refuse_no_file(path)
    with damage_named(path, MEND):
        lines = Path(path).read_bytes().decode("utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == len(lines) and not line.endswith("}") and not whole):
            continue
        rows.append(parsed_json(line, f"{path}, line {number}", shape, "take the line out"))
    return rows


def from_json(shape: type[T], content: Mapping[str, Any], **others: Any) -> T:
    """A dataclass of what `read_json` found to fit it.

    Args:
        shape: The dataclass.
        content: Values by name; names that it does not have, such as those of a later version, are
            left out.
        others: Values that take the place of those.

    Returns:
        An instance.

    Example:
        >>> from contextseg.data.augment import Augmentation
        >>> from_json(Augmentation, {"strength": 0.5, "of a later version": 1}).strength
        0.5
    """
    names = {field.name for field in fields(shape)}  # type: ignore[arg-type]
    return shape(**{k: v for k, v in {**content, **others}.items() if k in names})


def misfit(value: Any, shape: Any, name: str = "") -> str:
    """What does not fit a shape in JSON content; "" where all does.

    Args:
        value: The content.
        shape: A type hint of bool, int, float, str, None, Any, Literal, unions, lists, tuples,
            dicts, dataclasses and typed dicts. Lists stand for tuples, whole numbers for floats.
            An object may have more names than its dataclass.
        name: What the value is called.

    Returns:
        The name of the first value that does not fit, what it is, and what it should be.

    Example:
        >>> misfit({"steps": [1, "two"]}, dict[str, list[int]])
        "steps.1 is 'two', not a whole number"
        >>> misfit({"steps": [1, 2]}, dict[str, list[int]])
        ''
    """
    origin, parts = get_origin(shape), get_args(shape)
    if shape is Any:
        return ""
    if origin in (Union, types.UnionType):
        reasons = [misfit(value, part, name) for part in parts]
        several = [r for r, part in zip(reasons, parts) if part is not type(None)]
        return "" if "" in reasons else several[0]
    if origin is Literal:
        return "" if value in parts else _wrong(value, f"one of {', '.join(map(str, parts))}", name)
    if shape in _PLAIN:
        fits, words = _PLAIN[shape]
        return "" if fits(value) else _wrong(value, words, name)
    if is_dataclass(shape) or is_typeddict(shape):
        return _object_misfit(value, shape, name)
    kind = origin or shape
    if kind in (dict, Mapping):
        if not isinstance(value, dict):
            return _wrong(value, "an object {...}", name)
        each = parts[1] if len(parts) == 2 else Any
        return _first(misfit(v, each, _below(name, k)) for k, v in value.items())
    if kind in (list, tuple, Sequence, Collection):
        return _list_misfit(value, kind, parts, name)
    return ""


def _object_misfit(value: Any, shape: Any, name: str) -> str:
    if not isinstance(value, dict):
        return _wrong(value, "an object {...}", name)
    hints, required = _names_of(shape)
    if missing := [key for key in required if key not in value]:
        return f"{_below(name, missing[0])} is missing"
    return _first(
        misfit(value[k], hint, _below(name, k)) for k, hint in hints.items() if k in value
    )


@cache
def _names_of(shape: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The hints by name of a dataclass or typed dict, and the names that must be there."""
    hints = get_type_hints(shape)
    if is_typeddict(shape):
        return hints, tuple(sorted(shape.__required_keys__))
    required = [
        f.name for f in fields(shape) if f.default is MISSING and f.default_factory is MISSING
    ]
    return hints, tuple(required)


def _list_misfit(value: Any, kind: Any, parts: tuple[Any, ...], name: str) -> str:
    if not isinstance(value, list | tuple):
        return _wrong(value, "a list [...]", name)
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        if len(value) != len(parts):
            return _wrong(value, f"a list of {len(parts)}", name)
        each: Sequence[Any] = parts
    else:
        each = [parts[0] if parts else Any] * len(value)
    return _first(misfit(v, part, _below(name, i)) for i, (v, part) in enumerate(zip(value, each)))


def _first(reasons: Iterator[str]) -> str:
    return next(filter(None, reasons), "")


def _below(name: str, key: Any) -> str:
    key = f"{key}"[:60]
    return f"{name}.{key}" if name else key


def _wrong(value: Any, words: str, name: str) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or very deep
        text = f"a {type(value).__name__}"
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{name or 'it'} is {text}, not {words}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_whole, "a whole number"),
    float: (_is_number, "a number"),
    str: (lambda value: isinstance(value, str), "a text"),
    type(None): (lambda value: value is None, "null"),
    None: (lambda value: value is None, "null"),
}


# --- tensors --------------------------------------------------------------------------------------


def read_tensors(path: Any, remedy: str, device: Any = "cpu", name: str | Path = "") -> Any:
    """The content of a file that `torch.save` wrote; nothing is unpickled but tensors.

    Args:
        path: The file, or an open one.
        remedy: What to do about a damaged one.
        device: Where the tensors go.
        name: Name of the file for messages; "" for `path`.

    Returns:
        What was saved.

    Raises:
        ContextsegError: The file is missing, damaged, or holds objects that could run code.
    """
    import torch

    if isinstance(path, str | Path):
        refuse_no_file(path)
    with damage_named(name or path, remedy, "its weights cannot be read"):
        return torch.load(path, map_location=device, weights_only=True)
