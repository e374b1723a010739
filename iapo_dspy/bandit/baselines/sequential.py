"""The one-pull-at-a-time baselines: epsilon-greedy, softmax and UCB.

Each step draws a context at random, lets the rule choose one arm for it, pulls that arm once on a random query, and
shares the completions across contexts and smaller scales by block reuse. Only arms that still fit the budget can be
chosen. An arm without a block comes before all others, because an estimate of 0 for an arm that was never pulled is a
bias towards or against it, depending on where the utility's zero happens to lie.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from iapo_dspy.bandit.algorithms.standing import joined
from iapo_dspy.bandit.algorithms.trimming import best_arms
from iapo_dspy.bandit.baselines.uniform import Baseline
from iapo_dspy.bandit.costs.scale import CostScale
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.estimators.port import Estimates
from iapo_dspy.bandit.outcome import Outcome, Round, Run, interim
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Interim, Observations, Policy, Pulls

_ROUNDS = 10  # that the steps of a run are told as, alike in completions


class Sequential(Baseline):
    """Pulls one arm at a time until no completion is left; its outcomes have one `Round` for all steps."""

    @abstractmethod
    def compare(self, rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        """Return the position of the arm to pull, once every arm has a block.

        Args:
            rng: The run's own.
            q: Estimated utility of each arm in the context.
            count: Blocks of each arm, >= 1.
        """

    def rule(self, rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        """Return the position of the arm to pull: a random one without a block, then as `compare` says."""
        unseen = np.flatnonzero(count == 0)
        return int(unseen[rng.integers(len(unseen))]) if len(unseen) else self.compare(rng, q, count)

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""
        return 1

    def start(self, problem: Problem, *, budget: int, seed: int) -> Run:
        """Implement `Algorithm.start`.

        Raises:
            ConfigurationError: Also where contexts price or cap resources by themselves.
        """
        if not problem.contexts.plain:
            raise ConfigurationError("This algorithm knows costs only; rates and caps need 'auto' or 'psst'.")
        return super().start(problem, budget=budget, seed=seed)

    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Implement `Baseline.run`."""
        rng = np.random.default_rng(seed)
        table = _Table(problem)
        scale_of = np.tile(np.arange(1, problem.max_n + 1), problem.n_prompts)
        spent = steps = told = 0
        complete = True
        while complete and spent < budget:
            context = int(rng.integers(problem.n_contexts))
            left = budget - spent
            if left >= problem.max_n:
                arm = self.rule(rng, table.q[context], table.count)
            else:
                fits = np.flatnonzero(scale_of <= left)
                arm = int(fits[self.rule(rng, table.q[context, fits], table.count[fits])])
            query = rng.integers(problem.n_queries, size=1)
            pulls = Pulls(np.array([arm // problem.max_n]), query, scale_of[arm : arm + 1])
            if (over := spent * _ROUNDS // budget) > told:
                told, pulls = over, replace(pulls, interim=table.interim(rounds_left=_ROUNDS - over))
            observations = yield pulls
            made = observations.pulls.completions
            spent += made
            steps += len(observations.pulls)
            if made:
                table.observe(observations)
            complete = made == pulls.completions and (not observations.exhausted or spent >= budget)
        return table.outcome(spent, steps, complete)


@dataclass(frozen=True)
class EpsilonGreedy(Sequential):
    """Pull the best arm of a random context, or with probability epsilon any arm.

    Args:
        epsilon: In [0, 1]; the paper's is 0.15.

    Raises:
        ConfigurationError: epsilon out of range.
    """

    epsilon: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ConfigurationError(f"epsilon is {self.epsilon!r}; give a number from 0 to 1.")

    def compare(self, rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        """Implement `Sequential.compare`."""
        return int(rng.integers(len(q))) if rng.random() < self.epsilon else pick_best(rng, q)


@dataclass(frozen=True)
class Softmax(Sequential):
    """Pull an arm of a random context with probability proportional to exp(Q / temperature).

    Args:
        temperature: > 0, in utility; the reference's is 0.05.

    Raises:
        ConfigurationError: temperature out of range.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigurationError(f"temperature is {self.temperature!r}; give a number > 0.")

    def compare(self, rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        """Implement `Sequential.compare`."""
        below = np.cumsum(np.exp((q - q.max()) / self.temperature))
        return int(min(np.searchsorted(below, rng.random() * below[-1], side="right"), len(q) - 1))


@dataclass(frozen=True)
class UCB(Sequential):
    """Pull the arm of a random context with the largest index mean + c sqrt(ln t / n).

    n is the number of blocks behind the arm and t that of all arms.

    Args:
        c: Exploration constant >= 0, in utility; the paper's is 0.1.

    Raises:
        ConfigurationError: c out of range.
    """

    c: float = 0.1

    def __post_init__(self) -> None:
        if not self.c >= 0:
            raise ConfigurationError(f"c is {self.c!r}; give a number >= 0.")

    def compare(self, rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        """Implement `Sequential.compare`."""
        return pick_best(rng, q + self.c * np.sqrt(math.log(int(count.sum())) / count))


def pick_best(rng: np.random.Generator, values: FloatArray) -> int:
    """Return the position of the largest value, ties at random."""
    best = np.flatnonzero(values == values.max())
    return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])


class _Table:
    """Estimates of all arms, the arms of one prompt after those of another."""

    def __init__(self, problem: Problem) -> None:
        self.q = np.zeros((problem.n_contexts, problem.n_prompts * problem.max_n))
        self.count = np.zeros(problem.n_prompts * problem.max_n, dtype=np.int64)
        self._problem = problem
        self._estimator = BlockEstimator(problem)
        self._scale = CostScale(problem)
        self._observations: list[Observations] = []

    def observe(self, observations: Observations) -> None:
        self._observations.append(observations)
        self._estimator.update(observations)
        self._scale.observe(observations)
        estimates = self._estimator.estimates()
        q = estimates.utility(self._problem.contexts, self._scale.value)
        self.q[:] = np.where(np.isnan(q), 0.0, q).reshape(self.q.shape)
        self.count = estimates.count.reshape(-1)

    def interim(self, *, rounds_left: int) -> Interim:
        policy, q, _ = self._chosen()
        return interim(policy, q, None, rounds_left=rounds_left)

    def _chosen(self) -> tuple[Policy, FloatArray, Estimates]:
        estimates = self._estimator.estimates()
        q = estimates.utility(self._problem.contexts, self._scale.value)
        return best_arms(q, estimates.cost, np.ones(self._problem.shape, dtype=bool)), q, estimates

    def outcome(self, spent: int, steps: int, complete: bool) -> Outcome:
        policy, q, estimates = self._chosen()
        everything = np.ones(self._problem.shape, dtype=bool)
        return Outcome(
            policy=policy,
            q=q,
            estimates=estimates,
            spent=spent,
            rounds=(Round(active=everything, pulls=steps, completions=spent),),
            observations=(joined(self._observations),) if self._observations else (),
            cost_scale=self._scale.value,
            complete=complete,
        )
