"""A run whose training goes on after its end, or ends before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contextseg.console import ProgressBar, no_progress_bar, say
from contextseg.disk import read_json, readable, write_json, write_text, writing
from contextseg.errors import ContextsegError
from contextseg.inputs import damage_named, read_tensors
from contextseg.length import Length, longer_steps, seconds_spent
from contextseg.methods import workload_of
from contextseg.pipeline import PICTURE, REPORT, Outcome, run_pipeline, train_run
from contextseg.run_folder import RunFolder
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.training import DEFAULT_STEPS, FINISH_FILE, Training
from contextseg.training_log import log_rows

BEFORE = "before"
"""Folder in a run: what was made with the model of an earlier step, as `before/step-4000`."""

RESULTS = ("predict", "evaluate", "report")
"""Stages that are made of the trained model."""


# --- longer ---------------------------------------------------------------------------------------


@readable
def extend(folder: str | Path, settings: Settings, asked: bool = False) -> None:
    """Prepare a run to be trained longer, if that is asked for; opening and training it does it.

    The last training goes on from its last step and weights, with its optimiser, first learning
    rate and augmentation. From there the learning rate is that of a training of the new length: it
    rises again, the higher the longer the training is, and falls to 0. What was made of the model
    of before is moved to the folder `BEFORE`.

    Args:
        folder: Folder of the run.
        settings: What is asked for: `steps` in all, above those of before.
        asked: Whether it is to be extended at all events: then `time_s`, in all, counts too, and
            without a new length a training that was ended early goes on to the length it had.

    Raises:
        ContextsegError: Nothing is there to be extended, or the time leaves no step.
    """
    path = Path(folder) / "run.json"
    run = RunFolder(folder)
    trainings = run.stage_folders("train") if path.exists() else []
    if not trainings:
        if asked:
            what = "there is no training in this folder that could be extended"
            raise ContextsegError(folder, what, "leave out --extend")
        return
    content = read_json(path)
    before = Settings.from_json(content["settings"])
    wanted, was = settings.training, before.training
    if before.differences(settings.with_length(was)):
        return  # it is refused: `Run` says what differs
    last = trainings[-1]
    length = _length_of(last, was)
    reached = length.last if run.done(last.name) else _checkpoint_step(last)
    steps = _new_steps(run, length, reached, wanted, was, asked)
    if steps == length.steps and asked and not length.until and run.done(last.name):
        say(
            f"{last.name} has all its {length.steps} steps; to train longer give more, such as "
            f"--set steps={2 * length.steps}"
        )
    if steps > length.steps or (asked and length.until):
        say(f"{last.name} goes on from step {reached} to {steps}; see {Path(folder) / BEFORE}")
        _set_aside(run, last, reached)
        (last / "done.json").unlink(missing_ok=True)
        if steps > length.steps:
            length = replace(length, until=reached)
        length.extended(steps).save(last)
    if steps and (wanted.steps or wanted.time_s):
        content["settings"] = before.with_length(wanted).to_json()
        write_json(path, content)


def _length_of(folder: Path, training: Training) -> Length:
    steps = training.steps or DEFAULT_STEPS
    return Length.load(folder) or Length(steps, steps)


def _checkpoint_step(folder: Path) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    remedy = "delete the file to start again"
    with damage_named(path, remedy, "this checkpoint cannot be used"):
        return int(read_tensors(path, remedy)["step"])


def _new_steps(
    run: RunFolder, length: Length, reached: int, wanted: Training, was: Training, asked: bool
) -> int:
    """The steps that are asked for, in all; 0 where that is for `Run` to refuse or to take."""
    if wanted.steps:
        longer = wanted.steps > length.steps and (asked or was.steps)
        return wanted.steps if longer or wanted.steps == length.steps else 0
    if not asked or wanted.time_s < was.time_s > 0 < wanted.time_s:
        return 0
    if wanted.time_s <= was.time_s:
        return length.steps
    folder = run.stage_folders("train")[-1]
    rows = log_rows(folder / "log.jsonl")
    step_s = rows[-1]["seconds"] / rows[-1]["step"] if rows else length.measured["step_s"]
    seconds = {stage["name"]: float(stage["seconds"]) for stage in run.stages()}
    after = sum(seconds.get(name, 0.0) for name in RESULTS)
    return longer_steps(reached, wanted.time_s, seconds_spent(run), after, step_s)


def _set_aside(run: RunFolder, training: Path, step: int) -> None:
    """Move what was made of a training's model to a folder of its own."""
    stages = [stage["name"] for stage in run.stages()]
    later = stages[stages.index(training.name) + 1 :] if training.name in stages else []
    model = training / "model.pt"
    paths = [run.stage_folder(name) for name in dict.fromkeys([*later, *RESULTS])]
    paths += [run.folder / REPORT, run.folder / PICTURE]
    if not model.exists() and not any(path.exists() for path in paths):
        return
    aside = run.folder / BEFORE / f"step-{step}"
    number = 2
    while aside.exists():
        aside = aside.with_name(f"step-{step}-{number}")
        number += 1
    with writing(aside):
        aside.mkdir(parents=True)
        for path in (*paths, model):
            if path.exists():
                path.rename(aside / path.name)


# --- shorter --------------------------------------------------------------------------------------


def finish(folder: str | Path, progress_bar: ProgressBar = no_progress_bar) -> Outcome | None:
    """End the training of a stopped run where it is, then predict, evaluate and report.

    Where a method trains several times, the trainings that would follow are left out: the model is
    the one that its recipe has by then.

    Args:
        folder: Folder of the run, which no other process works on.
        progress_bar: Shows the progress of each stage.

    Returns:
        Where the results are; None for a method that predicts nothing by itself.

    Raises:
        ContextsegError: There is no run, or no checkpoint of a training that segments.
    """
    run = Run.open(folder, progress_bar)
    _end_training(run)
    run = Run.open(folder, progress_bar)
    if run.guided:
        train_run(run)
        return None
    return run_pipeline(run)


def _end_training(run: Run) -> None:
    """Note that the latest training that has a checkpoint ends with it."""
    work = workload_of(run.settings.method, run.settings.arguments)
    for folder in reversed(run.stage_folders("train")):
        number = int(folder.name.rpartition("-")[2]) if folder.name.startswith("train-") else 1
        done = run.done(folder.name)
        if number < work.segments_from or not (done or (folder / "checkpoint.pt").exists()):
            continue
        length = _length_of(folder, run.settings.training)
        if not done:
            length.ended(_checkpoint_step(folder), "finish").save(folder)
        elif number < work.trainings and not length.until:
            length.ended(length.steps, "finish").save(folder)
        return
    what = "no training in this folder has a checkpoint of a model that segments"
    remedy = "train it first: give `contextseg run` the same --output"
    raise ContextsegError(run.folder, what, remedy)


def ask_to_finish(folder: str | Path) -> bool:
    """Ask the process that trains in a folder to end its training, and to go on from there.

    Args:
        folder: Folder of the run.

    Returns:
        Whether a training is going on there.
    """
    run = RunFolder(folder)
    trainings = run.stage_folders("train")
    if not trainings or run.done(trainings[-1].name):
        return False
    write_text(trainings[-1] / FINISH_FILE, "")
    return True
