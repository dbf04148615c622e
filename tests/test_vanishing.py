"""Lesions that vanish in resampling, and labels from which nothing can be learnt, are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import contextseg as cs
from contextseg.batch import IGNORE
from contextseg.data import phantom
from contextseg.data.layouts import folds
from contextseg.data.vanishing import Vanished, lost_parts, vanished_sentences
from contextseg.disk import read_json
from contextseg.resampling import resample_labels
from contextseg.volume import read_labels, write

TINY = {
    "steps": 2,
    "base_width": 4,
    "max_levels": 2,
    "batch_size": 2,
    "patch_vox": (8, 8, 8),
    "device": "cpu",
    "check_every": 0,
}


def dots(shape: tuple[int, int, int], at: list[tuple[int, int, int]], value: int = 2) -> np.ndarray:
    """A label with a block of class 1, and single voxels of another."""
    label = np.zeros(shape, np.int16)
    label[: shape[0] // 2, : shape[1] // 2, : shape[2] // 2] = 1
    for place in at:
        label[place] = value
    return label


def test_parts_without_a_voxel_are_lost() -> None:
    label = dots((12, 12, 12), [(9, 9, 9), (9, 9, 2), (2, 9, 9)])
    coarse = resample_labels(label, (4, 4, 4))
    # The centres of the coarse voxels are voxels 1, 4, 7, 10: none of the dots is at one.
    assert lost_parts(label, coarse) == {2: (3, 3)}
    label[10, 10, 10] = 2  # it touches the first one, at the centre of a coarse voxel
    assert lost_parts(label, resample_labels(label, (4, 4, 4))) == {2: (3, 2)}
    assert lost_parts(label, label) == {}
    assert lost_parts(np.full((2, 2, 2), IGNORE), np.full((1, 1, 1), IGNORE)) == {}


@pytest.mark.parametrize("seed", range(5))
def test_as_scipy_counts_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = (ndimage.gaussian_filter(rng.normal(size=(20, 24, 24)), 1.2) > 0.12).astype(np.int16)
    coarse = resample_labels(label, (7, 9, 8))
    parts, count = ndimage.label(label, np.ones((3, 3, 3)))
    index = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(label.shape, coarse.shape)]
    kept = set(np.unique(parts[(coarse[np.ix_(*index)] == 1)])) - {0}
    lost = count - len(kept)
    assert lost > 0
    assert lost_parts(label, coarse) == {1: (count, lost)}


def test_in_words() -> None:
    rows = {"lesion": [Vanished("a", 3, 1), Vanished("b", 1, 1)]}
    [(what, remedy)] = vanished_sentences(rows, (4, 2, 2))
    assert what == (
        "2 of 4 connected parts of lesion vanish at 2 x 2 x 4 mm: a (1 of 3), b (1 of 1); "
        "nothing of it is left in b"
    )
    assert remedy.endswith("--set spacing_mm=2,1,1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three cases of 1.5 x 1 x 1 mm or so, the first of which holds four lesions of one voxel."""
    folder = phantom.write_dataset(tmp_path / "data", labelled=3, test=1, classes=3)
    path = sorted((folder / "labelsTr").glob("*.nii.gz"))[0]
    label = read_labels(path)
    array = np.where(label.array == 2, 0, label.array)
    for place in ((3, 3, 3), (3, 16, 3), (12, 3, 16), (16, 20, 20)):
        array[place] = 2
    write(path, label.with_array(array))
    return folder


def test_what_vanishes_is_named_by_plan_run_and_report(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spacing = tuple(4 * mm for mm in read_labels(next((data / "labelsTr").iterdir())).spacing_mm)
    cs.plan(data, spacing_mm=spacing, patch_vox=(8, 8, 8))
    planned = capsys.readouterr().err
    assert "connected parts of dark vanish at" in planned
    assert "nothing of it is left in phantom_000" in planned
    outcome = cs.run(data, tmp_path / "run", fold="all", spacing_mm=spacing, **TINY)
    assert "connected parts of dark vanish at" in capsys.readouterr().err
    [row, *_] = read_json(tmp_path / "run" / "preprocess" / "vanished.json")["dark"]
    assert (row["case"], row["parts"]) == ("phantom_000", 4)
    assert "parts of dark vanish" in (outcome.folder / "report.html").read_text(encoding="utf-8")
    # By the remedy nothing is lost any more.
    cs.plan(data, spacing_mm=tuple(mm / 4 for mm in spacing), patch_vox=(8, 8, 8))
    assert "vanish" not in capsys.readouterr().err


def test_check_names_what_vanishes_at_the_spacing_planned_by_default(data: Path) -> None:
    assert not [f for f in cs.check(data, verbose=False) if f.kind == "vanishing"]
    for path in sorted((data / "labelsTr").glob("*.nii.gz"))[1:]:  # the others are coarser
        for file in (path, data / "imagesTr" / path.name.replace(".nii", "_0000.nii")):
            scan = read_labels(file) if file == path else cs.read(file)
            affine = scan.affine.copy()
            affine[:3, :3] *= 4
            array = scan.array if file == path else scan.array[0]
            write(file, cs.Volume(array, affine))
    [finding] = [f for f in cs.check(data, verbose=False) if f.kind == "vanishing"]
    assert finding.level == "warning"
    assert finding.cases == ("phantom_000",)
    assert "connected parts of dark vanish" in finding.what
    assert "planned by default" in finding.what


def test_labels_that_are_all_empty_are_an_error(tmp_path: Path) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0)
    for path in (data / "labelsTr").glob("*.nii.gz"):
        label = read_labels(path)
        write(path, label.with_array(np.zeros_like(label.array)))
    [error] = [f for f in cs.check(data, verbose=False) if f.level == "error"]
    assert error.kind == "nothing-labelled"
    assert error.what == "every label is empty: bright cannot be learnt"
    with pytest.raises(cs.ContextsegError, match="every label is empty"):
        cs.run(data, tmp_path / "run", verbose=False, **TINY)


def test_a_class_of_validation_cases_alone_is_named_by_run_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=5, test=0, classes=3)
    held_out = {case.name for case in folds(cs.open_dataset(data), 0)[1]}
    for path in (data / "labelsTr").glob("*.nii.gz"):
        if path.name.removesuffix(".nii.gz") not in held_out:
            label = read_labels(path)
            write(path, label.with_array(np.where(label.array == 2, 0, label.array)))
    outcome = cs.run(data, tmp_path / "run", fold=0, **TINY)
    said = "class dark cannot be learnt: at the plan's spacing it is in validation cases only"
    assert said in capsys.readouterr().err
    assert outcome.report is not None
    assert "dark cannot be learnt" in outcome.report.read_text(encoding="utf-8")


def test_what_check_warns_of_is_shown_by_run_and_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=1)
    path = sorted((data / "labelsTr").glob("*.nii.gz"))[0]
    label = read_labels(path)
    write(path, label.with_array(np.zeros_like(label.array)))
    outcome = cs.run(data, tmp_path / "run", fold="all", **TINY)
    assert "warning: " in (errors := capsys.readouterr().err)
    assert "the label is empty: all background" in errors
    assert outcome.report is not None
    assert "the label is empty: all background" in outcome.report.read_text(encoding="utf-8")
