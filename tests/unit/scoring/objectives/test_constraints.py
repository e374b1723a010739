"""Objectives that check patterns, JSON and lengths, worked out by hand."""

import json
import time
from typing import Any

import dspy
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy import BestOfN, Objective, objectives
from iapo_dspy.errors import ConfigurationError, ScoreError

EXAMPLE = dspy.Example(question="Capital of France?", answer="Paris").with_inputs("question")


def of(objective: Objective, **fields: Any) -> float:
    return objective(EXAMPLE.inputs(), dspy.Prediction(**fields))


# -- patterns


@pytest.mark.parametrize(
    ("pattern", "whole", "text", "score"),
    [
        (r"\d+", False, "about 40 of them", 1),
        (r"\d+", True, "about 40 of them", 0),
        (r"\d+", True, "40", 1),
        (r"(?i)^yes\b", False, "YES, it is", 1),
        (r"^yes\b", False, "YES, it is", 0),
        (r"\d+", True, 40, 1),
        (r"x", False, None, 0),
        (r'"city": "Paris"', False, {"city": "Paris"}, 1),
    ],
)
def test_patterns(pattern: str, whole: bool, text: Any, score: float) -> None:
    assert of(objectives.regex_match("answer", pattern, whole=whole), answer=text) == score


def test_an_invalid_pattern_raises_when_it_is_given() -> None:
    for bad in ("(", 3, None):
        with pytest.raises(ConfigurationError, match="not a regular expression"):
            objectives.regex_match("answer", bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="is not the name of a field"):
        objectives.regex_match("the answer", "x")


def test_a_missing_field_is_named_with_those_there_are() -> None:
    with pytest.raises(ScoreError, match=r"no field 'answer'; it has \['reply'\]"):
        of(objectives.regex_match("answer", "x"), reply="x")


# -- JSON


class City(pydantic.BaseModel):
    name: str
    people: int


SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.mark.parametrize(
    ("value", "schema", "score"),
    [
        ('{"name": "Paris"}', None, 1),
        ('{"name": "Paris"', None, 0),
        ('```json\n{"name": "Paris"}\n```', None, 0),
        ("NaN", None, 0),
        ("[" * 100_000, None, 0),
        ("3", None, 1),
        ("", None, 0),
        ({"name": "Paris"}, SCHEMA, 1),
        ('{"name": 3}', SCHEMA, 0),
        ('{"name": "Paris", "people": 2}', City, 1),
        ('{"name": "Paris", "people": "many"}', City, 0),
        (City(name="Paris", people=2), City, 1),
        ([City(name="Paris", people=2)], {"type": "array", "items": City.model_json_schema()}, 1),
    ],
)
def test_json(value: Any, schema: Any, score: float) -> None:
    assert of(objectives.json_valid("answer", schema), answer=value) == score


def test_an_invalid_schema_raises_and_references_are_not_fetched() -> None:
    with pytest.raises(ConfigurationError, match="not a valid JSON schema"):
        objectives.json_valid("answer", {"type": "sausage"})
    remote = objectives.json_valid("answer", {"$ref": "http://127.0.0.1:9/schema.json"})
    with pytest.raises(Exception, match=r"127\.0\.0\.1") as caught:  # it is unknown, and stays so
        of(remote, answer="3")
    assert "Unresolvable" in type(caught.value).__name__ or "Ref" in type(caught.value).__name__


# -- work that does not end

BRANCHING = {"anyOf": [{"items": {"$ref": "#"}, "maxItems": 0}, {"items": {"$ref": "#"}, "type": "string"}]}


@pytest.mark.parametrize(
    ("objective", "answer"),
    [
        (objectives.regex_match("answer", r"(a+)+$"), "a" * 40 + "b"),
        pytest.param(
            objectives.json_valid("answer", {"type": "string", "pattern": "^(a|a)*$"}),
            json.dumps("a" * 40 + "b"),
            marks=pytest.mark.slow,
        ),
        (objectives.json_valid("answer", {"uniqueItems": True}), json.dumps([{"a": [i]} for i in range(10**4)])),
        pytest.param(
            objectives.json_valid("answer", BRANCHING),
            "[" * 90 + "1" + "]" * 90,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            objectives.json_valid("answer", {"patternProperties": {"^(.*a)*$": {}}}),
            json.dumps({"a" * 30 + "!": 1}),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_checks_that_take_too_long_are_failed_completions(objective: Objective, answer: str) -> None:
    assert of(objective, answer="[]") >= 0
    start = time.perf_counter()
    read = BestOfN([objective]).read({"question": "?"}, dspy.Prediction(answer=answer))
    assert read.scores is None and "two seconds" in str(read.failure)
    assert time.perf_counter() - start < 2.5
    assert of(objective, answer="[]") >= 0


# -- length


@pytest.mark.parametrize(
    ("limits", "text", "score"),
    [
        ({"target": 4}, "a b c d", 1.0),
        ({"target": 4}, "a b", 0.5),
        ({"target": 4}, "a b c d e f g h", 0.5),
        ({"target": 4}, "", 0.0),
        ({"most": 2}, "a b", 1.0),
        ({"most": 2}, "", 1.0),
        ({"most": 2}, "a b c d", 0.5),
        ({"least": 4}, "a", 0.25),
        ({"least": 4}, "a b c d e", 1.0),
        ({"least": 2, "most": 3}, "a b c d", 0.75),
        ({"least": 2, "most": 3}, "a", 0.5),
        ({"least": 2, "most": 3}, "a b", 1.0),
        ({"most": 4, "unit": "characters"}, "äöü12345", 0.5),
        ({"most": 2, "unit": "words"}, ["a", "b"], 1.0),  # as JSON: '["a", "b"]'
    ],
)
def test_length(limits: dict[str, Any], text: Any, score: float) -> None:
    assert of(objectives.length("answer", **limits), answer=text) == score


def test_length_in_tokens_is_that_of_a_tokenizer() -> None:
    text = "Tokenizers split uncommon words."  # Token|izers| split| uncommon| words|.
    assert of(objectives.length("answer", target=6, unit="tokens"), answer=text) == 1.0
    assert of(objectives.length("answer", most=1, unit="tokens"), answer=text) == pytest.approx(1 / 6)
    assert of(objectives.length("answer", most=1, unit="tokens"), answer="") == 1.0


@pytest.mark.parametrize("limits", [{}, {"target": 3, "most": 4}, {"least": 5, "most": 4}, {"most": 0}, {"most": 2.5}])
def test_lengths_that_make_no_sense_raise(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="length"):
        objectives.length("answer", **limits)
    with pytest.raises(ConfigurationError, match="unit"):
        objectives.length("answer", most=1, unit="lines")  # type: ignore[arg-type]


@given(
    text=st.text(max_size=200),
    a=st.integers(1, 50),
    b=st.integers(0, 50),
    unit=st.sampled_from(["words", "characters"]),
)
def test_lengths_are_scores_and_monotone_beyond_the_limits(text: str, a: int, b: int, unit: Any) -> None:
    most = objectives.length("answer", least=a, most=a + b, unit=unit)
    assert 0 <= of(most, answer=text) <= 1
    only = objectives.length("answer", most=a, unit="characters")
    assert of(only, answer=text + "!") <= of(only, answer=text)


# -- settings are part of what a stored score belongs to


def test_other_settings_are_other_scorers_and_equal_ones_the_same() -> None:
    made = [
        objectives.regex_match("answer", "a"),
        objectives.regex_match("answer", "b"),
        objectives.regex_match("answer", "b", whole=True),
        objectives.regex_match("reply", "b"),
        objectives.json_valid("answer"),
        objectives.json_valid("answer", SCHEMA),
        objectives.length("answer", most=3),
        objectives.length("answer", most=4),
        objectives.judge("Is it polite?"),
        objectives.judge("Is it short?"),
        objectives.judge("Is it short?", scale=(1, 5)),
        objectives.judge("Is it short?", lm=dspy.LM("openai/a", api_key="sk-one-secret")),
        objectives.judge("Is it short?", lm=dspy.LM("openai/b", api_key="sk-one-secret")),
        objectives.similarity("answer", "question", model="openai/a", api_key="sk-one-secret"),
        objectives.similarity("answer", text="question", model="openai/a"),
        objectives.similarity("answer", "question", model="openai/a", dimensions=3),
        objectives.served_reward_model("m", "http://127.0.0.1:1"),
        objectives.served_reward_model("m", "http://127.0.0.1:1", form=lambda q, a: a),
        objectives.served_reward_model("m", "http://127.0.0.1:1", form=lambda q, a: q),
    ]
    digests = [BestOfN([o]).digest(None) for o in made]
    assert len(set(digests)) == len(made)
    again = objectives.judge(
        "Is it short?", lm=dspy.LM("openai/b", api_key="sk-another", api_base="http://127.0.0.1:1")
    )
    assert BestOfN([again]).digest(None) == digests[12]  # not what it is reached by
    moved = objectives.served_reward_model("m", "http://127.0.0.1:2", api_key="sk-another")
    assert BestOfN([moved]).digest(None) == digests[16]
    shown = json.dumps([BestOfN([o]).to_dict() for o in made]) + repr(made)
    assert "secret" not in shown and "another" not in shown
