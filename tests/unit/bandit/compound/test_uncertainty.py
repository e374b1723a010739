"""How far estimates of compound arms may be off."""

from __future__ import annotations

import math

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.compound.uncertainty import (
    covariance,
    error_of,
    error_of_difference,
    queries_of,
    rewards_by_query,
)
from iapo_dspy.bandit.outcome import Outcome, StoppedArm
from iapo_dspy.bandit.stops import as_drawn
from iapo_dspy.environments.port import drive
from iapo_dspy.types import Arm, Escalation, FloatArray
from tests.unit.bandit.test_measurement import solved, world

ARM_0, ARM_1 = (np.array([0]), np.array([2])), (np.array([1]), np.array([5]))
CASCADE = Arm(0, 2, then=Escalation(below=0.9, arm=Arm(1, 5)))


def called(by_query: FloatArray | None, *answered_by: tuple[int, int, FloatArray]) -> StoppedArm:
    return StoppedArm(
        arm=CASCADE, reward=0.8, gain=0.0, completions=4.0, waves=1.5, cost=4.0, utility=0.8, by_query=by_query,
        answered_by=answered_by,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return solved(world(0.3, 0.8, n_queries=40))[1]


def test_an_arm_of_one_prompt_has_its_evidence(outcome: Outcome) -> None:
    assert outcome.detail is not None
    call = as_drawn(outcome, 0, Arm(1, 3))
    rewards = rewards_by_query(outcome.detail, 0, call)
    assert rewards.shape == (outcome.detail.n_visited,)
    assert rewards.mean() == pytest.approx(outcome.reward[0, 1, 2])
    assert outcome.estimates.standard_error is not None
    assert error_of(outcome, 0, call) == outcome.estimates.standard_error[0, 1, 2]
    other = as_drawn(outcome, 0, Arm(0, 1))
    assert error_of_difference(outcome.detail, 0, call, other) == float(
        outcome.detail.against(0, np.array([0]), np.array([1]), 1, 3)[0]
    )
    both = np.stack([rewards, rewards_by_query(outcome.detail, 0, other)])
    assert covariance(outcome.detail, 0, call, other) == pytest.approx(float(np.cov(both)[0, 1]))


def test_a_call_that_one_prompt_always_answers_is_as_uncertain_as_that_prompt(outcome: Outcome) -> None:
    assert outcome.detail is not None and outcome.estimates.standard_error is not None
    single, everywhere = as_drawn(outcome, 0, Arm(1, 5)), np.ones(outcome.detail.n_visited)
    alike = called(rewards_by_query(outcome.detail, 0, single), (1, 5, everywhere))
    assert error_of(outcome, 0, alike) == pytest.approx(outcome.estimates.standard_error[0, 1, 4])
    assert error_of_difference(outcome.detail, 0, alike, single) == pytest.approx(0.0, abs=1e-9)
    other = as_drawn(outcome, 0, Arm(0, 3))
    assert error_of_difference(outcome.detail, 0, alike, other) == pytest.approx(
        error_of_difference(outcome.detail, 0, single, other)
    )


def test_prompts_count_as_far_as_they_answer(outcome: Outcome) -> None:
    evidence = outcome.detail
    assert evidence is not None
    n_visited = evidence.n_visited
    first = np.where(np.arange(n_visited) % 2, 0.7, 0.0)
    shares = (0, 2, first), (1, 5, 1.0 - first)
    values = np.linspace(0.6, 1.0, n_visited)
    left = [(evidence.influence[0].at(*at) - evidence.values[0].at(*at))[0] for at in (ARM_0, ARM_1)]
    noisy = values + sum(share * (r - r.mean()) for (_, _, share), r in zip(shares, left, strict=True))
    doubt = first.mean() ** 2 * evidence.doubt[0][0, 1] + (1.0 - first).mean() ** 2 * evidence.doubt[0][1, 4]
    expected = math.sqrt(noisy.var() / (n_visited - 1) + doubt)
    assert error_of(outcome, 0, called(values, *shares)) == pytest.approx(expected)
    assert queries_of(outcome, CASCADE) == min(outcome.count[0, 0], outcome.count[1, 0])


def test_queries_of_which_a_compound_arm_knows_nothing_do_not_count(outcome: Outcome) -> None:
    assert outcome.detail is not None
    some = np.where(np.arange(outcome.detail.n_visited) < 10, np.arange(outcome.detail.n_visited) / 5.0, np.nan)
    single = as_drawn(outcome, 0, Arm(1, 5))
    spread = float(np.std(some[:10], ddof=1) / math.sqrt(10))
    assert error_of(outcome, 0, called(some)) == pytest.approx(spread)
    assert math.isnan(error_of(outcome, 0, called(None)))
    assert np.isfinite(covariance(outcome.detail, 0, called(some), single))
    assert covariance(outcome.detail, 0, called(None), single) == 0.0


def test_without_standard_errors_there_are_none() -> None:
    recording = world(0.3, 0.8)
    psst = drive(PSST().start(recording.problem(4), budget=600, seed=0), recording.environment(0))
    assert math.isnan(error_of(psst, 0, as_drawn(psst, 0, psst.policy[0])))
