"""A project: from a few labelled slices to a finished data set, in one folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import contextseg as cs
from contextseg import cli, projects
from contextseg.arguments import assignments
from contextseg.data import phantom
from contextseg.data.check import check
from contextseg.data.layouts import open_dataset
from contextseg.disk import read_json, write_json
from contextseg.metrics.calibration import expected_case_dice
from contextseg.projects import LabelProject, Origins, ProjectCase, ProjectTable
from contextseg.volume import Volume, read_labels, write

TINY = {
    "steps": 2,
    "patch_vox": (16, 16, 16),
    "batch_size": 2,
    "base_width": 4,
    "device": "cpu",
    "save_every": 1,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten labelled patients; 006 to 009 are the test split."""
    folder = tmp_path_factory.mktemp("project") / "data"
    return phantom.write_dataset(folder, labelled=6, test=4)


@pytest.fixture(scope="module")
def scans(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ten scans in one folder, without a label."""
    folder = tmp_path_factory.mktemp("scans")
    for path in sorted(data.glob("images*/*.nii.gz")):
        shutil.copy(path, folder / path.name.replace("_0000", ""))
    return folder


def truth(data: Path, name: str) -> Volume:
    [path] = data.glob(f"labels*/{name}.nii.gz")
    return read_labels(path)


def draw(project: LabelProject, data: Path, name: str, count: int = 3) -> list[int]:
    """Draw some slices of a case right, as a viewer saves them: 0 elsewhere."""
    label = truth(data, name)
    holding = np.flatnonzero(label.array.any((1, 2)))
    chosen = holding[np.linspace(0, len(holding) - 1, count).round().astype(int)].tolist()
    drawn = np.zeros_like(label.array)
    drawn[chosen] = label.array[chosen]
    write(project.folder / "drawn" / f"{name}.nii.gz", label.with_array(drawn))
    return chosen


def began(
    folder: Path, scans: Path, test: int | list[str] = 0, unlabelled: int | None = None
) -> LabelProject:
    return cs.project(
        folder / "work", scans, ["bright"], test=test, unlabelled=unlabelled, verbose=False
    )


def states(project: LabelProject) -> dict[str, str]:
    return {name: row.state for name, row in project.refresh().items()}


@pytest.fixture(scope="module")
def chain(data: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelProject:
    """Two cases drawn and filled, one of them accepted; a round trained and predicted."""
    locked = ["phantom_006", "phantom_007", "phantom_008"]
    project = began(tmp_path_factory.mktemp("chain"), scans, locked)
    for name in ("phantom_000", "phantom_001", "phantom_006"):
        draw(project, data, name)
    project.fill()
    project.accept(["phantom_000", "phantom_006"], minutes=2)
    project.train(**TINY)
    project.predict()
    return project


# --- the table ------------------------------------------------------------------------------------


def test_a_case_goes_through_its_states(tmp_path: Path) -> None:
    table = ProjectTable(tmp_path / "project.csv")
    table.add([ProjectCase("a"), ProjectCase("b", "test")])
    steps = [
        ("unlabelled", {}),
        ("drawn", {"drawn": "1", "slices": 2}),
        ("filled", {"filled": "1"}),
        ("drawn", {"drawn": "2"}),
        ("trained on", {"trained": (1,)}),
        ("predicted", {"predicted": 2, "expected_dice": 0.25}),
        ("reviewed", {"reviewed": 2}),
        ("predicted", {"predicted": 3}),
        ("trained on", {"trained": (1, 3)}),
        ("accepted", {"accepted": "fill"}),
    ]
    for state, facts in steps:
        assert table.note("a", **facts).state == state
        again = ProjectTable(tmp_path / "project.csv").case("a")
        assert again.state == state
    assert again.expected_dice == 0.25
    assert again.trained == (1, 3)
    assert table.case("b").use == "test"
    assert table.path.read_text(encoding="utf-8").splitlines()[1].startswith("a,train,accepted,2,")


def test_a_table_that_a_person_broke_is_told(tmp_path: Path) -> None:
    table = ProjectTable(tmp_path / "project.csv")
    table.add([ProjectCase("a"), ProjectCase("b")])
    text = table.path.read_text(encoding="utf-8")
    table.path.write_text(text.replace("b,train,unlabelled,0", "b,train,unlabelled,many"))
    with pytest.raises(cs.ContextsegError, match="line 3 cannot be read"):
        table.cases()
    table.path.write_text("case\na\n")
    with pytest.raises(cs.ContextsegError, match="its columns are not"):
        table.cases()


def test_a_kill_while_the_table_is_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = ProjectTable(tmp_path / "project.csv")
    table.add([ProjectCase("a")])

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        table.note("a", slices=7)
    monkeypatch.undo()
    assert table.case("a").slices == 0
    assert [path.name for path in tmp_path.iterdir()] == ["project.csv"]


# --- to begin -------------------------------------------------------------------------------------


def test_a_folder_of_scans_needs_classes_and_a_data_set_does_not(
    data: Path, scans: Path, tmp_path: Path
) -> None:
    with pytest.raises(cs.ContextsegError, match="there is no project"):
        cs.project(tmp_path / "none")
    with pytest.raises(cs.ContextsegError, match="which classes there are"):
        cs.project(tmp_path / "none", scans)
    assert not (tmp_path / "none").exists()
    project = cs.project(tmp_path / "data", data, verbose=False)
    assert project.labels.classes == ("background", "bright")
    assert project.labels.ignore == 2
    assert set(states(project).values()) == {"accepted"}
    tests = [row.case for row in project.table.cases().values() if row.use == "test"]
    assert tests == [f"phantom_{i:03d}" for i in range(6, 10)]


def test_a_project_is_opened_as_it_was_begun(scans: Path, tmp_path: Path) -> None:
    first = began(tmp_path, scans, 3)
    assert len(first.locked) == 3
    assert cs.project(first.folder).locked == first.locked
    assert began(tmp_path, scans, 3).locked == first.locked
    for other in ({"test": 4}, {"plane": "coronal"}, {"unlabelled": 255}):
        with pytest.raises(cs.ContextsegError, match="was begun with"):
            cs.project(first.folder, **other)
    with pytest.raises(cs.ContextsegError, match="has the classes bright"):
        cs.project(first.folder, classes=["dark"])


def test_scans_may_move_and_become_more(scans: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(scans, moved)
    project = began(tmp_path, scans)
    (tmp_path / "few").mkdir()
    shutil.copy(scans / "phantom_000.nii.gz", tmp_path / "few" / "phantom_000.nii.gz")
    with pytest.raises(cs.ContextsegError, match="lacks scans"):
        cs.project(project.folder, tmp_path / "few")
    again = cs.project(project.folder, moved)
    shutil.copy(moved / "phantom_000.nii.gz", moved / "new.nii.gz")
    assert "new" not in again.table.cases()
    assert states(cs.project(again.folder))["new"] == "unlabelled"


def test_locked_cases_leave_something_to_learn_from(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="no case is left"):
        began(tmp_path, scans, 10)
    with pytest.raises(cs.ContextsegError, match="did you mean"):
        began(tmp_path, scans, ["phantom_00"])


# --- drawn and filled -----------------------------------------------------------------------------


def test_drawn_slices_are_filled_as_propagate_does(data: Path, scans: Path, tmp_path: Path) -> None:
    project = began(tmp_path, scans)
    slices = draw(project, data, "phantom_002")
    assert states(project)["phantom_002"] == "drawn"
    assert project.table.case("phantom_002").slices == 3
    assert project.fill() == ["phantom_002"]
    assert project.fill() == []
    assert states(project)["phantom_002"] == "filled"
    drawn = project.folder / "drawn" / "phantom_002.nii.gz"
    expected = cs.propagate(scans / "phantom_002.nii.gz", drawn, verbose=False)
    filled = read_labels(project.fill_file("phantom_002"))
    assert np.array_equal(filled.array, expected.label.array)

    origins = Origins.load(project.folder / "fills" / "origins" / "phantom_002.nii.gz")
    for i in range(len(filled.array)):
        [code] = np.unique(origins.codes[i])
        origin = origins.table[int(code)]
        if i in slices:
            assert origin == {"kind": "human"}
        else:
            ends = [max((s for s in slices if s < i), default=None)]
            ends.append(min((s for s in slices if s > i), default=None))
            assert origin["kind"] == "fill"
            assert origin["plane"] == "axial"
            assert origin["slices"] == [s for s in ends if s is not None]


def test_another_slice_makes_a_fill_old(data: Path, scans: Path, tmp_path: Path) -> None:
    project = began(tmp_path, scans)
    draw(project, data, "phantom_002")
    project.fill()
    draw(project, data, "phantom_002", 5)
    assert states(project)["phantom_002"] == "drawn"
    with pytest.raises(cs.ContextsegError, match="drawn in since it was filled"):
        project.accept(["phantom_002"])
    assert project.fill() == ["phantom_002"]
    project.accept(["phantom_002"])
    draw(project, data, "phantom_002", 4)
    assert states(project)["phantom_002"] == "drawn"  # open again, and said so


def test_a_drawing_of_another_scan_stops_no_other_case(
    data: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = began(tmp_path, scans)
    draw(project, data, "phantom_002")
    write(project.folder / "drawn" / "phantom_001.nii.gz", Volume(np.ones((3, 3, 3)), np.eye(4)))
    assert project.fill() == ["phantom_002"]
    assert "phantom_001" in capsys.readouterr().err
    label = truth(data, "phantom_003")
    write(project.folder / "drawn" / "phantom_003.nii.gz", label.with_array(label.array * 7))
    project.fill()
    assert "values that no class has: 7" in capsys.readouterr().err
    with pytest.raises(cs.ContextsegError, match="nothing is drawn in this case"):
        project.fill(["phantom_004"])


def test_what_to_do_about_a_drawing_that_is_labelled_throughout_works(
    data: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = truth(data, "phantom_002")
    drawn = np.full(label.shape, 255, np.uint8)
    for i in range(2, label.shape[0] - 2, 5):
        drawn[i] = label.array[i]
    project = began(tmp_path, scans)
    write(project.folder / "drawn" / "phantom_002.nii.gz", label.with_array(drawn))
    assert project.fill() == []
    said = capsys.readouterr().err
    assert "begin another project" in said
    assert "done before" not in said
    other = began(tmp_path / "other", scans, unlabelled=255)
    write(other.folder / "drawn" / "phantom_002.nii.gz", label.with_array(drawn))
    assert other.fill() == ["phantom_002"]


# --- training, and what is never trained on -------------------------------------------------------


def test_a_round_learns_from_drawn_slices_and_accepted_fills(
    chain: LabelProject, data: Path
) -> None:
    folder = chain.folder / "rounds" / "1" / "data"
    assert [f for f in check(folder) if f.level == "error"] == []
    learned = open_dataset(folder)
    assert {case.name for case in learned.train} == {"phantom_000", "phantom_001"}
    assert learned.test == ()
    accepted = read_labels(folder / "labelsTr" / "phantom_000.nii.gz").array
    assert np.array_equal(accepted, read_labels(chain.label_file("phantom_000")).array)
    drawn = read_labels(folder / "labelsTr" / "phantom_001.nii.gz").array
    labelled = np.flatnonzero((drawn != chain.labels.ignore).all((1, 2)))
    assert len(labelled) == 3
    assert np.array_equal(drawn[labelled], truth(data, "phantom_001").array[labelled])
    assert (np.delete(drawn, labelled, 0) == chain.labels.ignore).all()


def test_nothing_is_trained_on_that_is_scored(data: Path, scans: Path, tmp_path: Path) -> None:
    """Locked cases that are drawn, filled, accepted or unlabelled; and their patients' scans."""
    shutil.copytree(data, tmp_path / "data")
    patients = {f"phantom_{i:03d}": f"p{i}" for i in range(10)}
    patients["phantom_001"] = patients["phantom_006"]  # a training scan of a locked patient
    write_json(tmp_path / "data" / "patients.json", patients)
    for name in ("phantom_003", "phantom_004"):
        (tmp_path / "data" / "labelsTr" / f"{name}.nii.gz").unlink()
    project = cs.project(tmp_path / "work", tmp_path / "data", test=["phantom_002"], verbose=False)
    forbidden = {"phantom_001", "phantom_002", *(f"phantom_{i:03d}" for i in range(6, 10))}
    draw(project, data, "phantom_002")
    project.fill()
    project.accept(["phantom_002"], take="fill")
    for method, fills in (("cps", "all"), ("supervised", "all")):
        project.train(method=method, fills=fills, **TINY)
        number = projects.rounds.last_round(project)
        folder = project.folder / "rounds" / str(number) / "data"
        learned = open_dataset(folder)
        names = {case.name for case in (*learned.train, *learned.test)}
        assert names
        assert not names & forbidden
        assert {case.patient for case in learned.train}.isdisjoint({"p2", "p6", "p7", "p8", "p9"})
        project.predict()
        scores = projects.rounds.measure_round(project, number)
        assert set(scores["case"]) == {"phantom_002", *(f"phantom_{i:03d}" for i in range(6, 10))}
        assert not set(scores["case"]) & names
    assert not set(project.table.case("phantom_002").trained)


def test_the_last_door_holds_when_a_case_is_locked_later(
    data: Path, scans: Path, tmp_path: Path
) -> None:
    """A round whose data holds a case that is for measuring now is not trained, nor scored."""
    project = began(tmp_path, scans)
    for name in ("phantom_000", "phantom_001"):
        draw(project, data, name)
    project.fill()
    project.accept(["phantom_000", "phantom_001"])
    project.train(**TINY)
    round_file = project.folder / "rounds" / "1" / "round.json"
    facts = read_json(project.folder / "project.json")
    write_json(project.folder / "project.json", {**facts, "test": ["phantom_001"]})
    table = (project.folder / "project.csv").read_text(encoding="utf-8")
    line = next(x for x in table.splitlines() if x.startswith("phantom_001"))
    changed = table.replace(line, line.replace(",train,", ",test,", 1))
    (project.folder / "project.csv").write_text(changed)
    again = cs.project(project.folder, verbose=False)
    with pytest.raises(cs.ContextsegError, match="trained on it"):
        again.predict(["phantom_001"])
    again.predict(["phantom_002"])
    prediction = project.folder / "rounds" / "1" / "predictions" / "phantom_002.nii.gz"
    shutil.copy(prediction, prediction.with_name("phantom_001.nii.gz"))
    assert len(projects.rounds.measure_round(again, 1)) == 0  # learned from: not scored
    write_json(round_file, {**read_json(round_file), "finished": False})
    with pytest.raises(cs.ContextsegError, match="for measuring: phantom_001"):
        again.train(**TINY)
    again.train(restart=True, **TINY)
    learned = open_dataset(project.folder / "rounds" / "1" / "data").train
    assert [case.name for case in learned] == ["phantom_000"]


def test_a_reference_that_a_model_made_scores_no_model(chain: LabelProject, data: Path) -> None:
    copy = chain.folder.parent / "copy"
    shutil.copytree(chain.folder, copy)
    project = cs.project(copy, verbose=False)
    scored = projects.rounds.measure_round(project, 1)
    assert list(scored["case"]) == ["phantom_006"]
    project.accept(["phantom_007"], take="prediction")
    assert list(projects.rounds.measure_round(project, 1)["case"]) == ["phantom_006"]
    project.accept(["phantom_007"], label=next(data.glob("labels*/phantom_007.nii.gz")))
    assert list(projects.rounds.measure_round(project, 1)["case"]) == [
        "phantom_006",
        "phantom_007",
    ]


def test_a_round_goes_on_where_it_was_stopped(data: Path, scans: Path, tmp_path: Path) -> None:
    project = began(tmp_path, scans)
    draw(project, data, "phantom_000")
    run = project.train(**TINY)
    weights = (run.folder / "train-1" / "model.pt").read_bytes()
    assert project.train(**TINY).folder == run.folder  # nothing is new
    round_file = project.folder / "rounds" / "1" / "round.json"
    facts = read_json(round_file)
    write_json(round_file, {**facts, "finished": False})
    (run.folder / "train-1" / "done.json").unlink()
    (run.folder / "train-1" / "model.pt").unlink()
    draw(project, data, "phantom_001")  # drawn meanwhile: the round keeps what it was begun with
    with pytest.raises(cs.ContextsegError, match="begun otherwise: seed was 0 and is now 1"):
        project.train(seed=1, **TINY)
    assert project.train(**TINY).folder == run.folder
    assert (run.folder / "train-1" / "model.pt").read_bytes() == weights
    assert read_json(round_file) == facts
    second = project.train(**TINY)
    assert second.folder.parent.name == "2"
    assert project.table.case("phantom_000").trained == (1, 2)
    assert project.table.case("phantom_001").trained == (2,)


def test_what_is_trained_on_is_a_choice(chain: LabelProject) -> None:
    rows = chain.refresh()
    kinds = {}
    for fills in projects.FILL_CHOICES:
        chosen = projects.rounds.labels_to_learn(chain, rows, fills)
        kinds[fills] = {name[-1]: kind for name, (kind, _) in chosen.items()}
    assert kinds == {
        "accepted": {"0": "accepted", "1": "drawn"},
        "all": {"0": "accepted", "1": "fill"},
        "none": {"0": "drawn", "1": "drawn"},
    }


def test_arguments_of_training_are_checked_before_anything_is_written(
    data: Path, scans: Path, tmp_path: Path
) -> None:
    project = began(tmp_path, scans)
    with pytest.raises(cs.ContextsegError, match="nothing is labelled"):
        project.train(**TINY)
    draw(project, data, "phantom_000")
    for wrong, match in (
        ({"method": "supervized"}, "did you mean supervised"),
        ({"method": "stcn"}, "from labelled slices"),
        ({"fills": "some"}, "there is no such choice"),
        ({"stesp": 3}, "did you mean"),
    ):
        with pytest.raises(cs.ContextsegError, match=match):
            project.train(**{**TINY, **wrong})
    with pytest.raises(cs.ContextsegError, match="no round of training is finished"):
        project.predict()
    assert not (project.folder / "rounds").exists()


# --- predictions, and what to look at -------------------------------------------------------------


def test_what_was_not_learned_is_predicted(chain: LabelProject) -> None:
    rows = chain.refresh()
    predicted = {name for name, row in rows.items() if row.predicted == 1}
    assert predicted == {f"phantom_{i:03d}" for i in range(2, 10)}
    with pytest.raises(cs.ContextsegError, match="round 1 was trained on it"):
        chain.predict(["phantom_001"])
    for name in predicted:
        assert 0 <= rows[name].expected_dice <= 1
    before = (chain.folder / "rounds/1/predictions/phantom_002.nii.gz").stat().st_mtime_ns
    chain.predict()
    assert (chain.folder / "rounds/1/predictions/phantom_002.nii.gz").stat().st_mtime_ns == before


def test_expected_dice_is_the_mean_over_outcomes() -> None:
    """By simulation: draw the truth from the probabilities, and take the ratio of the means."""
    rng = np.random.default_rng(0)
    label = (rng.random((8, 8, 8)) < 0.3).astype(int)
    confidence = rng.integers(128, 256, label.shape).astype(np.uint8)
    p = np.where(label == 1, confidence, 255 - confidence) / 255
    draws = rng.random((4000, *label.shape)) < p
    overlap, size = (draws & (label == 1)).sum((1, 2, 3)), draws.sum((1, 2, 3))
    ratio = 2 * overlap.mean() / (label.sum() + size.mean())
    assert expected_case_dice(label, confidence, [1]) == pytest.approx(ratio, abs=2e-3)
    assert expected_case_dice(label, confidence, [1, 2]) == pytest.approx(ratio / 2, abs=2e-3)
    assert expected_case_dice(label * 0, confidence, [1]) == 0


def test_the_worklist_has_what_waits_for_a_person(chain: LabelProject) -> None:
    rows = chain.table.cases()
    waiting = ["phantom_002", "phantom_003", "phantom_004", "phantom_005", "phantom_009"]
    orders = {order: chain.worklist(order) for order in projects.ORDERS}
    assert all(sorted(names) == waiting for names in orders.values())
    expected = [rows[name].expected_dice for name in orders["expected"]]
    assert expected == sorted(expected)
    folder = chain.folder / "rounds/1/predictions"
    sizes = [(read_labels(folder / f"{n}.nii.gz").array > 0).sum() for n in orders["size"]]
    assert sizes == sorted(sizes, reverse=True)
    assert chain.worklist("random", seed=1) != chain.worklist("random", seed=2)
    with pytest.raises(cs.ContextsegError, match="no such order"):
        chain.worklist("best")


class FakeAnnotator:
    """What a review needs of `contextseg.annotator`: a server that a person closes."""

    def __init__(self) -> None:
        self.asked: dict = {}
        self.scores: dict = {}
        self.url = "http://127.0.0.1"
        self.session = self.project = self

    def start_annotating(self, source: Path, work: Path, **options: object) -> FakeAnnotator:
        images = sorted(path.name for path in source.iterdir())
        labels = options["labels"]
        assert isinstance(labels, Path)
        starts = {path.name[:-7]: read_labels(path).array for path in labels.iterdir()}
        self.asked = {**options, "images": images, "work": work, "starts": starts}
        return self

    def serve(self) -> None:
        self.asked["served"] = True


def test_a_review_opens_the_annotator_on_the_worst(
    chain: LabelProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeAnnotator()
    monkeypatch.setattr(projects.worklist, "annotator", lambda module: fake)
    shown = chain.review(count=2, browser=False)
    assert shown == chain.worklist()[:2]
    assert fake.asked["images"] == sorted(f"{name}.nii.gz" for name in shown)
    assert fake.asked["classes"] == ["bright=1"]
    assert fake.asked["work"] == chain.folder / "annotations"
    assert fake.asked["served"]
    assert fake.scores == {name: chain.table.case(name).expected_dice for name in shown}
    for name in shown:
        expected = read_labels(chain.prediction_file(name)).array
        assert np.array_equal(fake.asked["starts"][name], expected)
    chain.review(["phantom_001"], browser=False)
    assert list(fake.asked["starts"]) == ["phantom_001"]
    filled = read_labels(chain.fill_file("phantom_001")).array
    assert np.array_equal(fake.asked["starts"]["phantom_001"], filled)
    with pytest.raises(cs.ContextsegError, match="no case to look at"):
        chain.review(count=0)


def test_what_the_annotator_drew_and_finished_is_taken_up(
    chain: LabelProject, data: Path, tmp_path: Path
) -> None:
    """With the real annotator's files, where it is installed."""
    drawing = pytest.importorskip("contextseg.annotator.drawing")
    shutil.copytree(chain.folder, tmp_path / "work")
    project = cs.project(tmp_path / "work", verbose=False)
    scan = cs.read(*project.case("phantom_005").images)
    store = drawing.case_store(project.folder / "annotations", "phantom_005")
    drawn = drawing.Drawing(scan, store)
    label = scan.with_array(truth(data, "phantom_005").array).oriented("SPL").array
    holding = np.flatnonzero(label.any((1, 2)))
    for k in holding[[0, -1]].tolist():
        drawn.put("axial", k, label[k].astype(np.uint8), seconds=30)
    row = project.refresh()["phantom_005"]
    assert (row.slices, row.minutes, row.state) == (2, 1.0, "reviewed")
    known = project.drawing("phantom_005")
    assert known is not None
    array = truth(data, "phantom_005").array
    assert np.array_equal(known.label.array[known.known], array[known.known])
    assert known.known.any((1, 2)).sum() == 2
    assert project.fill() == ["phantom_005"]


def test_without_the_annotator_a_review_says_what_to_do(
    chain: LabelProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(projects.drawings, "import_module", missing)
    with pytest.raises(cs.ContextsegError, match=r"drawn/CASE\.nii\.gz"):
        chain.review()


# --- accepted -------------------------------------------------------------------------------------


@pytest.fixture
def copy(chain: LabelProject, tmp_path: Path) -> LabelProject:
    shutil.copytree(chain.folder, tmp_path / "work")
    return cs.project(tmp_path / "work", verbose=False)


def test_a_prediction_is_accepted_with_its_round(copy: LabelProject) -> None:
    assert copy.table.case("phantom_000").minutes == 2
    copy.accept(["phantom_002"])
    assert copy.table.case("phantom_002").accepted == "prediction-1"
    origins = Origins.load(copy.folder / "labels/origins/phantom_002.nii.gz")
    [origin] = origins.table.values()
    assert (origin["kind"], origin["round"]) == ("model", 1)
    assert origin["model"].startswith("Supervised-")
    copy.accept(["phantom_002"], undo=True)
    assert copy.table.case("phantom_002").state == "reviewed"


def test_what_a_person_corrected_is_a_persons(
    copy: LabelProject, data: Path, tmp_path: Path
) -> None:
    prediction = read_labels(copy.folder / "rounds/1/predictions/phantom_003.nii.gz")
    corrected = prediction.array.copy()
    corrected[4] = 1 - corrected[4]
    write(tmp_path / "corrected.nii.gz", prediction.with_array(corrected))
    copy.accept(["phantom_003"], label=tmp_path / "corrected.nii.gz")
    assert np.array_equal(read_labels(copy.label_file("phantom_003")).array, corrected)
    origins = Origins.load(copy.folder / "labels/origins/phantom_003.nii.gz")
    human = [code for code, origin in origins.table.items() if origin["kind"] == "human"]
    assert np.array_equal(origins.codes == human, corrected != prediction.array)

    drawn = draw(copy, data, "phantom_004")
    assert copy.refresh()["phantom_004"].state == "reviewed"
    copy.accept(["phantom_004"], take="prediction")
    label = read_labels(copy.label_file("phantom_004")).array
    assert np.array_equal(label[drawn], truth(data, "phantom_004").array[drawn])
    kinds = Origins.load(copy.folder / "labels/origins/phantom_004.nii.gz")
    assert kinds.counts()["human"] == len(drawn) * label[0].size


def test_predictions_above_a_dice_are_accepted_and_locked_ones_are_not(copy: LabelProject) -> None:
    rows = copy.table.cases()
    waiting = [rows[name] for name in copy.worklist()]
    middle = sorted(row.expected_dice for row in waiting)[2]
    accepted = copy.accept(above=middle)
    assert sorted(accepted) == sorted(r.case for r in waiting if r.expected_dice >= middle)
    assert len(accepted) >= 3


def test_wrong_wishes_to_accept_are_told(copy: LabelProject, scans: Path, tmp_path: Path) -> None:
    for cases, wish, match in (
        ([], {}, "no case"),
        (["phantom_001", "phantom_002"], {"label": scans}, "belongs to one case"),
        (["phantom_002"], {"take": "fills"}, "no such choice"),
        (["phantom_002"], {"take": "fill"}, "nothing is drawn"),
        (["phantom_002"], {"take": "drawing"}, "nothing is drawn"),
        (["phantom_000"], {"take": "prediction"}, "no prediction of it"),
        ([], {"above": 1.5}, "0 to 1"),
        (["fantom_002"], {}, "did you mean phantom_002"),
    ):
        with pytest.raises(cs.ContextsegError, match=match):
            copy.accept(cases, **wish)
    volume = read_labels(copy.folder / "rounds/1/predictions/phantom_002.nii.gz")
    write(tmp_path / "other.nii.gz", volume.with_array(np.full_like(volume.array, 9)))
    with pytest.raises(cs.ContextsegError, match="values that no class has: 9"):
        copy.accept(["phantom_002"], label=tmp_path / "other.nii.gz")


# --- exported -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["nnunet", "folders"])
def test_an_export_is_a_data_set(copy: LabelProject, tmp_path: Path, format: str) -> None:
    copy.accept(["phantom_002"])
    out = copy.export(tmp_path / "Dataset001_Ball", format=format)
    copy.export(out, format=format)  # again, in its place
    assert [f for f in check(out) if f.level == "error"] == []
    data = open_dataset(out)
    assert {case.name for case in data.train} == {"phantom_000", "phantom_002"}
    assert {case.name for case in data.test} == {"phantom_006"}
    assert data.classes == ("background", "bright")
    for case in (*data.train, *data.test):
        label = read_labels(case.label)
        assert np.array_equal(label.array, read_labels(copy.label_file(case.name)).array)
        origins = Origins.load(out / "origins" / f"{case.name}.nii.gz")
        assert origins.codes.shape == label.shape
        assert set(np.unique(origins.codes)) == set(origins.table)
    table = (out / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("case,use,label,slices,minutes,expected_dice,human,given,fill")
    assert table[2].startswith("phantom_002,train,prediction-1,0,0,")
    kinds = {
        o["kind"]
        for o in json.loads((out / "origins/phantom_000.json").read_text(encoding="utf-8")).values()
    }
    assert kinds == {"human", "fill"}


def test_everything_holds_what_nobody_accepted(copy: LabelProject, tmp_path: Path) -> None:
    out = copy.export(tmp_path / "out", format="nifti", everything=True)
    assert len(list(out.glob("*.nii.gz"))) == 10
    lines = (out / "cases.csv").read_text(encoding="utf-8").splitlines()
    labels = {line.split(",")[0]: line.split(",")[2] for line in lines}
    assert labels["phantom_001"] == "fill"
    assert labels["phantom_005"] == "prediction-1"


def test_an_export_for_slicer_has_names(copy: LabelProject, tmp_path: Path) -> None:
    from contextseg.interop.slicer import read_segmentation

    out = copy.export(tmp_path / "out", format="seg.nrrd")
    read = read_segmentation(out / "phantom_000.seg.nrrd")
    assert [segment.name for segment in read.segments] == ["bright"]
    label = read_labels(copy.label_file("phantom_000")).array
    assert np.array_equal(read.array, label)


def test_an_export_as_dicom_refers_to_its_series(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    from contextseg.interop.dicomseg import read_dicom_segmentation
    from test_interop_dicom import series

    headers = series(tmp_path / "scans" / "a")
    project = cs.project(tmp_path / "work", tmp_path / "scans", ["bright"], verbose=False)
    scan = cs.read(tmp_path / "scans" / "a")
    drawn = np.zeros(scan.shape, np.uint8)
    drawn[[1, -1], 2:4, 2:4] = 1
    write(project.folder / "drawn" / "a.nii.gz", scan.with_array(drawn))
    project.fill()
    project.accept(["a"])
    out = project.export(tmp_path / "out", format="dicom-seg")
    read = read_dicom_segmentation(out / "a.dcm")
    assert [segment.name for segment in read.segments] == ["bright"]
    assert read.array.sum() == read_labels(project.label_file("a")).array.sum() > 0
    assert headers
    data = open_dataset(project.export(tmp_path / "nnunet"))
    assert np.array_equal(cs.read(*data.train[0].images).array, scan.array)


def test_an_export_destroys_nothing(copy: LabelProject, tmp_path: Path, scans: Path) -> None:
    with pytest.raises(cs.ContextsegError, match="something else than an export"):
        copy.export(scans)
    assert len(list(scans.iterdir())) >= 10
    with pytest.raises(cs.ContextsegError, match="no such format"):
        copy.export(tmp_path / "out", format="nnunetv1")
    with pytest.raises(cs.ContextsegError, match="no DICOM series"):
        copy.export(tmp_path / "out", format="dicom-seg")
    assert not (tmp_path / "out").exists()
    copy.accept(["phantom_000", "phantom_006"], undo=True)
    with pytest.raises(cs.ContextsegError, match="no case is accepted"):
        copy.export(tmp_path / "out")


# --- the command line -----------------------------------------------------------------------------


def test_every_verb_of_a_project_is_a_method_with_the_same_options() -> None:
    import inspect

    otherwise = {"work": "project", "set": "**settings", "names": "worklist", "table": "status"}
    group = typer.main.get_command(cli.app).commands["project"]
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    for name, command in group.commands.items():
        function = cs.project if name == "begin" else getattr(LabelProject, name)
        known = set(inspect.signature(function).parameters)
        given = {(p.name or "").removesuffix("_") for p in command.params}
        assert given - known <= set(otherwise), name
        missing = known - given - {"self", "settings", "verbose", "work"}
        assert not missing, name


def test_the_chain_runs_from_the_command_line(data: Path, scans: Path, tmp_path: Path) -> None:
    work = str(tmp_path / "work")

    def call(*words: str) -> str:
        done = CliRunner().invoke(cli.app, ["project", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    call("begin", work, "--scans", str(scans), "--classes", "bright", "--test", "2")
    project = cs.project(work, verbose=False)
    names = [name for name in project.table.cases() if name not in project.locked]
    draw(project, data, names[0])
    call("fill", work)
    call("accept", work, names[0], "--minutes", "3")
    words = assignments(TINY)
    call("train", work, *(part for word in words for part in ("--set", word)))
    assert "round 1: supervised, trained on 1 case\n" in call("predict", work)
    assert call("review", work, "--names").split() == cs.project(work).worklist()
    call("export", work, "-o", str(tmp_path / "out"))
    text = call(work)  # status
    assert "10 cases: 9 predicted, 1 accepted" in text
    assert "3 slices labelled, 3 min noted, 2 cases for measuring" in text
    assert names[0] in call("status", work, "--table")
