"""What a run says of its cases and of its training before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from contextseg.data.cache import Cached
from contextseg.data.findings import read_findings
from contextseg.data.plan import Plan
from contextseg.data.vanishing import read_vanished, vanished_sentences
from contextseg.disk import read_json
from contextseg.errors import plural
from contextseg.methods import Method
from contextseg.threads import usable_cores


def warned(folder: Path) -> list[str]:
    """The warnings of a finished stage "check".

    Args:
        folder: The stage's folder.

    Returns:
        A sentence for each; [] for none.
    """
    path = folder / "findings.json"
    findings = read_findings(path) if path.exists() else []
    return [f"{f.where}: {f.what}; {f.remedy}" for f in findings if f.level == "warning"]


def not_learnt(
    training: Sequence[Cached], validation: Sequence[Cached], classes: Sequence[str]
) -> list[str]:
    """The classes that training cannot teach, because no preprocessed training label holds them.

    Args:
        training: Labelled training cases.
        validation: Labelled validation cases.
        classes: Names of the classes; the first is the background.

    Returns:
        A sentence for each such class; [] where all can be learnt.
    """
    learnt = {k for case in training for k in case.classes}
    validated = {k for case in validation for k in case.classes}
    sentences = []
    for k, name in enumerate(classes):
        if k and k not in learnt:
            where = "in validation cases only" if k in validated else "in no case"
            sentences.append(
                f"class {name} cannot be learnt: at the plan's spacing it is {where}; choose "
                "another --fold, label a training case with it, or plan a finer spacing_mm"
            )
    return sentences


def vanished_parts(folder: Path, plan: Plan) -> list[str]:
    """What was lost of labels when they were resampled.

    Args:
        folder: Folder of the finished stage "preprocess".
        plan: The plan.

    Returns:
        A sentence for each class that lost something; [] where nothing was lost.
    """
    sentences = vanished_sentences(read_vanished(folder), plan.spacing_mm)
    return [f"{what}; {remedy}" for what, remedy in sentences]


def other_threads(run: Path, device: torch.device) -> list[str]:
    """That a run goes on with another number of threads than it was begun with, on a CPU.

    Sums are then added in another order, so that the result is another in its last digits.

    Args:
        run: Folder of the run.
        device: Where it is trained.

    Returns:
        A sentence; [] where the number is the same, or nothing is known of it.
    """
    begun = read_json(run / "run.json").get("provenance", {}).get("threads")
    threads = torch.get_num_threads()
    if device.type != "cpu" or begun in (None, threads):
        return []
    return [
        f"the run was begun with {plural(begun, 'thread')} and goes on with {threads}: the result "
        f"is not bit for bit that of an undisturbed run; OMP_NUM_THREADS={begun} makes it so"
    ]


def training_line(method: Method, lr: float, device: torch.device, steps: int) -> str:
    """Where and how a method is trained, in one line.

    Args:
        method: The method, settled.
        lr: Learning rate of the first step.
        device: Where it is trained.
        steps: Steps of the training.

    Returns:
        The line.
    """
    where = str(device)
    if device.type == "cpu":
        threads, cores = plural(torch.get_num_threads(), "thread"), plural(usable_cores(), "core")
        where = f"{device}, {threads} on {cores}"
    optimizer = f"{method.optimizer} at {lr:g}"
    if method.short:
        optimizer += f", augmentation x {method.strength:.2g}" if method.strength < 1 else ""
        optimizer += " (a short training; give lr for nnU-Net's SGD)"
    return f"training on {where}: {plural(steps, 'step')}, {optimizer}"


def memory_remedy(planning: Mapping[str, Any], plan: Plan) -> str:
    """What to lower where a training runs out of memory.

    Args:
        planning: The arguments of the plan that were given.
        plan: The plan.

    Returns:
        The remedy.
    """
    given = [name for name in ("patch_vox", "batch_size", "base_width") if planning.get(name)]
    if set(given) & {"patch_vox", "batch_size"}:
        remedy = f"lower {' or '.join(given)}"
    else:
        lower = planning.get("memory_gb", 8.0) / 2
        remedy = f"plan less with --set memory_gb={lower:g}, or lower patch_vox or batch_size"
    patch = ",".join(map(str, plan.patch_vox))
    sizes = f"(the patch is {patch}, the batch {plan.batch_size})"
    return f"{remedy} {sizes}, in another --output folder; or close other programs"
