"""Arguments and options that several verbs share, and how their words are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from contextseg.errors import ContextsegError

Dataset = Annotated[
    Path,
    typer.Argument(
        help="Data set: nnU-Net v2 raw, Medical Decathlon, or a folder with images/ and labels/."
    ),
]
Images = Annotated[
    Path,
    typer.Option("--input", "-i", help="A scan, a folder of scans, or a data set's folder."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is made.")]
Method = Annotated[str, typer.Option(help="How to train; docs/methods.md lists all.")]
Fold = Annotated[
    str,
    typer.Option(
        help="0 to 4: keep that fifth for validation; all: none; "
        "auto: all if there is a labelled test split."
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same result (bit for bit on a CPU).")]
Context = Annotated[
    str,
    typer.Option(
        help="Split the background: none, kmeans, dilated, anatomy, predicted, colab; "
        "see docs/colab.md."
    ),
]
ContextClasses = Annotated[
    int, typer.Option(help="Into how many classes (with --context kmeans or colab).")
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan", help="A plan to use, made by `contextseg plan` and edited; or nnUNetPlans.json."
    ),
]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init",
        help="Start from the weights of a run, an exported model or a file; other classes and "
        "channels may be trained.",
    ),
]
Time = Annotated[
    str,
    typer.Option(
        metavar="TIME",
        help="Time for all of it, such as 45m, 2h, 1h30m, 1d: the number of steps is measured.",
    ),
]
Extend = Annotated[
    bool,
    typer.Option(
        "--extend",
        help="Train a finished run longer: to more --set steps or --time, in all, or, if it was "
        "ended early, to its length.",
    ),
]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting, as often as needed."),
]
Roi = Annotated[
    list[str],
    typer.Option(
        "--roi", metavar="CLASS", help="Segment this class, as often as needed; default: all."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Series = Annotated[
    str,
    typer.Option(
        metavar="NUMBER",
        help="Which series of a DICOM folder, by number or UID; default: the only one.",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:1 ...; default: where it was trained, or what is here."),
]
Model = Annotated[
    Path | None,
    typer.Option(help="A run of `contextseg train --method stcn`; default: the packaged network."),
]


def named(option: str, words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE words of an option that may be given several times.

    Args:
        option: Name of the option, for the message.
        words: What was given.

    Returns:
        Values by name; {} for no word.

    Raises:
        ContextsegError: A word has no name or no value, or a name is given twice.

    Example:
        >>> named("--other", ["nnU-Net=predictions/a=b"])
        {'nnU-Net': 'predictions/a=b'}
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not name or not value or name in values:
            what = "not a name and its value, once"
            raise ContextsegError(f"{option} {word}", what, f"write {option} NAME=VALUE")
        values[name] = value
    return values


def settings(
    words: Sequence[str], function: Callable[..., object], also: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings of `--set NAME=VALUE`; of a name given twice the last.

    Args:
        words: What was given.
        function: The function of the face that takes them beside its own arguments.
        also: Arguments of its own that may be set so, too.

    Returns:
        Values as text, by name.

    Raises:
        ContextsegError: A word has no "=", or names what is an option of its own.

    Example:
        >>> settings(["steps=100", "ct_windows=chest,bone"], print)
        {'steps': '100', 'ct_windows': 'chest,bone'}
    """
    own = set(signature(function).parameters) - set(also)
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            raise ContextsegError(f"--set {word}", "no '='", "write --set name=value")
        if name in own:
            remedy = f"leave out --set: --{name.replace('_', '-')} {value}"
            raise ContextsegError(f"--set {name}", "this is no setting of --set", remedy)
        values[name] = value
    return values


def listed(text: str) -> list[str]:
    """The words of a text with commas.

    Example:
        >>> listed("dsc, nsd")
        ['dsc', 'nsd']
    """
    return [word.strip() for word in text.split(",") if word.strip()]
