"""A random arm for each context: the floor of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.baselines.uniform import Baseline
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Run
from iapo_dspy.bandit.problem import Problem


@dataclass(frozen=True)
class RandomPolicy(Baseline):
    """Choose a uniformly random arm for each context, without a single pull."""

    def least(self, problem: Problem) -> int:
        """Implement `Algorithm.least`."""
        return 0

    def run(self, problem: Problem, budget: int, seed: int) -> Run:
        """Implement `Baseline.run`; the budget is not used."""
        state = Elimination(problem, estimator=BlockEstimator)
        arms = problem.n_prompts * problem.max_n
        chosen = np.random.default_rng(seed).integers(arms, size=problem.n_contexts)
        state.active = (np.arange(arms) == chosen[:, None]).reshape(problem.shape)
        yield from ()
        return state.outcome(complete=True)
