"""A cell in a process of its own: `python -m contextseg.compare` reads a `Work` as JSON from its standard input."""

from __future__ import annotations

import json
import sys

from contextseg.compare.cell import Work
from contextseg.disk import Problem
from contextseg.train import Stopped

if __name__ == "__main__":
    try:
        Work(**json.load(sys.stdin))()
    except (Problem, Stopped) as problem:
        print(f"contextseg: {problem}", file=sys.stderr)
        sys.exit(143 if isinstance(problem, Stopped) else 1)
