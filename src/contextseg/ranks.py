"""What the processes of one training say to each other: gradients, and little else."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> tuple[int, int]:
    """(rank, world): this process's place among those of `torchrun`; (0, 1) alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def mean_over_ranks(gradients: list[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place; nothing to do alone."""
    _, world = ranks()
    if world == 1:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over the ranks, through which gradients go back to all of them.

    Alone, and where no gradient is asked for (one rank may then be looking at something alone), `x` itself.
    """
    if ranks()[1] == 1 or not x.requires_grad:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)


def names_on_any_rank(given: Iterable[str], names: Iterable[str], device: torch.device) -> set[str]:
    """Those of `names`, in the same order on every rank, that some rank was `given`."""
    if ranks()[1] == 1:
        return set(given)
    names = list(names)
    there = torch.tensor([float(name in given) for name in names], device=device)
    dist.all_reduce(there)
    return {name for name, some in zip(names, there.tolist()) if some}


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on some rank."""
    _, world = ranks()
    if world == 1:
        return flag
    there = torch.tensor([float(flag)], device=device)
    dist.all_reduce(there)
    return bool(there.item())
