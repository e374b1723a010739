"""Estimates made while compiling agree with the deployed program."""

from itertools import permutations
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.scoring.strategies import BestOfN, MajorityVote, Objective
from tests.support.selecting import select

answers = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=5)
EXAMPLE = dspy.Example(question="q", answer="a").with_inputs("question")


def exact(example: Any, pred: Any, trace: Any = None) -> bool:
    return bool(example.answer == pred.answer)


@settings(max_examples=150, deadline=None)
@given(answers)
def test_the_estimated_credit_of_a_vote_is_the_mean_over_all_orders_of_drawing(drawn: list[str | None]) -> None:
    strategy = MajorityVote("answer")
    predictions = [dspy.Prediction(answer=a) for a in drawn]
    scored = [strategy.score(EXAMPLE, p, exact) for p in predictions]
    names = sorted({s.answer for s in scored if s.answer is not None})
    label = np.array([[names.index(s.answer) if s.answer is not None else -1 for s in scored]])
    score = np.array([[list(s.scores) if s.scores is not None else [np.nan] for s in scored]])
    estimated = strategy.aggregator().reward(label, score, np.ones((1, 1)))[0, 0]
    credits = []
    for order in permutations(predictions):
        chosen = select(strategy, {}, order, np.ones(1))
        credits.append(0.0 if chosen is None else float(exact(EXAMPLE, order[chosen.index])))
    assert estimated == pytest.approx(np.mean(credits))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)) | st.none(), min_size=1, max_size=6),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_estimated_reward_of_best_of_n_is_the_utility_of_the_prediction_it_returns(
    drawn: list[tuple[float, float] | None], weights: tuple[float, float]
) -> None:
    def part(k: int) -> Any:
        def score(example: Any, pred: Any) -> float:
            return float(pred.scores[k])

        return score

    strategy = BestOfN([Objective("one", part(0), bounds=(-1, 1)), Objective("two", part(1), bounds=(-1, 1))])
    predictions = [dspy.Prediction(scores=list(s)) if s is not None else dspy.Prediction(scores=[]) for s in drawn]
    scored = [strategy.score(EXAMPLE, p, None) for p in predictions]
    score = np.array([[list(s.scores) if s.scores is not None else [np.nan, np.nan] for s in scored]])
    w = np.array(weights)
    estimated = strategy.aggregator().reward(np.full((1, len(drawn)), -1), score, w[None])[0, 0]
    chosen = select(strategy, {"question": "q"}, predictions, w)
    if chosen is None:
        assert estimated == pytest.approx(-w.sum())  # every completion failed: the lower bounds
    else:
        assert chosen.utilities is not None
        assert estimated == pytest.approx(chosen.utilities[chosen.index])
