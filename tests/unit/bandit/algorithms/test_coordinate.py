"""One coordinate at a time: never above its budget, whole evidence, and right where the product is too large."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.coordinate import Coordinate, first_pass
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.wrappers import Failures, Some
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Contexts, FloatArray, Pulls
from tests.support.draws import Coins

MV = MajorityVoteAggregator()
COST = np.array([0.0, 0.5, 2.0])
SCALE = 0.01
MAX_N = 8


def problem(env: Any, aggregator: Aggregator = MV, max_n: int = MAX_N, cost: FloatArray = COST) -> Problem:
    return Problem(
        n_prompts=env.n_prompts,
        n_queries=env.n_queries,
        max_n=max_n,
        contexts=Contexts(np.ones((len(cost), 1)), cost),
        aggregator=aggregator,
        cost_scale=SCALE,
    )


def world(seed: int, shape: tuple[int, ...], interaction: float = 0.3, n_queries: int = 60) -> FloatArray:
    """Success probabilities [P, X]: each option adds its effect on the logit, and combinations add a little more."""
    rng = np.random.default_rng(seed)
    effects = [rng.normal(0, 0.7, k) for k in shape]
    level = sum(np.ix_(*effects)) + rng.normal(0, interaction, shape)
    logit = level.reshape(-1, 1) + rng.normal(0, 1, n_queries) + rng.normal(0, 0.5, (level.size, n_queries))
    return np.asarray(1 / (1 + np.exp(-logit)))


def utilities(theta: FloatArray) -> FloatArray:
    """The true utility of every arm in every context [C, P, N]."""
    both = np.stack([theta, 1 - theta], axis=2).reshape(-1, 2)
    reward = majority_vote_rewards(both, np.tile([1.0, 0.0], (len(both), 1)), MAX_N)
    reward = reward.reshape(*theta.shape, MAX_N).mean(axis=1)
    return np.asarray(reward - COST[:, None, None] * SCALE * np.arange(1, MAX_N + 1))


def regret(outcome: Outcome, q: FloatArray) -> float:
    numbers = np.arange(q.shape[1]) if outcome.prompts is None else outcome.prompts
    found = [q[c, numbers[arm.prompt], arm.n - 1] for c, arm in enumerate(outcome.policy.arms)]
    return float(np.mean(q.max(axis=(1, 2)) - found))


def test_it_beats_the_full_product_where_that_is_too_large() -> None:
    shape, worlds = (4, 4, 4), range(8)
    losses = []
    for seed in worlds:
        theta = world(seed, shape)
        task, q = problem(Coins(theta)), utilities(theta)
        one = drive(Coordinate(shape).start(task, budget=300, seed=seed), Coins(theta, seed=seed))
        full = drive(Auto().start(task, budget=300, seed=seed), Coins(theta, seed=seed))
        assert one.prompts is not None and len(one.prompts) < 25
        blind = np.mean(q.max(axis=(1, 2)) - q[:, :, 0].mean(axis=1))  # any combination, once
        losses.append((regret(one, q), regret(full, q), blind))
    mine, whole, blind = np.mean(losses, axis=0)
    assert mine < 0.7 * whole and mine < 0.3 * blind


def test_with_enough_budget_it_finds_the_best_combination_where_effects_add_up() -> None:
    shape = (4, 4, 4)
    effects = np.array([0.0, 0.35, -0.3, 0.7])
    level = effects[:, None, None] + effects[::-1, None] + effects[[2, 3, 0, 1]]
    theta = np.repeat(1 / (1 + np.exp(1.2 - level.reshape(-1, 1))), 40, axis=1)
    for seed in range(4):
        outcome = drive(Coordinate(shape).start(problem(Coins(theta)), budget=2500, seed=seed), Coins(theta, seed=seed))
        assert outcome.prompts is not None
        best = np.ravel_multi_index((3, 0, 1), shape)
        assert [int(outcome.prompts[arm.prompt]) for arm in outcome.policy.arms[:2]] == [best, best]


def test_evidence_of_early_passes_still_serves_contexts_in_the_end() -> None:
    """Cheap and dear options: contexts end with different combinations, out of one run."""
    theta = np.repeat(np.array([[0.55], [0.9], [0.5], [0.85]]), 40, axis=1)  # (0, 0), (0, 1), (1, 0), (1, 1)
    env = Coins(theta, cost=np.array([1.0, 20.0, 1.0, 20.0]), seed=1)
    outcome = drive(Coordinate((2, 2)).start(problem(env, cost=np.array([0.0, 4.0])), budget=800, seed=1), env)
    assert outcome.prompts is not None
    assert [int(outcome.prompts[arm.prompt]) for arm in outcome.policy.arms] == [1, 0]


# --- what holds for every run


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5).filter(lambda shape: max(shape) > 1),
    st.integers(0, 300),
    st.integers(1, 9),
    st.sampled_from([MV, BestOfNAggregator()]),
    st.sampled_from([None, "failures", "all fail", "exhausted"]),
    st.integers(0, 10**6),
)
def test_no_run_spends_more_than_its_budget(shape, extra, max_n, aggregator, trouble, seed) -> None:
    n_prompts = int(np.prod(shape))
    theta = np.random.default_rng(seed).random((n_prompts, 7))
    budget = first_pass(shape) + extra
    env = Coins(theta, seed=seed)
    env.left = budget // 2 if trouble == "exhausted" else budget
    asked: Any = (
        Failures(env, share=1.0 if trouble == "all fail" else 0.3) if trouble in ("failures", "all fail") else env
    )
    task = problem(env, aggregator, max_n)
    with np.errstate(all="raise", under="ignore"):
        outcome = drive(Coordinate(shape).start(task, budget=budget, seed=seed), asked)
    assert outcome.prompts is not None
    pulled = np.concatenate([pulls.prompt for pulls in env.asked])
    assert outcome.spent == sum(o.pulls.completions for o in outcome.observations) <= budget
    assert len(set(outcome.prompts.tolist())) == len(outcome.prompts) <= n_prompts
    assert set(outcome.prompts.tolist()) >= set(pulled.tolist())
    assert outcome.q.shape == (3, len(outcome.prompts), max_n)
    assert all(len(pulls) for pulls in env.asked)
    assert outcome.complete or trouble == "exhausted"
    if trouble != "exhausted":  # every option of every coordinate was looked at
        seen = np.stack(np.unravel_index(outcome.prompts, shape))
        assert [set(row.tolist()) for row in seen] == [set(range(k)) for k in shape]
    for o in outcome.observations:
        assert o.pulls.prompt.max(initial=0) < len(outcome.prompts)


def run(seed: int = 3, budget: int = 400) -> tuple[Outcome, Coins]:
    env = Coins(world(seed, (3, 4, 2)), seed=seed)
    return drive(Coordinate((3, 4, 2)).start(problem(env), budget=budget, seed=seed), env), env


def test_the_run_is_a_function_of_its_seed_and_of_what_it_saw() -> None:
    (one, first), (two, second) = run(), run()
    assert one.policy == two.policy and np.array_equal(one.q, two.q)
    assert [p.prompt.tolist() for p in first.asked] == [p.prompt.tolist() for p in second.asked]

    saved = list(one.observations)  # a resumed run is given what was stored, round by round
    assert one.prompts is not None
    algorithm = Coordinate((3, 4, 2)).start(problem(first), budget=400, seed=3)
    asked = next(algorithm)
    for seen in saved:
        back = Pulls(one.prompts[seen.pulls.prompt], seen.pulls.query, seen.pulls.size)
        assert np.array_equal(asked.prompt, back.prompt) and np.array_equal(asked.query, back.query)
        try:
            asked = algorithm.send(replace(seen, pulls=back))
        except StopIteration as stop:
            assert stop.value.policy == one.policy
            break
    else:
        pytest.fail("the run asked for more")


def test_other_contexts_are_solved_from_all_that_was_drawn() -> None:
    outcome, env = run()
    assert outcome.prompts is not None
    small = problem(Coins(np.zeros((len(outcome.prompts), env.n_queries))))
    assert Auto().solve(small, outcome.observations).policy == outcome.policy
    free = Auto().solve(replace(small, contexts=Contexts(np.ones((1, 1)), np.zeros(1))), outcome.observations)
    assert free.policy[0] == outcome.policy[0]


def test_new_combinations_answer_the_queries_of_the_incumbents() -> None:
    _, env = run(budget=800)
    queries: dict[int, set[int]] = {}
    for pulls in env.asked:
        for p, x in zip(pulls.prompt.tolist(), pulls.query.tolist(), strict=True):
            queries.setdefault(p, set()).add(x)
    sizes = sorted(queries.values(), key=len)
    assert all(a <= b for a, b in pairwise(sizes))  # prefixes of one order


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"shape": (2, 2)}, ConfigurationError, "with a product of 8"),
        ({"shape": (8, 0)}, ConfigurationError, "shape"),
        ({"shape": ()}, ConfigurationError, "shape"),
        ({"passes": 0}, ConfigurationError, "passes is 0"),
        ({"budget": 3}, BudgetTooSmall, "4 combinations once"),
        ({"budget": 4.0}, ConfigurationError, "whole number"),
        ({"seed": -1}, ConfigurationError, "seed is -1"),
    ],
)
def test_what_cannot_be_run_is_refused(changes, error, said) -> None:
    arguments = {"shape": (2, 2, 2), "budget": 100, "seed": 0, **changes}
    with pytest.raises(error, match=said):
        settings = {name: arguments.pop(name) for name in ("shape", "passes") if name in arguments}
        Coordinate(**settings).start(problem(Coins(np.full((8, 5), 0.5))), **arguments)


def test_some_prompts_of_an_environment_have_indices_of_their_own() -> None:
    env = Coins(np.array([[0.0], [1.0], [0.0], [1.0]]), seed=0)
    some = Some(env, prompts=np.array([3, 0]))
    seen = some.pull(Pulls(np.array([0, 1, 0]), np.zeros(3, dtype=np.int64), np.array([2, 1, 1])))
    assert (some.n_prompts, some.n_queries) == (2, 1)
    assert seen.pulls.prompt.tolist() == [0, 1, 0] and seen.score[:, 0].tolist() == [1, 1, 0, 1]
    assert env.asked[-1].prompt.tolist() == [3, 0, 3]
