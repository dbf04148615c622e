"""Some classes as the ROI, the others as background: in the data set, cache, folds and scores, and
in a whole job.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from contextseg.batch import IGNORE
from contextseg.data import phantom
from contextseg.data.cache import fingerprint, preprocess
from contextseg.data.check import check
from contextseg.data.layouts import Case, Dataset, folds, open_dataset, to_classes, to_values
from contextseg.data.plan import planned
from contextseg.data.roi import restricted
from contextseg.disk import read_json, write_json
from contextseg.errors import ContextsegError
from contextseg.evaluation import Pair, evaluate
from contextseg.evaluation.importing import find, imported
from contextseg.pipeline import references, resolve_fold, run_pipeline
from contextseg.runs import Run
from contextseg.settings import AUTO_FOLD, Settings
from contextseg.studies.compare.grid import cells, parse_grid
from contextseg.volume import read_labels, write

torch.set_num_threads(1)
TINY = [
    "steps=2",
    "patch_vox=16,16,16",
    "batch_size=2",
    "base_width=4",
    "device=cpu",
    "prediction.mirror=no",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Organs "bright" (1) and "dark" (2), and "both"; in the first case dark ones are unknown."""
    folder = phantom.write_dataset(
        tmp_path_factory.mktemp("data") / "set", labelled=4, test=2, classes=3
    )
    table = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", table | {"labels": {**table["labels"], "both": [1, 2]}})
    write_json(folder / "cases.json", {"cases": {"phantom_000": {"annotated": ["bright"]}}})
    return folder


def made_up(cases: tuple[Case, ...] = (), ignore: int | None = None) -> Dataset:
    """Four classes with gaps between their values; "rim" is no region of its own."""
    regions = {"vein": (1,), "lesion": (2, 3), "core": (2,), "all": (1, 2, 3)}
    classes, values = ("background", "vein", "core", "rim"), (0, 3, 4, 9)
    return Dataset(
        "d", Path("d"), ("CT",), classes, values, ignore, regions, ".nii.gz", cases, (), ()
    )


# --- the data set ---------------------------------------------------------------------------------


def test_what_remains() -> None:
    few = restricted(made_up(), ["rim", "core"])
    assert (few.classes, few.values, few.others) == (("background", "core", "rim"), (0, 4, 9), (3,))
    assert few.regions == {"lesion": (1, 2), "core": (1,)}  # "all" holds a vein
    assert restricted(made_up(), ["rim"]).regions == {"rim": (1,)}  # "lesion" holds a core
    assert few == restricted(made_up(), ["core", "rim", "core"])


def test_a_region_is_its_classes() -> None:
    assert restricted(made_up(), ["lesion"]).classes == ("background", "core", "rim")
    assert restricted(made_up(), ["all"]).values == made_up().values


def test_no_names_change_nothing() -> None:
    assert restricted(made_up(), ()) == made_up()


def test_twice_is_once() -> None:
    twice = restricted(restricted(made_up(), ["lesion"]), ["core"])
    once = restricted(made_up(), ["core"])
    assert replace(twice, others=()) == replace(once, others=())
    assert set(twice.others) == set(once.others) == {3, 9}


@pytest.mark.parametrize("name", ["cores", "background"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(
        ContextsegError, match="did you mean core" if name == "cores" else "no class of this name"
    ):
        restricted(made_up(), ["vein", name])


def test_other_values_are_background() -> None:
    few = restricted(made_up(ignore=10), ["core"])
    label = np.array([[0, 3, 4], [9, 10, 4]])
    assert to_classes(few, label, "x").tolist() == [[0, 0, 1], [0, IGNORE, 1]]
    assert to_values(few, np.array([0, 1, IGNORE])).tolist() == [0, 4, 10]
    with pytest.raises(
        ContextsegError, match=r"table: 5 \(the table: 0 background, 4 core; as background 3, 9\)"
    ):
        to_classes(few, np.array([5]), "x")
    with pytest.raises(
        ContextsegError, match='add "ignore": 10'
    ):  # and not 5: that is the next of these values alone
        to_classes(restricted(made_up(), ["core"]), np.array([10]), "x")


def test_what_was_annotated() -> None:
    statements = {"a": None, "b": ("vein", "core"), "c": ("vein",), "d": (), "e": ("core", "rim")}
    cases = tuple(
        Case(name, (Path(name),), Path(f"{name}.label"), annotated)
        for name, annotated in statements.items()
    )
    cases += (Case("f", (Path("f"),)),)
    both = restricted(made_up(cases), ["lesion"]).train
    assert [case.annotated for case in both] == [None, ("core",), None, None, ("core", "rim"), None]
    assert [case.name for case in both if case.label] == ["a", "b", "e"]
    assert [case.name for case in restricted(made_up(cases), ["vein"]).train if case.label] == [
        "a",
        "b",
        "c",
    ]


def test_folds_count_labels_of_the_roi() -> None:
    """Of five labelled patients three have labels of the rim; only these are validated on."""
    annotated = [("rim",), ("vein",), ("rim", "vein"), None, ("core",)]
    cases = tuple(Case(f"c{i}", (Path(),), Path("x"), names) for i, names in enumerate(annotated))
    few = restricted(made_up(cases), ["rim"])
    held = [{case.name for case in folds(few, fold, of=3)[1]} for fold in range(3)]
    assert sorted(map(sorted, held)) == [["c0"], ["c2"], ["c3"]]
    for fold, names in enumerate(held):
        assert {case.name for case in folds(few, fold, of=3)[0]} == {
            "c0",
            "c1",
            "c2",
            "c3",
            "c4",
        } - names
    with pytest.raises(ContextsegError, match="3 labelled patients, for 5 folds"):
        folds(few, 0)


# --- what follows from it -------------------------------------------------------------------------


def test_one_side_alone_is_not_mirrored(data: Path) -> None:
    """A left kidney that is background must not become a right one."""
    whole = replace(open_dataset(data), classes=("background", "kidney_right", "kidney_left"))
    facts = fingerprint(open_dataset(data), whole.train[:2])
    asked = {"patch_vox": (16, 16, 16), "base_width": 4}
    both, one = (planned(restricted(whole, roi), facts, asked) for roi in ((), ("kidney_right",)))
    assert (both.mirror, both.swaps) == ((True, True, True), ((1, 2),))
    assert one.mirror == tuple(letter not in "RL" for letter in one.orientation)
    assert one.swaps == ()


def test_two_restrictions_share_a_cache_and_no_label(data: Path, tmp_path: Path) -> None:
    whole = open_dataset(data)
    plan = planned(
        whole, fingerprint(whole, whole.train[:1]), {"patch_vox": (16, 16, 16), "base_width": 4}
    )
    case = whole.train[1]
    labels, folders = {}, {}
    for roi in ((), ("bright",), ("dark",), ("both",)):
        few = restricted(whole, roi)
        (cached,) = preprocess(few, [case], plan, tmp_path)
        labels[roi], folders[roi] = np.array(cached.label), cached.folder
    assert len(set(folders.values())) == 3
    assert folders[()] == folders[("both",)]  # the same classes
    full = labels[()]
    assert {1, 2} <= set(np.unique(full).tolist())
    np.testing.assert_array_equal(labels[("bright",)], full == 1)
    np.testing.assert_array_equal(labels[("dark",)], full == 2)


def test_planning_sees_the_roi_alone(data: Path) -> None:
    """Its intensities are the ROI's: 100 times 2.5 in bright organs and -0.5 in dark ones, with
    noise of 30.
    """
    whole = open_dataset(data)
    means = [
        float(np.mean(fingerprint(restricted(whole, [name]), whole.train[1:2])[0].roi[0]))
        for name in whole.classes[1:]
    ]
    np.testing.assert_allclose(means, (250, -50), atol=10)


def test_references_with_other_classes(data: Path, tmp_path: Path) -> None:
    """A prediction of all organs as dark ones: every bright voxel is a false positive, as all
    background is.
    """
    few = restricted(open_dataset(data), ["dark"])
    truth = read_labels(few.test[0].label)  # type: ignore[arg-type]
    write(
        tmp_path / f"{few.test[0].name}.nii.gz",
        truth.with_array(np.where(truth.array > 0, 2, 0).astype(np.uint8)),
    )
    by_value = few.region_values()
    table, problems = evaluate(references(few, few.test[:1], tmp_path), by_value)
    assert problems == {}
    (row,) = table.to_dict("records")
    bright, dark = int((truth.array == 1).sum()), int((truth.array == 2).sum())
    assert min(bright, dark) > 0
    assert (row["class"], row["tp"], row["fp"], row["fn"]) == ("dark", dark, bright, 0)


def test_another_tools_label_maps_with_other_classes(data: Path, tmp_path: Path) -> None:
    """Somebody else segmented everything, in the data set's own values."""
    few = restricted(open_dataset(data), ["dark"])
    theirs = tmp_path / "theirs"
    for case in few.test:
        write(theirs / f"{case.name}.nii.gz", read_labels(case.label))  # type: ignore[arg-type]
    wanted = [Pair(case.name, Path(), case.label) for case in few.test if case.label]
    table = imported(find(theirs), wanted, few, tmp_path / "into")
    assert table[["class", "dsc"]].values.tolist() == [["dark", 1.0]] * 2


def test_checking_the_roi(data: Path, tmp_path: Path) -> None:
    assert [finding.what for finding in check(data)] == [
        "dark is labelled, but not listed as annotated"
    ]
    assert check(data, roi=["bright"]) == check(data, roi=["dark"]) == []
    (finding,) = check(data, roi=["drak"])
    assert (finding.level, finding.remedy) == ("error", "did you mean dark?")
    table = {"cases": {f"phantom_{i:03d}": {"annotated": ["bright"]} for i in range(4)}}
    lacking = tmp_path / "set"
    phantom.write_dataset(lacking, labelled=4, test=0, classes=3)
    write_json(lacking / "cases.json", table)
    assert "no training case has a label" in [
        finding.what for finding in check(lacking, roi=["dark"])
    ]


# --- runs -----------------------------------------------------------------------------------------


def test_settings_keep_it() -> None:
    settings = Settings("data", roi=("dark", "bright"))
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_runs_from_before_open(data: Path, tmp_path: Path) -> None:
    """A run.json that knows neither `roi` nor `largest_component` is one of the defaults."""
    Run(tmp_path / "run", Settings(str(data)))
    path = tmp_path / "run" / "run.json"
    content = read_json(path)
    del content["settings"]["roi"], content["settings"]["prediction"]["largest_component"]
    write_json(path, content)
    assert Run.open(tmp_path / "run").settings == Settings(str(data))
    Run(tmp_path / "run", Settings(str(data))).make_plan()
    with pytest.raises(ContextsegError, match=r"roi was \[\] and is now \['dark'\]"):
        Run(tmp_path / "run", Settings(str(data), roi=("dark",)))


def test_folds_of_a_comparison_are_those_of_its_runs(data: Path, tmp_path: Path) -> None:
    """Where five patients have labels and four have labels of dark organs, "auto" is a fold and all
    cases.
    """
    folder = phantom.write_dataset(tmp_path / "set", labelled=5, test=0, classes=3)
    write_json(folder / "cases.json", {"cases": {"phantom_000": {"annotated": ["bright"]}}})
    assert resolve_fold(Settings(str(folder), fold=AUTO_FOLD)).fold == 0
    assert resolve_fold(Settings(str(folder), fold=AUTO_FOLD, roi=("dark",))).fold == -1
    with pytest.raises(ContextsegError, match="4 labelled patients, for 5 folds"):
        resolve_fold(Settings(str(folder), fold=0, roi=("dark",)))
    with pytest.raises(ContextsegError, match="did you mean dark"):
        resolve_fold(Settings(str(folder), roi=("drak",)))
    grid = parse_grid(
        folder, tmp_path / "out", ["supervised"], seeds="0", budgets="2,all", roi=["dark"]
    )
    made = cells(grid, restricted(open_dataset(folder), grid.roi))
    assert {cell.settings.fold for cell in made} == {-1}
    assert {cell.settings.roi for cell in made} == {("dark",)}
    assert "phantom_000" not in (made[0].settings.labelled or ())
    assert Run(tmp_path / "run", made[0].settings).dataset == restricted(
        open_dataset(folder), ["dark"]
    )


def test_the_whole_job_on_one_class(data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(str(data), roi=("dark",)).set(TINY))
    outcome = run_pipeline(run)
    table = pd.read_csv(outcome.table)  # type: ignore[arg-type]
    assert table[["case", "class", "label"]].values.tolist() == [
        ["phantom_004", "dark", 2],
        ["phantom_005", "dark", 2],
    ]
    assert (run.plan.classes, run.plan.values) == (("background", "dark"), (0, 2))
    assert [case.name for case in run.split[0] if case.label] == [
        "phantom_001",
        "phantom_002",
        "phantom_003",
    ]
    for path in outcome.predictions.glob("*.nii.gz"):
        assert set(np.unique(read_labels(path).array).tolist()) <= {0, 2}
    assert outcome.report
    assert outcome.report.exists()
