"""Verbs that train: train, run, pseudo, finish, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contextseg import api
from contextseg.cli.options import (
    Context,
    ContextClasses,
    Dataset,
    Extend,
    Fold,
    Init,
    Method,
    Output,
    PlanFile,
    Roi,
    Seed,
    Set,
    Time,
    settings,
)
from contextseg.console import say
from contextseg.errors import ContextsegError

if TYPE_CHECKING:
    from contextseg.pipeline import Outcome


def train(
    dataset: Dataset,
    output: Output,
    method: Method = "supervised",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    init: Init = None,
    roi: Roi = [],  # noqa: B006  typer copies it
    time: Time = "",
    extend: Extend = False,
    context: Context = "",
    context_classes: ContextClasses = 2,
    set_: Set = [],  # noqa: B006
) -> None:
    """Check, plan, preprocess, train.

    The same command goes on where it was stopped, whatever stopped it.
    """
    name, more = _of_context(method, context, context_classes)
    trained = api.train(
        dataset,
        output,
        method=name,
        fold=fold,
        seed=seed,
        plan=plan,
        init=init,
        roi=roi,
        time=time,
        extend=extend,
        **more,
        **settings(set_, api.train),
    )
    following = f"contextseg predict {output} --input IMAGES --output PREDICTIONS"
    if trained.guided:
        following = f"contextseg propagate IMAGE --labels DRAWN -o FILLED --model {output}"
    say(f"trained: {output}. Next: {following}")


def run(
    dataset: Dataset,
    output: Output,
    method: Method = "supervised",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    init: Init = None,
    roi: Roi = [],  # noqa: B006
    time: Time = "",
    extend: Extend = False,
    context: Context = "",
    context_classes: ContextClasses = 2,
    set_: Set = [],  # noqa: B006
) -> None:
    """The whole job: check, plan, preprocess, train, predict, evaluate, report.

    A finished stage is not done again.
    """
    name, more = _of_context(method, context, context_classes)
    outcome = api.run(
        dataset,
        output,
        method=name,
        fold=fold,
        seed=seed,
        plan=plan,
        init=init,
        roi=roi,
        time=time,
        extend=extend,
        **more,
        **settings(set_, api.run),
    )
    _show(outcome)


def pseudo(
    dataset: Dataset,
    output: Output,
    base: Annotated[str, typer.Option(help="What the models are: cps or supervised.")] = "cps",
    models: Annotated[int, typer.Option(help="How many must agree.")] = 2,
    rounds: Annotated[int, typer.Option(help="Of training and labelling, at most.")] = 1,
    threshold: Annotated[
        float, typer.Option(help="Certainty from which a pseudo label is kept, 0 to 1.")
    ] = 0.9,
    keep: Annotated[
        str, typer.Option(help="What is kept: cases, or certain classes and voxels.")
    ] = "cases",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    init: Init = None,
    roi: Roi = [],  # noqa: B006
    time: Time = "",
    extend: Extend = False,
    set_: Set = [],  # noqa: B006
) -> None:
    """Train on unlabelled scans with the labels that several models agree on.

    OUTPUT/qc.csv lists what to look at, worst first.
    """
    own: dict[str, Any] = {
        "base": base,
        "models": models,
        "rounds": rounds,
        "threshold": threshold,
        "keep": keep,
    }
    outcome = api.run(
        dataset,
        output,
        method="pseudo",
        fold=fold,
        seed=seed,
        plan=plan,
        init=init,
        roi=roi,
        time=time,
        extend=extend,
        **{**own, **settings(set_, api.run)},
    )
    _show(outcome)


def finish(
    run: Annotated[Path, typer.Argument(help="The folder of a run whose training was stopped.")],
) -> None:
    """End a training now and use the model as it is: predict, evaluate, report.

    Also one that another process works on. The report says at which step it was stopped; the
    command of before goes on from there with --extend.
    """
    outcome = api.finish(run)
    if outcome is not None:
        _show(outcome)


def demo(output: Output = Path("demo"), time: Time = "", set_: Set = []) -> None:  # noqa: B006
    """The whole job on sixteen real MR scans of soft-tissue sarcoma: minutes on two cores.

    The scans come with contextseg.
    """
    about = "Soft-tissue sarcoma, T1 MR, 12 scans to train and 4 to test"
    say(f"{about} (Vallières et al. 2015, CC BY 3.0)")
    _show(api.demo(output, time=time, **settings(set_, api.demo)))
    say("draw such labels yourself, in the browser: contextseg annotate --demo")


def _of_context(method: str, context: str, classes: int) -> tuple[str, dict[str, Any]]:
    """The method and settings that `--context` stands for."""
    if not context:
        return method, {}
    if method != "supervised":
        what = f"method {method} was asked for as well"
        raise ContextsegError(f"--context {context}", what, "give one of the two")
    if context == "colab":
        return "colab", {"context_classes": classes}
    return "context", {"context": context, "context_classes": classes}


def _show(outcome: Outcome) -> None:
    """The end of a run: the table, and where everything is."""
    if int(os.environ.get("RANK", 0)):
        return
    if outcome.table is None:
        say(f"predictions: {outcome.predictions} (no reference to compare them with)")
        return
    from contextseg.reports import summary_markdown

    typer.echo("\n" + summary_markdown(outcome.metrics) + "\n")
    typer.echo(f"table        {outcome.table}")
    typer.echo(f"predictions  {outcome.predictions}")
    if outcome.picture:
        typer.echo(f"picture      {outcome.picture}")
    typer.echo(f"report       {outcome.report}")
