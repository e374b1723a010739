from typing import Any

import dspy
import numpy as np
import pytest

from iapo_dspy.errors import ConfigurationError
from iapo_dspy.scoring.strategies import BestOfN, Objective
from tests.support.selecting import select

EXAMPLE = dspy.Example(question="1 + 1?", answer="2").with_inputs("question")


def length(example: Any, pred: Any) -> float:
    return len(pred.answer) / 10


def brevity(example: Any, pred: Any) -> float:
    return 1 - len(pred.answer) / 10


def test_best_of_n_takes_the_highest_weighted_utility_and_the_first_of_equals() -> None:
    strategy = BestOfN([Objective("long", length), Objective("short", brevity)])
    predictions = [dspy.Prediction(answer=a) for a in ("xxx", "x", "xxxxx", "yyyyy")]
    chosen = select(strategy, {"question": "q"}, predictions, np.array([1.0, 0.0]))
    assert chosen is not None and chosen.index == 2
    assert chosen.utilities == pytest.approx((0.3, 0.1, 0.5, 0.5))
    shortest = select(strategy, {"question": "q"}, predictions, np.array([0.2, 0.8]))
    assert shortest is not None and shortest.index == 1


def test_a_completion_that_cannot_be_scored_is_never_the_best() -> None:
    strategy = BestOfN([Objective("long", length)])
    predictions = [dspy.Prediction(answer="x" * 50), dspy.Prediction(answer="x"), dspy.Prediction(other=1)]
    chosen = select(strategy, {}, predictions, np.ones(1))
    assert chosen is not None and chosen.index == 1 and set(chosen.failures) == {0, 2}
    assert select(strategy, {}, predictions[2:], np.ones(1)) is None
    failed = strategy.score(EXAMPLE, predictions[0], None)
    assert failed.scores is None and "[0, 1]" in str(failed.failure)


def test_best_of_n_checks() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        BestOfN([])
    with pytest.raises(ConfigurationError, match="must differ"):
        BestOfN([Objective("a", length), Objective("a", brevity)])
    with pytest.raises(ConfigurationError, match="not an Objective"):
        BestOfN([length])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="low < high"):
        Objective("a", length, bounds=(1, 0))
