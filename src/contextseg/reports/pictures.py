"""Planes drawn: as inline SVG for the page, and by matplotlib for PNG files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from contextseg.disk import replacing
from contextseg.errors import ContextsegError
from contextseg.reports.charts import plain_text
from contextseg.reports.numbers import extremes, number, ranked, tidy
from contextseg.reports.planes import NEAR_MM, Lines, Plane, Regions, planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEY = (
    '<p class="key"><span class="reference">reference</span>'
    '<span class="prediction">prediction</span>'
    '<span class="false">false positive, near</span>'
    f'<span class="far">far (over {NEAR_MM:g} mm off)</span>'
    '<span class="missed">missed</span>'
    '<label><input type="checkbox" id="marks" checked> show contours</label></p>'
)
VIEW = (
    f"Near: within {NEAR_MM:g} mm of the reference of the same class, also across slices; the "
    "others are far. The patient’s right (R) is at the left of the axial and coronal planes, the "
    "front (A) at the left of the sagittal. Grey values: soft tissue, −160 to 240 HU, in CT; else "
    "the 1st to 99th percentile."
)
REFERENCE = "#45C4FF"  # blue and orange are told apart by every kind of colour vision
PREDICTION = "#FFA826"
FAR_COLOUR = (
    "#FF4B33"  # outlined in white besides, so that it is told from the near ones without colour
)
DASHES = (0, (2.6, 1.6))  # dashed over solid: where both run together, both are seen
RULERS_MM = (100, 50, 20, 10, 5, 2, 1)


def ruler_mm(field_mm: float) -> int:
    """The longest round length that fits a quarter of the field.

    Args:
        field_mm: Side of the field of view.

    Returns:
        The length in mm, at least 1.

    Example:
        >>> ruler_mm(120), ruler_mm(3)
        (20, 1)
    """
    return next((mm for mm in RULERS_MM if mm <= field_mm / 4), 1)


# --- SVG ------------------------------------------------------------------------------------------


def svg(plane: Plane, label: str, grey: str = "", again: bool = False) -> str:
    """One plane as an inline SVG element, whose contours can be switched off.

    Args:
        plane: The plane.
        label: What it shows, for those who cannot see it.
        grey: Id of its grey image; "" for none.
        again: Whether another element of the page has that grey image already.

    Returns:
        The element.
    """
    size = f"{plane.field_mm:.2f}"
    x, y, width, height = (f"{v:.2f}" for v in plane.box_mm)
    em = f"--em:{plane.field_mm * 0.05:.2f}px"
    ident = f' id="{grey}"' if grey else ""
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    parts = [
        f'<svg viewBox="0 0 {size} {size}" style="{em}" role="img" aria-label="{escape(label)}">',
        f'<use href="#{grey}"/>'
        if again
        else f'<image{ident} {place} preserveAspectRatio="none" href="{_png(plane.grey)}"/>',
        '<g class="marks">',
        _path("missed", plane.missed),
        _path("false", plane.false),
        _path("far", plane.far),
        *(
            _path("reference", lines, f"{name}, reference")
            for name, lines in plane.reference.items()
        ),
        *(
            _path("prediction", lines, f"{name}, prediction")
            for name, lines in plane.prediction.items()
        ),
        "</g>",
        _svg_letters(plane),
        "</svg>",
    ]
    return "".join(parts)


def _path(kind: str, lines: Lines, title: str = "") -> str:
    if not lines:
        return ""
    d = "".join("M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in line[:-1]) + "Z" for line in lines)
    return (
        f'<path class="{kind}" d="{d}">{f"<title>{escape(title)}</title>" if title else ""}</path>'
    )


def _svg_letters(plane: Plane) -> str:
    """The four orientation letters at the edges, and a ruler at the lower right."""
    size, em = plane.field_mm, plane.field_mm * 0.05
    places = [(em * 0.4, size / 2, "start"), (size - em * 0.4, size / 2, "end")]
    places += [(size / 2, em * 0.8, "middle"), (size / 2, size - em * 0.75, "middle")]
    texts = [
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}">{letter}</text>'
        for (x, y, anchor), letter in zip(places, plane.letters)
    ]
    length, right, low = ruler_mm(size), size - em * 0.5, size - em * 0.5
    texts.append(f'<path class="ruler" d="M{right - length:.2f},{low:.2f}H{right:.2f}"/>')
    beside = f'x="{right:.2f}" y="{low - em * 0.7:.2f}"'
    texts.append(f'<text {beside} text-anchor="end" font-size="0.8em">{length} mm</text>')
    return f'<g class="letters">{"".join(texts)}</g>'


def _png(grey: np.ndarray) -> str:
    """A grey picture (H, W) uint8 as a data URI."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(grey).save(file, "png", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()


# --- matplotlib -----------------------------------------------------------------------------------


def annotated(regions: Regions, rows: pd.DataFrame) -> Regions:
    """The regions that are annotated in a case: those with a row in its part of the table.

    Args:
        regions: Class -> its label values.
        rows: The rows of the case.

    Returns:
        Those regions, and "ignore"; all where the case has no rows.
    """
    if rows.empty:
        return regions
    known = {*rows["class"], "ignore"}
    return {name: values for name, values in regions.items() if name in known}


def overlay(case: Mapping[str, Any], regions: Regions, focus: str | None = None) -> Figure:
    """One case in three planes with the contours of reference and prediction, and shaded errors.

    Radiological convention: the patient's right is at the left, front and head are at the top.

    Args:
        case: "image" (a path, or one for each channel), and perhaps "reference" and "prediction"
            (label maps with the file's values).
        regions: Class -> its label values.
        focus: The class through whose centre the planes go. None: the largest.

    Returns:
        A matplotlib figure.

    Raises:
        ContextsegError: A file cannot be read, or the grids differ.
    """
    drawn = planes(case, regions, focus)
    figure = _figure(len(drawn), 1)
    figure.suptitle(str(case.get("case", "")), fontsize=11)
    for axes, plane in zip(figure.axes, drawn):
        axes.set_title(plane.name, fontsize=9)
        _draw(axes, plane)
    return figure


def demo_picture(
    path: str | Path, table: pd.DataFrame, cases: Sequence[Mapping[str, Any]], regions: Regions
) -> None:
    """Write a PNG of the best, median and worst case by mean Dice, in three planes.

    A column each, fewer of fewer cases. Written atomically.

    Args:
        path: The file.
        table: One row for each case and class, as of `evaluation.evaluate`.
        cases: Files of each case: "case", "image", "reference" and "prediction".
        regions: Class -> its label values.

    Raises:
        ContextsegError: No case has a score, or a file of these cases cannot be read.
    """
    tidied = tidy(table)
    order = ranked(tidied)
    files = {str(case["case"]): case for case in cases}
    chosen = [(role, name) for role, name in reversed(extremes(order).items()) if name in files]
    if not chosen:
        raise ContextsegError(
            path,
            "no case has a score, so there is nothing to show",
            "evaluate the predictions first",
        )
    columns = [
        planes(files[name], annotated(regions, tidied[tidied["case"] == name]))
        for _, name in chosen
    ]
    figure = _figure(len(columns), max(map(len, columns)))
    grid = np.array(figure.axes).reshape(-1, len(columns))
    for axes in figure.axes:
        axes.set_axis_off()
    for column, ((role, name), drawn) in enumerate(zip(chosen, columns)):
        heading = (
            f"{role}: Dice {number(float(order[name]), 2)}"
            if len(order) > 1
            else f"Dice {order[name]:.2f}"
        )
        grid[0, column].set_title(f"{heading}\n{name}", fontsize=9)
        for axes, plane in zip(grid[:, column], drawn):
            axes.set_axis_on()
            _draw(axes, plane)
    _save(figure, path)


def _figure(columns: int, rows: int) -> Figure:
    """Square axes, titles above and a legend below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    side, above, below = 2.6, 0.5, 0.5 if columns == 2 else 0.35
    figure = Figure(figsize=(side * columns, side * rows + above + below), dpi=110)
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, gridspec_kw={"wspace": 0.03, "hspace": 0.03})
    height = side * rows + above + below
    figure.subplots_adjust(left=0.01, right=0.99, bottom=below / height, top=1 - above / height)
    keys = [
        Line2D([], [], color=REFERENCE, linewidth=2, label="reference"),
        Line2D([], [], color=PREDICTION, linewidth=2, linestyle=DASHES, label="prediction"),
        Patch(facecolor=PREDICTION, alpha=0.5, label="false positive, near"),
        Patch(
            facecolor=FAR_COLOUR,
            edgecolor="black",
            linewidth=0.6,
            label=f"far (> {NEAR_MM:g} mm off)",
        ),
        Patch(facecolor=REFERENCE, alpha=0.5, label="missed"),
    ]
    figure.legend(
        handles=keys[: 5 if columns > 1 else 2],
        loc="lower center",
        ncols=3 if columns == 2 else 5,
        fontsize=8,
        frameon=False,
        handlelength=1.7,
        columnspacing=1.2,
    )
    return figure


def _draw(axes: Axes, plane: Plane) -> None:
    from matplotlib.patheffects import Normal, Stroke

    x, y, width, height = plane.box_mm
    size = plane.field_mm
    axes.set_facecolor("black")
    axes.imshow(
        plane.grey,
        "gray",
        vmin=0,
        vmax=255,
        extent=(x, x + width, y + height, y),
        interpolation="bilinear",
    )
    axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    _fill(axes, plane.missed, REFERENCE)
    _fill(axes, plane.false, PREDICTION)
    _fill(axes, plane.far, FAR_COLOUR, 0.75, "white")
    _outline(axes, plane.reference.values(), REFERENCE)
    _outline(axes, plane.prediction.values(), PREDICTION, DASHES)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
    anchors = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for (u, v), (across, up), letter in zip(places, anchors, plane.letters):
        letters = axes.text(
            u, v, letter, transform=axes.transAxes, ha=across, va=up, color="white", fontsize=8
        )
        letters.set_path_effects([Stroke(linewidth=2, foreground="black"), Normal()])


def _outline(axes: Axes, lines: Iterable[Lines], color: str, style: Any = "solid") -> None:
    from matplotlib.collections import LineCollection

    every = [line for part in lines for line in part]
    axes.add_collection(LineCollection(every, colors=color, linewidths=1.4, linestyles=[style]))


def _fill(axes: Axes, lines: Lines, color: str, alpha: float = 0.4, edge: str = "none") -> None:
    """Outlines as one filled shape; the outline of a hole runs the other way and stays empty."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Shape

    if lines:
        shape = Shape.make_compound_path(*(Shape(line, closed=True) for line in lines))
        axes.add_patch(PathPatch(shape, facecolor=(color, alpha), edgecolor=edge, linewidth=0.6))


def _save(figure: Figure, path: str | Path) -> None:
    """As PNG without transparency, date or version: the same picture gives the same bytes."""
    from PIL import Image

    file = BytesIO()
    plain_text(figure)
    figure.savefig(file, format="png", metadata={"Software": None})
    with replacing(path) as temporary:
        Image.open(file).convert("RGB").save(temporary, "png", optimize=True)
