"""Is the class in this image? What a presence head (`nets.Presence`) learns from, and what it is used for afterwards.

Afterwards [ours]: its answers gate patches or slices in which a class is not, where validation cases say that this
helps; and a case is flagged whose segmentation misses a class that the head sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contextseg.batch import IGNORE
from contextseg.data.cache import Cached
from contextseg.data.plan import Plan
from contextseg.disk import note_case, read_json, write_json
from contextseg.methods.base import Method, build_net
from contextseg.nets import Presence

SHARES = (0.0, 0.01, 0.02, 0.05)
"""The gates that are tried on validation cases: each shuts out that share of the patches in which the class is."""
TABLE = "presence.csv"
"""The table in a folder of predictions that says what the head saw in each case."""
Flags = dict[str, dict[str, Any]]
"""Class -> {"presence", "predicted_vox", "flag"}, of one case."""
_COLUMNS = ["case", "class", "presence", "predicted_vox", "flag"]


def with_head(name: str, plan: Plan, gamma: float = 2.0, alpha: float = 0.5) -> Presence:
    """The network `name` of the registry with a presence head, at the plan's size; gamma and alpha of its loss.

    Its own weights are those that it would have without the head. Raises `Problem` for an unknown name.
    """
    return Presence(build_net(name, plan), len(plan.channels), len(plan.classes), plan.dims, gamma, alpha)


def presence_loss(logits: Tensor, tags: Tensor, gamma: float = 2.0, alpha: float = 0.5) -> Tensor:
    """The focal loss of one logit a class: in each item, the mean over the classes of which the answer is known.

    logits (B, K - 1), for class 1 and so on; tags (B, K), `Batch.tags`: 1 there, 0 not, `IGNORE` unknown. With p the
    probability of the right answer it is -alpha (1 - p)^gamma log p where a class is there, with 1 - alpha in place of
    alpha where it is not (Lin et al., ICCV 2017). gamma 0 and alpha 0.5 is half the binary cross-entropy. In float32;
    an item of which nothing is known adds 0 and counts; 0 of no items.

    >>> tags = torch.tensor([[1, 1, IGNORE]])
    >>> round(float(presence_loss(torch.zeros(1, 2), tags, alpha=0.8)), 6)  # 0.8 * 0.25 * log 2
    0.138629
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    there, known = tags[:, 1:] == 1, tags[:, 1:] != IGNORE
    z = torch.where(there, z, -z)  # of the right answer
    weight = there.to(z) * alpha + (~there).to(z) * (1 - alpha)
    missed = z.neg().sigmoid().clamp(min=1e-7)  # 1 - p, kept from 0, where gamma below 1 has an infinite slope
    loss = -weight * missed**gamma * F.logsigmoid(z) * known
    return (loss.sum(1) / known.sum(1).clamp(min=1)).sum() / max(len(z), 1)


def head_of(method: nn.Module) -> Presence | None:
    """The first network with a presence head in a method, if there is one."""
    return next((part for part in method.modules() if isinstance(part, Presence)), None)


# --- patches of a whole case ------------------------------------------------------------------------------------------


def tiles(size: Sequence[int], patch_vox: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most `patch_vox` that cover a grid (D, H, W): as few as can be, the last ones moved inside.

    Where `patch_vox` has two numbers, slices: boxes of one voxel along D.

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
    boxes, many = list(tiles(size, patch_vox)), max(1, 2**18 // int(np.prod(patch_vox)))
    yield from (boxes[i : i + many] for i in range(0, len(boxes), many))


def _inside(patch_vox: Sequence[int], parts: Sequence[np.ndarray], fill: float) -> Tensor:
    """Boxes of an array (..., D, H, W), of one slice if the patch has two axes, each in the middle of a patch."""
    made = []
    for part in parts:
        part = part if len(patch_vox) == 3 else part[..., 0, :, :]
        short = [p - n for p, n in zip(patch_vox, part.shape[-len(patch_vox) :])]
        around = [(0, 0)] * (part.ndim - len(patch_vox)) + [(s // 2, s - s // 2) for s in short]
        made.append(np.pad(part, around, constant_values=fill))
    return torch.from_numpy(np.stack(made))


@torch.no_grad()
def largest_presence(head: Presence, image: np.ndarray, plan: Plan) -> list[float]:
    """For each class but the background, the largest probability over a case's patches that it is there.

    image (C, D, H, W) float32, normalised. Each patch is seen once, as it lies, whatever the gate.
    """
    most, device = torch.zeros(len(plan.classes) - 1), head.linear.weight.device
    for boxes in _batches(image.shape[1:], plan.patch_vox):
        x = _inside(plan.patch_vox, [image[(slice(None), *box)] for box in boxes], 0)
        most = most.maximum(head.probability(head.both(x.to(device))[1]).amax(0).cpu())
    return most.tolist()


# --- the gate ---------------------------------------------------------------------------------------------------------


def gate(run: Any, method: Method) -> Method:
    """The stage "gate": thresholds below which a class is not in a patch, chosen on validation cases; `method` again.

    And the probability above which a class counts as seen in a case (`chosen`). Without validation cases (`--fold all`)
    there is no stage, no gate, and nothing counts. `gate.json` holds for each class what `chosen` says.
    """
    head, plan = head_of(method), run.plan
    cases = [case for case in run.split[1] if case.label]
    if head is None or not cases:
        return method

    def work(folder: Path, tell: Callable[..., None]) -> None:
        head.gate = (0.0,) * len(head.gate)
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        for i, case in enumerate(found := run.cached(cases)):
            rows.append(_looked(method, head, case, plan))
            tell(i + 1, len(found))
        known = [[k for k in range(len(found)) if found[k].annotated[c]] for c in range(len(plan.classes))]
        content = {
            name: chosen([rows[i][0][:, c - 1] for i in known[c]], [rows[i][1][:, c - 1] for i in known[c]])
            for c, name in enumerate(plan.classes)
            if c
        }
        write_json(folder / "gate.json", content)

    told = read_json(run.stage("gate", work) / "gate.json")
    head.gate = tuple(told[name]["threshold"] for name in plan.classes[1:])
    head.seen = tuple(told[name]["seen"] for name in plan.classes[1:])
    return method


@torch.no_grad()
def _looked(method: Method, head: Presence, case: Cached, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Of each of a case's N patches and each class: the probability that it is there (N, K - 1), and how many voxels
    are (rightly predicted, predicted, of the class) (N, K - 1, 3).
    """
    patch, device, classes = plan.patch_vox, head.linear.weight.device, range(1, len(plan.classes))
    probabilities, counts, label = [], [], np.array(case.label)
    for boxes in _batches(label.shape, patch):
        x = _inside(patch, [case.patch(box, plan.channels) for box in boxes], 0).to(device)
        y = _inside(patch, [label[box] for box in boxes], IGNORE).flatten(1)
        logits, present = head.during(partial(method.predict, x))
        z = logits.argmax(1).flatten(1).cpu().where(y != IGNORE, IGNORE)
        voxels = [[((z == k) & (y == k)).sum(1), (z == k).sum(1), (y == k).sum(1)] for k in classes]
        counts.append(np.array([[n.numpy() for n in row] for row in voxels]).transpose(2, 0, 1))
        probabilities.append(head.probability(present).cpu().numpy())
    return np.concatenate(probabilities), np.concatenate(counts)


def chosen(probabilities: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> dict[str, Any]:
    """The gate of one class, and when it counts as seen, from the validation cases in which it was looked for.

    probabilities  of each case (N,): that the class is in each of its patches.
    counts         of each case (N, 3): each patch's voxels that are rightly predicted, predicted, of the class.

    Tried are thresholds, midway between two patches, that shut out `SHARES` of those with the class: by the mean over
    cases of the Dice over patches (overlapping ones count more than once; a class neither there nor predicted has 1;
    what is shut out counts as background, though another class may be next). The best is taken if it beats no gate by
    more than the gain's standard error; otherwise the threshold is 0, no gate. Fewer than two cases have no such error.

    seen: the largest probability of a patch without the class; 1, which nothing is above, if there is none.

    >>> patches = np.array([[5, 5, 5], [0, 5, 0]])
    >>> told = chosen([np.array([0.9, 0.2])] * 2, [patches] * 2)
    >>> told["threshold"], told["seen"], round(told["dice"], 3), told["tried"]
    (0.55, 0.2, 0.667, [[0.55, 1.0]])
    """
    every, there = np.concatenate([[], *probabilities]), np.concatenate([[], *(n[:, 2] for n in counts)]) > 0
    seen = float(every[~there].max()) if not there.all() else 1.0
    tried = sorted({_under(every, np.quantile(every[there], share, method="lower")) for share in SHARES if there.any()})
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


# --- flags ------------------------------------------------------------------------------------------------------------


def flags(plan: Plan, present: Sequence[float], seen: Sequence[float], label: np.ndarray) -> Flags:
    """What the head saw against what was segmented.

    present  for each class but the background, `largest_presence`.   seen: above which it counts, `Presence.seen`.
    label    the segmentation, in the label files' values.

    The flag is "missed" where no voxel is of a class whose probability is above that.
    """
    rows = {}
    for name, value, p, least in zip(plan.classes[1:], plan.values[1:], present, seen):
        voxels = int((label == value).sum())
        flag = "missed" if voxels == 0 and p > least else ""
        rows[name] = {"presence": round(p, 4), "predicted_vox": voxels, "flag": flag}
    return rows


def noticed(views: Sequence[tuple[nn.Module, np.ndarray, Plan]], label: np.ndarray) -> list[Flags]:
    """The `flags` of a case, by the mean of several methods' heads: one of them, or none where no method has a head.

    views: each method with the case's image as it sees it (C, D, H, W), and its plan.
    """
    heads = [(head, largest_presence(head, image, plan)) for m, image, plan in views if (head := head_of(m))]
    if not heads:
        return []
    present, seen = (np.mean(rows, 0).tolist() for rows in ([p for _, p in heads], [head.seen for head, _ in heads]))
    return [flags(views[0][2], present, seen, label)]


def write_flags(folder: str | Path, case: str, rows: Flags) -> None:
    """Note a case's `flags` in a folder's `presence.csv`; what was noted of it before is replaced.

    Columns: case, class, presence, predicted_vox, flag. Raises `Problem` if a file of that name is another table, or
    cannot be written.
    """
    found = ({"class": name, **row} for name, row in rows.items())
    note_case(Path(folder) / TABLE, _COLUMNS, case, found)
