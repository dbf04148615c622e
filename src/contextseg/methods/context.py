"""Context labels: the background split into classes, so that a network need not call one thing what looks like many.

Channels of a network with K classes and t context classes: 0 the first background class, 1..K-1 the ROI classes,
K..K+t-2 the other context classes (CoLab: Li et al., IEEE TMI 2023, whose baselines are here). With t = 1 all of it is
plain training.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.disk import Problem, did_you_mean
from contextseg.losses import deep, one_hot
from contextseg.methods.base import Method, build_net, loss_of, optimizer

FAR = 60_000.0
"""The distance, in whatever unit, where a case has no ROI: float16 holds it, and nothing is near it."""

UNITS = ("vox", "mm")


def roi_distance(label: np.ndarray, spacing_mm: tuple[float, ...], unit: str = "vox") -> np.ndarray:
    """How far each voxel is from the nearest ROI voxel, all ROI classes taken together: (1, *S) float16.

    label (*S) integers with `IGNORE`, which is not ROI. 0 inside; `FAR` everywhere where there is no ROI. In voxels, as
    the paper, or in mm, since on an anisotropic grid a voxel is no distance. Unlike the authors' code, not cut to
    integers.

    >>> roi_distance(np.array([[0, 0, 1, 0]]), (1.0, 2.0), "mm").tolist()
    [[[4.0, 2.0, 0.0, 2.0]]]
    """
    import edt

    if unit not in UNITS:
        raise Problem(f"distance_unit={unit}", "there is no such unit", did_you_mean(unit, UNITS))
    roi = label > 0
    if not roi.any():
        return np.full((1, *label.shape), FAR, np.float16)
    mm = spacing_mm[-label.ndim :] if unit == "mm" else (1.0,) * label.ndim
    return edt.edt(np.ascontiguousarray(~roi), anisotropy=mm)[None].astype(np.float16)


def nearness(distance: Tensor, margin: float = 30.0, tau: float = 20.0, absent: float = 0.0) -> Tensor:
    """How much a voxel's context matters, M (Eq. 8): 1 nearer than `margin` to the ROI, then exp(-(d - margin) / tau).

    Shape and unit are the distance's. `absent` is what stands where a case has no ROI (distance `FAR`): 0, plain
    background, is the paper's definition, 1 what the authors' code does.

    >>> [round(m, 6) for m in nearness(torch.tensor([0.0, 40, 50, 70, 100])).tolist()]
    [1.0, 0.606531, 0.367879, 0.135335, 0.030197]
    """
    near = torch.exp(-(distance - margin).clamp(min=0) / tau)
    return torch.where(distance >= FAR, absent, near)


def context_label(label: Tensor, q: Tensor, near: Tensor, classes: int) -> Tensor:
    """The extended soft label (Eq. 5, 6, 9): (B, K+t-1, *S) float, channels as above.

    label  (B, *S) int64, 0..K-1 or `IGNORE`, K being `classes`.   q  (B, t, *S): probabilities of the context classes.
    near   (B, 1, *S): M. Where it is small the label is plain background.

    Sums to 1 at every voxel, and to 0 under `IGNORE`; on ROI voxels q does not matter.
    """
    hard = one_hot(label, classes).to(q.dtype)
    background, mixed = hard[:, :1], near * q
    return torch.cat([background * (1 - near + mixed[:, :1]), hard[:, 1:], background * mixed[:, 1:]], 1)


def known_classes(annotated: Tensor, contexts: int) -> Tensor:
    """`annotated` (B, K) with columns for `contexts` - 1 more context classes: (B, K+t-1).

    Where some ROI class was not looked for, nobody knows which context a background voxel is either.
    """
    return torch.cat([annotated, annotated.all(1, keepdim=True).expand(-1, contexts - 1)], 1)


BACKGROUNDS = ("sum", "max")


def folded(z: Tensor, classes: int, background: str = "sum") -> Tensor:
    """Logits (B, K+t-1, *S) -> (B, K, *S): the context classes are background.

    "sum": its logit is the log-sum-exp of theirs, so that their probabilities add up. "max", the paper's: the largest
    of theirs, so that argmax is argmax over all channels. It calls a voxel background only where one context alone
    beats the ROI, and so draws the ROI too large where contexts are not told apart sharply: with t equal ones the ROI
    wins from a probability of 1 / (t + 1), not 1/2. Without context classes, `z` itself.
    """
    if z.shape[1] == classes:
        return z
    contexts = torch.cat([z[:, :1], z[:, classes:]], 1)
    first = contexts.amax(1, keepdim=True) if background == "max" else contexts.logsumexp(1, keepdim=True)
    return torch.cat([first, z[:, 1:classes]], 1)


class Contexts(Method):
    """Plain training with labels that hold context classes (K, K+1, ...) beside background and ROI.

    What made them does not matter: clusters, organs, another network. A label without any is trained on too, as
    background of the first kind.

    context_classes  t, the first one included; 1 is `Supervised`, bit for bit.
    background       how the context classes become background again: "max" or "sum" (see `folded`).
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "sgd",
        context_classes: int = 2,
        background: str = "sum",
    ) -> None:
        super().__init__()
        check_contexts(context_classes, background)
        self.classes, self.contexts, self.background = len(plan.classes), context_classes, background
        self.net = build_net(net, plan, self.classes + context_classes - 1)
        self.optimizer, self.loss = optimizer, loss_of(plan)

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        width = self.classes + self.contexts - 1
        known = batch.annotated
        if known.shape[1] != width:
            known = known_classes(known, self.contexts)
        return {"seg": deep(self.loss, self.net(batch.image), batch.label, known)}

    def predict(self, image: Tensor) -> Tensor:
        """The logits, context classes folded into the background."""
        return folded(self.net(image), self.classes, self.background)


class Dilated(Method):
    """Two context classes by distance alone: what is near the ROI, M, and what is not, 1 - M (a baseline of CoLab).

    Arguments as `CoLab`'s.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "sgd",
        margin: float = 30.0,
        tau: float = 20.0,
        distance_unit: str = "vox",
        background: str = "sum",
    ) -> None:
        super().__init__()
        check_contexts(2, background, margin, tau)
        self.classes, self.background, self.decay_by = len(plan.classes), background, (margin, tau)
        self.net = build_net(net, plan, self.classes + 1)
        self.optimizer, self.loss = optimizer, loss_of(plan)
        self.maps = partial(roi_distance, unit=distance_unit)

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """One group."""
        return {"net": optimizer(self.optimizer, self.net.parameters(), lr)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        near = nearness(distances(batch), *self.decay_by)
        y = context_label(batch.label, torch.cat([1 - near, near], 1), torch.ones_like(near), self.classes)
        return {"seg": deep(self.loss, self.net(batch.image), y, known_classes(batch.annotated, 2))}

    def predict(self, image: Tensor) -> Tensor:
        """The logits, the context class folded into the background."""
        return folded(self.net(image), self.classes, self.background)


def check_contexts(context_classes: int, background: str, margin: float = 30.0, tau: float = 20.0) -> None:
    """Raise `Problem` for fewer than one context class, an unknown way back to the background, and a falling off of
    `nearness` that is none.
    """
    if context_classes < 1:
        raise Problem(f"context_classes={context_classes}", "no context at all", "give 1, for plain training, or more")
    if background not in BACKGROUNDS:
        raise Problem(f"background={background}", "there is no such way", did_you_mean(background, BACKGROUNDS))
    if not (margin >= 0 and tau > 0):
        raise Problem(f"margin={margin}, tau={tau}", "no distance to fall off over", "give 0 or more, and more than 0")


def distances(batch: Batch) -> Tensor:
    """(B, 1, *S) float32: the distance to the ROI of each case, or, in a batch without maps, of each item alone."""
    if batch.maps is not None:
        return batch.maps[:, :1]
    labels = batch.label.cpu().numpy()
    found = [roi_distance(label, (1.0,) * label.ndim) for label in labels]
    shape = (len(labels), 1, *labels.shape[1:])
    array = np.stack(found).astype(np.float32) if found else np.zeros(shape, np.float32)
    return torch.from_numpy(array).to(batch.image.device)


# --- intensity clusters -----------------------------------------------------------------------------------------------


def kmeans(sample: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """The centres of k-means++ on intensities (N, C): (t, C) float32, darkest first (by the first channel).

    Raises `Problem` if the sample has fewer different values than clusters.
    """
    from sklearn.cluster import KMeans

    if len(np.unique(sample, axis=0)) < clusters:
        what = f"fewer than {clusters} different intensities to make context classes of"
        raise Problem("context=kmeans", what, "lower context_classes")
    centres = KMeans(clusters, init="k-means++", n_init=4, random_state=seed).fit(sample).cluster_centers_
    return centres[np.argsort(centres[:, 0], kind="stable")].astype(np.float32)


def nearest_centre(image: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Which centre (t, C) each voxel of an image (C, *S) is nearest to: (*S) int16; of equals the first."""
    distance = [sum((image[c] - centre[c]) ** 2 for c in range(len(image))) for centre in centres]
    return np.argmin(np.stack(distance), 0).astype(np.int16)


def with_contexts(label: np.ndarray, context: np.ndarray, classes: int) -> np.ndarray:
    """A label (*S) whose background voxels are told apart: context 0 stays 0, context j becomes K - 1 + j.

    >>> with_contexts(np.array([0, 0, 0, 1, -1]), np.array([0, 1, 2, 2, 2]), classes=2).tolist()
    [0, 2, 3, 1, -1]
    """
    split = (label == 0) & (context > 0)
    return np.where(split, classes - 1 + context, label).astype(np.int16)
