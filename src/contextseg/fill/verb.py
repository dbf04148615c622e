"""`contextseg propagate`: fill a scan from a few labelled slices. `cli` adds it to the others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg.console import say, watch
from contextseg.disk import Problem

EPILOG = "Example: contextseg propagate scan.nii.gz --labels drawn.nii.gz -o filled.nii.gz --model runs/stcn --suggest"


def propagate(
    image: Annotated[Path, typer.Argument(help="The scan; of several channels give one file that holds them all.")],
    labels: Annotated[Path, typer.Option(help="A label map on the scan's grid, in which some slices are labelled.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The filled label map.")],
    model: Annotated[
        Path | None, typer.Option(help="A run of `contextseg train --method stcn`; without it shapes are interpolated.")
    ] = None,
    way: Annotated[
        str, typer.Option(help="combined, propagation, interpolation, nearest; default: combined with --model.")
    ] = "",
    between: Annotated[
        bool, typer.Option("--between", help="Each structure's first and last slice are labelled: none lies beyond.")
    ] = False,
    stop_below: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Beyond the outermost labelled slices, stop where a smaller Dice is expected; 0: never."
        ),
    ] = 0.7,
    unlabelled: Annotated[
        int | None, typer.Option(help="The value of unlabelled voxels; default: slices without a label are unlabelled.")
    ] = None,
    plane: Annotated[str, typer.Option(help="axial, coronal or sagittal: what is labelled; auto finds it.")] = "auto",
    suggest: Annotated[bool, typer.Option("--suggest", help="Name the next slice worth labelling.")] = False,
) -> None:
    """Fill a scan from a few labelled slices, in both directions, for any class. Label one more, and call it again."""
    from contextseg.disk import write_text
    from contextseg.fill.filling import advice, fill
    from contextseg.fill.slices import labelled_slices, ranges
    from contextseg.volume import read, read_labels, write

    scan, drawn = read(image), read_labels(labels)
    if not drawn.same_grid(scan):
        raise Problem(labels, "its grid differs from the scan's", f"draw on {image}, or resample the labels onto it")
    partial = labelled_slices(drawn, unlabelled, plane)
    taught = None
    if model:
        from contextseg.run import Run

        run = Run.open(model)
        method = run.finished()
        if not method.guided:
            what = f"a run of method {run.settings.method}, which needs no labelled slices"
            raise Problem(model, what, "give a run of `contextseg train --method stcn`")
        taught = method, run.plan
    with watch("propagate") as tell:
        ends = ranges(partial) if between else None
        filled = fill(scan, partial, taught, way, ends, stop_below, lambda done, of: tell(done, of, {}))
    write(output, filled.label)
    rows = [
        f"{i},{'yes' if i in partial.slices else 'no'},{'' if sure != sure else f'{sure:.4f}'}"
        for i, sure in enumerate(filled.confidence.tolist())
    ]
    table = output.with_name(output.name.split(".")[0] + "-slices.csv")
    write_text(table, "\n".join(["slice,labelled,confidence", *rows]) + "\n")
    say(f"{len(partial.slices)} labelled slices of {len(filled.confidence)}: {output}; slice by slice: {table}")
    if suggest:
        place, why = advice(filled, partial)
        typer.echo(f"label slice {place} next: {why}")
