"""What a comparison leaves: the table, the statistics of each split, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.cells import frame_text, read_table_file
from contextseg.data.layouts import Case, Dataset
from contextseg.disk import read_json, write_text
from contextseg.errors import plural
from contextseg.evaluation.learning_curve import learning_curve
from contextseg.evaluation.tables import AS_IT_WAS, Results, results, save_results
from contextseg.metrics import DEFAULT_METRICS, DSC, NSD
from contextseg.studies.compare.cell import TEST, VALIDATION, logged_evaluations
from contextseg.studies.compare.grid import BUDGETS, Grid

if TYPE_CHECKING:
    from pandas import DataFrame

TEST_LOG = "test_evaluations.jsonl"
DEFAULT_CONVENTION = "default"
_TEXT = dict.fromkeys(("case", "class", "label", "method", "budget", "fold", "patient"), str)
_FIRST = ["run", "method", "budget", "seed", "fold", "split", "source", "case", "patient", "class"]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Where a comparison left its results; the tables are read when they are asked for.

    Attributes:
        folder: The comparison's folder.
        table: `table.csv`, a row for each run, case and class.
        pages: The Markdown tables by split, "validation" and "test".
        report: The page with the tables, charts and worst cases of all splits.
        curves: Where there are label budgets, each metric against the number of labelled patients
            as CSV, by split.
    """

    folder: Path
    table: Path
    pages: dict[str, Path]
    report: Path
    curves: dict[str, Path] = field(default_factory=dict)

    @property
    def cases(self) -> DataFrame:
        """Every run, case and class: the content of `table.csv`."""
        return read_rows_of(self.table)

    @property
    def means(self) -> DataFrame:
        """Means with their intervals: a row for each split, method, budget, class and metric."""
        return self._of_each_split("")

    @property
    def pairs(self) -> DataFrame:
        """The paired tests: a row for each split, two methods, class and metric."""
        return self._of_each_split("-pairs")

    def _of_each_split(self, ending: str) -> DataFrame:
        import pandas as pd

        frames = []
        for split in self.pages:
            path = self.folder / f"{split}{ending}.csv"
            if path.read_text(encoding="utf-8").strip():  # one method alone has no tests
                frames.append(read_rows_of(path))
                frames[-1].insert(0, "split", split)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def __repr__(self) -> str:
        return f"Comparison({str(self.folder)!r}, {' and '.join(self.pages)})"

    def __str__(self) -> str:
        """The Markdown tables of each split, and where every case and the page are."""
        parts = [
            f"\n{split}\n\n{page.read_text(encoding='utf-8')}" for split, page in self.pages.items()
        ]
        return "\n".join([*parts, f"every case  {self.table}", f"report      {self.report}"])

    def _repr_html_(self) -> str:
        means = self.means
        columns = [name for name in means if not str(name).startswith("n_")]
        shown = means.loc[means["metric"].isin(DEFAULT_METRICS), columns]
        return shown.to_html(index=False, float_format="{:.3f}".format)


def read_rows_of(path: Path) -> DataFrame:
    """A table of a comparison, names as text.

    Args:
        path: A CSV file.

    Returns:
        The table.
    """

    return read_table_file(path, tuple(_TEXT))


def write_comparison_tables(
    grid: Grid,
    data: Dataset,
    rows: Sequence[DataFrame],
    metrics: Sequence[str] = DEFAULT_METRICS,
    convention: str = DEFAULT_CONVENTION,
) -> Comparison:
    """Write the table, the statistics of each split, and the page.

    Args:
        grid: What is compared.
        data: The data set.
        rows: Rows of the table, a frame for each run and split.
        metrics: What is shown and tested.
        convention: By whose definitions the rows are.

    Returns:
        Where the results are.
    """
    import pandas as pd

    from contextseg.reports import write_comparison

    table = pd.concat(rows, ignore_index=True)
    table = table[[*_FIRST, *(name for name in table if name not in _FIRST)]]
    folder = results_folder(grid.folder, convention)
    path = folder / "table.csv"
    write_text(path, frame_text(table))
    compared: dict[str, Results] = {}
    curves: dict[str, Path] = {}
    for split in (VALIDATION, TEST):
        part = table[table["split"] == split]
        if not len(part):
            continue
        compared[split] = _statistics(grid, data, split, part, metrics, convention)
        save_results(compared[split], folder, split)
        if compared[split].curves:
            curves[split] = folder / f"{split}-curve.csv"
            _write_curves(compared[split].curves, curves[split])
    page = folder / "report.html"
    regions = data.region_values()
    if data.ignore is not None:
        regions["ignore"] = [data.ignore]
    write_comparison(
        page,
        title=f"{data.name}: {plural(table['method'].nunique(), 'method')} compared",
        table=table,
        compared=compared,
        provenance=read_json(grid.folder / "comparison.json"),
        cases=_files(data.test if TEST in compared else data.train),
        regions=regions,
    )
    pages = {split: folder / f"{split}.md" for split in compared}
    return Comparison(folder, path, pages, page, curves)


def results_folder(folder: Path, convention: str = DEFAULT_CONVENTION) -> Path:
    """Where the tables and the page of a comparison lie.

    Args:
        folder: The comparison's folder.
        convention: Whose definitions.

    Returns:
        The folder itself; for another convention than the default, one in it.
    """
    return folder if convention == DEFAULT_CONVENTION else folder / f"by-{convention}"


def _statistics(
    grid: Grid,
    data: Dataset,
    split: str,
    rows: DataFrame,
    metrics: Sequence[str],
    convention: str,
) -> Results:
    """The statistics of a split; with label budgets also each metric against their number."""
    notes = [grid.note] if grid.note else []
    if convention != DEFAULT_CONVENTION:
        notes.append(f"Metrics by the convention {convention} (docs/measuring.md).")
    if rows["budget"].nunique() > 1:
        notes.append(f"Labels: patients whose labels were used ({BUDGETS}).")
    if split == TEST:
        notes.append(_test_note(grid, rows))
        title = "test split"
        over: tuple[str, ...] = ("seed", "fold")
    else:
        notes.append("For choosing: what is chosen by these numbers has yet to be tested.")
        title = "validation cases"
        over = ("seed",)
    statistics = results(
        rows, data=data.name, split=title, over=over, metrics=metrics, note=" ".join(notes)
    )
    if "budget" not in statistics.by:
        return statistics
    patients = len({case.patient for case in data.train if case.label})
    curves = {metric: learning_curve(statistics.means, patients, metric) for metric in (DSC, NSD)}
    return replace(statistics, curves=curves)


def _write_curves(curves: Mapping[str, DataFrame], path: Path) -> None:
    import pandas as pd

    table = pd.concat([curve.assign(metric=metric) for metric, curve in curves.items()])
    write_text(path, frame_text(table))


def _files(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """The files of labelled cases, from which the page draws pictures."""
    return [
        {
            "case": case.name,
            "image": [str(path) for path in case.images],
            "reference": str(case.label),
        }
        for case in cases
        if case.label
    ]


def _test_note(grid: Grid, rows: DataFrame) -> str:
    """How often the test split was scored, for this table and in this folder."""
    here = rows.loc[rows["source"] != AS_IT_WAS, "run"].nunique()
    total = len(logged_evaluations(grid.folder / TEST_LOG))
    so_far = f"{total} in this comparison so far: {TEST_LOG}"
    return f"Test split scored once for each of {here} runs ({so_far})."
