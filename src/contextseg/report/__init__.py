"""The report: from the table, the logs and the images to one page, a picture and a few lines of Markdown.

Reads only those, and never torch: a report can be drawn again anywhere, long after the run.

    page      write_report: the parts in their order, as one self-contained HTML file; comparison: the same for a table
              of several methods, and worst: the cases that all of them find hard
    numbers   the table's means, counts and ranks       charts    curves and box plots; calibration: reliability
    planes    three slices of a scan, with contours     pictures  those drawn
    markup    what all pages are made of
"""

from __future__ import annotations

from contextseg.report.comparison import Compared, write_comparison
from contextseg.report.numbers import summary_markdown
from contextseg.report.page import write_report
from contextseg.report.pictures import demo_picture, overlay

__all__ = ["Compared", "demo_picture", "overlay", "summary_markdown", "write_comparison", "write_report"]
