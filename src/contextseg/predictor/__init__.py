"""Trained networks, ready to segment scans: the dear part once, the cheap part often."""

from contextseg.predictor.fitting import sliding_window_arguments
from contextseg.predictor.folder import (
    Extras,
    cases_to_segment,
    part_of,
    raise_failed,
    segment_missing,
    write_prediction,
)
from contextseg.predictor.predictor import (
    Member,
    Predictor,
    model_name,
    plan_segments,
    scan_of,
)
from contextseg.predictor.segmentation import Probabilities, Segmentation
from contextseg.predictor.statistics import class_statistics

__all__ = [
    "Extras",
    "Member",
    "Predictor",
    "Probabilities",
    "Segmentation",
    "cases_to_segment",
    "class_statistics",
    "model_name",
    "part_of",
    "plan_segments",
    "raise_failed",
    "scan_of",
    "segment_missing",
    "sliding_window_arguments",
    "write_prediction",
]
