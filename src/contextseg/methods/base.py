"""What a label-efficient idea must say, and nothing else."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from contextseg.batch import Batch
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.disk import Problem, did_you_mean
from contextseg.losses import LOSSES, POOLED, Loss
from contextseg.nets import NETS

OPTIMIZERS = {
    "sgd": lambda parameters, lr: SGD(parameters, lr, momentum=0.99, nesterov=True, weight_decay=3e-5),
    "adamw": lambda parameters, lr: AdamW(parameters, lr, weight_decay=1e-2),
}


Maps = Callable[[np.ndarray, tuple[float, ...]], np.ndarray]
"""(label (*S) with classes and `IGNORE`, spacing_mm) -> (N, *S) float16."""
Mean = Callable[[list[Tensor]], None]


class Method(nn.Module, abc.ABC):
    """Networks, and how one batch teaches them. The loop owns optimisers' steps, ranks, precision and checkpoints.

    The first argument of a method's constructor is the plan; the others have defaults, so that the command line can set
    them by name.
    """

    unlabelled = 0
    """How many items of each batch come from cases without a label."""

    guided = False
    """Whether a scan is segmented from labels of its own: then `predict` is not offered."""

    maps: Maps | None = None
    """What `Batch.maps` is to tell of each voxel, worked out once over each whole labelled case; None for nothing."""

    @abc.abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Named loss terms; the loop descends their sum.

        Each is a mean over the batch's items, an item without annotation counting 0: so two ranks equal one process.
        """

    @abc.abstractmethod
    def predict(self, image: Tensor) -> Tensor:
        """(B, C, *S) to logits (B, K, *S): what is deployed. Called in evaluation mode."""

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """Parameters that are clipped and stepped together, and by what. Default: all of them, nnU-Net's SGD."""
        return {"all": OPTIMIZERS["sgd"](self.parameters(), lr)}

    def decay(self, done: float) -> float:
        """The factor on the learning rates after the fraction `done` of the training; nnU-Net's polynomial."""
        return (1 - done) ** 0.9

    def sampler(self, cases: Sequence[Cached], plan: Plan, seed: int, augmentation: Augmentation, steps: int) -> Any:
        """What draws the batches (its `batch` is that of `Sampler`); None, as for most: patches with labels."""
        return None

    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]:
        """Gradients for groups of parameters that no loss term trains (bilevel methods); {} for everyone else.

        Called once a step on every rank, also where the batch is empty, after the backward pass and before any
        parameter moves: each holds in `.grad` the gradient of the whole batch, all ranks', unclipped. `mean` replaces
        tensors that are means over this rank's items by the means over all items, in place; what is returned is
        averaged so by the loop.
        """
        return {}


def build_net(name: str, plan: Plan, classes: int | None = None) -> nn.Module:
    """The network `name` of the registry at the plan's size, with `classes` outputs (the plan's own by default).

    Where the plan gives it the slice's position, a network that has a place for it takes it there (TransUNet, as
    published); any other sees it as one channel more.

    Raises `Problem` for an unknown name.
    """
    if name not in NETS:
        raise Problem(f"net={name}", "there is no such network", did_you_mean(name, NETS))
    inputs, more = len(plan.channels), {}
    if plan.intensities < inputs and "position" in inspect.signature(NETS[name]).parameters:
        inputs, more = plan.intensities, {"position": True}
    return NETS[name](
        inputs=inputs,
        classes=classes or len(plan.classes),
        widths=plan.widths,
        strides=plan.strides,
        kernels=plan.kernels,
        **more,
    )


def loss_of(plan: Plan, name: str = "dice_ce", **settings: Any) -> Loss:
    """The loss `name` of the registry, its Dice pooled over the batch where the plan says so.

    Raises `Problem` for an unknown name.
    """
    if name not in LOSSES:
        raise Problem(f"loss={name}", "there is no such loss", did_you_mean(name, LOSSES))
    pooled = {"pooled": True} if plan.batch_dice and name in POOLED else {}
    return partial(LOSSES[name], **settings, **pooled)


def optimizer(name: str, parameters: object, lr: float) -> Optimizer:
    """One of `OPTIMIZERS` by name. Raises `Problem` for an unknown one."""
    if name not in OPTIMIZERS:
        raise Problem(f"optimizer={name}", "there is no such optimiser", did_you_mean(name, OPTIMIZERS))
    return OPTIMIZERS[name](parameters, lr)
