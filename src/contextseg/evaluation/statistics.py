"""The statistics of a table of scores: means, intervals, paired tests, and the values behind them.

The table has a row for each run, case and class: `metrics.evaluate_case`'s columns, `case`,
`patient` where a patient has several cases, the columns that name what is compared (`by`: method,
budget) and those that tell its repetitions apart (`over`: seed). Cases of one patient are not
independent, so it is patients that are resampled and tested.

Where a metric does not exist (a class that is in neither mask) its value is NaN and enters no mean.
How often that was, and how often a class was missed or spurious, stands beside every mean.

Every number and every point that a table or a page shows of a comparison comes from here. No random
number is drawn without a seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.metrics import ABSENT, METRICS, MISSED, OVERALL, SPURIOUS

if TYPE_CHECKING:
    from pandas import DataFrame, Series

COUNTS = (f"n_{MISSED}", f"n_{SPURIOUS}", f"n_{ABSENT}", "n_rows")
"""Columns that count the rows behind a mean: those that failed, the absent ones, and all."""

EXACT_UP_TO = 200
"""The largest number of differences of which `signed_rank` computes p exactly."""

RESAMPLES = 10_000
"""Resamples of a bootstrap interval."""

LEVEL = 0.95
"""Level of a bootstrap interval."""


def describe(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    over: Sequence[str] = ("seed",),
    metrics: Collection[str] = METRICS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> DataFrame:
    """Means with their intervals, of every class and of all classes together ("overall").

    "overall" is taken over cases, of each case's mean over its classes, as in `metrics.summarise`:
    only with several classes, and only for what has rows of every class.

    Args:
        table: A row for each run, case and class.
        by: Columns that name what is compared.
        over: Columns that tell repetitions apart.
        metrics: The metrics to describe; those without a column are left out.
        resamples: Resamples of the bootstrap.
        level: Level of the interval.
        seed: Seed of the bootstrap.

    Returns:
        One line for each thing compared, class and metric, in the columns of `by`, class, metric,
        and

        - mean: over cases, then over the repetitions; every value by the policy of
          `evaluate_case`. NaN without any value.
        - sd: over the repetitions' means (n - 1); NaN for one repetition.
        - low, high: percentile bootstrap of the mean. Patients are resampled, with all their cases
          and repetitions, the same ones for everything that is compared. NaN for fewer than two
          patients.
        - n, patients, repetitions: with a value; n counts cases.
        - n_missed, n_spurious, n_absent: rows of all repetitions, of n_rows.

    Example:
        >>> import pandas as pd
        >>> rows = {"method": "a", "seed": [0, 0, 1, 1], "case": ["x", "y"] * 2}
        >>> rows |= {"class": "liver", "status": "both", "dsc": [0.8, 0.6, 0.9, 0.7]}
        >>> line = describe(pd.DataFrame(rows), metrics=["dsc"]).loc[0]
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


def case_values(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    over: Sequence[str] = ("seed",),
    metrics: Collection[str] = METRICS,
) -> DataFrame:
    """The value of every case, over whose mean `describe` reports.

    Args:
        table: A row for each run, case and class.
        by: Columns that name what is compared.
        over: Columns that tell repetitions apart.
        metrics: The metrics; those without a column are left out.

    Returns:
        One line for each thing compared, class, metric and case with a value, in the columns of
        `by`, class, metric, case, value (the mean over the repetitions) and failed (whether the
        class was missed or spurious in at least one of them).
    """
    import pandas as pd

    table = _overall(_ready(table, by, over), by, over)
    names = [metric for metric in metrics if metric in table]
    keys = [*by, "class", "case"]
    failed = (table[f"n_{MISSED}"] + table[f"n_{SPURIOUS}"] > 0).rename("failed")
    failed = failed.groupby([table[key] for key in keys], sort=False).any()

    repetitions = table.groupby([*keys, *over], sort=False)[names].mean().astype(float)
    repetitions = repetitions.where(np.isfinite(repetitions))
    values = repetitions.groupby(keys, sort=False).mean()
    lines = [values[name].dropna().rename("value").to_frame().assign(metric=name) for name in names]
    if not lines:
        return pd.DataFrame(columns=[*by, "class", "metric", "case", "value", "failed"])
    long = pd.concat(lines).join(failed).reset_index()
    return long[[*by, "class", "metric", "case", "value", "failed"]]


def contrasts(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    within: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    metrics: Collection[str] = METRICS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> DataFrame:
    """The paired tests of `paired_tests`, without the differences behind them.

    Args:
        table: A row for each run, case and class.
        by: Columns that name what is compared.
        within: Columns of `by` in which the two of a pair agree.
        over: Columns that tell repetitions apart.
        metrics: The metrics to test; those without a column are left out.
        resamples: Resamples of the bootstrap.
        level: Level of the interval.
        seed: Seed of the bootstrap.

    Returns:
        The first table of `paired_tests`.
    """
    tests, _ = paired_tests(
        table,
        by=by,
        within=within,
        over=over,
        metrics=metrics,
        resamples=resamples,
        level=level,
        seed=seed,
    )
    return tests


def paired_tests(
    table: DataFrame,
    *,
    by: Sequence[str] = ("method",),
    within: Sequence[str] = (),
    over: Sequence[str] = ("seed",),
    metrics: Collection[str] = METRICS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[DataFrame, DataFrame]:
    """Compare every two things patient by patient, for each class and metric.

    A patient's value is the mean over its cases and repetitions; patients without a value for both
    are left out. Of signed metrics (volume differences) the absolute value is compared. A class
    that is rightly absent has no value in any mean; but in a case where something in the table
    predicted it, to have left it out is a success, and counts here with the metric's best value.

    Args:
        table: A row for each run, case and class.
        by: Columns that name what is compared.
        within: Columns of `by` in which the two of a pair agree.
        over: Columns that tell repetitions apart.
        metrics: The metrics to test; those without a column are left out.
        resamples: Resamples of the bootstrap.
        level: Level of the interval.
        seed: Seed of the bootstrap.

    Returns:
        Two tables. The first has one line for each pair, class and metric, in the columns of
        `within`, class, metric, and

        - a, b: the two, by their other columns of `by` (joined by a space).
        - n, n_zero: patients; those without any difference.
        - difference: mean of a - b; low, high: its percentile bootstrap over patients.
        - effect: matched-pairs rank-biserial correlation, -1 to 1 (Kerby, 2014); positive where a
          is the better. Patients without a difference count as no effect.
        - p: Wilcoxon's signed-rank test, two-sided (see `signed_rank`).
        - p_holm: corrected for all tests of the same class (Holm, 1979), that is of one table.

        Fewer than two patients give NaN for the interval, effect and p; none gives NaN for the
        difference too. The second table has the tested differences themselves: one line for each
        of these and each patient, in the columns of `within`, class, metric, a, b, patient and
        difference.
    """
    import pandas as pd

    table = _overall(_credited(_ready(table, by, over), metrics), by, over)
    draws = _Draws.of(table, resamples, seed)
    lines: list[dict[str, Any]] = []
    points: list[DataFrame] = []
    for pair, differences in _each_pair(table, draws, by, within, over, metrics):
        higher = METRICS[pair["metric"]].direction == "higher"
        lines.append(pair | _contrast(differences, higher, draws, level))
        known = np.isfinite(differences)
        point = {"patient": draws.patients[known], "difference": differences[known]}
        points.append(pd.DataFrame(point).assign(**pair))

    tests = pd.DataFrame(lines)
    columns = [*within, "class", "metric", "a", "b", "patient", "difference"]
    if not len(tests):
        return tests, pd.DataFrame(columns=columns)
    tests["p_holm"] = tests.groupby("class", sort=False)["p"].transform(
        lambda p: holm(p.to_numpy())
    )
    return tests, pd.concat(points, ignore_index=True)[columns]


def _each_pair(
    table: DataFrame,
    draws: _Draws,
    by: Sequence[str],
    within: Sequence[str],
    over: Sequence[str],
    metrics: Collection[str],
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What each pair is, and its differences (patients,), NaN where one of the two has no value."""
    rest = [name for name in by if name not in within]
    for key, rows in table.groupby([*within, "class"], sort=False):
        parts = [(" ".join(map(str, k)), part) for k, part in rows.groupby(rest, sort=False)]
        for metric in (m for m in metrics if m in rows):
            values = [
                (title, draws.by_patient(_values(part, metric, over, draws.cases)))
                for title, part in parts
            ]
            for (a, first), (b, second) in combinations(values, 2):
                head = dict(zip([*within, "class"], key))
                yield head | {"metric": metric, "a": a, "b": b}, first - second


def signed_rank(differences: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Wilcoxon's signed-rank test for paired differences, two-sided, with its effect size.

    Zeros are ranked with the others and then dropped (Pratt, 1959; scipy's zero_method "pratt"),
    tied sizes get their mean rank, and differences below 1e-10 are rounding. Up to 200 differences
    p is exact, ties and zeros included: the distribution of the rank sum over all assignments of
    signs. Beyond, scipy's normal approximation. Five differences or fewer never give p < 0.05.

    Args:
        differences: The differences; NaN are left out.

    Returns:
        (p, effect), where the effect is (ranks of the positive - ranks of the negative) / all
        ranks. Fewer than two differences give (NaN, NaN), nothing but zeros (1, 0).

    Example:
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
    plus = float(ranks[d > 0].sum())
    minus = float(ranks[d < 0].sum())
    effect = (plus - minus) / (n * (n + 1) / 2)
    if n > EXACT_UP_TO and d.any():
        return float(wilcoxon(d, zero_method="pratt", method="asymptotic").pvalue), effect
    return _exact(ranks[d != 0], max(plus, minus)), effect


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down correction (Holm, 1979).

    Args:
        p: Uncorrected p of each test. NaN are no tests.

    Returns:
        The corrected p of each, in the given order; NaN stay NaN.

    Example:
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


# --- values ---------------------------------------------------------------------------------------


def _ready(table: DataFrame, by: Sequence[str], over: Sequence[str]) -> DataFrame:
    """The table with all columns needed: no `patient`: each case is one; no `over`: one run."""
    keys: dict[str, Any] = dict.fromkeys(over, "")
    keys |= {
        name: table[name].astype(object).where(table[name].notna(), "")
        for name in (*by, *over)
        if name in table
    }
    patient = table["patient"] if "patient" in table else table["case"]
    counts = {
        f"n_{status}": (table["status"] == status).astype(int)
        for status in (MISSED, SPURIOUS, ABSENT)
    }
    return table.assign(**keys, patient=patient.fillna(table["case"]), n_rows=1, **counts)


def _credited(table: DataFrame, metrics: Collection[str]) -> DataFrame:
    """The best value for a right absence in a case where anything compared predicts the class.

    Signed metrics become their absolute values.
    """
    is_spurious = table["status"] == SPURIOUS
    spurious_somewhere = is_spurious.groupby([table["case"], table["class"]]).transform("any")
    right = spurious_somewhere & (table["status"] == ABSENT)
    table = table.copy()
    for name in metrics:
        if name not in table:
            continue
        metric = METRICS[name]
        table[name] = table[name].astype(float)
        if metric.direction is None:
            table[name] = table[name].abs()
        # Sensitivity does not exist without a reference, for nobody.
        if table.loc[is_spurious, name].notna().any():
            table.loc[right, name] = metric.best
    return table


def _overall(table: DataFrame, by: Sequence[str], over: Sequence[str]) -> DataFrame:
    """The table and rows of class "overall", each case's mean over its classes.

    Only of what has rows of every class.
    """
    import pandas as pd

    classes = table["class"].nunique()
    whole = table.groupby(list(by))["class"].transform("nunique") == classes
    if classes < 2 or not whole.any():
        return table
    fold = ["fold"] if "fold" in table else []
    keys = list(dict.fromkeys([*by, *over, *fold, "case", "patient"]))
    groups = table[whole].groupby(keys, sort=False, dropna=False)
    means = groups[[metric for metric in METRICS if metric in table]].mean()
    overall = means.join(groups[list(COUNTS)].sum()).reset_index()
    return pd.concat([table, overall.assign(**{"class": OVERALL})])


def _values(rows: DataFrame, metric: str, over: Sequence[str], cases: list[str]) -> np.ndarray:
    """Values (cases, repetitions), the mean where a repetition has several (overlapping folds)."""
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
    """The test of the differences a - b of all patients, NaN where one has no value."""
    known = d[np.isfinite(d)]
    p, effect = signed_rank(known)
    low, high = (
        draws.interval(d[:, None], level, of_patients=True) if len(known) > 1 else (nan, nan)
    )
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


# --- draws ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draws:
    """How often each patient is in each resample.

    Attributes:
        cases: Names of the cases.
        patients: Names of the patients.
        patient: (cases,) index of each case's patient.
        weights: (resamples, patients).
    """

    cases: list[str]
    patients: np.ndarray
    patient: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(table: DataFrame, resamples: int, seed: int) -> _Draws:
        """Drawn once for the whole table, so that all that is compared sees the same patients."""
        owner: Series = table.drop_duplicates("case").set_index("case")["patient"].sort_index()
        names, index = np.unique(owner.to_numpy(str), return_inverse=True)
        n = len(names)
        weights = (
            np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
            if n
            else np.zeros((0, 0))
        )
        return _Draws(list(owner.index), names, index, weights.astype(float))

    def by_patient(self, values: np.ndarray) -> np.ndarray:
        """The mean of each patient, over a case's repetitions, then over its cases."""
        means = _mean(values, 1)
        return np.array([_mean(means[self.patient == i], 0) for i in range(self.weights.shape[1])])

    def interval(
        self, values: np.ndarray, level: float, of_patients: bool = False
    ) -> tuple[float, float]:
        """Percentile interval of the mean over cases (or patients), then over repetitions."""
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
    """Chance that either rank sum is at least `larger` when every sign is a fair coin.

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
