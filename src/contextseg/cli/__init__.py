"""The command line: one function per verb. Heavy imports are inside, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from contextseg import __version__
from contextseg.cli import measuring
from contextseg.cli.measuring import failures
from contextseg.cli.options import (
    Context,
    ContextClasses,
    Dataset,
    Fold,
    Json,
    Method,
    Output,
    PlanFile,
    Roi,
    Seed,
    Set,
)
from contextseg.console import say, watch
from contextseg.diagnose import verb as diagnosis
from contextseg.disk import Problem
from contextseg.fill import annotator_verb as annotating
from contextseg.fill import stages_verb as staging
from contextseg.fill import verb as filling
from contextseg.recipes.verb import EPILOG, recipe

if TYPE_CHECKING:
    from contextseg.job import Outcome
    from contextseg.run import Run
    from contextseg.settings import Settings

app = typer.Typer(
    name="contextseg",
    help="Segment organs and lesions in 3-D medical images from few labels.",
    epilog="Try it: contextseg demo --output demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog="Example: contextseg check Dataset001_Sarcoma --json > findings.json")
def check(dataset: Dataset, roi: Roi = [], as_json: Json = False) -> None:  # noqa: B006  typer copies it
    """Report every problem of a data set at once, each with its file and remedy. Exit code 1 if one is an error."""
    from contextseg.data.check import check as find
    from contextseg.data.check import to_json, to_text

    with watch("check") as tell:
        findings = find(dataset, progress=tell, roi=roi)
    typer.echo(to_json(findings) if as_json else to_text(findings))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command(
    epilog="Example: contextseg plan Dataset001_Sarcoma -o plan.json --set spacing_mm=2,1,1 --set memory_gb=12"
)
def plan(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")] = Path("plan.json"),
    roi: Roi = [],  # noqa: B006
    settings: Set = [],  # noqa: B006
) -> None:
    """Look at the data and write the plan: spacing, patch, network, normalisation. Edit it; give it to run or train."""
    from contextseg.data.cache import fingerprint
    from contextseg.data.layouts import open_dataset
    from contextseg.data.roi import restricted
    from contextseg.run import planned
    from contextseg.settings import Settings

    asked = Settings(str(dataset)).set(settings)
    data = restricted(open_dataset(dataset), roi)
    with watch("plan") as tell:
        made = planned(data, fingerprint(data, data.train, progress=tell), asked.planning)
    made.save(output)
    typer.echo(f"patch {_times(made.patch_vox)} at {_times(made.spacing_mm)} mm, batch {made.batch_size}: {output}")


@app.command(
    epilog="Example: contextseg train Dataset001_Sarcoma -o runs/plain --fold 0 --set steps=20000 --set net=resenc. "
    "On two GPUs: torchrun --nproc-per-node 2 -m contextseg train Dataset001_Sarcoma -o runs/plain"
)
def train(
    dataset: Dataset,
    output: Output,
    method: Method = "supervised",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    roi: Roi = [],  # noqa: B006
    context: Context = "",
    context_classes: ContextClasses = 2,
    settings: Set = [],  # noqa: B006
) -> None:
    """Check, plan, preprocess, train. The same command goes on where it was stopped, whatever stopped it."""
    from contextseg.job import teach

    with _ranks():
        method, settings = _split(method, context, context_classes, settings)
        teach(_run(output, _settings(dataset, method, fold, seed, roi, settings), plan))
    say(f"trained: {output}. Next: contextseg predict {output} --input IMAGES --output PREDICTIONS")


@app.command(epilog="Example: contextseg run Dataset001_Sarcoma -o runs/plain --set steps=20000")
def run(
    dataset: Dataset,
    output: Output,
    method: Method = "supervised",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    roi: Roi = [],  # noqa: B006
    context: Context = "",
    context_classes: ContextClasses = 2,
    settings: Set = [],  # noqa: B006
) -> None:
    """The whole job: check, plan, preprocess, train, predict, evaluate, report. A finished stage is not done again."""
    from contextseg.job import main_job

    with _ranks():
        method, settings = _split(method, context, context_classes, settings)
        outcome = main_job(_run(output, _settings(dataset, method, fold, seed, roi, settings), plan))
    _show(outcome)


@app.command(epilog="Example: contextseg pseudo Dataset001_Sarcoma -o runs/pseudo --models 3 --rounds 3 --set lr=0.001")
def pseudo(
    dataset: Dataset,
    output: Output,
    base: Annotated[str, typer.Option(help="What the models are: cps or supervised.")] = "cps",
    models: Annotated[int, typer.Option(help="How many must agree.")] = 2,
    rounds: Annotated[int, typer.Option(help="Of training and labelling, at most.")] = 1,
    threshold: Annotated[float, typer.Option(help="Certainty from which a pseudo label is kept, 0 to 1.")] = 0.9,
    keep: Annotated[str, typer.Option(help="What is kept: cases, or certain classes and voxels.")] = "cases",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    roi: Roi = [],  # noqa: B006
    settings: Set = [],  # noqa: B006
) -> None:
    """Learn unlabelled scans from what several models agree on; OUTPUT/qc.csv lists what to look at, worst first."""
    given = {"base": base, "models": models, "rounds": rounds, "threshold": threshold, "keep": keep}
    words = [f"{name}={value}" for name, value in given.items()]
    run(dataset, output, "pseudo", fold, seed, plan, roi, settings=[*words, *settings])


@app.command(epilog="Example: contextseg demo --output demo")
def demo(output: Output = Path("demo"), settings: Set = []) -> None:  # noqa: B006
    """The whole job on sixteen real MR scans of soft-tissue sarcoma that come with contextseg: minutes on two cores."""
    from contextseg.job import demo_settings, main_job
    from contextseg.run import Run

    say("Soft-tissue sarcoma, T1 MR, 12 scans to train and 4 to test (Vallières et al. 2015, CC BY 3.0)")
    outcome = main_job(Run(output, demo_settings().set(settings), watch))
    _show(outcome, picture=True)


@app.command(
    epilog="Example: contextseg predict runs/plain --input imagesTs --output predictions. "
    "Ensemble of folds: contextseg predict runs/fold0 runs/fold1 --input scan.nii.gz --output predictions"
)
def predict(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs; several are an ensemble (mean of their logits).")],
    images: Annotated[Path, typer.Option("--input", "-i", help="A scan, a folder of scans, or a data set's folder.")],
    output: Output,
    profile: Annotated[bool, typer.Option(help="Time and memory of each scan: efficiency.csv and a plot.")] = False,
    profile_formula: Annotated[
        str, typer.Option(help="Areas by trapezoid, or official: FLARE22's own sum.")
    ] = "trapezoid",
    settings: Set = [],  # noqa: B006
) -> None:
    """Segment scans, each on its own grid. One that cannot be read does not stop the others; what is there is kept."""
    from dataclasses import replace

    from contextseg.data.layouts import cases_in
    from contextseg.job import open_ensemble, predict_cases
    from contextseg.profile import Efficiency
    from contextseg.settings import Settings

    efficiency = Efficiency(output, profile_formula) if profile else None
    cases = cases_in(images)
    members, how = open_ensemble(runs)
    how = replace(Settings("", prediction=how).set(settings).prediction)
    with watch("predict") as tell:
        failed = predict_cases(cases, members, how, output, tell=tell, efficiency=efficiency)
    drawn = efficiency and efficiency.plot()
    say(f"{len(cases) - len(failed)} of {len(cases)} scans segmented: {output}")
    if drawn:
        say(f"what it cost: {drawn.with_name('efficiency.csv')} and {drawn.name}")
    failures(failed)


app.command(epilog=measuring.EVALUATE)(measuring.evaluate)
app.command(epilog=measuring.COMPARE)(measuring.compare)
app.command(epilog=measuring.CURVE)(measuring.curve)
app.command(epilog=EPILOG)(recipe)
app.command(epilog=diagnosis.EPILOG)(diagnosis.diagnose)
app.command(epilog=filling.EPILOG)(filling.propagate)
app.command(epilog=staging.EPILOG)(staging.two_stage)
app.command(epilog=annotating.EPILOG)(annotating.simulate)


@app.command(epilog="Example: contextseg report runs/plain")
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished `contextseg run` or `demo`.")]) -> None:
    """Draw a run's report again from its table, logs and predictions."""
    from contextseg.job import report_again

    typer.echo(report_again(run))


# --- what the verbs share ---------------------------------------------------------------------------------------------


def _split(method: str, context: str, classes: int, assignments: list[str]) -> tuple[str, list[str]]:
    """The method and settings that `--context` stands for. Raises `Problem` beside another method."""
    if not context:
        return method, assignments
    if method != "supervised":
        raise Problem(f"--context {context}", f"method {method} was asked for as well", "give one of the two")
    if context == "colab":
        return context, [f"context_classes={classes}", *assignments]
    return "context", [f"context={context}", f"context_classes={classes}", *assignments]


def _settings(dataset: Path, method: str, fold: str, seed: int, roi: list[str], assignments: list[str]) -> Settings:
    from contextseg.settings import UNDECIDED, Settings

    words = {"auto": UNDECIDED, "all": -1}
    if fold not in words and not fold.isdecimal():
        raise Problem(f"--fold {fold}", "not a fold", "give 0 to 4, all, or auto")
    number = words[fold] if fold in words else int(fold)
    return Settings(str(dataset.absolute()), method, number, seed, roi=tuple(roi)).set(assignments)


def _run(output: Path, settings: Settings, plan: Path | None) -> Run:
    from contextseg.data.plan import Plan
    from contextseg.job import settled
    from contextseg.run import Run

    run = Run(output, settled(settings), watch)
    if plan:
        run.use_plan(Plan.load(plan))
    return run


@contextmanager
def _ranks() -> Iterator[None]:
    """Join the other processes of `torchrun`, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _times(numbers: Any) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def _show(outcome: Outcome, picture: bool = False) -> None:
    """The end of a job: the table, and where everything is."""
    if int(os.environ.get("RANK", 0)):
        return
    if outcome.table is None or outcome.report is None:
        say(f"predictions: {outcome.predictions} (no reference to compare them with)")
        return
    import pandas as pd

    from contextseg.report import summary_markdown

    typer.echo("\n" + summary_markdown(pd.read_csv(outcome.table, dtype={"case": str, "class": str})) + "\n")
    typer.echo(f"table        {outcome.table}")
    typer.echo(f"predictions  {outcome.predictions}")
    if outcome.picture:
        typer.echo(f"picture      {outcome.picture}")
    typer.echo(f"report       {outcome.report}")


def main() -> NoReturn:
    """Run the command line; a `Problem` is one message on stderr and exit code 1, a stopped run is 143."""
    try:
        app(standalone_mode=True)
    except Problem as problem:
        typer.echo(f"contextseg: {problem}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ != "Stopped":
            raise
        typer.echo(f"contextseg: {error}", err=True)
        sys.exit(143)
    sys.exit(0)
