"""The whole job: arrange the scans, train the runs, predict, score, and set beside the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.cells import read_table_file
from contextseg.console import ProgressBar, no_progress_bar, say
from contextseg.disk import lock_folder, replacing, write_text
from contextseg.errors import ContextsegError
from contextseg.evaluation.efficiency import EFFICIENCY_TABLE
from contextseg.evaluation.folders import evaluate_folders
from contextseg.pipeline import open_predictor, open_propagation_model, train_run
from contextseg.runs import Run
from contextseg.studies.flare22.layout import LAYOUT, PARTS, FLARE22Scans, arrange_flare22
from contextseg.studies.flare22.rows import (
    NOTES,
    PROPAGATION_RUN,
    PUBLISHED_STEPS,
    ROWS,
    check_words,
    commands,
    runs_of,
    settings_of_run,
    table_rows,
)
from contextseg.twostage import as_published, segment_folder

if TYPE_CHECKING:
    from pandas import DataFrame

FLARE22 = "flare22"
"""Its name for `contextseg reproduce`."""

TABLE = "table4"
ORGANS = "organs.csv"
PREDICTED_PARTS = ("validation", "test")
COSTS = ("seconds", "gpu_auc_mb_s", "gpu_auc_above_2gb_mb_s", "cpu_auc_percent_s")
PUBLISHED_TEST = (0.8233, 0.8668)
"""DSC and NSD of the paper's final submission on the test scans."""


@dataclass(frozen=True)
class FLARE22Result:
    """How far the reproduction is. `str` of it is what the command line prints.

    Attributes:
        download: What was found. None: no folder was given.
        commands: The command lines of the same; "" where they were run.
        results: Table 4 as Markdown, with the costs; "" where nothing is scored.
        folder: Folder of the study.
    """

    download: FLARE22Scans | None = None
    commands: str = ""
    results: str = ""
    folder: Path | None = None

    def __str__(self) -> str:
        """The description, the commands, or the table."""
        if self.download is None:
            return describe_flare22()
        counts = self.download.counts
        parts = [", ".join(f"{counts[part]} {part}" for part in PARTS) + f": {self.folder}"]
        if self.download.left_out:
            parts.append(f"{len(self.download.left_out)} files belong to no part, and are left out")
        parts += [text for text in (self.commands, self.results) if text]
        return "\n\n".join(parts)


def reproduce_flare22(
    download: str | Path | None = None,
    output: str | Path | None = None,
    *,
    run: bool = False,
    rows: Sequence[str] = (),
    scale: float = 1.0,
    partial: bool = False,
    settings: Sequence[str] = (),
    progress_bar: ProgressBar = no_progress_bar,
) -> FLARE22Result:
    """Reproduce Table 4 of Pham et al., and the costs of the whole pipeline.

    The same call goes on where it was stopped: runs, predictions and scores that are there are not
    made again.

    Args:
        download: Folder with the challenge's scans. None describes how they lie.
        output: Folder for everything that is made.
        run: Train, predict and score; else the commands are given.
        rows: Rows of the table by name; () for all.
        scale: Share of the paper's training steps, for a trial.
        partial: Take the scans that are there, whatever the counts.
        settings: `name=value` words for the runs that know them, after the paper's.
        progress_bar: Shows the progress of each stage.

    Returns:
        What was found, and the table beside the published one where something is scored.

    Raises:
        ContextsegError: The download is not whole, a row or setting is unknown, or a run failed.
    """
    if not 0 < scale < float("inf"):
        remedy = "give a positive number; 1 is the paper's"
        raise ContextsegError(f"--scale {scale}", "no length of training", remedy)
    chosen = table_rows(rows)
    check_words(settings, runs_of(chosen))
    if download is None:
        return FLARE22Result()
    if output is None:
        raise ContextsegError("--output", "no folder to work in", "say where, as in -o OUT")
    out = Path(output).absolute()
    with lock_folder(out):
        found = arrange_flare22(download, out, partial)
        if not run:
            text = commands(out, chosen, scale, settings)
            return FLARE22Result(found, text, read_results(out), out)
        for name in runs_of(chosen):
            train_run(
                Run(
                    out / "runs" / name,
                    settings_of_run(name, out / "dataset", scale, settings),
                    progress_bar,
                )
            )
        for name in chosen:
            for part in PREDICTED_PARTS:
                if found.images[part]:
                    _predict(out, name, part, progress_bar)
        trial = _trial(found, scale, settings)
        results = _write_results(out, chosen, found, trial, progress_bar)
    return FLARE22Result(found, "", results, out)


def describe_flare22() -> str:
    """What the study is, how the scans lie, and what is open, in words."""
    counts = ", ".join(f"{count} {part}" for part, count in PARTS.items())
    lines = [
        "flare22: 13 abdominal organs in CT, " + counts + " scans.",
        "Pham, Nguyen-Ho, Tran, LNCS 13816; the challenge: flare22.grand-challenge.org. Lay the "
        "scans out so, in any folder:",
        LAYOUT,
        "contextseg reproduce flare22 FOLDER -o OUT --run",
        f"trains every row ({PUBLISHED_STEPS} steps each), predicts and scores; the same call "
        "resumes. Without --run it prints the commands. A trial: --scale 0.01, --partial.",
        *(f"- {note}" for note in NOTES),
    ]
    return "\n\n".join(lines)


def _predict(out: Path, name: str, part: str, progress_bar: ProgressBar) -> None:
    """The label maps of a row and part; those that are there are kept."""
    row = ROWS[name]
    predictor = open_predictor([out / "runs" / row.reference])
    images, folder = out / part / "images", out / "predicted" / name / part
    profiled: dict[str, Any] = {"profile": True, "profile_formula": "official"}
    if not row.propagates:
        predictor.predict_folder(images, folder, progress_bar=progress_bar, **profiled)
        return
    model = open_propagation_model(out / "runs" / PROPAGATION_RUN)
    segment_folder(
        predictor, images, folder, model, as_published(), progress_bar=progress_bar, **profiled
    )


def _trial(found: FLARE22Scans, scale: float, settings: Sequence[str]) -> str:
    """What is not as published, in words; "" where all is."""
    reasons = [f"{scale:g} of the paper's steps"] if scale != 1 else []
    if found.counts != dict(PARTS):
        counts = "/".join(str(found.counts[part]) for part in PARTS)
        published = "/".join(map(str, PARTS.values()))
        reasons.append(f"{counts} scans in place of {published}")
    if settings:
        reasons.append("settings of your own: " + ", ".join(settings))
    return "; ".join(reasons)


# --- the table ------------------------------------------------------------------------------------


def _write_results(
    out: Path,
    rows: Sequence[str],
    found: FLARE22Scans,
    trial: str,
    progress_bar: ProgressBar,
) -> str:
    """Score what has labels; write table4.csv, table4.md and organs.csv; return the Markdown."""
    import pandas as pd

    lines, organs = [], []
    for name in rows:
        for part in PREDICTED_PARTS:
            if not found.images[part]:
                continue
            costs = _costs(out / "predicted" / name / part)
            line = {"row": name, "part": part, "cases": len(found.labels[part]), "trial": trial}
            if found.labels[part]:
                scores = _scores(out, name, part, len(found.labels[part]), progress_bar)
                line |= {"dsc": scores["dsc"].mean(), "nsd": scores["nsd"].mean()}
                means = scores.groupby("class", sort=False)[["dsc", "nsd"]].mean().reset_index()
                organs.append(means.assign(row=name, part=part))
            published = ROWS[name].published if part == "validation" else float("nan")
            lines.append({**line, **costs, "published_dsc": published})
    if not lines:
        say("no validation or test scans: nothing to predict")
        return ""
    table = pd.DataFrame(lines)
    _save(table, out / f"{TABLE}.csv")
    if organs:
        _save(pd.concat(organs)[["row", "part", "class", "dsc", "nsd"]], out / ORGANS)
    text = _markdown(table, trial)
    write_text(out / f"{TABLE}.md", text + "\n")
    return text


def read_results(out: Path) -> str:
    """The table of an earlier call; "" without one.

    Args:
        out: Folder of the study.

    Returns:
        Markdown.
    """
    path = out / f"{TABLE}.md"
    return path.read_text(encoding="utf-8").rstrip() if path.exists() else ""


def _save(table: DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")


def _scores(out: Path, name: str, part: str, cases: int, progress_bar: ProgressBar) -> DataFrame:
    """The challenge's metrics of a row and part, a row for each case and organ."""
    folder = out / "scored" / name / part
    known = folder / "metrics.csv"
    if known.exists():
        table = read_table_file(known, ("case", "class"), ("case",))
        if table["case"].nunique() == cases:
            return table
    return evaluate_folders(
        out / "predicted" / name / part,
        out / part / "labels",
        folder,
        labels=out / "dataset" / "dataset.json",
        tolerance_mm=FLARE22,
        convention=FLARE22,
        progress_bar=progress_bar,
    )


def _costs(folder: Path) -> dict[str, float]:
    """Means over the cases of what they cost."""
    path = folder / EFFICIENCY_TABLE
    if not path.exists():
        return {}
    return dict(read_table_file(path, ("case",), COSTS)[list(COSTS)].mean())


def _markdown(table: DataFrame, trial: str) -> str:
    """Table 4, measured beside published, and what a scan costs."""
    lines = []
    if trial:
        lines += [f"**A trial, not the paper's experiment**: {trial}.", ""]
    head = ["row", "scans", "DSC", "NSD", "published DSC", "s", "GPU MB s", "CPU % s"]
    lines += ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    digits = {"dsc": 4, "nsd": 4, "published_dsc": 3, COSTS[0]: 1, COSTS[1]: 1, COSTS[3]: 1}
    for row in table.to_dict("records"):
        cells = [_number(row.get(key), places) for key, places in digits.items()]
        lines.append("| " + " | ".join([ROWS[row["row"]].title, row["part"], *cells]) + " |")
    dsc, nsd = PUBLISHED_TEST
    lines += [
        "",
        "Means over scans and organs by the challenge's script of 2022 (convention and tolerances "
        "`flare22`); costs are means over scans, areas as in its script. The paper's final "
        f"submission on the test scans: DSC {dsc}, NSD {nsd}.",
    ]
    return "\n".join(lines)


def _number(value: Any, digits: int) -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}"
