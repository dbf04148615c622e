"""Filling by the packaged network in the annotator, on a CT of 512 pixels, and filling again.

The complete CT of ../shared/data/torso (122 x 101 x 112 at 3 mm) is interpolated to 512 pixels in a
row. Slices of one organ are drawn as a model labelled it (TotalSegmentator), and filled by the
network; then one more slice is corrected and filled again, as a person does who waits for it. It
stands beside the specification's target of 5 s on two idle cores, set for 256 x 256 x 100. CPU
seconds of one thread; without the CT there are no rows.

    python benchmarks/refill.py [--quick]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.ndimage import zoom

import contextseg as cs
from contextseg.annotator.project import open_project
from contextseg.annotator.session import AnnotationSession
from contextseg.disk import read_json
from contextseg.propagation import open_completion
from contextseg.volume import Volume, read, read_labels

TORSO = Path(os.environ.get("CONTEXTSEG_TORSO", Path(__file__).parents[2] / "shared/data/torso"))
ORGANS = {"liver": 5, "kidney_left": 3, "aorta": 7}
WIDE = 512
TARGET_S = 5.0
PEER = "the specification's target"


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, CPU seconds, seconds of the target, "the specification's target")."""
    if not (TORSO / "torso_ct.nii.gz").exists():
        print("refill: left out (there is no ../shared/data/torso)", file=sys.stderr)
        return
    torch.set_num_threads(1)
    scan = read(TORSO / "torso_ct.nii.gz")
    labels = read_labels(TORSO / "torso_seg_v2fast_117classes.nii.gz")
    names = read_json(TORSO / "labels_v2.json")
    values = {entry["name"]: int(key) for key, entry in names.items()}
    factor = 1.0 if quick else WIDE / max(scan.shape)
    for organ in list(ORGANS)[: 1 if quick else None]:
        first, again, shape = _measured(scan, labels, values[organ], factor, ORGANS[organ])
        size = " x ".join(map(str, shape))
        given = f"CT {size}, {organ}, {ORGANS[organ]} slices drawn, packaged network, one thread"
        yield "fill by the network, s", given, first, TARGET_S, PEER
        yield "the same after one slice more, s", given, again, TARGET_S, PEER


def _measured(
    scan: Volume, labels: Volume, value: int, factor: float, slices: int
) -> tuple[float, float, tuple[int, ...]]:
    """Seconds of the first fill, of the next ones (median of three), and the shape."""
    axial = next(i for i, letter in enumerate(scan.orientation) if letter in "SI")
    factors = [1.0 if i == axial else factor for i in range(3)]
    affine = scan.affine @ np.diag([*(1 / np.array(factors)), 1])
    image = zoom(scan.array[0].astype(np.float32), factors, order=1)
    truth = zoom((labels.array == value).astype(np.uint8), factors, order=0) > 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scans" / "torso.nii.gz"
        cs.write(path, Volume(image[None].astype(np.int16), affine))
        project = open_project(path.parent, Path(folder) / "work", ["organ"])
        session = AnnotationSession(project, open_completion())
        label = Volume(truth.astype(np.uint8), affine).oriented(
            "SPL"
        )  # the axial plane of the page
        shown = np.ascontiguousarray(label.array)
        holding = np.flatnonzero(shown.any((1, 2)))
        chosen = holding[np.linspace(0, len(holding) - 1, slices).round().astype(int)]
        for k in chosen.tolist():
            session.put(0, "axial", k, shown[k].tobytes(), fill=False)
        first = _seconds(lambda: session.refine(0))
        again = []
        for k in (chosen[:-1] + np.diff(chosen) // 2).tolist()[:3]:
            session.put(0, "axial", k, shown[k].tobytes(), fill=False)
            again.append(_seconds(lambda: session.refine(0)))
        session.close()
    return first, median(again), tuple(image.shape)


def _seconds(start: Callable[[], Any]) -> float:
    """CPU seconds until a job is over."""
    before = time.process_time()
    job = start()
    while job.state in ("waiting", "running"):
        time.sleep(0.05)
    assert job.state == "done", job.note
    return time.process_time() - before


if __name__ == "__main__":
    for row in rows("--quick" in sys.argv):
        print(row)
