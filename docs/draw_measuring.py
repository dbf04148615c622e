"""Draw docs/measuring/*.svg: toy masks, and beneath each its metrics by `contextseg.metrics`.

    python docs/draw_measuring.py

It is run by hand; tests/test_measuring_pictures.py compares the numbers with the library.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist

from contextseg.metrics import calibration_error, evaluate_case, reliability

FOLDER = Path(__file__).parent / "measuring"

# Blue and orange of Okabe and Ito; that the prediction's line is dashed tells them apart without
# colour too.
REF, PRED, INK, PAPER, GRID = "#0072B2", "#D55E00", "#222222", "#FFFFFF", "#E3E6E9"
BOTH, ONLY_PRED, ONLY_REF, BAND = "#C9CED3", "#F7CDB0", "#B5D9EE", "#F3E9A9"
ARROW = {
    "arrowstyle": "<|-|>",
    "mutation_scale": 6,
    "color": INK,
    "lw": 1.2,
    "shrinkA": 0,
    "shrinkB": 0,
}
LABELS = {
    "tp": "TP {}",
    "fp": "FP {}",
    "fn": "FN {}",
    "dsc": "DSC {:.2f}",
    "iou": "IoU {:.2f}",
    "sen": "SEN {:.2f}",
    "prc": "PRC {:.2f}",
    "hd_mm": "HD {:.2f} mm",
    "hd95_mm": "HD95 {:.2f} mm",
    "assd_mm": "ASSD {:.2f} mm",
    "nsd": "NSD {:.2f}",
    "n_ref_lesions": "{} lesions in the reference",
    "n_detected": "{} detected",
    "n_fp_lesions": "{} false positive",
    "fp_near": "{} voxels near",
    "fp_far": "{} voxels far",
    "ece": "ECE {:.2f}",
}


@dataclass(frozen=True)
class Panel:
    """Two masks, bool (H, W), how they are measured, which columns stand beneath, and what is drawn
    over them.

    `shows` holds lines of column names of `evaluate_case`; `over` draws on the axes.
    """

    title: str
    pred: np.ndarray
    ref: np.ndarray
    shows: tuple[tuple[str, ...], ...]
    over: Callable[[Axes, Panel], None] | None = None
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    tolerance_mm: float = 2.0
    convention: str = "default"
    near_mm: float | None = None

    def row(self) -> dict[str, Any]:
        """What the library says."""
        pred, ref = self.pred.astype(np.uint8), self.ref.astype(np.uint8)
        rule = {
            "tolerance_mm": self.tolerance_mm,
            "convention": self.convention,
            "near_mm": self.near_mm,
        }
        return evaluate_case(pred, ref, self.spacing_mm, {"x": [1]}, lesions=True, **rule)[0]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Reliability:
    """Voxels by confidence: (confidence, number of voxels, number of right ones)."""

    title: str
    groups: tuple[tuple[float, int, int], ...]
    shows: tuple[tuple[str, ...], ...] = (("ece",),)

    def row(self) -> dict[str, Any]:
        """What the library says."""
        sure = np.concatenate([np.full(n, round(255 * p), np.uint8) for p, n, _ in self.groups])
        right = np.concatenate([np.arange(n) < correct for _, n, correct in self.groups])
        bins = reliability(sure, right)
        return {
            "ece": calibration_error(
                *([b[name] for b in bins] for name in ("n", "confidence", "accuracy"))
            )
        }


# --- geometry: positions are (y, x) in mm; voxel (h, w) has its centre at (h, w) times the spacing


def cells(mask: np.ndarray, spacing_mm: tuple[float, float]) -> np.ndarray:
    """The surface elements of a mask: the centres of the cells, between 2 x 2 voxels, that are
    partly inside.
    """
    padded = np.pad(mask, 1).astype(int)
    inside = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    return (np.argwhere((inside > 0) & (inside < 4)) - 0.5) * spacing_mm


def rim(mask: np.ndarray) -> np.ndarray:
    """Surface voxels: those with a face on the background."""
    return mask & ~binary_erosion(mask)


def steps(mask: np.ndarray, spacing_mm: tuple[float, float]) -> list[np.ndarray]:
    """The edges of voxels between inside and outside, those in one line joined."""
    out = []
    for axis in (0, 1):
        padded = np.pad(mask if axis == 0 else mask.T, 1).astype(int)
        for line, row in enumerate(np.diff(padded, axis=0)):
            turns = np.flatnonzero(np.diff(np.abs(row), prepend=0, append=0))
            for start, stop in zip(turns[::2], turns[1::2]):
                ends = np.array([[line - 0.5, start - 1.5], [line - 0.5, stop - 1.5]])
                out.append((ends if axis == 0 else ends[:, ::-1]) * spacing_mm)
    return out


# --- what is drawn over the masks -----------------------------------------------------------------


def signs(axes: Axes, panel: Panel) -> None:
    """Plus on false positives, minus on false negatives."""
    for mask, sign in ((panel.pred & ~panel.ref, "+"), (panel.ref & ~panel.pred, "_")):
        _dots(axes, np.argwhere(mask) * panel.spacing_mm, sign, INK, 6)


def farthest(axes: Axes, panel: Panel) -> None:
    """The longest of the distances from an element of one surface to the other surface."""
    on_pred, on_ref = cells(panel.pred, panel.spacing_mm), cells(panel.ref, panel.spacing_mm)
    apart = cdist(on_pred, on_ref)
    a, b = (np.argmax(apart.min(axis)) for axis in (1, 0))
    start, end = (on_pred[a], on_ref[apart[a].argmin()])
    if apart[:, b].min() > apart[a].min():
        start, end = on_ref[b], on_pred[apart[:, b].argmin()]
    assert np.isclose(np.linalg.norm(start - end), panel.row()["hd_mm"])
    axes.annotate("", tuple(end[::-1]), tuple(start[::-1]), arrowprops=ARROW)


def spokes(axes: Axes, panel: Panel) -> None:
    """From each element of either surface to the nearest of the other."""
    on_pred, on_ref = cells(panel.pred, panel.spacing_mm), cells(panel.ref, panel.spacing_mm)
    apart = cdist(on_pred, on_ref)
    pairs = [(p, on_ref[i]) for p, i in zip(on_pred, apart.argmin(1))]
    pairs += [(r, on_pred[i]) for r, i in zip(on_ref, apart.argmin(0))]
    _lines(axes, [np.array(pair) for pair in pairs if not np.allclose(*pair)], INK, 0.8, "-")


def band(axes: Axes, panel: Panel) -> None:
    """The reference's tolerance band; a dot on each element that lies within tolerance, a cross on
    each beyond.
    """
    on_pred, on_ref = cells(panel.pred, panel.spacing_mm), cells(panel.ref, panel.spacing_mm)
    _halo(axes, panel, on_ref, panel.tolerance_mm)
    apart = cdist(on_pred, on_ref)
    for at, distance, colour in ((on_ref, apart.min(0), REF), (on_pred, apart.min(1), PRED)):
        within = distance <= panel.tolerance_mm * (1 + 1e-6)
        _dots(axes, at[within], "o", colour, 2.6)
        _dots(axes, at[~within], "x", colour, 5)


def near(axes: Axes, panel: Panel) -> None:
    """What counts as near, and a cross on each false positive that is not."""
    assert panel.near_mm is not None
    _halo(axes, panel, np.argwhere(panel.ref) * panel.spacing_mm, panel.near_mm)
    at = np.argwhere(panel.pred & ~panel.ref) * panel.spacing_mm
    far = cdist(at, np.argwhere(panel.ref) * panel.spacing_mm).min(1) > panel.near_mm * (1 + 1e-6)
    _dots(axes, at[far], "x", INK, 5)
    _dots(axes, at[~far], "o", INK, 3)


def diagonal(axes: Axes, panel: Panel) -> None:
    """The image's diagonal, which stands for a distance that does not exist."""
    low, high = (
        np.array([-0.5, -0.5]) * panel.spacing_mm,
        (np.array(panel.ref.shape) - 0.5) * panel.spacing_mm,
    )
    axes.annotate("", tuple(high[::-1]), tuple(low[::-1]), arrowprops=ARROW)


def elements(axes: Axes, panel: Panel) -> None:
    """A dot on each surface element."""
    for mask, colour in ((panel.ref, REF), (panel.pred, PRED)):
        _dots(axes, cells(mask, panel.spacing_mm), "o", colour, 2.4)


def voxels(axes: Axes, panel: Panel) -> None:
    """A square on each surface voxel."""
    for mask, colour, size in ((panel.ref, REF, 5.0), (panel.pred, PRED, 2.6)):
        _dots(axes, np.argwhere(rim(mask)) * panel.spacing_mm, "s", colour, size)


def _halo(axes: Axes, panel: Panel, around: np.ndarray, mm: float) -> None:
    """All that lies within `mm` of some points."""
    h, w = panel.ref.shape
    y, x = np.arange(-0.5, h - 0.499, 0.2), np.arange(-0.5, w - 0.499, 0.2)
    grid = np.stack(
        np.meshgrid(y * panel.spacing_mm[0], x * panel.spacing_mm[1], indexing="ij"), -1
    )
    distance = cdist(grid.reshape(-1, 2), around).min(1).reshape(grid.shape[:2])
    axes.contourf(
        grid[0, :, 1], grid[:, 0, 0], distance, [-1, mm], colors=[BAND], alpha=0.75, zorder=1.5
    )


def _dots(axes: Axes, at: np.ndarray, marker: str, colour: str, size: float) -> None:
    if len(at):
        axes.plot(
            at[:, 1],
            at[:, 0],
            marker,
            color=colour,
            ms=size,
            mew=1.3 if marker in "x+_" else 0,
            zorder=5,
        )


def _lines(axes: Axes, lines: list[np.ndarray], colour: str, width: float, style: Any) -> None:
    path = Outline.make_compound_path(*(Outline(line[:, ::-1]) for line in lines))
    axes.add_patch(
        PathPatch(
            path,
            fill=False,
            edgecolor=colour,
            lw=width,
            ls=style,
            zorder=2 if colour == GRID else 3,
        )
    )


# --- the cases ------------------------------------------------------------------------------------


def box(shape: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of rectangles (first and last row, first and last column; the last not included)."""
    mask = np.zeros(shape, bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


def disc(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    """A mask of the voxels whose centre is closer to (y, x) than `radius`, all in voxels."""
    h, w = np.mgrid[: shape[0], : shape[1]]
    return (h - y) ** 2 + (w - x) ** 2 < radius**2


def reliabilities() -> list[Reliability]:
    """The panels of the picture "calibration"."""
    overconfident = ((0.6, 10, 5), (0.8, 10, 6), (1.0, 10, 7))
    return [
        Reliability("calibrated", ((0.6, 10, 6), (0.8, 10, 8), (1.0, 10, 10))),
        Reliability("overconfident", overconfident),
        Reliability("and 270 easy voxels", (*overconfident[:2], (1.0, 280, 277))),
    ]


def pictures() -> dict[str, list[Panel]]:
    """The panels of each picture of masks, by the name of its file."""
    a, b, c = (12, 12), (24, 24), (16, 16)
    square, large = box(a, (3, 9, 3, 9)), box(b, (6, 22, 2, 18))
    overlap = (("tp", "fp", "fn"), ("dsc", "iou"), ("sen", "prc"))
    core = box(c, (4, 12, 4, 12))
    cross = box(c, (1, 15, 4, 12), (4, 12, 1, 15))
    stairs = core | box(c, (5, 11, 12, 13), (6, 10, 13, 14), (7, 9, 14, 15))
    flat = box((12, 8), (3, 8, 1, 6))
    apart = (("hd95_mm",), ("dsc",))
    spots = box((14, 14), (1, 4, 1, 4), (2, 4, 9, 12), (9, 12, 2, 5), (12, 13, 5, 6))
    predicted = box((14, 14), (2, 5, 2, 5), (10, 13, 2, 4), (9, 12, 9, 12))
    one, spill = (
        disc((16, 24), 8, 7, 4.6),
        box((16, 24), (5, 9, 10, 13), (2, 4, 19, 22), (11, 13, 18, 20)),
    )
    slant = np.tri(18, dtype=bool)[:, ::-1] & box((18, 18), (2, 16, 2, 16))
    spiked = np.roll(slant, -1, axis=1) | box((18, 18), (2, 4, 9, 15))
    none, seen = box(a), (("dsc",), ("nsd",), ("hd95_mm",))
    conventions = (("hd95_mm",), ("assd_mm",), ("nsd",))
    return {
        "overlap": [
            Panel("shifted", box(a, (4, 10, 4, 10)), square, overlap, signs),
            Panel("too large", box(a, (2, 10, 2, 10)), square, overlap, signs),
            Panel("too small", box(a, (4, 8, 4, 8)), square, overlap, signs),
        ],
        "hausdorff": [
            Panel(
                "one stray voxel",
                large | box(b, (1, 2, 21, 22)),
                large,
                (("hd_mm",), ("hd95_mm",)),
                farthest,
            ),
            Panel(
                "two",
                large | box(b, (1, 2, 19, 20), (1, 2, 21, 22)),
                large,
                (("hd_mm",), ("hd95_mm",)),
                farthest,
            ),
        ],
        "assd": [
            Panel(
                "a bump", core | box(c, (7, 9, 12, 15)), core, (("hd_mm",), ("assd_mm",)), spokes
            ),
            Panel("on every side", core | cross, core, (("hd_mm",), ("assd_mm",)), spokes),
        ],
        "nsd": [
            Panel(f"tolerance {mm:.0f} mm", stairs, core, (("nsd",),), band, tolerance_mm=mm)
            for mm in (1.0, 2.0)
        ],
        "spacing": [
            Panel("along the 1 mm axis", np.roll(flat, 1, 0), flat, apart, farthest, (1.0, 5.0)),
            Panel("along the 5 mm axis", np.roll(flat, 1, 1), flat, apart, farthest, (1.0, 5.0)),
        ],
        "empty": [
            Panel("both", box(a, (4, 10, 4, 10)), square, seen),
            Panel("missed", none, square, seen, diagonal),
            Panel("spurious", square, none, seen, diagonal),
            Panel("absent", none, none, seen),
        ],
        "lesions": [
            Panel("", predicted, spots, (("n_ref_lesions",), ("n_detected", "n_fp_lesions")))
        ],
        "near-far": [
            Panel(
                "near: within 3 mm", one | spill, one, (("fp_near", "fp_far"),), near, near_mm=3.0
            )
        ],
        "conventions": [
            Panel("default", spiked, slant, conventions, elements),
            Panel("monai", spiked, slant, conventions, voxels, convention="monai"),
            Panel("medpy", spiked, slant, conventions, voxels, convention="medpy"),
        ],
    }


# --- drawing --------------------------------------------------------------------------------------


def written(panel: Panel | Reliability, column: str) -> str:
    """A column of the panel's row, as it stands beneath."""
    value = panel.row()[column]
    words = LABELS[column]
    return words.split(" ")[0] + " undefined" if isnan(value) else words.format(value)


def draw(panels: list[Panel], path: Path) -> None:
    """Write one picture.

    Its numbers are texts with the id `PANEL-COLUMN`, so that the test can read them.
    """
    size = np.array([np.array(p.ref.shape) * p.spacing_mm for p in panels]).max(0)
    wide = {1: 3.6, 2: 3.6, 3: 2.7, 4: 2.1}[len(panels)]
    tall, below = wide * size[0] / size[1], 0.2 * len(panels[0].shows) + 0.14
    width, height = (wide + 0.2) * len(panels) + 0.2, tall + below + 0.72
    figure = Figure(figsize=(max(width, 6.4), height), facecolor=PAPER)
    left = (figure.get_figwidth() - width) / 2 + 0.2
    for k, panel in enumerate(panels):
        place = ((left + k * (wide + 0.2)) / figure.get_figwidth(), (0.4 + below) / height)
        axes = figure.add_axes((*place, wide / figure.get_figwidth(), tall / height))
        _masks(axes, panel)
        _words(axes, k, panel, 14)
    _save(figure, _key(), path)


def draw_reliability(panels: list[Reliability], path: Path) -> None:
    """Write the picture of bins: the share that is right at each confidence."""
    figure = Figure(figsize=(9.0, 3.5), facecolor=PAPER)
    for k, panel in enumerate(panels):
        axes = figure.add_axes((0.06 + k * 0.32, 0.3, 0.27, 0.6))
        for p, n, right in panel.groups:
            axes.bar(p, right / n, 0.14, color=REF, alpha=0.85, zorder=2)
            axes.bar(
                p, p - right / n, 0.14, right / n, fc="none", ec=PRED, hatch="/////", lw=1, zorder=3
            )
            axes.annotate(
                f"{right}\nof {n}", (p, 0.05), ha="center", color=PAPER, fontsize=9, zorder=4
            )
        axes.plot([0, 1.08], [0, 1.08], color=INK, ls="--", lw=1, zorder=5)
        axes.set(xlim=(0.45, 1.1), ylim=(0, 1.08), xticks=[0.6, 0.8, 1.0], yticks=[0, 0.5, 1])
        axes.tick_params(labelsize=8, colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("confidence", fontsize=9, color=INK)
        _words(axes, k, panel, 42)
    key = [
        Patch(color=REF, alpha=0.85, label="accuracy"),
        Patch(fc="none", ec=PRED, hatch="/////", label="what it lacks"),
        Line2D([], [], color=INK, lw=1, ls="--", label="calibrated"),
    ]
    _save(figure, key, path)


def _words(axes: Axes, k: int, panel: Panel | Reliability, below: float) -> None:
    """Title, and the numbers of panel `k`, `below` points beneath it."""
    axes.set_title(panel.title, fontsize=10, color=INK, pad=5)
    for n, line in enumerate(panel.shows):
        for i, column in enumerate(line):
            at, drop = ((i + 0.5) / len(line), 0), (0, -below - 14.4 * n)
            note = axes.annotate(
                written(panel, column), at, drop, "axes fraction", "offset points", ha="center"
            )
            note.set(gid=f"{k}-{column}", fontsize=9.5, color=INK)


def _save(figure: Figure, key: list[Any], path: Path) -> None:
    figure.legend(
        handles=key, loc="lower center", ncols=5, fontsize=8, frameon=False, labelcolor=INK
    )
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": path.stem}
    style["font.sans-serif"] = ["DejaVu Sans", "Verdana", "Arial"]
    with matplotlib.rc_context(style):
        figure.savefig(
            path, format="svg", metadata={"Date": None, "Creator": None}, facecolor=PAPER
        )
    text = re.sub(
        r"(\.\d\d)\d+", r"\1", path.read_text(encoding="utf-8")
    )  # a hundredth of a point is enough
    path.write_text("".join(line.rstrip() + "\n" for line in text.splitlines()), encoding="utf-8")


def _masks(axes: Axes, panel: Panel) -> None:
    """The voxel grid, who claims which voxel, and both outlines; distances are taken from the
    smooth ones.
    """
    (h, w), (dy, dx) = panel.ref.shape, panel.spacing_mm
    for mask, colour in (
        (panel.pred & panel.ref, BOTH),
        (panel.pred & ~panel.ref, ONLY_PRED),
        (panel.ref & ~panel.pred, ONLY_REF),
    ):
        turns = np.argwhere(np.diff(mask.astype(int), axis=1, prepend=0, append=0)).reshape(
            -1, 2, 2
        )
        strips = [
            np.array([[y, a], [y, b], [y + 1, b], [y + 1, a]]) - 0.5 for (y, a), (_, b) in turns
        ]
        if strips:
            path = Outline.make_compound_path(
                *(Outline((strip * (dy, dx))[:, ::-1]) for strip in strips)
            )
            axes.add_patch(PathPatch(path, facecolor=colour, lw=0, zorder=1, antialiased=False))
    rows = [np.array([[y, 0], [y, w]]) for y in range(h + 1)]
    columns = [np.array([[0, x], [h, x]]) for x in range(w + 1)]
    _lines(axes, [(line - 0.5) * (dy, dx) for line in rows + columns], GRID, 0.5, "-")
    for mask, colour, style in ((panel.ref, REF, "-"), (panel.pred, PRED, (0, (3, 1.5)))):
        if not mask.any():
            continue
        if panel.over in (farthest, spokes, band, elements):  # marching squares
            x, y = (np.arange(n + 2) * d - d for n, d in ((w, dx), (h, dy)))
            axes.contour(
                x,
                y,
                np.pad(mask, 1),
                [0.5],
                colors=colour,
                linewidths=1.7,
                linestyles=[style],
                zorder=3,
            )
        else:
            _lines(axes, steps(mask, panel.spacing_mm), colour, 1.7, style)
    if panel.over:
        panel.over(axes, panel)
    axes.set(xlim=(-0.6 * dx, (w - 0.4) * dx), ylim=((h - 0.4) * dy, -0.6 * dy), aspect="equal")
    axes.set_axis_off()


def _key() -> list[Any]:
    return [
        Line2D([], [], color=REF, lw=1.7, label="reference"),
        Line2D([], [], color=PRED, lw=1.7, ls=(0, (3, 1.5)), label="prediction"),
        Patch(color=BOTH, label="both"),
        Patch(color=ONLY_PRED, label="prediction only"),
        Patch(color=ONLY_REF, label="reference only"),
    ]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, panels in pictures().items():
        draw(panels, FOLDER / f"{name}.svg")
    draw_reliability(reliabilities(), FOLDER / "calibration.svg")
