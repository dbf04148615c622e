"""The face for what people draw: filling, annotating, projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contextseg.api.training import load
from contextseg.arguments import StrPath, assignments, progress_of
from contextseg.arguments import words as words_of
from contextseg.console import say
from contextseg.disk import readable
from contextseg.errors import ContextsegError
from contextseg.memory_errors import out_of_memory

if TYPE_CHECKING:
    from contextseg.annotator.launch import Annotating
    from contextseg.projects import LabelProject
    from contextseg.propagation import Filled, LabelledSlices
    from contextseg.volume import Volume


@readable
def propagate(
    scan: Any,
    labels: Any,
    output: StrPath | None = None,
    *,
    model: StrPath | None = None,
    way: str = "",
    between: bool = False,
    stop_below: float = 0.7,
    unlabelled: int | None = None,
    plane: str = "auto",
    complete: bool = False,
    previous: StrPath = "auto",
    spacing_mm: Sequence[float] | None = None,
    series: str = "",
    verbose: bool = True,
) -> Filled:
    """Fill a scan from a few labelled slices, in both directions, for any class.

    Label the slice that `Filled.suggestion` names, or correct slices of the filled map itself, and
    call it again. Each class is filled between the slices that hold it.

    Args:
        scan: A file, a list of files for several channels, a `Volume`, a SimpleITK or nibabel
            image, or an array with `spacing_mm`.
        labels: A label map on the scan's grid in which some slices are labelled; as `scan`.
        output: Where to write the filled label map, and CASE-slices.csv beside it. The names and
            colours of `labels` are kept: in a `.seg.nrrd` file itself, else in CASE.label, a label
            description of ITK-SNAP.
        model: A run of `train(..., method="stcn")`. None is the network that comes with the
            package, which needs no training.
        way: "combined", "propagation", "interpolation" or "nearest". "" is "combined": the network
            and the shapes of the labelled slices.
        between: Each structure's first and last slice are labelled; none lies beyond.
        stop_below: Beyond the outermost labelled slices, stop where a smaller Dice is expected; 0
            never stops.
        unlabelled: The value of unlabelled voxels. None: slices without a label are unlabelled.
        plane: "axial", "coronal" or "sagittal": what is labelled. "auto" finds it.
        complete: A labelled slice that lacks a class says that the class is not there. Otherwise it
            says nothing of it.
        previous: The filled map of before, of which `labels` is a corrected copy: slices that
            changed are labelled, and those that were. "auto" finds it by the CASE-slices.csv beside
            `labels` or `output`; "none" takes `labels` as drawn.
        spacing_mm: Voxel size along D, H and W, for arrays.
        series: Which series of a DICOM folder, by number or UID. "" for the only one.
        verbose: Show the progress on stderr.

    Returns:
        The filled label map, the confidence of each slice, the next slice worth labelling, and
        notes of what was not filled, which are printed too if `verbose`.

    Raises:
        ContextsegError: Scan and labels are not on one grid, nothing is labelled, `way` needs a
            model, `previous` is no filled map, or `output` is the scan or the labels.
    """
    from contextseg.interop.names import describe_result, known_segments
    from contextseg.pipeline import open_propagation_model
    from contextseg.predictor import scan_of
    from contextseg.propagation import fill, open_completion, ranges
    from contextseg.volume import as_labels

    _refuse_to_overwrite(output, scan, labels)
    volume = scan_of(scan, spacing_mm, series)
    drawn = as_labels(labels, volume, unlabelled or 0)
    segments = known_segments(labels)
    labelled, found = _labelled(labels, drawn, output, str(previous), unlabelled, plane, complete)
    network: Any = None
    if way not in ("interpolation", "nearest"):
        network = open_propagation_model(model) if model else open_completion()
    name = scan if isinstance(scan, str | Path) else "the scan"
    lower = "crop the scan, fill with --way interpolation, or close other programs"
    with out_of_memory(name, lower), progress_of(verbose)("propagate") as progress:
        filled = fill(
            volume,
            labelled,
            network,
            way,
            ranges(labelled) if between else None,
            stop_below,
            progress,
        )
    filled = replace(filled, notes=(*found, *filled.notes))
    for note in filled.notes if verbose else ():
        say(note)
    if output is not None:
        filled.save(output)
        describe_result(output, filled.label, segments)
    return filled


@readable
def annotate(
    folder: StrPath | None = None,
    output: StrPath | None = None,
    *,
    demo: bool = False,
    model: StrPath | None = None,
    classes: Sequence[str] = (),
    labels: StrPath | None = None,
    port: int = 0,
    host: str = "127.0.0.1",
    token: str = "",
    browser: bool = True,
    monai: bool = False,
    wait: bool = False,
    verbose: bool = True,
    **settings: Any,
) -> Annotating:
    """Draw a few slices of each scan in the browser; the others are filled.

    A server starts on this machine, and its page opens. Every stroke is saved at once, and the same
    call goes on where it was stopped.

    Args:
        folder: A scan, a folder of scans, or the folder of a data set. None with `demo`.
        output: Folder for what is drawn, for finished label maps, and for the data set made of
            them. None is `annotations`, or `annotations-demo` with `demo`.
        demo: Annotate the scans that come with the package.
        model: A run of `train(..., method="stcn")`, which fills on demand. None is the network
            that comes with the package.
        classes: What to draw, names or NAME=VALUE. () are the classes of the output folder, of the
            data set, or "target".
        labels: Folder of label maps to start from and correct, such as predictions, named as the
            scans.
        port: Port to listen on; 0 takes a free one.
        host: Address to listen on. Any other than this machine's own needs a `token`.
        token: What the page must know. "" makes one.
        browser: Open the page in the browser.
        monai: Answer MONAI Label's clients too, such as the module of 3D Slicer.
        wait: Return when the server is stopped with Ctrl-C; otherwise at once.
        verbose: Say on stderr where the page is.
        **settings: Settings of the training that the page starts, such as `steps=2000`.

    Returns:
        The server: `.url` is its page, `.stop()` ends it.

    Raises:
        ContextsegError: There is no scan, the output folder belongs to others, or the port is
            taken.
    """
    from contextseg.annotator.launch import open_browser, start_annotating
    from contextseg.pipeline import DEMO_DATA

    if demo == (folder is not None):
        what = "a folder and --demo" if demo else "no folder"
        raise ContextsegError("annotate", what, "give a folder of scans, or --demo")
    source = DEMO_DATA if folder is None else Path(folder)
    work = Path(output or ("annotations-demo" if demo else "annotations"))
    words = [word for setting in assignments(settings) for word in ("--set", setting)]
    server = start_annotating(
        source,
        work,
        model=model,
        classes=words_of(classes),
        labels=labels,
        train=words,
        port=port,
        host=host,
        token=token,
        monai=monai,
    )
    if verbose:
        say(f"the annotator: {server.url}")
        say(f"what is drawn is saved in {work}; Ctrl-C ends")
    if browser:
        open_browser(server.url)
    if wait:
        server.serve()
        return server
    return server.start()


@readable
def two_stage(
    reference: StrPath,
    images: StrPath,
    output: StrPath,
    *,
    model: StrPath | None = None,
    every: int = 5,
    most: int = 0,
    select: str = "",
    slices: int = 1,
    recover: bool = True,
    bounded: bool = True,
    way: str = "",
    stop_below: float = 0.7,
    top_k: int = 20,
    memory_every: int = 5,
    merge: str = "nearer",
    published: bool = False,
    profile: bool = False,
    profile_formula: str = "trapezoid",
    verbose: bool = True,
    **settings: Any,
) -> dict[str, Path]:
    """Segment scans in two stages: a run labels some slices, the best of them fill the rest.

    Args:
        reference: A finished run or exported model; a 2-D one sees the sampled slices alone.
        images: A scan, a folder of scans, or the folder of a data set.
        output: Folder of the label maps, and of `two-stage.csv`, which says for each class where
            it was found and flags what was missed. What is there already is kept.
        model: A run of `train(..., method="stcn")`. None: the network that comes with the package.
        every: The reference run labels every so many slices, or closer.
        most: How many slices it labels at most; 0 for no limit.
        select: "largest", "certain", "covering", "presence" or "all". "" is "largest" with a
            model, and "all" without.
        slices: Reference slices of each class.
        recover: Look once more, in between, for a class that no slice shows.
        bounded: Fill a class only up to the evaluated slices that do not hold it.
        way: "propagation", "combined", "interpolation" or "nearest". "" is "propagation": the
            network alone.
        stop_below: Beyond the outermost reference slices, stop where a smaller Dice is expected; 0
            never stops. This and the next three are of the walk of `model`'s network.
        top_k: Memorised positions that each position reads; 0 for all.
        memory_every: Of the filled slices, every so many stay in the memory.
        merge: Where two walks meet, "nearer" weights them by the distance of their reference slice;
            "sum" does not.
        published: All of that as Pham et al. published it, with `model`; what else is given must be
            left at its default.
        profile: Note running time and memory of each scan in `efficiency.csv`, with a plot.
        profile_formula: "trapezoid", or "official" for FLARE22's own sum.
        verbose: Show the progress on stderr.
        **settings: How the reference run predicts, such as `mirror=False`.

    Returns:
        The label map of each case, by name.

    Raises:
        ContextsegError: The runs do not go together, the folder holds results of other settings,
            or scans could not be segmented; all others are done.
    """
    from contextseg.pipeline import open_propagation_model
    from contextseg.propagation import NETWORK_WAYS, open_completion
    from contextseg.twostage import TwoStageSettings, as_published, segment_folder

    stages = TwoStageSettings(
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
    )
    if published:
        stages = as_published(stages, bool(model))
    network: Any = None
    if model:
        network = open_propagation_model(model)
    elif way in ("", *NETWORK_WAYS):
        network = open_completion()
    return segment_folder(
        load(reference, **settings),
        images,
        Path(output),
        network,
        stages,
        asked={"reference": str(Path(reference).resolve()), "model": _resolved(model)},
        profile=profile,
        profile_formula=profile_formula,
        progress_bar=progress_of(verbose),
    )


@readable
def project(
    work: StrPath,
    scans: StrPath | None = None,
    classes: Sequence[str] = (),
    *,
    test: int | Sequence[str] = 0,
    plane: str = "auto",
    unlabelled: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> LabelProject:
    """Open a project, or begin one: a folder in which few labelled slices become a data set.

    Args:
        work: Folder of everything that the project makes.
        scans: Folder of scans, or a data set, whose labels count as accepted and whose test split
            is locked. Needed to begin; later only where the scans have moved.
        classes: Names of the classes; () for those of the data set.
        test: Cases that are locked for measuring, by name; or how many to draw.
        plane: "axial", "coronal" or "sagittal": what is drawn. "auto" finds it.
        unlabelled: Value of voxels that nobody labelled, in drawn files. None: slices without a
            label are unlabelled.
        seed: Seed of the draw of locked cases.
        verbose: Show the progress on stderr.

    Returns:
        The project, whose verbs are its methods: `fill`, `train`, `predict`, `review`, `accept`,
        `export`, `status`.

    Raises:
        ContextsegError: No scans are given to begin with, or the folder holds a project about
            other scans or classes.
    """
    from contextseg.projects import open_label_project

    return open_label_project(
        work,
        scans,
        classes,
        test=test,
        plane=plane,
        unlabelled=unlabelled,
        seed=seed,
        progress_bar=progress_of(verbose),
    )


def _labelled(
    labels: Any,
    drawn: Volume,
    output: StrPath | None,
    previous: str,
    unlabelled: int | None,
    plane: str,
    complete: bool,
) -> tuple[LabelledSlices, list[str]]:
    """The labelled slices of `propagate`, and what is to be said of where they come from."""
    from contextseg.propagation import find_previous, labelled_slices, open_previous

    before = None
    if previous not in ("auto", "none"):
        before = open_previous(previous, drawn)
    elif previous == "auto" and isinstance(labels, str | Path) and unlabelled is None:
        before = find_previous(labels, output, drawn)
    if before is None:
        return labelled_slices(drawn, unlabelled, plane, complete), []
    changed = ", ".join(map(str, before.changed(drawn))) or "none"
    note = f"{labels} is a corrected copy of the map of {before.path}; slices that changed: "
    return before.labelled(drawn), [note + changed]


def _refuse_to_overwrite(output: StrPath | None, scan: Any, labels: Any) -> None:
    """Refuse an output file that is one of the inputs: what was drawn would be gone."""
    scans = scan if isinstance(scan, list | tuple) else [scan]
    inputs = [path for path in (*scans, labels) if isinstance(path, str | Path)]
    if output is not None and _resolved(output) in map(_resolved, inputs):
        what = "the output file is the scan or the labels"
        raise ContextsegError(output, what, "choose another --output file")
    from contextseg.formats import WRITABLE, ending

    if output is not None and ending(output) not in WRITABLE:  # before the work is done
        what = f"files that end in {ending(output)!r} are not written"
        raise ContextsegError(output, what, "choose .nii.gz, .mha or .nrrd")


def _resolved(path: StrPath | None) -> str:
    return str(Path(path).resolve()) if path else ""
