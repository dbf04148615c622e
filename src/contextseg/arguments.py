"""How the functions of the Python face read their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contextseg.console import ProgressBar, no_progress_bar, progress_bar

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
