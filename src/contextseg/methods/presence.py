"""Is the class in this image? What a presence head (`nets.Presence`) is trained on, and its uses.

The uses are ours: the head's answers gate patches or slices in which a class is not, where
validation cases show that this helps; and a case is flagged whose segmentation has no voxel of a
class that the head sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.console import Progress
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.disk import note_case, read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods.base import Method, RecipeRun, build_net
from contextseg.nets import Presence


class Gate(TypedDict):
    """What `gate.json` says of a class."""

    threshold: float
    seen: float


SHARES = (0.0, 0.01, 0.02, 0.05)
"""The gates that are tried on validation cases: each shuts out that share of a class's patches."""
PRESENCE_TABLE = "presence.csv"
"""The table in a folder of predictions with what the head saw in each case."""
Flags = dict[str, dict[str, Any]]
"""Class to {"presence", "predicted_vox", "flag"}, of one case."""
_COLUMNS = ["case", "class", "presence", "predicted_vox", "flag"]


def with_head(name: str, plan: Plan, gamma: float = 2.0, alpha: float = 0.5) -> Presence:
    """A network of the registry with a presence head, at the plan's size.

    The network's own weights are those that it would have without the head.

    Args:
        name: One of `NETS`.
        plan: Gives channels, classes and levels.
        gamma: Exponent of the focal loss that the head is trained with.
        alpha: Weight in that loss of a class that is there.

    Returns:
        The network in its head.

    Raises:
        ContextsegError: The name is unknown, or the network cannot have this plan.
    """
    return Presence(
        build_net(name, plan), len(plan.channels), len(plan.classes), plan.dims, gamma, alpha
    )


def presence_loss(logits: Tensor, tags: Tensor, gamma: float = 2.0, alpha: float = 0.5) -> Tensor:
    """The focal loss of one logit a class: in each item, the mean over the classes that are known.

    With p the probability of the right answer it is -alpha (1 - p)^gamma log p where a class is
    there, with 1 - alpha in place of alpha where it is not (Lin et al., ICCV 2017). Gamma 0 and
    alpha 0.5 is half the binary cross-entropy. It is computed in float32; float64 stays.

    Args:
        logits: (B, K - 1), for class 1 and so on.
        tags: (B, K) int64, `Batch.tags`: 1 there, 0 not there, `IGNORE` unknown.
        gamma: Exponent, 0 or more.
        alpha: Weight of a class that is there, between 0 and 1.

    Returns:
        A scalar, the mean over items. An item of which nothing is known adds 0 and counts; no items
        give 0.

    Example:
        The loss is 0.8 * 0.25 * log 2.

        >>> tags = torch.tensor([[1, 1, IGNORE]])
        >>> round(float(presence_loss(torch.zeros(1, 2), tags, alpha=0.8)), 6)
        0.138629
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    there = tags[:, 1:] == 1
    known = tags[:, 1:] != IGNORE
    z = torch.where(there, z, -z)  # of the right answer
    weight = there.to(z) * alpha + (~there).to(z) * (1 - alpha)
    # 1 - p, kept from 0, where gamma below 1 has an infinite slope
    missed = z.neg().sigmoid().clamp(min=1e-7)
    loss = -weight * missed**gamma * F.logsigmoid(z) * known
    return (loss.sum(1) / known.sum(1).clamp(min=1)).sum() / max(len(z), 1)


def head_of(method: nn.Module) -> Presence | None:
    """The first network with a presence head in a method.

    Args:
        method: A method, or any module.

    Returns:
        The head; None where there is none.
    """
    return next((part for part in method.modules() if isinstance(part, Presence)), None)


# --- patches of a whole case ----------------------------------------------------------------------


def tiles(size: Sequence[int], patch_vox: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most `patch_vox` that cover a grid: as few as can be, the last ones moved inside.

    Args:
        size: The grid, (D, H, W).
        patch_vox: Size of a box; two numbers for slices, boxes of one voxel along D.

    Returns:
        An iterator over boxes, three slices each.

    Example:
        >>> [(h.start, h.stop) for _, h, _ in tiles((1, 10, 4), (4, 4))]
        [(0, 4), (3, 7), (6, 10)]
    """
    patch = (*[1] * (len(size) - len(patch_vox)), *patch_vox)
    axes = []
    for n, p in zip(size, patch):
        starts = np.linspace(0, max(n - p, 0), -(-n // p)).round().astype(int).tolist()
        axes.append([slice(start, min(start + p, n)) for start in starts])
    return product(*axes)


def _batches(size: Sequence[int], patch_vox: Sequence[int]) -> Iterator[list[tuple[slice, ...]]]:
    """The `tiles`, small ones many at a time."""
    boxes = list(tiles(size, patch_vox))
    many = max(1, 2**18 // int(np.prod(patch_vox)))
    yield from (boxes[i : i + many] for i in range(0, len(boxes), many))


def _inside(patch_vox: Sequence[int], parts: Sequence[np.ndarray], fill: float) -> Tensor:
    """Boxes of an array (..., D, H, W), each in the middle of a patch of two or three axes."""
    patches = []
    for part in parts:
        part = part if len(patch_vox) == 3 else part[..., 0, :, :]
        short = [p - n for p, n in zip(patch_vox, part.shape[-len(patch_vox) :])]
        around = [(0, 0)] * (part.ndim - len(patch_vox)) + [(s // 2, s - s // 2) for s in short]
        patches.append(np.pad(part, around, constant_values=fill))
    return torch.from_numpy(np.stack(patches))


@torch.no_grad()
def largest_presence(head: Presence, image: np.ndarray, plan: Plan) -> list[float]:
    """For each class, the largest probability over a case's patches that it is there.

    Each patch is seen once, as it lies, whatever the gate.

    Args:
        head: The network with its head.
        image: (C, D, H, W) float32, normalised.
        plan: Gives the patch and the classes.

    Returns:
        K - 1 probabilities, for class 1 and so on.
    """
    most = torch.zeros(len(plan.classes) - 1)
    device = head.linear.weight.device
    for boxes in _batches(image.shape[1:], plan.patch_vox):
        x = _inside(plan.patch_vox, [image[(slice(None), *box)] for box in boxes], 0)
        most = most.maximum(head.probability(head.both(x.to(device))[1]).amax(0).cpu())
    return most.tolist()


# --- the gate -------------------------------------------------------------------------------------


def gate(run: RecipeRun, method: Method) -> Method:
    """The stage "gate": thresholds below which a class is not in a patch, by validation cases.

    Also chosen is the probability above which a class counts as seen in a case (`choose_gate`).
    Without validation cases (`--fold all`) there is no stage and no gate, and nothing counts as
    seen. The stage's `gate.json` holds for each class what `choose_gate` gives.

    Args:
        run: The run.
        method: A trained method; without a presence head it stays as it is.

    Returns:
        `method`, its head with `gate` and `seen` set.
    """
    head = head_of(method)
    plan = run.plan
    cases = [case for case in run.split[1] if case.label]
    if head is None or not cases:
        return method

    def work(folder: Path, progress: Progress) -> None:
        head.gate = (0.0,) * len(head.gate)
        cached = run.cached(cases)
        patches: list[tuple[np.ndarray, np.ndarray]] = []
        for i, case in enumerate(cached):
            patches.append(_patches(method, head, case, plan))
            progress(i + 1, len(cached))
        content = {}
        for k, name in enumerate(plan.classes[1:]):
            known = [part for part, case in zip(patches, cached) if case.annotated[k + 1]]
            content[name] = choose_gate([p[:, k] for p, _ in known], [n[:, k] for _, n in known])
        write_json(folder / "gate.json", content)

    gate = run.stage("gate", work) / "gate.json"
    thresholds = read_json(gate, dict[str, Gate], "delete this stage's folder")
    if missing := [name for name in plan.classes[1:] if name not in thresholds]:
        raise ContextsegError(gate, f"{missing[0]} is missing", "delete this stage's folder")
    head.gate = tuple(thresholds[name]["threshold"] for name in plan.classes[1:])
    head.seen = tuple(thresholds[name]["seen"] for name in plan.classes[1:])
    return method


@torch.no_grad()
def _patches(
    method: Method, head: Presence, case: Cached, plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Of a case's N patches and each class: probability (N, K - 1) and voxels (N, K - 1, 3).

    The voxels are counted (rightly predicted, predicted, of the class).
    """
    patch = plan.patch_vox
    device = head.linear.weight.device
    classes = range(1, len(plan.classes))
    label = np.array(case.label)
    probabilities = []
    counts = []
    for boxes in _batches(label.shape, patch):
        x = _inside(patch, [case.patch(box, plan.channels) for box in boxes], 0).to(device)
        y = _inside(patch, [label[box] for box in boxes], IGNORE).flatten(1)
        logits, present = head.during(partial(method.predict, x))
        z = logits.argmax(1).flatten(1).cpu().where(y != IGNORE, IGNORE)
        voxels = [[((z == k) & (y == k)).sum(1), (z == k).sum(1), (y == k).sum(1)] for k in classes]
        counts.append(np.array([[n.numpy() for n in row] for row in voxels]).transpose(2, 0, 1))
        probabilities.append(head.probability(present).cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(counts)


def choose_gate(
    probabilities: Sequence[np.ndarray], counts: Sequence[np.ndarray]
) -> dict[str, Any]:
    """The gate of one class, and when it counts as seen, by the validation cases that annotate it.

    Tried are thresholds, midway between two patches, that shut out `SHARES` of those with the
    class. A threshold is judged by the mean over cases of the Dice over patches; overlapping
    patches count more than once, a class neither there nor predicted has 1, and what is shut out
    counts as background, though another class may be next. The best threshold is taken if it beats
    no gate by more than the gain's standard error; otherwise the threshold is 0, no gate. Fewer
    than two cases have no such error.

    Args:
        probabilities: Of each case (N,): that the class is in each of its patches.
        counts: Of each case (N, 3): each patch's voxels that are rightly predicted, predicted, and
            of the class.

    Returns:
        "threshold"; "seen", the largest probability of a patch without the class, or 1, which
        nothing is above, if there is no such patch; "cases", their number; "dice", that without a
        gate; "tried", each threshold with its Dice.

    Example:
        >>> patches = np.array([[5, 5, 5], [0, 5, 0]])
        >>> gate = choose_gate([np.array([0.9, 0.2])] * 2, [patches] * 2)
        >>> gate["threshold"], gate["seen"], round(gate["dice"], 3), gate["tried"]
        (0.55, 0.2, 0.667, [[0.55, 1.0]])
    """
    every = np.concatenate([[], *probabilities])
    there = np.concatenate([[], *(n[:, 2] for n in counts)]) > 0
    seen = float(every[~there].max()) if not there.all() else 1.0
    tried: list[float] = []
    if there.any():
        quantiles = [np.quantile(every[there], share, method="lower") for share in SHARES]
        tried = sorted({_under(every, value) for value in quantiles})
    dice = [[_dice(n, p >= t) for t in (0.0, *tried)] for p, n in zip(probabilities, counts)]
    table = np.array(dice).reshape(-1, 1 + len(tried))
    mean = table.mean(0) if len(table) else np.zeros(1)
    best = int(mean.argmax())
    gain = table[:, best] - table[:, 0]
    helps = len(table) > 1 and gain.mean() > gain.std(ddof=1) / len(table) ** 0.5
    return {
        "threshold": tried[best - 1] if helps else 0.0,
        "seen": seen,
        "cases": len(table),
        "dice": float(mean[0]),
        "tried": [[t, float(score)] for t, score in zip(tried, mean[1:])],
    }


def _under(values: np.ndarray, value: float) -> float:
    """Midway from `value` to the next smaller one of `values`, or to 0."""
    return float(value + max(values[values < value], default=0.0)) / 2


def _dice(counts: np.ndarray, opened: np.ndarray) -> float:
    hits, predicted, _ = counts[opened].sum(0)
    total = predicted + counts[:, 2].sum()
    return float(2 * hits / total) if total else 1.0


# --- flags ----------------------------------------------------------------------------------------


def flags(plan: Plan, present: Sequence[float], seen: Sequence[float], label: np.ndarray) -> Flags:
    """What the head saw against what was segmented.

    Args:
        plan: Gives the classes and their values.
        present: For each class but the background, `largest_presence`.
        seen: For each, the probability above which it counts as seen, `Presence.seen`.
        label: The segmentation, in the label files' values.

    Returns:
        Class to its row. The flag is "missed" where a class counts as seen and has no voxel.
    """
    rows = {}
    for name, value, p, least in zip(plan.classes[1:], plan.values[1:], present, seen):
        voxels = int((label == value).sum())
        flag = "missed" if voxels == 0 and p > least else ""
        rows[name] = {"presence": round(p, 4), "predicted_vox": voxels, "flag": flag}
    return rows


def presence_flags(
    views: Sequence[tuple[nn.Module, np.ndarray, Plan]], label: np.ndarray
) -> Flags | None:
    """The `flags` of a case, by the mean of several methods' heads.

    Args:
        views: Each method, with the case's image as it sees it (C, D, H, W), and its plan.
        label: The segmentation, in the label files' values.

    Returns:
        The flags of each class, by name; None where no method has a head.
    """
    present = []
    seen = []
    for method, image, plan in views:
        head = head_of(method)
        if head is not None:
            present.append(largest_presence(head, image, plan))
            seen.append(head.seen)
    if not present:
        return None
    plan = views[0][2]
    return flags(plan, np.mean(present, 0).tolist(), np.mean(seen, 0).tolist(), label)


def write_flags(folder: str | Path, case: str, rows: Flags) -> None:
    """Note a case's `flags` in a folder's `presence.csv`; what was noted of it before is replaced.

    The columns are case, class, presence, predicted_vox and flag.

    Args:
        folder: Folder of predictions.
        case: Name of the case.
        rows: Its `flags`.

    Raises:
        ContextsegError: A file of that name is another table, or cannot be written.
    """
    table = ({"class": name, **row} for name, row in rows.items())
    note_case(Path(folder) / PRESENCE_TABLE, _COLUMNS, case, table)
