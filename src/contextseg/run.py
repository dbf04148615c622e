"""A run is a folder of numbered stages. A finished stage is never done again; a killed one goes on where it was.

    run.json       what was asked (`Settings`), and where it came from: versions, machine, digests of the data
    plan.json      the plan
    01-check  02-plan  03-preprocess  04-train  ...       each with done.json: seconds and peak memory

A recipe receives the run and uses its three verbs: `train`, `relabel`, `predict`. Loading a model is running its
finished recipe again, in which nothing is left to do: no object is pickled.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from contextseg.batch import IGNORE
from contextseg.data.augment import Augmentation
from contextseg.data.cache import Cached, fingerprint, load_record, preprocess
from contextseg.data.check import check
from contextseg.data.layouts import Case, Dataset, folds, open_dataset
from contextseg.data.plan import Facts, Plan, make_plan
from contextseg.data.roi import restricted
from contextseg.data.sampling import Sampler
from contextseg.disk import Problem, changes, read_json, replacing, write_json, writing
from contextseg.methods import METHODS, Method
from contextseg.methods.base import Maps
from contextseg.predict import sliding_window
from contextseg.provenance import PeakMemory, provenance
from contextseg.ranks import ranks
from contextseg.scan import predict_scan, windows
from contextseg.settings import Settings
from contextseg.train import pick_device, train
from contextseg.volume import Volume

Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Watch(Protocol):
    """Who is told how far a stage is: `with watch("04-train") as tell: tell(done, of, {"seg": 0.4})`."""

    def __call__(self, title: str, done: bool = False) -> Any: ...  # noqa: D102


@contextmanager
def quiet(title: str, done: bool = False) -> Iterator[Callable[..., None]]:
    """A `Watch` that says nothing."""
    yield lambda *_: None


class Run:
    """One training of one method on one data set, in `folder`.

    Raises `Problem` if `folder` holds a run with other settings, and names what differs.
    """

    def __init__(self, folder: str | Path, settings: Settings, watch: Watch = quiet) -> None:
        self.folder, self.settings, self.watch = Path(folder), settings, watch
        self.count = 0
        self.only_finished = False
        known = self.folder / "run.json"
        if known.exists():
            _same(Settings.from_json(read_json(known)["settings"]).to_json(), settings.to_json(), self.folder)
        elif ranks()[0] == 0:
            write_json(known, {"settings": settings.to_json(), "provenance": provenance()})

    @staticmethod
    def open(folder: str | Path, watch: Watch = quiet) -> Run:
        """The run in a folder, as it was asked for. Raises `Problem` if there is none."""
        path = Path(folder) / "run.json"
        if not path.exists():
            raise Problem(folder, "there is no run in this folder", "give the --output folder of `contextseg train`")
        return Run(folder, Settings.from_json(read_json(path)["settings"]), watch)

    # --- stages -----------------------------------------------------------------------------------------------------

    def stage(self, name: str, work: Callable[[Path, Callable[..., None]], None], together: bool = False) -> Path:
        """Do `work(folder, tell)` unless it is done; the stage's folder. On several ranks the first one works alone,
        unless they work `together`.
        """
        self.count += 1
        title = f"{self.count:02d}-{name}"
        folder = self.folder / title
        rank, world = ranks()
        done = (folder / "done.json").exists()
        if self.only_finished and not done:
            raise Problem(folder, "this stage is not finished", "give `contextseg train` the same --output; it goes on")
        if world > 1:
            dist.barrier()
        with self.watch(title, done) as tell:
            if not done and (together or rank == 0):
                with writing(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                started = time.monotonic()
                memory = PeakMemory()
                work(folder, tell)
                if rank == 0:
                    seconds = round(time.monotonic() - started, 2)
                    write_json(folder / "done.json", {"seconds": seconds, **memory.costs()})
        if world > 1:
            dist.barrier()
        return folder

    def stages(self) -> list[dict[str, Any]]:
        """What each finished stage took: name, seconds, peak_mb."""
        done = sorted(self.folder.glob("[0-9][0-9]-*/done.json"))
        return [{"name": path.parent.name, **read_json(path)} for path in done]

    # --- from scans to preprocessed cases ---------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, opened."""
        return restricted(open_dataset(self.settings.dataset), self.settings.roi)

    @cached_property
    def split(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training cases, validation cases); of the first, only `Settings.labelled` still have labels.

        The folds are those of all labels, so that fewer labels are validated on the same cases.
        """
        training, validation = folds(self.dataset, self.settings.fold)
        return _hide_labels(training, self.settings.labelled), validation

    @cached_property
    def plan(self) -> Plan:
        """The plan. Raises `Problem` if the plan stage is not done."""
        return Plan.load(self.folder / "plan.json")

    def check(self) -> None:
        """The stage "check": every problem of the data set, in `findings.json`; errors end the run.

        Raises `Problem` that names the first errors.
        """

        def work(folder: Path, tell: Callable[..., None]) -> None:
            findings = check(self.settings.dataset, progress=tell, roi=self.settings.roi)
            write_json(folder / "findings.json", [asdict(finding) for finding in findings])
            errors = [f for f in findings if f.level == "error"]
            if errors:
                more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
                remedy = f"{errors[0].remedy}; `contextseg check {self.settings.dataset}` lists every problem"
                raise Problem(errors[0].where, errors[0].what + more, remedy)

        self.stage("check", work)

    def use_plan(self, plan: Plan) -> None:
        """Plan with this one, not by the rules. Raises `Problem` if the run has another one already."""
        path = self.folder / "plan.json"
        if path.exists():
            if Plan.load(path) != plan:
                raise Problem(path, "this run has another plan", "choose another --output folder")
        elif ranks()[0] == 0:
            plan.save(path)

    def make_plan(self) -> None:
        """The stage "plan": facts of the cases, then `plan.json`; a plan that is there is kept as it is.

        Sizes and spacings are those of all cases but the test split's, so that the folds can be an ensemble;
        intensities under the labels are those of the fold's training cases alone.
        """

        def work(folder: Path, tell: Callable[..., None]) -> None:
            taught = {case.name: case for case in self.split[0]}
            cases = [taught.get(case.name, case) for case in self.dataset.train]
            facts = fingerprint(self.dataset, cases, workers=_workers(), progress=tell)
            write_json(
                folder / "fingerprint.json", [{**asdict(f), "roi": len(f.roi[0]) if f.roi else 0} for f in facts]
            )
            facts = [f if f.name in taught else replace(f, roi=()) for f in facts]  # one geometry for all folds
            if not (self.folder / "plan.json").exists():
                planned(self.dataset, facts, self.settings.planning).save(self.folder / "plan.json")

        self.stage("plan", work)

    def preprocess(self) -> None:
        """The stage "preprocess": every training and validation case into the folder "cache", which runs may share."""

        def work(folder: Path, tell: Callable[..., None]) -> None:
            cases = [*self.split[0], *self.split[1]]
            cached = preprocess(
                self.dataset, cases, self.plan, self.folder / "cache", workers=_workers(), progress=tell
            )
            rows = {c.record.name: [c.folder.name, c.annotated, c.labelled] for c in cached}
            write_json(folder / "cases.json", rows)

        self.stage("preprocess", work)

    def cached(self, cases: Sequence[Case]) -> list[Cached]:
        """Those cases, preprocessed. Raises `Problem` if the stage "preprocess" is not done."""
        cache = self.folder / "cache"
        rows = read_json(next(self.folder.glob("*-preprocess/cases.json"), self.folder / "cases.json"))
        found = []
        for case in cases:
            name, annotated, labelled = rows[case.name]
            found.append(Cached(cache / name, load_record(cache / name / "record.json"), tuple(annotated), labelled))
        return found

    # --- the three verbs --------------------------------------------------------------------------------------------

    def finished(self) -> Method:
        """The method that this run ended with. Raises `Problem` if it is not finished."""
        self.count, self.only_finished = 3, True  # after check, plan and preprocess
        return self.fit()

    def fit(self) -> Method:
        """Run the method's recipe; the method to deploy, in evaluation mode."""
        torch.manual_seed(self.settings.seed)
        entry: Callable[..., Method] = METHODS[self.settings.method]
        if inspect.isclass(entry):
            made: Any = entry(self.plan, **self.settings.arguments)  # type: ignore[call-arg]
            return self.train(made)
        return entry(self, **self.settings.arguments)

    def train(
        self,
        method: Method,
        labels: Mapping[str, Path] | None = None,
        annotated: Mapping[str, Sequence[bool]] | None = None,
        draws: int = 0,
    ) -> Method:
        """The stage "train": teach `method` on the training cases, with `labels` in place of their own where given.

        `annotated` says which classes those labels know, by case, where that differs from the data set. `draws` picks
        another sequence of batches, so that the models of a vote need not see the same one. Before it comes the stage
        "maps", where the method asks for some.
        """
        settings, labels = self.settings, labels or {}
        if self.plan.batch_dice and ranks()[1] > self.plan.batch_size:
            what = f"{self.plan.batch_size} items for {ranks()[1]} processes, and their Dice is pooled"
            raise Problem("batch_size", what, f"raise it to {ranks()[1]}, or --set batch_dice=false")
        maps = self._maps(method.maps, labels) if method.maps else {}

        def work(folder: Path, tell: Callable[..., None]) -> None:
            training, validation = self.split
            more = (settings.augmentation, labels, method.unlabelled, maps, annotated or {})
            taught = self.cached(training)
            seed = settings.seed + 999_983 * draws
            own = method.sampler(taught, self.plan, seed, settings.augmentation, settings.training.steps)
            sampler = own or Sampler(taught, self.plan, seed, *more)
            looked_at = [] if own else [case for case in validation if case.label]
            still = (Augmentation(strength=0), labels, 0, maps, annotated or {})
            check = Sampler(self.cached(looked_at), self.plan, 1 + settings.seed, *still) if looked_at else None
            train(
                method,
                sampler.batch,
                folder,
                settings.training,
                batch_size=self.plan.batch_size,
                seed=settings.seed + 7919 * self.count,
                check_at=check.batch if check else None,
                progress=tell,
            )

        folder = self.stage("train", work, together=True)
        device = pick_device(settings.training.device)
        method.load_state_dict(torch.load(folder / "model.pt", map_location=device, weights_only=True))
        torch.manual_seed(settings.seed + 104_729 * self.count)  # what a recipe makes next does not depend on a resume
        return method.to(device).eval()

    @torch.no_grad()
    def relabel(self, fill: Fill) -> dict[str, Path]:
        """The stage "relabel": labels with less `IGNORE` for the training cases, name to .npy on the cache's grid.

        `fill(image (1, C, *S), label (1, *S)) -> label`. What an annotator said is kept, whatever it returns.
        """

        def one(case: Cached) -> np.ndarray:
            said = _said(case)
            image, label = torch.from_numpy(self.image(case))[None], torch.from_numpy(said).long()[None]
            return np.where(said == IGNORE, fill(image, label)[0].cpu().numpy().astype(np.int16), said)

        return self.arrays("relabel", self.split[0], one)

    def arrays(self, name: str, cases: Sequence[Case], make: Callable[[Cached], np.ndarray]) -> dict[str, Path]:
        """The stage `name`: an array for each case, on the cache's grid; case name to .npy. A killed one goes on."""

        def work(folder: Path, tell: Callable[..., None]) -> None:
            for i, case in enumerate(found := self.cached(cases)):
                path = folder / f"{case.record.name}.npy"
                if not path.exists():
                    array = make(case)
                    with replacing(path) as temporary, open(temporary, "wb") as file:
                        np.save(file, array)
                tell(i + 1, len(found))

        folder = self.stage(name, work)
        return {path.stem: path for path in sorted(folder.glob("*.npy"))}

    def image(self, case: Cached) -> np.ndarray:
        """The whole normalised image of a case, (C, *S) float32."""
        return case.patch(tuple(slice(0, n) for n in case.image.shape[1:]), self.plan.channels)

    def logits(self, case: Cached, method: Method) -> Iterator[tuple[int, int, torch.Tensor]]:
        """What `method` says of a preprocessed case, by sliding window, on the cache's grid: slabs that follow one
        another along D, `(start, stop, logits (K, stop - start, H, W))`.
        """
        keywords = windows(method, self.plan, self.settings.prediction)
        return sliding_window(method.eval().predict, self.image(case), self.plan.patch_vox, **keywords)

    def _maps(self, of: Maps, labels: Mapping[str, Path]) -> dict[str, Path]:
        """The stage "maps": what a method asked to be told of each voxel, for every case with a label."""
        taught = [case for part in self.split for case in part if case.label or case.name in labels]

        def one(case: Cached) -> np.ndarray:
            path = labels.get(case.record.name)
            label = np.array(_said(case) if path is None else np.load(path))
            label[label >= len(self.plan.classes)] = 0  # a context class
            return of(label, self.plan.spacing_mm)

        return self.arrays("maps", taught, one)

    def predict(self, scan: Volume, method: Method, name: str = "") -> Volume:
        """Segment one scan on its own grid, in the label files' values."""
        return predict_scan(scan, [(method, self.plan)], self.settings.prediction, name)


def _said(case: Cached) -> np.ndarray:
    """What an annotator said of a case, (*S) int16: all `IGNORE` without a label."""
    return np.full(case.image.shape[1:], IGNORE, np.int16) if case.label is None else np.array(case.label)


def planned(dataset: Dataset, facts: Sequence[Facts], arguments: Mapping[str, Any]) -> Plan:
    """The plan for a data set from the facts of its training cases; `arguments` are those of `make_plan`."""
    data = dataset
    return make_plan(data.name, data.classes, data.values, data.regions, data.channels, facts, **arguments)


def _hide_labels(cases: Sequence[Case], keep: Sequence[str] | None) -> tuple[Case, ...]:
    """The cases, those not in `keep` (None: all are) as if nobody had labelled them."""
    if keep is None:
        return tuple(cases)
    strange = sorted(set(keep) - {case.name for case in cases if case.label})
    if strange:
        what = f"no labelled training cases: {', '.join(strange[:5])}"
        raise Problem("labelled", what, "name cases that have labels and are not validated on")
    return tuple(case if case.name in keep else replace(case, label=None, annotated=None) for case in cases)


def _same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Raise `Problem` unless both settings are equal, but for where they run."""

    def flat(settings: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in settings.items():
            out |= flat(value, f"{lead}{name}.") if isinstance(value, dict) else {lead + name: value}
        return out

    old, new = flat(before), flat(now)
    anywhere = {"dataset", "training.device", "training.tensorboard", "training.save_every"}
    if what := changes(old, new, anywhere):
        raise Problem(folder, f"this folder holds a run with other settings ({what})", "choose another --output folder")


def _workers() -> int:
    return min(4, os.cpu_count() or 1)
