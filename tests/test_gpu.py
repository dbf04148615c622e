"""Laws on a GPU: half precision, resume, CoLab's product, and the labels of the CPU.

`CONTEXTSEG_GPU_TESTS=cpu` runs them on a CPU, to see that they work before a GPU is at hand.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import laws
from contextseg.batch import Batch
from contextseg.methods import METHODS
from contextseg.predict import segment
from contextseg.propagation import Session
from contextseg.training import Training, TrainingState, training_step

NAMES = ["supervised", "context", "colab", "cps", "cmu"]
"""One of each kind of loss and loop; the recipes train these again."""


@pytest.fixture
def device() -> torch.device:
    asked = os.environ.get("CONTEXTSEG_GPU_TESTS", "")
    if asked == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def on_the_device(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the laws come to the device, as those of a sampler do."""
    real = laws.batch

    def moved(*args: int, **kwargs: int) -> Batch:
        return real(*args, **kwargs).to(device)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", moved)


def gradients(method: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.float().flatten() for p in method.parameters() if p.grad is not None])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite(name: str, dims: int, device: torch.device) -> None:
    method = laws.make(name, dims).to(device)
    method.train()
    training = Training(lr=0.01, device=device.type)
    state = TrainingState(method, training, device)
    for n in range(4):
        state.step = n
        terms = training_step(
            state, laws.batch(n, dims=dims).to(device), training, training.lr, 1.0
        )
        assert all(bool(term.isfinite()) for term in terms.values())
    assert all(bool(p.isfinite().all()) for p in method.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_has_the_gradient_of_float32(name: str, device: torch.device) -> None:
    found = []
    for enabled in (False, True):
        method = laws.make(name).to(device)
        method.train()
        torch.manual_seed(0)
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            terms = method(laws.batch(0).to(device))
        torch.stack([term.float() for term in terms.values()]).sum().backward()
        found.append(gradients(method))
    assert bool(found[1].isfinite().all())
    assert float(torch.cosine_similarity(found[0], found[1], 0)) > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(
    name: str, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sums in another order turn labels that the networks of cps draw for each other, and these pull
    # two trainings apart whatever is resumed; so as few sums as torch can do in a fixed order.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    settings = {"device": device.type, "precision": "float32", "save_every": 2}
    start = dict(laws.make(name).named_parameters())
    whole = laws.train_briefly(laws.make(name), tmp_path / "whole", 5, **settings).cpu()
    real, seen = laws.batch, []

    def interrupting(n: int, *args: int, **kwargs: int) -> object:
        seen.append(n)
        if n == 3 and seen.count(3) == 1:
            raise KeyboardInterrupt
        return real(n, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(laws, "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        laws.train_briefly(laws.make(name), tmp_path / "part", 5, **settings)
    resumed = laws.train_briefly(laws.make(name, seed=9), tmp_path / "part", 5, **settings).cpu()
    others = dict(resumed.named_parameters())
    with torch.no_grad():
        moved = max(float((p - start[n]).abs().max()) for n, p in whole.named_parameters())
        apart = max(float((p - others[n]).abs().max()) for n, p in whole.named_parameters())
    # The same numbers, but for sums in another order.
    assert apart <= (0.02 if device.type == "cuda" else 0) * moved


@pytest.mark.parametrize("meta", ["exact", "finite"])
def test_the_product_of_colab_is_that_of_float32(meta: str, device: torch.device) -> None:
    found = []
    for half in (False, True):
        method = laws.make("colab", meta=meta, lookahead_items=1, lookahead_parts=1).to(device)
        method.train()
        batch = laws.batch(0).to(device)
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        with torch.autocast(device.type, dtype, enabled=half, cache_enabled=False):
            ahead = method.lookahead(batch, 0.01, 0, lambda values: None)
        found.append(torch.cat([g.float().flatten() for g in ahead["generator"]]))
    assert bool(found[1].isfinite().all())
    if meta == "exact" or device.type == "cuda":
        assert float(torch.cosine_similarity(found[0], found[1], 0)) > 0.9


@pytest.mark.parametrize("name", ["supervised", "colab"])
def test_predictions_are_those_of_the_cpu(name: str, device: torch.device, tmp_path: Path) -> None:
    method = laws.train_briefly(laws.make(name), tmp_path, 60, lr=0.1, device=device.type).eval()
    image = (
        laws.batch(77).image[:2, 0].cpu().reshape(1, 2 * laws.SIDE[3], laws.SIDE[3], laws.SIDE[3])
    )
    labels = []
    for where in (torch.device("cpu"), device):
        method = method.to(where)
        labels.append(segment(method.predict, image, (40, 24, 24), (16, 16, 16), device=where))
    assert len(np.unique(labels[0])) > 1
    assert float(np.mean(labels[0] != labels[1])) < 1e-3


def test_propagation_is_that_of_the_cpu(device: torch.device) -> None:
    net = laws.make("stcn", 2).eval() if "stcn" in METHODS else None
    assert net is not None
    torch.manual_seed(0)
    volume = torch.randn(1, 9, 48, 48)
    label = np.zeros((48, 48), np.int64)
    label[12:36, 12:36] = 1
    volume[:, :, 12:36, 12:36] += 4
    filled = [
        Session(net.net.to(where), volume.to(where)).propagate({0: label, 8: label}).labels
        for where in (torch.device("cpu"), device)
    ]
    assert float(np.mean(filled[0] != filled[1])) < 0.02
