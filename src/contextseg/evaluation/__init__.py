"""Evaluation: from predicted label maps to a table of metrics, and from tables to statistics.

- `evaluate`: label files to the table, one row for each case and class.
- `matching`: two folders of label maps to pairs of files, and what has no counterpart.
- `calibration`: confidence maps to a table of bins: how often a prediction is right.
- `efficiency`: time, memory and processor use of predicting a case.
- `importing`: predictions and scores of other tools, as rows of the same table.
- `statistics`: means, intervals and paired tests over patients, and the values behind them.
- `learning_curve`: a metric against the number of labelled patients.
- `tables`: the statistics as Markdown, CSV and LaTeX.

A page or a picture of any of these is in `contextseg.reports`, which reads this package. Nothing
here imports torch.
"""

from __future__ import annotations

from contextseg.evaluation.calibration import calibration, save_calibration
from contextseg.evaluation.evaluate import (
    Pair,
    compare_conventions,
    evaluate,
    parse_tolerances,
    regions_in_files,
    save_table,
)
from contextseg.evaluation.matching import Matched, match_folders, pairs

__all__ = [
    "Matched",
    "Pair",
    "calibration",
    "compare_conventions",
    "evaluate",
    "match_folders",
    "pairs",
    "parse_tolerances",
    "regions_in_files",
    "save_calibration",
    "save_table",
]
