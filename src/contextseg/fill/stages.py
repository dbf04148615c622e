"""The two stages as one: a reference run looks at some slices of a scan, and the best of these fill the rest.

After Pham, Nguyen-Ho, Tran (FLARE22, LNCS 13816): look at every fifth slice, take for each organ the one in which it is
largest, propagate. Their limitation is that an organ which the reference module does not see in these slices is lost.
Here such a class is looked for once more, in slices between, and where it still is nowhere, it is flagged.

The paper says nothing of the following; decided here. Slices are across the first axis of the reference run's plan (of
the propagating run's, where the reference is 3-D). Chosen slices count as labelled throughout, background too. A slice
found by the second look is one more reference slice, beside those chosen before, and all its classes count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from contextseg.data.components import Change, keep_largest, write_change
from contextseg.data.layouts import Case
from contextseg.data.plan import Plan
from contextseg.disk import Problem, changes, did_you_mean, note_case, read_json, write_json
from contextseg.fill.filling import fill
from contextseg.fill.reference import Seen, SliceReference, VolumeReference
from contextseg.fill.slices import AXES, Partial, ranges
from contextseg.methods import Method
from contextseg.methods.presence import head_of
from contextseg.propagation.select import RULES, select, uniform
from contextseg.scan import each_case
from contextseg.settings import Prediction
from contextseg.volume import Volume, axis_moves, read, write

TABLE = "two-stage.csv"
"""The table in a folder of results that says what became of each class in each case."""
SELECTIONS = ("largest", "certain", "covering", "presence", "all")
"""How reference slices are chosen: `propagation.select.RULES`, and "presence", see `Stages`."""
Taught = tuple[Method, Plan]
"""A finished run's method, and its plan."""


@dataclass(frozen=True)
class Stages:
    """How the two stages are done; the paper's, unless said.

    every, most  about every `every`th slice is looked at, `most` at most; see `propagation.select.uniform`.
    select   one of `SELECTIONS`. "largest" is the paper's. "presence" [ours]: where a presence head is most sure that
             the class is there, of the slices with half its largest area. "" is "largest" where there is a network to
             propagate, else "all": shapes can be interpolated between two slices of an organ, not from one.
    slices   reference slices of each class, where it has so many; see `propagation.select.select`.
    recover  look once more for a class that no slice shows: half way between the slices, or, with a 3-D run, in all.
    bounded  fill a class only up to the slices next to those that hold it which were looked at and do not [ours].
    way      what fills, one of `filling.WAYS`. "" is "propagation" with a network, "interpolation" without; "combined"
             was worse from slices that a network drew (docs/propagation.md).

    Raises `Problem` for an unknown selection and for numbers below 1.
    """

    every: int = 5
    most: int = 64
    select: str = ""
    slices: int = 1
    recover: bool = True
    bounded: bool = True
    way: str = ""

    def __post_init__(self) -> None:
        if self.select and self.select not in SELECTIONS:
            raise Problem(f"select={self.select}", "there is no such rule", did_you_mean(self.select, SELECTIONS))
        for name, value in asdict(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise Problem(f"{name}={value}", "less than one slice", "give 1 or more")


@dataclass(frozen=True)
class Fate:
    """What became of one class in one case.

    slices       reference slices that hold it, numbers along the scan's own axis.
    source       "sampled": they are of the slices looked at first; "between": of the second look; "" without any.
    sampled_vox  voxels that the reference run saw of it in all slices of the first look.   vox: in the result.
    agreement    Dice of result and reference run in the slices of the first look that are no reference slices; NaN
                 where neither has any.
    presence     the largest probability of a presence head that it is there; NaN without such a head.
    flag         "" where the result holds it. "missed": it does not, but the presence head saw it. "not found": it does
                 not; whether it is there, nobody knows.
    """

    slices: tuple[int, ...]
    source: str
    sampled_vox: int
    vox: int
    agreement: float
    presence: float
    flag: str


@dataclass(frozen=True)
class Staged:
    """A segmented scan on its own grid, in the reference run's label values; the fate of each class but the background;
    and what was removed where the reference run keeps the largest component alone.
    """

    label: Volume
    fates: dict[str, Fate]
    change: Change | None = None


def two_stages(
    scan: Volume,
    reference: Taught,
    model: Taught | None = None,
    stages: Stages = Stages(),
    how: Prediction | None = None,
    name: str = "",
) -> Staged:
    """Segment a scan (C, D, H, W): look at some slices, choose the reference slices, fill the rest from them.

    reference  any finished run that predicts. A 2-D one looks at nothing but the slices sampled, and those of a second
               look; a 3-D one predicts the scan.
    model      a finished run of method "stcn", whose plan and classes may be others; None: shapes are interpolated
               between the reference slices, and what lies beyond the outermost ones stays empty.
    how        the reference run predicts, the defaults if None. `largest_component` is applied to the result.

    Where no class is found the result is empty. Raises `Problem` for runs that do not go together.
    """
    check_runs(reference, model, stages)
    how = how or Prediction()
    looking = _looking(scan, reference, model, how, name)
    rule = stages.select or ("largest" if model else "all")
    sampled, further, references, source = _reference_slices(looking, stages, rule)
    label = np.zeros(scan.shape, np.uint8)
    if references:
        ends = _ends({**sampled, **further}, scan.shape[looking.axis]) if stages.bounded else None
        way = stages.way or ("propagation" if model else "interpolation")
        label = fill(scan, Partial(looking.axis, references), model, way, ends).label.array
    changes: list[Change] = []
    if how.largest_component:
        label = keep_largest(scan.with_array(label), changes).array
    fates = _fates(looking, label, sampled, references, source)
    values = np.array(looking.plan.values)
    values = values.astype(np.min_scalar_type(int(values.max())))
    return Staged(scan.with_array(values[label]), fates, changes[0] if changes else None)


def _reference_slices(
    looking: SliceReference | VolumeReference, stages: Stages, rule: str
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray], dict[int, np.ndarray], dict[int, str]]:
    """Slices and their labels (H, W), of the first look, of the second, to fill from; and where each class was seen."""
    sampled = uniform(looking.scan.shape[looking.axis], stages.every, stages.most)
    seen = looking.at(sampled)
    first = dict(zip(sampled, seen.label))
    references = {i: first[i] for i in _chosen(rule, seen, sampled, stages.slices)}
    source = dict.fromkeys(_classes(seen.label), "sampled")  # each is in a reference slice, by any rule
    missing = [k for k in range(1, len(looking.plan.classes)) if k not in source]
    further = looking.between(sampled) if stages.recover and missing else []
    second: dict[int, np.ndarray] = {}
    if further:
        again = looking.at(further).label
        second = dict(zip(further, again))
        wanted = np.where(np.isin(again, missing), again, 0)
        references |= {further[n]: again[n] for n in select("largest", wanted, each=stages.slices)}
        source |= dict.fromkeys(_classes(wanted), "between")
    return first, second, references, source


def _ends(seen: Mapping[int, np.ndarray], n: int) -> dict[int, tuple[int, int]]:
    """Class to the first and the last of n slices that may hold it: between the slices seen without it, outside the
    outermost ones with it.

    >>> _ends({i: np.array([[i in (6, 9)]]).astype(int) for i in (0, 3, 6, 9)}, 12)
    {1: (4, 11)}
    """
    slices = sorted(seen)
    with_it = ranges(Partial(0, dict(seen)))
    before = {k: max((i for i in slices if i < first), default=-1) + 1 for k, (first, _) in with_it.items()}
    return {k: (before[k], min((i for i in slices if i > last), default=n) - 1) for k, (_, last) in with_it.items()}


def _looking(
    scan: Volume, reference: Taught, model: Taught | None, how: Prediction, name: str
) -> SliceReference | VolumeReference:
    """The reference run before the scan."""
    method, plan = reference
    leading, axes = (plan, (0,)) if model is None else (model[1], _axes(model[0]))
    if plan.dims == 2:
        return SliceReference(scan, method, plan, how, name)
    axis = axis_moves(scan.orientation, leading.orientation)[0][axes[0]]
    return VolumeReference(scan, method, plan, how, axis, name)


def check_runs(reference: Taught, model: Taught | None = None, stages: Stages = Stages()) -> None:
    """Raise `Problem` for runs that do not go together, or not with what is asked of them.

    That is: a reference that needs labelled slices, a model that does not, a selection by presence without a head that
    looks at slices, scans of other channels, and a 2-D reference whose slices lie across another axis than the model
    was taught to follow. Spacing, patch and classes may differ.
    """
    method, plan = reference
    if method.guided:
        what = "a run that needs labelled slices cannot see them first"
        raise Problem("the reference run", what, "give one that predicts, such as `contextseg train --set dims=2`")
    if stages.select == "presence" and (plan.dims == 3 or head_of(method) is None):
        what = "the reference run has no presence head that looks at slices"
        raise Problem("select=presence", what, "train one with --method cmu --set dims=2, or choose another rule")
    if model is None:
        return
    follower, other = model
    if not follower.guided:
        what = "a run that does not propagate"
        raise Problem("--model", what, "give a run of `contextseg train --method stcn`")
    if (len(plan.scanned), plan.ct) != (len(other.scanned), other.ct):
        what = f"the reference run sees {', '.join(plan.scanned)}, and this one {', '.join(other.scanned)}"
        raise Problem("--model", what, "give runs that were taught on the same kind of scan")
    mine, theirs = _plane(plan.orientation[0]), [_plane(other.orientation[axis]) for axis in _axes(follower)]
    if plan.dims == 2 and mine not in theirs:
        what = f"it follows {' and '.join(theirs)} slices, and the reference run looks at {mine} ones"
        raise Problem("--model", what, "train one of them with --plan and the other's orientation")


def _axes(follower: Any) -> tuple[int, ...]:
    """What the slices that it was taught to follow are across: axes of its plan."""
    return follower.clips["axes"]


def _plane(letter: str) -> str:
    return next(plane for plane, letters in AXES.items() if letter in letters)


def _chosen(rule: str, seen: Seen, sampled: Sequence[int], each: int) -> list[int]:
    """The reference slices, as numbers of the scan."""
    sure = seen.sure / np.float32(255)
    if rule == "presence":
        assert seen.presence is not None
        there = np.concatenate([np.zeros((len(sampled), 1)), seen.presence], 1)
        sure = there[np.arange(len(sampled))[:, None, None], seen.label]
    return select(rule if rule in RULES else "certain", seen.label, sure, sampled, each)


def _classes(label: np.ndarray) -> list[int]:
    return [int(k) for k in np.unique(label) if k > 0]


def _fates(
    looking: SliceReference | VolumeReference,
    label: np.ndarray,
    sampled: Mapping[int, np.ndarray],
    references: Mapping[int, np.ndarray],
    source: Mapping[int, str],
) -> dict[str, Fate]:
    """The fate of each class: `label` (D, H, W), all others slice number -> (H, W), of class indices."""
    head, present = head_of(looking.method), looking.present
    across = np.moveaxis(label, looking.axis, 0)
    others = [i for i in sampled if i not in references]
    fates = {}
    for k, name in enumerate(looking.plan.classes[1:], 1):
        vox = int((label == k).sum())
        p = float("nan") if present is None else float(present[k - 1])
        missed = head is not None and p > head.seen[k - 1]
        fates[name] = Fate(
            slices=tuple(sorted(i for i, drawn in references.items() if (drawn == k).any())),
            source=source.get(k, ""),
            sampled_vox=int(sum((drawn == k).sum() for drawn in sampled.values())),
            vox=vox,
            agreement=_dice([(across[i] == k, sampled[i] == k) for i in others]),
            presence=p,
            flag="" if vox else "missed" if missed else "not found",
        )
    return fates


def _dice(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    size = sum(int(a.sum() + b.sum()) for a, b in pairs)
    return 2 * sum(int((a & b).sum()) for a, b in pairs) / size if size else float("nan")


# --- folders ----------------------------------------------------------------------------------------------------------


def segment_cases(
    cases: Sequence[Case],
    reference: Taught,
    model: Taught | None,
    stages: Stages,
    how: Prediction,
    folder: Path,
    tell: Callable[..., None] = lambda *_: None,
) -> dict[str, str]:
    """Segment each case into `folder`/CASE.nii.gz; what is there already is kept. Returns the failures, by case.

    `folder`/two-stage.csv says what became of each class (`Fate`). A case that cannot be read does not stop the others.
    """

    def segment(case: Case, out: Path) -> None:
        made = two_stages(read(*case.images), reference, model, stages, how, case.name)
        if made.change:
            write_change(folder, case.name, made.change)
        write_fates(folder, case.name, made.fates)  # first: a label map that is there is a case that is done
        write(out, made.label)

    return each_case(cases, folder, ".nii.gz", segment, tell)


def write_fates(folder: str | Path, case: str, fates: Mapping[str, Fate]) -> None:
    """Note a case's fates in a folder's `two-stage.csv`; what was noted of it before is replaced.

    Columns: case, class, and those of `Fate`; slices have blanks between, and what is NaN is empty. Raises `Problem` if
    a file of that name is another table, or cannot be written.
    """
    rows = []
    for name, fate in fates.items():
        row = {key: "" if value != value else value for key, value in asdict(fate).items()}
        numbers = {key: f"{value:.4f}" for key, value in row.items() if isinstance(value, float)}
        rows.append({"class": name, **row, **numbers, "slices": " ".join(map(str, fate.slices))})
    note_case(Path(folder) / TABLE, ["case", "class", *(field.name for field in fields(Fate))], case, rows)


def same_as_before(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note in `folder`/two-stage.json what was asked. Raises `Problem` if it was something else before."""
    path = folder / "two-stage.json"
    if what := changes(read_json(path) if path.exists() else asked, asked):
        raise Problem(folder, f"this folder holds results of other settings ({what})", "choose another --output folder")
    write_json(path, dict(asked))
