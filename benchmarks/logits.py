"""Logits of 14 classes to a label map on the scan's grid, against nnU-Net v2's way, on one thread.

Needs nnunetv2 >= 2.5 (no torchvision is imported on the way) and Linux or macOS. Each side runs in
a process of its own, so that its peak memory is its own, and the label maps are compared: the same
answer, or no row.

    python benchmarks/logits.py [--quick]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

K = 14
FULL = ((160, 320, 320), (200, 512, 512))
QUICK = ((40, 96, 96), (50, 154, 154))
REPEAT_S = 5  # each side runs until it has used this much
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def rows(quick: bool) -> list[tuple[str, str, float, float, str]]:
    """(claim, input, ours, the peer's, peer): seconds, then MB above that of the imports."""
    size, shape = QUICK if quick else FULL
    case = f"{K} classes, {'x'.join(map(str, size))} to {'x'.join(map(str, shape))}, one thread"
    with tempfile.TemporaryDirectory() as folder:
        _child("logits", folder, size, shape)
        names = ("ours", "ours_streamed", "nnunet", "nnunet_half", "nnunet_torch")
        seconds, megabytes = {}, {}
        for name in names:
            seconds[name], megabytes[name] = _child(name, folder, size, shape)
            _compare(Path(folder), name)
    peer = "nnU-Net v2 resample_data_or_seg_to_shape + argmax"
    torch_peer = "nnU-Net v2 resample_torch_fornnunet (not its default) + argmax"
    return [
        ("logits to label map, s", case, seconds["ours"], seconds["nnunet"], peer),
        ("logits to label map, s", case, seconds["ours"], seconds["nnunet_torch"], torch_peer),
        (
            "logits to label map, peak MB",
            case,
            megabytes["ours_streamed"],
            megabytes["nnunet_half"],
            f"{peer}, float16",
        ),
        (
            "logits to label map, peak MB",
            case,
            megabytes["ours_streamed"],
            megabytes["nnunet_torch"],
            torch_peer,
        ),
    ]


def _child(
    name: str, folder: str, size: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[float, float]:
    task = json.dumps([name, folder, size, shape])
    environment = os.environ | dict.fromkeys(THREADS, "1")
    done = subprocess.run(
        [sys.executable, __file__, "--task", task],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
    return seconds, megabytes


def _compare(folder: Path, name: str) -> None:
    ours, theirs = np.load(folder / "ours.npy"), np.load(folder / f"{name}.npy")
    apart = np.mean(ours != theirs)
    if apart > (1e-3 if name == "nnunet_half" else 1e-5):
        raise AssertionError(f"{name} differs from ours in {apart:.2%} of the voxels")


# --- the processes --------------------------------------------------------------------------------


def _task(name: str, folder: str, size: list[int], shape: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    file = Path(folder) / "logits.raw"
    if name == "logits":
        _write_logits(file, size)
        return print("[0, 0]")
    work = _WORK[name]()
    before = _peak_mb()
    label, seconds = work(file, size, shape)
    print(json.dumps([seconds, _peak_mb() - before]))
    np.save(Path(folder) / f"{name}.npy", label.astype(np.uint8))


def _peak_mb() -> float:
    """Peak resident memory of this process.

    Not by getrusage on Linux, where the parent's peak survives the exec.
    """
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _write_logits(file: Path, size: list[int]) -> None:
    """Organs as ellipsoids with smooth, irregular borders, one channel at a time.

    Channel 0 is what is left.
    """
    import torch
    import torch.nn.functional as F

    random = np.random.default_rng(0)
    torch.manual_seed(0)
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    with open(file, "wb") as out:
        for k in range(K):
            coarse = torch.randn(1, 1, *[max(2, n // 16) for n in size])
            z = F.interpolate(coarse, size, mode="trilinear")[0, 0]
            if k:
                centre, radius = random.uniform(-0.6, 0.6, 3), random.uniform(0.1, 0.45, 3)
                distance = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radius)) ** 0.5
                z += (10 * (1 - distance)).clamp(-15, 15)
            z.numpy().tofile(out)


def _read(file: Path, size: list[int], slices: slice) -> np.ndarray:
    """(K, d, h, w) of the file, without the rest."""
    plane, n = size[1] * size[2], slices.stop - slices.start
    out = np.empty((K, n, *size[1:]), np.float32)
    for k in range(K):
        offset = 4 * plane * (k * size[0] + slices.start)
        out[k] = np.fromfile(file, np.float32, n * plane, offset=offset).reshape(n, *size[1:])
    return out


Work = Callable[[Path, list[int], list[int]], tuple[np.ndarray, float]]


def _ours(streamed: bool = False) -> Work:
    import torch

    from contextseg.predict import labels_from_slabs

    def work(file: Path, size: list[int], shape: list[int]) -> tuple[np.ndarray, float]:
        held = None if streamed else torch.from_numpy(_read(file, size, slice(0, size[0])))

        def slabs() -> Iterator[tuple[int, int, torch.Tensor]]:
            for start in range(0, size[0], 32):  # half of a window of 64 slices
                part = slice(start, min(start + 32, size[0]))
                logits = (
                    torch.from_numpy(_read(file, size, part)) if held is None else held[:, part]
                )
                yield part.start, part.stop, logits
                del logits

        return _timed(lambda: labels_from_slabs(slabs(), size, shape))

    return work


def _nnunet(half: bool = False) -> Work:
    from nnunetv2.preprocessing.resampling.default_resampling import (
        resample_data_or_seg_to_shape as resampled,
    )

    def work(file: Path, size: list[int], shape: list[int]) -> tuple[np.ndarray, float]:
        logits = _read(file, size, slice(0, size[0])).astype(
            np.float16 if half else np.float32, copy=False
        )
        # Its plans' settings for logits; equal spacings, so that nothing is resampled slice by
        # slice.
        return _timed(
            lambda: resampled(logits, shape, [1] * 3, [1] * 3, False, 1, 0, None).argmax(0)
        )

    return work


def _nnunet_torch() -> Work:
    from nnunetv2.preprocessing.resampling.resample_torch import (
        resample_torch_fornnunet as resampled,
    )

    def work(file: Path, size: list[int], shape: list[int]) -> tuple[np.ndarray, float]:
        logits = _read(file, size, slice(0, size[0]))
        return _timed(lambda: resampled(logits, shape, [1] * 3, [1] * 3, num_threads=1).argmax(0))

    return work


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result, and the median CPU time: with one thread, that of an idle machine."""
    seconds: list[float] = []
    label: Any = None
    while sum(seconds) < REPEAT_S:
        label = None  # a repeat holds no more memory than the first
        start = time.process_time()
        label = run()
        seconds.append(time.process_time() - start)
    return label, float(np.median(seconds))


_WORK: dict[str, Callable[[], Work]] = {
    "ours": _ours,
    "ours_streamed": lambda: _ours(streamed=True),
    "nnunet": _nnunet,
    "nnunet_half": lambda: _nnunet(half=True),
    "nnunet_torch": _nnunet_torch,
}


if __name__ == "__main__":
    if "--task" in sys.argv:
        _task(*json.loads(sys.argv[-1]))
    else:
        for row in rows(quick="--quick" in sys.argv):
            print(
                f"{row[0]}: {row[2]:.3g} against {row[3]:.3g} ({row[3] / row[2]:.1f}x)  "
                f"{row[4]}; {row[1]}"
            )
