"""Optional hooks of aggregators: built-in aggregators and a user's own offer the same through them."""

from __future__ import annotations

import numpy as np
import pytest

from iapo_dspy.bandit.aggregators.blockwise import Blockwise
from iapo_dspy.bandit.aggregators.majority import MajorityVoteAggregator
from iapo_dspy.bandit.aggregators.maximum import BestOfNAggregator
from iapo_dspy.bandit.aggregators.port import ClosedForm, Modelled, Stoppable, WeightRows, distinct_rows
from iapo_dspy.bandit.algorithms.auto import Auto
from iapo_dspy.bandit.algorithms.psst import PSST
from iapo_dspy.bandit.cells import Cells
from iapo_dspy.bandit.models.port import FittedModel, Predictions
from iapo_dspy.bandit.outcome import Outcome
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.bandit.stopping.estimates import StopEstimates
from iapo_dspy.bandit.stopping.replays import Ended, replayed
from iapo_dspy.bandit.stops import observed_calls, with_stops
from iapo_dspy.environments.port import drive
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import Arm, FloatArray, IntArray, Stop
from tests.support.draws import Coins, problem_of

N = 8


class AnyRight(Blockwise):
    """A call is right if any of its completions is: its law is known, and one right completion settles it."""

    reach = None

    def check(self, n_objectives: int) -> None:
        """Accept everything."""

    def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
        return np.asarray(weights[:, 0, None] * np.nan_to_num(score[:, :, 0]).max(axis=1))

    def rows(self, weights: FloatArray) -> WeightRows:
        return distinct_rows(weights)

    def model(self, rows: FloatArray, n_prompts: int, max_n: int, parts: IntArray | None = None) -> RightShares:
        return RightShares(max_n)

    def settling(self, n: int) -> Stop | None:
        return Stop(waves=(1, n)) if n > 1 else None

    def observed(self, cells: Cells, weights: FloatArray, stops: tuple[Stop, ...]) -> FloatArray:
        right = np.nan_to_num(cells.score[:, 0])
        return replayed(cells, stops, lambda index, options: self.ends(right[index], options))

    @staticmethod
    def ends(right: FloatArray, options: tuple[Stop, ...]) -> Ended:
        """What calls do that stop after the first completion if that is right."""
        drawn = np.stack([np.where(right[:, 0] > 0, 1, stop.waves[-1]) for stop in options], axis=1)
        waves = np.repeat(np.where(right[:, :1] > 0, 1, 2), len(options), axis=1)
        return Ended(np.zeros(drawn.shape), drawn, waves)


class RightShares:
    """Each prompt is right as often as it was, on every query alike."""

    def __init__(self, max_n: int) -> None:
        self.max_n, self.fits = max_n, 0
        self.theta = np.empty(0)

    def predict(self, cells: Cells) -> Predictions:
        self.fits += 1
        prompt = cells.prompt[cells.owner]
        right = np.bincount(prompt, np.nan_to_num(cells.score[:, 0]), cells.n_prompts)
        self.theta = (right + 1) / (np.bincount(prompt, minlength=cells.n_prompts) + 2)
        reward = 1.0 - (1.0 - self.theta[:, None]) ** np.arange(1, self.max_n + 1)
        every = np.repeat(reward[None, :, None], cells.n_visited, axis=2)
        return Predictions(given_all=every, given_others=every.copy(), model=self)

    def stops(self, row: int, prompts: IntArray, max_n: int, *, exact: bool = False) -> StopEstimates:
        n = np.arange(2, max_n + 1)
        rest = 1.0 - self.theta[prompts, None]
        return StopEstimates(
            prompts=prompts,
            stops=tuple(Stop(waves=(1, int(k))) for k in n),
            gain=np.zeros((len(prompts), len(n))),
            completions=1.0 + rest * (n - 1),
            waves=np.repeat(1.0 + rest, len(n), axis=1),
        )


def modelled() -> Problem:
    """Free completions for one context, and dear ones for another."""
    weights = np.ones((2, 1))
    return problem_of(AnyRight(), n_prompts=2, n_queries=60, max_n=N, weights=weights, price=[0.0, 0.02])


def run(budget: int = 2_000) -> tuple[Outcome, Coins]:
    env = Coins(np.array([[0.5] * 60, [0.2] * 60]), seed=3)
    problem = modelled()
    return drive(Auto().start(problem, budget=budget, seed=0), env), env


@pytest.mark.parametrize("aggregator", [MajorityVoteAggregator(), BestOfNAggregator(), AnyRight()])
def test_the_built_in_aggregators_have_the_hooks_that_anyones_may_have(aggregator) -> None:
    assert isinstance(aggregator, Modelled) and isinstance(aggregator, Stoppable)
    assert isinstance(aggregator, ClosedForm) != isinstance(aggregator, AnyRight)


def test_a_model_of_the_user_predicts_scales_that_were_never_drawn() -> None:
    outcome, env = run(budget=60)
    assert max(int(p.size.max()) for p in env.asked) < N  # no query has N completions
    assert outcome.detail is not None and outcome.detail.modelled
    assert isinstance(outcome.detail.model, FittedModel)
    assert outcome.policy[0].n == N and outcome.reward[0, 0, N - 1] == pytest.approx(1 - 0.5**N, abs=0.05)


def test_rules_of_the_user_are_chosen_by_the_default_algorithm() -> None:
    outcome, _ = run()
    problem = modelled()
    for mode in ("exact", "confidence"):
        stopped = with_stops(problem, outcome, mode=mode)
        for before, arm, found in zip(outcome.policy.arms, stopped.policy.arms, stopped.stops or (), strict=True):
            assert arm.stop == Stop(waves=(1, arm.n))
            assert mode == "confidence" or (arm.prompt, arm.n) == (before.prompt, before.n)
            assert found.completions == pytest.approx(1 + 0.5 * (arm.n - 1), abs=0.4) and found.gain == 0.0
            cells = Cells.of(outcome.observations, 2, 1)
            calls = observed_calls(problem, cells, 0, arm)
            assert calls[0][~np.isnan(calls[0])].max(initial=0.0) == 0.0


def test_without_a_model_rules_that_change_nothing_are_observed() -> None:
    env = Coins(np.array([[0.5] * 60, [0.2] * 60]), seed=3)
    problem = problem_of(AnyRight(), n_prompts=2, n_queries=60, max_n=N)
    outcome = drive(PSST().start(problem, budget=4_000, seed=0), env)
    (found,) = with_stops(problem, outcome).stops or ()
    assert found.arm.stop == Stop(waves=(1, found.arm.n))
    assert found.completions == pytest.approx(1 + 0.5 * (found.arm.n - 1), abs=0.6)


def test_an_aggregator_without_rules_refuses_to_replay_one() -> None:
    class Plain(Blockwise):
        def check(self, n_objectives: int) -> None: ...

        def reward(self, label: IntArray, score: FloatArray, weights: FloatArray) -> FloatArray:
            return np.zeros((len(weights), len(label)))

    outcome, _ = run(budget=60)
    cells = Cells.of(outcome.observations, 2, 1)
    with pytest.raises(ConfigurationError, match="Plain has no stopping rule"):
        observed_calls(problem_of(Plain(), n_prompts=2), cells, 0, Arm(0, 2, Stop(waves=(1, 2))))
