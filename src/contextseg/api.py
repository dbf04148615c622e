"""The Python face: what the command line does, each verb as one function.

Those that study methods (compare, curve, simulate and others) are in `contextseg.studies.api`.
Every function takes paths as text or `Path`, and settings by the names that `--set` knows
(docs/cli.md). Heavy imports wait until a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.arguments import StrPath, assignments, progress_of
from contextseg.arguments import words as words_of
from contextseg.console import ProgressBar, say
from contextseg.errors import ContextsegError

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.annotator.launch import Annotating
    from contextseg.data.check import Finding
    from contextseg.data.plan import Plan
    from contextseg.pipeline import Outcome
    from contextseg.predictor import Predictor
    from contextseg.projects import LabelProject
    from contextseg.propagation import Filled, LabelledSlices
    from contextseg.runs import Run
    from contextseg.settings import Settings
    from contextseg.volume import Volume


# --- data -----------------------------------------------------------------------------------------


def check(dataset: StrPath, *, roi: Sequence[str] = (), verbose: bool = True) -> list[Finding]:
    """Report every problem of a data set at once, each with its file and remedy.

    Args:
        dataset: Folder: nnU-Net v2 raw, Medical Decathlon, or `images/` and `labels/`.
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.

    Returns:
        The findings, what concerns the whole data set first; [] where nothing is wrong.

    Example:
        >>> check("no-such-folder", verbose=False)[0].what
        'the folder does not exist'
    """
    from contextseg.data.check import check as find_problems

    with progress_of(verbose)("check") as progress:
        return find_problems(dataset, progress=progress, roi=roi)


def plan(
    dataset: StrPath,
    output: StrPath | None = None,
    *,
    roi: Sequence[str] = (),
    verbose: bool = True,
    **settings: Any,
) -> Plan:
    """Look at the data and make the plan: spacing, patch, network, normalisation.

    Args:
        dataset: Folder of the data set.
        output: Where to write the plan as JSON, to be edited and given to `train` or `run`.
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.
        **settings: Settings of planning by name, such as `spacing_mm=(2, 1, 1)`.

    Returns:
        The plan.

    Raises:
        ContextsegError: The data set cannot be read, or a setting does not exist.
    """
    from contextseg.data.cache import fingerprint
    from contextseg.data.layouts import open_dataset
    from contextseg.data.roi import restricted
    from contextseg.runs import planned
    from contextseg.settings import Settings

    asked = assignments(settings)
    planning = Settings(str(dataset)).set(asked, used=["planning"], by="`plan`").planning
    data = restricted(open_dataset(dataset), roi)
    with progress_of(verbose)("plan") as progress:
        facts = fingerprint(data, data.train, progress=progress)
    made = planned(data, facts, planning)
    if output is not None:
        made.save(Path(output))
    return made


# --- training -------------------------------------------------------------------------------------


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
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=20000` or `net="resenc"`.

    Returns:
        The run; `run.predictor()` segments scans.

    Raises:
        ContextsegError: The data set has errors, a setting does not exist, or the folder holds a
            run with other settings.
    """
    from contextseg.pipeline import train_run

    settings |= _start_weights(init, method, settings)
    bar = progress_of(verbose)
    with _ranks(), _run(dataset, output, method, fold, seed, plan, roi, settings, bar) as opened:
        train_run(opened)
    return opened


def run(
    dataset: StrPath,
    output: StrPath,
    *,
    method: str = "supervised",
    fold: int | str = "auto",
    seed: int = 0,
    plan: StrPath | Plan | None = None,
    init: StrPath | None = None,
    roi: Sequence[str] = (),
    verbose: bool = True,
    **settings: Any,
) -> Outcome:
    """The whole job: check, plan, preprocess, train, predict, evaluate, report.

    A finished stage is not done again. The test split is predicted and scored where there is one,
    and else the validation cases of the fold.

    Args:
        dataset: Folder of the data set.
        output: Folder of the run.
        method: How to train; docs/methods.md lists all.
        fold: As for `train`.
        seed: Same seed, same result, bit for bit on a CPU.
        plan: A plan, or the file of one, in place of one made by the rules.
        init: A run, an exported model or a file of weights to start from, for other classes and
            channels too. What is loaded, skipped and missing is said, and noted in the training
            stage's `weights.json`. None for new weights.
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=20000` or `net="resenc"`.

    Returns:
        Where the predictions, the table and the report are.

    Raises:
        ContextsegError: As `train`, and where a case cannot be predicted or scored.
    """
    from contextseg.pipeline import run_pipeline

    settings |= _start_weights(init, method, settings)
    bar = progress_of(verbose)
    with _ranks(), _run(dataset, output, method, fold, seed, plan, roi, settings, bar) as opened:
        return run_pipeline(opened)


def demo(output: StrPath = "demo", *, verbose: bool = True, **settings: Any) -> Outcome:
    """The whole job on sixteen real MR scans of soft-tissue sarcoma: minutes on two cores.

    The scans come with the package (Vallières et al. 2015, CC BY 3.0).

    Args:
        output: Folder of the run.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=50`.

    Returns:
        Where the predictions, the table, the picture and the report are.
    """
    from contextseg.pipeline import demo_settings, run_pipeline
    from contextseg.runs import Run

    chosen = demo_settings().set(assignments(settings))
    with _locked(output):
        return run_pipeline(Run(output, chosen, progress_of(verbose)))


# --- segmenting -----------------------------------------------------------------------------------


def load(*runs: StrPath, device: str = "", **settings: Any) -> Predictor:
    """Open finished runs as one predictor, which segments scans.

    Args:
        *runs: Folders of finished runs, files that `export` wrote, or folders of models that
            nnU-Net trained (with `plans.json`, or a `fold_0` in it). Several are an ensemble: the
            mean of their logits, or, where their plans differ in grid or patch (2-D with 3-D), of
            their probabilities. nnU-Net's models are no ensemble with others.
        device: Where the networks run, such as "cpu" or "cuda:1". "" is where each run was
            trained, or, where that device is not here, the GPU or CPU that is.
        **settings: Settings of prediction by name, such as `mirror=False`, in place of those of
            the first run.

    Returns:
        The predictor: `load("runs/plain").predict("scan.nii.gz")`.

    Raises:
        ContextsegError: A run is not finished, or its classes are others.
    """
    from dataclasses import replace

    from contextseg.pipeline import open_predictor
    from contextseg.settings import Settings

    if not runs:
        raise ContextsegError("load", "no run", "give the folder of a finished run")
    predictor = open_predictor(runs, device)
    asked = Settings("", prediction=predictor.settings).set(
        assignments(settings), used=["prediction"], by="a finished run"
    )
    return replace(predictor, settings=asked.prediction)


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
        runs: Folder of a finished run; several are an ensemble.
        output: The file.
        licence: The model's licence: words, such as "CC BY 4.0", or a file of text.
        note: What the model card should say besides: words, or a file of text.

    Returns:
        `output`.

    Raises:
        ContextsegError: A run is not finished, the ending is unknown, a method cannot be exported
            so, or the extra `onnx` is not installed.
    """
    from contextseg.models import export_archive, export_network
    from contextseg.pipeline import open_predictor
    from contextseg.runs import Run

    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    ending = Path(output).suffix.lower()
    if not folders:
        raise ContextsegError("export", "no run", "give the folder of a finished run")
    if ending not in (".zip", ".onnx", ".pt2"):
        raise ContextsegError(output, "not the ending of a model", "end in .zip, .onnx or .pt2")
    if ending == ".zip":
        return export_archive([Run.open(folder) for folder in folders], output, licence, note)
    return export_network(open_predictor(folders, "cpu"), output, licence, note)


def propagate(
    scan: Any,
    labels: Any,
    output: StrPath | None = None,
    *,
    model: StrPath | None = None,
    way: str = "",
    between: bool = False,
    stop_below: float = 0.7,
    unlabelled: int | None = None,
    plane: str = "auto",
    complete: bool = False,
    previous: StrPath = "auto",
    spacing_mm: Sequence[float] | None = None,
    series: str = "",
    verbose: bool = True,
) -> Filled:
    """Fill a scan from a few labelled slices, in both directions, for any class.

    Label the slice that `Filled.suggestion` names, or correct slices of the filled map itself, and
    call it again. Each class is filled between the slices that hold it.

    Args:
        scan: A file, a list of files for several channels, a `Volume`, a SimpleITK or nibabel
            image, or an array with `spacing_mm`.
        labels: A label map on the scan's grid in which some slices are labelled; as `scan`.
        output: Where to write the filled label map, and CASE-slices.csv beside it. The names and
            colours of `labels` are kept: in a `.seg.nrrd` file itself, else in CASE.label, a label
            description of ITK-SNAP.
        model: A run of `train(..., method="stcn")`. None is the network that comes with the
            package, which needs no training.
        way: "combined", "propagation", "interpolation" or "nearest". "" is "combined": the network
            and the shapes of the labelled slices.
        between: Each structure's first and last slice are labelled; none lies beyond.
        stop_below: Beyond the outermost labelled slices, stop where a smaller Dice is expected; 0
            never stops.
        unlabelled: The value of unlabelled voxels. None: slices without a label are unlabelled.
        plane: "axial", "coronal" or "sagittal": what is labelled. "auto" finds it.
        complete: A labelled slice that lacks a class says that the class is not there. Otherwise it
            says nothing of it.
        previous: The filled map of before, of which `labels` is a corrected copy: slices that
            changed are labelled, and those that were. "auto" finds it by the CASE-slices.csv beside
            `labels` or `output`; "none" takes `labels` as drawn.
        spacing_mm: Voxel size along D, H and W, for arrays.
        series: Which series of a DICOM folder, by number or UID. "" for the only one.
        verbose: Show the progress on stderr.

    Returns:
        The filled label map, the confidence of each slice, the next slice worth labelling, and
        notes of what was not filled, which are printed too if `verbose`.

    Raises:
        ContextsegError: Scan and labels are not on one grid, nothing is labelled, `way` needs a
            model, `previous` is no filled map, or `output` is the scan or the labels.
    """
    from contextseg.interop.names import describe_result, known_segments
    from contextseg.pipeline import open_propagation_model
    from contextseg.predictor import scan_of
    from contextseg.propagation import fill, open_completion, ranges
    from contextseg.volume import as_labels

    _refuse_to_overwrite(output, scan, labels)
    volume = scan_of(scan, spacing_mm, series)
    drawn = as_labels(labels, volume, unlabelled or 0)
    segments = known_segments(labels)
    labelled, found = _labelled(labels, drawn, output, str(previous), unlabelled, plane, complete)
    network: Any = None
    if way not in ("interpolation", "nearest"):
        network = open_propagation_model(model) if model else open_completion()
    with progress_of(verbose)("propagate") as progress:
        filled = fill(
            volume,
            labelled,
            network,
            way,
            ranges(labelled) if between else None,
            stop_below,
            progress,
        )
    filled = replace(filled, notes=(*found, *filled.notes))
    for note in filled.notes if verbose else ():
        say(note)
    if output is not None:
        filled.save(output)
        describe_result(output, filled.label, segments)
    return filled


def annotate(
    folder: StrPath | None = None,
    output: StrPath | None = None,
    *,
    demo: bool = False,
    model: StrPath | None = None,
    classes: Sequence[str] = (),
    labels: StrPath | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    token: str = "",
    browser: bool = True,
    monai: bool = False,
    wait: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Annotating:
    """Draw a few slices of each scan in the browser; the others are filled.

    A server starts on this machine, and its page opens. Every stroke is saved at once, and the same
    call goes on where it was stopped.

    Args:
        folder: A scan, a folder of scans, or the folder of a data set. None with `demo`.
        output: Folder for what is drawn, for finished label maps, and for the data set made of
            them. None is `annotations`, or `annotations-demo` with `demo`.
        demo: Annotate the scans that come with the package.
        model: A run of `train(..., method="stcn")`, which fills on demand. None fills by shapes.
        classes: What to draw, names or NAME=VALUE. () are the classes of the output folder, of the
            data set, or "target".
        labels: Folder of label maps to start from and correct, such as predictions, named as the
            scans.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on. Any other than this machine's own needs a `token`.
        token: What the page must know. "" makes one.
        browser: Open the page in the browser.
        monai: Answer MONAI Label's clients too, such as the module of 3D Slicer.
        wait: Return when the server is stopped with Ctrl-C; otherwise at once.
        verbose: Say on stderr where the page is.
        **settings: Settings of the training that the page starts, such as `steps=2000`.

    Returns:
        The server: `.url` is its page, `.stop()` ends it.

    Raises:
        ContextsegError: There is no scan, the output folder belongs to others, or the port is
            taken.
    """
    from contextseg.annotator.launch import open_browser, start_annotating
    from contextseg.pipeline import DEMO_DATA

    if demo == (folder is not None):
        what = "a folder and --demo" if demo else "no folder"
        raise ContextsegError("annotate", what, "give a folder of scans, or --demo")
    source = DEMO_DATA if folder is None else Path(folder)
    work = Path(output or ("annotations-demo" if demo else "annotations"))
    words = [word for setting in assignments(settings) for word in ("--set", setting)]
    server = start_annotating(
        source,
        work,
        model=model,
        classes=words_of(classes),
        labels=labels,
        train=words,
        port=port,
        host=host,
        token=token,
        monai=monai,
    )
    if verbose:
        say(f"the annotator: {server.url}")
        say(f"what is drawn is saved in {work}; Ctrl-C ends")
    if browser:
        open_browser(server.url)
    if wait:
        server.serve()
        return server
    return server.start()


def _labelled(
    labels: Any,
    drawn: Volume,
    output: StrPath | None,
    previous: str,
    unlabelled: int | None,
    plane: str,
    complete: bool,
) -> tuple[LabelledSlices, list[str]]:
    """The labelled slices of `propagate`, and what is to be said of where they come from."""
    from contextseg.propagation import find_previous, labelled_slices, open_previous

    before = None
    if previous not in ("auto", "none"):
        before = open_previous(previous, drawn)
    elif previous == "auto" and isinstance(labels, str | Path) and unlabelled is None:
        before = find_previous(labels, output, drawn)
    if before is None:
        return labelled_slices(drawn, unlabelled, plane, complete), []
    changed = ", ".join(map(str, before.changed(drawn))) or "none"
    note = f"{labels} is a corrected copy of the map of {before.path}; slices that changed: "
    return before.labelled(drawn), [note + changed]


def two_stage(
    reference: StrPath,
    images: StrPath,
    output: StrPath,
    *,
    model: StrPath | None = None,
    every: int = 5,
    select: str = "",
    slices: int = 1,
    recover: bool = True,
    bounded: bool = True,
    way: str = "",
    verbose: bool = True,
    **settings: Any,
) -> dict[str, Path]:
    """Segment scans in two stages: a run labels some slices, the best of them fill the rest.

    Args:
        reference: A finished run or exported model; a 2-D one sees the sampled slices alone.
        images: A scan, a folder of scans, or the folder of a data set.
        output: Folder of the label maps, and of `two-stage.csv`, which says for each class where
            it was found and flags what was missed. What is there already is kept.
        model: A run of `train(..., method="stcn")`. None interpolates shapes.
        every: The reference run labels every so many slices.
        select: "largest", "certain", "covering", "presence" or "all". "" is "largest" with a
            model, and "all" without.
        slices: Reference slices of each class.
        recover: Look once more, in between, for a class that no slice shows.
        bounded: Fill a class only up to the evaluated slices that do not hold it.
        way: "propagation", "combined", "interpolation" or "nearest". "" is "propagation" with a
            model, and "interpolation" without.
        verbose: Show the progress on stderr.
        **settings: How the reference run predicts, such as `mirror=False`.

    Returns:
        The label map of each case, by name.

    Raises:
        ContextsegError: The runs do not go together, the folder holds results of other settings,
            or scans could not be segmented; all others are done.
    """
    from contextseg.pipeline import open_propagation_model
    from contextseg.twostage.stages import TwoStageSettings, segment_folder

    stages = TwoStageSettings(
        every, select=select, slices=slices, recover=recover, bounded=bounded, way=way
    )
    return segment_folder(
        load(reference, **settings),
        images,
        Path(output),
        open_propagation_model(model) if model else None,
        stages,
        asked={"reference": str(Path(reference).resolve()), "model": _resolved(model)},
        progress_bar=progress_of(verbose),
    )


def project(
    work: StrPath,
    scans: StrPath | None = None,
    classes: Sequence[str] = (),
    *,
    test: int | Sequence[str] = 0,
    plane: str = "auto",
    unlabelled: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> LabelProject:
    """Open a project, or begin one: a folder in which few labelled slices become a data set.

    Args:
        work: Folder of everything that the project makes.
        scans: Folder of scans, or a data set, whose labels count as accepted and whose test split
            is locked. Needed to begin; later only where the scans have moved.
        classes: Names of the classes; () for those of the data set.
        test: Cases that are locked for measuring, by name; or how many to draw.
        plane: "axial", "coronal" or "sagittal": what is drawn. "auto" finds it.
        unlabelled: Value of voxels that nobody labelled, in drawn files. None: slices without a
            label are unlabelled.
        seed: Seed of the draw of locked cases.
        verbose: Show the progress on stderr.

    Returns:
        The project, whose verbs are its methods: `fill`, `train`, `predict`, `review`, `accept`,
        `export`, `status`.

    Raises:
        ContextsegError: No scans are given to begin with, or the folder holds a project about
            other scans or classes.
    """
    from contextseg.projects import open_label_project

    return open_label_project(
        work,
        scans,
        classes,
        test=test,
        plane=plane,
        unlabelled=unlabelled,
        seed=seed,
        progress_bar=progress_of(verbose),
    )


# --- measuring ------------------------------------------------------------------------------------


def evaluate(
    predictions: StrPath,
    references: StrPath,
    output: StrPath | None = None,
    *,
    labels: StrPath | None = None,
    roi: Sequence[str] = (),
    tolerance_mm: float | str | Mapping[str, float] = 2.0,
    convention: str = "default",
    compare_conventions: bool = False,
    only_predicted: bool = False,
    strict: bool = True,
    verbose: bool = True,
) -> pd.DataFrame:
    """Compare two folders of label maps, from any tool: Dice, NSD, HD95 and more.

    A reference without a prediction counts as missed, as an organ that was not found. A class that
    only predictions hold is spurious there.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps with the same names.
        output: Folder for `metrics.csv`, nnU-Net's `summary.json`, `evaluation.json` (what was
            left out) and `calibration.csv`.
        labels: A `dataset.json` with the names of the classes. None: every value is a class.
        roi: Classes to score. () for all.
        tolerance_mm: Tolerance of the NSD in mm, one number or one for each class.
        convention: Whose definitions; docs/measuring.md lists them.
        compare_conventions: Score by all conventions, and give that table.
        only_predicted: Leave out the references without a prediction.
        strict: Raise an error where cases could not be scored, after all others are. False: the
            reasons are in `table.attrs["failed"]`, by case.
        verbose: Show the progress on stderr.

    Returns:
        A row for each case and class; with `compare_conventions` a row for each class and metric.
        Its `attrs` hold failed (reasons by case), without_prediction and without_reference (names
        of label maps without a counterpart), only_predicted, unused_files, and
        values_not_scored (label values that `labels` lacks).

    Raises:
        ContextsegError: No file has a counterpart, no file holds a class, or cases could not be
            scored; the message names them, and what could be scored is written.
    """
    from contextseg.evaluation.folders import evaluate_folders

    return evaluate_folders(
        predictions,
        references,
        output,
        labels=labels,
        roi=roi,
        tolerance_mm=tolerance_mm,
        convention=convention,
        all_conventions=compare_conventions,
        only_predicted=only_predicted,
        strict=strict,
        progress_bar=progress_of(verbose),
    )


def report(run: StrPath) -> Path:
    """Draw the report of a finished run again, from its table, logs and predictions.

    Args:
        run: Folder of a finished `run` or `demo`.

    Returns:
        The page.

    Raises:
        ContextsegError: Nothing was evaluated in this run.
    """
    from contextseg.pipeline import report_again

    return report_again(run)


# --- what the functions share ---------------------------------------------------------------------


def _refuse_to_overwrite(output: StrPath | None, scan: Any, labels: Any) -> None:
    """Refuse an output file that is one of the inputs: what was drawn would be gone."""
    scans = scan if isinstance(scan, list | tuple) else [scan]
    inputs = [path for path in (*scans, labels) if isinstance(path, str | Path)]
    if output is not None and _resolved(output) in map(_resolved, inputs):
        what = "the output file is the scan or the labels"
        raise ContextsegError(output, what, "choose another --output file")


def _resolved(path: StrPath | None) -> str:
    return str(Path(path).resolve()) if path else ""


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


@contextmanager
def _run(
    dataset: StrPath,
    output: StrPath,
    method: str,
    fold: int | str,
    seed: int,
    plan: StrPath | Plan | None,
    roi: Sequence[str],
    settings: Mapping[str, Any],
    bar: ProgressBar,
) -> Iterator[Run]:
    """The run of these settings, opened in a folder that is locked as long as the block lasts."""
    from contextseg.data.nnunet import load_plan
    from contextseg.data.plan import Plan
    from contextseg.pipeline import resolve_fold
    from contextseg.runs import Run

    chosen = resolve_fold(_settings(dataset, method, fold, seed, roi, settings), output)
    with _locked(output):
        opened = Run(output, chosen, bar)
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
    from contextseg.settings import AUTO_FOLD, Settings

    words = {"auto": AUTO_FOLD, "all": -1}
    text = str(fold)
    if text not in words and not text.isdecimal():
        raise ContextsegError(f"--fold {fold}", "not a fold", "give 0 to 4, all, or auto")
    number = words[text] if text in words else int(text)
    folder = str(Path(dataset).absolute())
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
