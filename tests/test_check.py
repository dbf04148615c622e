"""Every kind of trouble is found, named and given a remedy; sound data are met with silence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import contextseg as cs
from contextseg.data.check import KINDS, check
from contextseg.data.findings import Finding, raise_errors, read_findings, to_json, to_text
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from contextseg.volume import Volume, read, write
from test_layouts import DEMO, put, put_label, put_nnunet

GRID = np.diag([3.0, 1, 1, 1])


def only(folder: Path) -> Finding:
    """The one finding about a folder."""
    findings = check(folder)
    assert len(findings) == 1, to_text(findings)
    return findings[0]


def file_of(found: Finding) -> str:
    return Path(found.where).name


def put_array(path: Path, array: Any, affine: np.ndarray = GRID) -> None:
    write(path, Volume(np.asarray(array), affine))


def test_sound_data_are_met_with_silence(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert check(DEMO, progress=lambda done, of: seen.append((done, of))) == []
    assert seen == [(i + 1, 16) for i in range(16)]
    assert check(put_nnunet(tmp_path, cases=3, channels=2, labelled=2)) == []


# --- grids ----------------------------------------------------------------------------------------

SAR = np.array([[0, 0, 1.0, 0], [0, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1]])


def changed(**entries: float) -> np.ndarray:
    """SAR with entries replaced: r0c3=5 is 5 mm to the right."""
    out = SAR.copy()
    for place, value in entries.items():
        out[int(place[1]), int(place[3])] = value
    return out


@pytest.mark.parametrize(
    ("affine", "what"),
    [
        (
            changed(r0c2=1.4),
            "spacing 1.4 x 1 x 3 mm, the image's 1 x 1 x 3 mm; its voxels lie up to 2 mm",
        ),  # 5 * 0.4
        (changed(r0c3=3, r1c3=4), "shifted by 5 mm; its voxels lie up to 5 mm"),
        (
            changed(r0c2=-1),
            "axes along LAS, the image's along RAS; its voxels lie up to 10 mm",
        ),  # 5 * 2
        (changed(r0c2=0.8, r1c2=0.6, r0c1=-0.6, r1c1=0.8), "shifted by"),  # turned about a corner
    ],
)
def test_a_label_on_another_grid_says_how_and_by_how_much(
    tmp_path: Path, affine: np.ndarray, what: str
) -> None:
    put_nnunet(tmp_path)
    put(tmp_path / "imagesTr" / "b_0000.nii.gz", seed=99, affine=SAR)
    put_label(tmp_path / "labelsTr" / "b.nii.gz", affine=affine)
    found = only(tmp_path)
    assert (found.level, found.case, file_of(found)) == ("error", "b", "b.nii.gz")
    assert what in found.what
    assert found.remedy.startswith("export it again on the image's grid, or resample it onto it")


def test_a_label_of_another_shape(tmp_path: Path) -> None:
    put_label(put_nnunet(tmp_path) / "labelsTr" / "b.nii.gz", shape=(4, 5, 7))
    assert "7 x 5 x 4 voxels, the image has 6 x 5 x 4" in only(tmp_path).what


def test_channels_on_different_grids(tmp_path: Path) -> None:
    put_nnunet(tmp_path, channels=3)
    put(tmp_path / "imagesTr" / "a_0002.nii.gz", affine=np.diag([3, 1, 2, 1.0]))
    found = only(tmp_path)
    assert (found.case, file_of(found)) == ("a", "a_0002.nii.gz")
    assert "not on the grid of a_0000.nii.gz: spacing 2 x 1 x 3 mm" in found.what


def test_voxels_of_a_strange_size_are_a_warning(tmp_path: Path) -> None:
    put_nnunet(tmp_path)
    small = np.diag([0.3, 0.3, 0.009, 1])
    put(tmp_path / "imagesTr" / "a_0000.nii.gz", seed=9, affine=small)
    put_label(tmp_path / "labelsTr" / "a.nii.gz", affine=small)
    assert only(tmp_path).level == "warning"
    assert "0.009 x 0.3 x 0.3 mm" in only(tmp_path).what


# --- voxels ---------------------------------------------------------------------------------------


def test_intensities_that_are_no_numbers(tmp_path: Path) -> None:
    put_nnunet(tmp_path)
    bad = np.arange(120.0, dtype=np.float32).reshape(4, 5, 6)
    bad[0, 0, :2], bad[1, 1, 1] = np.nan, np.inf
    put_array(tmp_path / "imagesTr" / "b_0000.nii.gz", bad)
    assert only(tmp_path).what == "3 of 120 voxels of the image are NaN or infinite"


@pytest.mark.parametrize("value", [0, -1000])
def test_a_constant_image(tmp_path: Path, value: int) -> None:
    put_nnunet(tmp_path, channels=2)
    put_array(tmp_path / "imagesTr" / "b_0001.nii.gz", np.full((4, 5, 6), value, np.int16))
    found = only(tmp_path)
    assert (found.level, found.what, file_of(found)) == (
        "error",
        f"every voxel of the image is {value}",
        "b_0001.nii.gz",
    )


def test_a_file_with_too_few_channels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(
            tmp_path / "imagesTr" / f"{name}_0000.nii.gz",
            seed=ord(name),
            shape=(2 if name == "a" else 1, 4, 5, 6),
        )
        put_label(tmp_path / "labelsTr" / f"{name}.nii.gz")
    names = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
    }
    write_json(tmp_path / "dataset.json", names)
    assert (only(tmp_path).case, only(tmp_path).what) == (
        "b",
        "1 channel; the data set has 2 (T1, T2)",
    )


@pytest.mark.parametrize("kind", ["imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"])
def test_a_truncated_file(tmp_path: Path, kind: str) -> None:
    path = put_nnunet(tmp_path) / kind
    path.write_bytes(path.read_bytes()[:-10])
    found = only(tmp_path)
    assert (found.level, found.case, found.where) == ("error", "b", str(path))
    assert "truncated or damaged" in found.what


# --- labels ---------------------------------------------------------------------------------------


def test_wrong_and_broken_label_values(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=3)
    put_label(tmp_path / "labelsTr" / "a.nii.gz", (0, 1, 4, 255))
    put_label(tmp_path / "labelsTr" / "b.nii.gz", (0, 0.5, 1), kind=np.float32)
    wrong, broken = check(tmp_path)
    assert [(f.level, f.case) for f in (wrong, broken)] == [("error", "a"), ("error", "b")]
    assert "not in the label table: 4, 255" in wrong.what
    assert (
        "40 voxels whose label is not a whole number, such as 0.5" in broken.what
    )  # a third of 120


def test_empty_labels_are_a_warning(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=4, labels={"background": 0, "tumour": 1, "ignore": 2})
    put_label(tmp_path / "labelsTr" / "a.nii.gz", (0,))
    put_label(tmp_path / "labelsTr" / "b.nii.gz", (2,))
    put_label(tmp_path / "labelsTr" / "c.nii.gz", (0, 2))
    findings = check(tmp_path)
    assert [(f.level, f.case) for f in findings] == [
        ("warning", "a"),
        ("warning", "b"),
        ("warning", "c"),
    ]
    assert [f.what for f in findings] == [
        "the label is empty: all background",
        "no voxel is annotated",
        "the label is empty: all background",
    ]


def test_classes_that_nobody_labelled_or_that_were_not_to_be_there(tmp_path: Path) -> None:
    put_nnunet(tmp_path, labels={"background": 0, "liver": 1, "spleen": 2, "kidney": 3})
    put_label(tmp_path / "labelsTr" / "b.nii.gz", (0, 1, 3))
    write_json(tmp_path / "labelsTr" / "annotated.json", {"b": ["liver", "spleen"]})
    absent, unsaid = check(tmp_path)
    assert (absent.level, absent.case, absent.what) == (
        "warning",
        "",
        "in no training label: spleen; it cannot be learnt",
    )
    assert (unsaid.level, unsaid.case, unsaid.what) == (
        "warning",
        "b",
        "kidney is labelled, but not listed as annotated",
    )


def test_no_label_and_one_label(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=3, labelled=1)
    assert (only(tmp_path).level, only(tmp_path).what[:15]) == ("warning", "only a has a la")
    (tmp_path / "labelsTr" / "a.nii.gz").unlink()
    assert (only(tmp_path).level, only(tmp_path).what) == ("error", "no training case has a label")


# --- the whole data set ---------------------------------------------------------------------------


def test_the_same_scan_in_training_and_in_test_in_another_format_and_orientation(
    tmp_path: Path,
) -> None:
    for i, name in enumerate("abc"):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz", seed=i, kind=np.int16)
        put_label(tmp_path / "labelsTr" / f"{name}.nii.gz")
    scan = read(tmp_path / "imagesTr" / "b.nii.gz").oriented("LPS")
    write(tmp_path / "imagesTs" / "t.mha", scan.with_array(scan.array.astype(np.float32)))
    found = only(tmp_path)
    assert (found.level, found.case, file_of(found)) == ("error", "t", "t.mha")
    assert "the same voxels as b in training" in found.what
    (tmp_path / "imagesTs" / "t.mha").rename(tmp_path / "imagesTr" / "t.mha")
    found = only(tmp_path)
    assert (found.level, found.case, found.what) == ("warning", "t", "the same voxels as b")


def test_empty_scans_are_not_called_twins(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=4)
    for name in "ab":
        put_array(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", np.zeros((4, 5, 6), np.int16))
    assert [f.what for f in check(tmp_path)] == ["every voxel of the image is 0"] * 2


def test_patients_on_both_sides(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=4)
    put(tmp_path / "imagesTs" / "z_0000.nii.gz", seed=99)
    write_json(tmp_path / "patients.json", {"a": "P1", "b": "P1", "c": "P1", "z": "P1"})
    found = only(tmp_path)
    assert (found.level, found.what) == (
        "error",
        "patient P1 is in train (a, b, c) and in test (z)",
    )
    write_json(tmp_path / "patients.json", {"a": "P1", "b": "P1", "c": "P1"})
    folds = [{"train": ["a", "d"], "val": ["b", "c"]}, {"train": ["a", "b", "c"], "val": ["d"]}]
    write_json(tmp_path / "splits_final.json", folds)
    found = only(tmp_path)
    assert (found.level, file_of(found)) == ("error", "splits_final.json")
    assert found.what == "fold 0: patient P1 is in train (a) and in val (b, c)"


@pytest.mark.parametrize(("stated", "fine"), [(3, True), (2, True), (7, False), (0, False)])
def test_the_number_of_training_cases(tmp_path: Path, stated: int, fine: bool) -> None:
    put_nnunet(
        tmp_path, cases=3, labelled=2, numTraining=stated
    )  # three cases, two of them labelled
    assert [f.what for f in check(tmp_path)] == [
        f"numTraining is {stated}; there: 3 training cases, 2 of them labelled"
    ] * (not fine)


def test_a_case_twice_in_a_split_is_told_once(tmp_path: Path) -> None:
    put_nnunet(tmp_path)
    write_json(tmp_path / "splits_final.json", [{"train": ["a", "b"], "val": ["b", "c"]}])
    assert only(tmp_path).what == "fold 0 trains and validates on b"


def test_what_is_no_data_set_is_one_error(tmp_path: Path) -> None:
    assert (only(tmp_path).level, only(tmp_path).case, only(tmp_path).where) == (
        "error",
        "",
        str(tmp_path),
    )


# --- all at once ----------------------------------------------------------------------------------


@pytest.fixture
def ruin(tmp_path: Path) -> Path:
    """Many troubles in one folder."""
    put_nnunet(tmp_path, cases=6, channels=2, numTraining=60)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    put_label(tmp_path / "labelsTr" / "b.nii.gz", (0, 3))
    damaged = tmp_path / "imagesTr" / "c_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:50])
    (tmp_path / "labelsTr" / "d.nii.gz").rename(tmp_path / "labelsTr" / "dd.nii.gz")
    put_label(tmp_path / "labelsTr" / "e.nii.gz", (0,))
    put_array(tmp_path / "imagesTr" / "f_0001.nii.gz", np.full((4, 5, 6), np.nan, np.float32))
    return tmp_path


def test_everything_is_told_at_once_in_the_order_of_the_cases(ruin: Path) -> None:
    findings = check(ruin)
    assert [(f.case, f.level) for f in findings] == [
        ("", "warning"),
        ("a", "error"),
        ("b", "error"),
        ("c", "error"),
        ("e", "warning"),
        ("f", "error"),
        ("dd", "error"),
    ]
    assert all(Path(f.where).exists() and f.remedy for f in findings)
    assert check(ruin, workers=1) == findings


def test_as_text_and_as_json(ruin: Path) -> None:
    findings = check(ruin)
    lines = to_text(findings).splitlines()
    assert [line for line in lines if line and line[0] != " "] == [
        *("the data set", "a", "b", "c", "e", "f", "dd"),
        "5 errors, 2 warnings",
    ]
    assert (
        f"  warning: {ruin / 'labelsTr' / 'e.nii.gz'}: the label is empty: all background" in lines
    )
    content = json.loads(to_json(findings))
    assert (content["errors"], content["warnings"]) == (5, 2)
    assert [Finding.from_json(entry) for entry in content["findings"]] == findings
    assert (to_text([]), json.loads(to_json([]))["findings"]) == ("nothing is wrong", [])


# --- kinds ----------------------------------------------------------------------------------------


def test_a_finding_carries_its_kind_and_its_cases(ruin: Path) -> None:
    findings = check(ruin)
    assert [(f.kind, f.cases) for f in findings] == [
        ("count", ()),
        ("layout", ("a",)),
        ("label-values", ("b",)),
        ("unreadable", ("c",)),
        ("empty-label", ("e",)),
        ("not-finite", ("f",)),
        ("layout", ("dd",)),
    ]
    assert {f.kind for f in findings} <= set(KINDS)
    assert [f.kind for f in check(ruin / "nothing")] == ["dataset"]


def test_all_twins_are_named_however_many(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=9)
    scan = (tmp_path / "imagesTr" / "a_0000.nii.gz").read_bytes()
    for name in "bcdefgh":
        (tmp_path / "imagesTr" / f"{name}_0000.nii.gz").write_bytes(scan)
    found = only(tmp_path)
    assert (found.kind, found.level, found.case) == ("twin", "warning", "h")
    assert found.cases == tuple("abcdefgh")
    assert found.what == "the same voxels as a, b, c, d, e and 2 more"
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "t_0000.nii.gz").write_bytes(scan)
    found = only(tmp_path)
    assert (found.kind, found.level, found.case) == ("leak", "error", "t")
    assert found.cases == (*"abcdefgh", "t")


def test_the_cases_of_a_patient_on_both_sides(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=3)
    put(tmp_path / "imagesTs" / "z_0000.nii.gz", seed=99)
    write_json(tmp_path / "patients.json", {"a": "P1", "b": "P2", "c": "P1", "z": "P1"})
    assert (only(tmp_path).kind, only(tmp_path).cases) == ("patient", ("a", "c", "z"))


def test_findings_are_read_back_from_older_files_too(ruin: Path, tmp_path: Path) -> None:
    findings = check(ruin)
    path = tmp_path / "findings.json"
    write_json(path, json.loads(to_json(findings))["findings"])
    assert read_findings(path) == findings
    old = {"level": "error", "case": "a", "where": "a.nii", "what": "truncated", "remedy": "copy"}
    write_json(path, [old])
    assert read_findings(path) == [Finding("error", "a", "a.nii", "truncated", "copy", "", ())]
    for wrong in ([{"level": "error"}], [3], 3):
        write_json(path, wrong)
        with pytest.raises(ContextsegError, match=r"findings\.json: not a list of findings"):
            read_findings(path)


def test_errors_are_raised_as_one(ruin: Path) -> None:
    findings = check(ruin)
    with pytest.raises(ContextsegError, match=r"channel 1 .*, and 4 more.*lists every problem"):
        raise_errors(findings, ruin)
    raise_errors([f for f in findings if f.level == "warning"], ruin)


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_scan_in_another_unit_than_the_others_is_an_error(tmp_path: Path, factor: float) -> None:
    rng = np.random.default_rng(0)
    for name, scale in (("a", 1.0), ("b", 1.0), ("c", factor)):
        affine = np.diag([3.0 * scale, scale, scale, 1.0])
        image = rng.normal(0, 9, (4, 5, 6)).astype(np.float32)
        write(tmp_path / "images" / f"{name}.nii.gz", Volume(image[None], affine))
        write(tmp_path / "labels" / f"{name}.nii.gz", Volume((image > 0).astype(np.uint8), affine))
    found = only(tmp_path)
    assert (found.level, found.case, found.kind) == ("error", "c", "spacing")
    assert "most have 3 x 1 x 1 mm" in found.what


@pytest.mark.parametrize("verb", [cs.plan, cs.read, cs.read_labels, cs.load, cs.project, cs.report])
def test_a_name_that_no_disk_can_have_is_one_message(verb: Callable[[str], object]) -> None:
    with pytest.raises(ContextsegError) as caught:
        verb("a" * 5000)
    assert len(str(caught.value)) < 1000
