"""The verb `export`: the finished data set, and where each of its voxels comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contextseg.data.layouts import Case
from contextseg.disk import csv_text, replacing, write_json, write_text
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.formats import ending
from contextseg.interop.dicomseg_writing import write_dicom_segmentation
from contextseg.interop.names import describe_folder
from contextseg.interop.segments import Segment, class_segments
from contextseg.interop.slicer import write_segmentation
from contextseg.projects.accepting import model_origin
from contextseg.projects.filling import origins_file
from contextseg.projects.origins import Origins
from contextseg.projects.rounds import predictions_folder
from contextseg.projects.sources import copy_scan, place_scan
from contextseg.projects.table import ProjectCase
from contextseg.provenance import provenance
from contextseg.volume import Volume, as_labels, read, read_labels, write

if TYPE_CHECKING:
    from contextseg.projects.work import LabelProject

RECORD_OF_EXPORT = "export.json"


@dataclass(frozen=True)
class ExportedCase:
    """A case of an export.

    Attributes:
        row: What the table says of it.
        case: Its scan.
        label: The label map, on the scan's grid.
        origins: Where each voxel comes from.
        source: "given", "fill", "prediction-N" and the like.
        annotated: Classes that were annotated; None for all.
    """

    row: ProjectCase
    case: Case
    label: Volume
    origins: Origins
    source: str
    annotated: tuple[str, ...] | None = None


def export_cases(
    project: LabelProject, output: Path, *, format: str, everything: bool, link: bool
) -> Path:
    """Write the finished data set; see `LabelProject.export`.

    Args:
        project: The project.
        output: As there.
        format: As there.
        everything: As there.
        link: As there.

    Returns:
        The folder.
    """
    if format not in EXPORT_FORMATS:
        remedy = did_you_mean(format, EXPORT_FORMATS)
        raise ContextsegError(f"--format {format}", "there is no such format", remedy)
    if output.exists() and any(output.iterdir()) and not (output / RECORD_OF_EXPORT).exists():
        what = "the folder holds something else than an export"
        raise ContextsegError(output, what, "choose another --output folder")
    rows = project.refresh()
    sources = {name: _source(row, everything) for name, row in rows.items()}
    chosen = [name for name, source in sources.items() if source]
    if not chosen:
        remedy = "accept cases first, or give --everything for fills and predictions too"
        raise ContextsegError(project.folder, "no case is accepted", remedy)
    segments = class_segments(dict(zip(project.labels.classes[1:], project.labels.values[1:])))
    lines = []
    with replacing(output) as temporary, project.progress_bar("export") as progress:
        temporary.mkdir()
        for done, name in enumerate(chosen):
            progress(done, len(chosen))
            exported = _exported(project, rows[name], sources[name])
            EXPORT_FORMATS[format](temporary, exported, segments, link)
            path = temporary / "origins" / f"{name}.nii.gz"
            exported.origins.save(path, exported.label)
            lines.append(_line(exported))
            progress(done + 1, len(chosen))
        columns = ["case", "use", "label", "slices", "minutes", "expected_dice", *_KINDS]
        write_text(temporary / "cases.csv", csv_text(columns, lines))
        _write_tables(project, temporary, format, [rows[name] for name in chosen])
    return output


_KINDS = ("human", "given", "fill", "model")


def _source(row: ProjectCase, everything: bool) -> str:
    """What the label of a case is taken from; "" where it is not exported."""
    if row.accepted or not everything:
        return row.accepted
    if row.drawn and row.filled == row.drawn:
        return "fill"
    return f"prediction-{row.predicted}" if row.predicted else ""


def _exported(project: LabelProject, row: ProjectCase, source: str) -> ExportedCase:
    case = project.case(row.case)
    if row.accepted == "given":
        if case.label is None:
            what = "the label that came with it is gone"
            raise ContextsegError(row.case, what, "put it back, or accept another")
        scan = read(*case.images)
        label = as_labels(case.label, scan)
        origins = Origins.everywhere(label.shape, {"kind": "given"})
        return ExportedCase(row, case, label, origins, source, case.annotated)
    if row.accepted or source == "fill":
        path = project.label_file(row.case) if row.accepted else project.fill_file(row.case)
        label, origins = read_labels(path), Origins.load(origins_file(path))
        return ExportedCase(row, case, label, origins, source)
    label = read_labels(predictions_folder(project, row.predicted) / f"{row.case}.nii.gz")
    origins = Origins.everywhere(label.shape, model_origin(project, row.predicted))
    return ExportedCase(row, case, label, origins, source)


def _line(exported: ExportedCase) -> dict[str, object]:
    """A row of `cases.csv`: the share of the labelled voxels, in percent, by their origin."""
    labelled = exported.label.array > 0
    inside = Origins(exported.origins.codes[labelled], exported.origins.table)
    counts = inside.counts()
    shares = {
        kind: f"{100 * counts.get(kind, 0) / max(1, int(labelled.sum())):.1f}" for kind in _KINDS
    }
    row = exported.row.to_row()
    kept = {name: row[name] for name in ("case", "use", "slices", "minutes", "expected_dice")}
    return {**kept, "label": exported.source, **shares}


def _write_tables(
    project: LabelProject, folder: Path, format: str, rows: list[ProjectCase]
) -> None:
    if format in ("nnunet", "folders"):
        channels = project.channels or tuple(
            f"channel_{i}" for i in range(len(read(*project.case(rows[0].case).images).array))
        )
        labels = dict(project.labels.labels)
        annotated = {
            row.case: list(project.case(row.case).annotated or ())
            for row in rows
            if row.accepted == "given" and project.case(row.case).annotated is not None
        }
        cases = {
            row.case: {
                "patient": project.case(row.case).patient,
                "split": row.use,
                **({"annotated": annotated[row.case]} if row.case in annotated else {}),
            }
            for row in rows
        }
        names = {str(i): name for i, name in enumerate(channels)}
        table: dict[str, Any] = {"labels": labels, "channel_names": names}
        if format == "nnunet":
            count = sum(row.use == "train" for row in rows)
            table |= {"name": project.folder.resolve().name, "numTraining": count}
            write_json(folder / "dataset.json", {**table, "file_ending": ".nii.gz"})
            write_json(folder / "cases.json", {"cases": cases})
        else:
            write_json(folder / "cases.json", {**table, "cases": cases})
    content = {"format": format, "labels": dict(project.labels.labels), "provenance": provenance()}
    write_json(folder / RECORD_OF_EXPORT, content)


# --- formats --------------------------------------------------------------------------------------


def _as_nnunet(
    folder: Path, exported: ExportedCase, segments: tuple[Segment, ...], link: bool
) -> None:
    part = "Ts" if exported.row.use == "test" else "Tr"
    name = exported.row.case
    images, files = folder / f"images{part}", exported.case.images
    images.mkdir(exist_ok=True)
    same = [images / f"{name}_{i:04d}.nii.gz" for i in range(len(files))]
    scan = read(*files)
    if len(files) == len(scan.array) and all(ending(path) == ".nii.gz" for path in files):
        for source, target in zip(files, same):
            copy_scan(source, target, link)
    else:
        for i, channel in enumerate(scan.array):
            write(images / f"{name}_{i:04d}.nii.gz", scan.with_array(channel[None]))
    write(folder / f"labels{part}" / f"{name}.nii.gz", exported.label)


def _as_folders(
    folder: Path, exported: ExportedCase, segments: tuple[Segment, ...], link: bool
) -> None:
    name = exported.row.case
    (folder / "images").mkdir(exist_ok=True)
    place_scan(exported.case, folder / "images", link)
    path = folder / "labels" / f"{name}.nii.gz"
    write(path, exported.label)
    describe_folder(path, segments)


def _as_nifti(
    folder: Path, exported: ExportedCase, segments: tuple[Segment, ...], link: bool
) -> None:
    path = folder / f"{exported.row.case}.nii.gz"
    write(path, exported.label)
    describe_folder(path, segments)


def _as_slicer(
    folder: Path, exported: ExportedCase, segments: tuple[Segment, ...], link: bool
) -> None:
    held = set(np.unique(exported.label.array).tolist())
    kept = [segment for segment in segments if segment.value in held]
    write_segmentation(folder / f"{exported.row.case}.seg.nrrd", exported.label, kept)


def _as_dicom(
    folder: Path, exported: ExportedCase, segments: tuple[Segment, ...], link: bool
) -> None:
    scan = exported.case.images[0]
    if not scan.is_dir():
        what = "the scan is no DICOM series, to which a DICOM segmentation could refer"
        raise ContextsegError(scan, what, "export as seg.nrrd or nifti")
    path = folder / f"{exported.row.case}.dcm"
    write_dicom_segmentation(path, exported.label, scan, segments)


EXPORT_FORMATS: dict[str, Callable[[Path, ExportedCase, tuple[Segment, ...], bool], None]] = {
    "nnunet": _as_nnunet,
    "folders": _as_folders,
    "nifti": _as_nifti,
    "seg.nrrd": _as_slicer,
    "dicom-seg": _as_dicom,
}
"""Formats by name: how one case is written into the folder of an export."""
