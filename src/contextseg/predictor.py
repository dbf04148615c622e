"""Trained networks, ready to segment scans: the dear part once, the cheap part often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contextseg.console import Progress, ProgressBar, no_progress_bar, say
from contextseg.data.components import Change, keep_largest, write_change
from contextseg.data.layouts import Case, scans_in
from contextseg.data.nnunet import NNUNetPlan
from contextseg.data.nnunet_prepare import logit_slices
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import normalise, prepare, undo
from contextseg.data.unused import name_unused
from contextseg.disk import digest, writing
from contextseg.errors import ContextsegError
from contextseg.evaluation.calibration import confidence_file
from contextseg.evaluation.efficiency import Efficiency
from contextseg.interop.names import describe_folder
from contextseg.interop.reading import write_classes
from contextseg.interop.segments import Segment, class_segments
from contextseg.methods import Method
from contextseg.methods.presence import Flags, head_of, presence_flags, write_flags
from contextseg.predict import segment
from contextseg.predict.record import RECORD, PredictionRecord, weights_digest
from contextseg.settings import PredictionSettings
from contextseg.volume import Volume, as_volume, read, write

ALIKE = ("classes", "values", "orientation", "spacing_mm", "patch_vox")
"""What the plans of an ensemble share; they may differ in how they normalise, as folds of CT do."""


@dataclass(frozen=True)
class Member:
    """A trained method, and the plan that it was trained with.

    Attributes:
        method: In evaluation mode, on the device that predicts.
        plan: Spacing, patch, normalisation and classes.
    """

    method: Method
    plan: Plan


@dataclass(frozen=True)
class Segmentation:
    """What a `Predictor` makes of one scan, on the scan's own grid.

    Attributes:
        label: (D, H, W) integers, in the values of the training label files.
        classes: Value of each class in `label`, by name, without the background.
        confidence: (D, H, W) uint8, the probability of the label from 0 to 255. None where the
            settings do not ask for it.
        removed: What keeping the largest component removed. None where the settings do not ask.
        presence: What presence heads saw of each class, by name. None without such a head.
        name: Name of the case; empty where nobody gave one.
        segments: The classes with colour and terminology. () for the names of `classes` alone.
    """

    label: Volume
    classes: Mapping[str, int]
    confidence: Volume | None = None
    removed: Change | None = None
    presence: Flags | None = None
    name: str = ""
    segments: tuple[Segment, ...] = ()

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of each class in millilitres."""
        voxel_ml = abs(float(np.linalg.det(self.label.affine[:3, :3]))) / 1000
        return {
            name: int((self.label.array == value).sum()) * voxel_ml
            for name, value in self.classes.items()
        }

    def save(self, path: str | Path) -> Path:
        """Write the label map, and where there is one the confidence map beside it.

        Args:
            path: Label file, such as "out.nii.gz". The confidence map goes to a file of the same
                name in the folder "confidence" beside it, where `evaluate` finds it.

        Returns:
            `path`.

        Raises:
            ContextsegError: The ending is unknown, or the disk cannot be written to.
        """
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.confidence is not None:
            write(confidence_file(path), self.confidence)
        # Last: a label map that is there is a case that is done.
        write_classes(path, self.label, self.segments or class_segments(self.classes))
        return path

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.label.shape))
        volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in self.volumes_ml.items())
        title = f"{self.name}: " if self.name else ""
        return f"Segmentation({title}{shape}; {volumes})"

    def _repr_html_(self) -> str:
        from html import escape

        picture = self.label._repr_html_()
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{ml:.1f} ml</td></tr>"
            for name, ml in self.volumes_ml.items()
        )
        return f"<div>{picture}<table>{rows}</table></div>"


@dataclass
class Predictor:
    """One trained method or an ensemble of several, and how they are applied to a scan.

    The logits of an ensemble are averaged, so its plans may differ in how they normalise and in
    nothing else. `contextseg.load` makes a predictor from the folders of finished runs.

    Args:
        members: Trained methods with their plans; one or more.
        settings: Step of the sliding window, mirroring, post-processing, confidence.

    Raises:
        ContextsegError: No member, one whose plan differs in more than normalisation, or one that
            fills a scan from labelled slices and cannot predict without them.
    """

    members: Sequence[Member]
    settings: PredictionSettings = field(default_factory=PredictionSettings)

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

    def made_by(self) -> dict[str, Any]:
        """What its label maps depend on, as JSON content: models and settings by name."""
        settings = asdict(self.settings)
        del settings["windows"]  # how many patches go at once; the label maps are the same
        return {"models": [model_name(m.method, m.plan) for m in self.members], **settings}

    def predict(
        self,
        scan: Any,
        spacing_mm: Sequence[float] | None = None,
        *,
        name: str = "",
        series: str = "",
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segment one scan, on its own grid.

        Args:
            scan: A file or DICOM folder, a list of them for several channels, a `Volume`, a
                SimpleITK image, a nibabel image, or an array (D, H, W) or (C, D, H, W).
            spacing_mm: Voxel size along D, H and W in millimetres; for an array, and only there.
            name: Name of the case, for messages and the result.
            series: Which series of a DICOM folder, see `contextseg.read`. "" for the only one.
            progress: Called with (patches done, patches in all).

        Returns:
            The label map in the values of the training labels, and what the settings ask for.
            Outside the body, which no network sees, the label is background and confidence 255.

        Raises:
            ContextsegError: The scan cannot be read, has another number of channels than the
                training scans, or a shape that is no scan.
        """
        volume = scan_of(scan, spacing_mm, series)
        raw, _, _, record = prepare(volume, self.plan, name)
        confidence = np.empty(record.shape, np.uint8) if self.settings.confidence else None
        networks, image = self._networks(raw, record)
        label = segment(
            networks,
            image,
            record.shape,
            self.plan.patch_vox,
            **sliding_window_arguments(self.members[0].method, self.plan, self.settings),
            to_class=np.array(self.plan.values),
            confidence=confidence,
            slices=_thick_slices(self.plan, record, image.shape[1:]),
            progress=progress,
        )
        whole = volume.with_array(undo(label, record, self.plan.values[0]).array)
        kept, removed = whole, None
        if self.settings.largest_component:
            kept, removed = keep_largest(whole)
        return Segmentation(
            label=kept,
            classes=self.classes,
            confidence=None if confidence is None else _confidence(confidence, record, whole, kept),
            removed=removed,
            presence=self._presence(raw, record, kept.array),
            name=name,
            segments=self.segments,
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
    ) -> dict[str, str]:
        """Segment cases into a folder; what is there already is kept.

        Beside the label maps: `confidence/CASE` where the settings ask for it,
        `postprocessing.csv` with what keeping the largest component removed, and `presence.csv`
        with what a presence head saw, and `label_descriptions.txt` with the names and colours of
        the classes for ITK-SNAP, unless the label maps hold them (`.seg.nrrd`). A case that cannot
        be read does not stop the others.

        Args:
            cases: What to segment. An empty sequence does nothing.
            folder: Where the label maps go.
            ending: Ending of the label maps.
            progress: Called with (done, of) before and after each case.
            efficiency: Notes what each case costs that is segmented now.
            record: Notes who made the label map of each case; None notes nothing.
            series: Which series of each DICOM folder. "" for the only one.

        Returns:
            Why cases failed, by name; {} where none did.
        """

        def segment_case(case: Case, out: Path) -> None:
            with efficiency.case(case.name) if efficiency else nullcontext():
                segmentation = self.predict(case.images, name=case.name, series=series)
                if record is not None:
                    record.note(case)
                describe_folder(out, segmentation.segments)
                write_prediction(segmentation, out)

        return segment_missing(cases, Path(folder), ending, segment_case, progress)

    def predict_folder(
        self,
        images: str | Path,
        output: str | Path,
        *,
        series: str = "",
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
            profile: Note running time and memory of each scan in `efficiency.csv`, with a plot.
            profile_formula: How areas under the curves are taken: "trapezoid", or "official" for
                FLARE22's own sum.
            progress_bar: Shows the progress.

        Returns:
            The label map of each case, by name.

        Raises:
            ContextsegError: There is no scan; the output folder holds the scans, or label maps of
                others; or scans could not be segmented: the message counts them, and all others
                are done.
        """
        output = Path(output)
        cases = cases_to_segment(images, output)
        record = PredictionRecord(output, self.made_by())
        record.check(cases)
        efficiency = Efficiency(output, profile_formula) if profile else None
        with progress_bar("predict") as progress:
            failed = self.predict_cases(
                cases,
                output,
                progress=progress,
                efficiency=efficiency,
                record=record,
                series=series,
            )
        if efficiency:
            efficiency.plot()
        raise_failed(failed, len(cases))
        return {case.name: output / f"{case.name}.nii.gz" for case in cases}

    def _networks(
        self, raw: np.ndarray, record: Any
    ) -> tuple[list[Callable[[torch.Tensor], torch.Tensor]], np.ndarray]:
        """A network for each member, and the image they share: channels of every normalisation."""
        ways = list(dict.fromkeys(member.plan.channels for member in self.members))
        image = np.concatenate([normalise(raw, channels, record) for channels in ways])

        def network(
            method: Method, channels: tuple[Channel, ...]
        ) -> Callable[[torch.Tensor], torch.Tensor]:
            first = sum(len(way) for way in ways[: ways.index(channels)])
            return lambda x: method.predict(x[:, first : first + len(channels)])

        return [network(member.method, member.plan.channels) for member in self.members], image

    def _presence(self, raw: np.ndarray, record: Any, label: np.ndarray) -> Flags | None:
        views = [
            (member.method, normalise(raw, member.plan.channels, record), member.plan)
            for member in self.members
            if head_of(member.method)
        ]
        return presence_flags(views, label)

    def __repr__(self) -> str:
        names = ", ".join(type(member.method).__name__ for member in self.members)
        spacing = " x ".join(f"{mm:g}" for mm in self.plan.spacing_mm)
        return f"Predictor({names}; {', '.join(self.plan.classes[1:])}; {spacing} mm)"


def _thick_slices(plan: Plan, record: Any, size: Sequence[int]) -> tuple[int, np.ndarray] | None:
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
    if spacing_mm is not None or not all(isinstance(path, str | Path) for path in paths):
        what = "only a DICOM folder has series"
        raise ContextsegError(f"series={series}", what, "leave it out, or give the folder")
    return read(*paths, series=series)


def _confidence(confidence: np.ndarray, record: Any, whole: Volume, kept: Volume) -> Volume:
    """Confidence on the scan's grid; what was removed is background, as likely as its class was
    not."""
    on_grid = undo(confidence, record, 255).array
    return kept.with_array(np.where(kept.array == whole.array, on_grid, 255 - on_grid))


def sliding_window_arguments(
    method: Method, plan: Plan, settings: PredictionSettings
) -> dict[str, Any]:
    """Keywords of `predict.sliding_window` and `predict.segment` for cases of a plan.

    Args:
        method: The trained method; its parameters say on which device it predicts.
        plan: The plan that it was trained with.
        settings: Step, mirroring and the number of patches at a time.

    Returns:
        The keywords, by name.
    """
    batch_size = settings.windows or max(1, 2**18 // int(np.prod(plan.patch_vox)))
    axes = range(3 - plan.dims, 3)
    return {
        "device": next(method.parameters()).device,
        "step": settings.step,
        "mirror_axes": [axis for axis in axes if settings.mirror and plan.mirror[axis]],
        "swaps": plan.swaps,
        "lateral_axis": plan.lateral_axis,
        "batch_size": batch_size,
    }


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
    return f"{type(network).__name__}-{digest(weights_digest(network), facts)}"


def cases_to_segment(images: str | Path, output: Path) -> tuple[Case, ...]:
    """The cases of a scan, a folder or a data set, for an output folder that holds none of them.

    What is no scan is named on stderr. An output folder inside the folder of scans is no scan.

    Args:
        images: A scan, a folder of scans, or the folder of a data set.
        output: Where the label maps will go.

    Returns:
        The cases.

    Raises:
        ContextsegError: There is no scan, or the output folder holds the scans or their labels.
    """
    target = output.resolve()
    remedy = "choose a folder of its own for the predictions"
    if Path(images).resolve() == target:
        raise ContextsegError(output, "the output folder is the folder of the scans", remedy)
    cases, unused = scans_in(images)
    if (output / RECORD).exists():  # one of an earlier call, inside the folder of the scans
        cases = tuple(case for case in cases if not _lies_in(case.images[0], target))
        if not cases:
            raise ContextsegError(images, "there is no scan but predictions", "give the scans")
    for case in cases:
        for path in (*case.images, *([case.label] if case.label else [])):
            if _lies_in(path, target) or (path.is_dir() and _lies_in(output, path.resolve())):
                what = f"the output folder holds the scans or their labels ({path.name})"
                raise ContextsegError(output, what, remedy)
    if line := name_unused(path for path in unused if path.resolve() != target):
        say(f"{images}: {line}")
    return cases


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, or a folder is it; links of files are not followed."""
    return folder in (path.parent.resolve(), path.resolve())


def write_prediction(segmentation: Segmentation, out: Path) -> None:
    """Write a label map with all that belongs to it; the label map last, since it says "done".

    Args:
        segmentation: What a predictor made of a case.
        out: The label file. The tables of its folder get the rows of the case.
    """
    if segmentation.removed is not None:
        write_change(out.parent, segmentation.name, segmentation.removed)
    if segmentation.presence is not None:
        write_flags(out.parent, segmentation.name, segmentation.presence)
    segmentation.save(out)


def raise_failed(failed: Mapping[str, str], cases: int) -> None:
    """Raise failures of several cases as one `ContextsegError`; nothing if there is none.

    Args:
        failed: Why each case failed, by name.
        cases: Number of cases in all.

    Raises:
        ContextsegError: A case failed; the message has every reason.
    """
    if not failed:
        return
    reasons = "".join(f"\n  {why}" for why in failed.values())
    what = f"{len(failed)} of {cases} cases could not be segmented:{reasons}\n"
    raise ContextsegError(", ".join(failed), what, "mend or remove them; all others are done")


def segment_missing(
    cases: Sequence[Case],
    folder: Path,
    ending: str,
    segment: Callable[[Case, Path], object],
    progress: Progress = lambda *_: None,
) -> dict[str, str]:
    """Segment each case whose label map is not there yet; a case that fails does not stop others.

    Args:
        cases: What to segment. An empty sequence does nothing.
        folder: Where the label maps go, `folder`/CASE`ending`.
        ending: Ending of the label maps, such as ".nii.gz".
        segment: Called with a case and the path of its label map, which it writes last.
        progress: Called with (done, of) before and after each case.

    Returns:
        Why cases failed, by name.
    """
    failed = {}
    for done, case in enumerate(cases):
        out = folder / f"{case.name}{ending}"
        progress(done, len(cases))
        if not out.exists():
            try:
                segment(case, out)
            except ContextsegError as error:
                failed[case.name] = str(error)
        progress(done + 1, len(cases))
    return failed
