"""The background split before training: by intensity, by distance, by organs that people or another network outlined.

One recipe, with CoLab and its baselines behind one switch (Li et al., IEEE TMI 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.cache import Cached
from contextseg.data.layouts import Case, open_dataset, to_classes
from contextseg.data.masks import check_masks, read_masks, structures
from contextseg.data.plan import lateral
from contextseg.data.prepare import placed
from contextseg.disk import Problem, did_you_mean, read_json, write_json
from contextseg.methods.base import Method
from contextseg.methods.colab import CoLab
from contextseg.methods.context import Contexts, Dilated, kmeans, nearest_centre, with_contexts
from contextseg.methods.supervised import Supervised
from contextseg.volume import read, read_labels

CONTEXTS = ("none", "kmeans", "dilated", "anatomy", "predicted", "colab")
"""What the background can be split by."""

Organs = Callable[[Case], np.ndarray]
"""A case -> (D, H, W) on its scan's grid: 0 nowhere, i in the i-th structure."""


def context(
    run: Any,
    context: str = "kmeans",
    context_classes: int = 2,
    masks: str = "",
    net: str = "unet",
    optimizer: str = "sgd",
    margin: float = 30.0,
    tau: float = 20.0,
    distance_unit: str = "vox",
    background: str = "sum",
) -> Method:
    """Plain training on a background that was split beforehand, or any other way to split it.

    context          "kmeans": by intensity, k-means++ inside the body, pooled over the training cases, so that a class
                     means the same in each (the paper's clusters are of a case alone). "dilated": near the ROI or not.
                     "anatomy": organs that people outlined: the data set's own other classes, or the folder `masks`.
                     "predicted": those of a folder, such as TotalSegmentator's, or of a finished run, which is applied.
                     "none", "colab": plain training, and `CoLab` with its defaults.
    context_classes  t, of kmeans and colab; organs are as many as there are, left and right of one counted once.
    masks            CASE.nii.gz, CASE/STRUCTURE.nii.gz (see `data.masks`), or a run's folder.
    margin, tau, distance_unit   of M, as in `CoLab`.   background   see `folded`.

    Raises `Problem` for an unknown context, and for organs that are not there.
    """
    plan = run.plan
    common: dict[str, Any] = {"net": net, "optimizer": optimizer}
    decay: dict[str, Any] = {"margin": margin, "tau": tau, "distance_unit": distance_unit, "background": background}
    if context not in CONTEXTS:
        raise Problem(f"context={context}", "there is no such context", did_you_mean(context, CONTEXTS))
    if context == "none":
        return run.train(Supervised(plan, **common))
    if context == "dilated":
        return run.train(Dilated(plan, **common, **decay))
    if context == "colab":
        return run.train(CoLab(plan, **common, **decay, context_classes=context_classes))
    cases = [case for part in run.split for case in part if case.label]
    if context == "kmeans":
        labels, known = _by_intensity(run, cases, context_classes), {}
    else:
        names, organs, annotated = _anatomy(run, context, masks, cases)
        groups = _grouped(names)
        context_classes = 1 + max(groups, default=0)
        labels = _by_organ(run, cases, np.array([0, *groups]), organs)
        known = {case.name: _known(plan.classes, case, names, groups, annotated(case)) for case in cases}
    made = Contexts(plan, **common, context_classes=context_classes, background=background)
    return run.train(made, labels=labels, annotated=known)


def _by_intensity(run: Any, cases: Sequence[Case], clusters: int) -> dict[str, Path]:
    """The stages "clusters" and "context": labels whose background is told apart by the nearest centre."""

    def work(folder: Path, tell: Callable[..., None]) -> None:
        sample = []
        for i, case in enumerate(found := run.cached([case for case in run.split[0] if case.label])):
            d, h, w = case.voxels("body").T
            sample.append(_intensities(run, case)[:, d, h, w].T)
            tell(i + 1, len(found))
        write_json(folder / "centres.json", kmeans(np.concatenate(sample), clusters, run.settings.seed).tolist())

    centres = np.array(read_json(run.stage("clusters", work) / "centres.json"), np.float32)

    def one(case: Cached) -> np.ndarray:
        nearest = nearest_centre(_intensities(run, case), centres)
        return with_contexts(np.array(case.label), nearest, len(run.plan.classes))

    return run.arrays("context", cases, one)


def _intensities(run: Any, case: Cached) -> np.ndarray:
    """(C, *S): the case's normalised image, without a slice's place."""
    return run.image(case)[: run.plan.intensities]


def _by_organ(run: Any, cases: Sequence[Case], groups: np.ndarray, organs: Organs) -> dict[str, Path]:
    """The stage "context": labels whose background is told apart by organs; `groups` says which context each is."""
    by_name = {case.name: case for case in cases}

    def one(case: Cached) -> np.ndarray:
        label = np.array(case.label)
        mapped = groups[organs(by_name[case.record.name])].astype(np.int16)
        return with_contexts(label, placed(mapped, case.record, label.shape), len(run.plan.classes))

    return run.arrays("context", cases, one)


def _anatomy(
    run: Any, context: str, masks: str, cases: Sequence[Case]
) -> tuple[list[str], Organs, Callable[[Case], Sequence[str] | None]]:
    """(the structures' names, where they are in a case, which of them were looked for in it; None: all)."""
    roi = set(run.plan.classes[1:])
    full = open_dataset(run.settings.dataset)
    if not masks and context == "anatomy":
        names = [name for name in full.classes[1:] if name not in roi]
        if not names:
            remedy = "choose the ROI with --roi, so that the other classes are context, or give --set masks=FOLDER"
            raise Problem(run.settings.dataset, "no labelled organs beside the ROI", remedy)
        number = np.array([names.index(name) + 1 if name in names else 0 for name in full.classes])
        whole = {case.name: case for case in (*full.train, *full.test)}

        def own(case: Case) -> np.ndarray:
            path = whole[case.name].label or ""
            found = to_classes(full, read_labels(path).array, path)
            return number[np.maximum(found, 0)]

        return names, own, lambda case: whole[case.name].annotated
    if not masks:
        raise Problem("context=predicted", "nothing to take the organs from", "give --set masks=FOLDER, or a run's")
    if (Path(masks) / "run.json").exists():
        return *_applied(run, masks, roi), lambda case: None

    def survey(folder: Path, tell: Callable[..., None]) -> None:
        for wrong in check_masks(masks, cases, progress=tell):
            raise wrong
        found = structures(masks, [case.name for case in cases])
        write_json(folder / "structures.json", [name for name in found if name not in roi])

    names = read_json(run.stage("structures", survey) / "structures.json")
    return names, lambda case: read_masks(masks, case.name, read(*case.images), names)[0], lambda case: None


def _applied(run: Any, folder: str, roi: set[str]) -> tuple[list[str], Organs]:
    """The organs of another run: its classes, but those that are ours, as it predicts them."""

    def survey(stage: Path, tell: Callable[..., None]) -> None:
        write_json(stage / "structures.json", list(type(run).open(folder).plan.classes[1:]))

    known = read_json(run.stage("structures", survey) / "structures.json")
    names = [name for name in known if name not in roi]
    opened: list[Any] = []

    def organs(case: Case) -> np.ndarray:
        if not opened:
            other = type(run).open(folder)
            opened.extend([other, other.finished()])
        other, method = opened
        values = {value: k for k, value in enumerate(other.plan.values)}
        number = [0, *(names.index(name) + 1 if name in names else 0 for name in known)]
        found = other.predict(read(*case.images), method, case.name).array
        to = np.zeros(int(max(values)) + 1, np.int64)
        for value, k in values.items():
            to[value] = number[k]
        return to[found]

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
    classes: Sequence[str], case: Case, names: Sequence[str], groups: Sequence[int], looked_for: Sequence[str] | None
) -> tuple[bool, ...]:
    """Which of the K classes and the context classes beyond the first were looked for in a case."""
    own = [case.annotated is None or i == 0 or name in case.annotated for i, name in enumerate(classes)]
    there = [True] * max(groups, default=0)
    for name, group in zip(names, groups):
        there[group - 1] &= looked_for is None or name in looked_for
    return (*own, *(known and all(own) for known in there))
