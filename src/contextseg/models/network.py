"""The network of a model on one patch, for other tools to run: ONNX, or a torch program.

What comes before and after the network is described in a JSON file beside it, `model.onnx.json`:
with it, a reader needs nothing of contextseg. `examples/run_onnx.py` is one.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import contextseg
from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.plan import Channel
from contextseg.disk import replacing, write_json
from contextseg.errors import ContextsegError
from contextseg.memory_errors import raise_memory_error
from contextseg.methods import Method
from contextseg.models.card import licence_text
from contextseg.predictor import Predictor, sliding_window_arguments

NETWORK_FORMAT = "contextseg network"
NETWORK_VERSION = 1
"""What the JSON file says of itself."""

_STEPS = (
    "Turn each scan to `orientation`: letters of the directions in which D, H and W grow. Its "
    "channels are the files in the order of `scanned`.",
    "Find the body and crop to its box, all channels alike. Take means of blocks of b voxels of "
    "the first channel, b = max(1, n // 128) along each axis. `ct`: above -500, eroded by one "
    "block in each axial slice; of the parts (6 neighbours) of the mask those with 2 % of the "
    "largest one's "
    "eroded blocks; the eroded mask dilated 4 times inside the mask. Else: above the smallest mean "
    "(at most 0) + a tenth of the 98th percentile's distance from it or, where a quarter of the "
    "voxels has the value of most corners, what differs from that in any channel; of its parts "
    "those with 2 % of the largest. Holes of axial slices are filled.",
    "Where `native` is true the box is the whole scan, and `spacing_mm` the scan's own.",
    "Take mean and standard deviation of each channel inside the body, smallest and largest value "
    "inside the box.",
    "Resample the box to `spacing_mm`, round(n * spacing / spacing_mm) voxels, by splines of "
    "`spline_orders` along D, H, W (scipy.ndimage.zoom, mode nearest, grid_mode), and clip to the "
    "smallest and largest value.",
    "Normalise by `channels`, each from the scan's channel `source`. ct: clip to [low, high], "
    "subtract mean, divide by sd. window: clip to [low, high], subtract low, divide by high - low. "
    "zscore: mean and sd of the body. rescale: subtract low, divide by high - low, those of the "
    "box where high is not above low. none: as it is. place: (i + 0.5) / slices along D.",
    "Slide the network over the image in patches of `patch_vox` (two numbers: one slice at a "
    "time); an axis shorter than the patch is padded with zeros, the smaller half first. Windows "
    "start at round((size - patch) * i / gaps), gaps = ceil((size - patch) / (patch * step)). "
    "Average the logits over all mirrors of `mirror_axes` of (D, H, W), classes of `swaps` "
    "exchanged where `lateral_axis` is mirrored, and over the windows by a Gaussian around voxel "
    "patch // 2 with sigma patch / 8.",
    "Interpolate the logits linearly to the box before resampling, take the class of the largest, "
    "write its value from `values`; outside the box it is the first. Turn back.",
    "Of each value in `largest_of` keep the largest connected part (26 neighbours) alone; of "
    "several the one of the first voxel, in the order of the file. The rest becomes the first.",
    "Where `largest_component` is true keep the largest part of all other values than the first.",
)


class PatchNetwork(nn.Module):
    """The mean logits of one or several trained methods on a patch.

    Args:
        methods: The methods, in evaluation mode.
        first: For each, the index of its first channel.
        channels: For each, its number of channels.
    """

    def __init__(
        self, methods: Sequence[Method], first: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.methods = nn.ModuleList(methods)
        self.parts = [slice(start, start + count) for start, count in zip(first, channels)]

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *patch) float32, the channels of all methods, to (B, K, *patch) logits."""
        logits: Any = None
        for method, part in zip(self.methods, self.parts):
            z = method.predict(image[:, part])  # type: ignore[operator]
            logits = z if logits is None else logits + z
        return logits / len(self.methods)


def export_network(
    predictor: Predictor, output: str | Path, licence: str = "", note: str = ""
) -> Path:
    """Write the network of a predictor, and `network_description` it in a JSON file beside it.

    Args:
        predictor: The predictor, on the CPU; an ensemble becomes one network.
        output: The file: .onnx, or .pt2 for a program of `torch.export`.
        licence: The model's licence, words or a file of text.
        note: More words about the model.

    Returns:
        `output`.

    Raises:
        ContextsegError: The extra `onnx` is not installed, the network is nnU-Net's or cannot be
            exported, or the file cannot be written.
    """
    output = Path(output)
    if isinstance(predictor.plan, NNUNetPlan):
        what = "a model of nnU-Net, whose preparation of scans the description cannot say"
        raise ContextsegError(output, what, "export a run of `contextseg train`")
    if output.suffix.lower() == ".onnx":
        _need_onnx()
    ways = _ways(predictor)
    counts = [len(member.plan.channels) for member in predictor.members]
    first = [
        sum(len(way) for way in ways[: ways.index(member.plan.channels)])
        for member in predictor.members
    ]
    methods = [_deployed(member.method) for member in predictor.members]
    network = PatchNetwork(methods, first, counts).eval()
    image = torch.zeros(2, sum(map(len, ways)), *predictor.plan.patch_vox)
    words = {"licence": licence_text(licence).strip(), "note": note}
    with replacing(output) as temporary:
        try:
            _write(network, image, temporary)
        except ContextsegError:
            raise
        except Exception as error:  # exporters raise whatever a network's operations make them
            raise_memory_error(output, error)
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            what = f"this network cannot be exported so ({type(error).__name__}: {why[:200]})"
            raise ContextsegError(output, what, "export it as model.zip") from error
    content = {**network_description(predictor, [c for way in ways for c in way]), **words}
    write_json(output.with_name(f"{output.name}.json"), {"file": output.name, **content})
    return output


def network_description(predictor: Predictor, channels: Sequence[Channel]) -> dict[str, Any]:
    """What comes before and after the network on a patch, as JSON content.

    Args:
        predictor: Whose network it is.
        channels: The network's channels.

    Returns:
        The content: numbers by name, and the steps in words.
    """
    plan = predictor.plan
    settings = predictor.settings
    window = sliding_window_arguments(predictor.members[0].method, plan, settings)
    sources = [channel.made_from(i) for way in _ways(predictor) for i, channel in enumerate(way)]
    rows = [{**asdict(c), "source": s} for c, s in zip(channels, sources)]
    return {
        "format": NETWORK_FORMAT,
        "version": NETWORK_VERSION,
        "contextseg": contextseg.__version__,
        "dataset": plan.dataset,
        "input": "image",
        "output": "logits",
        "scanned": list(plan.scanned),
        "ct": plan.ct,
        "orientation": plan.orientation,
        "spacing_mm": list(plan.spacing_mm),
        "native": plan.native,
        "spline_orders": list(plan.orders),
        "channels": rows,
        "patch_vox": list(plan.patch_vox),
        "step": settings.step,
        "mirror_axes": list(window["mirror_axes"]),
        "swaps": [list(pair) for pair in plan.swaps],
        "lateral_axis": plan.lateral_axis,
        "classes": list(plan.classes),
        "values": list(plan.values),
        "largest_of": [predictor.classes[name] for name in predictor.largest_of],
        "largest_component": settings.largest_component,
        "steps": list(_STEPS),
    }


def _ways(predictor: Predictor) -> list[tuple[Channel, ...]]:
    """The channels of every normalisation among the members, as `Predictor` stacks them."""
    return list(dict.fromkeys(member.plan.channels for member in predictor.members))


def _deployed(method: Method) -> Method:
    """A copy of a method, with zeros for what it holds of training scans."""
    copied = copy.deepcopy(method)
    state = copied.state_dict()
    for name in method.private_state:
        if name in state:
            state[name].zero_()
    return copied


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"ONNX needs {' and '.join(missing)}"
        raise ContextsegError("export", what, "pip install 'contextseg[onnx]'")


@torch.no_grad()
def _write(network: nn.Module, image: Tensor, path: Path) -> None:
    """Trace the network for any number of patches, and write it."""
    some = {"image": {0: torch.export.Dim("patches", min=1)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (image,), dynamic_shapes=some, strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        if path.suffix.lower() == ".pt2":
            torch.export.save(program, path)
            return
        torch.onnx.export(
            program,
            (),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
