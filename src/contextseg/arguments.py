"""How the functions of the Python face read their arguments."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contextseg.console import ProgressBar, no_progress_bar, progress_bar
from contextseg.errors import ContextsegError

StrPath = str | Path
Methods = Sequence[str] | Mapping[str, str | Mapping[str, Any]]
"""Methods of a comparison: words such as "wide=supervised:base_width=64", or by name."""


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """Settings by name as the `name=value` words of `--set`.

    Args:
        settings: Values by name; a name may be "part.name" where two parts share one.

    Returns:
        A word for each.

    Example:
        >>> assignments({"steps": 100, "mirror": False, "spacing_mm": (2, 1, 1), "labelled": None})
        ['steps=100', 'mirror=false', 'spacing_mm=2,1,1', 'labelled=none']
    """
    return [f"{name}={setting_text(value)}" for name, value in settings.items()]


def setting_text(value: Any) -> str:
    """A value as `--set` reads it.

    Example:
        >>> setting_text((2, 1.5)), setting_text(False), setting_text(None)
        ('2,1.5', 'false', 'none')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(setting_text(part) for part in value)
    return str(value)


def words(values: Sequence[Any] | str) -> tuple[str, ...]:
    """Values as words; a text is split at its commas.

    Example:
        >>> words("0, 1"), words((5, "all"))
        (('0', '1'), ('5', 'all'))
    """
    parts = values.split(",") if isinstance(values, str) else values
    return tuple(word for part in parts if (word := str(part).strip()))


def progress_of(verbose: bool) -> ProgressBar:
    """What shows the progress: bars on stderr, or nothing."""
    return progress_bar if verbose else no_progress_bar


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))


def seconds_of(time: str | float) -> float:
    """The seconds that somebody means by a time.

    Args:
        time: "90s", "45m", "2h", "1h30m", "1d" and the like, largest unit first; or seconds.

    Returns:
        Seconds; 0 for "" and 0, which are no time at all.

    Raises:
        ContextsegError: It is no time, or not above 0.

    Example:
        >>> seconds_of("1h30m"), seconds_of("45 m"), seconds_of(90), seconds_of("")
        (5400.0, 2700.0, 90.0, 0.0)
    """
    if isinstance(time, str):
        text = "".join(time.lower().split())
        parts = _TIME.fullmatch(text)
        seconds = math.nan
        if parts:
            seconds = sum(float(n or 0) * size for n, size in zip(parts.groups(), _UNITS.values()))
        if not text:
            return 0.0
        if seconds == 0:
            seconds = math.nan
    else:
        seconds = float(time)
    if not 0 <= seconds < math.inf:
        remedy = "write it as 90s, 45m, 2h, 1h30m or 1d"
        raise ContextsegError(f"--time {time}", "this is no time to train for", remedy)
    return seconds
