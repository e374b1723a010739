"""A random arm for each context: the floor of every comparison."""

from __future__ import annotations

import numpy as np

from iapo_dspy.bandit.algorithms.elimination import Elimination
from iapo_dspy.bandit.estimators.blocks import BlockEstimator
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem, check_budget

__all__ = ["random_policy"]


def random_policy(problem: Problem, *, budget: int, seed: int) -> Algorithm:
    """Choose a uniformly random arm for each context, without a single pull.

    Args:
        problem: The problem.
        budget: Not used; T >= 0.
        seed: Seed of the choice, >= 0.
    """
    check_budget(budget, seed, least=0, what="a random policy")
    return _run(problem, seed)


def _run(problem: Problem, seed: int) -> Algorithm:
    state = Elimination(problem, estimator=BlockEstimator)
    arms = problem.n_prompts * problem.max_n
    chosen = np.random.default_rng(seed).integers(arms, size=problem.n_contexts)
    state.active = (np.arange(arms) == chosen[:, None]).reshape(problem.shape)
    yield from ()
    return state.outcome(complete=True)
