"""The comparison to run for a data set of the paper, and what people read of it."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.errors import ContextsegError, plural
from contextseg.studies.reproduce.beside import published
from contextseg.studies.reproduce.rows import Rows, method_rows, select_rows
from contextseg.studies.reproduce.table import COMMON_NOTES, REPRODUCTIONS, Reproduction

if TYPE_CHECKING:
    from contextseg.studies.reproduce.arrange import Arranged

SEEDS = "0,1"
CONVENTION = "colab"
"""The convention of the metrics of the paper."""
PATCH_VOX = 80
BATCH_SIZE = 2
BASE_WIDTH = 30
STEPS_PER_EPOCH = 100


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
    rows: Rows,
    settings: Sequence[str],
    convention: str = CONVENTION,
) -> str:
    """The command line that runs the comparison, for a person to copy.

    Args:
        reproduction: The data set.
        dataset: Its folder, arranged.
        out: Folder of the comparison.
        rows: What is compared.
        settings: `name=value` words.
        convention: Whose definitions of the metrics.

    Returns:
        The command, over several lines.
    """
    lines = [shlex.join(["contextseg", "compare", str(dataset), "-o", str(out), "--seeds", SEEDS])]
    lines += [shlex.join(["--roi", name]) for name in roi_words(reproduction)]
    lines += [shlex.join(["--methods", method]) for method in rows.methods]
    lines += [shlex.join(["--largest-component", name]) for name in rows.largest]
    lines += [shlex.join(["--set", word]) for word in settings]
    lines.append(shlex.join(["--convention", convention]))
    return " \\\n    ".join(lines)


# --- for people -----------------------------------------------------------------------------------


def listing() -> str:
    """One line for each data set, and one for the table of each other paper."""
    lines = [
        f"{r.name:9} {r.title}: {plural(r.count, 'case')}, {r.train} to train, {r.test} to test"
        for r in REPRODUCTIONS.values()
    ]
    lines.append("cmunet    The table of CMU-Net: 17 scans of any labelled data set")
    lines.append(
        "flare22   13 abdominal organs in CT (FLARE22, another paper): `reproduce flare22`"
    )
    return "\n".join(lines)


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
    rows = select_rows(method_rows(r, organ), "")
    command = command_line(r, "OUT/dataset", "OUT/compared", rows, paper_settings(r))
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
contextseg reproduce lits DOWNLOAD -o OUT --rows "CoLab-2; every5=CoLab-2:generator_every=5"
```

**The rows are the paper's**: CoLab with a generator of the network's size, a look-ahead in every
step with the whole batch and patch, the updated generator's labels (Algorithm 1), its rate 0.0003,
and the argmax over all channels. A step takes more than five times the operations of a plain one
([counted](../benchmarks/LOOKAHEAD.md)). What this library does by default, at a fraction of that,
is `CoLab-2-fast` (and 4, 6), by `--rows`.
`none-largest` is the supplement's post-processing, of the predictions of `none`. A row with other
settings needs a name of its own.

Metrics are by the paper's definitions (`--convention colab`, [measuring](measuring.md)); another
convention trains nothing anew. Where settings, seeds or cases are not the paper's, as with
`--scale`, every table, the page and `beside.csv` call the numbers a trial's, and say what differs.

Nothing is copied where a link will do. `OUT/dataset` is an nnU-Net v2 data set that any tool may
use; `split.json` in it says which case is where and why. Where a split is drawn, `patients.json` in
the download, {case: patient} by the names of the prepared cases, keeps the scans of a patient
together. The files of a folder of masks are called like the cases of `OUT/dataset`. Where OUT holds
finished results, the last thing printed is a table of them beside the published ones, which is also
in `beside.md` and `beside.csv` of `OUT/compared/by-colab`. For several GPUs or a cluster, add
`--jobs` or `--cluster` to the printed command.

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
