"""Equation 5, propositions 1 and 2 and theorem 1 of the paper, by hand and by simulation."""

import math

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.trimming import best_arms
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.theory import (
    agnostic_loss,
    agnostic_policy,
    agnostic_q,
    agnostic_utility,
    budget_for,
    complexity,
    error_bound,
    fit_affine,
)
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Contexts
from tests.support.recordings import PAPER, coins


def test_eq_5_is_the_mean_of_completions():
    score = np.array([[[1.0, 0.0], [0.0, 0.5]]])
    contexts = Contexts(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0.0, 2.0]))
    found = agnostic_utility(score, np.array([[0.1, 0.3]]), contexts)
    assert found[:, 0] == pytest.approx([0.5, 0.375 - 2 * 0.2])


def test_proposition_1_agnostic_optimization_leaves_the_scale_undetermined_and_takes_the_best_single_shot():
    q = PAPER.exact(16).q()
    flat = agnostic_q(q)
    assert (flat == flat[:, :, :1]).all()
    seen = PAPER.environment(0).pull(
        Uniform().start(PAPER.problem(16), budget=480_000, seed=0).send(None)  # type: ignore[arg-type]  # the expectation of eq. 5 is the same at N = 16
    )
    score, cost = seen.score.reshape(-1, 16, 1), seen.cost.reshape(-1, 16)
    sampled = agnostic_utility(score, cost, PAPER.contexts).reshape(2, 3, -1).mean(axis=2)
    np.testing.assert_allclose(sampled, flat[:, :, 15], atol=0.01)
    assert [a.prompt for a in agnostic_policy(q).arms] == [0, 0]
    assert agnostic_loss(q) == pytest.approx([q[0, 1].max() - q[0, 0].max(), 0.0])


def test_proposition_2_affine_relations_keep_the_ranking_and_votes_break_it():
    base = np.random.default_rng(0).random((3, 10))
    sigma, mu = np.array([0.5, 2.0, 1.0]), np.array([-1.0, 0.0, 3.0])
    fit = fit_affine(sigma[:, None] * base + mu[:, None], base)
    assert fit.sigma == pytest.approx(sigma) and fit.mu == pytest.approx(mu) and fit.recoverable()
    assert not fit_affine(-base, base).recoverable()  # sigma < 0 turns the ranking around
    assert not fit_affine(base, np.ones((3, 10))).recoverable()
    q = PAPER.exact(16).q()[:1]
    vote = fit_affine(q[:, :, 15], agnostic_q(q)[:, :, 15])
    assert not vote.recoverable() and vote.residual[0] > 0.1


def test_complexities_and_bound_by_hand():
    # Best arm: value .9 at scale 2 of 2, so the mean scale is 2. Gaps .3 (rank 2), .4 (rank 3), .8 (rank 4).
    q = np.array([[[0.5, 0.9], [0.6, 0.1]]])
    found = complexity(q)
    assert found.h1 == pytest.approx([2 / 0.09])
    assert found.h2 == pytest.approx([max(2 * 2 / 0.09, 3 * 2 / 0.16, 4 * 2 / 0.64)])
    assert found.rounds == 2 and found.n_prompts == 2
    rate = min(2 * 2 * 2 / 0.09, 8 * 1 * 4 / 0.09)
    assert found.rate == pytest.approx(rate)
    assert error_bound(found, 600) == pytest.approx(3 * 2 * math.exp(-600 / (rate * 2)))
    assert error_bound(found, 1) == 1.0
    needed = budget_for(found, 0.05)
    assert error_bound(found, int(needed)) <= 0.05 < error_bound(found, int(needed) - 2)
    # Utilities between -2 and 2 make every gap half as large.
    assert complexity(2 * q, half_range=2.0).h1 == pytest.approx(found.h1)


def test_two_best_arms_have_no_finite_budget():
    found = complexity(np.array([[[0.5, 0.5], [0.1, 0.2]]]))
    assert math.isinf(found.h1[0]) and error_bound(found, 10**9) == 1.0 and math.isinf(budget_for(found, 0.1))


def test_bad_theory_arguments_are_refused():
    for q in (np.array([[[0.5]]]), np.array([[[0.5, np.nan]]])):
        with pytest.raises(ConfigurationError):
            complexity(q)
    with pytest.raises(ConfigurationError):
        budget_for(complexity(np.array([[[0.1, 0.5]]])), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("stockpile", [False, True])
def test_theorem_1_bounds_the_observed_error(stockpile):
    recording = coins([[0.95, 0.9], [0.35, 0.3]], (3.0, 5.0), cost=0.05)  # without a price scale 2 ties with 1
    q = recording.exact(2).q()
    found = complexity(q)
    best = best_arms(q, None, np.ones(q.shape, dtype=bool))
    for failure in (0.9, 0.3):
        budget = int(budget_for(found, failure))
        wrong = 0
        for seed in range(150):
            algorithm = PSST(stockpile=stockpile).start(recording.problem(2), budget=budget, seed=seed)
            wrong += drive(algorithm, recording.environment(seed)).policy != best
        assert wrong / 150 <= error_bound(found, budget) <= failure
