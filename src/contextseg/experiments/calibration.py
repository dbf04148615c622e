"""How often predictions are right, by how sure they were: from confidence maps beside label maps to a table of bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem, replacing
from contextseg.experiments.evaluate import Pair, Progress, each_case, read_pair
from contextseg.metrics import reliability
from contextseg.metrics.calibration import within
from contextseg.volume import read_labels

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIDENCE = "confidence"
"""The folder beside label maps that holds a map of the same name for each: 0 to 255 for a probability of 0 to 1."""

ALL = "all"


def confidence_file(prediction: str | Path) -> Path:
    """Where the confidence of a predicted label map lies.

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
    """Count right and wrong voxels by confidence: (table, problems by case).

    The table has a row for each case, bin and choice of `voxels`, and the columns of `metrics.reliability`: n,
    confidence, accuracy. `voxels` is "all", or "within 10 mm" (`near_mm`) of a voxel that is of any class in the
    reference or the prediction: the background far from everything is easy, and far more than the rest.

    A voxel is right if the prediction is of the reference's class; values of no class in `regions` are background.
    Voxels with `ignore` never count. Cases without a confidence map give no rows, and neither do those in which some of
    the classes were not looked for: nobody knows whether their background is right. No rows give an empty table.
    """
    import pandas as pd

    values = sorted({value for union in regions.values() for value in union})

    def one(pair: Pair) -> list[dict[str, Any]]:
        made, reference, spacing_mm = read_pair(pair, ignore)
        known, right = reference != IGNORE, made == reference
        either = np.isin(made, values) | np.isin(reference, values)
        right |= ~either
        del made, reference  # several cases are measured at a time
        near = within(either & known, spacing_mm, near_mm) & known
        sure = _read(pair, known.shape)
        return [
            {"case": pair.case, "voxels": name, **row}
            for name, where in ((f"within {near_mm:g} mm", near), (ALL, known))
            for row in reliability(sure[where], right[where])
        ]

    looked_for = set(regions)
    there = [p for p in cases if p.annotated is None or looked_for <= set(p.annotated)]
    rows, problems = each_case(one, [p for p in there if confidence_file(p.prediction).exists()], workers, progress)
    return pd.DataFrame(rows), problems


def _read(pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """The confidence beside a prediction of that shape, uint8."""
    path = confidence_file(pair.prediction)
    sure = read_labels(path).array
    if sure.shape != shape or sure.min() < 0 or sure.max() > 255:
        what = f"numbers from {sure.min()} to {sure.max()} on a grid of {sure.shape}; the label map's is {shape}"
        raise Problem(path, what, "write 0 to 255, for a probability of 0 to 1, on the grid of the label map")
    return sure.astype(np.uint8)


def save_calibration(table: DataFrame, folder: str | Path) -> None:
    """Write `calibration.csv` into a folder; nothing for an empty table."""
    if len(table):
        with replacing(Path(folder) / "calibration.csv") as temporary:
            table.to_csv(temporary, index=False)
