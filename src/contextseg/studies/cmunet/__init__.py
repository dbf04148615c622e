"""The table of the CMU-Net paper by one command: rows, 10/2/5 scans, runs, tests.

- `rows`: the rows, and the settings that make each the paper's.
- `arrange`: 10 scans to train, 2 to validate and 5 to test, out of any labelled data set.
- `study`: the whole: slices, runs, 2-D measures of the best and of the last weights.
- `table`: means over the runs, tests, and the published numbers beside them.
"""

from __future__ import annotations

from contextseg.studies.cmunet.rows import ROWS, TableRow
from contextseg.studies.cmunet.study import CMUNetTable, reproduce_cmunet, table_text

__all__ = ["ROWS", "CMUNetTable", "TableRow", "reproduce_cmunet", "table_text"]
