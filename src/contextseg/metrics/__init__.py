"""Measuring a segmentation: one row per case and class, in mm and ml, with failures counted and never dropped.

`evaluate_case` compares two label maps; `summarise` makes the table of means; `lesion_table` looks at lesions one by
one; `reliability` asks whether a prediction is right as often as it says. The definitions, the policy for empty masks
and the named conventions of other tools are in docs/measuring.md.
"""

from contextseg.metrics.calibration import BINS, calibration_error, pooled, reliability
from contextseg.metrics.case import (
    ABSENT,
    BOTH,
    DSC,
    FP_FAR,
    FP_NEAR,
    IOU,
    METRICS,
    MISSED,
    PRC,
    RVD,
    SEN,
    SPURIOUS,
    VOLUME_DIFF,
    evaluate_case,
)
from contextseg.metrics.lesions import lesion_table
from contextseg.metrics.surface import ASSD, CONVENTIONS, FLARE22_TOLERANCE_MM, HD, HD95, NSD, Convention
from contextseg.metrics.table import OVERALL, nnunet_summary, summarise

__all__ = [
    "ABSENT",
    "ASSD",
    "BINS",
    "BOTH",
    "CONVENTIONS",
    "DSC",
    "FLARE22_TOLERANCE_MM",
    "FP_FAR",
    "FP_NEAR",
    "HD",
    "HD95",
    "IOU",
    "METRICS",
    "MISSED",
    "NSD",
    "OVERALL",
    "PRC",
    "RVD",
    "SEN",
    "SPURIOUS",
    "VOLUME_DIFF",
    "Convention",
    "calibration_error",
    "evaluate_case",
    "lesion_table",
    "nnunet_summary",
    "pooled",
    "reliability",
    "summarise",
]
