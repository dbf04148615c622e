"""The simulated annotator over a data set: which cases, and what is kept of each.

The folder of a study holds:

- `study.json`: what was asked (`Study`), and where it came from.
- `cases/CASE.csv`: the rows of a finished case, which is never done again.
- `annotator.csv`, `summary.md`, `curves-*.svg`: written by `results.write_results`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.cells import frame_text, read_table_file
from contextseg.console import Progress
from contextseg.data.layouts import Case, Dataset, open_dataset, to_classes
from contextseg.disk import changes, read_json, write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import onto
from contextseg.pipeline import open_propagation_model
from contextseg.propagation import AXES, NETWORK_WAYS, WAYS, PropagationModel, fill
from contextseg.provenance import provenance
from contextseg.runs import Run
from contextseg.studies.simulate.annotator import FillFunction, annotate_structure, check_rules
from contextseg.studies.simulate.network import train_and_fill
from contextseg.volume import Volume, read, read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

ALL_WAYS = (*WAYS, "network")
"""Ways to fill the slices between: those of `propagation.fill`, and a 2-D network trained on the
labelled slices alone.
"""


@dataclass(frozen=True)
class Study:
    """What is simulated.

    Attributes:
        dataset: Folder of a labelled data set.
        model: Folder of a finished run of method "stcn"; "" without one.
        classes: Names of classes or regions, each a structure by itself; () is all.
        ways: Of `ALL_WAYS`; () is all of `propagation.WAYS`, those that need a model only with one.
        starts: As in `annotate_structure`.
        rules: As in `annotate_structure`.
        first: As in `annotate_structure`.
        rounds: As in `annotate_structure`.
        plane: "axial", "coronal" or "sagittal": the slices that are labelled.
        tolerance_mm: Tolerance of the NSD.
        steps: Steps of training of the way "network", in each round.
        seed: Seed of the way "network".

    Raises:
        ContextsegError: For an unknown way, plane, start or rule, a way that needs a model without
            one, and numbers that are too small.
    """

    dataset: str
    model: str = ""
    classes: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()
    starts: tuple[str, ...] = ("uniform",)
    rules: tuple[str, ...] = ("worst", "advice")
    first: int = 3
    rounds: int = 8
    plane: str = "axial"
    tolerance_mm: float = 2.0
    steps: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        for way in self.ways:
            if way not in ALL_WAYS:
                raise ContextsegError(
                    f"--ways {way}", "there is no such way", did_you_mean(way, ALL_WAYS)
                )
            if way in NETWORK_WAYS and not self.model:
                remedy = "give --model RUN, made by `contextseg train --method stcn`"
                raise ContextsegError(f"--ways {way}", "it needs a network", remedy)
        if self.plane not in AXES:
            raise ContextsegError(
                f"--plane {self.plane}", "there is no such plane", f"choose {', '.join(AXES)}"
            )
        check_rules(self.starts, self.rules, self.first, self.rounds)

    @property
    def filled_by(self) -> tuple[str, ...]:
        """The ways, with the default written out."""
        return self.ways or tuple(way for way in WAYS if self.model or way not in NETWORK_WAYS)


def simulate_cases(
    study: Study, folder: Path, at_most: int | None = None, progress: Progress = lambda *_: None
) -> tuple[DataFrame, dict[str, str]]:
    """Annotate the cases of a study that are not done yet.

    Args:
        study: What to simulate.
        folder: Where the study is kept.
        at_most: Number of cases, in their order; None: all of `study_cases`.
        progress: Called with (done, of, {}), counting structures and ways.

    Returns:
        The table of all finished cases, and the failures by case. The table has a row for each
        case, class, way, start, rule and round, with the columns of `annotate_structure` and
        trained: "yes" or "no", whether the model was trained on that class, or "no model". A class
        that a scan does not hold, or that was not annotated in it, has no rows.

    Raises:
        ContextsegError: If `folder` holds another study, for an unknown class, and for a run that
            is not finished or not of method "stcn".
    """
    import pandas as pd

    data = open_dataset(study.dataset)
    run = Run.open(study.model) if study.model else None
    classes = _classes(data, study)
    cases = study_cases(data, run)[:at_most]
    model = open_propagation_model(study.model) if study.model else None
    _note_study(study, folder)
    done, of = 0, len(cases) * len(classes) * len(study.filled_by)
    failed = {}
    for case in cases:
        path = folder / "cases" / f"{case.name}.csv"
        done_after = done + of // len(cases)
        if not path.exists():
            try:
                rows = []
                for part in _case_rows(study, data, case, classes, model):
                    rows += part
                    done += 1
                    progress(done, of, {})
                write_text(path, frame_text(pd.DataFrame(rows)))
            except ContextsegError as problem:
                failed[case.name] = str(problem)
        done = done_after
        progress(done, of, {})
    table = _read([folder / "cases" / f"{case.name}.csv" for case in cases])
    return table, failed


def study_cases(data: Dataset, run: Run | None) -> tuple[Case, ...]:
    """The cases that the annotator works on, none of which the model was trained on.

    Args:
        data: The data set.
        run: The model's run; None without one.

    Returns:
        The labelled test cases. If there is none, those that the run kept for validation; without a
        run, all labelled cases.

    Raises:
        ContextsegError: Where there is none.
    """
    cases = [case for case in data.test if case.label]
    cases = cases or [case for case in (run.split[1] if run else data.train) if case.label]
    if not cases:
        what = "there is no labelled case"
        if run:
            what += " that the model was not trained on"
        raise ContextsegError(
            data.folder, what, "add labelled test cases, or train the run with --fold 0"
        )
    return tuple(cases)


def _classes(data: Dataset, study: Study) -> dict[str, tuple[int, ...]]:
    for name in study.classes:
        if name not in data.regions:
            raise ContextsegError(
                f"--classes {name}",
                f"{data.name} has no class of this name",
                did_you_mean(name, data.regions),
            )
    return {
        name: union
        for name, union in data.regions.items()
        if not study.classes or name in study.classes
    }


def _note_study(study: Study, folder: Path) -> None:
    """Write what is asked, or check that it was the same before. The data set may have moved."""
    path = folder / "study.json"
    asked = json.loads(json.dumps(asdict(study)))
    if not path.exists():
        write_json(path, {"study": asked, "provenance": provenance()})
        return
    if what := changes(read_json(path)["study"], asked, {"dataset"}):
        raise ContextsegError(
            folder, f"this folder holds another study ({what})", "choose another --output folder"
        )


def _case_rows(
    study: Study,
    data: Dataset,
    case: Case,
    classes: dict[str, tuple[int, ...]],
    model: PropagationModel | None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case, a list for each class and way."""
    assert case.label is not None
    scan, label = read(*case.images), read_labels(case.label)
    label = onto(label, scan, case.label)
    known = to_classes(data, label.array, case.label)
    axis = next(i for i, letter in enumerate(label.orientation) if letter in AXES[study.plane])
    for name, union in classes.items():
        parts = {data.classes[k] for k in union}
        annotated = case.annotated is None or parts <= set(case.annotated)
        truth = label.with_array(np.where(known < 0, known, np.isin(known, union)).astype(np.int16))
        if not annotated or not (truth.array == 1).any():
            continue
        trained = "no model"
        if model is not None:
            trained = "yes" if name in model.plan.regions else "no"
        for way in study.filled_by:
            rows = annotate_structure(
                truth,
                axis,
                _fill_function(study, scan, way, model),
                starts=study.starts,
                first=study.first,
                rules=study.rules,
                rounds=study.rounds,
                tolerance_mm=study.tolerance_mm,
            )
            yield [
                {"case": case.name, "class": name, "trained": trained, "way": way, **row}
                for row in rows
            ]


def _fill_function(
    study: Study, scan: Volume, way: str, model: PropagationModel | None
) -> FillFunction:
    if way == "network":
        return lambda labelled, ranges: train_and_fill(
            scan, labelled, study.steps, study.seed, ranges
        )
    network = model if way in NETWORK_WAYS else None
    return lambda labelled, ranges: fill(scan, labelled, network, way, ranges)


def _read(paths: list[Path]) -> DataFrame:
    """The tables of finished cases; an empty file is one of a case without any of the classes."""
    import pandas as pd

    tables = []
    for path in paths:
        if path.exists() and path.read_text(encoding="utf-8").strip():
            table = read_table_file(path, ("case", "class"))
            tables.append(table.rename(columns={"taught": "trained"}))  # its name before 0.2
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
