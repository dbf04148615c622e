"""The script that measures on a GPU, as far as a CPU goes: its steps are tiny here."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from systems import needs_unix

pytestmark = needs_unix  # a script of bash
GPU = Path(__file__).parents[1] / "benchmarks" / "gpu"
NEED_NNUNET = {
    "training-3d",
    "training-2d",
    "training-3d-compiled",
    "training-2d-compiled",
    "prediction",
}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(GPU)
    import steps as module

    return module


def dry(out: Path, *names: str) -> str:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment.pop("WHEELS", None)
    command = ["bash", str(GPU / "run.sh"), str(out), *names, "--dry"]
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", sorted(GPU.glob("*.py")), ids=lambda path: path.name)
def test_what_a_step_takes_from_another_benchmark_is_there(script: Path) -> None:
    """A step is first run on a machine that is lent for minutes."""
    for function in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        imported = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = GPU.parent / f"{node.value.id}.py"
                if node.value.id in imported and module.exists():
                    assert node.attr in names_of(module), ast.unparse(node)


def names_of(module: Path) -> set[str]:
    """What a module defines at its top."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        names.add(getattr(node, "name", ""))
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            names.add(getattr(target, "id", ""))
    return names


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    assert "propagation: done, 2 rows" in dry(tmp_path, "propagation")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row[2] > 0 < row[3] for row in content["steps"]["propagation"]["rows"]] == [True] * 2
    assert "propagation: done before" in dry(tmp_path, "propagation")


def test_a_step_that_takes_too_long_is_cut_and_keeps_its_rows(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import json, sys, time\n"
        "print('begun', flush=True)\n"
        "with open(sys.argv[1] + '/.laws.jsonl', 'w') as file:\n"
        "    file.write(json.dumps(['claim', 'input', 1.0, 2.0, 'peer']) + '\\n')\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(steps, "__file__", str(child))
    monkeypatch.setitem(steps.LIMITS_S, "laws", 2)
    assert steps.run_all(["laws"], False, tmp_path, None) == 1
    found = steps.load(tmp_path)["steps"]["laws"]
    assert found["status"] == "cut after 2 s"
    assert found["rows"] == [["claim", "input", 1.0, 2.0, "peer"]]
    assert steps.run_all(["laws"], False, tmp_path, 0.5) == 1  # there is no time for it


def test_its_section_names_what_is_missing(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import run

    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    run.RESULTS.write_text("# Benchmarks\n", encoding="utf-8")
    rows = [["step", "2 x 128^3", 0.5, 1.0, "peer"], ["laws", "all hold", 0.0, 0.0, ""]]
    done = {"status": "done", "seconds": 1, "rows": rows}
    steps.save(tmp_path, {"facts": {"GPU": "abacus"}, "steps": {"laws": done}})
    steps.write_section(tmp_path)
    page = run.RESULTS.read_text(encoding="utf-8")
    assert "- GPU: abacus" in page
    assert "| step | 2 x 128^3 | 500 ms | 1 s | **2.00** | peer |" in page
    assert "- laws: all hold" in page
    assert "- colab: not run" in page


@pytest.mark.slow
def test_every_step_works_on_a_cpu(steps: ModuleType, tmp_path: Path) -> None:
    names = [name for name in steps.LIMITS_S if find_spec("nnunetv2") or name not in NEED_NNUNET]
    dry(tmp_path, *names)
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["steps"]
    assert all(found[name]["rows"] for name in names)
