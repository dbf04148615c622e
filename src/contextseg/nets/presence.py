"""A head that says which classes are in an image at all, on any network, and a gate that uses it.

The classification head of CMU-Net (Moseley, Wang, Imran: Context-aware multitasking for medical
image segmentation): the encoder's deepest features, averaged over space, and one linear layer.
There is one logit for each class but the background, where the paper has one class. The gate is
ours: the paper drops the head after the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TypeVar

import torch
from torch import Tensor, nn

from contextseg.errors import ContextsegError

T = TypeVar("T")


class Presence(nn.Module):
    """A network with a presence head, in place of the network.

    The features are the output of the network's last stage (`stages[-1]`), or of its `encoder`.
    They are read by a hook, so that a network need not know of the head.

    Args:
        net: Network that gives logits (B, K, *S); in training it may give a list of them.
        inputs: Channels C of the image.
        classes: K, background included.
        dims: How many axes S has.
        gamma: Exponent of the focal loss that the head is trained with; needed for `probability`.
        alpha: Weight in that loss of a class that is there.

    Attributes:
        gate: A threshold for each class but the background. In evaluation, where the probability
            that a class is in the image is below it, the class does not win (`gated`). All 0, off,
            at first; no part of the weights.
        seen: The probability above which a class counts as seen in a case. All 1, never, at first;
            no part of the weights.

    Raises:
        ContextsegError: The network has neither stages nor an encoder.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: int,
        classes: int,
        dims: int,
        gamma: float = 2.0,
        alpha: float = 0.5,
    ) -> None:
        super().__init__()
        self.net = net
        self.gamma = gamma
        self.alpha = alpha
        self.gate = (0.0,) * (classes - 1)
        self.seen = (1.0,) * (classes - 1)
        self._probe = (1, inputs, *[1] * dims)
        net.eval()
        with torch.no_grad():
            width = self._deepest(lambda: net(torch.zeros(self._probe)))[1].shape[1]
        net.train()
        self.linear = nn.Linear(width, classes - 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *S) to what the network gives; in evaluation, after the gate."""
        if self.training or not any(self.gate):
            return self.net(x)
        z, present = self.both(x)
        assert isinstance(z, Tensor)
        return gated(z, self.probability(present), self.gate)

    def probability(self, present: Tensor) -> Tensor:
        """Presence logits to probabilities, among patches as they are drawn in training."""
        return posterior(present, self.gamma, self.alpha)

    def both(self, x: Tensor) -> tuple[Tensor | list[Tensor], Tensor]:
        """The network's output without the gate, and the presence logits.

        Args:
            x: (B, C, *S).

        Returns:
            What the network gives, and logits (B, K - 1), for class 1 and so on.
        """
        return self.during(lambda: self.net(x))

    def during(self, work: Callable[[], T]) -> tuple[T, Tensor]:
        """The result of `work()`, and the presence logits of the image it was done with."""
        result, deepest = self._deepest(work)
        return result, self.linear(deepest.flatten(2).mean(2))

    def encoder(self) -> list[nn.Parameter]:
        """The network's parameters that the head's logits depend on."""
        training = self.training
        parameters = list(self.net.parameters())
        image = torch.zeros(self._probe, device=self.linear.weight.device)
        with torch.enable_grad():
            present = self.eval().both(image)[1]
            gradients = torch.autograd.grad(present.sum(), parameters, allow_unused=True)
        self.train(training)
        return [p for p, gradient in zip(parameters, gradients) if gradient is not None]

    def _deepest(self, work: Callable[[], T]) -> tuple[T, Tensor]:
        outputs: list[Tensor] = []
        here = get_ident()

        def keep(module: nn.Module, inputs: object, out: Tensor | Sequence[Tensor]) -> None:
            if get_ident() == here:  # another thread may be using the network, too
                outputs.append(out if isinstance(out, Tensor) else out[-1])

        with _last_stage(self.net).register_forward_hook(keep):
            result = work()
        return result, outputs[-1]


def _last_stage(net: nn.Module) -> nn.Module:
    """The module whose output is the deepest map of the encoder, or a list that ends with it."""
    stages = getattr(net, "stages", None)
    encoder = getattr(net, "encoder", None)
    if isinstance(stages, nn.ModuleList):
        return stages[-1]
    if isinstance(encoder, nn.Module):
        return encoder
    what = "a presence head does not find its encoder"
    raise ContextsegError(
        type(net).__name__, what, "name the encoder's levels `stages`, or all of it `encoder`"
    )


def posterior(logits: Tensor, gamma: float, alpha: float) -> Tensor:
    """The probability of "yes" that logits mean if they were trained by a focal loss.

    Such a loss is least at another number q than the probability: alpha beyond a half pushes it up,
    gamma towards a half. Where it is least its slope is 0, which says what the probability was; for
    gamma alone this is Charoenphakdee et al. (CVPR 2021).

    Args:
        logits: Of any shape.
        gamma: Exponent of the focal loss.
        alpha: Weight in the loss of "yes"; 1 - alpha is that of "no".

    Returns:
        Probabilities that rise with the logits; with gamma 0 and alpha 0.5 the sigmoid.

    Example:
        A "yes" that weighs four times as much:

        >>> posterior(torch.tensor([0.0]), 2.0, 0.8)
        tensor([0.2000])
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    q = z.sigmoid().clamp(1e-6, 1 - 1e-6)

    def slope(q: Tensor) -> Tensor:
        return (1 - q) ** gamma / q - gamma * (1 - q) ** (gamma - 1) * q.log()

    yes = slope(1 - q) * (1 - alpha)
    no = slope(q) * alpha
    return yes / (yes + no)


def gated(z: Tensor, present: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Logits in which a class that is not in the image never beats the background.

    Below the threshold z_k becomes z_0 - |z_k - z_0|: as far below the background as it was above.
    Sliding windows and mirrored views that overlap are averaged, so that one of them that saw too
    little of an organ cannot forbid it alone.

    Args:
        z: (B, K, *S) logits.
        present: (B, K - 1), the probability that class 1, 2, ... is in the image.
        thresholds: K - 1 of them, in [0, 1]; 0 lets everything pass.

    Returns:
        (B, K, *S) logits.

    Example:
        >>> z = torch.tensor([[1.0, 3.0], [1.0, 0.0]]).unsqueeze(2)
        >>> gated(z, torch.tensor([[0.1], [0.1]]), [0.5])[..., 0].tolist()
        [[1.0, -1.0], [1.0, 0.0]]
    """
    shut = (present < present.new_tensor(thresholds)).view(*present.shape, *[1] * (z.ndim - 2))
    low = z[:, :1] - (z[:, 1:] - z[:, :1]).abs()
    return torch.cat([z[:, :1], torch.where(shut, low, z[:, 1:])], 1)
