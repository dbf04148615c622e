"""Class probabilities of a whole scan on the disk, plane by plane in and class by class out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contextseg.disk import writing
from contextseg.errors import ContextsegError

STEPS = 65535
"""The stored number of a probability of 1."""


class ProbabilityStore:
    """Probabilities of every class on a grid, as 16-bit numbers in a file without a name.

    In memory is one plane of all classes, or one class. The file lies in a folder that has room, is
    hidden, and is gone when the process ends, however it ends (on Windows: when it ends by itself).

    Args:
        shape: (D, H, W) of the grid.
        classes: Number of classes, K.
        folder: Where the file lies; None for the system's folder of temporary files.

    Example:
        >>> store = ProbabilityStore((2, 1, 2), 2)
        >>> for d in range(2):
        ...     store.add(np.array([[[d, d]], [[7, 8]]], np.uint16))
        >>> store.of_class(0).tolist(), store.of_class(1).tolist()
        ([[[0, 0]], [[1, 1]]], [[[7, 8]], [[7, 8]]])
    """

    def __init__(
        self, shape: Sequence[int], classes: int, folder: str | Path | None = None
    ) -> None:
        self.shape = tuple(shape)
        self.classes = classes
        self.planes = 0
        with writing(folder or tempfile.gettempdir()):
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
            prefix = f".{os.urandom(4).hex()}-"  # a leftover, where files have to have names
            self.file = tempfile.TemporaryFile(dir=folder, prefix=prefix)  # noqa: SIM115

    def add(self, plane: np.ndarray) -> None:
        """Append the next plane along D.

        Args:
            plane: (K, H, W) uint16, from 0 to `STEPS`.

        Raises:
            ContextsegError: The disk is full.
        """
        with writing("probabilities"):
            self.file.write(np.ascontiguousarray(plane, np.uint16).data)
        self.planes += 1

    def of_class(self, k: int) -> np.ndarray:
        """The probabilities of one class.

        Args:
            k: Index of the class.

        Returns:
            (D, H, W) uint16, from 0 to `STEPS`.

        Raises:
            ContextsegError: A plane is missing, or the file was cut.
        """
        depth, height, width = self.shape
        size = height * width * 2
        array = np.empty(self.shape, np.uint16)
        self.file.flush()
        for d in range(depth):
            self.file.seek((d * self.classes + k) * size)
            content = self.file.read(size)
            if self.planes != depth or len(content) != size:
                what = f"{self.planes} of {depth} planes of probabilities are there"
                raise ContextsegError("probabilities", what, "predict the case again")
            array[d] = np.frombuffer(content, np.uint16).reshape(height, width)
        self.file.seek(0, os.SEEK_END)
        return array

    def close(self) -> None:
        """Delete the file."""
        self.file.close()
