"""Filling from 3, 5 and 7 labelled slices by shape alone: ours, the plain rule, and ITK's.

The plain rule is shape-based interpolation by signed distances (Raya and Udupa, IEEE TMI 1990),
`interpolate_shapes(..., aligned=False)`. ITK's is morphological contour interpolation (Zukić et
al., Insight Journal 2016), which 3D Slicer and ITK-SNAP use; package
`itk-morphologicalcontourinterpolation`. Every structure of the data is filled alone, from axial
slices spread evenly over it, its first and its last among them; the Dice is of the whole structure.

Cases with an even number (of the torso: every second structure) served to choose the rules and to
fit the confidence; the others did not, and are what is reported.

    python benchmarks/filling.py [--quick]              rows for benchmarks/RESULTS.md
    python benchmarks/filling.py --table DATA [FILE]    a table of each organ, FILLING.md by default
    python benchmarks/filling.py --fit DATA             the coefficients of the confidence

DATA is a folder with the sets sarcoma, headneck, Task04_Hippocampus and torso. Without it, `rows`
takes the sarcomas that come with the package.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from contextseg.data.phantom import patient
from contextseg.propagation import interpolate_shapes
from contextseg.propagation.outlines import Outlines
from contextseg.volume import read_labels

SLICES = (3, 5, 7)
EMBEDDED = Path(__file__).parents[1] / "src" / "contextseg" / "demo_data"
Mask = tuple[str, str, bool, np.ndarray, tuple[float, float, float]]
"""Set, structure, whether it served to choose, mask (n, H, W) of its own slices, mm."""
Fill = Callable[[dict[int, np.ndarray], int, tuple[float, ...]], np.ndarray]


# --- data -----------------------------------------------------------------------------------------


def masks(data: Path) -> Iterator[Mask]:
    """Every structure of every scan that has four slices or more of it."""
    for path in sorted((data / "sarcoma" / "labelsTr").glob("*.nii.gz")):
        yield from _of(path, "sarcoma", {"tumour": 1})
    for path in sorted((data / "Task04_Hippocampus" / "labelsTr").glob("[!.]*.nii.gz")):
        yield from _of(path, "hippocampus", {"anterior": 1, "posterior": 2})
    listed = json.loads((data / "headneck" / "cases.json").read_text(encoding="utf-8"))
    for case, facts in listed["cases"].items():
        organs = [name for name in facts["annotated"] if not name.startswith("target")]
        path = data / "headneck" / "labels" / f"{case}.nii.gz"
        yield from _of(path, "headneck", {name: listed["labels"][name] for name in organs})
    names = json.loads((data / "torso" / "labels_v1.json").read_text(encoding="utf-8"))
    organs = {facts["name"]: int(k) for k, facts in names.items() if int(k)}
    path = data / "torso" / "torso_seg_v1_104classes.nii.gz"
    for i, one in enumerate(_of(path, "torso", organs)):
        yield ("torso", "56 structures", i % 2 == 1, *one[3:])


def _of(path: Path, dataset: str, organs: dict[str, int]) -> Iterator[Mask]:
    volume = read_labels(path).oriented("SAR")
    number = int("".join(c for c in path.name.split(".")[0] if c.isdigit()) or 0)
    for name, value in organs.items():
        mask = volume.array == value
        z, y, x = (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        if len(z) > 3:
            box = [slice(max(0, at[0] - 2), at[-1] + 3) for at in (y, x)]
            cut = np.ascontiguousarray(mask[z[0] : z[-1] + 1, box[0], box[1]])
            yield dataset, name, number % 2 == 0, cut, volume.spacing_mm


def labelled(mask: np.ndarray, count: int) -> dict[int, np.ndarray]:
    """`count` slices, spread evenly, the first and the last among them."""
    places = np.linspace(0, len(mask) - 1, min(count, len(mask))).round().astype(int)
    return {int(i): mask[i].astype(np.int16) for i in places}


# --- ways to fill ---------------------------------------------------------------------------------


def ours(slices: dict[int, np.ndarray], n: int, mm: tuple[float, ...]) -> np.ndarray:
    """The default."""
    return interpolate_shapes(slices, n, mm)


def plain(slices: dict[int, np.ndarray], n: int, mm: tuple[float, ...]) -> np.ndarray:
    """Signed distances alone."""
    return interpolate_shapes(slices, n, mm, aligned=False)


def morphological(slices: dict[int, np.ndarray], n: int, mm: tuple[float, ...]) -> np.ndarray:
    """ITK's."""
    import itk

    array = np.zeros((n, *next(iter(slices.values())).shape), np.uint8)
    for i, label in slices.items():
        array[i] = label
    filled = itk.morphological_contour_interpolator(itk.image_from_array(array))
    return np.array(itk.array_from_image(filled))


FILLS: dict[str, Fill] = {"ours": ours, "itk": morphological, "plain": plain}


def timed(
    name: str, slices: dict[int, np.ndarray], n: int, mm: tuple[float, ...]
) -> tuple[np.ndarray, float]:
    """What one of `FILLS` makes of the slices, and its CPU seconds."""
    started = time.process_time()
    filled = FILLS[name](slices, n, mm)
    return filled, time.process_time() - started


Timed = Callable[[dict[int, np.ndarray], int, tuple[float, ...]], tuple[np.ndarray, float]]


@contextmanager
def ways() -> Iterator[dict[str, Timed]]:
    """By name; ITK's where it is installed.

    It runs in a process of its own, since its filter damages the memory of the process: at its end,
    or before, glibc aborts it.
    """
    known: dict[str, Timed] = {"ours": partial(timed, "ours"), "plain": partial(timed, "plain")}
    if find_spec("itk") is None:
        yield known
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:

        def itk(*given: Any) -> tuple[np.ndarray, float]:
            return pool.submit(timed, "itk", *given).result()

        itk({0: np.ones((4, 4), np.uint8), 2: np.ones((4, 4), np.uint8)}, 3, (1.0, 1.0))  # imports
        yield {**known, "itk": itk}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


# --- rows, table, coefficients --------------------------------------------------------------------


def rows(quick: bool = False) -> Iterator[tuple[str, str, float, float, str]]:
    """Claims of `benchmarks/run.py`: seconds, and Dice where the claim says so."""
    paths = sorted((EMBEDDED / "labelsTr").glob("*.nii.gz"))[: 2 if quick else None]
    cases = [one for path in paths for one in _of(path, "sarcoma", {"tumour": 1})]
    with ways() as known:
        for count in SLICES:
            yield from _rows(known, cases, count)
        if "itk" in known:
            size = 128 if quick else 512
            organs = np.stack([patient(0, (size, size), classes=4)[1] for _ in range(3)])
            slices = {i: label.astype(np.int16) for i, label in zip((0, 49, 99), organs)}
            taken = {name: known[name](slices, 100, (1.0, 1.0))[1] for name in ("ours", "itk")}
            given = f"100 x {size} x {size}, 3 classes, 3 labelled slices"
            yield "filling by shape, s", given, taken["ours"], taken["itk"], "ITK's"


def _rows(
    known: dict[str, Timed], cases: list[Mask], count: int
) -> Iterator[tuple[str, str, float, float, str]]:
    given = f"{len(cases)} sarcomas, {count} labelled slices"
    times: dict[str, list[float]] = {name: [] for name in known}
    scores: dict[str, list[float]] = {name: [] for name in known}
    for _, _, _, mask, mm in cases:
        slices = labelled(mask, count)
        for name, way in known.items():
            filled, seconds = way(slices, len(mask), mm[1:])
            times[name].append(seconds)
            scores[name].append(dice(filled > 0, mask))
    for name, peer in (("itk", "ITK's morphological contours"), ("plain", "plain distances")):
        if name in known:
            seconds, theirs = median(times["ours"]), median(times[name])
            yield "filling by shape, a scan, s", given, seconds, theirs, peer
            yield "filling by shape, Dice", given, mean(scores["ours"]), mean(scores[name]), peer


def table(data: Path) -> str:
    """Mean Dice of each organ on the cases that did not serve to choose, and on those that did."""
    scores: dict[tuple[bool, int, str, str], dict[str, list[float]]] = {}
    with ways() as known:
        for dataset, organ, chosen, mask, mm in masks(data):
            for count in SLICES:
                cell = scores.setdefault((chosen, count, dataset, organ), {n: [] for n in known})
                for name, way in known.items():
                    filled, _ = way(labelled(mask, count), len(mask), mm[1:])
                    cell[name].append(dice(filled > 0, mask))
    lines = ["# Filling by shape", "", *(__doc__ or "").split("\n\n    python")[0].splitlines()]
    for chosen in (False, True):
        kind = "served to choose the rules" if chosen else "did not serve to choose the rules"
        lines += ["", f"## Cases that {kind}", ""]
        lines += ["| slices | set | organ | n | " + " | ".join(known) + " |"]
        lines += ["|--:|---|---|--:|" + "--:|" * len(known)]
        for (half, count, dataset, organ), cell in sorted(scores.items()):
            if half == chosen:
                values = " | ".join(f"{mean(cell[name]):.3f}" for name in known)
                lines.append(f"| {count} | {dataset} | {organ} | {len(cell['ours'])} | {values} |")
        for count in SLICES:
            cells = [cell for key, cell in scores.items() if key[:2] == (chosen, count)]
            values = " | ".join(f"{mean(mean(c[name]) for c in cells):.3f}" for name in known)
            lines.append(f"| {count} | all | mean of the organs | | {values} |")
    lines += ["", *_reliability(data)]
    return "\n".join(lines) + "\n"


def confidences(data: Path, chosen: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, expected Dice and Dice of each filled slice."""
    features, expected, true = [], [], []
    for _, _, half, mask, mm in masks(data):
        for count in (2, 3, 4, 5, 7, 9) if half == chosen else ():
            outlines = Outlines({i: x > 0 for i, x in labelled(mask, count).items()}, mm[1:])
            for i in range(len(mask)):
                distance = outlines.distance(i)
                row = None if distance is None else outlines.features(i, mm[0])
                if distance is not None and row is not None:
                    filled = np.zeros(mask[i].shape, bool)
                    filled[distance.box] = distance.values > 0
                    features.append(row)
                    expected.append(outlines.expected_dice(i, mm[0]))
                    true.append(2 * (filled & mask[i]).sum() / max(1, filled.sum() + mask[i].sum()))
    return np.array(features), np.array(expected), np.array(true)


def _reliability(data: Path) -> list[str]:
    _, expected, true = confidences(data, chosen=False)
    lines = ["## Reliability of the confidence, on cases that it was not fitted to", ""]
    lines += ["| expected Dice | slices | mean expected | mean Dice |", "|---|--:|--:|--:|"]
    for low in np.arange(10) / 10:
        here = (expected >= low) & (expected < low + 0.1)
        if here.any():
            means = f"{expected[here].mean():.3f} | {true[here].mean():.3f}"
            lines.append(f"| {low:.1f} to {low + 0.1:.1f} | {here.sum()} | {means} |")
    return lines


def fit(data: Path) -> np.ndarray:
    """Coefficients of `Outlines.expected_dice`: cross-entropy with the Dice as the target."""
    from scipy.optimize import minimize

    x, _, y = confidences(data, chosen=True)

    def loss(w: np.ndarray) -> float:
        z = x @ w
        return float(np.mean(np.logaddexp(0, z) - y * z))

    return minimize(loss, np.zeros(x.shape[1]), method="BFGS").x.round(3)


if __name__ == "__main__":
    if "--table" in sys.argv:
        at = sys.argv.index("--table")
        target = Path(sys.argv[at + 2]) if len(sys.argv) > at + 2 else None
        page = table(Path(sys.argv[at + 1]))
        (target or Path(__file__).with_name("FILLING.md")).write_text(page, encoding="utf-8")
    elif "--fit" in sys.argv:
        print(fit(Path(sys.argv[sys.argv.index("--fit") + 1])))
    else:
        for claim, given, mine, theirs, peer in rows("--quick" in sys.argv):
            print(f"{claim} | {given} | {mine:.3g} | {theirs:.3g} | {peer}", flush=True)
