"""The simulation of Windows: what it lets fail, and that writing and training do without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contextseg.data import phantom

SIMULATED = Path(__file__).parent / "windows"

_FAILS = """
import os, signal, subprocess, sys
from pathlib import Path

def fails(what, *arguments):
    try:
        what(*arguments)
    except (OSError, ImportError, UnicodeEncodeError) as error:
        print(what.__name__.strip("_"), *arguments[-1:], type(error).__name__, file=sys.stderr)

for module in ("resource", "fcntl"):
    fails(__import__, module)
for name in ("a:b", "a.", "CON.txt", "A"):
    Path("a").write_text("", encoding="utf-8")
    fails(Path(name).write_text, "", "utf-8")
    fails(os.rename, "a", name)
os.rename("A", "a")  # this is none
Path("b").mkdir()
fails(os.symlink, "a", "link")
fails(open, "b")
fails(os.kill, os.getpid(), signal.SIGINT)
fails(print, "\u60a3")
with open("a", encoding="utf-8") as file:
    fails(os.fsync, file.fileno())
    fails(os.remove, "a")
    fails(os.rename, "a", "c")
with open("b/c", "w", encoding="utf-8") as file:
    fails(os.rename, "b", "d")
Path("d").write_text("", encoding="utf-8")
os.replace("d", "a")
os.remove("a")
assert not hasattr(os, "fork")
assert not hasattr(signal, "SIGKILL")
"""
_FAILURES = """
import resource ModuleNotFoundError
import fcntl ModuleNotFoundError
write_text utf-8 OSError
rename a:b OSError
write_text utf-8 OSError
rename a. OSError
write_text utf-8 OSError
rename CON.txt OSError
write_text utf-8 OSError
symlink link OSError
open b PermissionError
kill_of_windows N OSError
print \\u60a3 UnicodeEncodeError
fsync_of_windows N OSError
remove a PermissionError
rename c PermissionError
rename d PermissionError
"""


def python(*words: object, **arguments: Any) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(SIMULATED), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths},
        timeout=200,
        **arguments,
    )


def test_what_fails_there_fails_in_the_simulation(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(_FAILS, encoding="utf-8")
    done = python("../script.py", cwd=make(tmp_path / "folder"))
    assert done.returncode == 0, done.stderr
    assert re.sub(r"windows \d+", "windows N", done.stderr) == _FAILURES.lstrip()


def test_names_of_all_languages_go_into_a_pipe(tmp_path: Path) -> None:
    """Where Python would print in a code page that has no letters for them."""
    folder = make(tmp_path / "\u60a3\u8005")
    done = python("-m", "contextseg", "check", folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert folder.name in done.stdout + done.stderr
    phantom.write_dataset(folder, labelled=1)
    done = python("-m", "contextseg", "plan", folder, "-o", folder / "plan.json")
    assert done.returncode == 0, done.stderr
    assert str(folder / "plan.json") in done.stdout


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
def test_a_run_goes_through_there(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1, shape=(12, 14, 14))
    words = ["run", data, "-o", tmp_path / "run"]
    for setting in ("steps=2", "patch_vox=8,8,8", "batch_size=2", "base_width=4", "device=cpu"):
        words += ["--set", setting]
    done = python("-m", "contextseg", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists()
