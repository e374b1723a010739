"""The docs build strictly as a site that loads nothing from elsewhere; links and anchors lead somewhere."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import iapo_dspy
from iapo_dspy import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = re.compile(r"""<(?:script|img|link|iframe)[^>]*\s(?:src|href)=["']?(?:https?:)?//(?!example)[^>]*>""")


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page",
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_relative_links_and_anchors_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_page_of_errors_has_each_error_once_and_its_remedy() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert list(sections) == [name for name in classes if getattr(errors, name).__module__ == errors.__name__]
    assert all("**Remedy**:" in section for section in sections.values())
    for name, section in sections.items():
        assert len(section) > 100, name


def test_the_api_pages_have_every_public_name() -> None:
    shown: set[str] = set()
    for page in (DOCS / "reference" / "api").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            shown |= {path.rpartition(".")[2], *getattr(pkgutil.resolve_name(path), "__all__", ())}
    raised = {name for name in vars(errors) if name[0].isupper()}  # they have a page of their own
    assert set(iapo_dspy.__all__) - raised - {"__version__"} <= shown


def test_the_nav_has_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.(?:md|ipynb)", config))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} <= listed


@pytest.mark.extra
def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")]
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADED.search(text), f"{page}: {LOADED.search(text)}"
        assert 'class="mermaid"' not in text  # the theme would load its drawer from elsewhere
        assert not re.search(r"""@import|url\(["']?(?:https?:)?//""", text) or page.suffix == ".html"
    assert "IAPO" in (tmp_path / "reference" / "api" / "optimizer.html").read_text(encoding="utf-8")
