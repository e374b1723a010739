"""Written prompts are kept where something of their gain is left on queries that no writer has read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.port import Algorithm
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.confirmation import ConfirmedGain, among_given, confirm, part
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.preferences import RESOURCES
from iapo_dspy.types import Arm, Contexts, FloatArray, Policy
from tests.support.draws import Coins, observe, problem_of

MV = MajorityVoteAggregator()


def by_hand(right: dict[int, list[int]], *, cost: Sequence[float] = (0.0, 0.0)) -> tuple[Problem, Outcome]:
    """Prompt 0 was given, the others written; each answered these queries once, rightly (1) or wrongly (0)."""
    pulls = [(p, x, 1) for p, answers in right.items() for x in range(len(answers))]
    score = [float(s) for answers in right.values() for s in answers]
    price = [cost[p] for p, _, _ in pulls]
    problem = problem_of(MV, n_prompts=max(2, len(right)), n_queries=6, max_n=1, price=[1.0])
    seen = observe(pulls, score, label=[int(1 - s) for s in score], cost=price)
    return problem, Uniform().solve(problem, [seen])  # its estimates are plain means


def confirmed(world: tuple[Problem, Outcome], read: Sequence[int]) -> tuple[Outcome, ConfirmedGain | None]:
    run = world[0], Uniform(), world[1]
    found = confirm(*run, given=among_given(*run, 1), read=np.array(read, dtype=int))
    (gain,) = found.gains
    return found.outcome, gain


def test_a_gain_on_read_queries_alone_is_not_confirmed() -> None:
    world = by_hand({0: [0, 0, 0, 1, 1, 0], 1: [1, 1, 1, 0, 1, 0]}, cost=(0.01, 0.02))
    assert world[1].policy[0] == Arm(1, 1)
    outcome, gain = confirmed(world, [0, 1, 2])
    assert gain is not None and (gain.prompt, gain.given, gain.queries) == (1, 0, 3)
    assert gain.gain == pytest.approx(4 / 6 - 2 / 6 - 0.01)
    assert gain.left == pytest.approx(1 / 3 - 2 / 3 - 0.01)
    assert gain.confirmed is False and outcome == replace(world[1], policy=Policy((Arm(0, 1),)))


def test_a_gain_that_is_left_is_confirmed() -> None:
    world = by_hand({0: [0, 0, 0, 1, 0, 0], 1: [1, 1, 1, 1, 1, 0]})
    outcome, gain = confirmed(world, [0, 1, 2])
    assert gain is not None and gain.left == pytest.approx(1 / 3) and gain.confirmed is True
    assert outcome == world[1]


@pytest.mark.parametrize(
    ("second", "prompt", "told"),
    [([0, 1, 0, 1, 1, 0], 2, 2), ([1, 0, 1, 0, 1, 0], 0, 1), ([0, 0, 0, 1, 0, 0], 0, 1)],
    ids=["passes", "falls as well", "is not better than the given one"],
)
def test_where_the_best_written_prompt_falls_the_next_one_is_looked_at(
    second: list[int], prompt: int, told: int
) -> None:
    """On the last three queries, which were not read, the given one is right once and the best written one never."""
    outcome, gain = confirmed(
        by_hand({0: [0, 0, 0, 0, 1, 0], 1: [1, 1, 1, 0, 0, 0], 2: second}, cost=(0, 0, 0)), [0, 1, 2]
    )
    assert outcome.policy[0] == Arm(prompt, 1)
    assert gain is not None and gain.prompt == told and gain.confirmed is (prompt == 2)
    if prompt == 2:
        assert gain.left == pytest.approx(1 / 3) and gain.gain == pytest.approx(3 / 6 - 1 / 6)


def test_a_tie_on_unread_queries_goes_to_the_given_prompt() -> None:
    outcome, gain = confirmed(by_hand({0: [0, 0, 1, 1], 1: [1, 1, 1, 1]}), [0, 1])
    assert gain is not None and gain.left == 0.0 and outcome.policy[0] == Arm(0, 1)


def test_a_validation_set_has_no_part_in_it() -> None:
    problem, outcome = by_hand({0: [0, 0, 0, 1, 1], 1: [1, 1, 1, 0, 1]})
    validation = observe([(0, 6, 1), (0, 7, 1), (1, 6, 1), (1, 7, 1)], [0, 0, 1, 1], label=[1, 1, 0, 0])
    given = among_given(problem, Uniform(), outcome, 1)
    found = confirm(problem, Uniform(), outcome, given=given, read=np.array([0, 1, 2]), more=[validation])
    (gain,) = found.gains
    assert gain is not None and gain.left == pytest.approx(1 / 2 - 1) and gain.queries == 2
    assert found.outcome.policy[0] == Arm(0, 1)


@pytest.mark.parametrize("right", [{0: [0, 0, 0], 1: [1, 1, 1]}, {0: [0, 0, 0], 1: [1, 1, 1, 1, 1]}])
def test_a_gain_that_no_unread_query_shows_is_not_confirmed(right: dict[int, list[int]]) -> None:
    outcome, gain = confirmed(by_hand(right), [0, 1, 2])  # the second written prompt alone answered unread ones
    assert gain is not None and gain.gain == 1.0 and gain.queries == 0
    assert math.isnan(gain.left) and math.isnan(gain.standard_error)
    assert gain.confirmed is False and outcome.policy[0] == Arm(0, 1)


def test_what_measures_the_arms_after_the_choice_counts_and_the_given_arm_keeps_its_stop() -> None:
    problem, outcome = by_hand({0: [0, 0, 0], 1: [1, 1, 1]})
    given = among_given(problem, Uniform(), outcome, 1)
    assert given is not None and given.policy[0] == Arm(0, 1)
    stop = StoppedArm(arm=Arm(0, 1), utility=0.5, reward=0.5, gain=0.0, cost=0.0, completions=1.0, waves=1.0)
    given, outcome = replace(given, stops=(stop,)), replace(outcome, stops=(replace(stop, arm=Arm(1, 1)),))
    later = observe([(0, 4, 1), (1, 4, 1), (1, 5, 1)], [1.0, 0.0, 1.0], label=[0, 1, 0], cost=[0.0] * 3)
    found = confirm(problem, Uniform(), outcome, given=given, read=np.array([0, 1, 2]), more=[later])
    (gain,) = found.gains
    assert gain is not None and (gain.queries, gain.left, gain.confirmed) == (1, -0.5, False)
    assert found.outcome.policy[0] == Arm(0, 1) and found.outcome.stops == (stop,)


@pytest.mark.parametrize("right", [{0: [1, 1, 1], 1: [0, 0, 0]}, {1: [1, 1, 0]}])
def test_given_prompts_and_those_without_a_given_rival_are_left_alone(right: dict[int, list[int]]) -> None:
    world = by_hand(right)
    outcome, gain = confirmed(world, [0])
    assert gain is None and outcome is world[1] and outcome.policy[0].prompt == min(1, *right)


def test_each_context_is_confirmed_for_itself_and_caps_hide_nothing() -> None:
    # Prompt 1 gains .75, and .5 on unread queries, at .1 a completion. The last context caps tokens: by all evidence
    # prompt 1 keeps the cap, by the unread queries alone it might break it.
    pulls = [(p, x, 1) for p in (0, 1) for x in range(4)]
    score = [0, 0, 0, 1, 1, 1, 1, 1]
    prices, tokens = np.array([0.0, 6.0, 10.0, 0.0]), RESOURCES.index("tokens")
    caps, used = np.full((4, len(RESOURCES)), np.inf), np.zeros((8, len(RESOURCES)))
    caps[3, tokens], used[:, tokens] = 28.0, [10, 10, 10, 10, 10, 10, 10, 20]
    problem = replace(
        problem_of(MV, n_prompts=2, n_queries=4, max_n=1), contexts=Contexts(np.ones((4, 1)), prices, caps=caps)
    )
    seen = observe(pulls, score, label=[1 - s for s in score], cost=[0.0] * 4 + [0.1] * 4)
    outcome = Uniform().solve(problem, [replace(seen, used=used, once=np.zeros_like(used))])
    assert [arm.prompt for arm in outcome.policy.arms] == [1, 1, 0, 1]
    given = among_given(problem, Uniform(), outcome, 1)
    found = confirm(problem, Uniform(), outcome, given=given, read=np.array([0, 1]))
    assert [gain and gain.left for gain in found.gains] == [0.5, pytest.approx(-0.1), None, 0.5]
    assert [gain and gain.confirmed for gain in found.gains] == [True, False, None, True]
    assert [arm.prompt for arm in found.outcome.policy.arms] == [1, 0, 0, 1]


def test_pulls_and_their_completions_stay_together() -> None:
    seen = observe([(0, 0, 2), (1, 3, 1), (0, 2, 3)], np.arange(6.0), label=np.arange(6), overhead=[7, 8, 9])
    used = np.arange(3.0 * len(RESOURCES)).reshape(3, -1)
    left = part(replace(seen, used=used, once=-used), np.array([False, True, True]))
    assert left.score[:, 0].tolist() == [2, 3, 4, 5] and left.label.tolist() == [2, 3, 4, 5]
    assert left.overhead.tolist() == [8, 9] and left.pulls.query.tolist() == [3, 2]
    assert left.used is not None and left.once is not None
    assert np.array_equal(left.used, used[1:]) and np.array_equal(left.once, -used[1:])


def world_of(rng: np.random.Generator, gain_read: float, gain_unread: float) -> FloatArray:
    """The student and eight written prompts on 120 queries: so much better on the 40 that are read and on the rest."""
    level = rng.normal(-0.3, 1.0, 120) + np.zeros((9, 120))
    level[1:, :40] += gain_read
    level[1:, 40:] += gain_unread
    return np.asarray(1 / (1 + np.exp(-level)))


def shares(gain_read: float, gain_unread: float, worlds: int, algorithm: Algorithm) -> tuple[int, int]:
    """How many worlds end with a written prompt before and after confirmation."""
    before = after = 0
    for seed in range(worlds):
        env = Coins(world_of(np.random.default_rng([5, seed]), gain_read, gain_unread), seed=seed)
        problem = problem_of(MV, n_prompts=9, n_queries=120, max_n=3)
        outcome = drive(algorithm.start(problem, budget=900, seed=seed), env)
        given = among_given(problem, algorithm, outcome, 1)
        found = confirm(problem, algorithm, outcome, given=given, read=np.arange(40))
        before += outcome.policy[0].prompt > 0
        after += found.outcome.policy[0].prompt > 0
        assert all(gain is None or (gain.queries > 1 and gain.standard_error > 0) for gain in found.gains)
    return before, after


@pytest.mark.slow
def test_lucky_prompts_fall_and_better_ones_stay() -> None:
    before, after = shares(2.5, -0.5, 12, Auto())  # written for the queries that were read
    assert before == 12 and after <= 7
    assert shares(0.8, 0.8, 12, Auto()) == (12, 12)
