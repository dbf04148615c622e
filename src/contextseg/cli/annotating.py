"""The verb that opens the annotator: annotate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg import api
from contextseg.cli.options import Model, Set, settings


def annotate(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A scan, a folder of scans, or a data set's folder.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for everything that is drawn and made; default: annotations.",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Annotate the scans that come with contextseg.")
    ] = False,
    model: Model = None,
    classes: Annotated[
        str,
        typer.Option(
            help="What to draw, such as tumour,liver or liver=6; default: the data set's classes."
        ),
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps to start from and correct, such as predictions."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str,
        typer.Option(
            envvar="CONTEXTSEG_TOKEN",
            help="What the page must know, 16 characters or more; default: a new one.",
        ),
    ] = "",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    monai: Annotated[
        bool, typer.Option("--monai", help="Answer MONAI Label's clients, such as 3D Slicer.")
    ] = False,
    set_: Set = [],  # noqa: B006  typer copies it
) -> None:
    """Draw a few slices of each scan in the browser; the others are filled.

    The page opens on this machine alone. Every stroke is saved at once; the same command goes on
    where it was stopped. --set is for the training that the page can start.
    """
    api.annotate(
        folder,
        output,
        demo=demo,
        model=model,
        classes=[word.strip() for word in classes.split(",") if word.strip()],
        labels=labels,
        port=port,
        host=host,
        token=token,
        browser=browser,
        monai=monai,
        wait=True,
        **settings(set_, api.annotate),
    )
