"""Is the class in this image? What a presence head (`nets.Presence`) learns from, and what it is used for afterwards.

Afterwards [ours]: its answers gate patches or slices in which a class is not, where validation cases say that this
helps; and a case is flagged whose segmentation misses a class that the head sees.
"""

from __future__ import annotations

import csv
import io
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
from contextseg.disk import Problem, read_json, write_json, write_text
from contextseg.methods.base import Method, build_net
from contextseg.nets import Presence

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""The gates that are tried on validation cases."""
TABLE = "presence.csv"
"""The table in a folder of predictions that says what the head saw in each case."""
Flags = dict[str, dict[str, Any]]
"""Class -> {"presence", "predicted_vox", "flag"}, of one case."""
_COLUMNS = ["case", "class", "presence", "predicted_vox", "flag"]


def with_head(name: str, plan: Plan) -> Presence:
    """The network `name` of the registry with a presence head, at the plan's size.

    Its own weights are those that it would have without the head. Raises `Problem` for an unknown name.
    """
    return Presence(build_net(name, plan), len(plan.channels), len(plan.classes), plan.dims)


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
def largest_presence(method: nn.Module, image: np.ndarray, plan: Plan) -> list[float]:
    """For each class but the background, the largest probability over a case's patches that it is there.

    image (C, D, H, W) float32, normalised. Each patch is seen once, as it lies, whatever the gate. [] without a head.
    """
    head = head_of(method)
    if head is None:
        return []
    most, device = torch.zeros(len(plan.classes) - 1), head.linear.weight.device
    for boxes in _batches(image.shape[1:], plan.patch_vox):
        x = _inside(plan.patch_vox, [image[(slice(None), *box)] for box in boxes], 0)
        most = most.maximum(head.both(x.to(device))[1].sigmoid().amax(0).cpu())
    return most.tolist()


# --- the gate ---------------------------------------------------------------------------------------------------------


def gate(run: Any, method: Method) -> Method:
    """The stage "gate": thresholds below which a class is not in a patch, chosen on validation cases; `method` again.

    For each class the threshold of `THRESHOLDS` with the best mean Dice over the cases, where that beats no gate by
    more than the gain's standard error; otherwise 0, no gate. Without validation cases (`--fold all`) there is no
    stage and no gate. `gate.json` holds, for each class, the threshold, the cases, and the Dice of each threshold.
    """
    head, plan = head_of(method), run.plan
    cases = [case for case in run.split[1] if case.label]
    if head is None or not cases:
        return method

    def work(folder: Path, tell: Callable[..., None]) -> None:
        head.gate = (0.0,) * len(head.gate)
        rows = []
        for i, case in enumerate(found := run.cached(cases)):
            rows.append(_swept(method, head, case, plan))
            tell(i + 1, len(found))
        content = {name: chosen(np.array([row[k] for row in rows])) for k, name in enumerate(plan.classes[1:])}
        write_json(folder / "gate.json", content)

    told = read_json(run.stage("gate", work) / "gate.json")
    head.gate = tuple(told[name]["threshold"] for name in plan.classes[1:])
    return method


@torch.no_grad()
def _swept(method: Method, head: Presence, case: Cached, plan: Plan) -> np.ndarray:
    """The Dice of one case, (K - 1, 1 + thresholds): without a gate, and with each; NaN for a class not looked for.

    Over its patches, where those overlap more than once; a class that is neither there nor predicted has 1. What a gate
    shuts out counts as background, though another class may be next.
    """
    steps, patch, device = torch.tensor([0.0, *THRESHOLDS]), plan.patch_vox, head.linear.weight.device
    classes = range(1, len(plan.classes))
    hits, found, there = (torch.zeros(len(classes), n, dtype=torch.int64) for n in (len(steps), len(steps), 1))
    label = np.array(case.label)
    for boxes in _batches(label.shape, patch):
        x = _inside(patch, [case.patch(box, plan.channels) for box in boxes], 0).to(device)
        y = _inside(patch, [label[box] for box in boxes], IGNORE).flatten(1)
        logits, present = head.during(partial(method.predict, x))
        z, opened = logits.argmax(1).flatten(1).cpu(), (present.sigmoid().cpu()[..., None] >= steps).long()
        for row, k in enumerate(classes):
            p = (z == k) & (y != IGNORE)
            hits[row] += (p & (y == k)).sum(1) @ opened[:, row]
            found[row] += p.sum(1) @ opened[:, row]
            there[row] += (y == k).sum()
    dice = np.where(found + there > 0, 2 * hits / (found + there).clamp(min=1), 1.0)
    dice[~np.array(case.annotated[1 : 1 + len(classes)])] = np.nan
    return dice


def chosen(dice: np.ndarray) -> dict[str, Any]:
    """Which threshold of `THRESHOLDS` to use, 0 for none: {"threshold", "cases", "dice": [without, each]}.

    dice (cases, 1 + thresholds): of one class, without a gate and with each; rows of NaN do not count. With fewer than
    two cases there is no standard error, and no gate. Of equal thresholds the smallest.

    >>> dice = np.full((2, 1 + len(THRESHOLDS)), 0.5)
    >>> dice[:, 4] = 0.6, 0.7
    >>> chosen(dice)["threshold"]
    0.2
    """
    dice = dice[~np.isnan(dice).any(1)]
    mean = dice.mean(0) if len(dice) else np.zeros(dice.shape[1])
    best = int(mean.argmax())
    gain = dice[:, best] - dice[:, 0]
    helps = len(dice) > 1 and gain.mean() > gain.std(ddof=1) / len(dice) ** 0.5
    threshold = THRESHOLDS[best - 1] if helps and best else 0.0
    return {"threshold": threshold, "cases": len(dice), "dice": [round(float(d), 6) for d in mean]}


# --- flags ------------------------------------------------------------------------------------------------------------


def flags(plan: Plan, present: Sequence[float], label: np.ndarray, least: float = 0.5) -> Flags:
    """What the head saw against what was segmented.

    present  `largest_presence`.   label: the segmentation, in the label files' values.
    The flag is "missed" where no voxel is of the class although it was seen with a probability of `least` or more.
    """
    rows = {}
    for name, value, p in zip(plan.classes[1:], plan.values[1:], present):
        voxels = int((label == value).sum())
        flag = "missed" if voxels == 0 and p >= least else ""
        rows[name] = {"presence": round(p, 4), "predicted_vox": voxels, "flag": flag}
    return rows


def write_flags(folder: str | Path, case: str, rows: Flags) -> None:
    """Note a case's `flags` in a folder's `presence.csv`; what was noted of it before is replaced.

    Columns: case, class, presence, predicted_vox, flag. Raises `Problem` if a file of that name is another table, or
    cannot be written.
    """
    path = Path(folder) / TABLE
    kept: list[dict[str, Any]] = []
    if path.exists():
        known = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if known.fieldnames != _COLUMNS:
            raise Problem(path, f"its columns are not {', '.join(_COLUMNS)}", "move it away, or choose another folder")
        kept = [row for row in known if row["case"] != case]
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows([*kept, *({"case": case, "class": name, **row} for name, row in rows.items())])
    write_text(path, text.getvalue())
