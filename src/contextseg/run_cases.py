"""A run's folder with its plan and preprocessed cases, and what is computed for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.console import Progress
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached, load_record
from contextseg.data.layouts import Case
from contextseg.data.normalised import CachedImage
from contextseg.data.plan import Plan
from contextseg.data.sampling import Sampler
from contextseg.disk import read_json, replacing, visible_files
from contextseg.errors import ContextsegError
from contextseg.length import Length
from contextseg.methods import Method
from contextseg.methods.base import BatchSource
from contextseg.predict import sliding_window
from contextseg.predictor import sliding_window_arguments
from contextseg.run_folder import RunFolder
from contextseg.settings import Settings


class RunCases(RunFolder):
    """A folder of stages, of which "plan" and "preprocess" left a plan and cases on its grid.

    Attributes:
        settings: The settings of the run.
    """

    settings: Settings

    @cached_property
    def plan(self) -> Plan:
        """The plan. Raises `ContextsegError` if the plan stage is not done."""
        return Plan.load(self.folder / "plan.json")

    def cached(self, cases: Sequence[Case]) -> list[Cached]:
        """Preprocessed cases.

        Args:
            cases: Training or validation cases of the run.

        Returns:
            The same cases, preprocessed and memory-mapped.

        Raises:
            ContextsegError: The stage "preprocess" is not done.
        """
        cache = self.folder / "cache"
        table = self.stage_folder("preprocess") / "cases.json"
        again = "delete this stage's folder; the same command does it again"
        rows = read_json(table, dict[str, tuple[str, list[bool], bool]], again)
        cached = []
        for case in cases:
            if case.name not in rows:
                raise ContextsegError(table, f"{case.name} is missing", again)
            name, annotated, labelled = rows[case.name]
            record = load_record(cache / name / "record.json")
            cached.append(Cached(cache / name, record, tuple(annotated), labelled))
        return cached

    def lengths(self) -> dict[str, Length]:
        """The length of each training that is begun, by the name of its stage.

        Returns:
            The lengths; those of runs of earlier versions are left out.
        """
        lengths = {path.name: Length.load(path) for path in self.stage_folders("train")}
        return {name: length for name, length in lengths.items() if length}

    def samplers(
        self,
        split: tuple[Sequence[Case], Sequence[Case]],
        method: Method,
        labels: Mapping[str, Path],
        annotated: Mapping[str, Sequence[bool]],
        maps: Mapping[str, Path],
        draws: int,
        steps: int,
    ) -> tuple[BatchSource, BatchSource | None]:
        """What draws the batches of a training.

        Args:
            split: (training cases, validation cases).
            method: What is trained, settled.
            labels: As for `Run.train`.
            annotated: As there.
            maps: Files of what the method asks to know of each voxel, by case.
            draws: As there.
            steps: Steps of the whole training.

        Returns:
            What draws the training batches, and the validation batches; None without such cases.
        """
        settings = self.settings
        training, validation = split
        cached = self.cached(training)
        seed = settings.seed + 999_983 * draws
        augmentation = settings.augmentation
        if method.strength != 1:
            strength = method.strength * augmentation.strength
            augmentation = replace(augmentation, strength=strength)
        validated = [case for case in validation if case.label]
        own = method.sampler(cached, self.plan, seed, augmentation, steps)
        if own:
            checks = method.check_sampler(self.cached(validated), self.plan) if validated else None
            return own, checks
        sampler = Sampler(
            cached,
            self.plan,
            seed,
            augmentation,
            labels,
            method.unlabelled,
            maps,
            annotated,
        )
        if not validated:
            return sampler, None
        unchanged = Augmentation(strength=0)
        check_sampler = Sampler(
            self.cached(validated),
            self.plan,
            1 + settings.seed,
            unchanged,
            labels,
            0,
            maps,
            annotated,
        )
        return sampler, check_sampler

    def arrays(
        self, name: str, cases: Sequence[Case], make: Callable[[Cached], np.ndarray]
    ) -> dict[str, Path]:
        """The stage `name`: an array for each case, on the cache's grid; a killed one goes on.

        Args:
            name: Kind of the stage.
            cases: For which cases.
            make: Called with each preprocessed case.

        Returns:
            Case name to .npy.
        """

        def work(folder: Path, progress: Progress) -> None:
            cached = self.cached(cases)
            for done, case in enumerate(cached, 1):
                path = folder / f"{case.record.name}.npy"
                if not path.exists():
                    array = make(case)
                    with replacing(path) as temporary, open(temporary, "wb") as file:
                        np.save(file, array)
                progress(done, len(cached))

        folder = self.stage(name, work)
        return {path.stem: path for path in visible_files(folder, "*.npy")}

    def image(self, case: Cached) -> np.ndarray:
        """The whole normalised image of a preprocessed case, (C, *S) float32."""
        whole = tuple(slice(0, n) for n in case.image.shape[1:])
        return case.patch(whole, self.plan.channels)

    def logits(self, case: Cached, method: Method) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Logits of a method for a preprocessed case, by sliding window, on the cache's grid.

        Args:
            case: The case.
            method: The method, which is put into evaluation mode.

        Yields:
            (start, stop, logits (K, stop - start, H, W)), slabs that follow one another along D.
        """
        keywords = sliding_window_arguments(method, self.plan, self.settings.prediction)
        predict = method.eval().predict
        image = CachedImage(case, self.plan.channels)
        return sliding_window(predict, image, self.plan.patch_vox, **keywords)


def annotated_label(case: Cached) -> np.ndarray:
    """What annotators labelled of a case, (*S) int16: all `IGNORE` without a label."""
    if case.label is None:
        return np.full(case.image.shape[1:], IGNORE, np.int16)
    return np.array(case.label)
