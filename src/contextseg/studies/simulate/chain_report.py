"""What the simulated chain gives: means, curves and paired tests, as a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.cells import frame_text, read_table_file
from contextseg.console import ProgressBar, no_progress_bar
from contextseg.disk import replacing, write_text
from contextseg.errors import plural
from contextseg.evaluation.statistics import holm, paired_tests
from contextseg.reports.charts import TERMS, chart
from contextseg.studies.simulate.chain import ARMS, ChainStudy, run_chain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

WITHIN = 0.02
"""How near the chain should come to the Dice of full supervision."""


def study_chain(
    study: ChainStudy, folder: Path, progress_bar: ProgressBar = no_progress_bar
) -> DataFrame:
    """Do the study and write its results.

    Args:
        study: What is simulated.
        folder: Where the study is kept: `chain.csv`, `tests.csv`, `summary.md` and `chain.svg`.
        progress_bar: Shows the progress.

    Returns:
        The table, see `run_chain`.

    Raises:
        ContextsegError: As `run_chain`.
    """
    table = run_chain(study, folder, progress_bar)
    write_chain(table, study, folder)
    return table


def write_chain(table: DataFrame, study: ChainStudy, folder: Path) -> str:
    """Write the results of a study into its folder.

    Args:
        table: All rows, see `run_chain`.
        study: What was simulated.
        folder: Where the study is kept.

    Returns:
        The page, in Markdown.
    """
    tests = chain_tests(table)
    pool, rounds = _all_of(folder, "pool.csv"), _all_of(folder, "rounds.csv")
    text = chain_summary(table, tests, pool, rounds, study)
    write_text(folder / "chain.csv", frame_text(table))
    write_text(folder / "tests.csv", frame_text(tests))
    write_text(folder / "summary.md", text)
    with replacing(folder / "chain.svg") as temporary:
        temporary.write_bytes(chain_chart(table))
    return text


def _all_of(folder: Path, name: str) -> DataFrame:
    import pandas as pd

    files = sorted((folder / "cells").glob(f"*/{name}"))
    tables = [read_table_file(path, ("case",)) for path in files]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def chain_means(table: DataFrame) -> DataFrame:
    """Dice of each arm and budget.

    Args:
        table: All rows, see `run_chain`.

    Returns:
        A row for each arm and budget: dsc (mean over classes, cases, then seeds), sd (over the
        seeds' means), nsd, slices, share and drawn_cases (means over seeds), and seeds.

    Example:
        >>> import pandas as pd
        >>> row = {"arm": "chain", "budget": 0.1, "case": "a", "nsd": 0.5, "slices": 4}
        >>> row |= {"share": 0.1, "drawn_cases": 2}
        >>> rows = [row | {"seed": s, "class": c, "dsc": d} for s, c, d in
        ...         ((0, "x", 0.5), (0, "y", 0.7), (1, "x", 0.8), (1, "y", 0.8))]
        >>> chain_means(pd.DataFrame(rows))[["dsc", "sd"]].round(3).values.tolist()
        [[0.7, 0.141]]
    """
    keys = ["arm", "budget", "seed"]
    cases = table.groupby([*keys, "case"], sort=False)[["dsc", "nsd"]].mean()
    seeds = cases.groupby(keys, sort=False).mean()
    spent = table.groupby(keys, sort=False)[["slices", "share", "drawn_cases"]].first()
    groups = seeds.join(spent).groupby(["arm", "budget"], sort=False)
    means = groups.mean()
    means.insert(1, "sd", groups["dsc"].std())
    means["seeds"] = groups.size()
    return means.reset_index()


def chain_tests(table: DataFrame) -> DataFrame:
    """Paired tests of the chain against every other arm, patient by patient, at each budget.

    Args:
        table: All rows, see `run_chain`.

    Returns:
        A row for each budget and other arm: budget, other, n (patients), difference (chain minus
        other, mean over patients), low, high (its 95 % interval), effect, p, and p_holm over the
        tests of the budget. The class is the mean over all where there are several. Empty without
        the arm "chain", or with it alone.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    everything = table[table["arm"] == "all"]
    overall = "overall" if table["class"].nunique() > 1 else table["class"].iloc[0]
    for budget in sorted(table.loc[table["arm"] != "all", "budget"].unique()):
        part = pd.concat([table[(table["budget"] == budget) & (table["arm"] != "all")], everything])
        block = []
        for other in part["arm"].unique():
            pair = part[part["arm"].isin(["chain", other])]
            if other == "chain" or pair["arm"].nunique() < 2:
                continue
            seeds = set.intersection(*(set(g["seed"]) for _, g in pair.groupby("arm")))
            pair = pair[pair["seed"].isin(seeds)].sort_values("arm", key=lambda a: a != "chain")
            tests, _ = paired_tests(pair, by=("arm",), over=("seed",), metrics=("dsc",))
            if not len(tests):
                continue
            test = tests[tests["class"] == overall].iloc[0]
            kept = {k: test[k] for k in ("n", "difference", "low", "high", "effect", "p")}
            block.append({"budget": budget, "other": other, "seeds": len(seeds), **kept})
        for line, p in zip(block, holm([line["p"] for line in block])):
            lines.append({**line, "p_holm": float(p)})
    return pd.DataFrame(lines)


# --- the page -------------------------------------------------------------------------------------


def chain_summary(
    table: DataFrame, tests: DataFrame, pool: DataFrame, rounds: DataFrame, study: ChainStudy
) -> str:
    """A Markdown page of a study.

    Args:
        table: All rows, see `run_chain`.
        tests: From `chain_tests`.
        pool: Expected and true Dice of unlabelled cases, a row for each; may be empty.
        rounds: A row for each round of each cell.
        study: What was simulated.

    Returns:
        The page.
    """
    cases, seeds = table["case"].nunique(), table["seed"].nunique()
    method = "`supervised`"
    if any(ARMS[name].unlabelled for name in study.chosen):
        method += f" (the arm that learns from unlabelled scans: by `{study.method}`)"
    settings = ", ".join(study.settings) or "the defaults"
    parts = [
        "# The chain without a person",
        f"Dice of {cases} locked test cases, classes {', '.join(table['class'].unique())}; "
        f"{plural(seeds, 'seed')}. Trained by {method}; {settings}. A budget is a share of all "
        f"slices that hold a structure in the training cases; {study.slices} {study.plane} slices "
        "of a case are labelled before the next is taken. Mean over cases ± standard deviation "
        "over seeds.",
        _means_text(table),
        "![Dice against slices spent](chain.svg)",
        _goal_text(table),
        "## The chain against the others\n\n"
        "Chain minus the other, patient by patient: mean difference [95 % interval over patients], "
        "Wilcoxon's signed-rank test, corrected over the tests of a budget (Holm).\n\n"
        + _tests_text(tests),
        _order_text(tests, pool),
        _fills_text(rounds),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _means_text(table: DataFrame) -> str:
    means = chain_means(table)
    lines = ["| arm | budget | slices | cases | Dice | NSD |", "|---|--:|--:|--:|--:|--:|"]
    for row in means.to_dict("records"):
        about = ARMS[row["arm"]].about if row["arm"] in ARMS else ""
        sd = "" if np.isnan(row["sd"]) else f" ± {row['sd']:.3f}"
        lines.append(
            f"| {row['arm']}: {about} | {row['budget']:.0%} | {row['slices']:.0f} "
            f"({row['share']:.1%}) | {row['drawn_cases']:.1f} | {row['dsc']:.3f}{sd} "
            f"| {row['nsd']:.3f} |"
        )
    return "\n".join(lines)


def _goal_text(table: DataFrame) -> str:
    """Whether the chain came near full supervision, at each budget."""
    means = chain_means(table).set_index("arm")
    if not {"all", "chain"} <= set(means.index):
        return ""
    full = float(means.loc[["all"], "dsc"].iloc[0])
    lines = [f"Goal: within {WITHIN} of full supervision ({full:.3f})."]
    for row in means.loc[["chain"]].to_dict("records"):
        gap = full - row["dsc"]
        reached = "reached" if gap <= WITHIN else "not reached"
        lines.append(
            f"At {row['share']:.1%} of the slices the chain is {gap:+.3f} away: {reached}."
        )
    return " ".join(lines)


def _tests_text(tests: DataFrame) -> str:
    if not len(tests):
        return "No other arm."
    lines = [
        "| budget | other | patients | difference | effect | p | p (Holm) |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in tests.to_dict("records"):
        lines.append(
            f"| {row['budget']:.0%} | {row['other']} | {row['n']} | {row['difference']:+.3f} "
            f"[{row['low']:+.3f}, {row['high']:+.3f}] | {row['effect']:+.2f} | {row['p']:.3f} "
            f"| {row['p_holm']:.3f} |"
        )
    return "\n".join(lines)


def _order_text(tests: DataFrame, pool: DataFrame) -> str:
    """Whether the order of the worklist teaches more, and how well it finds the worst."""
    from scipy.stats import spearmanr

    parts = ["## Does the worklist's order teach more?\n"]
    orders = tests[tests["other"].isin(["chain-random", "chain-size"])] if len(tests) else tests
    for row in orders.to_dict("records"):
        known = row["p_holm"] < 0.05
        verdict = "a difference" if known else "no difference that could be told from chance"
        parts.append(
            f"- {row['budget']:.0%}, expected Dice against {row['other'].split('-')[1]}: "
            f"{row['difference']:+.3f} (p = {row['p']:.3f}, {row['p_holm']:.3f} corrected): "
            f"{verdict}."
        )
    if len(pool):
        values = []
        for _, cell in pool.groupby(["arm", "seed", "budget"]):
            if len(cell) > 3 and cell["expected_dice"].nunique() > 1 and cell["dsc"].nunique() > 1:
                values.append(float(spearmanr(cell["expected_dice"], cell["dsc"]).statistic))
        if values:
            parts.append(
                f"\nRank correlation of expected and true Dice over the cases that nobody had "
                f"labelled: mean {np.mean(values):.2f}, from {min(values):.2f} to "
                f"{max(values):.2f} in {len(values)} rounds."
            )
    return "\n".join(parts) if len(parts) > 1 else ""


def _fills_text(rounds: DataFrame) -> str:
    if not len(rounds) or not rounds["fill_dice"].notna().any():
        return ""
    mean = rounds["fill_dice"].mean()
    hours = rounds["seconds"].sum() / 3600
    return (
        f"Filled scans that were trained on had a mean Dice of {mean:.3f} against the truth. "
        f"The {len(rounds)} rounds took {hours:.2f} hours."
    )


def chain_chart(table: DataFrame) -> bytes:
    """Draw the Dice of each arm against the share of slices spent.

    Args:
        table: All rows, see `run_chain`.

    Returns:
        An SVG file; the same for the same table.
    """
    means = chain_means(table)
    names = [name for name in ARMS if name in set(means["arm"])]

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            part, colour = means[means["arm"] == name], TERMS[place % len(TERMS)]
            if name == "all":
                axes.axhline(float(part["dsc"].iloc[0]), color="0.5", linestyle="--", label=name)
                continue
            axes.errorbar(
                100 * part["share"],
                part["dsc"],
                yerr=part["sd"].fillna(0),
                color=colour,
                marker="o",
                markersize=3.5,
                capsize=2,
                label=name,
            )
        axes.set_xlabel("slices spent, % of all")
        axes.set_ylabel("Dice of locked cases")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)

    return chart(draw, 6.0)
