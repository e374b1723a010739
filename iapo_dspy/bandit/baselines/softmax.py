"""Softmax exploration, one pull at a time."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.baselines.sequential import pick_unseen, run_sequentially
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["softmax"]


def softmax(problem: Problem, *, budget: int, seed: int, temperature: float = 0.05) -> Algorithm:
    """Pull an arm of a random context with probability proportional to exp(Q / temperature).

    An arm without a block comes before all others.

    Args:
        problem: The problem.
        budget: T >= 1, completions.
        seed: Seed of the run, >= 0.
        temperature: > 0, in utility; the reference's is 0.05.

    Raises:
        BudgetTooSmall: The budget is below 1.
        ConfigurationError: temperature out of range.
    """
    check_budget(budget, seed, least=1, what="softmax")
    if not temperature > 0:
        raise ConfigurationError(f"temperature is {temperature!r}; give a number > 0.")

    def rule(rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        unseen = pick_unseen(rng, count)
        if unseen is not None:
            return unseen
        below = np.cumsum(np.exp((q - q.max()) / temperature))
        return int(min(np.searchsorted(below, rng.random() * below[-1], side="right"), len(q) - 1))

    return run_sequentially(problem, rule, budget=budget, seed=seed)
