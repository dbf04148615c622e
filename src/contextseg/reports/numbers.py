"""The numbers of a page: means with their counts, the worst and best cases, and their notation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from contextseg.metrics import (
    ABSENT,
    BOTH,
    DEFAULT_METRICS,
    DSC,
    METRICS,
    MISSED,
    QUANTITIES,
    SPURIOUS,
    Column,
    summarise,
)


class Spread(NamedTuple):
    """How one metric is spread over cases.

    Attributes:
        mean: Mean.
        sd: Standard deviation of the sample; NaN for fewer than two cases.
        median: Median.
        n: Number of cases with a value.
    """

    mean: float
    sd: float
    median: float
    n: int


class Line(NamedTuple):
    """The results of one class, or of all.

    Attributes:
        name: The class, or "All classes".
        missed: Number of cases in which it was missed.
        spurious: Number of cases in which it was spurious.
        absent: Number of cases in which it is rightly absent.
        tolerances_mm: The tolerances of its NSD, ascending.
        spreads: Metric -> how it is spread.
    """

    name: str
    missed: int
    spurious: int
    absent: int
    tolerances_mm: list[float]
    spreads: dict[str, Spread]


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column that a page reads: text as text, numbers as float64.

    Args:
        table: One row for each case and class. Columns that are not there become NaN, a missing
            status "both". The metrics of a missed or spurious class that were left empty get the
            worst value of the catalogue, where it has one.

    Returns:
        The table, with its other columns as they were. An empty table stays empty.
    """
    numeric = [*METRICS, *QUANTITIES, "tolerance_mm"]
    columns = dict.fromkeys([*table.columns, "case", "class", "status", *numeric])
    out = table.reindex(columns=list(columns))
    out[numeric] = out[numeric].apply(pd.to_numeric, errors="coerce").astype(float)
    out[["case", "class"]] = out[["case", "class"]].astype(str)
    out["status"] = out["status"].astype(object).where(out["status"].notna(), BOTH).astype(str)
    for name, metric in METRICS.items():
        if name in table and math.isfinite(metric.worst):
            failures = (MISSED,) if metric.needs_reference else (MISSED, SPURIOUS)
            rows = out["status"].isin(failures)
            out.loc[rows, name] = out.loc[rows, name].fillna(metric.worst)
    return out.reset_index(drop=True)


def lines(tidied: pd.DataFrame) -> list[Line]:
    """The results of every class in the table's order, and of all classes.

    The numbers are those of `metrics.summarise`.

    Args:
        tidied: A table of `tidy`, not empty.

    Returns:
        One line for each class, and a last one for all: over cases, of their means over classes.
    """
    records: list[Any] = summarise(tidied).to_dict("records")
    lines = []
    for start in range(0, len(records), len(METRICS)):
        block = records[start : start + len(METRICS)]
        is_last = start + len(METRICS) == len(records)
        rows = tidied if is_last else tidied[tidied["class"] == block[0]["class"]]
        missed, spurious, absent = (
            int(block[0][f"n_{status}"]) for status in (MISSED, SPURIOUS, ABSENT)
        )
        line = Line(
            name="All classes" if is_last else block[0]["class"],
            missed=missed,
            spurious=spurious,
            absent=absent,
            tolerances_mm=sorted(set(rows["tolerance_mm"].dropna())),
            spreads={
                record["metric"]: Spread(
                    record["mean"], record["sd"], record["median"], int(record["n"])
                )
                for record in block
            },
        )
        lines.append(line)
    return lines


def page_metrics(tidied: pd.DataFrame) -> list[str]:
    """The metrics for the page of a run.

    Args:
        tidied: A table of `tidy`.

    Returns:
        Names of the catalogue's metrics that have a number in at least one row.
    """
    return [name for name, m in METRICS.items() if m.on_page and tidied[name].notna().any()]


def case_columns(tidied: pd.DataFrame) -> list[Column]:
    """The numeric columns of the table of cases on the page of a run, Dice first.

    Args:
        tidied: A table of `tidy`.

    Returns:
        Dice, and each other metric and quantity that has a number in at least one row.
    """
    others = [METRICS[name] for name in page_metrics(tidied) if name != DSC]
    quantities = [c for name, c in QUANTITIES.items() if tidied[name].notna().any()]
    return [METRICS[DSC], *others, *quantities]


def ranked(tidied: pd.DataFrame) -> pd.Series:
    """Each case's mean Dice over its classes, worst first, then by name.

    Args:
        tidied: A table of `tidy`.

    Returns:
        Case -> mean Dice. Cases without a number are left out.
    """
    means = tidied.groupby("case")[DSC].mean().dropna()  # groupby sorts the names
    return means.sort_values(kind="stable")


def extremes(order: pd.Series) -> dict[str, str]:
    """The worst, the median (the lower of two) and the best case.

    Args:
        order: Cases, worst first, as of `ranked`.

    Returns:
        "worst", "median", "best" -> case; fewer where there are fewer cases.
    """
    names = [str(name) for name in order.index]
    at = {"worst": 0, "median": (len(names) - 1) // 2, "best": len(names) - 1}
    roles: dict[str, str] = {}
    for role in ("worst", "best", "median"):
        if names and names[at[role]] not in roles.values():
            roles[role] = names[at[role]]
    return {role: roles[role] for role in at if role in roles}


def summary_markdown(table: pd.DataFrame) -> str:
    """The results of a table in Markdown.

    Args:
        table: One row for each case and class, as of `evaluation.evaluate`.

    Returns:
        A line for each class and, for several, one for all (over cases, of their means over
        classes), with mean ± standard deviation. A sentence for an empty table.

    Example:
        >>> rows = {"case": ["a", "b"], "class": "liver", "dsc": [0.9, 0.8]}
        >>> rows |= {"hd95_mm": [3.0, 5.0], "status": "both"}
        >>> print(summary_markdown(pd.DataFrame(rows)))
        | Class | Cases | Missed | Dice | Median | HD95, mm |
        |---|--:|--:|--:|--:|--:|
        | liver | 2 | 0 | 0.850 ± 0.071 | 0.850 | 4.0 ± 1.4 |
    """
    tidied = tidy(table)
    if tidied.empty:
        return "No case could be scored."
    there = page_metrics(tidied)
    metrics = [METRICS[name] for name in DEFAULT_METRICS if name in there]
    heads = ["Class", "Cases", "Missed"]
    for metric in metrics:
        heads += [metric.title, "Median"] if metric.name == DSC else [metric.title]

    text = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    every = lines(tidied)
    for line in every if len(every) > 2 else every[:1]:
        cells = [line.name.replace("|", "\\|"), f"{line.spreads[DSC].n}", f"{line.missed}"]
        for metric in metrics:
            spread = line.spreads[metric.name]
            cells.append(mean_sd(spread, metric.digits))
            if metric.name == DSC:
                cells.append(number(spread.median, metric.digits))
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


# --- how numbers are written ----------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """A number with fixed digits.

    Args:
        value: The number.
        digits: Digits after the decimal point.

    Returns:
        The text; a dash for NaN.

    Example:
        >>> number(0.5, 3), number(float("nan"), 3), number(float("inf"), 1)
        ('0.500', '–', '∞')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{digits}f}"


def mean_sd(values: Spread, digits: int) -> str:
    """Mean ± standard deviation.

    Args:
        values: How a metric is spread.
        digits: Digits after the decimal point.

    Returns:
        The text; the mean alone where there is no standard deviation.
    """
    mean = number(values.mean, digits)
    return mean if math.isnan(values.sd) else f"{mean} ± {number(values.sd, digits)}"


def duration(seconds: float) -> str:
    """A duration in words.

    Args:
        seconds: The duration.

    Returns:
        The text; a dash for what is not finite.

    Example:
        >>> duration(3.21), duration(95), duration(7300)
        ('3.2 s', '1 min 35 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: float) -> str:
    """An amount of memory in words.

    Args:
        megabytes: The amount.

    Returns:
        The text; a dash for what is not finite.

    Example:
        >>> memory(640), memory(2150)
        ('640 MB', '2.1 GB')
    """
    if not math.isfinite(megabytes):
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def finite(value: Any) -> float:
    """A value as a float; NaN for what is no number.

    Args:
        value: Anything.

    Returns:
        The number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
