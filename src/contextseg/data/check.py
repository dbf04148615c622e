"""Every problem of a data set at once, each with its file and its remedy.

An error would stop the work or falsify its result. A warning is worth a look. Every scan is read to
its last byte.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from contextseg.batch import IGNORE
from contextseg.console import Progress
from contextseg.data.findings import Finding
from contextseg.data.layouts import Case, Dataset, classes_of_values, some, survey
from contextseg.data.prepare import TOO_LARGE, other_unit, too_large
from contextseg.data.roi import restricted
from contextseg.data.sizes import CHECK, workers_for
from contextseg.data.tables import read_table
from contextseg.data.unused import name_unused
from contextseg.data.vanishing import (
    is_coarser,
    usual_spacing,
    vanished_at,
    vanished_sentences,
)
from contextseg.errors import ContextsegError, plural
from contextseg.grids import difference, onto, times
from contextseg.parallel import map_cases
from contextseg.slabs import slabs, unique_values, voxel_digest
from contextseg.volume import AXIAL, Volume, read, read_labels

KINDS = {
    "dataset": "the folder is no data set, its table is broken, or a class of the ROI is unknown",
    "layout": "a file is missing, misnamed or listed wrongly, or a table says what cannot be",
    "unreadable": "an image or a label cannot be read, or a label holds fractions",
    "grid": "a channel or a label does not lie on the grid of its case's first image",
    "cropped": "a label covers a part of its image; the rest counts as background",
    "header": "a header leaves open where the scan lies, or a format loses voxels",
    "channels": "a case has other channels than the data set",
    "not-finite": "an image holds NaN, infinity or numbers too large for float32",
    "constant": "all voxels of a channel have the same value",
    "spacing": "the voxels have an improbable size",
    "label-values": "a label holds values that are not in the label table",
    "unannotated": "a label in which no voxel is annotated",
    "empty-label": "a label that is all background",
    "not-listed": "a class is labelled in a case that does not list it as annotated",
    "no-label": "no training case has a label",
    "one-label": "a single training case has a label",
    "absent-class": "a class is in no training label",
    "nothing-labelled": "no training label holds any class: all are background or unannotated",
    "vanishing": "parts of a class of which nothing is left at the spacing planned by default",
    "count": "the table states another number of training cases",
    "twin": "scans with the same voxels, all in training or all in test",
    "leak": "scans with the same voxels, in training and in test",
    "patient": "a patient is on both sides of a split",
    "unused": "files in the folders of images or labels that no case uses",
}
"""The kinds of findings and what each means. Code decides by `Finding.kind`, never by the text."""

_LARGEST = 1e30  # intensities up to here can be subtracted and squared in preprocessing


@dataclass
class _Inspection:
    """What one case shows: findings, the digest of each channel's voxels, the classes labelled."""

    case: Case
    findings: list[Finding] = field(default_factory=list)
    voxels: list[str] = field(default_factory=list)
    grid: tuple[Sequence[int], Sequence[float]] | None = None  # shape and spacing in mm
    orientation: str = ""
    classes: set[int] | None = None  # None without a label that can be understood

    def error(self, kind: str, where: str | Path, what: str, remedy: str) -> None:
        """Note what must be mended before anything is trained.

        Args:
            kind: One of the kinds of findings.
            where: The file.
            what: What is wrong.
            remedy: What to do.
        """
        self._note("error", kind, where, what, remedy)

    def warning(self, kind: str, where: str | Path, what: str, remedy: str) -> None:
        """Note what should be looked at.

        Args:
            kind: One of the kinds of findings.
            where: The file.
            what: What is wrong.
            remedy: What to do.
        """
        self._note("warning", kind, where, what, remedy)

    def _note(
        self,
        level: Literal["error", "warning"],
        kind: str,
        where: str | Path,
        what: str,
        remedy: str,
    ) -> None:
        name = self.case.name
        self.findings.append(Finding(level, name, str(where), what, remedy, kind, (name,)))


def check(
    folder: str | Path,
    progress: Progress | None = None,
    workers: int | None = None,
    roi: Sequence[str] = (),
) -> list[Finding]:
    """Find every problem of a data set.

    Several scans are read at a time, and none is kept. Bad data raise nothing.

    Args:
        folder: The data set, in any of the known layouts.
        progress: Called with (done, of) after each case.
        workers: Number of scans read at a time. None takes one for each core, at most 8, and as
            many as fit into the memory that is free.
        roi: Classes to check the data set for; labels without them are not opened. () checks all.

    Returns:
        The findings: those of the whole data set first, then case by case. [] if nothing is wrong.
    """
    try:
        dataset, problems = survey(folder)
        dataset = restricted(dataset, roi)
    except ContextsegError as error:
        return [Finding("error", "", error.where, error.what, error.remedy, "dataset")]
    findings = [
        Finding("error", case, p.where, p.what, p.remedy, "layout", (case,) if case else ())
        for case, p in problems
    ]

    cases = [*dataset.train, *dataset.test]
    files = max(len(case.images) for case in cases)
    inspections: list[_Inspection] = []
    inspect = partial(_inspect, dataset, files)
    workers = workers or workers_for(cases, CHECK, "check", 8)
    for case, result in map_cases(inspect, cases, workers, progress):
        if isinstance(result, ContextsegError):
            inspection = _Inspection(case)
            inspection.error("unreadable", result.where, result.what, result.remedy)
        else:
            inspection = result
        inspections.append(inspection)
        findings += inspection.findings

    findings += _check_labels(dataset, inspections)
    units = _check_units(inspections)
    strange = {f.case for f in units}
    findings = [f for f in findings if f.kind != "spacing" or f.case not in strange] + units
    findings += _check_vanishing(dataset, inspections, {f.case for f in findings})
    findings += _check_count(dataset, inspections)
    findings += _check_unused(dataset)
    findings += _check_twins(dataset, inspections)
    findings += _check_patients(dataset)
    order = {"": -1} | {case.name: i for i, case in enumerate(cases)}
    return sorted(
        dict.fromkeys(findings), key=lambda f: (order.get(f.case, len(cases)), f.case, f.level)
    )


# --- one case -------------------------------------------------------------------------------------


def _inspect(dataset: Dataset, files: int, case: Case) -> _Inspection:
    """Read a case's images, `files` of them where none is missing, and its label."""
    inspection = _Inspection(case)
    grid = _check_images(dataset, inspection, files)
    if case.label:
        _check_label(dataset, inspection, case.label, grid)
    return inspection


def _check_images(dataset: Dataset, inspection: _Inspection, files: int) -> Volume | None:
    """Note what is wrong with a case's images; the first one that can be read is the grid."""
    images = inspection.case.images
    grid = None
    count = 0
    all_read = True
    for path in images:
        try:
            scan = read(path)
        except ContextsegError as error:
            inspection.error("unreadable", error.where, error.what, error.remedy)
            all_read = False
            continue
        _note_doubts(inspection, path, scan.doubts)
        if grid is None:
            nothing = np.broadcast_to(np.uint8(0), scan.array.shape)
            grid = scan.with_array(nothing)  # its place in space; the voxels need not be kept
            inspection.grid = scan.shape, scan.spacing_mm
            inspection.orientation = scan.orientation
            _check_spacing(inspection, path, scan)
        elif off := difference(scan, grid):
            what = f"not on the grid of {images[0].name}: {off}"
            inspection.error("grid", path, what, "resample it onto that grid")
        several = len(scan.array) > 1
        for i, channel in enumerate(scan.oriented(AXIAL).array):
            title = dataset.channels[count] if count < len(dataset.channels) else str(count)
            title = f"channel {i} ({title})" if several else "the image"
            _check_channel(inspection, path, channel, title)
            count += 1

    complete = all_read and len(images) == files  # the survey of the layout names a missing file
    if complete and count != len(dataset.channels):
        names = ", ".join(dataset.channels)
        what = f"{plural(count, 'channel')}; the data set has {len(dataset.channels)} ({names})"
        remedy = "add the missing channels, or correct the list of channels"
        inspection.error("channels", images[0], what, remedy)
    return grid


def _check_channel(inspection: _Inspection, path: Path, channel: np.ndarray, title: str) -> None:
    """Note NaN, infinity and a channel of one value; add the digest of its voxels."""
    parts = list(slabs(channel.shape))
    bad = 0
    if channel.dtype.kind == "f":
        good = (np.count_nonzero(np.abs(channel[part]) <= _LARGEST) for part in parts)
        bad = channel.size - sum(map(int, good))
    if bad:
        finite = all(np.isfinite(channel[part]).all() for part in parts)
        kind = f"beyond {_LARGEST:g}, a fill value?" if finite else "NaN or infinite"
        what = f"{bad} of {channel.size} voxels of {title} are {kind}"
        remedy = "write a number there, such as the value of air, or leave the case out"
        inspection.error("not-finite", path, what, remedy)
    elif channel.min() == channel.max():
        what = f"every voxel of {title} is {channel.flat[0]:g}"
        inspection.error("constant", path, what, "export it again, or leave the case out")
    else:
        inspection.voxels.append(voxel_digest(channel))


def _note_doubts(inspection: _Inspection, path: Path, doubts: Iterable[tuple[str, str]]) -> None:
    """Warn of what a header leaves open, as `Volume.doubts` says it."""
    for what, remedy in doubts:
        inspection.warning("header", path, what, remedy)


def _check_spacing(inspection: _Inspection, path: Path, scan: Volume) -> None:
    sizes = [size for size, n in zip(scan.spacing_mm, scan.shape) if n > 1]
    if sizes and (min(sizes) < 0.01 or max(sizes) > 50):
        what = f"voxels of {times(scan.spacing_mm, ' mm')}"
        remedy = "see whether the header counts in millimetres, and correct its voxel size or unit"
        inspection.warning("spacing", path, what, remedy)


def _check_label(
    dataset: Dataset, inspection: _Inspection, path: Path, grid: Volume | None
) -> None:
    try:
        label = read_labels(path, small=True)
    except ContextsegError as error:
        inspection.error("unreadable", error.where, error.what, error.remedy)
        return
    _note_doubts(inspection, path, [d for d in label.doubts if not grid or d not in grid.doubts])
    if grid:
        label = _on_grid(inspection, path, label, grid)
    try:
        present = set(classes_of_values(dataset, unique_values(label.array), path))
    except ContextsegError as error:
        inspection.error("label-values", error.where, error.what, error.remedy)
        return

    inspection.classes = present
    if present == {IGNORE}:
        remedy = "take the label away, or annotate some slices"
        inspection.warning("unannotated", path, "no voxel is annotated", remedy)
    elif not present - {0, IGNORE}:
        remedy = "see whether nothing is there to be found in this scan"
        inspection.warning("empty-label", path, "the label is empty: all background", remedy)
    annotated = inspection.case.annotated
    names = [dataset.classes[k] for k in sorted(present) if k > 0]
    not_listed = [name for name in names if annotated is not None and name not in annotated]
    if not_listed:
        verb = "is" if len(not_listed) == 1 else "are"
        what = f"{some(not_listed)} {verb} labelled, but not listed as annotated"
        remedy = "add them to the list; else their other voxels count as unknown"
        inspection.warning("not-listed", path, what, remedy)


def _on_grid(inspection: _Inspection, path: Path, label: Volume, grid: Volume) -> Volume:
    """The label on the image's grid; as it is where it does not lie on the image's lattice."""
    try:
        placed = onto(label, grid, path)
    except ContextsegError as error:
        inspection.error("grid", error.where, error.what, error.remedy)
        return label
    if placed.array.size != label.array.size:
        what = f"covers {times(label.shape)} voxels of the image's {times(grid.shape)}"
        remedy = "nothing, where all else is background: the rest counts as background"
        inspection.warning("cropped", path, what, remedy)
    return placed


# --- all cases together ---------------------------------------------------------------------------


def _check_units(inspections: Sequence[_Inspection]) -> list[Finding]:
    """Scans whose voxels are so unlike the others' that their headers count in another unit."""
    known = [i for i in inspections if i.grid]
    if not known:
        return []
    usual = np.median([np.sort(i.grid[1]) for i in known if i.grid], axis=0)
    findings = []
    for inspection in known:
        shape, spacing = inspection.grid or ((), ())
        order = np.argsort(spacing)  # whatever the orientation
        if other_unit(np.array(shape)[order], np.sort(spacing), usual):
            what = f"voxels of {times(spacing, ' mm')}, most have {times(usual, ' mm')}"
            remedy = "see whether its header counts in millimetres, and correct voxel size or unit"
        elif what := too_large(np.array(shape)[order], np.sort(spacing), usual):
            remedy = TOO_LARGE
        else:
            continue
        where, name = str(inspection.case.images[0]), inspection.case.name
        findings.append(Finding("error", name, where, what, remedy, "spacing", (name,)))
    return findings


def _labelled(dataset: Dataset, inspections: Sequence[_Inspection]) -> list[_Inspection]:
    """The training cases with a label."""
    train = {case.name for case in dataset.train}
    return [i for i in inspections if i.case.label and i.case.name in train]


def _check_labels(dataset: Dataset, inspections: Sequence[_Inspection]) -> list[Finding]:
    """What the training labels as a whole lack."""
    labelled = _labelled(dataset, inspections)
    folder = str(dataset.folder)
    if not labelled:
        what = "no training case has a label"
        remedy = "put label files into the labels folder, called like their images"
        return [Finding("error", "", folder, what, remedy, "no-label")]

    findings = []
    if len(labelled) == 1:
        name = labelled[0].case.name
        what = f"only {name} has a label: nothing is left to validate on"
        remedy = "label a second case"
        findings.append(Finding("warning", "", folder, what, remedy, "one-label", (name,)))
    if all(inspection.classes is not None for inspection in labelled):
        present = set[int]().union(*(inspection.classes or () for inspection in labelled))
        absent = [name for k, name in enumerate(dataset.classes) if k > 0 and k not in present]
        if not present - {0, IGNORE}:
            what = f"every label is empty: {some(absent)} cannot be learnt"
            remedy = "see whether the labels were exported whole, or label a case with a class"
            findings.append(Finding("error", "", folder, what, remedy, "nothing-labelled"))
        elif absent:
            table = dataset.folder / "dataset.json"
            where = str(table) if table.is_file() else folder
            what = f"in no training label: {some(absent)}; it cannot be learnt"
            remedy = "add a case that shows it, or take it out of the labels"
            findings.append(Finding("warning", "", where, what, remedy, "absent-class"))
    return findings


def _check_vanishing(
    dataset: Dataset, inspections: Sequence[_Inspection], strange: Collection[str]
) -> list[Finding]:
    """Parts of classes of which nothing is left at the spacing that is planned by default."""
    known = {i.case.name: i for i in inspections if i.grid and i.case.name not in strange}
    grids = {name: (i.orientation, *(i.grid or ((), ()))) for name, i in known.items()}
    train = [case for case in dataset.train if case.label and case.name in grids]
    if not train:
        return []
    spacing = usual_spacing(grids[case.name] for case in dataset.train if case.name in grids)
    finer = [case for case in train if is_coarser(spacing, usual_spacing([grids[case.name]]))]
    found = vanished_at(dataset, finer, AXIAL, spacing)
    findings = []
    for (what, remedy), rows in zip(vanished_sentences(found, spacing), found.values()):
        names = tuple(row.case for row in rows)
        what = f"{what} (the spacing planned by default)"
        where = str(dataset.folder)
        findings.append(Finding("warning", "", where, what, remedy, "vanishing", names))
    return findings


def _check_unused(dataset: Dataset) -> list[Finding]:
    """Files beside images and labels that no case uses."""
    if not dataset.unused:
        return []
    remedy = "rename them by the data set's layout and ending, or move them away"
    what = name_unused(dataset.unused)
    return [Finding("warning", "", str(dataset.unused[0].parent), what, remedy, "unused")]


def _check_count(dataset: Dataset, inspections: Sequence[_Inspection]) -> list[Finding]:
    """Whether the table states the number of training cases, of labelled ones, or of all."""
    where = dataset.folder / "dataset.json"
    stated = read_table(where).get("numTraining")
    labelled = len(_labelled(dataset, inspections))
    train = len({case.name for case in dataset.train})
    if not isinstance(stated, int) or stated in (labelled, train, len(inspections)):
        return []
    there = plural(train, "training case")
    what = f"numTraining is {stated}; there: {there}, {labelled} of them labelled"
    remedy = "see whether files are missing, or correct the number"
    return [Finding("warning", "", str(where), what, remedy, "count")]


def _check_twins(dataset: Dataset, inspections: Sequence[_Inspection]) -> list[Finding]:
    """Scans with the same voxels under different names, in any format and orientation."""
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for inspection in inspections:
        if inspection.voxels:
            groups[tuple(inspection.voxels)].append(inspection.case)
    test = {case.name for case in dataset.test}
    findings = []
    for cases in groups.values():
        if len(cases) == 1:
            continue
        names = tuple(case.name for case in cases)
        training = [name for name in names if name not in test]
        tested = [case for case in cases if case.name in test]
        if training and tested:
            last = tested[0]
            others = f"{some(training)} in training: its score would be flattered"
            remedy = "take one of them away"
        else:
            last = cases[-1]
            others = some(names[:-1])
            remedy = "take one of them away, or give both the same patient in patients.json"
        leak = bool(training and tested)
        findings.append(
            Finding(
                level="error" if leak else "warning",
                case=last.name,
                where=str(last.images[0]),
                what=f"the same voxels as {others}",
                remedy=remedy,
                kind="leak" if leak else "twin",
                cases=names,
            )
        )
    return findings


def _check_patients(dataset: Dataset) -> list[Finding]:
    """Patients on both sides of a split, the data set's own or one of `splits_final.json`."""
    train = [case.name for case in dataset.train]
    sides: list[tuple[str, Iterable[str], Iterable[str]]]
    sides = [("", train, [case.name for case in dataset.test])]
    sides += [(f"fold {fold}: ", *names) for fold, names in enumerate(dataset.splits)]
    patients = {case.name: case.patient for case in (*dataset.train, *dataset.test)}
    findings = []
    for prefix, first, second in sides:
        groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for side, names in enumerate((set(first), set(second))):
            for name in (name for name in patients if name in names):
                groups[patients[name]][side].append(name)
        for patient in sorted(patient for patient, (a, b) in groups.items() if a and b):
            a, b = groups[patient]
            if set(a) == set(b):  # the survey of the layout reports a case on both sides
                continue
            where = dataset.folder / "splits_final.json" if prefix else dataset.folder
            other = "val" if prefix else "test"
            what = f"{prefix}patient {patient} is in train ({some(a)}) and in {other} ({some(b)})"
            remedy = "keep all scans of a patient on one side"
            cases = tuple(dict.fromkeys([*a, *b]))
            findings.append(Finding("error", "", str(where), what, remedy, "patient", cases))
    return findings
