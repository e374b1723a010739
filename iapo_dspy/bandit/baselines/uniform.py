"""Uniform exploration: all arms in one batch, the best estimate at the end."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.algorithms.psst import draw_pulls
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget

__all__ = ["pull_all", "uniform"]


def uniform(problem: Problem, *, budget: int, seed: int) -> Algorithm:
    """Pull every prompt at its largest scale alike; smaller scales are estimated by block reuse.

    Args:
        problem: The problem.
        budget: T, completions; floor(T / (P * N_max)) pulls of each prompt.
        seed: Root of the random streams, >= 0.

    Raises:
        BudgetTooSmall: The budget is below P * N_max.
    """
    each = problem.n_prompts * problem.max_n
    check_budget(budget, seed, least=each, what="uniform exploration")
    return pull_all(problem, Elimination(problem, estimator=BlockEstimator), budget // each, seed)


def pull_all(problem: Problem, state: Elimination, times: int, seed: int) -> Algorithm:
    """Pull every prompt `times` times at its largest scale, in one round, and take the best arms."""
    pulls = draw_pulls(problem, np.full(problem.n_prompts, problem.max_n), times, seed, 1)
    observations = yield pulls
    state.observe(observations)
    return state.outcome(complete=observations.pulls.completions == pulls.completions)
