"""The cores that a process may use, and what is set before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from contextseg import threads
from contextseg.notices import other_threads
from contextseg.provenance import provenance
from contextseg.threads import SPIN_COUNT, core_quota, settle_threads, thread_count, usable_cores


def groups(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup, encoding="utf-8")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/\n", {}, float("inf")),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        # the least of a group and those around it
        ("0::/a/b\n", {"a/cpu.max": "50000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 0.5),
        # version 1, by two names of its controller, and no limit
        (
            "4:cpu,cpuacct:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            "4:cpu:/\n3:memory:/x\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            float("inf"),
        ),
        ("nonsense", {"cpu.max": "nonsense\n"}, float("inf")),
    ],
)
def test_the_quota_of_a_container(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: float
) -> None:
    assert core_quota(groups(tmp_path, cgroup, files)) == cores


def test_the_least_of_affinity_and_quota_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for quota, cores in ((float("inf"), 64), (2.5, 3), (0.2, 1), (100, 64)):
        monkeypatch.setattr(threads, "core_quota", lambda quota=quota: quota)
        assert usable_cores() == cores


@pytest.mark.parametrize(
    ("given", "quota", "set_"),
    [
        ({}, float("inf"), {"GOMP_SPINCOUNT": str(SPIN_COUNT)}),
        ({}, 2, {"GOMP_SPINCOUNT": str(SPIN_COUNT), "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "8"}, 2, {}),
        ({"GOMP_CPU_AFFINITY": "0"}, 2, {}),
        ({"KMP_BLOCKTIME": "0"}, 2, {}),
    ],
)
def test_what_a_person_has_set_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], quota: float, set_: dict[str, str]
) -> None:
    environment = {"PATH": "", **given}
    fake = SimpleNamespace(
        environ=environment, sched_getaffinity=lambda _: set(range(8)), cpu_count=lambda: 8
    )
    monkeypatch.setattr(threads, "os", fake)
    monkeypatch.setattr(threads, "core_quota", lambda: quota)
    assert settle_threads() == {}, "torch is imported here: it is too late"
    monkeypatch.setattr(threads, "sys", SimpleNamespace(modules={}))
    assert settle_threads() == set_
    assert environment == {"PATH": "", **given, **set_}


def test_it_is_set_before_torch_is_imported() -> None:
    """However contextseg is imported; OpenMP itself says what it read."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    code = (
        "import os, sys; from contextseg.errors import ContextsegError; "
        "assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.split() == [str(SPIN_COUNT)]


def test_a_run_says_that_it_goes_on_with_other_threads(tmp_path: Path) -> None:
    import torch

    assert provenance()["threads"] == thread_count() == torch.get_num_threads()
    record = tmp_path / "run.json"
    record.write_text('{"provenance": {"threads": 999}}', encoding="utf-8")
    cpu = torch.device("cpu")
    (said,) = other_threads(tmp_path, cpu)
    assert "begun with 999 threads" in said
    assert "OMP_NUM_THREADS=999" in said
    assert other_threads(tmp_path, torch.device("cuda")) == []
    for known in (f'{{"provenance": {{"threads": {torch.get_num_threads()}}}}}', "{}"):
        record.write_text(known, encoding="utf-8")
        assert other_threads(tmp_path, cpu) == []
