"""Every verb of the command line that writes, with what it goes on from: the table of the faults.

`test_reliability.py` lets something happen in each of them. A verb that is in neither `VERBS` nor
`ONLY_LOOK` fails a test there.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import contextseg as cs
from contextseg.data import phantom
from contextseg.volume import read_labels, write
from downloads import lits
from faults import attempt

TINY = {
    "steps": "2",
    "patch_vox": "16,16,16",
    "batch_size": "1",
    "base_width": "4",
    "device": "cpu",
    "save_every": "1",
}
FLAT = {**TINY, "dims": "2", "patch_vox": "16,16"}


def sets(settings: dict[str, str]) -> list[str]:
    """Settings as words of a command line."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


SET = sets(TINY)


# --- what the verbs go on from --------------------------------------------------------------------


@dataclass
class Place:
    """Data, finished runs and a project, from which each trial takes copies.

    Attributes:
        made: What few verbs need, made when the first one asks for it.
    """

    folder: Path
    data: Path
    scan: Path
    drawn: Path
    run: Path
    flat: Path
    projects: dict[str, Path]
    made: dict[str, Path] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[Path], object]) -> Path:
        """A folder that is made once."""
        if name not in self.made:
            self.made[name] = self.folder / name
            make(self.made[name])
        return self.made[name]

    @property
    def scans(self) -> Path:
        """Scans alone, without labels."""
        return self.folder / "scans"

    @property
    def unlabelled(self) -> Path:
        """A data set in which some scans have no label."""

        def make(folder: Path) -> None:
            phantom.write_dataset(folder, labelled=3, unlabelled=2, test=1)

        return self.once("unlabelled", make)

    @property
    def five(self) -> Path:
        """A data set with enough patients for folds."""
        return self.once("five", lambda folder: phantom.write_dataset(folder, labelled=5, test=1))

    @property
    def reported(self) -> Path:
        """A run with its table and its report."""
        return self.once("reported", lambda folder: cs.run(self.data, folder, **quiet()))

    @property
    def validated(self) -> Path:
        """A run that kept a validation case."""
        return self.once("validated", lambda folder: cs.train(self.five, folder, fold=0, **quiet()))

    @property
    def validated_flat(self) -> Path:
        """A run in 2-D that kept the same."""
        more = {**quiet(), **FLAT}
        return self.once(
            "validated-flat", lambda folder: cs.train(self.five, folder, fold=0, **more)
        )

    @property
    def stopped(self) -> Path:
        """A run whose training was stopped after its first step, with a checkpoint."""
        return self.once("stopped/run", self._stop)

    def _stop(self, folder: Path) -> None:
        words = ["run", self.data, "-o", folder, *sets({**TINY, "steps": "50"})]

        def stop_at_the_first_checkpoint() -> None:
            from contextseg import training

            save = training.write_tensors

            def and_stop(path: Path, content: Any) -> None:
                save(path, content)
                signal.raise_signal(signal.SIGTERM)

            training.write_tensors = and_stop

        done = attempt(words, folder, before=stop_at_the_first_checkpoint)
        assert done.code == 143, done.text
        assert list(folder.glob("train-1/checkpoint.pt"))

    @property
    def download(self) -> Path:
        """A download of LiTS."""
        return self.once("download", lits)


def quiet() -> dict[str, Any]:
    return {**TINY, "verbose": False}


def make_place(folder: Path) -> Place:
    """The place of one module of tests."""
    data = phantom.write_dataset(folder / "data", labelled=3, test=1)
    scan = next(iter((data / "imagesTs").glob("*.nii.gz")))
    label = read_labels(next(iter((data / "labelsTs").glob("*.nii.gz"))))
    cs.train(data, folder / "run", **quiet())
    cs.train(data, folder / "flat", **{**quiet(), **FLAT})
    write(folder / "drawn.nii.gz", with_slices(label))
    scans = folder / "scans"
    scans.mkdir()
    for path in data.glob("images*/*.nii.gz"):
        shutil.copy(path, scans / path.name.replace("_0000", ""))
    projects = project_states(folder, data, scans)
    return Place(
        folder, data, scan, folder / "drawn.nii.gz", folder / "run", folder / "flat", projects
    )


def with_slices(label: cs.Volume) -> cs.Volume:
    """Three slices of a label map, 0 elsewhere."""
    holding = np.flatnonzero(label.array.any((1, 2)))
    chosen = holding[np.linspace(0, len(holding) - 1, 3).round().astype(int)]
    drawn = np.zeros_like(label.array)
    drawn[chosen] = label.array[chosen]
    return label.with_array(drawn)


def project_states(folder: Path, data: Path, scans: Path) -> dict[str, Path]:
    """A project as it is before each verb."""
    work, states = folder / "work", {}

    def keep(name: str) -> None:
        states[name] = shutil.copytree(work, folder / f"before-{name}")

    project = cs.project(work, scans, ["bright"], test=["phantom_003"], verbose=False)
    for name in ("phantom_000", "phantom_001"):
        label = read_labels(data / "labelsTr" / f"{name}.nii.gz")
        write(work / "drawn" / f"{name}.nii.gz", with_slices(label))
    keep("fill")
    project.fill(way="interpolation")
    keep("train")
    project.accept(["phantom_000"])
    keep("export")
    project.train(**TINY)
    keep("predict")
    return states


# --- the verbs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verb:
    """A verb of the command line, as it is tried.

    Attributes:
        words: (place, output folder) to the words after `contextseg`.
        prepare: (place, output folder): puts there what the verb goes on from.
        before: Called in the child before the verb.
        locked: Whether the output folder is locked.
        slow: Whether only the slow tests try it, and at some of its writes in place of all.
        shown: The name in the command line's list; "" for the name in the table.
    """

    words: Callable[[Place, Path], list[object]]
    prepare: Callable[[Place, Path], object] = lambda place, out: None
    before: Callable[[Place], object] = lambda place: None
    locked: bool = True
    slow: bool = False
    shown: str = ""


def of_project(verb: str, *more: str, state: str = "") -> Verb:
    return Verb(
        lambda place, out: ["project", verb, out, *more],
        lambda place, out: shutil.copytree(place.projects[state or verb], out),
    )


def of_run(verb: str, run: str, *more: str, **about: Any) -> Verb:
    """A verb that works in the folder of a run."""
    return Verb(
        lambda place, out: [verb, out, *more],
        lambda place, out: shutil.copytree(getattr(place, run), out),
        **about,
    )


def no_serving(place: Place) -> None:
    """The annotator ends as soon as it would listen."""
    from contextseg.annotator.launch import Annotating

    Annotating._serve = lambda self: self._ended.set()  # type: ignore[method-assign]


def phantoms_as_demo(place: Place) -> None:
    """The demo has phantoms in place of its scans, which take longer."""
    from contextseg import pipeline

    settings = replace(pipeline.demo_settings(), dataset=str(place.data))
    pipeline.demo_settings = lambda: settings


def without_pages(place: Place) -> None:
    """The reports of each run and of a comparison are not drawn: `run` and `report` draw them."""
    from contextseg import pipeline, reports

    pipeline.report = lambda *_: None  # type: ignore[assignment]
    reports.write_comparison = lambda *_, **__: None  # type: ignore[assignment]


def grid(verb: str, *more: object) -> Verb:
    """A comparison of two methods."""
    methods = ["--methods", "plain=supervised", "--methods", "other=supervised:net=resenc"]
    return Verb(
        lambda p, out: [verb, p.data, "-o", out, *methods, "--seeds", "0", *more, *SET],
        before=without_pages,
        slow=True,
    )


SMALL = {**TINY, "spacing_mm": "2,1,1"}

VERBS = {
    "plan": Verb(lambda p, out: ["plan", p.data, "-o", out / "plan.json"], locked=False),
    "train": Verb(lambda p, out: ["train", p.data, "-o", out, *SET]),
    "run": Verb(lambda p, out: ["run", p.data, "-o", out, *SET], slow=True),
    "run --folds": Verb(
        lambda p, out: ["run", p.five, "-o", out, "--folds", "0,1", *SET],
        before=without_pages,
        locked=False,  # each fold is, so that processes may share the folds
        slow=True,
        shown="run",
    ),
    "pseudo": Verb(
        lambda p, out: ["pseudo", p.unlabelled, "-o", out, *SET], before=without_pages, slow=True
    ),
    # A process that trains is no hindrance: it is asked to end.
    "finish": of_run("finish", "stopped", locked=False, slow=True),
    "demo": Verb(
        lambda p, out: ["demo", "-o", out, *sets(SMALL)], before=phantoms_as_demo, slow=True
    ),
    "annotate": Verb(
        lambda p, out: ["annotate", p.scans, "-o", out, "--classes", "bright", "--no-browser"],
        before=no_serving,
        locked=False,
    ),
    "predict": Verb(
        lambda p, out: ["predict", p.run, "-i", p.scan, "-o", out, "--statistics"],
    ),
    "ensemble": Verb(
        lambda p, out: ["ensemble", p.validated, p.validated_flat, "-o", out], slow=True
    ),
    "two-stage": Verb(
        lambda p, out: ["two-stage", p.flat, "-i", p.scan, "-o", out, "--way", "interpolation"]
    ),
    "propagate": Verb(
        lambda p, out: [
            "propagate",
            p.scan,
            "--labels",
            p.drawn,
            "-o",
            out / "filled.nii.gz",
            "--way",
            "interpolation",
        ],
        locked=False,
    ),
    "evaluate": Verb(
        lambda p, out: ["evaluate", p.data / "labelsTs", p.data / "labelsTs", "-o", out],
        locked=False,
    ),
    "export": Verb(lambda p, out: ["export", p.run, out / "model.zip"], locked=False),
    "compare": grid("compare"),
    "curve": grid("curve", "--budgets", "2,all"),
    "reproduce": Verb(
        lambda p, out: ["reproduce", "lits", p.download, "-o", out, "--partial"], locked=False
    ),
    "reproduce --run": Verb(
        lambda p, out: [
            *("reproduce", "lits", p.download, "-o", out, "--partial", "--rows", "none", "--run"),
            *sets(SMALL),
        ],
        before=without_pages,
        locked=False,
        slow=True,
        shown="reproduce",
    ),
    "diagnose": of_run("diagnose", "validated", locked=False, slow=True),
    "simulate": Verb(
        lambda p, out: [
            *("simulate", p.data, "-o", out, "--classes", "bright", "--rounds", "1"),
            *("--ways", "nearest", "--rules", "worst"),
        ]
    ),
    "simulate --chain": Verb(
        lambda p, out: [
            *("simulate", p.data, "-o", out, "--chain", "--arms", "all,chain"),
            *("--budgets", "0.5", "--seeds", "0", "--steps", "2"),
            *sets({name: value for name, value in TINY.items() if name != "steps"}),
        ],
        slow=True,
        shown="simulate",
    ),
    "report": of_run("report", "reported", locked=False, slow=True),
    "project begin": Verb(
        lambda p, out: [
            *("project", "begin", out, "--scans", p.scans, "--classes", "bright", "--test", "1"),
        ]
    ),
    "project fill": of_project("fill", "--way", "interpolation"),
    "project train": of_project("train", *SET),
    "project predict": of_project("predict"),
    "project review": Verb(
        lambda place, out: ["project", "review", out, "--no-browser"],
        lambda place, out: shutil.copytree(place.projects["train"], out),
        before=no_serving,
        locked=False,  # drawing goes on beside another verb, and then waits for it
    ),
    "project accept": of_project("accept", "phantom_000", state="train"),
    "project export": Verb(
        lambda p, out: ["project", "export", out / "work", "-o", out / "data"],
        lambda p, out: shutil.copytree(p.projects["export"], out / "work"),
        locked=False,
    ),
}
"""Each verb, and where it has two ways of working, both."""

ONLY_LOOK: dict[str, Callable[[Place, Path], list[object]]] = {
    "check": lambda p, out: ["check", p.data],
    "project status": lambda p, out: ["project", "status", out, "--table"],
}
"""Verbs that write nothing."""
