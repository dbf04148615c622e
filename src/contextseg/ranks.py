"""What the processes of one training exchange: gradients, and little else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

Mean = Callable[[list[Tensor]], None]
"""Replaces tensors that are means over this rank's items by means over all items, in place."""


def ranks() -> tuple[int, int]:
    """(rank, world): this process's place among those of `torchrun`; (0, 1) alone."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def mean_over_ranks(gradients: list[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in place; nothing happens alone.

    Args:
        gradients: Tensors of the same shapes, in the same order, on every rank.
    """
    _, world = ranks()
    if world == 1:
        return
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum over the ranks, through which gradients go back to all of them.

    Args:
        x: A tensor of the same shape on every rank.

    Returns:
        The sum. Alone, and where `x` needs no gradient (one rank may then be validating on its
        own), `x` itself.
    """
    if ranks()[1] == 1 or not x.requires_grad:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)


def names_on_any_rank(given: Iterable[str], names: Iterable[str], device: torch.device) -> set[str]:
    """Those names that some rank has.

    Args:
        given: The names that this rank has.
        names: All names, in the same order on every rank.
        device: Where the ranks exchange tensors.
    """
    if ranks()[1] == 1:
        return set(given)
    names = list(names)
    counts = torch.tensor([float(name in given) for name in names], device=device)
    dist.all_reduce(counts)
    return {name for name, count in zip(names, counts.tolist()) if count}


def highest_of_ranks(number: int, device: torch.device) -> int:
    """The highest of a number that each rank has.

    Args:
        number: The number of this rank.
        device: Where the ranks exchange tensors.
    """
    _, world = ranks()
    if world == 1:
        return number
    numbers = torch.tensor([float(number)], device=device)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers.item())


def first_rank_first(work: Callable[[], object]) -> None:
    """Do something on the first rank alone, while the others wait.

    Args:
        work: What is done.
    """
    rank, world = ranks()
    if rank == 0:
        work()
    if world > 1:
        dist.barrier()
