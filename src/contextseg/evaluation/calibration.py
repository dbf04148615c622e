"""How often predictions are right, by confidence: from confidence maps to a table of bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.cells import frame_text, read_table_file, refuse_words
from contextseg.console import Progress
from contextseg.disk import write_text
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import Pair, gather_rows, read_pair
from contextseg.grids import fits, onto
from contextseg.metrics import reliability
from contextseg.metrics.calibration import within
from contextseg.parallel import map_cases
from contextseg.volume import read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENCE = "confidence"
"""Folder beside label maps with a confidence map of the same name: 0 to 255 for 0 to 1."""

ALL_VOXELS = "all"
"""In the column `voxels`: all voxels that are annotated."""


def confidence_file(prediction: str | Path) -> Path:
    """Where the confidence map of a predicted label map lies.

    Args:
        prediction: File of the label map.

    Returns:
        File of its confidence map.

    Example:
        >>> confidence_file("predictions/case.nii.gz").as_posix()
        'predictions/confidence/case.nii.gz'
    """
    return Path(prediction).parent / CONFIDENCE / Path(prediction).name


def calibration(
    cases: Sequence[Pair],
    regions: Mapping[str, Sequence[int]],
    *,
    ignore: int | None = None,
    near_mm: float = 10.0,
    workers: int = 2,
    progress: Progress | None = None,
) -> tuple[DataFrame, dict[str, str]]:
    """Count right and wrong voxels by confidence.

    A voxel is right if the prediction is of the reference's class; values of no class in `regions`
    are background.

    Args:
        cases: The files. A case without a confidence map gives no rows, and neither does one in
            which some classes are not annotated: nobody knows whether its background is right.
        regions: Name of each class -> the label values of the files whose union it is.
        ignore: Label value of voxels that do not count. None: there is none.
        near_mm: Distance from a voxel of any class, in the reference or the prediction, up to which
            a voxel is near. The background far from everything is easy, and far more than the rest.
        workers: Number of cases at a time.
        progress: Called with (number done, number of cases) after each case.

    Returns:
        The table and the problems by case. The table has a row for each case, choice of voxels
        ("within 10 mm", which is `near_mm`, and "all") and bin, in the columns case, voxels, and
        those of `metrics.reliability`. No rows give an empty table.
    """
    import pandas as pd

    values = sorted({value for union in regions.values() for value in union})

    def rows_of(pair: Pair) -> list[dict[str, Any]]:
        prediction, reference, spacing_mm = read_pair(pair, ignore)
        annotated = reference != IGNORE
        in_either = np.isin(prediction, values) | np.isin(reference, values)
        correct = (prediction == reference) | ~in_either
        del prediction, reference  # several cases are measured at a time
        near = within(in_either & annotated, spacing_mm, near_mm) & annotated
        confidence = _read_confidence(pair, annotated.shape)
        return [
            {"case": pair.case, "voxels": name, **row}
            for name, where in ((f"within {near_mm:g} mm", near), (ALL_VOXELS, annotated))
            for row in reliability(confidence[where], correct[where])
        ]

    fully_annotated = [p for p in cases if p.annotated is None or set(regions) <= set(p.annotated)]
    with_confidence = [p for p in fully_annotated if confidence_file(p.prediction).exists()]
    rows, problems = gather_rows(map_cases(rows_of, with_confidence, workers, progress))
    return pd.DataFrame(rows), problems


def _read_confidence(pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """The confidence map beside a prediction of that shape, uint8."""
    path = confidence_file(pair.prediction)
    volume, reference = read_labels(path), read_labels(pair.reference)
    if volume.array.size == reference.array.size and fits(volume, reference):
        volume = onto(volume, reference)
    confidence = volume.array
    low, high = confidence.min(), confidence.max()
    if confidence.shape != shape or low < 0 or high > 255:
        grid = f"on a grid of {confidence.shape}; the label map's is {shape}"
        raise ContextsegError(
            path,
            f"numbers from {low} to {high} {grid}",
            "write 0 to 255, for a probability of 0 to 1, on the grid of the label map",
        )
    return confidence.astype(np.uint8)


def save_calibration(table: DataFrame, folder: str | Path) -> None:
    """Write `calibration.csv`; nothing for an empty table.

    Args:
        table: The table of `calibration`.
        folder: Where to write it.
    """
    if len(table):
        write_text(Path(folder) / "calibration.csv", frame_text(table))


def read_calibration(path: str | Path) -> DataFrame:
    """Read a `calibration.csv`.

    Args:
        path: The file that `save_calibration` wrote.

    Returns:
        The table of `calibration`.

    Raises:
        ContextsegError: The file is missing or damaged, lacks a column, or holds a word for a
            number.
    """
    columns = ("bin", "low", "high", "n", "confidence", "accuracy")
    remedy = "evaluate again, which writes it anew"
    table = read_table_file(path, ("case", "voxels"), ("case", "voxels", *columns), remedy)
    refuse_words(table, columns, path, remedy)
    for name in ("bin", "n"):
        counts = table[name]
        if not (counts.between(0, 2**53) & (counts % 1 == 0)).all():
            raise ContextsegError(path, f"{name} holds what is no count", remedy)
    return table
