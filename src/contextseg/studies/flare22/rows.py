"""The rows of Table 4, as runs: methods and settings by name."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contextseg.errors import ContextsegError, did_you_mean
from contextseg.settings import Settings, names

PUBLISHED_STEPS = 50_000
"""Steps of the paper's trainings."""


@dataclass(frozen=True)
class Table4Row:
    """A row of the table.

    Attributes:
        title: As in the paper.
        published: The paper's mean DSC.
        reference: The run that predicts.
        propagates: Whether a run of STCN fills the scan from its slices.
    """

    title: str
    published: float
    reference: str
    propagates: bool = False


ROWS: dict[str, Table4Row] = {
    "baseline": Table4Row("baseline", 0.547, "baseline"),
    "cps": Table4Row("+ CPS", 0.762, "cps"),
    "uncertainty": Table4Row("+ windows, uncertainty", 0.770, "uncertainty"),
    "propagation": Table4Row("+ propagation", 0.784, "uncertainty", propagates=True),
}
"""The rows of Table 4 by name."""

PROPAGATION_RUN = "stcn"

_COMMON = (
    "dims=2",
    "native=true",
    "training.lr=0.0001",
    "optimizer=adamw",
    "prediction.mirror=false",
    "prediction.step=1",
    "prediction.confidence=false",
)
_NETWORKS = ("net=transunet", "second=deeplab", "slice_position=true", "batch_size=4")
_THREE = "ct_windows=abdomen,chest,spine"
_RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "baseline": ("supervised", ("net=deeplab", "batch_size=2", "ct_windows=abdomen")),
    "cps": ("cps", (*_NETWORKS, "ct_windows=abdomen")),
    "uncertainty": ("pseudo", ("base=cps", *_NETWORKS, "threshold=0.9", _THREE)),
    PROPAGATION_RUN: ("stcn", ("size=stcn", "batch_size=8", _THREE)),
}

NOTES = (
    "The paper does not name the network of its baseline: here it is DeepLabV3+, the smaller of "
    "the two; and rows without its three windows see the abdominal one alone.",
    "Pseudo labels: two CPS models, one round, cases with a mean Dice to their consensus of 0.9 or "
    "more. The paper repeats until nothing changes: --set rounds=N.",
    "Augmentation is this library's, nnU-Net's in kind; left and right organs change places in a "
    "mirror, which the authors' flips forget. Supervised runs have this library's schedule "
    "of rates.",
    "Networks start from new weights (a rule of the challenge).",
    "Which set the paper's ablation was scored on is not stated; it stands beside the validation "
    "scans here.",
)
"""What the paper leaves open, and where this differs from it."""


def table_rows(wanted: Sequence[str]) -> list[str]:
    """The rows that are asked for, in the table's order.

    Args:
        wanted: Names; () for all.

    Returns:
        Names of `ROWS`.

    Raises:
        ContextsegError: There is no row of a name.

    Example:
        >>> table_rows(["cps", "baseline"])
        ['baseline', 'cps']
    """
    for name in wanted:
        if name not in ROWS:
            raise ContextsegError(
                f"--rows {name}", "there is no such row", did_you_mean(name, ROWS)
            )
    return [name for name in ROWS if not wanted or name in wanted]


def runs_of(rows: Sequence[str]) -> list[str]:
    """The runs that rows need, each once, in the order in which they are trained.

    Args:
        rows: Names of `ROWS`.

    Returns:
        Names of runs.

    Example:
        >>> runs_of(["propagation"])
        ['uncertainty', 'stcn']
    """
    needed = list(dict.fromkeys(ROWS[name].reference for name in rows))
    return needed + [PROPAGATION_RUN] * any(ROWS[name].propagates for name in rows)


def words_of_run(name: str, scale: float = 1.0, words: Sequence[str] = ()) -> list[str]:
    """The settings of a run as `name=value` words.

    Args:
        name: Name of the run.
        scale: Share of the paper's training steps.
        words: `name=value` words after the paper's; those that the run's method does not have are
            left out, since they are meant for another run.

    Returns:
        The words.
    """
    method, own = _RUNS[name]
    known = {key for full in names(method) for key in (full, full.rpartition(".")[2])}
    more = [word for word in words if word.partition("=")[0].strip() in known]
    steps = f"training.steps={max(1, round(PUBLISHED_STEPS * scale))}"
    return [*_COMMON, steps, *own, *more]


def settings_of_run(
    name: str, dataset: Path, scale: float = 1.0, words: Sequence[str] = ()
) -> Settings:
    """The settings of a run; all labelled cases are trained on.

    Args:
        name: Name of the run.
        dataset: Folder of the arranged data set.
        scale: Share of the paper's training steps.
        words: `name=value` words after the paper's.

    Returns:
        The settings.

    Raises:
        ContextsegError: A value has the wrong type.
    """
    method = _RUNS[name][0]
    return Settings(str(dataset.absolute()), method).set(words_of_run(name, scale, words))


def check_words(words: Sequence[str], runs: Sequence[str]) -> None:
    """Refuse words that no run knows.

    Args:
        words: `name=value` words.
        runs: Names of runs.

    Raises:
        ContextsegError: No run has a setting of that name.
    """
    most = max(runs, key=lambda run: len(names(_RUNS[run][0])))
    for word in words:
        if not any(word in words_of_run(run, words=[word]) for run in runs):
            Settings("", _RUNS[most][0]).set([word])  # names the nearest


def commands(out: Path, rows: Sequence[str], scale: float, words: Sequence[str]) -> str:
    """The command lines that do what `--run` does, for people to read and copy.

    Args:
        out: Folder of the study.
        rows: Names of `ROWS`.
        scale: Share of the paper's training steps.
        words: `name=value` words for every run.

    Returns:
        The commands, a line each and their settings below.
    """
    lines = []
    for run in runs_of(rows):
        head = ["contextseg", "train", str(out / "dataset"), "-o", str(out / "runs" / run)]
        head += ["--method", _RUNS[run][0], "--fold", "all"]
        settings = [f"    --set {shlex.quote(word)}" for word in words_of_run(run, scale, words)]
        lines.append(" \\\n".join([shlex.join(head), *settings]))
    for name in rows:
        row = ROWS[name]
        for part in ("validation", "test"):
            verb = "two-stage" if row.propagates else "predict"
            line = ["contextseg", verb, str(out / "runs" / row.reference)]
            line += ["-i", str(out / part / "images"), "-o", str(out / "predicted" / name / part)]
            line += ["--profile", "--profile-formula", "official"]
            if row.propagates:
                line += ["--model", str(out / "runs" / PROPAGATION_RUN), "--published"]
            lines.append(shlex.join(line))
    return "\n".join(lines)
