"""Two folders of label maps through the command line: tolerances by class, calibration where there
are confidences.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from contextseg.cli import app
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation.evaluate import (
    compare_conventions,
    evaluate,
    parse_tolerances,
    save_table,
)
from contextseg.evaluation.folders import evaluate_folders, notices
from contextseg.evaluation.matching import match_folders, pairs
from contextseg.metrics import METRICS, Metric, evaluate_case
from contextseg.reports import write_report
from contextseg.volume import Volume, write

CLASSES = ("liver", "aorta", "inferior vena cava")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        (" 2.5 ", 2.5),
        ("0", 0.0),
        ("2,liver=5", {"liver": 5.0, "aorta": 2.0, "inferior vena cava": 2.0}),
        (
            "liver=5, aorta = 2 ,inferior vena cava=3",
            {"liver": 5.0, "aorta": 2.0, "inferior vena cava": 3.0},
        ),
    ],
)
def test_tolerances(text: str, expected: object) -> None:
    assert parse_tolerances(text, CLASSES) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lver=5,2", "did you mean liver"),
        ("liver=5", "no tolerance for aorta, inferior vena cava"),
        ("liver=much,2", "liver=much"),
        ("-1", "no distance"),
        ("nan", "no distance"),
        ("liver=inf,2", "no distance"),
        ("1,2", "two numbers"),
        ("liver=5,liver=4,2", "liver twice"),
        ("", "no distance"),
    ],
)
def test_what_is_no_tolerance_is_one_message(text: str, why: str) -> None:
    with pytest.raises(ContextsegError, match=why):
        parse_tolerances(text, CLASSES)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two organs of 4 x 10 x 10 voxels of 1 mm; both are predicted 3 mm off, and nobody is very
    sure.
    """
    truth = np.zeros((12, 30, 40), np.uint8)
    truth[4:8, 10:20, 5:15], truth[4:8, 10:20, 22:32] = 1, 2
    made = np.roll(truth, 3, 0)
    for folder, array in (
        ("made", made),
        ("truth", truth),
        ("made/confidence", np.full_like(made, 204)),
    ):
        write(tmp_path / folder / "x.nii.gz", Volume(array, np.eye(4)))
    write(tmp_path / "images" / "x.nii.gz", Volume(truth[None].astype(np.float32), np.eye(4)))
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, "liver": 1, "aorta": 2}})
    return tmp_path / "made", tmp_path / "truth"


def test_each_class_is_measured_at_its_own_tolerance(folders: tuple[Path, Path]) -> None:
    found, regions = pairs(*folders), {"liver": [1], "aorta": [2]}
    table, _ = evaluate(found, regions, tolerance_mm={"liver": 3.0, "aorta": 1.0})
    liver, aorta = table.set_index("class")["nsd"][["liver", "aorta"]]
    assert table.set_index("class")["tolerance_mm"].to_dict() == {"liver": 3.0, "aorta": 1.0}
    assert liver == 1.0  # moved by 3 mm
    assert aorta < 0.9
    wide, _ = compare_conventions(found, regions, tolerance_mm={"liver": 3.0, "aorta": 1.0})
    assert wide.set_index(["class", "metric"])["default"][("liver", "nsd")] == 1.0


def test_the_command_line(folders: tuple[Path, Path], tmp_path: Path) -> None:
    words = [
        "evaluate",
        *map(str, folders),
        "--labels",
        str(tmp_path / "dataset.json"),
        "-o",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, [*words, "--tolerance-mm", "aorta=1,3"])
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index("class")
    assert table["tolerance_mm"].to_dict() == {"liver": 3.0, "aorta": 1.0}
    sure = pd.read_csv(tmp_path / "out" / "calibration.csv")
    (row,) = sure[(sure["voxels"] == "all") & (sure["n"] > 0)].to_dict("records")
    wrong = 2 * 2 * 3 * 10 * 10  # organs, sides, slices of each
    assert (row["n"], row["confidence"], row["accuracy"]) == (
        12 * 30 * 40,
        0.8,
        pytest.approx(1 - wrong / 14400),
    )
    assert isinstance(
        CliRunner().invoke(app, [*words, "--tolerance-mm", "aorta=1"]).exception, ContextsegError
    )


def test_a_confidence_map_that_does_not_fit_is_a_failure_with_its_name(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    write(folders[0] / "confidence" / "x.nii.gz", Volume(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    done = CliRunner().invoke(app, ["evaluate", *map(str, folders), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "write 0 to 255" in done.output
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_a_new_metric_is_in_the_table(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 of 4 slices in common, of 100 voxels each: in metrics.csv, and on the page of a run."""
    toy = Metric("toy", "Toy score", 0, "voxels", function=lambda pred, ref, mm: (pred & ref).sum())
    monkeypatch.setitem(METRICS, "toy", toy)
    table, problems = evaluate(pairs(*folders), {"liver": [1], "aorta": [2]})
    assert not problems
    save_table(table, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "metrics.csv")["toy"].tolist() == [100, 100]
    page = tmp_path / "report.html"
    write_report(
        page, title="", table=table, cases=[], logs={}, stages=[], provenance={}, regions={}
    )
    assert page.read_text(encoding="utf-8").count("Toy score, voxels") == 2


# --- what has no counterpart ----------------------------------------------------------------------


def put(path: Path, *boxes: tuple[int, int, int], affine: np.ndarray | None = None) -> Path:
    """A label map of 12^3 voxels; each box is (value, first slice, last slice + 1)."""
    array = np.zeros((12, 12, 12), np.uint8)
    for value, start, stop in boxes:
        array[start:stop, 2 * value : 2 * value + 2] = value
    write(path, Volume(array, np.eye(4) if affine is None else affine))
    return path


def evaluate_by_command(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    if isinstance(done.exception, ContextsegError):
        return 1, str(done.exception)
    return done.exit_code, done.output


def test_a_reference_without_a_prediction_counts_as_missed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "r" / f"{name}.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "d.nii.gz", (1, 2, 6))
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "o")
    assert table[["case", "status", "dsc"]].to_numpy().tolist() == [
        ["a", "both", 1.0],
        ["b", "missed", 0.0],
        ["c", "missed", 0.0],
    ]
    assert table["hd95_mm"].tolist() == [0, *[pytest.approx(12 * 3**0.5)] * 2]
    assert table["prediction_file"].tolist()[1:] == ["", ""]
    assert (table.attrs["without_prediction"], table.attrs["without_reference"]) == (
        ["b", "c"],
        ["d"],
    )
    assert read_json(tmp_path / "o" / "evaluation.json")["without_prediction"] == ["b", "c"]
    code, text = evaluate_by_command(tmp_path / "p", tmp_path / "r")
    assert code == 0
    assert "2 references without a prediction counted as missed" in text
    assert ": b, c" in text
    assert "1 prediction without a reference left out: d" in text
    wide = evaluate_folders(tmp_path / "p", tmp_path / "r", all_conventions=True)
    assert wide.set_index(["class", "metric"])["default"][("label_1", "dsc")] == pytest.approx(
        1 / 3
    )


def test_only_what_was_predicted_is_scored_where_asked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "r" / f"{name}.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", tmp_path / "o", only_predicted=True)
    assert table["case"].tolist() == ["a"]
    assert table.attrs["only_predicted"] is True
    assert table.attrs["without_prediction"] == ["b"]
    assert read_json(tmp_path / "o" / "evaluation.json")["only_predicted"] is True
    _, text = evaluate_by_command(tmp_path / "p", tmp_path / "r", "--only-predicted")
    assert "1 reference without a prediction left out: b" in text


def test_a_class_that_only_predictions_hold_is_spurious(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6), (4, 2, 6))
    table = evaluate_folders(tmp_path / "p", tmp_path / "r").set_index("class")
    assert table["status"].to_dict() == {"label_1": "both", "label_4": "spurious"}
    assert table.loc["label_4", "dsc"] == 0
    only = evaluate_folders(tmp_path / "p", tmp_path / "r", roi=["label_1"])
    assert only["class"].tolist() == ["label_1"]
    with pytest.raises(ContextsegError, match="no label map holds this class"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", roi=["label_2"])


def test_two_cropped_segmentations_are_compared_in_a_box_around_both(tmp_path: Path) -> None:
    whole = np.zeros((12, 12, 12), np.uint8)
    whole[3:9, 3:9, 3:9] = 1
    other = np.zeros((12, 12, 12), np.uint8)
    other[4:10, 3:9, 3:9] = 1
    affine = np.diag([3.0, 2.0, 1.0, 1.0])
    for name, array in (("p", whole), ("r", other)):
        write(tmp_path / name / "a.nii.gz", Volume(array, affine))
    low = Volume(whole, affine).cropped([slice(1, 10), slice(2, 10), slice(3, 10)])
    write(tmp_path / "p2" / "a.nii.gz", low.oriented("LPS"))
    high = Volume(other, affine).cropped([slice(4, 11), slice(3, 9), slice(2, 11)])
    write(tmp_path / "r2" / "a.nii.gz", high)
    columns = ["dsc", "hd95_mm", "nsd", "ref_ml", "pred_ml", "tp", "fp", "fn"]
    wanted = evaluate_folders(tmp_path / "p", tmp_path / "r")[columns]
    found = evaluate_folders(tmp_path / "p2", tmp_path / "r2")[columns]
    pd.testing.assert_frame_equal(found, wanted)
    resized = Volume(np.ones((10, 14, 12), np.uint8), affine)  # the header of another array
    write(tmp_path / "p" / "a.nii.gz", resized)
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", strict=False)
    assert "beyond the reference" in table.attrs["failed"]["a"]


@pytest.mark.parametrize("folder", ["p", "r"])
def test_values_below_0_are_told(tmp_path: Path, folder: str) -> None:
    for name in ("p", "r"):
        put(tmp_path / name / "a.nii.gz", (1, 2, 6))
        put(tmp_path / name / "b.nii.gz", (1, 2, 6))
    array = np.zeros((12, 12, 12), np.int16)
    array[0], array[2:6] = -1, 1
    write(tmp_path / folder / "a.nii.gz", Volume(array, np.eye(4)))
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", strict=False)
    assert table["case"].tolist() == ["b"]
    assert f"{folder}/a.nii.gz: its label values begin at -1" in table.attrs["failed"]["a"]


def test_nothing_to_score_is_no_success(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz")
    put(tmp_path / "p" / "a.nii.gz")
    code, text = evaluate_by_command(tmp_path / "p", tmp_path / "r")
    assert code == 1
    assert "no class in any label map" in text
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))  # against a reference that is empty throughout
    table = evaluate_folders(tmp_path / "p", tmp_path / "r")
    assert table["status"].tolist() == ["spurious"]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    for folder in ("p", "r"):
        put(tmp_path / folder / "a.nii.gz", (1, 2, 6))
        (tmp_path / folder / "b.nii.gz").write_bytes(b"no label map")
    table = evaluate_folders(tmp_path / "p", tmp_path / "r", strict=False)
    assert table["case"].tolist() == ["a"]
    assert list(table.attrs["failed"]) == ["b"]
    assert evaluate_by_command(tmp_path / "p", tmp_path / "r")[0] == 1


def test_files_of_other_tools_beside_predictions_pass(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    written = put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    written.rename(written.with_name("a.NII.GZ"))
    for name in ("a.npz", "a.pkl", "plans.json", "dataset.json", "note.txt", "a.png", "b.pkl"):
        (tmp_path / "p" / name).write_bytes(b"{}")
    (tmp_path / "p" / "more").mkdir()
    (tmp_path / "p" / "more" / "x").write_bytes(b"")
    matched = match_folders(tmp_path / "p", tmp_path / "r")
    assert [pair.prediction.name for pair in matched.pairs] == ["a.NII.GZ"]
    assert [path.name for path in matched.unused] == ["a.png", "b.pkl", "more"]


def test_unused_files_are_named(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    (tmp_path / "p" / "b.npy").write_bytes(b"")
    code, text = evaluate_by_command(tmp_path / "p", tmp_path / "r")
    assert code == 0
    assert "1 file is not used: b.npy" in text


def test_names_that_differ_in_their_letter_case_are_told(tmp_path: Path) -> None:
    for folder, name in (("r", "A"), ("r", "b"), ("p", "a"), ("p", "b")):
        put(tmp_path / folder / f"{name}.nii.gz", (1, 2, 6))
    lines = notices(evaluate_folders(tmp_path / "p", tmp_path / "r"))
    assert any("letter case alone do not match: A and a" in line for line in lines)


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "a.nii", (1, 3, 6))
    with pytest.raises(ContextsegError, match="keep one of the two"):
        evaluate_folders(tmp_path / "p", tmp_path / "r")


def test_names_in_two_normal_forms_match(tmp_path: Path) -> None:
    put(tmp_path / "r" / "Jos\u00e9.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "Jose\u0301.nii.gz", (1, 2, 6))
    table = evaluate_folders(tmp_path / "p", tmp_path / "r")
    assert table["status"].tolist() == ["both"]
    assert not table.attrs["without_prediction"]


def test_folders_without_a_common_name_are_refused_with_their_names(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    put(tmp_path / "p" / "b.nii.gz", (1, 2, 6))
    with pytest.raises(ContextsegError, match="no file has the name of one in"):
        evaluate_folders(tmp_path / "p", tmp_path / "r")
    with pytest.raises(ContextsegError, match="is a file"):
        evaluate_folders(tmp_path / "p" / "b.nii.gz", tmp_path / "r")


def test_a_table_of_labels_needs_no_images_beside_it(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6), (2, 2, 6))
    put(tmp_path / "p" / "a.nii.gz", (1, 2, 6))
    table = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": [1, 2], "tumour": 2},
        "file_ending": ".nii.gz",
        "numTraining": 3,
    }
    write_json(tmp_path / "p" / "dataset.json", table)
    for labels in (tmp_path / "p" / "dataset.json", tmp_path / "p"):
        scores = evaluate_folders(tmp_path / "p", tmp_path / "r", labels=labels)
        assert scores.set_index("class")["status"].to_dict() == {
            "liver": "both",
            "tumour": "missed",
        }
        assert not scores.attrs["values_not_scored"]
    write_json(tmp_path / "one.json", {"labels": {"background": 0, "tumour": 2}})
    scores = evaluate_folders(tmp_path / "p", tmp_path / "r", labels=tmp_path / "one.json")
    assert "label values that the label table lacks are not scored: 1" in notices(scores)
    write_json(tmp_path / "empty.json", {"numTraining": 3})
    with pytest.raises(ContextsegError, match="it has no labels"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", labels=tmp_path / "empty.json")
    with pytest.raises(ContextsegError, match="no such file"):
        evaluate_folders(tmp_path / "p", tmp_path / "r", labels=tmp_path / "nowhere.json")


def test_a_scan_is_no_label_map(tmp_path: Path) -> None:
    put(tmp_path / "r" / "a.nii.gz", (1, 2, 6))
    many = np.arange(12**3, dtype=np.int16).reshape(12, 12, 12)
    write(tmp_path / "p" / "a.nii.gz", Volume(many, np.eye(4)))
    with pytest.raises(ContextsegError, match="1728 label values; a scan"):
        evaluate_folders(tmp_path / "p", tmp_path / "r")


# --- one slice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness_mm", [0.1, 1.0, 10.0])
def test_one_slice_has_the_distances_of_its_plane(
    tmp_path: Path, axis: int, thickness_mm: float
) -> None:
    ref = np.zeros((24, 30), np.uint8)
    ref[6:16, 8:20] = 1
    pred = np.roll(ref, 3, 1)
    spacing_mm = np.insert([2.0, 0.5], axis, thickness_mm)
    for folder, array in (("p", pred), ("r", ref)):
        volume = Volume(np.expand_dims(array, axis), np.diag([*spacing_mm, 1.0]))
        write(tmp_path / folder / "a.nii.gz", volume)
    [row] = evaluate_folders(tmp_path / "p", tmp_path / "r").to_dict("records")
    [flat] = evaluate_case(pred, ref, (2.0, 0.5), {"label_1": [1]})
    for name in ("dsc", "hd95_mm", "hd_mm", "assd_mm", "nsd"):
        assert row[name] == pytest.approx(flat[name]), name
    assert row["ref_ml"] == pytest.approx(120 * 2.0 * 0.5 * thickness_mm / 1000)


def test_a_picture_has_the_distances_of_its_plane(tmp_path: Path) -> None:
    ref = np.zeros((24, 30), np.uint8)
    ref[6:16, 8:20] = 1
    pred = np.roll(ref, 3, 1)
    for folder, array in (("p", pred), ("r", ref)):
        write(tmp_path / folder / "a.png", Volume(array[None], np.diag([1.0, 1, 1, 1])))
    [row] = evaluate_folders(tmp_path / "p", tmp_path / "r").to_dict("records")
    [flat] = evaluate_case(pred, ref, (1.0, 1.0), {"label_1": [1]})
    assert row["assd_mm"] == pytest.approx(flat["assd_mm"])
    assert row["nsd"] == pytest.approx(flat["nsd"])
