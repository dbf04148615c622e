"""The versions and the machine behind a number, and the memory that it took."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contextseg.threads import thread_count


def provenance() -> dict[str, Any]:
    """Date, command, versions, machine and threads, as plain JSON content."""
    packages = ("contextseg", "torch", "numpy", "scipy", "nibabel", "SimpleITK")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "machine": machine(),
        "threads": thread_count(),
    }


def machine() -> str:
    """One line: processor, cores, memory, system; and the GPU, if torch is loaded and sees one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            line.split(":")[1].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        cpu = models[0] if models else cpu
    line = f"{cpu}, {os.cpu_count()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        line += f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        line += f", {torch.cuda.get_device_name()}"
    return f"{line}, {platform.system()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


class PeakMemory:
    """The largest memory of this process since the object was made.

    On Linux it is the kernel's own high-water mark, set back; elsewhere that of the process so far.
    Windows does not say it.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float:
        """The largest resident memory, in megabytes (2^20 bytes); NaN where nobody says it."""
        try:
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        except (OSError, StopIteration):
            try:
                import resource
            except ImportError:
                return math.nan
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / (2**20 if sys.platform == "darwin" else 1024)

    def costs(self) -> dict[str, int]:
        """`peak_mb`, and `peak_gpu_mb` where there is a GPU, as whole megabytes; {} if unknown."""
        torch = sys.modules.get("torch")
        gpu = {}
        if torch is not None and torch.cuda.is_available():
            gpu = {"peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20)}
        peak = self.peak_mb()
        return gpu if math.isnan(peak) else {"peak_mb": round(peak), **gpu}
