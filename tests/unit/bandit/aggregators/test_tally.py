"""Weighted votes, and the best of those that agree: small cases by hand, and all orders of drawing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator, block_layout
from iapo_dspy.bandit.aggregators.tally import TallyAggregator, vote_units
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray

NAN = float("nan")


def reward(aggregator: Aggregator, label: list[int], score: list[list[float]], weights: list[float]) -> float:
    out = aggregator.reward(np.array([label]), np.array([score], dtype=float), np.array([weights]))
    assert out.shape == (1, 1)
    return float(out[0, 0])


def test_the_heavier_answer_wins_against_more_votes() -> None:
    weighted = TallyAggregator(floors=(0, 0), weight=1)
    rows = [[0.0, 0.3], [0.0, 0.3], [1.0, 0.7]]
    assert reward(weighted, [5, 5, 9], rows, [2.0, 0.0]) == 2.0
    assert reward(weighted, [5, 5, 9], [[0, 0.4], [0, 0.4], [1, 0.7]], [2.0, 0.0]) == 0.0


def test_a_tie_goes_to_the_completion_drawn_first_so_to_answers_by_their_number() -> None:
    """0.6 against 0.3 + 0.3: the single completion comes first in one order out of three."""
    weighted = TallyAggregator(floors=(0, 0), weight=1)
    assert reward(weighted, [0, 1, 1], [[1, 0.6], [0, 0.3], [0, 0.3]], [1, 0]) == pytest.approx(1 / 3)
    assert reward(weighted, [0, 1, 1], [[1, 0.1], [0, 0.0], [0, 0.1]], [1, 0]) == pytest.approx(1 / 3)
    # All weights 0: everything is tied.
    assert reward(weighted, [0, 1, 1, -1], [[1, 0], [0, 0], [0, 0], [1, 1]], [1, 0]) == pytest.approx(1 / 3)


def test_the_best_of_the_agreeing_is_returned_with_its_own_scores() -> None:
    mixed = TallyAggregator(floors=(0, 0, -1), style=(1, 2))
    label = [3, 3, 8, 3]
    score = [[1, 0.2, 0.0], [1, 0.9, 0.5], [0, 1.0, 1.0], [1, 0.9, 0.1]]
    assert reward(mixed, label, score, [1.0, 0.5, 0.0]) == pytest.approx(1 + 0.45)
    assert reward(mixed, label, score, [1.0, 0.0, 2.0]) == pytest.approx(1 + 1.0)
    assert reward(mixed, label, score, [0.0, 1.0, 1.0]) == pytest.approx(1.4)  # 8 has more style, and no majority
    # The metric of the returned one counts, where two completions of one answer differ in it.
    other = [[0.4, 0.2, 0.0], [0.8, 0.9, 0.0], [0.0, 1.0, 1.0], [0.2, 0.9, 0.0]]
    assert reward(mixed, label, other, [1.0, 1.0, 0.0]) == pytest.approx((0.8 + 0.2) / 2 + 0.9)


def test_tied_answers_are_represented_by_the_best_of_each() -> None:
    mixed = TallyAggregator(floors=(0, 0), style=(1,))
    score = [[1, 0.2], [0, 0.6], [1, 0.4], [0, 0.1]]
    assert reward(mixed, [0, 1, 0, 1], score, [1.0, 1.0]) == pytest.approx((1 + 0.4 + 0.6) / 2)


def test_failures_and_abstentions_do_not_vote_and_without_votes_the_floors_count() -> None:
    mixed = TallyAggregator(floors=(-1, -2, 0), style=(1,), weight=2, upper=3.0)
    assert reward(mixed, [0, 0, 1], [[1, 1, NAN], [NAN] * 3, [0.5, 0.25, 0.1]], [1, 1, 0]) == 0.75
    assert reward(mixed, [-1, 0], [[1, 1, 1], [NAN] * 3], [1, 0.5, 0]) == -2.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 3), st.floats(0, 1)), min_size=1, max_size=12))
def test_without_weights_it_is_a_majority_vote(drawn: list[tuple[int, float]]) -> None:
    label, score = np.array([[a for a, _ in drawn]]), np.array([[[s] for _, s in drawn]])
    layout = block_layout(len(drawn), len(drawn))
    weights = np.array([[1.0], [0.3]])
    ours = TallyAggregator(floors=(0.2,)).blocks(label, score, weights, layout)
    theirs = MajorityVoteAggregator(floor=0.2).blocks(label, score, weights, layout)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def by_definition(label: tuple[int, ...], score: FloatArray, weights: FloatArray, style: bool) -> float:
    """What one order of drawing returns, step by step."""
    units = [round(w * 1e6) for w in score[:, 2]]
    sums: dict[int, int] = {}
    for a, u in zip(label, units, strict=True):
        sums[a] = sums.get(a, 0) + u
    winner = next(a for a in label if sums[a] == max(sums.values()))
    mine = [i for i, a in enumerate(label) if a == winner]
    best = max(mine, key=lambda i: (score[i, 1] * weights[1], -i)) if style else mine[0]
    return float(weights[:2] @ score[best, :2])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), *[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 3), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_reward_is_the_mean_over_all_orders_of_drawing(drawn: list[tuple], style: bool) -> None:
    label, score = tuple(a for a, *_ in drawn), np.array([s for _, *s in drawn], dtype=float)
    weights = np.array([1.0, 0.5, 0.0]) if style else np.array([1.0, 0.0, 0.0])
    aggregator = TallyAggregator(floors=(0, 0, 0), weight=2, style=(1,) if style else ())
    orders = [
        by_definition(tuple(label[i] for i in order), score[list(order)], weights, style)
        for order in permutations(range(len(label)))
    ]
    assert reward(aggregator, list(label), score.tolist(), weights.tolist()) == pytest.approx(np.mean(orders))


def test_units_are_whole_and_of_the_largest_weight() -> None:
    assert vote_units(np.array([0.0, 0.1, 2.0, 2 / 3]), 2.0).tolist() == [0, 50_000, 1_000_000, 333_333]


@pytest.mark.parametrize(
    "arguments",
    [{"floors": ()}, {"floors": (NAN,)}, {"floors": (0, 0), "weight": 0}, {"floors": (0, 0), "style": (2,)}],
)
def test_columns_that_do_not_fit_are_refused(arguments: dict) -> None:
    with pytest.raises(ConfigurationError, match="TallyAggregator"):
        TallyAggregator(**arguments)
    with pytest.raises(ConfigurationError, match="2 columns"):
        TallyAggregator(floors=(0, 0)).check(3)
