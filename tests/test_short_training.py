"""Short trainings: which optimiser and rate are taken, and what a run says before it begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import contextseg as cs
import laws
from contextseg.data import phantom
from contextseg.data.layouts import folds, open_dataset
from contextseg.methods import METHODS, Method
from contextseg.methods.base import OPTIMIZERS, SHORT_LR, SHORT_STEPS, WHOLE_STRENGTH_VISITS
from contextseg.settings import defaults

TINY = (
    "steps=2",
    "patch_vox=16,16,16",
    "base_width=4",
    "max_levels=2",
    "batch_size=2",
    "device=cpu",
    "prediction.mirror=false",
)


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "contextseg", *map(str, words)]
    for word in TINY:
        line += ["--set", word]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, encoding="utf-8", env=environment)


@pytest.mark.parametrize(
    ("steps", "lr", "optimizer", "want"),
    [
        (SHORT_STEPS - 1, 0.0, "auto", ("adamw", SHORT_LR, True)),
        (SHORT_STEPS, 0.0, "auto", ("sgd", 0.01, False)),
        (10, 0.02, "auto", ("sgd", 0.02, False)),
        (10, 0.0, "adamw", ("adamw", 0.001, False)),
        (10, 0.0, "sgd", ("sgd", 0.01, False)),
    ],
)
def test_the_length_chooses_what_nobody_gave(
    steps: int, lr: float, optimizer: str, want: tuple[str, float, bool]
) -> None:
    method = laws.make("supervised", optimizer=optimizer)
    rate = method.settle(steps, lr)
    assert (method.optimizer, rate, method.short) == want
    strength = method.strength
    assert method.settle(steps, rate) == rate  # the loop asks again
    assert method.strength == strength
    seen = steps * method.visits_per_step
    assert (strength == 1) == (seen >= WHOLE_STRENGTH_VISITS or not method.short)


def test_the_augmentation_of_a_short_training_grows_with_how_often_a_case_is_seen() -> None:
    def strength(steps: int, visits_per_step: float = 0.1) -> float:
        method = laws.make("supervised", optimizer="auto")
        method.visits_per_step = visits_per_step
        method.settle(steps, 0)
        return method.strength

    steps = [1, 400, 1500, 3000, 6000, SHORT_STEPS - 1, SHORT_STEPS]
    assert list(map(strength, steps)) == [0.25, 0.25, 0.25, 0.5, 1, 1, 1]
    assert strength(400, 2 / 100) == 0.25
    assert strength(400, 4 / 4) == pytest.approx(400 / 600)
    assert strength(SHORT_STEPS, 2 / 1000) == 1


@pytest.mark.parametrize(
    ("method", "want"), [("supervised", 4 / 3), ("cps", 2 / 3), ("cmu", 4 / 3), ("pseudo", 2 / 3)]
)
def test_a_run_knows_how_often_it_sees_a_labelled_case(
    method: str, want: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=3, unlabelled=5, test=0)
    settled: list[float] = []

    def settle(self: Method, steps: int, lr: float) -> float:
        if next(self.parameters()).is_meta:  # the rehearsal
            return 0.01
        settled.append(self.visits_per_step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Method, "settle", settle)
    small = {"patch_vox": (8, 8, 8), "base_width": 2, "batch_size": 4, "steps": 9}
    with pytest.raises(KeyboardInterrupt):
        cs.train(data, tmp_path / "run", method=method, fold="all", verbose=False, **small)
    assert settled == [pytest.approx(want)]


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("name", METHODS)
def test_each_method_and_optimiser_has_a_rate_of_its_own(name: str, optimizer: str) -> None:
    """AdamW at the 0.01 that is SGD's learns nothing in cps, pseudo and stcn."""
    more = {"base": "cps"} if name == "pseudo" else {}
    method = laws.make(name, dims=2 if name == "stcn" else 3, optimizer=optimizer, **more)
    adamw = 0.0001 if name == "stcn" else 0.001  # the paper's
    for steps in (100, SHORT_STEPS, 250_000):
        assert method.settle(steps, 0) == (0.01 if optimizer == "sgd" else adamw)
    assert not method.short
    rates = {
        group["lr"]
        for key, each in method.optimizers(method.settle(100, 0)).items()
        for group in each.param_groups
        if key != "generator"  # CoLab's g has Adam, and a rate of its own
    }
    assert rates == {method.settle(100, 0)}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_settings_of_a_short_training(name: str) -> None:
    assert defaults(name)["training.lr"] == 0
    if name == "stcn":  # follows a mask; the paper's optimiser at any length
        assert defaults(name)["arguments.optimizer"] == "adamw"
        return
    assert defaults(name)["arguments.optimizer"] == "auto"
    short, long = laws.make(name, optimizer="auto"), laws.make(name, optimizer="auto")
    assert short.settle(1000, 0) == SHORT_LR
    assert (short.optimizer, short.short, short.strength) == ("adamw", True, 0.25)
    own = ("adamw", 0.001) if name in ("cps", "pseudo") else ("sgd", 0.01)
    assert (long.settle(SHORT_STEPS, 0), long.optimizer, long.strength) == (own[1], own[0], 1)


def test_a_class_that_is_only_validated_is_named(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=10, test=0, classes=3)
    held_out = folds(open_dataset(data), 0)[1][0].name
    for path in (data / "labelsTr").glob("*.nii.gz"):
        if path.name != f"{held_out}.nii.gz":
            image = nib.load(path)
            label = np.array(image.dataobj)
            label[label == 2] = 0
            nib.save(nib.Nifti1Image(label, image.affine), path)
    done = command("run", data, "-o", tmp_path / "run", "--fold", 0)
    assert done.returncode == 0, done.stderr
    assert "class dark cannot be learnt" in done.stderr
    assert "in validation cases only" in done.stderr
    assert "training on cpu, 1 thread on " in done.stderr
    assert "train-1 1/2  about" in done.stderr
    assert " left" in done.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "class dark cannot be learnt" in page


def test_what_check_warns_of_is_said_by_a_run(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=0)
    for path in sorted((data / "labelsTr").glob("*.nii.gz"))[1:]:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    findings = [f for f in cs.check(data, verbose=False) if f.level == "warning"]
    done = command("train", data, "-o", tmp_path / "run", "--fold", 0)
    assert findings
    assert all(f"warning: {f.where}: {f.what}" in done.stderr for f in findings)


def test_the_hint_after_training_stcn_is_propagate(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0, shape=(8, 32, 32))
    out = tmp_path / "run"
    words = ("train", data, "-o", out, "--method", "stcn", "--set", "dims=2")
    line = [sys.executable, "-m", "contextseg", *map(str, words)]
    for word in ("steps=2", "batch_size=2", "patch_vox=32,32", "device=cpu"):
        line += ["--set", word]
    done = subprocess.run(line, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    hint = done.stderr.split("Next: ")[1]
    assert hint.startswith("contextseg propagate")
    files = {
        "IMAGE": next((data / "imagesTr").glob("*.nii.gz")),
        "DRAWN": next((data / "labelsTr").glob("*.nii.gz")),
        "FILLED": tmp_path / "filled.nii.gz",
    }
    given = [str(files.get(word, word)) for word in hint.split()[1:]]
    line = [sys.executable, "-m", "contextseg", *given]
    followed = subprocess.run(line, capture_output=True, encoding="utf-8")
    assert followed.returncode == 0, followed.stderr
    assert files["FILLED"].exists()
