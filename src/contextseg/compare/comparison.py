"""The whole comparison: leak check, cells, the table, what other tools made, and the statistics.

comparison.json            what was asked, and with which versions
check/                     every problem of the data set, looked for once
budgets.json               which patients' labels were used
runs/RUN/                  a run each; cache/ is theirs together
test_evaluations.jsonl     each time that the test split was scored
table.csv                  a row for each run, case and class
validation.* and test.*    the comparison tables: .md, .tex, .csv, -pairs.csv with the paired tests, and, where there
                           are label budgets, -curve.csv
report.html                the same to look at, with charts and the worst cases
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.compare.cell import TEST, VALIDATION, Work, alone, evaluations, tables, unlock
from contextseg.compare.grid import ALL, BUDGETS, Cell, Grid, cells
from contextseg.compare.pools import in_processes, in_turn, on_cluster
from contextseg.data.check import Finding, check
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.roi import restricted
from contextseg.disk import Problem, digest, read_json, replacing, write_json
from contextseg.experiments.importing import Source, find, imported
from contextseg.experiments.learning import learning_curve
from contextseg.experiments.tables import AS_IT_WAS, SHOWN, Results, check_metrics, results, save
from contextseg.job import references
from contextseg.metrics import DSC, NSD
from contextseg.provenance import PeakMemory, provenance
from contextseg.run import Run, Watch, quiet

if TYPE_CHECKING:
    from pandas import DataFrame

LOG = "test_evaluations.jsonl"
_TEXT = {"case": str, "class": str, "label": str}
_FIRST = ["run", "method", "budget", "seed", "fold", "split", "source", "case", "patient", "class"]


@dataclass(frozen=True)
class Comparison:
    """Where a comparison left its results; `pages` are the Markdown tables, of "validation" and "test".

    `report` is the page to look at, with the tables, charts and worst cases of all splits.
    """

    folder: Path
    table: Path
    pages: dict[str, Path]
    report: Path


def compare(
    grid: Grid,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    options: Mapping[str, Any] | None = None,
    others: Mapping[str, str | Path] | None = None,
    test: bool = True,
    metrics: Sequence[str] = SHOWN,
    watch: Watch = quiet,
) -> Comparison:
    """Train, validate and test every cell of the grid, and compare. The same call goes on where it was stopped.

    `jobs` cells at a time; `cluster` "slurm" or "local" by submitit, with its `options`. `others` are predictions of
    other tools, by name ("NAME@5" for those that learnt from 5 labels); see `importing`. With `test` False the test
    split stays locked: for choosing. `metrics` are shown and tested; the table has all.

    A cell with a fold is scored on its validation cases, and every cell on the test cases, once, when it is finished.
    Raises `Problem` for a data set with errors, or with the same patient or the same scan on two sides of a split;
    after all other cells are done, for cells that failed; and if a cell would be tested a second time.
    """
    check_metrics(metrics)  # now, not after hours of training
    with alone(grid.folder):
        data = restricted(open_dataset(grid.dataset), grid.roi)
        made = cells(grid, data)
        due = due_splits(made, data, test)
        _check(grid, data, made, watch)
        works = [_prepare(cell, grid, test) for cell in made]
        todo = [work for cell, work in zip(made, works) if not finished(cell, due[cell.name])]
        asked = {**asdict(grid), "folder": str(grid.folder), "others": {n: str(p) for n, p in (others or {}).items()}}
        _record(grid.folder / "comparison.json", asked, bool(todo))
        if todo:
            _finish(grid, todo, jobs, cluster, options or {}, watch)
        rows = [frame for cell in made for frame in _rows(cell, due[cell.name], data)]
        rows += _others(grid, data, made, others or {}, due, watch)
        return _save(grid, data, made, rows, metrics)


def _record(path: Path, asked: Mapping[str, Any], todo: bool) -> None:
    """Write what was asked and with which versions, unless that stands there already and nothing is left to do."""
    now = json.loads(json.dumps({"asked": asked, "provenance": provenance()}))
    before = read_json(path) if path.exists() else {"asked": None, "provenance": {}}
    same = all(before["provenance"].get(name) == now["provenance"][name] for name in ("python", "versions"))
    if todo or before["asked"] != now["asked"] or not same:
        write_json(path, now)


def finished(cell: Cell, due: Sequence[str]) -> bool:
    """Whether all splits that are due have been scored."""
    reported = any(cell.folder.glob("*-report/done.json"))
    return reported and set(due) <= set(tables(cell, _validated(cell), True))


def _validated(cell: Cell) -> bool:
    return cell.settings.fold != -1


def due_splits(made: Sequence[Cell], data: Dataset, test: bool) -> dict[str, list[str]]:
    """The splits that each cell is scored on, validation first."""
    tested = test and any(case.label for case in data.test)
    due = {cell.name: [VALIDATION] * _validated(cell) + [TEST] * tested for cell in made}
    for name, splits in due.items():
        if not splits:
            what = f"there is nothing to score {name} on: no fold, and no test case with a label"
            remedy = "give folds, as in --folds 0" if test else "give folds, as in --folds 0, or unlock the test split"
            raise Problem(data.folder, what, remedy)
    return due


def _finish(
    grid: Grid, todo: Sequence[Work], jobs: int, cluster: str | None, options: Mapping[str, Any], watch: Watch
) -> None:
    if cluster is None and jobs == 1:
        failed = in_turn(todo, watch)
    else:
        with watch(f"{len(todo)} runs") as tell:
            if cluster:
                failed = on_cluster(todo, grid.folder, cluster, jobs, options, tell)
            else:
                failed = in_processes(todo, jobs, tell)
    if failed:
        name, why = next(iter(failed.items()))
        what = f"{len(failed)} of {len(todo)} runs failed; {name}: {why}"
        raise Problem(grid.folder / "runs", what, "mend it; the same command does what is left")


# --- before anything starts -------------------------------------------------------------------------------------------


def _prepare(cell: Cell, grid: Grid, test: bool) -> Work:
    """The cell's run, with its check done and its cache shared. Raises `Problem` if it was begun otherwise."""
    Run(cell.folder, cell.settings)
    if not (cell.folder / "01-check" / "done.json").exists():
        with replacing(cell.folder / "01-check") as temporary:
            shutil.copytree(grid.folder / "check", temporary)
    (grid.folder / "cache").mkdir(exist_ok=True)
    with suppress(OSError):  # it is there, or links cannot be made, and then the run has its own
        os.symlink(Path("..", "..", "cache"), cell.folder / "cache", target_is_directory=True)
    return Work(cell.name, str(cell.folder), cell.settings.to_json(), str(grid.folder / LOG), test)


def _check(grid: Grid, data: Dataset, made: Sequence[Cell], watch: Watch) -> None:
    """Look for every problem of the data set, once for as long as its files do not change."""
    done = grid.folder / "check" / "done.json"
    cases = [*data.train, *data.test]
    files = sorted({path for case in cases for path in (*case.images, case.label) if path})
    files += sorted(data.folder.glob("*.json"))
    names = digest([[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files], grid.roi)
    known = read_json(done) if done.exists() else {}
    if known.get("files") != names:
        started, memory = time.monotonic(), PeakMemory()
        with watch("check") as tell:
            found = check(grid.dataset, progress=tell, roi=grid.roi)
        write_json(done.with_name("findings.json"), [asdict(finding) for finding in found])
        write_json(done, {"seconds": round(time.monotonic() - started, 2), **memory.costs(), "files": names})
    else:
        found = [Finding(**finding) for finding in read_json(done.with_name("findings.json"))]
    errors = [f for f in found if f.level == "error"] + _leaks(found, data, {c.settings.fold for c in made})
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        remedy = f"{errors[0].remedy}; `contextseg check {grid.dataset}` lists every problem"
        raise Problem(errors[0].where, errors[0].what + more, remedy)


def _leaks(found: Sequence[Finding], data: Dataset, numbers: set[int]) -> list[Finding]:
    """Of the scans that are twins, those that a fold trains on and validates on."""
    leaks = []
    for fold in sorted(numbers - {-1}):
        training, validation = ({case.name for case in side} for side in folds(data, fold))
        for finding in found:
            twins = {finding.case, *re.split(r", | and ", finding.what.removeprefix("the same voxels as "))}
            if finding.what.startswith("the same voxels as ") and twins & training and twins & validation:
                leaks.append(finding)
    return leaks


# --- the table --------------------------------------------------------------------------------------------------------


def _rows(cell: Cell, due: Sequence[str], data: Dataset) -> list[DataFrame]:
    """The cell's rows, a frame for each split."""
    import pandas as pd

    fold = ALL if cell.settings.fold == -1 else str(cell.settings.fold)
    head: dict[str, Any] = {
        "run": cell.name,
        "method": cell.method,
        "budget": cell.budget,
        "seed": cell.settings.seed,
        "fold": fold,
    }
    there, frames = tables(cell, _validated(cell), True), []
    for split in due:
        table = _with_patients(pd.read_csv(there[split], dtype=_TEXT), data)
        made = _predictions(there[split])
        files = [str(made / f"{case}{data.ending}") for case in table["case"]]  # which may have moved since
        frames.append(table.assign(**head, split=split, source="contextseg", prediction_file=files))
    return frames


def _predictions(table: Path) -> Path:
    """The folder of the predictions that a run's table is about."""
    beside = table.parent / "predictions"
    return beside if beside.is_dir() else sorted(table.parent.parent.glob("*-predict"))[-1]


def _with_patients(table: DataFrame, data: Dataset) -> DataFrame:
    patients = {case.name: case.patient for case in (*data.train, *data.test)}
    return table.assign(patient=table["case"].map(patients))


def _others(
    grid: Grid,
    data: Dataset,
    made: Sequence[Cell],
    others: Mapping[str, str | Path],
    due: Mapping[str, Sequence[str]],
    watch: Watch,
) -> list[DataFrame]:
    """The rows of other tools' work, on the splits that they have predictions for."""
    held = {c.name: c for fold in {c.settings.fold for c in made} for c in folds(data, fold)[1] if c.label}
    splits = {VALIDATION: list(held.values()), TEST: [case for case in data.test if case.label]}
    splits = {name: cases for name, cases in splits.items() if any(name in part for part in due.values())}
    frames = []
    for title, path in others.items():
        name, _, budget = title.partition("@")
        source = find(path)
        parts = {split: cases for split, cases in splits.items() if any(c.name in source.cases for c in cases)}
        if not parts:
            remedy = f"give predictions called as the cases of: {', '.join(splits)}"
            raise Problem(path, f"none of the cases of this comparison is there ({title})", remedy)
        for split, cases in parts.items():
            with watch(f"{title} {split}") as tell:
                table = _import(grid, data, title, source, split, cases, tell)
            frames.append(
                _with_patients(table, data).assign(
                    run=title, method=name, budget=budget or ALL, seed=None, fold="", split=split
                )
            )
    return frames


def _import(
    grid: Grid, data: Dataset, title: str, source: Source, split: str, cases: Sequence[Case], tell: Any
) -> DataFrame:
    """One other tool's rows on one split; measured again only when its files have changed."""
    import pandas as pd

    folder = grid.folder / "imported" / re.sub(r"[^\w.+-]+", "_", title) / split
    files = sorted({path for case in cases for path in source.cases.get(case.name, ())})
    names = digest(*files)
    if split == TEST and source.kind != AS_IT_WAS:
        unlock(grid.folder / LOG, title, names, len(cases))
    done = folder / "done.json"
    if not done.exists() or read_json(done)["files"] != names:
        table = imported(source, references(data, cases, Path()), data, folder / "labels", progress=tell)
        with replacing(folder / "metrics.csv") as temporary:
            table.to_csv(temporary, index=False)
        write_json(done, {"files": names, "from": str(source.path)})
    return pd.read_csv(folder / "metrics.csv", dtype=_TEXT)


def _save(
    grid: Grid, data: Dataset, made: Sequence[Cell], rows: Sequence[DataFrame], metrics: Sequence[str] = SHOWN
) -> Comparison:
    import pandas as pd

    from contextseg.report import Compared, write_comparison

    table = pd.concat(rows, ignore_index=True)
    table = table[[*_FIRST, *(name for name in table if name not in _FIRST)]]
    path = grid.folder / "table.csv"
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
    pages, compared = {}, {}
    notes = {
        VALIDATION: "For choosing: what is chosen by these numbers has yet to be tested.",
        TEST: _note(grid, table),
    }
    for split, title in ((VALIDATION, "validation cases"), (TEST, "test split")):
        part = table[table["split"] == split]
        if len(part):
            over = ("seed", "fold") if split == TEST else ("seed",)
            labels = f"Labels: patients whose labels were used ({BUDGETS})." if part["budget"].nunique() > 1 else ""
            note = f"{labels} {notes[split]}".strip()
            found = results(part, data=data.name, split=title, over=over, metrics=metrics, note=note)
            save(found, grid.folder, split)
            curves = _curves(grid, data, split, found)
            compared[split] = Compared(found.means, found.pairs, found.metrics, found.caption, found.marked, curves)
            pages[split] = grid.folder / f"{split}.md"
    facts = read_json(grid.folder / "comparison.json")
    page, title = grid.folder / "report.html", f"{data.name}: {table['method'].nunique()} methods compared"
    seen, regions = _seen(data, TEST if TEST in pages else VALIDATION)
    write_comparison(page, title=title, table=table, compared=compared, provenance=facts, cases=seen, regions=regions)
    return Comparison(grid.folder, path, pages, page)


def _curves(grid: Grid, data: Dataset, split: str, found: Results) -> dict[str, DataFrame]:
    """Where there are label budgets: each measure against the labelled patients, also in SPLIT-curve.csv."""
    import pandas as pd

    if "budget" not in found.by:
        return {}
    everything = len({case.patient for case in data.train if case.label})
    curves = {metric: learning_curve(found.means, everything, metric) for metric in (DSC, NSD)}
    with replacing(grid.folder / f"{split}-curve.csv") as temporary:
        pd.concat([curve.assign(metric=name) for name, curve in curves.items()]).to_csv(temporary, index=False)
    return curves


def _seen(data: Dataset, split: str) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
    """The files of the cases of a split, and the label values of the classes: what pictures are drawn from."""
    cases = [
        {"case": case.name, "image": [str(path) for path in case.images], "reference": str(case.label)}
        for case in (data.test if split == TEST else data.train)
        if case.label
    ]
    regions = {name: [data.values[k] for k in union] for name, union in data.regions.items()}
    return cases, regions | ({} if data.ignore is None else {"ignore": [data.ignore]})


def _note(grid: Grid, table: DataFrame) -> str:
    """How often the test split was looked at, for this table and in this folder."""
    here = table.loc[(table["split"] == TEST) & (table["source"] != AS_IT_WAS), "run"].nunique()
    total = len(evaluations(grid.folder / LOG))
    return f"Test split scored once for each of {here} runs ({total} in this comparison so far: {LOG})."
