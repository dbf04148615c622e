"""Which room may import which. The picture is in docs/decisions.md; this enforces it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "contextseg"
FLOORS = (
    {"__init__", "console", "disk", "formats", "volume", "batch", "provenance", "profile", "ranks"},
    {"data", "nets", "losses", "metrics"},
    {"propagation"},
    {"train", "predict", "methods"},
    {"settings"},
    {"scan"},
    {"run"},
    {"experiments", "report"},
    {"job", "diagnose", "fill"},
    {"compare"},
    {"recipes"},
    {"cli", "web", "nnunet"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {
                f"{node.module}.{alias.name}" if node.module == "contextseg" else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("contextseg.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    assert here in LEVEL, f"give the room {here} a floor"
    ground = FLOORS[0]
    for other in imported(path) - {here}:
        beside = here in ground and other in ground
        assert LEVEL[other] < LEVEL[here] or beside, f"{here} may not import {other}"


def test_the_ground_floor_has_no_cycle() -> None:
    order = ["console", "ranks", "disk", "provenance", "profile", "batch", "formats", "volume"]
    for i, name in enumerate(order):
        assert imported(SOURCE / f"{name}.py") <= set(order[:i])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes_are_held(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            doc = ast.get_docstring(node)
            body = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) + 1 if doc else 0)  # type: ignore[operator]
            assert body <= 60, f"{node.name} has {body} lines"


@pytest.mark.parametrize(
    ("module", "without"),
    [
        (
            "contextseg.cli",
            {"rich.progress", "torch", "numpy", "scipy", "nibabel", "SimpleITK", "pandas", "matplotlib"},
        ),
        ("contextseg.report", {"torch"}),
        ("contextseg.metrics", {"torch", "scipy", "pandas"}),
        ("contextseg.data.check", {"torch"}),
        ("contextseg.experiments", {"torch"}),
    ],
)
def test_heavy_imports_wait(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({without!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    assert found == []
