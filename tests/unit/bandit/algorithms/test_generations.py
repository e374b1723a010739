"""Generations of new prompts: never above the budget, the same for the same answers, and asked for where they pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.centre import AffineAggregator
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.algorithms.auto import Auto, Ranking
from iapo_dspy.bandit.algorithms.generations import Generations, expected_best, front, offspring
from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.estimators.evidence import Evidence
from iapo_dspy.bandit.models.surfaces import Dense
from iapo_dspy.bandit.outcome import Outcome, Wish
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.wrappers import Failures
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from tests.support.draws import Coins, observe, problem_of

MV = MajorityVoteAggregator()


def problem(given: int, env: Coins, **changes: Any) -> Problem:
    """The problem with the first prompts of an environment that holds all that may come."""
    asked: dict[str, Any] = {"max_n": 4, "weights": np.ones((2, 1)), "price": [0.0, 0.5], "cost_scale": 0.01} | changes
    return problem_of(asked.pop("aggregator", MV), n_prompts=given, n_queries=env.n_queries, **asked)


class Writer:
    """Answers wishes with the next prompts of an environment: so many each time, by default all that are wanted."""

    def __init__(self, start: Problem, env: Coins, come: Sequence[int] = ()) -> None:
        self.problem, self.env, self.come = start, env, list(come)
        self.wishes: list[Wish] = []

    def more(self, wish: Wish) -> Problem:
        self.wishes.append(wish)
        before = self.problem.n_prompts
        n = min(wish.n, self.env.n_prompts - before, *self.come[:1])
        self.come = self.come[1:]
        parent = np.full(before, -1) if self.problem.parent is None else self.problem.parent
        self.problem = replace(self.problem, n_prompts=before + n, parent=np.append(parent, np.zeros(n, dtype=int)))
        return self.problem


def search(env: Coins, budget: int, *, given: int = 1, come: Sequence[int] = (), seed: int = 0, **changes: Any):
    """Run a search; returns its outcome and the writer."""
    made = {name: changes.pop(name) for name in ("most", "size", "search") if name in changes}
    start = problem(given, env, **changes)
    writer = Writer(start, env, come)
    return drive(Generations(**made).start(start, budget=budget, seed=seed), env, writer.more), writer


def check(outcome: Outcome, writer: Writer, budget: int) -> None:
    """What holds for every search."""
    env, n_prompts = writer.env, writer.problem.n_prompts
    drawn = [o.pulls for o in outcome.observations]
    assert outcome.spent == sum(p.completions for p in drawn) <= budget
    assert [r.completions for r in outcome.rounds] == [p.completions for p in drawn]
    assert outcome.q.shape[1] == n_prompts and all(r.active.shape == outcome.q.shape for r in outcome.rounds)
    assert all(arm.prompt < n_prompts for arm in outcome.policy.arms)
    assert all(len(pulls) for pulls in env.asked)
    before = [sum(o.pulls.completions for o in w.outcome.observations) for w in writer.wishes]
    assert all(a < b for a, b in pairwise(before))  # never two wishes at once
    assert [w.generation for w in writer.wishes] == list(range(len(writer.wishes)))
    for wish in writer.wishes:
        assert wish.front.shape == wish.outcome.q.shape[:2] and wish.n >= 1 and wish.gain > 0
        if wish.outcome.spent:
            visited = len(np.unique(joined(wish.outcome.observations).pulls.query))
            assert wish.front.sum(axis=1) == pytest.approx(visited) and math.isfinite(wish.gain)


@settings(max_examples=40, deadline=None)
@given(
    given=st.integers(1, 5),
    size=st.integers(1, 6),
    most=st.integers(1, 3),
    n_queries=st.integers(1, 25),
    extra=st.integers(0, 400),
    come=st.lists(st.integers(0, 6), max_size=3),
    aggregator=st.sampled_from([MV, BestOfNAggregator(floors=(0.0,)), AffineAggregator()]),
    trouble=st.sampled_from([None, "failures", "all fail", "exhausted", "broken"]),
    seed=st.integers(0, 10**6),
)
def test_no_search_spends_more_than_its_budget(
    given, size, most, n_queries, extra, come, aggregator, trouble, seed
) -> None:
    budget = given + extra
    theta = np.random.default_rng(seed).random((given + size * most, n_queries))
    env = Coins(theta, seed=seed, broken=(0,) if trouble == "broken" else ())
    env.left = budget // 2 if trouble == "exhausted" else budget
    start = problem(given, env, aggregator=aggregator)
    writer = Writer(start, env, come)
    world = Failures(env, share=1.0 if trouble == "all fail" else 0.3) if trouble in ("failures", "all fail") else env
    run = Generations(most=most, size=size).start(start, budget=budget, seed=seed)
    with np.errstate(all="raise", under="ignore"):
        outcome = drive(run, world, writer.more)
    check(outcome, writer, budget)
    assert len(writer.wishes) <= most
    assert outcome.complete == (trouble != "exhausted" or outcome.spent == sum(p.completions for p in env.asked))


def logistic(*levels: float, n_queries: int = 200) -> Coins:
    """Prompts of these levels on queries of different difficulty."""
    difficulty = np.random.default_rng(0).normal(0, 1.0, n_queries)
    return Coins(1 / (1 + np.exp(difficulty - np.array(levels)[:, None])))


def test_the_same_answers_make_the_same_search() -> None:
    made = []
    for _ in range(2):
        env = logistic(*np.random.default_rng(1).normal(0, 0.7, 17))
        made.append((search(env, 900, seed=3), env.asked))
    (one, first), (two, second) = made[0][0], made[1][0]
    assert len(made[0][1]) == len(made[1][1]) and first.problem.n_prompts == second.problem.n_prompts == 17
    for a, b in zip(made[0][1], made[1][1], strict=True):
        assert all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("prompt", "query", "size"))
    assert one.policy == two.policy and np.array_equal(one.q, two.q, equal_nan=True)
    assert [w.gain for w in first.wishes] == [w.gain for w in second.wishes]
    other = Generations().solve(first.problem, one.observations)  # as another preference is served later
    assert other.policy == one.policy and np.array_equal(other.q, one.q, equal_nan=True)


def test_a_student_alone_asks_for_prompts_before_its_first_completion() -> None:
    env = logistic(-1.0, *[0.0] * 6, 1.5, 0.0)
    outcome, writer = search(env, 1_000, most=1)
    assert [(w.n, w.generation, w.gain) for w in writer.wishes] == [(8, 0, math.inf)]
    assert not writer.wishes[0].front.any() and np.isnan(writer.wishes[0].outcome.q).all()
    assert {arm.prompt for arm in outcome.policy.arms} == {7}
    assert 950 < outcome.spent <= 1_000


@pytest.mark.parametrize("given", [8, 9])
def test_enough_prompts_are_looked_at_first(given: int) -> None:
    env = logistic(*np.linspace(-1, 1, 30))
    _, writer = search(env, 1_500, given=given)
    assert writer.wishes and writer.wishes[0].outcome.spent > 0


def test_nothing_comes_and_the_search_goes_on_with_what_there_is() -> None:
    env = logistic(-0.5)
    outcome, writer = search(env, 300, come=[0, 0, 0], most=3)
    check(outcome, writer, 300)
    assert outcome.complete and len(writer.wishes) <= 3 and outcome.spent > 250


def test_new_prompts_answer_first_what_their_parents_have_answered() -> None:
    env = logistic(*np.random.default_rng(2).normal(0, 0.5, 16), n_queries=400)
    _, writer = search(env, 1_200, given=8, most=1)
    assert writer.problem.n_prompts == 16
    known = set(joined(writer.wishes[0].outcome.observations).pulls.query.tolist())
    first = env.asked[len(writer.wishes[0].outcome.observations)]
    assert set(range(8, 16)) <= set(first.prompt.tolist())
    assert known <= set(first.query[first.prompt >= 8].tolist())  # few were, so that others follow


def test_bad_newcomers_are_put_aside_after_few_completions() -> None:
    env = logistic(1.0, *[-2.5] * 32)
    outcome, writer = search(env, 1_500, most=4)
    drawn = joined(outcome.observations).pulls
    assert {arm.prompt for arm in outcome.policy.arms} == {0}
    assert len(writer.wishes) == 1  # what their parents' children were says that others will not be better
    each = np.bincount(drawn.prompt, drawn.size)[1:]
    assert np.sort(each)[:4].max() <= 15 and outcome.spent < 1_000  # nothing is left that is worth its price


@pytest.mark.parametrize(("level", "drawn"), [(0.3, [1, 0, 0, 1, 1]), (2.5, [1, 0, 0, 0, 0])])
def test_the_last_rounds_draw_the_given_prompt_unless_it_is_surely_behind(level: float, drawn: list[int]) -> None:
    outcome, _ = search(logistic(0.0, *[level] * 8), 900, most=1, price=[0.0, 0.0], seed=2)
    assert outcome.policy.arms[0].prompt > 0
    assert [0 in o.pulls.prompt for o in outcome.observations] == drawn


def test_it_goes_on_from_what_is_known() -> None:
    env = logistic(*np.linspace(-1, 1, 14))
    before = problem(6, env)
    known = joined(drive(Auto().start(before, budget=400, seed=5), env).observations)
    env.asked.clear()
    start = replace(before, known=known)
    writer = Writer(start, env)
    outcome = drive(Generations(most=1).start(start, budget=known.pulls.completions + 500, seed=5), env, writer.more)
    check(outcome, writer, known.pulls.completions + 500)
    assert outcome.spent == known.pulls.completions + sum(p.completions for p in env.asked)
    assert np.array_equal(outcome.observations[0].pulls.query, known.pulls.query)
    assert writer.problem.n_prompts == 14 and outcome.policy.arms[0].prompt > 9


def test_what_cannot_work_is_refused_before_the_first_draw() -> None:
    env = logistic(*[0.0] * 12)
    start = problem(6, env)
    assert Generations().least(start) == 6
    with pytest.raises(BudgetTooSmall, match="at least 6"):
        Generations().start(start, budget=5, seed=0)
    with pytest.raises(ConfigurationError, match="join later"):
        Generations().start(replace(start, present=3), budget=50, seed=0)
    for wrong in ({"most": 0}, {"size": 0}, {"size": 2.5}, {"most": True}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            Generations(**wrong)
    with pytest.raises(ConfigurationError, match="`more`"):
        drive(Generations().start(start, budget=500, seed=0), env)


@pytest.mark.parametrize("answer", [lambda p: replace(p, n_prompts=2), lambda p: replace(p, n_queries=9)])
def test_an_answer_that_does_not_fit_is_refused(answer: Callable[[Problem], Problem]) -> None:
    env = logistic(*[0.0] * 12)
    start = problem(3, env)
    with pytest.raises(ConfigurationError, match="n_prompts, parts and parent grown"):
        drive(Generations().start(start, budget=500, seed=0), env, lambda wish: answer(start))
    assert not env.asked


class Written:
    """An estimator that says what it is told."""

    values = np.array(  # [P, V, N]: prompt 0 gains by votes, prompt 1 does not, prompt 2 is alone on query 3
        [
            [[0.4, 0.8], [0.4, 0.8], [0.2, 0.4], [0.9, 0.9]],
            [[0.6, 0.6], [0.8, 0.8], [0.3, 0.3], [0.9, 0.9]],
            [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.1, 0.1]],
        ]
    )

    def __init__(self, problem: Problem) -> None:
        pass

    def update(self, observations: object) -> None:
        pass

    def evidence(self) -> Evidence:
        zeros, values = np.zeros((1, 3, 2)), (Dense(self.values),)
        return Evidence(
            values=values,
            influence=values,
            n_visited=4,
            bias=zeros,
            doubt=zeros,
            queries=np.full((3, 2), 4),
            row=np.zeros(2, dtype=int),
            factor=np.ones(2),
            cost=np.tile([0.1, 0.2], (3, 1)),
        )


def test_fronts_by_hand() -> None:
    asked = replace(problem_of(MV, n_prompts=3, n_queries=9, max_n=2, weights=np.ones((2, 1)), price=[0.0, 3.0]))
    state = Ranking(asked, estimator=Written)
    assert not front(state).any()
    pulls = [(p, x, 1) for p in (0, 1) for x in (0, 2, 5)] + [(2, 8, 1)]
    state.observe(observe(pulls, np.zeros(7), cost=np.full(7, 0.1)), np.arange(3))
    # Free: prompt 0 votes by 2: .8, .8, .4 against .6, .8, .3. Dear, .3 a completion: N = 1 for both.
    np.testing.assert_allclose(front(state), [[2.5, 0.5, 1.0], [0.0, 3.0, 1.0]])


def test_gains_of_a_generation_by_hand() -> None:
    assert expected_best(0.0, 1.0, 1) == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-5)
    # The larger of two normal draws has mean 1 / sqrt(pi); far below the bar it gains nothing, far above all of it.
    assert expected_best(50.0, 1.0, 2) == pytest.approx(50.0 + 1 / math.sqrt(math.pi), abs=1e-5)
    assert expected_best(-50.0, 1.0, 2) == 0.0
    assert expected_best(0.0, 0.3, 8) > expected_best(0.0, 0.3, 4) > expected_best(-0.1, 0.3, 4)
    rng = np.random.default_rng(0)
    drawn = np.maximum((0.1 * rng.normal(size=(200_000, 5)) - 0.05).max(axis=1), 0.0)
    assert expected_best(-0.05, 0.1, 5) == pytest.approx(drawn.mean(), abs=1e-3)


def test_what_children_have_beyond_their_parents_by_hand() -> None:
    parent, utility = np.array([-1, -1, 0, 1, 0]), np.array([0.5, 0.2, 0.6, 0.4, np.nan])
    assert offspring(utility[:2], np.zeros(2), parent[:2], 0.1) == (0.0, 0.1)
    # Two children, +.1 and +.2: their mean, shrunk by one of 0; their variance, shrunk by four of the prior.
    mean, spread = offspring(utility, np.zeros(5), parent, 0.1)
    assert mean == pytest.approx(0.3 / 3)
    assert spread == pytest.approx(math.sqrt((4 * 0.01 + 2 * 0.05**2) / 6))
    mean, spread = offspring(utility, np.full(5, 0.2), parent, 0.1)  # they may be further apart than they seem
    assert spread == pytest.approx(math.sqrt((4 * 0.01 + 2 * 0.05**2 + 2 * 0.04) / 6))
