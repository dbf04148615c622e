"""The licences of everything that contextseg needs, into docs/licences.md.

    python tools/licences.py

What is listed is what is installed of contextseg's dependencies and of theirs, with all its extras
but those for development. A licence that is unknown, or that does not go with Apache-2.0, ends it
with 1, and fails a test.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
EXTRAS = ("cluster", "dicom", "onnx", "track")
ALLOWED = frozenset(
    [
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "HPND",
        "ISC",
        "LGPL-3.0-or-later",
        "MIT",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Python-2.0",
        "Unlicense",
        "Zlib",
    ]
)
"""Licences by their SPDX names. Libraries under the LGPL are used as they are, and replaceable."""
EXCEPTIONS = frozenset({"LLVM-exception"})
NVIDIA = ("nvidia-", "cuda-")
"""What comes with a build of torch for GPUs, under NVIDIA's terms; a build for CPUs needs none."""
_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


@dataclass(frozen=True)
class Dependency:
    """A package that contextseg needs.

    Attributes:
        name: Its name.
        licence: An SPDX expression, "NVIDIA's terms", or "" where it says none that is known.
        needed_by: "contextseg", "contextseg[EXTRA]", or the packages that need it.
    """

    name: str
    licence: str
    needed_by: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        """Whether its licence is known, and goes with Apache-2.0."""
        words = re.findall(r"[\w.+-]+", re.sub(r"\b(AND|OR|WITH)\b", " ", self.licence))
        known = bool(words) and set(words) <= ALLOWED | EXCEPTIONS
        return known or self.name.startswith(NVIDIA)


def licence_of(package: Distribution) -> str:
    """The licence of an installed package as an SPDX expression; "" where it is unknown."""
    facts = package.metadata
    if expression := facts.get("License-Expression"):
        return str(expression)
    text = str(facts.get("License") or "").strip()
    for word in [text, *(c.split("::")[-1].strip() for c in facts.get_all("Classifier") or [])]:
        if word in ALLOWED:
            return word
        if word in _WORDS:
            return _WORDS[word]
    return ""


def dependencies() -> list[Dependency]:
    """Everything installed that contextseg needs, by name."""
    found: dict[str, tuple[str, set[str]]] = {}
    waiting: list[tuple[str, str, str]] = []

    def add(package: Distribution, extras: tuple[str, ...], name: str) -> None:
        for text in package.requires or []:
            needed = Requirement(text)
            for extra in ("", *extras):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    by = f"{name}[{extra}]" if extra and name == "contextseg" else name
                    waiting.append((needed.name, ",".join(sorted(needed.extras)), by))
                    break

    add(distribution("contextseg"), EXTRAS, "contextseg")
    while waiting:
        name, extras, by = waiting.pop(0)
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name in found:
            found[name][1].add(by)
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:  # for another system
            continue
        nvidia = name.startswith(NVIDIA)
        found[name] = "NVIDIA's terms" if nvidia else licence_of(package), {by}
        add(package, tuple(extras.split(",")) if extras else (), name)
    return [
        Dependency(name, licence, tuple(sorted(by)))
        for name, (licence, by) in sorted(found.items())
    ]


def page(packages: list[Dependency]) -> str:
    """docs/licences.md."""
    rows = [f"| {p.name} | {p.licence or 'unknown'} | {', '.join(p.needed_by)} |" for p in packages]
    head = """# Licences

contextseg is under Apache-2.0. What it needs, and what that needs, written by `make licences` from
what is installed for a CPU; a test finds licences that are unknown or do not go together. Libraries
under the LGPL are used as they are, and can be replaced. A build of torch for GPUs brings NVIDIA's
libraries under NVIDIA's terms.

| package | licence | needed by |
|---|---|---|"""
    return "\n".join([head, *rows]) + "\n"


if __name__ == "__main__":
    every = dependencies()
    PAGE.write_text(page([p for p in every if not p.name.startswith(NVIDIA)]), encoding="utf-8")
    bad = [f"{p.name}: {p.licence or 'no licence that is known'}" for p in every if not p.allowed]
    print("\n".join(bad) or f"{len(every)} packages, all under licences that go with Apache-2.0")
    sys.exit(bool(bad))
