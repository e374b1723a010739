"""Fields of predictions come back from the ledger with their types."""

from __future__ import annotations

import datetime
import enum
import json
import math

import dspy
import pydantic

from iapo_dspy.sampling.ledger.field_values import decode_prediction, encode_prediction


class Colour(enum.Enum):
    RED = "red"


class Point(pydantic.BaseModel):
    x: int
    when: datetime.date


class Typed(dspy.Signature):
    question: str = dspy.InputField()
    text: str = dspy.OutputField()
    number: float = dspy.OutputField()
    point: Point = dspy.OutputField()
    points: list[Point] = dspy.OutputField()
    colour: Colour = dspy.OutputField()
    tags: set[str] = dspy.OutputField()
    maybe: int | None = dspy.OutputField()


def test_typed_fields_come_back_typed() -> None:
    point = Point(x=1, when=datetime.date(2020, 1, 2))
    values = {"text": "1", "number": 0.5, "point": point, "points": [point], "colour": Colour.RED, "tags": {"a"}}
    prediction = dspy.Prediction(**values, maybe=None, extra=3)
    stored = json.loads(json.dumps(encode_prediction(prediction), allow_nan=False))
    back = decode_prediction(stored)
    assert back.toDict() == prediction.toDict()
    assert isinstance(back.point, Point) and isinstance(back.tags, set) and back.colour is Colour.RED


def test_fields_of_an_earlier_version_get_the_types_of_every_predictor() -> None:
    stored = {"point": {"x": 1, "when": "2020-01-02"}, "colour": "red", "tags": ["a"], "text": "1"}
    back = decode_prediction(stored, [Typed, dspy.Signature("question -> text: int")], typed=False)
    assert back.toDict() == {"point": Point(x=1, when=datetime.date(2020, 1, 2)).model_dump(), "colour": Colour.RED,
                             "tags": {"a"}, "text": 1}  # fmt: skip
    assert decode_prediction(stored, typed=False).toDict() == stored


def test_what_json_cannot_hold() -> None:
    odd = dspy.Prediction(number=math.nan, inner=[math.inf, -math.inf], thing=object(), key={1: 2})
    stored = json.loads(json.dumps(encode_prediction(odd), allow_nan=False))
    back = decode_prediction(stored)
    assert math.isnan(back.number)
    assert back.inner == [math.inf, -math.inf]
    assert back.thing.startswith("<object object")
    assert back.key == {1: 2}


def test_a_field_that_no_longer_fits_its_type_is_kept() -> None:
    assert decode_prediction({"number": "many"}, [Typed], typed=False).number == "many"
    assert decode_prediction(encode_prediction(dspy.Prediction(number="3")), [Typed]).number == "3"
