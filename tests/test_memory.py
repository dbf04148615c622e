"""Running out of memory is one message that says what to lower, wherever it happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contextseg as cs
from contextseg import training
from contextseg.data import phantom
from contextseg.memory_errors import is_memory_error
from contextseg.parallel import map_cases
from contextseg.runs import Run

TINY = {"steps": 2, "base_width": 4, "max_levels": 2, "device": "cpu"}
REPORTS = (  # what numpy and torch say on Linux, on Windows, and on a GPU
    MemoryError("Unable to allocate 1.4 TiB for an array"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate"
                 " memory: you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory:"
                 " you tried to allocate 1 bytes."),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_dataset(tmp_path_factory.mktemp("memory") / "data", labelled=2, test=1)


@pytest.mark.parametrize("error", REPORTS, ids=lambda e: type(e).__name__)
def test_every_way_to_say_it_is_known(error: Exception) -> None:
    assert is_memory_error(error)


def test_training_says_what_to_lower_and_keeps_what_was_done(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = training.training_step

    def full(*_: object) -> None:
        raise REPORTS[1]

    monkeypatch.setattr(training, "training_step", full)
    with pytest.raises(cs.ContextsegError, match=r"out of memory .*--set memory_gb=4, or lower"):
        cs.train(data, tmp_path / "a", verbose=False, **TINY)
    given = TINY | {"patch_vox": (16, 16, 16), "batch_size": 2}
    with pytest.raises(
        cs.ContextsegError,
        match=r"lower patch_vox or batch_size or base_width \(the patch is 16,16,16, the batch 2\)",
    ):
        cs.train(data, tmp_path / "b", verbose=False, **given)
    assert Run.open(tmp_path / "b").done("preprocess")
    monkeypatch.setattr(training, "training_step", step)
    cs.train(data, tmp_path / "b", verbose=False, **given)  # as after other programs were closed


def test_another_error_of_training_stays_what_it_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("sizes must match")

    monkeypatch.setattr(training, "training_step", wrong)
    with pytest.raises(RuntimeError, match="sizes must match"):
        cs.train(data, tmp_path / "a", verbose=False, **TINY)


def test_a_case_without_memory_does_not_stop_the_others() -> None:
    def work(case: str) -> str:
        if case == "b":
            raise MemoryError("Unable to allocate 9 GiB")
        return case

    results = [result for _, result in map_cases(work, ["a", "b", "c"])]
    assert (results[0], results[2]) == ("a", "c")
    assert isinstance(results[1], cs.ContextsegError)
    assert "out of memory (Unable to allocate 9 GiB)" in str(results[1])


_LIMITED = """
import resource, sys, torch
from contextseg.cli import main
torch.zeros(8).sum()
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 300 * 2**20, resource.RLIM_INFINITY))
main()
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or sys.modules.get("resource", True) is None,
    reason="needs Linux",
)
def test_a_process_that_may_have_little_memory(data: Path, tmp_path: Path) -> None:
    """A real one, whose allocations fail: one message, and no traceback."""
    words = ["train", data, "-o", tmp_path / "run", "--fold", "all"]
    for setting in ("steps=2", "patch_vox=128,128,128", "batch_size=8", "device=cpu"):
        words += ["--set", setting]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, words)],
        capture_output=True,
        encoding="utf-8",
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # OpenBLAS waits for ever for room for more
    )
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert "Remedy: lower patch_vox or batch_size (the patch is 128,128,128" in done.stderr
    assert "Traceback" not in done.stderr
