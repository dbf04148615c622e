"""The Python face: what it offers, that it is fast, and the command line as a layer over it."""

from __future__ import annotations

import inspect
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
import typer

import contextseg as cs
from contextseg import api, cli
from contextseg.data import phantom

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

    from contextseg.arguments import StrPath
    from contextseg.data.check import Finding
    from contextseg.data.plan import Plan
    from contextseg.pipeline import Outcome
    from contextseg.propagation import Filled
    from contextseg.runs import Run
    from contextseg.studies.api import Methods
    from contextseg.studies.compare import Comparison, Forecast
    from contextseg.studies.curve import Curve
    from contextseg.studies.diagnose import Diagnosis
    from contextseg.studies.reproduce import Reproduced

    known = (Finding, Plan, Outcome, Filled, Run, Comparison, Forecast, Curve, Diagnosis)
    names: dict[str, object] = {kind.__name__: kind for kind in (*known, Reproduced)}
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


def test_a_predictor_refuses_settings_of_training(run: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="does not use"):
        cs.load(run, **{"training.steps": 5})
    with pytest.raises(cs.ContextsegError, match="no such setting"):
        cs.load(run, steps=5)


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
    place, why = filled.suggestion
    assert there[0] < place < there[-1]
    assert "stretch" in why


def test_an_option_is_no_setting(data: Path, tmp_path: Path) -> None:
    command = ["train", str(data), "-o", str(tmp_path / "run"), "--set", "seed=3"]
    with pytest.raises(cs.ContextsegError, match="leave out --set: --seed 3"):
        cli.app(command, standalone_mode=False)
