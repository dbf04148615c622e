"""Draw docs/figures/propagation.png: curves of simulated annotators, and slices of a demo scan.

    python docs/figures/draw_propagation.py RUN TITLE=STUDY ...

Done by hand, after `contextseg simulate`. RUN is a finished run of method stcn that was not trained
on the demo's test scans. STUDY is the output folder of `contextseg simulate`; STUDY:yes and
STUDY:no are the classes that the run was trained on, and the others.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

import contextseg
from contextseg.disk import read_json
from contextseg.pipeline import open_propagation_model
from contextseg.propagation import NETWORK_WAYS, LabelledSlices, fill, ranges
from contextseg.reports.planes import outlines
from contextseg.studies.simulate.annotator import start_uniform
from contextseg.studies.simulate.plot import COLOURS, draw_curves
from contextseg.studies.simulate.summary import means
from contextseg.volume import Volume, read, read_labels

CASE, SLICES, SHOWN = "sarcoma_043", 3, 6
TRUTH = "#FFFFFF"
WAYS = ("combined", "interpolation")


def draw(run: Path, panels: dict[str, str], path: Path) -> None:
    """The panels in one row, beneath them the slices; at most 150 kB."""
    figure = Figure(figsize=(9.0, 5.3), dpi=100, facecolor="white", layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=(1.65, 1))
    axes = top.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for one, (title, study) in zip(axes, panels.items()):
        folder, _, trained = study.partition(":")
        table = pd.read_csv(Path(folder) / "annotator.csv")
        table = table[
            table["trained"].isin([trained or "yes", "no model"]) & (table["rule"] == "advice")
        ]
        structures = len(table[["case", "class"]].drop_duplicates())
        draw_curves(
            one, means(table, "dsc"), int(read_json(Path(folder) / "study.json")["study"]["first"])
        )
        one.set_title(f"{title} (n = {structures})", fontsize=9, loc="left")
        one.set_xlabel("labelled slices", fontsize=8)
        one.tick_params(labelsize=8)
        one.grid(color="#e6e8eb")
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Dice", fontsize=8)
    axes[0].set_ylim(0.5, 1)
    handles, names = axes[0].get_legend_handles_labels()
    top.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    overlays(run, bottom)
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    Image.open(file).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def overlays(run: Path, figure: Any) -> None:
    """`SHOWN` axial slices of the demo scan: the truth, and two fillings."""
    demo = Path(contextseg.__file__).parent / "demo_data"
    scan = read(demo / "imagesTs" / f"{CASE}_0000.nii.gz").oriented("IPL")
    truth = read_labels(demo / "labelsTs" / f"{CASE}.nii.gz").oriented("IPL").array
    given = LabelledSlices(0, {i: truth[i].astype(np.int16) for i in start_uniform(truth, SLICES)})
    labels = {way: _filled(scan, given, way, run) for way in WAYS}
    holding = np.flatnonzero(truth.any((1, 2)))
    shown = sorted({*holding[np.linspace(1, len(holding) - 2, SHOWN).round().astype(int)].tolist()})
    low, high = np.percentile(scan.array[0], (1, 99.5))
    _, height, width = scan.spacing_mm
    for axes, i in zip(figure.subplots(1, len(shown)), shown):
        axes.imshow(scan.array[0, i], "gray", vmin=low, vmax=high, aspect=height / width)
        for colour, line, mask in [
            (TRUTH, "-", truth[i]),
            *((COLOURS[way], (0, (3, 1.5)), labels[way][i]) for way in WAYS),
        ]:
            for outline in outlines(mask > 0):
                axes.plot(*outline.T, color=colour, linewidth=1.2, linestyle=line)
        labelled = ", labelled" if i in given.slices else ""
        axes.set_title(f"slice {i}{labelled}", fontsize=8)
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=COLOURS[way], linestyle=(0, (3, 1.5)), label=way) for way in WAYS
    ]
    handles = [Line2D([], [], color=TRUTH, label="expert"), *handles]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        facecolor="#777777",
        labelcolor="white",
    )


def _filled(scan: Volume, given: LabelledSlices, way: str, run: Path) -> np.ndarray:
    model = open_propagation_model(run) if way in NETWORK_WAYS else None
    return fill(scan, given, model, way, ranges(given)).label.array


if __name__ == "__main__":
    words = dict(word.split("=", 1) for word in sys.argv[2:])
    draw(Path(sys.argv[1]), words, Path(__file__).with_name("propagation.png"))
