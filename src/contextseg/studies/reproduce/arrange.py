"""A download becomes an nnU-Net v2 data set, of links wherever a link will do.

The split is the paper's, or one like it. The output folder holds:

- `looked.json`: what each file of the download holds, so that a second call need not read it again.
- `labels/`: label files that had to be written anew: several masks united.
- `anatomy/`: masks of the organ around the ROI, where the download has it (see `data.masks`).
- `dataset/`: imagesTr, labelsTr, imagesTs, labelsTs, dataset.json; `split.json` says which case is
  where, and why.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.console import Progress
from contextseg.data.tables import read_table
from contextseg.disk import read_json, replacing, write_json
from contextseg.errors import ContextsegError
from contextseg.grids import difference
from contextseg.parallel import map_cases
from contextseg.studies.reproduce.find import Download, DownloadedCase, find_cases
from contextseg.studies.reproduce.table import Reproduction
from contextseg.volume import Volume, ending, read, read_labels, write

DRAW = 0
"""The seed of the splits that nobody published."""

DATASET = "dataset"
ANATOMY = "anatomy"
SPLIT = "split.json"
READ_BEFORE = "looked.json"


@dataclass(frozen=True)
class Arranged:
    """A data set that is ready.

    Attributes:
        folder: Its folder.
        train: Names of the training cases.
        test: Names of the test cases.
        split_origin: How the split was chosen, in words.
        left_out: Why cases were left out, by name.
        anatomy: Folder of the organ's masks. None where the download has none.
    """

    folder: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    split_origin: str
    left_out: dict[str, str]
    anatomy: Path | None


def arrange(
    reproduction: Reproduction,
    download: str | Path,
    out: str | Path,
    *,
    partial: bool = False,
    progress: Progress | None = None,
) -> Arranged:
    """Arrange a download as a data set with the paper's counts of training and test cases.

    Every file is read once, to its end. The same call goes on where it was stopped, and follows a
    download that was moved. `patients.json` in the download, {case: patient} by the names of the
    prepared cases, keeps the scans of a patient on one side of a split that is drawn.

    Args:
        reproduction: The data set.
        download: Folder of the download.
        out: Folder for everything that is made.
        partial: Take what is there, and leave out what is missing or damaged: the counts shrink in
            proportion.
        progress: Called with (done, of) after each case.

    Returns:
        The data set.

    Raises:
        ContextsegError: Cases are missing, damaged or wrongly labelled (the message names all), or
            too few; the folder cannot be written to, or was arranged from other cases.
    """
    found = find_cases(reproduction, download)
    out = Path(out).absolute()
    file_ending = _ending(reproduction, found.cases, download)
    contents = _read_contents(reproduction, found.cases, out, progress)
    damaged = {name: content["wrong"] for name, content in contents.items() if content["wrong"]}
    problems = [*found.problems, *(f"{name}: {why}" for name, why in damaged.items())]
    if problems and not partial:
        what = f"not all of {reproduction.title}:\n  " + "\n  ".join(problems) + "\n"
        remedy = f"{reproduction.missing}. Or take what is there, with --partial"
        raise ContextsegError(download, what, remedy)
    usable = [case for case in found.cases if case.name not in damaged]
    left_out = found.unused | damaged
    if reproduction.only_with_roi:
        without = [case.name for case in usable if not contents[case.name]["roi"]]
        left_out |= dict.fromkeys(without, f"no {reproduction.roi[0]} in its label")
        usable = [case for case in usable if contents[case.name]["roi"]]
    patients = {str(k): str(v) for k, v in read_table(Path(download) / "patients.json").items()}
    train, test, split_origin = split_cases(reproduction, usable, patients, download)
    unplaced = [case.name for case in usable if case.name not in {*train, *test}]
    left_out |= dict.fromkeys(unplaced, "in neither part of the published split")
    anatomy = out / ANATOMY if reproduction.organ else None
    arranged = Arranged(out / DATASET, train, test, split_origin, left_out, anatomy)
    _keep_split(reproduction, arranged, Path(download), found)
    by_name = {case.name: case for case in usable}
    _lay_out(reproduction, arranged, by_name, patients, file_ending)
    return arranged


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _ending(reproduction: Reproduction, cases: Sequence[DownloadedCase], where: str | Path) -> str:
    """The one ending of all files that are linked.

    Raises `ContextsegError` if there are several: nnU-Net knows one.
    """
    files = [case.image for case in cases]
    if not reproduction.masks:
        files += [path for case in cases for path in case.labels]
    endings = sorted({ending(path) for path in files})
    if not endings:
        what = "no case has both a scan and a label"
        raise ContextsegError(where, what, reproduction.missing)
    if len(endings) > 1:
        what = f"some files end in {' and some in '.join(endings)}"
        raise ContextsegError(where, what, "pack all, or unpack all (gzip, gunzip)")
    return endings[0]


# --- reading --------------------------------------------------------------------------------------


def _read_contents(
    reproduction: Reproduction,
    cases: Sequence[DownloadedCase],
    out: Path,
    progress: Progress | None,
) -> dict[str, dict[str, Any]]:
    """What the files of each case hold: {"files", "wrong", "roi"}.

    Only new or changed files are read, and those in which something was wrong.
    """
    path = out / READ_BEFORE
    contents: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    fingerprints = {
        case.name: [_fingerprint(file) for file in (case.image, *case.labels)] for case in cases
    }

    def is_known(case: DownloadedCase) -> bool:
        content = contents.get(case.name, {"files": None, "wrong": ""})
        written = all(place.exists() for place in _masks_to_write(reproduction, case, out))
        return written and content["files"] == fingerprints[case.name] and not content["wrong"]

    unread = [case for case in cases if not is_known(case)]
    done = len(cases) - len(unread)
    for case, content in map_cases(lambda case: _read_case(reproduction, case, out), unread):
        if isinstance(content, ContextsegError):
            raise content
        contents[case.name] = {"files": fingerprints[case.name], **content}
        write_json(path, contents)
        done += 1
        if progress:
            progress(done, len(cases))
    return {case.name: contents[case.name] for case in cases}


def _fingerprint(path: Path) -> list[Any]:
    """What tells a file from another without reading it, wherever its folder was moved."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _masks_to_write(reproduction: Reproduction, case: DownloadedCase, out: Path) -> dict[Path, int]:
    """The masks that are made of a case's label: of which value each."""
    classes = reproduction.classes
    masks = {}
    if reproduction.masks:
        united = out / "labels" / f"{case.name}{ending(case.image)}"
        masks[united] = next(iter(classes.values()))
    if reproduction.organ:
        masks[out / ANATOMY / f"{case.name}.nii.gz"] = classes[reproduction.organ]
    return masks


def _read_case(reproduction: Reproduction, case: DownloadedCase, out: Path) -> dict[str, Any]:
    """Read a case, write the masks that are made of it, and find what is wrong."""
    errors: list[ContextsegError] = []
    image = _attempt(lambda: read(case.image), errors)
    label = _attempt(lambda: _label(reproduction, case), errors)
    if image and label and (off := difference(label, image)):
        what = f"not on the grid of its scan: {off}"
        remedy = "see that both are of the same release"
        errors.append(ContextsegError(case.labels[0], what, remedy))
    if errors or not label:
        return {"wrong": "; ".join(map(str, errors)), "roi": False}
    for place, value in _masks_to_write(reproduction, case, out).items():
        write(place, label.with_array((label.array == value).astype(np.uint8)))
    roi_values = [reproduction.classes[name] for name in reproduction.roi]
    return {"wrong": "", "roi": bool(np.isin(label.array, roi_values).any())}


def _attempt(read_file: Callable[[], Volume], errors: list[ContextsegError]) -> Volume | None:
    try:
        return read_file()
    except ContextsegError as error:
        errors.append(error)
        return None


def _label(reproduction: Reproduction, case: DownloadedCase) -> Volume:
    """The label map of a case.

    Raises `ContextsegError` for values that the data set does not have.
    """
    if reproduction.masks:
        return _united(case.labels)
    label = read_labels(case.labels[0])
    classes = reproduction.classes
    strange = sorted(set(np.unique(label.array).tolist()) - {0, *classes.values()})
    if strange:
        table = ["0 background", *(f"{value} {name}" for name, value in classes.items())]
        values = ", ".join(map(str, strange[:5])) + (" and so on" if len(strange) > 5 else "")
        what = f"label values {values}; this data set has {', '.join(table)}"
        remedy = "see that it is this data set's label map, as it was released"
        raise ContextsegError(case.labels[0], what, remedy)
    return label


def _united(paths: Sequence[Path]) -> Volume:
    """The union of masks: of each what is above half of its largest value.

    An empty mask adds nothing.
    """
    union: Volume | None = None
    for path in paths:
        mask = read(path)
        array = mask.array[0]
        if not np.isfinite(array).all() or array.min() < 0:
            what = "a mask with negative numbers, NaN or infinity"
            raise ContextsegError(path, what, "see that it is a mask")
        inside = (array > array.max() / 2).astype(np.int16)
        if union is None:
            union = mask.with_array(inside)
        elif off := difference(mask, union):
            what = f"not on the grid of {paths[0].name}: {off}"
            raise ContextsegError(path, what, "see that both are of the same scan")
        else:
            union = union.with_array(np.maximum(union.array, inside))
    assert union
    return union


# --- the split ------------------------------------------------------------------------------------


def split_cases(
    reproduction: Reproduction,
    cases: Sequence[DownloadedCase],
    patients: Mapping[str, str],
    where: str | Path,
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Split cases: the published split where there is one, else one drawn by a fixed seed.

    A drawn split keeps whole patients. Of n cases n * test / (train + test) are tested, rounded:
    the paper's counts where all its cases are there.

    Args:
        reproduction: The data set.
        cases: The usable cases.
        patients: Patient of a case by name, where it differs from the case's own.
        where: The download, for the message.

    Returns:
        Names of the training cases, names of the test cases, and how they were chosen in words.

    Raises:
        ContextsegError: One side would be empty.
    """
    if reproduction.published_split:
        train, test = (
            [case.name for case in cases if case.number in part]
            for part in reproduction.published_split
        )
        if train and test:
            return tuple(train), tuple(test), f"the split of {reproduction.split_from}"
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault(patients.get(case.name, case.patient), []).append(case.name)
    total = reproduction.train + reproduction.test
    wanted = max(1, round(len(cases) * reproduction.test / total))
    order = sorted(groups)
    np.random.RandomState(DRAW).shuffle(order)  # a stream that numpy has frozen
    tested: list[str] = []
    for patient in order:
        if len(tested) + len(groups[patient]) <= wanted:
            tested += groups[patient]
    if not tested or len(tested) == len(cases):
        counts = f"{_count(groups, 'patient')} with {_count(cases, 'usable case')}"
        what = f"{counts}: nothing to train on, or to test on"
        raise ContextsegError(where, what, reproduction.missing)
    trained = tuple(case.name for case in cases if case.name not in tested)
    return trained, tuple(sorted(tested)), f"drawn with seed {DRAW}, whole patients"


# --- laying out -----------------------------------------------------------------------------------


def _keep_split(
    reproduction: Reproduction, arranged: Arranged, download: Path, found: Download
) -> None:
    """Write `split.json`.

    Raises `ContextsegError` if the folder holds another split: runs may have learnt from it.
    """
    path = arranged.folder / SPLIT
    split = {"train": list(arranged.train), "test": list(arranged.test)}
    content = {
        "reproduction": reproduction.name,
        "how": arranged.split_origin,
        "published_counts": [reproduction.train, reproduction.test],
        "download": str(download.absolute()),
        **split,
        "left_out": arranged.left_out,
        "missing": list(found.problems),
    }
    if path.exists():
        before = read_json(path)
        if {part: before.get(part) for part in split} != split:
            what = "this folder was arranged from other cases, so its split is another one"
            remedy = "choose another --output folder, or delete this one"
            raise ContextsegError(arranged.folder, what, remedy)
    write_json(path, content)


def _lay_out(
    reproduction: Reproduction,
    arranged: Arranged,
    cases: Mapping[str, DownloadedCase],
    patients: Mapping[str, str],
    file_ending: str,
) -> None:
    """Links to scans and labels, and the tables beside them; `dataset.json` comes last."""
    folder = arranged.folder
    for part, names in (("Tr", arranged.train), ("Ts", arranged.test)):
        for name in names:
            case = cases[name]
            image = folder / f"images{part}" / f"{name}_0000{file_ending}"
            label = case.labels[0].absolute()
            if reproduction.masks:
                label = Path("..", "..", "labels", f"{name}{file_ending}")
            _link(case.image.absolute(), image)
            _link(label, folder / f"labels{part}" / f"{name}{file_ending}")
    if arranged.anatomy:
        write_json(arranged.anatomy / "labels.json", {"background": 0, reproduction.organ: 1})
    if patients:
        owners = {name: patients.get(name, case.patient) for name, case in cases.items()}
        write_json(folder / "patients.json", owners)
    table = {
        "name": reproduction.name,
        "description": reproduction.title,
        "reference": reproduction.cite,
        "licence": reproduction.licence,
        "channel_names": {"0": reproduction.channel},
        "labels": {"background": 0, **reproduction.classes},
        "numTraining": len(arranged.train),
        "file_ending": file_ending,
    }
    write_json(folder / "dataset.json", table)


def _link(target: Path, place: Path) -> None:
    """A link at `place`; where links cannot be made, a copy. What is there already stays."""
    if place.is_symlink() and os.readlink(place) == str(target) and place.exists():
        return
    with replacing(place) as temporary:
        try:
            os.symlink(target, temporary)
        except (OSError, NotImplementedError):  # Windows without the right to, FAT
            shutil.copyfile(place.parent / target, temporary)
