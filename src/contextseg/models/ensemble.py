"""A folder that names the runs of an ensemble: the folds of a cross-validation, or the best of it.

ensemble.json            the runs, relative to the folder; what was chosen by validation
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.runs import Run

ENSEMBLE_FILE = "ensemble.json"
"""File of the folder of an ensemble."""

ENSEMBLE_VERSION = 1
"""The format of `ensemble.json`."""


@dataclass(frozen=True)
class Ensemble:
    """Finished runs that predict together.

    Attributes:
        runs: Folders of the runs.
        largest_of: Classes whose largest connected part alone is kept, chosen by validation.
    """

    runs: tuple[Path, ...]
    largest_of: tuple[str, ...] = ()

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, runs by their paths relative to it.

        Args:
            folder: The folder; made if it is not there.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        content = {
            "version": ENSEMBLE_VERSION,
            "runs": [_relative_to(run, Path(folder)) for run in self.runs],
            "largest_of": list(self.largest_of),
        }
        write_json(Path(folder) / ENSEMBLE_FILE, content)


def _relative_to(run: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(run.absolute(), folder.absolute())).as_posix()
    except ValueError:  # another drive of Windows
        return str(run.absolute())


def is_ensemble(folder: str | Path) -> bool:
    """Whether a folder holds an ensemble.

    Args:
        folder: Any path.
    """
    return (Path(folder) / ENSEMBLE_FILE).is_file()


def open_ensemble(folder: str | Path) -> Ensemble:
    """The ensemble in a folder.

    Args:
        folder: A folder of which `is_ensemble` holds.

    Returns:
        The ensemble; its runs are there, but may be unfinished.

    Raises:
        ContextsegError: The file is damaged, or a run is no longer where it was.
    """
    path = Path(folder) / ENSEMBLE_FILE
    content = read_json(path)
    try:
        runs = tuple(Path(os.path.normpath(Path(folder) / run)) for run in content["runs"])
        largest = tuple(str(name) for name in content["largest_of"])
    except (KeyError, TypeError) as error:
        remedy = "give the command that made it again; what is finished is kept"
        raise ContextsegError(path, f"it names no runs ({error!r})", remedy) from error
    for run in runs:
        if not (run / "run.json").exists():
            what = f"its run {run} is not there"
            remedy = "move the runs together with the folder that names them, or give runs"
            raise ContextsegError(path, what, remedy)
    return Ensemble(runs, largest)


def validated_by_all(models: Sequence[str | Path]) -> tuple[str, ...]:
    """The classes whose largest part alone is kept by the validation of each of several models.

    Args:
        models: Folders, each of a run or of an ensemble; one or more.

    Returns:
        Names of the classes.
    """
    chosen = [
        open_ensemble(m).largest_of if is_ensemble(m) else Run.open(m).largest_validated
        for m in models
    ]
    return tuple(name for name in chosen[0] if all(name in names for names in chosen))


def open_runs(models: Sequence[str | Path]) -> list[Run]:
    """The runs of folders, each of a run or of an ensemble.

    Args:
        models: The folders.

    Returns:
        The runs, in order.

    Raises:
        ContextsegError: There is no run in a folder.
    """
    folders: list[str | Path] = []
    for model in models:
        folders += open_ensemble(model).runs if is_ensemble(model) else [model]
    return [Run.open(folder) for folder in folders]
