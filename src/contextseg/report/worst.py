"""The cases that everything compared finds hard: in numbers, and seen, each method's prediction beside the others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from contextseg.disk import Problem
from contextseg.metrics import MISSED, SPURIOUS
from contextseg.report.markup import row_names, sentence, table_html
from contextseg.report.numbers import number, plural
from contextseg.report.pictures import KEY, READ, annotated, svg
from contextseg.report.planes import Plane, Regions, side_by_side

LINES = 15
SEEN = 3  # cases with pictures


class Shown(NamedTuple):
    """One method's prediction of a case: `row`, the method's name; its `run`, of which there are `runs`; the case's
    mean Dice in that run and over all of them; false-positive voxels near and far, NaN where nobody counted; the file.
    """

    row: str
    run: str
    runs: int
    dsc: float
    mean: float
    near: float
    far: float
    file: str


def worst_html(rows: pd.DataFrame, split: str, cases: Sequence[Mapping[str, Any]], regions: Regions) -> str:
    """The structures with the lowest Dice as a table, and the cases with the lowest in three planes.

    rows   of one split of a comparison's table, with `row`, the name of what they belong to, and perhaps
           `prediction_file`.      split   how it is called.
    cases  "case", "image" (a path, or one for each channel) and "reference" (a label map).
    """
    if rows.empty:
        return ""
    if rows["dsc"].isna().all():
        return sentence("No case has a score.")
    return _table(rows, split) + _pictures(rows, cases, regions)


# --- the table --------------------------------------------------------------------------------------------------------


def _table(rows: pd.DataFrame, split: str) -> str:
    """The cases and classes with the lowest Dice, over all that was compared."""
    means = rows.groupby(["case", "class", "method"], sort=False)["dsc"].mean().unstack("method", sort=False)
    means = means[list(dict.fromkeys(rows["method"]))].dropna(how="all")
    order = means.mean(axis=1).sort_index().sort_values(kind="stable")
    failed = rows[rows["status"].isin((MISSED, SPURIOUS))].groupby(["case", "class", "method", "status"]).size()
    body = ""
    chosen: list[Any] = list(order.index[:LINES])
    for case, klass in chosen:
        cells = f"<td>{number(float(order[(case, klass)]), 3)}</td>"
        for method in means:
            value = float(means[method][(case, klass)])
            ends = [f"{n} {end}" for end in (MISSED, SPURIOUS) if (n := failed.get((case, klass, method, end), 0))]
            bar = f' class="bar" style="--share:{value:.0%}"' if value == value else ""
            cells += f"<td{bar}>{number(value, 3)}<small>{'<br>'.join(ends)}</small></td>"
        body += f"<tr>{row_names([str(case), str(klass)])}{cells}</tr>"
    told = f"{split}: the {min(LINES, len(order))} structures of {len(order)} with the lowest Dice, "
    told += "of each method the mean over its runs, and how many of them missed it or made it up."
    return sentence(told) + table_html(["Case", "Class"], ["Dice, mean", *map(str, means)], body, " long")


# --- the pictures -----------------------------------------------------------------------------------------------------


def hardest(rows: pd.DataFrame) -> dict[str, float]:
    """Cases and their mean Dice, lowest first: over the methods, of each method's mean over its runs.

    A run's Dice of a case is its mean over classes. Cases without a number are left out.
    """
    means = _by_run(rows).groupby(["case", "row"]).mean().groupby("case").mean().dropna()
    return {str(name): float(value) for name, value in means.sort_values(kind="stable").items()}


def shown(rows: pd.DataFrame, case: str) -> list[Shown]:
    """What to show of a case: of each method the run with the median Dice (the lower of two), in the table's order."""
    made, scores = [], _by_run(rows[rows["case"] == case]).droplevel("case")
    for name in dict.fromkeys(rows["row"]):
        if name not in scores:
            continue
        order = scores[name].sort_values(kind="stable")  # what has no number comes last
        run = order.index[max(order.count() - 1, 0) // 2]
        own = _runs(rows)
        own = own[(own["case"] == case) & (own["row"] == name) & (own["run"] == run)]
        near, far = (float(own[column].sum(min_count=1)) for column in ("fp_near", "fp_far"))
        file = own["prediction_file"].iloc[0] if "prediction_file" in own else ""
        file = file if isinstance(file, str) else ""
        made.append(Shown(name, run, len(order), float(order[run]), float(order.mean()), near, far, file))
    return made


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `run` as text; a table without that column is of one run each."""
    return rows.assign(run=(rows["run"] if "run" in rows else rows["row"]).astype(str))


def _by_run(rows: pd.DataFrame) -> pd.Series:
    """The mean Dice over the classes of each case, method and run."""
    return _runs(rows).groupby(["case", "row", "run"])["dsc"].mean()


def _pictures(rows: pd.DataFrame, cases: Sequence[Mapping[str, Any]], regions: Regions) -> str:
    files, order = {str(case["case"]): case for case in cases}, hardest(rows)
    chosen = [name for name in order if name in files][:SEEN]
    if not chosen:
        return sentence("There are no images to show.")
    count = "The case" if len(chosen) == 1 else f"The {len(chosen)} cases"
    told = f"{count} of {len(order)} with the lowest mean Dice. Of several runs of a method, the one with the median."
    figures = [_case(i, files[name], order[name], rows, regions) for i, name in enumerate(chosen, 1)]
    return sentence(told) + KEY + "\n".join(figures) + sentence(READ)


def _case(i: int, case: Mapping[str, Any], mean: float, rows: pd.DataFrame, regions: Regions) -> str:
    """One case, a column for each method, through the class with the lowest Dice."""
    name = str(case["case"])
    own = rows[rows["case"] == name]
    classes = own.groupby("class")["dsc"].mean().dropna()
    focus = str(classes.idxmin())
    facts = f"mean Dice {number(mean, 3)}"
    facts += f"; through {focus}, its lowest: {number(float(classes.min()), 3)}" if len(classes) > 1 else ""
    wanted = shown(rows, name)
    try:
        found = side_by_side(case, [one.file or None for one in wanted], annotated(regions, own), focus)
        body = _columns(i, name, wanted, found)
    except Problem as problem:
        body = sentence(f"No picture of this case. {problem}")
    caption = f'<h3>{escape(name)}</h3><span class="soft">{escape(facts)}</span>'
    return f'<figure class="case" id="worst-{i}"><figcaption>{caption}</figcaption>{body}</figure>'


def _columns(i: int, name: str, wanted: Sequence[Shown], found: Sequence[list[Plane] | Problem]) -> str:
    """The planes of each prediction; they share their grey images, which are written once."""
    made, drawn = "", False
    height = max((len(planes) for planes in found if isinstance(planes, list)), default=1)
    for one, planes in zip(wanted, found):
        told = _told(one)
        if isinstance(planes, Problem):
            body = f"<p>No picture. {escape(str(planes))}</p>"
        elif not one.file:
            body = "<p>No prediction to show: its scores were taken as they are.</p>"
        else:
            label = f"plane, {one.row}, {'; '.join(told)}"
            body = "".join(svg(p, f"{name}, {p.name} {label}", f"grey-{i}-{p.name}", drawn) for p in planes)
            drawn = True
        caption = f"<figcaption>{escape(one.row)}<small>{'<br>'.join(map(escape, told))}</small></figcaption>"
        made += f'<figure class="planes side">{caption}{body}</figure>'
    return f'<div class="sides" style="--rows:{height + 1};--columns:{len(wanted)}">{made}</div>'


def _told(one: Shown) -> list[str]:
    told = [f"Dice {number(one.dsc, 3)}" if one.dsc == one.dsc else "no score"]
    if one.runs > 1:
        told[0] += f" in {one.run}, of {plural(one.runs, 'run')} with mean {number(one.mean, 3)}"
    told += [f"false-positive voxels: {one.near:.0f} near, {one.far:.0f} far"] if one.near == one.near else []
    return told
