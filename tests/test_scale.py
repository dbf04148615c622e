"""Large scans are worked on in slabs with the same result, and work grows with the cases alone."""

from __future__ import annotations

import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contextseg as cs
import laws
from contextseg import parallel, slabs
from contextseg.data import cache, phantom
from contextseg.data import prepare as room
from contextseg.data.check import check
from contextseg.data.layouts import Case, open_dataset, survey
from contextseg.data.normalised import NormalisedScan
from contextseg.data.plan import Channel, Plan
from contextseg.data.prepare import normalise, prepare, prepare_in_slabs
from contextseg.data.sizes import largest_file_gb, workers_for
from contextseg.disk import note_case, read_json, read_rows
from contextseg.errors import ContextsegError, Spellings
from contextseg.predict import sliding_window
from contextseg.predict.memory import slab_home
from contextseg.predict.record import NEW_SCANS, PredictionRecord, gathered
from contextseg.projects.table import ProjectCase, ProjectTable
from contextseg.resampling import resample, resample_labels, resample_slab
from contextseg.volume import Volume, read_labels, write

SMALL = 1 << 10


@contextmanager
def small_slabs(voxels: int = SMALL) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs, "SLAB_VOX", voxels)
        yield


def plan(spacing: tuple[float, float, float], **changes: Any) -> Plan:
    return replace(laws.plan(), spacing_mm=spacing, **changes)


def patient(shape: tuple[int, int, int] = (30, 34, 38)) -> tuple[Volume, np.ndarray]:
    image, label = phantom.patient(3, shape, classes=3, look_alikes=2)
    affine = np.array([[0.0, 0, 1, -10], [0, -1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    return Volume((image[None] * 100).astype(np.int16), affine), label


# --- the same result ------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (3.1, 1.3, 1.2), (1.1, 0.9, 1.4)])
@pytest.mark.parametrize("orientation", ["SAR", "LSA"])
def test_a_scan_is_prepared_in_slabs_as_at_once(
    spacing: tuple[float, float, float], orientation: str
) -> None:
    scan, label = patient()
    asked = plan(spacing, orientation=orientation)
    image, classes, body, record = prepare(scan, asked, "a", label)
    with small_slabs():
        again = prepare(scan, asked, "a", label)
    np.testing.assert_allclose(again[0], image, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(again[1], classes)
    np.testing.assert_array_equal(again[2], body)
    assert replace(again[3], mean=record.mean, sd=record.sd) == record
    np.testing.assert_allclose(again[3].mean + again[3].sd, record.mean + record.sd, rtol=1e-12)


def test_a_body_is_found_in_slabs_as_at_once() -> None:
    rng = np.random.default_rng(0)
    noisy, _ = patient((270, 12, 260))  # blocks of 2 x 1 x 2 voxels
    stripped = noisy.array.copy()
    stripped[:, :100] = 0
    for array, channel in product(
        (noisy.array, stripped, rng.normal(size=noisy.array.shape)), "mc"
    ):
        kind = Channel("CT", "ct") if channel == "c" else Channel("MR", "zscore")
        asked = plan((2.0, 1.0, 1.0), channels=(kind,))
        scan = noisy.with_array(array)
        whole = prepare(scan, asked)
        with small_slabs(12 * 260 * 8):
            parts = prepare(scan, asked)
        assert whole[3].box == parts[3].box
        np.testing.assert_array_equal(whole[2], parts[2])


@pytest.mark.parametrize("order", [0, 1, 3, (1, 3, 3)])
@pytest.mark.parametrize("shape", [(40, 20, 17), (12, 20, 17), (30, 9, 30)])
def test_a_slab_is_a_part_of_what_is_resampled(order: Any, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).integers(-1000, 3000, (2, 30, 20, 17)).astype(np.int16)
    whole = resample(array, shape, order)
    for start, stop in ((0, 5), (5, shape[0]), (3, 4)):
        part = resample_slab(array, shape, order, start, stop)
        np.testing.assert_allclose(part, whole[:, start:stop], rtol=2e-6, atol=5e-3)


@pytest.mark.parametrize("shape", [(40, 50, 30), (13, 21, 44), (24, 9, 60)])
def test_labels_are_resampled_in_slabs_as_at_once(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 6, (6, 7, 8))
    label = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.int16) - 1
    whole = resample_labels(label, shape)
    with small_slabs():
        parts = resample_labels(label, shape)
    differ = np.argwhere(parts != whole)
    assert len(differ) <= 1e-3 * whole.size
    for place in map(tuple, differ):  # only where two labels have the same share, to rounding
        shares = [resample(label == at[place], shape, 1)[place] for at in (parts, whole)]
        assert abs(shares[0] - shares[1]) < 1e-6


def test_counts_samples_and_digests_are_those_of_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    for kind in (np.int8, np.uint8, np.int16, np.int32):
        label = rng.integers(0, 5, (20, 11, 13)).astype(kind)
        for voxels in (SMALL, 1 << 24):
            with small_slabs(voxels):
                for mine, theirs in zip(
                    slabs.value_counts(label), np.unique(label, return_counts=True)
                ):
                    np.testing.assert_array_equal(mine, theirs)
                mask = label > 2
                for most in (50, 10**6):
                    flat = np.flatnonzero(mask)
                    drawn = np.random.default_rng(7)
                    if len(flat) > most:
                        flat = drawn.choice(flat, most, replace=False)
                    own = slabs.sample_of(mask, most, np.random.default_rng(7))
                    np.testing.assert_array_equal(own, flat)
    one = slabs.voxel_digest(label)
    with small_slabs():
        assert slabs.voxel_digest(label.astype(np.float64)) == one
        parts = [(p, np.stack([label[p], -label[p]])) for p in slabs.slabs(label.shape)]
        slabs.save_slabs(tmp_path / "a.npy", (2, *label.shape), np.int16, parts)
    np.save(tmp_path / "b.npy", np.stack([label, -label]).astype(np.int16))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert len(slabs.value_counts(label[:0])[0]) == 0


def test_a_case_is_cached_and_planned_in_slabs_as_at_once(tmp_path: Path) -> None:
    folder = phantom.write_dataset(tmp_path / "data", labelled=2, shape=(20, 24, 24), classes=3)
    data = open_dataset(folder)
    asked = plan((1.7, 1.2, 1.1))
    whole = cache.preprocess(data, data.train, asked, tmp_path / "whole")
    facts = cache.fingerprint(data, data.train)
    with small_slabs():
        parts = cache.preprocess(data, data.train, asked, tmp_path / "parts")
        again = cache.fingerprint(data, data.train)
    for a, b in zip(whole, parts):
        assert a.folder.name == b.folder.name
        assert np.abs(a.image.astype(int) - b.image.astype(int)).max() <= 1  # of 65536 steps
        np.testing.assert_array_equal(a.label, b.label)
        assert a.classes == b.classes
        for which in ("body", *a.classes):
            np.testing.assert_array_equal(a.voxels(which), b.voxels(which))
    for one, other in zip(facts, again):
        assert replace(one, roi=()) == replace(other, roi=())
        np.testing.assert_array_equal(one.roi[0], other.roi[0])


def test_every_finding_of_a_scan_is_found_in_slabs(tmp_path: Path) -> None:
    folder = phantom.write_dataset(tmp_path / "data", labelled=6, test=0)
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))
    first = cs.read(images[0])
    changed = first.array.copy()
    changed[0, -1, -1, -1] = np.nan
    write(images[0], first.with_array(changed))
    changed[0, -1, -1, -1] = 1e35
    write(images[1], first.with_array(changed))
    write(images[2], first.with_array(np.full_like(changed, 7)))
    write(images[3], cs.read(images[4]))  # a twin
    label = read_labels(labels[4])
    wrong = label.array.copy()
    wrong[-1, -1, -1] = 9
    write(labels[4], label.with_array(wrong))
    fraction = label.array.astype(np.float32)
    fraction[-1, -1, -1] = 0.4
    write(labels[5], label.with_array(fraction))
    whole = check(folder)
    with small_slabs():
        assert check(folder) == whole
    kinds = {finding.kind for finding in whole}
    assert {"not-finite", "constant", "twin", "label-values", "unreadable"} <= kinds


def test_a_network_sees_the_same_image_whatever_is_made_at_once() -> None:
    scan, _ = patient()
    asked = plan((1.3, 1.1, 1.2))
    ways = [[Channel("MR", "zscore"), Channel("p", "place", source=0)], [Channel("MR", "none")]]
    raw, _, _, record = prepare(scan, asked)
    whole = np.concatenate([normalise(raw, way, record) for way in ways])
    with small_slabs():
        prepared, _, _, _ = prepare_in_slabs(scan, asked)
        lazy = NormalisedScan(prepared, ways, record)
        assert lazy.shape == whole.shape
        for start in (0, 3, 3, 9, 30, 2):  # forward, again, with a gap, and back
            box = (slice(None), slice(start, start + 8), slice(2, 9), slice(4, 20))
            np.testing.assert_allclose(lazy[box], whole[box], rtol=1e-4, atol=1e-3)


def ramp(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, -x, 0 * x + 0.01], 1)


def test_logits_are_summed_elsewhere_and_in_half_the_memory() -> None:
    image = np.random.default_rng(0).normal(size=(1, 20, 18, 22)).astype(np.float32)
    options: dict[str, Any] = {"device": "cpu", "batch_size": 3}
    plain = torch.cat([z for *_, z in sliding_window(ramp, image, (8, 8, 8), **options)], 1)
    for kind, tolerance in ((torch.float32, 0), (torch.float16, 5e-3)):
        home = {"slab_device": "cpu", "slab_type": kind}
        pieces = list(sliding_window(ramp, image, (8, 8, 8), **options, **home))
        assert all(z.dtype == torch.float32 for *_, z in pieces)
        got = torch.cat([z for *_, z in pieces], 1)
        torch.testing.assert_close(got, plain, rtol=tolerance, atol=tolerance)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert slab_home(1.2, 0.5, gpu, memory_gb=4) == (gpu, torch.float32)
    assert slab_home(1.2, 0.5, gpu, memory_gb=2) == (cpu, torch.float32)
    assert slab_home(1.6, 0.5, gpu, memory_gb=2) == (cpu, torch.float16)
    assert slab_home(1.2, 0.5, cpu, memory_gb=2) == (cpu, torch.float32)
    assert slab_home(1.2, 1.0, cpu, memory_gb=2) == (cpu, torch.float16)
    assert slab_home(1e6, 1.0, cpu) == (cpu, torch.float32)  # nobody asked for less memory


# --- bounded memory -------------------------------------------------------------------------------


def traced(act: Callable[[], object]) -> int:
    """The largest memory that arrays took, in bytes."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_a_small_multiple_of_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3 MB as int16; at once they took ten times as much in `check`, and more in the others."""
    folder = phantom.write_dataset(tmp_path / "data", labelled=1, test=0, shape=(96, 128, 128))
    path = next((folder / "imagesTr").glob("*"))
    scan = cs.read(path)
    write(path, scan.with_array((10 * scan.array).astype(np.int16)))
    label = next((folder / "labelsTr").glob("*"))
    write(label, read_labels(label))
    data = open_dataset(folder)
    size = 2 * 96 * 128 * 128
    check(folder, workers=1)  # what is imported and kept is no part of it
    cache.fingerprint(data, data.train, workers=1)
    finer = plan((1.9, 0.95, 0.95))

    def preprocess(asked: Plan) -> None:
        cache.preprocess(data, data.train, asked, tmp_path / str(asked.spacing_mm), workers=1)

    monkeypatch.setattr(room, "_BLOCKS", 16)  # as few blocks for each voxel as of a large scan
    with small_slabs(128 * 128 * 4):
        preprocess(plan((9.0, 9.0, 9.0)))
        assert traced(lambda: check(folder, workers=1)) < 2.5 * size
        assert traced(lambda: cache.fingerprint(data, data.train, workers=1)) < 3 * size
        assert traced(lambda: preprocess(plan((2.0, 1.0, 1.0)))) < 3.5 * size
        assert traced(lambda: preprocess(finer)) < 5 * size


def test_workers_follow_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.nii.gz"
    array = np.zeros((1, 64, 64, 64), np.int16)
    write(path, Volume(array, np.eye(4)))
    assert path.stat().st_size < array.nbytes / 10
    assert largest_file_gb([path]) == array.nbytes / 2**30
    (tmp_path / "b.nrrd").write_bytes(bytes(1000))
    assert largest_file_gb([tmp_path / "b.nrrd", tmp_path / "missing.nii"]) == 4000 / 2**30
    assert largest_file_gb([]) == 0
    monkeypatch.setattr(parallel, "usable_cores", lambda: 4)
    cases = [Case("a", (path,)), Case("b", (path,), path)]
    gb = array.nbytes / 2**30
    for free, workers in ((1e-9, 1), (2.5 * 20 * gb, 2), (100.0, 4), (float("inf"), 4)):
        monkeypatch.setattr(parallel, "free_gb", lambda free=free: free)
        assert workers_for(cases, 2.0, "check") == workers  # 2 x (scan + label), and 8 x for slabs
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("check: 1 case at a time, not 4; the largest takes about")
    monkeypatch.undo()
    assert 0 < parallel.free_gb() <= parallel.machine_gb()


# --- linear in the cases --------------------------------------------------------------------------


class Operations:
    """Calls of functions, and bytes that were read and written, of a block."""

    def __enter__(self) -> Operations:
        self.calls = 0
        self.bytes = -_bytes()

        def count(frame: Any, event: str, argument: Any) -> None:
            self.calls += event in ("call", "c_call")

        threading.setprofile(count)  # of threads that begin in the block
        sys.setprofile(count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self.bytes += _bytes()


def _bytes() -> int:
    path = Path("/proc/self/io")
    if not path.exists():
        return 0
    lines = dict(line.split(": ") for line in path.read_text(encoding="utf-8").splitlines())
    return int(lines["rchar"]) + int(lines["wchar"])


def assert_linear(act: Callable[[int], Callable[[], object]], n: int) -> None:
    """Twice as many cases take at most 2.2 times the operations. `act` arranges, and gives what
    is counted."""
    act(2)()  # imports
    counted = []
    for size in (n, 2 * n):
        work = act(size)
        with Operations() as operations:
            work()
        counted.append(operations)
    one, two = counted
    assert two.calls <= 2.2 * one.calls, (one.calls, two.calls)
    assert two.bytes <= 2.2 * one.bytes + 20_000, (one.bytes, two.bytes)


def _listing(folder: Path, images: list[str], labels: list[str]) -> Path:
    for place, names in (("imagesTr", images), ("labelsTr", labels)):
        (folder / place).mkdir(parents=True)
        for name in names:
            (folder / place / name).write_bytes(b"x")
    table = '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 1'
    (folder / "dataset.json").write_text(f'{table}, "file_ending": ".nii.gz"}}')
    return folder


def test_listing_is_linear_also_where_no_label_matches(tmp_path: Path) -> None:
    def listing(kind: str) -> Callable[[int], Callable[[], object]]:
        def arrange(n: int) -> Callable[[], object]:
            images = [f"scan_{i:04d}_0000.nii.gz" for i in range(n)]
            stem = "scan" if kind == "matching" else "Scan-of"
            labels = [f"{stem}_{i:04d}.nii.gz" for i in range(n)]
            folder = _listing(tmp_path / f"{kind}-{n}", images, labels)
            if kind == "stated":
                for i in range(n):
                    text = '{"annotated": ["a"]}'
                    (folder / "labelsTr" / f"scan_{i:04d}.json").write_text(text)
            return lambda: survey(folder)

        return arrange

    for kind in ("matching", "other", "stated"):
        assert_linear(listing(kind), 80)


def test_a_misspelt_name_is_still_found_among_many(tmp_path: Path) -> None:
    names = [f"patient_{i:04d}_left" for i in range(500)]
    known = Spellings(names)
    for name, like in (
        ("Patient-0123_left", "patient_0123_left"),
        ("patient_012_left", "patient_0129_left"),
        ("atient_0345_left", "patient_0345_left"),
    ):
        assert like in known.like(name)
        assert len(known.like(name)) <= 16
    images = [f"case_{i:04d}_0000.nii.gz" for i in range(100)]
    labels = [f"case-{i:04d}.nii.gz" for i in range(100)]
    _, problems = survey(_listing(tmp_path / "d", images, labels))
    stray = {name: problem for name, problem in problems if "without an image" in problem.what}
    assert len(stray) == 100
    for i in range(100):
        assert f"did you mean case_{i:04d}" in stray[f"case-{i:04d}"].remedy


def test_rows_beside_label_maps_are_added_in_linear_work(tmp_path: Path) -> None:
    columns = ("case", "class", "dsc")
    rows = [{"class": f"organ_{k}", "dsc": k / 16} for k in range(13)]

    def arrange(n: int) -> Callable[[], object]:
        path = tmp_path / str(n) / "table.csv"

        def act() -> None:
            for i in range(n):
                note_case(path, columns, f"case_{i}", rows)

        return act

    assert_linear(arrange, 60)
    path = tmp_path / "60" / "table.csv"
    assert [row["case"] for row in read_rows(path, columns)] == [
        f"case_{i}" for i in range(60) for _ in rows
    ]
    note_case(path, columns, "case_7", rows[:1])  # in place of those that it had
    note_case(path, columns, "case_8", ())
    names = [row["case"] for row in read_rows(path, columns)]
    assert names.count("case_7") == 1
    assert "case_8" not in names
    assert len(names) == 58 * 13 + 1


def test_a_table_that_was_cut_or_edited_is_mended(tmp_path: Path) -> None:
    path, columns = tmp_path / "t.csv", ("case", "class", "dsc")
    note_case(path, columns, "a", [{"class": "x", "dsc": 0.5}])
    note_case(path, columns, "b", [{"class": "x", "dsc": 0.25}])
    path.write_text(path.read_text(encoding="utf-8") + "c,x")  # killed while it was written
    note_case(path, columns, "c", [{"class": "x", "dsc": 0.75}])
    expected = "case,class,dsc\na,x,0.5\nb,x,0.25\nc,x,0.75\n"
    assert path.read_text(encoding="utf-8") == expected
    path.write_text(expected.rstrip("\n"))  # whole, but saved by another program
    note_case(path, columns, "d", [{"class": "x", "dsc": 1}])
    assert path.read_text(encoding="utf-8") == expected + "d,x,1\n"
    path.write_text("case,other\n")
    with pytest.raises(ContextsegError, match="its columns are not"):
        note_case(path, columns, "e", [])


def test_the_record_of_predictions_is_written_in_linear_work(tmp_path: Path) -> None:
    def arrange(n: int) -> Callable[[], object]:
        folder = tmp_path / str(n)

        def act() -> None:
            record = PredictionRecord(folder, {"models": ["m"]})
            record.check([])
            with gathered(record):
                for i in range(n):
                    record.note(Case(f"case_{i}", (folder / f"{i}.nii.gz",)))

        return act

    assert_linear(arrange, 150)
    assert len(read_json(tmp_path / "300" / "predicted_by.json")["scans"]) == 300
    assert not (tmp_path / "300" / NEW_SCANS).exists()


def test_a_record_that_was_not_gathered_is_read_whole(tmp_path: Path) -> None:
    """As after a kill: the digests are in the lines beside it."""
    cases = [Case(f"case_{i}", (tmp_path / f"scan_{i}.nii.gz",)) for i in range(80)]
    record = PredictionRecord(tmp_path, {"models": ["m"]})
    for case in cases:
        record.note(case)
        (tmp_path / f"{case.name}.nii.gz").write_bytes(b"label")
    assert (tmp_path / NEW_SCANS).exists()
    again = PredictionRecord(tmp_path, {"models": ["m"]})
    again.check(cases)
    assert list(again.scans) == [case.name for case in cases]
    with pytest.raises(ContextsegError, match="label maps of another model"):
        PredictionRecord(tmp_path, {"models": ["other"]}).check(cases)


def test_the_table_of_a_project_is_changed_in_linear_work(tmp_path: Path) -> None:
    def arrange(n: int) -> Callable[[], object]:
        table = ProjectTable(tmp_path / f"{n}.csv")
        table.add(ProjectCase(f"case_{i}") for i in range(n))

        def act() -> None:
            with table.together():
                for i in range(n):
                    table.note(f"case_{i}", predicted=1)

        return act

    assert_linear(arrange, 200)
    assert {row.predicted for row in ProjectTable(tmp_path / "200.csv").cases().values()} == {1}


def test_notes_of_a_project_that_were_taken_together_are_all_there(tmp_path: Path) -> None:
    table, other = (ProjectTable(tmp_path / "t.csv") for _ in range(2))
    table.add(ProjectCase(f"case_{i}") for i in range(50))

    def look() -> None:
        with table.together():
            for i in range(50):
                table.note(f"case_{i}", reviewed=i)
                if i == 30:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look()
    assert [row.reviewed for row in other.cases().values()] == [*range(31), *[0] * 19]
    other.note("case_40", minutes=3.0)
    assert table.case("case_40").minutes == 3  # another process wrote


def test_a_file_that_is_written_in_slabs_is_nibabels(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    affine = np.array([[0.0, 0, 1, -10], [0, -1, 0, 5], [2, 0, 0, 0], [0, 0, 0, 1]])
    for kind, channels in product(
        (np.uint8, np.int16, np.int32, np.float32, np.float64), (0, 1, 2)
    ):
        shape = (*[channels] * (channels > 0), 7, 40, 33)
        array = rng.integers(0, 99, shape).astype(kind)
        with small_slabs(1500):
            place = tmp_path / f"{array.dtype}{channels}"  # what is mapped is not replaced
            write(place / "a.nii", Volume(array, affine))
            write(place / "a.nii.gz", Volume(array, affine))
        data = array.T if channels < 2 else np.moveaxis(array.T, -1, 3)
        data = data[..., 0] if channels == 1 else data
        stored = nibabel.load(place / "a.nii")
        np.testing.assert_array_equal(
            np.asarray(stored.dataobj), data.astype(stored.get_data_dtype())
        )
        same = nibabel.Nifti1Image(np.asarray(stored.dataobj), None, stored.header)
        assert same.to_bytes() == (place / "a.nii").read_bytes()
        np.testing.assert_array_equal(
            cs.read(place / "a.nii.gz").array, cs.read(place / "a.nii").array
        )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_a_process_opens_no_more_files_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped array keeps its file open: of 2,000 cases, 1,024 were too many."""
    monkeypatch.setattr(cache, "_MOST_OPENED", 8)
    folder = phantom.write_dataset(tmp_path / "data", labelled=12, test=0, shape=(8, 8, 8))
    data = open_dataset(folder)
    cases = cache.preprocess(data, data.train, plan((2.0, 1.0, 1.0)), tmp_path / "cache")
    before = len(list(Path("/proc/self/fd").iterdir()))
    sums = [(int(case.image.sum()), int(case.label.sum())) for case in cases]
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 8
    assert [(int(case.image.sum()), int(case.label.sum())) for case in cases] == sums


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_stage_is_linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages that `benchmarks/scale.py` measures, by the calls of their functions."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    scale = import_module("scale")
    monkeypatch.setattr(scale, "LABELLED", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    counted: dict[int, dict[str, int]] = {}
    for n in (4, 40, 80):  # the first imports
        scale.arrange("cases", str(n), tmp_path)
        counted[n] = {}
        for stage, act in scale.CASES.items():
            with Operations() as operations:
                act(tmp_path / str(n))
            counted[n][stage] = operations.calls
    for stage, calls in counted[80].items():
        assert calls <= 2.2 * counted[40][stage], (stage, calls, counted[40][stage])
