"""Properties of the bandit core on random worlds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import block_layout
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import BudgetTooSmall
from iapo_dspy.types import Contexts, Observations


class Stream:
    """Prompt p's i-th completion ever is fixed, so relabelling prompts relabels all that happens."""

    n_queries = 1

    def __init__(self, names, length=20_000):
        self.n_prompts = len(names)
        rngs = [np.random.default_rng(name) for name in names]
        self.score = np.stack([rng.random((length, 2)) for rng in rngs])
        self.label = np.stack([rng.integers(0, 3, size=length) for rng in rngs])
        self.cost = np.stack([rng.random(length) for rng in rngs])
        self.used = np.zeros(len(names), dtype=int)
        self.spent = 0

    def pull(self, pulls):
        self.spent += pulls.completions
        prompt = np.repeat(pulls.prompt, pulls.size)
        at = np.empty(len(prompt), dtype=int)
        for p in range(self.n_prompts):
            mine = prompt == p
            at[mine] = self.used[p] + np.arange(mine.sum())
            self.used[p] += mine.sum()
        return Observations(
            pulls=pulls, label=self.label[prompt, at], score=self.score[prompt, at], cost=self.cost[prompt, at]
        )


def problem(env, max_n, aggregator):
    contexts = Contexts(np.array([[1.0, 0.0], [0.3, 0.7], [0.5, 0.5]]), np.array([0.0, 0.05, 0.3]))
    return Problem(
        n_prompts=env.n_prompts, n_queries=1, max_n=max_n, contexts=contexts, aggregator=aggregator, cost_scale=0.2
    )


aggregators = st.sampled_from([MajorityVoteAggregator(), BestOfNAggregator()])
screenings = st.sampled_from([None, Screening(k=1), Screening(k=2, rho=0.5)])


@settings(max_examples=60, deadline=None)
@given(
    n_prompts=st.integers(1, 7),
    max_n=st.integers(1, 9),
    budget=st.integers(1, 2_000),
    seed=st.integers(0, 2**32),
    aggregator=aggregators,
    screening=screenings,
    stockpile=st.booleans(),
)
def test_the_budget_is_never_exceeded(n_prompts, max_n, budget, seed, aggregator, screening, stockpile):
    env = Stream(range(n_prompts), length=budget)
    setting = problem(env, max_n, aggregator)
    least = PSST(screening=screening).least(setting)
    if budget < least:
        with pytest.raises(BudgetTooSmall) as error:
            PSST(screening=screening, stockpile=stockpile).start(setting, budget=budget, seed=seed)
        assert error.value.least == least
        return
    outcome = drive(PSST(screening=screening, stockpile=stockpile).start(setting, budget=budget, seed=seed), env)
    assert outcome.spent == env.spent <= budget
    assert outcome.complete
    again = PSST(screening=screening, stockpile=stockpile).solve(setting, outcome.observations)
    assert again.policy == outcome.policy


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    order=st.permutations(list(range(5))),
    max_n=st.integers(1, 8),
    budget=st.integers(150, 3_000),
    aggregator=aggregators,
    screening=screenings,
)
def test_relabelling_prompts_permutes_the_policy(order, max_n, budget, aggregator, screening):
    outcomes = []
    for names in (list(range(5)), order):
        env = Stream(names, length=3_000)
        outcomes.append(
            drive(PSST(screening=screening).start(problem(env, max_n, aggregator), budget=budget, seed=0), env)
        )
    plain, relabelled = outcomes
    assert [(a.prompt, a.n) for a in plain.policy.arms] == [(order[a.prompt], a.n) for a in relabelled.policy.arms]
    np.testing.assert_allclose(plain.q[:, order], relabelled.q)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), max_n=st.integers(1, 12), aggregator=aggregators)
def test_a_single_completion_is_worth_its_weighted_score(seed, max_n, aggregator):
    rng = np.random.default_rng(seed)
    label, score = rng.integers(0, 50, size=(6, 12)), rng.random((6, 12, 2))
    weights = np.array([[1.0, 0.0], [0.4, 0.0]])
    singles = aggregator.blocks(label, score, weights, block_layout(12, max_n))[:, :12]
    np.testing.assert_allclose(singles, np.multiply.outer(weights[:, 0], score[:, :, 0].T))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.integers(1, 10**12))
def test_votes_do_not_depend_on_what_answers_are_called(seed, shift):
    rng = np.random.default_rng(seed)
    label, score = rng.integers(-1, 6, size=(8, 11)), rng.random((8, 11, 1))
    renamed = np.where(label < 0, -1, (label * 7 + 3) % 6 * shift + shift)
    for ties in ("paper", "half"):
        aggregator = MajorityVoteAggregator(ties=ties)
        a, b = (aggregator.blocks(x, score, np.ones((1, 1)), block_layout(11, 11)) for x in (label, renamed))
        np.testing.assert_allclose(a, b)
