"""Where weights come from: a file of tensors, the folder of a run, or an exported model.

Nothing is unpickled but tensors.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.inputs import damage_named, parsed_json, refuse_impossible, refuse_no_file
from contextseg.memory_errors import raise_memory_error
from contextseg.nets.nnunet import safe_numbers


@dataclass(frozen=True)
class StartWeights:
    """Weights to start from.

    Attributes:
        tensors: Tensors by name, on the CPU.
        classes: Names of the classes they were trained for, background first; () where nothing
            says so.
        channels: Names of the network's channels; () where nothing says so.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    classes: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


def read_start_weights(path: str | Path) -> StartWeights:
    """The weights of a file, of a run or of an exported model.

    Args:
        path: A file that `read_weights` takes, the folder of a run (its last finished training
            counts), or a zip file of `contextseg export` (its first member counts).

    Returns:
        The weights; of a run and of an exported model with the names of classes and channels.

    Raises:
        ContextsegError: There is no such file, or no weights can be read from it.
    """
    path = Path(path)
    refuse_no_file(path, folders=True)
    if path.is_dir():
        weights = _last_training(path)
        return _planned(read_weights(weights), read_json(path / "plan.json"), path)
    with damage_named(path, "export it again", "no weights can be read from this model"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if "model.json" in file.namelist():
                    return _of_archive(path, file)
    return StartWeights(read_weights(path))


def start_weights_exist(path: str | Path) -> bool:
    """Whether there is a file, or the folder of a run, that weights may be read from."""
    return Path(path).is_file() or (Path(path) / "run.json").is_file()


def _last_training(folder: Path) -> Path:
    """The weights of the last finished training of a run."""
    if not (folder / "run.json").exists():
        remedy = "give the folder of a finished run, or a file of weights"
        raise ContextsegError(folder, "there is no run in this folder", remedy)
    stages = [*folder.glob("train-*"), *folder.glob("[0-9][0-9]-train")]
    done = [p for p in stages if (p / "done.json").exists() and (p / "model.pt").exists()]
    if not done:
        remedy = "finish it: give `contextseg train` the same --output"
        raise ContextsegError(folder, "no training of this run is finished", remedy)
    return max(done, key=lambda p: int(re.findall(r"\d+", p.name)[0])) / "model.pt"


def _of_archive(path: Path, file: zipfile.ZipFile) -> StartWeights:
    refuse_impossible(path, sum(entry.file_size for entry in file.infolist()), packed=True)
    folder = parsed_json(file.read("model.json"), path)["members"][0]["folder"]
    plan = parsed_json(file.read(f"{folder}/plan.json"), path)
    weights = io.BytesIO(file.read(f"{folder}/weights.pt"))
    return _planned(read_weights(weights, path), plan, path)


def _planned(tensors: Mapping[str, Tensor], plan: Any, path: Path) -> StartWeights:
    try:
        channels = tuple(str(channel["name"]) for channel in plan["channels"])
        return StartWeights(tensors, tuple(map(str, plan["classes"])), channels)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"its plan names no classes and channels ({error!r})"
        raise ContextsegError(path, what, "give the file of weights itself") from error


def read_weights(path: str | Path | IO[bytes], name: str | Path = "") -> dict[str, Tensor]:
    """The tensors of a file by their names, on the CPU, without a wrapper's "module.".

    Args:
        path: A .pt, .pth or .npz file, or an open one of the first two kinds.
        name: Name of the file for messages; "" for `path`.

    Returns:
        Name to tensor.

    Raises:
        ContextsegError: The file is missing, damaged, or has no named tensors.
    """
    where = str(name or path)
    if isinstance(path, str | Path):
        refuse_no_file(path)
    remedy = "give a state_dict saved by torch.save, or an .npz of arrays"
    try:
        if str(path).endswith(".npz"):
            with np.load(str(path)) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}
        with safe_numbers():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ContextsegError(
            where, "there is no such file", "give the path of a file of weights"
        ) from None
    except Exception as error:  # an unpickler may raise anything on a damaged file
        raise_memory_error(where, error)
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ContextsegError(where, f"no weights can be read from it ({why})", remedy) from error
    for key in ("network_weights", "state_dict", "model_state_dict", "model", "method"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): x for name, x in content.items() if isinstance(x, Tensor)}
    if not tensors:
        raise ContextsegError(where, "it holds no named tensors", remedy)
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module.") if wrapped else name: x for name, x in tensors.items()}
