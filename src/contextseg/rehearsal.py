"""A run without scans and without steps: what a method refuses is said before hours of work.

The words and numbers of `--set` are checked where they are used: a network by `build_net`, an
optimiser by `optimizer`, a method's own in its constructor. A rehearsal goes there, on torch's
device "meta", which has shapes and no numbers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contextseg.data.layouts import Case, Dataset
from contextseg.data.plan import Facts, Plan, planned
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.methods import METHODS, Method
from contextseg.methods.base import without_weights
from contextseg.nets.sources import read_start_weights, start_weights_exist
from contextseg.settings import Settings
from contextseg.training import pick_device

_STEPS = 1000
"""Length of a rehearsed training: whatever it is, the same settings are refused."""


class _Enough(Exception):
    """The recipe came to work that needs scans."""


@dataclass
class _Rehearsed:
    """What a recipe sees of a run in which nothing is read: see `methods.base.RecipeRun`."""

    settings: Settings
    plan: Plan
    split: tuple[Sequence[Case], Sequence[Case]]
    is_model: Callable[[str | Path], bool]
    ended_early: bool = False

    def train(self, method: Method, **_: Any) -> Method:
        """Choose the optimisers, and no more."""
        method.optimizers(method.settle(_STEPS, self.settings.training.lr))
        return method

    def __getattr__(self, name: str) -> Any:
        raise _Enough


def rehearse(
    settings: Settings,
    dataset: Dataset,
    split: tuple[Sequence[Case], Sequence[Case]],
    is_model: Callable[[str | Path], bool],
    plan: Plan | None = None,
) -> None:
    """Refuse settings that the run would refuse later, after its scans are read or trained on.

    Args:
        settings: The settings of the run.
        dataset: The data set.
        split: (training cases, validation cases).
        is_model: As in `RecipeRun`.
        plan: The plan. None takes that of a scan of 128 voxels of 1 mm along each axis.

    Raises:
        ContextsegError: What the run would raise: a word or number of the method, of the training
            or of the prediction that makes no sense, or a file that is not there or damaged.
    """
    look_for_files(settings.arguments)
    pick_device(settings.training.device)
    settings.training.require_validation(any(case.label for case in split[1]))
    for name in settings.prediction.largest_of:
        if name not in dataset.classes[1:]:
            remedy = did_you_mean(name, dataset.classes[1:])
            raise ContextsegError(f"largest_of={name}", "there is no such class", remedy)
    if plan is None:
        samples = ((0.0, 1.0),) * len(dataset.channels)
        facts = Facts("", (128, 128, 128), (1.0, 1.0, 1.0), "SAR", samples)
        try:
            plan = planned(dataset, [facts], settings.planning)
        except ContextsegError:  # the stage "plan" says it, if it is true of the scans
            return
    try:
        with suppress(_Enough), without_weights():
            _perform(_Rehearsed(settings, plan, split, is_model))
    except ContextsegError as error:
        if _is_of_a_setting(error.where, settings.method):
            raise


def look_for_files(arguments: Mapping[str, Any]) -> None:
    """Refuse start weights and masks that are not there, or damaged.

    Args:
        arguments: The arguments of a method, by name.

    Raises:
        ContextsegError: There is no such file or folder, or it cannot be read.
    """
    for name in ("weights", "second_weights"):
        path = arguments.get(name)
        if path and not start_weights_exist(path):
            what = "there is no such file of weights, and no run in a folder of that name"
            raise ContextsegError(f"--set {name}={path}", what, "check the path")
        if path:
            read_start_weights(path)
    masks = arguments.get("masks")
    if masks and not Path(masks).is_dir():
        what = "there is no such folder of masks, and no run or model in a folder of that name"
        raise ContextsegError(f"--set masks={masks}", what, "check the path")


def _perform(run: _Rehearsed) -> None:
    """Construct the method, or go through the recipe."""
    entry: Callable[..., Method] = METHODS[run.settings.method]
    arguments = run.settings.arguments
    if inspect.isclass(entry):
        method: Any = entry(run.plan, **arguments)  # type: ignore[call-arg]
        run.train(method)
    else:
        entry(run, **arguments)


def _is_of_a_setting(where: str, method: str) -> bool:
    """Whether an error names a setting of the method, so that a stand-in is not to blame."""
    known = inspect.signature(METHODS[method]).parameters
    return where.startswith("method ") or re.split(r"\W", where)[0] in known
