"""Answers that are equal by more than their keys: tolerances, mathematics, functions of the user."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import MajorityVote, close, math_equal
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.answers.equality import KeyedAnswer, Pairs, number_of
from tests.support.selecting import select


def chosen(vote: MajorityVote, *answers: Any) -> Any:
    return select(vote, {}, [dspy.Prediction(answer=a) for a in answers], np.ones(1))


# -- tolerances


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), ("2.50", 2.5), (" 1,234.5 ", 1234.5), ("\N{MINUS SIGN}3", -3.0), ("7.", 7.0), ("1e3", 1000.0)],
)
def test_numbers_and_text_that_is_one(value: Any, number: float) -> None:
    assert number_of(value) == number


@pytest.mark.parametrize("value", [True, None, "one", "1,2", "", [1], "12,34", "101_2", "3..", "10\u00b2"])
def test_text_that_is_not_a_number(value: Any) -> None:
    assert number_of(value) is None


def test_numbers_within_a_tolerance_are_one_answer_and_the_first_leads() -> None:
    found = chosen(MajorityVote("answer", tolerance=0.01), 1.5, 3.14, 3.149, 3.151, 3.131)
    assert found.index == 1 and found.votes == {"3.14": 3, "1.5": 1, "3.151": 1}
    assert chosen(MajorityVote("answer", tolerance=0.01), "2.0", "3.14", "3.1415").index == 1


def test_relative_absolute_and_nested() -> None:
    both = close(absolute=0.1, relative=0.01)
    assert both(1000, 1010) and not both(1000, 1011) and both(0, 0.1) and not both(0, 0.11)
    assert both([1, {"a": 2.0}], (1.05, {"a": 2.05})) and not both([1], [1, 1]) and not both({"a": 1}, {"b": 1})
    assert both("Paris", "Paris") and not both("Paris", "Rome") and not both(1, "one") and both(None, None)


def test_tolerances_are_exact_however_large_a_number_is() -> None:
    near = close(absolute=0.1)
    assert near(0.8, 0.7) and near("0.8", "0.7") and not near(0.8, 0.699)  # as written, not as binary floats
    assert not near("12345678901234567890", "12345678901234567891") and near(10**400, 10**400)
    assert not near("1e400", "1e500") and not near("1e999999999", "-1e999999999") and not near(10**5000, 10**5000 + 1)
    assert close(relative=0.1)("1e400", "1.05e400") and near("inf", float("inf")) and not near("inf", "-inf")
    assert not near("nan", "nan") and near("\u22125", -5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tolerance": 0},
        {"tolerance": -1.0},
        {"tolerance": float("nan")},
        {"tolerance": True},
        {"tolerance": 0.1, "equal": close(absolute=1)},
        {"equal": "close"},
        {"equal": lambda a: True},
    ],
)
def test_what_cannot_be_an_equality_is_refused(arguments: Any) -> None:
    with pytest.raises(ConfigurationError):
        MajorityVote("answer", **arguments)


@pytest.mark.parametrize("arguments", [{}, {"absolute": -1}, {"relative": float("inf")}, {"absolute": True}])
def test_close_needs_a_limit(arguments: Any) -> None:
    with pytest.raises(ConfigurationError, match="close"):
        close(**arguments)


# -- functions of the user


def test_a_users_equality_sees_normalized_answers_and_each_pair_once() -> None:
    asked: list[tuple[Any, Any]] = []

    def same_length(a: list[str], b: list[str]) -> bool:
        asked.append((a, b))
        return len(a) == len(b)

    vote = MajorityVote("answer", equal=same_length)
    for _ in range(3):
        found = chosen(vote, ["A"], ["b", "c"], ["d", "E"], ["A."], ["a"])
        assert found.index == 0 and list(found.votes.values()) == [3, 2]
    assert asked == [(["a"], ["b", "c"]), (["a"], ["d", "e"]), (["b", "c"], ["d", "e"])]


def test_an_equality_that_raises_fails_the_completion_and_not_the_call() -> None:
    def fussy(a: str, b: str) -> bool:
        if b == "boom":
            raise RuntimeError("cannot compare boom")
        return a == b

    vote = MajorityVote("answer", equal=fussy)
    found = chosen(vote, "x", "boom", "y", "y")
    assert found.index == 2 and found.votes == {"y": 2, "x": 1}
    assert found.failures == {1: "RuntimeError: cannot compare boom"}
    assert vote.settled([vote.read({}, dspy.Prediction(answer=a)) for a in ("x", "x", "boom")], np.ones(1), 1)


def test_pairs_can_be_copied_and_used_from_many_threads() -> None:
    pairs = Pairs(close(absolute=1))
    one, two = KeyedAnswer("1", 1), KeyedAnswer("2", 2)
    assert pairs(one, two)
    assert copy.deepcopy(pairs)(one, two) and pickle.loads(pickle.dumps(pairs))(one, two)
    wrong: list[int] = []

    def work(start: int) -> None:
        for i in range(start, start + 300):
            if pairs(KeyedAnswer(str(i % 50), i % 50), KeyedAnswer(str(i % 53), i % 53)) != (abs(i % 50 - i % 53) <= 1):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(7 * t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- mathematics


MATH = math_equal()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.5"),
        (r"$\frac{1}{2}$", r"\dfrac{2}{4}"),
        (r"\boxed{42}", "42"),
        (r"x^2 + 2x + 1", r"(x+1)^2"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("no formula at all?", "No formula at all?"),
        (7, "7"),
    ],
)
def test_equal_mathematics_is_one_answer(one: Any, other: Any) -> None:
    assert MATH(one, other) and MATH(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1/2", "1/3"), (r"\sqrt{8}", "3"), ("x", "y"), ("(1, 2)", "(2, 1)"), ("A", "B"), ("listen", "silent")],
)
def test_other_mathematics_is_another_answer(one: str, other: str) -> None:
    assert not MATH(one, other)


def test_case_and_symbols_of_formulas_survive() -> None:
    vote = MajorityVote("answer", equal=MATH)
    assert vote.read({}, dspy.Prediction(answer=r" \Delta ")).answer == r"\Delta"
    assert chosen(vote, "3", r"\frac{1}{2}", "0.5", "1/2").index == 1


def test_mathematics_works_in_threads_where_signals_do_not() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(MATH(r"\frac{3}{4}", "0.75")))
    thread.start()
    thread.join(timeout=30)
    assert found == [True]


def test_a_missing_library_is_said_when_the_vote_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigurationError, match=r"iapo_dspy\[math\]"):
        math_equal()


@pytest.mark.parametrize("digits", [0, True, 1.5])
def test_digits_are_a_whole_number(digits: Any) -> None:
    with pytest.raises(ConfigurationError, match="digits"):
        math_equal(digits=digits)
