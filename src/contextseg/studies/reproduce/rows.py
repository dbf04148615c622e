"""The rows of the paper's tables as methods of `compare`, each with the paper's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextseg.arguments import setting_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.studies.reproduce.table import Reproduction

PAPER_COLAB: Mapping[str, Any] = {
    "generator": "full",
    "generator_lr": 3e-4,
    "generator_every": 1,
    "lookahead_items": 1,
    "lookahead_parts": 1,
    "lookahead_layers": "all",
    "labels_from": "updated",
    "background": "max",
}
"""CoLab as published: g of f's size, in every step, with the whole batch and patch; f trained with
the updated g's labels (Algorithm 1); argmax over all channels."""

FAST = "-fast"
"""Ending of the rows of CoLab with this library's defaults, which cost a fraction."""
LARGEST = "none-largest"
"""The row of post-processing (the paper's supplement): the largest component of "none"."""


@dataclass(frozen=True)
class Rows:
    """What is compared.

    Attributes:
        methods: Methods of `compare`, "NAME=METHOD:SETTING=VALUE,...".
        largest: Names of methods whose largest component is a further row.
    """

    methods: tuple[str, ...]
    largest: tuple[str, ...] = ()


def method_rows(
    reproduction: Reproduction, masks: Mapping[str, str | Path] | None = None
) -> dict[str, str]:
    """The rows of the paper's table, and ours, as methods of `compare`.

    Args:
        reproduction: The data set.
        masks: A further row for each folder of context masks, by name: "anatomy" drawn by people,
            "predicted" by a model.

    Returns:
        "NAME=METHOD:SETTING=VALUE,..." by name; the paper's rows first, then "CoLab-2-fast" and so
        on, with this library's defaults.

    Raises:
        ContextsegError: A folder has a comma or a semicolon in its path, which a list of settings
            cannot hold.
    """
    clusters = reproduction.clusters
    methods = {
        "none": "supervised",
        "kmeans": f"context:context=kmeans,context_classes={clusters},background=max",
        "dilated": "context:context=dilated,background=max",
    }
    paper = ",".join(f"{name}={setting_text(value)}" for name, value in PAPER_COLAB.items())
    for t in (2, 4, 6):
        methods[f"CoLab-{t}"] = f"colab:context_classes={t},{paper}"
    for name, folder in (masks or {}).items():
        if set(str(folder)) & set(",;"):
            what = "a comma or a semicolon in its path"
            remedy = "rename it, or link to it from another place"
            raise ContextsegError(folder, what, remedy)
        methods[name] = f"context:context=anatomy,masks={folder},background=max"
    for t in (2, 4, 6):
        methods[f"CoLab-{t}{FAST}"] = f"colab:context_classes={t}"
    return {name: f"{name}={method}" for name, method in methods.items()}


def select_rows(available: Mapping[str, str], text: str) -> Rows:
    """The rows that somebody asks for.

    Args:
        available: The rows by name.
        text: Names with commas between; or, with semicolons between, also rows with settings of
            their own, which get a name of their own: "NEW=ROW:SETTING=VALUE,SETTING=VALUE". "" for
            the paper's rows and post-processing.

    Returns:
        The rows, in that order.

    Raises:
        ContextsegError: There is no row of a name, or one with other settings has a known name.

    Example:
        >>> rows = {"none": "none=supervised", "dilated": "dilated=context:context=dilated"}
        >>> select_rows(rows, "wide=none:base_width=64; dilated").methods
        ('wide=supervised:base_width=64', 'dilated=context:context=dilated')
    """
    parts = re.split(";" if ":" in text else "[;,]", text)
    asked = [part.strip() for part in parts if part.strip()]
    if not asked:
        asked = [name for name in available if not name.endswith(FAST)] + [LARGEST]
    methods = []
    for entry in asked:
        if entry != LARGEST:
            methods.append(_row(available, entry))
    largest: tuple[str, ...] = ()
    if LARGEST in asked:
        largest = ("none",)
        if available["none"] not in methods:
            methods.insert(0, available["none"])
    return Rows(tuple(methods), largest)


def _row(available: Mapping[str, str], entry: str) -> str:
    """One row, perhaps under another name and with settings of its own."""
    head, colon, assignments = entry.partition(":")
    new, equals, old = head.partition("=")
    name = (old if equals else new).strip()
    if name not in available:
        remedy = did_you_mean(name, [*available, LARGEST])
        raise ContextsegError(f"--rows {name}", "there is no such row", remedy)
    if not colon and not equals:
        return available[name]
    new = new.strip()
    if not equals or new in available or new == LARGEST:
        what = "with settings of its own it is not the paper's row"
        remedy = f"give it another name: --rows 'mine={name}:{assignments.strip()}'"
        raise ContextsegError(f"--rows {entry}", what, remedy)
    method = available[name].partition("=")[2]
    if not assignments:
        return f"{new}={method}"
    return f"{new}={method}{',' if ':' in method else ':'}{assignments.strip()}"
