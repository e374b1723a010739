"""Baselines that pull one arm at a time, and the constants of their papers."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from iapo_dspy.bandit.algorithms.screening import Screening
from iapo_dspy.bandit.baselines.sequential import UCB, EpsilonGreedy, Sequential, Softmax, pick_best
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from tests.support.recordings import PAPER, spy


def test_the_ucb_index_is_the_mean_plus_c_times_the_root_of_ln_t_over_n():
    rule = UCB().rule
    rng, count = np.random.default_rng(0), np.array([100, 10])
    # ln 110 = 4.70: the bonuses are .0217 and .0686; with t instead of ln t they would be .105 and .332.
    assert rule(rng, np.array([0.50, 0.49]), count) == 1
    assert rule(rng, np.array([0.60, 0.49]), count) == 0
    assert rule(rng, np.array([0.60, 0.49]), np.array([100, 0])) == 1  # unseen first


def test_all_rules_look_at_every_arm_before_they_compare():
    q, count = np.array([3.0, 0.0]), np.array([4, 0])
    for baseline in (Softmax(), EpsilonGreedy()):
        assert {baseline.rule(np.random.default_rng(s), q, count) for s in range(50)} == {1}


def test_softmax_and_epsilon_choose_as_often_as_their_papers_say():
    count = np.array([5, 5])
    rule = Softmax().rule
    chosen = [rule(np.random.default_rng(s), np.array([0.5, 0.45]), count) for s in range(4000)]
    assert np.mean(chosen) == pytest.approx(1 / (1 + np.e), abs=0.03)  # a gap of one temperature, .05
    rule = EpsilonGreedy().rule
    chosen = [rule(np.random.default_rng(s), np.array([0.5, 0.45]), count) for s in range(4000)]
    assert np.mean(chosen) == pytest.approx(0.15 / 2, abs=0.02)


def test_the_papers_constants():
    defaults: dict[Callable[..., Any], tuple[str, float]] = {
        UCB: ("c", 0.1),
        Softmax: ("temperature", 0.05),
        EpsilonGreedy: ("epsilon", 0.15),
        Screening: ("rho", 0.2),
    }
    for function, (name, value) in defaults.items():
        assert inspect.signature(function).parameters[name].default == value


SEQUENTIAL: list[Any] = [EpsilonGreedy, Softmax, UCB]


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


def test_rules_see_means_and_counts_and_choose_an_arm():
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
