"""The comparison as a person reads it: one table for all classes together and one for each, in Markdown, CSV and LaTeX.

A number is bold where it is the best of those it competes with (the same label budget) and the paired test says so
against every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.disk import Problem, replacing, write_text
from contextseg.experiments.statistics import HIGHER, LEVEL, LOWER, RESAMPLES, contrasts, describe
from contextseg.metrics import DSC, HD95, METRICS, MISSED, NSD, OVERALL

if TYPE_CHECKING:
    from pandas import DataFrame

SHOWN = (DSC, NSD, HD95)
AS_IT_WAS = "summary.json"
"""In the column `source`: scores taken from such a file, not measured here."""

_HEADINGS = {  # column: (heading, digits)
    "dsc": ("Dice", 3),
    "iou": ("IoU", 3),
    "sen": ("Sensitivity", 3),
    "prc": ("Precision", 3),
    "hd95_mm": ("HD95, mm", 1),
    "hd_mm": ("HD, mm", 1),
    "assd_mm": ("ASSD, mm", 2),
    "nsd": ("NSD", 3),
    "volume_diff_ml": ("Volume diff., ml", 2),
    "rvd": ("Rel. volume diff.", 3),
    "fp_near_ml": ("FP near, ml", 1),
    "fp_far_ml": ("FP far, ml", 1),
}


@dataclass(frozen=True)
class Results:
    """A comparison: `means` and `pairs` are the tables of `statistics.describe` and `contrasts`; the rest is told.

    by        the columns that name a row (method, and budget where there are several).
    metrics   the columns shown, and tested.   alpha: p below which, after Holm's correction, a number is bold.
    caption   what every table says of the data, the seeds and the test; `marked`: rows with scores taken as they were.
    """

    means: DataFrame
    pairs: DataFrame
    by: tuple[str, ...]
    metrics: tuple[str, ...]
    alpha: float
    caption: str
    marked: frozenset[str]

    @property
    def classes(self) -> list[str]:
        """The tables there are, all classes together first."""
        names = list(dict.fromkeys(self.means["class"]))
        return sorted(names, key=lambda name: name != OVERALL)

    def rows(self, klass: str) -> list[dict[str, Any]]:
        """One for each thing compared: its names, `metrics` (a dict of describe's lines, with "bold"), and counts."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for line in self.means[self.means["class"] == klass].to_dict("records"):
            key = tuple(str(line[name]) for name in self.by)
            row = found.setdefault(key, {"key": key, "metrics": {}, **{str(n): v for n, v in line.items()}})
            if line["metric"] in self.metrics:
                row["metrics"][line["metric"]] = {**line, "bold": self._best(klass, line)}
        return [found[key] for key in sorted(found, key=lambda key: _budget(key[1:]))]

    def tests(self, klass: str) -> int:
        """How many tests were corrected for in the table of that class."""
        return int(self.pairs.loc[self.pairs["class"] == klass, "p"].notna().sum()) if len(self.pairs) else 0

    def _best(self, klass: str, line: Any) -> bool:
        """Whether the test prefers this number to each other of its column and budget."""
        if not len(self.pairs):
            return False
        pairs = self.pairs[(self.pairs["class"] == klass) & (self.pairs["metric"] == line["metric"])]
        for name in self.by[1:]:
            pairs = pairs[pairs[name] == line[name]]
        me = str(line[self.by[0]])
        better = ((pairs["a"] == me) & (pairs["effect"] > 0)) | ((pairs["b"] == me) & (pairs["effect"] < 0))
        mine = (pairs["a"] == me) | (pairs["b"] == me)
        return bool(mine.any() and (better & (pairs["p_holm"] < self.alpha))[mine].all())


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise `Problem` for a name that no table has."""
    for name in metrics:
        if name not in METRICS:
            raise Problem(name, "no such metric", f"choose from {', '.join(METRICS)}")


def results(
    table: DataFrame,
    *,
    data: str,
    split: str,
    metrics: Sequence[str] = SHOWN,
    over: Sequence[str] = ("seed",),
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    note: str = "",
) -> Results:
    """Compare the methods of a table (columns method, seed, case, class, status, metrics; budget and patient if any).

    `data` and `split` name what was scored, `note` is the caption's last sentence; `over` tells repetitions apart.
    Raises `Problem` for an empty table and for an unknown metric.
    """
    if not len(table):
        raise Problem(data, "there is nothing to compare", "predict and evaluate some cases first")
    check_metrics(metrics)
    budgets = "budget" in table and table["budget"].nunique() > 1
    by, within = (("method", "budget"), ("budget",)) if budgets else (("method",), ())
    shown = tuple(name for name in metrics if name in table and table[name].notna().any())
    how: dict[str, Any] = {"by": by, "over": over, "resamples": resamples}
    means, pairs = describe(table, metrics=METRICS, **how), contrasts(table, within=within, metrics=shown, **how)
    taken = table[table["source"] == AS_IT_WAS] if "source" in table else table[:0]
    caption = _caption(table, data, split, over, resamples, note, bool(len(taken)), NSD in shown)
    return Results(means, pairs, by, shown, alpha, caption, frozenset(taken["method"].astype(str)))


def save(found: Results, folder: str | Path, name: str) -> None:
    """Write NAME.md and NAME.tex to be read; all means to NAME.csv, all paired tests to NAME-pairs.csv."""
    write_text(Path(folder) / f"{name}.md", markdown(found))
    write_text(Path(folder) / f"{name}.tex", latex(found, name))
    for end, frame in (("", found.means), ("-pairs", found.pairs)):
        with replacing(Path(folder) / f"{name}{end}.csv") as temporary:
            frame.to_csv(temporary, index=False)


def markdown(found: Results) -> str:
    """All tables, one under the other; under the first its caption and its paired differences."""
    parts = []
    for klass in found.classes:
        heads = [*_names(found), *_columns(found, "↑", "↓"), "Missed", "Spurious", "Absent"]
        lines = [_line(heads), _line([*["---"] * len(found.by), *["--:"] * (len(heads) - len(found.by))])]
        for row in found.rows(klass):
            cells = [_cell(row["metrics"].get(metric), metric, "**{}**", "± ") for metric in found.metrics]
            lines.append(_line([*map(_safe, _titles(found, row)), *cells, *_counts(row)]))
        parts += [f"## {_title(klass)}", "\n".join(lines)]
        if klass == found.classes[0]:
            parts += [_told(found, klass), *_pairs(found, klass)]
        else:
            parts.append(f"As above; {_plural(found.tests(klass), 'test')} in this table.")
    return "\n\n".join(parts) + "\n"


def latex(found: Results, label: str = "comparison") -> str:
    r"""All tables as LaTeX floats with booktabs rules (`\usepackage{booktabs}`)."""
    parts = []
    for klass in found.classes:
        heads = [*_names(found), *_columns(found, "$\\uparrow$", "$\\downarrow$"), "Missed", "Spurious", "Absent"]
        lines: list[str] = []
        before = None
        for row in found.rows(klass):
            lines += [r"\midrule"] if before not in (None, row["key"][1:]) else []
            before = row["key"][1:]
            cells = [_cell(row["metrics"].get(metric), metric, r"\textbf{{{}}}", r"$\pm$ ") for metric in found.metrics]
            titles = map(_tex, _titles(found, row))
            lines.append(" & ".join([*titles, *(c.replace("–", "--") for c in cells), *_counts(row)]) + r" \\")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_tex(f'{_title(klass)}. {_told(found, klass)}')}}}",
                    rf"\label{{tab:{label}-{''.join(c for c in klass if c.isalnum())}}}",
                    rf"\begin{{tabular}}{{{'l' * len(found.by)}{'c' * len(found.metrics)}rrr}}",
                    r"\toprule",
                    " & ".join(heads) + r" \\",
                    r"\midrule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def conventions_markdown(frame: DataFrame) -> str:
    """The table of `compare_conventions` in Markdown; a sentence where it is empty."""
    if not len(frame):
        return "No case could be scored."
    names = [str(name) for name in frame.columns[2:]]
    lines = [_line(["Class", "Metric", *names]), _line(["---", "---", *["--:"] * len(names)])]
    for row in frame.to_dict("records"):
        heading, digits = _HEADINGS[str(row["metric"])]
        lines.append(_line([str(row["class"]), heading, *(_number(row[name], digits) for name in names)]))
    return "\n".join(lines)


# --- parts of a table -------------------------------------------------------------------------------------------------


def _caption(
    table: DataFrame,
    data: str,
    split: str,
    over: Sequence[str],
    resamples: int,
    note: str,
    taken: bool,
    with_nsd: bool,
) -> str:
    cases = table["case"].nunique()
    patients = table["patient"].nunique() if "patient" in table else cases
    of = _plural(cases, "case") + ("" if patients == cases else f" of {_plural(patients, 'patient')}")
    seeds = [str(int(s)) for s in sorted(table["seed"].dropna().unique())] if "seed" in table else []
    runs = f"{_plural(len(seeds), 'seed')} ({', '.join(seeds)})" if seeds else "one run"
    trained = len(set(table["fold"].dropna()) - {""}) if "fold" in over else 1
    runs += f" of each of {trained} folds" if trained > 1 else ""
    text = f"{data}, {split}: mean over {of}, then over {runs}, ± s.d. over these"
    text += f", [{100 * LEVEL:g} % bootstrap interval over patients, {resamples:,} resamples]. "
    text += "Missed and spurious structures count in every mean; their numbers are over all runs."
    if with_nsd and "tolerance_mm" in table:
        text += f" NSD at {' and '.join(f'{mm:g}' for mm in sorted(table['tolerance_mm'].dropna().unique()))} mm."
    text += " † as its own summary.json says, not measured again." if taken else ""
    return f"{text} {note}".strip()


def _told(found: Results, klass: str) -> str:
    tests = found.tests(klass)
    if not tests:
        return f"{found.caption} Nothing was tested."
    others = "every other row" + (" with as many labels" if len(found.by) > 1 else "")
    return (
        f"{found.caption} Bold: better than {others}, p < {found.alpha:g} (Wilcoxon's signed-rank test, paired by "
        f"patient, two-sided; Holm's correction for the {_plural(tests, 'test')} of this table)."
    )


def _pairs(found: Results, klass: str) -> list[str]:
    """The paired differences of one class in Markdown."""
    if not len(found.pairs):
        return []
    heads = [*_names(found)[1:], "Pair", "Metric", "n", "Difference", "Effect", "p", "Holm"]
    lines = [_line(heads), _line(["---"] * (len(found.by) + 1) + ["--:"] * 5)]
    for row in found.pairs[found.pairs["class"] == klass].to_dict("records"):
        heading, digits = _HEADINGS[row["metric"]]
        difference = f"{_number(row['difference'], digits)} {_interval(row, digits)}".strip()
        cells = [_safe(f"{row['a']} - {row['b']}"), heading, str(row["n"]), difference, _number(row["effect"], 2)]
        lines.append(_line([*(str(row[name]) for name in found.by[1:]), *cells, _p(row["p"]), _p(row["p_holm"])]))
    told = "Difference: mean over patients of the first minus the second, with its interval. Effect: matched-pairs "
    return ["### Paired differences", "\n".join(lines), told + "rank-biserial correlation, positive for the first."]


def _names(found: Results) -> list[str]:
    return ["Method", *("Labels" if name == "budget" else name.capitalize() for name in found.by[1:])]


def _columns(found: Results, up: str, down: str) -> list[str]:
    signs = {**dict.fromkeys(HIGHER, f" {up}"), **dict.fromkeys(LOWER, f" {down}")}
    return [_HEADINGS[metric][0] + signs.get(metric, "") for metric in found.metrics]


def _titles(found: Results, row: dict[str, Any]) -> list[str]:
    method, *rest = row["key"]
    return [method + ("†" if method in found.marked else ""), *rest]


def _cell(line: dict[str, Any] | None, metric: str, bold: str, plus_minus: str) -> str:
    if line is None or isnan(line["mean"]):
        return "–"
    digits = _HEADINGS[metric][1]
    mean = _number(line["mean"], digits)
    sd = "" if isnan(line["sd"]) else f"{plus_minus}{_number(line['sd'], digits)}"
    return " ".join(filter(None, [bold.format(mean) if line["bold"] else mean, sd, _interval(line, digits)]))


def _interval(line: Any, digits: int) -> str:
    return "" if isnan(line["low"]) else f"[{_number(line['low'], digits)}, {_number(line['high'], digits)}]"


def _counts(row: dict[str, Any]) -> list[str]:
    return [f"{row[f'n_{MISSED}']}/{row['n_rows']}", str(row["n_spurious"]), str(row["n_absent"])]


def _budget(rest: Sequence[str]) -> float:
    """For sorting: label budgets by number, all labels last."""
    return float(rest[0]) if rest and rest[0].isdecimal() else float("inf")


def _title(klass: str) -> str:
    return "All classes" if klass == OVERALL else klass


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float, digits: int) -> str:
    return "–" if isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def _p(value: float) -> str:
    return "–" if isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _plural(count: int, one: str) -> str:
    return f"{count} {one}{'' if count == 1 else 's'}"


def _safe(text: str) -> str:
    return text.replace("|", "\\|")


def _tex(text: str) -> str:
    r"""Any text as LaTeX.

    >>> print(_tex("a_b & 5 % ± 0.1"))
    a\_b \& 5 \% $\pm$ 0.1
    """
    marks = {c: f"\\{c}" for c in "&%#_${}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    marks |= {"\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "†": r"$^\dagger$", "<": "$<$", ">": "$>$"}
    return "".join(marks.get(c, c) for c in text)
