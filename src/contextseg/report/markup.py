"""What all pages are made of: the file itself, sections, sentences, tables' first cells, charts, folded facts."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from contextseg import __version__
from contextseg.report.charts import Charts

# Nothing may be loaded from anywhere, whatever a case is called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page_html(title: str, sections: Mapping[str, str]) -> str:
    """The whole file: heading -> HTML, with a link to each."""
    here = Path(__file__)
    ids = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{ids[name]}">{name}</a>' for name in sections)
    body = "\n".join(
        f'<section id="{ids[name]}"><h2>{name}</h2>\n{text}\n</section>' for name, text in sections.items()
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
    """Nested facts, folded up; a sentence where there are none."""
    if not facts:
        return sentence("No provenance was recorded.")
    return f"<details><summary>Versions, settings, data, machine</summary>{_tree(facts)}</details>"


def paragraphs(text: str) -> str:
    """Plain text, whose empty lines start new paragraphs."""
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def sentence(text: str) -> str:
    """Plain text, set as what explains the things beside it."""
    return f'<p class="soft">{escape(text)}</p>'


def row_name(name: str, ident: str = "") -> str:
    """The first cell of a row, with a link to `ident` where there is one."""
    tag, link = ("a", f' href="#{ident}"') if ident else ("span", "")
    return f'<th scope="row"><{tag} class="name"{link}>{escape(name)}</{tag}></th>'


def row_names(names: Sequence[str]) -> str:
    """The cells that name a row, at least one."""
    more = (f'<td class="text"><span class="name">{escape(name)}</span></td>' for name in names[1:])
    return row_name(names[0]) + "".join(more)


def table_html(texts: Sequence[str], values: Sequence[str], body: str, kind: str = "") -> str:
    """A table under headings of texts, then of numbers; `body` are its rows, `kind` further classes of its box."""
    head = "".join(f'<th scope="col" class="text">{escape(name)}</th>' for name in texts)
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in values)
    return f'<div class="scroll{kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def charts_html(charts: Charts) -> str:
    """Charts beside each other, as many as fit."""
    made = "".join(
        f'<figure><img alt="{escape(what)}" src="data:image/svg+xml;base64,{b64encode(image).decode()}"></figure>'
        for what, image in charts.items()
    )
    return f'<div class="charts">{made}</div>' if made else ""


def _tree(value: Any) -> str:
    """Nested facts as nested lists; a long one is folded up."""
    if isinstance(value, Mapping):
        items = "".join(f"<dt>{escape(str(key))}</dt><dd>{_tree(inner)}</dd>" for key, inner in value.items())
        made = f'<dl class="tree">{items}</dl>' if items else "none"
    elif isinstance(value, (list, tuple)):
        deep = any(isinstance(inner, (Mapping, list, tuple)) for inner in value)
        flat = escape(", ".join(map(str, value)) or "none")
        made = "".join(f"<div>{_tree(inner)}</div>" for inner in value) if deep else flat
    else:
        return escape(str(value))
    return f"<details><summary>{len(value)} entries</summary>{made}</details>" if len(value) > 20 else made
