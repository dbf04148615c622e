"""Folders laid out in every known way, and the label values at the border.

Also builders for other tests.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contextseg.batch import IGNORE
from contextseg.data.check import check
from contextseg.data.layouts import (
    Case,
    Dataset,
    cases_in,
    open_dataset,
    scans_in,
    survey,
    to_classes,
    to_values,
)
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.volume import Volume, write

DEMO = Path(__file__).parents[1] / "src" / "contextseg" / "demo_data"


def put(path: Path, seed: int = 0, low: float = 0.0, kind: type = np.float32, **grid: Any) -> Path:
    """A small scan of noise above `low`."""
    shape = grid.get("shape", (4, 5, 6))
    noise = np.random.default_rng(seed).uniform(low, low + 100, shape).astype(kind)
    write(path, Volume(noise, grid.get("affine", np.diag([3.0, 1, 1, 1]))))
    return path


def put_label(path: Path, values: Any = (0, 1), **grid: Any) -> Path:
    """A small label map that holds `values`."""
    array = np.resize(np.array(values), grid.get("shape", (4, 5, 6))).astype(
        grid.get("kind", np.uint8)
    )
    write(path, Volume(array, grid.get("affine", np.diag([3.0, 1, 1, 1]))))
    return path


def put_nnunet(
    folder: Path,
    cases: int = 3,
    labelled: int | None = None,
    channels: int = 1,
    end: str = ".nii.gz",
    **more: Any,
) -> Path:
    """An nnU-Net v2 raw data set of cases a, b, c, ... with different voxels."""
    for i in range(cases):
        name = chr(ord("a") + i)
        for c in range(channels):
            put(folder / "imagesTr" / f"{name}_{c:04d}{end}", seed=10 * i + c)
        if labelled is None or i < labelled:
            put_label(folder / "labelsTr" / f"{name}{end}")
    names = {str(c): f"T{c + 1}" for c in range(channels)}
    table = {
        "channel_names": names,
        "labels": {"background": 0, "tumour": 1},
        "numTraining": cases,
        "file_ending": end,
    }
    write_json(folder / "dataset.json", table | more)
    return folder


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


# --- nnU-Net --------------------------------------------------------------------------------------


def test_the_embedded_data() -> None:
    data = open_dataset(DEMO)
    assert (len(data.train), len(data.test)) == (12, 4)
    assert data.channels == ("T1",)
    assert (data.classes, data.values, data.regions) == (
        ("background", "tumour"),
        (0, 1),
        {"tumour": (1,)},
    )
    assert data.train[0].images == (DEMO / "imagesTr" / "sarcoma_003_0000.nii.gz",)
    assert data.test[0].label == DEMO / "labelsTs" / "sarcoma_020.nii.gz"
    assert data.splits == ()


def test_regions_by_their_label_values(tmp_path: Path) -> None:
    put_nnunet(tmp_path, labels={"background": 0, "tumour": [2, 7], "core": 7})
    assert open_dataset(tmp_path).region_values() == {"tumour": [2, 7], "core": [7]}


@pytest.mark.parametrize("end", [".nii.gz", ".mha", ".nrrd", ".nii"])
def test_nnunet_with_any_ending_two_channels_and_unlabelled_cases(tmp_path: Path, end: str) -> None:
    put_nnunet(tmp_path, cases=3, labelled=2, channels=2, end=end)
    put(tmp_path / "imagesTs" / f"z_0000{end}")
    put(tmp_path / "imagesTs" / f"z_0001{end}")
    (tmp_path / "imagesTr" / f"._a_0000{end}").write_text("macOS leaves these", encoding="utf-8")
    (tmp_path / "imagesTr" / "notes.txt").write_text("a person's", encoding="utf-8")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["a", "b", "c"]
    assert data.train[1].images == tuple(tmp_path / "imagesTr" / f"b_000{c}{end}" for c in range(2))
    assert [case.label for case in data.train] == [
        tmp_path / f"labelsTr/a{end}",
        tmp_path / f"labelsTr/b{end}",
        None,
    ]
    assert (names(data.test), data.test[0].label) == (["z"], None)
    assert (data.channels, data.ending, data.name) == (("T1", "T2"), end, tmp_path.name)
    assert all(case.annotated is None and case.patient == case.name for case in data.train)


def test_nnunet_pictures_hold_their_channels_in_one_file(tmp_path: Path) -> None:
    put(tmp_path / "imagesTr" / "a_0000.png", shape=(1, 5, 6), kind=np.uint8)
    put_label(tmp_path / "labelsTr" / "a.png", shape=(1, 5, 6))
    table = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "cell": 1},
        "file_ending": ".png",
    }
    write_json(tmp_path / "dataset.json", table)
    data = open_dataset(tmp_path)
    assert len(data.train[0].images) == 1
    assert (data.channels, data.ending) == (("R", "G", "B"), ".png")


def test_nnunet_with_explicit_paths(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere" / "scan.nii.gz")
    put_nnunet(
        tmp_path / "set",
        cases=0,
        dataset={
            "one": {
                "images": [str(elsewhere)],
                "label": str(put_label(tmp_path / "elsewhere" / "drawn.nii.gz")),
            },
            "two": {"images": ["../elsewhere/scan.nii.gz"]},
        },
    )
    data = open_dataset(tmp_path / "set")
    assert names(data.train) == ["one", "two"]
    assert data.train[0].label == tmp_path / "elsewhere" / "drawn.nii.gz"
    assert data.train[1].images[0].samefile(elsewhere)
    assert data.train[1].label is None


def test_what_is_wrong_with_single_files_is_all_collected(tmp_path: Path) -> None:
    put_nnunet(tmp_path, cases=3, channels=2)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    put(tmp_path / "imagesTr" / "b_0002.nii.gz")
    put(tmp_path / "imagesTr" / "odd.nii.gz")
    (tmp_path / "labelsTr" / "c.nii.gz").rename(tmp_path / "labelsTr" / "cc.nii.gz")
    _, problems = survey(tmp_path)
    by_case = {case: (Path(p.where).name, p.what, p.remedy) for case, p in problems}
    assert by_case["a"][:2] == ("a_0000.nii.gz", "channel 1 (T2) is missing")
    assert by_case["b"][:2] == ("b_0002.nii.gz", "channel 2 of a data set with 2 channels")
    assert by_case["odd"][1:] == (
        "the name does not end in a channel number",
        "rename it to odd_0000.nii.gz",
    )
    assert by_case["cc"][:2] == ("cc.nii.gz", "a label without an image")
    assert by_case["cc"][2].startswith("did you mean c?")
    assert len(problems) == 4
    with pytest.raises(ContextsegError, match=r"3 more: `contextseg check"):
        open_dataset(tmp_path)


# --- Decathlon and plain folders ------------------------------------------------------------------


def put_decathlon(folder: Path, **more: Any) -> Path:
    for name in ("x_1", "x_2"):
        put(folder / "imagesTr" / f"{name}.nii.gz", shape=(2, 4, 5, 6))
        put_label(folder / "labelsTr" / f"{name}.nii.gz", (0, 2))
    put(folder / "imagesTs" / "x_3.nii.gz", shape=(2, 4, 5, 6))
    table = {
        "name": "Prostate",
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "2": "PZ", "7": "TZ"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
            for n in ("x_1", "x_2")
        ],
        "test": ["./imagesTs/x_3.nii.gz"],
    }
    write_json(folder / "dataset.json", table | more)
    return folder


def test_decathlon(tmp_path: Path) -> None:
    data = open_dataset(put_decathlon(tmp_path))
    assert (data.name, data.channels, data.ending) == ("Prostate", ("T2", "ADC"), ".nii.gz")
    assert (data.classes, data.values) == (("background", "PZ", "TZ"), (0, 2, 7))
    assert names(data.train) == ["x_1", "x_2"]
    assert data.train[0].images == (tmp_path / "imagesTr" / "x_1.nii.gz",)
    assert (names(data.test), data.test[0].label) == (["x_3"], None)
    put_label(tmp_path / "labelsTs" / "x_3.nii.gz")
    assert open_dataset(tmp_path).test[0].label == tmp_path / "labelsTs" / "x_3.nii.gz"


def test_decathlon_unlabelled_missing_and_numbered_files(tmp_path: Path) -> None:
    training = [
        {"image": "imagesTr/x_1.nii.gz"},
        {"image": "imagesTr/x_2.nii.gz", "label": "labelsTr/x_2.nii.gz"},
    ]
    put_decathlon(tmp_path, training=training)
    assert open_dataset(tmp_path).train[0].label is None
    (tmp_path / "labelsTr" / "x_2.nii.gz").unlink()
    with pytest.raises(ContextsegError, match=r"x_2\.nii\.gz: the file does not exist"):
        open_dataset(tmp_path)
    put_label(tmp_path / "labelsTr" / "x_2.nii.gz")
    (
        tmp_path / "imagesTr" / "x_1.nii.gz"
    ).unlink()  # nnU-Net v1 lists the case and stores its channels
    both = tuple(put(tmp_path / "imagesTr" / f"x_1_000{c}.nii.gz") for c in range(2))
    assert open_dataset(tmp_path).train[0].images == both


def test_plain_folders_find_their_classes_in_the_files(tmp_path: Path) -> None:
    for i, name in enumerate(("p1", "p2", "p3")):
        put(tmp_path / "images" / f"{name}.nii.gz", seed=i)
    put_label(tmp_path / "labels" / "p1.nrrd", (0, 5))
    put_label(tmp_path / "labels" / "p2.nrrd", (0, 2, 300), kind=np.int16)
    data = open_dataset(tmp_path)
    assert (data.classes, data.values) == (
        ("background", "label_2", "label_5", "label_300"),
        (0, 2, 5, 300),
    )
    assert [case.label is not None for case in data.train] == [True, True, False]
    assert (data.channels, data.ending) == (("channel_0",), ".nrrd")


def test_plain_folders_without_labels_and_a_scan_in_hounsfield_units(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.mha", low=-1000)
    data = open_dataset(tmp_path)
    assert (data.classes, data.values, data.channels, data.ending) == (
        ("background",),
        (0,),
        ("CT",),
        ".mha",
    )


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (["a_0000", "a_0001", "b_0000", "b_0001"], ["a", "b"], {"a": 2, "b": 2}),  # channels
        (["s_2023", "s_2024"], [], {"s_2023": 1, "s_2024": 1}),  # years: no number 0
        (
            ["s_0000", "s_0001"],
            ["s_0000"],
            {"s_0000": 1, "s_0001": 1},
        ),  # a label is called like one file
    ],
)
def test_plain_names_that_end_in_numbers(
    tmp_path: Path, images: list[str], labels: list[str], expected: dict
) -> None:
    for name in images:
        put(tmp_path / "imagesTr" / f"{name}.nii.gz")
    for name in labels:
        put_label(tmp_path / "labelsTr" / f"{name}.nii.gz")
    put(tmp_path / "imagesTs" / "t.nii.gz")
    data, _ = survey(tmp_path)
    assert {case.name: len(case.images) for case in data.train} == expected
    assert names(data.test) == ["t"]
    assert sum(case.label is not None for case in data.train) == len(labels)


def test_plain_sub_folders_are_dicom_series(tmp_path: Path) -> None:
    for name in ("p.1", "p.2"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.dcm").write_text("", encoding="utf-8")
    (tmp_path / "images" / "empty").mkdir()
    put_label(tmp_path / "labels" / "p.1.nii.gz")
    data = open_dataset(tmp_path)
    assert [(case.name, case.images[0].name) for case in data.train] == [
        ("p.1", "p.1"),
        ("p.2", "p.2"),
    ]
    assert data.train[0].label == tmp_path / "labels" / "p.1.nii.gz"
    assert data.ending == ".nii.gz"


def test_plain_two_files_of_one_name_and_a_scan_among_the_labels(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.nii.gz")
    put(tmp_path / "images" / "a.mha")
    put_label(tmp_path / "labels" / "a.nii.gz", range(5000), shape=(20, 20, 20), kind=np.int16)
    messages = [p.what for _, p in survey(tmp_path)[1]]
    assert messages[0] == "the same name as a.mha"
    assert "5000 label values from 0 to 4999" in messages[1]


@pytest.mark.parametrize(
    ("end", "written"), [(".mhd", ".mha"), (".nhdr", ".nrrd"), (".xyz", ".nii.gz")]
)
def test_predictions_get_an_ending_that_can_be_written(
    tmp_path: Path, end: str, written: str
) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / f"a_0000{end}").write_text("", encoding="utf-8")
    put_nnunet(tmp_path, cases=0, file_ending=end)
    assert open_dataset(tmp_path).ending == written


# --- scans to predict -----------------------------------------------------------------------------


def test_scans_to_predict(tmp_path: Path) -> None:
    lone = put(tmp_path / "one" / "scan.mha")
    assert cases_in(lone) == (Case("scan", (lone,)),)
    two = tuple(put(tmp_path / "two" / f"b_000{c}.nii.gz") for c in range(2))
    assert cases_in(two[0]) == (Case("b", two),)  # its other channels come along
    put(tmp_path / "two" / "a_0000.nii.gz")
    put(tmp_path / "two" / "a_0001.nii.gz")
    put(tmp_path / "two" / "c_0000.nii.gz")
    (tmp_path / "two" / "._a_0000.nii.gz").write_text("", encoding="utf-8")
    assert [(case.name, len(case.images)) for case in cases_in(tmp_path / "two")] == [
        ("a", 2),
        ("b", 2),
        ("c", 1),
    ]
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM0001").write_text("", encoding="utf-8")
    assert cases_in(tmp_path / "series") == (Case("series", (tmp_path / "series",)),)
    (tmp_path / "many" / "p1").mkdir(parents=True)
    (tmp_path / "many" / "p1" / "1.dcm").write_text("", encoding="utf-8")
    assert cases_in(tmp_path / "many") == (Case("p1", (tmp_path / "many" / "p1",)),)


def test_scans_to_predict_of_a_data_set_and_of_nothing(tmp_path: Path) -> None:
    assert names(cases_in(DEMO)) == [f"sarcoma_{n}" for n in ("020", "026", "038", "043")]
    assert names(cases_in(DEMO / "imagesTs")) == names(cases_in(DEMO))
    assert names(cases_in(put_nnunet(tmp_path / "set", cases=2))) == ["a", "b"]
    (tmp_path / "empty").mkdir()
    for path, what in (
        (tmp_path / "empty", "there is no scan"),
        (tmp_path / "nowhere", "no such file or folder"),
    ):
        with pytest.raises(ContextsegError, match=what):
            cases_in(path)
    put(tmp_path / "twice" / "a.nii.gz")
    put(tmp_path / "twice" / "a.mha")
    with pytest.raises(ContextsegError, match="the same name"):
        cases_in(tmp_path / "twice")


# --- what is no data set --------------------------------------------------------------------------


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ContextsegError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(ContextsegError, match="is a file"):
        open_dataset(put(tmp_path / "a.nii.gz"))
    with pytest.raises(ContextsegError, match=r"a data set has a dataset\.json"):
        open_dataset(tmp_path)
    put_nnunet(tmp_path / "set")
    with pytest.raises(ContextsegError, match=rf"did you mean {tmp_path / 'set'}\?"):
        open_dataset(tmp_path)
    with pytest.raises(ContextsegError, match=rf"did you mean {tmp_path / 'set'}\?"):
        open_dataset(tmp_path / "set" / "imagesTr")


def test_tables_that_are_broken(tmp_path: Path) -> None:
    put_nnunet(tmp_path, file_ending=".mha")
    with pytest.raises(ContextsegError, match=r"there is no image.*end in \.mha; is that so\?"):
        open_dataset(tmp_path)
    for broken, what in (
        ({"training": [{"label": "a"}]}, "not the expected table"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "not numbered"),
        ({"labels": 3}, "not a table"),
    ):
        put_nnunet(tmp_path, **broken)
        with pytest.raises(ContextsegError, match=what) as caught:
            open_dataset(tmp_path)
        assert caught.value.where == str(tmp_path / "dataset.json")
    for text in ("{", "[1, 2]"):
        (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
        with pytest.raises(ContextsegError, match="JSON"):
            open_dataset(tmp_path)


# --- label values ---------------------------------------------------------------------------------


def with_values(values: tuple[int, ...], ignore: int | None = None) -> Dataset:
    classes = ("background", *(f"c{v}" for v in values[1:]))
    return Dataset("d", Path("d"), ("CT",), classes, values, ignore, {}, ".nii.gz", (), (), ())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_values_become_classes_and_values_again(kind: type) -> None:
    data = with_values((0, 2, 7), ignore=9)
    files = np.array([[0, 2, 9], [7, 0, 2]], kind)
    classes = to_classes(data, files, "x")
    assert classes.dtype == np.int16
    assert classes.tolist() == [[0, 1, IGNORE], [2, 0, 1]]
    back = to_values(data, classes)
    assert back.dtype == np.uint8
    assert np.array_equal(back, files)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((0, 255), np.uint8),
        ((0, 256), np.uint16),
        ((0, 3, 70_000), np.uint32),
        ((0, 5, 2**31 - 1), np.uint32),
    ],
)
def test_large_values_with_gaps(values: tuple[int, ...], kind: type) -> None:
    data = with_values(values)
    files = np.random.default_rng(0).choice(values, (3, 4, 5)).astype(np.int32)
    back = to_values(data, to_classes(data, files, "x"))
    assert back.dtype == kind
    assert np.array_equal(back, files)


def test_values_at_the_ends_of_int16() -> None:
    data = with_values((0, 32767))
    assert to_classes(data, np.array([32767, 0], np.int16), "x").tolist() == [1, 0]
    with pytest.raises(ContextsegError, match="-32768"):
        to_classes(data, np.array([32767, -32768], np.int16), "x")
    assert to_classes(data, np.zeros((0, 2, 2), np.int16), "x").shape == (0, 2, 2)


def test_unknown_is_background_in_files_without_an_ignore_value() -> None:
    assert to_values(with_values((0, 4)), np.array([IGNORE, 0, 1])).tolist() == [0, 0, 4]
    for wrong in (2, -2):
        with pytest.raises(IndexError):
            to_values(with_values((0, 4)), np.array([0, wrong]))


@pytest.mark.parametrize(
    ("found", "what", "remedy"),
    [
        (
            [0, 1, 5, 9],
            "label values that are not in the label table: 5, 9 (the table: 0 background, 1 c1)",
            "add them",
        ),
        (
            [0, 255],
            "a label value that is not in the label table: 255",
            "255 is often c1 saved as a picture; save it as 1",
        ),
        ([0, 1, 2], "not in the label table: 2", '"not annotated", add "ignore": 2'),
        ([-1, 0, 1], "not in the label table: -1", '"not annotated", add "ignore": 2'),
        (list(range(100)), "2, 3, 4, 5, 6, 7, 8, 9 and 90 more", "this looks like a scan"),
    ],
)
def test_wrong_values_are_named_with_where_they_may_come_from(
    found: list[int], what: str, remedy: str
) -> None:
    with pytest.raises(ContextsegError) as caught:
        to_classes(with_values((0, 1)), np.array(found), "labels/a.nii.gz")
    assert caught.value.where == "labels/a.nii.gz"
    assert what in caught.value.what
    assert remedy in caught.value.remedy


# --- nothing is left out in silence ---------------------------------------------------------------


@pytest.mark.parametrize("end", [".hdr", ".mgz", ".jpg", ".seg.nrrd", ".MHA"])
def test_plain_folders_are_searched_for_formats_that_people_have(tmp_path: Path, end: str) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b.c"):
            (tmp_path / folder / f"{name}{end}").write_bytes(b"")
            if end == ".hdr":
                (tmp_path / folder / f"{name}.img").write_bytes(b"")
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "organ": 1}}')
    data, problems = survey(tmp_path)
    assert [(case.name, case.label is not None) for case in data.train] == [
        ("a", True),
        ("b.c", True),
    ]
    assert not problems
    assert not data.unused


def test_files_that_no_case_uses_are_named(tmp_path: Path) -> None:
    put_nnunet(tmp_path, 2)
    for name in ("imagesTr/c_0000.nii", "labelsTr/c.mha", "imagesTr/d_0000.npy"):
        (tmp_path / name).write_bytes(b"")
    for name in ("imagesTr/a_0000.json", "labelsTr/a.npz", "labelsTr/notes.txt", "labelsTr/.b.nii"):
        (tmp_path / name).write_bytes(b"{}")
    data = open_dataset(tmp_path)
    assert [path.name for path in data.unused] == ["c_0000.nii", "d_0000.npy", "c.mha"]
    [finding] = check(tmp_path)
    assert (finding.level, finding.kind) == ("warning", "unused")
    assert "3 files are not used: c_0000.nii, d_0000.npy, c.mha" in finding.what


def test_files_that_a_table_does_not_list_are_named(tmp_path: Path) -> None:
    put_decathlon(tmp_path)
    put(tmp_path / "imagesTr" / "forgotten.nii.gz")
    assert [path.name for path in open_dataset(tmp_path).unused] == ["forgotten.nii.gz"]


def test_files_of_a_folder_to_predict_that_are_no_case_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz")
    for name in ("b.npy", "a.json", "a.pkl"):
        (tmp_path / name).write_bytes(b"{}")
    header = "NDims = 3\nElementDataFile = voxels.bin\n"
    (tmp_path / "c.mhd").write_text(header)
    (tmp_path / "voxels.bin").write_bytes(b"")
    cases, unused = scans_in(tmp_path)
    assert [case.name for case in cases] == ["a", "c"]
    assert [path.name for path in unused] == ["b.npy"]
    put(tmp_path / "a.nii")
    with pytest.raises(ContextsegError, match="the same name as a"):
        cases_in(tmp_path)


def test_a_folder_with_one_scan_inside_is_that_scan(tmp_path: Path) -> None:
    inside = put(tmp_path / "a.nii.gz" / "a.nii")
    [case] = cases_in(tmp_path)
    assert (case.name, case.images) == ("a", (inside,))


def test_scans_beside_the_table_that_nnunet_leaves(tmp_path: Path) -> None:
    put(tmp_path / "a_0000.nii.gz")
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0}, "file_ending": ".nii.gz"})
    assert [case.name for case in cases_in(tmp_path)] == ["a"]


def test_names_that_look_alike_are_alike(tmp_path: Path) -> None:
    """An accent of one character or of two, as file systems write them."""
    composed, apart = "Jos\u00e9", "Jose\u0301"
    put(tmp_path / "images" / f"{apart}.nii.gz")
    put_label(tmp_path / "labels" / f"{composed}.nii.gz")
    write_json(tmp_path / "patients.json", {apart: "p1"})
    data = open_dataset(tmp_path)
    [case] = data.train
    assert (case.name, case.patient) == (composed, "p1")
    assert case.label is not None


# --- tables of other systems ----------------------------------------------------------------------


def test_a_label_in_another_letter_case_is_told(tmp_path: Path) -> None:
    put(tmp_path / "images" / "CASE_A.nii.gz")
    put(tmp_path / "images" / "b.nii.gz")
    put(tmp_path / "labels" / "case_a.nii.gz")
    put(tmp_path / "labels" / "b.nii.gz")
    _, problems = survey(tmp_path)
    [remedy] = [problem.remedy for name, problem in problems if name == "case_a"]
    assert remedy == "the image is called CASE_A: write both in the same letter case"


def test_a_table_written_on_windows(tmp_path: Path) -> None:
    put_decathlon(tmp_path)
    table = read_json(tmp_path / "dataset.json")
    for entry in table["training"]:
        for key in entry:
            entry[key] = entry[key].replace("/", "\\")
    table["test"] = [entry.replace("/", "\\") for entry in table["test"]]
    expected = open_dataset(tmp_path)
    write_json(tmp_path / "dataset.json", table)
    data = open_dataset(tmp_path)
    assert [(c.name, c.label) for c in data.train] == [(c.name, c.label) for c in expected.train]
    assert [c.name for c in data.test] == [c.name for c in expected.test]


def test_a_listed_name_in_another_form_or_case(tmp_path: Path) -> None:
    put_decathlon(tmp_path)
    table = read_json(tmp_path / "dataset.json")
    first = tmp_path / table["training"][0]["image"]
    first.rename(first.with_name("Jose\u0301.nii.gz"))
    table["training"][0]["image"] = "./imagesTr/Jos\u00e9.nii.gz"
    write_json(tmp_path / "dataset.json", table)
    assert open_dataset(tmp_path).train[0].images[0].exists()
    table["training"][0]["image"] = "./imagesTr/jos\u00e9.nii.gz"
    write_json(tmp_path / "dataset.json", table)
    with pytest.raises(ContextsegError, match="does not exist"):
        open_dataset(tmp_path)


def test_a_v2_table_with_an_empty_list_of_training_cases(tmp_path: Path) -> None:
    put_nnunet(tmp_path, 2, training=[], test=[])
    assert [case.name for case in open_dataset(tmp_path).train] == ["a", "b"]
