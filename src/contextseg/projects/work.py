"""The project: a folder with scans, drawings, fills, rounds of training, and accepted labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from contextseg.console import ProgressBar, no_progress_bar, say
from contextseg.data.layouts import Case
from contextseg.data.listing import some
from contextseg.disk import lock_folder, read_json, turn_in, write_json
from contextseg.errors import ContextsegError, plural
from contextseg.projects import accepting, exporting, filling, rounds, worklist
from contextseg.projects.drawings import (
    ANNOTATIONS,
    DrawnLabel,
    annotator_facts,
    drawing_digest,
    read_drawing,
)
from contextseg.projects.sources import LabelTable, Sources, locked_cases, named_labels
from contextseg.projects.table import STATES, ProjectCase, ProjectTable
from contextseg.propagation import AXES
from contextseg.provenance import provenance

if TYPE_CHECKING:
    import pandas as pd

    from contextseg.runs import Run

FACTS = "project.json"


@dataclass
class LabelProject:
    """A folder in which a few labelled slices become a finished data set.

    `open_label_project` makes one, or opens it.

    Args:
        folder: Where everything of the project lies.
        progress_bar: Shows the progress of each verb.
    """

    folder: Path
    progress_bar: ProgressBar = no_progress_bar

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of `project.json`."""
        return project_facts(self.folder)

    @cached_property
    def sources(self) -> Sources:
        """The scans, and the labels that came with them."""
        return Sources.open(self.facts["scans"])

    @cached_property
    def labels(self) -> LabelTable:
        """The classes, and their values in label files."""
        return LabelTable.of(self.facts["labels"], self.folder / FACTS)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels of the scans; () where nothing names them."""
        return self.sources.channels or tuple(self.facts.get("channels", ()))

    @cached_property
    def locked(self) -> frozenset[str]:
        """Names of the cases that are for measuring alone: those of a test split, and those chosen.

        `learnable` says which others must not be trained on, since they are of the same patients.
        """
        return frozenset((*self.facts["test"], *self.sources.test))

    def learnable(self, name: str) -> bool:
        """Whether a case may be trained on: neither it nor another of its patient is locked.

        Args:
            name: Name of the case.
        """
        every = self.sources.cases
        patients = {every[other].patient for other in self.locked if other in every}
        return name not in self.locked and every[name].patient not in patients

    @cached_property
    def table(self) -> ProjectTable:
        """The table of cases, `project.csv`."""
        return ProjectTable(self.folder / "project.csv")

    def case(self, name: str) -> Case:
        """The scan of a case.

        Args:
            name: Name of the case.

        Raises:
            ContextsegError: The scan is not there any more.
        """
        self.table.case(name)
        if name not in self.sources.cases:
            remedy = "put it back; or, where the scans have moved, give their folder: --scans"
            raise ContextsegError(self.facts["scans"], f"the scan of {name} is gone", remedy)
        return self.sources.cases[name]

    def drawing(self, name: str) -> DrawnLabel | None:
        """What people drew in a case; None where nobody did, or no class was drawn.

        Args:
            name: Name of the case.

        Raises:
            ContextsegError: The drawing cannot be used.
        """
        return read_drawing(
            self.folder / "drawn",
            self.case(name),
            self.labels.classes,
            self.labels.values,
            unlabelled=self.facts["unlabelled"],
            plane=self.facts["plane"],
        )

    def fill_file(self, name: str) -> Path:
        """The filled label map of a case."""
        return self.folder / filling.FILLS / f"{name}.nii.gz"

    def prediction_file(self, name: str) -> Path:
        """The newest predicted label map of a case, or where it would lie."""
        number = self.table.case(name).predicted
        return rounds.predictions_folder(self, number) / f"{name}.nii.gz"

    def label_file(self, name: str) -> Path:
        """The accepted label map of a case."""
        return self.folder / accepting.LABELS / f"{name}.nii.gz"

    # --- the verbs --------------------------------------------------------------------------------

    @contextmanager
    def _alone(self, wait: bool = False) -> Iterator[None]:
        """Keep other verbs out of the project; `status` and drawing go on meanwhile."""
        with ExitStack() as stack:
            # What a killed process left is swept with the lock: not what is being written now.
            with nullcontext() if wait else turn_in(self.folder):
                stack.enter_context(lock_folder(self.folder, wait=wait))
            yield

    def refresh(self) -> dict[str, ProjectCase]:
        """Take up new scans, and what was drawn since, into the table.

        A prediction whose case was drawn in has been reviewed. A case that was drawn in since it
        was accepted is open again.

        Returns:
            Every case by name.
        """
        new = [
            ProjectCase(
                name,
                "test" if name in self.locked else "train",
                accepted="given" if case.label else "",
            )
            for name, case in self.sources.cases.items()
        ]
        self.table.add(new)
        for name, row in self.table.cases().items():
            if name not in self.sources.cases:
                continue
            now = drawing_digest(self.folder / "drawn", name)
            if now == row.drawn:
                continue
            try:
                drawing = self.drawing(name)
            except ContextsegError as error:
                say(f"{name}: {error}")
                continue
            self._take_drawing(row, drawing, now)
        return self.table.cases()

    def _take_drawing(self, row: ProjectCase, drawing: DrawnLabel | None, now: str) -> None:
        facts: dict[str, Any] = {"drawn": now if drawing else ""}
        facts["slices"] = len(drawing.labelled.slices) if drawing else 0
        minutes, _, _ = annotator_facts(self.folder / "drawn", row.case)
        facts["minutes"] = max(row.minutes, round(minutes, 2))
        if facts["drawn"] == row.drawn:
            return
        if row.predicted > max(row.trained, default=0):
            facts["reviewed"] = row.predicted
        if row.accepted:
            facts["accepted"] = ""
            say(f"{row.case}: it was drawn in since it was accepted, and is open again")
        self.table.note(row.case, **facts)

    def status(self) -> pd.DataFrame:
        """The table: a row for each case.

        Returns:
            The columns of `project.csv`; no row before there is a scan.
        """
        import pandas as pd

        return pd.DataFrame([row.to_row() for row in self.refresh().values()])

    def summary(self) -> str:
        """Where the project stands, in some lines of text."""
        table = self.refresh()
        states = Counter(row.state for row in table.values())
        counted = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        locked = sum(row.use == "test" for row in table.values())
        slices = sum(row.slices for row in table.values())
        minutes = sum(row.minutes for row in table.values())
        lines = [
            f"{plural(len(table), 'case')}: {counted}",
            f"{plural(slices, 'slice')} labelled, {minutes:g} min noted, "
            f"{plural(locked, 'case')} for measuring",
        ]
        last = rounds.last_round(self)
        if last:
            facts = rounds.round_facts(self, last)
            learned = len(facts["cases"])
            lines.append(f"round {last}: {facts['method']}, trained on {plural(learned, 'case')}")
            lines += rounds.scores_text(self, last)
        worst = worklist.order_cases(self, "expected")[:5]
        if worst:
            lines.append(f"look at next: {some(worst)}")
        return "\n".join(lines)

    def fill(
        self,
        cases: Sequence[str] = (),
        *,
        model: str | Path | None = None,
        way: str = "",
        between: bool = False,
        again: bool = False,
    ) -> list[str]:
        """Fill the cases whose drawing is newer than their fill.

        Args:
            cases: Names of cases. () for all that have a drawing.
            model: A run of `train(..., method="stcn")`. None is the network that comes with the
                package.
            way: "combined", "propagation", "interpolation" or "nearest"; "" as for `propagate`.
            between: Each structure's first and last slice are drawn; none lies beyond.
            again: Fill also what is filled from the same drawing already.

        Returns:
            The cases that were filled now.

        Raises:
            ContextsegError: A case has no drawing, or could not be filled; all others are.
        """
        with self._alone():
            filled, failed = filling.fill_cases(
                self, cases, model=model, way=way, between=between, again=again
            )
        _raise_of("filled", failed)
        return filled

    def train(
        self,
        *,
        method: str = "supervised",
        fills: str = "accepted",
        seed: int = 0,
        plan: str | Path | None = None,
        restart: bool = False,
        **settings: Any,
    ) -> Run:
        """Train the next round: on what was drawn and what was accepted, never on locked cases.

        An unfinished round goes on with the labels that it was begun with. Where nothing is new
        since the last round, that round is given back.

        Args:
            method: How to train; docs/methods.md lists all. Methods that learn from unlabelled
                scans ("cps", "pseudo") get every scan that is not locked.
            fills: "accepted" trains on accepted labels and drawn slices; "all" also on fills that
                nobody has accepted; "none" on drawn slices and labels that were given.
            seed: Same seed, same result, bit for bit on a CPU.
            plan: The file of a plan, in place of one made by the rules.
            restart: Begin an unfinished round anew, with the labels of now.
            **settings: Any setting by name, such as `steps=20000`.

        Returns:
            The finished run.

        Raises:
            ContextsegError: Nothing is labelled, a setting does not exist, or the data has errors.
        """
        with self._alone():
            return rounds.train_round(
                self,
                method=method,
                fills=fills,
                seed=seed,
                plan=plan,
                restart=restart,
                settings=settings,
            )

    def predict(self, cases: Sequence[str] = (), *, device: str = "") -> dict[str, Path]:
        """Predict with the last round what it has not learned from, and measure locked cases.

        Args:
            cases: Names of cases. () for all that are not accepted and were not trained on, and
                for all locked ones.
            device: Where the networks run; as for `load`.

        Returns:
            The label map of each case, by name.

        Raises:
            ContextsegError: No round is finished, a case was trained on, or could not be predicted;
                all others are.
        """
        with self._alone():
            return rounds.predict_round(self, cases, device=device)

    def worklist(self, order: str = "expected", *, seed: int = 0) -> list[str]:
        """The predicted cases that nobody has looked at, in the order to look at them.

        Args:
            order: "expected" (lowest expected Dice first), "random", or "size" (most predicted
                voxels first).
            seed: Seed of "random".

        Returns:
            Names of cases.
        """
        self.refresh()
        return worklist.order_cases(self, order, seed)

    def review(
        self,
        cases: Sequence[str] = (),
        *,
        count: int = 5,
        order: str = "expected",
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        browser: bool = True,
    ) -> list[str]:
        """Open the annotator on the worst predictions; without any, on scans without a label.

        A case that is finished there has been reviewed; one that is accepted there is accepted.

        Args:
            cases: Names of cases, in the order to look at them. () for the worklist's first.
            count: How many of the worklist.
            order: As for `worklist`.
            seed: As for `worklist`.
            host: Address that the annotator listens on.
            port: Its port. 0 takes a free one.
            browser: Open a browser.

        Returns:
            The cases that were shown, after the annotator was closed.

        Raises:
            ContextsegError: The annotator is not installed, or there is nothing to look at.
        """
        chosen = worklist.cases_to_review(self, cases, count, order, seed)
        worklist.open_annotator(self, chosen, host=host, port=port, browser=browser)
        with self._alone(wait=True):
            self._take_review(chosen)
        return chosen

    def _take_review(self, cases: Sequence[str]) -> None:
        """Take up what was drawn, finished and accepted in the annotator."""
        self.refresh()
        for name in cases:
            row = self.table.case(name)
            _, finished, accepted = annotator_facts(self.folder / "drawn", name)
            if finished and row.predicted:
                self.table.note(name, reviewed=row.predicted)
            label = self.folder / ANNOTATIONS / "filled" / f"{name}.nii.gz"
            if finished and accepted and not row.accepted and label.exists():
                accepting.accept_case(self, name, label=label)

    def accept(
        self,
        cases: Sequence[str] = (),
        *,
        label: str | Path | None = None,
        take: str = "",
        above: float | None = None,
        minutes: float | None = None,
        undo: bool = False,
    ) -> list[str]:
        """Accept labels: these are finished, trained on in the next round, and exported.

        Args:
            cases: Names of cases. () only with `above`.
            label: A label map of the one case, such as a corrected prediction. Its voxels that
                differ from the prediction or fill are a person's.
            take: "fill", "prediction" or "drawing". "" is the fill where the case was drawn in,
                else the prediction.
            above: Accept every prediction of which at least this Dice is expected.
            minutes: What it took; added to what is noted.
            undo: Open these cases again.

        Returns:
            The cases that were accepted, or opened.

        Raises:
            ContextsegError: A case has nothing to accept, or the label map does not fit.
        """
        with self._alone():
            return accepting.accept_cases(
                self, cases, label=label, take=take, above=above, minutes=minutes, undo=undo
            )

    def export(
        self,
        output: str | Path,
        *,
        format: str = "nnunet",
        everything: bool = False,
        link: bool = False,
    ) -> Path:
        """Write the finished data set, with the origin of every voxel.

        Args:
            output: Folder to write.
            format: "nnunet" (a raw data set of nnU-Net v2), "folders" (`images` and `labels`),
                "nifti", "seg.nrrd" (3D Slicer) or "dicom-seg" (label maps alone).
            everything: Export also fills and predictions that nobody has accepted.
            link: Link the scans in place of copying them.

        Returns:
            The folder. `cases.csv` says for each case what its label is, and `origins/CASE.nii.gz`
            with `CASE.json` where each voxel comes from.

        Raises:
            ContextsegError: Nothing is accepted, the format is unknown, or the folder holds
                something else.
        """
        with self._alone():
            return exporting.export_cases(
                self, Path(output), format=format, everything=everything, link=link
            )

    def __repr__(self) -> str:
        states = Counter(row.state for row in self.table.cases().values())
        counted = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        return f"LabelProject({str(self.folder)!r}; {counted or 'no case'})"


def _raise_of(done: str, failed: Mapping[str, str]) -> None:
    """Raise the failures of several cases as one error."""
    if failed:
        reasons = "".join(f"\n  {why}" for why in failed.values())
        what = f"{plural(len(failed), 'case')} could not be {done}:{reasons}\n"
        raise ContextsegError(some(failed), what, "mend them; all others are done")


def open_label_project(
    folder: str | Path,
    scans: str | Path | None = None,
    classes: Sequence[str] = (),
    *,
    test: int | Sequence[str] = 0,
    plane: str = "auto",
    unlabelled: int | None = None,
    seed: int = 0,
    progress_bar: ProgressBar = no_progress_bar,
) -> LabelProject:
    """Open a project, or begin one.

    Args:
        folder: Where everything of the project lies.
        scans: Folder of the scans, or a data set, whose labels count as accepted and whose test
            split is locked. Needed to begin a project; later only where the scans have moved.
        classes: Names of the classes; () for those of the data set.
        test: Cases that are locked for measuring: their names, or how many to draw.
        plane: "axial", "coronal" or "sagittal": what is drawn. "auto" finds it.
        unlabelled: Value of voxels that nobody labelled, in files. None: slices without a label.
        seed: Seed of the draw of locked cases.
        progress_bar: Shows the progress of each verb.

    Returns:
        The project, with every scan in its table.

    Raises:
        ContextsegError: There is no project and no scans are given, the project is about other
            scans or classes, or a name is unknown.
    """
    folder = Path(folder)
    if not (folder / FACTS).exists():
        if scans is None:
            remedy = "begin one: contextseg project begin WORK --scans FOLDER --classes tumour"
            raise ContextsegError(folder, "there is no project in this folder", remedy)
        _begin(folder, scans, classes, test, plane, unlabelled, seed)
    else:
        _refuse_other(folder, test, plane, unlabelled)
    project = LabelProject(folder, progress_bar)
    if scans is not None and Path(scans).absolute() != Path(project.facts["scans"]):
        _move(project, scans)
        project = LabelProject(folder, progress_bar)
    if classes and tuple(classes) != project.labels.classes[1:]:
        what = f"the project has the classes {', '.join(project.labels.classes[1:])}"
        raise ContextsegError(folder, what, "leave --classes out, or begin another project")
    project.refresh()
    return project


class _Begun(TypedDict):
    scans: str
    labels: dict[str, int | list[int]]
    plane: Literal["auto", "axial", "coronal", "sagittal"]
    unlabelled: int | None
    test: list[str]


class ProjectFacts(_Begun, total=False):
    """What `project.json` says, as far as it is read."""

    channels: list[str]


def project_facts(folder: Path) -> dict[str, Any]:
    """The content of `project.json`.

    Args:
        folder: The project's folder.

    Returns:
        Scans, labels, plane, unlabelled, test, and channels where the scans do not name them.

    Raises:
        ContextsegError: The file is missing or damaged.
    """
    return dict(read_json(folder / FACTS, ProjectFacts))


def _refuse_other(
    folder: Path, test: int | Sequence[str], plane: str, unlabelled: int | None
) -> None:
    """Refuse what was decided when the project was begun, where it is another now."""
    facts = project_facts(folder)
    decided: list[tuple[str, Any, Any]] = []
    if plane != "auto":
        decided.append(("--plane", plane, facts["plane"]))
    if unlabelled is not None:
        decided.append(("--unlabelled", unlabelled, facts["unlabelled"]))
    if test and not isinstance(test, int):
        decided.append(("--test", sorted(test), sorted(facts["test"])))
    elif test:
        decided.append(("--test", test, len(facts["test"])))
    for option, now, before in decided:
        if now != before:
            what = f"the project was begun with {option} {before}"
            raise ContextsegError(f"{option} {now}", what, "leave it out, or begin another project")


def _begin(
    folder: Path,
    scans: str | Path,
    classes: Sequence[str],
    test: int | Sequence[str],
    plane: str,
    unlabelled: int | None,
    seed: int,
) -> None:
    if plane != "auto" and plane not in AXES:
        remedy = f"choose auto, {', '.join(AXES)}"
        raise ContextsegError(f"--plane {plane}", "there is no such plane", remedy)
    sources = Sources.open(scans)
    if not sources.labels and not classes:
        what = "nothing says which classes there are"
        raise ContextsegError(scans, what, "name them: --classes tumour,liver")
    labels = sources.labels or named_labels(classes)
    content = {
        "scans": str(Path(scans).absolute()),
        "labels": dict(LabelTable.of(labels, scans).labels),
        "channels": list(sources.channels),
        "plane": plane,
        "unlabelled": unlabelled,
        "test": list(locked_cases(sources, test, seed)),
        "provenance": provenance(),
    }
    with lock_folder(folder):
        if (folder / FACTS).exists():
            what = "another process has begun a project here in this moment"
            raise ContextsegError(folder, what, "the same command again goes on with it")
        write_json(folder / FACTS, content)


def _move(project: LabelProject, scans: str | Path) -> None:
    """Note that the scans lie elsewhere now."""
    there = Sources.open(scans).cases
    gone = [name for name in project.table.cases() if name not in there]
    if gone:
        what = f"it lacks scans of this project: {some(gone)}"
        raise ContextsegError(scans, what, "give the folder that the scans have moved to")
    write_json(project.folder / FACTS, {**project.facts, "scans": str(Path(scans).absolute())})
