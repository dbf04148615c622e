"""Where the scans of FLARE22 lie, and a data set made of them, of links."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contextseg.data.listing import some
from contextseg.disk import read_json, replacing, write_json
from contextseg.errors import ContextsegError
from contextseg.metrics import FLARE22_TOLERANCE_MM

PARTS: Mapping[str, int] = {"labelled": 50, "unlabelled": 2000, "validation": 50, "test": 200}
"""The parts of the challenge, and how many scans each has."""

LAYOUT = """\
FLARE22_LabeledCase50/images/FLARE22_Tr_0001_0000.nii.gz ...      50 scans
FLARE22_LabeledCase50/labels/FLARE22_Tr_0001.nii.gz ...           their labels
FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz ...            2000 scans, in any number
FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz ...         of such folders
Validation/images/FLARETs_0001_0000.nii.gz ...                    50 scans
Test/images/FLARE22_Ts_0001_0000.nii.gz ...                       200 scans
or imagesTr and labelsTr, Unlabeled..., imagesVal and labelsVal, imagesTs and labelsTs"""
"""How the challenge's download lies, for people."""

_ENDING = ".nii.gz"
_IMAGE = "_0000"
_NEUTRAL = frozenset({"images", "image", "labels", "label", "masks", "gt"})
_ROLES = (
    ("unlabelled", re.compile(r"unlabel")),
    ("validation", re.compile(r"val")),
    ("test", re.compile(r"test|ts$")),
    ("labelled", re.compile(r"label|train|tr$")),
)
_ARRANGED = "arranged.json"


@dataclass
class FLARE22Scans:
    """What was found of the challenge's data.

    Attributes:
        images: Scan of each case by name, by part.
        labels: Label map of each case by name, by part; none in "unlabelled".
        problems: What is wrong, in words.
        left_out: Files of which nobody can tell the part.
    """

    images: dict[str, dict[str, Path]] = field(default_factory=lambda: {p: {} for p in PARTS})
    labels: dict[str, dict[str, Path]] = field(default_factory=lambda: {p: {} for p in PARTS})
    problems: list[str] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of scans of each part."""
        return {part: len(images) for part, images in self.images.items()}


def part_of_file(path: Path) -> str:
    """The part that a file belongs to, by the innermost folder that says so.

    Args:
        path: Path of the file inside the download.

    Returns:
        One of `PARTS`; "" where no folder says.

    Example:
        >>> part_of_file(Path("FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz"))
        'unlabelled'
        >>> part_of_file(Path("Validation/labels/FLARETs_0001.nii.gz"))
        'validation'
    """
    for folder in reversed(path.parts[:-1]):
        name = folder.lower()
        if name in _NEUTRAL:
            continue
        for part, pattern in _ROLES:
            if pattern.search(name):
                return part
    return ""


def find_scans(download: str | Path) -> FLARE22Scans:
    """Find the scans and labels of FLARE22 in a folder; no file is opened.

    A scan's name ends in _0000.nii.gz, a label map's does not, as in the challenge. A scan in a
    folder of labelled ones that has no label is one more unlabelled scan.

    Args:
        download: The folder, in the challenge's layout.

    Returns:
        What was found, with everything that is wrong.

    Raises:
        ContextsegError: There is no such folder.
    """
    download = Path(download)
    if not download.is_dir():
        raise ContextsegError(download, "there is no such folder", "check the path")
    found = FLARE22Scans()
    for folder, folders, files in os.walk(download, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if file.startswith(".") or not file.endswith(_ENDING):
                continue
            part = part_of_file(path.relative_to(download))
            stem = file.removesuffix(_ENDING)
            kind = found.images if stem.endswith(_IMAGE) else found.labels
            if not part or (part == "unlabelled" and kind is found.labels):
                found.left_out.append(path)
                continue
            name = stem.removesuffix(_IMAGE)
            if name in kind[part]:
                found.problems.append(f"{name} is there twice: {kind[part][name]} and {path}")
            kind[part][name] = path
    _judge(found)
    return found


def _judge(found: FLARE22Scans) -> None:
    """Move scans without a label, and note what is wrong."""
    images, labels = found.images, found.labels
    for part in PARTS:
        lost = sorted(set(labels[part]) - set(images[part]))
        if lost:
            found.problems.append(f"labels without a scan ({part}): {some(lost)}")
            for name in lost:
                del labels[part][name]
    for name in sorted(set(images["labelled"]) - set(labels["labelled"])):
        images["unlabelled"].setdefault(name, images["labelled"].pop(name))
    twice = sorted(set(images["labelled"]) & set(images["unlabelled"]))
    if twice:
        found.problems.append(f"both labelled and not: {some(twice)}")
    for part, count in found.counts.items():
        if count != PARTS[part]:
            found.problems.append(f"{count} {part} scans, the challenge has {PARTS[part]}")


def arrange_flare22(download: str | Path, out: Path, partial: bool = False) -> FLARE22Scans:
    """Lay the scans out as a data set, of links; the same call goes on where it was stopped.

    `out`/dataset is an nnU-Net v2 data set of the labelled and the unlabelled scans;
    `out`/validation and `out`/test have images and labels.

    Args:
        download: The folder, in the challenge's layout.
        out: Where everything goes.
        partial: Take what is there, whatever the counts.

    Returns:
        What was found.

    Raises:
        ContextsegError: Something is wrong (the message says all of it), nothing is labelled, or
            `out` was arranged from other scans.
    """
    found = find_scans(download)
    if found.problems and not partial:
        what = "not FLARE22 as it was released:\n  " + "\n  ".join(found.problems) + "\n"
        remedy = f"lay it out so:\n{LAYOUT}\nOr take what is there, with --partial"
        raise ContextsegError(download, what, remedy)
    if not found.images["labelled"] or not found.images["unlabelled"]:
        what = f"{found.counts['labelled']} labelled and {found.counts['unlabelled']} other scans"
        remedy = f"both are needed; lay them out so:\n{LAYOUT}"
        raise ContextsegError(download, what, remedy)
    names = {part: sorted(images) for part, images in found.images.items()}
    known = out / _ARRANGED
    if known.exists() and read_json(known)["scans"] != names:
        what = "this folder was arranged from other scans, and its runs learnt from those"
        raise ContextsegError(out, what, "choose another --output folder, or delete this one")
    _lay_out(found, out)
    content = {"download": str(Path(download).absolute()), "scans": names}
    write_json(known, {**content, "problems": found.problems})
    return found


def _lay_out(found: FLARE22Scans, out: Path) -> None:
    data = out / "dataset"
    for part in ("labelled", "unlabelled"):
        for name, path in found.images[part].items():
            _link(path, data / "imagesTr" / f"{name}{_IMAGE}{_ENDING}")
    for name, path in found.labels["labelled"].items():
        _link(path, data / "labelsTr" / f"{name}{_ENDING}")
    for part in ("validation", "test"):
        for name, path in found.images[part].items():
            _link(path, out / part / "images" / f"{name}{_IMAGE}{_ENDING}")
        for name, path in found.labels[part].items():
            _link(path, out / part / "labels" / f"{name}{_ENDING}")
    table = {
        "name": "FLARE22",
        "reference": "Ma et al., Lancet Digital Health 6:e815, 2024",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{k: i for i, k in enumerate(FLARE22_TOLERANCE_MM, 1)}},
        "numTraining": found.counts["labelled"] + found.counts["unlabelled"],
        "file_ending": _ENDING,
    }
    write_json(data / "dataset.json", table)


def _link(target: Path, place: Path) -> None:
    """A link at `place`; where links cannot be made, a copy. What is there already stays."""
    target = target.absolute()
    if place.is_symlink() and os.readlink(place) == str(target) and place.exists():
        return
    with replacing(place) as temporary:
        try:
            os.symlink(target, temporary)
        except (OSError, NotImplementedError):
            shutil.copyfile(target, temporary)
