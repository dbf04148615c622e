"""The verbs that measure: one prediction folder, a grid of methods, a curve of label budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.cli.options import Dataset, Output, Roi, Set
from contextseg.console import say, watch

EVALUATE = "Example: contextseg evaluate predictions labelsTs -o scores --tolerance-mm 1"
COMPARE = (
    "Example: contextseg compare Dataset001_Sarcoma -o compared --methods plain=supervised "
    "--methods residual=supervised:net=resenc --seeds 0,1,2 --budgets 5,10,all --set steps=20000"
)
CURVE = (
    "Example: contextseg curve Dataset002_HeadNeck -o curve --methods plain=supervised --methods cps=cps "
    "--budgets 2,5,10,20,all --goal 0.7 --set steps=20000"
)

Methods = Annotated[
    list[str], typer.Option(metavar="NAME=METHOD:SETTING=VALUE,...", help="What to compare, as often as needed.")
]
Seeds = Annotated[str, typer.Option(help="Seeds, each a run.")]
Folds = Annotated[str, typer.Option(help="Folds to validate on, such as 0,1, or all; default: as for run.")]
Jobs = Annotated[int, typer.Option(help="Runs at a time.")]
Cluster = Annotated[str, typer.Option(help="slurm, or local: run by submitit (pip install contextseg[cluster]).")]
ClusterSet = Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="submitit's parameters.")]
Other = Annotated[
    list[str], typer.Option(metavar="NAME=PATH", help="Another tool's predictions or summary.json, as a row.")
]
Test = Annotated[bool, typer.Option(help="Score the test split: once for each run, logged. Off while choosing.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="What will run, and about how long.")]


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps, from any tool.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps with the same names.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for metrics.csv, summary.json, calibration.csv.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A dataset.json with the classes' names; otherwise every value is a class.")
    ] = None,
    roi: Roi = [],  # noqa: B006  typer copies it
    tolerance_mm: Annotated[
        str, typer.Option(metavar="MM", help="Of the NSD; by class: liver=5,aorta=2, or 1,liver=5: 1 for the others.")
    ] = "2",
    convention: Annotated[str, typer.Option(help="Whose definitions; docs/measuring.md lists them.")] = "default",
    compare_conventions: Annotated[
        bool, typer.Option("--compare-conventions", help="How much of a difference is convention: all of them.")
    ] = False,
) -> None:
    """Compare two folders of label maps: Dice, sensitivity, precision, HD95 and NSD in mm, per case and class."""
    from contextseg import experiments
    from contextseg.data.layouts import open_dataset
    from contextseg.data.roi import restricted
    from contextseg.experiments.tables import conventions_markdown
    from contextseg.report import summary_markdown

    found = experiments.pairs(predictions, references)
    data = restricted(open_dataset(labels.parent if labels.is_file() else labels), roi) if labels else None
    regions = (
        {n: [data.values[k] for k in u] for n, u in data.regions.items()} if data else experiments.regions_of(found)
    )
    ignore, tolerance = data.ignore if data else None, experiments.tolerances(tolerance_mm, regions)
    if compare_conventions:
        with watch("evaluate") as tell:
            frame, failed = experiments.compare_conventions(
                found, regions, ignore=ignore, tolerance_mm=tolerance, progress=tell
            )
        typer.echo(conventions_markdown(frame))
        failures(failed)
        return
    with watch("evaluate") as tell:
        table, failed = experiments.evaluate(
            found, regions, ignore=ignore, tolerance_mm=tolerance, convention=convention, progress=tell
        )
    if len(table):
        typer.echo(summary_markdown(table))
        if output:
            experiments.save_table(table, output)
            sure, unclear = experiments.calibration(found, regions, ignore=ignore)
            experiments.save_calibration(sure, output)
            failed |= unclear
            say(f"per case: {output / 'metrics.csv'}")
    failures(failed)


def compare(
    dataset: Dataset,
    output: Output,
    methods: Methods,
    seeds: Seeds = "0,1,2",
    budgets: Annotated[str, typer.Option(help="Labelled patients to learn from, such as 5,10,all; nested.")] = "",
    folds: Folds = "",
    roi: Roi = [],  # noqa: B006
    settings: Set = [],  # noqa: B006
    jobs: Jobs = 1,
    cluster: Cluster = "",
    cluster_set: ClusterSet = [],  # noqa: B006
    other: Other = [],  # noqa: B006
    test: Test = True,
    metrics: Annotated[str, typer.Option(help="What is shown and tested.")] = "dsc,nsd,hd95_mm",
    dry_run: DryRun = False,
) -> None:
    """Train, predict and score a grid of runs, and test the differences. The same command goes on where it stopped."""
    from contextseg.compare import asked, forecast, named
    from contextseg.compare import compare as compare_all

    grid = asked(dataset.absolute(), output, methods, seeds, budgets, folds, settings, roi)
    if dry_run:
        typer.echo(forecast(grid, test=test, watch=watch))
        return
    made = compare_all(
        grid,
        jobs=jobs,
        cluster=cluster or None,
        options=named("--cluster-set", cluster_set),
        others=named("--other", other),
        test=test,
        metrics=[name.strip() for name in metrics.split(",")],
        watch=watch,
    )
    for split, page in made.pages.items():
        typer.echo(f"\n{split}\n\n{page.read_text(encoding='utf-8')}")
    typer.echo(f"every case  {made.table}\nreport      {made.report}")


def curve(
    dataset: Dataset,
    output: Output,
    methods: Methods,
    budgets: Annotated[str, typer.Option(help="Labelled patients to learn from; nested.")] = "2,5,10,all",
    seeds: Seeds = "0,1,2",
    folds: Folds = "",
    goal: Annotated[
        list[float], typer.Option(help="A Dice: how many labelled patients reach it? As often as needed.")
    ] = [0.7, 0.8, 0.9],  # noqa: B006
    roi: Roi = [],  # noqa: B006
    settings: Set = [],  # noqa: B006
    jobs: Jobs = 1,
    cluster: Cluster = "",
    cluster_set: ClusterSet = [],  # noqa: B006
    test: Test = True,
    dry_run: DryRun = False,
) -> None:
    """Label efficiency: Dice and NSD against the number of labelled patients; the other scans count as unlabelled."""
    import pandas as pd

    from contextseg.experiments.learning import needed_text

    compare(
        dataset, output, methods, seeds, budgets, folds, roi, settings, jobs, cluster, cluster_set, [], test,
        dry_run=dry_run,
    )  # fmt: skip
    for path in sorted(output.glob("*-curve.csv")):
        rows = pd.read_csv(path, dtype={"method": str})
        text = needed_text(rows[rows["metric"] == "dsc"], goal)
        typer.echo(f"\n{path.stem.removesuffix('-curve')}\n\n{text}\n\n{path}")


def failures(failed: dict[str, str]) -> None:
    """Name what failed on stderr and end with exit code 1; nothing if nothing did."""
    if failed:
        typer.echo(f"{len(failed)} failed:", err=True)
        for why in failed.values():
            typer.echo(f"  {why}", err=True)
        raise typer.Exit(1)
