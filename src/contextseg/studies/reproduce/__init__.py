"""The six data sets of the CoLab paper: from a download to Tables I and II with one command each.

- `table`: what each data set is, how its download lies, what the paper did and reported.
- `find`: which file of a download is which case, and what is missing.
- `arrange`: a download becomes an nnU-Net v2 data set, of links wherever a link will do.
- `command`: the comparison to run, and its results beside the published ones.
- `study`: the whole job, `reproduce`.
"""

from __future__ import annotations

from contextseg.studies.reproduce.study import Reproduced, reproduce
from contextseg.studies.reproduce.table import REPRODUCTIONS, Reproduction

__all__ = ["REPRODUCTIONS", "Reproduced", "Reproduction", "reproduce"]
