"""Preprocessed cases on disk, and the facts that planning needs.

A case becomes a folder: `image.npy` (C, D, H, W) int16 with a scale for each channel, `label.npy`
(D, H, W) int16 class indices, `voxels.npz` (voxels to centre patches on) and `record.json`. Arrays
are memory-mapped, so that a patch costs the pages it touches. Intensities stay in the scan's own
units and are normalised as a patch is read, so that one cache serves every fold. The folder's name
holds a digest of the files' bytes and of the plan's grid: nothing stale is ever read.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.console import Progress, say
from contextseg.data.layouts import Case, Dataset, to_classes
from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.plan import Channel, Facts, Plan, is_ct
from contextseg.data.prepare import (
    Prepared,
    Record,
    body_box,
    check_channels,
    prepare,
    prepare_in_slabs,
    resample_mask,
    rescaled,
    slice_places,
)
from contextseg.disk import digest, read_json, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.formats.parts import files_of
from contextseg.grids import onto
from contextseg.inputs import refuse_no_file
from contextseg.leftovers import temporary_beside
from contextseg.memory_errors import raise_memory_error
from contextseg.parallel import map_cases
from contextseg.slabs import sample_of, save_slabs, slabs, unique_values
from contextseg.volume import AXIAL, Volume, read, read_labels

VERSION = 2
"""The format of a cached case, which is part of the digest."""


@dataclass(frozen=True)
class Cached:
    """One preprocessed case on disk.

    Its members raise `ContextsegError` where one of its files is missing or damaged.

    Attributes:
        folder: Where its files lie.
        record: How it was preprocessed.
        annotated: Whether each class was annotated.
        labelled: Whether it has a label.
    """

    folder: Path
    record: Record
    annotated: tuple[bool, ...]
    labelled: bool

    @cached_property
    def image(self) -> np.ndarray:
        """(C, *S) int16, memory-mapped; `patch` gives float32."""
        return self._opened("image")

    @cached_property
    def label(self) -> np.ndarray | None:
        """(*S) int16 class indices with IGNORE, memory-mapped; None for an unlabelled case."""
        if not self.labelled:
            return None
        label = self._opened("label")
        if label.shape != self.image.shape[1:]:
            raise _damaged(self.folder / "label.npy", _REMEDY)
        return label

    def _opened(self, name: str) -> np.ndarray:
        """One of the arrays; of those of all cases, the ones opened longest ago are closed."""
        array = load_array(self.folder / f"{name}.npy", _REMEDY)
        if array.dtype != np.int16 or array.ndim != (4 if name == "image" else 3):
            raise _damaged(self.folder / f"{name}.npy", _REMEDY)  # the file of another case or step
        with _OPENING:
            _OPENED.append((weakref.ref(self), name))
            while len(_OPENED) > _MOST_OPENED:
                case, other = _OPENED.popleft()
                if (before := case()) is not None:
                    before.__dict__.pop(other, None)
        return array

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """The classes that the label holds, without the background; () for an unlabelled case."""
        return tuple(sorted(int(name) for name in self._voxels(None) if name != "body"))

    def voxels(self, which: int | str) -> np.ndarray:
        """Voxels to centre patches on.

        Args:
            which: One of `classes`, or "body".

        Returns:
            Their indices, (N, 3) int16.
        """
        return self._voxels(str(which))

    def _voxels(self, name: str | None) -> Any:
        path = self.folder / "voxels.npz"
        try:
            # One array of the file is read, in a fifth of a millisecond, and none is kept.
            with np.load(path) as file:
                content = file.files if name is None else file[name]
            if isinstance(content, bytes):  # an entry that is no array
                raise ValueError(f"{name} is no array")
            return content
        except Exception as error:  # NumPy raises many classes for damaged files
            raise_memory_error(path, error)
            raise _damaged(path, _REMEDY) from error

    def patch(self, box: tuple[slice, ...], channels: Sequence[Channel]) -> np.ndarray:
        """Read a part of the normalised image.

        Args:
            box: A slice along each of D, H, W.
            channels: The channels of the network.

        Returns:
            (len(channels), *box) float32.
        """
        steps = [_step(low, high) for low, high in zip(self.record.low, self.record.high)]
        zeros = [low + 32768 * step for low, step in zip(self.record.low, steps)]
        places = slice_places(self.image.shape[1])[box[0]]
        stored = self.image[(slice(None), *box)]
        return rescaled(stored, steps, zeros, channels, self.record, places)


_MOST_OPENED = 256  # of the 1024 files that a process may usually have open
_OPENED: deque[tuple[weakref.ref[Cached], str]] = deque()
_OPENING = threading.Lock()

_REMEDY = (
    "delete the run's folder of the stage `preprocess`; "
    "when it is done again, what is damaged is made new"
)


def load_array(path: Path, remedy: str) -> np.ndarray:
    """Open a .npy file, memory-mapped.

    Args:
        path: The file.
        remedy: What to do where it cannot be opened.

    Returns:
        The array, read-only.

    Raises:
        ContextsegError: The file is missing, cut short or no .npy file.
    """
    try:
        refuse_no_file(path)
        return np.load(path, mmap_mode="r")
    except Exception as error:  # NumPy raises many classes for damaged files
        raise_memory_error(path, error)
        raise _damaged(path, remedy) from error


def _damaged(path: Path, remedy: str) -> ContextsegError:
    state = "damaged" if path.exists() else "missing"
    return ContextsegError(path, f"this preprocessed file is {state}", remedy)


# --- writing --------------------------------------------------------------------------------------


def preprocess(
    dataset: Dataset,
    cases: Sequence[Case],
    plan: Plan,
    folder: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> list[Cached]:
    """Preprocess cases into a folder. What is there already is not done again.

    Several processes may fill the same folder at once.

    Args:
        dataset: The data set of the cases.
        cases: The cases.
        plan: Orientation, spacing and channels.
        folder: Folder of the cache.
        workers: Number of cases at a time.
        progress: Called with (done, of) after each case.

    Returns:
        The preprocessed cases, in the order of `cases`.

    Raises:
        ContextsegError: A case cannot be read. The others are done first, and kept.
    """

    def work(case: Case) -> Cached:
        return _preprocess_case(dataset, case, plan, Path(folder))

    done: list[Cached] = []
    failed: list[tuple[str, ContextsegError]] = []
    for case, result in map_cases(work, cases, workers, progress):
        if isinstance(result, ContextsegError):
            failed.append((case.name, result))
        else:
            done.append(result)
    if failed:
        first = failed[0][1]
        more = ""
        if len(failed) > 1:
            names = ", ".join(name for name, _ in failed[1:6]) + (" ..." if len(failed) > 6 else "")
            more = f" ({len(failed) - 1} more cannot be used: {names})"
        raise ContextsegError(first.where, first.what + more, first.remedy)
    return done


def _preprocess_case(dataset: Dataset, case: Case, plan: Plan, folder: Path) -> Cached:
    settings = [
        VERSION,
        plan.orientation,
        plan.spacing_mm,
        [plan.ct, len(plan.scanned)],
        list(dataset.values),
        dataset.ignore,
        *(["native"] if plan.native else []),
    ]
    files = [file for path in (*case.images, case.label) if path for file in files_of(path)]
    place = folder / f"{case.name}-{digest(settings, *files)}"
    annotated = tuple(
        case.annotated is None or i == 0 or name in case.annotated
        for i, name in enumerate(dataset.classes)
    )
    if not _whole(place, case.label is not None):
        scan, label = _read(dataset, case)
        if isinstance(plan, NNUNetPlan):
            _save(place, *prepare(scan, plan, case.name, label))
        else:
            _save(place, *prepare_in_slabs(scan, plan, case.name, label))
    return Cached(place, load_record(place / "record.json"), annotated, case.label is not None)


def share_cache(run: Path) -> None:
    """Let a run without a cache use that of a run beside it, which would be the same.

    The runs lie in one folder, are of one data set and its classes, and have one grid: such as the
    folds of a cross-validation. The cache becomes a link; where links cannot be made, or it is
    deleted with the other run, the run makes its own.

    Args:
        run: Folder of the run, with its `run.json` and `plan.json`.
    """
    own = _cache_facts(run)
    if own is None or os.path.lexists(run / "cache"):
        return
    for other in sorted(run.parent.iterdir()):
        cache = other / "cache"
        if other == run or other.name.startswith(".") or not cache.is_dir() or cache.is_symlink():
            continue
        if _cache_facts(other) == own:
            with suppress(OSError):
                os.symlink(Path("..", other.name, "cache"), run / "cache", target_is_directory=True)
                say(f"preprocess: shares the cache of {other}")
            return


def _cache_facts(run: Path) -> Any:
    """What the cached cases of a run depend on; None where nobody can know."""
    try:
        settings = read_json(run / "run.json")["settings"]
        plan = Plan.load(run / "plan.json")
        data = str(Path(settings["dataset"]).resolve())
        scanned = (plan.orientation, plan.spacing_mm, plan.ct, len(plan.scanned), plan.native)
        return data, tuple(settings.get("roi", ())), tuple(plan.values), scanned
    except (ContextsegError, OSError, KeyError, TypeError):
        return None


def _read(dataset: Dataset, case: Case) -> tuple[Volume, np.ndarray | None]:
    """A case's scan and its label in class indices, both checked."""
    scan = read(*case.images)
    check_channels(scan.array, dataset.channels, case.images)
    if case.label is None:
        return scan, None
    on_disk = onto(read_labels(case.label, small=True), scan, case.label)
    return scan, to_classes(dataset, on_disk.array, case.label, small=True)


def _whole(place: Path, labelled: bool) -> bool:
    """Whether a case is there, with all of its files at their full length."""
    try:
        case = Cached(place, load_record(place / "record.json"), (), labelled)
        label_there = case.label is None or case.label.size
        return bool(case.image.size and case.voxels("body").size and label_there)
    except ContextsegError:
        return False


def _save(
    place: Path,
    image: np.ndarray | Prepared,
    label: np.ndarray | None,
    body: np.ndarray,
    record: Record,
) -> None:
    """Write a case beside `place`, then move it there, unless another process was faster."""
    temporary = temporary_beside(place)
    old = temporary_beside(place)
    with writing(place):
        try:
            temporary.mkdir(parents=True)
            save_slabs(temporary / "image.npy", image.shape, np.int16, _ints(image, record))
            if label is not None:
                parts = ((part, label[part]) for part in slabs(label.shape))
                save_slabs(temporary / "label.npy", label.shape, np.int16, parts)
            body = resample_mask(body, image.shape[1:])
            voxels: dict[str, Any] = places_of(body, label, record.name)
            np.savez(temporary / "voxels.npz", **voxels)
            write_json(temporary / "record.json", asdict(record))
            if place.exists() and not _whole(place, label is not None):
                place.rename(old)
            temporary.rename(place)
        except OSError:
            if not _whole(place, label is not None):
                raise
        finally:
            for folder in (temporary, old):
                shutil.rmtree(folder, ignore_errors=True)


def _ints(image: np.ndarray | Prepared, record: Record) -> Iterator[tuple[slice, np.ndarray]]:
    """The image as it is stored, slab by slab: where each lies along D, and (C, n, H, W) int16."""
    for part in slabs(image.shape[1:]):
        if isinstance(image, Prepared):
            channels = image.slab(part.start, part.stop)
        else:
            channels = image[:, part]
        ends = zip(channels, record.low, record.high)
        yield part, np.stack([_to_int16(channel, low, high) for channel, low, high in ends])


def load_record(path: Path) -> Record:
    """Read the record of a preprocessed case.

    Args:
        path: The file.

    Returns:
        The record.

    Raises:
        ContextsegError: The file is missing or damaged.
    """
    try:
        content: dict[str, Any] = read_json(path, Record, _REMEDY)
        for name in ("affine", "box"):
            content[name] = tuple(tuple(row) for row in content[name])
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        return Record(**tuples)
    except (ContextsegError, OSError, TypeError, KeyError) as error:
        raise _damaged(path, _REMEDY) from error


def _step(low: float, high: float) -> float:
    """The intensity from one int16 to the next, where [low, high] is spread over all of them."""
    return (high - low) / 65535 or 1.0


def _to_int16(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (channel - np.float32(low)) * np.float32(1 / _step(low, high)) - np.float32(32768)
    return np.rint(scaled).clip(-32768, 32767).astype(np.int16)


def places_of(
    body: np.ndarray | None, label: np.ndarray | None, name: str, most: int = 10_000
) -> dict[str, np.ndarray]:
    """Voxels of the body and of each class, to centre patches on.

    Args:
        body: (D, H, W) bool, or None; an empty body stands for the whole case.
        label: Class indices (D, H, W), or None.
        name: Name of the case, the seed of the choice.
        most: Largest number of voxels of the body and of each class.

    Returns:
        Indices (N, 3) int16 of the "body" and of each class but the background, by its number as
        text.
    """
    rng = np.random.default_rng(int(digest(name), 16))
    out = {}

    def note(key: str, mask: np.ndarray) -> None:
        flat = np.sort(sample_of(mask, most, rng))
        out[key] = np.stack(np.unravel_index(flat, mask.shape), 1).astype(np.int16)

    if body is not None:
        note("body", body if body.any() else np.ones_like(body))
    if label is not None:
        for k in unique_values(label):
            if k > 0:
                note(str(k), label == k)
    return out


# --- facts ----------------------------------------------------------------------------------------


def fingerprint(
    dataset: Dataset,
    cases: Sequence[Case],
    *,
    workers: int = 2,
    progress: Progress | None = None,
    sample: int = 10_000,
) -> list[Facts]:
    """Read the facts of each case.

    Args:
        dataset: The data set of the cases.
        cases: The cases.
        workers: Number of cases read at a time.
        progress: Called with (done, of) after each case.
        sample: Largest number of foreground voxels whose intensities are kept of each case.

    Returns:
        The facts, in the order of `cases`.

    Raises:
        ContextsegError: A case cannot be read; cases that have not begun are not read any more.
    """

    def work(case: Case) -> Facts:
        scan, label = _read(dataset, case)
        turned = scan.oriented(AXIAL)
        axial_label = None if label is None else scan.with_array(label).oriented(AXIAL).array
        _, box = body_box(turned, is_ct(dataset.channels[0]), axial_label)
        roi: tuple[np.ndarray, ...] = ()
        if label is not None:
            rng = np.random.default_rng(int(digest(case.name), 16))
            flat = sample_of(label > 0, sample, rng)
            voxels = np.unravel_index(flat, label.shape)
            if len(flat):
                roi = tuple(channel[voxels].astype(np.float32) for channel in scan.array)
        d, h, w = (stop - start for start, stop in box)
        return Facts(case.name, (d, h, w), turned.spacing_mm, scan.orientation, roi, turned.shape)

    facts = []
    for _, result in map_cases(work, cases, workers, progress):
        if isinstance(result, ContextsegError):
            raise result
        facts.append(result)
    return facts
