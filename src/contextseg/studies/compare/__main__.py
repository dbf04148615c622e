"""A cell in a process of its own: `python -m contextseg.studies.compare`.

It reads a `cell.Task` as JSON from its standard input.
"""

from __future__ import annotations

import json
import sys

from contextseg.errors import ContextsegError
from contextseg.stopping import Stopped, stop_signals
from contextseg.studies.compare.cell import Task

if __name__ == "__main__":
    try:
        with stop_signals():
            Task(**json.load(sys.stdin))()
    except (ContextsegError, Stopped) as error:
        print(f"contextseg: {error}", file=sys.stderr)
        sys.exit(143 if isinstance(error, Stopped) else 1)
