"""The annotator's folder: its cases and classes, which case is next, and what is exported.

WORK/annotate.json          classes, and where the scans lie
WORK/drawn/CASE/            what was drawn: a file for each slice, log.jsonl, case.json
WORK/filled/CASE.nii.gz     the whole label map of a case, once it is finished or refined
WORK/dataset/               a data set of nnU-Net: drawn slices, all else "ignore"
WORK/models/                runs that were trained here, and their predictions
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from contextseg import __version__
from contextseg.annotator.drawing import (
    BY_FILE,
    BY_NETWORK,
    LARGEST_CLASS,
    NOBODY_SAID,
    Drawing,
    case_store,
)
from contextseg.data.layouts import open_dataset, scans_in
from contextseg.data.listing import Case
from contextseg.disk import digest, read_json, replacing, visible_files, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.formats import ending
from contextseg.formats.parts import files_of
from contextseg.inputs import damage_named
from contextseg.interop.names import describe_folder
from contextseg.interop.reading import write_classes
from contextseg.interop.segments import Segment
from contextseg.volume import Volume, as_labels, read, write

_TABLE = "annotate.json"
_SCORES = "expected_dice.json"
_COLOURS = ("#ff9f1c", "#2ec4f1", "#7bd389", "#f25f8b", "#b892ff", "#ffe156", "#00c2a8", "#ff6f4d")
"""Bright on grey scans, and apart for people who see few colours."""


@dataclass(frozen=True)
class DrawnClass:
    """A class that is drawn.

    Attributes:
        name: Its name.
        value: Its value in label files.
        colour: Its colour, "#rrggbb".
    """

    name: str
    value: int
    colour: str


@dataclass
class Project:
    """A folder of scans and the folder in which they are annotated.

    Args:
        cases: The scans.
        work: The annotator's folder, WORK.
        classes: What is drawn, at most `LARGEST_CLASS`.
        source: Where the scans come from.
        labels: Folder of label maps to start from; None starts with nothing.
    """

    cases: Sequence[Case]
    work: Path
    classes: list[DrawnClass]
    source: Path
    labels: Path | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """The Dice that the last model expects of itself, by case."""

    def __post_init__(self) -> None:
        file = self.work / "models" / _SCORES
        remedy = "delete it; it is made by training"
        self.scores = read_json(file, dict[str, float], remedy) if file.exists() else {}

    def save_scores(self) -> None:
        """Write the Dice that the last model expects, by case.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        write_json(self.work / "models" / _SCORES, self.scores)

    # --- cases --------------------------------------------------------------------------------

    def case(self, n: int) -> Case:
        """A case by its number.

        Raises:
            ContextsegError: There is no such case.
        """
        if not 0 <= n < len(self.cases):
            what = f"the number of cases is {len(self.cases)}"
            raise ContextsegError(f"case {n}", what, f"choose 0 to {len(self.cases) - 1}")
        return self.cases[n]

    def open(self, n: int) -> Drawing:
        """Read a scan, and what was drawn in it before.

        Args:
            n: Number of the case.

        Returns:
            The drawing.

        Raises:
            ContextsegError: The scan cannot be read, or is another than the one drawn on.
        """
        case = self.case(n)
        scan = read(*case.images)
        store = case_store(self.work, case.name)
        state = store.state()
        facts = {"scan": _digest(case), "shape": list(scan.shape)}
        before = {name: state.get(name) for name in facts}
        if state and before != facts:
            what = f"slices of another scan with the name {case.name} are in it"
            raise ContextsegError(store.folder, what, "choose another --output folder")
        if not state:
            store.set_state(**facts)
        drawing = Drawing(scan, store, self._start(case, scan))
        saved = state.get("filled")
        path = self.filled_file(case)
        if isinstance(saved, dict) and path.exists():
            self._restore(drawing, path, saved)
            for plane, k in drawing.changed_after(int(saved.get("revision", 0))):
                drawing.fill_around(plane, k)
        elif drawing.touched(drawing.plane) and drawing.start is None:
            drawing.fill()
        return drawing

    def _start(self, case: Case, scan: Volume) -> np.ndarray | None:
        """The label map to start from, as classes."""
        if self.labels is None:
            return None
        files = sorted(self.labels.glob(f"{escape(case.name)}.*"))
        files = [path for path in files if path.name == f"{case.name}{ending(path)}"]
        if not files:
            return None
        return self.as_classes(as_labels(files[0], scan).array, files[0])

    def _restore(self, drawing: Drawing, path: Path, saved: dict[str, Any]) -> None:
        label = as_labels(path, drawing.scan)
        turned = label.with_array(self.as_classes(label.array, path)).oriented("SPL")
        confidence = saved.get("confidence")
        numbers = [np.nan if c is None else c for c in confidence] if confidence else None
        by = BY_NETWORK if saved.get("way") == "network" else BY_FILE
        with damage_named(path, "fill the case again", "it does not belong to this drawing"):
            confident = None if numbers is None else np.array(numbers, np.float32)
            drawing.restore_fill(turned.array, by, confident)

    def as_classes(self, label: np.ndarray, where: str | Path) -> np.ndarray:
        """Values of label files as numbers of classes.

        Args:
            label: Label map with the values of the classes.
            where: What it is called in a message.

        Returns:
            uint8 of the same shape.

        Raises:
            ContextsegError: It holds a value that no class has.
        """
        out = np.zeros(label.shape, np.uint8)
        known = {0}
        for k, kind in enumerate(self.classes, 1):
            out[label == kind.value] = k
            known.add(kind.value)
        unknown = sorted(set(np.unique(label).tolist()) - known)
        if unknown:
            what = f"the label value {unknown[0]}, which no class here has"
            names = ",".join(f"{kind.name}={kind.value}" for kind in self.classes)
            raise ContextsegError(where, what, f"name it: --classes {names},name={unknown[0]}")
        return out

    def as_values(self, classes: np.ndarray, ignore: int = 0) -> np.ndarray:
        """Numbers of classes as values of label files.

        Args:
            classes: uint8 numbers; `NOBODY_SAID` becomes `ignore`.
            ignore: The value of voxels that nobody has drawn.

        Returns:
            Integers of the same shape.
        """
        table = np.zeros(256, np.int32)
        for k, kind in enumerate(self.classes, 1):
            table[k] = kind.value
        table[NOBODY_SAID] = ignore
        small = table.max() < 256
        return (table.astype(np.uint8) if small else table)[classes]

    def add_class(self, name: str) -> DrawnClass:
        """Add a class, and write it down.

        Args:
            name: Its name.

        Returns:
            The class.

        Raises:
            ContextsegError: The name is taken or empty, or there are too many classes.
        """
        added = _with_class(self.classes, name)
        self.classes.append(added)
        try:
            self.save()
        except ContextsegError:
            self.classes.remove(added)
            raise
        return added

    def save(self) -> None:
        """Write `annotate.json`.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        classes = [vars(kind) for kind in self.classes]
        content = {"version": 1, "contextseg": __version__, "classes": classes}
        write_json(self.work / _TABLE, {**content, "scans": str(self.source.resolve())})

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The classes, for label files."""
        return tuple(Segment(c.name, c.value, _rgb(c.colour)) for c in self.classes)

    @property
    def ignore(self) -> int:
        """The value of voxels that nobody has drawn."""
        return max(kind.value for kind in self.classes) + 1

    # --- the worklist -------------------------------------------------------------------------

    def worklist(self) -> list[dict[str, Any]]:
        """A row for each case, JSON content; unfinished ones first, the worst expected Dice first.

        Returns:
            Rows with n, name, state ("new", "drawn" or "finished"), slices, seconds, and the Dice
            that the last model's predictions should have, or None.
        """
        rows = []
        for n, case in enumerate(self.cases):
            store = case_store(self.work, case.name)
            slices = store.count()
            try:
                finished = bool(store.state().get("finished"))
            except ContextsegError:
                finished = False
            state = "finished" if finished else "drawn" if slices else "new"
            expected = self.scores.get(case.name)
            row = {"n": n, "name": case.name, "state": state, "slices": slices}
            rows.append({**row, "seconds": round(store.seconds(), 1), "expected_dice": expected})
        return sorted(rows, key=_urgency)

    # --- what is written ----------------------------------------------------------------------

    def filled_file(self, case: Case) -> Path:
        """The whole label map of a case."""
        return self.work / "filled" / f"{case.name}.nii.gz"

    def save_filled(self, n: int, drawing: Drawing, way: str) -> Path:
        """Write the whole label map of a case.

        Args:
            n: Number of the case.
            drawing: What was drawn and filled in it.
            way: "shapes" or "network".

        Returns:
            The file.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        case = self.case(n)
        with drawing.lock:
            whole, confidence = drawing.whole, drawing.confidence.tolist()
            plane, revision = drawing.plane, drawing.revision
        path = self.filled_file(case)
        label = drawing.on_scan(self.as_values(whole))
        describe_folder(path, self.segments)
        write(path, label)
        rounded = [None if math.isnan(c) else round(c, 4) for c in confidence]
        filled = {"way": way, "plane": plane, "revision": revision, "confidence": rounded}
        drawing.store.set_state(filled=filled)
        return path

    def download(self, n: int, drawing: Drawing, target: Path) -> Path:
        """Write the whole label map of a case with names and colours, for another program.

        Args:
            n: Number of the case.
            drawing: What was drawn and filled in it.
            target: Folder to write to.

        Returns:
            CASE.seg.nrrd in it.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        path = target / f"{self.case(n).name}.seg.nrrd"
        write_classes(path, drawing.on_scan(self.as_values(drawing.whole)), self.segments)
        return path

    def finish(self, n: int, drawing: Drawing, accept: bool = False) -> Path:
        """Write a finished case: its whole label map, and its part of the data set.

        Args:
            n: Number of the case.
            drawing: What was drawn and filled in it.
            accept: What is filled is right as well, and goes among the labels. Otherwise all but
                the drawn slices is "ignore" there.

        Returns:
            The label file in the data set.

        Raises:
            ContextsegError: Nothing was drawn, or the disk is full or cannot be written to.
        """
        case = self.case(n)
        if not (drawing.drawn != NOBODY_SAID).any() and not accept:
            raise ContextsegError(case.name, "nothing is drawn in it", "draw a slice first")
        way = "network" if (drawing.filled_by == BY_NETWORK).any() else "shapes"
        self.save_filled(n, drawing, way)
        label = self._export(case, drawing, drawing.whole if accept else drawing.drawn)
        drawing.store.set_state(finished=True, accepted=accept)
        self.write_table()
        return label

    def reopen(self, n: int) -> None:
        """Take a finished case up again; its files stay until it is finished once more.

        Args:
            n: Number of the case.
        """
        case_store(self.work, self.case(n).name).set_state(finished=None)

    def _export(self, case: Case, drawing: Drawing, classes: np.ndarray) -> Path:
        folder = self.work / "dataset"
        channels = drawing.scan.array.shape[0]
        for i in range(channels):
            target = folder / "imagesTr" / f"{case.name}_{i:04d}.nii.gz"
            source = case.images[i] if len(case.images) == channels else None
            if source is not None and ending(source) == ".nii.gz":
                _link(source, target)
            else:
                write(target, drawing.scan.with_array(drawing.scan.array[i : i + 1]))
        label = folder / "labelsTr" / f"{case.name}.nii.gz"
        write(label, drawing.on_scan(self.as_values(classes, self.ignore)))
        return label

    def write_table(self) -> Path:
        """Write `dataset.json` of the data set.

        Returns:
            The file.

        Raises:
            ContextsegError: The disk is full or cannot be written to.
        """
        folder = self.work / "dataset"
        names = [path.name for path in (folder / "imagesTr").glob("*_[0-9][0-9][0-9][0-9].nii.gz")]
        channels = max((int(name[-11:-7]) for name in names), default=0) + 1
        labels = {"background": 0, **{c.name: c.value for c in self.classes}}
        table = {
            "channel_names": {str(i): f"channel {i}" for i in range(channels)},
            "labels": {**labels, "ignore": self.ignore},
            "numTraining": len(list((folder / "labelsTr").glob("*.nii.gz"))),
            "file_ending": ".nii.gz",
            "name": self.work.resolve().name,
        }
        write_json(folder / "dataset.json", table)
        return folder / "dataset.json"


def open_project(
    source: Path,
    work: Path,
    classes: Sequence[str] = (),
    labels: Path | None = None,
) -> Project:
    """Open the annotator's folder, or make it.

    Args:
        source: A scan, a folder of scans or a data set; of a data set all cases.
        work: The annotator's folder.
        classes: Names, or NAME=VALUE. () are those of the folder, of the data set, or "target".
        labels: Folder of label maps to start from.

    Returns:
        The project.

    Raises:
        ContextsegError: There is no scan; or the folder belongs to other scans or other classes.
    """
    cases, known = _cases(source)
    for case in cases:
        if Path(case.name).name != case.name or case.name.startswith("."):
            raise ContextsegError(source, f"a case called {case.name!r}", "rename the scan")
    if labels is not None and not labels.is_dir():
        raise ContextsegError(labels, "there is no such folder", "give a folder of label maps")
    table = work / _TABLE
    before = _classes_of(table) if table.exists() else []
    asked = _classes(classes) if classes else []
    chosen = before or asked or known or _classes(["target"])
    if before and asked:
        chosen = _merged(before, asked)
    project = Project(cases, work, list(chosen), source, labels)
    if not table.exists() and visible_files(work, "*"):
        what = "the folder holds other files"
        raise ContextsegError(work, what, "choose an empty --output folder, or a new one")
    project.save()
    return project


def _cases(source: Path) -> tuple[list[Case], list[DrawnClass]]:
    """The cases of a source, and the classes of a data set."""
    if (source / "dataset.json").is_file() or (source / "cases.json").is_file():
        data = open_dataset(source)
        kinds = []
        for name, value in zip(data.classes[1:], data.values[1:]):
            colour = data.colours.get(name)
            kinds.append(DrawnClass(name, value, _hex(colour) if colour else ""))
        return [*data.train, *data.test], _coloured(kinds)
    cases, _ = scans_in(source)
    return [replace(case, label=None) for case in cases], []


def _classes(words: Sequence[str]) -> list[DrawnClass]:
    """Classes of words such as "tumour" and "liver=6"."""
    kinds: list[DrawnClass] = []
    for word in words:
        name, equals, value = word.partition("=")
        kinds.append(_with_class(kinds, name.strip(), value.strip() if equals else None))
    return kinds


def _with_class(kinds: Sequence[DrawnClass], name: str, value: str | None = None) -> DrawnClass:
    name = name.strip()
    where = f"class {name!r}"
    if not name or len(name) > 80 or not name.isprintable() or "," in name or "=" in name:
        raise ContextsegError(where, "not a name", "give 1 to 80 letters, without comma and =")
    if name.lower() in {"background", "ignore", *(k.name.lower() for k in kinds)}:
        raise ContextsegError(where, "this name is taken", "choose another")
    if len(kinds) >= LARGEST_CLASS:
        raise ContextsegError(where, f"there are {len(kinds)} classes", "draw them in two folders")
    number = max((k.value for k in kinds), default=0) + 1
    if value is not None:
        taken = {k.value for k in kinds}
        if not value.isdecimal() or not 0 < int(value) < 2**15 or int(value) in taken:
            what = f"the value {value}"
            raise ContextsegError(where, what, "give a whole number from 1 to 32767, once")
        number = int(value)
    return DrawnClass(name, number, _COLOURS[len(kinds) % len(_COLOURS)])


def _merged(before: list[DrawnClass], asked: list[DrawnClass]) -> list[DrawnClass]:
    """The classes of a folder and new ones; known names must mean what they meant."""
    merged = list(before)
    for kind in asked:
        same = [old for old in before if old.name == kind.name]
        if not same:
            explicit = str(kind.value) if kind.value not in {o.value for o in merged} else None
            merged.append(_with_class(merged, kind.name, explicit))
    return merged


def _classes_of(table: Path) -> list[DrawnClass]:
    content = read_json(table, dict[str, Any])
    try:
        kinds = [
            DrawnClass(str(c["name"]), int(c["value"]), str(c["colour"]))
            for c in content["classes"]
        ]
        names, values = {k.name for k in kinds}, {k.value for k in kinds}
        sound = len(names) == len(values) == len(kinds) and min(values) > 0
        if content["version"] != 1 or not sound or len(kinds) > LARGEST_CLASS:
            raise ValueError("version or classes")
    except (KeyError, TypeError, ValueError) as error:
        what = f"not a table of the annotator ({error!r})"
        raise ContextsegError(table, what, "choose another --output folder") from error
    return _coloured(kinds)


def _coloured(kinds: Sequence[DrawnClass]) -> list[DrawnClass]:
    out = []
    for i, kind in enumerate(kinds):
        good = len(kind.colour) == 7 and kind.colour.startswith("#")
        good = good and all(c in "0123456789abcdef" for c in kind.colour[1:].lower())
        out.append(kind if good else replace(kind, colour=_COLOURS[i % len(_COLOURS)]))
    return out


def _urgency(row: dict[str, Any]) -> tuple[bool, float, int]:
    expected = row["expected_dice"]
    return row["state"] == "finished", 2.0 if expected is None else expected, row["n"]


def _digest(case: Case) -> str:
    try:
        return digest(*(file for path in case.images for file in files_of(path)))
    except OSError as error:
        what = f"the scan cannot be read ({error.strerror})"
        raise ContextsegError(case.images[0], what, "check the file's permissions") from error


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _link(source: Path, target: Path) -> None:
    """A symbolic link to a scan, or where there are none a copy."""
    with replacing(target) as temporary:
        try:
            temporary.symlink_to(source.resolve())
        except OSError:
            with writing(target):
                shutil.copyfile(source, temporary)
