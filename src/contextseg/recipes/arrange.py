"""A download becomes an nnU-Net v2 data set, of links wherever a link will do, with the paper's split or one like it.

OUT/looked.json   what each file of the download holds, so that a second call need not read it again
OUT/labels/       label files that had to be written anew: several masks united
OUT/anatomy/      masks of the organ around the ROI, where the download has it (`data.masks` reads them)
OUT/dataset/      imagesTr, labelsTr, imagesTs, labelsTs, dataset.json; split.json says who is where, and why
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.check import mismatch
from contextseg.data.tables import read_table
from contextseg.disk import Problem, read_json, replacing, write_json
from contextseg.recipes.find import Found, search
from contextseg.recipes.table import Recipe
from contextseg.volume import Volume, ending, read, read_labels, write

DRAW = 0
"""The seed of the splits that nobody published."""
DATASET, ANATOMY, SPLIT = "dataset", "anatomy", "split.json"


@dataclass(frozen=True)
class Arranged:
    """A data set that is ready: its folder, the cases on both sides, how they were chosen, and who was left out why.

    anatomy  the folder of the organ's masks; None where the download has none.
    """

    folder: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    how: str
    left_out: dict[str, str]
    anatomy: Path | None


def arrange(
    recipe: Recipe,
    download: str | Path,
    out: str | Path,
    *,
    partial: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Arranged:
    """Arrange a download in `out` as a data set with the paper's counts of training and test cases.

    Every file is read once, to its end. With `partial` what is there is taken, and what is missing or damaged left out:
    the counts shrink in proportion. The same call goes on where it was stopped, and follows a download that was moved.
    `patients.json` in the download, {case: patient} by the names of the prepared cases, keeps the scans of a patient on
    one side of a split that is drawn. `progress(done, of)` is called after each case.

    Raises `Problem` that names all cases which are missing, damaged or wrongly labelled; for too few of them; for a
    folder that cannot be written to, or that was arranged from other cases.
    """
    found, out = search(recipe, download), Path(out).absolute()
    end = _ending(recipe, found.cases, download)
    looks = _looked_at(recipe, found.cases, out, progress)
    wrong = [*found.wrong, *(f"{name}: {look['wrong']}" for name, look in looks.items() if look["wrong"])]
    if wrong and not partial:
        what = f"not all of {recipe.title}:\n  " + "\n  ".join(wrong) + "\n"
        raise Problem(download, what, f"{recipe.missing}. Or take what is there, with --partial")
    left_out = found.unused | {name: look["wrong"] for name, look in looks.items() if look["wrong"]}
    usable = [case for case in found.cases if not looks[case.name]["wrong"]]
    if recipe.only_with_roi:
        left_out |= {c.name: f"no {recipe.roi[0]} in its label" for c in usable if not looks[c.name]["roi"]}
        usable = [case for case in usable if looks[case.name]["roi"]]
    patients = {str(k): str(v) for k, v in read_table(Path(download) / "patients.json").items()}
    train, test, how = divide(recipe, usable, patients, download)
    placed = {*train, *test}
    left_out |= {c.name: "in neither part of the published split" for c in usable if c.name not in placed}
    made = Arranged(out / DATASET, train, test, how, left_out, out / ANATOMY if recipe.organ else None)
    _keep_split(recipe, made, Path(download), found.wrong)
    _lay_out(recipe, made, {case.name: case for case in usable}, patients, end)
    return made


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _ending(recipe: Recipe, cases: Sequence[Found], where: str | Path) -> str:
    """The one ending of all files that are linked. Raises `Problem` if there are several: nnU-Net knows one."""
    files = [path for case in cases for path in (case.image, *(() if recipe.masks else case.labels))]
    ends = sorted({ending(path) for path in files})
    if len(ends) != 1:
        what = f"some files end in {' and some in '.join(ends)}" if ends else "no case has both a scan and a label"
        remedy = "pack all, or unpack all (gzip, gunzip)" if ends else recipe.missing
        raise Problem(where, what, remedy)
    return ends[0]


# --- looking --------------------------------------------------------------------------------------------------------


def _looked_at(
    recipe: Recipe, cases: Sequence[Found], out: Path, progress: Callable[[int, int], None] | None
) -> dict[str, dict[str, Any]]:
    """What each case's files hold: {"files", "wrong", "roi"}; only new or changed files are read."""
    path = out / "looked.json"
    known: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    prints = {case.name: [_fingerprint(file) for file in (case.image, *case.labels)] for case in cases}

    def done(case: Found) -> bool:
        look = known.get(case.name, {"files": None, "wrong": ""})
        written = all(place.exists() for place in _written(recipe, case, out))
        return written and look["files"] == prints[case.name] and not look["wrong"]

    todo = [case for case in cases if not done(case)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for i, (case, look) in enumerate(zip(todo, pool.map(lambda case: _look(recipe, case, out), todo))):
            known[case.name] = {"files": prints[case.name], **look}
            write_json(path, known)
            if progress:
                progress(len(cases) - len(todo) + i + 1, len(cases))
    return {case.name: known[case.name] for case in cases}


def _fingerprint(path: Path) -> list[Any]:
    """What tells a file from another without reading it, wherever its folder was moved."""
    state = path.stat()
    return [path.name, state.st_size, state.st_mtime_ns]


def _written(recipe: Recipe, case: Found, out: Path) -> dict[Path, int]:
    """The masks that are made of a case's label: of which value each."""
    name, (first, *_) = case.name, recipe.classes.values()
    made = {out / "labels" / f"{name}{ending(case.image)}": first} if recipe.masks else {}
    return made | ({out / ANATOMY / f"{name}.nii.gz": recipe.classes[recipe.organ]} if recipe.organ else {})


def _look(recipe: Recipe, case: Found, out: Path) -> dict[str, Any]:
    """Read a case, write what has to be written of it, and say what is wrong."""
    wrong: list[Problem] = []
    image, label = _read(lambda: read(case.image), wrong), _read(lambda: _label(recipe, case), wrong)
    if image and label and (off := mismatch(label, image)):
        remedy = "see that both are of the same release"
        wrong.append(Problem(case.labels[0], f"not on the grid of its scan: {off}", remedy))
    if wrong or not label:
        return {"wrong": "; ".join(map(str, wrong)), "roi": False}
    for place, value in _written(recipe, case, out).items():
        write(place, label.with_array((label.array == value).astype(np.uint8)))
    return {"wrong": "", "roi": bool(np.isin(label.array, [recipe.classes[name] for name in recipe.roi]).any())}


def _read(read_it: Callable[[], Volume], wrong: list[Problem]) -> Volume | None:
    try:
        return read_it()
    except Problem as problem:
        wrong.append(problem)
        return None


def _label(recipe: Recipe, case: Found) -> Volume:
    """The label map of a case. Raises `Problem` for values that the data set does not have."""
    if recipe.masks:
        return _united(case.labels)
    label = read_labels(case.labels[0])
    strange = sorted(set(np.unique(label.array).tolist()) - {0, *recipe.classes.values()})
    if strange:
        table = ", ".join(["0 background", *(f"{value} {name}" for name, value in recipe.classes.items())])
        shown = ", ".join(map(str, strange[:5])) + (" and so on" if len(strange) > 5 else "")
        what = f"label values {shown}; this data set has {table}"
        raise Problem(case.labels[0], what, "see that it is this data set's label map, as it was released")
    return label


def _united(paths: Sequence[Path]) -> Volume:
    """The union of masks: of each what is above half of its largest value. An empty mask adds nothing."""
    union: Volume | None = None
    for path in paths:
        mask = read(path)
        array = mask.array[0]
        if not np.isfinite(array).all() or array.min() < 0:
            raise Problem(path, "a mask with negative numbers, NaN or infinity", "see that it is a mask")
        inside = (array > array.max() / 2).astype(np.int16)
        if union is None:
            union = mask.with_array(inside)
        elif off := mismatch(mask, union):
            raise Problem(path, f"not on the grid of {paths[0].name}: {off}", "see that both are of the same scan")
        else:
            union = union.with_array(np.maximum(union.array, inside))
    assert union
    return union


# --- who trains, who tests ------------------------------------------------------------------------------------------


def divide(
    recipe: Recipe, cases: Sequence[Found], patients: Mapping[str, str], where: str | Path
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """(train, test, how): the published split where there is one, else one drawn by a fixed seed, whole patients.

    Of n cases n * test / (train + test) are tested, rounded: the paper's counts where all its cases are there.
    Raises `Problem` where one side would be empty.
    """
    if recipe.published_split:
        train, test = ([c.name for c in cases if c.number in part] for part in recipe.published_split)
        if train and test:
            return tuple(train), tuple(test), f"the split of {recipe.split_from}"
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(patients.get(case.name, case.patient), []).append(case.name)
    wanted = max(1, round(len(cases) * recipe.test / (recipe.train + recipe.test)))
    order = sorted(groups)
    np.random.RandomState(DRAW).shuffle(order)  # a stream that numpy has frozen
    held: list[str] = []
    for patient in order:
        if len(held) + len(groups[patient]) <= wanted:
            held += groups[patient]
    if not held or len(held) == len(cases):
        what = f"{_count(groups, 'patient')} with {_count(cases, 'usable case')}: nothing to train on, or to test on"
        raise Problem(where, what, recipe.missing)
    rest = tuple(case.name for case in cases if case.name not in held)
    return rest, tuple(sorted(held)), f"drawn with seed {DRAW}, whole patients"


# --- laying out -----------------------------------------------------------------------------------------------------


def _keep_split(recipe: Recipe, made: Arranged, download: Path, missing: Sequence[str]) -> None:
    """Write `split.json`. Raises `Problem` if the folder holds another split: runs may have learnt from it."""
    path = made.folder / SPLIT
    content = {
        "recipe": recipe.name,
        "how": made.how,
        "published_counts": [recipe.train, recipe.test],
        "download": str(download.absolute()),
        "train": list(made.train),
        "test": list(made.test),
        "left_out": made.left_out,
        "missing": list(missing),
    }
    if path.exists():
        before = read_json(path)
        if [before.get(part) for part in ("train", "test")] != [list(made.train), list(made.test)]:
            what = "this folder was arranged from other cases, so its split is another one"
            raise Problem(made.folder, what, "choose another --output folder, or delete this one")
    write_json(path, content)


def _lay_out(recipe: Recipe, made: Arranged, cases: Mapping[str, Found], patients: Mapping[str, str], end: str) -> None:
    """Links to scans and labels, and the tables beside them; `dataset.json` comes last."""
    for part, names in (("Tr", made.train), ("Ts", made.test)):
        for name in names:
            case, written = cases[name], Path("..", "..", "labels", f"{name}{end}")
            _link(case.image.absolute(), made.folder / f"images{part}" / f"{name}_0000{end}")
            label = written if recipe.masks else case.labels[0].absolute()
            _link(label, made.folder / f"labels{part}" / f"{name}{end}")
    if made.anatomy:
        write_json(made.anatomy / "labels.json", {"background": 0, recipe.organ: 1})
    if patients:
        write_json(made.folder / "patients.json", {name: patients.get(name, cases[name].patient) for name in cases})
    table = {
        "name": recipe.name,
        "description": recipe.title,
        "reference": recipe.cite,
        "licence": recipe.licence,
        "channel_names": {"0": recipe.channel},
        "labels": {"background": 0, **recipe.classes},
        "numTraining": len(made.train),
        "file_ending": end,
    }
    write_json(made.folder / "dataset.json", table)


def _link(target: Path, place: Path) -> None:
    """A link at `place`; where links cannot be made, a copy. What is there already stays."""
    if place.is_symlink() and os.readlink(place) == str(target) and place.exists():
        return
    with replacing(place) as temporary:
        try:
            os.symlink(target, temporary)
        except (OSError, NotImplementedError):  # Windows without the right to, FAT
            shutil.copyfile(place.parent / target, temporary)
