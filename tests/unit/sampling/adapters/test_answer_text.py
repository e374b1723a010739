"""Laws of reading: what the adapter writes it reads again, and no text is read as what it does not say."""

from __future__ import annotations

import decimal
import string
import time
from typing import Any, Literal

import dspy
import hypothesis.strategies as st
import pytest
from dspy.utils.exceptions import AdapterParseError
from hypothesis import assume, given, settings

from iapo_dspy import PlainTextAdapter

AROUND = (
    "{}",
    " {}\n",
    "{}.",
    "**{}**",
    "'{}'",
    "<{}>",
    "Answer: {}",
    "**Answer:** {}",
    "The answer is {}.",
    "so it must be {}!",
    "label: {}",
    "`{}`\n\nThat follows.",
)
USED = {"answer", "the", "is", "so", "it", "must", "be", "label", "that", "follows", "or", "not", "nor", "non", "never"}
words = st.text(string.ascii_lowercase, min_size=2, max_size=8).filter(lambda word: word not in USED)
labels = st.lists(words, min_size=2, max_size=5, unique=True)
cases = st.sampled_from([str, str.upper, str.title])


def task(answer: Any) -> Any:
    return dspy.Signature({"text": (str, dspy.InputField()), "label": (answer, dspy.OutputField())}, "Go.")


def read(signature: Any, text: str, adapter: PlainTextAdapter | None = None) -> Any:
    """Return what is read; None for what is not."""
    try:
        return (adapter or PlainTextAdapter()).parse(signature, text)["label"]
    except AdapterParseError:
        return None


@settings(max_examples=40, deadline=None)
@given(labels, st.integers(0, 4), st.sampled_from(AROUND), cases)
def test_a_label_is_found_in_whatever_is_around_it(names: list[str], i: int, around: str, case: Any) -> None:
    label = names[i % len(names)]
    assert read(task(Literal[tuple(names)]), around.format(case(label))) == label


@settings(max_examples=40, deadline=None)
@given(labels, st.sampled_from(["{} or {}", "The answer is {} or {}.", "{}? {}?", "not {} and not {}"]))
def test_two_labels_are_none(names: list[str], around: str) -> None:
    assert read(task(Literal[tuple(names)]), around.format(*names[:2])) is None


@settings(max_examples=40, deadline=None)
@given(labels, st.text(max_size=60))
def test_any_text_is_a_label_or_unreadable(names: list[str], text: str) -> None:
    found = read(task(Literal[tuple(names)]), text)
    assert found is None or (found in names and found in text.casefold())


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=4, unique=True))
def test_labels_of_any_characters_are_read_as_they_are_written(names: list[str]) -> None:
    assume(all(name.strip() for name in names) and len({name.strip() for name in names}) == len(names))
    signature, adapter = task(Literal[tuple(names)]), PlainTextAdapter()
    for name in names:
        shown = adapter.format_assistant_message_content(signature, {"label": name})
        found = read(signature, shown)
        assert found in (name, None)
        assert found == name or not name.isalnum()


@given(st.decimals(-(10**12), 10**12, allow_nan=False, places=3), st.sampled_from(AROUND), st.booleans())
def test_numbers(number: decimal.Decimal, around: str, grouped: bool) -> None:
    found = read(task(str), around.format(f"{number:,}" if grouped else f"{number}"), PlainTextAdapter("number"))
    assert found is not None and decimal.Decimal(found) == number
    assert found == "0" or ("." not in found or found[-1] not in "0."), "canonical"
    assert found != "-0"


@given(st.integers(-(10**15), 10**15), st.sampled_from(AROUND))
def test_whole_numbers(number: int, around: str) -> None:
    assert read(task(int), around.format(number)) == number
    assert read(task(int), around.format(f"{number:,}")) == number


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from(["{} or {}", "{}, {}", "{}; {}", "{} and {}"]))
def test_two_numbers_are_none(one: int, two: int, around: str) -> None:
    assume(one != two)
    assert read(task(int), around.format(one, two)) is None


@given(st.text(alphabet="0123456789.,-+/%$e= \nx", max_size=40), st.sampled_from([int, float, str]))
def test_any_text_is_a_number_or_unreadable(text: str, kind: type) -> None:
    found = read(task(kind), text, PlainTextAdapter("number"))
    assert found is None or type(found) is kind


@given(st.text(max_size=60), st.sampled_from(["auto", "first_line", "last_line", "text"]))
def test_any_text_is_a_text_or_unreadable(text: str, how: Any) -> None:
    found = read(task(str), text, PlainTextAdapter(how))
    assert found is None if not text.strip() else found is None or found in text


@given(st.text(string.ascii_letters + " .\n", min_size=1), st.integers(-1000, 1000))
def test_reasoning_is_read_as_it_is_written(reasoning: str, number: int) -> None:
    assume(reasoning.strip())
    signature = dspy.ChainOfThought(task(int)).predict.signature
    adapter = PlainTextAdapter()
    shown = adapter.format_assistant_message_content(signature, {"reasoning": reasoning, "label": number})
    assert adapter.parse(signature, shown) == {"reasoning": dspy.Reasoning(content=reasoning.strip()), "label": number}


@pytest.mark.parametrize(
    "part", ["answer ", "= ", "not ", "the answer is aye ", "= 5 ", "**", "1,", "so  ", "9", "answer    ", "<a>"]
)
def test_long_texts_take_no_time(part: str) -> None:
    text = part * 5000 + "x"
    began = time.process_time()
    for kind in (int, str, Literal["aye", "nay"]):
        read(task(kind), text)
    assert time.process_time() - began < 2
