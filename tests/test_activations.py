"""What a window takes, counted without numbers, against PyTorch's own count with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import laws
from contextseg.methods import CMU, CPS, CoLab, Contexts, Supervised
from contextseg.nets import NETS
from contextseg.predict.activations import window_bytes
from contextseg.predict.memory import windows_at_once
from contextseg.predictor import sliding_window_arguments
from contextseg.predictor.fitting import window_gb
from contextseg.settings import PredictionSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[1, 2], ids=["thread", "threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def built(name: str, patch: tuple[int, ...], width: int = 8) -> nn.Module:
    dims, levels = len(patch), 4
    widths = tuple(width * 2**i for i in range(levels))
    strides = ((1,) * dims, *[(2,) * dims] * (levels - 1))
    return NETS[name](1, 3, widths, strides, ((3,) * dims,) * levels).eval()


def counted(network: nn.Module, image: torch.Tensor, path: Path) -> int:
    """The most bytes at once of PyTorch's allocator, by its profiler."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        network(image)
    seen.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    now = most = 0
    for change in changes:
        now += change["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("unet", (64, 64)),
        ("transunet-small", (64, 64)),
        ("deeplab", (64, 64)),
        ("cmunet", (64, 64)),
        ("unet", (24, 24, 24)),
        ("resenc", (16, 32, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}d",
)
def test_within_a_factor_of_two(
    name: str, patch: tuple[int, ...], tmp_path: Path, threads: int
) -> None:
    network = built(name, patch)
    expected = counted(network, torch.zeros(1, 1, *patch), tmp_path / "trace.json")
    estimate = window_bytes(network, (1, *patch), CPU)
    assert expected / 2 < estimate < expected * 2


def test_nothing_is_computed_and_nothing_changes() -> None:
    network = built("unet", (16, 16, 16))
    before = {name: x.clone() for name, x in network.state_dict().items()}
    sizes = [window_bytes(network, (1, *(16 * n,) * 3), GPU) for n in (1, 2, 8)]
    assert sizes[1] == pytest.approx(8 * sizes[0], rel=0.2)
    assert sizes[2] == pytest.approx(512 * sizes[0], rel=0.2)  # would take minutes
    for name, x in network.state_dict().items():
        assert x.device == CPU
        assert torch.equal(x, before[name])


def test_by_hand() -> None:
    """A convolution of 1 to 4 channels and its ReLU: image and result, then result and result."""
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU())
    pixels = prod((10, 10)) * 4
    assert window_bytes(network, (1, 10, 10), GPU) == 9 * pixels
    network[1].inplace = True
    assert window_bytes(network, (1, 10, 10), GPU) == 5 * pixels


@pytest.mark.parametrize(
    ("kind", "dims"),
    [(Supervised, 3), (Supervised, 2), (CoLab, 3), (Contexts, 3), (CPS, 3), (CMU, 2)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_method_is_counted(kind: Any, dims: int) -> None:
    """None of those that predict falls back to the rule of thumb."""
    plan = laws.plan(dims)
    method = kind(plan).eval()
    patch, bound = plan.patch_vox, 0.05
    gigabytes = window_gb(method, plan, CPU)
    rule = prod(patch) * plan.widths[0] * 4 * 6 / 2**30
    assert gigabytes != rule
    settings = PredictionSettings(memory_gb=bound)
    windows = sliding_window_arguments(method, plan, settings)["batch_size"]
    assert windows == windows_at_once(patch, bound, gigabytes)
    assert windows == 1 or windows * gigabytes <= bound


def test_a_network_that_has_to_see_numbers_goes_by_a_rule() -> None:
    class Looks(Supervised):
        def predict(self, image: torch.Tensor) -> torch.Tensor:
            return super().predict(image) if float(image.max()) > 0 else image

    plan = laws.plan()
    rule = prod(plan.patch_vox) * plan.widths[0] * 4 * 6 / 2**30
    assert window_gb(Looks(plan).eval(), plan, CPU) == rule
