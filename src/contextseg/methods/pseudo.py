"""Pseudo labels with uncertainty estimation: cases that several models agree on join the training.

Pham, Nguyen-Ho, Tran: Semi-supervised organ segmentation with mask propagation refinement and
uncertainty estimation for data generation, LNCS 13816. Where each voxel's label comes from is kept,
and a list says what a person should look at first. docs/semi-supervised.md says what we decided.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.console import Progress
from contextseg.data.cache import Cached, load_array
from contextseg.data.plan import Plan
from contextseg.data.prepare import undo
from contextseg.disk import csv_text, read_json, replacing, visible_files, write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.methods.base import Method, RecipeRun, Workload, tried
from contextseg.methods.consensus import (
    HUMAN,
    KEEPS,
    Known,
    agreement,
    learnt,
    majority,
    over_classes,
)
from contextseg.methods.cps import admissible
from contextseg.resampling import resample_labels
from contextseg.volume import write

QC = "qc.csv"
"""The list in a run's folder of how certain its models were, what a person should look at first."""
_COLUMNS = ["case", "round", "class", "certainty", "kept", "voxels", "mm3"]
_PARTS = ("label", "provenance", "certainty")


def pseudo(
    run: RecipeRun,
    base: str = "cps",
    models: int = 2,
    rounds: int = 1,
    threshold: float = 0.9,
    keep: str = "cases",
    net: str = "unet",
    second: str = "",
    optimizer: str = "auto",
    unlabelled_items: int = -1,
    weight: float = 1.0,
    smoothing: float = 0.1,
    unsupervised: str = "dice",
    certain: float = 0.0,
    cutmix: bool = False,
    weights: str = "",
    second_weights: str = "",
    loss: str = "dice_ce",
    class_weights: tuple[float, ...] = (),
) -> Method:
    """Train several models, let them label the rest, train on what they agree on, and again.

    Pham, Nguyen-Ho, Tran, LNCS 13816; the majority as consensus, and that single classes and voxels
    may join, are ours. In the run's
    folder there is `qc.csv`, worst first; in each stage "pseudo", for every case that was voted on,
    `label`, `provenance` and `certainty` (`consensus.Known`) on the cache's grid, and in `scans`
    the consensus as a label file.

    Args:
        run: The run.
        base: Method of every model: "cps", "supervised", or any other that is trained once. The
            settings below that it does not have must keep their defaults.
        models: Number of models, from other initial weights on other batches. The last round trains
            one, which is deployed; so a run is models * rounds + 1 trainings of `steps` steps,
            fewer where it ends before.
        rounds: Most rounds. The run ends before where nothing is left, where nothing new is
            certain, and, with validation cases, where their mean Dice does not rise; then the model
            before is deployed.
        threshold: Certainty (see `consensus.agreement`) from which a case or class joins, a mean
            Dice; with "voxels" also the share of the models that must agree on a voxel.
        keep: "cases": a certain case joins as a whole. "voxels": its certain classes and voxels
            join.
        net: Network of the base.
        second: Second network of the base (`CPS`).
        optimizer: "sgd", "adamw" or "auto", as the base has it.
        unlabelled_items: Items of each batch without a label (`CPS`); 0 is taken where none are
            left.
        weight: Weight of the unsupervised term (`CPS`).
        smoothing: Label smoothing (`CPS`).
        unsupervised: Loss between the networks, "dice" or "ce" (`CPS`).
        certain: Probability below which an output is not trained on (`CPS`).
        cutmix: Whether unlabelled patches are mixed in pairs (`CPS`).
        weights: File of weights that every model starts from; "" for new weights. See
            `nets.weights`.
        second_weights: The same for the second network (`CPS`).
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first; () for equal weights.

    Returns:
        The trained method.

    Raises:
        ContextsegError: The base is unknown, a number is out of its range, or all is labelled
            already.
    """
    _check(models, rounds, threshold, keep)
    own = {
        "net": net,
        "second": second,
        "optimizer": optimizer,
        "unlabelled_items": unlabelled_items,
        "weight": weight,
        "smoothing": smoothing,
        "unsupervised": unsupervised,
        "certain": certain,
        "cutmix": cutmix,
        "weights": weights,
        "second_weights": second_weights,
        "loss": loss,
        "class_weights": class_weights,
    }
    make = _maker(run.plan, base, own)
    tried(lambda: make(True))
    survey = _survey(run)
    cases: dict[str, dict[str, Any]] = {
        name: {"labelled": labelled} for name, labelled in survey["left"].items()
    }
    trained = _several(run, make, _unlabelled(cases), models)
    if run.ended_early:
        return trained[0]
    best = _validated(run, trained[0]) if survey["validated"] else -1.0
    for number in range(1, rounds + 1):
        voted = _vote(run, trained, cases, number, threshold, keep)
        cases |= voted
        if not any(case["new_vox"] for case in voted.values()):
            break

        again = number < rounds and any(case["left_vox"] for case in cases.values())
        joined = {name: case for name, case in cases.items() if case.get("joined")}
        labels = {name: case["folder"] / "label" / f"{name}.npy" for name, case in joined.items()}
        known = {name: case["annotated"] for name, case in joined.items()}
        count = models if again else 1
        students = _several(run, make, _unlabelled(cases), count, labels, known)
        if run.ended_early:
            break
        if survey["validated"]:
            dice = _validated(run, students[0])
            if dice <= best:
                break
            best = dice
        trained = students
    return trained[0]


# --- what is trained ------------------------------------------------------------------------------


def _several(
    run: RecipeRun,
    make: Callable[[bool], Method],
    unlabelled: bool,
    models: int,
    labels: Mapping[str, Path] | None = None,
    known: Mapping[str, Sequence[bool]] | None = None,
) -> list[Method]:
    """Train so many models; fewer where one was ended early, which is then the last."""
    trained: list[Method] = []
    for i in range(models):
        trained.append(
            run.train(make(unlabelled), labels=labels or {}, annotated=known or {}, draws=i)
        )
        if run.ended_early:
            break
    return trained


def pseudo_workload(models: int, rounds: int, **_: Any) -> Workload:
    """What `pseudo` does at most: each round but the last trains all models, and all vote.

    Args:
        models: As there.
        rounds: As there.
    """
    return Workload(trainings=models * rounds + 1, sweeps=rounds * (models + 1))


def _check(models: int, rounds: int, threshold: float, keep: str) -> None:
    """Raise `ContextsegError` for the first of them that is out of its range."""
    allowed = {
        f"models={models}": (models >= 2, "give 2 or more: one model agrees with itself"),
        f"rounds={rounds}": (rounds >= 1, "give 1 or more"),
        f"threshold={threshold}": (0 < threshold <= 1, "give a share above 0, at most 1"),
        f"keep={keep}": (keep in KEEPS, did_you_mean(keep, KEEPS)),
    }
    for name, (good, remedy) in allowed.items():
        if not good:
            raise ContextsegError(name, "out of range", remedy)


def _maker(plan: Plan, base: str, own: Mapping[str, Any]) -> Callable[[bool], Method]:
    """Constructs a model of the method `base`, given whether there are unlabelled cases."""
    from contextseg.methods import METHODS

    single: dict[str, Any] = {
        name: entry for name, entry in METHODS.items() if inspect.isclass(entry)
    }
    if base not in single:
        raise ContextsegError(
            f"base={base}", "there is no such method of one training", did_you_mean(base, single)
        )
    known = inspect.signature(single[base]).parameters
    defaults = inspect.signature(pseudo).parameters
    for name, value in own.items():
        if name not in known and value != defaults[name].default:
            raise ContextsegError(f"{name}={value}", f"{base} has no such setting", "leave it out")
    arguments = {name: value for name, value in own.items() if name in known}

    def make(unlabelled: bool) -> Method:
        none = {"unlabelled_items": 0} if "unlabelled_items" in known and not unlabelled else {}
        return single[base](plan, **(arguments | none))

    return make


def _unlabelled(cases: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether there are cases of which nothing is known."""
    return any(not case["labelled"] and not case.get("joined") for case in cases.values())


def _validated(run: RecipeRun, method: Method) -> float:
    """The stage "validate": the mean Dice of the validation cases, whole; -1 for none."""

    def work(folder: Path, progress: Progress) -> None:
        cached = run.cached([case for case in run.split[1] if case.label])
        dice = []
        for i, case in enumerate(cached):
            dice.append(_case_dice(run, case, method))
            progress(i + 1, len(cached))
        mean = over_classes(np.array(dice))
        content = {"dice": -1.0 if isnan(mean) else mean, "cases": len(dice)}
        write_json(folder / "dice.json", content)

    return read_json(run.stage("validate", work) / "dice.json", dict[str, float])["dice"]


def _case_dice(run: RecipeRun, case: Cached, method: Method) -> float:
    """The mean Dice of a case over its annotated classes; NaN where there are none."""
    label = np.array(case.label)
    prediction = np.concatenate([z.argmax(0).cpu().numpy() for *_, z in run.logits(case, method)])
    known = label != IGNORE
    dice = agreement(prediction[None, known], label[known], len(run.plan.classes))
    return over_classes(dice[np.array(case.annotated[1:])])


# --- what nobody labelled -------------------------------------------------------------------------


def _annotation(case: Cached, classes: int) -> Known:
    """What people annotated in a case; in one without a label nothing, of any class."""
    if case.label is None:
        nothing = np.full(case.image.shape[1:], IGNORE, np.int16)
        return Known.from_annotation(nothing, [k == 0 for k in range(classes)])
    return Known.from_annotation(np.array(case.label), case.annotated)


def _survey(run: RecipeRun) -> dict[str, Any]:
    """The stage "survey": the training cases that are not labelled in full.

    Returns:
        "left", whether a case has any label, by name; "validated", whether there are validation
        cases with labels.
    """

    def work(folder: Path, progress: Progress) -> None:
        cached = run.cached(run.split[0])
        left = {}
        for i, case in enumerate(cached):
            if _annotation(case, len(run.plan.classes)).left.any():
                left[case.record.name] = case.labelled
            progress(i + 1, len(cached))
        if not left:
            raise ContextsegError(
                run.settings.dataset,
                "all is labelled in every training case",
                "use --method supervised",
            )
        validated = any(case.label for case in run.split[1])
        write_json(folder / "survey.json", {"left": left, "validated": validated})

    return read_json(run.stage("survey", work) / "survey.json")


def _vote(
    run: RecipeRun,
    models: Sequence[Method],
    cases: dict[str, dict[str, Any]],
    number: int,
    threshold: float,
    keep: str,
) -> dict[str, dict[str, Any]]:
    """The stage "pseudo" of round `number`: the models vote on each case that is not complete.

    `cases` by name, as this returns them: {"labelled", "joined", "annotated", "left_vox",
    "new_vox", "rows", "folder"}.
    """

    def one(folder: Path, case: Cached) -> None:
        name = case.record.name
        before = cases[name]
        annotation = _annotation(case, len(run.plan.classes))
        known = annotation
        if before.get("joined"):
            known = _load(before["folder"], name, before["annotated"])
        votes, consensus = _votes(run, models, case, annotation, known)
        left = known.left
        dice = agreement(votes[:, left], consensus[left], len(run.plan.classes))
        after = learnt(known, votes, consensus, dice, threshold, keep, number)
        _write_vote(run, folder, case, after, consensus)

        new = after.provenance == HUMAN + number
        spacing_mm = run.plan.target_mm(case.record.own_mm)
        open_part = np.where(left, consensus, IGNORE)
        rows = _rows(run.plan, name, number, dice, open_part, new, known, spacing_mm)
        classes = {row["class"] for row in rows}
        kept = [row for row in before.get("rows", ()) if row["class"] not in classes]
        state = {
            "labelled": before["labelled"],
            "joined": bool(new.any()) or before.get("joined", False),
            "annotated": after.annotated.tolist(),
            "left_vox": int(after.left.sum()),
            "new_vox": int(new.sum()),
            "rows": [*kept, *rows],
        }
        write_json(folder / "cases" / f"{name}.json", state)  # last: the case is done

    def work(folder: Path, progress: Progress) -> None:
        incomplete = [
            case
            for case in run.split[0]
            if case.name in cases and cases[case.name].get("left_vox", 1)
        ]
        cached = run.cached(incomplete)
        for i, case in enumerate(cached):
            if not (folder / "cases" / f"{case.record.name}.json").exists():
                one(folder, case)
            progress(i + 1, len(cached))
        rows = [row for case in (cases | _states(folder)).values() for row in case.get("rows", ())]
        write_text(run.folder / QC, _table(rows))

    return _states(run.stage("pseudo", work))


def _write_vote(
    run: RecipeRun, folder: Path, case: Cached, known: Known, consensus: np.ndarray
) -> None:
    """Write what is known of a case after a vote, and the consensus as a label file."""
    name = case.record.name
    for part in _PARTS:
        with replacing(folder / part / f"{name}.npy") as path, open(path, "wb") as file:
            np.save(file, getattr(known, part))
    values = np.array(run.plan.values, np.int32)
    label = values[resample_labels(consensus, case.record.shape)]
    path = folder / "scans" / f"{name}{run.dataset.ending}"
    write(path, undo(label, case.record, run.plan.values[0]))


def _states(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.stem: {**read_json(path, dict[str, Any], "delete it"), "folder": folder}
        for path in visible_files(folder, "cases/*.json")
    }


def _load(folder: Path, name: str, annotated: Sequence[bool]) -> Known:
    """What a round left of a case."""
    remedy = f"delete the folder {folder}; its stage is then done again"
    label, provenance, certainty = (
        np.array(load_array(folder / part / f"{name}.npy", remedy)) for part in _PARTS
    )
    return Known(label, np.array(annotated, bool), provenance, certainty)


def _votes(
    run: RecipeRun, models: Sequence[Method], case: Cached, annotation: Known, known: Known
) -> tuple[np.ndarray, np.ndarray]:
    """The models' votes on a case, which contradict nothing that is known of it.

    Args:
        run: The run.
        models: M models.
        case: The case.
        annotation: What people annotated.
        known: That, and what earlier rounds agreed on.

    Returns:
        The class that each model predicts (M, *S), and their consensus (*S), int16.
    """
    votes = []
    consensus = []
    for slabs in zip(*(run.logits(case, model) for model in models)):
        start, stop, _ = slabs[0]
        z = torch.stack([logits for *_, logits in slabs])
        for part in (annotation, known):
            label = torch.from_numpy(part.label[start:stop]).to(z.device)
            annotated = torch.from_numpy(part.annotated).to(z.device)
            z = admissible(z, label.expand(len(z), *label.shape), annotated.expand(len(z), -1))
        each, most = majority(z)
        votes.append(each.cpu().numpy())
        consensus.append(most.cpu().numpy())
    left = known.left
    return (
        np.where(left, np.concatenate(votes, 1), known.label),
        np.where(left, np.concatenate(consensus), known.label),
    )


# --- the list for a person ------------------------------------------------------------------------


def _rows(
    plan: Plan,
    name: str,
    number: int,
    dice: np.ndarray,
    consensus: np.ndarray,
    new: np.ndarray,
    known: Known,
    spacing_mm: Sequence[float],
) -> list[dict[str, Any]]:
    """The rows of one case: one for "all" classes, and one for each class that was open in it.

    consensus is (*S), `IGNORE` where nothing was left; new (*S) bool is what was kept of it.
    """
    anything = bool((known.label == IGNORE).any())
    open_classes = {"all": (consensus > 0, over_classes(dice))}
    for k, label in enumerate(plan.classes[1:], 1):
        if anything or not known.annotated[k]:
            open_classes[label] = consensus == k, float(dice[k - 1])
    rows = []
    for label, (mask, certainty) in open_classes.items():
        voxels = int(mask.sum())
        row = {
            "case": name,
            "round": number,
            "class": label,
            "certainty": None if isnan(certainty) else round(certainty, 4),
            "kept": round(int((mask & new).sum()) / voxels, 3) if voxels else 0.0,
            "voxels": voxels,
            "mm3": round(voxels * float(np.prod(spacing_mm)), 1),
        }
        rows.append(row)
    return rows


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV, the least certain first; before all, classes that no model sees."""

    def worst(row: Mapping[str, Any]) -> tuple[float, str]:
        return (-1.0 if row["certainty"] is None else row["certainty"], row["case"])

    return csv_text(_COLUMNS, sorted(rows, key=worst))
