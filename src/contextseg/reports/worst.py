"""The cases that everything compared finds hard: as a table, and each method's prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from typing import Any, NamedTuple

import pandas as pd

from contextseg.errors import ContextsegError, plural
from contextseg.metrics import MISSED, SPURIOUS
from contextseg.reports.markup import row_names, sentence, table_html
from contextseg.reports.numbers import number
from contextseg.reports.pictures import KEY, VIEW, annotated, svg
from contextseg.reports.planes import Plane, Regions, side_by_side

LINES = 15
SEEN = 3  # cases with pictures


class Shown(NamedTuple):
    """One method's prediction of a case.

    Attributes:
        row: Name of the method, with its label budget if there are several.
        run: Name of the run that is shown.
        runs: Number of runs of the method.
        dsc: Mean Dice of the case in that run.
        mean: Mean Dice of the case over all runs.
        near: False-positive voxels near the reference; NaN where they were not counted.
        far: The other false-positive voxels.
        file: The predicted label map; "" for none.
    """

    row: str
    run: str
    runs: int
    dsc: float
    mean: float
    near: float
    far: float
    file: str


def worst_html(
    rows: pd.DataFrame, split: str, cases: Sequence[Mapping[str, Any]], regions: Regions
) -> str:
    """The section of a page on the worst cases.

    Args:
        rows: The rows of one split of a comparison's table, with `row`, the name of what they
            belong to, and perhaps `prediction_file`.
        split: What the split is called.
        cases: Files of the cases: "case", "image" (a path, or one for each channel) and
            "reference".
        regions: Class -> its label values.

    Returns:
        The structures with the lowest Dice as a table, and the cases with the lowest in three
        planes.
    """
    if rows.empty:
        return ""
    if rows["dsc"].isna().all():
        return sentence("No case has a score.")
    return _table(rows, split) + _pictures(rows, cases, regions)


# --- the table ------------------------------------------------------------------------------------


def _table(rows: pd.DataFrame, split: str) -> str:
    """The cases and classes with the lowest Dice, over all that was compared."""
    means = (
        rows.groupby(["case", "class", "method"], sort=False)["dsc"]
        .mean()
        .unstack("method", sort=False)
    )
    means = means[list(dict.fromkeys(rows["method"]))].dropna(how="all")
    order = means.mean(axis=1).sort_index().sort_values(kind="stable")
    failed = (
        rows[rows["status"].isin((MISSED, SPURIOUS))]
        .groupby(["case", "class", "method", "status"])
        .size()
    )
    body = ""
    chosen: list[Any] = list(order.index[:LINES])
    for case, klass in chosen:
        cells = f"<td>{number(float(order[(case, klass)]), 3)}</td>"
        for method in means:
            value = float(means[method][(case, klass)])
            ends = [
                f"{n} {end}"
                for end in (MISSED, SPURIOUS)
                if (n := failed.get((case, klass, method, end), 0))
            ]
            bar = "" if isnan(value) else f' class="bar" style="--share:{value:.0%}"'
            cells += f"<td{bar}>{number(value, 3)}<small>{'<br>'.join(ends)}</small></td>"
        body += f"<tr>{row_names([str(case), str(klass)])}{cells}</tr>"
    explanation = sentence(
        f"{split}: the {min(LINES, len(order))} structures of {len(order)} with the lowest Dice, "
        "of each method the mean over its runs, and how many of them missed it or predicted it "
        "where it is not."
    )
    heads = ["Dice, mean", *map(str, means)]
    return explanation + table_html(["Case", "Class"], heads, body, " long")


# --- the pictures ---------------------------------------------------------------------------------


def hardest(rows: pd.DataFrame) -> dict[str, float]:
    """The cases by mean Dice, lowest first.

    The mean is over the methods, of each method's mean over its runs; a run's Dice of a case is its
    mean over classes.

    Args:
        rows: The rows of one split, with `row`.

    Returns:
        Case -> mean Dice. Cases without a number are left out.
    """
    means = _by_run(rows).groupby(["case", "row"]).mean().groupby("case").mean().dropna()
    return {str(name): float(value) for name, value in means.sort_values(kind="stable").items()}


def shown(rows: pd.DataFrame, case: str) -> list[Shown]:
    """What to show of a case: of each method the run with the median Dice (the lower of two).

    Args:
        rows: The rows of one split, with `row`.
        case: Name of the case.

    Returns:
        One for each method that has the case, in the table's order.
    """
    scores = _by_run(rows[rows["case"] == case]).droplevel("case")
    predictions = []
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
        dsc, mean = float(order[run]), float(order.mean())
        predictions.append(Shown(name, run, len(order), dsc, mean, near, far, file))
    return predictions


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `run` as text; a table without that column is of one run each."""
    return rows.assign(run=(rows["run"] if "run" in rows else rows["row"]).astype(str))


def _by_run(rows: pd.DataFrame) -> pd.Series:
    """The mean Dice over the classes of each case, method and run."""
    return _runs(rows).groupby(["case", "row", "run"])["dsc"].mean()


def _pictures(rows: pd.DataFrame, cases: Sequence[Mapping[str, Any]], regions: Regions) -> str:
    files = {str(case["case"]): case for case in cases}
    order = hardest(rows)
    chosen = [name for name in order if name in files][:SEEN]
    if not chosen:
        return sentence("There are no images to show.")
    count = "The case" if len(chosen) == 1 else f"The {len(chosen)} cases"
    explanation = sentence(
        f"{count} of {len(order)} with the lowest mean Dice. Of several runs of a method, the one "
        "with the median."
    )
    figures = [
        _case(i, files[name], order[name], rows, regions) for i, name in enumerate(chosen, 1)
    ]
    return explanation + KEY + "\n".join(figures) + sentence(VIEW)


def _case(
    i: int, case: Mapping[str, Any], mean: float, rows: pd.DataFrame, regions: Regions
) -> str:
    """One case, a column for each method, through the class with the lowest Dice."""
    name = str(case["case"])
    own = rows[rows["case"] == name]
    classes = own.groupby("class")["dsc"].mean().dropna()
    focus = str(classes.idxmin())
    facts = f"mean Dice {number(mean, 3)}"
    if len(classes) > 1:
        facts += f"; through {focus}, its lowest: {number(float(classes.min()), 3)}"
    predictions = shown(rows, name)
    files = [prediction.file or None for prediction in predictions]
    try:
        drawn = side_by_side(case, files, annotated(regions, own), focus)
        body = _columns(i, name, predictions, drawn)
    except ContextsegError as problem:
        body = sentence(f"No picture of this case. {problem}")
    caption = f'<h3>{escape(name)}</h3><span class="soft">{escape(facts)}</span>'
    return f'<figure class="case" id="worst-{i}"><figcaption>{caption}</figcaption>{body}</figure>'


def _columns(
    i: int,
    name: str,
    predictions: Sequence[Shown],
    drawn: Sequence[list[Plane] | ContextsegError],
) -> str:
    """The planes of each prediction; they share their grey images, which are written once."""
    figures = ""
    has_grey = False
    height = max((len(planes) for planes in drawn if isinstance(planes, list)), default=1)
    for prediction, planes in zip(predictions, drawn):
        facts = _facts(prediction)
        if isinstance(planes, ContextsegError):
            body = f"<p>No picture. {escape(str(planes))}</p>"
        elif not prediction.file:
            body = "<p>No prediction to show: its scores were taken as they are.</p>"
        else:
            label = f"plane, {prediction.row}, {'; '.join(facts)}"
            body = "".join(
                svg(p, f"{name}, {p.name} {label}", f"grey-{i}-{p.name}", has_grey) for p in planes
            )
            has_grey = True
        small = f"<small>{'<br>'.join(map(escape, facts))}</small>"
        caption = f"<figcaption>{escape(prediction.row)}{small}</figcaption>"
        figures += f'<figure class="planes side">{caption}{body}</figure>'
    style = f"--rows:{height + 1};--columns:{len(predictions)}"
    return f'<div class="sides" style="{style}">{figures}</div>'


def _facts(prediction: Shown) -> list[str]:
    """The numbers of a prediction, in words."""
    score = "no score" if isnan(prediction.dsc) else f"Dice {number(prediction.dsc, 3)}"
    if prediction.runs > 1:
        runs = f"{plural(prediction.runs, 'run')} with mean {number(prediction.mean, 3)}"
        score += f" in {prediction.run}, of {runs}"
    if isnan(prediction.near):
        return [score]
    return [
        score,
        f"false-positive voxels: {prediction.near:.0f} near, {prediction.far:.0f} far",
    ]
