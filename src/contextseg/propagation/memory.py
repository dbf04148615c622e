"""The memory of STCN: what it keeps of earlier slices, and how a new slice reads it.

After Cheng, Tai, Tang (NeurIPS 2021). The functions are the formulas of the paper, for training and
for reading along; `MemoryBank` does the same at use, in arrays of a fixed size.

Shapes: B items, O objects, N memorised positions (those of all memorised slices), M positions of
the query, Ck and Cv channels of a key and of a value. Affinities and their softmax are in float32
whatever the rest is in, since half precision could not hold them.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 26  # affinities held at once on a GPU: 256 MB; on a CPU 16 MB, the size of its cache


def affinity(mk: Tensor, qk: Tensor, annotated: Tensor | None = None) -> Tensor:
    """Similarity of each memorised key to each query: (2 k_m . k_q - |k_m|^2) / sqrt(Ck).

    This is -|k_m - k_q|^2 / sqrt(Ck) without the term |k_q|^2, which cancels in a softmax over the
    memory.

    Args:
        mk: Memorised keys, (B, Ck, N).
        qk: Keys of the query, (B, Ck, M).
        annotated: (B, N) bool. Positions where it is False are never read: their affinity is -inf.
            None reads all positions.

    Returns:
        (B, N, M), float32 (float64 for float64 keys).

    Example:
        One channel: 4 - 1 and 12 - 9.

        >>> affinity(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]]])).tolist()
        [[[3.0], [3.0]]]
    """
    with torch.autocast(mk.device.type, enabled=False):
        m, q = _full_precision(mk), _full_precision(qk)
        scale = mk.shape[1] ** -0.5
        square = m.square().sum(1, keepdim=True)
        # computed as (B, M, N), so that N is contiguous in memory and top-k is fast
        similarity = torch.baddbmm(square, q.mT, m, beta=-scale, alpha=2 * scale).mT
    if annotated is None:
        return similarity
    return similarity.masked_fill(~annotated[..., None], -torch.inf)


def top_k_softmax(similarity: Tensor, k: int | None = None) -> Tensor:
    """Softmax over the memory of each query's `k` largest affinities; 0 elsewhere.

    The largest affinity is subtracted first, so that no value overflows, however large. Of equal
    values at the edge of the `k` largest, one is taken.

    Args:
        similarity: Affinities, (B, N, M).
        k: How many memorised positions a query reads. None, or N or more, is the full softmax.

    Returns:
        Weights, (B, N, M), which sum to 1 over N.

    Example:
        >>> top_k_softmax(torch.tensor([[[1e4], [1e4], [0.0]]]), 2).flatten().tolist()
        [0.5, 0.5, 0.0]
    """
    similarity = _full_precision(similarity)
    if k is None or k >= similarity.shape[1]:
        return similarity.softmax(1)
    values, places = similarity.topk(k, 1)
    return torch.zeros_like(similarity).scatter(1, places, values.softmax(1))


def readout(weights: Tensor, mv: Tensor) -> Tensor:
    """Weighted sum of the memorised values.

    Args:
        weights: (B, N, M), from `top_k_softmax`.
        mv: Memorised values, (B, O, Cv, N).

    Returns:
        (B, O, Cv, M), in the dtype of `mv`.
    """
    return (mv.flatten(1, 2) @ weights.to(mv.dtype)).unflatten(1, mv.shape[1:3])


def aggregate(logits: Tensor) -> Tensor:
    """Logits of all objects and the background, from objects that were decoded one by one.

    Soft aggregation (Oh et al., ICCV 2019): with p the sigmoid of an object's logit, the
    probability of the background is the product of all 1 - p, and each probability becomes its
    log-odds, log(p / (1 - p)). The softmax of these is the result, so the log-odds of a lone object
    are doubled. Computed from the logits in float32, where p itself would round to 0 or 1.

    Args:
        logits: One per object, (B, O, *S). Limited to the range -60 to 60.

    Returns:
        (B, 1 + O, *S), the background first.

    Example:
        The odds are 1/3, 1 and 1.

        >>> [round(7 * p, 3) for p in aggregate(torch.zeros(1, 2)).softmax(1).tolist()[0]]
        [1.0, 3.0, 3.0]
    """
    z = _full_precision(logits).clamp(-60, 60)
    minus_log_background = F.softplus(z).sum(1, keepdim=True)
    background = -minus_log_background - torch.log(-torch.expm1(-minus_log_background))
    return torch.cat([background, z], 1)


def annotated_positions(annotated: Tensor, stride: int) -> Tensor:
    """Which positions of the memory are annotated: at least half of a position's pixels are.

    Where no position of an item reaches a half, its best ones count. Where nothing is annotated,
    none counts.

    Args:
        annotated: Which pixels are annotated, (B, H, W) bool.
        stride: Pixels to a position, along either axis.

    Returns:
        (B, h, w) bool, with h = ceil(H / stride) and w = ceil(W / stride).

    Example:
        >>> annotated_positions(torch.tensor([[[True, True, False, False, True]]]), 2).tolist()
        [[[True, False, True]]]
    """
    share = F.avg_pool2d(annotated.float(), stride, ceil_mode=True)
    return (share > 0) & (share >= share.amax((1, 2), keepdim=True).clamp(max=0.5))


class MemoryBank:
    """The memorised slices of one volume.

    It holds all reference slices, which stay; every `every`th of the slices added later; and the
    slice added last. Arrays for `most` slices are allocated once, on the device of the first
    reference, and never grow: when they are full, the oldest of the slices added and kept makes
    room.

    Args:
        most: Slices held at most; 2 or more.
        every: Of the slices added, every so many stay; 1 or more.
        top_k: How many memorised positions each position reads. None is the full softmax.

    Raises:
        ValueError: For numbers below these.

    Example:
        The 2nd and the 4th slice stay, until the 5th needs room.

        >>> bank = MemoryBank(most=4, every=2)
        >>> key, value = torch.zeros(8, 2, 2), torch.zeros(1, 3, 2, 2)
        >>> bank.add_reference(key, value)
        >>> [bank.add(key, value) or len(bank) for _ in range(6)]
        [2, 2, 3, 3, 4, 4]
    """

    def __init__(self, most: int = 32, every: int = 5, top_k: int | None = 20) -> None:
        if most < 2 or every < 1 or (top_k is not None and top_k < 1):
            got = f"most={most}, every={every}, top_k={top_k}"
            raise ValueError(
                f"a memory needs room for two slices, and one or more of the others; got {got}"
            )
        self.most, self.every, self.top_k = most, every, top_k
        self._references = 0
        self.restart()

    def __len__(self) -> int:
        """Number of slices held."""
        return self._held

    def restart(self) -> None:
        """Forget all slices but the references."""
        self._held = self._references
        self._added = 0
        self._kept: deque[int] = deque()
        self._last: int | None = None

    def add_reference(self, key: Tensor, value: Tensor, annotated: Tensor | None = None) -> None:
        """Memorise a reference slice, which stays. Slices added before are forgotten.

        Args:
            key: (Ck, h, w).
            value: (O, Cv, h, w).
            annotated: Where the label of the slice is known, (h, w) bool. None: everywhere.

        Raises:
            ValueError: If no room would be left for `add`.
        """
        if self._references + 1 >= self.most:
            raise ValueError(
                f"a memory of {self.most} slices has no room for {self._references + 1} references"
            )
        if not self._references:
            self._allocate(key, value)
        self._write(self._references, key, value, annotated)
        self._references += 1
        self.restart()

    def add(self, key: Tensor, value: Tensor) -> None:
        """Memorise a slice as the last one.

        It replaces the slice added last, unless that was the `every`th and stays.

        Args:
            key: (Ck, h, w).
            value: (O, Cv, h, w).

        Raises:
            ValueError: If there is no reference yet.
        """
        if not self._references:
            raise ValueError("a memory starts with a reference")
        slot = self._free_slot() if self._last is None else self._last
        self._write(slot, key, value, None)
        self._added += 1
        self._last = slot
        if self._added % self.every == 0:
            self._kept.append(slot)
            self._last = None

    def read(self, query: Tensor) -> Tensor:
        """The memorised values, weighted by their keys' affinity to a query.

        Equal to `readout` of `top_k_softmax` of `affinity`, in bounded memory.

        Args:
            query: Keys of a slice, (Ck, h, w).

        Returns:
            (O, Cv, h, w), in the dtype of the values.
        """
        n = self._held * self._positions
        keys, values = self._keys[:, :n], self._values[:n]
        queries = F.pad(query.flatten(1).float(), (0, 0, 0, 1), value=1.0).mT
        chunk = _CHUNK if queries.is_cuda else _CHUNK >> 4
        parts = []
        for part in queries.split(max(1, chunk // n)):
            with torch.autocast(queries.device.type, enabled=False):
                similarity = part @ keys  # `affinity` in one product
            if self.top_k is None or self.top_k >= n:
                parts.append(similarity.softmax(1).to(values.dtype) @ values)
            else:  # as `top_k_softmax` and `readout`, but only the k values are touched
                top, places = similarity.topk(self.top_k, 1)
                weights = top.softmax(1).to(values.dtype)
                parts.append(
                    F.embedding_bag(places, values, per_sample_weights=weights, mode="sum")
                )
        return torch.cat(parts).mT.unflatten(0, self._shape).unflatten(2, query.shape[1:])

    def _allocate(self, key: Tensor, value: Tensor) -> None:
        """Keys as 2 k / sqrt(Ck), with a last row of -|k|^2 / sqrt(Ck); values a row a position."""
        self._positions = key[0].numel()
        self._shape = value.shape[:2]
        size, device = self.most * self._positions, key.device
        self._keys = torch.empty(len(key) + 1, size, device=device)
        self._values = torch.empty(size, self._shape.numel(), device=device, dtype=value.dtype)

    def _write(self, slot: int, key: Tensor, value: Tensor, annotated: Tensor | None) -> None:
        place = slice(slot * self._positions, (slot + 1) * self._positions)
        k, scale = key.flatten(1).float(), len(key) ** -0.5
        self._keys[:-1, place] = 2 * scale * k
        self._keys[-1, place] = -scale * k.square().sum(0)
        if annotated is not None:
            self._keys[-1, place].masked_fill_(~annotated.flatten(), -torch.inf)
        self._values[place] = value.flatten(2).flatten(0, 1).mT

    def _free_slot(self) -> int:
        if self._held < self.most:
            self._held += 1
            return self._held - 1
        return self._kept.popleft()


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
