"""The page of a comparison: the statistics of each split, with charts, and the worst cases.

The statistics are those of `evaluation.tables.Results`; nothing is computed here. "Row": a method,
or a method with a label budget, which is one line of the tables and of the charts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from contextseg.disk import write_text
from contextseg.evaluation.tables import (
    Results,
    budget_order,
    class_title,
    metric_heading,
    p_text,
)
from contextseg.metrics import METRICS
from contextseg.reports import numbers
from contextseg.reports.charts import MINUS, Charts, box_chart, paired_chart
from contextseg.reports.curve import curve_chart
from contextseg.reports.markup import (
    charts_html,
    page_html,
    paragraphs,
    provenance_html,
    row_names,
    sentence,
    table_html,
)
from contextseg.reports.numbers import number
from contextseg.reports.planes import Regions
from contextseg.reports.worst import worst_html

OPEN_CHARTS = 12  # the charts of further classes are folded up
SPLITS = {"test": "Test split", "validation": "Validation cases"}
TESTED = (
    "Difference: mean over patients of the first minus the second, with its bootstrap interval. "
    "Effect: matched-pairs rank-biserial correlation, from −1 to 1, positive where the first is "
    "better. p: Wilcoxon’s signed-rank test, two-sided, and after Holm’s correction for all tests "
    "of the class; bold: below {alpha:g}."
)
SPREAD = (
    "Points: cases, the mean over a row’s runs (a cross: missed or spurious in at least one of "
    "them). Thick line: their median. Box, from five cases on: the quartiles; its whiskers reach "
    "the last case within one and a half box lengths."
)
DIFFERENCES = (
    "Points: patients, the first minus the second. Thick line: their mean; bar: its interval."
)


def write_comparison(
    path: str | Path,
    *,
    title: str,
    table: pd.DataFrame,
    compared: Mapping[str, Results],
    provenance: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]] = (),
    regions: Regions | None = None,
    note: str = "",
) -> None:
    """Write the page of a comparison: one self-contained HTML file.

    It is written atomically, and equal input gives equal bytes. The page says in a sentence what is
    missing.

    Args:
        path: The file.
        title: Title of the page.
        table: One row for each run, case and class: method, split, case, class, status, and any of
            run, patient, budget, the metrics, fp_near, fp_far, prediction_file. The worst cases are
            chosen from it.
        compared: Split ("test", "validation") -> its statistics. The test split is shown first.
        provenance: Nested facts, shown folded up.
        cases: Files for pictures of the worst cases of the split that is shown first: "case",
            "image" (a path, or one for each channel) and "reference".
        regions: Class -> its label values; those of "ignore" are no errors in the pictures.
        note: Plain text; an empty line starts a new paragraph.

    Raises:
        ContextsegError: The page cannot be written.
    """
    tidied = numbers.tidy(table)
    order = [
        *(name for name in SPLITS if name in compared),
        *(name for name in compared if name not in SPLITS),
    ]
    sections: dict[str, str] = {}
    worst = ""
    for split in order:
        heading = SPLITS.get(split, split)
        sections[heading] = _split_html(compared[split])
        rows = named_rows(tidied[tidied["split"] == split], compared[split].by)
        worst = worst or worst_html(rows, heading, cases, regions or {})
    if not sections:
        sections["Results"] = sentence("Nothing was compared.")
    sections |= {
        "Worst cases": worst,
        "Notes": paragraphs(note),
        "Provenance": provenance_html(provenance),
    }
    write_text(path, page_html(title, {name: body for name, body in sections.items() if body}))


def named_rows(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows of a table with `row`, the name of what they belong to, few labels first.

    Args:
        table: One row for each run, case and class of one split.
        by: The columns that name what is compared.

    Returns:
        The rows, sorted by label budget.
    """
    keys = table.reindex(columns=list(by)).astype(str).to_numpy().tolist()
    named = table.assign(row=[row_title(key) for key in keys])
    return named.iloc[np.argsort([budget_order(key[1:]) for key in keys], kind="stable")]


def row_title(key: Sequence[Any]) -> str:
    """The name of a row in charts: its method, and its label budget if there are several.

    Args:
        key: The values of the columns that name the row.

    Returns:
        "plain", or "plain · 20".
    """
    return " · ".join(map(str, key))


def _split_html(results: Results) -> str:
    parts = [_means_table(results), sentence(results.caption), _pairs_table(results)]
    curves = {
        f"{METRICS[name].title} by labelled patients": curve_chart(curve, METRICS[name].title)
        for name, curve in results.curves.items()
    }
    if curves:
        bands = sentence("Bands: the intervals of the table.")
        parts += ["<h3>Label efficiency</h3>", charts_html(curves), bands]
    if spread := _spread_charts(results):
        parts += ["<h3>Spread over cases</h3>", _folded(spread), sentence(SPREAD)]
    if differences := _paired_charts(results):
        parts += ["<h3>Paired differences</h3>", _folded(differences), sentence(DIFFERENCES)]
    return "\n".join(parts)


# --- tables ---------------------------------------------------------------------------------------


def _means_table(results: Results) -> str:
    """A line for each class and row: means, intervals, and how often a class was missed."""
    columns = [metric_heading(name) for name in results.metrics]
    body = ""
    for class_name in results.classes:
        for row in results.rows(class_name):
            names = [*_class_cell(results, class_name), *results.title(row)]
            cells = [_mean_cell(row["metrics"].get(name), name) for name in results.metrics]
            cells.append(f"<td>{row['n_missed']}/{row['n_rows']}</td>")
            cells += [f"<td>{row[name]}</td>" for name in ("n_spurious", "n_absent")]
            body += f"<tr>{row_names(names)}{''.join(cells)}</tr>"
    heads = [*_class_cell(results, "Class"), *results.headings()]
    kind = " long" if len(results.classes) > 1 else ""
    return table_html(heads, [*columns, "Missed", "Spurious", "Absent"], body, kind)


def _mean_cell(line: Mapping[str, Any] | None, metric: str) -> str:
    if line is None or np.isnan(line["mean"]):
        return "<td>–</td>"
    digits = METRICS[metric].digits
    spread = numbers.Spread(line["mean"], line["sd"], np.nan, line["n"])
    below = f"{_interval(line, digits)}<br>n = {line['n']}"
    return f"<td>{numbers.mean_sd(spread, digits)}<small>{below}</small></td>"


def _pairs_table(results: Results) -> str:
    """A line for each class, pair and metric."""
    if results.pairs.empty:
        return sentence("One row alone: there is nothing to test.")
    place = {name: i for i, name in enumerate(results.classes)}
    tests = results.pairs.sort_values("class", key=lambda c: c.map(place), kind="stable")
    body = "".join(_pair_row(results, line) for line in tests.to_dict("records"))
    heads = [*_class_cell(results, "Class"), "Pair", *results.headings()[1:], "Metric"]
    table = table_html(heads, ["n", "Difference", "Effect", "p", "p, Holm"], body, " long")
    return f"<h3>Paired tests</h3>{table}{sentence(TESTED.format(alpha=results.alpha))}"


def _pair_row(results: Results, line: Mapping[Any, Any]) -> str:
    metric = METRICS[line["metric"]]
    names = [*_class_cell(results, str(line["class"])), f"{line['a']}{MINUS}{line['b']}"]
    names += [str(line[name]) for name in results.by[1:]] + [metric.title]

    difference = number(line["difference"], metric.digits)
    corrected = escape(p_text(line["p_holm"]))
    cells = [
        str(line["n"]),
        f"{difference}<small>{_interval(line, metric.digits)}</small>",
        number(line["effect"], 2),
        escape(p_text(line["p"])),
        f"<b>{corrected}</b>" if line["p_holm"] < results.alpha else corrected,
    ]
    return f"<tr>{row_names(names)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _class_cell(results: Results, name: str) -> list[str]:
    """The cell that names the class; none where there is one class alone."""
    return [class_title(name)] if len(results.classes) > 1 else []


def _interval(line: Mapping[Any, Any], digits: int) -> str:
    if np.isnan(line["low"]):
        return ""
    return f"[{number(line['low'], digits)}, {number(line['high'], digits)}]"


# --- charts ---------------------------------------------------------------------------------------


def _spread_charts(results: Results) -> Charts:
    """A chart for each class and metric, with a box for each row."""
    charts = {}
    for class_name in results.classes:
        for metric in results.metrics:
            cases = results.cases
            cases = cases[(cases["class"] == class_name) & (cases["metric"] == metric)]
            if cases.empty:
                continue
            keys = cases[list(results.by)].astype(str).to_numpy().tolist()
            order = sorted(dict.fromkeys(map(tuple, keys)), key=lambda key: budget_order(key[1:]))
            titles = np.array([row_title(key) for key in keys])
            parts = {row_title(key): cases[titles == row_title(key)] for key in order}
            values = {name: part["value"].to_numpy() for name, part in parts.items()}
            failed = {name: part["failed"].to_numpy(bool) for name, part in parts.items()}
            heading = f"{class_title(class_name)}: {METRICS[metric].title}"
            chart = box_chart(values, failed, heading, METRICS[metric])
            charts[f"{heading} of each case, by method"] = chart
    return charts


def _paired_charts(results: Results) -> Charts:
    """A chart for each class and metric, with a line of points for each pair that was tested."""
    if results.differences.empty:
        return {}
    charts = {}
    place = {name: i for i, name in enumerate(results.classes)}
    within = list(results.by[1:])
    points = results.differences.groupby([*within, "class", "metric", "a", "b"], sort=False)
    by_pair = {key: part["difference"].to_numpy() for key, part in points}
    tests = results.pairs.groupby(["class", "metric"], sort=False)
    for (class_name, metric), lines in sorted(tests, key=lambda group: place[str(group[0][0])]):
        differences, means = {}, {}
        for line in lines.to_dict("records"):
            key = (*(line[name] for name in within), class_name, metric, line["a"], line["b"])
            if key in by_pair:
                name = row_title([f"{line['a']}{MINUS}{line['b']}", *(line[n] for n in within)])
                differences[name] = by_pair[key]
                means[name] = (line["difference"], line["low"], line["high"])
        if differences:
            heading = f"{class_title(str(class_name))}: {METRICS[str(metric)].title}"
            chart = paired_chart(differences, means, heading, METRICS[str(metric)])
            charts[f"{heading}, difference in each patient"] = chart
    return charts


def _folded(charts: Charts) -> str:
    """The first charts, and the others folded up."""
    items = list(charts.items())
    html = charts_html(dict(items[:OPEN_CHARTS]))
    if len(items) > OPEN_CHARTS:
        rest = charts_html(dict(items[OPEN_CHARTS:]))
        summary = f"<summary>{len(items) - OPEN_CHARTS} more</summary>"
        html += f"<details>{summary}{rest}</details>"
    return html
