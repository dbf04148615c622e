"""docs/papers.md: every row has a command that exists."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from contextseg.cli import app
from contextseg.settings import Settings
from contextseg.studies.cmunet.rows import parse_asked
from contextseg.studies.reproduce.table import find_reproduction

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
COLUMNS = 4


def rows() -> list[tuple[str, list[str]]]:
    """(section, cells) of every row."""
    found = []
    section = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("| ") and not line.startswith("| in the paper"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            found.append((section, [cell.strip() for cell in cells]))
    return found


ROWS = rows()


def test_every_paper_has_its_rows() -> None:
    sections = [section for section, _ in ROWS]
    for name in ("CoLab", "FLARE22", "CMU-Net"):
        assert sections.count(name) >= 5


@pytest.mark.parametrize(("section", "cells"), ROWS, ids=[f"{s}-{c[0][:30]}" for s, c in ROWS])
def test_the_command_of_a_row_exists(section: str, cells: list[str]) -> None:
    assert len(cells) == COLUMNS
    what, command, differs, measured = cells
    assert what
    assert differs or measured
    commands = re.findall(r"`([^`]+)`", command)
    if not commands:  # nothing makes it: the row has to say why
        assert command in ("-", "–", "not made")
        assert differs
    for words in map(shlex.split, commands):
        exists(words)


def exists(words: list[str]) -> None:
    """Fail where a command line names what is not there."""
    while "=" in words[0]:  # variables of the environment
        words = words[1:]
    program, *rest = words
    if program == "contextseg":
        parse(rest)
    elif program in ("pytest", "python"):
        path, _, name = rest[0].partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in names, f"{path} has no {name}"
    else:
        assert program in ("torchrun", "docker", "make"), f"what is {program}?"


def parse(words: list[str]) -> None:
    """Parse a command line with the program's own parser; nothing runs."""
    command: Any = typer.main.get_command(app)
    name, rest = "", list(words)
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    given = command.make_context(name, rest).params
    settings = given.get("set_") or []
    if name in ("train", "run"):
        Settings("", given["method"]).set(settings)
    if name == "reproduce" and given["name"] not in ("cmunet", "flare22"):
        find_reproduction(given["name"])
    if name == "reproduce" and given["name"] == "cmunet":
        asked = (given["rows"], given["epochs"], given["seeds"], given["trial"], settings)
        parse_asked(*asked)
        for row in parse_asked(*asked).rows:
            Settings("", row.method).set([f"{n}={v}" for n, v in row.settings.items()])


@pytest.mark.parametrize(
    "line",
    [
        "contextseg reproduct cmunet",
        "contextseg reproduce cmunet DATA -o OUT --rows nine",
        "contextseg run DATA -o OUT --set stpes=3",
        "contextseg run DATA",
        "contextseg reproduce mystery DOWNLOAD -o OUT",
        "pytest tests/test_cmu.py::test_nothing",
        "mystery",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r".+"):
        exists(shlex.split(line))
