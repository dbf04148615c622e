"""Everything that is wrong with a data set, at once, each thing with its file and its remedy.

An error would stop the work or falsify its result; a warning is worth a look. Every scan is read to its last byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.layouts import Case, Dataset, some, survey, to_classes
from contextseg.data.roi import restricted
from contextseg.data.tables import read_table
from contextseg.disk import Problem
from contextseg.volume import AXIAL, Volume, read, read_labels


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: with which case ("" for the whole data set), in which file, and what to do about it."""

    level: Literal["error", "warning"]
    case: str
    where: str
    what: str
    remedy: str


@dataclass
class _Look:
    """What one case showed: findings, the digest of each channel's voxels, and the classes that its label holds."""

    case: Case
    findings: list[Finding] = field(default_factory=list)
    voxels: list[str] = field(default_factory=list)
    classes: set[int] | None = None  # None where there is no label, or it could not be understood

    def error(self, where: str | Path, what: str, remedy: str) -> None:
        self.findings.append(Finding("error", self.case.name, str(where), what, remedy))

    def warning(self, where: str | Path, what: str, remedy: str) -> None:
        self.findings.append(Finding("warning", self.case.name, str(where), what, remedy))


def check(
    folder: str | Path,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
    roi: Sequence[str] = (),
) -> list[Finding]:
    """All that is wrong with the data set in `folder`: what concerns the whole first, then case by case; [] if nothing.

    With `roi`, what is wrong with the data set that has these classes alone; labels without them are not opened.
    Reads several scans at a time (`workers`; one for each core, at most 8) and keeps none of them. `progress(done, of)`
    is called after each case. Raises nothing for bad data.
    """
    try:
        dataset, wrong = survey(folder)
        dataset = restricted(dataset, roi)
    except Problem as problem:
        return [Finding("error", "", problem.where, problem.what, problem.remedy)]
    findings = [Finding("error", case, p.where, p.what, p.remedy) for case, p in wrong]
    cases = [*dataset.train, *dataset.test]
    looks: list[_Look] = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        files = max(len(case.images) for case in cases)
        for look in pool.map(partial(_look_at, dataset, files), cases):
            looks.append(look)
            findings += look.findings
            if progress:
                progress(len(looks), len(cases))
    findings += _of_table(dataset, looks)
    findings += _twins(dataset, looks)
    findings += _patients(dataset)
    order = {"": -1} | {case.name: i for i, case in enumerate(cases)}
    return sorted(dict.fromkeys(findings), key=lambda f: (order.get(f.case, len(cases)), f.case, f.level))


# --- one case -------------------------------------------------------------------------------------------------------


def _look_at(dataset: Dataset, files: int, case: Case) -> _Look:
    look = _Look(case)
    grid = _look_at_images(dataset, look, files)
    if case.label:
        _look_at_label(dataset, look, case.label, grid)
    return look


def _look_at_images(dataset: Dataset, look: _Look, files: int) -> Volume | None:
    """Note what is wrong with a case's images, `files` of them; the first one that can be read is the grid."""
    grid, count, whole = None, 0, True
    for path in look.case.images:
        try:
            scan = read(path)
        except Problem as problem:
            look.error(problem.where, problem.what, problem.remedy)
            whole = False
            continue
        if grid is None:
            grid = scan
            _look_at_spacing(look, path, scan)
        elif off := mismatch(scan, grid):
            look.error(path, f"not on the grid of {look.case.images[0].name}: {off}", "resample it onto that grid")
        for i, channel in enumerate(scan.oriented(AXIAL).array):
            title = dataset.channels[count] if count < len(dataset.channels) else str(count)
            several = len(scan.array) > 1
            _look_at_channel(look, path, channel, f"channel {i} ({title})" if several else "the image")
            count += 1
    if whole and count != len(dataset.channels) and len(look.case.images) == files:  # a missing file is known already
        names = ", ".join(dataset.channels)
        what = f"{count} channel{'s' if count != 1 else ''}; the data set has {len(dataset.channels)} ({names})"
        look.error(look.case.images[0], what, "add the missing channels, or correct the list of channels")
    return grid


def _look_at_channel(look: _Look, path: Path, channel: np.ndarray, title: str) -> None:
    """Note NaN, infinity and a channel of one value; add the digest of its voxels."""
    finite = np.isfinite(channel) if channel.dtype.kind == "f" else np.True_
    if not finite.all():
        bad = int(channel.size - finite.sum())
        what = f"{bad} of {channel.size} voxels of {title} are NaN or infinite"
        look.error(path, what, "write a number there, such as the value of air, or leave the case out")
    elif channel.min() == channel.max():
        look.error(path, f"every voxel of {title} is {channel.flat[0]:g}", "export it again, or leave the case out")
    else:
        values = np.ascontiguousarray(channel, dtype=np.float32) + 0.0  # -0 becomes 0
        look.voxels.append(hashlib.blake2b(values.data, digest_size=16, key=str(values.shape).encode()).hexdigest())


def _look_at_spacing(look: _Look, path: Path, scan: Volume) -> None:
    sizes = [size for size, n in zip(scan.spacing_mm, scan.shape) if n > 1]
    if sizes and (min(sizes) < 0.01 or max(sizes) > 50):
        what = f"voxels of {_times(scan.spacing_mm, ' mm')}"
        look.warning(path, what, "see whether the header counts in millimetres")


def _look_at_label(dataset: Dataset, look: _Look, path: Path, grid: Volume | None) -> None:
    try:
        label = read_labels(path)
        if grid and (off := mismatch(label, grid)):
            remedy = "resample it onto the image's grid, nearest neighbour"
            if label.shape == grid.shape:
                remedy = f"if it was drawn on this image, give it the image's header; else {remedy}"
            look.error(path, f"not on the grid of its image: {off}", remedy)
        classes = to_classes(dataset, label.array, path)
    except Problem as problem:
        look.error(problem.where, problem.what, problem.remedy)
        return
    present = {int(k) for k in np.unique(classes)}
    look.classes = present
    if present == {IGNORE}:
        look.warning(path, "no voxel is annotated", "take the label away, or annotate some slices")
    elif not present - {0, IGNORE}:
        look.warning(
            path, "the label is empty: all background", "see whether nothing is there to be found in this scan"
        )
    unsaid = [dataset.classes[k] for k in sorted(present - {0, IGNORE}) if k > 0]
    unsaid = [name for name in unsaid if look.case.annotated is not None and name not in look.case.annotated]
    if unsaid:
        what = f"{some(unsaid)} {'is' if len(unsaid) == 1 else 'are'} labelled, but not listed as annotated"
        look.warning(path, what, "add them to the list; else their other voxels count as unknown")


def mismatch(volume: Volume, image: Volume) -> str:
    """How the grid of `volume` differs from the image's, sizes in the file's order x, y, z; "" where it is the same.

    Differences below 0.1 mm at every corner are a header's rounding.
    """
    if volume.shape != image.shape:
        return f"{_times(volume.shape)} voxels, the image has {_times(image.shape)}"
    if volume.same_grid(image):
        return ""
    parts = []
    if not np.allclose(volume.spacing_mm, image.spacing_mm, rtol=1e-3):
        parts.append(f"spacing {_times(volume.spacing_mm, ' mm')}, the image's {_times(image.spacing_mm, ' mm')}")
    if volume.orientation != image.orientation:
        parts.append(f"axes along {volume.orientation[::-1]}, the image's along {image.orientation[::-1]}")
    if not parts:
        middle = [*((n - 1) / 2 for n in volume.shape), 1]
        shift = np.linalg.norm((volume.affine - image.affine) @ middle)
        parts.append(f"shifted by {shift:.3g} mm" if shift > 0.1 else "turned")
    return f"{'; '.join(parts)}; its voxels lie up to {volume.apart_mm(image):.3g} mm from the image's"


def _times(sizes: Iterable[float], unit: str = "") -> str:
    """(D, H, W) in the order of the file: "75 x 70 x 60"."""
    return " x ".join(f"{size:.4g}" if unit else f"{size:d}" for size in reversed(tuple(sizes))) + unit


# --- all cases together ---------------------------------------------------------------------------------------------


def _of_table(dataset: Dataset, looks: Sequence[_Look]) -> list[Finding]:
    """What the labels as a whole lack, and whether the table counts right."""
    where = dataset.folder / "dataset.json"
    table = read_table(where)
    train = {case.name for case in dataset.train}
    labelled = [look for look in looks if look.case.label and look.case.name in train]
    found = []
    if not labelled:
        remedy = "put label files into the labels folder, called like their images"
        found.append(Finding("error", "", str(dataset.folder), "no training case has a label", remedy))
    if len(labelled) == 1:
        what = f"only {labelled[0].case.name} has a label: nothing is left to validate on"
        found.append(Finding("warning", "", str(dataset.folder), what, "label a second case"))
    if labelled and all(look.classes is not None for look in labelled):
        present = set[int]().union(*(look.classes or () for look in labelled))
        if absent := [name for k, name in enumerate(dataset.classes) if k > 0 and k not in present]:
            what = f"in no training label: {some(absent)}; it cannot be learnt"
            remedy = "add a case that shows it, or take it out of the labels"
            found.append(Finding("warning", "", str(where if where.is_file() else dataset.folder), what, remedy))
    stated, counts = table.get("numTraining"), {len(labelled), len(train), len(looks)}
    if isinstance(stated, int) and stated not in counts:
        what = f"numTraining is {stated}; there are {len(train)} training cases, {len(labelled)} of them labelled"
        found.append(Finding("warning", "", str(where), what, "see whether files are missing, or correct the number"))
    return found


def _twins(dataset: Dataset, looks: Sequence[_Look]) -> list[Finding]:
    """Scans with the same voxels under different names, in any format and orientation."""
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for look in looks:
        if look.voxels:
            groups[tuple(look.voxels)].append(look.case)
    test = {case.name for case in dataset.test}
    found = []
    for cases in groups.values():
        inside = [case for case in cases if case.name not in test]
        outside = [case for case in cases if case.name in test]
        if inside and outside:
            what = f"the same voxels as {some(case.name for case in inside)} in training: its score would be flattered"
            one = outside[0]
            found.append(Finding("error", one.name, str(one.images[0]), what, "take one of them away"))
        elif len(cases) > 1:
            what, one = f"the same voxels as {some(case.name for case in cases[:-1])}", cases[-1]
            remedy = "take one of them away, or give both the same patient in patients.json"
            found.append(Finding("warning", one.name, str(one.images[0]), what, remedy))
    return found


def _patients(dataset: Dataset) -> list[Finding]:
    """Patients on both sides of a split, the data set's own or one of `splits_final.json`."""
    sides: list[tuple[str, Sequence[Case], Sequence[Case]]] = [("", dataset.train, dataset.test)]
    for fold, (train, validation) in enumerate(dataset.splits):
        kept = [case for case in dataset.train if case.name in train]
        held = [case for case in dataset.train if case.name in validation]
        sides.append((f"fold {fold}: ", kept, held))
    found = []
    for prefix, first, second in sides:
        for name in sorted({case.patient for case in first} & {case.patient for case in second}):
            a, b = ([case.name for case in side if case.patient == name] for side in (first, second))
            if set(a) == set(b):  # the same cases on both sides, which the layout's survey says already
                continue
            where = dataset.folder / "splits_final.json" if prefix else dataset.folder
            what = f"{prefix}patient {name} is in train ({some(a)}) and in {'val' if prefix else 'test'} ({some(b)})"
            found.append(Finding("error", "", str(where), what, "keep all scans of a patient on one side"))
    return found


# --- for people and machines ----------------------------------------------------------------------------------------


def to_text(findings: Sequence[Finding]) -> str:
    """The findings as plain text, case by case, and a last line that counts them.

    >>> print(to_text([Finding("error", "a", "a.nii.gz", "every voxel of the image is 0", "export it again")]))
    a
      error: a.nii.gz: every voxel of the image is 0
        remedy: export it again
    <BLANKLINE>
    1 error, 0 warnings
    """
    lines: list[str] = []
    previous = None
    for finding in findings:
        if finding.case != previous:
            lines += [""] * bool(lines) + [finding.case or "the data set"]
            previous = finding.case
        lines += [f"  {finding.level}: {finding.where}: {finding.what}", f"    remedy: {finding.remedy}"]
    return "\n".join([*lines, *[""] * bool(lines), _count(findings)])


def _count(findings: Sequence[Finding]) -> str:
    errors = sum(finding.level == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        return "nothing is wrong"
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def to_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON: {"errors": n, "warnings": n, "findings": [{level, case, where, what, remedy}, ...]}."""
    errors = sum(finding.level == "error" for finding in findings)
    content = {
        "errors": errors,
        "warnings": len(findings) - errors,
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(content, indent=2)
