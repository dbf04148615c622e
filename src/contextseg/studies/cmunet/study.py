"""The whole: arrange the scans, count their slices, train every row, measure slices, tabulate.

A study's folder holds:

- `dataset/`: the 17 scans as links, unless the data set is one of 10/2/5 itself.
- `prepared/`: a run that is only preprocessed; the others share its cache.
- `slices.json`: how many slices there are, and the rows with their settings.
- `compared/`: the comparison of all runs (`contextseg compare`), whose cells are resumed one by
  one; in each run's folder `slices-best.csv` and `slices-last.csv`.
- `slices.csv`: a row for each run, its best and its last weights, case and class.
- `table.md`, `tests.csv`: the table, and its tests.
- `study.json`: what was asked, and with which versions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.cells import frame_text, read_table_file
from contextseg.console import ProgressBar, no_progress_bar
from contextseg.data.layouts import Case, open_dataset
from contextseg.disk import lock_folder, read_json, write_json, write_text, writing
from contextseg.errors import ContextsegError
from contextseg.evaluation import evaluate
from contextseg.inputs import damage_named, from_json, read_tensors
from contextseg.methods import Method
from contextseg.pipeline import references
from contextseg.predict.record import weights_digest
from contextseg.predictor import Member, Predictor
from contextseg.provenance import provenance
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.studies.cmunet.arrange import TableScans, arrange_seventeen
from contextseg.studies.cmunet.rows import (
    ROWS,
    Asked,
    Slices,
    method_word,
    parse_asked,
    planning_of,
)
from contextseg.studies.cmunet.table import significance, table_described, table_markdown
from contextseg.studies.compare import compare, parse_grid
from contextseg.studies.compare.cell import TEST, log_test_evaluation
from contextseg.studies.compare.comparison import TEST_LOG
from contextseg.studies.compare.grid import Cell, cells

if TYPE_CHECKING:
    from pandas import DataFrame

RUNS_FOLDER = "compared"
BEST, LAST = "best", "last"
SLICES_CONVENTION = "cmu-net"
PLANNED = ("dataset", "classes", "spacing_mm", "patch_vox", "widths")
"""What the table says of the plan."""


@dataclass(frozen=True, repr=False)
class CMUNetTable:
    """How far the table is. `str` of it is what the command line prints.

    Attributes:
        text: What would run, or the table as Markdown.
        table: `table.md`. None where nothing was run.
        slices: `slices.csv`: a row for each run, weights, case and class. None where nothing was
            run.
    """

    text: str
    table: Path | None = None
    slices: Path | None = None

    @property
    def cases(self) -> DataFrame:
        """The content of `slices.csv`; empty where nothing was run."""
        import pandas as pd

        if self.slices is None:
            return pd.DataFrame()
        return read_table_file(
            self.slices,
            (
                "case",
                "class",
                "patient",
            ),
        )

    def __repr__(self) -> str:
        return f"CMUNetTable({str(self.table) if self.table else 'not run'})"

    def __str__(self) -> str:
        return self.text


def reproduce_cmunet(
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    *,
    run: bool = False,
    rows: str = "",
    epochs: int = 0,
    seeds: str = "",
    trial: bool = False,
    settings: Sequence[str] = (),
    progress_bar: ProgressBar = no_progress_bar,
) -> CMUNetTable:
    """Make the table of the CMU-Net paper, and the rows that it names as future work.

    The same call resumes what was stopped; more seeds or rows are added to what is there.

    Args:
        dataset: A labelled data set. None says what is done.
        output: Folder for everything that is made.
        run: Train; else the rows are described, and the scans arranged.
        rows: Names of `ROWS` with commas between; "" for all.
        epochs: Epochs of every training, each every slice once; 0 for the paper's 100.
        seeds: Seeds with commas between; "" for ten runs, as the paper.
        trial: Two epochs and one seed, where `epochs` and `seeds` do not say otherwise.
        settings: `name=value` words for every row, after the paper's.
        progress_bar: Shows the progress of each stage.

    Returns:
        What would run, or the table.

    Raises:
        ContextsegError: A row does not exist, the data set has too few labelled patients, or a run
            failed.
    """
    asked = parse_asked(rows, epochs, seeds, trial, settings)
    if dataset is None:
        return CMUNetTable(table_described(asked))
    if output is None:
        raise ContextsegError("--output", "no folder to work in", "say where, as in -o OUT")
    out = Path(output).absolute()
    with lock_folder(out):
        arranged = arrange_seventeen(dataset, out / "dataset")
        if not run:
            return CMUNetTable(table_described(asked, arranged))
        slices = _count_slices(arranged, out, asked, progress_bar)
        methods = {row.name: method_word(row, asked, slices) for row in asked.rows}
        numbers = ",".join(map(str, asked.seeds))
        grid = parse_grid(arranged.folder, out / RUNS_FOLDER, methods, numbers, folds="0")
        counted = {"train": slices.train, "validation": slices.validation}
        write_json(out / "slices.json", {"slices": counted, "rows": methods})
        compare(grid, progress_bar=progress_bar)
        data = open_dataset(arranged.folder)
        grid_cells = cells(grid, data)
        tested = [case for case in data.test if case.label]
        frames = []
        with progress_bar("slices") as progress:
            for done, cell in enumerate(grid_cells, 1):
                frames += _measured(cell, tested, out / RUNS_FOLDER / TEST_LOG)
                progress(done, len(grid_cells))
        return _write(out, arranged, asked, slices, frames)


def _count_slices(
    arranged: TableScans, out: Path, asked: Asked, progress_bar: ProgressBar
) -> Slices:
    """Preprocess the cases once, and count their slices on the network's grid."""
    planning = planning_of(asked.rows[0], asked)
    run = Run(
        out / "prepared",
        Settings(str(arranged.folder), fold=0, planning=planning),
        progress_bar,
    )
    run.check()
    run.make_plan()
    run.preprocess()
    with writing(out):
        (out / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # it is there, or links cannot be made: then they are made again
        os.symlink(Path("..", "prepared", "cache"), out / RUNS_FOLDER / "cache", True)
    train, validation = (
        sum(case.image.shape[1] for case in run.cached([c for c in part if c.label]))
        for part in run.split
    )
    return Slices(train, validation)


# --- measuring ------------------------------------------------------------------------------------


def _measured(cell: Cell, cases: Sequence[Case], log: Path) -> list[DataFrame]:
    """The rows of a cell: of its deployed weights, and of its last ones where they are others."""
    frames = [_of_weights(cell, BEST, cases, log)]
    last = Run.open(cell.folder).stage_folders("train")[-1] / "last.pt"
    if last.exists():
        frames.append(_of_weights(cell, LAST, cases, log, last))
    else:
        frames[0]["weights"] = LAST
    return frames


def _of_weights(
    cell: Cell, which: str, cases: Sequence[Case], log: Path, weights: Path | None = None
) -> DataFrame:
    """Scores of the test cases: of slices, and of volumes beside them."""

    path = cell.folder / f"slices-{which}.csv"
    if not path.exists():
        run = Run.open(cell.folder)
        predictions = cell.folder / TEST / "predictions"
        if weights:
            predictions = cell.folder / which
            _predict_with(run, weights, f"{cell.name}-{which}", cases, predictions, log)
        pairs = references(run.dataset, cases, predictions)
        regions = run.plan.region_values()
        table, failed = evaluate(
            pairs, regions, ignore=run.dataset.ignore, convention=SLICES_CONVENTION
        )
        volumes, _ = evaluate(pairs, regions, ignore=run.dataset.ignore)
        for name, why in failed.items():
            raise ContextsegError(name, why, "delete the run's folder, and start it again")
        keys = ["case", "class"]
        solid = volumes[[*keys, "dsc", "hd95_mm"]]
        solid = solid.rename(columns={"dsc": "dsc_3d", "hd95_mm": "hd95_mm_3d"})
        table = table[[*keys, "status", "dsc", "hd_mm"]].merge(solid, on=keys)
        write_text(path, frame_text(table))
    table = read_table_file(
        path,
        (
            "case",
            "class",
        ),
    )
    patients = {case.name: case.patient for case in cases}
    return table.assign(
        run=cell.name,
        method=cell.method,
        seed=cell.settings.seed,
        weights=which,
        patient=table["case"].map(patients),
    )


def _predict_with(
    run: Run, weights: Path, name: str, cases: Sequence[Case], folder: Path, log: Path
) -> None:
    """Predict with other weights of a run; its test split is scored once with each."""

    method: Method = run.finished()
    device = next(method.parameters()).device
    remedy = "delete the run's folder, and give the same command again"
    with damage_named(weights, remedy, "these weights cannot be used"):
        method.load_state_dict(read_tensors(weights, remedy, device))
    log_test_evaluation(log, name, weights_digest(method), len(cases))
    predictor = Predictor([Member(method.eval(), run.plan)], run.settings.prediction)
    failed = predictor.predict_cases(cases, folder, run.dataset.ending)
    for case, why in failed.items():
        raise ContextsegError(case, f"it could not be predicted: {why}", "mend it")


def _write(
    out: Path, arranged: TableScans, asked: Asked, slices: Slices, frames: Sequence[DataFrame]
) -> CMUNetTable:
    """Write `slices.csv`, `tests.csv` and `table.md`."""
    import pandas as pd

    table = pd.concat(frames, ignore_index=True)
    write_text(out / "slices.csv", frame_text(table))
    compared = significance(table)
    write_text(out / "tests.csv", frame_text(compared))
    plan = read_json(out / "prepared" / "plan.json")
    study = {
        "rows": [row.name for row in asked.rows],
        "epochs": asked.epochs,
        "seeds": list(asked.seeds),
        "settings": list(asked.settings),
        "slices": asdict(slices),
        "scans": {name: value for name, value in asdict(arranged).items() if name != "folder"},
        "plan": {name: plan[name] for name in PLANNED},
        "provenance": provenance(),
    }
    write_json(out / "study.json", study)
    text = table_text(out / "slices.csv", out / "study.json")
    write_text(out / "table.md", text)
    return CMUNetTable(text, out / "table.md", out / "slices.csv")


def table_text(cases: str | Path, study: str | Path) -> str:
    """The table of a finished study as Markdown, from its two files alone.

    Args:
        cases: `slices.csv`.
        study: `study.json`.

    Returns:
        The text.
    """

    table = read_table_file(
        cases,
        (
            "case",
            "class",
            "patient",
        ),
    )
    content = read_json(study)
    rows = tuple(ROWS[name] for name in content["rows"])
    seeds = tuple(content["seeds"])
    asked = Asked(rows, content["epochs"], seeds, tuple(content["settings"]))
    scans = content["scans"]
    train, validation, test = (tuple(scans[name]) for name in ("train", "validation", "test"))
    return table_markdown(
        table,
        significance(table),
        asked,
        from_json(Slices, content["slices"]),
        TableScans(Path(), train, validation, test, scans["origin"]),
        content["plan"],
    )
