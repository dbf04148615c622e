"""The comparison to run for a data set of the paper, and its results beside the published ones."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.errors import ContextsegError, did_you_mean, plural
from contextseg.studies.reproduce.table import COMMON_NOTES, REPRODUCTIONS, ROWS, Reproduction

if TYPE_CHECKING:
    from pandas import DataFrame

    from contextseg.studies.reproduce.arrange import Arranged

SEEDS = "0,1"
PATCH_VOX = 80
BATCH_SIZE = 2
BASE_WIDTH = 30
STEPS_PER_EPOCH = 100
GENERATOR_LR = 3e-4

PAPER_METRICS = {
    "DSC": ("dsc", 100.0),
    "SEN": ("sen", 100.0),
    "PRC": ("prc", 100.0),
    "HD95": ("hd95_mm", 1.0),
}
"""The paper's metrics: the table's column, and its factor."""


def method_rows(
    reproduction: Reproduction, masks: Mapping[str, str | Path] | None = None
) -> dict[str, str]:
    """The rows of the paper's table as methods of `compare`.

    Args:
        reproduction: The data set.
        masks: A further row for each folder of context masks, by name: "anatomy" drawn by people,
            "predicted" by a model.

    Returns:
        "NAME=METHOD:SETTING=VALUE,..." by name.

    Raises:
        ContextsegError: A folder has a comma or a semicolon in its path, which a list of settings
            cannot hold.
    """
    methods = {
        "none": "supervised",
        "kmeans": f"context:context=kmeans,context_classes={reproduction.clusters}",
        "dilated": "context:context=dilated",
    }
    for t in (2, 4, 6):
        methods[f"CoLab-{t}"] = f"colab:context_classes={t},generator_lr={GENERATOR_LR}"
    for name, folder in (masks or {}).items():
        if set(str(folder)) & set(",;"):
            what = "a comma or a semicolon in its path"
            remedy = "rename it, or link to it from another place"
            raise ContextsegError(folder, what, remedy)
        methods[name] = f"context:context=anatomy,masks={folder}"
    return {name: f"{name}={method}" for name, method in methods.items()}


def select_rows(available: Mapping[str, str], names: str) -> list[str]:
    """The rows that a list of names asks for.

    Args:
        available: The rows by name.
        names: Names with commas between. "" for all.

    Returns:
        The rows, in the order of the names.

    Raises:
        ContextsegError: There is no row of a name.

    Example:
        >>> rows = {"none": "none=supervised", "dilated": "dilated=context:context=dilated"}
        >>> select_rows(rows, "none")
        ['none=supervised']
    """
    selected = [name.strip() for name in names.split(",") if name.strip()] or list(available)
    for name in selected:
        if name not in available:
            remedy = did_you_mean(name, available)
            raise ContextsegError(f"--rows {name}", "there is no such row", remedy)
    return [available[name] for name in selected]


def paper_settings(reproduction: Reproduction, scale: float = 1.0) -> tuple[str, ...]:
    """The paper's settings as `name=value` words.

    Args:
        reproduction: The data set.
        scale: Share of the paper's training steps, for a trial.

    Returns:
        The words.

    Raises:
        ContextsegError: The scale is not positive.
    """
    if not scale > 0:
        remedy = "give a positive number; 1 is the paper's"
        raise ContextsegError(f"--scale {scale}", "no length of training", remedy)
    steps = max(1, round(reproduction.epochs * STEPS_PER_EPOCH * scale))
    spacing_mm = ",".join(f"{s:.4g}" for s in _planned_mm(reproduction))
    return (
        f"training.steps={steps}",
        "training.lr=0.01",
        f"planning.spacing_mm={spacing_mm}",
        f"planning.patch_vox={','.join([str(PATCH_VOX)] * 3)}",
        f"planning.batch_size={BATCH_SIZE}",
        f"planning.base_width={BASE_WIDTH}",
        "prediction.mirror=false",  # so the authors' code
    )


def roi_words(reproduction: Reproduction) -> tuple[str, ...]:
    """The classes to name with `--roi`; () where all of them are segmented.

    Args:
        reproduction: The data set.

    Returns:
        Names of classes.
    """
    return () if list(reproduction.roi) == list(reproduction.classes) else reproduction.roi


def _planned_mm(reproduction: Reproduction) -> list[float]:
    """The paper's spacing, but no axis twice as coarse as the finest.

    The planner would not halve such an axis at once.
    """
    finest = min(reproduction.spacing_mm)
    return [min(s, 1.999 * finest) for s in reproduction.spacing_mm]


def command_line(
    reproduction: Reproduction,
    dataset: str | Path,
    out: str | Path,
    methods: Sequence[str],
    settings: Sequence[str],
) -> str:
    """The command line that runs the comparison, for a person to copy.

    Args:
        reproduction: The data set.
        dataset: Its folder, arranged.
        out: Folder of the comparison.
        methods: Rows of `method_rows`.
        settings: `name=value` words.

    Returns:
        The command, over several lines.
    """
    lines = [shlex.join(["contextseg", "compare", str(dataset), "-o", str(out), "--seeds", SEEDS])]
    lines += [shlex.join(["--roi", name]) for name in roi_words(reproduction)]
    lines += [shlex.join(["--methods", method]) for method in methods]
    lines += [shlex.join(["--set", word]) for word in settings]
    return " \\\n    ".join(lines)


# --- for people -----------------------------------------------------------------------------------


def listing() -> str:
    """One line for each data set."""
    return "\n".join(
        f"{r.name:9} {r.title}: {plural(r.count, 'case')}, {r.train} to train, {r.test} to test"
        for r in REPRODUCTIONS.values()
    )


def arranged_text(arranged: Arranged, reproduction: Reproduction) -> str:
    """What was arranged, in a few lines.

    Args:
        arranged: The arranged data set.
        reproduction: Which data set it is.

    Returns:
        The text.
    """
    counts = (len(arranged.train), len(arranged.test))
    cases = f"{plural(counts[0], 'case')} to train, {counts[1]} to test; {arranged.split_origin}"
    lines = [f"{arranged.folder}: {cases}"]
    if counts != (reproduction.train, reproduction.test):
        published = f"{reproduction.train} and {reproduction.test}"
        lines.append(f"The paper has {published}: these are not its numbers of cases.")
    reasons = list(arranged.left_out.values())
    kinds = [f"{reasons.count(why)} ({why})" for why in dict.fromkeys(reasons)]
    if kinds:
        lines.append(f"Left out: {'; '.join(kinds)}. split.json names them.")
    return "\n".join(lines)


def describe_reproduction(reproduction: Reproduction) -> str:
    """A data set as Markdown: data, layout, split, settings, command, published results.

    Args:
        reproduction: The data set.

    Returns:
        The text.
    """
    r = reproduction
    split = "drawn with a fixed seed, the same everywhere"
    if r.split_from:
        split = f"that of {r.split_from}"
    classes = ", ".join(f"{value} {name}" for name, value in r.classes.items())
    grid = " x ".join(f"{s:g}" for s in r.spacing_mm[::-1])
    organ = {"anatomy": "OUT/anatomy"} if r.organ else {}
    methods = list(method_rows(r, organ).values())
    command = command_line(r, "OUT/dataset", "OUT/compared", methods, paper_settings(r))
    call = f"`contextseg reproduce {r.name} DOWNLOAD -o OUT`"
    facts = [
        f"**Labels**: {classes}; segmented: {' and '.join(r.roi)}.",
        f"**Split**: {r.train} to train, {r.test} to test; {split}.",
        f"**Grid**: {grid} mm, patches of {PATCH_VOX}^3, batch {BATCH_SIZE}, {r.epochs} epochs of "
        f"{STEPS_PER_EPOCH} batches, seeds {SEEDS}.",
    ]
    parts = [
        f"## {r.name}: {r.title}",
        _wrapped(r.source) + "\n" + _wrapped(f"Licence: {r.licence}. Cite: {r.cite}."),
        "Lay the download out so, in any folder:",
        f"```\n{r.layout}\n```",
        "\n".join(_item(fact) for fact in facts),
        _wrapped(
            f"{call} checks every file, links the data set together and prints this command; "
            "with `--run` it starts it:"
        ),
        f"```\n{command}\n```",
        published(r),
        "\n".join(_item(note) for note in (*r.notes, *COMMON_NOTES)),
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _item(text: str) -> str:
    return _wrapped(f"- {text}", "  ")


def published(reproduction: Reproduction) -> str:
    """The paper's numbers as Markdown.

    Args:
        reproduction: The data set.

    Returns:
        A table for each class.
    """
    return beside_published(reproduction, None)


def beside_published(reproduction: Reproduction, table: DataFrame | None) -> str:
    """The rows of a comparison beside the paper's, as Markdown.

    Measured numbers are means over the test cases, then over seeds. A missed lesion counts 0 and
    the image's diagonal (docs/measuring.md).

    Args:
        reproduction: The data set.
        table: The table of `compare`: method, seed, split, class, metrics. None: the paper's rows
            alone.

    Returns:
        A table for each class.
    """
    parts = []
    for name, paper in reproduction.published.items():
        measured = {} if table is None else _means(table, name)
        title = f"Published (Li et al. 2023) for the {name}: per cent, and HD95 in mm"
        headings = list(PAPER_METRICS)
        if measured:
            title += "; beside them, what was measured here"
            headings += [f"{metric}, here" for metric in PAPER_METRICS]
        lines = [
            f"{title}.",
            "",
            "| row | " + " | ".join(headings) + " |",
            "|---|" + "--:|" * len(headings),
        ]
        rows = [row for row in ROWS if row in paper or row in measured]
        rows += [row for row in measured if row not in ROWS]
        unknown = ["-"] * len(PAPER_METRICS)
        for row in rows:
            cells = [f"{value:.1f}" for value in paper.get(row, ())] or unknown
            if measured:
                cells = [*cells, *measured.get(row, unknown)]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _means(table: DataFrame, name: str) -> dict[str, list[str]]:
    """The paper's metrics of each method on the test split, as text."""
    part = table[(table["split"] == "test") & (table["class"] == name)]
    columns = [column for column, _ in PAPER_METRICS.values()]
    by_seed = part.groupby(["method", "seed"], sort=False)[columns].mean()
    means = by_seed.groupby("method", sort=False).mean()
    factors = [factor for _, factor in PAPER_METRICS.values()]
    return {
        str(row): [f"{value * factor:.1f}" for value, factor in zip(values, factors)]
        for row, values in zip(means.index, means.values)
    }


_HEAD = """\
# The six data sets of the CoLab paper

Li, Kamnitsas, Ouyang, Chen, Glocker, "Context label learning: improving background class
representations in semantic segmentation", IEEE Transactions on Medical Imaging 2023 (arXiv
2212.08423), compares its method on six public data sets. `contextseg reproduce` knows each of them:
what to download, how it lies, which cases train and test, and the comparison that measures every
row of the paper's tables. The numbers below are the paper's; none was measured with this library.

```
contextseg reproduce                                # the list
contextseg reproduce lits                           # one of them
contextseg reproduce lits DOWNLOAD -o OUT           # checks and links the data, prints the command
contextseg reproduce lits DOWNLOAD -o OUT --run     # runs it, too; both resume what was stopped
contextseg reproduce lits DOWNLOAD -o OUT --masks predicted=FOLDER    # a model's masks as context
contextseg reproduce lits DOWNLOAD -o OUT --run --partial --scale 0.01 --rows none,CoLab-2 # a trial
```

Nothing is copied where a link will do. `OUT/dataset` is an nnU-Net v2 data set that any tool may
use; `split.json` in it says which case is where and why. Where a split is drawn, `patients.json` in
the download, {case: patient} by the names of the prepared cases, keeps the scans of a patient
together. The files of a folder of masks are called like the cases of `OUT/dataset`. Where OUT holds
finished results, the last thing printed is a table of them beside the published ones, which is also
in `OUT/compared/beside.md`. For several GPUs or a cluster, add `--jobs` or `--cluster` to the
printed command.

| name | data | train | test | slices x pixels, mm | epochs |
|---|---|--:|--:|---|--:|
"""


def page() -> str:
    """docs/reproduce.md: how data sets of the paper are reproduced, and every one of them."""
    table = []
    for r in REPRODUCTIONS.values():
        cells = [
            f"[{r.name}](#{_anchor(r)})",
            r.title,
            str(r.train),
            str(r.test),
            f"{r.spacing_mm[0]:g} x {r.spacing_mm[1]:g}",
            str(r.epochs),
        ]
        table.append(f"| {' | '.join(cells)} |")
    descriptions = "\n".join(describe_reproduction(r) for r in REPRODUCTIONS.values())
    return _HEAD + "\n".join(table) + "\n\n" + descriptions


def _anchor(reproduction: Reproduction) -> str:
    title = f"{reproduction.name} {reproduction.title}".lower()
    letters = [letter for letter in title if letter.isalnum() or letter in " -"]
    return "".join(letters).replace(" ", "-")
