"""Run the room: `python -m tests.fuzz --count 10000`, or one input by `--index N`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from . import corpus, outcome, pool

BAD = (outcome.OTHER, outcome.CRASH, outcome.TIMEOUT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300, help="number of inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--index", type=int, help="one input, in this process, with its traceback")
    parser.add_argument("--reader", default="", help="only inputs of this reader")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so long; 0: never")
    parser.add_argument("--json", type=Path, help="where the outcomes are written")
    parser.add_argument("--corpus", type=Path, help="a corpus that is kept")
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        pool.serve(*given.serve, given.seed)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = given.corpus or Path(folder) / "corpus"
        if not place.exists():
            corpus.make(place)
        if given.index is not None:
            return _one(place, Path(folder) / "work", given.seed, given.index)
        return _many(place, Path(folder) / "work", given)


def _one(place: Path, work: Path, seed: int, index: int) -> int:
    outcome._called = _raising  # type: ignore[assignment]
    result = outcome.tried(place, work, seed, index, keep=True)
    print(json.dumps(result.to_json(), indent=1))
    return int(result.outcome in BAD)


def _raising(call: object, folder: Path, path: Path) -> tuple[str, BaseException | None]:
    import traceback

    from contextseg.errors import ContextsegError

    try:
        call(folder, path)  # type: ignore[operator]
    except ContextsegError as error:
        print(f"{call.__name__}: {error}")  # type: ignore[attr-defined]
        return outcome.ERROR, error
    except Exception as error:
        traceback.print_exc()
        return outcome.OTHER, error
    return outcome.RIGHT, None


def _many(place: Path, work: Path, given: argparse.Namespace) -> int:
    os.nice(0)
    chosen = [
        index
        for index in range(given.first, given.first + given.count)
        if given.reader in ("", outcome.reader_of(index))
    ]
    results = []
    began = time.monotonic()
    for result in pool.outcomes(place, work, given.seed, chosen):
        results.append(result)
        if result["outcome"] in BAD:
            line = [result[k] for k in ("outcome", "reader", "file", "damage", "where", "what")]
            print(f"--index {result['index']}:", *line, sep="  ", file=sys.stderr)
        if given.minutes and time.monotonic() - began > 60 * given.minutes:
            break
    facts = pool.summary(results)
    print(pool.table(facts))
    for name, count in facts["places"].items():
        print(f"{count:5}  {name}")
    if given.json:
        bad = [result for result in results if result["outcome"] in BAD]
        content = {"seed": given.seed, **facts, "bad": bad}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(any(result["outcome"] in BAD for result in results))


sys.exit(main())
