"""Which room may import which.

The picture is in docs/decisions/0022-the-house-second-form.md; this enforces it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "contextseg"
FLOORS = (
    {
        "errors",
        "memory_errors",
        "inputs",
        "cells",
        "console",
        "arguments",
        "dicom",
        "disk",
        "leftovers",
        "formats",
        "grids",
        "interop",
        "picture",
        "volume",
        "resampling",
        "slabs",
        "batch",
        "parallel",
        "provenance",
        "ranks",
        "stopping",
        "training_log",
        "threads",
    },
    {"data", "nets", "losses", "metrics"},
    {"propagation", "evaluation", "validation"},
    {"training", "predict", "methods", "reports"},
    {"settings", "notices"},
    {"predictor", "run_folder", "rehearsal"},
    {"nnunet", "length"},
    {"run_cases"},
    {"runs"},
    {"models"},
    {"pipeline", "twostage"},
    {"crossvalidation", "longer"},
    {"annotator"},
    {"projects"},
    {"studies"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
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
                f"{node.module}.{alias.name}" if node.module == "contextseg" else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("contextseg.")} - {
        "__version__"
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    here = room(path)
    assert here in LEVEL, f"give the room {here} a floor"
    ground = FLOORS[0]
    for other in imported(path) - {here}:
        beside = here in ground and other in ground
        assert LEVEL[other] < LEVEL[here] or beside, f"{here} may not import {other}"


def test_the_ground_floor_has_no_cycle() -> None:
    order = [
        "errors",
        "memory_errors",
        "stopping",
        "inputs",
        "cells",
        "threads",
        "console",
        "ranks",
        "leftovers",
        "disk",
        "parallel",
        "provenance",
        "batch",
        "slabs",
        "resampling",
        "picture",
        "grids",
        "dicom",
        "formats",
        "interop",
        "volume",
    ]
    for i, name in enumerate(order):
        for path in (SOURCE / f"{name}.py", *(SOURCE / name).glob("*.py")):
            if path.exists():
                assert imported(path) - {name} <= set(order[:i])


def code_lines(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> int:
    """The lines of a body, without its own docstring and those of everything in it."""
    doc_lines = 0
    for inner in ast.walk(node):
        if isinstance(inner, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            inner
        ):
            doc = inner.body[0]
            doc_lines += (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return (node.body[-1].end_lineno or 0) - node.body[0].lineno + 1 - doc_lines


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes_are_held(path: Path) -> None:
    """A file or function that outgrows these numbers does two things; docstrings never count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or code_lines(tree) <= 450
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node) <= 70, f"{node.name} has {code_lines(node)} lines"


@pytest.mark.parametrize(
    ("module", "without"),
    [
        (
            "contextseg.cli",
            {
                "rich.progress",
                "torch",
                "numpy",
                "scipy",
                "nibabel",
                "SimpleITK",
                "pandas",
                "matplotlib",
            },
        ),
        ("contextseg.reports", {"torch"}),
        ("contextseg.metrics", {"torch", "scipy", "pandas"}),
        ("contextseg.data.check", {"torch"}),
        ("contextseg.evaluation", {"torch"}),
    ],
)
def test_heavy_imports_wait(module: str, without: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({without!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    assert found == []


LAYERS = {
    *(f"api/{name}.py" for name in ("data", "drawing", "training")),
    "studies/api.py",
    "arguments.py",
}
"""Files of the face: a verb has its name there, in the command line, and where it is done."""


def test_no_two_public_names_mean_two_things() -> None:
    """A class, function or constant has one home; a verb has the same name in every layer."""
    homes: dict[str, set[str]] = {}
    for path in FILES:
        place = path.relative_to(SOURCE).as_posix()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if len(name) > 1 and not name.startswith("_"):
                    homes.setdefault(name, set()).add(place)
    verbs = {name for name, places in homes.items() if places & LAYERS}
    twice = {}
    for name, places in homes.items():
        inner = {place for place in places - LAYERS if not place.startswith("cli/")}
        if len(inner) > 1 or (len(places) > 1 and name not in verbs and not inner):
            twice[name] = sorted(places)
    assert twice == {}
