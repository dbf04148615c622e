"""From predictions to the table, and from the table to what may be said of it.

evaluate    label files measured: one row for each run, case and class
importing   what other tools made, as rows of the same table
statistics  means, intervals, paired tests over patients
tables      all that as Markdown, CSV and LaTeX
"""

from __future__ import annotations

from contextseg.experiments.evaluate import Pair, compare_conventions, evaluate, pairs, regions_of, save_table

__all__ = ["Pair", "compare_conventions", "evaluate", "pairs", "regions_of", "save_table"]
