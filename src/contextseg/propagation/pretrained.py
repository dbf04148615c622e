"""The network that comes with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.errors import ContextsegError
from contextseg.nets.completion import CompletionNet

WEIGHTS = Path(__file__).parents[1] / "models" / "completion.npz"
"""The file of its weights."""


def open_completion(path: str | Path = "", device: str | torch.device = "cpu") -> CompletionNet:
    """The packaged network, or one that `contextseg.propagation.network.training` has made.

    Args:
        path: File of weights, `network.npz` of a training. "" is the packaged one.
        device: Where it is to be.

    Returns:
        The network, in evaluation mode.

    Raises:
        ContextsegError: There is no such file, or it holds no such network.
    """
    path = Path(path) if path else WEIGHTS
    try:
        with np.load(path) as archive:
            facts: dict[str, Any] = json.loads(bytes(archive["facts"]))
            weights = {k: archive[k] for k in archive.files if k != "facts"}
    except (OSError, ValueError, KeyError) as error:
        raise ContextsegError(
            str(path), f"no weights of a completion network ({error})", "give network.npz"
        ) from None
    net = CompletionNet(facts["inputs"], facts["widths"])
    net.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in weights.items()})
    return net.eval().to(device)
