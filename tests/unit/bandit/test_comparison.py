"""Chosen arms are compared with what one would run without the search, and the intervals of the gains cover."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.comparison import Compared, _of_two, compared
from iapo_dspy.bandit.compound.uncertainty import error_of_difference
from iapo_dspy.bandit.measurement import measured, measuring_pulls
from iapo_dspy.bandit.outcome import HeldOut, Outcome, StoppedArm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.types import Arm, Escalation, Policy
from tests.unit.bandit.test_measurement import solved, world


def after(recording: VotingRecording, budget: int, kept: int, max_n: int = 5, seed: int = 0) -> tuple[Problem, Outcome]:
    """Solve a world, and measure the chosen arm with further completions."""
    problem, outcome = solved(recording, budget, max_n, seed)
    queries = np.arange(problem.n_queries)
    world_after = recording.environment(seed + 1)
    return problem, measured(problem, outcome, world_after.pull(measuring_pulls(problem, outcome, queries, kept, seed)))


def by_name(problem: Problem, outcome: Outcome, student: int | None = 0, apart: bool = False) -> dict[str, Compared]:
    (found,) = compared(problem, outcome, student=student, mode=None, apart=apart)
    return {c.name: c for c in found}


def deceptive(n_queries: int = 60) -> VotingRecording:
    """A world of a poor student, a prompt that is right on 2 of 3 questions, always, and one that is right in 60 %.

    Single completions are worth .3, .667 and .6; votes of 15 about .1, .667 and .79.
    """
    recording = world(0.3, 0.5, 0.6, n_queries=n_queries)
    probs = recording.probs.copy()
    probs[0, :, 0], probs[0, :, 1], probs[0, :, 2:] = 0.3, 0.7, 0.0
    probs[2, :, 0], probs[2, :, 1], probs[2, :, 2:] = 0.6, 0.4, 0.0
    probs[1] = 0.0
    probs[1, np.arange(n_queries), (np.arange(n_queries) % 3 == 2).astype(int)] = 1.0
    return replace(recording, probs=probs)


def test_the_interval_of_a_difference_follows_from_both_intervals_and_their_correlation():
    one = HeldOut(utility=0.8, standard_error=0.05, interval=(0.7, 0.9), queries=9)
    other = HeldOut(utility=0.5, standard_error=0.05, interval=(0.4, 0.6), queries=9)
    low, high = _of_two(one, other, 0.0)
    assert (low, high) == pytest.approx((0.3 - 0.1 * math.sqrt(2.0), 0.3 + 0.1 * math.sqrt(2.0)))
    # correlation 1/2: 0.01 + 0.01 - 2 * 0.5 * 0.01 = 0.01
    assert _of_two(one, other, 0.5 * 0.05**2) == pytest.approx((0.2, 0.4))
    # the lower end of a difference takes the lower end of the one and the upper end of the other
    skew = HeldOut(utility=0.8, standard_error=0.05, interval=(0.5, 0.84), queries=9)
    flat = HeldOut(utility=0.5, standard_error=0.05, interval=(0.47, 0.9), queries=9)
    assert _of_two(skew, flat, 0.0) == pytest.approx((0.3 - 0.5, 0.3 + 0.05))


def test_a_prompt_that_is_best_alone_is_a_baseline_of_the_one_that_votes_best():
    problem, outcome = after(deceptive(), 4000, 1200, max_n=15)
    assert outcome.policy[0].prompt == 2 and outcome.policy[0].n > 7
    found = by_name(problem, outcome)
    assert list(found) == ["student", "best prompt", "best prompt, N tuned"]
    assert found["student"].call.arm == Arm(0, 1) and found["best prompt"].call.arm == Arm(1, 1)
    assert found["best prompt, N tuned"].call.arm.prompt == 1
    for name, alone in (("student", 0.3), ("best prompt", 2 / 3), ("best prompt, N tuned", 2 / 3)):
        baseline = found[name]
        assert baseline.call.utility == pytest.approx(alone, abs=0.06), name
        assert baseline.interval[0] < alone < baseline.interval[1]
        assert outcome.measured is not None and outcome.measured[0] is not None
        assert baseline.difference == pytest.approx(outcome.measured[0].utility - baseline.call.utility)
        low, high = baseline.difference_interval
        assert low < votes(0.6, outcome.policy[0].n) - alone < high and high - low < 0.4


def votes(right: float, n: int) -> float:
    """Return how often a vote of n between two answers is right, worked out by counting; ties are half right."""
    chances = [math.comb(n, k) * right**k * (1 - right) ** (n - k) for k in range(n + 1)]
    return sum(chance * (1.0 if 2 * k > n else 0.5 if 2 * k == n else 0.0) for k, chance in enumerate(chances))


def test_a_prompt_that_may_know_the_questions_is_not_a_baseline():
    problem, outcome = solved(deceptive(), 4000, 15, 0)
    (found,) = compared(problem, outcome, student=0, mode=None, doubted=[1])
    assert [c.call.arm.prompt for c in found] == [0, 2, 2]


def test_the_chosen_arm_is_a_baseline_without_a_difference_and_as_it_was_measured():
    problem, outcome = after(world(0.3, 0.8), 600, 100)
    found = by_name(problem, outcome)
    same = found["best prompt, N tuned"]
    assert same.call.arm == outcome.policy[0] and outcome.measured is not None and outcome.measured[0] is not None
    assert (same.difference, same.difference_interval) == (0.0, (0.0, 0.0))
    assert (same.call.utility, same.interval) == (outcome.measured[0].utility, outcome.measured[0].interval)
    assert found["best prompt"].call.arm == Arm(1, 1) and found["best prompt"].difference > 0


def test_a_student_that_is_not_a_candidate_or_breaks_a_cap_is_left_out():
    problem, outcome = after(world(0.3, 0.8), 600, 100)
    assert list(by_name(problem, outcome, None)) == ["best prompt", "best prompt, N tuned"]
    q = outcome.q.copy()
    q[0, 0, 0] = np.nan
    assert list(by_name(problem, replace(outcome, q=q))) == ["best prompt", "best prompt, N tuned"]
    q[:, :, 0] = np.nan
    assert not by_name(problem, replace(outcome, q=q))


def test_questions_of_their_own_share_nothing_with_those_of_the_run():
    problem, outcome = after(deceptive(30), 3000, 600, max_n=15)
    mine, apart = (by_name(problem, outcome, **how)["best prompt"] for how in ({}, {"apart": True}))
    assert mine.difference == apart.difference
    assert mine.difference_interval != apart.difference_interval


def test_arms_that_were_not_measured_are_compared_on_the_same_questions():
    problem, outcome = solved(deceptive(), 4000, 15)
    baseline = by_name(problem, outcome)["student"]
    assert outcome.detail is not None
    arm = outcome.policy[0]
    assert baseline.difference == pytest.approx(float(outcome.q[0, arm.prompt, arm.n - 1] - outcome.q[0, 0, 0]))
    error = float(outcome.detail.against(0, np.array([0]), np.array([1]), arm.prompt, arm.n)[0])
    low, high = baseline.difference_interval
    assert 1.96 * error <= (high - low) / 2 <= 2.1 * error  # Student's t with 59 degrees of freedom: 2.00


def test_without_standard_errors_there_is_a_difference_and_no_interval():
    recording = world(0.3, 0.8)
    problem = recording.problem(4)
    outcome = drive(PSST().start(problem, budget=600, seed=0), recording.environment(0))
    found = by_name(problem, outcome)
    assert found["student"].difference == pytest.approx(
        float(outcome.q[0, outcome.policy[0].prompt, outcome.policy[0].n - 1] - outcome.q[0, 0, 0])
    )
    assert math.isnan(found["student"].difference_interval[0]) and math.isnan(found["student"].interval[0])


def test_a_compound_arm_is_compared_with_the_best_arm_of_one_prompt_too():
    problem, outcome = solved(deceptive(), 4000, 15)
    assert outcome.detail is not None
    # a cascade that starts with the prompt of the best single completions: that prompt, tuned, is not the cascade
    arm = Arm(1, 1, then=Escalation(below=0.5, arm=Arm(2, 15)))
    by_query = np.linspace(0.7, 1.0, outcome.detail.n_visited)
    call = StoppedArm(
        arm=arm, reward=0.85, gain=0.0, completions=6.0, waves=1.3, cost=6.0, utility=0.85, by_query=by_query
    )
    alone = outcome.policy[0]
    outcome = replace(outcome, policy=Policy((arm,)), stops=(call,))
    found = by_name(problem, outcome)
    assert list(found) == ["student", "best prompt", "best prompt, N tuned", "best single arm"]
    assert found["best prompt, N tuned"].call.arm.prompt == 1 and not found["best prompt, N tuned"].call.arm.compound
    single = found["best single arm"]
    assert single.call.arm == alone
    assert single.difference == pytest.approx(0.85 - outcome.q[0, alone.prompt, alone.n - 1])
    low, high = single.difference_interval
    # by the estimates of the same questions, Student's t with 59 degrees of freedom: 2.00
    assert outcome.detail is not None
    error = error_of_difference(outcome.detail, 0, call, single.call)
    assert high - single.difference == pytest.approx(single.difference - low) == pytest.approx(2.0 * error, rel=0.02)
    taken = HeldOut(utility=0.8, standard_error=0.04, interval=(0.72, 0.88), queries=30)
    measured = by_name(problem, replace(outcome, measured=(taken,)))["best single arm"]
    assert measured.difference == pytest.approx(0.8 - single.call.utility)
    # its errors go together with those of the other arm where they do from question to question, and else they do not
    assert measured.difference_interval[0] < measured.difference < measured.difference_interval[1]


@pytest.mark.slow
def test_the_intervals_of_gains_cover():
    errors, lower, upper = [], [], []
    for seed in range(20):
        recording = deceptive(100)
        right = np.random.default_rng(seed).random(100) < 2 / 3  # questions that the second prompt is right on
        recording.probs[1] = 0.0
        recording.probs[1, np.arange(100), np.where(right, 0, 1)] = 1.0
        problem, outcome = after(recording, 900, 200, max_n=9, seed=seed)
        for baseline in by_name(problem, outcome).values():
            if baseline.call.arm != outcome.policy[0]:
                gain = worth(outcome.policy[0]) - worth(baseline.call.arm)
                low, high = baseline.difference_interval
                errors.append(baseline.difference - gain)
                lower.append(baseline.difference - low)
                upper.append(high - baseline.difference)
    error, low_half, high_half = np.array(errors), np.array(lower), np.array(upper)
    held, half_held = (((error <= share * low_half) & (-error <= share * high_half)).mean() for share in (1.0, 0.5))
    print(f"{held:.3f} of {len(error)} intervals hold the gain, {half_held:.3f} if half as wide; {error.mean():+.3f}")
    assert len(error) > 40
    assert held >= 0.90
    assert half_held < 0.90  # so they are not wide for nothing
    assert abs(error.mean()) < 0.05


def worth(arm: Arm) -> float:
    """Return the exact reward of an arm of `deceptive`."""
    return 2 / 3 if arm.prompt == 1 else votes((0.3, math.nan, 0.6)[arm.prompt], arm.n)
