"""Both stages as one: a reference run predicts some slices of a scan, and the best fill the rest.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816): predict every fifth slice, take for each organ
the one in which it is largest, propagate. Their limitation is that an organ which the reference run
does not find in these slices is lost. Here further slices are predicted for such a class, and a
class that is found nowhere is flagged.

The paper leaves the following open; decided here. Slices are across the first axis of the reference
run's plan (of the propagating run's, where the reference is 3-D). Chosen slices count as labelled
throughout, background too. A further slice in which a missing class is found is one more reference
slice beside those chosen before, and all its classes count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.components import Change, keep_largest, write_change
from contextseg.data.layouts import Case
from contextseg.disk import changes, lock_folder, note_case, read_json, write_json
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.evaluation.efficiency import Efficiency
from contextseg.interop.names import describe_folder
from contextseg.interop.reading import write_classes
from contextseg.methods.presence import head_of
from contextseg.predict.record import PredictionRecord, gathered, weights_digest
from contextseg.predictor import (
    Member,
    Predictor,
    cases_to_segment,
    model_name,
    plan_segments,
    raise_failed,
    segment_missing,
)
from contextseg.propagation import (
    AXES,
    MERGES,
    NETWORK_WAYS,
    SELECTION_RULES,
    STOP_BELOW,
    CompletionModel,
    LabelledSlices,
    PropagationModel,
    fill,
    ranges,
    select_slices,
    uniform_slices,
)
from contextseg.settings import PredictionSettings
from contextseg.twostage.reference import SlicePrediction, SliceReference, VolumeReference
from contextseg.volume import Volume, axis_moves, read

TWO_STAGE_TABLE = "two-stage.csv"
"""The table in a folder of results with the outcome of each class in each case."""
SELECTIONS = ("largest", "certain", "covering", "presence", "all")
"""Rules for reference slices: `propagation.SELECTION_RULES`, and "presence" of `TwoStageSettings`.
"""


@dataclass(frozen=True)
class TwoStageSettings:
    """How the two stages are done. Defaults are the paper's, except where marked [ours].

    Attributes:
        every: Every `every`th slice is predicted, or closer, see `propagation.uniform_slices`.
        most: Slices predicted at most; 0 for no limit [ours; the authors' code has 64].
        select: One of `SELECTIONS`. "largest" is the paper's. "presence" [ours] takes the slice
            where a presence head is most certain of the class, of the slices with half its largest
            area. "" is "largest" where a run propagates, else "all": shapes can be interpolated
            between two slices of an organ, not from one, and the network that comes with the
            package is better from several too.
        slices: Reference slices of each class, where it has so many, see
            `propagation.select_slices`.
        recover: Whether further slices are predicted for a class that is in none of the first: half
            way between them, or, with a 3-D run, all [ours].
        bounded: Whether a class is filled only up to the predicted slices without it next to those
            that hold it [ours].
        way: What fills, one of `propagation.WAYS`. "" is "propagation" with a network and
            "interpolation" without; "combined" was worse with a run's network, and as good with
            the packaged one (docs/results.md).
        stop_below: Beyond the outermost reference slices, a class ends before the first slice where
            a smaller Dice is expected [ours]; 0 never stops, as in the paper. This and what follows
            are of the walk of a run's network.
        top_k: Memorised positions that each position reads; 0 for all.
        memory_every: Of the filled slices, every so many stay in the memory.
        merge: One of `propagation.MERGES`: "sum" is the paper's, "nearer" [ours] weights both walks
            by how near their reference slice is.

    Raises:
        ContextsegError: For an unknown selection or merge, and for numbers out of their range.
    """

    every: int = 5
    most: int = 0
    select: str = ""
    slices: int = 1
    recover: bool = True
    bounded: bool = True
    way: str = ""
    stop_below: float = STOP_BELOW
    top_k: int = 20
    memory_every: int = 5
    merge: str = "nearer"

    def __post_init__(self) -> None:
        for name, known in (("select", ("", *SELECTIONS)), ("merge", MERGES)):
            value = getattr(self, name)
            if value not in known:
                remedy = did_you_mean(value, [one for one in known if one])
                raise ContextsegError(f"{name}={value}", "there is no such rule", remedy)
        for name in ("every", "slices", "memory_every"):
            if getattr(self, name) < 1:
                what = "less than one slice"
                raise ContextsegError(f"{name}={getattr(self, name)}", what, "give 1 or more")
        if self.most < 0 or self.most == 1:
            what = "the first and the last slice are always predicted"
            raise ContextsegError(f"most={self.most}", what, "give 0, for no limit, or 2 or more")
        if self.top_k < 0:
            what = "a negative number of positions"
            raise ContextsegError(f"top_k={self.top_k}", what, "give 0, for all, or more")
        if not 0 <= self.stop_below <= 1:
            where = f"stop_below={self.stop_below:g}"
            raise ContextsegError(where, "it is a Dice", "give 0 (never stop) to 1")

    def walk(self) -> dict[str, Any]:
        """Arguments of `Session.propagate`."""
        weighted = self.merge == "nearer"
        return {"top_k": self.top_k or None, "every": self.memory_every, "weighted": weighted}


WALKED = ("stop_below", "top_k", "memory_every", "merge")
"""The settings that only the network of a run has."""


def as_published(
    stages: TwoStageSettings = TwoStageSettings(), model: bool = True
) -> TwoStageSettings:
    """The settings of Pham et al. and of their code.

    Args:
        stages: What was asked for beside it: the defaults.
        model: Whether a run of method "stcn" propagates.

    Returns:
        The settings.

    Raises:
        ContextsegError: Without a model, and where something else is asked for too.
    """
    if not model:
        remedy = "give --model RUN, made by `contextseg train --method stcn`"
        raise ContextsegError("--published", "the published pipeline propagates by STCN", remedy)
    for name, value in asdict(stages).items():
        if value != getattr(TwoStageSettings(), name):
            where = f"--{name.replace('_', '-')} {value}"
            raise ContextsegError(where, "--published settles it", "leave one of the two out")
    return TwoStageSettings(
        every=5,
        most=64,
        select="largest",
        slices=1,
        recover=False,
        bounded=False,
        way="propagation",
        stop_below=0.0,
        top_k=20,
        memory_every=5,
        merge="sum",
    )


@dataclass(frozen=True)
class ClassOutcome:
    """The outcome of one class in one case.

    Attributes:
        slices: Reference slices that hold the class, numbers along the scan's own axis.
        source: "sampled" if these are of the slices predicted first, "between" if they are of the
            further ones, "" if there is none.
        sampled_vox: Voxels of the class in all slices predicted first.
        vox: Voxels of the class in the result.
        agreement: Dice of result and reference run in the slices predicted first that are no
            reference slices. NaN where neither has any.
        presence: The largest probability of a presence head that the class is there. NaN without
            such a head.
        flag: "" where the result holds the class. "missed": it does not, but the presence head
            finds the class. "not found": it does not; whether the class is there is unknown.
    """

    slices: tuple[int, ...]
    source: str
    sampled_vox: int
    vox: int
    agreement: float
    presence: float
    flag: str


@dataclass(frozen=True)
class TwoStageResult:
    """A segmented scan.

    Attributes:
        label: Label map on the scan's own grid, in the reference run's label values.
        outcomes: The outcome of each class but the background, by name.
        change: What keeping the largest component removed. None where the settings do not ask.
    """

    label: Volume
    outcomes: dict[str, ClassOutcome]
    change: Change | None = None


def segment_two_stage(
    scan: Volume,
    reference: Member,
    model: PropagationModel | CompletionModel | None = None,
    stages: TwoStageSettings = TwoStageSettings(),
    settings: PredictionSettings | None = None,
    name: str = "",
) -> TwoStageResult:
    """Segment a scan: predict some slices, choose the reference slices, fill the rest from them.

    Args:
        scan: (C, D, H, W).
        reference: A trained method that predicts, and its plan. A 2-D one predicts only the sampled
            slices and the further ones; a 3-D one predicts the scan.
        model: The network that propagates: of a run, whose plan and classes may be others, or the
            one that comes with the package. None: shapes are interpolated between the reference
            slices, and slices beyond the outermost ones stay empty.
        stages: How the two stages are done.
        settings: How the reference run predicts; None: the defaults. `largest_component` applies to
            the result.
        name: Of the case, for messages.

    Returns:
        The segmented scan, empty where no class is found.

    Raises:
        ContextsegError: For runs that do not go together, see `check_runs`.
    """
    check_runs(reference, model, stages)
    settings = settings or PredictionSettings()
    source = _reference(scan, reference, model, settings, name)
    rule = stages.select or ("largest" if isinstance(model, PropagationModel) else "all")
    chosen = _choose_slices(source, stages, rule)
    label = np.zeros(scan.shape, np.uint8)
    if chosen.references:
        ends = None
        if stages.bounded:
            ends = _ends({**chosen.sampled, **chosen.further}, scan.shape[source.axis])
        way = stages.way or ("propagation" if model else "interpolation")
        labelled = LabelledSlices(source.axis, chosen.references)
        walk = stages.walk()
        label = fill(scan, labelled, model, way, ends, stages.stop_below, walk=walk).label.array
    removed = None
    if settings.largest_component:
        kept, removed = keep_largest(scan.with_array(label))
        label = kept.array
    outcomes = _class_outcomes(source, label, chosen)
    values = np.array(reference.plan.values)
    values = values.astype(np.min_scalar_type(int(values.max())))
    return TwoStageResult(scan.with_array(values[label]), outcomes, removed)


@dataclass(frozen=True)
class _Slices:
    """Slice number -> (H, W) of class indices; and the source of each class that was found."""

    sampled: dict[int, np.ndarray]
    further: dict[int, np.ndarray]
    references: dict[int, np.ndarray]
    source: dict[int, str]


def _choose_slices(
    reference: SliceReference | VolumeReference, stages: TwoStageSettings, rule: str
) -> _Slices:
    """Predict slices, further ones for classes that are in none, and choose which to fill from."""
    numbers = uniform_slices(reference.scan.shape[reference.axis], stages.every, stages.most)
    prediction = reference.predict(numbers)
    sampled = dict(zip(numbers, prediction.label))
    references = {i: sampled[i] for i in _selected(rule, prediction, numbers, stages.slices)}
    # each class is in a reference slice, by any rule
    source = dict.fromkeys(_classes(prediction.label), "sampled")
    missing = [k for k in range(1, len(reference.member.plan.classes)) if k not in source]
    further: dict[int, np.ndarray] = {}
    more = reference.further_slices(numbers) if stages.recover and missing else []
    if more:
        label = reference.predict(more).label
        further = dict(zip(more, label))
        recovered = np.where(np.isin(label, missing), label, 0)
        places = select_slices("largest", recovered, each=stages.slices)
        references |= {more[n]: label[n] for n in places}
        source |= dict.fromkeys(_classes(recovered), "between")
    return _Slices(sampled, further, references, source)


def _ends(predicted: Mapping[int, np.ndarray], n: int) -> dict[int, tuple[int, int]]:
    """The first and the last of n slices that may hold each class.

    They lie between the predicted slices without the class, outside the outermost ones with it.

    >>> _ends({i: np.array([[i in (6, 9)]]).astype(int) for i in (0, 3, 6, 9)}, 12)
    {1: (4, 11)}
    """
    slices = sorted(predicted)
    ends = {}
    for k, (first, last) in ranges(LabelledSlices(0, dict(predicted))).items():
        before = max((i for i in slices if i < first), default=-1)
        after = min((i for i in slices if i > last), default=n)
        ends[k] = before + 1, after - 1
    return ends


def _reference(
    scan: Volume,
    reference: Member,
    model: PropagationModel | CompletionModel | None,
    settings: PredictionSettings,
    name: str,
) -> SliceReference | VolumeReference:
    """The reference run on the scan."""
    if reference.plan.dims == 2:
        return SliceReference(scan, reference, settings, name)
    leading, first = reference.plan, 0
    if isinstance(model, PropagationModel):
        leading, first = model.plan, model.axes[0]
    axis = axis_moves(scan.orientation, leading.orientation)[0][first]
    return VolumeReference(scan, reference, settings, axis, name)


def check_runs(
    reference: Member,
    model: PropagationModel | CompletionModel | None = None,
    stages: TwoStageSettings = TwoStageSettings(),
) -> None:
    """Check that a reference run and a propagating network go together, and with the settings.

    Spacing, patch and classes of the two may differ.

    Args:
        reference: A trained method and its plan.
        model: The network that propagates; None: shapes are interpolated.
        stages: How the two stages are done.

    Raises:
        ContextsegError: For a reference that needs labelled slices, a selection by presence without
            a head that sees slices, settings that no network of a run would use, scans of other
            channels, and a 2-D reference whose slices lie across another axis than the model was
            trained to follow.
    """
    plan = reference.plan
    if reference.method.guided:
        what = "a run that needs labelled slices cannot predict them first"
        raise ContextsegError(
            "the reference run",
            what,
            "give one that predicts, such as `contextseg train --set dims=2`",
        )
    if stages.select == "presence" and (plan.dims == 3 or head_of(reference.method) is None):
        what = "the reference run has no presence head that sees slices"
        raise ContextsegError(
            "select=presence",
            what,
            "train one with --method cmu --set dims=2, or choose another rule",
        )
    followed_by_run = isinstance(model, PropagationModel) and stages.way in ("", *NETWORK_WAYS)
    for name in () if followed_by_run else WALKED:
        if getattr(stages, name) != getattr(TwoStageSettings(), name):
            where = f"--{name.replace('_', '-')} {getattr(stages, name)}"
            what = "it is of the walk of a network that was trained on your scans"
            remedy = "give --model RUN, made by `contextseg train --method stcn`, or leave it out"
            raise ContextsegError(where, what, remedy)
    if not isinstance(model, PropagationModel):
        return
    other = model.plan
    if (len(plan.scanned), plan.ct) != (len(other.scanned), other.ct):
        mine, theirs = ", ".join(plan.scanned), ", ".join(other.scanned)
        what = f"the reference run was trained on {mine}, and this one on {theirs}"
        raise ContextsegError(
            "--model", what, "give runs that were trained on the same kind of scan"
        )
    plane = _plane(plan.orientation[0])
    followed = [_plane(other.orientation[axis]) for axis in model.axes]
    if plan.dims == 2 and plane not in followed:
        names = " and ".join(followed)
        what = f"it follows {names} slices, and the reference run predicts {plane} ones"
        raise ContextsegError(
            "--model", what, "train one of them with --plan and the other's orientation"
        )


def _plane(letter: str) -> str:
    return next(plane for plane, letters in AXES.items() if letter in letters)


def _selected(
    rule: str, prediction: SlicePrediction, numbers: Sequence[int], each: int
) -> list[int]:
    """The reference slices, as numbers of the scan."""
    probability = prediction.confidence / np.float32(255)
    if rule == "presence":
        assert prediction.presence is not None
        background = np.zeros((len(numbers), 1))
        presence = np.concatenate([background, prediction.presence], 1)
        probability = presence[np.arange(len(numbers))[:, None, None], prediction.label]
    rule = rule if rule in SELECTION_RULES else "certain"
    return select_slices(rule, prediction.label, probability, numbers, each)


def _classes(label: np.ndarray) -> list[int]:
    return [int(k) for k in np.unique(label) if k > 0]


def _class_outcomes(
    reference: SliceReference | VolumeReference, label: np.ndarray, chosen: _Slices
) -> dict[str, ClassOutcome]:
    """The outcome of each class; `label` (D, H, W) of class indices."""
    head, presence = head_of(reference.member.method), reference.presence
    slices = np.moveaxis(label, reference.axis, 0)
    others = [i for i in chosen.sampled if i not in chosen.references]
    outcomes = {}
    for k, name in enumerate(reference.member.plan.classes[1:], 1):
        vox = int((label == k).sum())
        p = float("nan") if presence is None else float(presence[k - 1])
        flag = ""
        if not vox:
            missed = head is not None and p > head.seen[k - 1]
            flag = "missed" if missed else "not found"
        holding = [i for i, drawn in chosen.references.items() if (drawn == k).any()]
        outcomes[name] = ClassOutcome(
            slices=tuple(sorted(holding)),
            source=chosen.source.get(k, ""),
            sampled_vox=int(sum((drawn == k).sum() for drawn in chosen.sampled.values())),
            vox=vox,
            agreement=_dice([(slices[i] == k, chosen.sampled[i] == k) for i in others]),
            presence=p,
            flag=flag,
        )
    return outcomes


def _dice(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    size = sum(int(a.sum() + b.sum()) for a, b in pairs)
    return 2 * sum(int((a & b).sum()) for a, b in pairs) / size if size else float("nan")


# --- folders --------------------------------------------------------------------------------------


def segment_folder(
    reference: Predictor,
    images: str | Path,
    folder: str | Path,
    model: PropagationModel | CompletionModel | None = None,
    stages: TwoStageSettings = TwoStageSettings(),
    asked: Mapping[str, Any] = MappingProxyType({}),
    profile: bool = False,
    profile_formula: str = "trapezoid",
    progress_bar: ProgressBar = no_progress_bar,
) -> dict[str, Path]:
    """Segment every scan of a folder into another; what is there already is kept.

    Args:
        reference: One trained method, and how it predicts.
        images: A scan, a folder of scans, or the folder of a data set.
        folder: Where the results go, see `segment_cases`.
        model: The network that propagates, as in `segment_two_stage`.
        stages: How the two stages are done.
        asked: What else the results depend on, such as the runs' folders, by name; JSON values.
        profile: Note running time and memory of each scan in `efficiency.csv`, with a plot.
        profile_formula: How areas under the curves are taken: "trapezoid", or "official" for
            FLARE22's own sum.
        progress_bar: Shows the progress.

    Returns:
        The label map of each case, by name.

    Raises:
        ContextsegError: For runs that do not go together, an ensemble as reference, a folder that
            holds results of other settings or in which another process works, and scans that
            cannot be segmented; all others are done.
    """
    if len(reference.members) != 1:
        what = "an ensemble of several runs"
        raise ContextsegError("the reference run", what, "give one run")
    [member] = reference.members
    folder = Path(folder)
    check_runs(member, model, stages)
    cases = cases_to_segment(images, folder)
    made_by = {"models": [model_name(member.method, member.plan), *_name_of(model)]}
    record = PredictionRecord(folder, {**made_by, **asdict(stages), **asdict(reference.settings)})
    with lock_folder(folder):
        record.check(cases)
        check_folder(folder, {**asked, **asdict(stages), **asdict(reference.settings)})
        efficiency = Efficiency(folder, profile_formula) if profile else None
        with progress_bar("two-stage") as progress:
            failed = segment_cases(
                cases,
                member,
                model,
                stages,
                reference.settings,
                folder,
                progress,
                record,
                efficiency,
            )
        if efficiency:
            efficiency.plot()
    raise_failed(failed, len(cases))
    return {case.name: folder / f"{case.name}.nii.gz" for case in cases}


def _name_of(model: PropagationModel | CompletionModel | None) -> list[str]:
    """A name of the network that propagates, by its weights; [] for none."""
    if isinstance(model, PropagationModel):
        return [model_name(model.net, model.plan)]
    return [f"{type(model.net).__name__}-{weights_digest(model.net)}"] if model else []


def segment_cases(
    cases: Sequence[Case],
    reference: Member,
    model: PropagationModel | CompletionModel | None,
    stages: TwoStageSettings,
    settings: PredictionSettings,
    folder: Path,
    progress: Progress = lambda *_: None,
    record: PredictionRecord | None = None,
    efficiency: Efficiency | None = None,
) -> dict[str, str]:
    """Segment cases into a folder; what is there already is kept.

    `folder`/CASE.nii.gz are the label maps, `folder`/two-stage.csv has the outcome of each class
    (`ClassOutcome`), and `folder`/label_descriptions.txt names the values for ITK-SNAP. A case that
    cannot be read does not stop the others.

    Args:
        cases: What to segment.
        reference: As in `segment_two_stage`.
        model: As in `segment_two_stage`.
        stages: As in `segment_two_stage`.
        settings: As in `segment_two_stage`.
        folder: Where the results go.
        progress: Called with (done, of) before and after each case.
        record: Notes who made the label map of each case; None notes nothing.
        efficiency: Notes what each case costs; None notes nothing.

    Returns:
        Why cases failed, by name; {} where none did.
    """

    segments = plan_segments(reference.plan)

    def segment_case(case: Case, out: Path) -> None:
        with efficiency.case(case.name) if efficiency else nullcontext():
            segment_and_write(case, out)

    def segment_and_write(case: Case, out: Path) -> None:
        scan = read(*case.images)
        result = segment_two_stage(scan, reference, model, stages, settings, case.name)
        if result.change:
            write_change(folder, case.name, result.change)
        write_class_outcomes(folder, case.name, result.outcomes)
        if record is not None:
            record.note(case)
        describe_folder(out, segments)
        # Last: a label map that is there is a case that is done.
        write_classes(out, result.label, segments)

    with gathered(record):
        return segment_missing(cases, folder, ".nii.gz", segment_case, progress)


def write_class_outcomes(
    folder: str | Path, case: str, outcomes: Mapping[str, ClassOutcome]
) -> None:
    """Write the outcomes of a case into a folder's `two-stage.csv`, in place of those it had.

    Columns: case, class, and those of `ClassOutcome`; slices have blanks between, and NaN is empty.

    Args:
        folder: Where the table is.
        case: Name of the case.
        outcomes: The outcome of each class, by name.

    Raises:
        ContextsegError: If a file of that name is another table, or cannot be written.
    """
    rows = []
    for name, outcome in outcomes.items():
        row = {key: "" if value != value else value for key, value in asdict(outcome).items()}
        numbers = {key: f"{value:.4f}" for key, value in row.items() if isinstance(value, float)}
        slices = " ".join(map(str, outcome.slices))
        rows.append({"class": name, **row, **numbers, "slices": slices})
    columns = ["case", "class", *(field.name for field in fields(ClassOutcome))]
    note_case(Path(folder) / TWO_STAGE_TABLE, columns, case, rows)


def check_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note in `folder`/two-stage.json how its results were made, or check that it was the same.

    Args:
        folder: Where the results go.
        asked: The runs and all settings, by name; JSON values.

    Raises:
        ContextsegError: If the folder holds results of other settings.
    """
    path = folder / "two-stage.json"
    asked = json.loads(json.dumps(dict(asked)))  # as it is read again: tuples are lists
    if what := changes(read_json(path) if path.exists() else asked, asked):
        raise ContextsegError(
            folder,
            f"this folder holds results of other settings ({what})",
            "choose another --output folder",
        )
    write_json(path, dict(asked))
