"""A project: one folder in which a few labelled slices become a finished data set.

    project = open_label_project("work", scans="scans", classes=["tumour"])
    project.fill()                        # the slices drawn in work/drawn, filled
    project.train(steps=2000)             # on drawn slices, and on what was accepted
    project.predict()                     # the scans that nobody has labelled
    project.review()                      # the annotator, on the worst of them
    project.accept(above=0.9)
    project.export("Dataset001_Tumour")   # with the origin of every voxel

The state of a project is one table on disk, `project.csv`, a row for each case. Every verb looks
at it, does what is left to do, and notes each case as it is done; so a verb that was stopped goes
on where it was. No case that is scored is ever trained on, and no other scan of its patient.

- `table`: the table, and the states of a case.
- `work`: the project, its verbs, and which cases are locked for measuring.
- `drawings`: the slices that people drew, from the annotator or from files of any program.
- `origins`: where each voxel of a label comes from.
- `filling`, `rounds`, `worklist`, `accepting` and `exporting`: one verb each.
"""

from __future__ import annotations

from contextseg.projects.accepting import accept_case
from contextseg.projects.drawings import DrawnLabel, read_drawing
from contextseg.projects.exporting import EXPORT_FORMATS, export_cases
from contextseg.projects.origins import Origins
from contextseg.projects.rounds import FILL_CHOICES
from contextseg.projects.sources import place_scan
from contextseg.projects.table import STATES, ProjectCase, ProjectTable
from contextseg.projects.work import LabelProject, open_label_project
from contextseg.projects.worklist import ORDERS

__all__ = [
    "EXPORT_FORMATS",
    "FILL_CHOICES",
    "ORDERS",
    "STATES",
    "DrawnLabel",
    "LabelProject",
    "Origins",
    "ProjectCase",
    "ProjectTable",
    "accept_case",
    "export_cases",
    "open_label_project",
    "place_scan",
    "read_drawing",
]
