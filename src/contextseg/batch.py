"""The one thing that flows: images, labels, and what nobody has said about them.

Axis letters, said once: B item, C channel, K class, S any space (D H W in 3-D, D slowest; H W in 2-D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `IGNORE` is wanted by rooms that never load torch
    import torch
    from torch import Tensor

IGNORE = -1
"""Nobody has said: an unlabelled case, an unannotated slice, an uncertain pseudo-label. It never counts."""


@dataclass(frozen=True)
class Batch:
    """What a method is taught with.

    image      (B, C, *S) float32, normalised.
    label      (B, *S) int64, class 0..K-1, 0 background, or `IGNORE`.
    annotated  (B, K) bool: False where class k was not looked for in this case, so that a voxel labelled 0 is
               background *or* k. Column 0 (background) is True.
    case       (B,) int64: which training case each item came from.
    maps       (B, N, *S) float32: what a method asked to be told of each voxel (`Method.maps`), or None.
    complete   (B,) bool: True where all that lies inside the scan is annotated, so that what is `IGNORE` lies outside
               it; or None: then it is where nothing is `IGNORE`.
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
        """The items that rank `rank` of `world` is taught with: every `world`-th one. May be empty."""
        return self._each(lambda x: x[rank::world])

    def only(self, items: Tensor) -> Batch:
        """Those items: (B,) bool. May be empty."""
        return self._each(lambda x: x[items.to(x.device)])

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`, copied asynchronously from pinned memory."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    @property
    def tags(self) -> Tensor:
        """(B, K) int64: is class k in this item? 1 yes, 0 no, `IGNORE` where unannotated voxels leave it open."""
        import torch

        classes = range(self.annotated.shape[1])
        present = torch.stack([(self.label == k).flatten(1).any(1) for k in classes], 1)
        complete = (self.label != IGNORE).flatten(1).all(1) if self.complete is None else self.complete
        closed = complete.unsqueeze(1) & self.annotated
        return torch.where(present, 1, torch.where(closed, 0, IGNORE))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        parts: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if part is None else change(part) for name, part in parts.items()}
        return replace(self, **changed)
