"""What a predictor makes of one scan, on the scan's own grid, and how it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contextseg.data.components import Change
from contextseg.data.listing import stem
from contextseg.data.prepare import Record, undo
from contextseg.disk import writing
from contextseg.evaluation.calibration import confidence_file
from contextseg.formats.nifti import write_nifti
from contextseg.interop.reading import write_classes
from contextseg.interop.segments import Segment, class_segments
from contextseg.methods.presence import Flags
from contextseg.predict import STEPS, ProbabilityStore
from contextseg.volume import Volume, write

PROBABILITIES = "probabilities"
CONTEXT_MAPS = "contexts"
CLASS_FILES = "classes"
"""Folders beside label maps: CASE/CLASS.nii.gz, CASE.nii.gz and CASE/CLASS.nii.gz."""


class Probabilities(Mapping[str, Volume]):
    """The probability of each class, by name, on a scan's own grid; read class by class.

    The mean over the parts of an ensemble, each of which had a grid of its own. Outside the body,
    which no network sees, the background has probability 1.

    Args:
        grid: The label map, for its grid.
        names: Names of the classes, the background first.
        parts: Of each part its store, how the scan was prepared for it, and its weight.
    """

    def __init__(
        self,
        grid: Volume,
        names: Sequence[str],
        parts: Sequence[tuple[ProbabilityStore, Record, float]],
    ) -> None:
        self.grid = grid
        self.names = tuple(names)
        self.parts = tuple(parts)

    def __getitem__(self, name: str) -> Volume:
        """The probability of a class, (D, H, W) float32 from 0 to 1."""
        if name not in self.names:
            raise KeyError(name)
        return self.grid.with_array(self.stored(self.names.index(name)) / np.float32(STEPS))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def stored(self, k: int) -> np.ndarray:
        """The probability of class `k` as it is stored.

        Args:
            k: Index of the class.

        Returns:
            (D, H, W) uint16, from 0 to `STEPS`.
        """
        if len(self.parts) == 1:
            store, record, _ = self.parts[0]
            return undo(store.of_class(k), record, 0 if k else STEPS).array
        total = np.zeros(self.grid.shape, np.float32)
        weights = sum(weight for _, _, weight in self.parts)
        for store, record, weight in self.parts:
            own = undo(store.of_class(k), record, 0 if k else STEPS).array
            total += own * np.float32(weight / weights)
        return np.rint(total).astype(np.uint16)

    def winner(self) -> tuple[np.ndarray, np.ndarray]:
        """The class of the largest probability, the first of equal ones; and that probability.

        Returns:
            Indices (D, H, W) int16, and (D, H, W) uint16 from 0 to `STEPS`.
        """
        best = self.stored(0)
        index = np.zeros(best.shape, np.int16)
        for k in range(1, len(self.names)):
            other = self.stored(k)
            better = other > best
            index[better] = k
            np.maximum(best, other, out=best)
        return index, best

    def save(self, folder: str | Path, classes: Sequence[str] = ()) -> list[Path]:
        """Write CLASS.nii.gz of each class: 16-bit numbers, which programs read as 0 to 1.

        Args:
            folder: Where to.
            classes: Which; () for all, the background too.

        Returns:
            The files.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        paths = []
        for k, name in enumerate(self.names):
            if not classes or name in classes:
                paths.append(Path(folder) / f"{file_name(name)}.nii.gz")
                grid = self.grid
                write_nifti(paths[-1], self.stored(k), grid.affine, grid.header, 1 / STEPS)
        return paths

    def close(self) -> None:
        """Delete the stored numbers."""
        for store, _, _ in self.parts:
            store.close()

    def __repr__(self) -> str:
        return f"Probabilities({', '.join(self.names)})"


@dataclass(frozen=True)
class Segmentation:
    """What a `Predictor` makes of one scan, on the scan's own grid.

    Attributes:
        label: (D, H, W) integers, in the values of the training label files.
        classes: Value of each class in `label`, by name, without the background.
        confidence: (D, H, W) uint8, the probability of the label from 0 to 255. None where the
            settings do not ask for it.
        removed: What keeping the largest component removed. None where the settings do not ask.
        presence: What presence heads saw of each class, by name. None without such a head.
        name: Name of the case; empty where nobody gave one.
        segments: The classes with colour and terminology. () for the names of `classes` alone.
        probabilities: Of each class, by name, background included. None where nobody asked.
        contexts: (D, H, W) labels in which the background is split into the context classes of the
            method, after the values of the classes. None where nobody asked.
    """

    label: Volume
    classes: Mapping[str, int]
    confidence: Volume | None = None
    removed: Change | None = None
    presence: Flags | None = None
    name: str = ""
    segments: tuple[Segment, ...] = ()
    probabilities: Probabilities | None = None
    contexts: Volume | None = None

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in millilitres."""
        voxel_ml = abs(float(np.linalg.det(self.label.affine[:3, :3]))) / 1000
        return {
            name: int((self.label.array == value).sum()) * voxel_ml
            for name, value in self.classes.items()
        }

    def save(self, path: str | Path) -> Path:
        """Write the label map, and beside it what else there is.

        Args:
            path: Label file, such as "out.nii.gz". The confidence map goes to a file of the same
                name in the folder "confidence" beside it, where `evaluate` finds it; the
                probabilities to "probabilities/out/CLASS.nii.gz", the context classes to
                "contexts/out.nii.gz".

        Returns:
            `path`.

        Raises:
            ContextsegError: The ending is unknown, or the disk cannot be written to.
        """
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.confidence is not None:
            write(confidence_file(path), self.confidence)
        if self.probabilities is not None:
            self.probabilities.save(
                beside(path, PROBABILITIES), (self.probabilities.names[0], *self.classes)
            )
        if self.contexts is not None:
            write(path.parent / CONTEXT_MAPS / path.name, self.contexts)
        # Last: a label map that is there is a case that is done.
        write_classes(path, self.label, self.segments or class_segments(self.classes))
        return path

    def save_classes(self, path: str | Path) -> list[Path]:
        """Write a mask of each class, 0 or 1, into the folder "classes" beside a label file.

        Args:
            path: The label file, such as "out.nii.gz"; the masks are "classes/out/CLASS.nii.gz".

        Returns:
            The masks.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        folder = beside(Path(path), CLASS_FILES)
        paths = []
        for name, value in self.classes.items():
            paths.append(folder / f"{file_name(name)}.nii.gz")
            write(paths[-1], self.label.with_array((self.label.array == value).astype(np.uint8)))
        return paths

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.label.shape))
        volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in self.volumes_ml.items())
        title = f"{self.name}: " if self.name else ""
        return f"Segmentation({title}{shape}; {volumes})"

    def _repr_html_(self) -> str:
        from html import escape

        picture = self.label._repr_html_()
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{ml:.1f} ml</td></tr>"
            for name, ml in self.volumes_ml.items()
        )
        return f"<div>{picture}<table>{rows}</table></div>"


def beside(path: Path, folder: str) -> Path:
    """The folder of a case among those beside its label file.

    Args:
        path: The label file.
        folder: Which, such as "probabilities".

    Returns:
        FOLDER/CASE beside the label file.

    Example:
        >>> beside(Path("out/a.nii.gz"), "classes").as_posix()
        'out/classes/a'
    """
    return path.parent / folder / stem(path)


def file_name(name: str) -> str:
    """A class's name as the name of a file.

    Example:
        >>> file_name("lung, left/upper")
        'lung_left_upper'
    """
    return re.sub(r"[^\w.+-]+", "_", name).lstrip(".") or "_"
