"""nnU-Net's names of the tensors of its two networks, and the networks that can hold them all.

nnU-Net's are PlainConvUNet and ResidualEncoderUNet of dynamic-network-architectures; what differs
from ours is in `nets.unet`. A bias before an instance norm changes nothing; that of a transposed
convolution does at the image's edge, so that a network for nnU-Net's weights has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contextseg.errors import ContextsegError
from contextseg.nets.unet import ResidualUNet, UNet

_KINDS = {"PlainConvUNet": UNet, "ResidualEncoderUNet": ResidualUNet}
_REMEDY = "predict with nnU-Net, and give contextseg the label maps"


def nnunet_names(net: nn.Module) -> dict[str, str]:
    """nnU-Net's name of each part of a network.

    Args:
        net: A `UNet` or `ResidualUNet`.

    Returns:
        Name in our network to name in nnU-Net's, of convolutions and norms; {} for others.
    """
    if not isinstance(net, UNet | ResidualUNet):
        return {}
    names: dict[str, str] = {}
    residual = isinstance(net, ResidualUNet)
    for s, stage in enumerate(net.stages):
        if not residual:
            names |= _conv_blocks(stage, f"stages.{s}", f"encoder.stages.{s}.0")
            continue
        blocks = list(stage.children())
        if s == 0:
            names |= {"stages.0.0.0": "encoder.stem.convs.0.conv"}
            names |= {"stages.0.0.1": "encoder.stem.convs.0.norm"}
        first = 1 if s == 0 else 0
        for b, block in enumerate(blocks[first:]):
            ours, theirs = f"stages.{s}.{b + first}", f"encoder.stages.{s}.blocks.{b}"
            names |= {
                f"{ours}.body.0.0": f"{theirs}.conv1.conv",
                f"{ours}.body.0.1": f"{theirs}.conv1.norm",
                f"{ours}.body.1": f"{theirs}.conv2.conv",
                f"{ours}.body.2": f"{theirs}.conv2.norm",
            }
            skip: Any = block.skip
            if len(skip) > 1:  # a pool, where there is one, comes before the projection
                k = len(skip) - 2
                names |= {f"{ours}.skip.{k}": f"{theirs}.skip.{k}.conv"}
                names |= {f"{ours}.skip.{k + 1}": f"{theirs}.skip.{k}.norm"}
    for s, merge in enumerate(net.merges):
        names[f"ups.{s}"] = f"decoder.transpconvs.{s}"
        names |= _conv_blocks(merge, f"merges.{s}", f"decoder.stages.{s}")
    names |= {f"heads.{i}": f"decoder.seg_layers.{len(net.merges) - 1 - i}" for i in _heads(net)}
    return names


def _heads(net: UNet | ResidualUNet) -> Iterator[int]:
    yield from range(min(len(net.heads), len(net.merges)))


def _conv_blocks(stage: nn.Module, ours: str, theirs: str) -> dict[str, str]:
    names = {}
    for i in range(len(list(stage.children()))):
        names[f"{ours}.{i}.0"] = f"{theirs}.convs.{i}.conv"
        names[f"{ours}.{i}.1"] = f"{theirs}.convs.{i}.norm"
    return names


def nnunet_net(
    network: Mapping[str, Any], inputs: int, weights: Mapping[str, Tensor], where: str
) -> nn.Module:
    """A network of ours that computes what nnU-Net's does.

    Args:
        network: "name", nnU-Net's class, and the arguments that nnU-Net builds it with.
        inputs: Channels of the image.
        weights: nnU-Net's tensors by its names; the head says how many outputs there are.
        where: The file, for messages.

    Returns:
        The network with these weights, without deep supervision.

    Raises:
        ContextsegError: Another architecture, or weights that are not this network's.
    """
    kind = _KINDS.get(str(network["name"]).rpartition(".")[2])
    if kind is None:
        known = " and ".join(_KINDS)
        what = f"its network is {network['name']}; known here are {known}"
        raise ContextsegError(where, what, _REMEDY)
    arguments = _arguments(network, kind, where)
    last = f"decoder.seg_layers.{len(arguments['widths']) - 2}.weight"
    if last not in weights:
        raise ContextsegError(where, f"it has no {last}; not this network's weights", _REMEDY)
    net = kind(inputs, len(weights[last]), **arguments, deep=False)
    for up in net.ups:
        up.bias = nn.Parameter(torch.zeros(up.out_channels))
    names = nnunet_names(net)
    state = {}
    for name, ours in net.state_dict().items():
        part, _, leaf = name.rpartition(".")
        theirs = f"{names[part]}.{leaf}"
        if theirs not in weights and leaf == "bias" and part.startswith("ups."):
            state[name] = ours  # conv_bias is off there
            continue
        if theirs not in weights or weights[theirs].shape != ours.shape:
            found = tuple(weights[theirs].shape) if theirs in weights else "missing"
            what = f"{theirs} is {found}, and has {tuple(ours.shape)} by its plans"
            raise ContextsegError(where, what, _REMEDY)
        state[name] = weights[theirs]
    net.load_state_dict(state)
    return net


def _arguments(network: Mapping[str, Any], kind: type[nn.Module], where: str) -> dict[str, Any]:
    """Our arguments of a network, or a refusal of what ours has not."""
    levels = len(network["features_per_stage"])

    def numbers(key: str, count: int) -> list[int]:
        value = network[key]
        return [value] * count if isinstance(value, int) else list(value)

    decoder = numbers("n_conv_per_stage_decoder", levels - 1)
    out: dict[str, Any] = {
        "widths": list(network["features_per_stage"]),
        "strides": [list(axes) for axes in network["strides"]],
        "kernels": [list(axes) for axes in network["kernel_sizes"]],
        "convs": decoder[0] if decoder else 2,
    }
    same = set(decoder)
    if kind is ResidualUNet:
        out["blocks"] = numbers("n_blocks_per_stage", levels)
    else:
        same |= set(numbers("n_conv_per_stage", levels))
    usual = {
        "dropout_op": (None,),
        "nonlin": ("torch.nn.LeakyReLU", None),
        "nonlin_first": (False,),
        "stem_channels": (None, out["widths"][0]),
        "bottleneck_channels": (None,),
    }
    odd = [key for key, values in usual.items() if network.get(key, values[0]) not in values]
    norm = network.get("norm_op", "InstanceNorm")
    slope = (network.get("nonlin_kwargs") or {}).get("negative_slope", 0.01)
    eps = (network.get("norm_op_kwargs") or {}).get("eps", 1e-5)
    if "InstanceNorm" not in str(norm) or eps != 1e-5:
        odd.append("norm_op")
    if slope != 0.01:
        odd.append("nonlin_kwargs")
    if len(same) > 1:
        odd.append("numbers of convolutions that differ from level to level")
    if odd:
        raise ContextsegError(where, f"its network has another {_listed(odd)}", _REMEDY)
    return out


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def safe_numbers() -> AbstractContextManager[Any]:
    """Inside it torch's safe loading takes NumPy's numbers and arrays too, which nnU-Net logs.

    Returns:
        A context manager; before PyTorch 2.6 one that changes nothing, so that they are refused.
    """
    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6):
        return nullcontext()
    from numpy._core import multiarray

    numbers = [type(np.dtype(kind)) for kind in "?bhilqBHILQefd"]
    parts = [(multiarray.scalar, "scalar"), (multiarray._reconstruct, "_reconstruct")]
    named = [
        (part, f"numpy.{core}.multiarray.{name}")
        for part, name in parts
        for core in ("core", "_core")
    ]
    return torch.serialization.safe_globals([np.dtype, np.ndarray, *numbers, *named])
