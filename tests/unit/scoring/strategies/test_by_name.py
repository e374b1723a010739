"""Strategies by name, and the field that a vote finds by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy import BestOfN, MajorityVote, Objective, WeightedVote
from iapo_dspy.errors import ConfigurationError, LabelRequired
from iapo_dspy.scoring.strategies import fitted, strategy_of
from tests.support.selecting import select

PREDICTIONS = [dspy.Prediction(reasoning=str(i), verdict=v) for i, v in enumerate(["no", "yes", "yes"])]


def right(example: Any, pred: Any, trace: Any = None) -> bool:
    return bool(example.verdict == pred.verdict)


def brief(example: Any, pred: Any, trace: Any = None) -> float:
    return 1.0 / len(pred.verdict)


@pytest.mark.parametrize(
    "outputs", [{"verdict": str}, {"reasoning": str, "verdict": str}, {"verdict": bool, "reasoning": str}]
)
@pytest.mark.parametrize("vote", [MajorityVote(), WeightedVote(weight=Objective("w", lambda example, prediction: 1.0))])
def test_a_vote_finds_the_only_field_that_is_not_the_reasoning(vote: MajorityVote, outputs: dict[str, Any]) -> None:
    vote.check_student(["question"], outputs)
    found = fitted(vote, outputs)
    assert isinstance(found, MajorityVote) and found.field == "verdict" and found.to_dict()["field"] == "verdict"
    selection = select(found, {}, PREDICTIONS, np.ones(1))
    assert selection is not None and selection.index == 1
    with pytest.raises(ConfigurationError, match="has not found its field"):
        _ = vote.field


def test_reasoning_is_voted_on_where_there_is_nothing_else() -> None:
    found = fitted(MajorityVote(), {"reasoning": str})
    assert isinstance(found, MajorityVote) and found.field == "reasoning"


def test_a_vote_does_not_guess_among_several_fields() -> None:
    with pytest.raises(ConfigurationError, match=r"\['idea', 'verdict'\].*MajorityVote\('verdict'\)"):
        MajorityVote().check_student(["question"], {"reasoning": str, "idea": str, "verdict": str})


def test_the_type_of_the_field_that_is_found_is_checked() -> None:
    with pytest.raises(ConfigurationError, match=r"MajorityVote\('thing'\): nothing but their addresses"):
        MajorityVote().check_student(["question"], {"thing": Callable})


def test_a_vote_that_could_read_several_fields_names_each_of_them() -> None:
    ways = r"\['category', 'urgency'\]. .* MajorityVote\('category'\) or MajorityVote\('urgency'\)"
    with pytest.raises(ConfigurationError, match=ways):
        fitted(MajorityVote(), {"category": str, "reasoning": str, "urgency": str})


def test_names() -> None:
    assert strategy_of("majority", right).to_dict() == MajorityVote().to_dict()
    best = strategy_of("best_of_n", brief)
    assert isinstance(best, BestOfN) and best.objectives == ("metric",)
    selection = select(best, {}, PREDICTIONS, np.ones(1))
    assert selection is not None and selection.index == 0, "the shortest"
    given = MajorityVote("answer")
    assert strategy_of(given, right) is given


@pytest.mark.parametrize(
    ("given", "metric", "error", "message"),
    [
        ("best_of_n", right, LabelRequired, "reads `verdict` .* MajorityVote"),
        ("best_of_n", None, ConfigurationError, "selects by the metric"),
        ("majorty", right, ConfigurationError, "Did you mean 'majority'"),
        ("mean", right, ConfigurationError, r"give Mean\('field', range="),
        ("weighted", right, ConfigurationError, r"give WeightedVote\(weight="),
        (MajorityVote, right, ConfigurationError, "another Strategy"),
        (None, right, ConfigurationError, "another Strategy"),
    ],
)
def test_what_is_not_a_strategy_is_refused_with_what_to_give(
    given: Any, metric: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        strategy_of(given, metric)
