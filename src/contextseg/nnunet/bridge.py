"""Between nnU-Net's trainer and a method of ours: the plan, the network, the batch, the settings.

Nothing here needs nnU-Net; the trainers that do are in `trainers`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contextseg.batch import IGNORE, Batch
from contextseg.data.plan import Channel, Plan
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.losses import deep
from contextseg.methods import Method
from contextseg.methods.base import loss_of
from contextseg.nets import Presence
from contextseg.nets.unet import padded
from contextseg.settings import setting_value
from contextseg.volume import AXIAL

SETTINGS = "contextseg_settings"
"""The environment variable with settings of a trainer, such as "context_classes=4 epochs=100"."""

LENGTH = {"epochs": "num_epochs", "steps": "num_iterations_per_epoch", "lr": "initial_lr"}
"""What a trainer takes beside the arguments of its method, and what nnU-Net calls it.

"steps" are those of an epoch.
"""


def trainer_settings(method: Callable[..., Method]) -> dict[str, Any]:
    """The settings of a trainer, from the environment.

    Args:
        method: The method whose arguments they are.

    Returns:
        Values by name; {} where the variable is not set.

    Raises:
        ContextsegError: A name is unknown, or a value has the wrong type.
    """
    parameters = list(inspect.signature(method).parameters.values())[1:]
    hints = {p.name: p.annotation for p in parameters if p.name not in ("net", "weights")}
    hints |= {"epochs": "int", "steps": "int", "lr": "float"}
    values = {}
    for word in os.environ.get(SETTINGS, "").split():
        name, equals, text = word.partition("=")
        where = f"{SETTINGS}: {word}"
        if not equals:
            raise ContextsegError(where, "no '='", "write name=value, with spaces between")
        if name not in hints:
            raise ContextsegError(where, "there is no such setting", did_you_mean(name, hints))
        values[name] = setting_value(text, hints[name], name)
    return values


class MethodNetwork(nn.Module):
    """A method as a network of nnU-Net's trainer: its own network inside is nnU-Net's.

    In evaluation it gives the logits that are deployed, (B, K, *S), in a list where nnU-Net has
    deep supervision on.

    Args:
        method: The method, with a network of ours.
        make: Number of outputs to the network that takes its place.
        strides: Strides of each level of that network.
    """

    def __init__(
        self,
        method: Method,
        make: Callable[[int], nn.Module],
        strides: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        self.method = method
        own: Any = method.net
        if isinstance(own, Presence):  # the head stays: its features are as wide
            own.net = Levels(make(_outputs(own.net)), strides)
        else:
            method.net = Levels(make(_outputs(own)), strides)

    @property
    def levels(self) -> Levels:
        """nnU-Net's network."""
        own: Any = self.method.net
        levels: Any = own.net if isinstance(own, Presence) else own
        return levels

    @property
    def decoder(self) -> Any:
        """nnU-Net turns its deep supervision on and off."""
        return self.levels.net.decoder

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) to the logits (B, K, *S)."""
        logits = self.method.predict(image)
        return [logits] if self.decoder.deep_supervision else logits


class Levels(nn.Module):
    """nnU-Net's network as one of ours: a list of logits in training alone, and no lowest level.

    nnU-Net gives its lowest logits weight 0; ours have none there. Images have any size, as parts
    of a patch do.

    Args:
        net: nnU-Net's network, with an encoder and a decoder.
        strides: Strides of each level.
    """

    def __init__(self, net: nn.Module, strides: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.net = net
        self.reach = np.cumprod(np.array(strides), 0).tolist()

    @property
    def encoder(self) -> nn.Module:
        """The encoder; its last output is the deepest."""
        net: Any = self.net
        return net.encoder

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) to logits; in training a list, full resolution first."""
        outputs = self.net(padded(image, self.reach[-1]))
        levels = [outputs] if isinstance(outputs, Tensor) else outputs
        size = image.shape[2:]
        levels = [
            z[(..., *(slice(-(-n // r)) for n, r in zip(size, reach)))]
            for z, reach in zip(levels, self.reach)
        ]
        return levels[: max(1, len(levels) - 1)] if self.training else levels[0]


def _outputs(net: Any) -> int:
    return net.heads[0].out_channels


def network_plan(configuration: Mapping[str, Any], inputs: int, outputs: int) -> Plan:
    """What a method needs to know of nnU-Net's configuration.

    Args:
        configuration: A configuration of nnU-Net's plans, of version 2.3 or later.
        inputs: Channels of the image.
        outputs: K.

    Returns:
        A plan whose classes have numbers for names.

    Raises:
        ContextsegError: The network does not say its levels.
    """
    kwargs = configuration["architecture"]["arch_kwargs"]
    missing = {"features_per_stage", "strides", "kernel_sizes"} - set(kwargs)
    if missing:
        name = configuration["architecture"]["network_class_name"]
        what = f"its plans do not say {', '.join(sorted(missing))}"
        raise ContextsegError(name, what, "use PlainConvUNet or ResidualEncoderUNet")
    spacing = [float(mm) for mm in configuration["spacing"]]
    d, h, w = [1.0] * (3 - len(spacing)) + spacing
    classes = tuple(str(k) for k in range(outputs))
    return Plan(
        dataset="nnU-Net",
        classes=classes,
        values=tuple(range(outputs)),
        regions={name: (k,) for k, name in enumerate(classes) if k},
        channels=(Channel("image", "none"),) * inputs,
        orientation=AXIAL,
        spacing_mm=(d, h, w),
        patch_vox=tuple(int(n) for n in configuration["patch_size"]),
        batch_size=int(configuration["batch_size"]),
        mirror=(False, False, False),
        swaps=(),
        widths=tuple(int(n) for n in kwargs["features_per_stage"]),
        strides=tuple(tuple(int(n) for n in axes) for axes in kwargs["strides"]),
        kernels=tuple(tuple(int(n) for n in axes) for axes in kwargs["kernel_sizes"]),
        batch_dice=bool(configuration["batch_dice"]),
    )


def batch_of(
    batch: Mapping[str, Any],
    plan: Plan,
    ignore: int | None,
    annotated: Mapping[str, Sequence[bool]],
    device: torch.device,
) -> Batch:
    """A batch of nnU-Net's loader as ours.

    Args:
        batch: "data", "target" (one, or one for each level) and "keys", the names of the cases.
        plan: Gives the classes.
        ignore: nnU-Net's ignore label.
        annotated: Which classes are annotated, by case; all in a case that is not here.
        device: Where it goes.

    Returns:
        The batch. Items of one case have the same number.
    """
    target = batch["target"]
    target = target[0] if isinstance(target, list | tuple) else target
    label = target[:, 0].long()
    if ignore is not None:
        label = torch.where(label == ignore, IGNORE, label)
    keys = [str(key) for key in batch["keys"]]
    every = [True] * len(plan.classes)
    known = torch.tensor([list(annotated.get(key, every)) for key in keys])
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    case = torch.tensor([numbers[key] for key in keys])
    return Batch(batch["data"], label, known, case).to(device)


def validation_loss(plan: Plan, ignore: int | None, settings: Mapping[str, Any]) -> Any:
    """What nnU-Net's validation calls its loss: ours, of deployed logits and their target."""
    loss = loss_of(plan, settings.get("loss", "dice_ce"), settings.get("class_weights", ()))

    def of(outputs: Any, target: Any) -> Tensor:
        outputs = outputs[0] if isinstance(outputs, list | tuple) else outputs
        target = target[0] if isinstance(target, list | tuple) else target
        label = target[:, 0].long()
        if ignore is not None:
            label = torch.where(label == ignore, IGNORE, label)
        return deep(loss, outputs, label)

    return of
