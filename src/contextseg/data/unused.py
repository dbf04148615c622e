"""Files beside scans and label maps that nothing uses, so that none is left out in silence."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from contextseg.data.listing import ENDINGS, Case, some, stem
from contextseg.formats.parts import files_of

_TEXTS = (
    *(".json", ".csv", ".tsv", ".txt", ".md", ".log", ".yaml", ".yml", ".html", ".pdf"),
    *(".label", "thumbs.db", "desktop.ini"),
)


def unused_files(
    folders: Iterable[Path], used: Iterable[Path], known: Iterable[str] = ()
) -> tuple[Path, ...]:
    """The files of folders of scans or label maps that could be one, and that nothing uses.

    Texts and tables are none. What has the name of a used file belongs to it, unless it is a scan
    itself: voxels of a header, probabilities of nnU-Net. Hidden files do not count.

    Args:
        folders: The folders; those that do not exist are left out.
        used: Every file, or folder of a DICOM series, that is used.
        known: Names of folders inside that have another use.

    Returns:
        The files, and folders with something in them, in alphabetical order.

    Example:
        >>> unused_files([Path("no-such-folder")], [])
        ()
    """
    taken = {Path(os.path.abspath(path)) for path in used}
    by_folder: dict[Path, list[Path]] = {}
    for path in taken:
        by_folder.setdefault(path.parent, []).append(path)
    inside = {parent for folder in by_folder for parent in (folder, *folder.parents)}
    stems = {(path.parent, stem(path)) for path in taken}
    found = []
    for folder in {Path(os.path.abspath(folder)): folder for folder in folders}.values():
        place = Path(os.path.abspath(folder))
        if not folder.is_dir() or place in taken:
            continue
        voxels = {p for path in by_folder.get(place, ()) for p in files_of(path)}
        mine = taken | inside | voxels
        for path in sorted(folder.iterdir()):
            name = path.name.lower()
            if place / path.name in mine or name.startswith("."):
                continue
            if path.is_dir():
                holds = path.name not in known and any(path.iterdir())
            else:
                beside = (place, stem(path)) in stems and not name.endswith(ENDINGS)
                holds = not beside and not name.endswith(_TEXTS)
            if holds:
                found.append(path)
    return tuple(found)


def unused_of_cases(
    folders: Iterable[Path], cases: Iterable[Case], more: Iterable[Path] = ()
) -> tuple[Path, ...]:
    """The files of folders that no case uses.

    Args:
        folders: Folders of images and labels.
        cases: The cases.
        more: More files that are not reported, such as those with a problem of their own.

    Returns:
        As `unused_files`.
    """
    files = [path for case in cases for path in (*case.images, case.label) if path]
    return unused_files(folders, [*files, *more])


def name_unused(paths: Iterable[Path]) -> str:
    """One line that counts and names files which are not used; "" for none.

    Args:
        paths: The files.

    Returns:
        The line.

    Example:
        >>> name_unused([Path("in/a.npy"), Path("in/b.npy")])
        '2 files are not used: a.npy, b.npy'
    """
    names = [path.name + "/" * path.is_dir() for path in paths]
    if not names:
        return ""
    subject = "1 file is" if len(names) == 1 else f"{len(names)} files are"
    return f"{subject} not used: {some(names, 8)}"
