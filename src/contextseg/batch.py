"""A batch of images and labels, and which of them are not annotated.

Axis letters: B item, C channel, K class, S any space (D H W in 3-D, D slowest; H W in 2-D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # modules that never load torch import `IGNORE`
    import torch
    from torch import Tensor

IGNORE = -1
"""The label of a voxel that is not annotated. It never counts.

It marks an unlabelled case, an unannotated slice, and an uncertain pseudo-label alike.
"""


@dataclass(frozen=True)
class Batch:
    """The items of one training step, or some of them.

    Attributes:
        image: (B, C, *S) float32, normalised.
        label: (B, *S) int64: class 0 to K-1, where 0 is background, or `IGNORE`.
        annotated: (B, K) bool: False where class k is not annotated in this case, so that a voxel
            labelled 0 is background or k. Column 0 (background) is True.
        case: (B,) int64: which training case each item comes from.
        maps: (B, N, *S) float32: what the method asks to know of each voxel (`Method.maps`). None
            where it asks for nothing.
        complete: (B,) bool: True where all that lies inside the scan is annotated, so that what is
            `IGNORE` lies outside it. None: an item is complete where nothing is `IGNORE`.
    """

    image: Tensor
    label: Tensor
    annotated: Tensor
    case: Tensor
    maps: Tensor | None = None
    complete: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    def shard(self, rank: int, world: int) -> Batch:
        """The items of one rank: every `world`-th one. May be empty.

        Args:
            rank: The rank, from 0.
            world: Number of ranks.
        """
        return self._each(lambda x: x[rank::world])

    def only(self, items: Tensor) -> Batch:
        """Some of the items. May be empty.

        Args:
            items: (B,) bool: which.
        """
        return self._each(lambda x: x[items.to(x.device)])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device, copied asynchronously from pinned memory.

        Args:
            device: Where to.
        """
        return self._each(lambda x: x.to(device, non_blocking=True))

    @property
    def tags(self) -> Tensor:
        """(B, K) int64: whether class k is in the item.

        1 is yes, 0 no, `IGNORE` where voxels that are not annotated leave it open.
        """
        import torch

        classes = range(self.annotated.shape[1])
        present = torch.stack([(self.label == k).flatten(1).any(1) for k in classes], 1)
        complete = self.complete
        if complete is None:
            complete = (self.label != IGNORE).flatten(1).all(1)
        closed = complete.unsqueeze(1) & self.annotated
        return torch.where(present, 1, torch.where(closed, 0, IGNORE))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {
            name: None if part is None else change(part) for name, part in parts.items()
        }
        return replace(self, **changed)
