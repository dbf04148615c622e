"""Context labels: the background split into classes, for a network to tell apart.

A network with K classes and t context classes has K + t - 1 channels: 0 is the first background
class, 1..K-1 are the ROI classes, and K..K+t-2 are the other context classes (CoLab: Li et al.,
IEEE TMI 2023, whose baselines are here). With t = 1 everything here is plain training.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from contextseg.batch import Batch
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.losses import deep, one_hot
from contextseg.methods.base import Method, build_net, loss_of

FAR = 60_000.0
"""The distance, in any unit, where a case has no ROI: float16 holds it, and nothing is near it."""

UNITS = ("vox", "mm")


def roi_distance(label: np.ndarray, spacing_mm: tuple[float, ...], unit: str = "vox") -> np.ndarray:
    """Distance of each voxel to the nearest ROI voxel, all ROI classes taken together.

    Unlike in the authors' code, distances are not cut to integers, and may be in mm, since voxels
    of an anisotropic grid measure no distance.

    Args:
        label: (*S) integers; `IGNORE` is not ROI.
        spacing_mm: Spacing along D, H, W; of the last axes for a slice.
        unit: "vox", as in the paper, or "mm".

    Returns:
        (1, *S) float16: 0 inside the ROI; `FAR` everywhere where there is no ROI.

    Raises:
        ContextsegError: The unit is unknown.

    Example:
        >>> roi_distance(np.array([[0, 0, 1, 0]]), (1.0, 2.0), "mm").tolist()
        [[[4.0, 2.0, 0.0, 2.0]]]
    """
    import edt

    _check_unit(unit)
    roi = label > 0
    if not roi.any():
        return np.full((1, *label.shape), FAR, np.float16)
    mm = spacing_mm[-label.ndim :] if unit == "mm" else (1.0,) * label.ndim
    return edt.edt(np.ascontiguousarray(~roi), anisotropy=mm)[None].astype(np.float16)


def _check_unit(unit: str) -> None:
    """Raise `ContextsegError` for a unit of distance that is not one of `UNITS`."""
    if unit not in UNITS:
        raise ContextsegError(
            f"distance_unit={unit}", "there is no such unit", did_you_mean(unit, UNITS)
        )


def nearness(
    distance: Tensor, margin: float = 30.0, tau: float = 20.0, absent: float = 0.0
) -> Tensor:
    """Weight M of the context label by distance to the ROI (CoLab, Eq. 8).

    Args:
        distance: Distance to the ROI, of any shape, in voxels or mm; `FAR` where a case has no ROI.
        margin: Distance up to which the weight is 1, in the unit of `distance`.
        tau: Decay length beyond the margin, in the unit of `distance`.
        absent: Weight where a case has no ROI: 0, plain background, is the paper's definition; the
            authors' code has 1.

    Returns:
        The shape of `distance`, in [0, 1]: 1 nearer than `margin`, then `exp(-(distance - margin) /
        tau)`.

    Example:
        >>> [round(m, 6) for m in nearness(torch.tensor([0.0, 40, 50, 70, 100])).tolist()]
        [1.0, 0.606531, 0.367879, 0.135335, 0.030197]
    """
    near = torch.exp(-(distance - margin).clamp(min=0) / tau)
    return torch.where(distance >= FAR, absent, near)


def context_label(label: Tensor, q: Tensor, near: Tensor, classes: int) -> Tensor:
    """The extended soft label (CoLab, Eq. 5, 6, 9).

    Args:
        label: (B, *S) int64, 0..K-1 or `IGNORE`.
        q: (B, t, *S), probabilities of the context classes. They do not matter on ROI voxels.
        near: (B, 1, *S), M. Where it is small the label is plain background.
        classes: K.

    Returns:
        (B, K+t-1, *S) float, in the order of channels above. It sums to 1 at every voxel, and to 0
        under `IGNORE`.
    """
    hard = one_hot(label, classes).to(q.dtype)
    background = hard[:, :1]
    mixed = near * q
    first = background * (1 - near + mixed[:, :1])
    return torch.cat([first, hard[:, 1:], background * mixed[:, 1:]], 1)


def known_classes(annotated: Tensor, contexts: int) -> Tensor:
    """Which of the K + t - 1 channels are annotated.

    Where some ROI class is not annotated, it is unknown which context a background voxel belongs
    to.

    Args:
        annotated: (B, K) bool, which classes are annotated.
        contexts: t, the first context class included.

    Returns:
        (B, K+t-1) bool.
    """
    return torch.cat([annotated, annotated.all(1, keepdim=True).expand(-1, contexts - 1)], 1)


BACKGROUNDS = ("sum", "max")
"""Ways to make one background of the context classes, see `folded`."""


def folded(z: Tensor, classes: int, background: str = "sum") -> Tensor:
    """Logits in which the context classes are background again.

    With "sum" the background's logit is the log-sum-exp of theirs, so that their probabilities add
    up. With "max", the paper's, it is the largest of theirs, so that the argmax is that of all
    channels. A voxel is then background only where one context class alone beats the ROI, which
    draws the ROI too large where contexts are not told apart sharply: with t equal ones the ROI
    wins from a probability of 1/(t+1), not 1/2.

    Args:
        z: (B, K+t-1, *S) logits.
        classes: K.
        background: "sum" or "max".

    Returns:
        (B, K, *S) logits. Without context classes, `z` itself.
    """
    if z.shape[1] == classes:
        return z
    contexts = torch.cat([z[:, :1], z[:, classes:]], 1)
    if background == "max":
        first = contexts.amax(1, keepdim=True)
    else:
        first = contexts.logsumexp(1, keepdim=True)
    return torch.cat([first, z[:, 1:classes]], 1)


class Contexts(Method):
    """Plain training on labels that hold context classes (K, K+1, ...) beside background and ROI.

    Clusters, organs or another network may have made them. A label without any is trained on too,
    as background of the first kind.

    Args:
        plan: The plan.
        net: Network, a name of `NETS`.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        context_classes: t, the first one included; 1 is `Supervised`, bit for bit.
        background: How context classes become background again: "sum" or "max" (see `folded`).
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first,
            which the context classes share; () for equal weights.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        context_classes: int = 2,
        background: str = "sum",
        weights: str = "",
        loss: str = "dice_ce",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        check_contexts(context_classes, background)
        self.classes = len(plan.classes)
        self.context_classes = context_classes
        self.background = background
        outputs = self.classes + context_classes - 1
        self.net = build_net(net, plan, outputs)
        self.loss = loss_of(plan, loss, class_weights, outputs)
        self.optimizer = optimizer
        self.start_weights = {"net": weights}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        width = self.classes + self.context_classes - 1
        known = batch.annotated
        if known.shape[1] != width:
            known = known_classes(known, self.context_classes)
        return {"seg": deep(self.loss, self.net(batch.image), batch.label, known)}

    def predict(self, image: Tensor) -> Tensor:
        """The logits, context classes folded into the background."""
        return folded(self.net(image), self.classes, self.background)

    def context_logits(self, image: Tensor) -> Tensor:
        """The logits of all channels, the context classes after the classes."""
        return self.net(image)


class Dilated(Method):
    """Two context classes by distance alone: near the ROI, M, and far from it, 1 - M.

    A baseline of CoLab (Li et al., IEEE TMI 2023).

    Args:
        plan: The plan.
        net: Network, a name of `NETS`.
        optimizer: "sgd", "adamw" or "auto" (see `Method.settle`).
        margin: Distance to the ROI up to which M is 1, in `distance_unit`.
        tau: Decay length of M beyond the margin, in `distance_unit`.
        distance_unit: "vox", as in the paper, or "mm".
        background: How the context class becomes background again: "sum" or "max" (see `folded`).
        weights: File of weights to start from; "" for new weights. See `nets.weights`.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first,
            which the context classes share; () for equal weights.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        margin: float = 30.0,
        tau: float = 20.0,
        distance_unit: str = "vox",
        background: str = "sum",
        weights: str = "",
        loss: str = "dice_ce",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        check_contexts(2, background, margin, tau, distance_unit)
        self.classes = len(plan.classes)
        self.context_classes = 2
        self.background = background
        self.near = partial(nearness, margin=margin, tau=tau)
        self.net = build_net(net, plan, self.classes + 1)
        self.loss = loss_of(plan, loss, class_weights, self.classes + 1)
        self.optimizer = optimizer
        self.maps = partial(roi_distance, unit=distance_unit)
        self.start_weights = {"net": weights}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        near = self.near(distances(batch))
        q = torch.cat([1 - near, near], 1)
        y = context_label(batch.label, q, torch.ones_like(near), self.classes)
        known = known_classes(batch.annotated, 2)
        return {"seg": deep(self.loss, self.net(batch.image), y, known)}

    def predict(self, image: Tensor) -> Tensor:
        """The logits, the context class folded into the background."""
        return folded(self.net(image), self.classes, self.background)

    def context_logits(self, image: Tensor) -> Tensor:
        """The logits of all channels, the context classes after the classes."""
        return self.net(image)


def check_contexts(
    context_classes: int,
    background: str,
    margin: float = 30.0,
    tau: float = 20.0,
    distance_unit: str = "vox",
) -> None:
    """Check the settings that methods of context classes share.

    Args:
        context_classes: At least 1.
        background: One of `BACKGROUNDS`.
        margin: 0 or more.
        tau: Above 0.
        distance_unit: One of `UNITS`.

    Raises:
        ContextsegError: One of them is out of its range or unknown.
    """
    _check_unit(distance_unit)
    if context_classes < 1:
        raise ContextsegError(
            f"context_classes={context_classes}",
            "no context at all",
            "give 1, for plain training, or more",
        )
    if background not in BACKGROUNDS:
        raise ContextsegError(
            f"background={background}",
            "there is no such way",
            did_you_mean(background, BACKGROUNDS),
        )
    if not (margin >= 0 and tau > 0):
        raise ContextsegError(
            f"margin={margin}, tau={tau}",
            "no distance to fall off over",
            "give 0 or more, and more than 0",
        )


def distances(batch: Batch) -> Tensor:
    """The distance to the ROI, for `nearness`.

    Args:
        batch: With maps, the first of which is the distance over each whole case; without maps, the
            distance is that within each item, in voxels.

    Returns:
        (B, 1, *S) float32.
    """
    if batch.maps is not None:
        return batch.maps[:, :1]
    labels = batch.label.cpu().numpy()
    array = np.zeros((len(labels), 1, *labels.shape[1:]), np.float32)
    for i, label in enumerate(labels):
        array[i] = roi_distance(label, (1.0,) * label.ndim)
    return torch.from_numpy(array).to(batch.image.device)


# --- intensity clusters ---------------------------------------------------------------------------


def kmeans(sample: np.ndarray, clusters: int, seed: int = 0) -> np.ndarray:
    """The centres of k-means++ on intensities.

    Args:
        sample: (N, C) intensities of N voxels.
        clusters: t.
        seed: Seed of the initialisation.

    Returns:
        (t, C) float32, darkest first (by the first channel).

    Raises:
        ContextsegError: The sample has fewer different values than clusters.
    """
    from sklearn.cluster import KMeans

    if len(np.unique(sample, axis=0)) < clusters:
        what = f"fewer than {clusters} different intensities to make context classes of"
        raise ContextsegError("context=kmeans", what, "lower context_classes")
    model = KMeans(clusters, init="k-means++", n_init=4, random_state=seed).fit(sample)
    centres = model.cluster_centers_
    return centres[np.argsort(centres[:, 0], kind="stable")].astype(np.float32)


def nearest_centre(image: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The centre that each voxel is nearest to.

    Args:
        image: (C, *S).
        centres: (t, C).

    Returns:
        (*S) int16; of equally near centres, the first.
    """
    distance = [sum((image[c] - centre[c]) ** 2 for c in range(len(image))) for centre in centres]
    return np.argmin(np.stack(distance), 0).astype(np.int16)


def with_contexts(label: np.ndarray, context: np.ndarray, classes: int) -> np.ndarray:
    """A label whose background is split by context: context 0 stays 0, context j becomes K - 1 + j.

    Args:
        label: (*S) integers, class or `IGNORE`.
        context: (*S) integers, 0..t-1.
        classes: K.

    Returns:
        (*S) int16.

    Example:
        >>> with_contexts(np.array([0, 0, 0, 1, -1]), np.array([0, 1, 2, 2, 2]), classes=2).tolist()
        [0, 2, 3, 1, -1]
    """
    split = (label == 0) & (context > 0)
    return np.where(split, classes - 1 + context, label).astype(np.int16)
