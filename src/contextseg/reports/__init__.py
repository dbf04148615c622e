"""The report: from tables, logs and images to one page, a picture and a few lines of Markdown.

- `page`: `write_report`, the page of a run as one self-contained HTML file.
- `comparison`: `write_comparison`, the page of a comparison of methods.
- `diagnosis`: the page of a diagnosis, with the pictures of `contexts`.
- `worst`: the cases that all methods of a comparison find hard.
- `numbers`: the means, counts and ranks of a table, and how numbers are written.
- `charts`: curves and box plots; `curve` label efficiency, `calibration` reliability diagrams.
- `planes`: three slices of a scan with contours, which `pictures` draws.
- `markup`: the parts of every page.

It reads only those, never torch: a report can be drawn again anywhere, long after the run.
Statistics are computed in `contextseg.evaluation`, and only drawn here.
"""

from __future__ import annotations

from contextseg.reports.comparison import write_comparison
from contextseg.reports.numbers import summary_markdown
from contextseg.reports.page import write_report
from contextseg.reports.pictures import demo_picture, overlay

__all__ = [
    "demo_picture",
    "overlay",
    "summary_markdown",
    "write_comparison",
    "write_report",
]
