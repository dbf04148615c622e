"""What some systems have not: marks of tests that need it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest


def _links() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "link").symlink_to("nowhere")
        except (OSError, NotImplementedError):
            return False
    return True


def _has(module: str) -> bool:
    return sys.modules.get(module, True) is not None and find_spec(module) is not None


def _two_cases() -> bool:
    """Whether "a" and "A" are two names."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in "aA":
                (Path(folder) / name).touch()
        except OSError:
            return False
        return len(os.listdir(folder)) == 2


needs_case = pytest.mark.skipif(not _two_cases(), reason="needs names that differ in their case")
needs_locks = pytest.mark.skipif(not _has("fcntl"), reason="needs locks of folders")
LINKS = _links()
needs_links = pytest.mark.skipif(not LINKS, reason="needs links")
needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
needs_unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a Unix")
