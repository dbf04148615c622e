"""Pseudo labels with uncertainty estimation: several models agree on a case, it joins the training set, and again.

Pham, Nguyen-Ho, Tran: Semi-supervised organ segmentation with mask propagation refinement and uncertainty estimation
for data generation, LNCS 13816. Who said what of each voxel is kept, and a list says what a person should look at.
docs/semi-supervised.md says what we decided.
"""

from __future__ import annotations

import csv
import inspect
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.data.cache import Cached, load_array
from contextseg.data.plan import Plan
from contextseg.data.prepare import undo
from contextseg.disk import Problem, did_you_mean, read_json, replacing, write_json, write_text
from contextseg.methods.base import Method
from contextseg.methods.consensus import HUMAN, KEEPS, Known, agreement, learnt, majority, over_classes
from contextseg.methods.cps import admissible
from contextseg.volume import resample_labels, write

QC = "qc.csv"
"""The list in a run's folder of what its models were how sure of: what a person should look at comes first."""
_COLUMNS = ["case", "round", "class", "certainty", "kept", "voxels", "mm3"]
_PARTS = ("label", "provenance", "certainty")


def pseudo(
    run: Any,
    base: str = "cps",
    models: int = 2,
    rounds: int = 1,
    threshold: float = 0.9,
    keep: str = "cases",
    net: str = "unet",
    second: str = "",
    optimizer: str = "adamw",
    unlabelled_items: int = -1,
    weight: float = 1.0,
    smoothing: float = 0.1,
    unsupervised: str = "dice",
    certain: float = 0.0,
    cutmix: bool = False,
) -> Method:
    """Train several models, let them predict what nobody labelled, learn from what they agree on, and again.

    base       the method of every model: "cps", "supervised", or any other that is trained once.
    models     how many are trained, from other initial weights on other batches. The last round trains one, which is
               deployed; so a run is models * rounds + 1 trainings of `steps` steps, fewer where it ends before.
    rounds     at most; it ends before where nothing is left, where nothing new is certain, and, with validation cases,
               where the mean Dice of these does not rise: then what was there before is deployed.
    threshold  of the certainty (see `consensus.agreement`): a mean Dice, and with "voxels" also a share of the models.
    keep       "cases": a certain case joins as a whole. "voxels": its certain classes and voxels.
    The others are those of the base; one that it does not know may not be set.

    In the run's folder: `qc.csv`, worst first; in each stage "pseudo" for every case that was voted on `label`,
    `provenance` and `certainty` (`consensus.Known`) on the cache's grid, and in `scans` the consensus as a label file.

    Raises `Problem` for an unknown base, for numbers that make no sense, and where all is labelled already.
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
    }
    make = _maker(run.plan, base, own)
    survey = _survey(run)
    cases: dict[str, dict[str, Any]] = {name: {"labelled": said} for name, said in survey["left"].items()}
    taught = [run.train(make(_unlabelled(cases)), draws=i) for i in range(models)]
    best = _validated(run, taught[0]) if survey["validated"] else -1.0
    for number in range(1, rounds + 1):
        voted = _vote(run, taught, cases, number, threshold, keep)
        cases |= voted
        if not any(case["new_vox"] for case in voted.values()):
            break
        again = number < rounds and any(case["left_vox"] for case in cases.values())
        joined = {name: case for name, case in cases.items() if case.get("joined")}
        labels = {name: case["folder"] / "label" / f"{name}.npy" for name, case in joined.items()}
        known = {name: case["annotated"] for name, case in joined.items()}
        students = [
            run.train(make(_unlabelled(cases)), labels=labels, annotated=known, draws=i)
            for i in range(models if again else 1)
        ]
        if survey["validated"]:
            dice = _validated(run, students[0])
            if dice <= best:
                break
            best = dice
        taught = students
    return taught[0]


# --- what is trained --------------------------------------------------------------------------------------------------


def _check(models: int, rounds: int, threshold: float, keep: str) -> None:
    """Raise `Problem` for the first of them that makes no sense."""
    allowed = {
        f"models={models}": (models >= 2, "give 2 or more: one model agrees with itself"),
        f"rounds={rounds}": (rounds >= 1, "give 1 or more"),
        f"threshold={threshold}": (0 < threshold <= 1, "give a share above 0, at most 1"),
        f"keep={keep}": (keep in KEEPS, did_you_mean(keep, KEEPS)),
    }
    for name, (good, remedy) in allowed.items():
        if not good:
            raise Problem(name, "out of range", remedy)


def _maker(plan: Plan, base: str, own: Mapping[str, Any]) -> Callable[[bool], Method]:
    """What makes a model of the method `base`; called with whether there are unlabelled cases for it."""
    from contextseg.methods import METHODS

    single: dict[str, Any] = {name: entry for name, entry in METHODS.items() if inspect.isclass(entry)}
    if base not in single:
        raise Problem(f"base={base}", "there is no such method of one training", did_you_mean(base, single))
    known, defaults = inspect.signature(single[base]).parameters, inspect.signature(pseudo).parameters
    strange = [name for name, value in own.items() if name not in known and value != defaults[name].default]
    if strange:
        raise Problem(f"{strange[0]}={own[strange[0]]}", f"{base} has no such setting", "leave it out")
    arguments = {name: value for name, value in own.items() if name in known}

    def make(unlabelled: bool) -> Method:
        none = {"unlabelled_items": 0} if "unlabelled_items" in known and not unlabelled else {}
        return single[base](plan, **(arguments | none))

    return make


def _unlabelled(cases: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether there are cases of which nothing is known."""
    return any(not case["labelled"] and not case.get("joined") for case in cases.values())


def _validated(run: Any, method: Method) -> float:
    """The stage "validate": the mean Dice of the validation cases, whole, over their annotated classes; -1 for none."""

    def work(folder: Path, tell: Callable[..., None]) -> None:
        dice = []
        for i, case in enumerate(found := run.cached([case for case in run.split[1] if case.label])):
            label = np.array(case.label)
            best = np.concatenate([z.argmax(0).cpu().numpy() for *_, z in run.logits(case, method)])
            each = agreement(best[None, label != IGNORE], label[label != IGNORE], len(run.plan.classes))
            dice.append(over_classes(each[np.array(case.annotated[1:])]))
            tell(i + 1, len(found))
        mean = over_classes(np.array(dice))
        write_json(folder / "dice.json", {"dice": -1.0 if isnan(mean) else mean, "cases": len(dice)})

    return read_json(run.stage("validate", work) / "dice.json")["dice"]


# --- what nobody labelled ---------------------------------------------------------------------------------------------


def _said(case: Cached, classes: int) -> Known:
    """What people said of a case; of one without a label nothing, of any class."""
    if case.label is None:
        return Known.said(np.full(case.image.shape[1:], IGNORE, np.int16), [k == 0 for k in range(classes)])
    return Known.said(np.array(case.label), case.annotated)


def _survey(run: Any) -> dict[str, Any]:
    """The stage "survey": the training cases of which something is not labelled, by name, and whether any of it is."""

    def work(folder: Path, tell: Callable[..., None]) -> None:
        left = {}
        for i, case in enumerate(found := run.cached(run.split[0])):
            if _said(case, len(run.plan.classes)).left.any():
                left[case.record.name] = case.labelled
            tell(i + 1, len(found))
        if not left:
            raise Problem(run.settings.dataset, "all is labelled in every training case", "use --method supervised")
        write_json(folder / "survey.json", {"left": left, "validated": any(case.label for case in run.split[1])})

    return read_json(run.stage("survey", work) / "survey.json")


def _vote(
    run: Any, models: Sequence[Method], cases: dict[str, dict[str, Any]], number: int, threshold: float, keep: str
) -> dict[str, dict[str, Any]]:
    """The stage "pseudo" of round `number`: the models vote on each case of which something is left.

    `cases` by name, as this gives them: {"labelled", "joined", "annotated", "left_vox", "new_vox", "rows", "folder"}.
    """
    plan = run.plan

    def one(folder: Path, case: Cached) -> None:
        name, before = case.record.name, cases[case.record.name]
        said = _said(case, len(plan.classes))
        known = _load(before["folder"], name, before["annotated"]) if before.get("joined") else said
        found, consensus = _votes(run, models, case, said, known)
        left = known.left
        dice = agreement(found[:, left], consensus[left], len(plan.classes))
        after = learnt(known, found, consensus, dice, threshold, keep, number)
        new = after.provenance == HUMAN + number
        rows = _rows(plan, name, number, dice, np.where(left, consensus, IGNORE), new, known)
        for part in _PARTS:
            with replacing(folder / part / f"{name}.npy") as path, open(path, "wb") as file:
                np.save(file, asdict(after)[part])
        on_scan = np.array(plan.values, np.int32)[resample_labels(consensus, case.record.shape)]
        write(folder / "scans" / f"{name}{run.dataset.ending}", undo(on_scan, case.record, plan.values[0]))
        state = {
            "labelled": before["labelled"],
            "joined": bool(new.any()) or before.get("joined", False),
            "annotated": after.annotated.tolist(),
            "left_vox": int(after.left.sum()),
            "new_vox": int(new.sum()),
            "rows": [*(row for row in before.get("rows", ()) if row["class"] not in {r["class"] for r in rows}), *rows],
        }
        write_json(folder / "cases" / f"{name}.json", state)  # last: the case is done

    def work(folder: Path, tell: Callable[..., None]) -> None:
        left = [case for case in run.split[0] if case.name in cases and cases[case.name].get("left_vox", 1)]
        found = run.cached(left)
        for i, case in enumerate(found):
            if not (folder / "cases" / f"{case.record.name}.json").exists():
                one(folder, case)
            tell(i + 1, len(found))
        rows = [row for case in (cases | _states(folder)).values() for row in case.get("rows", ())]
        write_text(run.folder / QC, _table(rows))

    return _states(run.stage("pseudo", work))


def _states(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: {**read_json(path), "folder": folder} for path in sorted(folder.glob("cases/*.json"))}


def _load(folder: Path, name: str, annotated: Sequence[bool]) -> Known:
    """What a round left of a case."""
    remedy = f"delete the folder {folder}; its stage is then done again"
    label, provenance, certainty = (np.array(load_array(folder / part / f"{name}.npy", remedy)) for part in _PARTS)
    return Known(label, np.array(annotated, bool), provenance, certainty)


def _votes(
    run: Any, models: Sequence[Method], case: Cached, said: Known, known: Known
) -> tuple[np.ndarray, np.ndarray]:
    """What each model finds in a case (M, *S), and their consensus (*S), int16: nothing that contradicts what is known.

    `said` is what people said of it, `known` that and what earlier rounds agreed on.
    """
    found, consensus = [], []
    for slabs in zip(*(run.logits(case, model) for model in models)):
        start, stop, _ = slabs[0]
        z = torch.stack([logits for *_, logits in slabs])
        for told in (said, known):
            label = torch.from_numpy(told.label[start:stop]).to(z.device)
            z = admissible(
                z, label.expand(len(z), *label.shape), torch.from_numpy(told.annotated).expand(len(z), -1).to(z.device)
            )
        each, most = majority(z)
        found.append(each.cpu().numpy())
        consensus.append(most.cpu().numpy())
    left = known.left
    return np.where(left, np.concatenate(found, 1), known.label), np.where(left, np.concatenate(consensus), known.label)


# --- the list for a person --------------------------------------------------------------------------------------------


def _rows(
    plan: Plan, name: str, number: int, dice: np.ndarray, consensus: np.ndarray, new: np.ndarray, known: Known
) -> list[dict[str, Any]]:
    """The rows of one case: one for "all" classes, and one for each class that was open in it.

    consensus (*S), `IGNORE` where nothing was left; new (*S) bool, what was learnt of it.
    """
    anything = bool((known.label == IGNORE).any())
    there = {"all": (consensus > 0, over_classes(dice))}
    for k, label in enumerate(plan.classes[1:], 1):
        if anything or not known.annotated[k]:
            there[label] = consensus == k, float(dice[k - 1])
    rows = []
    for label, (mask, certainty) in there.items():
        voxels = int(mask.sum())
        row = {
            "case": name,
            "round": number,
            "class": label,
            "certainty": None if isnan(certainty) else round(certainty, 4),
        }
        kept = round(int((mask & new).sum()) / voxels, 3) if voxels else 0.0
        rows.append({**row, "kept": kept, "voxels": voxels, "mm3": round(voxels * float(np.prod(plan.spacing_mm)), 1)})
    return rows


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows as CSV, the least certain first; what no model sees, which has no certainty, before all."""

    def worst(row: Mapping[str, Any]) -> tuple[float, str]:
        return (-1.0 if row["certainty"] is None else row["certainty"], row["case"])

    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=worst))
    return text.getvalue()
