"""Win rates worked by hand: of votes, of the best of several, and of weighted objectives."""

import math

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.wins import WinRate, win_rates
from iapo_dspy.types import Arm, Contexts, Escalation, Observations, Pulls, Stop

NAN = math.nan


def rates(
    aggregator: Aggregator,
    weights: list[float],
    arm: Arm,
    calls: list[list[tuple[int, list[float]]]],
    *,
    column: int = 0,
    after: bool = True,
) -> WinRate | None:
    """Return the rate of an arm on calls: for each query its completions (label, scores)."""
    n = len(calls[0])
    problem = Problem(
        n_prompts=1,
        n_queries=len(calls),
        max_n=n,
        contexts=Contexts(np.array([weights]), np.zeros(1)),
        aggregator=aggregator,
    )
    flat = [c for call in calls for c in call]
    seen = Observations(
        pulls=Pulls(np.zeros(len(calls), dtype=int), np.arange(len(calls)), np.full(len(calls), n)),
        label=np.array([label for label, _ in flat]),
        score=np.array([scores for _, scores in flat], dtype=float),
        cost=np.ones(len(flat)),
        overhead=np.zeros(len(calls)),
    )
    return win_rates(problem, [arm], column, [] if after else [seen], seen if after else None)[0]


def test_single_completions_ties_counted_half() -> None:
    calls = [[(0, [s])] for s in (1.0, 1.0, 1.0, 0.5, 0.5, 0.75, 0.25, 0.0)] + [[(-1, [NAN])] * 1] * 2
    found = rates(MajorityVoteAggregator(), [1.0], Arm(0, 1), calls)
    assert found is not None and found.measured and found.queries == 10
    assert found.rate == pytest.approx(0.5)  # 5 of 10: two completions failed
    assert (found.wins, found.ties, found.losses) == pytest.approx((0.4, 0.2, 0.4))
    assert found.interval is not None
    low, high = found.interval
    assert 0.15 < low < 0.5 < high < 0.85


def test_the_answer_of_a_vote_and_of_the_best() -> None:
    call = [(7, [0.0]), (8, [1.0]), (7, [0.0])]
    tied = [(7, [0.0]), (8, [1.0]), (-1, [NAN])]
    voted = rates(MajorityVoteAggregator(), [1.0], Arm(0, 3), [call, tied])
    assert voted is not None
    assert (voted.rate, voted.wins, voted.losses) == pytest.approx((0.25, 0.25, 0.75))  # lost, and half of a tie
    best = rates(BestOfNAggregator(floors=(0.0,)), [1.0], Arm(0, 3), [call, tied])
    assert best is not None and (best.rate, best.wins, best.losses) == pytest.approx((1.0, 1.0, 0.0))


def test_an_arm_that_draws_fewer_uses_the_first_completions() -> None:
    found = rates(BestOfNAggregator(floors=(0.0,)), [1.0], Arm(0, 1), [[(0, [0.5]), (0, [1.0])]] * 4)
    assert found is not None and (found.rate, found.ties) == (0.5, 1.0)


def test_weighted_objectives_choose_and_the_comparison_of_their_choice_counts() -> None:
    # utilities 0.2 * 1 + 0.8 * 0 = 0.2 and 0.2 * 0.5 + 0.8 * 0.9 = 0.82: the second one is returned, which ties
    call = [(0, [1.0, 0.0]), (0, [0.5, 0.9])]
    found = rates(BestOfNAggregator(floors=(0.0, 0.0)), [0.2, 0.8], Arm(0, 2), [call] * 3)
    assert found is not None and (found.rate, found.ties, found.wins) == pytest.approx((0.5, 1.0, 0.0))
    assert rates(BestOfNAggregator(floors=(0.0, 0.0)), [0.0, 1.0], Arm(0, 2), [call] * 3) is None  # it does not count


def test_where_nothing_was_drawn_after_the_choice_it_is_said() -> None:
    found = rates(MajorityVoteAggregator(), [2.0], Arm(0, 1), [[(0, [1.0])]] * 3, after=False)
    assert found is not None and not found.measured and found.rate == 1.0
    assert found.interval is not None
    assert found.interval[0] < 0.8 and found.interval[1] == 1.0


def test_no_rate_without_a_whole_call() -> None:
    assert rates(MajorityVoteAggregator(), [1.0], Arm(0, 2), [[(0, [1.0])]] * 3) is None


def test_a_cascade_counts_the_answer_of_the_stage_that_ends_and_an_abstention_is_no_win() -> None:
    sure = [(7, [1.0]), (7, [1.0]), (8, [0.0]), (8, [0.0])]
    unsure = [(7, [1.0]), (8, [0.0]), (9, [0.5]), (9, [0.5])]
    twice = Arm(0, 2, then=Escalation(below=0.9, arm=Arm(0, 2), weight=0))
    found = rates(MajorityVoteAggregator(), [1.0], twice, [sure, unsure])
    assert found is not None and (found.rate, found.wins, found.ties) == pytest.approx((0.75, 0.5, 0.5))
    abstaining = Arm(0, 2, then=Escalation(below=0.9, arm=None, weight=0))
    found = rates(MajorityVoteAggregator(), [1.0], abstaining, [sure, unsure])
    assert found is not None and (found.rate, found.wins, found.losses) == pytest.approx((0.5, 0.5, 0.5))


def test_a_call_that_stops_early_is_played_with_its_stop() -> None:
    # the first of three has the threshold already, so that the better one that comes later is never drawn
    call = [(0, [0.75]), (0, [1.0]), (0, [1.0])]
    stopped = Arm(0, 3, Stop(waves=(1, 3), threshold=0.7))
    found = rates(BestOfNAggregator(floors=(0.0,)), [1.0], stopped, [call] * 2)
    assert found is not None and found.rate == pytest.approx(0.75)


def test_one_query_gives_no_interval() -> None:
    found = rates(MajorityVoteAggregator(), [1.0], Arm(0, 1), [[(0, [1.0])]])
    assert found is not None and found.rate == 1.0 and found.interval is None
