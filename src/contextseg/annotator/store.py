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
from typing import Any
from zipfile import BadZipFile

import numpy as np

from contextseg.annotator.planes import SCREEN_PLANES
from contextseg.disk import read_json, replacing, write_json, writing
from contextseg.errors import ContextsegError

_NAME = re.compile(rf"({'|'.join(SCREEN_PLANES)})-(\d{{3,6}})\.(npz|undone)")


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
                except ValueError:
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
        content = read_json(path)
        if not isinstance(content, dict):
            raise ContextsegError(path, "not the state of a case", "move it away; slices are kept")
        return content

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
    try:
        with np.load(path, allow_pickle=False) as content:
            rows, columns = (int(n) for n in content["shape"])
            label = np.frombuffer(zlib.decompress(content["label"].tobytes()), np.uint8)
            revision = int(content["revision"])
        return SavedSlice(match[1], int(match[2]), revision, label.reshape(rows, columns))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zlib.error, BadZipFile) as error:
        what = f"not a slice of the annotator ({type(error).__name__})"
        raise ContextsegError(path, what, "move it away, and draw this slice again") from error
