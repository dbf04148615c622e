"""The background split beforehand: each way through a whole run on phantoms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contextseg.data import phantom
from contextseg.data.prepare import placed, undo
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.methods.context import Contexts, kmeans, nearest_centre
from contextseg.methods.split import _grouped, _known
from contextseg.pipeline import run_pipeline, train_run
from contextseg.runs import Run
from contextseg.settings import Settings
from contextseg.volume import read, read_labels, write

torch.set_num_threads(1)
SMALL = ["steps=2", "patch_vox=16,16,16", "base_width=4", "batch_size=2", "spacing_mm=2,1,1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(
        tmp_path_factory.mktemp("data"), labelled=3, test=1, classes=3, look_alikes=2
    )


def make_run(
    data: Path,
    folder: Path,
    *words: str,
    roi: tuple[str, ...] = ("bright",),
    method: str = "context",
) -> Run:
    return Run(folder, Settings(str(data), method, roi=roi).set([*SMALL, *words]))


def first_label(run: Run, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """(label with contexts, the case's own label) of the first training case."""
    case = run.cached(run.split[0])[0]
    return np.load(next(run.folder.glob(f"{stage}-*")) / f"{case.record.name}.npy"), np.array(
        case.label
    )


def test_clusters_are_of_intensity_darkest_first(data: Path, tmp_path: Path) -> None:
    run = make_run(data, tmp_path / "run", "context_classes=3")
    method = train_run(run)
    assert isinstance(method, Contexts)
    assert method.net.heads[0].out_channels == 2 + 2
    label, own = first_label(run, "context")
    assert set(np.unique(label)) <= {0, 1, 2, 3}
    assert np.array_equal(label == 1, own == 1)  # the ROI is as it was
    image = run.image(run.cached(run.split[0])[0])[0]
    means = [image[label == k].mean() for k in (0, 2, 3)]
    assert means == sorted(means)
    assert [
        c[0] for c in read_json(next(tmp_path.glob("run/clusters-*")) / "centres.json")
    ] == pytest.approx(means, abs=0.5)


def test_a_finished_run_is_opened_without_what_split_the_background(
    data: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    for path in (data / "labelsTr").iterdir():
        volume = read_labels(path)
        write(
            masks / path.name, volume.with_array(np.where(volume.array == 2, 7, 0).astype(np.uint8))
        )
    write_json(masks / "labels.json", {"background": 0, "organ": 7})
    run = make_run(data, tmp_path / "run", "context=predicted", f"masks={masks}")
    outcome = run_pipeline(run)
    assert outcome.table is not None
    label, own = first_label(run, "context")
    assert set(np.unique(label)) == {0, 1, 2}
    for path in masks.iterdir():
        path.unlink()
    again = Run.open(tmp_path / "run").finished()
    assert again.state_dict()["net.heads.0.weight"].shape[0] == 3
    assert set(np.unique(read_labels(next(outcome.predictions.glob("*.nii.gz"))).array)) <= {0, 1}
    assert own.max() == 1


def test_the_data_sets_own_organs_are_context(data: Path, tmp_path: Path) -> None:
    run = make_run(data, tmp_path / "run", "context=anatomy")
    train_run(run)
    label, own = first_label(run, "context")
    case = run.split[0][0]
    scan = read_labels(case.label or "")
    record = run.cached([case])[0].record
    dark = placed((scan.array == 2).astype(np.int16), record, own.shape)
    assert np.array_equal(label == 2, (dark == 1) & (own == 0))
    assert (label == 2).any()
    with pytest.raises(ContextsegError, match="no labelled organs beside the ROI"):
        train_run(make_run(data, tmp_path / "all", "context=anatomy", roi=()))


def test_another_runs_prediction_is_context(data: Path, tmp_path: Path) -> None:
    organs = make_run(
        data,
        tmp_path / "organs",
        "steps=30",
        "lr=0.003",
        "optimizer=adamw",
        roi=("dark",),
        method="supervised",
    )
    train_run(organs)
    run = make_run(data, tmp_path / "run", "context=predicted", f"masks={tmp_path / 'organs'}")
    train_run(run)
    label, own = first_label(run, "context")
    assert np.array_equal(label == 1, own == 1)
    scan = read(*run.split[0][0].images)
    predicted = Run.open(organs.folder).predictor().predict(scan).label.array == 2
    there = placed(predicted.astype(np.int16), run.cached(run.split[0])[0].record, own.shape) == 1
    assert np.array_equal(label == 2, there & (own == 0))


@pytest.mark.parametrize(
    "words", [("context=none",), ("context=dilated",), ("context=colab", "context_classes=3")]
)
def test_every_other_way_ends_in_labels_of_the_roi(
    data: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    outcome = run_pipeline(make_run(data, tmp_path, *words))
    assert outcome.table is not None
    assert set(np.unique(read_labels(next(outcome.predictions.glob("*.nii.gz"))).array)) <= {0, 1}


def test_colab_has_the_distance_over_the_whole_case(data: Path, tmp_path: Path) -> None:
    import edt

    run = make_run(data, tmp_path, "distance_unit=mm", method="colab")
    train_run(run)
    distance, own = first_label(run, "maps")
    expected = edt.edt(np.ascontiguousarray(own != 1), anisotropy=(2, 1, 1))
    assert distance.shape == (1, *own.shape)
    assert np.allclose(distance[0], expected, rtol=1e-3)


def test_wrong_contexts_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="kmeans"):
        train_run(make_run(data, tmp_path / "a", "context=kmean"))
    with pytest.raises(ContextsegError, match="masks=FOLDER"):
        train_run(make_run(data, tmp_path / "b", "context=predicted"))
    with pytest.raises(ContextsegError, match="no such folder"):
        train_run(make_run(data, tmp_path / "c", "context=anatomy", "masks=nowhere"))


# --- parts ----------------------------------------------------------------------------------------


def test_kmeans_finds_the_tissues() -> None:
    rng = np.random.default_rng(0)
    tissues = np.array([[5.0, 0.0], [-3.0, 1.0], [1.0, 9.0]])
    sample = np.concatenate([t + rng.normal(0, 0.1, (50, 2)) for t in tissues])
    centres = kmeans(sample, 3)
    assert np.allclose(centres, tissues[[1, 2, 0]], atol=0.1)
    image = tissues.T.reshape(2, 3, 1)
    assert nearest_centre(image, centres).ravel().tolist() == [2, 0, 1]
    with pytest.raises(ContextsegError, match="lower context_classes"):
        kmeans(np.ones((9, 1)), 2)


def test_left_and_right_are_one_context() -> None:
    assert _grouped(["left_parotid", "mandible", "right_parotid", "cord"]) == [1, 2, 1, 3]


def test_an_organ_that_was_not_annotated_is_unknown() -> None:
    from contextseg.data.layouts import Case

    case = Case("a", (), annotated=("tumour",))
    names, groups = ["left_parotid", "cord", "right_parotid"], [1, 2, 1]
    classes = ["background", "tumour"]
    assert _known(classes, case, names, groups, None) == (True, True, True, True)
    assert _known(classes, case, names, groups, ("cord", "left_parotid")) == (
        True,
        True,
        False,
        True,
    )
    unknown = Case("a", (), annotated=())
    assert _known(classes, unknown, names, groups, None) == (True, False, False, False)


def test_placed_is_the_way_back_from_undo(data: Path, tmp_path: Path) -> None:
    run = make_run(data, tmp_path)
    run.check()
    run.make_plan()
    run.preprocess()
    case = run.cached(run.split[0])[0]
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, case.record.shape).astype(np.int16)
    assert np.array_equal(
        placed(undo(label, case.record).array, case.record, case.record.shape), label
    )
