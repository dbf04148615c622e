"""Verbs that measure: evaluate, compare, curve, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from contextseg import api
from contextseg.cli.options import Dataset, Output, Roi, Set, Time, listed, named, settings
from contextseg.console import say
from contextseg.studies import api as studies

Methods = Annotated[
    list[str],
    typer.Option(
        metavar="NAME=METHOD:SETTING=VALUE,...", help="What to compare, as often as needed."
    ),
]
Seeds = Annotated[str, typer.Option(help="Seeds, each a run.")]
Folds = Annotated[
    str, typer.Option(help="Folds to validate on, such as 0,1, or all; default: as for run.")
]
Jobs = Annotated[int, typer.Option(help="Runs at a time.")]
Cluster = Annotated[
    str, typer.Option(help="slurm, or local: run by submitit (pip install contextseg[cluster]).")
]
ClusterSet = Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="submitit's parameters.")]
Other = Annotated[
    list[str],
    typer.Option(metavar="NAME=PATH", help="Another tool's predictions or summary.json, as a row."),
]
Test = Annotated[
    bool, typer.Option(help="Score the test split: once for each run, logged. Off while choosing.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="What will run, and about how long.")]


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of predicted label maps, from any tool.")
    ],
    references: Annotated[
        Path, typer.Argument(help="Folder of reference label maps with the same names.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for metrics.csv, summary.json, calibration.csv."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="The classes' names: a dataset.json, .seg.nrrd, DICOM SEG or ITK-SNAP label "
            "description; otherwise every value is a class, named where the label maps say so."
        ),
    ] = None,
    roi: Roi = [],  # noqa: B006  typer copies it
    tolerance_mm: Annotated[
        str,
        typer.Option(
            metavar="MM", help="Of the NSD; by class: liver=5,aorta=2, or 1,liver=5: 1 for others."
        ),
    ] = "2",
    convention: Annotated[
        str, typer.Option(help="Whose definitions; docs/measuring.md lists them.")
    ] = "default",
    compare_conventions: Annotated[
        bool,
        typer.Option(
            "--compare-conventions", help="How much of a difference is convention: all of them."
        ),
    ] = False,
    only_predicted: Annotated[
        bool,
        typer.Option(
            "--only-predicted",
            help="Leave out references without a prediction; otherwise they count as missed.",
        ),
    ] = False,
) -> None:
    """Compare two folders of label maps: Dice, sensitivity, precision, HD95 and NSD in mm.

    Per case and class.
    """
    from contextseg.evaluation.folders import notices
    from contextseg.evaluation.tables import conventions_markdown
    from contextseg.reports import summary_markdown

    result = api.evaluate(
        predictions,
        references,
        output,
        labels=labels,
        roi=roi,
        tolerance_mm=tolerance_mm,
        convention=convention,
        compare_conventions=compare_conventions,
        only_predicted=only_predicted,
        strict=False,
    )
    if len(result):
        to_markdown = conventions_markdown if compare_conventions else summary_markdown
        typer.echo(to_markdown(result))
    for line in notices(result):
        say(line)
    if output and len(result) and not compare_conventions:
        say(f"per case: {output / 'metrics.csv'}")
    if failed := result.attrs["failed"]:
        typer.echo(f"{len(failed)} failed:", err=True)
        for why in failed.values():
            typer.echo(f"  {why}", err=True)
        raise typer.Exit(1)


def compare(
    dataset: Dataset,
    output: Output,
    methods: Methods,
    seeds: Seeds = "0,1,2",
    budgets: Annotated[
        str, typer.Option(help="Labelled patients to learn from, such as 5,10,all; nested.")
    ] = "",
    folds: Folds = "",
    roi: Roi = [],  # noqa: B006
    time: Time = "",
    set_: Set = [],  # noqa: B006
    jobs: Jobs = 1,
    cluster: Cluster = "",
    cluster_set: ClusterSet = [],  # noqa: B006
    other: Other = [],  # noqa: B006
    test: Test = True,
    metrics: Annotated[str, typer.Option(help="What is shown and tested.")] = "dsc,nsd,hd95_mm",
    convention: Annotated[
        str,
        typer.Option(
            help="Whose definitions, such as colab (docs/measuring.md): OUTPUT/by-NAME; nothing "
            "is trained again."
        ),
    ] = "default",
    largest_component: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A further row: this method's predictions, the largest component alone.",
        ),
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
) -> None:
    """Train, predict and score a grid of runs, and test the differences.

    The same command goes on where it stopped.
    """
    grid: dict[str, Any] = {
        "seeds": seeds,
        "budgets": budgets,
        "folds": folds,
        "roi": roi,
        "time": time,
        "test": test,
    }
    if dry_run:
        typer.echo(
            studies.forecast(dataset, output, methods, **grid, **settings(set_, studies.forecast))
        )
        return
    comparison = studies.compare(
        dataset,
        output,
        methods,
        **grid,
        jobs=jobs,
        cluster=cluster,
        cluster_set=named("--cluster-set", cluster_set),
        other=named("--other", other),
        metrics=listed(metrics),
        convention=convention,
        largest_component=largest_component,
        **settings(set_, studies.compare),
    )
    typer.echo(str(comparison))


def curve(
    dataset: Dataset,
    output: Output,
    methods: Methods,
    budgets: Annotated[
        str, typer.Option(help="Labelled patients to learn from; nested.")
    ] = "2,5,10,all",
    seeds: Seeds = "0,1,2",
    folds: Folds = "",
    goal: Annotated[
        list[float],
        typer.Option(help="A Dice: how many labelled patients reach it? As often as needed."),
    ] = [0.7, 0.8, 0.9],  # noqa: B006
    roi: Roi = [],  # noqa: B006
    time: Time = "",
    set_: Set = [],  # noqa: B006
    jobs: Jobs = 1,
    cluster: Cluster = "",
    cluster_set: ClusterSet = [],  # noqa: B006
    test: Test = True,
    dry_run: DryRun = False,
) -> None:
    """Label efficiency: Dice and NSD against the number of labelled patients.

    The other scans count as unlabelled.
    """
    grid: dict[str, Any] = {
        "seeds": seeds,
        "budgets": budgets,
        "folds": folds,
        "roi": roi,
        "time": time,
        "test": test,
    }
    if dry_run:
        typer.echo(
            studies.forecast(dataset, output, methods, **grid, **settings(set_, studies.forecast))
        )
        return
    result = studies.curve(
        dataset,
        output,
        methods,
        **grid,
        goal=goal,
        jobs=jobs,
        cluster=cluster,
        cluster_set=named("--cluster-set", cluster_set),
        **settings(set_, studies.curve),
    )
    typer.echo(str(result))


def report(
    run: Annotated[
        Path, typer.Argument(help="The folder of a finished `contextseg run` or `demo`.")
    ],
) -> None:
    """Draw a run's report again from its table, logs and predictions."""
    typer.echo(api.report(run))
