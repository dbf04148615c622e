"""The state of a project: one table on disk, a row for each case."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contextseg.disk import csv_text, file_state, read_rows, turn_in, write_text
from contextseg.errors import ContextsegError, did_you_mean

STATES = (
    "unlabelled",
    "drawn",
    "filled",
    "trained on",
    "predicted",
    "reviewed",
    "accepted",
)
"""States of a case, from the first to the last."""

USES = ("train", "test")
"""What a case is for: to learn from, or locked, to measure with."""

TABLE_COLUMNS = (
    "case",
    "use",
    "state",
    "slices",
    "minutes",
    "expected_dice",
    "drawn",
    "filled",
    "trained",
    "predicted",
    "reviewed",
    "accepted",
)


@dataclass(frozen=True)
class ProjectCase:
    """What is known of one case of a project.

    Attributes:
        case: Name of the case.
        use: "train", or "test" for a case that is locked for measuring.
        slices: Slices that people labelled.
        minutes: Time that people spent on it, as far as it was noted.
        expected_dice: Dice to be expected of the newest prediction. NaN without one.
        drawn: Digest of what was drawn; "" where nothing was.
        filled: Digest of the drawing that the filled label map was made from; "" without one.
        trained: Rounds whose model learned from labels of this case.
        predicted: Round of the newest prediction. 0 without one.
        reviewed: Round of the newest prediction that a person has looked at. 0 without one.
        accepted: Where the accepted label comes from: "given", "drawing", "fill", "prediction-N" or
            "file". "" where none is accepted.
    """

    case: str
    use: str = "train"
    slices: int = 0
    minutes: float = 0.0
    expected_dice: float = math.nan
    drawn: str = ""
    filled: str = ""
    trained: tuple[int, ...] = ()
    predicted: int = 0
    reviewed: int = 0
    accepted: str = ""

    @property
    def state(self) -> str:
        """The last of `STATES` that the case has reached.

        Example:
            >>> ProjectCase("a", slices=3, drawn="1f", trained=(1,)).state
            'trained on'
        """
        learned = max(self.trained, default=0)
        if self.accepted:
            return "accepted"
        if self.predicted > learned:
            return "reviewed" if self.reviewed >= self.predicted else "predicted"
        if learned:
            return "trained on"
        if self.drawn:
            return "filled" if self.filled == self.drawn else "drawn"
        return "unlabelled"

    def to_row(self) -> dict[str, str]:
        """The case as a row of the table, in text."""
        expected = self.expected_dice
        return {
            "case": self.case,
            "use": self.use,
            "state": self.state,
            "slices": str(self.slices),
            "minutes": f"{self.minutes:g}",
            "expected_dice": "" if math.isnan(expected) else f"{expected:.4f}",
            "drawn": self.drawn,
            "filled": self.filled,
            "trained": " ".join(map(str, self.trained)),
            "predicted": str(self.predicted),
            "reviewed": str(self.reviewed),
            "accepted": self.accepted,
        }

    @staticmethod
    def from_row(row: dict[str, str]) -> ProjectCase:
        """The case of a row; its column "state" follows from the others and is not read.

        Args:
            row: Text by column.

        Raises:
            ValueError: A number is none, or the use is unknown.
        """
        if row["use"] not in USES:
            raise ValueError(f"use {row['use']!r}")
        return ProjectCase(
            case=row["case"],
            use=row["use"],
            slices=int(row["slices"]),
            minutes=float(row["minutes"]),
            expected_dice=float(row["expected_dice"] or "nan"),
            drawn=row["drawn"],
            filled=row["filled"],
            trained=tuple(int(n) for n in row["trained"].split()),
            predicted=int(row["predicted"]),
            reviewed=int(row["reviewed"]),
            accepted=row["accepted"],
        )


class ProjectTable:
    """The table of a project: read anew before each change, and written whole, atomically.

    Processes that change it at the same time wait for their turn.

    Args:
        path: File of the table; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._state: tuple[int, int, int] | None = None
        self._known: dict[str, ProjectCase] = {}
        self._together = False
        self._pending: dict[str, dict[str, Any]] = {}  # notes that are not written yet

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write the notes of a block in about twenty parts, not the whole table for each.

        After a kill the last of them are missing; what is noted is done again then.
        """
        outer, self._together = self._together, True
        try:
            yield
        finally:
            self._together = outer
            if not outer:
                self._write_pending()

    def cases(self) -> dict[str, ProjectCase]:
        """Every case by name, in the order of the table.

        Raises:
            ContextsegError: The table has other columns, or a value that cannot be read.
        """
        state = file_state(self.path)
        if state is not None and state == self._state:
            return dict(self._known)
        cases = {}
        for number, row in enumerate(read_rows(self.path, TABLE_COLUMNS), start=2):
            try:
                cases[row["case"]] = ProjectCase.from_row(row)
            except (TypeError, ValueError) as error:
                what = f"line {number} cannot be read ({error})"
                raise ContextsegError(self.path, what, "mend the line in a text editor") from error
        for name, facts in self._pending.items():
            cases[name] = replace(cases[name], **facts)
        self._known, self._state = cases, state
        return dict(cases)

    def case(self, name: str) -> ProjectCase:
        """One case.

        Args:
            name: Name of the case.

        Raises:
            ContextsegError: There is no such case.
        """
        if file_state(self.path) != self._state:
            self.cases()
        if name not in self._known:
            raise ContextsegError(name, "no case of this project", did_you_mean(name, self._known))
        return self._known[name]

    def add(self, cases: Iterable[ProjectCase]) -> None:
        """Add rows for cases that have none yet.

        Args:
            cases: The cases; those that are there stay as they are.
        """
        given = list(cases)
        known = self.cases()
        if all(case.case in known for case in given):
            return
        with turn_in(self.path.parent):
            known = self.cases()
            new = {case.case: case for case in given if case.case not in known}
            self._write({**known, **new})

    def note(self, name: str, **facts: Any) -> ProjectCase:
        """Change facts of one case.

        Args:
            name: Name of the case.
            **facts: Attributes of `ProjectCase` by name.

        Returns:
            The case as it is now.

        Raises:
            ContextsegError: There is no such case, or the disk cannot be written to.
        """
        row = replace(self.case(name), **facts)
        if self._together:
            self._pending[name] = {**self._pending.get(name, {}), **facts}
            self._known[name] = row
            if len(self._pending) > len(self._known) // 20:
                self._write_pending()
            return row
        with turn_in(self.path.parent):
            cases = self.cases()
            cases[name] = replace(cases[name], **facts)
            self._write(cases)
        return cases[name]

    def _write_pending(self) -> None:
        """Write the notes that wait, beside what other processes noted meanwhile."""
        if self._pending:
            with turn_in(self.path.parent):
                cases = self.cases()
                self._pending.clear()
                self._write(cases)

    def _write(self, cases: dict[str, ProjectCase]) -> None:
        write_text(self.path, csv_text(TABLE_COLUMNS, (case.to_row() for case in cases.values())))
        self._known, self._state = cases, file_state(self.path)
