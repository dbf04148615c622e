"""The verb `accept`: from a fill, a prediction or a corrected file to a finished label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contextseg.data.listing import some
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.interop.reading import write_classes
from contextseg.interop.segments import class_segments
from contextseg.projects.filling import origins_file
from contextseg.projects.origins import Origins
from contextseg.projects.rounds import predictions_folder
from contextseg.projects.table import ProjectCase
from contextseg.volume import Volume, as_labels, read, read_labels

if TYPE_CHECKING:
    from contextseg.projects.work import LabelProject

LABELS = "labels"
"""Folder of the accepted label maps; origins are in the folder "origins" inside."""

TAKEN = ("fill", "prediction", "drawing")
"""What an accepted label may be taken from."""


def accept_cases(
    project: LabelProject,
    cases: Sequence[str],
    *,
    label: str | Path | None,
    take: str,
    above: float | None,
    minutes: float | None,
    undo: bool,
) -> list[str]:
    """Accept labels, or open cases again; see `LabelProject.accept`.

    Args:
        project: The project.
        cases: As there.
        label: As there.
        take: As there.
        above: As there.
        minutes: As there.
        undo: As there.

    Returns:
        The cases that were accepted, or opened.
    """
    rows = project.refresh()
    _check(project, cases, label, take, above, undo)
    chosen = list(cases)
    if above is not None:
        good_enough = [
            row.case
            for row in rows.values()
            if row.state in ("predicted", "reviewed")
            and row.use == "train"
            and not math.isnan(row.expected_dice)
            and row.expected_dice >= above
        ]
        chosen = [name for name in cases or good_enough if name in good_enough]
    with project.table.together():
        for name in chosen:
            if undo:
                project.table.note(name, accepted="")
                continue
            accept_case(project, name, take=take, label=label)
            if minutes is not None:
                project.table.note(name, minutes=project.table.case(name).minutes + minutes)
    return chosen


def _check(
    project: LabelProject,
    cases: Sequence[str],
    label: str | Path | None,
    take: str,
    above: float | None,
    undo: bool,
) -> None:
    """Refuse arguments that contradict one another, and cases that do not exist."""
    for name in cases:
        project.table.case(name)
    if not cases and (above is None or undo):
        remedy = "name cases, or give --above 0.9 for predictions of which that is expected"
        raise ContextsegError("accept", "no case", remedy)
    if label is not None and (len(cases) != 1 or take or above is not None or undo):
        what = "a label map belongs to one case, and is what is taken"
        raise ContextsegError(f"--label {label}", what, "name one case, and nothing else")
    if take and take not in TAKEN:
        remedy = did_you_mean(take, TAKEN)
        raise ContextsegError(f"--take {take}", "there is no such choice", remedy)
    if above is not None and (not 0 <= above <= 1 or take not in ("", "prediction")):
        what = "predictions are accepted by their expected Dice, 0 to 1"
        raise ContextsegError(f"--above {above:g}", what, "give a Dice, without --take")


def accept_case(
    project: LabelProject, name: str, *, take: str = "", label: str | Path | None = None
) -> None:
    """Accept the label of one case.

    Args:
        project: The project.
        name: Name of the case.
        take: One of `TAKEN`; "" is the fill where the case was drawn in, else the prediction.
        label: A corrected label map in place of these.

    Raises:
        ContextsegError: There is nothing to accept, or the label map does not fit.
    """
    row = project.table.case(name)
    if label is not None:
        whole, origins, origin = _corrected(project, row, label)
    else:
        take = take or ("fill" if row.drawn or not row.predicted else "prediction")
        whole, origins, origin = _taken(project, row, take)
    classes = dict(zip(project.labels.classes[1:], project.labels.values[1:]))
    path = project.label_file(name)
    origins.save(origins_file(path), whole)
    write_classes(path, whole, class_segments(classes))
    reviewed = max(row.reviewed, row.predicted)
    project.table.note(name, accepted=origin, reviewed=reviewed)


def _taken(project: LabelProject, row: ProjectCase, take: str) -> tuple[Volume, Origins, str]:
    """The label of a case with its origins, and what the table says of it."""
    if take == "fill":
        if not row.drawn or row.filled != row.drawn:
            what = "nothing is drawn" if not row.drawn else "it was drawn in since it was filled"
            raise ContextsegError(row.case, what, "draw, then call `contextseg project fill`")
        path = project.fill_file(row.case)
        return read_labels(path), Origins.load(origins_file(path)), "fill"
    if take == "drawing":
        return _drawn(project, row)
    label, origins = _prediction(project, row)
    drawing = project.drawing(row.case)
    if drawing is not None:
        label = label.with_array(np.where(drawing.known, drawing.label.array, label.array))
        origins = origins.with_human(drawing.known)
    return label, origins, f"prediction-{row.predicted}"


def _drawn(project: LabelProject, row: ProjectCase) -> tuple[Volume, Origins, str]:
    """A drawing as it is: slices that nobody drew are empty, which whoever accepts it says."""
    drawing = project.drawing(row.case)
    if drawing is None:
        raise ContextsegError(row.case, "nothing is drawn", "draw slices, or accept a prediction")
    label = drawing.label.with_array(np.maximum(drawing.label.array, 0))
    return label, Origins.everywhere(label.shape, {"kind": "human"}), "drawing"


def _prediction(project: LabelProject, row: ProjectCase) -> tuple[Volume, Origins]:
    """The newest prediction of a case, every voxel of it the model's."""
    path = predictions_folder(project, row.predicted) / f"{row.case}.nii.gz"
    if not row.predicted or not path.exists():
        what = "there is no prediction of it"
        raise ContextsegError(row.case, what, "call `contextseg project predict`")
    return read_labels(path), Origins.everywhere(
        read_labels(path).shape, model_origin(project, row.predicted)
    )


def model_origin(project: LabelProject, number: int) -> dict[str, object]:
    """The origin of what a round predicted.

    Args:
        project: The project.
        number: Number of the round.

    Returns:
        Its kind, round, model (class and digest of weights and plan) and run.
    """
    from contextseg.predict.record import RECORD, recorded

    folder = predictions_folder(project, number)
    models = recorded(folder / RECORD)[0].get("models", {})
    run = (folder.parent / "model").relative_to(project.folder).as_posix()
    return {"kind": "model", "round": number, "model": ", ".join(models), "run": run}


def _corrected(
    project: LabelProject, row: ProjectCase, path: str | Path
) -> tuple[Volume, Origins, str]:
    """A label map that a person gives; what is as the program had it keeps its origin."""
    scan = read(*project.case(row.case).images)
    label = as_labels(path, scan)
    unknown = sorted(set(np.unique(label.array).tolist()) - set(project.labels.values))
    if unknown:
        what = f"values that no class has: {some(map(str, unknown))}"
        raise ContextsegError(path, what, "save it with the values of the classes")
    if row.filled and row.filled == row.drawn:
        before, origins, _ = _taken(project, row, "fill")
    elif row.predicted:
        before, origins, _ = _taken(project, row, "prediction")
    else:
        return label, Origins.everywhere(label.shape, {"kind": "human"}), "file"
    changed = label.array != before.array
    return label, origins.with_human(changed), "file"
