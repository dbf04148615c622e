"""A run is a folder of named stages: a finished stage is never done again, a killed one goes on.

    run.json                         the settings, and where they come from: versions, machine, date
    plan.json                        the plan
    check/ plan/ preprocess/         each stage with done.json: seconds and peak memory
    train-1/ relabel-1/ train-2/     the stages of the method's recipe, numbered by kind
    predict/ evaluate/ report/       what `pipeline.run_pipeline` adds

A recipe receives the run and uses its verbs: `train`, `relabel`, `arrays`, `logits`. Loading a
model is running its finished recipe again, in which nothing is left to do: no object is pickled.
Runs of version 0.1.0, whose stages are called `01-check`, `02-plan` and so on, open as they are.
"""

from __future__ import annotations

import inspect
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from contextseg.batch import IGNORE
from contextseg.console import Progress, ProgressBar, no_progress_bar, say
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached, fingerprint, load_record, preprocess
from contextseg.data.check import check, raise_errors
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.plan import Facts, Plan, make_plan
from contextseg.data.roi import hide_labels, restricted
from contextseg.data.sampling import Sampler
from contextseg.disk import changes, read_json, replacing, write_json, writing
from contextseg.errors import ContextsegError
from contextseg.methods import METHODS, Method
from contextseg.methods.base import BatchSource, Maps
from contextseg.nnunet import holds_model, is_nnunet_model, open_nnunet
from contextseg.parallel import default_workers
from contextseg.predict import sliding_window
from contextseg.predictor import Member, Predictor, sliding_window_arguments
from contextseg.provenance import PeakMemory, provenance
from contextseg.ranks import ranks
from contextseg.settings import Settings
from contextseg.training import pick_device, train

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(image (1, C, *S), label (1, *S)) to a label (1, *S) with fewer `IGNORE`."""

Split = tuple[tuple[Case, ...], tuple[Case, ...]]
"""(training cases, validation cases)."""

PIPELINE = ("check", "plan", "preprocess", "predict", "evaluate", "report")
"""Stages that every run has once; all others belong to its recipe and are numbered."""

BEFORE_RECIPE = 3
"""Stages before a recipe: check, plan, preprocess. The seeds of a recipe's stages count them."""


class Run:
    """One training of one method on one data set, in a folder.

    Args:
        folder: Where everything of the run lies; made if it is not there.
        settings: What the run is. A folder that holds a run with other settings is refused.
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
        self.folder = Path(folder)
        self.settings = settings
        self.progress_bar = progress_bar
        self._cases = cases
        self._only_finished = False
        self._numbers: Counter[str] = Counter()
        known = self.folder / "run.json"
        if known.exists():
            before = Settings.from_json(read_json(known)["settings"])
            _same(before.to_json(), settings.to_json(), self.folder)
        elif ranks()[0] == 0:
            write_json(known, {"settings": settings.to_json(), "provenance": provenance()})

    @staticmethod
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
            remedy = "give the --output folder of `contextseg train`"
            raise ContextsegError(folder, "there is no run in this folder", remedy)
        return Run(folder, Settings.from_json(read_json(path)["settings"]), progress_bar)

    def __repr__(self) -> str:
        done = [stage["name"] for stage in self.stages()]
        last = done[-1] if done else "nothing"
        return f"Run({str(self.folder)!r}, method={self.settings.method!r}, last stage: {last})"

    # --- stages -----------------------------------------------------------------------------------

    def stage(
        self, name: str, work: Callable[[Path, Progress], None], together: bool = False
    ) -> Path:
        """Do a stage, unless it is done.

        The stages of `PIPELINE` are there once. Those of a recipe are numbered by their kind,
        `train-1`, `train-2`, from 1 each time the recipe runs: so a stage has one name in every
        process, however often it is asked for.

        Args:
            name: One of `PIPELINE`, or the kind of a stage of the recipe.
            work: Called with the stage's folder and its `Progress`.
            together: Whether all ranks work on it; else the first one works alone.

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
        if world > 1:
            dist.barrier()
        with self.progress_bar(title, done) as progress:
            if not done and (together or rank == 0):
                self._work(folder, work, progress)
        if world > 1:
            dist.barrier()
        return folder

    def _work(
        self, folder: Path, work: Callable[[Path, Progress], None], progress: Progress
    ) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        memory = PeakMemory()
        work(folder, progress)
        if ranks()[0] == 0:
            seconds = round(time.monotonic() - started, 2)
            costs = {"seconds": seconds, **memory.costs(), "position": len(self.stages()) + 1}
            write_json(folder / "done.json", costs)

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
        for path in self.folder.glob("*/done.json"):
            content = read_json(path)
            old = re.match(r"(\d\d)-", path.parent.name)
            position = content.pop("position", int(old[1]) if old else 0)
            costs.append((position, {"name": path.parent.name, **content}))
        return [cost for _, cost in sorted(costs, key=lambda item: (item[0], item[1]["name"]))]

    # --- from scans to preprocessed cases ---------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened."""
        return restricted(open_dataset(self.settings.dataset), self.settings.roi)

    @cached_property
    def split(self) -> Split:
        """(training cases, validation cases); of the first, only `Settings.labelled` keep labels.

        The folds are those of all labels, so that fewer labels are validated on the same cases.
        """
        if self._cases is not None:
            return self._cases
        training, validation = folds(self.dataset, self.settings.fold)
        return hide_labels(training, self.settings.labelled), validation

    @cached_property
    def plan(self) -> Plan:
        """The plan. Raises `ContextsegError` if the plan stage is not done."""
        return Plan.load(self.folder / "plan.json")

    def check(self) -> None:
        """The stage "check": every problem of the data set, in `findings.json`.

        Files that the settings name are looked for here, before hours of work.

        Raises:
            ContextsegError: The data set has errors, of which the message names the first, or a
                file of start weights is not there.
        """
        for name in ("weights", "second_weights"):
            path = self.settings.arguments.get(name)
            if path and not self.done("train-1") and not Path(path).is_file():
                what = "there is no such file of weights"
                raise ContextsegError(f"--set {name}={path}", what, "check the path")

        def work(folder: Path, progress: Progress) -> None:
            findings = check(self.settings.dataset, progress=progress, roi=self.settings.roi)
            write_json(folder / "findings.json", [asdict(finding) for finding in findings])
            raise_errors(findings, self.settings.dataset)

        self.stage("check", work)

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
            training = {case.name: case for case in self.split[0]}
            cases = [training.get(case.name, case) for case in self.dataset.train]
            facts = fingerprint(self.dataset, cases, workers=default_workers(), progress=progress)
            rows = [{**asdict(f), "roi": len(f.roi[0]) if f.roi else 0} for f in facts]
            write_json(folder / "fingerprint.json", rows)
            facts = [f if f.name in training else replace(f, roi=()) for f in facts]
            if not (self.folder / "plan.json").exists():
                plan = planned(self.dataset, facts, self.settings.planning)
                plan.save(self.folder / "plan.json")

        self.stage("plan", work)

    def preprocess(self) -> None:
        """The stage "preprocess": every training and validation case into the folder "cache".

        Runs of one data set may share the cache.
        """

        def work(folder: Path, progress: Progress) -> None:
            cases = [*self.split[0], *self.split[1]]
            cached = preprocess(
                self.dataset,
                cases,
                self.plan,
                self.folder / "cache",
                workers=default_workers(),
                progress=progress,
            )
            rows = {c.record.name: [c.folder.name, c.annotated, c.labelled] for c in cached}
            write_json(folder / "cases.json", rows)

        self.stage("preprocess", work)

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
        rows = read_json(self.stage_folder("preprocess") / "cases.json")
        cached = []
        for case in cases:
            name, annotated, labelled = rows[case.name]
            record = load_record(cache / name / "record.json")
            cached.append(Cached(cache / name, record, tuple(annotated), labelled))
        return cached

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
        return Predictor([Member(self.finished(), self.plan)], self.settings.prediction)

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
        maps = self._maps(method.maps, labels) if method.maps else {}

        def work(folder: Path, progress: Progress) -> None:
            if not (folder / "checkpoint.pt").exists():
                self._initialise(method, folder)
            sampler, check_sampler = self._samplers(method, labels, annotated or {}, maps, draws)
            train(
                method,
                sampler.batch,
                folder,
                settings.training,
                batch_size=self.plan.batch_size,
                seed=settings.seed + 7919 * self._position(),
                check_at=check_sampler.batch if check_sampler else None,
                progress=progress,
            )

        folder = self.stage("train", work, together=True)
        device = self._device()
        weights = torch.load(folder / "model.pt", map_location=device, weights_only=True)
        method.load_state_dict(weights)
        # What a recipe makes next does not depend on whether this stage was resumed.
        torch.manual_seed(settings.seed + 104_729 * self._position())
        return method.to(device).eval()

    def _initialise(self, method: Method, folder: Path) -> None:
        """Load the method's start weights; `weights.json` lists what was loaded and skipped."""
        method.initialise()
        if method.weights_report is not None and ranks()[0] == 0:
            write_json(folder / "weights.json", method.weights_report)

    def _samplers(
        self,
        method: Method,
        labels: Mapping[str, Path],
        annotated: Mapping[str, Sequence[bool]],
        maps: Mapping[str, Path],
        draws: int,
    ) -> tuple[BatchSource, Sampler | None]:
        """What draws the training batches, and the validation batches where there are some."""
        settings = self.settings
        training, validation = self.split
        cached = self.cached(training)
        seed = settings.seed + 999_983 * draws
        steps = settings.training.steps
        own = method.sampler(cached, self.plan, seed, settings.augmentation, steps)
        if own:
            return own, None
        sampler = Sampler(
            cached,
            self.plan,
            seed,
            settings.augmentation,
            labels,
            method.unlabelled,
            maps,
            annotated,
        )
        validated = [case for case in validation if case.label]
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
            annotated = _annotated_label(case)
            image = torch.from_numpy(self.image(case))[None]
            label = torch.from_numpy(annotated).long()[None]
            filled = fill(image, label)[0].cpu().numpy().astype(np.int16)
            return np.where(annotated == IGNORE, filled, annotated)

        return self.arrays("relabel", self.split[0], one)

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
        return {path.stem: path for path in sorted(folder.glob("*.npy"))}

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
        return sliding_window(predict, self.image(case), self.plan.patch_vox, **keywords)

    def _maps(self, of: Maps, labels: Mapping[str, Path]) -> dict[str, Path]:
        """The stage "maps": what a method asks to know of each voxel of each labelled case."""
        cases = [case for part in self.split for case in part if case.label or case.name in labels]

        def one(case: Cached) -> np.ndarray:
            path = labels.get(case.record.name)
            label = np.array(_annotated_label(case) if path is None else np.load(path))
            label[label >= len(self.plan.classes)] = 0  # a context class
            return of(label, self.plan.spacing_mm)

        return self.arrays("maps", cases, one)


def _annotated_label(case: Cached) -> np.ndarray:
    """What annotators labelled of a case, (*S) int16: all `IGNORE` without a label."""
    if case.label is None:
        return np.full(case.image.shape[1:], IGNORE, np.int16)
    return np.array(case.label)


def planned(dataset: Dataset, facts: Sequence[Facts], arguments: Mapping[str, Any]) -> Plan:
    """The plan for a data set.

    Args:
        dataset: The data set.
        facts: Facts of its training cases, see `data.cache.fingerprint`.
        arguments: Arguments of `make_plan`, by name.

    Returns:
        The plan, with the colours of the classes where labels have some.
    """
    data = dataset
    plan = make_plan(
        data.name, data.classes, data.values, data.regions, data.channels, facts, **arguments
    )
    return replace(plan, colours=data.colours, terminology=data.terminology)


def _same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `ContextsegError` unless both settings are equal, but for where they run."""

    def flat(settings: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in settings.items():
            out |= (
                flat(value, f"{lead}{name}.") if isinstance(value, dict) else {lead + name: value}
            )
        return out

    old, new = flat(before), flat(now)
    anywhere = {"dataset", "training.device", "training.tensorboard", "training.save_every"}
    if what := changes(old, new, anywhere):
        raise ContextsegError(
            folder,
            f"this folder holds a run with other settings ({what})",
            "choose another --output folder",
        )
