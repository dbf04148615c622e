"""The label maps of two folders, matched by name; what has no counterpart is named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from contextseg.data.listing import ENDINGS, PICTURES, some, stem
from contextseg.data.unused import unused_files
from contextseg.disk import readable
from contextseg.errors import ContextsegError
from contextseg.evaluation.calibration import CONFIDENCE
from contextseg.evaluation.evaluate import Pair

_ENDINGS = (*ENDINGS, ".dcm", ".gipl", ".gipl.gz", ".mnc", ".vtk")


@dataclass(frozen=True)
class Matched:
    """The label maps of a folder of predictions and of a folder of references.

    Attributes:
        pairs: One for each reference, in the order of their names. Where there is no prediction,
            `Pair.predicted` is False.
        without_reference: Names of the predictions that nothing can be compared with.
        unused: Files of both folders that are no label map.
    """

    pairs: tuple[Pair, ...]
    without_reference: tuple[str, ...]
    unused: tuple[Path, ...]

    @property
    def without_prediction(self) -> tuple[str, ...]:
        """Names of the references without a prediction."""
        return tuple(pair.case for pair in self.pairs if not pair.predicted)


@readable
def match_folders(predictions: str | Path, references: str | Path) -> Matched:
    """Match the label maps of two folders by their names, endings aside.

    Label maps end as scans do, in any letter case. Pictures beside other files are previews.

    Args:
        predictions: Folder of predicted label maps, from any tool.
        references: Folder of reference label maps.

    Returns:
        The pairs, and what has no counterpart.

    Raises:
        ContextsegError: A folder does not exist, two files of one folder have the same name, or no
            name is in both.
    """
    predicted = _label_files(predictions)
    reference = _label_files(references)
    if not set(predicted) & set(reference):
        here = some(predicted, 3) or "none"
        there = some(reference, 3) or "none"
        what = f"no file has the name of one in {references} ({here}; there {there})"
        raise ContextsegError(predictions, what, "name predictions as their references")
    folder = Path(predictions)
    pairs = (
        Pair(name, predicted.get(name, folder / path.name), path, predicted=name in predicted)
        for name, path in reference.items()
    )
    return Matched(
        pairs=tuple(pairs),
        without_reference=tuple(name for name in predicted if name not in reference),
        unused=unused_files([folder], predicted.values(), (CONFIDENCE,))
        + unused_files([Path(references)], reference.values(), (CONFIDENCE,)),
    )


def pairs(predictions: str | Path, references: str | Path) -> list[Pair]:
    """The label files of two folders that have the same name, endings aside.

    `match_folders` gives what has no counterpart too.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps. One without a prediction is left out.

    Returns:
        One pair for each name in both, in the order of the references' names.

    Raises:
        ContextsegError: As `match_folders`.
    """
    return [pair for pair in match_folders(predictions, references).pairs if pair.predicted]


def other_letter_case(name: str, names: Iterable[str]) -> str:
    """The first of some names that differs from a name in its letter case alone; "" for none.

    Args:
        name: A name.
        names: Names to search.

    Returns:
        The name found.

    Example:
        >>> other_letter_case("case_A", ["case_a", "case_b"])
        'case_a'
    """
    return next((other for other in names if other.casefold() == name.casefold()), "")


def _label_files(folder: str | Path) -> dict[str, Path]:
    """The files of a folder that may be label maps, by name without ending."""
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise ContextsegError(folder, what, "give a folder of label maps")
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name.lower().endswith(_ENDINGS) and path.name[0] != "."
    ]
    files = [path for path in files if not path.name.lower().endswith(PICTURES)] or files
    by_name: dict[str, Path] = {}
    for path in files:
        name = stem(path)
        if name in by_name:
            what = f"the same name as {by_name[name].name}"
            raise ContextsegError(path, what, "keep one of the two")
        by_name[name] = path
    return by_name
