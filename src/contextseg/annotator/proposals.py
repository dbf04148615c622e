"""How well a trained run expects to do in a case that nobody has drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from contextseg.data.listing import Case
from contextseg.pipeline import open_predictor


def expected_dice(run: str | Path, case: Case) -> float:
    """The Dice that a model's label map should have if its probabilities are right.

    With p the probability of a class: twice the sum of p over the voxels labelled so, over their
    number plus the sum of p everywhere. In the background, p is taken as what the background
    leaves. The mean over the classes; a class that is not found counts 0.

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
    label, confidence = result.label.array, result.confidence.array / 255
    scores = []
    for value in result.classes.values():
        inside = label == value
        missed = float(((1 - confidence) * (label == 0)).sum())
        hit = float(confidence[inside].sum())
        total = int(inside.sum()) + hit + missed
        scores.append(2 * hit / total if total else 0.0)
    return float(np.mean(scores)) if scores else 0.0
