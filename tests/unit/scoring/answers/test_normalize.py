"""Keys of answers of every type, and typed fields that were left as text."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import itertools
import time
import uuid
import warnings
from collections.abc import Callable
from typing import Any, Literal, Optional, Union

import dspy
import numpy as np
import pydantic
import pytest
from pydantic.json_schema import SkipJsonSchema

from iapo_dspy import BestOfN, Mean, Median, Mixed, WeightedVote, close, math_equal, metrics, objectives
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


# -- bookkeeping is no part of an answer


def called(identity: str, name: str = "search", **args: Any) -> dspy.ToolCalls:
    return dspy.ToolCalls(tool_calls=[dspy.ToolCalls.ToolCall(id=identity, name=name, args=args)])


class Plan(pydantic.BaseModel):
    steps: list[dspy.ToolCalls] = []
    final: dspy.ToolCalls | None = None


class Ticket(pydantic.BaseModel):
    title: str
    tags: list[str] = pydantic.Field(default_factory=list)
    id: str = pydantic.Field(default_factory=lambda: uuid.uuid4().hex)
    number: int = pydantic.Field(default_factory=itertools.count().__next__)
    seen: datetime.datetime = pydantic.Field(default_factory=datetime.datetime.now)
    hidden: SkipJsonSchema[str | None] = None
    unwritten: str = pydantic.Field(default="", exclude=True)
    parent: Ticket | None = None


@dataclasses.dataclass
class Row:
    name: str
    key: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    notes: list[str] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (called("call_1", q="x"), called("call_2", q=" X.")),
        ([called("a", q=1)], [called("b", q=1.0)]),
        ({"calls": called("a", q=1)}, {"calls": called("b", q=1)}),
        (Plan(steps=[called("a")], final=called("b", n=2)), Plan(steps=[called("c")], final=called("d", n=2))),
        (dspy.Reasoning(content="So."), "so"),
        (Ticket(title="A"), Ticket(title="a", hidden="trace-7", unwritten="x", tags=[])),
        (Ticket(title="A", parent=Ticket(title="B")), Ticket(title="a", parent=Ticket(title="b"))),
        (Row("A"), Row("A", notes=[])),
    ],
)
def test_ids_that_no_lm_wrote_do_not_tell_answers_apart(one: Any, other: Any) -> None:
    assert answer_key(one) == answer_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (called("a", q="x"), called("a", q="y")),
        (called("a", q="x"), called("a", name="find", q="x")),
        (dspy.ToolCalls(tool_calls=[]), called("a")),
        (Plan(final=called("a", n=1)), Plan(final=called("a", n=2))),
        (Ticket(title="A", parent=Ticket(title="B")), Ticket(title="A", parent=Ticket(title="C"))),
        (Ticket(title="A", tags=["x"]), Ticket(title="A")),
        (Row("A", notes=["x"]), Row("A")),
    ],
)
def test_what_the_lm_wrote_does(one: Any, other: Any) -> None:
    assert answer_key(one) != answer_key(other)


def test_decisions_are_counted_without_their_confidence() -> None:
    decision = pytest.importorskip("dspy.adapters.types.decision")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noul = decision.Noul
        sure, unsure, no = (
            noul(value=v, confidence=c, probability=c) for v, c in ((True, 0.9), (True, 0.6), (False, 0.9))
        )
    assert answer_key(sure) == answer_key(unsure) != answer_key(no)


# -- values that are no answers, or hardly


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def bushy() -> Any:
    tree: Any = []
    for _ in range(60):
        tree = [tree, tree]
    return tree


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


SELF: dict[str, Any] = {}
SELF["self"] = {"again": SELF}
ODD = [
    b"\xff\x00",
    bytearray(b"ab"),
    memoryview(b"ab"),
    10**5000,
    -(10**5000),
    [10**5000],
    decimal.Decimal("1e999999999"),
    decimal.Decimal("-1e-999999999"),
    fractions.Fraction(10**400, 3),
    "\ud83d",
    {"\ud83d": "\udc4d"},
    float("inf"),
    complex(1, 2),
    deep(90),
    datetime.date(2024, 1, 2),
    slice(1, 2),
]
NONE = [
    endless(),
    bushy(),
    SELF,
    deep(10**5),
    float("nan"),
    np.float64("nan"),
    [1.0, float("nan")],
    decimal.Decimal("nan"),
    decimal.Decimal("snan"),
    lambda: 1,
    [iter([])],
    object(),
    Colour.__init__,
]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_values_have_keys(value: Any) -> None:
    start = time.perf_counter()
    read = MajorityVote("answer").read({}, dspy.Prediction(answer=value))
    assert read.failure is None and read.answer and read.answer.encode()
    assert read == MajorityVote("answer").read({}, dspy.Prediction(answer=value))
    assert time.perf_counter() - start < 2


def test_odd_values_are_told_apart() -> None:
    large = [10**5000, 10**5000 + 1, -(10**5000), decimal.Decimal("1e999999"), decimal.Decimal("1e999998")]
    large += [decimal.Decimal("1e400"), decimal.Decimal("0.1"), decimal.Decimal("0.10000000000000000001")]
    assert len({answer_key(v) for v in large}) == len(large)
    assert answer_key(decimal.Decimal("0.1")) == answer_key(0.1)
    assert answer_key(memoryview(b"ab")) == answer_key(b"ab")


@pytest.mark.parametrize("value", NONE, ids=range(len(NONE)))
@pytest.mark.parametrize("equal", [None, close(absolute=1), math_equal()], ids=["key", "close", "math"])
def test_what_cannot_be_an_answer_is_a_failed_completion(value: Any, equal: Any) -> None:
    start = time.perf_counter()
    vote = MajorityVote("answer", equal=equal)
    drawn = [dspy.Prediction(answer=a) for a in ("yes", value, "no", "no")]
    chosen = select(vote, {}, drawn, np.ones(1))
    assert chosen is not None and chosen.index == 2 and list(chosen.failures) == [1]
    assert time.perf_counter() - start < 2


def test_every_strategy_reads_and_scores_them_without_an_error() -> None:
    example = dspy.Example(question="?", answer="1").with_inputs("question")
    short = objectives.length("answer", most=3)
    strategies: list[tuple[Any, Any]] = [
        (WeightedVote("answer", weight=short), metrics.exact_match("answer")),
        (Mixed(MajorityVote("answer"), objectives=[short]), metrics.f1("answer")),
        (Mean("answer", range=(0, 10)), metrics.exact_match("answer")),
        (Median("answer", range=(0, 10)), metrics.exact_match("answer")),
        (BestOfN([objectives.json_valid("answer", {"uniqueItems": True}), short]), None),
    ]
    start = time.perf_counter()
    for strategy, metric in strategies:
        for value in ODD + NONE:
            prediction = dspy.Prediction(answer=value)
            for scored in (strategy.read({"question": "?"}, prediction), strategy.score(example, prediction, metric)):
                assert scored.failure is not None or scored.scores is not None or scored.answer is not None
    assert time.perf_counter() - start < 10
