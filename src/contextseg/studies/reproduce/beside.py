"""Measured results beside the published ones; what is not the paper's setting is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.disk import csv_text, read_json
from contextseg.settings import ANYWHERE
from contextseg.studies.compare.grid import Grid, method_names, method_settings
from contextseg.studies.reproduce.rows import FAST, LARGEST
from contextseg.studies.reproduce.table import ROWS, Reproduction

if TYPE_CHECKING:
    from pandas import DataFrame

PAPER_METRICS = {
    "DSC": ("dsc", 100.0),
    "SEN": ("sen", 100.0),
    "PRC": ("prc", 100.0),
    "HD95": ("hd95_mm", 1.0),
}
"""The paper's metrics: the table's column, and its factor."""

_UNSEEN = {"save_every", "log_every", "check_every", "check_batches", "tensorboard", "masks"}
_UNSEEN |= {"confidence", "windows", "memory_gb"}
"""Settings that change no number of the table, and the place of a folder."""


# --- trials ---------------------------------------------------------------------------------------


def departures(
    asked: Grid, paper: Mapping[str, str], words: Sequence[str], seeds: str, counts: Any
) -> list[str]:
    """What in a comparison is not as the paper had it.

    Args:
        asked: What was compared.
        paper: The paper's rows by name, methods of `compare`. Rows of other names are not looked
            at: no published number stands beside them.
        words: The paper's settings, `name=value` each.
        seeds: The paper's seeds, with commas between.
        counts: Numbers of training and test cases, here and in the paper, or None.

    Returns:
        Phrases; [] where all is as published.
    """
    phrases: list[str] = []
    for name, word in zip(method_names(asked), asked.methods):
        if name not in paper or name.endswith(FAST):
            continue
        here = _flat(method_settings(word, asked.dataset, asked.settings).to_json())
        there = _flat(method_settings(paper[name], asked.dataset, words).to_json())
        phrases += [
            f"{key.rpartition('.')[2]} {_text(here.get(key))} instead of {_text(there.get(key))}"
            for key in dict.fromkeys([*there, *here])
            if here.get(key) != there.get(key) and not _is_unseen(key)
        ]
    wanted = [int(seed) for seed in seeds.split(",")]
    if list(asked.seeds) != wanted:
        phrases.append(f"seeds {_text(asked.seeds)} instead of {_text(wanted)}")
    if counts is not None and counts[0] != counts[1]:
        own, published = (f"{train} + {test}" for train, test in counts)
        phrases.append(f"{own} cases instead of {published}")
    return list(dict.fromkeys(phrases))


def _flat(content: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        here = f"{lead}{name}"
        flat |= _flat(value, f"{here}.") if isinstance(value, dict) else {here: value}
    return flat


def _is_unseen(key: str) -> bool:
    return key in ANYWHERE or key.rpartition(".")[2] in _UNSEEN


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "the default" if value is None else str(value)


def kept_departures(
    compared: Path, paper: Mapping[str, str], words: Sequence[str], seeds: str
) -> list[str]:
    """`departures` of the comparison that lies in a folder.

    Args:
        compared: The comparison's folder; beside it lies the arranged data set.
        paper: The paper's rows by name.
        words: The paper's settings.
        seeds: The paper's seeds.

    Returns:
        Phrases; [] where all is as published.
    """
    content = read_json(compared / "comparison.json")["asked"]
    lists = ("methods", "seeds", "budgets", "folds", "settings", "roi")
    values: dict[str, Any] = {name: tuple(content[name]) for name in lists}
    grid = Grid(content["dataset"], compared, **values)
    split = Path(content["dataset"]) / "split.json"
    counts = None
    if split.exists():
        table = read_json(split)
        counts = [[len(table["train"]), len(table["test"])], list(table["published_counts"])]
    return departures(grid, paper, words, seeds, counts)


def trial_note(phrases: Sequence[str]) -> str:
    """A sentence that says of a trial that it is one.

    Args:
        phrases: What `departures` gives.

    Returns:
        The sentence; "" where all is as published.

    Example:
        >>> trial_note(["steps 20 instead of 2000"])
        "A trial, not the paper's setting: steps 20 instead of 2000."
    """
    return f"A trial, not the paper's setting: {'; '.join(phrases)}." if phrases else ""


# --- tables ---------------------------------------------------------------------------------------


def published(reproduction: Reproduction) -> str:
    """The paper's numbers as Markdown.

    Args:
        reproduction: The data set.

    Returns:
        A table for each class.
    """
    return beside_published(reproduction, None)


def beside_published(
    reproduction: Reproduction, table: DataFrame | None, trial: Sequence[str] = ()
) -> str:
    """The rows of a comparison beside the paper's, as Markdown.

    Measured numbers are means over the test cases, then over seeds.

    Args:
        reproduction: The data set.
        table: The table of `compare`: method, seed, split, class, metrics. None: the paper's rows
            alone.
        trial: What is not as in the paper; the measured columns are then called a trial's.

    Returns:
        A table for each class.
    """
    parts = [f"**{trial_note(trial)}**"] if trial and table is not None else []
    here = "a trial here" if trial else "here"
    for name, paper in reproduction.published.items():
        measured = {} if table is None else _means(table, name)
        title = f"Published (Li et al. 2023) for the {name}: per cent, and HD95 in mm"
        headings = list(PAPER_METRICS)
        if measured:
            title += f"; beside them, what was measured {here}, by {convention_of(table)}"
            headings += [f"{metric}, {here}" for metric in PAPER_METRICS]
        lines = [
            f"{title}.",
            "",
            "| row | " + " | ".join(headings) + " |",
            "|---|" + "--:|" * len(headings),
        ]
        unknown = ["-"] * len(PAPER_METRICS)
        for row in _order(paper, measured):
            cells = [f"{value:.1f}" for value in paper.get(row, ())] or unknown
            if measured:
                cells = [*cells, *([f"{v:.1f}" for v in measured.get(row, ())] or unknown)]
            lines.append(f"| {title_of(row)} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def beside_csv(reproduction: Reproduction, table: DataFrame, trial: Sequence[str] = ()) -> str:
    """The same as CSV: a line for each class, row and metric.

    Args:
        reproduction: The data set.
        table: The table of `compare`.
        trial: What is not as in the paper.

    Returns:
        CSV with the columns class, row, metric, published, here, convention, trial; the last is
        empty for the paper's setting.
    """
    lines = []
    for name, paper in reproduction.published.items():
        measured = _means(table, name)
        for row in _order(paper, measured):
            for i, metric in enumerate(PAPER_METRICS):
                line: dict[str, Any] = {"class": name, "row": row, "metric": metric}
                line["published"] = paper[row][i] if row in paper else ""
                line["here"] = f"{measured[row][i]:.4f}" if row in measured else ""
                line["convention"] = convention_of(table)
                lines.append(line | {"trial": "; ".join(trial)})
    return csv_text(list(lines[0]), lines)


def title_of(row: str) -> str:
    """The name of a row for people.

    Args:
        row: Its name in a comparison.

    Example:
        >>> title_of("CoLab-2-fast")
        'CoLab-2, fast'
    """
    if row == LARGEST:
        return "none, largest component"
    return row.removesuffix(FAST) + (", fast" if row.endswith(FAST) else "")


def convention_of(table: DataFrame | None) -> str:
    """Whose definitions a table of `compare` is by, in words."""
    name = "default"
    if table is not None and "convention" in table:
        name = str(next(iter(table["convention"].dropna()), name))
    return "this library's definitions" if name == "default" else f"the convention {name}"


def _order(paper: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    rows = [row for row in ROWS if row in paper or row in measured]
    return rows + [row for row in measured if row not in ROWS]


def _means(table: DataFrame, name: str) -> dict[str, list[float]]:
    """The paper's metrics of each method on the test split."""
    part = table[(table["split"] == "test") & (table["class"] == name)]
    columns = [column for column, _ in PAPER_METRICS.values()]
    by_seed = part.groupby(["method", "seed"], sort=False)[columns].mean()
    means = by_seed.groupby("method", sort=False).mean()
    factors = [factor for _, factor in PAPER_METRICS.values()]
    return {
        str(row): [float(value) * factor for value, factor in zip(values, factors)]
        for row, values in zip(means.index, means.values)
    }
