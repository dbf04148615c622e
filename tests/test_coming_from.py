"""The page for people who come from another tool: every command of ours on it is a real one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from contextseg.cli import app
from contextseg.cli.training import _of_context
from contextseg.metrics import CONVENTIONS
from contextseg.nnunet import trainers_folder
from contextseg.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
TEXT = PAGE.read_text(encoding="utf-8")
TOOLS = ("nnU-Net", "MONAI", "TotalSegmentator", "MONAI Label", "PyMIC")


def commands() -> list[str]:
    """In code spans of tables and prose, and in blocks."""
    blocks = re.findall(r"^```\n(.*?)^```", TEXT, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.S | re.M))
    return [text for text in [*lines, *spans] if text.startswith("contextseg ")]


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """The verb, and its parameters as the command line would understand them."""
    _, verb, *words = shlex.split(command)
    verbs: Any = typer.main.get_command(app)
    assert verb in verbs.commands, f"there is no verb {verb}"
    return verb, verbs.commands[verb].make_context(verb, words).params


def test_there_are_commands_for_every_tool() -> None:
    headings = re.findall(r"^## (.+)$", TEXT, flags=re.M)
    assert tuple(headings) == TOOLS
    assert len(commands()) > 25
    for section in re.split(r"^## ", TEXT, flags=re.M)[1:]:
        assert "`contextseg " in section
        assert "has and contextseg has not" in section


@pytest.mark.parametrize("command", commands())
def test_every_command_is_real(command: str) -> None:
    verb, given = parsed(command)
    words = list(given.get("set_") or ())
    if verb in ("train", "run", "pseudo", "plan"):
        method = given.get("method") or "supervised"
        if given.get("context"):
            method, more = _of_context(method, given["context"], given["context_classes"])
            words += [f"{name}={value}" for name, value in more.items()]
        Settings("data", "pseudo" if verb == "pseudo" else method).set(words)
    elif words:
        assert verb in ("predict", "two-stage")
        for word in words:
            Settings("").set([word], used=["prediction"], by="a finished run")
    if given.get("convention"):
        assert given["convention"] in CONVENTIONS


def test_the_trainers_of_the_page_are_those_that_there_are() -> None:
    [file] = trainers_folder().glob("*.py")
    names = re.findall(r"^class (nnUNetTrainer\w+)", file.read_text(encoding="utf-8"), flags=re.M)
    assert set(names) == set(re.findall(r"nnUNetTrainer_contextseg_\w+", TEXT))
