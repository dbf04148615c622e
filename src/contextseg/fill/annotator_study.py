"""The simulated annotator over a data set: which cases, what is kept of each, and what it comes to.

study.json      what was asked (`Study`), and where it came from
cases/CASE.csv  the rows of a finished case, which is never done again
annotator.csv   all of them; `annotator_summary` and `annotator_plot` say what they come to
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.data.layouts import Case, Dataset, open_dataset, to_classes
from contextseg.disk import Problem, changes, did_you_mean, read_json, write_json, write_text
from contextseg.fill.annotator import Fill, annotate, check
from contextseg.fill.annotator_network import from_slices
from contextseg.fill.filling import TAUGHT, WAYS, fill
from contextseg.fill.slices import AXES
from contextseg.provenance import provenance
from contextseg.run import Run
from contextseg.volume import Volume, read, read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

EVERY_WAY = (*WAYS, "network")
"""What fills the slices between: the ways of `filling.fill`, and a 2-D network taught on the labelled slices alone."""

Tell = Callable[..., object]


@dataclass(frozen=True)
class Study:
    """What is simulated.

    model    the folder of a finished run of method stcn; "" without one.   classes  names of classes or regions, each
             a structure by itself; () for all.
    ways     of `EVERY_WAY`; () is all of `filling.WAYS`, those that need a model only with one.
    starts, rules, first, rounds, tolerance_mm   as `annotator.annotate`'s.   plane  of `slices.AXES`.
    steps, seed   of the way "network".
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
            if way not in EVERY_WAY:
                raise Problem(f"--ways {way}", "there is no such way", did_you_mean(way, EVERY_WAY))
            if way in TAUGHT and not self.model:
                remedy = "give --model RUN, made by `contextseg train --method stcn`"
                raise Problem(f"--ways {way}", "it needs a network", remedy)
        if self.plane not in AXES:
            raise Problem(f"--plane {self.plane}", "there is no such plane", f"choose {', '.join(AXES)}")
        check(self.starts, self.rules, self.first, self.rounds)

    @property
    def filled_by(self) -> tuple[str, ...]:
        """The ways, the default being written out."""
        return self.ways or tuple(way for way in WAYS if self.model or way not in TAUGHT)


def simulate(
    study: Study, output: Path, at_most: int | None = None, tell: Tell = lambda *_: None
) -> tuple[DataFrame, dict[str, str]]:
    """Do what is not done yet, in `output`: (table of all finished cases, problems by case).

    The cases are those of `judged`, the first `at_most` of them. The table has a row for each case, class, way, start,
    rule and round, as `annotator.annotate`, and taught: "yes" or "no", whether the model was taught that class, or "no
    model". A class that a scan does not show, or that nobody looked for in it, has no rows. Empty where nothing is
    finished. `tell(done, of, {})` counts structures and ways.

    Raises `Problem` if `output` holds another study, for an unknown class, and for a run that is not finished or
    not of method stcn.
    """
    import pandas as pd

    data, run = open_dataset(study.dataset), Run.open(study.model) if study.model else None
    classes = _classes(data, study)
    cases = judged(data, run)[:at_most]
    method = _method(run) if run else None
    _claim(study, output)
    done, of, failed = 0, len(cases) * len(classes) * len(study.filled_by), {}
    model = (method, run.plan) if run else None
    for case in cases:
        path = output / "cases" / f"{case.name}.csv"
        until = done + of // len(cases)
        if not path.exists():
            try:
                rows = []
                for part in _of_case(study, data, case, classes, model):
                    rows += part
                    done += 1
                    tell(done, of, {})
                write_text(path, pd.DataFrame(rows).to_csv(index=False))
            except Problem as problem:
                failed[case.name] = str(problem)
        done = until
        tell(done, of, {})
    table = _read([output / "cases" / f"{case.name}.csv" for case in cases])
    return table, failed


def judged(data: Dataset, run: Run | None) -> tuple[Case, ...]:
    """The cases that the annotator works on: the labelled test cases, else those that the run held back for validation.

    Without a run nothing was taught, and all labelled cases of a data set without test cases do. Raises `Problem` where
    there is none.
    """
    found = [case for case in data.test if case.label]
    found = found or [case for case in (run.split[1] if run else data.train) if case.label]
    if not found:
        what = "there is no labelled case that the model was not taught" if run else "there is no labelled case"
        raise Problem(data.folder, what, "add labelled test cases, or train the run with --fold 0")
    return tuple(found)


def _classes(data: Dataset, study: Study) -> dict[str, tuple[int, ...]]:
    for name in study.classes:
        if name not in data.regions:
            raise Problem(
                f"--classes {name}", f"{data.name} has no class of this name", did_you_mean(name, data.regions)
            )
    return {name: union for name, union in data.regions.items() if not study.classes or name in study.classes}


def _method(run: Run) -> Any:
    method = run.finished()
    if not method.guided:
        what = f"a run of method {run.settings.method}, which needs no labelled slices"
        raise Problem(run.folder, what, "give a run of `contextseg train --method stcn`")
    return method


def _claim(study: Study, output: Path) -> None:
    """Write what is asked; raise `Problem` where something else was asked before. The data set may have moved."""
    path, asked = output / "study.json", json.loads(json.dumps(asdict(study)))
    if not path.exists():
        write_json(path, {"study": asked, "provenance": provenance()})
        return
    if what := changes(read_json(path)["study"], asked, {"dataset"}):
        raise Problem(output, f"this folder holds another study ({what})", "choose another --output folder")


def _of_case(
    study: Study, data: Dataset, case: Case, classes: dict[str, tuple[int, ...]], model: Any
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one case, a list for each class and way."""
    assert case.label is not None
    scan, label = read(*case.images), read_labels(case.label)
    if not label.same_grid(scan):
        raise Problem(case.label, "its grid differs from the scan's", "resample the labels onto the scan")
    known = to_classes(data, label.array, case.label)
    axis = next(i for i, letter in enumerate(label.orientation) if letter in AXES[study.plane])
    for name, union in classes.items():
        looked_for = case.annotated is None or {data.classes[k] for k in union} <= set(case.annotated)
        truth = label.with_array(np.where(known < 0, known, np.isin(known, union)).astype(np.int16))
        if not looked_for or not (truth.array == 1).any():
            continue
        taught = "no model" if model is None else "yes" if name in model[1].regions else "no"
        for way in study.filled_by:
            rows = annotate(
                truth,
                axis,
                _filler(study, scan, way, model),
                starts=study.starts,
                first=study.first,
                rules=study.rules,
                rounds=study.rounds,
                tolerance_mm=study.tolerance_mm,
            )
            yield [{"case": case.name, "class": name, "taught": taught, "way": way, **row} for row in rows]


def _filler(study: Study, scan: Volume, way: str, model: Any) -> Fill:
    if way == "network":
        return lambda given, ranges: from_slices(scan, given, study.steps, study.seed, ranges)
    return lambda given, ranges: fill(scan, given, model if way in TAUGHT else None, way, ranges)


def _read(paths: list[Path]) -> DataFrame:
    import pandas as pd
    from pandas.errors import EmptyDataError

    tables = []
    for path in paths:
        if path.exists():
            try:
                tables.append(pd.read_csv(path, dtype={"case": str, "class": str}))
            except EmptyDataError:  # a case without any of the classes
                continue
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
