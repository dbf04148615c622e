from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OTHERS = {
    "run",
    "accuracy",
    "pretrained",
    "confidence",
    "lookahead",
    "colab_choices",
    "time_budget",
    "scale",
    "flare22_scale",
    "two_stage",
}
"""These take hours, and write pages of their own."""
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


def test_confidence_is_fitted_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    confidence = import_module("confidence")
    random = np.random.default_rng(0)
    slices = []
    for place, coefficients in (("between", (-1.0, 0.8, 0.3)), ("beyond", (-0.5, 1.2))):
        for _ in range(2000):
            features = (1.0, *random.normal(0, 1, len(coefficients) - 1))
            got = 1 / (1 + np.exp(-np.dot(features, coefficients)))
            slices.append({"place": place, "features": features, "promised": 0.9, "dice": got})
        table = [{"case": "a", "group": "organ", "slices": 2, "where": "ends", "rows": slices}]
        assert np.allclose(confidence.fit(table, place), coefficients, atol=0.05)
    confidence.write(table, tmp_path / "page")
    assert "| between labelled slices | 2000 |" in (tmp_path / "page.md").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "page.svg").exists()


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


# --- accuracy: Dice against time ------------------------------------------------------------------


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with files of its own, and trainings that only note that they were asked for."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = import_module("accuracy")
    monkeypatch.setattr(module, "ROWS", tmp_path / "accuracy.csv")
    monkeypatch.setattr(module, "PAGE", tmp_path / "ACCURACY.md")
    trained: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "trained", trained, raising=False)

    def prepared(name: str, *_: Any) -> tuple[Any, list[Any]]:
        trained.append(("prepared", name))
        return SimpleNamespace(folder=Path(f"compare-{name}")), []

    def one(part: str, run: Any, scored: Any, side: Any, seed: int, amount: float, _: Path) -> Any:
        if amount == 99:
            raise KeyboardInterrupt
        steps = 100 if side != module.OURS else module.peer_steps(run, seed, amount)
        trained.append((run.folder.name.split("-")[1], str(side), seed, amount))
        dice = "0.5000" if side == module.PEER else "0.6000"
        return steps, "1.0", dice, "2.00", " ".join(f"case{i}:{dice}" for i in range(8))

    monkeypatch.setattr(module, "prepared", prepared)
    monkeypatch.setattr(module, "one", one)
    return module


def test_dice_against_time_resumes_cell_by_cell(
    accuracy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["compare", str(tmp_path), "--seeds", "0", "1", "--data-sets", "sarcoma"]
    with pytest.raises(KeyboardInterrupt):
        accuracy.main([*chosen, "--minutes", "5", "99"])
    want = [
        ("sarcoma", side, seed, 5.0) for seed in (0, 1) for side in (accuracy.PEER, "contextseg")
    ]
    assert accuracy.trained == [("prepared", "sarcoma"), *want]
    with open(accuracy.ROWS, "a", encoding="utf-8") as file:
        file.write("compare,sarcoma,cont")  # killed while it wrote

    capsys.readouterr()
    accuracy.main([*chosen, "--minutes", "5", "30", "--dry-run"])
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 5
    assert listed[-1] == "4 of 8 cells left, about 2.0 h of training on one core"

    accuracy.trained.clear()
    accuracy.main([*chosen, "--minutes", "30", "5"])
    assert {row[-1] for row in accuracy.trained[1:]} == {30.0}
    assert len(accuracy.read_rows()) == 8
    accuracy.trained.clear()
    accuracy.main([*chosen, "--minutes", "5", "30"])
    assert accuracy.trained == []
    page = accuracy.PAGE.read_text(encoding="utf-8")
    assert f"| sarcoma | 30.0 | {accuracy.PEER} | 0.500 | 0.500, 0.500 | 100 | 1 |" in page
    assert "| sarcoma | 5 | 5 | 2 | 8 | +0.100 | 0.0156 |" in page
    assert "| sarcoma | 30 | 15 |" not in page  # ours was not measured at half of it
    accuracy.main([*chosen, "--minutes", "15"])
    page = accuracy.PAGE.read_text(encoding="utf-8")
    assert "| sarcoma | 30 | 15 | 2 | 8 | +0.100 | 0.0312 |" in page


def test_the_rows_in_the_repository_are_whole_and_are_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = import_module("accuracy")
    lines = module.ROWS.read_text(encoding="utf-8").splitlines()
    assert len(module.read_rows()) == len(lines) - 1
    page = module.PAGE.read_text(encoding="utf-8").splitlines()
    want = module.page(module.read_rows()).splitlines()
    assert [line for line in page if "|" in line] == [line for line in want if "|" in line]


def test_the_help_of_accuracy_says_how_to_run_it(
    accuracy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        accuracy.main(["--help"])
    text = capsys.readouterr().out
    for word in ("--minutes", "--seeds", "--data-sets", "--dry-run", "nohup nice"):
        assert word in text
