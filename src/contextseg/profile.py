"""What segmenting a scan costs: FLARE22's efficiency measures, sampled while a case is being predicted.

Running time, the area under the GPU-memory curve (MB s) and under the CPU-utilisation curve (% s), as in the challenge
(Ma et al., Lancet Digital Health 2024). Different here: processor time is that of this process, so that a busy machine
does not count, and a case begins when its scan is read, with the networks loaded.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from contextseg.disk import Problem, did_you_mean, note_case, read_rows, replacing
from contextseg.provenance import PeakMemory

INTERVAL_S = 0.1
"""Seconds from sample to sample, as in FLARE22."""

FREE_MB = 2048.0
"""GPU memory that FLARE22 does not hold against anybody."""

FORMULAS = ("trapezoid", "official")
"""How an area is taken: by trapezoids between the times of the samples; or their sum times 0.1 s, as FLARE22's script
has it, however far apart they were."""

TABLE, PLOT = "efficiency.csv", "efficiency.png"
_COLUMNS = (
    "case",
    "seconds",
    "gpu_auc_mb_s",
    "gpu_auc_above_2gb_mb_s",
    "cpu_auc_percent_s",
    "peak_gpu_mb",
    "peak_mb",
    "formula",
)


def area(times_s: Sequence[float], values: Sequence[float], formula: str = "trapezoid") -> float:
    """The area under a curve, by one of `FORMULAS`; 0 without samples, and by trapezoids with a single one.

    >>> area([0, 1, 3], [0, 10, 20]), area([0, 1, 3], [0, 10, 20], "official")
    (35.0, 3.0)
    """
    if formula == "official":
        return sum(values) * INTERVAL_S
    corners = pairwise(zip(times_s, values, strict=True))
    return sum((b - a) * (one + other) / 2 for (a, one), (b, other) in corners)


@dataclass
class Curve:
    """Samples of one case: `at_s` since the case began, GPU memory in use on the device, processor time used.

    cpu_percent is that since the sample before, where 100 is all of the machine's cores; 0 at the first.
    """

    at_s: list[float] = field(default_factory=list)
    gpu_mb: list[float] = field(default_factory=list)
    cpu_percent: list[float] = field(default_factory=list)
    began_s: float = 0.0
    peak_mb: float = 0.0

    def row(self, formula: str) -> dict[str, Any]:
        """What `efficiency.csv` says of the case."""
        above = [max(0.0, mb - FREE_MB) for mb in self.gpu_mb]
        areas = [area(self.at_s, values, formula) for values in (self.gpu_mb, above, self.cpu_percent)]
        numbers = (self.at_s[-1], *areas, max(self.gpu_mb), self.peak_mb)
        return dict(zip(_COLUMNS[1:], (*(round(number, 3) for number in numbers), formula), strict=True))


class Efficiency:
    """The costs of the cases that are predicted into a folder: `efficiency.csv`, one row a case, and a plot.

    Raises `Problem` for a formula that is not one of `FORMULAS`, and where the folder has another table of that name.
    """

    def __init__(self, folder: str | Path, formula: str = "trapezoid") -> None:
        if formula not in FORMULAS:
            raise Problem(f"--profile-formula {formula}", "there is no such formula", did_you_mean(formula, FORMULAS))
        self.folder, self.formula = Path(folder), formula
        self.curves: dict[str, Curve] = {}
        self._start = time.perf_counter()
        read_rows(self.folder / TABLE, _COLUMNS)

    @contextmanager
    def case(self, name: str) -> Iterator[Curve]:
        """Samples while the block runs; its row is written when it is done, and nothing if it raises."""
        peak, curve = PeakMemory(), Curve(began_s=time.perf_counter() - self._start)
        with sampled(curve):
            yield curve
        curve.peak_mb = peak.peak_mb()
        self.curves[name] = curve
        note_case(self.folder / TABLE, _COLUMNS, name, [curve.row(self.formula)])

    def plot(self) -> Path | None:
        """Draw GPU memory and processor use over the time of all cases; None where no case was predicted."""
        if not self.curves:
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        gpu, cpu = figure.subplots(2, sharex=True)
        whole = max(curve.began_s + curve.at_s[-1] for curve in self.curves.values())
        for n, (name, curve) in enumerate(self.curves.items()):
            colour = ("#0072B2", "#D55E00")[n % 2]
            at = [curve.began_s + s for s in curve.at_s]
            for axes, values in ((gpu, curve.gpu_mb), (cpu, curve.cpu_percent)):
                axes.plot(at, values, color=colour, linewidth=1)
                axes.fill_between(at, values, color=colour, alpha=0.25, linewidth=0)
            if curve.at_s[-1] > whole / 8:  # room for a name
                gpu.text(at[0], 1.0, name, transform=gpu.get_xaxis_transform(), fontsize=7, color=colour, va="bottom")
        if not any(mb for curve in self.curves.values() for mb in curve.gpu_mb):
            gpu.text(0.5, 0.5, "no GPU", transform=gpu.transAxes, ha="center", va="center")
            gpu.set(yticks=[0], ylim=(0, 1))
        gpu.set_ylabel("GPU memory, MB")
        cpu.set(xlabel="time, s", ylabel="CPU, % of all cores")
        for axes in (gpu, cpu):
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        with replacing(self.folder / PLOT) as made:
            canvas.print_png(made)
        return self.folder / PLOT


@contextmanager
def sampled(curve: Curve) -> Iterator[None]:
    """Fill a curve every `INTERVAL_S` from a thread of its own, which stops with the block, however that ends."""
    read, stop = _gauge(), threading.Event()
    cores, start = os.cpu_count() or 1, time.perf_counter()
    before = start, time.process_time()

    def sample() -> None:
        nonlocal before
        now, used = time.perf_counter(), time.process_time()
        spent = 100 * (used - before[1]) / max(now - before[0], 1e-9) / cores if curve.at_s else 0.0
        before = now, used
        curve.at_s.append(now - start)
        curve.gpu_mb.append(read())
        curve.cpu_percent.append(spent)

    def work() -> None:
        while not stop.wait(INTERVAL_S):
            sample()

    sample()
    thread = threading.Thread(target=work, name="profile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    sample()


def _gauge() -> Callable[[], float]:
    """What reads the MB in use on the current GPU, by whomever; 0 where torch sees none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return lambda: 0.0
    device = torch.cuda.current_device()

    def used() -> float:
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20

    return used
