"""The Python face: what the command line does, each verb as one function.

Those that study methods (compare, curve, simulate and others) are in `contextseg.studies.api`.
Every function takes paths as text or `Path`, and settings by the names that `--set` knows
(docs/cli.md). Heavy imports wait until a function is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.arguments import StrPath, assignments, progress_of
from contextseg.console import ProgressBar
from contextseg.errors import ContextsegError

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.data.check import Finding
    from contextseg.data.plan import Plan
    from contextseg.pipeline import Outcome
    from contextseg.predictor import Predictor
    from contextseg.propagation import Filled
    from contextseg.runs import Run
    from contextseg.settings import Settings


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

    planning = Settings(str(dataset)).set(assignments(settings)).planning
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

    with _ranks():
        run = _run(dataset, output, method, fold, seed, plan, roi, settings, progress_of(verbose))
        train_run(run)
    return run


def run(
    dataset: StrPath,
    output: StrPath,
    *,
    method: str = "supervised",
    fold: int | str = "auto",
    seed: int = 0,
    plan: StrPath | Plan | None = None,
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
        roi: Classes to segment; the others are background. () for all.
        verbose: Show the progress on stderr.
        **settings: Any setting by name, such as `steps=20000` or `net="resenc"`.

    Returns:
        Where the predictions, the table and the report are.

    Raises:
        ContextsegError: As `train`, and where a case cannot be predicted or scored.
    """
    from contextseg.pipeline import run_pipeline

    with _ranks():
        opened = _run(
            dataset, output, method, fold, seed, plan, roi, settings, progress_of(verbose)
        )
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
    return run_pipeline(Run(output, chosen, progress_of(verbose)))


# --- segmenting -----------------------------------------------------------------------------------


def load(*runs: StrPath, device: str = "", **settings: Any) -> Predictor:
    """Open finished runs as one predictor, which segments scans.

    Args:
        *runs: Folders of finished runs, or of models that nnU-Net trained (the folder with
            `plans.json`, or a `fold_0` in it). Several are an ensemble, the mean of their logits.
        device: Where the networks run, such as "cpu" or "cuda:1". "" is where each run was
            trained, or, where that device is not here, the GPU or CPU that is.
        **settings: Settings of prediction by name, such as `mirror=False`, in place of those of
            the first run.

    Returns:
        The predictor: `load("runs/plain").predict("scan.nii.gz")`.

    Raises:
        ContextsegError: A run is not finished, or its plan differs in more than normalisation.
    """
    from dataclasses import replace

    from contextseg.pipeline import open_predictor
    from contextseg.settings import Settings

    if not runs:
        raise ContextsegError("load", "no run", "give the folder of a finished run")
    predictor = open_predictor(runs, device)
    words = assignments({_of_prediction(name): value for name, value in settings.items()})
    asked = Settings("", prediction=predictor.settings).set(words)
    return replace(predictor, settings=asked.prediction)


def _of_prediction(name: str) -> str:
    """The whole name of a setting of prediction; training is over, so no other is taken."""
    from dataclasses import fields

    from contextseg.settings import Augmentation, PredictionSettings, Settings, Training

    part, dot, _ = name.partition(".")
    known = {field.name for field in fields(PredictionSettings)}
    others = {f.name for kind in (Settings, Training, Augmentation) for f in fields(kind)}
    if part != "prediction" and (dot or name in others - known):
        remedy = f"leave it out, or train again with it; choose from {', '.join(sorted(known))}"
        raise ContextsegError(f"--set {name}", "a finished run does not use this setting", remedy)
    return name if dot else f"prediction.{name}"


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
    spacing_mm: Sequence[float] | None = None,
    series: str = "",
    verbose: bool = True,
) -> Filled:
    """Fill a scan from a few labelled slices, in both directions, for any class.

    Label the slice that `Filled.suggestion` names, and call it again.

    Args:
        scan: A file, a list of files for several channels, a `Volume`, a SimpleITK or nibabel
            image, or an array with `spacing_mm`.
        labels: A label map on the scan's grid in which some slices are labelled; as `scan`.
        output: Where to write the filled label map, and CASE-slices.csv beside it. The names and
            colours of `labels` are kept: in a `.seg.nrrd` file itself, else in CASE.label, a label
            description of ITK-SNAP.
        model: A run of `train(..., method="stcn")`. None interpolates shapes.
        way: "combined", "propagation", "interpolation" or "nearest". "" is "combined" with a
            model, and "interpolation" without.
        between: Each structure's first and last slice are labelled; none lies beyond.
        stop_below: Beyond the outermost labelled slices, stop where a smaller Dice is expected; 0
            never stops.
        unlabelled: The value of unlabelled voxels. None: slices without a label are unlabelled.
        plane: "axial", "coronal" or "sagittal": what is labelled. "auto" finds it.
        spacing_mm: Voxel size along D, H and W, for arrays.
        series: Which series of a DICOM folder, by number or UID. "" for the only one.
        verbose: Show the progress on stderr.

    Returns:
        The filled label map, the confidence of each slice, and the next slice worth labelling.

    Raises:
        ContextsegError: Scan and labels are not on one grid, nothing is labelled, `way` needs a
            model, or `output` is the scan or the labels.
    """
    from contextseg.interop.names import describe_result, known_segments
    from contextseg.pipeline import open_propagation_model
    from contextseg.predictor import scan_of
    from contextseg.propagation import fill, labelled_slices, ranges
    from contextseg.volume import as_labels

    _refuse_to_overwrite(output, scan, labels)
    volume = scan_of(scan, spacing_mm, series)
    drawn = as_labels(labels, volume, unlabelled or 0)
    segments = known_segments(labels)
    labelled = labelled_slices(drawn, unlabelled, plane)
    network = open_propagation_model(model) if model else None
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
    if output is not None:
        filled.save(output)
        describe_result(output, filled.label, segments)
    return filled


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
        reference: A finished run; a 2-D one sees the sampled slices alone.
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
) -> Run:
    from contextseg.data.nnunet import load_plan
    from contextseg.data.plan import Plan
    from contextseg.pipeline import resolve_fold
    from contextseg.runs import Run

    chosen = _settings(dataset, method, fold, seed, roi, settings)
    opened = Run(output, resolve_fold(chosen), bar)
    if plan:
        opened.use_plan(plan if isinstance(plan, Plan) else load_plan(plan, opened.dataset))
    return opened


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
