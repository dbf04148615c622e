"""Start weights, whoever named them: our own, and pretrained ones of `TransUNet` and `DeepLab`.

Nothing is downloaded, and nothing is unpickled but tensors. The sources whose names are known:

- "contextseg": any network of ours, also inside a method, such as in a run's `model.pt`.
- "nnunet": nnU-Net v2's two networks, such as in its `checkpoint_final.pth`.
- "google": `R50+ViT-B_16.npz` of the vision transformer's authors (Dosovitskiy et al., ICLR 2021).
- "timm": `vit_base_r50_s16_*`, which is the same network, and `efficientnet_b3`. (Its BiT ResNets
  have their norms before each convolution, not after, and so are no part of a TransUNet.)
- "torchvision": `efficientnet_b3`.
- "authors": TransUNet's, and of segmentation_models.pytorch DeepLabV3+ on efficientnet-b3; both
  whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contextseg.errors import ContextsegError, did_you_mean
from contextseg.nets.nnunet import nnunet_names
from contextseg.nets.sources import StartWeights, read_start_weights, read_weights
from contextseg.nets.transunet import resized_places

ENOUGH = 0.25
"""The share of a network's numbers that a file must have."""

OUR_LEADS = ("", "net.", "net.net.", "nets.0.")
"""What may stand before a network's names: of a method, a method with a head, the first of two."""


# --- names ----------------------------------------------------------------------------------------


def _blocks(theirs: str, **parts: str) -> dict[str, str]:
    """Names of the parts of EfficientNet blocks, after `theirs`; "expand_0" is our `expand.0`."""
    return {
        f"encoder.stages.{{s}}.{{i}}.{part.replace('_', '.')}": theirs + name
        for part, name in parts.items()
    }


def _first(table: Mapping[str, str]) -> dict[str, str]:
    """The same for the blocks of the first stage, which do not expand."""
    return {
        ours.replace("{s}", "0"): theirs.replace("{s}", "0").replace("{s1}", "1")
        for ours, theirs in table.items()
    }


_HYBRID = "transformer.embeddings.hybrid_model."

NAMES: dict[str, dict[str, str]] = {
    "contextseg": {},
    "nnunet": {},  # by `nets.nnunet.nnunet_names`
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
            _blocks(
                "blocks.{s}.{i}.",
                depthwise_0="conv_dw",
                depthwise_1="bn1",
                project_0="conv_pw",
                project_1="bn2",
            )
        ),
        **_blocks(
            "blocks.{s}.{i}.",
            expand_0="conv_pw",
            expand_1="bn1",
            depthwise_0="conv_dw",
            depthwise_1="bn2",
        ),
        **_blocks(
            "blocks.{s}.{i}.",
            squeeze="se.conv_reduce",
            excite="se.conv_expand",
            project_0="conv_pwl",
        ),
        **_blocks("blocks.{s}.{i}.", project_1="bn3"),
    },
    "torchvision": {
        "encoder.stem.{n}": "features.0.{n}",
        **_first(
            _blocks(
                "features.{s1}.{i}.block.", depthwise_0="0.0", depthwise_1="0.1", squeeze="1.fc1"
            )
        ),
        **_first(
            _blocks("features.{s1}.{i}.block.", excite="1.fc2", project_0="2.0", project_1="2.1")
        ),
        **_blocks(
            "features.{s1}.{i}.block.",
            expand_0="0.0",
            expand_1="0.1",
            depthwise_0="1.0",
            depthwise_1="1.1",
        ),
        **_blocks(
            "features.{s1}.{i}.block.",
            squeeze="2.fc1",
            excite="2.fc2",
            project_0="3.0",
            project_1="3.1",
        ),
    },
    "authors": {
        "root.0": _HYBRID + "root.conv",
        "root.1": _HYBRID + "root.gn",
        "stages.{s}.{u}.conv{n}": _HYBRID + "body.block{s1}.unit{u1}.conv{n}",
        "stages.{s}.{u}.norm{n}": _HYBRID + "body.block{s1}.unit{u1}.gn{n}",
        "stages.{s}.{u}.skip.0": _HYBRID + "body.block{s1}.unit{u1}.downsample",
        "stages.{s}.{u}.skip.1": _HYBRID + "body.block{s1}.unit{u1}.gn_proj",
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
        **_blocks(
            "encoder._blocks.{block}.",
            expand_0="_expand_conv",
            expand_1="_bn0",
            depthwise_0="_depthwise_conv",
        ),
        **_blocks(
            "encoder._blocks.{block}.",
            depthwise_1="_bn1",
            squeeze="_se_reduce",
            excite="_se_expand",
        ),
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
"""Names by source: our part to theirs, the first line that matches.

"{s1}" is one more than "{s}"; "{block}" counts blocks over all stages. What no line matches has our
name.
"""


def _named(part: str, table: Mapping[str, str], depths: list[int]) -> str:
    """Their name of one of our parts, a tensor's name without "weight" and the like."""
    for ours, theirs in table.items():
        match = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\w+)", re.escape(ours)), part)
        if match:
            values: dict[str, str | int] = dict(match.groupdict())
            for key, value in match.groupdict().items():
                if value.isdigit():
                    values[f"{key}1"] = int(value) + 1
            if "{block}" in theirs:
                values["block"] = sum(depths[: int(match["s"])]) + int(match["i"])
            return theirs.format(**values)
    return part


# --- loading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` loaded, missed and skipped.

    Attributes:
        source: Whose names the file has, one of `NAMES`.
        share: Share of the network's parameters, by number, that were loaded.
        loaded: The network's tensors that were loaded.
        missing: The network's tensors that the file does not have in a shape that fits; they stay
            as they were.
        skipped: The file's tensors that were not used.
        adapted: What was loaded in parts, for other classes or channels, in words.
    """

    source: str
    share: float
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"loaded {len(self.loaded)} tensors by the names of {self.source}, "
            f"{self.share:.0%} of the network's numbers"
        ]
        parts += self.adapted
        if self.missing:
            parts.append(f"missing, so with new weights: {_few(self.missing)}")
        if self.skipped:
            parts.append(f"skipped in the file: {_few(self.skipped)}")
        return "; ".join(parts)


def load_weights(
    net: nn.Module,
    path: str | Path,
    source: str = "auto",
    prefix: str = "",
    classes: Sequence[str] = (),
    channels: Sequence[str] = (),
) -> Loaded:
    """Copy what fits from weights into a network; see `copy_weights`.

    Args:
        net: The network; after an error it is as it was.
        path: File of tensors by name: .pt, .pth or .npz; also the folder of a run, or the zip file
            of an exported model.
        source: Whose names the file has, one of `NAMES`; "auto" takes those by which most fits.
        prefix: What stands before each name, in a file that has more than this network.
        classes: Names of the network's classes, background first.
        channels: Names of the network's channels.

    Returns:
        What was loaded, missed and skipped.

    Raises:
        ContextsegError: The file cannot be read or has no weights; the source is unknown; less than
            `ENOUGH` of the network fits; or the weights go with batch norm and the network has
            none.
    """
    if source != "auto" and source not in NAMES:
        raise ContextsegError(
            f"source={source}", "there is no such source", did_you_mean(source, [*NAMES, "auto"])
        )
    start = read_start_weights(path)
    tensors = {n.removeprefix(prefix): x for n, x in start.tensors.items() if n.startswith(prefix)}
    start = replace(start, tensors=tensors)
    return copy_weights(net, start, str(path), source, Names(tuple(classes), tuple(channels)))


@dataclass(frozen=True)
class Names:
    """What the outputs and inputs of a network are called.

    Attributes:
        classes: Names of the classes, background first; () where nothing says so.
        channels: Names of the channels; () where nothing says so.
    """

    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


def copy_weights(
    net: nn.Module,
    start: StartWeights,
    where: str,
    source: str = "auto",
    names: Names = Names(),
    leads: Sequence[str] = (),
) -> Loaded:
    """Copy what fits from weights into a network.

    Where both sides name their classes, the rows of the head go to the classes of the same name;
    new classes keep their new weights. Without names, a head for another number of classes is
    missing in the file. The first convolution takes the channels of the same name, and 0 for new
    ones, so that the network begins as it was; where no name is the same, it takes the mean over
    the file's channels, scaled so that equal channels give the same. Position embeddings are
    interpolated.

    Args:
        net: The network; after an error it is as it was.
        start: The weights.
        where: Where they are from, for messages.
        source: Whose names the file has, one of `NAMES`; "auto" takes those by which most fits.
        names: What the network's classes and channels are called.
        leads: What may stand before the network's names in a file of ours; () for the usual.

    Returns:
        What was loaded, missed and skipped.

    Raises:
        ContextsegError: Less than `ENOUGH` of the network fits, or the weights go with batch norm
            and the network has none.
    """
    tensors = _split(start.tensors)
    fitting = _Fitting(start, names, leads or OUR_LEADS)
    sources = NAMES if source == "auto" else [source]
    ways = {name: fitting.match(net, tensors, name) for name in sources}
    best = max(ways, key=lambda name: sum(x.numel() for _, x, _ in ways[name].values()))
    matched = ways[best]
    numbers = {name: p.numel() for name, p in net.named_parameters()}
    share = sum(numbers.get(name, 0) for name in matched) / sum(numbers.values())
    if share < ENOUGH:
        listed = _few(tuple(tensors))
        what = f"it has only {share:.0%} of this network's numbers; its names: {listed}"
        remedy = (
            f"give weights of this architecture, with the names of {', '.join(NAMES)}, "
            "or the prefix of the names"
        )
        raise ContextsegError(where, what, remedy)

    used = {name for name, _, _ in matched.values()}
    skipped = tuple(name for name in tensors if name not in used)
    statistics = {
        name.removesuffix("running_mean") + "weight"
        for name in skipped
        if name.endswith("running_mean")
    }
    if statistics & used:
        what = "these weights go with batch norm, and the network has group norm"
        remedy = 'build the network with norm="batch", as --set net=deeplab-batchnorm does'
        raise ContextsegError(where, what, remedy)

    state = net.state_dict()
    with torch.no_grad():
        for name, (_, x, _) in matched.items():
            state[name].copy_(x)
    missing = tuple(name for name in state if name not in matched)
    adapted = tuple(f"{name}: {change}" for name, (_, _, change) in matched.items() if change)
    return Loaded(best, share, tuple(matched), missing, skipped, adapted)


def _split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a joint "qkv" as three."""
    parts: dict[str, Tensor] = {}
    for name, x in tensors.items():
        if re.search(r"\.qkv\.(weight|bias)$", name):
            names = [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")]
            parts |= dict(zip(names, x.chunk(3)))
        else:
            parts[name] = x
    return parts


_Match = dict[str, tuple[str, Tensor, str]]
"""By our names: the name in the file, the tensor in our shape, and what was changed."""


@dataclass(frozen=True)
class _Fitting:
    """How tensors of a file become those of a network."""

    start: StartWeights
    names: Names
    leads: Sequence[str]

    def match(self, net: nn.Module, tensors: Mapping[str, Tensor], source: str) -> _Match:
        """Each tensor that the file has in a shape that fits."""
        stages: Any = getattr(getattr(net, "encoder", None), "stages", ())
        depths = [len(stage) for stage in stages]
        state = net.state_dict()
        first = next((n for n, x in state.items() if x.ndim >= 4 and n != "places"), "")
        matched: _Match = {}
        special = nnunet_names(net) if source == "nnunet" else {}
        for name, ours in state.items():
            part, dot, leaf = name.rpartition(".")
            theirs = special.get(part) or _named(part if dot else leaf, NAMES[source], depths)
            for candidate in self._candidates(theirs, leaf if dot else "", source):
                if candidate not in tensors:
                    continue
                x, change = self._fitted(tensors[candidate], candidate, name, ours, name == first)
                if x is not None:
                    matched[name] = candidate, x, change
                    break
        return matched

    def _candidates(self, theirs: str, leaf: str, source: str) -> Iterable[str]:
        """What a tensor may be called in the file."""
        if source == "google" and leaf:
            return [f"{theirs}/bias"] if leaf == "bias" else [f"{theirs}/kernel", f"{theirs}/scale"]
        name = f"{theirs}.{leaf}" if leaf else theirs
        return [lead + name for lead in self.leads] if source == "contextseg" else [name]

    def _fitted(
        self, x: Tensor, theirs: str, name: str, ours: Tensor, first: bool
    ) -> tuple[Tensor | None, str]:
        """A tensor in our shape, or None, and how it was adapted."""
        if first and x.ndim == ours.ndim and x.shape[0] == ours.shape[0]:
            return self._channels(x, theirs, name, ours)
        old, new = self.start.classes, self.names.classes
        head = re.fullmatch(r"heads?\.(\d+\.)?(weight|bias)", name)
        if head and old and new and old != new and x.shape[1:] == ours.shape[1:]:
            return self._classes(x, ours)
        return _shaped(x, theirs, name, ours), ""

    def _classes(self, x: Tensor, ours: Tensor) -> tuple[Tensor, str]:
        """The rows of a head, by the names of the classes; contexts by their place."""
        old, new = self.start.classes, self.names.classes
        out = ours.detach().clone()
        for k, name in enumerate(new):
            if name in old:
                out[k] = x[old.index(name)].to(out)
        contexts = min(len(x) - len(old), len(out) - len(new))
        if contexts > 0:
            out[len(new) : len(new) + contexts] = x[len(old) : len(old) + contexts].to(out)
        kept = [name for name in new if name in old]
        added = [name for name in new if name not in old]
        return out, f"classes {', '.join(kept)}" + (f"; new: {', '.join(added)}" if added else "")

    def _channels(
        self, x: Tensor, theirs: str, name: str, ours: Tensor
    ) -> tuple[Tensor | None, str]:
        """The first convolution, by the names of the channels."""
        old, new = self.start.channels, self.names.channels
        same_kernel = x.shape[2:] == ours.shape[2:]
        known = len(old) == x.shape[1] and len(new) == ours.shape[1]
        if not (known and same_kernel and set(_numbered(old)) & set(_numbered(new))):
            fitting = _shaped(x, theirs, name, ours)
            if fitting is None and same_kernel:
                grey = x.mean(1, keepdim=True) * (x.shape[1] / ours.shape[1])
                return grey.expand_as(ours), f"the mean of {x.shape[1]} channels"
            return fitting, ""
        if old == new:
            return x, ""
        places = {channel: i for i, channel in enumerate(_numbered(old))}
        out = torch.zeros_like(ours)
        for i, channel in enumerate(_numbered(new)):
            if channel in places:
                out[:, i] = x[:, places[channel]].to(out)
        kept = [channel[0] for channel in _numbered(new) if channel in places]
        return out, f"channels {', '.join(kept)} of {', '.join(new)}"


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Names that may be alike, each with the number of those before it that are."""
    return [(name, list(names[:i]).count(name)) for i, name in enumerate(names)]


def _shaped(x: Tensor, theirs: str, name: str, ours: Tensor) -> Tensor | None:
    """A tensor of the file in the order and shape of ours; None if it does not fit."""
    if theirs.endswith("/kernel") and x.ndim == 4:
        x = x.permute(3, 2, 0, 1)
    elif theirs.endswith("/kernel") and x.ndim > 1:
        # (inputs, heads, each), or of the last layer (heads, each, outputs)
        x = (x.flatten(0, -2) if theirs.endswith("/out/kernel") else x.flatten(1)).T
    elif name == "places" and x.ndim == 3:
        # (1, tokens, C), often with the token of the class before the others
        side = int(x.shape[1] ** 0.5)
        x = x[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side)).float()
        x = resized_places(x, ours.shape[2:])
    elif ours.ndim == 1:
        x = x.flatten()
    first = name in ("root.0.weight", "encoder.stem.0.weight") and x.ndim == 4
    if first and x.shape[1] != ours.shape[1]:
        grey = x.mean(1, keepdim=True) * (x.shape[1] / ours.shape[1])
        x = grey.expand(-1, ours.shape[1], -1, -1)
    return x if x.shape == ours.shape else None


def _few(names: tuple[str, ...], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


__all__ = [
    "ENOUGH",
    "NAMES",
    "OUR_LEADS",
    "Loaded",
    "Names",
    "copy_weights",
    "load_weights",
    "read_weights",
]
