"""Which files make up which case, by the rules of each layout. Nothing is opened here.

What is wrong with single files is collected in a list, with the case it belongs to, so that all of it is known at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from contextseg.disk import Problem, did_you_mean

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".png", ".bmp", ".tif", ".tiff")
"""The files that plain folders are searched for; nnU-Net's `file_ending` may be any other too."""

Wrong = list[tuple[str, Problem]]
"""What is wrong, each with the case's name, or "" where it is the data set's."""


@dataclass(frozen=True)
class Case:
    """One scan of one patient.

    images     one path for each channel, or one file that holds them all, or one DICOM folder.
    label      the label map's file; None for an unlabelled case.
    annotated  the classes that somebody looked for; None means all. The others are unknown here, not background.
    patient    whose scan it is, so that a patient is never trained and tested on; the case's name where nobody says.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    patient: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)


def nnunet(folder: Path, table: Mapping[str, Any], channels: Sequence[str], wrong: Wrong) -> tuple[list[Case], ...]:
    """(train, test) of an nnU-Net v2 raw folder: `imagesTr/CASE_0000ENDING` and its like, or the explicit `dataset`."""
    end = table.get("file_ending", ".nii.gz")
    test = _folder_cases(folder / "imagesTs", folder / "labelsTs", [end], channels, wrong)
    if "dataset" not in table:
        return _folder_cases(folder / "imagesTr", folder / "labelsTr", [end], channels, wrong), test
    train = []
    for name, entry in table["dataset"].items():
        images = [_listed(folder, path, name, wrong) for path in entry.get("images", ())]
        label = _listed(folder, entry["label"], name, wrong) if entry.get("label") else None
        train.append(Case(name, tuple(images), label))
    _complete({case.name: dict(enumerate(case.images)) for case in train}, channels, wrong)
    return [case for case in train if case.images], test


def decathlon(folder: Path, table: Mapping[str, Any], wrong: Wrong) -> tuple[list[Case], ...]:
    """(train, test) of a Medical Decathlon folder: the pairs that `dataset.json` lists. A missing label is unlabelled.

    nnU-Net v1 lists `CASE.nii.gz` for files called `CASE_0000.nii.gz`; those are found too.
    """
    both: tuple[list[Case], list[Case]] = ([], [])
    for cases, key in zip(both, ("training", "test")):
        for entry in table.get(key) or ():
            entry = entry if isinstance(entry, dict) else {"image": entry}
            first = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
            name = stem(Path(first[0]))
            name = re.sub(r"_0000$", "", name) if len(first) > 1 else name
            images = [path for image in first for path in _channel_files(folder, image, name, wrong)]
            label = _listed(folder, entry["label"], name, wrong) if entry.get("label") else None
            if key == "test" and label is None:
                label = next((p for p in [folder / "labelsTs" / Path(first[0]).name] if p.is_file()), None)
            cases.append(Case(name, tuple(images), label))
    return both


def plain(folder: Path, channels: Sequence[str], wrong: Wrong) -> tuple[list[Case], ...]:
    """(train, test) of folders without a table: `images` and `labels`, or `imagesTr` and so on, matched by name.

    A sub-folder of the images is a DICOM series.
    """
    both = []
    for images, labels in (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        both.append(_folder_cases(folder / images, folder / labels, [*ENDINGS, ""], channels, wrong))
    return both[0] + both[1], both[2]


def loose(path: Path, wrong: Wrong) -> list[Case]:
    """The scans of a folder without labels, a folder that is one DICOM series, or one file with its channels.

    A missing channel is left for the reader to find, so that one scan does not stop the others.
    """
    if path.is_dir():
        groups = _grouped(_scans(path, [*ENDINGS, ""], wrong), {}, False, wrong)
        cases = [Case(name, tuple(p for _, p in sorted(parts.items()))) for name, parts in groups.items()]
        series = any(p.is_file() and not p.name.startswith(".") for p in path.iterdir())
        return cases or ([Case(path.resolve().name, (path,))] if series else [])
    if stem(path).endswith("_0000"):
        name, end = stem(path)[:-5], path.name[len(stem(path)) :]
        return [Case(name, tuple(sorted(path.parent.glob(f"{escape(name)}_[0-9][0-9][0-9][0-9]{escape(end)}"))))]
    return [Case(stem(path), (path,))]


def stem(path: Path) -> str:
    """A file's name without its ending, both parts of `.nii.gz`; a folder's whole name.

    >>> stem(Path("a/b.c_0000.nii.gz"))
    'b.c_0000'
    """
    known = next((end for end in ENDINGS if path.name.lower().endswith(end)), path.suffix)
    return path.name if path.is_dir() else path.name[: len(path.name) - len(known)]


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of the names, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    names = list(names)
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


# --- single files ---------------------------------------------------------------------------------------------------


def _folder_cases(
    images: Path, labels: Path, endings: Sequence[str], channels: Sequence[str], wrong: Wrong
) -> list[Case]:
    """The cases of one folder of images, with their labels where there are some."""
    strict = "" not in endings
    files, marks = _scans(images, endings, wrong), _scans(labels, endings, wrong)
    groups = _grouped(files, marks, strict, wrong)
    _complete(groups, channels, wrong)
    bare = [name for name in groups if name not in marks]
    for name, path in marks.items():
        if name not in groups:
            near = did_you_mean(name, bare)
            remedy = f"{near} Rename it" if near.startswith("did") else "add the image"
            wrong.append((name, Problem(path, "a label without an image", f"{remedy}, or take the label away")))
    return [
        Case(name, tuple(path for _, path in sorted(parts.items())), marks.get(name)) for name, parts in groups.items()
    ]


def _scans(folder: Path, endings: Sequence[str], wrong: Wrong) -> dict[str, Path]:
    """The scans of a folder by name, without ending; "" among the endings admits sub-folders. Hidden ones are not."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        end: str | None
        if path.is_dir():
            end = "" if any(not p.name.startswith(".") for p in path.iterdir()) else None
        else:
            end = next((e for e in endings if e and path.name.lower().endswith(e.lower())), None)
        if end is None or end not in endings:
            continue
        name = path.name[: len(path.name) - len(end)]
        if name in found:
            wrong.append((name, Problem(path, f"the same name as {found[name].name}", "keep one of the two")))
        else:
            found[name] = path
    return found


def _grouped(
    files: Mapping[str, Path], marks: Mapping[str, Path], strict: bool, wrong: Wrong
) -> dict[str, dict[int, Path]]:
    """The files of each case by channel number.

    nnU-Net's names must end in `_0000` and so on. In plain folders they are channels only where number 0 is there and
    no label is called like a single file: `scan_2024` is a name.
    """
    groups: dict[str, dict[int, Path]] = {}
    numbered = strict or not any(name in marks for name in files)
    for name, path in files.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name) if numbered else None
        if match and (strict or f"{match[1]}_0000" in files):
            groups.setdefault(match[1], {})[int(match[2])] = path
        elif strict:
            what = "the name does not end in a channel number"
            wrong.append((name, Problem(path, what, f"rename it to {name}_0000{path.name[len(name) :]}")))
        else:
            groups.setdefault(name, {})[0] = path
    return groups


def _complete(groups: Mapping[str, Mapping[int, Path]], channels: Sequence[str], wrong: Wrong) -> None:
    """Note the cases that lack a channel, or have one too many. One file each may hold all: reading will tell."""
    most = max((len(parts) for parts in groups.values()), default=0)
    if most == 1 and all(0 in parts for parts in groups.values()):
        return
    count = len(channels) or max((max(parts, default=0) for parts in groups.values()), default=0) + 1
    for name, parts in groups.items():
        where = next(iter(parts.values())) if parts else Path(name)
        for i in sorted(set(range(count)) - set(parts)):
            title = f" ({channels[i]})" if i < len(channels) else ""
            wrong.append((name, Problem(where, f"channel {i}{title} is missing", "add its file, or remove the case")))
        for i in sorted(set(parts) - set(range(count))):
            what = f"channel {i} of a data set with {count} channel{'s' if count > 1 else ''}"
            wrong.append((name, Problem(parts[i], what, "remove the file, or name the channel in dataset.json")))


def _listed(folder: Path, path: str, name: str, wrong: Wrong) -> Path:
    """A path that a table lists, relative to the data set's folder."""
    full = folder / os.path.expandvars(path)
    if not full.exists():
        remedy = "put the file there, or take it out of dataset.json (a case without a label may stay)"
        wrong.append((name, Problem(full, "the file does not exist", remedy)))
    return full


def _channel_files(folder: Path, path: str, name: str, wrong: Wrong) -> list[Path]:
    """The file that a Decathlon table lists or, after nnU-Net v1, its numbered channels."""
    full = folder / path
    if full.exists():
        return [full]
    rest = full.name[len(stem(full)) :]
    numbered = sorted(full.parent.glob(f"{escape(stem(full))}_[0-9][0-9][0-9][0-9]{rest}"))
    return numbered or [_listed(folder, path, name, wrong)]
