"""What a method with context classes was taught of a case: M, and the contexts of each voxel of the background."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from contextseg.data.cache import Cached, load_array
from contextseg.methods import CoLab, Contexts, Dilated, Method
from contextseg.methods.colab import WATCHED
from contextseg.methods.context import nearness
from contextseg.predict import sliding_window
from contextseg.run import Run


class Taught(NamedTuple):
    """`q` (t, D, H, W) float32, the probabilities of the context classes, which sum to 1; `near` (D, H, W) float32, M,
    or None where context matters everywhere.
    """

    q: np.ndarray
    near: np.ndarray | None


def context_classes(method: Method) -> int:
    """t; 1 for a method that does not split the background."""
    if isinstance(method, CoLab | Contexts):
        return method.contexts
    return 2 if isinstance(method, Dilated) else 1


def taught(run: Run, method: Method, case: Cached, image: np.ndarray) -> Taught | None:
    """The contexts of a labelled case; None for a method without any, and where the labels it was taught are not kept.

    image (C, D, H, W), normalised. CoLab's q is what the generator ends with, over windows of the patch's size, as it
    was trained; a voxel that was split beforehand has one context for certain.
    """
    if context_classes(method) == 1:
        return None
    if isinstance(method, CoLab):
        slabs = sliding_window(method.contexts_of, image, run.plan.patch_vox, device=next(method.parameters()).device)
        q = np.concatenate([part.cpu().numpy() for _, _, part in slabs], 1)
        return Taught(q, method.near(_distances(run, method, case)).numpy())
    if isinstance(method, Dilated):
        near = nearness(_distances(run, method, case), *method.decay_by).numpy()
        return Taught(np.stack([1 - near, near]), None)
    assert isinstance(method, Contexts)
    path = next(run.folder.glob(f"*-context/{case.record.name}.npy"), None)
    if path is None:
        return None
    label = load_array(path, "delete the folder of this stage and those after it, and give `contextseg train` the run")
    context = np.maximum(label - len(run.plan.classes) + 1, 0)
    return Taught(np.stack([context == j for j in range(method.contexts)]).astype(np.float32), None)


def learnt(method: Method) -> dict[str, np.ndarray]:
    """How CoLab's contexts were learnt, on one slice (H, W) of a patch; nothing for other methods and old runs.

    learnt/grey (H, W) uint8, its first channel from the 1st to the 99th percentile; learnt/steps (n,) int64; learnt/q
    (n, t, H, W) uint8, 0 to 255 for a probability of 0 to 1.
    """
    if not isinstance(method, CoLab) or method.generator is None or not method.snapshots.any():
        return {}
    image = method.watched[0, 0].float().cpu().numpy()
    image = image if image.ndim == 2 else image[len(image) // 2]
    low, high = np.percentile(image, (1, 99))
    q = method.snapshots.float().cpu().numpy()
    seen = q.any((1, 2, 3))
    return {
        "learnt/grey": np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).round().astype(np.uint8),
        "learnt/steps": np.array(list(WATCHED))[seen],
        "learnt/q": np.rint(q[seen] * 255).astype(np.uint8),
    }


def _distances(run: Run, method: CoLab | Dilated, case: Cached) -> torch.Tensor:
    assert method.maps is not None
    return torch.from_numpy(method.maps(np.array(case.label), run.plan.spacing_mm)[0]).float()
