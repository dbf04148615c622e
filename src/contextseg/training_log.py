"""What is written down while a training runs: `log.jsonl`, `log.csv`, and TensorBoard's files."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, Protocol, TypedDict

from torch import Tensor

from contextseg.disk import csv_text, write_text, writing
from contextseg.errors import ContextsegError
from contextseg.inputs import read_json_lines


class _Timed(TypedDict, total=False):
    seconds: float


class LogRow(_Timed):
    """A line of `log.jsonl`; the terms of the loss stand beside these names."""

    step: int
    part: str


class Counters(Protocol):
    """What a log needs of a training; `training.TrainingState` has it."""

    step: int
    """Steps done."""

    seconds: float
    """Seconds that they took."""

    sums: dict[str, Tensor]
    """Sums of the loss terms over the steps since the last row."""

    count: int
    """Number of those steps."""


class TrainingLog:
    """`log.jsonl`, one row at a time, cut back to the checkpoint on resume; `log.csv` beside it.

    Args:
        folder: Where they lie.
        state: The training's counters.
        every: Steps between rows, each the mean since the row before.
        tensorboard: Whether it is also written for TensorBoard.

    Raises:
        ContextsegError: TensorBoard is asked for, and not installed, or the disk is full; so do
            `write` and `close`.
    """

    def __init__(
        self, folder: Path, state: Counters, every: int = 50, tensorboard: bool = False
    ) -> None:
        self.folder = folder
        self.state = state
        self.every = every
        self.latest: dict[str, float] = {}

        self.path = folder / "log.jsonl"
        self.rows = [row for row in log_rows(self.path) if row["step"] <= state.step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        with writing(self.path):
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self.writer = _tensorboard(folder) if tensorboard else None

        self.started = time.monotonic()
        self.seconds_before = state.seconds

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files, also after an error: Windows replaces none that is open."""
        self._close_files()

    def _close_files(self) -> None:
        with writing(self.path):
            self.file.close()
        if self.writer:
            self.writer.close()

    def add(self, terms: dict[str, Tensor], lr: float, last: bool) -> None:
        """Count the loss terms of one step, and write a row where one is due.

        Args:
            terms: The loss terms by name, scalars.
            lr: Learning rate of the step.
            last: Whether it is the last step.

        Raises:
            ContextsegError: A mean is not finite.
        """
        state = self.state
        state.seconds = self.seconds_before + time.monotonic() - self.started
        state.count += 1
        # The sums stay on the device: reading a number would wait for the GPU.
        for name, term in terms.items():
            state.sums[name] = state.sums.get(name, 0) + term.double()
        if not last and state.step % self.every:
            return

        means = {name: float(total) / state.count for name, total in state.sums.items()}
        state.sums = {}
        state.count = 0
        if not all(map(math.isfinite, means.values())):
            raise ContextsegError(
                self.folder,
                f"the loss is not finite at step {state.step} ({means})",
                "lower lr (--set lr=0.001), or check the data set",
            )
        self.latest = means
        self.write("train", means, lr=lr)

    def write(self, part: str, values: dict[str, float], **more: float) -> None:
        """Write one row.

        Args:
            part: "train" or "check".
            values: Numbers by name.
            **more: Numbers that only the file has.
        """
        seconds = round(self.state.seconds, 3)
        row = {"step": self.state.step, "part": part, "seconds": seconds, **more, **values}
        self.rows.append(row)
        with writing(self.path):
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{part}/{name}", value, self.state.step)

    def close(self) -> None:
        """Write `log.csv`."""
        self._close_files()
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        write_text(self.folder / "log.csv", csv_text(columns, self.rows))


def log_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without one that was cut off while it was written.

    Args:
        path: `log.jsonl`.

    Returns:
        The rows; [] for no file.
    """
    return read_json_lines(path, LogRow)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ContextsegError(
            "tensorboard=true", "TensorBoard is not installed", "pip install 'contextseg[track]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
