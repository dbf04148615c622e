"""What may be said of a table of scores: means, intervals, paired tests. No number is drawn without a seed.

The table has a row for each run, case and class: `metrics.evaluate_case`'s columns, `case`, `patient` where a patient
has several cases, the columns that name what is compared (`by`: method, budget) and those that tell its repetitions
apart (`over`: seed). Cases of one patient are not independent, so it is patients that are resampled and tested.

Where a metric does not exist (a class that is in neither mask) its value is NaN and enters no mean; how often that was,
and how often a class was missed or made up, stands beside every mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.metrics import (
    ABSENT,
    ASSD,
    DSC,
    FP_FAR,
    FP_NEAR,
    HD,
    HD95,
    IOU,
    METRICS,
    MISSED,
    NSD,
    OVERALL,
    PRC,
    SEN,
    SPURIOUS,
)

if TYPE_CHECKING:
    from pandas import DataFrame, Series

HIGHER = (DSC, IOU, SEN, PRC, NSD)
"""Metrics of which 1 is the best. Of distances and false positives it is 0, of volume differences the nearest to 0."""

LOWER = (HD95, HD, ASSD, FP_NEAR, FP_FAR)
COUNTS = (f"n_{MISSED}", f"n_{SPURIOUS}", f"n_{ABSENT}", "n_rows")
EXACT_UP_TO = 200
RESAMPLES, LEVEL = 10_000, 0.95


def describe(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    over: Sequence[str] = ("seed",),
    metrics: Sequence[str] = METRICS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> DataFrame:
    """One line for each thing compared, class and metric, and for all classes together ("overall").

    Columns: those of `by`, class, metric, and
      mean        over cases, then over the repetitions; every value by the policy of `evaluate_case`.
      sd          over the repetitions' means (n - 1); NaN for one repetition.
      low, high   percentile bootstrap of the mean: patients are resampled, with all their cases and repetitions, the
                  same ones for everything that is compared. NaN for fewer than two patients.
      n, patients, repetitions          with a value; n counts cases.
      n_missed, n_spurious, n_absent    rows of all repetitions, of n_rows.

    "overall" is over cases, of each case's mean over its classes, as in `metrics.summarise`; only with several classes,
    and only for what has rows of every class. A metric without any value gives mean NaN and n 0.

    >>> import pandas as pd
    >>> rows = {"method": "a", "seed": [0, 0, 1, 1], "case": ["x", "y"] * 2, "class": "liver", "status": "both"}
    >>> line = describe(pd.DataFrame(rows | {"dsc": [0.8, 0.6, 0.9, 0.7]}), metrics=["dsc"]).loc[0]
    >>> [round(float(line[name]), 3) for name in ("mean", "sd", "low", "high")]
    [0.75, 0.071, 0.65, 0.85]
    """
    import pandas as pd

    table = _ready(table, by, over)
    draws = _Draws.of(table, resamples, seed)
    lines: list[dict[str, Any]] = []
    for key, rows in _overall(table, by, over).groupby([*by, "class"], sort=False):
        head = dict(zip([*by, "class"], key))
        counts = {name: int(rows[name].sum()) for name in COUNTS}
        for metric in (m for m in metrics if m in rows):
            spread = _spread(_values(rows, metric, over, draws.cases), draws, level)
            lines.append(head | {"metric": metric} | spread | counts)
    return pd.DataFrame(lines)


def contrasts(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    within: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    metrics: Sequence[str] = METRICS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> DataFrame:
    """Every two things that agree in `within` (a part of `by`), compared patient by patient, for each class and metric.

    A patient's value is the mean over its cases and repetitions; patients without a value for both are left out; of
    volume differences the absolute value is compared. A class that is rightly absent has no value in any mean; but in a
    case where something in the table made it up, to have left it out is a success, and counts here with the metric's
    best value. Columns: those of `within`, class, metric, and
      a, b               the two, by their other columns of `by` (joined by a space).
      n, n_zero          patients; those without any difference.
      difference         mean of a - b; low, high: its percentile bootstrap over patients.
      effect             matched-pairs rank-biserial correlation, -1 to 1 (Kerby, 2014); positive where a is the better.
                         Patients without a difference count as no effect.
      p                  Wilcoxon's signed-rank test, two-sided (see `signed_rank`).
      p_holm             corrected for all tests of the same class (Holm, 1979), that is of one table.

    Fewer than two patients give NaN for the interval, effect and p; none gives NaN for the difference too.
    """
    import pandas as pd

    table = _overall(_credited(_ready(table, by, over), metrics), by, over)
    draws = _Draws.of(table, resamples, seed)
    rest = [name for name in by if name not in within]
    lines: list[dict[str, Any]] = []
    for key, rows in table.groupby([*within, "class"], sort=False):
        parts = [(" ".join(map(str, k)), part) for k, part in rows.groupby(rest, sort=False)]
        for metric in (m for m in metrics if m in rows):
            values = [(title, draws.by_patient(_values(part, metric, over, draws.cases))) for title, part in parts]
            for (a, first), (b, second) in combinations(values, 2):
                head = dict(zip([*within, "class"], key)) | {"metric": metric, "a": a, "b": b}
                lines.append(head | _contrast(first - second, metric in HIGHER, draws, level))
    found = pd.DataFrame(lines)
    if len(found):
        found["p_holm"] = found.groupby("class", sort=False)["p"].transform(lambda p: holm(p.to_numpy()))
    return found


def signed_rank(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """(p, effect) of Wilcoxon's signed-rank test, two-sided, for paired differences; NaN among them are left out.

    Zeros are ranked with the others and then dropped (Pratt, 1959; scipy's zero_method "pratt"), tied sizes get their
    mean rank, and differences below 1e-10 are rounding. Up to 200 differences p is exact, ties and zeros included: the
    distribution of the rank sum over all assignments of signs. Beyond, scipy's normal approximation.

    The effect is (ranks of the positive - ranks of the negative) / all ranks. Fewer than two differences: (NaN, NaN).
    Nothing but zeros: (1, 0). Five differences or fewer can never give p < 0.05.

    >>> signed_rank([1, 2, 3, 4, -5, 6])
    (0.3125, 0.5238095238095238)
    """
    from scipy.stats import rankdata, wilcoxon

    d = np.round(np.asarray(differences, float), 10)
    d = d[np.isfinite(d)]
    n = len(d)
    if n < 2:
        return nan, nan
    ranks = rankdata(np.abs(d))
    plus, minus = float(ranks[d > 0].sum()), float(ranks[d < 0].sum())
    effect = (plus - minus) / (n * (n + 1) / 2)
    if n > EXACT_UP_TO and d.any():
        return float(wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue), effect
    return _exact(ranks[d != 0], max(plus, minus)), effect


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction: the adjusted p of each, in the given order. NaN are no tests and stay NaN.

    >>> holm([0.01, 0.04, 0.03, float("nan")]).round(3).tolist()
    [0.03, 0.06, 0.06, nan]
    """
    p = np.asarray(p, float)
    out = np.full(p.shape, nan)
    tests = np.flatnonzero(np.isfinite(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    out[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return out


# --- values -----------------------------------------------------------------------------------------------------------


def _ready(table: DataFrame, by: Sequence[str], over: Sequence[str]) -> DataFrame:
    """The table with all columns that are needed: without `patient` each case is one, without `over` all is one run."""
    keys: dict[str, Any] = dict.fromkeys(over, "")
    keys |= {name: table[name].astype(object).where(table[name].notna(), "") for name in (*by, *over) if name in table}
    patient = table["patient"] if "patient" in table else table["case"]
    counts = {f"n_{status}": (table["status"] == status).astype(int) for status in (MISSED, SPURIOUS, ABSENT)}
    return table.assign(**keys, patient=patient.fillna(table["case"]), n_rows=1, **counts)


def _credited(table: DataFrame, metrics: Sequence[str]) -> DataFrame:
    """The best value for a correct absence in a case where anything compared made the class up."""
    made_up = (table["status"] == SPURIOUS).groupby([table["case"], table["class"]]).transform("any")
    right = made_up & (table["status"] == ABSENT)
    table = table.copy()
    for metric in metrics:
        if metric in table:
            table[metric] = table[metric].astype(float)
            if metric not in HIGHER + LOWER:
                table[metric] = table[metric].abs()
            spurious = table.loc[table["status"] == SPURIOUS, metric]
            if spurious.notna().any():  # sensitivity does not exist without a reference, for nobody
                table.loc[right, metric] = float(metric in HIGHER)
    return table


def _overall(table: DataFrame, by: Sequence[str], over: Sequence[str]) -> DataFrame:
    """The table, and rows of class "overall": each case's mean over its classes; only where all classes are there."""
    import pandas as pd

    classes = table["class"].nunique()
    whole = table.groupby(list(by))["class"].transform("nunique") == classes
    if classes < 2 or not whole.any():
        return table
    keys = [*dict.fromkeys([*by, *over, *(name for name in ("fold",) if name in table), "case", "patient"])]
    groups = table[whole].groupby(keys, sort=False, dropna=False)
    means = groups[[metric for metric in METRICS if metric in table]].mean()
    return pd.concat([table, means.join(groups[list(COUNTS)].sum()).reset_index().assign(**{"class": OVERALL})])


def _values(rows: DataFrame, metric: str, over: Sequence[str], cases: list[str]) -> np.ndarray:
    """(cases, repetitions): the value of each, the mean where a repetition has several (folds that overlap)."""
    wide = rows.pivot_table(metric, "case", list(over), aggfunc="mean", dropna=False)
    return wide.reindex(cases).to_numpy(float)


def _spread(values: np.ndarray, draws: _Draws, level: float) -> dict[str, Any]:
    """Mean, sd, interval and counts of (cases, repetitions)."""
    there = np.isfinite(values)
    means = _mean(values, 0)
    means = means[np.isfinite(means)]
    n_patients = len({draws.patient[i] for i in np.flatnonzero(there.any(1))})
    low, high = draws.interval(values, level) if n_patients > 1 else (nan, nan)
    return {
        "mean": float(means.mean()) if len(means) else nan,
        "sd": float(means.std(ddof=1)) if len(means) > 1 else nan,
        "low": low,
        "high": high,
        "n": int(there.any(1).sum()),
        "patients": n_patients,
        "repetitions": len(means),
    }


def _contrast(d: np.ndarray, higher: bool, draws: _Draws, level: float) -> dict[str, Any]:
    """What there is to say about the differences a - b of all patients, NaN where one has no value."""
    known = d[np.isfinite(d)]
    p, effect = signed_rank(known)
    low, high = draws.interval(d[:, None], level, of_patients=True) if len(known) > 1 else (nan, nan)
    return {
        "n": len(known),
        "n_zero": int((np.round(known, 10) == 0).sum()),
        "difference": float(known.mean()) if len(known) else nan,
        "low": low,
        "high": high,
        "effect": effect if higher or not effect else -effect,
        "p": p,
    }


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis without the NaN; NaN where nothing else is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis) / known.sum(axis)


# --- draws ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draws:
    """How often each patient is in each resample: `weights` (resamples, patients); `patient` is each case's index."""

    cases: list[str]
    patient: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(table: DataFrame, resamples: int, seed: int) -> _Draws:
        """Drawn once for the whole table, so that all that is compared sees the same patients."""
        owner: Series = table.drop_duplicates("case").set_index("case")["patient"].sort_index()
        names, index = np.unique(owner.to_numpy(str), return_inverse=True)
        n = len(names)
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples) if n else np.zeros((0, 0))
        return _Draws(list(owner.index), index, weights.astype(float))

    def by_patient(self, values: np.ndarray) -> np.ndarray:
        """(cases, repetitions) to one mean for each patient: over a case's repetitions, then over its cases."""
        means = _mean(values, 1)
        return np.array([_mean(means[self.patient == i], 0) for i in range(self.weights.shape[1])])

    def interval(self, values: np.ndarray, level: float, of_patients: bool = False) -> tuple[float, float]:
        """Percentile interval of the mean of (cases or patients, repetitions): over rows, then over repetitions."""
        owner = np.arange(self.weights.shape[1]) if of_patients else self.patient
        known = np.isfinite(values)
        sums, counts = np.zeros((2, self.weights.shape[1], values.shape[1]))
        np.add.at(sums, owner, np.where(known, values, 0))
        np.add.at(counts, owner, known)
        with np.errstate(invalid="ignore"):
            means = _mean((self.weights @ sums) / (self.weights @ counts), 1)
        tail = (1 - level) / 2
        low, high = np.nanquantile(means, [tail, 1 - tail])
        return float(low), float(high)


def _exact(ranks: np.ndarray, larger: float) -> float:
    """P(the rank sum of the positive, or of the negative, is at least `larger`) when every sign is a fair coin.

    Built up rank by rank; ranks are doubled, so that mean ranks of ties are whole.
    """
    steps = np.rint(2 * ranks).astype(int)
    chance = np.zeros(steps.sum() + 1)
    chance[0] = 1
    for step in steps:
        shifted = np.zeros_like(chance)
        shifted[step:] = chance[:-step]
        chance = (chance + shifted) / 2
    return min(1.0, 2 * float(chance[round(2 * larger) :].sum()))
