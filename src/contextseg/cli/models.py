"""Verbs for models: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg import api
from contextseg.console import say


def export(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs; several are an ensemble.")],
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
