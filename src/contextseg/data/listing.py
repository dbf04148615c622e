"""The files of each case, by the rules of each layout. No scan is opened here.

Problems with single files are collected in a list, each with its case, so that all are known at
once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from glob import escape
from pathlib import Path
from typing import Any

from contextseg.errors import ContextsegError, Spellings, did_you_mean

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
"""Pictures; beside scans of other kinds they are previews as a rule."""

ENDINGS = (
    *(".nii.gz", ".nii", ".hdr", ".mgz", ".mgh"),
    *(".mha", ".mhd", ".seg.nrrd", ".nrrd", ".nhdr"),
    *PICTURES,
)
"""The files that plain folders are searched for, in any letter case; `.hdr` stands for its pair of
header and voxels. nnU-Net's `file_ending` may be any other too."""

Problems = list[tuple[str, ContextsegError]]
"""Problems, each with its case's name, or "" where it concerns the whole data set."""


@dataclass(frozen=True)
class Case:
    """One scan of one patient.

    Attributes:
        name: Name of the case, unique in its data set.
        images: One path for each channel, or one file that holds them all, or one DICOM folder.
        label: File of the label map; None for an unlabelled case.
        annotated: Classes that were annotated; None for all. The others are unknown here, not
            background.
        patient: Whose scan it is, so that no patient is on both sides of a split. "" takes the
            name of the case.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    patient: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)


def nnunet_cases(
    folder: Path, table: Mapping[str, Any], channels: Sequence[str], problems: Problems
) -> tuple[list[Case], list[Case]]:
    """The cases of an nnU-Net v2 raw folder: `imagesTr/CASE_0000ENDING`, or the table's `dataset`.

    Args:
        folder: The data set.
        table: Its `dataset.json`.
        channels: Names of its channels; empty where they are not known.
        problems: What is wrong with files is appended.

    Returns:
        (training cases, test cases).
    """
    end = table.get("file_ending", ".nii.gz")
    test = _folder_cases(folder / "imagesTs", folder / "labelsTs", [end], channels, problems)
    if "dataset" not in table:
        images, labels = folder / "imagesTr", folder / "labelsTr"
        return _folder_cases(images, labels, [end], channels, problems), test

    train = []
    for name, entry in ((nfc(name), entry) for name, entry in table["dataset"].items()):
        paths = [_listed(folder, path, name, problems) for path in entry.get("images", ())]
        label = _listed(folder, entry["label"], name, problems) if entry.get("label") else None
        train.append(Case(name, tuple(paths), label))
    _check_channels({case.name: dict(enumerate(case.images)) for case in train}, channels, problems)
    return [case for case in train if case.images], test


def decathlon_cases(
    folder: Path, table: Mapping[str, Any], problems: Problems
) -> tuple[list[Case], list[Case]]:
    """The cases of a Medical Decathlon folder: the pairs that `dataset.json` lists.

    An entry without a label is an unlabelled case. nnU-Net v1 lists `CASE.nii.gz` for files called
    `CASE_0000.nii.gz`; those are found too. Paths may have been written on Windows.

    Args:
        folder: The data set.
        table: Its `dataset.json`.
        problems: What is wrong with files is appended.

    Returns:
        (training cases, test cases).
    """
    train = [_decathlon_case(folder, entry, problems) for entry in table.get("training") or ()]
    test = []
    for entry in table.get("test") or ():
        case = _decathlon_case(folder, entry, problems)
        if case.label is None:
            beside = folder / "labelsTs" / _as_path(_listed_images(entry)[0]).name
            case = Case(case.name, case.images, beside if beside.is_file() else None)
        test.append(case)
    return train, test


def _listed_images(entry: Any) -> list[str]:
    """The images of one entry of a Decathlon table, a path or an object."""
    images = entry["image"] if isinstance(entry, dict) else entry
    return images if isinstance(images, list) else [images]


def _decathlon_case(folder: Path, entry: Any, problems: Problems) -> Case:
    listed = _listed_images(entry)
    name = stem(_as_path(listed[0]))
    if len(listed) > 1:
        name = re.sub(r"_0000$", "", name)
    images = [path for image in listed for path in _channel_files(folder, image, name, problems)]
    label = entry.get("label") if isinstance(entry, dict) else None
    return Case(name, tuple(images), _listed(folder, label, name, problems) if label else None)


def plain_cases(
    folder: Path, channels: Sequence[str], problems: Problems
) -> tuple[list[Case], list[Case]]:
    """The cases of folders without a table: `images` and `labels`, or `imagesTr` and so on.

    Images and labels are matched by name. A sub-folder of the images is a DICOM series.

    Args:
        folder: The data set.
        channels: Names of its channels; empty where they are not known.
        problems: What is wrong with files is appended.

    Returns:
        (training cases, test cases).
    """
    parts = [
        _folder_cases(
            folder / f"images{part}", folder / f"labels{part}", [*ENDINGS, ""], channels, problems
        )
        for part in ("", "Tr", "Ts")
    ]
    return parts[0] + parts[1], parts[2]


def unlabelled_cases(path: Path, problems: Problems) -> list[Case]:
    """The scans of a folder without labels, of one DICOM series, or of one file.

    A missing channel is left for the reader to find, so that one scan does not stop the others.

    Args:
        path: A folder of scans, a folder that is one DICOM series, or a file. A file called
            `NAME_0000` brings its other channels with it.
        problems: What is wrong with files is appended.

    Returns:
        The cases; [] for a folder without scans.
    """
    if path.is_dir():
        groups = _grouped(_scans(path, [*ENDINGS, ""], problems), {}, False, problems)
        cases = [Case(name, _in_order(parts)) for name, parts in groups.items()]
        series = any(p.is_file() and not p.name.startswith(".") for p in path.iterdir())
        return cases or ([Case(path.resolve().name, (path,))] if series else [])
    if not stem(path).endswith("_0000"):
        return [Case(stem(path), (path,))]
    end = _known_ending(path)
    name = path.name[: len(path.name) - len(f"_0000{end}")]
    pattern = f"{escape(name)}_[0-9][0-9][0-9][0-9]{escape(end)}"
    return [Case(nfc(name), tuple(sorted(path.parent.glob(pattern))))]


def stem(path: Path) -> str:
    """A file's name without its ending, both parts of `.nii.gz`; a folder's whole name.

    Args:
        path: The file or folder.

    Returns:
        The name, in the normal form `nfc`.

    Example:
        >>> stem(Path("a/b.c_0000.nii.gz"))
        'b.c_0000'
    """
    return nfc(path.name if path.is_dir() else path.name.removesuffix(_known_ending(path)))


def nfc(name: str) -> str:
    """A name in one normal form of Unicode (NFC), so that names which look alike are alike.

    File systems and archives of macOS write an accent as a character of its own, others do not.

    Args:
        name: The name of a file or case.

    Returns:
        The name, composed.

    Example:
        >>> nfc("e\u0301") == "\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name)


def _known_ending(path: Path) -> str:
    """The ending of a file, as it is spelt: a known one, both parts of `.nii.gz`, else the last."""
    known = next((end for end in ENDINGS if path.name.lower().endswith(end)), path.suffix)
    return path.name[len(path.name) - len(known) :]


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and the number of the others.

    Args:
        names: The names.
        most: Number of names to write out.

    Returns:
        The names with commas between.

    Example:
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    names = list(names)
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


# --- single files ---------------------------------------------------------------------------------


def _folder_cases(
    images: Path, labels: Path, endings: Sequence[str], channels: Sequence[str], problems: Problems
) -> list[Case]:
    """The cases of one folder of images, with their labels where there are some."""
    strict = "" not in endings
    image_files = _scans(images, endings, problems)
    label_files = _scans(labels, endings, problems)
    groups = _grouped(image_files, label_files, strict, problems)
    _check_channels(groups, channels, problems)
    unlabelled = Spellings(name for name in groups if name not in label_files)
    folded = {name.casefold(): name for name in reversed(unlabelled.names)}
    for name, path in label_files.items():
        if name not in groups:
            remedy = "add the image, or take the label away"
            alike = folded.get(name.casefold())
            if alike is not None:
                remedy = f"the image is called {alike}: write both in the same letter case"
            elif get_close_matches(name, unlabelled.like(name), 1, 0.6):
                near = did_you_mean(name, unlabelled)
                remedy = f"{near} Rename it, or take the label away"
            problems.append((name, ContextsegError(path, "a label without an image", remedy)))
    return [Case(name, _in_order(parts), label_files.get(name)) for name, parts in groups.items()]


def _in_order(parts: Mapping[int, Path]) -> tuple[Path, ...]:
    """Files by channel number."""
    return tuple(path for _, path in sorted(parts.items()))


def _scans(folder: Path, endings: Sequence[str], problems: Problems) -> dict[str, Path]:
    """The scans of a folder by name, without ending, hidden files left out.

    "" among the endings admits sub-folders.
    """
    scans: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        end = _ending_of(path, endings)
        if end is None:
            continue
        name = nfc(path.name[: len(path.name) - len(end)])
        if name in scans:
            what = f"the same name as {scans[name].name}"
            problems.append((name, ContextsegError(path, what, "keep one of the two")))
        else:
            scans[name] = _only_scan_of(path) or path
    return scans


def _ending_of(path: Path, endings: Sequence[str]) -> str | None:
    """Which of the endings a file has, "" for a folder with something in it; None for no scan.

    A folder that holds one scan alone has the ending that its own name has.
    """
    named = next((e for e in endings if e and path.name.lower().endswith(e.lower())), None)
    if not path.is_dir():
        return named
    if named and _only_scan_of(path):
        return named
    filled = any(not p.name.startswith(".") for p in path.iterdir())
    return "" if filled and "" in endings else None


def _only_scan_of(folder: Path) -> Path | None:
    """The scan of a folder that holds nothing else, as unpacked archives do; else None."""
    inside = folder.iterdir() if folder.is_dir() else ()
    files = [path for path in inside if not path.name.startswith(".")]
    if len(files) != 1 or not files[0].is_file() or not files[0].name.lower().endswith(ENDINGS):
        return None
    return files[0]


def _grouped(
    images: Mapping[str, Path], labels: Mapping[str, Path], strict: bool, problems: Problems
) -> dict[str, dict[int, Path]]:
    """The images of each case by channel number.

    nnU-Net's names (`strict`) must end in `_0000` and so on. In plain folders such endings are
    channels only where number 0 is there and no label is called like a single image: `scan_2024` is
    a name.
    """
    groups: dict[str, dict[int, Path]] = {}
    numbered = strict or not any(name in labels for name in images)
    for name, path in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", name) if numbered else None
        if match and (strict or f"{match[1]}_0000" in images):
            groups.setdefault(match[1], {})[int(match[2])] = path
        elif strict:
            what = "the name does not end in a channel number"
            remedy = f"rename it to {name}_0000{nfc(path.name)[len(name) :]}"
            problems.append((name, ContextsegError(path, what, remedy)))
        else:
            groups.setdefault(name, {})[0] = path
    return groups


def _check_channels(
    groups: Mapping[str, Mapping[int, Path]], channels: Sequence[str], problems: Problems
) -> None:
    """Note the cases that lack a channel, or have one too many.

    Where each case is one file, that may hold all channels; reading shows it.
    """
    most = max((len(parts) for parts in groups.values()), default=0)
    if most == 1 and all(0 in parts for parts in groups.values()):
        return
    highest = max((max(parts, default=0) for parts in groups.values()), default=0)
    count = len(channels) or highest + 1
    for name, parts in groups.items():
        where = next(iter(parts.values())) if parts else Path(name)
        for i in sorted(set(range(count)) - set(parts)):
            title = f" ({channels[i]})" if i < len(channels) else ""
            what = f"channel {i}{title} is missing"
            remedy = "add its file, or remove the case"
            problems.append((name, ContextsegError(where, what, remedy)))
        for i in sorted(set(parts) - set(range(count))):
            what = f"channel {i} of a data set with {count} channel{'s' if count > 1 else ''}"
            remedy = "remove the file, or name the channel in dataset.json"
            problems.append((name, ContextsegError(parts[i], what, remedy)))


def _as_path(listed: str) -> Path:
    """A path of a table; on Windows a backslash parts folders."""
    return Path(os.path.expandvars(listed).replace("\\", "/"))


def _in_folder(folder: Path, listed: str) -> Path:
    """Where a path of a table lies: as it is written, or else as it was meant.

    A table may come from Windows, and a name in another normal form of Unicode than the file's.
    """
    literal = folder / os.path.expandvars(listed)
    if literal.exists():
        return literal
    full = folder / _as_path(listed)
    if full.exists() or not full.parent.is_dir():
        return full
    alike = (path for path in full.parent.iterdir() if nfc(path.name) == nfc(full.name))
    return next(alike, full)


def _listed(folder: Path, path: str, name: str, problems: Problems) -> Path:
    """A path that a table lists, relative to the data set's folder."""
    full = _in_folder(folder, path)
    if not full.exists():
        beside = full.parent.iterdir() if full.parent.is_dir() else ()
        near = [p.name for p in beside if p.name.lower() == full.name.lower()]
        remedy = (
            f"there is {near[0]}: correct the letter case in dataset.json"
            if near
            else "put the file there, or take it out of dataset.json (a case without a label may "
            "stay)"
        )
        problems.append((name, ContextsegError(full, "the file does not exist", remedy)))
    return full


def _channel_files(folder: Path, path: str, name: str, problems: Problems) -> list[Path]:
    """The file that a Decathlon table lists or, after nnU-Net v1, its numbered channels."""
    full = _in_folder(folder, path)
    if full.exists():
        return [full]
    end = _known_ending(full)
    pattern = f"{escape(full.name.removesuffix(end))}_[0-9][0-9][0-9][0-9]{escape(end)}"
    numbered = sorted(full.parent.glob(pattern))
    return numbered or [_listed(folder, path, name, problems)]
