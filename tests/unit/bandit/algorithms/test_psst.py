"""PSST, screening and replay on worlds whose best arms are known."""

from dataclasses import replace

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.psst import PSST, allocate, largest_scales
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Arm, Contexts, Observations


class Coins:
    """Each completion is right (label 0) with the probability of its prompt and query; a wrong one is label 1."""

    def __init__(self, theta, cost=1.0, seed=0, budget=None):
        self.theta = np.asarray(theta, dtype=float)
        self.n_prompts, self.n_queries = self.theta.shape
        self.cost = np.broadcast_to(np.asarray(cost, dtype=float), self.n_prompts)
        self.rng = np.random.default_rng(seed)
        self.left = budget
        self.asked = []

    def pull(self, pulls):
        self.asked.append(pulls)
        exhausted = False
        if self.left is not None:
            affordable = np.cumsum(pulls.size) <= self.left
            exhausted = not affordable.all()
            pulls = pulls.take(np.flatnonzero(affordable))
            self.left -= pulls.completions
        prompt, query = np.repeat(pulls.prompt, pulls.size), np.repeat(pulls.query, pulls.size)
        right = self.rng.random(len(prompt)) < self.theta[prompt, query]
        return Observations(
            pulls=pulls,
            label=1 - right,
            score=right[:, None].astype(float),
            cost=self.cost[prompt],
            exhausted=exhausted,
        )


def problem(env, cost, max_n=8, aggregator=None, **settings):
    return Problem(
        n_prompts=env.n_prompts,
        n_queries=env.n_queries,
        max_n=max_n,
        contexts=Contexts(np.ones((len(cost), 1)), np.array(cost, dtype=float)),
        aggregator=aggregator or MajorityVoteAggregator(),
        **({"cost_scale": 0.01} | settings),
    )


# Prompt 0: the best single shot (.65), right only on a half under a vote. Prompt 1: .62 everywhere. Prompt 2: poor.
PAPER = [[0.40, 0.90], [0.62, 0.62], [0.30, 0.30]]


def test_finds_the_prompt_that_scales_and_the_one_that_is_cheap():
    env = Coins(PAPER)
    outcome = drive(PSST().start(problem(env, [0.0, 10.0], max_n=16), budget=60_000, seed=0), env)
    assert outcome.policy[0].prompt == 1 and outcome.policy[0].n >= 13
    assert outcome.policy[1] == Arm(0, 1)
    assert outcome.complete
    # Exact: maj@16 of .62 with ties is .83; of .4 / .9 it is .60.
    assert outcome.q[0, 1, 15] == pytest.approx(0.834, abs=0.02)
    assert outcome.q[1, 0, 0] == pytest.approx(0.65 - 0.1, abs=0.02)
    assert (outcome.evidence > 100).all()


def test_rounds_follow_algorithm_1():
    env = Coins(np.full((3, 5), 0.5))
    outcome = drive(PSST().start(problem(env, [0.0, 1.0], max_n=8), budget=4_000, seed=3), env)
    assert [r.arms.tolist() for r in outcome.rounds] == [[24] * 2, [12] * 2, [6] * 2, [3] * 2, [2] * 2]
    assert outcome.rounds[0].completions == 800 // 24 * 24  # floor(n_r / M) pulls of each, n_r = T / R
    first = env.asked[0]
    assert first.size.tolist() == [8] * 99 and np.bincount(first.prompt).tolist() == [33, 33, 33]
    assert outcome.spent == sum(p.completions for p in env.asked) == sum(r.completions for r in outcome.rounds)
    for r, pulls in zip(outcome.rounds, env.asked, strict=True):
        for prompt in range(3):
            alive = np.flatnonzero(r.active[:, prompt].any(axis=0))
            assert set(pulls.size[pulls.prompt == prompt]) == ({alive.max() + 1} if len(alive) else set())


def test_what_a_round_cannot_spend_moves_on():
    env = Coins(np.full((3, 5), 0.5))
    outcome = drive(PSST().start(problem(env, [0.0], max_n=8), budget=199, seed=0), env)
    shares, left = [], 199
    for i, r in enumerate(outcome.rounds):
        scales = np.where(r.active.any(0), np.arange(1, 9), 0).max(axis=1)
        assert r.completions == left // (5 - i) // scales.sum() * scales.sum()
        left -= r.completions
        shares.append(r.completions)
    assert shares[0] == 24 and sum(shares) <= 199


def test_the_least_budget_makes_one_pull_of_each_prompt_and_trims_on_it():
    env = Coins([[1.0], [0.0], [0.0]])
    outcome = drive(PSST().start(problem(env, [0.0], max_n=8), budget=24, seed=0), env)
    assert [r.completions for r in outcome.rounds] == [24, 0, 0, 0, 0]
    assert len(env.asked) == 1  # rounds without pulls ask nothing of the environment
    assert outcome.policy[0] == Arm(0, 1) and outcome.complete


def test_too_small_budgets_are_refused_before_any_pull():
    env = Coins(PAPER)
    with pytest.raises(BudgetTooSmall, match="at least 24") as error:
        PSST().start(problem(env, [0.0]), budget=23, seed=0)  # no next(): raised at once
    assert (error.value.given, error.value.least) == (23, 24)
    screening = Screening(k=1)
    least = PSST(screening=screening).least(problem(env, [0.0]))
    with pytest.raises(BudgetTooSmall, match="Top-K"):
        PSST(screening=screening).start(problem(env, [0.0]), budget=least - 1, seed=0)
    outcome = drive(PSST(screening=screening).start(problem(env, [0.0]), budget=least, seed=0), env)
    assert outcome.complete and outcome.spent <= least


@pytest.mark.parametrize(
    "settings", [{"budget": 100.0, "seed": 0}, {"budget": 100, "seed": -1}, {"budget": True, "seed": 0}]
)
def test_bad_budgets_and_seeds_are_refused(settings):
    with pytest.raises(ConfigurationError):
        PSST().start(problem(Coins(PAPER), [0.0]), **settings)


def test_a_single_arm_is_measured_once_per_query_at_most():
    env = Coins([[0.5]])
    outcome = drive(PSST().start(problem(env, [0.0], max_n=1), budget=10, seed=0), env)
    assert outcome.policy[0] == Arm(0, 1) and outcome.spent == 1 and outcome.complete


def test_queries_depend_on_seed_round_and_prompt_only():
    wide, narrow = Coins(np.full((4, 1000), 0.5)), Coins(np.full((2, 1000), 0.5))
    drive(PSST().start(problem(wide, [0.0]), budget=5_000, seed=7), wide)
    drive(PSST().start(problem(narrow, [0.0]), budget=5_000, seed=7), narrow)
    for prompt in range(2):
        a, b = (env.asked[0].query[env.asked[0].prompt == prompt] for env in (wide, narrow))
        n = min(len(a), len(b))
        assert n > 10
        np.testing.assert_array_equal(a[:n], b[:n])
    first = wide.asked[0]
    assert (first.query[first.prompt == 0] != first.query[first.prompt == 1]).any()


def test_the_same_seed_gives_the_same_run():
    outcomes = []
    for _ in range(2):
        env = Coins(PAPER, seed=5)
        outcomes.append(drive(PSST().start(problem(env, [0.0, 1.0]), budget=3_000, seed=11), env))
    assert outcomes[0].policy == outcomes[1].policy
    np.testing.assert_array_equal(outcomes[0].q, outcomes[1].q)


def test_stockpiling_decides_on_all_rounds():
    env = Coins(PAPER)
    outcome = drive(PSST().start(problem(env, [0.0]), budget=3_000, seed=0), env)
    arm = outcome.policy[0]
    pulled = sum(int(((p.prompt == arm.prompt) * (p.size // arm.n)).sum()) for p in env.asked)
    assert outcome.evidence[0] == pulled


def test_without_stockpile_only_the_last_round_counts_and_older_estimates_fill_gaps():
    env = Coins(PAPER)
    outcome = drive(PSST(stockpile=False).start(problem(env, [0.0]), budget=3_000, seed=0), env)
    arm, last = outcome.policy[0], env.asked[-1]
    assert outcome.evidence[0] == ((last.prompt == arm.prompt) * (last.size // arm.n)).sum()
    assert not np.isnan(outcome.q).any()


def test_an_environment_that_runs_dry_ends_the_run_with_the_best_so_far():
    env = Coins([[0.0], [1.0], [0.0]], budget=150)
    outcome = drive(PSST().start(problem(env, [0.0]), budget=1_000, seed=0), env)
    assert not outcome.complete
    assert outcome.policy[0] == Arm(1, 1)
    assert outcome.spent <= 150 and len(env.asked) == 1


def test_a_dry_environment_still_gives_a_policy():
    env = Coins(PAPER, budget=0)
    outcome = drive(PSST().start(problem(env, [0.0, 1.0], cost_scale=None), budget=1_000, seed=0), env)
    assert not outcome.complete and len(outcome.policy) == 2 and outcome.spent == 0
    assert outcome.cost_scale == 0.0 and np.isnan(outcome.q).all()


def test_running_dry_after_screening_falls_back_on_the_screening():
    theta = [[0.0], [0.0], [1.0], [0.0]]
    env = Coins(theta, budget=200)
    outcome = drive(PSST(screening=Screening(k=2)).start(problem(env, [0.0]), budget=1_000, seed=0), env)
    assert not outcome.complete and outcome.policy[0] == Arm(2, 1) and np.isnan(outcome.q).all()
    env = Coins(theta, budget=100)
    outcome = drive(PSST(screening=Screening(k=2)).start(problem(env, [0.0]), budget=1_000, seed=0), env)
    assert not outcome.complete and outcome.evidence[0] == 50  # cut short inside the screening


def test_screening_keeps_the_best_prompts_of_each_context_and_discards_its_samples():
    theta = np.array([0.1, 0.2, 0.3, 0.8, 0.9, 0.7])[:, None]
    env = Coins(theta, cost=[1, 1, 1, 60, 80, 10])
    outcome = drive(PSST(screening=Screening(k=2)).start(problem(env, [0.0, 1.0]), budget=20_000, seed=0), env)
    screening, first = outcome.rounds[:2]
    assert screening.pulls == screening.completions == 4_000 // 6 * 6
    assert env.asked[0].size.tolist() == [1] * 3_996
    kept = np.asarray(first.active.all(axis=2))
    assert np.flatnonzero(kept[0]).tolist() == [3, 4]
    assert np.flatnonzero(kept[1]).tolist() == [2, 5]  # .3 - .01 and .7 - .1 beat .9 - .8 and .8 - .6
    np.testing.assert_array_equal(first.active.any(axis=2), kept)
    assert len(outcome.rounds) == 1 + 4  # R = ceil(log2(K * Nmax))
    assert np.isnan(outcome.q[:, :2]).all()


def test_k1_is_caught_by_a_deceptive_prompt_and_psst_is_not():
    picks = {}
    for screening in (None, Screening(k=1)):
        env = Coins(PAPER, seed=1)
        outcome = drive(PSST(screening=screening).start(problem(env, [0.0], max_n=16), budget=40_000, seed=1), env)
        picks[screening] = outcome.policy[0].prompt
    assert list(picks.values()) == [1, 0]


def test_the_learnt_cost_scale_is_frozen_after_the_first_round_and_reported():
    env = Coins(PAPER, cost=[20.0, 40.0, 60.0])
    outcome = drive(PSST().start(problem(env, [0.0, 1.0], cost_scale=None), budget=2_000, seed=0), env)
    assert outcome.cost_scale == pytest.approx(0.01 / 40)
    assert outcome.q[0, 2, 0] - outcome.q[1, 2, 0] == pytest.approx(0.015)


def test_a_prompt_that_always_fails_loses_on_merit():
    class Failing(Coins):
        def pull(self, pulls):
            seen = super().pull(pulls)
            score = np.where(np.repeat(pulls.prompt, pulls.size)[:, None] == 0, np.nan, seen.score)
            return Observations(pulls=pulls, label=seen.label, score=score, cost=seen.cost)

    for aggregator in (MajorityVoteAggregator(), BestOfNAggregator(floors=(0.0,))):
        env = Failing([[1.0], [0.4]])
        outcome = drive(PSST().start(problem(env, [0.0], aggregator=aggregator), budget=500, seed=0), env)
        assert outcome.policy[0].prompt == 1
        assert np.isnan(outcome.q[0, 0, 0])
        dear = drive(PSST().start(problem(env, [100.0], aggregator=aggregator), budget=500, seed=0), env)
        assert dear.policy[0].prompt == 1  # a cheap failure is no cheap answer


@pytest.mark.parametrize("screening", [None, Screening(k=1), Screening(k=2)])
@pytest.mark.parametrize("stockpile", [True, False])
@pytest.mark.parametrize("budget", [150, 171, 400, 5_000])
def test_replay_with_the_runs_own_contexts_gives_the_runs_own_policy(screening, stockpile, budget):
    for seed in range(8):
        env = Coins(np.random.default_rng(seed).random((4, 6)), cost=[10, 20, 30, 15], seed=seed)
        setting = problem(env, [0.0, 0.2, 3.0], cost_scale=None)
        run = drive(PSST(screening=screening, stockpile=stockpile).start(setting, budget=budget, seed=seed), env)
        again = PSST(screening=screening, stockpile=stockpile).solve(setting, run.observations)
        assert again.policy == run.policy
        np.testing.assert_array_equal(again.q, run.q)
        np.testing.assert_array_equal(again.evidence, run.evidence)
        assert again.complete and again.spent == run.spent and again.cost_scale == run.cost_scale


@pytest.mark.parametrize("screening", [None, Screening(k=2)])
@pytest.mark.parametrize("dry", [0, 30, 200, 250, 700])
def test_replay_of_a_run_that_was_cut_short(screening, dry):
    for seed in range(5):
        env = Coins(np.random.default_rng(seed).random((4, 6)), seed=seed, budget=dry)
        setting = problem(env, [0.0, 1.0])
        run = drive(PSST(screening=screening).start(setting, budget=1_000, seed=seed), env)
        assert PSST(screening=screening).solve(setting, run.observations).policy == run.policy


def test_replay_solves_unseen_contexts():
    env = Coins(PAPER)
    setting = problem(env, [0.0], max_n=16)
    run = drive(PSST().start(setting, budget=60_000, seed=0), env)
    unseen = Contexts(np.ones((2, 1)), np.array([0.0, 10.0]))
    found = PSST().solve(replace(setting, contexts=unseen), run.observations)
    assert found.policy[0] == run.policy[0]
    assert found.policy[1] == Arm(0, 1)
    assert found.evidence.shape == (2,) and (found.evidence > 0).all()
    assert found.spent == run.spent


def test_allocation_by_hand():
    active = np.zeros((2, 3, 4), dtype=bool)
    active[0, 0, [0, 3]] = True  # prompt 0 lives at 1 and 4 in one context
    active[1, 0, 1] = True
    active[1, 2, 1] = True  # prompt 2 lives at 2; prompt 1 is gone
    scales = largest_scales(active)
    assert scales.tolist() == [4, 0, 2]
    assert [allocate(scales, b) for b in (5, 6, 11, 12, 100)] == [0, 1, 1, 2, 16]  # floor(b / 6)
