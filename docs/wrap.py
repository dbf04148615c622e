"""Wrap the prose of Markdown at 100 columns.

    python docs/wrap.py docs/*.md

Paragraphs, list items and quotes are filled. Tables, code, headings, pictures and HTML stay, and no
inline code is broken.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

WIDTH = 100

KEPT = re.compile(r"\s*(?:\||#|<|!\[|\[[^\]]+\]:)|---|===")
"""Lines that are no prose."""

ITEM = re.compile(r"(\s*(?:[-*+]|\d+[.)])\s+)(.*)")
QUOTE = re.compile(r"(>\s?)(.*)")

MARKER = re.compile(r"(?:[-+*]|\d{1,2}[.)])$|[#>|]")
"""Words that would begin something else at the start of a line."""


def words(text: str) -> list[str]:
    """The words of a text; a word may hold inline code with spaces."""
    return re.findall(r"(?:`[^`]*`|[^\s`]|`)+", text)


def filled(text: str, first: str, rest: str) -> list[str]:
    """A text as lines of at most `WIDTH` columns where its words allow it.

    Args:
        text: The text, on one line.
        first: What the first line begins with.
        rest: What every other line begins with.

    Returns:
        The lines.
    """
    lines = []
    line = first
    for word in words(text):
        if line in (first, rest):
            line += word
        elif len(line) + 1 + len(word) <= WIDTH or MARKER.match(word):
            line += " " + word
        else:
            lines.append(line)
            line = rest + word
    return [*lines, line]


def wrapped(markdown: str) -> str:
    """Markdown with its prose at `WIDTH` columns."""
    out: list[str] = []
    paragraph: list[str] = []
    first = rest = ""

    def flush() -> None:
        if paragraph:
            out.extend(filled(" ".join(paragraph), first, rest))
            paragraph.clear()

    code = False
    for line in markdown.split("\n"):
        fence = re.match(r"\s*```", line)
        if fence or code or not line.strip() or KEPT.match(line):
            flush()
            out.append(line if code else line.rstrip())
            code = code != bool(fence)
            continue
        item = ITEM.match(line)
        quote = QUOTE.match(line)
        if item:
            flush()
            first = item[1]
            rest = " " * len(first)
            paragraph.append(item[2])
        elif quote:
            flush()
            first = rest = "> "
            paragraph.append(quote[2])
        elif paragraph:
            paragraph.append(line.strip())
        else:
            first = rest = " " * (len(line) - len(line.lstrip()))
            paragraph.append(line.strip())
        if line.endswith("  "):  # a line break
            flush()
            out[-1] += "  "
    flush()
    return "\n".join(out)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(wrapped(path.read_text(encoding="utf-8")), encoding="utf-8")
