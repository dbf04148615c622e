"""Values of DICOM tags, with the file and the tag named where one cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from contextseg.errors import ContextsegError

P = ParamSpec("P")
R = TypeVar("R")


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """Keep pydicom's warnings back, about values that break the standard and can be read.

    They name no file, and what cannot be read is raised.

    Args:
        function: What reads DICOM.

    Returns:
        The same function, without warnings.
    """

    @wraps(function)
    def without_warnings(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args, **kwargs)

    return without_warnings


def tag_name(keyword: str) -> str:
    """A tag as DICOM's readers know it.

    Args:
        keyword: Its keyword.

    Returns:
        The keyword and the number of the tag.

    Example:
        >>> tag_name("PixelSpacing")
        'PixelSpacing (0028,0030)'
    """
    from pydicom.datadict import tag_for_keyword

    tag_number = tag_for_keyword(keyword) or 0
    return f"{keyword} ({tag_number >> 16:04X},{tag_number & 0xFFFF:04X})"


def text(dataset: Any, keyword: str) -> str:
    """The value of a tag as text.

    Args:
        dataset: A pydicom dataset.
        keyword: The tag.

    Returns:
        The text without blanks around it; "" where the tag is missing, empty or unreadable.
    """
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises many classes for values that break the standard
        return ""
    if value is None:
        return ""
    several = not isinstance(value, str) and hasattr(value, "__iter__")
    return "\\".join(map(str, value)) if several else str(value).strip()


def numbers(
    datasets: Sequence[Any], keyword: str, count: int, where: str | Path
) -> np.ndarray | None:
    """The numbers of a tag, from the first dataset that has it.

    Args:
        datasets: pydicom datasets to look in, the most specific first.
        keyword: The tag.
        count: How many numbers it must have.
        where: File and frame, for the message.

    Returns:
        `count` float64; None where no dataset has a value.

    Raises:
        ContextsegError: The value is not `count` finite numbers.
    """
    for dataset in datasets:
        if keyword not in dataset:
            continue
        try:
            value = dataset.get(keyword)
        except Exception as error:  # as in `text`
            raise _not_numbers(where, keyword, count, str(error)) from error
        if value is None or str(value).strip() == "":
            continue
        try:
            array = np.atleast_1d(np.asarray(value, dtype=object)).astype(float)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (count,) or not np.isfinite(array).all():
            raise _not_numbers(where, keyword, count, str(value))
        return array
    return None


def tag_number(datasets: Sequence[Any], keyword: str, default: float, where: str | Path) -> float:
    """One number of a tag, as `numbers` finds it.

    Args:
        datasets: pydicom datasets to look in, the most specific first.
        keyword: The tag.
        default: The number where no dataset has a value.
        where: File and frame, for the message.

    Returns:
        The number.

    Raises:
        ContextsegError: The value is not one finite number.
    """
    found = numbers(datasets, keyword, 1, where)
    return default if found is None else float(found[0])


def _not_numbers(where: str | Path, keyword: str, count: int, value: str) -> ContextsegError:
    what = f"{tag_name(keyword)} is {value[:80]!r}, not {count} number{'' if count == 1 else 's'}"
    return ContextsegError(where, what, "correct the tag, or export the series again")
