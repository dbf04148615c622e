"""What happens when something happens: each test is a row of the table in docs/reliability.md."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.core import TyperGroup

import contextseg as cs
from contextseg import cli, reports
from contextseg.data import phantom
from contextseg.disk import lock_folder
from contextseg.methods import METHODS
from faults import Attempt, attempt, leftovers, results
from verbs import ONLY_LOOK, SET, VERBS, Place, make_place

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands run in forks")
ROOT = Path(__file__).parents[1]
LOCKED = sorted(name for name, verb in VERBS.items() if verb.locked or name == "project export")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


def tried(names: Iterable[str] = VERBS) -> list[object]:
    """Names of verbs as parameters; those that take long are tried by the slow tests."""
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[VERBS[name].slow]) for name in names]


def test_every_verb_is_in_the_table() -> None:
    """A new verb of the command line needs a row in `verbs.py`."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    every = set()
    for name, command in group.commands.items():
        inside = command.commands if isinstance(command, TyperGroup) else {}
        if not command.hidden:
            every |= {f"{name} {verb}" for verb in inside} or {name}
    writing = {verb.shown or name for name, verb in VERBS.items()}
    assert writing | set(ONLY_LOOK) == every
    assert not writing & set(ONLY_LOOK)


@pytest.mark.parametrize("name", ONLY_LOOK)
def test_verbs_that_only_look_write_nothing(place: Place, tmp_path: Path, name: str) -> None:
    work = shutil.copytree(place.projects["train"], tmp_path / "work")
    done = attempt(ONLY_LOOK[name](place, work), tmp_path)
    assert done.code == 0, done.text
    assert done.writes == ()


def tried_once(place: Place, name: str, out: Path, at: int = 0, act: str = "") -> Attempt:
    """A verb whose output folder is `out`, and what happens at a write."""
    verb = VERBS[name]
    return attempt(verb.words(place, out), out, at, act, before=lambda: verb.before(place))


def some(name: str, writes: Sequence[object]) -> list[int]:
    """The writes at which something happens: every one, or six of a verb that takes long."""
    count = len(writes)
    few = np.linspace(1, count, 6).round().astype(int)
    return sorted({int(n) for n in few}) if VERBS[name].slow else list(range(1, count + 1))


def whole(place: Place, name: str) -> Path:
    """The results of a verb without a fault; alone in its folder, so that it shares no cache."""
    return place.folder / f"ok-{name}" / "out"


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Callable[[str], Attempt]:
    """Each verb without a fault, once: its writes; its results are where `whole` says."""
    done: dict[str, Attempt] = {}

    def get(name: str) -> Attempt:
        if name not in done:
            out = whole(place, name)
            VERBS[name].prepare(place, out)
            done[name] = tried_once(place, name, out)
            assert done[name].code == 0, done[name].text
        return done[name]

    return get


def renames(done: Attempt) -> list[int]:
    """The writes that put a finished file into place."""
    return [n for n, line in enumerate(done.writes, 1) if line.startswith("os.rename")]


def one_message(done: Attempt) -> str:
    """The message of a command that failed as it should."""
    assert done.code == 1, done.text
    assert "Traceback" not in done.text
    lines = [line for line in done.text.splitlines() if line.startswith("contextseg: ")]
    assert len(lines) == 1, done.text
    assert "Remedy: " in done.text
    return done.text


def as_if_nothing_had_happened(place: Place, name: str, out: Path) -> None:
    """The same command again ends with the results of an undisturbed one, and leaves nothing."""
    again = tried_once(place, name, out)
    assert again.code == 0, again.text
    assert results(out) == results(whole(place, name))
    assert leftovers(out) == []


# --- killed, stopped ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tried())
def test_killed_at_a_write(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    """SIGKILL before a file is put into place: its half is hidden, and no result."""
    points = renames(undisturbed(name))
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)
    at = points[len(points) // 2]
    done = tried_once(place, name, out, at, "kill")
    assert done.code == -9, done.text
    as_if_nothing_had_happened(place, name, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", tried())
def test_killed_at_every_write(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    for at in some(name, undisturbed(name).writes):
        out = tmp_path / f"out{at}" / "out"
        VERBS[name].prepare(place, out)
        tried_once(place, name, out, at, "kill")
        as_if_nothing_had_happened(place, name, out)
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_killed_at_random_writes(tmp_path: Path, method: str) -> None:
    """Twelve kills of one run, each at a random write from where the last one ended."""
    verb = "train" if getattr(METHODS[method], "guided", False) else "run"
    data = phantom.write_dataset(tmp_path / "data", labelled=3, unlabelled=2, test=1)
    words = [verb, data, "--method", method, *SET]
    if METHODS[method].__name__ in ("CMUNet", "STCN"):
        words += ["--set", "dims=2", "--set", "patch_vox=16,16"]
    ok, out = tmp_path / "ok" / "run", tmp_path / "out" / "run"
    first = attempt([*words, "-o", ok], ok)
    assert first.code == 0, first.text
    draw = random.Random(method)
    for _ in range(12):
        attempt([*words, "-o", out], out, draw.randint(1, len(first.writes)), "kill")
    again = attempt([*words, "-o", out], out)
    assert again.code == 0, again.text
    assert results(out) == results(ok)
    assert leftovers(out) == []


@pytest.mark.parametrize("act", ["term", "ctrl-c"])
@pytest.mark.parametrize("name", tried())
def test_stopped_by_a_signal(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str, act: str
) -> None:
    """One message, exit code 143, and nothing half-written, not even hidden."""
    points = renames(undisturbed(name))
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)
    at = points[len(points) // (3 if act == "term" else 2)]
    done = tried_once(place, name, out, at, act)
    assert done.code == 143, done.text
    assert "Traceback" not in done.text
    assert "the same command goes on" in done.text
    assert leftovers(out) == []


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tried())
def test_the_disk_becomes_full(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    """From some write on nothing can be written; with space again, the same command goes on."""
    points = renames(undisturbed(name))
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)
    done = tried_once(place, name, out, points[len(points) // 2] - 1, "full")
    assert "the disk is full" in one_message(done)
    assert leftovers(out) == []
    as_if_nothing_had_happened(place, name, out)


@pytest.mark.slow
@pytest.mark.parametrize("name", tried())
def test_the_disk_becomes_full_at_any_write(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    for at in some(name, undisturbed(name).writes):
        out = tmp_path / f"out{at}" / "out"
        VERBS[name].prepare(place, out)
        done = tried_once(place, name, out, at, "full")
        if done.code:  # a lock alone is not missed where there can be none
            assert "the disk is full" in one_message(done)
        assert leftovers(out) == []
        shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("name", ["train", "predict", "propagate", "project fill"])
def test_the_disk_becomes_full_inside_a_file(place: Place, tmp_path: Path, name: str) -> None:
    """Files end at 400 bytes, as where a limit or the disk itself stops a write half-way."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))

    words = [*VERBS[name].words(place, out)]
    done = attempt(words, out, before=limit)
    assert done.code == 1
    assert leftovers(out) == []
    assert not [path for path in out.rglob("*.nii.gz") if path.stat().st_size == 400]


@pytest.mark.parametrize("act", ["read-only", "denied"])
@pytest.mark.parametrize("name", tried())
def test_a_place_that_may_not_be_written_to(
    place: Place, tmp_path: Path, name: str, act: str
) -> None:
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)
    words = {"read-only": "the disk is read-only", "denied": "no permission to write"}
    before = results(out) if out.exists() else {}
    done = tried_once(place, name, out, 1, act)
    assert words[act] in one_message(done)
    assert (results(out) if out.exists() else {}) == before


# --- inputs ---------------------------------------------------------------------------------------


def test_a_scan_is_removed_in_the_middle(tmp_path: Path) -> None:
    """Before it is read: one message that names it. After preprocessing it is not needed."""
    data = phantom.write_dataset(tmp_path / "data", labelled=3, test=1)
    path = next(iter((data / "imagesTr").glob("*.nii.gz")))
    words = ["train", data, "-o", tmp_path / "out", *SET]
    kept = path.read_bytes()
    done = attempt(words, tmp_path / "out", before=lambda: at_stage("plan", path.unlink))
    assert path.name.split("_0000")[0] in one_message(done)
    path.write_bytes(kept)
    done = attempt(words, tmp_path / "out", before=lambda: at_stage("train-1", path.unlink))
    assert done.code == 0, done.text


def at_stage(name: str, happen: Callable[[], object]) -> None:
    """Let something happen when a run begins a stage, in this process."""
    from contextseg.run_folder import RunFolder

    work = RunFolder._work

    def with_fault(self: RunFolder, folder: Path, *rest: object) -> None:
        if folder.name == name:
            happen()
        work(self, folder, *rest)  # type: ignore[arg-type]

    RunFolder._work = with_fault  # type: ignore[method-assign]


def test_inputs_are_added_and_changed_in_the_middle(tmp_path: Path) -> None:
    """A run keeps the cases of its first day and says what changed since."""
    data = phantom.write_dataset(tmp_path / "data", labelled=3, test=1)
    more = phantom.write_dataset(tmp_path / "more", labelled=5, test=0)
    words = ["train", data, "-o", tmp_path / "out", *SET]

    def add() -> None:
        for kind in ("imagesTr", "labelsTr"):
            for path in (more / kind).glob("phantom_004*"):
                shutil.copy(path, data / kind / path.name)

    first = attempt(words, tmp_path / "out", before=lambda: at_stage("train-1", add))
    assert first.code == 0, first.text
    done = attempt(words, tmp_path / "out")
    assert done.code == 0, done.text
    assert "changed since this run began" in done.text
    assert "phantom_004" in done.text


def test_a_scan_that_was_predicted_is_another_one(place: Place, tmp_path: Path) -> None:
    """The label map of another scan under the same name is never taken for its own."""
    shutil.copy(place.scan, tmp_path / "scan.nii.gz")
    words = ["predict", place.run, "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out"]
    assert attempt(words, tmp_path / "out").code == 0
    scan = cs.read(tmp_path / "scan.nii.gz")
    cs.write(tmp_path / "scan.nii.gz", scan.with_array(scan.array[:, ::-1] + np.float32(1)))
    assert "label maps of other scans with the same names" in one_message(
        attempt(words, tmp_path / "out")
    )


# --- clocks, processes, names ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "predict", "project fill"])
def test_a_clock_that_goes_backwards(
    place: Place, undisturbed: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    undisturbed(name)
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)

    def turn_back() -> None:
        now = [time.time()]

        def backwards() -> float:
            now[0] -= 3600
            return now[0]

        time.time = backwards

    done = attempt(VERBS[name].words(place, out), out, before=turn_back)
    assert done.code == 0, done.text
    assert results(out) == results(whole(place, name))


@pytest.mark.parametrize("name", tried(LOCKED))
def test_two_processes_in_one_folder(place: Place, tmp_path: Path, name: str) -> None:
    """The second one is refused, with the name of the first, and changes nothing."""
    out = tmp_path / "out"
    VERBS[name].prepare(place, out)
    held = out / "work" if name == "project export" else out
    with lock_folder(held):
        done = tried_once(place, name, out)
    message = one_message(done)
    assert "another process works in this folder" in message
    assert f"process {os.getpid()} on" in message


@pytest.mark.parametrize("chain", [[], ["--chain"]])
def test_simulate_is_locked(place: Place, tmp_path: Path, chain: list[str]) -> None:
    out = tmp_path / "out"
    with lock_folder(out):
        done = attempt(["simulate", place.data, "-o", out, *chain], out)
    assert "another process works in this folder" in one_message(done)


def test_a_project_is_looked_at_while_a_verb_works(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(place.projects["train"], out)
    with lock_folder(out):
        done = attempt(["project", "status", out], out)
    assert done.code == 0, done.text
    assert "2 filled" in done.text


def test_two_processes_note_cases_of_one_project(place: Place, tmp_path: Path) -> None:
    """Each waits for its turn: no row of the table is lost."""
    out = tmp_path / "out"
    shutil.copytree(place.projects["train"], out)
    children = []
    for name in ("phantom_000", "phantom_001"):
        child = os.fork()
        if child == 0:
            table = cs.project(out, verbose=False).table
            for minutes in range(1, 21):
                table.note(name, minutes=float(minutes))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    cases = cs.project(out, verbose=False).table.cases()
    assert [cases[name].minutes for name in ("phantom_000", "phantom_001")] == [20, 20]
    assert leftovers(out) == []


STRANGE = [
    "two words",
    "Müller-Lüdenscheidt",
    "$HOME $x^2$",
    "100% %s",
    'it\'s "quoted"',
    "-dash",
    "#1; & (a) [b] {c}",
    "x" * 200,
]


def test_strange_names(tmp_path: Path) -> None:
    """Cases and folders with names that shells, math text and formats read otherwise."""
    plain = phantom.write_dataset(tmp_path / "plain", labelled=6, test=2)
    data = tmp_path / STRANGE[2] / STRANGE[4]
    shutil.copytree(plain, data)
    for n, name in enumerate(STRANGE):
        for path in data.glob(f"*/phantom_{n:03d}*"):
            path.rename(path.with_name(path.name.replace(f"phantom_{n:03d}", name)))
    table = data / "dataset.json"
    if "phantom_000" in table.read_text(encoding="utf-8"):
        text = table.read_text(encoding="utf-8")
        for n, name in enumerate(STRANGE):
            text = text.replace(f"phantom_{n:03d}", json.dumps(name)[1:-1])
        table.write_text(text, encoding="utf-8")
    out = tmp_path / STRANGE[3] / STRANGE[5]
    done = attempt(["run", data, "-o", out, *SET], out)
    assert done.code == 0, done.text
    predicted = {path.name.removesuffix(".nii.gz") for path in (out / "predict").glob("*.nii.gz")}
    assert predicted == set(STRANGE[6:])
    assert (out / "report.html").exists()


# --- the table ------------------------------------------------------------------------------------


def test_every_row_of_the_table_is_a_test_and_every_test_a_row() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:(test_\w+)\.py::)?(test_\w+)`", page)
    for file, test in named:
        path = ROOT / "tests" / f"{file or 'test_reliability'}.py"
        assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{test} is not in {path.name}"
    own = {test for file, test in named if not file}
    here = set(re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(encoding="utf-8"), re.M))
    assert here - own == {"test_every_row_of_the_table_is_a_test_and_every_test_a_row"}


assert cli
assert reports
