"""Where each voxel of a label comes from: a person, a fill between two slices, a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.formats import ending
from contextseg.grids import label_type
from contextseg.propagation import AXES, Filled
from contextseg.volume import Volume, read_labels, write

Origin = Mapping[str, Any]
"""One origin, as JSON content: its "kind", and what belongs to it."""

_NOBODY: Origin = {"kind": "nobody"}
_HUMAN: Origin = {"kind": "human"}


@dataclass(frozen=True)
class Origins:
    """The origin of each voxel of a label map.

    Attributes:
        codes: (D, H, W) unsigned integers, a code for each voxel.
        table: What each code means. `{"kind": ...}` with

            - "nobody": not labelled;
            - "human": drawn by a person, or changed by one;
            - "given": it came with the scans;
            - "fill": filled; "slices" are the numbers of the labelled slices on both sides
              (one, beyond the outermost), "plane", "axis" and "way" say how, and "model" by which
              network;
            - "model": predicted; "round", "model" and "run" say by which.
    """

    codes: np.ndarray
    table: Mapping[int, Origin]

    @staticmethod
    def of_drawing(known: np.ndarray) -> Origins:
        """Origins of a drawing: a person where something is known, nobody elsewhere.

        Args:
            known: (D, H, W) bool.
        """
        return Origins(known.astype(np.uint8), {0: _NOBODY, 1: _HUMAN})

    @staticmethod
    def everywhere(shape: tuple[int, ...], origin: Origin) -> Origins:
        """One origin for all voxels.

        Args:
            shape: (D, H, W).
            origin: The origin.
        """
        return Origins(np.full(shape, 2, np.uint8), {2: dict(origin)})

    @staticmethod
    def of_fill(filled: Filled, known: np.ndarray, way: str, model: str = "") -> Origins:
        """Origins of a filled scan.

        Args:
            filled: The filled scan.
            known: (D, H, W) bool, what a person drew.
            way: How it was filled.
            model: Name of the network that filled it; "" without one.

        Returns:
            A code for each stretch between two labelled slices, and for those beyond.

        Example:
            >>> from contextseg.propagation import LabelledSlices
            >>> label = Volume(np.zeros((4, 1, 1), int), np.eye(4))
            >>> labelled = LabelledSlices(0, {1: np.ones((1, 1)), 3: np.ones((1, 1))})
            >>> known = np.array([0, 1, 0, 1], bool).reshape(4, 1, 1)
            >>> origins = Origins.of_fill(Filled(label, np.ones(4), labelled), known, "nearest")
            >>> origins.codes.ravel().tolist(), origins.table[3]["slices"]
            ([2, 1, 3, 1], [1, 3])
        """
        axis, labelled = filled.axis, sorted(filled.labelled.slices)
        letter = filled.label.orientation[axis]
        plane = next((name for name, letters in AXES.items() if letter in letters), "")
        facts = {"kind": "fill", "plane": plane, "axis": axis, "way": way, "model": model}
        table: dict[int, Origin] = {0: _NOBODY, 1: _HUMAN}
        number = np.empty(len(filled.confidence), label_type(len(labelled) + 3))
        for part, (start, stop) in enumerate(zip([0, *labelled], [*labelled, len(number)])):
            ends = labelled[max(0, part - 1) : part + 1]
            table[part + 2] = {**facts, "slices": ends}
            number[start:stop] = part + 2
        across = [1, 1, 1]
        across[axis] = len(number)
        codes = np.broadcast_to(number.reshape(across), known.shape)
        codes = np.where(known, codes.dtype.type(1), codes)
        return Origins(codes, table).tidy()

    def with_human(self, changed: np.ndarray) -> Origins:
        """The same origins, but a person's where somebody drew or changed something.

        Args:
            changed: (D, H, W) bool.
        """
        return Origins(
            np.where(changed, self.codes.dtype.type(1), self.codes), {**self.table, 1: _HUMAN}
        ).tidy()

    def tidy(self) -> Origins:
        """The same origins without codes that no voxel has."""
        held = np.unique(self.codes).tolist()
        return Origins(self.codes, {code: self.table[code] for code in held})

    def counts(self) -> dict[str, int]:
        """Voxels of each kind."""
        counts: dict[str, int] = {}
        for code, voxels in zip(*np.unique(self.codes, return_counts=True)):
            kind = str(self.table[int(code)]["kind"])
            counts[kind] = counts.get(kind, 0) + int(voxels)
        return counts

    def save(self, path: str | Path, like: Volume) -> None:
        """Write the codes as a label map, and their table as JSON beside it.

        Args:
            path: File of the codes.
            like: A volume on the same grid.

        Raises:
            ContextsegError: The disk cannot be written to.
        """
        table = {str(code): dict(origin) for code, origin in sorted(self.table.items())}
        write_json(table_file(path), table)
        write(path, like.with_array(self.codes))

    @staticmethod
    def load(path: str | Path) -> Origins:
        """Origins that `save` wrote.

        Args:
            path: File of the codes.

        Raises:
            ContextsegError: A file is missing or damaged, or a code is in no table.
        """
        codes = read_labels(path).array
        content = read_json(table_file(path), dict[str, dict[str, Any]], "accept the case again")
        if odd := [code for code in content if not re.fullmatch(r"\d{1,9}", code)]:
            raise ContextsegError(table_file(path), f"{odd[0][:40]!r} is no code", "accept again")
        table = {int(code): origin for code, origin in content.items()}
        unknown = sorted(set(np.unique(codes).tolist()) - set(table))
        if unknown:
            what = f"codes that {table_file(path).name} lacks: {unknown[:5]}"
            raise ContextsegError(path, what, "accept the case again")
        return Origins(codes.astype(label_type(int(codes.max(initial=0)))), table)


def table_file(path: str | Path) -> Path:
    """The table beside a file of codes.

    Args:
        path: File of the codes.

    Returns:
        A JSON file of the same name.

    Example:
        >>> table_file("1.3.6.nii.gz").name
        '1.3.6.json'
    """
    path = Path(path)
    return path.with_name(path.name.removesuffix(ending(path)) + ".json")
