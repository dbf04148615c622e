"""One HTML file that needs nothing else: opens offline, reads on a phone, sorts its table with a dozen lines of script.

"Structure": one class in one case, which is one row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from contextseg.disk import Problem, write_text
from contextseg.report import numbers
from contextseg.report.calibration import calibration_html
from contextseg.report.charts import spread_charts, training_charts
from contextseg.report.markup import charts_html, page_html, paragraphs, provenance_html, row_name, sentence
from contextseg.report.numbers import MEASURES, VOLUMES, VOXELS, Line, number, plural
from contextseg.report.pictures import KEY, READ, annotated, svg
from contextseg.report.planes import Regions, planes

COLUMNS = {**MEASURES, **VOLUMES, **VOXELS}
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
) -> None:
    """One self-contained HTML page about a run, written atomically; equal input gives equal bytes.

    table       one row for each case and class: case, class, status ("both", "missed", "spurious", "absent"), and any
                of dsc, nsd, tolerance_mm, hd95_mm, assd_mm, sen, prc, ref_ml, pred_ml. Missed and spurious structures
                count in every mean, correctly absent ones in none.
    cases       "case", "image" (a path, or one for each channel), "reference", "prediction": label maps, file values.
    logs        stage -> rows of its `log.jsonl`.      stages   name, seconds, peak_mb, perhaps peak_gpu_mb and note.
    provenance  nested; shown folded up.               regions  class -> its label values; "ignore": not an error there.
    calibration  a row for each case, choice of voxels and bin: case, voxels, and those of `metrics.reliability`.
    note        plain text; an empty line starts a new paragraph.

    What is missing (no references, no log, a file that cannot be read) is said in a sentence in its place. Raises
    `Problem` if the page cannot be written.
    """
    tidied = numbers.tidy(table)
    shown, pictures = _pictures(tidied, cases, regions)
    sections = {
        "Results": _results(tidied),
        "Cases": _cases(tidied, cases, shown),
        "Pictures": pictures,
        "Training": _training(logs),
        "Spread over cases": _spread(tidied),
        "Calibration": calibration_html(calibration),
        "Time and memory": _costs(stages),
        "Data and notes": paragraphs(note),
        "Provenance": provenance_html(provenance),
    }
    write_text(path, page_html(title, {name: body for name, body in sections.items() if body}))


# --- numbers ----------------------------------------------------------------------------------------------------------


def _results(tidied: pd.DataFrame) -> str:
    if tidied.empty:
        return sentence("No case could be scored: there is no prediction with a reference to compare it to.")
    lines, columns = numbers.lines(tidied), numbers.shown(tidied)
    if not columns:
        counted = f"{plural(tidied['case'].nunique(), 'case')}: no class is in any reference or prediction"
        return sentence(f"{counted}, so there is nothing to average; all are correctly absent.")
    return _cards(tidied, lines, columns) + _class_table(lines, columns)


def _cards(tidied: pd.DataFrame, lines: list[Line], columns: list[str]) -> str:
    order, every = numbers.ranked(tidied), lines[-1]
    below = {
        "dsc": f"cases from {number(order.iloc[0], 3)} to {number(order.iloc[-1], 3)}" if len(order) > 1 else "",
        "nsd": f"at {_tolerance(every.tolerances_mm)}" if every.tolerances_mm else "",
        "hd95_mm": f"median {number(every.spreads['hd95_mm'].median, 1)}",
    }
    cards = [
        (f"Mean {MEASURES[c][0]}", number(every.spreads[c].mean, MEASURES[c][1]), below[c])
        for c in below
        if c in columns
    ]
    structures = plural(int(tidied["dsc"].notna().sum()), "structure")
    what = f"{plural(len(lines) - 1, 'class', 'classes')}, {structures} scored"
    cards += [("Cases", str(tidied["case"].nunique()), what)]
    cards += [("Missed", str(every.missed), f"{every.spurious} spurious, {every.absent} correctly absent")]
    made = "".join(f"<div><dt>{a}</dt><dd>{b}</dd><dd>{escape(c)}</dd></div>" for a, b, c in cards)
    return f'<dl class="cards">{made}</dl>'


def _tolerance(tolerances: list[float]) -> str:
    low, high = (f"{mm:g}" for mm in (tolerances[0], tolerances[-1]))
    return f"{low} mm" if low == high else f"{low} to {high} mm, by class"


def _class_table(lines: list[Line], columns: list[str]) -> str:
    *classes, every = lines
    differ = len(every.tolerances_mm) > 1
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Class", "Scored", *(MEASURES[c][0] for c in columns)))
    body = "".join(_class_row(line, columns, differ) for line in classes)
    foot = f"<tfoot>{_class_row(every, columns, False)}</tfoot>" if len(classes) > 1 else ""
    explained = (
        "Mean ± standard deviation over the scored cases; below it the median, and n where fewer cases have a number. "
        "Missed (in the reference, not found) and spurious (found, not in the reference) count as Dice 0 and, by "
        "default, with the image’s diagonal as distance; correctly absent (in neither) counts in no mean."
    )
    explained += " All classes: over cases, of each case’s mean over its classes." if foot else ""
    explained += f" NSD at {_tolerance(every.tolerances_mm)}." if every.tolerances_mm else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"
    return f'<div class="scroll">{table}</div>{sentence(explained)}'


def _class_row(line: Line, columns: list[str], tolerances_differ: bool) -> str:
    scored = line.spreads["dsc"].n
    ended = {"missed": line.missed, "spurious": line.spurious, "absent": line.absent}
    ends = [f"{count} {end}" for end, count in ended.items() if count]
    cells = [row_name(line.name), f"<td>{scored}<small>{'<br>'.join(ends)}</small></td>"]
    for column in columns:
        spread, digits = line.spreads[column], MEASURES[column][1]
        below = [f"median {number(spread.median, digits)}"] if spread.n else []
        below += [f"n = {spread.n}"] if spread.n != scored else []
        below += [f"at {_tolerance(line.tolerances_mm)}"] if column == "nsd" and tolerances_differ else []
        cells.append(f"<td>{numbers.mean_sd(spread, digits)}<small>{'<br>'.join(below)}</small></td>")
    return f"<tr>{''.join(cells)}</tr>"


def _cases(tidied: pd.DataFrame, cases: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> str:
    """One row for each case and class, the worst cases first; `shown`: case -> the id of its picture."""
    known = set(tidied["case"])
    unscored = [str(case["case"]) for case in cases if str(case["case"]) not in known]
    after = sentence(f"Without a score: {', '.join(unscored)}.") if unscored else ""
    if tidied.empty:
        return after or sentence("There are no cases.")
    place = {name: i for i, name in enumerate(numbers.ranked(tidied).index)}
    rank = tidied["case"].map(lambda name: place.get(name, len(place)))
    ordered = tidied.assign(rank=rank).sort_values(["rank", "case", "dsc"], kind="stable")
    several = tidied["class"].nunique() > 1
    columns = ["dsc", *(c for c in COLUMNS if c != "dsc" and tidied[c].notna().any())]
    heads = [("Case", True), *([("Class", True)] if several else [])]
    heads += [(COLUMNS[c][0], False) for c in columns]
    heads.insert(len(heads) - len(columns) + 1, ("Status", True))  # beside Dice
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=text" * text}><button type="button">{name}</button></th>'
        for name, text in heads
    )
    body = "".join(_case_row(row, columns, several, shown) for row in ordered.to_dict("records"))
    intro = sentence("Worst cases first. A heading sorts; a case with a picture links to it.")
    made = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'{intro}<div class="scroll long">{made}</div>{after}'


def _case_row(row: Mapping[Any, Any], columns: list[str], several: bool, shown: Mapping[str, str]) -> str:
    cells = [row_name(row["case"], shown.get(row["case"], ""))]
    cells += [f'<td class="text">{escape(row["class"])}</td>'] if several else []
    kind, status = escape(row["status"]), escape(STATUS.get(row["status"], row["status"]))
    for column in columns:
        value, digits = float(row[column]), COLUMNS[column][1]
        bar = f' class="bar" style="--share:{value:.0%}"' if column == "dsc" and value == value else ""
        sort = "" if math.isfinite(value) else ' data-v=""' if math.isnan(value) else ' data-v="Infinity"'
        cells.append(f"<td{sort}{bar}>{number(value, digits)}</td>")
        cells += [f'<td class="text status">{status}</td>'] if column == "dsc" else []
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


# --- pictures and charts ----------------------------------------------------------------------------------------------


def _pictures(tidied: pd.DataFrame, cases: Sequence[Mapping[str, Any]], regions: Regions) -> tuple[dict[str, str], str]:
    """The cases that are shown, with the ids of their figures; and the section."""
    order = numbers.ranked(tidied)
    files = {str(case["case"]): case for case in cases}
    roles = {name: role for role, name in numbers.telling(order).items()}
    chosen = [name for name in map(str, order.index) if name in files]
    intro = ""
    if len(chosen) > ALL_PICTURES:
        intro = sentence(f"The worst, the median and the best of {len(chosen)} cases, by mean Dice.")
        chosen = [name for name in chosen if name in roles]
    elif not chosen:
        chosen = list(files)[:3]
    if not chosen:
        return {}, sentence("There are no images to show.")
    ids = {name: f"case-{i}" for i, name in enumerate(chosen, 1)}
    figures = [
        _picture(files[name], ids[name], roles.get(name, "") if len(order) > 1 else "", tidied, regions)
        for name in chosen
    ]
    return ids, intro + KEY + "\n".join(figures) + sentence(READ)


def _picture(case: Mapping[str, Any], ident: str, role: str, tidied: pd.DataFrame, regions: Regions) -> str:
    """One case in three planes, through the class with its lowest Dice. A class without a row was not annotated."""
    name = str(case["case"])
    rows = tidied[tidied["case"] == name]
    counted = rows.dropna(subset=["dsc"])
    focus = str(counted["class"].iloc[int(counted["dsc"].argmin())]) if len(counted) else None
    mean = f"{'mean ' * (len(counted) > 1)}Dice {number(float(counted['dsc'].mean()), 3)}"
    facts = [mean if len(counted) else "no score"]
    if len(counted) > 1:
        facts.append(f"through {focus}, its lowest: {number(float(counted['dsc'].min()), 3)}")
    near, far = (rows[column].sum(min_count=1) for column in VOXELS)
    facts += [f"false-positive voxels: {near:.0f} near, {far:.0f} far"] if near == near and far == far else []
    facts += ["no reference"] if not case.get("reference") else []
    try:
        drawn = planes(case, annotated(regions, rows), focus)
        body = "".join(svg(plane, f"{name}, {plane.name} plane, {', '.join(facts)}") for plane in drawn)
        body = f'<div class="planes">{body}</div>'
    except Problem as problem:
        body = sentence(f"No picture of this case. {problem}")
    heading = f"{escape(name)}{f' · {role}' if role else ''}"
    caption = f'<h3>{heading}</h3><span class="soft">{escape("; ".join(facts))}</span>'
    return f'<figure class="case" id="{ident}"><figcaption>{caption}</figcaption>{body}</figure>'


def _spread(tidied: pd.DataFrame) -> str:
    drawn = charts_html(spread_charts(tidied))
    explained = (
        "Points: cases (a cross: missed or spurious). Thick line: their median. Box, from five cases on: the "
        "quartiles; its whiskers reach the last case within one and a half box lengths."
    )
    return drawn + sentence(explained) if drawn else sentence("There are no scores to draw.")


def _training(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    parts = []
    for stage, rows in logs.items():
        drawn = charts_html(training_charts(rows))
        if drawn:
            steps, seconds = (max(numbers.finite(row.get(key, 0)) for row in rows) for key in ("step", "seconds"))
            took = sentence(f"{number(steps, 0)} steps in {numbers.duration(seconds)}.")
            parts.append(f"<h3>{escape(stage)}</h3>{took}{drawn}")
    return "\n".join(parts) or sentence("No training was logged.")


def _costs(stages: Sequence[Mapping[str, Any]]) -> str:
    """A bar and a number for the time and the peak memory of each stage."""
    if not stages:
        return sentence("No stage was timed.")
    kinds = {"seconds": ("Time", numbers.duration), "peak_mb": ("Peak memory", numbers.memory)}
    kinds |= {"peak_gpu_mb": ("Peak GPU memory", numbers.memory)} if any("peak_gpu_mb" in s for s in stages) else {}
    notes = any(stage.get("note") for stage in stages)
    values = {key: [numbers.finite(stage.get(key)) for stage in stages] for key in kinds}
    most = {key: max((v for v in those if v > 0), default=1.0) for key, those in values.items()}
    heads = ["Stage", *(kinds[key][0] for key in kinds), *(["Note"] if notes else [])]
    head = "".join(f'<th scope="col"{" class=text" * (name == "Note")}>{name}</th>' for name in heads)
    body = ""
    for i, stage in enumerate(stages):
        cells = "".join(
            f'<td class="bar" style="--share:{max(those[i], 0) / most[key] if those[i] == those[i] else 0:.0%}">'
            f"{kinds[key][1](those[i])}</td>"
            for key, those in values.items()
        )
        cells += f'<td class="text note">{escape(str(stage.get("note") or ""))}</td>' if notes else ""
        body += f"<tr>{row_name(str(stage.get('name', '')))}{cells}</tr>"
    total = numbers.duration(sum(v for v in values["seconds"] if v == v))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return sentence(f"{total} in all.") + f'<div class="scroll">{table}</div>'
