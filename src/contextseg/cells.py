"""Cells of CSV tables: no formula on the way out, plain text on the way in.

A table that somebody opens in a spreadsheet program must not compute what a name of a case says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.errors import ContextsegError
from contextseg.inputs import MEND, damage_named, refuse_no_file

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def safe_cell(value: Any) -> Any:
    """A value as a cell of a CSV table that no spreadsheet program takes for a formula.

    Text that begins with =, +, - or @ and is no number gets an apostrophe before it, as spreadsheet
    programs mark text. `plain_cell` takes it away again.

    Args:
        value: A number or a text.

    Returns:
        The value, or the text with its apostrophe.

    Example:
        >>> safe_cell("=1+1"), safe_cell("-1.5"), safe_cell(-2)
        ("'=1+1", '-1.5', -2)
    """
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plain_cell(text: str) -> str:
    """The text of a cell that `safe_cell` wrote.

    Args:
        text: The cell.

    Returns:
        The text without the apostrophe that marks text.

    Example:
        >>> plain_cell(safe_cell("=1+1")), plain_cell(safe_cell("'=x")), plain_cell("'tis")
        ('=1+1', "'=x", "'tis")
    """
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def frame_text(table: pd.DataFrame) -> str:
    """A table as CSV without an index, its text by `safe_cell`.

    Args:
        table: The table.

    Returns:
        Its text, the lines ending in a line feed.
    """
    safe = table.copy(deep=False)
    for name in safe.columns:
        if safe[name].dtype.kind not in "iufb":
            safe[name] = safe[name].map(safe_cell)
    return str(safe.to_csv(index=False, lineterminator="\n"))


def read_table_file(
    path: str | Path, text: Sequence[str] = (), needed: Sequence[str] = (), remedy: str = MEND
) -> pd.DataFrame:
    """A CSV table whose columns are text or numbers.

    Args:
        path: File to read, in UTF-8.
        text: Columns of text; all others hold numbers, true and false, or words alone.
        needed: Columns that it must have.
        remedy: What to do about a table that cannot be used.

    Returns:
        The table; no rows where the file has only a header.

    Raises:
        ContextsegError: The file is missing or damaged, lacks a column, or a column mixes numbers
            and words.
    """
    import pandas as pd

    refuse_no_file(path)
    with damage_named(path, remedy, "not a table that can be read"):
        table = pd.read_csv(path, dtype=dict.fromkeys(text, str), encoding="utf-8", index_col=False)
    for name in table.columns:
        if table[name].dtype.kind == "O" or name in text:
            table[name] = table[name].map(lambda v: plain_cell(v) if isinstance(v, str) else v)
    if missing := [name for name in needed if name not in table.columns]:
        raise ContextsegError(path, f"it has no column {missing[0]}", remedy)
    return table


def refuse_words(
    table: pd.DataFrame, columns: Sequence[str], path: str | Path, remedy: str
) -> None:
    """Refuse a table in which a column of numbers holds a word.

    Args:
        table: The table, as `read_table_file` gives it.
        columns: Columns that hold numbers; those that it lacks do not count.
        path: Its file.
        remedy: What to do.

    Raises:
        ContextsegError: A value is no number; the message names its line.
    """
    import pandas as pd

    for name in columns:
        if name not in table.columns or table[name].dtype.kind in "iufb":
            continue
        numbers = pd.to_numeric(table[name], errors="coerce")
        words = numbers.isna() & table[name].notna()
        if words.any():
            place = int(words.to_numpy().argmax())
            value = str(table[name].iloc[place])[:40]
            what = f"line {place + 2}: {name} is {value!r}, not a number"
            raise ContextsegError(path, what, remedy)
        table[name] = numbers
