"""The whole job, from a folder of scans to a scored, reported model, in stages that are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.console import Progress, no_progress_bar, rough_time, say
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.roi import restricted
from contextseg.disk import digest, read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation import Pair, evaluate, save_table
from contextseg.evaluation.calibration import calibration, read_calibration, save_calibration
from contextseg.evaluation.evaluate import read_scores
from contextseg.evaluation.largest import compare_largest, save_largest
from contextseg.inputs import read_json_lines
from contextseg.length import asked_seconds
from contextseg.methods import METHODS, Method
from contextseg.models import TrainedModel, is_ensemble, open_archive, open_ensemble
from contextseg.nnunet import is_nnunet_model, open_nnunet
from contextseg.notices import vanished_parts, warned
from contextseg.predictor import Member, Predictor, raise_failed
from contextseg.propagation import PropagationModel
from contextseg.run_folder import INPUTS, stale_inputs
from contextseg.runs import Run
from contextseg.settings import AUTO_FOLD, PredictionSettings, Settings
from contextseg.training import Training, pick_device
from contextseg.training_log import LogRow

if TYPE_CHECKING:
    import pandas as pd

DEMO_DATA = Path(__file__).parent / "demo_data"
REPORT = "report.html"
PICTURE = "cases.png"


def demo_settings() -> Settings:
    """Settings of the demo: the embedded sarcoma scans at 4 mm and a small network.

    The demo takes minutes on two cores.
    """
    return Settings(
        dataset=str(DEMO_DATA),
        training=Training(steps=300, lr=1e-3, save_every=25, log_every=10),
        planning={
            "spacing_mm": (4.0, 4.0, 4.0),
            "patch_vox": (32, 32, 32),
            "batch_size": 4,
            "base_width": 16,
        },
        arguments={"optimizer": "adamw"},
    )


def resolve_fold(settings: Settings, folder: str | Path | None = None) -> Settings:
    """Settings with the fold decided where it was left to the data set.

    All cases are trained on where the data set has a labelled test split, or too few labelled
    patients for five folds; otherwise fold 0 is kept for validation.

    A run that has written down its cases keeps its fold, whatever became of the data set.

    Args:
        settings: Settings whose fold may be `AUTO_FOLD`.
        folder: Folder of the run, which may be there already.

    Returns:
        The settings, with a fold.

    Raises:
        ContextsegError: The fold that the settings name does not exist; no folder is made for it.
    """
    if folder is not None and (Path(folder) / "split.json").exists():
        before = Run.open(folder).settings.fold
        return replace(settings, fold=before) if settings.fold == AUTO_FOLD else settings
    data = restricted(open_dataset(settings.dataset), settings.roi)
    if settings.fold != AUTO_FOLD:
        folds(data, settings.fold)
        return settings
    patients = {case.patient for case in data.train if case.label}
    enough = bool(data.splits) or len(patients) >= 5
    tested = any(case.label for case in data.test)
    return replace(settings, fold=0 if enough and not tested else -1)


@dataclass(frozen=True)
class Outcome:
    """Where a finished run left its results.

    Attributes:
        folder: The run's folder.
        predictions: Folder of the predicted label maps.
        table: `metrics.csv`, a row for each case and class. None without references.
        report: The page. None without references.
        picture: The picture of the worst, median and best case. None without references.
    """

    folder: Path
    predictions: Path
    table: Path | None = None
    report: Path | None = None
    picture: Path | None = None

    @property
    def metrics(self) -> pd.DataFrame:
        """The table, read: a row for each case and class; empty without references."""
        import pandas as pd

        if self.table is None:
            return pd.DataFrame()
        return read_scores(self.table)

    def _repr_html_(self) -> str:
        from contextseg.metrics import summarise

        if self.table is None:
            return f"<p>Predictions without references: {self.predictions}</p>"
        return summarise(self.metrics).to_html(index=False, float_format="{:.3f}".format)


def train_run(run: Run, cases: Callable[[], Sequence[Case]] = tuple) -> Method:
    """The stages from "check" to the trained method.

    Args:
        run: The run; stages that are finished are not done again.
        cases: Gives the cases that will be predicted and evaluated, for which a run that has a time
            leaves some of it.

    Returns:
        The trained method, in evaluation mode.
    """
    _say_length(run)
    run.check()
    run.make_plan()
    run.preprocess()
    run.cases_after = len(cases())
    return run.fit()


def _say_length(run: Run) -> None:
    """Say how long the run will take, where nobody gave a number of steps."""
    training = run.settings.training
    if run.progress_bar is no_progress_bar or training.steps or run.lengths():
        return
    device = pick_device(training.device)
    time_s = asked_seconds(training, device)
    if training.time_s:
        say(f"the run is to take {rough_time(time_s)} in all; its number of steps is measured")
    elif time_s:
        say(
            f"no GPU is used: the run is to take {rough_time(time_s)} in all, and its number of "
            "steps is measured. For longer: --time 8h, or --set steps=20000"
        )


def _say_time(run: Run) -> None:
    """Say how long the run took, where it had a time."""
    training = run.settings.training
    time_s = asked_seconds(training, pick_device(training.device))
    if time_s and run.progress_bar is not no_progress_bar:
        seconds = run.work_time.seconds()
        say(f"the run took {rough_time(seconds)} of {rough_time(time_s)} ({seconds / time_s:.0%})")


def run_pipeline(run: Run, *, test: bool = True) -> Outcome:
    """Check, plan, preprocess, train, predict, evaluate, report.

    Args:
        run: The run; stages that are finished are not done again.
        test: Predict the test split where there is one. False, or without a test split: predict
            the validation cases of the fold.

    Returns:
        Where the results are.

    Raises:
        ContextsegError: A stage cannot be done; what was finished stays.
    """
    if getattr(METHODS[run.settings.method], "guided", False):
        what = "it fills a scan from labelled slices, and cannot predict one without"
        remedy = "use `contextseg train`, then `contextseg propagate`"
        raise ContextsegError(f"method={run.settings.method}", what, remedy)
    method = train_run(run, lambda: pipeline_cases(run, test))
    predictor = Predictor([Member(method, run.plan)], run.settings.prediction)
    cases = pipeline_cases(run, test)

    run.digests.take(cases)
    scans = {case.name: run.digests.of(case.images) for case in cases}

    def predict(folder: Path, progress: Progress) -> None:
        for name in stale_inputs(folder, scans):
            (folder / f"{name}{run.dataset.ending}").unlink(missing_ok=True)
        write_json(folder / INPUTS, scans)  # before the first label map of these scans
        failed = predictor.predict_cases(cases, folder, run.dataset.ending, progress)
        raise_failed(failed, len(cases))

    predictions = run.stage("predict", predict, inputs=scans)
    pairs = references(run.dataset, cases, predictions)
    if not pairs:
        return Outcome(run.folder, predictions)
    held_out = {case.name for case in run.split[1]}
    labels = {
        case.name: digest(run.digests.of([*case.images, case.label]), case.annotated)
        for case in cases
    }

    def measure(folder: Path, progress: Progress) -> None:
        score(pairs, run.plan.region_values(), run.dataset.ignore, folder, progress)
        if not predictor.largest_of and {case.name for case in cases} <= held_out:
            rows = compare_largest(pairs, predictor.classes, run.dataset.ignore)
            save_largest(rows, folder)

    measured = run.stage("evaluate", measure, inputs=labels)
    run.stage("report", lambda folder, progress: report(run, measured, pairs), inputs=labels)
    _say_time(run)
    table = measured / "metrics.csv"
    return Outcome(run.folder, predictions, table, run.folder / REPORT, run.folder / PICTURE)


def pipeline_cases(run: Run, test: bool = True) -> list[Case]:
    """The cases that a run predicts.

    Args:
        run: The run.
        test: Whether the test split is predicted.

    Returns:
        The test split; without one, or with `test` False, the fold's validation cases, of which
        those whose scans were taken away since are left out (`Run.changes` names them).
    """
    tested = run.dataset.test if test else ()
    there = [case for case in run.split[1] if all(path.exists() for path in case.images)]
    return list(tested or there)


# --- predictions ----------------------------------------------------------------------------------


def open_predictor(models: Sequence[str | Path], device: str = "") -> Predictor:
    """The finished methods of one or several models as one `Predictor`.

    Args:
        models: Folders of finished runs, of cross-validations and ensembles, files of exported
            models (`export_archive`), or folders of models that nnU-Net trained; several are an
            ensemble, see `Predictor`. Of several, the largest part is kept of the classes for which
            the validation of each of them chose it.
        device: Where the networks run, see `Run.finished`.

    Returns:
        A predictor with the prediction settings of the first model.

    Raises:
        ContextsegError: A run is not finished, a file is no model, or its classes are others.
    """
    opened = [_open_model(model, device) for model in models]
    first = opened[0].members[0]
    for model, trained in zip(models, opened):
        for member in trained.members:
            for name in ("classes", "values"):
                if getattr(member.plan, name) != getattr(first.plan, name):
                    what = f"its plan differs in {name} from that of {models[0]}"
                    raise ContextsegError(model, what, "predict with each on its own")
    members = [member for trained in opened for member in trained.members]
    validated = [trained.largest_validated for trained in opened]
    largest = tuple(n for n in validated[0] if all(n in names for names in validated))
    return Predictor(members, opened[0].settings, largest)


def _open_model(model: str | Path, device: str = "") -> TrainedModel:
    """What a run, a folder of runs, an exported file or nnU-Net's model predicts with."""
    if is_nnunet_model(model):
        return TrainedModel(list(open_nnunet(model, device)), PredictionSettings())
    if is_ensemble(model):
        ensemble = open_ensemble(model)
        runs = [Run.open(folder) for folder in ensemble.runs]
        members = [Member(run.finished(device), run.plan) for run in runs]
        return TrainedModel(members, runs[0].settings.prediction, ensemble.largest_of)
    if Path(model).is_dir() or not Path(model).suffix:
        run = Run.open(model)
        members = [Member(run.finished(device), run.plan)]
        return TrainedModel(members, run.settings.prediction, run.largest_validated)
    return open_archive(model, device)


def open_propagation_model(folder: str | Path) -> PropagationModel:
    """The network of a finished run of method "stcn", which fills a scan from labelled slices.

    Args:
        folder: The run's folder, or the file that it was exported to.

    Returns:
        The network, its plan, and the axes along which it was trained.

    Raises:
        ContextsegError: The run is not finished, or of a method that needs no labelled slices.
    """
    member = _open_model(folder).members[0]
    method: Any = member.method
    if not method.guided:
        name = type(method).__name__
        what = f"a model of method {name}, which needs no labelled slices"
        raise ContextsegError(folder, what, "give a run of `contextseg train --method stcn`")
    return PropagationModel(method.net, member.plan, method.clips["axes"])


# --- evaluation and report ------------------------------------------------------------------------


def references(data: Dataset, cases: Sequence[Case], predictions: Path) -> list[Pair]:
    """Predictions with their references.

    Args:
        data: The data set.
        cases: Its cases, of which those without a label give no pair.
        predictions: Folder of the predictions.

    Returns:
        A pair for each case with a reference. A region was annotated if all its classes were.
    """
    pairs = []
    for case in cases:
        if case.label is None:
            continue
        annotated = None
        if case.annotated is not None:
            known = {k for k, name in enumerate(data.classes) if name in case.annotated}
            annotated = tuple(n for n, union in data.regions.items() if known.issuperset(union))
        prediction = predictions / f"{case.name}{data.ending}"
        pairs.append(Pair(case.name, prediction, case.label, case.images, annotated))
    return pairs


def score(
    pairs: Sequence[Pair],
    regions: Mapping[str, Sequence[int]],
    ignore: int | None,
    folder: Path,
    progress: Progress = lambda *_: None,
) -> None:
    """Write `metrics.csv`, `summary.json` and, with confidence maps, `calibration.csv`.

    `metrics.csv` is the last of them: where it is, the others are.

    Args:
        pairs: Predictions and references.
        regions: Label values of each class, by name.
        ignore: Label value of voxels that are not scored. None for none.
        folder: Where the tables go.
        progress: Called with (done, of) after each case.

    Raises:
        ContextsegError: A case cannot be scored; the first of them.
    """
    table, problems = evaluate(pairs, regions, ignore=ignore, progress=progress)
    calibrated, more = calibration(pairs, regions, ignore=ignore)
    for why in (*problems.values(), *more.values()):
        raise ContextsegError("evaluate", why, "run `contextseg check` on the data set")
    save_calibration(calibrated, folder)
    save_table(table, folder)


def report_again(folder: str | Path) -> Path:
    """Draw the report of a finished run again.

    Args:
        folder: The run's folder.

    Returns:
        Path of the page.

    Raises:
        ContextsegError: Nothing was evaluated in this run.
    """
    run = Run.open(folder)
    measured = run.stage_folder("evaluate")
    predictions = run.stage_folder("predict")
    if not (measured / "metrics.csv").exists() or not predictions.exists():
        what = "nothing was evaluated in this run"
        raise ContextsegError(folder, what, "finish it with `contextseg run`")
    report(run, measured, references(run.dataset, pipeline_cases(run), predictions))
    return run.folder / REPORT


def report(run: Run, measured: Path, pairs: Sequence[Pair]) -> None:
    """Draw `report.html` and `cases.png` of a run, from its table, logs and predictions.

    Args:
        run: The run, whose folder they go into.
        measured: Folder of `metrics.csv`, and of `calibration.csv` where there is one.
        pairs: Predictions and references, for the pictures.
    """
    from contextseg.reports import demo_picture, write_report

    cases = [
        {
            "case": pair.case,
            "image": [str(path) for path in pair.image],
            "reference": str(pair.reference),
            "prediction": str(pair.prediction),
        }
        for pair in pairs
    ]
    logs = {
        folder.name: read_json_lines(folder / "log.jsonl", LogRow)
        for folder in run.stage_folders("train")
    }
    facts = read_json(run.folder / "run.json", dict[str, Any])
    table = read_scores(measured / "metrics.csv")
    regions = run.plan.region_values()
    if run.dataset.ignore is not None:
        regions["ignore"] = [run.dataset.ignore]
    calibrated = measured / "calibration.csv"
    notice = Path(run.settings.dataset) / "LICENSE.md"
    demo_picture(run.folder / PICTURE, table, cases, regions)
    write_report(
        run.folder / REPORT,
        title=f"{run.dataset.name}: {run.settings.method}",
        table=table,
        cases=cases,
        logs=logs,
        stages=run.stages(),
        provenance={**facts, "lengths": _lengths(run), "plan": read_json(run.folder / "plan.json")},
        regions=regions,
        calibration=read_calibration(calibrated) if calibrated.exists() else None,
        note="\n\n".join(filter(None, (_notice(notice), *_warnings(run), *_endings(run)))),
        colours=run.plan.colours,
    )


def _warnings(run: Run) -> list[str]:
    """What `check` warned of, what no training case teaches, and what is lost in resampling."""
    texts = [*warned(run.stage_folder("check")), *run.not_learnt()]
    texts += vanished_parts(run.stage_folder("preprocess"), run.plan)
    return [f"Warning: {text}" for text in texts]


def _lengths(run: Run) -> dict[str, Any]:
    """The length of each training, as JSON content."""
    return {name: asdict(length) for name, length in run.lengths().items()}


def _endings(run: Run) -> list[str]:
    """Trainings that were stopped early, or extended."""
    lengths = run.lengths()
    return [f"Training {name} {length}." for name, length in lengths.items() if str(length)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _notice(path: Path) -> str:
    """A data set's licence as plain text; "" where it has none."""
    if not path.exists():
        return ""
    return re.sub(r"#+ |[*`]+", "", path.read_text(encoding="utf-8"))
