"""What is known of the dependencies: vulnerabilities and licences."""

from __future__ import annotations

import json
import subprocess
from email.message import Message
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return import_module("audit")


@pytest.fixture
def licences(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return import_module("licences")


def test_a_vulnerability_is_told_and_fails(audit: ModuleType) -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["2.1"]}
    packages = [
        {"name": "a", "version": "2.0", "vulns": [found]},
        {"name": "b", "version": "1.0", "vulns": []},
        {"name": "c", "skip_reason": "Dependency not found on PyPI"},
    ]
    code, text = audit.report(json.dumps({"dependencies": packages}))
    assert code == 1
    assert text.splitlines() == [
        "a 2.0: PYSEC-1, mended in 2.1",
        "2 of 3 packages audited, 1 known vulnerabilities; the advisories do not know 1",
    ]
    assert audit.report(json.dumps({"dependencies": packages[1:]}))[0] == 0


def test_where_nothing_can_be_audited_it_says_so(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(audit, "find_spec", lambda name: None)
        assert audit.audit() == (
            0,
            "not audited: pip-audit is not installed (pip install 'contextseg[audit]')",
        )
    monkeypatch.setattr(audit, "find_spec", lambda name: True)
    answers: list[Any] = [
        SimpleNamespace(stdout="", stderr="trace\nConnectionError: no route", returncode=1),
        subprocess.TimeoutExpired("pip_audit", 1),
    ]

    def run(*_: object, **__: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    assert "ConnectionError: no route" in audit.audit()[1]
    code, text = audit.audit()
    assert (code, text.partition(":")[0]) == (0, "not audited")


def test_every_licence_is_known_and_goes_with_ours(licences: ModuleType) -> None:
    packages = licences.dependencies()
    assert {"torch", "numpy", "pydicom", "highdicom", "starlette"} <= {p.name for p in packages}
    assert [(p.name, p.licence) for p in packages if not p.allowed] == []


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND (MIT OR Zlib)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("LGPL-3.0-or-later", True),
        ("GPL-3.0-or-later", False),
        ("MIT AND AGPL-3.0-only", False),
        ("LicenseRef-Proprietary", False),
        ("", False),
    ],
)
def test_licences_that_do_not_go_together_are_found(
    licences: ModuleType, licence: str, allowed: bool
) -> None:
    assert licences.Dependency("a", licence, ()).allowed == allowed


def test_where_a_package_says_its_licence(licences: ModuleType) -> None:
    def package(**facts: str) -> Any:
        metadata = Message()
        for name, value in facts.items():
            metadata[name.replace("_", "-")] = value
        return SimpleNamespace(metadata=metadata)

    assert licences.licence_of(package(License_Expression="MIT")) == "MIT"
    assert licences.licence_of(package(License="Apache 2.0")) == "Apache-2.0"
    classifier = "License :: OSI Approved :: BSD License"
    assert licences.licence_of(package(License="Copyright ...", Classifier=classifier)) == (
        "BSD-3-Clause"
    )
    assert licences.licence_of(package(License="Ours alone")) == ""


def test_the_page_lists_what_is_installed(licences: ModuleType) -> None:
    """Rows of packages that other systems need may differ; those that we name may not."""
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    for package in licences.dependencies():
        if any(by.startswith("contextseg") for by in package.needed_by):
            assert f"\n| {package.name} | {package.licence} |" in page, "call `make licences`"
