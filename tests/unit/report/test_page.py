"""The page of a report, without a browser."""

from __future__ import annotations

import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.report.page import changes, crossings, page_html
from tests.support.pages import small_page


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave Plotly's four million characters out."""
    offline = type(sys)("plotly.offline")
    offline.get_plotlyjs = lambda: "/* Plotly */"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plotly", type(sys)("plotly"))
    monkeypatch.setitem(sys.modules, "plotly.offline", offline)


def test_where_another_prompt_takes_the_lead() -> None:
    reward = ((0.6, 0.65, 0.66, 0.7), (0.5, None, 0.8, 0.7), (0.1, 0.7, 0.7, 0.7))
    assert crossings(reward) == ((2, 0, 2), (3, 2, 1))  # at N = 4 all are as good: the leader stays
    assert crossings(((None, None), (None, None))) == ()
    assert crossings(((None, 0.2), (None, 0.1))) == ()


@given(st.lists(st.lists(st.none() | st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_after_every_crossing_the_new_prompt_is_the_best_one(reward: list[list[int | None]]) -> None:
    rows = [tuple(None if v is None else float(v) for v in row) for row in reward]
    leader, told = None, {n: (before, after) for n, before, after in crossings(rows)}
    for n in range(1, 6):
        column = [-1.0 if row[n - 1] is None else float(row[n - 1] or 0.0) for row in rows]
        if n in told:
            assert told[n][0] == leader
            leader = told[n][1]
        elif leader is None and max(column) >= 0:
            leader = column.index(max(column))
        if leader is not None and max(column) >= 0:
            assert column[leader] == max(column)


def test_changes_word_by_word() -> None:
    assert changes("Answer the question.", "Answer the hard question now") == (
        ("same", "Answer the"), ("gone", "question."), ("new", "hard question now"),
    )  # fmt: skip
    assert changes("", "new words") == (("new", "new words"),)


@given(st.text("ab c\n"), st.text("ab c\n"))
def test_changes_hold_both_texts(before: str, after: str) -> None:
    found = changes(before, after)
    assert " ".join(t for k, t in found if k != "new").split() == before.split()
    assert " ".join(t for k, t in found if k != "gone").split() == after.split()


def test_no_text_of_a_run_is_taken_as_html_or_ends_the_script() -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)> $title ${data} & 'quoted'"
    html = page_html(small_page(title=evil, label=evil))
    assert "<img" not in html and "alert(1)</script>" not in html
    assert html.count("<script") == 3 and html.count("</script>") == 3
    (data,) = re.findall(r"<script id=\"data\" type=\"application/json\">(.*?)</script>", html, re.S)
    assert json.loads(data)["title"] == evil and json.loads(data)["prompts"][0]["label"] == evil


def test_the_page_says_all_that_it_was_given_without_scripts() -> None:
    html = page_html(small_page())
    for text in (
        "A budget ended the run early.", "one prompt has the best single completions",
        "From N=3 on, prompt 1 (Think first) is ahead of prompt 0 (Be brief).",
        "2 of 12 completions failed", "TimeoutError: &lt;late&gt;", "25.0%", "The same as the student's.",
        "<span>Be</span> <del>brief</del> <ins>slow</ins>", "x 4",
    ):  # fmt: skip
        assert text in html, text
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", html)  # nothing is fetched
    assert "default-src 'none'" in html


def test_without_plotly_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'iapo_dspy\[report\]'"):
        page_html(small_page())


def test_a_page_without_confidence_hides_its_section() -> None:
    html = page_html(small_page())
    assert re.search(r'<section id="confidence"[^>]* hidden>', html) and '<a href="#confidence" hidden>' in html
