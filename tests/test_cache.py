"""Preprocessed cases on disk: done once, keyed by content, and never read half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import laws
from contextseg.batch import IGNORE
from contextseg.data import cache, phantom
from contextseg.data.cache import (
    Cached,
    fingerprint,
    load_array,
    load_record,
    places_of,
    preprocess,
)
from contextseg.data.layouts import Dataset, open_dataset
from contextseg.data.plan import Plan
from contextseg.data.prepare import normalise, prepare
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.volume import Volume, read, read_labels, write

SAR = np.eye(4)[[2, 1, 0, 3]]  # D to the head, H to the front, W to the right
PLAN = replace(laws.plan(classes=2), spacing_mm=(2.0, 1.0, 1.0))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two labelled phantoms (000, 001) and an unlabelled one (002)."""
    return open_dataset(
        phantom.write_dataset(
            tmp_path / "data", labelled=2, unlabelled=1, test=0, shape=(12, 20, 22)
        )
    )


def done(data: Dataset, tmp_path: Path, plan: Plan = PLAN, **more: object) -> list[Cached]:
    return preprocess(data, data.train, plan, tmp_path / "cache", **more)


def change(path: Path, array: np.ndarray) -> None:
    write(path, read(path).with_array(array))


# --- what is in it --------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (1.5, 1.3, 1.3)])
def test_a_cached_case_is_the_prepared_scan_to_int16(
    spacing: tuple[float, float, float], data: Dataset, tmp_path: Path
) -> None:
    plan = replace(PLAN, spacing_mm=spacing)
    for case, found in zip(data.train, done(data, tmp_path, plan)):
        label = read_labels(case.label).array if case.label else None
        image, classes, body, record = prepare(read(*case.images), plan, case.name, label)
        assert found.record == record
        assert (found.image.dtype, found.image.shape, found.labelled) == (
            np.int16,
            image.shape,
            label is not None,
        )
        assert isinstance(found.image, np.memmap)
        if label is None:
            assert (found.label, found.classes) == (None, ())
        else:
            np.testing.assert_array_equal(found.label, classes)
            assert found.classes == (1,)
        box = (slice(1, 5), slice(3, 11), slice(0, 7))
        expected = normalise(image[(slice(None), *box)], plan.channels, record)
        step = (record.high[0] - record.low[0]) / 65535 / record.sd[0]
        patch = found.patch(box, plan.channels)
        assert patch.dtype == np.float32
        assert np.abs(patch - expected).max() < 0.51 * step  # half a step, and rounding of float32
        assert body[tuple(found.voxels("body").T)].all()


@pytest.mark.parametrize(
    ("low", "high"), [(-1024.0, 3071.0), (0.0, 1e-3), (-5e6, 7e6), (1e4, 1e4 + 1)]
)
def test_int16_is_exact_to_a_65000th_of_the_range(low: float, high: float, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(low, high, (1, 9, 10, 11)).astype(np.float32)
    image[0, 0, 0, :2] = low, high
    plan = replace(
        PLAN, channels=(replace(PLAN.channels[0], kind="none"),), spacing_mm=(1.0, 1.0, 1.0)
    )
    write(tmp_path / "images" / "a.nii.gz", Volume(image, SAR))
    write(tmp_path / "labels" / "a.nii.gz", Volume(np.ones((9, 10, 11), np.int16), SAR))
    found = done(open_dataset(tmp_path), tmp_path, plan)[0]
    whole = found.patch((slice(0, 9), slice(0, 10), slice(0, 11)), plan.channels)
    expected = prepare(
        read(tmp_path / "images" / "a.nii.gz"), plan, "", np.ones((9, 10, 11), np.int16)
    )[0]
    assert np.abs(whole.astype(float) - expected).max() < (high - low) / 65000 + 1e-6 * max(
        abs(low), abs(high)
    )


def test_places_are_voxels_of_their_class_and_all_classes_have_some() -> None:
    label = np.zeros((10, 60, 60), np.int16)
    label[2:8, 5:55, 5:55], label[4, 30, 30], label[0] = 1, 3, IGNORE
    places = places_of(np.zeros(label.shape, bool), label, "case", most=500)
    assert sorted(places) == ["1", "3", "body"]
    assert {k: len(v) for k, v in places.items()} == {"1": 500, "3": 1, "body": 500}
    assert places["3"].tolist() == [[4, 30, 30]]
    assert (label[tuple(places["1"].T)] == 1).all()
    assert len(np.unique(places["1"], axis=0)) == 500
    assert (np.ptp(places["body"], axis=0) >= [9, 50, 50]).all()  # no body found: anywhere
    again = places_of(np.zeros(label.shape, bool), label, "case", most=500)
    other = places_of(np.zeros(label.shape, bool), label, "other", most=500)
    assert (again["1"] == places["1"]).all()
    assert (other["1"] != places["1"]).any()


def test_gaps_in_label_values_and_the_ignore_value_become_classes(
    data: Dataset, tmp_path: Path
) -> None:
    table = read_json(data.folder / "dataset.json")
    write_json(
        data.folder / "dataset.json",
        table | {"labels": {"background": 0, "bright": 7, "ignore": 8}},
    )
    path = data.train[0].label
    values = read_labels(path).array * 7
    values[:3] = 8
    change(path, values)
    change(data.train[1].label, read_labels(data.train[1].label).array * 7)
    found = done(open_dataset(data.folder), tmp_path, replace(PLAN, values=(0, 7)))[0]
    (a, b), (c, d), (e, f) = found.record.box
    expected = np.where(values == 8, IGNORE, values // 7)[a:b, c:d, e:f]
    np.testing.assert_array_equal(found.label, expected)
    assert (expected == IGNORE).any()
    assert found.classes == (1,)


def test_what_was_annotated_is_known_for_each_case(tmp_path: Path) -> None:
    folder = phantom.write_dataset(
        tmp_path / "data", labelled=3, test=0, shape=(12, 20, 22), classes=3
    )
    write_json(folder / "labelsTr" / "annotated.json", {"phantom_001": ["dark"], "phantom_002": []})
    found = done(open_dataset(folder), tmp_path, replace(laws.plan(), spacing_mm=(2.0, 1.0, 1.0)))
    assert [c.annotated for c in found] == [
        (True, True, True),
        (True, False, True),
        (True, False, False),
    ]


# --- done once ------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_second_time_nothing_is_done(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    first = done(data, tmp_path, progress=lambda *now: calls.append(now))
    before = stamps(tmp_path / "cache")
    monkeypatch.setattr(cache, "prepare_in_slabs", None)  # would fail if it were called
    again = done(data, tmp_path, progress=lambda *now: calls.append(now))
    assert stamps(tmp_path / "cache") == before
    assert again == first
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_the_key_is_the_content_of_the_files_and_what_was_asked(
    data: Dataset, tmp_path: Path
) -> None:
    names = [c.folder.name for c in done(data, tmp_path)]
    for path in (*data.train[0].images, data.train[1].label):
        os.utime(path, (0, 0))
    assert [c.folder.name for c in done(data, tmp_path)] == names  # a date is no content
    patch = replace(
        PLAN,
        patch_vox=(8, 8, 8),
        batch_size=7,
        channels=(replace(PLAN.channels[0], kind="rescale"),),
    )
    assert [
        c.folder.name for c in done(data, tmp_path, patch)
    ] == names  # one cache for all patches and normalisations
    for asked in ({"spacing_mm": (2.0, 1.0, 1.01)}, {"orientation": "RSA"}):
        assert not set(names) & {
            c.folder.name for c in done(data, tmp_path, replace(PLAN, **asked))
        }
    image = read(*data.train[0].images).array.copy()
    image[0, 5, 5, 5] += 1
    change(data.train[0].images[0], image)
    label = read_labels(data.train[1].label).array.copy()
    label[5, 5, 5] = 1 - label[5, 5, 5]
    change(data.train[1].label, label)
    now = done(data, tmp_path)
    assert [c.folder.name == name for c, name in zip(now, names)] == [False, False, True]
    np.testing.assert_array_equal(
        now[1].label, prepare(read(*data.train[1].images), PLAN, "", label)[1]
    )


def test_the_voxels_beside_a_header_are_part_of_the_key(tmp_path: Path) -> None:
    import SimpleITK as sitk

    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    image, label = rng.normal(0, 9, (6, 7, 8)), np.zeros((6, 7, 8), np.uint8)
    label[2:4, 2:5, 2:5] = 1
    sitk.WriteImage(sitk.GetImageFromArray(image), str(tmp_path / "data/images/a.mhd"))
    sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "data/labels/a.mhd"))
    data = open_dataset(tmp_path / "data")
    [before] = done(data, tmp_path)
    label[:, :, :4] = 0
    (tmp_path / "data/labels/a.raw").write_bytes(label.tobytes())
    [after] = done(data, tmp_path)
    assert before.folder != after.folder
    assert 0 < int((after.label == 1).sum()) < int((before.label == 1).sum())


def test_ct_is_cropped_otherwise_than_mr_and_so_has_another_key(
    data: Dataset, tmp_path: Path
) -> None:
    ct = replace(PLAN, channels=(replace(PLAN.channels[0], name="CT"),))
    assert done(data, tmp_path)[0].folder != done(data, tmp_path, ct)[0].folder


def test_what_a_killed_process_left_behind_is_harmless(data: Dataset, tmp_path: Path) -> None:
    first = done(data, tmp_path)
    place = first[0].folder
    place.rename(
        place.with_name(f".deadbeef-{place.name}")
    )  # killed before the folder got its name
    (place.with_name(f".deadbeef-{place.name}") / "record.json").unlink()
    again = done(data, tmp_path)
    assert again == first
    assert (again[0].label == again[0].label).all()


def use(folder: Path) -> object:
    """Open every file of a case."""
    case = Cached(folder, load_record(folder / "record.json"), (), True)
    return case.image, case.label, case.voxels("body")


# --- faults ---------------------------------------------------------------------------------------


def test_one_bad_case_is_named_and_the_others_are_done(data: Dataset, tmp_path: Path) -> None:
    bad = data.train[1].images[0]
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(
        ContextsegError, match=r"phantom_001_0000\.nii\.gz: cannot be read"
    ) as caught:
        done(data, tmp_path)
    assert "more" not in caught.value.what
    assert sorted(p.name[:11] for p in (tmp_path / "cache").iterdir()) == [
        "phantom_000",
        "phantom_002",
    ]
    image = read(*data.train[2].images).array.copy()
    image[0, 3, 3, 3] = np.nan
    change(data.train[2].images[0], image)
    with pytest.raises(
        ContextsegError, match=r"phantom_001_0000.*1 more cannot be used: phantom_002"
    ):
        done(data, tmp_path)


def test_a_scan_with_nan_a_missing_channel_or_another_grid_is_named_by_its_file(
    data: Dataset, tmp_path: Path
) -> None:
    case = data.train[0]
    image = read(*case.images)
    change(case.images[0], np.where(image.array > 200, np.nan, image.array))
    for work in (lambda: done(data, tmp_path), lambda: fingerprint(data, data.train)):
        with pytest.raises(
            ContextsegError, match=r"phantom_000_0000\.nii\.gz: \d+ intensities are NaN or infinite"
        ):
            work()
    two = replace(data, channels=("T1", "T2"))
    change(case.images[0], image.array)
    with pytest.raises(
        ContextsegError, match=r"phantom_000_0000\.nii\.gz: 1 channel; this data set has 2"
    ):
        fingerprint(two, two.train)
    write(case.label, Volume(np.zeros((4, 5, 6), np.int16), np.eye(4)))
    with pytest.raises(ContextsegError, match=r"labelsTr/phantom_000\.nii\.gz: its grid differs"):
        done(data, tmp_path)


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "voxels.npz", "record.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "garbage"])
def test_a_damaged_file_is_noticed_and_made_new(
    name: str, damage: str, data: Dataset, tmp_path: Path
) -> None:
    good = done(data, tmp_path)[0]
    path = good.folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "garbage": b"x" * len(content)}[
                damage
            ]
        )
    word = "missing" if damage == "gone" else "damaged"
    with pytest.raises(
        ContextsegError, match=rf"{name}: this preprocessed file is {word}.*delete the run's folder"
    ):
        use(good.folder)
    again = done(data, tmp_path)[0]
    assert again.folder == good.folder
    assert path.read_bytes() == content
    assert [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["image", "label"])
@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 2, 3, 4, 5), np.int16), np.zeros((1, 2, 3), np.int16), np.zeros((2, 3))]
)
def test_an_array_of_another_case_is_damaged(
    name: str, wrong: np.ndarray, data: Dataset, tmp_path: Path
) -> None:
    case = done(data, tmp_path)[0]
    np.save(case.folder / f"{name}.npy", wrong)
    with pytest.raises(ContextsegError, match=rf"{name}\.npy: this preprocessed file is damaged"):
        getattr(replace(case), name)


def test_a_record_that_lacks_a_field_is_damaged(data: Dataset, tmp_path: Path) -> None:
    path = done(data, tmp_path)[0].folder / "record.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["box"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ContextsegError, match=r"record\.json: this preprocessed file is damaged"):
        load_record(path)
    with pytest.raises(ContextsegError, match="other remedy"):
        load_array(path, "other remedy")


def test_a_disk_that_cannot_be_written_to_is_a_problem(data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(ContextsegError, match="a file stands where a folder is needed"):
        done(data, tmp_path)


def test_an_unexpected_error_stops_the_work(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def broken(scan: Volume, plan: Plan, name: str, label: object) -> None:
        seen.append(name)
        raise ZeroDivisionError

    monkeypatch.setattr(cache, "prepare_in_slabs", broken)
    many = [replace(data.train[2], name=f"case_{i}") for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        preprocess(data, many, PLAN, tmp_path / "cache", workers=1)
    assert len(seen) < 50


_ANOTHER = """
import sys
from pathlib import Path
from contextseg.data.cache import preprocess
from contextseg.data.layouts import open_dataset
from contextseg.data.plan import Plan
data = open_dataset(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for case in preprocess(data, data.train, Plan.load(sys.argv[2]), sys.argv[3], workers=1):
    voxels = case.label is not None and int((case.label == 1).sum())
    print(case.folder.name, int(case.image.sum()), voxels)
"""


def test_two_processes_may_fill_the_same_cache(data: Dataset, tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    command = [
        sys.executable,
        "-c",
        _ANOTHER,
        str(data.folder),
        str(tmp_path / "plan.json"),
        str(tmp_path / "both"),
    ]
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:  # off they go together
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    alone = [
        f"{c.folder.name} {int(c.image.sum())} {c.label is not None and int((c.label == 1).sum())}"
        for c in done(data, tmp_path)
    ]
    assert [out.splitlines() for out, _ in outputs] == [alone, alone]
    assert sorted(p.name for p in (tmp_path / "both").iterdir()) == sorted(
        line.split()[0] for line in alone
    )


def test_who_comes_second_takes_what_the_first_has_written(data: Dataset, tmp_path: Path) -> None:
    first = done(data, tmp_path)[0]
    before = stamps(first.folder)
    image, label, body, record = prepare(
        read(*data.train[0].images), PLAN, "phantom_000", read_labels(data.train[0].label).array
    )
    cache._save(
        first.folder, image, label, body, record
    )  # as if the first had been faster by a moment
    assert stamps(first.folder) == before
    assert len(list(first.folder.parent.iterdir())) == 3
    shutil.rmtree(first.folder)
    cache._save(first.folder, image, label, body, record)
    assert done(data, tmp_path)[0] == first


# --- facts ----------------------------------------------------------------------------------------


def test_facts_are_those_of_the_body_and_the_roi(data: Dataset) -> None:
    calls: list[tuple[int, int]] = []
    found = fingerprint(data, data.train, progress=lambda *now: calls.append(now))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for case, fact in zip(data.train, found):
        scan = read(*case.images)
        label = read_labels(case.label).array if case.label else None
        (a, b), (c, d), (e, f) = prepare(scan, PLAN, "", label)[3].box
        assert (fact.name, fact.shape, fact.spacing_mm) == (
            case.name,
            (b - a, d - c, f - e),
            (2, 1, 1),
        )
        assert fact.orientation == "SAR"
        if label is None:
            assert fact.roi == ()
        else:
            assert sorted(fact.roi[0]) == sorted(scan.array[0][label > 0].astype(np.float32))
    few = fingerprint(data, data.train, sample=10)[0].roi[0]
    assert len(few) == 10
    assert set(few) <= set(found[0].roi[0])


def test_facts_are_in_axial_order_whatever_lies_on_disk(data: Dataset, tmp_path: Path) -> None:
    plain = fingerprint(data, data.train)[0]
    for path in (data.train[0].images[0], data.train[0].label):
        array = read(path) if path.parent.name == "imagesTr" else read_labels(path)
        write(path, array.oriented("LPI"))
    turned = fingerprint(data, data.train)[0]
    assert turned.orientation == "LPI"
    assert (turned.shape, turned.spacing_mm) == (plain.shape, plain.spacing_mm)
    assert sorted(turned.roi[0]) == sorted(plain.roi[0])
