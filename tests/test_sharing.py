"""What several processes share: a folder of predictions, and the cache of two runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from contextseg.data import phantom
from contextseg.disk import lock_folder
from contextseg.errors import ContextsegError
from contextseg.runs import Run
from contextseg.settings import Settings
from systems import needs_links, needs_locks

TINY = ["steps=2", "patch_vox=16,16,16", "batch_size=2", "base_width=4", "device=cpu"]

_COMES_AND_GOES = """
import sys, time
from contextseg.disk import lock_folder
print("ready", flush=True)
sys.stdin.readline()
for _ in range(150):
    with lock_folder(sys.argv[1], shared=True):
        time.sleep(0.0005)
"""

_PREPROCESSES = """
import sys
from contextseg.disk import lock_folder
from contextseg.runs import Run
print("ready", flush=True)
sys.stdin.readline()
with lock_folder(sys.argv[1]):
    Run.open(sys.argv[1]).preprocess()
"""


def together(code: str, arguments: Sequence[object]) -> None:
    """Run code in a process for each argument, all of which begin at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(argument)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for argument in arguments
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Run, Run]:
    """Two seeds, of which the second has linked to the cache of the first."""
    data = phantom.write_dataset(tmp_path / "data", labelled=3, test=0)
    runs = [
        Run(tmp_path / "runs" / name, Settings(str(data), seed=seed).set(TINY))
        for name, seed in (("a", 0), ("b", 1))
    ]
    for run in runs:
        run.make_plan()
        run.preprocess()
    first, second = runs
    assert (second.folder / "cache").resolve() == (first.folder / "cache").resolve()
    return first, second


def test_those_that_share_a_lock_never_refuse_one_another(tmp_path: Path) -> None:
    """Each has it alone for a moment when it comes and when it goes."""
    together(_COMES_AND_GOES, [tmp_path] * 3)
    assert list(tmp_path.iterdir()) == []


@needs_locks
def test_one_that_is_alone_keeps_the_sharing_out_and_the_other_way_round(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path),
        pytest.raises(ContextsegError, match="another process"),
        lock_folder(tmp_path, shared=True),
    ):
        pass
    with (
        lock_folder(tmp_path, shared=True),
        lock_folder(tmp_path, shared=True),
        pytest.raises(ContextsegError, match="another process"),
        lock_folder(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@needs_links
def test_two_runs_repair_the_cache_that_they_share(two_runs: tuple[Run, Run]) -> None:
    """Two processes at the same moment, by the remedy of the message about a damaged file."""
    first, second = two_runs
    cache = first.folder / "cache"
    names = sorted(path.name for path in cache.iterdir())
    whole = {path: path.read_bytes() for path in cache.rglob("image.npy")}
    damaged = cache / names[0] / "image.npy"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (cache / names[1] / "voxels.npz").unlink()
    with pytest.raises(ContextsegError, match=r"damaged.*delete the run's folder of the stage"):
        second.cached(second.split[0])[0].image  # noqa: B018
    for run in two_runs:
        shutil.rmtree(run.folder / "preprocess")
    together(_PREPROCESSES, [run.folder for run in two_runs])
    assert {path: path.read_bytes() for path in cache.rglob("image.npy")} == whole
    assert sorted(path.name for path in cache.iterdir()) == names  # nothing is left lying about
    for run in two_runs:
        for case in Run.open(run.folder).cached(run.split[0]):
            assert case.image.size
            assert case.voxels("body").size


@needs_links
def test_a_run_that_begins_again_leaves_alone_what_others_write_into_its_cache(
    two_runs: tuple[Run, Run],
) -> None:
    """`lock_folder` sweeps leftovers of killed processes; those of living ones are none."""
    first, second = two_runs
    half = second.folder / "cache" / ".1a2b3c4d-case"
    with lock_folder(second.folder / "cache", shared=True):  # as in its stage "preprocess"
        half.mkdir()
        with lock_folder(first.folder):
            assert half.exists()
    with lock_folder(first.folder):
        assert not half.exists()


@needs_links
def test_preprocessing_holds_the_lock_of_the_cache(
    two_runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = two_runs
    shutil.rmtree(first.folder / "preprocess")
    held = []

    def preprocess(*_: object, **__: object) -> list[object]:
        held.append((first.folder / "cache" / ".lock").exists())
        return []

    monkeypatch.setattr("contextseg.runs.preprocess", preprocess)
    monkeypatch.setattr("contextseg.runs.vanished_in_cache", lambda *_: {})
    monkeypatch.setattr(Run, "not_learnt", lambda _: [])
    first.preprocess()
    assert held == [True]


@needs_links
def test_a_run_whose_neighbour_is_gone_makes_its_own_cache(two_runs: tuple[Run, Run]) -> None:
    first, second = two_runs
    shutil.rmtree(first.folder)
    again = Run.open(second.folder)
    again.preprocess()
    assert not (second.folder / "cache").is_symlink()
    assert all(case.image.size for case in again.cached(again.split[0]))
