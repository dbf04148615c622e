"""What is predicted beside label maps, by several processes, and by networks of other plans."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import contextseg as cs
from contextseg.data import phantom
from contextseg.data.components import keep_largest_of
from contextseg.data.listing import Case
from contextseg.disk import lock_folder, read_json
from contextseg.memory_errors import is_memory_error
from contextseg.predict import STEPS, ProbabilityStore, labels_from_slabs
from contextseg.predict.memory import scan_gb, windows_at_once
from contextseg.predict.record import PredictionRecord
from contextseg.predictor import part_of, segment_missing
from contextseg.settings import PredictionSettings
from contextseg.volume import Volume
from systems import needs_locks

TINY = {
    "steps": 8,
    "base_width": 4,
    "max_levels": 2,
    "batch_size": 2,
    "device": "cpu",
    "lr": 0.02,
    "prediction.mirror": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("predicted") / "data", labelled=3, test=2)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicted") / "run"
    cs.train(data, folder, patch_vox=(16, 16, 16), verbose=False, **TINY)
    return folder


@pytest.fixture(scope="module")
def flat(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-D run at another spacing."""
    folder = tmp_path_factory.mktemp("predicted") / "flat"
    size = {"dims": 2, "patch_vox": (16, 16), "spacing_mm": (3, 1.5, 1.5)}
    cs.train(data, folder, verbose=False, **TINY, **size)
    return folder


# --- probabilities --------------------------------------------------------------------------------


def test_stored_probabilities_are_the_softmax_of_interpolated_logits() -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(3, 4, 5, 6)).astype(np.float32))
    shape = (7, 9, 8)
    store = ProbabilityStore(shape, 3)
    label = labels_from_slabs(
        [(0, 2, logits[:, :2]), (2, 4, logits[:, 2:])], (4, 5, 6), shape, probabilities=store
    )
    finer = torch.nn.functional.interpolate(logits[None], shape, mode="trilinear")[0]
    stored = np.stack([store.of_class(k) for k in range(3)])
    np.testing.assert_allclose(stored / STEPS, finer.softmax(0).numpy(), atol=2 / STEPS)
    best = np.take_along_axis(stored, label[None].astype(int), 0)[0]
    assert (best == stored.max(0)).all()
    with pytest.raises(cs.ContextsegError, match="0 of 7 planes"):
        ProbabilityStore(shape, 3).of_class(0)


def test_probabilities_lie_on_the_scans_grid_and_agree_with_the_label(
    data: Path, run: Path, tmp_path: Path
) -> None:
    scans = data / "imagesTs"
    made = cs.load(run).predict_folder(scans, tmp_path, save_probabilities=True)
    for name, path in made.items():
        label = cs.read_labels(path)
        parts = {
            p.name.removesuffix(".nii.gz"): p for p in (tmp_path / "probabilities" / name).iterdir()
        }
        assert set(parts) == {"background", "bright"}
        maps = [cs.read(parts[c]) for c in ("background", "bright")]
        assert all(m.with_array(m.array[0]).same_grid(label) for m in maps)
        background, bright = (m.array[0] for m in maps)
        np.testing.assert_allclose(background + bright, 1, atol=2 / STEPS)
        clear = np.abs(background - bright) > 2 / STEPS
        assert ((bright > background) == (label.array == 1))[clear].all()
        confidence = cs.read_labels(tmp_path / "confidence" / path.name).array
        assert np.abs(confidence / 255 - np.maximum(background, bright)).max() < 0.35  # of cells
    (tmp_path / "probabilities" / name / "bright.nii.gz").unlink()
    cs.load(run).predict_folder(scans, tmp_path, save_probabilities=True)
    assert (tmp_path / "probabilities" / name / "bright.nii.gz").exists()  # and not left out
    assert not list(tmp_path.rglob(".*"))


def test_probabilities_from_python(data: Path, run: Path) -> None:
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    result = cs.load(run).predict(scan, probabilities=True)
    assert list(result.probabilities or ()) == ["background", "bright"]
    assert result.probabilities is not None
    assert result.probabilities["bright"].array.dtype == np.float32
    with pytest.raises(KeyError):
        result.probabilities["liver"]
    assert cs.load(run).predict(scan).probabilities is None


# --- ensembles of different plans -----------------------------------------------------------------


def test_networks_of_different_plans_are_averaged_on_the_scans_grid(
    data: Path, run: Path, flat: Path
) -> None:
    """The mean of their probabilities, whatever the order; alone each is itself."""
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    alone = [cs.load(folder).predict(scan, probabilities=True) for folder in (run, flat)]
    both = cs.load(run, flat).predict(scan, probabilities=True)
    turned = cs.load(flat, run).predict(scan)
    assert np.array_equal(both.label.array, turned.label.array)
    maps = [result.probabilities for result in (*alone, both)]
    assert all(m is not None for m in maps)
    first, second, mean = (m["bright"].array for m in maps if m is not None)
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(mean, (first + second) / 2, atol=2 / STEPS)
    clear = np.abs(mean - 0.5) > 2 / STEPS
    assert ((mean > 0.5) == (both.label.array == 1))[clear].all()
    assert both.confidence is not None
    expected = np.maximum(mean, 1 - mean) * 255
    assert np.abs(both.confidence.array.astype(float) - expected).max() <= 1


# --- what else is written -------------------------------------------------------------------------


def test_statistics_and_a_mask_of_each_class(data: Path, run: Path, tmp_path: Path) -> None:
    scans = data / "imagesTs"
    made = cs.load(run).predict_folder(scans, tmp_path, statistics=True, class_files=True)
    table = pd.read_csv(tmp_path / "statistics.csv")
    assert list(table["case"]) == sorted(made)
    for row in table.to_dict("records"):
        label = cs.read_labels(made[row["case"]])
        inside = label.array == 1
        assert row["voxels"] == inside.sum() > 0
        assert row["volume_ml"] == pytest.approx(inside.sum() * np.prod(label.spacing_mm) / 1000)
        values = cs.read(scans / f"{row['case']}_0000.nii.gz").array[0][inside]
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert row["median"] == pytest.approx(np.median(values), rel=1e-5)
        mask = cs.read_labels(tmp_path / "classes" / row["case"] / "bright.nii.gz")
        assert np.array_equal(mask.array == 1, inside)
    (tmp_path / "statistics.csv").unlink()
    cs.load(run).predict_folder(scans, tmp_path, statistics=True)
    assert len(pd.read_csv(tmp_path / "statistics.csv")) == len(made)


def test_a_subset_of_classes_is_no_other_models_prediction(
    data: Path, run: Path, tmp_path: Path
) -> None:
    predictor = cs.load(run)
    with pytest.raises(cs.ContextsegError, match="did you mean bright"):
        predictor.predict_folder(data / "imagesTs", tmp_path, classes=["brihgt"])
    predictor.predict_folder(data / "imagesTs", tmp_path, classes=["bright"])
    with pytest.raises(cs.ContextsegError, match="another model or other settings"):
        predictor.predict_folder(data / "imagesTs", tmp_path)


def test_context_classes_are_kept(data: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="no context classes"):
        cs.load(run).predict_folder(data / "imagesTs", tmp_path / "a", save_contexts=True)
    colab = tmp_path / "colab"
    cs.train(
        data,
        colab,
        method="colab",
        context_classes=3,
        patch_vox=(16, 16, 16),
        verbose=False,
        **TINY,
    )
    made = cs.load(colab).predict_folder(data / "imagesTs", tmp_path / "b", save_contexts=True)
    for path in made.values():
        contexts = cs.read_labels(tmp_path / "b" / "contexts" / path.name).array
        assert set(np.unique(contexts)) <= {0, 1, 2, 3}
        assert len(np.unique(contexts)) > 1


def test_the_largest_part_of_some_classes() -> None:
    label = Volume(np.array([[[1, 1, 0, 1, 2, 0, 2, 2]]], np.uint8), np.eye(4))
    kept, change = keep_largest_of(label, [1])
    assert kept.array.tolist() == [[[1, 1, 0, 0, 2, 0, 2, 2]]]
    assert (change.removed_components, change.removed_vox) == (1, 1)
    assert keep_largest_of(label, [1, 2])[0].array.tolist() == [[[1, 1, 0, 0, 0, 0, 2, 2]]]
    assert keep_largest_of(label, [])[0].array.tolist() == label.array.tolist()


# --- parts ----------------------------------------------------------------------------------------


def test_parts_are_all_cases_each_once() -> None:
    cases = [Case(str(i), (Path(f"{i}.nii.gz"),)) for i in range(11)]
    parts = [part_of(cases, f"{i}/4") for i in range(1, 5)]
    assert sorted((c.name for part in parts for c in part), key=int) == [c.name for c in cases]
    assert part_of(cases, "") == tuple(cases)
    for wrong in ("0/4", "5/4", "1", "1/", "a/b", "1/0", "-1/4"):
        with pytest.raises(cs.ContextsegError, match="write 1/4"):
            part_of(cases, wrong)


def test_two_processes_share_a_folder(data: Path, run: Path, tmp_path: Path) -> None:
    """Both parts at once: every case is there, and every case is in the tables that they share."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for i in range(6):
        source = sorted((data / "imagesTs").glob("*.nii.gz"))[i % 2]
        (scans / f"{i}.nii.gz").write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "contextseg", "predict", run, "-i", scans, "-o", out]
    command += ["--statistics", "--part"]
    both = [
        subprocess.Popen([*map(str, command), f"{i}/2"], stderr=subprocess.PIPE, encoding="utf-8")
        for i in (1, 2)
    ]
    for process in both:
        assert process.wait(timeout=200) == 0, process.stderr.read() if process.stderr else ""
    names = [str(i) for i in range(6)]
    assert sorted(p.name for p in out.glob("*.nii.gz")) == [f"{n}.nii.gz" for n in names]
    assert sorted(read_json(out / "predicted_by.json")["scans"]) == names
    table = pd.read_csv(out / "statistics.csv", dtype={"case": str})
    assert sorted(table["case"]) == names
    assert not list(out.rglob(".*"))  # neither locks nor leftovers


@needs_locks
def test_a_whole_prediction_waits_for_no_part(data: Path, run: Path, tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path, shared=True),
        pytest.raises(
            cs.ContextsegError, match=r"another process works in this folder \(.*process"
        ),
    ):
        cs.load(run).predict_folder(data / "imagesTs", tmp_path)
    with lock_folder(tmp_path, shared=True):
        cs.load(run).predict_folder(data / "imagesTs", tmp_path, part="1/2")


def test_records_of_two_processes_are_merged(tmp_path: Path) -> None:
    a, b = (PredictionRecord(tmp_path, {"models": ["m"]}) for _ in range(2))
    for record, name in ((a, "1"), (b, "2"), (a, "3")):
        record.note(Case(name, (tmp_path / f"{name}.nii.gz",)))
    assert list(read_json(tmp_path / "predicted_by.json")["scans"]) == ["1", "2", "3"]


# --- memory ---------------------------------------------------------------------------------------


def test_out_of_memory_is_one_message_and_stops_no_other_case(tmp_path: Path) -> None:
    cases = [Case(name, (tmp_path / name,)) for name in "abc"]
    raised = {
        "a": MemoryError("Unable to allocate 1.4 TiB"),
        "b": RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    }
    done = []

    def segment(case: Case, out: Path) -> None:
        if case.name in raised:
            raise raised[case.name]
        done.append(case.name)

    failed = segment_missing(cases, tmp_path, ".nii.gz", segment)
    assert done == ["c"]
    assert list(failed) == ["a", "b"]
    assert all("memory_gb" in why and "windows=1" in why for why in failed.values())
    with pytest.raises(RuntimeError, match="another"):
        segment_missing(cases[2:], tmp_path, ".nii.gz", _fail)
    assert is_memory_error(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert not is_memory_error(RuntimeError("sizes must match"))


def _fail(case: Case, out: Path) -> None:
    raise RuntimeError("another")


def test_memory_gb_bounds_a_prediction(data: Path, run: Path, tmp_path: Path) -> None:
    scan = next((data / "imagesTs").glob("*.nii.gz"))
    with pytest.raises(cs.ContextsegError, match=r"memory.*allowed.*raise memory_gb"):
        cs.load(run, memory_gb=1e-5).predict(scan)
    label = cs.load(run).predict(scan).label.array
    assert np.array_equal(cs.load(run, memory_gb=1).predict(scan).label.array, label)
    assert windows_at_once((16, 16, 16), 0, 0) == 64
    assert windows_at_once((16, 16, 16), 0.01, 0.003) == 3
    assert windows_at_once((16, 16, 16), 1e-6, 0.003) == 1
    # One channel of 2**27 voxels at twice the spacing; 8 classes in slabs of 64 x 256 x 256.
    gigabytes = scan_gb(2**27, 1, 8, (256, 256, 256), (64, 64, 64))
    assert gigabytes == pytest.approx(0.5 + 2 * 0.0625 + 0.125 + 0.375 + 0.125)
    with pytest.raises(cs.ContextsegError, match="memory_gb"):
        PredictionSettings(memory_gb=-1)


def test_an_absurd_spacing_is_named_before_anything_is_made(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 60 mm the phantom would have 1200 x 1440 x 1440 times as many voxels as fit."""
    scan = cs.read(next((data / "imagesTs").glob("*.nii.gz")))
    wrong = Volume(scan.array, np.diag([5e3, 80, 80, 1.0]) @ np.sign(scan.affine))
    monkeypatch.setattr("contextseg.predictor.predictor.prepared_scan", None)
    with pytest.raises(cs.ContextsegError, match=r"resampled it would have .* voxels"):
        cs.load(run).predict(wrong)
