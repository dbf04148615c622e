"""What other tools made joins a comparison with the numbers that the engine, or its own summary,
gives it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from contextseg.data import phantom
from contextseg.data.layouts import Dataset, open_dataset
from contextseg.disk import read_json
from contextseg.errors import ContextsegError
from contextseg.evaluation import Pair, compare_conventions, evaluate, pairs, save_table
from contextseg.evaluation.importing import find, imported
from contextseg.evaluation.tables import conventions_markdown
from contextseg.metrics import CONVENTIONS
from contextseg.volume import read_labels, write

COLUMNS = ["case", "class", "status", "dsc", "hd95_mm", "nsd", "tp", "fp", "fn"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "set", labelled=1, test=3, classes=3
    )
    table = read_json(folder / "dataset.json")
    table["labels"] = {"background": 0, "left kidney": 1, "spleen": 2, "both": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    return open_dataset(folder)


@pytest.fixture(scope="module")
def predicted(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference moved by a voxel; in the last case without the spleen."""
    folder = tmp_path_factory.mktemp("predicted")
    for i, case in enumerate(data.test):
        label = read_labels(case.label)  # type: ignore[arg-type]
        moved = np.roll(label.array, 1, axis=2)
        write(
            folder / f"{case.name}.nii.gz",
            label.with_array(np.where((moved == 2) & (i == 2), 0, moved)),
        )
    return folder


def wanted(data: Dataset) -> list[Pair]:
    return [Pair(case.name, Path(), case.label) for case in data.test if case.label]


def measured(data: Dataset, folder: Path, names: Sequence[str] = ()) -> pd.DataFrame:
    """By the engine itself."""
    regions = {
        n: [data.values[k] for k in union]
        for n, union in data.regions.items()
        if not names or n in names
    }
    return evaluate(pairs(folder, data.folder / "labelsTs"), regions)[0]


def by_class(table: pd.DataFrame) -> pd.DataFrame:
    return table[COLUMNS].sort_values(["case", "class"]).reset_index(drop=True)


def test_a_folder_of_label_maps(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    table = imported(find(predicted), wanted(data), data, tmp_path / "into")
    assert set(table["source"]) == {"labels"}
    pd.testing.assert_frame_equal(by_class(table), by_class(measured(data, predicted)))
    assert len(table) == 3 * 3
    assert (table["status"] == "missed").sum() == 1
    assert not (tmp_path / "into").exists()  # nothing had to be made


def test_other_values_are_matched_by_name(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    """A tool that calls the spleen 1, the kidney 7, and knows a liver (3), which is background
    here.
    """
    theirs = tmp_path / "theirs"
    for path in predicted.glob("*.nii.gz"):
        label = read_labels(path)
        other = np.array([0, 7, 1])[label.array]
        other[0, 0, :3] = 3
        write(theirs / path.name, label.with_array(other))
    table = {"labels": {"background": 0, "Spleen": 1, "kidney_left": 7, "liver": 3}}
    (theirs / "dataset.json").write_text(json.dumps(table), encoding="utf-8")
    found = imported(find(theirs), wanted(data), data, tmp_path / "into")
    pd.testing.assert_frame_equal(by_class(found), by_class(measured(data, predicted)))


def test_a_class_that_the_tool_does_not_know_gives_no_row(
    data: Dataset, predicted: Path, tmp_path: Path
) -> None:
    shutil.copytree(predicted, tmp_path / "theirs")
    (tmp_path / "theirs" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "spleen": 2, "x": 1}}), encoding="utf-8"
    )
    found = imported(find(tmp_path / "theirs"), wanted(data), data, tmp_path / "into")
    pd.testing.assert_frame_equal(by_class(found), by_class(measured(data, predicted, ["spleen"])))
    (tmp_path / "theirs" / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}), encoding="utf-8"
    )
    with pytest.raises(ContextsegError, match="none of the classes is known"):
        imported(find(tmp_path / "theirs"), wanted(data), data, tmp_path / "into")


@pytest.mark.parametrize("inside", ["", "segmentations"])
def test_totalsegmentators_folders(
    data: Dataset, predicted: Path, tmp_path: Path, inside: str
) -> None:
    for path in predicted.glob("*.nii.gz"):
        label = read_labels(path)
        for name, value in {"kidney_left": 1, "spleen": 2, "liver": 9}.items():
            file = tmp_path / "theirs" / path.name.split(".")[0] / inside / f"{name}.nii.gz"
            write(file, label.with_array((label.array == value).astype(np.uint8)))
    found = imported(find(tmp_path / "theirs"), wanted(data), data, tmp_path / "into")
    assert set(found["source"]) == {"structures"}
    pd.testing.assert_frame_equal(by_class(found), by_class(measured(data, predicted)))
    next((tmp_path / "theirs").rglob("spleen.nii.gz")).unlink()
    with pytest.raises(ContextsegError, match="no mask of spleen, which other cases have"):
        imported(find(tmp_path / "theirs"), wanted(data), data, tmp_path / "into")
    for path in (tmp_path / "theirs").rglob("spleen.nii.gz"):
        path.unlink()
    found = imported(find(tmp_path / "theirs"), wanted(data), data, tmp_path / "into")
    assert set(found["class"]) == {"left kidney"}  # and not "both", of which the spleen is a part


def test_two_files_of_one_name_or_structure_are_refused(
    data: Dataset, predicted: Path, tmp_path: Path
) -> None:
    for path in predicted.glob("*.nii.gz"):
        label = read_labels(path)
        write(tmp_path / "maps" / path.name, label)
        for name in ("spleen", "left_kidney", "kidney_left"):
            write(tmp_path / "masks" / path.name.split(".")[0] / f"{name}.nii.gz", label)
    write(tmp_path / "maps" / "phantom_001.nii", read_labels(predicted / "phantom_001.nii.gz"))
    with pytest.raises(ContextsegError, match="the same name as phantom_001"):
        find(tmp_path / "maps")
    with pytest.raises(ContextsegError, match="a mask of the same structure"):
        imported(find(tmp_path / "masks"), wanted(data), data, tmp_path / "into")


def test_a_summary_alone_is_taken_as_it_is(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    """nnU-Net's own file, drawn up by hand for one case: 6 of 8 voxels found, 2 elsewhere."""
    metrics = {
        "Dice": 0.75,
        "IoU": 0.6,
        "TP": 6,
        "FP": 2,
        "FN": 2,
        "TN": 90,
        "n_pred": 8,
        "n_ref": 8,
    }
    missed = {"Dice": 0.0, "IoU": 0.0, "TP": 0, "FP": 0, "FN": 5, "TN": 95, "n_pred": 0, "n_ref": 5}
    absent = {
        "Dice": math.nan,
        "IoU": math.nan,
        "TP": 0,
        "FP": 0,
        "FN": 0,
        "TN": 100,
        "n_pred": 0,
        "n_ref": 0,
    }
    cases = [
        {
            "metrics": {"1": metrics, "2": missed, "(1, 2)": absent},
            "prediction_file": f"/x/{c.name}.nii.gz",
        }
        for c in data.test
    ]
    path = tmp_path / "theirs" / "summary.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"metric_per_case": cases}), encoding="utf-8")
    for place in (path, path.parent):
        table = imported(find(place), wanted(data), data, tmp_path / "into")
        assert set(table["source"]) == {"summary.json"}
        kidney, spleen, both = table[table["case"] == data.test[0].name].to_dict("records")
        assert (kidney["class"], kidney["status"], kidney["dsc"], kidney["iou"]) == (
            "left kidney",
            "both",
            0.75,
            0.6,
        )
        assert (kidney["sen"], kidney["prc"], kidney["rvd"]) == (0.75, 0.75, 0.0)
        assert (spleen["status"], spleen["dsc"], spleen["prc"]) == ("missed", 0.0, 0.0)
        assert both["status"] == "absent"
        assert np.isnan([both["dsc"], both["sen"], both["prc"]]).all()
        assert "hd95_mm" not in table


def test_our_own_summary_comes_back(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    table = measured(data, predicted)
    save_table(table, tmp_path)
    found = imported(find(tmp_path / "summary.json"), wanted(data), data, tmp_path / "into")
    columns = ["case", "class", "status", "dsc", "iou", "sen", "prc", "rvd", "tp", "fp", "fn", "tn"]
    pd.testing.assert_frame_equal(found[columns], table[columns])
    missing = [replace(pair, predicted=False) for pair in wanted(data)]
    save_table(evaluate(missing, data.region_values())[0], tmp_path)
    found = imported(find(tmp_path / "summary.json"), wanted(data), data, tmp_path / "into")
    assert set(found["status"]) == {"missed"}


def test_where_there_are_predictions_the_summary_is_not_asked(
    data: Dataset, predicted: Path, tmp_path: Path
) -> None:
    shutil.copytree(predicted, tmp_path / "theirs")
    (tmp_path / "theirs" / "summary.json").write_text('{"metric_per_case": []}', encoding="utf-8")
    assert find(tmp_path / "theirs").kind == "labels"


def test_partly_annotated_references(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    few = [Pair(p.case, p.prediction, p.reference, annotated=("spleen",)) for p in wanted(data)]
    table = imported(find(predicted), few, data, tmp_path / "into")
    assert set(table["class"]) == {"spleen"}


def test_what_cannot_be_imported_is_said(data: Dataset, predicted: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="no such file or folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ContextsegError, match="no predictions here"):
        find(tmp_path / "empty")
    shutil.copytree(predicted, tmp_path / "fewer")
    (tmp_path / "fewer" / "phantom_001.nii.gz").unlink()
    with pytest.raises(ContextsegError, match="1 of 3 cases are not there: phantom_001"):
        imported(find(tmp_path / "fewer"), wanted(data), data, tmp_path / "into")
    shutil.copytree(predicted, tmp_path / "strange")
    path = tmp_path / "strange" / "phantom_001.nii.gz"
    write(path, read_labels(path).with_array(read_labels(path).array * 3))
    with pytest.raises(ContextsegError, match="does not have: 3, 6"):
        imported(find(tmp_path / "strange"), wanted(data), data, tmp_path / "into")
    small = read_labels(predicted / "phantom_001.nii.gz").cropped(
        (slice(0, 9), slice(0, 9), slice(0, 9))
    )
    write(path, small)
    with pytest.raises(ContextsegError, match="phantom_001 could not be scored"):
        imported(find(tmp_path / "strange"), wanted(data), data, tmp_path / "into")
    for text in (
        "[]",
        '{"metric_per_case": [{"metrics": {"1": {"Dice": 1}}, '
        '"prediction_file": "phantom_001.nii.gz"}]}',
    ):
        (tmp_path / "summary.json").write_text(text, encoding="utf-8")
        with pytest.raises(ContextsegError, match=r"not nnU-Net v2's|not there"):
            imported(find(tmp_path / "summary.json"), wanted(data)[:1], data, tmp_path / "into")


# --- conventions ----------------------------------------------------------------------------------


def test_how_much_is_convention(data: Dataset, predicted: Path) -> None:
    regions = {"left kidney": [1], "spleen": [2]}
    made = pairs(predicted, data.folder / "labelsTs")
    table, problems = compare_conventions(made, regions)
    assert problems == {}
    assert list(table.columns) == ["class", "metric", *CONVENTIONS, "spread"]
    assert list(table["class"].drop_duplicates()) == ["left kidney", "spleen"]
    rows = table.set_index(["class", "metric"])
    for name in CONVENTIONS:
        alone = (
            evaluate(made, regions, convention=name)[0]
            .groupby("class")[["dsc", "hd95_mm", "nsd"]]
            .mean()
        )
        for klass in regions:
            np.testing.assert_allclose(
                rows.loc[klass].loc[["dsc", "hd95_mm", "nsd"], name].astype(float),
                alone.loc[klass],
                equal_nan=True,
            )
    assert rows.loc[("left kidney", "sen"), "default"] == rows.loc[("left kidney", "sen"), "monai"]
    hd95 = rows.loc[("left kidney", "hd95_mm"), list(CONVENTIONS)]
    assert rows.loc[("left kidney", "hd95_mm"), "spread"] == pytest.approx(hd95.max() - hd95.min())
    text = conventions_markdown(table)
    assert (
        text.splitlines()[0] == "| Class | Metric | " + " | ".join([*CONVENTIONS, "spread"]) + " |"
    )
    assert len(text.splitlines()) == 2 + len(table)


def test_conventions_of_nothing(tmp_path: Path, data: Dataset, predicted: Path) -> None:
    assert len(compare_conventions([], {"a": [1]})[0]) == 0
    assert (
        conventions_markdown(compare_conventions([], {"a": [1]})[0]) == "No case could be scored."
    )
    broken = tmp_path / "phantom_001.nii.gz"
    broken.write_bytes((predicted / broken.name).read_bytes()[:80])
    table, problems = compare_conventions(
        [Pair("x", broken, data.test[0].label or Path())], {"a": [1]}
    )
    assert table.empty
    assert "phantom_001" in problems["x"]
