"""How much memory a network takes for one window, counted without computing anything."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_SMALL = 20480  # B * C * D * H of an image up to which PyTorch does not ask oneDNN
_META = torch.device("meta")


def window_bytes(
    network: nn.Module,
    image: Sequence[int],
    device: torch.device,
    forward: Callable[[Any, Tensor], object] = lambda network, image: network(image),
) -> int:
    """The largest memory that tensors take at once while a network sees one window.

    The network runs on tensors without numbers (PyTorch's "meta"), and every tensor counts from
    where it is made to where it is gone. On a processor a convolution of volumes that PyTorch does
    itself unfolds its input, 27 times for a kernel of 3, and one that oneDNN does has its weights
    in another order besides. What cuDNN takes for itself is not counted. The tests hold it to a
    factor of 2 of what PyTorch's profiler counts.

    Args:
        network: The network, in evaluation mode; it is not changed.
        image: Shape (C, *patch) of a window.
        device: Where it will predict.
        forward: How it is called, with a copy of the network and a window (1, C, *patch).

    Returns:
        Bytes, of the window and all that is made of it, without the network's parameters.

    Example:
        >>> window_bytes(nn.Conv3d(1, 8, 1), (1, 16, 16, 16), torch.device("cuda"))
        147456
    """
    memo: dict[int, Any] = {}
    for p in network.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=_META), requires_grad=False)
    for b in network.buffers():
        memo[id(b)] = torch.empty_like(b, device=_META)
    kept = list(memo.values())
    hollow = copy.deepcopy(network, memo)
    window = torch.empty(1, *image, device=_META)
    with torch.no_grad(), _LiveBytes(kept, device.type == "cpu") as live:
        live.note(window)
        forward(hollow, window)
    return live.most


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block and are still there."""

    def __init__(self, kept: Sequence[Tensor], on_cpu: bool) -> None:
        super().__init__()
        self.on_cpu = on_cpu
        self.known = {t.untyped_storage()._cdata for t in kept}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.note(tensor)
        if self.on_cpu and operation is torch.ops.aten.convolution.default:
            self.most = max(self.most, self.now + _scratch(made, *args))
        return made

    def note(self, tensor: Tensor) -> None:
        """Count a tensor, unless it is a view of one that counts already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _scratch(
    made: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> int:
    """Bytes that a convolution on a processor takes beside its tensors (PyTorch's `use_mkldnn`)."""
    kernel = weight.shape[2:]
    worth = max(*stride, *dilation) > 1 or max(kernel) > 3 or torch.get_num_threads() > 1
    large = groups > 1 or max(kernel) > 3 or prod(image.shape[:4]) > _SMALL
    if worth and large:
        return weight.untyped_storage().nbytes()
    if transposed or len(kernel) < 3 or max(kernel) == 1:
        return 0
    return prod((len(image), image.shape[1], *kernel, *made.shape[2:])) * image.element_size()
