"""Texts that look the same are one text: the table of pairs, and characters that nobody sees."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import close
from iapo_dspy.scoring.answers.normalize import answer_key, normalize_answer
from iapo_dspy.scoring.answers.text import normalize_text, stream_safe, unwrapped, visible
from tests.support.answer_pairs import PAIRS

ROWS = [(kind, *row) for kind, rows in PAIRS.items() for row in rows]


def test_the_table_is_large_and_has_both_sides_of_every_kind() -> None:
    assert len(ROWS) >= 200 and len({row[2:] for row in ROWS}) == len(ROWS)
    for place in range(3):
        verdicts = [verdict[place] for _, verdict, _, _ in ROWS]
        assert min(verdicts.count("="), verdicts.count("/")) >= 50
    for kind, rows in PAIRS.items():
        assert {verdict[1] for verdict, _, _ in rows} == {"=", "/"}, kind


@pytest.mark.parametrize(("kind", "verdict", "one", "other"), ROWS)
def test_the_default_of_votes(kind: str, verdict: str, one: str, other: str) -> None:
    assert (answer_key(one) == answer_key(other)) == (verdict[0] == "=")


@pytest.mark.parametrize(("kind", "verdict", "one", "other"), ROWS)
def test_a_tolerance(kind: str, verdict: str, one: str, other: str) -> None:
    a, b = normalize_answer(one), normalize_answer(other)
    assert (a == b or close(absolute=1e-9)(a, b)) == (verdict[2] == "=")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("10\u00b2", "10^2"),
        ("2\u207b\u00b9\u2070", "2^-10"),
        ("10\u00b23", "10^(2)3"),
        ("log\u2082 8", "log_2 8"),
        ("CO\u2082", "CO2"),
        ("3\u00be", "3 3/4"),
        ("\u339e", "km"),
        ("5 \u33a2", "5 km^2"),
        ("\u0661\u066b\u0665", "1.5"),
        ("1\u202f234", "1234"),
        ("a\u200bb\u2060c\ufeff\u00ad\u061c", "abc"),
        ("\u202e12\u202c", "12"),
        ("\u2012\u2013\u2212\u2010\u2011", "-----"),
        ("\U0001d7d9", "1"),
    ],
)
def test_characters_in_few_ones(text: str, seen: str) -> None:
    assert visible(text) == seen


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        (" **(B)**. ", "(B)"),
        ("$x$", "x"),
        ("$$x$$", "$$x$$"),
        ("$5 and $6", "$5 and $6"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} + \boxed{2}", r"\boxed{1} + \boxed{2}"),
        ("etc...", "etc..."),
        ("$\\text{Paris}$.", "Paris"),
    ],
)
def test_what_surrounds_the_whole_text_goes(text: str, inner: str) -> None:
    assert unwrapped(text) == inner


@given(st.text(max_size=40))
def test_a_second_time_changes_nothing(text: str) -> None:
    once = visible(text)
    assert visible(once) == once
    assert answer_key(text) == answer_key(text + "\u200b") == answer_key("\u2066" + text + "\u2069")


@given(st.text(alphabet="ab\u0301\u0323\u00e9", max_size=30))
def test_short_rows_of_combining_marks_are_those_of_unicode(text: str) -> None:
    assert visible(text) == unicodedata.normalize("NFKC", text)
    assert stream_safe(text) == text


@pytest.mark.parametrize("marks", ["\u0301", "\u0301\u0327", "\u0344", "\u0323\u0302"])
def test_many_combining_marks_take_no_time(marks: str) -> None:
    start = time.perf_counter()
    assert normalize_text("\u1ec7" + marks * 10**5)
    assert time.perf_counter() - start < 2


def test_half_surrogate_pairs_have_keys_that_can_be_stored() -> None:
    keys = [answer_key(text) for text in ("\ud83d ok", "\ud83e ok", " ok")]
    assert len(set(keys)) == 3 and all(str(key).encode() for key in keys)
    assert str(answer_key(["\ud83d"])).encode() and answer_key("\u200b\u200d") is None
