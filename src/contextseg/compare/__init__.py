"""Methods compared on one data set: the grid of runs, where they run, the locked test split, and what may be said.

grid         what to compare, as cells; nested label budgets
cell         one run finished: trained, validated, and tested once
pools        cells one after the other, in processes, or on a cluster
comparison   the whole: leak check, cells, table, others' work, statistics
forecast     what will run, and for how long
"""

from __future__ import annotations

from contextseg.compare.comparison import Comparison, compare
from contextseg.compare.forecast import forecast
from contextseg.compare.grid import Grid, asked, named

__all__ = ["Comparison", "Grid", "asked", "compare", "forecast", "named"]
