"""The parts of every page: the file itself, sections, sentences, tables, charts, folded facts."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from contextseg import __version__
from contextseg.reports.charts import Charts

# Nothing may be loaded from anywhere, whatever a case is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page_html(title: str, sections: Mapping[str, str]) -> str:
    """The whole file of a page.

    Args:
        title: Its title, plain text.
        sections: Heading -> HTML; a link to each stands at the top.

    Returns:
        The HTML file.
    """
    here = Path(__file__)
    ids = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{ids[name]}">{name}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{ids[name]}"><h2>{name}</h2>\n{text}\n</section>'
        for name, text in sections.items()
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{here.with_name("page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav></header>
{body}
<footer>Made by contextseg {__version__}. For research; not a medical device.</footer>
</main>
<script>
{here.with_name("page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def provenance_html(facts: Mapping[str, Any]) -> str:
    """Nested facts, folded up.

    Args:
        facts: Mappings, lists and values.

    Returns:
        HTML; a sentence where there are none.
    """
    if not facts:
        return sentence("No provenance was recorded.")
    return f"<details><summary>Versions, settings, data, machine</summary>{_tree(facts)}</details>"


def paragraphs(text: str) -> str:
    """Paragraphs of plain text.

    Args:
        text: The text; an empty line starts a new paragraph.

    Returns:
        HTML.
    """
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def sentence(text: str) -> str:
    """A sentence that explains what stands beside it.

    Args:
        text: Plain text.

    Returns:
        HTML.
    """
    return f'<p class="soft">{escape(text)}</p>'


def swatch(colour: Sequence[float] | None) -> str:
    """A small square in the colour of a class, before its name.

    Args:
        colour: Red, green and blue, from 0 to 1. None for a class without a colour.

    Returns:
        HTML; "" for None.

    Example:
        >>> swatch((1, 0.5, 0))
        '<i class="swatch" style="background:#ff8000"></i>'
        >>> swatch(None)
        ''
    """
    if colour is None:
        return ""
    digits = "".join(f"{round(255 * part):02x}" for part in colour)
    return f'<i class="swatch" style="background:#{digits}"></i>'


def row_name(name: str, ident: str = "", colour: Sequence[float] | None = None) -> str:
    """The first cell of a row.

    Args:
        name: Name of the row, plain text.
        ident: Id of what it links to; "" for no link.
        colour: Colour of the class that it names, as for `swatch`.

    Returns:
        HTML.
    """
    tag = "a" if ident else "span"
    link = f' href="#{ident}"' if ident else ""
    text = swatch(colour) + escape(name)
    return f'<th scope="row"><{tag} class="name"{link}>{text}</{tag}></th>'


def row_names(names: Sequence[str]) -> str:
    """The cells that name a row.

    Args:
        names: Their texts, at least one.

    Returns:
        HTML.
    """
    more = (f'<td class="text"><span class="name">{escape(name)}</span></td>' for name in names[1:])
    return row_name(names[0]) + "".join(more)


def table_html(texts: Sequence[str], values: Sequence[str], body: str, kind: str = "") -> str:
    """A table.

    Args:
        texts: Headings of the columns of texts, which come first.
        values: Headings of the columns of numbers.
        body: Its rows, HTML.
        kind: Further CSS classes of its box, with a leading space.

    Returns:
        HTML.
    """
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in texts)
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in values)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll{kind}">{table}</div>'


def charts_html(charts: Charts) -> str:
    """Charts beside each other, as many as fit.

    Args:
        charts: What each shows -> SVG.

    Returns:
        HTML; empty without charts.
    """
    figures = ""
    for title, image in charts.items():
        source = f"data:image/svg+xml;base64,{b64encode(image).decode()}"
        figures += f'<figure><img alt="{escape(title)}" src="{source}"></figure>'
    return f'<div class="charts">{figures}</div>' if figures else ""


def cards_html(cards: Sequence[tuple[str, str, str]]) -> str:
    """The main numbers at the top of a page.

    Args:
        cards: Title, number, and what stands below it; the first two are HTML, the last is text.

    Returns:
        HTML.
    """
    items = "".join(
        f"<div><dt>{title}</dt><dd>{value}</dd><dd>{escape(below)}</dd></div>"
        for title, value, below in cards
    )
    return f'<dl class="cards">{items}</dl>'


def _tree(value: Any) -> str:
    """Nested facts as nested lists; a long one is folded up."""
    if isinstance(value, Mapping):
        items = "".join(
            f"<dt>{escape(str(key))}</dt><dd>{_tree(inner)}</dd>" for key, inner in value.items()
        )
        html = f'<dl class="tree">{items}</dl>' if items else "none"
    elif isinstance(value, (list, tuple)):
        if any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
            html = "".join(f"<div>{_tree(inner)}</div>" for inner in value)
        else:
            html = escape(", ".join(map(str, value)) or "none")
    else:
        return escape(str(value))
    if len(value) <= 20:
        return html
    return f"<details><summary>{len(value)} entries</summary>{html}</details>"
