"""Label tables, and what the files beside the scans say of cases."""

import os
from pathlib import Path
from typing import Any

import pytest

from contextseg.data import phantom
from contextseg.data.layouts import open_dataset
from contextseg.data.tables import read_label_table
from contextseg.disk import write_json
from contextseg.errors import ContextsegError
from systems import LINKS
from test_layouts import names, put, put_label, put_nnunet

# --- label tables ---------------------------------------------------------------------------------


def test_label_tables() -> None:
    brats = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    assert read_label_table(brats, "") == (
        ("background", "label_1", "label_2", "enhancing"),
        (0, 1, 2, 3),
        4,
        {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)},
    )
    gaps = (("background", "b", "a"), (0, 2, 7), None, {"a": (2,), "b": (1,)})
    assert (
        read_label_table({"a": 7, "b": 2}, "") == gaps
    )  # background need not be named; regions keep the table's order
    assert read_label_table({"0": "Background", "7": "a", "2": "b"}, "")[:3] == gaps[:3]
    assert read_label_table(["background", "a"], "")[:2] == (("background", "a"), (0, 1))
    assert read_label_table({}, "")[:2] == (("background",), (0,))


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ({"background": 1, "a": 2}, "background is not 0"),
        ({"background": 0, "a": 1, "ignore": 1}, "ignore label is not the highest"),
        ({"background": 0, "a": [0, 1]}, "includes 0"),
        ({"background": 0, "a": 1, "b": 1}, "'a' and 'b' are both 1"),
        ({"background": 0, "a": 1.5}, "is 1.5"),
        ({"background": 0, "a": True}, "is True"),
        ({"background": 0, "a": []}, r"is \[\]"),
        ({"background": 0, "a": -1}, "is -1"),
        ({"1": "a", "2": "a"}, "the same name"),
    ],
)
def test_ambiguous_label_tables(labels: dict, what: str) -> None:
    with pytest.raises(ContextsegError, match=what):
        read_label_table(labels, "dataset.json")


# --- statements about cases -----------------------------------------------------------------------

ORGANS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}


def test_annotated_classes_beside_the_labels(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=4, labels=ORGANS)
    write_json(tmp_path / "labelsTr" / "annotated.json", {"a": ["spleen", "liver"], "b": []})
    write_json(tmp_path / "labelsTr" / "c.json", {"annotated": ["kidney"]})
    write_json(tmp_path / "labelsTr" / "d.json", {"spacing": [1, 1, 1]})  # another program's
    write_json(tmp_path / "labelsTr" / "summary.json", {"mean": {"Dice": 0.9}})
    data = open_dataset(tmp_path)
    assert [case.annotated for case in data.train] == [("liver", "spleen"), (), ("kidney",), None]


def test_cases_and_patients_beside_any_layout(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=4, labels=ORGANS)
    table = {
        "a": {"annotated": ["liver"], "site": "our own key"},
        "b": {"split": "test"},
        "c": {"patient": 7},
        "d": {},
    }
    write_json(tmp_path / "cases.json", {"cases": table | {"elsewhere": {"split": "train"}}})
    write_json(tmp_path / "patients.json", {"a": "P1", "d": "P1"})
    data = open_dataset(tmp_path)
    assert (names(data.train), names(data.test)) == (["a", "c", "d"], ["b"])
    assert [case.patient for case in data.train] == ["P1", "7", "P1"]
    assert data.train[0].annotated == ("liver",)
    assert data.test[0].label is not None


def test_plain_folders_with_a_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "images" / f"{name}.nii.gz")
        put_label(tmp_path / "labels" / f"{name}.nii.gz", (0, 3))
    write_json(
        tmp_path / "cases.json",
        {"labels": ORGANS, "channel_names": ["MR"], "cases": {"b": {"split": "test"}, "a": {}}},
    )
    data = open_dataset(tmp_path)
    assert (data.classes, data.channels) == (("background", "liver", "spleen", "kidney"), ("MR",))
    assert (names(data.train), names(data.test)) == (["a"], ["b"])


@pytest.mark.parametrize(
    ("file", "content", "what", "remedy"),
    [
        (
            "labelsTr/annotated.json",
            {"a": ["livr"]},
            "no class is called 'livr'",
            "did you mean liver?",
        ),
        ("labelsTr/annotated.json", {"a": "liver"}, "annotated is 'liver'", "write a list"),
        (
            "labelsTr/annotated.json",
            {"aa": ["liver"]},
            "names cases without an image: aa",
            "did you mean a?",
        ),
        (
            "labelsTr/e.json",
            {"annotated": ["liver"]},
            "names cases without an image: e",
            "choose from a, b, c",
        ),
        ("patients.json", {"x": "P1"}, "names cases without an image: x", "choose from a, b, c"),
        (
            "cases.json",
            {"cases": {"a": {"anotated": ["liver"]}}},
            "'anotated' is not known",
            "did you mean annotated?",
        ),
        (
            "cases.json",
            {"cases": {"a": {"split": "validation"}}},
            "the split is 'validation'",
            "choose from",
        ),
        ("cases.json", {"cases": {"a": ["liver"]}}, "not an object", "write"),
        (
            "splits_final.json",
            [{"train": ["a", "bb"], "val": ["c"]}],
            "names cases that are not there: bb",
            "mean b?",
        ),
        (
            "splits_final.json",
            [{"train": ["a", "b"], "val": ["b"]}],
            "trains and validates on b",
            "one of the two",
        ),
        (
            "splits_final.json",
            [{"train": ["a"], "val": ["c"]}],
            "validates on cases without a label: c",
            "add their",
        ),
    ],
)
def test_wrong_names_are_told_with_the_nearest(
    tmp_path: Path, file: str, content: Any, what: str, remedy: str
) -> None:
    put_nnunet(tmp_path, cases=3, labelled=2, labels=ORGANS)
    write_json(tmp_path / file, content)
    with pytest.raises(ContextsegError) as caught:
        open_dataset(tmp_path)
    assert caught.value.where == str(tmp_path / file)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_one_name_for_two_cases(tmp_path: Path) -> None:
    put_nnunet(tmp_path)
    put(tmp_path / "imagesTs" / "b_0000.nii.gz")
    with pytest.raises(ContextsegError, match="'b' is the name of two cases"):
        open_dataset(tmp_path)


def test_splits_that_are_no_splits(tmp_path: Path) -> None:
    put_nnunet(tmp_path)
    write_json(tmp_path / "splits_final.json", {"train": ["a"]})
    with pytest.raises(ContextsegError, match="not a list of folds"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["cases.json", "patients.json", "splits_final.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_a_table_that_is_no_file_is_not_passed_over(tmp_path: Path, name: str, kind: str) -> None:
    data = phantom.write_dataset(tmp_path / "data", labelled=2, test=0)
    path = data / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        if not LINKS:
            pytest.skip("needs links")
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ContextsegError, match=name):
        open_dataset(data)
