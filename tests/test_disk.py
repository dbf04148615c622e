"""What is written survives an error, a full disk and a locked folder; what is damaged says so."""

import ast
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import contextseg
from contextseg.disk import (
    csv_text,
    digest,
    lock_folder,
    note_case,
    read_json,
    read_rows,
    replacing,
    sweep_leftovers,
    visible_files,
    write_json,
    writing,
)
from contextseg.errors import ContextsegError, did_you_mean
from contextseg.leftovers import temporary_beside
from contextseg.provenance import PeakMemory
from contextseg.volume import Volume, read_labels, write
from systems import needs_locks
from test_volume import counting

SOURCE = Path(contextseg.__file__).parent


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the n", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with replacing(tmp_path / "case") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content, encoding="utf-8")
    assert [p.name for p in (tmp_path / "case").iterdir()] == ["second"]

    def fail() -> None:
        with replacing(tmp_path / "case") as temporary:
            temporary.mkdir()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["case"]
    assert (tmp_path / "case" / "second").read_text(encoding="utf-8") == "second"


@pytest.mark.parametrize("end", [".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".tif"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"a{end}"
    old = Volume(np.ones((1, 3, 3), np.uint8), np.eye(4))
    write(path, old)
    noise = np.random.default_rng(0).integers(0, 250, (1, 40, 50)).astype(np.uint8)
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, hard)
    )  # the write stops half-way, as on a full disk
    try:
        with pytest.raises(ContextsegError) as caught:
            write(path, Volume(noise, np.eye(4)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.where == str(path)
    assert np.array_equal(read_labels(path).array, old.array)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_space_and_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ContextsegError, match="the disk is full"):
            write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ContextsegError, match="no permission to write"):
            write(locked / "a.nii.gz", counting())
    finally:
        if root:
            os.seteuid(0)
        locked.chmod(0o755)


def test_a_file_where_a_folder_is_needed_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ContextsegError, match="a file stands where a folder is needed"):
        write_json(tmp_path / "file" / "a.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ContextsegError, match="a folder stands where a file is needed"):
        write_json(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Müller"})
    assert read_json(tmp_path / "a.json") == {"name": "Müller"}
    (tmp_path / "b.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps([1]).encode()
    )  # as some Windows editors save it
    assert read_json(tmp_path / "b.json") == [1]
    (tmp_path / "c.json").write_text("{'a': 1}", encoding="utf-8")
    with pytest.raises(ContextsegError, match="not valid JSON"):
        read_json(tmp_path / "c.json")
    with pytest.raises(ContextsegError, match="does not exist"):
        read_json(tmp_path / "d.json")


def test_a_digest_follows_content_not_names(tmp_path: Path) -> None:
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len(a) == 16
    assert digest({"p": 1, "q": 2}) == digest({"q": 2, "p": 1}) != digest({"p": 1}, {"q": 2})


def test_did_you_mean() -> None:
    assert did_you_mean("larinx", ["larynx", "liver"]) == "did you mean larynx?"
    assert did_you_mean("xyz", ["liver", "brain"]) == "choose from brain, liver"


def test_a_csv_text_reads_back(tmp_path: Path) -> None:
    columns = ["case", "x"]
    rows = [{"case": 'a, "b"', "x": 1.5}, {"case": "line\nfeed"}, {"x": None}]
    (tmp_path / "a.csv").write_text(csv_text(columns, rows), encoding="utf-8")
    assert [list(row.values()) for row in read_rows(tmp_path / "a.csv", columns)] == [
        ['a, "b"', "1.5"],
        ["line\nfeed", ""],
        ["", ""],
    ]
    assert csv_text(columns, []) == "case,x\n"
    with pytest.raises(ValueError, match="'y'"):
        csv_text(columns, [{"y": 1}])


def test_rows_of_a_case_take_the_place_of_those_before(tmp_path: Path) -> None:
    path, columns = tmp_path / "table.csv", ("case", "of", "x")
    assert read_rows(path, columns) == []
    note_case(path, columns, "a, b", [{"of": "é", "x": 1}, {"of": "2", "x": 2}])
    note_case(path, columns, "c", [{"of": "1", "x": 3}])
    note_case(path, columns, "a, b", [{"of": "3", "x": 4}])
    assert [tuple(row.values()) for row in read_rows(path, columns)] == [
        ("a, b", "3", "4"),
        ("c", "1", "3"),
    ]
    note_case(path, columns, "a, b", [])
    assert [row["case"] for row in read_rows(path, columns)] == ["c"]
    with pytest.raises(
        ContextsegError, match=r"its columns are not case, x.*choose another folder"
    ):
        note_case(path, ("case", "x"), "d", [])


# --- leftovers and locks --------------------------------------------------------------------------


@needs_locks
def test_leftovers_are_no_results_and_are_swept_with_the_lock(tmp_path: Path) -> None:
    """As a kill between write and rename leaves them; a folder that is worked in keeps its own."""
    for name in ("a.npy", ".48a3b1c2-b.npy", "sub/.48a3b1c2-c/x.json", "sub/done.json", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert [p.name for p in visible_files(tmp_path, "*.npy")] == ["a.npy"]
    assert [p.parent.name for p in visible_files(tmp_path, "*/*.json")] == ["sub"]
    assert visible_files(tmp_path / "missing", "*") == []
    with lock_folder(tmp_path / "sub"):
        (tmp_path / "sub" / ".11111111-own").write_text("", encoding="utf-8")
        assert sweep_leftovers(tmp_path) == 0
    with lock_folder(tmp_path):
        left = sorted(p.name for p in tmp_path.rglob("*"))
    assert left == [".hidden", ".lock", "a.npy", "done.json", "sub"]
    assert not (tmp_path / ".lock").exists()


WRITE = """
import sys, time
from contextseg.disk import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half", encoding="utf-8")
    print(temporary.name, flush=True)
    time.sleep(60)
"""


def begun(path: Path) -> tuple[subprocess.Popen[str], str]:
    """A process that has half-written a file, and the name of the half."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_a_write_sweeps_what_a_killed_one_left_of_the_same_file(tmp_path: Path) -> None:
    """Of that very file, once no process writes in the folder; and of nothing else."""
    pytest.importorskip("fcntl")
    others = [".48a3b1c2-other.txt", ".48a3b1c2-old-a.txt", ".48a3b1c2-a.txt.json", ".a.txt"]
    for name in others:
        (tmp_path / name).write_text("", encoding="utf-8")
    alive, kept = begun(tmp_path / "a.txt")
    killed, left = begun(tmp_path / "a.txt")
    killed.kill()
    killed.wait()
    write_json(tmp_path / "a.txt", 1)
    assert {kept, left} <= {p.name for p in tmp_path.iterdir()}  # whose is which is not known
    alive.kill()
    alive.wait()
    write_json(tmp_path / "a.txt", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "a.txt"])
    assert read_json(tmp_path / "a.txt") == 2


def test_threads_that_write_beside_each_other_leave_no_leftover(tmp_path: Path) -> None:
    """What could not be swept while another thread wrote is swept when the last one is done."""
    pytest.importorskip("fcntl")
    (tmp_path / ".48a3b1c2-a.json").write_text("", encoding="utf-8")
    with replacing(tmp_path / "b.json") as other:
        write_json(tmp_path / "a.json", 1)
        assert (tmp_path / ".48a3b1c2-a.json").exists()
        write_json(other, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("name", ["data", "x" * 255])
def test_half_a_folder_and_a_long_name_are_swept(tmp_path: Path, name: str) -> None:
    pytest.importorskip("fcntl")
    half = temporary_beside(tmp_path / name)
    half.mkdir()
    (half / "scan.nii.gz").write_text("", encoding="utf-8")
    if name == "data":
        half.with_name(f"{half.name}-old").mkdir()
    write_json(tmp_path / name, {})
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_write_waits_for_no_lock_that_somebody_holds(tmp_path: Path) -> None:
    """As in `flock FOLDER contextseg ...`: what is written is written, and nothing is swept."""
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".48a3b1c2-a.json").write_text("", encoding="utf-8")
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        for number in range(3):
            write_json(tmp_path / "a.json", number)
    finally:
        os.close(handle)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", ".48a3b1c2-a.json"}
    write_json(tmp_path / "a.json", 3)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json"}


@needs_locks  # without them nothing is swept
def test_many_files_in_one_folder_list_it_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries listed grow as the files do, not as their square."""
    listed = []
    listdir = os.listdir

    def counted(path: Path) -> list[str]:
        names = listdir(path)
        listed.append(len(names))
        return names

    monkeypatch.setattr(os, "listdir", counted)
    for number in range(200):
        write_json(tmp_path / f"{number}.json", number)
    assert 0 < sum(listed) <= 2 * 200


HOLD = """
import sys, time
from contextseg.disk import lock_folder
with lock_folder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@needs_locks
def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ContextsegError, match=f"process {holder.pid} on"), lock_folder(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with lock_folder(tmp_path), pytest.raises(ContextsegError), lock_folder(tmp_path, shared=True):
        pass
    with lock_folder(tmp_path, shared=True), lock_folder(tmp_path, shared=True):
        pass
    assert not list(tmp_path.iterdir())


STOP = """
import signal, os, sys
from pathlib import Path
from contextseg.disk import lock_folder, replacing
from contextseg.stopping import Stopped, stop_signals
try:
    with stop_signals(), lock_folder(sys.argv[1]), replacing(Path(sys.argv[1]) / "a.txt") as path:
        path.write_text("half", encoding="utf-8")
        signal.raise_signal(getattr(signal, sys.argv[2]))
except Stopped as stopped:
    sys.exit(str(stopped))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_with_a_message_and_no_leftovers(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOP, str(tmp_path), name], capture_output=True, encoding="utf-8"
    )
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_windows_lacks_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `fcntl`, no `resource`, no /proc; and a handle that only reads is not flushed."""
    unix = pytest.importorskip("fcntl")
    flush = os.fsync

    def windows_flush(handle: int) -> None:
        if unix.fcntl(handle, unix.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flush(handle)

    monkeypatch.setattr(os, "fsync", windows_flush)
    write_json(tmp_path / "a.json", {})
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "resource", None)
    with lock_folder(tmp_path), lock_folder(tmp_path):
        note_case(tmp_path / "b.csv", ("case", "x"), "a", [{"x": 1}])
    monkeypatch.setattr(Path, "read_text", _unreadable)
    memory = PeakMemory()
    assert math.isnan(memory.peak_mb())
    assert "peak_mb" not in memory.costs()


def _unreadable(*_: object, **__: object) -> str:
    raise OSError


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root may enter all")
def test_a_folder_that_may_not_be_entered_is_one_message(tmp_path: Path) -> None:
    from contextseg.data.layouts import open_dataset, scans_in
    from contextseg.evaluation.matching import match_folders
    from contextseg.runs import Run

    locked = tmp_path / "locked"
    (locked / "x").mkdir(parents=True)
    locked.chmod(0o700)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        for function in (open_dataset, scans_in, Run.open):
            with pytest.raises(ContextsegError, match="permission"):
                function(locked / "x")
        with pytest.raises(ContextsegError, match="permission"):
            match_folders(locked / "x", tmp_path)
        with pytest.raises(ContextsegError, match="permission"), lock_folder(locked / "x"):
            pass
    finally:
        os.seteuid(0)


# --- every write says what stops it ---------------------------------------------------------------

GUARDS = {"writing", "replacing", "TemporaryDirectory"}
GUARDED_BY_CALLERS = {
    "formats/nrrd.py",  # `volume.write`
    "projects/exporting.py",  # `export`
    "projects/sources.py",  # whoever copies a scan into a new folder
    "slabs.py",  # `data.cache`
    "propagation/network/training.py",  # a script for those who train the packaged network
    "provenance.py",  # no file of a disk
    "disk.py",
}


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def writes_a_file(call: ast.Call) -> bool:
    """Whether a call makes a file or folder by itself, and not by a function of `disk`."""
    module = call.func.value if isinstance(call.func, ast.Attribute) else None
    if called(call) == "open":
        modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
        return any(isinstance(mode, str) and re.fullmatch("[wax][bt+]*", mode) for mode in modes)
    if called(call) == "save":
        return isinstance(module, ast.Name) and module.id == "np"
    if called(call) == "write_text":
        return module is not None
    return called(call) in {"write_bytes", "mkdir", "makedirs", "tofile", "copyfile", "copytree"}


def unguarded(node: ast.AST, inside: bool = False) -> list[int]:
    """The lines of writes that stand in no `with writing(...)` or `with replacing(...)`."""
    if isinstance(node, ast.With):
        calls = [i.context_expr for i in node.items if isinstance(i.context_expr, ast.Call)]
        inside |= any(called(call) in GUARDS for call in calls)
    found = [line for child in ast.iter_child_nodes(node) for line in unguarded(child, inside)]
    if isinstance(node, ast.Call) and writes_a_file(node) and not inside:
        found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.name)
def test_what_stops_a_write_is_one_message(path: Path) -> None:
    if path.relative_to(SOURCE).as_posix() not in GUARDED_BY_CALLERS:
        assert not unguarded(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("code", ["open('a', 'w')", "p.open('ab')", "p.mkdir()", "np.save(p, x)"])
def test_an_unguarded_write_is_found(code: str) -> None:
    assert unguarded(ast.parse(code)) == [1]
    assert not unguarded(ast.parse(f"with writing(p):\n    {code}"))


def test_a_full_disk_stops_the_copy_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"1")

    def full(source: str, target: str, **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(shutil, "copy2", full)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
    with (
        pytest.raises(ContextsegError, match="the disk is full"),
        writing(tmp_path / "copy"),
    ):
        shutil.copytree(tmp_path / "series", tmp_path / "copy")
