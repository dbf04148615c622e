"""Means over the runs with their tests, and the published numbers beside them."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.errors import plural
from contextseg.evaluation.statistics import contrasts, holm
from contextseg.studies.cmunet.arrange import SCANS, TableScans
from contextseg.studies.cmunet.rows import EPOCHS, ROWS, RUNS, Asked, Slices

if TYPE_CHECKING:
    from pandas import DataFrame

TABLE_MEASURES = {
    "dsc": ("Dice, slices", 4),
    "hd_mm": ("HD, slices, mm", 2),
    "dsc_3d": ("Dice, volumes", 4),
    "hd95_mm_3d": ("HD95, volumes, mm", 2),
}
"""Columns of the table: heading and digits. The paper's two are the first."""
PAPER_MEASURES = ("dsc", "hd_mm")
"""The paper's two measures."""
AGAINST = ("U-Net", "CMU-Net")
"""The rows that each other row is tested against."""
PUBLISHED_SLICES = (1664, 298, 787)
"""The paper's slices to train, to validate, and to test."""


def over_runs(table: DataFrame) -> DataFrame:
    """The mean of each run over its test cases and classes.

    Args:
        table: A row for each run, weights, case and class.

    Returns:
        A row for each method, weights and seed, with the columns of `TABLE_MEASURES`. A class that
        is in neither mask has no value, and does not count.
    """
    columns = list(TABLE_MEASURES)
    keys = ["method", "weights", "seed"]
    cases = table.groupby([*keys, "case"], sort=False)[columns].mean()
    return cases.groupby(keys, sort=False).mean().reset_index()


def significance(table: DataFrame) -> DataFrame:
    """Each row compared with the plain U-Net and with CMU-Net, over the runs and the patients.

    Rows are compared by the weights that they deploy: the best validation epoch, or the last step
    of a row that has no other.

    Args:
        table: A row for each run, weights, case and class.

    Returns:
        Columns measure, a, b, difference (a - b), p_runs and p_runs_holm (Welch's t-test of the
        runs' means, which tells trainings apart: the paper names no test), p_patients and
        p_patients_holm (Wilcoxon's test over patients, of all classes together where there are
        several). NaN for fewer than two runs or patients; no lines where neither of `AGAINST` is
        there.
    """
    import pandas as pd
    from scipy.stats import ttest_ind

    deployed = _deployed(table)
    runs = over_runs(deployed)
    names = list(dict.fromkeys(deployed["method"]))
    paired = contrasts(deployed, metrics=PAPER_MEASURES)
    if len(paired):
        classes = [str(name) for name in paired["class"]]
        widest = "overall" if "overall" in classes else classes[0]
        paired = paired[paired["class"] == widest]
    pairs = [pair for pair in combinations(names, 2) if set(pair) & set(AGAINST)]
    lines: list[dict[str, Any]] = []
    for measure in PAPER_MEASURES:
        for a, b in pairs:
            one, other = (
                runs.loc[runs["method"] == name, measure].dropna().to_numpy() for name in (a, b)
            )
            enough = min(len(one), len(other)) > 1
            p = float(ttest_ind(one, other, equal_var=False).pvalue) if enough else nan
            line = {"measure": measure, "a": a, "b": b}
            line["difference"] = float(one.mean() - other.mean()) if len(one) * len(other) else nan
            lines.append({**line, "p_runs": p, **_of_patients(paired, measure, a, b)})
    result = pd.DataFrame(lines)
    if len(result):
        for name in ("p_runs", "p_patients"):
            result[f"{name}_holm"] = holm(result[name].to_numpy())
    return result


def _deployed(table: DataFrame) -> DataFrame:
    """The rows of the weights that each method deploys."""
    best = {name for name, part in table.groupby("method") if (part["weights"] == "best").any()}
    has_best = table["method"].isin(best)
    return table[(table["weights"] == "best") | ~has_best]


def _of_patients(paired: DataFrame, measure: str, a: str, b: str) -> dict[str, float]:
    for first, second in ((a, b), (b, a)):
        if len(paired):
            line = paired[
                (paired["metric"] == measure) & (paired["a"] == first) & (paired["b"] == second)
            ]
            if len(line):
                return {"p_patients": float(line["p"].iloc[0])}
    return {"p_patients": nan}


# --- for people -----------------------------------------------------------------------------------


def table_described(asked: Asked, arranged: TableScans | None = None) -> str:
    """What would run, in words.

    Args:
        asked: What was asked for.
        arranged: The arranged data set; None before one was given.

    Returns:
        The text.
    """
    lines = [
        "The table of CMU-Net (Moseley, Wang, Imran: Context-aware multitasking for medical image "
        f"segmentation): {asked.epochs} epochs of every slice, {len(asked.seeds)} runs of each of",
    ]
    for row in asked.rows:
        words = " ".join(f"{name}={value}" for name, value in row.settings.items())
        published = ""
        if row.published:
            published = "; published: Dice {:.4f} ± {:.4f}, HD {:.2f} ± {:.2f}".format(
                *row.published
            )
        lines.append(f"  {row.name} ({row.origin}{published}): {row.method} {words}")
    if arranged is None:
        lines += [
            "contextseg reproduce cmunet DATA -o OUT --run makes it; DATA is a labelled data set:",
            "LiTS, or any other of 17 patients. docs/cmu-net.md says what we decided.",
        ]
    else:
        counts = " / ".join(map(str, arranged.counts))
        lines += [
            f"{arranged.folder}: {counts} scans to train, validate and test; {arranged.origin}.",
            "Add --run to train.",
        ]
    return "\n".join(lines)


def table_markdown(
    table: DataFrame,
    compared: DataFrame,
    asked: Asked,
    slices: Slices,
    arranged: TableScans,
    plan: Mapping[str, Any],
) -> str:
    """The table as Markdown.

    Args:
        table: A row for each run, weights, case and class.
        compared: What `significance` gave.
        asked: What was asked for.
        slices: How many slices there are.
        arranged: The data set.
        plan: The plan of the runs, as JSON.

    Returns:
        The text: what ran, the table, its tests.
    """
    parts = [
        f"```\n{table_command(asked)}\n```",
        _wrapped(_facts(asked, slices, arranged, plan)),
        *(_wrapped(text) for text in _cautions(asked, arranged, plan)),
        _means(table),
        _tested(compared),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table_command(asked: Asked) -> str:
    """The command that makes the table, for a person to copy.

    Args:
        asked: What was asked for.

    Returns:
        The command, of `DATA` into `OUT`.

    Example:
        >>> from contextseg.studies.cmunet.rows import parse_asked
        >>> print(table_command(parse_asked("U-Net", 5, "0,1", False, ["patch_vox=64,64"])))
        contextseg reproduce cmunet DATA -o OUT --run --rows U-Net --epochs 5 --seeds 0,1 \\
            --set patch_vox=64,64
    """
    words = ["contextseg", "reproduce", "cmunet", "DATA", "-o", "OUT", "--run"]
    names = [row.name for row in asked.rows]
    if names != list(ROWS):
        words += ["--rows", ",".join(names)]
    if asked.epochs != EPOCHS:
        words += ["--epochs", str(asked.epochs)]
    if asked.seeds != tuple(range(RUNS)):
        words += ["--seeds", ",".join(map(str, asked.seeds))]
    lines = [shlex.join(words)]
    given = [shlex.join(["--set", word]) for word in asked.settings]
    lines += [" ".join(given[i : i + 4]) for i in range(0, len(given), 4)]
    return " \\\n    ".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _facts(asked: Asked, slices: Slices, arranged: TableScans, plan: Mapping[str, Any]) -> str:
    counts = " / ".join(map(str, arranged.counts))
    grid = " x ".join(f"{s:g}" for s in plan["spacing_mm"])
    patch = " x ".join(map(str, plan["patch_vox"]))
    settings = f"; set beside the paper's: {' '.join(asked.settings)}" if asked.settings else ""
    return (
        f"{plan['dataset']}: {counts} scans to train, validate and test ({arranged.origin}); "
        f"{slices.train} slices to train, {slices.validation} to validate, of {patch} voxels at "
        f"{grid} mm; {asked.epochs} epochs, seeds {', '.join(map(str, asked.seeds))}{settings}. "
        "Means over the test cases of their means over slices that hold the class, then over runs, "
        "± s.d. over runs. "
        '"best": the best validation epoch, the paper\'s; "last": the last weights of the same run.'
    )


def _cautions(asked: Asked, arranged: TableScans, plan: Mapping[str, Any]) -> list[str]:
    """What keeps the numbers from standing beside the published ones."""
    differs = []
    if asked.epochs != EPOCHS:
        differs.append(f"{asked.epochs} epochs, not {EPOCHS}")
    if len(asked.seeds) < RUNS:
        differs.append(f"{plural(len(asked.seeds), 'run')}, not {RUNS}")
    if tuple(plan["patch_vox"]) != (256, 256) or list(plan["widths"])[:1] != [16]:
        differs.append("another size of slices or network")
    if arranged.counts != SCANS:
        differs.append(f"{' / '.join(map(str, arranged.counts))} scans")
    if not any(name.lower() == "liver" for name in plan["classes"]):
        differs.append(f"another data set ({plan['dataset']})")
    if not differs:
        return [
            "The paper's scans, spacing and optimiser are not known: the published numbers are of "
            "other scans of LiTS."
        ]
    return [f"**A trial, not the paper's experiment**: {'; '.join(differs)}."]


def _means(table: DataFrame) -> str:
    runs = over_runs(table)
    headings = [heading for heading, _ in TABLE_MEASURES.values()]
    lines = [
        f"| row | of | weights | {' | '.join(headings)} | published Dice | published HD |",
        "|---|---|---|" + "--:|" * (len(headings) + 2),
    ]
    for (name, weights), part in runs.groupby(["method", "weights"], sort=False):
        cells = [
            _spread(part[column].to_numpy(), digits)
            for column, (_, digits) in TABLE_MEASURES.items()
        ]
        row = ROWS[str(name)]
        published = ["", ""]
        if row.published and weights == "best":
            dice, dice_sd, hd, hd_sd = row.published
            published = [f"{dice:.4f} ± {dice_sd:.4f}", f"{hd:.2f} ± {hd_sd:.2f}"]
        words = [str(name), row.origin, str(weights), *cells, *published]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    """Mean ± s.d. over runs; no s.d. of one run, and "-" of none."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return "-"
    text = f"{known.mean():.{digits}f}"
    return f"{text} ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else text


def _tested(compared: DataFrame) -> str:
    if not len(compared):
        return ""
    lines = [
        _wrapped(
            "Deployed weights, a - b. p over runs: Welch's t-test of the runs' means, which tells "
            "trainings apart, not patients; the paper names no test. p over patients: Wilcoxon's "
            "signed-rank test of each patient's mean over the runs; five patients never give less "
            "than 0.0625. Each after Holm's correction for the column's tests."
        ),
        "",
        "| measure | a | b | difference | p, runs | p, Holm | p, patients | p, Holm |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    names = ("p_runs", "p_runs_holm", "p_patients", "p_patients_holm")
    for line in compared.to_dict("records"):
        heading, digits = TABLE_MEASURES[str(line["measure"])]
        cells = ["-" if isnan(line[name]) else f"{line[name]:.4f}" for name in names]
        difference = "-" if isnan(line["difference"]) else f"{line['difference']:+.{digits}f}"
        words = [heading, str(line["a"]), str(line["b"]), difference, *cells]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)
