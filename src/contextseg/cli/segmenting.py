"""Verbs that segment scans: predict, propagate, two-stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contextseg import api
from contextseg.cli.options import Device, Images, Model, Output, Series, Set, settings
from contextseg.console import progress_bar, say
from contextseg.errors import plural


def predict(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Finished runs, exported models or nnU-Net's models; several are an ensemble "
            "(mean of their logits)."
        ),
    ],
    images: Images,
    output: Output,
    profile: Annotated[
        bool, typer.Option(help="Time and memory of each scan: efficiency.csv and a plot.")
    ] = False,
    profile_formula: Annotated[
        str, typer.Option(help="Areas by trapezoid, or official: FLARE22's own sum.")
    ] = "trapezoid",
    classes: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="Segment this class alone, as often as needed; default: all."
        ),
    ] = [],  # noqa: B006  typer copies it
    save_probabilities: Annotated[
        bool,
        typer.Option(
            "--save-probabilities",
            help="The probability of each class on the scan's grid: probabilities/CASE/CLASS.",
        ),
    ] = False,
    save_contexts: Annotated[
        bool,
        typer.Option(
            "--save-contexts",
            help="Context classes of a CoLab or context method, as label maps: contexts/CASE.",
        ),
    ] = False,
    class_files: Annotated[
        bool, typer.Option("--class-files", help="A mask of each class, too: classes/CASE/CLASS.")
    ] = False,
    statistics: Annotated[
        bool,
        typer.Option(
            "--statistics",
            help="Volume and intensities of each class: statistics.csv.",
        ),
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="1/4: the first of four parts, which processes may do at once."
        ),
    ] = "",
    series: Series = "",
    device: Device = "",
    set_: Set = [],  # noqa: B006
) -> None:
    """Segment scans, each on its own grid.

    One that cannot be read does not stop the others; what is there is kept.
    """
    chosen = {"device": device, **settings(set_, api.load, also=["device"])}
    made = api.load(*runs, **chosen).predict_folder(
        images,
        output,
        series=series,
        classes=classes,
        save_probabilities=save_probabilities,
        save_contexts=save_contexts,
        class_files=class_files,
        statistics=statistics,
        part=part,
        profile=profile,
        profile_formula=profile_formula,
        progress_bar=progress_bar,
    )
    say(f"{plural(len(made), 'scan')} segmented{f', part {part}' if part else ''}: {output}")
    if statistics:
        say(f"volumes and intensities: {output / 'statistics.csv'}")
    if profile:
        say(f"what it cost: {output / 'efficiency.csv'}")


def propagate(
    image: Annotated[
        Path,
        typer.Argument(help="The scan; of several channels give one file that holds them all."),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            help="A label map on the scan's grid, in which some slices are labelled; also "
            ".seg.nrrd, DICOM SEG or RTSTRUCT."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The filled label map; .seg.nrrd holds names and colours."
        ),
    ],
    model: Model = None,
    way: Annotated[
        str,
        typer.Option(
            help="combined (network and shapes, the default), propagation, interpolation, nearest."
        ),
    ] = "",
    between: Annotated[
        bool,
        typer.Option(
            "--between",
            help="Each structure's first and last slice are labelled: none lies beyond.",
        ),
    ] = False,
    stop_below: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Beyond the outermost labelled slices, stop where a smaller Dice is expected; "
            "0: never.",
        ),
    ] = 0.7,
    unlabelled: Annotated[
        int | None,
        typer.Option(
            help="The value of unlabelled voxels; default: slices without a label are unlabelled."
        ),
    ] = None,
    plane: Annotated[
        str, typer.Option(help="axial, coronal or sagittal: what is labelled; auto finds it.")
    ] = "auto",
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="A labelled slice that lacks a class says that it is not there; else nothing.",
        ),
    ] = False,
    previous: Annotated[
        str,
        typer.Option(
            help="The filled map that --labels is a corrected copy of; auto finds it, none: as "
            "drawn."
        ),
    ] = "auto",
    series: Series = "",
    suggest: Annotated[
        bool, typer.Option("--suggest", help="Name the next slice worth labelling.")
    ] = False,
) -> None:
    """Fill a scan from a few labelled slices, in both directions, for any class.

    Label one more, or correct the filled map, and call it again.
    """
    filled = api.propagate(
        image,
        labels,
        output,
        model=model,
        way=way,
        between=between,
        stop_below=stop_below,
        unlabelled=unlabelled,
        plane=plane,
        complete=complete,
        previous=previous,
        series=series,
    )
    slices = f"{plural(len(filled.labelled.slices), 'labelled slice')} of {len(filled.confidence)}"
    from contextseg.propagation import slices_file

    say(f"{slices}: {output}; slice by slice: {slices_file(output)}")
    if suggest:
        place, why = filled.suggestion
        typer.echo(f"label {filled.describe_slice(place)} next: {why}")


def two_stage(
    reference: Annotated[
        Path, typer.Argument(help="A finished run; a 2-D one looks at the sampled slices alone.")
    ],
    images: Images,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the label maps and two-stage.csv.")
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            help="A run of `contextseg train --method stcn`; default: the network that comes with "
            "the package."
        ),
    ] = None,
    every: Annotated[int, typer.Option(help="Look at every so many slices, or closer.")] = 5,
    most: Annotated[int, typer.Option(help="Slices looked at at most; 0 for no limit.")] = 0,
    select: Annotated[
        str,
        typer.Option(
            help="largest, certain, covering, presence, all; "
            "default: largest, or without --model all."
        ),
    ] = "",
    slices: Annotated[int, typer.Option(help="Reference slices of each class.")] = 1,
    recover: Annotated[
        bool,
        typer.Option(
            "--recover/--no-recover",
            help="Look once more, in between, for a class that no slice shows.",
        ),
    ] = True,
    bounded: Annotated[
        bool, typer.Option(help="Fill a class only up to the slices looked at that do not hold it.")
    ] = True,
    way: Annotated[
        str,
        typer.Option(
            help="propagation (the network), combined, interpolation (shapes alone), nearest; "
            "default: propagation."
        ),
    ] = "",
    stop_below: Annotated[
        float,
        typer.Option(
            help="With --model: beyond the outermost slices, stop where a smaller Dice is "
            "expected; 0 never stops."
        ),
    ] = 0.7,
    top_k: Annotated[
        int, typer.Option(help="With --model: memorised positions that are read; 0 for all.")
    ] = 20,
    memory_every: Annotated[
        int, typer.Option(help="With --model: of the filled slices, every so many are memorised.")
    ] = 5,
    merge: Annotated[
        str,
        typer.Option(
            metavar="nearer|sum",
            help="With --model: where two walks meet, the nearer counts more, or both alike.",
        ),
    ] = "nearer",
    published: Annotated[
        bool, typer.Option("--published", help="All of these as the paper and its code have them.")
    ] = False,
    profile: Annotated[
        bool, typer.Option(help="Time and memory of each scan: efficiency.csv and a plot.")
    ] = False,
    profile_formula: Annotated[
        str, typer.Option(help="Areas by trapezoid, or official: FLARE22's own sum.")
    ] = "trapezoid",
    set_: Set = [],  # noqa: B006
) -> None:
    """Segment scans in two stages: a run labels some slices, the best of them fill the rest.

    What is there is kept. OUTPUT/two-stage.csv says for each class where it was found, and flags
    what was missed.
    """
    made = api.two_stage(
        reference,
        images,
        output,
        model=model,
        every=every,
        most=most,
        select=select,
        slices=slices,
        recover=recover,
        bounded=bounded,
        way=way,
        stop_below=stop_below,
        top_k=top_k,
        memory_every=memory_every,
        merge=merge,
        published=published,
        profile=profile,
        profile_formula=profile_formula,
        **settings(set_, api.two_stage),
    )
    table = output / "two-stage.csv"
    say(f"{plural(len(made), 'scan')} segmented: {output}; class by class: {table}")
