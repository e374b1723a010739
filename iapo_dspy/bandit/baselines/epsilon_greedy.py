"""Epsilon-greedy exploration, one pull at a time."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.baselines.sequential import pick_best, pick_unseen, run_sequentially
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["epsilon_greedy"]


def epsilon_greedy(problem: Problem, *, budget: int, seed: int, epsilon: float = 0.15) -> Algorithm:
    """Pull the best arm of a random context, or with probability epsilon any arm.

    An arm without a block comes before all others.

    Args:
        problem: The problem.
        budget: T >= 1, completions.
        seed: Seed of the run, >= 0.
        epsilon: In [0, 1]; the paper's is 0.15.

    Raises:
        BudgetTooSmall: The budget is below 1.
        ConfigurationError: epsilon out of range.
    """
    check_budget(budget, seed, least=1, what="epsilon-greedy")
    if not 0 <= epsilon <= 1:
        raise ConfigurationError(f"epsilon is {epsilon!r}; give a number from 0 to 1.")

    def rule(rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        unseen = pick_unseen(rng, count)
        if unseen is not None:
            return unseen
        if rng.random() < epsilon:
            return int(rng.integers(len(q)))
        return pick_best(rng, q)

    return run_sequentially(problem, rule, budget=budget, seed=seed)
