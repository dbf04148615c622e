"""The page of a comparison: what was found on each split, with its tests and charts, and the cases that all find hard.

"Row": a method, or a method with a label budget, which is one line of the tables and of the charts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from contextseg.disk import write_text
from contextseg.metrics import ABSENT, MISSED, OVERALL, SPURIOUS
from contextseg.report import numbers
from contextseg.report.charts import MINUS, Charts, box_chart, paired_chart
from contextseg.report.curve import curve_chart
from contextseg.report.markup import (
    charts_html,
    page_html,
    paragraphs,
    provenance_html,
    row_names,
    sentence,
    table_html,
)
from contextseg.report.numbers import MEASURES, number
from contextseg.report.planes import Regions
from contextseg.report.worst import worst_html

HIGHER = ("dsc", "nsd")
DRAWN = (*HIGHER, "hd95_mm")
OPEN_CHARTS = 12  # the charts of further classes are folded up
SPLITS = {"test": "Test split", "validation": "Validation cases"}
TESTED = (
    "Difference: mean over patients of the first minus the second, with its bootstrap interval. Effect: matched-pairs "
    "rank-biserial correlation, from −1 to 1, positive where the first is better. p: Wilcoxon’s signed-rank test, "
    "two-sided, and after Holm’s correction for all tests of the class; bold: below 0.05."
)


class Compared(NamedTuple):
    """What was found on one split.

    means    a line for each row, class and metric: the columns that name the row (method, perhaps budget), then class,
             metric, mean, sd, low, high, n, n_missed, n_spurious, n_absent, n_rows.
    pairs    a line for each two rows, class and metric: budget if there are several, class, metric, a, b, n,
             difference, low, high, effect, p, p_holm; or empty.
    metrics  those to show.   caption: plain text.   marked: methods whose scores were not measured here (†).
    curves   metric -> `experiments.learning_curve`, where there are several label budgets.
    """

    means: pd.DataFrame
    pairs: pd.DataFrame
    metrics: Sequence[str]
    caption: str = ""
    marked: Collection[str] = ()
    curves: Mapping[str, pd.DataFrame] = {}

    @property
    def by(self) -> list[str]:
        """The columns that name a row."""
        return [str(name) for name in self.means.columns[: list(self.means.columns).index("class")]]

    @property
    def classes(self) -> list[str]:
        """All classes together first."""
        return sorted(dict.fromkeys(map(str, self.means["class"])), key=lambda name: name != OVERALL)


def write_comparison(
    path: str | Path,
    *,
    title: str,
    table: pd.DataFrame,
    compared: Mapping[str, Compared],
    provenance: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]] = (),
    regions: Regions | None = None,
    note: str = "",
) -> None:
    """One self-contained HTML page about a comparison, written atomically; equal input gives equal bytes.

    table       one row for each run, case and class: method, split, case, class, status, and any of run, patient,
                budget, dsc, nsd, hd95_mm, fp_near, fp_far, prediction_file.
    compared    split ("test", "validation") -> its statistics; the test split is shown first.
    provenance  nested; shown folded up.   note: plain text; an empty line starts a new paragraph.
    cases       "case", "image" (a path, or one for each channel), "reference": files, for pictures of the worst cases
                of the split that is shown first.   regions: class -> its label values; "ignore": not an error there.

    The page says in a sentence what is missing. Raises `Problem` if it cannot be written.
    """
    tidied = numbers.tidy(table)
    sections: dict[str, str] = {}
    worst = ""
    for split in sorted(
        compared, key=lambda name: (name not in SPLITS, list(SPLITS).index(name) if name in SPLITS else 0)
    ):
        rows = _named(tidied[tidied["split"] == split], compared[split])
        sections[SPLITS.get(split, split)] = _split(rows, compared[split])
        worst = worst or worst_html(rows, SPLITS.get(split, split), cases, regions or {})
    if not sections:
        sections["Results"] = sentence("Nothing was compared.")
    sections |= {"Worst cases": worst, "Notes": paragraphs(note), "Provenance": provenance_html(provenance)}
    write_text(path, page_html(title, {name: body for name, body in sections.items() if body}))


def _split(rows: pd.DataFrame, found: Compared) -> str:
    parts = [_means_table(found), sentence(found.caption), _pairs_table(found)]
    drawn = {f"{MEASURES[m][0]} by labelled patients": curve_chart(c, MEASURES[m][0]) for m, c in found.curves.items()}
    if drawn:
        parts += ["<h3>Label efficiency</h3>", charts_html(drawn), sentence("Bands: the intervals of the table.")]
    spread, paired = _spread_charts(rows, found), _paired_charts(rows, found)
    if spread:
        explained = (
            "Points: cases, the mean over a row’s runs (a cross: missed or spurious in at least one of them). Thick "
            "line: their median. Box, from five cases on: the quartiles; its whiskers reach the last case within one "
            "and a half box lengths."
        )
        parts += ["<h3>Spread over cases</h3>", _folded(spread), sentence(explained)]
    if paired:
        explained = "Points: patients, the first minus the second. Thick line: their mean; bar: its interval."
        parts += ["<h3>Paired differences</h3>", _folded(paired), sentence(explained)]
    return "\n".join(parts)


# --- tables -----------------------------------------------------------------------------------------------------------


def _means_table(found: Compared) -> str:
    """A line for each class and row: mean ± s.d. with its interval below, and how often a class was missed."""
    heads = [*_class_head(found), *_heads(found.by)]
    marks = {metric: "↑" if metric in HIGHER else "↓" for metric in DRAWN}
    shown = [metric for metric in found.metrics if metric in MEASURES]
    counts = ("Missed", "Spurious", "Absent")
    columns = [f"{MEASURES[metric][0]} {marks.get(metric, '')}".strip() for metric in shown]
    body = ""
    for klass in found.classes:
        part = found.means[found.means["class"] == klass]
        keys = sorted(
            dict.fromkeys(zip(*(part[name].astype(str) for name in found.by))), key=lambda key: _order(key[1:])
        )
        for key in keys:
            own = part[np.all([part[name].astype(str) == value for name, value in zip(found.by, key)], axis=0)]
            lines: dict[str, Any] = {line["metric"]: line for line in own.to_dict("records")}
            first = next(iter(lines.values()))
            names = [*([_class(klass)] if _class_head(found) else []), _mark(key[0], found), *key[1:]]
            cells = [_mean_cell(lines.get(metric), metric) for metric in shown]
            cells += [f"<td>{first['n_missed']}/{first['n_rows']}</td>"]
            cells += [f"<td>{first[name]}</td>" for name in ("n_spurious", "n_absent")]
            body += f"<tr>{row_names(names)}{''.join(cells)}</tr>"
    return table_html(heads, [*columns, *counts], body, " long" if len(found.classes) > 1 else "")


def _mean_cell(line: Mapping[str, Any] | None, metric: str) -> str:
    if line is None or line["mean"] != line["mean"]:
        return "<td>–</td>"
    digits = MEASURES[metric][1]
    spread = numbers.Spread(line["mean"], line["sd"], np.nan, line["n"])
    return f"<td>{numbers.mean_sd(spread, digits)}<small>{_interval(line, digits)}<br>n = {line['n']}</small></td>"


def _pairs_table(found: Compared) -> str:
    if found.pairs.empty:
        return sentence("One row alone: there is nothing to test.")
    within, several = found.by[1:], _class_head(found)
    body = ""
    place = {name: i for i, name in enumerate(found.classes)}
    for line in found.pairs.sort_values("class", key=lambda c: c.map(place), kind="stable").to_dict("records"):
        heading, digits = MEASURES.get(str(line["metric"]), (str(line["metric"]), 3))
        names = [*([_class(str(line["class"]))] if several else []), f"{line['a']}{MINUS}{line['b']}"]
        names += [str(line[name]) for name in within] + [heading]
        sure = line["p_holm"] < 0.05
        p = "".join(
            f"<td>{f'<b>{_p(line[c])}</b>' if sure and c == 'p_holm' else _p(line[c])}</td>" for c in ("p", "p_holm")
        )
        difference = f"<td>{number(line['difference'], digits)}<small>{_interval(line, digits)}</small></td>"
        body += f"<tr>{row_names(names)}<td>{line['n']}</td>{difference}<td>{number(line['effect'], 2)}</td>{p}</tr>"
    heads = [*several, "Pair", *_heads(found.by)[1:], "Metric"]
    table = table_html(heads, ["n", "Difference", "Effect", "p", "p, Holm"], body, " long")
    return f"<h3>Paired tests</h3>{table}{sentence(TESTED)}"


def _class_head(found: Compared) -> list[str]:
    return ["Class"] if len(found.classes) > 1 else []


def _heads(by: Sequence[str]) -> list[str]:
    return ["Method", *("Labels" if name == "budget" else name.capitalize() for name in by[1:])]


def _class(name: str) -> str:
    return "All classes" if name == OVERALL else name


def _mark(method: str, found: Compared) -> str:
    return method + "†" * (method in found.marked)


def _order(rest: Sequence[str]) -> float:
    """For sorting: label budgets by number, all labels last."""
    return float(rest[0]) if rest and rest[0].isdecimal() else float("inf")


def _interval(line: Mapping[Any, Any], digits: int) -> str:
    return f"[{number(line['low'], digits)}, {number(line['high'], digits)}]" if line["low"] == line["low"] else ""


def _p(value: float) -> str:
    return "–" if value != value else "&lt;0.001" if value < 0.001 else f"{value:.3f}"


# --- charts -----------------------------------------------------------------------------------------------------------


def _named(part: pd.DataFrame, found: Compared) -> pd.DataFrame:
    """The rows of one split with `row`, the name of what they belong to, few labels first."""
    keys = part.reindex(columns=found.by).astype(str).to_numpy().tolist()
    patient = part["patient"] if "patient" in part else part["case"]
    named = part.assign(row=[" · ".join(key) for key in keys], patient=patient.fillna(part["case"]).astype(str))
    return named.iloc[np.argsort([_order(key[1:]) for key in keys], kind="stable")]


def _with_overall(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and those of "overall": the means over each case's classes, of what has rows of every class."""
    classes = rows["class"].nunique()
    whole = rows[rows.groupby("row")["class"].transform("nunique") == classes]
    if classes < 2 or whole.empty:
        return rows
    runs = [name for name in ("row", "run", "fold", "case", "patient") if name in rows]
    failed = whole["status"].isin((MISSED, SPURIOUS))
    groups = whole.assign(failed=failed).groupby(runs, sort=False, dropna=False)
    means = groups[list(DRAWN)].mean().join(groups["failed"].any()).reset_index()
    means["status"] = np.where(means["failed"], MISSED, "both")
    return pd.concat([rows, means.assign(**{"class": OVERALL})])


def _spread_charts(rows: pd.DataFrame, found: Compared) -> Charts:
    """A chart for each class and metric, with a box for each row."""
    charts, rows = {}, _with_overall(rows)
    rows = rows.assign(failed=rows["status"].isin((MISSED, SPURIOUS)))
    for klass in found.classes:
        groups = rows[rows["class"] == klass].groupby(["row", "case"], sort=False)
        failed = groups["failed"].max()
        for metric in (m for m in DRAWN if m in found.metrics):
            means = groups[metric].mean()
            means = means[np.isfinite(means)]
            if means.empty:
                continue
            parts = {str(name): means[name] for name in dict.fromkeys(means.index.get_level_values(0))}
            values = {name: part.to_numpy() for name, part in parts.items()}
            crosses = {name: failed.loc[[name]].droplevel(0)[part.index].to_numpy() for name, part in parts.items()}
            heading = f"{_class(klass)}: {MEASURES[metric][0]}"
            charts[f"{heading} of each case, by method"] = box_chart(values, crosses, heading, metric in HIGHER)
    return charts


def _paired_charts(rows: pd.DataFrame, found: Compared) -> Charts:
    """A chart for each class and metric, with a line of points for each pair that was tested."""
    if found.pairs.empty:
        return {}
    charts, within = {}, found.by[1:]
    groups = found.pairs.groupby(["class", "metric"], sort=False)
    place = {name: i for i, name in enumerate(found.classes)}
    for (klass, metric), lines in sorted(groups, key=lambda group: place[str(group[0][0])]):
        differences, means = {}, {}
        for line in lines.to_dict("records"):
            ends = "".join(f" · {line[name]}" for name in within)
            points = paired(rows, str(klass), str(metric), f"{line['a']}{ends}", f"{line['b']}{ends}")
            if len(points):
                name = f"{line['a']}{MINUS}{line['b']}{ends}"
                differences[name], means[name] = points, (line["difference"], line["low"], line["high"])
        if differences:
            heading = f"{_class(str(klass))}: {MEASURES.get(str(metric), (metric,))[0]}"
            chart = paired_chart(differences, means, heading, metric in HIGHER)
            charts[f"{heading}, difference in each patient"] = chart
    return charts


def paired(rows: pd.DataFrame, klass: str, metric: str, a: str, b: str) -> np.ndarray:
    """The differences a - b that were tested, (N,): one for each patient with a value for both, by name.

    A patient's value is the mean over its cases, of the mean over a case's runs. As in the test, a class that is
    rightly left out in a case where something else made it up has the best value.
    """
    made_up = (rows["status"] == SPURIOUS).groupby([rows["case"], rows["class"]]).transform("any")
    right = made_up & (rows["status"] == ABSENT)
    credited = _with_overall(rows.assign(**{metric: rows[metric].mask(right, float(metric in HIGHER))}))
    part = credited[(credited["class"] == klass) & credited["row"].isin((a, b))]
    cases = part.groupby(["row", "patient", "case"])[metric].mean()
    wide = cases.groupby(["row", "patient"]).mean().unstack("row")
    found = (wide[a] - wide[b]).to_numpy() if {a, b} <= set(wide) else np.zeros(0)
    return found[np.isfinite(found)]


def _folded(charts: Charts) -> str:
    """The first charts, and the others folded up."""
    items = list(charts.items())
    rest = charts_html(dict(items[OPEN_CHARTS:]))
    more = f"<details><summary>{len(items) - OPEN_CHARTS} more</summary>{rest}</details>" if rest else ""
    return charts_html(dict(items[:OPEN_CHARTS])) + more
