"""CoLab: context labels learnt by a meta-gradient (Li, Kamnitsas, Ouyang, Chen, Glocker; IEEE TMI 2023).

A task generator g splits the background into t classes, so that the segmentation network f, after one step of training
with them, segments the ROI better. The functions here are of tensors, for anyone's loop: between `loss.backward()` and
`optimizer.step()`, `meta_gradient(...)` is what g descends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from contextseg.batch import IGNORE, Batch
from contextseg.data.plan import Plan
from contextseg.disk import Problem, did_you_mean
from contextseg.losses import Loss, deep, deep_weights, dice_ce, shrunk
from contextseg.methods.base import Mean, Method, build_net, loss_of, optimizer
from contextseg.methods.context import (
    check_contexts,
    context_label,
    distances,
    folded,
    known_classes,
    nearness,
    roi_distance,
)
from contextseg.nets import UNet
from contextseg.ranks import ranks

Weights = dict[str, Tensor]
SegLoss = Callable[[list[Tensor], Tensor], Tensor]
"""(logits of f, full resolution first; q (B, t, *S)) -> the training loss of f as a scalar."""

# --- losses -----------------------------------------------------------------------------------------------------------


def context_loss(
    outputs: Tensor | Sequence[Tensor],
    q: Tensor,
    label: Tensor,
    near: Tensor,
    annotated: Tensor,
    loss: Loss = dice_ce,
) -> Tensor:
    """The loss that trains f, L_seg: cross-entropy and Dice against the extended soft label, at every depth.

    outputs    logits (B, K+t-1, *S), or a list of them, full resolution first.   q  (B, t, *S), g's probabilities.
    label      (B, *S) int64, 0..K-1 or `IGNORE`.   near (B, 1, *S), M.   annotated (B, K) bool.

    At lower resolutions q is averaged, M is the smallest of its voxels, the label the nearest. A look-ahead, which sees
    a part of the batch, pools no Dice.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    classes, known = annotated.shape[1], known_classes(annotated, q.shape[1])
    total = []
    for weight, z in zip(deep_weights(len(outputs)), outputs):
        size = z.shape[2:]
        y = context_label(shrunk(label, size), _averaged(q, size), _smallest(near, size), classes)
        total.append(weight * loss(z, y, known))
    return torch.stack(total).sum()


def _averaged(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="area")


def _smallest(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.shape[2:] == tuple(size):
        return x
    pool: Callable[..., Tensor] = F.adaptive_max_pool3d if len(size) == 3 else F.adaptive_max_pool2d
    return -pool(-x, tuple(size))


def roi_loss(z: Tensor, label: Tensor, annotated: Tensor) -> Tensor:
    """What g is judged by, L_ROI: binary cross-entropy of each ROI class against all other channels, summed.

    z (B, K+t-1, *S), label (B, *S), annotated (B, K), which says K. In each item the mean over annotated voxels, of the
    classes looked for; then the mean over items, 0 of none. The logit of class k against the rest is exact:
    z_k - logsumexp of the others.
    """
    z, said = z.float() if z.dtype != torch.float64 else z, label != IGNORE
    total = z.new_zeros(len(z))
    for k in range(1, annotated.shape[1]):
        others = torch.cat([z[:, :k], z[:, k + 1 :]], 1).logsumexp(1)
        loss = F.binary_cross_entropy_with_logits(z[:, k] - others, (label == k).to(z.dtype), reduction="none")
        mean = (loss * said).flatten(1).sum(1) / said.flatten(1).sum(1).clamp(min=1)
        total = total + mean * annotated[:, k]
    return total.sum() / max(len(z), 1)


# --- the meta-gradient ------------------------------------------------------------------------------------------------


def stepped(net: nn.Module, lr: float) -> Weights:
    """theta*: the weights after one plain gradient step, from the gradients that the parameters hold."""
    moved = {n: p.detach() if p.grad is None else p.detach() - lr * p.grad for n, p in net.named_parameters()}
    return {name: weight.requires_grad_() for name, weight in moved.items()}


def roi_gradient(net: nn.Module, weights: Weights, image: Tensor, loss: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """v: the gradient of `loss(full-resolution logits)` in `weights`, one tensor for each of the net's parameters.

    In half precision the backward pass runs on the loss times 1024, so that small gradients are not lost.
    """
    outputs = functional_call(net, weights, (image,))
    value = loss(outputs if isinstance(outputs, Tensor) else outputs[0])
    scale = 1024.0 if torch.is_autocast_enabled(image.device.type) else 1.0
    found = torch.autograd.grad(value * scale, list(weights.values()), allow_unused=True)
    return [torch.zeros_like(w) if v is None else v / scale for v, w in zip(found, weights.values())]


def exact_product(net: nn.Module, v: Sequence[Tensor], image: Tensor, q: Tensor, loss: SegLoss) -> Tensor:
    """< v, grad_theta L_seg(theta, q) >, a scalar that can be differentiated in `q`, without a second-order graph of f.

    It equals < grad_z L, J_f v >: one forward-mode product through f, then the derivative of the loss alone.
    """
    theta = {name: p.detach() for name, p in net.named_parameters()}
    tangent = dict(zip(theta, v))

    def outputs(weights: Weights) -> list[Tensor]:
        found = functional_call(net, weights, (image,))
        return [found] if isinstance(found, Tensor) else found

    product: tuple[list[Tensor], list[Tensor]] = jvp(outputs, (theta,), (tangent,))  # type: ignore[assignment]
    levels, moved = product
    levels = [z.detach().requires_grad_() for z in levels]
    slopes = torch.autograd.grad(loss(levels, q), levels, create_graph=True)
    return torch.stack([(slope * z_dot.detach()).sum() for slope, z_dot in zip(slopes, moved)]).sum()


def finite_product(net: nn.Module, v: Sequence[Tensor], image: Tensor, q: Tensor, loss: SegLoss) -> Tensor:
    """As `exact_product`, by the authors' central difference of step 0.01 / |v|: near the truth, for comparison."""
    r = 0.01 / torch.stack([part.square().sum() for part in v]).sum().sqrt().clamp(min=1e-30)
    values = []
    for sign in (1, -1):
        weights = {name: p.detach() + sign * r * part for (name, p), part in zip(net.named_parameters(), v)}
        with torch.no_grad():
            found = functional_call(net, weights, (image,))
        values.append(loss([found] if isinstance(found, Tensor) else found, q))
    return (values[0] - values[1]) / (2 * r)


PRODUCTS = {"exact": exact_product, "finite": finite_product}
"""Ways to the meta-gradient."""


def meta_gradient(
    net: nn.Module,
    generator: nn.Module,
    batch: Batch,
    near: Tensor,
    lr: float,
    mean: Mean = lambda values: None,
    product: str = "exact",
) -> list[Tensor]:
    """The gradient of L_ROI(theta*) in the generator's parameters over lr (Eq. 12 to 15), one tensor for each.

    net        f, whose parameters hold in `.grad` the gradient of L_seg at theta.   near  (B, 1, *S), M.
    batch      what both losses are of; it may be a part of the batch that the gradient is of, or be empty.
    mean       makes means over this process's items means over all processes' items, in place.

    The derivative of Eq. 13 is at theta, where the paper prints theta*. The factor lr is left out: g is trained by
    Adam, to which it means nothing but an unfair epsilon.
    """
    star = stepped(net, lr)
    if len(batch):
        v = roi_gradient(net, star, batch.image, lambda z: roi_loss(z, batch.label, batch.annotated))
    else:
        v = [torch.zeros_like(weight) for weight in star.values()]
    mean(v)
    parameters = list(generator.parameters())
    if not len(batch):
        return [torch.zeros_like(p) for p in parameters]
    loss = partial(context_loss, label=batch.label, near=near, annotated=batch.annotated)
    with torch.autocast(batch.image.device.type, enabled=False):  # forward mode has no mixed precision
        value = PRODUCTS[product](net, v, batch.image, generator(batch.image).softmax(1), loss)
    return [-g for g in torch.autograd.grad(value, parameters)]


# --- the generator and the method -------------------------------------------------------------------------------------


class Generator(nn.Module):
    """g: logits (B, t, *S) of the context classes.

    "small": f's plain U-Net without its first level and `narrow` times narrower, on the image at the resolution of f's
    second level; its logits are interpolated. "full": a U-Net of f's size, as the paper, which says that g may be any.
    """

    def __init__(self, plan: Plan, contexts: int, size: str = "small", narrow: int = 2) -> None:
        super().__init__()
        if size not in SIZES:
            raise Problem(f"generator={size}", "there is no such generator", did_you_mean(size, SIZES))
        dims, inputs = plan.dims, len(plan.channels)
        self.step = plan.strides[1] if size == "small" and len(plan.strides) > 1 else (1,) * dims
        skip = 1 if size == "small" and len(plan.widths) > 2 else 0
        widths = (
            [max(w // narrow, 4) for w in plan.widths[: len(plan.widths) - skip]] if size == "small" else plan.widths
        )
        strides = [(1,) * dims, *plan.strides[1 + skip :]]
        self.net = UNet(inputs, contexts, widths, strides, plan.kernels[skip:], deep=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) -> (B, t, *S) logits."""
        size = image.shape[2:]
        small = _averaged(image, [-(-n // s) for n, s in zip(size, self.step)])
        z = self.net(small)
        if z.shape[2:] == size:
            return z
        return F.interpolate(z, size, mode="trilinear" if len(size) == 3 else "bilinear")


def piece(batch: Batch, n: int, parts: int) -> Batch:
    """The `n`th of the pieces of a batch's patches, each axis cut into `parts`; the last axis is gone through first.

    Pieces of an axis of L voxels hold ceil(L / parts), and at least 16, or all; they overlap where that does not fit.
    """
    inside: list[slice] = []
    for length in reversed(batch.image.shape[2:]):
        size = max(-(-length // parts), min(length, _LEAST_VOX))
        starts = parts if size < length else 1
        n, i = divmod(n, starts)
        start = round(i * (length - size) / (starts - 1)) if starts > 1 else 0
        inside.insert(0, slice(start, start + size))
    here: Any = (..., *inside)
    maps = None if batch.maps is None else batch.maps[here]
    return replace(batch, image=batch.image[here], label=batch.label[here], maps=maps)


_LEAST_VOX = 16
SIZES = ("small", "full")
WATCHED = {0: 0, **{10**n: n + 1 for n in range(7)}}
"""Steps at which the contexts of one patch are kept, so that it can be seen how they are learnt: step -> place."""


class CoLab(Method):
    """Context classes learnt together with the segmentation (Li et al., IEEE TMI 2023).

    context_classes      t. The paper: 2 where false positives lie far from the ROI, 4 where they lie beside it. 1 is
                         `Supervised`, bit for bit.
    generator            "small" or "full" (see `Generator`); generator_lr its rate, Adam's; the paper's is 3e-4.
    generator_every      steps from one look-ahead to the next; the paper has 1, the authors' code 5.
    lookahead_items      of how many items of a batch one is looked ahead with, in turn; 1 is all.
    lookahead_parts      into how many parts each axis of the patch is cut, so that one is looked ahead with, in turn;
                         1 is the whole patch. No part is smaller than 16 voxels along an axis.
    meta                 "exact", or "finite", the authors' difference quotient.
    margin, tau          of M (see `nearness`), in `distance_unit`: "vox", as the paper, or "mm".
    absent               M where a case has no ROI.
    background           how the context classes become background again: "max" or "sum" (see `folded`).
    """

    watched: Tensor
    """The patch whose contexts are kept, (1, C, *patch) float16: the first of the first batch."""
    snapshots: Tensor
    """q of its middle slice at the steps of `WATCHED`, (n, t, H, W) float16; 0 where training has not come."""

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "sgd",
        context_classes: int = 2,
        generator: str = "small",
        generator_lr: float = 3e-3,
        generator_every: int = 2,
        lookahead_items: int = 2,
        lookahead_parts: int = 2,
        meta: str = "exact",
        margin: float = 30.0,
        tau: float = 20.0,
        distance_unit: str = "vox",
        absent: float = 0.0,
        background: str = "sum",
    ) -> None:
        super().__init__()
        check_contexts(context_classes, background, margin, tau)
        if min(generator_every, lookahead_items, lookahead_parts) < 1:
            what = f"generator_every={generator_every}, {lookahead_items=}, {lookahead_parts=}"
            raise Problem("method colab", what, "give 1 or more of each")
        if not generator_lr > 0:
            raise Problem(f"generator_lr={generator_lr}", "not a positive number", "give a rate above 0")
        if meta not in PRODUCTS:
            raise Problem(f"meta={meta}", "there is no such way to the meta-gradient", did_you_mean(meta, PRODUCTS))
        self.classes, self.contexts, self.background = len(plan.classes), context_classes, background
        self.optimizer, self.loss, self.meta = optimizer, loss_of(plan), meta
        self.every, self.turns, self.parts = generator_every, lookahead_items, lookahead_parts
        self.generator_lr = generator_lr
        self.net = build_net(net, plan, self.classes + context_classes - 1)
        self.generator = Generator(plan, context_classes, generator) if context_classes > 1 else None
        self.near = partial(nearness, margin=margin, tau=tau, absent=absent)
        if context_classes > 1:
            self.maps = partial(roi_distance, unit=distance_unit)
            self.register_buffer("watched", torch.zeros(1, len(plan.channels), *plan.patch_vox, dtype=torch.float16))
            kept = (len(WATCHED), context_classes, *plan.patch_vox[-2:])
            self.register_buffer("snapshots", torch.zeros(kept, dtype=torch.float16))

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """f by the optimiser that was asked for, g by Adam."""
        groups: dict[str, Optimizer] = {"net": optimizer(self.optimizer, self.net.parameters(), lr)}
        if self.generator is not None:
            groups["generator"] = Adam(self.generator.parameters(), self.generator_lr)
        return groups

    def contexts_of(self, image: Tensor) -> Tensor:
        """q (B, t, *S): the probability of each context class, without a gradient."""
        assert self.generator is not None
        with torch.no_grad():
            return self.generator(image).float().softmax(1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        outputs = self.net(batch.image)
        if self.generator is None:
            return {"seg": deep(self.loss, outputs, batch.label, batch.annotated)}
        q, near = self.contexts_of(batch.image), self.near(distances(batch))
        return {"seg": context_loss(outputs, q, batch.label, near, batch.annotated, self.loss)}

    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]:
        """The meta-gradient for "generator", in every `generator_every`th step."""
        if self.generator is not None and len(batch) and step in WATCHED:
            self._watch(batch.image[:1], step)
        if self.generator is None or step % self.every:
            return {}
        turn = step // self.every
        part = piece(self._in_turn(batch, turn), turn // self.turns, self.parts)
        share = len(part) / max(len(batch), 1)

        def over_all(values: list[Tensor]) -> None:
            for value in values:
                value.mul_(share)
            mean(values)

        near = self.near(distances(part))
        found = meta_gradient(self.net, self.generator, part, near, lr, over_all, self.meta)
        return {"generator": [g * share for g in found]}

    def _watch(self, image: Tensor, step: int) -> None:
        """Keep q of the middle slice of the first item of the first batch, whatever the batch is now."""
        if step == 0:
            self.watched.copy_(image)
        q = self.contexts_of(self.watched.to(image.dtype))[0]
        self.snapshots[WATCHED[step]] = q if q.ndim == 3 else q[:, q.shape[1] // 2]

    def _in_turn(self, batch: Batch, n: int) -> Batch:
        """The items of the `n`th look-ahead: every `turns`-th of those of all ranks."""
        rank, world = ranks()
        places = torch.arange(len(batch), device=batch.image.device) * world + rank
        return batch.only((places - n) % self.turns == 0)

    def predict(self, image: Tensor) -> Tensor:
        """The logits, context classes folded into the background."""
        return folded(self.net(image), self.classes, self.background)
