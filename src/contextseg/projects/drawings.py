"""What people drew: a label map of any program, or the slices of the annotator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.data.layouts import Case
from contextseg.data.listing import ENDINGS, stem
from contextseg.disk import digest
from contextseg.errors import ContextsegError
from contextseg.propagation import LabelledSlices, labelled_slices
from contextseg.volume import Volume, as_labels, read

ANNOTATIONS = "annotations"
"""Folder of the annotator, beside the folder "drawn" of a project."""

_ANNOTATOR_SAYS_NOTHING = 255


_UNLABELLED = (
    "or begin another project, with --plane, or with --unlabelled, the value of the voxels that "
    "nobody labelled"
)


@dataclass(frozen=True)
class DrawnLabel:
    """What people drew in one case.

    Attributes:
        label: (D, H, W) int16 or int32 on the scan's grid, in the values of the project's labels;
            `IGNORE` where nobody drew.
        labelled: The labelled slices of it.
    """

    label: Volume
    labelled: LabelledSlices

    @property
    def known(self) -> np.ndarray:
        """(D, H, W) bool: where somebody drew."""
        return self.label.array != IGNORE


def drawing_files(folder: Path, case: str) -> list[Path]:
    """The files that hold the drawing of a case.

    Args:
        folder: The folder "drawn" of a project.
        case: Name of the case.

    Returns:
        CASE.nii.gz and the like, and the slices of the annotator; [] where nobody drew.

    Raises:
        ContextsegError: Two files hold one case.
    """
    names = [f"{case}{ending}" for ending in ENDINGS]
    files = [folder / name for name in names if (folder / name).is_file()]
    files = [path for path in files if stem(path) == case]
    if len(files) > 1:
        what = f"the drawing of {case} is in {files[0].name} and in {files[1].name}"
        raise ContextsegError(folder, what, "keep one of the two")
    return files + sorted(annotated_case(folder, case).glob("*.npz"))


def annotated_case(folder: Path, case: str) -> Path:
    """Where the annotator keeps a case.

    Args:
        folder: The folder "drawn" of a project.
        case: Name of the case.
    """
    return folder.parent / ANNOTATIONS / "drawn" / case


def drawing_digest(folder: Path, case: str) -> str:
    """A name of what is drawn in a case; "" where nothing is.

    Args:
        folder: The folder "drawn" of a project.
        case: Name of the case.
    """
    files = drawing_files(folder, case)
    return digest(*(part for path in files for part in (path.name, path))) if files else ""


def read_drawing(
    folder: Path,
    case: Case,
    classes: Sequence[str],
    values: Sequence[int],
    *,
    unlabelled: int | None = None,
    plane: str = "auto",
) -> DrawnLabel | None:
    """What people drew in a case, on the scan's grid.

    A slice of a file without any label is "nobody said" unless `unlabelled` says what is. Where a
    file and the annotator both know a voxel, the annotator counts.

    Args:
        folder: The folder "drawn" of a project.
        case: The case.
        classes: Names of the classes, background first.
        values: The label value of each class.
        unlabelled: Value of the voxels of a file that nobody labelled; as for `propagate`.
        plane: "axial", "coronal" or "sagittal": what was drawn. "auto" finds it.

    Returns:
        The drawing; None where nobody drew, or what was drawn holds no class.

    Raises:
        ContextsegError: A drawing cannot be read, lies on another grid than the scan, or holds
            values that no class has.
    """
    files = drawing_files(folder, case.name)
    if not files:
        return None
    scan = read(*case.images)
    parts = []
    if files[0].parent == folder:
        parts.append(_of_file(files[0], scan, unlabelled, plane))
    if files[-1].parent != folder:
        parts.append(_of_annotator(folder, case.name, scan, values))
    array = parts[-1]
    if len(parts) > 1:
        array = np.where(array != IGNORE, array, parts[0])
    unknown = sorted(set(np.unique(array).tolist()) - {IGNORE, *values})
    if unknown:
        named = ", ".join(f"{value} {name}" for name, value in zip(classes, values))
        what = f"values that no class has: {', '.join(map(str, unknown[:5]))} (classes: {named})"
        raise ContextsegError(files[0], what, f"draw with the values of the classes; {_UNLABELLED}")
    if not (array > 0).any():
        return None
    label = scan.with_array(array)
    return DrawnLabel(label, labelled_slices(label, IGNORE, plane))


def _of_file(path: Path, scan: Volume, unlabelled: int | None, plane: str) -> np.ndarray:
    """A file's label map with `IGNORE` where nobody drew."""
    label = as_labels(path, scan, unlabelled or 0)
    if not (label.array > 0).any():
        return np.full(label.shape, IGNORE, np.int16)
    try:
        drawn = labelled_slices(label, unlabelled, plane)
    except ContextsegError as error:
        remedy = f"leave slices that nobody drew at 0; {_UNLABELLED}"
        raise ContextsegError(path, error.what, remedy) from error
    whole = np.full(label.shape, IGNORE, next(iter(drawn.slices.values())).dtype)
    slices: Any = np.moveaxis(whole, drawn.axis, 0)
    for number, part in drawn.slices.items():
        slices[number] = part
    return whole


# --- the annotator --------------------------------------------------------------------------------


def annotator(module: str) -> ModuleType:
    """The annotator, imported when it is needed.

    Args:
        module: A module of it, such as "drawing".

    Raises:
        ContextsegError: It is not installed.
    """
    try:
        return import_module(f"contextseg.annotator.{module}")
    except ImportError as error:
        what = f"the annotator cannot be opened here ({error})"
        remedy = (
            "pip install 'contextseg[annotate]'; or draw with another program, and save the label "
            "map as drawn/CASE.nii.gz in the project's folder"
        )
        raise ContextsegError("contextseg.annotator", what, remedy) from error


def _of_annotator(folder: Path, case: str, scan: Volume, values: Sequence[int]) -> np.ndarray:
    """The annotator's drawing, whose classes are numbered, in label values."""
    drawing: Any = annotator("drawing")
    opened = drawing.Drawing(scan, drawing.case_store(folder.parent / ANNOTATIONS, case))
    numbers = opened.on_scan(opened.drawn).array.astype(np.int64)
    nothing = numbers == _ANNOTATOR_SAYS_NOTHING
    if (numbers[~nothing] >= len(values)).any():
        what = f"the annotator's class {int(numbers[~nothing].max())} is none of the project's"
        raise ContextsegError(folder / case, what, "draw with the classes of the project")
    numbers[nothing] = 0
    array = np.array(values, np.int32)[numbers]
    return np.where(nothing, IGNORE, array).astype(np.int32)


def annotator_facts(folder: Path, case: str) -> tuple[float, bool, bool]:
    """What the annotator notes of a case.

    Args:
        folder: The folder "drawn" of a project.
        case: Name of the case.

    Returns:
        Minutes that were drawn; whether the case is finished; and whether what is filled was
        accepted with it. (0, False, False) where it was never opened there.
    """
    if not annotated_case(folder, case).is_dir():
        return 0.0, False, False
    store = annotator("drawing").case_store(folder.parent / ANNOTATIONS, case)
    state = store.state()
    return float(store.seconds()) / 60, bool(state.get("finished")), bool(state.get("accepted"))
