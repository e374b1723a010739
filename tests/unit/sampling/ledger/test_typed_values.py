"""Values of many types survive the ledger."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import logging
import pathlib
import uuid
from typing import Any, Literal, NamedTuple

import dspy
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.sampling.ledger.records import CompletionRecord, encode_record
from iapo_dspy.sampling.ledger.typed_values import TYPED, plain, restored, tagged, types_of


class Mood(enum.Enum):
    GOOD = ("good", 1)


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.StrEnum if hasattr(enum, "StrEnum") else enum.Enum):  # type: ignore[misc]
    HIGH = "high"


class Step(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    text: str = pydantic.Field(alias="Text")
    when: datetime.date | None = None
    _seen: int = pydantic.PrivateAttr(default=0)


class Longer(Step):
    kind: Literal["long"] = "long"


class Names(pydantic.RootModel[list[str]]):
    pass


class Strict(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def twice(cls, n: int) -> int:
        return 2 * n  # it must not be run again


class Pair(NamedTuple):
    left: int
    right: Any


@dataclasses.dataclass(frozen=True)
class Place:
    name: str
    at: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name + "!")  # it must not be run again


PYTHON = dspy.Code["python"]  # a new class every time


def step() -> Step:
    made = Longer(Text="a", when=datetime.date(2024, 1, 2), more=(1, 2))  # type: ignore[call-arg]
    made._seen = 3
    return made


VALUES = [
    Mood.GOOD,
    Right.READ | Right.WRITE,
    Level.HIGH,
    step(),
    [step(), Names(["x"])],
    Strict(n=2),
    {"place": Place("here", (1.5, 2.0)), "pair": Pair(1, {2, 3})},
    (1, "two", (3.0, None)),
    {1: "a", (2, 3): "b", None: Mood.GOOD},
    {TYPED: ["enum", "os:system", 1]},  # a dictionary of the program's that looks like one of ours
    {"__repr__": 1},
    frozenset({1, 2}),
    collections.deque([1, 2]),
    b"\xff\x00",
    bytearray(b"a"),
    datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc),
    datetime.datetime(2024, 1, 2),
    datetime.date(2024, 1, 2),
    datetime.time(3, 4),
    datetime.timedelta(days=-1, microseconds=5),
    decimal.Decimal("1.10"),
    fractions.Fraction(-1, 3),
    1 + 2j,
    uuid.UUID(int=5),
    pathlib.PurePosixPath("a/b"),
    float("inf"),
    np.float32(0.5),
    np.int64(3),
    np.bool_(True),
    dspy.Image(url="https://example.org/a.png"),
    PYTHON(code="print(1)"),
    dspy.Code(code="x"),
    dspy.ToolCalls(tool_calls=[dspy.ToolCalls.ToolCall(name="f", args={"a": 1})]),
    dspy.History(messages=[{"question": "a", "answer": "b"}]),
    dspy.Reasoning(content="so"),
    dspy.Prediction(answer="1", place=Place("x")),
    dspy.Example(question="q", answer=(1, 2)).with_inputs("question"),
]


def through(value: Any, *signatures: Any) -> Any:
    written = json.loads(json.dumps(tagged(value), allow_nan=False))
    json.dumps(plain(written), allow_nan=False)
    return restored(written, types_of(signatures), "field")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dspy.Example):
        return (
            type(one) is type(other)
            and one.toDict() == other.toDict()
            and getattr(one, "_input_keys", 0) == getattr(other, "_input_keys", 0)
        )
    if isinstance(one, pydantic.BaseModel):
        return type(one) is type(other) and one == other and one.model_fields_set == other.model_fields_set
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_it_comes_back_as_it_was(value: Any) -> None:
    code = dspy.Signature("q -> code: Code", custom_types={"Code": PYTHON})
    assert same(value, through(value, code))


def test_arrays_and_nan() -> None:
    array = through(np.array([[1, 2], [3, 4]], dtype=np.int8))
    assert array.dtype == np.int8 and array.tolist() == [[1, 2], [3, 4]]
    assert np.isnan(through(float("nan")))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
))  # fmt: skip
def test_nested_data_comes_back(value: Any) -> None:
    assert through(value) == value and repr(through(value)) == repr(value)


def test_classes_inside_of_functions_come_from_the_signature() -> None:
    class Local(pydantic.BaseModel):
        inner: Place

    class Shade(enum.Enum):
        DARK = 1

    signature = dspy.Signature("q -> a: list[Local], s: Shade", custom_types={"Local": Local, "Shade": Shade})
    value = {"a": [Local(inner=Place("x"))], "s": Shade.DARK}
    assert through(value, signature) == value


def test_what_cannot_come_back_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Lost(pydantic.BaseModel):
        n: int

    with caplog.at_level(logging.WARNING):
        assert through([Lost(n=1)]) == [{"n": 1}]
        assert str(through(object())).startswith("<object object")
    assert "'field'" in caplog.text and "plain data" in caplog.text and "metric sees its text" in caplog.text


def test_a_value_that_contains_itself_or_cannot_be_shown() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError

    loop: list[Any] = [1]
    loop.append(loop)
    assert through(loop) == [1, "<list>"]
    deep: Any = 0
    for _ in range(1000):
        deep = Pair(1, Names([]) if deep == 0 else deep)
    assert through(deep).right.right.left == 1
    encode_record(CompletionRecord(prompt="p", query="q", draw=0, first=0, fields={"deep": tagged(deep)}))
    assert through(Shy()) == "<Shy>"


@pytest.mark.parametrize(
    "written",
    [
        ["model", "os:system", [{}, None, [], None]],
        ["enum", "os:system", "ls"],
        ["model", "subprocess:Popen", [{"args": "ls"}, None, [], None]],
        ["model", f"{__name__}:Strict", [{"n": 1, "m": 2}, None, [], None]],
        ["dataclass", f"{__name__}:Strict", {"n": 1}],
        ["array", "<U1000000000", ["a"]],
        ["text", "Fraction", "1e999999999"],
        ["text", "Decimal", None],
        ["prediction", None, 3],
        ["none", None],
        [],
        None,
        3,
    ],
)
def test_edited_data_run_nothing_and_raise_nothing(written: Any) -> None:
    value = restored({TYPED: written}, {}, "field")
    assert not callable(value) and plain({TYPED: written}) is not NotImplemented


def test_plain_data_are_what_a_table_shows() -> None:
    value = {"mood": Level.HIGH, "step": Strict(n=1), "names": Names(["x"]), "pair": (1, {2}), "by": {3: b"a"}}
    shown = plain(tagged(value))
    assert shown == {"mood": "high", "step": {"n": 2}, "names": ["x"], "pair": [1, [2]], "by": {"3": "YQ=="}}
