"""Chosen arms are measured by completions that had no part in the choice, and their intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.measurement import Bounds, measured, measuring_pulls, quantile, reserved
from iapo_dspy.bandit.outcome import HeldOut, Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.types import Contexts, Observations, Pulls


def world(*rights: float, n_queries: int = 40) -> VotingRecording:
    """Prompts that are right with these probabilities on every query, and else give one of many wrong answers."""
    probs = np.zeros((len(rights), n_queries, 9))
    probs[:, :, 0] = np.array(rights)[:, None]
    probs[:, :, 1:] = (1.0 - np.array(rights))[:, None, None] / 8
    return VotingRecording(
        probs=probs,
        answers=np.zeros(n_queries, dtype=int),
        cost=np.zeros(len(rights)),
        cost_weights=np.zeros(1),
    )


def solved(recording: VotingRecording, budget: int = 600, max_n: int = 5, seed: int = 0) -> tuple[Problem, Outcome]:
    problem = recording.problem(max_n)
    return problem, drive(Auto().start(problem, budget=budget, seed=seed), recording.environment(seed))


def measurements(problem: Problem, outcome: Outcome, seen: Observations) -> tuple[HeldOut | None, ...]:
    after = measured(problem, outcome, seen)
    assert after.spent == outcome.spent + seen.pulls.completions == sum(r.completions for r in after.rounds)
    assert after.measured is not None
    return after.measured


def test_half_of_the_budget_goes_to_whole_calls_and_half_to_single_completions():
    problem, outcome = solved(world(0.3, 0.8))
    arm = outcome.policy[0]
    assert arm.n > 1
    pulls = measuring_pulls(problem, outcome, np.arange(1000), 100, seed=1)
    assert set(pulls.prompt.tolist()) == {arm.prompt} and len(set(pulls.query.tolist())) == len(pulls)
    assert (pulls.size == arm.n).sum() == 100 // (2 * arm.n)
    assert pulls.completions == 100 and set(pulls.size.tolist()) == {1, arm.n}


@pytest.mark.parametrize(("budget", "expected"), [(2000, {5: 20}), (60, {5: 10, 1: 10}), (4, {}), (5, {5: 1})])
def test_a_share_is_spent_on_as_many_distinct_queries_as_it_reaches(budget: int, expected: dict[int, int]):
    problem, outcome = solved(world(0.6), max_n=5)
    assert outcome.policy[0].n == 5
    pulls = measuring_pulls(problem, outcome, np.arange(20), budget, seed=0)
    sizes = dict(zip(*(a.tolist() for a in np.unique(pulls.size, return_counts=True)), strict=True))
    assert sizes == expected and len(set(pulls.query.tolist())) == len(pulls)


def test_one_phase_is_the_measurement_of_earlier_versions():
    problem, outcome = solved(world(0.6), max_n=5)
    pulls = measuring_pulls(problem, outcome, np.arange(100, 120), 27, seed=3, phases=1)
    chosen = np.sort(np.random.default_rng([3, 20]).permutation(np.arange(100, 120))[:5])
    assert pulls.query.tolist() == chosen.tolist() and pulls.size.tolist() == [5] * 5


def test_the_least_of_the_algorithm_comes_before_the_measurement():
    problem = Problem(n_prompts=4, n_queries=10, max_n=5, contexts=Contexts(np.ones((2, 1)), np.zeros(2)),
                      aggregator=MajorityVoteAggregator())  # fmt: skip
    assert reserved(1000, problem, 4, 10) == 100  # 2 contexts x 10 queries x 5 completions say all there is to say
    assert reserved(100, problem, 4, 10) == 20
    assert reserved(100, problem, 95, 10) == 5 and reserved(100, problem, 200, 10) == 0


def test_what_is_known_leaves_a_fifth_of_the_rest():
    pulls = Pulls(np.zeros(8, dtype=int), np.arange(8), np.full(8, 5))
    known = Observations(pulls=pulls, label=np.zeros(40, dtype=int), score=np.zeros((40, 1)), cost=np.ones(40))
    problem = Problem(n_prompts=4, n_queries=10, max_n=5, contexts=Contexts(np.ones((2, 1)), np.zeros(2)),
                      aggregator=MajorityVoteAggregator(), known=known)  # fmt: skip
    assert reserved(50, problem, 43, 10) == 2
    assert reserved(50, problem, 43, 10, known=5) == 6 and reserved(45, problem, 40, 10, known=5) == 5
    assert reserved(40, problem, 40, 10) == reserved(30, problem, 1, 10) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "least"), [(60, 0.02), (600, 0.005)])
def test_the_best_of_many_equal_prompts_is_not_reported_too_high(budget: int, least: float):
    recording = world(*[0.5] * 12, n_queries=200)
    truth, said, held = recording.exact(5).q()[0, 0], [], []
    for seed in range(100):
        problem, outcome = solved(recording, budget, seed=seed)
        arm = outcome.policy[0]
        pulls = measuring_pulls(problem, outcome, np.arange(200), budget // 4, seed)
        found = measurements(problem, outcome, recording.environment(seed, 1).pull(pulls))[0]
        chosen_by = outcome.q[0, arm.prompt, arm.n - 1]
        if found is not None:
            said.append((found.utility - truth[arm.n - 1], chosen_by - truth[arm.n - 1]))
            held.append(found.interval[0] <= truth[arm.n - 1] <= found.interval[1])
    bias, naive = np.mean(said, axis=0)
    error = np.std([s for s, _ in said]) / math.sqrt(len(said))
    assert abs(bias) < 3 * error + 0.005 and naive > least
    assert np.mean(held) >= 0.92


def test_any_algorithm_can_be_measured_on_a_validation_set():
    recording = synthetic_bernoulli(0, n_prompts=3, n_queries=40)
    problem = recording.problem(4)
    outcome = drive(PSST().start(problem, budget=600, seed=0), recording.environment(0))
    pulls = measuring_pulls(problem, outcome, np.arange(40), 200, seed=0)
    for found in measurements(problem, outcome, recording.environment(1).pull(pulls)):
        assert found is not None and found.interval[0] <= found.utility <= found.interval[1]


def test_a_call_that_was_not_paid_for_whole_is_not_measured():
    recording = world(0.6)
    problem, outcome = solved(recording)
    seen = recording.environment(1).pull(Pulls(np.zeros(3, dtype=int), np.arange(3), np.full(3, 2)))
    assert measurements(problem, outcome, seen) == (None,)


@pytest.mark.parametrize(
    ("right", "queries", "low", "high"),
    [
        (0, 11, 0.0, 0.32),
        (11, 11, 0.68, 1.0),
        (1, 2, 0.0, 1.0),
        (2, 2, 0.01, 1.0),
        (5, 10, 0.2, 0.8),
        (50, 100, 0.4, 0.6),
    ],
)
def test_yes_or_no_rewards_have_intervals_about_as_wide_as_exact_ones(
    right: int, queries: int, low: float, high: float
):
    # Clopper and Pearson: 0 of 11 is [0, .285], 5 of 10 [.187, .813], 50 of 100 [.398, .602].
    bounds, mean = Bounds(low=0.0, high=1.0), right / queries
    variance = mean * (1 - mean) / max(queries - 1, 1)
    found = bounds.interval(mean, variance, queries - 1.0, queries)
    assert found[0] == pytest.approx(low, abs=0.06) and found[1] == pytest.approx(high, abs=0.06)


def test_one_query_has_no_interval():
    assert all(math.isnan(end) for end in Bounds(low=0.0, high=1.0).interval(0.5, 0.01, 1.0, 1))


@given(
    st.floats(0, 1),
    st.floats(0, 0.3),
    st.integers(2, 500),
    st.floats(1e-3, 1.0),
    st.floats(-5, 5),
    st.floats(0.01, 100),
)
def test_intervals_stay_within_the_bounds_and_hold_the_mean(
    share: float, variance: float, queries: int, spread: float, low: float, width: float
):
    bounds = Bounds(low=low, high=low + width, spread=spread)
    mean = low + share * width
    ends = bounds.interval(mean, variance * width**2, queries - 1.0, queries)
    slack = 1e-9 * (width + abs(low))
    assert low - slack <= ends[0] <= mean + slack and mean - slack <= ends[1] <= low + width + slack
    assert ends[1] - ends[0] > 0


def seen(*scores: float) -> Observations:
    nothing = np.zeros(len(scores))
    pulls = Pulls(np.zeros(1, dtype=int), np.zeros(1, dtype=int), np.array([len(scores)]))
    label = np.where(np.isnan(scores), -1, np.arange(len(scores)))
    return Observations(pulls=pulls, label=label, score=np.array(scores)[:, None], cost=nothing, overhead=np.zeros(1))


def test_bounds_are_the_unit_interval_or_what_was_seen():
    vote, one = MajorityVoteAggregator(), np.ones(1)
    found = Bounds.of(vote, [seen(20.0, 61.0), seen(np.nan)], one)
    assert (found.low, found.high) == (0.0, 61.0)  # a failed completion is worth the floor
    binary = Bounds.of(vote, [seen(0.0, 1.0, 1.0)], one)
    assert (binary.low, binary.high) == (0.0, 1.0) and binary.spread == pytest.approx(1.0)
    assert Bounds.of(vote, [seen(0.49, 0.5, 0.51)], one).spread < 0.001
    assert Bounds.of(vote, [seen(np.nan, np.nan)], one).high == 1.0


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (5, 2.571), (14, 2.145), (40, 2.021), (1e6, 1.96)])
def test_quantiles_are_students(freedom: float, t: float):
    assert quantile(freedom) == pytest.approx(t, rel=0.01)
