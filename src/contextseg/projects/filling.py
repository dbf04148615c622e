"""The verb `fill`: from the drawn slices of each case to a whole label map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.console import say
from contextseg.errors import ContextsegError
from contextseg.pipeline import open_propagation_model
from contextseg.predict.record import weights_digest
from contextseg.predictor import model_name
from contextseg.projects.origins import Origins
from contextseg.propagation import (
    NETWORK_WAYS,
    CompletionModel,
    PropagationModel,
    fill,
    open_completion,
    ranges,
)
from contextseg.volume import read

if TYPE_CHECKING:
    from contextseg.projects.work import LabelProject

FILLS = "fills"
"""Folder of the filled label maps; origins are in the folder "origins" inside."""


def fill_cases(
    project: LabelProject,
    cases: Sequence[str] = (),
    *,
    model: str | Path | None = None,
    way: str = "",
    between: bool = False,
    again: bool = False,
) -> tuple[list[str], dict[str, str]]:
    """Fill every case whose drawing is newer than its fill.

    Args:
        project: The project.
        cases: Names of cases. () for all that have a drawing.
        model: A run of method "stcn". None is the network that comes with the package.
        way: One of `propagation.WAYS`. "" is "combined".
        between: Each structure's first and last slice are drawn; none lies beyond.
        again: Fill also what is filled from the same drawing, such as with another model.

    Returns:
        The cases that were filled now, and why others could not be, by name.
    """
    table = project.refresh()
    asked = cases or [name for name, row in table.items() if row.drawn]
    for name in asked:
        if not project.table.case(name).drawn:
            what = "nothing is drawn in this case"
            remedy = f"draw slices, and save them as {project.folder / 'drawn' / name}.nii.gz"
            raise ContextsegError(name, what, remedy)
    todo = [name for name in asked if again or table[name].filled != table[name].drawn]
    way = way or "combined"
    network: PropagationModel | CompletionModel | None = None
    if todo and way in NETWORK_WAYS:
        network = open_propagation_model(model) if model else open_completion()
    filled: list[str] = []
    failed: dict[str, str] = {}
    notes: list[str] = []
    with project.progress_bar("fill", bool(asked) and not todo) as progress:
        for done, name in enumerate(todo):
            progress(done, len(todo))
            try:
                notes += _fill_case(project, name, network, way, between)
                filled.append(name)
            except ContextsegError as error:
                failed[name] = str(error)
            progress(done + 1, len(todo))
    for note in notes:
        say(note)
    return filled, failed


def _fill_case(
    project: LabelProject,
    name: str,
    network: PropagationModel | CompletionModel | None,
    way: str,
    between: bool,
) -> list[str]:
    """Fill one case; what is to be said of it."""
    row = project.table.case(name)
    drawing = project.drawing(name)
    if drawing is None:
        what = "what is drawn holds no class"
        raise ContextsegError(name, what, "draw a structure, or accept the case as it is")
    scan = read(*project.case(name).images)
    limits = ranges(drawing.labelled) if between else None
    filled = fill(scan, drawing.labelled, network, way, limits)
    path = project.fill_file(name)
    origins = Origins.of_fill(filled, drawing.known, way, _name_of(network))
    origins.save(origins_file(path), filled.label)
    filled.save(path)
    project.table.note(name, filled=row.drawn)
    return [f"{name}: {note}" for note in filled.notes]


def _name_of(network: PropagationModel | CompletionModel | None) -> str:
    """What origins call a network."""
    if isinstance(network, CompletionModel):
        return f"{type(network.net).__name__}-{weights_digest(network.net)}"
    return model_name(network.net, network.plan) if network else ""


def origins_file(path: Path) -> Path:
    """Where the origins of a label map of a project lie.

    Args:
        path: The label map.

    Returns:
        A file of the same name in the folder "origins" beside it.
    """
    return path.parent / "origins" / path.name
