"""The command line: a thin layer over the functions of `contextseg`, one for each verb.

Heavy imports are inside those functions, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from contextseg import __version__
from contextseg.cli import (
    annotating,
    data,
    measuring,
    models,
    projecting,
    segmenting,
    studies,
    training,
)
from contextseg.errors import ContextsegError
from contextseg.inputs import reason_of
from contextseg.memory_errors import MEMORY_REMEDY, is_memory_error
from contextseg.stopping import Stopped, stop_signals

app = typer.Typer(
    name="contextseg",
    help="Segment organs and lesions in 3-D medical images from few labels.",
    epilog="Try it: contextseg demo --output demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

VERBS: tuple[tuple[str, Callable[..., None], str], ...] = (
    ("check", data.check, "contextseg check Dataset001_Sarcoma --json > findings.json"),
    (
        "plan",
        data.plan,
        "contextseg plan Dataset001_Sarcoma -o plan.json --set spacing_mm=2,1,1 --set memory_gb=12",
    ),
    (
        "train",
        training.train,
        "contextseg train Dataset001_Sarcoma -o runs/plain --fold 0 --set steps=20000 "
        "--set net=resenc. On two GPUs: torchrun --nproc-per-node 2 -m contextseg train "
        "Dataset001_Sarcoma -o runs/plain",
    ),
    (
        "run",
        training.run,
        "contextseg run Dataset001_Sarcoma -o runs/plain --time 2h. Longer: "
        "contextseg run Dataset001_Sarcoma -o runs/plain --extend --time 4h",
    ),
    (
        "pseudo",
        training.pseudo,
        "contextseg pseudo Dataset001_Sarcoma -o runs/pseudo --models 3 --rounds 3 --set lr=0.001",
    ),
    ("finish", training.finish, "contextseg finish runs/plain"),
    ("demo", training.demo, "contextseg demo --output demo"),
    (
        "annotate",
        annotating.annotate,
        "contextseg annotate scans/ -o annotations --classes tumour,liver. To look around: "
        "contextseg annotate --demo",
    ),
    (
        "predict",
        segmenting.predict,
        "contextseg predict runs/plain --input imagesTs --output predictions. Ensemble of folds: "
        "contextseg predict runs/fold0 runs/fold1 --input scan.nii.gz --output predictions",
    ),
    (
        "ensemble",
        models.ensemble,
        "contextseg ensemble runs/3d runs/2d -o runs/best, each made by contextseg run "
        "Dataset001_Sarcoma -o runs/3d --folds 0,1,2,3,4",
    ),
    (
        "export",
        models.export,
        "contextseg export runs/plain model.zip --licence 'CC BY 4.0'. For other tools: "
        "contextseg export runs/plain model.onnx",
    ),
    (
        "evaluate",
        measuring.evaluate,
        "contextseg evaluate predictions labelsTs -o scores --tolerance-mm 1",
    ),
    (
        "compare",
        measuring.compare,
        "contextseg compare Dataset001_Sarcoma -o compared --methods plain=supervised --methods "
        "residual=supervised:net=resenc --seeds 0,1,2 --budgets 5,10,all --set steps=20000",
    ),
    (
        "curve",
        measuring.curve,
        "contextseg curve Dataset002_HeadNeck -o curve --methods plain=supervised --methods "
        "cps=cps --budgets 2,5,10,20,all --goal 0.7 --set steps=20000",
    ),
    (
        "reproduce",
        studies.reproduce,
        "contextseg reproduce lits downloads/Task03_Liver -o lits --run",
    ),
    ("diagnose", studies.diagnose, "contextseg diagnose runs/plain"),
    (
        "propagate",
        segmenting.propagate,
        "contextseg propagate scan.nii.gz --labels drawn.nii.gz -o filled.nii.gz "
        "--model runs/stcn --suggest",
    ),
    (
        "two-stage",
        segmenting.two_stage,
        "contextseg two-stage runs/flat --input imagesTs -o filled --model runs/stcn --every 5",
    ),
    (
        "simulate",
        studies.simulate,
        "contextseg simulate Dataset002_HeadNeck -o annotator --model runs/stcn "
        "--classes parotid --classes mandible --start uniform,suggest --slices 3 --rounds 8",
    ),
    ("report", measuring.report, "contextseg report runs/plain"),
)
"""Name, function and example of each verb."""

for name, function, example in VERBS:
    app.command(name, epilog=f"Example: {example}")(function)
app.add_typer(projecting.project, name="project")
app.command("recipe", hidden=True)(studies.reproduce)  # what version 0.1.0 called it


@app.callback(invoke_without_command=True)
def version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Answer `--version`."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _print_every_name() -> None:
    """Print names of all languages: into files and pipes as UTF-8, whatever Windows prefers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def main() -> NoReturn:
    """Run the command line.

    A `ContextsegError` is one message on stderr and exit code 1; what was stopped is 143.
    """
    _print_every_name()
    try:
        with stop_signals():
            app(standalone_mode=True)
    except ContextsegError as error:
        typer.echo(f"contextseg: {error}", err=True)
        sys.exit(1)
    except PermissionError as error:
        where = f"{error.filename}: " if error.filename else ""
        remedy = "change its permissions, or choose another file or folder"
        typer.echo(f"contextseg: {where}no permission to use it. Remedy: {remedy}", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        # Where nothing nearer says what to lower.
        if not is_memory_error(error):
            raise
        where, what = " ".join(sys.argv[1:2]), f"out of memory ({reason_of(error)})"
        typer.echo(f"contextseg: {ContextsegError(where, what, MEMORY_REMEDY)}", err=True)
        sys.exit(1)
    except Stopped as stopped:
        typer.echo(f"contextseg: {stopped}", err=True)
        sys.exit(143)
    sys.exit(0)
