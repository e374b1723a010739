"""What the one-pull-at-a-time baselines share: epsilon-greedy, softmax and UCB.

Each step draws a context at random, lets the rule choose one arm for it, pulls that arm once on a random query, and
shares the completions across contexts and smaller scales by block reuse. Only arms that still fit the budget can be
chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import CostScale
from iapo_dspy.bandit.algorithms.trimming import best_arms
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Algorithm, Outcome, Round
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray, Observations, Pulls

__all__ = ["Rule", "pick_best", "pick_unseen", "run_sequentially"]

Rule = Callable[[np.random.Generator, FloatArray, IntArray], int]
"""(rng, estimated utility of each arm in the context, 0 before its first block; its blocks) -> chosen position."""


def run_sequentially(problem: Problem, rule: Rule, *, budget: int, seed: int) -> Algorithm:
    """Pull one arm at a time until no completion is left.

    Args:
        problem: The problem.
        rule: How an arm is chosen.
        budget: T, completions.
        seed: Seed of contexts, queries and the rule.

    Returns:
        The run. Its outcome has one `Round` for all steps and keeps no observations.
    """
    rng = np.random.default_rng(seed)
    table = _Table(problem)
    scale_of = np.tile(np.arange(1, problem.max_n + 1), problem.n_prompts)
    spent = steps = 0
    complete = True
    while complete and spent < budget:
        context = int(rng.integers(problem.n_contexts))
        left = budget - spent
        if left >= problem.max_n:
            arm = rule(rng, table.q[context], table.count)
        else:
            fits = np.flatnonzero(scale_of <= left)
            arm = int(fits[rule(rng, table.q[context, fits], table.count[fits])])
        query = rng.integers(problem.n_queries, size=1)
        pulls = Pulls(np.array([arm // problem.max_n]), query, scale_of[arm : arm + 1])
        observations = yield pulls
        made = observations.pulls.completions
        spent += made
        steps += len(observations.pulls)
        if made:
            table.observe(observations)
        complete = made == pulls.completions and (not observations.exhausted or spent >= budget)
    return table.outcome(spent, steps, complete)


def pick_unseen(rng: np.random.Generator, count: IntArray) -> int | None:
    """Return the position of a random arm without a block, None once all have one.

    Every rule looks at all arms first: an estimate of 0 for an arm that nobody has looked at is a bias towards or
    against it, depending on where the utility's zero happens to lie.
    """
    unseen = np.flatnonzero(count == 0)
    return int(unseen[rng.integers(len(unseen))]) if len(unseen) else None


def pick_best(rng: np.random.Generator, values: FloatArray) -> int:
    """Return the position of the largest value, ties at random."""
    best = np.flatnonzero(values == values.max())
    return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])


class _Table:
    """Estimates of all arms, refreshed one prompt at a time."""

    def __init__(self, problem: Problem) -> None:
        self.q = np.zeros((problem.n_contexts, problem.n_prompts * problem.max_n))
        self.count = np.zeros(problem.n_prompts * problem.max_n, dtype=np.int64)
        self._problem = problem
        self._estimator = BlockEstimator(problem)
        if not problem.contexts.plain:
            raise ConfigurationError("This algorithm knows costs only; rates and caps need 'auto' or 'psst'.")
        self._scale = CostScale(problem)
        self._used_scale = self._scale.value

    def observe(self, observations: Observations) -> None:
        self._estimator.update(observations)
        self._scale.observe(observations)
        if self._scale.value != self._used_scale:  # only while a scale is being learnt
            self._used_scale = self._scale.value
            q = self._estimator.estimates().utility(self._problem.contexts, self._used_scale)
            self.q[:] = np.where(np.isnan(q), 0.0, q).reshape(self.q.shape)
        prompt = int(observations.pulls.prompt[0])
        found = self._estimator.of_prompt(prompt)
        arms = slice(prompt * self._problem.max_n, (prompt + 1) * self._problem.max_n)
        q = found.reward - self._problem.contexts.cost[:, None] * (self._used_scale * found.cost)
        self.q[:, arms] = np.where(found.count > 0, q, 0.0)
        self.count[arms] = found.count

    def outcome(self, spent: int, steps: int, complete: bool) -> Outcome:
        estimates = self._estimator.estimates()
        q = estimates.utility(self._problem.contexts, self._used_scale)
        everything = np.ones(self._problem.shape, dtype=bool)
        return Outcome(
            policy=best_arms(q, estimates.cost, everything),
            q=q,
            estimates=estimates,
            spent=spent,
            rounds=(Round(active=everything, pulls=steps, completions=spent),),
            observations=(),
            cost_scale=self._used_scale,
            complete=complete,
        )
