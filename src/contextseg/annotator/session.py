"""What the page and MONAI Label's clients can ask for, without a word of HTTP.

Everything here may be called from several threads. Slices are saved at once; what is filled follows
in a thread of its own, and jobs that take long in another.
"""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from contextseg.annotator.drawing import Drawing, FilledSlices
from contextseg.annotator.jobs import Job, Jobs, Publish
from contextseg.annotator.planes import SCREEN_PLANES, screen_slice, slice_shape
from contextseg.annotator.project import Project
from contextseg.annotator.proposals import expected_dice
from contextseg.console import say
from contextseg.data.ct_windows import CT_WINDOWS
from contextseg.errors import ContextsegError, plural
from contextseg.memory_errors import MEMORY_REMEDY, out_of_memory
from contextseg.propagation import CompletionModel, PropagationModel

_RESIDENT = 2
_SAMPLED = 200_000
_STEPS = 65535
_CHANGES = 200


class AnnotationSession:
    """The cases of a project, open ones in memory, and the work on them.

    Args:
        project: Cases, classes and folders.
        model: A network that fills; None fills by shapes alone.
        train: The command that trains, without data set and output; see `training_command`.
        publish: Hears of every event: changed slices, jobs, the worklist.

    Attributes:
        jobs: The jobs.
    """

    def __init__(
        self,
        project: Project,
        model: PropagationModel | CompletionModel | None = None,
        train: list[str] | None = None,
        publish: Publish = lambda event: None,
    ) -> None:
        self.project = project
        self.model = model
        self.train_arguments = list(train or [])
        self.publish = publish
        self.jobs = Jobs(self._tell)
        self._open: OrderedDict[int, Drawing] = OrderedDict()
        self._ranges: dict[tuple[int, int], tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._strokes: queue.Queue[tuple[int, str, int] | None] = queue.Queue()
        self._filler = threading.Thread(target=self._fill_strokes, daemon=True)
        self._filler.start()

    def close(self) -> None:
        """End the threads; everything drawn is on the disk already."""
        self._strokes.put(None)
        self.jobs.close()
        self._filler.join(timeout=10)

    def _tell(self, event: dict[str, Any]) -> None:
        self.publish(event)

    # --- cases --------------------------------------------------------------------------------

    def drawing(self, n: int) -> Drawing:
        """The drawing of a case, read if it is not open.

        Args:
            n: Number of the case.

        Returns:
            The drawing. The two that were used last stay in memory.

        Raises:
            ContextsegError: As `Project.open`.
        """
        self.project.case(n)
        with self._lock:
            opening = self._opening.setdefault(n, threading.Lock())
        with opening:
            with self._lock:
                if n in self._open:
                    self._open.move_to_end(n)
                    return self._open[n]
            drawing = self.project.open(n)
            with self._lock:
                self._open[n] = drawing
                while len(self._open) > _RESIDENT:
                    self._open.popitem(last=False)
            return drawing

    def describe(self, n: int) -> dict[str, Any]:
        """What the page has to know of a case, JSON content.

        Args:
            n: Number of the case.

        Returns:
            Shape, spacing, planes, ranges of grey values, windows, and the strip of slices.

        Raises:
            ContextsegError: The scan cannot be read.
        """
        drawing = self.drawing(n)
        spacing = drawing.turned.spacing_mm
        planes = {}
        for axis, plane in enumerate(SCREEN_PLANES):
            rows, columns = (mm for i, mm in enumerate(spacing) if i != axis)
            planes[plane] = {
                "slices": drawing.shape[axis],
                "shape": slice_shape(drawing.shape, plane),
                "mm": [rows, columns],
                "slice_mm": spacing[axis],
            }
        channels = [self.grey_range(n, c) for c in range(drawing.scan.array.shape[0])]
        return {
            "n": n,
            "name": self.project.case(n).name,
            "shape": drawing.shape,
            "spacing_mm": spacing,
            "planes": planes,
            "channels": [
                {"low": low, "step": (high - low) / _STEPS, **_windows(drawing, c, low, high)}
                for c, (low, high) in enumerate(channels)
            ],
            "strip": drawing.strip(),
        }

    def grey_range(self, n: int, channel: int) -> tuple[float, float]:
        """The lowest value of a channel, and one so high that 65535 steps lead to it.

        Whole numbers that lie in 65535 steps are sent as they are: then a step is 1.
        """
        with self._lock:
            if (n, channel) in self._ranges:
                return self._ranges[n, channel]
        array = self.drawing(n).scan.array[channel]
        finite = array if array.dtype.kind in "biu" else array[np.isfinite(array)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if array.dtype.kind in "biu" and high - low <= _STEPS:
            high = low + _STEPS
        elif high <= low:
            high = low + 1
        with self._lock:
            self._ranges[n, channel] = low, high
        return low, high

    def grey(self, n: int, plane: str, k: int, channel: int = 0) -> bytes:
        """The grey values of a slice, in steps from the lowest value of the channel.

        Args:
            n: Number of the case.
            plane: One of `planes.SCREEN_PLANES`.
            k: Number of the slice.
            channel: Number of the channel.

        Returns:
            rows x columns little-endian uint16. A voxel that is no number is 0.

        Raises:
            ContextsegError: There is no such slice or channel.
        """
        drawing = self.drawing(n)
        drawing.check_slice(plane, k)
        if not 0 <= channel < drawing.scan.array.shape[0]:
            what = f"the scan has {plural(drawing.scan.array.shape[0], 'channel')}, counted from 0"
            raise ContextsegError(f"channel {channel}", what, "choose one of them")
        low, high = self.grey_range(n, channel)
        pixels = screen_slice(drawing.turned.array[channel], plane, k)
        steps = (pixels.astype(np.float64) - low) * (_STEPS / (high - low))
        steps = np.rint(np.nan_to_num(steps, nan=0, posinf=_STEPS, neginf=0))
        return np.ascontiguousarray(steps.clip(0, _STEPS), dtype="<u2").tobytes()

    def prefetch(self, n: int) -> None:
        """Read the case that is next on the worklist, so that it opens at once."""
        rows = [row["n"] for row in self.project.worklist() if row["state"] != "finished"]
        after = [row for row in rows if row != n]
        if after:
            try:
                self.drawing(after[0])
            except ContextsegError:
                return  # it is told when somebody opens it
            with self._lock:
                if n in self._open:
                    self._open.move_to_end(n)

    # --- drawing ------------------------------------------------------------------------------

    def label(self, n: int, plane: str, k: int) -> tuple[bytes, int]:
        """What is drawn in a slice, then what is filled, and the slice's revision.

        Args:
            n: Number of the case.
            plane: One of `planes.SCREEN_PLANES`.
            k: Number of the slice.

        Returns:
            2 x rows x columns bytes, and the revision.

        Raises:
            ContextsegError: There is no such slice.
        """
        drawn, filled, revision = self.drawing(n).label(plane, k)
        return drawn.tobytes() + filled.tobytes(), revision

    def put(
        self,
        n: int,
        plane: str,
        k: int,
        pixels: bytes,
        revision: int | None = None,
        fill: bool = True,
        who: str = "",
        **details: Any,
    ) -> int:
        """Save a slice; what it decides is filled a moment later.

        A finished case that is drawn on is not finished any more.

        Args:
            n: Number of the case.
            plane: One of `planes.SCREEN_PLANES`.
            k: Number of the slice.
            pixels: rows x columns bytes, as in `Drawing.put`.
            revision: The revision that was changed; None overwrites any.
            fill: Whether to fill around it.
            who: Which tab it comes from, for the others.
            **details: What else the log says of it.

        Returns:
            The slice's new revision.

        Raises:
            StaleSlice: Somebody else has changed the slice.
            ContextsegError: There is no such slice, or it cannot be saved.
        """
        drawing = self.drawing(n)
        drawing.check_slice(plane, k)
        shape = slice_shape(drawing.shape, plane)
        if len(pixels) != shape[0] * shape[1]:
            what = f"{len(pixels)} bytes, not {shape[0] * shape[1]}"
            raise ContextsegError(f"{plane} slice {k}", what, "send one byte for each pixel")
        label = np.frombuffer(pixels, np.uint8).reshape(shape)
        new = drawing.put(plane, k, label, revision, len(self.project.classes), **details)
        if drawing.store.state().get("finished"):
            self.project.reopen(n)
            self._tell({"type": "worklist"})
        event = {"type": "drawn", "case": n, "plane": plane, "slice": k, "revision": new}
        self._tell({**event, "who": who})
        if fill:
            self._strokes.put((n, plane, k))
        else:
            self._tell({"type": "strip", "case": n, "strip": drawing.strip()})
        return new

    def _fill_strokes(self) -> None:
        """Fill around the slices that were put; of several in a row of the same slice once."""
        while True:
            waiting = [self._strokes.get()]
            while not self._strokes.empty():
                waiting.append(self._strokes.get_nowait())
            for item in dict.fromkeys(waiting):
                if item is None:
                    return
                n, plane, k = item
                try:
                    with out_of_memory(f"filling around slice {k}", MEMORY_REMEDY):
                        drawing = self.drawing(n)
                        self._tell_filled(n, drawing, drawing.fill_around(plane, k))
                except ContextsegError as error:
                    self._tell({"type": "error", "case": n, "error": str(error)})

    def fill(self, n: int) -> dict[str, Any]:
        """Fill the whole case by the shapes of the drawn slices, now.

        Args:
            n: Number of the case.

        Returns:
            The strip of slices.

        Raises:
            ContextsegError: The scan cannot be read.
        """
        drawing = self.drawing(n)
        return self._tell_filled(n, drawing, drawing.fill())

    def _tell_filled(self, n: int, drawing: Drawing, change: FilledSlices | None) -> dict[str, Any]:
        strip = drawing.strip()
        event: dict[str, Any] = {"type": "filled", "case": n, "strip": strip}
        if change is not None:
            event |= {"plane": change.plane, "first": change.first, "last": change.last}
        self._tell(event)
        return strip

    # --- jobs ---------------------------------------------------------------------------------

    def refine(self, n: int) -> Job:
        """Fill a case by the network, as a job.

        Args:
            n: Number of the case.

        Returns:
            The job.

        Raises:
            ContextsegError: There is no network, or nothing is drawn.
        """
        if self.model is None:
            remedy = "start with --model RUN, made by `contextseg train --method stcn`"
            raise ContextsegError("refine", "no network was given", remedy)
        drawing = self.drawing(n)
        if not drawing.touched(drawing.plane):
            raise ContextsegError("refine", "no slice is drawn", "draw a slice first")

        def work(job: Job) -> str:
            change = drawing.fill(self.model, progress=job.progress)
            self.project.save_filled(n, drawing, "network")
            self._tell_filled(n, drawing, change)
            return "filled by the network"

        return self.jobs.start("refine", n, work)

    def train(self) -> Job:
        """Train on the finished cases, and order the worklist by what the model expects, as a job.

        Returns:
            The job.

        Raises:
            ContextsegError: Fewer than two cases are finished.
        """
        rows = self.project.worklist()
        finished = [row["name"] for row in rows if row["state"] == "finished"]
        if len(finished) < 2:
            what = plural(len(finished), "finished case")
            raise ContextsegError("train", what, "finish two cases or more first")
        self.project.write_table()
        return self.jobs.start("train", None, self._train)

    def _train(self, job: Job) -> str:
        models = self.project.work / "models"
        taken = [path.name for path in models.glob("round-*")] if models.exists() else []
        rounds = [int(name[6:]) for name in taken if name[6:].isdecimal()]
        run = models / f"round-{max(rounds, default=0) + 1}"
        data = self.project.work / "dataset"
        program = [sys.executable, "-m", "contextseg"]
        train = [*program, "train", str(data), "-o", str(run), "--fold", "all"]
        run_program([*train, *self.train_arguments], job)
        rows = [r["n"] for r in self.project.worklist() if r["state"] != "finished"]
        for place, n in enumerate(rows):
            job.progress(place, len(rows))
            case = self.project.case(n)
            self.project.scores[case.name] = expected_dice(run, case)
        self.project.save_scores()
        self._tell({"type": "worklist"})
        return f"trained: {run}"

    # --- the end of a case --------------------------------------------------------------------

    def finish(self, n: int, accept: bool = False) -> dict[str, Any]:
        """Finish a case: its files are written, and the next one is named.

        Args:
            n: Number of the case.
            accept: What is filled goes among the labels as well.

        Returns:
            {"label": file, "next": number of the case that is next, or None}.

        Raises:
            ContextsegError: Nothing is drawn, or a file cannot be written.
        """
        label = self.project.finish(n, self.drawing(n), accept)
        self._tell({"type": "worklist"})
        rest = [r["n"] for r in self.project.worklist() if r["state"] != "finished" and r["n"] != n]
        return {"label": str(label), "next": rest[0] if rest else None}

    def add_class(self, name: str) -> None:
        """Add a class that can be drawn.

        Args:
            name: Its name.

        Raises:
            ContextsegError: As `Project.add_class`.
        """
        self.project.add_class(name)
        self._tell({"type": "classes"})

    def cases(self) -> dict[str, Any]:
        """The worklist, classes and jobs, JSON content."""
        classes = [vars(kind) for kind in self.project.classes]
        return {
            "cases": self.project.worklist(),
            "classes": classes,
            "network": self.model is not None,
            "jobs": self.jobs.facts(),
            "work": str(self.project.work),
        }


def run_program(command: list[str], job: Job, tell: Callable[[str], None] = say) -> None:
    """Run a program, and read its progress from lines such as "train 3/10 loss 0.4".

    Args:
        command: Program and arguments.
        job: The job that it belongs to; when it is cancelled, the program is ended.
        tell: Hears of every line.

    Raises:
        Cancelled: The job was cancelled.
        ContextsegError: The program failed; its last line is the reason.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    last = ""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            if job.cancelled.is_set():
                process.terminate()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            last = line.strip() or last
            tell(line.rstrip())
            if found := re.match(r"([\w-]+) (\d+)/(\d+)", line):
                job.note = found[1]
                job.progress(int(found[2]), int(found[3]))
        code = process.wait()
    finally:
        ended.set()
        watcher.join()
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    job.progress(job.done, job.of)
    if code:
        raise ContextsegError("train", last or f"it ended with {code}", "see the terminal")


def _windows(drawing: Drawing, channel: int, low: float, high: float) -> dict[str, Any]:
    """The window to begin with, and those of CT where the scan is one."""
    array = drawing.scan.array[channel].ravel()
    sample = array[:: max(1, array.size // _SAMPLED)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return {"window": [low, high], "presets": {}}
    first, last = (float(v) for v in np.percentile(sample, (0.5, 99.5)))
    last = last if last > first else first + 1
    presets = {"auto": [first, last], "full": [float(sample.min()), float(sample.max())]}
    ct = first < -400 and last > 50 and first > -5000
    if ct:
        names = ("soft_tissue", "lung", "bone", "liver", "brain", "mediastinum")
        presets = {name.replace("_", " "): list(CT_WINDOWS[name]) for name in names} | presets
    window = presets["soft tissue"] if ct else presets["auto"]
    return {"window": window, "presets": presets}
