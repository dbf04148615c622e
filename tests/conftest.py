"""`CONTEXTSEG_SIMULATE_WINDOWS=1 pytest` runs the tests as Windows would, in two things.

`os.fsync` of a handle that only reads fails, and there is no module `resource`. Processes that the
tests start are so, too: they find `tests/windows/sitecustomize.py` on their path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SIMULATED = Path(__file__).parent / "windows"

if os.environ.get("CONTEXTSEG_SIMULATE_WINDOWS"):
    paths = [str(SIMULATED), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    sys.path.insert(0, str(SIMULATED))
    import windows_of_python  # noqa: F401
