"""Keys of answers of every type, and typed fields that were left as text."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import fractions
from collections.abc import Callable
from typing import Any, Literal, Optional, Union

import dspy
import numpy as np
import pydantic
import pytest

from iapo_dspy.errors import ScoreError
from iapo_dspy.scoring.answers.normalize import answer_key, is_countable_type, normalize_answer, parsed
from iapo_dspy.scoring.strategies import MajorityVote
from tests.support.selecting import select


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Grade(str, enum.Enum):
    A = "a"


class Place(pydantic.BaseModel):
    city: str
    zip: int | None = None


class Trip(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    stops: list[Place]
    tags: set[str] = set()


class Other(pydantic.BaseModel):
    city: str
    zip: int | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float
    seen: int = dataclasses.field(default=0, compare=False)


SAME = [
    (True, np.bool_(True)),
    (4, 4.0),
    (4.0, np.float64(4)),
    (0.0, -0.0),
    (decimal.Decimal("2.50"), 2.5),
    (fractions.Fraction(4, 2), 2),
    (["Paris ", "Rome"], ["paris", "rome."]),
    ([1, 2.0], (1.0, 2)),
    (np.array([1.0, 2.0]), [1, 2]),
    ({"b", "a"}, {"a", "b"}),
    (frozenset({1, 2}), {2.0, 1}),
    ({"a": 1, "b": ["X"]}, {"b": ["x"], "a": 1.0}),
    (Place(city="Paris"), Place(city=" PARIS")),
    (Trip(stops=[Place(city="a"), Place(city="b", zip=1)], tags={"x", "y"}, extra=1),) * 2,  # type: ignore[call-arg]
    (Trip(stops=[], tags={"x", "y"}, note="Hm"), Trip(stops=[], tags={"y", "X"}, note="hm.")),  # type: ignore[call-arg]
    (Point(1, 2.0, seen=1), Point(1.0, 2, seen=9)),
    (Colour.RED, Colour("r")),
    ([Colour.RED, None], [Colour["RED"], None]),
    ([[1, [2]], {"a": [{"b": 1}]}], [[1.0, [2.0]], {"a": [{"b": True - 0}]}]),
]
DIFFERENT = [
    (True, 1),
    (1, 2),
    (0.1, 0.10001),
    (["a", "b"], ["b", "a"]),
    (["a", "b"], ["a, b"]),
    (["1"], [1]),
    (["a"], "a"),
    ([], None),
    ({"a": 1}, {"a": 2}),
    (Place(city="Paris", zip=1), Place(city="Paris")),
    (Place(city="Paris"), Other(city="Paris")),
    (Place(city="Paris"), {"city": "Paris", "zip": None}),
    (Colour.RED, Colour.BLUE),
    (Point(1, 2), Point(2, 1)),
    (float("inf"), float("-inf")),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_values_have_equal_keys(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) == answer_key(other, normalize_answer)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values_have_different_keys(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) != answer_key(other, normalize_answer)


def test_what_cannot_be_told_apart_says_so() -> None:
    with pytest.raises(ScoreError, match="NaN"):
        answer_key(float("nan"))
    with pytest.raises(ScoreError, match="told apart"):
        answer_key({"a": [object()]})


def test_a_str_enum_is_its_member_and_not_its_text() -> None:
    assert answer_key(Grade.A) == "Grade.A"


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        (" 3.50 ", float, 3.5),
        ("4.0", int, 4),
        ("yes", bool, True),
        ("2", Literal[1, 2], 2),
        ("no", Literal["yes", "no"], "no"),
        ("r", Colour, Colour.RED),
        ("BLUE", Colour, Colour.BLUE),
        ('["a", "b"]', list[str], ["a", "b"]),
        ("[1, 2]", set[int], {1, 2}),
        ('{"city": "Rome"}', Place, Place(city="Rome")),
        ("null", Optional[int], None),  # noqa: UP045
        ("7", Union[int, list[int]], 7),  # noqa: UP007
        ("7", int | str, "7"),
        ("7", str, "7"),
        ("7", Any, "7"),
        ("7", None, "7"),
        (7, float, 7),
        ("", float, ""),
        ("about three", float, "about three"),
        ("7", type("Bare", (), {}), "7"),
    ],
)
def test_text_is_read_as_the_field_is_typed(text: Any, annotation: Any, value: Any) -> None:
    found = parsed(text, annotation)
    assert found == value and type(found) is type(value)


def test_a_typed_field_as_text_is_counted_with_its_values() -> None:
    vote = MajorityVote("answer").fitted({"answer": float})
    read = [vote.read({}, dspy.Prediction(answer=a)) for a in ("3.0", 3, "$3.00", "")]
    assert [s.answer for s in read] == ["3", "3", "$3.00", None] and "empty" in str(read[3].failure)
    custom = MajorityVote("answer", normalize=lambda text: text.strip("$")).fitted({"answer": float})
    assert custom.read({}, dspy.Prediction(answer="$3.50")).answer == "3.50"  # a normalize gets what there is


@pytest.mark.parametrize(
    "drawn",
    [
        [1, 2, 2.0],
        [False, True, np.bool_(True)],
        [[1], [1, 2], (1, 2)],
        [{"a": 1}, {"a": 2}, {"a": 2.0}],
        [{1}, {1, 2}, {2, 1}],
        [Place(city="a"), Place(city="b"), Place(city="B")],
        [Colour.RED, Colour.BLUE, Colour.BLUE],
        ["x", None, None],
        [[Place(city="a")], [Place(city="b"), None], [Place(city="b"), None]],
    ],
)
def test_any_type_is_voted_on_without_a_normalize(drawn: list[Any]) -> None:
    chosen = select(MajorityVote("answer"), {}, [dspy.Prediction(answer=a) for a in drawn], np.ones(1))
    assert chosen is not None and chosen.index == 1 and sorted((chosen.votes or {}).values()) == [1, 2]


@pytest.mark.parametrize(
    ("one", "other"),
    [(" Paris ", "paris"), ("the  answer", "The answer."), ("ﬁve", "five"), (4, 4.0), ("4", 4), ("x\n y", "x y")],
)
def test_answers_that_are_the_same(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) == answer_key(other, normalize_answer)


@pytest.mark.parametrize(("one", "other"), [("-5", "5"), ("1.5", "15"), (True, "yes"), ("a b", "ab"), ("3..", "3")])
def test_answers_that_differ(one: Any, other: Any) -> None:
    assert answer_key(one, normalize_answer) != answer_key(other, normalize_answer)


def test_no_vote_and_enums() -> None:
    class Color(enum.Enum):
        RED = "r"

    assert answer_key(None, normalize_answer) == "None"  # of an optional field
    assert answer_key("  ", normalize_answer) is None
    assert answer_key(Color.RED, normalize_answer) == "Color.RED"
    with pytest.raises(ScoreError, match="told apart"):
        answer_key([object()], normalize_answer)


def test_which_types_can_be_counted() -> None:
    class Loose(pydantic.BaseModel):
        x: int

    class Frozen(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True)
        x: int

    class Bare:
        pass

    countable = [str, int, Literal["a", "b"], Optional[str], tuple[int, str], Any, Frozen, Loose, list[str], set[int]]  # noqa: UP045
    countable += [dict[str, list[int]], Optional[list[Loose]], list[Loose | None], bool | None]  # noqa: UP045
    uncountable = [Bare, list[Bare], dict[str, Bare], Bare | None, Callable, tuple[Bare, ...]]
    assert all(is_countable_type(t) for t in countable)
    assert not any(is_countable_type(t) for t in uncountable)


def test_equal_answers_of_any_type_have_equal_keys() -> None:
    assert answer_key([0, 8], frozenset) == answer_key([8, 0], frozenset)
    assert answer_key([4.0, "x"], tuple) == answer_key([4, "x"], tuple)
    with pytest.raises(ScoreError, match="told apart"):
        answer_key("x", lambda v: object())
