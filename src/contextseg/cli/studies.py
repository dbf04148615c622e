"""Verbs that study methods: diagnose, reproduce, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.cli.options import Set, listed, named, settings
from contextseg.console import say
from contextseg.studies import api as studies


def diagnose(
    run: Annotated[
        Path,
        typer.Argument(help="The folder of a finished run; advice takes one with --fold 0."),
    ],
    training_cases: Annotated[
        int, typer.Option(help="How many training cases to compare with.")
    ] = 8,
    cases: Annotated[
        str,
        typer.Option(
            metavar="train|validation|test|NAMES",
            help="What to show beside training cases; default: validation, or train where none "
            "were kept.",
        ),
    ] = "",
    axes: Annotated[
        str,
        typer.Option(
            help="deployed: logits that predict; paper: the ROI's against the largest other."
        ),
    ] = "deployed",
) -> None:
    """Would context labels help? False positives and logits on unseen and training cases."""
    result = studies.diagnose(run, training_cases=training_cases, cases=cases, axes=axes)
    typer.echo(str(result))


def reproduce(
    name: Annotated[
        str, typer.Argument(help="Which; without it, the list of them.", metavar="[NAME]")
    ] = "",
    download: Annotated[
        Path | None, typer.Argument(help="The folder of the download; without it, how to get it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for everything that is made.")
    ] = None,
    run: Annotated[
        bool, typer.Option("--run", help="Start the comparison; else its command is printed.")
    ] = False,
    rows: Annotated[
        str,
        typer.Option(
            help="Rows of the paper's table, such as none,CoLab-2; default: the paper's. "
            "CoLab-2-fast is our default; 'new=CoLab-2:generator_every=5; none' gives a row "
            "settings."
        ),
    ] = "",
    masks: Annotated[
        list[str],
        typer.Option(metavar="NAME=FOLDER", help="A row with a folder's masks as context labels."),
    ] = [],  # noqa: B006  typer copies it
    scale: Annotated[
        float, typer.Option(help="Share of the paper's training steps, for a trial.")
    ] = 1.0,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial", help="Take the cases that are there and whole; leave the others out."
        ),
    ] = False,
    epochs: Annotated[
        int, typer.Option(help="Of cmunet: epochs of every slice; default: the paper's 100.")
    ] = 0,
    seeds: Annotated[
        str, typer.Option(help="Of cmunet: seeds, each a run; default: the paper's ten runs.")
    ] = "",
    trial: Annotated[
        bool,
        typer.Option("--trial", help="Of cmunet: two epochs and one seed, to see that it works."),
    ] = False,
    convention: Annotated[
        str, typer.Option(help="Whose definitions of the metrics; default: the paper's.")
    ] = "colab",
    set_: Set = [],  # noqa: B006
) -> None:
    """From a download to the tables of the papers: one command for each data set.

    Six of the CoLab paper (docs/reproduce.md), cmunet of the CMU-Net paper, of any labelled data
    set (docs/cmu-net.md), and flare22 (docs/guide/flare22.md).
    """
    result = studies.reproduce(
        name,
        download,
        output,
        run=run,
        rows=rows,
        masks=named("--masks", masks),
        scale=scale,
        partial=partial,
        epochs=epochs,
        seeds=seeds,
        trial=trial,
        convention=convention,
        **settings(set_, studies.reproduce),
    )
    typer.echo(str(result))


def simulate(
    dataset: Annotated[
        Path, typer.Argument(help="A labelled data set: nnU-Net v2, Decathlon or plain folders.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for annotator.csv, summary.md, curves.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="A run of `contextseg train --method stcn`; without it, the baselines alone."
        ),
    ] = None,
    classes: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="A class, labelled by itself, as often as needed; default: all."
        ),
    ] = [],  # noqa: B006
    ways: Annotated[
        str,
        typer.Option(
            help="propagation, combined, interpolation, nearest, network; "
            "default: all but the last, slow one."
        ),
    ] = "",
    start: Annotated[
        str, typer.Option(help="How the first slices are chosen: uniform, largest, suggest.")
    ] = "uniform",
    slices: Annotated[int, typer.Option(help="Labelled slices at the start.")] = 3,
    rounds: Annotated[
        int, typer.Option(help="Slices that are corrected after it, one in each round.")
    ] = 8,
    rules: Annotated[
        str, typer.Option(help="Which slice is next: worst or errors (they see the truth), advice.")
    ] = "worst,advice",
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    cases: Annotated[
        int | None, typer.Option(help="At most so many test cases, in their order.")
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Of the NSD.")] = 2.0,
    goal: Annotated[float, typer.Option(help="A Dice: how many slices reach it?")] = 0.9,
    steps: Annotated[
        int, typer.Option(help="Of training, for --ways network and --chain, in each round.")
    ] = 300,
    seed: Annotated[int, typer.Option(help="Of --ways network; the others draw nothing.")] = 0,
    chain: Annotated[
        bool,
        typer.Option(
            "--chain",
            help="The whole chain on a budget: fill, train, predict, and again on the worst.",
        ),
    ] = False,
    arms: Annotated[
        str,
        typer.Option(
            help="Of --chain: all, whole-cases, chain, chain-random, chain-size, chain-no-fill, "
            "chain-unlabelled; default: every one."
        ),
    ] = "",
    budgets: Annotated[
        str, typer.Option(help="Of --chain: shares of all slices to spend, ascending.")
    ] = "0.05,0.1,0.15",
    seeds: Annotated[str, typer.Option(help="Of --chain: each a repetition.")] = "0,1,2",
    method: Annotated[
        str, typer.Option(help="Of --chain: how chain-unlabelled trains, cps or pseudo.")
    ] = "cps",
    minutes_per_slice: Annotated[
        float, typer.Option(help="Of --chain: what a labelled slice costs.")
    ] = 1.0,
    set_: Set = [],  # noqa: B006
) -> None:
    """Simulate a person who labels slices of test cases, has the rest filled, and corrects.

    One more slice is corrected in each round.
    """
    studies.simulate(
        dataset,
        output,
        model=model,
        classes=classes,
        ways=listed(ways),
        start=listed(start),
        slices=slices,
        rounds=rounds,
        rules=listed(rules),
        plane=plane,
        cases=cases,
        tolerance_mm=tolerance_mm,
        goal=goal,
        steps=steps,
        seed=seed,
        chain=chain,
        arms=listed(arms),
        budgets=budgets,
        seeds=seeds,
        method=method,
        minutes_per_slice=minutes_per_slice,
        **settings(set_, studies.simulate),
    )
    typer.echo((output / "summary.md").read_text(encoding="utf-8"))
    say(f"every round: {output / ('chain.csv' if chain else 'annotator.csv')}")
