"""The cost of segmenting a scan: FLARE22's efficiency metrics, sampled during a prediction.

Running time, the area under the GPU-memory curve (MB s) and under the CPU-utilisation curve (% s),
as in the challenge (Ma et al., Lancet Digital Health 2024). Different here: processor time is that
of this process, so that a busy machine does not count, and a case begins when its scan is read,
with the networks loaded.
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

from contextseg.disk import note_case, read_rows, replacing
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.provenance import PeakMemory

INTERVAL_S = 0.1
"""Seconds from sample to sample, as in FLARE22."""

FREE_MB = 2048.0
"""GPU memory that FLARE22 does not hold against anybody."""

FORMULAS = ("trapezoid", "official")
"""How an area is computed: by trapezoids between the samples, or as in FLARE22's script.

The script takes the sum of the samples times 0.1 s, however far apart they were.
"""

EFFICIENCY_TABLE = "efficiency.csv"
PLOT = "efficiency.png"
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
    """The area under a curve.

    Args:
        times_s: Time of each sample, in seconds.
        values: Value of each sample.
        formula: One of `FORMULAS`.

    Returns:
        The area, in the unit of the values times seconds; 0 without samples, and by trapezoids with
        a single one.

    Example:
        >>> area([0, 1, 3], [0, 10, 20]), area([0, 1, 3], [0, 10, 20], "official")
        (35.0, 3.0)
    """
    if formula == "official":
        return sum(values) * INTERVAL_S
    corners = pairwise(zip(times_s, values, strict=True))
    return sum((b - a) * (one + other) / 2 for (a, one), (b, other) in corners)


@dataclass
class SampledCurve:
    """Samples of one case.

    Attributes:
        at_s: Time of each sample since the case began.
        gpu_mb: GPU memory in use on the device, by any process.
        cpu_percent: Processor time since the sample before, where 100 is all of the machine's
            cores; 0 at the first.
        began_s: When the case began, in seconds since the first.
        peak_mb: Peak memory of this process during the case.
    """

    at_s: list[float] = field(default_factory=list)
    gpu_mb: list[float] = field(default_factory=list)
    cpu_percent: list[float] = field(default_factory=list)
    began_s: float = 0.0
    peak_mb: float = 0.0

    def row(self, formula: str) -> dict[str, Any]:
        """The row of the case in `efficiency.csv`.

        Args:
            formula: One of `FORMULAS`.

        Returns:
            Column -> value, without the case's name.
        """
        above = [max(0.0, mb - FREE_MB) for mb in self.gpu_mb]
        areas = [
            area(self.at_s, values, formula) for values in (self.gpu_mb, above, self.cpu_percent)
        ]
        numbers = (self.at_s[-1], *areas, max(self.gpu_mb), self.peak_mb)
        return dict(
            zip(_COLUMNS[1:], (*(round(number, 3) for number in numbers), formula), strict=True)
        )


class Efficiency:
    """The costs of the cases predicted into a folder: `efficiency.csv` and a plot.

    Args:
        folder: The folder.
        formula: One of `FORMULAS`.

    Raises:
        ContextsegError: The formula is unknown, or the folder has another table of that name.
    """

    def __init__(self, folder: str | Path, formula: str = "trapezoid") -> None:
        if formula not in FORMULAS:
            raise ContextsegError(
                f"--profile-formula {formula}",
                "there is no such formula",
                did_you_mean(formula, FORMULAS),
            )
        self.folder = Path(folder)
        self.formula = formula
        self.curves: dict[str, SampledCurve] = {}
        self._start = time.perf_counter()
        read_rows(self.folder / EFFICIENCY_TABLE, _COLUMNS)

    @contextmanager
    def case(self, name: str) -> Iterator[SampledCurve]:
        """Take samples while the block runs, then write the case's row; nothing if it raises.

        Args:
            name: Name of the case.

        Yields:
            The samples.
        """
        peak = PeakMemory()
        curve = SampledCurve(began_s=time.perf_counter() - self._start)
        with sampled(curve):
            yield curve
        curve.peak_mb = peak.peak_mb()
        self.curves[name] = curve
        note_case(self.folder / EFFICIENCY_TABLE, _COLUMNS, name, [curve.row(self.formula)])

    def plot(self) -> Path | None:
        """Draw GPU memory and processor use over the time of all cases.

        Returns:
            The file; None where no case was predicted.
        """
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
                gpu.text(
                    at[0],
                    1.0,
                    name,
                    transform=gpu.get_xaxis_transform(),
                    fontsize=7,
                    color=colour,
                    va="bottom",
                    parse_math=False,
                )
        if not any(mb for curve in self.curves.values() for mb in curve.gpu_mb):
            gpu.text(0.5, 0.5, "no GPU", transform=gpu.transAxes, ha="center", va="center")
            gpu.set(yticks=[0], ylim=(0, 1))
        gpu.set_ylabel("GPU memory, MB")
        cpu.set(xlabel="time, s", ylabel="CPU, % of all cores")
        for axes in (gpu, cpu):
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        with replacing(self.folder / PLOT) as temporary:
            canvas.print_png(temporary)
        return self.folder / PLOT


@contextmanager
def sampled(curve: SampledCurve) -> Iterator[None]:
    """Take samples every `INTERVAL_S` in a thread that ends with the block, however that ends.

    Args:
        curve: Where the samples go.
    """
    read_gpu_mb = _gpu_memory_reader()
    stop = threading.Event()
    cores = os.cpu_count() or 1
    start = time.perf_counter()
    before = start, time.process_time()

    def sample() -> None:
        nonlocal before
        now = time.perf_counter()
        used = time.process_time()
        spent = 100 * (used - before[1]) / max(now - before[0], 1e-9) / cores if curve.at_s else 0.0
        before = now, used
        curve.at_s.append(now - start)
        curve.gpu_mb.append(read_gpu_mb())
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


def _gpu_memory_reader() -> Callable[[], float]:
    """A function that reads the MB in use on the current GPU; 0 where torch sees none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return lambda: 0.0
    device = torch.cuda.current_device()

    def used() -> float:
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20

    return used
