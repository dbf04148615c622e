"""Segmentation in two stages: a run predicts some slices of a scan, and these fill the rest.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816).

- `reference`: the first stage, what a finished run predicts of some slices.
- `stages`: both stages on one scan, and on a folder of scans.
"""

from __future__ import annotations

from contextseg.twostage.reference import SlicePrediction, SliceReference, VolumeReference
from contextseg.twostage.stages import (
    SELECTIONS,
    TWO_STAGE_TABLE,
    ClassOutcome,
    TwoStageResult,
    TwoStageSettings,
    as_published,
    check_folder,
    check_runs,
    segment_cases,
    segment_folder,
    segment_two_stage,
    write_class_outcomes,
)

__all__ = [
    "SELECTIONS",
    "TWO_STAGE_TABLE",
    "ClassOutcome",
    "SlicePrediction",
    "SliceReference",
    "TwoStageResult",
    "TwoStageSettings",
    "VolumeReference",
    "as_published",
    "check_folder",
    "check_runs",
    "segment_cases",
    "segment_folder",
    "segment_two_stage",
    "write_class_outcomes",
]
