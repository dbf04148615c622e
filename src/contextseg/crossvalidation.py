"""Several folds of one training as one result, and the best ensemble of several such results.

OUTPUT/fold0/ fold1/ ...        a run for each fold; they share one cache
OUTPUT/cross-validation/        metrics.csv and summary.json of all validation cases together
OUTPUT/predict/ evaluate/       the test split, segmented by all folds together
OUTPUT/ensemble.json            the model: all folds, and what was chosen by validation
OUTPUT/report.html              the page of the cross-validation
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.cells import read_table_file
from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.layouts import Case, folds, open_dataset
from contextseg.data.plan import Plan
from contextseg.data.roi import restricted
from contextseg.disk import (
    csv_text,
    digest,
    lock_folder,
    read_json,
    turn_in,
    visible_files,
    write_text,
)
from contextseg.errors import ContextsegError
from contextseg.evaluation import Pair, save_table
from contextseg.evaluation.largest import compare_largest, save_largest
from contextseg.models import Ensemble, is_ensemble, open_ensemble, open_runs
from contextseg.pipeline import (
    PICTURE,
    REPORT,
    Outcome,
    open_predictor,
    pipeline_cases,
    references,
    run_pipeline,
    score,
)
from contextseg.predictor import Predictor, raise_failed
from contextseg.run_folder import RunFolder
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.training_log import log_rows

if TYPE_CHECKING:
    import pandas as pd

CROSS_VALIDATION = "cross-validation"
"""The stage that pools the validation cases of all folds."""

CANDIDATES = "candidates.csv"
"""The table of the ensembles that were compared."""

_EVERY = 3  # models up to which every combination of them is compared; of more, singles and pairs


# --- several folds --------------------------------------------------------------------------------


def cross_validate(
    settings: Settings,
    numbers: Sequence[int],
    folder: str | Path,
    progress_bar: ProgressBar = no_progress_bar,
    plan: Callable[[Run], Plan] | None = None,
) -> Outcome:
    """Run several folds, pool their validation cases, and make one model of all of them.

    Several processes may do different folds of one folder at once, such as `--folds 0,1` and
    `--folds 2,3`: the folds are locked one by one, and the last to end pools what all have done.

    Args:
        settings: Settings of every run but for the fold.
        numbers: The folds.
        folder: Folder of the result; the runs are `fold0`, `fold1` and so on in it.
        progress_bar: Shows the progress of each stage.
        plan: Called with a run, gives the plan to use in place of one made by the rules.

    Returns:
        Where the pooled table and the report are; the predictions are those of the test split, or
        without one the folder, in which each fold has its own.

    Raises:
        ContextsegError: A fold does not exist, before anything is made; the folder holds a single
            run; or a stage cannot be done.
    """
    folder = Path(folder)
    if (folder / "run.json").exists():
        what = "this folder holds a single run"
        raise ContextsegError(folder, what, "choose another --output folder for several folds")
    data = restricted(open_dataset(settings.dataset), settings.roi)
    for number in numbers:
        if number < 0:
            remedy = "give folds such as 0,1,2,3,4"
            raise ContextsegError("--folds all", "a run of all cases validates on none", remedy)
        folds(data, number)
    for number in numbers:
        place = folder / f"fold{number}"
        with _locked(place):
            run = Run(place, replace(settings, fold=number), _titled(progress_bar, place.name))
            if plan is not None:
                run.use_plan(plan(run))
            run_pipeline(run, test=False)
    with _in_turn(folder):
        return _pooled(folder, progress_bar)


def _locked(folder: Path) -> AbstractContextManager[None]:
    """Keep other processes, but not the other ranks of this one, out of a folder."""
    return nullcontext() if int(os.environ.get("RANK", 0)) else lock_folder(folder)


def _in_turn(folder: Path) -> AbstractContextManager[None]:
    """Wait until no other process, but for the other ranks of this one, pools the folds."""
    return nullcontext() if int(os.environ.get("RANK", 0)) else turn_in(folder)


def _titled(progress_bar: ProgressBar, name: str) -> ProgressBar:
    """A progress bar whose titles begin with the name of a fold."""
    if progress_bar is no_progress_bar:
        return progress_bar

    def bar(title: str, done: bool = False) -> AbstractContextManager[Progress]:
        return no_progress_bar(title) if done else progress_bar(f"{name} {title}")

    return bar


def finished_folds(folder: str | Path) -> dict[int, Run]:
    """The folds of a cross-validation that are finished, by number.

    Args:
        folder: Folder of the cross-validation.

    Returns:
        The runs, in the order of their numbers; {} for none.
    """
    runs = {}
    for path in visible_files(folder, "fold*/run.json"):
        number = re.fullmatch(r"fold(\d+)", path.parent.name)
        run = Run.open(path.parent) if number else None
        if number and run and run.done("evaluate"):
            runs[int(number[1])] = run
    return dict(sorted(runs.items()))


def _pooled(folder: Path, progress_bar: ProgressBar) -> Outcome:
    """Pool the finished folds; segment and score the test split; draw the page."""
    runs = finished_folds(folder)
    first = next(iter(runs.values()))
    stages = RunFolder(folder, progress_bar)
    inputs = {
        run.folder.name: digest(run.stage_folder("evaluate") / "metrics.csv")
        for run in runs.values()
    }
    pairs = [pair for run in runs.values() for pair in _validated(run)]

    def pool(place: Path, progress: Progress) -> None:
        save_table(_table(runs), place)
        largest: tuple[str, ...] = ()
        if not first.settings.prediction.largest_of:
            values = dict(zip(first.plan.classes[1:], first.plan.values[1:]))
            rows = compare_largest(pairs, values, first.dataset.ignore, progress=progress)
            largest = save_largest(rows, place)
        Ensemble(tuple(run.folder for run in runs.values()), largest).save(folder)

    pooled = stages.stage(CROSS_VALIDATION, pool, inputs=inputs)
    predictions = _test_split(first, folder, stages, inputs)

    def draw(place: Path, progress: Progress) -> None:
        _draw(folder, runs, pooled, pairs, stages)

    stages.stage("report", draw, inputs=inputs)
    table = pooled / "metrics.csv"
    return Outcome(folder, predictions, table, folder / REPORT, folder / PICTURE)


def _validated(run: Run) -> list[Pair]:
    """Predictions and references of the validation cases of a fold."""
    return references(run.dataset, pipeline_cases(run, test=False), run.stage_folder("predict"))


def _table(runs: Mapping[int, Run]) -> pd.DataFrame:
    """The rows of all folds together, with the fold that each case was validated in."""
    import pandas as pd

    tables = []
    for number, run in runs.items():
        path = run.stage_folder("evaluate") / "metrics.csv"
        table = read_table_file(path, ("case", "class", "label"))
        table.insert(1, "fold", number)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _test_split(first: Run, folder: Path, stages: RunFolder, inputs: Mapping[str, str]) -> Path:
    """Segment the test split by all folds together, and score what has a reference.

    Returns:
        Folder of the label maps; that of the cross-validation where there is no test split.
    """
    cases = first.dataset.test
    if not cases:
        return folder
    first.digests.take(cases)
    made_of = dict(inputs)
    for case in cases:
        made_of[case.name] = first.digests.of([*case.images, case.label])

    def predict(place: Path, progress: Progress) -> None:
        for path in visible_files(place, f"*{first.dataset.ending}"):
            path.unlink()  # of other folds, or of a prediction that was stopped
        predictor = open_predictor([folder])
        failed = predictor.predict_cases(cases, place, first.dataset.ending, progress)
        raise_failed(failed, len(cases))

    predictions = stages.stage("predict", predict, inputs=made_of)
    pairs = references(first.dataset, cases, predictions)

    def measure(place: Path, progress: Progress) -> None:
        score(pairs, first.plan.region_values(), first.dataset.ignore, place, progress)

    if pairs:
        stages.stage("evaluate", measure, inputs=made_of)
    return predictions


def _draw(
    folder: Path, runs: Mapping[int, Run], pooled: Path, pairs: Sequence[Pair], stages: RunFolder
) -> None:
    """Draw `report.html` and `cases.png` of a cross-validation."""
    from contextseg.reports import demo_picture, write_report

    first = next(iter(runs.values()))
    regions = first.plan.region_values()
    if first.dataset.ignore is not None:
        regions["ignore"] = [first.dataset.ignore]
    cases = [
        {
            "case": pair.case,
            "image": [str(path) for path in pair.image],
            "reference": str(pair.reference),
            "prediction": str(pair.prediction),
        }
        for pair in pairs
    ]
    logs = {}
    costs = []
    for run in runs.values():
        for place in run.stage_folders("train"):
            logs[f"{run.folder.name} {place.name}"] = log_rows(place / "log.jsonl")
        costs += [{**stage, "name": f"{run.folder.name} {stage['name']}"} for stage in run.stages()]
    table = _table(runs)
    names = ", ".join(run.folder.name for run in runs.values())
    facts = read_json(first.folder / "run.json")
    demo_picture(folder / PICTURE, table, cases, regions)
    write_report(
        folder / REPORT,
        title=f"{first.dataset.name}: {first.settings.method}, cross-validation",
        table=table,
        cases=cases,
        logs=logs,
        stages=[*costs, *stages.stages()],
        provenance={**facts, "plan": read_json(first.folder / "plan.json")},
        regions=regions,
        note=f"Validation cases of {names}, each segmented by the fold that was not trained on it.",
        colours=first.plan.colours,
    )


# --- the best ensemble ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A model whose validation cases are known: a cross-validation, or a single run.

    Attributes:
        name: Name of its folder.
        runs: Its runs.
        validated: The run that held out each validation case, by name.
    """

    name: str
    runs: tuple[Run, ...]
    validated: Mapping[str, Run]


@dataclass(frozen=True)
class BestEnsemble:
    """What `best_ensemble` chose.

    Attributes:
        folder: The folder that predicts.
        table: A row for each single model and combination: candidate, cases, dice, the Dice of each
            class, chosen.
        chosen: Name of the one that was chosen.
        largest_of: Classes whose largest connected part alone is kept.
    """

    folder: Path
    table: pd.DataFrame
    chosen: str
    largest_of: tuple[str, ...]


def best_ensemble(
    models: Sequence[str | Path],
    folder: str | Path,
    device: str = "",
    progress_bar: ProgressBar = no_progress_bar,
) -> BestEnsemble:
    """Choose the single model or the combination that segments the validation cases best.

    Each validation case is segmented by the runs that held it out, averaged as `Predictor` does.
    What is best has the largest mean Dice, nnU-Net's foreground mean; of equal ones that with fewer
    models. Of up to three models every combination is compared, of more all singles and pairs.

    Args:
        models: Folders of cross-validations, or of single runs with validation cases; two or more
            of one data set and of the same folds.
        folder: Where the choice goes; `predict` and `export` take it in place of a run. The same
            call goes on where it was stopped.
        device: Where the networks run, see `open_predictor`.
        progress_bar: Shows the progress of each combination.

    Returns:
        The choice.

    Raises:
        ContextsegError: Fewer than two models, models with other validation cases or classes, or
            one that was validated on none.
    """
    import pandas as pd

    folder = Path(folder)
    if len(models) < 2:
        remedy = "give two or more, such as those of a 2-D and a 3-D plan"
        raise ContextsegError("ensemble", "there is nothing to choose from", remedy)
    candidates = [_candidate(Path(model), models) for model in models]
    _check_alike(candidates)
    with lock_folder(folder):
        rows = []
        chosen: tuple[Candidate, ...] = ()
        best = -1.0
        for combination in _combinations(candidates):
            name = _name(combination)
            with progress_bar(name) as progress:
                place = _segmented(combination, folder, device, progress)
            row = {"candidate": name, **_dice_of(place)}
            rows.append(row)
            if not isnan(row["dice"]) and row["dice"] > best:
                best, chosen = row["dice"], combination
        if not chosen:
            what = "no validation case holds any class, so that nothing can be chosen"
            raise ContextsegError("ensemble", what, "give runs with labelled validation cases")
        for row in rows:
            row["chosen"] = "yes" if row["candidate"] == _name(chosen) else "no"
        write_text(folder / CANDIDATES, csv_text(list(rows[0]), rows))
        place = _place(chosen, folder)
        first = chosen[0].runs[0]
        largest: tuple[str, ...] = ()
        if not first.settings.prediction.largest_of:
            values = dict(zip(first.plan.classes[1:], first.plan.values[1:]))
            pairs = references(first.dataset, _cases(chosen), place)
            largest = save_largest(compare_largest(pairs, values, first.dataset.ignore), folder)
        Ensemble(tuple(run.folder for c in chosen for run in c.runs), largest).save(folder)
    return BestEnsemble(folder, pd.DataFrame(rows), _name(chosen), largest)


def _candidate(model: Path, models: Sequence[str | Path]) -> Candidate:
    """A model with the run that held out each of its validation cases."""
    runs = tuple(open_runs([model]))
    validated = {case.name: run for run in runs for case in run.split[1] if case.label}
    if not validated:
        what = "it was trained on all cases and validated on none"
        remedy = "train it with `contextseg run DATA -o OUTPUT --folds 0,1,2,3,4`"
        raise ContextsegError(model, what, remedy)
    twins = [other for other in models if Path(other).resolve().name == model.resolve().name]
    name = model.resolve().name
    if len(twins) > 1:
        name = f"{model.resolve().parent.name}-{name}"
    return Candidate(name, runs, validated)


def _check_alike(candidates: Sequence[Candidate]) -> None:
    """Refuse models whose scores or label maps cannot be compared."""
    first = candidates[0]
    names = [candidate.name for candidate in candidates]
    for candidate in candidates[1:]:
        if names.count(candidate.name) > 1:
            what = "two models have this name"
            raise ContextsegError(candidate.name, what, "rename one of the folders")
        other = sorted(set(first.validated) ^ set(candidate.validated))
        if other:
            what = f"it was validated on other cases than {first.name} ({other[0]} and others)"
            remedy = "give models of the same folds"
            raise ContextsegError(candidate.runs[0].folder, what, remedy)
        for name in ("classes", "values"):
            if getattr(candidate.runs[0].plan, name) != getattr(first.runs[0].plan, name):
                what = f"its plan differs in {name} from that of {first.name}"
                raise ContextsegError(candidate.runs[0].folder, what, "leave it out")


def _combinations(candidates: Sequence[Candidate]) -> list[tuple[Candidate, ...]]:
    """What is compared, single models first."""
    most = len(candidates) if len(candidates) <= _EVERY else 2
    return [c for n in range(1, most + 1) for c in combinations(candidates, n)]


def _name(combination: Sequence[Candidate]) -> str:
    return " + ".join(candidate.name for candidate in combination)


def _place(combination: Sequence[Candidate], folder: Path) -> Path:
    """Where the label maps of a combination lie: a name of the networks and how they predict."""
    facts: list[Any] = [combination[0].runs[0].settings.to_json()["prediction"]]
    for run in (run for candidate in combination for run in candidate.runs):
        facts += [*visible_files(run.folder, "*/model.pt"), run.folder / "plan.json"]
    name = "+".join(candidate.name for candidate in combination)
    return folder / "validation" / f"{name}-{digest(*facts)}"


def _cases(combination: Sequence[Candidate]) -> list[Case]:
    """The validation cases, each once."""
    runs = combination[0].runs
    cases = {case.name: case for run in runs for case in run.split[1] if case.label}
    return list(cases.values())


def _segmented(
    combination: Sequence[Candidate], folder: Path, device: str, progress: Progress
) -> Path:
    """Segment the validation cases by the runs that held them out, and score them."""
    place = _place(combination, folder)
    if (place / "metrics.csv").exists():
        return place
    groups: dict[tuple[Path, ...], list[Case]] = {}
    cases = _cases(combination)
    for case in cases:
        held_out = tuple(candidate.validated[case.name].folder for candidate in combination)
        groups.setdefault(held_out, []).append(case)
    first = combination[0].runs[0]
    done = 0
    for folders, group in groups.items():
        predictor: Predictor = replace(open_predictor(folders, device), largest_validated=())

        def more(n: int, of: int, before: int = done) -> None:
            progress(before + n, len(cases))

        failed = predictor.predict_cases(group, place, first.dataset.ending, more)
        raise_failed(failed, len(group))
        done += len(group)
    pairs = references(first.dataset, cases, place)
    score(pairs, first.plan.region_values(), first.dataset.ignore, place)
    return place


def _dice_of(place: Path) -> dict[str, Any]:
    """Number of cases, nnU-Net's foreground mean, and the mean Dice of each class."""
    content = read_json(place / "summary.json")
    table = read_table_file(place / "metrics.csv", ("case", "class"), ("case", "class", "dsc"))
    classes = {
        str(name): float(rows["dsc"].dropna().mean()) if rows["dsc"].notna().any() else nan
        for name, rows in table.groupby("class", sort=False)
    }
    dice = content["foreground_mean"].get("Dice", nan)
    return {"cases": table["case"].nunique(), "dice": float(dice), **classes}


def refuse_ensemble(folder: str | Path) -> None:
    """Refuse to begin a single run where an ensemble of runs lies.

    Args:
        folder: The output folder of a run.

    Raises:
        ContextsegError: The folder holds an ensemble.
    """
    if is_ensemble(folder):
        names = ", ".join(run.name for run in open_ensemble(folder).runs)
        what = f"this folder holds several runs ({names})"
        remedy = "give the same --folds again, or choose another --output folder"
        raise ContextsegError(folder, what, remedy)
