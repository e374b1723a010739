"""Candidates name predictors in full, or by the beginning of the name where that is enough."""

from __future__ import annotations

from typing import Any

import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.prompts.candidates import read_candidates, read_options

OWN = {"plan": "Plan.", "answer.predict": "Answer.", "steps[0].predict": "One.", "steps[1].predict": "Two."}


def test_the_beginning_of_a_name_is_enough_for_lists_and_for_single_candidates() -> None:
    assert read_options({"answer": ["a", None]}, OWN)["answer.predict"] == ("a", "Answer.")
    assert read_options({"steps[1]": ["b"]}, OWN)["steps[1].predict"] == ("b",)
    ((candidate, _),) = read_candidates([{"answer": "a", "plan": "p"}], list(OWN))
    assert candidate == {"answer.predict": "a", "plan": "p"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("steps", r"may be any of the predictors \['steps\[0\].predict', 'steps\[1\].predict'\]"),
        ("answ", "names the predictor 'answ'"),
        ("answer.predikt", "Did you mean 'answer.predict'"),
    ],
)
def test_other_names_are_refused_with_the_predictors(name: str, message: str) -> None:
    given: list[tuple[Any, Any]] = [(read_options, [text := "a"]), (read_candidates, text)]
    with pytest.raises(ConfigurationError, match=message):
        given[0][0]({name: ["a"]}, OWN)
    with pytest.raises(ConfigurationError, match=message):
        given[1][0]([{name: "a"}], list(OWN))


def test_a_predictor_is_named_once() -> None:
    with pytest.raises(ConfigurationError, match=r"'answer.predict' twice"):
        read_options({"answer": ["a"], "answer.predict": ["b"]}, OWN)
