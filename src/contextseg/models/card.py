"""What goes with an exported model in words: how it was trained, its card, its licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypedDict

import contextseg
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import read_scores
from contextseg.runs import Run

_LEFT_OUT = "(a path, left out)"
_NO_LICENCE = "No licence was given. Ask who made this model before you use it or pass it on.\n"


def recipe_of(run: Run) -> dict[str, Any]:
    """How a run was trained, as JSON content without paths and without names of cases.

    Args:
        run: The run.

    Returns:
        The settings, versions, date and numbers of cases.
    """
    settings = run.settings.to_json()
    labelled = settings.pop("labelled")
    del settings["dataset"]
    provenance = read_json(run.folder / "run.json", dict[str, Any]).get("provenance", {})
    return {
        "dataset": run.plan.dataset,
        "settings": _without_paths(settings),
        "cases": {**_counts(run), "labels_kept": None if labelled is None else len(labelled)},
        "steps": {name: length.last for name, length in run.lengths().items()},
        "date": provenance.get("date"),
        "versions": provenance.get("versions"),
    }


def _without_paths(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _without_paths(value) for name, value in content.items()}
    if isinstance(content, str) and ("/" in content or "\\" in content or _exists(content)):
        return _LEFT_OUT
    return content


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False


class RunSplit(TypedDict):
    """What a `split.json` says of a run's cases."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]


def _counts(run: Run) -> dict[str, int]:
    """Numbers of training cases, of those with labels, and of validation cases; {} if unknown."""
    path = run.folder / "split.json"
    if not path.exists():
        rows = read_json(run.stage_folder("preprocess") / "cases.json", dict[str, Any])
        return {"training_and_validation": len(rows)}
    content = read_json(path, RunSplit)
    training = content["training"]
    return {
        "training": len(training),
        "training_labelled": sum(row.get("label") is not None for row in training),
        "validation": len(content["validation"]),
    }


_TEXT_ENDINGS = (".txt", ".md")


def licence_text(licence: str) -> str:
    """The text of a licence.

    Args:
        licence: Words, such as "CC BY 4.0", or a file of text. "" says that none was given.

    Raises:
        ContextsegError: It is the name of a file of text that is not there.
    """
    return _words(licence) or _NO_LICENCE


def _words(text: str) -> str:
    """Words, or what a file of that name holds, ending in a line feed; "" for nothing."""
    if text.endswith(_TEXT_ENDINGS) and " " not in text and not _exists(text):
        remedy = "check the path, or give the words themselves"
        raise ContextsegError(text, "there is no such file of text", remedy)
    if _exists(text) and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8")
    return f"{text.strip()}\n" if text.strip() else ""


def card(runs: Sequence[Run], licence: str, note: str) -> str:
    """The model card, Markdown.

    Args:
        runs: The runs of the model.
        licence: Its licence, see `licence_text`.
        note: More words, or a file of text.

    Returns:
        What it segments, what it wants, how it was trained, how well it did, and its licence.
    """
    plan = runs[0].plan
    blocks = [
        f"# {plan.dataset}: {', '.join(plan.classes[1:])}",
        _words(note).strip(),
        "Segments medical images. For research: it is no medical device, and nobody has shown that "
        "it is right for patients, scanners or protocols other than those it was trained on. "
        "Look at what it makes.",
        "## Use",
        "    contextseg predict model.zip --input SCANS --output PREDICTIONS",
        f"Made with contextseg {contextseg.__version__}.",
        "## What it segments",
        _table(("class", "value in label maps"), zip(plan.classes[1:], plan.values[1:])),
        "## What it wants",
        _table(
            ("channel", "normalisation"),
            [(channel.name, channel.kind) for channel in plan.channels],
        ),
        f"Scans are turned to {plan.orientation} and resampled to "
        f"{_by(plan.spacing_mm)} mm; a patch has {_by(plan.patch_vox)} voxels.",
        "## How it was trained",
        *(_trained(run) for run in runs),
        "## How well it did",
        _scored(runs),
        "## Licence",
        licence_text(licence).strip(),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _trained(run: Run) -> str:
    recipe = recipe_of(run)
    settings = recipe["settings"]
    given = {**settings["arguments"], **settings["planning"]}
    facts = {
        "method": settings["method"],
        "steps": ", ".join(map(str, recipe["steps"].values())) or settings["training"]["steps"],
        "fold": "all" if settings["fold"] == -1 else settings["fold"],
        "seed": settings["seed"],
        **{f"cases, {name.replace('_', ' ')}": n for name, n in recipe["cases"].items() if n},
        **given,
        "date": recipe["date"],
    }
    return _table(("setting", "value"), facts.items())


def _scored(runs: Sequence[Run]) -> str:
    """Mean Dice of each class, over the cases that the runs were scored on."""
    lines = []
    for run in runs:
        path = run.stage_folder("evaluate") / "metrics.csv"
        if not path.exists():
            continue
        table = read_scores(path)
        validation = {case.name for case in run.split[1]} if _has_split(run) else set()
        kind = "validation" if set(table["case"]) <= validation else "test"
        for name, rows in table.groupby("class", sort=False):
            dice = rows["dsc"].dropna()
            mean = f"{dice.mean():.3f}" if len(dice) else "-"
            lines.append((name, kind, len(dice), mean))
    if not lines:
        return "It was not scored."
    return _table(("class", "cases of", "number of cases", "mean Dice"), lines)


def _has_split(run: Run) -> bool:
    return (run.folder / "split.json").exists()


def _by(numbers: Iterable[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _cell(value: Any) -> str:
    """A cell of a Markdown table, in which a name is no HTML and no further cell."""
    return escape(str(value), quote=False).replace("|", "\\|")


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
