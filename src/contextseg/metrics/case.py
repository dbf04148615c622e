"""One case: a prediction against its reference, one row for each class."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf, isnan, nan
from typing import Any

import numpy as np

from contextseg.batch import IGNORE
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.grids import Spacing, voxel_mm3
from contextseg.metrics.catalogue import (
    DSC,
    FP_FAR,
    FP_NEAR,
    IOU,
    METRICS,
    PRC,
    RVD,
    SEN,
    VOLUME_DIFF,
    Metric,
    MetricFunction,
)
from contextseg.metrics.flare22 import flare22_organ
from contextseg.metrics.lattice import as_spacing, diagonal_mm, is_sheared
from contextseg.metrics.lesions import false_positives, lesion_counts
from contextseg.metrics.surface import ASSD, CONVENTIONS, HD, HD95, NSD, Convention, surface_scores

CONVENTION_METRICS = (DSC, IOU, SEN, PRC, HD95, HD, ASSD, NSD)
"""The metrics that a convention can change: overlap, then surface distances."""

BOTH, MISSED, SPURIOUS, ABSENT = "both", "missed", "spurious", "absent"
"""Status of a class: in both masks; only in the reference; only in the prediction; in neither."""

_SLAB_VOX = 1 << 22


def evaluate_case(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[Any],
    classes: Mapping[str, Sequence[int]],
    *,
    tolerance_mm: float | Mapping[str, float] = 2.0,
    convention: str | Convention = "default",
    annotated: Collection[str] | None = None,
    lesions: bool = False,
    near_mm: float | None = None,
) -> list[dict[str, Any]]:
    """Compare a predicted label map with its reference: one row for each class.

    Each row has a `status`, and the metrics follow one policy for empty masks:

    - both: both masks have the class. Every metric is finite; with no voxel in common, dsc, iou,
      sen and prc are 0.
    - missed: only the reference has it. A failure that counts: dsc, iou, sen, prc and nsd are 0,
      distances are the image's diagonal, rvd is -1.
    - spurious: only the prediction has it. A failure that counts: dsc, iou, prc and nsd are 0,
      distances are the diagonal; sen and rvd, which divide by the reference, are NaN.
    - absent: neither has it, which is right. All metrics are NaN, so that the class enters no mean,
      but volume_diff_ml, which is 0; it is counted. With the convention `flare22`, dsc and nsd are
      1.

    Args:
        pred: Predicted label values, integers, (D, H, W) or (H, W). With one voxel along an axis it
            is a 2-D image: distances are those of its contours, volumes have its thickness.
        ref: Reference label values, integers, the same shape. Voxels of -1 do not count.
        spacing_mm: Distance between voxel centres along each axis, in mm, slowest axis first. On a
            sheared grid, the step along each axis, a row of three each, as `grids.lattice_mm`
            gives them: distances, areas and volumes are those of the true lattice.
        classes: Name of each class -> the label values whose union it is, so that a region (whole
            tumour = {1, 2, 3}) is a class like any other.
        tolerance_mm: Tolerance of the NSD in mm, one number or one for each class.
        convention: A name in `CONVENTIONS`, or a `Convention`. A rule for some organs applies to
            the classes of their names (`flare22_organ`).
        annotated: The classes annotated in this case; others give no row. None: all are.
        lesions: Whether to count lesions (see `lesion_table`).
        near_mm: Distance up to which a false positive is near the reference. None: false positives
            are not told apart.

    Returns:
        One row for each class, with class, label ("1", or "(1, 2)" for a union), status, dsc, iou,
        sen, prc, hd95_mm, hd_mm, assd_mm, nsd, tolerance_mm, ref_ml, pred_ml, volume_diff_ml
        (prediction minus reference), rvd (that over the reference), and in voxels tp, fp, fn, tn;
        then the metrics of the catalogue that have a function. With `lesions` also n_ref_lesions,
        n_detected and n_fp_lesions. With `near_mm` also fp_near and fp_far, false-positive voxels
        no farther than that from the reference and the others, and their volumes fp_near_ml and
        fp_far_ml. No classes give no rows.

    Raises:
        ContextsegError: The arrays do not fit together, or a name is unknown.

    Example:
        >>> ref = np.zeros((4, 4), int); ref[1:3, 1:3] = 1
        >>> pred = np.zeros((4, 4), int); pred[1:3, 1:4] = 1
        >>> row, = evaluate_case(pred, ref, (1.0, 1.0), {"tumour": [1]})
        >>> row["status"], row["dsc"], row["prc"]
        ('both', 0.8, 0.6666666666666666)
    """
    if not classes:
        return []
    settings = _convention(convention)
    _check(pred, ref, spacing_mm, classes, tolerance_mm, annotated)
    spacing = as_spacing(spacing_mm)
    voxel_ml = voxel_mm3(spacing) / 1000
    if pred.ndim == 3 and 1 in pred.shape:
        flat = pred.shape.index(1)
        pred, ref = pred.squeeze(flat), ref.squeeze(flat)
        spacing = as_spacing([mm for axis, mm in enumerate(spacing) if axis != flat])
    counts = _Counts.of(pred, ref, {value for labels in classes.values() for value in labels})
    rows = []
    for name, labels in classes.items():
        if annotated is not None and name not in annotated:
            continue
        tolerance = float(tolerance_mm[name] if isinstance(tolerance_mm, Mapping) else tolerance_mm)
        case = _Case(pred, ref, counts, spacing, list(labels), voxel_ml)
        row = {"class": name} | _row(case, name, settings, tolerance)
        row |= _registered(case, row["status"])

        if lesions:
            row |= lesion_counts(*case.masks()[:2])
        if near_mm is not None:
            voxels = false_positives(*case.masks()[:2], case.spacing_mm, near_mm)
            ml = nan if row["status"] == ABSENT else voxel_ml
            row |= voxels
            row |= {FP_NEAR: voxels["fp_near"] * ml, FP_FAR: voxels["fp_far"] * ml}
        rows.append(row)
    return rows


def _convention(convention: str | Convention) -> Convention:
    if isinstance(convention, Convention):
        return convention
    if convention not in CONVENTIONS:
        raise ContextsegError(
            convention, "no such convention", did_you_mean(convention, CONVENTIONS)
        )
    return CONVENTIONS[convention]


def _check(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing_mm: Sequence[Any],
    classes: Mapping[str, Sequence[int]],
    tolerance_mm: float | Mapping[str, float],
    annotated: Collection[str] | None,
) -> None:
    for name, array in (("prediction", pred), ("reference", ref)):
        if array.dtype.kind not in "iub":
            raise ContextsegError(
                name, f"label values of type {array.dtype}", "give whole-number labels"
            )
    if pred.shape != ref.shape or ref.ndim not in (2, 3) or ref.size == 0:
        what = f"its shape is {pred.shape}, the reference's {ref.shape}"
        raise ContextsegError(
            "prediction", what, "give both on one grid, (D, H, W) or (H, W), not empty"
        )
    sizes = [voxel_mm3(spacing_mm)] if is_sheared(spacing_mm) else spacing_mm
    if len(spacing_mm) != ref.ndim or not all(np.isfinite(s) and s > 0 for s in sizes):
        what = f"{tuple(spacing_mm)} for {ref.ndim} axes"
        raise ContextsegError(
            "spacing", what, "give one positive number of mm for each axis, slowest first"
        )
    for name in annotated or ():
        if name not in classes:
            raise ContextsegError(name, "annotated, but not a class", did_you_mean(name, classes))
    for name, labels in classes.items():
        if not len(labels) or IGNORE in labels:
            raise ContextsegError(
                name, f"a class of the label values {list(labels)}", f"give some, and not {IGNORE}"
            )
        if isinstance(tolerance_mm, Mapping) and name not in tolerance_mm:
            raise ContextsegError(
                name,
                "no tolerance for this class",
                "give one in mm for each class, or one number for all",
            )


# --- one pass over the voxels ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """Results of one pass over a case: how often pairs of labels meet, and where labels lie.

    Attributes:
        index: Label value -> its row in `pairs` and `extent`, of N labels.
        pairs: (N + 1, N + 1) int64, voxels by label in the prediction, in the reference; the last
            row and column are for every other value.
        extent: For each axis (N + 1, length) bool, whether a label of either array lies at that
            index.
        ignored: Whether the reference has voxels that do not count.
    """

    index: dict[int, int]
    pairs: np.ndarray
    extent: list[np.ndarray]
    ignored: bool

    @staticmethod
    def of(pred: np.ndarray, ref: np.ndarray, labels: set[int]) -> _Counts:
        """Count slab by slab: memory stays small, background costs a comparison with zero."""
        values = np.array(sorted(labels), np.int64)
        n = len(values)
        pairs = np.zeros((n + 1) ** 2, np.int64)
        extent = [np.zeros((n + 1, length), bool) for length in ref.shape]
        ignored = ref.dtype.kind == "i" and ref.min() < 0 and bool((ref == IGNORE).any())
        step = max(1, _SLAB_VOX * len(ref) // ref.size)
        for start in range(0, len(ref), step):
            p = pred[start : start + step]
            r = ref[start : start + step]
            known = r != IGNORE if ignored else np.True_
            live = np.broadcast_to(known, r.shape) if 0 in labels else ((p != 0) | (r != 0)) & known
            where = np.nonzero(live)
            i = _index(p[where], values)
            j = _index(r[where], values)
            pairs += np.bincount(i * (n + 1) + j, minlength=(n + 1) ** 2)
            pairs[-1] += (np.count_nonzero(known) if ignored else r.size) - len(i)  # zero in both
            for axis, at in enumerate(where):
                at = at + start if axis == 0 else at
                extent[axis][i, at] = True
                extent[axis][j, at] = True
        index = {int(value): k for k, value in enumerate(values)}
        return _Counts(index, pairs.reshape(n + 1, n + 1), extent, ignored)


def _index(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Where each label stands in the sorted `values`; their number, for one that is not there."""
    labels = labels.astype(np.int64)
    at = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where(values[at] == labels, at, len(values))


@dataclass(frozen=True)
class _Case:
    """One class of a case. A voxel of a 2-D array is 1 mm thick."""

    pred: np.ndarray
    ref: np.ndarray
    counts: _Counts
    spacing_mm: Spacing
    labels: list[int]
    voxel_ml: float

    @property
    def diagonal_mm(self) -> float:
        """Length of the image's diagonal."""
        return diagonal_mm(self.ref.shape, self.spacing_mm)

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
        """Prediction, reference and annotated voxels (None: all), bool, in the class's box.

        Voxels that are not annotated are False in both masks.
        """
        mine = [self.counts.index[value] for value in self.labels]
        box = []
        for extent in self.counts.extent:
            at = np.flatnonzero(extent[mine].any(0))
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
        pred = self.pred[start:stop]
        ref = self.ref[start:stop]
        return replace(self, pred=pred, ref=ref, counts=_Counts.of(pred, ref, set(self.labels)))

    def slice(self, at: int) -> _Case:
        """One slice along axis 0, as a case in 2-D."""
        pred = self.pred[at]
        ref = self.ref[at]
        counts = _Counts.of(pred, ref, set(self.labels))
        spacing = as_spacing(self.spacing_mm[1:])
        return _Case(pred, ref, counts, spacing, self.labels, voxel_mm3(spacing) / 1000)


def _is_any(array: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    mask = array == labels[0]
    for value in labels[1:]:
        mask |= array == value
    return np.ascontiguousarray(mask)


# --- from counts and masks to a row ---------------------------------------------------------------


def _row(case: _Case, name: str, convention: Convention, tolerance_mm: float) -> dict[str, Any]:
    """Everything in a row but the class's name."""
    far_mm = case.diagonal_mm
    if flare22_organ(name) in convention.on_reference:
        case = _on_reference(case, convention.last_slice)
    tp, fp, fn, tn = case.tallies
    status = class_status(tp, fp, fn)
    if convention.by_slice and status == BOTH and case.ref.ndim == 3:
        scores = _mean_of_slices(case, name, replace(convention, by_slice=False), tolerance_mm)
    else:
        scores = _scores(case, (tp, fp, fn), status, convention, tolerance_mm, far_mm)
    voxel_ml = case.voxel_ml
    labels = [int(value) for value in case.labels]
    return {
        "label": str(labels[0] if len(labels) == 1 else tuple(labels)),
        "status": status,
        **scores,
        "tolerance_mm": tolerance_mm,
        "ref_ml": (tp + fn) * voxel_ml,
        "pred_ml": (tp + fp) * voxel_ml,
        VOLUME_DIFF: (fp - fn) * voxel_ml,
        RVD: (fp - fn) / (tp + fn) if tp + fn else nan,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
    }


def class_status(tp: int, fp: int, fn: int) -> str:
    """Which masks have a class, from its voxel counts.

    Args:
        tp: True positives.
        fp: False positives.
        fn: False negatives.

    Returns:
        "both", "missed" (only in the reference), "spurious" (only in the prediction) or "absent".
    """
    in_prediction = tp + fp > 0
    in_reference = tp + fn > 0
    if in_reference:
        return BOTH if in_prediction else MISSED
    return SPURIOUS if in_prediction else ABSENT


def _scores(
    case: _Case,
    tallies: tuple[int, int, int],
    status: str,
    convention: Convention,
    tolerance_mm: float,
    far_mm: float,
) -> dict[str, float]:
    """Overlap and surface measures, with the policy for empty masks."""
    tp, fp, fn = tallies
    if status == ABSENT:
        blank = dict.fromkeys(CONVENTION_METRICS, nan)
        return blank | {DSC: convention.absent_score, NSD: convention.absent_score}
    if status == SPURIOUS and convention.reference_only:
        return dict.fromkeys(CONVENTION_METRICS, nan)
    overlap = {
        DSC: 2 * tp / (2 * tp + fp + fn),
        IOU: tp / (tp + fp + fn),
        SEN: tp / (tp + fn) if tp + fn else nan,
        PRC: tp / (tp + fp) if tp + fp else 0.0,
    }
    if status != BOTH:
        return overlap | {HD95: far_mm, HD: far_mm, ASSD: far_mm, NSD: 0.0}
    pred, ref, known = case.masks()
    surface = surface_scores(pred, ref, case.spacing_mm, tolerance_mm, far_mm, convention, known)
    if overlap[DSC] < convention.nsd_needs_dsc:
        surface[NSD] = 0.0
    return overlap | surface


def _on_reference(case: _Case, last_slice: bool) -> _Case:
    """The slices that the reference reaches, at least one; all where the reference is empty."""
    at = [d for d in range(len(case.ref)) if _is_any(case.ref[d], case.labels).any()]
    if case.ref.ndim != 3 or not at:
        return case
    return case.part(at[0], max(at[-1] + last_slice, at[0] + 1))


def _mean_of_slices(
    case: _Case, name: str, convention: Convention, tolerance_mm: float
) -> dict[str, float]:
    """Means over the slices where either mask has the class, without undefined values."""
    reached = case.counts.extent[0][[case.counts.index[value] for value in case.labels]].any(0)
    rows = [
        _row(case.slice(int(d)), name, convention, tolerance_mm) for d in np.flatnonzero(reached)
    ]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in CONVENTION_METRICS}


def _registered(case: _Case, status: str) -> dict[str, float]:
    """The metrics of the catalogue that have a function of their own."""
    return {
        name: _registered_value(metric, metric.function, case, status)
        for name, metric in METRICS.items()
        if metric.function
    }


def _registered_value(metric: Metric, function: MetricFunction, case: _Case, status: str) -> float:
    """The value of one metric, by the catalogue's policy for empty masks."""
    if status == ABSENT or (status == SPURIOUS and metric.needs_reference):
        return nan
    if status == BOTH or isnan(metric.worst):
        pred, ref, _ = case.masks()
        return float(function(pred, ref, case.spacing_mm))
    return case.diagonal_mm if isinf(metric.worst) else metric.worst
