from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.compound.played import play
from iapo_dspy.bandit.compound.sequences import Sequences
from iapo_dspy.bandit.confidence.learning import answering, calibrated, curve, rightness, stage_curves
from iapo_dspy.bandit.outcome import Reliability
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.synthetic import synthetic_bernoulli
from iapo_dspy.types import Arm, Escalation


def voting(label: list[list[int]], score: list[list[float]]) -> Sequences:
    """Return rows of one prompt, one query each."""
    return Sequences(
        prompts=np.array([0]),
        label=np.array([label]),
        score=np.array([score], dtype=float)[..., None],
        query=np.arange(len(label)),
        n_queries=len(label),
        aggregator=MajorityVoteAggregator(),
        weights=np.ones(1),
    )


def test_a_curve_never_falls() -> None:
    found = curve(np.array([0.4, 0.4, 0.6, 0.6, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0, 1.0, 1.0]))
    # The pairs are right with .5, 0 and 1; the first two fall, and become their mean.
    assert (found.sureness, found.confidence) == ((0.4, 0.6, 1.0), (0.25, 0.25, 1.0))


def test_a_curve_of_many_values_has_few_knots() -> None:
    s = np.random.default_rng(0).random(5000)
    found = curve(s, (np.random.default_rng(1).random(5000) < s).astype(float))
    assert len(found.sureness) <= 40
    assert max(abs(found(x) - x) for x in np.linspace(0.1, 0.9, 9).tolist()) < 0.06


def test_the_curve_of_votes_is_the_share_of_right_winners() -> None:
    # Two of three votes are right once in two rows, three of three always.
    calls = voting([[0, 0, 1], [0, 1, 1], [0, 0, 0]], [[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    (found,) = stage_curves(Arm(0, 3), calls, None)
    assert found(2 / 3) == pytest.approx(0.5) and found(1.0) == 1.0


def test_calls_that_abstain_count_with_the_answer_that_they_withhold() -> None:
    calls = voting([[0, 0, 1], [0, 1, 1], [0, 0, 0]], [[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    arm = Arm(0, 3, then=Escalation(below=0.9))
    (found,) = stage_curves(arm, calls, None)
    assert found(2 / 3) == pytest.approx(0.5) and found(1.0) == 1.0
    assert answering(arm) == Arm(0, 3)


def test_a_best_score_is_right_where_more_draws_bring_little() -> None:
    score = np.array([[0.2, 0.5, 0.5, 0.5], [0.9, 0.1, 0.1, 0.93], [0.5, 0.5, 0.5, 0.5]])
    calls = Sequences(
        prompts=np.array([0]),
        label=np.zeros((1, 3, 4), dtype=np.int64),
        score=score[None, ..., None],
        query=np.arange(3),
        n_queries=3,
        aggregator=BestOfNAggregator(),
        weights=np.ones(1),
    )
    one = Arm(0, 1)  # the best of one, beside the best of four
    assert rightness(one, play(one, calls), calls, 0.05).tolist() == [0.0, 1.0, 1.0]


def test_reliability_by_hand() -> None:
    found = Reliability(confidence=(0.5, 0.9), right=(0.4, 1.0), count=(10, 30))
    assert found.error == pytest.approx(0.1)
    chance = 0.25 * np.sqrt(2 / np.pi * 0.25 / 10) + 0.75 * np.sqrt(2 / np.pi * 0.09 / 30)
    assert found.by_chance == pytest.approx(chance)
    assert found.in_words == f"confidence is off by 0.100 on 40 real calls; by chance by {chance:.3f}"


def test_a_run_knows_how_sure_its_calls_are() -> None:
    world = synthetic_bernoulli(3, n_prompts=4, n_queries=120)
    problem = world.problem(max_n=8)
    outcome = drive(Auto().start(problem, budget=3_000, seed=0), world.environment(0))
    (found, *_) = calibrated(problem, outcome)
    assert found is not None and found.reliability is not None and found.map.margin is None
    assert found.reliability.error < 0.1
    again = calibrated(problem, outcome)[0]
    assert again is not None and again.map == found.map  # the same draws give the same map
    arm = outcome.policy[0]
    theta = world.probs[arm.prompt, :, 0]
    rng = np.random.default_rng(5)
    votes = rng.binomial(arm.n, np.repeat(theta, 40))
    sureness, right = np.maximum(votes, arm.n - votes) / arm.n, votes * 2 > arm.n
    kept = votes * 2 != arm.n
    for s in np.unique(sureness[kept]).tolist():
        mine = kept & (np.abs(sureness - s) < 1e-9)
        if mine.sum() > 400:
            assert found.map.confidence(0, s) == pytest.approx(float(right[mine].mean()), abs=0.15)


def test_runs_without_a_model_know_nothing() -> None:
    world = synthetic_bernoulli(3, n_prompts=4, n_queries=60)
    problem = world.problem(max_n=2)
    outcome = drive(PSST().start(problem, budget=1_000, seed=0), world.environment(0))
    assert calibrated(problem, outcome) == (None,) * len(outcome.policy)
