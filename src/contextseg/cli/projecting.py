"""The verb `project`, with verbs of its own: from a few labelled slices to a finished data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from contextseg import api
from contextseg.cli.options import Device, Method, Model, PlanFile, Seed, Set, listed, settings
from contextseg.console import say
from contextseg.errors import plural

Work = Annotated[Path, typer.Argument(metavar="WORK", help="The folder of the project.")]
Cases = Annotated[
    list[str] | None, typer.Argument(metavar="[CASE]...", help="Names of cases; default: all.")
]


class StatusByDefault(TyperGroup):
    """A group in which `project WORK` is `project status WORK`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the verb where a folder stands in its place.

        Args:
            ctx: The context of the command line.
            args: The words after `project`.
        """
        if args and args[0] not in self.commands and Path(args[0]).is_dir():
            args = ["status", *args]
        return super().parse_args(ctx, args)


project = typer.Typer(
    name="project",
    cls=StatusByDefault,
    help="From a few labelled slices to a finished data set, in one folder.\n\n"
    "`contextseg project WORK` says where it stands.",
    epilog="Example: contextseg project begin work --scans scans --classes tumour --test 5",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def begin_project(
    work: Work,
    scans: Annotated[
        Path,
        typer.Option(
            help="Folder of scans, or a data set, whose labels count as accepted; for a project "
            "that is there, where the scans have moved to."
        ),
    ],
    classes: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="The classes; default: those of the data set.")
    ] = "",
    test: Annotated[
        str,
        typer.Option(
            metavar="NUMBER|NAME,NAME",
            help="Cases that are locked for measuring: how many to draw, or which.",
        ),
    ] = "",
    plane: Annotated[
        str, typer.Option(help="axial, coronal or sagittal: what is drawn; auto finds it.")
    ] = "auto",
    unlabelled: Annotated[
        int | None,
        typer.Option(
            help="The value of unlabelled voxels in drawn files; "
            "default: slices without a label are unlabelled."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw of locked cases.")] = 0,
) -> None:
    """Begin a project on a folder of scans."""
    names = int(test) if test.strip().isdecimal() else listed(test)
    opened = api.project(
        work,
        scans,
        listed(classes),
        test=names,
        plane=plane,
        unlabelled=unlabelled,
        seed=seed,
    )
    typer.echo(opened.summary())
    say(f"draw some slices: contextseg project review {work}; or save {work}/drawn/CASE.nii.gz")


def status_project(
    work: Work,
    table: Annotated[bool, typer.Option("--table", help="Print a line for each case too.")] = False,
) -> None:
    """Where the project stands, and what to look at next."""
    opened = api.project(work)
    if table:
        shown = opened.status().drop(columns=["drawn", "filled"])
        typer.echo(shown.to_string(index=False))
    typer.echo(opened.summary())


def fill_project(
    work: Work,
    cases: Cases = None,
    model: Model = None,
    way: Annotated[
        str,
        typer.Option(help="combined, propagation, interpolation, nearest; default: combined."),
    ] = "",
    between: Annotated[
        bool,
        typer.Option(
            "--between", help="Each structure's first and last slice are drawn: none lies beyond."
        ),
    ] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Fill also what is filled from the same drawing already."),
    ] = False,
) -> None:
    """Fill the cases in which slices were drawn since."""
    opened = api.project(work)
    filled = opened.fill(cases or (), model=model, way=way, between=between, again=again)
    say(f"{plural(len(filled), 'case')} filled: {work / 'fills'}")


def train_project(
    work: Work,
    method: Method = "supervised",
    fills: Annotated[
        str,
        typer.Option(
            help="Fills to learn from: accepted, all, or none (drawn slices alone); "
            "drawn slices are learned from in any case."
        ),
    ] = "accepted",
    seed: Seed = 0,
    plan: PlanFile = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Begin an unfinished round anew, with the labels of now."),
    ] = False,
    set_: Set = [],  # noqa: B006  typer copies it
) -> None:
    """Train the next round on what is labelled; never on locked cases.

    The same command goes on where it was stopped.
    """
    opened = api.project(work)
    run = opened.train(
        method=method,
        fills=fills,
        seed=seed,
        plan=plan,
        restart=restart,
        **settings(set_, opened.train),
    )
    say(f"trained: {run.folder}. Next: contextseg project predict {work}")


def predict_project(work: Work, cases: Cases = None, device: Device = "") -> None:
    """Predict what the last round has not learned from, and measure it on locked cases."""
    opened = api.project(work)
    predicted = opened.predict(cases or (), device=device)
    say(f"{plural(len(predicted), 'case')} predicted")
    typer.echo(opened.summary())


def review_project(
    work: Work,
    cases: Cases = None,
    count: Annotated[int, typer.Option(help="How many cases of the worklist.")] = 5,
    order: Annotated[
        str, typer.Option(help="expected (the lowest expected Dice first), random, or size.")
    ] = "expected",
    seed: Annotated[int, typer.Option(help="Of --order random.")] = 0,
    host: Annotated[str, typer.Option(help="Address that the annotator listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    names: Annotated[
        bool, typer.Option("--names", help="Print the worklist, and open nothing.")
    ] = False,
) -> None:
    """Open the annotator on the worst predictions, or on scans without any label."""
    opened = api.project(work)
    if names:
        for name in opened.worklist(order, seed=seed):
            typer.echo(name)
        return
    shown = opened.review(
        cases or (),
        count=count,
        order=order,
        seed=seed,
        host=host,
        port=port,
        browser=browser,
    )
    say(f"{plural(len(shown), 'case')} shown. Next: contextseg project fill {work}")


def accept_project(
    work: Work,
    cases: Cases = None,
    label: Annotated[
        Path | None, typer.Option(help="A corrected label map of the one case that is named.")
    ] = None,
    take: Annotated[
        str,
        typer.Option(
            help="fill, prediction or drawing; "
            "default: the fill where the case was drawn in, else the prediction."
        ),
    ] = "",
    above: Annotated[
        float | None,
        typer.Option(help="Accept every prediction of which at least this Dice is expected."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="What each took; added to what is noted.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Open these cases again.")] = False,
) -> None:
    """Accept labels: they are finished, trained on in the next round, and exported."""
    opened = api.project(work)
    done = opened.accept(
        cases or (), label=label, take=take, above=above, minutes=minutes, undo=undo
    )
    say(f"{plural(len(done), 'case')} {'opened again' if undo else 'accepted'}")


def export_project(
    work: Work,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    format: Annotated[
        str, typer.Option(help="nnunet, folders, nifti, seg.nrrd or dicom-seg.")
    ] = "nnunet",
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Also fills and predictions that nobody has accepted."),
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Link the scans in place of copying them.")
    ] = False,
) -> None:
    """Write the finished data set, with the origin of every voxel."""
    opened = api.project(work)
    folder = opened.export(output, format=format, everything=everything, link=link)
    say(f"exported: {folder}; origins of the voxels: {folder / 'origins'}")


PROJECT_VERBS = (
    (
        "begin",
        begin_project,
        "contextseg project begin work --scans scans --classes tumour,oedema --test 5",
    ),
    ("status", status_project, "contextseg project status work --table"),
    ("fill", fill_project, "contextseg project fill work --model runs/stcn"),
    (
        "train",
        train_project,
        "contextseg project train work --method cps --set lr=0.0001 --set steps=20000",
    ),
    ("predict", predict_project, "contextseg project predict work"),
    ("review", review_project, "contextseg project review work --count 10"),
    ("accept", accept_project, "contextseg project accept work case_003 case_007"),
    ("export", export_project, "contextseg project export work -o Dataset001_Tumour"),
)
"""Name, function and example of each verb of a project."""

for name, function, example in PROJECT_VERBS:
    project.command(name, epilog=f"Example: {example}")(function)
