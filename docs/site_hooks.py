"""What `mkdocs build` adds to the pages of docs/: the pages that lie elsewhere in the repository,
the API reference, and the promise that no page asks another host for anything."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCE = ROOT / "src" / "contextseg"

ELSEWHERE = {
    "index.md": ROOT / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "security.md": ROOT / "SECURITY.md",
    "benchmarks.md": ROOT / "benchmarks" / "RESULTS.md",
    "benchmarks-nnunet.md": ROOT / "benchmarks" / "agreement" / "NNUNET.md",
}
"""Pages of the site whose text lies outside docs/."""

NOT_REFERENCE = {"__init__", "__main__", "api", "cli", "demo_data"}
"""Rooms without a page of their own: the face is the first page, the command line is cli.md."""

OTHER_HOSTS = re.compile(r"https://(?:unpkg\.com|api\.github\.com)/")
"""What the theme's script would load for diagrams, old browsers and GitHub's stars."""


def rooms() -> list[str]:
    """The rooms with a page in the reference, in alphabetical order."""
    paths = [
        path
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or next(path.glob("**/*.py"), None)
    ]
    return sorted({path.stem for path in paths} - NOT_REFERENCE)


def modules(room: str) -> list[str]:
    """The modules of a room by their dotted names, the package itself first."""
    if not (SOURCE / room).is_dir():
        return [f"contextseg.{room}"]
    names = []
    for path in sorted((SOURCE / room).rglob("*.py")):
        if not (path.parent / "__init__.py").exists():
            continue  # files for another program, such as nnU-Net's trainers
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts[-1].startswith("_"):
            names.append(".".join(("contextseg", *parts)))
    return sorted(names)


def exported() -> list[tuple[str, str]]:
    """(name, module) of everything in `contextseg.__all__`, read without importing it."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    origin = {
        alias.asname or alias.name: node.module or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            names = [name for name in ast.literal_eval(node.value) if name != "__version__"]
    homes = face_modules()
    return [(name, homes.get(name, origin.get(name, "contextseg.api"))) for name in names]


def face_modules() -> dict[str, str]:
    """The module of each verb of `contextseg.api`."""
    tree = ast.parse((SOURCE / "api" / "__init__.py").read_text(encoding="utf-8"))
    return {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("contextseg.api.")
        for alias in node.names
        if node.module
    }


def face_page() -> str:
    """The first page of the reference: every name of `import contextseg as cs`."""
    parts = [
        "# The Python face",
        "Everything in `import contextseg as cs`. These names are stable "
        "([what stays compatible](../compatibility.md)). The other pages of this reference "
        "describe the inside, which may change.",
    ]
    names = exported()
    if names:
        parts.append(
            "\n".join(f"- [`cs.{name}`][{module}.{name}]" for name, module in sorted(names))
        )
    parts += [f"::: {module}" for module in sorted(set(face_modules().values()))]
    return "\n\n".join(parts) + "\n"


def room_page(room: str) -> str:
    """One room of the reference: each of its modules, a package with its own text alone."""
    parts = [f"# contextseg.{room}"]
    for name in modules(room):
        entry = f"::: {name}"
        if (ROOT / "src" / Path(*name.split("."))).is_dir():  # its names are on their own module
            entry += "\n    options:\n      members: false"
        parts.append(entry)
    return "\n\n".join(parts) + "\n"


def api_pages() -> dict[str, str]:
    """Every page of the reference by its address in the site."""
    pages = {"api/index.md": face_page()}
    return pages | {f"api/{room}.md": room_page(room) for room in rooms()}


def site_link(page: str, link: str, repo_url: str) -> str:
    """A link of a page's text as it has to be in the site.

    Args:
        page: The page's address in the site, such as "guide/train.md".
        link: A link to a file, relative to where the page's text lies, without an anchor.
        repo_url: Where the repository is; files that are not in the site are linked there.

    Returns:
        The link, relative to the page's address, or the file's address in the repository.
    """
    source = ELSEWHERE.get(page, DOCS / page)
    target = Path(os.path.normpath(source.parent / link))
    addresses = {path: address for address, path in ELSEWHERE.items()}
    if target in addresses:
        address = addresses[target]
    elif target == DOCS or target.is_dir():
        return f"{repo_url}/tree/main/{target.relative_to(ROOT).as_posix()}"
    elif target.is_relative_to(DOCS) and target.suffix != ".py":
        address = target.relative_to(DOCS).as_posix()
    else:
        return f"{repo_url}/blob/main/{target.relative_to(ROOT).as_posix()}"
    return Path(os.path.relpath(address, Path(page).parent)).as_posix()


def on_config(config: Any) -> Any:
    """Append the reference to the navigation."""
    pages: list[Any] = ["api/index.md", *(f"api/{room}.md" for room in rooms())]
    config.nav.append({"API": pages})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the reference, and those whose text lies outside docs/."""
    from mkdocs.structure.files import File

    texts = {page: path.read_text(encoding="utf-8") for page, path in ELSEWHERE.items()}
    for address, text in (texts | api_pages()).items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links of the site."""
    address = page.file.src_uri
    if address.startswith("api/"):
        return markdown

    def moved(match: re.Match[str]) -> str:
        return f"]({site_link(address, match[1], config.repo_url)}{match[2] or ''})"

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)


def on_post_build(config: Any) -> None:
    """Take the other hosts out of the theme's script, which no page of this site needs."""
    for path in Path(config.site_dir).rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        if OTHER_HOSTS.search(text):
            path.write_text(OTHER_HOSTS.sub("about:blank#", text), encoding="utf-8")
