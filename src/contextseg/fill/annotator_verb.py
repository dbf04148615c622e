"""`contextseg simulate`: how many slices somebody has to label. `cli` adds it to the others.

It is called by what it does, like the other verbs; `annotate` would promise to annotate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.console import say, watch

EPILOG = (
    "Example: contextseg simulate Dataset002_HeadNeck -o annotator --model runs/stcn --classes parotid "
    "--classes mandible --start uniform,suggest --slices 3 --rounds 8"
)


def simulate(
    dataset: Annotated[Path, typer.Argument(help="A labelled data set: nnU-Net v2, Decathlon or plain folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for annotator.csv, summary.md, curves.")],
    model: Annotated[
        Path | None, typer.Option(help="A run of `contextseg train --method stcn`; without it, the baselines alone.")
    ] = None,
    classes: Annotated[
        list[str], typer.Option(metavar="NAME", help="A class, labelled by itself, as often as needed; default: all.")
    ] = [],  # noqa: B006  typer copies it
    ways: Annotated[
        str, typer.Option(help="propagation, interpolation, nearest, network; default: all but the last, slow one.")
    ] = "",
    start: Annotated[str, typer.Option(help="How the first slices are chosen: uniform, largest, suggest.")] = "uniform",
    slices: Annotated[int, typer.Option(help="Labelled slices at the start.")] = 3,
    rounds: Annotated[int, typer.Option(help="Slices that are corrected after it, one in each round.")] = 8,
    rules: Annotated[
        str, typer.Option(help="Which slice is next: worst or errors (they see the truth), advice.")
    ] = "worst,advice",
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    cases: Annotated[int | None, typer.Option(help="At most so many test cases, in their order.")] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Of the NSD.")] = 2.0,
    goal: Annotated[float, typer.Option(help="A Dice: how many slices reach it?")] = 0.9,
    steps: Annotated[int, typer.Option(help="Of training, for --ways network, in each round.")] = 300,
    seed: Annotated[int, typer.Option(help="Of --ways network; the others draw nothing.")] = 0,
) -> None:
    """Simulate a person who labels slices of test cases, has the rest filled, corrects one more, and so on."""
    from contextseg.disk import replacing, write_text
    from contextseg.fill.annotator_plot import curves_chart
    from contextseg.fill.annotator_study import Study
    from contextseg.fill.annotator_study import simulate as run_study
    from contextseg.fill.annotator_summary import heading, slug, summary

    study = Study(
        dataset=str(dataset.absolute()),
        model=str(model.absolute()) if model else "",
        classes=tuple(classes),
        ways=_names(ways),
        starts=_names(start),
        rules=_names(rules),
        first=slices,
        rounds=rounds,
        plane=plane,
        tolerance_mm=tolerance_mm,
        steps=steps,
        seed=seed,
    )
    with watch("simulate") as tell:
        table, failed = run_study(study, output, cases, tell)
    if len(table):
        write_text(output / "annotator.csv", table.to_csv(index=False))
        write_text(output / "summary.md", summary(table, study, goal))
        for (begun, taught), part in table.groupby(["start", "taught"], sort=False):
            with replacing(output / f"curves-{slug(str(begun), str(taught))}.svg") as temporary:
                temporary.write_bytes(curves_chart(part, slices, heading(str(begun), str(taught))))
        typer.echo(summary(table, study, goal))
        say(f"every round: {output / 'annotator.csv'}")
    for why in failed.values():
        typer.echo(f"failed: {why}", err=True)
    if failed or not len(table):
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
