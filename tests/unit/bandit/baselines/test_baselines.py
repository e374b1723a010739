"""The baselines, the overspending reference rule and the theory."""

import math
from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.algorithms.trimming import best_arms
from iapo_dspy.bandit.baselines.disjoint import Disjoint
from iapo_dspy.bandit.baselines.random_policy import RandomPolicy
from iapo_dspy.bandit.baselines.sequential import UCB, EpsilonGreedy, Sequential, Softmax, pick_best
from iapo_dspy.bandit.baselines.triple import Triple
from iapo_dspy.bandit.baselines.uniform import Uniform
from iapo_dspy.bandit.estimators.subsets import SubsetEstimator
from iapo_dspy.bandit.problem import Problem
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
from iapo_dspy.environments.recorded.recording import VotingRecording
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.simulation.entrants import NAMES, Entrant, entrants
from iapo_dspy.simulation.reference import OverspendingPSST, OverspendingTriple, OverspendingUniform
from iapo_dspy.types import Arm, Contexts, Policy

BASELINES = [Uniform, EpsilonGreedy, Softmax, UCB, Triple, Disjoint, RandomPolicy]
SEQUENTIAL: list[Any] = [EpsilonGreedy, Softmax, UCB]


def coins(theta, cost_weights=(0.0,), cost=0.01):
    theta = np.asarray(theta, dtype=float)
    return VotingRecording(
        probs=np.stack([theta, 1 - theta], axis=2),
        answers=np.zeros(theta.shape[1], dtype=int),
        cost=np.broadcast_to(cost, theta.shape[0]),
        cost_weights=np.array(cost_weights),
    )


# Prompt 0: best at N = 1 and stuck at one half; prompt 1: .62 on every query; prompt 2: poor.
PAPER = coins([[0.40, 0.90], [0.62, 0.62], [0.30, 0.30]], (0.0, 10.0))


def spy(algorithm, environment):
    """Drive an algorithm and keep its pulls."""
    asked = []

    class Spy:
        def pull(self, pulls):
            asked.append(pulls)
            return environment.pull(pulls)

    return drive(algorithm, Spy()), asked  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "start", [PSST, Uniform, *(pytest.param(a, marks=pytest.mark.slow) for a in (EpsilonGreedy, UCB))]
)
def test_inference_aware_algorithms_find_the_prompt_that_scales(start):
    outcome = drive(start().start(PAPER.problem(16), budget=30_000, seed=0), PAPER.environment(0))
    assert outcome.policy[0].prompt == 1 and outcome.policy[0].n >= 11
    assert outcome.policy[1].n == 1
    if start in (PSST, Uniform):  # the others hardly look at the second best in so dear a context
        assert outcome.policy[1] == Arm(0, 1)
    assert outcome.complete


@pytest.mark.parametrize("start", [Triple, Disjoint])
def test_prompt_first_algorithms_are_caught(start):
    outcome = drive(start().start(PAPER.problem(16), budget=60_000, seed=0), PAPER.environment(0))
    assert [arm.prompt for arm in outcome.policy.arms] == [0, 0]


@pytest.mark.parametrize("start", BASELINES)
def test_budgets_hold_and_runs_repeat(start):
    for budget in (96, 97, 500):
        outcomes = [
            spy(start().start(PAPER.problem(16), budget=budget, seed=4), PAPER.environment(1)) for _ in range(2)
        ]
        (outcome, asked), (again, _) = outcomes
        assert outcome.spent == sum(p.completions for p in asked) <= budget
        assert outcome.policy == again.policy and outcome.complete
        assert sum(r.completions for r in outcome.rounds) == outcome.spent


@pytest.mark.parametrize(("start", "least"), [(Uniform, 48), (Triple, 3), (Disjoint, 63), (UCB, 1), (Softmax, 1)])
def test_least_budgets(start, least):
    outcome = drive(start().start(PAPER.problem(16), budget=least, seed=0), PAPER.environment(0))
    assert outcome.complete
    with pytest.raises(BudgetTooSmall) as error:
        start().start(PAPER.problem(16), budget=least - 1, seed=0)
    assert error.value.least == least


def test_uniform_pulls_every_prompt_at_its_largest_scale_alike():
    outcome, asked = spy(Uniform().start(PAPER.problem(16), budget=490, seed=0), PAPER.environment(0))
    assert len(asked) == 1 and set(asked[0].size) == {16}
    assert np.bincount(asked[0].prompt).tolist() == [10, 10, 10]
    assert outcome.count[:, 0].tolist() == [160] * 3 and outcome.count[:, 15].tolist() == [10] * 3


def test_triple_pulls_single_completions_and_draws_scales_on_request():
    outcome, asked = spy(Triple().start(PAPER.problem(16), budget=600, seed=0), PAPER.environment(0))
    assert {n for p in asked for n in p.size.tolist()} == {1}
    assert [arm.n for arm in outcome.policy.arms] == [1, 1]
    scales = set()
    for seed in range(30):
        chosen = drive(
            Triple(scale="random").start(PAPER.problem(16), budget=600, seed=seed), PAPER.environment(0)
        ).policy
        scales |= {arm.n for arm in chosen.arms}
    assert len(scales) > 10 and max(scales) <= 16


def test_disjoint_tunes_the_scale_of_the_chosen_prompts_only():
    outcome, asked = spy(Disjoint().start(PAPER.problem(16), budget=6_000, seed=0), PAPER.environment(0))
    singles = sum(p.completions for p in asked[:-1])
    assert 2_990 < singles <= 3_000 and set(asked[-1].size) == {16} and set(asked[-1].prompt) == {0}
    assert outcome.spent > 6_000 - 16
    assert outcome.policy[1].n == 1  # the context that pays for completions takes one


def test_a_random_policy_costs_nothing_and_varies():
    chosen = set()
    for seed in range(40):
        outcome = drive(RandomPolicy().start(PAPER.problem(16), budget=0, seed=seed), PAPER.environment(0))
        assert outcome.spent == 0
        chosen |= set(outcome.policy.arms)
    assert len(chosen) > 25


@pytest.mark.parametrize("start", SEQUENTIAL)
def test_sequential_runs_spend_all_and_pull_one_arm_at_a_time(start):
    outcome, asked = spy(start().start(PAPER.problem(16), budget=777, seed=0), PAPER.environment(0))
    assert outcome.spent == 777 and outcome.rounds[0].pulls == len(asked)
    assert {len(p) for p in asked} == {1}
    blocks = np.zeros((3, 16), dtype=int)
    for pulls in asked:
        blocks[pulls.prompt[0]] += pulls.size[0] // np.arange(1, 17)
    np.testing.assert_array_equal(outcome.count, blocks)


@pytest.mark.parametrize("start", SEQUENTIAL)
def test_sequential_runs_end_early_with_the_environment(start):
    class Dry:
        def __init__(self):
            self.inner, self.left = PAPER.environment(0), 20

        def pull(self, pulls):
            self.left -= 1
            return self.inner.pull(pulls if self.left >= 0 else pulls.take(np.arange(0)))

    outcome = drive(start().start(PAPER.problem(16), budget=5_000, seed=0), Dry())  # type: ignore[arg-type]
    assert not outcome.complete and outcome.rounds[0].pulls == 20 and len(outcome.policy) == 2


def test_what_the_rules_see_and_choose():
    seen = []

    class Rule(Sequential):
        def rule(self, rng, q, count):
            seen.append((q.copy(), count.copy()))
            return 3 if len(q) > 3 else 0

        compare = rule

    problem = PAPER.problem(4)
    outcome, asked = spy(Rule().start(problem, budget=9, seed=0), PAPER.environment(0))
    assert [p.size[0] for p in asked] == [4, 4, 1] and [p.prompt[0] for p in asked] == [0, 0, 0]
    assert (seen[0][0] == 0).all() and (seen[0][1] == 0).all()
    assert seen[1][1].tolist() == [4, 2, 1, 1] + [0] * 8
    assert len(seen[2][0]) == 3  # only three arms of scale 1 fit the last completion
    assert outcome.q[0, 0, 0] == pytest.approx(outcome.reward[0, 0, 0])


def test_sequential_runs_learn_the_cost_scale():
    base = PAPER.problem(4)
    problem = Problem(
        n_prompts=3, n_queries=2, max_n=4, contexts=base.contexts, aggregator=base.aggregator, cost_scale=None
    )
    outcome = drive(UCB().start(problem, budget=400, seed=0), PAPER.environment(0))
    assert outcome.cost_scale == pytest.approx(1.0)  # all prompts cost .01
    np.testing.assert_allclose(outcome.q[1], outcome.reward[1] - 10 * 0.01 * np.arange(1, 5), atol=1e-9)


@pytest.mark.slow
def test_epsilon_and_temperature_rule_the_exploration():
    shares = []
    for settings in ({"epsilon": 0.0}, {"epsilon": 1.0}):
        outcome, _ = spy(EpsilonGreedy(**settings).start(PAPER.problem(8), budget=4_000, seed=0), PAPER.environment(0))
        shares.append(np.sort(outcome.count[:, 0])[0] / outcome.spent)
    assert shares[0] < 0.15 < 0.3 < shares[1]
    spread = []
    for temperature in (0.001, 100.0):
        outcome, _ = spy(
            Softmax(temperature=temperature).start(PAPER.problem(8), budget=4_000, seed=0), PAPER.environment(0)
        )
        spread.append(np.sort(outcome.count[:, 0])[0] / outcome.spent)
    assert spread[0] < 0.15 < 0.3 < spread[1]


def test_ucb_tries_every_arm_before_it_compares():
    _, asked = spy(UCB().start(PAPER.problem(4), budget=60, seed=0), PAPER.environment(0))
    first = []
    blocks = np.zeros((3, 4), dtype=int)
    for pulls in asked:
        if blocks.all():
            break
        first.append((pulls.prompt[0], pulls.size[0]))
        assert blocks[first[-1][0], first[-1][1] - 1] == 0
        blocks[pulls.prompt[0]] += pulls.size[0] // np.arange(1, 5)
    assert blocks.all()


def test_pick_best_breaks_ties_at_random():
    rng = np.random.default_rng(0)
    assert {pick_best(rng, np.array([1.0, 3.0, 3.0])) for _ in range(50)} == {1, 2}


@pytest.mark.parametrize(
    ("start", "settings"),
    [(EpsilonGreedy, {"epsilon": 1.5}), (Softmax, {"temperature": 0.0}), (UCB, {"c": -1.0})],
)
def test_bad_settings_are_refused(start, settings):
    with pytest.raises(ConfigurationError):
        start(**settings)


def test_the_reference_rule_overspends_as_documented():
    recording = coins(np.random.default_rng(0).random((25, 40)), (0.0, 0.2, 1.0))
    problem = recording.problem(32)
    outcome = drive(OverspendingPSST().start(problem, budget=1_000, seed=0), recording.environment(0))
    assert outcome.rounds[0].completions == 800 and len(outcome.rounds) == 10  # a round's share was 100
    assert outcome.spent > 1_500
    assert all(r.pulls > 0 for r in outcome.rounds)
    bounded = drive(PSST().start(problem, budget=1_000, seed=0), recording.environment(0))
    assert bounded.spent <= 1_000
    large = drive(OverspendingPSST().start(problem, budget=20_000, seed=0), recording.environment(0))
    assert large.spent <= 20_000 and large.rounds[0].completions == 1_600


def test_the_reference_rule_leaves_ties_to_the_order_of_arms():
    recording = coins(np.ones((3, 4)), (0.0,), cost=np.array([0.03, 0.01, 0.02]))
    for start, first in ((Uniform(), Arm(1, 1)), (OverspendingUniform(), Arm(0, 1))):
        assert drive(start.start(recording.problem(4), budget=12, seed=0), recording.environment(0)).policy[0] == first
    assert (
        drive(OverspendingUniform().start(recording.problem(4), budget=1, seed=0), recording.environment(0)).spent == 12
    )


def test_the_reference_rule_serves_screening_and_triple():
    problem = PAPER.problem(16)
    screened = drive(
        OverspendingPSST(screening=Screening(k=1)).start(problem, budget=2_000, seed=0), PAPER.environment(0)
    )
    assert screened.rounds[0].completions == 399 and len(screened.rounds) == 5
    assert drive(OverspendingTriple().start(problem, budget=2_000, seed=0), PAPER.environment(0)).policy[0].n == 1


def test_entrants_by_name():
    assert [e.name for e in entrants(NAMES)] == list(NAMES)
    assert entrants(["psst"])[0].algorithm == PSST()
    assert entrants(["psst", "psst-subsets"], "overspending")[0].algorithm == OverspendingPSST()
    assert entrants(["psst-subsets"], "overspending")[0].algorithm == PSST(estimator=SubsetEstimator)
    for names in ([], ["psst", "psst"], ["magic"]):
        with pytest.raises(ConfigurationError):
            entrants(names)


def test_the_value_of_a_policy():
    q = np.arange(12.0).reshape(2, 2, 3)
    policy = Policy((Arm(1, 3), Arm(0, 2)))
    assert Entrant("a", PSST()).value(policy, q).tolist() == [5.0, 7.0]
    assert Entrant("a", PSST(), random_scale=True).value(policy, q).tolist() == [4.0, 7.0]  # means over scales


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
