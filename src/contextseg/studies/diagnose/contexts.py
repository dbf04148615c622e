"""What a method with context classes was trained with: M, and the contexts of each voxel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from contextseg.data.cache import Cached, load_array
from contextseg.methods import CoLab, Contexts, Dilated, Method
from contextseg.methods.colab import WATCHED
from contextseg.predict import sliding_window
from contextseg.runs import Run


class ContextMaps(NamedTuple):
    """The contexts of a case.

    Attributes:
        q: Probabilities of the context classes, (t, D, H, W) float32, which sum to 1.
        near: M, (D, H, W) float32. None where context matters everywhere.
        predicted: What f, the segmentation network, makes of them: the probabilities of its context
            classes among the background's, (t, D, H, W) float32, which sum to 1. None where it was
            not asked.
    """

    q: np.ndarray
    near: np.ndarray | None
    predicted: np.ndarray | None = None


def context_classes(method: Method) -> int:
    """t of a method; 1 where it does not split the background.

    Args:
        method: Any method.

    Returns:
        The number of context classes.
    """
    if isinstance(method, CoLab | Contexts):
        return method.context_classes
    return 2 if isinstance(method, Dilated) else 1


def context_maps(run: Run, method: Method, case: Cached, image: np.ndarray) -> ContextMaps | None:
    """The contexts of a labelled case, as the method was trained with them.

    CoLab's q is what the generator ends with, over windows of the patch's size, as in training. A
    voxel that was split beforehand has one context for certain.

    Args:
        run: The run.
        method: Its trained method.
        case: The case, preprocessed and labelled.
        image: Its normalised image, (C, D, H, W).

    Returns:
        The contexts. None for a method without any, and where the labels with contexts are not
        kept.
    """
    if context_classes(method) == 1:
        return None
    trained = _trained_with(run, method, case, image)
    if trained is None:
        return None
    return trained._replace(predicted=_predicted(run, method, image))


def _predicted(run: Run, method: Method, image: np.ndarray) -> np.ndarray:
    """The context classes of f itself, over windows of the patch's size."""
    device = next(method.parameters()).device
    classes = len(run.plan.classes)
    slabs = sliding_window(method.context_logits, image, run.plan.patch_vox, device=device)
    parts = [torch.cat([z[:1], z[classes:]]).softmax(0).cpu().numpy() for _, _, z in slabs]
    return np.concatenate(parts, 1)


def _trained_with(run: Run, method: Method, case: Cached, image: np.ndarray) -> ContextMaps | None:
    """M and q of a case; None where the labels with contexts are not kept."""
    if isinstance(method, CoLab):
        device = next(method.parameters()).device
        slabs = sliding_window(method.contexts_of, image, run.plan.patch_vox, device=device)
        q = np.concatenate([part.cpu().numpy() for _, _, part in slabs], 1)
        return ContextMaps(q, method.near(_distances(run, method, case)).numpy())
    if isinstance(method, Dilated):
        near = method.near(_distances(run, method, case)).numpy()
        return ContextMaps(np.stack([1 - near, near]), None)
    assert isinstance(method, Contexts)
    path = run.stage_folder("context-1") / f"{case.record.name}.npy"
    if not path.exists():
        return None
    remedy = (
        "delete the folder of this stage and those after it, and give `contextseg train` the run"
    )
    label = load_array(path, remedy)
    context = np.maximum(label - len(run.plan.classes) + 1, 0)
    q = np.stack([context == j for j in range(method.context_classes)]).astype(np.float32)
    return ContextMaps(q, None)


def context_history(method: Method) -> dict[str, np.ndarray]:
    """How CoLab's contexts were learnt, on one slice (H, W) of a patch.

    Args:
        method: Any trained method.

    Returns:
        learnt/grey (H, W) uint8, its first channel from the 1st to the 99th percentile;
        learnt/steps (n,) int64; learnt/q (n, t, H, W) uint8, 0 to 255 for a probability of 0 to 1.
        {} for other methods and old runs.
    """
    if not isinstance(method, CoLab) or method.generator is None or not method.snapshots.any():
        return {}
    image = method.watched[0, 0].float().cpu().numpy()
    if image.ndim == 3:
        image = image[len(image) // 2]
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).round()
    q = method.snapshots.float().cpu().numpy()
    reached = q.any((1, 2, 3))
    return {
        "learnt/grey": grey.astype(np.uint8),
        "learnt/steps": np.array(list(WATCHED))[reached],
        "learnt/q": np.rint(q[reached] * 255).astype(np.uint8),
    }


def _distances(run: Run, method: CoLab | Dilated, case: Cached) -> torch.Tensor:
    assert method.maps is not None
    return torch.from_numpy(method.maps(np.array(case.label), run.plan.spacing_mm)[0]).float()
