"""Every benchmark, one after the other, into RESULTS.md: nothing in that file is typed by hand.

Each script offers `rows(quick)`: (claim, input, ours, the peer's, the peer's name), in seconds, or
in MB or slices/s where the claim ends so. It runs in a process of its own, on one thread; if it
fails, the rows that it gave and those of the others stand, and the file says what failed.

    python benchmarks/run.py              all of them, at full size, into benchmarks/RESULTS.md
    python benchmarks/run.py --quick      small inputs, to see that all work; printed, not written
    python benchmarks/run.py training     only some, printed
    python benchmarks/run.py training --write   and written: a section of its own in RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCRIPTS = (
    "logits",
    "training",
    "colab",
    "propagation",
    "filling",
    "augment",
    "preprocessing",
    "distances",
    "threads",
    "refill",
    "annotate",
)
RESULTS = Path(__file__).with_name("RESULTS.md")
OURS = ("contextseg", "torch", "numpy", "scipy", "edt", "connected-components-3d")
PEERS = (
    "nnunetv2",
    "batchgeneratorsv2",
    "dynamic-network-architectures",
    "monai",
    "surface-distance",
    "medpy",
    "itk-morphologicalcontourinterpolation",
)
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
METHOD = (
    "Both sides had the same input in one run, in turn, round by round, or (logits, preprocessing) "
    "each in a process of its own. Numbers are medians: seconds of CPU time on one thread (wall "
    "time where the input says so or names a GPU), or MB of peak memory above that of the imports, "
    "or slices a second, or a mean Dice. Above a ratio of 1, ours is faster, smaller or more "
    "accurate."
)
Row = tuple[str, str, float, float, str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the benchmarks and write benchmarks/RESULTS.md."
    )
    parser.add_argument(
        "scripts", nargs="*", metavar="SCRIPT", help=f"only these, printed: {', '.join(SCRIPTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs; printed, not written")
    parser.add_argument(
        "--write", action="store_true", help="of some, a section each in RESULTS.md; the rest stays"
    )
    parser.add_argument("--output", type=Path, help="write to this file in any case")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.scripts[0], asked.quick, asked.child)
    if unknown := set(asked.scripts) - set(SCRIPTS):
        parser.error(
            f"no such script: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}"
        )
    if asked.write and (asked.quick or not asked.scripts):
        parser.error("--write is for scripts that are named, at full size")
    rows, failures = [], {}
    for name in asked.scripts or SCRIPTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows_of_script, why = run(name, asked.quick)
        rows += rows_of_script
        if why:
            failures[name] = why
        if asked.write:
            old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
            part = body(rows_of_script, {name: why} if why else {}, facts())
            RESULTS.write_text(with_section(old, name, part), encoding="utf-8")
    page = markdown(rows, failures, facts(), asked.quick)
    output = asked.output or (None if asked.quick or asked.scripts else RESULTS)
    if output:
        output.write_text(page, encoding="utf-8")
    print(page)
    return 1 if failures else 0


# --- one script, in a process of its own ----------------------------------------------------------


def run(name: str, quick: bool) -> tuple[list[Row], str]:
    """The rows of a script as far as it got, and why there are no more: "" if it finished."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.jsonl"
        command = [
            sys.executable,
            __file__,
            name,
            "--child",
            str(out),
            *(["--quick"] if quick else []),
        ]
        status = subprocess.run(
            command, env=os.environ | dict.fromkeys(THREADS, "1"), check=False
        ).returncode
        lines = (
            [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
            if out.exists()
            else []
        )
    rows = [
        (claim, given, ours, theirs, peer) for claim, given, ours, theirs, peer in lines if claim
    ]
    whys = [why for claim, why, *_ in lines if not claim]
    if status and not whys:
        whys = [f"its process ended with status {status}"]
    return rows, "; ".join(whys) or ("" if rows else "no rows: its peers are not installed")


def child(name: str, quick: bool, out: Path) -> int:
    """Write each row as it comes, so that it is not lost; a failure is a row without a claim."""
    with open(out, "w", encoding="utf-8", buffering=1) as file:
        try:
            for row in import_module(name).rows(quick):
                file.write(json.dumps(row) + "\n")
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, subprocess.CalledProcessError):  # its text holds a long command
                why = f"a process of it ended with status {error.returncode}"
            file.write(json.dumps(["", why, 0, 0, ""]) + "\n")
            return 1
    return 0


# --- the page -------------------------------------------------------------------------------------


def facts() -> dict[str, str]:
    """Date, machine, threads and versions."""
    import torch  # so that the machine's line names the GPU

    from contextseg.provenance import machine

    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Machine": machine(),
        "Threads": "one on each side"
        + (", but for rows on the GPU" if torch.cuda.is_available() else ""),
        "Versions": _versions(("python", *OURS)),
        "Peers": _versions(PEERS),
    }


def _versions(names: Iterable[str]) -> str:
    out = []
    for name in names:
        try:
            number = ".".join(map(str, sys.version_info[:3])) if name == "python" else version(name)
        except PackageNotFoundError:
            number = "not installed"
        out.append(f"{name} {number}")
    return ", ".join(out)


def markdown(
    rows: Sequence[Row], failures: Mapping[str, str], facts: Mapping[str, Any], quick: bool = False
) -> str:
    """The page: facts, how it was measured, one line for each row, and what failed."""
    note = (
        ["**Quick run: small inputs, which say that all works and nothing about speed.**", ""]
        if quick
        else []
    )
    head = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`benchmarks/run.py`); not edited by hand.",
        "",
        *note,
    ]
    return "\n".join([*head, body(rows, failures, facts)])


def with_section(page: str, name: str, body: str) -> str:
    """The page with a section for a script that was run alone, in place of an older one."""
    kept = re.sub(
        rf"^## {re.escape(name)}, run alone\n.*?(?=^## |\Z)",
        "",
        page,
        flags=re.DOTALL | re.MULTILINE,
    )
    return f"{kept.rstrip()}\n\n## {name}, run alone\n\n{body.replace('## Failed', '### Failed')}"


def body(rows: Sequence[Row], failures: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """A page without its head."""
    table = ["| claim | input | ours | peer | ratio | which peer |", "|---|---|--:|--:|--:|---|"]
    for claim, given, ours, theirs, peer in rows:
        unit = next((u for u in ("MB", "slices/s", "Dice") if claim.endswith(u)), "s")
        worse, better = (theirs, ours) if unit in ("slices/s", "Dice") else (ours, theirs)
        ratio = f"**{_ratio(better / worse)}**" if ours > 0 and theirs > 0 else "–"
        claim = claim.removesuffix(", s").removesuffix(", slices/s")
        cells = [claim, given, _number(ours, unit), _number(theirs, unit), ratio, peer]
        table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    failed = [f"- {name}: {' '.join(why.split())}" for name, why in failures.items()]
    return "\n".join(
        [
            *[f"- {name}: {value}" for name, value in facts.items()],
            "",
            METHOD,
            "",
            *table,
            *(["", "## Failed or left out", "", *failed] if failed else []),
            "",
        ]
    )


def _number(value: float, unit: str) -> str:
    if unit == "Dice":
        return f"{value:.3f}"
    if unit == "s" and value < 1:
        value, unit = 1000 * value, "ms"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
