"""A folder of named stages: a finished one is never done again, unless its inputs changed.

train-1/ predict/ ...   a folder for each stage, which holds
    done.json           seconds, peak memory and position, written last: the stage is finished
    inputs.json         digests of what it was made of, for stages that can go out of date
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch.distributed as dist

from contextseg.console import Progress, ProgressBar, no_progress_bar, say
from contextseg.data.listing import some
from contextseg.disk import read_json, visible_files, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.provenance import PeakMemory
from contextseg.ranks import ranks

PIPELINE = ("check", "plan", "preprocess", "cross-validation", "predict", "evaluate", "report")
"""Stages that every run has once; all others belong to its recipe and are numbered."""

INPUTS = "inputs.json"
"""File in a stage's folder: digest of each thing that it was made of, by name."""


class _StageTime(TypedDict):
    """What `done.json` says of every stage."""

    seconds: float


class _StageCosts(_StageTime, total=False):
    """What it may say beside that; others may note more in it."""

    peak_mb: float
    peak_gpu_mb: float
    position: int


class RunFolder:
    """A folder, and the stages that are done or to be done in it.

    Args:
        folder: Where the stages lie.
        progress_bar: Shows the progress of each stage.
    """

    def __init__(self, folder: str | Path, progress_bar: ProgressBar = no_progress_bar) -> None:
        self.folder = Path(folder)
        self.progress_bar = progress_bar
        self._only_finished = False
        self._numbers: Counter[str] = Counter()

    def stage(
        self,
        name: str,
        work: Callable[[Path, Progress], None],
        together: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> Path:
        """Do a stage, unless it is done.

        The stages of `PIPELINE` are there once. Those of a recipe are numbered by their kind,
        `train-1`, `train-2`, from 1 each time the recipe runs: so a stage has one name in every
        process, however often it is asked for.

        Args:
            name: One of `PIPELINE`, or the kind of a stage of the recipe.
            work: Called with the stage's folder and its `Progress`.
            together: Whether all ranks work on it; else the first one works alone.
            inputs: Digests by name of what the stage is made of. A stage that was done with others
                is done again, and what changed is said. None never goes out of date.

        Returns:
            The stage's folder.

        Raises:
            ContextsegError: Only finished stages may be used, and this one is not finished.
        """
        title = name
        if name not in PIPELINE:
            self._numbers[name] += 1
            title = f"{name}-{self._numbers[name]}"
        folder = self.stage_folder(title)
        rank, world = ranks()
        done = (folder / "done.json").exists()
        if self._only_finished and not done:
            remedy = "give `contextseg train` the same --output; it goes on"
            raise ContextsegError(folder, "this stage is not finished", remedy)
        if done and (stale := stale_inputs(folder, inputs)):
            done = False
            if rank == 0:
                say(f"{title} is done again: {some(stale)} changed since it was done")
        if world > 1:
            dist.barrier()
        with self.progress_bar(title, done) as progress:
            if not done and (together or rank == 0):
                self._work(folder, work, progress, inputs)
        if world > 1:
            dist.barrier()
        return folder

    def _work(
        self,
        folder: Path,
        work: Callable[[Path, Progress], None],
        progress: Progress,
        inputs: Mapping[str, str] | None,
    ) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        memory = PeakMemory()
        work(folder, progress)
        if ranks()[0] == 0:
            if inputs is not None:
                write_json(folder / INPUTS, dict(inputs))
            seconds = round(time.monotonic() - started, 2)
            position = self._place_of(folder.name) or len(self.stages()) + 1
            costs = {"seconds": seconds, **memory.costs(), "position": position}
            write_json(folder / "done.json", costs)

    def _place_of(self, title: str) -> int:
        """The position of a stage that was done before; 0 for a new one."""
        return next((i for i, stage in enumerate(self.stages(), 1) if stage["name"] == title), 0)

    def stage_folder(self, title: str) -> Path:
        """Where a stage lies, whether it is done or not.

        Args:
            title: Name of the stage, such as "evaluate" or "train-1".

        Returns:
            The folder of that name, or what version 0.1.0 called it, such as "06-evaluate".
        """
        folder = self.folder / title
        if folder.exists():
            return folder
        numbered = re.fullmatch(r"(.+)-(\d+)", title)
        kind = numbered[1] if numbered else title
        place = int(numbered[2]) if numbered else 1
        old = sorted(self.folder.glob(f"[0-9][0-9]-{kind}"))
        return old[place - 1] if place <= len(old) else folder

    def stage_folders(self, kind: str) -> list[Path]:
        """Folders of all stages of a kind, in the order of the recipe.

        Args:
            kind: "train" for `train-1`, `train-2` and so on.

        Returns:
            The folders that are there; [] for none.
        """
        new = [
            path for path in self.folder.glob(f"{kind}-*") if path.name[len(kind) + 1 :].isdecimal()
        ]
        new.sort(key=lambda path: int(path.name[len(kind) + 1 :]))
        return new or sorted(self.folder.glob(f"[0-9][0-9]-{kind}"))

    def done(self, title: str) -> bool:
        """Whether the stage of that name is finished."""
        return (self.stage_folder(title) / "done.json").exists()

    def stages(self) -> list[dict[str, Any]]:
        """What each finished stage cost.

        Returns:
            A dict for each finished stage, in the order in which they were done: name, seconds,
            peak_mb, and peak_gpu_mb where there was a GPU.
        """
        costs = []
        for path in visible_files(self.folder, "*/done.json"):
            content = read_json(path, _StageCosts, "delete it; the stage is then done again")
            old = re.match(r"(\d\d)-", path.parent.name)
            position = content.pop("position", int(old[1]) if old else 0)
            costs.append((position, {"name": path.parent.name, **content}))
        return [cost for _, cost in sorted(costs, key=lambda item: (item[0], item[1]["name"]))]


def refuse_among_scans(output: str | Path, dataset: str | Path) -> None:
    """Refuse to write a run into its data set's folder, or into one of scans and labels.

    Args:
        output: The folder of the run.
        dataset: The folder of the data set.

    Raises:
        ContextsegError: It is that folder, or lies among the scans.
    """
    place, data = Path(output).resolve(), Path(dataset).resolve()
    inside = place.relative_to(data).parts[:1] if place.is_relative_to(data) else ("elsewhere",)
    if not inside or inside[0].lower().startswith(("images", "labels")):
        what = "the output folder is the folder of the data set, or lies among its scans"
        raise ContextsegError(output, what, "choose a folder of its own, such as -o runs/first")


def stale_inputs(folder: Path, inputs: Mapping[str, str] | None) -> list[str]:
    """The inputs of a stage that are not what they were when it was done.

    Args:
        folder: The stage's folder.
        inputs: Digests by name, now.

    Returns:
        Names that changed, that are new or that are gone; [] where nothing is known of the inputs,
        as in folders of earlier versions.
    """
    path = folder / INPUTS
    if inputs is None or not path.exists():
        return []
    before = read_json(path, dict[str, str], "delete it and done.json beside it")
    return [n for n in dict.fromkeys([*before, *inputs]) if before.get(n) != inputs.get(n)]
