"""Every reader of the project, through its public face: what it reads, and how it is called."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reader:
    """Who reads a damaged file.

    Attributes:
        kind: The kind of `corpus.KINDS` that is copied for each input.
        victims: Patterns of the files that are damaged, one of them in each input.
        calls: What is called with the folder and the file; each on its own must end well.
        weight: How often the reader is drawn.
        whole: The whole folder is copied; else its files are links into the corpus.
    """

    kind: str
    victims: tuple[str, ...]
    calls: tuple[Callable[[Path, Path], Any], ...]
    weight: int = 1
    beside: tuple[str, ...] = field(default=())


# --- scans and label maps -------------------------------------------------------------------------


def scan(folder: Path, path: Path) -> None:
    import contextseg as cs

    volume = cs.read(path)
    assert volume.array.ndim == 4
    assert min(volume.array.shape) > 0
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 0
    repr(volume)
    volume.oriented("SAR")


def labels(folder: Path, path: Path) -> None:
    import contextseg as cs

    label = cs.read_labels(path)
    assert label.array.dtype.kind in "iu"
    assert min(label.array.shape) > 0


def series(folder: Path, path: Path) -> None:
    """No slice of a series is dropped in silence: what is read has them all."""
    import contextseg as cs

    files = sum(path.is_file() for path in (folder / "series").iterdir())
    volume = cs.read(folder / "series")
    assert volume.array.shape == (1, files, 6, 5), volume.array.shape


def contours(folder: Path, path: Path) -> None:
    from contextseg.volume import as_labels, read

    as_labels(folder / "contours.dcm", read(folder / "scan.nii"))


def segment_names(folder: Path, path: Path) -> None:
    from contextseg.interop.reading import segments_of

    segments_of(path)


def prediction_cases(folder: Path, path: Path) -> None:
    from contextseg.data.layouts import cases_in

    cases_in(path.parent)


def filled(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.propagate(folder / "scan.nii.gz", folder / "label.nii.gz", model=None, way="nearest")


# --- data sets ------------------------------------------------------------------------------------


def checked(folder: Path, path: Path) -> None:
    """What `check` passes is planned, preprocessed, and gives a first batch."""
    import contextseg as cs

    data = folder / "data"
    findings = cs.check(data, verbose=False)
    for finding in findings:
        assert finding.where
        assert finding.what
        assert finding.remedy
    if not any(finding.level == "error" for finding in findings):
        _first_batch(folder)


class AfterCheck(Exception):
    """Something failed though `check` had found no error."""


def _first_batch(folder: Path) -> None:
    from contextseg.errors import ContextsegError
    from contextseg.runs import Run
    from contextseg.settings import Settings

    settings = Settings(str(folder / "data"), fold=-1).set(
        ["patch_vox=8,8,8", "base_width=2", "max_levels=2", "batch_size=2", "device=cpu"]
    )
    try:
        run = Run(folder / "tried", settings)
        run.check()
        run.make_plan()
        run.preprocess()
        from contextseg.methods import METHODS

        method: Any = METHODS["supervised"]
        sampler, _ = run.samplers(run.split, method(run.plan), {}, {}, {}, 0, 1)
        sampler.batch(0)
    except ContextsegError as error:
        raise AfterCheck(str(error)) from error


def opened(folder: Path, path: Path) -> None:
    from contextseg.data.layouts import open_dataset

    open_dataset(folder / "data")


def planned(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.plan(folder / "data", verbose=False, memory_gb=1)


# --- runs and models ------------------------------------------------------------------------------


def run_opened(folder: Path, path: Path) -> None:
    from contextseg.runs import Run

    run = Run.open(folder / "run")
    repr(run)
    run.stages()


def run_predicts(folder: Path, path: Path) -> None:
    import contextseg as cs

    predictor = cs.load(folder / "run", device="cpu")
    predictor.predict(next((folder / "data" / "imagesTs").glob("*.nii.gz")))


def run_resumed(folder: Path, path: Path) -> None:
    """Go on with a training that was stopped, as the same command does."""
    from contextseg.pipeline import run_pipeline
    from contextseg.runs import Run

    run = Run.open(folder / "run")
    for stage in run.stage_folders("train"):
        (stage / "done.json").unlink(missing_ok=True)
    run_pipeline(run)


def run_reported(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.report(folder / "run")


def run_diagnosed(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.diagnose(folder / "run", training_cases=1, verbose=False)


def model_predicts(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.load(folder / "model.zip", device="cpu").predict(folder / "scan.nii.gz")


def weights(folder: Path, path: Path) -> None:
    from contextseg.nets.sources import read_start_weights

    read_start_weights(path)


def nnunet_opened(folder: Path, path: Path) -> None:
    from contextseg.nnunet.model import open_nnunet

    open_nnunet(folder / "model", "cpu")


def completion(folder: Path, path: Path) -> None:
    from contextseg.propagation.pretrained import open_completion

    open_completion(path)


def completion_training(folder: Path, path: Path) -> Any:
    """A training of the packaged network, which goes on from its checkpoint."""
    import torch

    from contextseg.propagation.network.drawing import Recipe
    from contextseg.propagation.network.training import CompletionTraining, TrainingSettings

    settings = TrainingSettings(seconds=0, batch=2, widths=(2, 2), validation=1)
    recipe, cpu = Recipe(slices=8, side=16), torch.device("cpu")
    return CompletionTraining(folder / "data.npz", folder, settings, recipe, cpu)


def completion_data(folder: Path, path: Path) -> None:
    from contextseg.propagation.network.prepare import examples

    for example in examples(folder):
        assert example.label.dtype == np.uint8
        assert example.label.ndim == 3


# --- tables ---------------------------------------------------------------------------------------


def evaluated(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.evaluate(
        folder, folder / "references", folder / "scores",
        labels=folder / "dataset.json", verbose=False,
    )  # fmt: skip


def imported(folder: Path, path: Path) -> None:
    from contextseg.data.layouts import open_dataset
    from contextseg.evaluation.importing import find
    from contextseg.evaluation.importing import imported as measured
    from contextseg.pipeline import references

    data = open_dataset(folder.parents[1] / "corpus" / "run" / "data")
    source = find(folder / "summary.json")
    pairs = references(data, data.test, folder)
    measured(source, pairs, data, folder / "into")


def record(folder: Path, path: Path) -> None:
    from contextseg.data.layouts import cases_in
    from contextseg.predict.record import PredictionRecord

    PredictionRecord(folder, {"models": []}).check(cases_in(folder / "references"))


# --- projects and the annotator -------------------------------------------------------------------


def project(folder: Path, path: Path) -> None:
    import contextseg as cs

    work = cs.project(folder / "work", verbose=False)
    work.status()
    work.summary()
    work.worklist()
    work.fill()


def project_exported(folder: Path, path: Path) -> None:
    import contextseg as cs

    cs.project(folder / "work", verbose=False).export(folder / "exported")


def annotator(folder: Path, path: Path) -> None:
    from contextseg.annotator.project import open_project
    from contextseg.annotator.session import AnnotationSession

    opened = open_project(folder / "scans", folder / "work")
    session = AnnotationSession(opened)
    try:
        session.cases()
        session.describe(0)
        session.label(0, "axial", 1)
        session.fill(0)
        opened.worklist()
    finally:
        session.close()


def requests(folder: Path, path: Path) -> None:
    """Every answer is one of the server's: below 500, or the disk's 507."""
    import asyncio

    if not path.is_file():  # a named pipe: what is asked comes from the net, and not from a file
        return
    try:
        asked = json.loads(path.read_bytes().decode("utf-8", "replace"))
    except (ValueError, OSError, RecursionError):
        return
    app, session = _application(folder)
    try:
        for request in asked if isinstance(asked, list) else []:
            try:
                method, url, headers, body = request
                scope, content = _scope(method, url, headers, body)
            except (TypeError, ValueError, AttributeError):
                continue  # what no client could send
            status = asyncio.run(_answer(app, scope, content))
            assert status < 500, (status, method, url)
    finally:
        session.close()


def _scope(method: str, url: str, headers: Any, body: str) -> tuple[dict[str, Any], bytes]:
    place, _, query = url.partition("?")
    content = body.encode("utf-8", "surrogatepass")
    told = {"host": "127.0.0.1:8000", "authorization": "Bearer t", **headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": method.upper()[:20], "path": place, "raw_path": place.encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"), "root_path": "",
        "headers": [
            (k.lower().encode("latin-1", "replace"), v.encode("latin-1", "replace"))
            for k, v in told.items()
        ],
        "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    return scope, content


async def _answer(app: Any, scope: dict[str, Any], content: bytes) -> int:
    """The status of an answer, by ASGI itself; a stream is left after its first bytes."""
    status = 0
    sent = [content]

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


def _application(folder: Path) -> Any:
    from contextseg.annotator.monailabel import MonaiLabel
    from contextseg.annotator.project import open_project
    from contextseg.annotator.server import Events, application
    from contextseg.annotator.session import AnnotationSession

    session = AnnotationSession(open_project(folder / "scans", folder / "work", ["a"]))
    monai = MonaiLabel(session, "t")
    app = application(
        session, Events(), "t", {"127.0.0.1:8000", "127.0.0.1"}, monai.routes(), monai.public
    )
    return app, session


# --- what is typed --------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.is_file() else str(path)


def assigned(folder: Path, path: Path) -> None:
    from contextseg.errors import ContextsegError
    from contextseg.settings import Settings

    for line in text_of(path).splitlines():
        try:
            Settings("data").set([line]).to_json()
        except ContextsegError as error:
            one_error(error)


def tolerances(folder: Path, path: Path) -> None:
    from contextseg.evaluation.evaluate import parse_tolerances

    parse_tolerances(text_of(path), ["liver", "lesion"])


def methods(folder: Path, path: Path) -> None:
    from contextseg.data.layouts import open_dataset
    from contextseg.studies.compare.grid import cells, parse_grid

    text = text_of(path)
    data = folder.parents[1] / "corpus" / "run" / "data"
    grid = parse_grid(data, folder / "out", [text], seeds="0", budgets="2", folds=text[:3])
    cells(grid, open_dataset(data))


def typed(folder: Path, path: Path) -> None:
    """The command line with an odd path: exit code 1 or 2, one message, no traceback."""
    from typer.testing import CliRunner

    from contextseg.cli import app
    from contextseg.errors import ContextsegError

    for line in text_of(path).splitlines()[:2]:
        with contextlib.redirect_stderr(io.StringIO()):
            result = CliRunner().invoke(app, ["check", line])
        error = result.exception
        if error is not None and not isinstance(error, ContextsegError | SystemExit):
            raise error


def one_error(error: Any) -> None:
    """What every error must have: file, cause and remedy, and a length that can be read."""
    assert error.where
    assert error.what
    assert error.remedy
    assert len(str(error)) < 4000, len(str(error))


SCAN = (scan, labels, segment_names, prediction_cases)
READERS: dict[str, Reader] = {
    "NIfTI": Reader("nifti", ("*.nii",), SCAN, 4),
    "NIfTI packed": Reader("packed", ("*.nii.gz",), (*SCAN, filled), 5),
    "header pairs": Reader("pairs", ("*.hdr", "*.img"), SCAN),
    "MGH": Reader("mgh", ("*.mg*",), SCAN),
    "NRRD": Reader("nrrd", ("*.nrrd", "*.nhdr", "*.raw*"), SCAN, 3),
    "segmentation NRRD": Reader("seg_nrrd", ("*.seg.nrrd",), SCAN, 2),
    "MetaImage": Reader("meta", ("*.mha", "*.mhd", "*.raw", "*.zraw"), SCAN, 3),
    "pictures": Reader("pictures", ("*.png", "*.bmp", "*.jpg", "*.tif", "*.json"), SCAN, 3),
    "DICOM series": Reader("dicom", ("series/*.dcm",), (series,), 3),
    "DICOM files": Reader("enhanced", ("*.dcm",), SCAN, 2),
    "DICOM segments": Reader(
        "dicom_segments", ("label.dcm", "contours.dcm"), (labels, contours, segment_names), 3
    ),
    "no scans": Reader("others", ("*",), SCAN),
    "nnU-Net data": Reader(
        "nnunet_data", ("data/*.json", "data/labelsTr/*", "data/imagesTr/*"),
        (checked, opened, planned), 5,
    ),
    "Decathlon data": Reader(
        "decathlon", ("data/*.json", "data/labelsTr/*", "data/imagesTr/*"), (checked, opened), 3
    ),
    "plain data": Reader("plain", ("data/labels/*", "data/images/*"), (checked, opened), 2),
    "run": Reader("run", ("run/run.json", "run/plan.json", "run/*.json"),
                  (run_opened, run_predicts, run_reported), 4),
    "stages": Reader(
        "run", ("run/*/*.json", "run/*/*.jsonl", "run/*/*.csv", "run/evaluate/*"),
        (run_opened, run_reported, run_diagnosed), 4,
    ),
    "training": Reader("run", ("run/train-1/*", "run/plan.json", "run/run.json"),
                       (run_resumed, run_predicts), 3),
    "cache": Reader("run", ("run/cache/*/*", "run/preprocess/*"), (run_diagnosed,), 2),
    "exported model": Reader("model", ("model.zip",), (model_predicts, weights), 3),
    "start weights": Reader("model", ("weights.*",), (weights,), 2),
    "nnU-Net model": Reader("nnunet_model", ("model/*.json", "model/*/*"), (nnunet_opened,), 3),
    "completion network": Reader("completion", ("network.npz",), (completion,)),
    "completion training": Reader(
        "completion_training", ("data.npz", "checkpoint.pt"), (completion_training,), 2
    ),
    "completion data": Reader(
        "completion_data", ("*/*.json", "*/*.nii.gz", "*/*/*.nii.gz"), (completion_data,), 2
    ),
    "evaluation": Reader("predictions", ("*.nii.gz", "*.json"), (evaluated,), 2),
    "scores of others": Reader("predictions", ("summary.json",), (imported,), 2),
    "record of predictions": Reader("predictions", ("*.json", ".*.json"), (record,)),
    "project": Reader("project", ("work/*.csv", "work/*.json", "work/*/*"),
                      (project, project_exported), 4),
    "annotator": Reader("annotator", ("work/**/*.*",), (annotator,), 4),
    "requests": Reader("requests", ("requests.json",), (requests,), 3),
    "settings": Reader("texts", ("set.txt",), (assigned, typed), 3),
    "tolerances": Reader("texts", ("tolerance.txt",), (tolerances,)),
    "methods": Reader("texts", ("methods.txt",), (methods,)),
}  # fmt: skip
