"""The cases of a run as they were on the day of training, and what changed since.

A run writes them down before it plans. So its folds stay those of that day, its models load where
the training data is not, and a data set that changed is noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contextseg.data.layouts import Dataset
from contextseg.data.listing import Case, some
from contextseg.disk import digest, read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.formats.parts import files_of
from contextseg.parallel import default_workers

_VERSION = 1
"""The format of `split.json`."""


class FileDigests:
    """Digests of files by their content, taken again only where size or time of a file changed.

    A file that was changed in place within its old size, and given back its old time of
    modification, passes for unchanged.

    Args:
        table: File that keeps sizes, times and digests; it need not exist, and may be deleted.
        folder: Folder that the paths in the table are relative to, so that a data set which moved
            as a whole is not read again.
    """

    def __init__(self, table: str | Path, folder: str | Path) -> None:
        self._table = Path(table)
        self._folder = Path(folder)
        self._known: dict[str, list[Any]] = {}
        if self._table.exists():
            self._known = read_json(table, dict[str, tuple[int, int, str]], "delete it")
        self._changed = False

    def of(self, paths: Iterable[Path | None]) -> str:
        """The digest of scans or label maps, each with all files that belong to it.

        Args:
            paths: The files or folders; None counts as no file.

        Returns:
            16 hexadecimal digits; "" where there is no path, or one of the files is not there.
        """
        files = [file for path in paths if path for file in files_of(path)]
        try:
            digests = [self._digest(file) for file in files]
        except OSError:
            return ""
        return digest(digests) if digests else ""

    def take(self, cases: Sequence[Case], workers: int | None = None) -> None:
        """Take the digests of many cases, several at a time, and keep them in the table.

        Args:
            cases: The cases; images and labels.
            workers: Number of threads. None takes `default_workers()`.
        """

        def one(case: Case) -> None:
            self.of(case.images)
            self.of([case.label])

        with ThreadPoolExecutor(workers or default_workers()) as pool:
            list(pool.map(one, cases))
        self.save()

    def save(self) -> None:
        """Write the table, where something in it is new."""
        if self._changed:
            write_json(self._table, self._known)
            self._changed = False

    def _digest(self, path: Path) -> str:
        status = path.stat()
        name = _relative(path, self._folder)
        state = [status.st_size, status.st_mtime_ns]
        known = self._known.get(name)
        if known is None or known[:2] != state:
            known = [*state, digest(path)]
            self._known[name] = known
            self._changed = True
        return str(known[2])


@dataclass(frozen=True)
class Snapshot:
    """The cases of a run, as they were when it began.

    Attributes:
        classes: Names of all classes of the data set, those outside the ROI too, background first.
        training: The training cases, without the labels that the run hides.
        validation: The validation cases.
        outlined: Of each case, the classes that were annotated, those outside the ROI too; None for
            all.
        unused: Names of the training cases of the data set that the run does not use.
        digests: Of each case, the digests of its images and of its label ("" without one).
        splits: Digest of `splits_final.json`; "" without one.
    """

    classes: tuple[str, ...]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    outlined: Mapping[str, tuple[str, ...] | None]
    unused: tuple[str, ...]
    digests: Mapping[str, tuple[str, str]]
    splits: str = ""

    @staticmethod
    def of(whole: Dataset, training: Sequence[Case], validation: Sequence[Case]) -> Snapshot:
        """The cases of now, without digests yet.

        Args:
            whole: The data set, with its classes outside the ROI.
            training: The training cases of the run.
            validation: The validation cases of the run.
        """
        annotated = {case.name: case.annotated for case in whole.train}
        used = [case.name for case in (*training, *validation)]
        unused = set(annotated).difference(used)
        return Snapshot(
            whole.classes,
            tuple(training),
            tuple(validation),
            {name: annotated.get(name) for name in used},
            tuple(name for name in annotated if name in unused),
            dict.fromkeys(used, ("", "")),
        )

    def with_digests(self, digests: FileDigests, folder: str | Path) -> Snapshot:
        """The same cases with digests of their files as they are now.

        Args:
            digests: Takes the digests.
            folder: Folder of the data set.
        """
        cases = [*self.training, *self.validation]
        digests.take(cases)
        taken = {case.name: (digests.of(case.images), digests.of([case.label])) for case in cases}
        splits = digests.of(_splits_file(Path(folder)))
        digests.save()
        return replace(self, digests=taken, splits=splits)

    def save(self, path: str | Path, folder: str | Path) -> None:
        """Write it as JSON, atomically.

        Args:
            path: The file.
            folder: Folder of the data set; paths inside it are written relative to it.
        """

        def row(case: Case) -> dict[str, Any]:
            images, label = self.digests[case.name]
            outlined = self.outlined[case.name]
            return {
                "name": case.name,
                "patient": case.patient,
                "images": [_relative(image, Path(folder)) for image in case.images],
                "label": _relative(case.label, Path(folder)) if case.label else None,
                "annotated": None if case.annotated is None else list(case.annotated),
                "outlined": None if outlined is None else list(outlined),
                "digests": {"images": images, "label": label},
            }

        content = {
            "version": _VERSION,
            "classes": list(self.classes),
            "splits": self.splits,
            "training": [row(case) for case in self.training],
            "validation": [row(case) for case in self.validation],
            "unused": list(self.unused),
        }
        write_json(path, content)

    @staticmethod
    def load(path: str | Path, folder: str | Path) -> Snapshot:
        """Read what `save` wrote.

        Args:
            path: The file.
            folder: Where the data set lies now; it need not be there.

        Returns:
            The snapshot.

        Raises:
            ContextsegError: The file is missing or damaged.
        """
        content = read_json(path)
        try:
            rows = [*content["training"], *content["validation"]]
            return Snapshot(
                tuple(content["classes"]),
                tuple(_case(row, Path(folder)) for row in content["training"]),
                tuple(_case(row, Path(folder)) for row in content["validation"]),
                {row["name"]: _names(row["outlined"]) for row in rows},
                tuple(content["unused"]),
                {r["name"]: (r["digests"]["images"], r["digests"]["label"]) for r in rows},
                content["splits"],
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = f"it does not list the cases of a run ({error!r})"
            raise ContextsegError(path, what, "train again with another --output") from error

    def changes(self, data: Dataset, digests: FileDigests, hidden: bool = False) -> list[str]:
        """What changed in the data set since.

        Args:
            data: The data set as it is now, with the ROI of the run.
            digests: Takes the digests of its files.
            hidden: Whether the run hides labels: then a label that it has not got is no news.

        Returns:
            A phrase for each kind of change, with the names of the cases; [] for none.
        """
        now = {case.name: case for case in data.train}
        mine = [*self.training, *self.validation]
        digests.take([now[case.name] for case in mine if case.name in now])
        kinds: dict[str, list[str]] = {
            "gone": [],
            "with another image": [],
            "with another label": [],
            "labelled since": [],
            "annotated otherwise": [],
        }
        for case in mine:
            if case.name not in now:
                kinds["gone"].append(case.name)
                continue
            images, label = self.digests[case.name]
            if digests.of(now[case.name].images) != images:
                kinds["with another image"].append(case.name)
            if case.label and digests.of([now[case.name].label]) != label:
                kinds["with another label"].append(case.name)
            elif case.label is None and now[case.name].label and not hidden:
                kinds["labelled since"].append(case.name)
            elif case.label and now[case.name].annotated != case.annotated:
                kinds["annotated otherwise"].append(case.name)
        known = {case.name for case in mine} | set(self.unused)
        kinds["new"] = [name for name in now if name not in known]
        phrases = [f"{kind}: {some(names)}" for kind, names in kinds.items() if names]
        digests.save()
        if digests.of(_splits_file(data.folder)) != self.splits:
            phrases.append("splits_final.json is another")
        return phrases


def _case(row: Mapping[str, Any], folder: Path) -> Case:
    return Case(
        row["name"],
        tuple(folder / image for image in row["images"]),
        folder / row["label"] if row["label"] else None,
        _names(row["annotated"]),
        row["patient"],
    )


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


def _relative(path: Path, folder: Path) -> str:
    """A path below a folder relative to it, with slashes; any other as it is."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _splits_file(folder: Path) -> list[Path]:
    path = folder / "splits_final.json"
    return [path] if path.exists() else []
