"""Pretrained weights from a file, whoever named them: for `TransUNet` and `DeepLab`, by tables of names.

Nothing is downloaded, and nothing is unpickled but tensors. Whose names are known:

contextseg   our own, also inside a method (`net.` before each name), such as in a run's `model.pt`.
google       `R50+ViT-B_16.npz` of the vision transformer's authors (Dosovitskiy et al., ICLR 2021).
timm         `vit_base_r50_s16_*`, which is the same network, and `efficientnet_b3`. (Its BiT ResNets norm before each
             convolution, not after, and so are no part of a TransUNet.)
torchvision  `efficientnet_b3`.
authors      TransUNet's, and of segmentation-models-pytorch DeepLabV3+ on efficientnet-b3; both whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contextseg.disk import Problem, did_you_mean
from contextseg.nets.transunet import resized_places

ENOUGH = 0.25
"""The share of a network's numbers that a file must hold for it."""


# --- names ------------------------------------------------------------------------------------------------------------


def _blocks(theirs: str, **parts: str) -> dict[str, str]:
    """Parts of an EfficientNet's blocks; "expand_0" is our `expand.0`, and `theirs` is what stands before each name."""
    return {f"encoder.stages.{{s}}.{{i}}.{part.replace('_', '.')}": theirs + name for part, name in parts.items()}


def _first(table: Mapping[str, str]) -> dict[str, str]:
    """The same for the blocks of the first stage alone, which do not expand."""
    return {ours.replace("{s}", "0"): theirs.replace("{s}", "0").replace("{s1}", "1") for ours, theirs in table.items()}


NAMES: dict[str, dict[str, str]] = {
    "contextseg": {},
    "google": {
        "root.0": "conv_root",
        "root.1": "gn_root",
        "stages.{s}.{u}.conv{n}": "block{s1}/unit{u1}/conv{n}",
        "stages.{s}.{u}.norm{n}": "block{s1}/unit{u1}/gn{n}",
        "stages.{s}.{u}.skip.0": "block{s1}/unit{u1}/conv_proj",
        "stages.{s}.{u}.skip.1": "block{s1}/unit{u1}/gn_proj",
        "embed": "embedding",
        "places": "Transformer/posembed_input/pos_embedding",
        "layers.{i}.norm1": "Transformer/encoderblock_{i}/LayerNorm_0",
        "layers.{i}.norm2": "Transformer/encoderblock_{i}/LayerNorm_2",
        "layers.{i}.fc1": "Transformer/encoderblock_{i}/MlpBlock_3/Dense_0",
        "layers.{i}.fc2": "Transformer/encoderblock_{i}/MlpBlock_3/Dense_1",
        "layers.{i}.{part}": "Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1/{part}",
        "norm": "Transformer/encoder_norm",
    },
    "timm": {
        "root.0": "patch_embed.backbone.stem.conv",
        "root.1": "patch_embed.backbone.stem.norm",
        "stages.{s}.{u}.skip.0": "patch_embed.backbone.stages.{s}.blocks.{u}.downsample.conv",
        "stages.{s}.{u}.skip.1": "patch_embed.backbone.stages.{s}.blocks.{u}.downsample.norm",
        "stages.{s}.{u}.{part}": "patch_embed.backbone.stages.{s}.blocks.{u}.{part}",
        "embed": "patch_embed.proj",
        "places": "pos_embed",
        "layers.{i}.norm{n}": "blocks.{i}.norm{n}",
        "layers.{i}.fc{n}": "blocks.{i}.mlp.fc{n}",
        "layers.{i}.out": "blocks.{i}.attn.proj",
        "layers.{i}.{part}": "blocks.{i}.attn.{part}",  # of qkv, which is split when read
        "norm": "norm",
        "encoder.stem.0": "conv_stem",
        "encoder.stem.1": "bn1",
        **_first(
            _blocks("blocks.{s}.{i}.", depthwise_0="conv_dw", depthwise_1="bn1", project_0="conv_pw", project_1="bn2")
        ),
        **_blocks("blocks.{s}.{i}.", expand_0="conv_pw", expand_1="bn1", depthwise_0="conv_dw", depthwise_1="bn2"),
        **_blocks("blocks.{s}.{i}.", squeeze="se.conv_reduce", excite="se.conv_expand", project_0="conv_pwl"),
        **_blocks("blocks.{s}.{i}.", project_1="bn3"),
    },
    "torchvision": {
        "encoder.stem.{n}": "features.0.{n}",
        **_first(_blocks("features.{s1}.{i}.block.", depthwise_0="0.0", depthwise_1="0.1", squeeze="1.fc1")),
        **_first(_blocks("features.{s1}.{i}.block.", excite="1.fc2", project_0="2.0", project_1="2.1")),
        **_blocks("features.{s1}.{i}.block.", expand_0="0.0", expand_1="0.1", depthwise_0="1.0", depthwise_1="1.1"),
        **_blocks("features.{s1}.{i}.block.", squeeze="2.fc1", excite="2.fc2", project_0="3.0", project_1="3.1"),
    },
    "authors": {
        "root.0": "transformer.embeddings.hybrid_model.root.conv",
        "root.1": "transformer.embeddings.hybrid_model.root.gn",
        "stages.{s}.{u}.conv{n}": "transformer.embeddings.hybrid_model.body.block{s1}.unit{u1}.conv{n}",
        "stages.{s}.{u}.norm{n}": "transformer.embeddings.hybrid_model.body.block{s1}.unit{u1}.gn{n}",
        "stages.{s}.{u}.skip.0": "transformer.embeddings.hybrid_model.body.block{s1}.unit{u1}.downsample",
        "stages.{s}.{u}.skip.1": "transformer.embeddings.hybrid_model.body.block{s1}.unit{u1}.gn_proj",
        "embed": "transformer.embeddings.patch_embeddings",
        "places": "transformer.embeddings.position_embeddings",
        "layers.{i}.norm1": "transformer.encoder.layer.{i}.attention_norm",
        "layers.{i}.norm2": "transformer.encoder.layer.{i}.ffn_norm",
        "layers.{i}.fc{n}": "transformer.encoder.layer.{i}.ffn.fc{n}",
        "layers.{i}.{part}": "transformer.encoder.layer.{i}.attn.{part}",
        "norm": "transformer.encoder.encoder_norm",
        "bridge.{n}": "decoder.conv_more.{n}",
        "ups.{i}.{n}.{m}": "decoder.blocks.{i}.conv{n1}.{m}",
        "head": "segmentation_head.0",
        "encoder.stem.0": "encoder._conv_stem",
        "encoder.stem.1": "encoder._bn0",
        **_blocks("encoder._blocks.{block}.", expand_0="_expand_conv", expand_1="_bn0", depthwise_0="_depthwise_conv"),
        **_blocks("encoder._blocks.{block}.", depthwise_1="_bn1", squeeze="_se_reduce", excite="_se_expand"),
        **_blocks("encoder._blocks.{block}.", project_0="_project_conv", project_1="_bn2"),
        "pyramid.branches.0.{n}": "decoder.aspp.0.convs.0.{n}",
        "pyramid.branches.{i}.2": "decoder.aspp.0.convs.{i}.1",
        "pyramid.branches.{i}.{n}": "decoder.aspp.0.convs.{i}.0.{n}",
        "pyramid.pooled.{n}": "decoder.aspp.0.convs.4.{n1}",
        "pyramid.join.{n}": "decoder.aspp.0.project.{n}",
        "context.2": "decoder.aspp.2",
        "context.{n}": "decoder.aspp.1.{n}",
        "fine.{n}": "decoder.block1.{n}",
        "merge.2": "decoder.block2.1",
        "merge.{n}": "decoder.block2.0.{n}",
    },
}
"""Whose names: our parts to theirs, the first line that matches. "{s1}" is one more than "{s}"; "{block}" counts blocks
over all stages. What no line matches has our name."""


def _named(part: str, table: Mapping[str, str], depths: list[int]) -> str:
    """Their name of one of our parts (a tensor's name without "weight" and the like)."""
    for ours, theirs in table.items():
        match = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(ours)), part)
        if match:
            values: dict[str, str | int] = dict(match.groupdict())
            values |= {f"{key}1": int(value) + 1 for key, value in match.groupdict().items() if value.isdigit()}
            if "{block}" in theirs:
                values["block"] = sum(depths[: int(match["s"])]) + int(match["i"])
            return theirs.format(**values)
    return part


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did: tensors by our names, `loaded` or `kept` as they were; `unused` are the file's.

    share is that of the network's learned numbers which were loaded.
    """

    source: str
    share: float
    loaded: tuple[str, ...]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors by the names of {self.source}, {self.share:.0%} of the network's numbers"]
        parts += [f"not in the file: {_few(self.kept)}"] if self.kept else []
        parts += [f"not used: {_few(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def load_weights(net: nn.Module, path: str | Path, source: str = "auto", prefix: str = "") -> Loaded:
    """Copy what fits from a file of weights (.pt, .pth, .npz) into `net`, and say what did.

    source  whose names they are, of `NAMES`; "auto" takes those by which most fits.
    prefix  what stands before each name, in a file that holds more than this network.

    A first convolution for another number of channels is the mean over theirs; position embeddings are interpolated; a
    head for other classes is not loaded.

    Raises `Problem` for a file that cannot be read or holds no weights, an unknown source, weights of which less than
    `ENOUGH` fits, and weights that go with batch norm where the network has none. `net` is then as it was.
    """
    if source != "auto" and source not in NAMES:
        raise Problem(f"source={source}", "nobody of that name", did_you_mean(source, [*NAMES, "auto"]))
    found = _split({name.removeprefix(prefix): x for name, x in read_weights(path).items() if name.startswith(prefix)})
    ways = {name: _matched(net, found, name) for name in (NAMES if source == "auto" else [source])}
    best = max(ways, key=lambda name: sum(x.numel() for _, x in ways[name].values()))
    matched = ways[best]
    numbers = {name: p.numel() for name, p in net.named_parameters()}
    share = sum(numbers.get(name, 0) for name in matched) / sum(numbers.values())
    if share < ENOUGH:
        what = f"it has only {share:.0%} of this network's numbers; its names: {_few(tuple(found))}"
        remedy = f"give weights of this architecture, with the names of {', '.join(NAMES)}, or the prefix of the names"
        raise Problem(path, what, remedy)
    used = {theirs for theirs, _ in matched.values()}
    unused = tuple(name for name in found if name not in used)
    statistics = {name.removesuffix("running_mean") + "weight" for name in unused if name.endswith("running_mean")}
    if statistics & used:
        what = "these weights go with batch norm, and the network has group norm"
        raise Problem(path, what, 'build the network with norm="batch"')
    state = net.state_dict()
    with torch.no_grad():
        for name, (_, x) in matched.items():
            state[name].copy_(x)
    return Loaded(best, share, tuple(matched), tuple(name for name in state if name not in matched), unused)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .pt, .pth or .npz file by their names, on the CPU, without a wrapper's "module.".

    Raises `Problem` for a file that is missing, damaged, or holds no named tensors.
    """
    remedy = "give a state_dict saved by torch.save, or an .npz of arrays"
    try:
        if str(path).endswith(".npz"):
            with np.load(path) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Problem(path, "there is no such file", "give the path of a file of weights") from None
    except Exception as error:  # an unpickler may raise anything on a damaged file
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Problem(path, f"no weights can be read from it ({why})", remedy) from error
    for key in ("state_dict", "model_state_dict", "model", "method"):
        content = content[key] if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) else content
    tensors = {str(k): x for k, x in content.items() if isinstance(x, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise Problem(path, "it holds no named tensors", remedy)
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: x for name, x in tensors.items()}


def _split(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a joint "qkv" as three."""
    parts: dict[str, Tensor] = {}
    for name, x in found.items():
        if re.search(r"\.qkv\.(weight|bias)$", name):
            names = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
            parts |= dict(zip(names, x.chunk(3)))
        else:
            parts[name] = x
    return parts


def _matched(net: nn.Module, found: Mapping[str, Tensor], source: str) -> dict[str, tuple[str, Tensor]]:
    """Our name of each tensor that the file has in a shape that fits: its name there, and the tensor as we want it."""
    stages: Any = getattr(getattr(net, "encoder", None), "stages", ())
    depths = [len(stage) for stage in stages]
    out = {}
    for name, mine in net.state_dict().items():
        part, dot, leaf = name.rpartition(".")
        theirs = _named(part if dot else leaf, NAMES[source], depths)
        for candidate in _candidates(theirs, leaf if dot else "", source):
            if candidate in found and (x := _shaped(found[candidate], candidate, name, mine)) is not None:
                out[name] = candidate, x
                break
    return out


def _candidates(theirs: str, leaf: str, source: str) -> Iterable[str]:
    """What a tensor may be called in the file."""
    if source == "google" and leaf:
        return [f"{theirs}/bias"] if leaf == "bias" else [f"{theirs}/kernel", f"{theirs}/scale"]
    name = f"{theirs}.{leaf}" if leaf else theirs
    return [name, f"net.{name}"] if source == "contextseg" else [name]


def _shaped(x: Tensor, theirs: str, name: str, mine: Tensor) -> Tensor | None:
    """A tensor of the file in the order and shape of ours; None if it does not fit."""
    if theirs.endswith("/kernel") and x.ndim == 4:
        x = x.permute(3, 2, 0, 1)
    elif (
        theirs.endswith("/kernel") and x.ndim > 1
    ):  # (inputs, heads, each), or of the last layer (heads, each, outputs)
        x = (x.flatten(0, -2) if theirs.endswith("/out/kernel") else x.flatten(1)).T
    elif name == "places" and x.ndim == 3:  # (1, tokens, C), often with the token of the class before the others
        side = int(x.shape[1] ** 0.5)
        x = x[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)).float()
        x = resized_places(x, mine.shape[2:])
    elif mine.ndim == 1:
        x = x.flatten()
    if name in ("root.0.weight", "encoder.stem.0.weight") and x.ndim == 4 and x.shape[1] != mine.shape[1]:
        x = (x.mean(1, keepdim=True) * (x.shape[1] / mine.shape[1])).expand(-1, mine.shape[1], -1, -1)
    return x if x.shape == mine.shape else None


def _few(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
