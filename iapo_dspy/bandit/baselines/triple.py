"""TRIPLE-SH: prompts chosen by sequential halving at N = 1, blind to how inference scales (Shi et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from iapo_dspy.bandit.algorithms.psst import psst
from iapo_dspy.bandit.outcome import Algorithm
from iapo_dspy.bandit.problem import Problem
from iapo_dspy.types import Arm, Policy

__all__ = ["triple"]


def triple(problem: Problem, *, budget: int, seed: int, scale: Literal["one", "random"] = "one") -> Algorithm:
    """Trim the prompts of each context on single completions; the same trimming as PSST over the arms (p, 1).

    Args:
        problem: The problem.
        budget: T >= P, completions.
        seed: Root of the random streams, >= 0.
        scale: The scale of the policy: always 1, or drawn uniformly from 1 .. N_max for each context.

    Returns:
        The run. The arrays of its outcome have N = 1.

    Raises:
        BudgetTooSmall: The budget is below P.
    """
    single = psst(replace(problem, max_n=1), budget=budget, seed=seed)
    return single if scale == "one" else _with_random_scales(single, problem.max_n, seed)


def _with_random_scales(single: Algorithm, max_n: int, seed: int) -> Algorithm:
    outcome = yield from single
    scales = np.random.default_rng([seed, 0]).integers(1, max_n + 1, size=len(outcome.policy)).tolist()
    arms = tuple(Arm(arm.prompt, n) for arm, n in zip(outcome.policy.arms, scales, strict=True))
    return replace(outcome, policy=Policy(arms))
