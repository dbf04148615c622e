"""`contextseg recipe`: describe a recipe, arrange its download, run its comparison. `cli` adds it to the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contextseg.console import watch
from contextseg.disk import Problem

if TYPE_CHECKING:
    from contextseg.recipes.table import Recipe

EPILOG = "Example: contextseg recipe lits downloads/Task03_Liver -o lits --run"


def recipe(
    name: Annotated[str, typer.Argument(help="Which; without it, the list of them.", metavar="[NAME]")] = "",
    download: Annotated[
        Path | None, typer.Argument(help="The folder of the download; without it, how to get it.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for everything that is made.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Start the comparison; else its command is printed.")] = False,
    rows: Annotated[str, typer.Option(help="Rows of the paper's table, such as none,CoLab-2; default: all.")] = "",
    masks: Annotated[
        list[str], typer.Option(metavar="NAME=FOLDER", help="A row with a folder's masks as context labels.")
    ] = [],  # noqa: B006  typer copies it
    scale: Annotated[float, typer.Option(help="Share of the paper's training steps, for a trial.")] = 1.0,
    partial: Annotated[
        bool, typer.Option("--partial", help="Take the cases that are there and whole; leave the others out.")
    ] = False,
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as often as needed.")
    ] = [],  # noqa: B006
) -> None:
    """From a download to the tables of the CoLab paper: six data sets, one command each (docs/recipes.md)."""
    from contextseg.recipes import command as text
    from contextseg.recipes.table import recipe_called

    if not name:
        typer.echo(text.listing())
        return
    chosen = recipe_called(name)
    if download is None:
        typer.echo(text.describe(chosen))
        return
    if output is None:
        raise Problem("--output", "no folder to work in", "say where, as in -o OUT")
    from contextseg.recipes.arrange import ANATOMY, arrange

    out = output.absolute()
    folders = ({"anatomy": out / ANATOMY} if chosen.organ else {}) | _masks(masks)
    methods = text.chosen(text.rows(chosen, folders), rows)
    words = (*text.settings(chosen, scale), *settings)
    with watch("read") as tell:
        made = arrange(chosen, download, out, partial=partial, progress=tell)
    typer.echo(text.told(made, chosen) + "\n")
    if run:
        _compare(chosen, made.folder, out / "compared", methods, words)
    else:
        typer.echo(text.command(chosen, made.folder, out / "compared", methods, words))
    _beside(chosen, out / "compared")


def _masks(words: list[str]) -> dict[str, Path]:
    """The folders of masks by row. Raises `Problem` for one that is not there."""
    from contextseg.compare import named

    folders: dict[str, Path] = {}
    for name, folder in named("--masks", words).items():
        if not Path(folder).is_dir():
            raise Problem(folder, "there is no such folder of masks", "check the path")
        folders[name] = Path(folder).absolute()
    return folders


def _compare(chosen: Recipe, dataset: Path, folder: Path, methods: list[str], words: tuple[str, ...]) -> None:
    from contextseg.compare import asked, compare
    from contextseg.recipes.command import SEEDS, roi

    made = compare(asked(dataset, folder, methods, SEEDS, settings=words, roi=roi(chosen)), watch=watch)
    typer.echo(f"every case  {made.table}\nreport      {made.report}")


def _beside(chosen: Recipe, compared: Path) -> None:
    """Print and keep the results beside the published ones, if there are results."""
    from contextseg.disk import write_text
    from contextseg.recipes.command import beside

    table = compared / "table.csv"
    if table.exists():
        import pandas as pd

        page = beside(chosen, pd.read_csv(table, dtype={"case": str, "class": str, "method": str}))
        write_text(compared / "beside.md", page + "\n")
        typer.echo("\n" + page)
