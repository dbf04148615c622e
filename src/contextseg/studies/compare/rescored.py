"""Rows of a comparison that need no training: other definitions, and post-processed predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.cells import frame_text, read_table_file
from contextseg.console import ProgressBar
from contextseg.data.components import COMPONENTS_TABLE, keep_largest, write_change
from contextseg.data.layouts import Case, Dataset
from contextseg.disk import digest, read_json, write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.evaluation import evaluate
from contextseg.metrics import CONVENTIONS
from contextseg.pipeline import references
from contextseg.volume import read_labels, write

if TYPE_CHECKING:
    from pandas import DataFrame

LARGEST_ENDING = "-largest"
"""Ending of the name of a row whose predictions keep their largest component alone."""
OWN_COLUMNS = ("run", "method", "budget", "seed", "fold", "split", "source", "patient")
"""What a row has beside its case, class and scores."""


def check_scoring(convention: str, largest: Sequence[str], methods: Sequence[str]) -> None:
    """Refuse a convention, or a method to post-process, that does not exist.

    Args:
        convention: A name in `metrics.CONVENTIONS`.
        largest: Names of methods.
        methods: Names of the methods that are compared.

    Raises:
        ContextsegError: One of them does not exist.
    """
    if convention not in CONVENTIONS:
        remedy = did_you_mean(convention, CONVENTIONS)
        raise ContextsegError(f"--convention {convention}", "no such convention", remedy)
    for name in largest:
        if name not in methods:
            what = "no method of this comparison has this name"
            raise ContextsegError(f"--largest-component {name}", what, did_you_mean(name, methods))


def scored_again(
    frames: Sequence[DataFrame],
    data: Dataset,
    folder: Path,
    convention: str,
    largest: bool,
    progress_bar: ProgressBar,
) -> list[DataFrame]:
    """The rows of predictions that are there, by a convention, perhaps post-processed.

    What was scored is kept in `folder`, and scored again where its files have changed.

    Args:
        frames: Rows of `table.csv`, a frame for each run and split.
        data: The data set.
        folder: Where the scores and post-processed label maps go.
        convention: A name in `metrics.CONVENTIONS`.
        largest: Keep the largest connected part alone, all classes together (a baseline of Li et
            al., IEEE TMI 2023); the rows are then called METHOD-largest.
        progress_bar: Shows the progress.

    Returns:
        A frame for each of `frames`.

    Raises:
        ContextsegError: A case cannot be scored.
    """
    cases = {case.name: case for case in (*data.train, *data.test)}
    results = []
    for frame in frames:
        own = {name: frame[name].iloc[0] for name in OWN_COLUMNS}
        if largest:
            own |= {"run": own["run"] + LARGEST_ENDING, "method": own["method"] + LARGEST_ENDING}
        part = [cases[name] for name in dict.fromkeys(frame["case"])]
        place = folder / convention / str(own["run"]) / str(own["split"])
        predictions = Path(frame["prediction_file"].iloc[0]).parent
        with progress_bar(f"{own['run']} {own['split']}") as progress:
            table = _scores(data, part, predictions, place, convention, largest, progress)
        patients = table["case"].map({name: case.patient for name, case in cases.items()})
        results.append(table.assign(**own | {"patient": patients, "convention": convention}))
    return results


def _scores(
    data: Dataset,
    cases: Sequence[Case],
    predictions: Path,
    place: Path,
    convention: str,
    largest: bool,
    progress: object,
) -> DataFrame:
    """The metrics of some predictions, from `place` where they are there already."""

    files = [(predictions / f"{case.name}{data.ending}", case.label) for case in cases]
    stats = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for pair in files for p in pair if p]
    names = digest(stats, largest, convention)
    done = place / "done.json"
    if not done.exists() or read_json(done)["files"] != names:
        if largest:
            predictions = _largest(cases, predictions, place, data.ending)
        pairs = references(data, cases, predictions)
        table, failed = evaluate(
            pairs,
            data.region_values(),
            ignore=data.ignore,
            convention=convention,
            progress=progress,  # type: ignore[arg-type]
        )
        for case, why in failed.items():
            raise ContextsegError(case, why, "run `contextseg check` on the data set")
        write_text(place / "metrics.csv", frame_text(table))
        write_json(done, {"files": names})
    text = dict.fromkeys(("case", "class", "label", "prediction_file", "reference_file"), str)
    return read_table_file(place / "metrics.csv", tuple(text))


def _largest(cases: Sequence[Case], predictions: Path, place: Path, ending: str) -> Path:
    """The folder of the post-processed label maps; `postprocessing.csv` says what was removed."""
    folder = place / "labels"
    (folder / COMPONENTS_TABLE).unlink(missing_ok=True)
    for case in cases:
        label, change = keep_largest(read_labels(predictions / f"{case.name}{ending}"))
        write(folder / f"{case.name}{ending}", label)
        write_change(folder, case.name, change)
    return folder
