"""The pictures of a diagnosis: logits, overlap, false positives by distance, M and the contexts.

They are those of the CoLab paper (Li et al., IEEE TMI 2023, Figs. 3, 4, 7 and 8, and the
supplement's histograms), drawn from the facts and arrays that `contextseg diagnose` saves:
`studies.diagnose.diagnosis` and `studies.diagnose.arrays` name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.metrics import DSC, METRICS, PRC, SEN
from contextseg.reports.charts import BLUE, INK, ORANGE, PALE, STYLES, chart
from contextseg.reports.pictures import svg
from contextseg.reports.planes import NEAR_MM, PLANES, Lines, Plane, outlines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DiagnosisArrays = Mapping[str, np.ndarray]
DiagnosisFacts = Mapping[str, Any]
DIAGNOSIS_SPLITS = {
    "training": "Training cases",
    "validation": "Validation cases",
    "test": "Test cases",
    "chosen": "Chosen cases",
}
TISSUE_TITLES = {
    "roi": "ROI",
    "near": f"Background within {NEAR_MM:g} mm",
    "far": "Background beyond",
}
CONTEXTS = (
    "#009E73",
    "#CC79A7",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#E69F00",
    "#999999",
    "#56B4E9",
)  # Okabe and Ito's
BARS = (("", PALE), ("////", "#a9cfe6"))  # hatch and colour of the first and the second split
SOFT = 6  # with more contexts than this, their probabilities are not shown one by one
TINT = 0.55
_BINS = 80  # in a chart, of the finer ones that were counted


def shown_splits(facts: DiagnosisFacts) -> dict[str, str]:
    """The splits of a diagnosis, training cases first.

    Args:
        facts: The facts of a diagnosis.

    Returns:
        Their names and titles.
    """
    return {name: DIAGNOSIS_SPLITS[name] for name in facts["splits"]}


# --- logits ---------------------------------------------------------------------------------------


def logit_charts(facts: DiagnosisFacts, arrays: DiagnosisArrays) -> dict[str, bytes]:
    """z_background against z_roi of all voxels (Fig. 3), and the margins of each tissue.

    Args:
        facts: The facts of a diagnosis.
        arrays: Its arrays.

    Returns:
        A chart for each split, and one of the margins.
    """
    rows = np.concatenate(
        [
            arrays[f"{split}/{tissue}/pairs"][:, :2]
            for split in facts["splits"]
            for tissue in TISSUE_TITLES
        ]
    )
    grids = [_edges(rows[:, axis]) for axis in (0, 1)]
    charts = {}
    for split, title in shown_splits(facts).items():
        draw = partial(_logits, facts, arrays, split, title, grids)
        charts[f"Logits of {title.lower()}"] = chart(draw, 4.6, (1, 1))
    charts["Margins"] = chart(partial(_margins, facts, arrays), 4.6, (1, 1, 1))
    return charts


def _edges(places: np.ndarray) -> np.ndarray:
    """The edges of some 80 equal bins at most that hold those places; 0 is one, or outside."""
    low, high = (int(places.min()), int(places.max())) if len(places) else (-1, 0)
    step = (high - low) // _BINS + 1
    return np.arange(low // step, high // step + 2) * step


def _logits(
    facts: DiagnosisFacts,
    arrays: DiagnosisArrays,
    split: str,
    title: str,
    grids: Sequence[np.ndarray],
    *rows: Axes,
) -> None:
    """Background above, ROI below: where their voxels lie, darker for more (logarithmic)."""
    deployed = facts.get("axes", "deployed") == "deployed"
    tissues = facts[split]["tissues"]
    x, y = grids
    left, right, low, high = (float(edge * facts["bin"]) for edge in (x[0], x[-1], y[0], y[-1]))
    for axes, name, names, colour in (
        (rows[0], "background", ("near", "far"), BLUE),
        (rows[1], "ROI", ("roi",), ORANGE),
    ):
        i, j, n = np.concatenate([arrays[f"{split}/{tissue}/pairs"] for tissue in names]).T
        counts = np.histogram2d(j, i, (y, x), weights=n)[0]
        paint = np.zeros((*counts.shape, 4))
        paint[..., :3] = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        paint[counts > 0, 3] = 0.2 + 0.8 * np.log(counts[counts > 0]) / max(
            np.log(counts.max(initial=2)), 1
        )
        axes.imshow(
            paint,
            origin="lower",
            extent=(left, right, low, high),
            aspect="auto",
            interpolation="nearest",
            zorder=2,
        )
        axes.axline((0, 0), slope=1, color=INK, linestyle="--", linewidth=1.0, zorder=3)
        axes.set(
            title=f"{title}: {name}",
            xlim=(left, right),
            ylim=(low, high),
            ylabel="logit of the ROI" if deployed else "largest logit of the ROI, z₁",
        )
    false = tissues["background"]["called"]
    missed = tissues["roi"]["n"] - tissues["roi"]["called"]
    for axes, words in zip(
        rows, (f"{grouped(false)} false positives", f"{grouped(missed)} missed")
    ):
        axes.text(
            0.97, 0.95, words, transform=axes.transAxes, ha="right", va="top", fontsize=8, zorder=4
        )
    rows[1].set_xlabel("logit of the background" if deployed else "largest of the others, zᵢ")


def _margins(facts: DiagnosisFacts, arrays: DiagnosisArrays, *rows: Axes) -> None:
    """Shares of the voxels of each tissue by margin, logarithmic, training dashed."""
    known = {(s, t): arrays[f"{s}/{t}/margins"] for s in facts["splits"] for t in TISSUE_TITLES}
    edges = _edges(np.concatenate([values[:, 0] for values in known.values()]))
    for axes, (tissue, title) in zip(rows, TISSUE_TITLES.items()):
        for split, colour, style in zip(facts["splits"], (BLUE, ORANGE), ("--", "-")):
            places, n = known[split, tissue].T
            counts = np.histogram(places, edges, weights=n)[0] / max(n.sum(), 1)
            if n.sum():
                axes.stairs(
                    counts,
                    edges * facts["bin"],
                    color=colour,
                    linestyle=style,
                    linewidth=1.5,
                    label=split,
                )
        axes.axvline(0, color=INK, linewidth=1.0)
        axes.set(
            title=title, yscale="log", xlim=(edges[0] * facts["bin"], edges[-1] * facts["bin"])
        )
        axes.tick_params(labelbottom=axes is rows[-1])
        axes.minorticks_off()
    rows[1].legend(loc="best", handlelength=2.6)
    rows[1].set_ylabel("share of voxels")
    rows[-1].set_xlabel("margin: above 0 is called ROI")


# --- overlap and false positives ------------------------------------------------------------------


def overlap_chart(facts: DiagnosisFacts) -> bytes:
    """Dice, sensitivity and precision of training beside validation cases (Fig. 4).

    Args:
        facts: The facts of a diagnosis.

    Returns:
        A chart of means, standard deviations and cases.
    """
    return chart(partial(_overlap, facts), 2.9)


def _overlap(facts: DiagnosisFacts, axes: Axes) -> None:
    names = {name: METRICS[name].title for name in (DSC, SEN, PRC)}
    for shift, split, (hatch, colour) in zip((-0.2, 0.2), facts["splits"], BARS):
        for x, column in enumerate(names):
            mean = facts[split][column]["mean"]
            if mean is None:
                continue
            bar = axes.bar(
                x + shift,
                mean,
                0.36,
                color=colour,
                edgecolor=INK,
                linewidth=0.8,
                hatch=hatch,
                zorder=2,
            )
            if x == 0:
                bar.set_label(split)
            points = [row[column] for row in facts[split]["cases"] if row[column] is not None]
            spread = 0.1 * np.sin(2.4 * np.arange(len(points)))
            axes.scatter(
                x + shift + spread, points, 14, ORANGE, linewidths=0.6, edgecolors="white", zorder=4
            )
            if facts[split][column]["sd"] is not None:
                axes.errorbar(
                    x + shift,
                    mean,
                    facts[split][column]["sd"],
                    color=INK,
                    capsize=3,
                    linewidth=1.2,
                    zorder=3,
                )
    axes.set_xticks(range(len(names)), list(names.values()))
    axes.set(title="Overlap with the reference", ylim=(0, 1.32))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(False, axis="x")
    axes.legend(loc="upper right", ncols=2)


def distance_chart(facts: DiagnosisFacts) -> bytes:
    """How far false positives lie from the ROI.

    Args:
        facts: The facts of a diagnosis.

    Returns:
        A chart of their volume in bins of distance, mean over the cases of each split.
    """
    return chart(partial(_distances, facts), 2.9)


def _distances(facts: DiagnosisFacts, axes: Axes) -> None:
    ends = [f"{mm:g}" for mm in facts["edges_mm"]]
    names = [f"{a}–{b}" for a, b in zip(["0", *ends], ends)] + [f"> {ends[-1]}"]
    for shift, split, (hatch, colour) in zip((-0.2, 0.2), facts["splits"], BARS):
        ml = np.array(facts[split]["fp_ml_by_distance"]) / max(len(facts[split]["cases"]), 1)
        axes.bar(
            np.arange(len(ml)) + shift,
            ml,
            0.36,
            color=colour,
            edgecolor=INK,
            linewidth=0.8,
            hatch=hatch,
            label=split,
        )
    near = sum(mm <= facts["near_mm"] for mm in facts["edges_mm"])
    axes.axvline(near - 0.5, color=INK, linestyle="--", linewidth=1.0)
    top = axes.get_ylim()[1] * 1.25 or 1.0
    for x, ha, word in ((near - 0.6, "right", "near"), (near - 0.4, "left", "far")):
        axes.text(x, top * 0.98, word, ha=ha, va="top", fontsize=8)
    axes.set_xticks(np.arange(len(names)), names, rotation=30, ha="right")
    axes.set(title="False positives, ml per case", xlabel="mm from the ROI", ylim=(0, top))
    axes.grid(False, axis="x")
    axes.legend(loc="upper right")


# --- contexts -------------------------------------------------------------------------------------


def intensity_chart(arrays: DiagnosisArrays) -> bytes:
    """The normalised intensities of the background, by context class.

    Args:
        arrays: The arrays of a diagnosis.

    Returns:
        A chart with a histogram of each context.
    """
    return chart(partial(_intensity, arrays["intensity/edges"], arrays["intensity/counts"]), 2.9)


def _intensity(edges: np.ndarray, counts: np.ndarray, axes: Axes) -> None:
    for j, row in enumerate(counts):
        if row.sum() > 0:
            style: Any = {
                "color": colour_of(j),
                "linestyle": STYLES[j % len(STYLES)],
                "linewidth": 1.8,
            }
            axes.stairs(row / row.sum(), edges, label=f"context {j + 1}", **style)
    axes.set(title="Intensity by context class", xlabel="normalised intensity", ylabel="share")
    axes.legend(handlelength=2.6)


def learning_charts(arrays: DiagnosisArrays) -> dict[str, bytes]:
    """A slice, and its likeliest contexts at growing steps of training (Fig. 8).

    Args:
        arrays: The arrays of a diagnosis.

    Returns:
        A picture of the slice and of each step; white where all contexts are equally likely.
    """
    grey, q = arrays["learnt/grey"], arrays["learnt/q"].astype(float) / 255
    t = q.shape[1]
    height_in = min(3.6 * grey.shape[0] / grey.shape[1], 5) + 0.3
    shown = {"Slice": np.repeat(grey[..., None], 3, -1)}
    for step, p in zip(arrays["learnt/steps"].tolist(), q):
        confidence = np.clip((p.max(0) * t - 1) / (t - 1), 0, 1)[..., None]
        colour = confidence * _palette(t)[p.argmax(0)] + (1 - confidence) * 255
        shown[f"Contexts at step {grouped(step)}"] = _tinted(
            grey, colour, np.ones(grey.shape, bool)
        )
    return {title: chart(partial(_painted, title, rgb), height_in) for title, rgb in shown.items()}


def _painted(title: str, rgb: np.ndarray, axes: Axes) -> None:
    axes.imshow(rgb, interpolation="nearest")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _palette(contexts: int) -> np.ndarray:
    return np.array(
        [[int(colour_of(j)[i : i + 2], 16) for i in (1, 3, 5)] for j in range(contexts)]
    )


def colour_of(context: int) -> str:
    """The colour of a context class; colours repeat after eight.

    Args:
        context: Number of the context class, from 0.

    Returns:
        A hexadecimal colour.
    """
    return CONTEXTS[context % len(CONTEXTS)]


def panels(facts: DiagnosisFacts, arrays: DiagnosisArrays) -> dict[str, list[str]]:
    """The planes of the shown case as inline SVG.

    The errors; M (Fig. 7); the likeliest context of each voxel by g and, of few, the probability of
    each; the likeliest by f itself (Fig. 8). Colours lie on the background alone. The reference is
    outlined everywhere.

    Args:
        facts: The facts of a diagnosis.
        arrays: Its arrays.

    Returns:
        What it shows -> its planes.
    """
    picture = facts["picture"]
    letters = {name: edges for name, _, edges in PLANES}
    drawn: dict[str, list[str]] = {}
    for name, pixel_mm in picture["pixel_mm"].items():
        part = {kind: arrays[f"{name}/{kind}"] for kind in _KINDS if f"{name}/{kind}" in arrays}
        for heading, grey in _layers(part).items():
            plane = _plane(name, letters[name], part, pixel_mm, grey, heading == ERRORS)
            label = f"{picture['case']}, {name} plane, {heading}"
            drawn.setdefault(heading, []).append(svg(plane, label))
    return drawn


ERRORS = "Prediction"
PREDICTED = "Context predicted by the network"
_KINDS = ("grey", "label", "called", "false", "near", "q", "predicted")


def _layers(part: DiagnosisArrays) -> dict[str, np.ndarray]:
    """What is painted under the contours: heading -> (H, W) or (H, W, 3) uint8."""
    from matplotlib import colormaps

    layers = {ERRORS: part["grey"]}
    outside = part["label"] == 0
    scale = (np.array(colormaps["cividis"](np.arange(256)))[:, :3] * 255).astype(np.uint8)
    if "near" in part:
        layers["M"] = _tinted(part["grey"], scale[part["near"]], outside)
    if "q" in part:
        layers["Likeliest context"] = _tinted(
            part["grey"], _palette(len(part["q"]))[part["q"].argmax(0)], outside
        )
        t = len(part["q"])
        for j in range(
            1 if t == 2 else 0, t if t <= SOFT else 0
        ):  # of two, one probability tells both
            layers[f"Context {j + 1}"] = _tinted(part["grey"], scale[part["q"][j]], outside)
    if "predicted" in part:
        likeliest = _palette(len(part["predicted"]))[part["predicted"].argmax(0)]
        layers[PREDICTED] = _tinted(part["grey"], likeliest, outside)
    return layers


def _tinted(grey: np.ndarray, colour: np.ndarray, where: np.ndarray) -> np.ndarray:
    rgb = np.repeat(grey[..., None], 3, -1).astype(float)
    rgb[where] = (1 - TINT) * rgb[where] + TINT * colour[where]
    return rgb.round().astype(np.uint8)


def _plane(
    name: str,
    letters: str,
    part: DiagnosisArrays,
    pixel_mm: Sequence[float],
    grey: np.ndarray,
    errors: bool,
) -> Plane:
    """One plane in the middle of a square field of view."""
    dy, dx = pixel_mm
    h, w = part["grey"].shape
    field = max(h * dy, w * dx)
    left = (field - w * dx) / 2
    top = (field - h * dy) / 2

    def lines(mask: np.ndarray) -> Lines:
        return [(line + 0.5) * (dx, dy) + (left, top) for line in outlines(mask)]

    roi = part["label"] > 0
    called = part["called"] > 0
    false = part["false"]
    drawn: list[Lines] = [
        lines(mask) if errors else [] for mask in (false == 1, false == 2, roi & ~called)
    ]
    prediction = {"ROI": lines(called)} if errors and called.any() else {}
    return Plane(
        name,
        letters,
        field,
        grey,
        (left, top, w * dx, h * dy),
        {"ROI": lines(roi)},
        prediction,
        *drawn,
    )


def grouped(count: int) -> str:
    """A count with thin spaces between thousands.

    Args:
        count: The count.

    Returns:
        The text.

    Example:
        >>> grouped(1234567).replace(chr(8201), " ")
        '1 234 567'
    """
    return f"{count:,}".replace(",", "\u2009")
