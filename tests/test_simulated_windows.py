"""The simulation of Windows: what it lets fail, and that writing and training do without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIMULATED = Path(__file__).parent / "windows"

_FAILS = """
import os, sys
try:
    import resource
except ImportError:
    print("no resource")
with open(sys.argv[0]) as file:
    try:
        os.fsync(file.fileno())
    except OSError:
        print("no fsync")
"""


def python(*words: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(SIMULATED), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths},
        timeout=200,
    )


def test_what_fails_there_fails_in_the_simulation(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_FAILS, encoding="utf-8")
    assert python(tmp_path / "script.py").stdout.split("\n") == ["no resource", "no fsync", ""]


@pytest.mark.slow
def test_a_run_goes_through_there(tmp_path: Path) -> None:
    from contextseg.data import phantom

    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1, shape=(12, 14, 14))
    words = ["run", data, "-o", tmp_path / "run"]
    for setting in ("steps=2", "patch_vox=8,8,8", "batch_size=2", "base_width=4", "device=cpu"):
        words += ["--set", setting]
    done = python("-m", "contextseg", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
