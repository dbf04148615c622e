"""The demo, on the real scans that come with the package."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from contextseg.data.check import check
from contextseg.data.layouts import open_dataset
from contextseg.pipeline import DEMO_DATA, demo_settings
from contextseg.runs import Run


def demo(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "contextseg", "demo", "--output", str(folder), *words]


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "evaluate" / "metrics.csv")[
        ["case", "class", "dsc", "hd95_mm", "nsd"]
    ]


def test_the_embedded_data_are_whole_and_credited() -> None:
    data = open_dataset(DEMO_DATA)
    assert (len(data.train), len(data.test)) == (12, 4)
    assert all(case.label for case in [*data.train, *data.test])
    assert check(DEMO_DATA) == []
    notice = (DEMO_DATA / "LICENSE.md").read_text(encoding="utf-8")
    assert "CC BY 3.0" in notice
    assert "10.7937/K9/TCIA.2015.7GO2GSKS" in notice
    assert sum(path.stat().st_size for path in DEMO_DATA.rglob("*.nii.gz")) < 8e6


def test_a_short_demo_shows_everything(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    quick = ["--set", "steps=2", "--set", "prediction.mirror=false", "--set", "base_width=4"]
    done = subprocess.run(
        demo(tmp_path, *quick), capture_output=True, encoding="utf-8", env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "| tumour | 4 |" in done.stdout
    for name in ("report.html", "cases.png", "metrics.csv"):
        assert name in done.stdout
    assert (tmp_path / "cases.png").read_bytes().startswith(b"\x89PNG")
    assert "Vallières" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(Run.open(tmp_path).stages()) == 7


@pytest.mark.slow
def test_the_demo_is_good_and_a_killed_one_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """A trial of a hundred lines had a mean Dice of 0.63 after 74 steps; the demo must be clearly
    better.
    """
    subprocess.run(demo(tmp_path / "whole"), check=True)
    whole = scores(tmp_path / "whole")
    assert whole["dsc"].mean() > 0.7
    for wait in (4, 15, 40):
        process = subprocess.Popen(demo(tmp_path / "killed"))
        time.sleep(wait)
        process.kill()
        process.wait()
    subprocess.run(demo(tmp_path / "killed"), check=True)
    pd.testing.assert_frame_equal(scores(tmp_path / "killed"), whole)
    assert Run.open(tmp_path / "whole").settings.training.steps == demo_settings().training.steps
