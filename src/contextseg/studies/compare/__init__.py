"""Compare methods on one data set: a grid of runs, a locked test split, paired tests.

- `grid`: what is compared, as cells; nested label budgets.
- `cell`: one run, trained, validated, and tested once.
- `pools`: cells one after the other, in processes, or on a cluster.
- `comparison`: the whole: leak check, cells, results of other tools.
- `rescored`: rows without training: other definitions of the metrics, post-processing.
- `written`: tables, statistics and page.
- `forecast`: what will run, and for how long.
"""

from __future__ import annotations

from contextseg.studies.compare.comparison import compare
from contextseg.studies.compare.forecast import Forecast, forecast
from contextseg.studies.compare.grid import Grid, parse_grid
from contextseg.studies.compare.written import Comparison

__all__ = ["Comparison", "Forecast", "Grid", "compare", "forecast", "parse_grid"]
