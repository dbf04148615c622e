"""Verbs that look at a data set: check, plan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from contextseg import api
from contextseg.cli.options import Dataset, Json, Roi, Set, settings


def check(dataset: Dataset, roi: Roi = [], as_json: Json = False) -> None:  # noqa: B006
    """Report every problem of a data set at once, each with its file and remedy.

    Exit code 1 if one is an error.
    """
    from contextseg.data.findings import to_json, to_text

    findings = api.check(dataset, roi=roi)
    typer.echo(to_json(findings) if as_json else to_text(findings))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def plan(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")] = Path(
        "plan.json"
    ),
    roi: Roi = [],  # noqa: B006
    set_: Set = [],  # noqa: B006
) -> None:
    """Look at the data and write the plan: spacing, patch, network, normalisation.

    Edit it; give it to run or train.
    """
    made = api.plan(dataset, output, roi=roi, **settings(set_, api.plan))
    patch, spacing = _times(made.patch_vox), _times(made.spacing_mm)
    typer.echo(f"patch {patch} at {spacing} mm, batch {made.batch_size}: {output}")


def _times(numbers: Iterable[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
