"""The annotator without HTTP: planes, the two maps, what is on the disk, what is exported."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import contextseg as cs
from contextseg.annotator.drawing import BY_FILE, BY_SHAPES, NOBODY_SAID, Drawing, StaleSlice
from contextseg.annotator.jobs import Job
from contextseg.annotator.planes import SCREEN_PLANES, plane_axis, screen_slice, slice_shape
from contextseg.annotator.project import open_project
from contextseg.annotator.session import AnnotationSession, run_program
from contextseg.annotator.store import DrawingStore, SavedSlice
from contextseg.data.check import check
from contextseg.errors import ContextsegError
from contextseg.propagation import LabelledSlices, fill
from contextseg.volume import AXIAL, Volume, as_volume
from systems import LINKS, needs_kill

ORIENTATIONS = ("SAR", "SPL", "IAR", "RAS", "LPS", "ASR", "PIL", "RSA")
OBLIQUE = ((0.2, 0.1, -0.15), (0.5, -0.3, 0.4))


def scan_file(folder: Path, name: str, array: np.ndarray, orientation: str = AXIAL) -> Path:
    volume = as_volume(array, (3.0, 1.0, 1.5), orientation)
    path = folder / f"{name}.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    volume.save(path)
    return path


def turned_affine(affine: np.ndarray, angles: tuple[float, float, float]) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix()
    return turn @ affine


def noise(shape: tuple[int, ...] = (12, 14, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 300, shape).astype(np.int16)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2).astype(np.uint8)


@pytest.fixture
def drawing(tmp_path: Path) -> Drawing:
    return Drawing(as_volume(noise(), (3.0, 1.0, 1.5)), DrawingStore(tmp_path / "drawn"))


# --- where a voxel is -----------------------------------------------------------------------------


@pytest.mark.parametrize("plane", SCREEN_PLANES)
@pytest.mark.parametrize("kind", [*ORIENTATIONS, *OBLIQUE], ids=str)
def test_what_is_clicked_is_that_voxel_in_the_file(
    kind: str | tuple[float, float, float], plane: str, tmp_path: Path
) -> None:
    array = np.zeros((5, 6, 7), np.int16)
    rng = np.random.default_rng(3)
    marker = tuple(int(rng.integers(n)) for n in array.shape)
    array[marker] = 1000
    path = scan_file(tmp_path / "scans", "a", array, kind if isinstance(kind, str) else AXIAL)
    if not isinstance(kind, str):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.dataobj, turned_affine(image.affine, kind)), path)
    session = AnnotationSession(open_project(tmp_path / "scans", tmp_path / "work"))
    facts = session.describe(0)["planes"][plane]
    [(k, row, column)] = [
        (k, *divmod(int(grey.argmax()), facts["shape"][1]))
        for k in range(facts["slices"])
        if (grey := np.frombuffer(session.grey(0, plane, k), "<u2")).max() == 1000
    ]
    label = np.zeros(facts["shape"], np.uint8)
    label[row, column] = 1
    session.put(0, plane, k, label.tobytes(), 0)
    session.finish(0)
    session.close()
    scan = nib.load(path)
    for name in ("filled/a.nii.gz", "dataset/labelsTr/a.nii.gz"):
        written = nib.load(tmp_path / "work" / name)
        assert np.array_equal(written.affine, scan.affine)
        values = np.asarray(written.dataobj)
        assert np.argwhere(values == 1).tolist() == [
            list(np.argwhere(np.asarray(scan.dataobj) == 1000)[0])
        ]
    drawn_here = values != 2  # the ignore label
    assert drawn_here.sum() == label.size


def test_radiologists_see_what_they_are_used_to() -> None:
    """The patient's right is on the left; the front is up, or on the left; the head is up."""
    array = np.zeros((4, 5, 6), np.int16)  # axes to the head, to the back, to the left
    array[-1, 0, 0] = 1  # high up, in front, on the right
    assert screen_slice(array, "axial", 3)[0, 0] == 1
    assert screen_slice(array, "coronal", 0)[0, 0] == 1
    assert screen_slice(array, "sagittal", 0)[0, 0] == 1
    with pytest.raises(ContextsegError, match="no such plane"):
        plane_axis("oblique")


# --- drawn and filled -----------------------------------------------------------------------------


def draw(drawing: Drawing, plane: str, k: int, label: np.ndarray | None) -> None:
    shape = slice_shape(drawing.shape, plane)
    empty = np.full(shape, NOBODY_SAID, np.uint8)
    drawing.put(plane, k, empty if label is None else label)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_filling_is_that_of_python_and_keeps_what_is_drawn(
    orientation: str, tmp_path: Path
) -> None:
    """The same slices given to `fill` on the scan's own grid give the same label map."""
    scan = as_volume(noise(), (3.0, 1.0, 1.5), orientation)
    drawing = Drawing(scan, DrawingStore(tmp_path))
    n = drawing.shape[0]
    shape = slice_shape(drawing.shape, "axial")
    for k, radius in ((1, 2.3), (n // 2, 4.1), (n - 2, 3.2)):
        draw(drawing, "axial", k, disc(shape, (shape[0] / 2 - 0.7, shape[1] / 2 + 0.3), radius))
    before = drawing.drawn.copy()
    drawing.fill()
    assert np.array_equal(drawing.drawn, before)
    ours = drawing.on_scan(drawing.whole)
    axis = next(i for i, letter in enumerate(scan.orientation) if letter in "SI")
    drawn = np.moveaxis(drawing.on_scan(before).array, axis, 0)
    slices = {i: d.astype(np.int16) for i, d in enumerate(drawn) if (d != NOBODY_SAID).all()}
    assert len(slices) == 3
    theirs = fill(scan, LabelledSlices(axis, slices))
    assert np.array_equal(ours.array, theirs.label.array)
    assert ours.same_grid(scan)
    assert (np.moveaxis(ours.array, axis, 0).any((1, 2))).sum() == n - 2


@pytest.mark.parametrize("seed", range(6))
def test_filling_around_a_stroke_is_filling_everything(seed: int, tmp_path: Path) -> None:
    """After any strokes and undos, what was filled stroke by stroke is what F would fill."""
    rng = np.random.default_rng(seed)
    drawing = Drawing(as_volume(noise((15, 12, 13)), (2.0, 1.0, 1.0)), DrawingStore(tmp_path))
    shape = slice_shape(drawing.shape, "axial")
    for _ in range(12):
        k = int(rng.integers(15))
        label: np.ndarray | None = None
        if rng.random() < 0.75:
            label = disc(shape, tuple(rng.uniform(3, 9, 2)), rng.uniform(0, 4))
            label *= rng.integers(1, 3, dtype=np.uint8)
        draw(drawing, "axial", k, label)
        drawing.fill_around("axial", k)
        stepwise = drawing.whole
        drawing.fill()
        assert np.array_equal(stepwise, drawing.whole)


def test_the_first_slices_in_another_plane_decide_the_plane(drawing: Drawing) -> None:
    shape = slice_shape(drawing.shape, "coronal")
    for k in (2, 9):
        draw(drawing, "coronal", k, disc(shape, (6, 8), 3))
        drawing.fill_around("coronal", k)
    strip = drawing.strip()
    assert strip["plane"] == "coronal"
    assert strip["drawn"] == {"axial": [], "coronal": [2, 9], "sagittal": []}
    assert strip["filled"] == list(range(2, 10))
    assert strip["suggested"] == 5
    assert "longest stretch" in strip["why"]


def test_undo_to_nothing_is_nobody_said_not_background(drawing: Drawing) -> None:
    shape = slice_shape(drawing.shape, "axial")
    draw(drawing, "axial", 4, disc(shape, (6, 6), 3))
    draw(drawing, "axial", 8, disc(shape, (6, 6), 3))
    drawing.fill()
    assert drawing.filled[6].any()
    draw(drawing, "axial", 4, None)
    drawing.fill_around("axial", 4)
    assert (drawing.drawn[4] == NOBODY_SAID).all()
    assert not drawing.filled[:8].any()
    draw(drawing, "axial", 8, None)
    drawing.fill_around("axial", 8)
    assert (drawing.drawn == NOBODY_SAID).all()
    assert not drawing.filled.any()
    assert drawing.store.count() == 0
    assert drawing.strip()["suggested"] is None


def test_an_empty_slice_is_known_and_bounds_the_structure(drawing: Drawing) -> None:
    shape = slice_shape(drawing.shape, "axial")
    draw(drawing, "axial", 5, disc(shape, (6, 6), 3))
    draw(drawing, "axial", 9, np.zeros(shape, np.uint8))
    drawing.fill_around("axial", 9)
    assert drawing.filled[6].any()
    assert not drawing.filled[9].any()
    assert drawing._ranges(drawing._labelled([5, 9])) == {1: (0, 8)}
    assert drawing.touched("axial") == [5, 9]


def test_a_stale_slice_is_refused_and_other_slices_are_not(drawing: Drawing) -> None:
    shape = slice_shape(drawing.shape, "axial")
    mine, theirs = disc(shape, (4, 4), 2), disc(shape, (8, 8), 2)
    revision = drawing.put("axial", 3, mine, 0)
    with pytest.raises(StaleSlice) as caught:
        drawing.put("axial", 3, theirs, 0)
    assert caught.value.revision == revision
    assert np.array_equal(drawing.label("axial", 3)[0], mine)
    drawing.put("axial", 4, theirs, 0)
    drawing.put("axial", 3, theirs, revision)
    across = drawing.label("coronal", 6)
    drawing.put("axial", 9, mine, 0)
    with pytest.raises(StaleSlice):  # slice 6 crosses slice 9
        drawing.put("coronal", 6, across[0], across[2])


@pytest.mark.parametrize(
    ("plane", "k", "shape", "value", "what"),
    [
        ("axial", 99, (14, 16), 1, "12 slices"),
        ("axial", -1, (14, 16), 1, "12 slices"),
        ("axial", 1, (14, 15), 1, "not of 14 x 16"),
        ("axial", 1, (14, 16), 7, "the value 7"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    drawing: Drawing, plane: str, k: int, shape: tuple[int, int], value: int, what: str
) -> None:
    with pytest.raises(ContextsegError, match=what):
        drawing.put(plane, k, np.full(shape, value, np.uint8), 0, classes=2)
    assert (drawing.drawn == NOBODY_SAID).all()
    assert not drawing.store.folder.exists()


# --- on the disk ----------------------------------------------------------------------------------


def test_all_slices_come_back_in_the_order_in_which_they_were_drawn(tmp_path: Path) -> None:
    """Slices of three planes cross; the later one holds, also when it takes something away."""
    scan = as_volume(noise((6, 7, 8)), (1.0, 1.0, 1.0))
    drawing = Drawing(scan, DrawingStore(tmp_path))
    rng = np.random.default_rng(1)
    for _ in range(60):
        plane = SCREEN_PLANES[rng.integers(3)]
        k = int(rng.integers(drawing.shape[plane_axis(plane)]))
        values = np.array([0, 1, 2, NOBODY_SAID], np.uint8)
        label = rng.choice(values, slice_shape(drawing.shape, plane), p=[0.3, 0.2, 0.2, 0.3])
        if rng.random() < 0.2:
            label[:] = NOBODY_SAID
        drawing.put(plane, k, label)
    again = Drawing(scan, DrawingStore(tmp_path))
    assert np.array_equal(again.drawn, drawing.drawn)
    assert again.revision == 60
    for plane in SCREEN_PLANES:
        assert again.touched(plane) == drawing.touched(plane)
    assert len(again.store.log()) == 60


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from contextseg.annotator.project import open_project
from contextseg.annotator.session import AnnotationSession
session = AnnotationSession(open_project(Path(sys.argv[1]), Path(sys.argv[2])))
label = np.zeros((14, 16), np.uint8)
for k in range(8):
    label[k, k] = 1
    session.put(0, "axial", k, label.tobytes(), 0, tool="brush", seconds=2)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_kill
def test_a_kill_after_saved_loses_nothing(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    command = [sys.executable, "-c", KILLED, tmp_path / "scans", tmp_path / "work"]
    killed = subprocess.run(command, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    project = open_project(tmp_path / "scans", tmp_path / "work")
    drawing = project.open(0)
    assert drawing.touched("axial") == list(range(8))
    assert np.trace(drawing.drawn[7][:8, :8]) == 8
    assert drawing.filled[3].any()
    [row] = project.worklist()
    assert (row["state"], row["slices"], row["seconds"]) == ("drawn", 8, 16)


def test_a_full_disk_is_said_and_the_slice_stays_as_it_was(
    drawing: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = slice_shape(drawing.shape, "axial")
    drawing.put("axial", 3, disc(shape, (4, 4), 2), 0)

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ContextsegError, match="the disk is full"):
        drawing.put("axial", 3, disc(shape, (9, 9), 2))
    monkeypatch.undo()
    assert np.array_equal(drawing.drawn[3], disc(shape, (4, 4), 2))
    assert [p.name for p in drawing.store.folder.iterdir() if p.name.startswith(".")] == []
    assert Drawing(drawing.scan, drawing.store).revision == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", os.urandom(300)])
def test_a_damaged_slice_is_one_message(tmp_path: Path, content: bytes) -> None:
    store = DrawingStore(tmp_path)
    store.save(SavedSlice("axial", 1, 1, np.zeros((14, 16), np.uint8)), True)
    (tmp_path / "axial-001.npz").write_bytes(content)
    with pytest.raises(ContextsegError, match=r"axial-001\.npz: not a slice of the annotator"):
        store.load()


def test_a_half_written_line_of_the_log_is_left_out(tmp_path: Path) -> None:
    store = DrawingStore(tmp_path)
    store.note({"seconds": 4})
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as file:
        file.write('{"seconds": 1e999}\n[1]\n{"seconds": "x"}\n{"secon')
    assert store.seconds() == 4
    (tmp_path / "case.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ContextsegError, match="it is \\[\\], not an object"):
        store.state()


# --- a project ------------------------------------------------------------------------------------


def test_finished_cases_are_a_data_set_that_check_likes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        scan_file(tmp_path / "scans", name, noise(seed=seed))
    work = tmp_path / "work"
    project = open_project(tmp_path / "scans", work, ["tumour", "organ=7"])
    for n in (0, 1):
        drawing = project.open(n)
        shape = slice_shape(drawing.shape, "axial")
        for k in (2, 8):
            drawing.put("axial", k, disc(shape, (6, 6), 3) + disc(shape, (6, 6), 1))
            drawing.fill_around("axial", k)
        project.finish(n, drawing, accept=n == 1)
    table = json.loads((work / "dataset" / "dataset.json").read_text(encoding="utf-8"))
    assert table["labels"] == {"background": 0, "tumour": 1, "organ": 7, "ignore": 8}
    assert table["numTraining"] == 2
    drawn = cs.read_labels(work / "dataset/labelsTr/a.nii.gz").array
    accepted = cs.read_labels(work / "dataset/labelsTr/b.nii.gz").array
    assert set(np.unique(drawn)) == {0, 1, 7, 8}
    assert set(np.unique(accepted)) == {0, 1, 7}
    assert [(f.where, f.what) for f in check(work / "dataset") if f.level == "error"] == []
    assert (work / "dataset/imagesTr/a_0000.nii.gz").is_symlink() == LINKS
    assert [row["name"] for row in project.worklist()] == ["c", "a", "b"]

    project.reopen(0)
    again = open_project(tmp_path / "scans", work)
    assert [c.name for c in again.classes] == ["tumour", "organ"]
    assert [row["state"] for row in again.worklist()] == ["drawn", "new", "finished"]
    opened = again.open(0)
    assert opened.touched("axial") == [2, 8]
    assert opened.filled[5].any()


def test_what_was_drawn_after_a_fill_was_saved_is_filled_again(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    project = open_project(tmp_path / "scans", tmp_path / "work")
    drawing = project.open(0)
    shape = slice_shape(drawing.shape, "axial")
    for k in (2, 8):
        draw(drawing, "axial", k, disc(shape, (6, 6), 3))
    drawing.fill()
    project.save_filled(0, drawing, "network")
    draw(drawing, "axial", 5, disc(shape, (6, 6), 1))
    drawing.fill_around("axial", 5)
    assert np.array_equal(project.open(0).whole, drawing.whole)


def test_predictions_are_a_start_and_are_kept_beyond_what_is_drawn(tmp_path: Path) -> None:
    path = scan_file(tmp_path / "scans", "a", noise())
    scan = cs.read(path)
    predicted = np.zeros(scan.shape, np.uint8)
    predicted[:, 4:9, 5:10] = 1
    (tmp_path / "predictions").mkdir()
    cs.write(tmp_path / "predictions" / "a.nii.gz", scan.with_array(predicted))
    project = open_project(tmp_path / "scans", tmp_path / "work", (), tmp_path / "predictions")
    drawing = project.open(0)
    assert np.array_equal(drawing.on_scan(drawing.whole).array, predicted)
    shape = slice_shape(drawing.shape, "axial")
    for k in (3, 6):
        draw(drawing, "axial", k, disc(shape, (6, 6), 2))
    drawing.fill()
    assert drawing.filled[9].sum() == 25
    assert drawing.filled_by.tolist() == [BY_FILE] * 3 + [BY_SHAPES] * 4 + [BY_FILE] * 5
    wrong = scan.with_array(predicted * np.uint8(9))
    cs.write(tmp_path / "predictions" / "a.nii.gz", wrong)
    with pytest.raises(ContextsegError, match="the label value 9"):
        project.open(0)


def test_another_scan_with_the_same_name_is_refused(tmp_path: Path) -> None:
    path = scan_file(tmp_path / "scans", "a", noise())
    project = open_project(tmp_path / "scans", tmp_path / "work")
    project.open(0).put("axial", 0, np.zeros((14, 16), np.uint8))
    path.unlink()
    scan_file(tmp_path / "scans", "a", noise(seed=9))
    with pytest.raises(ContextsegError, match="another scan with the name a"):
        project.open(0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").touch()
    with pytest.raises(ContextsegError, match="holds other files"):
        open_project(tmp_path / "scans", tmp_path / "full")


@pytest.mark.parametrize("name", ["", "a,b", "Tumour", "background", "x" * 90, "a\nb", "k=v=w"])
def test_a_class_needs_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    project = open_project(tmp_path / "scans", tmp_path / "work", ["tumour"])
    with pytest.raises(ContextsegError):
        project.add_class(name)
    assert len(open_project(tmp_path / "scans", tmp_path / "work").classes) == 1


KINDS = {
    "uint16": np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(np.uint16) * 500,
    "float": np.linspace(-1, 1, 120).reshape(4, 5, 6).astype(np.float32),
    "not numbers": np.where(np.arange(120) % 3, 1.5, np.nan).reshape(4, 5, 6).astype(np.float32),
    "nothing but NaN": np.full((4, 5, 6), np.nan, np.float32),
    "constant": np.full((4, 5, 6), 7, np.int16),
    "one slice": np.arange(30).reshape(1, 5, 6).astype(np.int16),
    "int32": (np.arange(120).reshape(4, 5, 6) * 10**7).astype(np.int32),
    "four channels": np.arange(480).reshape(4, 4, 5, 6).astype(np.int16),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_scan_opens(kind: str, tmp_path: Path) -> None:
    array = KINDS[kind]
    folder = tmp_path / "scans"
    folder.mkdir()
    Volume(array, as_volume(np.zeros((1, 1, 1)), (9.0, 0.3, 2.0)).affine).save(folder / "a.nii.gz")
    session = AnnotationSession(open_project(folder, tmp_path / "work"))
    facts = session.describe(0)
    json.dumps(facts, allow_nan=False)
    assert len(facts["channels"]) == (4 if array.ndim == 4 else 1)
    for c, channel in enumerate(facts["channels"]):
        expected = array[c] if array.ndim == 4 else array
        expected = np.nan_to_num(expected.astype(float), nan=channel["low"])
        for k in range(facts["planes"]["axial"]["slices"]):
            steps = np.frombuffer(session.grey(0, "axial", k, c), "<u2").reshape(5, 6)
            values = channel["low"] + channel["step"] * steps
            assert np.allclose(values, expected[k][::-1, ::-1], atol=channel["step"])
    with pytest.raises(ContextsegError, match="channel"):
        session.grey(0, "axial", 0, 9)
    session.close()


def test_a_sheared_scan_opens(tmp_path: Path) -> None:
    path = scan_file(tmp_path / "scans", "a", noise())
    image = nib.load(path)
    sheared = image.affine.copy()
    sheared[1, 2] += 0.7
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), sheared), path)
    project = open_project(tmp_path / "scans", tmp_path / "work")
    drawing = project.open(0)
    draw(drawing, "axial", 3, disc(slice_shape(drawing.shape, "axial"), (5, 5), 2))
    project.finish(0, drawing)
    written = nib.load(tmp_path / "work/filled/a.nii.gz")
    assert np.allclose(written.affine, sheared, atol=1e-5)


# --- the session ----------------------------------------------------------------------------------


def test_a_stroke_is_filled_and_told(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    events: list[dict] = []
    session = AnnotationSession(
        open_project(tmp_path / "scans", tmp_path / "work"), publish=events.append
    )
    label = disc((14, 16), (6, 6), 3)
    for k in (1, 9):
        session.put(0, "axial", k, label.tobytes(), 0, who="me")
    session.close()  # waits for what is to be filled
    assert [e["who"] for e in events if e["type"] == "drawn"] == ["me", "me"]
    filled = [e for e in events if e["type"] == "filled"]
    assert filled[-1]["strip"]["filled"] == list(range(1, 10))
    assert session.label(0, "axial", 5)[0][14 * 16 :] == label.tobytes()


def test_a_finished_case_that_is_drawn_on_is_finished_once_more(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a[1]", noise())
    session = AnnotationSession(open_project(tmp_path / "scans", tmp_path / "work"))
    label = disc((14, 16), (6, 6), 3)
    session.put(0, "axial", 3, label.tobytes())
    session.finish(0)
    assert session.cases()["cases"][0]["state"] == "finished"
    session.put(0, "axial", 4, label.tobytes())
    assert session.cases()["cases"][0]["state"] == "drawn"
    path = Path(session.finish(0)["label"])
    assert (cs.read_labels(path).array == 1).any((1, 2)).sum() == 2
    session.close()


def test_two_cases_stay_open_and_all_come_back(tmp_path: Path) -> None:
    for i in range(4):
        scan_file(tmp_path / "scans", f"c{i}", noise(seed=i))
    session = AnnotationSession(open_project(tmp_path / "scans", tmp_path / "work"))
    for n in range(4):
        session.put(n, "axial", n, disc((14, 16), (6, 6), 3).tobytes(), 0)
    assert len(session._open) == 2
    for n in range(4):
        assert session.drawing(n).touched("axial") == [n]
    session.close()


def test_jobs_need_what_they_work_on(tmp_path: Path) -> None:
    scan_file(tmp_path / "scans", "a", noise())
    session = AnnotationSession(open_project(tmp_path / "scans", tmp_path / "work"))
    with pytest.raises(ContextsegError, match="no network was given"):
        session.refine(0)
    with pytest.raises(ContextsegError, match="0 finished cases"):
        session.train()
    with pytest.raises(ContextsegError, match="nothing is drawn"):
        session.finish(0)
    with pytest.raises(ContextsegError, match="the number of cases is 1"):
        session.describe(5)
    session.close()


def test_a_programs_progress_is_the_jobs() -> None:
    told: list[tuple[int, int]] = []
    job = Job(1, "train", None, publish=lambda event: told.append((event["done"], event["of"])))
    code = "import sys; print('train 3/10 loss 0.5', file=sys.stderr); sys.exit(0)"
    run_program([sys.executable, "-c", code], job, tell=lambda line: None)
    assert (3, 10) in told
    code = "import sys; print('no data: the reason', file=sys.stderr); sys.exit(1)"
    with pytest.raises(ContextsegError, match="no data: the reason"):
        run_program([sys.executable, "-c", code], job, tell=lambda line: None)


def test_the_worklist_begins_with_what_the_model_is_least_sure_of(tmp_path: Path) -> None:
    for name in "abc":
        scan_file(tmp_path / "scans", name, noise())
    project = open_project(tmp_path / "scans", tmp_path / "work")
    project.scores = {"a": 0.8, "b": 0.3}
    project.save_scores()
    again = open_project(tmp_path / "scans", tmp_path / "work")
    assert [row["name"] for row in again.worklist()] == ["b", "a", "c"]


@pytest.mark.slow
def test_two_finished_cases_train_and_order_the_rest(tmp_path: Path) -> None:
    """The whole loop on the embedded scans: finish two, train, the others are sorted."""
    from contextseg.pipeline import DEMO_DATA

    words = ["--set", "steps=3", "--set", "patch_vox=16,16,16", "--set", "base_width=4"]
    words += ["--set", "spacing_mm=6,6,6", "--set", "batch_size=2", "--set", "device=cpu"]
    work = tmp_path / "work"
    project = open_project(DEMO_DATA, work)
    events: list[dict] = []
    session = AnnotationSession(project, train=words, publish=events.append)
    for n in (0, 1):
        truth = cs.read_labels(project.case(n).label).oriented("SPL").array
        for k in np.flatnonzero(truth.any((1, 2)))[::6]:
            label = np.ascontiguousarray(truth[k], np.uint8).tobytes()
            session.put(n, "axial", int(k), label)
        session.finish(n)
    assert [f for f in check(work / "dataset") if f.level == "error"] == []
    job = session.train()
    for _ in itertools.count():
        if job.state in ("done", "failed", "cancelled"):
            break
        session._filler.join(0.2)
    session.close()
    assert job.state == "done", job.note
    rows = project.worklist()
    expected = [row["expected_dice"] for row in rows[:-2]]
    assert expected == sorted(expected)
    assert len(expected) == 14
    assert any(e["type"] == "job" and e["of"] == len(expected) for e in events)


@pytest.mark.slow
def test_correcting_the_suggested_slice_helps_on_a_real_sarcoma(tmp_path: Path) -> None:
    from contextseg.pipeline import DEMO_DATA

    project = open_project(DEMO_DATA, tmp_path / "work")
    gains = []
    for n in range(12):
        drawing = project.open(n)
        truth = cs.read_labels(project.case(n).label).oriented("SPL").array
        there = np.flatnonzero(truth.any((1, 2)))
        for k in (there[0], there[-1]):
            draw(drawing, "axial", int(k), truth[k].astype(np.uint8))

        def dice(drawing: Drawing = drawing, truth: np.ndarray = truth) -> float:
            drawing.fill()
            ours = drawing.whole
            return float(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))

        before = dice()
        suggested = drawing.suggestion()
        assert suggested is not None
        draw(drawing, "axial", suggested[0], truth[suggested[0]].astype(np.uint8))
        gains.append(dice() - before)
    assert min(gains) > 0


# --- with a network -------------------------------------------------------------------------------


def over(job: Job) -> Job:
    while job.state in ("waiting", "running"):
        time.sleep(0.01)
    return job


def test_the_network_fills_as_in_python_and_is_there_again(tmp_path: Path) -> None:
    """An untrained one: what it says is nonsense, and the same nonsense everywhere."""
    from test_stages import follower

    model = follower()
    path = scan_file(tmp_path / "scans", "a", noise((12, 32, 32)), "IAR")
    events: list[dict] = []
    project = open_project(tmp_path / "scans", tmp_path / "work")
    session = AnnotationSession(project, model, publish=events.append)
    with pytest.raises(ContextsegError, match="no slice is drawn"):
        session.refine(0)
    label = disc((32, 32), (15, 14), 6)
    for k, pixels in ((2, label), (8, label), (10, label * np.uint8(0))):
        session.put(0, "axial", k, pixels.tobytes(), fill=False)
    job = over(session.refine(0))
    assert job.state == "done", job.note
    drawing = session.drawing(0)
    scan = cs.read(path)
    slices = {
        i: drawn.astype(np.int16)
        for i, drawn in enumerate(drawing.on_scan(drawing.drawn).array)
        if (drawn != NOBODY_SAID).all()
    }
    ranges = {1: (2, 11)}  # not beyond the empty slice; numbers of the file, which begins above
    theirs = fill(scan, LabelledSlices(0, slices), model, ranges=ranges)
    assert np.array_equal(drawing.on_scan(drawing.whole).array, theirs.label.array)
    strip = drawing.strip()
    sure = np.array([np.nan if c is None else c for c in strip["confidence"]])
    assert np.isfinite(sure).sum() >= 10
    assert np.allclose(sure, theirs.confidence[::-1], atol=1e-4, equal_nan=True)
    assert any(e["type"] == "job" and e["done"] for e in events)

    session.put(0, "axial", 5, label.tobytes())
    session.close()  # shapes fill around slice 5, and the network's fill stays elsewhere
    by = drawing.filled_by.tolist()
    assert by == [2] * 2 + [1] * 7 + [2] * 3
    assert np.array_equal(project.open(0).whole, drawing.whole)


def test_a_cancelled_refinement_changes_nothing(tmp_path: Path) -> None:
    from test_stages import follower

    scan_file(tmp_path / "scans", "a", noise((12, 32, 32)))
    session = AnnotationSession(open_project(tmp_path / "scans", tmp_path / "work"), follower())
    label = disc((32, 32), (15, 14), 6)
    for k in (2, 8):
        session.put(0, "axial", k, label.tobytes(), fill=False)
    before = session.drawing(0).whole
    session.jobs.publish = lambda event: session.jobs.cancel(1) if event["done"] else None
    assert over(session.refine(0)).state == "cancelled"
    assert np.array_equal(session.drawing(0).whole, before)
    session.close()
