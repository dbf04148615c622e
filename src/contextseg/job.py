"""The main job: from a folder of scans to a scored, reported model. Each step is a stage that is never done twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from contextseg.data.components import Change, write_change
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.plan import Plan
from contextseg.data.roi import restricted
from contextseg.disk import Problem, read_json
from contextseg.experiments import Pair, evaluate, save_table
from contextseg.experiments.calibration import calibration, confidence_file, save_calibration
from contextseg.methods import METHODS, Method
from contextseg.methods.presence import Flags, write_flags
from contextseg.profile import Efficiency
from contextseg.run import Run
from contextseg.scan import each_case, predict_with_confidence
from contextseg.settings import UNDECIDED, Prediction, Settings
from contextseg.train import Training
from contextseg.volume import read, write

DEMO_DATA = Path(__file__).parent / "demo_data"
REPORT, PICTURE = "report.html", "cases.png"


def demo_settings() -> Settings:
    """The embedded sarcoma scans at 4 mm and a small network: minutes on two cores."""
    return Settings(
        dataset=str(DEMO_DATA),
        training=Training(steps=300, lr=1e-3, save_every=25, log_every=10),
        planning={"spacing_mm": (4.0, 4.0, 4.0), "patch_vox": (32, 32, 32), "batch_size": 4, "base_width": 16},
        arguments={"optimizer": "adamw"},
    )


def settled(settings: Settings) -> Settings:
    """The settings with an `UNDECIDED` fold decided: all cases, if there is a labelled test split or few cases.

    Raises `Problem` for a fold that is not there, before any folder is made for it.
    """
    data = restricted(open_dataset(settings.dataset), settings.roi)
    if settings.fold != UNDECIDED:
        folds(data, settings.fold)
        return settings
    labelled = {case.patient for case in data.train if case.label}
    enough = bool(data.splits) or len(labelled) >= 5
    return replace(settings, fold=0 if enough and not any(case.label for case in data.test) else -1)


@dataclass(frozen=True)
class Outcome:
    """Where the main job left its results; `table` and the rest are None if there was no reference to compare with."""

    folder: Path
    predictions: Path
    table: Path | None = None
    report: Path | None = None
    picture: Path | None = None


def teach(run: Run) -> Method:
    """The stages from check to the trained method."""
    run.check()
    run.make_plan()
    run.preprocess()
    return run.fit()


def main_job(run: Run) -> Outcome:
    """Check, plan, preprocess, train, predict, evaluate, report.

    What is predicted: the test cases; without any, the validation cases of the fold. Raises `Problem` where a stage
    cannot be done; what was finished stays.
    """
    if getattr(METHODS[run.settings.method], "guided", False):
        what = "it fills a scan from labelled slices, and cannot predict one without"
        raise Problem(f"method={run.settings.method}", what, "use `contextseg train`, then `contextseg propagate`")
    method = teach(run)
    cases = list(run.dataset.test or run.split[1])

    def predict(folder: Path, tell: Callable[..., None]) -> None:
        failed = predict_cases(cases, [(method, run.plan)], run.settings.prediction, folder, run.dataset.ending, tell)
        if failed:
            name, why = next(iter(failed.items()))
            raise Problem(
                name, f"{len(failed)} of {len(cases)} cases could not be predicted: {why}", "mend or remove them"
            )

    predictions = run.stage("predict", predict)
    done = references(run.dataset, cases, predictions)
    if not done:
        return Outcome(run.folder, predictions)
    by_value = {name: [run.plan.values[k] for k in union] for name, union in run.plan.regions.items()}

    measured = run.stage("evaluate", lambda folder, tell: score(done, by_value, run.dataset.ignore, folder, tell))
    run.stage("report", lambda folder, tell: report(run, measured, done))
    return Outcome(run.folder, predictions, measured / "metrics.csv", run.folder / REPORT, run.folder / PICTURE)


def references(data: Dataset, cases: Sequence[Case], predictions: Path) -> list[Pair]:
    """The predictions of those cases that have a reference; a region was looked for if all its classes were."""
    made = []
    for case in cases:
        if case.label is None:
            continue
        looked_for = None
        if case.annotated is not None:
            known = {k for k, name in enumerate(data.classes) if name in case.annotated}
            looked_for = tuple(name for name, union in data.regions.items() if known.issuperset(union))
        prediction = predictions / f"{case.name}{data.ending}"
        made.append(Pair(case.name, prediction, case.label, case.images, looked_for))
    return made


def score(
    done: Sequence[Pair],
    regions: Mapping[str, Sequence[int]],
    ignore: int | None,
    folder: Path,
    tell: Callable[..., None] = lambda *_: None,
) -> None:
    """Write `metrics.csv` and `summary.json` into a folder, and `calibration.csv` where there are confidence maps.

    Raises `Problem` for the first case that cannot be measured.
    """
    table, problems = evaluate(done, regions, ignore=ignore, progress=tell)
    sure, more = calibration(done, regions, ignore=ignore)
    for why in (*problems.values(), *more.values()):
        raise Problem("evaluate", why, "run `contextseg check` on the data set")
    save_table(table, folder)
    save_calibration(sure, folder)


def predict_cases(
    cases: Sequence[Case],
    members: Sequence[tuple[Method, Plan]],
    how: Prediction,
    folder: Path,
    ending: str = ".nii.gz",
    tell: Callable[..., None] = lambda *_: None,
    efficiency: Efficiency | None = None,
) -> dict[str, str]:
    """Segment each case into `folder`/CASE`ending`; what is there already is kept. Returns the failures, by case.

    Where `how` asks for it, `folder`/confidence/CASE`ending` says how sure it is: 0 to 255 for 0 to 1; and where it
    asks for the largest component alone, `folder`/postprocessing.csv says what else there was. Of methods with a
    presence head, `folder`/presence.csv says what it saw; `efficiency` notes what each case costs that is segmented
    now. A case that cannot be read does not stop the others.
    """

    def segment(case: Case, out: Path) -> None:
        with efficiency.case(case.name) if efficiency else nullcontext():
            _predict_case(case, members, how, out)

    return each_case(cases, folder, ending, segment, tell)


def _predict_case(case: Case, members: Sequence[tuple[Method, Plan]], how: Prediction, out: Path) -> None:
    scan, changes, seen = read(*case.images), list[Change](), list[Flags]()
    label, sure = predict_with_confidence(scan, members, how, case.name, changes=changes, presence=seen)
    for change in changes:  # first: a label map that is there is a case that is done
        write_change(out.parent, case.name, change)
    for rows in seen:
        write_flags(out.parent, case.name, rows)
    if sure is not None:
        write(confidence_file(out), sure)
    write(out, label)


def report_again(folder: str | Path) -> Path:
    """Draw the report of a finished run again; its path. Raises `Problem` if nothing was evaluated there."""
    run = Run.open(folder)
    tables = sorted(run.folder.glob("*-evaluate/metrics.csv"))
    predictions = sorted(run.folder.glob("*-predict"))
    if not tables or not predictions:
        raise Problem(folder, "nothing was evaluated in this run", "finish it with `contextseg run`")
    cases = run.dataset.test or run.split[1]
    report(run, tables[-1].parent, references(run.dataset, cases, predictions[-1]))
    return run.folder / REPORT


def report(run: Run, measured: Path, done: Sequence[Pair]) -> None:
    """Draw `report.html` and `cases.png` of a run, from its table, logs and predictions."""
    import pandas as pd

    from contextseg.report import demo_picture, write_report

    cases = [
        {
            "case": pair.case,
            "image": [str(p) for p in pair.image],
            "reference": str(pair.reference),
            "prediction": str(pair.prediction),
        }
        for pair in done
    ]
    logs = {
        log.parent.name: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        for log in sorted(run.folder.glob("*-train*/log.jsonl"))
    }
    facts = read_json(run.folder / "run.json")
    notice = Path(run.settings.dataset) / "LICENSE.md"
    table = pd.read_csv(measured / "metrics.csv", dtype={"case": str, "class": str})
    regions = {name: [run.plan.values[k] for k in union] for name, union in run.plan.regions.items()}
    regions |= {} if run.dataset.ignore is None else {"ignore": [run.dataset.ignore]}
    kept = measured / "calibration.csv"
    demo_picture(run.folder / PICTURE, table, cases, regions)
    write_report(
        run.folder / REPORT,
        title=f"{run.dataset.name}: {run.settings.method}",
        table=table,
        cases=cases,
        logs=logs,
        stages=run.stages(),
        provenance={**facts, "plan": read_json(run.folder / "plan.json")},
        regions=regions,
        calibration=pd.read_csv(kept, dtype={"case": str}) if kept.exists() else None,
        note=re.sub(r"#+ |[*`]+", "", notice.read_text(encoding="utf-8")) if notice.exists() else "",
    )


def open_ensemble(folders: Sequence[str | Path]) -> tuple[list[tuple[Method, Plan]], Prediction]:
    """The finished methods of one or several runs with their plans, and how the first run predicts.

    Raises `Problem` for a run that is not finished, or whose plan differs in more than intensities.
    """
    members: list[tuple[Method, Plan]] = []
    runs = [Run.open(folder) for folder in folders]
    for run in runs:
        first = runs[0].plan
        for name in ("classes", "values", "orientation", "spacing_mm", "patch_vox"):
            if getattr(run.plan, name) != getattr(first, name):
                what = f"its plan differs in {name} from that of {runs[0].folder}"
                raise Problem(run.folder, what, "predict with each on its own")
        members.append((run.finished(), run.plan))
    return members, runs[0].settings.prediction
