"""Whether a scan fits into memory, and how its windows go through a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.nnunet_prepare import wanted_mm
from contextseg.data.plan import Plan
from contextseg.data.prepare import TOO_LARGE, refuse_too_large
from contextseg.errors import ContextsegError
from contextseg.methods import Method
from contextseg.parallel import machine_gb
from contextseg.predict.activations import window_bytes
from contextseg.predict.memory import GIB, scan_gb, slab_gb, slab_home, windows_at_once
from contextseg.settings import PredictionSettings
from contextseg.volume import Volume


def check_scan_memory(
    scan: Volume, plan: Plan, settings: PredictionSettings, name: str = ""
) -> None:
    """Refuse a scan that needs more memory than there is, before anything is made of it.

    Of its grid at least an eighth is taken for the body; what is found then is checked again.

    Args:
        scan: The scan.
        plan: Spacing, patch and classes.
        settings: Give the memory.
        name: Name of the case.

    Raises:
        ContextsegError: The scan needs more memory than there is.
    """
    turned = scan.oriented(plan.orientation_for(scan.orientation))
    own = turned.spacing_mm
    wanted = wanted_mm(plan, own) if isinstance(plan, NNUNetPlan) else plan.target_mm(own)
    sizes = zip(turned.shape, own, wanted)
    shape = [max(1, round(n * s / t / 2)) for n, s, t in sizes]
    refuse_too_large(name, turned, plan.spacing_mm, shape, settings.memory_gb)
    need = _scan_gb(scan, plan, shape, logit_bytes=2)
    limit = settings.memory_gb or machine_gb()
    if need > limit:
        what = f"it takes more than {need:.2g} GB of memory, and {limit:.2g} GB are allowed"
        raise ContextsegError(name or "scan", what, TOO_LARGE)


def _scan_gb(scan: Volume, plan: Plan, shape: Sequence[int], logit_bytes: int) -> float:
    channels, itemsize = len(scan.array), scan.array.dtype.itemsize
    voxels, classes = int(np.prod(scan.shape)), len(plan.classes)
    return scan_gb(voxels, channels, classes, shape, plan.patch_vox, itemsize, logit_bytes)


def sliding_window_arguments(
    method: Method,
    plan: Plan,
    settings: PredictionSettings,
    scan: Volume | None = None,
    shape: Sequence[int] = (),
) -> dict[str, Any]:
    """Keywords of `predict.sliding_window` and `predict.segment` for cases of a plan.

    Args:
        method: The trained method; its parameters say on which device it predicts.
        plan: The plan that it was trained with.
        settings: Step, mirroring, the number of patches at a time, and the memory.
        scan: The scan that is predicted, whose size decides where logits are summed. None sums them
            where the method predicts.
        shape: (D, H, W) of the scan as the network sees it.

    Returns:
        The keywords, by name.
    """
    device = next(method.parameters()).device
    home: tuple[torch.device, torch.dtype] = device, torch.float32
    memory_gb = settings.memory_gb
    if scan is not None:
        slab = slab_gb(len(plan.classes), shape, plan.patch_vox)
        need = _scan_gb(scan, plan, shape, logit_bytes=4)
        home = slab_home(slab, need - slab, device, memory_gb)
        if memory_gb and device.type == "cpu":  # what the windows may take beside the scan
            memory_gb = max(memory_gb - need, memory_gb / 4)
    each_gb = window_gb(method, plan, device) if memory_gb and not settings.windows else 0.0
    batch_size = settings.windows or windows_at_once(plan.patch_vox, memory_gb, each_gb)
    axes = range(3 - plan.dims, 3)
    return {
        "device": device,
        "slab_device": home[0],
        "slab_type": home[1],
        "step": settings.step,
        "mirror_axes": [axis for axis in axes if settings.mirror and plan.mirror[axis]],
        "swaps": plan.swaps,
        "lateral_axis": plan.lateral_axis,
        "batch_size": batch_size,
    }


def window_gb(method: Method, plan: Plan, device: torch.device) -> float:
    """Memory of one sliding window in a method's networks, in gibibytes.

    Args:
        method: The trained method.
        plan: Its plan.
        device: Where it predicts.

    Returns:
        What is counted (`predict.activations`). Of a network that has to see numbers it is six
        layers of the first level: inputs and outputs of two, and the skip.
    """
    if method not in _WINDOWS:
        shape = (len(plan.channels), *plan.patch_vox)
        try:
            counted = window_bytes(method, shape, device, lambda copied, x: copied.predict(x))
        except Exception:  # whatever its operations raise on tensors without numbers
            counted = int(np.prod(plan.patch_vox)) * plan.widths[0] * 4 * _LAYERS
        _WINDOWS[method] = counted / GIB
    return _WINDOWS[method]


_WINDOWS: WeakKeyDictionary[Method, float] = WeakKeyDictionary()
"""What was counted; a method has one plan and stays on its device."""

_LAYERS = 6
