"""A comparison as tables: one for all classes together and one for each class.

In Markdown, CSV and LaTeX. A number is bold where it is the best of those it competes with (the
same label budget) and the paired test says so against every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.cells import frame_text
from contextseg.disk import write_text
from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.evaluation.statistics import (
    LEVEL,
    RESAMPLES,
    case_values,
    describe,
    paired_tests,
)
from contextseg.metrics import DEFAULT_METRICS, METRICS, MISSED, NSD, OVERALL

if TYPE_CHECKING:
    from pandas import DataFrame

AS_IT_WAS = "summary.json"
"""In the column `source`: scores taken from such a file, not measured here."""

_ARROWS = {"higher": "↑", "lower": "↓", None: ""}


@dataclass(frozen=True)
class Results:
    """The statistics of a comparison: everything that its tables and its page show.

    Attributes:
        means: The table of `statistics.describe`, of all metrics.
        pairs: The tests of `statistics.paired_tests`, of the metrics shown.
        differences: The differences that were tested, patient by patient.
        cases: The table of `statistics.case_values`, of the metrics shown.
        by: The columns that name a row: method, and budget where there are several.
        metrics: The metrics shown and tested.
        alpha: p below which, after Holm's correction, a difference is significant.
        caption: The data, the seeds and the test, in words; every table has it.
        marked: Methods whose scores were taken from a file, not measured here.
        curves: Metric -> `learning_curve.learning_curve`, where there are several label budgets.
    """

    means: DataFrame
    pairs: DataFrame
    differences: DataFrame
    cases: DataFrame
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    alpha: float
    caption: str
    marked: frozenset[str]
    curves: Mapping[str, DataFrame] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The classes, all of them together ("overall") first."""
        names = list(dict.fromkeys(map(str, self.means["class"])))
        return sorted(names, key=lambda name: name != OVERALL)

    def rows(self, class_name: str) -> list[dict[str, Any]]:
        """The rows of the table of a class, few labels first.

        Args:
            class_name: One of `classes`.

        Returns:
            For each thing compared its `key` (one text for each column of `by`), `metrics` (metric
            -> its line of `means`, and "bold"), and the counts n_missed, n_spurious, n_absent and
            n_rows.
        """
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        for line in self.means[self.means["class"] == class_name].to_dict("records"):
            key = tuple(str(line[name]) for name in self.by)
            counts = {str(name): value for name, value in line.items()}
            row = rows.setdefault(key, {"key": key, "metrics": {}, **counts})
            if line["metric"] in self.metrics:
                row["metrics"][line["metric"]] = {**line, "bold": self._is_best(class_name, line)}
        return [rows[key] for key in sorted(rows, key=lambda key: budget_order(key[1:]))]

    def tests(self, class_name: str) -> int:
        """Number of tests that were corrected for in the table of a class."""
        if not len(self.pairs):
            return 0
        return int(self.pairs.loc[self.pairs["class"] == class_name, "p"].notna().sum())

    def headings(self) -> list[str]:
        """The headings of the columns that name a row."""
        return ["Method", *("Labels" if n == "budget" else n.capitalize() for n in self.by[1:])]

    def title(self, row: Mapping[str, Any]) -> list[str]:
        """The cells that name one of `rows`; a dagger marks scores that were not measured here."""
        method, *rest = row["key"]
        return [method + "†" * (method in self.marked), *rest]

    def _is_best(self, class_name: str, line: Mapping[Any, Any]) -> bool:
        """Whether the test prefers this number to each other of its column and budget."""
        if not len(self.pairs):
            return False
        pairs = self.pairs[
            (self.pairs["class"] == class_name) & (self.pairs["metric"] == line["metric"])
        ]
        for name in self.by[1:]:
            pairs = pairs[pairs[name] == line[name]]

        method = str(line[self.by[0]])
        is_a = pairs["a"] == method
        is_b = pairs["b"] == method
        better = (is_a & (pairs["effect"] > 0)) | (is_b & (pairs["effect"] < 0))
        significant = better & (pairs["p_holm"] < self.alpha)
        competes = is_a | is_b
        return bool(competes.any() and significant[competes].all())


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that every metric is in the catalogue.

    Args:
        metrics: Names of metrics.

    Raises:
        ContextsegError: A name is unknown.
    """
    for name in metrics:
        if name not in METRICS:
            raise ContextsegError(name, "no such metric", did_you_mean(name, METRICS))


def results(
    table: DataFrame,
    *,
    data: str,
    split: str,
    metrics: Sequence[str] = DEFAULT_METRICS,
    over: Sequence[str] = ("seed",),
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    note: str = "",
) -> Results:
    """Compute the statistics of a comparison of methods.

    Args:
        table: A row for each run, case and class: method, seed, case, class, status, the metrics,
            and where there are any budget and patient.
        data: Name of the data set.
        split: Name of the cases that were scored.
        metrics: The metrics to show and to test; one without a value is left out.
        over: Columns that tell repetitions apart.
        alpha: p below which, after Holm's correction, a difference is significant.
        resamples: Resamples of the bootstrap.
        note: Last sentence of the caption.

    Returns:
        The statistics, which `markdown`, `latex` and the page of a comparison show.

    Raises:
        ContextsegError: The table is empty, or a metric is unknown.
    """
    if not len(table):
        raise ContextsegError(
            data, "there is nothing to compare", "predict and evaluate some cases first"
        )
    check_metrics(metrics)
    has_budgets = "budget" in table and table["budget"].nunique() > 1
    by = ("method", "budget") if has_budgets else ("method",)
    shown = tuple(name for name in metrics if name in table and table[name].notna().any())

    means = describe(table, metrics=METRICS, by=by, over=over, resamples=resamples)
    pairs, differences = paired_tests(
        table, metrics=shown, by=by, within=by[1:], over=over, resamples=resamples
    )
    from_file = table[table["source"] == AS_IT_WAS] if "source" in table else table[:0]
    sentences = [
        _data_and_runs(table, data, split, over, resamples),
        _tolerances(table) if NSD in shown else "",
        "† as its own summary.json says, not measured again." if len(from_file) else "",
        note,
    ]
    return Results(
        means=means,
        pairs=pairs,
        differences=differences,
        cases=case_values(table, metrics=shown, by=by, over=over),
        by=by,
        metrics=shown,
        alpha=alpha,
        caption=" ".join(filter(None, sentences)).strip(),
        marked=frozenset(from_file["method"].astype(str)),
    )


def save_results(results: Results, folder: str | Path, name: str) -> None:
    """Write NAME.md and NAME.tex to be read, NAME.csv (all means) and NAME-pairs.csv (all tests).

    Args:
        results: What to write.
        folder: Where to write it.
        name: NAME of the files.
    """
    write_text(Path(folder) / f"{name}.md", markdown(results))
    write_text(Path(folder) / f"{name}.tex", latex(results, name))
    for end, frame in (("", results.means), ("-pairs", results.pairs)):
        write_text(Path(folder) / f"{name}{end}.csv", frame_text(frame))


def markdown(results: Results) -> str:
    """All tables in Markdown, one under the other.

    Args:
        results: What to show.

    Returns:
        The text; the caption and the paired differences stand under the first table.
    """
    parts = []
    for class_name in results.classes:
        heads = [*results.headings(), *_columns(results), "Missed", "Spurious", "Absent"]
        n_names = len(results.by)
        rule = [*["---"] * n_names, *["--:"] * (len(heads) - n_names)]
        lines = [_line(heads), _line(rule)]
        for row in results.rows(class_name):
            cells = [
                _cell(row["metrics"].get(metric), metric, "**{}**", "± ")
                for metric in results.metrics
            ]
            lines.append(_line([*map(_safe, results.title(row)), *cells, *_counts(row)]))
        parts += [f"## {class_title(class_name)}", "\n".join(lines)]
        if class_name == results.classes[0]:
            parts += [_caption(results, class_name), *_pairs(results, class_name)]
        else:
            count = plural(results.tests(class_name), "test")
            parts.append(f"As above; {count} in this table.")
    return "\n\n".join(parts) + "\n"


def latex(results: Results, label: str = "comparison") -> str:
    r"""All tables as LaTeX floats with booktabs rules (`\usepackage{booktabs}`).

    Args:
        results: What to show.
        label: Beginning of the floats' labels.

    Returns:
        The LaTeX source.
    """
    return "\n\n".join(_float(results, name, label) for name in results.classes) + "\n"


def _float(results: Results, class_name: str, label: str) -> str:
    """The table of one class as a LaTeX float."""
    arrows = {"↑": "$\\uparrow$", "↓": "$\\downarrow$"}
    columns = _columns(results)
    for arrow, command in arrows.items():
        columns = [column.replace(arrow, command) for column in columns]
    heads = [*results.headings(), *columns, "Missed", "Spurious", "Absent"]

    lines: list[str] = []
    budget_before = None
    for row in results.rows(class_name):
        budget = row["key"][1:]
        if budget_before not in (None, budget):
            lines.append(r"\midrule")
        budget_before = budget
        cells = [
            _cell(row["metrics"].get(metric), metric, r"\textbf{{{}}}", r"$\pm$ ")
            for metric in results.metrics
        ]
        cells = [cell.replace("–", "--") for cell in cells]
        lines.append(" & ".join([*map(_tex, results.title(row)), *cells, *_counts(row)]) + r" \\")

    caption = _tex(f"{class_title(class_name)}. {_caption(results, class_name)}")
    name = "".join(c for c in class_name if c.isalnum())
    alignment = "l" * len(results.by) + "c" * len(results.metrics) + "rrr"
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}-{name}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def conventions_markdown(table: DataFrame) -> str:
    """The table of `evaluate.compare_conventions` in Markdown.

    Args:
        table: That table.

    Returns:
        The text; a sentence for an empty table.
    """
    if not len(table):
        return "No case could be scored."
    names = [str(name) for name in table.columns[2:]]
    lines = [_line(["Class", "Metric", *names]), _line(["---", "---", *["--:"] * len(names)])]
    for row in table.to_dict("records"):
        metric = METRICS[str(row["metric"])]
        values = [_number(row[name], metric.digits) for name in names]
        lines.append(_line([str(row["class"]), metric.title, *values]))
    return "\n".join(lines)


# --- words that the page of a comparison shares ---------------------------------------------------


def class_title(class_name: str) -> str:
    """A class as a heading: "All classes" for all together."""
    return "All classes" if class_name == OVERALL else class_name


def budget_order(key: Sequence[str]) -> float:
    """Sorts label budgets by number, all labels last.

    Args:
        key: What follows the method in a row's key: its budget, or nothing.

    Returns:
        The budget as a number; infinite for "all" and where there is none.
    """
    return float(key[0]) if key and key[0].isdecimal() else float("inf")


def metric_heading(name: str) -> str:
    """A metric's heading with its unit, and an arrow towards the better.

    Args:
        name: Name of a metric in the catalogue.

    Returns:
        The heading: "HD95, mm ↓".
    """
    metric = METRICS[name]
    return f"{metric.title} {_ARROWS[metric.direction]}".strip()


def p_text(p: float) -> str:
    """A p value with three digits.

    Args:
        p: The value; NaN for none.

    Returns:
        The text; a dash for NaN.

    Example:
        >>> p_text(0.0312), p_text(1e-5), p_text(float("nan"))
        ('0.031', '<0.001', '–')
    """
    if isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


# --- parts of a table -----------------------------------------------------------------------------


def _data_and_runs(
    table: DataFrame, data: str, split: str, over: Sequence[str], resamples: int
) -> str:
    """The data, the repetitions and the interval, in words."""
    cases = table["case"].nunique()
    patients = table["patient"].nunique() if "patient" in table else cases
    of_cases = plural(cases, "case")
    if patients != cases:
        of_cases += f" of {plural(patients, 'patient')}"

    runs = "one run"
    seeds = sorted(table["seed"].dropna().unique()) if "seed" in table else []
    if seeds:
        runs = f"{plural(len(seeds), 'seed')} ({', '.join(str(int(seed)) for seed in seeds)})"
    folds = len(set(table["fold"].dropna()) - {""}) if "fold" in over else 1
    if folds > 1:
        runs += f" of each of {folds} folds"
    return (
        f"{data}, {split}: mean over {of_cases}, then over {runs}, ± s.d. over these, "
        f"[{100 * LEVEL:g} % bootstrap interval over patients, {resamples:,} resamples]. "
        "Missed and spurious structures count in every mean; their numbers are over all runs."
    )


def _tolerances(table: DataFrame) -> str:
    """The tolerances of the NSD, in words."""
    if "tolerance_mm" not in table:
        return ""
    tolerances = sorted(table["tolerance_mm"].dropna().unique())
    return f"NSD at {' and '.join(f'{mm:g}' for mm in tolerances)} mm."


def _caption(results: Results, class_name: str) -> str:
    """The caption of the table of a class, with its tests."""
    tests = results.tests(class_name)
    if not tests:
        return f"{results.caption} Nothing was tested."
    others = "every other row" + (" with as many labels" if len(results.by) > 1 else "")
    return (
        f"{results.caption} Bold: better than {others}, p < {results.alpha:g} (Wilcoxon's "
        "signed-rank test, paired by patient, two-sided; Holm's correction for the "
        f"{plural(tests, 'test')} of this table)."
    )


def _pairs(results: Results, class_name: str) -> list[str]:
    """The paired differences of one class in Markdown."""
    if not len(results.pairs):
        return []
    columns = ["Pair", "Metric", "n", "Difference", "Effect", "p", "Holm"]
    heads = [*results.headings()[1:], *columns]
    lines = [_line(heads), _line(["---"] * (len(results.by) + 1) + ["--:"] * 5)]
    for row in results.pairs[results.pairs["class"] == class_name].to_dict("records"):
        metric = METRICS[row["metric"]]
        difference = _number(row["difference"], metric.digits)
        cells = [
            *(str(row[name]) for name in results.by[1:]),
            _safe(f"{row['a']} - {row['b']}"),
            metric.title,
            str(row["n"]),
            f"{difference} {_interval(row, metric.digits)}".strip(),
            _number(row["effect"], 2),
            p_text(row["p"]),
            p_text(row["p_holm"]),
        ]
        lines.append(_line(cells))
    explanation = (
        "Difference: mean over patients of the first minus the second, with its interval. Effect: "
        "matched-pairs rank-biserial correlation, positive for the first."
    )
    return ["### Paired differences", "\n".join(lines), explanation]


def _columns(results: Results) -> list[str]:
    return [metric_heading(name) for name in results.metrics]


def _cell(line: dict[str, Any] | None, metric: str, bold: str, plus_minus: str) -> str:
    if line is None or isnan(line["mean"]):
        return "–"
    digits = METRICS[metric].digits
    mean = _number(line["mean"], digits)
    sd = "" if isnan(line["sd"]) else f"{plus_minus}{_number(line['sd'], digits)}"
    parts = [bold.format(mean) if line["bold"] else mean, sd, _interval(line, digits)]
    return " ".join(filter(None, parts))


def _interval(line: Any, digits: int) -> str:
    if isnan(line["low"]):
        return ""
    return f"[{_number(line['low'], digits)}, {_number(line['high'], digits)}]"


def _counts(row: dict[str, Any]) -> list[str]:
    return [f"{row[f'n_{MISSED}']}/{row['n_rows']}", str(row["n_spurious"]), str(row["n_absent"])]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def _safe(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|")


def _tex(text: str) -> str:
    r"""Any text as LaTeX.

    >>> print(_tex("a_b & 5 % ± 0.1"))
    a\_b \& 5 \% $\pm$ 0.1
    """
    marks = {c: f"\\{c}" for c in "&%#_${}"} | {
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    marks |= {
        "\\": r"\textbackslash{}",
        "±": r"$\pm$",
        "–": "--",
        "†": r"$^\dagger$",
        "<": "$<$",
        ">": "$>$",
    }
    return "".join(marks.get(c, c) for c in text)
