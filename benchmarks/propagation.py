"""Slices per second of filling a volume from its first slice, against the published loop.

The loop is STCN's (Cheng, Tai, Tang, NeurIPS 2021), written out plainly: one slice at a time is
encoded; its affinity to the whole memory is one matrix, of which the 20 largest of each column are
kept; objects are decoded in one batch, each with the slice's features beside it; every fifth slice
is memorised. Pham et al. (FLARE22) have the slice before in the memory too, so that every slice is
memorised: that is our default. Both sides have the same weights and the same memory. There is no
row unless both give the same masks. The volume is on the device beforehand.

    python benchmarks/propagation.py [--quick]
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from contextseg.nets.stcn import STCN, STCNS
from contextseg.propagation import propagate_volume

EVERY, TOP_K = 5, 20
PHAM, STCN_OWN = "the slice before and every 5th", "every 5th slice"


@dataclass(frozen=True)
class Size:
    """A network, the side of a square slice, the slices walked, the rounds, and the objects."""

    net: str
    side: int
    slices: int
    rounds: int
    objects: tuple[int, ...] = (1, 5, 13)


CPU = (Size("small", 128, 11, 5), Size("small", 512, 2, 2), Size("stcn", 128, 3, 3))
GPU = tuple(Size(net, side, 60, 5) for net in ("stcn", "small") for side in (512, 128))
QUICK = (Size("small", 128, 6, 3, (1, 5)),)


def rows(quick: bool) -> Iterator[tuple[str, str, float, float, str]]:
    """(claim, input, our slices per second, the loop's, "the published loop ...")."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    for size in QUICK if quick else GPU if device.type == "cuda" else CPU:
        torch.manual_seed(0)
        net = STCNS[size.net](3).eval().to(device)
        for objects in size.objects:
            yield row(net, size, objects, True, device)
        yield row(net, size, 5, False, device)


def row(
    net: STCN, size: Size, objects: int, previous: bool, device: torch.device
) -> tuple[str, str, float, float, str]:
    """One line of the table. Raises AssertionError where the two sides give different masks."""
    volume, label = blocks(size, objects, device)
    theirs = Published(net, previous)

    def filled(slices: int) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
        few = volume[:, : 1 + slices]
        return (
            lambda: propagate_volume(net, few, {0: label}, previous=previous).labels,
            lambda: theirs.masks(few, torch.from_numpy(label).to(device), objects),
        )

    with in_float32():
        check_same(*filled(min(size.slices, 3)))
    ours, peer = compared(*filled(size.slices), size.rounds, device)
    where = "float16, GPU" if device.type == "cuda" else "float32, one thread"
    name = "STCN of 54 M parameters" if size.net == "stcn" else "small STCN"
    plural = "s" if objects > 1 else ""
    given = (
        f"{name}, {size.slices} slices of {size.side} x {size.side}, "
        f"{objects} object{plural}, {where}"
    )
    claim = f"propagation, memory of {PHAM if previous else STCN_OWN}, slices/s"
    return claim, given, size.slices / ours, size.slices / peer, "the published loop, plainly"


@contextmanager
def in_float32() -> Iterator[None]:
    """No half precision meanwhile: in a network that learnt nothing, its rounding turns ties."""
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def check_same(ours: Callable[[], np.ndarray], theirs: Callable[[], np.ndarray]) -> None:
    """Raise `AssertionError` unless both give the same masks; sums in another order turn ties."""
    one, other = ours(), theirs()
    apart = float((one != other).mean())
    if apart > 1e-3 or len(np.unique(one)) < 2:
        raise AssertionError(f"{apart:.2%} of the voxels differ; classes {np.unique(one)}")


def compared(
    ours: Callable[[], np.ndarray],
    theirs: Callable[[], np.ndarray],
    rounds: int,
    device: torch.device,
) -> tuple[float, float]:
    """Median seconds of each, measured in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    # On a GPU a first round chooses the convolutions.
    for r in range(-1 if device.type == "cuda" else 0, rounds):
        for work, seconds in zip((ours, theirs), taken):
            start = now(device)
            work()
            if r >= 0:
                seconds.append(now(device) - start)
    return median(taken[0]), median(taken[1])


def blocks(size: Size, objects: int, device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Noise with brighter squares (3, 1 + slices, side, side), and the first slice's squares.

    These are 1 to `objects`.
    """
    random = np.random.default_rng(0)
    label, cell = np.zeros((size.side, size.side), np.int64), size.side // 4
    for k in range(objects):
        h, w = k // 4 * cell, k % 4 * cell
        label[h + cell // 8 : h + cell - cell // 8, w + cell // 8 : w + cell - cell // 8] = k + 1
    image = random.normal(size=(3, 1 + size.slices, size.side, size.side)) + label
    return torch.from_numpy(image.astype(np.float32)).to(device), label


def now(device: torch.device) -> float:
    """CPU time of this process, or wall time when the GPU has done all it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


# --- the published loop ---------------------------------------------------------------------------


class Published:
    """STCN's inference, module by module, on a copy of our weights in torch's usual layout."""

    def __init__(self, net: STCN, previous: bool) -> None:
        self.net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.previous = previous

    @torch.inference_mode()
    def masks(self, volume: Tensor, label: Tensor, objects: int) -> np.ndarray:
        """(D, H, W) int16 from the label of the first slice; sides are multiples of the stride."""
        with torch.autocast(volume.device.type, torch.float16, enabled=volume.is_cuda):
            out = [label]
            key, f16, *_ = self.encoded(volume[:, 0])
            masks = torch.stack([label == k for k in range(1, objects + 1)])[:, None].float()
            keys, values, last = (
                key.flatten(2),
                self.value(volume[:, 0], f16, masks).flatten(2),
                None,
            )
            for t in range(1, volume.shape[1]):
                key, f16, thin, skip8, skip4 = self.encoded(volume[:, t])
                mk = keys if last is None else torch.cat([keys, last[0]], 2)
                mv = values if last is None else torch.cat([values, last[1]], 2)
                read = (mv.flatten(0, 1) @ self.affinity(mk, key.flatten(2))[0].to(mv.dtype)).view(
                    objects, -1, *key.shape[2:]
                )
                p = self.aggregated(self.decoded(read, thin, skip8, skip4).float().sigmoid())
                out.append(p.argmax(0)[0])
                kept = t % EVERY == 0
                if t < volume.shape[1] - 1 and (kept or self.previous):
                    new = key.flatten(2), self.value(volume[:, t], f16, p[1:]).flatten(2)
                    last = None if kept else new
                    if kept:
                        keys, values = torch.cat([keys, new[0]], 2), torch.cat([values, new[1]], 2)
            return torch.stack(out).to(torch.int16).cpu().numpy()

    def encoded(self, image: Tensor) -> tuple[Tensor, ...]:
        """(C, H, W) to the key, the deepest features, and the decoder's other inputs."""
        net = self.net
        f4, f8, f16 = net.trunk(image[None])
        return net.to_key(f16), f16, net.to_thin(f16), net.skip8(f8), net.skip4(f4)

    def value(self, image: Tensor, f16: Tensor, masks: Tensor) -> Tensor:
        """Masks (O, 1, H, W) to values (O, Cv, h, w).

        Each object has the image, its mask and the sum of the others' masks.
        """
        net, objects = self.net, len(masks)
        others = (masks.sum(0, keepdim=True) - masks).clamp(0, 1)
        x = torch.cat([image[None].expand(objects, -1, -1, -1), masks, others], 1)
        x = residual(
            net.fuse.first, torch.cat([net.value_trunk(x)[-1], f16.expand(objects, -1, -1, -1)], 1)
        )
        return residual(net.fuse.second, x)

    @staticmethod
    def affinity(mk: Tensor, qk: Tensor) -> Tensor:
        """(1, Ck, N) and (1, Ck, M) to (1, N, M): softmax of the largest of each column, else 0."""
        with torch.autocast(mk.device.type, enabled=False):
            mk, qk = mk.float(), qk.float()
            similarity = (2 * mk.mT @ qk - mk.square().sum(1)[..., None]) / mk.shape[1] ** 0.5
        top, places = similarity.topk(min(TOP_K, similarity.shape[1]), 1)
        return torch.zeros_like(similarity).scatter_(1, places, top.softmax(1))

    def decoded(self, read: Tensor, thin: Tensor, skip8: Tensor, skip4: Tensor) -> Tensor:
        """(O, Cv, h, w) to logits (O, 1, H, W)."""
        net = self.net
        x = residual(net.compress, torch.cat([read, thin.expand(len(read), -1, -1, -1)], 1))
        x = residual(net.up8, skip8 + F.interpolate(x, scale_factor=2, mode="bilinear"))
        x = residual(net.up4, skip4 + F.interpolate(x, scale_factor=2, mode="bilinear"))
        return F.interpolate(net.head(F.relu(x)), scale_factor=net.stride // 4, mode="bilinear")

    @staticmethod
    def aggregated(p: Tensor) -> Tensor:
        """Probabilities (O, 1, H, W) of single objects to (1 + O, 1, H, W) with background."""
        p = torch.cat([(1 - p).prod(0, keepdim=True), p]).clamp(1e-7, 1 - 1e-7)
        return torch.log(p / (1 - p)).softmax(0)


def residual(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Two convolutions, each after a ReLU, beside a third."""
    return block.skip(x) + block.conv2(F.relu(block.conv1(F.relu(x))))  # type: ignore[operator]


if __name__ == "__main__":
    for claim, given, ours, theirs, peer in rows("--quick" in sys.argv):
        print(
            f"{claim} | {given} | {ours:.3g} | {theirs:.3g} | {ours / theirs:.2f}x of {peer}",
            flush=True,
        )
