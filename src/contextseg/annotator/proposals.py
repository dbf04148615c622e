"""How well a trained run expects to do in a case that nobody has drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contextseg.data.listing import Case
from contextseg.metrics.calibration import expected_case_dice
from contextseg.pipeline import open_predictor


def expected_dice(run: str | Path, case: Case) -> float:
    """The Dice that a model's label map should have if its probabilities are right.

    See `metrics.calibration.expected_case_dice`.

    Args:
        run: Folder of a finished run.
        case: The case.

    Returns:
        A number from 0 to 1.

    Raises:
        ContextsegError: The run is not finished, or the scan cannot be read.
    """
    predictor = open_predictor([run])
    settings = replace(predictor.settings, confidence=True, mirror=False)
    result = replace(predictor, settings=settings).predict(case.images, name=case.name)
    assert result.confidence is not None
    values = list(result.classes.values())
    return expected_case_dice(result.label.array, result.confidence.array, values)
