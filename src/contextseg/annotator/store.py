"""What was drawn in one case, on disk: a file for each slice, so that saving costs the same at any
depth, and a line for each stroke.

`PLANE-KKK.npz` holds a slice, `PLANE-KKK.undone` one that was drawn and is not any more. The slices
of different planes cross: what holds is the one with the higher revision, so all are read in the
order of their revisions.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from contextseg.annotator.planes import SCREEN_PLANES
from contextseg.disk import read_json, replacing, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.inputs import refuse_no_file
from contextseg.memory_errors import raise_memory_error

_MOST = 1 << 28  # pixels of a slice
_NAME = re.compile(rf"({'|'.join(SCREEN_PLANES)})-(\d{{3,6}})\.(npz|undone)")


class FilledState(TypedDict, total=False):
    """What `case.json` says of the filled label map."""

    revision: int
    confidence: list[float | None] | None
    way: str


class CaseState(TypedDict, total=False):
    """What `case.json` says."""

    scan: str
    shape: list[int]
    filled: FilledState
    finished: bool
    accepted: bool


@dataclass(frozen=True)
class SavedSlice:
    """One slice as it was saved.

    Attributes:
        plane: Its plane.
        k: Its number in the plane.
        revision: How many slices of the case had been saved with it.
        label: (rows, columns) uint8, as `planes.screen_slice` shows it.
    """

    plane: str
    k: int
    revision: int
    label: np.ndarray


@dataclass(frozen=True)
class DrawingStore:
    """The folder of one case.

    Attributes:
        folder: Where its slices lie; made with the first one.
    """

    folder: Path

    def save(self, saved: SavedSlice, drawn: bool) -> None:
        """Write a slice, in place of its older form.

        Args:
            saved: The slice.
            drawn: Whether anything in it is drawn.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        content = io.BytesIO()
        packed = np.frombuffer(zlib.compress(saved.label.tobytes(), 1), np.uint8)
        np.savez(content, label=packed, shape=saved.label.shape, revision=np.int64(saved.revision))
        stem = self.folder / f"{saved.plane}-{saved.k:03d}"
        new, old = (".npz", ".undone") if drawn else (".undone", ".npz")
        with replacing(stem.with_name(stem.name + new)) as temporary:
            temporary.write_bytes(content.getvalue())
        with writing(self.folder):
            stem.with_name(stem.name + old).unlink(missing_ok=True)

    def load(self) -> list[SavedSlice]:
        """All slices, in the order in which they were saved; [] where nothing was.

        Raises:
            ContextsegError: A file is damaged; the others can be used when it is moved away.
        """
        slices = [_read(path, match) for path, match in self._files()]
        latest: dict[tuple[str, int], SavedSlice] = {}
        for saved in sorted(slices, key=lambda s: s.revision):
            latest[saved.plane, saved.k] = saved
        return sorted(latest.values(), key=lambda s: s.revision)

    def count(self) -> int:
        """How many slices are drawn."""
        return sum(match[3] == "npz" for _, match in self._files())

    def _files(self) -> Iterator[tuple[Path, re.Match[str]]]:
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            if match := _NAME.fullmatch(path.name):
                yield path, match

    # --- beside the slices --------------------------------------------------------------------

    def note(self, line: Mapping[str, Any]) -> None:
        """Add a line to `log.jsonl`.

        Args:
            line: What happened, JSON content.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        path = self.folder / "log.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def log(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`; one that a kill cut off is left out."""
        path = self.folder / "log.jsonl"
        lines = []
        if path.is_file():
            for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict):
                    lines.append(line)
        return lines

    def seconds(self) -> float:
        """How long was drawn, by the log."""
        times = (line.get("seconds", 0) for line in self.log())
        return float(sum(t for t in times if isinstance(t, int | float) and 0 <= t < 86400))

    def state(self) -> dict[str, Any]:
        """The content of `case.json`; {} where there is none.

        Raises:
            ContextsegError: It is damaged.
        """
        path = self.folder / "case.json"
        if not path.exists():
            return {}
        return dict(read_json(path, CaseState, "move it away; slices are kept"))

    def set_state(self, **values: Any) -> None:
        """FilledSlices values in `case.json`.

        Args:
            **values: JSON content by name; None removes a name.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        content = {**self.state(), **values}
        write_json(self.folder / "case.json", {k: v for k, v in content.items() if v is not None})


def _read(path: Path, match: re.Match[str]) -> SavedSlice:
    refuse_no_file(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            rows, columns = (int(n) for n in content["shape"])
            unpacker = zlib.decompressobj()
            label = np.frombuffer(unpacker.decompress(content["label"].tobytes(), _MOST), np.uint8)
            revision = int(content["revision"])
        return SavedSlice(match[1], int(match[2]), revision, label.reshape(rows, columns))
    except Exception as error:  # NumPy raises many classes for damaged files
        raise_memory_error(path, error)
        what = f"not a slice of the annotator ({type(error).__name__})"
        raise ContextsegError(path, what, "move it away, and draw this slice again") from error
