"""Brings files into the site that its pages link to and that lie outside of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages at the root of the repository, and the examples as files to read."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Lead links to files outside of the folder to their places on the site."""
    if page.file.src_uri in PAGES.values():
        return markdown.replace("](docs/", "](").replace("`docs/", "`")
    up = "../" * page.file.src_uri.count("/")
    for name, place in {**PAGES, "examples/": "examples/", "examples)": "examples/quickstart.py)"}.items():
        markdown = markdown.replace(f"]({up}../{name}", f"]({up}{place}")
    return markdown
