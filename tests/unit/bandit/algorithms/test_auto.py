"""The default algorithm: never above its budget, on shared queries, and right on worlds whose best arms are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import Aggregator
from iapo_dspy.bandit.algorithms import auto
from iapo_dspy.bandit.algorithms.auto import Auto, expected_gain, spread_out, survivors
from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.estimators.corrected import CorrectedEstimator
from iapo_dspy.bandit.models.exact import majority_vote_rewards
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.environments.recorded.synthetic import synthetic_categorical
from iapo_dspy.environments.wrappers import Arrivals, Failures
from iapo_dspy.errors import BudgetTooSmall, ConfigurationError
from iapo_dspy.types import Arm, Contexts, FloatArray, Observations
from tests.support.draws import Coins

MV, BEST = MajorityVoteAggregator(), BestOfNAggregator()


def problem(env: Coins, price: list[float] | None = None, max_n: int = 8, aggregator: Aggregator = MV) -> Problem:
    cost = np.array([0.0] if price is None else price)
    return Problem(
        n_prompts=env.n_prompts,
        n_queries=env.n_queries,
        max_n=max_n,
        contexts=Contexts(np.ones((len(cost), 1)), cost),
        aggregator=aggregator,
        cost_scale=0.01,
    )


def run(env: Coins, budget: int, *, seed: int = 0, **settings) -> Outcome:
    return drive(Auto().start(problem(env, **settings), budget=budget, seed=seed), env)


def check(outcome: Outcome, env: Coins, budget: int) -> None:
    """What holds for every run."""
    shape = outcome.q.shape
    assert outcome.spent <= budget
    assert outcome.spent == sum(o.pulls.completions for o in outcome.observations)
    assert [r.completions for r in outcome.rounds] == [o.pulls.completions for o in outcome.observations]
    assert len(outcome.policy) == shape[0]
    assert all(0 <= arm.prompt < shape[1] and 1 <= arm.n <= shape[2] for arm in outcome.policy.arms)
    assert all(len(pulls) for pulls in env.asked)  # nothing is asked for nothing
    for r, pulls in zip(outcome.rounds, env.asked, strict=True):
        assert set(pulls.prompt.tolist()) == set(np.flatnonzero(r.active.any(axis=(0, 2))).tolist())
        assert pulls.size.max() <= shape[2]


# --- the budget ---


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 12)),
    st.integers(1, 9),
    st.integers(0, 300),
    st.sampled_from([MV, BEST, BestOfNAggregator(floors=(0.5,))]),
    st.sampled_from([None, "failures", "all fail", "exhausted", "one broken"]),
    st.integers(0, 10**6),
)
def test_no_run_spends_more_than_its_budget(shape, max_n, extra, aggregator, trouble, seed) -> None:
    theta = np.random.default_rng(seed).random(shape)
    budget = shape[0] + extra
    env = Coins(theta, seed=seed, broken=(0,) if trouble == "one broken" else ())
    env.left = budget // 2 if trouble == "exhausted" else budget
    world = Failures(env, share=1.0 if trouble == "all fail" else 0.3) if trouble in ("failures", "all fail") else env
    start = Auto().start(problem(env, price=[0.0, 1.0], max_n=max_n, aggregator=aggregator), budget=budget, seed=seed)
    with np.errstate(all="raise", under="ignore"):
        outcome = drive(start, world)
    check(outcome, env, budget)
    if trouble != "exhausted":
        assert outcome.complete
    elif outcome.spent < sum(p.completions for p in env.asked):
        assert not outcome.complete
    if trouble == "one broken" and shape[0] > 1:
        assert all(arm.prompt != 0 for arm in outcome.policy.arms)


class Judged(Coins):
    """Two objectives out of many values; right answers score higher on the first one."""

    def pull(self, pulls):
        seen = super().pull(pulls)
        noise = self.rng.normal(size=(len(seen.label), 2))
        score = noise + seen.score * np.array([1.0, 0.0])
        return type(seen)(pulls=seen.pulls, label=seen.label, score=score, cost=seen.cost, exhausted=seen.exhausted)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 6), st.integers(0, 150), st.integers(0, 10**6))
def test_several_objectives_keep_to_the_budget(n_prompts, n_queries, max_n, extra, seed) -> None:
    env = Judged(np.full((n_prompts, n_queries), 0.5), seed=seed)
    contexts = Contexts(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), np.array([0.0, 0.5, 1.0]))
    task = Problem(
        n_prompts=n_prompts, n_queries=n_queries, max_n=max_n, contexts=contexts, aggregator=BEST, cost_scale=None
    )
    outcome = drive(Auto().start(task, budget=n_prompts + extra, seed=seed), env)
    check(outcome, env, n_prompts + extra)
    assert np.isfinite(outcome.q).all()


@pytest.mark.parametrize(
    ("shape", "budget", "max_n"),
    [((2, 1), 40_000, 4), ((3, 10), 5_000, 32), ((100, 50), 100, 8), ((100, 30), 3_000, 8)],
)
def test_extreme_shapes(shape, budget, max_n) -> None:
    env = Coins(np.random.default_rng(0).random(shape))
    outcome = run(env, budget, max_n=max_n, price=[0.0, 0.5])
    check(outcome, env, budget)
    assert outcome.complete and np.isfinite(outcome.q).all() and np.isfinite(outcome.reward).all()


def test_budgets_below_one_completion_of_each_prompt_are_refused_at_once() -> None:
    env = Coins(np.full((7, 3), 0.5))
    assert Auto().least(problem(env)) == 7
    with pytest.raises(BudgetTooSmall, match="7 prompts once needs at least 7") as error:
        Auto().start(problem(env), budget=6, seed=0)  # no next()
    assert (error.value.given, error.value.least) == (6, 7)
    outcome = run(env, 7)
    assert outcome.spent == 7 and sorted(env.asked[0].prompt.tolist()) == list(range(7))
    for wrong in ({"budget": 9.5, "seed": 0}, {"budget": 9, "seed": -1}):
        with pytest.raises(ConfigurationError):
            Auto().start(problem(env), **wrong)


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"first_pull": 0}, {"growth": 0}, {"rounds": 2.5}])
def test_settings_out_of_range_are_refused(settings) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Auto(**settings)


# --- which queries, in which pulls ---


@pytest.mark.parametrize("budget", [60, 700, 6_000])
def test_prompts_alive_answer_the_same_queries_each_once_before_any_twice(budget: int) -> None:
    env = Coins(np.random.default_rng(1).random((6, 40)), seed=2)
    outcome = run(env, budget, max_n=8, seed=5)
    check(outcome, env, budget)
    asked: dict[int, list[int]] = {p: [] for p in range(6)}
    for pulls in env.asked:
        alive = np.unique(pulls.prompt)
        shares = [pulls.size[pulls.prompt == p].tolist() for p in alive]
        assert all(share == shares[0] for share in shares)  # as many, in pulls of the same size
        together = {len(asked[p]) for p in alive.tolist()}
        now = [pulls.query[pulls.prompt == p].tolist() for p in alive]
        if len(together) == 1:  # none was away in between
            assert all(queries == now[0] for queries in now)
        for p, queries in zip(alive.tolist(), now, strict=True):
            asked[p].extend(queries)
    longest = max(asked.values(), key=len)
    for queries in asked.values():
        assert queries == longest[: len(queries)]  # one order for all: who was away goes on where it stopped
        for begin in range(0, len(queries), 40):
            part = queries[begin : begin + 40]
            assert len(set(part)) == len(part)  # without replacement until all were used


def test_pulls_have_a_size_of_the_round_and_fewer_prompts_stay() -> None:
    env = Coins(np.clip(np.linspace(0.3, 0.6, 12)[:, None] + np.zeros((12, 3_000)), 0, 1))
    run(env, 12_000, max_n=16)
    size = [set(pulls.size.tolist()) for pulls in env.asked]
    assert all(len(s) == 1 for s in size)
    sizes = [s.pop() for s in size]
    assert sizes[0] == 2 and set(sizes) <= {1, 2, 4, 8, 16} and len(sizes) >= 4
    alive = [len(np.unique(pulls.prompt)) for pulls in env.asked]
    assert alive[0] == 12 and alive[-1] <= 3
    assert alive == [max(2, int(np.ceil(12 ** (1 - r / 7)))) for r in range(len(alive))]


def test_small_training_sets_get_larger_pulls_before_a_query_comes_twice() -> None:
    env = Coins(np.full((2, 5), 0.5))
    run(env, 80, max_n=16)
    first = env.asked[0]
    assert len(set(zip(first.prompt.tolist(), first.query.tolist(), strict=True))) == len(first)


def test_no_pull_is_larger_than_the_largest_scale() -> None:
    env = Coins(np.full((2, 5), 0.5))
    outcome = run(env, 500, max_n=1)
    check(outcome, env, 500)
    assert all((pulls.size == 1).all() for pulls in env.asked)


def test_the_same_seed_is_the_same_run() -> None:
    theta = np.random.default_rng(1).random((5, 30))
    runs = []
    for seed in (3, 3, 4):
        env = Coins(theta, seed=9)
        outcome = run(env, 900, seed=seed, price=[0.0, 1.0])
        runs.append((outcome, [(p.prompt.tolist(), p.query.tolist(), p.size.tolist()) for p in env.asked]))
    (one, asked), (two, again), (_, other) = runs
    assert asked == again and one.policy == two.policy and asked != other
    np.testing.assert_array_equal(one.q, two.q)


# --- what it finds ---


def deceptive(rng: np.random.Generator, x: int = 400) -> FloatArray:
    """Prompt 0: .71 at one completion, and settles at .65. Prompts 1 and 2: .62 and .60 everywhere. Others: poor."""
    easy = rng.permutation(x) < 0.65 * x
    steady = np.array([[0.62], [0.60], [0.4], [0.35], [0.3], [0.25]])
    return np.vstack([np.where(easy, 0.97, 0.22), np.clip(steady + 0.02 * rng.normal(size=(6, x)), 0, 1)])


def votes(theta: FloatArray, max_n: int) -> FloatArray:
    """Exact value of a prompt's vote at every scale [N]."""
    law = np.stack([theta, 1 - theta], axis=1)
    return majority_vote_rewards(law, np.tile([1.0, 0.0], (len(law), 1)), max_n).mean(axis=0)


def test_a_deceptive_prompt_is_told_from_one_that_scales() -> None:
    for seed in range(4):
        theta = deceptive(np.random.default_rng(seed))
        env = Coins(theta, seed=seed)
        outcome = run(env, 20_000, seed=seed, max_n=16, price=[0.0, 10.0])
        check(outcome, env, 20_000)
        quality, thrift = outcome.policy.arms
        assert quality.prompt in (1, 2) and quality.n >= 13  # .83 and .78; the deceptive prompt is worth .65 there
        assert thrift == Arm(0, 1)
        exact = votes(theta[quality.prompt], 16)[quality.n - 1]
        assert outcome.q[0, quality.prompt, quality.n - 1] == pytest.approx(exact, abs=0.07)


@pytest.mark.slow
def test_the_best_prompt_is_found_without_shared_structure() -> None:
    found = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        theta = np.where(rng.random((8, 300)) < np.array([[0.75]] + [[0.55]] * 7), 0.95, 0.05)
        found += run(Coins(theta, seed=seed), 3_000, seed=seed, max_n=8).policy[0].prompt == 0
    assert found >= 4


@pytest.mark.slow
def test_more_budget_does_not_hurt() -> None:
    """Mean exact value of the choice over seeds, at two budgets."""
    values = []
    for budget in (100, 4_000):
        total = 0.0
        for seed in range(5):
            theta = deceptive(np.random.default_rng(seed))
            arm = run(Coins(theta, seed=seed), budget, seed=seed, max_n=16).policy[0]
            total += votes(theta[arm.prompt], 16)[arm.n - 1]
        values.append(total / 5)
    assert values[1] > values[0] and values[1] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize("aggregator", [MV, BEST])
def test_prompts_whose_completions_all_fail_are_never_chosen(aggregator: Aggregator) -> None:
    """Not even where failing is free and everything else loses to its price."""
    env = Coins(np.full((3, 20), 0.1), cost=[0.0, 50.0, 60.0], broken=(0,))
    outcome = run(env, 300, price=[0.0, 5.0], aggregator=aggregator)
    assert all(arm.prompt != 0 for arm in outcome.policy.arms)
    assert np.isnan(outcome.q[:, 0]).all() and np.isfinite(outcome.q[:, 1:]).all()


def test_where_everything_fails_there_is_a_policy_all_the_same() -> None:
    env = Coins(np.full((3, 20), 0.5), broken=(0, 1, 2))
    outcome = run(env, 200)
    check(outcome, env, 200)
    assert len(outcome.policy) == 1


def test_an_environment_that_ends_at_once_is_reported() -> None:
    outcome = run(Coins(np.full((3, 20), 0.5), budget=0), 200)
    assert not outcome.complete and outcome.spent == 0 and outcome.policy[0] == Arm(0, 1)
    assert np.isnan(outcome.q).all() and not outcome.count.any()


def test_a_clear_winner_ends_the_run_early() -> None:
    theta = np.zeros((4, 4_000))
    theta[2] = 1.0
    env = Coins(theta)
    outcome = run(env, 20_000, price=[0.5], max_n=4)
    assert outcome.complete and outcome.policy[0] == Arm(2, 1)
    assert outcome.spent < 10_000


def test_a_tie_of_equal_prompts_goes_to_the_cheaper_one_and_to_one_completion() -> None:
    env = Coins(np.ones((3, 50)), cost=[3.0, 1.0, 2.0])
    assert run(env, 600, max_n=4).policy[0] == Arm(1, 1)  # price 0: costs count only between equals
    assert run(Coins(np.ones((2, 50)), cost=[1.0, 1.0], overhead=[5.0, 1.0]), 400, max_n=4).policy[0] == Arm(1, 1)


def test_survivors_are_the_chosen_and_those_with_the_most_to_gain() -> None:
    gain = np.array([0.1, 0.5, 0.0, 0.3, 0.2])
    assert survivors(gain, np.array([2]), 3).tolist() == [1, 2, 3]
    assert survivors(gain, np.array([2]), 1).tolist() == [1, 2]  # two at least: there is something to compare
    assert survivors(gain, np.array([0, 2, 4]), 1).tolist() == [0, 2, 4]  # no chosen one is dropped
    assert survivors(gain[:1], np.array([0]), 1).tolist() == [0]


def test_expected_gains_by_hand() -> None:
    found = expected_gain(np.array([0.0, 1.0, -1.0, -np.inf]), np.array([2.0, 0.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, [2 / np.sqrt(2 * np.pi), 1.0, 0.0, 0.0], atol=1e-11)
    rng = np.random.default_rng(0)
    drawn = np.maximum(rng.normal(-0.3, 0.5, 400_000), 0).mean()
    assert expected_gain(np.array([-0.3]), np.array([0.5]))[0] == pytest.approx(drawn, abs=2e-3)


@pytest.mark.parametrize(("overhead", "least"), [(0.0, 2), (9.0, 8), (200.0, 8)])
def test_dear_queries_are_asked_for_more_completions(overhead: float, least: int) -> None:
    problem = Problem(
        n_prompts=3,
        n_queries=60,
        max_n=8,
        contexts=Contexts(np.ones((1, 1)), np.zeros(1)),
        aggregator=MajorityVoteAggregator(),
    )
    rng = np.random.default_rng(5)
    run = Auto().start(problem, budget=400, seed=0)
    pulls = next(run)
    assert set(pulls.size.tolist()) == {2}  # nothing is known of the costs yet
    score = (rng.random(pulls.completions) < 0.6).astype(float)
    observed = Observations(
        pulls=pulls,
        label=(1 - score).astype(np.int64),
        score=score[:, None],
        cost=np.full(len(score), 5.0),
        overhead=np.full(len(pulls), 5.0 * overhead),
    )
    assert set(run.send(observed).size.tolist()) == {least}
    run.close()


def test_many_contexts_are_looked_at_by_some_of_them_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run draws for a few weights that leave none far away; then every context is estimated from all draws."""
    world = synthetic_categorical(3, n_prompts=6, n_queries=30)
    weights = np.stack([np.linspace(0, 1, 12), np.linspace(1, 0, 12)], axis=1).repeat(2, axis=0)
    contexts = Contexts(weights, np.tile([0.0, 0.2], 12))
    asked = replace(world.problem(8), contexts=contexts)
    assert spread_out(asked) is contexts
    monkeypatch.setattr(auto, "MOST_ROWS", 4)
    some = spread_out(asked)
    assert len(some) == 8 and len(np.unique(some.weights, axis=0)) == 4  # both prices of each
    gaps = np.abs(weights[:, None, 0] - some.weights[:, 0]).min(axis=1)
    assert gaps.max() < 2.5 / 11 and {0.0, 1.0} <= set(some.weights[:, 0].tolist())
    run = drive(Auto().start(asked, budget=700, seed=0), world.environment(0, 1))
    assert run.q.shape == asked.shape and len(run.policy) == 24 and run.spent <= 700
    again = Auto().solve(asked, run.observations)
    assert again.policy == run.policy
    np.testing.assert_array_equal(again.q, run.q)
    estimator = CorrectedEstimator(asked)  # one fit of everything
    for observations in run.observations:
        estimator.update(observations)
    np.testing.assert_allclose(run.reward, estimator.estimates().reward)


def test_prompts_that_join_take_part_from_the_next_round_on() -> None:
    theta = np.linspace(0.2, 0.9, 12)[:, None] + np.zeros((12, 60))
    env = Coins(theta)
    arrivals = Arrivals(env, generations=[4, 4, 4], at=[0, 500, 1_000])
    late = replace(problem(env, max_n=3), present=4)
    outcome = drive(Auto().start(late, budget=1_500, seed=0), arrivals)
    assert outcome.complete and outcome.spent <= 1_500
    assert outcome.policy[0].prompt == 11  # the best one comes last
    drawn, first = 0, dict[int, int]()
    for pulls in env.asked:
        for p in np.unique(pulls.prompt).tolist():
            first.setdefault(p, drawn)
        drawn += pulls.completions
    assert set(first) == set(range(12))
    for generation, at in enumerate((0, 500, 1_000)):
        came = [first[p] for p in range(4 * generation, 4 * generation + 4)]
        assert min(came) == max(came) and at <= came[0] <= at + 250
    asked = {p: [x for pulls in env.asked for x in pulls.query[pulls.prompt == p].tolist()] for p in range(12)}
    assert all(asked[p][0] == asked[0][0] for p in range(12))  # what the others have answered comes first


def drawn_before(env: Coins, budget: int, *, seed: int = 5, **changes) -> Observations:
    """What a run with these settings has drawn, as another run is given it."""
    return joined(drive(Auto().start(replace(problem(env), **changes), budget=budget, seed=seed), env).observations)


def logistic(n_prompts: int, *late: float) -> Coins:
    """Prompts of rising quality, and some behind them, on queries of different difficulty."""
    difficulty = np.random.default_rng(0).normal(0, 1.5, 300)
    return Coins(1 / (1 + np.exp(difficulty - np.append(np.linspace(-1, 1, n_prompts), late)[:, None])))


@pytest.mark.parametrize("seed", [5, 6])
def test_a_run_goes_on_from_what_is_known(seed: int) -> None:
    env = logistic(6)
    known = drawn_before(env, 600)
    env.asked.clear()
    more = replace(problem(env), known=known)
    outcome = drive(Auto().start(more, budget=900, seed=seed), env)
    new = sum(pulls.completions for pulls in env.asked)
    assert 880 < outcome.spent == known.pulls.completions + new <= 900
    assert np.array_equal(outcome.observations[0].pulls.query, known.pulls.query)
    answered = set(zip(known.pulls.prompt.tolist(), known.pulls.query.tolist(), strict=True))
    asked = [cell for pulls in env.asked for cell in zip(pulls.prompt.tolist(), pulls.query.tolist(), strict=True)]
    assert asked and not answered & set(asked)  # there are queries left that these prompts have not answered
    assert len({p for p, _ in asked}) < 6  # those that are behind are not drawn again


@pytest.mark.parametrize("budget", [300, 600])
def test_what_is_known_may_be_enough(budget: int) -> None:
    env = logistic(6)
    known = drawn_before(env, 600)
    env.asked.clear()
    dear = replace(problem(env, price=[5.0]), known=known)
    outcome = drive(Auto().start(dear, budget=min(budget, known.pulls.completions), seed=0), env)
    assert not env.asked and outcome.complete and outcome.spent == known.pulls.completions
    assert outcome.policy == Auto().solve(dear, [known]).policy


def test_new_prompts_join_a_run_that_was_over() -> None:
    env = logistic(6, -1.0, 0.0, 2.0)
    known = drawn_before(Coins(env.theta[:6]), 600, n_prompts=6)
    start = known.pulls.completions
    more = replace(problem(env), known=known)
    with pytest.raises(BudgetTooSmall, match=f"at least {start + 3}"):
        Auto().start(more, budget=start + 2, seed=0)
    outcome = drive(Auto().start(more, budget=start + 400, seed=0), env)
    first = env.asked[0]
    assert {6, 7, 8} <= set(first.prompt.tolist()) and len(set(first.prompt.tolist())) < 9
    assert set(first.query[first.prompt >= 6].tolist()) <= set(known.pulls.query.tolist())
    assert outcome.policy[0].prompt == 8
    assert sum(int(p.size[p.prompt >= 6].sum()) for p in env.asked) > 150


def test_a_little_that_is_known_leaves_nobody_out() -> None:
    env = logistic(4)
    known = drawn_before(env, 20)
    env.asked.clear()
    drive(Auto().start(replace(problem(env), known=known), budget=2_000, seed=0), env)
    assert set(env.asked[0].prompt.tolist()) == {0, 1, 2, 3}


def test_a_run_ends_where_the_rest_is_not_worth_its_price() -> None:
    spent: dict[int, list[int]] = {calls: [] for calls in (100, 10_000_000)}
    for seed in range(4):
        env = logistic(8)
        for calls, found in spent.items():
            found.append(drive(Auto(calls=calls).start(problem(env, [1.0]), budget=6_000, seed=seed), env).spent)
    assert max(spent[100]) < 3_000 and min(spent[10_000_000]) > 5_900


@pytest.mark.parametrize("more", [3, 4, 20])
@pytest.mark.parametrize("first", [0, 3])
def test_new_prompts_are_drawn_with_the_little_that_is_left(more: int, first: int) -> None:
    env = logistic(3, -1.0, 0.0, 2.0)
    old = np.arange(first, first + 3)
    known = drawn_before(Coins(env.theta[old]), 85, n_prompts=3)
    known = replace(known, pulls=replace(known.pulls, prompt=old[known.pulls.prompt]))
    budget = known.pulls.completions + more
    outcome = drive(Auto().start(replace(problem(env), known=known), budget=budget, seed=0), env)
    drawn = {p for pulls in env.asked for p in pulls.prompt.tolist()}
    assert drawn >= set(range(6)) - set(old.tolist())
    assert outcome.complete and budget - 3 < outcome.spent <= budget
