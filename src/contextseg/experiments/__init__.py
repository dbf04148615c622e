"""From predictions to the table, and from the table to what may be said of it.

evaluate     label files measured: one row for each run, case and class
calibration  how often they are right, by how sure they were
importing    what other tools made, as rows of the same table
statistics   means, intervals, paired tests over patients
tables       all that as Markdown, CSV and LaTeX
"""

from __future__ import annotations

from contextseg.experiments.calibration import calibration, save_calibration
from contextseg.experiments.evaluate import (
    Pair,
    compare_conventions,
    evaluate,
    pairs,
    regions_of,
    save_table,
    tolerances,
)

__all__ = [
    "Pair",
    "calibration",
    "compare_conventions",
    "evaluate",
    "pairs",
    "regions_of",
    "save_calibration",
    "save_table",
    "tolerances",
]
