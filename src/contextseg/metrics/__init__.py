"""Metrics of a segmentation: one row per case and class, in mm and ml, with failures counted.

- `catalogue`: every metric with its heading, digits, unit and direction.
- `case`: `evaluate_case` compares two label maps.
- `table`: `summarise` makes the table of means, `nnunet_summary` nnU-Net's file.
- `surface`: surface distances, and the conventions of other tools.
- `flare22`: the 13 organs of FLARE22, and their tolerances.
- `lesions`: `lesion_table` looks at lesions one by one.
- `calibration`: `reliability` compares confidence with accuracy.

docs/measuring.md has the definitions and the policy for empty masks.
"""

from contextseg.metrics.calibration import BINS, calibration_error, pooled, reliability
from contextseg.metrics.case import (
    ABSENT,
    BOTH,
    CONVENTION_METRICS,
    MISSED,
    SPURIOUS,
    class_status,
    evaluate_case,
)
from contextseg.metrics.catalogue import (
    DEFAULT_METRICS,
    DSC,
    FP_FAR,
    FP_NEAR,
    IOU,
    METRICS,
    PRC,
    QUANTITIES,
    RVD,
    SEN,
    VOLUME_DIFF,
    Column,
    Metric,
)
from contextseg.metrics.flare22 import (
    FLARE22_TOLERANCE_MM,
    flare22_organ,
    flare22_tolerances,
)
from contextseg.metrics.lesions import lesion_table
from contextseg.metrics.surface import (
    ASSD,
    CONVENTIONS,
    HD,
    HD95,
    NSD,
    Convention,
    require_names,
)
from contextseg.metrics.table import OVERALL, nnunet_summary, summarise

__all__ = [
    "ABSENT",
    "ASSD",
    "BINS",
    "BOTH",
    "CONVENTIONS",
    "CONVENTION_METRICS",
    "DEFAULT_METRICS",
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
    "QUANTITIES",
    "RVD",
    "SEN",
    "SPURIOUS",
    "VOLUME_DIFF",
    "Column",
    "Convention",
    "Metric",
    "calibration_error",
    "class_status",
    "evaluate_case",
    "flare22_organ",
    "flare22_tolerances",
    "lesion_table",
    "nnunet_summary",
    "pooled",
    "reliability",
    "require_names",
    "summarise",
]
