"""Running out of memory is one message that says what to lower, wherever it happens."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import contextseg as cs
from contextseg import api, cli, training
from contextseg.data import phantom
from contextseg.data.cache import load_array
from contextseg.memory_errors import is_memory_error, out_of_memory
from contextseg.methods import CPS, Supervised
from contextseg.nets.completion import CompletionNet
from contextseg.nets.sources import read_weights
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
    return phantom.write_dataset(
        tmp_path_factory.mktemp("memory") / "data", labelled=2, unlabelled=1, test=1
    )


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
resource.setrlimit(resource.RLIMIT_AS, (size + 400 * 2**20, resource.RLIM_INFINITY))
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


# --- everywhere -----------------------------------------------------------------------------------


def array_memory_error() -> Exception:
    with pytest.raises(MemoryError) as caught:
        np.empty(2**62, np.uint8)
    return caught.value


REAL = {
    "numpy": array_memory_error(),
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": REPORTS[1],
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    "driver": torch.AcceleratorError("CUDA error: out of memory"),
    "paging": OSError(22, "The paging file is too small for this operation to complete"),
    "enomem": OSError(12, "Cannot allocate memory"),
    "library": ImportError("libscipy.so: failed to map segment from shared object"),
    "c++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("kind", REAL)
def test_every_class_is_known(kind: str) -> None:
    assert is_memory_error(REAL[kind])
    said = pytest.raises(cs.ContextsegError, match=r"case: out of memory \(.+\). Remedy: lower it")
    with said, out_of_memory("case", "lower it"):
        raise REAL[kind]


@pytest.mark.parametrize(
    "words", ["CUDNN_STATUS_NOT_SUPPORTED", "CUDA error: device-side assert triggered", "a memory"]
)
def test_what_is_none_is_none(words: str) -> None:
    assert not is_memory_error(RuntimeError(words))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    cs.train(data, folder, verbose=False, patch_vox=(16, 16, 16), **TINY)
    return folder


@pytest.fixture
def scans(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    scan = cs.read(next((data / "imagesTs").glob("*.nii.gz")))
    for name in ("a", "b", "c"):
        cs.write(folder / f"{name}.nii.gz", scan)
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: Exception) -> None:
    """Let a function raise when it is called first."""
    function, done = getattr(where, name), itertools.count()

    def raises(*args: Any, **kwargs: Any) -> Any:
        if next(done) == 0:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(where, name, raises)


@pytest.mark.parametrize("verb", ["predict", "two_stage"])
@pytest.mark.parametrize("kind", ["cuda", "cublas", "numpy", "driver"])
def test_the_other_scans_go_on(
    trained: Path,
    scans: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    verb: str,
) -> None:
    failing(monkeypatch, Supervised, "predict", REAL[kind])
    out = tmp_path / "out"
    segment = {
        "predict": lambda: cs.load(trained, device="cpu").predict_folder(scans, out),
        "two_stage": lambda: cs.two_stage(trained, scans, out, way="interpolation", verbose=False),
    }[verb]
    with pytest.raises(cs.ContextsegError, match=r"1 of 3 .*\n?.*out of memory \(.*lower --set"):
        segment()
    assert {p.name for p in out.glob("*.nii.gz")} == {"b.nii.gz", "c.nii.gz"}


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_training_on_pseudo_labels_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    given = TINY | {"patch_vox": (16, 16, 16), "batch_size": 2, "models": 2}
    with monkeypatch.context() as patch:
        failing(patch, CPS, "predict", REAL[kind])
        with pytest.raises(cs.ContextsegError, match=r"out of memory .*lower patch_vox or batch"):
            cs.train(data, tmp_path / "run", method="pseudo", verbose=False, **given)
    assert (tmp_path / "run" / "train-1" / "model.pt").exists()
    cs.train(data, tmp_path / "run", method="pseudo", verbose=False, **given)


@pytest.mark.parametrize("kind", ["cuda", "cpu", "numpy"])
def test_filling_between_slices(scans: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    labels = np.zeros(cs.read(scans / "a.nii.gz").shape, np.uint8)
    labels[4, 5:9, 5:9] = 1
    failing(monkeypatch, CompletionNet, "forward", REAL[kind])
    with pytest.raises(cs.ContextsegError, match=r"a.nii.gz: out of memory .*--way interpolation"):
        cs.propagate(scans / "a.nii.gz", labels, verbose=False)
    cs.propagate(scans / "a.nii.gz", labels, way="interpolation", verbose=False)


def test_the_command_line_has_one_message_where_no_other_is_nearer(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["contextseg", "check", str(data)])
    for error in REAL.values():
        with monkeypatch.context() as patch:
            failing(patch, api, "check", error)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        assert ended.value.code == 1
        assert "contextseg: check: out of memory (" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["cuda", "numpy"])
def test_a_file_is_not_damaged_for_want_of_memory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    archive = cs.export(trained, tmp_path / "model.zip")
    for module, name, call in (
        (torch, "load", lambda: cs.load(archive, device="cpu")),
        (torch, "load", lambda: read_weights(trained / "train-1" / "model.pt")),
        (np, "load", lambda: load_array(next(trained.glob("cache/**/*.npy")), "make it again")),
    ):
        with monkeypatch.context() as patch:
            failing(patch, module, name, REAL[kind])
            with pytest.raises(cs.ContextsegError, match="memory") as caught:
                call()
        assert "damaged" not in caught.value.what
