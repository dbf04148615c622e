"""One case: a prediction against its reference, one row for each class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.disk import Problem, did_you_mean
from contextseg.metrics.lesions import false_positives, lesion_counts
from contextseg.metrics.surface import ASSD, CONVENTIONS, HD, HD95, NSD, Convention, surface_scores

DSC, IOU, SEN, PRC = "dsc", "iou", "sen", "prc"
RVD, VOLUME_DIFF = "rvd", "volume_diff_ml"
FP_NEAR, FP_FAR = "fp_near_ml", "fp_far_ml"
METRICS = (DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD, VOLUME_DIFF, RVD, FP_NEAR, FP_FAR)
"""The columns that are averaged, in the order in which tables show them."""

BOTH, MISSED, SPURIOUS, ABSENT = "both", "missed", "spurious", "absent"
"""Status of a class: in both masks; only in the reference; only in the prediction; in neither."""

_SLAB_VOX = 1 << 22


def evaluate_case(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    *,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    convention: str | Convention = "default",
    annotated: Collection[str] | None = None,
    lesions: bool = False,
    near_mm: float | None = None,
) -> list[dict[str, Any]]:
    """Compare a predicted label map with its reference: one row for each class, distances in mm, volumes in ml.

    `pred` and `ref` are integer arrays of one shape, (D, H, W) or (H, W). A class is a name and the label values whose
    union it is, so that regions (whole tumour = {1, 2, 3}) are classes like any other. Voxels where `ref` is -1 do not
    count; classes not in `annotated` (None: all are) give no row. NSD is taken at `tolerance_mm`, one number or one for
    each class; `convention` is a name in `CONVENTIONS`.

    A row holds class, label ("1", or "(1, 2)" for a union), status, dsc, iou, sen, prc, hd95_mm, hd_mm, assd_mm, nsd,
    tolerance_mm, ref_ml, pred_ml, volume_diff_ml (prediction minus reference), rvd (that over the reference), and in
    voxels tp, fp, fn, tn. With `lesions`, also n_ref_lesions, n_detected and n_fp_lesions (see `lesion_table`). With
    `near_mm`, also fp_near and fp_far: false-positive voxels no farther than that from the reference, and the others;
    and fp_near_ml and fp_far_ml, their volumes.

    Empty masks, by `status`:
      both      every measure is finite; with no voxel in common, dsc, iou, sen and prc are 0.
      missed    a failure that counts: dsc, iou, sen, prc and nsd are 0, distances are the image's diagonal, rvd is -1.
      spurious  a failure that counts: dsc, iou, prc and nsd are 0, distances are the diagonal; sen and rvd, which
                divide by the reference, are NaN.
      absent    correctly empty: all measures are NaN, so that it enters no mean; counted (`flare22`: dsc and nsd 1).

    No classes give no rows. Raises `Problem` for arrays that do not fit together, and for unknown names.

    >>> ref = np.zeros((4, 4), int); ref[1:3, 1:3] = 1
    >>> pred = np.zeros((4, 4), int); pred[1:3, 1:4] = 1
    >>> row, = evaluate_case(pred, ref, (1.0, 1.0), {"tumour": [1]})
    >>> row["status"], row["dsc"], row["prc"]
    ('both', 0.8, 0.6666666666666666)
    """
    if not classes:
        return []
    rule = _rule(convention)
    _check(pred, ref, spacing_mm, classes, tolerance_mm, annotated)
    counts = _Counts.of(pred, ref, {value for labels in classes.values() for value in labels})
    rows = []
    for name, labels in classes.items():
        if annotated is not None and name not in annotated:
            continue
        tolerance = float(tolerance_mm[name] if isinstance(tolerance_mm, Mapping) else tolerance_mm)
        case = _Case(pred, ref, counts, tuple(float(s) for s in spacing_mm), list(labels))
        row = {"class": name} | _row(case, name, rule, tolerance)
        if lesions:
            row |= lesion_counts(*case.masks()[:2])
        if near_mm is not None:
            voxels = false_positives(*case.masks()[:2], case.spacing_mm, near_mm)
            unit = nan if row["status"] == ABSENT else float(np.prod(case.spacing_mm)) / 1000
            row |= voxels | {FP_NEAR: voxels["fp_near"] * unit, FP_FAR: voxels["fp_far"] * unit}
        rows.append(row)
    return rows


def _rule(convention: str | Convention) -> Convention:
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise Problem(convention, "no such convention", did_you_mean(convention, CONVENTIONS))
    return CONVENTIONS[convention]


def _check(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    tolerance_mm: float | Mapping[str, float],
    annotated: Collection[str] | None,
) -> None:
    for name, array in (("prediction", pred), ("reference", ref)):
        if array.dtype.kind not in "iub":
            raise Problem(name, f"label values of type {array.dtype}", "give whole-number labels")
    if pred.shape != ref.shape or ref.ndim not in (2, 3) or ref.size == 0:
        what = f"its shape is {pred.shape}, the reference's {ref.shape}"
        raise Problem("prediction", what, "give both on one grid, (D, H, W) or (H, W), not empty")
    if len(spacing_mm) != ref.ndim or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        what = f"{tuple(spacing_mm)} for {ref.ndim} axes"
        raise Problem("spacing", what, "give one positive number of mm for each axis, slowest first")
    for name in annotated or ():
        if name not in classes:
            raise Problem(name, "annotated, but not a class", did_you_mean(name, classes))
    for name, labels in classes.items():
        if not len(labels) or IGNORE in labels:
            raise Problem(name, f"a class of the label values {list(labels)}", f"give some, and not {IGNORE}")
        if isinstance(tolerance_mm, Mapping) and name not in tolerance_mm:
            raise Problem(name, "no tolerance for this class", "give one in mm for each class, or one number for all")


# --- one pass over the voxels -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """What one pass over a case tells: how often each pair of labels meets, and where each label lies.

    pairs  (N + 1, N + 1) int64: voxels by label in the prediction, in the reference; the last is "any other value".
    seen   for each axis, (N + 1, length) bool: whether a label of either array lies at that index.
    """

    index: dict[int, int]
    pairs: np.ndarray
    seen: list[np.ndarray]
    ignored: bool

    @staticmethod
    def of(pred: np.ndarray, ref: np.ndarray, labels: set[int]) -> _Counts:
        """Count slab by slab, so that memory stays small; background costs only its comparison with zero."""
        values = np.array(sorted(labels), np.int64)
        n = len(values)
        pairs = np.zeros((n + 1) ** 2, np.int64)
        seen = [np.zeros((n + 1, length), bool) for length in ref.shape]
        ignored = ref.dtype.kind == "i" and ref.min() < 0 and bool((ref == IGNORE).any())
        step = max(1, _SLAB_VOX * len(ref) // ref.size)
        for start in range(0, len(ref), step):
            p, r = pred[start : start + step], ref[start : start + step]
            known = r != IGNORE if ignored else np.True_
            live = np.broadcast_to(known, r.shape) if 0 in labels else ((p != 0) | (r != 0)) & known
            where = np.nonzero(live)
            i, j = _index(p[where], values), _index(r[where], values)
            pairs += np.bincount(i * (n + 1) + j, minlength=(n + 1) ** 2)
            pairs[-1] += (np.count_nonzero(known) if ignored else r.size) - len(i)  # zero in both
            for axis, at in enumerate(where):
                at = at + start if axis == 0 else at
                seen[axis][i, at] = True
                seen[axis][j, at] = True
        index = {int(value): k for k, value in enumerate(values)}
        return _Counts(index, pairs.reshape(n + 1, n + 1), seen, ignored)


def _index(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each label stands in the sorted `values`; their number, for one that is not there."""
    labels = labels.astype(np.int64)
    at = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where(values[at] == labels, at, len(values))


@dataclass(frozen=True)
class _Case:
    """One class of a case."""

    pred: np.ndarray
    ref: np.ndarray
    counts: _Counts
    spacing_mm: tuple[float, ...]
    labels: list[int]

    @property
    def tallies(self) -> tuple[int, int, int, int]:
        """Voxels: true positives, false positives, false negatives, true negatives."""
        mine = [self.counts.index[value] for value in set(self.labels)]
        pairs = self.counts.pairs
        tp = int(pairs[np.ix_(mine, mine)].sum())
        fp = int(pairs[mine].sum()) - tp
        fn = int(pairs[:, mine].sum()) - tp
        return tp, fp, fn, int(pairs.sum()) - tp - fp - fn

    def masks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Prediction, reference and what is known (None: all), bool, in the class's box; unknown voxels are False."""
        mine = [self.counts.index[value] for value in self.labels]
        box = []
        for seen in self.counts.seen:
            at = np.flatnonzero(seen[mine].any(0))
            low, high = (at[0], at[-1] + 1) if len(at) else (0, 0)
            grow = int(self.counts.ignored and len(at) > 0)
            box.append(slice(max(low - grow, 0), high + grow))
        pred, ref = (_is_any(array[tuple(box)], self.labels) for array in (self.pred, self.ref))
        known = self.ref[tuple(box)] != IGNORE if self.counts.ignored else None
        if known is None or known.all():
            return pred, ref, None
        return pred & known, ref, known

    def part(self, start: int, stop: int) -> _Case:
        """The slices `start` to `stop` along axis 0."""
        pred, ref = self.pred[start:stop], self.ref[start:stop]
        return replace(self, pred=pred, ref=ref, counts=_Counts.of(pred, ref, set(self.labels)))

    def slice(self, at: int) -> _Case:
        """One slice along axis 0, as a case in 2-D."""
        pred, ref = self.pred[at], self.ref[at]
        return _Case(pred, ref, _Counts.of(pred, ref, set(self.labels)), self.spacing_mm[1:], self.labels)


def _is_any(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    mask = array == labels[0]
    for value in labels[1:]:
        mask |= array == value
    return np.ascontiguousarray(mask)


# --- from counts and masks to a row -----------------------------------------------------------------------------------


def _row(case: _Case, name: str, rule: Convention, tolerance_mm: float) -> dict[str, Any]:
    """Everything in a row but the class's name."""
    far_mm = float(np.linalg.norm(np.array(case.ref.shape) * case.spacing_mm))
    if name.lower().replace("_", " ") in rule.on_reference:
        case = _on_reference(case, rule.last_slice)
    tp, fp, fn, tn = case.tallies
    status = (BOTH if tp + fn else SPURIOUS) if tp + fp else (MISSED if tp + fn else ABSENT)
    if rule.by_slice and status == BOTH and case.ref.ndim == 3:
        scores = _mean_of_slices(case, name, replace(rule, by_slice=False), tolerance_mm)
    else:
        scores = _scores(case, (tp, fp, fn), status, rule, tolerance_mm, far_mm)
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000
    difference = (fp - fn) * voxel_ml
    labels = [int(value) for value in case.labels]
    return {
        "label": str(labels[0] if len(labels) == 1 else tuple(labels)),
        "status": status,
        **scores,
        "tolerance_mm": tolerance_mm,
        "ref_ml": (tp + fn) * voxel_ml,
        "pred_ml": (tp + fp) * voxel_ml,
        VOLUME_DIFF: difference,
        RVD: (fp - fn) / (tp + fn) if tp + fn else nan,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
    }


def _scores(
    case: _Case, tallies: tuple[int, int, int], status: str, rule: Convention, tolerance_mm: float, far_mm: float
) -> dict[str, float]:
    """Overlap and surface measures, with the policy for empty masks."""
    tp, fp, fn = tallies
    if status == ABSENT:
        blank = dict.fromkeys((DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD), nan)
        return blank | {DSC: rule.absent_score, NSD: rule.absent_score}
    if status == SPURIOUS and rule.reference_only:
        return dict.fromkeys((DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD), nan)
    overlap = {
        DSC: 2 * tp / (2 * tp + fp + fn),
        IOU: tp / (tp + fp + fn),
        SEN: tp / (tp + fn) if tp + fn else nan,
        PRC: tp / (tp + fp) if tp + fp else 0.0,
    }
    if status != BOTH:
        return overlap | {HD95: far_mm, HD: far_mm, ASSD: far_mm, NSD: 0.0}
    pred, ref, known = case.masks()
    surface = surface_scores(pred, ref, case.spacing_mm, tolerance_mm, far_mm, rule, known)
    if overlap[DSC] < rule.nsd_needs_dsc:
        surface[NSD] = 0.0
    return overlap | surface


def _on_reference(case: _Case, last_slice: bool) -> _Case:
    """The slices that the reference reaches, at least one; the case itself where the reference is empty."""
    at = [d for d in range(len(case.ref)) if _is_any(case.ref[d], case.labels).any()]
    if case.ref.ndim != 3 or not at:
        return case
    return case.part(at[0], max(at[-1] + last_slice, at[0] + 1))


def _mean_of_slices(case: _Case, name: str, rule: Convention, tolerance_mm: float) -> dict[str, float]:
    """Means over the slices where either mask has the class; undefined values (sen without reference) are left out."""
    reached = case.counts.seen[0][[case.counts.index[value] for value in case.labels]].any(0)
    rows = [_row(case.slice(int(d)), name, rule, tolerance_mm) for d in np.flatnonzero(reached)]
    keys = (DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD)
    return {key: float(np.nanmean([row[key] for row in rows])) for key in keys}
