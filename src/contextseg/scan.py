"""One scan from its file's grid through the networks and back: labels, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.data.components import Change, keep_largest
from contextseg.data.layouts import Case
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import normalise, prepare, undo
from contextseg.disk import Problem
from contextseg.methods import Method
from contextseg.methods.presence import Flags, head_of, noticed
from contextseg.predict import segment
from contextseg.settings import Prediction
from contextseg.volume import Volume


def each_case(
    cases: Sequence[Case], folder: Path, ending: str, segment: Callable[[Case, Path], None], tell: Callable[..., None]
) -> dict[str, str]:
    """Let `segment(case, out)` make each `folder`/CASE`ending` that is not there yet. Returns the failures, by case.

    A case with a `Problem` does not stop the others. `tell(done, of, {})` is called before and after each.
    """
    failed = {}
    for i, case in enumerate(cases):
        out = folder / f"{case.name}{ending}"
        tell(i, len(cases), {})
        if not out.exists():
            try:
                segment(case, out)
            except Problem as problem:
                failed[case.name] = str(problem)
        tell(i + 1, len(cases), {})
    return failed


def windows(method: Method, plan: Plan, how: Prediction) -> dict[str, Any]:
    """How `predict.sliding_window` and `predict.segment` go over a case of that plan: their keywords, by name."""
    return {
        "device": next(method.parameters()).device,
        "step": how.step,
        "mirror_axes": [axis for axis in range(3 - plan.dims, 3) if how.mirror and plan.mirror[axis]],
        "swaps": plan.swaps,
        "lateral_axis": plan.lateral_axis,
        "batch_size": how.windows or max(1, 2**18 // int(np.prod(plan.patch_vox))),
    }


def predict_scan(
    scan: Volume, members: Sequence[tuple[Method, Plan]], how: Prediction, name: str = "", tell: Any = None
) -> Volume:
    """Segment a scan on its own grid, in the label files' values, by the mean of several methods' logits.

    The plans may differ in how they normalise (the folds of a CT data set do) and in nothing else.
    """
    return predict_with_confidence(scan, members, replace(how, confidence=False), name, tell)[0]


def predict_with_confidence(
    scan: Volume,
    members: Sequence[tuple[Method, Plan]],
    how: Prediction,
    name: str = "",
    tell: Any = None,
    changes: list[Change] | None = None,
    presence: list[Flags] | None = None,
) -> tuple[Volume, Volume | None]:
    """`predict_scan`, and how sure it is of each voxel: uint8, 0 to 255 for 0 to 1; None unless `how` asks for it.

    Outside the body, which no network sees, it is sure of the background. Where the largest component alone is kept,
    what else there was is appended to `changes`; it is background now, which is as likely as its class was not. What
    presence heads saw, against what was segmented, is appended to `presence`.
    """
    plan = members[0][1]
    raw, _, _, record = prepare(scan, plan, name)
    ways = list(dict.fromkeys(p.channels for _, p in members))
    image = np.concatenate([normalise(raw, channels, record) for channels in ways])

    def network(method: Method, channels: tuple[Channel, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
        first = sum(len(way) for way in ways[: ways.index(channels)])
        return lambda x: method.predict(x[:, first : first + len(channels)])

    confidence = np.empty(record.shape, np.uint8) if how.confidence else None
    label = segment(
        [network(method, p.channels) for method, p in members],
        image,
        record.shape,
        plan.patch_vox,
        **windows(members[0][0], plan, how),
        to_class=np.array(plan.values),
        confidence=confidence,
        progress=tell,
    )
    whole = undo(label, record, plan.values[0])
    kept = keep_largest(whole, changes) if how.largest_component else whole
    sure = None if confidence is None else undo(confidence, record, 255)
    if presence is not None:
        heads = [(method, p) for method, p in members if head_of(method)]
        presence += noticed([(method, normalise(raw, p.channels, record), p) for method, p in heads], kept.array)
    return kept, sure and sure.with_array(np.where(kept.array == whole.array, sure.array, 255 - sure.array))
