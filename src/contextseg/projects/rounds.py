"""The verbs `train` and `predict`: rounds of a model, its predictions, and what is measured.

    rounds/1/round.json        which labels the round learns from, with a digest of each
    rounds/1/data/             these as an nnU-Net raw data set, the scans by reference
    rounds/1/model/            the run
    rounds/1/predictions/      label maps of cases that it has not learned from
    rounds/1/scores/           metrics.csv of the locked cases

No case that is scored is trained on: a round's data holds neither locked cases nor other scans of
their patients, labelled or not, and nothing is predicted or scored that the round has learned from.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from contextseg.arguments import assignments
from contextseg.batch import IGNORE
from contextseg.console import say
from contextseg.data.layouts import Case, open_dataset
from contextseg.data.listing import some
from contextseg.data.plan import Plan
from contextseg.disk import changes, digest, read_json, replacing, write_json
from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.evaluation import Pair, evaluate, save_table
from contextseg.evaluation.evaluate import read_scores
from contextseg.formats.parts import files_of
from contextseg.methods import METHODS
from contextseg.pipeline import open_predictor, train_run
from contextseg.predict.record import PredictionRecord
from contextseg.predictor import raise_failed
from contextseg.projects.table import ProjectCase
from contextseg.projects.worklist import expected_of_files
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read_labels, write

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.projects.work import LabelProject

FILL_CHOICES = ("accepted", "all", "none")
"""Which fills a round learns from: those accepted, also those that nobody accepted, or none."""


# --- rounds on disk -------------------------------------------------------------------------------


def round_folder(project: LabelProject, number: int) -> Path:
    """The folder of a round.

    Args:
        project: The project.
        number: Number of the round, from 1.
    """
    return project.folder / "rounds" / str(number)


class RoundFacts(TypedDict):
    """What `round.json` says, as far as it is read again."""

    method: str
    settings: list[str] | dict[str, Any]
    seed: int
    fills: str
    cases: dict[str, Any] | list[Any]


def round_facts(project: LabelProject, number: int) -> dict[str, Any]:
    """What a round was begun with: method, settings, seed, fills, plan, and its cases.

    Args:
        project: The project.
        number: Number of the round.
    """
    path = round_folder(project, number) / "round.json"
    return dict(read_json(path, RoundFacts, "begin the round anew with --restart"))


def begun_rounds(project: LabelProject) -> list[int]:
    """The numbers of the rounds that were begun, in order; [] for none."""
    folders = (project.folder / "rounds").glob("*/round.json")
    return sorted(int(path.parent.name) for path in folders if path.parent.name.isdecimal())


def last_round(project: LabelProject) -> int:
    """The last round whose model is finished; 0 for none."""
    done = [n for n in begun_rounds(project) if round_facts(project, n).get("finished")]
    return max(done, default=0)


# --- training -------------------------------------------------------------------------------------


def train_round(
    project: LabelProject,
    *,
    method: str,
    fills: str,
    seed: int,
    plan: str | Path | None,
    restart: bool,
    settings: Mapping[str, Any],
) -> Run:
    """Train the next round, or finish the one that was begun; see `LabelProject.train`.

    Args:
        project: The project.
        method: As there.
        fills: As there.
        seed: As there.
        plan: As there.
        restart: As there.
        settings: As there.

    Returns:
        The finished run.
    """
    asked = _asked(method, fills, seed, plan, settings)
    rows = project.refresh()
    begun = begun_rounds(project)
    number = begun[-1] if begun else 0
    open_round = number and not round_facts(project, number).get("finished")
    if open_round and restart:
        _note_trained(project, number, False)
        shutil.rmtree(round_folder(project, number))
        number, open_round = number - 1, False
    if open_round:
        _refuse_other_round(project, number, asked)
        say(f"round {number} was begun before, and goes on with the labels it was begun with")
    else:
        chosen = labels_to_learn(project, rows, fills)
        facts = {**asked, **_inputs(project, chosen, method, asked["settings"])}
        if number and not changes(round_facts(project, number), facts, but={"finished"}):
            say(f"nothing is new since round {number}")
            return Run.open(round_folder(project, number) / "model", project.progress_bar)
        number += 1
        _write_data(project, number, chosen, facts)
    run = _train(project, number, plan)
    _note_trained(project, number, True)
    write_json(  # last: a round that counts as finished has all of its cases in the table
        round_folder(project, number) / "round.json",
        {**round_facts(project, number), "finished": True},
    )
    return run


def _note_trained(project: LabelProject, number: int, whether: bool) -> None:
    """Note in the table which cases a round has learned from, or that it has from none."""
    learned = round_facts(project, number)["cases"] if whether else ()
    with project.table.together():
        for name, case in project.table.cases().items():
            trained = {*case.trained} - {number} | ({number} if name in learned else set())
            if trained != {*case.trained}:
                project.table.note(name, trained=tuple(sorted(trained)))


def _asked(
    method: str, fills: str, seed: int, plan: str | Path | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a round is asked for, checked, as JSON content."""
    if fills not in FILL_CHOICES:
        remedy = did_you_mean(fills, FILL_CHOICES)
        raise ContextsegError(f"--fills {fills}", "there is no such choice", remedy)
    words = assignments(settings)
    Settings("", method, -1, seed).set(words)  # unknown names and values
    if getattr(METHODS[method], "guided", False):
        what = "it fills a scan from labelled slices, and cannot predict one without"
        remedy = "train it with `contextseg train`, then `contextseg project fill --model RUN`"
        raise ContextsegError(f"--method {method}", what, remedy)
    return {
        "method": method,
        "fills": fills,
        "seed": seed,
        "plan": digest(Path(plan)) if plan else "",
        "settings": words,
    }


def _refuse_other_round(project: LabelProject, number: int, asked: Mapping[str, Any]) -> None:
    before = round_facts(project, number)
    if what := changes({name: before[name] for name in asked}, asked):
        what = f"round {number} is not finished, and was begun otherwise: {what}"
        raise ContextsegError(project.folder, what, "give what it was begun with, or --restart")


def learns_from_unlabelled(method: str) -> bool:
    """Whether a method learns from scans without a label.

    Args:
        method: A name in `methods.METHODS`.

    Example:
        >>> [learns_from_unlabelled(name) for name in ("supervised", "cps", "pseudo")]
        [False, True, True]
    """
    return "unlabelled_items" in inspect.signature(METHODS[method]).parameters


def labels_to_learn(
    project: LabelProject, rows: Mapping[str, ProjectCase], fills: str
) -> dict[str, tuple[str, Path | None]]:
    """What each case teaches: its kind, and its label map where that is a file.

    Locked cases and other scans of their patients are left out.

    Args:
        project: The project.
        rows: The table.
        fills: One of `FILL_CHOICES`.

    Returns:
        Name to ("accepted", "given", "fill" or "drawn", file). A drawing has no file yet.
    """
    chosen: dict[str, tuple[str, Path | None]] = {}
    for name, row in rows.items():
        if name not in project.sources.cases or not project.learnable(name):
            continue
        given = project.sources.cases[name].label
        if row.accepted == "given" and given:
            chosen[name] = "given", given
        elif row.accepted and not (fills == "none" and row.drawn):
            chosen[name] = "accepted", project.label_file(name)
        elif fills == "all" and row.drawn and row.filled == row.drawn:
            chosen[name] = "fill", project.fill_file(name)
        elif row.drawn:
            chosen[name] = "drawn", None
    return chosen


def _inputs(
    project: LabelProject,
    chosen: Mapping[str, tuple[str, Path | None]],
    method: str,
    words: Sequence[str],
) -> dict[str, Any]:
    """The cases that a round learns from, each with a digest of its label, as JSON content."""
    if not chosen:
        what = "nothing is labelled that could be trained on"
        remedy = f"draw slices, and save them in {project.folder / 'drawn'}, or accept cases"
        raise ContextsegError(project.folder, what, remedy)
    cases = {}
    for name, (kind, path) in chosen.items():
        drawn = project.table.case(name).drawn
        cases[name] = [kind, digest(*files_of(path)) if path else drawn]
    unlabelled = []
    if learns_from_unlabelled(method):
        every = project.sources.cases
        unlabelled = [name for name in every if name not in chosen and project.learnable(name)]
        if (
            not unlabelled
            and inspect.isclass(METHODS[method])
            and "unlabelled_items=0" not in words
        ):
            what = f"method {method} learns from unlabelled scans, and every scan is labelled"
            remedy = "train with --method supervised, or --set unlabelled_items=0"
            raise ContextsegError(project.folder, what, remedy)
    return {"cases": cases, "unlabelled": unlabelled}


def _write_data(
    project: LabelProject,
    number: int,
    chosen: Mapping[str, tuple[str, Path | None]],
    facts: Mapping[str, Any],
) -> None:
    """The data set of a round; the file that says what it is comes last."""
    folder = round_folder(project, number)
    table, annotated = {}, {}
    with replacing(folder / "data") as temporary:
        (temporary / "labelsTr").mkdir(parents=True)
        for name in [*chosen, *facts["unlabelled"]]:
            case = project.case(name)
            entry: dict[str, Any] = {"images": [str(path.absolute()) for path in case.images]}
            if name in chosen:
                _write_label(project, case, *chosen[name], temporary / f"labelsTr/{name}.nii.gz")
                entry["label"] = f"labelsTr/{name}.nii.gz"
                if case.annotated is not None and chosen[name][0] == "given":
                    annotated[name] = list(case.annotated)
            table[name] = entry
        channels = {str(i): name for i, name in enumerate(project.channels)}
        content = {
            "name": project.folder.resolve().name,
            "channel_names": channels,
            "labels": dict(project.labels.labels),
            "numTraining": len(table),
            "file_ending": ".nii.gz",
            "dataset": table,
        }
        write_json(temporary / "dataset.json", content)
        patients = {name: project.case(name).patient for name in table}
        write_json(temporary / "patients.json", patients)
        if annotated:
            write_json(temporary / "labelsTr" / "annotated.json", annotated)
    write_json(folder / "round.json", dict(facts))


def _write_label(
    project: LabelProject, case: Case, kind: str, path: Path | None, out: Path
) -> None:
    """The label map of one case, with the ignore value where nobody labelled."""
    if path is not None:
        write(out, read_labels(path))
        return
    drawing = project.drawing(case.name)
    if drawing is None:
        what = "its drawing changed, and holds no class now"
        raise ContextsegError(case.name, what, "call train again")
    array = drawing.label.array
    write(out, drawing.label.with_array(np.where(array == IGNORE, project.labels.ignore, array)))


def _train(project: LabelProject, number: int, plan: str | Path | None) -> Run:
    folder = round_folder(project, number)
    facts = round_facts(project, number)
    refuse_locked(project, (*facts["cases"], *facts["unlabelled"]), number)
    settings = Settings(str((folder / "data").absolute()), facts["method"], -1, facts["seed"])
    run = Run(folder / "model", settings.set(facts["settings"]), project.progress_bar)
    if plan:
        run.use_plan(Plan.load(Path(plan)))
    train_run(run)
    return run


def refuse_locked(project: LabelProject, cases: Sequence[str], number: int) -> None:
    """Refuse to train on what is to be scored; the last door before every training.

    Args:
        project: The project.
        cases: The cases that the round would learn from, labelled or not.
        number: Number of the round, for the message.

    Raises:
        ContextsegError: One of them is locked, or of a patient with a locked case.
    """
    locked = [n for n in cases if n in project.sources.cases and not project.learnable(n)]
    if locked:
        what = f"round {number} would learn from cases that are for measuring: {some(locked)}"
        raise ContextsegError(project.folder, what, "call train with --restart")


# --- predicting -----------------------------------------------------------------------------------


def predict_round(project: LabelProject, cases: Sequence[str], *, device: str) -> dict[str, Path]:
    """Predict with the last round, and measure; see `LabelProject.predict`.

    Args:
        project: The project.
        cases: As there.
        device: As there.

    Returns:
        The label map of each case, by name.
    """
    rows = project.refresh()
    number = last_round(project)
    if not number:
        what = "no round of training is finished"
        raise ContextsegError(project.folder, what, "call `contextseg project train` first")
    learned = patients_learned(project, number)
    chosen = list(cases) or [
        name
        for name, row in rows.items()
        if name in project.sources.cases
        and (row.use == "test" or not row.accepted)
        and project.sources.cases[name].patient not in learned
    ]
    for name in chosen:
        if project.case(name).patient in learned:
            what = f"round {number} was trained on it, or on another scan of its patient"
            raise ContextsegError(name, what, "look at its fill or its label; leave it out here")
    folder = predictions_folder(project, number)
    predictor = open_predictor([round_folder(project, number) / "model"], device)
    predictor = replace(predictor, settings=replace(predictor.settings, confidence=True))
    record = PredictionRecord(folder, predictor.made_by())
    todo = [project.case(name) for name in chosen]
    record.check(todo)
    with project.progress_bar("predict") as progress:
        failed = predictor.predict_cases(todo, folder, progress=progress, record=record)
    done = {case.name: folder / f"{case.name}.nii.gz" for case in todo if case.name not in failed}
    with project.table.together():
        for name, path in done.items():
            if project.table.case(name).predicted != number:
                expected = expected_of_files(path, project.labels.values[1:])
                project.table.note(name, predicted=number, expected_dice=expected)
    measure_round(project, number)
    raise_failed(failed, len(todo))
    return done


def patients_learned(project: LabelProject, number: int) -> set[str]:
    """The patients that a round learned labels from.

    Args:
        project: The project.
        number: Number of the round.
    """
    data = open_dataset(round_folder(project, number) / "data")
    return {case.patient for case in data.train if case.label}


def predictions_folder(project: LabelProject, number: int) -> Path:
    """Where the label maps of a round lie.

    Args:
        project: The project.
        number: Number of the round.
    """
    return round_folder(project, number) / "predictions"


def measure_round(project: LabelProject, number: int) -> pd.DataFrame:
    """Score a round on the locked cases whose reference no model made.

    Args:
        project: The project.
        number: Number of the round.

    Returns:
        A row for each case and class, also in `scores/metrics.csv` of the round; empty where
        no locked case has a reference.

    Raises:
        ContextsegError: A case cannot be scored.
    """
    data = open_dataset(round_folder(project, number) / "data")
    seen = {case.patient for case in data.train}
    pairs = []
    for name, row in project.table.cases().items():
        if row.use != "test" or name not in project.sources.cases:
            continue
        case = project.sources.cases[name]
        path = predictions_folder(project, number) / f"{name}.nii.gz"
        by_model = row.accepted.startswith("prediction")
        if not row.accepted or by_model or not path.exists() or case.patient in seen:
            continue
        reference = project.label_file(name)
        annotated = None
        if row.accepted == "given":
            assert case.label is not None
            reference, annotated = case.label, case.annotated
        pairs.append(Pair(name, path, reference, case.images, annotated))
    table, problems = evaluate(pairs, data.region_values(), ignore=data.ignore)
    for why in problems.values():
        raise ContextsegError("scores", why, "mend the label of this case")
    if len(table):
        table.insert(0, "round", number)
        save_table(table, round_folder(project, number) / "scores")
    return table


def scores_text(project: LabelProject, number: int) -> list[str]:
    """The mean Dice of each class over the locked cases, a line each; [] where none is scored.

    Args:
        project: The project.
        number: Number of the round.
    """
    path = round_folder(project, number) / "scores" / "metrics.csv"
    if not path.exists():
        return []
    table = read_scores(path)
    means = table.groupby("class", sort=False)["dsc"].agg(["mean", "count"])
    return [
        f"  {name}: mean Dice {row['mean']:.3f} over {plural(int(row['count']), 'locked case')}"
        for name, row in means.iterrows()
    ]
