"""The background split before the training: by intensity, by distance, or by organs.

One recipe, with CoLab and its baselines behind one switch (Li et al., IEEE TMI 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.console import Progress
from contextseg.data.cache import Cached
from contextseg.data.layouts import Case, Dataset, open_dataset, to_classes
from contextseg.data.masks import check_masks, label_maps, read_masks, recoded, structures
from contextseg.data.plan import lateral
from contextseg.data.prepare import placed
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import onto
from contextseg.methods.base import Method, RecipeRun, ScanPredictor, tried
from contextseg.methods.colab import CoLab
from contextseg.methods.context import (
    Contexts,
    Dilated,
    check_contexts,
    kmeans,
    nearest_centre,
    with_contexts,
)
from contextseg.methods.supervised import Supervised
from contextseg.volume import read, read_labels

CONTEXT_KINDS = ("none", "kmeans", "dilated", "anatomy", "predicted", "colab")
"""Ways to split the background."""

Organs = Callable[[Case], np.ndarray]
"""A case to (D, H, W) on its scan's grid: 0 for no structure, i for the i-th one."""


def context(
    run: RecipeRun,
    context: str = "kmeans",
    context_classes: int = 2,
    masks: str = "",
    net: str = "unet",
    optimizer: str = "auto",
    margin: float = 30.0,
    tau: float = 20.0,
    distance_unit: str = "vox",
    background: str = "sum",
    weights: str = "",
    loss: str = "dice_ce",
    class_weights: tuple[float, ...] = (),
) -> Method:
    """Plain training on a background that is split beforehand, or with CoLab's learnt split.

    CoLab and its baselines (Li et al., IEEE TMI 2023) behind one switch:

    - "kmeans" splits by intensity, by k-means++ inside the body, pooled over the training cases, so
      that a class means the same in each; the paper clusters each case alone.
    - "dilated" splits by distance: near the ROI or not (`Dilated`).
    - "anatomy" splits by organs that people outlined: the data set's own other classes, or the
      folder `masks`.
    - "predicted" splits by the organs in a folder, such as TotalSegmentator's, or by those that a
      finished run, or a model of nnU-Net, predicts.
    - "none" is plain training (`Supervised`), and "colab" is `CoLab` with its defaults.

    Args:
        run: The run.
        context: One of the ways above.
        context_classes: Number t of background classes for "kmeans" and "colab"; of organs there
            are as many as there are structures, left and right of one counted once.
        masks: Folder with CASE.nii.gz or CASE/STRUCTURE.nii.gz (see `data.masks`), or folder of a
            run or of a model that nnU-Net trained.
        net: Network, a name of `NETS`.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        margin: Distance to the ROI up to which M is 1, in `distance_unit` ("dilated" and "colab").
        tau: Decay length of M beyond the margin, in `distance_unit`.
        distance_unit: "vox", as in the paper, or "mm".
        background: How context classes become background again: "sum" or "max" (see
            `methods.context.folded`).
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first,
            which the context classes share; () for equal weights.

    Returns:
        The trained method.

    Raises:
        ContextsegError: A name is unknown, or there are no such organs.
    """
    plan = run.plan
    common: dict[str, Any] = {
        "net": net,
        "optimizer": optimizer,
        "weights": weights,
        "loss": loss,
        "class_weights": class_weights,
    }
    decay: dict[str, Any] = {
        "margin": margin,
        "tau": tau,
        "distance_unit": distance_unit,
        "background": background,
    }
    if context not in CONTEXT_KINDS:
        raise ContextsegError(
            f"context={context}", "there is no such context", did_you_mean(context, CONTEXT_KINDS)
        )
    if context == "none":
        return run.train(Supervised(plan, **common))
    if context == "dilated":
        return run.train(Dilated(plan, **common, **decay))
    if context == "colab":
        return run.train(CoLab(plan, **common, **decay, context_classes=context_classes))
    check_contexts(context_classes, background, margin, tau, distance_unit)
    tried(lambda: Contexts(plan, **common, context_classes=context_classes, background=background))
    cases = [case for part in run.split for case in part if case.label]
    known = {}
    if context == "kmeans":
        labels = _by_intensity(run, cases, context_classes)
    else:
        names, organs, annotated = _anatomy(run, context, masks, cases)
        groups = _grouped(names)
        context_classes = 1 + max(groups, default=0)
        labels = _by_organ(run, cases, np.array([0, *groups]), organs)
        known = {
            case.name: _known(plan.classes, case, names, groups, annotated(case)) for case in cases
        }
    method = Contexts(plan, **common, context_classes=context_classes, background=background)
    return run.train(method, labels=labels, annotated=known)


def _by_intensity(run: RecipeRun, cases: Sequence[Case], clusters: int) -> dict[str, Path]:
    """The stages "clusters" and "context": the background split by the nearest centre."""

    def work(folder: Path, progress: Progress) -> None:
        training = run.cached([case for case in run.split[0] if case.label])
        sample = []
        for i, case in enumerate(training):
            d, h, w = case.voxels("body").T
            sample.append(_intensities(run, case)[:, d, h, w].T)
            progress(i + 1, len(training))
        centres = kmeans(np.concatenate(sample), clusters, run.settings.seed)
        write_json(folder / "centres.json", centres.tolist())

    centres = np.array(read_json(run.stage("clusters", work) / "centres.json"), np.float32)

    def one(case: Cached) -> np.ndarray:
        nearest = nearest_centre(_intensities(run, case), centres)
        return with_contexts(np.array(case.label), nearest, len(run.plan.classes))

    return run.arrays("context", cases, one)


def _intensities(run: RecipeRun, case: Cached) -> np.ndarray:
    """(C, *S): the normalised image of a case, without the slice's position."""
    return run.image(case)[: run.plan.intensities]


def _by_organ(
    run: RecipeRun, cases: Sequence[Case], groups: np.ndarray, organs: Organs
) -> dict[str, Path]:
    """The stage "context": the background split by organs; `groups` is the context of each."""
    by_name = {case.name: case for case in cases}

    def one(case: Cached) -> np.ndarray:
        label = np.array(case.label)
        mapped = groups[organs(by_name[case.record.name])].astype(np.int16)
        return with_contexts(label, placed(mapped, case.record, label.shape), len(run.plan.classes))

    return run.arrays("context", cases, one)


def _anatomy(
    run: RecipeRun, context: str, masks: str, cases: Sequence[Case]
) -> tuple[list[str], Organs, Callable[[Case], Sequence[str] | None]]:
    """Organs that are context.

    Returns:
        The structures' names, where they are in a case, and which of them are annotated in it
        (None for all).
    """
    roi = set(run.plan.classes[1:])
    if not masks and context == "anatomy":
        return _own_organs(run, roi)
    if not masks:
        raise ContextsegError(
            "context=predicted",
            "nothing to take the organs from",
            "give --set masks=FOLDER, or a run's",
        )
    if run.is_model(masks):
        return *_predicted_organs(run, masks, roi), lambda case: None

    def survey(folder: Path, progress: Progress) -> None:
        for problem in check_masks(masks, cases, progress=progress):
            raise problem
        every = structures(masks, [case.name for case in cases])
        write_json(folder / "structures.json", [name for name in every if name not in roi])

    names = read_json(run.stage("structures", survey) / "structures.json")

    listed: list[dict[str, tuple[Path, ...]]] = []

    def organs(case: Case) -> np.ndarray:
        if not listed:
            listed.append(label_maps(masks))
        return read_masks(masks, case.name, read(*case.images), names, listed[0])[0]

    return names, organs, lambda case: None


def _own_organs(
    run: RecipeRun, roi: set[str]
) -> tuple[list[str], Organs, Callable[[Case], Sequence[str] | None]]:
    """The data set's own classes beside the ROI, as `_anatomy` gives them."""
    names = [name for name in run.all_classes[1:] if name not in roi]
    if not names:
        remedy = (
            "choose the ROI with --roi, so that the other classes are context, "
            "or give --set masks=FOLDER"
        )
        raise ContextsegError(run.settings.dataset, "no labelled organs beside the ROI", remedy)
    opened: list[tuple[Dataset, np.ndarray]] = []

    def organs(case: Case) -> np.ndarray:
        if not opened:  # only where the stage "context" has cases left
            full = open_dataset(run.settings.dataset)
            numbers = [names.index(name) + 1 if name in names else 0 for name in full.classes]
            opened.append((full, np.array(numbers)))
        full, number = opened[0]
        path = case.label or ""
        label = to_classes(full, onto(read_labels(path), read(*case.images), path).array, path)
        return number[np.maximum(label, 0)]

    return names, organs, run.outlined


def _predicted_organs(run: RecipeRun, folder: str, roi: set[str]) -> tuple[list[str], Organs]:
    """The classes of another model that are not in the ROI, as that model predicts them."""

    def survey(stage: Path, progress: Progress) -> None:
        write_json(stage / "structures.json", list(run.open_model(folder).classes))

    classes = read_json(run.stage("structures", survey) / "structures.json")
    names = [name for name in classes if name not in roi]
    opened: list[ScanPredictor] = []

    def organs(case: Case) -> np.ndarray:
        if not opened:  # only where the stage "context" has cases left
            opened.append(run.open_model(folder))
        label = opened[0].predict(read(*case.images), name=case.name).label.array
        number = {name: i for i, name in enumerate(names, 1)}
        to = {value: number.get(name, 0) for name, value in opened[0].classes.items()}
        return recoded(label, {0: 0} | to, folder)

    return names, organs


def _grouped(names: Sequence[str]) -> list[int]:
    """For each structure the number of its context class, from 1: left and right of one are one.

    A left-right mirror exchanges them, and context classes are not exchanged back.

    >>> _grouped(["kidney_left", "liver", "kidney_right"])
    [1, 2, 1]
    """
    first = {b - 1: a - 1 for a, b in lateral(("background", *names))[0]}
    numbers: dict[int, int] = {}
    for i in range(len(names)):
        numbers.setdefault(first.get(i, i), len(numbers) + 1)
    return [numbers[first.get(i, i)] for i in range(len(names))]


def _known(
    classes: Sequence[str],
    case: Case,
    names: Sequence[str],
    groups: Sequence[int],
    annotated: Sequence[str] | None,
) -> tuple[bool, ...]:
    """Which of the K classes and the context classes beyond the first are annotated in a case."""
    own = [
        case.annotated is None or i == 0 or name in case.annotated for i, name in enumerate(classes)
    ]
    complete = [True] * max(groups, default=0)
    for name, group in zip(names, groups):
        complete[group - 1] &= annotated is None or name in annotated
    return (*own, *(group and all(own) for group in complete))
