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
from contextseg.console import say, watch
from contextseg.disk import Problem

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
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan to use, made by `contextseg plan` and edited.")]
Set = Annotated[list[str], typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as often as needed.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog="Example: contextseg check Dataset001_Sarcoma --json > findings.json")
def check(dataset: Dataset, as_json: Json = False) -> None:
    """Report every problem of a data set at once, each with its file and remedy. Exit code 1 if one is an error."""
    from contextseg.data.check import check as find
    from contextseg.data.check import to_json, to_text

    with watch("check") as tell:
        findings = find(dataset, progress=tell)
    typer.echo(to_json(findings) if as_json else to_text(findings))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command(
    epilog="Example: contextseg plan Dataset001_Sarcoma -o plan.json --set spacing_mm=2,1,1 --set memory_gb=12"
)
def plan(
    dataset: Dataset,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the plan.")] = Path("plan.json"),
    settings: Set = [],  # noqa: B006  typer copies it
) -> None:
    """Look at the data and write the plan: spacing, patch, network, normalisation. Edit it; give it to run or train."""
    from contextseg.data.cache import fingerprint
    from contextseg.data.layouts import open_dataset
    from contextseg.run import planned
    from contextseg.settings import Settings

    asked = Settings(str(dataset)).set(settings)
    data = open_dataset(dataset)
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
    settings: Set = [],  # noqa: B006
) -> None:
    """Check, plan, preprocess, train. The same command goes on where it was stopped, whatever stopped it."""
    from contextseg.job import teach

    with _ranks():
        teach(_run(output, _settings(dataset, method, fold, seed, settings), plan))
    say(f"trained: {output}. Next: contextseg predict {output} --input IMAGES --output PREDICTIONS")


@app.command(epilog="Example: contextseg run Dataset001_Sarcoma -o runs/plain --set steps=20000")
def run(
    dataset: Dataset,
    output: Output,
    method: Method = "supervised",
    fold: Fold = "auto",
    seed: Seed = 0,
    plan: PlanFile = None,
    settings: Set = [],  # noqa: B006
) -> None:
    """The whole job: check, plan, preprocess, train, predict, evaluate, report. A finished stage is not done again."""
    from contextseg.job import main_job

    with _ranks():
        outcome = main_job(_run(output, _settings(dataset, method, fold, seed, settings), plan))
    _show(outcome)


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
    settings: Set = [],  # noqa: B006
) -> None:
    """Segment scans, each on its own grid. One that cannot be read does not stop the others; what is there is kept."""
    from dataclasses import replace

    from contextseg.data.layouts import cases_in
    from contextseg.job import open_ensemble, predict_cases
    from contextseg.settings import Settings

    cases = cases_in(images)
    members, how = open_ensemble(runs)
    how = replace(Settings("", prediction=how).set(settings).prediction)
    with watch("predict") as tell:
        failed = predict_cases(cases, members, how, output, tell=tell)
    say(f"{len(cases) - len(failed)} of {len(cases)} scans segmented: {output}")
    _failures(failed)


@app.command(epilog="Example: contextseg evaluate predictions labelsTs -o scores --tolerance-mm 1")
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted label maps, from any tool.")],
    references: Annotated[Path, typer.Argument(help="Folder of reference label maps with the same names.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for metrics.csv and summary.json.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A dataset.json with the classes' names; otherwise every value is a class.")
    ] = None,
    tolerance_mm: Annotated[float, typer.Option(help="Tolerance of the normalised surface distance.")] = 2.0,
    convention: Annotated[str, typer.Option(help="Whose definitions; docs/measuring.md lists them.")] = "default",
    compare_conventions: Annotated[
        bool, typer.Option("--compare-conventions", help="How much of a difference is convention: all of them.")
    ] = False,
) -> None:
    """Compare two folders of label maps: Dice, sensitivity, precision, HD95 and NSD in mm, per case and class."""
    from contextseg import experiments
    from contextseg.data.layouts import open_dataset
    from contextseg.experiments.tables import conventions_markdown
    from contextseg.report import summary_markdown

    found = experiments.pairs(predictions, references)
    data = open_dataset(labels.parent if labels.is_file() else labels) if labels else None
    regions = (
        {n: [data.values[k] for k in u] for n, u in data.regions.items()} if data else experiments.regions_of(found)
    )
    ignore = data.ignore if data else None
    if compare_conventions:
        with watch("evaluate") as tell:
            frame, failed = experiments.compare_conventions(
                found, regions, ignore=ignore, tolerance_mm=tolerance_mm, progress=tell
            )
        typer.echo(conventions_markdown(frame))
        _failures(failed)
        return
    with watch("evaluate") as tell:
        table, failed = experiments.evaluate(
            found, regions, ignore=ignore, tolerance_mm=tolerance_mm, convention=convention, progress=tell
        )
    if len(table):
        typer.echo(summary_markdown(table))
        if output:
            experiments.save_table(table, output)
            say(f"per case: {output / 'metrics.csv'}")
    _failures(failed)


@app.command(
    epilog="Example: contextseg compare Dataset001_Sarcoma -o compared --methods plain=supervised "
    "--methods residual=supervised:net=resenc --seeds 0,1,2 --budgets 5,10,all --set steps=20000"
)
def compare(
    dataset: Dataset,
    output: Output,
    methods: Annotated[
        list[str], typer.Option(metavar="NAME=METHOD:SETTING=VALUE,...", help="What to compare, as often as needed.")
    ],
    seeds: Annotated[str, typer.Option(help="Seeds, each a run.")] = "0,1,2",
    budgets: Annotated[str, typer.Option(help="Labelled patients to learn from, such as 5,10,all; nested.")] = "",
    folds: Annotated[str, typer.Option(help="Folds to validate on, such as 0,1, or all; default: as for run.")] = "",
    settings: Set = [],  # noqa: B006
    jobs: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    cluster: Annotated[
        str, typer.Option(help="slurm, or local: run by submitit (pip install contextseg[cluster]).")
    ] = "",
    cluster_set: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="submitit's parameters.")] = [],  # noqa: B006
    other: Annotated[
        list[str], typer.Option(metavar="NAME=PATH", help="Another tool's predictions or summary.json, as a row.")
    ] = [],  # noqa: B006
    test: Annotated[
        bool, typer.Option(help="Score the test split: once for each run, logged. Off while choosing.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="What will run, and about how long.")] = False,
) -> None:
    """Train, predict and score a grid of runs, and test the differences. The same command goes on where it stopped."""
    from contextseg.compare import asked, forecast, named
    from contextseg.compare import compare as compare_all

    grid = asked(dataset.absolute(), output, methods, seeds, budgets, folds, settings)
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
        watch=watch,
    )
    for split, page in made.pages.items():
        typer.echo(f"\n{split}\n\n{page.read_text(encoding='utf-8')}")
    typer.echo(f"every case  {made.table}\nreport      {made.report}")


@app.command(epilog="Example: contextseg report runs/plain")
def report(run: Annotated[Path, typer.Argument(help="The folder of a finished `contextseg run` or `demo`.")]) -> None:
    """Draw a run's report again from its table, logs and predictions."""
    from contextseg.job import report_again

    typer.echo(report_again(run))


# --- what the verbs share ---------------------------------------------------------------------------------------------


def _settings(dataset: Path, method: str, fold: str, seed: int, assignments: list[str]) -> Settings:
    from contextseg.settings import UNDECIDED, Settings

    words = {"auto": UNDECIDED, "all": -1}
    if fold not in words and not fold.isdecimal():
        raise Problem(f"--fold {fold}", "not a fold", "give 0 to 4, all, or auto")
    number = words[fold] if fold in words else int(fold)
    return Settings(str(dataset.absolute()), method, number, seed).set(assignments)


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


def _failures(failed: dict[str, str]) -> None:
    if failed:
        typer.echo(f"{len(failed)} failed:", err=True)
        for why in failed.values():
            typer.echo(f"  {why}", err=True)
        raise typer.Exit(1)


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
