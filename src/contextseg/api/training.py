"""The face for training, and for trained models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from contextseg.arguments import StrPath, assignments, progress_of, seconds_of, words
from contextseg.console import ProgressBar
from contextseg.disk import readable
from contextseg.errors import ContextsegError

if TYPE_CHECKING:
    from contextseg.crossvalidation import BestEnsemble
    from contextseg.data.plan import Plan
    from contextseg.pipeline import Outcome
    from contextseg.predictor import Predictor
    from contextseg.runs import Run
    from contextseg.settings import Settings


@readable
def train(
    dataset: StrPath,
    output: StrPath,
    *,
    method: str = "supervised",
    fold: int | str = "auto",
    seed: int = 0,
    plan: StrPath | Plan | None = None,
    init: StrPath | None = None,
    roi: Sequence[str] = (),
    time: str | float = "",
    extend: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Run:
    """Check, plan, preprocess, train. The same call goes on where it was stopped.

    Args:
        dataset: Folder of the data set.
        output: Folder of the run.
        method: How to train; docs/methods.md lists all.
        fold: 0 to 4 keeps that fifth for validation, "all" keeps none, "auto" is "all" where the
            data set has a labelled test split.
        seed: Same seed, same result, bit for bit on a CPU.
        plan: A plan, or the file of one, in place of one made by the rules; also nnU-Net's
            `nnUNetPlans.json` (`nnUNetPlans.json:2d` for another configuration than 3d_fullres).
        init: A run, an exported model or a file of weights to start from, for other classes and
            channels too. What is loaded, skipped and missing is said, and noted in the training
            stage's `weights.json`. None for new weights.
        roi: Classes to segment; the others are background. () for all.
        time: Time that the whole call may take, preprocessing and prediction included: "90s",
            "45m", "2h", "1h30m", "1d", or seconds. The number of steps is then measured and chosen.
            With `folds` each run gets its share. "" leaves it to `steps`, and without `steps` to
            the device: 250,000 on a GPU, and on a CPU what two hours allow, for each run.
        extend: Train a finished run longer, to more `steps` or `time` in all than it had; without
            either, one that was ended early goes on to its length. Results of before are kept in
            its folder `before`.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=20000` or `net="resenc"`.

    Returns:
        The run; `run.predictor()` segments scans.

    Raises:
        ContextsegError: The data set has errors, a setting does not exist, or the folder holds a
            run with other settings.
    """
    began = monotonic()
    from contextseg.pipeline import train_run

    settings |= {**_start_weights(init, method, settings), **_time(time)}
    bar = progress_of(verbose)
    chosen = _settings(dataset, method, fold, seed, roi, settings)
    with _ranks(), _run(chosen, output, plan, extend, bar, began) as opened:
        train_run(opened)
    return opened


@readable
def run(
    dataset: StrPath,
    output: StrPath,
    *,
    method: str = "supervised",
    fold: int | str = "auto",
    folds: Sequence[int] | str = (),
    seed: int = 0,
    plan: StrPath | Plan | None = None,
    init: StrPath | None = None,
    roi: Sequence[str] = (),
    time: str | float = "",
    extend: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Outcome:
    """The whole job: check, plan, preprocess, train, predict, evaluate, report.

    A finished stage is not done again. The test split is predicted and scored where there is one,
    and else the validation cases of the fold.

    With `folds`, a run for each fold lies in `output` (`fold0`, `fold1`, ...), which share one
    cache. Their validation cases are scored together (`cross-validation/metrics.csv`), and `load`
    opens the folder as the ensemble of all folds, which segments the test split.

    Args:
        dataset: Folder of the data set.
        output: Folder of the run.
        method: How to train; docs/methods.md lists all.
        fold: As for `train`.
        folds: Several folds, such as `range(5)` or "0,1,2,3,4", in place of `fold`. () for one run.
        seed: Same seed, same result, bit for bit on a CPU.
        plan: A plan, or the file of one, in place of one made by the rules.
        init: A run, an exported model or a file of weights to start from, for other classes and
            channels too. What is loaded, skipped and missing is said, and noted in the training
            stage's `weights.json`. None for new weights.
        roi: Classes to segment; the others are background. () for all.
        time: Time that the whole call may take, preprocessing and prediction included: "90s",
            "45m", "2h", "1h30m", "1d", or seconds. The number of steps is then measured and chosen.
            "" leaves it to `steps`, and without `steps` to the device: 250,000 on a GPU, and on a
            CPU what two hours allow.
        extend: Train a finished run longer, to more `steps` or `time` in all than it had; without
            either, one that was ended early goes on to its length. Results of before are kept in
            its folder `before`.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=20000` or `net="resenc"`.

    Returns:
        Where the predictions, the table and the report are; with `folds` the table is that of all
        validation cases.

    Raises:
        ContextsegError: As `train`, and where a case cannot be predicted or scored.
    """
    began = monotonic()
    from contextseg.crossvalidation import cross_validate, refuse_ensemble
    from contextseg.data.nnunet import load_plan
    from contextseg.data.plan import Plan
    from contextseg.pipeline import run_pipeline
    from contextseg.run_folder import refuse_among_scans

    numbers = _fold_numbers(folds, fold)
    settings |= {**_start_weights(init, method, settings), **_time(time, max(1, len(numbers)))}
    bar = progress_of(verbose)
    if numbers:
        chosen = _settings(dataset, method, numbers[0], seed, roi, settings)
        refuse_among_scans(output, dataset)

        def given(opened: Run) -> Plan:
            return plan if isinstance(plan, Plan) else load_plan(str(plan), opened.dataset)

        if extend:
            remedy = f"extend the runs one by one: {output}/fold{numbers[0]} and the others"
            raise ContextsegError("--extend", "not for several folds at once", remedy)
        with _ranks():
            return cross_validate(chosen, numbers, output, bar, given if plan else None)
    refuse_ensemble(output)
    chosen = _settings(dataset, method, fold, seed, roi, settings)
    with _ranks(), _run(chosen, output, plan, extend, bar, began) as opened:
        return run_pipeline(opened)


def _fold_numbers(folds: Sequence[int] | str, fold: int | str) -> list[int]:
    """The numbers of several folds, each once; [] for none."""
    numbers = words(folds)
    if not numbers:
        return []
    if fold != "auto":
        raise ContextsegError(f"--fold {fold}", "--folds is given as well", "give one of the two")
    for number in numbers:
        if not number.isdecimal():
            remedy = "give numbers, such as --folds 0,1,2,3,4"
            raise ContextsegError(f"--folds {number}", "not a fold", remedy)
    return list(dict.fromkeys(map(int, numbers)))


@readable
def ensemble(
    models: Sequence[StrPath],
    output: StrPath,
    *,
    device: str = "",
    verbose: bool = True,
) -> BestEnsemble:
    """Choose the model or the combination of models that is best on the validation cases.

    Such as a 2-D, a 3-D run, or both. Each validation case is segmented by the runs that were not
    trained on it. `output` is a model: `load(output)` predicts with what was chosen.

    Args:
        models: Folders of `run` with `folds`, or of single runs of one fold; two or more, with the
            same validation cases.
        output: Where the choice goes: `candidates.csv`, `ensemble.json`, and the label maps of all
            candidates. The same call goes on where it was stopped.
        device: As for `load`.
        verbose: Show the progress on stderr.

    Returns:
        The table of the candidates, and which was chosen.

    Raises:
        ContextsegError: Models with other validation cases or other classes, or one that was
            validated on none.
    """
    from contextseg.crossvalidation import best_ensemble

    return best_ensemble(models, output, device, progress_of(verbose))


@readable
def finish(run: StrPath, *, verbose: bool = True) -> Outcome | None:
    """End the training of a run now and use the model as it is: predict, evaluate, report.

    A training that was stopped ends with its last checkpoint. One that another process works on
    ends after its step, and that process goes on to predict and evaluate. The report says at which
    step it was stopped; `run(..., extend=True)` goes on from there to the length that it had.

    Args:
        run: Folder of the run.
        verbose: Show the progress on stderr.

    Returns:
        Where the results are. None where another process makes them, and for a method that predicts
        nothing by itself.

    Raises:
        ContextsegError: There is no run in the folder, or no training with a checkpoint.
    """
    from contextseg.console import say
    from contextseg.longer import ask_to_finish
    from contextseg.longer import finish as finish_run
    from contextseg.runs import Run

    Run.open(run)
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(run))
        except ContextsegError:
            if not ask_to_finish(run):
                raise
            if verbose:
                say(f"{run}: the process that trains it ends its training, and uses the model")
            return None
        return finish_run(run, progress_of(verbose))


@readable
def demo(
    output: StrPath = "demo", *, time: str | float = "", verbose: bool = True, **settings: Any
) -> Outcome:
    """The whole job on sixteen real MR scans of soft-tissue sarcoma: minutes on two cores.

    The scans come with the package (Vallières et al. 2015, CC BY 3.0).

    Args:
        output: Folder of the run.
        time: As for `run`; "" for 300 steps.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=50`.

    Returns:
        Where the predictions, the table, the picture and the report are.
    """
    began = monotonic()
    from contextseg.pipeline import demo_settings, run_pipeline
    from contextseg.runs import Run
    from contextseg.training import Training

    chosen = demo_settings()
    if seconds := seconds_of(time):
        chosen = chosen.with_length(Training(time_s=seconds))
    chosen = chosen.set(assignments(settings))
    with _locked(output):
        opened = Run(output, chosen, progress_of(verbose))
        opened.work_time.add(monotonic() - began)
        return run_pipeline(opened)


@readable
def load(*runs: StrPath, device: str = "", **settings: Any) -> Predictor:
    """Open finished runs as one predictor, which segments scans.

    Args:
        *runs: Folders of finished runs, of `run` with `folds` and of `ensemble`, files that
            `export` wrote, or folders of models that nnU-Net trained (with `plans.json`, or a
            `fold_0` in it). Several are an ensemble: the mean of their logits, or, where their
            plans differ in grid or patch (2-D with 3-D), of their probabilities. nnU-Net's models
            are no ensemble with others.
        device: Where the networks run, such as "cpu" or "cuda:1". "" is where each run was
            trained, or, where that device is not here, the GPU or CPU that is.
        **settings: Settings of prediction by name, such as `mirror=False`, in place of those of
            the first run.

    Returns:
        The predictor: `load("runs/plain").predict("scan.nii.gz")`.

    Raises:
        ContextsegError: A run is not finished, or its classes are others.
    """

    from contextseg.pipeline import open_predictor
    from contextseg.settings import Settings

    if not runs:
        raise ContextsegError("load", "no run", "give the folder of a finished run")
    predictor = open_predictor(runs, device)
    asked = Settings("", prediction=predictor.settings).set(
        assignments(settings), used=["prediction"], by="a finished run"
    )
    return replace(predictor, settings=asked.prediction)


@readable
def export(
    runs: StrPath | Sequence[StrPath],
    output: StrPath,
    *,
    licence: str = "",
    note: str = "",
) -> Path:
    """Write a trained model as one file that travels: without training data, without a patient.

    The ending of the file says what it is. A `.zip` holds weights, plan, recipe, licence and a
    model card; `load` and `contextseg predict` take it in place of a run. An `.onnx` runs in ONNX
    Runtime, and a `.pt2` is a program of `torch.export`: both are the network on one patch, and a
    JSON file beside it (`model.onnx.json`) describes what comes before and after it
    (`examples/run_onnx.py` does that).

    Args:
        runs: Folder of a finished run, of `run` with `folds`, or of `ensemble`; several are an
            ensemble.
        output: The file.
        licence: The model's licence: words, such as "CC BY 4.0", or a file of text.
        note: What the model card should say besides: words, or a file of text.

    Returns:
        `output`.

    Raises:
        ContextsegError: A run is not finished, the ending is unknown, a method cannot be exported
            so, or the extra `onnx` is not installed.
    """
    from contextseg.models import export_archive, export_network, open_runs, validated_by_all
    from contextseg.pipeline import open_predictor

    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    ending = Path(output).suffix.lower()
    if not folders:
        raise ContextsegError("export", "no run", "give the folder of a finished run")
    if ending not in (".zip", ".onnx", ".pt2"):
        raise ContextsegError(output, "not the ending of a model", "end in .zip, .onnx or .pt2")
    if ending == ".zip":
        runs_of_all, largest = open_runs(folders), validated_by_all(folders)
        return export_archive(runs_of_all, output, licence, note, largest)
    return export_network(open_predictor(folders, "cpu"), output, licence, note)


def _start_weights(
    init: StrPath | None, method: str, settings: Mapping[str, Any]
) -> dict[str, str]:
    """The settings that `init` stands for: the start weights of each network of the method."""
    from contextseg.settings import names

    if init is None:
        return {}
    if {"weights", "arguments.weights"} & set(settings):
        what = "weights are set as well"
        raise ContextsegError(f"init={init}", what, "give one of the two")
    known = [f"arguments.{name}" for name in ("weights", "second_weights")]
    chosen = [name for name in known if name in names(method)]
    if not chosen:
        what = f"method {method} has no argument `weights`"
        raise ContextsegError(f"init={init}", what, "leave it out")
    path = str(Path(init).absolute())
    return {name: path for name in chosen if name.split(".")[1] not in settings}


def _time(time: str | float, runs: int = 1) -> dict[str, Any]:
    """The setting that a time stands for, of which each of several runs gets its share."""
    seconds = seconds_of(time)
    return {"training.time_s": seconds / runs} if seconds else {}


@contextmanager
def _run(
    settings: Settings,
    output: StrPath,
    plan: StrPath | Plan | None,
    longer: bool,
    bar: ProgressBar,
    began: float,
) -> Iterator[Run]:
    """The run of these settings, opened in a folder that is locked as long as the block lasts."""
    from contextseg.data.nnunet import load_plan
    from contextseg.data.plan import Plan
    from contextseg.longer import extend
    from contextseg.pipeline import resolve_fold
    from contextseg.ranks import first_rank_first
    from contextseg.run_folder import refuse_among_scans
    from contextseg.runs import Run

    chosen = resolve_fold(settings, output)
    refuse_among_scans(output, settings.dataset)
    with _locked(output):
        first_rank_first(lambda: extend(output, chosen, longer))
        opened = Run(output, chosen, bar)
        opened.work_time.add(monotonic() - began)  # what was imported and read so far
        if plan:
            opened.use_plan(plan if isinstance(plan, Plan) else load_plan(plan, opened.dataset))
        yield opened


def _settings(
    dataset: StrPath,
    method: str,
    fold: int | str,
    seed: int,
    roi: Sequence[str],
    settings: Mapping[str, Any],
) -> Settings:
    from contextseg.settings import AUTO_FOLD, Settings, names

    named = {"auto": AUTO_FOLD, "all": -1}
    text = str(fold)
    if text not in named and not text.isdecimal():
        raise ContextsegError(f"--fold {fold}", "not a fold", "give 0 to 4, all, or auto")
    number = named[text] if text in named else int(text)
    folder = str(Path(dataset).absolute())
    names(method)  # refuses one that there is not
    made = Settings(folder, method, number, seed, roi=tuple(roi))
    return made.set(assignments(settings))


@contextmanager
def _locked(folder: StrPath) -> Iterator[None]:
    """Keep other processes, but not the other ranks of this one, out of the folder of a run."""
    from contextseg.disk import lock_folder

    if int(os.environ.get("RANK", 0)):
        yield
        return
    with lock_folder(folder):
        yield


@contextmanager
def _ranks() -> Iterator[None]:
    """Join the other processes of `torchrun`, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
