"""The page of a run: one HTML file that opens offline, reads on a phone, and sorts its table.

"Structure": one class in one case, which is one row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from contextseg.disk import write_text
from contextseg.errors import ContextsegError, plural
from contextseg.metrics import DEFAULT_METRICS, DSC, HD95, METRICS, NSD, Column
from contextseg.reports import numbers
from contextseg.reports.calibration import calibration_html
from contextseg.reports.charts import spread_charts, training_charts
from contextseg.reports.markup import (
    cards_html,
    charts_html,
    page_html,
    paragraphs,
    provenance_html,
    row_name,
    sentence,
    swatch,
)
from contextseg.reports.numbers import Line, number
from contextseg.reports.pictures import KEY, VIEW, annotated, svg
from contextseg.reports.planes import Regions, planes

ALL_PICTURES = 8  # with more cases than this, only the worst, the median and the best are shown
STATUS = {"both": "found", "absent": "correctly absent"}  # the rest are called what they are


def write_report(
    path: str | Path,
    *,
    title: str,
    table: pd.DataFrame,
    cases: Sequence[Mapping[str, Any]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    stages: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
    regions: Regions,
    calibration: pd.DataFrame | None = None,
    note: str = "",
    colours: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> None:
    """Write the page of a run: one self-contained HTML file.

    It is written atomically, and equal input gives equal bytes. What is missing (no references, no
    log, a file that cannot be read) is said in a sentence in its place.

    Args:
        path: The file.
        title: Title of the page.
        table: One row for each case and class: case, class, status ("both", "missed", "spurious",
            "absent"), and any of the metrics, tolerance_mm, ref_ml, pred_ml, fp_near and fp_far.
            Missed and spurious structures count in every mean, absent ones in none.
        cases: Files of each case: "case", "image" (a path, or one for each channel), "reference"
            and "prediction" (label maps).
        logs: Stage -> rows of its `log.jsonl`.
        stages: Name, seconds and peak_mb of each stage, perhaps peak_gpu_mb and note.
        provenance: Nested facts, shown folded up.
        regions: Class -> its label values; those of "ignore" are no errors in the pictures.
        calibration: The table of `evaluation.calibration`. None: there is none.
        note: Plain text; an empty line starts a new paragraph.
        colours: Colour of a class by name, red, green and blue from 0 to 1: a square before its
            name in the tables. In the pictures colours tell reference and prediction apart.

    Raises:
        ContextsegError: The page cannot be written.
    """
    tidied = numbers.tidy(table)
    shown, pictures = _pictures(tidied, cases, regions)
    sections = {
        "Results": _results(tidied, colours),
        "Cases": _cases(tidied, cases, shown, colours),
        "Pictures": pictures,
        "Training": _training(logs),
        "Spread over cases": _spread(tidied),
        "Calibration": calibration_html(calibration),
        "Time and memory": _costs(stages),
        "Data and notes": paragraphs(note),
        "Provenance": provenance_html(provenance),
    }
    write_text(path, page_html(title, {name: body for name, body in sections.items() if body}))


# --- numbers --------------------------------------------------------------------------------------


def _results(tidied: pd.DataFrame, colours: Mapping[str, Sequence[float]]) -> str:
    if tidied.empty:
        return sentence(
            "No case could be scored: there is no prediction with a reference to compare it to."
        )
    lines = numbers.lines(tidied)
    metrics = numbers.page_metrics(tidied)
    if not metrics:
        cases = plural(tidied["case"].nunique(), "case")
        return sentence(
            f"{cases}: no class is in any reference or prediction, so there is nothing to average; "
            "all are correctly absent."
        )
    return _cards(tidied, lines, metrics) + _class_table(lines, metrics, colours)


def _cards(tidied: pd.DataFrame, lines: list[Line], metrics: list[str]) -> str:
    order = numbers.ranked(tidied)
    every = lines[-1]
    below = {HD95: f"median {number(every.spreads[HD95].median, METRICS[HD95].digits)}"}
    if len(order) > 1:
        below[DSC] = f"cases from {number(order.iloc[0], 3)} to {number(order.iloc[-1], 3)}"
    if every.tolerances_mm:
        below[NSD] = f"at {_tolerance(every.tolerances_mm)}"

    cards = []
    for name in (name for name in DEFAULT_METRICS if name in metrics):
        mean = number(every.spreads[name].mean, METRICS[name].digits)
        cards.append((f"Mean {METRICS[name].title}", mean, below.get(name, "")))
    structures = plural(int(tidied[DSC].notna().sum()), "structure")
    classes = plural(len(lines) - 1, "class", "classes")
    cards.append(("Cases", str(tidied["case"].nunique()), f"{classes}, {structures} scored"))
    others = f"{every.spurious} spurious, {every.absent} correctly absent"
    cards.append(("Missed", str(every.missed), others))
    return cards_html(cards)


def _tolerance(tolerances: list[float]) -> str:
    low, high = (f"{mm:g}" for mm in (tolerances[0], tolerances[-1]))
    return f"{low} mm" if low == high else f"{low} to {high} mm, by class"


def _class_table(
    lines: list[Line], metrics: list[str], colours: Mapping[str, Sequence[float]]
) -> str:
    *classes, every = lines
    differ = len(every.tolerances_mm) > 1
    heads = ("Class", "Scored", *(METRICS[name].title for name in metrics))
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(_class_row(line, metrics, differ, colours.get(line.name)) for line in classes)
    foot = f"<tfoot>{_class_row(every, metrics, False)}</tfoot>" if len(classes) > 1 else ""

    explanation = (
        "Mean ± standard deviation over the scored cases; below it the median, and n where fewer "
        "cases have a number. Missed (in the reference, not found) and spurious (found, not in the "
        "reference) count as Dice 0 and, by default, with the image’s diagonal as distance; "
        "correctly absent (in neither) counts in no mean."
    )
    if foot:
        explanation += " All classes: over cases, of each case’s mean over its classes."
    if every.tolerances_mm:
        explanation += f" NSD at {_tolerance(every.tolerances_mm)}."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"
    return f'<div class="scroll">{table}</div>{sentence(explanation)}'


def _class_row(
    line: Line,
    metrics: list[str],
    tolerances_differ: bool,
    colour: Sequence[float] | None = None,
) -> str:
    scored = line.spreads[DSC].n
    counts = {"missed": line.missed, "spurious": line.spurious, "absent": line.absent}
    ends = [f"{count} {end}" for end, count in counts.items() if count]
    name_cell = row_name(line.name, colour=colour)
    cells = [name_cell, f"<td>{scored}<small>{'<br>'.join(ends)}</small></td>"]
    for name in metrics:
        spread = line.spreads[name]
        digits = METRICS[name].digits
        below = [f"median {number(spread.median, digits)}"] if spread.n else []
        if spread.n != scored:
            below.append(f"n = {spread.n}")
        if name == NSD and tolerances_differ:
            below.append(f"at {_tolerance(line.tolerances_mm)}")
        small = f"<small>{'<br>'.join(below)}</small>"
        cells.append(f"<td>{numbers.mean_sd(spread, digits)}{small}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _cases(
    tidied: pd.DataFrame,
    cases: Sequence[Mapping[str, Any]],
    shown: Mapping[str, str],
    colours: Mapping[str, Sequence[float]],
) -> str:
    """One row for each case and class, the worst cases first.

    `shown` is case -> the id of its picture.
    """
    known = set(tidied["case"])
    unscored = [str(case["case"]) for case in cases if str(case["case"]) not in known]
    after = sentence(f"Without a score: {', '.join(unscored)}.") if unscored else ""
    if tidied.empty:
        return after or sentence("There are no cases.")

    place = {name: i for i, name in enumerate(numbers.ranked(tidied).index)}
    rank = tidied["case"].map(lambda name: place.get(name, len(place)))
    ordered = tidied.assign(rank=rank).sort_values(["rank", "case", DSC], kind="stable")
    several = tidied["class"].nunique() > 1

    dice, *columns = numbers.case_columns(tidied)
    heads = [("Case", True), *([("Class", True)] if several else [])]
    heads += [(dice.title, False), ("Status", True)]
    heads += [(column.title, False) for column in columns]
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=text" * is_text}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, is_text in heads
    )
    body = "".join(
        _case_row(row, dice, columns, several, shown, colours) for row in ordered.to_dict("records")
    )
    intro = sentence("Worst cases first. A heading sorts; a case with a picture links to it.")
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'{intro}<div class="scroll long">{table}</div>{after}'


def _case_row(
    row: Mapping[Any, Any],
    dice: Column,
    columns: Sequence[Column],
    several: bool,
    shown: Mapping[str, str],
    colours: Mapping[str, Sequence[float]],
) -> str:
    kind = escape(row["status"])
    status = escape(STATUS.get(row["status"], row["status"]))
    cells = [row_name(row["case"], shown.get(row["case"], ""))]
    if several:
        text = swatch(colours.get(row["class"])) + escape(row["class"])
        cells.append(f'<td class="text">{text}</td>')
    score = float(row[dice.name])
    bar = "" if math.isnan(score) else f' class="bar" style="--share:{score:.0%}"'
    cells.append(_number_cell(score, dice.digits, bar))
    cells.append(f'<td class="text status">{status}</td>')
    cells += [_number_cell(float(row[column.name]), column.digits) for column in columns]
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _number_cell(value: float, digits: int, bar: str = "") -> str:
    """A cell that sorts as its number."""
    sort = ""
    if math.isnan(value):
        sort = ' data-v=""'
    elif math.isinf(value):
        sort = ' data-v="Infinity"'
    return f"<td{sort}{bar}>{number(value, digits)}</td>"


# --- pictures and charts --------------------------------------------------------------------------


def _pictures(
    tidied: pd.DataFrame, cases: Sequence[Mapping[str, Any]], regions: Regions
) -> tuple[dict[str, str], str]:
    """The cases that are shown, with the ids of their figures; and the section."""
    order = numbers.ranked(tidied)
    files = {str(case["case"]): case for case in cases}
    roles = {name: role for role, name in numbers.extremes(order).items()}
    chosen = [name for name in map(str, order.index) if name in files]
    intro = ""
    if len(chosen) > ALL_PICTURES:
        intro = sentence(
            f"The worst, the median and the best of {len(chosen)} cases, by mean Dice."
        )
        chosen = [name for name in chosen if name in roles]
    elif not chosen:
        chosen = list(files)[:3]
    if not chosen:
        return {}, sentence("There are no images to show.")
    ids = {name: f"case-{i}" for i, name in enumerate(chosen, 1)}
    figures = [
        _picture(
            files[name], ids[name], roles.get(name, "") if len(order) > 1 else "", tidied, regions
        )
        for name in chosen
    ]
    return ids, intro + KEY + "\n".join(figures) + sentence(VIEW)


def _picture(
    case: Mapping[str, Any], ident: str, role: str, tidied: pd.DataFrame, regions: Regions
) -> str:
    """One case in three planes, through the class with its lowest Dice.

    A class without a row is not annotated in the case.
    """
    name = str(case["case"])
    rows = tidied[tidied["case"] == name]
    counted = rows.dropna(subset=["dsc"])
    focus = str(counted["class"].iloc[int(counted["dsc"].argmin())]) if len(counted) else None
    mean = f"{'mean ' * (len(counted) > 1)}Dice {number(float(counted['dsc'].mean()), 3)}"
    facts = [mean if len(counted) else "no score"]
    if len(counted) > 1:
        facts.append(f"through {focus}, its lowest: {number(float(counted['dsc'].min()), 3)}")
    near, far = (rows[column].sum(min_count=1) for column in ("fp_near", "fp_far"))
    if not math.isnan(near) and not math.isnan(far):
        facts.append(f"false-positive voxels: {near:.0f} near, {far:.0f} far")
    if not case.get("reference"):
        facts.append("no reference")
    try:
        drawn = planes(case, annotated(regions, rows), focus)
        body = "".join(
            svg(plane, f"{name}, {plane.name} plane, {', '.join(facts)}") for plane in drawn
        )
        body = f'<div class="planes">{body}</div>'
    except ContextsegError as problem:
        body = sentence(f"No picture of this case. {problem}")
    heading = f"{escape(name)}{f' · {role}' if role else ''}"
    caption = f'<h3>{heading}</h3><span class="soft">{escape("; ".join(facts))}</span>'
    return f'<figure class="case" id="{ident}"><figcaption>{caption}</figcaption>{body}</figure>'


def _spread(tidied: pd.DataFrame) -> str:
    charts = charts_html(spread_charts(tidied))
    explanation = (
        "Points: cases (a cross: missed or spurious). Thick line: their median. Box, from five "
        "cases on: the quartiles; its whiskers reach the last case within one and a half box "
        "lengths."
    )
    return charts + sentence(explanation) if charts else sentence("There are no scores to draw.")


def _training(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    parts = []
    for stage, rows in logs.items():
        charts = charts_html(training_charts(rows))
        if charts:
            steps, seconds = (
                max(numbers.finite(row.get(key, 0)) for row in rows) for key in ("step", "seconds")
            )
            took = sentence(f"{number(steps, 0)} steps in {numbers.duration(seconds)}.")
            parts.append(f"<h3>{escape(stage)}</h3>{took}{charts}")
    return "\n".join(parts) or sentence("No training was logged.")


def _costs(stages: Sequence[Mapping[str, Any]]) -> str:
    """A bar and a number for the time and the peak memory of each stage."""
    if not stages:
        return sentence("No stage was timed.")
    kinds = {"seconds": ("Time", numbers.duration), "peak_mb": ("Peak memory", numbers.memory)}
    if any("peak_gpu_mb" in stage for stage in stages):
        kinds["peak_gpu_mb"] = ("Peak GPU memory", numbers.memory)
    has_notes = any(stage.get("note") for stage in stages)
    heads = ["Stage", *(title for title, _ in kinds.values()), *(["Note"] if has_notes else [])]
    head = "".join(
        f'<th scope="col"{" class=text" * (name == "Note")}>{name}</th>' for name in heads
    )

    values = {key: [numbers.finite(stage.get(key)) for stage in stages] for key in kinds}
    most = {key: max((v for v in column if v > 0), default=1.0) for key, column in values.items()}
    body = ""
    for i, stage in enumerate(stages):
        cells = ""
        for key, (_, written) in kinds.items():
            value = values[key][i]
            share = 0.0 if math.isnan(value) else max(value, 0) / most[key]
            cells += f'<td class="bar" style="--share:{share:.0%}">{written(value)}</td>'
        if has_notes:
            cells += f'<td class="text note">{escape(str(stage.get("note") or ""))}</td>'
        body += f"<tr>{row_name(str(stage.get('name', '')))}{cells}</tr>"
    total = numbers.duration(sum(v for v in values["seconds"] if not math.isnan(v)))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return sentence(f"{total} in all.") + f'<div class="scroll">{table}</div>'
