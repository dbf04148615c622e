"""A run is a folder of named stages: a finished stage is never done again, a killed one goes on.

    run.json                         the settings, and where they come from: versions, machine, date
    split.json                       the cases on the day of training, with digests of their files
    plan.json                        the plan
    check/ plan/ preprocess/         each stage with done.json: seconds and peak memory
    train-1/ relabel-1/ train-2/     the stages of the method's recipe, numbered by kind
    predict/ evaluate/ report/       what `pipeline.run_pipeline` adds

A recipe receives the run and uses its verbs: `train`, `relabel`, `arrays`, `logits`. Loading a
model is running its finished recipe again, in which nothing is left to do: no object is pickled,
and the training data is not needed. Folds are those of `split.json`, whatever became of the data
set since; `files.json` keeps digests of files by size and time, and may be deleted.
Runs of version 0.1.0, whose stages are called `01-check`, `02-plan` and so on, open as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.batch import IGNORE
from contextseg.console import Progress, ProgressBar, no_progress_bar, say
from contextseg.data.cache import Cached, fingerprint, load_array, preprocess, share_cache
from contextseg.data.check import check
from contextseg.data.findings import raise_errors
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.plan import Plan, planned
from contextseg.data.roi import hide_labels, restricted
from contextseg.data.sizes import PLAN, PREPROCESS, workers_for
from contextseg.data.snapshot import FileDigests, Snapshot
from contextseg.data.vanishing import save_vanished, vanished_in_cache
from contextseg.disk import lock_folder, read_json, readable, visible_files, write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.largest import chosen_largest
from contextseg.inputs import damage_named, read_tensors
from contextseg.length import (
    Length,
    Punctuality,
    WorkTime,
    choose_length,
    chosen_line,
    kept_length,
    load_stopped,
    seconds_spent,
)
from contextseg.memory_errors import out_of_memory
from contextseg.methods import METHODS, Method
from contextseg.methods.base import BatchSource, Maps
from contextseg.nnunet import holds_model, is_nnunet_model, open_nnunet
from contextseg.notices import (
    memory_remedy,
    not_learnt,
    other_threads,
    training_line,
    vanished_parts,
    warned,
)
from contextseg.predictor import Member, Predictor
from contextseg.provenance import provenance
from contextseg.ranks import ranks
from contextseg.rehearsal import look_for_files, rehearse
from contextseg.run_cases import RunCases, annotated_label
from contextseg.settings import Settings
from contextseg.training import pick_device, train

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(image (1, C, *S), label (1, *S)) to a label (1, *S) with fewer `IGNORE`."""

Split = tuple[tuple[Case, ...], tuple[Case, ...]]
"""(training cases, validation cases)."""

_TRAIN_AGAIN = "delete done.json beside it, and give `contextseg train` the same --output"
_AGAIN = "delete this stage's folder; the same command does it again"

BEFORE_RECIPE = 3
"""Stages before a recipe: check, plan, preprocess. The seeds of a recipe's stages count them."""


class Run(RunCases):
    """One training of one method on one data set, in a folder.

    Args:
        folder: Where everything of the run lies; made if it is not there.
        settings: What the run is. A folder that holds a run with other settings is refused, unless
            it came no further than the check of the data set.
        progress_bar: Shows the progress of each stage.
        cases: (training, validation) cases in place of the settings' fold, for trials on a few.

    Raises:
        ContextsegError: The folder holds a run with other settings; the message names what differs.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: Settings,
        progress_bar: ProgressBar = no_progress_bar,
        cases: Split | None = None,
    ) -> None:
        super().__init__(folder, progress_bar)
        self._cases = cases
        self.cases_after = 0
        self.ended_early = False
        known = self.folder / "run.json"
        if known.exists():
            before = Settings.read(known)
            chosen = before.training.steps or self.lengths()
            if settings.training.time_s and not chosen:  # that of before was too short a time
                before = before.with_length(settings.training)
                write_json(known, {**read_json(known), "settings": before.to_json()})
            settings = settings.of_length(before)
            what = before.differences(settings)
            if what and self._is_new():
                (self.folder / "check" / "done.json").unlink(missing_ok=True)
                write_json(known, {**read_json(known), "settings": settings.to_json()})
            elif what:
                what = f"this folder holds a run with other settings ({what})"
                remedy = "choose another --output folder"
                if "steps" in what or "time_s" in what:
                    remedy += "; a finished run is trained longer with --extend"
                raise ContextsegError(self.folder, what, remedy)
        self.settings = settings
        self.work_time = WorkTime(seconds_spent(self))
        if not known.exists() and ranks()[0] == 0:
            write_json(known, {"settings": settings.to_json(), "provenance": provenance()})

    def _is_new(self) -> bool:
        """Whether nothing is done but the check, as where the settings were refused."""
        done = {stage["name"] for stage in self.stages()}
        return done <= {"check"} and not list(self.folder.glob("*/checkpoint.pt"))

    @staticmethod
    @readable
    def open(folder: str | Path, progress_bar: ProgressBar = no_progress_bar) -> Run:
        """Open the run in a folder.

        Args:
            folder: The folder of a run, finished or not.
            progress_bar: Shows the progress of stages that are done from now on.

        Returns:
            The run, with the settings that it was begun with.

        Raises:
            ContextsegError: There is no run in the folder.
        """
        path = Path(folder) / "run.json"
        if not path.exists():
            what = "there is no run in this folder"
            remedy = "give the --output folder of `contextseg train`"
            if inside := visible_files(folder, "*/run.json"):
                remedy = f"give the folder of one run, such as {inside[0].parent}"
            raise ContextsegError(folder, what, remedy)
        return Run(folder, Settings.read(path), progress_bar)

    def __repr__(self) -> str:
        done = [stage["name"] for stage in self.stages()]
        last = done[-1] if done else "nothing"
        return f"Run({str(self.folder)!r}, method={self.settings.method!r}, last stage: {last})"

    # --- from scans to preprocessed cases ---------------------------------------------------------

    @cached_property
    def _whole(self) -> Dataset:
        """The data set with the classes outside the ROI."""
        return open_dataset(self.settings.dataset)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened."""
        return restricted(self._whole, self.settings.roi)

    @cached_property
    def digests(self) -> FileDigests:
        """Digests of the data set's files, kept in `files.json`."""
        return FileDigests(self.folder / "files.json", self.settings.dataset)

    @cached_property
    def snapshot(self) -> Snapshot:
        """The cases of the day on which the run began, of `split.json`; before that day, of now."""
        path = self.folder / "split.json"
        if self._cases is None and path.exists():
            return Snapshot.load(path, self.settings.dataset)
        cases = self._cases
        if cases is None:
            training, validation = folds(self.dataset, self.settings.fold)
            cases = hide_labels(training, self.settings.labelled), validation
        return Snapshot.of(self._whole, *cases)

    @property
    def split(self) -> Split:
        """(training cases, validation cases); of the first, only `Settings.labelled` keep labels.

        The folds are those of all labels, so that fewer labels are validated on the same cases.
        They do not change when the data set does (see `snapshot`).
        """
        return self.snapshot.training, self.snapshot.validation

    @property
    def all_classes(self) -> tuple[str, ...]:
        """Names of the data set's classes, those outside the ROI too, background first."""
        return self.snapshot.classes

    def outlined(self, case: Case) -> tuple[str, ...] | None:
        """The classes that were annotated in a case, those outside the ROI too; None for all."""
        return self.snapshot.outlined[case.name]

    def _write_snapshot(self) -> None:
        """Write `split.json`, with digests of the files as they are now."""
        taken = self.snapshot.with_digests(self.digests, self.settings.dataset)
        taken.save(self.folder / "split.json", self.settings.dataset)
        self.snapshot = taken

    def changes(self) -> list[str]:
        """What changed in the data set since the run began.

        Returns:
            A phrase for each kind of change; [] where nothing did, or nothing is known of that day.

        Raises:
            ContextsegError: The data set cannot be opened.
        """
        if self._cases is not None or not (self.folder / "split.json").exists():
            return []
        hidden = self.settings.labelled is not None
        return self.snapshot.changes(self.dataset, self.digests, hidden)

    @property
    def guided(self) -> bool:
        """Whether its method fills scans from labelled slices, and cannot predict one without."""
        return bool(getattr(METHODS[self.settings.method], "guided", False))

    def check(self) -> None:
        """The stage "check": every problem of the data set, in `findings.json`.

        Before it the settings are tried without scans (`rehearsal`), and the files that they name
        are looked for: what is wrong with them is said before hours of work.

        Raises:
            ContextsegError: The data set has errors, of which the message names the first, or a
                setting makes no sense, or a file of start weights is not there, or damaged.
        """
        if not self.done("check"):
            self.rehearse()
        elif not self.done("train-1"):
            look_for_files(self.settings.arguments)

        def work(folder: Path, progress: Progress) -> None:
            findings = check(self.settings.dataset, progress=progress, roi=self.settings.roi)
            write_json(folder / "findings.json", [asdict(finding) for finding in findings])
            raise_errors(findings, self.settings.dataset)

        self._warn(warned(self.stage("check", work)))
        if ranks()[0] == 0 and (changed := self.changes()):
            say(
                f"{self.settings.dataset} changed since this run began, and the run keeps the cases"
                f" and folds of that day ({'; '.join(changed)}). To train on what is there now, "
                "choose another --output"
            )

    def rehearse(self) -> None:
        """Refuse settings that would be refused only after the scans are read.

        Raises:
            ContextsegError: A setting makes no sense, or a file that it names is not there.
        """
        plan = self.plan if (self.folder / "plan.json").exists() else None
        rehearse(self.settings, self.dataset, self.split, self.is_model, plan)

    def use_plan(self, plan: Plan) -> None:
        """Take this plan in place of one made by the rules.

        Args:
            plan: The plan, such as one that a person edited.

        Raises:
            ContextsegError: The run has another plan already.
        """
        path = self.folder / "plan.json"
        if path.exists():
            if Plan.load(path) != plan:
                remedy = "choose another --output folder"
                raise ContextsegError(path, "this run has another plan", remedy)
        elif ranks()[0] == 0:
            plan.save(path)

    def make_plan(self) -> None:
        """The stage "plan": facts of the cases, then `plan.json`; a plan that is there is kept.

        Sizes and spacings are those of all cases but the test split's, so that the folds can be an
        ensemble; intensities under the labels are those of the fold's training cases alone.
        """

        def work(folder: Path, progress: Progress) -> None:
            self._write_snapshot()
            training = {case.name: case for case in self.split[0]}
            cases = [training.get(case.name, case) for case in self.dataset.train]
            workers = workers_for(cases, PLAN, "plan")
            facts = fingerprint(self.dataset, cases, workers=workers, progress=progress)
            rows = [{**asdict(f), "roi": len(f.roi[0]) if f.roi else 0} for f in facts]
            write_json(folder / "fingerprint.json", rows)
            facts = [f if f.name in training else replace(f, roi=()) for f in facts]
            if not (self.folder / "plan.json").exists():
                plan = planned(self.dataset, facts, self.settings.planning)
                plan.save(self.folder / "plan.json")

        self.stage("plan", work)

    def preprocess(self) -> None:
        """The stage "preprocess": every training and validation case into the folder "cache".

        Runs of one data set and one grid share the cache, see `data.cache.share_cache`.
        """

        cache = self.folder / "cache"
        if not cache.exists() and cache.is_symlink():  # what it was shared with is gone
            cache.unlink()
            (self.stage_folder("preprocess") / "done.json").unlink(missing_ok=True)

        def work(folder: Path, progress: Progress) -> None:
            share_cache(self.folder)
            cases = [*self.split[0], *self.split[1]]
            # The cache may be another run's, which sweeps its folder when it is begun again.
            with lock_folder(self.folder / "cache", shared=True):
                cached = preprocess(
                    self.dataset,
                    cases,
                    self.plan,
                    self.folder / "cache",
                    workers=workers_for(cases, PREPROCESS, "preprocess"),
                    progress=progress,
                )
            rows = {c.record.name: [c.folder.name, c.annotated, c.labelled] for c in cached}
            write_json(folder / "cases.json", rows)
            lost = vanished_in_cache(self.dataset, cases, cached, self.plan.spacing_mm)
            save_vanished(lost, folder)
            self._write_snapshot()

        self.stage("preprocess", work)
        vanished = vanished_parts(self.stage_folder("preprocess"), self.plan)
        self._warn([*self.not_learnt(), *vanished])

    def not_learnt(self) -> list[str]:
        """A sentence for each class that no preprocessed training case teaches; [] for none."""
        training, validation = (self.cached([c for c in part if c.label]) for part in self.split)
        return not_learnt(training, validation, self.plan.classes)

    def _warn(self, texts: Iterable[str], lead: str = "warning: ") -> None:
        """Print warnings, unless the run is to be silent."""
        if self.progress_bar is not no_progress_bar:
            for text in texts:
                say(f"{lead}{text}")

    # --- the recipe and its verbs -----------------------------------------------------------------

    def finished(self, device: str = "") -> Method:
        """The method that this run ended with, in evaluation mode.

        Args:
            device: Where it runs. "" is where it was trained, or, where that device is not here,
                the GPU or CPU that is.

        Returns:
            The method.

        Raises:
            ContextsegError: The run is not finished, or the device cannot be used here.
        """
        self._only_finished = True
        try:
            return self.fit().to(pick_device(device) if device else self._device())
        finally:
            self._only_finished = False

    def _device(self) -> torch.device:
        """The device of the settings; for a finished run another, where that one is not here."""
        try:
            return pick_device(self.settings.training.device)
        except ContextsegError as error:
            if not self._only_finished:
                raise
            other = pick_device()
            say(f"{error.where}: {error.what}; {other} is used")
            return other

    def predictor(self) -> Predictor:
        """The finished method as a `Predictor`, with the run's prediction settings."""
        member = Member(self.finished(), self.plan)
        return Predictor([member], self.settings.prediction, self.largest_validated)

    @property
    def largest_validated(self) -> tuple[str, ...]:
        """Classes whose largest connected part alone is kept, by the run's validation cases."""
        return chosen_largest(self.stage_folder("evaluate"))

    is_model = staticmethod(holds_model)

    @staticmethod
    def open_model(folder: str | Path) -> Predictor:
        """What segments scans with the run, or the model of nnU-Net, in a folder.

        Args:
            folder: A folder of which `is_model` holds.

        Returns:
            The predictor; nnU-Net's models predict with the default settings, which are nnU-Net's.

        Raises:
            ContextsegError: The run is not finished, or the model cannot be read.
        """
        if is_nnunet_model(folder):
            return Predictor(open_nnunet(folder))
        return Run.open(folder).predictor()

    def fit(self) -> Method:
        """Run the method's recipe.

        Returns:
            The method to deploy, in evaluation mode.
        """
        torch.manual_seed(self.settings.seed)
        entry: Callable[..., Method] = METHODS[self.settings.method]
        self._numbers.clear()
        remedy = memory_remedy(self.settings.planning, self.plan)
        with out_of_memory(f"training {self.folder}", remedy):
            if inspect.isclass(entry):
                method: Any = entry(self.plan, **self.settings.arguments)  # type: ignore[call-arg]
                return self.train(method)
            return entry(self, **self.settings.arguments)

    def _position(self) -> int:
        """Number of stages up to now, as if all of the recipe's were new: what seeds depend on."""
        return BEFORE_RECIPE + self._numbers.total()

    def train(
        self,
        method: Method,
        labels: Mapping[str, Path] | None = None,
        annotated: Mapping[str, Sequence[bool]] | None = None,
        draws: int = 0,
    ) -> Method:
        """The stage "train": train a method on the training cases.

        Before it comes the stage "maps", where the method asks for some.

        Args:
            method: What is trained, in place.
            labels: Label of each case as .npy on the cache's grid, by name, where it is not the
                case's own.
            annotated: Which classes those labels know, by case, where that differs from the data
                set.
            draws: Picks another sequence of batches, so that models of a vote see different ones.

        Returns:
            The same method, trained, in evaluation mode.

        Raises:
            ContextsegError: Fewer items in a batch than ranks, and their Dice is pooled.
        """
        settings = self.settings
        labels = labels or {}
        if self.plan.batch_dice and ranks()[1] > self.plan.batch_size:
            what = f"{self.plan.batch_size} items for {ranks()[1]} processes, whose Dice is pooled"
            remedy = f"raise it to {ranks()[1]}, or --set batch_dice=false"
            raise ContextsegError("batch_size", what, remedy)
        labelled = sum(bool(case.label) or case.name in labels for case in self.split[0])
        method.visits_per_step = (self.plan.batch_size - method.unlabelled) / max(1, labelled)
        maps = self._maps(method.maps, labels) if method.maps else {}
        if self._only_finished and (stopped := self._stopped(method)):
            return stopped

        def sources(steps: int) -> tuple[BatchSource, BatchSource | None]:
            return self.samplers(self.split, method, labels, annotated or {}, maps, draws, steps)

        def work(folder: Path, progress: Progress) -> None:
            if (folder / "checkpoint.pt").exists():
                self._warn(other_threads(self.folder, self._device()))
            else:
                self._initialise(method, folder)
            length = self._length(method, folder, sources)
            lr = method.settle(length.first, settings.training.lr)
            if self.progress_bar is not no_progress_bar:
                say(training_line(method, lr, self._device(), length.steps))
            sampler, check_sampler = sources(length.steps)
            punctuality = Punctuality(length, self.work_time)

            def show(done: int, of: int, values: dict[str, float]) -> None:
                """Show how far it is, and say once that it will be late.

                Args:
                    done: Steps done.
                    of: Steps in all.
                    values: The terms of the loss, by name.
                """
                progress(done, of, values)
                self._warn(filter(None, [punctuality.late(done)]))

            ending = train(
                method,
                sampler.batch,
                folder,
                replace(settings.training, steps=length.steps, time_s=0, lr=lr),
                batch_size=self.plan.batch_size,
                seed=settings.seed + 7919 * self._position(),
                check_at=check_sampler.batch if check_sampler else None,
                progress=show,
                until=length.until,
                since=length.before[-1][1] if length.before else 0,
            )
            if ranks()[0] == 0 and ending.why:
                length = length.ended(ending.step, ending.why)
                length.save(folder)
                self._warn([f"{folder.name} {length}"], lead="")

        folder = self.stage("train", work, together=True)
        length = Length.load(folder)
        self.ended_early = bool(length and length.why == "finish")
        device = self._device()
        weights = read_tensors(folder / "model.pt", _TRAIN_AGAIN, device)
        with damage_named(folder / "model.pt", _TRAIN_AGAIN, "not the weights of this run"):
            method.load_state_dict(weights)
        # What a recipe makes next does not depend on whether this stage was resumed.
        torch.manual_seed(settings.seed + 104_729 * self._position())
        return method.to(device).eval()

    def _length(
        self, method: Method, folder: Path, sources: Callable[[int], tuple[BatchSource, Any]]
    ) -> Length:
        """The length of a training, chosen and written down before its first step."""

        def choose() -> Length:
            number = self._numbers["train"]
            length = choose_length(self, method, number, sources, self._device())
            if length.measured:
                self._warn([chosen_line(folder.name, length)], lead="")
            return length

        return kept_length(folder, choose)

    def _stopped(self, method: Method) -> Method | None:
        """The next training's method as a checkpoint has it that is not the end; None for none."""
        folder = self.stage_folder(f"train-{self._numbers['train'] + 1}")
        if (folder / "done.json").exists() or not (folder / "checkpoint.pt").exists():
            return None
        self._numbers["train"] += 1
        self.ended_early = True
        say(load_stopped(method, folder))
        return method.to(self._device()).eval()

    def _initialise(self, method: Method, folder: Path) -> None:
        """Load the method's start weights; `weights.json` lists what was loaded and skipped."""
        method.initialise()
        if method.weights_report is not None and ranks()[0] == 0:
            write_json(folder / "weights.json", method.weights_report)

    @torch.no_grad()
    def relabel(self, fill: Fill) -> dict[str, Path]:
        """The stage "relabel": labels with fewer `IGNORE` for the training cases.

        What an annotator labelled is kept, whatever `fill` returns.

        Args:
            fill: (image (1, C, *S), label (1, *S)) to a label (1, *S).

        Returns:
            Case name to .npy, on the cache's grid.
        """

        def one(case: Cached) -> np.ndarray:
            annotated = annotated_label(case)
            image = torch.from_numpy(self.image(case))[None]
            label = torch.from_numpy(annotated).long()[None]
            filled = fill(image, label)[0].cpu().numpy().astype(np.int16)
            return np.where(annotated == IGNORE, filled, annotated)

        return self.arrays("relabel", self.split[0], one)

    def _maps(self, of: Maps, labels: Mapping[str, Path]) -> dict[str, Path]:
        """The stage "maps": what a method asks to know of each voxel of each labelled case."""
        cases = [case for part in self.split for case in part if case.label or case.name in labels]

        def one(case: Cached) -> np.ndarray:
            path = labels.get(case.record.name)
            label = np.array(annotated_label(case) if path is None else load_array(path, _AGAIN))
            label[label >= len(self.plan.classes)] = 0  # a context class
            return of(label, self.plan.spacing_mm)

        return self.arrays("maps", cases, one)
