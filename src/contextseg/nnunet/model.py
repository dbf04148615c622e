"""A model that nnU-Net v2 trained as a predictor of ours; nnU-Net need not be installed.

A folder `TRAINER__PLANS__CONFIGURATION` holds `plans.json`, `dataset.json` and a folder for each
fold with `checkpoint_final.pth`. Several folds are an ensemble, as in nnU-Net: the mean of their
logits. Scans are prepared by nnU-Net's rules (`data.nnunet_prepare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contextseg.batch import Batch
from contextseg.data.nnunet import NNUNetPlan, read_nnunet_plan
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.inputs import damage_named, refuse_no_file
from contextseg.memory_errors import raise_memory_error
from contextseg.methods import Method
from contextseg.methods.context import folded
from contextseg.nets.nnunet import nnunet_net, safe_numbers
from contextseg.predictor import Member
from contextseg.training import pick_device

FINAL = "checkpoint_final.pth"
"""The checkpoint of a finished training."""

_WRITTEN = "give the folder that nnUNetv2_train wrote"
_TABLES = ("plans.json", "dataset.json")


class NNUNet(Method):
    """A network that nnU-Net trained: it predicts, and is not trained further.

    Args:
        plan: The plan; of its network's outputs, those beyond the classes are context classes of
            our trainers, and are background again.
        net: The network, in evaluation mode.
    """

    def __init__(self, plan: NNUNetPlan, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.classes = len(plan.classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Not offered.

        Raises:
            ContextsegError: Always.
        """
        what = "a model of nnU-Net, which only predicts here"
        raise ContextsegError(
            "nnU-Net", what, "start a training from its weights: --set weights=FILE"
        )

    def predict(self, image: Tensor) -> Tensor:
        """The network's logits."""
        return folded(self.net(image), self.classes)


@dataclass(frozen=True)
class _Files:
    """The folder of a model, and the checkpoint of each fold that is used."""

    folder: Path
    checkpoints: tuple[Path, ...]


def is_nnunet_model(path: str | Path) -> bool:
    """Whether there is a model of nnU-Net at a path.

    Args:
        path: The folder of a trained model, of one of its folds, or a checkpoint in a fold.
    """
    return _model_folder(Path(path)) is not None


def holds_model(folder: str | Path) -> bool:
    """Whether a folder holds a run of ours, or a model that nnU-Net trained.

    Args:
        folder: Any folder.
    """
    return (Path(folder) / "run.json").exists() or is_nnunet_model(folder)


def _model_folder(path: Path) -> Path | None:
    """The folder with `plans.json` and `dataset.json`; None where there is none."""
    if (path / "run.json").exists():
        return None
    up = 2 if path.suffix == ".pth" else 1 if path.name.startswith("fold_") else 0
    folder = path.parents[up - 1] if up else path
    return folder if all((folder / name).is_file() for name in _TABLES) else None


def open_nnunet(path: str | Path, device: str = "") -> list[Member]:
    """The networks of a model of nnU-Net, each with the plan.

    Args:
        path: The folder of a trained model: every fold that is finished, but not "all" where there
            are others, as nnU-Net does. Or the folder of one fold, or a checkpoint in it.
        device: Where the networks run; "" for the GPU, or the CPU where there is none.

    Returns:
        A member for each fold; their plans are the same.

    Raises:
        ContextsegError: No fold is finished, a checkpoint cannot be read safely, or the model is
            one that cannot be predicted with here.
    """
    files = _files(Path(path))
    plans = read_json(files.folder / "plans.json", dict[str, Any], _WRITTEN)
    dataset = read_json(files.folder / "dataset.json", dict[str, Any], _WRITTEN)
    chosen = pick_device(device) if device else pick_device()
    members: list[Member] = []
    for file in files.checkpoints:
        content = read_checkpoint(file)
        configuration = _configuration_of(content, file)
        plan = read_nnunet_plan(plans, dataset, configuration, files.folder / "plans.json")
        with damage_named(file, _WRITTEN, "its mirroring axes cannot be used"):
            axes = content.get("inference_allowed_mirroring_axes")
            plan = replace(plan, mirror=_mirror(plan, axes))
        if members and plan != members[0].plan:
            what = "its folds are of different configurations or mirror differently"
            raise ContextsegError(files.folder, what, "predict with each on its own")
        with damage_named(file, _WRITTEN, "not the weights of the network in plans.json"):
            weights = _own_weights(content["network_weights"])
            net = nnunet_net(plan.network, len(plan.channels), weights, str(file))
        members.append(Member(NNUNet(plan, net).to(chosen).eval(), plan))
    return members


def _configuration_of(content: Mapping[str, Any], file: Path) -> str:
    """The configuration that a checkpoint was trained with."""
    arguments = content["init_args"]
    configuration = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if not isinstance(configuration, str):
        raise ContextsegError(file, "it does not say its configuration", f"give {FINAL}")
    return configuration


def _files(path: Path) -> _Files:
    folder = _model_folder(path)
    if folder is None:
        remedy = "give the folder with plans.json and dataset.json that nnUNetv2_train wrote"
        raise ContextsegError(path, "no model of nnU-Net here", remedy)
    if path.suffix == ".pth":
        return _Files(folder, (path,))
    folds = [path] if path != folder else sorted(folder.glob("fold_*"))
    finished = [fold / FINAL for fold in folds if (fold / FINAL).is_file()]
    numbered = [file for file in finished if file.parent.name != "fold_all"]
    if not finished:
        others = sorted(folder.glob("fold_*/checkpoint_*.pth"))
        remedy = f"finish it with `nnUNetv2_train ... --c`, or give {others[0]}" if others else ""
        raise ContextsegError(path, f"no fold has {FINAL}", remedy or "train it with nnU-Net first")
    return _Files(folder, tuple(numbered or finished))


def _mirror(plan: NNUNetPlan, axes: Sequence[int] | None) -> tuple[bool, bool, bool]:
    """Which of D, H, W nnU-Net mirrors when it predicts; `axes` are those of the patch."""
    mirrored = {axis + 3 - plan.dims for axis in axes or ()}
    return (0 in mirrored, 1 in mirrored, 2 in mirrored)


def _own_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors by nnU-Net's names, without what a wrapper put before them."""
    mark = "decoder.seg_layers.0.weight"
    lead = next((name[: -len(mark)] for name in weights if name.endswith(mark)), "")
    return {name[len(lead) :]: x for name, x in weights.items() if name.startswith(lead)}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of nnU-Net; no code of the file is run.

    Tensors, plain numbers, texts and lists are read, and NumPy's numbers, which nnU-Net logs.

    Args:
        path: A `.pth` file.

    Returns:
        "network_weights", "init_args" and what else nnU-Net keeps.

    Raises:
        ContextsegError: The file is missing or damaged, is no checkpoint of nnU-Net, or holds
            objects that could run code.
    """
    path = Path(path)
    remedy = (
        "save its network_weights, init_args, trainer_name and inference_allowed_mirroring_axes "
        "alone, where you trust the file"
    )
    refuse_no_file(path)
    try:
        with safe_numbers():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ContextsegError(path, "there is no such file", "check the path") from None
    except Exception as error:  # an unpickler may raise anything on a damaged file
        raise_memory_error(path, error)
        lines = str(error).splitlines() or [type(error).__name__]
        why = next((line.strip() for line in lines if "GLOBAL" in line), lines[0])
        raise ContextsegError(path, f"it cannot be read safely ({why})", remedy) from error
    if not isinstance(content, dict) or not {"network_weights", "init_args"} <= set(content):
        remedy = f"give {FINAL} of nnU-Net v2"
        raise ContextsegError(path, "no checkpoint of nnU-Net v2", remedy)
    return content
