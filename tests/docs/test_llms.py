"""`docs/llms.txt` follows the convention of llmstxt.org, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "llms.txt").read_text(encoding="utf-8")
LINK = re.compile(r"- \[([^\]]+)\]\(([^)]+)\): (\S.*\.)")


def test_it_has_a_title_a_summary_and_sections_of_links_with_a_sentence_each() -> None:
    title, _, summary, *rest = TEXT.splitlines()
    assert title == "# iapo_dspy" and summary.startswith("> ")
    body = TEXT[TEXT.index("\n## ") :].splitlines()
    assert all(not line or line.startswith("## ") or LINK.fullmatch(line) for line in body)
    assert sum(line.startswith("## ") for line in rest) >= 3


def test_each_link_leads_to_a_file_and_none_comes_twice() -> None:
    targets = [path for _, path, _ in LINK.findall(TEXT)]
    assert len(set(targets)) == len(targets) > 10
    assert [path for path in targets if not (DOCS / path).is_file()] == []


def test_every_page_of_the_reference_and_of_the_explanation_is_listed() -> None:
    pages = {
        page.relative_to(DOCS).as_posix()
        for part in ("reference", "explanation")
        for page in (DOCS / part).glob("*.md")
        if page.name != "index.md"
    }
    assert pages <= {path for _, path, _ in LINK.findall(TEXT)}
