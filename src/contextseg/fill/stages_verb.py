"""`contextseg two-stage`: a reference run looks at some slices, and these fill the scan. `cli` adds it to the others.

Named after what the field calls it. "segment" would say as much of `predict`, and a "stage" is a part of a run here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.console import say, watch

EPILOG = "Example: contextseg two-stage runs/flat --input imagesTs -o filled --model runs/stcn --every 5"


def two_stage(
    reference: Annotated[Path, typer.Argument(help="A finished run; a 2-D one looks at the sampled slices alone.")],
    images: Annotated[Path, typer.Option("--input", "-i", help="A scan, a folder of scans, or a data set's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps and two-stage.csv.")],
    model: Annotated[
        Path | None, typer.Option(help="A run of `contextseg train --method stcn`; without it shapes are interpolated.")
    ] = None,
    every: Annotated[int, typer.Option(help="Look at every so many slices.")] = 5,
    select: Annotated[
        str, typer.Option(help="largest, certain, covering, presence, all; default: largest, or without --model all.")
    ] = "",
    slices: Annotated[int, typer.Option(help="Reference slices of each class.")] = 1,
    recover: Annotated[
        bool, typer.Option("--recover/--no-recover", help="Look once more, in between, for a class that was not seen.")
    ] = True,
    bounded: Annotated[
        bool, typer.Option(help="Fill a class only up to the slices looked at that do not hold it.")
    ] = True,
    way: Annotated[
        str, typer.Option(help="propagation, combined, interpolation, nearest; default: propagation with --model.")
    ] = "",
    settings: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="How the reference run predicts, as in `predict`.")
    ] = [],  # noqa: B006  typer copies it
) -> None:
    """Segment scans in two stages: a run labels some slices, the best of them fill the rest. What is there is kept.

    OUTPUT/two-stage.csv says for each class where it was found, and flags what was missed.
    """
    from dataclasses import asdict, replace

    from contextseg.data.layouts import cases_in
    from contextseg.disk import Problem
    from contextseg.fill.stages import Stages, check_runs, same_as_before, segment_cases
    from contextseg.run import Run
    from contextseg.settings import Settings

    stages = Stages(every, select=select, slices=slices, recover=recover, bounded=bounded, way=way)
    cases, run = cases_in(images), Run.open(reference)
    how = replace(Settings("", prediction=run.settings.prediction).set(settings).prediction)
    follower = Run.open(model) if model else None
    runs = (run.finished(), run.plan), (follower.finished(), follower.plan) if follower else None
    check_runs(*runs, stages)
    asked = {"reference": str(reference.resolve()), "model": str(model.resolve()) if model else ""}
    same_as_before(output, {**asked, **asdict(stages), **asdict(how)})
    with watch("two-stage") as tell:
        failed = segment_cases(cases, *runs, stages, how, output, tell)
    done = f"{len(cases) - len(failed)} of {len(cases)} scans segmented"
    say(f"{done}: {output}; class by class: {output / 'two-stage.csv'}")
    if failed:
        case, why = next(iter(failed.items()))
        raise Problem(case, f"{len(failed)} of {len(cases)} scans could not be segmented: {why}", "mend or remove them")
