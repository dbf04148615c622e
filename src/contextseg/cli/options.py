"""The arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dataset = Annotated[
    Path, typer.Argument(help="Data set: nnU-Net v2 raw, Medical Decathlon, or a folder with images/ and labels/.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is made.")]
Method = Annotated[str, typer.Option(help="How to train; docs/methods.md lists all.")]
Fold = Annotated[
    str,
    typer.Option(
        help="0 to 4: keep that fifth for validation; all: none; auto: all if there is a labelled test split."
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same result (bit for bit on a CPU).")]
Context = Annotated[
    str, typer.Option(help="Split the background: none, kmeans, dilated, anatomy, predicted, colab; see docs/colab.md.")
]
ContextClasses = Annotated[int, typer.Option(help="Into how many classes (with --context kmeans or colab).")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan to use, made by `contextseg plan` and edited.")]
Set = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as often as needed.")]
Roi = Annotated[
    list[str], typer.Option("--roi", metavar="CLASS", help="Segment this class, as often as needed; default: all.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
