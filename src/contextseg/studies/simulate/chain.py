"""The whole chain without a person: a simulated annotator with a budget on a folder of scans.

The annotator labels slices of some cases, has them filled, trains, has the rest predicted, and
labels slices of the worst, until the budget is spent. It knows the truth, so a labelled slice is
right. What is measured is the Dice on locked test cases against the slices spent. Every step is one
of a `projects.LabelProject`, so that what is measured is the tool that a person uses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.cells import frame_text, read_table_file
from contextseg.console import ProgressBar, no_progress_bar, say
from contextseg.data.layouts import Case, Dataset, open_dataset, to_classes, to_values
from contextseg.data.listing import some
from contextseg.data.roi import restricted
from contextseg.disk import changes, read_json, replacing, write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.evaluation import Pair, evaluate
from contextseg.grids import onto
from contextseg.projects import LabelProject, open_label_project, place_scan
from contextseg.propagation import AXES, LabelledSlices, fill
from contextseg.provenance import provenance
from contextseg.settings import Settings
from contextseg.studies.simulate.annotator import start_uniform
from contextseg.volume import Volume, read, read_labels, write

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Arm:
    """One way to spend a budget of slices.

    Attributes:
        about: What it is, in words.
        whole: Whether cases are labelled whole; else some slices of each.
        order: Which case is next: "expected", "size", or "random".
        filled: Whether the slices between are filled.
        unlabelled: Whether the other scans are learned from too, without labels. Not by default, as
            in `LabelProject.train`.
    """

    about: str
    whole: bool = False
    order: str = "random"
    filled: bool = True
    unlabelled: bool = False


ARMS = {
    "all": Arm("every case labelled whole", whole=True),
    "whole-cases": Arm("cases at random, each labelled whole", whole=True),
    "chain": Arm("the worst by expected Dice", order="expected"),
    "chain-random": Arm("the chain with cases at random"),
    "chain-size": Arm("the chain with the largest predictions first", order="size"),
    "chain-no-fill": Arm("the chain on drawn slices alone", order="expected", filled=False),
    "chain-unlabelled": Arm(
        "the chain that learns from unlabelled scans too", order="expected", unlabelled=True
    ),
}
"""Ways to spend the budget, by name; "all" spends everything, and is what is to be reached."""


@dataclass(frozen=True)
class ChainStudy:
    """What is simulated.

    Attributes:
        dataset: Folder of a labelled data set. Without a test split every fifth patient is locked.
        arms: Names of `ARMS`; () is all of them.
        budgets: Slices to spend, ascending, each as a share of the slices that hold a structure in
            all training cases; after each the model is trained and measured.
        seeds: Seeds of which cases come first, and of the training.
        classes: Classes to segment; () is all.
        slices: Slices that are labelled in a case before the next case is taken.
        plane: "axial", "coronal" or "sagittal".
        method: How the arm "chain-unlabelled" trains, "cps" or "pseudo"; all others train by
            "supervised", as `LabelProject.train` does by default.
        model: A run of method "stcn" that fills; "" interpolates shapes.
        settings: Settings of every training, `name=value` each.
        minutes_per_slice: What a labelled slice costs.
        tolerance_mm: Tolerance of the NSD.
        cases: At most so many test cases, in their order. None for all.

    Raises:
        ContextsegError: An arm, plane or setting is unknown, or a budget is no share.
    """

    dataset: str
    arms: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (0.05, 0.1, 0.15)
    seeds: tuple[int, ...] = (0, 1, 2)
    classes: tuple[str, ...] = ()
    slices: int = 3
    plane: str = "axial"
    method: str = "cps"
    model: str = ""
    settings: tuple[str, ...] = ()
    minutes_per_slice: float = 1.0
    tolerance_mm: float = 2.0
    cases: int | None = None

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in ARMS:
                raise ContextsegError(
                    f"--arms {name}", "there is no such arm", did_you_mean(name, ARMS)
                )
        if self.plane not in AXES:
            remedy = f"choose {', '.join(AXES)}"
            raise ContextsegError(f"--plane {self.plane}", "there is no such plane", remedy)
        ascending = sorted(set(self.budgets)) == list(self.budgets)
        if not self.budgets or not ascending or not 0 < self.budgets[0] <= self.budgets[-1] <= 1:
            what = "not shares of all slices, each larger than the one before"
            raise ContextsegError(f"--budgets {self.budgets}", what, "give 0.05,0.1,0.15")
        if self.slices < 1 or not self.seeds or self.minutes_per_slice < 0:
            what = f"{plural(self.slices, 'slice')} a case, {plural(len(self.seeds), 'seed')}"
            raise ContextsegError("simulate --chain", what, "give one or more of each")
        for method in {arm_method(self, ARMS[name]) for name in self.chosen}:
            Settings("", method).set(self.settings)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The arms, with the default written out."""
        return self.arms or tuple(ARMS)


def arm_method(study: ChainStudy, arm: Arm) -> str:
    """The method that an arm trains by.

    Args:
        study: What is simulated.
        arm: The arm.
    """
    return study.method if arm.unlabelled else "supervised"


@dataclass(frozen=True)
class _Truth:
    """What the annotator knows: the data set, and its true labels on the scans' grids."""

    data: Dataset
    train: Mapping[str, Volume]
    test: Mapping[str, Volume]
    axis: Mapping[str, int]

    def holding(self, name: str) -> np.ndarray:
        """The slices of a case that hold a structure."""
        slices: Any = np.moveaxis(self.train[name].array, self.axis[name], 0)
        return np.flatnonzero((slices > 0).any((1, 2)))

    @property
    def slices(self) -> int:
        """The slices that hold a structure in all training cases."""
        return sum(len(self.holding(name)) for name in self.train)


def run_chain(
    study: ChainStudy, folder: Path, progress_bar: ProgressBar = no_progress_bar
) -> DataFrame:
    """Do the study; finished cells (an arm and a seed each) are kept and not done again.

    Args:
        study: What is simulated.
        folder: Where the study is kept.
        progress_bar: Shows the progress.

    Returns:
        A row for each arm, seed, budget, test case and class: arm, seed, budget (the share that was
        allowed), slices and share (spent), drawn_cases, minutes, case, patient and the metrics.

    Raises:
        ContextsegError: `folder` holds another study, or the data set has too few labelled cases.
    """
    import pandas as pd

    asked = json.loads(json.dumps(asdict(study)))
    path = folder / "study.json"
    if path.exists():
        but = {"dataset", "arms", "seeds"}
        if what := changes(read_json(path)["study"], asked, but):
            what = f"this folder holds another study ({what})"
            raise ContextsegError(folder, what, "choose another --output folder")
    truth = _open_truth(study)
    write_json(path, {"study": asked, "slices": truth.slices, "provenance": provenance()})
    _place_scans(truth, folder / "scans")
    cells = [(seed, arm) for seed in study.seeds for arm in study.chosen]
    tables = []
    with progress_bar("simulate --chain") as progress:
        for done, (seed, arm) in enumerate(cells):
            progress(done, len(cells))
            cell = folder / "cells" / f"{arm}-{seed}"
            if not (cell / "rows.csv").exists():
                _run_cell(study, truth, arm, seed, folder / "scans", cell)
            tables.append(read_table_file(cell / "rows.csv", ("case", "patient")))
            progress(done + 1, len(cells))
    return pd.concat(tables, ignore_index=True)


def _open_truth(study: ChainStudy) -> _Truth:
    data = restricted(open_dataset(study.dataset), study.classes)
    wanted = set(data.classes[1:])
    usable: list[Case] = []
    left: list[Case] = []
    for case in (*data.train, *data.test):
        annotated = case.annotated is None or wanted <= set(case.annotated)
        (usable if case.label and annotated else left).append(case)
    tests = {case.name for case in data.test}
    if not tests:
        patients = sorted({case.patient for case in usable})[4::5]
        tests = {case.name for case in usable if case.patient in patients}
    labels: dict[str, Volume] = {}
    axis: dict[str, int] = {}
    for case in usable:
        labels[case.name] = _true_label(data, case)
        letters = labels[case.name].orientation
        axis[case.name] = next(i for i, a in enumerate(letters) if a in AXES[study.plane])
    train = {n: v for n, v in labels.items() if n not in tests and (v.array > 0).any()}
    test = dict([(n, v) for n, v in labels.items() if n in tests][: study.cases])
    if left:
        say(
            f"{plural(len(left), 'case')} left out, without all of the classes annotated: "
            f"{some(case.name for case in left)}"
        )
    if not train or not test:
        what = (
            f"{plural(len(train), 'labelled training case')} and {plural(len(test), 'test case')}"
        )
        raise ContextsegError(study.dataset, what, "give a data set with more labelled cases")
    return _Truth(data, train, test, axis)


def _true_label(data: Dataset, case: Case) -> Volume:
    """A case's label in the values of the data set, 0 for what is outside the ROI."""
    assert case.label is not None
    label = onto(read_labels(case.label), read(*case.images), case.label)
    known = to_classes(data, label.array, case.label)
    if (known == IGNORE).any():
        what = "it is not labelled whole, so nobody knows the truth of it"
        raise ContextsegError(case.label, what, "give whole labels, or leave the case out")
    return label.with_array(to_values(data, known).astype(np.int16))


def _place_scans(truth: _Truth, folder: Path) -> None:
    """The scans of the study as a data set without a label, so that nothing of it can leak."""
    if (folder / "cases.json").exists():
        return
    cases = {case.name: case for case in (*truth.data.train, *truth.data.test)}
    with replacing(folder) as temporary:
        (temporary / "images").mkdir(parents=True)
        for name in (*truth.train, *truth.test):
            place_scan(cases[name], temporary / "images", link=True)
        entries = {
            name: {
                "patient": cases[name].patient,
                "split": "test" if name in truth.test else "train",
            }
            for name in (*truth.train, *truth.test)
        }
        table = {
            "labels": dict(zip(truth.data.classes, truth.data.values)),
            "channel_names": {str(i): c for i, c in enumerate(truth.data.channels)},
            "cases": entries,
        }
        write_json(temporary / "cases.json", table)


# --- one cell -------------------------------------------------------------------------------------


def _run_cell(
    study: ChainStudy, truth: _Truth, name: str, seed: int, scans: Path, cell: Path
) -> None:
    """All budgets of one arm and seed; each that is measured is kept, the cell's table is last."""
    import pandas as pd

    arm = ARMS[name]
    project = open_label_project(cell / "work", scans, plane=study.plane)
    budgets = (1.0,) if name == "all" else study.budgets
    for number, budget in enumerate(budgets, start=1):
        if not (cell / f"rows-{number}.csv").exists():
            facts = {"arm": name, "seed": seed, "budget": budget}
            last = number == len(budgets)
            _run_round(study, truth, arm, project, cell, number, facts, last)
    for kind in ("pool", "rounds", "rows"):
        files = [cell / f"{kind}-{number}.csv" for number in range(1, len(budgets) + 1)]
        text = {"case": str, "patient": str}
        tables = [read_table_file(path, tuple(text)) for path in files if path.exists()]
        if tables:
            write_text(cell / f"{kind}.csv", frame_text(pd.concat(tables)))
    for cache in (cell / "work").glob("rounds/*/model/cache"):
        rmtree(cache)


def _run_round(
    study: ChainStudy,
    truth: _Truth,
    arm: Arm,
    project: LabelProject,
    cell: Path,
    number: int,
    facts: dict[str, Any],
    last: bool,
) -> None:
    """One budget: draw, fill, train, predict, and write what is measured; the scores last."""
    import pandas as pd

    started = time.monotonic()
    allowed = int(facts["budget"] * truth.slices)
    queue = _at_random(truth, facts["seed"])
    draws = _draws(study, truth, arm, project, queue, cell / f"draws-{number}.json", allowed)
    _draw(study, truth, arm, project, draws)
    words: dict[str, Any] = dict(word.split("=", 1) for word in study.settings)
    if arm.unlabelled and len(draws) == len(truth.train):
        words["unlabelled_items"] = "0"  # every scan is labelled in part by now
    fills = "all" if arm.filled else "none"
    project.train(method=arm_method(study, arm), fills=fills, seed=facts["seed"], **words)
    waiting = [n for n in truth.train if not project.table.case(n).trained]
    ordered = arm.order != "random" and not last and not arm.whole
    project.predict([*truth.test, *(waiting if ordered else ())])
    slices = _cost(draws)
    facts = {**facts, "slices": slices, "share": slices / truth.slices}
    facts |= {"drawn_cases": len(draws), "minutes": slices * study.minutes_per_slice}
    if ordered:
        pool = pd.DataFrame(_pool_rows(truth, project, waiting)).assign(**facts)
        write_text(cell / f"pool-{number}.csv", frame_text(pool))
    fill_dice = _fill_dice(truth, project, draws) if arm.filled and not arm.whole else np.nan
    seconds = round(time.monotonic() - started, 1)
    spent = pd.DataFrame([{**facts, "fill_dice": fill_dice, "seconds": seconds}])
    write_text(cell / f"rounds-{number}.csv", frame_text(spent))
    rows = _scored(study, truth, project).assign(**facts)
    first = [*facts, "case", "patient"]
    rows = rows[[*first, *(column for column in rows if column not in first)]]
    write_text(cell / f"rows-{number}.csv", frame_text(rows))


def _at_random(truth: _Truth, seed: int) -> list[str]:
    """The training cases in the order of a seed, the same one in every arm."""
    names = sorted(truth.train)
    np.random.RandomState(seed).shuffle(names)
    return names


def _draws(
    study: ChainStudy,
    truth: _Truth,
    arm: Arm,
    project: LabelProject,
    queue: Sequence[str],
    path: Path,
    allowed: int,
) -> dict[str, list[int]]:
    """The labelled slices of each case under a budget; noted, so that a stopped cell goes on."""
    if path.exists():
        return {name: list(slices) for name, slices in read_json(path).items()}
    number = int(path.stem.split("-")[1])
    before = path.with_name(f"draws-{number - 1}.json")
    draws = {n: list(s) for n, s in read_json(before).items()} if number > 1 else {}
    order = list(queue)
    if number > 1 and arm.order != "random":
        order = [*project.worklist(arm.order), *queue]
    left = allowed - _cost(draws)
    for name in dict.fromkeys(order):
        if name in draws:
            continue
        holding = truth.holding(name)
        chosen = holding.tolist()
        if not arm.whole:
            slices: Any = np.moveaxis(truth.train[name].array, truth.axis[name], 0)
            chosen = start_uniform((slices > 0).astype(int), study.slices)
        if len(chosen) > left:
            if arm.whole:
                continue  # a smaller case may fit
            break
        draws[name] = chosen
        left -= len(chosen)
    if not arm.whole:
        _draw_more(truth, draws, queue, left)
    if not draws:
        what = f"a budget of {allowed} slices is too small for one case"
        raise ContextsegError("--budgets", what, "give a larger first budget, or fewer --slices")
    write_json(path, draws)
    return draws


def _draw_more(truth: _Truth, draws: dict[str, list[int]], queue: Sequence[str], left: int) -> None:
    """Spend what is left, once every case is drawn, on the slices that `propagate` suggests."""
    while left > 0 and len(draws) == len(truth.train):
        drawn = 0
        for name in queue:
            following = _suggested(truth, name, draws[name])
            if following is not None and drawn < left:
                draws[name] = sorted([*draws[name], following])
                drawn += 1
        left -= drawn
        if not drawn:
            return


def _suggested(truth: _Truth, name: str, slices: Sequence[int]) -> int | None:
    """The slice to label next; None where all that hold a structure are labelled."""
    missing = set(truth.holding(name).tolist()) - set(slices)
    if not missing:
        return None
    label, axis = truth.train[name], truth.axis[name]
    given = {i: label.array.take(i, axis) for i in slices}
    place, _ = fill(label.with_array(label.array[None]), LabelledSlices(axis, given)).suggestion
    return place if place in missing else min(missing, key=lambda i: (abs(i - place), i))


def _cost(draws: Mapping[str, Sequence[int]]) -> int:
    """Slices that were labelled."""
    return sum(len(slices) for slices in draws.values())


def _draw(
    study: ChainStudy,
    truth: _Truth,
    arm: Arm,
    project: LabelProject,
    draws: Mapping[str, Sequence[int]],
) -> None:
    """Give the project what was drawn, as a person's files, and have it filled."""
    for name, slices in draws.items():
        label = truth.train[name]
        if arm.whole:
            if not project.table.case(name).accepted:
                path = project.folder / "given" / f"{name}.nii.gz"
                write(path, label)
                project.accept([name], label=path)
            continue
        axis = truth.axis[name]
        drawn = np.zeros_like(label.array)
        place: Any = np.moveaxis(drawn, axis, 0)
        place[list(slices)] = np.moveaxis(label.array, axis, 0)[list(slices)]
        path = project.folder / "drawn" / f"{name}.nii.gz"
        if not path.exists() or not np.array_equal(read_labels(path).array, drawn):
            write(path, label.with_array(drawn))
    if arm.filled and not arm.whole:
        way = "" if study.model else "interpolation"  # the packaged network may know these cases
        project.fill(model=study.model or None, way=way, between=True)


# --- what is measured -----------------------------------------------------------------------------


def _scored(study: ChainStudy, truth: _Truth, project: LabelProject) -> DataFrame:
    """The locked cases, predicted by the last round, against the truth."""
    cases = {case.name: case for case in (*truth.data.train, *truth.data.test)}
    pairs = []
    for name in truth.test:
        prediction = project.prediction_file(name)
        reference = project.folder.parent.parent / "truth" / f"{name}.nii.gz"
        if not reference.exists():
            write(reference, truth.test[name])
        pairs.append(Pair(name, prediction, reference))
    table, problems = evaluate(
        pairs, truth.data.region_values(), tolerance_mm=study.tolerance_mm, workers=1
    )
    for why in problems.values():
        raise ContextsegError("simulate --chain", why, "mend this case")
    table["patient"] = [cases[name].patient for name in table["case"]]
    return table.drop(columns=["prediction_file", "reference_file"])


def _dice(truth: np.ndarray, label: np.ndarray, values: Sequence[int]) -> float:
    """Mean Dice over the classes that one of the two holds."""
    scores = []
    for value in values:
        size = int((truth == value).sum() + (label == value).sum())
        if size:
            scores.append(2 * int(((truth == value) & (label == value)).sum()) / size)
    return float(np.mean(scores)) if scores else float("nan")


def _pool_rows(truth: _Truth, project: LabelProject, names: Sequence[str]) -> list[dict[str, Any]]:
    """Expected and true Dice of the cases that nobody has labelled yet."""
    values = truth.data.values[1:]
    rows = []
    for name in names:
        label = read_labels(project.prediction_file(name)).array
        rows.append(
            {
                "case": name,
                "expected_dice": project.table.case(name).expected_dice,
                "dsc": _dice(truth.train[name].array, label, values),
                "voxels": int((label > 0).sum()),
            }
        )
    return rows


def _fill_dice(truth: _Truth, project: LabelProject, draws: Mapping[str, Sequence[int]]) -> float:
    """Mean Dice of the filled scans against the truth."""
    values = truth.data.values[1:]
    scores = [
        _dice(truth.train[name].array, read_labels(project.fill_file(name)).array, values)
        for name in draws
    ]
    return float(np.mean(scores))
