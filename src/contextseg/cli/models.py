"""Verbs for models: ensemble, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg import api
from contextseg.cli.options import Device, Output
from contextseg.console import say


def ensemble(
    models: Annotated[
        list[Path],
        typer.Argument(help="Folders of `run --folds`, or runs of one fold; two or more."),
    ],
    output: Output,
    device: Device = "",
) -> None:
    """Choose the model or combination, such as 2-D with 3-D, that is best by cross-validation.

    OUTPUT predicts with what was chosen; OUTPUT/candidates.csv has the scores of all.
    """
    best = api.ensemble(models, output, device=device)
    typer.echo(best.table.to_string(index=False, float_format="{:.4f}".format))
    if best.largest_of:
        say(f"largest part alone, by validation: {', '.join(best.largest_of)}")
    following = f"contextseg predict {output} --input IMAGES --output PREDICTIONS"
    say(f"chosen: {best.chosen}. Next: {following}")


def export(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Finished runs, or folders of several; several are an ensemble."),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="model.zip for contextseg; model.onnx or model.pt2 (torch.export) for others."
        ),
    ],
    licence: Annotated[
        str, typer.Option(help="The model's licence: words, or a file of text.")
    ] = "",
    note: Annotated[
        str, typer.Option(help="What the model card should say besides: words, or a file of text.")
    ] = "",
) -> None:
    """Write a trained model as one file that travels, without training data or a patient in it.

    `contextseg predict model.zip` takes it in place of a run.
    """
    made = api.export(runs, output, licence=licence, note=note)
    megabytes = made.stat().st_size / 2**20
    say(f"exported: {made} ({megabytes:.1f} MB)")
