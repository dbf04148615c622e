"""The whole comparison: leak check, cells, table, results of other tools, statistics, page.

A comparison's folder holds:

- `comparison.json`: what was asked, and with which versions.
- `check/`: every problem of the data set, looked for once.
- `budgets.json`: which patients' labels were used.
- `runs/RUN/`: a run each; they share `cache/`.
- `test_evaluations.jsonl`: each time that the test split was scored.
- `table.csv`: a row for each run, case and class.
- `validation.*` and `test.*`: the tables of each split as .md, .tex and .csv, `-pairs.csv` with the
  paired tests, and `-curve.csv` where there are label budgets.
- `report.html`: the same on a page, with charts and the worst cases.
- `by-CONVENTION/`: tables and page by the definitions of another tool or paper, and `scored/`: what
  they and post-processed rows are made of.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.cells import frame_text
from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.check import check
from contextseg.data.findings import Finding, raise_errors, read_findings
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.roi import restricted
from contextseg.disk import (
    digest,
    lock_folder,
    read_json,
    replacing,
    visible_files,
    write_json,
    write_text,
    writing,
)
from contextseg.errors import ContextsegError, plural
from contextseg.evaluation.importing import Source, find, imported
from contextseg.evaluation.tables import AS_IT_WAS, check_metrics
from contextseg.metrics import DEFAULT_METRICS
from contextseg.pipeline import references
from contextseg.provenance import PeakMemory, provenance
from contextseg.rehearsal import rehearse
from contextseg.runs import Run
from contextseg.studies.compare.cell import (
    TEST,
    VALIDATION,
    Task,
    begun_run,
    cell_scores,
    log_test_evaluation,
)
from contextseg.studies.compare.grid import (
    EVERYTHING,
    Cell,
    Grid,
    cells,
    method_names,
)
from contextseg.studies.compare.pools import run_in_processes, run_in_turn, run_on_cluster
from contextseg.studies.compare.rescored import check_scoring, scored_again
from contextseg.studies.compare.written import (
    DEFAULT_CONVENTION,
    TEST_LOG,
    Comparison,
    read_rows_of,
    write_comparison_tables,
)

if TYPE_CHECKING:
    from pandas import DataFrame

SCORED = "scored"


def compare(
    grid: Grid,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    options: Mapping[str, Any] | None = None,
    others: Mapping[str, str | Path] | None = None,
    test: bool = True,
    metrics: Sequence[str] = DEFAULT_METRICS,
    convention: str = DEFAULT_CONVENTION,
    largest_component: Sequence[str] = (),
    progress_bar: ProgressBar = no_progress_bar,
) -> Comparison:
    """Train, validate and test every cell of the grid, and compare them.

    The same call resumes what was stopped. A cell with a fold is scored on its validation cases,
    and every cell on the test cases, once, when it is finished.

    Args:
        grid: What is compared.
        jobs: Number of cells at a time.
        cluster: "slurm" or "local" to run cells by submitit. None runs them on this machine.
        options: Parameters of submitit.
        others: Predictions of other tools by name ("NAME@5" for those trained with 5 labels); see
            `evaluation.importing`.
        test: Score the test split. False keeps it locked, for choosing.
        metrics: What is shown and tested; the table has all metrics.
        convention: Whose definitions of the metrics, a name in `metrics.CONVENTIONS`. The results
            of another than the default go into the folder `by-NAME`, beside those.
        largest_component: Names of methods that get a further row, METHOD-largest: the same
            predictions, of which the largest connected part is kept.
        progress_bar: Shows the progress of each stage.

    Returns:
        Where the results are.

    Raises:
        ContextsegError: The data set has errors, or the same patient or scan on two sides of a
            split; cells failed, after all others are done; or a cell would be tested again with
            other weights.
    """
    check_metrics(metrics)  # now, not after hours of training
    others = others or {}
    check_scoring(convention, largest_component, method_names(grid))
    if others and convention != DEFAULT_CONVENTION:
        what = "results of other tools stand in their own definitions, and are not scored again"
        remedy = "leave --other out, or score their folders with `contextseg evaluate --convention`"
        raise ContextsegError(f"--convention {convention}", what, remedy)
    with lock_folder(grid.folder):
        data = restricted(open_dataset(grid.dataset), grid.roi)
        grid_cells = cells(grid, data)
        due = due_splits(grid_cells, data, test)
        _rehearse(grid_cells, data)
        _check(grid, data, grid_cells, progress_bar)
        tasks = [_prepare(cell, grid, test) for cell in grid_cells]
        left = [task for cell, task in zip(grid_cells, tasks) if not finished(cell, due[cell.name])]
        _record(grid, others, bool(left))
        if left:
            _run(grid, left, jobs, cluster, options or {}, progress_bar)
        frames = [frame for cell in grid_cells for frame in _rows(cell, due[cell.name], data)]
        chosen = [frame for frame in frames if frame["method"].iloc[0] in largest_component]
        again = partial(scored_again, data=data, folder=grid.folder / SCORED, convention=convention)
        rows = frames
        if convention != DEFAULT_CONVENTION:
            rows = again(frames, largest=False, progress_bar=progress_bar)
        rows += again(chosen, largest=True, progress_bar=progress_bar)
        rows += _other_rows(grid, data, grid_cells, others, due, progress_bar)
        return write_comparison_tables(grid, data, rows, metrics, convention)


def _record(grid: Grid, others: Mapping[str, str | Path], work_left: bool) -> None:
    """Write `comparison.json`: what was asked, and with which versions.

    It stays as it is where nothing is left to do, nothing else is asked, and no version changed.
    """
    path = grid.folder / "comparison.json"
    asked = {
        **asdict(grid),
        "folder": str(grid.folder),
        "others": {name: str(source) for name, source in others.items()},
    }
    now = json.loads(json.dumps({"asked": asked, "provenance": provenance()}))
    before: dict[str, Any] = {}
    if path.exists():
        before = read_json(path, dict[str, Any])
    versions = before.get("provenance")
    same_versions = isinstance(versions, dict) and all(
        versions.get(name) == now["provenance"][name] for name in ("python", "versions")
    )
    if work_left or before.get("asked") != now["asked"] or not same_versions:
        write_json(path, now)


def finished(cell: Cell, due: Sequence[str]) -> bool:
    """Whether a cell is finished, in a run of any version.

    Args:
        cell: The cell.
        due: The splits that it is scored on.

    Returns:
        Whether its run is reported, and all splits that are due are scored.
    """
    run = begun_run(cell)
    return run is not None and run.done("report") and set(due) <= set(cell_scores(cell))


def due_splits(grid_cells: Sequence[Cell], data: Dataset, test: bool) -> dict[str, list[str]]:
    """The splits that each cell is scored on.

    Args:
        grid_cells: The cells.
        data: The data set.
        test: Whether the test split is scored.

    Returns:
        Splits by cell, validation first.

    Raises:
        ContextsegError: A cell has neither validation cases nor test cases with a label.
    """
    tested = test and any(case.label for case in data.test)
    due = {}
    for cell in grid_cells:
        due[cell.name] = [VALIDATION] * cell.validated + [TEST] * tested
        if not due[cell.name]:
            what = (
                f"there is nothing to score {cell.name} on: no fold, and no test case with a label"
            )
            remedy = "give folds, as in --folds 0"
            if not test:
                remedy += ", or unlock the test split"
            raise ContextsegError(data.folder, what, remedy)
    return due


def _run(
    grid: Grid,
    tasks: Sequence[Task],
    jobs: int,
    cluster: str | None,
    options: Mapping[str, Any],
    progress_bar: ProgressBar,
) -> None:
    if cluster is None and jobs == 1:
        failed = run_in_turn(tasks, progress_bar)
    else:
        with progress_bar(plural(len(tasks), "run")) as progress:
            if cluster:
                failed = run_on_cluster(tasks, grid.folder, cluster, jobs, options, progress)
            else:
                failed = run_in_processes(tasks, jobs, progress)
    for name, why in failed.items():
        what = f"{len(failed)} of {len(tasks)} runs failed; {name}: {why}"
        remedy = "mend it; the same command does what is left"
        raise ContextsegError(grid.folder / "runs", what, remedy)


# --- before anything starts -----------------------------------------------------------------------


def _rehearse(grid_cells: Sequence[Cell], data: Dataset) -> None:
    """Refuse settings that a method refuses, once for each method that has a run to begin."""
    for cell in {cell.method: cell for cell in reversed(grid_cells)}.values():
        if begun_run(cell) is None:
            rehearse(cell.settings, data, folds(data, cell.settings.fold), Run.is_model)


def _prepare(cell: Cell, grid: Grid, test: bool) -> Task:
    """The task of a cell, whose run has the comparison's check and shares its cache.

    Raises `ContextsegError` where the folder holds a run with other settings.
    """
    run = Run(cell.folder, cell.settings)
    if not run.done("check"):
        with replacing(cell.folder / "check") as temporary:
            shutil.copytree(grid.folder / "check", temporary)
    with writing(grid.folder):
        (grid.folder / "cache").mkdir(exist_ok=True)
    with suppress(OSError):  # it is there, or links cannot be made, and then the run has its own
        os.symlink(Path("..", "..", "cache"), cell.folder / "cache", target_is_directory=True)
    return Task(
        cell.name, str(cell.folder), cell.settings.to_json(), str(grid.folder / TEST_LOG), test
    )


def _check(
    grid: Grid, data: Dataset, grid_cells: Sequence[Cell], progress_bar: ProgressBar
) -> None:
    """Find every problem of the data set, once for as long as its files do not change."""
    done = grid.folder / "check" / "done.json"
    files = {path for case in (*data.train, *data.test) for path in (*case.images, case.label)}
    paths = sorted(path for path in files if path)
    paths += visible_files(data.folder, "*.json")
    stats = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    names = digest(stats, grid.roi)
    findings = _known_findings(done, names)
    if findings is None:
        started = time.monotonic()
        memory = PeakMemory()
        with progress_bar("check") as progress:
            findings = check(grid.dataset, progress=progress, roi=grid.roi)
        write_json(done.with_name("findings.json"), [asdict(finding) for finding in findings])
        seconds = round(time.monotonic() - started, 2)
        write_json(done, {"seconds": seconds, **memory.costs(), "files": names})
    leaks = _leaks(findings, data, {cell.settings.fold for cell in grid_cells})
    errors = [replace(leak, level="error") for leak in leaks]
    raise_errors([*findings, *errors], grid.dataset)


def _known_findings(done: Path, names: str) -> list[Finding] | None:
    """The findings of a check of the files `names`; None where it has to be done (again).

    Findings without a kind are an older version's, which did not name every case concerned.
    """
    if not done.exists() or read_json(done, dict[str, Any]).get("files") != names:
        return None
    findings = read_findings(done.with_name("findings.json"))
    return findings if all(finding.kind for finding in findings) else None


def _leaks(findings: Sequence[Finding], data: Dataset, numbers: set[int]) -> list[Finding]:
    """Of the scans with the same voxels, those that a fold both trains on and validates on."""
    twins = [finding for finding in findings if finding.kind == "twin"]
    leaks: list[Finding] = []
    for fold in sorted(numbers - {-1}):
        training, validation = ({case.name for case in side} for side in folds(data, fold))
        for finding in twins:
            cases = set(finding.cases)
            if cases & training and cases & validation and finding not in leaks:
                leaks.append(finding)
    return leaks


# --- the table ------------------------------------------------------------------------------------


def _rows(cell: Cell, due: Sequence[str], data: Dataset) -> list[DataFrame]:
    """The rows of a cell, a frame for each split.

    Where the predictions lie is written anew: the folder may have been moved.
    """
    fold = str(cell.settings.fold) if cell.validated else EVERYTHING
    scores = cell_scores(cell)
    frames = []
    for split in due:
        table = _with_patients(read_rows_of(scores[split].table), data)
        predictions = scores[split].predictions
        table = table.assign(
            run=cell.name,
            method=cell.method,
            budget=cell.budget,
            seed=cell.settings.seed,
            fold=fold,
            split=split,
            source="contextseg",
            prediction_file=[str(predictions / f"{c}{data.ending}") for c in table["case"]],
        )
        frames.append(table)
    return frames


def _with_patients(table: DataFrame, data: Dataset) -> DataFrame:
    patients = {case.name: case.patient for case in (*data.train, *data.test)}
    return table.assign(patient=table["case"].map(patients))


def _other_rows(
    grid: Grid,
    data: Dataset,
    grid_cells: Sequence[Cell],
    others: Mapping[str, str | Path],
    due: Mapping[str, Sequence[str]],
    progress_bar: ProgressBar,
) -> list[DataFrame]:
    """The rows of other tools, on the splits that they have predictions for."""
    validated = {
        case.name: case
        for fold in {cell.settings.fold for cell in grid_cells}
        for case in folds(data, fold)[1]
        if case.label
    }
    tested = [case for case in data.test if case.label]
    scored = {split for splits in due.values() for split in splits}
    cases_of = {VALIDATION: list(validated.values()), TEST: tested}
    cases_of = {split: cases for split, cases in cases_of.items() if split in scored}
    frames = []
    for title, path in others.items():
        name, _, budget = title.partition("@")
        source = find(path)
        predicted = {
            split: cases
            for split, cases in cases_of.items()
            if any(case.name in source.cases for case in cases)
        }
        if not predicted:
            what = f"none of the cases of this comparison is there ({title})"
            remedy = f"give predictions called as the cases of: {', '.join(cases_of)}"
            raise ContextsegError(path, what, remedy)
        for split, cases in predicted.items():
            with progress_bar(f"{title} {split}") as progress:
                table = _import(grid, data, title, source, split, cases, progress)
            table = _with_patients(table, data).assign(
                run=title, method=name, budget=budget or EVERYTHING, seed=None, fold="", split=split
            )
            frames.append(table)
    return frames


def _import(
    grid: Grid,
    data: Dataset,
    title: str,
    source: Source,
    split: str,
    cases: Sequence[Case],
    progress: Progress,
) -> DataFrame:
    """The rows of another tool on one split; scored again only where its files have changed."""
    folder = grid.folder / "imported" / re.sub(r"[^\w.+-]+", "_", title) / split
    files = sorted({path for case in cases for path in source.cases.get(case.name, ())})
    names = digest(*files)
    if split == TEST and source.kind != AS_IT_WAS:
        log_test_evaluation(grid.folder / TEST_LOG, title, names, len(cases))
    done = folder / "done.json"
    if not done.exists() or read_json(done, dict[str, Any]).get("files") != names:
        pairs = references(data, cases, Path())
        table = imported(source, pairs, data, folder / "labels", progress=progress)
        write_text(folder / "metrics.csv", frame_text(table))
        write_json(done, {"files": names, "from": str(source.path)})
    return read_rows_of(folder / "metrics.csv")
