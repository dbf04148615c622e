"""The container of FLARE22: its files are linted, and its script segments a folder.

No test builds it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from contextseg import api
from contextseg.data.phantom import write_flare22
from contextseg.pipeline import train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.studies.flare22 import reproduce_flare22
from contextseg.volume import read_labels

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


def lint(tool: str, *words: str | Path) -> None:
    program = shutil.which(
        tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if program is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([program, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_container_file_is_clean() -> None:
    lint("hadolint", DOCKER / "Dockerfile")


def test_the_script_is_clean() -> None:
    lint("shellcheck", "--shell=sh", DOCKER / "predict.sh")


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", (DOCKER / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_versions_are_pinned_and_nobody_is_root() -> None:
    found = instructions()
    last = max(i for i, (word, _) in enumerate(found) if word == "FROM")
    users = [rest for word, rest in found[last:] if word == "USER"]
    assert users == ["1000"]
    assert [word for word, _ in found[-2:]] == ["USER", "CMD"]
    python = next(rest for word, rest in found if rest.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=\d+\.\d+\.\d+-slim-\w+", python)
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch_version = next(rest for word, rest in found if rest.startswith("TORCH="))
    assert torch_version.lower().replace("=", "==") in pinned
    for word, rest in found:
        if word == "RUN" and "pip install" in rest:
            assert "==" in rest or "--constraint constraints.txt" in rest


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in kept


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docker")
    data = write_flare22(folder / "data", shape=(8, 16, 16))
    reproduce_flare22(data, folder / "out", partial=True)
    words = ["dims=2", "native=true", "steps=1", "batch_size=2", "patch_vox=16,16"]
    for name, method, own in (
        ("reference", "supervised", ["base_width=4"]),
        ("stcn", "stcn", []),
    ):
        settings = Settings(str(folder / "out" / "dataset"), method).set([*words, *own])
        train_run(Run(folder / name, settings))
        api.export(folder / name, folder / "models" / f"{name}.zip")
    return folder


@pytest.mark.parametrize("propagates", [True, False])
def test_the_script_segments_a_folder(models: Path, tmp_path: Path, propagates: bool) -> None:
    program = tmp_path / "bin" / "contextseg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m contextseg "$@"\n')
    program.chmod(0o755)
    given = tmp_path / "models"
    given.mkdir()
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    inputs = models / "data" / "Test" / "images"
    places = {"INPUTS": str(inputs), "OUTPUTS": str(outputs), "MODELS": str(given)}
    path = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", DOCKER / "predict.sh", "--profile"],
            env={**os.environ, **places, **path},
            capture_output=True,
            text=True,
        )

    missing = run()
    assert missing.returncode == 2
    assert "contextseg export" in missing.stderr
    for name in ("reference", *(["stcn"] if propagates else [])):
        shutil.copy(models / "models" / f"{name}.zip", given)
    done = run()
    assert done.returncode == 0, done.stderr
    label = read_labels(outputs / "FLARE22_Ts_0001.nii.gz")
    truth = read_labels(models / "data" / "Test" / "labels" / "FLARE22_Ts_0001.nii.gz")
    assert label.same_grid(truth)
    assert np.isin(label.array, range(14)).all()
    assert (outputs / "efficiency.csv").exists()
    assert (outputs / "two-stage.csv").exists() == propagates
