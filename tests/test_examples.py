"""The notebooks of `examples/` run from top to bottom, with short trainings."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)
EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SHORT = {"STEPS": 2, "SCANS": 2}
"""Values for the cell that is tagged "parameters"."""


def code_cells(notebook: Path) -> list[str]:
    """The source of each code cell, with short trainings of small networks."""
    cells = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            source += "".join(f"\n{name} = {value}" for name, value in SHORT.items())
        cells.append(source.replace("base_width=16", "base_width=4"))
    return cells


def run_cell(source: str, names: dict[str, Any]) -> object:
    """Run a cell; the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pictures = 0
    for source in code_cells(notebook):
        shown = run_cell(source, names)
        if hasattr(shown, "_repr_html_"):
            pictures += "data:image/png" in shown._repr_html_()
    assert pictures >= 2
    assert len(names["table"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_output(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
