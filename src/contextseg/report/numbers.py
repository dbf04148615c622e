"""The table's numbers: what counts, means with their counts, who was best and worst, and how a number is written."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pandas as pd

from contextseg.metrics import ABSENT, BOTH, METRICS, MISSED, SPURIOUS, summarise

MEASURES = {  # column of the table: (heading, digits)
    "dsc": ("Dice", 3),
    "nsd": ("NSD", 3),
    "hd95_mm": ("HD95, mm", 1),
    "assd_mm": ("ASSD, mm", 2),
    "sen": ("Sensitivity", 3),
    "prc": ("Precision", 3),
}
VOLUMES = {"ref_ml": ("Ref., ml", 1), "pred_ml": ("Pred., ml", 1)}
VOXELS = {"fp_near": ("FP near", 0), "fp_far": ("FP far", 0)}
_ZERO_WHERE_EMPTY = {MISSED: ("dsc", "nsd", "sen", "prc"), SPURIOUS: ("dsc", "nsd", "prc")}


class Spread(NamedTuple):
    """How one measure is spread over the `n` cases that have it; sd is the sample's, nan for fewer than two."""

    mean: float
    sd: float
    median: float
    n: int


class Line(NamedTuple):
    """One class, or all: how many cases failed, the tolerances of its NSD (mm), and the spread of every measure."""

    name: str
    missed: int
    spurious: int
    absent: int
    tolerances_mm: list[float]
    spreads: dict[str, Spread]


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column that the report reads: text as text, numbers as float64.

    A missed or spurious structure whose overlap was left empty counts as 0. Columns that are not there become nan, a
    missing status "both". An empty table stays empty.
    """
    numeric = [*MEASURES, *VOLUMES, *VOXELS, "tolerance_mm"]
    out = table.reindex(columns=list(dict.fromkeys([*table.columns, "case", "class", "status", *numeric])))
    out[numeric] = out[numeric].apply(pd.to_numeric, errors="coerce").astype(float)
    out[["case", "class"]] = out[["case", "class"]].astype(str)
    out["status"] = out["status"].astype(object).where(out["status"].notna(), BOTH).astype(str)
    for status, columns in _ZERO_WHERE_EMPTY.items():
        there = [column for column in columns if column in table]
        rows = out["status"] == status
        out.loc[rows, there] = out.loc[rows, there].fillna(0.0)
    return out.reset_index(drop=True)


def lines(tidied: pd.DataFrame) -> list[Line]:
    """One line for each class in the table's order, and a last one for all: over cases, of their means over classes.

    The numbers are those of `metrics.summarise`. The table must not be empty.
    """
    per_line = [metric for metric in METRICS if metric in tidied]
    records: list[Any] = summarise(tidied).to_dict("records")
    made = []
    for start in range(0, len(records), len(per_line)):
        block = records[start : start + len(per_line)]
        last = start + len(per_line) == len(records)
        rows = tidied if last else tidied[tidied["class"] == block[0]["class"]]
        spreads = {r["metric"]: Spread(r["mean"], r["sd"], r["median"], int(r["n"])) for r in block}
        missed, spurious, absent = (int(block[0][f"n_{status}"]) for status in (MISSED, SPURIOUS, ABSENT))
        tolerances = sorted(set(rows["tolerance_mm"].dropna()))
        name = "All classes" if last else block[0]["class"]
        made.append(Line(name, missed, spurious, absent, tolerances, spreads))
    return made


def shown(tidied: pd.DataFrame) -> list[str]:
    """The measures that have a number in at least one row."""
    return [column for column in MEASURES if tidied[column].notna().any()]


def ranked(tidied: pd.DataFrame) -> pd.Series:
    """Each case's mean Dice over its classes, worst first, then by name; cases without a number are left out."""
    return tidied.groupby("case")["dsc"].mean().dropna().sort_values(kind="stable")  # groupby sorts the names


def telling(order: pd.Series) -> dict[str, str]:
    """Which case is the worst, the median (the lower of two) and the best of `ranked`; fewer where there are fewer."""
    names = [str(name) for name in order.index]
    at = {"worst": 0, "median": (len(names) - 1) // 2, "best": len(names) - 1}
    roles: dict[str, str] = {}
    for role in ("worst", "best", "median"):
        if names and names[at[role]] not in roles.values():
            roles[role] = names[at[role]]
    return {role: roles[role] for role in at if role in roles}


def summary_markdown(table: pd.DataFrame) -> str:
    """The results in Markdown: a line for each class and, for several, one for all; a sentence for an empty table.

    Mean ± s.d., for all classes over cases of their means over classes.

    >>> rows = {"case": ["a", "b"], "class": "liver", "dsc": [0.9, 0.8], "hd95_mm": [3.0, 5.0], "status": "both"}
    >>> print(summary_markdown(pd.DataFrame(rows)))
    | Class | Cases | Missed | Dice | Median | HD95, mm |
    |---|--:|--:|--:|--:|--:|
    | liver | 2 | 0 | 0.850 ± 0.071 | 0.850 | 4.0 ± 1.4 |
    """
    tidied = tidy(table)
    if tidied.empty:
        return "No case could be scored."
    made, columns = lines(tidied), [c for c in ("dsc", "nsd", "hd95_mm") if c in shown(tidied)]
    heads = ["Class", "Cases", "Missed"]
    for column in columns:
        heads += [MEASURES[column][0], "Median"] if column == "dsc" else [MEASURES[column][0]]
    text = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    for line in made if len(made) > 2 else made[:1]:
        cells = [line.name.replace("|", "\\|"), f"{line.spreads['dsc'].n}", f"{line.missed}"]
        for column in columns:
            cells.append(mean_sd(line.spreads[column], MEASURES[column][1]))
            cells += [number(line.spreads[column].median, MEASURES[column][1])] if column == "dsc" else []
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


# --- how numbers are written ------------------------------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """Fixed digits; a dash for nan.

    >>> number(0.5, 3), number(float("nan"), 3), number(float("inf"), 1)
    ('0.500', '–', '∞')
    """
    if math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞" if value > 0 else "−∞"


def mean_sd(values: Spread, digits: int) -> str:
    """Mean ± s.d., the mean alone where there is no s.d."""
    mean = number(values.mean, digits)
    return mean if math.isnan(values.sd) else f"{mean} ± {number(values.sd, digits)}"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(3.21), duration(95), duration(7300)
    ('3.2 s', '1 min 35 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(megabytes: float) -> str:
    """Megabytes in words.

    >>> memory(640), memory(2150)
    ('640 MB', '2.1 GB')
    """
    if not math.isfinite(megabytes):
        return "–"
    return f"{megabytes:.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:.1f} GB"


def plural(count: int, one: str, several: str = "") -> str:
    """A count with its noun.

    >>> plural(1, "case"), plural(2, "class", "classes")
    ('1 case', '2 classes')
    """
    return f"{count} {one if count == 1 else several or one + 's'}"


def finite(value: Any) -> float:
    """`value` as a float; nan for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
