"""Documentation that runs, generated pages that are what the code says, and a site that builds."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import logging
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import griffe
import pytest
import yaml

import contextseg
from test_rooms import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MODULES = [
    m.name
    for m in pkgutil.walk_packages(contextseg.__path__, "contextseg.")
    if not m.name.endswith("__main__")
]
PAGES = sorted(DOCS.rglob("*.md"))
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
FENCE = re.compile(r"^ *```.*?^ *```\s*$", flags=re.S | re.M)


def script(name: str) -> ModuleType:
    """A module of docs/, which is no package; its modules import one another."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def python_blocks(text: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M))


# --- code -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_code_in_the_pages_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python blocks of a page, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    code = python_blocks(read(page))
    if ">>>" in code:
        test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
        assert doctest.DocTestRunner().run(test).failed == 0
    else:
        exec(compile(code, str(page), "exec"), {"__name__": page.stem})


def test_the_readme_uses_names_of_the_face() -> None:
    code = python_blocks(read(ROOT / "README.md"))
    compile(code, "README.md", "exec")
    names = set(re.findall(r"\bcs\.(\w+)", code))
    assert names
    assert names <= set(contextseg.__all__)


def test_generated_pages_are_up_to_date() -> None:
    for path, text in script("generate").pages().items():
        assert read(path) == text, f"{path.name} is stale: run make docs"


# --- text -----------------------------------------------------------------------------------------


def test_links_between_pages_lead_somewhere() -> None:
    """Files, and headings of pages."""
    for page in [*PAGES, *OUTSIDE]:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", FENCE.sub("", read(page))):
            if "://" in link:
                continue
            target = (page.parent / link).resolve() if link else page
            assert target.exists(), f"{page.name} -> {link}"
            if anchor:
                assert anchor[1:] in anchors(target), f"{page.name} -> {link}{anchor}"


@cache
def anchors(page: Path) -> frozenset[str]:
    """The addresses of a page's headings, by the rule of GitHub."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), flags=re.M)
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    )


@pytest.mark.parametrize("page", [*PAGES, *OUTSIDE], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_prose_has_at_most_100_columns(page: Path) -> None:
    """Tables, code, and what cannot be broken, such as an address, may be longer."""
    long = []
    for line in FENCE.sub("", read(page)).splitlines():
        breakable = re.sub(r"`[^`]*`|\]\([^)]*\)", "_", line.strip())
        if len(line) > 100 and not line.startswith(("|", "#", "!")) and " " in breakable:
            long.append(line)
    assert long == []


def test_every_record_of_a_decision_is_in_the_index() -> None:
    records = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    index = read(DOCS / "decisions" / "README.md")
    assert len({record.name[:4] for record in records}) == len(records)
    for record in records:
        number = int(record.name[:4])
        text = read(record)
        title = text.splitlines()[0]
        assert title.startswith(f"# {number:04d}. ")
        assert f"[{number:04d}]({record.name}) | {title[8:]} |" in index
        assert re.search(r"^20\d\d-\d\d-\d\d, (in force|superseded)", text, flags=re.M)
        headings = re.findall(r"^## (.+)$", text, flags=re.M)
        assert headings == ["Context", "Decision", "Consequence"]


def test_the_picture_of_the_house_has_the_rooms_that_are_tested() -> None:
    [picture] = FENCE.findall(read(DOCS / "decisions" / "0022-the-house-second-form.md"))
    rooms = {room for floor in FLOORS for room in floor}
    assert rooms <= set(re.findall(r"\w+", picture))


# --- docstrings and the site ----------------------------------------------------------------------


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for name in MODULES:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if (
                not key.startswith("_")
                and getattr(value, "__module__", None) == name
                and not getattr(value, "__doc__", None)
            ):
                missing.append(f"{name}.{key}")
    assert missing == []


def site_settings() -> dict:
    return yaml.safe_load(read(ROOT / "mkdocs.yml"))


def test_the_docstring_parser_has_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    """Every public object, with the options of the site."""
    [handlers] = [p["mkdocstrings"] for p in site_settings()["plugins"] if "mkdocstrings" in p]
    options = handlers["handlers"]["python"]["options"]
    extensions = griffe.load_extensions(*[str(ROOT / path) for path in options["extensions"]])
    package = griffe.load("contextseg", search_paths=[ROOT / "src"], extensions=extensions)

    def visit(item: griffe.Object) -> None:
        if item.docstring:
            item.docstring.parse(options["docstring_style"], **options["docstring_options"])
        for name, member in item.members.items():
            if not member.is_alias and (not name.startswith("_") or name == "__init__"):
                visit(member)

    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="griffe"):
        visit(package)
    assert [record.getMessage() for record in caplog.records] == []


def test_every_room_has_a_page_in_the_reference() -> None:
    pages = "\n".join(script("site_hooks").api_pages().values())
    inside = "contextseg.cli"
    public = {name for name in MODULES if not name.startswith(inside)} - {"contextseg.api"}
    documented = set(re.findall(r"^::: (\S+)", pages, flags=re.M))
    assert {name for name in public if "._" not in name} <= documented
    for name in set(contextseg.__all__) - {"__version__"}:
        assert f"`cs.{name}`" in pages


def test_the_site_asks_no_other_host_by_its_settings() -> None:
    settings = site_settings()
    assert settings["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript", "extra"} & set(settings)
    source = read(DOCS / "overrides" / "partials" / "source.html")
    assert "data-md-component" not in source  # the theme's script would ask for GitHub's stars


def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "index.html").exists()

    fetched = {
        # What a browser loads by itself: everything with an address but links to click.
        ".html": r"<(?!a\b)[a-z]+\b[^>]*?\s(?:src|href|srcset|action)=[\"']?(?:https?:)?//[^>]*>",
        ".css": r"(?:url\([\"']?|@import\s+[\"'])(?:https?:)?//[^)\"']*",
        ".js": r"https?://(?:unpkg|api\.github|cdn|fonts)[^\"'`\s]*",
        ".svg": r"(?:href|src)=[\"'](?:https?:)?//[^\"']*",
    }
    for path in tmp_path.rglob("*"):
        pattern = fetched.get(path.suffix)
        if pattern:
            assert re.findall(pattern, read(path)) == [], path.relative_to(tmp_path)
