from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OTHERS = {
    "run",
    "accuracy",
    "pretrained",
    "scale",
}  # these take hours, and write pages of their own
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem not in OTHERS)
PEERS = {
    "nnunetv2",
    "batchgenerators",
    "batchgeneratorsv2",
    "monai",
    "medpy",
    "surface_distance",
    "blosc2",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("run")


def test_every_script_is_run(run: ModuleType) -> None:
    assert sorted(run.SCRIPTS) == SCRIPTS


def test_scripts_import_no_peer_and_offer_rows(run: ModuleType) -> None:
    assert SCRIPTS
    for name in SCRIPTS:
        assert list(inspect.signature(import_module(name).rows).parameters) == ["quick"]
    code = (
        f"import sys; import {', '.join(SCRIPTS)}; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=BENCHMARKS,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert not PEERS & set(done.stdout.split())


def test_page_has_a_line_for_each_row(run: ModuleType) -> None:
    rows = [
        ("fast", "512 x 512", 0.5, 2.0, "other"),
        ("small, peak MB", "a|b", 250.0, 125.0, "other"),
    ]
    page = run.markdown(rows, {}, {"Date": "today", "Machine": "abacus"})
    assert "- Machine: abacus" in page
    assert "| fast | 512 x 512 | 500 ms | 2 s | **4.00** | other |" in page.splitlines()
    assert "| small, peak MB | a\\|b | 250 MB | 125 MB | **0.50** | other |" in page.splitlines()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {7}
    assert "Failed" not in page
    assert "Quick run" not in page
    assert "Quick run" in run.markdown(rows, {}, {}, quick=True)


def test_numbers_are_never_powers_of_ten(run: ModuleType) -> None:
    page = run.markdown(
        [("claim", "x", 0.0123456, 1.7283, "p"), ("claim", "y", 1.0, 1234.4, "p")], {}, {}
    )
    assert (
        "| claim | x | 12.3 ms | 1.73 s | **140** | p |" in page.splitlines()
    )  # 1.7283 / 0.0123456 = 139.99
    assert "| claim | y | 1 s | 1234 s | **1234** | p |" in page.splitlines()


def test_nothing_measured_has_no_ratio(run: ModuleType) -> None:
    page = run.markdown([("claim, peak MB", "x", 0.0, 3.0, "p")], {}, {})
    assert "| claim, peak MB | x | 0 MB | 3 MB | – | p |" in page.splitlines()


FIRST = ("first", "quick", 1.0, 2.0, "peer")
SCRIPT = """
import os
def rows(quick):
    yield "first", "quick" if quick else "full", 1.0, 2.0, "peer"
"""


@pytest.mark.parametrize(
    ("script", "rows", "why"),
    [
        (SCRIPT, [FIRST], ""),
        (SCRIPT + "    raise ValueError('bad luck')", [FIRST], "ValueError: bad luck"),
        (SCRIPT + "    os._exit(3)", [FIRST], "its process ended with status 3"),
        ("def rows(quick): return []", [], "no rows: its peers are not installed"),
        ("import no_such_module", [], "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
    ids=["fine", "raises", "killed", "no peer", "no module"],
)
def test_a_failure_keeps_the_rows_before_it_and_is_named(
    run: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    rows: list[Any],
    why: str,
) -> None:
    (tmp_path / "trial.py").write_text(script, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run.run("trial", quick=True) == (rows, why)


def test_the_page_names_what_failed(run: ModuleType) -> None:
    page = run.markdown([FIRST], {"trial": "ValueError: bad\n  luck"}, {})
    assert "- trial: ValueError: bad luck" in page.splitlines()


def test_facts_come_from_the_machine(run: ModuleType) -> None:
    facts = run.facts()
    assert f"torch {version('torch')}" in facts["Versions"]
    assert f"{os.cpu_count()} cores" in facts["Machine"]
