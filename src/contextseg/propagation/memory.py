"""What STCN remembers of the slices it has seen, and how a new slice reads it (Cheng, Tai, Tang, NeurIPS 2021).

A memory has N positions (those of all memorised slices), a query M. B items, O objects; Ck and Cv channels of a key and
of a value. Affinities and their softmax are in float32 whatever the rest is in: half precision could not hold them.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 26  # affinities held at once on a GPU, a quarter of a gibibyte; on a CPU 16 MB, near what its cache holds


def affinity(mk: Tensor, qk: Tensor, said: Tensor | None = None) -> Tensor:
    """How like each memorised key is to each query: (2 k_m . k_q - |k_m|^2) / sqrt(Ck), float32 (B, N, M).

    It is -|k_m - k_q|^2 / sqrt(Ck) without |k_q|^2, which no softmax over the memory sees. mk (B, Ck, N), qk
    (B, Ck, M); `said` (B, N) bool: positions where it is False are never read, at -inf.

    >>> affinity(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[2.0]]])).tolist()  # one channel: 4 - 1, 12 - 9
    [[[3.0], [3.0]]]
    """
    with torch.autocast(mk.device.type, enabled=False):
        m, q, scale = _full(mk), _full(qk), mk.shape[1] ** -0.5
        square = m.square().sum(1, keepdim=True)
        likeness = torch.baddbmm(square, q.mT, m, beta=-scale, alpha=2 * scale).mT  # N is contiguous: so top-k is fast
    return likeness if said is None else likeness.masked_fill(~said[..., None], -torch.inf)


def top_k_softmax(likeness: Tensor, k: int | None = None) -> Tensor:
    """The softmax over the memory of each query's `k` largest affinities, 0 elsewhere; (B, N, M) to the same.

    None, or `k` of N or more, is the full softmax. The largest affinity is subtracted first, so that no value, however
    large, overflows. Of equal values at the edge one is taken.

    >>> top_k_softmax(torch.tensor([[[1e4], [1e4], [0.0]]]), 2).flatten().tolist()
    [0.5, 0.5, 0.0]
    """
    likeness = _full(likeness)
    if k is None or k >= likeness.shape[1]:
        return likeness.softmax(1)
    values, places = likeness.topk(k, 1)
    return torch.zeros_like(likeness).scatter(1, places, values.softmax(1))


def readout(weights: Tensor, mv: Tensor) -> Tensor:
    """The memorised values, weighed: (B, N, M) and (B, O, Cv, N) to (B, O, Cv, M)."""
    return (mv.flatten(1, 2) @ weights.to(mv.dtype)).unflatten(1, mv.shape[1:3])


def aggregate(logits: Tensor) -> Tensor:
    """Objects that were decoded apart, made to compete: logits (B, O, *S) to (B, 1 + O, *S), the background first.

    With p the sigmoid of an object's logit, the background's probability is the product of all 1 - p; each probability
    becomes its log-odds, log(p / (1 - p)), and the softmax of these is the result (soft aggregation, Oh et al., ICCV
    2019; so a lone object's log-odds are doubled). Computed from the logits, in float32, where p itself would round to
    0 or 1; they are held to +-60.

    >>> [round(7 * p, 3) for p in aggregate(torch.zeros(1, 2)).softmax(1).tolist()[0]]  # odds 1/3, 1 and 1
    [1.0, 3.0, 3.0]
    """
    z = _full(logits).clamp(-60, 60)
    none = F.softplus(z).sum(1, keepdim=True)  # minus the log of the background's probability
    return torch.cat([-none - torch.log(-torch.expm1(-none)), z], 1)


def said_at(said: Tensor, stride: int) -> Tensor:
    """Pixels (B, H, W) bool to positions (B, h, w) bool, h = ceil(H / stride): at least half of a position's pixels.

    Where no position of an item reaches a half, its best ones stand; where nothing is said, none.

    >>> said_at(torch.tensor([[[True, True, False, False, True]]]), 2).tolist()
    [[[True, False, True]]]
    """
    share = F.avg_pool2d(said.float(), stride, ceil_mode=True)
    return (share > 0) & (share >= share.amax((1, 2), keepdim=True).clamp(max=0.5))


class MemoryBank:
    """The memorised slices of one volume: references, which stay; every `every`th slice added; the one added last.

    Arrays of `most` slices are made once, on the device of the first reference, and never grow: when they are full, the
    oldest slice that was added and kept makes room. `top_k` None reads with the full softmax.

    >>> bank = MemoryBank(most=4, every=2)
    >>> key, value = torch.zeros(8, 2, 2), torch.zeros(1, 3, 2, 2)
    >>> bank.refer(key, value)
    >>> [bank.add(key, value) or len(bank) for _ in range(6)]  # the 2nd and 4th stay until the 5th needs room
    [2, 2, 3, 3, 4, 4]
    """

    def __init__(self, most: int = 32, every: int = 5, top_k: int | None = 20) -> None:
        if most < 2 or every < 1 or (top_k is not None and top_k < 1):
            got = f"most={most}, every={every}, top_k={top_k}"
            raise ValueError(f"a memory needs room for two slices, and one or more of the others; got {got}")
        self.most, self.every, self.top_k = most, every, top_k
        self._references = 0
        self.restart()

    def __len__(self) -> int:
        """Slices held."""
        return self._held

    def restart(self) -> None:
        """Forget all but the references."""
        self._held, self._added = self._references, 0
        self._kept: deque[int] = deque()
        self._last: int | None = None

    def refer(self, key: Tensor, value: Tensor, said: Tensor | None = None) -> None:
        """Memorise a reference: key (Ck, h, w), value (O, Cv, h, w), and where its label is known, (h, w) bool.

        Forgets what was added. Raises ValueError if no slice would be left for `add`.
        """
        if self._references + 1 >= self.most:
            raise ValueError(f"a memory of {self.most} slices has no room for {self._references + 1} references")
        if not self._references:
            self._make(key, value)
        self._write(self._references, key, value, said)
        self._references += 1
        self.restart()

    def add(self, key: Tensor, value: Tensor) -> None:
        """Memorise a slice as the last one; the last before it goes, unless it was the `every`th."""
        if not self._references:
            raise ValueError("a memory starts with a reference")
        slot = self._free() if self._last is None else self._last
        self._write(slot, key, value, None)
        self._added += 1
        self._last = slot
        if self._added % self.every == 0:
            self._kept.append(slot)
            self._last = None

    def read(self, query: Tensor) -> Tensor:
        """What the slice with the keys (Ck, h, w) remembers: (O, Cv, h, w)."""
        n = self._held * self._n
        keys, values = self._keys[:, :n], self._values[:n]
        asked = F.pad(query.flatten(1).float(), (0, 0, 0, 1), value=1.0).mT
        chunk = _CHUNK if asked.is_cuda else _CHUNK >> 4
        parts = []
        for part in asked.split(max(1, chunk // n)):
            with torch.autocast(asked.device.type, enabled=False):
                likeness = part @ keys  # as `affinity`, in one product
            if self.top_k is None or self.top_k >= n:
                parts.append(likeness.softmax(1).to(values.dtype) @ values)
            else:  # as `top_k_softmax` and `readout`, but only the k values are touched
                top, places = likeness.topk(self.top_k, 1)
                weights = top.softmax(1).to(values.dtype)
                parts.append(F.embedding_bag(places, values, per_sample_weights=weights, mode="sum"))
        return torch.cat(parts).mT.unflatten(0, self._shape).unflatten(2, query.shape[1:])

    def _make(self, key: Tensor, value: Tensor) -> None:
        self._n, self._shape = key[0].numel(), value.shape[:2]
        size, device = self.most * self._n, key.device
        self._keys = torch.empty(len(key) + 1, size, device=device)  # each 2 k / sqrt(Ck), and -|k|^2 / sqrt(Ck) below
        self._values = torch.empty(size, self._shape.numel(), device=device, dtype=value.dtype)

    def _write(self, slot: int, key: Tensor, value: Tensor, said: Tensor | None) -> None:
        place = slice(slot * self._n, (slot + 1) * self._n)
        k, scale = key.flatten(1).float(), len(key) ** -0.5
        self._keys[:-1, place] = 2 * scale * k
        self._keys[-1, place] = -scale * k.square().sum(0)
        if said is not None:
            self._keys[-1, place].masked_fill_(~said.flatten(), -torch.inf)
        self._values[place] = value.flatten(2).flatten(0, 1).mT

    def _free(self) -> int:
        if self._held < self.most:
            self._held += 1
            return self._held - 1
        return self._kept.popleft()


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
