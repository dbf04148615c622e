"""Preprocessed cases on disk, and the facts that planning needs.

A case becomes a folder: `image.npy` (C, D, H, W) int16 with a scale for each channel, `label.npy` (D, H, W) int16 class
indices, `voxels.npz` (places to centre patches on) and `record.json`. Arrays are memory-mapped, so a patch costs the
pages it touches. Intensities stay in the scan's own units and are normalised as a patch is read, so one cache serves
every fold. The folder's name holds a digest of the files' bytes and of what was asked: nothing stale is ever read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.layouts import Case, Dataset, to_classes
from contextseg.data.plan import Channel, Facts, Plan
from contextseg.data.prepare import Record, body_mask, extent, normalise, prepare
from contextseg.disk import Problem, digest, read_json, replacing, write_json
from contextseg.volume import AXIAL, read, read_labels

VERSION = 1
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Cached:
    """One preprocessed case on disk."""

    folder: Path
    record: Record
    annotated: tuple[bool, ...]
    labelled: bool

    @cached_property
    def image(self) -> np.ndarray:
        """(C, *S) int16, memory-mapped; `patch` gives float32."""
        return np.load(self.folder / "image.npy", mmap_mode="r")

    @cached_property
    def label(self) -> np.ndarray | None:
        """(*S) int16 class indices with IGNORE, memory-mapped; None for an unlabelled case."""
        return np.load(self.folder / "label.npy", mmap_mode="r") if self.labelled else None

    @cached_property
    def voxels(self) -> dict[str, np.ndarray]:
        """Places to centre patches on, (N, 3) int16 each: "body", and one for each class present, by its index."""
        with np.load(self.folder / "voxels.npz") as file:
            return dict(file)

    def patch(self, box: tuple[slice, ...], channels: Sequence[Channel]) -> np.ndarray:
        """The normalised image inside `box`, (C, *box) float32."""
        steps = np.array([(high - low) / 65535 for low, high in zip(self.record.low, self.record.high)], np.float32)
        lows = np.array(self.record.low, np.float32)
        wide = (slice(None), None, None, None)
        raw = self.image[(slice(None), *box)].astype(np.float32)
        return normalise((raw + 32768) * steps[wide] + lows[wide], channels, self.record)


def preprocess(
    dataset: Dataset,
    cases: Sequence[Case],
    plan: Plan,
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[Cached]:
    """Preprocess `cases` into `folder`, several at a time; what is there already is not done again.

    Raises `Problem` for the first case that cannot be read, after the others are done and kept.
    """
    done: list[Cached | Problem] = []

    def one(case: Case) -> Cached | Problem:
        try:
            return _preprocess_case(dataset, case, plan, Path(folder))
        except Problem as problem:
            return problem

    with ThreadPoolExecutor(workers) as pool:
        for result in pool.map(one, cases):
            done.append(result)
            if progress:
                progress(len(done), len(cases))
    for result in done:
        if isinstance(result, Problem):
            raise result
    return [result for result in done if isinstance(result, Cached)]


def _preprocess_case(dataset: Dataset, case: Case, plan: Plan, folder: Path) -> Cached:
    asked = [
        VERSION,
        plan.orientation,
        plan.spacing_mm,
        plan.channels[0].kind == "ct",
        list(dataset.values),
        dataset.ignore,
    ]
    files = [file for path in (*case.images, case.label) if path for file in _files(path)]
    place = folder / f"{case.name}-{digest(asked, *files)}"
    if not (place / "record.json").exists():
        scan = read(*case.images)
        label = None
        if case.label:
            on_disk = read_labels(case.label)
            if not on_disk.same_grid(scan):
                raise Problem(case.label, "its grid differs from the image's", "run `contextseg check` on the data set")
            label = to_classes(dataset, on_disk.array, case.label)
        image, label, body, record = prepare(scan, plan, case.name, label)
        with replacing(place) as temporary:
            temporary.mkdir()
            scaled = [_to_int16(c, low, high) for c, low, high in zip(image, record.low, record.high)]
            np.save(temporary / "image.npy", np.stack(scaled))
            if label is not None:
                np.save(temporary / "label.npy", label.astype(np.int16))
            np.savez(temporary / "voxels.npz", **_places(body, label, case.name))
            write_json(temporary / "record.json", asdict(record))
    annotated = tuple(
        case.annotated is None or i == 0 or name in case.annotated for i, name in enumerate(dataset.classes)
    )
    return Cached(place, load_record(place / "record.json"), annotated, case.label is not None)


def load_record(path: Path) -> Record:
    """Read a record. Raises `Problem` if it is missing or damaged."""
    content: dict[str, Any] = read_json(path)
    for name in ("affine", "box"):
        content[name] = tuple(tuple(row) for row in content[name])
    return Record(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]


def _to_int16(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] onto all of int16; a spline's overshoot beyond the scan's own extremes is clipped."""
    scaled = (np.clip(channel, low, high) - low) * (65535 / max(high - low, 1e-30)) - 32768
    return np.rint(scaled).clip(-32768, 32767).astype(np.int16)


def _places(body: np.ndarray, label: np.ndarray | None, name: str, most: int = 10_000) -> dict[str, np.ndarray]:
    """Up to `most` voxels of the body and of each class, drawn by a seed that is the case's name."""
    rng = np.random.default_rng(int(digest(name), 16))
    masks = {"body": body if body.any() else np.ones_like(body)}
    if label is not None:
        masks |= {str(k): label == k for k in np.unique(label) if k > 0}
    out = {}
    for key, mask in masks.items():
        flat = np.flatnonzero(mask)
        if len(flat) > most:
            flat = np.sort(rng.choice(flat, most, replace=False))
        out[key] = np.stack(np.unravel_index(flat, mask.shape), 1).astype(np.int16)
    return out


# --- facts ----------------------------------------------------------------------------------------------------------


def fingerprint(
    dataset: Dataset, cases: Sequence[Case], *, workers: int = 2, progress: Progress | None = None, sample: int = 10_000
) -> list[Facts]:
    """The facts of each case, read once. Raises `Problem` for a case that cannot be read."""

    def one(case: Case) -> Facts:
        scan = read(*case.images)
        turned = scan.oriented(AXIAL)
        ct = dataset.channels[0].strip().lower() == "ct"
        box = [extent(body_mask(np.asarray(turned.array, np.float32), ct), axis) for axis in range(3)]
        roi: tuple[tuple[float, ...], ...] = ()
        if case.label:
            label = to_classes(dataset, read_labels(case.label).array, case.label)
            flat = np.flatnonzero(label > 0) if label.shape == scan.shape else np.zeros(0, int)
            if len(flat) > sample:
                flat = np.random.default_rng(int(digest(case.name), 16)).choice(flat, sample, replace=False)
            if len(flat):
                roi = tuple(tuple(channel.ravel()[flat].astype(float).tolist()) for channel in scan.array)
        d, h, w = (b - a for a, b in box)
        return Facts(case.name, (d, h, w), turned.spacing_mm, scan.orientation, roi)

    facts = []
    with ThreadPoolExecutor(workers) as pool:
        for fact in pool.map(one, cases):
            facts.append(fact)
            if progress:
                progress(len(facts), len(cases))
    return facts
