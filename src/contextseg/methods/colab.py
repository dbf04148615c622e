"""CoLab: context labels learnt by a meta-gradient (Li et al., IEEE TMI 2023).

Li, Kamnitsas, Ouyang, Chen, Glocker. A task generator g splits the background into t classes, so
that the segmentation network f, after one training step on them, segments the ROI better. The
functions here are of tensors, for any loop: between `loss.backward()` and `optimizer.step()`,
`meta_gradient(...)` is what g descends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from contextseg.batch import IGNORE, Batch
from contextseg.data.plan import Plan
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.losses import Loss, deep, deep_weights, dice_ce, shrunk
from contextseg.methods.base import Method, build_net, loss_of, optimizer
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
from contextseg.ranks import Mean, ranks

Weights = dict[str, Tensor]
"""Weights by their names in the network."""
SegLoss = Callable[[list[Tensor], Tensor], Tensor]
"""(logits of f, full resolution first; q (B, t, *S)) to the training loss of f, a scalar."""

# --- losses ---------------------------------------------------------------------------------------


def context_loss(
    outputs: Tensor | Sequence[Tensor],
    q: Tensor,
    label: Tensor,
    near: Tensor,
    annotated: Tensor,
    loss: Loss = dice_ce,
) -> Tensor:
    """The loss that trains f, L_seg: cross-entropy and Dice against the extended soft label.

    With deep supervision it is computed at every resolution: there q is averaged, M is the smallest
    of its voxels, and the label is the nearest. A look-ahead has a part of the batch alone, and
    pools no Dice.

    Args:
        outputs: Logits (B, K+t-1, *S), or a list of them, full resolution first.
        q: (B, t, *S), probabilities of the context classes, from g.
        label: (B, *S) int64, 0..K-1 or `IGNORE`.
        near: (B, 1, *S), M.
        annotated: (B, K) bool, which classes are annotated.
        loss: A loss of soft targets, (logits, target, annotated) to a scalar.

    Returns:
        A scalar.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    classes = annotated.shape[1]
    known = known_classes(annotated, q.shape[1])
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
    """The loss that judges g, L_ROI: binary cross-entropy of each ROI class against the rest.

    The logit of class k against the rest is exact: z_k - logsumexp of the others.

    Args:
        z: (B, K+t-1, *S) logits.
        label: (B, *S) int64, 0..K-1 or `IGNORE`.
        annotated: (B, K) bool, which classes are annotated; its width says K.

    Returns:
        A scalar: in each item the mean over annotated voxels, summed over annotated classes; then
        the mean over items, 0 of none.
    """
    z = z.float() if z.dtype != torch.float64 else z
    known = label != IGNORE
    total = z.new_zeros(len(z))
    for k in range(1, annotated.shape[1]):
        others = torch.cat([z[:, :k], z[:, k + 1 :]], 1).logsumexp(1)
        loss = F.binary_cross_entropy_with_logits(
            z[:, k] - others, (label == k).to(z.dtype), reduction="none"
        )
        mean = (loss * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
        total = total + mean * annotated[:, k]
    return total.sum() / max(len(z), 1)


# --- the meta-gradient ----------------------------------------------------------------------------


def stepped(net: nn.Module, lr: float) -> Weights:
    """The weights theta* after one plain gradient step along the gradients of the parameters.

    Args:
        net: A network whose parameters hold `.grad`, or None for no gradient.
        lr: Length of the step.

    Returns:
        The weights by name, leaves that require a gradient.
    """
    moved = {
        n: p.detach() if p.grad is None else p.detach() - lr * p.grad
        for n, p in net.named_parameters()
    }
    return {name: weight.requires_grad_() for name, weight in moved.items()}


def called(net: nn.Module, weights: Weights, image: Tensor) -> Tensor | list[Tensor]:
    """A network's output with given weights.

    As `torch.func.functional_call`, which leaves such weights behind in a network that holds one
    module under two names, as nnU-Net's do.

    Args:
        net: The network.
        weights: All of its weights, by the first of their names.
        image: (B, C, *S).

    Returns:
        What the network gives.
    """
    first = {id(p): name for name, p in net.named_parameters()}
    every = {
        f"{place}.{leaf}" if place else leaf: weights[first[id(p)]]
        for place, module in net.named_modules()
        for leaf, p in module.named_parameters(recurse=False)
    }
    return functional_call(net, every, (image,), tie_weights=False)


def roi_gradient(
    net: nn.Module, weights: Weights, image: Tensor, loss: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The gradient v of a loss in given weights.

    In half precision the backward pass runs on the loss times 1024, so that small gradients are not
    lost.

    Args:
        net: The network f.
        weights: Its weights, by name.
        image: (B, C, *S).
        loss: Full-resolution logits to a scalar.

    Returns:
        One tensor for each of the weights; zeros where the loss does not depend on one.
    """
    outputs = called(net, weights, image)
    value = loss(outputs if isinstance(outputs, Tensor) else outputs[0])
    scale = 1024.0 if torch.is_autocast_enabled(image.device.type) else 1.0
    scaled = torch.autograd.grad(value * scale, list(weights.values()), allow_unused=True)
    return [
        torch.zeros_like(w) if v is None else v / scale for v, w in zip(scaled, weights.values())
    ]


def exact_product(
    net: nn.Module, v: Sequence[Tensor], image: Tensor, q: Tensor, loss: SegLoss
) -> Tensor:
    """< v, grad_theta L_seg(theta, q) >, without a second-order graph of f.

    It equals < grad_z L, J_f v >: one forward-mode product through f, then the derivative of the
    loss alone.

    Args:
        net: The network f, at theta.
        v: One tensor for each of its parameters.
        image: (B, C, *S).
        q: (B, t, *S), probabilities of the context classes.
        loss: (logits of f, q) to L_seg.

    Returns:
        A scalar that can be differentiated in `q`.
    """
    # Dual numbers are `torch.func.jvp` with less work for each operation, which is what a GPU waits
    # for.
    with torch.no_grad(), forward_ad.dual_level():
        weights = {
            name: forward_ad.make_dual(p.detach(), part)
            for (name, p), part in zip(net.named_parameters(), v)
        }
        z = called(net, weights, image)
        duals = [forward_ad.unpack_dual(one) for one in ([z] if isinstance(z, Tensor) else z)]
    levels = [dual.primal.detach().requires_grad_() for dual in duals]
    levels_dot = [
        torch.zeros_like(z) if d.tangent is None else d.tangent for z, d in zip(levels, duals)
    ]
    slopes = torch.autograd.grad(loss(levels, q), levels, create_graph=True)
    terms = [(slope * z_dot.detach()).sum() for slope, z_dot in zip(slopes, levels_dot)]
    return torch.stack(terms).sum()


def finite_product(
    net: nn.Module, v: Sequence[Tensor], image: Tensor, q: Tensor, loss: SegLoss
) -> Tensor:
    """As `exact_product`, by the authors' central difference of step 0.01 / |v|; for comparison.

    Args:
        net: The network f, at theta.
        v: One tensor for each of its parameters.
        image: (B, C, *S).
        q: (B, t, *S), probabilities of the context classes.
        loss: (logits of f, q) to L_seg.

    Returns:
        A scalar near the exact one, that can be differentiated in `q`.
    """
    r = 0.01 / torch.stack([part.square().sum() for part in v]).sum().sqrt().clamp(min=1e-30)
    values = []
    for sign in (1, -1):
        weights = {
            name: p.detach() + sign * r * part for (name, p), part in zip(net.named_parameters(), v)
        }
        with torch.no_grad():
            z = called(net, weights, image)
        values.append(loss([z] if isinstance(z, Tensor) else z, q))
    return (values[0] - values[1]) / (2 * r)


LAYERS = ("all", "last")
"""Through which layers of f a look-ahead goes: all of them, or the decoder's last level."""

LABELS_FROM = ("updated", "current")
"""Whose labels train f in a step that looks ahead: g's after its own step, or before it."""

PRODUCTS = {"exact": exact_product, "finite": finite_product}
"""Ways to the meta-gradient, by name."""


def meta_gradient(
    net: nn.Module,
    generator: nn.Module,
    batch: Batch,
    near: Tensor,
    lr: float,
    mean: Mean = lambda values: None,
    product: str = "exact",
    loss: Loss = dice_ce,
    features: Tensor | None = None,
) -> list[Tensor]:
    """The gradient of L_ROI(theta*) in the generator's parameters, over lr (CoLab, Eq. 12 to 15).

    The derivative of Eq. 13 is taken at theta, where the paper prints theta*. The factor lr is left
    out: g is trained by Adam, for which it would only change the weight of epsilon.

    Args:
        net: f, whose parameters hold in `.grad` the gradient of L_seg at theta.
        generator: g.
        batch: The items of both losses; it may be a part of the batch that the gradient is of, or
            be empty.
        near: (B, 1, *S), M.
        lr: Length of the step from theta to theta*.
        mean: Replaces means over this process's items by means over all processes' items, in place.
        product: "exact" or "finite".
        loss: The loss of `context_loss` that the net is trained with.
        features: What `net` is applied to, where it is the last level of f alone, (B, C', *S').
            None: the image.

    Returns:
        One tensor for each parameter of `generator`; zeros where the batch is empty.
    """
    star = stepped(net, lr)
    x = batch.image if features is None else features
    if len(batch):
        v = roi_gradient(net, star, x, lambda z: roi_loss(z, batch.label, batch.annotated))
    else:
        v = [torch.zeros_like(weight) for weight in star.values()]
    mean(v)
    parameters = list(generator.parameters())
    if not len(batch):
        return [torch.zeros_like(p) for p in parameters]
    seg_loss = partial(
        context_loss, label=batch.label, near=near, annotated=batch.annotated, loss=loss
    )
    # Forward mode has no mixed precision.
    with torch.autocast(batch.image.device.type, enabled=False):
        q = generator(batch.image).softmax(1)
        value = PRODUCTS[product](net, v, x.to(batch.image.dtype), q, seg_loss)
    return [-g for g in torch.autograd.grad(value, parameters)]


# --- the generator and the method -----------------------------------------------------------------


SIZES = ("small", "full")
"""Sizes of the generator."""

_LEAST_VOX = 16


class Generator(nn.Module):
    """The task generator g: an image to logits of the context classes.

    Args:
        plan: The plan.
        contexts: t.
        size: "small" for f's plain U-Net without its first level and `narrow` times narrower, on
            the image at the resolution of f's second level, its logits interpolated; "full" for a
            U-Net of f's size. The paper says that g may be any network.
        narrow: Divides the widths of "small".

    Raises:
        ContextsegError: The size is unknown.
    """

    def __init__(self, plan: Plan, contexts: int, size: str = "small", narrow: int = 2) -> None:
        super().__init__()
        if size not in SIZES:
            raise ContextsegError(
                f"generator={size}", "there is no such generator", did_you_mean(size, SIZES)
            )
        ones = (1,) * plan.dims
        small = size == "small"
        skip = 1 if small and len(plan.widths) > 2 else 0
        widths = list(plan.widths[: len(plan.widths) - skip])
        if small:
            widths = [max(w // narrow, 4) for w in widths]
        self.step = plan.strides[1] if small and len(plan.strides) > 1 else ones
        strides = [ones, *plan.strides[1 + skip :]]
        kernels = plan.kernels[skip:]
        self.net = UNet(len(plan.channels), contexts, widths, strides, kernels, deep=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *S) to (B, t, *S) logits."""
        size = image.shape[2:]
        small = _averaged(image, [-(-n // s) for n, s in zip(size, self.step)])
        z = self.net(small)
        if z.shape[2:] == size:
            return z
        return F.interpolate(z, size, mode="trilinear" if len(size) == 3 else "bilinear")


def piece(batch: Batch, n: int, parts: int) -> Batch:
    """One of the pieces of a batch's patches, each axis cut into `parts`.

    Pieces of an axis of L voxels hold ceil(L / parts), and at least 16, or all; they overlap where
    that does not fit.

    Args:
        batch: The batch.
        n: Number of the piece; the last axis is gone through first.
        parts: Pieces of each axis.

    Returns:
        The batch of that piece.
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


WATCHED = {0: 0, **{10**n: n + 1 for n in range(7)}}
"""Steps at which the contexts of one patch are kept, to show how they are learnt: step to index."""


class CoLab(Method):
    """Context classes learnt together with the segmentation (Li et al., IEEE TMI 2023).

    The defaults are ours, and no numbers of theirs are the paper's: g is small and looks ahead in
    every second step with a part of the batch, which is cheap, and a biased estimate of the
    gradient (docs/colab.md says how near it comes). The paper's are `generator="full"`,
    `generator_lr=3e-4`, `generator_every=1`, `lookahead_items=1`, `lookahead_parts=1`,
    `labels_from="updated"` and `background="max"`, as `contextseg reproduce` gives them.

    Args:
        plan: The plan.
        net: Network f, a name of `NETS`.
        optimizer: Optimiser of f, "sgd", "adamw" or "auto"; that of g is Adam.
        context_classes: t. The paper has 2 where false positives lie far from the ROI, and 4 where
            they lie beside it. 1 is `Supervised`, bit for bit.
        generator: Size of g, "small" or "full" (see `Generator`).
        generator_lr: Learning rate of g; the paper's is 3e-4.
        generator_every: Steps from one look-ahead to the next; the paper has 1, the authors' code
            5.
        lookahead_items: A look-ahead has one in this many items of a batch, in turn; 1 for all.
        lookahead_parts: Into how many parts each axis of the patch is cut, of which a look-ahead
            has one, in turn; 1 for the whole patch. No part is smaller than 16 voxels along an
            axis.
        lookahead_layers: Through which layers of f a look-ahead goes: "all", as in the paper, or
            "last", the decoder's last level alone, whose input f's own pass has left; then it has
            the whole patch. For the U-Nets.
        meta: "exact", or "finite", the authors' difference quotient.
        labels_from: Whose labels train f in a step that looks ahead: "updated", those of g after
            its step, as in the paper's Algorithm 1, which takes f's gradient a second time; or
            "current", those of g before it.
        margin: Distance to the ROI up to which M is 1, in `distance_unit` (see `nearness`).
        tau: Decay length of M beyond the margin, in `distance_unit`.
        distance_unit: "vox", as in the paper, or "mm".
        absent: M where a case has no ROI.
        background: How context classes become background again: "sum" or "max" (see `folded`).
        weights: File of weights that f starts from; "" for new weights. See `nets.weights`.
        loss: Loss on labels, a name of `LOSSES`.
        class_weights: A weight in the loss for each class, background first,
            which the context classes share; () for equal weights.

    Raises:
        ContextsegError: A name is unknown, or a number is out of its range.
    """

    private_state = ("watched", "snapshots")

    watched: Tensor
    """The patch whose contexts are kept, (1, C, *patch) float16: the first item of the first batch.
    """
    snapshots: Tensor
    """q of its middle slice at the steps of `WATCHED`, (n, t, H, W) float16; 0 for steps to come.
    """

    def __init__(
        self,
        plan: Plan,
        net: str = "unet",
        optimizer: str = "auto",
        context_classes: int = 2,
        generator: str = "small",
        generator_lr: float = 3e-3,
        generator_every: int = 2,
        lookahead_items: int = 2,
        lookahead_parts: int = 2,
        lookahead_layers: str = "all",
        meta: str = "exact",
        labels_from: str = "current",
        margin: float = 30.0,
        tau: float = 20.0,
        distance_unit: str = "vox",
        absent: float = 0.0,
        background: str = "sum",
        weights: str = "",
        loss: str = "dice_ce",
        class_weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        check_contexts(context_classes, background, margin, tau, distance_unit)
        if min(generator_every, lookahead_items, lookahead_parts) < 1:
            what = f"generator_every={generator_every}, {lookahead_items=}, {lookahead_parts=}"
            raise ContextsegError("method colab", what, "give 1 or more of each")
        if not generator_lr > 0:
            raise ContextsegError(
                f"generator_lr={generator_lr}", "not a positive number", "give a rate above 0"
            )
        if meta not in PRODUCTS:
            raise ContextsegError(
                f"meta={meta}",
                "there is no such way to the meta-gradient",
                did_you_mean(meta, PRODUCTS),
            )
        if labels_from not in LABELS_FROM:
            raise ContextsegError(
                f"labels_from={labels_from}",
                "there is no such order of the two steps",
                did_you_mean(labels_from, LABELS_FROM),
            )
        self.classes = len(plan.classes)
        self.context_classes = context_classes
        self.background = background
        self.optimizer = optimizer
        self.relabels = labels_from == "updated"
        outputs = self.classes + context_classes - 1
        self.loss = loss_of(plan, loss, class_weights, outputs)
        # A look-ahead has a part of the batch alone, and pools no Dice.
        alone = replace(plan, batch_dice=False)
        self.lookahead_loss = loss_of(alone, loss, class_weights, outputs)
        self.meta = meta
        self.every = generator_every
        self.turns = lookahead_items
        self.parts = lookahead_parts
        self.generator_lr = generator_lr
        self.start_weights = {"net": weights}
        self.net = build_net(net, plan, outputs)
        self.last = lookahead_layers == "last" and context_classes > 1
        self._last_input: Tensor | None = None
        self._check_layers(net, lookahead_layers)
        self.generator = (
            Generator(plan, context_classes, generator) if context_classes > 1 else None
        )
        self.near = partial(nearness, margin=margin, tau=tau, absent=absent)
        if context_classes > 1:
            self.maps = partial(roi_distance, unit=distance_unit)
            self.register_buffer(
                "watched", torch.zeros(1, len(plan.channels), *plan.patch_vox, dtype=torch.float16)
            )
            kept = (len(WATCHED), context_classes, *plan.patch_vox[-2:])
            self.register_buffer("snapshots", torch.zeros(kept, dtype=torch.float16))

    def _check_layers(self, net: str, lookahead_layers: str) -> None:
        """Raise `ContextsegError` for layers that a look-ahead cannot go through."""
        where = f"lookahead_layers={lookahead_layers}"
        if lookahead_layers not in LAYERS:
            remedy = did_you_mean(lookahead_layers, LAYERS)
            raise ContextsegError(where, "there are no such layers", remedy)
        if self.last and not hasattr(self.net, "last_level"):
            what = f"the network {net} does not say which of its layers are the last level"
            raise ContextsegError(where, what, "give lookahead_layers=all, or net=unet")
        if self.last and self.parts > 1:
            what = f"lookahead_parts={self.parts}, but the last level has the whole patch"
            raise ContextsegError(where, what, "give lookahead_parts=1")

    def optimizers(self, lr: float) -> dict[str, Optimizer]:
        """The optimiser that was asked for, for f; Adam for g."""
        groups: dict[str, Optimizer] = {"net": optimizer(self.optimizer, self.net.parameters(), lr)}
        if self.generator is not None:
            groups["generator"] = Adam(self.generator.parameters(), self.generator_lr)
        return groups

    def contexts_of(self, image: Tensor) -> Tensor:
        """The probability of each context class, without a gradient.

        Args:
            image: (B, C, *S).

        Returns:
            q, (B, t, *S) float32.
        """
        assert self.generator is not None
        with torch.no_grad():
            return self.generator(image).float().softmax(1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One term, "seg"."""
        if self.last and self.training:
            net: Any = self.net
            if not hasattr(net, "with_last_input"):  # another was put in its place
                what = f"{type(net).__name__} does not say which of its layers are the last level"
                where = "lookahead_layers=last"
                raise ContextsegError(where, what, "give lookahead_layers=all")
            outputs, last = net.with_last_input(batch.image)
            self._last_input = last.detach()
        else:
            outputs = self.net(batch.image)
        if self.generator is None:
            return {"seg": deep(self.loss, outputs, batch.label, batch.annotated)}
        q = self.contexts_of(batch.image)
        near = self.near(distances(batch))
        return {"seg": context_loss(outputs, q, batch.label, near, batch.annotated, self.loss)}

    def lookahead(self, batch: Batch, lr: float, step: int, mean: Mean) -> dict[str, list[Tensor]]:
        """The meta-gradient for "generator", in every `generator_every`-th step."""
        if self.generator is not None and len(batch) and step in WATCHED:
            self._watch(batch.image[:1], step)
        if self.generator is None or step % self.every:
            return {}
        turn = step // self.every
        mine = self._in_turn(batch, turn)
        part = piece(batch.only(mine), turn // self.turns, self.parts)
        share = len(part) / max(len(batch), 1)

        def over_all(values: list[Tensor]) -> None:
            for value in values:
                value.mul_(share)
            mean(values)

        near = self.near(distances(part))
        net: Any = self.net
        weight, features = 1.0, None
        if self.last:
            weight = deep_weights(len(net.heads) if net.deep else 1)[0]
            net = net.last_level(batch.image.shape[2:])
            if len(part):
                assert self._last_input is not None
                features = self._last_input[mine]
            self._last_input = None
        gradient = meta_gradient(
            net, self.generator, part, near, lr, over_all, self.meta, self.lookahead_loss, features
        )
        return {"generator": [g * share * weight for g in gradient]}

    def _watch(self, image: Tensor, step: int) -> None:
        """Keep q of the middle slice of the first item of the first batch."""
        if step == 0:
            self.watched.copy_(image)
        q = self.contexts_of(self.watched.to(image.dtype))[0]
        self.snapshots[WATCHED[step]] = q if q.ndim == 3 else q[:, q.shape[1] // 2]

    def _in_turn(self, batch: Batch, n: int) -> Tensor:
        """Which items the `n`th look-ahead has, (B,) bool: every `turns`-th of all ranks'."""
        rank, world = ranks()
        places = torch.arange(len(batch), device=batch.image.device) * world + rank
        return (places - n) % self.turns == 0

    def predict(self, image: Tensor) -> Tensor:
        """The logits, context classes folded into the background."""
        return folded(self.net(image), self.classes, self.background)

    def context_logits(self, image: Tensor) -> Tensor:
        """The logits of all channels, the context classes after the classes."""
        return self.net(image)
