"""Beside nnU-Net v2 itself: its commands train by our methods, and we predict with its models.

`make test-nnunet` runs this in the environment of the benchmarks; elsewhere it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import contextseg as cs
from contextseg.data import phantom
from contextseg.volume import read_labels

pytestmark = pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed")
torch.set_num_threads(1)

DATA = "Dataset001_Phantom"
CLASSES = 3

TRAINERS = '''
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainer_brief(nnUNetTrainer):
    """A few steps of Adam, so that something is segmented."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.num_val_iterations_per_epoch = 1
        self.num_iterations_per_epoch = 25

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), 5e-3)
        return optimizer, PolyLRScheduler(optimizer, 5e-3, self.num_epochs)
'''

STAND_IN = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""
"""In place of timm, which does not import beside a CPU build of torch.

nnU-Net imports every trainer of its own to find one by name, those of transformers too.
"""


class Peer:
    """nnU-Net's commands on a small data set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw"
        self.results = root / "results"
        mine = root / "trainers"
        mine.mkdir()
        (mine / "brief_trainer.py").write_text(TRAINERS, encoding="utf-8")
        stand_in = root / "stand_in" / "timm"
        (stand_in / "models").mkdir(parents=True)
        for name in ("__init__.py", "models/__init__.py"):
            (stand_in / name).touch()
        for name in ("layers.py", "models/eva.py"):
            (stand_in / name).write_text(STAND_IN, encoding="utf-8")
        ours = subprocess.run(
            [sys.executable, "-m", "contextseg.nnunet"], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(stand_in.parent), *sys.path]),
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(root / "preprocessed"),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": os.pathsep.join([ours, str(mine)]),
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *words: object, settings: str = "", processes: int = 0) -> str:
        """The output of a command."""
        environment = {
            **self.environment,
            "contextseg_settings": settings,
            "nnUNet_n_proc_DA": str(processes),
        }
        done = subprocess.run(
            [str(word) for word in words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout + done.stderr

    def train(self, trainer: str, configuration: str = "3d_fullres", *words: str, **given) -> Path:
        """The folder of a model, trained by `nnUNetv2_train` for a few steps."""
        settings = given.pop("settings", "epochs=1 steps=3")
        self(
            *("nnUNetv2_train", "1", configuration, "0", "-tr", trainer, "-device", "cpu", *words),
            settings=settings,
            **given,
        )
        plans = words[words.index("-p") + 1] if "-p" in words else "nnUNetPlans"
        return self.results / DATA / f"{trainer}__{plans}__{configuration}"

    def predict(self, model: Path, output: Path) -> Path:
        """The folder with `nnUNetv2_predict_from_modelfolder`'s label maps of the test scans."""
        self(
            *("nnUNetv2_predict_from_modelfolder", "-m", model, "-f", "0", "-o", output),
            *("-i", self.raw / DATA / "imagesTs", "-device", "cpu", "-npp", "1", "-nps", "1"),
        )
        return output


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """nnU-Net, with phantoms planned and preprocessed."""
    root = tmp_path_factory.mktemp("nnunet")
    made = Peer(root)
    folder = made.raw / DATA
    phantom.write_dataset(folder, labelled=5, test=2, classes=CLASSES, shape=(24, 36, 36))
    partly = {"annotated": ["bright"]}
    label = folder / "labelsTr" / "phantom_000.json"
    label.write_text(json.dumps(partly), encoding="utf-8")
    made("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "2d", "3d_fullres", processes=1)
    plans = root / "preprocessed" / DATA / "nnUNetPlans.json"
    content = json.loads(plans.read_text(encoding="utf-8"))
    for configuration in content["configurations"].values():
        if "architecture" in configuration:  # narrow, so that a test takes seconds
            network = configuration["architecture"]["arch_kwargs"]
            network["features_per_stage"] = [min(4 * 2**i, 16) for i in range(network["n_stages"])]
            configuration["batch_size"] = 2
    plans.write_text(json.dumps(content), encoding="utf-8")
    return made


def agreement(
    model: Path, ours: Path, theirs: Path, images: Path, segmented: bool = True
) -> list[float]:
    """The share of voxels with the same label, by scan; `segmented`: not all is background."""
    predictor = cs.load(model, device="cpu")
    shares = []
    held = set()
    for scan in sorted(images.glob("*.nii.gz")):
        name = scan.name.replace("_0000", "")
        predictor.predict(scan).save(ours / name)
        a = read_labels(ours / name).array
        b = read_labels(theirs / name).array
        shares.append(float((a == b).mean()))
        held |= set(np.unique(b).tolist())
    assert len(held) > 1 or not segmented, "nothing is segmented, so that nothing is compared"
    return shares


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        ("CoLab", "context_classes=3 steps=8 lr=0.05"),
        ("context", "context_classes=3 steps=200 lr=0.005 optimizer=adamw"),
        ("presence", "presence_weight=0.3 steps=8 lr=0.05"),
        ("partial", "loss=focal class_weights=1,2,2 steps=30 lr=0.005 optimizer=adamw"),
    ],
)
def test_nnunet_trains_by_our_methods(
    peer: Peer, trainer: str, settings: str, tmp_path: Path
) -> None:
    """Trained and validated by its command, predicted by its command, and by us alike."""
    name = f"nnUNetTrainer_contextseg_{trainer}"
    model = peer.train(name, settings=f"epochs=1 {settings}")
    summary = json.loads(
        (model / "fold_0" / "validation" / "summary.json").read_text(encoding="utf-8")
    )
    assert set(summary["mean"]) == {"1", "2"}
    kept = json.loads((model / "plans.json").read_text(encoding="utf-8"))["contextseg"]
    assert settings.partition("=")[0] in kept
    theirs = peer.predict(model, tmp_path / "theirs")
    images = peer.raw / DATA / "imagesTs"
    # nnU-Net is not seeded: after so few steps there may be nothing but background
    shares = agreement(model, tmp_path / "ours", theirs, images, segmented=False)
    assert min(shares) > 0.995


def test_colab_is_continued_with_its_generator(peer: Peer) -> None:
    """In 2-D; the checkpoint has the state of g's Adam, and training goes on from it."""
    name = "nnUNetTrainer_contextseg_CoLab"
    model = peer.train(name, "2d", settings="epochs=1 steps=2")
    file = model / "fold_0" / "checkpoint_final.pth"
    before = torch.load(file, weights_only=False)
    assert before["contextseg"]["steps"] == 2
    assert before["contextseg"]["optimizers"]["generator"]["state"]
    peer.train(name, "2d", "--c", settings="epochs=2 steps=2")
    after = torch.load(file, weights_only=False)
    assert after["contextseg"]["steps"] == 4
    part = "method.generator.net.stages.0.0.0.weight"
    assert not torch.equal(before["network_weights"][part], after["network_weights"][part])


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_a_model_of_nnunet_predicts_here_as_there(
    peer: Peer, configuration: str, tmp_path: Path
) -> None:
    model = peer.train("nnUNetTrainer_brief", configuration)
    theirs = peer.predict(model, tmp_path / "theirs")
    images = peer.raw / DATA / "imagesTs"
    assert min(agreement(model, tmp_path / "ours", theirs, images)) > 0.995


def test_scores_are_the_same_there(peer: Peer, tmp_path: Path) -> None:
    """Dice of each case and class, and their means, of predictions with every kind of error."""
    references = peer.raw / DATA / "labelsTs"
    predictions = tmp_path / "predictions"
    files = sorted(references.glob("*.nii.gz"))
    for i, file in enumerate(files):
        label = read_labels(file)
        wrong = np.roll(label.array, 2 + i, axis=1)
        if i == 0:
            wrong[wrong == 2] = 0  # a class is missed
        label.with_array(wrong).save(predictions / file.name)
    table = peer.raw / DATA / "dataset.json"
    plans = peer.root / "preprocessed" / DATA / "nnUNetPlans.json"
    theirs = tmp_path / "theirs.json"
    peer(
        *("nnUNetv2_evaluate_folder", references, predictions, "-djfile", table),
        *("-pfile", plans, "-o", theirs, "-np", "1"),
    )
    cs.evaluate(predictions, references, tmp_path / "ours", labels=table, verbose=False)
    ours = json.loads((tmp_path / "ours" / "summary.json").read_text(encoding="utf-8"))
    expected = json.loads(theirs.read_text(encoding="utf-8"))
    assert len(expected["metric_per_case"]) == len(files)
    for one, other in zip(ours["metric_per_case"], expected["metric_per_case"]):
        assert Path(one["prediction_file"]).name == Path(other["prediction_file"]).name
        for label in ("1", "2"):
            for metric in ("Dice", "IoU", "TP", "FP", "FN", "TN"):
                assert one["metrics"][label][metric] == pytest.approx(
                    other["metrics"][label][metric], abs=1e-12
                )
    for label in ("1", "2"):
        assert ours["mean"][label]["Dice"] == pytest.approx(expected["mean"][label]["Dice"])
    assert ours["foreground_mean"]["Dice"] == pytest.approx(expected["foreground_mean"]["Dice"])
