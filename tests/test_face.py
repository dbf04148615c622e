"""The Python face: what it offers, that it is fast, and the command line as a layer over it."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import typer

import contextseg as cs
from contextseg import api, cli
from contextseg.data import phantom
from contextseg.disk import read_json
from systems import LINKS

TINY = {
    "steps": 3,
    "patch_vox": (16, 16, 16),
    "batch_size": 2,
    "base_width": 4,
    "device": "cpu",
}
FACE = {  # the call of the face that a verb is, where it is not the function of the same name
    "pseudo": api.run,
    "predict": cs.Predictor.predict_folder,
    "two-stage": api.two_stage,
}
OTHERWISE = {  # options that a call of the face takes in another way
    "set": "**settings",
    "context": "method",
    "context_classes": "**settings",
    "json": "the findings themselves",
    "suggest": "Filled.suggestion",
    "dry_run": "forecast",
    "runs": "load",
    "image": "scan",
    "device": "load",
}
PSEUDO = {"base", "models", "rounds", "threshold", "keep"}  # settings of the method


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("face") / "data", labelled=2, test=1)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("face") / "run"
    outcome = cs.run(data, folder, verbose=False, **TINY)
    assert len(outcome.metrics) == 1
    assert "dsc" in outcome._repr_html_()
    return folder


# --- what it offers -------------------------------------------------------------------------------


def test_every_public_name_is_there_documented_and_typed() -> None:
    assert set(dir(cs)) == set(cs.__all__)
    for name in cs.__all__:
        value = getattr(cs, name)
        assert value.__doc__
        if inspect.isfunction(value):
            hints = typing.get_type_hints(value, None, everything())
            assert set(inspect.signature(value).parameters) | {"return"} <= set(hints)


def everything() -> dict[str, object]:
    """What the hints of the face name, which it imports for type checkers alone."""
    import pandas as pd

    from contextseg.annotator.launch import Annotating
    from contextseg.arguments import StrPath
    from contextseg.crossvalidation import BestEnsemble
    from contextseg.data.findings import Finding
    from contextseg.data.plan import Plan
    from contextseg.pipeline import Outcome
    from contextseg.projects import LabelProject
    from contextseg.propagation import Filled
    from contextseg.runs import Run
    from contextseg.studies.api import Methods
    from contextseg.studies.cmunet import CMUNetTable
    from contextseg.studies.compare import Comparison, Forecast
    from contextseg.studies.curve import Curve
    from contextseg.studies.diagnose import Diagnosis
    from contextseg.studies.flare22 import FLARE22Result
    from contextseg.studies.reproduce import Reproduced

    known = (Finding, Plan, Outcome, Filled, Run, Comparison, Forecast, Curve, Diagnosis)
    known = (*known, LabelProject, Annotating, Reproduced, CMUNetTable, FLARE22Result)
    known = (*known, BestEnsemble)
    names: dict[str, object] = {kind.__name__: kind for kind in known}
    return names | {
        "pd": pd,
        "Predictor": cs.Predictor,
        "StrPath": StrPath,
        "Methods": Methods,
        "Mapping": Mapping,
        "Sequence": Sequence,
        "Path": Path,
    }


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        cs.trian  # noqa: B018


def test_importing_is_fast_and_names_win_over_modules() -> None:
    """No heavy import, and `contextseg.NAME` is the face's whatever was imported before."""
    code = (
        "import sys, contextseg; dir(contextseg)\n"
        "print(*sorted({'torch', 'numpy', 'nibabel', 'SimpleITK', 'pandas'} & set(sys.modules)))\n"
        "import pkgutil, importlib\n"
        "for m in pkgutil.walk_packages(contextseg.__path__, 'contextseg.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)\n"
        "kinds = {name: type(getattr(contextseg, name)).__name__ for name in contextseg.__all__}\n"
        "print(*[name for name, kind in kinds.items() if kind == 'module'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (0, "\n\n"), done.stderr


def verbs() -> dict[str, click.Command]:
    group = typing.cast(click.Group, typer.main.get_command(cli.app))
    return {name: command for name, command in group.commands.items() if not command.hidden}


@pytest.mark.parametrize("verb", [name for name, _, _ in cli.VERBS])
def test_a_verb_is_one_call_of_the_face(verb: str) -> None:
    function = FACE.get(verb) or getattr(cs, verb)
    parameters = set(inspect.signature(function).parameters)
    for parameter in verbs()[verb].params:
        name = (parameter.name or "").removesuffix("_").removeprefix("as_")
        alone = verb == "pseudo" and name in PSEUDO
        assert name in parameters or name in OTHERWISE or alone, f"{verb} {name}"


def test_the_lists_of_verbs_and_functions_agree() -> None:
    functions = {n.replace("_", "-") for n in cs.__all__ if inspect.isfunction(getattr(cs, n))}
    helpers = {"read", "read-labels", "write", "open-dataset", "load", "forecast"}
    assert set(verbs()) - {"pseudo", "predict"} == functions - helpers


def test_the_command_line_says_what_the_face_says(data: Path, tmp_path: Path) -> None:
    by_face = cs.plan(data, verbose=False, base_width=8, spacing_mm=(2, 1, 1))
    command = ["plan", str(data), "-o", str(tmp_path / "plan.json"), "--set", "base_width=8"]
    cli.app([*command, "--set", "spacing_mm=2,1,1"], standalone_mode=False)
    from contextseg.data.plan import Plan

    assert Plan.load(tmp_path / "plan.json") == by_face


# --- segmenting -----------------------------------------------------------------------------------


def test_a_predictor_takes_every_kind_of_scan(data: Path, run: Path, tmp_path: Path) -> None:
    path = next((data / "imagesTs").glob("*.nii.gz"))
    predictor = cs.load(run)
    result = predictor.predict(path)
    volume = cs.read(path)
    itk = sitk.ReadImage(str(path))
    array, spacing = volume.array[0], volume.spacing_mm
    for scan in (volume, itk, nib.load(path), str(path), [path]):
        again = predictor.predict(scan)
        assert np.array_equal(again.label.array, result.label.array)
        assert again.label.same_grid(result.label)
    for scan in (array, array[None]):
        assert predictor.predict(scan, spacing_mm=spacing).label.shape == result.label.shape
    assert np.array_equal(
        predictor.predict(array, spacing_mm=spacing).label.array,
        predictor.predict(cs.Volume(array, volume_affine(spacing))).label.array,
    )


def volume_affine(spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Axes of an array without a header: D to the head, H to the front, W to the right."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing_mm, 1
    return affine


def test_a_wrong_scan_is_told_so(run: Path) -> None:
    predictor = cs.load(run)
    cube = np.zeros((20, 24, 24), np.float32)
    with pytest.raises(cs.ContextsegError, match="spacing_mm"):
        predictor.predict(cube)
    with pytest.raises(cs.ContextsegError, match="a 2-D array"):
        predictor.predict(cube[0], spacing_mm=(1, 1, 1))
    with pytest.raises(cs.ContextsegError, match="2 channels"):
        predictor.predict(np.stack([cube, cube]), spacing_mm=(1, 1, 1))


def test_a_segmentation_is_saved_with_its_confidence(data: Path, run: Path, tmp_path: Path) -> None:
    path = next((data / "imagesTs").glob("*.nii.gz"))
    result = cs.load(run, mirror=False).predict(path, name="patient")
    saved = result.save(tmp_path / "new" / "out.nii.gz")
    assert np.array_equal(cs.read_labels(saved).array, result.label.array)
    confidence = cs.read_labels(tmp_path / "new" / "confidence" / "out.nii.gz")
    assert result.confidence is not None
    assert np.array_equal(confidence.array, result.confidence.array)
    voxel_ml = np.prod(result.label.spacing_mm) / 1000
    assert result.volumes_ml == {
        "bright": pytest.approx((result.label.array == 1).sum() * voxel_ml)
    }
    assert repr(result).startswith("Segmentation(patient: 20 x 24 x 24; bright ")
    assert "data:image/png" in result._repr_html_()
    assert cs.load(run, confidence=False).predict(path).confidence is None


def test_a_folder_is_predicted_from_python(data: Path, run: Path, tmp_path: Path) -> None:
    made = cs.load(run).predict_folder(data / "imagesTs", tmp_path)
    assert all(path.exists() for path in made.values())
    table = cs.evaluate(tmp_path, data / "labelsTs", verbose=False)
    assert list(table["case"]) == list(made)
    assert not table.attrs["unused_files"]


def test_predictions_carry_who_made_them(data: Path, run: Path, tmp_path: Path) -> None:
    """The same model goes on; another, other settings, other scans and unknown files do not."""
    out, scans = tmp_path / "out", tmp_path / "scans"
    scans.mkdir()
    images = sorted((data / "imagesTr").glob("*.nii.gz"))[:2]
    for name, image in zip(("a", "b"), images):
        shutil.copy(image, scans / f"{name}.nii.gz")
    predictor = cs.load(run)
    made = predictor.predict_folder(scans, out)
    record = read_json(out / "predicted_by.json")
    assert record["made_by"]["models"][0].startswith("Supervised-")
    assert list(record["scans"]) == ["a", "b"]

    before = made["a"].stat().st_mtime_ns
    made["b"].unlink()
    cs.load(run, windows=1).predict_folder(scans, out)  # as after a kill
    assert made["b"].exists()
    assert made["a"].stat().st_mtime_ns == before

    with pytest.raises(cs.ContextsegError, match=r"step was 0\.5 and is now 0\.9"):
        cs.load(run, step=0.9).predict_folder(scans, out)
    other = cs.load(run)
    with torch.no_grad():
        next(other.members[0].method.parameters()).add_(1)
    with pytest.raises(cs.ContextsegError, match="another model or other settings"):
        other.predict_folder(scans, out)
    other.predict_folder(scans, tmp_path / "other")

    shutil.copy(images[1], scans / "a.nii.gz")
    with pytest.raises(cs.ContextsegError, match="other scans with the same names: a"):
        predictor.predict_folder(scans, out)
    shutil.copy(images[0], scans / "a.nii.gz")
    (out / "predicted_by.json").unlink()
    with pytest.raises(cs.ContextsegError, match="nothing says which model made"):
        predictor.predict_folder(scans, out)
    for path in made.values():
        path.unlink()
    predictor.predict_folder(scans, out)


def test_a_damaged_record_is_one_message(data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "predicted_by.json").write_text("[]", encoding="utf-8")
    with pytest.raises(cs.ContextsegError, match="it is \\[\\], not an object"):
        cs.load(run).predict_folder(data / "imagesTs", tmp_path)


def test_predictions_never_go_among_their_scans(data: Path, run: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    scan = scans / "a.nii.gz"
    shutil.copy(next((data / "imagesTs").glob("*.nii.gz")), scan)
    if LINKS:
        (tmp_path / "link").symlink_to(scans, target_is_directory=True)
    predictor = cs.load(run)
    linked = tmp_path / "link" if LINKS else scans
    for images, output in ((scans, scans), (scan, scans), (scans, linked)):
        with pytest.raises(cs.ContextsegError, match="the output folder"):
            predictor.predict_folder(images, output)
    for folder in ("imagesTs", "labelsTs", ""):
        with pytest.raises(cs.ContextsegError, match="the output folder"):
            predictor.predict_folder(data, data / folder)
    with pytest.raises(cs.ContextsegError, match="the output folder"):
        cs.two_stage(run, scans, scans, verbose=False)
    assert [path.name for path in scans.iterdir()] == ["a.nii.gz"]


def test_predictions_inside_the_folder_of_scans_are_no_scan(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(next((data / "imagesTs").glob("*.nii.gz")), tmp_path / "a.nii.gz")
    (tmp_path / "b.npy").write_bytes(b"")
    for _ in range(2):
        assert list(cs.load(run).predict_folder(tmp_path, tmp_path / "out")) == ["a"]
        assert "1 file is not used: b.npy" in capsys.readouterr().err


def test_two_stages_do_not_take_up_what_others_made(data: Path, run: Path, tmp_path: Path) -> None:
    cs.load(run).predict_folder(data / "imagesTs", tmp_path)
    with pytest.raises(cs.ContextsegError, match="another model or other settings"):
        cs.two_stage(run, data / "imagesTs", tmp_path, verbose=False)


def test_a_predictor_refuses_settings_of_training(run: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="does not use"):
        cs.load(run, **{"training.steps": 5})
    for name in ("steps", "save_every", "seed"):
        with pytest.raises(cs.ContextsegError, match="does not use this setting"):
            cs.load(run, **{name: "5"})
    with pytest.raises(cs.ContextsegError, match=r"did you mean prediction\.mirror"):
        cs.load(run, miror=False)


def test_an_unknown_setting_gets_the_nearest(data: Path, tmp_path: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="did you mean"):
        cs.train(data, tmp_path / "run", stesp=3)
    assert not (tmp_path / "run").exists()


def test_scans_are_filled_from_python(data: Path, tmp_path: Path) -> None:
    case = cs.open_dataset(data).test[0]
    assert case.label is not None
    truth = cs.read_labels(case.label)
    there = np.flatnonzero(truth.array.any((1, 2)))
    drawn = np.zeros_like(truth.array)
    drawn[[there[0], there[-1]]] = truth.array[[there[0], there[-1]]]
    filled = cs.propagate(
        case.images[0], truth.with_array(drawn), tmp_path / "filled.nii.gz", verbose=False
    )
    assert filled.label.array[there].any((1, 2)).all()
    assert np.array_equal(cs.read_labels(tmp_path / "filled.nii.gz").array, filled.label.array)
    with pytest.raises(cs.ContextsegError, match="the output file is the scan or the labels"):
        cs.propagate(case.images[0], case.label, case.label, verbose=False)
    with pytest.raises(cs.ContextsegError, match=r"that end in '\.xyz' are not written"):
        cs.propagate("before it is read", case.label, tmp_path / "a.xyz", verbose=False)
    place, why = filled.suggestion
    assert there[0] < place < there[-1]
    assert "stretch" in why


def test_an_option_is_no_setting(data: Path, tmp_path: Path) -> None:
    command = ["train", str(data), "-o", str(tmp_path / "run"), "--set", "seed=3"]
    with pytest.raises(cs.ContextsegError, match="leave out --set: --seed 3"):
        cli.app(command, standalone_mode=False)


@pytest.mark.parametrize("end", [".nii.gz", ".mha"])
def test_names_with_dots_keep_their_own_tables(data: Path, tmp_path: Path, end: str) -> None:
    case = cs.open_dataset(data).test[0]
    for name in ("1.3.6.01", "1.3.6.02"):
        out = tmp_path / f"{name}{end}"
        cs.propagate(case.images[0], case.label, out, between=True, verbose=False)
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == [
        "1.3.6.01-slices.csv",
        "1.3.6.02-slices.csv",
    ]


def test_a_run_predicts_where_its_device_is_not(run: Path, tmp_path: Path) -> None:
    """Trained on a GPU that this machine has not: it is said, and what is here is used."""
    import json
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = json.loads((copy / "run.json").read_text(encoding="utf-8"))
    content["settings"]["training"]["device"] = "cuda:7"
    (copy / "run.json").write_text(json.dumps(content), encoding="utf-8")
    [member] = cs.load(copy).members
    assert next(member.method.parameters()).device.type in ("cpu", "cuda")
    [member] = cs.load(copy, device="cpu").members
    assert next(member.method.parameters()).device.type == "cpu"
    with pytest.raises(cs.ContextsegError, match="device=gpu7: this device cannot be used here"):
        cs.load(run, device="gpu7")


def test_only_a_folder_has_series(run: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="only a DICOM folder has series"):
        cs.load(run).predict(np.zeros((4, 5, 6)), spacing_mm=(1, 1, 1), series="2")
