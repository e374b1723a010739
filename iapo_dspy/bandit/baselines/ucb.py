"""Upper confidence bounds, one pull at a time."""

from __future__ import annotations

import math

import numpy as np

from iapo_dspy.bandit.baselines.sequential import pick_best, pick_unseen, run_sequentially
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget
from iapo_dspy.errors import ConfigurationError
from iapo_dspy.types import FloatArray, IntArray

__all__ = ["ucb"]


def ucb(problem: Problem, *, budget: int, seed: int, c: float = 0.1) -> Algorithm:
    """Pull the arm of a random context with the largest index mean + c sqrt(ln t / n).

    n is the number of blocks behind the arm and t that of all arms; an arm without a block comes before all others.

    Args:
        problem: The problem.
        budget: T >= 1, completions.
        seed: Seed of the run, >= 0.
        c: Exploration constant >= 0, in utility; the paper's is 0.1.

    Raises:
        BudgetTooSmall: The budget is below 1.
        ConfigurationError: c out of range.
    """
    check_budget(budget, seed, least=1, what="UCB")
    if not c >= 0:
        raise ConfigurationError(f"c is {c!r}; give a number >= 0.")

    def rule(rng: np.random.Generator, q: FloatArray, count: IntArray) -> int:
        unseen = pick_unseen(rng, count)
        if unseen is not None:
            return unseen
        return pick_best(rng, q + c * np.sqrt(math.log(int(count.sum())) / count))

    return run_sequentially(problem, rule, budget=budget, seed=seed)
