"""From rows to tables: means with their failures beside them, and nnU-Net's summary."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from contextseg.metrics.case import ABSENT, MISSED, SPURIOUS
from contextseg.metrics.catalogue import METRICS

if TYPE_CHECKING:
    from pandas import DataFrame

OVERALL = "overall"


def summarise(table: DataFrame, by: Sequence[str] = ()) -> DataFrame:
    """Means of every class and metric, and of all classes together, with counts of failures.

    Missed and spurious rows are in the mean with the values that `evaluate_case` gives them; absent
    rows have none.

    Args:
        table: Rows of `evaluate_case` and, with more than one case, a column `case`.
        by: Columns whose values are summarised apart, such as method and seed.

    Returns:
        One line for each group, class and metric, in the columns of `by`, class, metric, mean, sd
        (n - 1; NaN for one case), median, n (the cases with a value), n_missed, n_spurious and
        n_absent. Class "overall" is taken over cases, of each case's mean over its classes; its
        counts are sums. A metric that no row has is left out.

    Example:
        >>> import pandas as pd
        >>> rows = {"case": ["a", "b"], "class": "liver", "status": ["both", "missed"]}
        >>> table = pd.DataFrame(rows | {"dsc": [0.9, 0.0]})
        >>> line = summarise(table).loc[0]  # of the liver
        >>> line[["mean", "n", "n_missed"]].astype(float).tolist()
        [0.45, 2.0, 1.0]
    """
    import pandas as pd

    table = table if "case" in table else table.assign(case="")
    lines = []
    for key, group in table.groupby(list(by), sort=False) if by else [((), table)]:
        head = dict(zip(by, key))
        parts = [(str(name), rows) for name, rows in group.groupby("class", sort=False)]
        for name, rows in [*parts, (OVERALL, group)]:
            counts = {
                f"n_{status}": int((rows["status"] == status).sum())
                for status in (MISSED, SPURIOUS, ABSENT)
            }
            for metric in METRICS:
                if metric not in rows:
                    continue
                values = rows.groupby("case")[metric].mean() if name == OVERALL else rows[metric]
                values = values.dropna()
                spread = {
                    "mean": values.mean(),
                    "sd": values.std(),
                    "median": values.median(),
                    "n": len(values),
                }
                lines.append(head | {"class": name, "metric": metric} | spread | counts)
    return pd.DataFrame(lines)


def nnunet_summary(table: DataFrame) -> dict[str, Any]:
    """The content of nnU-Net v2's `summary.json`.

    A label in neither mask has Dice and IoU NaN, which the means leave out. nnU-Net does so too,
    but its foreground mean is NaN if a label is in no case at all. A class that was not annotated
    in a case is not among that case's labels.

    Args:
        table: Rows of `evaluate_case` with the columns `case`, `reference_file` and
            `prediction_file`.

    Returns:
        foreground_mean, mean (by label) and metric_per_case, with nnU-Net's label keys: "1", or
        "(1, 2)" for a region.
    """
    cases: list[dict[str, Any]] = []
    for _, rows in table.groupby("case", sort=False):
        records = rows.to_dict("records")
        files = {key: str(records[0][key]) for key in ("prediction_file", "reference_file")}
        cases.append(
            {"metrics": {str(row["label"]): _nnunet_metrics(row) for row in records}, **files}
        )
    scores: list[dict[str, Any]] = [case["metrics"] for case in cases]
    labels = dict.fromkeys(label for score in scores for label in score)
    mean = {label: _means([score[label] for score in scores if label in score]) for label in labels}
    foreground = _means([mean[label] for label in labels if label != "0"])
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": cases}


def _nnunet_metrics(row: Any) -> dict[str, float]:
    """nnU-Net's names in its order; Dice and IoU from the counts, whatever the convention."""
    tp, fp, fn, tn = (int(row[key]) for key in ("tp", "fp", "fn", "tn"))
    return {
        "Dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else nan,
        "FN": fn,
        "FP": fp,
        "IoU": tp / (tp + fp + fn) if tp + fp + fn else nan,
        "TN": tn,
        "TP": tp,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each key; NaN is left out, and nothing but NaN gives NaN."""
    out = {}
    for key in rows[0] if rows else ():
        values = [row[key] for row in rows if not isnan(row[key])]
        out[key] = sum(values) / len(values) if values else nan
    return out
