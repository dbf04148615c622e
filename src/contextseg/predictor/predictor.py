"""Trained networks, ready to segment scans: the dear part once, the cheap part often."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.console import Progress, ProgressBar, no_progress_bar
from contextseg.data.components import Change, added, keep_largest, keep_largest_of
from contextseg.data.layouts import Case
from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.nnunet_prepare import logit_slices
from contextseg.data.normalised import NormalisedScan, normalised_scan, prepared_scan, whole_image
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import (
    Prepared,
    Record,
    normalise,
    undo,
)
from contextseg.disk import digest, lock_folder
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.evaluation.efficiency import Efficiency
from contextseg.interop.names import describe_folder
from contextseg.interop.segments import Segment, class_segments
from contextseg.methods import Method
from contextseg.methods.presence import head_of, presence_flags
from contextseg.predict import STEPS, ProbabilityStore, segment
from contextseg.predict.record import PredictionRecord, gathered, weights_digest
from contextseg.predictor.fitting import check_scan_memory, sliding_window_arguments
from contextseg.predictor.folder import (
    NO_EXTRAS,
    Extras,
    cases_to_segment,
    part_of,
    raise_failed,
    segment_missing,
    write_prediction,
)
from contextseg.predictor.segmentation import Probabilities, Segmentation
from contextseg.predictor.statistics import write_statistics
from contextseg.settings import PredictionSettings
from contextseg.volume import Volume, as_volume, read

ALIKE = ("classes", "values")
"""What the plans of an ensemble share."""

GRID = ("orientation", "spacing_mm", "patch_vox", "native")
"""What those members share whose logits are averaged; of the others the probabilities are."""

NNUNET_GRID = (
    *GRID,
    *("channels", "transpose", "reoriented", "masked", "data_orders", "logit_orders", "separate"),
)
"""The same for nnU-Net's models, each of which prepares scans by rules of its own."""


@dataclass(frozen=True)
class Member:
    """A trained method, and the plan that it was trained with.

    Attributes:
        method: In evaluation mode, on the device that predicts.
        plan: Spacing, patch, normalisation and classes.
    """

    method: Method
    plan: Plan


@dataclass
class Predictor:
    """One trained method or an ensemble of several, and how they are applied to a scan.

    The logits of an ensemble are averaged where the members see the scan on one grid in patches of
    one size. Of others, such as a 2-D with a 3-D network, or two spacings, the probabilities on the
    scan's own grid are averaged, each member counting once. `contextseg.load` makes a predictor
    from the folders of finished runs.

    Args:
        members: Trained methods with their plans; one or more.
        settings: Step of the sliding window, mirroring, post-processing, confidence.
        largest_validated: Classes for which keeping the largest connected part alone was better on
            validation cases, see `PredictionSettings.largest_by_validation`.

    Raises:
        ContextsegError: No member, one with other classes or channels, or one that fills a scan
            from labelled slices and cannot predict without them.
    """

    members: Sequence[Member]
    settings: PredictionSettings = field(default_factory=PredictionSettings)
    largest_validated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ContextsegError("predictor", "no trained method", "give one or more")
        for member in self.members:
            if member.method.guided:
                what = "it fills a scan from labelled slices, and cannot predict one without"
                raise ContextsegError("predictor", what, "use `contextseg propagate --model RUN`")
            if isinstance(member.plan, NNUNetPlan) != isinstance(self.plan, NNUNetPlan):
                what = "models of nnU-Net's and of ours, which see scans prepared in other ways"
                raise ContextsegError("predictor", what, "predict with each on its own")
            for name in ALIKE:
                if getattr(member.plan, name) != getattr(self.plan, name):
                    what = f"plans of an ensemble that differ in {name}"
                    raise ContextsegError("predictor", what, "predict with each on its own")
            if len(member.plan.scanned) != len(self.plan.scanned):
                what = "members of an ensemble that take scans of other channels"
                raise ContextsegError("predictor", what, "predict with each on its own")

    @property
    def plan(self) -> Plan:
        """The plan of the first member."""
        return self.members[0].plan

    @property
    def classes(self) -> dict[str, int]:
        """Value of each class in predicted label maps, by name, without the background."""
        return dict(zip(self.plan.classes[1:], self.plan.values[1:]))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The classes, with the colours and terminology of the training labels."""
        return plan_segments(self.plan)

    @property
    def largest_of(self) -> tuple[str, ...]:
        """The classes of which only the largest connected part each is kept."""
        by_validation = self.largest_validated if self.settings.largest_by_validation else ()
        return self.settings.largest_of or by_validation

    def made_by(self) -> dict[str, Any]:
        """What its label maps depend on, as JSON content: models and settings by name."""
        settings = asdict(self.settings)
        # How many patches go at once changes no label map; who chose `largest_of` neither.
        for name in ("windows", "memory_gb", "largest_by_validation"):
            del settings[name]
        settings["largest_of"] = self.largest_of
        if not settings["largest_of"]:  # folders of older versions do not have it
            del settings["largest_of"]
        models = [model_name(member.method, member.plan) for member in self.members]
        return json.loads(json.dumps({"models": models, **settings}))

    def predict(
        self,
        scan: Any,
        spacing_mm: Sequence[float] | None = None,
        *,
        name: str = "",
        series: str = "",
        classes: Sequence[str] = (),
        probabilities: bool = False,
        contexts: bool = False,
        workspace: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one scan, on its own grid.

        Args:
            scan: A file or DICOM folder, a list of them for several channels, a `Volume`, a
                SimpleITK image, a nibabel image, or an array (D, H, W) or (C, D, H, W).
            spacing_mm: Voxel size along D, H and W in millimetres; for an array, and only there.
            name: Name of the case, for messages and the result.
            series: Which series of a DICOM folder, see `contextseg.read`. "" for the only one.
            classes: Which classes the label map holds; where another one wins, it is background.
                () for all.
            probabilities: Keep the probability of every class, on the disk.
            contexts: Keep the context classes of a CoLab or context method, in a second pass.
            workspace: Folder with room for probabilities while they are made: two bytes for each
                voxel and class. None for the system's folder of temporary files.
            progress: Called with (patches done, patches in all).

        Returns:
            The label map in the values of the training labels, and what the settings ask for.
            Outside the body, which no network sees, the label is background and confidence 255.

        Raises:
            ContextsegError: The scan cannot be read, has another number of channels than the
                training scans, a shape that is no scan, or needs more memory than there is; a
                class that does not exist; or context classes of what has none.
        """
        self.check_classes(classes)
        volume = scan_of(scan, spacing_mm, series)
        check_scan_memory(volume, self.plan, self.settings, name)
        groups = self._groups()
        keep = workspace or "" if probabilities or len(groups) > 1 else None
        parts = [self._part(group, volume, name, keep, progress) for group in groups]
        everything = None
        if keep is not None:
            stores = [(p.store, p.record, float(len(g))) for p, g in zip(parts, groups) if p.store]
            everything = Probabilities(parts[0].label, self.plan.classes, stores)
        whole, confidence = parts[0].label, parts[0].confidence
        if everything is not None and len(groups) > 1:
            whole, confidence = self._winner(everything)
        kept, removed = self._postprocessed(whole)
        if confidence is not None:
            confidence = _changed_confidence(confidence, whole, kept)
        flags = presence_flags([view for part in parts for view in part.views], kept.array)
        context_map = self._contexts(volume, name) if contexts else None
        if everything is not None and not probabilities:
            everything.close()
            everything = None
        return Segmentation(
            label=_only(kept, [self.classes[c] for c in classes], self.plan.values[0]),
            classes={n: v for n, v in self.classes.items() if not classes or n in classes},
            confidence=confidence,
            removed=removed,
            presence=flags,
            name=name,
            segments=tuple(s for s in self.segments if not classes or s.name in classes),
            probabilities=everything,
            contexts=context_map,
        )

    def predict_cases(
        self,
        cases: Sequence[Case],
        folder: str | Path,
        ending: str = ".nii.gz",
        progress: Progress = lambda *_: None,
        efficiency: Efficiency | None = None,
        record: PredictionRecord | None = None,
        series: str = "",
        classes: Sequence[str] = (),
        extras: Extras = NO_EXTRAS,
    ) -> dict[str, str]:
        """Segment cases into a folder; what is there already is kept.

        Beside the label maps: `confidence/CASE` where the settings ask for it,
        `postprocessing.csv` with what keeping the largest component removed, and `presence.csv`
        with what a presence head saw, and `label_descriptions.txt` with the names and colours of
        the classes for ITK-SNAP, unless the label maps hold them (`.seg.nrrd`). A case that cannot
        be read, or takes more memory than there is, does not stop the others.

        Args:
            cases: What to segment. An empty sequence does nothing.
            folder: Where the label maps go.
            ending: Ending of the label maps.
            progress: Called with (done, of) before and after each case.
            efficiency: Notes what each case costs that is segmented now.
            record: Notes who made the label map of each case; None notes nothing.
            series: Which series of each DICOM folder. "" for the only one.
            classes: Which classes are segmented; () for all.
            extras: What is written beside the label maps. A case that lacks some is done again.

        Returns:
            Why cases failed, by name; {} where none did.
        """

        def segment_case(case: Case, out: Path) -> None:
            with efficiency.case(case.name) if efficiency else nullcontext():
                scan = scan_of(case.images, None, series)
                segmentation = self.predict(
                    scan,
                    name=case.name,
                    classes=classes,
                    probabilities=extras.probabilities,
                    contexts=extras.contexts,
                    workspace=out.parent,
                )
                if record is not None:
                    record.note(case)
                describe_folder(out, segmentation.segments)
                if extras.statistics:
                    write_statistics(out.parent, segmentation, scan, self.plan.scanned)
                write_prediction(segmentation, out, extras.class_files)
                if segmentation.probabilities is not None:
                    segmentation.probabilities.close()

        names = tuple(classes or self.classes)
        with gathered(record):
            return segment_missing(
                cases,
                Path(folder),
                ending,
                segment_case,
                progress,
                lambda out: extras.done(out, names),
            )

    def predict_folder(
        self,
        images: str | Path,
        output: str | Path,
        *,
        series: str = "",
        classes: Sequence[str] = (),
        save_probabilities: bool = False,
        save_contexts: bool = False,
        class_files: bool = False,
        statistics: bool = False,
        part: str = "",
        profile: bool = False,
        profile_formula: str = "trapezoid",
        progress_bar: ProgressBar = no_progress_bar,
    ) -> dict[str, Path]:
        """Segment every scan of a folder into another; the same call goes on where it stopped.

        The file `predicted_by.json` beside the label maps says what made them, so that no label map
        of another model, other settings or another scan passes for one of this call.

        Args:
            images: A scan, a folder of scans, or the folder of a data set. What is no scan there
                is named on stderr.
            output: Where the label maps go, CASE.nii.gz; see `predict_cases` for what else.
            series: Which series of each DICOM folder, by number or UID. "" for the only one.
            classes: Which classes are segmented; where another one wins, it is background. () for
                all.
            save_probabilities: Write `probabilities/CASE/CLASS.nii.gz` of every class segmented and
                the background: 0 to 1 in steps of 1/65535, on the scan's grid, packed.
            save_contexts: Write `contexts/CASE.nii.gz`: the label map with the context classes of a
                CoLab or context method after its classes.
            class_files: Write a mask `classes/CASE/CLASS.nii.gz` of each class, too.
            statistics: Write volume and intensities of each class into `statistics.csv`.
            part: "1/4" for the first of four parts of the scans, which several processes may do at
                once, also on several machines with one disk. "" for all.
            profile: Note running time and memory of each scan in `efficiency.csv`, with a plot.
            profile_formula: How areas under the curves are taken: "trapezoid", or "official" for
                FLARE22's own sum.
            progress_bar: Shows the progress.

        Returns:
            The label map of each case, by name.

        Raises:
            ContextsegError: There is no scan; the output folder holds the scans, or label maps of
                others; another process works in it; or scans could not be segmented: the message
                counts them, and all others are done.
        """
        output = Path(output)
        self.check_classes(classes)
        if save_contexts:
            self.check_contexts()
        cases = cases_to_segment(images, output)
        mine = part_of(cases, part)
        made_by = self.made_by() | ({"classes": list(classes)} if classes else {})
        record = PredictionRecord(output, made_by)
        with lock_folder(output, shared=bool(part)):
            record.check(cases)
            efficiency = Efficiency(output, profile_formula) if profile else None
            with progress_bar("predict") as progress:
                failed = self.predict_cases(
                    mine,
                    output,
                    progress=progress,
                    efficiency=efficiency,
                    record=record,
                    series=series,
                    classes=classes,
                    extras=Extras(save_probabilities, save_contexts, statistics, class_files),
                )
            if efficiency:
                efficiency.plot()
        raise_failed(failed, len(mine))
        return {case.name: output / f"{case.name}.nii.gz" for case in mine}

    def check_classes(self, classes: Sequence[str]) -> None:
        """Refuse a class that the predictor does not know.

        Args:
            classes: Names of classes.

        Raises:
            ContextsegError: One of them does not exist.
        """
        for name in classes:
            if name not in self.classes:
                remedy = did_you_mean(name, self.classes)
                raise ContextsegError(f"class {name}", "there is no such class", remedy)

    def check_contexts(self) -> None:
        """Refuse to give context classes where there are none, or those of several methods.

        Raises:
            ContextsegError: There is more than one member, or its method has no context classes.
        """
        if len(self.members) > 1:
            what = "the context classes of two trainings are not the same ones"
            raise ContextsegError("--save-contexts", what, "give one run")
        if self.members[0].method.context_classes < 2:
            what = "this method has no context classes"
            remedy = "leave it out, or train with --context colab or another context"
            raise ContextsegError("--save-contexts", what, remedy)

    def _groups(self) -> list[list[Member]]:
        """The members by grid and patch; those of one group see the same image."""
        groups: dict[tuple[Any, ...], list[Member]] = {}
        for member in self.members:
            nnunet = isinstance(member.plan, NNUNetPlan)
            key = tuple(getattr(member.plan, name) for name in (NNUNET_GRID if nnunet else GRID))
            groups.setdefault(key, []).append(member)
        return list(groups.values())

    def _part(
        self,
        members: Sequence[Member],
        volume: Volume,
        name: str,
        keep: str | Path | None,
        progress: Progress | None,
    ) -> _Part:
        """What the members of a group make of a scan; `keep` is where probabilities are kept."""
        plan = members[0].plan
        raw, record = prepared_scan(volume, plan, name, self.settings.memory_gb)
        confidence = np.empty(record.shape, np.uint8) if self.settings.confidence else None
        store = None
        if keep is not None:
            store = ProbabilityStore(record.shape, len(plan.classes), keep or None)
        networks, image = _networks(members, raw, record)
        label = segment(
            networks,
            image,
            record.shape,
            plan.patch_vox,
            **sliding_window_arguments(
                members[0].method, plan, self.settings, volume, image.shape[1:]
            ),
            to_class=np.array(plan.values),
            confidence=confidence,
            probabilities=store,
            slices=_thick_slices(plan, record, image.shape[1:]),
            progress=progress,
        )
        whole = volume.with_array(undo(label, record, plan.values[0]).array)
        on_grid = None
        if confidence is not None:
            on_grid = volume.with_array(undo(confidence, record, 255).array)
        views = [
            (member.method, normalise(whole_image(raw), member.plan.channels, record), member.plan)
            for member in members
            if head_of(member.method)
        ]
        return _Part(whole, on_grid, record, store, views)

    def _winner(self, everything: Probabilities) -> tuple[Volume, Volume | None]:
        """Label map and confidence of the mean of several groups' probabilities."""
        index, best = everything.winner()
        values = np.array(self.plan.values)
        label = everything.grid.with_array(values[index].astype(everything.grid.array.dtype))
        if not self.settings.confidence:
            return label, None
        confidence = np.rint(best * (255 / STEPS)).astype(np.uint8)
        return label, everything.grid.with_array(confidence)

    def _postprocessed(self, whole: Volume) -> tuple[Volume, Change | None]:
        """The label map after what the settings ask for, and what was removed."""
        kept, removed = whole, None
        if names := self.largest_of:
            self.check_classes(names)
            kept, removed = keep_largest_of(kept, [self.classes[name] for name in names])
        if self.settings.largest_component:
            kept, more = keep_largest(kept)
            removed = more if removed is None else added(removed, more)
        return kept, removed

    def _contexts(self, volume: Volume, name: str) -> Volume:
        """The label map with context classes after the values of the classes."""
        self.check_contexts()
        member = self.members[0]
        plan, method = member.plan, member.method
        raw, record = prepared_scan(volume, plan, name, self.settings.memory_gb)
        first = max(plan.values) + 1
        values = [*plan.values, *range(first, first + method.context_classes - 1)]
        label = segment(
            method.context_logits,
            normalised_scan(raw, [plan.channels], record),
            record.shape,
            plan.patch_vox,
            **sliding_window_arguments(method, plan, self.settings, volume, raw.shape[1:]),
            to_class=np.array(values),
        )
        return volume.with_array(undo(label, record, plan.values[0]).array)

    def __repr__(self) -> str:
        names = ", ".join(type(member.method).__name__ for member in self.members)
        spacing = " x ".join(f"{mm:g}" for mm in self.plan.spacing_mm)
        return f"Predictor({names}; {', '.join(self.plan.classes[1:])}; {spacing} mm)"


def _thick_slices(plan: Plan, record: Record, size: Sequence[int]) -> tuple[int, np.ndarray] | None:
    """Slices whose logits are taken as they are, by nnU-Net's rule; None for plans of ours."""
    return logit_slices(plan, record, size) if isinstance(plan, NNUNetPlan) else None


def scan_of(scan: Any, spacing_mm: Sequence[float] | None = None, series: str = "") -> Volume:
    """A scan from whatever somebody has of it.

    Args:
        scan: What `Predictor.predict` takes.
        spacing_mm: Voxel size along D, H and W in millimetres; for an array, and only there.
        series: Which series of a DICOM folder; for folders, and only there.

    Returns:
        The scan, (C, D, H, W).

    Raises:
        ContextsegError: The scan cannot be read, or `series` is given with what is no folder.
    """
    if not series:
        return as_volume(scan, spacing_mm)
    paths = scan if isinstance(scan, list | tuple) else [scan]
    folders = [path for path in paths if isinstance(path, str | Path) and Path(path).is_dir()]
    if spacing_mm is not None or not folders:
        what = "only a DICOM folder has series"
        raise ContextsegError(f"series={series}", what, "leave it out, or give the folder")
    return read(*paths, series=series)


@dataclass(frozen=True)
class _Part:
    """What the members of one grid make of a scan, on the scan's grid.

    Attributes:
        label: The label map.
        confidence: (D, H, W) uint8, or None.
        record: How the scan was prepared.
        store: The probabilities of all classes, on the grid before `undo`; or None.
        views: Methods with presence heads, the image as each sees it, and its plan.
    """

    label: Volume
    confidence: Volume | None
    record: Record
    store: ProbabilityStore | None
    views: list[tuple[Method, np.ndarray, Plan]]


def _networks(
    members: Sequence[Member], raw: np.ndarray | Prepared, record: Record
) -> tuple[list[Callable[[torch.Tensor], torch.Tensor]], np.ndarray | NormalisedScan]:
    """A network for each member, and the image they share: channels of every normalisation."""
    ways = list(dict.fromkeys(member.plan.channels for member in members))
    image = normalised_scan(raw, ways, record)

    def network(
        method: Method, channels: tuple[Channel, ...]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        first = sum(len(way) for way in ways[: ways.index(channels)])
        return lambda x: method.predict(x[:, first : first + len(channels)])

    return [network(member.method, member.plan.channels) for member in members], image


def _changed_confidence(confidence: Volume, whole: Volume, kept: Volume) -> Volume:
    """Confidence of what is kept; what was removed is background, as likely as its class was not.

    It is changed in place and slice by slice, since whole maps of a large scan are gigabytes.
    """
    if kept is not whole:
        for confidences, before, after in zip(confidence.array, whole.array, kept.array):
            removed = before != after
            confidences[removed] = 255 - confidences[removed]
    return confidence


def _only(label: Volume, values: Sequence[int], background: int) -> Volume:
    """A label map of some values; [] for all."""
    if not values:
        return label
    array = np.where(np.isin(label.array, values), label.array, background)
    return label.with_array(array.astype(label.array.dtype))


def plan_segments(plan: Plan) -> tuple[Segment, ...]:
    """The classes of a plan as segments, for label files.

    Args:
        plan: The plan.

    Returns:
        A segment for each class but the background.
    """
    classes = dict(zip(plan.classes[1:], plan.values[1:]))
    return class_segments(classes, plan.colours, plan.terminology)


def model_name(network: torch.nn.Module, plan: Plan) -> str:
    """A trained network with its plan in a word: its class, and a digest of weights and plan.

    Args:
        network: The network or method.
        plan: The plan it was trained with.

    Returns:
        The word.
    """
    facts = asdict(plan)
    del facts["colours"], facts["terminology"]  # how classes are shown; the label maps are the same
    if not facts["native"]:
        del facts["native"]  # so that a network has the name it had before there were such plans
    return f"{type(network).__name__}-{digest(weights_digest(network), facts)}"
