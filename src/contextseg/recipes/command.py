"""The comparison to run for a recipe, what a person should know of it, and its results beside the published ones."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contextseg.disk import Problem, did_you_mean
from contextseg.recipes.table import COMMON_NOTES, RECIPES, ROWS, Recipe

if TYPE_CHECKING:
    from pandas import DataFrame

    from contextseg.recipes.arrange import Arranged

SEEDS = "0,1"
PATCH_VOX, BATCH, WIDTH, STEPS_AN_EPOCH, GENERATOR_LR = 80, 2, 30, 100, 3e-4
MEASURES = {"DSC": ("dsc", 100.0), "SEN": ("sen", 100.0), "PRC": ("prc", 100.0), "HD95": ("hd95_mm", 1.0)}
"""The paper's measures: the table's column, and what it is multiplied by."""


def rows(recipe: Recipe, masks: Mapping[str, str | Path] | None = None) -> dict[str, str]:
    """The rows of the paper's table as `compare` wants them, "NAME=METHOD:SETTING=VALUE,...", by name.

    `masks` adds one for each folder of context masks: "anatomy" drawn by people, "predicted" by a model.
    Raises `Problem` for a folder with a comma or a semicolon in its path, which a list of settings cannot hold.
    """
    made = {
        "none": "supervised",
        "kmeans": f"context:context=kmeans,context_classes={recipe.clusters}",
        "dilated": "context:context=dilated",
        **{f"CoLab-{t}": f"colab:context_classes={t},generator_lr={GENERATOR_LR}" for t in (2, 4, 6)},
    }
    for name, folder in (masks or {}).items():
        if set(str(folder)) & set(",;"):
            raise Problem(folder, "a comma or a semicolon in its path", "rename it, or link to it from another place")
        made[name] = f"context:context=anatomy,masks={folder}"
    return {name: f"{name}={method}" for name, method in made.items()}


def chosen(available: Mapping[str, str], names: str) -> list[str]:
    """Those rows that a list of names asks for, all for an empty one. Raises `Problem` for a name that is not there.

    >>> chosen({"none": "none=supervised", "dilated": "dilated=context:context=dilated"}, "none")
    ['none=supervised']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(available)
    for name in wanted:
        if name not in available:
            raise Problem(f"--rows {name}", "there is no such row", did_you_mean(name, available))
    return [available[name] for name in wanted]


def settings(recipe: Recipe, scale: float = 1.0) -> tuple[str, ...]:
    """The paper's settings as `name=value` words; `scale` shortens the training, for a trial.

    Raises `Problem` for a scale that is not positive.
    """
    if not scale > 0:
        raise Problem(f"--scale {scale}", "no length of training", "give a positive number; 1 is the paper's")
    return (
        f"training.steps={max(1, round(recipe.epochs * STEPS_AN_EPOCH * scale))}",
        "training.lr=0.01",
        f"planning.spacing_mm={','.join(f'{s:.4g}' for s in _planned_mm(recipe))}",
        f"planning.patch_vox={','.join([str(PATCH_VOX)] * 3)}",
        f"planning.batch_size={BATCH}",
        f"planning.base_width={WIDTH}",
        "prediction.mirror=false",  # so the authors' code
    )


def roi(recipe: Recipe) -> tuple[str, ...]:
    """The classes to name with `--roi`: none where all of them are segmented."""
    return () if list(recipe.roi) == list(recipe.classes) else recipe.roi


def _planned_mm(recipe: Recipe) -> list[float]:
    """The paper's spacing, but no axis twice as coarse as the finest: the planner would not halve it at once."""
    return [min(s, 1.999 * min(recipe.spacing_mm)) for s in recipe.spacing_mm]


def command(recipe: Recipe, dataset: str | Path, out: str | Path, methods: Sequence[str], words: Sequence[str]) -> str:
    """The command line that runs the comparison, over several lines, for a person to copy."""
    lines = [shlex.join(["contextseg", "compare", str(dataset), "-o", str(out), "--seeds", SEEDS])]
    lines += [shlex.join(["--roi", name]) for name in roi(recipe)]
    lines += [shlex.join(["--methods", method]) for method in methods]
    lines += [shlex.join(["--set", word]) for word in words]
    return " \\\n    ".join(lines)


# --- for people -----------------------------------------------------------------------------------------------------


def listing() -> str:
    """One line for each recipe."""
    return "\n".join(
        f"{r.name:9} {r.title}: {r.count} cases, {r.train} to train, {r.test} to test" for r in RECIPES.values()
    )


def told(made: Arranged, recipe: Recipe) -> str:
    """What was arranged, in a few lines."""
    lines = [f"{made.folder}: {len(made.train)} cases to train, {len(made.test)} to test; {made.how}"]
    if (len(made.train), len(made.test)) != (recipe.train, recipe.test):
        lines.append(f"The paper has {recipe.train} and {recipe.test}: these are not its numbers of cases.")
    reasons = list(made.left_out.values())
    kinds = [f"{reasons.count(why)} ({why})" for why in dict.fromkeys(reasons)]
    if kinds:
        lines.append(f"Left out: {'; '.join(kinds)}. split.json names them.")
    return "\n".join(lines)


def describe(recipe: Recipe) -> str:
    """All that there is to know of a recipe, as Markdown: data, layout, split, settings, command, published results."""
    split = f"that of {recipe.split_from}" if recipe.split_from else "drawn with a fixed seed, the same everywhere"
    classes = ", ".join(f"{value} {name}" for name, value in recipe.classes.items())
    organ = {"anatomy": "OUT/anatomy"} if recipe.organ else {}
    run = command(recipe, "OUT/dataset", "OUT/compared", list(rows(recipe, organ).values()), settings(recipe))
    start = f"contextseg recipe {recipe.name} DOWNLOAD -o OUT"
    return f"""\
## {recipe.name}: {recipe.title}

{recipe.source}
Licence: {recipe.licence}. Cite: {recipe.cite}.

Lay the download out so, in any folder:

```
{recipe.layout}
```

- **Labels**: {classes}; segmented: {" and ".join(recipe.roi)}.
- **Split**: {recipe.train} to train, {recipe.test} to test; {split}.
- **Grid**: {" x ".join(f"{s:g}" for s in recipe.spacing_mm[::-1])} mm, patches of {PATCH_VOX}^3, batch {BATCH}, \
{recipe.epochs} epochs of {STEPS_AN_EPOCH} batches, seeds {SEEDS}.

`{start}` checks every file, links the data set together and prints this command; with `--run` it starts it:

```
{run}
```

{published(recipe)}

{chr(10).join(f"- {note}" for note in (*recipe.notes, *COMMON_NOTES))}
"""


def published(recipe: Recipe) -> str:
    """The paper's numbers as Markdown, a table for each class."""
    return beside(recipe, None)


def beside(recipe: Recipe, table: DataFrame | None) -> str:
    """A comparison's rows beside the paper's, as Markdown, a table for each class; without one the paper's alone.

    `table` is that of `compare` (method, seed, split, class, measures); ours is the mean over the test cases, then over
    seeds, a missed lesion counting 0 and the image's diagonal (docs/measuring.md).
    """
    parts = []
    for name, paper in recipe.published.items():
        ours = {} if table is None else _means(table, name)
        heads = [*MEASURES, *(f"{m}, here" for m in MEASURES if ours)]
        lines = [
            f"Published (Li et al. 2023) for the {name}: per cent, and HD95 in mm"
            + ("; beside them, what was measured here." if ours else "."),
            "",
            "| row | " + " | ".join(heads) + " |",
            "|---|" + "--:|" * len(heads),
        ]
        names = [*(row for row in ROWS if row in paper or row in ours), *(row for row in ours if row not in ROWS)]
        for row in names:
            cells = [f"{value:.1f}" for value in paper.get(row, ())] or ["-"] * len(MEASURES)
            cells += ours.get(row, ["-"] * len(MEASURES)) if ours else []
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _means(table: DataFrame, name: str) -> dict[str, list[str]]:
    """The four measures of each method on the test split."""
    part = table[(table["split"] == "test") & (table["class"] == name)]
    columns = [column for column, _ in MEASURES.values()]
    means = part.groupby(["method", "seed"], sort=False)[columns].mean().groupby("method", sort=False).mean()
    factors = [factor for _, factor in MEASURES.values()]
    return {
        str(row): [f"{v * f:.1f}" for v, f in zip(values, factors)] for row, values in zip(means.index, means.values)
    }


def page() -> str:
    """docs/recipes.md: how a recipe is used, and every one of them."""
    head = """\
# The six data sets of the CoLab paper

Li, Kamnitsas, Ouyang, Chen, Glocker, "Context label learning: improving background class representations in semantic
segmentation", IEEE Transactions on Medical Imaging 2023 (arXiv 2212.08423), compares its method on six public data
sets. Each has a recipe here: what to download, how it lies, which cases train and test, and the one command that
measures every row of its tables. The numbers below are the paper's; none was measured with this library.

```
contextseg recipe                                  # the list
contextseg recipe lits                             # one of them
contextseg recipe lits DOWNLOAD -o OUT             # checks and links the data, prints the command
contextseg recipe lits DOWNLOAD -o OUT --run       # starts it, too; both go on where they were stopped
contextseg recipe lits DOWNLOAD -o OUT --run --partial --scale 0.01 --rows none,CoLab-2    # a trial on what is there
contextseg recipe lits DOWNLOAD -o OUT --masks predicted=FOLDER    # a row with a model's masks as context
```

Nothing is copied where a link will do. `OUT/dataset` is an nnU-Net v2 data set that any tool may use; `split.json` in
it says which case is where and why. Where a split is drawn, `patients.json` in the download, {case: patient} by the
names of the prepared cases, keeps a patient's scans together. The files of a folder of masks are called like the cases
of `OUT/dataset`. Where OUT holds finished results, the last thing printed is a table of them beside the published ones,
also in `OUT/compared/beside.md`. For several GPUs or a cluster, add `--jobs` or `--cluster` to the printed command.

| name | data | train | test | slices x pixels, mm | epochs |
|---|---|--:|--:|---|--:|
"""
    table = [
        f"| [{r.name}](#{_anchor(r)}) | {r.title} | {r.train} | {r.test} | {r.spacing_mm[0]:g} x {r.spacing_mm[1]:g} | "
        f"{r.epochs} |"
        for r in RECIPES.values()
    ]
    return head + "\n".join(table) + "\n\n" + "\n".join(describe(recipe) for recipe in RECIPES.values())


def _anchor(recipe: Recipe) -> str:
    title = f"{recipe.name} {recipe.title}".lower()
    return "".join("-" if letter == " " else letter for letter in title if letter.isalnum() or letter in " -")
