"""What the law tests share: a small plan, phantom batches, and short training."""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.batch import IGNORE, Batch
from contextseg.data import phantom
from contextseg.data.plan import Channel, Plan
from contextseg.methods import METHODS, Method
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.training import Training, train

SIDE = {2: 32, 3: 16}
os.environ.setdefault(
    "CONTEXTSEG_LAWS", tempfile.mkdtemp()
)  # processes that a test starts find what it has made


def plan(dims: int = 3, classes: int = 3, batch_size: int = 4) -> Plan:
    """A plan for phantoms of three levels."""
    names = ("background", "bright", "dark")[:classes]
    return Plan(
        dataset="phantom",
        classes=names,
        values=tuple(range(classes)),
        regions={name: (k,) for k, name in enumerate(names) if k},
        channels=(Channel("MR", "zscore"),),
        orientation="SAR",
        spacing_mm=(1.0, 1.0, 1.0),
        patch_vox=(SIDE[dims],) * dims,
        batch_size=batch_size,
        mirror=(True, True, True),
        swaps=(),
        widths=(8, 16, 32),
        strides=((1,) * dims, (2,) * dims, (2,) * dims),
        kernels=((3,) * dims,) * 3,
        batch_dice=dims == 2,
    )


def make(name: str, dims: int = 3, seed: int = 0, **arguments: object) -> Method:
    """A method of the registry with the weights of that seed; of a recipe, the last one that it
    would train.
    """
    entry: Any = METHODS[name]
    given = plan(dims) if inspect.isclass(entry) else prepared(name, dims)
    torch.manual_seed(seed)
    return entry(given, **arguments)


def prepared(name: str, dims: int) -> Run:
    """A run on phantoms, as a recipe receives it, that trains nothing."""
    folder = Path(os.environ["CONTEXTSEG_LAWS"]) / f"{name}-{dims}"
    data = folder.with_name("data")
    if not data.exists():
        phantom.write_dataset(data, labelled=3, unlabelled=1, test=0, classes=3)
    run = Run(folder, Settings(str(data), name))
    run.use_plan(plan(dims))
    run.check()
    run.make_plan()
    run.preprocess()
    run.train = lambda method, **_: method  # type: ignore[method-assign]
    return run


def batch(
    n: int, rank: int = 0, world: int = 1, device: object = "cpu", dims: int = 3, labelled: int = 4
) -> Batch:
    """Batch `n` of phantoms: the first `labelled` of four items have a label, and item 1 lacks
    class 2.
    """
    patients = [phantom.patient(1000 * n + i, (SIDE[dims],) * dims, classes=3) for i in range(4)]
    image = torch.from_numpy(np.stack([image for image, _ in patients]))[:, None]
    label = torch.from_numpy(np.stack([label for _, label in patients])).long()
    annotated = torch.ones(4, 3, dtype=torch.bool)
    annotated[1, 2] = False
    label[1][label[1] == 2] = 0
    label[labelled:] = IGNORE
    label[0, :3] = IGNORE  # a few unannotated slices
    return Batch(image - 0.5, label, annotated, torch.arange(4)).shard(rank, world)


def train_briefly(
    method: Method, folder: Path, steps: int, dims: int = 3, labelled: int = 4, **settings: object
) -> Method:
    """Train on phantom batches in `folder`."""

    def at(n: int, rank: int, world: int, device: object) -> Batch:
        return batch(n, rank, world, dims=dims, labelled=labelled)

    folder.mkdir(parents=True, exist_ok=True)
    training = Training(
        **({"steps": steps, "lr": 0.01, "save_every": 1000, "log_every": 10} | settings)
    )  # type: ignore[arg-type]
    train(method, at, folder, training, batch_size=4)
    return method
