"""Who made the label maps of a folder, so that another model's never pass for this one's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch

from contextseg.data.listing import Case, some
from contextseg.disk import (
    changes,
    digest,
    file_state,
    note_case,
    read_json,
    read_rows,
    turn_in,
    write_json,
    writing,
)
from contextseg.errors import ContextsegError
from contextseg.formats.parts import files_of

RECORD = "predicted_by.json"
"""File beside label maps: what made them, and for each case a digest of its scan."""

NEW_SCANS = "predicted_by.csv"
"""File beside it while many cases are predicted: the digests that are not in it yet."""

_WHOLE = 64  # cases of which the record is written whole for each


def weights_digest(network: torch.nn.Module) -> str:
    """16 hexadecimal digits that name the values of all weights, on whatever device they are.

    What a method keeps of its training scans (`Method.private_state`) does not count.

    Args:
        network: The network, or a method with its networks.

    Returns:
        The digest of its state.
    """
    hashed = hashlib.blake2b(digest_size=8)
    private = getattr(network, "private_state", ())
    for name, value in sorted(network.state_dict().items()):
        if name in private:
            continue
        hashed.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        hashed.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


@dataclass
class PredictionRecord:
    """What made the label maps of a folder, and of which scans.

    `check` refuses a folder with other label maps before anything is predicted; `note` is called
    for each case before its label map is written.

    Args:
        folder: Folder of the label maps.
        made_by: Models and settings by name, JSON content: all that the label maps depend on.
        scans: Digest of the scan of each case that was noted.
    """

    folder: Path
    made_by: Mapping[str, Any]
    scans: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._written: tuple[int, int, int] | None = None
        self._gathered = 0
        # As it is read again: tuples are lists.
        self.made_by = json.loads(json.dumps(dict(self.made_by)))

    def check(self, cases: Sequence[Case], ending: str = ".nii.gz") -> None:
        """Take up the record of the folder, or refuse label maps that are not of this kind.

        Args:
            cases: The cases that are to be segmented.
            ending: Ending of the label maps.

        Raises:
            ContextsegError: The folder holds label maps of another model or other settings, of
                other scans with the same names, or of nobody knows whom.
        """
        before, self.scans = self._read()
        there = [name for name in self.scans if (self.folder / f"{name}{ending}").exists()]
        remedy = "choose another --output folder, or delete these label maps"
        if there and (what := changes(before, self.made_by)):
            what = f"it holds label maps of another model or other settings: {what}"
            raise ContextsegError(self.folder, what, remedy)
        self.scans = {name: self.scans[name] for name in there}
        done = [case for case in cases if (self.folder / f"{case.name}{ending}").exists()]
        unknown = [case.name for case in done if case.name not in self.scans]
        if unknown:
            what = f"nothing says which model made the files of {some(unknown)} in it"
            raise ContextsegError(self.folder, what, remedy)
        others = [case.name for case in done if self.scans[case.name] != _digest(case.images)]
        if others:
            what = f"it holds label maps of other scans with the same names: {some(others)}"
            raise ContextsegError(self.folder, what, remedy)

    def note(self, case: Case) -> None:
        """Write down that the label map of a case is of this kind.

        Several processes may do so at once; each waits for its turn. Of many cases, a line is added
        to `NEW_SCANS`, and the record is written whole when they have doubled, and by `gather`.

        Args:
            case: The case, before its label map is written.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        mine = _digest(case.images)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with turn_in(self.folder):
            self.scans[case.name] = mine
            known = file_state(self.folder / RECORD)
            if known is None or known != self._written:
                self._gather()
                return
            if len(self.scans) <= _WHOLE or len(self.scans) >= 2 * self._gathered:
                self._gather()
                return
        note_case(self.folder / NEW_SCANS, ("case", "scan"), case.name, [{"scan": mine}])

    def gather(self) -> None:
        """Write the record whole, where lines were added beside it."""
        if (self.folder / NEW_SCANS).exists():
            with turn_in(self.folder):
                self._gather()

    def _gather(self) -> None:
        before, theirs = self._read()
        if theirs and before == dict(self.made_by):
            self.scans = {**theirs, **self.scans}
        content = {"made_by": dict(self.made_by), "scans": self.scans}
        write_json(self.folder / RECORD, content)
        (self.folder / NEW_SCANS).unlink(missing_ok=True)
        self._written = file_state(self.folder / RECORD)
        self._gathered = len(self.scans)

    def _read(self) -> tuple[dict[str, Any], dict[str, str]]:
        path = self.folder / RECORD
        if not path.exists():
            return {}, {}
        made_by, scans = recorded(path)
        added = read_rows(self.folder / NEW_SCANS, ("case", "scan"), cut=True)
        return made_by, {**scans, **{row["case"]: row["scan"] for row in added}}


class _Recorded(TypedDict):
    """The content of a record."""

    made_by: dict[str, Any]
    scans: dict[str, str]


def recorded(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a record says.

    Args:
        path: The file.

    Returns:
        (models and settings by name, digest of the scan of each case).

    Raises:
        ContextsegError: It is missing or damaged.
    """
    content = read_json(path, _Recorded, "choose another --output folder")
    return content["made_by"], content["scans"]


@contextmanager
def gathered(record: PredictionRecord | None) -> Iterator[None]:
    """A block that predicts many cases, after which their record is written whole.

    Args:
        record: The record; None does nothing.
    """
    try:
        yield
    finally:
        if record is not None:
            record.gather()


def _digest(images: Sequence[Path]) -> str:
    """A name of the content of scans; "" where they cannot be read, as nobody could segment."""
    try:
        return digest(*(file for path in images for file in files_of(path)))
    except OSError:
        return ""
