"""FLARE22 by Pham, Nguyen-Ho and Tran (LNCS 13816): Table 4 and the pipeline's costs, resumable.

- `layout`: where the challenge's scans lie, and what is missing.
- `rows`: the rows of the table, as runs.
- `study`: the whole job, `reproduce_flare22`.
"""

from __future__ import annotations

from contextseg.studies.flare22.layout import PARTS, FLARE22Scans, find_scans
from contextseg.studies.flare22.rows import ROWS, Table4Row
from contextseg.studies.flare22.study import FLARE22, FLARE22Result, reproduce_flare22

__all__ = [
    "FLARE22",
    "PARTS",
    "ROWS",
    "FLARE22Result",
    "FLARE22Scans",
    "Table4Row",
    "find_scans",
    "reproduce_flare22",
]
